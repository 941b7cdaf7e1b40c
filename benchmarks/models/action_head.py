# SPDX-License-Identifier: Apache-2.0
"""A GR00T-shaped action head with random weights: the shapes of the published model, none of its code or weights.

Thirty-two transformer blocks, cross-attention to the context and self-attention in turns, each with an AdaLN in front
whose scale and shift come from the time step, and a GELU feed-forward of four times the width. Two forms compute the same:

    plain     one network per step, with everything in it that does not change within a chunk
    hoisted   keys and values of the cross-attention and the state token in a stage before the loop; scales and shifts of
              all (few, known) time steps in a table made at export; query, key and value in one product

The hoisted form may be padded: token rows (41 to 48 or 64, the extra ones are never attended to) and channels per head
(48 to 64, with zeros), which changes no output and lets a library choose other kernels. Or its products with few output
columns are split along their sum into a batch of smaller ones, so that more of the GPU reads weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

TIME_CHANNELS = 256
TIME_SCALE = 1000


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Sizes; the defaults are those of the published 3 B model's head."""

    layers: int = 32
    width: int = 1536
    heads: int = 32
    context_tokens: int = 128
    context_width: int = 2048
    horizon: int = 40
    action_width: int = 132
    state_width: int = 132
    output_width: int = 1024
    steps: int = 4
    rows: int = 0
    """Token rows of the hoisted form; 0 for no padding."""
    head_channels: int = 0
    """Channels per head of the hoisted form; 0 for no padding."""
    splits: int = 1
    """Parts into which the hoisted form splits the sum of a product back to the width."""

    @property
    def tokens(self) -> int:
        """The state and one token per action row."""
        return self.horizon + 1

    @property
    def head_size(self) -> int:
        """Channels per head before padding."""
        return self.width // self.heads

    def small(self) -> HeadShape:
        """Return the same head with sizes for a test on a processor."""
        return replace(
            self, layers=4, width=96, heads=2, context_tokens=16, context_width=64, output_width=64
        )


class Product(nn.Module):
    """x @ weight + bias; the weight is (in, out), as ONNX's MatMul takes it. `peak` is the largest |x| seen."""

    def __init__(self, width_in: int, width_out: int, gain: float = 1.0) -> None:
        super().__init__()
        values = torch.randn(width_in, width_out) * (gain / math.sqrt(width_in))
        self.weight = nn.Parameter(values, requires_grad=False)
        self.bias = nn.Parameter(torch.randn(width_out) * 0.02, requires_grad=False)
        self.is_watched = False
        self.peak = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and add."""
        if self.is_watched:
            self.peak = max(self.peak, float(x.abs().max()))
        return x @ self.weight + self.bias


class SplitProduct(nn.Module):
    """The same as a product of the same weights, as a batch of products over parts of the sum."""

    def __init__(self, product: Product, splits: int) -> None:
        super().__init__()
        width_in, width_out = product.weight.shape
        parts = product.weight.reshape(splits, width_in // splits, width_out)
        self.weight = nn.Parameter(parts, requires_grad=False)
        self.bias = product.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and add (1, rows, in)."""
        rows, splits = int(x.shape[1]), int(self.weight.shape[0])
        parts = x.reshape(rows, splits, -1).transpose(0, 1)
        return (parts @ self.weight).sum(dim=0, keepdim=True) + self.bias


class Mlp(nn.Module):
    """Two products with a ReLU between."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.first, self.second = Product(*widths[:2]), Product(*widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Run both."""
        return self.second(functional.relu(self.first(x)))


class Block(nn.Module):
    """Weights of one block."""

    def __init__(self, shape: HeadShape, *, is_cross: bool) -> None:
        super().__init__()
        width = shape.width
        source = shape.context_width if is_cross else width
        small = 1 / math.sqrt(2 * shape.layers)  # keeps the residual stream within range
        self.is_cross = is_cross
        self.modulation = Product(width, 2 * width, 0.3)
        self.query, self.key, self.value = (Product(n, width) for n in (width, source, source))
        self.output = Product(width, width, small)
        self.up, self.down = Product(width, 4 * width), Product(4 * width, width, small)


