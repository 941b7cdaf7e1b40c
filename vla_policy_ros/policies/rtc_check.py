# SPDX-License-Identifier: Apache-2.0
"""Can a bundle's chunks begin with what is left of the one before, the way a deployment file asks for it?"""

from __future__ import annotations

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.graph import prefix_inputs
from vla_policy_ros.bundle.manifest import FlowMatching
from vla_policy_ros.bundle.normalization import ActionDenormalizer
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.engines.registry import GRADIENT_ENGINES

_WITHOUT = 'Leave policy.rtc away; the executor strategy offset_fade joins chunks of any policy.'


def check_rtc(
    bundle: Bundle, settings: RtcSettings, *, engine: str, denormalizer: ActionDenormalizer
) -> None:
    """Refuse what cannot work.

    Raises:
        ConfigurationError: The bundle has no loop of flow matching (`needs_flow_matching`), its loop has other rows than
            the chunk (`other_rows`), the network has no inputs for a prefix (`needs_prefix_inputs`), the engine gives
            no gradient (`needs_gradient`), rows cannot be moved in time (`rows_not_movable`), or more rows are
            frozen than can be (`too_many_frozen`).
    """
    _check_loop(bundle, settings)
    if settings.kind == 'guided' and engine not in GRADIENT_ENGINES:
        raise _fault(
            'kind',
            got=f"'guided' with engine {engine!r}, which gives no gradient of its network",
            expected=f'an engine with gradients: {", ".join(GRADIENT_ENGINES)}',
            next_step='Choose one of these engines, or kind: blend, which needs no gradient.',
            code='needs_gradient',
        )
    _check_rows(bundle, denormalizer)
    _check_delays(bundle, settings)


def max_delay_steps(bundle: Bundle, settings: RtcSettings) -> int:
    """Return the most rows that are frozen: half of the chunk, less where the settings or the training say so."""
    limits = [bundle.spec.action.horizon // 2]
    inputs = prefix_inputs(bundle.manifest)
    if settings.kind == 'inputs' and inputs:
        limits.append(inputs.max_delay_steps)
    if settings.max_delay_steps is not None:
        limits.append(settings.max_delay_steps)
    return min(limits)


def _check_loop(bundle: Bundle, settings: RtcSettings) -> None:
    loop = bundle.manifest.loop
    if not isinstance(loop, FlowMatching):
        raise _fault(
            'kind',
            got=f'a bundle with {f"a loop of kind {loop.kind}" if loop else "no denoise loop"}',
            expected='a bundle with a loop of kind flow_matching_euler',
            next_step=_WITHOUT,
            code='needs_flow_matching',
        )
    num_rows, horizon = bundle.tensors[loop.sample].shape[1], bundle.spec.action.horizon
    if num_rows != horizon:
        raise _fault(
            'kind',
            got=f'a loop over {num_rows} rows for chunks of {horizon}',
            expected='one row of the loop per row of the chunk',
            next_step=_WITHOUT,
            code='other_rows',
        )
    if settings.kind == 'inputs' and loop.prefix is None:
        raise _fault(
            'kind',
            got="'inputs' with a bundle that has no loop.prefix",
            expected='a network that was trained with the first rows of its chunk given',
            next_step='Choose kind: blend, or export such a network and name its inputs in bundle.yaml.',
            code='needs_prefix_inputs',
        )


def _check_rows(bundle: Bundle, denormalizer: ActionDenormalizer) -> None:
    """Refuse rows whose numbers depend on the observation or the row, where they cannot be said anew."""
    loop, action = bundle.manifest.loop, bundle.manifest.action
    assert loop
    if denormalizer.bound_groups and loop.sample != action.tensor:
        names = ', '.join(denormalizer.bound_groups)
        why = f'that are decoded after the loop and belong to their observation ({names})'
    elif denormalizer.fixed_groups:
        why = f'that hold a column without a range in its statistics ({", ".join(denormalizer.fixed_groups)})'
    else:
        return
    raise _fault(
        'kind',
        got=f'actions relative to the observation, or normalised per row, {why}',
        expected='rows that can be said anew for a later observation',
        next_step=_WITHOUT,
        code='rows_not_movable',
    )


def _check_delays(bundle: Bundle, settings: RtcSettings) -> None:
    own = settings.model_copy(update={'max_delay_steps': None})
    for key, value, limit in (
        ('max_delay_steps', settings.max_delay_steps, max_delay_steps(bundle, own)),
        ('frozen_steps', settings.frozen_steps, max_delay_steps(bundle, settings)),
    ):
        if isinstance(value, int) and value > limit:
            raise _fault(
                key,
                got=value,
                expected=f'at most {limit}, which leaves d <= K - d of the chunk of {bundle.spec.action.horizon} rows '
                'and what the network was trained for',
                next_step='Lower it, or make the policy faster.',
                code='too_many_frozen',
            )


def _fault(
    key: str, *, got: object, expected: str, next_step: str, code: str
) -> ConfigurationError:
    return ConfigurationError(
        f'policy.rtc.{key}', got=got, expected=expected, next_step=next_step, code=code
    )
