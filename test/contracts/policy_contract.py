# SPDX-License-Identifier: Apache-2.0
"""What every policy must do."""

import dataclasses

import numpy as np
import pytest


class PolicyContract:
    """Subclasses give the fixtures `policy` and `observation` (one that the policy takes)."""

    def test_chunk_has_the_spec_of_the_policy(self, policy, observation):
        chunk, action = policy.infer(observation), policy.spec.action
        assert chunk.actions.shape == (action.horizon, len(action.columns))
        assert chunk.actions.dtype == np.float32
        assert chunk.columns == action.columns
        assert chunk.step_ns == action.step_ns
        assert chunk.policy_id == policy.spec.policy_id

    def test_chunk_lies_on_the_time_line_of_its_observation(self, policy, observation):
        chunk = policy.infer(observation)
        assert chunk.observation_stamp_ns == observation.stamp_ns
        assert chunk.start_ns == observation.stamp_ns + policy.spec.action.offset_ns
        assert chunk.stream_ages_ns == observation.stream_ages_ns()

    def test_chunk_carries_sequence_epoch_and_instruction(self, policy, observation):
        chunk = policy.infer(dataclasses.replace(observation, sequence=7, epoch=3))
        assert (chunk.sequence, chunk.epoch) == (7, 3)
        assert chunk.instruction == observation.instruction

    def test_the_same_observation_gives_the_same_chunk(self, policy, observation):
        first = policy.infer(observation)
        policy.infer(dataclasses.replace(observation, stamp_ns=observation.stamp_ns + 1))
        second = policy.infer(observation)
        assert first.actions.tobytes() == second.actions.tobytes()

    def test_a_chunk_is_not_touched_by_the_next_one(self, policy, observation):
        first = policy.infer(observation)
        kept = first.actions.copy()
        policy.infer(dataclasses.replace(observation, state=observation.state * 0.5))
        np.testing.assert_array_equal(first.actions, kept)
        with pytest.raises(ValueError, match='read-only'):
            first.actions[0, 0] = 1

    def test_prepared_images_give_the_same_chunk(self, policy, observation):
        prepared = {
            name: tuple(policy.prepare(frame) for frame in frames)
            for name, frames in observation.images.items()
        }
        for name, frames in observation.images.items():
            assert [image.stamp_ns for image in prepared[name]] == [f.stamp_ns for f in frames]
            assert {image.camera for image in prepared[name]} == {name}
        raw = policy.infer(observation)
        ahead = policy.infer(dataclasses.replace(observation, images=prepared))
        assert raw.actions.tobytes() == ahead.actions.tobytes()

    def test_warmup_and_reset_leave_the_next_chunk_as_it_is(self, policy, observation):
        before = policy.infer(observation)
        policy.warmup()
        policy.reset()
        assert policy.infer(observation).actions.tobytes() == before.actions.tobytes()

    def test_stage_latencies_are_whole_nanoseconds(self, policy, observation):
        latencies = policy.infer(observation).stage_latencies_ns
        assert all(isinstance(value, int) and value >= 0 for value in latencies.values())

    def test_close_may_be_called_twice(self, policy):
        policy.close()
        policy.close()
