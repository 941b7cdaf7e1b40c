# SPDX-License-Identifier: Apache-2.0
"""The command line, the real nodes in processes of their own, and real DDS between them."""

import json
import os
import subprocess
import sys

import pytest
from support.recordings import write_lerobot, write_patient_deployment

from vla_policy_ros.datasets.synthetic import SyntheticDataset
from vla_policy_ros.tools.arguments import bundle_path

pytestmark = [pytest.mark.ros, pytest.mark.slow]
ALL_ANSWERED = '{min_chunk_share: 1.0, max_refused: 0, max_missing: 0, max_sequence_gaps: 0}'


def vla_policy(*arguments, status=0):
    """Run the command line; return what it printed as JSON."""
    command = [sys.executable, '-m', 'vla_policy_ros.tools.main', *map(str, arguments), '--json']
    environment = {key: value for key, value in os.environ.items() if key != 'ROS_DOMAIN_ID'}
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert result.returncode == status, result.stdout[-3000:] + result.stderr[-3000:]
    return json.loads(result.stdout)


def replay(dataset, bundle, out, *arguments, episode=0, status=0):
    """Replay one episode to a policy that gives no sample up; return the timing part of the report."""
    config = write_patient_deployment(out.with_suffix('.yaml'), bundle_path(str(bundle)))
    given = ('--dataset', dataset, '--config', config, '--episode', episode, '--out', out)
    answer = vla_policy('replay', *given, *arguments, status=status)
    return answer['report']['verdict']['timing']


def assert_nothing_was_lost(timing, num_steps):
    """Every reference sample arrived and was answered with a chunk, and every chunk arrived."""
    counts = timing['counts']
    assert counts['reference_samples'] == num_steps
    assert timing['num_chunks'] == num_steps
    assert timing['sequence_gaps'] == 0
    assert counts['missing'] == 0
    assert not counts['refusals']
    assert not counts['drops']


def test_demo_passes_and_writes_every_report(tmp_path):
    out = tmp_path / 'demo'
    answer = vla_policy('demo', '--out', out)
    assert answer['passed']
    verdict = answer['report']['verdict']
    overall = verdict['comparison']['overall']['open_loop']['mae']
    assert overall < verdict['comparison']['hold_last']['mae']
    motion = verdict['motion']
    assert motion['outside'] == {}
    assert motion['state_s']['tracking'] > 3.0
    assert motion['smoothness']['max_boundary_jump'] < 0.01
    files = (
        'report.html',
        'report.xml',
        'report.json',
        'policy/chunks.npz',
        'motion/commands.npz',
    )
    for name in files:
        assert (out / name).stat().st_size > 100
    assert 'http://' not in (out / 'report.html').read_text().replace('http://www.w3.org', '')


def test_real_humanoid_recording_in_real_time_loses_nothing(gr00t_demo, tmp_path):
    bundle = tmp_path / 'bundle'
    vla_policy('new', bundle, '--dataset', gr00t_demo)
    timing = replay(gr00t_demo, bundle, tmp_path / 'run', '--tolerances', ALL_ANSWERED, episode=4)
    assert_nothing_was_lost(timing, 328)


def test_two_vga_cameras_at_30_hz_raw_lose_nothing(tmp_path):
    cameras = {'front': (480, 640), 'wrist': (480, 640)}
    dataset = tmp_path / 'dataset'
    write_lerobot(dataset, SyntheticDataset(num_steps=150, cameras=cameras))
    vla_policy('new', tmp_path / 'bundle', '--dataset', dataset)
    timing = replay(dataset, tmp_path / 'bundle', tmp_path / 'run', '--tolerances', ALL_ANSWERED)
    assert_nothing_was_lost(timing, 150)


def test_two_lockstep_runs_are_byte_identical(tmp_path):
    digests = set()
    for run in ('first', 'second'):
        replay('sample', 'sample', tmp_path / run, '--mode', 'lockstep', episode=1)
        digests.add((tmp_path / run / 'policy' / 'chunks.npz').read_bytes())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ('version', 'codec', 'joints', 'cameras'),
    [
        ('v2.0', 'h264', 2, {'top': (64, 96)}),
        ('v2.1', 'png', 7, {'left': (48, 64), 'right': (64, 48), 'wrist': (32, 32)}),
        ('v3.0', 'av1', 14, {'head': (120, 160), 'hand': (64, 64)}),
    ],
)
def test_any_lerobot_recording_goes_all_the_way(tmp_path, version, codec, joints, cameras):
    dataset = tmp_path / 'dataset'
    source = SyntheticDataset(num_episodes=2, num_steps=20, cameras=cameras, num_joints=joints)
    write_lerobot(dataset, source, version=version, codec=codec)
    assert not vla_policy('check', dataset)['faults']
    vla_policy('new', tmp_path / 'bundle', '--dataset', dataset)
    assert not vla_policy('check', tmp_path / 'bundle')['faults']
    timing = replay(
        dataset, tmp_path / 'bundle', tmp_path / 'run', '--mode', 'lockstep', episode=1
    )
    assert_nothing_was_lost(timing, 20)


def test_compressed_images_lose_nothing(tmp_path):
    dataset = tmp_path / 'dataset'
    write_lerobot(dataset, SyntheticDataset(num_steps=40, cameras={'front': (240, 320)}))
    vla_policy('new', tmp_path / 'bundle', '--dataset', dataset)
    run = tmp_path / 'run'
    timing = replay(dataset, tmp_path / 'bundle', run, '--transport', 'compressed')
    assert_nothing_was_lost(timing, 40)


def test_limits_that_are_not_kept_give_status_1(tmp_path):
    replay(
        'sample',
        'sample',
        tmp_path / 'run',
        '--mode',
        'lockstep',
        '--tolerances',
        '{max_mae: 0.0}',
        status=1,
    )
    assert 'failure' in (tmp_path / 'run' / 'report.xml').read_text()
