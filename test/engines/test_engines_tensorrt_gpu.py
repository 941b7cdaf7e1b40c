# SPDX-License-Identifier: Apache-2.0
"""The real TensorRT on a real GPU."""

import ctypes
import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from contracts.device_engine_contract import DeviceEngineContract
from onnx import helper
from support.array_engine import ArrayExecution
from support.bundles import save_doubler, save_model

import vla_policy_ros.sample
from vla_policy_ros.core.errors import EngineError, SpecMismatchError
from vla_policy_ros.engines.onnxruntime import OnnxRuntimeEngine
from vla_policy_ros.engines.plan_facts import Gpu, PlanKey
from vla_policy_ros.engines.plans import PlanStore, network_hash
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.engines.tensorrt import TensorRTEngine
from vla_policy_ros.engines.tensorrt_build import (
    BuildOptions,
    BuildProgress,
    ShapeRange,
    build_plan,
)
from vla_policy_ros.engines.tensorrt_library import load_library, read_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

SAMPLE = Path(vla_policy_ros.sample.__path__[0]) / 'bundle'
ROWS = ShapeRange(min=(1, 3), opt=(2, 3), max=(4, 3))


@pytest.fixture(scope='module')
def gpu():
    """The GPU, current for the tests of this module."""
    from vla_policy_ros.gpu.device import open_device

    with closing(open_device()) as device, device.current():
        yield device


@pytest.fixture(scope='module')
def built(gpu, tmp_path_factory):
    """A doubler, and a store with its plan for 1 to 4 rows."""
    folder = tmp_path_factory.mktemp('built')
    path = save_doubler(folder / 'doubler.onnx')
    store = PlanStore(folder / 'plans')
    plan = build_plan(path, options=BuildOptions(profiles={'x': ROWS}), store=store, device=gpu)
    return SimpleNamespace(path=path, store=store, plan=plan)


@pytest.fixture
def doubler(built):
    engine = TensorRTEngine(built.path, settings=EngineSettings(plan_folder=built.store.folder))
    yield engine
    engine.close()


class TestTensorRT(DeviceEngineContract):
    @pytest.fixture
    def device(self, gpu):
        return gpu

    @pytest.fixture
    def plan_engine(self, doubler):
        return doubler


def run(engine, device, arrays, *, workspace=None):
    execution = ArrayExecution(engine, device, device.new_stream(), arrays, workspace=workspace)
    execution.enqueue()
    execution.close()
    return arrays


def doubler_arrays(rows, value=1.0):
    return {'x': np.full((rows, 3), value, np.float32), 'y': np.zeros((rows, 3), np.float32)}


def test_report_of_a_real_build(built):
    report = built.plan.report
    assert report.layers_of == 'plan'
    assert report.workspace_bytes is not None
    assert 'fp32' in report.shares()
    assert 'fp16' not in report.shares()
    assert report.seconds > 0
    assert built.store.timing_cache_path(built.plan.key.machine).stat().st_size > 0


@pytest.mark.parametrize('rows', [1, 4])
def test_every_shape_of_the_range_runs(doubler, gpu, rows):
    assert doubler.shape_range('x') == ROWS
    assert (run(doubler, gpu, doubler_arrays(rows, 3.0))['y'] == 6).all()


def test_shape_outside_of_a_real_profile_is_refused(doubler, gpu):
    buffers = {name: gpu.allocate((5, 3), 'float32') for name in 'xy'}
    with pytest.raises(SpecMismatchError, match=r'max \[4, 3\]') as caught:
        doubler.bind(buffers)
    assert caught.value.code == 'outside_profile'


def test_two_contexts_run_at_once_on_two_streams(doubler, gpu):
    runs = []
    for rows in (2, 3):
        arrays = doubler_arrays(rows, float(rows))
        runs.append((ArrayExecution(doubler, gpu, gpu.new_stream(), arrays), arrays))
    for execution, _ in runs:
        execution.upload()
    for _ in range(50):
        for execution, _ in runs:
            execution.execution.enqueue(execution._stream.handle)
    for execution, arrays in runs:
        execution.download()
        np.testing.assert_array_equal(arrays['y'], arrays['x'] * 2)
        execution.close()


