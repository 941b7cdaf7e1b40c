# SPDX-License-Identifier: Apache-2.0
"""The whole way from a frame to the tensor, against the same steps written with Pillow, OpenCV and numpy."""

import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.errors import ImageError, SpecMismatchError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.preprocess.camera import CameraPreprocessor
from vla_policy_ros.preprocess.limits import ELEMENT_LIMITS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZE = {'kind': 'resize', 'height': 24, 'width': 32}


def make_camera(geometry=(RESIZE,), **settings):
    return Camera(name='front', tensor='images.front', geometry=geometry, **settings)


def make_image(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def run(camera, frame):
    preprocessor = CameraPreprocessor(camera)
    out = np.full(preprocessor.image_shape, 77, preprocessor.dtype)
    preprocessor.run(frame, out)
    return out


def normalized(image, dtype):
    """What training code does: float32 all the way."""
    if dtype == 'uint8':
        return image
    values = image.astype(np.float32) / np.float32(255)
    return (values - np.array(MEAN, np.float32)) / np.array(STD, np.float32)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', 'uint8'])
@pytest.mark.parametrize('layout', ['chw', 'hwc'])
@pytest.mark.parametrize('color', ['rgb', 'bgr'])
def test_colour_scale_mean_std_layout_and_type(color, layout, dtype):
    image = make_image()
    small = np.asarray(Image.fromarray(image).resize((32, 24), 2))
    expected = normalized(small if color == 'rgb' else small[..., ::-1], dtype)
    expected = expected.transpose(2, 0, 1) if layout == 'chw' else expected

    camera = make_camera(color=color, layout=layout, dtype=dtype, mean=MEAN, std=STD)
    out = run(camera, Frame.from_rgb('front', 0, image))

    assert out.dtype.name == dtype
    assert out.shape == ((3, 24, 32) if layout == 'chw' else (24, 32, 3))
    difference = np.abs(out.astype(np.float64) - expected)
    assert difference.max() <= ELEMENT_LIMITS[dtype]


def test_values_are_the_nearest_float32():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    geometry = [{'kind': 'crop', 'top': 0, 'left': 0, 'height': 16, 'width': 16}]
    out = run(make_camera(geometry, mean=MEAN, std=STD), Frame.from_rgb('front', 0, levels))
    exact = (np.arange(256)[None] / 255 - np.array(MEAN)[:, None]) / np.array(STD)[:, None]
    np.testing.assert_array_equal(out.reshape(3, 256), exact.astype(np.float32))


def test_bfloat16_is_the_nearest_and_even_on_a_tie():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    geometry = [{'kind': 'crop', 'top': 0, 'left': 0, 'height': 16, 'width': 16}]
    # 1 + level / 256 has one bit more than bfloat16 holds, so every odd level is a tie.
    camera = make_camera(geometry, dtype='bfloat16', scale=1 / 256, mean=(-1, -1, -1))
    out = run(camera, Frame.from_rgb('front', 0, levels)).reshape(3, 256).astype(np.float64)
    expected = np.round((1 + np.arange(256) / 256) * 128) / 128  # numpy rounds ties to even
    np.testing.assert_array_equal(out, np.broadcast_to(expected, (3, 256)))


def patches_of(image, patch, merge, temporal):
    """(H, W, 3) pixels to rows of patches, patch by patch: the windows, then the patches in each."""
    window = patch * merge
    rows = []
    for top, left in np.ndindex(image.shape[0] // window, image.shape[1] // window):
        for row, column in np.ndindex(merge, merge):
            y, x = top * window + row * patch, left * window + column * patch
            pixels = image[y : y + patch, x : x + patch].transpose(2, 0, 1)
            rows.append(np.stack([pixels] * temporal, axis=1).reshape(-1))
    return np.array(rows)


@pytest.mark.parametrize(('patch', 'merge', 'temporal'), [(4, 2, 2), (8, 1, 1), (2, 4, 3)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'uint8'])
def test_patches_are_those_of_the_windows_one_after_another(patch, merge, temporal, dtype):
    settings = {'mean': MEAN, 'std': STD, 'dtype': dtype, 'color': 'bgr'}
    frame = Frame.from_rgb('front', 0, make_image())
    pixels = run(make_camera(layout='hwc', **settings), frame)
    layout = {'patch_size': patch, 'merge_size': merge, 'temporal': temporal}
    out = run(make_camera(layout='patches', **layout, **settings), frame)
    np.testing.assert_array_equal(out, patches_of(pixels, patch, merge, temporal))


def test_the_geometry_of_gr00t_n1_7():
    image = make_image(96, 128)
    small = cv2.resize(image, (85, 64), interpolation=cv2.INTER_AREA)
    crop = small[2:62, 2:82]  # floor(0.95 * 64) = 60, floor(0.95 * 85) = 80
    expected = cv2.resize(crop, (64, 64), interpolation=cv2.INTER_AREA)
    area = {'kind': 'resize', 'library': 'opencv', 'filter': 'area', 'height': 64, 'width': 64}
    geometry = [
        {**area, 'to': 'shortest_edge'},
        {'kind': 'center_crop', 'fraction': 0.95},
        area,
    ]
    camera = make_camera(geometry, layout='hwc', dtype='uint8')
    np.testing.assert_array_equal(run(camera, Frame.from_rgb('front', 0, image)), expected)


@pytest.mark.parametrize('encoding', ['bgr8', 'rgba8', 'png'])
def test_other_encodings_of_the_same_picture_give_the_same_tensor(encoding):
    image = make_image()
    if encoding == 'png':
        data = cv2.imencode('.png', image[..., ::-1])[1].reshape(-1)
        frame = Frame('front', 0, 'png', 0, 0, 0, data)
    else:
        code = cv2.COLOR_RGB2BGR if encoding == 'bgr8' else cv2.COLOR_RGB2RGBA
        pixels = cv2.cvtColor(image, code)
        step = pixels.shape[1] * pixels.shape[2]
        frame = Frame('front', 0, encoding, 48, 64, step, pixels.reshape(-1))
    camera = make_camera()
    np.testing.assert_array_equal(
        run(camera, frame), run(camera, Frame.from_rgb('front', 0, image))
    )


def test_one_preprocessor_follows_a_change_of_size_and_of_picture():
    preprocessor = CameraPreprocessor(make_camera())
    out = np.empty((3, 24, 32), np.float32)
    for seed, size in enumerate([(48, 64), (48, 64), (30, 30), (96, 128), (48, 64)]):
        frame = Frame.from_rgb('front', 0, make_image(*size, seed=seed))
        preprocessor.run(frame, out)
        np.testing.assert_array_equal(out, run(make_camera(), frame))


@pytest.mark.parametrize('layout', ['chw', 'hwc'])
def test_an_entry_of_a_longer_history_is_written_and_nothing_else(layout):
    camera = make_camera(layout=layout, history_ns=(-100, 0))
    preprocessor = CameraPreprocessor(camera)
    shape = preprocessor.image_shape
    tensor = np.full((1, 2, *shape), 7.0, np.float32)
    frame = Frame.from_rgb('front', 0, make_image())
    preprocessor.run(frame, tensor[0, 1])
    np.testing.assert_array_equal(tensor[0, 1], run(camera, frame))
    assert (tensor[0, 0] == 7).all()


def test_out_of_another_shape_or_type_is_refused():
    preprocessor = CameraPreprocessor(make_camera())
    frame = Frame.from_rgb('front', 0, make_image())
    for out in (np.empty((24, 32, 3), np.float32), np.empty((3, 24, 32), np.float64)):
        with pytest.raises(SpecMismatchError, match=r'images\.front'):
            preprocessor.run(frame, out)


def test_a_crop_that_does_not_fit_names_the_camera_and_the_next_frame_works():
    geometry = [{'kind': 'crop', 'top': 0, 'left': 0, 'height': 40, 'width': 40}]
    preprocessor = CameraPreprocessor(make_camera(geometry))
    out = np.empty((3, 40, 40), np.float32)
    with pytest.raises(ImageError, match=r"camera 'front', geometry\[0\]"):
        preprocessor.run(Frame.from_rgb('front', 0, make_image(30, 64)), out)
    frame = Frame.from_rgb('front', 0, make_image())
    preprocessor.run(frame, out)
    np.testing.assert_array_equal(out, run(make_camera(geometry), frame))


def test_a_broken_frame_leaves_the_tensor_alone():
    preprocessor = CameraPreprocessor(make_camera())
    out = np.full((3, 24, 32), 7, np.float32)
    with pytest.raises(ImageError):
        preprocessor.run(Frame('front', 0, 'bgr8', 48, 64, 192, np.zeros(100, np.uint8)), out)
    assert (out == 7).all()


@pytest.mark.parametrize(
    ('library', 'filter_', 'limit_bytes'),
    [
        ('opencv', 'bilinear', 64 * 1024),
        ('opencv', 'area', 64 * 1024),
        ('torchvision', 'nearest', 64 * 1024),
        # Pillow's result of four bytes per pixel, and once more while it is copied out.
        ('pil', 'bilinear', 64 * 1024 + 2 * 4 * 224 * 224),
    ],
)
@pytest.mark.parametrize('layout', [{}, {'layout': 'patches', 'patch_size': 14, 'merge_size': 2}])
@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8'])
def test_nothing_of_the_images_size_is_allocated_in_steady_state(
    encoding, layout, library, filter_, limit_bytes
):
    geometry = [
        {'kind': 'center_crop', 'fraction': 0.95},
        {**RESIZE, 'height': 168, 'width': 224, 'library': library, 'filter': filter_},
        {'kind': 'pad', 'height': 224, 'width': 224},
    ]
    preprocessor = CameraPreprocessor(make_camera(geometry, mean=MEAN, std=STD, **layout))
    out = np.empty(preprocessor.image_shape, np.float32)
    data = make_image(480, 640).reshape(-1)
    frame = Frame('front', 0, encoding, 480, 640, 1920, data)
    preprocessor.run(frame, out)
    tracemalloc.start()
    preprocessor.run(frame, out)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < limit_bytes
