# SPDX-License-Identifier: Apache-2.0
"""Writes LeRobot datasets v2.0, v2.1 and v3.0, for samples, recordings and tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import Self

from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.lerobot_info import (
    DATA_PATH_V2,
    DATA_PATH_V3,
    SUPPORTED_VERSIONS,
    VIDEO_PATH_V2,
    VIDEO_PATH_V3,
)
from vla_policy_ros.datasets.lerobot_meta import (
    CHUNKS_SIZE,
    NUMBER_TYPES,
    EpisodeMeta,
    MetaWriter,
    WriterSettings,
    image_key,
)
from vla_policy_ros.datasets.lerobot_statistics import ImageStatistics
from vla_policy_ros.datasets.video_writer import VIDEO_CODECS, VideoWriter

_CELL_TYPE = pa.struct([('bytes', pa.binary()), ('path', pa.string())])


class LeRobotWriter:
    """A dataset being written; `meta/` is written when the `with` block ends without an error.

    In v3.0 all episodes lie in one table and one video per camera, up to `episodes_per_file`.

    Args:
        path: Folder to write, new or empty.
        version: `v2.0`, `v2.1` or `v3.0`.
        step_ns: Time between two rows.
        robot_type: Name of the robot.
        cameras: Camera name to (height, width) in pixels; even numbers for videos.
        state: Names of the state columns.
        action: Names of the action columns.
        codec: `h264` or `av1` for videos, `png` for images within the table.
        crf: Constant rate factor of videos: lower is better and larger.
        episodes_per_file: v3.0 only: start new files after so many episodes.

    Raises:
        DatasetError: The folder is not empty, or the version, the codec or a size is not supported.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        version: str,
        step_ns: int,
        robot_type: str,
        cameras: Mapping[str, tuple[int, int]],
        state: Sequence[str],
        action: Sequence[str],
        codec: str = 'h264',
        crf: int = 20,
        episodes_per_file: int = 1000,
    ) -> None:
        self._root = Path(path)
        rate_hz = Fraction(10**9, step_ns).limit_denominator(1001)
        self._settings = WriterSettings(
            version, rate_hz, robot_type, dict(cameras), tuple(state), tuple(action), codec
        )
        self._check_settings()
        self._crf = crf
        self._episodes_per_file = episodes_per_file
        self._meta = MetaWriter(self._root, self._settings)
        self._videos: dict[str, VideoWriter] = {}
        self._table: tuple[Path, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for video in self._videos.values():
            video.close()
        if self._table is not None:
            self._table[1].close()
        if fault is None:
            self._meta.write()

    def add_episode(
        self,
        images: Mapping[str, Iterable[Array]],
        state: Array,
        action: Array,
        instruction: str | Sequence[str],
    ) -> None:
        """Append one episode of N steps. After an error the folder must be thrown away.

        Args:
            images: Camera name to N images, each (H, W, 3) uint8 RGB; read one at a time.
            state: (N, S) numbers, finite.
            action: (N, D) numbers, finite.
            instruction: One text, or N of them.

        Raises:
            DatasetError: An array, an image or the number of images does not fit.
        """
        index, length = len(self._meta.episodes), len(state)
        texts = [instruction] * length if isinstance(instruction, str) else list(instruction)
        self._check_episode(images, np.asarray(state), np.asarray(action), texts)
        numbers = self._number_columns(state, action, texts)
        columns = {name: _to_arrow(values) for name, values in numbers.items()}
        statistics, starts, cells = self._add_images(index, images, length)
        table = pa.table({**columns, **cells})
        self._write_table(index, _describe_images(table, numbers) if cells else table)
        episode = EpisodeMeta(
            index=index,
            first_row=self._meta.num_rows,
            length=length,
            tasks=tuple(dict.fromkeys(texts)),
            file_index=index // self._episodes_per_file,
            numbers=numbers,
            images=statistics,
            video_starts=starts,
        )
        self._meta.episodes.append(episode)

    def _add_images(
        self, index: int, images: Mapping[str, Iterable[Array]], length: int
    ) -> tuple[dict[str, ImageStatistics], dict[str, int], dict[str, Any]]:
        """Write videos or make table columns; return statistics, starts of videos and columns by feature key."""
        statistics: dict[str, ImageStatistics] = {}
        starts: dict[str, int] = {}
        cells: dict[str, Any] = {}
        for camera, stream in images.items():
            key, counts = image_key(camera), ImageStatistics()
            counted = self._checked_images(camera, stream, length, counts)
            if self._settings.has_videos:
                starts[key] = self._write_video(camera, index, counted)
            else:
                cells[key] = pa.array([_to_cell(image) for image in counted], _CELL_TYPE)
            statistics[key] = counts
        return statistics, starts, cells

    def _number_columns(
        self, state: Array, action: Array, texts: Sequence[str]
    ) -> dict[str, Array]:
        length = len(texts)
        steps = np.arange(length)
        values: dict[str, Any] = {
            'observation.state': state,
            'action': action,
            'timestamp': steps / float(self._settings.rate_hz),
            'frame_index': steps,
            'episode_index': np.full(length, len(self._meta.episodes)),
            'index': self._meta.num_rows + steps,
            'task_index': [self._meta.task_index(text) for text in texts],
        }
        return {
            name: np.asarray(values[name], kind).reshape(length, -1)
            for name, kind in NUMBER_TYPES.items()
        }

    def _checked_images(
        self, camera: str, stream: Iterable[Array], length: int, counts: ImageStatistics
    ) -> Iterable[Array]:
        shape, got = (*self._settings.cameras[camera], 3), 0
        for got, image in enumerate(stream, start=1):
            fits = image.shape == shape and image.dtype == np.uint8 and got <= length
            if not fits:
                seen = f'image {got} of {image.dtype}{list(image.shape)}'
                raise self._fault(camera, seen, f'{length} images of uint8{list(shape)}')
            counts.add(image)
            yield image
        if got != length:
            raise self._fault(camera, f'{got} images', f'{length} images')

    def _write_video(self, camera: str, index: int, images: Iterable[Array]) -> int:
        """Append images to the video they belong in; return the number of frames before them."""
        path = self._root / self._fill(VIDEO_PATH_V2, VIDEO_PATH_V3, index, image_key(camera))
        video = self._videos.get(camera)
        if video is None or video.path != path:
            if video is not None:
                video.close()
            height, width = self._settings.cameras[camera]
            video = VideoWriter(
                path,
                self._settings.codec,
                rate_hz=self._settings.rate_hz,
                height=height,
                width=width,
                crf=self._crf,
            )
            self._videos[camera] = video
        start = video.num_frames
        for image in images:
            video.write(image)
        return start

    def _write_table(self, index: int, table: Any) -> None:
        """Append rows to the table they belong in, as a row group of their own."""
        path = self._root / self._fill(DATA_PATH_V2, DATA_PATH_V3, index)
        if self._table is None or self._table[0] != path:
            if self._table is not None:
                self._table[1].close()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._table = path, pq.ParquetWriter(path, table.schema)
        self._table[1].write_table(table)

    def _fill(self, template_v2: str, template_v3: str, index: int, key: str = '') -> str:
        template = template_v3 if self._settings.is_v3 else template_v2
        return template.format(
            video_key=key,
            episode_index=index,
            episode_chunk=index // CHUNKS_SIZE,
            chunk_index=0,
            file_index=index // self._episodes_per_file,
        )

    def _check_settings(self) -> None:
        settings = self._settings
        if settings.version not in SUPPORTED_VERSIONS:
            expected = f'one of {", ".join(SUPPORTED_VERSIONS)}'
            raise self._fault('version', settings.version, expected)
        if settings.codec not in (*VIDEO_CODECS, 'png'):
            expected = f'one of {", ".join(VIDEO_CODECS)}, png'
            raise self._fault('codec', settings.codec, expected)
        for camera, (height, width) in settings.cameras.items():
            if min(height, width) < 1 or (settings.has_videos and (height % 2 or width % 2)):
                raise self._fault(camera, f'{height} x {width} px', 'even sizes for a video')
        if self._root.is_file() or (self._root.is_dir() and any(self._root.iterdir())):
            raise self._fault('folder', 'a path that is in use', 'a new or empty folder')

    def _check_episode(
        self, images: Mapping[str, Any], state: Array, action: Array, texts: Sequence[str]
    ) -> None:
        settings, length = self._settings, len(state)
        if set(images) != set(settings.cameras):
            raise self._fault('images', sorted(images), f'cameras {sorted(settings.cameras)}')
        if len(texts) != length:
            raise self._fault('instruction', f'{len(texts)} texts', f'{length} texts')
        for name, values, width in (
            ('state', state, len(settings.state)),
            ('action', action, len(settings.action)),
        ):
            if values.shape != (length, width) or not length or not np.isfinite(values).all():
                seen = f'{values.dtype}{list(values.shape)}'
                raise self._fault(name, seen, f'finite numbers of shape [{length or 1}, {width}]')

    def _fault(self, what: str, got: object, expected: str) -> DatasetError:
        return DatasetError(
            f'{self._root}: {what}',
            got=got,
            expected=expected,
            next_step='Give the writer what its settings say.',
            code='cannot_write',
        )


def _to_arrow(values: Array) -> Any:
    """Return (N, W) numbers as a column of lists, or of numbers when W is 1, as LeRobot has it."""
    if values.shape[1] != 1:
        return pa.array(list(values), pa.list_(pa.from_numpy_dtype(values.dtype)))
    return pa.array(values[:, 0])


def _describe_images(table: Any, numbers: Mapping[str, Array]) -> Any:
    """Say in a table's metadata which columns are images; without it LeRobot v2 takes them for dictionaries."""
    features: dict[str, Any] = {name: {'_type': 'Image'} for name in table.column_names}
    for name, values in numbers.items():
        features[name] = {'dtype': values.dtype.name, '_type': 'Value'}
        if values.shape[1] != 1:
            features[name] = {
                'feature': features[name],
                'length': values.shape[1],
                '_type': 'Sequence',
            }
    return table.replace_schema_metadata(
        {'huggingface': json.dumps({'info': {'features': features}})}
    )


def _to_cell(image: Array) -> dict[str, Any]:
    _, content = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return {'bytes': content.tobytes(), 'path': None}
