# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from support.bundles import HORIZON, STEP_NS, write_flow_bundle
from support.rtc_bundles import observe, write_relative_bundle

from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.policies.chunk_memory import ChunkMemory

HALF = HORIZON // 2


def remember(bundle, **settings):
    manifest = bundle.manifest
    denormalizer = ActionDenormalizer(manifest.action, manifest.state, bundle.statistics)
    return ChunkMemory(bundle, RtcSettings(**settings), denormalizer=denormalizer)


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return write_flow_bundle(tmp_path_factory.mktemp('flow'))


@pytest.fixture(scope='module')
def rows(bundle):
    return np.arange(HORIZON * 3, dtype=np.float32).reshape(1, HORIZON, 3) / 7


@pytest.fixture
def make(bundle, rows):
    """Make a memory of one chunk at step 0."""

    def make(**settings):
        memory = remember(bundle, **settings)
        memory.keep(observe(bundle, 0), rows)
        return memory

    return make


@pytest.mark.parametrize(('steps', 'left'), [(1, 3), (1.2, 3), (2, 2), (3, 1), (0.2, 4)])
def test_rows_are_those_of_the_same_time(bundle, rows, make, steps, left):
    prefix = make(frozen_steps=1).recall(observe(bundle, steps))
    assert prefix.rows.tobytes() == rows[0, HORIZON - left :].tobytes()
    assert prefix.num_frozen == 1


def test_the_chunk_is_kept_by_value(bundle, rows):
    memory, sample = remember(bundle, frozen_steps=1), rows.copy()
    memory.keep(observe(bundle, 0), sample)
    sample[:] = 0
    assert memory.recall(observe(bundle, 1)).rows.tobytes() == rows[0, 1:].tobytes()


def test_the_first_chunk_has_no_prefix(bundle):
    assert remember(bundle).recall(observe(bundle, 0)) is None


@pytest.mark.parametrize(
    ('steps', 'changes'),
    [
        (HORIZON, {}),
        (HORIZON + 100, {}),
        (-1, {}),
        (0, {}),
        (1, {'epoch': 1}),
        (1, {'instruction': Instruction('wipe the table', 2)}),
    ],
)
def test_no_row_is_made_up(bundle, make, steps, changes):
    memory = make(frozen_steps=1)
    assert memory.recall(observe(bundle, steps, **changes)) is None
    assert memory.recall(observe(bundle, 1)) is not None  # the chunk is still there


def test_nothing_outlives_a_reset(bundle, make):
    memory = make()
    memory.forget()
    assert memory.recall(observe(bundle, 1)) is None


def test_observations_between_two_steps_are_not_joined(bundle, make):
    memory = make(frozen_steps=1)
    assert memory.recall(observe(bundle, 1.4)) is None
    assert memory.note_published(0) == ('between_steps',)
    assert make(frozen_steps=1, step_tolerance=0.5).recall(observe(bundle, 1.4)) is not None


@pytest.mark.parametrize(
    ('overlap', 'frozen', 'expected'),
    [(None, 1, (3, 1)), (2, 1, (2, 1)), (1, 1, (1, 1)), (9, 0, (3, 0))],
)
def test_overlap_is_cut_to_what_is_left(bundle, make, overlap, frozen, expected):
    prefix = make(overlap_steps=overlap, frozen_steps=frozen).recall(observe(bundle, 1))
    assert (len(prefix.rows), prefix.num_frozen) == expected


def test_inputs_take_the_frozen_rows_only(bundle, make):
    prefix = make(kind='inputs', frozen_steps=2).recall(observe(bundle, 1))
    assert (len(prefix.rows), prefix.num_frozen) == (2, 2)
    assert make(kind='inputs', frozen_steps=0).recall(observe(bundle, 1)) is None


