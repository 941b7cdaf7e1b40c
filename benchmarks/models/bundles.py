# SPDX-License-Identifier: Apache-2.0
"""Bundles of the synthetic networks, so that this package's policy runs what the other contenders run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from models.action_head import HeadShape
from models.onnx_files import export
from torch import Tensor, nn

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.writer import write_bundle

Networks = tuple[nn.Module, nn.Module | None, nn.Module]


def head_bundle(folder: Path, shape: HeadShape, networks: Networks, precision: str) -> Bundle:
    """Write a bundle of backbone, preparation (None for the plain form) and step; the folder is emptied first."""
    _empty(folder)
    backbone, prepare, step = networks
    device = next(step.parameters()).device
    state = torch.zeros(1, shape.state_width, device=device)
    sample = torch.zeros(1, shape.horizon, shape.action_width, device=device)
    time = torch.zeros(1, dtype=torch.int64, device=device)
    stages = [stage(folder, 'backbone', backbone, {'state': state}, ['context'])]
    fixed = {'state': state, 'context': backbone(state)}
    if prepare:
        names = ['state_token', 'cross']
        stages.append(stage(folder, 'prepare', prepare, fixed, names, precision=precision))
        fixed = dict(zip(names, prepare(*fixed.values()), strict=True))
    inputs = {'sample': sample, 'timestep': time, **fixed}
    inside = stage(folder, 'step', step, inputs, ['velocity'], precision=precision)
    stages.append({**inside, 'in_loop': True})
    return write_bundle(
        folder,
        {
            'schema_version': 1,
            'name': 'synthetic_head',
            'family': 'synthetic',
            'source': {'note': 'Random weights with the shapes of a GR00T action head.'},
            'cameras': [],
            'state': {
                'tensor': 'state',
                'groups': [group('state', shape.state_width)],
                'squeeze': True,
            },
            'action': {
                'tensor': 'sample',
                'groups': [group('action', shape.action_width)],
                'horizon': shape.horizon,
                'step_ns': 33_333_333,
            },
            'stages': stages,
            'loop': {
                'kind': 'flow_matching_euler',
                'steps': shape.steps,
                'sample': 'sample',
                'prediction': 'velocity',
                'timestep': 'timestep',
                'timestep_dtype': 'int64',
                'timestep_scale': 1000.0,
            },
        },
    )


def camera_bundle(
    folder: Path,
    network: nn.Module,
    *,
    images: Mapping[str, Tensor],
    num_joints: int,
    horizon: int,
    precision: str,
) -> Bundle:
    """Write a bundle of one network over cameras and joints; image tensors are (1, 3, height, width)."""
    _empty(folder)
    device = next(network.parameters()).device
    inputs = {**images, 'state': torch.zeros(1, num_joints, device=device)}
    half = [0.5, 0.5, 0.5]
    cameras = [
        {
            'name': name,
            'tensor': name,
            'geometry': [{'kind': 'resize', 'height': image.shape[2], 'width': image.shape[3]}],
            'mean': half,
            'std': half,
        }
        for name, image in images.items()
    ]
    return write_bundle(
        folder,
        {
            'schema_version': 1,
            'name': 'synthetic_act',
            'family': 'synthetic',
            'source': {'note': 'Random weights with the shapes of ACT.'},
            'cameras': cameras,
            'state': {
                'tensor': 'state',
                'groups': [group('state', num_joints)],
                'squeeze': True,
            },
            'action': {
                'tensor': 'action',
                'groups': [group('action', num_joints)],
                'horizon': horizon,
                'step_ns': 20_000_000,
            },
            'stages': [stage(folder, 'network', network, inputs, ['action'], precision=precision)],
        },
    )


def stage(
    folder: Path,
    name: str,
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    precision: str = 'fp32',
) -> dict[str, Any]:
    """Export a network and return its entry in the manifest; pool tensors have the names of the network's."""
    export(network, folder / f'{name}.onnx', inputs, outputs)
    return {
        'name': name,
        'onnx': f'{name}.onnx',
        'inputs': {key: key for key in inputs},
        'outputs': {key: key for key in outputs},
        'precision': precision,
    }


def group(name: str, width: int) -> dict[str, Any]:
    """Return columns `joint_0`, `joint_1`… that are not normalised."""
    return {'name': name, 'names': [f'joint_{i}' for i in range(width)], 'units': ['rad']}


def _empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
