# SPDX-License-Identifier: Apache-2.0
"""Device and pinned buffers with an owner, over whatever memory a device hands out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vla_policy_ros.core.engine import DeviceTensor
from vla_policy_ros.core.errors import GpuError, SpecMismatchError


def count_bytes(shape: Sequence[int], dtype: str) -> int:
    """Return the size of a C-contiguous tensor in bytes."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def freed_memory(what: str) -> GpuError:
    """Return the error of a buffer that is used after it was freed."""
    return GpuError(
        what,
        got='memory that was freed',
        expected='a buffer that is still open',
        next_step='Close what uses a buffer before the buffer itself.',
        code='freed_memory',
    )


class Memory(Protocol):
    """One piece of device memory."""

    @property
    def address(self) -> int:
        """Address of its first byte.

        Raises:
            GpuError: It was freed (`freed_memory`).
        """

    def free(self) -> None:
        """Give it back now; may be called twice, from any thread."""


class Buffer:
    """A C-contiguous tensor in device memory: the whole of it, or a view of a part.

    Args:
        memory: The memory; freed by the whole buffer, kept alive by every view.
        shape: Size of every dimension.
        dtype: Element type under its name in `TensorSpec`.
        offset_bytes: Where in the memory the tensor begins.
        is_view: Whether another buffer owns the memory.
    """

    def __init__(
        self,
        memory: Memory,
        shape: Sequence[int],
        *,
        dtype: str,
        offset_bytes: int = 0,
        is_view: bool = False,
    ) -> None:
        self._memory = memory
        self._shape = tuple(shape)
        self._dtype = dtype
        self._num_bytes = count_bytes(shape, dtype)
        self._offset_bytes = offset_bytes
        self._is_view = is_view

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every dimension."""
        return self._shape

    @property
    def dtype(self) -> str:
        """Element type under its name in `TensorSpec`."""
        return self._dtype

    @property
    def num_bytes(self) -> int:
        """Size of the whole tensor in bytes."""
        return self._num_bytes

    @property
    def address(self) -> int:
        """Device address of the first element.

        Raises:
            GpuError: The memory was freed (`freed_memory`).
        """
        return self._memory.address + self._offset_bytes

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """How PyTorch and others take the memory without a copy (CUDA array interface, version 3).

        Ordering is the caller's: no stream is named. The interface cannot say `bfloat16`; take an `int16` view for that
        (`buffer.view(0, buffer.shape, 'int16')`) and read it as bfloat16 on the other side.
        """
        if self._dtype == 'bfloat16':
            raise AttributeError('the CUDA array interface has no bfloat16; take an int16 view')
        return {
            'shape': self._shape,
            'typestr': np.dtype(self._dtype).str,
            'data': (self.address, False),
            'strides': None,
            'version': 3,
        }

    def view(self, offset_bytes: int, shape: Sequence[int], dtype: str) -> Buffer:
        """Return a part as a tensor of its own; it keeps the memory alive.

        Raises:
            SpecMismatchError: The part does not lie within the buffer, or its elements would not be aligned.
        """
        end = offset_bytes + count_bytes(shape, dtype)
        aligned = offset_bytes % np.dtype(dtype).itemsize == 0
        if not (0 <= offset_bytes <= end <= self._num_bytes and aligned):
            raise SpecMismatchError(
                f'view of {self._dtype}{list(self._shape)}',
                got=f'{dtype}{list(shape)} at byte {offset_bytes}, which ends at byte {end}',
                expected=f'an aligned part of its {self._num_bytes} bytes',
                next_step='Check the layout that the offsets come from.',
            )
        start = self._offset_bytes + offset_bytes
        return Buffer(self._memory, shape, dtype=dtype, offset_bytes=start, is_view=True)

    def free(self) -> None:
        """Give the memory back now; may be called twice; on a view it does nothing."""
        if not self._is_view:
            self._memory.free()


def check_tensor(where: str, tensor: DeviceTensor, *, size: int, dtypes: tuple[str, ...]) -> None:
    """Make sure that a tensor has so many elements of one of these types.

    Raises:
        SpecMismatchError: It has not.
    """
    if math.prod(tensor.shape) != size or tensor.dtype not in dtypes:
        raise SpecMismatchError(
            where,
            got=f'{tensor.dtype}{list(tensor.shape)}',
            expected=f'{size} values of {" or ".join(dtypes)}',
            next_step='Check the tensors that the loop names in bundle.yaml.',
        )


def check_copy(target_bytes: int, source_bytes: int, num_bytes: int | None = None) -> int:
    """Return how many bytes a copy moves: `num_bytes`, or the whole target.

    Raises:
        SpecMismatchError: Source and target differ in size, or one holds less than `num_bytes`.
    """
    if num_bytes is None and target_bytes == source_bytes:
        return target_bytes
    if num_bytes is not None and 0 <= num_bytes <= min(target_bytes, source_bytes):
        return num_bytes
    raise SpecMismatchError(
        'copy on the device',
        got=f'{source_bytes} bytes'
        if num_bytes is None
        else f'{num_bytes} of {source_bytes} bytes',
        expected=f'{target_bytes} bytes' if num_bytes is None else f'at most {target_bytes} bytes',
        next_step='Give both sides the same shape and element type.',
    )
