# SPDX-License-Identifier: Apache-2.0
"""Streams of chunks as a network delivers them, and a player that shows them to a strategy.

A stream is drawn as a few small numbers per chunk, so that hypothesis shrinks it to one or two chunks that come at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.execution.curve import ActionCurve
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.strategies import make_strategy

STEP_NS = 50_000_000
START_NS = 1_000_000_000_000
INSTANT_NS = 1
# How much later than its delay says a chunk arrives, as often as it does.
_LATE_NS = {'drops': (), 'arrives twice': (0, STEP_NS // 4), 'is overtaken': (2 * STEP_NS,)}

COLUMNS = (
    Column('shoulder', 'rad'),
    Column('wrist', 'rad', ColumnKind.ANGLE),
    *(Column(f'tool_q{axis}', '1', ColumnKind.QUATERNION) for axis in 'xyzw'),
    Column('base_vx', 'm/s', ColumnKind.TWIST),
    Column('gripper', '1', ColumnKind.GRIPPER),
)
JOINT = (Column('joint', 'rad'),)


@dataclass(frozen=True)
class Arrival:
    """One chunk that arrives at a time."""

    time_ns: int
    chunk: ActionChunk


@dataclass(frozen=True)
class Tick:
    """What a strategy wanted at a time; position is None where it wanted nothing."""

    time_ns: int
    position: np.ndarray | None = None
    velocity: np.ndarray | None = None
    sequence: int = -1
    seam: bool = False


@dataclass
class Run:
    """What came of a stream: one list of ticks per stretch between clock jumps, and why chunks were refused."""

    stretches: list[list[Tick]] = field(default_factory=lambda: [[]])
    causes: list[str] = field(default_factory=list)

    @property
    def ticks(self):
        """All ticks in order."""
        return [tick for stretch in self.stretches for tick in stretch]


def make_chunk(rows, *, start_ns=START_NS, columns=COLUMNS, sequence=0, step_ns=STEP_NS, **other):
    """Return a chunk of (K, D) rows; its observation is that of its row 0."""
    return ActionChunk(
        actions=np.array(rows, np.float32).reshape(-1, len(columns)),
        columns=columns,
        step_ns=step_ns,
        start_ns=start_ns,
        observation_stamp_ns=other.pop('observation_stamp_ns', start_ns),
        sequence=sequence,
        **other,
    )


def line(values, *, start_ns=START_NS, sequence=0, **other):
    """Return a chunk of one linear column."""
    return make_chunk(values, start_ns=start_ns, columns=JOINT, sequence=sequence, **other)


def smooth_rows(seconds, seed):
    """Return rows that go on from chunk to chunk up to a small offset that belongs to the seed."""
    rng = np.random.default_rng(seed)
    offset = 0.1 * rng.standard_normal(9)
    waves = np.sin(2.0 * seconds[:, None] * np.arange(1, 10) / 3.0 + offset)
    return _rows(waves[:, 0], 4.0 * waves[:, 1], waves[:, 2:6], waves[:, 6], waves[:, 7], rng)


def rough_rows(seconds, seed):
    """Return rows that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(-1.0, 1.0, (len(seconds), 9))
    return _rows(noise[:, 0], 4.0 * noise[:, 1], noise[:, 2:6], noise[:, 6], noise[:, 7], rng)


def _rows(joint, angle, quaternion, twist, gripper, rng):
    quaternion = quaternion + np.array([0.0, 0.0, 0.0, 1.5])
    quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
    quaternion *= rng.choice([-1.0, 1.0], (len(quaternion), 1))
    wrapped = (angle + np.pi) % (2.0 * np.pi) - np.pi
    is_closed = gripper > 0.0
    return np.column_stack([joint, wrapped, quaternion, twist, is_closed])


def time(steps):
    """Return a time in steps after the start."""
    return START_NS + round(steps * STEP_NS)


def make(name, *, columns=JOINT, horizon=8, grippers=None, **parameters):
    """Return a strategy of one joint, or of other columns."""
    math = ColumnMath(columns, grippers=grippers)
    return make_strategy(name, math, step_ns=STEP_NS, horizon=horizon, **parameters)


def offer(strategy, chunk, now):
    """Offer a chunk at a time in steps."""
    strategy.offer(ActionCurve(chunk, strategy.math), time(now))


