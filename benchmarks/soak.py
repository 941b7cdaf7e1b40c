# SPDX-License-Identifier: Apache-2.0
"""Does anything grow? replay_node loops a recording through policy_node for minutes, over real DDS, at the recorded pace.

Every interval the memory, threads and open files of both processes are read from /proc. Slopes are fitted after the first
minute, when buffers and shared memory have been touched once, and over the second half of the run, which tells a leak from
pools that fill up. Every step sent must have ended in a chunk. The pause of a second between two episodes is no loss,
although the stamps cannot tell: `missing` counts it.

Usage: benchmarks/soak.py [--minutes 10] [--dataset sample] [--bundle FOLDER] [--interval-s 10] [--json FILE]
       run it through scripts/shell; without a bundle, another dataset gets an untrained one
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import write_result

from vla_policy_ros.tools.ros_environment import claim_free_domain, make_environment

NODES = ('policy_node', 'replay_node')
WARMUP_S = 60.0


def main() -> None:
    """Run both nodes, watch them, print a table; exit with 1 when a step has no chunk."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--dataset', default='sample')
    parser.add_argument('--bundle', default='')
    parser.add_argument('--interval-s', type=float, default=10.0)
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    claim = claim_free_domain()
    os.environ.update(make_environment(claim.domain))
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or make_bundle(arguments.dataset, Path(folder) / 'bundle')
        result = soak(arguments, bundle, Path(folder))
    print_result(result)
    if arguments.json:
        write_result(arguments.json, result)
    sys.exit(result['chunks'] != result['steps_sent'])


def make_bundle(dataset: str, folder: Path) -> str:
    """Return the embedded bundle for the embedded dataset, else write an untrained one."""
    from vla_policy_ros.datasets.registry import open_dataset
    from vla_policy_ros.export.untrained import create_untrained_bundle

    if dataset == 'sample':
        return 'sample'
    create_untrained_bundle(folder, open_dataset(dataset))
    return str(folder)


