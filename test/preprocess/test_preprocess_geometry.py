# SPDX-License-Identifier: Apache-2.0
"""Sizes, offsets, views and refusals of the geometry steps."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.geometry import CenterCrop, Crop, Pad, Resize
from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.preprocess.geometry import GeometryPlan, crop_box, pad_offset, resized_size

edges = st.integers(1, 2000)


def make_image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ('to', 'size', 'expected'),
    [
        ('exact', (480, 640), (224, 256)),
        ('fit_inside', (480, 640), (192, 256)),
        ('fit_inside', (640, 480), (224, 168)),
        ('fit_inside', (1, 2000), (1, 256)),
        ('shortest_edge', (480, 640), (224, 298)),  # 298.67, truncated
        ('shortest_edge', (640, 480), (298, 224)),
        ('shortest_edge', (50, 50), (224, 224)),
    ],
)
def test_sizes_of_a_resize(to, size, expected):
    assert resized_size(Resize(height=224, width=256, to=to), size) == expected


@given(height=edges, width=edges, target=st.tuples(st.integers(8, 500), st.integers(8, 500)))
def test_fit_inside_never_needs_more_room_than_there_is(height, width, target):
    rule = Resize(height=target[0], width=target[1], to='fit_inside')
    size = resized_size(rule, (height, width))
    assert all(1 <= edge <= limit for edge, limit in zip(size, target, strict=True))
    # One edge touches, give or take the truncation that openpi has too.
    assert any(edge >= limit - 1 for edge, limit in zip(size, target, strict=True))


def test_center_crop_keeps_the_floor_and_leaves_the_odd_pixel_below():
    step = CenterCrop(fraction=0.95)
    assert crop_box(step, (256, 341), where='camera') == (6, 9, 243, 323)
    assert crop_box(CenterCrop(fraction=0.001), (10, 10), where='camera') == (4, 4, 1, 1)
    assert crop_box(CenterCrop(fraction=1), (7, 9), where='camera') == (0, 0, 7, 9)


@pytest.mark.parametrize(
    ('align', 'expected'), [('center', (2, 3)), ('top_left', (0, 0)), ('bottom_right', (5, 6))]
)
def test_padding_lies_where_align_says(align, expected):
    step = Pad(height=15, width=26, align=align, value=9)
    assert pad_offset(step, (10, 20), where='camera') == expected
    image = make_image(10, 20)

    padded = GeometryPlan([step], (10, 20), where='camera').run(image)

    top, left = expected
    wanted = np.full((15, 26, 3), 9, np.uint8)
    wanted[top : top + 10, left : left + 20] = image
    np.testing.assert_array_equal(padded, wanted)


def test_the_letterbox_of_openpi():
    image = make_image(48, 64)
    steps = [
        Resize(height=32, width=32, to='fit_inside', library='opencv'),
        Pad(height=32, width=32),
    ]
    padded = GeometryPlan(steps, (48, 64), where='camera').run(image)
    np.testing.assert_array_equal(padded[4:28], cv2.resize(image, (32, 24)))
    assert not padded[:4].any()
    assert not padded[28:].any()


def test_crops_and_steps_that_change_nothing_are_views():
    image = make_image(20, 30)
    steps = [
        Resize(height=20, width=30),
        Pad(height=20, width=30),
        CenterCrop(fraction=0.9),
        Crop(top=1, left=2, height=5, width=7),
    ]
    plan = GeometryPlan(steps, (20, 30), where='camera')
    result = plan.run(image)
    assert plan.size == (5, 7)
    assert np.shares_memory(result, image)
    np.testing.assert_array_equal(result, image[2:7, 3:10])


def test_buffers_are_made_once():
    steps = [Resize(height=8, width=9, library='opencv'), Pad(height=10, width=10)]
    plan = GeometryPlan(steps, (20, 30), where='camera')
    first = plan.run(make_image(20, 30))
    assert plan.run(np.zeros((20, 30, 3), np.uint8)) is first
    assert not first.any()


@pytest.mark.parametrize(
    ('step', 'code'),
    [
        (Crop(top=1, left=0, height=20, width=5), 'crop_outside'),
        (Crop(top=0, left=26, height=5, width=5), 'crop_outside'),
        (Pad(height=19, width=40), 'pad_too_small'),
        (Pad(height=40, width=29), 'pad_too_small'),
    ],
)
def test_steps_that_do_not_fit_are_refused_by_their_place(step, code):
    with pytest.raises(
        ImageError, match=r"camera 'a', geometry\[1\]: got an image of 30 x 20 px"
    ) as caught:
        GeometryPlan([CenterCrop(fraction=1), step], (20, 30), where="camera 'a'")
    assert caught.value.code == code


def test_steps_that_just_fit_are_taken():
    steps = [Crop(top=15, left=25, height=5, width=5), Pad(height=5, width=6)]
    assert GeometryPlan(steps, (20, 30), where='camera').size == (5, 6)
