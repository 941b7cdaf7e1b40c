# SPDX-License-Identifier: Apache-2.0
"""`vla-policy doctor`: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vla_policy_ros.core.errors import VlaPolicyError
from vla_policy_ros.tools.arguments import (
    Subparsers,
    add_bundle,
    add_command,
    bundle_path,
    check_engine,
    in_range,
)
from vla_policy_ros.tools.console import (
    print_facts,
    print_json,
    print_table,
    print_verdict,
    show_waiting,
)
from vla_policy_ros.tools.doctor_checks import (
    Check,
    check_bundle,
    check_caches,
    check_machine,
)

if TYPE_CHECKING:
    from vla_policy_ros.bundle.manifest import Precision
    from vla_policy_ros.deployment.config import Deployment

_EXAMPLES = """\
  vla-policy doctor                                       everything that is there, and what is not
  vla-policy doctor --engine tensorrt --preprocess gpu    can this machine run that
  vla-policy doctor --engine tensorrt --bundle pick_v3    are the plans of a bundle built
  vla-policy doctor --config config/my_robot.yaml         and do the live topics fit it
"""
_GPU = ('NVIDIA driver', 'PyCUDA', 'CUDA bindings')
_ENGINE_NEEDS = {
    'onnxruntime': ('ONNX Runtime',),
    'onnxruntime_cuda': ('ONNX Runtime', 'ONNX Runtime CUDA', *_GPU),
    'onnxruntime_tensorrt': ('ONNX Runtime', 'ONNX Runtime TensorRT', *_GPU),
    'tensorrt': ('TensorRT', *_GPU),
    'tensorrt_rtx': ('TensorRT-RTX', *_GPU),
    'torch': ('PyTorch', 'PyTorch on the GPU', *_GPU),
    'torch_compile': ('PyTorch', 'PyTorch on the GPU', *_GPU),
    'torch_tensorrt': ('PyTorch', 'PyTorch on the GPU', 'Torch-TensorRT', *_GPU),
    'torch_cpu': ('PyTorch',),
    'openvino': ('OpenVINO',),
    'openvino_gpu': ('OpenVINO', 'OpenVINO GPU'),
    'openvino_npu': ('OpenVINO', 'OpenVINO NPU'),
}
_ALWAYS = ('Python', 'bundle', 'configuration')
_ROS_NEEDS = ('ROS 2', 'our messages', 'topics')


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What the machine shall be able to do; empty names ask for nothing."""

    engine: str
    preprocess: str
    jpeg: str = ''
    bundle: str = ''
    precision: Precision | None = None
    plan_folder: Path | None = None
    deployment: Deployment | None = None

    def needs(self, checks: Sequence[Check]) -> set[str]:
        """Return the names of the checks that must be ok."""
        from vla_policy_ros.engines.registry import PLAN_ENGINES

        names = {*_ALWAYS, *_ENGINE_NEEDS.get(self.engine, ())}
        if self.engine in PLAN_ENGINES and self.bundle:
            names.add('plans')
        if self.preprocess == 'gpu':
            has_kernels = any(c.name == 'kernel cache' and c.state == 'ok' for c in checks)
            names.update(_GPU if has_kernels else (*_GPU, 'NVRTC'))
        if self.jpeg == 'nvjpeg':
            names.add('nvJPEG')
        if self.deployment:
            names.update(_ROS_NEEDS)
            names.update(check.name for check in checks if check.name.startswith('topic '))
        return names


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'doctor',
        run=run,
        summary='say what this machine can do, and what to install for the rest',
        description='Look at Python, GPU, libraries, caches and ROS, and say what each is for and what to do where one '
        'is missing. Exits with 1 only when something is missing that the options ask for.',
        examples=_EXAMPLES,
    )
    parser.add_argument(
        '--config',
        type=Path,
        metavar='FILE',
        help='deployment file: its engine and bundle, and its topics as they are now',
    )
    add_bundle(parser, required=False)
    parser.add_argument('--engine', default='', metavar='E', help='engine that shall run')
    parser.add_argument(
        '--preprocess', choices=('cpu', 'gpu'), default='', help='where images shall be prepared'
    )
    parser.add_argument(
        '--seconds',
        type=in_range(0.5, 60.0),
        default=3.0,
        metavar='S',
        help='how long to listen to the topics (3)',
    )


