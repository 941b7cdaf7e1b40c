# SPDX-License-Identifier: Apache-2.0
"""Watches a replay: records chunks, true chunks and commands, and writes the verdict when it is over."""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import JointState

from vla_policy_ros.bundle.strict import StrictModel
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.evaluation.run import WatchedRun
from vla_policy_ros.evaluation.verdict import RunFacts, Tolerances
from vla_policy_ros.msg import ActionChunk, ObservationAck, PolicyStatus, ReplayStatus
from vla_policy_ros.ros.clock import NodeClock
from vla_policy_ros.ros.convert import chunk_from_message, to_ns
from vla_policy_ros.ros.lifecycle import ManagedNode
from vla_policy_ros.ros.motion_inputs import ExecutorFile, MotionInputs
from vla_policy_ros.ros.parameters import NodeParameters
from vla_policy_ros.ros.process import run_node
from vla_policy_ros.ros.qos import LATCHED, RELIABLE
from vla_policy_ros.sample import sample_dataset_path

_WATCH_PERIOD_S = 0.1
_DESCRIPTION_TIMEOUT_S = 10.0


class RecorderNodeParameters(StrictModel):
    """Parameters of the recorder node."""

    out: str = ''
    """Folder for report.json, report.xml, report.html and the recorded chunk streams."""
    name: str = 'replay'
    """Name of the run in the report."""
    command: str = ''
    """Command line that repeats the run, for the report."""
    dataset: str = ''
    """The replayed dataset, for sample frames in the report; `sample` for the embedded one; empty for none."""
    chunk_topic: str = 'action_chunk'
    """Topic of the policy's chunks."""
    truth_topic: str = 'action_chunk_truth'
    """Topic of the true chunks."""
    joint_topic: str = '/joint_states'
    """Topic of the joint states, for the error of a robot that holds its pose."""
    executor: str = ''
    """Executor file of the run: its commands and statuses are recorded and held against its limits; empty: there is
    no executor."""
    robot_topic: str = ''
    """Joint states of the robot that the executor moves, where they are not those that the policy sees."""
    tolerances: str = ''
    """Limits of the verdict as YAML, for example {max_mae: 0.05, min_chunk_share: 0.99}; empty for none."""
    execution_horizon: int = Field(default=0, ge=0, le=4096)
    """Rows that count as executed of every chunk; 0: the distance from one chunk to the next."""
    end_timeout_s: float = Field(default=5.0, ge=0.1, le=600.0)
    """Longest wait for answers, and for the robot to come to rest, after the last step was sent."""
    autostart: bool = False
    """Configure and activate at once."""


