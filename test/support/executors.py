# SPDX-License-Identifier: Apache-2.0
"""A scheduler on a bench: a policy that draws waves, ticks at a fixed rate, and every command kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.execution.executor import ChunkScheduler
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.limits import ColumnLimits, check_limits
from vla_policy_ros.execution.settings import SchedulerSettings

MS = 1_000_000
STEP_NS = 50 * MS
PERIOD_NS = 5 * MS
START_NS = 1_000_000 * MS
HORIZON = 16
ARM = (Column('shoulder', 'rad'), Column('elbow', 'rad'))
MOBILE = (
    Column('lift', 'm'),
    Column('wrist', 'rad', ColumnKind.ANGLE),
    Column('speed', 'm/s', ColumnKind.TWIST),
    Column('hand', '', ColumnKind.GRIPPER),
)
_LIMITS = {
    ColumnKind.LINEAR: ColumnLimits(
        position_min=-2.0, position_max=2.0, velocity=2.0, acceleration=10.0
    ),
    ColumnKind.ANGLE: ColumnLimits(velocity=2.0, acceleration=10.0),
    ColumnKind.QUATERNION: ColumnLimits(velocity=2.0, acceleration=10.0),
    ColumnKind.TWIST: ColumnLimits(velocity=1.5, acceleration=5.0),
    ColumnKind.GRIPPER: ColumnLimits(position_min=0.0, position_max=1.0),
}


@dataclass(frozen=True)
class Kept:
    """A command with arrays of its own."""

    time_ns: int
    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    state: str
    sequence: int
    instruction_id: int


_JERKY = (ColumnKind.LINEAR, ColumnKind.ANGLE, ColumnKind.TWIST)


def make_limits(columns, *, jerk=None):
    """Return limits for every column by its kind, with a jerk where the kind can have one."""
    said = {column.name: _LIMITS[column.kind] for column in columns}
    jerky = {column.name for column in columns if jerk is not None and column.kind in _JERKY}
    return check_limits(
        columns,
        {name: replace(own, jerk=jerk) if name in jerky else own for name, own in said.items()},
    )


def make_settings(**changes):
    """Return settings of a 200 Hz executor of a 20 Hz policy with 16 rows."""
    settings = SchedulerSettings(
        period_ns=PERIOD_NS, step_ns=STEP_NS, horizon=HORIZON, strategy='offset_fade'
    )
    return replace(settings, **changes)


class Bench:
    """Drives one scheduler; time goes on with `tick` only.

    Args:
        columns: Columns of the action.
        jerk: Jerk limit of positions, angles and twists; None: there is none.
        changes: Settings that differ.
    """

    def __init__(self, columns=ARM, *, jerk=None, **changes):
        self.columns = columns
        self.jerk = jerk
        limits = make_limits(columns, jerk=jerk)
        self.scheduler = ChunkScheduler(columns, make_settings(**changes), limits)
        self.now_ns = START_NS
        self.sequence = 0
        self.commands = []
        self.measured = np.zeros(len(columns))
        self.events = []

    def chunk(self, *, observed_ns=None, level=None, rows=HORIZON, **other):
        """Return the next chunk: waves in absolute time, or one level for all columns."""
        observed_ns = self.now_ns if observed_ns is None else observed_ns
        seconds = (observed_ns - START_NS + np.arange(rows) * STEP_NS) * 1e-9
        actions = np.stack(
            [np.sin(seconds + index) - np.sin(index) for index in range(len(self.columns))], axis=1
        )
        if level is not None:
            actions = np.full_like(actions, level)
        instruction_id = other.pop('instruction_id', 0)
        given = {'sequence': self.sequence, 'policy_id': 'waves@1', 'columns': self.columns}
        given |= {'step_ns': STEP_NS, 'start_ns': observed_ns, 'observation_stamp_ns': observed_ns}
        given |= {'instruction': Instruction('go', instruction_id), **other}
        self.sequence += 1
        return ActionChunk(actions=actions.astype(np.float32), **given)

    def offer(self, **changes):
        """Offer the next chunk now."""
        return self.scheduler.offer(self.chunk(**changes), self.now_ns)

    def tick(self, count=1, *, measured=True):
        """Go on by some periods, one tick each; return the last command."""
        command = None
        for _ in range(count):
            self.now_ns += PERIOD_NS
            state = self.measured if measured else None
            command = self.scheduler.command(self.now_ns, state)
            if command is not None:
                self.keep(command)
        self.events += self.scheduler.events()
        return command

    def keep(self, command):
        """Keep a command; the measured state follows it."""
        self.commands.append(
            Kept(
                command.time_ns,
                command.position.copy(),
                command.velocity.copy(),
                command.acceleration.copy(),
                command.state.value,
                command.sequence,
                command.instruction_id,
            )
        )
        self.measured = command.position.copy()

    def run(self, ticks, *, every=60, delay_ns=80 * MS, **changes):
        """Go on with a policy that answers every few ticks, its observations a delay old."""
        for count in range(ticks):
            if count % every == 0:
                self.offer(observed_ns=self.now_ns - delay_ns, **changes)
            self.tick()

    def start(self, **changes):
        """Arm and go on until the chunks are tracked."""
        self.scheduler.arm(self.now_ns)
        self.run(300, **changes)
        assert self.state == 'tracking'

    @property
    def state(self):
        """Name of the state."""
        return self.scheduler.state.value

    def snapshot(self):
        """Return how the scheduler is now."""
        return self.scheduler.snapshot(self.now_ns)

    def told(self, kind):
        """Return the causes of the events of one kind so far."""
        self.events += self.scheduler.events()
        return [event.cause for event in self.events if event.kind.value == kind]


def assert_within_limits(commands, columns, *, start=None, jerk=None):
    """Check commands that follow each other by their differences; turns of a pose by their angle."""
    limits = make_limits(columns, jerk=jerk)
    math = ColumnMath(columns)
    smallest, largest, *rates = limits.orders()
    values = np.array([command.position for command in commands])
    if start is not None:
        values = np.vstack([start, start, start, values])
    assert (values >= smallest - 1e-9).all()
    assert (values <= largest + 1e-9).all()
    period_s = PERIOD_NS * 1e-9
    motion = np.diff(values, axis=0)
    for first in math.quaternions:
        place = slice(first, first + 4)
        motion[:, place] = math.difference(values[1:], values[:-1])[:, place]
    for order, rate in enumerate(rates, 1):
        motion = motion / period_s if order == 1 else np.diff(motion, axis=0) / period_s
        sizes = np.abs(motion)
        for first in math.quaternions:
            turns = np.linalg.norm(motion[:, first : first + 3], axis=1)
            sizes[:, first : first + 4] = turns[:, None]
        assert (sizes <= rate * (1 + 1e-6) + 1e-9 * 1e3 ** (order - 1)).all()
