# SPDX-License-Identifier: Apache-2.0
"""A small network with random weights: images, state and words in, smooth actions within [-1, 1] out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_ros.core.specs import Array

OPSET = 17  # ONNX Runtime 1.18, as on JetPack 6, runs it
IR_VERSION = 8
_CHANNELS, _EMBEDDING, _HIDDEN = 8, 8, 32


class RandomNetwork:
    """One stage that maps all inputs to an action tensor (1, K, D).

    A convolution and a mean per camera, the state, and a mean embedding of the words join in one hidden layer. Two
    linear heads give an offset and a slope per column, so that the rows of a chunk lie on a smooth curve.

    Args:
        cameras: Pool tensors of the cameras, each (1, 3, `image_size`, `image_size`).
        image_size: Height and width in pixels, at least 8.
        num_states: Width of the state; 0 for none.
        vocabulary: Number of words; 0 for no words.
        max_tokens: Length of the token tensors.
        num_actions: D.
        horizon: K.
        seed: Seed of the weights.
    """

    def __init__(
        self,
        *,
        cameras: Sequence[str],
        image_size: int,
        num_states: int,
        vocabulary: int,
        max_tokens: int,
        num_actions: int,
        horizon: int,
        seed: int,
    ) -> None:
        self._random = np.random.default_rng(seed)
        self._inputs: list[tuple[str, str, list[int]]] = []
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._features: list[str] = []
        self._num_features = 0
        self._shape = [1, horizon, num_actions]
        for camera in cameras:
            self._add_camera(camera, image_size)
        if num_states:
            self._inputs.append(('state', 'FLOAT', [1, num_states]))
            self._add_features('state', num_states)
        if vocabulary:
            self._add_words(vocabulary, max_tokens)
        if not self._features:
            self._add_features(self._constant('nothing', np.zeros((1, 1), np.float32)), 1)
        self._add_heads()

    def stage(self, file_name: str) -> dict[str, Any]:
        """Return the manifest's entry for this network."""
        names = {name: name for name, _, _ in self._inputs}
        return {
            'name': 'network',
            'onnx': file_name,
            'inputs': names,
            'outputs': {'action': 'action'},
        }

    def write(self, path: Path) -> None:
        """Write the ONNX file."""
        import onnx
        from onnx import TensorProto, helper

        inputs = [
            helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)
            for name, kind, shape in self._inputs
        ]
        output = helper.make_tensor_value_info('action', TensorProto.FLOAT, self._shape)
        graph = helper.make_graph(self._nodes, 'untrained', inputs, [output], self._weights)
        model = helper.make_model(
            graph,
            producer_name='vla_policy_ros',
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid('', OPSET)],
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))

    def _add_camera(self, name: str, image_size: int) -> None:
        self._inputs.append((name, 'FLOAT', [1, 3, image_size, image_size]))
        kernel = self._draw(f'{name}_kernel', (_CHANNELS, 3, 8, 8), 3 * 64)
        edges = self._node('Conv', [name, kernel], strides=[8, 8])
        mean = self._node('GlobalAveragePool', [self._node('Relu', [edges])])
        self._add_features(self._node('Flatten', [mean]), _CHANNELS)

    def _add_words(self, vocabulary: int, max_tokens: int) -> None:
        self._inputs += [('tokens', 'INT64', [1, max_tokens]), ('mask', 'INT64', [1, max_tokens])]
        table = self._draw('embedding', (vocabulary, _EMBEDDING), 1)
        vectors = self._node('Gather', [table, 'tokens'])
        axes = self._constant('last_axis', np.array([2], np.int64))
        mask = self._node('Unsqueeze', [self._node('Cast', ['mask'], to=1), axes])
        kept = self._node('Mul', [vectors, mask])
        self._add_features(self._node('ReduceMean', [kept], axes=[1], keepdims=0), _EMBEDDING)

    def _add_features(self, name: str, width: int) -> None:
        self._features.append(name)
        self._num_features += width

    def _add_heads(self) -> None:
        joined = self._node('Concat', self._features, axis=1)
        hidden = self._node('Tanh', [self._linear('hidden', joined, self._num_features, _HIDDEN)])
        _, horizon, width = self._shape
        wide = self._constant('row', np.array([1, 1, width], np.int64))
        offset, slope = (
            self._node('Reshape', [self._linear(name, hidden, _HIDDEN, width), wide])
            for name in ('offset', 'slope')
        )
        phase = np.linspace(0.0, 1.0, horizon, dtype=np.float32).reshape(1, horizon, 1)
        ramp = self._node('Mul', [slope, self._constant('phase', phase)])
        self._node('Tanh', [self._node('Add', [offset, ramp])], output='action')

    def _linear(self, name: str, source: str, width_in: int, width_out: int) -> str:
        weight = self._draw(f'{name}_weight', (width_in, width_out), width_in)
        bias = self._draw(f'{name}_bias', (width_out,), width_in)
        return self._node('Gemm', [source, weight, bias])

    def _node(
        self, kind: str, inputs: Sequence[str], output: str | None = None, **settings: Any
    ) -> str:
        from onnx import helper

        name = output or f'{kind.lower()}_{len(self._nodes)}'
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **settings))
        return name

    def _draw(self, name: str, shape: tuple[int, ...], fan_in: int) -> str:
        values = self._random.standard_normal(shape) / np.sqrt(fan_in)
        return self._constant(name, values.astype(np.float32))

    def _constant(self, name: str, values: Array) -> str:
        from onnx import numpy_helper

        self._weights.append(numpy_helper.from_array(values, name))
        return name
