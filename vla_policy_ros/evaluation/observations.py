# SPDX-License-Identifier: Apache-2.0
"""Observations for a policy, made of a recorded episode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np

from vla_policy_ros.core.dataset import DatasetInfo, Episode
from vla_policy_ros.core.errors import DatasetError
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import Array, CameraSpec, PolicySpec

Prepare = Callable[[Frame], Frame | PreparedFrame]


@dataclass(frozen=True, slots=True)
class NameMap:
    """Names that differ: policy name to dataset name, for cameras and for state columns."""

    cameras: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)


class EpisodeObservations:
    """The observations of one episode in the order of its steps, with a history's worth of images in memory.

    Names are matched, never positions: a camera or state column that the policy wants and the dataset lacks is an
    error, even where the numbers of both agree.

    Args:
        info: The dataset.
        episode: One of its episodes.
        spec: What the policy wants.
        names: Names that differ between the two.

    Raises:
        DatasetError: A camera or a state column of the policy has no partner.
    """

    def __init__(
        self,
        info: DatasetInfo,
        episode: Episode,
        *,
        spec: PolicySpec,
        names: NameMap | None = None,
    ) -> None:
        names = names or NameMap()
        observation = spec.observation
        self._cameras = _pair_names(
            'camera',
            [camera.name for camera in observation.cameras],
            [camera.name for camera in info.cameras],
            names.cameras,
        )
        columns = [column.name for column in info.state]
        partners = _pair_names('state column', observation.state_names, columns, names.state)
        self._columns = [columns.index(partners[name]) for name in observation.state_names]
        self._episode = episode
        self._spec = observation
        self._stamps_ns: Array = np.asarray(episode.stamps_ns, np.int64)
        self._instructions = number_instructions(episode.instructions)

    def __len__(self) -> int:
        return len(self._stamps_ns)

    def iterate(
        self, *, stride: int = 1, epoch: int = 0, prepare: Prepare | None = None
    ) -> Iterator[Observation]:
        """Yield the observations of steps 0, stride, 2 * stride...

        Before the first step a history repeats its first sample. The iterator may be driven by any one thread.

        Args:
            stride: Steps from one observation to the next.
            epoch: Epoch that the observations carry.
            prepare: Preprocesses an image as soon as it is decoded, such as `Policy.prepare`; None gives frames.

        Raises:
            DatasetError: An image cannot be read.
            ImageError: An image cannot be prepared.
        """
        steps = range(0, len(self), stride)
        streams = {
            camera.name: self._histories(camera, steps, prepare) for camera in self._spec.cameras
        }
        for sequence, step in enumerate(steps):
            stamp_ns = int(self._stamps_ns[step])
            yield Observation(
                images={name: next(stream) for name, stream in streams.items()},
                state=self._state(step),
                instruction=self._instructions[step],
                stamp_ns=stamp_ns,
                stream_stamps_ns=dict.fromkeys([*streams, 'state'], stamp_ns),
                sequence=sequence,
                epoch=epoch,
            )

    def _histories(
        self, camera: CameraSpec, steps: Sequence[int], prepare: Prepare | None
    ) -> Iterator[tuple[Frame | PreparedFrame, ...]]:
        """Yield one camera's history at each step; an image is dropped when no later history needs it."""
        wanted = [self._steps_at(step, camera.history_ns) for step in steps]
        uses = {index for history in wanted for index in history}
        images = self._read(camera.name, sorted(uses), prepare)
        held: dict[int, Frame | PreparedFrame] = {}
        for history in wanted:
            for index in [index for index in held if index < history[0]]:
                del held[index]
            while history[-1] not in held:
                index, image = next(images)
                held[index] = image
            yield tuple(held[index] for index in history)

    def _read(
        self, camera: str, steps: Iterable[int], prepare: Prepare | None
    ) -> Iterator[tuple[int, Frame | PreparedFrame]]:
        """Decode a camera from its first image on and yield the images of some steps, safe to keep."""
        images = enumerate(self._episode.images(self._cameras[camera]))
        for step in steps:
            image = next((array for index, array in images if index == step), None)
            if image is None:
                raise DatasetError(
                    f'episode {self._episode.index}, camera {self._cameras[camera]}',
                    got=f'no image for step {step}',
                    expected=f'{len(self)} images, one per step',
                    next_step='Check the dataset with `vla-policy check`.',
                    code='too_few_images',
                )
            frame = Frame.from_rgb(camera, int(self._stamps_ns[step]), image)
            prepared = prepare(frame) if prepare else frame
            if prepared is frame:  # the dataset reuses its array for the next image
                prepared = Frame.from_rgb(camera, frame.stamp_ns, image.copy())
            yield step, prepared

    def _state(self, step: int) -> Array:
        rows = self._steps_at(step, self._spec.state_history_ns)
        state: Array = self._episode.state[rows][:, self._columns].astype(np.float32)
        return state

    def _steps_at(self, step: int, history_ns: Sequence[int]) -> list[int]:
        """Return the step nearest to each offset from a step's stamp, never one after it."""
        if len(history_ns) == 1 and not history_ns[0]:
            return [step]
        times_ns = self._stamps_ns[step] + np.array(history_ns, np.int64)
        right = np.clip(np.searchsorted(self._stamps_ns, times_ns), 1, max(len(self) - 1, 1))
        middles = (self._stamps_ns[right - 1] + self._stamps_ns[right]) / 2
        nearest = np.where(times_ns < middles, right - 1, right)
        return [min(int(index), step) for index in nearest]


def number_instructions(texts: Sequence[str]) -> list[Instruction]:
    """Return the instruction of every step; the id counts the changes of the text from 0."""
    changes = accumulate((a != b for a, b in pairwise(texts)), initial=0)
    return [Instruction(text, count) for text, count in zip(texts, changes, strict=False)]


def _pair_names(
    what: str, wanted: Sequence[str], available: Sequence[str], renamed: Mapping[str, str]
) -> dict[str, str]:
    unknown = sorted(set(renamed) - set(wanted))
    pairs = {name: renamed.get(name, name) for name in wanted}
    missing = [name for name, partner in pairs.items() if partner not in available]
    if missing or unknown:
        raise DatasetError(
            f'{what}s of the policy and the dataset',
            got=f'the dataset has {", ".join(available) or "none"}',
            expected=f'the policy has {", ".join(wanted) or "none"}; '
            f'without a partner: {", ".join(missing or unknown)}',
            next_step=f"Give a mapping from the policy's {what} names to the dataset's names.",
            code='names_differ',
        )
    return pairs
