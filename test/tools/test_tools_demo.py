# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from vla_policy_ros.evaluation.verdict import Tolerances
from vla_policy_ros.sample import HELD_OUT_EPISODES, sample_executor_path
from vla_policy_ros.tools import demo


@pytest.fixture
def asked(monkeypatch):
    """What the demo asks the replay for; the replay itself passes without a node."""
    calls = []
    monkeypatch.setattr(
        demo, 'replay', lambda settings, **more: calls.append((settings, more)) or 0
    )
    return calls


def test_the_demo_replays_a_held_out_episode_of_the_sample(asked, cli):
    result = cli('demo')
    assert (result.status, result.out) == (0, '')
    [(settings, more)] = asked
    assert (settings.dataset, settings.bundle) == ('sample', 'sample')
    assert settings.episode == HELD_OUT_EPISODES[-1]
    assert (settings.mode, settings.rate, settings.out) == ('timed', 1.0, Path('runs/demo'))
    assert settings.command == 'vla-policy demo'
    assert settings.executor == sample_executor_path()
    assert more == {'domain': None, 'as_json': False}
    assert str(settings.episode) in result.err
    assert 'runs/demo' in result.err


@pytest.mark.parametrize(
    ('pace', 'moves'),
    [
        (('--mode', 'timed'), True),
        (('--mode', 'lockstep'), False),
        (('--mode', 'fast'), False),
        (('--rate', '2'), False),
    ],
)
def test_the_robot_moves_at_the_recorded_pace_only(asked, cli, pace, moves):
    result = cli('demo', *pace)
    [(settings, _)] = asked
    assert (settings.executor is not None) is moves
    assert ('max_starvations' in settings.tolerances) is moves
    assert ('executor_node' in result.err) is moves


def test_options_reach_the_replay(asked, cli, tmp_path):
    cli('demo', '--mode', 'lockstep', '--rate', 2, '--out', tmp_path, '--domain', 9)
    [(settings, more)] = asked
    assert (settings.mode, settings.rate, settings.out) == ('lockstep', 2.0, tmp_path)
    assert more['domain'] == 9


def test_the_limits_of_the_demo_are_tolerances():
    limits = Tolerances.from_dict(demo.TOLERANCES | demo.MOTION_TOLERANCES)
    assert limits.max_mae is not None
    assert limits.min_chunk_share >= 0.99
