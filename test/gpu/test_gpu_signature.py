# SPDX-License-Identifier: Apache-2.0
import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.gpu.signature import argument_codes, argument_offsets

C_TYPES = {
    'P': ctypes.c_void_p,
    'i': ctypes.c_int,
    'q': ctypes.c_int64,
    'f': ctypes.c_float,
    '24s': ctypes.c_int64 * 3,
}


@given(st.lists(st.sampled_from(sorted(C_TYPES)), min_size=1, max_size=12))
def test_arguments_lie_where_the_members_of_a_struct_would(codes):
    fields = [(f'a{index}', C_TYPES[code]) for index, code in enumerate(codes)]
    struct = type('Arguments', (ctypes.Structure,), {'_fields_': fields})
    offsets = [getattr(struct, name).offset for name, _ in fields]
    end = offsets[-1] + ctypes.sizeof(C_TYPES[codes[-1]])
    assert argument_offsets(''.join(codes)) == (*offsets, end)


def test_structs_by_value_are_aligned_to_eight_bytes():
    assert argument_codes('Pi40sf') == ('P', 'i', '0q40s', 'f')


@pytest.mark.parametrize('signature', ['x', 'Pd', '40', 'P i'])
def test_other_characters_are_refused(signature):
    with pytest.raises(ValueError, match='no kernel signature'):
        argument_codes(signature)
