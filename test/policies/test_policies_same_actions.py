# SPDX-License-Identifier: Apache-2.0
"""The same small bundles on every engine that this machine has: the same actions, within one table of limits."""

from contextlib import closing

import numpy as np
import pytest
from support.device_bundles import BUNDLES, noisy_observation, write_bfloat16_bundle
from support.requirements import require

from vla_policy_ros.bundle.limits import ACCURACY_LIMITS
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.engines.plan_facts import BuildOptions
from vla_policy_ros.engines.plans import PlanStore
from vla_policy_ros.engines.registry import engine_library
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.evaluation.parity import measure_parity
from vla_policy_ros.export.stage_plans import PlanBuilder, plan_jobs
from vla_policy_ros.policies.engine_policy import EnginePolicy

NUM_OBSERVATIONS = 3
ENGINES = [
    'onnxruntime',
    'openvino',
    'openvino_gpu',
    'openvino_npu',
    'torch_cpu',
    pytest.param('onnxruntime_cuda', marks=pytest.mark.gpu),
    pytest.param('onnxruntime_tensorrt', marks=pytest.mark.gpu),
    pytest.param('torch', marks=pytest.mark.gpu),
    pytest.param('torch_tensorrt', marks=pytest.mark.gpu),
    pytest.param('tensorrt', marks=[pytest.mark.gpu, pytest.mark.tensorrt]),
]
PRECISIONS = {'openvino_npu': 'fp16'}  # what it computes in; all others in fp32
NO_BFLOAT16 = ('onnxruntime', 'onnxruntime_cuda')  # on the CPU it has no kernels for it


@pytest.fixture(params=ENGINES)
def engine(request):
    if engine_library(request.param) == 'openvino':
        require('openvino')
    pytest.importorskip(engine_library(request.param))
    return request.param


@pytest.fixture(params=BUNDLES)
def bundle(request, tmp_path):
    return BUNDLES[request.param](tmp_path / 'bundle')


def open_policy(bundle, engine, plans):
    """Open a policy; skip where the engine's device is not there."""
    if engine == 'tensorrt':
        builder = PlanBuilder('tensorrt', store=PlanStore(plans), options=BuildOptions())
        for job in plan_jobs(bundle):
            builder.build(job)
    settings = EngineSettings(plan_folder=plans, precision=PRECISIONS.get(engine))
    try:
        return EnginePolicy(bundle, engine=engine, settings=settings)
    except EngineError as error:
        if error.code in ('no_device', 'no_provider'):
            pytest.skip(str(error))
        raise


def assert_near(found, wanted, engine):
    parity = measure_parity(found, wanted)
    assert parity.is_within(ACCURACY_LIMITS[PRECISIONS.get(engine, 'fp32')]), parity


def test_same_actions(bundle, engine, tmp_path):
    manifest = bundle.manifest
    scale = ActionDenormalizer(manifest.action, manifest.state, bundle.statistics)
    with (
        closing(EnginePolicy(bundle)) as reference,
        closing(open_policy(bundle, engine, tmp_path / 'plans')) as policy,
    ):
        for seed in range(NUM_OBSERVATIONS):
            observation = noisy_observation(bundle, stamp_ns=10**9 + seed, seed=seed)
            inputs = reference.pool_inputs(observation)
            assert_near(policy.run_pool(*inputs), reference.run_pool(*inputs), engine)
            # From images and joints to units, and back to the span that the limits are made for.
            found, wanted = (
                scale.normalize(each.infer(observation).actions, observation.state[-1])
                for each in (policy, reference)
            )
            assert_near(found, wanted, engine)


def test_stored_probe_passes(engine, tmp_path):
    bundle = BUNDLES['sample'](tmp_path)
    with closing(open_policy(bundle, engine, tmp_path / 'plans')) as policy:
        assert check_probe(policy, bundle, precision=PRECISIONS.get(engine)).cosine > 0.999


def test_bfloat16_tensors_go_from_stage_to_stage(engine, tmp_path):
    if engine in NO_BFLOAT16:
        pytest.skip(f'{engine} takes no bfloat16 here')
    bundle = write_bfloat16_bundle(tmp_path / 'bundle')
    state = np.array([[[0.123, -0.5, 0.77]]], np.float32)
    with closing(open_policy(bundle, engine, tmp_path / 'plans')) as policy:
        found = policy.run_pool({'state': state}, np.zeros((1, 4, 3), np.float32))
    context = (2 * state).astype('bfloat16').astype(np.float32)
    np.testing.assert_allclose(found[0], np.repeat(context[0] / 2, 4, axis=0), rtol=1e-5)
