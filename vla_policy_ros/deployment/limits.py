# SPDX-License-Identifier: Apache-2.0
"""Limits of joints from where robots keep them: the URDF in `robot_description`, and MoveIt's `joint_limits.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated
from xml.parsers import expat

from pydantic import Field

from vla_policy_ros.bundle.strict import StrictModel, parse_file
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Column
from vla_policy_ros.deployment.config import LimitSettings
from vla_policy_ros.execution.limits import FIELDS, ColumnLimits, JointLimits, check_limits

_RANGED = ('revolute', 'prismatic')
_UNLIMITED = ('fixed', 'floating', 'planar')
_JOINT = ['robot', 'joint']

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, le=1)]


class _JointEntry(StrictModel):
    """One joint of MoveIt's joint_limits.yaml: a value counts only when its `has_` key is true."""

    has_position_limits: bool = False
    min_position: Number | None = None
    max_position: Number | None = None
    has_velocity_limits: bool = False
    max_velocity: Number | None = None
    has_acceleration_limits: bool = False
    max_acceleration: Number | None = None
    has_jerk_limits: bool = False
    max_jerk: Number | None = None


class _LimitsDocument(StrictModel):
    default_velocity_scaling_factor: Scale = 1.0
    default_acceleration_scaling_factor: Scale = 1.0
    joint_limits: dict[str, _JointEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsFile:
    """What a limits file says.

    Attributes:
        joints: Joint or column name to its limits, in the unit of the column.
        velocity_scale: Share of all velocity limits that may be used, those of the URDF as well.
        acceleration_scale: The same for acceleration limits.
        where: The file, for errors.
    """

    joints: Mapping[str, ColumnLimits] = field(default_factory=dict)
    velocity_scale: float = 1.0
    acceleration_scale: float = 1.0
    where: str = 'limits'


def read_urdf_limits(text: str) -> dict[str, ColumnLimits]:
    """Return joint name to limits of a URDF; rad, m and seconds.

    Continuous joints have no range. Fixed, floating, planar and mimicking joints are left out: they take no command.
    The soft limits of a `safety_controller` narrow the range. Format: https://wiki.ros.org/urdf/XML/joint

    Args:
        text: The URDF, as in the parameter `robot_description`; document types and entities are refused.

    Raises:
        ConfigurationError: `bad_urdf`, `missing_attribute`, `bad_number` or `duplicate_joint`.
    """
    joints: dict[str, ColumnLimits] = {}
    for joint in _find_joints(text):
        name = joint.get('joint', 'name')
        if name in joints:
            raise _urdf_fault(joint.place, 'a second joint of this name', 'duplicate_joint')
        limits = _read_joint(joint)
        if limits is not None:
            joints[name] = limits
    return joints


def read_limits_file(path: str | Path) -> LimitsFile:
    """Read MoveIt's `joint_limits.yaml`; names may be those of columns, which need not be joints.

    Raises:
        ConfigurationError: The file is missing or not YAML, a key is unknown, a value is of a wrong type, or a limit
            that a `has_` key announces is not there.
    """
    path = Path(path)
    document = parse_file(_LimitsDocument, path, ConfigurationError)
    return LimitsFile(
        joints={
            name: _from_entry(entry, f'{path}: joint_limits.{name}')
            for name, entry in document.joint_limits.items()
        },
        velocity_scale=document.default_velocity_scaling_factor,
        acceleration_scale=document.default_acceleration_scaling_factor,
        where=str(path),
    )


def merge_limits(
    columns: Sequence[Column],
    urdf: Mapping[str, ColumnLimits] | None = None,
    file: LimitsFile | None = None,
) -> JointLimits:
    """Return the limits of the columns: of URDF and file the tighter value each, then scaled as the file says.

    Joints of the URDF that are no columns are left out; those of the file must be known to one of the two.
    A column in degrees takes the URDF's limits in degrees; one in any other unit takes only the file's.

    Args:
        columns: The D columns, named like the joints.
        urdf: From `read_urdf_limits`; None without a robot description.
        file: From `read_limits_file`; None without a file.

    Raises:
        ConfigurationError: As `execution.limits.check_limits`.
    """
    urdf, file = urdf or {}, file or LimitsFile()
    names = [column.name for column in columns]
    said = {name: own for name, own in file.joints.items() if name in names or name not in urdf}
    for column in columns:
        robot = _in_unit(urdf.get(column.name, ColumnLimits()), column.unit)
        merged = _tighter(robot, file.joints.get(column.name, ColumnLimits()))
        said[column.name] = replace(
            merged,
            velocity=_scaled(merged.velocity, file.velocity_scale),
            acceleration=_scaled(merged.acceleration, file.acceleration_scale),
        )
    return check_limits(columns, said, where=file.where)


def load_limits(
    settings: LimitSettings, columns: Sequence[Column], *, robot_description: str | None = None
) -> JointLimits:
    """Return the limits of the columns from where the settings say that they are.

    Args:
        settings: Paths in it are absolute.
        columns: The D columns as they are commanded, named like the joints.
        robot_description: The URDF from `settings.urdf_topic`; not looked at when there is a `urdf_file`.

    Raises:
        ConfigurationError: A file cannot be read, or as `read_urdf_limits`, `read_limits_file`, `merge_limits`.
    """
    text = _read_text(settings.urdf_file) if settings.urdf_file else robot_description
    urdf = None if text is None else read_urdf_limits(text)
    file = read_limits_file(settings.file) if settings.file else None
    return merge_limits(columns, urdf, file)


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as fault:
        raise _urdf_fault(path, f'{fault}', 'unreadable_urdf') from fault


@dataclass(frozen=True, slots=True)
class _Joint:
    """A joint element: the attributes of its own and of the elements in it."""

    place: str
    elements: dict[str, dict[str, str]]

    def get(self, element: str, attribute: str) -> str:
        value = self.elements.get(element, {}).get(attribute)
        if value is None:
            where = element if element == 'joint' else f'joint/{element}'
            raise _urdf_fault(self.place, f'no {attribute} in <{where}>', 'missing_attribute')
        return value

    def number(self, element: str, attribute: str) -> float:
        text = self.get(element, attribute)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise _urdf_fault(self.place, f'{attribute}={text!r} in <{element}>', 'bad_number')
        return value

    def has(self, element: str, attribute: str) -> bool:
        return attribute in self.elements.get(element, {})


def _find_joints(text: str) -> list[_Joint]:
    """Return the joints of a URDF; those inside of other elements, such as `ros2_control`, are none."""
    joints: list[_Joint] = []
    path: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        if path == _JOINT:
            place = f'robot_description: joint {attributes.get("name", f"{len(joints)}")!r}'
            joints.append(_Joint(place, {'joint': attributes}))
        elif path[:-1] == _JOINT:
            joints[-1].elements[name] = attributes

    def refuse(*_: object) -> None:
        raise _urdf_fault('robot_description', 'a document type', 'bad_urdf')

    parser = expat.ParserCreate('utf-8')
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: path.pop()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text.encode(), True)  # noqa: FBT003 - takes no name
    except expat.ExpatError as fault:
        raise _urdf_fault('robot_description', f'no XML: {fault}', 'bad_urdf') from fault
    return joints


