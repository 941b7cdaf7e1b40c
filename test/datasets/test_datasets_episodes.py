# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.datasets.episodes import parse_episodes


@pytest.mark.parametrize(
    ('text', 'indices'),
    [
        ('0', (0,)),
        ('all', (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        ('0,2,5-8', (0, 2, 5, 6, 7, 8)),
        (' 3 , 1 ', (3, 1)),
        ('4-4', (4,)),
    ],
)
def test_lists_and_ranges(text, indices):
    assert parse_episodes(text, 9) == indices


@pytest.mark.parametrize('text', ['', 'x', '9', '0,9', '7-9', '-1', '5-3', '1;2', '1,,2'])
def test_what_is_refused(text):
    with pytest.raises(ConfigurationError, match='0 to 8'):
        parse_episodes(text, 9)


@given(st.lists(st.integers(0, 99), min_size=1))
def test_any_list_of_indices_comes_back(indices):
    assert parse_episodes(','.join(map(str, indices)), 100) == tuple(indices)
