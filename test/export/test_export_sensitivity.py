# SPDX-License-Identifier: Apache-2.0
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.requirements import NEEDS_8_BITS

from vla_policy_ros.bundle.bundle import load_bundle
from vla_policy_ros.datasets.registry import open_dataset
from vla_policy_ros.engines.registry import load_engine
from vla_policy_ros.engines.settings import EngineSettings
from vla_policy_ros.evaluation.observations import EpisodeObservations
from vla_policy_ros.export.calibration import calibrate, run_policy
from vla_policy_ros.export.onnx_network import OnnxNetwork
from vla_policy_ros.export.prepare import choose_loader
from vla_policy_ros.export.quantize_rules import keep_by_rule
from vla_policy_ros.export.sensitivity import (
    ProductLoss,
    choose_costly,
    keep_costly,
    measure_losses,
)
from vla_policy_ros.sample import HELD_OUT_EPISODES, sample_bundle_path, sample_dataset_path

LIMIT = 1e-4


@pytest.fixture(scope='module')
def sample():
    return load_bundle(sample_bundle_path())


def observe(sample, episodes, stride):
    with closing(open_dataset(sample_dataset_path())) as dataset:
        for index in episodes:
            with closing(dataset.episode(index)) as episode:
                steps = EpisodeObservations(dataset.info, episode, spec=sample.spec)
                yield from steps.iterate(stride=stride)


@pytest.fixture(scope='module')
def seen(sample):
    return list(observe(sample, range(HELD_OUT_EPISODES[0]), 24))


@pytest.fixture(scope='module')
def unseen(sample):
    return list(observe(sample, HELD_OUT_EPISODES, 10))


@pytest.fixture(scope='module')
def calibration(sample, seen):
    return calibrate(sample, seen)


def actions(sample, observations, load=load_engine):
    return np.array([chunk.copy() for chunk in run_policy(sample, observations, load=load)])


def loss(found, wanted):
    return np.square(found - wanted).sum() / np.square(wanted).sum()


def worst_cosine(found, wanted):
    return min(
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(found.reshape(len(found), -1), wanted.reshape(len(found), -1), strict=True)
    )


def entry(name, value, weights=100, path='a.onnx'):
    return ProductLoss(onnx_path=Path(path), name=name, weights=weights, loss=value)


def test_the_most_loss_per_weight_goes_first():
    losses = [entry('a', 3e-5), entry('b', 5e-5, weights=1000), entry('c', 1e-5)]
    assert choose_costly(losses, loss_limit=9e-5) == []
    assert choose_costly(losses, loss_limit=8e-5) == [losses[0]]
    assert choose_costly(losses, loss_limit=5e-5) == [losses[0], losses[2]]
    assert choose_costly(losses, loss_limit=0) == [losses[0], losses[2], losses[1]]
    assert choose_costly([], loss_limit=0) == []


@NEEDS_8_BITS
@pytest.mark.parametrize('precision', ['int8', 'fp8'])
def test_losses_of_single_products_add_up(sample, seen, calibration, precision):
    losses = list(measure_losses(sample, seen, calibration, precision=precision))
    candidates = {p.name for p in losses}
    for path in {p.onnx_path for p in losses}:
        assert candidates.isdisjoint(keep_by_rule(OnnxNetwork(path)))
    assert len(losses) == 7
    assert all(entry.loss > 0 for entry in losses)
    load = choose_loader('onnxruntime', precision, calibration)
    settings = EngineSettings(precision=precision)
    together = actions(sample, seen, lambda name, path, **_: load(name, path, settings=settings))
    total = sum(entry.loss for entry in losses)
    assert 0.5 * total < loss(together, actions(sample, seen)) < 2 * total


@NEEDS_8_BITS
@pytest.mark.parametrize('precision', ['int8', 'fp8'])
def test_the_sample_policy_in_8_bits_on_what_it_never_saw(
    sample, seen, unseen, calibration, precision
):
    settings = EngineSettings(precision=precision)
    wanted = actions(sample, unseen)
    tight = keep_costly(sample, seen[::3], calibration, precision=precision, loss_limit=LIMIT)
    velocity = tight.network(sample.folder / 'velocity.onnx')
    assert velocity.largest == calibration.network(sample.folder / 'velocity.onnx').largest
    assert set(velocity.costly) == {precision}
    cosines = []
    for used in (calibration, tight):
        load = choose_loader('onnxruntime', precision, used)
        found = actions(
            sample, unseen, lambda name, path, load=load, **_: load(name, path, settings=settings)
        )
        cosines.append(worst_cosine(found, wanted))
    assert cosines[0] > 0.998
    assert 0.9995 < cosines[1] < 1