class RecorderNode(ManagedNode):
    """Managed node around a WatchedRun; its process ends with status 0 (passed) or 1 after the replay."""

    def __init__(self) -> None:
        super().__init__('recorder_node')
        self._time = NodeClock(self)
        self._settings = NodeParameters(self, RecorderNodeParameters, lambda _: None).current
        self._run = WatchedRun()
        self._tolerances = Tolerances()
        self._inputs: list[Any] = []
        self._truth_input: Any = None
        self._executor: ExecutorFile | None = None
        self._motion: MotionInputs | None = None
        self._timer: Any = None
        self._replay: ReplayStatus | None = None
        self._policy: PolicyStatus | None = None
        self._finished_s: float | None = None
        if self._settings.autostart:
            self.autostart()

    def configure(self) -> None:
        """Check the output folder, the tolerances and the executor file."""
        p = self._settings
        if not p.out:
            raise ConfigurationError(
                'parameter out',
                got='nothing',
                expected='a folder for the report',
                next_step='Set out:=FOLDER.',
            )
        Path(p.out).mkdir(parents=True, exist_ok=True)
        self._tolerances = Tolerances.from_dict(yaml.safe_load(p.tolerances or '{}'))
        if p.executor:
            self._executor = ExecutorFile(self, p.executor, timeout_s=_DESCRIPTION_TIMEOUT_S)

    def activate(self) -> None:
        """Subscribe; the true chunks come last, because the replay waits for that subscriber."""
        p = self._settings
        self._run = WatchedRun()
        subscribe = self.create_subscription
        self._inputs = [
            subscribe(ActionChunk, p.chunk_topic, self._on_chunk, RELIABLE),
            subscribe(ObservationAck, 'observation_ack', self._on_ack, RELIABLE),
            subscribe(PolicyStatus, 'policy_status', self._on_policy, LATCHED),
            subscribe(ReplayStatus, 'replay_status', self._on_replay, LATCHED),
            subscribe(JointState, p.joint_topic, self._on_joints, RELIABLE),
        ]
        if self._executor is not None:
            settings, collector = self._executor.settings, self._run.motion
            self._motion = MotionInputs(self, settings, collector, robot_topic=p.robot_topic)
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(_WATCH_PERIOD_S, self._watch, clock=wall)

    def deactivate(self) -> None:
        """Unsubscribe."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        if self._motion is not None:
            self._motion.close()
        if self._truth_input is not None:
            self._inputs.append(self._truth_input)
            self._truth_input = None
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []

    def release(self) -> None:
        """Unsubscribe; what was written stays."""
        self.deactivate()

    def _on_chunk(self, message: ActionChunk) -> None:
        self._run.add_chunk(
            chunk_from_message(message),
            publish_stamp_ns=to_ns(message.publish_stamp),
            receive_stamp_ns=self._time.now_ns(),
        )

    def _on_truth(self, message: ActionChunk) -> None:
        self._run.add_truth(
            chunk_from_message(message),
            publish_stamp_ns=to_ns(message.publish_stamp),
            receive_stamp_ns=self._time.now_ns(),
        )

    def _on_ack(self, message: ObservationAck) -> None:
        refusal = '' if message.accepted else f'{message.stream}/{message.cause}'
        self._run.add_answer(to_ns(message.header.stamp), refusal)

    def _on_joints(self, message: JointState) -> None:
        positions = np.asarray(message.position)
        self._run.add_pose(to_ns(message.header.stamp), message.name, positions.tolist())

    def _on_policy(self, message: PolicyStatus) -> None:
        self._policy = message
        self._run.set_drops({stream.name: int(stream.missing) for stream in message.streams})

    def _on_replay(self, message: ReplayStatus) -> None:
        self._replay = message

    def _watch(self) -> None:
        if self._truth_input is None and self._is_ready():
            # Nothing of theirs will be missed, so the replay may begin.
            topic = self._settings.truth_topic
            self._truth_input = self.create_subscription(
                ActionChunk, topic, self._on_truth, RELIABLE
            )
        replay = self._replay
        if replay is None or replay.state not in ('finished', 'failed'):
            return
        now_s = time.monotonic()
        if self._finished_s is None:
            self._finished_s = now_s
        waited_s = now_s - self._finished_s
        if (self._is_over(replay) and waited_s > _WATCH_PERIOD_S) or (
            waited_s > self._settings.end_timeout_s
        ):
            self.deactivate()
            self._write(replay)

    def _is_ready(self) -> bool:
        """Whether policy and executor are there."""
        return self._policy is not None and (self._motion is None or self._motion.is_ready)

    def _is_over(self, replay: ReplayStatus) -> bool:
        """Whether every step was answered and the robot is still."""
        is_answered = self._run.num_answered >= replay.steps_sent
        return is_answered and (self._motion is None or self._motion.is_over)

    def _write(self, replay: ReplayStatus) -> None:
        p = self._settings
        executed = None
        if self._executor is not None and self._motion is not None:
            columns, status = self._run.policy.columns, self._motion.status
            executed = self._executor.finish(
                self._run.motion, columns, status, robot_topic=p.robot_topic
            )
        verdict = self._run.judge(
            self._facts(replay),
            num_sent=int(replay.steps_sent),
            tolerances=self._tolerances,
            execution_horizon=p.execution_horizon or None,
            executed=executed,
        )
        dataset = None
        if p.dataset:
            dataset = open_dataset(
                sample_dataset_path() if p.dataset == 'sample' else Path(p.dataset)
            )
        page = self._run.write(
            Path(p.out),
            verdict,
            dataset=dataset,
            episode_index=max(replay.episode, 0),
            motion=executed[0] if executed else None,
        )
        if dataset is not None:
            dataset.close()
        has_passed = verdict.passed and replay.state == 'finished'
        self.get_logger().info(f'{"passed" if has_passed else "NOT passed"}: {page}')
        self.exit_status = 0 if has_passed else 1

    def _facts(self, replay: ReplayStatus) -> RunFacts:
        policy = self._policy
        details = {
            'dataset': replay.dataset,
            'episode': str(replay.episode),
            'mode': replay.mode,
            'replay': f'{replay.state} {replay.detail}'.strip(),
            'steps sent': str(replay.steps_sent),
            'late steps': str(replay.late_steps),
            'faults injected': str(replay.faults_injected),
        }
        if policy is not None:
            details |= {
                'policy': policy.policy_id,
                'engine': policy.engine,
                'preprocess': policy.preprocess,
                'instruction': policy.instruction,
            }
        return RunFacts(
            name=self._settings.name,
            command=self._settings.command,
            versions={'python': platform.python_version(), 'machine': platform.platform()},
            details=details,
        )


def main() -> int:
    """Run the recorder node."""
    return run_node(RecorderNode)


if __name__ == '__main__':
    sys.exit(main())
