# SPDX-License-Identifier: Apache-2.0
"""The loop on the device against the loop on the host: the same bits, step by step."""

from contextlib import ExitStack

import numpy as np
import pytest
from support.host_device import HostDevice

from vla_policy_ros.bundle.graph import noise_draws
from vla_policy_ros.bundle.manifest import Diffusion, FlowMatching
from vla_policy_ros.core.errors import SpecMismatchError
from vla_policy_ros.gpu.denoise import DeviceDenoiser
from vla_policy_ros.gpu.device import open_device
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


@pytest.fixture(params=['host', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request):
    device = HostDevice() if request.param == 'host' else open_device()
    with device.current():
        yield device
    device.close()


class Pair:
    """One loop twice: on the device, and on the host."""

    def __init__(self, device, loop):
        self.device, self.stream, self.undo = device, device.new_stream(), ExitStack()
        rng = np.random.default_rng(3)
        self.predictions = rng.standard_normal((loop.steps, *SHAPE)).astype(np.float32)
        self.shapes = {
            'sample': (SHAPE, 'float32'),
            'prediction': (SHAPE, 'float32'),
            'timestep': ((1,), loop.timestep_dtype),
            'noise': ((noise_draws(loop), *SHAPE[1:]), 'float32'),
        }
        self.tensors, self.pinned = {}, {}
        for key, (shape, dtype) in self.shapes.items():
            self.tensors[key] = device.allocate(shape, dtype)
            self.pinned[key] = device.allocate_pinned(shape, dtype)
            self.undo.callback(self.tensors[key].free)
            self.undo.callback(self.pinned[key].free)
        arrays = {key: np.zeros(*shape) for key, shape in self.shapes.items() if key != 'noise'}
        self.arrays = arrays
        self.host = Denoiser(
            loop,
            arrays['sample'],
            prediction=arrays['prediction'],
            timestep=arrays['timestep'],
        )
        self.host.noise[:] = rng.standard_normal(self.host.noise.shape)
        self.put('noise', self.host.noise)
        self.subject = DeviceDenoiser(device, loop, **self.tensors)

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

        def build(loop):
            pair = Pair(device, loop)
            undo.callback(pair.undo.close)
            return pair

        yield build


@pytest.mark.parametrize('loop', LOOPS, ids=name)
def test_every_step_gives_the_bits_of_the_host(make, loop):
    pair = make(loop)
    assert pair.subject.num_steps == pair.host.num_steps == loop.steps
    pair.host.begin()
    pair.host.set_timestep(0)
    pair.subject.begin(pair.stream)
    pair.check()
    for index, prediction in enumerate(pair.predictions):
        pair.arrays['prediction'][:] = prediction
        pair.host.update(index)
        pair.host.set_timestep(min(index + 1, loop.steps - 1))
        pair.put('prediction', prediction)
        pair.subject.update(pair.stream, index)
        pair.check()


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
