# SPDX-License-Identifier: Apache-2.0
"""Small bundles whose outputs can be computed by hand.

All have the joints JOINTS with the ranges +-SPANS, normalised by `min_max`; so a normalised state is `state / SPANS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.statistics import compute_statistics, write_statistics
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.observation import Instruction, Observation

JOINTS = ('shoulder', 'elbow', 'wrist')
SPANS = np.array([1.0, 2.0, 3.0], np.float32)
CAMERA = 'front'
CAMERA_SIZE = 8
HORIZON = 4
STEP_NS = 50_000_000
WORDS = {'[PAD]': 0, '[UNK]': 1, 'pick': 2, 'the': 3, 'cube': 4}
MAX_TOKENS = 6

Tensor = tuple[str, str, Sequence[int | str]]


def save_model(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    weights: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write an ONNX file; tensors are (name, element type such as FLOAT, shape with symbols for free sizes)."""
    graph = helper.make_graph(
        list(nodes),
        path.stem,
        [helper.make_tensor_value_info(n, getattr(TensorProto, t), s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, getattr(TensorProto, t), s) for n, t, s in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid('', 17)])
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def save_doubler(path: Path, *, element: str = 'FLOAT') -> Path:
    """Write a network of one input x (n, 3) and one output y = x + x of the same shape."""
    nodes = [helper.make_node('Add', ['x', 'x'], ['y'])]
    return save_model(path, nodes, [('x', element, ['n', 3])], [('y', element, ['n', 3])])


def direct_manifest(*, history: int = 1, words: bool = False) -> dict[str, Any]:
    """Return the manifest of `write_direct_bundle`."""
    inputs = {'image': 'image', 'state': 'state'}
    manifest: dict[str, Any] = {
        'schema_version': 1,
        'name': 'direct',
        'cameras': [_camera(history)],
        'state': {'tensor': 'state', 'groups': [_group('state')]},
        'action': {
            'tensor': 'action',
            'groups': [_group('action')],
            'horizon': HORIZON,
            'step_ns': STEP_NS,
            'offset_ns': 10_000_000,
        },
        'stages': [
            {
                'name': 'network',
                'onnx': 'network.onnx',
                'inputs': inputs,
                'outputs': {'action': 'action'},
            }
        ],
        'statistics': 'statistics.json',
    }
    if words:
        manifest['instruction'] = {
            'tokenizer': 'tokenizer.json',
            'tokens': 'tokens',
            'mask': 'mask',
            'max_tokens': MAX_TOKENS,
        }
        inputs.update(tokens='tokens', mask='mask')
    return manifest


