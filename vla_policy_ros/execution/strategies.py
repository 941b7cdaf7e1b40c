# SPDX-License-Identifier: Apache-2.0
"""The strategies by name.

| name | a new chunk takes over | continuous hand-over | parameters |
| --- | --- | --- | --- |
| `open_loop` | when the rows before it have ended | no | |
| `receding` | after s steps of the one before it | no | `execution_horizon` |
| `latest` | at once | no | |
| `aggregate` | at once, mixed with what was planned | no | `function` |
| `temporal_ensemble` | at once, in the mean of all | no | `coefficient` |
| `offset_fade` | at once | yes | `fade_ms` |
| `rtc` | at its row d | yes | `fade_ms`, `delay_steps` |

A continuous hand-over has no step in position or velocity at any seam, whatever the delay; it is promised for every
column but grippers that snap. After a gap it is the last row, at rest, that is gone on from. With the other strategies
it is for the limiter to bound the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.execution.kinds import ColumnMath
from vla_policy_ros.execution.strategy import ChunkStrategy, Parameter, Strategy, Target
from vla_policy_ros.execution.strategy_fade import OffsetFade, RealTimeChunking
from vla_policy_ros.execution.strategy_merge import Aggregate, TemporalEnsemble
from vla_policy_ros.execution.strategy_plain import Latest, OpenLoop, Receding

__all__ = ['STRATEGIES', 'ChunkStrategy', 'Parameter', 'Strategy', 'Target', 'make_strategy']

STRATEGIES: Mapping[str, type[ChunkStrategy]] = MappingProxyType(
    {
        strategy.name: strategy
        for strategy in (
            OpenLoop,
            Receding,
            Latest,
            Aggregate,
            TemporalEnsemble,
            OffsetFade,
            RealTimeChunking,
        )
    }
)


def make_strategy(
    name: str, math: ColumnMath, *, step_ns: int, horizon: int, **parameters: float | str
) -> ChunkStrategy:
    """Return a strategy by name; parameters that are not said have their defaults.

    Args:
        name: Name in `STRATEGIES`.
        math: Arithmetic of the D columns.
        step_ns: Time between two rows of every chunk.
        horizon: K, the most rows of a chunk.
        **parameters: Those of the strategy, see `ChunkStrategy.parameters`.

    Raises:
        ConfigurationError: `unknown_strategy`, `unknown_parameter`, `bad_parameter`.
    """
    if name not in STRATEGIES:
        raise ConfigurationError(
            'strategy',
            got=repr(name),
            expected=f'one of {", ".join(STRATEGIES)}',
            next_step='Name a strategy that exists.',
            code='unknown_strategy',
        )
    known = STRATEGIES[name].parameters
    for key, value in parameters.items():
        _check_parameter(f'strategy {name}: {key}', value, known=known, name=key, horizon=horizon)
    defaults = {key: parameter.initial(horizon) for key, parameter in known.items()}
    return STRATEGIES[name](math, step_ns=step_ns, horizon=horizon, **(defaults | parameters))


def _check_parameter(
    where: str, value: object, *, known: Mapping[str, Parameter], name: str, horizon: int
) -> None:
    if name not in known:
        raise ConfigurationError(
            where,
            got=repr(value),
            expected=f'only {", ".join(known)}' if known else 'no parameters',
            next_step='Remove it, or choose the strategy that has it.',
            code='unknown_parameter',
        )
    if not known[name].allows(value, horizon):
        raise ConfigurationError(
            where,
            got=repr(value),
            expected=known[name].describe(horizon),
            next_step=f'Choose such a value for chunks of {horizon} rows.',
            code='bad_parameter',
        )
