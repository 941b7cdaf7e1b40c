# SPDX-License-Identifier: Apache-2.0
"""How punctual executor_node is beside a policy that works: real nodes and DDS, on as few cores as asked for.

policy_node runs the sample bundle on what replay_node plays, in a loop; the executor turns the chunks into commands of two
controllers and hears a robot's joints at `--joint-rate-hz`. `--burn` adds processes that do nothing but use up a core. The
executor asks for no privilege unless `--realtime` is given.

`late` is the time from a tick's deadline to its begin, `done` to the end of the tick, when the commands have been handed to
the middleware; a tick that was skipped counts as late as it would have been.

Usage: benchmarks/executor_lateness.py [--seconds 60] [--rate-hz 200] [--joint-rate-hz 200] [--burn 0] [--cores 0,1]
       [--realtime] [--json FILE]; run it through scripts/shell
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from results import write_result

from vla_policy_ros.sample import sample_executor_path
from vla_policy_ros.tools.ros_environment import claim_free_domain, make_environment

PERCENTILES = {'p50': 50, 'p95': 95, 'p99': 99, 'p99.9': 99.9, 'max': 100}
GOALS_MS = {'p99': 0.5, 'p99.9': 2.0}
START_S = 90.0
BURN = 'x = 0\nwhile True:\n    x += 1'
MEASURED_TOPIC = 'robot/joint_states'
NODES = 'vla_policy_ros.ros.nodes'


def main() -> None:
    """Measure, print a table, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--rate-hz', type=float, default=200.0)
    parser.add_argument('--joint-rate-hz', type=float, default=200.0)
    parser.add_argument('--burn', type=int, default=0)
    parser.add_argument('--cores', default='')
    parser.add_argument('--realtime', action='store_true')
    parser.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(',')})
    claim = claim_free_domain()
    os.environ.update(make_environment(claim.domain))
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print(
        f'{arguments.rate_hz:g} Hz for {arguments.seconds:g} s on {len(os.sched_getaffinity(0))} cores, '
        f'{arguments.burn} burning processes, {result["scheduling"]}'
    )
    print(f'| ms | {" | ".join(PERCENTILES)} |')
    print(f'| --- |{" --- |" * len(PERCENTILES)}')
    for name in ('late', 'done', 'tick'):
        print(f'| {name} | {" | ".join(f"{value:.3f}" for value in result[name].values())} |')
    print(f'{result["ticks"]} ticks, {result["missed"]} missed, state {result["state"]}')
    reached = {name: result['late'][name] <= goal for name, goal in GOALS_MS.items()}
    told = (f'{name} <= {goal} ms: {reached[name]}' for name, goal in GOALS_MS.items())
    print('goals: ' + ', '.join(told))
    if arguments.json:
        write_result(arguments.json, {**result, 'goals_ms': GOALS_MS, 'reached': reached})


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all processes for a while; this one plays the controllers and the joints of the robot."""
    ticks_file = folder / 'ticks.npy'
    with ExitStack() as stack:

        def start(name: str, *command: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(running(folder / f'{name}.log', command))

        def start_node(name: str, **parameters: object) -> subprocess.Popen[bytes]:
            return start(name, '-m', f'{NODES}.{name}', *ros_arguments(parameters))

        try:
            executor = start(
                'executor_node',
                str(Path(__file__).resolve()),
                '--as-executor',
                str(ticks_file),
                *ros_arguments(
                    {
                        'config': write_executor_file(folder / 'executor.yaml', arguments.rate_hz),
                        'autostart': True,
                        'armed_at_start': True,
                        'realtime_priority': 60 if arguments.realtime else 0,
                        'lock_memory': arguments.realtime,
                    }
                ),
            )
            start_node('policy_node', bundle='sample', autostart=True, instruction='pick')
            start_node(
                'replay_node', dataset='sample', loop=True, autostart=True, wait_for_policy=True
            )
            for index in range(arguments.burn):
                start(f'burn_{index}', '-c', BURN)
            robot = Robot(arguments.joint_rate_hz)
            robot.wait_until_tracking(executor)
            robot.spin_until(lambda: False, 3.0)
            begin_ns = time.time_ns()
            robot.spin_until(lambda: executor.poll() is not None, arguments.seconds)
            end_ns = time.time_ns()
            facts = robot.facts()
            robot.close()
            executor.send_signal(signal.SIGTERM)
            executor.wait(30)
        except BaseException:
            for log in sorted(folder.glob('*.log')):
                print(
                    f'--- {log.name}\n{log.read_text(errors="replace")[-3000:]}', file=sys.stderr
                )
            raise
    return {**facts, **summarize(np.load(ticks_file), begin_ns, end_ns, arguments.rate_hz)}


@contextmanager
def running(log_path: Path, command: tuple[str, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with arguments until the end of the block."""
    with log_path.open('wb') as log:
        process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def ros_arguments(parameters: dict[str, Any]) -> list[str]:
    """Return parameters as arguments of a node."""
    texts = {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in parameters.items()
    }
    return ['--ros-args', *(part for k, v in texts.items() for part in ('-p', f'{k}:={v}'))]


