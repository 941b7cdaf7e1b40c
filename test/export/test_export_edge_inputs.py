# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
from support.bundles import (
    HORIZON,
    SPANS,
    direct_manifest,
    make_observation,
    write_direct_bundle,
    write_direct_files,
    write_flow_bundle,
)

from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import ChunkRejectedError, StateError
from vla_policy_ros.export.edge_inputs import EdgeCase, edge_cases, try_case
from vla_policy_ros.policies.engine_policy import EnginePolicy

REFUSALS = {
    'images: cut off': 'short_data',
    'images: broken JPEG': 'truncated_jpeg',
    'images: unknown encoding': 'unknown_encoding',
    'images: a camera is missing': 'missing_camera',
    'state: NaN': 'not_finite',
    'too many words': 'instruction_too_long',
}


@pytest.fixture
def bundle(tmp_path):
    return write_direct_bundle(tmp_path / 'direct', history=2, words=True)


@pytest.fixture
def policy(bundle):
    policy = EnginePolicy(bundle, slots=5)
    yield policy
    policy.close()


@pytest.fixture
def cases(bundle):
    return {case.name: case for case in edge_cases(bundle, make_observation(bundle))}


def prepare_and_infer(policy):
    def infer(observation):
        images = {
            name: tuple(policy.prepare(frame) for frame in stack)
            for name, stack in observation.images.items()
        }
        return policy.infer(replace(observation, images=images))

    return infer


@pytest.mark.parametrize('is_ahead', [False, True])
def test_a_policy_answers_all_of_them(bundle, policy, cases, is_ahead):
    infer = prepare_and_infer(policy) if is_ahead else policy.infer
    results = [try_case(bundle, infer, case) for case in cases.values()]
    assert [result.name for result in results if not result.is_right] == []
    refused = {result.name: result.got for result in results if result.wanted == 'refusal'}
    assert refused.keys() == REFUSALS.keys()
    for name, code in REFUSALS.items():
        assert refused[name].startswith(f'refused ({code}): ')
    assert results[0].got == results[-1].got == f'a chunk of {HORIZON} x 3'


def test_images_are_what_they_are_called(bundle, cases):
    def levels(name):
        return np.concatenate([frame.data for frame in cases[name].observation.images['front']])

    assert set(levels('images: black')) == {0}
    assert set(levels('images: white')) == {255}
    assert len(set(levels('images: noise'))) > 200
    larger = cases['images: another size']
    assert [(f.height, f.width) for f in larger.observation.images['front']] == [(24, 48)] * 2
    assert larger.wanted == 'chunk'


def test_states_lie_at_the_edges_of_the_statistics(cases):
    for name, edge in (('min', -SPANS), ('max', SPANS)):
        state = cases[f'state: {name} of statistics'].observation.state
        np.testing.assert_array_equal(state, [edge])
        assert state.dtype == np.float32


def test_a_geometry_that_takes_no_other_size_must_refuse_it(tmp_path):
    write_direct_files(tmp_path / 'pad')
    manifest = direct_manifest()
    manifest['cameras'][0]['geometry'] = [
        {'kind': 'pad', 'height': 16, 'width': 16},
        {'kind': 'resize', 'height': 8, 'width': 8},
    ]
    bundle = write_bundle(tmp_path / 'pad', manifest)
    cases = {case.name: case for case in edge_cases(bundle, make_observation(bundle))}
    larger = cases['images: another size']
    assert larger.wanted == 'refusal'
    policy = EnginePolicy(bundle)
    result = try_case(bundle, policy.infer, larger)
    assert (result.is_right, 'pad_too_small' in result.got) == (True, True)
    policy.close()


def test_what_a_policy_does_not_take_has_no_cases(tmp_path):
    bundle = write_flow_bundle(tmp_path / 'flow')
    names = [case.name for case in edge_cases(bundle, make_observation(bundle))]
    assert not [name for name in names if name.startswith(('images', 'too many'))]
    assert 'state: NaN' in names


def answer_with(change, policy):
    """Return an `infer` whose chunks are spoiled after their check."""

    def infer(observation):
        chunk = policy.infer(observation)
        spoiled = change(chunk.actions.copy())
        object.__setattr__(chunk, 'actions', spoiled)
        return chunk

    return infer


@pytest.mark.parametrize(
    'change', [lambda rows: rows[:-1], lambda rows: rows * np.nan, lambda rows: rows[:, :2]]
)
def test_an_unsound_chunk_is_wrong(bundle, policy, cases, change):
    result = try_case(bundle, answer_with(change, policy), cases['as recorded'])
    assert not result.is_right
    assert 'wanted finite numbers, 4 x 3' in result.got


def test_a_silent_chunk_is_wrong(bundle, policy, cases):
    """A policy that takes NaN for 0."""

    def infer(observation):
        return policy.infer(replace(observation, state=np.nan_to_num(observation.state)))

    result = try_case(bundle, infer, cases['state: NaN'])
    assert (result.is_right, result.got) == (False, f'a chunk of {HORIZON} x 3')


def test_a_crash_is_wrong(bundle, cases):
    def infer(_observation):
        raise KeyError('front')

    for case in (cases['as recorded'], cases['images: a camera is missing']):
        result = try_case(bundle, infer, case)
        assert (result.is_right, result.got) == (False, "crash: KeyError: 'front'")


def test_a_refusal_must_be_wanted_and_clear(bundle, cases):
    def refuse(next_step):
        def infer(_observation):
            raise StateError('state', got='x', expected='y', next_step=next_step)

        return infer

    case = cases['state: NaN']
    assert try_case(bundle, refuse('Look.'), case).is_right
    assert not try_case(bundle, refuse(''), case).is_right
    assert not try_case(bundle, refuse('Look.'), replace(case, wanted='chunk')).is_right


def test_numbers_that_are_not_finite_are_no_answer(bundle, cases):
    def infer(_observation):
        raise ChunkRejectedError(
            'chunk', got='nan', expected='finite', next_step='Look.', code='not_finite'
        )

    case = EdgeCase('images: white', 'chunk', cases['images: white'].observation)
    result = try_case(bundle, infer, case)
    assert (result.is_right, result.got) == (False, 'refused (not_finite): chunk: nan')
