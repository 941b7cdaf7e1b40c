# SPDX-License-Identifier: Apache-2.0
"""Real-time chunking on whole policies: on the host, and on a device that runs on the host."""

import dataclasses
import itertools
from contextlib import closing

import numpy as np
import pytest
from support.bundles import (
    HORIZON,
    STEP_NS,
    flow_manifest,
    write_direct_bundle,
    write_flow_bundle,
    write_flow_files,
)
from support.device_bundles import write_diffusion_bundle
from support.device_engines import DeviceEngines
from support.host_device import HostDevice
from support.lazy_device import LazyDevice
from support.rtc_bundles import infer_all, observe, write_prefix_bundle, write_relative_bundle

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.noise import DEVICE_LIMIT
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import BundleError, ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.policy import DelayAware
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.evaluation.observations import EpisodeObservations
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.registry import load_policy
from vla_policy_ros.sample import HELD_OUT_EPISODES, sample_bundle_path, sample_dataset_path

BLEND = RtcSettings(frozen_steps=1)


@pytest.fixture(scope='module')
def flow(tmp_path_factory):
    return write_flow_bundle(tmp_path_factory.mktemp('flow'), seed=5)


@pytest.fixture(scope='module')
def sample():
    return load_bundle(sample_bundle_path())


@pytest.fixture(params=['host', HostDevice, LazyDevice], ids=['host', 'device', 'late device'])
def make(request):
    """Make policies on the host, or on a device; at the end all are closed, and nothing is left open."""
    policies, devices = [], []

    def make(bundle, rtc=BLEND):
        settings = {}
        if request.param != 'host':
            device = request.param()
            devices.append((device, DeviceEngines(device)))
            settings = {'engine': 'tensorrt', 'device': device, 'load': devices[-1][1].load}
        policies.append(EnginePolicy(bundle, rtc=rtc, **settings))
        return policies[-1]

    yield make
    for policy in policies:
        policy.close()
    for device, engines in devices:
        assert engines.num_open == 0
        device.close()


def test_without_a_chunk_before_it_a_chunk_is_that_of_today(flow, make):
    blend, plain = make(flow), make(flow, None)
    for steps in (0, 10, 20):
        found = blend.infer(observe(flow, steps)).actions
        assert found.tobytes() == plain.infer(observe(flow, steps)).actions.tobytes()


def test_frozen_rows_are_reproduced_and_free_ones_are_not_touched(flow, make):
    rtc = RtcSettings(frozen_steps=1, overlap_steps=2)
    first, second = infer_all(make(flow, rtc), [observe(flow, 0), observe(flow, 1)])
    _, alone = infer_all(make(flow, None), [observe(flow, 0), observe(flow, 1)])
    assert second[0].tobytes() == first[1].tobytes()
    # The rows of this network do not see each other.
    assert second[2:].tobytes() == alone[2:].tobytes()
    gain = (1 - np.exp(-6 * 0.5)) / (1 - np.exp(-6))
    # x <- x + (2 * state - x + t) * gain / 4, as the network says; the state is half of its span, an action half of x.
    x, spans = first[2] / [0.5, 1.0, 1.5], np.array([0.5, 1.0, 1.5])
    for time in (0, 0.25, 0.5, 0.75):
        x = x + (2 * np.array([0.5, 0.5, -0.5]) - x + time) * gain / 4
    np.testing.assert_allclose(second[1], x * spans, atol=1e-5)


def test_rows_stay_frozen_from_chunk_to_chunk(flow, make):
    chunks = infer_all(make(flow), [observe(flow, steps) for steps in range(6)])
    for earlier, later in itertools.pairwise(chunks):
        assert later[0].tobytes() == earlier[1].tobytes()


def test_a_chunk_without_a_prefix_is_kept_too(flow, make):
    """The chunk after a gap has none; the one after that must not go on from before the gap."""
    _, second, third = infer_all(make(flow), [observe(flow, steps) for steps in (0, 9, 10)])
    assert third[0].tobytes() == second[1].tobytes()


