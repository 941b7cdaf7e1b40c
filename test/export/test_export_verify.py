# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from support.bundles import make_observation, write_direct_bundle, write_flow_bundle
from support.device_engines import DeviceEngines
from support.host_device import HostDevice

from vla_policy_ros.core.engine import Memory
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.export.prepare import PreparingLoader
from vla_policy_ros.export.verify import Case, observed_cases, verify

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


@pytest.mark.parametrize('memory', MEMORIES)
def test_both_kinds_of_memory(flow, cases, memory):
    words = {'engine': 'onnxruntime'}
    if memory == 'device':
        device = HostDevice()
        engines = DeviceEngines(device)
        words = {'engine': 'tensorrt', 'device': device, 'load': engines.load}
    result = verify(flow, cases, **words)
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
        result = verify(flow, cases, engine='onnxruntime', load=load)
    assert not result.passed
    assert result.first_outside == stage
    assert [part.passed for part in result.stages] == [
        part.name != stage for part in result.stages
    ]


def test_limits_are_those_of_the_precision(flow, cases):
    settings = EngineSettings(precision='fp16')
    result = verify(flow, cases, engine='onnxruntime', settings=settings, load=PreparingLoader())
    assert result.passed
    assert {part.precision for part in (*result.stages, result.policy)} == {'fp16'}
    assert result.policy.limit.max_error == 0.02


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
