# SPDX-License-Identifier: Apache-2.0
"""JPEG decoded on the device by nvJPEG, through ctypes; names and numbers of its header, nvjpeg.h."""

from __future__ import annotations

import ctypes

from vla_policy_ros.core.errors import GpuError, ImageError, MissingDependencyError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.gpu.interfaces import Device, DeviceBuffer, Stream

_FILES = ('libnvjpeg.so.13', 'libnvjpeg.so.12', 'libnvjpeg.so.11', 'libnvjpeg.so')
_MAX_COMPONENTS = 4  # NVJPEG_MAX_COMPONENT
_RGB_INTERLEAVED = 5  # NVJPEG_OUTPUT_RGBI
_STATUS = (
    'SUCCESS',
    'NOT_INITIALIZED',
    'INVALID_PARAMETER',
    'BAD_JPEG',
    'JPEG_NOT_SUPPORTED',
    'ALLOCATOR_FAILURE',
    'EXECUTION_FAILED',
    'ARCH_MISMATCH',
    'INTERNAL_ERROR',
    'IMPLEMENTATION_NOT_SUPPORTED',
    'INCOMPLETE_BITSTREAM',
)
_IMAGE_FAULTS = {
    'BAD_JPEG': 'bad_jpeg',
    'JPEG_NOT_SUPPORTED': 'bad_jpeg',
    'INCOMPLETE_BITSTREAM': 'truncated_jpeg',
}


class _Image(ctypes.Structure):
    """Where the planes go: nvjpegImage_t."""

    _fields_ = (
        ('channel', ctypes.c_void_p * _MAX_COMPONENTS),
        ('pitch', ctypes.c_size_t * _MAX_COMPONENTS),
    )


class JpegDecoder:
    """Decodes JPEG files to interleaved RGB in device memory, one after another; one thread at a time.

    The entropy coding is undone on this thread, the rest on the stream. EXIF orientation is ignored, as on the CPU.
    Pixels differ from the CPU decoder's by rounding and by how colour of less resolution is enlarged.

    Args:
        device: The device, current on the calling thread, here and in every method.

    Raises:
        MissingDependencyError: There is no nvJPEG library.
        GpuError: nvJPEG does not start.
    """

    def __init__(self, device: Device) -> None:
        self._library = load_nvjpeg()
        self._handle = ctypes.c_void_p()
        self._state = ctypes.c_void_p()
        self._padding_bytes = 0
        self._done = device.new_event()
        try:
            self._call('CreateSimple', ctypes.byref(self._handle))
            self._call('JpegStateCreate', self._handle, ctypes.byref(self._state))
        except GpuError:
            self.close()
            raise

    def enqueue(self, data: Array, target: DeviceBuffer, stream: Stream) -> tuple[int, int]:
        """Decode one file; the pixels are in the target when the stream gets there.

        Blocks for the host's part, and until the file before is decoded: nvJPEG's staging memory still holds that. Device
        memory is allocated for the first file, and when a larger target comes.

        Args:
            data: (n,) uint8 host memory, the file; may be changed after the call.
            target: uint8, at least 3 * height * width; rows are written without a gap.
            stream: Where the device's part runs; not one that is being captured.

        Returns:
            Height and width in pixels.

        Raises:
            ImageError: The file cannot be decoded (`bad_jpeg`, `truncated_jpeg`), or is larger than the target
                (`bad_size`).
            GpuError: nvJPEG failed.
        """
        file = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)
        height, width = self._read_size(file)
        step_bytes = 3 * width
        if height * step_bytes > target.num_bytes:
            raise _too_large(height, width, target.num_bytes)
        self._reserve(target.num_bytes)
        self._done.synchronize()
        image = _Image()
        image.channel[0], image.pitch[0] = target.address, step_bytes
        self._call(
            'Decode',
            self._handle,
            self._state,
            *file,
            _RGB_INTERLEAVED,
            ctypes.byref(image),
            ctypes.c_void_p(stream.handle),
        )
        self._done.record(stream)
        return height, width

    def close(self) -> None:
        """Wait for the last file and free nvJPEG's memory; may be called twice."""
        self._done.synchronize()
        if self._state:
            self._call('JpegStateDestroy', self._state)
            self._state = ctypes.c_void_p()
        if self._handle:
            self._call('Destroy', self._handle)
            self._handle = ctypes.c_void_p()

    def _read_size(self, file: tuple[ctypes.c_void_p, ctypes.c_size_t]) -> tuple[int, int]:
        components, subsampling = ctypes.c_int(), ctypes.c_int()
        widths, heights = ((ctypes.c_int * _MAX_COMPONENTS)() for _ in range(2))
        self._call(
            'GetImageInfo',
            self._handle,
            *file,
            ctypes.byref(components),
            ctypes.byref(subsampling),
            widths,
            heights,
        )
        return heights[0], widths[0]

    def _reserve(self, num_bytes: int) -> None:
        """Let nvJPEG round its allocations up to the largest image, so that none follows the first."""
        if num_bytes > self._padding_bytes:
            self._padding_bytes = num_bytes
            size = ctypes.c_size_t(num_bytes)
            self._call('SetDeviceMemoryPadding', size, self._handle)
            self._call('SetPinnedMemoryPadding', size, self._handle)

    def _call(self, name: str, *arguments: object) -> None:
        number = getattr(self._library, f'nvjpeg{name}')(*arguments)
        if number == 0:
            return
        status = _STATUS[number] if 0 < number < len(_STATUS) else f'status {number}'
        if status in _IMAGE_FAULTS:
            raise ImageError(
                'JPEG image',
                got=f'data that nvJPEG cannot decode ({status})',
                expected='a whole JPEG file',
                next_step='Check the format field of the publisher, and the link to the camera. '
                'CMYK, 12 bit and arithmetic coding are not decoded.',
                code=_IMAGE_FAULTS[status],
            )
        raise GpuError(
            f'nvjpeg{name}',
            got=status,
            expected='SUCCESS',
            next_step='Set jpeg: cpu to decode without nvJPEG.',
        )


def _too_large(height: int, width: int, num_bytes: int) -> ImageError:
    return ImageError(
        'JPEG image',
        got=f'{width}x{height} pixels',
        expected=f'at most {num_bytes} bytes of RGB',
        next_step='Let the camera send images of one size.',
        code='bad_size',
    )


def load_nvjpeg() -> ctypes.CDLL:
    """Return the library: of the system or the CUDA toolkit, or of the Python package.

    Raises:
        MissingDependencyError: It is nowhere.
    """
    for name in (*_FILES, _packaged_library()):
        if name is not None and (library := _try_load(name)) is not None:
            return library
    raise MissingDependencyError(
        'nvJPEG',
        got='no library libnvjpeg',
        expected='nvJPEG of the CUDA toolkit or of a Python package',
        next_step='Run: pip install nvidia-nvjpeg (CUDA 12: nvidia-nvjpeg-cu12), or set jpeg: cpu.',
    )


def _try_load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _packaged_library() -> str | None:
    """Return the path that NVIDIA's own finder knows, which comes with cuda-bindings."""
    try:
        from cuda import pathfinder

        path: str | None = pathfinder.load_nvidia_dynamic_lib('nvjpeg').abs_path
    except (ImportError, RuntimeError):  # the second when it finds nothing
        return None
    return path
