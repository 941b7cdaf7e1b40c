# SPDX-License-Identifier: Apache-2.0
"""JPEG and PNG: decoded as OpenCV and Pillow do, whole or not at all."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.preprocess.decode import MAX_EDGE_PX, checked_size, decode_rgb


def make_image(height=40, width=56, channels=3):
    noise = np.random.default_rng(3).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1).reshape(height, width, channels)


def save(image, file_format, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, file_format, **options)
    return buffer.getvalue()


def make_frame(encoding, data):
    return Frame('front', 5, encoding, 0, 0, 0, np.frombuffer(data, np.uint8))


JPEG = save(make_image(), 'JPEG', quality=90)
# A preview inside the file brings an end-of-image marker of its own.
JPEG_WITH_PREVIEW = JPEG[:2] + b'\xff\xe1\x00\x08..\xff\xd9..' + JPEG[2:]
PNG = save(make_image(), 'PNG')


@pytest.mark.parametrize('with_out', [False, True])
@pytest.mark.parametrize(
    'data',
    [
        JPEG,
        JPEG_WITH_PREVIEW,
        JPEG + bytes(300),
        save(make_image(), 'JPEG', quality=90, progressive=True),
        save(make_image()[..., 0], 'JPEG'),
    ],
    ids=['baseline', 'preview', 'zeros_after', 'progressive', 'gray'],
)
def test_jpeg_equals_pillow(data, with_out):
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(int)
    out = np.zeros((40, 56, 3), np.uint8) if with_out else None
    image = decode_rgb(make_frame('jpeg', data), out)
    assert image is out or out is None
    assert np.abs(image - expected).max() <= 4  # the two carry libjpegs of their own
    assert np.abs(image - expected).mean() < 0.5


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L'])
def test_png_is_exact(mode):
    image = Image.fromarray(make_image()).convert(mode)
    data = io.BytesIO()
    image.save(data, 'PNG')
    decoded = decode_rgb(make_frame('png', data.getvalue()))
    np.testing.assert_array_equal(decoded, np.asarray(image.convert('RGB')))


def test_png_of_16_bits_keeps_the_high_byte():
    values = np.random.default_rng(0).integers(0, 65536, (6, 7), np.uint16)
    data = cv2.imencode('.png', values)[1].tobytes()
    decoded = decode_rgb(make_frame('png', data))
    np.testing.assert_array_equal(decoded[..., 0], values >> 8)


def test_the_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(make_image(), 'JPEG', quality=90, exif=exif.tobytes())
    np.testing.assert_array_equal(
        decode_rgb(make_frame('jpeg', turned)), decode_rgb(make_frame('jpeg', JPEG))
    )


@pytest.mark.parametrize(
    ('encoding', 'data'), [('jpeg', JPEG), ('jpeg', JPEG_WITH_PREVIEW), ('png', PNG)]
)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(encoding, data, share):
    with pytest.raises(ImageError) as caught:
        decode_rgb(make_frame(encoding, data[: int(share * len(data))]))
    assert caught.value.code in (f'truncated_{encoding}', f'bad_{encoding}')


@pytest.mark.parametrize(
    ('encoding', 'data'), [('jpeg', JPEG), ('jpeg', JPEG_WITH_PREVIEW), ('png', PNG)]
)
@pytest.mark.parametrize('missing', [1, 2, 12, 500])
def test_a_file_without_its_end_is_called_truncated(encoding, data, missing):
    assert encoding == 'png' or b'\xff\xda' in data[:-missing]  # the cut lies in the picture
    with pytest.raises(ImageError, match='without the end of the image') as caught:
        checked_size(make_frame(encoding, data[:-missing]))
    assert caught.value.code == f'truncated_{encoding}'


def test_an_earlier_frame_does_not_shine_through_a_bad_one():
    damaged = bytearray(PNG)
    damaged[len(PNG) // 2] ^= 0x55
    out = np.full((40, 56, 3), 9, np.uint8)
    with pytest.raises(ImageError) as caught:
        decode_rgb(make_frame('png', bytes(damaged)), out)
    assert caught.value.code == 'bad_png'
    assert (out == 9).all()


@pytest.mark.parametrize(
    ('encoding', 'data'), [('jpeg', PNG), ('png', JPEG), ('jpeg', b''), ('png', b'')]
)
def test_another_format_is_refused(encoding, data):
    with pytest.raises(ImageError) as caught:
        decode_rgb(make_frame(encoding, data))
    assert caught.value.code == f'bad_{encoding}'


def test_sizes_are_read_before_anything_is_decoded():
    assert checked_size(make_frame('jpeg', JPEG)) == (40, 56)
    assert checked_size(make_frame('png', PNG)) == (40, 56)


def test_a_header_of_an_impossible_size_is_refused():
    huge = bytearray(PNG)
    huge[16:20] = (MAX_EDGE_PX + 1).to_bytes(4, 'big')
    with pytest.raises(ImageError) as caught:
        decode_rgb(make_frame('png', bytes(huge)))
    assert caught.value.code == 'bad_size'
