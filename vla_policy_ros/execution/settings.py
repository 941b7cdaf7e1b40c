# SPDX-License-Identifier: Apache-2.0
"""What the chunk scheduler is told once: times in nanoseconds, everything checked where the file is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vla_policy_ros.execution.grippers import GripperRule
from vla_policy_ros.execution.watchdogs import Action, Watch, WatchRule

LimitMode = Literal['clamp', 'reject', 'stretch']
PromptChange = Literal['flush', 'finish', 'splice']


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """How chunks become commands.

    Attributes:
        period_ns: Time between two ticks.
        step_ns: Time between two rows of a chunk.
        horizon: K, the most rows of a chunk.
        strategy: Name in `strategies.STRATEGIES`.
        parameters: Parameters of the strategy.
        grippers: Gripper column to its rule; those not named snap.
        limit_mode: `clamp` bends what breaks a limit, `reject` refuses such a chunk, `stretch` slows motion down.
        gate_tolerance: Largest distance per column, in its unit, between the measured state and the first action;
            None: no gate.
        gate_tolerances: Column to tolerance, where it differs.
        soft_start_share: Share of the velocity limits, below 1, on the way to the first action, and of the acceleration
            limits with which the motion then gains pace.
        starvation: What is done when no row is left: hold, decelerate or stop.
        watchdogs: The watches that are on.
        time_jump_ns: A clock that goes back further than this has jumped; by less, time stands still.
        time_jump: What is done about a jump: latch the stop, or drop all chunks and go on with new ones.
        prompt_change: What happens to the rows of the old instruction: `flush` drops them and decelerates, `finish`
            executes them to their end first, `splice` executes them until the first chunk of the new one takes over.
        policy_change: Whether another policy may take over while the executor is armed.
        cool_down_ns: How long a stop is latched at least.
        refill_share: Share of a chunk's duration; with less than that left, a new chunk is asked for.
        request_timeout_ns: How long an unanswered request keeps the next one back.
        is_dry_run: Whether commands are only told, not sent.
    """

    period_ns: int
    step_ns: int
    horizon: int
    strategy: str = 'receding'
    parameters: Mapping[str, Any] = field(default_factory=dict)
    grippers: Mapping[str, GripperRule] = field(default_factory=dict)
    limit_mode: LimitMode = 'clamp'
    gate_tolerance: float | None = None
    gate_tolerances: Mapping[str, float] = field(default_factory=dict)
    soft_start_share: float = 0.3
    starvation: Action = Action.HOLD
    watchdogs: Mapping[Watch, WatchRule] = field(default_factory=dict)
    time_jump_ns: int = 100_000_000
    time_jump: Literal['stop', 'reset'] = 'stop'
    prompt_change: PromptChange = 'splice'
    policy_change: Literal['refuse', 'accept'] = 'refuse'
    cool_down_ns: int = 1_000_000_000
    refill_share: float = 0.5
    request_timeout_ns: int = 2_000_000_000
    is_dry_run: bool = False
