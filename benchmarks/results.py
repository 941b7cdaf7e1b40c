# SPDX-License-Identifier: Apache-2.0
"""How every benchmark says where it ran: no paths and no host names, so that a result can be committed."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, with the command that made it (less `--json`) and the kind of machine."""
    script, *options = sys.argv
    if '--json' in options:
        index = options.index('--json')
        del options[index : index + 2]
    facts = {
        'command': ' '.join([f'benchmarks/{Path(script).name}', *options]),
        'machine': f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores',
        'python': platform.python_version(),
    }
    path.write_text(json.dumps({**facts, **result}, indent=1) + '\n', encoding='utf-8')
