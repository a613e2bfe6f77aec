"""Tiny random models of the causal language models in transformers: pytest tests/tasks/distributed/test_families.py

A family's own configuration class, with its own defaults, made small: whatever is a width, a count of layers, heads,
experts or tokens. A window is shorter than a segment of the preflight, so that a family whose windows are lost fails.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tasks.distributed.weight_check import auto_class

NO_DECODERS = frozenset({
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot", "blenderbot-small", "camembert",
    "data2vec-text", "electra", "ernie", "git", "marian", "mbart", "megatron-bert", "moshi", "musicgen",
    "musicgen_melody", "mvp", "pegasus", "plbart", "prophetnet", "rembert", "roberta", "roberta-prelayernorm",
    "roc_bert", "roformer", "trocr", "whisper", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "reformer",
    "moss_transcribe_diarize", "gemma4_assistant", "gemma4_unified_assistant", "cpmant"})
"""Decoders of encoder-decoders, of speech and of pictures, masked models: nobody fine-tunes them on text to go on."""
WRAPPERS = (
    "aria", "aya_vision", "cohere2_vision", "deepseek_vl", "glm4v", "glm4v_moe", "idefics3", "internvl", "lfm2_vl",
    "llava", "llava_next", "llava_onevision", "minimax_m3_vl", "mistral3", "mistral4", "paligemma", "qwen2_5_vl",
    "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "smolvlm")
"""Models that take pictures too and that transformers does not count among causal language models; their text part is
trained."""
FAMILIES = tuple(sorted([*(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in NO_DECODERS), *WRAPPERS]))
VOCABULARY = 128
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "n_embd": 64, "d_model": 64, "dim": 64, "embedding_size": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_attention_heads": 4, "n_head": 4,
    "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 96,
    "n_inner": 96, "ffn_dim": 96, "ffn_hidden_size": 96, "moe_intermediate_size": 32, "intermediate_size_mlp": 96,
    "shared_expert_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "word_embed_proj_dim": 64,
    "shared_intermediate_size": 32, "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64, "n_ctx": 64,
    "num_expert_group": 1, "num_experts_per_token": 2, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2,
    "moe_top_k": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_shared_experts": 1,
    "n_shared_experts": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "qk_head_dim": 16, "v_head_dim": 8, "sliding_window": 5, "attention_window_size": 5, "window_size": 5,
    "rotary_dim": 8, "num_nextn_predict_layers": 0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "state_size": 8, "ssm_state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_num_heads": 4,
    "mamba_d_head": 32, "mamba_head_dim": 32, "mamba_n_groups": 1, "n_groups": 1, "mamba_d_ssm": 128,
    "mamba_dt_rank": 8, "time_step_rank": 8, "n_mamba_heads": 2, "mamba_headdim": 32, "mamba_ngroups": 1,
    "chunk_size": 8, "mamba_chunk_size": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "lru_width": 64, "attention_hidden_size": 64,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 8,
    "num_kv_shared_layers": 0, "global_head_dim": 16, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 4,
    "attention_chunk_size": 8, "num_mem_blocks": 1, "adapter_rank": 8, "block_size": 8, "expert_ffn_hidden_size": 32}
NOT_BUILT = {
    "gemma3n": "its configuration needs the library timm",
    "blt": "it reads bytes in patches, and has no embedding of tokens",
    "cohere_compass_text": "no small configuration of it is known here",
    **dict.fromkeys(("bailing_hybrid", "dots3_note", "mistral4", "qwen4_exp", "qwen4_exp_text", "zamba", "zamba2"),
                    "no small configuration of it is known here"),
    "gemma3n_text": "the gradient of its random weights is no number"}
"""Families without a tiny model, and why."""
FROM_LAYERS = ("model_type", "transformers_version", "architectures", "dtype",
               "mlp_layer_types", "layers_block_type", "no_rope_layers", "hybrid_override_pattern",
               "attention_types", "block_types")
"""Made anew by the configuration class for so many layers."""
LATENT = {"num_key_value_heads": 4, "head_dim": 8}
MROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]}, "falcon": {"num_kv_heads": 1}, "ctrl": {"dff": 96},
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
                     "longcat_flash", "minicpm3", "youtu", "kimi_linear", "dots3_note_text"), LATENT),
    "deepseek_v2": {**LATENT, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]}, "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 32},
    **dict.fromkeys(("qwen2_5_vl_text", "qwen2_vl_text", "glm4v_text"), MROPE),
    "glm4v_moe_text": {"rope_parameters": {**MROPE["rope_parameters"], "mrope_section": [1, 1, 2],
                                           "partial_rotary_factor": 0.5}},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2, "mamba_headdim": 64,
               "n_mamba_heads": 2},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
             "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
}


def tiny_config(name: str) -> PreTrainedConfig:
    """The configuration of a family, made small."""
    default = AutoConfig.for_model(name)
    return type(default)(**_small(default, OWN.get(name, {})))


def tiny(name: str) -> PreTrainedModel:
    """A random model of a family, in fp32; its norms, biases and sinks are no ones and zeros either."""
    config = tiny_config(name)
    model: PreTrainedModel = auto_class(config).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
            else:
                weight.mul_(2.0)
    return model.eval()


def _small(config: PreTrainedConfig, own: dict[str, Any]) -> dict[str, Any]:
    """The fields of a small configuration of the same class."""
    values: dict[str, Any] = {}
    if kinds := list(dict.fromkeys(config.to_dict().get("layer_types") or ())):
        values = {"num_hidden_layers": max(2, len(kinds)), "layer_types": kinds if len(kinds) > 1 else kinds * 2}
    for name, value in config.to_dict().items():
        if name in FROM_LAYERS or name in values:
            continue
        if name in config.sub_configs and isinstance(inner := getattr(config, name), PreTrainedConfig):
            values[name] = {**_small(inner, OWN.get(inner.model_type, {})), "model_type": inner.model_type}
        elif name in SMALL and (value is not None or name in ("num_key_value_heads", "head_dim")):
            values[name] = SMALL[name]
    return {**values, **own}
