# SPDX-License-Identifier: Apache-2.0
"""What goes into the sample policy and what comes out: the one description that training and bundle share."""

from __future__ import annotations

from typing import Any

from arm import JOINTS
from world import COLORS, PHRASES, STEP_NS

SEED = 7
TRAIN_EPISODES = 1000
HELD_OUT_START = 100_000
"""Number of the first episode that no policy was trained on; the ones before it are for training."""
HORIZON = 16
IMAGE_PX = 96
MAX_TOKENS = 8
TOKENIZER = 'tokenizer.json'
STATISTICS = 'statistics.json'
PROBE = 'probe.npz'


def describe(source_note: str) -> dict[str, Any]:
    """Return the bundle's manifest without the hashes of its files."""
    return {
        'schema_version': 1,
        'name': 'sample-pick',
        'family': 'flow-matching chunk policy',
        'source': {'license': 'Apache-2.0', 'note': source_note},
        'cameras': [_camera('front'), _camera('wrist')],
        'state': {'tensor': 'state', 'groups': _groups('state'), 'squeeze': True},
        'instruction': {
            'tokenizer': TOKENIZER,
            'tokens': 'tokens',
            'max_tokens': MAX_TOKENS,
            'cleaning': 'lower_no_punctuation',
        },
        'action': {
            'tensor': 'actions',
            'groups': _groups('action'),
            'horizon': HORIZON,
            'step_ns': STEP_NS,
        },
        'stages': [_encoder_stage(), _velocity_stage()],
        'loop': {
            'kind': 'flow_matching_euler',
            'steps': 4,
            'sample': 'actions',
            'prediction': 'velocity',
            'timestep': 'time',
        },
        'statistics': STATISTICS,
        'probe': PROBE,
    }


def vocabulary() -> tuple[str, ...]:
    """Return every word of the instructions, in alphabetical order."""
    texts = (phrase.format(color=color) for phrase in PHRASES for color in COLORS)
    return tuple(sorted({word for text in texts for word in text.split()}))


def _camera(name: str) -> dict[str, Any]:
    area = {'kind': 'resize', 'height': IMAGE_PX, 'width': IMAGE_PX}
    return {
        'name': name,
        'tensor': name,
        'geometry': [{**area, 'library': 'opencv', 'filter': 'area'}],
        'mean': [0.5, 0.5, 0.5],
        'std': [0.5, 0.5, 0.5],
    }


def _groups(prefix: str) -> list[dict[str, Any]]:
    arm = {'name': f'{prefix}.arm', 'names': list(JOINTS[:5]), 'units': ['rad']}
    gripper = {'name': f'{prefix}.gripper', 'names': [JOINTS[5]], 'units': ['1']}
    return [
        {**arm, 'kinds': ['linear'], 'normalization': 'min_max'},
        {**gripper, 'kinds': ['gripper'], 'normalization': 'min_max'},
    ]


def _encoder_stage() -> dict[str, Any]:
    inputs = ('front', 'wrist', 'state', 'tokens')
    return {
        'name': 'encoder',
        'onnx': 'encoder.onnx',
        'inputs': {name: name for name in inputs},
        'outputs': {'context': 'context'},
    }


def _velocity_stage() -> dict[str, Any]:
    inputs = ('actions', 'time', 'context')
    return {
        'name': 'velocity',
        'onnx': 'velocity.onnx',
        'inputs': {name: name for name in inputs},
        'outputs': {'velocity': 'velocity'},
        'in_loop': True,
    }
