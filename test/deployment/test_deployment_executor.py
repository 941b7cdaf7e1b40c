# SPDX-License-Identifier: Apache-2.0
import pytest
import yaml

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.specs import Column, ColumnKind, Representation
from vla_policy_ros.deployment import controllers
from vla_policy_ros.deployment.executor import (
    ExecutorSettings,
    check_executor,
    find_executor_faults,
    load_executor,
)
from vla_policy_ros.execution.watchdogs import Action, Watch, WatchRule

ARM = {'name': 'arm', 'kind': 'forward_command', 'topic': 'arm/commands', 'columns': ['a', 'b']}
MINIMAL = {'controllers': [ARM]}
COLUMNS = (Column('a', 'rad', ColumnKind.ANGLE), Column('b', 'm'))
MOBILE = (
    *COLUMNS,
    Column('hand', '', ColumnKind.GRIPPER),
    Column('vx', 'm/s', ColumnKind.TWIST),
    Column('wz', 'rad/s', ColumnKind.TWIST),
)
HAND = {'name': 'hand', 'kind': 'gripper', 'topic': 'hand/gripper_cmd', 'column': 'hand'}
BASE = {
    'name': 'base',
    'kind': 'twist',
    'topic': 'cmd_vel',
    'frame_id': 'base_link',
    'axes': {'angular_z': 'wz', 'linear_x': 'vx'},
}
POSE = {
    'name': 'tool',
    'kind': 'pose',
    'topic': 'target',
    'frame_id': 'base_link',
    'position': ['x', 'y', 'z'],
    'orientation': ['qx', 'qy', 'qz', 'qw'],
}
POSE_COLUMNS = tuple(Column(name, 'm') for name in 'xyz') + tuple(
    Column(f'q{name}', '', ColumnKind.QUATERNION) for name in 'xyzw'
)


def write(folder, document):
    path = folder / 'executor.yaml'
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def settings(*controllers, **changes):
    return ExecutorSettings.model_validate({'controllers': list(controllers) or [ARM], **changes})


def codes(faults):
    return [fault.code for fault in faults]


def test_a_file_needs_no_more_than_controllers(tmp_path):
    loaded = load_executor(write(tmp_path, MINIMAL))
    assert loaded.rate_hz == 200
    assert loaded.period_ns == 5_000_000
    assert loaded.armed_at_start is False
    assert loaded.dry_run is False
    assert loaded.controllers[0].joints == ('a', 'b')
    assert check_executor(loaded, COLUMNS) == []


def test_files_lie_relative_to_the_file(tmp_path):
    limits = {'urdf_file': 'robot.urdf', 'file': '../limits.yaml'}
    loaded = load_executor(write(tmp_path, {**MINIMAL, 'limits': limits}))
    assert loaded.limits.urdf_file == str((tmp_path / 'robot.urdf').resolve())
    assert loaded.limits.file == str((tmp_path.parent / 'limits.yaml').resolve())
    assert load_executor(write(tmp_path, MINIMAL)).limits.file == ''


def controller(**changes):
    return {'controllers': [{**ARM, **changes}]}


