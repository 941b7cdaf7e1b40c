# SPDX-License-Identifier: Apache-2.0
"""Which version of this package runs, and on what."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = 'vla_policy_ros'


def package_version() -> str:
    """Return the version that pip knows, else that of the package.xml beside this code; `unknown` without both."""
    return _pip_version(PACKAGE) or _colcon_version()


def list_versions(*libraries: str) -> dict[str, str]:
    """Return the versions of this package, of Python and of some libraries, and the machine, for a report."""
    return {
        PACKAGE: package_version(),
        'python': platform.python_version(),
        **{library: _pip_version(library) or 'unknown' for library in libraries},
        'machine': platform.platform(),
    }


def _pip_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _colcon_version() -> str:
    """Colcon installs no metadata for pip: read the package.xml of the checkout or of the install prefix."""
    for folder in Path(__file__).parents:
        for path in (folder / 'package.xml', folder / 'share' / PACKAGE / 'package.xml'):
            text = path.read_text(encoding='utf-8') if path.is_file() else ''
            found = re.search(r'<version>\s*([^<\s]+)\s*</version>', text)
            if found and f'<name>{PACKAGE}</name>' in text:
                return found[1]
    return 'unknown'