def test_contexts_share_a_workspace_one_after_another(built, gpu):
    engine = TensorRTEngine.from_plan(built.plan.path)
    workspace = gpu.allocate([max(engine.workspace_bytes, 256)], 'uint8')
    for rows in (1, 2):
        arrays = run(engine, gpu, doubler_arrays(rows, 5.0), workspace=workspace)
        assert (arrays['y'] == 10).all()
    engine.close()
    workspace.free()


def test_graph_replays_with_what_lies_in_the_buffers(doubler, gpu):
    stream, arrays = gpu.new_stream(), doubler_arrays(2)
    execution = ArrayExecution(doubler, gpu, stream, arrays)
    execution.enqueue()
    graph = gpu.capture(stream, lambda: execution.execution.enqueue(stream.handle))
    assert graph.num_kernels >= 1
    arrays['x'][:] = 21
    execution.upload()
    graph.launch(stream)
    execution.download()
    assert (arrays['y'] == 42).all()
    graph.close()
    execution.close()


def test_runs_take_no_device_memory(doubler, gpu):
    execution = ArrayExecution(doubler, gpu, gpu.new_stream(), doubler_arrays(2))
    execution.enqueue()
    before = gpu.free_bytes()
    for _ in range(200):
        execution.execution.enqueue(execution._stream.handle)
    execution.download()
    assert gpu.free_bytes() == before
    execution.close()


@pytest.mark.parametrize(
    ('element', 'dtype', 'precision'),
    [
        ('FLOAT', 'float32', 'fp32'),
        ('FLOAT16', 'float16', 'fp16'),
        ('BFLOAT16', 'bfloat16', 'bf16'),
    ],
)
def test_network_runs_in_the_precision_of_its_file(tmp_path, gpu, element, dtype, precision):
    path = save_model(
        tmp_path / 'product.onnx',
        [helper.make_node('MatMul', ['x', 'x'], ['y'])],
        [('x', element, [16, 16])],
        [('y', element, [16, 16])],
    )
    store = PlanStore(tmp_path / 'plans')
    plan = build_plan(path, options=BuildOptions(precision=precision), store=store, device=gpu)
    assert precision in plan.report.shares()
    settings = EngineSettings(plan_folder=store.folder, precision=precision)
    with closing(load_engine('tensorrt', path, settings=settings)) as engine:
        assert [spec.dtype for spec in (*engine.inputs, *engine.outputs)] == [dtype] * 2
        x = np.full((16, 16), 0.5, np.float32).astype(dtype)
        arrays = run(engine, gpu, {'x': x, 'y': np.zeros_like(x)})
    np.testing.assert_array_equal(arrays['y'].astype(np.float32), np.full((16, 16), 4.0))


@pytest.mark.parametrize('options', [{'version_compatible': True}, {'hardware_compatible': True}])
def test_compatible_plans_run_here(tmp_path, gpu, options):
    if 'version_compatible' in options:
        require_lean_runtime()
    path, store = save_doubler(tmp_path / 'doubler.onnx'), PlanStore(tmp_path / 'plans')
    wanted = BuildOptions(profiles={'x': ROWS}, **options)
    build_plan(path, options=wanted, store=store, device=gpu)
    with closing(
        TensorRTEngine(path, settings=EngineSettings(plan_folder=store.folder))
    ) as engine:
        assert (run(engine, gpu, doubler_arrays(2))['y'] == 2).all()


def require_lean_runtime():
    """Version-compatible plans carry the lean runtime, which is a library of its own."""
    major = load_library('tensorrt').version.partition('.')[0]
    try:
        ctypes.CDLL(f'libnvinfer_lean.so.{major}')
    except OSError as fault:
        pytest.skip(str(fault))


