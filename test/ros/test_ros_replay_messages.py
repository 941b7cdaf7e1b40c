# SPDX-License-Identifier: Apache-2.0
import math

import cv2
import numpy as np
import pytest

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.preprocess.decode import ENCODINGS, compressed_encoding, decode_rgb
from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.faults import Fault
from vla_policy_ros.ros.replay_messages import image_message, joint_message, shifted_stamp

pytestmark = pytest.mark.ros

STAMP_NS = 5_000_000_001
IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
NAMES = ('elbow', 'wrist', 'gripper')


def make(*faults, jpeg_quality=None, image=IMAGE):
    return image_message(
        image, camera='front', stamp_ns=STAMP_NS, jpeg_quality=jpeg_quality, faults=faults
    )


def joints(*faults):
    positions = np.array([0.1, 0.2, 0.3], np.float32)
    return joint_message(NAMES, positions, stamp_ns=STAMP_NS, faults=faults)


def test_raw_image_holds_the_picture():
    message = make()
    assert (message.height, message.width, message.step, message.encoding) == (4, 6, 18, 'rgb8')
    assert (message.header.frame_id, to_ns(message.header.stamp)) == ('front', STAMP_NS)
    assert message.data.tobytes() == IMAGE.tobytes()


def test_raw_image_of_a_view_holds_the_picture():
    assert make(image=IMAGE[:, ::-1]).data.tobytes() == IMAGE[:, ::-1].tobytes()


def test_compressed_image_decodes_to_the_picture():
    smooth = np.full((16, 16, 3), (200, 100, 30), np.uint8)
    message = make(jpeg_quality=95, image=smooth)
    data = np.frombuffer(message.data, np.uint8)
    frame = Frame('front', 1, compressed_encoding(message.format), 0, 0, 0, data)
    assert frame.encoding == 'jpeg'
    np.testing.assert_allclose(decode_rgb(frame).astype(int), smooth, atol=3)
    worse = make(jpeg_quality=5, image=cv2.resize(IMAGE, (64, 64)))
    better = make(jpeg_quality=95, image=cv2.resize(IMAGE, (64, 64)))
    assert len(worse.data) < len(better.data)


def test_truncate_ends_the_data_early():
    fault = Fault('truncate', 'front', 0, 0)
    assert make(fault).data.tobytes() == IMAGE.tobytes()[:36]
    message = make(fault, jpeg_quality=90)
    frame = Frame('front', 1, 'jpeg', 0, 0, 0, np.frombuffer(message.data, np.uint8))
    with pytest.raises(ImageError) as refusal:
        decode_rgb(frame)
    assert refusal.value.code == 'truncated_jpeg'


def test_encoding_becomes_one_that_nobody_knows():
    fault = Fault('encoding', 'front', 0, 0)
    assert make(fault).encoding not in ENCODINGS
    with pytest.raises(ImageError):
        compressed_encoding(make(fault, jpeg_quality=90).format)


@pytest.mark.parametrize(
    ('faults', 'stamp_ns'),
    [
        ((), STAMP_NS),
        ((Fault('zero_stamp', 'front'),), 0),
        ((Fault('delay', 'front', value_s=0.2),), STAMP_NS - 200_000_000),
        ((Fault('jump', 'all', value_s=-5.0),), 1),
        ((Fault('jump', 'all', value_s=1.0), Fault('delay', 'front', value_s=2.0)), 4_000_000_001),
    ],
)
def test_stamps_shift(faults, stamp_ns):
    assert shifted_stamp(STAMP_NS, faults) == stamp_ns


def test_joint_state_holds_names_and_positions():
    message = joints()
    assert message.name == list(NAMES)
    assert message.position.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert to_ns(message.header.stamp) == STAMP_NS


def test_a_joint_can_be_missing_or_no_number():
    message = joints(Fault('missing', 'elbow'), Fault('nan', 'gripper'))
    assert message.name == ['wrist', 'gripper']
    assert message.position[0] == pytest.approx(0.2)
    assert math.isnan(message.position[1])


@pytest.mark.parametrize('target', ['all', 'joint_states'])
def test_all_joints_can_be_hit(target):
    assert all(map(math.isnan, joints(Fault('nan', target)).position))
    assert joints(Fault('missing', target)).name == []
