# SPDX-License-Identifier: Apache-2.0
"""The device contract on a GPU, on our device over a stand-in for PyCUDA, and on the device of the tests."""

import pytest
from contracts.device_contract import DeviceContract
from support.host_device import HostDevice
from support.pycuda_stand_in import install

from vla_policy_ros.gpu.device import open_device


class TestHostDevice(DeviceContract):
    @pytest.fixture(params=[False, True], ids=['discrete', 'integrated'])
    def device(self, request):
        device = HostDevice(integrated=request.param)
        with device.current():
            yield device
        device.close()
        device.close()


class TestStandIn(DeviceContract):
    @pytest.fixture(params=[False, True], ids=['discrete', 'integrated'])
    def device(self, request, monkeypatch):
        host = install(monkeypatch, integrated=request.param)
        device = open_device()
        with device.current():
            yield device
        device.close()
        device.close()
        assert not host.num_open
        assert not host.depth


@pytest.mark.gpu
class TestCudaDevice(DeviceContract):
    num_launches = 10_000

    @pytest.fixture
    def device(self):
        device = open_device()
        with device.current():
            yield device
        device.close()
        device.close()
