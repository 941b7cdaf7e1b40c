# SPDX-License-Identifier: Apache-2.0
"""Where the time of one inference goes, component by component, and the same in the four groups that GR00T prints.

Components: `receive` is one copy of every image's bytes, as a message brings them; `upload` and `preprocess` bring the
images to the network's tensors (on the host there is no upload); `inputs` are state, words, noise and what else is copied
before the first stage; then every stage, or `network` where all of them run as one CUDA graph; `postprocess`; `total` is
the wall time of it all. Every time ends with the work done, never with the work enqueued.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import Clock
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.policy import Policy

Times = Mapping[str, int]
"""Nanoseconds per component of one inference, in the order of execution."""

TOTAL = 'total'
DATA_PROCESSING, BACKBONE, ACTION_HEAD, END_TO_END = (
    'data processing',
    'backbone',
    'action head',
    'end to end',
)
GROUPS = (DATA_PROCESSING, BACKBONE, ACTION_HEAD, END_TO_END)
"""Titles that GR00T's benchmark prints."""
_DATA = ('receive', 'upload', 'preprocess', 'inputs')


@dataclass(frozen=True, slots=True)
class TimeSummary:
    """Figures of `count` measurements in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    count: int


def measure_inference(
    policy: Policy,
    observation: Observation,
    *,
    clock: Clock,
    wait: Callable[[PreparedFrame], None] | None = None,
) -> tuple[dict[str, int], ActionChunk]:
    """Run one observation of raw frames through a policy; blocks until the chunk is there.

    Args:
        policy: The policy; its `prepare` is called for every image.
        observation: What it is given.
        clock: Measures.
        wait: Blocks until an image is prepared, for a policy whose `prepare` only enqueues; None for others.

    Raises:
        VlaPolicyError: As the policy.
    """
    started_ns = clock.now_ns()
    frames = {name: [_receive(image) for image in images] for name, images in _frames(observation)}
    received_ns = clock.now_ns()
    images = {
        name: tuple(policy.prepare(frame) for frame in stack) for name, stack in frames.items()
    }
    prepared_ns = clock.now_ns()
    times = {'receive': received_ns - started_ns}
    if wait is None:
        times['preprocess'] = prepared_ns - received_ns
    else:
        for image in (image for stack in images.values() for image in stack):
            if not isinstance(image, Frame):
                wait(image)
        times['upload'] = prepared_ns - received_ns
        times['preprocess'] = clock.now_ns() - prepared_ns
    chunk = policy.infer(replace(observation, images=images))
    ended_ns = clock.now_ns()
    for name, latency_ns in chunk.stage_latencies_ns.items():
        times['inputs' if name == 'preprocess' else name] = latency_ns
    times[TOTAL] = ended_ns - started_ns
    return times, chunk


def summarize_components(samples: Sequence[Times]) -> dict[str, TimeSummary]:
    """Return the figures of every component, in the order in which the first sample has them."""
    names = list(samples[0]) if samples else []
    return {name: _summarize([sample.get(name, 0) for sample in samples]) for name in names}


def summarize_groups(
    samples: Sequence[Times], *, backbone: Collection[str], action_head: Collection[str]
) -> dict[str, TimeSummary | None]:
    """Return the figures of the four groups; None where a group cannot be told from the others.

    A group is added up within each inference first, so that its percentiles are those of the sum.

    Args:
        samples: Times of every inference.
        backbone: Stages of the backbone.
        action_head: Stages of the action head.
    """
    known = set(samples[0]) if samples else set()
    members: dict[str, Collection[str]] = {
        DATA_PROCESSING: _DATA,
        BACKBONE: backbone,
        ACTION_HEAD: action_head,
        END_TO_END: (TOTAL,),
    }
    return {
        group: _summarize([sum(sample.get(name, 0) for name in names) for sample in samples])
        if known & set(names)
        else None
        for group, names in members.items()
    }


def split_stages(
    stages: Sequence[tuple[str, bool]], chosen: Sequence[str] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the stages of the backbone and those of the action head.

    Args:
        stages: Name of every stage and whether it runs in the loop, in order.
        chosen: Stages of the backbone; None takes those before the loop, and none where there is no loop.

    Raises:
        ConfigurationError: A chosen stage does not exist (`unknown_stage`).
    """
    names = [name for name, _ in stages]
    if chosen is None:
        first = next((index for index, (_, in_loop) in enumerate(stages) if in_loop), 0)
        return tuple(names[:first]), tuple(names[first:])
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        raise ConfigurationError(
            '--backbone',
            got=', '.join(unknown),
            expected=f'stages of the bundle: {", ".join(names)}',
            next_step='Name stages as bundle.yaml does.',
            code='unknown_stage',
        )
    return tuple(name for name in names if name in chosen), tuple(
        name for name in names if name not in chosen
    )


def greatest_difference(chunks: Sequence[ActionChunk], others: Sequence[ActionChunk]) -> float:
    """Return the greatest difference between the actions of two runs over the same observations, in units of the actions."""
    pairs = zip(chunks, others, strict=True)
    return max((float(np.abs(a.actions - b.actions).max()) for a, b in pairs), default=0.0)


def _frames(observation: Observation) -> list[tuple[str, list[Frame]]]:
    stacks = observation.images.items()
    return [(name, [i for i in stack if isinstance(i, Frame)]) for name, stack in stacks]


def _receive(frame: Frame) -> Frame:
    return replace(frame, data=frame.data.copy())


def _summarize(durations_ns: Sequence[int]) -> TimeSummary:
    values = np.asarray(durations_ns, np.float64) / 1e6
    p50, p95, p99 = (float(value) for value in np.percentile(values, (50, 95, 99)))
    return TimeSummary(p50, p95, p99, float(values.min()), len(values))
