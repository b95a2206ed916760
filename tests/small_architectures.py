"""Tiny random models of every decoder-only architecture that transformers has, from its configs.

A config's defaults are shrunk field by field: what counts layers, heads, experts, widths and
words gets a small number, a list with an entry a layer keeps one layer of every kind. What that
rule gets wrong for one architecture is put right in OVERRIDES.
"""

from __future__ import annotations

import warnings
from typing import Any

import tiny
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    AutoModelForCausalLM,
)
from transformers.utils import logging

LAYERS = 3
MAX_KINDS = 4  # of layers that a hybrid keeps
MAX_PARAMETERS = 3_000_000
SPREAD = 0.2  # standard deviation of the weights

SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim"), 32),
    **dict.fromkeys(("attention_hidden_size", "lru_width", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("decoder_layers", "num_blocks"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_query_groups"), 2),
    **dict.fromkeys(("swa_num_attention_heads", "index_n_heads"), 4),
    **dict.fromkeys(("swa_num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "global_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "dim_head", "attention_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "dim_ff", "dff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("shared_intermediate_size", "ffn_hidden_size", "intermediate_size_mlp"), 24),
    **dict.fromkeys(("dense_intermediate_size", "block_ff_dim", "conv_dim", "d_inner"), 48),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("moe_num_experts", "zero_expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "gated_norm_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    "qk_head_dim": 16,
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank", "router_hidden_size"), 8),
    "mamba_d_ssm": 64,
}
WINDOW = dict.fromkeys(
    (
        "sliding_window",
        "attention_chunk_size",
        "attention_window_size",
        "local_attention",
        "window_size",
    ),
    16,
)
POSITIONS = dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128)
WORDS = dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), len(tiny.VOCABULARY))
DEFAULTS = {**SIZES, **WINDOW, **POSITIONS, **WORDS}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_blocks",
    "decoder_layers",
)
LEFT_OUT = (
    "architectures",
    "transformers_version",
    "dtype",
    "model_type",
    "id2label",
    "label2id",
    "_name_or_path",
)
ENCODERS = """bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert
    rembert roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xmod xlnet
    reformer""".split()
HALVES = """bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart
    prophetnet trocr whisper""".split()
WITH_SENSES = """git moshi musicgen musicgen_melody gemma3 gemma3n gemma4 gemma4_assistant
    gemma4_unified gemma4_unified_assistant got_ocr2 moss_transcribe_diarize emu3 fuyu dots3_note
    phi4_multimodal llama4 qwen3_5 qwen3_5_moe qwen4_exp""".split()
NOT_DECODERS: dict[str, str] = {
    **dict.fromkeys(ENCODERS, "an encoder"),
    **dict.fromkeys(HALVES, "the decoder of an encoder-decoder"),
    **dict.fromkeys(WITH_SENSES, "reads images or sound, or assists such a model"),
}

HYBRID = ["linear_attention", "full_attention", "linear_attention"]
LINEAR = {"linear_head_dim": 8, "linear_num_heads": 4}
EXPERTS = {"num_expert_group": 1, "topk_group": 1, "num_experts_per_token": 2}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {**LINEAR, **EXPERTS},
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 3,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 24,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"per_layer_config": {}},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 16, "lm_head_multiplier": 0.5},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        "per_layer_config": {},
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_unified_text": {"per_layer_config": {}},
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5},
    "granitemoehybrid": {"layer_types": HYBRID, "logits_scaling": 4.0},
    "hrm_text": {"num_hidden_layers": 24, "num_layers_per_stack": 3},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hyperclovax": {"logits_scaling": 4.0},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1},
    "kimi_linear": {**LINEAR, **EXPERTS},
    "lfm2": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "full_attn_idxs": [1],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "longcat_flash": {"num_layers": 2, "num_key_value_heads": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "xlstm": {"qk_dim_factor": 1.0, "hidden_size": 64, "embedding_dim": 64},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "num_hidden_layers": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "kv_channels": 8,
        "num_query_groups": 4,
    },
}

# Other shapes that one architecture comes in, by name: its model type, and what is different.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt (projections)": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon (ALiBi)": ("falcon", {"alibi": True, "parallel_attn": False}),
}


class NotBuilt(Exception):
    """A tiny model of an architecture that could not be made; the message says why."""


def decoders() -> list[str]:
    """Model types of every decoder-only architecture, one a model class."""
    found: dict[str, str] = {}
    for model_type, class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        if model_type not in NOT_DECODERS:
            found.setdefault(class_name, model_type)
    return list(found.values())


def build(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model, the same every time.

    Raises: NotBuilt with the reason.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            made = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=torch.float32)
            _spread(made)
            if sum(each.numel() for each in made.parameters()) > MAX_PARAMETERS:
                raise NotBuilt("its sizes are not those of the fields known to be sizes")
            made.eval()(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False)
            made.generation_config.eos_token_id = 2
    except NotBuilt:
        raise
    except Exception as error:  # whatever a config or a class of transformers raises
        raise NotBuilt(f"{type(error).__name__}: {_first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    return made


def tiny_config(model_type: str) -> PreTrainedConfig:
    """An architecture's default config, shrunk."""
    name, different = VARIANTS.get(model_type, (model_type, {}))
    kind = CONFIG_MAPPING[name]
    with_sizes = _shrunk(kind().to_dict(), {**OVERRIDES.get(name, {}), **different})
    if "kv_lora_rank" in with_sizes:  # every head has keys of its own
        with_sizes["num_key_value_heads"] = with_sizes["num_attention_heads"]
    return kind(**with_sizes)


def _shrunk(entries: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Config entries with small sizes, one layer of every kind."""
    layers = next((entries[name] for name in LAYER_COUNTS if entries.get(name)), None)
    lists = {
        name: value
        for name, value in entries.items()
        if isinstance(value, list) and len(value) == layers
    }
    kept = _one_of_every_kind(lists)
    small: dict[str, Any] = {}
    for name, value in entries.items():
        if name in lists:
            small[name] = [value[place] for place in kept]
        elif name in TOKENS and value is not None:
            small[name] = TOKENS[name]
        elif name in LAYER_COUNTS and value:
            small[name] = len(kept) if lists else LAYERS
        elif isinstance(value, dict) and name.endswith("_config"):
            small[name] = _shrunk(value, {})
        elif name in DEFAULTS and isinstance(value, int) and value > DEFAULTS[name]:
            small[name] = DEFAULTS[name]
        elif name not in LEFT_OUT:
            small[name] = value
    return {**small, **overrides}


def _one_of_every_kind(lists: dict[str, list[Any]]) -> list[int]:
    """Places of layers that show every kind there is, at least LAYERS of them."""
    kinds = list(zip(*lists.values(), strict=True))
    first = list(dict.fromkeys(kinds.index(kind) for kind in kinds))[:MAX_KINDS]
    spare = [place for place in range(len(kinds)) if place not in first]
    return sorted([*first, *spare[: max(0, LAYERS - len(first))]])


def _spread(made: PreTrainedModel) -> None:
    """Larger random weights: those of the configs leave every prediction nearly uniform."""
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() == 2 and not name.endswith(("A_log", "dt_bias")):
                weight.normal_(0.0, SPREAD)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
