# SPDX-License-Identifier: Apache-2.0
"""What `vla-policy export` says of a new bundle: what it holds, how near it came, and which engines take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vla_policy_ros.tools.console import print_facts, print_table
from vla_policy_ros.tools.summaries import bundle_summary, to_text

if TYPE_CHECKING:
    from vla_policy_ros.evaluation.parity import Parity
    from vla_policy_ros.export.proof import ProvenBundle
    from vla_policy_ros.export.support import Verdict


def describe_export(export: ProvenBundle, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the JSON document of an export."""
    return {
        'bundle': str(export.bundle.folder),
        'summary': bundle_summary(export.bundle),
        'parity': [
            {'part': name, 'cosine': parity.cosine, 'max_error': parity.max_error}
            for name, parity in _parts(export).items()
        ],
        'networks': [
            {
                'stage': name,
                'opset': stage.opset,
                'nodes_before': stage.nodes_before,
                'nodes': stage.nodes,
                'unsimplified': stage.unsimplified,
            }
            for name, stage in export.stages.items()
        ],
        'engines': [
            {'engine': v.engine, 'stage': v.stage, 'answer': v.answer, 'reason': v.reason}
            for v in verdicts
        ],
    }


def print_export(export: ProvenBundle, verdicts: Sequence[Verdict], *, source: str) -> None:
    """Print the same for people.

    Args:
        export: What came out.
        verdicts: What the engines say.
        source: What the bundle was held against.
    """
    folder = {'bundle': str(export.bundle.folder)}
    print_facts({**folder, **to_text(bundle_summary(export.bundle))})
    print(f'\nHow near ONNX Runtime on the CPU comes to {source}:')
    rows = [
        (name, f'{parity.cosine:.6f}', f'{parity.max_error:.1e}')
        for name, parity in _parts(export).items()
    ]
    print_table(('part', 'cosine', 'max error'), rows, right=(1, 2))
    _print_networks(export)
    print('\nWhat the engines of this machine say to the operators:')
    print_table(('engine', 'stages', 'answer', 'reason'), _rows(verdicts))


def _print_networks(export: ProvenBundle) -> None:
    """Print what became of the nodes, and a reason that several stages share once."""
    print('\nThe networks, before and after they were simplified:')
    rows = [
        (name, str(stage.opset), str(stage.nodes_before), str(stage.nodes))
        for name, stage in export.stages.items()
    ]
    print_table(('stage', 'opset', 'nodes before', 'nodes'), rows, right=(1, 2, 3))
    reasons: dict[str, list[str]] = {}
    for name, stage in export.stages.items():
        if stage.unsimplified:
            reasons.setdefault(stage.unsimplified, []).append(name)
    for reason, names in reasons.items():
        print(f'Not simplified ({", ".join(names)}): {reason}')


def _parts(export: ProvenBundle) -> dict[str, Parity]:
    stages = {name: stage.parity for name, stage in export.stages.items()}
    return {**stages, 'policy': export.policy}


def _rows(verdicts: Sequence[Verdict]) -> list[tuple[str, str, str, str]]:
    """Return one row per engine and answer."""
    stages: dict[tuple[str, str, str], list[str]] = {}
    for verdict in verdicts:
        key = (verdict.engine, verdict.answer, verdict.reason)
        stages.setdefault(key, []).append(verdict.stage)
    return [
        (engine, ', '.join(names), answer, reason)
        for (engine, answer, reason), names in stages.items()
    ]
