# SPDX-License-Identifier: Apache-2.0
import logging
import threading

import cv2
import numpy as np
import pytest
from support.bundles import CAMERA, direct_manifest, make_frame
from support.host_device import HostDevice, read
from support.lazy_device import LazyDevice

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.errors import EngineError, GpuError, ImageError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.gpu import camera as camera_module
from vla_policy_ros.gpu.camera import DeviceCamera
from vla_policy_ros.preprocess.camera import CameraPreprocessor
from vla_policy_ros.preprocess.decode import decode_rgb

HEIGHT, WIDTH = 24, 32
CAMERA_SETTINGS = Camera.model_validate(direct_manifest()['cameras'][0])
GROWTH = ('allocations', 'pinned_allocations')


@pytest.fixture
def device():
    device = LazyDevice()
    yield device
    device.close()


@pytest.fixture
def open_camera(device):
    opened = []

    def open_camera(**settings):
        target = settings.pop('device', device)
        options = {'slots': 4, **settings}
        opened.append(DeviceCamera(target, CAMERA_SETTINGS, **options))
        return opened[-1]

    yield open_camera
    for camera in opened:
        camera.close()


def make_noise_frame(encoding='rgb8', *, seed=0, size=(HEIGHT, WIDTH), padding=0, stamp_ns=7):
    """Return a frame of random pixels; compressed ones are smooth, so that decoders agree."""
    random = np.random.default_rng(seed)
    height, width = size
    if encoding in ('jpeg', 'png'):
        ramp = np.linspace(0, 255, height * width).reshape(height, width, 1)
        image = np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)
        data = cv2.imencode('.jpg' if encoding == 'jpeg' else '.png', image)[1].reshape(-1)
        return Frame(CAMERA, stamp_ns, encoding, 0, 0, 0, data)
    pixel_bytes = {'rgb8': 3, 'bgra8': 4, 'mono8': 1, 'yuyv': 2, 'rgb16': 6}[encoding]
    step = width * pixel_bytes + padding
    data = random.integers(0, 256, height * step, np.uint8)
    return Frame(CAMERA, stamp_ns, encoding, height, width, step, data, encoding == 'rgb16')


def on_the_cpu(frame):
    preprocessor = CameraPreprocessor(CAMERA_SETTINGS)
    out = np.zeros(preprocessor.image_shape, preprocessor.dtype)
    preprocessor.run(frame, out)
    return out


def result(device, image):
    with device.current():
        image.event.synchronize()
        return read(image.target)


@pytest.mark.parametrize('encoding', ['rgb8', 'bgra8', 'mono8', 'yuyv', 'rgb16', 'jpeg', 'png'])
@pytest.mark.parametrize('padding', [0, 6])
def test_image_is_that_of_the_cpu(device, open_camera, encoding, padding):
    frame = make_noise_frame(encoding, padding=padding)
    image = open_camera().prepare(frame)
    assert (image.camera, image.stamp_ns) == (CAMERA, 7)
    np.testing.assert_allclose(result(device, image), on_the_cpu(frame), atol=1e-6)


def test_frame_may_change_as_soon_as_prepare_returns(device, open_camera):
    frame = make_noise_frame()
    expected = on_the_cpu(frame)
    image = open_camera().prepare(frame)
    frame.data[:] = 0
    np.testing.assert_allclose(result(device, image), expected, atol=1e-6)


def test_prepare_does_not_wait_unless_every_staging_slot_is_in_flight(device, open_camera):
    camera = open_camera()
    first = camera.prepare(make_noise_frame(seed=0))
    later = [camera.prepare(make_noise_frame(seed=seed)) for seed in (1, 2)]
    with device.current():
        assert not any(image.event.is_done() for image in (first, *later))
        later.append(camera.prepare(make_noise_frame(seed=3)))
        assert first.event.is_done()
        assert not later[0].event.is_done()
    for seed, image in enumerate((first, *later)):
        expected = on_the_cpu(make_noise_frame(seed=seed))
        np.testing.assert_allclose(result(device, image), expected, atol=1e-6)


