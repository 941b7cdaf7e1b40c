# SPDX-License-Identifier: Apache-2.0
from contextlib import closing

import numpy as np
import pytest
from support.bundles import (
    JOINTS,
    SPANS,
    flow_manifest,
    make_observation,
    write_direct_bundle,
    write_flow_bundle,
    write_flow_files,
)
from support.device_engines import DeviceEngines
from support.host_device import HostDevice

from vla_policy_ros.bundle.limits import ACCURACY_LIMITS
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.engine import Memory
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.evaluation.parity import Parity
from vla_policy_ros.export.compare import REFERENCE, Case, Contender, compare, observed_cases
from vla_policy_ros.export.comparison import ColumnVerdict
from vla_policy_ros.export.prepare import PreparingLoader
from vla_policy_ros.policies.engine_policy import EnginePolicy

LIMIT = ACCURACY_LIMITS['fp32']
MEMORIES: tuple[Memory, ...] = ('host', 'device')


class SpoilingLoader:
    """Loads a network whose outputs are spoiled after every run; other networks stay as they are."""

    def __init__(self, file_name, value):
        self._file_name = file_name
        self._value = value

    def __call__(self, name, onnx_path, *, settings):
        engine = load_engine(name, onnx_path, settings=settings)
        if onnx_path.name == self._file_name:
            bind = engine.bind
            engine.bind = lambda tensors, **words: self._spoil(
                bind(tensors, **words), tensors, engine
            )
        return engine

    def _spoil(self, execution, tensors, engine):
        enqueue = execution.enqueue

        def run(stream=0):
            enqueue(stream)
            for spec in engine.outputs:
                tensors[spec.name].flat[0] = self._value

        execution.enqueue = run
        return execution


@pytest.fixture
def flow(tmp_path):
    return write_flow_bundle(tmp_path / 'flow')


@pytest.fixture
def cases():
    random = np.random.default_rng(0)
    return [
        Case(
            {'state': random.uniform(-1, 1, (1, 1, 3)).astype(np.float32)},
            random.standard_normal((1, 4, 3)).astype(np.float32),
        )
        for _ in range(2)
    ]


def compare_one(bundle, cases, *, reference=REFERENCE, **words):
    [result] = compare(bundle, cases, reference=reference, candidates=[Contender(**words)])
    return result


@pytest.mark.parametrize('memory', MEMORIES)
def test_both_kinds_of_memory(flow, cases, memory):
    words = {'engine': 'onnxruntime'}
    if memory == 'device':
        device = HostDevice()
        engines = DeviceEngines(device)
        words = {'engine': 'tensorrt', 'device': device, 'load': engines.load}
    result = compare_one(flow, cases, **words)
    assert result.passed
    assert [(part.name, part.runs) for part in result.stages] == [
        ('encoder', 2),
        ('velocity', 8),
        ('decoder', 2),
    ]
    assert (result.policy.runs, result.policy.parity.count) == (2, 2 * 12)
    assert result.policy.parity.max_error < 1e-5
    if memory == 'device':
        assert engines.num_open == 0
        assert engines.loaded == {f'{s.name}.onnx': 2 for s in flow.manifest.stages}
        device.close()


@pytest.mark.parametrize('value', [99.0, np.nan, np.inf])
@pytest.mark.parametrize('stage', ['encoder', 'velocity', 'decoder'])
def test_the_first_stage_outside_is_named(flow, cases, stage, value):
    load = SpoilingLoader(f'{stage}.onnx', np.float32(value))
    with np.errstate(invalid='ignore'):
        result = compare_one(flow, cases, engine='onnxruntime', load=load)
    assert not result.passed
    assert result.first_outside == stage
    failed = [part.name for part in result.stages if part.grade == 'FAIL']
    assert failed == [stage]
    # A velocity is spread over the sample's first number only, the others reach no other column.
    assert result.columns[0].grade == 'FAIL'


def test_the_relative_error_is_that_of_all_actions_together(flow, cases):
    sound = compare_one(flow, cases, engine='onnxruntime')
    assert sound.relative_error < 1e-6
    with closing(EnginePolicy(flow)) as policy:
        wanted = np.array([policy.run_pool(case.inputs, case.noise) for case in cases])
    load = SpoilingLoader('decoder.onnx', np.float32(99))
    spoiled = compare_one(flow, cases, engine='onnxruntime', load=load)
    off = np.linalg.norm(99 - wanted.reshape(len(cases), -1)[:, 0])
    assert spoiled.relative_error == pytest.approx(off / np.linalg.norm(wanted))
    load = SpoilingLoader('decoder.onnx', np.float32(np.nan))
    assert np.isnan(compare_one(flow, cases, engine='onnxruntime', load=load).relative_error)


