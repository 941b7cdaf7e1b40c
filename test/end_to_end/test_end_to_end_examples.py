# SPDX-License-Identifier: Apache-2.0
"""The folders in examples/: their files fit together, and what their pages say moves a simulated robot within limits."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import TwistStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from support.ros_processes import PATIENCE_S
from trajectory_msgs.msg import JointTrajectory

from vla_policy_ros.bundle.bundle import load_bundle, policy_spec
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.deployment.config import check_deployment, load_deployment
from vla_policy_ros.deployment.executor import check_executor, load_executor
from vla_policy_ros.deployment.limits import load_limits
from vla_policy_ros.evaluation.report import load_run
from vla_policy_ros.execution.motion import commanded_columns
from vla_policy_ros.export.untrained import create_untrained_bundle

pytestmark = [pytest.mark.ros, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
NAMES = ('single_arm', 'bimanual', 'mobile_manipulator')
FENCE = re.compile(r'^```bash\n(.*?)^```', re.MULTILINE | re.DOTALL)
MESSAGES = {
    'forward_command': Float64MultiArray,
    'joint_trajectory': JointTrajectory,
    'joint_state': JointState,
    'twist': TwistStamped,
}


@pytest.fixture(params=NAMES)
def example(request, tmp_path):
    """A copy of an example in a folder of its own, where its commands may write."""
    return Path(
        shutil.copytree(ROOT / 'examples' / request.param, tmp_path / 'examples' / request.param)
    )


def commands_of(example):
    """Return the command lines of the example's page that start with vla-policy."""
    blocks = FENCE.findall((example / 'README.md').read_text(encoding='utf-8'))
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith('vla-policy ')]


def values_of(message, controller):
    """Return column to the values that a message has for it."""
    columns = controller.columns
    if isinstance(message, JointTrajectory):
        rows = np.array([point.positions for point in message.points])
        return {column: rows[:, index] for index, column in enumerate(columns)}
    if isinstance(message, TwistStamped):
        parts = [
            axis.split('_')
            for axis in ('linear_x', 'linear_y', 'angular_z')
            if axis in controller.axes
        ]
        values = [getattr(getattr(message.twist, part), axis) for part, axis in parts]
        return dict(zip(columns, values, strict=True))
    values = message.data if isinstance(message, Float64MultiArray) else message.position
    return dict(zip(columns, values, strict=True))


def test_the_files_of_an_example_fit_together(example):
    bundle = create_untrained_bundle(
        example.parent / 'bundle', open_dataset(example / 'recording.yaml'), image_size=32
    )
    spec = policy_spec(bundle.manifest, 'example')
    assert check_deployment(load_deployment(example / 'deployment.yaml'), spec) == []
    settings = load_executor(example / 'executor.yaml')
    assert check_executor(settings, spec.action.columns) == []
    limits = load_limits(settings.limits, commanded_columns(spec.action.columns))
    assert np.isfinite(limits.acceleration[:2]).all()
    # What moves in the recording may move: else the robot would stand at a limit.
    low, high, *_ = limits.orders()
    for episode in map(open_dataset(example / 'recording.yaml').episode, (0, 1)):
        assert (episode.action >= low - 1e-6).all()
        assert (episode.action <= high + 1e-6).all()


def test_every_key_of_the_controllers_is_shown_somewhere():
    kinds = set()
    for name in NAMES:
        document = yaml.safe_load((ROOT / 'examples' / name / 'executor.yaml').read_text())
        kinds |= {controller['kind'] for controller in document['controllers']}
    assert kinds == set(MESSAGES)


def test_the_commands_of_an_example_move_every_controller_within_limits(example, processes, graph):
    *before, replay = commands_of(example)
    assert [command[0] for command in (*before, replay)] == ['new', 'check', 'replay']
    folder = example.parents[1]
    start = ('env', '-C', str(folder), sys.executable, '-m', 'vla_policy_ros.tools.main')
    for command in before:
        processes.run(*start, *command)
    settings = load_executor(example / 'executor.yaml')
    heard = {
        one.name: graph.collect(MESSAGES[one.kind], f'/{one.topic}')
        for one in settings.controllers
    }
    ended = processes.start(*start, *replay, '--domain', str(graph.node.context.get_domain_id()))
    graph.spin_until(lambda: not ended.is_running, 'the end of the replay', timeout_s=PATIENCE_S)
    assert ended.wait() == 0, ended.log
    run = folder / 'runs' / example.name
    check_messages(heard, settings, load_bundle(folder / 'bundles' / example.name))
    check_report(run)


def check_messages(heard, settings, bundle):
    """Every controller was told something, all of it within the range of its columns."""
    columns = commanded_columns(policy_spec(bundle.manifest, 'example').action.columns)
    limits = load_limits(settings.limits, columns)
    low, high, *_ = limits.orders()
    places = {column.name: index for index, column in enumerate(columns)}
    for controller in settings.controllers:
        messages = heard[controller.name]
        assert len(messages) > 50, f'{controller.name} heard {len(messages)} messages'
        for message in messages:
            for name, values in values_of(message, controller).items():
                assert np.min(values) >= low[places[name]] - 1e-9, name
                assert np.max(values) <= high[places[name]] + 1e-9, name


def check_report(run):
    """The run has passed, every column has moved, and the robot was where it was told to be."""
    finished = load_run(run)
    motion = finished.recordings.motion
    figures = finished.report.verdict.motion
    assert finished.report.passed
    assert figures.outside == {}
    assert set(figures.state_s) >= {'soft_start', 'tracking'}
    assert (np.ptp(motion.positions, axis=0) > 1e-3).all()
    assert figures.lag.mae < 0.01
    assert 'refused messages 0' in (run / 'log' / 'simulated_robot_node.log').read_text()
    assert json.loads((run / 'report.json').read_text())['verdict']['motion']['num_commands'] > 300