def test_slot_is_free_again_when_the_last_reference_is_gone(open_camera):
    camera = open_camera(slots=2)
    held = [camera.prepare(make_frame()) for _ in range(2)]
    with pytest.raises(ImageError, match='2 prepared images') as caught:
        camera.prepare(make_frame())
    assert caught.value.code == 'no_free_slot'
    alias = held.pop()
    held.append(alias)
    assert camera.num_free == 0
    del alias
    held.pop()
    assert camera.num_free == 1
    camera.prepare(make_frame())


def test_slot_that_was_let_go_is_written_after_what_was_under_way(device, open_camera):
    camera = open_camera(slots=1)
    camera.prepare(make_noise_frame(seed=0))  # dropped while its work is still waiting
    image = camera.prepare(make_noise_frame(seed=1))
    expected = on_the_cpu(make_noise_frame(seed=1))
    np.testing.assert_allclose(result(device, image), expected, atol=1e-6)


@pytest.mark.parametrize(
    ('frame', 'code'),
    [
        (Frame(CAMERA, 0, '16UC1', 4, 4, 8, np.zeros(32, np.uint8)), 'unknown_encoding'),
        (Frame(CAMERA, 0, 'rgb8', 4, 4, 12, np.zeros(40, np.uint8)), 'short_data'),
        (Frame(CAMERA, 0, 'rgb8', 4, 4, 11, np.zeros(48, np.uint8)), 'bad_step'),
        (Frame(CAMERA, 0, 'rgb8', 0, 4, 12, np.zeros(48, np.uint8)), 'bad_size'),
        (Frame(CAMERA, 0, 'jpeg', 0, 0, 0, np.zeros(10, np.uint8)), 'bad_jpeg'),
    ],
)
def test_broken_frames_are_refused_as_on_the_cpu_and_cost_no_slot(open_camera, frame, code):
    camera = open_camera()
    for _ in range(5):
        with pytest.raises(ImageError) as caught:
            camera.prepare(frame)
        assert caught.value.code == code
    assert camera.num_free == 4
    with pytest.raises(ImageError) as reference:
        on_the_cpu(frame)
    assert str(caught.value) == str(reference.value)


def test_memory_grows_for_a_larger_frame_only_and_is_told(device, open_camera, caplog):
    camera = open_camera()
    small = [camera.prepare(make_noise_frame(seed=seed)) for seed in range(2)]
    with caplog.at_level(logging.INFO, 'vla_policy_ros'):
        large = camera.prepare(make_noise_frame(size=(48, 64)))
    assert camera.num_growths == 1
    assert [CAMERA in record.getMessage() for record in caplog.records] == [True]
    with device.current():
        before = {kind: device.counts[kind] for kind in GROWTH}
    for seed, image in enumerate(small):
        expected = on_the_cpu(make_noise_frame(seed=seed))
        np.testing.assert_allclose(result(device, image), expected, atol=1e-6)
    expected = on_the_cpu(make_noise_frame(size=(48, 64)))
    np.testing.assert_allclose(result(device, large), expected, atol=1e-6)
    del small, image
    for index in range(20):
        camera.prepare(make_noise_frame(size=(48, 64) if index % 2 else (HEIGHT, WIDTH)))
    assert camera.num_growths == 1
    assert {kind: device.counts[kind] for kind in GROWTH} == before


def test_integrated_gpu_reads_pinned_memory(open_camera):
    spent, images = [], []
    for integrated in (False, True):
        device = HostDevice(integrated=integrated)
        camera = open_camera(device=device)
        camera.prepare(make_noise_frame())
        before = device.counts.copy()
        images.append(result(device, camera.prepare(make_noise_frame())))
        spent.append((device.counts - before)['copies'])
    assert spent == [1, 0]
    np.testing.assert_array_equal(*images)


def test_kernels_of_all_encodings_are_made_ahead(device, open_camera, monkeypatch):
    camera = open_camera()
    camera.prepare_formats()
    camera.prepare(make_noise_frame())
    monkeypatch.setattr(device, 'load_kernel', None)
    for encoding in ('bgra8', 'mono8', 'yuyv', 'rgb16', 'png'):
        camera.prepare(make_noise_frame(encoding))