def write_direct_files(folder: Path, *, history: int = 1, words: bool = False) -> None:
    """Write the files of `write_direct_bundle` without a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.arange(1, HORIZON + 1, dtype=np.float32).reshape(1, HORIZON, 1)
    nodes = [
        helper.make_node('ReduceMean', ['image'], ['mean'], axes=[1, 2, 3], keepdims=1),
        helper.make_node('Squeeze', ['mean', 'axis'], ['level']),
        helper.make_node('Mul', ['level', 'ramp'], ['rising']),
        helper.make_node('Add', ['state', 'rising'], ['told' if words else 'action']),
    ]
    size = [1, 3 * history, CAMERA_SIZE, CAMERA_SIZE]
    inputs: list[Tensor] = [('image', 'FLOAT', size), ('state', 'FLOAT', [1, 1, 3])]
    if words:
        nodes += [
            helper.make_node('Mul', ['tokens', 'mask'], ['kept']),
            helper.make_node('Cast', ['kept'], ['numbers'], to=TensorProto.FLOAT),
            helper.make_node('ReduceSum', ['numbers'], ['total'], keepdims=1),
            helper.make_node('Squeeze', ['total', 'axis0'], ['sum']),
            helper.make_node('Add', ['told', 'sum'], ['action']),
        ]
        inputs += [(name, 'INT64', [1, MAX_TOKENS]) for name in ('tokens', 'mask')]
        _write_tokenizer(folder / 'tokenizer.json')
    weights = {'ramp': ramp, 'axis': np.array([3], np.int64)}
    if words:
        weights['axis0'] = np.array([0], np.int64)
    outputs: list[Tensor] = [('action', 'FLOAT', [1, HORIZON, 3])]
    save_model(folder / 'network.onnx', nodes, inputs, outputs, weights)
    _write_statistics(folder)


def write_direct_bundle(folder: Path, *, history: int = 1, words: bool = False) -> Bundle:
    """Write a bundle of one network.

    Row k of the chunk, in units: `state + SPANS * (k + 1) * level`, with level the mean of the images in [0, 1]; with
    `words`, SPANS times the sum of the tokens' ids is added.
    """
    write_direct_files(folder, history=history, words=words)
    return write_bundle(folder, direct_manifest(history=history, words=words))


def flow_manifest(**loop: Any) -> dict[str, Any]:
    """Return the manifest of `write_flow_bundle`; keywords change its loop."""
    return {
        'schema_version': 1,
        'name': 'flow',
        'cameras': [],
        'state': {'tensor': 'state', 'groups': [_group('state')]},
        'action': {
            'tensor': 'action',
            'groups': [_group('action')],
            'horizon': HORIZON,
            'step_ns': STEP_NS,
        },
        'constants': [{'tensor': 'gain', 'dtype': 'float32', 'value': 2.0}],
        'stages': [
            {
                'name': 'encoder',
                'onnx': 'encoder.onnx',
                'inputs': {'state': 'state', 'gain': 'gain'},
                'outputs': {'context': 'context'},
            },
            {
                'name': 'velocity',
                'onnx': 'velocity.onnx',
                'inputs': {'sample': 'sample', 'time': 'time', 'context': 'context'},
                'outputs': {'velocity': 'velocity'},
                'in_loop': True,
            },
            {
                'name': 'decoder',
                'onnx': 'decoder.onnx',
                'inputs': {'sample': 'sample'},
                'outputs': {'action': 'action'},
            },
        ],
        'loop': {
            'kind': 'flow_matching_euler',
            'steps': 4,
            'sample': 'sample',
            'prediction': 'velocity',
            'timestep': 'time',
            **loop,
        },
        'statistics': 'statistics.json',
    }


def write_flow_files(folder: Path) -> None:
    """Write the files of `write_flow_bundle` without a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    context: Tensor = ('context', 'FLOAT', ['batch', 1, 3])
    sample: Tensor = ('sample', 'FLOAT', ['batch', 'rows', 3])
    save_model(
        folder / 'encoder.onnx',
        [helper.make_node('Mul', ['state', 'gain'], ['context'])],
        [('state', 'FLOAT', ['batch', 1, 3]), ('gain', 'FLOAT', [1])],
        [context],
    )
    save_model(
        folder / 'velocity.onnx',
        [
            helper.make_node('Sub', ['context', 'sample'], ['pull']),
            helper.make_node('Add', ['pull', 'time'], ['velocity']),
        ],
        [sample, ('time', 'FLOAT', [1]), context],
        [('velocity', 'FLOAT', ['batch', 'rows', 3])],
    )
    save_model(
        folder / 'decoder.onnx',
        [helper.make_node('Mul', ['sample', 'half'], ['action'])],
        [sample],
        [('action', 'FLOAT', ['batch', 'rows', 3])],
        {'half': np.array([0.5], np.float32)},
    )
    _write_statistics(folder)


def write_flow_bundle(folder: Path, **loop: Any) -> Bundle:
    """Write a bundle of three networks and a loop, with free dimensions and no camera.

    Velocity `2 * state / SPANS - x + time`; actions `SPANS * x / 2`. Keywords change the loop.
    """
    write_flow_files(folder)
    return write_bundle(folder, flow_manifest(**loop))


def make_frame(level: int = 51, *, camera: str = CAMERA, stamp_ns: int = 0) -> Frame:
    """Return a 16 x 12 frame of one grey level; 51 is 0.2 of the range."""
    return Frame.from_rgb(camera, stamp_ns, np.full((12, 16, 3), level, np.uint8))


def make_observation(
    bundle: Bundle,
    *,
    stamp_ns: int = 1_000_000_000,
    level: int = 51,
    state: Sequence[float] = (0.5, 1.0, -1.5),
    text: str = 'pick the cube',
    sequence: int = 0,
    epoch: int = 0,
) -> Observation:
    """Return an observation that the bundle's policy takes; all images have one grey level."""
    spec = bundle.spec.observation
    return Observation(
        images={
            camera.name: tuple(
                make_frame(level, camera=camera.name, stamp_ns=stamp_ns + offset)
                for offset in camera.history_ns
            )
            for camera in spec.cameras
        },
        state=np.array([state] * len(spec.state_history_ns), np.float32),
        instruction=Instruction(text, 1),
        stamp_ns=stamp_ns,
        stream_stamps_ns={camera.name: stamp_ns - 5 for camera in spec.cameras},
        sequence=sequence,
        epoch=epoch,
    )


def _camera(history: int) -> dict[str, Any]:
    size = {'height': CAMERA_SIZE, 'width': CAMERA_SIZE}
    offsets = [STEP_NS * (index + 1 - history) for index in range(history)]
    return {
        'name': CAMERA,
        'tensor': 'image',
        'geometry': [{'kind': 'resize', **size}],
        'history_ns': offsets,
    }


def _group(name: str) -> dict[str, Any]:
    return {'name': name, 'names': JOINTS, 'units': ['rad'], 'normalization': 'min_max'}


def _write_statistics(folder: Path) -> None:
    ends = compute_statistics(np.stack([-SPANS, SPANS]))
    write_statistics(folder / 'statistics.json', {'state': ends, 'action': ends})


def _write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel(WORDS, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(path))
