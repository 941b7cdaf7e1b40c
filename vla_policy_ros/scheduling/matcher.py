# SPDX-License-Identifier: Apache-2.0
"""Matches streams on capture stamps: one reference stream, the others by a rule each."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.scheduling.samples import Interpolate, Miss, SampleBuffer, StreamRule

SUPERSEDED = 'superseded'


@dataclass(frozen=True, slots=True, eq=False)
class MatchedSet:
    """The samples that belong to one reference sample.

    Attributes:
        stamp_ns: Stamp of the reference sample.
        samples: Stream to payloads, one per history offset, oldest first; None where fill `black` stands in.
        stamps_ns: Stream to the stamp of its newest sample used (the wanted stamp where two were blended).
        filled: Streams where a fill stands in for at least one sample.
    """

    stamp_ns: int
    samples: Mapping[str, tuple[Any, ...]]
    stamps_ns: Mapping[str, int]
    filled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a sample was refused: the stream at fault, a cause in snake_case, one sentence for a person."""

    stamp_ns: int
    stream: str
    cause: str
    detail: str


@dataclass(slots=True)
class _Pending:
    stamp_ns: int
    arrived_ns: int
    refusal: Refusal | None = None


class StampMatcher:
    """Decides for every reference sample, in order, which samples of the other streams belong to it.

    Every reference sample has exactly one outcome: the refusal that `offer` returns, or one result of `poll` or
    `reset`. It waits until no later sample of another stream could fit better (one at or past its stamp is there, or the
    stream's period says so), so that the outcome does not depend on the order in which streams arrive, but at most for
    the patience, and until newer ones need its place.
    Pure: no clock, no threads.

    Args:
        reference: Name of the reference stream.
        streams: One rule per stream, with one for the reference (its history, its depth).
        patience_ns: Time after its arrival at which a reference sample is decided with what is there.
        interpolate: Blends the payloads of two samples; ratio 0 is the older one.

    Raises:
        ConfigurationError: There is no rule for the reference.
    """

    def __init__(
        self,
        reference: str,
        streams: Sequence[StreamRule],
        *,
        patience_ns: int,
        interpolate: Interpolate,
    ) -> None:
        self._buffers = {rule.name: SampleBuffer(rule) for rule in streams}
        if reference not in self._buffers:
            raise ConfigurationError(
                'matching.reference',
                got=repr(reference),
                expected=f'one of {", ".join(self._buffers)}',
                next_step='Name a stream that has a rule.',
                code='unknown_reference',
            )
        self._reference = reference
        self._patience_ns = patience_ns
        self._interpolate = interpolate
        self._pending: deque[_Pending] = deque()
        self._ended: list[MatchedSet | Refusal] = []

    def offer(
        self, stream: str, stamp_ns: int, payload: Any, *, now_ns: int | None = None
    ) -> Refusal | None:
        """Take one sample; return why it is refused, None when it is not.

        Args:
            stream: Name of its stream.
            stamp_ns: Its stamp.
            payload: What is handed back.
            now_ns: Time of its arrival, on the clock of `poll`; None when that is its stamp.
        """
        buffer = self._buffers[stream]
        miss = buffer.advance(stamp_ns)
        if miss is not None:
            return Refusal(stamp_ns, stream, miss.cause, miss.detail)
        is_reference = stream == self._reference
        while is_reference and self._pending:
            if not buffer.would_lose(self._pending[0].stamp_ns + buffer.rule.history_ns[0]):
                break
            self._end_oldest()
        buffer.append(stamp_ns, payload)
        if is_reference:
            self._wait(_Pending(stamp_ns, stamp_ns if now_ns is None else now_ns))
        return None

    def refuse(self, stamp_ns: int, cause: str, detail: str) -> None:
        """Take a reference sample that cannot be used, so that its refusal comes after the outcomes before it.

        Its stamp is not held against later samples: that of a broken message may be wrong.
        """
        refusal = Refusal(stamp_ns, self._reference, cause, detail)
        self._wait(_Pending(stamp_ns, stamp_ns, refusal))

    def poll(self, now_ns: int) -> list[MatchedSet | Refusal]:
        """Return the outcomes that are decided by now, in the order in which their samples were offered."""
        outcomes, self._ended = self._ended, []
        while self._pending:
            pending = self._pending[0]
            is_due = now_ns - pending.arrived_ns >= self._patience_ns
            if not (pending.refusal or is_due or self._undecided(pending.stamp_ns) is None):
                break
            self._pending.popleft()
            outcomes.append(pending.refusal or self._match(pending.stamp_ns))
        return outcomes

    def reset(self, cause: str, detail: str) -> list[Refusal]:
        """Forget all samples and stamps; return one refusal for every reference sample that was waiting."""
        undecided = [pending.refusal or pending for pending in self._pending]
        refusals = [
            waiting
            if isinstance(waiting, Refusal)
            else Refusal(waiting.stamp_ns, self._reference, cause, detail)
            for waiting in (*self._ended, *undecided)
        ]
        self._ended = []
        self._pending.clear()
        for buffer in self._buffers.values():
            buffer.clear()
        return refusals

    def _wait(self, pending: _Pending) -> None:
        self._pending.append(pending)
        if len(self._pending) > self._buffers[self._reference].rule.depth:
            self._end_oldest()

    def _end_oldest(self) -> None:
        """Decide the oldest reference sample with what is there, because newer ones need its place."""
        oldest = self._pending.popleft()
        outcome = oldest.refusal or self._match(oldest.stamp_ns)
        if isinstance(outcome, Refusal) and outcome is not oldest.refusal:
            outcome = self._superseded(outcome)
        self._ended.append(outcome)

    def _superseded(self, refusal: Refusal) -> Refusal:
        """Return the refusal of a sample that might have been matched later, or the given one."""
        stream = refusal.stream
        if self._buffers[stream].is_decided(refusal.stamp_ns):
            return refusal
        detail = f'It waited for {stream} until too many newer samples had come.'
        return Refusal(refusal.stamp_ns, stream, SUPERSEDED, detail)

    def _undecided(self, stamp_ns: int) -> str | None:
        waiting = (n for n, buffer in self._buffers.items() if not buffer.is_decided(stamp_ns))
        return next(waiting, None)

    def _match(self, stamp_ns: int) -> MatchedSet | Refusal:
        picks = {}
        for name, buffer in self._buffers.items():
            found = buffer.pick(stamp_ns, self._interpolate)
            buffer.release(stamp_ns + buffer.rule.history_ns[0])
            picks[name] = found
        for name, found in picks.items():
            if isinstance(found, Miss):
                return Refusal(stamp_ns, name, found.cause, found.detail)
        complete = {name: found for name, found in picks.items() if not isinstance(found, Miss)}
        return MatchedSet(
            stamp_ns,
            samples={name: tuple(p.payload for p in found) for name, found in complete.items()},
            stamps_ns={
                name: found[-1].stamp_ns
                for name, found in complete.items()
                if found[-1].stamp_ns is not None
            },
            filled=tuple(
                name for name, found in complete.items() if any(p.is_filled for p in found)
            ),
        )


def is_time_jump(newest_ns: int | None, stamp_ns: int, threshold_ns: int) -> bool:
    """Whether a stamp lies so far before the newest one that time has started anew; a zero stamp says nothing."""
    return newest_ns is not None and 0 < stamp_ns < newest_ns - threshold_ns
