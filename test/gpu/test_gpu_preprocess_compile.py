# SPDX-License-Identifier: Apache-2.0
"""NVRTC compiles the preprocessing kernel for every GPU it is meant for; no GPU is needed."""

import itertools

import pytest

from vla_policy_ros.gpu.nvrtc import compile_cubin, read_kernel
from vla_policy_ros.gpu.preprocess import Variant

pytestmark = pytest.mark.nvrtc

DECODERS = ('PACKED', 'YUV422', 'SEMI_PLANAR', 'BAYER')
ARITHMETICS = ('PICK', 'ROUNDED', 'LINEAR', 'CUBIC', 'AREA')
ALL = [Variant(*parts) for parts in itertools.product(DECODERS, ARITHMETICS, (1, 2, 4))]
# Every decoder with every arithmetic, and the element sizes in turn.
COVERING = [
    Variant(decoder, arithmetic, (1, 2, 4)[(i + j) % 3])
    for i, decoder in enumerate(DECODERS)
    for j, arithmetic in enumerate(ARITHMETICS)
]


@pytest.mark.parametrize(
    ('arch', 'variants'),
    [
        pytest.param('sm_87', COVERING, id='Orin'),
        pytest.param('sm_89', COVERING, id='Ada'),
        pytest.param('sm_90', ALL, id='Hopper'),
        pytest.param('sm_110', COVERING, id='Thor'),
        pytest.param('sm_120', COVERING, id='Blackwell'),
    ],
)
def test_every_variant_compiles(arch, variants):
    source, headers = read_kernel('preprocess')
    for variant in variants:
        cubin = compile_cubin(
            source, 'preprocess', arch=arch, defines=variant.defines, headers=headers
        )
        assert cubin.startswith(b'\x7fELF'), variant
        assert b'.text.preprocess' in cubin, variant
