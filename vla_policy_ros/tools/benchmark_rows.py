# SPDX-License-Identifier: Apache-2.0
"""What `vla-policy benchmark` compares, and the tables that it makes of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.core.chunk import ActionChunk
from vla_policy_ros.core.clock import MonotonicClock
from vla_policy_ros.core.errors import VlaPolicyError
from vla_policy_ros.core.frame import PreparedFrame
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.engines.registry import engine_library, engine_memory
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.evaluation.component_times import (
    GROUPS,
    TOTAL,
    greatest_difference,
    measure_inference,
    summarize_components,
    summarize_groups,
)
from vla_policy_ros.tools.version import list_versions

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
        execution: How it really ran.
        fault: Why it did not run; None when it did.
        times: Components of every counted inference.
        chunks: Its chunks.
    """

    engine: str
    precision: Precision | None
    preprocess: str
    cuda_graph: bool | None
    execution: str = ''
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

    Raises:
        VlaPolicyError: It cannot run here.
    """

    def __init__(self, row: Row, bundle: Bundle, stack: ExitStack) -> None:
        from vla_policy_ros.policies.engine_policy import EnginePolicy

        self.row = row
        self._clock = MonotonicClock()
        self._wait: Callable[[PreparedFrame], None] | None = None
        histories = (len(camera.history_ns) for camera in bundle.manifest.cameras)
        with ExitStack() as undo:
            words: dict[str, Any] = {}
            if engine_memory(row.engine) == 'device':
                words['device'] = self._open_device(undo)
            self._policy = EnginePolicy(
                bundle,
                engine=row.engine,
                preprocess=row.preprocess,
                slots=max(histories, default=1) + 1,
                settings=EngineSettings(precision=row.precision),
                cuda_graph=bool(row.cuda_graph),
                **words,
            )
            undo.callback(self._policy.close)
            self._policy.warmup()
            row.execution = str(self._policy.execution)
            stack.push(undo.pop_all())

    def infer(self, observation: Observation, *, is_counted: bool) -> None:
        """Run one inference, and keep its figures when it counts.

        Raises:
            VlaPolicyError: The policy failed.
        """
        times, chunk = measure_inference(
            self._policy, observation, clock=self._clock, wait=self._wait
        )
        if is_counted:
            self.row.times.append(times)
            self.row.chunks.append(chunk)

    def _open_device(self, undo: ExitStack) -> Any:
        from vla_policy_ros.gpu.device import open_device

        device = open_device()
        undo.callback(device.close)

        def wait(image: PreparedFrame) -> None:
            event = getattr(image, 'event', None)
            if event is not None:
                with device.current():
                    event.synchronize()

        if self.row.preprocess == 'gpu':
            self._wait = wait
        return device


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
    """Return the table of the four groups: medians, and more of the whole."""
    headers = (
        'engine',
        'precision',
        'images',
        'graph',
        *GROUPS,
        'p95',
        'p99',
        'speed-up',
        'max diff',
    )
    cells = []
    for row in document['rows']:
        if 'error' in row:
            cells.append((*_words(row), *['-'] * (len(headers) - 5), 'not run'))
            continue
        whole = row['groups'][GROUPS[-1]]
        medians = [_ms(row['groups'][name], 'p50_ms') for name in GROUPS]
        tail = (_ms(whole, 'p95_ms'), _ms(whole, 'p99_ms'), f'{row["speedup"]:.2f}x')
        cells.append((*_words(row), *medians, *tail, f'{row["max_difference"]:.2g}'))
    return headers, cells, 4


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
    parts.append(', '.join(f'{name} {text}' for name, text in document['versions'].items()))
    for headers, cells, left in (group_table(document), component_table(document)):
        rule = ['---' if index < left else '---:' for index in range(len(headers))]
        lines = [f'| {" | ".join(line)} |' for line in (headers, rule, *cells)]
        parts.append('\n'.join(lines))
    parts += [
        f'{row["title"]} runs {row["execution"]}.'
        for row in document['rows']
        if 'error' not in row
    ]
    for row in document['rows']:
        if 'error' in row:
            parts.append(f'{row["title"]} did not run: got {row["error"]["got"]}.')
    return '\n\n'.join([*parts, 'Times in milliseconds, medians where not said otherwise.']) + '\n'


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
    components = summarize_components(row.times)
    backbone, action_head = groups
    grouped = summarize_groups(row.times, backbone=backbone, action_head=action_head)
    fastest = summarize_components(first.times)[TOTAL].p50_ms
    return {
        **facts,
        'execution': row.execution,
        'components': {name: asdict(figures) for name, figures in components.items()},
        'groups': {
            name: asdict(figures) if figures else None for name, figures in grouped.items()
        },
        'speedup': fastest / components[TOTAL].p50_ms,
        'max_difference': greatest_difference(row.chunks, first.chunks),
    }


def _words(row: Document) -> tuple[str, ...]:
    graph = {None: '', True: 'yes', False: 'no'}[row['cuda_graph']]
    return row['engine'], row['precision'], row['preprocess'], graph


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
