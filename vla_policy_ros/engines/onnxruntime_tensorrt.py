# SPDX-License-Identifier: Apache-2.0
"""TensorRT inside ONNX Runtime: what TensorRT does not take of a network runs in the CUDA provider, on the same stream.

Not run on a GPU yet. The options are those of
https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html. None asks for a precision: without one,
the library builds a strongly typed network, which computes in the types of the file
(https://github.com/microsoft/onnxruntime/pull/18707), as our own TensorRT engine does.
"""

from __future__ import annotations

import logging
from pathlib import Path

from vla_policy_ros.engines.onnxruntime import OnnxRuntimeCudaEngine
from vla_policy_ros.engines.plans import PlanStore, network_hash
from vla_policy_ros.engines.settings import EngineSettings

_LOG = logging.getLogger(__name__)


class OnnxRuntimeTensorRTEngine(OnnxRuntimeCudaEngine):
    """One network in ONNX Runtime's TensorRT provider, on the current GPU and on one stream.

    Its engines are built at load, which takes up to minutes, and kept in the folder of our plans. The library finds them
    by the names in the graph and not by the weights, so each network has a folder of its own there.

    Args:
        onnx_path: The ONNX file.
        settings: `stream` counts and must be given, and `plan_folder`.

    Raises:
        GpuError: There is no NVIDIA driver (`no_driver`).
        EngineError: As `OnnxRuntimeCudaEngine`; also where TensorRT's libraries are missing (`no_provider`).
    """

    NAME = 'onnxruntime_tensorrt'
    PROVIDER = 'TensorrtExecutionProvider'
    NEEDS = 'the TensorRT, CUDA and cuDNN libraries it is made for, on LD_LIBRARY_PATH'

    def _providers(
        self, onnx_path: Path, settings: EngineSettings
    ) -> list[tuple[str, dict[str, str]]]:
        store = PlanStore(settings.plan_folder)
        folder = store.folder / network_hash(onnx_path) / 'onnxruntime'
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.glob('*.engine')):
            _LOG.warning('%s: ONNX Runtime builds engines, which may take minutes', onnx_path.name)
        (cuda,) = super()._providers(onnx_path, settings)
        facts = {
            **cuda[1],
            'trt_engine_cache_enable': 'True',
            'trt_engine_cache_path': str(folder),
            'trt_timing_cache_enable': 'True',
            'trt_timing_cache_path': str(store.folder),
        }
        return [(self.PROVIDER, facts), cuda]
