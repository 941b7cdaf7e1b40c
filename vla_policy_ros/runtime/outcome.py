# SPDX-License-Identifier: Apache-2.0
"""What the pipeline tells: what became of each reference sample, and its state and counts at one time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.latency import LatencySummary
from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.runtime.counters import StreamSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one reference sample.

    Attributes:
        stamp_ns: Stamp of the sample.
        chunk: Its chunk; None when there is none.
        stream: Stream at fault, `policy` when the inference was; empty when there is a chunk.
        cause: Why there is no chunk, in snake_case; empty when there is one.
        detail: One sentence for a person; empty when there is a chunk.
        sequence: Sequence number of the chunk, 0 without one.
        epoch: Epoch that the sample belongs to.
    """

    stamp_ns: int
    chunk: ActionChunk | None = None
    stream: str = ''
    cause: str = ''
    detail: str = ''
    sequence: int = 0
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSnapshot:
    """State and counts at one time; counts run since the start.

    Attributes:
        state: `inactive`, `waiting` (an input is missing), `running` or `failed`.
        detail: One sentence about the state.
        epoch: Number of resets so far.
        instruction: The instruction in force.
        observations: Matched sets.
        chunks: Chunks made.
        refused: Reference samples that ended without a chunk.
        causes: `stream/cause` to how often; also counts bad samples of other streams, and what `policy` found wrong
            with a chunk that it gave.
        resets: Reason to how often.
        streams: Counts per stream.
        latencies: Stage to percentiles, with `capture_to_chunk` on the pipeline's clock.
    """

    state: str
    detail: str
    epoch: int
    instruction: Instruction
    observations: int
    chunks: int
    refused: int
    causes: Mapping[str, int]
    resets: Mapping[str, int]
    streams: Mapping[str, StreamSnapshot]
    latencies: Mapping[str, LatencySummary]


def describe_state(
    failures: Mapping[str, Exception],
    silent: Sequence[str],
    *,
    has_time: bool,
    has_instruction: bool,
) -> tuple[str, str]:
    """Return state and detail of a pipeline that is started.

    Args:
        failures: Thread to the unexpected error that ended its work.
        silent: Streams that a chunk needs and that send nothing.
        has_time: Whether the clock of the stamps has begun to run.
        has_instruction: Whether there is an instruction, or none is needed.
    """
    if failures:
        told = [f'{name}: {type(error).__name__}: {error}' for name, error in failures.items()]
        return 'failed', '; '.join(told)
    if not has_time:
        return (
            'waiting',
            'The clock stands at 0: use_sim_time needs something that publishes /clock.',
        )
    if silent:
        return 'waiting', f'No samples from {", ".join(silent)}.'
    if not has_instruction:
        return 'waiting', 'No instruction yet.'
    return 'running', ''
