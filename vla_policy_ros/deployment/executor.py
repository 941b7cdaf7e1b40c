# SPDX-License-Identifier: Apache-2.0
"""How chunks become motion on one robot: rate, strategy, limits, watchdogs, controllers, in one YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vla_policy_ros.bundle.strict import StrictModel, find_file_faults, parse_file
from vla_policy_ros.core.errors import ConfigurationError, VlaPolicyError
from vla_policy_ros.core.specs import Column
from vla_policy_ros.deployment.config import (
    LimitSettings,
    Milliseconds,
    OptionalTopic,
    Topic,
    to_ns,
)
from vla_policy_ros.deployment.controllers import (
    Controller,
    JointTrajectory,
    check_controllers,
    find_repeated,
)
from vla_policy_ros.execution.grippers import GripperRule
from vla_policy_ros.execution.settings import SchedulerSettings
from vla_policy_ros.execution.strategies import STRATEGIES
from vla_policy_ros.execution.watchdogs import Action, Watch, WatchRule

_Share = Annotated[float, Field(gt=0, le=1)]
_Distance = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class StrategySettings(StrictModel):
    """How the next chunk takes over from the one before."""

    name: str = 'receding'
    """Name of the strategy."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the strategy; those not named keep their defaults."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        if self.name not in STRATEGIES:
            raise ValueError(f'one of {", ".join(STRATEGIES)}')
        known = STRATEGIES[self.name].parameters
        if not self.parameters.keys() <= known.keys():
            raise ValueError(f'for {self.name} only the parameters: {", ".join(known) or "none"}')
        return self


class FirstAction(StrictModel):
    """How the robot may set out: only when it is near, and slowly."""

    tolerance: _Distance | None = 0.5
    """Largest distance of a column between measured state and first action, in its unit; null: no check."""
    columns: dict[str, _Distance] = Field(default_factory=dict)
    """Column to tolerance, where it differs."""
    soft_start_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the velocity limits on the way to the first action, and of the acceleration limits with which the motion
    then gains pace."""


class MeasuredState(StrictModel):
    """Where the measured state comes from."""

    topic: OptionalTopic = 'joint_states'
    """Topic of sensor_msgs/JointState; empty: none, and then `first_action.tolerance` must be null."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Name in the message to column of the action, for joints that are called differently."""


class WatchSettings(StrictModel):
    """One watch: what it takes for an alarm, and what is done then."""

    timeout_ms: Milliseconds | None
    """Time above which it raises its alarm, in milliseconds; null: off."""
    action: Action = Action.REPORT
    """`report`; `hold`: finish the rows at hand, take no new chunk, hold; `decelerate`: drop them and come to rest;
    `stop`: come to rest and latch the stop."""

    @property
    def rule(self) -> WatchRule | None:
        """The rule; None when it is off."""
        if self.timeout_ms is None:
            return None
        return WatchRule(to_ns(self.timeout_ms), self.action)


class WatchdogSettings(StrictModel):
    """What is watched while the robot moves."""

    chunk: WatchSettings = WatchSettings(timeout_ms=3000.0, action=Action.DECELERATE)
    """Age of the newest observation that has become a chunk: a lost policy."""
    inference: WatchSettings = WatchSettings(timeout_ms=None)
    """Time from an observation to the arrival of its chunk: a slow policy."""
    measured: WatchSettings = WatchSettings(timeout_ms=500.0, action=Action.DECELERATE)
    """Age of the measured state."""
    subscriber: WatchSettings = WatchSettings(timeout_ms=1000.0, action=Action.STOP)
    """Time since a controller stopped listening."""
    tick: WatchSettings = WatchSettings(timeout_ms=20.0, action=Action.REPORT)
    """How much too late a tick may come."""

    def rules(self) -> dict[Watch, WatchRule]:
        """Return the watches that are on."""
        named: dict[Watch, WatchSettings] = {watch: getattr(self, watch.value) for watch in Watch}
        return {watch: rule for watch, one in named.items() if (rule := one.rule) is not None}


class TimeJump(StrictModel):
    """What happens when the clock goes back, as with a bag that loops."""

    threshold_ms: float = Field(default=100.0, gt=0, allow_inf_nan=False)
    """Going back by more than this is a jump; by less, time stands still until it has caught up; in milliseconds."""
    action: Literal['stop', 'reset'] = 'stop'
    """`stop` latches the stop, `reset` drops all chunks, decelerates and goes on with new ones."""


class Refill(StrictModel):
    """When a policy that infers on demand is asked for the next chunk."""

    share: _Share = 0.5
    """Share of a chunk's duration: with less than that left, the next one is asked for."""
    timeout_ms: Milliseconds = 2000.0
    """How long an unanswered request keeps the next one back, in milliseconds."""


