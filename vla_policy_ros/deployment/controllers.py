# SPDX-License-Identifier: Apache-2.0
"""The controllers of a robot: which columns of the action each one gets, and in which message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vla_policy_ros.bundle.strict import StrictModel
from vla_policy_ros.core.errors import ConfigurationError, VlaPolicyError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.deployment.config import Milliseconds, Topic

_JOINTS = frozenset({ColumnKind.LINEAR, ColumnKind.ANGLE, ColumnKind.GRIPPER})
AXES = ('linear_x', 'linear_y', 'linear_z', 'angular_x', 'angular_y', 'angular_z')
_Name = Annotated[str, Field(min_length=1)]


class _Controller(StrictModel):
    name: _Name
    """Name in reports and diagnostics."""
    topic: Topic
    """Topic or action that the controller listens to."""


class _JointController(_Controller):
    columns: tuple[_Name, ...] = Field(min_length=1)
    """Columns of the action in the controller's order."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Column to the controller's name of the joint, for joints that are called differently."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        unknown = [name for name in self.rename if name not in self.columns]
        if unknown:
            raise ValueError(f'rename only columns of this controller, not {", ".join(unknown)}')
        return self

    @property
    def joints(self) -> tuple[str, ...]:
        """The controller's names of the joints in the order of the columns."""
        return tuple(self.rename.get(name, name) for name in self.columns)


class ForwardCommand(_JointController):
    """std_msgs/Float64MultiArray for a forward_command_controller, at every tick."""

    kind: Literal['forward_command']
    """What the controller takes."""
    value: Literal['position', 'velocity'] = 'position'
    """Which number of a joint it takes."""


class JointTrajectory(_JointController):
    """trajectory_msgs/JointTrajectory for a joint_trajectory_controller: the motion of the next moments and a stop after it.

    Every message repeats the motion that runs and goes on from there, so the controller has to forget the old
    trajectory when a new one arrives. Humble, Jazzy and Kilted do so as they come. Lyrical needs
    `allow_trajectory_replacement: false`: with its splicing it would move a message that is under way to its time of
    arrival. All ends at rest, so `allow_nonzero_velocity_at_trajectory_end` may be anything. Of the other parameters,
    `interpolation_method` must be `splines`, `cmd_timeout` may be anything, and `interpolate_from_desired_state`
    (`open_loop_control` on Humble) matters at the start only: true avoids a small step where a joint sags.
    The controller wraps no angles, and the points go on beyond a full turn.
    """

    kind: Literal['joint_trajectory']
    """What the controller takes."""
    lead_ms: Milliseconds = 50.0
    """How far ahead commands are computed, in milliseconds: longer than `every_ms` by a tick and the way of a
    message to the controller. The robot reacts this much later, and goes on for as long when the executor dies."""
    every_ms: Milliseconds = 20.0
    """Time between two messages, in milliseconds."""

    @model_validator(mode='after')
    def _check_lead(self) -> Self:
        if self.every_ms >= self.lead_ms:
            raise ValueError(f'every_ms below lead_ms, which is {self.lead_ms:g}')
        return self


class JointState(_JointController):
    """sensor_msgs/JointState with positions and velocities, at every tick."""

    kind: Literal['joint_state']
    """What the controller takes."""


class JointJog(_JointController):
    """control_msgs/JointJog with velocities, at every tick."""

    kind: Literal['joint_jog']
    """What the controller takes."""
    frame_id: str = ''
    """Frame of the message's header."""


class Twist(_Controller):
    """geometry_msgs/TwistStamped, at every tick; axes without a column are 0."""

    kind: Literal['twist']
    """What the controller takes."""
    axes: dict[
        Literal['linear_x', 'linear_y', 'linear_z', 'angular_x', 'angular_y', 'angular_z'], _Name
    ] = Field(min_length=1)
    """Axis to column: linear_x, linear_y, linear_z (m/s), angular_x, angular_y, angular_z (rad/s)."""
    frame_id: str = Field(min_length=1)
    """Frame that the twist is told in."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns in the order of the axes that are used."""
        return tuple(self.axes[axis] for axis in AXES if axis in self.axes)


