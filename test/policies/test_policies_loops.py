# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_ros.bundle.chunk_prefix import PrefixTensors
from vla_policy_ros.bundle.manifest import Diffusion, FlowMatching
from vla_policy_ros.policies.loops import Denoiser

NAMES = {'sample': 'x', 'prediction': 'p', 'timestep': 't'}


def run(loop, predict, *, first=(1.0, -0.5, 0.25), later=(0.05, -0.1, 0.025)):
    """Run a loop around a function; return the last sample and the time steps that the function saw."""
    sample = np.zeros((1, 1, 3), np.float32)
    prediction, timestep = np.zeros_like(sample), np.zeros(1, loop.timestep_dtype)
    denoiser = Denoiser(loop, sample, prediction=prediction, timestep=timestep)
    denoiser.noise[0], denoiser.noise[1:] = first, later
    denoiser.begin()
    seen = []
    for index in range(denoiser.num_steps):
        denoiser.set_timestep(index)
        seen.append(timestep[0].item())
        prediction[:] = predict(sample, timestep[0])
        denoiser.update(index)
    return sample[0, 0].copy(), seen


@pytest.mark.parametrize(('noise_at', 'sign'), [(0, 1), (1, -1)])
@pytest.mark.parametrize('steps', [1, 4, 10])
def test_euler_on_a_linear_field_follows_its_closed_form(steps, noise_at, sign):
    loop = FlowMatching(steps=steps, noise_at=noise_at, **NAMES)
    sample, _ = run(loop, lambda x, _: -0.8 * x)
    growth = (1 - sign * 0.8 / steps) ** steps
    np.testing.assert_allclose(sample, np.array([1, -0.5, 0.25]) * growth, rtol=1e-5)


@given(st.integers(1, 50), st.sampled_from([0, 1]))
def test_a_constant_field_is_integrated_over_the_whole_unit_of_time(steps, noise_at):
    loop = FlowMatching(steps=steps, noise_at=noise_at, **NAMES)
    sample, _ = run(loop, lambda x, _: np.full_like(x, 2))
    end = 2 if noise_at == 0 else -2
    np.testing.assert_allclose(sample, np.array([1, -0.5, 0.25]) + end, atol=1e-5)


def test_times_of_gr00t_are_its_buckets():
    loop = FlowMatching(steps=4, timestep_scale=1000, timestep_dtype='int64', **NAMES)
    assert run(loop, lambda x, _: x)[1] == [0, 250, 500, 750]


def test_times_of_pi0_run_down_from_one():
    loop = FlowMatching(steps=4, noise_at=1, **NAMES)
    assert run(loop, lambda x, _: x)[1] == [1.0, 0.75, 0.5, 0.25]


def test_integer_times_are_truncated():
    loop = FlowMatching(steps=3, timestep_scale=10, timestep_dtype='int64', **NAMES)
    assert run(loop, lambda x, _: x)[1] == [0, 3, 6]


# Made with diffusers 0.42.1: ten of 100 steps, first and later noise as in run(), prediction as in the test.
GOLDEN = [
    ('ddim', 'squaredcos_cap_v2', 'epsilon', 1.0, [0.929307, -0.706054, 0.285884]),
    ('ddim', 'linear', 'sample', None, [0.130889, -0.04409, 0.048438]),
    ('ddim', 'scaled_linear', 'v_prediction', 2.0, [0.663532, -0.369872, 0.138169]),
    ('ddpm', 'squaredcos_cap_v2', 'epsilon', 1.0, [0.530563, -0.729304, 0.067115]),
    ('ddpm', 'linear', 'sample', None, [0.066176, -0.019783, 0.033989]),
    ('ddpm', 'scaled_linear', 'v_prediction', 2.0, [0.418806, -0.34462, 0.080333]),
]


