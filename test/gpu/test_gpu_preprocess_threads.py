# SPDX-License-Identifier: Apache-2.0
"""The kernel with the threads and barriers of a real block: which thread does what, and who waits for whom."""

import ctypes
import struct
import subprocess

import numpy as np
import pytest
from support.device_images import DeviceImages, make_frame, run_on_cpu
from support.host_device import HostDevice, HostKernel
from support.host_kernels import HostFunction

import vla_policy_ros.gpu.kernels
from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.gpu.limits import DEVICE_RESIZE_LIMITS

KERNELS = vla_policy_ros.gpu.kernels.__path__[0]
SOURCE = """
#include <barrier>
#include <thread>
#include <vector>
#include "host.h"
static std::barrier<> *barrier;
#define THREAD_INDEX static_cast<int>(threadIdx.x)
#define THREAD_COUNT static_cast<int>(blockDim.x)
#define LANES 32
#define SYNC() barrier->arrive_and_wait()
#define SHARED static
#include "preprocess.cu"

extern "C" void host_launch(const dim3 *grid, const dim3 *block, void *const *arguments) {
    std::barrier<> all(block->x);
    barrier = &all;
    std::vector<std::thread> threads;
    for (unsigned int index = 0; index < block->x; ++index)
        threads.emplace_back([=] {
            gridDim = *grid;
            blockDim = *block;
            threadIdx.x = index;
            for (blockIdx.z = 0; blockIdx.z < grid->z; ++blockIdx.z)
                for (blockIdx.y = 0; blockIdx.y < grid->y; ++blockIdx.y)
                    for (blockIdx.x = 0; blockIdx.x < grid->x; ++blockIdx.x) {
                        preprocess(*static_cast<const Batch *>(arguments[0]));
                        barrier->arrive_and_wait();  // blocks run one after another: they share the memory
                    }
        });
    for (std::thread &thread : threads) thread.join();
}
"""


class ThreadedDevice(HostDevice):
    """Runs every thread of a block as one of the host."""

    def __init__(self, folder):
        super().__init__()
        self._folder = folder

    def load_kernel(self, source_name, entry, signature, defines):
        source, target = self._folder / 'main.cpp', self._folder / f'{defines["ARITHMETIC"]}.so'
        source.write_text(SOURCE)
        options = [f'-D{name}={value}' for name, value in defines.items()]
        flags = ['-std=c++20', '-O1', '-pthread', '-shared', '-fPIC', '-ffp-contract=off']
        command = ['g++', *flags, *options, f'-I{KERNELS}', source, '-o', target]
        subprocess.run(command, check=True)
        layout = struct.Struct(f'@{signature}')
        return HostKernel(self, HostFunction(ctypes.CDLL(str(target)), layout, (0,)))


@pytest.mark.parametrize(
    ('library', 'filter_', 'target'),
    [
        ('pil', 'bilinear', (19, 37)),
        ('pil', 'bicubic', (2, 3)),  # small tiles, rows in parts
        ('pil', 'nearest', (19, 37)),
        ('opencv', 'bilinear', (19, 37)),
        ('opencv', 'bicubic', (9, 33)),
        ('opencv', 'area', (9, 33)),
    ],
)
def test_threads_share_the_work_and_wait_for_each_other(tmp_path, library, filter_, target):
    resize = {
        'kind': 'resize',
        'height': target[0],
        'width': target[1],
        'library': library,
        'filter': filter_,
    }
    pad = {'kind': 'pad', 'height': target[0] + 3, 'width': target[1] + 2, 'value': 5}
    camera = Camera(name='front', tensor='t', geometry=[resize, pad], dtype='uint8', layout='hwc')
    frames = [make_frame('rgb8', 160, 400), make_frame('bgr8', 51, 67)]
    device = ThreadedDevice(tmp_path)
    with device.current():
        results = DeviceImages(device).run(camera, *frames)
    for got, frame in zip(results, frames, strict=True):
        difference = np.abs(got.astype(int) - run_on_cpu(camera, frame))
        assert difference.max() <= DEVICE_RESIZE_LIMITS[library][filter_]
