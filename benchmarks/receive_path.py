# SPDX-License-Identifier: Apache-2.0
"""What each setting of the receive path buys: camera images from one process to another through real DDS.

Contenders, each on top of the last: rclpy as it comes; the shipped Fast DDS profile (64 MB shared memory); the allocator
setting; the events executor; raw messages viewed in place (what policy_node does). They take turns, `--rounds` times.

Usage: benchmarks/receive_path.py [--cameras 3] [--height 480] [--width 640] [--rate-hz 30] [--seconds 5] [--rounds 3]
       [--json FILE]        run it through scripts/shell
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

from results import write_result

from vla_policy_ros.tools.ros_environment import claim_free_domain, make_environment

CONTENDERS = {
    'rclpy as it comes': (),
    '+ shared-memory profile': ('profile',),
    '+ allocator': ('profile', 'allocator'),
    '+ events executor': ('profile', 'allocator', 'events'),
    '+ raw view (policy_node)': ('profile', 'allocator', 'events', 'raw'),
}
WARMUP_MESSAGES = 6


def main() -> None:
    """Run every contender, print a table."""
    arguments = parse_arguments()
    if arguments.role == 'publish':
        publish(arguments)
    elif arguments.role == 'receive':
        print(json.dumps(receive(arguments)))
    else:
        report(arguments)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (('cameras', 3), ('height', 480), ('width', 640), ('rounds', 3)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--rate-hz', type=float, default=30.0)
    parser.add_argument('--seconds', type=float, default=5.0)
    parser.add_argument('--json', type=Path)
    parser.add_argument('--role', choices=('publish', 'receive'), help=argparse.SUPPRESS)
    parser.add_argument('--settings', default='', help=argparse.SUPPRESS)
    return parser.parse_args()


def report(arguments: argparse.Namespace) -> None:
    """Let the contenders take turns and print medians over the rounds."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(arguments.rounds):
        for name, settings in CONTENDERS.items():
            rounds[name].append(run_pair(arguments, settings))
    rows = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in rounds.items()
    }
    sent = arguments.cameras * int(arguments.rate_hz * arguments.seconds)
    first = rows['rclpy as it comes']['cpu_ms_per_message']
    print(
        f'{arguments.cameras} cameras, {arguments.width}x{arguments.height} rgb8 at {arguments.rate_hz:g} Hz, '
        f'{sent} messages, best effort, median of {arguments.rounds} rounds'
    )
    print(
        '| receiver | delivered | latency p50 / p99 ms | CPU per message ms | less CPU than as it comes |'
    )
    print('| --- | --- | --- | --- | --- |')
    for name, row in rows.items():
        cpu = row['cpu_ms_per_message']
        cells = [f'{row["received"]:.0f} of {sent}', '-', '-', '-']
        if row['received'] > WARMUP_MESSAGES:
            cells[1:3] = f'{row["p50_ms"]:.2f} / {row["p99_ms"]:.2f}', f'{cpu:.2f}'
            cells[3] = f'{first / cpu:.1f}x' if first else 'it delivered nothing'
        print(f'| {name} | {" | ".join(cells)} |')
    if arguments.json:
        write_result(arguments.json, {'sent': sent, 'rows': rows, 'rounds': rounds})


def run_pair(arguments: argparse.Namespace, settings: tuple[str, ...]) -> dict[str, float]:
    """Run one publisher and one receiver process, in a domain of their own."""
    claim = claim_free_domain()
    environment = make_environment(claim.domain)
    common = [
        f'--{key.replace("_", "-")}={getattr(arguments, key)}'
        for key in ('cameras', 'height', 'width', 'rate_hz', 'seconds')
    ]
    command = [sys.executable, __file__, *common, f'--settings={",".join(settings)}']
    with subprocess.Popen(
        [*command, '--role=receive'], env=environment, stdout=subprocess.PIPE, text=True
    ) as receiver:
        subprocess.run([*command, '--role=publish'], env=environment, check=True)
        output, _ = receiver.communicate(timeout=60)
    row: dict[str, float] = json.loads(output)
    return row


