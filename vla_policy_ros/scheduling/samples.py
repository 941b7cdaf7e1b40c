# SPDX-License-Identifier: Apache-2.0
"""The recent samples of one stream, and the rules that pick one of them for a wanted stamp."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Interpolate = Callable[[Any, Any, float], Any]
# Of a period: a sample that is older by this much cannot be followed by a better one.
_SHARE = {'nearest': 0.5, 'as_of': 0.99, 'interpolate': 0.0}


@dataclass(frozen=True, slots=True)
class StreamRule:
    """How one stream is matched to the reference.

    Attributes:
        name: Name of the stream.
        rule: `nearest` takes the nearest sample, `as_of` the newest one that is not later than the wanted stamp,
            `interpolate` blends the samples on both sides of it. A missing side is never extrapolated: the one
            neighbour within tolerance is then taken as it is.
        tolerance_ns: Largest distance to the wanted stamp on either side (`nearest`, `interpolate`).
        max_age_ns: Largest age of a sample at the wanted stamp; an older one means that the stream has stalled.
        history_ns: Offsets of the wanted stamps to the reference stamp, oldest first, ending with 0.
        fill: What stands in for a sample that is not there: `refuse` (nothing: the set is refused), `last` (the last
            sample before it, else the first one after it) or `black` (None).
        depth: Samples kept; the oldest one is evicted.
        jump_ns: A stamp that lies further before the newest one begins the stream anew: its clock was set back, or was
            ahead for a moment. That sample is refused, the next one counts.
        period_ns: Time between two samples, where it is known. Then `nearest` takes a sample at once that is older by no
            more than half of it, as the next one will not be nearer; and `as_of` one that is older by less than all of
            it, as the next one will be later than wanted.
    """

    name: str
    rule: Literal['nearest', 'as_of', 'interpolate']
    tolerance_ns: int
    max_age_ns: int
    history_ns: tuple[int, ...] = (0,)
    fill: Literal['refuse', 'last', 'black'] = 'refuse'
    depth: int = 64
    jump_ns: int = 1_000_000_000
    period_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Pick:
    """One sample for one wanted stamp; `stamp_ns` is None when it was made up (fill `black`)."""

    stamp_ns: int | None
    payload: Any
    is_filled: bool = False


@dataclass(frozen=True, slots=True)
class Miss:
    """Why there is no sample for a wanted stamp."""

    cause: str
    detail: str


class SampleBuffer:
    """The samples of one stream in the order of their stamps."""

    def __init__(self, rule: StreamRule) -> None:
        self.rule = rule
        self._stamps_ns: list[int] = []
        self._payloads: list[Any] = []
        self._newest_ns: int | None = None

    def __len__(self) -> int:
        return len(self._stamps_ns)

    def advance(self, stamp_ns: int) -> Miss | None:
        """Take note of a stamp; say why when it is zero or does not come after the last one."""
        newest_ns = self._newest_ns
        if stamp_ns <= 0:
            return Miss('zero_stamp', f'The stamp is {stamp_ns} ns: the driver does not stamp.')
        if newest_ns is not None and stamp_ns == newest_ns:
            return Miss('duplicate_stamp', f'The last sample also has the stamp {stamp_ns} ns.')
        if newest_ns is not None and stamp_ns < newest_ns:
            late_ns = newest_ns - stamp_ns
            if late_ns > self.rule.jump_ns:
                self.clear()
            late = _milliseconds(late_ns)
            return Miss('out_of_order', f'The sample is {late} older than the one before it.')
        self._newest_ns = stamp_ns
        return None

    def append(self, stamp_ns: int, payload: Any) -> None:
        """Keep a sample whose stamp `advance` has accepted."""
        self._stamps_ns.append(stamp_ns)
        self._payloads.append(payload)
        self._drop(len(self) - self.rule.depth)

    def clear(self) -> None:
        """Forget all samples and stamps."""
        self._drop(len(self))
        self._newest_ns = None

    def is_decided(self, wanted_ns: int) -> bool:
        """Whether no later sample can change what is picked for the wanted stamp."""
        if self._newest_ns is None:
            return False
        return wanted_ns - self._newest_ns <= _SHARE[self.rule.rule] * (self.rule.period_ns or 0)

    def would_lose(self, wanted_ns: int) -> bool:
        """Whether one sample more would evict what may be picked for the wanted stamp."""
        is_full = len(self) == self.rule.depth
        return is_full and bisect_right(self._stamps_ns, wanted_ns) <= 1

    def release(self, wanted_ns: int) -> None:
        """Drop what cannot be picked any more when all wanted stamps to come are later than this one."""
        self._drop(bisect_right(self._stamps_ns, wanted_ns) - 1)

    def pick(self, reference_ns: int, interpolate: Interpolate) -> list[Pick] | Miss:
        """Pick one sample per history offset, oldest first, or say why one is missing."""
        picks = []
        for offset_ns in self.rule.history_ns:
            found = self._pick(reference_ns + offset_ns, interpolate, is_past=offset_ns < 0)
            if isinstance(found, Miss):
                found = self._fill(reference_ns + offset_ns) or found
            if isinstance(found, Miss):
                return found
            picks.append(found)
        return picks

    def _pick(self, wanted_ns: int, interpolate: Interpolate, *, is_past: bool) -> Pick | Miss:
        stamps_ns, after = self._stamps_ns, bisect_left(self._stamps_ns, wanted_ns)
        if after < len(stamps_ns) and stamps_ns[after] == wanted_ns:
            return Pick(wanted_ns, self._payloads[after])
        last = after if self.rule.rule == 'as_of' else after + 1
        neighbours = range(max(after - 1, 0), min(last, len(stamps_ns)))
        usable = [index for index in neighbours if self._is_usable(wanted_ns - stamps_ns[index])]
        if not usable:
            return self._miss(wanted_ns, neighbours, is_past=is_past)
        if self.rule.rule == 'interpolate' and len(usable) == 2:
            before_ns = stamps_ns[after - 1]
            ratio = (wanted_ns - before_ns) / (stamps_ns[after] - before_ns)
            blend = interpolate(self._payloads[after - 1], self._payloads[after], ratio)
            return Pick(wanted_ns, blend)
        best = min(usable, key=lambda index: abs(wanted_ns - stamps_ns[index]))
        return Pick(stamps_ns[best], self._payloads[best])

    def _is_usable(self, age_ns: int) -> bool:
        is_near = self.rule.rule == 'as_of' or abs(age_ns) <= self.rule.tolerance_ns
        return is_near and age_ns <= self.rule.max_age_ns

    def _miss(self, wanted_ns: int, neighbours: Sequence[int], *, is_past: bool) -> Miss:
        oldest_ns = self._stamps_ns[0] if self._stamps_ns else None
        if is_past and (oldest_ns is None or oldest_ns > wanted_ns):
            if len(self) == self.rule.depth:
                return self._short_buffer(wanted_ns)
            return Miss('no_history', f'No sample is as old as the wanted stamp {wanted_ns} ns.')
        if not neighbours:
            return Miss('no_sample', f'No sample has come for the wanted stamp {wanted_ns} ns.')
        ages_ns = [wanted_ns - self._stamps_ns[index] for index in neighbours]
        nearest_ns = min(ages_ns, key=abs)
        side = 'older' if nearest_ns > 0 else 'newer'
        found = f'The nearest sample is {_milliseconds(abs(nearest_ns))} {side} than wanted'
        if min(ages_ns) > self.rule.max_age_ns:
            limit = _milliseconds(self.rule.max_age_ns)
            return Miss('too_old', f'{found}; the maximum age is {limit}.')
        limit = _milliseconds(self.rule.tolerance_ns)
        return Miss('out_of_tolerance', f'{found}; the tolerance is {limit}.')

    def _short_buffer(self, wanted_ns: int) -> Miss:
        short = _milliseconds(self._stamps_ns[0] - wanted_ns)
        return Miss(
            'short_buffer',
            f'The {len(self)} samples kept end {short} after the wanted stamp; '
            'policy.slots says how many images there are.',
        )

    def _fill(self, wanted_ns: int) -> Pick | None:
        if self.rule.fill == 'black':
            return Pick(None, None, is_filled=True)
        if self.rule.fill == 'last' and self._stamps_ns:
            index = max(bisect_right(self._stamps_ns, wanted_ns) - 1, 0)
            return Pick(self._stamps_ns[index], self._payloads[index], is_filled=True)
        return None

    def _drop(self, count: int) -> None:
        if count > 0:
            del self._stamps_ns[:count], self._payloads[:count]


def _milliseconds(duration_ns: int) -> str:
    return f'{duration_ns / 1e6:.1f} ms'
