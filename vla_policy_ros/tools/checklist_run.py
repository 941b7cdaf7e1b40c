# SPDX-License-Identifier: Apache-2.0
"""The deployment checklist, gone through item by item on this machine; what needs a broken item is not checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vla_policy_ros.core.errors import ConfigurationError, GpuError, VlaPolicyError
from vla_policy_ros.evaluation import checklist
from vla_policy_ros.evaluation.checklist import ITEMS, Item, failed, not_checked
from vla_policy_ros.evaluation.process_memory import read_process_memory
from vla_policy_ros.tools import checklist_items as items
from vla_policy_ros.tools.checklist_items import MemoryMark, MemoryMarks

if TYPE_CHECKING:
    from vla_policy_ros.bundle.bundle import Bundle
    from vla_policy_ros.core.dataset import Dataset
    from vla_policy_ros.core.observation import Observation
    from vla_policy_ros.evaluation.action_error import ActionError
    from vla_policy_ros.export.compare import Contender
    from vla_policy_ros.export.measured_policy import MeasuredPolicy

WARMUP_RUNS = 10
"""Runs before those that count, after the policy's own warm-up."""
_NOT_OPEN = 'the policy cannot be opened'
_Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is checked, and with which limits.

    Attributes:
        folder: Folder of the bundle.
        contender: The engine that is meant for the robot.
        dataset: A recording that the policy can read.
        samples: Observations of it, and least number of chunks for the quantisation loss.
        runs: Inferences that are timed.
        preprocess: Where images are preprocessed.
        period_ms: Control period; None takes the bundle's step times `execution_horizon`.
        execution_horizon: Rows of a chunk that are executed before the next one takes over.
        executor: Executor file with the robot's limits; None leaves them out.
        max_loss: Limit of the quantisation loss.
        max_error: Limit of the error against the reference.
    """

    folder: Path
    contender: Contender
    dataset: Dataset
    samples: int
    runs: int
    preprocess: str = 'cpu'
    period_ms: float | None = None
    execution_horizon: int = 1
    executor: Path | None = None
    max_loss: float = checklist.MAX_LOSS
    max_error: float = checklist.MAX_ERROR


def run_checklist(job: Job, tell: _Tell) -> list[Item]:
    """Go through all items.

    Args:
        job: What is checked.
        tell: Is told the name of what comes next.

    Returns:
        All items in the order of `ITEMS`.

    Raises:
        ConfigurationError: The dataset has no step, or an option is wrong or does not go with the engine or the bundle.
        DatasetError: The dataset does not fit the policy or cannot be read.
    """
    from vla_policy_ros.bundle.bundle import find_bundle_faults, load_bundle

    tell(checklist.BUNDLE)
    before = MemoryMark(read_process_memory())
    faults = find_bundle_faults(job.folder)
    if faults:
        return _complete([items.judge_bundle(faults, None)], 'the bundle is broken')
    bundle = load_bundle(job.folder)
    run = _Run(job, bundle, before, tell)
    found = [items.judge_bundle([], bundle), run.check_operators()]
    if found[-1].status == 'FAIL':
        return _complete(found, f'{job.contender.engine} does not load the policy')
    found += run.check_policy()
    found += [run.check_accuracy(), run.check_loss()]
    return _complete(found, '')


def _complete(found: Sequence[Item], reason: str) -> list[Item]:
    """Return all items in order; those that are not among `found` were not checked, for one reason."""
    known = {item.name: item for item in found}
    return [known.get(name) or not_checked(name, reason) for name in ITEMS]


class _Run:
    """One run over a sound bundle."""

    def __init__(self, job: Job, bundle: Bundle, before: MemoryMark, tell: _Tell) -> None:
        self._job = job
        self._bundle = bundle
        self._before = before
        self._tell = tell
        self._period_ms, self._period_source = _period(job, bundle)
        self._observations = _read_observations(job, bundle)
        # Error of the engine's chunks, or why there is none.
        self._error: ActionError | Item = not_checked(checklist.LOSS, _NOT_OPEN)

    def check_operators(self) -> Item:
        """Load every stage by itself."""
        from vla_policy_ros.export.operators import find_support

        self._tell(checklist.OPERATORS)
        try:
            stages = list(find_support(self._bundle, self._job.contender))
        except GpuError as fault:  # there is none
            return failed(checklist.OPERATORS, fault)
        return items.judge_operators(self._job.contender.engine, stages)

    def check_policy(self) -> Iterator[Item]:
        """Open the policy once, for all that is asked of it as it will run on the robot."""
        self._tell(checklist.LATENCY)
        try:
            policy = self._open(self._job.contender, preprocess=self._job.preprocess)
        except ConfigurationError:  # an option is wrong
            raise
        except VlaPolicyError as fault:
            yield failed(checklist.LATENCY, fault)
            for name in (checklist.MEMORY, checklist.EDGE_INPUTS, checklist.LIMITS):
                yield not_checked(name, _NOT_OPEN)
            return
        with closing(policy):
            yield from self._check_runs(policy)
            self._tell(checklist.EDGE_INPUTS)
            yield self._check_edge_inputs(policy)
            self._tell(checklist.LIMITS)
            yield self._check_limits(policy)
            self._error = self._measure_error(policy)

    def check_accuracy(self) -> Item:
        """Hold the engine against ONNX Runtime on the CPU."""
        from vla_policy_ros.bundle.probe import read_probe
        from vla_policy_ros.export.compare import Case, compare, observed_cases

        self._tell(checklist.ACCURACY)
        bundle = self._bundle
        try:
            cases = []
            if bundle.manifest.probe:
                probe = read_probe(bundle.folder / bundle.manifest.probe)
                cases.append(Case(probe.inputs, probe.noise))
            cases += observed_cases(bundle, self._observations)
            with np.errstate(invalid='ignore', over='ignore'):  # what is not finite fails below
                [result] = compare(bundle, cases, candidates=[self._job.contender])
        except VlaPolicyError as fault:
            return failed(checklist.ACCURACY, fault)
        return items.judge_accuracy(result, max_error=self._job.max_error)

    def check_loss(self) -> Item:
        """Hold the error of the engine's chunks, which check_policy() measured, against the unquantised policy's."""
        from vla_policy_ros.evaluation.action_error import measure_action_error
        from vla_policy_ros.export.compare import REFERENCE

        own = self._error
        if isinstance(own, Item):
            return own
        self._tell(checklist.LOSS)
        try:
            with closing(self._open(REFERENCE)) as policy:
                unquantised = measure_action_error(
                    policy.policy, self._job.dataset, episodes=own.episodes
                )
        except VlaPolicyError as fault:
            return failed(checklist.LOSS, fault)
        assert unquantised  # of the same columns
        return items.judge_loss(own, unquantised, max_loss=self._job.max_loss)

    def _open(self, contender: Contender, *, preprocess: str = 'cpu') -> MeasuredPolicy:
        from vla_policy_ros.export.measured_policy import MeasuredPolicy

        histories = (len(camera.history_ns) for camera in self._bundle.manifest.cameras)
        return MeasuredPolicy(
            self._bundle,
            engine=contender.engine,
            settings=contender.settings,
            load=contender.load,
            # One history in work, the next one being loaded, and one image in hand.
            slots=2 * max(histories, default=1) + 1,
            preprocess=preprocess,
        )

    def _check_runs(self, policy: MeasuredPolicy) -> Iterator[Item]:
        """Time the runs, and look at the memory around them."""
        from vla_policy_ros.evaluation.component_times import summarize_components

        runs, observations = self._job.runs, self._observations
        loaded = _mark(policy)
        try:
            policy.policy.warmup()
            for index in range(WARMUP_RUNS):
                policy.infer(observations[index % len(observations)])
            warm = _mark(policy)
            times = [policy.infer(observations[i % len(observations)])[0] for i in range(runs)]
        except VlaPolicyError as fault:
            yield failed(checklist.LATENCY, fault)
            yield not_checked(checklist.MEMORY, 'no run came to its end')
            return
        ended = _mark(policy)
        yield items.judge_latency(
            summarize_components(times),
            period_ms=self._period_ms,
            period_source=self._period_source,
            execution=str(policy.policy.execution),
        )
        before = MemoryMark(self._before.process, policy.free_at_start_bytes)
        marks = MemoryMarks(before, loaded, warm, ended)
        yield items.judge_memory(
            marks, runs=runs, on_device=policy.free_at_start_bytes is not None
        )

    def _check_edge_inputs(self, policy: MeasuredPolicy) -> Item:
        from vla_policy_ros.export.edge_inputs import edge_cases, try_case

        bundle = self._bundle
        cases = edge_cases(bundle, self._observations[0])
        return items.judge_edge_inputs(
            [try_case(bundle, lambda seen: policy.infer(seen)[1], case) for case in cases]
        )

    def _check_limits(self, policy: MeasuredPolicy) -> Item:
        from vla_policy_ros.export.limit_check import count_refusals, read_executor_limits

        if self._job.executor is None:
            return not_checked(checklist.LIMITS, 'no --executor FILE was given')
        try:
            columns = self._bundle.spec.action.columns
            settings, limits = read_executor_limits(self._job.executor, columns)
            findings = count_refusals(policy.policy, self._observations, limits)
        except VlaPolicyError as fault:
            if fault.code == 'needs_robot_description':
                return not_checked(checklist.LIMITS, f'{fault.where}: {fault.expected}')
            return failed(checklist.LIMITS, fault)
        return items.judge_limits(findings, mode=settings.limits.mode)

    def _measure_error(self, policy: MeasuredPolicy) -> ActionError | Item:
        """Return the error of the engine's chunks, or why there is nothing to measure."""
        from vla_policy_ros.evaluation.action_error import measure_action_error
        from vla_policy_ros.evaluation.sampling import spread_episodes

        if not _is_lowered(self._bundle, self._job.contender):
            reason = 'the networks run in the precision that they were exported in'
            return not_checked(checklist.LOSS, reason)
        self._tell(checklist.LOSS)
        dataset, samples = self._job.dataset, self._job.samples
        try:
            error = measure_action_error(
                policy.policy,
                dataset,
                episodes=spread_episodes(dataset.info.num_episodes, samples),
                min_chunks=samples,
            )
        except VlaPolicyError as fault:
            return failed(checklist.LOSS, fault)
        if error is None:
            reason = 'the dataset holds no actions that the policy gives'
            return not_checked(checklist.LOSS, reason)
        return error


