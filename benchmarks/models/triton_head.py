# SPDX-License-Identifier: Apache-2.0
"""The action head of `action_head.py` with Triton kernels: five launches per block, everything else folded into them.

It is the evidence of what a hand-written plugin could reach, measured beside TensorRT in one run: weights in bf16 or fp16, or
in fp8 with one scale per output channel and wide accumulation (activations stay wide, so only rounding of weights is lost).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch
import triton
from models.action_head import ActionHead, Product, modulation_tables
from models.onnx_files import FP8_MAX
from models.triton_kernels import attention, linear
from torch import Tensor
from triton.errors import TritonError

BLOCK_M = 64
MAX_SPLIT = 8


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one product is cut."""

    block_n: int
    block_k: int
    split: int
    warps: int
    stages: int


# Per (columns, width) of the published sizes; small sizes take the fallback. `tune` replaces them.
DEFAULT_TILINGS = {
    (4608, 1536): Tiling(32, 128, 1, 4, 4),
    (1536, 1536): Tiling(32, 128, 3, 4, 4),
    (6144, 1536): Tiling(64, 128, 1, 4, 4),
    (1536, 6144): Tiling(32, 128, 4, 4, 4),
}
FALLBACK = Tiling(32, 32, 1, 4, 2)
CANDIDATES = (
    Tiling(16, 128, 1, 4, 5),
    Tiling(32, 128, 1, 4, 5),
    Tiling(32, 128, 2, 4, 5),
    Tiling(32, 128, 4, 4, 5),
    Tiling(64, 128, 1, 4, 4),
    Tiling(64, 64, 2, 4, 6),
    Tiling(64, 64, 6, 4, 6),
    Tiling(64, 128, 2, 8, 4),
)


