"""What is tried on the model itself before the first step.

Packed examples can reach each other without a word: a cache left on, an attention mask, a layer that
mixes places by other means than attention. The probe changes the first of two segments and looks at
the second. And a gradient is made: an operation may have no kernel that adds in one order.
"""

from __future__ import annotations

import torch

from infra.errors import BaseModelError
from tasks.distributed.batches import Batch
from tasks.distributed.build import Built
from tasks.distributed.process_group import repeatable
from tasks.distributed.weight_check import translate_loading_errors

SEGMENT_TOKENS = 8


def check_isolation(built: Built) -> None:
    """Raises BaseModelError if a change in one segment moves the hidden states of another."""
    vocabulary = built.causal.config.get_text_config().vocab_size
    ids_T = torch.arange(2 * SEGMENT_TOKENS) % vocabulary
    other_T = ids_T.clone()
    other_T[:SEGMENT_TOKENS] = (other_T[:SEGMENT_TOKENS] + vocabulary // 2) % vocabulary
    read, learned = slice(0, SEGMENT_TOKENS), slice(SEGMENT_TOKENS, None)
    value = _loss(built, ids_T, read)
    if not torch.isfinite(value):
        raise BaseModelError(f"its loss is {value.item()} before the first step", where="base model",
                             allowed="a number", fix="Check config.json and the weights.")
    if torch.equal(value, _loss(built, other_T, read)):
        raise BaseModelError("its answers do not depend on what it reads", where="base model",
                             fix="Check that its weights are complete.")
    if not torch.equal(_loss(built, ids_T, learned), _loss(built, other_T, learned)):
        raise BaseModelError(
            "examples in one row reach each other: a change in the first moved the second", where="base model",
            allowed="a model that mixes tokens by attention only",
            fix="Choose a base of another family, such as Llama, Mistral or Qwen.")


def unrepeatable(built: Built) -> str:
    """What keeps a step of this model from giving the same bits again, in torch's words; empty if nothing does.

    Then its operations add as they come from here on: a resumed training is right, but not equal in its last digits.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return ""
    try:
        _loss(built, torch.arange(2 * SEGMENT_TOKENS), slice(None), gradient=True).backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        repeatable(built.device, strict=False)
        return str(error).splitlines()[0]
    finally:
        built.loss.zero_grad(set_to_none=True)
    return ""


def _loss(built: Built, ids_T: torch.Tensor, segment: slice, *, gradient: bool = False) -> torch.Tensor:
    """Summed loss of one of the two segments, or of both, against a fixed label at every place."""
    places = torch.arange(2 * SEGMENT_TOKENS)
    bounds = torch.tensor([0, SEGMENT_TOKENS, 2 * SEGMENT_TOKENS], dtype=torch.int32)
    batch = Batch(ids_T, places % SEGMENT_TOKENS, bounds, SEGMENT_TOKENS, places[segment],
                  torch.zeros_like(places[segment]))
    built.loss.eval()
    fix = "Choose a base of another family, or check its config.json."
    with (translate_loading_errors("base model", "it cannot be run", fix), torch.set_grad_enabled(gradient),
          built.precision()):
        value: torch.Tensor = built.loss(batch.to(built.device))
    built.loss.train()
    return value
