# SPDX-License-Identifier: Apache-2.0
import argparse
from pathlib import Path

import pytest

from vla_policy_ros.core.errors import BundleError, ConfigurationError, DatasetError
from vla_policy_ros.evaluation.verdict import Tolerances
from vla_policy_ros.policies.engine_policy import PREPROCESSORS
from vla_policy_ros.policies.registry import POLICY_ENGINES
from vla_policy_ros.sample import sample_bundle_path, sample_dataset_path
from vla_policy_ros.tools import arguments

LIMITS = Tolerances(max_mae=0.05, max_refused=0)


@pytest.mark.parametrize(
    'text',
    [
        'max_mae: 0.05, max_refused: 0',
        '{max_mae: 0.05, max_refused: 0}',
        'max_mae: 0.05\nmax_refused: 0',
        '{"max_mae": 0.05, "max_refused": 0}',
    ],
)
def test_inline_tolerances(text):
    assert arguments.read_tolerances(text) == LIMITS


def test_tolerances_of_a_file(tmp_path):
    path = tmp_path / 'limits.yaml'
    path.write_text('max_mae: 0.05\nmax_refused: 0\n', encoding='utf-8')
    assert arguments.read_tolerances(str(path)) == LIMITS
    path.write_text('max_ame: 0.05\n', encoding='utf-8')
    with pytest.raises(ConfigurationError, match=r'limits.yaml: max_ame: got an unknown key'):
        arguments.read_tolerances(str(path))


def test_no_tolerances_check_nothing():
    assert arguments.read_tolerances(None) == Tolerances()


@pytest.mark.parametrize(
    'text', ['limits.yml', 'max_mae', 'max_mae: [', 'max_mae: -1', '- 1\n- 2']
)
def test_tolerances_that_cannot_be_read(text):
    with pytest.raises(ConfigurationError, match='--tolerances'):
        arguments.read_tolerances(text)


def test_sample_stands_for_what_is_in_the_package():
    assert arguments.dataset_path('sample') == sample_dataset_path()
    assert arguments.bundle_path('sample') == sample_bundle_path()


def test_paths_are_absolute_and_know_the_home_folder():
    assert arguments.dataset_path('data/x') == Path.cwd() / 'data' / 'x'
    assert arguments.bundle_path('~/b') == Path.home() / 'b'


def test_open_named_dataset(recording):
    dataset = arguments.open_named_dataset(str(recording.dataset))
    assert dataset.info.num_episodes == 2
    dataset.close()
    with pytest.raises(DatasetError, match='nowhere'):
        arguments.open_named_dataset('nowhere')


def test_read_manifest(recording, tmp_path):
    assert arguments.read_manifest(recording.bundle).name == 'untrained'
    with pytest.raises(BundleError, match=r'bundle.yaml: got no such file'):
        arguments.read_manifest(tmp_path)


def test_engines_are_known_before_anything_is_loaded():
    for name in ('', 'onnxruntime', 'none'):
        arguments.check_engine(name)
    with pytest.raises(ConfigurationError, match=r'onnxruntime, .*, none'):
        arguments.check_engine('steam')


def test_help_names_every_engine_and_preprocessor():
    parser = argparse.ArgumentParser()
    arguments.add_engine(parser, default='onnxruntime')
    arguments.add_preprocess(parser)
    text = parser.format_help()
    assert all(name in text for name in POLICY_ENGINES)
    assert '{' + ','.join(PREPROCESSORS) + '}' in text
    assert parser.parse_args([]).preprocess == 'cpu'


def test_numbers_keep_their_bounds():
    assert arguments.at_least(1)('1') == 1
    assert arguments.in_range(0.01, 100)('0.01') == 0.01
    for parse, text in ((arguments.at_least(1), '0'), (arguments.in_range(0.01, 100), '101')):
        with pytest.raises(argparse.ArgumentTypeError, match=f'got {text}'):
            parse(text)
    for parse in (arguments.at_least(1), arguments.in_range(0, 1)):
        with pytest.raises(ValueError, match='x'):
            parse('x')


def test_not_a_number_is_out_of_every_range():
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.in_range(0.01, 100)('nan')
