# SPDX-License-Identifier: Apache-2.0
"""What a GR00T checkpoint says, read from files made here: the library is not needed."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.groot_files import (
    ROWS,
    TAG,
    changed,
    config_of,
    modalities,
    read,
    statistics,
    statistics_of,
    write_files,
)

from vla_policy_ros.bundle.manifest import Action, State
from vla_policy_ros.bundle.normalization import ActionDenormalizer, StateNormalizer
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.specs import Representation
from vla_policy_ros.export.groot.rules import Rules


@pytest.fixture
def write(tmp_path):
    """Returns the folder of a checkpoint's files."""
    return partial(write_files, tmp_path / 'checkpoint')


@pytest.mark.parametrize('inner', ['', 'processor'])
def test_what_a_checkpoint_says(write, inner):
    checkpoint = read(write(inner=inner))
    robot = checkpoint.embodiment
    assert (robot.tag, robot.number, robot.rows, robot.first_row) == (TAG, 10, ROWS, 0)
    assert (robot.cameras, robot.camera_steps) == (('front', 'wrist'), (-15, 0))
    assert (checkpoint.cleans_words, checkpoint.state_width) == (True, 8)
    assert [(key.key, key.width, key.normalization, key.clip) for key in robot.state] == [
        ('arm', 2, 'quantile', True),
        ('heading', 1, 'sin_cos', False),
        ('speed', 1, 'mean_std', False),
    ]
    assert [(key.key, key.normalization, key.clip, key.reference) for key in robot.action] == [
        ('arm', 'min_max', True, 'arm'),
        ('gripper', 'quantile', True, ''),
        ('speed', 'mean_std', False, ''),
    ]
    assert [key.representation for key in robot.action] == [
        Representation.RELATIVE_TO_OBSERVATION,
        Representation.ABSOLUTE,
        Representation.DELTA,
    ]
    # Statistics of the relative numbers, a row for each row of the chunk.
    assert robot.action[0].statistics.max.tolist() == [[1, 2], [2, 4], [3, 6]]


def test_switches_of_the_library(write):
    off = dict.fromkeys(
        ('use_percentiles', 'clip_outliers', 'apply_sincos_state_encoding', 'use_relative_action'),
        False,
    )
    robot = read(write(**off, formalize_language=False)).embodiment
    assert [(key.normalization, key.clip) for key in robot.state] == [
        ('min_max', False),
        ('min_max', False),
        ('mean_std', False),
    ]
    # Without `use_relative_action` the library gives what the network says; it always clips that.
    assert [(key.normalization, key.clip, key.representation.value) for key in robot.action] == [
        ('min_max', True, 'absolute'),
        ('min_max', True, 'absolute'),
        ('mean_std', False, 'delta'),
    ]
    assert robot.action[0].statistics.max.tolist() == [2, 10]


@pytest.mark.parametrize(
    ('kind', 'form', 'pose'),
    [
        ('NON_EEF', 'DEFAULT', 'none'),
        ('EEF', 'XYZ_ROT6D', 'xyz_rot6d'),
        ('EEF', 'XYZ_ROTVEC', 'xyz_rotvec'),
    ],
)
def test_poses(write, kind, form, pose):
    changed = modalities()
    changed['action']['action_configs'][0] = config_of('RELATIVE', kind, form, state_key='speed')
    (arm, _, _) = read(write(modality_configs={TAG: changed})).embodiment.action
    assert (arm.pose_format, arm.reference) == (pose, 'speed')


