# SPDX-License-Identifier: Apache-2.0
import pytest

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.ros.faults import Fault, Faults, kinds

pytestmark = pytest.mark.ros

TARGETS = ('front', 'wrist', 'elbow', 'gripper')


def steps_hit(text, target, *, seed=0, count=200):
    faults = Faults(text, targets=TARGETS, seed=seed)
    return [step for step in range(count) if faults.active(step, target)]


def test_a_step_and_a_range_hit_with_both_ends():
    assert steps_hit('encoding:front:12', 'front') == [12]
    assert steps_hit('drop:front:40-43', 'front') == [40, 41, 42, 43]
    assert steps_hit('drop:front:40-43', 'wrist') == []


def test_a_share_is_drawn_with_the_seed():
    drawn = steps_hit('truncate:wrist:25%', 'wrist', seed=1)
    assert 20 < len(drawn) < 80
    assert drawn == steps_hit('truncate:wrist:25%', 'wrist', seed=1)
    assert drawn != steps_hit('truncate:wrist:25%', 'wrist', seed=2)
    assert steps_hit('truncate:wrist:100%', 'wrist', count=5) == [0, 1, 2, 3, 4]


def test_several_faults_draw_independently():
    faults = Faults('drop:front:50%; nan:elbow:50%', targets=TARGETS)
    dropped = {step for step in range(100) if faults.active(step, 'front')}
    nan = {step for step in range(100) if faults.active(step, 'elbow')}
    assert dropped != nan


def test_all_hits_every_target_once():
    faults = Faults('jump:all:3:-5', targets=TARGETS)
    hit = Fault('jump', 'all', 3, 3, value_s=-5.0)
    assert faults.active(3, 'front') == (hit,)
    assert faults.active(3, 'joint_states', 'elbow', 'gripper') == (hit,)
    assert faults.num_injected == 2


def test_kinds_and_values_are_read():
    faults = Faults('delay:wrist:2-3:0.2;zero_stamp:wrist:3', targets=TARGETS)
    assert faults.active(2, 'wrist') == (Fault('delay', 'wrist', 2, 3, value_s=0.2),)
    assert kinds(faults.active(3, 'wrist')) == {'delay', 'zero_stamp'}
    assert faults.num_injected == 3


def test_no_text_means_no_faults():
    assert Faults('', targets=TARGETS).active(0, 'front') == ()


@pytest.mark.parametrize(
    'text',
    [
        'melt:front:3',
        'drop:front',
        'drop:front:3:1',
        'delay:front:3',
        'drop:front:soon',
        'drop:front:-3',
        'drop:front:9-3',
        'drop:front:x%',
        'drop:front:0%',
        'drop:front:101%',
        'delay:front:3:late',
        'delay:front:3:nan',
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigurationError, match='KIND:TARGET:WHEN') as refusal:
        Faults(text, targets=TARGETS)
    assert text in str(refusal.value)


def test_an_unknown_target_is_refused():
    with pytest.raises(ConfigurationError, match=r"target 'elbo', expected one of front, wrist"):
        Faults('nan:elbo:3', targets=TARGETS)
