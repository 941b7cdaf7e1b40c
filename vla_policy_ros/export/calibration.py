# SPDX-License-Identifier: Apache-2.0
"""Calibration: how large the activations of a bundle's networks become on recorded observations.

The policy runs on the CPU with the very tensors that it would get on the robot, every step of its loop included. Each
network gets one more output per activation that is multiplied: the largest magnitude. What a file keeps is these numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
from onnx import TensorProto, helper
from pydantic import Field

from vla_policy_ros.bundle.bundle import Bundle
from vla_policy_ros.bundle.strict import StrictModel, parse
from vla_policy_ros.core.clock import MonotonicClock
from vla_policy_ros.core.engine import DeviceTensor, Engine, Execution, Tensor
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.core.observation import Observation
from vla_policy_ros.core.specs import Array, TensorSpec
from vla_policy_ros.engines.plans import network_hash
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.quantize import QuantizedPrecision, find_products
from vla_policy_ros.policies.host_runner import HostRunner
from vla_policy_ros.policies.stages import EngineLoader

Magnitude = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class NetworkRanges(StrictModel):
    """Ranges of one network."""

    file: str
    """Name of its ONNX file, for people."""
    largest: dict[str, Magnitude]
    """Activation to the largest magnitude that was seen."""
    costly: dict[QuantizedPrecision, dict[str, Magnitude]] = Field(default_factory=dict)
    """Precision to the products that stay in 16 bits with it, each with its loss; see `sensitivity`."""


class Calibration(StrictModel):
    """A calibration file (JSON)."""

    format: Literal['vla_policy_ros calibration 1'] = 'vla_policy_ros calibration 1'
    """What the file is."""
    source: str = ''
    """Name of the dataset."""
    observations: int = Field(ge=1)
    """Number of observations."""
    networks: dict[str, NetworkRanges]
    """Hash of a network, as `engines.plans.network_hash` makes it, to its ranges."""

    def network(self, onnx_path: Path) -> NetworkRanges:
        """Return what was measured of one network.

        Raises:
            EngineError: It was not measured, or has changed since (`stale_calibration`).
        """
        digest = network_hash(onnx_path)
        found = self.networks.get(digest)
        if found is None:
            listed = (f'{entry.file} ({key[:12]})' for key, entry in self.networks.items())
            raise EngineError(
                str(onnx_path),
                got=f'ranges of {", ".join(listed)}',
                expected=f'ranges of {onnx_path.name} ({digest[:12]})',
                next_step='Calibrate again with this bundle: `vla-policy build --calibrate DATASET`.',
                code='stale_calibration',
            )
        return found

    def with_costly(
        self, onnx_path: Path, precision: QuantizedPrecision, losses: Mapping[str, float]
    ) -> Calibration:
        """Return a copy with other products of one network that stay in 16 bits.

        Raises:
            EngineError: As network().
        """
        entry = self.network(onnx_path)
        costly = {**entry.costly, precision: dict(losses)}
        changed = entry.model_copy(update={'costly': costly})
        networks = {**self.networks, network_hash(onnx_path): changed}
        return self.model_copy(update={'networks': networks})


def calibrate(
    bundle: Bundle, observations: Iterable[Observation], *, source: str = ''
) -> Calibration:
    """Run a bundle over observations on the CPU and note the ranges of all its networks.

    Args:
        bundle: The bundle.
        observations: Observations as the policy takes them; they are not kept.
        source: Where they come from, for the file.

    Raises:
        EngineError: There is no observation (`no_observations`), an activation is not finite (`not_finite`), or a
            network cannot be loaded or failed.
        VlaPolicyError: An observation cannot be used.
    """
    with TemporaryDirectory(prefix='vla_calibration_') as folder:
        load = _RangeLoader(Path(folder))
        count = sum(1 for _ in run_policy(bundle, observations, load=load))
    if not count:
        raise _no_observations(source)
    networks = {
        network_hash(path): NetworkRanges(file=path.name, largest=engine.largest)
        for path, engine in load.engines.items()
    }
    return Calibration(source=source, observations=count, networks=networks)


def run_policy(
    bundle: Bundle, observations: Iterable[Observation], *, load: EngineLoader
) -> Iterator[Array]:
    """Run a bundle on the CPU, with the noise that each observation's stamp draws.

    Args:
        bundle: The bundle.
        observations: Observations as the policy takes them.
        load: Loads its networks.

    Yields:
        The (1, K, W) float32 action tensor of each observation, valid until the next one.

    Raises:
        EngineError: A network cannot be loaded, or failed.
        VlaPolicyError: An observation cannot be used.
    """
    runner = HostRunner(
        bundle,
        engine='onnxruntime',
        slots=1,
        settings=DEFAULT_SETTINGS,
        clock=MonotonicClock(),
        load=load,
    )
    with closing(runner):
        for observation in observations:
            runner.write(observation)
            runner.draw_noise(observation.stamp_ns)
            runner.run()
            yield runner.raw_action


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        EngineError: It is no calibration file (`bad_calibration`).
    """
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as fault:
        raise EngineError(
            str(path),
            got=str(fault),
            expected='a JSON file that `vla-policy build --calibrate` wrote',
            next_step='Calibrate again.',
            code='bad_calibration',
        ) from fault
    return parse(Calibration, document, str(path), EngineError)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration file."""
    path.write_text(calibration.model_dump_json(indent=2) + '\n', encoding='utf-8')


def _no_observations(source: str) -> EngineError:
    return EngineError(
        source or 'calibration',
        got='no observation',
        expected='at least one',
        next_step='Choose a dataset with steps, and --samples of at least 1.',
        code='no_observations',
    )


def _not_finite(tensor: str, value: float) -> EngineError:
    return EngineError(
        f'activation {tensor!r}',
        got=f'{value} as its largest magnitude',
        expected='finite numbers, which 8 bits can be scaled to',
        next_step='Look at the observation and the network: in float32 on the CPU it does not compute.',
        code='not_finite',
    )


class _RangeLoader:
    """Loads networks that also measure; `engines` holds them by their files."""

    def __init__(self, folder: Path) -> None:
        self.engines: dict[Path, _RangeEngine] = {}
        self._folder = folder

    def __call__(self, name: str, onnx_path: Path, *, settings: EngineSettings) -> Engine:
        """Load one network."""
        network = OnnxNetwork(onnx_path)
        names = list(dict.fromkeys(product.activation for product in find_products(network)))
        _add_measures(network, names)
        measured = self._folder / f'{len(self.engines)}.onnx'
        network.save(measured)
        engine = _RangeEngine(load_engine(name, measured, settings=settings), names)
        self.engines[onnx_path] = engine
        return engine


class _RangeEngine:
    """A network with one more scalar output per name, which its user does not see.

    Attributes:
        largest: Tensor to the largest magnitude so far.
    """

    def __init__(self, engine: Engine, names: list[str]) -> None:
        self.largest = dict.fromkeys(names, 0.0)
        self.workspace_bytes = 0
        self._engine = engine

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs of the network."""
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs of the network without the measures."""
        return self._engine.outputs[: -len(self.largest) or None]

    def bind(
        self, tensors: Mapping[str, Tensor], *, workspace: DeviceTensor | None = None
    ) -> Execution:
        """Bind the network's tensors, and the measures to buffers of this object's."""
        measures = {name: np.zeros((), np.float32) for name in self.largest}
        hidden = {_measure(index): value for index, value in enumerate(measures.values())}
        bound = self._engine.bind({**tensors, **hidden}, workspace=workspace)
        return _RangeExecution(bound, measures, self.largest)

    def close(self) -> None:
        """Free the network."""
        self._engine.close()


class _RangeExecution:
    """One bound network, and where its measures go."""

    def __init__(
        self, execution: Execution, measures: dict[str, Array], largest: dict[str, float]
    ) -> None:
        self._execution = execution
        self._measures = measures
        self._largest = largest

    def enqueue(self, stream: int = 0) -> None:
        """Run once and note the measures."""
        self._execution.enqueue(stream)
        for name, value in self._measures.items():
            if not np.isfinite(value):
                raise _not_finite(name, float(value))
            self._largest[name] = max(self._largest[name], float(value))

    def close(self) -> None:
        """Release the binding."""
        self._execution.close()


def _add_measures(network: OnnxNetwork, names: list[str]) -> None:
    graph = network.graph
    for index, name in enumerate(names):
        output = _measure(index)
        graph.node.append(helper.make_node('Abs', [name], [f'{output}_magnitudes']))
        graph.node.append(
            helper.make_node('ReduceMax', [f'{output}_magnitudes'], [output], keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ()))


def _measure(index: int) -> str:
    return f'vla_largest_{index}'
