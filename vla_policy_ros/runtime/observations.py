# SPDX-License-Identifier: Apache-2.0
"""From the streams of a robot to observations: matching rules, joint vectors, and the observation itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.core.specs import Array, Column, ColumnKind, ObservationSpec
from vla_policy_ros.deployment.config import Deployment, to_ns
from vla_policy_ros.scheduling.joints import JointSelector
from vla_policy_ros.scheduling.matcher import MatchedSet
from vla_policy_ros.scheduling.samples import StreamRule

_JOINT_DEPTH = 1024
_BLACK_SHAPE = (480, 640, 3)


@dataclass(frozen=True, slots=True, eq=False)
class JointSample:
    """The joints of one source at one time.

    Attributes:
        values: (n,) float32 positions.
        periods: (n,) float32: a full turn for angles, 0 for what does not wrap.
        is_quaternion: (n,) bool: parts of quaternions, which are not blended.
    """

    values: Array
    periods: Array
    is_quaternion: Array


SampleT = TypeVar('SampleT')


@dataclass(frozen=True, slots=True, eq=False)
class Arrived(Generic[SampleT]):
    """A sample with the times, on the clock for durations, when it was received and when it was ready to match."""

    sample: SampleT
    received_ns: int
    ready_ns: int


def blend(
    older: Arrived[JointSample], newer: Arrived[JointSample], ratio: float
) -> Arrived[JointSample]:
    """Blend two joint samples; the times are those of the newer one."""
    joints = blend_joints(older.sample, newer.sample, ratio)
    return Arrived(joints, newer.received_ns, newer.ready_ns)


def blend_joints(older: JointSample, newer: JointSample, ratio: float) -> JointSample:
    """Blend two samples: linear, angles the shorter way round, quaternions from the nearer one."""
    periods = older.periods
    difference = newer.values - older.values
    turns = np.round(difference / np.where(periods > 0, periods, np.inf))
    values = older.values + np.float32(ratio) * (difference - turns * periods)
    nearer = older.values if ratio < 0.5 else newer.values
    values = np.where(older.is_quaternion, nearer, values).astype(np.float32)
    return JointSample(values, periods, older.is_quaternion)


def stream_rules(deployment: Deployment, observation: ObservationSpec) -> list[StreamRule]:
    """Return one matching rule per stream: the cameras in the policy's order, then the joint sources."""
    policy = deployment.policy
    jump_ns = to_ns(deployment.matching.time_jump_ms)
    rules = []
    for camera in observation.cameras:
        source = deployment.cameras[camera.name]
        # What the matcher holds, what waits for the policy, what is in work, what is being prepared and a black
        # image must all fit into the camera's slots.
        depth = policy.slots - policy.max_waiting - 2 - (source.fill == 'black')
        rules.append(
            StreamRule(
                camera.name,
                source.match,
                to_ns(source.tolerance_ms),
                to_ns(source.max_age_ms),
                history_ns=camera.history_ns,
                fill=source.fill,
                depth=depth,
                jump_ns=jump_ns,
                period_ns=_period_ns(source.rate_hz),
            )
        )
    for name, joints in zip(deployment.joint_streams, deployment.joint_states, strict=True):
        rules.append(
            StreamRule(
                name,
                joints.match,
                to_ns(joints.tolerance_ms),
                to_ns(joints.max_age_ms),
                history_ns=observation.state_history_ns,
                depth=_JOINT_DEPTH,
                jump_ns=jump_ns,
                period_ns=_period_ns(joints.rate_hz),
            )
        )
    return rules


def _period_ns(rate_hz: float | None) -> int | None:
    return None if rate_hz is None else round(1e9 / rate_hz)


class JointInput:
    """One joint source: picks its joints out of messages, and knows their place in the state vector.

    Args:
        state: All columns of the policy's state.
        names: The columns that this source gives; empty means all.
        rename: Name in the message to name in the policy.
    """

    def __init__(
        self, state: Sequence[Column], names: Sequence[str], rename: Mapping[str, str]
    ) -> None:
        places = {column.name: index for index, column in enumerate(state)}
        self.columns = np.array([places[name] for name in names or places], np.intp)
        own = [state[index] for index in self.columns]
        self._selector = JointSelector([column.name for column in own], rename=rename)
        self._periods = np.array([column.turn for column in own], np.float32)
        self._is_quaternion = np.array([c.kind is ColumnKind.QUATERNION for c in own], np.bool_)

    def read(self, names: Sequence[str], positions: Sequence[float] | Array) -> JointSample:
        """Return the sample of one message.

        Raises:
            StateError: A joint is missing or not finite, or the message is too short.
        """
        values = self._selector.select(names, positions)
        return JointSample(values, self._periods, self._is_quaternion)


class ObservationBuilder:
    """Makes observations of matched sets.

    Args:
        policy: Whose spec gives the order; it prepares the black images that stand in for optional cameras.
        deployment: The streams.
        inputs: One per joint source, in their order.

    Raises:
        ImageError: The policy cannot prepare a black image.
    """

    def __init__(
        self, policy: Policy, deployment: Deployment, inputs: Sequence[JointInput]
    ) -> None:
        spec = policy.spec.observation
        self._cameras = [camera.name for camera in spec.cameras]
        self._shape = (len(spec.state_history_ns), len(spec.state))
        self._inputs = dict(zip(deployment.joint_streams, inputs, strict=True))
        self._black = {
            name: policy.prepare(Frame.from_rgb(name, 0, np.zeros(_BLACK_SHAPE, np.uint8)))
            for name, source in deployment.cameras.items()
            if source.fill == 'black'
        }

    def build(
        self, matched: MatchedSet, *, instruction: Instruction, sequence: int, epoch: int
    ) -> Observation:
        """Return the observation of one matched set."""
        return Observation(
            images={name: self._images(name, matched.samples[name]) for name in self._cameras},
            state=self._state(matched.samples),
            instruction=instruction,
            stamp_ns=matched.stamp_ns,
            stream_stamps_ns=matched.stamps_ns,
            sequence=sequence,
            epoch=epoch,
        )

    def _images(
        self, camera: str, samples: Sequence[Arrived[Frame | PreparedFrame] | None]
    ) -> tuple[Frame | PreparedFrame, ...]:
        return tuple(
            self._black[camera] if arrived is None else arrived.sample for arrived in samples
        )

    def _state(self, samples: Mapping[str, Sequence[Arrived[JointSample]]]) -> Array:
        state = np.zeros(self._shape, np.float32)
        for stream, joints in self._inputs.items():
            for row, arrived in zip(state, samples[stream], strict=True):
                row[joints.columns] = arrived.sample.values
        return state
