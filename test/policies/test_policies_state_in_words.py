# SPDX-License-Identifier: Apache-2.0
"""A policy that reads its state as words, as π0.5 does: no network takes the state, its tokens hold it; host and device."""

from contextlib import closing

import numpy as np
import pytest
from onnx import TensorProto, helper
from support.bundles import (
    HORIZON,
    MAX_TOKENS,
    SPANS,
    WORDS,
    direct_manifest,
    make_observation,
    save_model,
    write_direct_files,
)
from support.device_engines import DeviceEngines
from support.host_device import HostDevice
from tokenizers import Tokenizer

from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.policies.engine_policy import EnginePolicy

BINS = 4
NUMBERS = {'-1': 5, '0': 6, '1': 7, '2': 8, '3': 9}
PICK, CUBE, PAD = WORDS['pick'], WORDS['cube'], WORDS['[PAD]']


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    """Every action is SPANS times the sum of the ids."""
    folder = tmp_path_factory.mktemp('told')
    write_direct_files(folder, words=True)
    path = str(folder / 'tokenizer.json')
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_tokens(list(NUMBERS))
    assert {word: tokenizer.token_to_id(word) for word in NUMBERS} == NUMBERS
    tokenizer.save(path)
    save_model(
        folder / 'network.onnx',
        [
            helper.make_node('Cast', ['tokens'], ['numbers'], to=TensorProto.FLOAT),
            helper.make_node('ReduceSum', ['numbers'], ['sum'], keepdims=1),
            helper.make_node('ReduceMean', ['image'], ['mean'], keepdims=1),
            helper.make_node('Mul', ['mean', 'none'], ['nothing']),
            helper.make_node('Squeeze', ['nothing', 'axis'], ['flat']),
            helper.make_node('Add', ['flat', 'sum'], ['told']),
            helper.make_node('Mul', ['told', 'ones'], ['action']),
        ],
        [('image', 'FLOAT', [1, 3, 8, 8]), ('tokens', 'INT64', [1, MAX_TOKENS])],
        [('action', 'FLOAT', [1, HORIZON, 3])],
        {
            'none': np.zeros(1, np.float32),
            'axis': np.array([0], np.int64),
            'ones': np.ones((1, HORIZON, 3), np.float32),
        },
    )
    manifest = direct_manifest(words=True)
    manifest['instruction'] |= {'template': '{instruction} {state}', 'state_bins': BINS}
    manifest['stages'][0]['inputs'] = {'image': 'image', 'tokens': 'tokens'}
    return write_bundle(folder, manifest)


@pytest.fixture(params=['host', 'device'])
def policy(request, bundle):
    if request.param == 'host':
        with closing(EnginePolicy(bundle)) as policy:
            yield policy
        return
    with closing(HostDevice()) as device:
        engines = DeviceEngines(device)
        with closing(
            EnginePolicy(bundle, engine='tensorrt', device=device, load=engines.load)
        ) as policy:
            yield policy


def test_tokens_follow_the_state_of_each_observation(policy, bundle):
    for shares, numbers in (
        ((-0.9, 0.1, 0.9), ('0', '2', '3')),
        ((-1.5, -0.1, 5.0), ('-1', '1', '3')),
        ((-0.9, 0.1, 0.9), ('0', '2', '3')),
    ):
        observation = make_observation(bundle, state=np.array(shares) * SPANS, text='pick cube')
        ids = [PICK, CUBE, *(NUMBERS[number] for number in numbers)]
        inputs, _ = policy.pool_inputs(observation)
        assert inputs['tokens'].tolist() == [[*ids, *[PAD] * (MAX_TOKENS - len(ids))]]
        actions = policy.infer(observation).actions
        np.testing.assert_allclose(actions, np.tile(sum(ids) * SPANS, (HORIZON, 1)), rtol=1e-6)
