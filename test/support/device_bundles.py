# SPDX-License-Identifier: Apache-2.0
"""More small bundles: what `support.bundles` has not, and the device must take too."""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import TensorProto, helper
from support.bundles import (
    CAMERA,
    CAMERA_SIZE,
    HORIZON,
    direct_manifest,
    flow_manifest,
    save_model,
    write_direct_bundle,
    write_direct_files,
    write_flow_bundle,
    write_flow_files,
)

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.policies.inputs import example_observation
from vla_policy_ros.sample import sample_bundle_path

_SOURCE_SIZE = (24, 32)
PAIR = ('front', 'wrist')


def write_half_bundle(folder):
    """Write the direct bundle with a float16 image in HWC order."""
    write_direct_files(folder)
    ramp = np.arange(1, HORIZON + 1, dtype=np.float32).reshape(1, HORIZON, 1)
    nodes = [
        helper.make_node('Cast', ['image'], ['pixels'], to=TensorProto.FLOAT),
        helper.make_node('ReduceMean', ['pixels'], ['level'], keepdims=0),
        helper.make_node('Mul', ['level', 'ramp'], ['rising']),
        helper.make_node('Add', ['state', 'rising'], ['action']),
    ]
    inputs = [
        ('image', 'FLOAT16', [1, 1, CAMERA_SIZE, CAMERA_SIZE, 3]),
        ('state', 'FLOAT', [1, 1, 3]),
    ]
    outputs = [('action', 'FLOAT', [1, HORIZON, 3])]
    save_model(folder / 'network.onnx', nodes, inputs, outputs, {'ramp': ramp})
    manifest = direct_manifest()
    manifest['cameras'][0].update(dtype='float16', layout='hwc', mean=(0.1, 0.2, 0.3))
    return write_bundle(folder, manifest)


def write_pair_bundle(folder):
    """Write a bundle of two cameras with two images each; the second camera counts twice."""
    write_direct_files(folder)
    shape = [1, 6, CAMERA_SIZE, CAMERA_SIZE]
    ramp = np.arange(1, HORIZON + 1, dtype=np.float32).reshape(1, HORIZON, 1)
    weights = np.arange(1, 13, dtype=np.float32).reshape(1, 12, 1, 1) / 78
    nodes = [
        helper.make_node('Concat', list(PAIR), ['both'], axis=1),
        helper.make_node('Mul', ['both', 'weights'], ['weighted']),
        helper.make_node('ReduceMean', ['weighted'], ['level'], keepdims=0),
        helper.make_node('Mul', ['level', 'ramp'], ['rising']),
        helper.make_node('Add', ['state', 'rising'], ['action']),
    ]
    inputs = [*((name, 'FLOAT', shape) for name in PAIR), ('state', 'FLOAT', [1, 1, 3])]
    outputs = [('action', 'FLOAT', [1, HORIZON, 3])]
    save_model(folder / 'network.onnx', nodes, inputs, outputs, {'ramp': ramp, 'weights': weights})
    manifest = direct_manifest(history=2)
    (camera,) = manifest['cameras']
    assert camera['name'] == CAMERA
    manifest['cameras'] = [{**camera, 'name': name, 'tensor': name} for name in PAIR]
    manifest['stages'][0]['inputs'] = {name: name for name in (*PAIR, 'state')}
    return write_bundle(folder, manifest)


def write_diffusion_bundle(folder, kind):
    """Write the flow bundle with a DDIM or DDPM loop."""
    return write_flow_bundle(folder, kind=kind, timestep_dtype='float32', steps=5, seed=3)


def write_bfloat16_bundle(folder):
    """Write a flow bundle whose context is bfloat16; its velocity leads from the sample straight to the context."""
    write_flow_files(folder)
    context = ('context', 'BFLOAT16', [1, 1, 3])
    sample = ('sample', 'FLOAT', [1, HORIZON, 3])
    save_model(
        folder / 'encoder.onnx',
        [
            helper.make_node('Mul', ['state', 'gain'], ['wide']),
            helper.make_node('Cast', ['wide'], ['context'], to=TensorProto.BFLOAT16),
        ],
        [('state', 'FLOAT', [1, 1, 3]), ('gain', 'FLOAT', [1])],
        [context],
    )
    save_model(
        folder / 'velocity.onnx',
        [
            helper.make_node('Cast', ['context'], ['wide'], to=TensorProto.FLOAT),
            helper.make_node('Sub', ['wide', 'sample'], ['pull']),
            helper.make_node('Mul', ['time', 'none'], ['zero']),
            helper.make_node('Add', ['pull', 'zero'], ['velocity']),
        ],
        [sample, ('time', 'FLOAT', [1]), context],
        [('velocity', 'FLOAT', [1, HORIZON, 3])],
        {'none': np.zeros(1, np.float32)},
    )
    return write_bundle(folder, flow_manifest(steps=1))


def noisy_observation(bundle, *, stamp_ns=1_000_000_000, seed=0):
    """Return an observation of coloured noise, which shows every mistake of place and order."""
    random = np.random.default_rng(seed)
    base = example_observation(bundle)
    images = {
        name: tuple(
            Frame.from_rgb(
                name,
                stamp_ns + index,
                random.integers(0, 256, (*_size(bundle, name), 3), np.uint8),
            )
            for index, _ in enumerate(frames)
        )
        for name, frames in base.images.items()
    }
    state = random.uniform(-0.9, 0.9, base.state.shape).astype(np.float32)
    instruction = dataclasses.replace(base.instruction, text='pick the cube')
    return dataclasses.replace(
        base, images=images, state=state, stamp_ns=stamp_ns, instruction=instruction
    )


def _size(bundle, name):
    camera = next(c for c in bundle.manifest.cameras if c.name == name)
    return tuple(max(size, edge) for size, edge in zip(_SOURCE_SIZE, camera.size, strict=True))


BUNDLES = {
    'direct': lambda folder: write_direct_bundle(folder, words=True, history=2),
    'half': write_half_bundle,
    'pair': write_pair_bundle,
    'flow': write_flow_bundle,
    'ddim': lambda folder: write_diffusion_bundle(folder, 'ddim'),
    'ddpm': lambda folder: write_diffusion_bundle(folder, 'ddpm'),
    'sample': lambda _: load_bundle(sample_bundle_path()),
}
"""Name to what writes the bundle into a folder: one of every kind."""
