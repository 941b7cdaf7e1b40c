# SPDX-License-Identifier: Apache-2.0
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.ros.cdr import read_compressed_image, read_image

pytestmark = pytest.mark.ros

NAMES = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=9)


def make_image(frame_id='cam', encoding='rgb8', height=3, width=5, pad=0):
    message = Image(
        height=height, width=width, encoding=encoding, step=width * 3 + pad, is_bigendian=1
    )
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = 12, 345
    message.data = bytes(range(height * (width * 3 + pad)))
    return message


@given(frame_id=NAMES, encoding=NAMES, pad=st.integers(0, 3))
def test_image_equals_the_deserialised_message(frame_id, encoding, pad):
    raw = serialize_message(make_image(frame_id, encoding, pad=pad))
    message = deserialize_message(raw, Image)
    frame = read_image(raw, 'front')
    assert frame.camera == 'front'
    assert frame.stamp_ns == 12_000_000_345
    assert (frame.height, frame.width) == (message.height, message.width)
    assert frame.encoding == message.encoding
    assert frame.step_bytes == message.step == 15 + pad
    assert frame.is_bigendian is True
    assert frame.data.tobytes() == message.data.tobytes()


@given(frame_id=NAMES, image_format=NAMES, data=st.binary(max_size=20))
def test_compressed_image_equals_the_deserialised_message(frame_id, image_format, data):
    message = CompressedImage(format=image_format, data=data)
    message.header.frame_id = frame_id
    message.header.stamp.sec = 7
    stamp_ns, read_format, read_data = read_compressed_image(serialize_message(message), 'front')
    assert (stamp_ns, read_format, read_data.tobytes()) == (7_000_000_000, image_format, data)


def test_pixels_are_a_view_of_the_message():
    raw = serialize_message(make_image())
    whole = np.frombuffer(raw, np.uint8)
    assert np.shares_memory(read_image(raw, 'front').data, whole)
    compressed = serialize_message(CompressedImage(format='jpeg', data=b'1234'))
    _, _, data = read_compressed_image(compressed, 'front')
    assert np.shares_memory(data, np.frombuffer(compressed, np.uint8))


def test_the_header_tells_the_byte_order():
    """Fast DDS writes the machine's order, so the other one is built by hand."""
    parts = [
        struct.pack('>iI', 12, 345),  # stamp
        struct.pack('>I', 4) + b'cam\0',  # frame id, which ends aligned
        struct.pack('>II', 1, 2),  # height, width
        struct.pack('>I', 6) + b'bgr16\0' + b'\1' + b'\0',  # encoding, is_bigendian, padding
        struct.pack('>I', 12) + struct.pack('>I', 12) + bytes(range(12)),  # step, data
    ]
    frame = read_image(b'\0\0\0\0' + b''.join(parts), 'front')
    assert (frame.stamp_ns, frame.height, frame.width) == (12_000_000_345, 1, 2)
    assert (frame.encoding, frame.is_bigendian, frame.step_bytes) == ('bgr16', True, 12)
    assert frame.data.tolist() == list(range(12))


def test_an_image_without_pixels_is_read():
    frame = read_image(serialize_message(Image(encoding='rgb8')), 'front')
    assert frame.data.size == 0


def test_every_truncation_is_refused():
    raw = serialize_message(make_image(pad=1))
    end = len(raw) - 3  # the serialiser may pad the end
    for length in range(end):
        with pytest.raises(ImageError, match="camera 'front'") as refusal:
            read_image(raw[:length], 'front')
        assert refusal.value.code == 'bad_message'
    compressed = serialize_message(CompressedImage(format='jpeg', data=b'12345678'))
    for length in range(len(compressed) - 3):
        with pytest.raises(ImageError) as refusal:
            read_compressed_image(compressed[:length], 'front')
        assert refusal.value.code == 'bad_message'
