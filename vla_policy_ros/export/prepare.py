# SPDX-License-Identifier: Apache-2.0
"""A bundle's network in the precision it is to run in: quantised, converted, or as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.core.engine import Engine
from vla_policy_ros.core.errors import ConfigurationError
from vla_policy_ros.engines.registry import load_engine, takes_precision
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.export.calibration import Calibration
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.precision import (
    ConversionReport,
    FloatPrecision,
    check_target,
    lower_network,
)
from vla_policy_ros.export.quantize import (
    QuantizationReport,
    QuantizedPrecision,
    quantize_network,
)
from vla_policy_ros.export.quantize_rules import keep_by_rule
from vla_policy_ros.policies.stages import EngineLoader

REMAINDER: FloatPrecision = 'fp16'
"""What a quantised network is in where it is not quantised: engines have 8-bit kernels with fp16 beside them."""
EIGHT_BIT: tuple[QuantizedPrecision, ...] = ('int8', 'fp8')
"""Precisions that need calibration."""
_LACKING: Mapping[str, tuple[Precision, ...]] = {
    'onnxruntime': ('bf16',),
    'onnxruntime_cuda': ('fp8',),
    'onnxruntime_tensorrt': ('fp8',),
}


@dataclass(frozen=True, slots=True)
class PreparationReport:
    """What was done to a network; `quantization` is None for a floating-point precision."""

    conversion: ConversionReport
    quantization: QuantizationReport | None = None


def prepare_network(
    onnx_path: Path, out_path: Path, precision: Precision, calibration: Calibration | None = None
) -> PreparationReport:
    """Write a network in a precision.

    Args:
        onnx_path: The bundle's network.
        out_path: Where the result goes, with a data file beside it where the source has one.
        precision: The precision; `int8` and `fp8` quantise products with weights but for those that `quantize_rules` and the
            calibration keep, and leave the rest to `REMAINDER`.
        calibration: Ranges for `int8` and `fp8`; not needed for a network that is quantised already, which is taken as it is.

    Raises:
        ConfigurationError: There is no calibration where one is needed (`no_calibration`).
        EngineError: The network cannot be converted, or the calibration is another network's.
    """
    check_target(onnx_path, out_path)
    network = OnnxNetwork(onnx_path)
    quantization, rest = None, REMAINDER
    if precision == 'int8' or precision == 'fp8':  # noqa: PLR1714 - the type checker wants it so
        if not is_quantized(network):
            quantization = quantize_by_rule(network, precision, calibration)
    else:
        rest = precision
    conversion = lower_network(network, rest)
    network.save(out_path)
    return PreparationReport(conversion, quantization)


def quantize_by_rule(
    network: OnnxNetwork, precision: QuantizedPrecision, calibration: Calibration | None
) -> QuantizationReport:
    """Quantise a network in hand but for the products that `quantize_rules` and the calibration keep.

    Raises:
        ConfigurationError: There is no calibration (`no_calibration`).
        EngineError: The network cannot be quantised, or the calibration is another network's.
    """
    if calibration is None:
        raise no_calibration(precision)
    measured = calibration.network(network.path)
    costly = measured.costly.get(precision, {})
    return quantize_network(
        network,
        precision,
        ranges=measured.largest,
        leave_out={**keep_by_rule(network), **dict.fromkeys(costly, 'loses too much')},
    )


def is_quantized(network: OnnxNetwork) -> bool:
    """Whether a network has explicit quantisation already, such as that of `quantized_bundle` or of ModelOpt."""
    return any(node.op_type == 'QuantizeLinear' for node in network.graph.node)


class PreparingLoader:
    """Loads networks in the precision of the settings, for engines that run a file as it is.

    ONNX Runtime has few fp16 kernels on the CPU and computes the rest in float32 between casts: what is measured on it is
    mostly the rounding of the weights.

    Args:
        calibration: Ranges for `int8` and `fp8`.
    """

    def __init__(self, calibration: Calibration | None = None) -> None:
        self._calibration = calibration

    def __call__(self, name: str, onnx_path: Path, *, settings: EngineSettings) -> Engine:
        """Load one network; the converted file is gone when the engine has read it."""
        with TemporaryDirectory(prefix='vla_precision_') as folder:
            prepared = Path(folder) / onnx_path.name
            prepare_network(onnx_path, prepared, settings.precision or 'fp32', self._calibration)
            if settings.precision == 'fp8':
                # ONNX Runtime's optimiser takes float8 for int8: it drops Relu before a quantiser and fuses convolutions.
                settings = replace(settings, optimize=False)
            return load_engine(name, prepared, settings=settings)


def choose_loader(
    engine: str, precision: Precision | None, calibration: Calibration | None = None
) -> EngineLoader:
    """Return what loads the networks of an engine in a precision.

    Plans have theirs, and some engines compute in it. For all others, which run a file as it is, the file is converted.

    Args:
        engine: Name of the engine.
        precision: Precision of all networks; None takes them as they are.
        calibration: Ranges for `int8` and `fp8`.

    Raises:
        ConfigurationError: The engine cannot run that precision (`unsupported_precision`).
    """
    if precision is None or takes_precision(engine, precision):
        return load_engine
    if precision in _LACKING.get(engine, ()):
        raise ConfigurationError(
            'precision',
            got=f'{precision} on {engine}',
            expected='another precision: ONNX Runtime lacks CPU kernels for bf16, and takes fp8 on no GPU',
            next_step='Use this precision on the engine it is meant for.',
            code='unsupported_precision',
        )
    return PreparingLoader(calibration)


def no_calibration(precision: Precision) -> ConfigurationError:
    """Return the error of a precision that needs calibration and has none."""
    return ConfigurationError(
        'calibration',
        got='none',
        expected=f'recorded observations, from which {precision} takes its ranges',
        next_step='Add `--calibration FILE`; `vla-policy build --calibrate DATASET --calibration FILE` makes one.',
        code='no_calibration',
    )