def test_choice_of_the_robot(write):
    both = {TAG: modalities(), 'gr1': modalities(), 'never_trained': modalities()}
    held = {TAG: statistics(), 'gr1': statistics()}
    folder = write(modality_configs=both, held=held, numbers={TAG: 10, 'gr1': 20})
    assert read(folder, embodiment='GR1').embodiment.number == 20
    for wanted in (None, 'never_trained'):
        with pytest.raises(BundleError, match='one of gr1, new_embodiment') as error:
            read(folder, embodiment=wanted)
        assert error.value.code == 'unknown_embodiment'


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'exclude_state': True}, 'exclude_state'),
        (changed('action', delta_indices=[0, 2, 4]), 'without gaps'),
        (changed('action', delta_indices=list(range(6))), 'at most 5'),
        (changed('video', delta_indices=[0, 1]), 'end with 0'),
        (changed('state', delta_indices=[-1]), 'end with 0'),
        (
            changed(
                'action', action_configs=[config_of('RELATIVE', 'EEF'), config_of(), config_of()]
            ),
            'XYZ_ROT6D',
        ),
    ],
    ids=['no_state', 'gaps', 'long', 'future', 'past', 'pose'],
)
def test_what_a_bundle_cannot_follow_is_refused(write, change, text):
    with pytest.raises(BundleError, match=text) as error:
        read(write(**change))
    assert error.value.code == 'unsupported_setting'


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'numbers': {'gr1': 1}}, TAG),
        ({'modality_configs': {TAG: {}}}, 'action'),
        ({'held': {TAG: {**statistics(), 'relative_action': {}}}}, 'arm'),
        (changed('action', delta_indices=[0, 1]), 'statistics of 3 rows'),
        (
            {
                'held': {
                    TAG: {**statistics(), 'state': {'arm': statistics_of((0, np.inf, 0, 1, 0, 1))}}
                }
            },
            'finite',
        ),
    ],
    ids=['id', 'modalities', 'relative', 'rows', 'infinite'],
)
def test_broken_checkpoint(write, change, text):
    with pytest.raises(BundleError, match=text) as error:
        read(write(**change))
    assert error.value.code == 'bad_checkpoint'


def test_folder_without_checkpoint(tmp_path):
    with pytest.raises(BundleError, match=r'config\.json'):
        read(tmp_path)


FINITE = st.floats(-100, 100, width=32)
SPAN = st.one_of(st.just(0.0), st.floats(0.125, 50, width=32), st.floats(1e-9, 1e-8))


@given(low=FINITE, span=SPAN, share=st.floats(-1, 2, width=32), number=st.floats(-2, 2, width=32))
@pytest.mark.parametrize('normalization', ['min_max', 'quantile', 'mean_std'])
def test_numbers_are_those_of_the_library(normalization, low, span, share, number):
    """Its formulas, written down here anew, for columns that move, hardly move, and stand still."""
    high, value = low + span, low + span * share
    entry = statistics_of((low, high, low, span, low, high))
    rules = Rules('x', entry)
    used = {'s': rules.for_state(normalization), 'a': rules.for_action(normalization, rows=1)}
    group = {'names': ('a',), 'units': ('',), 'normalization': normalization, 'clip': True}
    state = State(tensor='s', groups=({'name': 's', **group},))
    action = Action(tensor='a', groups=({'name': 'a', **group},), horizon=1, step_ns=1)
    if normalization == 'mean_std':
        wanted = (value - low) / span if span else value
        back = number * span + low if span else number
    else:
        still = np.isclose(high, low)
        wanted = 0 if still else np.clip(2 * (value - low) / (high - low) - 1, -1, 1)
        back = (np.clip(number, -1, 1) + 1) / 2 * (high - low) + low
    out = np.empty((1, 1))
    StateNormalizer(state, used).write(np.array([[value]]), out)
    assert out[0, 0] == pytest.approx(wanted, rel=1e-6, abs=1e-5)
    ActionDenormalizer(action, state, used).write(np.array([[number]]), np.zeros(1), out)
    assert out[0, 0] == pytest.approx(back, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(('version', 'rows'), [('n1.6', 16), ('n1.7', 40)])
def test_rows_that_the_library_leaves_out_of_its_file(tmp_path, version, rows):
    def read_rows(count):
        steps = changed('action', delta_indices=list(range(count)))
        folder = tmp_path / f'{count}'
        write_files(folder, config={}, use_relative_action=False, **steps)
        return read(folder, version=version).embodiment.rows

    assert read_rows(rows) == rows
    with pytest.raises(BundleError, match=f'at most {rows} steps') as error:
        read_rows(rows + 1)
    assert error.value.code == 'unsupported_setting'
