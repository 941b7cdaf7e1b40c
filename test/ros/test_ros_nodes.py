# SPDX-License-Identifier: Apache-2.0
import ast
from pathlib import Path

import pytest
from rclpy.lifecycle import LifecycleNode

from vla_policy_ros.ros import lifecycle
from vla_policy_ros.ros.nodes import policy_node, recorder_node, replay_node, simulated_robot_node

pytestmark = pytest.mark.ros


@pytest.mark.parametrize(
    'module', [lifecycle, policy_node, replay_node, recorder_node, simulated_robot_node]
)
def test_no_attribute_hides_one_of_rclpy(graph, module):
    """rclpy keeps its parameters, timers and more under short names, which a subclass may overwrite unnoticed."""
    base = LifecycleNode('base', context=graph.context)
    theirs = set(vars(base))
    base.destroy_node()
    tree = ast.parse(Path(module.__file__).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    managed = [c for c in classes if any(getattr(b, 'id', '').endswith('Node') for b in c.bases)]
    assert managed
    ours = {
        node.attr
        for item in managed
        for node in ast.walk(item)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert ours & theirs == set()
