# SPDX-License-Identifier: Apache-2.0
"""`vla-policy build`: TensorRT plans of a bundle's networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.tools.arguments import (
    Subparsers,
    add_bundle,
    add_command,
    add_plans,
    add_precision,
    at_least,
    bundle_path,
)
from vla_policy_ros.tools.build_report import describe_plan, print_plans
from vla_policy_ros.tools.calibrating import add_calibration, check_measuring, find_calibration
from vla_policy_ros.tools.console import (
    print_json,
    show_progress,
)

if TYPE_CHECKING:
    from vla_policy_ros.engines.build_progress import BuildProgress
    from vla_policy_ros.engines.plan_facts import BuildOptions
    from vla_policy_ros.export.calibration import Calibration
    from vla_policy_ros.export.stage_plans import FinishedPlan, PlanBuilder, PlanJob

_EXAMPLES = """\
  vla-policy build --bundle bundles/pick_v3 --precision fp16
  vla-policy build --bundle bundles/pick_v3 --precision fp8 --calibrate ~/datasets/pick --samples 64 --calibration pick.json
  vla-policy build --bundle bundles/pick_v3 --precision fp8 --calibrate ~/datasets/pick --keep-loss-below 1e-4
  vla-policy build --bundle bundles/pick_v3 --stage vision --precision bf16 --optimization-level 5
  vla-policy build --bundle sample --precision fp16 --engine tensorrt_rtx --compute-capability 8.9
  vla-policy build --bundle bundles/pick_v3 --stage head --precision fp16 --import head=head_trtexec.plan
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        'build',
        run=run,
        summary="build TensorRT plans of a policy's networks",
        description="Convert a bundle's networks to a precision and build TensorRT plans of them, for this GPU and this "
        'TensorRT. Plans are kept; what is there already is not built again.',
        examples=_EXAMPLES,
    )
    add_bundle(parser)
    add_precision(parser)
    parser.add_argument(
        '--engine',
        choices=('tensorrt', 'tensorrt_rtx'),
        default='tensorrt',
        help='library to build with (tensorrt); tensorrt_rtx builds without a GPU',
    )
    parser.add_argument(
        '--stage',
        action='append',
        default=[],
        metavar='S',
        help='build this stage only; repeatable',
    )
    add_calibration(parser, title='calibration, for int8 and fp8')
    _add_options(parser)
    add_plans(parser)
    parser.add_argument(
        '--import',
        dest='imports',
        action='append',
        default=[],
        metavar='STAGE=PLAN',
        help='take in a plan that was built elsewhere from this network, such as by trtexec; repeatable',
    )
    parser.add_argument('--force', action='store_true', help='build again what is there')


def run(args: argparse.Namespace) -> int:
    """Build what is not there and show what is; returns 0.

    Raises:
        VlaPolicyError: There is no GPU or TensorRT, an option is wrong, or a build failed.
    """
    from vla_policy_ros.bundle.bundle import load_bundle
    from vla_policy_ros.engines.plans import PlanStore
    from vla_policy_ros.export.onnx_network import OnnxNetwork
    from vla_policy_ros.export.prepare import EIGHT_BIT, is_quantized, no_calibration
    from vla_policy_ros.export.stage_plans import PlanBuilder, plan_jobs

    check_measuring(args)
    bundle = load_bundle(bundle_path(args.bundle))
    jobs = plan_jobs(bundle, precision=args.precision, stages=args.stage)
    imports = _read_imports(args.imports, jobs)
    store = PlanStore(args.plans)
    builder = PlanBuilder(args.engine, store=store, options=_options(args))
    # A plan does not tell what it was calibrated on: with a new calibration those in 8 bits are built anew.
    outdated = EIGHT_BIT if args.calibrate else ()
    wanted = [] if args.force else [job for job in jobs if job.precision not in outdated]
    known = {job: plan for job in wanted if (plan := builder.find(job))}
    missing = [job for job in jobs if job not in known and job not in imports]
    asked = {
        job.precision
        for job in missing
        if job.precision in EIGHT_BIT and not is_quantized(OnnxNetwork(job.onnx_path))
    }
    eight_bit = [name for name in EIGHT_BIT if name in asked]
    calibration = find_calibration(args, bundle, eight_bit) if eight_bit else None
    # Before the first plan is built, which may take minutes.
    if eight_bit and calibration is None:
        raise no_calibration(eight_bit[0])
    finished = {**known, **{job: builder.take_in(job, path) for job, path in imports.items()}}
    finished.update(_build(builder, missing, calibration))
    plans = [finished[job] for job in jobs]
    if args.json:
        print_json(
            {'passed': True, 'folder': str(store.folder), 'plans': [*map(describe_plan, plans)]}
        )
        return 0
    print_plans(args, plans, store.folder)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('how to build')
    group.add_argument(
        '--workspace-mib',
        type=at_least(0),
        default=0,
        metavar='N',
        help='memory limit of one layer; 0 for none (0)',
    )
    group.add_argument(
        '--optimization-level',
        type=int,
        choices=range(6),
        help='0 builds fast, 5 makes a fast plan (3)',
    )
    group.add_argument(
        '--hardware-compatible',
        action='store_true',
        help='the plan runs on other GPUs from Ampere on, more slowly',
    )
    group.add_argument(
        '--version-compatible',
        action='store_true',
        help='the plan runs with later TensorRT versions of the same major number',
    )
    group.add_argument(
        '--compute-capability',
        action='append',
        default=[],
        metavar='X.Y',
        help='tensorrt_rtx: a GPU generation to build for, such as 8.9; repeatable (all)',
    )


def _options(args: argparse.Namespace) -> BuildOptions:
    from vla_policy_ros.engines.plan_facts import BuildOptions

    return BuildOptions(
        workspace_mib=args.workspace_mib,
        optimization_level=args.optimization_level,
        hardware_compatible=args.hardware_compatible,
        version_compatible=args.version_compatible,
        targets=tuple(args.compute_capability),
    )


def _read_imports(texts: list[str], jobs: list[PlanJob]) -> dict[PlanJob, Path]:
    """Return the plan files of `--import` by their jobs."""
    by_stage = {stage: job for job in jobs for stage in job.stages}
    imports = {}
    for text in texts:
        stage, _, name = text.partition('=')
        path = Path(name).expanduser()
        if stage not in by_stage or not path.is_file():
            raise ConfigurationError(
                '--import',
                got=repr(text),
                expected=f'STAGE=PLAN with one of {", ".join(by_stage)} and a plan file',
                next_step='Check the name of the stage, and the path.',
                code='bad_import',
            )
        imports[by_stage[stage]] = path
    return imports


def _build(
    builder: PlanBuilder, jobs: list[PlanJob], calibration: Calibration | None
) -> dict[PlanJob, FinishedPlan]:
    if not jobs:
        return {}
    finished = {}
    with show_progress('building', len(jobs)) as show:
        for done, job in enumerate(jobs):
            name = f'{", ".join(job.stages)} ({job.precision})'
            show(done, name)

            def tell(step: BuildProgress, done: int = done, name: str = name) -> None:
                show(done, f'{name}: {step.phase} {step.step}/{step.steps}')

            finished[job] = builder.build(job, calibration=calibration, on_progress=tell)
    return finished
