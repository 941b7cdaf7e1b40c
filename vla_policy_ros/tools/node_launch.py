# SPDX-License-Identifier: Apache-2.0
"""A node as a process: its module, its parameters in a file, its renamed topics."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_policy_ros.tools.session import Child


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLaunch:
    """One node: the module that runs it, its parameters, and topics that are renamed."""

    name: str
    parameters: Mapping[str, Any]
    remaps: Mapping[str, str] = field(default_factory=dict)
    may_end: bool = False


def make_child(node: NodeLaunch, folder: Path) -> Child:
    """Write a node's parameters to `<name>.yaml` in a folder, where no shell can misread them; return its process."""
    import yaml

    path = folder / f'{node.name}.yaml'
    document = {'/**': {'ros__parameters': dict(node.parameters)}}
    path.write_text(yaml.safe_dump(document, width=10**6), encoding='utf-8')
    command = [sys.executable, '-m', f'vla_policy_ros.ros.nodes.{node.name}', '--ros-args']
    command += ['--params-file', str(path)]
    for source, target in node.remaps.items():
        command += ['-r', f'{source}:={target}']
    return Child(node.name, tuple(command), may_end=node.may_end)
