# SPDX-License-Identifier: Apache-2.0
"""From a curve to the points that an unmodified joint_trajectory_controller takes without a velocity step.

What that controller does with a trajectory that arrives while another one runs depends on its release, see
`evaluation.controller_model`; this module knows two ways to hand over:

- `overlap`, for every controller that forgets the old trajectory on arrival (Humble, Jazzy, Kilted, and Lyrical
  with `allow_trajectory_replacement: false`): the points start with the motion that runs anyway, from now to the
  join. Its first point is reached when the message arrives, so the controller never starts from its own state,
  whatever `interpolate_from_desired_state` says and however far the robot lags behind.
- `splice`, for Lyrical: the first point and the header's stamp lie ahead, at the join. The controller keeps the old
  trajectory until then. It needs `interpolate_from_desired_state: true`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vla_policy_ros.core.errors import ChunkRejectedError, ConfigurationError
from vla_policy_ros.core.specs import Array, Column, ColumnKind
from vla_policy_ros.execution.kinds import unwrap
from vla_policy_ros.execution.limits import JointLimits
from vla_policy_ros.execution.trajectory_points import CurveLike, TrajectoryPoints, sample

HandOver = Literal['overlap', 'splice']
LastPoint = Literal['stop', 'as_is']

_NS_PER_S = 1_000_000_000
_JOINT_KINDS = (ColumnKind.LINEAR, ColumnKind.ANGLE, ColumnKind.GRIPPER)
_JOIN_SHARE = 0.5  # of a limit may go into the join; the chunk itself needs the rest
_BRAKE_SHARE = (
    0.8  # of the acceleration; a spliced controller's own cubic across a point needs the rest
)
_MIN_GAP_SHARE = 0.25  # of a step: a row nearer to the join than this is left out
_STILL = 1e-7  # the controller takes a last velocity below float32's 1.2e-7 for zero
_ON_LIMIT = 1e-6  # rounding of a position that stands on its limit


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectorySettings:
    """How trajectories are made.

    Attributes:
        step_ns: Time between two points, > 0; the step of the chunks.
        lead_ns: Time from now to the join, >= 0; must cover the way of the message to the controller.
        blend_ns: Least time in which the offset to the running motion fades out, >= 0.
        hand_over: `overlap` or `splice`, see the module.
        last_point: `stop` brakes to velocity zero at the end; `as_is` keeps the velocity, which needs
            `allow_nonzero_velocity_at_trajectory_end: true` (the default on Humble only).
    """

    step_ns: int
    lead_ns: int
    blend_ns: int = 200_000_000
    hand_over: HandOver = 'overlap'
    last_point: LastPoint = 'stop'

    def __post_init__(self) -> None:
        if self.step_ns <= 0 or self.lead_ns < 0 or self.blend_ns < 0:
            raise ConfigurationError(
                'trajectory settings',
                got=f'step_ns {self.step_ns}, lead_ns {self.lead_ns}, blend_ns {self.blend_ns}',
                expected='a step above 0 ns, a lead and a blend of at least 0 ns',
                next_step='Give the times of the trajectory output as positive numbers.',
                code='bad_time',
            )


@dataclass(frozen=True, slots=True, eq=False)
class JointGroup:
    """The joints of one controller among the D columns of an action.

    Args:
        columns: The D columns.
        joints: Name of the column to the controller's name of the joint, in the controller's order.
        limits: Limits of the D columns; None for none.

    Raises:
        ConfigurationError: `unknown_joint`, or `no_joint` for a column that is no joint (quaternion, twist), or no
            joint at all.
    """

    columns: Sequence[Column]
    joints: Mapping[str, str]
    limits: JointLimits | None = None
    names: tuple[str, ...] = field(init=False)
    index: Array = field(init=False)
    is_angle: Array = field(init=False)
    turn: Array = field(init=False)
    is_gripper: Array = field(init=False)

    def __post_init__(self) -> None:
        places = {column.name: place for place, column in enumerate(self.columns)}
        missing = [name for name in self.joints if name not in places]
        if missing or not self.joints:
            raise ConfigurationError(
                'joints of a trajectory output',
                got=f'{", ".join(missing) or "no joint"} among {", ".join(places)}',
                expected='columns of the action',
                next_step='Name columns of the policy under the joints of the output.',
                code='unknown_joint',
            )
        index = np.array([places[name] for name in self.joints], np.intp)
        kinds = [self.columns[place].kind for place in index]
        for name, kind in zip(self.joints, kinds, strict=True):
            if kind not in _JOINT_KINDS:
                raise ConfigurationError(
                    f'joint {name!r} of a trajectory output',
                    got=f'a column of kind {kind.value}',
                    expected='a joint: linear, angle or gripper',
                    next_step='Send poses and twists through an output of that form.',
                    code='no_joint',
                )
        object.__setattr__(self, 'names', tuple(self.joints.values()))
        object.__setattr__(self, 'index', index)
        object.__setattr__(self, 'is_angle', np.array([k is ColumnKind.ANGLE for k in kinds]))
        object.__setattr__(self, 'turn', np.array([self.columns[i].turn for i in index]))
        object.__setattr__(self, 'is_gripper', np.array([k is ColumnKind.GRIPPER for k in kinds]))

    def sample(self, source: CurveLike, times_ns: Array) -> tuple[Array, Array]:
        """Return the (N, J) positions and velocities of the group's joints in a curve of the D columns."""
        positions, velocities = sample(source, times_ns, num_columns=len(self.columns))
        return positions[:, self.index], velocities[:, self.index]

    def limit(self, name: Literal['velocity', 'acceleration']) -> Array:
        """Return a (J,) limit of the group's joints; inf where there is none."""
        if self.limits is None:
            return np.full(len(self.index), np.inf)
        chosen: Array = np.asarray(getattr(self.limits, name), np.float64)[self.index]
        return chosen

    def is_within(self, positions: Array) -> Array:
        """Return for (N, J) positions which (N,) rows lie within the position limits."""
        if self.limits is None:
            return np.ones(len(positions), bool)
        low = self.limits.position_min[self.index] - _ON_LIMIT
        high = self.limits.position_max[self.index] + _ON_LIMIT
        inside = (positions >= low) & (positions <= high)
        return np.asarray(inside.all(axis=1))


