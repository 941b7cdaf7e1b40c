# SPDX-License-Identifier: Apache-2.0
"""rosbag2 recordings (MCAP or SQLite) behind the protocols of `core.dataset`: a bag is one episode.

Steps are the images of the reference camera (the first one) at their header stamps. Other images and joints are taken
from the nearest stamp, earlier or later; the instruction is the last one received by then, or the first one of the bag.
A message without a stamp, or with a stamp of zero, counts at its time of receipt; where the reference camera's stamps
are of another clock than the receipt, at the same time by that clock.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakSet

import numpy as np

from vla_policy_ros.core.dataset import DatasetCamera, DatasetInfo
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.datasets.faults import check_episode_index, check_range, unknown_camera
from vla_policy_ros.datasets.images import ImageDecoder
from vla_policy_ros.datasets.rosbag_reader import BagMessage, iter_messages, read_topics
from vla_policy_ros.datasets.rosbag_series import VectorRecorder, find_nearest, keep_growing
from vla_policy_ros.datasets.rosbag_topics import (
    COMPRESSED_IMAGE,
    BagTopics,
    ChosenTopics,
    choose_topics,
)

__all__ = ['BagTopics', 'RosbagDataset', 'RosbagEpisode']

_FAR_NS = 100_000_000
_MAX_DELAY_NS = 1_000_000_000


@dataclass(slots=True)
class _ImageIndex:
    """Stamps and times of receipt of a camera's messages in the order of receipt, and the size of the first image."""

    size: tuple[int, int]
    stamps_ns: list[int] = field(default_factory=list)
    received_ns: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _ImageSteps:
    """Which message of a camera's topic belongs to each step: (N,) position in the order of receipt."""

    topic: str
    positions: Array
    received_ns: Array
    distance_ns: int


class RosbagDataset:
    """One bag; it is read once when it is opened, images are read again as they are asked for.

    Args:
        path: Folder with `metadata.yaml`, or an `.mcap` or `.db3` file.
        topics: Topics to read; None discovers all.

    Raises:
        DatasetError: The bag is missing or broken, a topic is unknown, or there are fewer than two images.
    """

    def __init__(self, path: str | Path, *, topics: BagTopics | None = None) -> None:
        self._path = Path(path)
        wanted = topics or BagTopics()
        chosen = choose_topics(read_topics(self._path), wanted, str(self._path))
        contents = _Contents(self._path, chosen, may_skip=wanted.cameras is None)
        self._episode = contents.make_episode()
        self._info = contents.info

    @property
    def info(self) -> DatasetInfo:
        """What it holds."""
        return self._info

    def episode(self, index: int) -> RosbagEpisode:
        """Return the bag's only episode, index 0.

        Raises:
            DatasetError: The index is not 0.
        """
        check_episode_index(index, 1, str(self._path))
        return self._episode

    def close(self) -> None:
        """Close the files of unfinished image streams; may be called twice."""
        self._episode.close()


class RosbagEpisode:
    """All of a bag: numbers in memory, images decoded one after another."""

    def __init__(
        self,
        path: Path,
        images: dict[str, _ImageSteps],
        *,
        stamps_ns: Array,
        state: Array,
        action: Array,
        instructions: Sequence[str],
    ) -> None:
        self._path = path
        self._images = images
        self.stamps_ns = stamps_ns
        self.state = state
        self.action = action
        self.instructions = instructions
        self._streams: WeakSet[Generator[Array, None, None]] = WeakSet()

    @property
    def index(self) -> int:
        """Always 0: a bag is one episode."""
        return 0

    def images(
        self, camera: str, start: int = 0, stop: int | None = None
    ) -> Generator[Array, None, None]:
        """Decode the images of steps [start, stop), each (H, W, 3) uint8 RGB.

        Raises:
            DatasetError: The camera or the range is unknown, the bag is broken, or an image does not decode.
        """
        if camera not in self._images:
            raise unknown_camera(camera, tuple(self._images), str(self._path))
        steps = check_range(start, stop, len(self.stamps_ns), str(self._path))
        stream = self._decode(self._images[camera], steps)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """Close the files of unfinished image streams; may be called twice."""
        for stream in list(self._streams):
            stream.close()

    def _decode(self, camera: _ImageSteps, steps: range) -> Generator[Array, None, None]:
        wanted = [int(position) for position in camera.positions[steps.start : steps.stop]]
        if not wanted:
            return
        start_ns = int(camera.received_ns[wanted[0]])
        stop_ns = int(camera.received_ns[wanted[-1]]) + 1
        position = int(np.searchsorted(camera.received_ns, start_ns))
        decoder = ImageDecoder(f'{self._path}: {camera.topic}')
        step = 0
        for message in iter_messages(
            self._path, [camera.topic], start_ns=start_ns, stop_ns=stop_ns
        ):
            if wanted[step] == position:
                image = decode_message(decoder, message)
                while step < len(wanted) and wanted[step] == position:
                    yield image
                    step += 1
                if step == len(wanted):
                    return
            position += 1


