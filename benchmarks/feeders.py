# SPDX-License-Identifier: Apache-2.0
"""Drivers for benchmarks: every camera and the robot's joints as a process of its own, as on a robot.

Used by node_overhead.py: `feeders.py camera TOPIC HEIGHT WIDTH` or `feeders.py joints TOPIC COUNT`, then a line `START RATE COUNT`
on stdin: publish COUNT messages at RATE from START on (seconds of the system's clock), each stamped with the time it goes.
"""

from __future__ import annotations

import sys
import time
from array import array
from typing import Any

import rclpy
from sensor_msgs.msg import Image, JointState

from vla_policy_ros.ros.convert import to_time
from vla_policy_ros.ros.process import tune_allocator, use_shipped_middleware_profile
from vla_policy_ros.ros.qos import RELIABLE


def main() -> None:
    """Publish what the command line names when stdin says when."""
    kind, topic, *sizes = sys.argv[1:]
    tune_allocator()
    use_shipped_middleware_profile()
    rclpy.init()
    node = rclpy.create_node(f'{kind}_driver_{topic.strip("/").replace("/", "_")}')
    message = make_image(*map(int, sizes)) if kind == 'camera' else make_joints(int(sizes[0]))
    publisher = node.create_publisher(type(message), topic, RELIABLE)
    start_s, rate_hz, count = sys.stdin.readline().split()
    for index in range(int(count)):
        time.sleep(max(float(start_s) + index / float(rate_hz) - time.time(), 0.0))
        message.header.stamp = to_time(time.time_ns())
        publisher.publish(message)
    sys.stdin.readline()  # an image may still be on its way
    node.destroy_node()
    rclpy.shutdown()


def make_image(height: int, width: int) -> Any:
    """Return an rgb8 image of noise."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 255, height * width * 3, np.uint8)
    message = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    message.data = array('B', pixels.tobytes())
    return message


def make_joints(count: int) -> Any:
    """Return a state of the joints of the synthetic dataset."""
    from vla_policy_ros.datasets.synthetic import SyntheticDataset

    columns = SyntheticDataset(cameras={}, num_joints=count).info.state
    names = [column.name for column in columns]
    return JointState(name=names, position=array('d', [0.1] * count))


if __name__ == '__main__':
    main()
