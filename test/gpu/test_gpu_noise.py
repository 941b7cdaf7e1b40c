# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from vla_policy_ros.bundle.noise import DEVICE_LIMIT, draw_noise
from vla_policy_ros.core.errors import SpecMismatchError
from vla_policy_ros.gpu.noise import NoiseKernel

KEYS = [(0, 0), (7, 1_700_000_000_123_456_789), (-1, -5), (2**63, 2**64 - 1)]


class Drawing:
    """Key, noise, and their pinned sides."""

    def __init__(self, device, size):
        self.device, self.stream = device, device.new_stream()
        self.kernel = NoiseKernel(device, size)
        self.key, self.out = device.allocate((2,), 'uint64'), device.allocate((size,), 'float32')
        self.key_host = device.allocate_pinned((2,), 'uint64')
        self.out_host = device.allocate_pinned((size,), 'float32')

    def set_key(self, seed, stamp_ns):
        self.key_host.array[:] = [seed % 2**64, stamp_ns % 2**64]

    def enqueue(self):
        self.device.upload(self.key, self.key_host, self.stream)
        self.kernel.enqueue(self.stream, self.key, self.out)
        self.device.download(self.out_host, self.out, self.stream)

    def close(self):
        for buffer in (self.key, self.out, self.key_host, self.out_host):
            buffer.free()


@pytest.fixture
def make(device):
    made = []

    def build(size):
        made.append(Drawing(device, size))
        return made[-1]

    yield build
    for drawing in made:
        drawing.close()


@pytest.mark.parametrize('size', [1, 3, 4, 511, 512, 513, 5280])
@pytest.mark.parametrize('key', KEYS)
def test_numbers_are_those_of_the_cpu(make, size, key):
    drawing = make(size)
    drawing.set_key(*key)
    drawing.enqueue()
    drawing.stream.synchronize()
    expected = np.zeros(size, np.float32)
    draw_noise(*key, expected)
    assert np.abs(drawing.out_host.array - expected).max() <= DEVICE_LIMIT
    assert np.count_nonzero(drawing.out_host.array) > 0


def test_a_captured_graph_takes_the_stamp_of_its_turn(make):
    drawing = make(64)
    drawing.set_key(*KEYS[0])
    graph = drawing.device.capture(drawing.stream, drawing.enqueue)
    assert graph.num_kernels == 1
    for key in KEYS:
        drawing.set_key(*key)
        graph.launch(drawing.stream)
        drawing.stream.synchronize()
        expected = np.zeros(64, np.float32)
        draw_noise(*key, expected)
        np.testing.assert_allclose(drawing.out_host.array, expected, rtol=0, atol=DEVICE_LIMIT)
    graph.close()


def test_nothing_is_written_behind_the_end(device):
    whole = device.allocate((16,), 'float32')
    key, stream = device.allocate((2,), 'uint64'), device.new_stream()
    NoiseKernel(device, 5).enqueue(stream, key, whole.view(16, (5,), 'float32'))
    host = device.allocate_pinned((16,), 'float32')
    device.download(host, whole, stream)
    stream.synchronize()
    written = host.array != 0
    np.testing.assert_array_equal(np.flatnonzero(written), np.arange(4, 9))
    for buffer in (whole, key, host):
        buffer.free()


def test_other_tensors_are_refused(device, make):
    drawing = make(8)
    kernel, stream = drawing.kernel, drawing.stream
    with pytest.raises(SpecMismatchError, match='noise key'):
        kernel.enqueue(stream, drawing.out, drawing.out)
    with pytest.raises(SpecMismatchError, match='8 values of float32'):
        kernel.enqueue(stream, drawing.key, drawing.out.view(0, (4,), 'float32'))
