# SPDX-License-Identifier: Apache-2.0
"""Groups of options that several commands share, and the objects made of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vla_policy_ros.core.errors import ConfigurationError

if TYPE_CHECKING:
    from vla_policy_ros.bundle.manifest import Manifest
    from vla_policy_ros.core.dataset import Dataset
    from vla_policy_ros.evaluation.verdict import Tolerances

SAMPLE = 'sample'
"""Stands for the dataset or the bundle that comes with the package."""
PRECISIONS = ('fp32', 'fp16', 'bf16', 'fp8', 'int8')
"""`bundle.manifest.Precision`, which would be slow to import for a help text."""


class Subparsers(Protocol):
    """Where commands are added: what `ArgumentParser.add_subparsers` returns."""

    def add_parser(
        self,
        name: str,
        *,
        help: str,  # noqa: A002 - argparse's own name
        description: str,
        epilog: str,
        formatter_class: Any,
    ) -> argparse.ArgumentParser:
        """Add a command."""


def add_command(
    subparsers: Subparsers,
    name: str,
    *,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a command that ends its help with examples and knows `--json`.

    Args:
        subparsers: Where it is added.
        name: Its name.
        run: Takes the parsed options, returns the exit status.
        summary: A few words for the list of commands.
        description: What it does.
        examples: Commands as a user would type them, one a line.
    """
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f'examples:\n{examples.rstrip()}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--json', action='store_true', help='print one JSON document on stdout')
    parser.set_defaults(run=run)
    return parser


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add `--dataset`."""
    parser.add_argument(
        '--dataset',
        required=True,
        metavar='D',
        help='LeRobot dataset (v2.0, v2.1, v3.0), rosbag2 (folder, .mcap, .db3), or `sample`',
    )


def dataset_path(name: str) -> Path:
    """Return the absolute path of a dataset."""
    from vla_policy_ros.sample import sample_dataset_path

    return sample_dataset_path() if name == SAMPLE else Path(name).expanduser().absolute()


def open_named_dataset(name: str) -> Dataset:
    """Open the dataset named by `--dataset`.

    Raises:
        DatasetError: There is nothing there, or it is broken.
    """
    from vla_policy_ros.datasets.registry import open_dataset

    return open_dataset(dataset_path(name))


def add_bundle(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add `--bundle`."""
    parser.add_argument(
        '--bundle', required=required, metavar='B', help='folder of the policy bundle, or `sample`'
    )


def bundle_path(name: str) -> Path:
    """Return the absolute path of a bundle."""
    from vla_policy_ros.sample import sample_bundle_path

    return sample_bundle_path() if name == SAMPLE else Path(name).expanduser().absolute()


def executor_path(name: str) -> Path:
    """Return the absolute path of an executor file."""
    from vla_policy_ros.sample import sample_executor_path

    return sample_executor_path() if name == SAMPLE else Path(name).expanduser().absolute()


def add_executor(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add the option `--executor`, None when it is not given.

    Args:
        parser: Parser of the command.
        purpose: What the command does with the file.
    """
    parser.add_argument(
        '--executor',
        type=executor_path,
        metavar='FILE',
        help=f'executor file, or `{SAMPLE}`: {purpose}',
    )


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's `bundle.yaml` alone: what the policy takes and gives, without hashing its files.

    Raises:
        BundleError: It is missing or wrong.
    """
    from vla_policy_ros.bundle.manifest import MANIFEST_NAME, Manifest
    from vla_policy_ros.bundle.strict import parse_file
    from vla_policy_ros.core.errors import BundleError

    return parse_file(Manifest, folder / MANIFEST_NAME, BundleError)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add `--precision`."""
    parser.add_argument(
        '--precision', choices=PRECISIONS, help="precision of all stages (each stage's own)"
    )


def add_plans(parser: argparse.ArgumentParser) -> None:
    """Add `--plans`."""
    parser.add_argument(
        '--plans', type=_absolute_path, metavar='FOLDER', help='where plans are kept'
    )


def add_engine(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add `--engine`."""
    parser.add_argument(
        '--engine',
        default=default,
        metavar='E',
        help='onnxruntime (the default), onnxruntime_cuda, onnxruntime_tensorrt, tensorrt, tensorrt_rtx, torch, torch_compile, '
        'torch_tensorrt, torch_cpu, openvino, openvino_gpu, openvino_npu, or none for a policy that holds the pose',
    )


def add_preprocess(parser: argparse.ArgumentParser) -> None:
    """Add `--preprocess`."""
    parser.add_argument(
        '--preprocess',
        choices=('cpu', 'gpu'),
        default='cpu',
        help='where images are preprocessed; gpu needs an engine on the GPU (cpu)',
    )


def check_engine(name: str, *, runs_networks: bool = False) -> None:
    """Refuse an engine that is not known; an empty name leaves the choice to the deployment file.

    Args:
        name: Name of the engine.
        runs_networks: Whether `none`, which runs no network, is refused too.

    Raises:
        ConfigurationError: There is no such engine (`unknown_engine`).
    """
    from vla_policy_ros.engines.registry import ENGINES
    from vla_policy_ros.policies.registry import POLICY_ENGINES

    known = ENGINES if runs_networks else POLICY_ENGINES
    if name and name not in known:
        raise ConfigurationError(
            '--engine',
            got=repr(name),
            expected=f'one of {", ".join(known)}',
            next_step='Choose one of these.',
            code='unknown_engine',
        )


def add_execution_horizon(parser: argparse.ArgumentParser) -> None:
    """Add `--execution-horizon`."""
    parser.add_argument(
        '--execution-horizon',
        type=at_least(1),
        metavar='H',
        help='rows of a chunk that are executed before the next chunk takes over',
    )


def add_tolerances(parser: argparse.ArgumentParser) -> None:
    """Add `--tolerances`."""
    parser.add_argument(
        '--tolerances',
        metavar='T',
        help='limits of the verdict: a YAML file, or text such as "max_mae: 0.05, max_refused: 0"',
    )


def read_tolerances(text: str | None) -> Tolerances:
    """Return the tolerances of a file or of inline YAML, with or without braces; no limits for None.

    Raises:
        ConfigurationError: It is no mapping, a key is unknown, or a limit is wrong.
    """
    import yaml

    from vla_policy_ros.bundle.strict import read_yaml
    from vla_policy_ros.evaluation.verdict import Tolerances

    if text is None:
        return Tolerances()
    if Path(text).is_file():
        return Tolerances.from_dict(read_yaml(Path(text), ConfigurationError), text)
    inline = text.strip()
    is_whole = inline.startswith('{') or '\n' in inline
    try:
        document = yaml.safe_load(inline if is_whole else f'{{{inline}}}')
    except yaml.YAMLError:
        document = None
    # A word alone is a key without a value, which would read as "no limit".
    if not isinstance(document, dict) or None in document.values():
        raise ConfigurationError(
            '--tolerances',
            got=repr(text),
            expected='a YAML file, or text such as "max_mae: 0.05, max_refused: 0"',
            next_step='Check the path, and put a space after every colon.',
        )
    return Tolerances.from_dict(document, '--tolerances')


def _absolute_path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def at_least(low: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number of at least `low`."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f'got {value}, expected at least {low}')
        return value

    parse.__name__ = 'whole number'
    return parse


def in_range(low: float, high: float) -> Callable[[str], float]:
    """Return an argparse type: a number from `low` to `high`."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'got {value:g}, expected {low:g} to {high:g}')
        return value

    parse.__name__ = 'number'
    return parse
