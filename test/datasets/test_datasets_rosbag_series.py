# SPDX-License-Identifier: Apache-2.0
"""Nearest samples and growing stamps, against plain definitions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.datasets.rosbag_series import find_nearest, keep_growing

stamps = st.lists(st.integers(-1000, 1000), min_size=1, max_size=30)


@given(samples=stamps.map(np.unique), wanted=stamps)
def test_nearest_is_the_smallest_distance(samples, wanted):
    found = find_nearest(samples, np.array(wanted))
    for stamp, index in zip(wanted, found, strict=True):
        assert index == np.argmin(np.abs(samples - stamp))


@given(values=stamps)
def test_kept_stamps_grow_and_hold_the_largest(values):
    kept = np.array(values)[keep_growing(np.array(values))]
    assert kept[0] == values[0]
    assert kept[-1] == max(values)
    assert np.all(np.diff(kept) > 0)
    assert len(keep_growing(np.zeros(0, np.int64))) == 0
