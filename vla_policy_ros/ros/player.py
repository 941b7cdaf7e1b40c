# SPDX-License-Identifier: Apache-2.0
"""Plays recorded episodes on a thread of its own: timed, as fast as possible, or in lock-step with the consumer."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, Protocol

from vla_policy_ros.core.dataset import Dataset, Episode
from vla_policy_ros.core.errors import ConfigurationError, VlaPolicyError
from vla_policy_ros.core.specs import Array

_NS_PER_S = 1_000_000_000
EPISODE_GAP_NS = _NS_PER_S
"""Time between the last step of an episode and the first of the next, so that no rule matches across them."""
_PATIENT_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayerSettings:
    """What is played and how."""

    episodes: tuple[int, ...]
    mode: Literal['timed', 'fast', 'lockstep']
    rate: float
    loop: bool
    start_s: float
    end_s: float
    ack_timeout_s: float
    start_timeout_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step ready to be sent: its pictures per camera, and where it lies in its episode and in time.

    `round` counts the episodes played before this one, repeated ones too.
    """

    round: int
    episode: Episode
    index: int
    stamp_ns: int
    images: dict[str, Array]


class Stage(Protocol):
    """Where steps go: the topics of a replay node."""

    def is_ready(self) -> bool:
        """Return whether every consumer is there."""

    def instruct(self, instruction: str) -> bool:
        """Announce an instruction; return whether the consumer has taken it (always True where nobody confirms)."""

    def send(self, step: Step) -> None:
        """Publish one step."""

    def flush(self) -> None:
        """Wait a moment, until the consumers have what was sent: the process may end next."""

    def now_ns(self) -> int:
        """Return the time that stamps are made of: the node's clock, or the one that it publishes."""


@dataclass(slots=True)
class PlayerState:
    """How far the player is; read by the status timer."""

    state: Literal['waiting', 'playing', 'finished', 'failed'] = 'waiting'
    detail: str = ''
    episode: int = -1
    step: int = 0
    num_steps: int = 0
    steps_sent: int = 0
    steps_acknowledged: int = 0
    late_steps: int = 0