def decode_message(decoder: ImageDecoder, message: BagMessage) -> Array:
    """Decode an Image or CompressedImage message; return (H, W, 3) uint8 RGB.

    Raises:
        DatasetError: The encoding is not read here (`unknown_encoding`), or the image is broken (`broken_image`).
    """
    fields = message.fields
    if message.kind == COMPRESSED_IMAGE:
        return decoder.decode_file(fields.data)
    return decoder.decode_raw(
        fields.encoding,
        fields.data,
        height=int(fields.height),
        width=int(fields.width),
        step_bytes=int(fields.step),
        is_bigendian=bool(fields.is_bigendian),
    )


class _Contents:
    """What one pass over a bag finds."""

    def __init__(self, path: Path, topics: ChosenTopics, *, may_skip: bool) -> None:
        self._path = path
        self._topics = topics
        self._may_skip = may_skip
        self._warnings: list[str] = []
        self._images: dict[str, _ImageIndex | None] = {}
        self._state = VectorRecorder(topics.state)
        self._action = VectorRecorder(topics.action)
        self._texts: list[tuple[int, str]] = []
        for message in iter_messages(path, topics.all()):
            self._add(message)

    def make_episode(self) -> RosbagEpisode:
        """Put every stream on the steps of the reference camera; sets `info`."""
        indices = {
            name: (topic, index)
            for name, topic in self._topics.cameras.items()
            if (index := self._images.get(topic)) is not None
        }
        if not indices:
            raise self._fault('no image that can be decoded', 'a camera', 'no_camera')
        reference_topic, reference = next(iter(indices.values()))
        stamps_ns = self._reference_stamps(reference_topic, reference)
        step_ns = _mean_step(stamps_ns)
        steps = {name: _match(t, index, stamps_ns) for name, (t, index) in indices.items()}
        offset_ns = self._receipt_offset(reference_topic, reference)
        state_columns, state, state_ns = self._state.resample(
            stamps_ns, receipt_offset_ns=offset_ns
        )
        action_columns, action, action_ns = self._action.resample(
            stamps_ns, receipt_offset_ns=offset_ns
        )
        distances = {camera.topic: camera.distance_ns for camera in steps.values()}
        self._warn_of_distances({**distances, 'state': state_ns, 'action': action_ns}, step_ns)
        for topic in (*self._state.empty_topics, *self._action.empty_topics):
            self._warnings.append(f'{topic} is left out: its messages have no positions')
        cameras = (DatasetCamera(name, t, *index.size) for name, (t, index) in indices.items())
        self.info = DatasetInfo(
            name=self._path.resolve().stem,
            format='rosbag2',
            robot_type='',
            step_ns=step_ns,
            num_episodes=1,
            cameras=tuple(cameras),
            state=state_columns,
            action=action_columns,
            warnings=tuple(self._warnings),
        )
        return RosbagEpisode(
            self._path,
            steps,
            stamps_ns=stamps_ns,
            state=state,
            action=action,
            instructions=self._instructions(stamps_ns + offset_ns),
        )

    def _add(self, message: BagMessage) -> None:
        topic = message.topic
        if topic in self._topics.cameras.values():
            self._add_image(message)
        if topic in self._topics.state:
            self._state.add(message)
        if topic in self._topics.action:
            self._action.add(message)
        if topic == self._topics.instruction:
            self._texts.append((message.received_ns, str(message.fields.data)))

    def _add_image(self, message: BagMessage) -> None:
        """Note an image's stamp; the first one of a topic is decoded to learn its size."""
        if message.topic not in self._images:
            self._images[message.topic] = self._try_first(message)
        index = self._images[message.topic]
        if index is not None:
            index.stamps_ns.append(message.stamp_ns)
            index.received_ns.append(message.received_ns)

    def _try_first(self, message: BagMessage) -> _ImageIndex | None:
        try:
            image = decode_message(ImageDecoder(f'{self._path}: {message.topic}'), message)
        except DatasetError as fault:
            if not self._may_skip or fault.code != 'unknown_encoding':
                raise
            self._warnings.append(f'{message.topic} is left out: it holds {fault.got}')
            return None
        return _ImageIndex((image.shape[0], image.shape[1]))

    def _reference_stamps(self, topic: str, index: _ImageIndex) -> Array:
        stamps_ns = np.asarray(index.stamps_ns, np.int64)
        kept = stamps_ns[keep_growing(stamps_ns)]
        if len(kept) < 2:
            raise self._fault(f'{len(kept)} images on {topic}', 'two or more', 'too_short')
        if len(kept) < len(stamps_ns):
            number = len(stamps_ns) - len(kept)
            self._warnings.append(
                f'{topic}: {number} images whose stamp does not grow are left out'
            )
        return kept

    def _receipt_offset(self, topic: str, index: _ImageIndex) -> int:
        """Return by how much the clock of receipt is ahead of the camera's; 0 when it may be the delay of transport."""
        offset_ns = int(np.median(np.subtract(index.received_ns, index.stamps_ns)))
        if 0 <= offset_ns <= _MAX_DELAY_NS:
            return 0
        self._warnings.append(
            f'{topic}: stamps are {-offset_ns / 1e9:+.3f} s off the time of receipt; '
            'messages without a stamp are moved by that much'
        )
        return offset_ns

    def _warn_of_distances(self, distances_ns: dict[str, int], step_ns: int) -> None:
        for name, distance_ns in distances_ns.items():
            if distance_ns > max(_FAR_NS, 2 * step_ns):
                text = f'{name}: samples lie up to {distance_ns / 1e6:.0f} ms from their image'
                self._warnings.append(text)

    def _instructions(self, by_ns: Array) -> tuple[str, ...]:
        """Return the last text received by each of N times of receipt, or the first text."""
        if not self._texts:
            return ('',) * len(by_ns)
        times_ns = np.asarray([time_ns for time_ns, _ in self._texts])
        last = np.searchsorted(times_ns, by_ns, side='right') - 1
        return tuple(self._texts[max(0, int(i))][1] for i in last)

    def _fault(self, got: str, expected: str, code: str) -> DatasetError:
        return DatasetError(
            str(self._path),
            got=got,
            expected=expected,
            next_step='Name the topics to read, or record the bag again.',
            code=code,
        )


def _mean_step(stamps_ns: Array) -> int:
    """Return the time between two images on average; a gap counts as the steps that are missing in it."""
    gaps_ns = np.diff(stamps_ns)
    num_steps = np.maximum(np.rint(gaps_ns / np.median(gaps_ns)), 1).sum()
    return round(float(gaps_ns.sum() / num_steps))


def _match(topic: str, index: _ImageIndex, stamps_ns: Array) -> _ImageSteps:
    own_ns = np.asarray(index.stamps_ns, np.int64)
    growing = keep_growing(own_ns)
    positions = growing[find_nearest(own_ns[growing], stamps_ns)]
    distance_ns = int(np.abs(own_ns[positions] - stamps_ns).max())
    return _ImageSteps(topic, positions, np.asarray(index.received_ns, np.int64), distance_ns)
