# SPDX-License-Identifier: Apache-2.0
"""SmolVLA: images to tokens, then all that the action expert looks at, once; the expert in every denoise step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.checkpoint_files import unsupported
from vla_policy_ros.export.lerobot.checkpoint import CONFIG, Checkpoint, ImageFeature
from vla_policy_ros.export.lerobot.flow import (
    IMAGE_TOKENS,
    TOKEN_MASK,
    TOKENS,
    flow_stages,
    plan_flow,
    resize_matrices,
    run_library,
)
from vla_policy_ros.export.lerobot.plan import Plan, observation_examples
from vla_policy_ros.export.lerobot.smolvla_network import (
    SmolVla,
    encode_images,
    find_patch_places,
)
from vla_policy_ros.export.traced_policy import STATE_TENSOR, Words
from vla_policy_ros.export.tracing import TracedStage, require_torch

NEWLINE_STEP = 'smolvla_new_line_processor'
"""LeRobot's name of the step that ends the words with a new line."""
# Settings of LeRobot that a bundle cannot follow, and the only value that it can.
_FIXED = {'adapt_to_pi_aloha': False, 'use_cache': True}


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
    words = _words(checkpoint, policy)
    return plan_flow(
        policy,
        _stages(checkpoint, policy, words.max_tokens),
        words=words,
        steps=config.num_steps,
        reference=partial(run_library, checkpoint, policy, policy.prepare_images),
    )


def _check_settings(checkpoint: Checkpoint, policy: Any) -> None:
    config = policy.config
    for name, value in _FIXED.items():
        if getattr(config, name) != value:
            got = f'{name}: {getattr(config, name)}'
            raise unsupported(checkpoint.folder / CONFIG, got, f'{name}: {value}')
    sizes = {(image.height, image.width) for image in checkpoint.images}
    if config.resize_imgs_with_padding is None and len(sizes) > 1:
        raise unsupported(
            checkpoint.folder / CONFIG,
            'images of several sizes, not resized',
            'a value of resize_imgs_with_padding',
        )


def _words(checkpoint: Checkpoint, policy: Any) -> Words:
    """Say how words become tokens; before lerobot 0.4 the policy did it by itself.

    LeRobot pads to the longest text, or on another side: that makes no difference, since padding is neither seen nor
    counted.
    """
    steps, tokenizer = checkpoint.steps, policy.model.vlm_with_expert.processor.tokenizer
    has_newline = NEWLINE_STEP in steps or not steps
    return Words(
        tokens=TOKENS,
        mask=TOKEN_MASK,
        max_tokens=checkpoint.max_words(),
        pad_token=tokenizer.pad_token,
        template='{instruction}\n' if has_newline else '{instruction}',
        tokenizer=tokenizer.backend_tokenizer.to_str(),
    )


def _stages(checkpoint: Checkpoint, policy: Any, max_tokens: int) -> tuple[TracedStage, ...]:
    config = policy.config
    examples = observation_examples(checkpoint, steps=1, crop=None, squeeze_state=True)
    state = {STATE_TENSOR: examples.pop(STATE_TENSOR)}
    vision = _vision_stage(checkpoint, policy, examples)
    images, cameras = vision.run(), len(examples)
    network = SmolVla(
        policy.model,
        image_tokens=images.shape[1] // cameras,
        cameras=cameras,
        empty_cameras=min(len(config.image_features) - cameras, config.empty_cameras),
    )
    return vision, *flow_stages(policy, network, images, max_tokens=max_tokens, state=state)


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
        output=IMAGE_TOKENS,
    )


def _make_resize(image: ImageFeature, size: tuple[int, int] | None) -> Callable[[Any], Any]:
    """Return LeRobot's resize of (1, 3, h, w), or what changes nothing.

    Args:
        image: Height and width before.
        size: Width and height after; None for no resize.
    """
    if size is None:
        return lambda values: values
    width, height = size
    rows, columns = resize_matrices(image, (height, width), black_first=True)
    return lambda values: rows @ values @ columns
