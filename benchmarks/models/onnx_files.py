# SPDX-License-Identifier: Apache-2.0
"""Networks of several gigabytes as ONNX within seconds.

The graph comes from torch's exporter without weights, the weights go straight into one file beside it. Products may be
written in fp8 with explicit quantisation on both sides.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

OPSET = 19  # the first with fp8 in QuantizeLinear
FP8_MAX = 448.0


def export(
    module: nn.Module,
    path: Path,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    fp8_peaks: Mapping[str, float] | None = None,
    by_tensor: bool = False,
) -> None:
    """Write `path` and, beside it, its weights as `<name>.bin`.

    Args:
        module: The network.
        path: The ONNX file.
        inputs: Example per input, in the order of `forward`.
        outputs: Names of the outputs.
        fp8_peaks: Weights that are written as fp8 (e4m3), with the largest |input| of their product; the input is
            quantised with that peak, the weight per output channel.
        by_tensor: Quantise a weight with one scale.
    """
    import onnx

    named = dict(module.named_parameters())
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter(
            'ignore'
        )  # the exporter's age, and sizes that are meant to be constant
        _trace(module, buffer, inputs, outputs, named)
    model = onnx.load_from_string(buffer.getvalue())
    graph = model.graph
    held = {value.name for value in graph.input} & set(named)
    kept = [value for value in graph.input if value.name not in held]
    del graph.input[:]
    graph.input.extend(kept)
    # torch numbers tied parameters once: only what the graph reads is written.
    used = {name for node in graph.node for name in node.input} & held
    bin_path = path.with_suffix('.bin')
    peaks = {name: peak for name, peak in (fp8_peaks or {}).items() if name in used}
    with bin_path.open('wb') as file:
        for name in sorted(used):
            if name in peaks:
                fp8 = _Fp8(named[name], peaks[name], by_tensor)
                _write_fp8(graph, file, bin_path.name, name, fp8)
            else:
                graph.initializer.append(_stored(file, bin_path.name, name, named[name]))
    path.write_bytes(model.SerializeToString())


def _trace(
    module: nn.Module,
    buffer: io.BytesIO,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    named: Mapping[str, Tensor],
) -> None:
    """Write the graph, with the weights as inputs."""
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        buffer,
        input_names=[*inputs, *named],
        output_names=list(outputs),
        opset_version=OPSET,
        export_params=False,
        do_constant_folding=False,
        dynamo=False,
    )


class _Fp8(NamedTuple):
    """A weight, the largest |input| of its product, and whether it has one scale."""

    weight: Tensor
    peak: float
    by_tensor: bool


def _write_fp8(graph: Any, file: Any, location: str, name: str, fp8: _Fp8) -> None:
    """Store a weight as fp8, and put Q/DQ before the product that reads it."""
    from onnx import helper

    weight = fp8.weight
    size = weight.float().abs()
    size = size.amax() if fp8.by_tensor else size.amax(dim=0)
    scale = (size / FP8_MAX).clamp(min=1e-6).to(weight.dtype)
    stored = (weight.float() / scale.float()).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    graph.initializer.append(_stored(file, location, f'{name}.fp8', stored))
    graph.initializer.append(_stored(file, location, f'{name}.scale', scale))
    index, product = next(
        (index, node) for index, node in enumerate(graph.node) if name in node.input
    )
    source = product.input[0]
    input_scale = torch.tensor(max(fp8.peak / FP8_MAX, 1e-6), dtype=weight.dtype)
    graph.initializer.append(_stored(file, location, f'{name}.input_scale', input_scale))
    zero = helper.make_tensor(f'{name}.zero', _onnx_type(torch.float8_e4m3fn), [], b'\0', raw=True)
    graph.initializer.append(zero)
    axis = {} if fp8.by_tensor else {'axis': 1}
    added = [
        helper.make_node(
            'QuantizeLinear', [source, f'{name}.input_scale', f'{name}.zero'], [f'{name}.q']
        ),
        helper.make_node('DequantizeLinear', [f'{name}.q', f'{name}.input_scale'], [f'{name}.dq']),
        helper.make_node(
            'DequantizeLinear', [f'{name}.fp8', f'{name}.scale'], [f'{name}.wide'], **axis
        ),
    ]
    product.input[0], product.input[1] = f'{name}.dq', f'{name}.wide'
    for offset, node in enumerate(added):
        graph.node.insert(index + offset, node)


def _stored(file: Any, location: str, name: str, value: Tensor) -> Any:
    """Append a tensor's bytes to the file and return the initializer that points there."""
    from onnx import TensorProto

    data = value.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    file.write(b'\0' * (-file.tell() % 64))
    offset = file.tell()
    file.write(memoryview(data.numpy()))
    tensor = TensorProto(name=name, dims=list(value.shape), data_type=_onnx_type(value.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (('location', location), ('offset', offset), ('length', data.numel())):
        tensor.external_data.add(key=key, value=str(text))
    return tensor


def _onnx_type(dtype: torch.dtype) -> int:
    from onnx import TensorProto

    kinds = {
        torch.float32: TensorProto.FLOAT,
        torch.float16: TensorProto.FLOAT16,
        torch.bfloat16: TensorProto.BFLOAT16,
        torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
        torch.int64: TensorProto.INT64,
    }
    return int(kinds[dtype])
