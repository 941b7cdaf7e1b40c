# SPDX-License-Identifier: Apache-2.0
"""Every encoding, with padded rows, against colours that are known and against OpenCV."""

import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.core.errors import ImageError, SpecMismatchError
from vla_policy_ros.core.frame import COMPRESSED_ENCODINGS, Frame
from vla_policy_ros.preprocess.decode import (
    ENCODINGS,
    MAX_EDGE_PX,
    checked_size,
    compressed_encoding,
    decode_rgb,
)

HEIGHT, WIDTH = 8, 12
RGB = (200, 100, 50)
RAW = tuple(name for name in ENCODINGS if name not in COMPRESSED_ENCODINGS)
YUV422 = ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv')
GRAY = ('mono8', '8UC1', 'mono16')


def yuv(rgb):
    """BT.601, limited range, in float: written out, so that it does not lean on OpenCV."""
    r, g, b = rgb
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    return (
        round(16 + luma * 219 / 255),
        round(128 + (b - luma) * 224 / 255 / 1.772),
        round(128 + (r - luma) * 224 / 255 / 1.402),
    )


def pixels(encoding, height, width):
    """The bytes of an image of one colour, (rows, row bytes)."""
    r, g, b = RGB
    y, u, v = yuv(RGB)
    if encoding.startswith('bayer'):
        value = {'r': r, 'g': g, 'b': b}
        mosaic = np.array([value[c] for c in encoding[6:10]], np.uint8).reshape(2, 2)
        return np.tile(mosaic, (height // 2, width // 2))
    if encoding in ('nv12', 'nv21'):
        chroma = (u, v) if encoding == 'nv12' else (v, u)
        luma = np.full((height, width), y, np.uint8)
        return np.vstack([luma, np.tile(np.array(chroma, np.uint8), (height // 2, width // 2))])
    pattern = {
        'rgb8': (r, g, b),
        'bgr8': (b, g, r),
        '8UC3': (b, g, r),
        'rgba8': (r, g, b, 7),
        'bgra8': (b, g, r, 7),
        'mono8': (r,),
        '8UC1': (r,),
        'yuv422': (u, y, v, y),
        'uyvy': (u, y, v, y),
        'yuv422_yuy2': (y, u, y, v),
        'yuyv': (y, u, y, v),
        'mono16': (9, r),
        'rgb16': (9, r, 9, g, 9, b),
        'bgr16': (9, b, 9, g, 9, r),
    }[encoding]
    per_row = width // 2 if encoding in YUV422 else width
    return np.tile(np.array(pattern, np.uint8), (height, per_row))


def make_frame(encoding, rows, height, width, *, padding=0, is_bigendian=False):
    """A frame of the rows with garbage after each but the last one, read-only as a message may be."""
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE)
    data = padded.reshape(-1)[: padded.size - padding].copy()
    data.flags.writeable = False
    return Frame('front', 5, encoding, height, width, padded.shape[1], data, is_bigendian)


def raw_frame(encoding, *, height=HEIGHT, width=WIDTH, padding=0, **settings):
    rows = pixels(encoding, height, width)
    return make_frame(encoding, rows, height, width, padding=padding, **settings)


def file_frame(encoding, data):
    return Frame('front', 5, encoding, 0, 0, 0, np.frombuffer(bytes(data), np.uint8))


def encode(extension, image, *params):
    return cv2.imencode(extension, image, params)[1].tobytes()


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', RAW)
def test_one_colour_comes_out_of_every_encoding(encoding, padding):
    frame = raw_frame(encoding, padding=padding)
    expected = (RGB[0],) * 3 if encoding in GRAY else RGB
    tolerance = 2 if encoding in (*YUV422, 'nv12', 'nv21') else 0  # of rounding Y, U and V

    image = decode_rgb(frame)

    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= tolerance
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert decode_rgb(frame, out) is out
    np.testing.assert_array_equal(out, image)


@given(
    encoding=st.sampled_from(['bgr8', 'rgba8', 'bgra8', 'mono8', 'uyvy', 'yuyv', 'bayer_gbrg8']),
    height=st.integers(3, 20),
    half_width=st.integers(2, 12),
    padding=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_random_pixels_equal_opencv(encoding, height, half_width, padding, seed):
    channels, code = {
        'bgr8': (3, cv2.COLOR_BGR2RGB),
        'rgba8': (4, cv2.COLOR_RGBA2RGB),
        'bgra8': (4, cv2.COLOR_BGRA2RGB),
        'mono8': (1, cv2.COLOR_GRAY2RGB),
        'uyvy': (2, cv2.COLOR_YUV2RGB_UYVY),
        'yuyv': (2, cv2.COLOR_YUV2RGB_YUYV),
        'bayer_gbrg8': (1, cv2.COLOR_BAYER_GR2RGB),  # OpenCV names the second row's pair
    }[encoding]
    width = 2 * half_width
    rows = np.random.default_rng(seed).integers(0, 256, (height, width * channels), np.uint8)
    frame = make_frame(encoding, rows, height, width, padding=padding)

    shape = (height, width, channels) if channels > 1 else (height, width)
    np.testing.assert_array_equal(decode_rgb(frame), cv2.cvtColor(rows.reshape(shape), code))


@given(
    encoding=st.sampled_from(['mono16', 'rgb16', 'bgr16']),
    order=st.sampled_from(['<', '>']),
    padding=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_deep_formats_keep_the_high_byte_in_either_byte_order(encoding, order, padding, seed):
    channels = 1 if encoding == 'mono16' else 3
    values = np.random.default_rng(seed).integers(0, 65536, (4, 6, channels), np.uint16)
    rows = values.astype(f'{order}u2').view(np.uint8).reshape(4, -1)
    frame = make_frame(encoding, rows, 4, 6, padding=padding, is_bigendian=order == '>')

    expected = (values >> 8)[..., :: -1 if encoding == 'bgr16' else 1]
    np.testing.assert_array_equal(decode_rgb(frame), np.broadcast_to(expected, (4, 6, 3)))


@pytest.mark.parametrize('padding', [0, 5])
def test_rgb8_is_a_view_of_the_message(padding):
    frame = raw_frame('rgb8', padding=padding)
    image = decode_rgb(frame)
    assert np.shares_memory(image, frame.data)
    assert not image.flags.writeable


@pytest.mark.parametrize('encoding', RAW)
def test_nothing_of_the_images_size_is_allocated_when_out_is_given(encoding):
    frame = raw_frame(encoding, height=480, width=640)
    out = np.empty((480, 640, 3), np.uint8)
    decode_rgb(frame, out)
    tracemalloc.start()
    decode_rgb(frame, out)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 * 1024


@pytest.mark.parametrize('encoding', RAW)
def test_a_row_step_below_the_row_is_refused(encoding):
    frame = raw_frame(encoding)
    short = Frame('front', 5, encoding, HEIGHT, WIDTH, frame.step_bytes - 1, frame.data)
    with pytest.raises(ImageError, match='bytes per row') as caught:
        decode_rgb(short)
    assert caught.value.code == 'bad_step'


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', RAW)
def test_one_byte_too_few_is_refused(encoding, padding):
    frame = raw_frame(encoding, padding=padding)
    step = frame.step_bytes
    short = Frame('front', 5, encoding, HEIGHT, WIDTH, step, frame.data[:-1])
    with pytest.raises(ImageError, match="camera 'front' at 5 ns") as caught:
        decode_rgb(short)
    assert caught.value.code == 'short_data'


@pytest.mark.parametrize(
    ('encoding', 'height', 'width'),
    [
        ('rgb8', 0, 4),
        ('rgb8', 4, 0),
        ('rgb8', -2, 4),
        ('rgb8', 4, MAX_EDGE_PX + 1),
        ('uyvy', 4, 5),
        ('yuyv', 4, 5),
        ('nv12', 4, 5),
        ('nv12', 5, 4),
        ('nv21', 5, 4),
        ('bayer_rggb8', 2, 4),
    ],
)
def test_impossible_sizes_are_refused(encoding, height, width):
    frame = Frame('front', 5, encoding, height, width, 100, np.zeros(2000, np.uint8))
    with pytest.raises(ImageError) as caught:
        checked_size(frame)
    assert caught.value.code == 'bad_size'


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1', 'xyz8', ''])
def test_unknown_encodings_are_refused_with_the_known_ones(encoding):
    frame = Frame('front', 5, encoding, 4, 4, 16, np.zeros(64, np.uint8))
    with pytest.raises(ImageError) as caught:
        decode_rgb(frame)
    assert caught.value.code == 'unknown_encoding'
    assert 'bayer_rggb8' in caught.value.expected
    assert ('depth' in caught.value.got) == (encoding in ('16UC1', '32FC1'))


def test_out_of_another_shape_or_type_is_refused():
    frame = raw_frame('bgr8')
    for out in (np.empty((WIDTH, HEIGHT, 3), np.uint8), np.empty((HEIGHT, WIDTH, 3), np.float32)):
        with pytest.raises(SpecMismatchError):
            decode_rgb(frame, out)


@pytest.mark.parametrize(
    ('text', 'encoding'),
    [
        ('jpeg', 'jpeg'),
        ('JPG', 'jpeg'),
        ('png', 'png'),
        ('rgb8; jpeg compressed bgr8', 'jpeg'),
        ('bgr8; png compressed ', 'png'),
        ('mono8;jpeg compressed', 'jpeg'),
    ],
)
def test_format_fields_name_their_encoding(text, encoding):
    assert compressed_encoding(text) == encoding


@pytest.mark.parametrize('text', ['', ';', 'tiff', '16UC1; compressedDepth png', 'rgb8'])
def test_other_format_fields_are_refused(text):
    with pytest.raises(ImageError) as caught:
        compressed_encoding(text)
    assert caught.value.code == 'unknown_encoding'
