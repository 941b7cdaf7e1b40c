# SPDX-License-Identifier: Apache-2.0
"""Chunk streams, an episode in memory and a policy that answers from it."""

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.dataset import DatasetCamera, DatasetInfo
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import ActionSpec, CameraSpec, Column, ObservationSpec, PolicySpec
from vla_policy_ros.evaluation.recording import ChunkRecording

STEP_NS = 50_000_000
MS = 1_000_000


def columns(num, *, unit='rad', **kwargs):
    return tuple(Column(f'joint_{index}', unit, **kwargs) for index in range(num))


def chunk(actions, step=0, *, cols=None, start_ns=None, **kwargs):
    actions = np.asarray(actions, np.float32)
    stamp_ns = step * STEP_NS
    return ActionChunk(
        actions=actions,
        columns=cols or columns(actions.shape[1]),
        step_ns=kwargs.pop('step_ns', STEP_NS),
        start_ns=stamp_ns if start_ns is None else start_ns,
        observation_stamp_ns=stamp_ns,
        **kwargs,
    )


def record(chunks, *, latency_ns=10 * MS):
    recording = ChunkRecording()
    for one in chunks:
        published_ns = one.observation_stamp_ns + latency_ns
        recording.append(one, publish_stamp_ns=published_ns, receive_stamp_ns=published_ns + MS)
    return recording


def stream(actions, *, horizon, stride=1, offset=0.0, **kwargs):
    """Chunks of an (N, D) motion, one every `stride` steps, the last row repeated past the end."""
    actions = np.asarray(actions, np.float32)
    rows = np.arange(horizon)
    return record(
        chunk(
            actions[np.minimum(step + rows, len(actions) - 1)] + np.float32(offset),
            step,
            sequence=sequence,
            **kwargs,
        )
        for sequence, step in enumerate(range(0, len(actions), stride))
    )


class MemoryEpisode:
    """An episode whose images are all of one value, the number of their step; the array is reused."""

    def __init__(self, index, *, num_steps, num_joints, with_actions=True):
        motion = np.arange(num_steps * num_joints, dtype=np.float32).reshape(num_steps, -1)
        self.index = index
        self.stamps_ns = np.arange(num_steps, dtype=np.int64) * STEP_NS
        self.state = motion + 100 * index
        self.action = self.state + 0.5 if with_actions else np.zeros((num_steps, 0), np.float32)
        self.instructions = ['pick'] * (num_steps // 2) + ['place'] * (num_steps - num_steps // 2)
        self.is_closed = False

    def images(self, camera, start=0, stop=None):
        if camera != 'front':
            raise DatasetError(camera, got=camera, expected='front', next_step='.')
        image = np.zeros((4, 6, 3), np.uint8)
        for step in range(start, len(self.stamps_ns) if stop is None else stop):
            image[:] = step
            yield image

    def close(self):
        self.is_closed = True


class MemoryDataset:
    def __init__(self, *, num_episodes=2, num_steps=10, num_joints=2, with_actions=True):
        joints = columns(num_joints)
        self.info = DatasetInfo(
            name='memory',
            format='memory',
            robot_type='test',
            step_ns=STEP_NS,
            num_episodes=num_episodes,
            cameras=(DatasetCamera('front', 'images.front', 4, 6),),
            state=joints,
            action=joints if with_actions else (),
        )
        self.episodes = [
            MemoryEpisode(
                index, num_steps=num_steps, num_joints=num_joints, with_actions=with_actions
            )
            for index in range(num_episodes)
        ]

    def episode(self, index):
        return self.episodes[index]

    def close(self):
        pass


def policy_spec(*, num_joints=2, horizon=4, camera='front', history_ns=(0,), names=None):
    joints = columns(num_joints)
    state = tuple(Column(name, 'rad') for name in names) if names else joints
    return PolicySpec(
        policy_id='memory@0',
        observation=ObservationSpec(
            cameras=(CameraSpec(camera, history_ns),), state=state, state_history_ns=history_ns
        ),
        action=ActionSpec(columns=joints, horizon=horizon, step_ns=STEP_NS),
    )


class EchoPolicy:
    """Answers with the observed state plus 0.5 in every row: right in row 0, further off in every later one."""

    def __init__(self, spec=None, *, error=None):
        self.spec = spec or policy_spec()
        self.seen = []
        self.resets = 0
        self._error = error

    def prepare(self, frame):
        return frame

    def warmup(self):
        pass

    def reset(self):
        self.resets += 1

    def close(self):
        pass

    def infer(self, observation):
        if self._error:
            raise self._error
        images = {
            name: [int(frame.data[0]) for frame in frames]
            for name, frames in observation.images.items()
        }
        self.seen.append((observation.sequence, images))
        rows = np.repeat(observation.state[-1:] + 0.5, self.spec.action.horizon, axis=0)
        return ActionChunk(
            actions=rows.astype(np.float32),
            columns=self.spec.action.columns,
            step_ns=self.spec.action.step_ns,
            start_ns=observation.stamp_ns,
            observation_stamp_ns=observation.stamp_ns,
            sequence=observation.sequence,
            epoch=observation.epoch,
            instruction=Instruction(
                observation.instruction.text, observation.instruction.instruction_id
            ),
            policy_id=self.spec.policy_id,
            stream_ages_ns=observation.stream_ages_ns(),
            stage_latencies_ns={'network': 5},
        )
