# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
from support.bundles import write_direct_bundle, write_flow_bundle

from vla_policy_ros.core.specs import Column, ColumnKind
from vla_policy_ros.datasets.synthetic import SyntheticDataset
from vla_policy_ros.deployment.config import default_deployment
from vla_policy_ros.deployment.overrides import Overrides
from vla_policy_ros.tools.summaries import (
    bundle_summary,
    dataset_summary,
    deployment_summary,
    to_text,
)


@pytest.fixture(scope='module')
def direct(tmp_path_factory):
    return write_direct_bundle(tmp_path_factory.mktemp('direct'), history=2, words=True)


@pytest.fixture(scope='module')
def flow(tmp_path_factory):
    return write_flow_bundle(tmp_path_factory.mktemp('flow'))


def test_a_bundle_with_words_and_a_history(direct):
    summary = bundle_summary(direct)
    assert summary['policy'] == direct.spec.policy_id
    assert summary['cameras'] == {'front': '8 x 8 px, 2 image(s)'}
    assert summary['instruction'] == 'up to 6 tokens'
    assert summary['horizon'] == '4 rows, 50 ms apart'


def test_a_bundle_with_a_loop_and_no_camera(flow):
    summary = bundle_summary(flow)
    assert summary['loop'] == 'flow_matching_euler, 4 steps'
    assert list(summary['stages']) == ['encoder', 'velocity', 'decoder']
    assert summary['instruction'] == 'none'
    assert to_text(summary)['cameras'] == 'none'


def test_columns_tell_unit_and_kind():
    info = dataclasses.replace(
        SyntheticDataset(cameras={}, num_joints=1).info,
        action=(Column('lift', 'm'), Column('jaw', '1', ColumnKind.GRIPPER)),
        warnings=('one is odd', 'two is odd'),
    )
    summary = dataset_summary(info)
    assert summary['action'] == {'lift': 'm linear', 'jaw': '1 gripper'}
    text = to_text(summary)
    assert text['action'] == 'lift (m linear), jaw (1 gripper)'
    assert text['state'] == 'joint_0 (rad linear)'
    assert text['warnings'] == 'one is odd; two is odd'
    assert text['episodes'] == '1'


def test_equal_values_are_told_once():
    info = SyntheticDataset(cameras={}, num_joints=3).info
    assert to_text(dataset_summary(info))['state'] == 'joint_0, joint_1, joint_2 (all rad linear)'


def test_a_deployment_names_its_topics(direct):
    deployment = default_deployment(direct.spec, bundle='x')
    summary = deployment_summary(deployment, direct)
    assert summary['cameras'] == {'front': '/camera/front/image_raw, raw'}
    assert summary['joint states'] == {'/joint_states': 'all joints'}
    assert summary['instruction'] == 'topic instruction'


def test_a_deployment_tells_its_outputs_and_its_words(direct):
    overrides = Overrides(chunk_topic='/arm/chunks', instruction='pick the cube', engine='none')
    deployment = overrides.apply(default_deployment(direct.spec, bundle='x'))
    summary = deployment_summary(deployment, direct)
    assert summary['chunks'] == '/arm/chunks'
    assert summary['instruction'] == 'pick the cube'
    assert summary['engine'] == 'none'
