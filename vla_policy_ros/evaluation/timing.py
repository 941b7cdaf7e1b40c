# SPDX-License-Identifier: Apache-2.0
"""How fast chunks came, and what became of every observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vla_policy_ros.core.latency import LatencySummary, LatencyWindow
from vla_policy_ros.core.specs import Array
from vla_policy_ros.evaluation.recording import ChunkRecording


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """What the player saw.

    Attributes:
        reference_samples: Samples of the reference stream that it sent; None when nobody counted.
        refusals: Refused reference samples by `stream/cause`.
        missing: Reference samples that were neither answered with a chunk nor refused.
        drops: Messages lost on the way, by stream.
    """

    reference_samples: int | None = None
    refusals: Mapping[str, int] = field(default_factory=dict)
    missing: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latencies, rate and counts of a run.

    Attributes:
        num_chunks: Chunks received.
        sequence_gaps: Chunks that the sequence numbers say were published and never arrived.
        chunk_share: Chunks per reference sample sent; None when nobody counted or nothing was sent.
        rate_hz: Chunks per second of publication within an epoch; None with fewer than two chunks.
        capture_to_chunk: From the capture of the observation to publication; empty where the clock stood still.
        delivery: From publication to receipt; empty where the clock stood still.
        stages: Wall time per stage, in the order of execution.
        counts: What the player saw.
    """

    num_chunks: int
    sequence_gaps: int
    chunk_share: float | None
    rate_hz: float | None
    capture_to_chunk: LatencySummary
    delivery: LatencySummary
    stages: Mapping[str, LatencySummary]
    counts: RunCounts


def measure_timing(policy: ChunkRecording, counts: RunCounts) -> Timing:
    """Summarise the stamps and stage latencies of a chunk stream."""
    publish_ns, receive_ns = policy.publish_stamps_ns, policy.receive_stamps_ns
    gaps_ns = np.diff(publish_ns)[np.diff(policy.epochs) == 0]
    gaps_ns = gaps_ns[gaps_ns > 0]
    capture_to_chunk_ns = publish_ns - policy.observation_stamps_ns
    if not capture_to_chunk_ns.any():
        # In lock-step the clock stands still until a step is answered: stamps then measure nothing.
        capture_to_chunk_ns = receive_ns = publish_ns = np.zeros(0, np.int64)
    return Timing(
        num_chunks=len(policy),
        sequence_gaps=_sequence_gaps(policy),
        chunk_share=len(policy) / counts.reference_samples if counts.reference_samples else None,
        rate_hz=float(1e9 / gaps_ns.mean()) if len(gaps_ns) else None,
        capture_to_chunk=_summarize(capture_to_chunk_ns),
        delivery=_summarize(receive_ns - publish_ns),
        stages={name: _summarize(ns) for name, ns in policy.stage_latencies_ns().items()},
        counts=counts,
    )


def _summarize(durations_ns: Array) -> LatencySummary:
    window = LatencyWindow(size=max(len(durations_ns), 1))
    for duration_ns in durations_ns.tolist():
        window.add(duration_ns)
    return window.summary()


def _sequence_gaps(policy: ChunkRecording) -> int:
    steps = np.diff(policy.sequences)[np.diff(policy.epochs) == 0]
    return int(np.maximum(steps - 1, 0).sum())