def make_trajectory(
    source: CurveLike,
    now_ns: int,
    *,
    group: JointGroup,
    settings: TrajectorySettings,
    running: TrajectoryPoints | None = None,
) -> TrajectoryPoints | None:
    """Return the points with which a controller goes over to a source, or None when no two points lie ahead.

    Up to the join the points are what runs; after it they are the rows of the source. Where the source is elsewhere
    at the join than the robot, the offset in position and velocity fades out along a cubic, so that position and
    velocity stay continuous; it takes at least `blend_ns`, and as long as half of the velocity and acceleration limit
    ask for, also beyond the end of the source. Angles are counted on beyond a turn, because the controller does not
    wrap between points. Grippers do not fade: they go to the source within one step, and never beyond its rows.

    With `stop`, a point is added where a constant deceleration of 0.8 of the limit ends; rows after which that would end
    beyond a position limit are left out, and so are rows from the first that lies beyond one. Without an acceleration limit the braking takes one step.

    Args:
        source: Curve of the D columns; where it starts after now, `running` goes on until then.
        now_ns: Time on the controller's clock.
        group: The controller's joints.
        settings: Times and rules.
        running: What was sent last and not refused, or `TrajectoryPoints.still`; None when the source itself is
            what the robot executes.

    Raises:
        ChunkRejectedError: `cannot_stop`: from no row can the joints stop within their limits.
    """
    join_ns = max(now_ns + settings.lead_ns, source.start_ns)
    rows_ns = _rows_after(join_ns, source, settings.step_ns)
    if not len(rows_ns):
        return None
    before_ns = _times_before(join_ns, now_ns, source, running, settings)
    before = (
        group.sample(source, before_ns)
        if running is None
        else sample(running, before_ns, num_columns=len(group.names))
    )
    after = group.sample(source, np.append(join_ns, rows_ns))
    _join(after, before, (rows_ns - join_ns) / _NS_PER_S, group, settings)
    positions, velocities = (
        np.concatenate([old, new[1:]]) for old, new in zip(before, after, strict=True)
    )
    positions[:, group.is_angle] = unwrap(positions[:, group.is_angle], group.turn[group.is_angle])
    points = TrajectoryPoints(
        names=group.names,
        times_ns=np.concatenate([before_ns, rows_ns]),
        positions=positions,
        velocities=velocities,
    )
    _calm_grippers(points, len(before_ns), group)
    if settings.last_point == 'as_is':
        return points
    return _stop(points, len(before_ns) - 1, group, step_ns=settings.step_ns)


def _rows_after(join_ns: int, source: CurveLike, step_ns: int) -> Array:
    """Return the times of the source's rows after the join, the end among them."""
    rows_ns = np.arange(source.start_ns, source.end_ns, step_ns, dtype=np.int64)
    rows_ns = np.append(rows_ns, source.end_ns)
    return rows_ns[rows_ns > join_ns + _MIN_GAP_SHARE * step_ns]


def _times_before(
    join_ns: int,
    now_ns: int,
    source: CurveLike,
    running: TrajectoryPoints | None,
    settings: TrajectorySettings,
) -> Array:
    """Return the times of the points up to the join, the join last.

    The running trajectory's own points are kept, so that the cubics between them stay what they are.
    """
    lead_ns = settings.lead_ns if settings.hand_over == 'splice' else 0
    first_ns = now_ns + lead_ns
    if running is None:
        first_ns = max(first_ns, source.start_ns)
        knots_ns = np.arange(source.start_ns, join_ns, settings.step_ns, dtype=np.int64)
    else:
        knots_ns = running.times_ns
    inner_ns = knots_ns[(knots_ns > first_ns) & (knots_ns < join_ns)]
    ends_ns = np.array([first_ns, join_ns], np.int64)
    return np.unique(np.concatenate([inner_ns, ends_ns]))


