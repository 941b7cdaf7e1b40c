# SPDX-License-Identifier: Apache-2.0
"""Inputs at the edges: what a policy must answer with a sound chunk, and what it must refuse in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import ImageError, VlaPolicyError
from vla_policy_ros.core.frame import Frame, PreparedFrame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.core.specs import Array
from vla_policy_ros.preprocess.geometry import GeometryPlan

Answer = Literal['chunk', 'refusal']
Infer = Callable[[Observation], ActionChunk]

_SEED = 0
_NO_ENCODING = 'rgb11'
_BROKEN_JPEG = np.frombuffer(b'\xff\xd8\xff\xe0\x00\x10JFIF\x00 and no more', np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class EdgeCase:
    """One observation and the answer that is right."""

    name: str
    wanted: Answer
    observation: Observation


@dataclass(frozen=True, slots=True)
class EdgeResult:
    """What came of one case.

    Attributes:
        name: Name of the case.
        wanted: The right answer.
        got: The answer, in words.
        is_right: Whether it is the right one.
    """

    name: str
    wanted: Answer
    got: str
    is_right: bool


def edge_cases(bundle: Bundle, recorded: Observation) -> Iterator[EdgeCase]:
    """Yield cases made of one recorded observation of raw images; it comes first and, after all refusals, last.

    What the policy does not take (cameras, state, words) has no cases.
    """
    yield EdgeCase('as recorded', 'chunk', recorded)
    if recorded.images:
        yield from _image_cases(bundle, recorded)
    if bundle.spec.observation.state:
        yield from _state_cases(bundle, recorded)
    if bundle.manifest.instruction:
        words = ' '.join(['pick'] * (4 * bundle.manifest.instruction.max_tokens))
        said = Instruction(words, recorded.instruction.instruction_id + 1)
        yield EdgeCase('too many words', 'refusal', replace(recorded, instruction=said))
    yield EdgeCase('as recorded, after all these', 'chunk', recorded)


def try_case(bundle: Bundle, infer: Infer, case: EdgeCase) -> EdgeResult:
    """Let a policy answer one case.

    Args:
        bundle: The bundle.
        infer: Prepares the images and infers.
        case: The case.
    """
    action = bundle.spec.action
    try:
        chunk = infer(case.observation)
    except VlaPolicyError as fault:
        is_clear = all((fault.where, fault.got, fault.expected, fault.next_step))
        got = f'refused ({fault.code}): {fault.where}: {fault.got}'
        return EdgeResult(case.name, case.wanted, got, case.wanted == 'refusal' and is_clear)
    except Exception as fault:  # noqa: BLE001 - any error that is not ours is what this looks for
        got = f'crash: {type(fault).__name__}: {fault}'
        return EdgeResult(case.name, case.wanted, got, is_right=False)
    wanted, shape = (action.horizon, len(action.columns)), chunk.actions.shape
    got = f'a chunk of {shape[0]} x {shape[1]}'
    is_sound = shape == wanted and bool(np.isfinite(chunk.actions).all())
    if not is_sound:
        got += f', wanted finite numbers, {wanted[0]} x {wanted[1]}'
    return EdgeResult(case.name, case.wanted, got, case.wanted == 'chunk' and is_sound)


def _image_cases(bundle: Bundle, recorded: Observation) -> Iterator[EdgeCase]:
    random = np.random.default_rng(_SEED)

    def fill(level: int) -> Callable[[Frame], Frame]:
        return lambda frame: replace(frame, data=np.full_like(frame.data, level))

    def add_noise(frame: Frame) -> Frame:
        return replace(frame, data=random.integers(0, 256, frame.data.shape, np.uint8))

    for name, change in (('black', fill(0)), ('white', fill(255)), ('noise', add_noise)):
        yield EdgeCase(f'images: {name}', 'chunk', _with_images(recorded, change))
    larger = _with_images(recorded, _enlarge)
    wanted: Answer = 'chunk' if _fits(bundle, larger) else 'refusal'
    yield EdgeCase('images: another size', wanted, larger)
    broken: Mapping[str, Callable[[Frame], Frame]] = {
        'cut off': lambda frame: replace(frame, data=frame.data[: frame.data.size // 2]),
        'broken JPEG': lambda frame: Frame(
            frame.camera, frame.stamp_ns, 'jpeg', 0, 0, 0, _BROKEN_JPEG
        ),
        'unknown encoding': lambda frame: replace(frame, encoding=_NO_ENCODING),
    }
    for name, change in broken.items():
        yield EdgeCase(f'images: {name}', 'refusal', _with_images(recorded, change))
    _, *others = recorded.images
    fewer = {name: recorded.images[name] for name in others}
    yield EdgeCase('images: a camera is missing', 'refusal', replace(recorded, images=fewer))


def _state_cases(bundle: Bundle, recorded: Observation) -> Iterator[EdgeCase]:
    for name in ('min', 'max'):
        row = _edge_row(bundle, recorded.state[-1], name)
        state = np.tile(row, (len(recorded.state), 1))
        yield EdgeCase(f'state: {name} of statistics', 'chunk', replace(recorded, state=state))
    state = recorded.state.copy()
    state[-1, 0] = np.nan
    yield EdgeCase('state: NaN', 'refusal', replace(recorded, state=state))


def _edge_row(bundle: Bundle, row: Array, edge: Literal['min', 'max']) -> Array:
    """Return a state at one edge of the statistics; columns without any stay as they are."""
    assert bundle.manifest.state
    row, start = row.copy(), 0
    for group in bundle.manifest.state.groups:
        end = start + len(group.names)
        if group.name in bundle.statistics:
            row[start:end] = getattr(bundle.statistics[group.name], edge)
        start = end
    return row


def _with_images(recorded: Observation, change: Callable[[Frame], Frame]) -> Observation:
    images: dict[str, tuple[Frame | PreparedFrame, ...]] = {
        name: tuple(change(image) if isinstance(image, Frame) else image for image in stack)
        for name, stack in recorded.images.items()
    }
    return replace(recorded, images=images)


def _enlarge(frame: Frame) -> Frame:
    """Return an RGB image of twice the height and three times the width."""
    rgb = frame.data.reshape(frame.height, frame.width, 3)
    return Frame.from_rgb(frame.camera, frame.stamp_ns, rgb.repeat(2, axis=0).repeat(3, axis=1))


def _fits(bundle: Bundle, observation: Observation) -> bool:
    """Tell whether the geometry of every camera takes its images."""
    for camera in bundle.manifest.cameras:
        for image in observation.images[camera.name]:
            if isinstance(image, Frame):
                try:
                    GeometryPlan(camera.geometry, (image.height, image.width), where=camera.name)
                except ImageError:
                    return False
    return True
