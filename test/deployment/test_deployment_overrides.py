# SPDX-License-Identifier: Apache-2.0
import pytest
from pydantic import ValidationError

from vla_policy_ros.deployment.config import PolicySettings
from vla_policy_ros.deployment.overrides import Overrides

FILE = PolicySettings(
    bundle='arm',
    engine='tensorrt',
    preprocess='gpu',
    jpeg='nvjpeg',
    precision='fp16',
    plan_folder='/plans',
    cuda_graph=False,
    device=1,
    threads=3,
)


def test_nothing_set_leaves_the_file():
    assert Overrides().policy_settings(FILE) == FILE


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('engine', 'onnxruntime'),
        ('preprocess', 'cpu'),
        ('jpeg', 'cpu'),
        ('precision', 'bf16'),
        ('plan_folder', '/other'),
        ('device', 0),
    ],
)
def test_what_is_set_wins_and_the_rest_stays(key, value):
    settings = Overrides(**{key: value}).policy_settings(FILE)
    assert settings == FILE.model_copy(update={key: value})


def test_a_graph_can_be_switched_off_only():
    allowed = FILE.model_copy(update={'cuda_graph': True})
    assert Overrides().policy_settings(allowed).cuda_graph
    assert not Overrides(cuda_graph=False).policy_settings(allowed).cuda_graph
    assert not Overrides(cuda_graph=True).policy_settings(FILE).cuda_graph


def test_without_a_file_the_sample_runs_with_the_defaults():
    assert Overrides().policy_settings(None) == PolicySettings(bundle='sample')


def test_unknown_choices_are_refused():
    for wrong in ({'jpeg': 'gpu'}, {'precision': 'half'}):
        with pytest.raises(ValidationError):
            Overrides(**wrong)
