# SPDX-License-Identifier: Apache-2.0
"""Points the CMake files of the ROS wheels in this environment at its own Python and numpy headers.

The wheels were built on another machine and name its folders, so a package with messages would not configure. Run with
the environment's own Python after installing the wheels; running it again changes nothing.
"""

from __future__ import annotations

import pathlib
import re
import sysconfig

import numpy as np

_NUMPY_ROOT = re.compile(r'/opt/python[^";]*?/site-packages/numpy')
_PYTHON_HEADERS = re.compile(r'/opt/python/cp\d+-cp\d+/include/python3\.\d+')


def main() -> None:
    """Rewrite every exported CMake file that names foreign headers."""
    paths = sysconfig.get_paths()
    numpy_root = str(pathlib.Path(np.__file__).parent)
    for file in pathlib.Path(paths['data'], 'share').glob('**/*.cmake'):
        text = file.read_text(encoding='utf-8', errors='surrogateescape')
        mended = _NUMPY_ROOT.sub(numpy_root, text)
        mended = _PYTHON_HEADERS.sub(paths['include'], mended)
        if mended != text:
            file.write_text(mended, encoding='utf-8', errors='surrogateescape')


if __name__ == '__main__':
    main()
