# SPDX-License-Identifier: Apache-2.0
"""Real-time chunking through real nodes: what a robot would get on the topic."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from support.recordings import write_patient_deployment

from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.sample import sample_bundle_path

pytestmark = [pytest.mark.ros, pytest.mark.slow]


def test_every_chunk_on_the_topic_begins_with_the_one_before(tmp_path):
    config = write_patient_deployment(tmp_path / 'robot.yaml', sample_bundle_path())
    document = yaml.safe_load(config.read_text())
    document['policy']['rtc'] = {'kind': 'blend', 'frozen_steps': 1}
    config.write_text(yaml.safe_dump(document))
    out = tmp_path / 'run'
    command = [sys.executable, '-m', 'vla_policy_ros.tools.main', 'replay']
    options = ['--dataset', 'sample', '--config', config, '--episode', '9', '--mode', 'lockstep']
    result = subprocess.run(
        [*command, *map(str, options), '--out', str(out)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    chunks = ChunkRecording.load(out / 'policy')
    actions = chunks.actions
    assert len(actions) > 30
    assert set(np.diff(chunks.observation_stamps_ns) // 10**6) == {66}  # a step
    assert actions[1:, 0].tobytes() == actions[:-1, 1].tobytes()
    assert (actions[1:, 1:-1] != actions[:-1, 2:]).any()
