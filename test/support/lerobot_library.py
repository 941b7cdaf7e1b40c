# SPDX-License-Identifier: Apache-2.0
"""LeRobot's own code as the reference of exported policies."""

import torch

from vla_policy_ros.export.checkpoint_files import read_json
from vla_policy_ros.export.lerobot.convert import FAMILIES
from vla_policy_ros.export.lerobot.diffusion import draw_library_noise
from vla_policy_ros.export.lerobot.library import load_policy, require_lerobot


class Library:
    """A checkpoint in LeRobot's hands: observations of ours, raw, through LeRobot's own steps before and after its network.

    Args:
        folder: The checkpoint.
    """

    def __init__(self, folder):
        family = FAMILIES[read_json(folder / 'config.json')['type']]
        self.policy = load_policy(family.read(folder))
        self.config = self.policy.config
        factory = require_lerobot('policies.factory')
        self._before = self._after = None  # before 0.4 the policy normalises by itself
        if hasattr(factory, 'make_pre_post_processors'):
            self._before, self._after = factory.make_pre_post_processors(
                self.config,
                pretrained_path=str(folder),
                preprocessor_overrides={'device_processor': {'device': 'cpu'}},
            )

    def read(self, observation, row):
        """Return LeRobot's batch of one row of our observation's history."""
        batch = {'observation.state': torch.from_numpy(observation.state[row])}
        for name, frames in observation.images.items():
            frame = frames[row]
            image = frame.data.reshape(frame.height, frame.width, 3)
            values = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
            batch[f'observation.images.{name}'] = values
        words = observation.instruction.text
        if self._before:
            return self._before({**batch, 'task': words})
        return {**{key: value[None] for key, value in batch.items()}, 'task': [words]}

    def finish(self, actions):
        """Return (K, D) actions in their units."""
        return (self._after(actions) if self._after else actions)[0].numpy()

    def act(self, observation):
        """Return an ACT's actions."""
        return self.finish(self.policy.predict_action_chunk(self.read(observation, -1)))

    def diffuse(self, observation, seed):
        """Return a Diffusion Policy's actions and the noise of them."""
        self.policy.reset()
        populate = require_lerobot('policies.utils').populate_queues
        for row in range(len(observation.state)):
            batch = self.read(observation, row)
            if not self._before:
                batch = self.policy.normalize_inputs(batch)
            batch.pop('action', None)
            images = [batch[key] for key in self.config.image_features]
            batch['observation.images'] = torch.stack(images, dim=-4)
            self.policy._queues = populate(self.policy._queues, batch)
        torch.manual_seed(seed)
        actions = self.finish(self.policy.predict_action_chunk(batch))
        torch.manual_seed(seed)
        return actions, draw_library_noise(self.policy.diffusion, None)

    def flow(self, observation, noise):
        """Return a SmolVLA's actions from (1, K, W) noise."""
        actions = self.policy.predict_action_chunk(
            self.read(observation, -1), noise=torch.tensor(noise)
        )
        return self.finish(actions)
