# SPDX-License-Identifier: Apache-2.0
"""The sample policy as a bundle in int8, on real ONNX Runtime and OpenVINO."""

import json
import shutil
from contextlib import closing

import numpy as np
import onnx
import pytest
import yaml
from support.requirements import NEEDS_8_BITS, require

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.bundle.limits import ACCURACY_LIMITS
from vla_policy_ros.bundle.probe import compare_outputs, read_probe
from vla_policy_ros.bundle.writer import write_bundle
from vla_policy_ros.core.errors import BundleError, EngineError
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.evaluation.sampling import sample_observations
from vla_policy_ros.export.calibration import calibrate
from vla_policy_ros.export.prepare import prepare_network
from vla_policy_ros.export.quantized_bundle import quantize_bundle
from vla_policy_ros.policies.engine_policy import EnginePolicy
from vla_policy_ros.sample import sample_bundle_path, sample_dataset_path

pytestmark = NEEDS_8_BITS


@pytest.fixture(scope='module')
def sample():
    return load_bundle(sample_bundle_path())


def calibrated(bundle):
    with closing(open_dataset(sample_dataset_path())) as dataset:
        observations = sample_observations(dataset, bundle.spec, count=12)
        return calibrate(bundle, observations, source='pick_blocks')


@pytest.fixture(scope='module')
def calibration(sample):
    return calibrated(sample)


@pytest.fixture(scope='module')
def quantized(sample, calibration, tmp_path_factory):
    return quantize_bundle(sample, tmp_path_factory.mktemp('out') / 'small', calibration)


def test_the_bundle_says_what_it_is(sample, quantized):
    made = load_bundle(quantized.bundle.folder)
    assert made.manifest.name == 'small'
    assert [stage.precision for stage in made.manifest.stages] == ['int8', 'int8']
    assert 'int8, calibrated on 12 observations of pick_blocks.' in made.manifest.source.note
    assert sample.manifest.source.note in made.manifest.source.note
    assert made.spec.action == sample.spec.action
    for name in ('tokenizer.json', 'statistics.json', 'probe.npz'):
        assert made.manifest.files[name] == sample.manifest.files[name]


def test_weights_are_stored_in_8_bits(sample, quantized):
    assert {name: len(r.products) for name, r in quantized.networks.items()} == {
        'encoder.onnx': 1,
        'velocity.onnx': 6,
    }
    before, after = (
        (bundle.folder / 'velocity.onnx').stat().st_size for bundle in (sample, quantized.bundle)
    )
    assert after < before / 2
    types = {
        tensor.data_type
        for tensor in onnx.load(quantized.bundle.folder / 'velocity.onnx').graph.initializer
    }
    assert onnx.TensorProto.INT8 in types
    assert onnx.TensorProto.FLOAT16 not in types


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_the_policy_is_near_on_engines_that_run_a_file_as_it_is(sample, quantized, engine):
    if engine == 'openvino':
        require('openvino')
    probe = read_probe(sample.folder / 'probe.npz')
    with closing(EnginePolicy(quantized.bundle, engine=engine)) as policy:
        found = compare_outputs(policy.run_pool(probe.inputs, probe.noise), probe.output)
    limit = ACCURACY_LIMITS['int8']
    assert found.cosine >= limit.min_cosine
    assert 1e-4 < found.max_error <= limit.max_error  # it is another policy, and a near one


def test_a_quantized_network_needs_no_calibration(quantized, tmp_path):
    source = quantized.bundle.folder / 'velocity.onnx'
    report = prepare_network(source, tmp_path / 'velocity.onnx', 'int8')
    assert report.quantization is None
    types = {t.data_type for t in onnx.load(tmp_path / 'velocity.onnx').graph.initializer}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16} <= types  # the rest for TensorRT


def test_what_is_in_8_bits_is_not_quantized_again(quantized, tmp_path):
    again = calibrated(quantized.bundle)
    with pytest.raises(EngineError) as error:
        quantize_bundle(quantized.bundle, tmp_path / 'again', again)
    assert error.value.code == 'nothing_to_quantize'
    assert not (tmp_path / 'again').exists()


def test_the_calibration_of_another_bundle_is_refused(quantized, calibration, tmp_path):
    with pytest.raises(EngineError) as error:
        quantize_bundle(quantized.bundle, tmp_path / 'other', calibration)
    assert error.value.code == 'stale_calibration'
    assert not (tmp_path / 'other').exists()


def test_a_full_folder_is_left_alone(sample, calibration, tmp_path):
    (tmp_path / 'mine.txt').write_text('kept')
    with pytest.raises(BundleError) as error:
        quantize_bundle(sample, tmp_path, calibration)
    assert error.value.code == 'folder_not_empty'
    assert (tmp_path / 'mine.txt').read_text() == 'kept'


def test_a_policy_that_comes_out_far_away_is_refused(sample, calibration, tmp_path):
    document = json.loads(calibration.model_dump_json())
    for network in document['networks'].values():
        network['largest'] = dict.fromkeys(network['largest'], 1e-3)  # all is cut off
    with pytest.raises(EngineError) as error:
        quantize_bundle(sample, tmp_path / 'far', type(calibration).model_validate(document))
    assert error.value.code == 'not_equal'
    assert not (tmp_path / 'far').exists()


def test_weight_files_of_the_source_are_not_taken_along(sample, tmp_path):
    folder = tmp_path / 'source'
    shutil.copytree(sample.folder, folder)
    model = onnx.load(folder / 'velocity.onnx')
    (folder / 'velocity.onnx').unlink()
    onnx.save_model(
        model, folder / 'velocity.onnx', save_as_external_data=True, location='velocity.weights'
    )
    manifest = yaml.safe_load((folder / 'bundle.yaml').read_text())
    (folder / 'bundle.yaml').unlink()
    del manifest['files'], manifest['probe']
    (folder / 'probe.npz').unlink()
    source = write_bundle(folder, manifest)
    made = quantize_bundle(source, tmp_path / 'made', calibrated(source))
    assert 'velocity.weights' not in made.bundle.manifest.files
    assert load_bundle(tmp_path / 'made').manifest.probe is None
    assert np.isfinite(made.policy.cosine)
    assert made.policy.max_error > 0
