# SPDX-License-Identifier: Apache-2.0
"""Noise of a denoise loop: normal numbers that depend on a seed and the observation's stamp only.

So a dropped or repeated observation does not change the noise of any other, and a GPU makes the same numbers
(`gpu.noise`) without a word from the host.

Bits: Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, with the
constants of its reference code (Random123). Key: the seed. Counter: index of the group of four, 0, the two halves of the
stamp; so no two of (seed, stamp, index) share a block of bits. Normal numbers: Box and Muller, "A note on the generation
of random normal deviates", 1958.
"""

from __future__ import annotations

import math

import numpy as np

from vla_policy_ros.core.specs import Array

DEVICE_LIMIT = 2e-6
"""Largest difference between these numbers (at most 5.8) and a GPU's, whose log, sin and cos round differently."""

_WORD = 0xFFFFFFFF
_LOW_WORD, _HALF = (
    np.array(_WORD, np.uint64),
    np.array(32, np.uint64),
)  # as arrays, which numpy need not convert
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_ROUNDS = 10
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)  # golden ratio and square root of 3, less 1
_KEY_STEPS = np.arange(_ROUNDS, dtype=np.uint64)[:, None] * _WEYL
_UNIT = np.float32(2.0**-24)
_TURN = np.float32(2.0 * math.pi * 2.0**-24)
_BITS_LOST = 8  # a float32 holds 24 of a word's 32 bits exactly


def draw_noise(seed: int, stamp_ns: int, out: Array) -> None:
    """Fill `out` (float32, C-contiguous, host) with N(0, 1) noise.

    Args:
        seed: Any integer; its low 64 bits count.
        stamp_ns: Stamp of the observation; its low 64 bits count.
        out: Filled in the order of its memory; the first values do not depend on how many follow.
    """
    size = out.size
    words = philox(_halves(seed), (0, 0, *_halves(stamp_ns)), -(-size // 4))
    values = np.empty((words.shape[1], 4), np.float32)
    angle = (words[1::2] >> _BITS_LOST).astype(np.float32)
    angle *= _TURN
    radius = (words[0::2] >> _BITS_LOST).astype(np.float32)
    radius += 1.0  # (0, 1], so that its logarithm is finite
    radius *= _UNIT
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    np.multiply(radius, np.cos(angle), out=values.T[0::2])
    np.multiply(radius, np.sin(angle), out=values.T[1::2])
    out.reshape(-1)[:] = values.reshape(-1)[:size]


def philox(key: tuple[int, int], counter: tuple[int, int, int, int], count: int) -> Array:
    """Return (4, count) uint32 random bits, four words per block.

    Args:
        key: Two 32-bit words.
        counter: Four 32-bit words, of the first block; the first word counts up from block to block.
        count: Number of blocks.
    """
    even = np.empty((2, count), np.uint64)  # words 0 and 2 of every counter
    odd = np.empty_like(even)  # words 1 and 3
    even[0], even[1] = np.arange(counter[0], counter[0] + count), counter[2]
    odd[0], odd[1] = counter[1], counter[3]
    product = np.empty_like(even)
    crossed = product[::-1]
    for round_key in ((np.array(key, np.uint64) + _KEY_STEPS) & _LOW_WORD)[..., None]:
        np.multiply(even, _MULTIPLIERS, out=product)
        np.right_shift(crossed, _HALF, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, round_key, out=even)
        np.bitwise_and(crossed, _LOW_WORD, out=odd)
    words = np.empty((4, count), np.uint32)
    words[0::2], words[1::2] = even, odd
    return words


def _halves(value: int) -> tuple[int, int]:
    """Return the low and the next 32 bits."""
    return value & _WORD, value >> 32 & _WORD
