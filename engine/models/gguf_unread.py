"""GGUF keys of a model's architecture that its config does not read: they are refused where they change the result.

A key that is zero, false or empty stands for a part that the model does not have. A key that llama.cpp does not have is
a note of whoever made the file.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

from gguf import Keys as LlamaCppKeys

from engine.errors import ModelError

if TYPE_CHECKING:
    from engine.models.config import ModelConfig
    from engine.models.config_keys import Keys

_log = logging.getLogger(__name__)
_WITHOUT_EFFECT = {
    "attention.layer_norm_epsilon",  # of norms that these models do not have
    "pooling_type",  # requests and --pooling say how embeddings are pooled
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",  # read if positions are scaled, as are the next ones
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "embedding_scale": (1, 0),
    "hidden_activation": ("silu",),
    "logit_scale": (1, 0),
    "residual_scale": (1, 0),
    "rope.scale_linear": (1, 0),
    "rope.scaling.attn_factor": (1, 0),
    "rope.scaling.factor": (1, 0),
    "rope.scaling.type": ("none",),
    "rope.scaling.yarn_attn_factor": (1, 0),
    "rope.scaling.yarn_ext_factor": (1, -1),  # the latter is llama.cpp's word for the default
}


def refuse_unread(keys: Keys, config: ModelConfig) -> None:
    """Check the keys of the architecture that `keys` was not asked for.

    Raises:
        ModelError: naming a key that contradicts the config, or that may change what the model computes.
    """
    harmless, known = _NEUTRAL | _derived(config), _names_of(LlamaCppKeys)
    for name in sorted(keys.unread()):
        value = keys.get(name, None)
        if name in harmless:
            if value not in harmless[name] or isinstance(value, bool) != isinstance(harmless[name][0], bool):
                keys.refuse(name, value, " or ".join(map(repr, dict.fromkeys(harmless[name]))))
        elif name == "attention.sliding_window" and isinstance(value, int) and value >= config.max_position_embeddings:
            continue
        elif name not in known:
            _log.warning("%s of the GGUF file is not a key of llama.cpp; it is ignored", keys.full_name(name))
        elif name not in _WITHOUT_EFFECT and value:
            raise ModelError(
                f"{keys.full_name(name)} of the GGUF file is {value!r:.200}; this key is not read here and may change "
                "what the model computes (gguf-new-metadata --remove-metadata makes a copy without a key)"
            )


def _names_of(group: type) -> set[str]:
    """The keys of every architecture that this class and those within it list as "{arch}.name"."""
    names: set[str] = set()
    for value in vars(group).values():
        if inspect.isclass(value):
            names |= _names_of(value)
        elif isinstance(value, str) and value.startswith("{arch}."):
            names.add(value.removeprefix("{arch}."))
    return names


def _derived(config: ModelConfig) -> dict[str, tuple[Any, ...]]:
    """Values of keys that say again what other keys said."""
    if (mla := config.mla) is None:
        return {"attention.value_length": (config.head_dim,), "rope.dimension_count": (config.head_dim,)}
    return {  # a file either describes a head, or the cached latent as the one head of keys and values
        "attention.key_length": (mla.kv_lora_rank + mla.qk_rope_head_dim,),
        "attention.value_length": (mla.kv_lora_rank,),
        "attention.head_count_kv": (1, config.num_attention_heads),
    }
