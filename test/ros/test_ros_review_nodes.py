# SPDX-License-Identifier: Apache-2.0
"""A real policy node among what a robot does on its first day: it is cycled under load, drivers restart, names are swapped."""

import sys
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from support.recordings import CAMERAS, JOINTS

from vla_policy_ros.msg import ActionChunk, ObservationAck, PolicyStatus, ReplayStatus
from vla_policy_ros.ros.convert import to_ns
from vla_policy_ros.ros.qos import LATCHED, RELIABLE
from vla_policy_ros.ros.replay_messages import image_message, joint_message

pytestmark = pytest.mark.ros

PERIOD_S = 1 / 30
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
NUM_CYCLES = 50
MAX_GROWTH_KIB = 4096


class Drivers:
    """Cameras and joints that publish 30 times a second while the test spins, and what the policy says."""

    def __init__(self, graph, *, namespace=''):
        self.graph = graph
        create = graph.node.create_publisher
        self.cameras = {name: create(Image, topic(name), RELIABLE) for name in CAMERAS}
        self.joints = create(JointState, '/joint_states', RELIABLE)
        self.chunks = graph.collect(ActionChunk, f'{namespace}/action_chunk', RELIABLE)
        self.acks = graph.collect(ObservationAck, f'{namespace}/observation_ack', RELIABLE)
        self.status = graph.collect(PolicyStatus, f'{namespace}/policy_status', LATCHED)
        graph.node.create_timer(PERIOD_S, self.publish)

    def now_ns(self):
        return self.graph.node.get_clock().now().nanoseconds

    def publish(self):
        stamp_ns = self.now_ns()
        positions = np.zeros(len(JOINTS), np.float32)
        self.joints.publish(joint_message(JOINTS, positions, stamp_ns=stamp_ns, faults=()))
        for name, publisher in self.cameras.items():
            image = np.zeros((*CAMERAS[name], 3), np.uint8)
            publisher.publish(
                image_message(image, camera=name, stamp_ns=stamp_ns, jpeg_quality=None, faults=())
            )

    def restart(self, camera, profile):
        """End one camera's publisher and start another one with other QoS."""
        self.graph.node.destroy_publisher(self.cameras.pop(camera))
        self.cameras[camera] = self.graph.node.create_publisher(Image, topic(camera), profile)

    def wait_for_chunks(self, count=1):
        wanted = len(self.chunks) + count
        self.graph.spin_until(lambda: len(self.chunks) >= wanted, f'{count} chunks')


def topic(camera):
    return f'/camera/{camera}/image_raw'


def count_resources(pid):
    """Return threads and open files of a process, and its memory in KiB."""
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    values = dict(line.split(':', 1) for line in lines)
    files = sum(1 for _ in Path(f'/proc/{pid}/fd').iterdir())
    return int(values['Threads']), files, int(values['VmRSS'].split()[0])


