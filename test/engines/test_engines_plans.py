# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.bundles import save_doubler

from vla_policy_ros.core.cache import write_atomically
from vla_policy_ros.core.errors import BundleError, EngineError
from vla_policy_ros.core.specs import TensorSpec
from vla_policy_ros.engines.plan_facts import (
    BuildOptions,
    BuildReport,
    Gpu,
    LayerGroup,
    Machine,
    PlanKey,
    ShapeRange,
    find_misfits,
    version_numbers,
)
from vla_policy_ros.engines.plans import (
    PlanStore,
    default_plan_folder,
    network_hash,
    open_plan,
)

H200 = Gpu('NVIDIA H200', (9, 0))
A100 = Gpu('NVIDIA A100', (8, 0))
TURING = Gpu('Tesla T4', (7, 5))
HERE = Machine('tensorrt', '10.6.0', H200)
NETWORK = 'ab' * 32


def make_key(machine=HERE, **options):
    return PlanKey(network_hash=NETWORK, options=BuildOptions(**options), machine=machine)


def add(store, key=None, content=b'plan'):
    return store.add(memoryview(content), key or make_key())


def find(store, precision='fp32', machine=HERE):
    return store.find(NETWORK, precision=precision, machine=machine)


@pytest.fixture
def store(tmp_path):
    return PlanStore(tmp_path / 'plans')


def test_plan_comes_back_with_all_its_facts(store):
    key = make_key(
        precision='fp16',
        profiles={'x': ShapeRange(min=(1, 3), opt=(2, 3), max=(4, 3))},
        workspace_mib=64,
        optimization_level=5,
    )
    report = BuildReport(
        seconds=1.5,
        workspace_bytes=1024,
        layers=(LayerGroup('fp16', 'gemm', 3), LayerGroup('fp32', 'norm', 1)),
        layers_of='plan',
    )
    written = store.add(memoryview(b'plan'), key, report=report)
    found = find(store, 'fp16')
    assert found == written
    assert found.key == key
    assert found.report == report
    assert found.origin == 'built'
    with open_plan(found) as content:
        assert bytes(content) == b'plan'


def test_shares_of_a_report_are_of_all_layers():
    groups = (LayerGroup('fp32', 'a', 1), LayerGroup('fp16', 'b', 2), LayerGroup('fp16', 'c', 1))
    report = BuildReport(seconds=0, workspace_bytes=None, layers=groups, layers_of='network')
    assert report.shares() == {'fp16': 0.75, 'fp32': 0.25}
    assert list(report.shares()) == ['fp16', 'fp32']


def test_plans_of_one_network_lie_in_one_folder(store):
    other = replace(make_key(), network_hash='cd' * 32)
    paths = [add(store).path, add(store, make_key(precision='fp16')).path, add(store, other).path]
    assert [path.parent.name for path in paths] == [NETWORK, NETWORK, 'cd' * 32]
    assert 'fp16-tensorrt-10.6.0-nvidia_h200' in paths[1].name


def test_newest_plan_that_fits_is_found(store):
    add(store, make_key(optimization_level=3), b'old')
    newest = add(store, make_key(optimization_level=5), b'new')
    add(store, make_key(precision='fp16'), b'other')
    assert find(store) == newest


def test_plan_of_the_same_key_is_replaced_and_the_open_one_stays_whole(store):
    first = add(store, content=b'first')
    with open_plan(first) as content:
        second = add(store, content=b'second')
        assert bytes(content) == b'first'
    assert find(store) == second
    assert sorted(p.suffix for p in second.path.parent.iterdir()) == ['.json', '.plan']


def test_same_content_again_stays(store):
    add(store)
    with open_plan(add(store)) as content:
        assert bytes(content) == b'plan'


def test_store_may_be_moved_as_a_whole(store, tmp_path):
    add(store)
    store.folder.rename(tmp_path / 'elsewhere')
    moved = PlanStore(tmp_path / 'elsewhere')
    assert find(moved).path.parent.parent == moved.folder
    with open_plan(find(moved)) as content:
        assert bytes(content) == b'plan'


def test_empty_store_says_what_to_do(store):
    with pytest.raises(
        EngineError, match=r'no plan.*fp16 for tensorrt 10.6.0 on NVIDIA H200'
    ) as e:
        find(store, 'fp16')
    assert e.value.code == 'no_plan'
    assert 'vla-policy build' in e.value.next_step
    assert '--precision fp16' in e.value.next_step