@pytest.mark.parametrize(('kind', 'schedule', 'predicts', 'clip', 'expected'), GOLDEN)
def test_diffusion_gives_what_diffusers_gives(kind, schedule, predicts, clip, expected):
    loop = Diffusion(
        kind=kind,
        steps=10,
        beta_schedule=schedule,
        prediction_type=predicts,
        clip_sample=clip,
        **NAMES,
    )
    sample, _ = run(loop, lambda x, t: np.tanh(0.5 * x + 0.1 * np.float32(t) / 100))
    np.testing.assert_allclose(sample, expected, atol=2e-5)


def alpha_bar(time, train):
    """Share of the signal by the cosine schedule, as a product of clipped betas."""

    def level(step):
        return math.cos((step / train + 0.008) / 1.008 * math.pi / 2) ** 2

    return math.prod(1 - min(1 - level(i + 1) / level(i), 0.999) for i in range(time + 1))


def ddim_by_the_paper(x, predict, *, steps, train):
    """Song et al. 2021, equation 12 with sigma 0, one number at a time."""
    ratio = train // steps
    for time in reversed(range(0, steps * ratio, ratio)):
        now = alpha_bar(time, train)
        before = alpha_bar(time - ratio, train) if time >= ratio else 1.0
        noise = predict(x, time)
        clean = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)
        x = math.sqrt(before) * max(-1, min(1, clean)) + math.sqrt(1 - before) * noise
    return x


@given(st.integers(1, 20), st.floats(-2, 2))
def test_ddim_equals_the_formula_of_the_paper(steps, start):
    loop = Diffusion(kind='ddim', steps=steps, train_timesteps=20, **NAMES)
    sample, _ = run(loop, lambda x, t: np.sin(x + t / 20), first=(start,) * 3)
    start = float(np.float32(start))
    expected = ddim_by_the_paper(start, lambda x, t: math.sin(x + t / 20), steps=steps, train=20)
    np.testing.assert_allclose(sample, [expected] * 3, atol=2e-3)


@pytest.mark.parametrize('kind', ['ddim', 'ddpm'])
def test_a_perfect_prediction_ends_at_the_clean_sample(kind):
    clean = np.array([0.3, -0.7, 0.1], np.float32)
    loop = Diffusion(kind=kind, steps=10, prediction_type='sample', **NAMES)
    np.testing.assert_allclose(run(loop, lambda x, _: clean)[0], clean, atol=1e-6)


def test_ddpm_takes_one_noise_tensor_per_step():
    loop = Diffusion(kind='ddpm', steps=5, **NAMES)
    sample = np.zeros((1, 2, 3), np.float32)
    denoiser = Denoiser(loop, sample, prediction=sample.copy(), timestep=np.zeros(1, np.int64))
    assert denoiser.noise.shape == (5, 2, 3)


@pytest.mark.parametrize('noise_at', [0, 1])
def test_rows_of_a_prefix_take_their_share_of_the_velocity(noise_at):
    """A constant velocity towards +2: a row moves on from its prefix by its gain times 2."""
    loop = FlowMatching(steps=4, noise_at=noise_at, **NAMES)
    sample = np.zeros((1, 5, 3), np.float32)
    prediction, timestep = (
        np.full_like(sample, 2 if noise_at == 0 else -2),
        np.zeros(1, np.float32),
    )
    rows = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    factors = np.array([0, 0, 0.25, 0.5, 1], np.float32)
    prefix = PrefixTensors(rows, factors, np.array([4], np.int32))
    denoiser = Denoiser(loop, sample, prediction=prediction, timestep=timestep, prefix=prefix)
    denoiser.noise[:] = 9
    denoiser.begin()
    for index in range(denoiser.num_steps):
        denoiser.update(index)
    assert sample[0, :2].tobytes() == rows[:2].tobytes()
    np.testing.assert_allclose(sample[0, 2:4], rows[2:4] + [[0.5], [1.0]], atol=1e-6)
    np.testing.assert_allclose(sample[0, 4], 11, atol=1e-6)
