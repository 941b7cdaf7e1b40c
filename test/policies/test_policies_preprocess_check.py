# SPDX-License-Identifier: Apache-2.0
"""The gate before the first image: what the device makes of noise is what the CPU makes of it."""

import numpy as np
import pytest
from support.bundles import write_direct_bundle
from support.device_bundles import BUNDLES
from support.device_engines import DeviceEngines
from support.host_device import HostDevice

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.geometry import Pad, Resize
from vla_policy_ros.core.errors import GpuError
from vla_policy_ros.policies import preprocess_check
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.preprocess_check import check_preprocessing
from vla_policy_ros.preprocess.camera import CameraPreprocessor
from vla_policy_ros.sample import sample_bundle_path


@pytest.fixture
def device():
    device = HostDevice()
    with device.current():
        yield device


@pytest.mark.parametrize('name', BUNDLES)
def test_what_is_right_passes_and_leaves_nothing_behind(device, name, tmp_path):
    for camera in BUNDLES[name](tmp_path).manifest.cameras:
        check_preprocessing(device, camera)
    assert device.num_open == 0


@pytest.mark.parametrize(
    'geometry',
    [
        (Resize(height=37, width=53, library='opencv', filter='bicubic'),),
        (Resize(height=37, width=53, library='torchvision', filter='bicubic', antialias=False),),
        (Pad(height=41, width=51),),
    ],
)
def test_rules_with_a_limit_and_odd_sizes_pass(device, geometry, tmp_path):
    (camera, *_) = write_direct_bundle(tmp_path).manifest.cameras
    check_preprocessing(device, camera.model_copy(update={'geometry': geometry}))


class OffByOne(CameraPreprocessor):
    """A reference that the device cannot meet: one value of the last encoding differs by two levels."""

    def run(self, frame, out):
        super().run(frame, out)
        if frame.encoding == 'rgb16':
            out.reshape(-1)[7] += np.asarray(2 / 255 / 0.2, out.dtype)


@pytest.mark.parametrize('name', ['half', 'sample'])
def test_one_wrong_value_is_refused_by_name(device, name, tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess_check, 'CameraPreprocessor', OffByOne)
    (camera, *_) = BUNDLES[name](tmp_path).manifest.cameras
    with pytest.raises(GpuError, match=f'{camera.name}.*rgb16.*1 of') as caught:
        check_preprocessing(device, camera)
    assert caught.value.code == 'preprocess_differs'
    assert device.num_open == 0


def test_a_policy_that_sees_other_pixels_does_not_become_ready(monkeypatch):
    monkeypatch.setattr(preprocess_check, 'CameraPreprocessor', OffByOne)
    device = HostDevice()
    policy = EnginePolicy(
        load_bundle(sample_bundle_path()),
        engine='torch',
        preprocess='gpu',
        device=device,
        load=DeviceEngines(device).load,
    )
    with pytest.raises(GpuError, match='preprocessing of rgb16'):
        policy.warmup()
    policy.close()
