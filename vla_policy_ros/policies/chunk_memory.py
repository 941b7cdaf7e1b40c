# SPDX-License-Identifier: Apache-2.0
"""What a policy remembers from one chunk to the next: its rows, and how late chunks have come."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.chunk_prefix import ChunkPrefix, whole_steps
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.core.errors import ChunkRejectedError
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import Array
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.policies.rtc_check import max_delay_steps

_NO_STATE = np.zeros(0, np.float32)
_NUM_DELAYS = 100  # as many as LeRobot's tracker of latencies holds


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """The last chunk: (K, W) sample of its loop, and the observation it answers, (S,) newest state row."""

    sample: Array
    state: Array
    stamp_ns: int
    epoch: int
    instruction: Instruction


class ChunkMemory:
    """Tells what the next chunk begins with. One thread at a time.

    Every chunk is kept, whether or not it began with a prefix. There is no prefix at the beginning, after a reset, in
    another epoch, for another instruction and after a step back in time; never are rows made up instead.

    With d, the delay in steps, s, the steps from one observation to the next, and K rows, asynchronous execution needs
    d <= s <= K - d (arXiv 2506.07339, section 3). What breaks that is counted, see `note_published`.

    Args:
        bundle: The bundle; it has passed `rtc_check.check_rtc`.
        settings: How much is taken over.
        denormalizer: The bundle's, which moves rows in time.
    """

    def __init__(
        self, bundle: Bundle, settings: RtcSettings, *, denormalizer: ActionDenormalizer
    ) -> None:
        self._settings = settings
        self._action = bundle.spec.action
        self._has_state = bool(bundle.spec.observation.state)
        self._denormalizer = denormalizer
        self._max_delay = max_delay_steps(bundle, settings)
        self._last: _Kept | None = None
        self._delays_ns: deque[int] = deque(maxlen=_NUM_DELAYS)
        self._first_delay_ns: int | None = None
        self._is_first = True
        self._causes: list[str] = []

    def recall(self, observation: Observation) -> ChunkPrefix | None:
        """Return what the chunk of an observation begins with, None for nothing.

        Raises:
            ChunkRejectedError: More rows would have to be frozen than can be, and such chunks are discarded
                (`delay_above_max`). The delay is forgotten with it, so one late chunk costs one chunk.
        """
        self._causes = []
        last = self._last
        if (
            last is None
            or observation.stamp_ns <= last.stamp_ns
            or (observation.epoch, observation.instruction) != (last.epoch, last.instruction)
        ):
            return None
        elapsed = whole_steps(
            observation.stamp_ns - last.stamp_ns,
            self._action.step_ns,
            tolerance=self._settings.step_tolerance,
        )
        if elapsed is None:
            self._causes.append('between_steps')
            return None
        frozen = self._frozen_steps(observation, elapsed)
        left = self._action.horizon - elapsed
        if left <= 0:
            return None
        return self._cut(self._move(last, elapsed, observation), min(frozen, left))

    def keep(self, observation: Observation, sample: Array) -> None:
        """Keep a chunk, (1, K, W) sample of its loop."""
        self._last = _Kept(
            sample=sample[0].copy(),
            state=self._state_row(observation).copy(),
            stamp_ns=observation.stamp_ns,
            epoch=observation.epoch,
            instruction=observation.instruction,
        )

    def forget(self) -> None:
        """Forget the last chunk; the delays stay, but the next one does not count: it holds a warm-up."""
        self._last = None
        self._is_first = True
        self._causes = []

    def note_published(self, delay_ns: int) -> tuple[str, ...]:
        """Take the time from capture to publication of the newest chunk; return what was wrong with its prefix.

        The first delay after a reset stands in for others only as long as there are none.

        Returns:
            Any of `delay_above_horizon` (d > s: the chunk before it had not come when this one was asked for),
            `horizon_above_rest` (s > K - d: the chunk before it ends too soon), `delay_above_max`, `between_steps` and
            `rows_out_of_range` (a frozen row lies where clipping leaves no numbers for the new observation).
        """
        if self._is_first:
            self._first_delay_ns = delay_ns
        else:
            self._delays_ns.append(delay_ns)
        self._is_first = False
        return tuple(self._causes)

    def _delay_steps(self) -> int | None:
        """Return d, None while it is not known."""
        frozen = self._settings.frozen_steps
        if frozen != 'auto':
            return frozen
        worst_ns = max(self._delays_ns, default=self._first_delay_ns)
        if worst_ns is None:
            return None
        return -(-max(worst_ns - self._action.offset_ns, 0) // self._action.step_ns)

    def _frozen_steps(self, observation: Observation, elapsed: int) -> int:
        delay = self._delay_steps()
        if delay is None:
            return self._max_delay
        if delay > elapsed:
            self._causes.append('delay_above_horizon')
        if elapsed > self._action.horizon - delay:
            self._causes.append('horizon_above_rest')
        if delay > self._max_delay:
            if self._settings.late == 'discard':
                self._forget_worst()
                raise _too_late(observation, delay, self._max_delay)
            self._causes.append('delay_above_max')
        margin = self._settings.margin_steps if self._settings.frozen_steps == 'auto' else 0
        return min(delay + margin, self._max_delay)

    def _forget_worst(self) -> None:
        if self._delays_ns:
            self._delays_ns.remove(max(self._delays_ns))
        else:
            self._first_delay_ns = None

    def _move(self, last: _Kept, elapsed: int, observation: Observation) -> Array:
        return self._denormalizer.move(
            last.sample, elapsed, old_state=last.state, new_state=self._state_row(observation)
        )

    def _state_row(self, observation: Observation) -> Array:
        return observation.state[-1] if self._has_state else _NO_STATE

    def _cut(self, rows: Array, frozen: int) -> ChunkPrefix | None:
        if len(rows) < frozen:
            self._causes.append('rows_out_of_range')
        overlap = self._settings.overlap_steps
        count = len(rows) if overlap is None else max(overlap, frozen)
        rows = rows[: frozen if self._settings.kind == 'inputs' else count]
        return ChunkPrefix(rows, min(frozen, len(rows))) if len(rows) else None


def _too_late(observation: Observation, delay: int, limit: int) -> ChunkRejectedError:
    return ChunkRejectedError(
        f'chunk at {observation.stamp_ns} ns',
        got=f'a delay of {delay} steps from capture to chunk',
        expected=f'at most {limit}, the most rows that can be frozen',
        next_step='Make the policy faster, ask it less often, or set policy.rtc.late: clamp.',
        code='delay_above_max',
    )
