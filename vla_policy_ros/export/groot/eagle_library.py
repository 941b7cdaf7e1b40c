# SPDX-License-Identifier: Apache-2.0
"""Isaac-GR00T N1.5 and N1.6 where neither flash-attn nor a GPU is: their models are made here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from vla_policy_ros.core.errors import MissingDependencyError
from vla_policy_ros.export.groot.library import silent_library
from vla_policy_ros.export.groot.weights import left_empty
from vla_policy_ros.export.tracing import replaced, require_torch

PACKED_VISION = 'siglip2_vision_model'
"""Type of a vision network that takes images of all sizes at once, as that of N1.6."""
_PACKED_ATTENTION = 'packed_sdpa'


@contextmanager
def eagle_on_cpu(module: Any, vlm: Path | None, *, draws: bool) -> Iterator[None]:
    """Let a module of the library make its vision-language model with PyTorch's own attention.

    Args:
        module: The one that asks transformers for the model.
        vlm: Folder with the `config.json` of the model; the library's own when None.
        draws: Whether weights are drawn, of all that is made here; else they are as the memory is, for others to be loaded
            over them.

    Raises:
        MissingDependencyError: The model's own code needs what is not installed.
    """
    local, finder = _LocalEagle(module.AutoConfig, vlm, draws=draws), _NoRadio()
    emptiness = nullcontext() if draws else left_empty()
    sys.meta_path.insert(0, finder)
    try:
        with replaced(module, AutoConfig=local, AutoModel=local), silent_library(), emptiness:
            yield
    except ImportError as fault:
        raise _missing_library(fault) from fault
    finally:
        sys.meta_path.remove(finder)


class _NoRadio(MetaPathFinder, Loader):
    """Stands in for N1.5's code of a vision network that it has not: that wants flash-attn and a GPU to be imported."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.endswith('.radio_model') else None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(RADIOConfig=None, RADIOModel=None)


def _missing_library(fault: ImportError) -> MissingDependencyError:
    """Return the error of code of the vision-language model that cannot be imported."""
    return MissingDependencyError(
        'export groot',
        got=' '.join(str(fault).split())[:300],
        expected='transformers 4.51.3 and what Eagle needs (peft, lmdb, opencv) in this Python environment',
        next_step='Run the export where the policy was trained, or install the versions that Isaac-GR00T names; '
        'flash-attn is not needed.',
    )


class _LocalEagle:
    """Stands in for transformers' `AutoConfig` and `AutoModel` where the library makes its vision-language model."""

    def __init__(self, auto: Any, vlm: Path | None, *, draws: bool) -> None:
        self._auto = auto
        self._vlm = vlm
        self._draws = draws
        self._home = ''

    def from_pretrained(self, home: str, **rules: Any) -> Any:
        """Return the configuration; the code of the model is at home in the library."""
        self._home = home
        config = self._auto.from_pretrained(home, **rules)
        return type(config).from_pretrained(str(self._vlm)) if self._vlm else config

    def from_config(self, config: Any, **_: Any) -> Any:
        """Return the model with PyTorch's own initial weights; N1.6's own rules for them name a class that it lacks."""
        dynamic = importlib.import_module('transformers.dynamic_module_utils')
        modeling = importlib.import_module('transformers.modeling_utils')
        model_class = dynamic.get_class_from_dynamic_module(
            config.auto_map['AutoModel'], self._home
        )
        # The model insists on flash-attn, and transformers would look for it.
        for part in (config, config.vision_config, config.text_config):
            part.update(_attention('flash_attention_2'))
        if self._draws:
            with left_empty():
                model = model_class(config)
            _draw_weights(model)
        else:
            model = model_class(config)
        modeling.ALL_ATTENTION_FUNCTIONS.register(_PACKED_ATTENTION, _attend_packed)
        packed = config.vision_config.model_type == PACKED_VISION
        config.vision_config.update(_attention(_PACKED_ATTENTION if packed else 'sdpa'))
        config.text_config.update(_attention('sdpa'))
        return model


def _draw_weights(model: Any) -> None:
    for part in model.modules():
        for name in ('reset_parameters', '_reset_parameters'):
            if reset := getattr(part, name, None):
                reset()


def _attention(name: str) -> dict[str, Any]:
    return {'_attn_implementation_autoset': True, '_attn_implementation': name}


def _attend_packed(
    _module: Any,
    queries: Any,
    keys: Any,
    values: Any,
    _mask: Any,
    *,
    seq_len_list: Sequence[int],
    scaling: float,
    **_: Any,
) -> tuple[Any, None]:
    """Let each image of (1, heads, n, H) see itself; called as transformers calls its attention functions."""
    torch = require_torch()
    attend = torch.nn.functional.scaled_dot_product_attention
    parts = (part.split(seq_len_list, dim=2) for part in (queries, keys, values))
    seen = [attend(*part, scale=scaling) for part in zip(*parts, strict=True)]
    return torch.cat(seen, dim=2).transpose(1, 2), None
