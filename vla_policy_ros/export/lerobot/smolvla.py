# SPDX-License-Identifier: Apache-2.0
"""SmolVLA: images to tokens, then all that the action expert looks at, once; the expert in every denoise step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vla_policy_ros.core.dataset import DatasetInfo
from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.lerobot.checkpoint import CONFIG, STATE, Checkpoint, ImageFeature
from vla_policy_ros.export.lerobot.faults import bad_checkpoint
from vla_policy_ros.export.lerobot.plan import Plan, library_inputs, observation_examples
from vla_policy_ros.export.lerobot.processors import TOKENIZER_STEP
from vla_policy_ros.export.lerobot.smolvla_network import (
    SmolVla,
    encode_images,
    find_patch_places,
)
from vla_policy_ros.export.traced_policy import STATE_TENSOR, Reference, Words, random_values
from vla_policy_ros.export.tracing import TracedStage, as_module, require_torch

NEWLINE_STEP = 'smolvla_new_line_processor'
"""LeRobot's name of the step that ends the words with a new line."""
_IMAGES, _MEMORY, _TOKENS, _MASK = 'image_tokens', 'memory', 'tokens', 'token_mask'
_SAMPLE, _VELOCITY, _TIMESTEP = 'sample', 'velocity', 'timestep'
_EMPTY_CAMERA = 'observation.images.empty_camera_'
# Settings of LeRobot that a bundle cannot follow, and the only value that it can.
_FIXED = {'adapt_to_pi_aloha': False, 'use_cache': True}