@pytest.mark.parametrize(
    ('key', 'both_sides'),
    [
        (make_key(precision='int8'), ('int8', 'fp32')),
        (make_key(replace(HERE, gpu=A100)), ('NVIDIA A100 (8.0)', 'NVIDIA H200 (9.0)')),
        (make_key(replace(HERE, version='10.3.0')), ('tensorrt 10.3.0', '10.6.0')),
        (make_key(Machine('tensorrt_rtx', '1.7', None)), ('built with tensorrt_rtx', 'tensorrt')),
    ],
    ids=['precision', 'gpu', 'version', 'library'],
)
def test_plan_that_does_not_fit_is_listed_with_both_sides(store, key, both_sides):
    plan = add(store, key)
    with pytest.raises(EngineError) as caught:
        find(store)
    assert caught.value.code == 'plan_mismatch'
    assert plan.path.name in caught.value.got
    for side in both_sides:
        assert side in caught.value.got


def test_every_plan_and_every_reason_is_listed(store):
    names = [
        add(
            store, make_key(replace(HERE, gpu=A100, version='10.3.0'), precision='bf16')
        ).path.name,
        add(store, make_key(precision='fp16')).path.name,
    ]
    with pytest.raises(EngineError) as caught:
        find(store)
    assert all(name in caught.value.got for name in names)
    assert caught.value.got.count('wanted fp32') == 2
    assert caught.value.got.count('here is') == 2


@pytest.mark.parametrize(
    ('options', 'built', 'here', 'fits'),
    [
        ({}, HERE, HERE, True),
        ({}, HERE, replace(HERE, version='10.6.1'), False),
        ({'version_compatible': True}, HERE, replace(HERE, version='10.13.2'), True),
        ({'version_compatible': True}, HERE, replace(HERE, version='10.3.0'), False),
        ({'version_compatible': True}, HERE, replace(HERE, version='11.0.0'), False),
        ({'version_compatible': True}, HERE, replace(HERE, gpu=A100), False),
        ({'hardware_compatible': True}, HERE, replace(HERE, gpu=A100), True),
        ({'hardware_compatible': True}, HERE, replace(HERE, gpu=TURING), False),
        ({'hardware_compatible': True}, HERE, replace(HERE, version='10.7.0'), False),
        ({}, replace(HERE, gpu=None), HERE, True),
        ({}, replace(HERE, gpu=None), replace(HERE, gpu=TURING), False),
        ({'targets': ('8.0', '12.0')}, replace(HERE, gpu=None), HERE, False),
        ({'targets': ('8.0', '12.0')}, replace(HERE, gpu=None), replace(HERE, gpu=A100), True),
    ],
)
def test_rules_of_fitting(options, built, here, fits):
    misfits = find_misfits(make_key(built, **options), 'fp32', here)
    assert bool(misfits) is not fits


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4))
def test_version_numbers_are_read_up_to_the_first_word(numbers):
    text = '.'.join(map(str, numbers))
    assert version_numbers(text) == tuple(numbers)
    assert version_numbers(f'{text}.post1.7') == tuple(numbers)


@pytest.mark.parametrize('content', [b'', b'plaX', b'plan and more', None])
def test_damaged_plan_is_refused(store, content):
    plan = add(store)
    if content is None:
        plan.path.unlink()
    else:
        plan.path.write_bytes(content)
    with pytest.raises(EngineError, match='build') as caught, open_plan(find(store)):
        pytest.fail('must not be opened')
    assert caught.value.code == 'damaged_plan'


@pytest.mark.parametrize('facts', ['', '{}', '{"path": 3}', 'not json'])
def test_unreadable_facts_count_as_no_plan(store, facts):
    plan = add(store)
    next(plan.path.parent.glob('*.json')).write_text(facts)
    assert store.plans(NETWORK) == []


def test_facts_cannot_name_a_file_outside_of_the_store(store, tmp_path):
    plan = add(store)
    facts_path = next(plan.path.parent.glob('*.json'))
    facts = json.loads(facts_path.read_text())
    facts['path'] = f'../../{tmp_path.name}/evil.plan'
    facts_path.write_text(json.dumps(facts))
    assert find(store).path == plan.path.with_name('evil.plan')