@pytest.mark.parametrize('forget', ['reset', 'warmup'])
def test_nothing_outlives_a_reset_or_a_warmup(flow, make, forget):
    policy = make(flow)
    policy.infer(observe(flow, 0))
    getattr(policy, forget)()
    found = policy.infer(observe(flow, 1)).actions
    assert found.tobytes() == make(flow, None).infer(observe(flow, 1)).actions.tobytes()


def test_a_probe_is_run_without_a_prefix(flow, make):
    policy, plain = make(flow), make(flow, None)
    inputs, noise = plain.pool_inputs(observe(flow, 1))
    policy.infer(observe(flow, 0))
    policy.infer(observe(flow, 1))
    assert policy.run_pool(inputs, noise).tobytes() == plain.run_pool(inputs, noise).tobytes()


def test_the_delay_that_was_measured_is_frozen(flow, make):
    policy = make(flow, RtcSettings(margin_steps=0))
    assert isinstance(policy, DelayAware)
    first = policy.infer(observe(flow, 0)).actions
    assert policy.note_published(2 * STEP_NS) == ()
    second = policy.infer(observe(flow, 1)).actions
    assert second[:2].tobytes() == first[1:3].tobytes()
    assert second[2].tobytes() != first[3].tobytes()
    assert policy.note_published(STEP_NS) == ('delay_above_horizon',)
    third = policy.infer(observe(flow, 2)).actions
    assert third[0].tobytes() == second[1].tobytes()
    assert third[1].tobytes() != second[2].tobytes()


def test_a_policy_without_it_takes_no_notice_of_delays(flow, make):
    assert make(flow, None).note_published(10**9) == ()


def test_a_discarded_chunk_leaves_the_one_before_it(flow, make):
    policy = make(flow, RtcSettings(late='discard', margin_steps=0))
    first = policy.infer(observe(flow, 0)).actions
    for delay in (0, 1, 5):
        policy.note_published(delay * STEP_NS)
    with pytest.raises(ChunkRejectedError):
        policy.infer(observe(flow, 1))
    assert policy.infer(observe(flow, 1)).actions[0].tobytes() == first[1].tobytes()


def test_both_runners_give_the_same_stream(flow, make):
    """Noise on a device differs in its last bits."""
    stream = [observe(flow, steps, state=(steps / 9, 0.1, 0.2)) for steps in range(5)]
    expected = infer_all(EnginePolicy(flow, rtc=BLEND), stream)
    np.testing.assert_allclose(infer_all(make(flow), stream), expected, atol=20 * DEVICE_LIMIT)


@pytest.mark.parametrize('cuda_graph', [True, False])
def test_a_device_allocates_nothing_per_chunk_and_keeps_its_graph(flow, cuda_graph):
    device = HostDevice()
    engines = DeviceEngines(device)
    policy = EnginePolicy(
        flow, engine='tensorrt', device=device, load=engines.load, rtc=BLEND, cuda_graph=cuda_graph
    )
    policy.infer(observe(flow, 0))
    before = device.counts.copy()
    infer_all(policy, [observe(flow, steps) for steps in range(1, 20)])
    spent = device.counts - before
    assert spent['graph_launches'] == 19 * cuda_graph
    assert not spent['allocations'] + spent['pinned_allocations']
    policy.close()
    device.close()


class TestRelativeActions:
    """The network's numbers are targets less the state: a state that jumps must not move a frozen row."""

    @pytest.fixture
    def bundle(self, tmp_path):
        return write_relative_bundle(tmp_path)

    def test_a_jump_of_the_state_does_not_move_frozen_rows(self, bundle, make):
        rtc = RtcSettings(frozen_steps=3)
        first, second = infer_all(
            make(bundle, rtc), [observe(bundle, 0), observe(bundle, 2, (-0.4, 0.3, 0.9))]
        )
        np.testing.assert_allclose(second[:3], first[2:5], atol=2e-6)
        assert np.abs(second[3:] - first[5:][[0, 1, 2, 2, 2]]).max() > 0.01

    def test_statistics_without_a_range_are_refused(self, bundle):
        statistics = bundle.statistics['action']
        flat = dataclasses.replace(statistics, max=statistics.max.copy())
        flat.max[1] = flat.min[1]
        broken = dataclasses.replace(bundle, statistics={**bundle.statistics, 'action': flat})
        with pytest.raises(ConfigurationError, match='without a range') as caught:
            EnginePolicy(broken, rtc=BLEND)
        assert caught.value.code == 'rows_not_movable'

    def test_actions_that_are_decoded_after_the_loop_are_refused(self, tmp_path):
        write_flow_files(tmp_path)
        manifest = flow_manifest()
        manifest['action']['groups'][0]['representation'] = 'relative_to_observation'
        bundle = write_bundle(tmp_path, manifest)
        with pytest.raises(ConfigurationError, match='decoded after the loop') as caught:
            EnginePolicy(bundle, rtc=BLEND)
        assert caught.value.code == 'rows_not_movable'


