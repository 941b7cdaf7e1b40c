# SPDX-License-Identifier: Apache-2.0
"""How far the device's result may lie from the CPU reference: one table, read by all tests and by the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vla_policy_ros.bundle.geometry import Resize

DEVICE_RESIZE_LIMITS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        'pil': {'nearest': 0, 'bilinear': 0, 'bicubic': 0},
        'opencv': {'nearest': 0, 'bilinear': 1, 'bicubic': 1, 'area': 1},
        'torchvision': {'nearest': 0, 'bilinear': 1, 'bicubic': 2},
    }
)
"""Library and filter to the largest difference in levels of uint8; torchvision antialiased is as `pil`, with none.

The device does the arithmetic of OpenCV's own C++ code for x86. OpenCV itself goes other ways on other processors, and
for bicubic in its builds with Intel's library; torchvision's bicubic without antialiasing is two such passes.
"""

DEVICE_DECODE_LIMIT = 0
"""Largest difference in levels of any encoding that is not compressed."""


def resize_limit(rule: Resize) -> int:
    """Return the largest difference of one resize in levels."""
    is_antialiased = rule.library == 'torchvision' and rule.antialias
    return DEVICE_RESIZE_LIMITS['pil' if is_antialiased else rule.library][rule.filter]
