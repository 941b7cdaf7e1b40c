# SPDX-License-Identifier: Apache-2.0
"""The stages of a bundle in PyTorch, compiled by Torch-TensorRT: TensorRT where it can, PyTorch for the rest.

Not run on a GPU yet. It is written for Torch-TensorRT 2.14, which computes in the types of the module by default; earlier
versions build networks in float32 alone unless told otherwise.
"""

from __future__ import annotations

from types import MappingProxyType

import torch_tensorrt  # noqa: F401 - makes itself known to `torch.compile`

from vla_policy_ros.engines.torch import TorchCompileEngine


class TorchTensorRTEngine(TorchCompileEngine):
    """As `TorchCompileEngine`, by Torch-TensorRT; an engine that cannot be built is an error and no run of PyTorch."""

    COMPILER = MappingProxyType(
        {'backend': 'torch_tensorrt', 'options': {'pass_through_build_failures': True}}
    )