class TestDelay:
    def frozen(self, memory, bundle, steps=1):
        prefix = memory.recall(observe(bundle, steps))
        return prefix.num_frozen

    def test_as_many_as_may_be_while_nothing_is_measured(self, bundle, make):
        assert self.frozen(make(), bundle) == HALF

    @pytest.mark.parametrize(('delay', 'frozen'), [(0, 0), (0.01, 1), (1, 1), (1.01, 2), (-3, 0)])
    def test_steps_are_rounded_up(self, bundle, make, delay, frozen):
        memory = make(margin_steps=0)
        memory.note_published(round(delay * STEP_NS))
        assert self.frozen(memory, bundle) == frozen

    def test_the_margin_is_added(self, bundle, make):
        memory = make(margin_steps=1)
        memory.note_published(STEP_NS // 2)
        assert self.frozen(memory, bundle) == 2

    def test_the_first_delay_counts_only_while_there_is_no_other(self, bundle, make):
        memory = make(margin_steps=0)
        memory.note_published(50 * STEP_NS)
        assert self.frozen(memory, bundle) == HALF
        memory.note_published(STEP_NS)
        assert self.frozen(memory, bundle) == 1

    def test_the_worst_of_the_last_hundred_counts(self, bundle, make):
        memory = make(margin_steps=0)
        memory.note_published(0)
        memory.note_published(2 * STEP_NS)
        for _ in range(99):
            memory.note_published(STEP_NS)
        assert self.frozen(memory, bundle) == 2
        memory.note_published(STEP_NS)
        assert self.frozen(memory, bundle) == 1

    def test_the_delay_after_a_reset_is_left_out(self, bundle, make, rows):
        memory = make(margin_steps=0)
        for delay in (0, 1, 1):
            memory.note_published(delay * STEP_NS)
        memory.forget()
        memory.note_published(50 * STEP_NS)
        memory.keep(observe(bundle, 0), rows)
        assert self.frozen(memory, bundle) == 1

    def test_rows_begin_after_the_offset_of_the_policy(self, bundle, rows):
        action = dataclasses.replace(bundle.spec.action, offset_ns=STEP_NS)
        late = dataclasses.replace(bundle, spec=dataclasses.replace(bundle.spec, action=action))
        memory = remember(late, margin_steps=0)
        memory.keep(observe(bundle, 0), rows)
        memory.note_published(2 * STEP_NS)
        assert self.frozen(memory, bundle) == 1

    def test_more_than_may_be_are_clamped_and_told(self, bundle, make):
        memory = make(max_delay_steps=1)
        memory.note_published(2 * STEP_NS)
        assert self.frozen(memory, bundle, 2) == 1
        assert memory.note_published(0) == ('delay_above_max',)
        memory.recall(observe(bundle, 1))
        assert memory.note_published(0) == ()

    def test_one_late_chunk_discards_one_chunk(self, bundle, make):
        memory = make(late='discard', margin_steps=0)
        memory.note_published(0)
        memory.note_published(STEP_NS)
        memory.note_published(9 * STEP_NS)
        with pytest.raises(ChunkRejectedError, match='9 steps') as caught:
            memory.recall(observe(bundle, 2))
        assert caught.value.code == 'delay_above_max'
        assert self.frozen(memory, bundle, 2) == 1

    @pytest.mark.parametrize(
        ('frozen', 'steps', 'causes'),
        [
            (2, 1, ('delay_above_horizon',)),
            (1, 1, ()),
            (2, 2, ()),
            (1, 3, ()),
            (2, 3, ('horizon_above_rest',)),
            (1, 4, ('horizon_above_rest',)),
        ],
    )
    def test_what_breaks_the_order_of_delay_and_horizon_is_told(
        self, bundle, make, frozen, steps, causes
    ):
        memory = make(frozen_steps=frozen)
        memory.recall(observe(bundle, steps))
        assert memory.note_published(0) == causes


class TestRelativeRows:
    """The network's numbers are (target - state) / span / 1: a row must keep its target when the state moves."""

    @pytest.fixture
    def bundle(self, tmp_path):
        return write_relative_bundle(tmp_path, clip=True)

    def test_a_row_keeps_its_target(self, bundle):
        memory = remember(bundle, frozen_steps=1)
        sample = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 8, 3)).astype(np.float32)
        memory.keep(observe(bundle, 0, (0.0, 0.0, 0.0)), sample)
        prefix = memory.recall(observe(bundle, 2, (0.5, 0.5, 0.5)))
        np.testing.assert_allclose(
            prefix.rows * [1, 2, 3] + 0.5, sample[0, 2:] * [1, 2, 3], atol=1e-6
        )

    def test_rows_end_where_clipping_leaves_no_number(self, bundle):
        memory = remember(bundle, frozen_steps=3)
        sample = np.zeros((1, 8, 3), np.float32)
        sample[0, 4:, 0] = 0.6
        memory.keep(observe(bundle, 0, (0.0, 0.0, 0.0)), sample)
        prefix = memory.recall(observe(bundle, 3, (-0.5, 0.0, 0.0)))
        assert (len(prefix.rows), prefix.num_frozen) == (1, 1)
        assert memory.note_published(0) == ('rows_out_of_range',)
