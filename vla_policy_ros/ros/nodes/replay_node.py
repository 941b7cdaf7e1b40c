# SPDX-License-Identifier: Apache-2.0
"""Plays recorded episodes as cameras, joint states, instruction and clock, and publishes the true action chunks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration

from vla_policy_ros.core.dataset import Dataset
from vla_policy_ros.datasets.episodes import parse_episodes
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.msg import ObservationAck, PolicyStatus, ReplayStatus
from vla_policy_ros.ros.convert import to_ns, to_time
from vla_policy_ros.ros.lifecycle import ManagedNode
from vla_policy_ros.ros.parameters import NodeParameters
from vla_policy_ros.ros.player import EpisodePlayer, PlayerSettings
from vla_policy_ros.ros.process import run_node
from vla_policy_ros.ros.qos import LATCHED, RELIABLE
from vla_policy_ros.ros.replay_topics import ReplayNodeParameters, ReplayTopics
from vla_policy_ros.sample import sample_dataset_path

_STATUS_PERIOD_S = 0.2


class ReplayNode(ManagedNode):
    """Managed node around an EpisodePlayer."""

    def __init__(self) -> None:
        super().__init__('replay_node')
        self._settings = NodeParameters(self, ReplayNodeParameters, lambda _: None).current
        self._dataset: Dataset | None = None
        self._topics: ReplayTopics | None = None
        self._player: EpisodePlayer | None = None
        self._answers: list[Any] = []
        self._timer: Any = None
        self._status = self.create_publisher(ReplayStatus, 'replay_status', LATCHED)
        if self._settings.autostart:
            self.autostart()

    def configure(self) -> None:
        """Open the dataset and create every publisher."""
        name = self._settings.dataset
        self._dataset = open_dataset(sample_dataset_path() if name == 'sample' else Path(name))
        parse_episodes(self._settings.episodes, self._dataset.info.num_episodes)
        for warning in self._dataset.info.warnings:
            self.get_logger().warning(warning)
        self._topics = ReplayTopics(self, info=self._dataset.info, parameters=self._settings)

    def activate(self) -> None:
        """Subscribe to the consumer's answers and start the player."""
        assert self._dataset is not None
        assert self._topics is not None
        p = self._settings
        self._topics.begin()
        self._player = EpisodePlayer(
            self._dataset,
            self._topics,
            PlayerSettings(
                episodes=parse_episodes(p.episodes, self._dataset.info.num_episodes),
                mode=p.mode,
                rate=p.rate,
                loop=p.loop,
                start_s=p.start_s,
                end_s=p.end_s,
                ack_timeout_s=p.ack_timeout_s,
                start_timeout_s=p.start_timeout_s,
            ),
            on_change=self._report,
        )
        self._answers = [
            self.create_subscription(ObservationAck, 'observation_ack', self._on_ack, RELIABLE),
            self.create_subscription(PolicyStatus, 'policy_status', self._on_policy, LATCHED),
        ]
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(_STATUS_PERIOD_S, self._watch, clock=wall)
        self._player.start()

    def deactivate(self) -> None:
        """Stop the player."""
        if self._player is not None:
            self._player.stop()
            self._player = None
            # The process may end next, and whoever waits for the last status would wait for ever.
            self._status.wait_for_all_acked(Duration(seconds=1))
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        for subscription in self._answers:
            self.destroy_subscription(subscription)
        self._answers = []

    def release(self) -> None:
        """Stop, and close topics and dataset."""
        self.deactivate()
        if self._topics is not None:
            self._topics.close()
            self._topics = None
        if self._dataset is not None:
            self._dataset.close()
            self._dataset = None

    def _on_ack(self, message: ObservationAck) -> None:
        if self._player is not None:
            self._player.acknowledge(to_ns(message.header.stamp))

    def _on_policy(self, message: PolicyStatus) -> None:
        if self._topics is not None:
            self._topics.policy_status = message

    def _watch(self) -> None:
        self._report()
        state = self._player.state if self._player is not None else None
        if state is None or state.state not in ('finished', 'failed'):
            return
        self.destroy_timer(self._timer)
        self._timer = None
        if state.state == 'failed':
            self.get_logger().error(state.detail)
        if self._settings.exit_at_end:
            self.exit_status = 1 if state.state == 'failed' else 0

    def _report(self) -> None:
        if self._player is None or self._topics is None or self._dataset is None:
            return
        state = self._player.state
        status = ReplayStatus(
            dataset=self._dataset.info.name,
            mode=self._settings.mode,
            state=state.state,
            detail=state.detail,
            episode=state.episode,
            step=state.step,
            num_steps=state.num_steps,
            steps_sent=state.steps_sent,
            steps_acknowledged=state.steps_acknowledged,
            late_steps=state.late_steps,
            faults_injected=self._topics.faults.num_injected,
        )
        status.header.stamp = to_time(self._topics.now_ns())
        self._status.publish(status)


def main() -> int:
    """Run the replay node."""
    return run_node(ReplayNode)


if __name__ == '__main__':
    sys.exit(main())
