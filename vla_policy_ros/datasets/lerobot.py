# SPDX-License-Identifier: Apache-2.0
"""LeRobot datasets v2.0, v2.1 and v3.0 behind the protocols of `core.dataset`."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

from vla_policy_ros.core.dataset import DatasetCamera, DatasetInfo
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.faults import (
    Report,
    check_episode_index,
    check_range,
    missing_file,
    raise_fault,
    unknown_camera,
)
from vla_policy_ros.datasets.images import ImageDecoder
from vla_policy_ros.datasets.lerobot_columns import (
    find_instruction_column,
    find_vector,
    image_size,
    make_cameras,
    make_columns,
)
from vla_policy_ros.datasets.lerobot_info import Feature, LeRobotInfo, read_info
from vla_policy_ros.datasets.lerobot_layout import EpisodeRecord, Layout
from vla_policy_ros.datasets.lerobot_rows import EpisodeRows, RowSchema, read_episode_rows
from vla_policy_ros.datasets.lerobot_v2 import LayoutV2, uses_index_as_chunk
from vla_policy_ros.datasets.lerobot_v3 import LayoutV3
from vla_policy_ros.datasets.parquet_files import iter_cells
from vla_policy_ros.datasets.video import iter_frames, iter_frames_at


class LeRobotDataset:
    """A LeRobot dataset of any supported version.

    Args:
        path: Folder that holds `meta/info.json`.

    Raises:
        DatasetError: A file under `meta/` is missing or broken, or the version is not known.
    """

    def __init__(self, path: str | Path) -> None:
        meta = read_info(Path(path), raise_fault)
        assert meta is not None  # raise_fault does not return
        self._layout = make_layout(meta, raise_fault)
        self._schema = make_schema(meta, raise_fault)
        features, warnings = find_cameras(meta, self._layout)
        self._episodes: WeakSet[LeRobotEpisode] = WeakSet()
        self._info = DatasetInfo(
            name=meta.root.resolve().name,
            format=f'lerobot {meta.version}',
            robot_type=meta.robot_type,
            step_ns=meta.step_ns,
            num_episodes=len(self._layout),
            cameras=make_cameras(features),
            state=make_columns(self._schema.state),
            action=make_columns(self._schema.action),
            warnings=(
                *warnings,
                *_find_template_warnings(meta),
                *_find_index_warnings(self._layout),
            ),
        )

    @property
    def info(self) -> DatasetInfo:
        """What it holds."""
        return self._info

    def episode(self, index: int) -> LeRobotEpisode:
        """Open one episode by its position: 0 is the one with the lowest episode index.

        Raises:
            DatasetError: There is no such episode, or its table is missing or broken.
        """
        check_episode_index(index, len(self._layout), self._info.name)
        record = self._layout.record(index)
        rows = read_episode_rows(record, self._schema, self._layout.tasks)
        episode = LeRobotEpisode(index, record, rows, self._info.cameras)
        self._episodes.add(episode)
        return episode

    def close(self) -> None:
        """Close the episodes that are still in use; may be called twice."""
        for episode in list(self._episodes):
            episode.close()


class LeRobotEpisode:
    """One episode: numbers in memory, images decoded one after another."""

    def __init__(
        self,
        index: int,
        record: EpisodeRecord,
        rows: EpisodeRows,
        cameras: tuple[DatasetCamera, ...],
    ) -> None:
        self._index = index
        self._record = record
        self._rows = rows
        self._cameras = {camera.name: camera for camera in cameras}
        self._streams: WeakSet[Generator[Array, None, None]] = WeakSet()

    @property
    def index(self) -> int:
        """Position of the episode in its dataset."""
        return self._index

    @property
    def stamps_ns(self) -> Array:
        """(N,) int64 capture times from 0."""
        return self._rows.stamps_ns

    @property
    def state(self) -> Array:
        """(N, S) float32 states."""
        return self._rows.state

    @property
    def action(self) -> Array:
        """(N, D) float32 actions."""
        return self._rows.action

    @property
    def instructions(self) -> Sequence[str]:
        """N instructions."""
        return self._rows.instructions

    def images(
        self, camera: str, start: int = 0, stop: int | None = None
    ) -> Generator[Array, None, None]:
        """Decode the images of steps [start, stop), each (H, W, 3) uint8 RGB.

        Raises:
            DatasetError: The camera or the range is unknown, a file is missing, an image has another size than
                `info.json` says, or there are fewer images than steps.
        """
        where = f'{self._record.data} (episode {self._index})'
        if camera not in self._cameras:
            raise unknown_camera(camera, tuple(self._cameras), where)
        steps = check_range(start, stop, len(self._rows.stamps_ns), where)
        stream = self._decode(self._cameras[camera], steps)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Close the files of unfinished image streams; may be called twice."""
        for stream in list(self._streams):
            stream.close()

    def _decode(self, camera: DatasetCamera, steps: range) -> Generator[Array, None, None]:
        for image in self._frames(camera.key, steps) if steps else ():
            if image.shape[:2] != (camera.height, camera.width):
                raise DatasetError(
                    f'{self._record.data} (episode {self._index}): {camera.key}',
                    got=f'an image of {image.shape[0]} x {image.shape[1]} px',
                    expected=f'{camera.height} x {camera.width} px as in meta/info.json',
                    next_step='Correct the shape in meta/info.json.',
                    code='wrong_size',
                )
            yield image

    def _frames(self, key: str, steps: range) -> Iterator[Array]:
        rows = self._rows
        if key in rows.image_columns:
            return self._table_images(key, steps)
        span = self._record.videos.get(key)
        if span is None:
            raise missing_file(self._record.data, f'a video of {key} named in meta/episodes')
        if span.start_s is None:
            return iter_frames(span.path, steps)
        times_s = span.start_s + rows.timestamps_s[steps.start : steps.stop]
        return iter_frames_at(span.path, times_s)

    def _table_images(self, key: str, steps: range) -> Iterator[Array]:
        data, first = self._record.data, self._rows.rows.start
        decoder = ImageDecoder(f'{data}: {key}')
        for cell in iter_cells(data, key, range(first + steps.start, first + steps.stop)):
            yield decoder.decode_file(_read_cell(cell, data, key))


