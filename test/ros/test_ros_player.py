# SPDX-License-Identifier: Apache-2.0
"""The player alone: no topics, a stage that notes what it is given."""

import itertools
import queue
import threading
import time

import pytest

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.synthetic import SyntheticDataset, read_step_index
from vla_policy_ros.ros.player import EpisodePlayer, PlayerSettings

pytestmark = pytest.mark.ros

STEP_NS = 2_000_000
PATIENCE_S = 10.0


class NotingStage:
    """Keeps (round, episode, index, stamp, read picture number, time) of every step."""

    def __init__(self, *, is_ready=True, has_clock=True):
        self.steps = []
        self.instructions = []
        self.ready = is_ready
        self.answer = lambda stamp_ns: None
        self.error = None
        self.num_flushes = 0
        self._has_clock = has_clock
        self._clock_ns = 1_000

    def is_ready(self):
        return self.ready

    def instruct(self, instruction):
        self.instructions.append(instruction)
        return True

    def send(self, step):
        if self.error:
            raise self.error
        self._clock_ns = step.stamp_ns
        number = read_step_index(step.images['front'])
        key = (step.round, step.episode.index, step.index, step.stamp_ns, number)
        self.steps.append((*key, self.now_ns()))
        self.answer(step.stamp_ns)

    def flush(self):
        self.num_flushes += 1

    def now_ns(self):
        return self._clock_ns if self._has_clock else time.monotonic_ns()


class Player:
    """A player with its stage."""

    def __init__(self, stage, **changes):
        settings = {
            'episodes': (0,),
            'mode': 'fast',
            'rate': 1.0,
            'loop': False,
            'start_s': 0.0,
            'end_s': 0.0,
            'ack_timeout_s': PATIENCE_S,
            'start_timeout_s': PATIENCE_S,
        }
        dataset = SyntheticDataset(
            num_episodes=2, num_steps=6, step_ns=STEP_NS, cameras={'front': (16, 32)}
        )
        self.stage = stage
        self.states = []
        self._ended = threading.Event()
        self.player = EpisodePlayer(
            dataset, stage, PlayerSettings(**{**settings, **changes}), on_change=self._note
        )

    def _note(self):
        self.states.append(self.player.state.state)
        if self.states[-1] in ('finished', 'failed'):
            self._ended.set()

    def play(self):
        self.player.start()
        return self.wait()

    def wait(self):
        assert self._ended.wait(PATIENCE_S)
        self.player.stop()
        return self.player.state


def test_fast_plays_every_step_with_its_pictures():
    player = Player(NotingStage(), episodes=(1, 0))
    state = player.play()
    assert player.states == ['playing', 'playing', 'finished']
    assert player.stage.num_flushes == 1
    assert (state.steps_sent, state.step, state.num_steps) == (12, 6, 6)
    assert player.stage.instructions == ['follow curve 1', 'follow curve 0']
    keys = [(turn, episode, index, n) for turn, episode, index, _, n, _ in player.stage.steps]
    assert keys == [(0, 1, i, i) for i in range(6)] + [(1, 0, i, i) for i in range(6)]
    stamps = [step[3] for step in player.stage.steps]
    gap_ns = 1_000_000_000
    differences = [b - a for a, b in itertools.pairwise(stamps)]
    assert differences == [STEP_NS] * 5 + [gap_ns] + [STEP_NS] * 5


def test_start_and_end_cut_the_episode():
    player = Player(NotingStage(), start_s=0.003, end_s=0.008)
    player.play()
    assert [step[2] for step in player.stage.steps] == [2, 3, 4]
    assert [step[4] for step in player.stage.steps] == [2, 3, 4]


def test_a_part_outside_of_the_episode_is_refused():
    state = Player(NotingStage(), start_s=5.0).play()
    assert state.state == 'failed'
    assert 'Change start_s or end_s' in state.detail


def test_timed_never_sends_before_its_stamp():
    player = Player(NotingStage(has_clock=False), episodes=(0, 1), mode='timed', rate=0.5)
    player.play()
    assert [step[5] >= step[3] for step in player.stage.steps] == [True] * 12
    stamps = [step[3] for step in player.stage.steps]
    assert stamps[1] - stamps[0] == 2 * STEP_NS


def test_lockstep_waits_for_every_answer():
    player = Player(NotingStage(), mode='lockstep')
    sent = queue.Queue()
    player.stage.answer = sent.put
    player.player.start()
    for index in range(6):
        stamp_ns = sent.get(timeout=PATIENCE_S)
        assert len(player.stage.steps) == index + 1
        player.player.acknowledge(stamp_ns - 1)  # another step's
        player.player.acknowledge(stamp_ns)
    state = player.wait()
    assert (state.state, state.steps_sent, state.steps_acknowledged) == ('finished', 6, 12)


def test_lockstep_without_an_answer_fails():
    state = Player(NotingStage(), mode='lockstep', ack_timeout_s=0.01).play()
    assert (state.state, state.steps_sent) == ('failed', 1)
    assert 'no acknowledgement' in state.detail


def test_nobody_there_fails():
    player = Player(NotingStage(is_ready=False), start_timeout_s=0.01)
    assert player.play().state == 'failed'
    assert 'an active policy node' in player.player.state.detail
    assert player.stage.steps == []


@pytest.mark.parametrize(
    'error',
    [
        DatasetError('front.mp4', got='nothing', expected='a video', next_step='Find it.'),
        RuntimeError('front.mp4 is cursed'),
    ],
)
def test_an_error_ends_the_run_as_failed(error):
    player = Player(NotingStage())
    player.stage.error = error
    state = player.play()
    assert state.state == 'failed'
    assert 'front.mp4' in state.detail


def test_a_stop_before_the_end_is_no_success():
    player = Player(NotingStage(), mode='lockstep', episodes=(0, 1))
    sent = threading.Event()
    player.stage.answer = lambda _: sent.set()
    player.player.start()
    assert sent.wait(PATIENCE_S)
    player.player.stop()
    state = player.player.state
    assert (state.state, state.detail) == ('failed', 'stopped at step 1 of 6 of episode 0')
    assert len(player.stage.steps) == 1


def test_a_loop_goes_on_until_it_is_stopped():
    player = Player(NotingStage(), loop=True)
    enough = threading.Event()

    def answer(_):
        if len(player.stage.steps) == 13:
            enough.set()

    player.stage.answer = answer
    player.player.start()
    assert enough.wait(PATIENCE_S)
    player.player.stop()
    assert player.player.state.state == 'finished'
    assert [step[0] for step in player.stage.steps[:13]] == [0] * 6 + [1] * 6 + [2]
