# SPDX-License-Identifier: Apache-2.0
"""Prints the Python requirements of setup.cfg, one per line.

Usage: requirements.py [EXTRA ...]
"""

from __future__ import annotations

import configparser
import pathlib
import sys


def main(extras: list[str]) -> None:
    """Print the run-time requirements and those of the extras."""
    parser = configparser.ConfigParser()
    parser.read(pathlib.Path(__file__).parent.parent / 'setup.cfg', encoding='utf-8')
    print(parser['options']['install_requires'].strip())
    for extra in extras:
        print(parser['options.extras_require'][extra].strip())


if __name__ == '__main__':
    main(sys.argv[1:])
