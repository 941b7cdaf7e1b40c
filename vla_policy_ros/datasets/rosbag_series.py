# SPDX-License-Identifier: Apache-2.0
"""Joint values of a bag as one series per joint, and how they are put on the steps of the reference camera."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array, Column, ColumnKind, Representation
from vla_policy_ros.datasets.naming import make_column
from vla_policy_ros.datasets.rosbag_reader import BagMessage
from vla_policy_ros.datasets.rosbag_topics import (
    ACTION_CHUNK,
    JOINT_STATE,
    JOINT_TRAJECTORY,
    MULTI_ARRAY,
)


@dataclass(slots=True)
class _Series:
    column: Column
    stamps_ns: list[int] = field(default_factory=list)
    is_stamped: list[bool] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


class VectorRecorder:
    """Collects the messages of several topics into one vector of joints; a joint is known by its name.

    Joints are in the order of the topics, and within a topic in the order in which they first came.
    """

    def __init__(self, topics: Sequence[str]) -> None:
        self._by_topic: dict[str, dict[str, _Series]] = {topic: {} for topic in topics}

    def add(self, message: BagMessage) -> None:
        """Add a message; one without positions (velocities only, say) is passed over.

        Raises:
            DatasetError: It has not as many values as names (`wrong_length`).
        """
        names, values = _EXTRACTORS[message.kind](message.fields)
        if not len(values):
            return
        if len(names) != len(values):
            raise DatasetError(
                f'{message.topic} at {message.stamp_ns} ns',
                got=f'{len(values)} values for {len(names)} names',
                expected='one value per name',
                next_step='Leave this topic out, or record it with positions.',
                code='wrong_length',
            )
        series = self._by_topic[message.topic]
        for i, name in enumerate(names):
            if name not in series:
                series[name] = _Series(_make_column(message, i, name))
            series[name].stamps_ns.append(message.stamp_ns)
            series[name].is_stamped.append(message.is_stamped)
            series[name].values.append(float(values[i]))

    @property
    def empty_topics(self) -> tuple[str, ...]:
        """Topics that gave no value."""
        return tuple(topic for topic, series in self._by_topic.items() if not series)

    def resample(
        self, stamps_ns: Array, *, receipt_offset_ns: int
    ) -> tuple[tuple[Column, ...], Array, int]:
        """Take each joint's sample nearest to each stamp.

        Args:
            stamps_ns: (N,) stamps.
            receipt_offset_ns: Taken from the time of receipt of messages that are not stamped.

        Returns:
            The D columns, (N, D) float32 values, and the largest distance between a stamp and its sample.
        """
        merged = self._merge(receipt_offset_ns)
        values = np.zeros((len(stamps_ns), len(merged)), np.float32)
        distance_ns = 0
        for i, series in enumerate(merged.values()):
            sample_ns = np.asarray(series.stamps_ns, np.int64)
            order = keep_growing(sample_ns)
            nearest = order[find_nearest(sample_ns[order], stamps_ns)]
            values[:, i] = np.asarray(series.values)[nearest]
            distance_ns = max(distance_ns, int(np.abs(sample_ns[nearest] - stamps_ns).max()))
        return tuple(series.column for series in merged.values()), values, distance_ns

    def _merge(self, receipt_offset_ns: int) -> dict[str, _Series]:
        """Put the samples of a joint that several topics carry into one series, sorted by stamp."""
        merged: dict[str, _Series] = {}
        for name, series in (
            (n, s) for topic in self._by_topic.values() for n, s in topic.items()
        ):
            whole = merged.setdefault(name, _Series(series.column))
            whole.stamps_ns += [
                stamp_ns if is_stamped else stamp_ns - receipt_offset_ns
                for stamp_ns, is_stamped in zip(series.stamps_ns, series.is_stamped, strict=True)
            ]
            whole.values += series.values
        for series in merged.values():
            order = np.argsort(np.asarray(series.stamps_ns), kind='stable')
            series.stamps_ns = [series.stamps_ns[i] for i in order]
            series.values = [series.values[i] for i in order]
        return merged


def keep_growing(stamps_ns: Array) -> Array:
    """Return the indices of the stamps that are later than all before them."""
    if not len(stamps_ns):
        return np.zeros(0, np.int64)
    before = np.maximum.accumulate(stamps_ns)[:-1]
    return np.concatenate([[0], np.flatnonzero(stamps_ns[1:] > before) + 1])


def find_nearest(samples_ns: Array, stamps_ns: Array) -> Array:
    """Return for each stamp the index of the nearest sample (M >= 1, growing); the earlier one of two."""
    after = np.clip(np.searchsorted(samples_ns, stamps_ns), 1, max(1, len(samples_ns) - 1))
    if len(samples_ns) == 1:
        return np.zeros(len(stamps_ns), np.int64)
    is_before = stamps_ns - samples_ns[after - 1] <= samples_ns[after] - stamps_ns
    nearest: Array = after - is_before
    return nearest


def _from_trajectory(fields: Any) -> tuple[Sequence[str], Sequence[float]]:
    return (fields.joint_names, fields.points[0].positions) if len(fields.points) else ((), ())


def _from_multi_array(fields: Any) -> tuple[Sequence[str], Sequence[float]]:
    return [f'action_{i}' for i in range(len(fields.data))], fields.data


def _make_column(message: BagMessage, i: int, name: str) -> Column:
    if message.kind != ACTION_CHUNK:
        return make_column(name)
    fields = message.fields
    kind, representation = ColumnKind(fields.kinds[i]), Representation(fields.representations[i])
    return Column(name, fields.units[i], kind, representation)


_EXTRACTORS: Mapping[str, Callable[[Any], tuple[Sequence[str], Sequence[float]]]] = {
    JOINT_STATE: lambda fields: (fields.name, fields.position),
    JOINT_TRAJECTORY: _from_trajectory,
    MULTI_ARRAY: _from_multi_array,
    ACTION_CHUNK: lambda fields: (fields.names, fields.values[: len(fields.names)]),
}
"""Names and values of a message; of a trajectory or a chunk its first row."""
