# SPDX-License-Identifier: Apache-2.0
"""What each product of a policy loses in 8 bits, measured one by one; those that lose most for their size stay in 16 bits.

The loss is the squared error of the action tensor in parts of its squares: a mean cosine similarity of about 1 - loss / 2. It is
taken at the end of the whole policy, not of a stage: how much of an error comes through differs from stage to stage. Roundings
of different products are independent, so their losses add up, and one measurement of each, with all else in float32, is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.core.engine import Engine
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.export.calibration import Calibration, run_policy
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.quantize import QuantizedPrecision, find_products, quantize
from vla_policy_ros.export.quantize_rules import keep_by_rule


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductLoss:
    """What one product loses.

    Attributes:
        onnx_path: Its network.
        name: Its name.
        weights: Number of its weights.
        loss: Squared error of the actions in parts of their squares.
    """

    onnx_path: Path
    name: str
    weights: int
    loss: float


def keep_costly(
    bundle: Bundle,
    observations: Iterable[Observation],
    calibration: Calibration,
    *,
    precision: QuantizedPrecision,
    loss_limit: float,
) -> Calibration:
    """Measure the products of a bundle and note in its calibration which stay in 16 bits.

    Args:
        bundle: The bundle.
        observations: A few observations as the policy takes them.
        calibration: Ranges of all its networks.
        precision: The 8-bit type.
        loss_limit: Loss of the policy that is allowed.

    Returns:
        The calibration with `costly` of this precision replaced.

    Raises:
        EngineError: A network cannot be quantised, loaded or run, or the calibration is of other networks.
        VlaPolicyError: An observation cannot be used.
    """
    losses = list(measure_losses(bundle, observations, calibration, precision=precision))
    costly = choose_costly(losses, loss_limit=loss_limit)
    for path in _networks(bundle):
        own = {entry.name: entry.loss for entry in costly if entry.onnx_path == path}
        calibration = calibration.with_costly(path, precision, own)
    return calibration


def measure_losses(
    bundle: Bundle,
    observations: Iterable[Observation],
    calibration: Calibration,
    *,
    precision: QuantizedPrecision,
) -> Iterator[ProductLoss]:
    """Yield the loss of every product that no rule keeps in 16 bits.

    Each one costs loading the policy and running it on all observations, on the CPU: seconds for a small policy, hours in
    all for one of billions of weights.

    Raises:
        VlaPolicyError: As keep_costly().
    """
    kept = list(observations)
    references = [actions.copy() for actions in run_policy(bundle, kept, load=load_engine)]
    # An output of zeros has no parts to speak of.
    total = max(sum(map(_sum_squares, references)), float(np.finfo(np.float32).tiny))
    for path in _networks(bundle):
        for name, weights in _candidates(path).items():
            load = _OneProductLoader(path, name, precision, calibration)
            pairs = zip(run_policy(bundle, kept, load=load), references, strict=True)
            error = sum(_sum_squares(actions - reference) for actions, reference in pairs)
            yield ProductLoss(onnx_path=path, name=name, weights=weights, loss=error / total)


def choose_costly(losses: Sequence[ProductLoss], *, loss_limit: float) -> list[ProductLoss]:
    """Return products that stay in 16 bits, so that the sum of the others' losses is within a limit.

    Those with the most loss per weight come first: 8 bits gain by their number of weights.
    """
    rest = sorted(losses, key=lambda entry: entry.loss / entry.weights)
    costly = []
    while sum(entry.loss for entry in rest) > loss_limit:
        costly.append(rest.pop())
    return costly


@dataclass(frozen=True, slots=True)
class _OneProductLoader:
    """Loads a bundle's networks with one product of one of them in 8 bits."""

    onnx_path: Path
    product: str
    precision: QuantizedPrecision
    calibration: Calibration

    def __call__(self, name: str, onnx_path: Path, *, settings: EngineSettings) -> Engine:
        """Load one network."""
        if onnx_path != self.onnx_path:
            return load_engine(name, onnx_path, settings=settings)
        products = [product.name for product in find_products(OnnxNetwork(onnx_path))]
        with TemporaryDirectory(prefix='vla_sensitivity_') as folder:
            out = Path(folder) / onnx_path.name
            quantize(
                onnx_path,
                out,
                precision=self.precision,
                ranges=self.calibration.network(onnx_path).largest,
                leave_out={other: '' for other in products if other != self.product},
            )
            # Node by node, as the file says: the optimiser breaks fp8, and rounds in its own ways in int8.
            return load_engine(name, out, settings=replace(settings, optimize=False))


def _networks(bundle: Bundle) -> list[Path]:
    """Return the networks of a bundle, each once."""
    return list(dict.fromkeys(bundle.folder / stage.onnx for stage in bundle.manifest.stages))


def _candidates(onnx_path: Path) -> dict[str, int]:
    """Return the products that no rule keeps in 16 bits, with the number of their weights."""
    network = OnnxNetwork(onnx_path)
    kept = keep_by_rule(network)
    return {
        product.name: prod(product.weight.dims)
        for product in find_products(network)
        if product.name not in kept
    }


def _sum_squares(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())
