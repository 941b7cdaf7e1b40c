# SPDX-License-Identifier: Apache-2.0
"""What a replay consists of: its nodes, their parameters, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.tools.arguments import (
    bundle_path,
    check_engine,
    dataset_path,
    open_named_dataset,
    read_manifest,
)
from vla_policy_ros.tools.motion_plan import ROBOT_TOPIC, motion_nodes
from vla_policy_ros.tools.node_launch import NodeLaunch

if TYPE_CHECKING:
    from vla_policy_ros.bundle.manifest import Action, Manifest
    from vla_policy_ros.core.dataset import DatasetInfo
    from vla_policy_ros.deployment.config import Deployment

POLICY, REPLAY, RECORDER = 'policy_node', 'replay_node', 'recorder_node'
_REPORTS = ('report.json', 'report.xml', 'report.html')
_RUN_ENTRIES = {*_REPORTS, 'policy', 'truth', 'motion', 'frames', 'log'}
_QOS_DEPTH = 64  # as many messages as the replay keeps for a policy that is held up


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """What a user asks for; empty texts and None leave the choice to the bundle or the deployment file.

    Attributes:
        dataset: Path, or `sample`.
        bundle: Path, or `sample`; empty takes the deployment file's.
        episode: Index of the episode.
        mode: `timed`, `lockstep` or `fast`.
        rate: Factor on the recorded pace.
        out: Folder of the run.
        config: Deployment file.
        executor: Executor file: the chunks are executed on a simulated robot; None: they are only recorded.
        engine: Engine of the policy.
        transport: `raw` or `compressed`.
        faults: Faults that the replay injects.
        tolerances: Limits of the verdict.
        horizon: Rows of a true chunk.
        execution_horizon: Rows of a chunk that count as executed.
        command: Command line that repeats the run.
    """

    dataset: str
    bundle: str
    episode: int
    mode: str
    rate: float
    out: Path
    config: Path | None = None
    executor: Path | None = None
    engine: str = ''
    transport: str = ''
    faults: str = ''
    tolerances: Mapping[str, Any] = field(default_factory=dict)
    horizon: int | None = None
    execution_horizon: int | None = None
    command: str = ''


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan:
    """What will be run.

    Attributes:
        title: Headline of the report.
        num_steps: Steps of the episode.
        duration_s: How long playing should take, in seconds; None when it depends on the machine.
        nodes: The nodes in the order of their start.
    """

    title: str
    num_steps: int
    duration_s: float | None
    nodes: tuple[NodeLaunch, ...]


def make_plan(settings: ReplaySettings) -> ReplayPlan:
    """Check everything that can be checked before a node runs, and choose the parameters of the nodes.

    Raises:
        VlaPolicyError: Dataset, episode, bundle, deployment file or an option is wrong.
    """
    check_engine(settings.engine)
    deployment = _load_deployment(settings)
    bundle = settings.bundle or (deployment.policy.bundle if deployment else '')
    if not bundle:
        raise ConfigurationError(
            '--bundle',
            got='neither --bundle nor --config',
            expected='a bundle',
            next_step='Add --bundle.',
        )
    manifest = read_manifest(bundle_path(bundle))
    with closing(open_named_dataset(settings.dataset)) as dataset:
        info = dataset.info
        with closing(dataset.episode(settings.episode)) as episode:
            stamps_ns = episode.stamps_ns
            names = [column.name for column in info.state]
            first_pose = dict(zip(names, episode.state[0].tolist(), strict=True))
    title = f'{manifest.name} on {info.name}, episode {settings.episode}'
    duration_s = float(stamps_ns[-1] - stamps_ns[0]) / 1e9 / settings.rate
    return ReplayPlan(
        title=title,
        num_steps=len(stamps_ns),
        duration_s=duration_s if settings.mode == 'timed' else None,
        nodes=(
            _policy_node(settings, bundle),
            *_motion_nodes(settings, manifest, deployment, first_pose),
            _recorder_node(settings, title, deployment),
            _replay_node(settings, info, manifest.action, deployment),
        ),
    )


def prepare_folder(folder: Path) -> None:
    """Make the folder of a run; in that of an earlier run, remove the reports, so that none can be taken for new.

    Raises:
        ConfigurationError: It holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    foreign = sorted({path.name for path in folder.iterdir()} - _RUN_ENTRIES)
    if foreign:
        raise ConfigurationError(
            str(folder),
            got=', '.join(foreign[:5]),
            expected='a new or empty folder, or that of an earlier run',
            next_step='Choose another folder with --out.',
            code='folder_not_empty',
        )
    for name in _REPORTS:
        (folder / name).unlink(missing_ok=True)


