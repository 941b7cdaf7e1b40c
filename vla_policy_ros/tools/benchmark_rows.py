# SPDX-License-Identifier: Apache-2.0
"""What `vla-policy benchmark` compares, and the tables that it makes of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.errors import VlaPolicyError
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.engines.registry import engine_library, engine_memory
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.evaluation.component_times import (
    GROUPS,
    TOTAL,
    greatest_difference,
    summarize_components,
    summarize_groups,
)
from vla_policy_ros.tools.markdown import describe_versions, to_markdown_table
from vla_policy_ros.tools.version import list_versions

if TYPE_CHECKING:
    from vla_policy_ros.export.calibration import Calibration
    from vla_policy_ros.policies.runner import ExecutionFacts

Document = dict[str, Any]
Table = tuple[tuple[str, ...], list[tuple[str, ...]], int]
"""Titles, cells, and how many columns stand on the left before the numbers begin."""


@dataclass(eq=False)
class Row:
    """One way to run the bundle, and what was measured.

    Attributes:
        engine: Name of the engine.
        precision: Precision that is asked for; None takes the networks as they are.
        preprocess: Where images are preprocessed.
        cuda_graph: Whether a CUDA graph is asked for; None on the host.
        execution: How it really ran; None when it did not.
        fault: Why it did not run; None when it did.
        times: Components of every counted inference.
        chunks: Its chunks.
    """

    engine: str
    precision: Precision | None
    preprocess: str
    cuda_graph: bool | None
    execution: ExecutionFacts | None = None
    fault: VlaPolicyError | None = None
    times: list[dict[str, int]] = field(default_factory=list)
    chunks: list[ActionChunk] = field(default_factory=list)

    @property
    def title(self) -> str:
        """A name that tells it from the others."""
        words = [self.engine, self.precision or '', f'{self.preprocess} images']
        words.append({None: '', True: 'graph', False: 'no graph'}[self.cuda_graph])
        return ' '.join(word for word in words if word)


def choices(
    engines: Sequence[str],
    *,
    precisions: Sequence[Precision | None],
    preprocess: str,
    graphs: Sequence[bool],
) -> list[Row]:
    """Return one row per engine, precision and, on a device, CUDA graph; engines on the host preprocess there."""
    rows = []
    for engine in dict.fromkeys(engines):
        on_host = engine_memory(engine) == 'host'
        for precision in dict.fromkeys(precisions):
            rows += [
                Row(engine, precision, 'cpu' if on_host else preprocess, graph)
                for graph in ((None,) if on_host else graphs)
            ]
    return rows


class Contender:
    """One policy, open until the stack unwinds.

    Args:
        row: What it is, and where its figures go.
        bundle: The bundle.
        stack: Closes the policy.
        plan_folder: Where built plans lie; None for the user's own place.
        calibration: Ranges for `int8` and `fp8`, for engines without plans.

    Raises:
        VlaPolicyError: It cannot run here.
    """

    def __init__(
        self,
        row: Row,
        bundle: Bundle,
        stack: ExitStack,
        *,
        plan_folder: Path | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        from vla_policy_ros.export.measured_policy import MeasuredPolicy
        from vla_policy_ros.export.prepare import choose_loader

        self.row = row
        histories = (len(camera.history_ns) for camera in bundle.manifest.cameras)
        with ExitStack() as undo:
            self._policy = MeasuredPolicy(
                bundle,
                engine=row.engine,
                settings=EngineSettings(precision=row.precision, plan_folder=plan_folder),
                load=choose_loader(row.engine, row.precision, calibration),
                slots=max(histories, default=1) + 1,
                preprocess=row.preprocess,
                cuda_graph=bool(row.cuda_graph),
            )
            undo.callback(self._policy.close)
            self._policy.policy.warmup()
            row.execution = self._policy.policy.execution
            stack.push(undo.pop_all())

    def infer(self, observation: Observation, *, is_counted: bool) -> None:
        """Run one inference, and keep its figures when it counts.

        Raises:
            VlaPolicyError: The policy failed.
        """
        times, chunk = self._policy.infer(observation)
        if is_counted:
            self.row.times.append(times)
            self.row.chunks.append(chunk)


def make_document(
    rows: Sequence[Row],
    groups: tuple[Sequence[str], Sequence[str]],
    *,
    command: str,
    policy_id: str,
    episode: int | None,
) -> Document:
    """Return all figures as what JSON can hold; ratios and differences are to the first row that ran.

    Args:
        rows: What was measured.
        groups: Stages of the backbone and of the action head.
        command: Command line that made it.
        policy_id: The policy.
        episode: Episode that was walked through; None for one step again and again.
    """
    first = next((row for row in rows if row.fault is None), None)
    backbone, action_head = groups
    return {
        'command': command,
        'policy': policy_id,
        'observations': 'one step' if episode is None else f'episode {episode}',
        'versions': _versions([row.engine for row in rows]),
        'backbone': list(backbone),
        'action_head': list(action_head),
        'rows': [_describe(row, first, groups) for row in rows],
    }


def group_table(document: Document) -> Table:
    """Return the table of the four groups: medians in milliseconds, narrow enough for 80 characters."""
    headers = ('engine', *GROUPS, 'speed-up', 'max diff')
    cells = []
    for row in document['rows']:
        if 'error' in row:
            cells.append((row['title'], *['-'] * (len(headers) - 2), 'not run'))
            continue
        medians = [_ms(row['groups'][name], 'p50_ms') for name in GROUPS]
        tail = (f'{row["speedup"]:.2f}x', f'{row["max_difference"]:.2g}')
        cells.append((row['title'], *medians, *tail))
    return headers, cells, 1


def component_table(document: Document) -> Table:
    """Return the table of the components."""
    headers = ('engine', 'component', 'p50 ms', 'p95 ms', 'p99 ms', 'min ms', 'n')
    cells = []
    for row in document['rows']:
        for name, figures in row.get('components', {}).items():
            title = row['title'] if name == next(iter(row['components'])) else ''
            numbers = [_ms(figures, key) for key in ('p50_ms', 'p95_ms', 'p99_ms', 'min_ms')]
            cells.append((title, name, *numbers, str(figures['count'])))
    return headers, cells, 2


def to_markdown(document: Document) -> str:
    """Return both tables and how they were made, for a README."""
    parts = [f'# {document["policy"]}, {document["observations"]}', f'`{document["command"]}`']
    parts.append(describe_versions(document['versions']))
    for headers, cells, left in (group_table(document), component_table(document)):
        parts.append(to_markdown_table(headers, cells, right=range(left, len(headers))))
    parts += [
        f'{row["title"]} runs {row["execution"]}.'
        for row in document['rows']
        if 'error' not in row
    ]
    parts += failure_lines(document)
    return '\n\n'.join([*parts, 'Times in milliseconds, medians where not said otherwise.']) + '\n'


def failure_lines(document: Document) -> list[str]:
    """Return what did not run and why, each reason once."""
    titles: dict[str, list[str]] = {}
    for row in document['rows']:
        if 'error' in row:
            error = row['error']
            reason = f'{error["where"]}: got {error["got"]}. {error["next_step"]}'
            titles.setdefault(reason, []).append(row['title'])
    return [f'not run: {", ".join(names)}: {reason}' for reason, names in titles.items()]


def _describe(
    row: Row, first: Row | None, groups: tuple[Sequence[str], Sequence[str]]
) -> Document:
    facts: Document = {
        'title': row.title,
        'engine': row.engine,
        'precision': row.precision or 'exported',
        'preprocess': row.preprocess,
        'cuda_graph': row.cuda_graph,
    }
    if row.fault is not None or first is None:
        return {**facts, 'error': row.fault.as_dict() if row.fault else {}}
    if row.cuda_graph and row.execution and not row.execution.cuda_graph:
        facts |= {'title': f'{row.title} (fell back: no graph)', 'cuda_graph': False}
    components = summarize_components(row.times)
    backbone, action_head = groups
    grouped = summarize_groups(row.times, backbone=backbone, action_head=action_head)
    fastest = summarize_components(first.times)[TOTAL].p50_ms
    return {
        **facts,
        'execution': str(row.execution),
        'components': {name: asdict(figures) for name, figures in components.items()},
        'groups': {
            name: asdict(figures) if figures else None for name, figures in grouped.items()
        },
        'speedup': fastest / components[TOTAL].p50_ms,
        'max_difference': greatest_difference(row.chunks, first.chunks),
    }


def _ms(figures: Document | None, key: str) -> str:
    return '-' if figures is None else f'{figures[key]:.3f}'


def _versions(engines: Sequence[str]) -> dict[str, str]:
    """Return versions; a library that pip does not know tells its own, when it is loaded."""
    libraries = list(dict.fromkeys(engine_library(engine) for engine in engines))
    versions = list_versions('numpy', *libraries)
    for library in libraries:
        if versions[library] == 'unknown':
            versions[library] = getattr(sys.modules.get(library), '__version__', 'not installed')
    return versions
