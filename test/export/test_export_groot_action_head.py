# SPDX-License-Identifier: Apache-2.0
"""GR00T's action head as stages, against the library's own head with the same noise; the classes are the library's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_policy_ros.bundle.loop_steps import loop_steps
from vla_policy_ros.bundle.manifest import FlowMatching
from vla_policy_ros.export.groot.action_head import ActionHead, loop_settings, plan_action_head
from vla_policy_ros.export.groot.backbone import TokenLayout
from vla_policy_ros.export.traced_policy import random_values
from vla_policy_ros.export.tracing import TracedStage, quiet_library, trace

torch = pytest.importorskip('torch', exc_type=ImportError)
pytest.importorskip('onnxscript')
pytest.importorskip('diffusers')
pytest.importorskip('tree')

_LAYOUT = TokenLayout((False, True, True, True, False, True, True, False), num_words=6)
_MASK = np.array([[1, 1, 1, 1, 0, 0]], np.int64)
_SIZES = {
    'action_horizon': 5,
    'hidden_size': 24,
    'input_embedding_dim': 32,
    'backbone_embedding_dim': 40,
    'max_state_dim': 9,
    'num_inference_timesteps': 3,
    'max_num_embodiments': 4,
    'max_seq_len': 64,
}
_LAYERS = {
    'num_layers': 5,
    'num_attention_heads': 4,
    'attention_head_dim': 8,
    'output_dim': 24,
    'norm_type': 'ada_norm',
    'interleave_self_attention': True,
    'positional_embeddings': None,
}
_CONTEXT_LAYERS = {
    'num_layers': 2,
    'num_attention_heads': 5,
    'attention_head_dim': 8,
    'positional_embeddings': None,
}
_ID, _HISTORY = 2, 2


def _n15() -> Any:
    module = pytest.importorskip('lerobot.policies.groot.action_head.flow_matching_action_head')
    settings = {
        **_SIZES,
        'action_dim': 7,
        'num_target_vision_tokens': 3,
        'diffusion_model_cfg': {**_LAYERS, 'cross_attention_dim': 40},
        'vl_self_attention_cfg': _CONTEXT_LAYERS,
        'use_vlln': True,
        'add_pos_embed': True,
    }
    return module.FlowmatchingActionHead(module.FlowmatchingActionHeadConfig(**settings))


def _n17(**changes: Any) -> Any:
    settings = {
        **_SIZES,
        'max_action_dim': 7,
        'state_history_length': _HISTORY,
        'diffusion_model_cfg': dict(_LAYERS),
        'vl_self_attention_cfg': dict(_CONTEXT_LAYERS),
        **changes,
    }
    try:
        from gr00t.configs.model.gr00t_n1d7 import Gr00tN1d7Config
        from gr00t.model.gr00t_n1d7.gr00t_n1d7 import Gr00tN1d7ActionHead
    except ImportError:
        port = pytest.importorskip('lerobot.policies.groot.groot_n1_7')
        return port.GR00TN17ActionHead(port.GR00TN17Config(**settings))
    return Gr00tN1d7ActionHead(Gr00tN1d7Config(**settings))


def _n16() -> Any:
    pytest.importorskip('gr00t.model.gr00t_n1d6.gr00t_n1d6')
    from gr00t.configs.model.gr00t_n1d6 import Gr00tN1d6Config
    from gr00t.model.gr00t_n1d6.gr00t_n1d6 import Gr00tN1d6ActionHead

    settings = {**_SIZES, 'max_action_dim': 7, 'diffusion_model_cfg': dict(_LAYERS)}
    return Gr00tN1d6ActionHead(Gr00tN1d6Config(**settings))


def _plain_n17() -> Any:
    return _n17(use_alternate_vl_dit=False, vl_self_attention_cfg=None, add_pos_embed=False)


_HEADS: dict[str, Callable[[], Any]] = {
    'n1.5': _n15,
    'n1.6': _n16,
    'n1.7': _n17,
    'n1.7 plain': _plain_n17,
}


@pytest.fixture(params=_HEADS)
def head(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    with quiet_library():
        made = _HEADS[request.param]().float().eval()
    for weight in made.parameters():  # biases and the tables of embodiments begin as zeros
        weight.data = 0.2 * torch.randn_like(weight)
    return made


@pytest.fixture
def context() -> np.ndarray:
    return random_values((1, len(_LAYOUT.images) + _LAYOUT.num_words, 40))


@pytest.fixture
def state() -> np.ndarray:
    return random_values((1, _HISTORY, 9))


def _run_library(
    head: Any, context: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return noise and actions of the library, which is given no padding."""
    from transformers.feature_extraction_utils import BatchFeature

    known = _LAYOUT.known(torch.from_numpy(_MASK))[0]
    features = torch.from_numpy(context)[:, known]
    backbone = BatchFeature(
        {
            'backbone_features': features,
            'backbone_attention_mask': torch.ones(features.shape[:2], dtype=torch.bool),
            'image_mask': _LAYOUT.pictured()[:, known],
        }
    )
    inputs = BatchFeature({'state': torch.from_numpy(state), 'embodiment_id': torch.tensor([_ID])})
    torch.manual_seed(3)
    with torch.no_grad():
        actions = head.get_action(backbone, inputs)['action_pred']
    torch.manual_seed(3)
    return torch.randn((1, head.action_horizon, head.action_dim)).numpy(), actions.numpy()


def _plan(
    head: Any, context: np.ndarray, state: np.ndarray, *, rows: int = 5
) -> tuple[TracedStage, ...]:
    return plan_action_head(
        head, _LAYOUT, context, token_mask=_MASK, state=state, embodiment_id=_ID, rows=rows
    )


def _run_stages(
    run: Callable[[TracedStage, dict[str, np.ndarray]], np.ndarray],
    stages: tuple[TracedStage, ...],
    pool: dict[str, np.ndarray],
    steps: int,
) -> np.ndarray:
    """Run stages as the runtime does, without its engines."""
    settings = FlowMatching(**{**loop_settings_of(steps), 'steps': steps})
    for stage in (stage for stage in stages if not stage.in_loop and stage.name != 'chunk'):
        pool[stage.output] = run(stage, pool)
    (velocity,) = (stage for stage in stages if stage.in_loop)
    for step in loop_steps(settings):
        pool['timestep'] = np.array([step.timestep], np.float32)
        pool['sample'] = pool['sample'] * np.float32(step.to_x) + np.float32(step.to_p) * run(
            velocity, pool
        )
    return pool['sample']


def loop_settings_of(steps: int) -> dict[str, Any]:
    class Head:
        num_inference_timesteps = steps

    return dict(loop_settings(Head()))


def _run_torch(stage: TracedStage, pool: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = stage.function(
            *(torch.from_numpy(pool[name]) for name in stage.inputs)
        ).numpy()
    return result


def test_the_stages_compute_what_the_library_computes(
    head: Any, context: np.ndarray, state: np.ndarray
) -> None:
    noise, wanted = _run_library(head, context, state)
    pool = {'context': context, 'token_mask': _MASK, 'state': state, 'sample': noise}
    actions = _run_stages(_run_torch, _plan(head, context, state), pool, 3)
    np.testing.assert_allclose(actions, wanted, atol=2e-5)
    assert np.abs(wanted - noise).max() > 0.1  # the network moves the sample


def test_the_networks_on_onnx_runtime_compute_the_same(
    head: Any, context: np.ndarray, state: np.ndarray, tmp_path: Path
) -> None:
    runtime = pytest.importorskip('onnxruntime')
    stages = _plan(head, context, state, rows=3)
    sessions = {
        stage.name: runtime.InferenceSession(
            trace(stage, tmp_path), providers=['CPUExecutionProvider']
        )
        for stage in stages
    }

    def run(stage: TracedStage, pool: dict[str, np.ndarray]) -> np.ndarray:
        feeds = {name: pool[name] for name in stage.inputs}
        return sessions[stage.name].run([stage.output], feeds)[0]

    noise, wanted = _run_library(head, context, state)
    pool = {'context': context, 'token_mask': _MASK, 'state': state, 'sample': noise}
    actions = _run_stages(run, stages, pool, 3)
    np.testing.assert_allclose(actions, wanted, atol=2e-5)
    np.testing.assert_array_equal(run(stages[-1], pool), actions[:, :3])


def test_padding_changes_nothing(head: Any, context: np.ndarray, state: np.ndarray) -> None:
    noise, _ = _run_library(head, context, state)
    results = []
    for padding in (0.0, 7.0):
        changed = context.copy()
        changed[:, -2:] = padding
        pool = {'context': changed, 'token_mask': _MASK, 'state': state, 'sample': noise}
        results.append(_run_stages(_run_torch, _plan(head, context, state), pool, 3))
    np.testing.assert_array_equal(*results)


def test_only_the_weights_of_one_embodiment_and_of_no_time_are_kept(
    head: Any, context: np.ndarray, state: np.ndarray
) -> None:
    network = ActionHead(head, _LAYOUT, _ID)
    kept = sum(weight.numel() for weight in network.velocity_modules().parameters())
    blocks = sum(
        weight.numel()
        for name, weight in head.model.transformer_blocks.named_parameters()
        if 'norm1' not in name
    )
    outside = sum(
        weight.numel()
        for cross in network._cross.values()
        for projection in (cross.layer.attn1.to_k, cross.layer.attn1.to_v)
        for weight in projection.parameters()
    )
    one = 7 * 32 + 32 + 32 * 32 + 32 * 32 + 32 + 24 * 24 + 24 + 24 * 7 + 7
    output = sum(weight.numel() for weight in head.model.proj_out_2.parameters())
    assert kept == blocks - outside + output + one
