# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from support.bundles import write_flow_bundle
from support.device_engines import DeviceEngines
from support.host_device import HostDevice

from vla_policy_ros.core.clock import MonotonicClock
from vla_policy_ros.core.errors import EngineError
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import DEFAULT_SETTINGS, EngineSettings
from vla_policy_ros.policies.host_runner import HostRunner
from vla_policy_ros.policies.stage_probe import StageProbe, StageRecorder


@pytest.fixture
def flow(tmp_path):
    return write_flow_bundle(tmp_path / 'flow')


@pytest.fixture
def recorded(flow):
    recorder = StageRecorder(flow)
    runner = HostRunner(
        flow,
        engine='onnxruntime',
        slots=1,
        settings=DEFAULT_SETTINGS,
        clock=MonotonicClock(),
        load=recorder,
    )
    state = np.array([[[0.5, -0.5, 1.0]]], np.float32)
    noise = np.full((1, 4, 3), 0.25, np.float32)
    runner.write_inputs({'state': state}, noise)
    runner.run()
    yield recorder.take(), runner.raw_action.copy()
    runner.close()


def test_every_run_is_noted_with_what_went_in_and_out(recorded):
    calls, action = recorded
    assert [call.stage for call in calls] == ['encoder', *['velocity'] * 4, 'decoder']
    np.testing.assert_allclose([c.inputs['time'][0] for c in calls[1:5]], [0, 0.25, 0.5, 0.75])
    np.testing.assert_array_equal(calls[1].inputs['sample'], np.full((1, 4, 3), 0.25))
    assert (calls[2].inputs['sample'] != calls[1].inputs['sample']).all()
    np.testing.assert_array_equal(calls[-1].outputs['action'], action)


def test_what_is_taken_is_gone(flow, recorded):
    recorder = StageRecorder(flow)
    assert recorder.take() == []
    assert recorded[0]


@pytest.mark.parametrize('index', [0, 1, 2])
def test_a_stage_alone_does_what_it_did_in_the_policy(flow, recorded, index):
    stage = flow.manifest.stages[index]
    calls = [call for call in recorded[0] if call.stage == stage.name]
    probe = StageProbe(flow, stage, engine='onnxruntime')
    for call in calls:
        found = probe.run(call.inputs)
        assert set(found) == set(stage.outputs)
        for name, value in found.items():
            np.testing.assert_array_equal(value, call.outputs[name])
    probe.close()
    probe.close()
    with pytest.raises(EngineError):
        probe.run(calls[0].inputs)


def test_a_stage_on_a_device_is_loaded_for_the_stream_that_it_runs_on(flow, recorded):
    device, seen = HostDevice(), []
    engines = DeviceEngines(device)

    def load(name, onnx_path, *, settings):
        seen.append(settings.stream)
        return engines.load(name, onnx_path, settings=settings)

    stage = flow.manifest.stages[0]
    call = next(call for call in recorded[0] if call.stage == stage.name)
    probe = StageProbe(flow, stage, engine='onnxruntime_cuda', device=device, load=load)
    found = probe.run(call.inputs)
    for name, value in found.items():
        np.testing.assert_allclose(value, call.outputs[name], atol=1e-6)
    assert seen == [probe._buffers.stream_handle]
    assert seen[0]
    probe.close()
    device.close()


def test_a_stage_is_loaded_in_its_own_precision(flow):
    seen = []

    def load(name, onnx_path, *, settings):
        seen.append(settings.precision)
        return load_engine(name, onnx_path, settings=settings)

    for settings in (DEFAULT_SETTINGS, EngineSettings(precision='fp16')):
        StageProbe(
            flow, flow.manifest.stages[0], engine='onnxruntime', settings=settings, load=load
        ).close()
    assert seen == ['fp32', 'fp16']
