# SPDX-License-Identifier: Apache-2.0
"""A policy over recorded episodes: every observation is the recorded one, whatever the policy answers."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from vla_policy_ros.core.clock import Clock, MonotonicClock
from vla_policy_ros.core.dataset import Dataset, DatasetInfo, Episode
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.core.specs import ActionSpec, Array, PolicySpec
from vla_policy_ros.evaluation.observations import (
    EpisodeObservations,
    NameMap,
    number_instructions,
)
from vla_policy_ros.evaluation.recording import ChunkRecording
from vla_policy_ros.evaluation.truth import truth_chunk


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenLoop:
    """What came of one episode, or of several put together.

    Attributes:
        episodes: Indices of the episodes.
        policy: The policy's chunks, an epoch per episode; a chunk counts as published when inference has ended.
        truth: One recorded chunk per step; empty when the dataset holds no actions.
        held: (N, D) recorded state at each policy chunk, NaN for columns that the state lacks.
        wall_ns: Wall time, loading included.
    """

    episodes: tuple[int, ...]
    policy: ChunkRecording
    truth: ChunkRecording
    held: Array
    wall_ns: int


def evaluate_episode(
    policy: Policy,
    dataset: Dataset,
    *,
    episode_index: int,
    execution_horizon: int | None = None,
    epoch: int = 0,
    names: NameMap | None = None,
    clock: Clock | None = None,
) -> OpenLoop:
    """Infer at the steps 0, h, 2h... of one episode; the next observation is loaded while the policy infers.

    Args:
        policy: Who infers; reset first. Its `prepare` is called on a thread of its own, after decoding.
        dataset: Where the episode lies.
        episode_index: Which episode.
        execution_horizon: h, in rows of the policy's chunk; None takes the whole chunk.
        epoch: Epoch that observations and chunks carry.
        names: Camera and state names that differ between policy and dataset.
        clock: Measures latencies; the machine's monotonic clock by default.

    Raises:
        DatasetError: There is no such episode, it cannot be read, or it does not fit the policy.
        ConfigurationError: h is not within the chunk.
    """
    clock = clock or MonotonicClock()
    started_ns = clock.now_ns()
    with closing(dataset.episode(episode_index)) as episode:
        observations = EpisodeObservations(dataset.info, episode, spec=policy.spec, names=names)
        stride = _stride(policy.spec.action, dataset.info, execution_horizon)
        policy.reset()
        loaded = observations.iterate(stride=stride, epoch=epoch, prepare=policy.prepare)
        recording = _infer_all(policy, loaded, clock)
        return OpenLoop(
            episodes=(episode_index,),
            policy=recording,
            truth=_truth(dataset.info, episode, policy.spec.action, epoch),
            held=_held(dataset.info, episode, policy.spec, stride),
            wall_ns=clock.now_ns() - started_ns,
        )


def evaluate(
    policies: Sequence[Policy],
    dataset: Dataset,
    *,
    episodes: Sequence[int],
    execution_horizon: int | None = None,
    names: NameMap | None = None,
) -> OpenLoop:
    """Evaluate several episodes; as many at once as there are policies, each on a thread of its own.

    The result does not depend on the number of policies: episodes are joined in the order asked for.

    Raises:
        DatasetError: An episode is missing, cannot be read, or does not fit the policy.
        ConfigurationError: h is not within the chunk, or there is nothing to do.
    """
    _check_work(policies, episodes)
    idle: queue.SimpleQueue[Policy] = queue.SimpleQueue()
    for policy in policies:
        idle.put(policy)
    guarded = _OneOpener(dataset)

    def work(epoch: int) -> OpenLoop:
        policy = idle.get()
        try:
            return evaluate_episode(
                policy,
                guarded,
                episode_index=episodes[epoch],
                execution_horizon=execution_horizon,
                epoch=epoch,
                names=names,
            )
        finally:
            idle.put(policy)

    with ThreadPoolExecutor(len(policies), thread_name_prefix='episode') as pool:
        return _join(list(pool.map(work, range(len(episodes)))))


def _check_work(policies: Sequence[Policy], episodes: Sequence[int]) -> None:
    if not policies or not episodes:
        raise ConfigurationError(
            'evaluation',
            got=f'{len(policies)} policies and {len(episodes)} episodes',
            expected='at least one of each',
            next_step='Name the episodes to evaluate.',
        )


class _OneOpener:
    """A dataset whose episodes are opened by one thread at a time."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()

    @property
    def info(self) -> DatasetInfo:
        return self._dataset.info

    def episode(self, index: int) -> Episode:
        with self._lock:
            return self._dataset.episode(index)

    def close(self) -> None:
        self._dataset.close()


