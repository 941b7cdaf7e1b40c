# SPDX-License-Identifier: Apache-2.0
"""The topics of a replay: what is published per step, and whether the consumers are there."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Literal

from pydantic import Field
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from vla_policy_ros.bundle.strict import StrictModel
from vla_policy_ros.core.dataset import DatasetInfo
from vla_policy_ros.core.specs import Array
from vla_policy_ros.deployment.config import topic_part
from vla_policy_ros.evaluation.truth import truth_chunk
from vla_policy_ros.msg import ActionChunk, PolicyStatus
from vla_policy_ros.ros.clock import NodeClock
from vla_policy_ros.ros.convert import chunk_to_message, to_time
from vla_policy_ros.ros.faults import Faults, kinds
from vla_policy_ros.ros.player import EPISODE_GAP_NS, Step
from vla_policy_ros.ros.qos import LATCHED, RELIABLE
from vla_policy_ros.ros.replay_messages import image_message, joint_message, shifted_stamp

# A published clock starts here: the same in every run, and not zero, which means "no time yet".
_CLOCK_START_NS = 1_000_000_000
# Endpoints are matched on one side a little before the other side knows.
_SENSOR_DEPTH = 64
_SETTLE_S = 0.5
_FLUSH_TIMEOUT = Duration(seconds=1)


class ReplayNodeParameters(StrictModel):
    """Parameters of the replay node."""

    dataset: str = 'sample'
    """LeRobot dataset (v2.0, v2.1, v3.0) or rosbag2 (folder, .mcap, .db3), or `sample` for the embedded one."""
    episodes: str = '0'
    """Episodes to play: 0, or 0,2,5-8, or all."""
    mode: Literal['timed', 'fast', 'lockstep'] = 'timed'
    """timed: at the recorded pace; fast: without waiting; lockstep: the next step after the last was acknowledged."""
    rate: float = Field(default=1.0, ge=0.01, le=100.0)
    """Factor on the recorded pace."""
    loop: bool = False
    """Start over after the last episode."""
    start_s: float = Field(default=0.0, ge=0.0, le=86400.0)
    """Seconds into every episode at which to begin."""
    end_s: float = Field(default=0.0, ge=0.0, le=86400.0)
    """Seconds into every episode at which to end; 0 plays it whole."""
    image_transport: Literal['raw', 'compressed'] = 'raw'
    """Send images as sensor_msgs/Image (rgb8) or as JPEG in sensor_msgs/CompressedImage."""
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    """Quality of compressed images."""
    reliability: Literal['reliable', 'best_effort'] = 'reliable'
    """QoS of cameras and joint states."""
    camera_topic: str = '/camera/{camera}/image_raw'
    """Topic of each camera; {camera} is its name, with _ for what no topic may hold. Compressed images append /compressed."""
    joint_topic: str = '/joint_states'
    """Topic of the joint states."""
    instruction_topic: str = 'instruction'
    """Topic of the instruction (std_msgs/String, latched)."""
    truth_topic: str = 'action_chunk_truth'
    """Topic of the true chunks; the policy's own topic makes this node stand in for the policy."""
    horizon: int = Field(default=16, ge=1, le=4096)
    """Rows of a true chunk; the last action is repeated at the end of an episode."""
    execution_horizon: int = Field(default=1, ge=1, le=4096)
    """A true chunk is published every so many steps."""
    publish_clock: bool = False
    """Publish /clock (always in lockstep); consumers then need use_sim_time."""
    wait_for_policy: bool = True
    """Wait for an active policy node that has found every topic; false starts at once."""
    wait_for_recorder: bool = False
    """Wait also for a subscriber of the true chunks."""
    start_timeout_s: float = Field(default=60.0, ge=0.1, le=3600.0)
    """Longest wait for consumers."""
    ack_timeout_s: float = Field(default=10.0, ge=0.1, le=3600.0)
    """Longest wait for an acknowledgement in lockstep."""
    faults: str = ''
    """Faults to inject, as KIND:TARGET:WHEN[:SECONDS] separated by semicolons; see doc/reference."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Seed of the drawn faults."""
    autostart: bool = False
    """Configure and activate at once."""
    exit_at_end: bool = False
    """End the process after the last step."""

    @property
    def drives_clock(self) -> bool:
        """Whether stamps come from a clock that the replay publishes itself."""
        return self.publish_clock or self.mode == 'lockstep'