class FakeDecoder:
    """Stands in for nvJPEG: decodes on the CPU into device memory, in stream order."""

    def __init__(self, device):
        self._device = device
        self.is_closed = False

    def enqueue(self, data, target, stream):
        from support.device_engines import view

        frame = Frame(CAMERA, 0, 'jpeg', 0, 0, 0, data.copy())
        pixels = decode_rgb(frame).reshape(-1)

        def write():
            view(target)[: len(pixels)] = pixels

        self._device.submit('decodes', stream.handle, write)

    def close(self):
        self.is_closed = True


@pytest.mark.parametrize('integrated', [False, True])
def test_nvjpeg_decodes_to_device_memory_and_refuses_png(open_camera, monkeypatch, integrated):
    monkeypatch.setattr(camera_module, 'JpegDecoder', FakeDecoder)
    device = LazyDevice(integrated=integrated)
    camera = open_camera(device=device, jpeg='nvjpeg')
    for seed in range(5):
        frame = make_noise_frame('jpeg', seed=seed)
        image = camera.prepare(frame)
        np.testing.assert_allclose(result(device, image), on_the_cpu(frame), atol=1e-6)
    assert device.counts['decodes'] == 5
    raw = camera.prepare(make_noise_frame('rgb8'))
    expected = on_the_cpu(make_noise_frame('rgb8'))
    np.testing.assert_allclose(result(device, raw), expected, atol=1e-6)
    with pytest.raises(ImageError, match='jpeg: cpu') as caught:
        camera.prepare(make_noise_frame('png'))
    assert caught.value.code == 'unsupported_encoding'
    decoder = camera._decoder
    camera.close()
    assert decoder.is_closed
    assert device.num_open == 0


def test_any_stream_and_buffer_of_the_caller_may_be_used(device, open_camera):
    camera = open_camera()
    frames = [make_noise_frame(seed=seed) for seed in range(6)]
    with device.current():
        stream = device.new_stream()
        target = device.allocate((3, 8, 8), 'float32')
        for frame in frames:
            camera.prepare(frame)
            camera.enqueue(frame, target, stream)
        stream.synchronize()
        np.testing.assert_allclose(read(target), on_the_cpu(frames[-1]), atol=1e-6)
        target.free()


def test_closed_camera_refuses_and_has_freed_everything():
    device = LazyDevice()
    camera = DeviceCamera(device, CAMERA_SETTINGS, slots=2)
    held = camera.prepare(make_noise_frame())
    for _ in range(2):
        camera.close()
    with pytest.raises(EngineError) as caught:
        camera.prepare(make_noise_frame())
    assert caught.value.code == 'closed'
    device.close()
    del held


def test_too_little_memory_is_told_and_nothing_is_left():
    device = HostDevice(total_bytes=8_000)
    with pytest.raises(GpuError) as caught:
        DeviceCamera(device, CAMERA_SETTINGS, slots=20)
    assert caught.value.code == 'out_of_memory'
    device.close()


def test_every_thread_gets_its_own_image(device, open_camera):
    camera = open_camera(slots=40)
    found = {}

    def work(start):
        for seed in range(start, start + 10):
            found[seed] = camera.prepare(make_noise_frame(seed=seed))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, image in found.items():
        expected = on_the_cpu(make_noise_frame(seed=seed))
        np.testing.assert_allclose(result(device, image), expected, atol=1e-6)
    found.clear()


def test_frame_that_memory_does_not_hold_is_refused_and_others_go_on():
    device = HostDevice(total_bytes=40_000)
    camera = DeviceCamera(device, CAMERA_SETTINGS, slots=2)
    large, small = make_noise_frame(size=(96, 96)), make_noise_frame()
    for frame in (large, small, large, small):
        if frame is small:
            image = camera.prepare(small)
            np.testing.assert_allclose(result(device, image), on_the_cpu(small), atol=1e-6)
            continue
        with pytest.raises(GpuError) as caught:
            camera.prepare(large)
        assert caught.value.code == 'out_of_memory'
    camera.close()
    device.close()
