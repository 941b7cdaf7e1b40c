# SPDX-License-Identifier: Apache-2.0
"""What the pipeline counts: samples per stream, outcomes by cause, latencies per stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vla_policy_ros.core.latency import LatencySummary, LatencyWindow
from vla_policy_ros.scheduling.gaps import GapCounter
from vla_policy_ros.scheduling.matcher import Refusal

_STALL_NS = 1_000_000_000
_STALL_PERIODS = 3
# Stamps that run this far ahead of the time that has passed were moved by a clock; nothing is missing between them.
_CLOCK_STEP_NS = 60_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSnapshot:
    """Counts of one stream since the start.

    Attributes:
        received: Messages taken.
        used: Samples that went into a chunk.
        missing: Samples that the stamps say were sent and never arrived.
        refused: Samples refused as bad input.
        filled: Sets in which a fill stood in for a sample of this stream.
        newest_stamp_ns: Stamp of the newest sample in this epoch, -1 when there is none yet.
        newest_age_ns: Its age on the pipeline's clock, -1 when there is none yet.
        rate_hz: Mean rate of the recent samples; 0 while the stream is silent.
    """

    received: int
    used: int
    missing: int
    refused: int
    filled: int
    newest_stamp_ns: int
    newest_age_ns: int
    rate_hz: float


class StreamCounter:
    """Counts one stream.

    Args:
        expected_period_ns: Nominal time between two samples; None to learn it.
    """

    def __init__(self, expected_period_ns: int | None = None) -> None:
        self._gaps = GapCounter(expected_period_ns)
        self._received = 0
        self._arrived_ns: int | None = None
        self.newest_ns: int | None = None
        self.used = 0
        self.refused = 0
        self.filled = 0
        self.fault = ''
        """Why the last sample was refused; empty when it was not."""

    def arrive(self, stamp_ns: int, arrived_ns: int) -> None:
        """Count a message; `arrived_ns` is on the clock for durations."""
        self._received += 1
        before_ns, self._arrived_ns = self._arrived_ns, arrived_ns
        if stamp_ns > 0:
            if self.newest_ns is not None and before_ns is not None:
                ahead_ns = (stamp_ns - self.newest_ns) - (arrived_ns - before_ns)
                if ahead_ns > _CLOCK_STEP_NS:
                    self._gaps.restart()
            self._gaps.add(stamp_ns)
            self.newest_ns = max(self.newest_ns or 0, stamp_ns)

    def arrive_broken(self, arrived_ns: int) -> None:
        """Count a message that could not be read; it must not pass for a missing one as well."""
        self._received += 1
        self._arrived_ns = arrived_ns
        self._gaps.restart()

    def refuse(self, cause: str, detail: str) -> None:
        """Count a sample that was refused as bad input."""
        self.refused += 1
        self.fault = f'{cause}: {detail}'

    def restart(self) -> None:
        """Begin an epoch: stamps may start anew."""
        self._gaps.restart()
        self._arrived_ns = None
        self.newest_ns = None
        self.fault = ''

    def is_silent(self, now_ns: int) -> bool:
        """Whether nothing came in this epoch, or nothing for a second and three periods."""
        if self._arrived_ns is None:
            return True
        patience_ns = max(_STALL_NS, _STALL_PERIODS * (self._gaps.period_ns or 0))
        return now_ns - self._arrived_ns > patience_ns

    def snapshot(self, now_ns: int, *, is_silent: bool = False) -> StreamSnapshot:
        """Return the counts; `now_ns` is on the clock of the stamps."""
        newest_ns = self.newest_ns
        return StreamSnapshot(
            received=self._received,
            used=self.used,
            missing=self._gaps.missing,
            refused=self.refused,
            filled=self.filled,
            newest_stamp_ns=-1 if newest_ns is None else newest_ns,
            newest_age_ns=-1 if newest_ns is None else now_ns - newest_ns,
            rate_hz=0.0 if is_silent else self._gaps.rate_hz,
        )


class PipelineCounters:
    """Counts of the whole pipeline since the start. One thread at a time.

    Args:
        expected_periods_ns: Stream to the nominal time between two samples, None where it is to be learnt.
    """

    def __init__(self, expected_periods_ns: Mapping[str, int | None]) -> None:
        self.streams = {
            name: StreamCounter(period_ns) for name, period_ns in expected_periods_ns.items()
        }
        self.observations = 0
        self.chunks = 0
        self.refused = 0
        self.causes: Counter[str] = Counter()
        self.resets: Counter[str] = Counter()
        self._windows: dict[str, LatencyWindow] = {}

    def count_chunk(self, used: Iterable[str], latencies_ns: Mapping[str, int]) -> None:
        """Count a chunk, the streams that went into it and its latencies per stage."""
        self.chunks += 1
        for stream in used:
            self.streams[stream].used += 1
        self.count_latencies(latencies_ns)

    def count_published(self, *, publish_ns: int, receipt_ns: int, causes: Iterable[str]) -> None:
        """Count what became of a chunk.

        Args:
            publish_ns: How long publishing took.
            receipt_ns: Time from the receipt of the last sample of the set to the end of publishing.
            causes: What the policy finds wrong with the chunk, now that it is late by what it is.
        """
        self.count_latencies({'publish': publish_ns, 'receipt_to_published': receipt_ns})
        for cause in causes:
            self.count_cause('policy', cause)

    def count_latencies(self, latencies_ns: Mapping[str, int]) -> None:
        """Count durations per stage."""
        for stage, duration_ns in latencies_ns.items():
            self._windows.setdefault(stage, LatencyWindow()).add(duration_ns)

    def count_refusal(self, stream: str, cause: str) -> None:
        """Count a reference sample that ended without a chunk."""
        self.refused += 1
        self.count_cause(stream, cause)

    def count_cause(self, stream: str, cause: str) -> None:
        """Count why something was refused."""
        self.causes[f'{stream}/{cause}'] += 1

    def explain(self, refusal: Refusal) -> Refusal:
        """Add to the lack of a sample why the last one of that stream was refused."""
        fault = self.streams[refusal.stream].fault
        if not fault:
            return refusal
        return replace(refusal, detail=f'{refusal.detail} Its last one was refused: {fault}')

    def find_silent(self, now_ns: int) -> frozenset[str]:
        """Return the streams that send nothing; `now_ns` is on the clock for durations."""
        return frozenset(name for name, s in self.streams.items() if s.is_silent(now_ns))

    def snapshots(self, now_ns: int, silent: frozenset[str]) -> dict[str, StreamSnapshot]:
        """Return the counts per stream; `now_ns` is on the clock of the stamps."""
        return {
            name: stream.snapshot(now_ns, is_silent=name in silent)
            for name, stream in self.streams.items()
        }

    def latencies(self) -> dict[str, LatencySummary]:
        """Return the percentiles per stage."""
        return {stage: window.summary() for stage, window in self._windows.items()}
