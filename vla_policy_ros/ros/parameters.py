# SPDX-License-Identifier: Apache-2.0
"""ROS parameters from one strict model: description, range, choices and read-only mark have a single source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import Field
from pydantic.fields import FieldInfo
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

from vla_policy_ros.bundle.strict import StrictModel, find_faults, parse
from vla_policy_ros.core.errors import ConfigurationError

ModelT = TypeVar('ModelT', bound=StrictModel)


def dynamic(default: Any, **constraints: Any) -> Any:
    """Return the field of a parameter that may change while the node runs; all others are read-only."""
    return Field(default=default, json_schema_extra={'dynamic': True}, **constraints)


def is_dynamic(field: FieldInfo) -> bool:
    """Return whether a parameter may change while the node runs."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get('dynamic'))


def require_file(name: str, path: str, what: str) -> str:
    """Return the path that a parameter gives.

    Args:
        name: The parameter.
        path: Its value.
        what: What the file is, such as `executor file`.

    Raises:
        ConfigurationError: It is empty.
    """
    if path:
        return path
    raise ConfigurationError(
        f'parameter {name}',
        got='nothing',
        expected=f'an {what}',
        next_step=f'Give its path: -p {name}:={what.split(maxsplit=1)[0]}.yaml',
    )


class NodeParameters(Generic[ModelT]):
    """Declares a model's fields on a node, reads them once, and keeps the checked whole up to date.

    Args:
        node: An rclpy node.
        model: Strict model with a default for every field; attribute docstrings become descriptions.
        on_change: Called with the new whole after a dynamic parameter changed.

    Raises:
        ConfigurationError: A start value is of another type, or outside its range or choices.
    """

    def __init__(
        self, node: Any, model: type[ModelT], on_change: Callable[[ModelT], None]
    ) -> None:
        self._model = model
        self._name = node.get_name()
        self._on_change = on_change
        values = {
            name: self._declare(node, name, field) for name, field in model.model_fields.items()
        }
        self.current: ModelT = parse(
            model, _from_ros(values), f'parameters of {self._name}', ConfigurationError
        )
        node.add_on_set_parameters_callback(self._set)

    def _declare(self, node: Any, name: str, field: FieldInfo) -> Any:
        descriptor = describe(field)
        try:
            return node.declare_parameter(name, _to_ros(field.default), descriptor).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as fault:
            raise ConfigurationError(
                f'parameters of {self._name}: {name}',
                got=str(fault),
                expected=f'a value like {field.default!r}',
                next_step=f'{descriptor.description} Numbers with a fraction need a point, such as 2.0.'
                if isinstance(field.default, float)
                else f'{descriptor.description}',
                code='bad_value',
            ) from fault

    def _set(self, parameters: Sequence[Any]) -> SetParametersResult:
        ours = {p.name: p.value for p in parameters if p.name in self._model.model_fields}
        if not ours:
            return SetParametersResult(successful=True)
        values = {**self.current.model_dump(), **_from_ros(ours)}
        parsed, faults = find_faults(
            self._model, values, f'parameters of {self._name}', ConfigurationError
        )
        if parsed is None:
            return SetParametersResult(successful=False, reason=str(faults[0]))
        self.current = parsed
        self._on_change(parsed)
        return SetParametersResult(successful=True)


def describe(field: FieldInfo) -> ParameterDescriptor:
    """Return the descriptor of one field: its docstring, range, choices and read-only mark."""
    descriptor = ParameterDescriptor(
        description=field.description or '', read_only=not is_dynamic(field)
    )
    low, high = _bounds(field.metadata)
    if low is not None and high is not None:
        if isinstance(field.default, float):
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        else:
            descriptor.integer_range = [
                IntegerRange(from_value=int(low), to_value=int(high), step=1)
            ]
    if get_origin(field.annotation) is Literal:
        choices = ', '.join(repr(choice) for choice in get_args(field.annotation))
        descriptor.additional_constraints = f'one of {choices}'
    return descriptor


def _bounds(metadata: Iterable[Any]) -> tuple[float | None, float | None]:
    low = high = None
    for item in metadata:
        if isinstance(item, Ge):
            low = float(item.ge)  # type: ignore[arg-type]
        if isinstance(item, Le):
            high = float(item.le)  # type: ignore[arg-type]
    return low, high


def _to_ros(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _from_ros(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
