# SPDX-License-Identifier: Apache-2.0
"""The same recorded messages through CPU and ONNX Runtime, and through GPU preprocessing and TensorRT: the same chunks."""

import numpy as np
import pytest
import yaml
from support.recordings import write_patient_deployment

from vla_policy_ros.bundle.limits import ACCURACY_LIMITS
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.sample import sample_bundle_path
from vla_policy_ros.tools.main import main

pytestmark = [pytest.mark.ros, pytest.mark.slow, pytest.mark.gpu, pytest.mark.tensorrt]
LIMIT = ACCURACY_LIMITS['fp32']


def replay(folder, **policy):
    """Replay an episode in lock-step to a policy that runs in one way; return the chunks it published."""
    config = write_patient_deployment(folder.with_suffix('.yaml'), sample_bundle_path())
    document = yaml.safe_load(config.read_text())
    document['policy'] |= policy
    config.write_text(yaml.safe_dump(document))
    arguments = f'replay --dataset sample --config {config} --episode 1 --mode lockstep'.split()
    assert main([*arguments, '--out', str(folder)]) == 0
    return list(ChunkRecording.load(folder / 'policy'))


def test_gpu_and_cpu_give_the_same_chunks_for_the_same_messages(tmp_path):
    plans = tmp_path / 'plans'
    assert main(['build', '--bundle', 'sample', '--plans', str(plans)]) == 0
    host = replay(tmp_path / 'host', engine='onnxruntime', preprocess='cpu')
    device = replay(
        tmp_path / 'device', engine='tensorrt', preprocess='gpu', plan_folder=str(plans)
    )
    assert len(host) == len(device) > 10
    for wanted, found in zip(host, device, strict=True):
        assert found.start_ns == wanted.start_ns
        assert found.observation_stamp_ns == wanted.observation_stamp_ns
        np.testing.assert_allclose(found.actions, wanted.actions, atol=LIMIT.max_error)
