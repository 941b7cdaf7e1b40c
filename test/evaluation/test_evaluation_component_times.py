# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
from support.policies import FakePolicy, make_frame

from vla_policy_ros.core.clock import ManualClock
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.evaluation.component_times import (
    greatest_difference,
    measure_inference,
    split_stages,
    summarize_components,
    summarize_groups,
)

STAGES = [('vision', False), ('language', False), ('step', True), ('decoder', False)]
SAMPLES = [
    {'receive': 1, 'preprocess': 2, 'inputs': 3, 'vision': 10, 'step': 20, 'total': 40},
    {'receive': 1, 'preprocess': 2, 'inputs': 3, 'vision': 30, 'step': 10, 'total': 50},
    {'receive': 1, 'preprocess': 2, 'inputs': 3, 'vision': 20, 'step': 60, 'total': 90},
]


@pytest.fixture
def observation():
    return Observation(
        images={'front': (make_frame('front', 5, 7),)},
        state=np.zeros((1, 2), np.float32),
        instruction=Instruction(),
        stamp_ns=5,
    )


class SlowPolicy(FakePolicy):
    """Every call takes its own time on a clock that stands still otherwise."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.raw = []

    def prepare(self, frame):
        self.raw.append(frame.data)
        self.clock.advance(100)
        return super().prepare(frame)

    def infer(self, observation):
        self.clock.advance(1000)
        chunk = super().infer(observation)
        return replace(chunk, stage_latencies_ns={'preprocess': 3, 'network': 5})


def test_components_of_a_policy_on_the_host(observation):
    clock = ManualClock()
    times, chunk = measure_inference(SlowPolicy(clock), observation, clock=clock)
    assert times == {
        'receive': 0,
        'preprocess': 100,
        'inputs': 3,
        'network': 5,
        'total': 1100,
    }
    assert chunk.actions[0, 0] == 7


def test_upload_and_preprocess_part_where_prepare_only_enqueues(observation):
    clock = ManualClock()
    waited = []

    def wait(image):
        waited.append(image.camera)
        clock.advance(30)

    times, _ = measure_inference(SlowPolicy(clock), observation, clock=clock, wait=wait)
    assert (times['upload'], times['preprocess'], times['total']) == (100, 30, 1130)
    assert list(times)[:3] == ['receive', 'upload', 'preprocess']
    assert waited == ['front']


def test_every_inference_receives_bytes_of_its_own(observation):
    clock = ManualClock()
    policy = SlowPolicy(clock)
    measure_inference(policy, observation, clock=clock)
    (held,) = observation.images['front']
    assert not np.shares_memory(policy.raw[0], held.data)


def test_figures_are_milliseconds_per_component():
    figures = summarize_components([{'vision': 1_000_000 * n, 'total': 5} for n in (3, 1, 2)])
    assert list(figures) == ['vision', 'total']
    assert (figures['vision'].p50_ms, figures['vision'].min_ms) == (2, 1)
    assert figures['vision'].p99_ms == pytest.approx(2.98)
    assert figures['vision'].count == 3


def test_nothing_measured_gives_no_figures():
    assert summarize_components([]) == {}


def test_a_group_is_added_up_before_its_median_is_taken():
    groups = summarize_groups(SAMPLES, backbone=['vision'], action_head=['step'])
    assert {name: figures.p50_ms * 1e6 for name, figures in groups.items()} == pytest.approx(
        {'data processing': 6, 'backbone': 20, 'action head': 20, 'end to end': 50}
    )
    both = summarize_groups(SAMPLES, backbone=['vision', 'step'], action_head=[])
    # 30, 40 and 80: the median of the sums, not the sum of the medians.
    assert both['backbone'].p50_ms * 1e6 == pytest.approx(40)
    assert both['action head'] is None


def test_groups_inside_one_graph_cannot_be_told():
    groups = summarize_groups(
        [{'network': 9, 'total': 9}], backbone=['vision'], action_head=['step']
    )
    assert groups['backbone'] is groups['action head'] is groups['data processing'] is None
    assert groups['end to end'].p50_ms * 1e6 == pytest.approx(9)


def test_what_comes_before_the_loop_is_the_backbone():
    assert split_stages(STAGES) == (('vision', 'language'), ('step', 'decoder'))
    assert split_stages([('network', False)]) == ((), ('network',))
    assert split_stages(STAGES, ['decoder', 'vision']) == (
        ('vision', 'decoder'),
        ('language', 'step'),
    )


def test_an_unknown_stage_is_refused():
    with pytest.raises(ConfigurationError) as fault:
        split_stages(STAGES, ['visoin'])
    assert fault.value.code == 'unknown_stage'


def test_the_greatest_difference_over_all_chunks(observation):
    chunk = FakePolicy().infer(replace(observation, images={}))
    other = replace(chunk, actions=chunk.actions + np.array([[0.5], [-2]], np.float32))
    assert greatest_difference([chunk, chunk], [chunk, other]) == 2
    assert greatest_difference([], []) == 0
