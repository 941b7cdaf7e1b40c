# SPDX-License-Identifier: Apache-2.0
"""What policy_node itself costs: real nodes and DDS, three cameras and a robot's joints, and a policy that computes nothing.

Every camera is a process of its own (feeders.py) that stamps each image just before it publishes it.

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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from parts import Parts
from policies import NUM_JOINTS, add_policy_options, build_plans, make_bundle
from results import write_result

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.tools.ros_environment import claim_free_domain, make_environment

ENGINES = ('none', 'onnxruntime')
WARMUP_CHUNKS = 30
JOINT_RATE_HZ = 200.0


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
        'config': str(write_deployment(arguments, bundle, log_path.with_suffix('.yaml'))),
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


def write_deployment(arguments: argparse.Namespace, bundle: Bundle, path: Path) -> Path:
    """Write a deployment file for cameras and joints that run freely at known rates."""
    cameras = {
        f'camera{index}': {
            'topic': f'/camera/camera{index}/image_raw',
            'rate_hz': arguments.rate_hz,
        }
        for index in range(arguments.cameras)
    }
    joints = {'topic': '/joint_states', 'match': 'as_of', 'rate_hz': JOINT_RATE_HZ}
    document = {
        'policy': {'bundle': str(bundle.folder.absolute())},
        'cameras': cameras,
        'joint_states': [joints],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def engine_memory_or_host(engine: str) -> str:
    """Return where an engine works; a policy without one works on the host."""
    from vla_policy_ros.engines.registry import engine_memory

    return 'host' if engine == 'none' else engine_memory(engine)


def feed(
    arguments: argparse.Namespace, node_process: subprocess.Popen[bytes], networks: set[str]
) -> dict[str, Any]:
    """Let the drivers publish, and read what comes out and the node's own status at the end."""
    with ExitStack() as undo:
        watch = Watch(networks)
        undo.callback(watch.close)
        drivers = start_drivers(arguments, undo)
        watch.wait_for_inputs(node_process, seconds=arguments.start_seconds)
        cpu_at_start_s = cpu_s(node_process.pid)
        sets = int(arguments.rate_hz * arguments.seconds)
        *cameras, joints = drivers
        rates_hz = dict.fromkeys(cameras, arguments.rate_hz) | {joints: JOINT_RATE_HZ}
        start_s = time.time() + 1.0
        for driver, rate_hz in rates_hz.items():
            assert driver.stdin is not None
            count = round(rate_hz * arguments.seconds)
            driver.stdin.write(f'{start_s} {rate_hz} {count}\n')
            driver.stdin.flush()
        watch.spin(1.0 + arguments.seconds)
        spent_s = cpu_s(node_process.pid) - cpu_at_start_s
        watch.spin(1.0)
        return {**watch.result(), 'cpu_ms_per_set': spent_s * 1e3 / sets}


def start_drivers(arguments: argparse.Namespace, undo: ExitStack) -> list[subprocess.Popen[str]]:
    """Start a process for every camera and one for the joints."""
    sizes = [str(arguments.height), str(arguments.width)]
    cameras = (f'/camera/camera{index}/image_raw' for index in range(arguments.cameras))
    sources = [['camera', topic, *sizes] for topic in cameras]
    sources.append(['joints', '/joint_states', str(NUM_JOINTS)])
    drivers = []
    for source in sources:
        command = [sys.executable, str(Path(__file__).with_name('feeders.py')), *source]
        driver = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        undo.callback(driver.wait, 20)
        undo.callback(driver.stdin.close)  # type: ignore[union-attr]
        drivers.append(driver)
    return drivers


class Watch:
    """Listens to the policy node.

    Args:
        networks: Names of the stages that are networks.
    """

    def __init__(self, networks: set[str]) -> None:
        import rclpy
        from std_msgs.msg import String

        from vla_policy_ros.msg import ActionChunk, PolicyStatus
        from vla_policy_ros.ros.process import (
            make_executor,
            tune_allocator,
            use_shipped_middleware_profile,
        )
        from vla_policy_ros.ros.qos import LATCHED, RELIABLE

        tune_allocator()
        use_shipped_middleware_profile()
        rclpy.init()
        self._networks = networks
        self._statuses: list[Any] = []
        self._received_ns: list[int] = []
        self._overheads_ns: list[int] = []
        self._node = rclpy.create_node('watch')
        self._node.create_subscription(
            PolicyStatus, 'policy_status', self._statuses.append, LATCHED
        )
        self._node.create_subscription(ActionChunk, 'action_chunk', self._take, RELIABLE)
        instructions = self._node.create_publisher(String, 'instruction', LATCHED)
        instructions.publish(String(data='wave'))
        self._executor = make_executor()
        self._executor.add_node(self._node)

    def spin(self, seconds: float) -> None:
        """Take messages for a while."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left_s)

    def wait_for_inputs(self, node_process: subprocess.Popen[bytes], *, seconds: float) -> None:
        """Wait until the node has found all its inputs."""
        deadline_s = time.monotonic() + seconds
        while not (self._statuses and all(s.publishers for s in self._statuses[-1].streams)):
            self.spin(0.1)
            if node_process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f'policy_node is not ready, status {node_process.poll()}')
        self.spin(1.0)

    def result(self) -> dict[str, Any]:
        """Return counts, and percentiles per stage in milliseconds."""
        status = self._statuses[-1]
        stages = {
            name: {
                'p50': status.stage_p50_ms[i],
                'p99': status.stage_p99_ms[i],
                'max': status.stage_max_ms[i],
            }
            for i, name in enumerate(status.stage_names)
        }
        stages['capture to chunk received'] = percentiles(self._received_ns)
        stages['capture to chunk published, less networks'] = percentiles(self._overheads_ns)
        return {
            'chunks': int(status.chunks),
            'refused': int(status.refused),
            'stages': stages,
        }

    def close(self) -> None:
        """Leave ROS."""
        import rclpy

        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown()

    def _take(self, message: Any) -> None:
        from vla_policy_ros.ros.convert import to_ns

        now_ns, stamp_ns = time.time_ns(), to_ns(message.header.stamp)
        self._received_ns.append(now_ns - stamp_ns)
        latencies = zip(message.stage_names, message.stage_latencies_ns, strict=True)
        networks_ns = sum(latency_ns for name, latency_ns in latencies if name in self._networks)
        self._overheads_ns.append(to_ns(message.publish_stamp) - stamp_ns - networks_ns)


def percentiles(durations_ns: list[int]) -> dict[str, float]:
    """Return median, p99 and greatest of durations in milliseconds; the first ones warm up allocators and clocks."""
    import numpy as np

    found_ms = np.array(durations_ns[WARMUP_CHUNKS:] or durations_ns) / 1e6
    p50, p99 = np.percentile(found_ms, (50, 99))
    return {'p50': float(p50), 'p99': float(p99), 'max': float(found_ms.max())}


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, in seconds (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f'/proc/{pid}/stat').read_text(encoding='ascii').rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


if __name__ == '__main__':
    main()
