# SPDX-License-Identifier: Apache-2.0
"""Attention of a transformer in operators that every exporter and engine has; the layers and weights are a library's own.

Tensors of attention are (1, heads, tokens, channels) PyTorch tensors.
"""

from __future__ import annotations

from typing import Any

from vla_policy_ros.export.tracing import require_torch

_HIDDEN = -3e4  # no score comes near it, and 16 bits hold it


def split_heads(values: Any, head_dim: int) -> Any:
    """Turn (1, n, heads * H) into (1, heads, n, H)."""
    return values.unflatten(2, (-1, head_dim)).transpose(1, 2)


def join_heads(values: Any) -> Any:
    """Turn (1, heads, n, H) into (1, n, heads * H)."""
    return values.transpose(1, 2).flatten(2)


def make_rotation(places: Any, head_dim: int, *, max_wavelength: float) -> tuple[Any, Any]:
    """Return cosine and sine of the rotary embedding (Su et al. 2021, arXiv 2104.09864), (n, H / 2) each.

    Args:
        places: (n,) places of the tokens.
        head_dim: H.
        max_wavelength: What transformers calls `rope_theta`.
    """
    torch = require_torch()
    exponents = (2.0 / head_dim) * torch.arange(head_dim // 2, dtype=torch.float32)
    angles = places[:, None].to(torch.float32) / max_wavelength**exponents
    return torch.cos(angles), torch.sin(angles)


def rotate(values: Any, rotation: tuple[Any, Any]) -> Any:
    """Turn the pairs (i, i + H / 2) of (1, heads, n, H)."""
    cosine, sine = rotation
    first, second = values.chunk(2, dim=3)
    parts = [first * cosine - second * sine, second * cosine + first * sine]
    return require_torch().cat(parts, dim=3)


def hide(visible: Any) -> Any:
    """Return what is added to the scores of (rows, columns) bool, as (1, 1, rows, columns)."""
    return require_torch().where(visible, 0.0, _HIDDEN)[None, None]


def attend(
    queries: Any, keys: Any, values: Any, hiding: Any = None, *, scale: float | None = None
) -> Any:
    """Return (1, n, heads * H); several heads of queries share a head of keys.

    Args:
        queries: (1, heads, n, H).
        keys: (1, groups, m, H).
        values: (1, groups, m, H).
        hiding: Is added to the scores, (1, 1, n or 1, m); None for nothing.
        scale: Factor on the scores; 1 / sqrt(H) when None.
    """
    shared = queries.shape[1] // keys.shape[1]
    if shared > 1:
        keys, values = (part.repeat_interleave(shared, dim=1) for part in (keys, values))
    scale = queries.shape[3] ** -0.5 if scale is None else scale
    scores = queries @ keys.transpose(2, 3) * scale
    if hiding is not None:
        scores = scores + hiding
    return join_heads(scores.softmax(dim=3) @ values)