def soak(arguments: argparse.Namespace, bundle: str, folder: Path) -> dict[str, Any]:
    """Start both nodes, watch them, and end them with SIGTERM."""
    dataset = arguments.dataset
    parameters = {
        'policy_node': {'bundle': bundle},
        'replay_node': {'dataset': dataset, 'episodes': "'all'", 'loop': 'true'},
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name in NODES:
            flags = [f'{key}:={value}' for key, value in parameters[name].items()]
            flags = [part for flag in (*flags, 'autostart:=true') for part in ('-p', flag)]
            module = f'vla_policy_ros.ros.nodes.{name}'
            with (folder / f'{name}.log').open('wb') as log:
                processes[name] = subprocess.Popen(
                    [sys.executable, '-m', module, '--ros-args', *flags], stderr=log, stdout=log
                )
        result = watch(arguments, {name: process.pid for name, process in processes.items()})
    finally:
        for process in processes.values():
            process.terminate()
        exits = {name: process.wait(20) for name, process in processes.items()}
    logs = {name: (folder / f'{name}.log').read_text() for name in NODES}
    warnings = {
        name: [line for line in log.splitlines() if 'WARN' in line or 'rror' in line]
        for name, log in logs.items()
    }
    return {**result, 'exits': exits, 'warnings': warnings}


def watch(arguments: argparse.Namespace, pids: dict[str, int]) -> dict[str, Any]:
    """Sample both processes until the time is over, then let the replay stop and count what became of its steps."""
    import rclpy
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    from vla_policy_ros.msg import ActionChunk, PolicyStatus, ReplayStatus
    from vla_policy_ros.ros.convert import to_ns
    from vla_policy_ros.ros.process import make_executor
    from vla_policy_ros.ros.qos import LATCHED, RELIABLE

    rclpy.init()
    node = rclpy.create_node('soak')
    latest: dict[str, Any] = {}
    chunks: list[tuple[float, float]] = []

    def on_chunk(message: ActionChunk) -> None:
        latency_ns = to_ns(message.publish_stamp) - to_ns(message.header.stamp)
        chunks.append((time.monotonic(), latency_ns / 1e6))

    def on_replay(message: ReplayStatus) -> None:
        latest['replay'] = message

    def on_policy(message: PolicyStatus) -> None:
        latest['policy'] = message

    node.create_subscription(ActionChunk, 'action_chunk', on_chunk, RELIABLE)
    node.create_subscription(ReplayStatus, 'replay_status', on_replay, LATCHED)
    node.create_subscription(PolicyStatus, 'policy_status', on_policy, LATCHED)
    client = node.create_client(ChangeState, '/replay_node/change_state')
    executor = make_executor()
    executor.add_node(node)

    def spin_until(deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            executor.spin_once(timeout_sec=left)

    while not chunks:
        spin_until(time.monotonic() + 0.1)
    started, samples = time.monotonic(), []
    while (elapsed_s := time.monotonic() - started) < arguments.minutes * 60:
        samples.append({'s': elapsed_s, **{name: read_proc(pid) for name, pid in pids.items()}})
        spin_until(started + len(samples) * arguments.interval_s)
    client.call_async(ChangeState.Request(transition=Transition(label='deactivate')))
    spin_until(time.monotonic() + 3.0)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    replay, policy = latest['replay'], latest['policy']
    return {
        'minutes': arguments.minutes,
        'steps_sent': int(replay.steps_sent),
        'late_steps': int(replay.late_steps),
        'chunks': int(policy.chunks),
        'refused': int(policy.refused),
        'missing': {stream.name: int(stream.missing) for stream in policy.streams},
        'p99_ms': first_and_last_minute(chunks, started),
        'nodes': {name: summarise(name, samples) for name in NODES},
        'samples': samples,
    }


def read_proc(pid: int) -> dict[str, int]:
    """Return memory in KiB, threads and open files of a process (proc(5), status)."""
    lines = Path(f'/proc/{pid}/status').read_text(encoding='ascii').splitlines()
    values = dict(line.split(':', 1) for line in lines)
    return {
        'rss_kib': int(values['VmRSS'].split()[0]),
        'anonymous_kib': int(values['RssAnon'].split()[0]),
        'threads': int(values['Threads']),
        'files': sum(1 for _ in Path(f'/proc/{pid}/fd').iterdir()),
    }


def summarise(name: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit slopes per minute after the warm-up, and tell how far threads and files went up and down."""
    import numpy as np

    settled = [sample for sample in samples if sample['s'] >= WARMUP_S] or samples
    minutes = np.array([sample['s'] / 60 for sample in settled])
    half = len(minutes) // 2
    summary: dict[str, Any] = {}
    for key in ('rss_kib', 'anonymous_kib', 'threads', 'files'):
        values = np.array([sample[name][key] for sample in settled], float)
        summary[key] = {
            'first': values[0],
            'last': values[-1],
            'max': values.max(),
            'per_minute': fit_slope(minutes, values),
            'second_half': fit_slope(minutes[half:], values[half:]),
        }
    return summary


def fit_slope(minutes: Any, values: Any) -> float:
    """Return the slope per minute of the line that fits best."""
    import numpy as np

    return float(np.polyfit(minutes, values, 1)[0]) if len(values) > 1 else 0.0


def first_and_last_minute(chunks: list[tuple[float, float]], started: float) -> dict[str, float]:
    """Return p99 of capture stamp to publication in the first and the last minute, in milliseconds."""
    import numpy as np

    end = chunks[-1][0]
    parts = {
        'first_minute': [ms for when, ms in chunks if started <= when < started + 60],
        'last_minute': [ms for when, ms in chunks if when >= end - 60],
    }
    return {name: float(np.percentile(values, 99)) for name, values in parts.items()}


def print_result(result: dict[str, Any]) -> None:
    """Print a table."""
    print(
        f'{result["minutes"]:g} minutes: {result["steps_sent"]} steps sent ({result["late_steps"]} late), '
        f'{result["chunks"]} chunks, {result["refused"]} refused, missing {result["missing"]}'
    )
    p99_ms = result['p99_ms']
    print(
        f'capture to chunk p99: {p99_ms["first_minute"]:.2f} ms in the first minute, '
        f'{p99_ms["last_minute"]:.2f} ms in the last'
    )
    print(f'exit status {result["exits"]}, warnings {result["warnings"]}')
    print('| node | quantity | first | last | max | per minute | second half |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    for name, summary in result['nodes'].items():
        for key, row in summary.items():
            print(
                f'| {name} | {key} | {row["first"]:.0f} | {row["last"]:.0f} | {row["max"]:.0f} '
                f'| {row["per_minute"]:+.1f} | {row["second_half"]:+.1f} |'
            )


if __name__ == '__main__':
    main()
