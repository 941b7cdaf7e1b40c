# SPDX-License-Identifier: Apache-2.0
"""Each library's arithmetic: live against Pillow and OpenCV, against stored results of torchvision."""

from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vla_policy_ros.bundle.geometry import Resize
from vla_policy_ros.preprocess.limits import RESIZE_LIMITS
from vla_policy_ros.preprocess.resize import make_resizer

GOLDEN = np.load(Path(__file__).parents[1] / 'fixtures' / 'torchvision_resize.npz')
GOLDEN_SEED = 20260401  # of scripts/make_golden_resize.py
KEYS = [key for key in GOLDEN.files if key != 'version']
PILLOW_MAJOR = int(version('pillow').split('.')[0])
PIL = {'nearest': 0, 'bilinear': 2, 'bicubic': 3}
OPENCV = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
}
sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


def resize(image, target, library, filter_, *, antialias=True):
    rule = Resize(height=1, width=1, library=library, filter=filter_, antialias=antialias)
    out = np.zeros((*target, 3), np.uint8)
    make_resizer(rule, image.shape[:2], target)(image, out)
    return out


def make_image(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def parse(key):
    mode, antialias, *edges = key.split('/')
    source, target = (tuple(int(edge) for edge in text.split('x')) for text in edges)
    return mode, antialias == 'True', source, target


@settings(max_examples=150)
@given(source=sizes, target=sizes, filter_=st.sampled_from(sorted(PIL)), seed=st.integers(0, 99))
def test_pil_is_bit_exact(source, target, filter_, seed):
    image = make_image(source, seed)
    pillow = Image.fromarray(image)
    expected = pillow.resize((target[1], source[0]), PIL[filter_]).resize(
        target[::-1], PIL[filter_]
    )
    if PILLOW_MAJOR < 13:  # one call does the same there
        expected = pillow.resize(target[::-1], PIL[filter_])
    np.testing.assert_array_equal(resize(image, target, 'pil', filter_), np.asarray(expected))


def test_columns_come_before_rows_in_every_version_of_pillow():
    image = make_image((60, 18))
    pillow = Image.fromarray(image)
    columns_first = np.asarray(pillow.resize((40, 60), 3).resize((40, 14), 3))
    rows_first = np.asarray(pillow.resize((18, 14), 3).resize((40, 14), 3))
    assert (columns_first != rows_first).any()
    np.testing.assert_array_equal(resize(image, (14, 40), 'pil', 'bicubic'), columns_first)


@given(source=sizes, target=sizes, filter_=st.sampled_from(sorted(OPENCV)))
def test_opencv_is_bit_exact(source, target, filter_):
    image = make_image(source)
    expected = cv2.resize(image, target[::-1], interpolation=OPENCV[filter_])
    np.testing.assert_array_equal(resize(image, target, 'opencv', filter_), expected)


@pytest.mark.parametrize('key', KEYS)
def test_torchvision_within_its_limit(key):
    mode, antialias, source, target = parse(key)
    image = make_image(source, GOLDEN_SEED)
    got = resize(image, target, 'torchvision', mode, antialias=antialias)
    assert np.abs(got.astype(int) - GOLDEN[key]).max() <= RESIZE_LIMITS['torchvision'][mode]


def test_the_golden_file_says_where_it_comes_from_and_covers_every_mode():
    assert str(GOLDEN['version']).startswith('torchvision 0.')
    assert {parse(key)[:2] for key in KEYS} == {
        ('nearest', False),
        ('bilinear', True),
        ('bilinear', False),
        ('bicubic', True),
        ('bicubic', False),
    }


@pytest.mark.parametrize(
    ('library', 'filter_', 'antialias'),
    [
        ('pil', 'bilinear', True),
        ('opencv', 'area', True),
        ('torchvision', 'nearest', True),
        ('torchvision', 'bicubic', True),
        ('torchvision', 'bilinear', False),
    ],
)
def test_a_crop_is_resized_without_its_surroundings_into_a_part_of_a_buffer(
    library, filter_, antialias
):
    image = make_image((60, 80))
    crop = image[10:50, 20:70]
    expected = resize(crop.copy(), (16, 24), library, filter_, antialias=antialias)
    canvas = np.full((30, 40, 3), 77, np.uint8)
    rule = Resize(height=1, width=1, library=library, filter=filter_, antialias=antialias)

    make_resizer(rule, (40, 50), (16, 24))(crop, canvas[3:19, 5:29])

    np.testing.assert_array_equal(canvas[3:19, 5:29], expected)
    canvas[3:19, 5:29] = 77
    assert (canvas == 77).all()


def test_a_resizer_forgets_the_image_before():
    rule = Resize(height=1, width=1, library='pil')
    resizer = make_resizer(rule, (40, 50), (16, 24))
    first, second = np.zeros((16, 24, 3), np.uint8), np.zeros((16, 24, 3), np.uint8)
    resizer(make_image((40, 50), 1), first)
    resizer(make_image((40, 50), 2), second)
    np.testing.assert_array_equal(
        second, resize(make_image((40, 50), 2), (16, 24), 'pil', 'bilinear')
    )
    assert (first != second).any()
