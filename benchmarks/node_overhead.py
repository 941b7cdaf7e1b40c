# SPDX-License-Identifier: Apache-2.0
"""What policy_node itself costs: real nodes and DDS, three cameras and a robot's joints, and a policy that computes nothing.

With `--engine none` the policy answers at once, so all that is left is ours: receive, match, queue, check, publish. The other
rows run a network, to show the same path under work; `overhead` is then what is left of the time from capture to chunk when
the time of the networks is taken away, set by set.

Usage: benchmarks/node_overhead.py [--cameras 3] [--height 480] [--width 640] [--rate-hz 30] [--seconds 10] [--json FILE]
       [--engine none onnxruntime tensorrt] [--preprocess cpu|gpu] [--bundle FOLDER | --model small|act] [--plan-folder F]
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

from parts import Parts
from policies import NUM_JOINTS, add_policy_options, build_plans, make_bundle
from results import write_result

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.tools.ros_environment import claim_free_domain, make_environment

ENGINES = ('none', 'onnxruntime')
WARMUP_CHUNKS = 30


def main() -> None:
    """Measure both policies and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_policy_options(parser, engine=ENGINES, preprocess='cpu')
    parser.add_argument('--rate-hz', type=float, default=30.0)
    parser.add_argument('--seconds', type=float, default=10.0)
    parser.add_argument('--start-seconds', type=float, default=90.0)
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    claim = claim_free_domain()
    os.environ.update(make_environment(claim.domain))
    parts = Parts()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(arguments, Path(folder) / 'bundle')
        for engine in arguments.engine:
            log = Path(folder) / f'{engine}.log'
            result = parts.run(engine, lambda e=engine, f=log: measure(arguments, bundle, e, f))
            if result is None:
                print(log.read_text(encoding='utf-8', errors='replace')[-4000:], file=sys.stderr)
            else:
                results[engine] = result
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
        write_result(arguments.json, {'sent': sent, 'results': results, **parts.facts()})


def measure(
    arguments: argparse.Namespace, bundle: Bundle, engine: str, log_path: Path
) -> dict[str, Any]:
    """Run policy_node as a process of its own and feed it from this one."""
    parameters = {
        'bundle': str(bundle.folder.absolute()),
        'engine': engine,
        'autostart': 'true',
        'status_period_s': '0.5',
    }
    if engine_memory_or_host(engine) == 'device':
        parameters['preprocess'] = arguments.preprocess
        if engine == 'tensorrt':
            build_plans(bundle, arguments.plan_folder)
        if arguments.plan_folder:
            parameters['plan_folder'] = str(arguments.plan_folder)
    flags = [part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')]
    with log_path.open('wb') as log:
        node = subprocess.Popen(
            [sys.executable, '-m', 'vla_policy_ros.ros.nodes.policy_node', '--ros-args', *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    networks = {'network', *(stage.name for stage in bundle.manifest.stages)}
    try:
        return feed(arguments, node, networks)
    finally:
        node.terminate()
        node.wait(20)


def engine_memory_or_host(engine: str) -> str:
    """Return where an engine works; a policy without one works on the host."""
    from vla_policy_ros.engines.registry import engine_memory

    return 'host' if engine == 'none' else engine_memory(engine)


def feed(
    arguments: argparse.Namespace, node_process: subprocess.Popen[bytes], networks: set[str]
) -> dict[str, Any]:
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
    overheads_ns: list[int] = []

    def take(message: ActionChunk) -> None:
        now_ns, stamp_ns = time.time_ns(), to_ns(message.header.stamp)
        arrivals_ns.append(now_ns - stamp_ns)
        latencies = zip(message.stage_names, message.stage_latencies_ns, strict=True)
        networks_ns = sum(latency_ns for name, latency_ns in latencies if name in networks)
        overheads_ns.append(to_ns(message.publish_stamp) - stamp_ns - networks_ns)

    node.create_subscription(PolicyStatus, 'policy_status', statuses.append, LATCHED)
    node.create_subscription(
        ActionChunk,
        'action_chunk',
        take,
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

    deadline_s = time.monotonic() + arguments.start_seconds
    while not is_found():
        spin_until(time.monotonic() + 0.1)
        if node_process.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError(f'policy_node is not ready, status {node_process.poll()}')
    spin_until(time.monotonic() + 1.0)
    started, cpu_at_start_s = time.monotonic(), cpu_s(node_process.pid)
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
    spent_s = cpu_s(node_process.pid) - cpu_at_start_s
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
    # The first chunks are left out: allocators and clocks warm up.
    overhead_ms = np.array(overheads_ns[WARMUP_CHUNKS:] or overheads_ns) / 1e6
    stages['capture to chunk published, less networks'] = {
        'p50': float(np.percentile(overhead_ms, 50)),
        'p99': float(np.percentile(overhead_ms, 99)),
        'max': float(overhead_ms.max()),
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