def settle_cameras(checkpoint: Checkpoint, info: DatasetInfo | None) -> Checkpoint:
    """Return the checkpoint with the cameras that the policy was trained with, in the size of their images.

    A fine-tuned SmolVLA keeps the cameras and sizes of the policy that it was started from. LeRobot leaves out those that
    the data lacks, or hides their tokens, which is the same; and its resize takes any size.

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


def plan_smolvla(checkpoint: Checkpoint, policy: Any) -> Plan:
    """Return how a SmolVLA becomes a bundle.

    Its language model may be kept in bfloat16; the bundle's networks are float32, which holds the same weights.

    Args:
        checkpoint: The checkpoint.
        policy: Its `SmolVLAPolicy`, on the CPU.

    Raises:
        BundleError: A setting cannot be followed (`unsupported_setting`).
    """
    config = policy.config
    _check_settings(checkpoint, policy)
    policy.float()
    return Plan(
        observation_steps=1,
        crop=None,
        squeeze_state=True,
        action_tensor=_SAMPLE,
        horizon=config.chunk_size,
        first_row=0,
        executed_rows=config.n_action_steps,
        stages=_stages(checkpoint, policy),
        loop={
            'kind': 'flow_matching_euler',
            'steps': config.num_steps,
            'sample': _SAMPLE,
            'prediction': _VELOCITY,
            'timestep': _TIMESTEP,
            'noise_at': 1,
        },
        reference=lambda tensors: _run_library(checkpoint, policy, tensors),
        words=_words(checkpoint, policy),
    )


def _check_settings(checkpoint: Checkpoint, policy: Any) -> None:
    config = policy.config
    for name, value in _FIXED.items():
        if getattr(config, name) != value:
            raise _unsupported(checkpoint, f'{name}: {getattr(config, name)}', f'{name}: {value}')
    sizes = {(image.height, image.width) for image in checkpoint.images}
    if config.resize_imgs_with_padding is None and len(sizes) > 1:
        raise _unsupported(
            checkpoint,
            'images of several sizes, not resized',
            'a value of resize_imgs_with_padding',
        )


def _unsupported(checkpoint: Checkpoint, got: str, expected: str) -> BundleError:
    return bad_checkpoint(
        checkpoint.folder / CONFIG,
        got=got,
        expected=expected,
        next_step='Train without this setting; no bundle can follow it.',
        code='unsupported_setting',
    )


def _words(checkpoint: Checkpoint, policy: Any) -> Words:
    """Say how words become tokens; before lerobot 0.4 the policy did it by itself.

    LeRobot pads to the longest text, or on another side: that makes no difference, since padding is neither seen nor
    counted.
    """
    steps, tokenizer = checkpoint.steps, policy.model.vlm_with_expert.processor.tokenizer
    has_newline = NEWLINE_STEP in steps or not steps
    return Words(
        tokens=_TOKENS,
        mask=_MASK,
        max_tokens=_max_tokens(checkpoint),
        pad_token=tokenizer.pad_token,
        template='{instruction}\n' if has_newline else '{instruction}',
        tokenizer=tokenizer.backend_tokenizer.to_str(),
    )


def _max_tokens(checkpoint: Checkpoint) -> int:
    step = checkpoint.steps.get(TOKENIZER_STEP)
    return int(step['max_length'] if step else checkpoint.config['tokenizer_max_length'])


def _stages(checkpoint: Checkpoint, policy: Any) -> tuple[TracedStage, ...]:
    config, model = policy.config, policy.model
    examples = observation_examples(checkpoint, steps=1, crop=None, squeeze_state=True)
    state = {STATE_TENSOR: examples.pop(STATE_TENSOR)}
    vision = _vision_stage(checkpoint, policy, examples)
    images, cameras = vision.run(), len(examples)
    network = SmolVla(
        model,
        image_tokens=images.shape[1] // cameras,
        cameras=cameras,
        empty_cameras=min(len(config.image_features) - cameras, config.empty_cameras),
    )
    words = _example_words(_max_tokens(checkpoint))
    prefix = TracedStage(
        name='prefix',
        owner=model,
        function=network.compute_memory,
        inputs={_IMAGES: images, **words, **state},
        output=_MEMORY,
    )
    expert = TracedStage(
        name='expert',
        owner=model,
        function=network.predict_velocity,
        inputs={
            _SAMPLE: random_values((1, config.chunk_size, config.max_action_dim)),
            _TIMESTEP: abs(random_values((1,))),
            _MEMORY: prefix.run(),
            _MASK: words[_MASK],
        },
        output=_VELOCITY,
        in_loop=True,
    )
    return vision, prefix, expert


def _vision_stage(
    checkpoint: Checkpoint, policy: Any, examples: Mapping[str, Array]
) -> TracedStage:
    joint, size = policy.model.vlm_with_expert, policy.config.resize_imgs_with_padding
    resizes = [_make_resize(image, size) for image in checkpoint.images]
    first = require_torch().from_numpy(next(iter(examples.values())))
    places = find_patch_places(joint, tuple(resizes[0](first).shape[2:]))
    return TracedStage(
        name='vision',
        owner=joint.get_vlm_model(),
        function=lambda *images: encode_images(joint, images, resizes, places),
        inputs=examples,
        output=_IMAGES,
    )


def _example_words(length: int) -> dict[str, Array]:
    """Return the first words of any vocabulary, two thirds of what there is room for."""
    torch = require_torch()
    places = torch.arange(length)[None]
    mask = (places < max(2 * length // 3, 1)).long()
    return {_TOKENS: (places * mask).numpy(), _MASK: mask.numpy()}


def _make_resize(image: ImageFeature, size: tuple[int, int] | None) -> Any:
    """Return LeRobot's resize of (1, 3, h, w) as two products with matrices, which every engine has, or what changes nothing.

    It keeps the aspect ratio and puts black above and to the left. In the camera's geometry it would be rounded to 8 bits.

    Args:
        image: Height and width before.
        size: Width and height after; None for no resize.
    """
    if size is None:
        return as_module(lambda values: values)
    functional = require_torch().nn.functional
    ratio = max(image.width / size[0], image.height / size[1])
    eye = require_torch().eye

    def product(length: int, whole: int) -> Any:
        """Return (whole, length): what the resize makes of unit vectors, below rows of 0."""
        kept = int(length / ratio)
        unit = eye(length)[None]
        rows = functional.interpolate(unit, size=kept, mode='linear', align_corners=False)[0].T
        return functional.pad(rows, (0, 0, max(0, whole - kept), 0))

    rows, columns = product(image.height, size[1]), product(image.width, size[0]).T
    return as_module(lambda values: rows @ values @ columns)


def _run_library(checkpoint: Checkpoint, policy: Any, tensors: Mapping[str, Array]) -> Reference:
    """Run LeRobot's own way from the images on, its resize and its empty cameras included."""
    torch, config = require_torch(), policy.config
    images, state = library_inputs(checkpoint, tensors)
    keys = (image.key for image in checkpoint.images)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, config.chunk_size, config.max_action_dim), generator=generator)
    with torch.inference_mode():
        shown = policy.prepare_images(dict(zip(keys, images, strict=True)))
        actions = policy.model.sample_actions(
            *shown,
            torch.from_numpy(tensors[_TOKENS]),
            torch.from_numpy(tensors[_MASK]) != 0,
            policy.prepare_state({STATE: state}),
            noise=noise.clone(),  # lerobot 0.3 integrates in place
        )
    return Reference(noise.numpy(), actions.numpy())
