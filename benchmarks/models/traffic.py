# SPDX-License-Identifier: Apache-2.0
"""How many bytes of weights one run of a synthetic network reads: what its time is bounded by."""

from __future__ import annotations

from models.action_head import HoistedStep, Product, SplitProduct
from torch import nn


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of the products of a network that one run reads; tables and positions are left out."""
    products = {id(m): m for m in module.modules() if isinstance(m, (Product, SplitProduct))}
    skipped = _unused(module)
    return sum(
        m.weight.numel() * m.weight.element_size()
        for key, m in products.items()
        if key not in skipped
    )


def _unused(module: nn.Module) -> set[int]:
    """Return products that a hoisted step holds and does not run."""
    if not isinstance(module, HoistedStep):
        return set()
    head = module.head
    gone = [head.state_encoder.first, head.state_encoder.second, head.time_in, head.time_out]
    gone.append(head.last_modulation)
    for block in head.blocks:
        gone += [block.modulation, block.query, block.key, block.value, block.output, block.down]
    used = {id(m) for part in (module.qkv, module.output, module.down) for m in part}
    return {id(m) for m in gone} - used


def fp8_saving(step: nn.Module, peaks: dict[str, float]) -> int:
    """Return the bytes that fp8 saves per run."""
    named = dict(step.named_parameters())
    return sum(named[name].numel() for name in peaks)
