# SPDX-License-Identifier: Apache-2.0
"""The sample that comes with the package: a rendered dataset and a small policy trained on the same scene.

`examples/train_sample_policy` makes both.
"""

from __future__ import annotations

from pathlib import Path

HELD_OUT_EPISODES = (8, 9, 10, 11)
"""Episodes of the sample dataset that the sample policy was not trained on; the ones before them were."""


def sample_dataset_path() -> Path:
    """Return the folder of the sample dataset (LeRobot v2.1)."""
    return Path(__file__).parent / 'pick_blocks'


def sample_bundle_path() -> Path:
    """Return the folder of the sample policy's bundle."""
    return Path(__file__).parent / 'bundle'


def sample_executor_path() -> Path:
    """Return the executor file of the sample policy on the simulated arm."""
    return Path(__file__).parent / 'executor.yaml'
