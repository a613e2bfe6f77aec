"""The loss of packed rows: summed cross-entropy at labelled places only.

The trainer divides the sum by the labelled tokens of the whole global batch, so that the result
does not depend on how a batch is cut into ranks and micro-batches. Hidden states are projected
to the vocabulary only where there is a label. Shapes: T tokens, N labels, D hidden size.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.distributed import attention
from tasks.distributed.batches import Batch
from tasks.distributed.cross_entropy import head_loss


class PackedLoss(nn.Module):
    """A causal language model whose forward pass is its summed loss, so that DDP can wrap it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.compiled = False
        """Its layers are, for training only: held-out rows have as many shapes as there are rows."""
        model.set_attn_implementation(attention.NAME)
        config = model.config
        self._scale = float(getattr(config, "logit_scale", 1.0)) / float(getattr(config, "logits_scaling", 1.0))
        self._cap = getattr(config, "final_logit_softcapping", None)

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the cross-entropy in nats over the batch's labels (a scalar, fp32)."""
        if self.compiled:
            torch._dynamo.maybe_mark_dynamic(batch.bounds_S1, 0)
        eager = self.compiled and not self.training
        with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext():
            hidden_TD: Tensor = self.model.base_model(
                input_ids=batch.ids_T.unsqueeze(0), position_ids=batch.positions_T.unsqueeze(0), use_cache=False,
                cu_seq_lens_q=batch.bounds_S1, cu_seq_lens_k=batch.bounds_S1,
                max_length_q=batch.longest, max_length_k=batch.longest,
            ).last_hidden_state[0]
        head = self.model.get_output_embeddings()
        if len(batch.labels_N) == 0:  # every weight still takes part: DDP's collectives must match on all ranks
            return head_loss(head, hidden_TD[:1], batch.ids_T[:1], self._scale, self._cap) * 0.0
        return head_loss(head, hidden_TD[batch.predicts_N], batch.labels_N, self._scale, self._cap)