def write_executor_file(path: Path, rate_hz: float) -> Path:
    """Write the sample's executor file at another rate, with controllers that take a command at every tick."""
    sample = sample_executor_path()
    document = yaml.safe_load(sample.read_text(encoding='utf-8'))
    document['rate_hz'] = rate_hz
    document['limits']['file'] = str(sample.parent / document['limits']['file'])
    document['measured'] = {'topic': MEASURED_TOPIC}
    document['first_action'] = {'tolerance': None}
    for controller in document['controllers']:
        columns = controller['columns']
        name = controller['name']
        controller.clear()
        controller.update(
            {
                'kind': 'forward_command',
                'name': name,
                'topic': f'{name}/commands',
                'columns': columns,
            }
        )
    path.write_text(yaml.safe_dump(document), encoding='utf-8')
    return path


def summarize(ticks: Any, begin_ns: int, end_ns: int, rate_hz: float) -> dict[str, Any]:
    """Return percentiles of (N, 3) ticks: deadline, begin and end of each, on the clock of the system."""
    ticks = ticks[(ticks[:, 0] > begin_ns) & (ticks[:, 0] < end_ns)]
    period_ns = 1e9 / rate_hz
    skipped = np.rint(np.diff(ticks[:, 0]) / period_ns).astype(int) - 1
    begun, done = ticks[:, 1] - ticks[:, 0], ticks[:, 2] - ticks[:, 0]
    # A skipped tick would have begun together with the one that came instead.
    extra = [
        begun[index + 1] + np.arange(1, skipped[index] + 1) * period_ns
        for index in np.flatnonzero(skipped > 0)
    ]
    late = np.concatenate([begun, *extra])
    return {
        'ticks': len(ticks),
        'missed': int(skipped.clip(0).sum()),
        'late': percentiles(late),
        'done': percentiles(done),
        'tick': percentiles(done - begun),
    }


def percentiles(values_ns: Any) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    return {
        name: round(float(np.percentile(values_ns, share)) / 1e6, 4)
        for name, share in PERCENTILES.items()
    }


class Robot:
    """Listens to the commands and tells the joints."""

    def __init__(self, joint_rate_hz: float) -> None:
        import rclpy
        from sensor_msgs.msg import JointState
        from std_msgs.msg import Float64MultiArray

        from vla_policy_ros.msg import ExecutorStatus
        from vla_policy_ros.ros.process import make_executor, use_shipped_middleware_profile
        from vla_policy_ros.ros.qos import LATCHED, RELIABLE

        use_shipped_middleware_profile()
        rclpy.init()
        self._rclpy = rclpy
        self._node = rclpy.create_node('robot')
        self._status: Any = None
        self._commands = 0
        self._joints = JointState()
        self._publisher = self._node.create_publisher(JointState, MEASURED_TOPIC, 10)
        sample = yaml.safe_load(sample_executor_path().read_text(encoding='utf-8'))
        names = [column for entry in sample['controllers'] for column in entry['columns']]
        self._joints.name = names
        self._joints.position = array('d', [0.0] * len(names))
        subscribe = self._node.create_subscription
        for controller in sample['controllers']:
            topic = f'{controller["name"]}/commands'
            subscribe(Float64MultiArray, topic, self._on_command, RELIABLE)
        subscribe(ExecutorStatus, 'executor_status', self._on_status, LATCHED)
        self._node.create_timer(1.0 / joint_rate_hz, self._tell_joints)
        self._executor = make_executor()
        self._executor.add_node(self._node)

    @property
    def state(self) -> str:
        """State of the executor."""
        return self._status.state if self._status else ''

    def facts(self) -> dict[str, Any]:
        """Return what the executor says of itself."""
        status = self._status
        return {
            'state': status.state,
            'scheduling': status.scheduling,
            'chunks_used': int(status.used),
            'starvations': int(status.starvations),
            'commands_received': self._commands,
        }

    def spin_until(self, condition: Any, timeout_s: float) -> None:
        """Handle what comes until a condition holds or time is up."""
        deadline_s = time.monotonic() + timeout_s
        while not condition() and (left_s := deadline_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left_s, 0.1))

    def wait_until_tracking(self, executor: subprocess.Popen[bytes]) -> None:
        """Wait until the executor follows the chunks."""
        self.spin_until(lambda: self.state == 'tracking' or executor.poll() is not None, START_S)
        if self.state != 'tracking':
            raise RuntimeError(f'the executor is {self.state!r}, not tracking')

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._node.destroy_node()
        self._rclpy.shutdown()

    def _on_command(self, _message: Any) -> None:
        self._commands += 1

    def _on_status(self, message: Any) -> None:
        self._status = message

    def _tell_joints(self) -> None:
        self._joints.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(self._joints)


def run_executor(path: Path) -> int:
    """Run the executor node, and write deadline, begin and end of every tick at its end."""
    from vla_policy_ros.ros.nodes.executor_node import ExecutorNode
    from vla_policy_ros.ros.process import run_node

    ticks: list[tuple[int, int, int]] = []

    class MeasuredNode(ExecutorNode):
        def _on_tick(self, now_ns: int) -> None:
            begin_ns = time.time_ns()
            super()._on_tick(now_ns)
            ticks.append((now_ns, begin_ns, time.time_ns()))

    status = run_node(MeasuredNode)
    np.save(path, np.array(ticks, np.int64))
    return status


if __name__ == '__main__':
    if sys.argv[1:2] == ['--as-executor']:
        target = Path(sys.argv[2])
        del sys.argv[1:3]
        sys.exit(run_executor(target))
    main()
