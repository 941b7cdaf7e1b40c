# SPDX-License-Identifier: Apache-2.0
import pytest
from rclpy.node import Node
from std_msgs.msg import Bool, String

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.ros.qos import LATCHED
from vla_policy_ros.ros.robot_description import wait_for_robot_description

pytestmark = pytest.mark.ros

SHORT_S = 0.5
PATIENCE_S = 60.0


@pytest.fixture
def node(graph):
    """A node that is asked while nothing spins it, as in a transition."""
    node = Node('asker', namespace='robot', context=graph.context)
    yield node
    node.destroy_node()


@pytest.mark.parametrize('topic', ['robot_description', '/robot/robot_description'])
def test_the_latched_text_is_returned(graph, node, topic):
    publisher = graph.node.create_publisher(String, '/robot/robot_description', LATCHED)
    publisher.publish(String(data='<robot/>'))
    assert wait_for_robot_description(node, topic, PATIENCE_S) == '<robot/>'
    assert [name for name in graph.node.get_node_names() if 'description' in name] == []


def test_it_says_that_nobody_publishes(node):
    with pytest.raises(ConfigurationError) as caught:
        wait_for_robot_description(node, 'robot_description', 0.0)
    assert caught.value.code == 'no_robot_description'
    assert caught.value.where == '/robot/robot_description'
    assert 'no publisher' in caught.value.got
    assert 'robot_state_publisher' in caught.value.next_step


@pytest.mark.parametrize(
    ('kind', 'qos', 'told'), [(String, 10, 'volatile'), (Bool, LATCHED, 'std_msgs/msg/Bool')]
)
def test_it_says_why_a_publisher_is_of_no_use(graph, node, kind, qos, told):
    graph.node.create_publisher(kind, '/robot/robot_description', qos)
    graph.spin_until(lambda: node.count_publishers('/robot/robot_description'), 'the publisher')
    with pytest.raises(ConfigurationError) as caught:
        wait_for_robot_description(node, 'robot_description', SHORT_S)
    assert '1 publishers' in caught.value.got
    assert told in caught.value.got
