# SPDX-License-Identifier: Apache-2.0
"""`vla-policy`: the command line.

Exit status: 0 fine, 1 found wanting, 2 used wrongly, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from vla_policy_ros.core.errors import ConfigurationError, VlaPolicyError
from vla_policy_ros.tools import (
    benchmark,
    build,
    check,
    checklist,
    compare,
    demo,
    doctor,
    export,
    infer,
    new,
    quantize,
    replay,
    report,
    verify,
)
from vla_policy_ros.tools.console import say, show_fault
from vla_policy_ros.tools.version import package_version

_MODULES = (
    demo,
    check,
    new,
    infer,
    replay,
    report,
    export,
    quantize,
    build,
    verify,
    compare,
    benchmark,
    checklist,
    doctor,
)
COMMANDS = tuple(module.__name__.rpartition('.')[2] for module in _MODULES)
"""Names of the commands in the order of the help."""
_EXAMPLES = """\
first steps:
  vla-policy demo                                    prove the embedded policy on the embedded dataset
  vla-policy check ~/datasets/my_robot               look for faults in a dataset, bag, bundle, deployment or executor file
  vla-policy COMMAND --help                          every option of a command, with examples

exit status: 0 fine, 1 found wanting, 2 used wrongly, 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status of the process.

    Args:
        arguments: Words after `vla-policy`; those of the process when None.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    args = make_parser().parse_args(words)
    args.command_line = shlex.join(['vla-policy', *words])
    try:
        return int(args.run(args))
    except VlaPolicyError as fault:
        show_fault(fault, as_json=args.json)
        return 2 if isinstance(fault, ConfigurationError) else 1
    except BrokenPipeError:
        # The reader of our output has gone: nothing is left to say, not even by the interpreter at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as fault:
        show_fault(_explain(fault), as_json=args.json)
        return 1
    except KeyboardInterrupt:
        say('interrupted')
        return 130


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; imports no heavy library."""
    parser = argparse.ArgumentParser(
        prog='vla-policy',
        description='Check, run and prove vision-language-action policies for robots.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'vla-policy {package_version()}')
    subparsers = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for module in _MODULES:
        module.add_parser(subparsers)
    return parser


def _explain(fault: OSError) -> VlaPolicyError:
    return VlaPolicyError(
        str(fault.filename or 'files'),
        got=fault.strerror or str(fault),
        expected='a path that can be read and written',
        next_step='Check the path, its permissions and the free space.',
        code='file_system',
    )


if __name__ == '__main__':
    sys.exit(main())
