# SPDX-License-Identifier: Apache-2.0
"""From LeRobot checkpoints to bundles; needs lerobot and torch, which are imported when a checkpoint is loaded."""
