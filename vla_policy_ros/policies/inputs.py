# SPDX-License-Identifier: Apache-2.0
"""From an observation to the pool: images, state and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.geometry import CenterCrop, Crop, Resize
from vla_policy_ros.bundle.instruction import InstructionEncoder
from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.bundle.normalization import StateNormalizer
from vla_policy_ros.core.errors import ImageError, StateError
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import Array
from vla_policy_ros.policies.prepared import CameraSlots

EntryT = TypeVar('EntryT')
EntryT_contra = TypeVar('EntryT_contra', contravariant=True)


class ImageSlots(Protocol[EntryT_contra]):
    """One camera's preprocessor with its slots; entries of the pool are arrays or device buffers."""

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess one image into a free slot; any thread may call it."""

    def copy(self, image: PreparedFrame, out: EntryT_contra) -> bool:
        """Copy a prepared image to its place in the pool; return whether it lies in one of these slots."""

    def run(self, frame: Frame, out: EntryT_contra) -> None:
        """Preprocess one image straight to its place in the pool."""


class ImageInput(Protocol):
    """Fills one camera's pool tensor."""

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess one image into a free slot; any thread may call it."""

    def write(self, images: Mapping[str, tuple[Frame | PreparedFrame, ...]]) -> None:
        """Fill the tensor."""


class CameraInput(Generic[EntryT]):
    """Fills one camera's pool tensor, entry by entry of its history.

    Args:
        name: Name of the camera.
        slots: Its preprocessor.
        entries: The parts of the pool tensor, oldest image first.
    """

    def __init__(self, name: str, slots: ImageSlots[EntryT], entries: Sequence[EntryT]) -> None:
        self._name = name
        self._slots = slots
        self._entries = entries

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess one image into a free slot; any thread may call it.

        Raises:
            ImageError: No slot is free, or the image is broken.
        """
        return self._slots.prepare(frame)

    def write(self, images: Mapping[str, tuple[Frame | PreparedFrame, ...]]) -> None:
        """Copy prepared images, preprocess raw ones.

        Raises:
            ImageError: The camera is missing (`missing_camera`), has another number of images than its history
                (`wrong_history`), or an image is of another camera or policy (`foreign_frame`) or broken.
        """
        given = images.get(self._name)
        if given is None or len(given) != len(self._entries):
            got = 'no images' if given is None else f'{len(given)} images'
            raise ImageError(
                f'camera {self._name!r}',
                got=got,
                expected=f'{len(self._entries)}, one per offset of history_ns',
                next_step='Give the images of the whole history, oldest first.',
                code='missing_camera' if given is None else 'wrong_history',
            )
        for entry, image in zip(self._entries, given, strict=True):
            if image.camera != self._name:
                raise self._foreign(f'an image of camera {image.camera!r}')
            if isinstance(image, Frame):
                self._slots.run(image, entry)
            elif not self._slots.copy(image, entry):
                raise self._foreign(f'a {type(image).__name__} that this policy did not prepare')

    def _foreign(self, got: str) -> ImageError:
        return ImageError(
            f'camera {self._name!r}',
            got=got,
            expected='frames of this camera, raw or prepared by this policy',
            next_step='Pass what prepare() of the same policy returned.',
            code='foreign_frame',
        )


def host_cameras(
    bundle: Bundle, pool: Mapping[str, Array], *, slots: int
) -> dict[str, CameraInput[Array]]:
    """Make the inputs of all cameras, preprocessed on the CPU into host arrays."""
    return {
        camera.name: CameraInput(
            camera.name,
            CameraSlots(camera, slots),
            list(pool[camera.tensor].reshape(-1, *camera.image_shape)),  # views of the pool
        )
        for camera in bundle.manifest.cameras
    }