class TestTrainedPrefix:
    """The network of `write_prefix_bundle` tells with its velocity what it was given."""

    RTC = RtcSettings(kind='inputs', frozen_steps=1)

    @pytest.fixture
    def bundle(self, tmp_path):
        return write_prefix_bundle(tmp_path)

    def test_the_network_is_given_rows_mask_and_length(self, bundle, make):
        spans = [1, 2, 3]
        first, second, third = infer_all(
            make(bundle, self.RTC), [observe(bundle, steps) for steps in (0, 1, 9)]
        )
        np.testing.assert_allclose(first, 0, atol=1e-6)  # nothing is given: x + (0 - x)
        assert second[0].tobytes() == first[1].tobytes()
        told = (first[1] / spans + 100) * spans
        np.testing.assert_allclose(second[1:], np.tile(told, (HORIZON - 1, 1)), rtol=1e-5)
        np.testing.assert_allclose(third, 0, atol=1e-5)  # nothing is left of the prefix before

    def test_without_it_nothing_is_given(self, bundle, make):
        for rtc in (None, BLEND):
            second = infer_all(make(bundle, rtc), [observe(bundle, 0), observe(bundle, 1)])[1]
            assert np.abs(second).max() < 1

    def test_more_rows_than_trained_are_refused(self, bundle):
        for changes in ({'frozen_steps': 2}, {'max_delay_steps': 2}):
            with pytest.raises(ConfigurationError, match='at most 1') as caught:
                EnginePolicy(bundle, rtc=RtcSettings(kind='inputs', **changes))
            assert caught.value.code == 'too_many_frozen'

    def test_a_longer_delay_is_clamped_to_what_was_trained(self, bundle):
        policy = EnginePolicy(bundle, rtc=RtcSettings(kind='inputs'))
        policy.infer(observe(bundle, 0))
        policy.note_published(2 * STEP_NS)
        policy.infer(observe(bundle, 2))
        assert policy.note_published(0) == ('delay_above_max',)

    def test_a_network_must_be_told_which_rows_are_given(self, tmp_path):
        with pytest.raises(BundleError, match='a mask or a length'):
            write_prefix_bundle(tmp_path, mask=None, length=None)

    def test_inputs_that_no_stage_reads_are_refused(self, tmp_path):
        with pytest.raises(BundleError) as caught:
            write_prefix_bundle(tmp_path, actions='taken')
        assert caught.value.code == 'not_read'
        assert 'loop.prefix.actions' in str(caught.value)

    def test_inputs_that_do_not_fit_are_named(self, tmp_path):
        with pytest.raises(BundleError) as caught:
            write_prefix_bundle(tmp_path, mask_dtype='float32')
        assert 'stages[0].inputs.mask' in str(caught.value)


