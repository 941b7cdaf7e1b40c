# SPDX-License-Identifier: Apache-2.0
from typing import Literal

import pytest
from pydantic import Field
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_policy_ros.bundle.strict import StrictModel
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.ros.parameters import NodeParameters, dynamic

pytestmark = pytest.mark.ros


class Settings(StrictModel):
    """Parameters of a made-up node."""

    bundle: str = 'sample'
    """Folder of the bundle."""
    depth: int = Field(default=10, ge=1, le=100)
    """Messages that wait."""
    rate: float = Field(default=1.0, ge=0.5, le=2.0)
    """Factor on the pace."""
    joints: tuple[str, ...] = ('elbow',)
    """Names of the joints."""
    gain: float = dynamic(1.0, ge=0.0, le=4.0)
    """Can change."""
    style: Literal['smooth', 'quick'] = dynamic('smooth')
    """How it moves."""


@pytest.fixture
def make(graph):
    """Return a function that declares the parameters on a node with start values."""
    nodes = []

    def make(on_change=lambda _: None, **start):
        overrides = [Parameter(name, value=value) for name, value in start.items()]
        nodes.append(Node('arm', context=graph.context, parameter_overrides=overrides))
        return nodes[-1], NodeParameters(nodes[-1], Settings, on_change)

    yield make
    for node in nodes:
        node.destroy_node()


def set_one(node, name, value):
    (result,) = node.set_parameters([Parameter(name, value=value)])
    return result


def test_defaults_and_start_values(make):
    _, parameters = make(depth=20, joints=['elbow', 'wrist'])
    assert parameters.current == Settings(depth=20, joints=('elbow', 'wrist'))


def test_descriptors_tell_what_the_model_says(make):
    node, _ = make()
    bundle, depth, rate, gain, style = node.describe_parameters(
        ['bundle', 'depth', 'rate', 'gain', 'style']
    )
    assert bundle.description == 'Folder of the bundle.'
    assert (bundle.read_only, gain.read_only) == (True, False)
    (depth_range,), (rate_range,) = depth.integer_range, rate.floating_point_range
    assert (depth_range.from_value, depth_range.to_value) == (1, 100)
    assert (rate_range.from_value, rate_range.to_value) == (0.5, 2.0)
    assert style.additional_constraints == "one of 'smooth', 'quick'"


@pytest.mark.parametrize(
    ('name', 'value'),
    [('depth', 0), ('rate', 2.5), ('rate', 1), ('style', 'wild'), ('gain', -1.0)],
)
def test_a_wrong_start_value_is_refused(make, name, value):
    with pytest.raises(ConfigurationError, match=f'parameters of arm: {name}: got .*{value}'):
        make(**{name: value})


def test_a_dynamic_parameter_changes_the_whole(make):
    seen = []
    node, parameters = make(seen.append)
    assert set_one(node, 'gain', 2.5).successful
    assert parameters.current == Settings(gain=2.5)
    assert seen == [parameters.current]


def test_other_parameters_are_no_business_of_the_model(make):
    seen = []
    node, _ = make(seen.append)
    assert set_one(node, 'use_sim_time', True).successful
    assert seen == []


@pytest.mark.parametrize(
    ('name', 'value', 'reason'),
    [
        ('bundle', 'other', 'read-only'),
        ('gain', 9.0, 'out of range'),
        ('style', 'wild', "got 'wild', expected 'smooth' or 'quick'"),
    ],
)
def test_a_wrong_change_is_refused_with_its_reason(make, name, value, reason):
    seen = []
    node, parameters = make(seen.append)
    result = set_one(node, name, value)
    assert not result.successful
    assert reason in result.reason
    assert parameters.current == Settings()
    assert seen == []
