# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints of GR00T N1.7, made and saved by the library alone, read with no weights of its backbone's origin.

Runs where Isaac-GR00T N1.7 and transformers are installed.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import small_qwen

from vla_policy_ros.core.errors import BundleError
from vla_policy_ros.export.groot.library import require_gr00t
from vla_policy_ros.export.groot.qwen import build_n17, load_n17

library = require_gr00t('model.gr00t_n1d7.gr00t_n1d7', version='n1.7')

pytestmark = pytest.mark.filterwarnings('ignore')  # of the libraries about their own parts

SMALL_HEAD = {
    'backbone_embedding_dim': 48,
    'select_layer': 3,
    'hidden_size': 32,
    'input_embedding_dim': 32,
    'max_state_dim': 8,
    'max_action_dim': 8,
    'action_horizon': 6,
    'max_num_embodiments': 4,
    'diffusion_model_cfg': {
        'num_layers': 2,
        'num_attention_heads': 2,
        'attention_head_dim': 16,
        'norm_type': 'ada_norm',
        'output_dim': 32,
        'interleave_self_attention': True,
        'positional_embeddings': None,
    },
}


@pytest.fixture(scope='module')
def vlm(tmp_path_factory):
    """Folder of a small vision-language model with weights, whose name the library accepts."""
    folder = tmp_path_factory.mktemp('hub') / 'nvidia' / 'Cosmos-Reason2-small'
    return small_qwen.write_weights(small_qwen.write_small_qwen(folder))


@pytest.fixture
def checkpoint(vlm, tmp_path):
    """Folder of a whole policy, and the policy."""
    config = library.Gr00tN1d7Config(model_name=str(vlm), **SMALL_HEAD)
    policy = library.Gr00tN1d7(config).to(torch.bfloat16)
    policy.save_pretrained(tmp_path / 'checkpoint')
    return tmp_path / 'checkpoint', policy


def test_checkpoint_is_loaded_with_its_own_weights_alone(checkpoint, tmp_path, monkeypatch):
    folder, policy = checkpoint
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    bare = small_qwen.write_small_qwen(tmp_path / 'bare')
    assert not list(bare.glob('*.safetensors'))
    loaded = load_n17(folder, vlm=bare)
    wanted = policy.state_dict()
    found = loaded.state_dict()
    assert found.keys() == wanted.keys()
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], wanted[name].float()) for name in wanted)
    buffers = dict(loaded.named_buffers())
    own = dict(build_n17(policy.config).named_buffers())
    assert all(torch.equal(buffers[name], own[name]) for name in own)
    assert not loaded.training
    assert Path(loaded.collator.model_name) == bare


def test_checkpoint_without_all_weights(checkpoint, tmp_path):
    folder, policy = checkpoint
    weights = policy.state_dict()
    kept = {name: value for name, value in weights.items() if 'layers.2' not in name}
    policy.save_pretrained(folder, state_dict=kept)
    with pytest.raises(BundleError, match=r'layers\.2') as error:
        load_n17(folder)
    assert error.value.code == 'missing_weights'


def test_other_vision_language_model(checkpoint, tmp_path):
    other = small_qwen.write_small_qwen(tmp_path / 'other', hidden_size=64)
    with pytest.raises(BundleError, match='--vlm') as error:
        load_n17(checkpoint[0], vlm=other)
    assert error.value.code == 'other_vlm'


@pytest.mark.parametrize('left_out', ['*', 'config.json', 'preprocessor*', 'tokenizer.json'])
def test_missing_vision_language_model(checkpoint, tmp_path, left_out):
    folder = small_qwen.write_small_qwen(tmp_path / 'broken')
    for path in folder.glob(left_out):
        path.unlink()
    with pytest.raises(BundleError, match='hf download') as error:
        load_n17(checkpoint[0], vlm=folder)
    assert error.value.code == 'missing_vlm'


def test_unknown_vision_language_model(checkpoint, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(BundleError, match='nvidia/Cosmos-Reason2-none') as error:
        build_n17(SimpleNamespace(model_name='nvidia/Cosmos-Reason2-none'))
    assert error.value.code == 'missing_vlm'
