# SPDX-License-Identifier: Apache-2.0
import pytest

from vla_policy_ros.bundle.loop_steps import loop_steps
from vla_policy_ros.bundle.manifest import Diffusion, FlowMatching

NAMES = {'sample': 'x', 'prediction': 'p', 'timestep': 't'}


@pytest.mark.parametrize('kind', ['ddim', 'ddpm'])
def test_time_steps_are_spaced_as_diffusers_does(kind):
    def times(steps, train):
        loop = Diffusion(kind=kind, steps=steps, train_timesteps=train, **NAMES)
        return [step.timestep for step in loop_steps(loop)]

    assert times(10, 100) == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert times(3, 10) == [6, 3, 0]
    assert times(5, 5) == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ('noise_at', 'times'), [(0, [0, 0.25, 0.5, 0.75]), (1, [1, 0.75, 0.5, 0.25])]
)
def test_flow_matching_runs_from_the_noise_to_the_action(noise_at, times):
    steps = loop_steps(FlowMatching(steps=4, noise_at=noise_at, timestep_scale=10, **NAMES))
    assert [step.timestep for step in steps] == [10 * time for time in times]
    assert {(step.to_x, step.to_p) for step in steps} == {(1.0, 0.25 if noise_at == 0 else -0.25)}


def test_ddpm_adds_noise_at_every_step_but_the_last():
    steps = loop_steps(Diffusion(kind='ddpm', steps=5, **NAMES))
    assert [step.to_noise > 0 for step in steps] == [True] * 4 + [False]
