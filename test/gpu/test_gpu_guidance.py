# SPDX-License-Identifier: Apache-2.0
"""Guidance on the device against guidance on the host: the same bits."""

from contextlib import ExitStack

import numpy as np
import pytest

from vla_policy_ros.bundle.chunk_prefix import PrefixTensors, prefix_specs
from vla_policy_ros.bundle.manifest import FlowMatching
from vla_policy_ros.core.errors import SpecMismatchError
from vla_policy_ros.gpu.guidance import DeviceGuidance
from vla_policy_ros.policies.guidance import Guidance

SHAPE = (1, 20, 17)


class Mirror:
    """Arrays and their twins on the device."""

    def __init__(self, device, undo):
        self.device, self.stream, self.undo = device, device.new_stream(), undo
        rng = np.random.default_rng(4)
        shapes = {'sample': (SHAPE, 'float32'), 'prediction': (SHAPE, 'float32')}
        shapes.update({spec.name: (spec.shape, spec.dtype) for spec in prefix_specs(*SHAPE[1:])})
        self.arrays = {
            key: rng.standard_normal(shape).astype(dtype) for key, (shape, dtype) in shapes.items()
        }
        self.tensors = {}
        for key, (shape, dtype) in shapes.items():
            self.tensors[key] = device.allocate(shape, dtype)
            undo.callback(self.tensors[key].free)
            self.put(self.tensors[key], self.arrays[key])

    def put(self, tensor, values):
        pinned = self.device.allocate_pinned(values.shape, values.dtype.name)
        pinned.array[:] = values
        self.device.upload(tensor, pinned, self.stream)
        self.stream.synchronize()
        pinned.free()

    def get(self, tensor):
        pinned = self.device.allocate_pinned(tensor.shape, tensor.dtype)
        self.device.download(pinned, tensor, self.stream)
        self.stream.synchronize()
        values = pinned.array.copy()
        pinned.free()
        return values


def parts(values):
    prefix = PrefixTensors(values['actions'], values['factors'], values['num_rows'])
    return {'sample': values['sample'], 'prediction': values['prediction'], 'prefix': prefix}


@pytest.mark.parametrize('noise_at', [0, 1])
def test_every_step_gives_the_bits_of_the_host(device, noise_at):
    loop = FlowMatching(steps=4, noise_at=noise_at, sample='x', prediction='p', timestep='t')
    with ExitStack() as undo:
        mirror = Mirror(device, undo)
        on_host = parts(mirror.arrays)
        host = Guidance(loop, on_host.pop('sample'), **on_host, max_weight=5.0)
        there = DeviceGuidance(device, loop, **parts(mirror.tensors), max_weight=5.0, undo=undo)
        rng = np.random.default_rng(5)
        for index in range(loop.steps):
            host.measure(index)
            there.measure(mirror.stream, index)
            np.testing.assert_array_equal(mirror.get(there.error), host.error)
            host.gradient[:] = rng.standard_normal(SHAPE)
            mirror.put(there.gradient, host.gradient)
            host.correct(index)
            there.correct(mirror.stream, index)
            found = mirror.get(mirror.tensors['prediction'])
            np.testing.assert_array_equal(found, mirror.arrays['prediction'])


def test_tensors_of_another_type_are_refused(device):
    loop = FlowMatching(steps=4, sample='x', prediction='p', timestep='t')
    with ExitStack() as undo:
        mirror = Mirror(device, undo)
        other = device.allocate(SHAPE, 'float16')
        undo.callback(other.free)
        with pytest.raises(SpecMismatchError, match='loop prediction'):
            DeviceGuidance(
                device,
                loop,
                **{**parts(mirror.tensors), 'prediction': other},
                max_weight=5.0,
                undo=undo,
            )
