# SPDX-License-Identifier: Apache-2.0
"""`bundle.yaml` of a described network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.export.network.description import NetworkDescription
from vla_policy_ros.export.network.fit import FittedInputs
from vla_policy_ros.export.network.joints import Reading

INPUTS: Final = 'inputs'
"""Name of the stage that makes the network's inputs."""
NETWORK: Final = 'network'
"""Name of the network's own stage."""
OUTPUTS: Final = 'outputs'
"""Name of the stage that makes actions of the network's outputs."""


def stage_file(name: str) -> str:
    """Return the ONNX file of a stage."""
    return f'{name}.onnx'


def make_manifest(
    description: NetworkDescription,
    inputs: FittedInputs,
    reading: Reading,
    outputs: Sequence[TensorSpec],
    *,
    name: str,
) -> dict[str, Any]:
    """Return the manifest without `statistics`, `probe` and `files`.

    Args:
        description: The description.
        inputs: What fills the network.
        reading: Where the actions are.
        outputs: All outputs of the network.
        name: Name of the policy.
    """
    action, state = description.action, inputs.state
    manifest: dict[str, Any] = {
        'schema_version': 1,
        'name': name,
        'family': description.family,
        'source': description.source.model_dump(exclude_unset=True),
        'cameras': [camera.model_dump(exclude_unset=True) for camera in inputs.cameras],
        'action': {
            'tensor': reading.pool,
            'groups': [group.model_dump(exclude_unset=True) for group in action.groups],
            'horizon': reading.horizon,
            'step_ns': round(action.step_ms * 1e6),
        },
        'stages': _stages(inputs, reading, outputs, description.precision),
    }
    if state:
        manifest['state'] = {**state.model_dump(exclude_unset=True), 'squeeze': state.squeeze}
    if description.constants:
        manifest['constants'] = [
            {**constant.model_dump(exclude_unset=True), 'tensor': f'constant_{index}'}
            for index, constant in enumerate(description.constants)
        ]
    return manifest


def _stages(
    inputs: FittedInputs, reading: Reading, outputs: Sequence[TensorSpec], precision: str
) -> list[dict[str, Any]]:
    read = {spec.name: pool for spec, pool in zip(reading.outputs, reading.pools, strict=True)}
    network = {
        'name': NETWORK,
        'onnx': stage_file(NETWORK),
        'inputs': {feed.spec.name: feed.pool for feed in inputs.feeds},
        'outputs': {
            spec.name: read.get(spec.name, f'unused_{index}') for index, spec in enumerate(outputs)
        },
        'precision': precision,
    }
    stages = [network]
    if inputs.joined:
        parts = [part.name for feed in inputs.joined for part in feed.parts]
        stages.insert(0, _joint(INPUTS, parts, [feed.pool for feed in inputs.joined]))
    if not reading.is_direct:
        stages.append(_joint(OUTPUTS, reading.pools, [reading.pool]))
    return stages


def _joint(name: str, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    return {
        'name': name,
        'onnx': stage_file(name),
        'inputs': {pool: pool for pool in inputs},
        'outputs': {pool: pool for pool in outputs},
    }
