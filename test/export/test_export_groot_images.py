# SPDX-License-Identifier: Apache-2.0
"""The library's way of an image as steps of a bundle, read from what looks like its transformations."""

from types import SimpleNamespace

import numpy as np
import pytest

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.export.groot.images import read_geometry
from vla_policy_ros.preprocess.geometry import GeometryPlan


def part(name, **values):
    made = type(name, (), {})()
    vars(made).update(values)
    return made


def chain(*parts):
    return SimpleNamespace(transforms=list(parts))


def area(edge):
    return part('SmallestMaxSize', max_size=[edge], interpolation=3)


SQUARE = part('LetterBoxPad')
CROP = part('FractionalCenterCrop', crop_fraction=0.95)


@pytest.mark.parametrize(
    ('transform', 'size', 'wanted'),
    [
        (chain(area(256), CROP, area(256)), (480, 640), (256, 340)),
        (chain(area(256), CROP, area(256)), (720, 1280), (256, 455)),
        (
            chain(area(256), CROP, area(256)),
            (360, 638),
            (256, 454),
        ),  # where a cut-off would give 453
        (chain(SQUARE, area(256), CROP, area(256)), (480, 640), (256, 256)),
        (chain(SQUARE, area(256), CROP, area(256)), (256, 256), (256, 256)),
    ],
)
def test_geometry(transform, size, wanted):
    steps, found = read_geometry(transform, size)
    assert found == wanted
    camera = Camera(name='c', tensor='t', geometry=steps)
    for other in (size, (size[0] // 2, size[1] // 2)):  # another camera with the same aspect
        image = np.full((*other, 3), 7, np.uint8)
        plan = GeometryPlan(camera.geometry, other, where='c')
        assert plan.run(image).shape == (*wanted, 3)
        assert plan.size == wanted


def test_letterbox_is_black_around_the_image():
    steps, _ = read_geometry(chain(SQUARE), (2, 5))
    camera = Camera(name='c', tensor='t', geometry=steps)
    result = GeometryPlan(camera.geometry, (2, 5), where='c').run(np.full((2, 5, 3), 9, np.uint8))
    assert result[..., 0].tolist() == [[0] * 5, [9] * 5, [9] * 5, [0] * 5, [0] * 5]


def test_geometry_of_torchvision():
    resize = part(
        'Resize', size=[256, 256], interpolation=SimpleNamespace(value='bilinear'), antialias=True
    )
    transform = chain(
        part('ToImage'), part('LetterBoxTransform'), resize, part('CenterCrop', size=(229, 230))
    )
    steps, size = read_geometry(transform, (480, 640))
    assert size == (229, 230)
    assert [step['kind'] for step in steps] == ['resize', 'pad', 'resize', 'crop']
    assert steps[-1] == {'kind': 'crop', 'top': 14, 'left': 13, 'height': 229, 'width': 230}


@pytest.mark.parametrize(
    ('wrong', 'text'),
    [
        (part('Rotate'), 'Rotate'),
        (part('SmallestMaxSize', max_size=5, interpolation=4), 'interpolation 4'),
        (part('CenterCrop', size=(99, 2)), 'CenterCrop'),
        (
            part(
                'Resize', size=[9], interpolation=SimpleNamespace(value='bilinear'), antialias=True
            ),
            'Resize',
        ),
    ],
)
def test_unknown_transformation_is_refused(wrong, text):
    with pytest.raises(BundleError, match=text) as error:
        read_geometry(chain(wrong), (48, 64))
    assert error.value.code == 'unknown_transform'