def make_layout(info: LeRobotInfo, report: Report) -> Layout:
    """Read the episodes of a dataset in the way of its version."""
    return LayoutV3(info, report) if info.version == 'v3.0' else LayoutV2(info, report)


def make_schema(info: LeRobotInfo, report: Report) -> RowSchema:
    """Choose the columns that an episode's table is read for."""
    return RowSchema(
        state=find_vector(info, 'observation.state', 'observation.'),
        action=find_vector(info, 'action', 'action.'),
        instruction=find_instruction_column(info, report),
        image_columns=frozenset(f.key for f in info.features.values() if f.dtype == 'image'),
        step_ns=info.step_ns,
    )


def find_cameras(info: LeRobotInfo, layout: Layout) -> tuple[list[Feature], list[str]]:
    """Return the cameras that can be read, and one warning for each feature that cannot."""
    kept: list[Feature] = []
    warnings: list[str] = []
    for feature in (feature for feature in info.features.values() if feature.is_image):
        if feature.is_depth:
            warnings.append(f'{feature.key} is left out: it holds distances, not colours')
        elif image_size(feature) is None:
            warnings.append(f'{feature.key} is left out: its shape {feature.shape} is no image')
        elif feature.dtype == 'video' and not has_video(layout, feature.key):
            warnings.append(f'{feature.key} is left out: info.json lists it, but it has no file')
        else:
            kept.append(feature)
    return kept, warnings


def has_video(layout: Layout, key: str) -> bool:
    """Return whether any episode has a video file of a feature."""
    spans = (layout.record(position).videos.get(key) for position in range(len(layout)))
    return any(span is not None and span.path.is_file() for span in spans)


def _find_template_warnings(info: LeRobotInfo) -> list[str]:
    templates = {'data_path': info.data_path, 'video_path': info.video_path}
    return [
        f'{key} names folders by episode_index where the format has the chunk: files are looked for in both'
        for key, template in templates.items()
        if info.version != 'v3.0' and uses_index_as_chunk(template)
    ]


def _find_index_warnings(layout: Layout) -> list[str]:
    last = layout.record(len(layout) - 1).index if len(layout) else -1
    is_gapless = last == len(layout) - 1
    return [] if is_gapless else ['episode indices have gaps: episodes are counted by position']


def _read_cell(cell: Any, data: Path, key: str) -> bytes:
    """Return the image of a cell `{bytes, path}`: its bytes, or the file its path names.

    A relative path is tried from the working folder, the table's folder and the dataset's root.
    """
    content = cell.get('bytes') if isinstance(cell, dict) else None
    if isinstance(content, bytes):
        return content
    path = cell.get('path') if isinstance(cell, dict) else None
    candidates = [folder / path for folder in (Path(), *data.parents[:3])] if path else []
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise missing_file(data.parent / (path or key), f'the image of a row of {data.name}')
    return bytes(found.read_bytes())
