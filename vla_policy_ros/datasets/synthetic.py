# SPDX-License-Identifier: Apache-2.0
"""Episodes made on the fly: moving colours, smooth joints, and the step's number written into every picture."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vla_policy_ros.core.dataset import DatasetCamera, DatasetInfo
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array, Column
from vla_policy_ros.datasets.faults import check_episode_index, check_range, unknown_camera

_NUM_BITS = 16
_BAR_SHARE = 8
_MIN_HEIGHT_PX = 16
_MIN_WIDTH_PX = 32
_SHIFT_PX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticColumn:
    """One number of a made-up robot, which swings between two values.

    Attributes:
        column: What it is.
        low: Smallest value.
        high: Largest value.
        is_measured: Whether it is part of the state; all columns are part of the action.
    """

    column: Column
    low: float = -1.0
    high: float = 1.0
    is_measured: bool = True


class SyntheticDataset:
    """A dataset without files: the same settings give the same numbers and pictures.

    Args:
        num_episodes: Number of episodes.
        num_steps: Steps of each episode, up to 65536.
        step_ns: Time between two steps.
        cameras: Camera name to (height, width) in pixels, at least 16 x 32.
        num_joints: Number of joints, `joint_0` and so on; of no account with `columns`.
        columns: The robot's columns; none for `num_joints` joints from -1 to 1 rad.
        name: Name of the dataset.
        seed: Changes the joints and the colours.

    Raises:
        DatasetError: A setting is out of its range.
    """

    def __init__(
        self,
        *,
        num_episodes: int = 1,
        num_steps: int = 60,
        step_ns: int = 33_333_333,
        cameras: Mapping[str, tuple[int, int]],
        num_joints: int = 6,
        columns: Sequence[SyntheticColumn] = (),
        name: str = 'synthetic',
        seed: int = 0,
    ) -> None:
        _check_setting('num_steps', num_steps, 1, 2**_NUM_BITS)
        for camera, (height, width) in cameras.items():
            _check_setting(f'height of {camera}', height, _MIN_HEIGHT_PX, 2**16)
            _check_setting(f'width of {camera}', width, _MIN_WIDTH_PX, 2**16)
        self._columns = tuple(columns) or tuple(
            SyntheticColumn(column=Column(f'joint_{i}', 'rad')) for i in range(num_joints)
        )
        self._num_steps = num_steps
        self._seed = seed
        self._info = DatasetInfo(
            name=name,
            format='synthetic',
            robot_type='synthetic',
            step_ns=step_ns,
            num_episodes=num_episodes,
            cameras=tuple(DatasetCamera(n, n, *size) for n, size in cameras.items()),
            state=tuple(one.column for one in self._columns if one.is_measured),
            action=tuple(one.column for one in self._columns),
        )

    @property
    def info(self) -> DatasetInfo:
        """What it holds."""
        return self._info

    def episode(self, index: int) -> SyntheticEpisode:
        """Make one episode.

        Raises:
            DatasetError: There is no such episode.
        """
        check_episode_index(index, self._info.num_episodes, 'synthetic dataset')
        return SyntheticEpisode(index, self._num_steps, self._info, self._columns, self._seed)

    def close(self) -> None:
        """Do nothing: there are no files."""


class SyntheticEpisode:
    """One made-up episode; the action of a step is where the robot is at the next one."""

    def __init__(
        self,
        index: int,
        num_steps: int,
        info: DatasetInfo,
        columns: Sequence[SyntheticColumn],
        seed: int,
    ) -> None:
        self._index = index
        self._info = info
        self._rng_seed = (seed, index)
        self.stamps_ns: Array = np.arange(num_steps, dtype=np.int64) * info.step_ns
        motion = _make_motion(num_steps + 1, columns, info.step_ns / 1e9, self._rng_seed)
        self.state: Array = motion[:-1, [one.is_measured for one in columns]]
        self.action: Array = motion[1:]
        self.instructions: Sequence[str] = (f'follow curve {index}',) * num_steps

    @property
    def index(self) -> int:
        """Index of the episode in its dataset."""
        return self._index

    def images(
        self, camera: str, start: int = 0, stop: int | None = None
    ) -> Generator[Array, None, None]:
        """Draw the images of steps [start, stop) into one reused buffer, each (H, W, 3) uint8 RGB.

        Raises:
            DatasetError: The camera or the range is unknown.
        """
        known = {known.name: known for known in self._info.cameras}
        if camera not in known:
            raise unknown_camera(camera, tuple(known), 'synthetic dataset')
        steps = check_range(start, stop, len(self.stamps_ns), 'synthetic dataset')
        return self._draw(known[camera], steps)

    def close(self) -> None:
        """Do nothing: there are no files."""

    def _draw(self, camera: DatasetCamera, steps: range) -> Generator[Array, None, None]:
        height, width = camera.height, camera.width
        pattern = _make_pattern(height, width, self._rng_seed)
        image = np.empty((height, width, 3), np.uint8)
        for step in steps:
            shift = step * _SHIFT_PX % width
            np.copyto(image, pattern[:, shift : shift + width])
            _write_step_index(image, step)
            yield image


def read_step_index(image: Array) -> int:
    """Read the step's number from the bar of blocks at the top of a synthetic image.

    Args:
        image: (H, W, 3) uint8; may have been compressed or resized as a whole, in any order of channels.

    Returns:
        The index of the step in its episode.
    """
    bar = image[: max(1, image.shape[0] // _BAR_SHARE)]
    edges = _block_edges(image.shape[1])
    bits = (bar[:, edges[i] : edges[i + 1]].mean() > 127 for i in range(_NUM_BITS))
    return sum(int(bit) << i for i, bit in enumerate(bits))


def _write_step_index(image: Array, step: int) -> None:
    bar = image[: image.shape[0] // _BAR_SHARE]
    edges = _block_edges(image.shape[1])
    for i in range(_NUM_BITS):
        bar[:, edges[i] : edges[i + 1]] = 255 if step >> i & 1 else 0


def _block_edges(width: int) -> list[int]:
    return [round(i * width / _NUM_BITS) for i in range(_NUM_BITS + 1)]


def _make_pattern(height: int, width: int, seed: tuple[int, int]) -> Array:
    """Make a smooth picture (H, 2W, 3) that repeats after W columns."""
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    x = np.arange(2 * width) * (2 * np.pi / width)
    y = np.arange(height)[:, None] * (2 * np.pi / height)
    waves = [np.sin((i + 1) * x + y + phase) for i, phase in enumerate(phases)]
    pattern: Array = np.stack([127.5 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)
    return pattern


def _make_motion(
    num_rows: int, columns: Sequence[SyntheticColumn], step_s: float, seed: tuple[int, int]
) -> Array:
    """Make (num_rows, D) float32 sines within the columns' ranges, of up to 0.5 Hz."""
    rng = np.random.default_rng(seed)
    amplitude = rng.uniform(0.2, 1.0, len(columns))
    rate_hz = rng.uniform(0.1, 0.5, len(columns))
    phase = rng.uniform(0, 2 * np.pi, len(columns))
    times_s = np.arange(num_rows)[:, None] * step_s
    waves = amplitude * np.sin(2 * np.pi * rate_hz * times_s + phase)
    low, high = (np.array([getattr(one, end) for one in columns]) for end in ('low', 'high'))
    motion: Array = ((low + high) / 2 + (high - low) / 2 * waves).astype(np.float32)
    return motion


def _check_setting(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise DatasetError(
            f'synthetic dataset: {name}',
            got=value,
            expected=f'{low} to {high}',
            next_step='Change the setting.',
            code='bad_setting',
        )
