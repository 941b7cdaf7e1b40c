# SPDX-License-Identifier: Apache-2.0
"""Rounding float32 numbers to narrower types with numpy alone, which holds neither bfloat16 nor float8.

Formats: IEEE 754 binary16; bfloat16 is the upper half of binary32; float8e4m3fn as in "FP8 Formats for Deep Learning"
(Micikevicius et al. 2022): bias 7, no infinities, greatest number 448. All round to nearest, ties to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla_policy_ros.core.specs import Array

FP8_MAX = 448.0
"""Greatest number of float8e4m3fn."""

_BF16_MAX = float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0])


@dataclass(frozen=True, slots=True)
class LowType:
    """A 16-bit floating-point type.

    Attributes:
        name: Short name, which also ends the names of tensors that are made in this type.
        onnx_name: Its name in `onnx.TensorProto.DataType`.
        schema_name: Its name in the type constraints of ONNX operators.
        largest: Greatest finite number.
    """

    name: Literal['fp16', 'bf16']
    onnx_name: str
    schema_name: str
    largest: float

    def encode(self, values: Array) -> Array:
        """Return the bits of float32 values in this type, uint16; what is too large becomes infinite."""
        if self.name == 'bf16':
            return _encode_bf16(values)
        with np.errstate(over='ignore'):
            bits: Array = values.astype(np.float16).view(np.uint16)
        return bits

    def decode(self, bits: Array) -> Array:
        """Return the float32 values of encoded ones."""
        if self.name == 'bf16':
            wide: Array = (bits.astype(np.uint32) << 16).view(np.float32)
            return wide
        return bits.view(np.float16).astype(np.float32)


LOW_TYPES = {
    'fp16': LowType('fp16', 'FLOAT16', 'tensor(float16)', 65504.0),
    'bf16': LowType('bf16', 'BFLOAT16', 'tensor(bfloat16)', _BF16_MAX),
}
"""The two by their names in the manifest."""


def encode_fp8(values: Array) -> Array:
    """Return the bits of float32 values in float8e4m3fn, uint8; values beyond +-448 become +-448.

    Args:
        values: Finite values of any shape.
    """
    magnitudes = np.minimum(np.abs(values), np.float32(FP8_MAX))
    bits = magnitudes.view(np.uint32)
    # binary32 with 3 instead of 23 bits of fraction, and its exponent's bias of 127 made one of 7.
    normal = ((bits + (((bits >> 20) & 1) + np.uint32(0x7FFFF))) >> 20) - np.uint32(120 << 3)
    subnormal = np.rint(magnitudes * np.float32(512))
    codes: Array = np.where(magnitudes < 2.0**-6, subnormal, normal).astype(np.uint8)
    codes |= np.signbit(values).astype(np.uint8) << 7
    return codes


def _encode_bf16(values: Array) -> Array:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    # Adding could carry a NaN over into a number.
    codes: Array = np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    return codes
