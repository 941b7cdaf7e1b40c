# SPDX-License-Identifier: Apache-2.0
"""What policy_node itself costs: real nodes and DDS, three cameras and a robot's joints, and a policy that computes nothing.

With `--engine none` the policy answers at once, so all that is left is ours: receive, match, queue, check, publish. The other
row runs a small network with CPU preprocessing, to show the same path under work.

Usage: benchmarks/node_overhead.py [--cameras 3] [--height 480] [--width 640] [--rate-hz 30] [--seconds 10] [--json FILE]
       run it through scripts/shell
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

from results import write_result

from vla_policy_ros.tools.ros_environment import claim_free_domain, make_environment

ENGINES = ('none', 'onnxruntime')
NUM_JOINTS = 14


def main() -> None:
    """Measure both policies and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (('cameras', 3), ('height', 480), ('width', 640)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--rate-hz', type=float, default=30.0)
    parser.add_argument('--seconds', type=float, default=10.0)
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    claim = claim_free_domain()
    os.environ.update(make_environment(claim.domain))
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(arguments, Path(folder) / 'bundle')
        results = {engine: measure(arguments, bundle, engine) for engine in ENGINES}
    sent = int(arguments.rate_hz * arguments.seconds)
    print(
        f'{arguments.cameras} cameras, {arguments.width}x{arguments.height} rgb8 at {arguments.rate_hz:g} Hz, '
        f'{NUM_JOINTS} joints, {sent} sets'
    )
    print('| policy | stage | p50 ms | p99 ms | max ms |')
    print('| --- | --- | --- | --- | --- |')
    for engine, result in results.items():
        for stage, row in result['stages'].items():
            print(
                f'| {engine} | {stage} | {row["p50"]:.3f} | {row["p99"]:.3f} | {row["max"]:.3f} |'
            )
        print(f'| {engine} | chunks {result["chunks"]} of {sent} | | | |')
        print(f'| {engine} | CPU of the node per set | {result["cpu_ms_per_set"]:.2f} | | |')
    if arguments.json:
        write_result(arguments.json, {'sent': sent, 'results': results})


def make_bundle(arguments: argparse.Namespace, folder: Path) -> Path:
    """Write an untrained bundle for the cameras and joints of this run."""
    from vla_policy_ros.datasets.synthetic import SyntheticDataset
    from vla_policy_ros.export.untrained import create_untrained_bundle

    cameras = {f'camera{i}': (arguments.height, arguments.width) for i in range(arguments.cameras)}
    dataset = SyntheticDataset(cameras=cameras, num_joints=NUM_JOINTS)
    create_untrained_bundle(folder, dataset)
    return folder


def measure(arguments: argparse.Namespace, bundle: Path, engine: str) -> dict[str, Any]:
    """Run policy_node as a process of its own and feed it from this one."""
    parameters = {
        'bundle': str(bundle),
        'engine': engine,
        'autostart': 'true',
        'status_period_s': '0.5',
    }
    flags = [part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')]
    node = subprocess.Popen(
        [sys.executable, '-m', 'vla_policy_ros.ros.nodes.policy_node', '--ros-args', *flags],
        stderr=subprocess.DEVNULL,
    )
    try:
        return feed(arguments, node.pid)
    finally:
        node.terminate()
        node.wait(20)


def feed(arguments: argparse.Namespace, node_pid: int) -> dict[str, Any]:
    """Publish sets, each stamped just before it goes, and read the node's own status at the end."""
    import numpy as np
    import rclpy
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import String

    from vla_policy_ros.datasets.synthetic import SyntheticDataset
    from vla_policy_ros.msg import ActionChunk, PolicyStatus
    from vla_policy_ros.ros.convert import to_ns, to_time
    from vla_policy_ros.ros.process import (
        make_executor,
        tune_allocator,
        use_shipped_middleware_profile,
    )
    from vla_policy_ros.ros.qos import LATCHED, RELIABLE

    tune_allocator()
    use_shipped_middleware_profile()
    rclpy.init()
    node = rclpy.create_node('feeder')
    statuses: list[Any] = []
    arrivals_ns: list[int] = []
    node.create_subscription(PolicyStatus, 'policy_status', statuses.append, LATCHED)
    node.create_subscription(
        ActionChunk,
        'action_chunk',
        lambda message: arrivals_ns.append(time.time_ns() - to_ns(message.header.stamp)),
        RELIABLE,
    )
    cameras = [
        node.create_publisher(Image, f'/camera/camera{i}/image_raw', RELIABLE)
        for i in range(arguments.cameras)
    ]
    joints = node.create_publisher(JointState, '/joint_states', RELIABLE)
    node.create_publisher(String, 'instruction', LATCHED).publish(String(data='wave'))
    names = [
        column.name for column in SyntheticDataset(cameras={}, num_joints=NUM_JOINTS).info.state
    ]
    pixels = array(
        'B',
        np.random.default_rng(0)
        .integers(0, 255, arguments.height * arguments.width * 3, np.uint8)
        .tobytes(),
    )
    executor = make_executor()
    executor.add_node(node)

    def spin_until(deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            executor.spin_once(timeout_sec=left)

    def is_found() -> bool:
        return bool(statuses) and all(stream.publishers for stream in statuses[-1].streams)

    while not is_found():
        spin_until(time.monotonic() + 0.1)
    spin_until(time.monotonic() + 1.0)
    started, cpu_at_start_s = time.monotonic(), cpu_s(node_pid)
    for index in range(int(arguments.rate_hz * arguments.seconds)):
        stamp = to_time(time.time_ns())
        state = JointState(name=names, position=array('d', [0.1] * NUM_JOINTS))
        state.header.stamp = stamp
        joints.publish(state)
        for camera in cameras:
            message = Image(
                height=arguments.height,
                width=arguments.width,
                encoding='rgb8',
                step=arguments.width * 3,
            )
            message.data = pixels
            message.header.stamp = stamp
            camera.publish(message)
        spin_until(started + (index + 1) / arguments.rate_hz)
    spent_s = cpu_s(node_pid) - cpu_at_start_s
    spin_until(time.monotonic() + 1.0)
    status = statuses[-1]
    stages = {
        name: {
            'p50': status.stage_p50_ms[i],
            'p99': status.stage_p99_ms[i],
            'max': status.stage_max_ms[i],
        }
        for i, name in enumerate(status.stage_names)
    }
    received_ms = np.array(arrivals_ns) / 1e6
    stages['capture to chunk received'] = {
        'p50': float(np.percentile(received_ms, 50)),
        'p99': float(np.percentile(received_ms, 99)),
        'max': float(received_ms.max()),
    }
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown()
    return {
        'chunks': int(status.chunks),
        'refused': int(status.refused),
        'cpu_ms_per_set': spent_s * 1e3 / (arguments.rate_hz * arguments.seconds),
        'stages': stages,
    }


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, in seconds (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f'/proc/{pid}/stat').read_text(encoding='ascii').rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


if __name__ == '__main__':
    main()
