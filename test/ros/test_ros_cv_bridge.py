# SPDX-License-Identifier: Apache-2.0
"""The way through cv_bridge, with a stand-in for the library: it is no wheel, so the real one is not on every machine."""

import sys
import types

import numpy as np
import pytest

from vla_policy_ros.core.errors import ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.ros.cv_bridge_fallback import load_cv_bridge


class CvBridgeError(TypeError):
    """As cv_bridge raises it."""


class CvBridge:
    """Knows one encoding more than we do."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        if message.encoding != '32FC3':
            raise CvBridgeError(f'[{message.encoding}] is not a color format')
        assert desired_encoding == 'rgb8'
        values = np.frombuffer(message.data, np.float32)
        return values.reshape(message.height, message.width, 3).astype(np.uint8)


@pytest.fixture
def convert(monkeypatch):
    library = types.ModuleType('cv_bridge')
    library.CvBridge, library.CvBridgeError = CvBridge, CvBridgeError
    monkeypatch.setitem(sys.modules, 'cv_bridge', library)
    return load_cv_bridge()


def make_frame(encoding):
    data = np.arange(12, dtype=np.float32).view(np.uint8)
    return Frame('front', 7, encoding, 2, 2, 24, data)


def test_an_encoding_that_only_cv_bridge_knows_becomes_rgb8(convert):
    frame = convert(make_frame('32FC3'))
    assert (frame.camera, frame.stamp_ns, frame.encoding) == ('front', 7, 'rgb8')
    assert (frame.height, frame.width, frame.step_bytes) == (2, 2, 6)
    assert frame.data.tolist() == list(range(12))


def test_an_encoding_that_nobody_knows_is_refused(convert):
    with pytest.raises(ImageError, match='is not a color format') as raised:
        convert(make_frame('unknown16'))
    assert raised.value.code == 'unknown_encoding'


def test_without_the_library_there_is_no_converter(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv_bridge', None)
    assert load_cv_bridge() is None
