# SPDX-License-Identifier: Apache-2.0
"""Measure the sample policy on episodes that it was not trained on: open loop against two baselines, then closed loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from layout import HELD_OUT_START, HORIZON, SEED, TRAIN_EPISODES
from samples import CAMERAS, Array, chunks_of, record
from world import COLORS, PHRASES, World

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.core.frame import Frame
from vla_policy_ros.core.observation import Instruction, Observation
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.evaluation.observations import EpisodeObservations
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import HELD_OUT_EPISODES, sample_bundle_path, sample_dataset_path

EXECUTED_ROWS = 8
MAX_CHUNKS = 16

Images = dict[str, Array]
Baseline = Callable[[Array], Array]


def observe(images: Images, state: Array, instruction: str, *, stamp_ns: int) -> Observation:
    """Return an observation of images and a (6,) state."""
    return Observation(
        images={name: (Frame.from_rgb(name, stamp_ns, images[name]),) for name in CAMERAS},
        state=np.float32(state)[None],
        instruction=Instruction(instruction),
        stamp_ns=stamp_ns,
    )


def rendered_observations(number: int) -> Iterator[Observation]:
    """Yield the observation of every step of an episode as it is rendered."""
    episode = record(number)
    for step, world in enumerate(episode.worlds):
        state = episode.state[step]
        yield observe(world.images(), state, episode.instruction, stamp_ns=step * 1_000_000)


def nearest_baseline(num_episodes: int) -> Baseline:
    """Return a function that answers with the recorded chunk of the training step with the nearest joints.

    Every step of every training episode is there, also those that were not rendered. Joints are compared in units of
    their standard deviation.
    """
    episodes = [record(number) for number in range(num_episodes)]
    states = np.concatenate([episode.state for episode in episodes])
    chunks = np.concatenate([chunks_of(episode.action) for episode in episodes])
    scale = states.std(axis=0)
    return lambda state: chunks[np.linalg.norm((states - state) / scale, axis=1).argmin()]


def hold_baseline(state: Array) -> Array:
    """Return a chunk that stays where the joints are."""
    return np.tile(state, (HORIZON, 1))


def measure(
    policy: EnginePolicy, observations: Iterator[Observation], truth: Array, nearest: Baseline
) -> Array:
    """Return the (N, 3) mean absolute errors of policy, holding still and nearest neighbour at every step."""
    rows = []
    for observation, chunk in zip(observations, truth, strict=True):
        state = observation.state[-1]
        answers = (policy.infer(observation).actions, hold_baseline(state), nearest(state))
        rows.append([np.abs(answer - chunk).mean() for answer in answers])
    return np.array(rows)


def pick(policy: EnginePolicy, number: int) -> bool:
    """Let the policy drive the simulated arm; return whether it lifts the block that it was asked for."""
    rng = np.random.default_rng((SEED, number))
    world = World.random(rng)
    color = COLORS[number % len(COLORS)]
    instruction = PHRASES[rng.integers(len(PHRASES))].format(color=color)
    for count in range(MAX_CHUNKS):
        seen = observe(world.images(), world.joints, instruction, stamp_ns=count * 1_000_000)
        for command in policy.infer(seen).actions[:EXECUTED_ROWS]:
            world.step(command.astype(np.float64))
        if world.lifted():
            return world.lifted() == color
    return False


def report(title: str, errors: list[Array]) -> None:
    """Print mean absolute errors, and how many times larger those of the baselines are."""
    policy, hold, nearest = np.concatenate(errors).mean(axis=0)
    print(
        f'{title}: MAE policy {policy:.4f}, hold {hold:.4f} ({hold / policy:.1f}x), '
        f'nearest {nearest:.4f} ({nearest / policy:.1f}x)'
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--bundle', type=Path, default=sample_bundle_path())
    parser.add_argument('--dataset', type=Path, default=sample_dataset_path())
    parser.add_argument('--episodes', type=int, default=40, help='held-out episodes to render')
    parser.add_argument('--picks', type=int, default=60, help='closed-loop tries')
    arguments = parser.parse_args()
    policy = EnginePolicy(load_bundle(arguments.bundle))
    nearest = nearest_baseline(TRAIN_EPISODES)
    dataset = open_dataset(arguments.dataset)
    errors = []
    for index in HELD_OUT_EPISODES:
        with closing(dataset.episode(index)) as episode:
            seen = EpisodeObservations(dataset.info, episode, spec=policy.spec).iterate()
            errors.append(measure(policy, seen, chunks_of(episode.action), nearest))
    report(f'{len(HELD_OUT_EPISODES)} held-out episodes of the dataset', errors)
    numbers = range(HELD_OUT_START + 100, HELD_OUT_START + 100 + arguments.episodes)
    errors = [
        measure(policy, rendered_observations(number), chunks_of(record(number).action), nearest)
        for number in numbers
    ]
    report(f'{arguments.episodes} more held-out episodes', errors)
    numbers = range(HELD_OUT_START + 1000, HELD_OUT_START + 1000 + arguments.picks)
    successes = sum(pick(policy, number) for number in numbers)
    print(f'closed loop: {successes} of {arguments.picks} blocks picked up')
    policy.close()


if __name__ == '__main__':
    main()
