# SPDX-License-Identifier: Apache-2.0
"""The loop on the device against the loop on the host: the same bits, step by step."""

from contextlib import ExitStack

import numpy as np
import pytest

from vla_policy_ros.bundle.chunk_prefix import PrefixTensors, prefix_specs, write_gains
from vla_policy_ros.bundle.graph import noise_draws
from vla_policy_ros.bundle.manifest import Diffusion, FlowMatching
from vla_policy_ros.core.errors import SpecMismatchError
from vla_policy_ros.gpu.denoise import DeviceDenoiser
from vla_policy_ros.policies.loops import Denoiser

NAMES = {'sample': 'x', 'prediction': 'p', 'timestep': 't'}
SHAPE = (1, 20, 17)
LOOPS = [
    FlowMatching(steps=4, **NAMES),
    FlowMatching(steps=10, noise_at=1, **NAMES),
    FlowMatching(steps=3, timestep_scale=1000, timestep_dtype='int64', **NAMES),
    Diffusion(kind='ddim', steps=10, **NAMES),
    Diffusion(kind='ddim', steps=5, prediction_type='sample', clip_sample=None, **NAMES),
    Diffusion(kind='ddim', steps=5, prediction_type='v_prediction', clip_sample=0.5, **NAMES),
    Diffusion(kind='ddpm', steps=10, timestep_dtype='float32', **NAMES),
    Diffusion(kind='ddpm', steps=4, prediction_type='sample', **NAMES),
]


def name(loop):
    return f'{loop.kind}-{loop.steps}'


class Pair:
    """One loop twice: on the device, and on the host."""

    def __init__(self, device, loop, *, has_prefix=False):
        self.device, self.stream, self.undo = device, device.new_stream(), ExitStack()
        rng = np.random.default_rng(3)
        self.predictions = rng.standard_normal((loop.steps, *SHAPE)).astype(np.float32)
        self.shapes = {
            'sample': (SHAPE, 'float32'),
            'prediction': (SHAPE, 'float32'),
            'timestep': ((1,), loop.timestep_dtype),
            'noise': ((noise_draws(loop), *SHAPE[1:]), 'float32'),
        }
        prefix = prefix_specs(*SHAPE[1:]) if has_prefix else ()
        self.shapes.update({spec.name: (spec.shape, spec.dtype) for spec in prefix})
        self.tensors, self.pinned = {}, {}
        for key, (shape, dtype) in self.shapes.items():
            self.tensors[key] = device.allocate(shape, dtype)
            self.pinned[key] = device.allocate_pinned(shape, dtype)
            self.undo.callback(self.tensors[key].free)
            self.undo.callback(self.pinned[key].free)
        arrays = {key: np.zeros(*shape) for key, shape in self.shapes.items() if key != 'noise'}
        self.arrays = arrays
        on_host = PrefixTensors(*(arrays[spec.name] for spec in prefix)) if prefix else None
        self.host = Denoiser(
            loop,
            arrays['sample'],
            prediction=arrays['prediction'],
            timestep=arrays['timestep'],
            prefix=on_host,
        )
        self.host.noise[:] = rng.standard_normal(self.host.noise.shape)
        self.put('noise', self.host.noise)
        names = {spec.name for spec in prefix}
        plain = {key: tensor for key, tensor in self.tensors.items() if key not in names}
        there = PrefixTensors(*(self.tensors[spec.name] for spec in prefix)) if prefix else None
        self.subject = DeviceDenoiser(device, loop, **plain, prefix=there)

    def put_prefix(self, *, num_rows, num_frozen):
        rows = np.random.default_rng(8).standard_normal(SHAPE[1:])
        self.arrays['actions'][:num_rows] = rows[:num_rows]
        self.arrays['num_rows'][0] = num_rows
        write_gains(
            self.arrays['factors'], num_rows=num_rows, num_frozen=num_frozen, ramp_rate=3.0
        )
        for key in ('actions', 'num_rows', 'factors'):
            self.put(key, self.arrays[key])

    def run(self):
        self.host.begin()
        self.host.set_timestep(0)
        self.subject.begin(self.stream)
        self.check()
        last = len(self.predictions) - 1
        for index, prediction in enumerate(self.predictions):
            self.arrays['prediction'][:] = prediction
            self.host.update(index)
            self.host.set_timestep(min(index + 1, last))
            self.put('prediction', prediction)
            self.subject.update(self.stream, index)
            self.check()
        return self.arrays['sample'][0].copy()

    def put(self, key, values):
        self.pinned[key].array[:] = values
        self.device.upload(self.tensors[key], self.pinned[key], self.stream)
        self.stream.synchronize()

    def get(self, key):
        self.device.download(self.pinned[key], self.tensors[key], self.stream)
        self.stream.synchronize()
        return self.pinned[key].array

    def check(self):
        for key in ('sample', 'timestep'):
            expected = self.arrays[key]
            np.testing.assert_array_equal(self.get(key).view(np.uint8), expected.view(np.uint8))


