# SPDX-License-Identifier: Apache-2.0
"""What SmolVLA, π0 and π0.5 share: images to tokens, all that the actions look at once, and an expert in every denoise step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from vla_policy_ros.bundle.probe import Probe
from vla_policy_ros.core.dataset import DatasetInfo
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.checkpoint_files import bad_checkpoint
from vla_policy_ros.export.lerobot.checkpoint import CONFIG, STATE, Checkpoint, ImageFeature
from vla_policy_ros.export.lerobot.plan import Plan, library_inputs
from vla_policy_ros.export.traced_policy import Words, example_mask, random_values
from vla_policy_ros.export.tracing import TracedStage, require_torch

IMAGE_TOKENS, TOKENS, TOKEN_MASK = 'image_tokens', 'tokens', 'token_mask'
"""Pool tensors: what the vision network makes of the images, (1, N, D); ids and mask of the words, (1, L) int64."""
_MEMORY, _SAMPLE, _VELOCITY, _TIMESTEP = 'memory', 'sample', 'velocity', 'timestep'
_EMPTY_CAMERA = 'observation.images.empty_camera_'


class FlowNetwork(Protocol):
    """A network after its vision part, in two parts."""

    def compute_memory(self, images: Any, tokens: Any, mask: Any, *state: Any) -> Any:
        """Return what the actions look at, of images, words, and the state of a network that has a token of it."""

    def predict_velocity(self, sample: Any, timestep: Any, memory: Any, mask: Any) -> Any:
        """Return the (1, K, W) velocity of a sample at a (1,) time, 1 for pure noise."""


def settle_cameras(checkpoint: Checkpoint, info: DatasetInfo | None) -> Checkpoint:
    """Return the checkpoint with the cameras that the policy was trained with, in the size of their images.

    A fine-tuned policy keeps the cameras and sizes of the one that it was started from. LeRobot leaves out those that the
    data lacks, or hides their tokens, which is the same; and its resize takes any size.

    Args:
        checkpoint: The checkpoint.
        info: The dataset of the training; without one only LeRobot's own placeholders are left out.

    Raises:
        BundleError: None of the cameras is in the dataset (`no_camera`).
    """
    found = {camera.key: camera for camera in info.cameras} if info else {}
    images: list[ImageFeature] = []
    for image in checkpoint.images:
        camera = found.get(image.source)
        if camera:
            images.append(replace(image, height=camera.height, width=camera.width))
        elif info is None and not image.key.startswith(_EMPTY_CAMERA):
            images.append(image)
    if not images:
        raise bad_checkpoint(
            f'{checkpoint.folder / CONFIG}: input_features',
            got=f'cameras {", ".join(image.source for image in checkpoint.images) or "(none)"}',
            expected=f'one of {", ".join(found) or "any"}, as the dataset calls them',
            next_step='Name the dataset that the policy was trained on.',
            code='no_camera',
        )
    return replace(checkpoint, images=tuple(images))


def plan_flow(
    policy: Any,
    stages: Sequence[TracedStage],
    *,
    words: Words,
    steps: int,
    reference: Callable[[Mapping[str, Array]], Probe],
) -> Plan:
    """Return how a policy becomes a bundle.

    Args:
        policy: LeRobot's policy.
        stages: Its vision network, and what `flow_stages` returns.
        words: The instruction.
        steps: Number of denoise steps.
        reference: Runs LeRobot's own way.
    """
    return Plan(
        observation_steps=1,
        crop=None,
        squeeze_state=True,
        action_tensor=_SAMPLE,
        horizon=policy.config.chunk_size,
        first_row=0,
        executed_rows=policy.config.n_action_steps,
        stages=tuple(stages),
        loop={
            'kind': 'flow_matching_euler',
            'steps': steps,
            'sample': _SAMPLE,
            'prediction': _VELOCITY,
            'timestep': _TIMESTEP,
            'noise_at': 1,
        },
        reference=reference,
        words=words,
    )


def flow_stages(
    policy: Any,
    network: FlowNetwork,
    images: Array,
    *,
    max_tokens: int,
    state: Mapping[str, Array],
) -> tuple[TracedStage, TracedStage]:
    """Return the stages after the vision network: what the actions look at, and the expert.

    Args:
        policy: LeRobot's policy.
        network: Its network in parts.
        images: (1, N, D) example tokens of the images.
        max_tokens: L, most tokens of an instruction.
        state: Pool tensor of the state to example values; nothing for a network that has it among its words.
    """
    config, mask = policy.config, example_mask(max_tokens)
    words = {TOKENS: np.arange(max_tokens)[None] * mask, TOKEN_MASK: mask}
    prefix = TracedStage(
        name='prefix',
        owner=policy.model,
        function=network.compute_memory,
        inputs={IMAGE_TOKENS: images, **words, **state},
        output=_MEMORY,
    )
    expert = TracedStage(
        name='expert',
        owner=policy.model,
        function=network.predict_velocity,
        inputs={
            _SAMPLE: random_values((1, config.chunk_size, config.max_action_dim)),
            _TIMESTEP: abs(random_values((1,))),
            _MEMORY: prefix.run(),
            TOKEN_MASK: mask,
        },
        output=_VELOCITY,
        in_loop=True,
    )
    return prefix, expert


def resize_matrices(
    image: ImageFeature, size: tuple[int, int], *, black_first: bool
) -> tuple[Any, Any]:
    """Return LeRobot's resize, which keeps the aspect ratio, as two matrices: rows @ image @ columns.

    Every engine has products. In the camera's geometry the result would be rounded to 8 bits, which LeRobot does not do.

    Args:
        image: Height and width before, h and w.
        size: Height and width after, H and W.
        black_first: Whether all black stands above and to the left of the image; else as much on both sides.

    Returns:
        (H, h) and (w, W).
    """
    torch = require_torch()
    functional = torch.nn.functional
    ratio = max(image.height / size[0], image.width / size[1])

    def product(length: int, whole: int) -> Any:
        """Return (whole, length): what the resize makes of unit vectors, between rows of 0."""
        kept = int(length / ratio)
        unit = torch.eye(length)[None]
        rows = functional.interpolate(unit, size=kept, mode='linear', align_corners=False)[0].T
        black = whole - kept
        before = black if black_first else black // 2
        return functional.pad(rows, (0, 0, before, black - before))

    return product(image.height, size[0]), product(image.width, size[1]).T


def run_library(
    checkpoint: Checkpoint,
    policy: Any,
    prepare_images: Callable[[dict[str, Any]], tuple[Any, Any]],
    tensors: Mapping[str, Array],
) -> Probe:
    """Run LeRobot's own way from the images on, its resize and its empty cameras included.

    Args:
        checkpoint: The checkpoint.
        policy: LeRobot's policy.
        prepare_images: LeRobot's own: takes key to image, returns all images and which of them are shown.
        tensors: What an observation fills.
    """
    torch, config = require_torch(), policy.config
    images, state = library_inputs(checkpoint, tensors)
    keys = (image.key for image in checkpoint.images)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, config.chunk_size, config.max_action_dim), generator=generator)
    with torch.inference_mode():
        shown = prepare_images(dict(zip(keys, images, strict=True)))
        words = torch.from_numpy(tensors[TOKENS]), torch.from_numpy(tensors[TOKEN_MASK]) != 0
        # A policy with the state among its words has no such step.
        told = [policy.prepare_state({STATE: state})] if hasattr(policy, 'prepare_state') else []
        # lerobot 0.3 integrates in place.
        actions = policy.model.sample_actions(*shown, *words, *told, noise=noise.clone())
    return Probe(tensors, noise.numpy(), actions.numpy())
