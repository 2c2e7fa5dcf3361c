"""Small models of transformers' architectures: their own configurations with small sizes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

CAUSAL, VISION = "causal", "vision-language"

SIZES: Mapping[str, int] = {
    size: value
    for value, names in {
        0: "num_kv_shared_layers",
        2: "num_hidden_layers n_layer n_layers num_layers depth encoder_layers decoder_layers "
        "num_decoder_layers num_encoder_layers num_key_value_heads n_kv_heads num_kv_heads "
        "num_experts_per_tok top_k num_selected_experts num_experts_per_token moe_topk moe_k "
        "num_experts_per_tok top_k_experts linear_num_key_heads num_query_groups "
        "num_global_key_value_heads swa_num_key_value_heads",
        1: "n_group topk_group num_nextn_predict_layers num_mtp_layers first_k_dense_replace "
        "n_shared_experts num_shared_experts interleave_moe_layer_step "
        "mamba_n_groups n_groups decoder_sparse_step temporal_patch_size spatial_merge_size "
        "num_zero_experts zero_expert_num",
        4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
        "decoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts "
        "linear_num_value_heads mamba_num_heads mamba_n_heads num_mamba_heads index_n_heads "
        "swa_num_attention_heads",
        16: "head_dim kv_channels attention_head_dim linear_key_head_dim linear_value_head_dim "
        "qk_rope_head_dim v_head_dim qk_nope_head_dim global_head_dim "
        "swa_head_dim ssm_state_size mamba_d_state hidden_size_per_layer_input patch_size "
        "index_topk rotary_dim",
        32: "mamba_head_dim mamba_d_head q_lora_rank kv_lora_rank index_head_dim image_size "
        "o_lora_rank",
        48: "moe_intermediate_size expert_ffn_hidden_size moe_shared_expert_intermediate_size "
        "shared_expert_intermediate_size shared_intermediate_size moe_ffn_hidden_size "
        "expert_intermediate_size ffn_hidden_size_expert",
        64: "hidden_size d_model n_embd dim embed_dim embedding_size word_embed_proj_dim "
        "out_hidden_size projection_dim lru_width mamba_expand_dim vision_hidden_size",
        96: "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size encoder_ffn_dim "
        "decoder_ffn_dim dense_intermediate_size intermediate_size_mlp mlp_dim ffn_size "
        "dff d_inner block_ff_dim",
        128: "vocab_size max_position_embeddings n_positions vocab_size_per_layer_input "
        "max_sequence_length seq_length mamba_d_ssm",
    }.items()
    for size in names.split()
}
"""A configuration's sizes, by the names that transformers gives them."""

WEIGHT_STD = 0.1
"""The standard deviation of the weights, as far as a configuration has one."""

MOST_PARAMETERS = 20_000_000
"""A model with more is not made: its configuration has sizes of other names."""

NEEDED = "num_experts_per_tok", "head_dim", "num_key_value_heads"
"""Sizes that are set even where a configuration has None."""

ROPE, MROPE = ("rope_parameters", "rope_scaling"), "mrope_section"

MOST_LAYERS = 8

TOKENS = "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"
SUB_CONFIGURATIONS = 3
"""How deep configurations within configurations are shrunk."""


class Kind(NamedTuple):
    """A model type of transformers and the task whose class is made."""

    model_type: str
    task: str


class NotMade(Exception):
    """The small model of an architecture cannot be made, for reasons of its configuration."""


def kinds() -> Iterator[Kind]:
    """All causal language models, and the vision-language models."""
    from transformers.models.auto import modeling_auto as auto

    seen: set[object] = set()
    for task, names in (
        (CAUSAL, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (VISION, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    ):
        for model_type, name in sorted(names.items()):
            if str((model_type, name)) not in seen:
                seen.add(str((model_type, name)))
                yield Kind(model_type, task)


def configuration(kind: Kind) -> Any:
    """The architecture's own configuration, with small sizes."""
    from transformers import CONFIG_MAPPING

    return _shrunk(CONFIG_MAPPING[kind.model_type], SUB_CONFIGURATIONS)


def _shrunk(kind: type, depth: int) -> Any:
    defaults = kind()
    changes: dict[str, Any] = {}
    for name, value in vars(defaults).items():
        is_size = isinstance(value, int) and not isinstance(value, bool)
        if name in SIZES and (is_size or value is None and name in NEEDED):
            changes[name] = SIZES[name]
        elif name in ("initializer_range", "init_std", "initializer_std"):
            changes[name] = WEIGHT_STD
        elif name in TOKENS and value is not None:
            changes[name] = 0
        elif hasattr(value, "model_type") and depth:
            changes[name] = _shrunk(type(value), depth - 1).to_dict()
        elif name in ROPE and isinstance(value, dict):
            share = value.get("partial_rotary_factor", 1)
            changes[name] = value | {MROPE: _sections(int(SIZES["head_dim"] * share) // 2)}
    if "kv_lora_rank" in changes and "num_attention_heads" in changes:  # latent attention
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    kinds = getattr(defaults, "layer_types", None)
    if kinds and "num_hidden_layers" in changes:
        first = max(kinds.index(each) for each in set(kinds)) + 1
        if first <= MOST_LAYERS:  # so that there is a layer of each kind
            changes["num_hidden_layers"] = max(first, changes["num_hidden_layers"])
    return kind(**changes)


def _sections(pairs: int) -> list[int]:
    """How many pairs of a head's elements turn with time, height and width."""
    return [pairs - 2 * (pairs // 4), pairs // 4, pairs // 4]


def made(kind: Kind) -> Any:
    """A small model with random weights in bfloat16.

    Raises:
        NotMade: it cannot be made, or is not small.
    """
    import transformers
    from accelerate import init_empty_weights

    auto = {
        CAUSAL: transformers.AutoModelForCausalLM,
        VISION: transformers.AutoModelForImageTextToText,
    }[kind.task]
    torch.manual_seed(0)
    try:
        config = configuration(kind)
        with init_empty_weights():
            count = sum(p.numel() for p in auto.from_config(config).parameters())
    except Exception as error:
        raise NotMade(_line(error)) from error
    if count > MOST_PARAMETERS:
        raise NotMade(f"{count / 1e6:.0f} million parameters with the sizes that are known here")
    try:
        return auto.from_config(config, dtype=torch.bfloat16).eval()
    except Exception as error:
        raise NotMade(_line(error)) from error


def _line(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:150]}"