class Scratch:
    """What split-K needs, shared by all products: they run one after another."""

    def __init__(self, max_columns: int, device: torch.device) -> None:
        blocks = triton.cdiv(max_columns, 16)
        size = blocks * MAX_SPLIT * (16 * BLOCK_M + 2 * BLOCK_M)
        self.parts = torch.zeros(size, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(blocks, dtype=torch.int32, device=device)


@dataclass(eq=False)
class Linear:
    """One product, with what is folded into it.

    Attributes:
        weight: (columns, width), half precision or fp8.
        bias: (columns,) float32.
        scale: (columns,) float32 scale of fp8 weights.
        factors: Per step (width,) factors on the normalised input; empty for none.
        sums, biases: Per step (columns,) float32, see `triton_kernels.linear`; empty without a LayerNorm.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    scratch: Scratch
    gelu: bool = False
    factors: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)
    tiling: Tiling = FALLBACK
    pdl: bool = False

    def run(self, x: Tensor, y: Tensor, *, step: int = 0, residual: Tensor | None = None) -> None:
        """Enqueue on the current stream."""
        tiling, (columns, width) = self.tiling, self.weight.shape
        bias = self.biases[step] if self.biases else self.bias
        linear[(triton.cdiv(columns, tiling.block_n), tiling.split)](
            x,
            self.weight,
            y,
            self.scale,
            self.sums[step] if self.sums else bias,
            bias,
            self.factors[step] if self.factors else x,
            x if residual is None else residual,
            self.scratch.parts,
            self.scratch.arrivals,
            x.shape[0],
            columns,
            width=width,
            IS_FP8=self.weight.dtype is torch.float8_e4m3fn,
            NORMALIZE=bool(self.sums),
            MODULATE=bool(self.factors),
            GELU=self.gelu,
            RESIDUAL=residual is not None,
            SPLIT=tiling.split,
            USE_PDL=self.pdl,
            BLOCK_M=BLOCK_M,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
            **({'launch_pdl': True} if self.pdl else {}),
        )


def make_linear(
    parts: list[Product],
    scratch: Scratch,
    *,
    fp8: bool = False,
    gelu: bool = False,
    modulations: Tensor | None = None,
    normalize: bool = False,
) -> Linear:
    """Pack products over one input into one, with the LayerNorm in front of it.

    Args:
        parts: The products.
        scratch: Shared scratch.
        fp8: Store the weight as e4m3.
        gelu: Apply the GELU behind it.
        modulations: (steps, 2, width) factors and shifts behind the LayerNorm.
        normalize: A LayerNorm without factors.
    """
    wide = torch.cat([part.weight for part in parts], dim=1).t().contiguous()
    bias = torch.cat([part.bias for part in parts]).float()
    scale, weight = torch.ones_like(bias), wide
    if fp8:
        scale = (wide.float().abs().amax(dim=1) / FP8_MAX).clamp(min=1e-8)
        weight = (wide.float() / scale[:, None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    exact = weight.float() * scale[:, None]
    made = Linear(weight, bias, scale, scratch, gelu=gelu)
    made.tiling = _fitting(DEFAULT_TILINGS.get(tuple(wide.shape), FALLBACK), wide.shape[1])
    if normalize:
        made.sums, made.biases = [exact.sum(dim=1)], [bias]
    elif modulations is not None:
        made.factors = [row[0].to(wide.dtype).contiguous() for row in modulations]
        made.sums = [(exact @ factor.float()).contiguous() for factor in made.factors]
        made.biases = [(exact @ row[1].float() + bias).contiguous() for row in modulations]
    return made


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One block, ready to run; `keys_values` holds the cross-attention's, None for self-attention."""

    query: Linear
    output: Linear
    up: Linear
    down: Linear
    is_cross: bool


class TritonHead:
    """A whole chunk: `set_context` once per chunk, then `run`.

    Args:
        head: The weights, in half precision on the device.
        fp8: Keep the weights of the blocks in fp8.
        pdl: Programmatic dependent launch: a kernel may start while the one before it drains.
    """

    def __init__(self, head: ActionHead, *, fp8: bool = False, pdl: bool = False) -> None:
        shape, device, dtype = head.shape, head.position.device, head.position.dtype
        self.shape, self.head, self.dtype, self._pdl = shape, head, dtype, pdl
        scratch = Scratch(4 * shape.width, device)
        tables, self._waves = modulation_tables(head)
        tables = tables[:, :, :, 0]
        self._layers = []
        for index, block in enumerate(head.blocks):
            parts = [block.query] if block.is_cross else [block.query, block.key, block.value]
            layer = _Layer(
                make_linear(parts, scratch, fp8=fp8, modulations=tables[:, index]),
                make_linear([block.output], scratch, fp8=fp8),
                make_linear([block.up], scratch, fp8=fp8, gelu=True, normalize=True),
                make_linear([block.down], scratch, fp8=fp8),
                block.is_cross,
            )
            self._layers.append(layer)
        self._last = make_linear([head.last], scratch, modulations=tables[:, -1])
        for product in self.linears():
            product.pdl = pdl
        crosses = sum(layer.is_cross for layer in self._layers)

        def empty(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        rows, width = shape.tokens, shape.width
        self._hidden, self._other = empty(rows, width), empty(rows, width)
        self._packed, self._query = empty(rows, 3 * width), empty(rows, width)
        self._mixed, self._wide = empty(rows, width), empty(rows, 4 * width)
        self._output = empty(rows, shape.output_width)
        self._cross = empty(crosses, shape.context_tokens, 2 * width)
        self._token = empty(1, 1, width)
        self.sample = torch.zeros(1, shape.horizon, shape.action_width, device=device)

    def linears(self) -> list[Linear]:
        """Return all products that run as Triton kernels."""
        inner = [p for y in self._layers for p in (y.query, y.output, y.up, y.down)]
        return [*inner, self._last]

    def set_context(self, state: Tensor, context: Tensor) -> None:
        """Compute what does not change within a chunk (torch's own kernels)."""
        head, dtype = self.head, self._token.dtype
        self._token.copy_(head.state_encoder(state.to(dtype))[:, None])
        source, index = context[0].to(dtype), 0
        for block in head.blocks:
            if block.is_cross:
                self._cross[index, :, : self.shape.width] = block.key(source)
                self._cross[index, :, self.shape.width :] = block.value(source)
                index += 1

    def run(self) -> None:
        """Integrate `sample` in place over all steps, with no work on the host in between."""
        for step in range(self.shape.steps):
            self.sample += self.velocity(step) / self.shape.steps

    def velocity(self, step: int) -> Tensor:
        """Return the (1, horizon, action_width) velocity of one step."""
        shape, hidden, other = self.shape, self._hidden, self._other
        wave = self._waves[step][None]
        hidden.copy_(self.head.encode(self.sample, self._token, wave)[0])
        cross = 0
        for layer in self._layers:
            if layer.is_cross:
                layer.query.run(hidden, self._query, step=step)
                context = self._cross[cross]
                self._attend(self._query, context[:, : shape.width], context[:, shape.width :])
                cross += 1
            else:
                layer.query.run(hidden, self._packed, step=step)
                self._attend(*self._packed.split(shape.width, dim=1))
            layer.output.run(self._mixed, other, residual=hidden)
            layer.up.run(other, self._wide)
            layer.down.run(self._wide, hidden, residual=other)
        self._last.run(hidden, self._output, step=step)
        return self.head.decoder(self._output[None, 1:]).float()

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        rows, keys, size = query.shape[0], key.shape[0], self.shape.head_size
        attention[(self.shape.heads, triton.cdiv(rows, 16))](
            query,
            key,
            value,
            self._mixed,
            rows,
            keys,
            query.stride(0),
            key.stride(0),
            value.stride(0),
            self._mixed.stride(0),
            1 / math.sqrt(size),
            USE_PDL=self._pdl,
            HEAD=size,
            BLOCK_Q=16,
            BLOCK_KEYS=max(triton.next_power_of_2(keys), 16),
            BLOCK_D=max(triton.next_power_of_2(size), 16),
            num_warps=4,
            **({'launch_pdl': True} if self._pdl else {}),
        )


def tune(head: TritonHead, stored: Path, *, deadline_s: float) -> dict[str, str]:
    """Time candidate tilings of every size over all its weights in one CUDA graph, and keep the best.

    Args:
        head: Its products get the tilings.
        stored: File with an earlier result, which is taken instead; written otherwise.
        deadline_s: No candidate is begun later than this, all sizes together.
    """
    groups: dict[str, list[Linear]] = {}
    for product in head.linears():
        columns, width = product.weight.shape
        groups.setdefault(f'{columns}x{width}x{int(bool(product.sums))}', []).append(product)
    known = json.loads(stored.read_text(encoding='utf-8')) if stored.exists() else {}
    told, until = {}, time.monotonic()
    for key, products in groups.items():
        until += deadline_s / len(groups)
        if key not in known:
            times = _time_candidates(head, products, until)
            best = min(times, key=times.__getitem__)
            known[key] = astuple(best)
            told[key] = f'{best} {times[best]:.2f} us of {len(times)} tried'
        for product in products:
            product.tiling = Tiling(*known[key])
    stored.write_text(json.dumps(known), encoding='utf-8')
    return {**{key: str(value) for key, value in known.items()}, **told}


def _time_candidates(
    head: TritonHead, products: list[Linear], until_s: float
) -> dict[Tiling, float]:
    """Return microseconds per product of the tiling it has and of the candidates."""
    columns, width = products[0].weight.shape
    tokens, device = head.shape.tokens, head.sample.device
    x = torch.randn(tokens, width, device=device).to(head.dtype)
    y = torch.zeros(tokens, columns, dtype=head.dtype, device=device)
    times = {products[0].tiling: _time_all(products, products[0].tiling, x, y)}
    for tiling in CANDIDATES:
        fits = width % (tiling.split * tiling.block_k) == 0
        fits = fits and columns // tiling.block_n * tiling.split <= 600
        if fits and time.monotonic() < until_s:
            times[tiling] = _time_all(products, tiling, x, y)
    return times


def _time_all(products: list[Linear], tiling: Tiling, x: Tensor, y: Tensor) -> float:
    """Return microseconds per product; infinity where the tiling does not fit the device."""
    for product in products:
        product.tiling = tiling
    try:
        products[0].run(x, y)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for product in products:
                product.run(x, y)
    except (TritonError, RuntimeError):
        return math.inf
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    begin.record()
    for _ in range(10):
        graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 100 / len(products)


def _fitting(tiling: Tiling, width: int) -> Tiling:
    """Return the tiling, or a smaller one for a width that it does not divide."""
    return tiling if width % (tiling.split * tiling.block_k) == 0 else FALLBACK
