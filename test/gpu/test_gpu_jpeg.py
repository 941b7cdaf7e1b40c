# SPDX-License-Identifier: Apache-2.0
"""nvJPEG through ctypes: against a stand-in with its header's types here, against the CPU decoder on a GPU."""

import ctypes
import struct

import cv2
import numpy as np
import pytest
from support.host_device import HostDevice, read
from support.host_kernels import build_library

from vla_policy_ros.core.errors import GpuError, ImageError, MissingDependencyError
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.gpu import jpeg
from vla_policy_ros.gpu.device import open_device
from vla_policy_ros.gpu.jpeg import JpegDecoder, load_nvjpeg
from vla_policy_ros.preprocess.decode import decode_rgb

MEAN_LIMIT = (
    4.0  # of 255: nvJPEG repeats the colour of a 2 x 2 block, libjpeg-turbo blends between blocks
)
# A file of the stand-in is: status of GetImageInfo, status of Decode, height, width, first pixel value.
LIBRARY = """
#include <cstddef>
struct Image { unsigned char *channel[4]; std::size_t pitch[4]; };
static_assert(sizeof(Image) == 64, "two arrays of four words");
extern "C" {
int created = 0, padded[2];
int create_status = 0;
int nvjpegCreateSimple(void **handle) { *handle = &created; return created++, create_status; }
int nvjpegDestroy(void *handle) { return handle == &created ? created--, 0 : 2; }
int nvjpegJpegStateCreate(void *handle, void **state) { *state = handle; return created++, 0; }
int nvjpegJpegStateDestroy(void *state) { return state == &created ? created--, 0 : 2; }
int nvjpegSetDeviceMemoryPadding(std::size_t size, void *) { padded[0] = static_cast<int>(size); return 0; }
int nvjpegSetPinnedMemoryPadding(std::size_t size, void *) { padded[1] = static_cast<int>(size); return 0; }
int nvjpegGetImageInfo(void *handle, const unsigned char *data, std::size_t length, int *components, int *subsampling,
                       int *widths, int *heights) {
    if (handle != &created || length < 20) return 10;
    const int *words = reinterpret_cast<const int *>(data);
    *components = 3, *subsampling = 2, widths[0] = words[3], heights[0] = words[2];
    return words[0];
}
int nvjpegDecode(void *handle, void *state, const unsigned char *data, std::size_t length, int format, Image *image,
                 void *stream) {
    const int *words = reinterpret_cast<const int *>(data);
    if (handle != state || format != 5 || length < 20 || !stream) return 2;
    for (int row = 0; row < words[2]; ++row)
        for (int column = 0; column < 3 * words[3]; ++column)
            image->channel[0][row * image->pitch[0] + column] = static_cast<unsigned char>(words[4] + row + column);
    return words[1];
}
}
"""


def file(height, width, *, info=0, decode=0, first=0):
    return np.frombuffer(struct.pack('5i', info, decode, height, width, first), np.uint8)


@pytest.fixture
def library(monkeypatch):
    library = ctypes.CDLL(str(build_library(LIBRARY)))
    monkeypatch.setattr(jpeg, 'load_nvjpeg', lambda: library)
    ctypes.c_int.in_dll(library, 'create_status').value = 0
    yield library
    assert ctypes.c_int.in_dll(library, 'created').value == 0


@pytest.fixture
def device():
    device = HostDevice()
    with device.current():
        yield device
    device.close()


@pytest.fixture
def decoder(library, device):
    decoder = JpegDecoder(device)
    yield decoder
    decoder.close()
    decoder.close()


@pytest.fixture
def target(device):
    target = device.allocate((3 * 6 * 5,), 'uint8')
    yield target
    target.free()


def test_rows_lie_without_a_gap_from_the_start_of_the_target(device, decoder, target):
    stream = device.new_stream()
    for height, width, first in ((6, 5, 1), (2, 3, 100), (5, 6, 7)):
        assert decoder.enqueue(file(height, width, first=first), target, stream) == (height, width)
        image = read(target)[: 3 * height * width].reshape(height, 3 * width)
        expected = first + np.arange(height)[:, None] + np.arange(3 * width)
        np.testing.assert_array_equal(image, expected)


def test_memory_is_reserved_for_the_largest_image(device, library, decoder, target):
    padded = (ctypes.c_int * 2).in_dll(library, 'padded')
    stream = device.new_stream()
    for buffer in (target, target.view(0, (12,), 'uint8')):
        decoder.enqueue(file(2, 2), buffer, stream)
        assert list(padded) == [90, 90]


