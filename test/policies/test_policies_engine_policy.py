# SPDX-License-Identifier: Apache-2.0
import dataclasses
import threading
import tracemalloc

import numpy as np
import pytest
from contracts.policy_contract import PolicyContract
from support.bundles import (
    CAMERA,
    HORIZON,
    SPANS,
    make_frame,
    make_observation,
    write_direct_bundle,
    write_flow_bundle,
)

from vla_policy_ros.core.errors import (
    ConfigurationError,
    EngineError,
    ImageError,
    InstructionError,
    StateError,
)
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.inputs import example_observation

STATE = np.array([0.5, 1.0, -1.5], np.float32)
ROWS = np.arange(1, HORIZON + 1, dtype=np.float32)[:, None]


@pytest.fixture(scope='module')
def direct(tmp_path_factory):
    return write_direct_bundle(tmp_path_factory.mktemp('direct'), words=True, history=2)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    return write_direct_bundle(tmp_path_factory.mktemp('plain'))


@pytest.fixture(scope='module')
def flow(tmp_path_factory):
    return write_flow_bundle(tmp_path_factory.mktemp('flow'))


class TestDirectPolicy(PolicyContract):
    @pytest.fixture
    def policy(self, direct):
        policy = EnginePolicy(direct)
        yield policy
        policy.close()

    @pytest.fixture
    def observation(self, direct):
        return make_observation(direct)


class TestFlowPolicy(PolicyContract):
    @pytest.fixture
    def policy(self, flow):
        policy = EnginePolicy(flow)
        yield policy
        policy.close()

    @pytest.fixture
    def observation(self, flow):
        return make_observation(flow)


class TickingClock:
    """Every look takes one nanosecond."""

    def __init__(self):
        self._now_ns = 0

    def now_ns(self):
        self._now_ns += 1
        return self._now_ns


def test_chunk_is_what_the_network_computes(plain):
    actions = EnginePolicy(plain).infer(make_observation(plain, level=51)).actions
    np.testing.assert_allclose(actions, STATE + SPANS * ROWS * 0.2, rtol=1e-5)


def test_history_fills_its_entries_oldest_first(direct):
    policy = EnginePolicy(direct)
    observation = make_observation(direct)
    images = (make_frame(255), make_frame(0))
    inputs, noise = policy.pool_inputs(dataclasses.replace(observation, images={CAMERA: images}))
    assert inputs['image'].shape == (1, 6, 8, 8)
    assert (inputs['image'][0, :3] == 1).all()
    assert (inputs['image'][0, 3:] == 0).all()
    assert noise is None


def test_words_follow_the_observation_and_not_the_last_one(direct):
    policy = EnginePolicy(direct)
    for text, total in (('pick the cube', 9), ('cube', 4), ('pick the cube', 9)):
        actions = policy.infer(make_observation(direct, level=0, text=text)).actions
        np.testing.assert_allclose(
            actions, np.tile(STATE + SPANS * total, (HORIZON, 1)), rtol=1e-5
        )


def euler(noise, state, *, steps, noise_at=0):
    x, direction = noise.astype(np.float64), 1 if noise_at == 0 else -1
    for index in range(steps):
        time = noise_at + direction * index / steps
        x = x + direction / steps * (2 * state / SPANS - x + time)
    return SPANS * x / 2


@pytest.mark.parametrize('noise_at', [0, 1])
def test_flow_follows_the_closed_form(tmp_path, noise_at):
    bundle = write_flow_bundle(tmp_path, steps=5, noise_at=noise_at)
    policy = EnginePolicy(bundle)
    observation = make_observation(bundle)
    _, noise = policy.pool_inputs(observation)
    expected = euler(noise[0], STATE, steps=5, noise_at=noise_at)
    np.testing.assert_allclose(policy.infer(observation).actions, expected, atol=1e-5)


def test_noise_depends_on_seed_and_stamp_only(flow, tmp_path):
    other = write_flow_bundle(tmp_path, seed=1)
    first = EnginePolicy(flow).pool_inputs(make_observation(flow, stamp_ns=5))[1]
    policy = EnginePolicy(flow)
    for stamp_ns in (1, 2, 3):  # observations in between do not shift it
        policy.infer(make_observation(flow, stamp_ns=stamp_ns))
    np.testing.assert_array_equal(policy.pool_inputs(make_observation(flow, stamp_ns=5))[1], first)
    assert (policy.pool_inputs(make_observation(flow, stamp_ns=6))[1] != first).all()
    assert (EnginePolicy(other).pool_inputs(make_observation(other, stamp_ns=5))[1] != first).all()