class ReplayTopics:
    """Publishers of one replay; the player's stage.

    Args:
        node: An rclpy node.
        info: What is played.
        parameters: How it is played.
    """

    def __init__(self, node: Any, *, info: DatasetInfo, parameters: ReplayNodeParameters) -> None:
        cameras = tuple(camera.name for camera in info.cameras)
        self._joint_names = tuple(column.name for column in info.state)
        self.faults = Faults(
            parameters.faults, targets=(*cameras, *self._joint_names), seed=parameters.seed
        )
        self.policy_status: PolicyStatus | None = None
        self._node = node
        self._node_clock = NodeClock(node)
        self._info = info
        self._parameters = parameters
        self._clock_ns = _CLOCK_START_NS
        self._num_sent = 0
        self._instruction: str | None = None
        self._ready_since_s: float | None = None
        self._cameras: dict[str, Any] = {}
        self._joints: Any = None
        self._truth: Any = None
        self._clock: Any = None
        self._create()

    def _create(self) -> None:
        p = self._parameters
        create = self._node.create_publisher
        sensor = QoSProfile(
            depth=_SENSOR_DEPTH,
            reliability=ReliabilityPolicy.RELIABLE
            if p.reliability == 'reliable'
            else ReliabilityPolicy.BEST_EFFORT,
        )
        is_raw = p.image_transport == 'raw'
        for camera in self._info.cameras:
            topic = p.camera_topic.replace('{camera}', topic_part(camera.name))
            self._cameras[camera.name] = create(
                Image if is_raw else CompressedImage,
                topic if is_raw else f'{topic}/compressed',
                sensor,
            )
        if self._info.state:
            self._joints = create(JointState, p.joint_topic, sensor)
        if self._info.action:
            self._truth = create(ActionChunk, p.truth_topic, RELIABLE)
        if p.drives_clock:
            self._clock = create(ClockMessage, '/clock', RELIABLE)
        self._instructions = create(String, p.instruction_topic, LATCHED)

    def begin(self) -> None:
        """Begin a replay: its faults count from step 0, and no stamp of an earlier one comes again."""
        if self._num_sent:
            self._clock_ns += EPISODE_GAP_NS
        self._num_sent = 0
        self._instruction = None
        self._ready_since_s = None
        self.policy_status = None

    def close(self) -> None:
        """Remove every publisher."""
        others = (self._joints, self._truth, self._clock, self._instructions)
        for publisher in (*self._cameras.values(), *others):
            if publisher is not None:
                self._node.destroy_publisher(publisher)

    def flush(self) -> None:
        """Wait until reliable subscribers have what was sent, for a second at most."""
        for publisher in (*self._cameras.values(), self._joints, self._truth):
            if publisher is not None:
                publisher.wait_for_all_acked(_FLUSH_TIMEOUT)

    def now_ns(self) -> int:
        """Return the published clock, or the node's."""
        if self._clock is not None:
            return self._clock_ns
        return self._node_clock.now_ns()

    def is_ready(self) -> bool:
        """Return whether the policy and the recorder have been matched for a moment."""
        if not self._are_consumers_matched():
            self._ready_since_s = None
            return False
        now_s = time.monotonic()
        if self._ready_since_s is None:
            self._ready_since_s = now_s
        return now_s - self._ready_since_s >= _SETTLE_S

    def instruct(self, instruction: str) -> bool:
        """Publish an instruction; wait for the policy to confirm it, so that no frame is judged by the old one."""
        if instruction != self._instruction:
            self._instruction = instruction
            self._instructions.publish(String(data=instruction))
        if not self._parameters.wait_for_policy or not instruction:
            return True
        return self.policy_status is not None and self.policy_status.instruction == instruction

    def send(self, step: Step) -> None:
        """Publish one step: clock, true chunk, cameras, joint states.

        Cameras go first: the reference is one of them as a rule, and when time starts anew, the policy forgets what it
        was given before the reference.
        """
        index = self._num_sent
        self._num_sent += 1
        if self._clock is not None:
            self._clock_ns = step.stamp_ns
            self._clock.publish(ClockMessage(clock=to_time(step.stamp_ns)))
        if self._truth is not None and step.index % self._parameters.execution_horizon == 0:
            self._send_truth(step, index)
        for camera, image in step.images.items():
            self._send_image(step.stamp_ns, index, camera, image)
        if self._joints is not None:
            self._send_joints(step, index)

    def _send_truth(self, step: Step, index: int) -> None:
        chunk = dataclasses.replace(
            truth_chunk(
                self._info,
                step.episode,
                step=step.index,
                horizon=self._parameters.horizon,
                epoch=step.round,
            ),
            start_ns=step.stamp_ns,
            observation_stamp_ns=step.stamp_ns,
            sequence=index,
        )
        self._truth.publish(chunk_to_message(chunk, publish_stamp_ns=self.now_ns()))

    def _send_joints(self, step: Step, index: int) -> None:
        faults = self.faults.active(index, 'joint_states', *self._joint_names)
        if 'drop' in kinds(faults):
            return
        message = joint_message(
            self._joint_names,
            step.episode.state[step.index],
            stamp_ns=shifted_stamp(step.stamp_ns, faults),
            faults=faults,
        )
        self._joints.publish(message)

    def _send_image(self, stamp_ns: int, index: int, camera: str, image: Array) -> None:
        faults = self.faults.active(index, camera)
        if 'drop' in kinds(faults):
            return
        p = self._parameters
        message = image_message(
            image,
            camera=camera,
            stamp_ns=shifted_stamp(stamp_ns, faults),
            jpeg_quality=p.jpeg_quality if p.image_transport == 'compressed' else None,
            faults=faults,
        )
        self._cameras[camera].publish(message)

    def _are_consumers_matched(self) -> bool:
        p = self._parameters
        recorder_is_missing = (
            p.wait_for_recorder
            and self._truth is not None
            and not self._truth.get_subscription_count()
        )
        if recorder_is_missing or not p.wait_for_policy:
            return not recorder_is_missing
        status = self.policy_status
        if status is None or status.state not in ('waiting', 'running'):
            return False
        publishers = [*self._cameras.values()] + ([self._joints] if self._joints else [])
        counts = {each.topic_name: each.get_subscription_count() for each in publishers}
        fed = [stream for stream in status.streams if stream.topic in counts]
        # Each side learns of the other by itself.
        return bool(fed) and all(stream.publishers and counts[stream.topic] for stream in fed)
