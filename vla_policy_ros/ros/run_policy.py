# SPDX-License-Identifier: Apache-2.0
"""The action `run_policy`: one instruction, from arming the executor to a robot at rest."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from rclpy.action import ActionServer, CancelResponse
from std_msgs.msg import String

from vla_policy_ros.action import RunPolicy
from vla_policy_ros.execution.report import Answer, Snapshot
from vla_policy_ros.execution.states import State
from vla_policy_ros.ros.clock import NodeClock
from vla_policy_ros.ros.qos import LATCHED, linger

_FEEDBACK_NS = 200_000_000
_ENDED = (State.UNARMED, State.STOPPED)


class RunnableLoop(Protocol):
    """What a run asks of the executor (`runtime.executor_loop.ExecutorLoop`)."""

    @property
    def is_quiet(self) -> bool:
        """Whether no command is to come, and the last one has been due."""

    def arm(self, instruction: str = '') -> Answer:
        """Let commands go out from the next chunk on, or from the first one that follows an instruction."""

    def disarm(self) -> Answer:
        """Decelerate within the limits; nothing goes out once the robot is still."""

    def snapshot(self) -> Snapshot:
        """Return how the executor is."""


@dataclass(slots=True)
class _Run:
    """One goal that runs; counters of the executor run on, so what they were at its start is kept."""

    goal: Any
    begun_ns: int
    first: Snapshot
    told_ns: int | None = None
    instructions: Any = None
    ending: tuple[str, str] | None = None
    result: Any = field(default_factory=RunPolicy.Result)

    def note(self, now: Snapshot, elapsed_ns: int) -> None:
        """Take how the executor is into the result."""
        result = self.result
        result.duration_s = elapsed_ns * 1e-9
        result.chunks = max(now.used - self.first.used, 0)
        result.starvations = max(now.starvations - self.first.starvations, 0)
        result.max_chunk_age_ms = max(result.max_chunk_age_ms, self.age_ms(now))

    def age_ms(self, now: Snapshot) -> float:
        """Return the age of the newest observation that has become a chunk of this run, -1 before the first."""
        return -1.0 if not self.result.chunks or now.chunk_age_ms is None else now.chunk_age_ms


class RunPolicyServer:
    """Serves the action; a goal arms the executor, and ends only when the robot is still.

    One goal at a time. A second one is refused and changes nothing: to replace the first would hand a moving robot from
    one client to another that knows nothing of it. The instruction goes out on `instruction`, latched as everybody's is,
    by a publisher that lives as long as the run: a policy that starts later must not follow the instruction of a run that
    is over. No callback waits: `tick` moves a run on.

    Args:
        node: An rclpy node; its clock counts the time limit.
        loop: The executor.
    """

    def __init__(self, node: Any, loop: RunnableLoop) -> None:
        self._node, self._loop = node, loop
        self._clock = NodeClock(node)
        self._run: _Run | None = None
        self._server = _GoalServer(
            node,
            RunPolicy,
            'run_policy',
            execute_callback=self._begin,
            cancel_callback=self._on_cancel,
        )

    def tick(self) -> None:
        """Move the run on; call it from a timer of the node, more often than feedback is wanted (5 per second)."""
        run = self._run
        if run is None:
            return
        now = self._loop.snapshot()
        elapsed_ns = self._elapsed_ns(run)
        run.note(now, elapsed_ns)
        limit_s = run.goal.request.time_limit_s
        if now.state is State.STOPPED or (now.state in _ENDED and run.ending is None):
            run.ending = 'stopped', f'the executor is {now.state.value}: {now.cause}'
        elif limit_s and elapsed_ns * 1e-9 >= limit_s:
            self._end(run, 'done', f'the time limit of {limit_s:g} s was reached')
        if run.ending is not None and now.state in _ENDED and self._loop.is_quiet:
            self._finish(run, *run.ending)
        elif run.told_ns is None or abs(elapsed_ns - run.told_ns) >= _FEEDBACK_NS:
            run.told_ns = elapsed_ns
            self._tell(run, now, elapsed_ns)

    def close(self) -> None:
        """Abort a goal that still runs, and disarm; call it when the robot has come to rest."""
        if self._run is not None:
            self._loop.disarm()
            self._run.note(self._loop.snapshot(), self._elapsed_ns(self._run))
            self._finish(self._run, 'stopped', 'the executor node was deactivated')
            linger()
        self._server.destroy()

    def _begin(self, goal: Any) -> None:
        run = _Run(goal, self._clock.now_ns(), self._loop.snapshot())
        refusal = self._find_refusal(goal.request)
        if refusal:
            self._finish(run, 'refused', refusal)
            return
        self._run = run
        if goal.request.instruction:
            run.instructions = self._node.create_publisher(String, 'instruction', LATCHED)
            run.instructions.publish(String(data=goal.request.instruction))
        self._node.get_logger().info(f'run_policy: {goal.request.instruction!r}')

    def _find_refusal(self, request: Any) -> str:
        """Arm the executor, or return why it is not; empty when it is armed."""
        if self._run is not None:
            return f'another goal runs: {self._run.goal.request.instruction!r}; cancel it first'
        if not (math.isfinite(request.time_limit_s) and request.time_limit_s >= 0):
            return f'got a time limit of {request.time_limit_s:g} s, expected 0 (none) or more'
        answer = self._loop.arm(request.instruction)
        return '' if answer.is_done else f'{answer.cause}: {answer.detail}'

    def _on_cancel(self, goal: Any) -> Any:
        if self._run is not None and goal == self._run.goal:
            self._end(self._run, 'cancelled', 'the client has cancelled the goal')
        return CancelResponse.ACCEPT

    def _end(self, run: _Run, outcome: str, detail: str) -> None:
        """Let the robot come to rest; the first cause is the one that is told."""
        if run.ending is None:
            run.ending = outcome, detail
            self._loop.disarm()

    def _finish(self, run: _Run, outcome: str, detail: str) -> None:
        if run is self._run:
            self._run = None
        if run.instructions is not None:
            self._node.destroy_publisher(run.instructions)
        run.result.outcome, run.result.detail = outcome, detail
        ends = {'done': run.goal.succeed, 'cancelled': run.goal.canceled}
        ends.get(outcome, run.goal.abort)()
        self._server.answer(run.goal, run.result)
        self._node.get_logger().info(f'run_policy: {outcome}: {detail}')

    def _tell(self, run: _Run, now: Snapshot, elapsed_ns: int) -> None:
        run.goal.publish_feedback(
            RunPolicy.Feedback(
                state=now.state.value,
                elapsed_s=elapsed_ns * 1e-9,
                chunks=run.result.chunks,
                starvations=run.result.starvations,
                chunk_age_ms=run.age_ms(now),
            )
        )

    def _elapsed_ns(self, run: _Run) -> int:
        return max(self._clock.now_ns() - run.begun_ns, 0)


class _GoalServer(ActionServer):
    """Runs goals without a task for each: one that waits keeps some of rclpy's executors from sleeping (Humble)."""

    def notify_execute(self, goal_handle: Any, execute_callback: Any) -> None:  # noqa: ARG002
        """Begin a goal; the callback returns at once."""
        self._execute_callback(goal_handle)

    def answer(self, goal_handle: Any, result: Any) -> None:
        """Give the result of a goal that has ended to whoever asks or has asked for it; needs no executor."""
        future = self._result_futures[bytes(goal_handle.goal_id.uuid)]
        # Its callbacks send the response, and would wait for an executor that may be gone.
        future._set_executor(None)  # noqa: SLF001
        with suppress(StopIteration):
            self._execute_goal(lambda _: result, goal_handle).send(None)
