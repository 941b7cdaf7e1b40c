# SPDX-License-Identifier: Apache-2.0
"""The same on a real GPU: whole policies through preprocessing on the device and every engine there, against the CPU."""

import dataclasses
import threading

import cv2
import numpy as np
import pytest
from contracts.policy_contract import PolicyContract
from support.device_bundles import (
    BUNDLES,
    noisy_observation,
    write_bfloat16_bundle,
)

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.limits import ACCURACY_LIMITS
from vla_policy_ros.bundle.noise import DEVICE_LIMIT
from vla_policy_ros.bundle.probe import check_probe, compare_outputs
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.engines.plan_facts import BuildOptions
from vla_policy_ros.engines.plans import PlanStore
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.export.stage_plans import PlanBuilder, plan_jobs
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.registry import load_policy
from vla_policy_ros.sample import sample_bundle_path

pytestmark = pytest.mark.gpu

LIMIT = ACCURACY_LIMITS['fp32']
NUM_FRAMES = 1000


@pytest.fixture(
    scope='module', params=['torch', pytest.param('tensorrt', marks=pytest.mark.tensorrt)]
)
def engine(request):
    return request.param


@pytest.fixture(scope='module')
def device():
    from vla_policy_ros.gpu.device import open_device

    device = open_device()
    yield device
    device.close()


