# SPDX-License-Identifier: Apache-2.0
"""A GR00T checkpoint in the library's hands, and how it becomes stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_policy_ros.bundle.manifest import Camera
from vla_policy_ros.bundle.probe import Probe
from vla_policy_ros.core.specs import Array
from vla_policy_ros.export.groot.action_head import action_tensor, loop_settings, plan_action_head
from vla_policy_ros.export.groot.backbone import Backbone
from vla_policy_ros.export.groot.checkpoint import Checkpoint
from vla_policy_ros.export.groot.library import silent_library
from vla_policy_ros.export.groot.manifest import Plan
from vla_policy_ros.export.groot.names import Names
from vla_policy_ros.export.groot.versions import Version, find_version
from vla_policy_ros.export.traced_policy import (
    STATE_TENSOR,
    example_mask,
    image_tensor,
    random_values,
)
from vla_policy_ros.export.tracing import require_torch


@dataclass(frozen=True, slots=True, eq=False)
class GrootPolicy:
    """A checkpoint in the library's hands.

    Attributes:
        version: Its version.
        checkpoint: What its files say.
        model: The library's policy.
        processor: The library's processor.
    """

    version: Version
    checkpoint: Checkpoint
    model: Any
    processor: Any

    @classmethod
    def load(
        cls, folder: Path, *, embodiment: str | None = None, vlm: Path | None = None
    ) -> GrootPolicy:
        """Load a checkpoint, float32, on the CPU; arguments and errors as those of `export_groot`."""
        version = find_version(folder)
        return cls.open(version, version.read(folder, embodiment), vlm)

    @classmethod
    def open(cls, version: Version, checkpoint: Checkpoint, vlm: Path | None) -> GrootPolicy:
        """Load a checkpoint whose files were read."""
        with silent_library():
            model = version.load(checkpoint, vlm)
            processor = version.make_processor(checkpoint, model)
        return cls(version, checkpoint, model, processor)

    def plan(self, names: Names, max_words: int) -> tuple[Plan, Backbone]:
        """Return how the policy becomes a bundle for cameras and columns of these names."""
        robot, head = self.checkpoint.embodiment, self.model.action_head
        entries = tuple(
            self.version.format_camera(self.processor, (camera.height, camera.width))
            for camera in names.cameras
        )
        history = list(robot.camera_steps)  # its length counts, not its unit
        cameras = [
            Camera.model_validate(
                {'name': 'camera', 'tensor': image_tensor(index), **entry, 'history_ns': history}
            )
            for index, entry in enumerate(entries)
        ]
        backbone = self.version.plan_backbone(
            self.model,
            self.processor,
            {camera.tensor: random_values(camera.tensor_shape) for camera in cameras},
            sizes={camera.tensor: camera.size for camera in cameras},
            max_words=max_words,
        )
        stages = plan_action_head(
            head,
            backbone.layout,
            backbone.stages[-1].run(),
            token_mask=example_mask(backbone.layout.num_words),
            state=random_values((1, len(robot.state_steps), self.checkpoint.state_width)),
            embodiment_id=robot.number,
            rows=robot.rows,
        )
        plan = Plan(
            cameras=entries,
            stages=(*backbone.stages, *stages),
            loop=loop_settings(head),
            words=backbone.words,
            action_tensor=action_tensor(head, robot.rows),
        )
        return plan, backbone

    def library_inputs(self, backbone: Backbone, tensors: Mapping[str, Array]) -> dict[str, Any]:
        """Return what the library's `get_action` takes for an observation's tensors."""
        torch = require_torch()
        return {
            **backbone.library_inputs(tensors),
            'state': torch.from_numpy(tensors[STATE_TENSOR]),
            'embodiment_id': torch.tensor([self.checkpoint.embodiment.number]),
        }

    def run_library(self, backbone: Backbone, tensors: Mapping[str, Array]) -> Probe:
        """Run the library's own way from an observation's tensors on, and say which noise it drew."""
        torch, head = require_torch(), self.model.action_head
        inputs = self.library_inputs(backbone, tensors)
        with torch.inference_mode(), torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            noise = torch.randn((1, head.action_horizon, head.action_dim))
            torch.manual_seed(0)  # the library draws the same, and nothing before
            chunk = self.model.get_action(inputs)['action_pred']
        rows = chunk[:, : self.checkpoint.embodiment.rows]
        return Probe(tensors, noise.numpy(), rows.numpy())
