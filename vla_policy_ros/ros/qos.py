# SPDX-License-Identifier: Apache-2.0
"""QoS that follows the publishers found on a topic; what cannot match is reported, never silent."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rclpy.duration import Duration
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)

# For small messages that must not be lost: deep enough for a consumer that is held up for seconds.
RELIABLE = QoSProfile(depth=1024, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1,
    history=HistoryPolicy.KEEP_LAST,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)

_HAND_OVER_S = 0.5


def hand_over(publisher: Any) -> None:
    """Wait until every listener has what was published, before the publisher goes and takes the rest along.

    Blocks for half a second at most, when a listener does not answer.
    """
    publisher.wait_for_all_acked(Duration(seconds=_HAND_OVER_S))


def linger() -> None:
    """Let a service that has just answered live on for a moment: nothing tells that the client has the answer.

    One that its client has not read when the service goes is lost, with Fast DDS in up to half of all cases.
    """
    time.sleep(_HAND_OVER_S)


@dataclass(frozen=True, slots=True)
class PublisherMatch:
    """What discovery says of a topic: the publishers, the QoS to subscribe with, and what does not fit."""

    num_publishers: int
    profile: QoSProfile
    problems: tuple[str, ...]

    @property
    def key(self) -> tuple[ReliabilityPolicy, DurabilityPolicy]:
        """The policies that make a new subscription necessary when they change."""
        return self.profile.reliability, self.profile.durability


def match_publishers(node: Any, topic: str, message_type: str, *, depth: int) -> PublisherMatch:
    """Choose a profile for `topic`: reliable or latched only when every publisher is.

    A best-effort, volatile subscription matches every publisher, so it is the start and the fallback; asking for more
    than one of the publishers offers would cut that one off.
    """
    found = node.get_publishers_info_by_topic(topic)
    offers = [info.qos_profile for info in found]
    problems = tuple(
        f'{info.node_name} publishes {info.topic_type}, expected {message_type}'
        for info in found
        if info.topic_type != message_type
    )

    def all_offer(reliability: ReliabilityPolicy) -> bool:
        return bool(offers) and all(offer.reliability == reliability for offer in offers)

    is_latched = bool(offers) and all(
        offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers
    )
    profile = QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE
        if all_offer(ReliabilityPolicy.RELIABLE)
        else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE,
    )
    return PublisherMatch(len(offers), profile, problems)


def unmatched_subscribers(node: Any, topic: str, offered: QoSProfile) -> tuple[str, ...]:
    """Return one sentence per subscriber of `topic` that cannot receive what is published with `offered`."""
    problems = []
    for info in node.get_subscriptions_info_by_topic(topic):
        # Discovery tells infinite durations as numbers, which the check takes for demands: leave them out.
        asked = QoSProfile(
            depth=1,
            reliability=info.qos_profile.reliability,
            durability=info.qos_profile.durability,
        )
        verdict, reason = qos_check_compatible(offered, asked)
        if verdict == QoSCompatibility.ERROR:
            problems.append(f'{info.node_name} cannot receive {topic}: {reason}')
    return tuple(problems)
