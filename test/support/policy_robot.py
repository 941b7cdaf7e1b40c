# SPDX-License-Identifier: Apache-2.0
"""A policy node in the test's own process, so that its threads, files and memory can be counted."""

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState
from support.recordings import CAMERAS, JOINTS

from vla_policy_ros.msg import ActionChunk, ObservationAck, PolicyStatus
from vla_policy_ros.ros.nodes.policy_node import PolicyNode
from vla_policy_ros.ros.qos import LATCHED, RELIABLE
from vla_policy_ros.ros.replay_messages import image_message, joint_message

REST = (0.0,) * len(JOINTS)


class PolicyRobot:
    """A policy node in the test's own process, and a test that plays cameras, joints and the consumer of its chunks.

    Args:
        graph: The test's node.
        domain_id: Domain of the test.
        arguments: Command line of the node.
    """

    def __init__(self, graph, *, domain_id, arguments):
        self.graph = graph
        rclpy.init(
            args=arguments,
            domain_id=domain_id,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self.node = PolicyNode()
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.chunks = graph.collect(ActionChunk, 'action_chunk', RELIABLE)
        self.acks = graph.collect(ObservationAck, 'observation_ack', RELIABLE)
        self.status = graph.collect(PolicyStatus, 'policy_status', LATCHED)
        create = graph.node.create_publisher
        self.cameras = {name: create(Image, f'/camera/{name}/image_raw', 10) for name in CAMERAS}
        self.joints = create(JointState, '/joint_states', 10)

    def close(self):
        """End the node."""
        self.node.close()
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown()

    def spin_until(self, condition, what):
        """Spin node and test until a condition holds."""
        self.graph.spin_until(lambda: self.executor.spin_once(timeout_sec=0) or condition(), what)

    def wait_until_matched(self):
        """Spin until node and test have discovered each other."""
        publishers = (*self.cameras.values(), self.joints)
        self.spin_until(
            lambda: (
                all(p.get_subscription_count() for p in publishers)
                and self.status
                and [s.publishers for s in self.status[-1].streams] == [1, 1, 1]
                and self.graph.node.count_publishers('/action_chunk')
            ),
            'matched inputs',
        )

    def publish(self, positions=REST):
        """Publish one set of inputs and return its stamp."""
        stamp_ns = self.graph.node.get_clock().now().nanoseconds
        pose = np.array(positions, np.float32)
        self.joints.publish(joint_message(JOINTS, pose, stamp_ns=stamp_ns, faults=()))
        for name, size in CAMERAS.items():
            image = np.zeros((*size, 3), np.uint8)
            self.cameras[name].publish(
                image_message(image, camera=name, stamp_ns=stamp_ns, jpeg_quality=None, faults=())
            )
        return stamp_ns