def _join(
    after: tuple[Array, Array],
    before: tuple[Array, Array],
    elapsed_s: Array,
    group: JointGroup,
    settings: TrajectorySettings,
) -> None:
    """Add the fading offset to the source's rows; row 0 of `after` is the source at the join."""
    offset, slope = (old[-1] - new[0] for old, new in zip(before, after, strict=True))
    turn = group.turn[group.is_angle]
    offset[group.is_angle] = np.remainder(offset[group.is_angle] + turn / 2, turn) - turn / 2
    fade_s = _fade_time_s(np.abs(offset), np.abs(slope), group, blend_s=settings.blend_ns / 1e9)
    share = np.minimum(elapsed_s[:, None] / fade_s, 1.0)
    run = np.where(group.is_gripper, 0.0, slope * fade_s)
    jump = np.where(group.is_gripper, 0.0, offset)
    rest = 1.0 - share
    after[0][1:] += rest**2 * (jump * (1 + 2 * share) + run * share)
    after[1][1:] += rest * (run * (1 - 3 * share) - 6 * jump * share) / fade_s


def _calm_grippers(points: TrajectoryPoints, first: int, group: JointGroup) -> None:
    """Limit the velocities of grippers from a row on, so that the cubics stay between their rows; rest at the end.

    The bound of three times the smaller slope is that of F. N. Fritsch and R. E. Carlson, "Monotone piecewise cubic
    interpolation", SIAM J. Numer. Anal. 17, 1980.
    """
    chosen = np.flatnonzero(group.is_gripper)
    spans_s = np.diff(points.times_ns)[:, None] / _NS_PER_S
    slopes = np.diff(points.positions[:, chosen], axis=0)[first - 1 :] / spans_s[first - 1 :]
    before, after = slopes, np.concatenate([slopes[1:], np.zeros_like(slopes[:1])])
    bound = 3 * np.minimum(np.abs(before), np.abs(after)) * (before * after > 0)
    points.velocities[first:, chosen] = np.clip(points.velocities[first:, chosen], -bound, bound)


def _fade_time_s(offset: Array, slope: Array, group: JointGroup, *, blend_s: float) -> Array:
    """Return the (J,) times in which the cubic fade stays within its share of the limits.

    The fade of an offset p and a slope v over T has at most the acceleration 6 p / T^2 + 4 v / T and, from the offset,
    the velocity 1.5 p / T.
    """
    acceleration = _JOIN_SHARE * group.limit('acceleration')
    velocity = _JOIN_SHARE * group.limit('velocity')
    half = 2 * slope / acceleration
    within_acceleration = half + np.sqrt(half**2 + 6 * offset / acceleration)
    fade: Array = np.maximum.reduce(
        [within_acceleration, 1.5 * offset / velocity, np.full(len(offset), max(blend_s, 1e-9))]
    )
    return fade


def _stop(
    points: TrajectoryPoints, join: int, group: JointGroup, *, step_ns: int
) -> TrajectoryPoints | None:
    """End at rest: brake from the last row from which that is possible; `join` is the first one to try.

    Half the velocity times the braking time is the way at which a cubic to rest has a constant deceleration.
    """
    speeds = np.abs(points.velocities[join:])
    acceleration = _BRAKE_SHARE * group.limit('acceleration')
    brake_s = np.maximum((speeds / acceleration).max(axis=1), step_ns / _NS_PER_S)
    brake_s[(speeds <= _STILL).all(axis=1)] = 0.0
    ends = points.positions[join:] + 0.5 * points.velocities[join:] * brake_s[:, None]
    is_reached = group.is_within(points.positions[join:])
    is_reached[0] = True  # where the robot will be anyway
    possible = np.flatnonzero(group.is_within(ends) & np.logical_and.accumulate(is_reached))
    if not len(possible):
        raise ChunkRejectedError(
            f'trajectory from {points.start_ns} ns',
            got='rows from which no stop within the limits is possible',
            expected='at least one row from which the joints can stop before their position limits',
            next_step='Check the policy near the position limits, or give larger acceleration limits.',
            code='cannot_stop',
        )
    last = int(possible[-1])
    kept = slice(join + last + 1)
    velocities = points.velocities[kept].copy()
    times_ns, positions = points.times_ns[kept], points.positions[kept]
    if brake_s[last]:
        end_ns = int(times_ns[-1]) + int(np.ceil(brake_s[last] * _NS_PER_S))
        times_ns = np.append(times_ns, end_ns)
        positions = np.concatenate([positions, ends[last : last + 1]])
        velocities = np.concatenate([velocities, np.zeros_like(ends[:1])])
    if len(times_ns) < 2:
        return None  # a single point would not be joined smoothly
    velocities[-1] = 0.0
    return TrajectoryPoints(
        names=points.names, times_ns=times_ns, positions=positions, velocities=velocities
    )
