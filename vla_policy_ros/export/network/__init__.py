# SPDX-License-Identifier: Apache-2.0
"""Any ONNX, TorchScript or torch.export file with a short description becomes a bundle."""