@pytest.fixture(scope='module')
def bundles(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = BUNDLES[name](tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture
def make(engine, device, tmp_path_factory):
    """Make policies on the GPU; plans are kept for the session."""
    made = []
    plans = tmp_path_factory.getbasetemp() / 'plans'

    def make(bundle, **settings):
        options = {'preprocess': 'gpu', 'slots': 6, 'settings': EngineSettings(plan_folder=plans)}
        if engine == 'tensorrt':
            build_plans(bundle, plans)
        made.append(EnginePolicy(bundle, engine=engine, device=device, **{**options, **settings}))
        return made[-1]

    yield make
    for policy in made:
        policy.close()


def build_plans(bundle, folder):
    """Build what is not there yet."""
    builder = PlanBuilder('tensorrt', store=PlanStore(folder), options=BuildOptions())
    for job in plan_jobs(bundle):
        if not builder.find(job):
            builder.build(job)


def prepare(policy, observation):
    """Return the observation with all images prepared."""
    images = {
        name: tuple(policy.prepare(frame) for frame in frames)
        for name, frames in observation.images.items()
    }
    return dataclasses.replace(observation, images=images)


def assert_near(found, expected):
    result = compare_outputs(found, expected)
    assert result.cosine >= LIMIT.min_cosine, result
    assert result.max_error <= LIMIT.max_error, result


class TestContract(PolicyContract):
    @pytest.fixture
    def policy(self, bundles, make):
        return make(bundles('sample'))

    @pytest.fixture
    def observation(self, bundles):
        return noisy_observation(bundles('sample'))


@pytest.mark.parametrize('name', BUNDLES)
@pytest.mark.parametrize('preprocess', ['cpu', 'gpu'])
def test_action_is_that_of_cpu_and_onnx_runtime(bundles, make, name, preprocess):
    bundle = bundles(name)
    host, policy = EnginePolicy(bundle), make(bundle, preprocess=preprocess)
    assert policy.execution.cuda_graph, policy.execution.reason
    for seed in range(3):
        observation = noisy_observation(bundle, stamp_ns=10**9 + seed, seed=seed)
        expected = host.run_pool(*host.pool_inputs(observation))
        assert_near(policy.run_pool(*policy.pool_inputs(observation)), expected)
        ahead = policy.infer(prepare(policy, observation)).actions
        assert ahead.tobytes() == policy.infer(observation).actions.tobytes()


def test_graph_gives_what_single_enqueues_give(bundles, make):
    bundle = bundles('sample')
    whole, single = make(bundle), make(bundle, cuda_graph=False)
    assert whole.execution.num_kernels > 0
    assert not single.execution.cuda_graph
    for seed in range(5):
        observation = noisy_observation(bundle, stamp_ns=seed, seed=seed)
        chunk = single.infer(observation)
        np.testing.assert_allclose(
            whole.infer(observation).actions, chunk.actions, rtol=1e-4, atol=1e-5
        )
        assert all(chunk.stage_latencies_ns[stage.name] > 0 for stage in bundle.manifest.stages)


def test_pool_inputs_and_noise_are_those_of_the_cpu(bundles, make):
    bundle = bundles('ddpm')
    observation = noisy_observation(bundle)
    _, expected = EnginePolicy(bundle).pool_inputs(observation)
    _, noise = make(bundle).pool_inputs(observation)
    np.testing.assert_allclose(noise, expected, atol=DEVICE_LIMIT)


def test_bfloat16_tensors_go_from_stage_to_stage(tmp_path, make):
    policy = make(write_bfloat16_bundle(tmp_path))
    state = np.array([[[0.123, -0.5, 0.77]]], np.float32)
    found = policy.run_pool({'state': state}, np.zeros((1, 4, 3), np.float32))
    context = (2 * state).astype('bfloat16').astype(np.float32)
    np.testing.assert_allclose(found[0], np.repeat(context[0] / 2, 4, axis=0), rtol=1e-5)


def test_probe_passes(bundles, make):
    bundle = bundles('sample')
    assert check_probe(make(bundle), bundle).cosine > LIMIT.min_cosine


def test_policy_that_opens_the_gpu_itself_is_loaded_and_closed(engine, tmp_path):
    settings = EngineSettings(plan_folder=tmp_path)
    if engine == 'tensorrt':
        build_plans(load_bundle(sample_bundle_path()), tmp_path)
    for _ in range(2):
        policy = load_policy(
            sample_bundle_path(), engine=engine, preprocess='gpu', settings=settings
        )
        policy.warmup()
        policy.close()
        policy.close()


def test_memory_is_flat(bundles, make, device):
    bundle = bundles('sample')
    policy = make(bundle)
    observation = noisy_observation(bundle)

    def run(count):
        for index in range(count):
            stamped = dataclasses.replace(observation, stamp_ns=index)
            policy.infer(prepare(policy, stamped))

    run(20)
    with device.current():
        before = device.free_bytes()
    run(NUM_FRAMES)
    with device.current():
        assert device.free_bytes() == before


def test_cameras_prepare_while_the_policy_infers(bundles, make):
    bundle = bundles('pair')
    policy = make(bundle, slots=60)
    observations = [noisy_observation(bundle, seed=seed) for seed in range(10)]
    expected = [policy.infer(observation).actions.tobytes() for observation in observations]
    prepared = [{} for _ in observations]

    def work(name):
        for observation, images in zip(observations, prepared, strict=True):
            images[name] = tuple(policy.prepare(frame) for frame in observation.images[name])

    threads = [threading.Thread(target=work, args=(name,)) for name in observations[0].images]
    for thread in threads:
        thread.start()
    for _ in range(5):
        for observation, wanted in zip(observations, expected, strict=True):
            assert policy.infer(observation).actions.tobytes() == wanted
    for thread in threads:
        thread.join()
    for observation, images, wanted in zip(observations, prepared, expected, strict=True):
        chunk = policy.infer(dataclasses.replace(observation, images=images))
        assert chunk.actions.tobytes() == wanted


@pytest.mark.parametrize(('jpeg', 'limit'), [('cpu', 1e-4), ('nvjpeg', 2e-2)])
def test_jpeg_is_decoded_on_either_side(bundles, make, jpeg, limit):
    bundle = bundles('pair')
    policy = make(bundle, jpeg=jpeg)
    observation = noisy_observation(bundle)
    rows = np.linspace(0, 255, 480)[:, None, None]
    picture = np.broadcast_to(rows, (480, 640, 3)).astype(np.uint8)
    data = cv2.imencode('.jpg', picture)[1].reshape(-1)
    images = {
        name: tuple(Frame(name, frame.stamp_ns, 'jpeg', 0, 0, 0, data) for frame in frames)
        for name, frames in observation.images.items()
    }
    observation = dataclasses.replace(observation, images=images)
    expected = EnginePolicy(bundle).infer(observation).actions
    found = policy.infer(prepare(policy, observation)).actions
    np.testing.assert_allclose(found, expected, atol=limit)