def test_broken_write_leaves_the_old_file_and_no_part(tmp_path):
    path = tmp_path / 'deep' / 'file'
    write_atomically(path, memoryview(b'old'))
    with pytest.raises(TypeError):
        write_atomically(path, 'text')
    assert path.read_bytes() == b'old'
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ('variables', 'expected'),
    [
        ({'VLA_PLAN_FOLDER': '/plans', 'XDG_CACHE_HOME': '/cache'}, '/plans'),
        ({'XDG_CACHE_HOME': '/cache'}, '/cache/vla_policy_ros/plans'),
        ({}, '/home/me/.cache/vla_policy_ros/plans'),
    ],
)
def test_default_folder_follows_the_environment(monkeypatch, variables, expected):
    for name in ('VLA_PLAN_FOLDER', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    for name, value in {'HOME': '/home/me', **variables}.items():
        monkeypatch.setenv(name, value)
    assert default_plan_folder() == Path(expected)
    assert PlanStore().folder == Path(expected)


def test_timing_caches_belong_to_gpu_and_version(store):
    machines = (HERE, replace(HERE, version='10.3.0'), replace(HERE, gpu=A100))
    paths = {store.timing_cache_path(machine) for machine in machines}
    assert len(paths) == 3
    assert {path.parent for path in paths} == {store.folder}


def test_kernels_of_a_replaced_plan_go_with_it(store):
    plan = add(store, content=b'old')
    write_atomically(plan.kernel_cache_path, memoryview(b'kernels'))
    add(store, content=b'old')
    assert plan.kernel_cache_path.is_file()
    add(store, content=b'new')
    assert not plan.kernel_cache_path.exists()


def save_external(path, *, weight=1.0, location='weights.bin'):
    """y = x + w with w in a file of its own."""
    tensor = onnx.numpy_helper.from_array(np.full(3, weight, np.float32), 'w')
    onnx.external_data_helper.set_external_data(tensor, location=location)
    (path.parent / location).write_bytes(tensor.raw_data)
    tensor.ClearField('raw_data')
    graph = helper.make_graph(
        [helper.make_node('Add', ['x', 'w'], ['y'])],
        'graph',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, [3])],
        [tensor],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_hash_covers_content_and_weight_files_but_not_the_name(tmp_path):
    first = save_external(tmp_path / 'first.onnx')
    before = network_hash(first)
    assert before == network_hash(first.rename(tmp_path / 'renamed.onnx'))
    assert before != network_hash(save_external(tmp_path / 'b.onnx', weight=2.0))
    assert before != network_hash(save_doubler(tmp_path / 'doubler.onnx'))


def test_hash_names_what_is_missing(tmp_path):
    path = save_external(tmp_path / 'network.onnx')
    (tmp_path / 'weights.bin').unlink()
    for missing in ('weights.bin', 'none.onnx'):
        with pytest.raises(EngineError, match=missing) as caught:
            network_hash(path if missing == 'weights.bin' else tmp_path / missing)
        assert caught.value.code == 'missing_file'
    path.write_bytes(b'not a network')
    with pytest.raises(BundleError):
        network_hash(path)


DOUBLER = (TensorSpec('x', (None, 3), 'float32'), TensorSpec('y', (None, 3), 'float32'))


@pytest.fixture
def foreign(tmp_path):
    path = tmp_path / 'trtexec.plan'
    path.write_bytes(b'foreign plan')
    return path, save_doubler(tmp_path / 'doubler.onnx')


@pytest.mark.parametrize('rows', [None, 2])
def test_foreign_plan_is_taken_in(store, foreign, rows):
    tensors = [replace(spec, shape=(rows, 3)) for spec in reversed(DOUBLER)]
    plan = store.add_foreign(*foreign, key=make_key(), tensors=tensors)
    assert find(store) == plan
    assert plan.origin == 'foreign'
    assert plan.report is None
    with open_plan(plan) as content:
        assert bytes(content) == b'foreign plan'


@pytest.mark.parametrize(
    ('tensors', 'message'),
    [
        (DOUBLER[:1], r"'y': got no such tensor, expected float32\[n, 3\]"),
        ((*DOUBLER, TensorSpec('z', (1,), 'int64')), r"'z': got int64\[1\], expected no such"),
        ((replace(DOUBLER[0], dtype='float16'), DOUBLER[1]), r"'x': got float16\[\*, 3\]"),
        ((replace(DOUBLER[0], shape=(None, 4)), DOUBLER[1]), r"'x': got float32\[\*, 4\]"),
        ((replace(DOUBLER[0], shape=(3,)), DOUBLER[1]), r"'x': got float32\[3\]"),
    ],
    ids=['missing', 'unknown', 'type', 'size', 'rank'],
)
def test_foreign_plan_of_another_network_is_refused(store, foreign, tensors, message):
    with pytest.raises(EngineError, match=message) as caught:
        store.add_foreign(*foreign, key=make_key(), tensors=tensors)
    assert caught.value.code == 'foreign_plan'
    assert store.plans(NETWORK) == []