def _join(parts: Sequence[OpenLoop]) -> OpenLoop:
    policy, truth = ChunkRecording(), ChunkRecording()
    for part in parts:
        policy.extend(part.policy)
        truth.extend(part.truth)
    return OpenLoop(
        episodes=tuple(index for part in parts for index in part.episodes),
        policy=policy,
        truth=truth,
        held=np.concatenate([part.held for part in parts]),
        wall_ns=sum(part.wall_ns for part in parts),
    )


def _infer_all(
    policy: Policy, observations: Iterator[Observation], clock: Clock
) -> ChunkRecording:
    recording = ChunkRecording()

    def load() -> tuple[Observation | None, int]:
        started_ns = clock.now_ns()
        observation = next(observations, None)
        return observation, clock.now_ns() - started_ns

    with ThreadPoolExecutor(1, thread_name_prefix='loader') as loader:
        pending = loader.submit(load)
        while True:
            observation, load_ns = pending.result()
            if observation is None:
                return recording
            pending = loader.submit(load)
            started_ns = clock.now_ns()
            chunk = policy.infer(observation)
            infer_ns = clock.now_ns() - started_ns
            stages = {'load': load_ns, **chunk.stage_latencies_ns, 'infer': infer_ns}
            published_ns = chunk.observation_stamp_ns + infer_ns
            recording.append(
                replace(chunk, stage_latencies_ns=stages),
                publish_stamp_ns=published_ns,
                receive_stamp_ns=published_ns,
            )


def _stride(action: ActionSpec, info: DatasetInfo, execution_horizon: int | None) -> int:
    """Return the dataset steps from one inference to the next."""
    rows = action.horizon if execution_horizon is None else execution_horizon
    if not 1 <= rows <= action.horizon:
        raise ConfigurationError(
            'execution horizon',
            got=f'{rows} rows',
            expected=f'1 to {action.horizon}, the rows of a chunk',
            next_step='Choose an execution horizon within the chunk.',
        )
    return max(round(rows * action.step_ns / info.step_ns), 1)


def _truth(info: DatasetInfo, episode: Episode, action: ActionSpec, epoch: int) -> ChunkRecording:
    """Return one recorded chunk per step, long enough for the policy's last row."""
    recording = ChunkRecording()
    if not episode.action.size:
        return recording
    reach_ns = action.offset_ns + (action.horizon - 1) * action.step_ns
    horizon = max(-(-reach_ns // info.step_ns), 0) + 1
    for step, instruction in enumerate(number_instructions(episode.instructions)):
        chunk = truth_chunk(
            info,
            episode,
            step=step,
            horizon=horizon,
            instruction_id=instruction.instruction_id,
            epoch=epoch,
        )
        stamp_ns = chunk.observation_stamp_ns
        recording.append(chunk, publish_stamp_ns=stamp_ns, receive_stamp_ns=stamp_ns)
    return recording


def _held(info: DatasetInfo, episode: Episode, spec: PolicySpec, stride: int) -> Array:
    state = episode.state[::stride]
    held = np.full((len(state), len(spec.action.columns)), np.nan)
    places = {column.name: place for place, column in enumerate(info.state)}
    for index, name in enumerate(spec.action.names):
        if name in places:
            held[:, index] = state[:, places[name]]
    return held
