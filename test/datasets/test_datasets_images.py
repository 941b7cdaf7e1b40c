# SPDX-License-Identifier: Apache-2.0
"""Raw, JPEG and PNG images become RGB."""

import cv2
import numpy as np
import pytest

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.datasets.images import ImageDecoder
from vla_policy_ros.preprocess.decode import decode_rgb

RGB = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
FROM_RGB = {
    'rgb8': lambda image: image,
    'bgr8': lambda image: image[..., ::-1],
    'rgba8': lambda image: np.dstack([image, np.full(image.shape[:2], 9, np.uint8)]),
    'bgra8': lambda image: np.dstack([image[..., ::-1], np.full(image.shape[:2], 9, np.uint8)]),
    'mono8': lambda image: image[..., :1],
}


@pytest.mark.parametrize('padding', [0, 7])
@pytest.mark.parametrize('encoding', FROM_RGB)
def test_raw_pixels(encoding, padding):
    rows = FROM_RGB[encoding](RGB).reshape(6, -1)
    data = np.pad(rows, ((0, 0), (0, padding)), constant_values=1).reshape(-1)
    data.flags.writeable = False
    size = {'height': 6, 'width': 10, 'step_bytes': rows.shape[1] + padding}
    image = ImageDecoder('t').decode_raw(encoding, data, **size)
    wanted = np.repeat(RGB[..., :1], 3, axis=2) if encoding == 'mono8' else RGB
    np.testing.assert_array_equal(image, wanted)


@pytest.mark.parametrize('is_bigendian', [False, True])
@pytest.mark.parametrize('encoding', ['yuv422', 'bayer_rggb8', 'nv12', 'rgb16'])
def test_a_recorded_image_is_decoded_as_a_live_one(encoding, is_bigendian):
    row_bytes = {'bayer_rggb8': 10, 'nv12': 10, 'yuv422': 20, 'rgb16': 60}[encoding]
    data = np.random.default_rng(1).integers(0, 256, 9 * row_bytes, np.uint8)
    image = {'height': 6, 'width': 10, 'step_bytes': row_bytes, 'is_bigendian': is_bigendian}
    live = decode_rgb(Frame('c', 0, encoding=encoding, data=data, **image))
    np.testing.assert_array_equal(ImageDecoder('t').decode_raw(encoding, data, **image), live)


def test_the_buffer_is_reused_until_the_size_changes():
    decoder = ImageDecoder('t')

    def decode(image):
        size = {
            'height': image.shape[0],
            'width': image.shape[1],
            'step_bytes': image.shape[1] * 3,
        }
        return decoder.decode_raw('bgr8', image.reshape(-1), **size)

    first = decode(RGB)
    assert decode(RGB) is first
    assert decode(RGB[:4]).shape == (4, 10, 3)


def test_png_is_exact_and_jpeg_close():
    bgr = cv2.resize(RGB[..., ::-1], (80, 48), interpolation=cv2.INTER_CUBIC)
    png = cv2.imencode('.png', bgr)[1].tobytes()
    np.testing.assert_array_equal(ImageDecoder('t').decode_file(png), bgr[..., ::-1])
    jpeg = cv2.imencode('.jpg', bgr)[1].tobytes()
    decoded = ImageDecoder('t').decode_file(jpeg + b'\0\0').astype(int)
    assert np.abs(decoded - bgr[..., ::-1]).mean() < 10


@pytest.mark.parametrize(
    ('data', 'code'),
    [
        (cv2.imencode('.png', RGB)[1].tobytes()[:-3], 'broken_image'),
        (cv2.imencode('.jpg', RGB)[1].tobytes()[:-3], 'broken_image'),
        (b'\xff\xd8nonsense\xff\xd9', 'broken_image'),
        (b'GIF89a', 'unknown_encoding'),
        (b'', 'unknown_encoding'),
    ],
)
def test_files_that_do_not_decode(data, code):
    with pytest.raises(DatasetError, match='here: ') as fault:
        ImageDecoder('here').decode_file(data)
    assert fault.value.code == code


@pytest.mark.parametrize(
    ('change', 'code'),
    [
        ({'encoding': '16UC1'}, 'unknown_encoding'),
        ({'height': 7}, 'broken_image'),
        ({'height': 0}, 'broken_image'),
        ({'width': 11}, 'broken_image'),
        ({'step_bytes': 29}, 'broken_image'),
        ({'encoding': 'yuv422_yuy2', 'width': 9}, 'broken_image'),
    ],
)
def test_raw_pixels_that_do_not_fit(change, code):
    settings = {'encoding': 'rgb8', 'height': 6, 'width': 10, 'step_bytes': 30, **change}
    with pytest.raises(DatasetError) as fault:
        ImageDecoder('here').decode_raw(settings.pop('encoding'), RGB.reshape(-1), **settings)
    assert fault.value.code == code