class EpisodePlayer:
    """Owns the thread that plays; `acknowledge` may be called from any other."""

    def __init__(
        self,
        dataset: Dataset,
        stage: Stage,
        settings: PlayerSettings,
        *,
        on_change: Callable[[], None],
    ) -> None:
        self.state = PlayerState()
        self._dataset = dataset
        self._stage = stage
        self._settings = settings
        self._on_change = on_change
        self._num_rounds = 0
        self._stop = threading.Event()
        self._acknowledged = threading.Condition()
        self._acknowledged_stamp_ns = -1
        self._thread = threading.Thread(target=self._run, name='episode_player')

    def start(self) -> None:
        """Start playing."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the step in hand and wait for the thread."""
        self._stop.set()
        with self._acknowledged:
            self._acknowledged.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def acknowledge(self, stamp_ns: int) -> None:
        """Tell that the consumer is done with the step of this stamp."""
        with self._acknowledged:
            self._acknowledged_stamp_ns = stamp_ns
            self.state.steps_acknowledged += 1
            self._acknowledged.notify_all()

    def _run(self) -> None:
        try:
            self._play_all()
        except VlaPolicyError as error:
            self._enter('failed', str(error))
        except Exception:  # noqa: BLE001 - the thread's border: it would end without a word
            self._enter('failed', traceback.format_exc())
        else:
            self._enter_end()

    def _play_all(self) -> None:
        self._wait_until(self._stage.is_ready, 'consumers')
        base_ns = self._stage.now_ns()
        episodes = self._settings.episodes
        for index in cycle(episodes) if self._settings.loop else episodes:
            if self._stop.is_set():
                return
            with closing(self._dataset.episode(index)) as episode:
                base_ns = self._play(episode, base_ns)
            self._num_rounds += 1

    def _enter_end(self) -> None:
        state = self.state
        if self._stop.is_set() and not self._settings.loop:
            self._enter(
                'failed',
                f'stopped at step {state.step} of {state.num_steps} of episode {state.episode}',
            )
        else:
            self._stage.flush()
            self._enter('finished')

    def _enter(
        self, state: Literal['waiting', 'playing', 'finished', 'failed'], detail: str = ''
    ) -> None:
        self.state.state, self.state.detail = state, detail
        self._on_change()

    def _play(self, episode: Episode, base_ns: int) -> int:
        """Play one episode from `base_ns` on; return where the next one begins."""
        first, last = self._range(episode)
        self.state.episode, self.state.step, self.state.num_steps = (
            episode.index,
            0,
            last - first,
        )
        offsets_ns = (episode.stamps_ns - episode.stamps_ns[first]) / self._settings.rate
        instruction: str | None = None
        origin_ns = 0
        for step_index, images in self._pictures(episode, first, last):
            if episode.instructions[step_index] != instruction:
                instruction = episode.instructions[step_index]
                text = instruction
                self._wait_until(lambda: self._stage.instruct(text), 'the new instruction')  # noqa: B023
                if step_index == first:
                    now_ns = self._stage.now_ns()
                    base_ns = max(base_ns, now_ns)
                    origin_ns = time.monotonic_ns() + base_ns - now_ns
                    self._enter('playing')
            stamp_ns = base_ns + int(offsets_ns[step_index])
            if self._settings.mode == 'timed':
                self._sleep_until(origin_ns + int(offsets_ns[step_index]))
            if self._stop.is_set():
                break
            self.state.step += 1
            self.state.steps_sent += 1
            self._stage.send(Step(self._num_rounds, episode, step_index, stamp_ns, images))
            if self._settings.mode == 'lockstep':
                self._wait_for(stamp_ns)
        return base_ns + int(offsets_ns[last - 1]) + EPISODE_GAP_NS

    def _range(self, episode: Episode) -> tuple[int, int]:
        seconds = (episode.stamps_ns - episode.stamps_ns[0]) / _NS_PER_S
        end_s = self._settings.end_s or float(seconds[-1]) + 1.0
        inside = [index for index, t in enumerate(seconds) if self._settings.start_s <= t <= end_s]
        if not inside:
            raise ConfigurationError(
                f'episode {episode.index}',
                got=f'start {self._settings.start_s} s and end {end_s} s',
                expected=f'a part of its {float(seconds[-1]):.2f} s',
                next_step='Change start_s or end_s.',
            )
        return inside[0], inside[-1] + 1

    def _pictures(
        self, episode: Episode, first: int, last: int
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        names = [camera.name for camera in self._dataset.info.cameras]
        with ExitStack() as stack:
            streams = {
                name: stack.enter_context(closing(episode.images(name, first, last)))
                for name in names
            }
            for index in range(first, last):
                if self._stop.is_set():
                    return
                yield index, {name: next(stream) for name, stream in streams.items()}

    def _sleep_until(self, monotonic_ns: int) -> None:
        ahead_s = (monotonic_ns - time.monotonic_ns()) / _NS_PER_S
        if ahead_s < -0.005:
            self.state.late_steps += 1
        elif ahead_s > 0:
            self._stop.wait(ahead_s)

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._settings.start_timeout_s
        while not condition():
            if self._stop.wait(_PATIENT_S):
                return
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    'replay',
                    got=f'nothing for {self._settings.start_timeout_s} s while waiting for {what}',
                    expected='an active policy node that has found every replayed topic',
                    next_step='Compare `ros2 topic info -v` with the deployment file, or set wait_for_policy to false.',
                    code='no_consumer',
                )

    def _wait_for(self, stamp_ns: int) -> None:
        with self._acknowledged:
            answered = self._acknowledged.wait_for(
                lambda: self._acknowledged_stamp_ns == stamp_ns or self._stop.is_set(),
                self._settings.ack_timeout_s,
            )
        if not answered:
            raise ConfigurationError(
                f'lock-step at step {self.state.step}',
                got=f'no acknowledgement for {stamp_ns} ns within {self._settings.ack_timeout_s} s',
                expected='an ObservationAck with that stamp',
                next_step='Look at the policy node: its status names the stream that is missing.',
                code='no_acknowledgement',
            )
