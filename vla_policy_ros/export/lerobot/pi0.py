# SPDX-License-Identifier: Apache-2.0
"""π0 and π0.5: images to tokens, then all that the actions look at, once; the action expert in every denoise step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

from vla_policy_ros.bundle.instruction import make_prompt
from vla_policy_ros.bundle.manifest import InstructionInput
from vla_policy_ros.core.errors import MissingDependencyError
from vla_policy_ros.export.checkpoint_files import bad_checkpoint
from vla_policy_ros.export.lerobot.checkpoint import CONFIG, STATE, Checkpoint, ImageFeature
from vla_policy_ros.export.lerobot.flow import (
    IMAGE_TOKENS,
    TOKEN_MASK,
    TOKENS,
    flow_stages,
    plan_flow,
    resize_matrices,
    run_library,
)
from vla_policy_ros.export.lerobot.library import load_tokenizer, require_lerobot
from vla_policy_ros.export.lerobot.pi0_network import Pi0, Pi05, encode_images
from vla_policy_ros.export.lerobot.plan import Plan, observation_examples
from vla_policy_ros.export.lerobot.processors import PREPROCESSOR, TOKENIZER_STEP
from vla_policy_ros.export.traced_policy import STATE_TENSOR, Words
from vla_policy_ros.export.tracing import TracedStage, require_torch

LINE_STEP = 'pi0_new_line_processor'
"""LeRobot's name of the step that ends the words of π0 with a new line."""
PROMPT_STEP = 'pi05_prepare_state_tokenizer_processor_step'
"""LeRobot's name of the step that puts the words and the state of π0.5 into one text."""
_MIN_VERSION = (0, 6)


def check_library() -> None:
    """Refuse a lerobot that computes π0 in another way; 0.4 needs a fork of transformers, 0.5 scales tokens by itself.

    Raises:
        MissingDependencyError: It is not installed, or too old.
    """
    require_lerobot('policies.factory')
    version = metadata.version('lerobot')
    if tuple(int(part) for part in re.findall(r'\d+', version)[:2]) < _MIN_VERSION:
        raise MissingDependencyError(
            'export lerobot',
            got=f'lerobot {version}',
            expected='lerobot 0.6 or later for pi0 and pi05',
            next_step="Export in an environment of Python 3.12 or later: pip install 'lerobot[pi]>=0.6'",
        )


def plan_pi0(checkpoint: Checkpoint, policy: Any) -> Plan:
    """Return how a π0 becomes a bundle.

    Its language model may be kept in bfloat16; the bundle's networks are float32, which holds the same weights.

    Args:
        checkpoint: The checkpoint.
        policy: Its `PI0Policy`, on the CPU.

    Raises:
        MissingDependencyError: What the tokenizer needs is not installed.
        BundleError: A step before the network is missing, or the state is too wide (`bad_checkpoint`), or the tokenizer is
            not there (`missing_vlm`).
    """
    width, limit = checkpoint.state.width, policy.config.max_state_dim
    if width > limit:
        raise bad_checkpoint(
            checkpoint.folder / PREPROCESSOR,
            got=f'statistics of a state of {width} columns',
            expected=f'at most {limit}, max_state_dim of {CONFIG}',
            next_step='Save the checkpoint again with the statistics of its training data.',
        )
    _find_step(checkpoint, LINE_STEP)
    words = _make_words(checkpoint, template='{instruction}\n')
    return _make_plan(checkpoint, policy, words, network=Pi0)


def plan_pi05(checkpoint: Checkpoint, policy: Any) -> Plan:
    """Return how a π0.5 becomes a bundle; arguments as those of `plan_pi0`.

    Raises:
        MissingDependencyError: What the tokenizer needs is not installed.
        BundleError: A step before the network is missing (`bad_checkpoint`), or the tokenizer is not there (`missing_vlm`), or
            the installed LeRobot tells the state in another way (`other_prompt`).
    """
    words = _make_words(
        checkpoint,
        template='Task: {instruction}, State: {state};\nAction: ',
        state_bins=256,
        cleaning='one_line',
    )
    _check_prompt(checkpoint, words)
    return _make_plan(checkpoint, policy, words, network=Pi05)


