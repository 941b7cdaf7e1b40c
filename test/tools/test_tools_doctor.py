# SPDX-License-Identifier: Apache-2.0
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.deployment.config import CameraSource, JointSource
from vla_policy_ros.engines.plan_facts import BuildOptions, Gpu, Machine, PlanKey
from vla_policy_ros.engines.plans import PlanStore, network_hash
from vla_policy_ros.engines.registry import ENGINES
from vla_policy_ros.gpu.driver import find_driver
from vla_policy_ros.gpu.listing import GpuFacts
from vla_policy_ros.sample import sample_bundle_path
from vla_policy_ros.tools import doctor, doctor_checks, doctor_probe, doctor_ros
from vla_policy_ros.tools.doctor_checks import Check
from vla_policy_ros.tools.doctor_probe import PROBES, Trial, try_library

FACTS = {'name', 'state', 'found', 'purpose', 'next_step', 'needed'}


@pytest.fixture
def trials(monkeypatch):
    """What trying each library gives; libraries that are not named are not installed."""
    trials = {}
    monkeypatch.setattr(doctor_checks, 'is_installed', lambda module: module in trials)
    monkeypatch.setattr(
        doctor_checks, 'try_library', lambda name: trials.get(name, Trial(failure='none'))
    )
    return trials


@pytest.fixture
def caches(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('VLA_PLAN_FOLDER', raising=False)
    return tmp_path / 'vla_policy_ros'


def by_name(checks):
    return {check.name: check for check in checks}


def test_without_a_wish_nothing_is_needed(cli, trials, caches):
    result = cli('doctor', '--json')
    checks = result.document['checks']
    assert (result.status, result.document['passed']) == (0, True)
    assert all(set(check) == FACTS for check in checks)
    assert {check['state'] for check in checks} <= {'ok', 'missing', 'problem'}
    missing = [check for check in checks if check['state'] != 'ok']
    assert {'PyCUDA', 'TensorRT', 'PyTorch'} <= {check['name'] for check in missing}
    assert all(check['next_step'] for check in missing)
    assert [check['name'] for check in checks if check['needed']] == ['Python']


def test_report_in_words(cli, trials, caches):
    result = cli('doctor')
    assert result.status == 0
    assert 'PASSED' in result.out
    assert 'what to do for the rest' in result.out
    assert 'pip install torch' in result.out


@pytest.mark.parametrize(
    ('words', 'lacking'),
    [
        (['--engine', 'onnxruntime'], {'ONNX Runtime'}),
        (['--engine', 'torch_cpu'], {'PyTorch'}),
        (['--engine', 'torch_tensorrt'], {'PyTorch', 'Torch-TensorRT', 'PyCUDA'}),
        (['--engine', 'openvino'], {'OpenVINO'}),
        (['--preprocess', 'gpu'], {'PyCUDA', 'CUDA bindings', 'NVRTC'}),
        (['--engine', 'tensorrt'], {'TensorRT', 'PyCUDA', 'CUDA bindings'}),
        (['--engine', 'tensorrt', '--bundle', 'sample'], {'TensorRT', 'plans'}),
    ],
)
def test_what_a_wish_lacks_fails(cli, trials, caches, words, lacking):
    result = cli('doctor', '--json', *words)
    assert result.status == 1
    failed = {c['name'] for c in result.document['checks'] if c['needed'] and c['state'] != 'ok'}
    assert failed >= lacking
    assert 'needed' in cli('doctor', *words).out


def test_what_is_there_passes(cli, trials, caches):
    trials['onnxruntime'] = Trial({'version': '1.2', 'providers': ['CPUExecutionProvider']})
    words = ('--engine', 'onnxruntime', '--preprocess', 'cpu', '--bundle', 'sample')
    result = cli('doctor', '--json', *words)
    assert result.status == 0
    assert 'sample-pick' in by_name_of(result)['bundle']['found']
    assert by_name_of(result)['ONNX Runtime CUDA']['state'] == 'missing'


def test_providers_of_onnx_runtime_are_engines_of_their_own(cli, trials, caches):
    providers = ['TensorrtExecutionProvider', 'CPUExecutionProvider']
    trials['onnxruntime'] = Trial({'version': '1.31', 'providers': providers})
    result = cli('doctor', '--json', '--engine', 'onnxruntime_tensorrt')
    checks = by_name_of(result)
    assert checks['ONNX Runtime TensorRT']['state'] == 'ok'
    assert checks['ONNX Runtime TensorRT']['needed']
    assert checks['ONNX Runtime CUDA']['state'] == 'missing'
    assert not checks['ONNX Runtime CUDA']['needed']


def test_every_engine_has_its_needs():
    assert set(ENGINES) == set(doctor._ENGINE_NEEDS)


def test_openvino_serves_the_devices_that_it_finds(cli, trials, caches):
    trials['openvino'] = Trial({'version': '2026.4.1', 'devices': {'CPU': 'Xeon', 'GPU.0': 'Arc'}})
    for engine, status in (('openvino', 0), ('openvino_gpu', 0), ('openvino_npu', 1)):
        result = cli('doctor', '--json', '--engine', engine)
        assert result.status == status
    checks = by_name_of(result)
    assert checks['OpenVINO']['found'] == '2026.4.1'
    assert checks['OpenVINO GPU']['state'] == 'ok'
    assert checks['OpenVINO NPU']['state'] == 'missing'
    assert checks['OpenVINO NPU']['found'] == 'CPU (Xeon), GPU.0 (Arc)'


def by_name_of(result):
    return {check['name']: check for check in result.document['checks']}


def test_unknown_engine_is_wrong_use(cli):
    assert cli('doctor', '--engine', 'warp').status == 2


def test_broken_bundle_and_broken_configuration_are_problems(cli, trials, caches, tmp_path):
    broken = tmp_path / 'robot.yaml'
    broken.write_text('policy: {}')
    result = cli('doctor', '--json', '--config', broken, '--bundle', tmp_path)
    checks = by_name_of(result)
    assert result.status == 1
    assert (checks['configuration']['state'], checks['bundle']['state']) == ('problem', 'problem')
    assert 'vla-policy check' in checks['bundle']['next_step']


@pytest.mark.parametrize(
    ('fault', 'said'),
    [
        (BundleError('place', got='a', expected='b', next_step='Do c.'), 'place: a'),
        (PermissionError(13, 'no'), 'PermissionError'),
    ],
)
def test_a_check_that_fails_is_a_problem_and_no_end(cli, trials, caches, monkeypatch, fault, said):
    def fail(_folder):
        raise fault

    monkeypatch.setattr(doctor, 'check_caches', fail)
    result = cli('doctor', '--json')
    assert result.status == 0
    assert said in by_name_of(result)['caches']['found']
    assert 'allocator' in by_name_of(result)


# Libraries.


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Writes a Python module that child processes import instead of the real library."""
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{":".join(filter(None, sys.path))}')

    def write(name, text):
        (tmp_path / f'{name}.py').write_text(text)

    return write


def test_library_that_ends_the_process_ends_not_this_one(modules):
    modules(
        'tensorrt',
        'import os\n__version__ = "10.6"\n'
        'class Logger:\n    ERROR = 1\n    def __init__(self, level): pass\n'
        'def Builder(logger): os.abort()\n',
    )
    trial = try_library('tensorrt')
    assert trial.facts == {'version': '10.6'}
    assert 'signal 6' in trial.failure


def test_library_that_cannot_be_imported_says_why(modules):
    modules('onnxruntime', 'raise ImportError("libfoo.so is missing")\n')
    assert try_library('onnxruntime') == Trial(failure='ImportError: libfoo.so is missing')


def test_chatter_of_a_library_is_not_taken_for_facts(modules):
    modules(
        'onnxruntime',
        'print("Hello")\n__version__ = "1.2"\ndef get_available_providers(): return []\n',
    )
    assert try_library('onnxruntime') == Trial({'version': '1.2', 'providers': []})


def test_library_that_hangs_is_given_up(modules, monkeypatch):
    monkeypatch.setattr(doctor_probe, '_PATIENCE_S', 0.01)
    assert 'no answer' in try_library('onnxruntime').failure


def test_onnx_runtime_is_found_for_real():
    trial = try_library('onnxruntime')
    assert trial.failure == ''
    assert 'CPUExecutionProvider' in trial.facts['providers']


def test_openvino_is_found_for_real():
    pytest.importorskip('openvino')
    trial = try_library('openvino')
    assert trial.failure == ''
    assert trial.facts['devices']['CPU']


def fake_library(**calls):
    return SimpleNamespace(
        **{
            '__version__': '3.2',
            'VERSION_TEXT': '2026.1',
            'Logger': type('Logger', (), {'ERROR': 1, '__init__': lambda self, level: None}),
            'Builder': lambda logger: object(),
            'Runtime': lambda logger: object(),
            'version': SimpleNamespace(cuda='13.0'),
            'cuda': SimpleNamespace(is_available=lambda: False),
            'get_available_providers': lambda: ['CUDAExecutionProvider'],
            'get_version': lambda: (13, 0, 0),
            'nvrtcVersion': lambda: (0, 13, 0),
            **calls,
        }
    )


@pytest.mark.parametrize(
    ('name', 'facts'),
    [
        ('tensorrt', {'version': '3.2', 'builds': True, 'runs': True}),
        ('torch', {'version': '3.2', 'cuda': '13.0', 'sees_gpu': False}),
        ('onnxruntime', {'version': '3.2', 'providers': ['CUDAExecutionProvider']}),
        ('pycuda', {'version': '2026.1', 'cuda': '13.0'}),
        ('cuda.bindings.nvrtc', {'version': '13.0'}),
        ('cuda.bindings', {'version': '3.2'}),
    ],
)
def test_what_is_asked_of_each_library(name, facts, monkeypatch, capsys):
    monkeypatch.setattr(doctor_probe.importlib, 'import_module', lambda _: fake_library())
    assert doctor_probe.main(name) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {k: v for line in lines for k, v in line.items()} == facts
    assert set(PROBES) >= {name}


@pytest.mark.parametrize(
    ('trial', 'state', 'said'),
    [
        (Trial({'version': '10', 'builds': True, 'runs': True}), 'ok', 'builds plans'),
        (Trial({'version': '1.7', 'builds': True}, 'signal 6'), 'problem', 'does not run'),
        (Trial({'version': '10'}, 'signal 6'), 'problem', '10: signal 6'),
    ],
)
def test_tensorrt_that_builds_but_does_not_run_is_told(trials, trial, state, said):
    trials['tensorrt'] = trial
    check = by_name(doctor_checks.check_machine())['TensorRT']
    assert check.state == state
    assert said in check.found


@pytest.mark.parametrize(('capability', 'state'), [((9, 0), 'problem'), ((8, 9), 'ok')])
def test_tensorrt_rtx_on_a_gpu_that_it_does_not_know(trials, monkeypatch, capability, state):
    gpu = GpuFacts(0, 'NVIDIA X', capability, 2**34, is_integrated=False)
    monkeypatch.setattr('vla_policy_ros.gpu.listing.list_gpus', lambda: (gpu,))
    monkeypatch.setattr('vla_policy_ros.gpu.driver.find_driver', lambda: '13.0')
    facts = {'version': '1.7', 'targets': ['8.9', '12.0'], 'builds': True, 'runs': True}
    trials['tensorrt_rtx'] = Trial(facts)
    check = by_name(doctor_checks.check_machine())['TensorRT-RTX']
    assert check.state == state
    if state == 'problem':
        assert 'does not run on NVIDIA X (9.0), only on 8.9, 12.0' in check.found


def test_tensorrt_rtx_tells_its_targets():
    pytest.importorskip('tensorrt_rtx')
    assert '8.9' in try_library('tensorrt_rtx').facts['targets']


@pytest.mark.parametrize(
    ('cuda', 'sees_gpu', 'state'),
    [(None, False, 'missing'), ('13.0', False, 'problem'), ('13.0', True, 'ok')],
)
def test_torch_on_the_gpu_is_a_check_of_its_own(trials, cuda, sees_gpu, state):
    trials['torch'] = Trial({'version': '2', 'cuda': cuda, 'sees_gpu': sees_gpu})
    checks = by_name(doctor_checks.check_machine())
    assert checks['PyTorch'].state == 'ok'
    assert checks['PyTorch on the GPU'].state == state


def test_caches_count_their_files(caches):
    folder = caches / 'kernels'
    folder.mkdir(parents=True)
    (folder / 'a.cubin').write_bytes(bytes(2**20))
    kernels, plans = doctor_checks.check_caches(None)
    assert (kernels.state, plans.state) == ('ok', 'missing')
    assert '1 files, 1.0 MiB' in kernels.found


def test_cached_kernels_need_no_compiler(cli, trials, caches):
    (caches / 'kernels').mkdir(parents=True)
    (caches / 'kernels' / 'a.cubin').write_bytes(b'x')
    checks = by_name_of(cli('doctor', '--json', '--preprocess', 'gpu'))
    assert (checks['NVRTC']['needed'], checks['PyCUDA']['needed']) == (False, True)


H200 = Machine('tensorrt', '10.6.0', Gpu('NVIDIA H200', (9, 0)))


@pytest.mark.parametrize(
    ('built_for', 'precision', 'state'),
    [
        (H200, 'fp16', 'ok'),
        (H200, None, 'missing'),
        (replace(H200, version='10.3.0'), 'fp16', 'missing'),
    ],
)
def test_plans_must_fit_this_machine(monkeypatch, tmp_path, built_for, precision, state):
    monkeypatch.setattr(doctor_checks, '_find_machine', lambda _engine: H200)
    folder, store = sample_bundle_path(), PlanStore(tmp_path)
    for name in ('encoder.onnx', 'velocity.onnx'):
        key = PlanKey(
            network_hash=network_hash(folder / name),
            options=BuildOptions(precision='fp16'),
            machine=built_for,
        )
        store.add(memoryview(b'plan'), key)
    checks = doctor_checks.check_bundle(folder, tmp_path, engine='tensorrt', precision=precision)
    check = by_name(checks)['plans']
    assert check.state == state
    if state != 'ok':
        assert 'vla-policy build' in check.next_step
        assert 'NVIDIA H200' in check.found


@pytest.mark.parametrize('engine', ['', 'onnxruntime', 'tensorrt'])
def test_where_a_machine_cannot_be_asked_plans_are_counted(tmp_path, engine):
    if engine == 'tensorrt' and find_driver():
        pytest.skip('there is a driver')
    checks = doctor_checks.check_bundle(sample_bundle_path(), tmp_path, engine=engine)
    assert 'encoder.onnx: 0' in by_name(checks)['plans'].found


# ROS.


def test_ros_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_x')
    monkeypatch.setattr(doctor_ros, 'is_installed', lambda module: module == 'rclpy')
    checks = by_name(doctor_ros.check_ros())
    assert (checks['ROS 2'].state, checks['ROS 2'].found) == ('ok', 'jazzy')
    assert checks['our messages'].state == 'missing'
    assert 'rmw_x' in checks['middleware'].found


@pytest.mark.parametrize(
    ('text', 'state'),
    [
        (None, 'missing'),
        ('', 'problem'),
        ('<segment_size>524288</segment_size>', 'problem'),
        ('<segment_size>67108864</segment_size>', 'ok'),
    ],
)
def test_dds_profile(monkeypatch, tmp_path, text, state):
    for variable in doctor_ros._PROFILE_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    if text is not None:
        (tmp_path / 'dds.xml').write_text(text)
        monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', str(tmp_path / 'dds.xml'))
    assert doctor_ros._check_profile().state == state


@pytest.mark.parametrize(('free_mib', 'state'), [(64, 'problem'), (256, 'ok')])
def test_shared_memory(monkeypatch, free_mib, state, tmp_path):
    facts = SimpleNamespace(f_bavail=free_mib, f_blocks=512, f_frsize=2**20)
    monkeypatch.setattr(doctor_ros.os, 'statvfs', lambda _: facts)
    assert doctor_ros._check_shared_memory(tmp_path).state == state


def test_missing_places_are_told(tmp_path):
    assert doctor_ros._check_shared_memory(tmp_path / 'none').state == 'missing'
    assert doctor_ros._check_socket_buffers(tmp_path / 'none').state == 'missing'


@pytest.mark.parametrize(('limit', 'state'), [('212992\n', 'problem'), ('8388608\n', 'ok')])
def test_socket_buffers(tmp_path, limit, state):
    (tmp_path / 'rmem_max').write_text(limit)
    assert doctor_ros._check_socket_buffers(tmp_path / 'rmem_max').state == state


CAMERA = CameraSource(topic='/front', rate_hz=30)
COMPRESSED = CameraSource(topic='/front', transport='compressed')
JOINTS = JointSource(topic='/joints', rename={'joint1': 'pan'})
NAMES = ('pan', 'lift')


def publisher(**changes):
    return {
        'node': '/camera',
        'type': 'sensor_msgs/msg/Image',
        'reliability': 'reliable',
        'durability': 'volatile',
        **changes,
    }


def seen(**changes):
    return {
        'stream': 'front',
        'topic': '/front',
        'expected_type': 'sensor_msgs/msg/Image',
        'publishers': [publisher()],
        'num_messages': 20,
        'rate_hz': 29.5,
        'encodings': ['rgb8'],
        'sizes': ['640 x 480'],
        'joints': [],
        'zero_stamps': 0,
        'faults': [],
        **changes,
    }


@pytest.mark.parametrize(
    ('source', 'changes', 'state', 'said'),
    [
        (CAMERA, {}, 'ok', '29.5 Hz, rgb8, 640 x 480, reliable, from /camera'),
        (CAMERA, {'publishers': []}, 'missing', 'no publisher'),
        (CAMERA, {'publishers': [publisher(type='a/msg/B')]}, 'problem', 'expected sensor_msgs'),
        (CAMERA, {'num_messages': 0, 'rate_hz': None}, 'problem', 'no message'),
        (CAMERA, {'rate_hz': 15.0}, 'problem', '15.0 Hz, expected 30 Hz'),
        (CAMERA, {'num_messages': 1, 'rate_hz': None}, 'ok', 'one message'),
        (CAMERA, {'encodings': ['32FC1']}, 'problem', "'32FC1'"),
        (CAMERA, {'zero_stamps': 3}, 'problem', '3 messages without a stamp'),
        (CAMERA, {'faults': ['12 bytes']}, 'problem', 'cannot be read: 12 bytes'),
        (
            CAMERA,
            {'publishers': [publisher(), publisher(reliability='best_effort')]},
            'problem',
            'different QoS',
        ),
        (COMPRESSED, {'encodings': ['rgb8; jpeg compressed bgr8']}, 'ok', 'jpeg'),
        (COMPRESSED, {'encodings': ['16UC1; compressedDepth']}, 'problem', 'compressedDepth'),
        (JOINTS, {'joints': ['lift', 'joint1']}, 'ok', '2 joints'),
        (JOINTS, {'joints': ['joint1']}, 'problem', 'no joint lift among joint1'),
    ],
)
def test_topic_is_judged(source, changes, state, said):
    check = doctor_ros.judge_topic(seen(**changes), source, NAMES)
    assert check.state == state
    assert said in check.found
    assert (check.state == 'ok') == (not check.next_step)


@pytest.fixture
def robot(tmp_path):
    path = tmp_path / 'robot.yaml'
    document = {
        'policy': {'bundle': 'sample'},
        'cameras': {'front': {'topic': '/front'}},
        'joint_states': [{'topic': '/joints'}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def answer(monkeypatch, *, topics=None, status=0, stderr=''):
    stdout = '' if topics is None else json.dumps({'topics': topics})
    done = SimpleNamespace(returncode=status, stdout=f'chatter\n{stdout}\n', stderr=stderr)
    monkeypatch.setattr(doctor_ros.subprocess, 'run', lambda *_, **__: done)
    monkeypatch.setattr('vla_policy_ros.tools.ros_environment.check_ros', lambda: None)


def test_live_topics_are_needed_by_a_configuration(cli, trials, caches, monkeypatch, robot):
    answer(monkeypatch, topics=[seen(), seen(stream='joint_states[0]', topic='/joints')])
    result = cli('doctor', '--json', '--config', robot, '--seconds', '0.5')
    checks = by_name_of(result)
    assert checks['topic /front']['state'] == 'ok'
    assert checks['topic /front']['needed']
    assert checks['topic /joints']['state'] == 'problem'
    assert 'no joint' in checks['topic /joints']['found']
    assert result.status == 1


def test_failed_look_at_topics_is_a_problem(cli, trials, caches, monkeypatch, robot):
    answer(monkeypatch, status=1, stderr='Traceback\nRuntimeError: no middleware\n')
    check = by_name_of(cli('doctor', '--json', '--config', robot))['topics']
    assert (check['state'], check['needed']) == ('problem', True)
    assert 'no middleware' in check['found']


def test_checks_are_immutable():
    with pytest.raises(AttributeError):
        Check('a', 'ok', 'b', 'c').state = 'missing'
