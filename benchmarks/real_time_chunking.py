# SPDX-License-Identifier: Apache-2.0
"""What real-time chunking does at the seams of chunks: the sample policy on the held-out episodes of the sample dataset.

The policy is asked every s steps; each chunk is there d steps after its observation and takes over at its row d, as on a
robot with that delay. No time passes here: the delay is a number of rows, so the figures do not depend on the machine.

    jump    distance of a chunk's row d to where the chunk before it would have gone on, L2 over the arm's joints
    bend    change of the motion from row to row of what is executed, L2 over the arm's joints
    error   mean distance of what is executed to what was recorded, per joint

Rows that are frozen are compared bit by bit with those that they repeat. The gripper, which snaps, is left out.

Usage: benchmarks/real_time_chunking.py [--engine onnxruntime] [--horizon 4] [--delays 1 2 4] [--ramp-rates 2 6]
       [--guided] [--json FILE]         --guided needs an engine with gradients, such as torch_cpu
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from parts import Parts, summarize
from results import write_result

from vla_policy_ros.bundle.bundle import Bundle, load_bundle
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array, ColumnKind
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.evaluation.observations import EpisodeObservations
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import HELD_OUT_EPISODES, sample_bundle_path, sample_dataset_path

Stream = tuple[list[Observation], Array]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--engine', default='onnxruntime')
    parser.add_argument('--horizon', type=int, default=4, help='s, steps between observations')
    parser.add_argument('--delays', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--ramp-rates', type=float, nargs='+', default=[2.0, 6.0])
    parser.add_argument('--guided', action='store_true')
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    bundle = load_bundle(sample_bundle_path())
    streams = load_streams(bundle, arguments.horizon)
    parts, rows = Parts(), []
    print(
        '| d | kind | jump mean / max rad | bend rad | error rad | frozen rows | p50 ms |\n'
        '| --- | --- | --- | --- | --- | --- | --- |'
    )
    for delay in arguments.delays:
        for name, rtc in contenders(delay, arguments).items():
            measured = parts.run(
                f'{name}, d = {delay}',
                lambda rtc=rtc, delay=delay: measure(bundle, streams, rtc, delay, arguments),
            )
            if measured:
                rows.append({'delay': delay, 'kind': name, **measured})
                print_row(rows[-1])
    if arguments.json:
        facts = {'policy': bundle.spec.policy_id, 'engine': arguments.engine, 'rows': rows}
        facts['num_seams'] = sum(len(stream) - 1 for stream, _ in streams)
        write_result(arguments.json, {**facts, **parts.facts()})
    raise SystemExit(bool(parts.errors))


def contenders(delay: int, arguments: argparse.Namespace) -> dict[str, RtcSettings | None]:
    """Return what is compared for one delay; `+1` freezes one row more than the delay asks for."""
    settings: dict[str, RtcSettings | None] = {'plain': None}
    for rate in arguments.ramp_rates:
        settings[f'blend, ramp {rate:g}'] = RtcSettings(frozen_steps=delay, ramp_rate=rate)
    rate = arguments.ramp_rates[-1]
    settings[f'blend, ramp {rate:g}, +1'] = RtcSettings(frozen_steps=delay + 1, ramp_rate=rate)
    if arguments.guided:
        settings['guided'] = RtcSettings(kind='guided', frozen_steps=delay)
    return settings


def load_streams(bundle: Bundle, stride: int) -> list[Stream]:
    """Return observations and recorded actions of every held-out episode."""
    streams = []
    with closing(open_dataset(sample_dataset_path())) as dataset:
        for index in HELD_OUT_EPISODES:
            with closing(dataset.episode(index)) as episode:
                seen = EpisodeObservations(dataset.info, episode, spec=bundle.spec)
                streams.append((list(seen.iterate(stride=stride)), np.asarray(episode.action)))
    return streams


def measure(
    bundle: Bundle,
    streams: Sequence[Stream],
    rtc: RtcSettings | None,
    delay: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Return the figures of one contender over all episodes."""
    stride = arguments.horizon
    columns = bundle.spec.action.columns
    arm = [i for i, column in enumerate(columns) if column.kind is not ColumnKind.GRIPPER]
    frozen = rtc.frozen_steps if rtc and isinstance(rtc.frozen_steps, int) else 0
    jumps, bends, errors, samples_ms = [], [], [], []
    is_exact = True
    with closing(EnginePolicy(bundle, engine=arguments.engine, rtc=rtc)) as policy:
        policy.warmup()
        for observations, truth in streams:
            policy.reset()
            chunks = infer_all(policy, observations, samples_ms)
            repeated = chunks[:-1, stride : stride + frozen]
            is_exact &= chunks[1:, :frozen].tobytes() == repeated.tobytes()
            moved = chunks[..., arm].astype(np.float64)
            jumps.append(moved[1:, delay] - moved[:-1, stride + delay])
            later = (chunk[delay : delay + stride] for chunk in moved)
            executed = np.concatenate([moved[0, :delay], *later])[: len(truth)]
            bends.append(np.diff(executed, n=2, axis=0))
            errors.append(np.abs(executed - truth[: len(executed), arm]))
    lengths = np.linalg.norm(np.concatenate(jumps), axis=1)
    return {
        'jump_mean_rad': float(lengths.mean()),
        'jump_max_rad': float(lengths.max()),
        'bend_mean_rad': float(np.linalg.norm(np.concatenate(bends), axis=1).mean()),
        'error_mean_rad': float(np.concatenate(errors).mean()),
        'frozen_rows': frozen,
        'frozen_rows_are_exact': is_exact,
        'infer_ms': summarize(samples_ms),
    }


def infer_all(
    policy: EnginePolicy, observations: Sequence[Observation], samples_ms: list[float]
) -> Array:
    """Return the (N, K, D) chunks of one episode; the times are added to `samples_ms`."""
    chunks = []
    for observation in observations:
        started_ns = time.monotonic_ns()
        chunks.append(policy.infer(observation).actions)
        samples_ms.append((time.monotonic_ns() - started_ns) / 1e6)
    return np.stack(chunks)


def print_row(row: dict[str, Any]) -> None:
    """Print one line of the table."""
    exact = 'exact' if row['frozen_rows_are_exact'] else 'near'
    frozen = f'{row["frozen_rows"]}, {exact}' if row['frozen_rows'] else '-'
    print(
        f'| {row["delay"]} | {row["kind"]} | {row["jump_mean_rad"]:.4f} / {row["jump_max_rad"]:.3f} '
        f'| {row["bend_mean_rad"]:.4f} | {row["error_mean_rad"]:.4f} | {frozen} '
        f'| {row["infer_ms"]["p50"]:.2f} |',
        flush=True,
    )


if __name__ == '__main__':
    main()