class GripperSettings(StrictModel):
    """How a gripper column goes from one value to the next."""

    motion: Literal['snap', 'linear'] = 'snap'
    """`snap`: a row's value holds until the next row; `linear`: straight from row to row."""
    closed_above: float | None = Field(default=None, allow_inf_nan=False)
    """Above this value the command is `closed_value`; null: no threshold."""
    open_below: float | None = Field(default=None, allow_inf_nan=False)
    """Below this value the command is `open_value`; between the two it stays as it was."""
    closed_value: float = Field(default=1.0, allow_inf_nan=False)
    """Command for closed."""
    open_value: float = Field(default=0.0, allow_inf_nan=False)
    """Command for open."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        try:
            self.rule()
        except ConfigurationError as fault:
            raise ValueError(fault.expected) from fault
        return self

    def rule(self) -> GripperRule:
        """Return the rule."""
        return GripperRule(**self.model_dump())


class ExecutorSettings(StrictModel):
    """One robot's way from chunks to motion: the whole of an executor file."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    rate_hz: float = Field(default=200.0, ge=50, le=1000)
    """Ticks per second."""
    chunk_topic: Topic = 'action_chunk'
    """Topic of vla_policy_ros/ActionChunk."""
    strategy: StrategySettings = StrategySettings()
    """How the next chunk takes over from the one before."""
    limits: LimitSettings = LimitSettings()
    """Limits of the joints."""
    measured: MeasuredState = MeasuredState()
    """The measured state."""
    first_action: FirstAction = FirstAction()
    """How the robot may set out."""
    starvation: Literal['hold', 'decelerate', 'stop'] = 'hold'
    """What is done when no row is left: `hold` the last one, `decelerate` from the last velocity, latch a `stop`."""
    watchdogs: WatchdogSettings = WatchdogSettings()
    """What is watched."""
    time_jump: TimeJump = TimeJump()
    """What happens when the clock goes back."""
    prompt_change: Literal['flush', 'finish', 'splice'] = 'splice'
    """What happens to the rows of the old instruction: `flush` drops them and decelerates, `finish` executes them to
    their end, `splice` executes them until the first chunk of the new one takes over."""
    policy_change: Literal['refuse', 'accept'] = 'refuse'
    """Whether another policy may take over while the executor is armed."""
    refill: Refill = Refill()
    """When a policy that infers on demand is asked."""
    cool_down_ms: Milliseconds = 1000.0
    """How long a stop is latched at least, in milliseconds."""
    dry_run: bool = False
    """Whether commands are only reported, not sent."""
    armed_at_start: bool = False
    """Whether the executor arms itself one second after activation, when a latched stop would have arrived; false: the arm
    service does."""
    grippers: dict[str, GripperSettings] = Field(default_factory=dict)
    """Gripper column to its settings; those not named snap."""
    controllers: tuple[Controller, ...] = Field(min_length=1)
    """The robot's controllers, which together take every column of the action once."""
    unused: tuple[str, ...] = ()
    """Columns of the action that go to no controller."""

    @model_validator(mode='after')
    def _check(self) -> Self:
        repeated = find_repeated([controller.name for controller in self.controllers])
        if repeated:
            raise ValueError(f'controllers with different names, not {", ".join(repeated)} twice')
        if not self.measured.topic and self.first_action.tolerance is not None:
            raise ValueError('first_action.tolerance null where measured.topic is empty')
        for controller in self.controllers:
            if isinstance(controller, JointTrajectory):
                least_ms = controller.every_ms + 1e3 / self.rate_hz
                if controller.lead_ms < least_ms:
                    raise ValueError(
                        f'lead_ms of {controller.name} at least {least_ms:g}, every_ms and a tick'
                    )
        return self

    @property
    def period_ns(self) -> int:
        """Time between two ticks."""
        return round(1e9 / self.rate_hz)

    def scheduler(self, *, step_ns: int, horizon: int) -> SchedulerSettings:
        """Return the settings of the scheduler for a policy's step and its most rows."""
        return SchedulerSettings(
            period_ns=self.period_ns,
            step_ns=step_ns,
            horizon=horizon,
            strategy=self.strategy.name,
            parameters=self.strategy.parameters,
            grippers={name: gripper.rule() for name, gripper in self.grippers.items()},
            limit_mode=self.limits.mode,
            gate_tolerance=self.first_action.tolerance,
            gate_tolerances=self.first_action.columns,
            soft_start_share=self.first_action.soft_start_share,
            starvation=Action(self.starvation),
            watchdogs=self.watchdogs.rules(),
            time_jump_ns=to_ns(self.time_jump.threshold_ms),
            time_jump=self.time_jump.action,
            prompt_change=self.prompt_change,
            policy_change=self.policy_change,
            cool_down_ns=to_ns(self.cool_down_ms),
            refill_share=self.refill.share,
            request_timeout_ns=to_ns(self.refill.timeout_ms),
            is_dry_run=self.dry_run,
        )


def load_executor(path: str | Path) -> ExecutorSettings:
    """Read an executor file; relative paths in it are resolved against its folder.

    Raises:
        ConfigurationError: The file is missing or not YAML, or a key is unknown, missing or has a wrong value.
    """
    path = Path(path)
    settings = parse_file(ExecutorSettings, path, ConfigurationError)
    limits = settings.limits.resolved(path.parent)
    return settings.model_copy(update={'limits': limits})


def find_executor_faults(path: str | Path) -> list[VlaPolicyError]:
    """Return every fault of an executor file that can be told without the policy."""
    return find_file_faults(ExecutorSettings, Path(path), ConfigurationError)


def check_executor(settings: ExecutorSettings, columns: Sequence[Column]) -> list[VlaPolicyError]:
    """Return every place where an executor's settings do not fit the columns of the policy's action."""
    names = [column.name for column in columns]
    places = {
        'grippers': tuple(settings.grippers),
        'first_action.columns': tuple(settings.first_action.columns),
    }
    unknown: list[VlaPolicyError] = [
        ConfigurationError(
            f'{place}.{name}',
            got='a column that the action does not have',
            expected=f'one of {", ".join(names)}',
            next_step='Change or remove the name.',
            code='unknown_column',
        )
        for place, named in places.items()
        for name in named
        if name not in names
    ]
    return unknown + check_controllers(settings.controllers, columns, unused=settings.unused)
