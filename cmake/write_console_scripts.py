# SPDX-License-Identifier: Apache-2.0
"""Writes one small program per console script of a setup.cfg and prints their paths, separated by semicolons.

Usage: write_console_scripts.py SETUP_CFG FOLDER INTERPRETER
"""

from __future__ import annotations

import configparser
import pathlib
import sys

TEMPLATE = """#!{interpreter}
import sys

from {module} import {function}

sys.exit({function}())
"""


def main(setup_cfg: str, folder: str, interpreter: str) -> None:
    """Write the programs of `setup_cfg` into `folder`."""
    parser = configparser.ConfigParser()
    parser.read(setup_cfg, encoding='utf-8')
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for line in parser['options.entry_points']['console_scripts'].strip().splitlines():
        name, _, place = (part.strip() for part in line.partition('='))
        module, _, function = place.partition(':')
        path = target / name
        path.write_text(
            TEMPLATE.format(interpreter=interpreter, module=module, function=function),
            encoding='utf-8',
        )
        path.chmod(0o755)
        paths.append(str(path))
    print(';'.join(paths))


if __name__ == '__main__':
    main(*sys.argv[1:])
