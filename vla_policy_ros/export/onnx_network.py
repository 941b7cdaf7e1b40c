# SPDX-License-Identifier: Apache-2.0
"""An ONNX network in hand to be changed: its graph in memory, its large weights read one at a time.

A network of billions of weights fits into no protobuf message, and often not twice into memory. So the graph is held
without its large weights; saving streams them: each is read, changed and written before the next one is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.specs import Array

_LARGE_BYTES: Final = 4096  # smaller ones may be shapes, which type inference reads
_ALIGNMENT: Final = 4096  # of weights in a data file, so that engines can map them
_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


class OnnxNetwork:
    """A graph without model-local functions, subgraphs and Constant nodes (constants are initialisers).

    Args:
        path: The ONNX file; it and the weight files beside it must stay as they are while the object lives.

    Raises:
        EngineError: It is no ONNX model (`not_onnx`), or has nodes with subgraphs (`subgraph`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._large: dict[str, Callable[[], Array]] = {}  # initialiser to its bytes
        self._sources: dict[str, Any] = {}  # those of the file, with their data or where it is
        model = _read(path)
        self._has_data_file = any(uses_external_data(t) for t in model.graph.initializer)
        for tensor in model.graph.initializer:
            if uses_external_data(tensor) or len(tensor.raw_data) > _LARGE_BYTES:
                source = TensorProto()
                source.CopyFrom(tensor)
                self._sources[tensor.name] = source
                self._large[tensor.name] = partial(_raw_bytes, source, path.parent)
                _empty(tensor)
        # A message gives its memory back as a whole only: go on with a copy that never held the weights.
        self.model: Any = onnx.ModelProto.FromString(model.SerializeToString())
        del model
        if self.model.functions:
            self.model = onnx.inliner.inline_local_functions(self.model)
        self._refuse_subgraphs()
        _lift_constants(self.graph)

    @property
    def graph(self) -> Any:
        """The GraphProto; large initialisers have no data in it."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return next((int(o.version) for o in self.model.opset_import if o.domain == ''), 1)

    def raise_opset(self, version: int) -> None:
        """Translate the graph to a later version of the standard operators; one that has it stays as it is.

        Raises:
            EngineError: The translation is not known (`opset_too_old`).
        """
        if self.opset >= version:
            return
        try:
            self.model = onnx.version_converter.convert_version(self.model, version)
        except RuntimeError as fault:  # what its C++ part raises
            raise EngineError(
                str(self.path),
                got=f'opset {self.opset}: {_first_line(fault)}',
                expected=f'opset {version}, or one that can be translated to it',
                next_step=f'Export the network with opset {version} or later.',
                code='opset_too_old',
            ) from fault
        for tensor in self.graph.initializer:
            if tensor.name in self._large:
                _empty(tensor)
        _lift_constants(self.graph)

    def read(self, tensor: Any) -> Array:
        """Return the values of one of the file's initialisers; a large one is read anew each time."""
        source = self._sources.get(tensor.name, tensor)
        return np.asarray(numpy_helper.to_array(_whole(source, self.path.parent)))

    def add_weight(
        self, name: str, element_type: int, shape: tuple[int, ...], read: Callable[[], Array]
    ) -> None:
        """Add an initialiser that is computed when the network is saved.

        Args:
            name: Its name.
            element_type: One of `onnx.TensorProto.DataType`.
            shape: Its shape.
            read: Returns an array whose memory holds the elements as ONNX stores them.
        """
        tensor = self.graph.initializer.add(name=name, data_type=element_type, dims=shape)
        self._large[name] = read
        if np.prod(shape) * helper.tensor_dtype_to_np_dtype(element_type).itemsize <= _LARGE_BYTES:
            tensor.raw_data = self._large.pop(name)().tobytes()

    def keep_weights(self, names: set[str]) -> None:
        """Remove all initialisers but those named."""
        _keep(self.graph.initializer, lambda tensor: tensor.name in names)

    def rewrite(self, change: Callable[[Any], Any]) -> None:
        """Let a function write the nodes anew, out of reach of the weights.

        Args:
            change: Gets a model whose weights are inputs, so that it can neither read nor change nor copy them, and whose
                other constants (whole numbers, single numbers) are initialisers; returns one with the same outputs. Inputs
                that no node reads any more may be missing in it.
        """
        weights = {t.name: t for t in self.graph.initializer if self._is_weight(t)}
        bare = onnx.ModelProto()
        bare.CopyFrom(self.model)
        inputs = {value.name for value in bare.graph.input}
        _keep(bare.graph.initializer, lambda tensor: tensor.name not in weights)
        bare.graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in weights.values()
            if tensor.name not in inputs
        )
        graph = change(bare).graph
        read = {name for node in graph.node for name in node.input}
        _keep(
            self.graph.initializer, lambda tensor: tensor.name in weights and tensor.name in read
        )
        self.graph.initializer.extend(graph.initializer)
        del self.graph.node[:]
        self.graph.node.extend(graph.node)

    def _is_weight(self, tensor: Any) -> bool:
        return tensor.name in self._large or (
            tensor.data_type in _FLOATS and int(np.prod(tensor.dims)) > 1
        )

    def float_tensors(self) -> set[str]:
        """Return the names of all float32 tensors: inputs, outputs, initialisers and what nodes make.

        Raises:
            EngineError: The element types do not fit together (`bad_types`).
        """
        try:
            graph = onnx.shape_inference.infer_shapes(self.model, check_type=True).graph
        except onnx.shape_inference.InferenceError as fault:
            raise self._broken(fault) from fault
        values = [*graph.input, *graph.output, *graph.value_info]
        names = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        return names | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}

    def save(self, path: Path) -> None:
        """Write the network, with one data file `<path>.data` beside it where the source had any; check the result.

        Raises:
            EngineError: What was made breaks the rules of ONNX (`bad_types`).
        """
        del self.graph.value_info[:]  # engines infer their own; stale ones contradict
        _drop_empty_ends(self.graph)
        whole = onnx.ModelProto()
        whole.CopyFrom(self.model)
        with ExitStack() as stack:
            data: BinaryIO | None = None
            if self._has_data_file:
                data = stack.enter_context(path.with_name(f'{path.name}.data').open('wb'))
            for tensor in whole.graph.initializer:
                if tensor.name in self._large:
                    _store(tensor, self._large[tensor.name](), data)
        path.write_bytes(whole.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as fault:
            raise self._broken(fault) from fault

    def _refuse_subgraphs(self) -> None:
        kinds = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
        for node in self.graph.node:
            if any(attribute.type in kinds for attribute in node.attribute):
                raise EngineError(
                    str(self.path),
                    got=f'node {node.name or node.output[0]!r}, a {node.op_type} with subgraphs',
                    expected='a network of plain operators',
                    next_step='Export it without control flow: unroll loops, decide branches when exporting.',
                    code='subgraph',
                )

    def _broken(self, fault: Exception) -> EngineError:
        return EngineError(
            str(self.path),
            got=_first_line(fault),
            expected='a network that keeps the rules of ONNX',
            next_step='Check the file with `onnx.checker`, and export the network again.',
            code='bad_types',
        )


def _read(path: Path) -> Any:
    try:
        model = onnx.load(str(path), format='protobuf', load_external_data=False)
    except (DecodeError, OSError) as fault:
        raise _not_onnx(path, _first_line(fault)) from fault
    if not model.graph.output:
        raise _not_onnx(path, 'a model without outputs')
    return model


def _not_onnx(path: Path, got: str) -> EngineError:
    return EngineError(
        str(path),
        got=got,
        expected='an ONNX model',
        next_step='Check the path, or export the network again.',
        code='not_onnx',
    )


def _whole(source: Any, folder: Path) -> Any:
    """Return a tensor with its data in it; one whose data is in another file stays small itself."""
    if not uses_external_data(source):
        return source
    whole = TensorProto()
    whole.CopyFrom(source)
    load_external_data_for_tensor(whole, str(folder))
    # Its data is inside now; older versions of the library would look for the file again.
    whole.data_location = TensorProto.DEFAULT
    del whole.external_data[:]
    return whole


def _raw_bytes(source: Any, folder: Path) -> Array:
    return np.frombuffer(_whole(source, folder).raw_data, np.uint8)


def _keep(tensors: Any, is_wanted: Callable[[Any], bool]) -> None:
    kept = [tensor for tensor in tensors if is_wanted(tensor)]
    del tensors[:]
    tensors.extend(kept)


def _empty(tensor: Any) -> None:
    bare = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    tensor.CopyFrom(bare)


def _store(tensor: Any, values: Array, data: BinaryIO | None) -> None:
    content = np.ascontiguousarray(values).view(np.uint8)
    if data is None:
        tensor.raw_data = content.tobytes()
        return
    data.write(bytes(-data.tell() % _ALIGNMENT))
    place = {'location': Path(data.name).name, 'offset': data.tell(), 'length': content.nbytes}
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    data.write(content.data)


def _lift_constants(graph: Any) -> None:
    """Turn Constant nodes of tensors and numbers into initialisers, so that there is one kind of constant."""
    kept = []
    for node in graph.node:
        tensor = _constant(node) if node.op_type == 'Constant' else None
        if tensor is None:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(kept)


def _drop_empty_ends(graph: Any) -> None:
    """Shorten lists of inputs that end with left out ones.

    To ONNX both forms are one. TensorRT 10.6 computes `Clip(x, least, '')` in bfloat16 as 0, and `Clip(x, least)`
    right (seen on an H200).
    """
    for node in graph.node:
        while node.input and not node.input[-1]:
            del node.input[-1]


def _constant(node: Any) -> Any | None:
    """Return the tensor of a Constant node; None for one of texts or a sparse one."""
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    if attribute.name == 'value':
        return value
    element = attribute.name.removeprefix('value_').removesuffix('s')
    dtype = {'float': np.float32, 'int': np.int64}.get(element)
    return None if dtype is None else numpy_helper.from_array(np.array(value, dtype))


def _first_line(fault: Exception) -> str:
    return str(fault).strip().partition('\n')[0]