class TestRefusals:
    @pytest.mark.parametrize(
        ('write', 'rtc', 'code'),
        [
            (write_direct_bundle, {}, 'needs_flow_matching'),
            (lambda folder: write_diffusion_bundle(folder, 'ddim'), {}, 'needs_flow_matching'),
            (write_flow_bundle, {'kind': 'inputs'}, 'needs_prefix_inputs'),
            (write_flow_bundle, {'kind': 'guided'}, 'needs_gradient'),
            (write_flow_bundle, {'frozen_steps': 3}, 'too_many_frozen'),
            (write_flow_bundle, {'max_delay_steps': 3}, 'too_many_frozen'),
            (write_flow_bundle, {'frozen_steps': 2, 'max_delay_steps': 1}, 'too_many_frozen'),
        ],
    )
    def test_what_cannot_work_is_refused_at_load(self, tmp_path, write, rtc, code):
        bundle = write(tmp_path)
        with pytest.raises(ConfigurationError) as caught:
            EnginePolicy(bundle, rtc=RtcSettings(**rtc))
        assert caught.value.code == code
        assert caught.value.where.startswith('policy.rtc.')

    @pytest.mark.parametrize(
        'rtc',
        [
            {'kind': 'magic'},
            {'ramp_rate': 0},
            {'step_tolerance': 0.6},
            {'frozen_steps': -1},
            {'frozen_steps': 'some'},
            {'frozen_steps': 3, 'overlap_steps': 2},
        ],
    )
    def test_values_that_mean_nothing_are_refused(self, rtc):
        with pytest.raises(ValueError):
            RtcSettings(**rtc)

    def test_a_policy_that_holds_the_pose_is_loaded_all_the_same(self, flow):
        load_policy(flow.folder, engine='none', rtc=BLEND).close()


class TestSamplePolicy:
    """The sample policy (flow matching) on the episodes that it was not trained on, asked every four steps.

    A chunk is there two steps after its observation, so it takes over at its row 2.
    """

    STRIDE, DELAY = 4, 2

    @pytest.fixture(scope='class', name='episodes')
    @staticmethod
    def load_episodes(sample):
        """Observations and recorded actions per episode."""
        episodes = []
        with closing(open_dataset(sample_dataset_path())) as dataset:
            for index in HELD_OUT_EPISODES:
                with closing(dataset.episode(index)) as episode:
                    seen = EpisodeObservations(dataset.info, episode, spec=sample.spec)
                    stream = list(seen.iterate(stride=TestSamplePolicy.STRIDE))
                    episodes.append((stream, np.asarray(episode.action)))
        return episodes

    def run(self, sample, episodes, rtc):
        """Return the arm's mean jump per seam, change of motion per row and error; and the chunks per episode."""
        policy = EnginePolicy(sample, rtc=rtc)
        delay, stride = self.DELAY, self.STRIDE
        jumps, bends, errors, streams = [], [], [], []
        for stream, truth in episodes:
            policy.reset()
            chunks = np.stack(infer_all(policy, stream))
            streams.append(chunks)
            arm = chunks[..., :5]
            jumps.append(arm[1:, delay] - arm[:-1, stride + delay])
            executed = np.concatenate([arm[0, :delay], *arm[:, delay : delay + stride]])
            executed = executed[: len(truth)]
            bends.append(np.diff(executed, n=2, axis=0))
            errors.append(np.abs(executed - truth[: len(executed), :5]))
        policy.close()
        lengths = (np.linalg.norm(np.concatenate(part), axis=1).mean() for part in (jumps, bends))
        return *lengths, np.concatenate(errors).mean(), streams

    @pytest.mark.parametrize(
        ('ramp_rate', 'jump_factor', 'bend_factor'), [(6.0, 1.7, 1.6), (2.0, 3.0, 2.5)]
    )
    def test_jumps_at_seams_fall_and_the_error_does_not_rise(
        self, sample, episodes, ramp_rate, jump_factor, bend_factor
    ):
        rtc = RtcSettings(frozen_steps=self.DELAY, ramp_rate=ramp_rate)
        jump, bend, error, _ = self.run(sample, episodes, None)
        blend_jump, blend_bend, blend_error, streams = self.run(sample, episodes, rtc)
        assert jump > jump_factor * blend_jump
        assert bend > bend_factor * blend_bend
        assert blend_error < 1.05 * error
        for chunks in streams:
            expected = chunks[:-1, self.STRIDE : self.STRIDE + self.DELAY]
            assert chunks[1:, : self.DELAY].tobytes() == expected.tobytes()

    def test_with_the_margin_there_is_no_jump_where_a_chunk_takes_over(self, sample, episodes):
        rtc = RtcSettings(frozen_steps=self.DELAY + 1)
        assert self.run(sample, episodes, rtc)[0] == 0

    def test_the_probe_holds(self, sample):
        policy = EnginePolicy(sample, rtc=RtcSettings())
        assert check_probe(policy, sample).cosine > 0.9999
        policy.close()
