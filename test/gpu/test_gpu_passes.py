# SPDX-License-Identifier: Apache-2.0
"""Into how many passes a geometry falls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.geometry import CenterCrop, Crop, Pad, Resize
from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.gpu.passes import is_one_pass, plan_passes, possible_arithmetics
from vla_policy_ros.preprocess.geometry import GeometryPlan

RESIZE = Resize(height=40, width=50)
AREA = Resize(height=40, width=40, library='opencv', filter='area')
NEAREST = Resize(height=40, width=40, filter='nearest')
FIT = Resize(height=60, width=60, to='fit_inside')
PAD, WHITE = Pad(height=60, width=60), Pad(height=70, width=70, value=255)
CUT = Crop(top=0, left=0, height=30, width=30)
STEP = st.sampled_from([RESIZE, AREA, NEAREST, FIT, PAD, WHITE, CUT, CenterCrop(fraction=0.9)])


def plan(*steps, size=(120, 160)):
    return plan_passes(steps, size, where='camera')


def attempt(make):
    """The result and no fault, or none and the facts of the fault."""
    try:
        return make(), None
    except ImageError as error:
        return None, error.as_dict()


@pytest.mark.parametrize(
    ('steps', 'number'),
    [
        ([RESIZE], 1),
        ([CUT, RESIZE, CUT], 1),
        ([CenterCrop(fraction=0.9), FIT, PAD], 1),
        ([NEAREST, RESIZE], 1),  # picked pixels are picked again
        ([RESIZE, AREA], 2),
        ([FIT, PAD, RESIZE], 2),
        ([FIT, PAD, WHITE], 2),
        ([RESIZE, AREA, FIT, PAD, RESIZE], 4),
    ],
)
def test_a_pass_holds_one_resize_and_one_colour_of_border(steps, number):
    assert len(plan(*steps)) == number


@given(st.lists(STEP, max_size=5), st.tuples(st.integers(30, 80), st.integers(30, 80)))
def test_every_chain_ends_with_the_size_of_the_reference_and_needs_what_was_foretold(steps, size):
    wanted, fault = attempt(lambda: GeometryPlan(steps, size, where='camera'))
    passes, fault_here = attempt(lambda: plan(*steps, size=size))
    assert fault_here == fault
    if fault is None:
        assert passes[-1].size == wanted.size
        assert {step.resampling.arithmetic for step in passes} <= possible_arithmetics(steps)
        assert len(passes) == 1 or not is_one_pass(steps)