@pytest.mark.parametrize(
    ('change', 'place', 'code'),
    [
        ({'rate_hz': 49}, 'rate_hz', 'bad_value'),
        ({'rate_hz': 1001}, 'rate_hz', 'bad_value'),
        ({'rate_hz': float('nan')}, 'rate_hz', 'bad_value'),
        ({'chunk_topic': 'a b'}, 'chunk_topic', 'bad_value'),
        ({'strategy': {'name': 'newest'}}, 'strategy', 'bad_value'),
        ({'strategy': {'name': 'latest', 'parameters': {'a': 1}}}, 'strategy', 'bad_value'),
        ({'strategy': {'parameter': {}}}, 'strategy.parameter', 'unknown_key'),
        ({'limits': {'mode': 'ignore'}}, 'limits.mode', 'bad_value'),
        ({'first_action': {'tolerance': 0}}, 'first_action.tolerance', 'bad_value'),
        ({'first_action': {'columns': {'a': -1}}}, 'first_action.columns.a', 'bad_value'),
        (
            {'first_action': {'soft_start_share': 1.5}},
            'first_action.soft_start_share',
            'bad_value',
        ),
        ({'measured': {'topic': ''}}, '(top level)', 'bad_value'),
        ({'starvation': 'report'}, 'starvation', 'bad_value'),
        ({'watchdogs': {'chunk': {'timeout_ms': -1}}}, 'watchdogs.chunk.timeout_ms', 'bad_value'),
        ({'watchdogs': {'chunk': {}}}, 'watchdogs.chunk.timeout_ms', 'missing_key'),
        ({'watchdogs': {'policy': {}}}, 'watchdogs.policy', 'unknown_key'),
        ({'time_jump': {'threshold_ms': 0}}, 'time_jump.threshold_ms', 'bad_value'),
        ({'prompt_change': 'blend'}, 'prompt_change', 'bad_value'),
        ({'refill': {'share': 0}}, 'refill.share', 'bad_value'),
        ({'grippers': {'hand': {'closed_above': 0.5}}}, 'grippers.hand', 'bad_value'),
        ({'controllers': []}, 'controllers', 'bad_value'),
        ({'controllers': [ARM, ARM]}, '(top level)', 'bad_value'),
        (controller(kind='effort'), 'controllers[0]', 'bad_value'),
        (controller(columns=[]), 'controllers[0].forward_command.columns', 'bad_value'),
        (controller(lead_ms=1), 'controllers[0].forward_command.lead_ms', 'unknown_key'),
        (
            controller(kind='joint_trajectory', lead_ms=20),
            'controllers[0].joint_trajectory',
            'bad_value',
        ),
        (
            controller(kind='joint_trajectory', blend_ms=200),
            'controllers[0].joint_trajectory.blend_ms',
            'unknown_key',
        ),
        (
            {'rate_hz': 50, **controller(kind='joint_trajectory', lead_ms=39)},
            '(top level)',
            'bad_value',
        ),
        (controller(rename={'c': 'd'}), 'controllers[0].forward_command', 'bad_value'),
        ({'controllers': [{**BASE, 'axes': {}}]}, 'controllers[0].twist.axes', 'bad_value'),
        (
            {'controllers': [{**BASE, 'frame_id': ''}]},
            'controllers[0].twist.frame_id',
            'bad_value',
        ),
        ({'schema_version': 2}, 'schema_version', 'bad_value'),
    ],
)
def test_names_what_is_wrong(tmp_path, change, place, code):
    path = write(tmp_path, {**MINIMAL, **change})
    faults = find_executor_faults(path)
    assert (f'{path}: {place}', code) in [(fault.where, fault.code) for fault in faults]
    with pytest.raises(ConfigurationError):
        load_executor(path)


@pytest.mark.parametrize('text', [None, '[]', 'a: [', ''])
def test_a_broken_file_is_one_fault(tmp_path, text):
    path = tmp_path / 'none.yaml' if text is None else write(tmp_path, text)
    assert len(find_executor_faults(path)) == 1
    with pytest.raises(ConfigurationError):
        load_executor(path)


def models_of(model):
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, '__args__', ())):
            if hasattr(inner, 'model_fields'):
                yield from models_of(inner)


def test_every_key_is_explained():
    kinds = (
        'ForwardCommand',
        'JointTrajectory',
        'JointState',
        'JointJog',
        'Twist',
        'Pose',
        'Gripper',
    )
    models = [*models_of(ExecutorSettings), *(getattr(controllers, kind) for kind in kinds)]
    assert len(models) > 15
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description, f'{model.__name__}.{name}'


