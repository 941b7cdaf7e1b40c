# SPDX-License-Identifier: Apache-2.0
"""From a received message to a chunk, nothing of an image's size is allocated per frame, and nothing stays behind."""

import struct
import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest
from support.policies import PATIENCE_S

from vla_policy_ros.core.clock import MonotonicClock
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.datasets.synthetic import SyntheticDataset
from vla_policy_ros.deployment.config import default_deployment
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.export.untrained import create_untrained_bundle
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.ros.cdr import read_compressed_image, read_image
from vla_policy_ros.runtime.pipeline import PolicyPipeline

HEIGHT, WIDTH = 480, 640
IMAGE_BYTES = HEIGHT * WIDTH * 3
CAMERAS = ('front', 'wrist')
JOINTS = [f'joint_{index}' for index in range(6)]
STEP_NS = 33_333_333
NUM_WARMUP, NUM_FRAMES = 40, 500
PIXEL_BYTES = {'rgb8': 3, 'bgr8': 3, 'rgba8': 4, 'yuv422_yuy2': 2, 'bayer_rggb8': 1}


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    dataset = SyntheticDataset(cameras=dict.fromkeys(CAMERAS, (HEIGHT, WIDTH)), num_joints=6)
    folder = tmp_path_factory.mktemp('memory') / 'bundle'
    return create_untrained_bundle(folder, dataset, horizon=16, image_size=64)


@pytest.fixture
def line(bundle):
    line = Line(bundle)
    yield line
    line.close()


class Line:
    """A policy and its pipeline, fed one whole set at a time; outcomes are counted and let go."""

    def __init__(self, bundle):
        self.policy = EnginePolicy(bundle, settings=EngineSettings(threads=1))
        self.num_chunks = self.num_refused = self.num_sets = 0
        self.pipeline = PolicyPipeline(
            self.policy,
            default_deployment(self.policy.spec, bundle='sample'),
            clock=MonotonicClock(),
            on_outcome=self._on_outcome,
        )
        self.pipeline.set_instruction('wave')
        self.pipeline.start()

    def _on_outcome(self, outcome):
        self.num_chunks += outcome.chunk is not None
        self.num_refused += outcome.chunk is None

    def run(self, read):
        """Offer the images that `read(camera, stamp_ns)` gives and one joint state; wait for the chunk."""
        self.num_sets += 1
        stamp_ns = self.num_sets * STEP_NS
        for camera in CAMERAS:
            self.pipeline.offer_frame(read(camera, stamp_ns))
        self.pipeline.offer_joints(0, stamp_ns, JOINTS, np.zeros(len(JOINTS)))
        assert self.pipeline.drain(PATIENCE_S)

    def close(self):
        assert self.pipeline.stop(PATIENCE_S)
        self.policy.close()


def cdr(*fields):
    """Return fields in little-endian CDR: numbers as 32 bits, flags as one byte, strings, and bytes."""
    body = b''
    for field in fields:
        if isinstance(field, bool):
            body += bytes([field])
            continue
        body += b'\0' * (-len(body) % 4)
        if isinstance(field, int):
            body += struct.pack('<I', field)
        else:
            data = field.encode() + b'\0' if isinstance(field, str) else field
            body += struct.pack('<I', len(data)) + data
    return b'\0\1\0\0' + body


def image_message(encoding):
    """Return a serialised `sensor_msgs/Image` of noise."""
    step = WIDTH * PIXEL_BYTES[encoding]
    pixels = np.random.default_rng(0).integers(0, 256, HEIGHT * step, np.uint8).tobytes()
    return cdr(1, 0, 'camera', HEIGHT, WIDTH, encoding, False, step, pixels)


def compressed_message():
    """Return a serialised `sensor_msgs/CompressedImage` with a JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    data = cv2.imencode('.jpg', cv2.resize(noise, (WIDTH, HEIGHT)))[1]
    return cdr(1, 0, 'camera', 'jpeg', data.tobytes())


def measure(line, read, num_frames):
    """Return the highest peak of one set above what was held before it, and what is held after each, in bytes."""
    for _ in range(NUM_WARMUP):
        line.run(read)
    peaks, held = np.zeros((2, num_frames), np.int64)
    tracemalloc.start()
    try:
        for index in range(num_frames):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            line.run(read)
            after, peak = tracemalloc.get_traced_memory()
            peaks[index], held[index] = peak - before, after
    finally:
        tracemalloc.stop()
    assert (line.num_chunks, line.num_refused) == (line.num_sets, 0)
    return peaks.max(), held


@pytest.mark.parametrize('encoding', PIXEL_BYTES)
def test_a_raw_image_is_never_copied_at_its_size(line, encoding):
    message = image_message(encoding)
    peak, _ = measure(
        line, lambda camera, ns: replace(read_image(message, camera), stamp_ns=ns), 30
    )
    assert peak < IMAGE_BYTES / 8, f'{peak} bytes for two images of {IMAGE_BYTES} bytes'


def test_a_compressed_image_costs_the_decoded_one(line):
    message = compressed_message()

    def read(camera, stamp_ns):
        _, encoding, data = read_compressed_image(message, camera)
        return Frame(camera, stamp_ns, encoding, 0, 0, 0, data)

    peak, _ = measure(line, read, 30)
    assert peak < 2.2 * IMAGE_BYTES, f'{peak} bytes for two images of {IMAGE_BYTES} bytes'


def test_nothing_stays_behind(line):
    message = image_message('rgb8')
    _, held = measure(
        line, lambda camera, ns: replace(read_image(message, camera), stamp_ns=ns), NUM_FRAMES
    )
    first, last = np.median(held[150:250]), np.median(held[-100:])
    assert last - first < 16384, f'{last - first} bytes more after {NUM_FRAMES} sets'
