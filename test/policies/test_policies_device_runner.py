# SPDX-License-Identifier: Apache-2.0
"""The whole way on a device, run on the host: kernels by g++, networks by ONNX Runtime, streams and graphs by HostDevice."""

import dataclasses
import logging
import threading

import numpy as np
import pytest
from contracts.policy_contract import PolicyContract
from support.bundles import (
    CAMERA,
    make_frame,
    make_observation,
)
from support.device_bundles import (
    BUNDLES,
    noisy_observation,
    write_bfloat16_bundle,
)
from support.device_engines import DeviceEngines, ReferenceNetwork
from support.host_device import HostDevice
from support.lazy_device import LazyDevice

from vla_policy_ros.bundle.noise import DEVICE_LIMIT
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.errors import EngineError, GpuError, ImageError, StateError
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.policies.engine_policy import EnginePolicy

GROWTH = ('allocations', 'pinned_allocations')


@pytest.fixture(scope='module')
def bundles(tmp_path_factory):
    """Write each bundle once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = BUNDLES[name](tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(params=[HostDevice, LazyDevice], ids=['at once', 'as late as it may'])
def new_device(request):
    """Make a device whose streams work at once, or only when somebody waits for them."""
    return request.param


@pytest.fixture
def make(new_device):
    """Make policies on host devices; at the end all are closed, and a device fails where something is left open."""
    made = []

    def make(bundle, *, device=None, engines=None, **settings):
        device = device or new_device()
        engines = engines or DeviceEngines(device)
        options = {'preprocess': 'gpu', 'slots': 4, **settings}
        policy = EnginePolicy(
            bundle, engine='tensorrt', device=device, load=engines.load, **options
        )
        made.append((policy, engines, device))
        return policy

    yield make
    for policy, engines, device in made:
        policy.close()
        assert engines.num_open == 0
        device.close()


class TestDirectPolicy(PolicyContract):
    @pytest.fixture
    def policy(self, bundles, make):
        return make(bundles('direct'))

    @pytest.fixture
    def observation(self, bundles):
        return make_observation(bundles('direct'))


class TestFlowPolicy(PolicyContract):
    @pytest.fixture
    def policy(self, bundles, make):
        return make(bundles('flow'))

    @pytest.fixture
    def observation(self, bundles):
        return make_observation(bundles('flow'))


class TestImagesFromTheHost(PolicyContract):
    @pytest.fixture
    def policy(self, bundles, make):
        return make(bundles('direct'), preprocess='cpu', cuda_graph=False)

    @pytest.fixture
    def observation(self, bundles):
        return make_observation(bundles('direct'))


@pytest.mark.parametrize('name', BUNDLES)
@pytest.mark.parametrize('preprocess', ['cpu', 'gpu'])
@pytest.mark.parametrize('cuda_graph', [True, False])
def test_chunks_are_those_of_the_host(bundles, make, name, preprocess, cuda_graph):
    bundle = bundles(name)
    host = EnginePolicy(bundle)
    policy = make(bundle, preprocess=preprocess, cuda_graph=cuda_graph)
    assert policy.execution.cuda_graph == cuda_graph
    for index in range(3):
        observation = noisy_observation(bundle, stamp_ns=10**9 + index, seed=index)
        expected = host.infer(observation).actions
        found = policy.infer(observation).actions
        # The noise differs in its last bits, and preprocessing on the device by less than one level.
        np.testing.assert_allclose(found, expected, atol=20 * DEVICE_LIMIT, rtol=1e-5)


@pytest.mark.parametrize('name', BUNDLES)
def test_the_same_tensors_and_noise_give_the_same_action(bundles, make, name):
    bundle = bundles(name)
    host, policy = EnginePolicy(bundle), make(bundle)
    for seed in range(2):
        inputs, noise = host.pool_inputs(noisy_observation(bundle, seed=seed))
        expected = host.run_pool(inputs, noise)
        found = policy.run_pool(inputs, noise)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('preprocess', ['cpu', 'gpu'])
def test_pool_inputs_are_what_a_run_reads(bundles, make, preprocess):
    bundle = bundles('sample')
    host, policy = EnginePolicy(bundle), make(bundle, preprocess=preprocess)
    observation = noisy_observation(bundle)
    expected, expected_noise = host.pool_inputs(observation)
    found, noise = policy.pool_inputs(observation)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_allclose(found[name], values, atol=1e-5)
    if expected_noise is not None:
        np.testing.assert_allclose(noise, expected_noise, atol=DEVICE_LIMIT)
    chunk = policy.infer(observation)
    again = policy.run_pool(found, noise)
    assert policy.infer(observation).actions.tobytes() == chunk.actions.tobytes()
    assert np.isfinite(again).all()


def test_bfloat16_tensors_between_stages_stay_on_the_device(tmp_path, new_device, make):
    bundle = write_bfloat16_bundle(tmp_path)
    device = new_device()
    engines = DeviceEngines(device, network=ReferenceNetwork)
    policy = make(bundle, device=device, engines=engines)
    assert policy._runner._pool.tensors['context'].dtype == 'bfloat16'
    state = np.array([[[0.123, -0.5, 0.77]]], np.float32)
    noise = np.zeros((1, 4, 3), np.float32)
    found = policy.run_pool({'state': state}, noise)
    context = (2 * state).astype('bfloat16').astype(np.float32)
    # One bit of bfloat16: the evaluator of older versions of onnx cuts where newer ones round.
    np.testing.assert_allclose(found[0], np.repeat(context[0] / 2, 4, axis=0), rtol=2**-7)


def test_noise_on_the_device_is_that_of_the_host(bundles, make):
    bundle = bundles('ddpm')
    observation = make_observation(bundle, stamp_ns=-5)
    _, expected = EnginePolicy(bundle).pool_inputs(observation)
    _, found = make(bundle).pool_inputs(observation)
    assert found.shape == (5, 4, 3)
    np.testing.assert_allclose(found, expected, atol=DEVICE_LIMIT)


def test_probe_proves_the_captured_graph(new_device, bundles, make):
    bundle = bundles('sample')
    device = new_device()
    policy = make(bundle, device=device)
    before = device.counts['graph_launches']
    result = check_probe(policy, bundle)
    assert result.cosine > 0.999999
    assert device.counts['graph_launches'] == before + 1


@pytest.mark.parametrize('preprocess', ['cpu', 'gpu'])
@pytest.mark.parametrize('cuda_graph', [True, False])
def test_nothing_is_allocated_per_call(new_device, bundles, make, preprocess, cuda_graph):
    bundle, device = bundles('pair'), new_device()
    policy = make(bundle, device=device, preprocess=preprocess, cuda_graph=cuda_graph)
    observation = noisy_observation(bundle)

    def step(index):
        images = {
            name: tuple(policy.prepare(frame) for frame in frames)
            for name, frames in observation.images.items()
        }
        policy.infer(dataclasses.replace(observation, images=images, stamp_ns=index))

    for index in range(2):
        step(index)
    before = {kind: device.counts[kind] for kind in GROWTH}
    for index in range(300):
        step(index)
    assert {kind: device.counts[kind] for kind in GROWTH} == before


def test_a_chunk_takes_one_graph_launch_and_a_copy_per_image(new_device, bundles, make):
    bundle, device = bundles('flow'), new_device()
    policy = make(bundle, device=device)
    observation = noisy_observation(bundle)
    policy.infer(observation)
    before = device.counts.copy()
    policy.infer(observation)
    spent = device.counts - before
    assert spent['graph_launches'] == 1
    facts = policy.execution
    assert facts.num_nodes == spent['networks'] + spent['copies'] - 1 + spent['launches'] - 1
    assert spent['networks'] == 1 + 4 + 1  # the first and the last stage stand outside of the loop


def test_slots_come_back(bundles, make):
    bundle = bundles('pair')
    policy = make(bundle, slots=2)
    observation = noisy_observation(bundle)
    for _ in range(5):
        images = {
            name: tuple(policy.prepare(frame) for frame in frames)
            for name, frames in observation.images.items()
        }
        with pytest.raises(ImageError) as caught:
            policy.prepare(observation.images['front'][0])
        assert caught.value.code == 'no_free_slot'
        policy.infer(dataclasses.replace(observation, images=images))
        del images


def test_later_images_do_not_touch_a_slot_in_use(bundles, make):
    bundle = bundles('pair')
    policy = make(bundle)
    observation = noisy_observation(bundle, seed=1)
    expected = policy.infer(observation).actions
    images = {
        name: tuple(policy.prepare(frame) for frame in frames)
        for name, frames in observation.images.items()
    }
    for seed in range(2, 12):
        for frame in noisy_observation(bundle, seed=seed).images['front']:
            policy.prepare(frame)
    found = policy.infer(dataclasses.replace(observation, images=images)).actions
    assert found.tobytes() == expected.tobytes()


def test_failed_capture_is_told_and_does_no_harm(new_device, bundles, make, caplog):
    bundle, device = bundles('flow'), new_device(capture_fault='a synchronisation')
    with caplog.at_level(logging.WARNING, 'vla_policy_ros'):
        policy = make(bundle, device=device)
    (record,) = caplog.records
    assert 'a synchronisation' in record.getMessage()
    assert not policy.execution.cuda_graph
    assert 'without a CUDA graph' in str(policy.execution)
    assert 'a synchronisation' in policy.execution.reason
    observation = noisy_observation(bundle)
    expected = make(bundle).infer(observation).actions
    assert policy.infer(observation).actions.tobytes() == expected.tobytes()


def test_engine_that_cannot_be_captured_runs_without_a_graph(new_device, bundles, make, caplog):
    device = new_device()
    fault = EngineError(
        'network', got='a capture', expected='none', next_step='None.', code='not_capturable'
    )
    bundle = bundles('direct')
    with caplog.at_level(logging.WARNING, 'vla_policy_ros'):
        policy = make(bundle, device=device, engines=DeviceEngines(device, fault=fault))
    assert 'got a capture' in policy.execution.reason
    assert not policy.execution.cuda_graph
    expected = EnginePolicy(bundle).infer(make_observation(bundle)).actions
    np.testing.assert_allclose(policy.infer(make_observation(bundle)).actions, expected, rtol=1e-5)


def test_graph_is_told_with_its_size(bundles, make):
    facts = make(bundles('flow')).execution
    assert facts.cuda_graph
    assert facts.num_nodes > facts.num_kernels >= 5  # begin, and four updates
    assert str(facts.num_kernels) in str(facts)
    assert HostDevice.name in str(facts)


def test_latencies_are_the_stages_or_one_graph(bundles, make):
    bundle = bundles('flow')
    observation = noisy_observation(bundle)
    one = make(bundle).infer(observation).stage_latencies_ns
    assert list(one) == ['preprocess', 'network', 'postprocess']
    each = make(bundle, cuda_graph=False).infer(observation).stage_latencies_ns
    assert list(each) == ['preprocess', 'encoder', 'velocity', 'decoder', 'postprocess']
    assert each['velocity'] == 4 * each['encoder'] > 0  # HostDevice counts marks, not time


def test_networks_share_one_workspace_and_the_policys_stream(new_device, bundles, make):
    device = new_device()
    engines = DeviceEngines(device, workspace_bytes=1000)
    settings = EngineSettings(precision='fp16')
    make(bundles('flow'), device=device, engines=engines, settings=settings)
    assert len(engines.workspaces) == 3
    assert len({id(workspace) for workspace in engines.workspaces}) == 1
    assert engines.workspaces[0].num_bytes == 1000
    (stream,) = {settings.stream for settings in engines.settings}
    assert stream in device._streams
    assert {settings.precision for settings in engines.settings} == {'fp16'}


def test_no_workspace_is_made_where_none_is_needed(new_device, bundles, make):
    device = new_device()
    engines = DeviceEngines(device)
    make(bundles('flow'), device=device, engines=engines)
    assert engines.workspaces == [None] * 3


@pytest.mark.parametrize('index', range(3))
def test_failed_start_leaves_nothing_open(new_device, bundles, index):
    device = new_device()
    engines = DeviceEngines(device)

    def load(name, path, *, settings):
        if len(engines.settings) == index:
            raise EngineError(path.name, got='x', expected='y', next_step='Z.')
        return engines.load(name, path, settings=settings)

    with pytest.raises(EngineError):
        EnginePolicy(
            bundles('flow'), engine='tensorrt', preprocess='gpu', device=device, load=load
        )
    assert engines.num_open == 0
    device.close()


def test_too_little_memory_is_told_and_leaves_nothing_open(new_device, bundles):
    device = new_device(total_bytes=10_000)
    engines = DeviceEngines(device)
    with pytest.raises(GpuError) as caught:
        EnginePolicy(
            bundles('pair'), engine='tensorrt', preprocess='gpu', device=device, load=engines.load
        )
    assert caught.value.code == 'out_of_memory'
    device.close()


@pytest.mark.parametrize('preprocess', ['cpu', 'gpu'])
def test_images_of_another_policy_are_refused(bundles, make, preprocess):
    bundle = bundles('direct')
    policy, other = make(bundle), make(bundle, preprocess=preprocess)
    images = {CAMERA: (other.prepare(make_frame()), other.prepare(make_frame()))}
    with pytest.raises(ImageError) as caught:
        policy.infer(dataclasses.replace(make_observation(bundle), images=images))
    assert caught.value.code == 'foreign_frame'


def test_broken_observation_is_refused_and_the_next_one_is_right(bundles, make):
    bundle = bundles('direct')
    policy = make(bundle)
    observation = make_observation(bundle)
    expected = policy.infer(observation).actions
    broken = dataclasses.replace(observation, state=np.full_like(observation.state, np.nan))
    with pytest.raises(StateError):
        policy.infer(broken)
    assert policy.infer(observation).actions.tobytes() == expected.tobytes()


def test_calls_after_close_are_refused(bundles, make):
    bundle = bundles('direct')
    policy = make(bundle)
    held = policy.prepare(make_frame())
    policy.close()
    for call in (
        lambda: policy.infer(make_observation(bundle)),
        lambda: policy.prepare(make_frame()),
        lambda: policy.run_pool({}, None),
    ):
        with pytest.raises(EngineError) as caught:
            call()
        assert caught.value.code == 'closed'
    del held  # its slot goes back to a ring that nobody asks any more
    assert policy.execution.memory == 'device'


def test_integrated_gpu_reads_frames_without_a_copy(new_device, bundles, make):
    bundle = bundles('pair')
    observation = noisy_observation(bundle)
    spent, chunks = [], []
    for integrated in (False, True):
        device = new_device(integrated=integrated)
        policy = make(bundle, device=device)
        policy.infer(observation)
        before = device.counts.copy()
        chunks.append(policy.infer(observation).actions.tobytes())
        spent.append((device.counts - before)['copies'])
    assert chunks[0] == chunks[1]
    assert spent[0] - spent[1] == 4  # two cameras with two images


def test_prepare_from_many_threads_while_the_policy_infers(bundles, make):
    bundle = bundles('pair')
    policy = make(bundle, slots=60)
    observations = [noisy_observation(bundle, seed=seed) for seed in range(8)]
    expected = [policy.infer(observation).actions.tobytes() for observation in observations]
    prepared = [{name: [None, None] for name in o.images} for o in observations]

    def work(name):
        for observation, images in zip(observations, prepared, strict=True):
            for index, frame in enumerate(observation.images[name]):
                images[name][index] = policy.prepare(frame)

    found = []

    def infer():
        found.extend(policy.infer(observation).actions.tobytes() for observation in observations)

    threads = [threading.Thread(target=work, args=(name,)) for name in prepared[0]]
    threads.append(threading.Thread(target=infer))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    for observation, images, wanted in zip(observations, prepared, expected, strict=True):
        ahead = {name: tuple(pair) for name, pair in images.items()}
        chunk = policy.infer(dataclasses.replace(observation, images=ahead))
        assert chunk.actions.tobytes() == wanted


def test_gpu_that_the_policy_opens_is_closed_with_it(bundles, new_device, monkeypatch):
    opened = []

    def open_device(index):
        opened.append((index, new_device()))
        return opened[-1][1]

    monkeypatch.setattr('vla_policy_ros.gpu.device.open_device', open_device)

    def load(name, path, *, settings):
        return DeviceEngines(opened[-1][1]).load(name, path, settings=settings)

    policy = EnginePolicy(
        bundles('pair'), engine='tensorrt', preprocess='gpu', device=1, load=load
    )
    for _ in range(2):
        policy.close()

    def refuse(name, path, *, settings):
        raise EngineError(path.name, got='x', expected='y', next_step='Z.')

    with pytest.raises(EngineError):
        EnginePolicy(bundles('pair'), engine='tensorrt', preprocess='gpu', device=2, load=refuse)
    assert [(index, device.is_closed) for index, device in opened] == [(1, True), (2, True)]
