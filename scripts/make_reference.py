# SPDX-License-Identifier: Apache-2.0
"""Writes doc/reference/ from the code: schemas of the files, node parameters, messages and actions, command line.

Usage: make_reference.py [--check]        --check writes nothing and exits 1 when a page is out of date
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'doc' / 'reference'
NOTE = '<!-- Written by scripts/make_reference.py from the code; change it there. -->'


def main() -> int:
    """Write or check every page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='only say what is out of date')
    check = parser.parse_args().check
    is_current = True
    for name, text in pages().items():
        path = FOLDER / name
        old = path.read_text(encoding='utf-8') if path.exists() else ''
        if old == text:
            continue
        is_current = False
        if check:
            diff = difflib.unified_diff(
                old.splitlines(), text.splitlines(), name, 'code', lineterm=''
            )
            print('\n'.join(list(diff)[:40]))
        else:
            path.write_text(text, encoding='utf-8')
            print(f'wrote {path.relative_to(ROOT)}')
    return int(check and not is_current)


def pages() -> dict[str, str]:
    """Return the text of every page by file name."""
    from vla_policy_ros.bundle.manifest import Manifest
    from vla_policy_ros.deployment.config import Deployment
    from vla_policy_ros.deployment.executor import ExecutorSettings
    from vla_policy_ros.export.network.description import NetworkDescription

    return {
        'bundle.md': schema_page('bundle.yaml', Manifest),
        'network.md': schema_page('Description of a network', NetworkDescription),
        'deployment.md': schema_page('Deployment file', Deployment),
        'executor.md': schema_page('Executor file', ExecutorSettings),
        'parameters.md': parameters_page(),
        'messages.md': messages_page(),
        'command_line.md': command_line_page(),
    }


def schema_page(title: str, model: type[BaseModel]) -> str:
    """Return one section per model, the whole file first."""
    module = inspect.getdoc(sys.modules[model.__module__]) or ''
    sections = [f'# {title}', NOTE, module, 'An unknown key is refused, with its path and a hint.']
    for item in dict.fromkeys(_reachable(model)):
        sections.append(f'## {item.__name__}\n\n{inspect.getdoc(item)}')
        sections.append(_field_table(item))
    return '\n\n'.join(sections) + '\n'


def parameters_page() -> str:
    """Return the parameters of every node."""
    from vla_policy_ros.ros import faults, replay_topics
    from vla_policy_ros.ros.nodes import (
        executor_node,
        policy_node,
        recorder_node,
        simulated_robot_node,
    )
    from vla_policy_ros.ros.parameters import is_dynamic

    models = {
        'policy_node': policy_node.PolicyNodeParameters,
        'replay_node': replay_topics.ReplayNodeParameters,
        'recorder_node': recorder_node.RecorderNodeParameters,
        'executor_node': executor_node.ExecutorNodeParameters,
        'simulated_robot_node': simulated_robot_node.SimulatedRobotParameters,
    }
    sections = [
        '# Node parameters',
        NOTE,
        'Parameters are read-only after the start unless marked *dynamic*.',
    ]
    for name, model in models.items():
        dynamic = {key for key, field in model.model_fields.items() if is_dynamic(field)}
        sections += [f'## {name}', _field_table(model, marks=dynamic)]
    sections += ['## Faults', f'```text\n{inspect.getdoc(faults)}\n```']
    return '\n\n'.join(sections) + '\n'


def messages_page() -> str:
    """Return every message and action definition."""
    sections = ['# Messages and actions', NOTE]
    for path in [
        *sorted((ROOT / 'msg').glob('*.msg')),
        *sorted((ROOT / 'action').glob('*.action')),
    ]:
        text = path.read_text(encoding='utf-8').rstrip()
        sections.append(f'## {path.stem}\n\n```text\n{text}\n```')
    return '\n\n'.join(sections) + '\n'


def command_line_page() -> str:
    """Return the help of every command."""
    from vla_policy_ros.tools.main import make_parser

    sections = ['# Command line', NOTE]
    for command in _commands(make_parser()):
        argv = [sys.executable, '-m', 'vla_policy_ros.tools.main', *command.split(), '--help']
        environment = {**os.environ, 'COLUMNS': '100', 'NO_COLOR': '1'}
        text = subprocess.run(
            argv, capture_output=True, text=True, check=True, env=environment, cwd=ROOT
        ).stdout
        sections.append(f'## vla-policy {command}'.rstrip() + f'\n\n```text\n{text.rstrip()}\n```')
    return '\n\n'.join(sections) + '\n'


def _commands(parser: argparse.ArgumentParser, words: str = '') -> Iterator[str]:
    """Yield a command and all below it, in the order of the help."""
    yield words
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for name, child in action.choices.items():
                yield from _commands(child, f'{words} {name}'.strip())


def _reachable(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            yield from _reachable(inner)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _field_table(model: type[BaseModel], marks: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    rows = ['| key | type | default | meaning |', '| --- | --- | --- | --- |']
    for name, field in model.model_fields.items():
        meaning = ' '.join((field.description or '').split())
        if name in marks:
            meaning += ' *dynamic*'
        cells = (f'`{name}`', _type_name(field), _default(field), meaning)
        rows.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
    return '\n'.join(rows)


def _type_name(field: FieldInfo) -> str:
    bounds = [
        str(item) for item in field.metadata if type(item).__name__ in ('Ge', 'Gt', 'Le', 'Lt')
    ]
    return _annotation_name(field.annotation) + (f' ({", ".join(bounds)})' if bounds else '')


def _annotation_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None:
        return str(getattr(annotation, '__name__', annotation)).replace('NoneType', 'none')
    if str(origin) == 'typing.Literal':
        return ' / '.join(f'`{choice}`' for choice in arguments)
    if origin is tuple:
        return f'list of {_annotation_name(arguments[0])}'
    if origin is dict:
        return f'mapping of {_annotation_name(arguments[0])} to {_annotation_name(arguments[1])}'
    if hasattr(annotation, '__metadata__'):
        return _annotation_name(arguments[0])
    return ' or '.join(_annotation_name(argument) for argument in arguments)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return 'required'
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ''
    value = getattr(value, 'value', value)
    if value in (None, '', ()):
        return {None: 'none', '': 'empty', (): 'empty'}[value]
    return f'`{value:.6g}`' if isinstance(value, float) else f'`{value}`'


if __name__ == '__main__':
    sys.exit(main())