def publish(arguments: argparse.Namespace) -> None:
    """Send images of random pixels, stamped just before they go."""
    import numpy as np
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    from vla_policy_ros.ros.process import tune_allocator, use_shipped_middleware_profile

    tune_allocator()
    if 'profile' in arguments.settings:
        use_shipped_middleware_profile()
    rclpy.init()
    node = rclpy.create_node('cameras')
    profile = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    publishers = [
        node.create_publisher(Image, f'camera{i}', profile) for i in range(arguments.cameras)
    ]
    deadline = time.monotonic() + 20
    while (
        any(not publisher.get_subscription_count() for publisher in publishers)
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    time.sleep(0.5)
    size = arguments.height * arguments.width * 3
    pixels = array('B', np.random.default_rng(0).integers(0, 255, size, np.uint8).tobytes())
    started = time.monotonic()
    for index in range(int(arguments.rate_hz * arguments.seconds)):
        for publisher in publishers:
            message = Image(
                height=arguments.height,
                width=arguments.width,
                encoding='rgb8',
                step=arguments.width * 3,
            )
            message.data = pixels
            now = time.time_ns()
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(now, 10**9)
            publisher.publish(message)
        time.sleep(max(0.0, started + (index + 1) / arguments.rate_hz - time.monotonic()))
    time.sleep(1.0)


def receive(arguments: argparse.Namespace) -> dict[str, float]:
    """Take images until they stop; every byte is reachable as an array afterwards."""
    import numpy as np
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image

    from vla_policy_ros.ros.cdr import read_image
    from vla_policy_ros.ros.convert import to_ns
    from vla_policy_ros.ros.process import (
        make_executor,
        tune_allocator,
        use_shipped_middleware_profile,
    )

    settings = arguments.settings.split(',')
    if 'allocator' in settings:
        tune_allocator()
    if 'profile' in settings:
        use_shipped_middleware_profile()
    rclpy.init()
    node = rclpy.create_node('receiver')
    latencies_ns: list[int] = []
    cpu_at_start = 0.0

    def take(message: Any) -> None:
        nonlocal cpu_at_start
        if 'raw' in settings:
            frame = read_image(message, 'camera')
            stamp_ns, pixels = frame.stamp_ns, frame.data
        else:
            stamp_ns, pixels = (
                to_ns(message.header.stamp),
                np.frombuffer(message.data, np.uint8),
            )
        latencies_ns.append(time.time_ns() - stamp_ns)
        assert pixels.size == arguments.height * arguments.width * 3
        if len(latencies_ns) == WARMUP_MESSAGES:
            cpu_at_start = time.process_time()

    profile = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
    for index in range(arguments.cameras):
        node.create_subscription(Image, f'camera{index}', take, profile, raw='raw' in settings)
    executor = make_executor() if 'events' in settings else SingleThreadedExecutor()
    executor.add_node(node)
    sent = arguments.cameras * int(arguments.rate_hz * arguments.seconds)
    deadline = time.monotonic() + arguments.seconds + 6
    while len(latencies_ns) < sent and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.2)
    cpu_s = time.process_time() - cpu_at_start
    measured = np.array(latencies_ns[WARMUP_MESSAGES:]) / 1e6
    if not measured.size:
        return {
            'received': len(latencies_ns),
            'p50_ms': 0.0,
            'p99_ms': 0.0,
            'cpu_ms_per_message': 0.0,
        }
    return {
        'received': len(latencies_ns),
        'p50_ms': float(np.percentile(measured, 50)),
        'p99_ms': float(np.percentile(measured, 99)),
        'cpu_ms_per_message': cpu_s * 1e3 / measured.size,
    }


if __name__ == '__main__':
    main()
