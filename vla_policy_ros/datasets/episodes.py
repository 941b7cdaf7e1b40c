# SPDX-License-Identifier: Apache-2.0
"""Which episodes are meant: a text such as `0,2,5-8` or `all`."""

from __future__ import annotations

from vla_policy_ros.core.errors import ConfigurationError


def parse_episodes(text: str, num_episodes: int) -> tuple[int, ...]:
    """Return the indices named by a text such as `0`, `0,2,5-8` or `all`.

    Raises:
        ConfigurationError: The text cannot be read, or names an episode that is not there.
    """
    if text.strip() == 'all':
        return tuple(range(num_episodes))
    indices: list[int] = []
    try:
        for part in text.split(','):
            first, _, last = part.strip().partition('-')
            # One past the end is enough to be refused; a range is not built longer than the dataset.
            indices += range(int(first), min(int(last or first), num_episodes) + 1)
    except ValueError:
        indices = []
    if not indices or not all(0 <= index < num_episodes for index in indices):
        raise ConfigurationError(
            'episodes',
            got=repr(text),
            expected=f'indices from 0 to {num_episodes - 1}, such as 0,2,5-8, or all',
            next_step='`vla-policy check DATASET` lists the episodes.',
        )
    return tuple(indices)