def _period(job: Job, bundle: Bundle) -> tuple[float, str]:
    """Return the control period in milliseconds, and where it comes from."""
    action, rows = bundle.manifest.action, job.execution_horizon
    if rows > action.horizon:
        raise ConfigurationError(
            '--execution-horizon',
            got=f'{rows} rows',
            expected=f'1 to {action.horizon}, the rows of a chunk',
            next_step='Choose an execution horizon within the chunk.',
            code='bad_execution_horizon',
        )
    if job.period_ms is not None:
        return job.period_ms, 'as asked for'
    return rows * action.step_ns / 1e6, f'{rows} row{"s"[: rows > 1]} of the chunk'


def _read_observations(job: Job, bundle: Bundle) -> list[Observation]:
    from vla_policy_ros.evaluation.sampling import sample_observations

    observations = list(sample_observations(job.dataset, bundle.spec, count=job.samples))
    if not observations:
        raise ConfigurationError(
            '--dataset',
            got=f'{job.dataset.info.name!r} without a step',
            expected='observations to check with',
            next_step='Name a recording with at least one step.',
            code='nothing_to_check',
        )
    return observations


def _mark(policy: MeasuredPolicy) -> MemoryMark:
    return MemoryMark(read_process_memory(), policy.free_device_bytes())


def _is_lowered(bundle: Bundle, contender: Contender) -> bool:
    """Tell whether a network runs in fewer bits than it was exported in, as asked for or by its stage."""
    from vla_policy_ros.engines.registry import takes_precision

    asked = contender.settings.precision
    return any(
        precision != 'fp32' and (asked is not None or takes_precision(contender.engine, precision))
        for precision in contender.precisions(bundle)
    )
