# SPDX-License-Identifier: Apache-2.0
"""Turns action chunks into smooth, limited commands for the robot's controllers, in a process of its own."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field
from rclpy.clock import Clock, ClockType
from std_srvs.srv import Trigger

from vla_policy_ros.bundle.strict import StrictModel
from vla_policy_ros.core.specs import Column
from vla_policy_ros.deployment.executor import ExecutorSettings, load_executor
from vla_policy_ros.deployment.limits import load_limits, read_limits_file
from vla_policy_ros.execution.limits import JointLimits
from vla_policy_ros.execution.report import Answer
from vla_policy_ros.execution.states import Event, EventKind, State
from vla_policy_ros.ros.clock import NodeClock
from vla_policy_ros.ros.controllers import ControllerOutputs
from vla_policy_ros.ros.executor_inputs import ExecutorInputs
from vla_policy_ros.ros.executor_outputs import MotionPublisher, NodeFacts, StatusPublisher
from vla_policy_ros.ros.executor_ticks import Ticks, make_ticks
from vla_policy_ros.ros.lifecycle import ManagedNode
from vla_policy_ros.ros.parameters import NodeParameters, require_file
from vla_policy_ros.ros.process import run_node
from vla_policy_ros.ros.robot_description import find_robot_description
from vla_policy_ros.ros.run_policy import RunPolicyServer
from vla_policy_ros.runtime.executor_loop import ExecutorLoop
from vla_policy_ros.runtime.realtime import RealTimeScheduling

_POLL_PERIOD_S = 0.05
# Questions about the graph cost as much as a tick; nothing about it changes faster.
_FOLLOW_PERIOD_S = 0.2
# A latched stop must have had the time to arrive before the node arms itself.
_DISCOVERY_S = 1.0
_QUIET_KINDS = (EventKind.DISCARDED, EventKind.CLEARED)


class ExecutorNodeParameters(StrictModel):
    """Parameters of the executor node."""

    config: str = ''
    """Executor file (YAML): rate, strategy, limits, watchdogs, controllers."""
    dry_run: bool = False
    """Whether commands are only told on motion_command and not sent; true wins over the executor file."""
    armed_at_start: bool = False
    """Whether the executor is armed one second after activation, when a latched stop would have arrived; true wins over
    the executor file."""
    autostart: bool = False
    """Configure and activate at once, and end the process when that fails."""
    status_period_s: float = Field(default=1.0, ge=0.05, le=60.0)
    """Seconds between two status messages."""
    description_timeout_s: float = Field(default=10.0, ge=0.0, le=600.0)
    """How long to wait for the robot description while configuring, in seconds."""
    stop_timeout_s: float = Field(default=4.0, ge=0.1, le=60.0)
    """How long a robot that moves may take to come to rest before the node falls silent, in seconds."""
    realtime_priority: int = Field(default=60, ge=0, le=99)
    """SCHED_FIFO priority of the thread that ticks; 0: not asked for."""
    lock_memory: bool = True
    """Whether to ask that the memory of the process is never paged out."""
    core: int = Field(default=-1, ge=-1, le=1023)
    """Core that the thread that ticks is bound to; -1: any."""


class ExecutorNode(ManagedNode):
    """Managed node around an ExecutorLoop and what ticks it."""

    def __init__(self) -> None:
        super().__init__('executor_node')
        self._chosen = NodeParameters(self, ExecutorNodeParameters, lambda _: None)
        self._time = NodeClock(self)
        self._file: ExecutorSettings | None = None
        self._robot_description: str | None = None
        self._loop: ExecutorLoop | None = None
        self._controllers: ControllerOutputs | None = None
        self._inputs: ExecutorInputs | None = None
        self._motion: MotionPublisher | None = None
        self._statuses: StatusPublisher | None = None
        self._ticks: Ticks | None = None
        self._server: RunPolicyServer | None = None
        self._scheduling = RealTimeScheduling()
        self._work_timers: list[Any] = []
        self._column_names: tuple[str, ...] = ()
        self._latched_cause = ''
        self._told_fault = ''
        for name, handle in (('arm', self._arm), ('disarm', self._disarm), ('reset', self._reset)):
            self.create_service(Trigger, f'~/{name}', self._answer(handle))
        if self._chosen.current.autostart:
            self.autostart()

    def configure(self) -> None:
        """Read and check the executor file and what it says about limits."""
        parameters = self._chosen.current
        given = load_executor(require_file('config', parameters.config, 'executor file'))
        self._file = given.model_copy(
            update={
                'dry_run': given.dry_run or parameters.dry_run,
                'armed_at_start': given.armed_at_start or parameters.armed_at_start,
            }
        )
        self._robot_description = self._check_limits(given)
        self._motion = MotionPublisher(self, is_dry_run=self._file.dry_run)
        self._statuses = StatusPublisher(self)

    def activate(self) -> None:
        """Subscribe and tick; the controllers' publishers come with the first chunk, which tells the columns."""
        assert self._file is not None
        settings = self._file
        self._loop = loop = ExecutorLoop(
            settings,
            clock=self._time,
            make_limits=self._make_limits,
            make_outputs=self._make_outputs,
        )
        if self._latched_cause:
            loop.stop(self._latched_cause)
        self._inputs = ExecutorInputs(self, settings=settings, loop=loop, clock=self._time)
        self._server = RunPolicyServer(self, loop)
        wall = Clock(clock_type=ClockType.STEADY_TIME)
        self._work_timers = [
            self.create_timer(_POLL_PERIOD_S, self._poll, clock=wall),
            self.create_timer(_FOLLOW_PERIOD_S, self._follow, clock=wall),
            self.create_timer(self._chosen.current.status_period_s, self._report, clock=wall),
        ]
        if settings.armed_at_start:
            self._work_timers.append(
                self.create_timer(_DISCOVERY_S, self._arm_at_start, clock=wall)
            )
        self._start_ticks(settings.period_ns)

    def deactivate(self) -> None:
        """Bring the robot to rest within its limits, then fall silent."""
        for timer in self._work_timers:
            self.destroy_timer(timer)
        self._work_timers = []
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._ticks is not None and self._loop is not None:
            self._come_to_rest(self._loop, self._ticks)
        if self._server is not None:  # a client hears of the end when the robot is still
            self._server.close()
            self._server = None
        if self._ticks is None or self._loop is None:
            return
        self._ticks.stop()
        self._ticks = None
        self._loop.close()
        self._controllers = None
        self._column_names = ()
        self._scheduling.release_process()
        snapshot = self._loop.snapshot()
        self._latched_cause = snapshot.cause if snapshot.state is State.STOPPED else ''
        self._tell(self._loop.events())
        self._report()

    def release(self) -> None:
        """Come to rest, and remove what is left."""
        self.deactivate()
        self._loop = None
        if self._motion is not None:
            self._motion.close()
            self._motion = None
        if self._statuses is not None:
            self._statuses.close()
            self._statuses = None
        self._file = None

    def _check_limits(self, settings: ExecutorSettings) -> str | None:
        """Look at all that can be told without columns; return the robot description where it is needed."""
        limits = settings.limits
        text = find_robot_description(self, limits, self._chosen.current.description_timeout_s)
        if limits.file:
            read_limits_file(limits.file)
        load_limits(limits.model_copy(update={'file': ''}), (), robot_description=text)
        return text

    def _start_ticks(self, period_ns: int) -> None:
        """Tick from now on; everything that lives long has been made."""
        parameters = self._chosen.current
        self._scheduling = RealTimeScheduling(
            priority=parameters.realtime_priority,
            lock_memory=parameters.lock_memory,
            core=parameters.core,
        )
        self._ticks = make_ticks(
            self,
            self._time,
            period_ns=period_ns,
            on_tick=self._on_tick,
            scheduling=self._scheduling,
        )
        self._scheduling.prepare_process()
        self._ticks.start()

    def _make_limits(self, columns: Sequence[Column]) -> JointLimits:
        assert self._file is not None
        return load_limits(self._file.limits, columns, robot_description=self._robot_description)

    def _make_outputs(self, columns: Sequence[Column], limits: JointLimits) -> ControllerOutputs:
        assert self._file is not None
        self._column_names = tuple(column.name for column in columns)
        self._controllers = ControllerOutputs(self, self._file, columns, limits)
        return self._controllers

    def _on_tick(self, now_ns: int) -> None:
        """Run one tick; called by what ticks, on its thread."""
        if self._loop is None or self._motion is None:
            return
        command = self._loop.tick(now_ns)
        if command is not None:
            self._motion.publish(command, self._column_names)

    def _come_to_rest(self, loop: ExecutorLoop, ticks: Ticks) -> None:
        loop.disarm()
        timeout_s = self._chosen.current.stop_timeout_s
        if not ticks.wait(lambda: loop.is_quiet, timeout_s):
            self.get_logger().error(
                f'the robot has not come to rest within {timeout_s:g} s; no more commands go out'
            )

    def _poll(self) -> None:
        if self._loop is None or self._ticks is None:
            return
        if self._motion is not None:
            self._motion.follow()
        if self._server is not None:
            self._server.tick()
        events = self._loop.events()
        self._tell(events)
        is_news = any(event.kind is not EventKind.REFUSED for event in events)
        if self._loop.fault != self._told_fault:
            self._told_fault, is_news = self._loop.fault, True
            if self._told_fault:
                self.get_logger().error(f'the executor file does not fit: {self._told_fault}')
        if is_news:
            self._report()
        failure = self._ticks.failure
        if failure is not None and self.exit_status is None:
            told = ''.join(traceback.format_exception(failure))
            self.get_logger().error(f'the ticks have ended:\n{told}')
            self.exit_status = 1

    def _arm_at_start(self) -> None:
        self.destroy_timer(self._work_timers.pop())
        if self._loop is not None:
            self._loop.arm()

    def _follow(self) -> None:
        if self._loop is not None and self._controllers is not None:
            self._loop.note_subscribers(self._controllers.missing())

    def _report(self) -> None:
        if self._loop is None or self._statuses is None:
            return
        ticks = self._ticks
        facts = NodeFacts(
            is_active=ticks is not None,
            missing=self._loop.missing,
            scheduling=self._scheduling.text,
            missed=0 if ticks is None else ticks.missed,
            fault=self._loop.fault,
        )
        lateness = None if ticks is None else ticks.lateness()
        self._statuses.publish(self._loop.snapshot(lateness=lateness), facts)

    def _tell(self, events: Sequence[Event]) -> None:
        logger = self.get_logger()
        for event in events:
            text = f'{event.cause}: {event.detail}'
            if event.kind is EventKind.TRANSITION:
                logger.info(text)
            elif event.kind in _QUIET_KINDS:
                logger.debug(text)
            elif event.kind in (EventKind.REFUSED, EventKind.VIOLATION):
                logger.warning(f'{event.kind.value}: {text}', throttle_duration_sec=2.0)
            else:
                logger.warning(f'{event.kind.value}: {text}')

    def _arm(self, loop: ExecutorLoop) -> Answer:
        return loop.arm()

    def _disarm(self, loop: ExecutorLoop) -> Answer:
        return loop.disarm()

    def _reset(self, loop: ExecutorLoop) -> Answer:
        return loop.release()

    def _answer(self, ask: Callable[[ExecutorLoop], Answer]) -> Callable[[Any, Any], Any]:
        def answer(_request: Any, response: Any) -> Any:
            answer = Answer('not_active', 'the node is not active')
            if self._loop is not None and self._ticks is not None:
                answer = ask(self._loop)
            response.success = answer.is_done
            response.message = 'done' if answer.is_done else f'{answer.cause}: {answer.detail}'
            return response

        return answer


def main() -> int:
    """Run the executor node."""
    return run_node(ExecutorNode)


if __name__ == '__main__':
    sys.exit(main())
