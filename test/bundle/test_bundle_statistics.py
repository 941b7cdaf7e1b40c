# SPDX-License-Identifier: Apache-2.0
"""Statistics: computed as numpy defines them, written and read back unchanged, refused when broken."""

import json

import numpy as np
import pytest

from vla_policy_ros.bundle.statistics import (
    GroupStatistics,
    compute_statistics,
    read_statistics,
    write_statistics,
)
from vla_policy_ros.core.errors import BundleError, SpecMismatchError

KEYS = ('min', 'max', 'mean', 'std', 'q01', 'q99')


def entry(**changes):
    values = {'min': [0, 1], 'max': [1, 2], 'mean': [0.5, 1.5], 'std': [0.1, 0.2]}
    return {**values, 'q01': [0.1, 1.1], 'q99': [0.9, 1.9], **changes}


def write(tmp_path, document):
    path = tmp_path / 'statistics.json'
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_values_of_a_ramp():
    values = np.stack([np.arange(101), np.full(101, 5)], axis=1).astype(np.float32)
    got = compute_statistics(values)
    np.testing.assert_array_equal(got.min, [0, 5])
    np.testing.assert_array_equal(got.max, [100, 5])
    np.testing.assert_array_equal(got.mean, [50, 5])
    np.testing.assert_allclose(got.std, [np.sqrt((101**2 - 1) / 12), 0])
    np.testing.assert_allclose(got.q01, [1, 5])
    np.testing.assert_allclose(got.q99, [99, 5])


@pytest.mark.parametrize('value', [0.1, 1.1, -3.3])
def test_a_column_that_never_moves_has_no_spread_at_all(value):
    values = np.full((997, 1), value)
    assert values.std() > 0  # what rounding alone makes of it
    got = compute_statistics(values)
    assert got.std == 0
    assert got.q01 == got.q99 == got.mean == values[0]


def test_chunks_give_statistics_per_row():
    chunks = np.random.default_rng(0).normal(size=(50, 4, 3))
    got = compute_statistics(chunks)
    for row in range(4):
        alone = compute_statistics(chunks[:, row])
        for key in KEYS:
            np.testing.assert_array_equal(getattr(got, key)[row], getattr(alone, key))


@pytest.mark.parametrize(
    'values', [np.zeros(3), np.zeros((0, 3)), np.array([[1.0, np.nan]]), np.zeros((1, 1, 1, 1))]
)
def test_values_that_have_no_statistics_are_refused(values):
    with pytest.raises(SpecMismatchError):
        compute_statistics(values)


def test_a_file_comes_back_bit_for_bit_and_is_reproducible(tmp_path):
    rng = np.random.default_rng(1)
    statistics = {
        'arm': compute_statistics(rng.normal(size=(20, 3)).astype(np.float32)),
        'actions': compute_statistics(rng.normal(size=(20, 4, 2))),
    }
    path, again = tmp_path / 'a.json', tmp_path / 'b.json'
    write_statistics(path, statistics)
    read = read_statistics(path)
    write_statistics(again, dict(reversed(read.items())))
    assert sorted(read) == ['actions', 'arm']
    for name, group in statistics.items():
        for key in KEYS:
            np.testing.assert_array_equal(getattr(read[name], key), getattr(group, key))
    assert path.read_bytes() == again.read_bytes()


def test_a_value_that_is_not_finite_is_not_written(tmp_path):
    bad = GroupStatistics(*[np.array([np.nan])] * 6)
    with pytest.raises(ValueError, match='JSON'):
        write_statistics(tmp_path / 'a.json', {'arm': bad})
    assert not (tmp_path / 'a.json').exists()


@pytest.mark.parametrize(
    ('document', 'place'),
    [
        ('{', 'statistics.json'),
        ('[]', 'statistics.json'),
        ({'arm': [1]}, ': arm'),
        ({'arm': {}}, ': arm'),
        ({'arm': entry(count=[3])}, ': arm'),
        ({'arm': {k: v for k, v in entry().items() if k != 'q99'}}, ': arm'),
        ({'arm': entry(mean=[0.5])}, r'arm\.mean'),
        ({'arm': entry(mean=[[0.5, 1.5]])}, r'arm\.mean'),
        ({'arm': entry(max=[1, 'x'])}, r'arm\.max'),
        ({'arm': entry(max=[[1], [2, 3]])}, r'arm\.max'),
        ({'arm': entry(max=None)}, r'arm\.max'),
        ({'arm': entry(max=[])}, r'arm\.max'),
        ({'arm': entry(max=[1, float('nan')])}, r'arm\.max'),
        ({'arm': entry(min=[0, 3])}, r'arm\.min'),
        ({'arm': entry(q01=[0, 1.95])}, r'arm\.q01'),
        ({'arm': entry(std=[0, -1])}, r'arm\.std'),
    ],
)
def test_broken_files_are_refused_at_their_place(tmp_path, document, place):
    with pytest.raises(BundleError, match=place) as caught:
        read_statistics(write(tmp_path, document))
    assert caught.value.code == 'bad_statistics'


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r'nowhere\.json'):
        read_statistics(tmp_path / 'nowhere.json')


def test_a_right_file_is_taken(tmp_path):
    read = read_statistics(write(tmp_path, {'arm': entry()}))
    np.testing.assert_array_equal(read['arm'].q99, [0.9, 1.9])
