"""What is tried on the model itself before the first step.

Packed examples can reach each other without a word: a cache left on, an attention mask, a layer that
mixes places by other means than attention. The probe changes the first of two segments and looks at
the second.
"""

from __future__ import annotations

import torch

from infra.errors import BaseModelError
from tasks.distributed.build import Built
from tasks.distributed.data import Batch

SEGMENT_TOKENS = 8


def check_isolation(built: Built) -> None:
    """Raises BaseModelError if a change in one segment moves the hidden states of another."""
    vocabulary = built.causal.config.get_text_config().vocab_size
    ids_T = torch.arange(2 * SEGMENT_TOKENS) % vocabulary
    other_T = ids_T.clone()
    other_T[:SEGMENT_TOKENS] = (other_T[:SEGMENT_TOKENS] + vocabulary // 2) % vocabulary
    read, learned = slice(0, SEGMENT_TOKENS), slice(SEGMENT_TOKENS, None)
    if torch.equal(_loss(built, ids_T, read), _loss(built, other_T, read)):
        raise BaseModelError("its answers do not depend on what it reads", where="base model",
                             fix="Check that its weights are complete.")
    if not torch.equal(_loss(built, ids_T, learned), _loss(built, other_T, learned)):
        raise BaseModelError(
            "examples in one row reach each other: a change in the first moved the second", where="base model",
            allowed="a model that mixes tokens by attention only",
            fix="Choose a base of another family, such as Llama, Mistral or Qwen.")


def _loss(built: Built, ids_T: torch.Tensor, segment: slice) -> torch.Tensor:
    """Summed loss of one of the two segments, against a fixed label at every place."""
    places = torch.arange(2 * SEGMENT_TOKENS)
    bounds = torch.tensor([0, SEGMENT_TOKENS, 2 * SEGMENT_TOKENS], dtype=torch.int32)
    batch = Batch(ids_T, places % SEGMENT_TOKENS, bounds, SEGMENT_TOKENS, places[segment],
                  torch.zeros(SEGMENT_TOKENS, dtype=torch.int64))
    built.loss.eval()
    with torch.no_grad(), built.precision():
        value: torch.Tensor = built.loss(batch.to(built.device))
    built.loss.train()
    return value
