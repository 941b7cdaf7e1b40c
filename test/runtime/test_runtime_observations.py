# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from support.policies import FakePolicy, make_spec

from vla_policy_ros.core.observation import Instruction
from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.deployment.config import Deployment
from vla_policy_ros.runtime.observations import (
    Arrived,
    JointInput,
    ObservationBuilder,
    blend,
    blend_joints,
    stream_rules,
)
from vla_policy_ros.scheduling.matcher import MatchedSet


def joints(column, *values):
    columns = [Column(f'{column.name}{i}', column.unit, column.kind) for i in range(len(values))]
    names = [c.name for c in columns]
    return JointInput(columns, (), {}).read(names, values)


@pytest.mark.parametrize(
    ('column', 'older', 'newer', 'ratio', 'expected'),
    [
        (Column('j', 'rad'), 1.0, 2.0, 0.25, 1.25),
        (Column('j', 'rad'), 3.0, -3.0, 0.5, 0.0),
        (Column('j', 'rad', ColumnKind.ANGLE), 3.0, -3.0, 0.5, math.pi),
        (Column('j', 'rad', ColumnKind.ANGLE), 0.1, -0.1, 0.5, 0.0),
        (Column('j', 'deg', ColumnKind.ANGLE), 350.0, 10.0, 0.25, 355.0),
        (Column('j', 'm', ColumnKind.GRIPPER), 0.0, 0.1, 0.5, 0.05),
        (Column('j', '1', ColumnKind.QUATERNION), 0.7, -0.7, 0.4, 0.7),
        (Column('j', '1', ColumnKind.QUATERNION), 0.7, -0.7, 0.6, -0.7),
    ],
)
def test_blends_by_kind(column, older, newer, ratio, expected):
    blended = blend_joints(joints(column, older), joints(column, newer), ratio)
    assert blended.values == pytest.approx(expected, abs=1e-5)
    assert blended.values.dtype == np.float32


def test_a_blend_has_the_times_of_the_newer_sample():
    column = Column('j', 'rad')
    older, newer = (Arrived(joints(column, v), v, v + 1) for v in (10, 20))
    blended = blend(older, newer, 0.5)
    assert (blended.sample.values, blended.received_ns, blended.ready_ns) == ([15], 20, 21)


def make_deployment(**changes):
    document = {
        'policy': {'bundle': 'sample'},
        'cameras': {'wrist': {'topic': '/w', 'fill': 'black'}, 'front': {'topic': '/f'}},
        'joint_states': [
            {'topic': '/a', 'names': ['elbow', 'wrist_roll'], 'rename': {'roll': 'wrist_roll'}},
            {'topic': '/b', 'names': ['shoulder'], 'match': 'as_of'},
        ],
    }
    return Deployment.model_validate({**document, **changes})


SPEC = make_spec(
    {'front': (-100, 0), 'wrist': (0,)},
    ['shoulder', 'elbow', 'wrist_roll'],
    state_history_ns=(-50, 0),
)


def test_rules_follow_the_policy_and_the_file():
    rules = stream_rules(make_deployment(), SPEC.observation)
    assert [rule.name for rule in rules] == [
        'front',
        'wrist',
        'joint_states[0]',
        'joint_states[1]',
    ]
    assert [rule.rule for rule in rules] == ['nearest', 'nearest', 'interpolate', 'as_of']
    assert [rule.history_ns for rule in rules] == [(-100, 0), (0,), (-50, 0), (-50, 0)]
    assert [rule.fill for rule in rules] == ['refuse', 'black', 'refuse', 'refuse']
    assert (rules[0].tolerance_ns, rules[0].max_age_ns) == (20_000_000, 100_000_000)
    assert [rule.depth for rule in rules[:2]] == [6, 5]  # 16 slots, 8 queued, 2 in work


def test_builds_an_observation_from_several_sources():
    deployment = make_deployment()
    inputs = [
        JointInput(SPEC.observation.state, source.names, source.rename)
        for source in deployment.joint_states
    ]
    policy = FakePolicy(SPEC)
    builder = ObservationBuilder(policy, deployment, inputs)

    def state(index, *values):
        names = (['roll', 'elbow'], ['shoulder'])[index]
        return Arrived(inputs[index].read(names, values), 0, 0)

    matched = MatchedSet(
        1000,
        samples={
            'front': (Arrived('old', 0, 0), Arrived('new', 0, 0)),
            'wrist': (None,),
            'joint_states[0]': (state(0, 3, 2), state(0, 6, 5)),
            'joint_states[1]': (state(1, 1), state(1, 4)),
        },
        stamps_ns={'front': 1000, 'joint_states[0]': 990},
        filled=('wrist',),
    )
    observation = builder.build(matched, instruction=Instruction('go', 3), sequence=4, epoch=5)
    assert observation.images['front'] == ('old', 'new')
    (black,) = observation.images['wrist']
    assert (black.camera, black.brightness) == ('wrist', 0)
    assert observation.state.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert observation.state.dtype == np.float32
    assert observation.stream_ages_ns() == {'front': 0, 'joint_states[0]': 10}
    assert (observation.instruction.text, observation.sequence, observation.epoch) == ('go', 4, 5)
