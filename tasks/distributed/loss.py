"""The loss of packed rows: summed cross-entropy at labelled places only.

The trainer divides the sum by the labelled tokens of the whole global batch, so that the result
does not depend on how a batch is cut into ranks and micro-batches. Hidden states are projected
to the vocabulary only where there is a label, in chunks, in fp32. Shapes: N labels, D hidden
size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tasks.distributed import attention
from tasks.distributed.data import Batch

CHUNK_LOGITS = 1 << 26
"""Largest number of logits held at a time: 256 MiB in fp32."""


class PackedLoss(nn.Module):
    """A causal language model whose forward pass is its summed loss, so that DDP can wrap it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        model.set_attn_implementation(attention.NAME)
        config = model.config
        self._scale = float(getattr(config, "logit_scale", 1.0)) / float(getattr(config, "logits_scaling", 1.0))
        self._cap = getattr(config, "final_logit_softcapping", None)

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the cross-entropy in nats over the batch's labels (a scalar, fp32)."""
        hidden_TD: Tensor = self.model.base_model(
            input_ids=batch.ids_T.unsqueeze(0), position_ids=batch.positions_T.unsqueeze(0), use_cache=False,
            cu_seq_lens_q=batch.bounds_S1, cu_seq_lens_k=batch.bounds_S1,
            max_length_q=batch.longest, max_length_k=batch.longest,
        ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        if len(batch.labels_N) == 0:  # every weight still takes part: DDP's collectives must match on all ranks
            return self._chunk(head, hidden_TD[:1], batch.ids_T[:1]) * 0.0
        size = max(1, CHUNK_LOGITS // self.model.config.get_text_config().vocab_size)
        hidden = hidden_TD[batch.predicts_N].split(size)
        labels = batch.labels_N.split(size)
        if len(labels) == 1:
            return self._chunk(head, hidden[0], labels[0])
        losses = [checkpoint(self._chunk, head, h, y, use_reentrant=False)
                  for h, y in zip(hidden, labels, strict=True)]
        return torch.stack(losses).sum()

    def _chunk(self, head: nn.Module, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
        logits_NV = head(hidden_ND).float() * self._scale
        if self._cap:
            logits_NV = torch.tanh(logits_NV / self._cap) * self._cap
        return cross_entropy(logits_NV, labels_N, reduction="sum")
