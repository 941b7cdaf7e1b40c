# SPDX-License-Identifier: Apache-2.0
"""Recorded episodes, whatever format they lie in."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vla_policy_ros.core.specs import Array, Column


@dataclass(frozen=True, slots=True)
class DatasetCamera:
    """One camera of a dataset: its short name, its key in the files and its size in pixels."""

    name: str
    key: str
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What a dataset holds; `step_ns` is the nominal time between two steps."""

    name: str
    format: str
    robot_type: str
    step_ns: int
    num_episodes: int
    cameras: tuple[DatasetCamera, ...]
    state: tuple[Column, ...]
    action: tuple[Column, ...]
    warnings: tuple[str, ...] = ()


class Episode(Protocol):
    """One recorded episode of N steps; numbers are in memory, images are decoded as they are asked for."""

    @property
    def index(self) -> int:
        """Index of the episode in its dataset."""

    @property
    def stamps_ns(self) -> Array:
        """(N,) int64 capture times; from 0 in LeRobot datasets, since 1970 in bags."""

    @property
    def state(self) -> Array:
        """(N, S) float32 states in the order of `DatasetInfo.state`."""

    @property
    def action(self) -> Array:
        """(N, D) float32 recorded actions in the order of `DatasetInfo.action`; (N, 0) when none were recorded."""

    @property
    def instructions(self) -> Sequence[str]:
        """N instructions, one per step; empty strings when none were recorded."""

    def images(
        self, camera: str, start: int = 0, stop: int | None = None
    ) -> Generator[Array, None, None]:
        """Decode the images of steps [start, stop) of one camera, each (H, W, 3) uint8 RGB.

        An array stays valid until the next one is asked for; closing the generator closes its file.

        Raises:
            DatasetError: The camera is unknown, a file is missing, or it holds fewer images than steps.
        """

    def close(self) -> None:
        """Release open files; may be called twice."""


class Dataset(Protocol):
    """A folder or file of recorded episodes."""

    @property
    def info(self) -> DatasetInfo:
        """What it holds."""

    def episode(self, index: int) -> Episode:
        """Open one episode.

        Raises:
            DatasetError: There is no such episode, or its files are missing or broken.
        """

    def close(self) -> None:
        """Release open files; may be called twice."""
