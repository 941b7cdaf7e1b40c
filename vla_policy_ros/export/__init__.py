# SPDX-License-Identifier: Apache-2.0
"""Making bundles: from datasets and checkpoints to ONNX stages, statistics, tokenizer and probe."""
