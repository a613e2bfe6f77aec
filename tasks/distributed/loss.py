"""The loss of packed rows: summed cross-entropy at labelled places only.

The trainer divides the sum by the labelled tokens of the whole global batch, so that the result
does not depend on how a batch is cut into ranks and micro-batches. Hidden states are projected
to the vocabulary only where there is a label.
A model whose layers cannot keep segments apart (recurrent ones, or attention that is not transformers' interface) gets
one segment at a time, by its own attention. tasks/distributed/preflight.py proves the numbers and decides.
Shapes: T tokens, N labels, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tasks.distributed import attention
from tasks.distributed.batches import Batch
from tasks.distributed.cross_entropy import head_loss
from tasks.distributed.head import Head, accepted, body_of, head_of, state_of


class PackedLoss(nn.Module):
    """A causal language model whose forward pass is its summed loss, so that DDP can wrap it."""

    def __init__(self, model: PreTrainedModel, *, neftune_alpha: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self._alpha = neftune_alpha
        self.compiled = False
        """Its layers are, for training only: held-out rows have as many shapes as there are rows."""
        self.head: Head | None = head_of(model)
        """None: the model's own logits are taken, at labelled places."""
        self.packs = False
        """Whether all segments of a batch go through the model at once."""
        self._own_attention = model.get_correct_attn_implementation(None)
        if not why_alone(model):
            self.use(packs=True, head=self.head)

    def use(self, *, packs: bool, head: Head | None) -> None:
        """Choose how the loss is computed."""
        self.packs, self.head = packs, head
        self.model.set_attn_implementation(attention.NAME if packs else self._own_attention)

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the cross-entropy in nats over the batch's labels (a scalar, fp32)."""
        eager = self.compiled and not self.training
        with torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext(), self._noise(batch):
            return self._packed(batch) if self.packs else self._alone(batch)

    def _packed(self, batch: Batch) -> Tensor:
        if self.compiled:
            torch._dynamo.maybe_mark_dynamic(batch.bounds_S1, 0)
        attention.segments.now(batch.bounds_S1, batch.longest)
        more = {"position_ids": batch.positions_T.unsqueeze(0),
                "cu_seq_lens_q": batch.bounds_S1, "cu_seq_lens_k": batch.bounds_S1,
                "max_length_q": batch.longest, "max_length_k": batch.longest}
        if len(batch.labels_N) == 0:  # every weight still takes part: DDP's collectives must match on all ranks
            return self._loss(batch.ids_T, batch.predicts_N.new_zeros(1), batch.ids_T[:1], **more) * 0.0
        return self._loss(batch.ids_T, batch.predicts_N, batch.labels_N, **more)

    def _alone(self, batch: Batch) -> Tensor:
        losses = []
        for first, end in pairwise(batch.bounds_S1.tolist()):
            inside_N = (batch.predicts_N >= first) & (batch.predicts_N < end)
            if inside_N.any():
                losses.append(self._loss(batch.ids_T[first:end], batch.predicts_N[inside_N] - first,
                                         batch.labels_N[inside_N]))
        if not losses:
            end = int(batch.bounds_S1[1])
            return self._loss(batch.ids_T[:end], batch.predicts_N.new_zeros(1), batch.ids_T[:1]) * 0.0
        return torch.stack(losses).sum()

    def _loss(self, ids_T: Tensor, predicts_N: Tensor, labels_N: Tensor, **more: Any) -> Tensor:
        if self.head is None:
            return cross_entropy(own_logits(self.model, ids_T, predicts_N, **more), labels_N, reduction="sum")
        body = body_of(self.model)
        assert body is not None, "a head without a body"
        hidden_TD: Tensor = body(
            input_ids=ids_T.unsqueeze(0), **accepted(body.forward, use_cache=False, **more)).last_hidden_state[0]
        return head_loss(self.model.get_output_embeddings(), hidden_TD[predicts_N], labels_N, self.head.scale,
                         self.head.cap)

    @contextlib.contextmanager
    def _noise(self, batch: Batch) -> Iterator[None]:
        """Add NEFTune's noise to the embeddings, only while training."""
        if not (self._alpha and self.training):
            yield
            return

        def noisy(_: nn.Module, __: Any, embedded_1TD: Tensor) -> Tensor:
            alone = batch.bounds_S1.new_tensor([0, embedded_1TD.shape[-2]])
            return embedded_1TD + noise_like(embedded_1TD, batch.bounds_S1 if self.packs else alone, self._alpha)

        hook = self.model.get_input_embeddings().register_forward_hook(noisy)
        try:
            yield
        finally:
            hook.remove()


def noise_like(embedded_1TD: Tensor, bounds_S1: Tensor, alpha: float) -> Tensor:
    """NEFTune (arXiv 2310.05914, algorithm 1): uniform in [-1, 1] times alpha / sqrt(L d), for L tokens of d values.

    L is the length of each example, so that its noise does not depend on what it is packed with. The generator is
    torch's own, which the trainer seeds at every step: a resumed training draws the same noise.
    """
    tokens, size = embedded_1TD.shape[-2:]
    bounds = bounds_S1.long()
    segment_T = torch.bucketize(torch.arange(tokens, device=bounds.device), bounds[1:], right=True)
    length_T = bounds.diff()[segment_T.clamp(max=len(bounds) - 2)].clamp(min=1)  # padding stands after the last
    uniform = torch.rand(embedded_1TD.shape, device=embedded_1TD.device) * 2 - 1
    return (uniform * (alpha / (length_T.float() * size).sqrt()).unsqueeze(-1)).to(embedded_1TD.dtype)


def own_logits(model: PreTrainedModel, ids_T: Tensor, places_N: Tensor, **more: Any) -> Tensor:
    """(N, V), fp32: what the model's own forward pass gives at these places."""
    options = accepted(model.forward, use_cache=False, logits_to_keep=places_N, **more)
    logits_V = model(input_ids=ids_T.unsqueeze(0), **options).logits[0]
    if "logits_to_keep" not in inspect.signature(model.forward).parameters or len(logits_V) != len(places_N):
        logits_V = logits_V[places_N]
    found: Tensor = logits_V.float()
    return found


def why_alone(model: PreTrainedModel) -> str:
    """Why segments must go through this model one at a time, as far as its class and configuration tell; or ""."""
    if found := state_of(model):
        return found
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return "it attends in chunks of fixed places"
    body = body_of(model)
    if body is None or not model._can_set_attn_implementation():
        return "its attention is not taken from transformers' interface"
    return ""