def ramp(first, *, start=0.0, sequence=0, horizon=8, **other):
    """Return a chunk whose rows are first, first + 1, …: it is told from others by its hundreds."""
    values = first + np.arange(horizon)
    return line(values, start_ns=time(start), sequence=sequence, **other)


def value(strategy, now):
    """Return what is wanted of the first column at a time in steps."""
    target = strategy.target(time(now))
    return None if target is None else float(target.position[0])


def values(strategy, *times):
    """Return what is wanted of the first column at several times."""
    return [value(strategy, now) for now in times]


@st.composite
def chunk_streams(draw):
    """Draw K and one list of arrivals per stretch between jumps of the clock.

    There are delays of 0 to K / 2 steps, drops, duplicates, chunks that are overtaken, and a clock that goes back.
    """
    horizon = draw(st.integers(2, 8), label='horizon')
    make_rows = draw(st.sampled_from([smooth_rows, rough_rows]), label='rows')
    item = st.tuples(
        st.integers(0, 10 * horizon),  # tenths of a step since the observation before
        st.integers(0, 5 * horizon),  # delay in tenths of a step
        st.sampled_from(['arrives', 'drops', 'arrives twice', 'is overtaken', 'clock goes back']),
    )
    stretches, stamp_ns = [[]], START_NS
    for sequence, (gap, delay, fate) in enumerate(draw(st.lists(item, min_size=1, max_size=6))):
        stamp_ns += gap * STEP_NS // 10
        if fate == 'clock goes back':
            stamp_ns -= 40 * STEP_NS
            stretches.append([])
        seconds = (stamp_ns - START_NS + np.arange(horizon) * STEP_NS) * 1e-9
        chunk = make_chunk(make_rows(seconds, sequence), start_ns=stamp_ns, sequence=sequence)
        arrival_ns = stamp_ns + delay * STEP_NS // 10
        stretches[-1] += [Arrival(arrival_ns + late, chunk) for late in _LATE_NS.get(fate, (0,))]
    for stretch in stretches:
        stretch.sort(key=lambda arrival: arrival.time_ns)
    return horizon, [stretch for stretch in stretches if stretch]


def deliver(strategy, chunk, now_ns):
    """Offer a chunk; return why it is refused, None when it is not."""
    try:
        strategy.offer(ActionCurve(chunk, strategy.math), now_ns)
    except ChunkRejectedError as error:
        return error.code
    return None


def play(strategy, stretches, *, period_ns=7_000_000):
    """Show a stream to a strategy, tick by tick; the strategy is reset where the clock jumps.

    Besides the regular ticks there is one an instant before and one at every arrival and every row, so that a step at
    a seam shows as the difference of two ticks an instant apart.
    """
    run = Run(stretches=[])
    for place, arrivals in enumerate(stretches):
        if place:
            strategy.reset()
        run.stretches.append(_play_stretch(strategy, arrivals, period_ns, run.causes))
    return run


def _play_stretch(strategy, arrivals, period_ns, causes):
    waiting, ticks = list(arrivals), []
    for time_ns in _tick_times(arrivals, period_ns):
        while waiting and waiting[0].time_ns <= time_ns:
            cause = deliver(strategy, waiting.pop(0).chunk, time_ns)
            causes += [cause] if cause else []
        target = strategy.target(time_ns)
        ticks.append(
            Tick(time_ns)
            if target is None
            else Tick(
                time_ns,
                target.position.copy(),
                target.velocity.copy(),
                target.sequence,
                target.seam,
            )
        )
    return ticks


def _tick_times(arrivals, period_ns):
    chunks = [arrival.chunk for arrival in arrivals]
    moments = {arrival.time_ns for arrival in arrivals}
    moments |= {int(time_ns) for chunk in chunks for time_ns in chunk.times_ns()}
    regular = set(range(min(moments) - 2 * STEP_NS, max(moments) + 2 * STEP_NS, period_ns))
    return sorted(moments | {moment - INSTANT_NS for moment in moments} | regular)


def seams(ticks):
    """Yield the last tick that wanted something and the seam's tick, for every seam."""
    last = None
    for tick in ticks:
        if tick.seam:
            assert last is not None, 'a seam needs something before it'
            yield last, tick
        if tick.position is not None:
            last = tick
