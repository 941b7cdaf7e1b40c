# SPDX-License-Identifier: Apache-2.0
"""One policy node in the test's own process, so that its threads, files and memory can be counted."""

import gc
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger
from support.policy_robot import PolicyRobot
from support.recordings import JOINTS
from support.ros_processes import ros_arguments

from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.lifecycle import FAILURE, SUCCESS

pytestmark = pytest.mark.ros

MAX_GROWTH_BYTES = 10 * 2**20


class Robot(PolicyRobot):
    """Shows one set at a time."""

    def infer(self):
        """Publish one set, wait for its chunk and its acknowledgement, and return its stamp."""
        self.wait_until_matched()
        num_chunks, num_acks = len(self.chunks), len(self.acks)
        stamp_ns = self.publish()
        self.spin_until(lambda: len(self.chunks) > num_chunks and len(self.acks) > num_acks, 'it')
        return stamp_ns


@pytest.fixture
def make_robot(graph, processes, recording, tmp_path):
    """Return a function that starts a policy node with parameters; it is unconfigured."""
    robots = []

    def make(**parameters):
        settings = {
            'bundle': recording.bundle,
            'instruction': 'follow curve 0',
            'status_period_s': 0.1,
            **parameters,
        }
        arguments = ros_arguments(tmp_path / 'parameters.yaml', 'policy_node', settings)
        robots.append(Robot(graph, domain_id=processes.domain_id, arguments=arguments))
        return robots[-1]

    yield make
    for robot in robots:
        robot.close()


def count_threads():
    return len(list(Path('/proc/self/task').iterdir()))


def count_files():
    return len(list(Path('/proc/self/fd').iterdir()))


def resident_bytes():
    gc.collect()
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def test_fifty_cycles_do_not_grow(make_robot):
    robot = make_robot()
    node = robot.node
    counts = []
    for cycle in range(50):
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        if cycle % 10 == 0:
            robot.infer()
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS
        counts.append((count_threads(), count_files(), resident_bytes()))
    threads, files, resident = zip(*counts, strict=True)
    # The middleware's own come and go; what leaks stays.
    assert min(threads[-10:]) <= max(threads[:10]), threads
    assert min(files[-10:]) <= max(files[:10]), files
    slope = np.polyfit(np.arange(40), np.array(resident[10:], float), 1)[0]
    assert slope * 40 < MAX_GROWTH_BYTES, resident


def test_silent_unless_active(make_robot):
    robot = make_robot()
    robot.node.trigger_configure()
    robot.publish()
    robot.node.trigger_activate()
    stamps = [robot.infer()]
    robot.node.trigger_deactivate()
    robot.spin_until(lambda: robot.status[-1].state == 'inactive', 'the inactive status')
    robot.publish()
    robot.node.trigger_activate()
    stamps.append(robot.infer())
    assert [to_ns(chunk.header.stamp) for chunk in robot.chunks] == stamps
    assert [to_ns(ack.header.stamp) for ack in robot.acks if ack.accepted] == stamps


def test_stamps_of_a_chunk(make_robot):
    robot = make_robot()
    robot.node.trigger_configure()
    robot.node.trigger_activate()
    stamp_ns = robot.infer()
    (chunk,) = robot.chunks
    assert to_ns(chunk.header.stamp) == to_ns(chunk.start_stamp) == stamp_ns
    assert to_ns(chunk.publish_stamp) > stamp_ns
    assert chunk.names == list(JOINTS)
    assert len(chunk.values) == chunk.horizon * len(JOINTS)
    assert dict(zip(chunk.stream_names, chunk.stream_ages_ns, strict=True)) == {
        'front': 0,
        'wrist': 0,
        'joint_states[0]': 0,
    }
    assert set(chunk.stage_names) >= {'prepare', 'match', 'queue', 'network'}


def test_reset_begins_an_epoch(make_robot, graph):
    robot = make_robot()
    client = graph.node.create_client(Trigger, '/policy_node/reset')
    robot.node.trigger_configure()
    robot.node.trigger_activate()
    robot.infer()
    robot.spin_until(client.service_is_ready, 'the service')
    answer = client.call_async(Trigger.Request())
    robot.spin_until(answer.done, 'its answer')
    assert answer.result().success
    robot.infer()
    assert [(c.epoch, c.sequence) for c in robot.chunks] == [(0, 0), (1, 0)]
    robot.node.trigger_deactivate()
    answer = client.call_async(Trigger.Request())
    robot.spin_until(answer.done, 'its answer')
    assert (answer.result().success, answer.result().message) == (False, 'the node is not active')


@pytest.mark.parametrize('state', ['inactive', 'active'])
def test_the_instruction_can_be_set(make_robot, state):
    robot = make_robot(instruction='wait')
    robot.node.trigger_configure()
    if state == 'active':
        robot.node.trigger_activate()
    robot.node.set_parameters([Parameter('instruction', value='follow curve 1')])
    if state == 'inactive':
        robot.node.trigger_activate()
    robot.infer()
    assert [chunk.instruction for chunk in robot.chunks] == ['follow curve 1']
    told = 'follow curve 1'
    robot.spin_until(lambda: robot.status[-1].instruction == told, 'a status that tells it')


def test_a_broken_bundle_leaves_nothing_behind(make_robot, recording, tmp_path, capfd):
    bundle = shutil.copytree(recording.bundle, tmp_path / 'bundle')
    with (bundle / 'policy.onnx').open('ab') as file:
        file.write(b'!')
    robot = make_robot(bundle=bundle)
    threads, files = count_threads(), count_files()
    assert robot.node.trigger_configure() == FAILURE
    assert robot.node._state_machine.current_state[1] == 'unconfigured'
    assert (count_threads(), count_files()) == (threads, files)
    assert not [t for t in threading.enumerate() if t.name.startswith('vla-')]
    log = capfd.readouterr().err
    assert 'cannot configure: ' in log
    for part in ('policy.onnx', ': got ', ', expected ', 'Traceback'):
        assert (part in log) == (part != 'Traceback'), log


def test_a_failure_after_loading_leaves_nothing_behind(make_robot, tmp_path, recording, capfd):
    config = tmp_path / 'robot.yaml'
    config.write_text(
        f'policy: {{bundle: {recording.bundle}}}\ncameras: {{wrist: {{topic: /wrist}}}}\n'
    )
    robot = make_robot(config=config, bundle='')
    assert robot.node.trigger_configure() == FAILURE
    assert not [t for t in threading.enumerate() if t.name.startswith('vla-')]
    assert 'cameras.front: got nothing' in capfd.readouterr().err
