# SPDX-License-Identifier: Apache-2.0
"""What a dataset, a bundle, a deployment or an executor file holds, for people and for `--json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_policy_ros.bundle.bundle import Bundle
    from vla_policy_ros.core.dataset import DatasetInfo
    from vla_policy_ros.core.specs import Column
    from vla_policy_ros.deployment.config import Deployment
    from vla_policy_ros.deployment.executor import ExecutorSettings
    from vla_policy_ros.deployment.limits import LimitsFile

Fact = str | int | float | Sequence[str] | Mapping[str, str]
Summary = dict[str, Fact]


def to_text(summary: Mapping[str, Fact]) -> dict[str, str]:
    """Return every fact as one line."""
    return {name: _line(fact) for name, fact in summary.items()}


def dataset_summary(info: DatasetInfo) -> Summary:
    """Return what a dataset or a bag holds."""
    return {
        'name': info.name,
        'format': info.format,
        'robot': info.robot_type,
        'rate': f'{1e9 / info.step_ns:.4g} Hz',
        'episodes': info.num_episodes,
        'cameras': {c.name: f'{c.width} x {c.height} px' for c in info.cameras},
        'state': _columns(info.state),
        'action': _columns(info.action),
        'warnings': list(info.warnings),
    }


def bundle_summary(bundle: Bundle) -> Summary:
    """Return what a bundle holds."""
    manifest, spec = bundle.manifest, bundle.spec
    loop, words = manifest.loop, manifest.instruction
    cameras = {
        camera.name: f'{camera.size[1]} x {camera.size[0]} px, {len(camera.history_ns)} image(s)'
        for camera in manifest.cameras
    }
    return {
        'policy': spec.policy_id,
        'family': manifest.family,
        'note': manifest.source.note,
        'cameras': cameras,
        'state': _columns(spec.observation.state),
        'instruction': f'up to {words.max_tokens} tokens' if words else 'none',
        'stages': {stage.name: stage.onnx for stage in manifest.stages},
        'loop': f'{loop.kind}, {loop.steps} steps' if loop else 'none',
        'horizon': f'{spec.action.horizon} rows, {spec.action.step_ns / 1e6:.4g} ms apart',
        'action': _columns(spec.action.columns),
    }


def deployment_summary(deployment: Deployment, bundle: Bundle) -> Summary:
    """Return what a deployment file says."""
    spec = bundle.spec
    return {
        'policy': spec.policy_id,
        'engine': deployment.policy.engine,
        'cameras': {
            name: f'{camera.topic}, {camera.transport}'
            for name, camera in deployment.cameras.items()
        },
        'joint states': {
            source.topic: ' '.join(source.names) or 'all joints'
            for source in deployment.joint_states
        },
        'instruction': deployment.instruction.text or f'topic {deployment.instruction.topic}',
        'reference': deployment.reference_stream(spec),
        'chunks': deployment.output.chunk_topic,
    }


def executor_summary(settings: ExecutorSettings, limits: LimitsFile | None) -> Summary:
    """Return what an executor file says, with the limits file that it names."""
    urdf = settings.limits.urdf_file or settings.limits.urdf_topic
    return {
        'rate': f'{settings.rate_hz:g} Hz',
        'strategy': settings.strategy.name,
        'controllers': {
            controller.name: f'{controller.kind} on {controller.topic}: {" ".join(controller.columns)}'
            for controller in settings.controllers
        },
        'limits of': ' '.join(limits.joints) if limits else 'no file',
        'robot description': urdf or 'none',
        'measured': settings.measured.topic or 'not read',
    }


def _columns(columns: Sequence[Column]) -> dict[str, str]:
    return {column.name: f'{column.unit} {column.kind.value}'.strip() for column in columns}


def _line(fact: Fact) -> str:
    if isinstance(fact, Mapping):
        values = set(fact.values())
        if len(fact) > 1 and len(values) == 1:
            return f'{", ".join(fact)} (all {values.pop()})'
        return ', '.join(f'{name} ({value})' for name, value in fact.items()) or 'none'
    if isinstance(fact, str):
        return fact
    return '; '.join(fact) if isinstance(fact, Sequence) else str(fact)
