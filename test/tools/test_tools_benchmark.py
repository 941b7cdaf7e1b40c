# SPDX-License-Identifier: Apache-2.0
import json
import sys

import pytest

from vla_policy_ros.evaluation.observations import EpisodeObservations
from vla_policy_ros.policies.runner import ExecutionFacts
from vla_policy_ros.tools.benchmark_rows import Row, choices, make_document

COMPONENTS = ['receive', 'preprocess', 'inputs', 'network', 'postprocess', 'total']


@pytest.fixture
def benchmark(cli, recording, bundle):
    """Run `vla-policy benchmark` on the recording, a few times only."""

    def run(*words):
        short = ('--iterations', 3, '--warmup', 1)
        return cli('benchmark', '--dataset', recording.dataset, '--bundle', bundle, *short, *words)

    return run


def test_every_component_of_one_step(benchmark):
    result = benchmark('--json')
    assert result.status == 0
    document = result.document
    (row,) = document['rows']
    assert list(row['components']) == COMPONENTS
    assert {figures['count'] for figures in row['components'].values()} == {3}
    parts = sum(row['components'][name]['min_ms'] for name in COMPONENTS[:-1])
    assert 0 < parts <= row['components']['total']['p99_ms']
    assert (row['speedup'], row['max_difference']) == (1, 0)
    assert row['groups']['backbone'] is None
    assert row['groups']['action head']['p50_ms'] == row['components']['network']['p50_ms']
    assert document['observations'] == 'one step'
    assert document['command'].startswith('vla-policy benchmark --dataset ')
    assert {'vla_policy_ros', 'python', 'numpy', 'onnxruntime', 'machine'} == set(
        document['versions']
    )


def test_an_episode_gives_other_chunks_than_one_step(benchmark):
    document = benchmark('--json', '--episode', 1).document
    assert document['observations'] == 'episode 1'
    assert document['rows'][0]['components']['total']['count'] == 3


def test_stages_can_be_called_backbone(benchmark):
    (row,) = benchmark('--json', '--backbone', 'network').document['rows']
    assert row['groups']['action head'] is None
    assert row['groups']['backbone']['p50_ms'] == row['components']['network']['p50_ms']


def test_an_engine_that_cannot_run_here_is_a_row(benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    for name in [name for name in sys.modules if name.startswith('vla_policy_ros.engines.torch')]:
        monkeypatch.delitem(sys.modules, name)
    result = benchmark('--json', '--engine', 'onnxruntime', 'torch_cpu', 'onnxruntime')
    assert result.status == 0
    here, there = result.document['rows']
    assert (here['engine'], there['engine']) == ('onnxruntime', 'torch_cpu')
    assert 'error' not in here
    assert there['error']['next_step']


def test_words_for_people(benchmark):
    result = benchmark()
    lines = result.out.splitlines()
    for title in ('data processing', 'backbone', 'action head', 'end to end'):
        assert title in lines[0]
    assert 'p99' in lines[2]
    assert lines[1].startswith('onnxruntime cpu images ')
    assert [line.split()[-6] for line in lines[3:]] == COMPONENTS
    assert 'loading onnxruntime' in result.err


def test_files_for_a_readme(benchmark, tmp_path):
    document = benchmark('--json', '--out', tmp_path / 'run').document
    stored = json.loads((tmp_path / 'run' / 'benchmark.json').read_text(encoding='utf-8'))
    assert stored == document
    text = (tmp_path / 'run' / 'benchmark.md').read_text(encoding='utf-8')
    assert '| engine | data processing | backbone | action head | end to end |' in text
    assert f'`{document["command"]}`' in text
    assert 'on the host' in text


@pytest.mark.parametrize(
    'words', [('--engine', 'steam'), ('--backbone', 'nothing'), ('--engine', 'none')]
)
def test_wrong_options_give_2(benchmark, words):
    assert benchmark(*words).status == 2


def test_a_missing_gpu_alone_gives_1_and_says_why(benchmark, monkeypatch):
    from vla_policy_ros.core.errors import GpuError
    from vla_policy_ros.gpu import device

    def refuse(_index=0):
        raise GpuError('GPU', got='none', expected='one', next_step='Plug one in.', code='no_gpu')

    monkeypatch.setattr(device, 'open_device', refuse)
    result = benchmark('--json', '--engine', 'tensorrt', '--preprocess', 'gpu')
    assert result.status == 1
    assert [row['error']['code'] for row in result.document['rows']] == ['no_gpu', 'no_gpu']
    assert 'Plug one in.' in benchmark('--engine', 'tensorrt').out


def test_what_is_compared():
    rows = choices(
        ['onnxruntime', 'tensorrt', 'tensorrt'],
        precisions=['fp16', 'fp8'],
        preprocess='gpu',
        graphs=(False, True),
    )
    assert [row.title for row in rows] == [
        'onnxruntime fp16 cpu images',
        'onnxruntime fp8 cpu images',
        'tensorrt fp16 gpu images no graph',
        'tensorrt fp16 gpu images graph',
        'tensorrt fp8 gpu images no graph',
        'tensorrt fp8 gpu images graph',
    ]


def test_a_precision_is_what_really_runs(benchmark):
    words = ('--engine', 'onnxruntime', '--precision')
    exported, fp16, bf16 = benchmark('--json', *words, 'exported', 'fp16', 'bf16').document['rows']
    assert (exported['precision'], fp16['precision']) == ('exported', 'fp16')
    assert 0 < fp16['max_difference'] < 0.05
    assert bf16['error']['code'] == 'unsupported_precision'


def test_a_graph_that_fell_back_is_no_graph():
    whole = {'total': 1000}
    rows = [
        Row('tensorrt', None, 'gpu', True, execution=facts, times=[whole])
        for facts in (
            ExecutionFacts(memory='device', cuda_graph=True),
            ExecutionFacts(memory='device', reason='it cannot be captured'),
        )
    ]
    document = make_document(rows, ((), ()), command='', policy_id='', episode=None)
    graph, plain = document['rows']
    assert (graph['cuda_graph'], plain['cuda_graph']) == (True, False)
    assert (graph['title'], plain['title']) == (
        'tensorrt gpu images graph',
        'tensorrt gpu images graph (fell back: no graph)',
    )


def test_an_episode_without_a_step(benchmark, monkeypatch):
    monkeypatch.setattr(EpisodeObservations, 'iterate', lambda _: iter(()))
    result = benchmark('--json')
    assert (result.status, result.document['error']['code']) == (2, 'nothing_to_measure')


def test_a_reason_is_told_once(benchmark, monkeypatch):
    from vla_policy_ros.core.errors import GpuError
    from vla_policy_ros.gpu import device

    def refuse(_index=0):
        raise GpuError('GPU', got='none', expected='one', next_step='Plug one in.')

    monkeypatch.setattr(device, 'open_device', refuse)
    result = benchmark('--engine', 'onnxruntime', 'tensorrt', 'torch')
    assert result.out.count('Plug one in.') == 1
    assert 'not run: tensorrt cpu images no graph, tensorrt cpu images graph, torch' in result.out


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_the_gpu_beside_the_host(benchmark):
    words = ('--engine', 'onnxruntime', 'tensorrt', '--preprocess', 'gpu')
    result = benchmark('--json', *words, '--cuda-graph', 'both')
    host, plain, graph = result.document['rows']
    assert 'error' not in plain, plain
    assert 'error' not in graph, graph
    assert {'upload', 'network'} <= set(plain['components'])
    assert 'CUDA graph of' in graph['execution']
    assert max(plain['max_difference'], graph['max_difference']) < 0.05
    assert host['preprocess'] == 'cpu'
