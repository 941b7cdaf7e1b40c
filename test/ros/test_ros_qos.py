# SPDX-License-Identifier: Apache-2.0
import pytest
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Int32, String

from vla_policy_ros.ros.qos import LATCHED, RELIABLE, match_publishers, unmatched_subscribers

pytestmark = pytest.mark.ros

BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
TYPE = 'std_msgs/msg/String'


def match(graph, publishers):
    """Create publishers, wait until discovery tells of all of them, and match."""
    for profile in publishers:
        graph.node.create_publisher(String, '/camera', profile)
    graph.spin_until(
        lambda: len(graph.node.get_publishers_info_by_topic('/camera')) == len(publishers),
        'the publishers',
    )
    return match_publishers(graph.node, '/camera', TYPE, depth=3)


@pytest.mark.parametrize(
    ('publishers', 'reliability', 'durability'),
    [
        ([], ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE),
        ([BEST_EFFORT], ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE),
        ([RELIABLE], ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
        ([RELIABLE, BEST_EFFORT], ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE),
        ([LATCHED], ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
        ([LATCHED, RELIABLE], ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
    ],
)
def test_profile_follows_the_publishers(graph, publishers, reliability, durability):
    found = match(graph, publishers)
    assert found.num_publishers == len(publishers)
    assert found.key == (reliability, durability)
    assert found.profile.depth == 3
    assert found.problems == ()


@pytest.mark.parametrize('publishers', [[RELIABLE, BEST_EFFORT], [LATCHED, RELIABLE]])
def test_chosen_profile_receives_from_every_publisher(graph, publishers):
    profile = match(graph, publishers).profile
    received = graph.collect(String, '/camera', profile)
    senders = list(graph.node.publishers)[-len(publishers) :]
    graph.spin_until(lambda: all(p.get_subscription_count() for p in senders), 'a match')
    for index, sender in enumerate(senders):
        sender.publish(String(data=str(index)))
    graph.spin_until(lambda: {m.data for m in received} == {'0', '1'}, 'both messages')


def test_a_publisher_of_another_type_is_a_problem(graph):
    graph.node.create_publisher(Int32, '/camera', 1)
    graph.spin_until(lambda: graph.node.count_publishers('/camera'), 'the publisher')
    found = match_publishers(graph.node, '/camera', TYPE, depth=1)
    assert found.problems == (f'test_node publishes std_msgs/msg/Int32, expected {TYPE}',)


def test_a_subscriber_that_asks_for_more_is_told(graph):
    graph.collect(String, '/chunk', RELIABLE)
    graph.collect(String, '/chunk', LATCHED)
    count = graph.node.count_subscribers
    graph.spin_until(lambda: count('/chunk') == 2, 'both subscribers')
    (problem,) = unmatched_subscribers(graph.node, '/chunk', RELIABLE)
    assert problem.startswith('test_node cannot receive /chunk: ')
    assert unmatched_subscribers(graph.node, '/chunk', LATCHED) == ()
