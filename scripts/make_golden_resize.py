# SPDX-License-Identifier: Apache-2.0
"""Make test/fixtures/torchvision_resize.npz: what torchvision gives for seeded images.

Run it with a Python that has torch and torchvision; it takes a few seconds:

    python scripts/make_golden_resize.py

Only results are stored: the test makes the same images from the seed. Keys are `filter/antialias/HxW/hxw`, and
`version` holds the versions of torchvision and torch and the CPU path that torch took.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

SEED = 20260401
CASES = (
    # (H, W), (h, w): shrink, odd shrink, rows shrink more than columns, enlarge, one axis only,
    # and a ratio at which PyTorch's nearest depends on float32
    ((48, 64), (24, 24)),
    ((45, 61), (17, 23)),
    ((60, 18), (14, 40)),
    ((15, 20), (32, 40)),
    ((30, 40), (30, 17)),
    ((84, 9), (20, 4)),
)
MODES = (
    ('nearest', False),
    ('bilinear', True),
    ('bilinear', False),
    ('bicubic', True),
    ('bicubic', False),
)
FIXTURE = Path(__file__).parents[1] / 'test' / 'fixtures' / 'torchvision_resize.npz'


def main() -> None:
    """Resize every seeded image in every mode and store the results."""
    capability = torch.backends.cpu.get_cpu_capability()
    golden = {
        'version': np.array(
            f'torchvision {torchvision.__version__}, torch {torch.__version__}, {capability}'
        )
    }
    for source, target in CASES:
        image = np.random.default_rng(SEED).integers(0, 256, (*source, 3), np.uint8)
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        for mode, antialias in MODES:
            resized = functional.resize(
                tensor, list(target), InterpolationMode(mode), antialias=antialias
            )
            key = f'{mode}/{antialias}/{source[0]}x{source[1]}/{target[0]}x{target[1]}'
            golden[key] = resized.permute(1, 2, 0).numpy()
    np.savez_compressed(FIXTURE, **golden)
    print(f'{FIXTURE}: {len(golden) - 1} images, {FIXTURE.stat().st_size} bytes')


if __name__ == '__main__':
    main()
