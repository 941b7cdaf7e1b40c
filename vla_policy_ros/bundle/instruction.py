# SPDX-License-Identifier: Apache-2.0
"""From words, and a state that is told in words, to tokens, as the policy was trained with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_ros.bundle.manifest import InstructionInput
from vla_policy_ros.core.errors import (
    BundleError,
    InstructionError,
    MissingDependencyError,
    SpecMismatchError,
)
from vla_policy_ros.core.specs import Array

_PUNCTUATION = re.compile(r'[^\w\s]')
_STATE = '{state}'
_ONE_LINE = str.maketrans('_\n', '  ')


class InstructionEncoder:
    """Turns instructions into tokens and pads them; keeps the tokens of the last text. One thread at a time.

    Args:
        instruction: The manifest's entry.
        folder: The bundle's folder.

    Raises:
        BundleError: The tokenizer's file is missing or broken, or does not know the padding token.
        MissingDependencyError: The `tokenizers` library is not installed.
    """

    def __init__(self, instruction: InstructionInput, folder: Path) -> None:
        self._rules = instruction
        self._tokenizer = _load_tokenizer(folder / instruction.tokenizer)
        pad_id = self._tokenizer.token_to_id(instruction.pad_token)
        if pad_id is None:
            raise BundleError(
                'instruction.pad_token',
                got=repr(instruction.pad_token),
                expected=f'a token of {instruction.tokenizer}',
                next_step='Look the padding token up in the tokenizer file.',
                code='unknown_pad_token',
            )
        self._pad_id = int(pad_id)
        self._tells_state = _STATE in instruction.template
        self._text: str | None = None
        self._prompt: str | None = None
        self._tokens = np.full((1, instruction.max_tokens), self._pad_id, np.int64)
        self._mask = np.zeros_like(self._tokens)

    def write(
        self, text: str, tokens: Array, mask: Array | None = None, *, state: Array | None = None
    ) -> None:
        """Write the tokens of an instruction; the last text, state included, is not tokenised again.

        Args:
            text: The instruction as a person wrote it.
            tokens: (1, max_tokens) int64, host memory.
            mask: (1, max_tokens) int64, 1 where there is a token.
            state: The state's tensor, for a template that holds it.

        Raises:
            InstructionError: `empty_instruction`: no words are left after cleaning and the policy needs some;
                `instruction_too_long`: it has more than max_tokens tokens.
            SpecMismatchError: An array has another shape.
        """
        for array in (tokens,) if mask is None else (tokens, mask):
            if array.shape != self._tokens.shape:
                raise SpecMismatchError(
                    'instruction tokens',
                    got=list(array.shape),
                    expected=str(list(self._tokens.shape)),
                    next_step='Check instruction.max_tokens in bundle.yaml.',
                )
        # Words alone are cleaned and tokenised when they change; a state that is told changes with every observation.
        if self._tells_state or text != self._text:
            prompt = make_prompt(self._rules, text, state)
            if prompt != self._prompt:
                self._encode(prompt)
            self._text = text
        np.copyto(tokens, self._tokens)
        if mask is not None:
            np.copyto(mask, self._mask)

    def _encode(self, prompt: str) -> None:
        ids = self._tokenizer.encode(prompt).ids
        length = self._rules.max_tokens
        if len(ids) > length:
            raise InstructionError(
                'instruction',
                got=f'{len(ids)} tokens in {prompt[:80]!r}',
                expected=f'at most {length}',
                next_step='Say it in fewer words.',
                code='instruction_too_long',
            )
        left = self._rules.padding_side == 'left'
        used = slice(length - len(ids), None) if left else slice(len(ids))
        self._tokens[:], self._mask[:] = self._pad_id, 0
        self._tokens[0, used], self._mask[0, used] = ids, 1
        self._prompt = prompt


def make_prompt(rules: InstructionInput, text: str, state: Array | None = None) -> str:
    """Return the text that becomes tokens: the instruction, cleaned, in its template.

    Args:
        rules: The manifest's entry.
        text: The instruction as a person wrote it.
        state: The state's tensor, for a template that holds it.

    Raises:
        InstructionError: No words are left after cleaning and the policy needs some (`empty_instruction`).
    """
    text = _clean(text, rules.cleaning)
    if not text.strip() and not rules.allow_empty:
        raise InstructionError(
            'instruction',
            got='no words',
            expected='an instruction, since this policy needs one',
            next_step='Publish an instruction, or set one in the deployment file.',
            code='empty_instruction',
        )
    prompt = rules.template
    # Not str.format: chat templates hold braces of their own. The words come last: they may hold any text.
    if _STATE in prompt:
        assert state is not None  # the manifest has one
        prompt = prompt.replace(_STATE, _tell(state, rules.state_bins))
    return prompt.replace('{instruction}', text)


def _clean(text: str, cleaning: str) -> str:
    if cleaning == 'lower_no_punctuation':
        return _PUNCTUATION.sub('', text.lower())
    if cleaning == 'one_line':
        return text.strip().translate(_ONE_LINE)
    return text


def _tell(state: Array, num_bins: int) -> str:
    edges = np.linspace(-1, 1, num_bins + 1)[:-1]
    return ' '.join(map(str, np.digitize(state.ravel(), edges) - 1))


def _load_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as fault:
        raise MissingDependencyError(
            'instruction',
            got='no tokenizers library',
            expected='tokenizers 0.19 or newer',
            next_step='Run `pip install tokenizers`.',
        ) from fault
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as fault:
        raise BundleError(
            str(path),
            got=' '.join(str(fault).split())[:200],
            expected="a file in the tokenizers library's format",
            next_step='Save it with `tokenizer.save(path)` and hash it anew.',
            code='bad_tokenizer',
        ) from fault
    tokenizer.no_truncation()  # a cut instruction would be another instruction
    tokenizer.no_padding()
    return tokenizer