class ActionHead(nn.Module):
    """All weights; `step` is the plain form.

    Args:
        shape: Sizes.
        seed: Seed of the weights on this device.
    """

    def __init__(self, shape: HeadShape, *, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.shape, width = shape, shape.width
        self.state_encoder = Mlp(shape.state_width, width, width)
        self.action_in = Product(shape.action_width, width)
        self.action_mix = Product(2 * width, width)
        self.action_out = Product(width, width)
        self.position = nn.Parameter(torch.randn(shape.horizon, width) * 0.02, requires_grad=False)
        self.time_in, self.time_out = Product(TIME_CHANNELS, width), Product(width, width)
        self.blocks = nn.ModuleList(
            Block(shape, is_cross=index % 2 == 0) for index in range(shape.layers)
        )
        self.last_modulation = Product(width, 2 * width, 0.3)
        self.last = Product(width, shape.output_width)
        self.decoder = Mlp(shape.output_width, shape.output_width, shape.action_width)

    def time_features(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (1, width) embeddings of a (1,) time step: for the blocks, and for the actions."""
        dtype = self.position.dtype
        wave = sinusoid(timestep, TIME_CHANNELS).to(dtype)
        embedded = self.time_out(functional.silu(self.time_in(wave)))
        return functional.silu(embedded), sinusoid(timestep, self.shape.width).to(dtype)

    def encode(self, sample: Tensor, token: Tensor, wave: Tensor) -> Tensor:
        """Return the (1, tokens, width) hidden rows."""
        actions = self.action_in(sample.to(self.position.dtype))
        both = torch.cat(
            (actions, wave[:, None].expand(1, self.shape.horizon, self.shape.width)), dim=-1
        )
        actions = self.action_out(functional.silu(self.action_mix(both))) + self.position
        return torch.cat((token, actions), dim=1)

    def decode(self, hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return the (1, horizon, action_width) float32 velocity."""
        hidden = self.last(modulate(hidden, scale, shift))
        velocity: Tensor = self.decoder(hidden[:, 1 : self.shape.tokens])
        return velocity.float()

    def step(self, sample: Tensor, timestep: Tensor, state: Tensor, context: Tensor) -> Tensor:
        """Return the velocity at one time step."""
        dtype = self.position.dtype
        embedded, wave = self.time_features(timestep)
        context = context.to(dtype)
        token = self.state_encoder(state.to(dtype))[:, None]
        hidden = self.encode(sample, token, wave)
        for block in self.blocks:
            scale, shift = block.modulation(embedded).chunk(2, dim=-1)
            rows = modulate(hidden, 1 + scale, shift)
            source = context if block.is_cross else rows
            mixed = attend(
                split(block.query(rows), self.shape.heads),
                split(block.key(source), self.shape.heads),
                split(block.value(source), self.shape.heads),
                self.shape.head_size,
            )
            hidden = hidden + block.output(mixed)
            rows = normalize(hidden)
            hidden = hidden + block.down(gelu(block.up(rows)))
        scale, shift = self.last_modulation(embedded).chunk(2, dim=-1)
        return self.decode(hidden, 1 + scale, shift)


class PlainStep(nn.Module):
    """The plain form as a network."""

    def __init__(self, head: ActionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, sample: Tensor, timestep: Tensor, state: Tensor, context: Tensor) -> Tensor:
        """Return the velocity at one time step."""
        return self.head.step(sample, timestep, state, context)


class HoistedPrepare(nn.Module):
    """What does not change within a chunk.

    Keys and values of all cross blocks come out of one product over the context.
    """

    def __init__(self, head: ActionHead) -> None:
        super().__init__()
        shape = head.shape
        self.heads, self.size = shape.heads, shape.head_channels or shape.head_size
        self.state_encoder = head.state_encoder
        crosses = [block for block in head.blocks if block.is_cross]
        parts = [pad_heads(p, shape) for block in crosses for p in (block.key, block.value)]
        self.keys_values = join(parts)

    def forward(self, state: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (1, 1, width) state token and the (2 * crosses, heads, context, channels) keys and values."""
        dtype = self.keys_values.weight.dtype
        token = self.state_encoder(state.to(dtype))[:, None]
        both = self.keys_values(context.to(dtype))[0]
        parts = int(both.shape[1]) // (self.heads * self.size)
        shaped = both.reshape(-1, parts, self.heads, self.size).permute(1, 2, 0, 3)
        return token.to(pool_type(dtype)), shaped.contiguous().to(pool_type(dtype))


class HoistedStep(nn.Module):
    """What is left for every step; its tables hold scale and shift of every layer at every time step."""

    def __init__(self, head: ActionHead) -> None:
        super().__init__()
        self.head, self.shape = head, head.shape
        self.qkv, self.output, self.down = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for block in head.blocks:
            parts = [block.query] if block.is_cross else [block.query, block.key, block.value]
            self.qkv.append(join([pad_heads(part, head.shape) for part in parts]))
            self.output.append(split_sum(pad_output(block.output, head.shape), head.shape))
            self.down.append(split_sum(block.down, head.shape))
        scales, waves = modulation_tables(head)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.waves = nn.Parameter(waves, requires_grad=False)

    def forward(
        self, sample: Tensor, timestep: Tensor, state_token: Tensor, cross: Tensor
    ) -> Tensor:
        """Return the velocity at one time step."""
        shape, dtype = self.shape, self.scales.dtype
        index = torch.div(timestep * shape.steps, TIME_SCALE, rounding_mode='trunc')
        scales = self.scales[index][0]  # (layers + 1, 2, 1, width)
        hidden = self.head.encode(sample, state_token.to(dtype), self.waves[index])
        padding = max(shape.rows - shape.tokens, 0)
        if padding:
            extra = torch.zeros(1, padding, shape.width, dtype=dtype, device=hidden.device)
            hidden = torch.cat((hidden, extra), dim=1)
        cross = cross.to(dtype)
        for index_, block in enumerate(self.head.blocks):
            rows = modulate(hidden, scales[index_, 0], scales[index_, 1])
            if block.is_cross:
                query = split(self.qkv[index_](rows), shape.heads)
                key, value = cross[index_ : index_ + 1], cross[index_ + 1 : index_ + 2]
            else:
                query, key, value = (
                    split(part, shape.heads) for part in self.qkv[index_](rows).chunk(3, dim=-1)
                )
                key, value = key[:, :, : shape.tokens], value[:, :, : shape.tokens]
            hidden = hidden + self.output[index_](attend(query, key, value, shape.head_size))
            rows = normalize(hidden)
            hidden = hidden + self.down[index_](gelu(block.up(rows)))
        return self.head.decode(hidden, scales[-1, 0], scales[-1, 1])


class Backbone(nn.Module):
    """Stands for the vision-language model: a context that depends on the state, at no cost."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.map = Product(shape.state_width, shape.context_width)
        values = torch.randn(1, shape.context_tokens, shape.context_width)
        self.table = nn.Parameter(values, requires_grad=False)

    def forward(self, state: Tensor) -> Tensor:
        """Return the (1, tokens, width) float32 context."""
        return torch.tanh(self.map(state)[:, None] + self.table)


def sinusoid(timestep: Tensor, channels: int) -> Tensor:
    """Return the (1, channels) sine and cosine features of a time step (Vaswani et al. 2017, 3.5)."""
    half = torch.arange(channels // 2, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[:, None] * torch.exp(half * (-math.log(10000.0) / (channels // 2)))
    return torch.cat((torch.cos(angles), torch.sin(angles)), dim=-1)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return LayerNorm(x) * scale + shift."""
    return normalize(x) * scale + shift


def normalize(x: Tensor) -> Tensor:
    """Return LayerNorm(x) without factors."""
    # Sizes are made plain numbers: the exporter would write nodes that compute them.
    return functional.layer_norm(x, (int(x.shape[-1]),))


def gelu(x: Tensor) -> Tensor:
    """Return the GELU with the tanh approximation."""
    return functional.gelu(x, approximate='tanh')


def split(x: Tensor, heads: int) -> Tensor:
    """Return (1, rows, heads * channels) as (1, heads, rows, channels)."""
    rows, width = int(x.shape[1]), int(x.shape[2])
    return x.reshape(1, rows, heads, width // heads).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, head_size: int) -> Tensor:
    """Return softmax(q k / sqrt(head_size)) v as (1, rows, heads * channels); padding of the heads changes nothing."""
    scale = 1 / math.sqrt(head_size)
    if torch.onnx.is_in_onnx_export():  # the pattern that TensorRT knows as attention
        weights = torch.softmax((query @ key.transpose(-1, -2)) * scale, dim=-1)
        mixed = weights @ value
    else:
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=scale)
    _, heads, rows, channels = (int(size) for size in mixed.shape)
    return mixed.transpose(1, 2).reshape(1, rows, heads * channels)


def join(parts: list[Product]) -> Product:
    """Return one product for several over the same input."""
    joined = Product(1, 1)
    joined.weight = nn.Parameter(
        torch.cat([part.weight for part in parts], dim=1), requires_grad=False
    )
    joined.bias = nn.Parameter(torch.cat([part.bias for part in parts]), requires_grad=False)
    return joined


def pad_heads(product: Product, shape: HeadShape) -> Product:
    """Return a product whose outputs have `head_channels` per head, the new ones zero."""
    extra = (shape.head_channels or shape.head_size) - shape.head_size
    if not extra:
        return product
    padded = Product(1, 1)
    weight = product.weight.unflatten(1, (shape.heads, shape.head_size))
    padded.weight = nn.Parameter(
        functional.pad(weight, (0, extra)).flatten(1), requires_grad=False
    )
    bias = product.bias.unflatten(0, (shape.heads, shape.head_size))
    padded.bias = nn.Parameter(functional.pad(bias, (0, extra)).flatten(), requires_grad=False)
    return padded


def pad_output(product: Product, shape: HeadShape) -> Product:
    """Return the product that takes what the padded heads give."""
    extra = (shape.head_channels or shape.head_size) - shape.head_size
    if not extra:
        return product
    padded = Product(1, 1)
    weight = product.weight.unflatten(0, (shape.heads, shape.head_size))
    padded.weight = nn.Parameter(
        functional.pad(weight, (0, 0, 0, extra)).flatten(0, 1), requires_grad=False
    )
    padded.bias = product.bias
    return padded


def split_sum(product: Product, shape: HeadShape) -> nn.Module:
    """Return the product in as many parts as the shape asks for."""
    return SplitProduct(product, shape.splits) if shape.splits > 1 else product


def modulation_tables(head: ActionHead) -> tuple[Tensor, Tensor]:
    """Return (steps, layers + 1, 2, 1, width) factors and shifts, and (steps, width) waves, of every time step."""
    rows, waves = [], []
    products = [*(block.modulation for block in head.blocks), head.last_modulation]
    for index in range(head.shape.steps):
        embedded, wave = head.time_features(time_of(index, head))
        pairs = [product(embedded).chunk(2, dim=-1) for product in products]
        rows.append(torch.stack([torch.stack((1 + scale, shift)) for scale, shift in pairs]))
        waves.append(wave[0])
    return torch.stack(rows), torch.stack(waves)


def time_of(index: int, head: ActionHead) -> Tensor:
    """Return the (1,) int64 time step of one step."""
    return torch.full((1,), index * TIME_SCALE // head.shape.steps, device=head.position.device)


def pool_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which a stage hands its result to the next one."""
    return torch.float16 if dtype is torch.bfloat16 else dtype