class StateInput:
    """Fills the state's pool tensor."""

    def __init__(self, bundle: Bundle, pool: Mapping[str, Array]) -> None:
        state = bundle.manifest.state
        assert state
        observation = bundle.spec.observation
        self._names = observation.state_names
        self._shape = (len(state.history_ns), len(self._names))
        self._normalizer = StateNormalizer(state, bundle.statistics)
        self._rows = pool[state.tensor].reshape(self._shape[0], -1)  # a view of the pool

    def write(self, state: Array) -> None:
        """Check and normalise.

        Raises:
            StateError: The state has another shape (`wrong_shape`) or is not finite (`not_finite`).
        """
        if state.shape != self._shape:
            raise StateError(
                'state',
                got=f'shape {list(state.shape)}',
                expected=f'{list(self._shape)}: one row per offset of history_ns, one column per name',
                next_step='Give the columns of the spec in their order, oldest row first.',
                code='wrong_shape',
            )
        if not np.isfinite(state).all():
            row, column = (int(index) for index in np.argwhere(~np.isfinite(state))[0])
            raise StateError(
                'state',
                got=f'{state[row, column]} for {self._names[column]}',
                expected='finite values',
                next_step='Look at the driver that publishes this joint.',
                code='not_finite',
            )
        self._normalizer.write(state, self._rows)


class ObservationInput:
    """Fills everything that an observation fills.

    Args:
        bundle: The bundle.
        pool: Host arrays of state and words.
        cameras: Name to the input of each camera.
    """

    def __init__(
        self, bundle: Bundle, pool: Mapping[str, Array], cameras: Mapping[str, ImageInput]
    ) -> None:
        manifest = bundle.manifest
        self._cameras = cameras
        self._state = StateInput(bundle, pool) if manifest.state else None
        words = manifest.instruction
        self._encoder = InstructionEncoder(words, bundle.folder) if words else None
        self._tokens = pool[words.tokens] if words else None
        self._mask = pool[words.mask] if words and words.mask else None
        self._told = pool[manifest.state.tensor] if manifest.state else None

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Preprocess one image into a free slot; any thread may call it.

        Raises:
            ImageError: The policy has no such camera (`unknown_camera`), no slot is free, or the image is broken.
        """
        if frame.camera not in self._cameras:
            raise _unknown_camera(frame.camera, self._cameras)
        return self._cameras[frame.camera].prepare(frame)

    def write(self, observation: Observation) -> None:
        """Fill the pool.

        Raises:
            ImageError: A camera is unknown or missing, or an image cannot be used.
            StateError: The state cannot be used.
            InstructionError: The words cannot be used.
        """
        for name in observation.images:
            if name not in self._cameras:
                raise _unknown_camera(name, self._cameras)
        for camera in self._cameras.values():
            camera.write(observation.images)
        if self._state:
            self._state.write(observation.state)
        if self._encoder and self._tokens is not None:
            words = observation.instruction.text
            self._encoder.write(words, self._tokens, self._mask, state=self._told)


def example_observation(bundle: Bundle) -> Observation:
    """Make an observation of black images and a zero state that the bundle's policy takes."""
    spec = bundle.spec.observation
    images: dict[str, tuple[Frame | PreparedFrame, ...]] = {}
    for camera in bundle.manifest.cameras:
        frame = Frame.from_rgb(camera.name, 0, np.zeros((*least_source_size(camera), 3), np.uint8))
        images[camera.name] = (frame,) * len(camera.history_ns)
    state = np.zeros((len(spec.state_history_ns), len(spec.state)), np.float32)
    return Observation(images=images, state=state, instruction=Instruction('go'), stamp_ns=0)


def least_source_size(camera: Camera) -> tuple[int, int]:
    """Return a size in pixels that the camera's geometry accepts: crops need enough, pads take no more."""
    share = 1.0
    for step in camera.geometry:
        if isinstance(step, CenterCrop):
            share *= step.fraction
            continue
        height, width = step.height, step.width
        if isinstance(step, Crop):
            height, width = step.top + height, step.left + width
        elif isinstance(step, Resize) and step.to == 'shortest_edge':
            width = height * 4 // 3
        # Floor of the crop's share must not fall below the size that comes next.
        return int(np.ceil(height / share)), int(np.ceil(width / share))
    return camera.size


def _unknown_camera(name: str, cameras: Mapping[str, object]) -> ImageError:
    return ImageError(
        f'camera {name!r}',
        got='a camera that the policy does not have',
        expected=f'one of {", ".join(sorted(cameras)) or "(none)"}',
        next_step='Map the topic to one of these names.',
        code='unknown_camera',
    )
