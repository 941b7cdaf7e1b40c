# SPDX-License-Identifier: Apache-2.0
"""Small networks with descriptions whose actions can be computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from onnx import TensorProto, helper
from support.bundles import save_model

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import Array

HEIGHT, WIDTH = 8, 12
WEIGHTS = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
BIAS = np.arange(9, dtype=np.float32)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POSITION = {'name': 'position', 'names': ['x', 'y', 'z'], 'units': ['m']}
ROTATION = {'name': 'rotation', 'names': [f'r{i}' for i in range(6)], 'units': ['1']}
SIX = tuple(f'camera_{index}' for index in range(6))


def save_pose(path: Path, *, size: tuple[int | str, int | str] = (HEIGHT, WIDTH)) -> Path:
    """Write a network that makes 9 numbers of the mean colour: `mean colour @ WEIGHTS + BIAS`, any batch."""
    nodes = [
        helper.make_node('ReduceMean', ['image'], ['color'], axes=[2, 3], keepdims=0),
        helper.make_node('MatMul', ['color', 'weights'], ['turned']),
        helper.make_node('Add', ['turned', 'bias'], ['pose']),
    ]
    inputs = [('image', 'FLOAT', ['batch', 3, *size])]
    outputs = [('pose', 'FLOAT', ['batch', 9])]
    return save_model(path, nodes, inputs, outputs, {'weights': WEIGHTS, 'bias': BIAS})


def pose_description(**camera: Any) -> dict[str, Any]:
    """Return the description of `save_pose`; keywords change its camera."""
    return {
        'cameras': [{'name': 'wrist', 'tensor': 'image', 'mean': MEAN, 'std': STD, **camera}],
        'action': {'groups': [POSITION, ROTATION], 'step_ms': 100},
    }


def pose_of(color: tuple[int, int, int]) -> Array:
    """Return the 9 numbers of an image of one colour."""
    return (np.array(color) / 255 - MEAN) / STD @ WEIGHTS + BIAS


def save_levels(path: Path, shape: list[int | str], *, element: str = 'FLOAT') -> Path:
    """Write a network whose six numbers are the mean levels of six images of a shape."""
    places = [3, HEIGHT, WIDTH] if shape[-1] != 3 else [HEIGHT, WIDTH, 3]
    nodes = [
        helper.make_node('Cast', ['images'], ['numbers'], to=TensorProto.FLOAT),
        helper.make_node('Reshape', ['numbers', 'six'], ['rows']),
        helper.make_node('ReduceMean', ['rows'], ['levels'], axes=[2], keepdims=0),
    ]
    weights = {'six': np.array([1, 6, int(np.prod(places))])}
    inputs, outputs = [('images', element, shape)], [('levels', 'FLOAT', [1, 6])]
    return save_model(path, nodes, inputs, outputs, weights)


def levels_description(**camera: Any) -> dict[str, Any]:
    """Return the description of `save_levels`; keywords change all cameras."""
    group = {'name': 'levels', 'names': [f'of_{name}' for name in SIX], 'units': ['1']}
    return {
        'cameras': [{'name': name, 'tensor': 'images', **camera} for name in SIX],
        'action': {'groups': [group], 'step_ms': 50},
    }


def save_parts(path: Path) -> Path:
    """Write a network that puts out twice `qpos` (2 columns), and `qvel` (3 columns) plus `offset`, as float16."""
    nodes = [
        helper.make_node('Add', ['qpos', 'qpos'], ['doubled']),
        helper.make_node('Cast', ['offset'], ['wide'], to=TensorProto.DOUBLE),
        helper.make_node('Add', ['qvel', 'wide'], ['moved']),
        helper.make_node('Cast', ['moved'], ['speed'], to=TensorProto.FLOAT16),
        helper.make_node('Neg', ['qpos'], ['not_wanted']),
    ]
    inputs = [('qpos', 'FLOAT', [2]), ('qvel', 'DOUBLE', ['n', 3]), ('offset', 'FLOAT', [1])]
    outputs = [
        ('speed', 'FLOAT16', ['n', 3]),
        ('not_wanted', 'FLOAT', [2]),
        ('doubled', 'FLOAT', [2]),
    ]
    return save_model(path, nodes, inputs, outputs)


def parts_description() -> dict[str, Any]:
    """Return the description of `save_parts`, whose offset is 10."""
    names = ['p0', 'p1', 'v0', 'v1', 'v2']
    return {
        'state': {
            'tensors': ['qpos', 'qvel'],
            'groups': [{'name': 'joints', 'names': names, 'units': ['rad']}],
        },
        'action': {
            'tensors': ['doubled', 'speed'],
            'groups': [{'name': 'next', 'names': names, 'units': ['rad']}],
            'step_ms': 20,
        },
        'constants': [{'tensor': 'offset', 'dtype': 'float32', 'value': 10}],
    }


def write_description(path: Path, description: dict[str, Any]) -> Path:
    """Write a description."""
    plain = yaml.safe_load(yaml.dump(description, Dumper=_Plain))
    path.write_text(yaml.safe_dump(plain), encoding='utf-8')
    return path


def observe(
    bundle: Bundle,
    colors: dict[str, tuple[int, int, int]],
    state: Array | None = None,
    *,
    size: tuple[int, int] = (30, 40),
) -> Observation:
    """Return an observation of images of one colour each."""
    images = {
        name: (Frame.from_rgb(name, 0, np.full((*size, 3), color, np.uint8)),)
        for name, color in colors.items()
    }
    count = len(bundle.spec.observation.state)
    row = np.zeros((1, count), np.float32) if state is None else state[None].astype(np.float32)
    return Observation(images=images, state=row, instruction=Instruction(''), stamp_ns=0)


class _Plain(yaml.SafeDumper):
    """Writes tuples as lists."""


_Plain.add_representer(tuple, yaml.SafeDumper.represent_list)