@pytest.fixture
def make(device):
    with ExitStack() as undo:

        def build(loop, **settings):
            pair = Pair(device, loop, **settings)
            undo.callback(pair.undo.close)
            return pair

        yield build


@pytest.mark.parametrize('loop', LOOPS, ids=name)
def test_every_step_gives_the_bits_of_the_host(make, loop):
    pair = make(loop)
    assert pair.subject.num_steps == pair.host.num_steps == loop.steps
    pair.run()


@pytest.mark.parametrize('loop', LOOPS[:3], ids=name)
@pytest.mark.parametrize(('num_rows', 'num_frozen'), [(0, 0), (1, 1), (7, 3), (20, 0), (20, 20)])
def test_a_prefix_gives_the_bits_of_the_host(make, loop, num_rows, num_frozen):
    pair = make(loop, has_prefix=True)
    pair.put_prefix(num_rows=num_rows, num_frozen=num_frozen)
    sample = pair.run()
    np.testing.assert_array_equal(sample[:num_frozen], pair.arrays['actions'][:num_frozen])
    assert (sample[num_frozen:] != pair.arrays['actions'][num_frozen:]).all()
    plain = make(loop).run()
    assert sample[num_rows:].tobytes() == plain[num_rows:].tobytes()


def test_one_graph_serves_every_prefix_and_none(make):
    loop = LOOPS[0]
    pair = make(loop, has_prefix=True)
    pair.predictions[:] = pair.predictions[0]

    def enqueue():
        pair.subject.begin(pair.stream)
        for index in range(loop.steps):
            pair.subject.update(pair.stream, index)

    graph = pair.device.capture(pair.stream, enqueue)
    results = []
    for num_rows, num_frozen in ((6, 2), (0, 0), (20, 5)):
        pair.put_prefix(num_rows=num_rows, num_frozen=num_frozen)
        expected = pair.run()
        pair.put('prediction', pair.predictions[0])
        graph.launch(pair.stream)
        np.testing.assert_array_equal(pair.get('sample')[0], expected)
        results.append(expected.tobytes())
    assert len(set(results)) == 3
    graph.close()


def test_a_broken_prediction_is_not_hidden_by_the_clip(make):
    pair = make(Diffusion(kind='ddim', steps=2, **NAMES))
    pair.predictions[0][..., 0], pair.predictions[0][..., 1] = np.nan, np.inf
    pair.arrays['prediction'][:] = pair.predictions[0]
    pair.put('prediction', pair.predictions[0])
    pair.host.begin()
    pair.subject.begin(pair.stream)
    with np.errstate(invalid='ignore'):
        pair.host.update(0)
    pair.subject.update(pair.stream, 0)
    sample = pair.get('sample')
    np.testing.assert_array_equal(sample, pair.arrays['sample'])
    assert np.isnan(sample[..., 0]).all()


def test_the_whole_loop_is_one_graph(make):
    loop = LOOPS[3]
    pair = make(loop)
    pair.put('prediction', 0.25)
    pair.arrays['prediction'][:] = 0.25

    def enqueue():
        pair.subject.begin(pair.stream)
        for index in range(loop.steps):
            pair.subject.update(pair.stream, index)

    graph = pair.device.capture(pair.stream, enqueue)
    assert graph.num_kernels == loop.steps + 1
    for turn in range(2):
        pair.host.noise[:] = pair.host.noise[:] + turn
        pair.put('noise', pair.host.noise)
        graph.launch(pair.stream)
        pair.host.begin()
        for index in range(loop.steps):
            pair.host.update(index)
        np.testing.assert_array_equal(pair.get('sample'), pair.arrays['sample'])
    graph.close()


@pytest.mark.parametrize(
    ('key', 'shape', 'dtype'),
    [
        ('sample', SHAPE, 'float16'),
        ('prediction', SHAPE, 'bfloat16'),
        ('prediction', (1, 20, 16), 'float32'),
        ('timestep', (1,), 'int32'),
        ('timestep', (2,), 'float32'),
        ('noise', (2, 20, 17), 'float32'),
    ],
)
def test_other_tensors_are_refused(device, make, key, shape, dtype):
    pair = make(LOOPS[0])
    other = device.allocate(shape, dtype)
    with pytest.raises(SpecMismatchError, match='noise' if key == 'noise' else 'loop'):
        DeviceDenoiser(device, LOOPS[0], **{**pair.tensors, key: other})
    other.free()