def test_limits_are_those_of_the_precision(flow, cases):
    settings = EngineSettings(precision='fp16')
    result = compare_one(
        flow, cases, engine='onnxruntime', settings=settings, load=PreparingLoader()
    )
    assert result.passed
    assert {part.precision for part in (*result.stages, result.policy)} == {'fp16'}
    assert result.policy.limit.max_error == 0.02


@pytest.mark.parametrize('memory', MEMORIES)
def test_any_contender_may_be_the_reference(flow, cases, memory):
    """A spoiled reference makes a sound candidate differ where the spoiled stage is, and nowhere else."""
    load = SpoilingLoader('velocity.onnx', np.float32(99))
    with_device = {'device': HostDevice()} if memory == 'device' else {}
    words = {'engine': 'onnxruntime'}
    if with_device:
        words = {'engine': 'tensorrt', 'load': DeviceEngines(**with_device).load, **with_device}
    reference = Contender(engine='onnxruntime', load=load)
    result = compare_one(flow, cases, reference=reference, **words)
    assert result.first_outside == 'velocity'
    assert [part.grade for part in result.stages] == ['PASS', 'FAIL', 'PASS']
    swapped = compare_one(
        flow, cases, reference=Contender(**words), engine='onnxruntime', load=load
    )
    assert swapped.first_outside == 'velocity'
    assert swapped.policy.parity.max_error > 1


def test_several_candidates_are_held_against_one_reference(flow, cases):
    wanted = {'onnxruntime:fp16': 'fp16', 'onnxruntime': 'fp32'}
    candidates = [
        Contender(
            engine='onnxruntime',
            settings=EngineSettings(precision='fp16'),
            load=PreparingLoader(),
        ),
        Contender(engine='onnxruntime'),
    ]
    results = list(compare(flow, cases, candidates=candidates))
    assert {result.title: result.policy.precision for result in results} == wanted
    assert {result.reference for result in results} == {'onnxruntime:fp32'}


def test_limit_is_that_of_the_less_exact_side(flow, cases):
    half = Contender(
        engine='onnxruntime', settings=EngineSettings(precision='bf16'), load=load_engine
    )
    result = compare_one(flow, cases, reference=half, engine='onnxruntime')
    assert (result.policy.precision, result.policy.limit.max_error) == ('fp32', 0.05)
    assert {part.limit.max_error for part in result.stages} == {0.05}


def test_columns_have_errors_in_numbers_and_in_units(flow, cases):
    load = SpoilingLoader('decoder.onnx', np.float32(0.5))  # column 0 of row 0
    result = compare_one(flow, cases, engine='onnxruntime', load=load)
    first, *others = result.columns
    assert [column.name for column in result.columns] == list(JOINTS)
    assert [column.unit for column in result.columns] == ['rad'] * 3
    assert first.max_error == pytest.approx(first.parity.max_error * SPANS[0], rel=1e-3)
    assert first.mean_error == pytest.approx(first.max_error / 4, rel=1)
    assert first.grade == result.policy.grade == result.grade == 'FAIL'
    for column in others:
        assert column.max_error == 0
        assert column.grade == 'PASS'


def test_a_column_is_judged_by_its_error_alone():
    """One that stays near zero may point anywhere."""
    for cosine, max_error, grade in ((-1, 1e-6, 'PASS'), (1, 8e-4, 'WARN'), (1, 2e-3, 'FAIL')):
        parity = Parity(cosine, max_error, 0, 1)
        assert ColumnVerdict('c', '', parity, None, None, LIMIT).grade == grade


def relative_bundle(folder):
    write_flow_files(folder)
    manifest = flow_manifest()
    manifest['action']['groups'][0]['representation'] = 'relative_to_observation'
    return write_bundle(folder, manifest)


def test_relative_columns_have_units_only_where_the_state_is_known(tmp_path, cases):
    bundle = relative_bundle(tmp_path / 'relative')
    load = SpoilingLoader('decoder.onnx', np.float32(0.5))
    unknown = compare_one(bundle, cases, engine='onnxruntime', load=load)
    assert {column.max_error for column in unknown.columns} == {None}
    observed = list(observed_cases(bundle, [make_observation(bundle)]))
    np.testing.assert_array_equal(observed[0].state_row, np.float32([0.5, 1.0, -1.5]))
    known = compare_one(bundle, observed, engine='onnxruntime', load=load)
    assert known.columns[0].max_error > 0


def test_cases_of_observations(tmp_path):
    bundle = write_direct_bundle(tmp_path / 'direct')
    first, second = observed_cases(
        bundle, [make_observation(bundle), make_observation(bundle, level=102)]
    )
    assert first.noise is None
    np.testing.assert_allclose(second.inputs['image'], 2 * first.inputs['image'])


def test_cases_have_the_noise_of_their_stamp(flow):
    observations = [make_observation(flow, stamp_ns=stamp) for stamp in (1, 1, 2)]
    one, again, other = observed_cases(flow, observations)
    np.testing.assert_array_equal(one.noise, again.noise)
    assert (one.noise != other.noise).any()