@pytest.mark.slow
def test_fifty_cycles_under_load(graph, processes, recording):
    node = processes.start_node('policy_node', bundle=recording.bundle, instruction='wave')
    drivers = Drivers(graph)
    assert graph.transition('policy_node', 'configure')
    silences, resources = [], []
    for _ in range(NUM_CYCLES):
        assert graph.transition('policy_node', 'activate')
        drivers.wait_for_chunks()
        assert graph.transition('policy_node', 'deactivate')
        begin_ns = drivers.now_ns()
        assert graph.state('policy_node') == 'inactive'
        silences.append((begin_ns, drivers.now_ns()))
        resources.append(count_resources(node.pid))
    published_ns = [to_ns(chunk.publish_stamp) for chunk in drivers.chunks]
    assert len(published_ns) >= NUM_CYCLES
    assert not [ns for ns in published_ns for begin, end in silences if begin < ns < end]
    threads, files, memory = zip(*resources, strict=True)
    # The middleware's own come and go; what leaks stays.
    assert min(threads[-10:]) <= max(threads[:10]), threads
    assert min(files[-10:]) <= max(files[:10]), files
    assert memory[-1] - memory[NUM_CYCLES // 5] < MAX_GROWTH_KIB, memory
    assert node.end() == 0
    assert 'Traceback' not in node.log
    assert 'ERROR' not in node.log


@pytest.mark.filterwarnings(
    'ignore:Deprecated in favor:DeprecationWarning'
)  # rclpy's own, on this side
def test_a_camera_whose_driver_restarts_with_other_qos_comes_back(graph, processes, recording):
    processes.start_node(
        'policy_node', bundle=recording.bundle, instruction='wave', autostart=True
    )
    drivers = Drivers(graph)
    drivers.wait_for_chunks()
    for profile in (BEST_EFFORT, RELIABLE, LATCHED):
        drivers.restart('wrist', profile)
        drivers.restart('front', profile)
        drivers.wait_for_chunks(5)
    graph.spin_until(lambda: drivers.status[-1].state == 'running', 'the running state')


def test_swapped_topics_are_swapped_once(graph, processes, recording):
    swap = [f'{topic("front")}:={topic("wrist")}', f'{topic("wrist")}:={topic("front")}']
    start_policy(processes, recording, *(part for rule in swap for part in ('-r', rule)))
    drivers = Drivers(graph)
    graph.node.destroy_publisher(drivers.cameras.pop('wrist'))

    def streams():
        return {s.name: s for s in drivers.status[-1].streams} if drivers.status else {}

    graph.spin_until(
        lambda: streams() and streams()['wrist'].used == 0 < streams()['wrist'].received, 'it'
    )
    told = {name: (s.topic, s.publishers, s.received > 0) for name, s in streams().items()}
    assert told['wrist'] == (topic('front'), 1, True)
    assert told['front'] == (topic('wrist'), 0, False)


def test_policies_in_namespaces_do_not_mix(graph, processes, recording):
    sides = ('/left', '/right')
    for side in sides:
        start_policy(processes, recording, '-r', f'__ns:={side}')
    diagnostics = graph.collect(DiagnosticArray, '/diagnostics')
    heard = [graph.collect(ActionChunk, f'{side}/action_chunk', RELIABLE) for side in sides]
    acks = [graph.collect(ObservationAck, f'{side}/observation_ack', RELIABLE) for side in sides]
    Drivers(graph)
    graph.spin_until(lambda: all(heard) and all(acks), 'chunks of both')
    names = {'left/policy_node: policy', 'right/policy_node: policy'}
    graph.spin_until(lambda: {m.status[0].name for m in diagnostics} == names, 'both diagnostics')


def start_policy(processes, recording, *ros_arguments):
    module = 'vla_policy_ros.ros.nodes.policy_node'
    parameters = {'bundle': recording.bundle, 'instruction': 'wave', 'autostart': 'true'}
    flags = [part for key, value in parameters.items() for part in ('-p', f'{key}:={value}')]
    return processes.start(sys.executable, '-m', module, '--ros-args', *flags, *ros_arguments)


def test_a_replay_that_is_activated_again_plays_the_same_again(graph, processes, recording):
    """Its stamps go on, its faults begin anew."""
    start_policy(processes, recording, '-p', 'use_sim_time:=true')
    processes.start_node(
        'replay_node',
        dataset=recording.dataset,
        mode='lockstep',
        end_s=0.3,
        faults='encoding:front:3-4',
    )
    acks = graph.collect(ObservationAck, 'observation_ack', RELIABLE)
    replay = graph.collect(ReplayStatus, 'replay_status', LATCHED)
    graph.spin_until(lambda: graph.node.count_publishers('/observation_ack'), 'the policy')
    assert graph.transition('replay_node', 'configure')
    rounds = []
    for _ in range(2):
        replay.clear()
        acks.clear()
        assert graph.transition('replay_node', 'activate')
        graph.spin_until(lambda: replay and replay[-1].state == 'finished', 'the end')
        rounds.append([ack.accepted for ack in acks])
        stamps = [to_ns(ack.header.stamp) for ack in acks]
        assert graph.transition('replay_node', 'deactivate')
    assert rounds[0] == rounds[1] == [index not in (3, 4) for index in range(10)]
    assert stamps == sorted(set(stamps))
