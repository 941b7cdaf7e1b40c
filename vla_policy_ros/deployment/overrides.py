# SPDX-License-Identifier: Apache-2.0
"""Single facts of a deployment that a launch argument or a ROS parameter may replace."""

from __future__ import annotations

from typing import Any, Literal

from vla_policy_ros.bundle.manifest import Precision
from vla_policy_ros.bundle.strict import StrictModel
from vla_policy_ros.deployment.config import SAMPLE_BUNDLE, Deployment, PolicySettings

_COMPRESSED_SUFFIX = '/compressed'


class Overrides(StrictModel):
    """What wins over the deployment file; an empty text leaves the file's value."""

    engine: str = ''
    """Engine that runs the stages."""
    preprocess: str = ''
    """Where images are preprocessed."""
    jpeg: Literal['', 'cpu', 'nvjpeg'] = ''
    """What decodes JPEG."""
    precision: Literal['', Precision] = ''
    """Precision that the engine runs in."""
    plan_folder: str = ''
    """Folder of TensorRT plans."""
    cuda_graph: bool = True
    """Whether a CUDA graph may be used; false wins over the file, true leaves its value."""
    device: int = -1
    """Index of the GPU; -1 leaves the file's value."""
    image_transport: Literal['', 'raw', 'compressed'] = ''
    """Transport of every camera; the topic follows: `/compressed` is appended or taken away."""
    chunk_topic: str = ''
    """Topic of the action chunks."""
    instruction: str = ''
    """Instruction at the start."""

    def policy_settings(self, given: PolicySettings | None) -> PolicySettings:
        """Return how the policy runs: the given settings (or the defaults) with what these facts replace."""
        base = given or PolicySettings(bundle=SAMPLE_BUNDLE)
        update: dict[str, Any] = _set(
            engine=self.engine,
            preprocess=self.preprocess,
            jpeg=self.jpeg,
            precision=self.precision,
            plan_folder=self.plan_folder,
        )
        update['cuda_graph'] = base.cuda_graph and self.cuda_graph
        update['device'] = base.device if self.device < 0 else self.device
        return base.model_copy(update=update)

    def apply(self, deployment: Deployment) -> Deployment:
        """Return the deployment with what these facts replace."""
        cameras = deployment.cameras
        if self.image_transport:
            cameras = {
                name: camera.model_copy(
                    update={
                        'transport': self.image_transport,
                        'topic': camera.topic.removesuffix(_COMPRESSED_SUFFIX)
                        + (_COMPRESSED_SUFFIX if self.image_transport == 'compressed' else ''),
                    }
                )
                for name, camera in cameras.items()
            }
        output = _set(chunk_topic=self.chunk_topic)
        return deployment.model_copy(
            update={
                'policy': self.policy_settings(deployment.policy),
                'cameras': cameras,
                'output': deployment.output.model_copy(update=output),
                'instruction': deployment.instruction.model_copy(
                    update=_set(text=self.instruction)
                ),
            }
        )


def _set(**values: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}
