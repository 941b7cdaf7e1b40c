# SPDX-License-Identifier: Apache-2.0
import pytest
from support.bundles import flow_manifest, write_flow_bundle, write_flow_files

from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.engines.plan_facts import BuildOptions, ShapeRange
from vla_policy_ros.engines.plans import PlanStore
from vla_policy_ros.export import stage_plans
from vla_policy_ros.export.stage_plans import PlanBuilder, plan_jobs

TARGET = BuildOptions(targets=('8.9',))


@pytest.fixture
def builder(tmp_path):
    return PlanBuilder('tensorrt_rtx', store=PlanStore(tmp_path / 'plans'), options=TARGET)


def test_each_network_once_per_precision(tmp_path):
    manifest = flow_manifest()
    decoder = manifest['stages'][2]
    decoder['precision'] = 'fp16'
    manifest['stages'].append(
        {**decoder, 'name': 'again', 'inputs': {'sample': 'action'}, 'outputs': {'action': 'more'}}
    )
    write_flow_files(tmp_path / 'flow')
    bundle = write_bundle(tmp_path / 'flow', manifest)
    jobs = plan_jobs(bundle)
    assert [(job.stages, job.precision) for job in jobs] == [
        (('encoder',), 'fp32'),
        (('velocity',), 'fp32'),
        (('decoder', 'again'), 'fp16'),
    ]
    assert {job.precision for job in plan_jobs(bundle, precision='bf16')} == {'bf16'}
    (job,) = plan_jobs(bundle, stages=['again'])
    assert job.stages == ('again',)


def test_profiles_are_the_shapes_of_the_pool(tmp_path):
    jobs = plan_jobs(write_flow_bundle(tmp_path / 'flow'))
    # `gain` and `time` have fixed shapes, which need no profile.
    assert [job.profiles for job in jobs] == [
        {'state': ShapeRange.fixed((1, 1, 3))},
        {'sample': ShapeRange.fixed((1, 4, 3)), 'context': ShapeRange.fixed((1, 1, 3))},
        {'sample': ShapeRange.fixed((1, 4, 3))},
    ]


def test_an_unknown_stage(tmp_path):
    with pytest.raises(ConfigurationError, match='nobody') as caught:
        plan_jobs(write_flow_bundle(tmp_path / 'flow'), stages=['nobody'])
    assert caught.value.code == 'unknown_stage'


def test_free_dimensions_are_built_and_found_again(tmp_path, builder):
    for job in plan_jobs(write_flow_bundle(tmp_path / 'flow'), precision='fp16'):
        assert builder.find(job) is None
        built = builder.build(job)
        assert built.plan.key.options.profiles == job.profiles
        found = builder.find(job)
        assert (found.plan, found.is_cached) == (built.plan, True)


def test_a_plan_from_elsewhere(tmp_path, builder, monkeypatch):
    job = plan_jobs(write_flow_bundle(tmp_path / 'flow'), stages=['decoder'])[0]
    path = tmp_path / 'foreign.plan'
    path.write_bytes(b'a plan')

    class Foreign:
        inputs = (TensorSpec('sample', (1, 4, 3), 'float32'),)
        outputs = (TensorSpec('action', (1, 4, 3), 'float32'),)
        is_open = True

        @classmethod
        def from_plan(cls, plan_path):
            assert plan_path == path
            return cls()

        def close(self):
            Foreign.is_open = False

    monkeypatch.setitem(stage_plans._ENGINES, 'tensorrt_rtx', Foreign)
    taken = builder.take_in(job, path)
    assert (taken.plan.origin, taken.plan.path.read_bytes()) == ('foreign', b'a plan')
    assert builder.find(job).plan == taken.plan
    assert not Foreign.is_open
