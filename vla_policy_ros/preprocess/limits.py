# SPDX-License-Identifier: Apache-2.0
"""How far the CPU reference may lie from the library a policy was trained with: one table, read by all tests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

RESIZE_LIMITS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        'pil': {'nearest': 0, 'bilinear': 0, 'bicubic': 0},
        'opencv': {'nearest': 0, 'bilinear': 0, 'bicubic': 0, 'area': 0},
        'torchvision': {'nearest': 0, 'bilinear': 1, 'bicubic': 2},
    }
)
"""Library and filter to the largest difference in levels of uint8.

pil means Pillow before 13.0, see `resize.py`. torchvision means its uint8 path (x86 with AVX2, Arm), which rounds and clips
between the two passes; its own float path (other CPUs, GPUs) differs from that by one level for bilinear, and by the
clipped overshoot for bicubic. A difference of 2 was seen in fewer than 1 in 1000 values of random noise.
"""

ELEMENT_LIMITS: Mapping[str, float] = MappingProxyType(
    {'uint8': 0.0, 'float32': 2e-6, 'float16': 2e-3, 'bfloat16': 1.6e-2}
)
"""Element type of a tensor to the largest difference of a normalised value below 4 in magnitude.

Training code computes `(x * scale - mean) / std` in float32; ours is computed in float64 and
rounded to float32, and from there to the types of 16 bits.
"""