def test_every_stamp_has_noise_of_its_own_in_the_chunk(flow):
    policy = EnginePolicy(flow)
    chunks = [policy.infer(make_observation(flow, stamp_ns=stamp_ns)) for stamp_ns in (1, 2)]
    assert (chunks[0].actions != chunks[1].actions).all()
    noise = policy.pool_inputs(make_observation(flow, stamp_ns=1))[1]
    np.testing.assert_allclose(chunks[0].actions, euler(noise[0], STATE, steps=4), atol=1e-5)


def test_injected_tensors_and_noise_are_what_runs(flow):
    policy = EnginePolicy(flow)
    zeros = np.zeros((1, HORIZON, 3), np.float32)
    state = (STATE / SPANS).reshape(1, 1, 3)
    output = policy.run_pool({'state': state}, zeros)
    np.testing.assert_allclose(output[0] * SPANS, euler(zeros[0], STATE, steps=4), atol=1e-5)
    assert output is not policy.run_pool({'state': state}, zeros)


def test_latencies_sum_the_steps_of_each_stage(flow):
    latencies = EnginePolicy(flow, clock=TickingClock()).infer(make_observation(flow))
    assert list(latencies.stage_latencies_ns.items()) == [
        ('preprocess', 1),
        ('encoder', 1),
        ('velocity', 4),
        ('decoder', 1),
        ('postprocess', 1),
    ]


def test_one_file_for_two_stages_is_loaded_once(flow):
    calls = []

    def counting(name, path, *, settings):
        calls.append(path.name)
        return load_engine(name, path, settings=settings)

    EnginePolicy(flow, load=counting)
    twice = flow.manifest.model_copy(
        update={
            'stages': (
                *flow.manifest.stages,
                flow.manifest.stages[2].model_copy(update={'name': 'again'}),
            )
        }
    )
    EnginePolicy(dataclasses.replace(flow, manifest=twice), load=counting)
    assert calls == ['encoder.onnx', 'velocity.onnx', 'decoder.onnx'] * 2


@pytest.mark.parametrize(
    ('images', 'code'),
    [
        ({}, 'missing_camera'),
        ({CAMERA: (make_frame(),)}, 'wrong_history'),
        ({CAMERA: (make_frame(), make_frame(camera='wrist'))}, 'foreign_frame'),
        ({CAMERA: (make_frame(),) * 2, 'wrist': (make_frame(),)}, 'unknown_camera'),
    ],
)
def test_wrong_images_are_named(direct, images, code):
    observation = dataclasses.replace(make_observation(direct), images=images)
    with pytest.raises(ImageError) as caught:
        EnginePolicy(direct).infer(observation)
    assert caught.value.code == code


def test_images_of_another_policy_are_refused(direct):
    one, other = EnginePolicy(direct), EnginePolicy(direct)
    images = {CAMERA: (other.prepare(make_frame()), other.prepare(make_frame()))}
    with pytest.raises(ImageError) as caught:
        one.infer(dataclasses.replace(make_observation(direct), images=images))
    assert caught.value.code == 'foreign_frame'


def test_unknown_camera_is_refused_when_prepared(direct):
    with pytest.raises(ImageError, match=r"'wrist'.*one of front") as caught:
        EnginePolicy(direct).prepare(make_frame(camera='wrist'))
    assert caught.value.code == 'unknown_camera'


@pytest.mark.parametrize(
    ('state', 'code'),
    [
        (np.zeros((1, 2), np.float32), 'wrong_shape'),
        (np.zeros(3, np.float32), 'wrong_shape'),
        (np.zeros((2, 3), np.float32), 'wrong_shape'),
        (np.array([[0, np.nan, 0]], np.float32), 'not_finite'),
        (np.array([[0, np.inf, 0]], np.float32), 'not_finite'),
    ],
)
def test_wrong_states_are_named(plain, state, code):
    observation = dataclasses.replace(make_observation(plain), state=state)
    with pytest.raises(StateError, match='elbow' if code == 'not_finite' else 'shape') as caught:
        EnginePolicy(plain).infer(observation)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ('text', 'code'),
    [('', 'empty_instruction'), ('  ', 'empty_instruction'), ('a ' * 7, 'instruction_too_long')],
)
def test_wrong_words_are_named(direct, text, code):
    policy = EnginePolicy(direct)
    with pytest.raises(InstructionError) as caught:
        policy.infer(make_observation(direct, text=text))
    assert caught.value.code == code
    policy.infer(make_observation(direct, text='cube'))  # and it goes on