class Pose(_Controller):
    """geometry_msgs/PoseStamped, at every tick."""

    kind: Literal['pose']
    """What the controller takes."""
    position: tuple[_Name, _Name, _Name]
    """Columns of x, y and z (m)."""
    orientation: tuple[_Name, _Name, _Name, _Name]
    """Columns of the quaternion's x, y, z and w."""
    frame_id: str = Field(min_length=1)
    """Frame that the pose is told in."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of position and orientation."""
        return self.position + self.orientation


class Gripper(_Controller):
    """A gripper with an action of its own, when its command changes."""

    kind: Literal['gripper']
    """What the controller takes."""
    column: _Name
    """Column of the gripper."""
    action: Literal['gripper_command', 'parallel_gripper_command'] = 'gripper_command'
    """control_msgs/GripperCommand, or control_msgs/ParallelGripperCommand of newer distributions."""
    joint: str = ''
    """The controller's name of the joint (`parallel_gripper_command`); empty: as the column."""
    max_effort: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Largest effort; 0: as the driver has it."""
    deadband: float = Field(default=0.001, ge=0, allow_inf_nan=False)
    """Smallest change that is sent, in the unit of the column."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column."""
        return (self.column,)


Controller = Annotated[
    ForwardCommand | JointTrajectory | JointState | JointJog | Twist | Pose | Gripper,
    Field(discriminator='kind'),
]


def check_controllers(
    controllers: Sequence[Controller], columns: Sequence[Column], *, unused: Sequence[str]
) -> list[VlaPolicyError]:
    """Return every place where controllers do not fit the action: each column goes to exactly one, or is unused.

    Args:
        controllers: The controllers.
        columns: Columns of the action.
        unused: Columns that go nowhere on purpose.
    """
    known = {column.name: column for column in columns}
    faults = []
    for index, controller in enumerate(controllers):
        place = f'controllers[{index}] ({controller.name})'
        for name in controller.columns:
            if name not in known:
                faults.append(_fault(place, f'column {name!r}', _one_of(known), 'unknown_column'))
            else:
                faults.extend(_check_kind(controller, known[name], place))
    faults.extend(_check_routes(controllers, known, unused))
    return faults


def find_repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _check_kind(controller: Controller, column: Column, place: str) -> Iterator[VlaPolicyError]:
    kinds = _kinds_for(controller, column.name)
    if column.kind not in kinds:
        got = f'{column.name} of kind {column.kind.value}'
        expected = f'a column of kind {" or ".join(sorted(kind.value for kind in kinds))}'
        yield _fault(place, got, expected, 'wrong_kind')


def _kinds_for(controller: Controller, name: str) -> frozenset[ColumnKind]:
    if isinstance(controller, Twist):
        return frozenset({ColumnKind.TWIST})
    if isinstance(controller, Pose):
        is_turn = name in controller.orientation
        return frozenset({ColumnKind.QUATERNION if is_turn else ColumnKind.LINEAR})
    if isinstance(controller, Gripper):
        return frozenset({ColumnKind.GRIPPER, ColumnKind.LINEAR})
    return _JOINTS


def _check_routes(
    controllers: Sequence[Controller],
    known: Sequence[str] | dict[str, Column],
    unused: Sequence[str],
) -> Iterator[VlaPolicyError]:
    given = [name for controller in controllers for name in controller.columns]
    for name in find_repeated(given):
        yield _fault('controllers', f'{name} twice', 'every column once', 'repeated_column')
    missing = [name for name in known if name not in given and name not in unused]
    if missing:
        expected = 'a controller for every column; name those that go nowhere under `unused`'
        yield _fault('controllers', f'none for {", ".join(missing)}', expected, 'missing_column')
    for name in unused:
        if name not in known or name in given:
            got = f'{name!r}, which a controller has' if name in given else f'column {name!r}'
            yield _fault('unused', got, 'columns of the action that go nowhere', 'bad_unused')


def _fault(where: str, got: str, expected: str, code: str) -> VlaPolicyError:
    next_step = 'Change the controllers of the executor.'
    return ConfigurationError(where, got=got, expected=expected, next_step=next_step, code=code)


def _one_of(names: Sequence[str] | dict[str, Column]) -> str:
    return f'one of {", ".join(names)}'