def _load_deployment(settings: ReplaySettings) -> Deployment | None:
    if settings.config is None:
        return None
    from vla_policy_ros.deployment.config import load_deployment
    from vla_policy_ros.deployment.overrides import Overrides

    overrides = Overrides.model_validate({'image_transport': settings.transport})
    return overrides.apply(load_deployment(settings.config))


def _policy_node(settings: ReplaySettings, bundle: str) -> NodeLaunch:
    return NodeLaunch(
        name=POLICY,
        parameters={
            'config': str(settings.config.absolute()) if settings.config else '',
            'bundle': str(bundle_path(bundle)),
            'engine': settings.engine,
            'image_transport': settings.transport,
            'use_sim_time': settings.mode == 'lockstep',
            'qos_depth': _QOS_DEPTH,
            'autostart': True,
        },
    )


def _motion_nodes(
    settings: ReplaySettings,
    manifest: Manifest,
    deployment: Deployment | None,
    first_pose: Mapping[str, float],
) -> tuple[NodeLaunch, ...]:
    if settings.executor is None:
        return ()
    if settings.mode != 'timed':
        raise ConfigurationError(
            '--executor',
            got=f'mode {settings.mode}, in which time does not run as it does for a robot',
            expected='mode timed',
            next_step='Leave --executor out, or choose --mode timed.',
        )
    from vla_policy_ros.bundle.bundle import policy_spec

    return motion_nodes(
        settings.executor,
        columns=policy_spec(manifest, '').action.columns,
        first_pose=first_pose,
        chunk_topic=deployment.output.chunk_topic if deployment else 'action_chunk',
    )


def _recorder_node(
    settings: ReplaySettings, title: str, deployment: Deployment | None
) -> NodeLaunch:
    import yaml

    parameters: dict[str, Any] = {
        'out': str(settings.out.absolute()),
        'name': title,
        'command': settings.command,
        'dataset': str(dataset_path(settings.dataset)),
        'tolerances': yaml.safe_dump(dict(settings.tolerances), width=10**6),
        'execution_horizon': settings.execution_horizon or 0,
        'executor': str(settings.executor.absolute()) if settings.executor else '',
        'robot_topic': ROBOT_TOPIC if settings.executor else '',
        'autostart': True,
    }
    if deployment:
        parameters['chunk_topic'] = deployment.output.chunk_topic
        parameters.update(_joint_topic(deployment))
    return NodeLaunch(name=RECORDER, parameters=parameters)


def _replay_node(
    settings: ReplaySettings, info: DatasetInfo, action: Action, deployment: Deployment | None
) -> NodeLaunch:
    # Long enough for the policy's last row, whatever the steps of both are.
    reach_ns = action.offset_ns + (action.horizon - 1) * action.step_ns
    horizon = max(-(-reach_ns // info.step_ns), 0) + 1
    parameters = {
        'dataset': str(dataset_path(settings.dataset)),
        'episodes': str(settings.episode),
        'mode': settings.mode,
        'rate': settings.rate,
        'horizon': settings.horizon or horizon,
        'faults': settings.faults,
        'wait_for_recorder': True,
        'exit_at_end': True,
        'autostart': True,
        'image_transport': settings.transport or 'raw',
    }
    remaps: dict[str, str] = {}
    if deployment:
        parameters['image_transport'] = transport = _transport(deployment)
        parameters.update(_joint_topic(deployment))
        parameters['instruction_topic'] = deployment.instruction.topic or 'instruction'
        suffix = '/compressed' if transport == 'compressed' else ''
        for name, camera in deployment.cameras.items():
            remaps[f'/camera/{name}/image_raw{suffix}'] = camera.topic
    return NodeLaunch(name=REPLAY, parameters=parameters, remaps=remaps, may_end=True)


def _transport(deployment: Deployment) -> str:
    """Return the one transport of all cameras."""
    transports = sorted({camera.transport for camera in deployment.cameras.values()})
    if len(transports) > 1:
        raise ConfigurationError(
            'cameras of the deployment file',
            got='raw and compressed transports',
            expected='one transport for a replay',
            next_step='Choose with --transport.',
        )
    return transports[0] if transports else 'raw'


def _joint_topic(deployment: Deployment) -> dict[str, str]:
    """Return the topic of the joint states as a parameter; a replay publishes all joints on one topic."""
    topics = sorted({source.topic for source in deployment.joint_states})
    if len(topics) > 1:
        raise ConfigurationError(
            'joint_states of the deployment file',
            got=f'topics {", ".join(topics)}',
            expected='one topic for a replay, which publishes all joints together',
            next_step='Replay with a deployment file that has one source of joint states.',
        )
    return {'joint_topic': topics[0]} if topics else {}