@pytest.mark.parametrize('stage', ['encoder', 'velocity'])
def test_stages_of_the_sample_equal_onnx_runtime(tmp_path, gpu, stage):
    path, store = SAMPLE / f'{stage}.onnx', PlanStore(tmp_path)
    build_plan(path, options=BuildOptions(workspace_mib=256), store=store, device=gpu)
    reference = OnnxRuntimeEngine(path)
    random = np.random.default_rng(1)
    arrays = {}
    for spec in (*reference.inputs, *reference.outputs):
        values = random.random(spec.shape)
        arrays[spec.name] = (values * (2 if 'int' in spec.dtype else 1)).astype(spec.dtype)
    expected = {name: array.copy() for name, array in arrays.items()}
    reference.bind(expected).enqueue()
    with closing(
        TensorRTEngine(path, settings=EngineSettings(plan_folder=store.folder))
    ) as engine:
        run(engine, gpu, arrays)
    for spec in reference.outputs:
        np.testing.assert_allclose(arrays[spec.name], expected[spec.name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('place', 'value'),
    [
        (('version',), '10.0.1'),
        (('gpu', 'name'), 'NVIDIA Nothing'),
        (('library',), 'tensorrt_rtx'),
    ],
)
def test_plan_of_another_machine_is_refused(tmp_path, built, place, value):
    store = PlanStore(tmp_path)
    folder = store.folder / built.plan.path.parent.name
    folder.mkdir()
    for file in built.plan.path.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    facts_path = next(folder.glob('*.json'))
    facts = json.loads(facts_path.read_text())
    inner = facts['key']['machine']
    for key in place[:-1]:
        inner = inner[key]
    here, inner[place[-1]] = inner[place[-1]], value
    facts_path.write_text(json.dumps(facts))
    with pytest.raises(EngineError) as caught:
        TensorRTEngine(built.path, settings=EngineSettings(plan_folder=tmp_path))
    assert caught.value.code == 'plan_mismatch'
    assert value in caught.value.got
    assert here in caught.value.got


@pytest.mark.parametrize('keep_bytes', [0, 100, -1])
def test_cut_plan_is_refused_by_the_library(tmp_path, built, keep_bytes):
    path = tmp_path / 'cut.plan'
    path.write_bytes(built.plan.path.read_bytes()[:keep_bytes])
    with pytest.raises(EngineError, match=r'cut\.plan') as caught:
        TensorRTEngine.from_plan(path)
    assert caught.value.code == 'not_loadable'
    assert caught.value.got != 'no reason given'


def test_plan_from_elsewhere_is_taken_in_when_its_tensors_fit(tmp_path, built, gpu):
    store = PlanStore(tmp_path / 'plans')
    with closing(TensorRTEngine.from_plan(built.plan.path)) as engine:
        tensors = (*engine.inputs, *engine.outputs)
    key = built.plan.key
    store.add_foreign(built.plan.path, built.path, key=key, tensors=tensors)
    settings = EngineSettings(plan_folder=store.folder)
    with closing(TensorRTEngine(built.path, settings=settings)) as engine:
        assert (run(engine, gpu, doubler_arrays(2))['y'] == 2).all()
    other = save_doubler(tmp_path / 'other.onnx', element='FLOAT16')
    with pytest.raises(EngineError) as caught:
        store.add_foreign(built.plan.path, other, key=key, tensors=tensors)
    assert caught.value.code == 'foreign_plan'


def test_build_stops_when_the_caller_is_interrupted(tmp_path, gpu):
    def interrupt(progress: BuildProgress) -> None:
        raise KeyboardInterrupt

    store = PlanStore(tmp_path / 'plans')
    with pytest.raises(KeyboardInterrupt):
        build_plan(
            SAMPLE / 'encoder.onnx',
            options=BuildOptions(optimization_level=5),
            store=store,
            device=gpu,
            on_progress=interrupt,
        )
    assert not list(store.folder.rglob('*.plan'))


def test_key_names_gpu_and_library(built, gpu):
    library = load_library('tensorrt')
    assert library is load_library('tensorrt')
    assert library.network_flags
    assert not library.compiles_at_run_time
    assert read_gpu() == Gpu(gpu.name, gpu.compute_capability)
    assert built.plan.key == PlanKey(
        network_hash=network_hash(built.path),
        options=BuildOptions(profiles={'x': ROWS}),
        machine=library.machine(read_gpu()),
    )
