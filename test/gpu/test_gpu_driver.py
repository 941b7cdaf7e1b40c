# SPDX-License-Identifier: Apache-2.0
import pytest
from support.host_kernels import build_library

from vla_policy_ros.core.errors import GpuError
from vla_policy_ros.gpu import driver

LIBRARY = """
extern "C" int cuInit(unsigned int flags) {{ return flags == 0 ? {init} : 1; }}
extern "C" int cuDeviceGetCount(int *count) {{ *count = {count}; return 0; }}
extern "C" int cuDriverGetVersion(int *version) {{ *version = 13020; return 0; }}
extern "C" int cuGetErrorName(int error, const char **name) {{
    *name = error == 100 ? "CUDA_ERROR_NO_DEVICE" : error == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : nullptr;
    return *name ? 0 : 1;
}}
"""


@pytest.fixture
def install(monkeypatch):
    """Returns a function that puts a driver with given answers in place."""

    def put(*, init=0, count=1):
        library = build_library(LIBRARY.format(init=init, count=count))
        monkeypatch.setattr(driver, '_LIBRARY', str(library))

    return put


def test_a_driver_with_a_gpu_is_good(install):
    install()
    driver.require_driver()
    driver.require_driver()
    assert driver.find_driver() == '13.2'


@pytest.mark.parametrize(
    ('answers', 'got'),
    [
        ({'init': 100}, 'error 100 (CUDA_ERROR_NO_DEVICE)'),
        ({'init': 803}, 'error 803 (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)'),
        ({'init': 7}, 'error 7 (unknown)'),
        ({'count': 0}, 'error 100 (CUDA_ERROR_NO_DEVICE)'),
    ],
)
def test_what_the_driver_says_is_named(install, answers, got):
    install(**answers)
    with pytest.raises(GpuError) as caught:
        driver.require_driver()
    assert (caught.value.code, caught.value.got) == ('no_driver', got)
    assert 'nvidia-smi' in caught.value.next_step
    assert driver.find_driver() is None


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(driver, '_LIBRARY', 'libcuda_that_is_not_there.so.1')
    with pytest.raises(GpuError, match='libcuda_that_is_not_there') as caught:
        driver.require_driver()
    assert caught.value.code == 'no_driver'
    assert driver.find_driver() is None


@pytest.mark.gpu
def test_the_real_driver_is_good():
    driver.require_driver()
    major, minor = (int(part) for part in driver.find_driver().split('.'))
    assert (major, minor) >= (11, 0)
