# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN001, ANN201, C901, N803, PLR0912 - Triton's own language: constants in capitals, types at the call
"""Two Triton kernels for a transformer with few rows: a product with everything around it, and attention.

`linear` computes y = epilogue(prologue(x) @ W^T) for up to 64 rows. It is bound by reading W, so all rows sit in one block
and the grid covers the output columns, and where these are few also K (split-K). The accumulator is transposed, [columns,
rows], so that W is the left operand: Hopper's matrix instruction takes that one from registers, where fp8 weights are
widened on the way.

The LayerNorm in front costs no pass of its own:

    LN(x) * s + h, times W^T  =  rstd * ((x * s) @ W^T - mean * (s @ W^T)) + h @ W^T

so sums of x and of its squares are taken while x is read, and mean and rstd are applied to the accumulator. The vectors
s @ W^T and h @ W^T + bias are made once, for every step. With split-K each block writes its part; the last one to arrive
adds all parts in a fixed order, so that the result does not depend on timing.
"""

from __future__ import annotations

import triton
import triton.language as tl

EPSILON = tl.constexpr(1e-5)


@triton.jit
def linear(
    x,
    w,
    y,
    column_scale,
    column_sum,
    column_bias,
    row_scale,
    residual,
    parts,
    arrivals,
    rows,
    columns,
    width: tl.constexpr,
    IS_FP8: tl.constexpr,
    NORMALIZE: tl.constexpr,
    MODULATE: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SPLIT: tl.constexpr,
    USE_PDL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[m, n] = epilogue; x (rows, width), w (columns, width), y (rows, columns), all row-major.

    column_scale: fp8 scale per column of y. column_sum, column_bias: s @ W^T and h @ W^T + bias per column of y.
    row_scale: s, per column of x. parts, arrivals: scratch of split-K; arrivals is zero before and after.
    """
    block, part = tl.program_id(0), tl.program_id(1)
    m, n = tl.arange(0, BLOCK_M), block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = part * (width // SPLIT) + tl.arange(0, BLOCK_K)
    is_row, is_column = m < rows, n < columns
    w_at = w + n[:, None] * width + k[None, :]
    x_at = x + m[None, :] * width + k[:, None]
    accumulator = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    sums, squares = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    if USE_PDL:
        # The weights depend on nothing: bring them to the L2 cache while the kernel before this one still runs.
        line: tl.constexpr = 128 if IS_FP8 else 64
        for start in range(0, width // SPLIT, line):
            at = w + n * width + part * (width // SPLIT) + start
            tl.inline_asm_elementwise(
                'prefetch.global.L2 [$1]; mov.u32 $0, 0;',
                '=r,l',
                [at.to(tl.int64)],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for start in range(0, width // SPLIT, BLOCK_K):
        weights = tl.load(
            w_at + start, mask=is_column[:, None], other=0.0, eviction_policy='evict_first'
        )
        values = tl.load(x_at + start, mask=is_row[None, :], other=0.0)
        if NORMALIZE:
            wide = values.to(tl.float32)
            sums += tl.sum(wide, 0)
            squares += tl.sum(wide * wide, 0)
        if MODULATE:
            values = values * tl.load(row_scale + k + start)[:, None]
        accumulator = tl.dot(weights.to(values.dtype), values, accumulator)
    if SPLIT > 1:
        size: tl.constexpr = BLOCK_N * BLOCK_M + 2 * BLOCK_M
        base = parts + block * SPLIT * size
        inside = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + m[None, :]
        mine = base + part * size
        tl.store(mine + inside, accumulator)
        if NORMALIZE:
            tl.store(mine + BLOCK_N * BLOCK_M + m, sums)
            tl.store(mine + BLOCK_N * BLOCK_M + BLOCK_M + m, squares)
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + block, 1, sem='acq_rel')
        if arrived != SPLIT - 1:
            return
        tl.debug_barrier()
        accumulator = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        sums, squares = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
        for other in tl.static_range(SPLIT):
            theirs = base + other * size
            accumulator += tl.load(theirs + inside, cache_modifier='.cg')
            if NORMALIZE:
                sums += tl.load(theirs + BLOCK_N * BLOCK_M + m, cache_modifier='.cg')
                squares += tl.load(theirs + BLOCK_N * BLOCK_M + BLOCK_M + m, cache_modifier='.cg')
        tl.store(arrivals + block, 0)
    if IS_FP8:
        accumulator *= tl.load(column_scale + n, mask=is_column, other=0.0)[:, None]
    if NORMALIZE:
        mean = sums / width
        factor = tl.rsqrt(tl.maximum(squares / width - mean * mean, 0.0) + EPSILON)
        total = tl.load(column_sum + n, mask=is_column, other=0.0)
        accumulator = (accumulator - total[:, None] * mean[None, :]) * factor[None, :]
    accumulator += tl.load(column_bias + n, mask=is_column, other=0.0)[:, None]
    if GELU:
        inner = 1.5957691216057308 * (
            accumulator + 0.044715 * accumulator * accumulator * accumulator
        )
        accumulator = accumulator * tl.sigmoid(inner)  # x (1 + tanh(u)) / 2 = x sigmoid(2 u)
    y_at = m[None, :] * columns + n[:, None]
    is_inside = is_row[None, :] & is_column[:, None]
    if RESIDUAL:
        accumulator += tl.load(residual + y_at, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(y + y_at, accumulator.to(y.dtype.element_ty), mask=is_inside)


@triton.jit
def attention(
    query,
    key,
    value,
    out,
    rows,
    keys,
    query_stride,
    key_stride,
    value_stride,
    out_stride,
    scale,
    USE_PDL: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """softmax(q k^T * scale) v of one head and BLOCK_Q query rows; all keys sit in one block. Strides are from row to row."""
    head, q = tl.program_id(0), tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    t, d = tl.arange(0, BLOCK_KEYS), tl.arange(0, BLOCK_D)
    is_channel = d < HEAD
    channel = head * HEAD + d
    if USE_PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    queries = tl.load(
        query + q[:, None] * query_stride + channel[None, :],
        mask=(q < rows)[:, None] & is_channel[None, :],
        other=0.0,
    )
    is_key = (t < keys)[:, None] & is_channel[None, :]
    ks = tl.load(key + t[:, None] * key_stride + channel[None, :], mask=is_key, other=0.0)
    vs = tl.load(value + t[:, None] * value_stride + channel[None, :], mask=is_key, other=0.0)
    scores = tl.where((t < keys)[None, :], tl.dot(queries, tl.trans(ks)) * scale, float('-inf'))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    mixed = tl.dot(weights.to(vs.dtype), vs)
    tl.store(
        out + q[:, None] * out_stride + channel[None, :],
        mixed.to(out.dtype.element_ty),
        mask=(q < rows)[:, None] & is_channel[None, :],
    )