def run(args: argparse.Namespace) -> int:
    """Print every check; returns 1 when one that is needed is not ok.

    Raises:
        ConfigurationError: There is no such engine.
    """
    check_engine(args.engine)
    with show_waiting('looking at this machine', expected_s=10):
        wish, checks = _examine(args)
    needs = wish.needs(checks)
    lacking = [check for check in checks if check.name in needs and check.state != 'ok']
    if args.json:
        _print_document(checks, needs, lacking)
    else:
        _print_text(checks, needs, lacking)
    return 1 if lacking else 0


def _examine(args: argparse.Namespace) -> tuple[_Wish, list[Check]]:
    from vla_policy_ros.tools.doctor_ros import check_ros

    wish, checks = _read_wish(args)
    checks += _guard('this machine', check_machine)
    checks += _guard('caches', lambda: check_caches(wish.plan_folder))
    checks += _guard('ROS', check_ros)
    if wish.bundle:
        folder = bundle_path(wish.bundle)
        checks += _guard(
            'bundle',
            lambda: check_bundle(
                folder, wish.plan_folder, engine=wish.engine, precision=wish.precision
            ),
        )
    if wish.deployment:
        checks += _guard('topics', lambda: list(_check_topics(args, wish)))
    return wish, checks


def _read_wish(args: argparse.Namespace) -> tuple[_Wish, list[Check]]:
    """Return what is asked for by options, and by the deployment file where they say nothing."""
    from vla_policy_ros.deployment.config import load_deployment

    bundle = args.bundle or ''
    if args.config is None:
        return _Wish(engine=args.engine, preprocess=args.preprocess, bundle=bundle), []
    purpose = 'robot and policy'
    try:
        deployment = load_deployment(args.config)
    except VlaPolicyError as fault:
        found = f'{fault.where}: {fault.got}, expected {fault.expected}'
        wish = _Wish(engine=args.engine, preprocess=args.preprocess, bundle=bundle)
        return wish, [Check('configuration', 'problem', found, purpose, fault.next_step)]
    policy = deployment.policy
    wish = _Wish(
        engine=args.engine or policy.engine,
        preprocess=args.preprocess or policy.preprocess,
        jpeg=policy.jpeg,
        bundle=bundle or policy.bundle,
        precision=policy.precision or None,
        plan_folder=Path(policy.plan_folder) if policy.plan_folder else None,
        deployment=deployment,
    )
    found = f'{args.config}: engine {wish.engine}, preprocess {wish.preprocess}'
    return wish, [Check('configuration', 'ok', found, purpose)]


def _check_topics(args: argparse.Namespace, wish: _Wish) -> Iterator[Check]:
    from vla_policy_ros.bundle.bundle import load_bundle
    from vla_policy_ros.tools.doctor_ros import check_topics
    from vla_policy_ros.tools.ros_environment import check_ros

    assert wish.deployment
    check_ros()
    try:
        joints = load_bundle(bundle_path(wish.bundle)).spec.observation.state_names
    except VlaPolicyError:  # told by the check of the bundle
        joints = ()
    yield from check_topics(args.config, wish.deployment, joints, args.seconds)


def _guard(name: str, look: Callable[[], list[Check]]) -> list[Check]:
    """Return the checks of one part, or one that says why it could not be looked at."""
    try:
        return look()
    except VlaPolicyError as fault:
        return [
            Check(name, 'problem', f'{fault.where}: {fault.got}', fault.expected, fault.next_step)
        ]
    except (OSError, ImportError, ValueError) as fault:
        found = f'{type(fault).__name__}: {fault}'
        return [Check(name, 'problem', found, 'this report', 'Report it as a fault of ours.')]


def _print_document(checks: Sequence[Check], needs: set[str], lacking: Sequence[Check]) -> None:
    print_json(
        {
            'passed': not lacking,
            'checks': [
                {
                    **asdict(check),
                    'next_step': '' if check.state == 'ok' else check.next_step,
                    'needed': check.name in needs,
                }
                for check in checks
            ],
        }
    )


def _print_text(checks: Sequence[Check], needs: set[str], lacking: Sequence[Check]) -> None:
    rows = [
        (
            check.name,
            f'{check.state}{" (needed)" * (check in lacking)}',
            check.found,
            check.purpose,
        )
        for check in checks
    ]
    print_table(('what', 'state', 'found', 'for'), rows)
    print('\nwhat to do for the rest:')
    print_facts({check.name: check.next_step for check in checks if check.state != 'ok'})
    print()
    missing = ', '.join(check.name for check in lacking)
    asked = (
        'what was asked for is there' if needs - set(_ALWAYS) else 'nothing special was asked for'
    )
    print_verdict(passed=not lacking, text=f'not ok, but needed: {missing}' if lacking else asked)
