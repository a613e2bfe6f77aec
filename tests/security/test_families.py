"""Models of many families load as the hub has them: pytest tests/security/test_families.py

Tiny random ones, made by transformers' own classes, with names and fields that published files have. What is said of a
family that cannot be trained here is about the family, not about its files.

Tests infra/models/weight_headers.py too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from infra.errors import BaseModelError
from infra.models.model_folder import check_objects
from infra.models.weight_headers import tensors_of
from tasks.distributed.model import load_base

Weights = dict[str, torch.Tensor]
WORDS = {"vocab_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTHS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
LLAMA = {**WIDTHS, **WORDS, "intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 64}
EXPERTS = {**LLAMA, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
OLD = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
MLLAMA = {**VISION, "attention_heads": 2, "num_hidden_layers": 2, "num_global_layers": 1, "vision_output_dim": 64,
          "intermediate_layers_indices": [0], "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]]}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
LABELS: dict[str, Any] = {
    "id2label": {str(n): f"L{n}" for n in range(5000)}, "label2id": {f"L{n}": n for n in range(5000)}}
LINEAR: dict[str, Any] = {
    "rope_parameters": None, "dtype": None, "torch_dtype": "bfloat16", "rope_theta": 500000.0,
    "rope_scaling": {"type": "linear", "factor": 2.0}, "auto_map": {"AutoModelForCausalLM": "code.Model"}}
MASK, NUMBER, WIDE = torch.ones(1, 1, 64, 64), torch.tensor(1.0), torch.ones(2, 2)
NO_CLASS = "loads as a causal language model."


class Family(NamedTuple):
    """A configuration, the class of the whole model, what published files have beside or instead, and a refusal."""

    config: Callable[[], Any]
    model: str = "AutoModelForCausalLM"
    more: Weights = {}  # noqa: RUF012  (nobody changes it)
    names: tuple[tuple[str, str], ...] = ()
    fields: dict[str, Any] = {}  # noqa: RUF012
    said: str = ""


def llama(more: Weights | None = None, **fields: Any) -> Family:
    return Family(lambda: hf.LlamaConfig(**LLAMA), more=more or {}, fields=fields)


FAMILIES = {
    "gpt2": Family(lambda: hf.GPT2Config(**OLD), names=((r"^transformer\.", ""),), fields={
        "n_ctx": 64, "n_inner": None}, more={"h.0.attn.bias": MASK, "h.1.attn.masked_bias": NUMBER}),
    "llama": llama(),
    "llama, angles": llama({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
                            "model.layers.1.self_attn.rotary_emb.cos_cached": torch.ones(64, 8)}),
    "llama, rope_scaling": llama(**LINEAR), "llama, labels": llama(**LABELS),
    "llama, second head": llama({"score.weight": torch.ones(2, 64)}),
    "llama, context -1": llama(max_position_embeddings=-1),
    "llama, context 64.0": llama(max_position_embeddings=64.0),
    "olmo, context false": Family(lambda: hf.OlmoConfig(**LLAMA), fields={"max_position_embeddings": False}),
    "phi3": Family(lambda: hf.Phi3Config(**LLAMA), fields={
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "sliding_window": 262144}),
    "qwen2, head stored": Family(lambda: hf.Qwen2Config(**LLAMA, tie_word_embeddings=True), more={
        "lm_head.weight": torch.ones(128, 64)}),
    "qwen3, mtp": Family(lambda: hf.Qwen3Config(**LLAMA, head_dim=16), more={"mtp.layers.0.x.weight": WIDE}),
    "mixtral": Family(lambda: hf.MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=2)),
    "qwen2_moe": Family(lambda: hf.Qwen2MoeConfig(**EXPERTS, shared_expert_intermediate_size=32)),
    "qwen3_moe": Family(lambda: hf.Qwen3MoeConfig(**EXPERTS, head_dim=16)),
    "doge": Family(lambda: hf.DogeConfig(**{**EXPERTS, "num_experts": 16384}, is_moe=True)),
    "deepseek_v3": Family(lambda: hf.DeepseekV3Config(
        **{**LLAMA, "num_key_value_heads": 4}, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8),
        more={"model.layers.2.eh_proj.weight": WIDE, "model.layers.2.self_attn.o_proj.weight": torch.ones(2, 2)},
        fields={"num_nextn_predict_layers": 1}),
    "falcon": Family(lambda: hf.FalconConfig(**WIDTHS)),
    "gpt_neox": Family(lambda: hf.GPTNeoXConfig(**WIDTHS, intermediate_size=96), more={
        "gpt_neox.layers.0.attention.bias": MASK, "gpt_neox.layers.0.attention.masked_bias": NUMBER,
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}),
    "opt": Family(lambda: hf.OPTConfig(**WIDTHS, ffn_dim=96, word_embed_proj_dim=32, max_position_embeddings=64)),
    "gemma3": Family(lambda: hf.Gemma3Config(
        text_config={**LLAMA, "head_dim": 16}, vision_config={**VISION, "num_hidden_layers": 2},
        mm_tokens_per_image=4, image_token_index=120, boi_token_index=121, eoi_token_index=122), names=(
            (r"^model\.language_model\.", "language_model.model."), (r"^model\.(vision_tower|multi_modal)", r"\1"))),
    "mllama": Family(lambda: hf.MllamaConfig(
        text_config={**LLAMA, **ROPE, "cross_attention_layers": [1]}, vision_config=MLLAMA),
        "MllamaForConditionalGeneration"),
    "mistral3": Family(lambda: hf.Mistral3Config(
        text_config={**LLAMA, "model_type": "mistral"},
        vision_config={**VISION, "model_type": "pixtral", "num_hidden_layers": 1, "head_dim": 16}),
        "Mistral3ForConditionalGeneration"),
    "t5": Family(lambda: hf.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
        "T5ForConditionalGeneration", said=NO_CLASS),
    "gemma2": Family(lambda: hf.Gemma2Config(**LLAMA, head_dim=16)),
    "codegen": Family(lambda: hf.CodeGenConfig(**OLD, rotary_dim=8), more={
        "transformer.h.0.attn.causal_mask": MASK}),
    "mamba": Family(lambda: hf.MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=128, state_size=8)),
}


def publish(family: Family, folder: Path) -> None:
    """Write the model as its authors would have."""
    maker = getattr(hf, family.model)
    make = maker.from_config if family.model.startswith("Auto") else maker
    make(family.config()).float().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for pattern, name in family.names:
        weights = {re.sub(pattern, name, key): weight for key, weight in weights.items()}
    save_file({**weights, **family.more}, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**json.loads((folder / "config.json").read_text()), **family.fields}
    gone = {name for name, value in family.fields.items() if value is None} - {"n_inner"}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in gone}))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_published_model_loads_or_its_family_is_refused(family: Family, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    publish(family, tmp_path)
    check_objects(tmp_path, "base")
    tensors_of(tmp_path, "base")
    if not family.said:
        model = load_base(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
        assert torch.isfinite(model(input_ids=torch.arange(3, 9)[None]).logits).all()
        return
    with pytest.raises(BaseModelError) as caught:
        load_base(tmp_path, dtype=torch.float32, device=torch.device("cpu"))
    assert str(caught.value).endswith(family.said) and not re.search("issue|lease|The model's files", str(caught.value))