def _read_joint(joint: _Joint) -> ColumnLimits | None:
    kind = joint.get('joint', 'type')
    if kind in _UNLIMITED or 'mimic' in joint.elements:
        return None
    if kind == 'continuous':
        speed = joint.number('limit', 'velocity') if 'limit' in joint.elements else None
        return ColumnLimits(position_min=-math.inf, position_max=math.inf, velocity=speed)
    if kind not in _RANGED:
        raise _urdf_fault(joint.place, f'type={kind!r}', 'bad_urdf')
    low, high = joint.number('limit', 'lower'), joint.number('limit', 'upper')
    if joint.has('safety_controller', 'soft_lower_limit'):
        low = max(low, joint.number('safety_controller', 'soft_lower_limit'))
    if joint.has('safety_controller', 'soft_upper_limit'):
        high = min(high, joint.number('safety_controller', 'soft_upper_limit'))
    speed = joint.number('limit', 'velocity')
    return ColumnLimits(position_min=low, position_max=high, velocity=speed)


def _urdf_fault(place: str, got: str, code: str) -> ConfigurationError:
    return ConfigurationError(
        place,
        got=got,
        expected='a URDF with type, and limits of every revolute and prismatic joint as numbers',
        next_step='Expand the xacro, and run check_urdf on the result.',
        code=code,
    )


def _from_entry(entry: _JointEntry, place: str) -> ColumnLimits:
    pairs = {
        'position_min': (entry.has_position_limits, entry.min_position, 'min_position'),
        'position_max': (entry.has_position_limits, entry.max_position, 'max_position'),
        'velocity': (entry.has_velocity_limits, entry.max_velocity, 'max_velocity'),
        'acceleration': (
            entry.has_acceleration_limits,
            entry.max_acceleration,
            'max_acceleration',
        ),
        'jerk': (entry.has_jerk_limits, entry.max_jerk, 'max_jerk'),
    }
    for has_it, value, key in pairs.values():
        if has_it and value is None:
            raise ConfigurationError(
                f'{place}.{key}',
                got='nothing',
                expected='a number, because its has_ key is true',
                next_step=f'Add {key}.',
                code='missing_limit',
            )
    return ColumnLimits(
        **{name: value if has_it else None for name, (has_it, value, _) in pairs.items()}
    )


def _in_unit(limits: ColumnLimits, unit: str) -> ColumnLimits:
    """Return limits of a URDF in the unit of a column; nothing where they cannot be compared."""
    if unit in ('', 'rad', 'm'):
        return limits
    if unit not in ('deg', 'degree', 'degrees'):
        return ColumnLimits()
    values = {name: getattr(limits, name) for name in FIELDS}
    return ColumnLimits(
        **{n: None if value is None else math.degrees(value) for n, value in values.items()}
    )


def _tighter(one: ColumnLimits, other: ColumnLimits) -> ColumnLimits:
    merged = {}
    for name in FIELDS:
        values = [v for v in (getattr(one, name), getattr(other, name)) if v is not None]
        choose = max if name == 'position_min' else min
        merged[name] = choose(values, default=None)
    return ColumnLimits(**merged)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale
