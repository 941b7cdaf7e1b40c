# SPDX-License-Identifier: Apache-2.0
"""A small GR00T N1.5 or N1.6, whichever Isaac-GR00T is installed, made by its own classes with its own tokenizer."""

import json
import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.groot_version import VERSION

from vla_policy_ros.core.errors import MissingDependencyError
from vla_policy_ros.export.groot.library import require_gr00t

os.environ['NO_ALBUMENTATIONS_UPDATE'] = '1'  # it would ask PyPI
_MODEL = Path(import_module('gr00t').__path__[0]) / 'model'
_MODULES = {
    'n1.5': ('model.gr00t_n1', 'model.transforms'),
    'n1.6': ('model.gr00t_n1d6.gr00t_n1d6', 'model.gr00t_n1d6.processing_gr00t_n1d6'),
}
if VERSION not in _MODULES:
    pytest.skip('neither N1.5 nor N1.6 of Isaac-GR00T', allow_module_level=True)
try:
    library, processing = (require_gr00t(name, version=VERSION) for name in _MODULES[VERSION])
except MissingDependencyError as fault:
    pytest.skip(str(fault), allow_module_level=True)

_NAME = ('nvidia/Eagle-Block2A-2B-v2', {'trust_remote_code': True})
_HOMES = {'n1.5': 'backbone/eagle2_hg_model', 'n1.6': 'modules/nvidia/Eagle-Block2A-2B-v2'}
_TEXT = {
    'hidden_size': 48,
    'intermediate_size': 64,
    'num_hidden_layers': 4,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 16,
}
_VISION = {
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 3,
    'num_attention_heads': 2,
    'vision_use_head': False,
}
_DIT = {
    'num_layers': 2,
    'num_attention_heads': 4,
    'attention_head_dim': 12,
    'norm_type': 'ada_norm',
    'dropout': 0.2,
    'final_dropout': True,
    'output_dim': 32,
    'interleave_self_attention': True,
    'positional_embeddings': None,
}
_HEAD = {
    'hidden_size': 32,
    'input_embedding_dim': 48,
    'backbone_embedding_dim': 48,
    'max_seq_len': 64,
}


def make_processor():
    """Returns the library's processor of the vision-language model."""
    if VERSION == 'n1.6':
        return processing.build_processor(*_NAME)
    return processing.build_eagle_processor(str(_home()))


def library_chat(processor, text, pictures):
    """Returns ids and pixels as the library's own transformations make them of words and PIL images."""
    stand_in = SimpleNamespace(processor=processor, eagle_processor=processor)
    frames = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
    if VERSION == 'n1.6':
        content = processing.Gr00tN1d6Processor._apply_vlm_processing(stand_in, frames, text)
        collate = processing.Gr00tN1d6DataCollator(_NAME[0], transformers_loading_kwargs=_NAME[1])
        return collate([content])['inputs']
    batch = {'images': frames[:, None], 'language': text}
    content = processing.GR00TTransform._apply_vlm_processing(stand_in, batch)
    collated = processing.collate([content], processor)
    return {name.removeprefix('eagle_'): value for name, value in collated.items()}


def _home():
    return _MODEL / _HOMES[VERSION]


def write_small_vlm(folder, *, vision=None, text=None, **settings):
    """Write the configuration of a small vision-language model; returns the folder."""
    config = json.loads((_home() / 'config.json').read_text())
    config['text_config'].update({**_TEXT, **(text or {})})
    grid = {'num_patches': 49} if VERSION == 'n1.6' else {}
    config['vision_config'].update({**_VISION, **grid, **(vision or {})})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps({**config, **settings}))
    return folder


def small_config(*, rows=8):
    """Returns the library's configuration of a small policy."""
    if VERSION == 'n1.6':
        head = {**_HEAD, 'diffusion_model_cfg': _DIT, 'action_horizon': rows}
        return library.Gr00tN1d6Config(select_layer=3, **head)
    head = {
        **_HEAD,
        'action_dim': 32,
        'action_horizon': rows,
        'max_state_dim': 64,
        'num_inference_timesteps': 4,
        'num_target_vision_tokens': 8,
        'diffusion_model_cfg': {**_DIT, 'cross_attention_dim': 48},
        'vl_self_attention_cfg': {
            'num_layers': 1,
            'num_attention_heads': 4,
            'attention_head_dim': 12,
            'dropout': 0.2,
            'final_dropout': True,
            'positional_embeddings': None,
        },
    }
    return library.GR00T_N1_5_Config(
        backbone_cfg={'select_layer': 3, 'project_to_dim': None, 'use_flash_attention': True},
        action_head_cfg=head,
        action_horizon=rows,
        action_dim=32,
    )