@pytest.mark.parametrize(
    ('data', 'code'),
    [
        (file(2, 2, info=3), 'bad_jpeg'),
        (file(2, 2, info=4), 'bad_jpeg'),
        (file(2, 2, decode=3), 'bad_jpeg'),
        (file(2, 2)[:10], 'truncated_jpeg'),
        (file(2, 2, decode=10), 'truncated_jpeg'),
        (file(6, 6), 'bad_size'),
    ],
)
def test_an_image_that_cannot_be_decoded_is_refused(device, decoder, target, data, code):
    stream = device.new_stream()
    with pytest.raises(ImageError) as caught:
        decoder.enqueue(data, target, stream)
    assert caught.value.code == code
    assert decoder.enqueue(file(2, 3), target, stream) == (2, 3)


def test_an_image_that_does_not_fit_is_not_decoded(device, decoder, target):
    with pytest.raises(ImageError, match='6x6 pixels'):
        decoder.enqueue(file(6, 6, first=9), target, device.new_stream())
    assert not read(target).any()


@pytest.mark.parametrize(('number', 'name'), [(6, 'EXECUTION_FAILED'), (77, 'status 77')])
def test_a_failure_of_the_library_is_named(device, decoder, target, number, name):
    with pytest.raises(GpuError, match=f'nvjpegDecode: got {name}'):
        decoder.enqueue(file(2, 2, decode=number), target, device.new_stream())


def test_a_library_that_does_not_start_is_named(device, library):
    ctypes.c_int.in_dll(library, 'create_status').value = 7
    with pytest.raises(GpuError, match='nvjpegCreateSimple: got ARCH_MISMATCH'):
        JpegDecoder(device)


def test_a_missing_library_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(jpeg, '_FILES', ('libnvjpeg_that_is_not_there.so',))
    monkeypatch.setattr(jpeg, '_packaged_library', lambda: None)
    with pytest.raises(MissingDependencyError, match='pip install nvidia-nvjpeg'):
        load_nvjpeg()


def test_the_library_of_the_package_is_found(monkeypatch):
    monkeypatch.setattr(jpeg, '_FILES', ('libnvjpeg_that_is_not_there.so',))
    monkeypatch.setattr(jpeg, '_packaged_library', lambda: str(build_library(LIBRARY)))
    assert load_nvjpeg().nvjpegCreateSimple


def photograph(height, width):
    """Smooth colours with some noise, which JPEG keeps well."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns * 255 / width, rows * 255 / height, (rows + columns) % 255], axis=2)
    noise = np.random.default_rng(1).normal(0, 3, image.shape)
    return cv2.GaussianBlur((image + noise).clip(0, 255).astype(np.uint8), (5, 5), 0)


@pytest.mark.gpu
@pytest.mark.parametrize('size', [(480, 640), (33, 17), (1, 1)])
@pytest.mark.parametrize(
    'options', [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_QUALITY, 50]]
)
@pytest.mark.parametrize('is_grey', [False, True])
def test_pixels_are_those_of_the_cpu_decoder(size, options, is_grey):
    image = photograph(*size)[..., 0] if is_grey else photograph(*size)
    data = cv2.imencode('.jpg', image, options)[1].reshape(-1)
    expected = decode_rgb(Frame('front', 0, 'jpeg', 0, 0, 0, data)).astype(np.int16)
    device = open_device()
    with device.current():
        decoder, stream = JpegDecoder(device), device.new_stream()
        target, host = (
            device.allocate((*size, 3), 'uint8'),
            device.allocate_pinned((*size, 3), 'uint8'),
        )
        for _ in range(3):
            assert decoder.enqueue(data, target, stream) == size
        device.download(host, target, stream)
        stream.synchronize()
        difference = np.abs(host.array - expected)
        decoder.close()
        target.free()
        host.free()
    device.close()
    assert difference.mean() <= MEAN_LIMIT


@pytest.mark.gpu
def test_damaged_files_do_not_end_the_decoder():
    data = cv2.imencode('.jpg', photograph(48, 64))[1].reshape(-1)
    device = open_device()
    with device.current():
        decoder, stream = JpegDecoder(device), device.new_stream()
        target = device.allocate((48, 64, 3), 'uint8')
        for damaged in (data[:20].copy(), np.zeros(100, np.uint8)):
            with pytest.raises(ImageError):
                decoder.enqueue(damaged, target, stream)
        assert decoder.enqueue(data, target, stream) == (48, 64)
        stream.synchronize()
        before = device.free_bytes()
        for _ in range(100):
            decoder.enqueue(data, target, stream)
        stream.synchronize()
        assert device.free_bytes() == before
        decoder.close()
        target.free()
    device.close()