def test_calls_after_close_are_refused(plain):
    policy = EnginePolicy(plain)
    observation = make_observation(plain)
    policy.close()
    for call in (
        lambda: policy.infer(observation),
        lambda: policy.prepare(make_frame()),
        policy.warmup,
        lambda: policy.run_pool({}, None),
    ):
        with pytest.raises(EngineError, match=policy.spec.policy_id) as caught:
            call()
        assert caught.value.code == 'closed'


@pytest.mark.parametrize(
    ('settings', 'code', 'told'),
    [
        ({'engine': 'warp'}, 'unknown_engine', 'one of onnxruntime'),
        ({'preprocess': 'warp'}, 'unknown_preprocess', 'one of cpu, gpu'),
        ({'jpeg': 'warp'}, 'unknown_jpeg', 'one of cpu, nvjpeg'),
        ({'preprocess': 'gpu'}, 'needs_device_engine', 'onnxruntime_cuda, onnxruntime_tensorrt'),
        ({'engine': 'tensorrt', 'jpeg': 'nvjpeg'}, 'needs_gpu_preprocess', 'preprocess: gpu'),
    ],
)
def test_choices_that_do_not_exist_or_go_together_are_refused(plain, settings, code, told):
    with pytest.raises(ConfigurationError, match=told) as caught:
        EnginePolicy(plain, **settings)
    assert caught.value.code == code
    if 'jpeg' in settings or 'preprocess' in settings:
        assert caught.value.where == f'policy.{list(settings)[-1]}'


def test_execution_on_the_host_is_told(plain):
    facts = EnginePolicy(plain).execution
    assert (facts.memory, facts.cuda_graph, str(facts)) == ('host', False, 'on the host')


def test_steady_state_allocates_nothing_of_an_images_size(plain):
    policy = EnginePolicy(plain)
    image = np.full((480, 640, 3), 80, np.uint8)
    observation = make_observation(plain)

    def step(index):
        frame = Frame.from_rgb(CAMERA, index, image)
        images = {CAMERA: (policy.prepare(frame),)}
        policy.infer(dataclasses.replace(observation, images=images, stamp_ns=index))

    for index in range(3):
        step(index)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for index in range(3, 20):
            step(index)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 100_000  # the image has 921,600 bytes
    assert after - before < 20_000


def test_prepare_from_many_threads_gives_every_frame_its_own_values(plain):
    policy = EnginePolicy(plain, slots=40)
    found = {}

    def work(start):
        for level in range(start, start + 10):
            found[level] = policy.prepare(make_frame(level))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for level, prepared in found.items():
        np.testing.assert_allclose(prepared.image, level / 255, rtol=1e-6)


@pytest.mark.parametrize(
    'geometry',
    [
        [{'kind': 'crop', 'top': 700, 'left': 900, 'height': 8, 'width': 8}],
        [
            {'kind': 'center_crop', 'fraction': 0.95},
            {'kind': 'crop', 'top': 3, 'left': 5, 'height': 8, 'width': 8},
        ],
        [{'kind': 'pad', 'height': 8, 'width': 8}],
        [
            {'kind': 'resize', 'height': 8, 'width': 1, 'to': 'shortest_edge'},
            {'kind': 'crop', 'top': 0, 'left': 0, 'height': 8, 'width': 8},
        ],
        [
            {'kind': 'resize', 'height': 8, 'width': 6, 'to': 'fit_inside'},
            {'kind': 'pad', 'height': 8, 'width': 8},
        ],
    ],
    ids=['crop', 'centre and crop', 'pad', 'shortest edge', 'letterbox'],
)
def test_warmup_finds_an_image_size_for_any_geometry(tmp_path, geometry):
    from support.bundles import direct_manifest, write_direct_files

    from vla_policy_ros.bundle.writer import write_bundle

    write_direct_files(tmp_path)
    manifest = direct_manifest()
    manifest['cameras'][0]['geometry'] = geometry
    policy = EnginePolicy(write_bundle(tmp_path, manifest))
    policy.warmup()
    assert example_observation(policy.bundle).state.shape == (1, 3)


def test_index_of_the_device_reaches_engines_that_open_it_themselves(direct):
    asked = []

    def load(name, onnx_path, *, settings):
        asked.append(settings.device_index)
        return load_engine(name, onnx_path, settings=settings)

    EnginePolicy(direct, device=2, load=load).close()
    assert asked == [2]
