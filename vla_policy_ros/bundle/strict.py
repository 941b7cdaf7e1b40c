# SPDX-License-Identifier: Apache-2.0
"""Strict models of YAML files: an unknown key, a wrong type or a missing value is named with its dotted path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from vla_policy_ros.core.errors import VlaPolicyError


class StrictModel(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(extra='forbid', frozen=True, use_attribute_docstrings=True)


ModelT = TypeVar('ModelT', bound=StrictModel)


def read_yaml(path: Path, error: type[VlaPolicyError]) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; raise `error` when it is missing, broken or something else."""
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise error(
            str(path), got='no such file', expected='a YAML file', next_step='Check the path.'
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise error(
            str(path),
            got=' '.join(str(fault).split()),
            expected='valid YAML in UTF-8',
            next_step='Mend the line that the message names.',
        ) from fault
    if not isinstance(document, dict):
        raise error(
            str(path),
            got=f'a {type(document).__name__} at the top',
            expected='a mapping of keys to values',
            next_step='Compare it with the reference in doc/.',
        )
    return document


def find_faults(
    model: type[ModelT], document: dict[str, Any], where: str, error: type[VlaPolicyError]
) -> tuple[ModelT | None, list[VlaPolicyError]]:
    """Check a document against a model; return the parsed model (None when at fault) and every fault."""
    try:
        return model.model_validate(document), []
    except ValidationError as fault:
        details = fault.errors(include_url=False)
        return None, [
            _describe(detail, model, where, error)
            for detail in details
            if not _is_consequence(detail, details)
        ]


def parse(
    model: type[ModelT], document: dict[str, Any], where: str, error: type[VlaPolicyError]
) -> ModelT:
    """Check a document against a model and return it; raise the first fault and say how many more there are."""
    parsed, faults = find_faults(model, document, where, error)
    if parsed is None:
        raise with_count(faults)
    return parsed


def parse_file(model: type[ModelT], path: Path, error: type[VlaPolicyError]) -> ModelT:
    """Read a YAML file as a model; raise the first fault and say how many more there are."""
    return parse(model, read_yaml(path, error), str(path), error)


def find_file_faults(
    model: type[ModelT], path: Path, error: type[VlaPolicyError]
) -> list[VlaPolicyError]:
    """Return every fault of a YAML file as a model."""
    try:
        document = read_yaml(path, error)
    except VlaPolicyError as fault:
        return [fault]
    return find_faults(model, document, str(path), error)[1]


def with_count(faults: Sequence[VlaPolicyError]) -> VlaPolicyError:
    """Return the first fault; its next step also says how many more there are."""
    first, more = faults[0], len(faults) - 1
    if not more:
        return first
    facts = first.as_dict()
    return type(first)(
        facts['where'],
        got=facts['got'],
        expected=facts['expected'],
        next_step=f'{facts["next_step"]} {more} more: run `vla-policy check`.',
        code=facts['code'],
    )


def _is_consequence(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Whether a list only counts as too short because an item of it is at fault."""
    place = detail['loc']
    return detail['type'] == 'too_short' and any(
        len(other['loc']) > len(place) and other['loc'][: len(place)] == place for other in details
    )


def _describe(
    detail: ErrorDetails, model: type[BaseModel], where: str, error: type[VlaPolicyError]
) -> VlaPolicyError:
    keys = [str(part) for part in detail['loc']]
    place = f'{where}: {_dotted(detail["loc"])}'
    if detail['type'] == 'extra_forbidden':
        allowed = sorted(_allowed_keys(model, detail['loc'][:-1]))
        close = difflib.get_close_matches(keys[-1], allowed, n=1)
        hint = f'Did you mean {close[0]!r}?' if close else 'Remove the key.'
        return error(
            place,
            got='an unknown key',
            expected=f'one of {", ".join(allowed)}' if allowed else 'no such key',
            next_step=hint,
            code='unknown_key',
        )
    if detail['type'] == 'missing':
        return error(
            place,
            got='nothing',
            expected=f'a value for {keys[-1]!r}',
            next_step='Add the key.',
            code='missing_key',
        )
    message = detail['msg'].removeprefix('Input should be ').removeprefix('Value error, ')
    return error(
        place,
        got=repr(detail['input'])[:120],
        expected=message,
        next_step='Change the value.',
        code='bad_value',
    )


def _dotted(location: tuple[int | str, ...]) -> str:
    path = ''
    for part in location:
        path += f'[{part}]' if isinstance(part, int) else f'.{part}'
    return path.lstrip('.') or '(top level)'


def _allowed_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """Return the keys known at a location; where it may hold one of several models, those of all of them."""
    models: set[type[BaseModel]] = {model}
    for part in location:
        fields = [m.model_fields[str(part)].annotation for m in models if part in m.model_fields]
        if fields:
            models = {inner for annotation in fields for inner in _models_in(annotation)}
        else:  # an index, a mapping's key, or the tag of a union
            tagged = {m for m in models if part in _tags(m)}
            models = tagged or models
    return {key for m in models for key in m.model_fields}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _tags(model: type[BaseModel]) -> set[str]:
    kind = model.model_fields.get('kind')
    return set(get_args(kind.annotation)) if kind else set()
