# SPDX-License-Identifier: Apache-2.0
"""From the path of a bundle to a policy that is proven to compute what it should."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.probe import check_probe
from vla_policy_ros.core.policy import Policy
from vla_policy_ros.engines.registry import ENGINES
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.policies.hold import HoldPolicy

POLICY_ENGINES = (*ENGINES, 'none')
"""Names that `load_policy` takes as engine; `none` holds the observed state and runs no network."""


def load_policy(
    bundle_path: str | Path,
    *,
    engine: str = 'onnxruntime',
    preprocess: str = 'cpu',
    slots: int = 8,
    threads: int = 0,
) -> Policy:
    """Load a bundle, make its policy, and run its probe.

    Args:
        bundle_path: Folder of the bundle.
        engine: One of `POLICY_ENGINES`.
        preprocess: Where images are preprocessed; `cpu` is what exists.
        slots: Images per camera that may be prepared and not yet let go.
        threads: Threads of one network run; 0 leaves the choice to the engine.

    Raises:
        BundleError: The bundle is broken, or the probe's output lies outside of the limits (`probe_failed`).
        ConfigurationError: The engine or the preprocessor is unknown.
        MissingDependencyError: The engine's library is not installed.
        EngineError: A network cannot be loaded or failed.
    """
    bundle = load_bundle(bundle_path)
    if engine == 'none':
        return HoldPolicy(bundle.spec)
    policy = EnginePolicy(
        bundle, engine=engine, preprocess=preprocess, slots=slots, threads=threads
    )
    with ExitStack() as undo:
        undo.callback(policy.close)
        check_probe(policy, bundle)
        undo.pop_all()
    return policy
