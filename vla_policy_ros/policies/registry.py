# SPDX-License-Identifier: Apache-2.0
"""From the path of a bundle to a policy that is proven to compute what it should."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.deployment.rtc import RtcSettings
from vla_policy_ros.engines.registry import ENGINES, takes_precision
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.gpu.interfaces import Device
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.hold import HoldPolicy

NO_ENGINE = 'none'
"""Holds the observed state and runs no network."""

POLICY_ENGINES = (*ENGINES, NO_ENGINE)
"""Names that `load_policy` takes as engine."""


def load_policy(
    bundle_path: str | Path,
    *,
    engine: str = 'onnxruntime',
    preprocess: str = 'cpu',
    slots: int = 8,
    settings: EngineSettings = DEFAULT_SETTINGS,
    cuda_graph: bool = True,
    jpeg: str = 'cpu',
    device: Device | int = 0,
    rtc: RtcSettings | None = None,
) -> Policy:
    """Load a bundle, make its policy, and run its probe; the words are those of `EnginePolicy`.

    Args:
        bundle_path: Folder of the bundle.
        engine: One of `POLICY_ENGINES`.
        preprocess: Where images are preprocessed.
        slots: Images per camera that may be prepared and not yet let go.
        settings: How networks are loaded; their precision chooses the probe's limits.
        cuda_graph: Whether a device engine's stages and loop are captured in one CUDA graph.
        jpeg: What decodes JPEG.
        device: The GPU of a device engine: one that stays the caller's to close, or the index of one to open; also the
            index of a GPU or NPU that an engine opens itself.
        rtc: How a chunk begins with what is left of the one before; nothing to a policy that holds the pose.

    Raises:
        BundleError: The bundle is broken, or the probe's output lies outside of the limits (`probe_failed`).
        ConfigurationError: A name is unknown, or a choice needs another one; a precision (other than fp32, which stands
            for networks as they are) needs an engine that runs plans or computes in it (`needs_plans`).
        MissingDependencyError: The engine's library is not installed.
        EngineError: A network cannot be loaded or failed.
        GpuError: There is no GPU or driver, or not enough memory.
    """
    _check_words(engine, settings)
    bundle = load_bundle(bundle_path)
    if engine == NO_ENGINE:
        return HoldPolicy(bundle.spec)
    policy = EnginePolicy(
        bundle,
        engine=engine,
        preprocess=preprocess,
        slots=slots,
        settings=settings,
        cuda_graph=cuda_graph,
        jpeg=jpeg,
        device=device,
        rtc=rtc,
    )
    with ExitStack() as undo:
        undo.callback(policy.close)
        check_probe(policy, bundle, precision=settings.precision)
        undo.pop_all()
    return policy


def _check_words(engine: str, settings: EngineSettings) -> None:
    """Refuse an unknown engine, and a precision that it would not run in: that would loosen the probe's limits only."""
    if engine not in POLICY_ENGINES:
        raise ConfigurationError(
            'policy.engine',
            got=repr(engine),
            expected=f'one of {", ".join(POLICY_ENGINES)}',
            next_step='Choose one of these.',
            code='unknown_engine',
        )
    precision = settings.precision
    if precision in (None, 'fp32') or engine == NO_ENGINE or takes_precision(engine, precision):
        return
    able = (name for name in ENGINES if takes_precision(name, precision))
    raise ConfigurationError(
        'policy.precision',
        got=f'{precision!r} with engine {engine!r}, which runs networks as they were exported',
        expected=f'fp32, or an engine that runs plans or computes in it: {", ".join(able)}',
        next_step='Set precision: fp32, or choose one of these engines.',
        code='needs_plans',
    )