def _make_plan(checkpoint: Checkpoint, policy: Any, words: Words, *, network: type[Pi0]) -> Plan:
    policy.float()
    prepare_images = policy._preprocess_images  # noqa: SLF001 - nothing public does this part alone
    return plan_flow(
        policy,
        _make_stages(checkpoint, policy, words.max_tokens, network=network),
        words=words,
        steps=policy.config.num_inference_steps,
        reference=partial(run_library, checkpoint, policy, prepare_images),
    )


def _find_step(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    """Return the settings of a step before the network."""
    step = checkpoint.steps.get(name)
    if step is None:
        raise bad_checkpoint(
            checkpoint.folder / PREPROCESSOR,
            got=f'no step {name}',
            expected=f'the steps that LeRobot makes for {checkpoint.policy_type}',
            next_step="Save the policy's processors beside it with their save_pretrained().",
        )
    return step


def _make_words(checkpoint: Checkpoint, **rules: Any) -> Words:
    """Say how words become tokens, by the rules of the family; padding is neither seen nor counted, on whatever side."""
    step = _find_step(checkpoint, TOKENIZER_STEP)
    tokenizer = load_tokenizer(str(step.get('tokenizer_name')))
    return Words(
        tokens=TOKENS,
        mask=TOKEN_MASK,
        max_tokens=checkpoint.max_words(),
        pad_token=tokenizer.pad_token,
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        **rules,
    )


def _check_prompt(checkpoint: Checkpoint, words: Words) -> None:
    """Hold our text against that of LeRobot's own step: in all bins, on their edges and outside of them."""
    torch, processor = require_torch(), require_lerobot('processor')
    step = processor.ProcessorStepRegistry.get(PROMPT_STEP)(**_find_step(checkpoint, PROMPT_STEP))
    observation, task = (
        processor.TransitionKey.OBSERVATION,
        processor.TransitionKey.COMPLEMENTARY_DATA,
    )
    rules = InstructionInput(**words.as_dict())
    width, said = checkpoint.state.width, ' Pick_up\nthe cube '
    values = np.arange(-280, 281, dtype=np.float32) / 256
    for state in np.resize(values, (-(-values.size // width), 1, width)):
        transition = {observation: {STATE: torch.from_numpy(state)}, task: {'task': [said]}}
        theirs, ours = step(transition)[task]['task'][0], make_prompt(rules, said, state)
        if theirs != ours:
            raise bad_checkpoint(
                f'{checkpoint.folder / PREPROCESSOR}: {PROMPT_STEP}',
                got=f'the text {theirs[:160]!r}',
                expected=f'{ours[:160]!r}',
                next_step='Export with another version of lerobot, and report the version.',
                code='other_prompt',
            )


def _make_stages(
    checkpoint: Checkpoint, policy: Any, max_tokens: int, *, network: type[Pi0]
) -> tuple[TracedStage, ...]:
    config, model = policy.config, policy.model
    joint, modules = model.paligemma_with_expert, require_torch().nn.ModuleList
    examples = observation_examples(checkpoint, steps=1, crop=None, squeeze_state=True)
    state = {STATE_TENSOR: examples.pop(STATE_TENSOR)}
    resizes = [make_resize(image, config.image_resolution) for image in checkpoint.images]
    vlm = joint.paligemma.model
    vision = TracedStage(
        name='vision',
        owner=modules([vlm.vision_tower, vlm.multi_modal_projector]),
        function=lambda *images: encode_images(joint, images, resizes),
        inputs=examples,
        output=IMAGE_TOKENS,
    )
    images = vision.run()
    parts = network(model, image_tokens=images.shape[1])
    told = state if parts.has_state else {}
    return vision, *flow_stages(policy, parts, images, max_tokens=max_tokens, state=told)


def make_resize(image: ImageFeature, size: tuple[int, int]) -> Callable[[Any], Any]:
    """Return LeRobot's resize of (1, 3, h, w), or what changes nothing.

    Args:
        image: Height and width before.
        size: Height and width after.
    """
    if (image.height, image.width) == tuple(size):
        return lambda values: values
    rows, columns = resize_matrices(image, size, black_first=False)
    return lambda values: (rows @ values @ columns).clamp(0.0, 1.0)
