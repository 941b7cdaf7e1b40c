# SPDX-License-Identifier: Apache-2.0
"""Training samples: rendered images, states, words and recorded chunks, through the preprocessing of the runtime."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from layout import HORIZON, IMAGE_PX, SEED, describe
from world import EpisodeRecord, record_episode

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.evaluation.truth import recorded_chunk
from vla_policy_ros.preprocess.camera import CameraPreprocessor

Array = npt.NDArray[Any]
WANDER_RAD = 0.02
CAMERAS = ('front', 'wrist')


@dataclass(frozen=True)
class Samples:
    """N samples in the order of their episodes and steps.

    Attributes:
        images: (N, 2, 3, 96, 96) uint8, cameras front and wrist, as the policy's cameras shape them.
        state: (N, 6) float32 radians, gripper 0 to 1.
        chunk: (N, 16, 6) float32 recorded actions from the sample's step on.
        target: (N, 2) float32 place of the block that was asked for, metres.
        instructions: N texts.
    """

    images: Array
    state: Array
    chunk: Array
    target: Array
    instructions: tuple[str, ...]


def record(index: int) -> EpisodeRecord:
    """Record episode `index` of the data that this example is made of."""
    return record_episode((SEED, index), wander_rad=WANDER_RAD)


def make_samples(indices: range, *, steps_per_episode: int, processes: int = 2) -> Samples:
    """Record episodes and render some steps of each, drawn by the seed; in several processes.

    Args:
        indices: Numbers of the episodes.
        steps_per_episode: Number of steps rendered per episode; the first one is always among them.
        processes: Number of processes.
    """
    work = partial(_sample_episode, steps=steps_per_episode)
    with ProcessPoolExecutor(processes) as pool:
        parts = list(pool.map(work, indices, chunksize=4))
    fields = ('images', 'state', 'chunk', 'target')
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in fields}
    texts = tuple(text for part in parts for text in part.instructions)
    return Samples(**arrays, instructions=texts)


def chunks_of(action: Array) -> Array:
    """Return the (N, 16, 6) recorded chunk of every step of (N, 6) actions."""
    return np.stack([recorded_chunk(action, step, HORIZON) for step in range(len(action))])


def _sample_episode(index: int, *, steps: int) -> Samples:
    cv2.setNumThreads(1)
    episode = record(index)
    rng = np.random.default_rng((SEED, index, 1))
    later = rng.choice(len(episode.state) - 1, steps - 1, replace=False) + 1
    chosen = [0, *sorted(later.tolist())]
    cameras = _uint8_cameras()
    images = np.empty((steps, len(CAMERAS), 3, IMAGE_PX, IMAGE_PX), np.uint8)
    for row, step in enumerate(chosen):
        seen = episode.worlds[step].images()
        for column, name in enumerate(CAMERAS):
            cameras[name].run(Frame.from_rgb(name, 0, seen[name]), images[row, column])
    return Samples(
        images,
        episode.state[chosen],
        chunks_of(episode.action)[chosen],
        np.tile(np.float32(episode.target[:2]), (steps, 1)),
        (episode.instruction,) * steps,
    )


def _uint8_cameras() -> dict[str, CameraPreprocessor]:
    """Return the policy's own preprocessing up to the scaling, which training does on whole batches."""
    cameras = (Camera.model_validate(camera) for camera in describe('')['cameras'])
    return {
        camera.name: CameraPreprocessor(camera.model_copy(update={'dtype': 'uint8'}))
        for camera in cameras
    }
