# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are cameras, state, action and instruction.

Topics that are not named are discovered. Cameras: every Image and CompressedImage topic, in the order of their names;
of two topics of one camera the raw one. State: every JointState topic without `command` or `action` in its name.
Action: JointState and JointTrajectory topics with one of these words. Instruction: the first String topic with
`instruction` or `task` in its name. ActionChunk and Float64MultiArray topics must be named.

Camera name: trailing `compressed`, `image`, `image_raw` and `image_rect...` are dropped, and the last part is the
name (`/camera/front/image_raw` is `front`); when two cameras share it, all parts joined by `_`; with `_` for what a
topic must not hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.datasets.naming import make_camera_names

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
JOINT_STATE = 'sensor_msgs/msg/JointState'
JOINT_TRAJECTORY = 'trajectory_msgs/msg/JointTrajectory'
MULTI_ARRAY = 'std_msgs/msg/Float64MultiArray'
ACTION_CHUNK = 'vla_policy_ros/msg/ActionChunk'
STRING = 'std_msgs/msg/String'

_IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)
_VECTOR_TYPES = (JOINT_STATE, JOINT_TRAJECTORY, MULTI_ARRAY, ACTION_CHUNK)
_ACTION_WORDS = ('command', 'action')
_INSTRUCTION_WORDS = ('instruction', 'task')
_IMAGE_SUFFIX = re.compile(r'(^|/)(compressed|image|image_raw|image_rect[^/]*)$')


@dataclass(frozen=True, slots=True, kw_only=True)
class BagTopics:
    """Topics to read; None discovers them, an empty tuple reads none.

    Attributes:
        cameras: Image and CompressedImage topics; the first one is the reference, whose messages are the steps.
        state: Topics with joint positions, merged by joint name.
        action: Topics with recorded actions, merged by joint name.
        instruction: String topic.
    """

    cameras: tuple[str, ...] | None = None
    state: tuple[str, ...] | None = None
    action: tuple[str, ...] | None = None
    instruction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenTopics:
    """Topics that will be read; `cameras` maps names to topics in order."""

    cameras: Mapping[str, str]
    state: tuple[str, ...]
    action: tuple[str, ...]
    instruction: str | None

    def all(self) -> tuple[str, ...]:
        """Return every topic once."""
        last = (self.instruction,) if self.instruction else ()
        return tuple(dict.fromkeys((*self.cameras.values(), *self.state, *self.action, *last)))


def choose_topics(types: Mapping[str, str], topics: BagTopics, where: str) -> ChosenTopics:
    """Choose the topics to read.

    Args:
        types: Topic to message type, of all topics that have messages.
        topics: What the caller named.
        where: The bag, for messages.

    Raises:
        DatasetError: A named topic is not in the bag or has a type that is not read, or there is no camera.
    """
    named: list[tuple[str, Sequence[str]]] = [
        (topic, _IMAGE_TYPES) for topic in topics.cameras or ()
    ]
    named += [(topic, _VECTOR_TYPES) for topic in (*(topics.state or ()), *(topics.action or ()))]
    named += [(topics.instruction, (STRING,))] if topics.instruction else []
    for topic, allowed in named:
        _check_type(topic, allowed, types, where)
    cameras = _discover_cameras(types) if topics.cameras is None else topics.cameras
    if not cameras:
        raise _fault(where, f'topics {_list(types)}', 'an image topic', 'no_camera')
    return ChosenTopics(
        cameras=dict(zip(name_cameras(cameras), cameras, strict=True)),
        state=_discover_state(types) if topics.state is None else topics.state,
        action=_discover_action(types) if topics.action is None else topics.action,
        instruction=topics.instruction or _discover_instruction(types),
    )


def name_cameras(topics: Sequence[str]) -> Sequence[str]:
    """Return one distinct name per image topic."""
    parts = [_camera_path(topic).strip('/').split('/') for topic in topics]
    shortest = [path[-1] or 'camera' for path in parts]
    return make_camera_names(shortest, ['_'.join(path) for path in parts], topics)


def _camera_path(topic: str) -> str:
    shorter = _IMAGE_SUFFIX.sub('', topic)
    return topic if shorter == topic else _camera_path(shorter)


def _discover_cameras(types: Mapping[str, str]) -> tuple[str, ...]:
    by_camera: dict[str, str] = {}
    for wanted in _IMAGE_TYPES:
        for topic in sorted(topic for topic, kind in types.items() if kind == wanted):
            by_camera.setdefault(_camera_path(topic), topic)
    return tuple(sorted(by_camera.values()))


def _discover_state(types: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        topic
        for topic, kind in sorted(types.items())
        if kind == JOINT_STATE and not _has_word(topic, _ACTION_WORDS)
    )


def _discover_action(types: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        topic
        for topic, kind in sorted(types.items())
        if kind in (JOINT_STATE, JOINT_TRAJECTORY) and _has_word(topic, _ACTION_WORDS)
    )


def _discover_instruction(types: Mapping[str, str]) -> str | None:
    found = sorted(
        topic
        for topic, kind in types.items()
        if kind == STRING and _has_word(topic, _INSTRUCTION_WORDS)
    )
    return found[0] if found else None


def _has_word(topic: str, words: Sequence[str]) -> bool:
    return any(word in topic.lower() for word in words)


def _check_type(topic: str, allowed: Sequence[str], types: Mapping[str, str], where: str) -> None:
    if topic not in types:
        expected = f'one of {_list(types)}'
        raise _fault(where, f'no message on {topic}', expected, 'unknown_topic')
    if types[topic] not in allowed:
        expected = f'one of {", ".join(allowed)}'
        raise _fault(f'{where}: {topic}', types[topic], expected, 'wrong_topic_type')


def _list(types: Mapping[str, str]) -> str:
    return ', '.join(sorted(types)) or '(none)'


def _fault(where: str, got: str, expected: str, code: str) -> DatasetError:
    return DatasetError(
        where,
        got=got,
        expected=expected,
        next_step='Name the topics to read; `ros2 bag info` lists them.',
        code=code,
    )
