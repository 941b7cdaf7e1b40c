# SPDX-License-Identifier: Apache-2.0
"""Real-time chunking on a real GPU, with PyTorch: the chunks of the CPU, in one CUDA graph where there is no gradient."""

import itertools

import numpy as np
import pytest
from support.bundles import write_flow_bundle
from support.rtc_bundles import infer_all, observe, write_prefix_bundle, write_relative_bundle

from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.policies.engine_policy import EnginePolicy

pytestmark = pytest.mark.gpu

BLEND = RtcSettings(frozen_steps=1)
CASES = {
    'blend': (lambda folder: write_flow_bundle(folder, seed=5), BLEND),
    'relative': (write_relative_bundle, RtcSettings(frozen_steps=3)),
    'inputs': (write_prefix_bundle, RtcSettings(kind='inputs', frozen_steps=1)),
}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('cuda_graph', [True, False])
def test_chunks_are_those_of_the_host(tmp_path, name, cuda_graph):
    write, rtc = CASES[name]
    bundle = write(tmp_path)
    policy = EnginePolicy(bundle, engine='torch', cuda_graph=cuda_graph, rtc=rtc)
    assert policy.execution.cuda_graph == cuda_graph
    host = EnginePolicy(bundle, rtc=rtc)
    stream = [observe(bundle, steps, state=(steps / 9, 0.1, 0.2)) for steps in range(6)]
    found = infer_all(policy, stream)
    np.testing.assert_allclose(found, infer_all(host, stream), rtol=1e-5, atol=5e-5)
    if name != 'relative':
        for earlier, later in itertools.pairwise(found):
            assert later[0].tobytes() == earlier[1].tobytes()
    policy.close()
    host.close()


def test_guided_chunks_are_those_of_the_host(tmp_path):
    bundle = write_flow_bundle(tmp_path, seed=5)
    rtc = RtcSettings(kind='guided', frozen_steps=1)
    policy = EnginePolicy(bundle, engine='torch', rtc=rtc)
    assert not policy.execution.cuda_graph
    host = EnginePolicy(bundle, engine='torch_cpu', rtc=rtc)
    stream = [observe(bundle, steps) for steps in range(4)]
    found, expected = infer_all(policy, stream), infer_all(host, stream)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-5)
    policy.close()
    host.close()
