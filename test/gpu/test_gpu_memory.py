# SPDX-License-Identifier: Apache-2.0
import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.core.errors import SpecMismatchError
from vla_policy_ros.gpu.memory import Buffer, check_copy, check_tensor, count_bytes


class FakeMemory:
    address = 4096

    def __init__(self):
        self.num_frees = 0

    def free(self):
        self.num_frees += 1


def make(shape=(4, 6), dtype='float32'):
    memory = FakeMemory()
    return Buffer(memory, shape, dtype=dtype), memory


@pytest.mark.parametrize(
    ('dtype', 'size'), [('uint8', 24), ('bfloat16', 48), ('float16', 48), ('int64', 192)]
)
def test_sizes_follow_the_element_type(dtype, size):
    assert count_bytes((4, 6), dtype) == make(dtype=dtype)[0].num_bytes == size


@given(st.integers(-8, 110), st.integers(0, 30), st.sampled_from(['uint8', 'float16', 'float32']))
def test_a_view_is_given_exactly_when_it_lies_within_and_is_aligned(offset, count, dtype):
    buffer, _ = make()
    size = np.dtype(dtype).itemsize
    if offset >= 0 and offset + count * size <= 96 and offset % size == 0:
        view = buffer.view(offset, (count,), dtype)
        assert (view.address, view.num_bytes) == (4096 + offset, count * size)
    else:
        with pytest.raises(SpecMismatchError):
            buffer.view(offset, (count,), dtype)


def test_only_the_whole_buffer_frees():
    buffer, memory = make()
    buffer.view(0, (2,), 'float32').view(0, (1,), 'float32').free()
    assert memory.num_frees == 0
    buffer.free()
    assert memory.num_frees == 1


def test_a_view_keeps_the_memory_alive():
    buffer, memory = make()
    view, alive = buffer.view(0, (2,), 'float32'), weakref.ref(memory)
    del buffer, memory
    gc.collect()
    assert alive() is not None
    del view
    gc.collect()
    assert alive() is None


def test_other_libraries_see_shape_type_and_address():
    view = make()[0].view(16, (2, 3), 'float16')
    assert view.__cuda_array_interface__ == {
        'shape': (2, 3),
        'typestr': '<f2',
        'data': (4112, False),
        'strides': None,
        'version': 3,
    }


def test_bfloat16_is_shared_as_int16():
    buffer, _ = make(dtype='bfloat16')
    with pytest.raises(AttributeError, match='int16'):
        _ = buffer.__cuda_array_interface__
    assert not hasattr(buffer, '__cuda_array_interface__')
    assert buffer.view(0, buffer.shape, 'int16').__cuda_array_interface__['typestr'] == '<i2'


def test_copies_move_the_whole_target_or_the_bytes_that_are_asked_for():
    assert check_copy(8, 8) == 8
    assert check_copy(8, 16, 4) == 4
    for arguments in ((8, 16), (8, 4), (8, 16, 9), (8, 4, 5), (8, 8, -1)):
        with pytest.raises(SpecMismatchError):
            check_copy(*arguments)


def test_tensors_are_checked_by_size_and_type():
    buffer, _ = make()
    check_tensor('noise', buffer, size=24, dtypes=('float32',))
    for size, dtypes in ((23, ('float32',)), (24, ('float16', 'int64'))):
        with pytest.raises(SpecMismatchError, match=r'noise: got float32\[4, 6\]'):
            check_tensor('noise', buffer, size=size, dtypes=dtypes)
