"""tasks/distributed/head.py: scales and caps are those of the model's own forward pass."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from tasks.distributed.head import head_of

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1,
          "image_size": 28, "patch_size": 14}


@pytest.mark.parametrize(("config", "scale", "cap"), [
    (lambda: hf.LlamaConfig(**SIZES), 1.0, None),
    (lambda: hf.CohereConfig(**SIZES, logit_scale=0.25), 0.25, None),
    (lambda: hf.GraniteConfig(**SIZES, logits_scaling=8.0), 0.125, None),
    (lambda: hf.Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=30.0), 1.0, 30.0),
    (lambda: hf.MiniCPM3Config(**SIZES, dim_model_base=8, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8,
                               qk_nope_head_dim=8, v_head_dim=8), 0.25, None)])
def test_the_head_of_a_family_is_found_without_its_weights(config: object, scale: float, cap: float | None) -> None:
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(config())  # type: ignore[operator]
    head = head_of(model)
    assert head is not None and head.scale == pytest.approx(scale, rel=1e-5)
    assert head.cap == (None if cap is None else pytest.approx(cap))


def test_a_cap_in_the_text_part_of_a_wrapper_is_found() -> None:
    text = {**SIZES, "head_dim": 16, "final_logit_softcapping": 8.0, "layer_types": ["full_attention"]}
    config = hf.Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    with torch.device("meta"):
        head = head_of(hf.AutoModelForCausalLM.from_config(config))
    assert head is not None and head.scale == 1.0 and head.cap == pytest.approx(8.0)


def test_what_is_more_than_a_scale_and_a_cap_is_left_to_the_model() -> None:
    class Shifted(hf.LlamaForCausalLM):
        def forward(self, **options: object) -> object:
            found = super().forward(**options)
            found.logits = found.logits + torch.arange(found.logits.shape[-1])
            return found

    assert head_of(Shifted(hf.LlamaConfig(**SIZES))) is None
