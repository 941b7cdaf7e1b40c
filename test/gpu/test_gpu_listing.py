# SPDX-License-Identifier: Apache-2.0
"""Two GPUs of a driver that is compiled for the test."""

import pytest
from support.host_kernels import build_library

from vla_policy_ros.core.errors import GpuError
from vla_policy_ros.gpu import driver
from vla_policy_ros.gpu.listing import GpuFacts, current_index, list_gpus

LIBRARY = """
#include <cstdio>
#include <cstddef>
extern "C" int cuInit(unsigned int) { return 0; }
extern "C" int cuDeviceGetCount(int *count) { *count = 2; return 0; }
extern "C" int cuDeviceGet(int *device, int index) { *device = 10 + index; return 0; }
extern "C" int cuDeviceGetName(char *name, int size, int device) { return std::snprintf(name, size, "GPU %d", device) < 0; }
extern "C" int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)device << 32; return 0; }
extern "C" int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 ? device == 11 : -1;
    return 0;
}
extern "C" int cuCtxGetDevice(int *device) { *device = 1; return STATUS; }
extern "C" int cuGetErrorName(int, const char **name) { *name = "CUDA_ERROR_INVALID_CONTEXT"; return 0; }
"""


@pytest.fixture
def install(monkeypatch):
    """Returns a function that puts the driver in place."""

    def put(status=0):
        library = build_library(LIBRARY.replace('STATUS', str(status)))
        monkeypatch.setattr(driver, '_LIBRARY', str(library))

    return put


def test_every_gpu_is_described(install):
    install()
    assert list_gpus() == (
        GpuFacts(0, 'GPU 10', (8, 7), 10 << 32, is_integrated=False),
        GpuFacts(1, 'GPU 11', (8, 7), 11 << 32, is_integrated=True),
    )


def test_the_gpu_of_the_current_context(install):
    install()
    assert current_index() == 1


def test_what_the_driver_refuses_is_named(install):
    install(201)
    with pytest.raises(GpuError, match='cuCtxGetDevice') as caught:
        current_index()
    assert caught.value.got == 'error 201 (CUDA_ERROR_INVALID_CONTEXT)'
    assert caught.value.code == 'gpu_failed'


def test_without_a_driver(monkeypatch):
    monkeypatch.setattr(driver, '_LIBRARY', 'libcuda_that_is_not_there.so.1')
    for ask in (list_gpus, current_index):
        with pytest.raises(GpuError) as caught:
            ask()
        assert caught.value.code == 'no_driver'


@pytest.mark.gpu
def test_the_real_gpus():
    first = list_gpus()[0]
    assert first.name
    assert first.compute_capability >= (5, 0)
    assert first.memory_bytes > 1 << 30