def test_the_scheduler_gets_nanoseconds_and_rules():
    given = settings(
        rate_hz=500,
        strategy={'name': 'receding', 'parameters': {'execution_horizon': 4}},
        limits={'mode': 'reject'},
        first_action={'tolerance': 0.1, 'columns': {'a': 0.2}, 'soft_start_share': 0.5},
        starvation='stop',
        watchdogs={'chunk': {'timeout_ms': 300, 'action': 'stop'}, 'tick': {'timeout_ms': None}},
        time_jump={'threshold_ms': 5, 'action': 'reset'},
        prompt_change='finish',
        policy_change='accept',
        refill={'share': 0.25, 'timeout_ms': 100},
        cool_down_ms=2500,
        dry_run=True,
        grippers={'hand': {'closed_above': 0.6, 'open_below': 0.4, 'closed_value': 0.8}},
    ).scheduler(step_ns=50_000_000, horizon=16)
    assert (given.period_ns, given.step_ns, given.horizon) == (2_000_000, 50_000_000, 16)
    assert (given.strategy, given.parameters) == ('receding', {'execution_horizon': 4})
    assert given.limit_mode == 'reject'
    assert (given.gate_tolerance, given.gate_tolerances) == (0.1, {'a': 0.2})
    assert given.soft_start_share == 0.5
    assert given.starvation is Action.STOP
    assert given.watchdogs[Watch.CHUNK] == WatchRule(300_000_000, Action.STOP)
    assert Watch.TICK not in given.watchdogs
    assert Watch.INFERENCE not in given.watchdogs
    assert given.watchdogs[Watch.SUBSCRIBER].action is Action.STOP
    assert (given.time_jump_ns, given.time_jump) == (5_000_000, 'reset')
    assert (given.prompt_change, given.policy_change) == ('finish', 'accept')
    assert (given.refill_share, given.request_timeout_ns) == (0.25, 100_000_000)
    assert given.cool_down_ns == 2_500_000_000
    assert given.is_dry_run
    assert given.grippers['hand'].closed_value == 0.8


def test_several_controllers_share_one_action():
    robot = settings(ARM, HAND, BASE)
    assert robot.controllers[2].columns == ('vx', 'wz')
    assert check_executor(robot, MOBILE) == []
    assert check_executor(settings(POSE), POSE_COLUMNS) == []


def test_a_column_may_go_nowhere_on_purpose():
    faults = check_executor(settings(ARM, HAND), MOBILE)
    assert codes(faults) == ['missing_column']
    assert 'vx, wz' in faults[0].got
    assert check_executor(settings(ARM, HAND, unused=['vx', 'wz']), MOBILE) == []


@pytest.mark.parametrize(
    ('given', 'columns', 'code'),
    [
        (settings({**ARM, 'columns': ['a', 'b', 'c']}), COLUMNS, 'unknown_column'),
        (settings(ARM, {**ARM, 'name': 'other', 'columns': ['b']}), COLUMNS, 'repeated_column'),
        (settings(ARM, unused=['b']), COLUMNS, 'bad_unused'),
        (settings(ARM, unused=['c']), COLUMNS, 'bad_unused'),
        (settings(ARM, grippers={'c': {}}), COLUMNS, 'unknown_column'),
        (settings(ARM, first_action={'columns': {'c': 1}}), COLUMNS, 'unknown_column'),
        (settings({**ARM, 'columns': ['vx']}), MOBILE[3:4], 'wrong_kind'),
        (settings({**HAND, 'column': 'a'}), COLUMNS[:1], 'wrong_kind'),
        (
            settings(
                {**POSE, 'position': ['qx', 'y', 'z'], 'orientation': ['x', 'qy', 'qz', 'qw']}
            ),
            POSE_COLUMNS,
            'wrong_kind',
        ),
    ],
)
def test_tells_where_controllers_do_not_fit(given, columns, code):
    assert set(codes(check_executor(given, columns))) == {code}


def test_steps_may_go_to_a_position_controller():
    """The executor adds them up to positions."""
    steps = tuple(Column(c.name, c.unit, c.kind, Representation.DELTA) for c in COLUMNS)
    assert check_executor(settings(ARM), steps) == []


def test_a_controller_may_call_its_joints_differently():
    robot = settings({**ARM, 'kind': 'joint_trajectory', 'rename': {'b': 'joint_2'}})
    assert robot.controllers[0].joints == ('a', 'joint_2')
