# SPDX-License-Identifier: Apache-2.0
import pytest

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.deployment.config import load_deployment
from vla_policy_ros.deployment.overrides import Overrides
from vla_policy_ros.deployment.rtc import RtcSettings


def write(folder, rtc):
    path = folder / 'robot.yaml'
    path.write_text(f'policy:\n  bundle: sample\n  rtc: {rtc}\n')
    return path


def test_it_is_off_unless_the_file_says_so(tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text('policy:\n  bundle: sample\n')
    assert load_deployment(path).policy.rtc is None


@pytest.mark.parametrize('frozen', ['auto', 3])
def test_it_is_read_and_outlives_overrides(tmp_path, frozen):
    settings = f'{{kind: blend, overlap_steps: 8, frozen_steps: {frozen}, ramp_rate: 2.5}}'
    deployment = load_deployment(write(tmp_path, settings))
    expected = RtcSettings(overlap_steps=8, frozen_steps=frozen, ramp_rate=2.5)
    assert Overrides(engine='none').apply(deployment).policy.rtc == expected


@pytest.mark.parametrize(
    ('settings', 'place'),
    [
        ('{kinds: blend}', 'policy.rtc.kinds'),
        ('{kind: magic}', 'policy.rtc.kind'),
        ('{frozen_steps: 1.5}', 'policy.rtc.frozen_steps'),
        ('{frozen_steps: 4, overlap_steps: 2}', 'overlap_steps of at least'),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path, settings, place):
    with pytest.raises(ConfigurationError) as caught:
        load_deployment(write(tmp_path, settings))
    assert place in str(caught.value)
