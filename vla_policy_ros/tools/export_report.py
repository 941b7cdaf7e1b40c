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
    print('\nWhat the engines of this machine say to the operators:')
    print_table(('engine', 'stages', 'answer', 'reason'), _rows(verdicts))


def _parts(export: ProvenBundle) -> dict[str, Parity]:
    return {**export.stages, 'policy': export.policy}


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
