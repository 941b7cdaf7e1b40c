# SPDX-License-Identifier: Apache-2.0
"""Flow-matching bundles for real-time chunking: with relative actions, and with the prefix as an input."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from support.bundles import (
    HORIZON,
    STEP_NS,
    flow_manifest,
    make_observation,
    save_model,
    write_flow_files,
)

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.observation import Observation

START_NS = 10**9


def observe(bundle: Bundle, steps: float, state: tuple[float, ...] = (0.5, 1.0, -1.5), **changes):
    """Return an observation so many steps after the first one."""
    made = make_observation(bundle, stamp_ns=START_NS + round(steps * STEP_NS), state=state)
    return dataclasses.replace(made, **changes) if changes else made


def write_relative_bundle(folder: Path, *, horizon: int = 8, **group: Any) -> Bundle:
    """Write a flow bundle whose sample is the action, relative to the observed state; keywords change its group."""
    write_flow_files(folder)
    (folder / 'decoder.onnx').unlink()
    manifest = flow_manifest(seed=5)
    del manifest['stages'][2]
    action = manifest['action']
    action.update(tensor='sample', horizon=horizon)
    action['groups'][0].update(representation='relative_to_observation', **group)
    return write_bundle(folder, manifest)


def write_prefix_bundle(
    folder: Path, *, steps: int = 1, horizon: int = HORIZON, **prefix: Any
) -> Bundle:
    """Write a flow bundle that takes a prefix: its velocity is `sum of given rows + 100 * length`, and minus the sample."""
    write_flow_files(folder)
    (folder / 'encoder.onnx').unlink()
    (folder / 'decoder.onnx').unlink()
    nodes = [
        helper.make_node('Cast', ['mask'], ['shares'], to=TensorProto.FLOAT),
        helper.make_node('Unsqueeze', ['shares', 'last'], ['column']),
        helper.make_node('Mul', ['prefix', 'column'], ['given']),
        helper.make_node('ReduceSum', ['given', 'rows'], ['total'], keepdims=1),
        helper.make_node('Cast', ['length'], ['count'], to=TensorProto.FLOAT),
        helper.make_node('Mul', ['count', 'hundred'], ['counted']),
        helper.make_node('Add', ['total', 'counted'], ['told']),
        helper.make_node('Mul', ['time', 'none'], ['zero']),
        helper.make_node('Sub', ['told', 'sample'], ['pull']),
        helper.make_node('Add', ['pull', 'zero'], ['velocity']),
    ]
    size = [1, horizon, 3]
    save_model(
        folder / 'velocity.onnx',
        nodes,
        [
            ('sample', 'FLOAT', size),
            ('time', 'FLOAT', [1]),
            ('prefix', 'FLOAT', size),
            ('mask', 'BOOL', [1, horizon]),
            ('length', 'INT64', [1]),
        ],
        [('velocity', 'FLOAT', size)],
        {
            'last': np.array([2], np.int64),
            'rows': np.array([1], np.int64),
            'hundred': np.array([100], np.float32),
            'none': np.array([0], np.float32),
        },
    )
    inputs = {'actions': 'given', 'mask': 'mask', 'length': 'length', 'max_delay_steps': 1}
    manifest = flow_manifest(steps=steps, prefix={**inputs, **prefix})
    manifest['constants'] = []
    manifest['action'].update(tensor='sample', horizon=horizon)
    velocity = manifest['stages'][1]
    del velocity['inputs']['context']
    velocity['inputs'].update(prefix='given', mask='mask', length='length')
    manifest['stages'] = [velocity]
    return write_bundle(folder, manifest)


def infer_all(policy: Any, observations: list[Observation]) -> list[np.ndarray]:
    """Return the actions of each observation in turn."""
    return [policy.infer(observation).actions for observation in observations]


def write_chain_bundle(folder: Path, *, stages: int, is_chain: bool = True) -> Bundle:
    """Write a flow bundle of velocity `2 state - 2 x + time`, in one stage of the loop or in two.

    With `is_chain` false the last of two stages takes the sample beside what the first one makes of it.
    """
    write_flow_files(folder)
    rows = ['batch', 'rows', 3]
    ends = [helper.make_node('Sub', ['context', 'doubled'], ['pull'])]
    ends.append(helper.make_node('Add', ['pull', 'time'], ['velocity']))
    start = helper.make_node('Add', ['sample', 'x' if not is_chain else 'sample'], ['doubled'])
    time, context = ('time', 'FLOAT', [1]), ('context', 'FLOAT', ['batch', 1, 3])
    sample, doubled, out = ((name, 'FLOAT', rows) for name in ('sample', 'doubled', 'velocity'))
    manifest = flow_manifest(seed=5)
    velocity = manifest['stages'][1]
    if stages == 1:
        save_model(folder / 'velocity.onnx', [start, *ends], [sample, time, context], [out])
        return write_bundle(folder, manifest)
    if is_chain:
        save_model(folder / 'double.onnx', [start], [sample], [doubled])
        save_model(folder / 'velocity.onnx', ends, [doubled, time, context], [out])
        velocity['inputs'] = {'doubled': 'doubled', 'time': 'time', 'context': 'context'}
    else:
        same = helper.make_node('Identity', ['sample'], ['doubled'])
        save_model(folder / 'double.onnx', [same], [sample], [doubled])
        inputs = [sample, ('x', 'FLOAT', rows), time, context]
        save_model(folder / 'velocity.onnx', [start, *ends], inputs, [out])
        velocity['inputs']['x'] = 'doubled'
    double = {
        'name': 'double',
        'onnx': 'double.onnx',
        'inputs': {'sample': 'sample'},
        'outputs': {'doubled': 'doubled'},
        'in_loop': True,
    }
    manifest['stages'].insert(1, double)
    return write_bundle(folder, manifest)
