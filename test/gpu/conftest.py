# SPDX-License-Identifier: Apache-2.0
import pytest
from support.host_device import HostDevice

from vla_policy_ros.gpu.device import open_device


@pytest.fixture(params=['host', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request):
    """A device that is current: kernels compiled for the host, and the GPU where there is one."""
    device = HostDevice() if request.param == 'host' else open_device()
    with device.current():
        yield device
    device.close()
