"""What is tried on the model itself before the first step: that its loss is right.

Our loss of two segments and its gradient are compared with the cross-entropy of the model's own logits, each segment
by itself, by the attention that transformers gives the model. A change in the first segment must not move the second:
a cache left on, an attention mask, a layer that mixes places by other means than attention would let it through.
What packed rows fail, one segment at a time may pass: then it is trained like that, and said so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from infra.errors import BaseModelError
from tasks.distributed import attention
from tasks.distributed.batches import Batch
from tasks.distributed.build import Built
from tasks.distributed.head import Head
from tasks.distributed.loss import PackedLoss, why_alone
from tasks.distributed.model import precision
from tasks.distributed.process_group import repeatable
from tasks.distributed.weight_check import translate_loading_errors

WHERE = "base model"
BOUNDS = (0, 7, 16)
"""Where the two segments begin, and the end of the second."""
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative, of a sum of cross-entropies. Right families differ by 2e-7 in fp32; a cap or a scale that is left out, by
more than a tenth."""
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-1}
"""Norm of the difference over the norm, of the gradient at the embeddings' output."""
ANOTHER = "Choose a base of another family, such as Llama, Mistral or Qwen."


@dataclass(frozen=True, slots=True)
class Proof:
    """How near our loss came to the model's own, and how it is computed."""

    packed: bool
    why: str
    """Why segments go through the model one at a time; empty where they do not."""
    loss_error: float
    """Relative."""
    gradient_error: float


class _NotProvenError(Exception):
    """One way of computing the loss is not right for this model."""


def check_loss(built: Built) -> Proof:
    """Prove the loss of a model under training. Raises BaseModelError."""
    with _in_any_order():  # whether its operations have kernels that add in one order is asked afterwards
        return prove(built.loss, built.compute, built.device)


@contextmanager
def _in_any_order() -> Iterator[None]:
    wanted, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(wanted, warn_only=warns)


def prove(loss: PackedLoss, compute: torch.dtype, device: torch.device) -> Proof:
    """Find the way to compute the loss that agrees with the model's own forward pass, the fastest first, and leave
    `loss` computing it so, in the mode (training or evaluation) that it was in.

    Raises BaseModelError: no way agrees, it cannot be run, its loss is not finite, or it does not read.
    """
    training, head = loss.model.training, loss.head
    loss.eval()
    vocabulary = loss.model.config.get_text_config().vocab_size
    ids_T = torch.arange(BOUNDS[-1], device=device) * 5 % vocabulary
    with translate_loading_errors(WHERE, "it cannot be run", ANOTHER), precision(compute, device):
        ways = list(_ways(loss, head))
        loss.use(packs=False, head=None)  # the model's own logits, each segment by itself, by its own attention
        own, own_gradient = _measured(loss, _batch(ids_T))
    if not torch.isfinite(own):
        raise BaseModelError(f"its loss is {own.item()} before the first step", where=WHERE, allowed="a number",
                             fix="Check config.json and the weights.")
    reasons = [why_alone(loss.model)]
    for packs, by in ways:
        loss.use(packs=packs, head=by)
        try:
            with precision(compute, device):
                errors = _compared(loss, ids_T, own, own_gradient, compute)
        except _NotProvenError as error:
            reasons.append(str(error))
            continue
        loss.train(training)
        return Proof(packs, "" if packs else next(filter(None, reasons)), *errors)
    raise BaseModelError(reasons[-1], where=WHERE, allowed=f"a loss within {LOSS_TOLERANCE[compute]:g} of its own",
                         fix=ANOTHER)


def _ways(loss: PackedLoss, head: Head | None) -> Iterator[tuple[bool, Head | None]]:
    for packs in (True, False) if loss.packs else (False,):
        if head is not None:
            yield packs, head
        yield packs, None


def _compared(
    loss: PackedLoss, ids_T: Tensor, own: Tensor, own_gradient: Tensor | None, compute: torch.dtype,
) -> tuple[float, float]:
    """The relative errors of our loss and gradient. Raises BaseModelError for a model that does not read, and
    _NotProvenError."""
    attention.segments.windows.clear()
    try:
        with translate_loading_errors(WHERE, "it cannot be run", ANOTHER):
            ours, gradient = _measured(loss, _batch(ids_T))
            with torch.no_grad():
                read, learned, read_other, learned_other = (
                    loss(_batch(ids, part)) for ids in (ids_T, _changed(loss, ids_T)) for part in (0, 1))
                before, before_other = (loss(_batch(ids, 1, last=False)) for ids in (ids_T, _other_end(ids_T)))
    except BaseModelError as error:
        raise _NotProvenError(error.found) from error
    if torch.equal(read, read_other):
        raise BaseModelError("its answers do not depend on what it reads", where=WHERE,
                             fix="Check that its weights are complete.")
    tolerance = LOSS_TOLERANCE[compute]
    if not abs(before - before_other) <= tolerance * abs(before):
        raise _NotProvenError("it reads in both directions: what stands behind an answer would tell it")
    if not abs(learned - learned_other) <= tolerance * abs(learned):
        raise _NotProvenError("examples in one row reach each other: a change in the first moved the second")
    if loss.packs and (kept := _windows_in_masks(loss)):
        raise _NotProvenError(f"it keeps {kept} in masks, which packed rows do without")
    loss_error = abs(ours.item() - own.item()) / abs(own.item())
    if not loss_error <= tolerance:
        raise _NotProvenError(f"its packed loss is {ours.item():.6g}, and that of its own logits {own.item():.6g}")
    gradient_error = 0.0
    if gradient is not None and own_gradient is not None and gradient.shape == own_gradient.shape:
        gradient_error = float((gradient - own_gradient).norm() / own_gradient.norm().clamp(min=1e-30))
    if not gradient_error <= GRADIENT_TOLERANCE[compute]:
        raise _NotProvenError(f"the gradient of its packed loss differs from its own by {gradient_error:.2g}")
    return loss_error, gradient_error


def _windows_in_masks(loss: PackedLoss) -> str:
    """The kind of attention of which its configuration speaks, and that no layer has asked for."""
    config = loss.model.config.get_text_config()
    kinds = {str(kind) for kind in getattr(config, "layer_types", None) or ()}
    wanted = "sliding_attention" in kinds and bool(getattr(config, "sliding_window", None))
    return "its windows" if wanted and not any(attention.segments.windows) else ""


def _changed(loss: PackedLoss, ids_T: Tensor) -> Tensor:
    """The ids with another first segment."""
    vocabulary = loss.model.config.get_text_config().vocab_size
    other_T = ids_T.clone()
    other_T[: BOUNDS[1]] = (other_T[: BOUNDS[1]] + vocabulary // 2) % vocabulary
    return other_T


def _other_end(ids_T: Tensor) -> Tensor:
    """The ids with another last one."""
    other_T = ids_T.clone()
    other_T[-1] = ids_T[0]
    return other_T


def _batch(ids_T: Tensor, part: int | None = None, *, last: bool = True) -> Batch:
    """Both segments, with a label at every place of one of them or of both; `last`: at the last place too."""
    spans = [range(first, end) for first, end in pairwise(BOUNDS)]
    places_T = torch.tensor([place for span in spans for place in range(len(span))])
    predicts = [place for number, span in enumerate(spans) if part in (None, number) for place in span][
        : None if last else -1]
    batch = Batch(ids_T, places_T, torch.tensor(BOUNDS, dtype=torch.int32), max(map(len, spans)),
                  torch.tensor(predicts), torch.zeros(len(predicts), dtype=torch.long))
    return batch.to(ids_T.device)


def _measured(loss: PackedLoss, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """A loss and its gradient at the output of the embeddings, (T, D); None where they are not called plainly."""
    gradients: dict[int, Tensor] = {}
    with _noting(loss.model.get_input_embeddings(), gradients):
        value: Tensor = loss(batch)
        value.backward()
    loss.zero_grad(set_to_none=True)
    found = [gradients[number].float().flatten(0, -2) for number in sorted(gradients)]
    return value.detach(), torch.cat(found) if found else None


@contextmanager
def _noting(embeddings: torch.nn.Module, gradients: dict[int, Tensor]) -> Iterator[None]:
    """Within it, the gradient of each output of the embeddings is noted in the order of the calls."""
    calls = 0

    def hook(_: Any, __: Any, output: Tensor) -> Tensor:
        nonlocal calls
        number, calls = calls, calls + 1
        if not torch.is_grad_enabled():
            return output
        output = output if output.requires_grad else output.detach().requires_grad_()
        output.register_hook(lambda gradient: gradients.__setitem__(number, gradient.detach()))
        return output

    handle = embeddings.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def unrepeatable(built: Built) -> str:
    """What keeps a step of this model from giving the same bits again, in torch's words; empty if nothing does.

    Then its operations add as they come from here on: a resumed training is right, but not equal in its last digits.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return ""
    training = built.loss.training
    try:
        with _evaluating(built):
            built.loss(_batch(torch.arange(BOUNDS[-1], device=built.device))).backward()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        repeatable(built.device, strict=False)
        return str(error).splitlines()[0]
    finally:
        built.loss.zero_grad(set_to_none=True)
        built.loss.train(training)
    return ""


@contextmanager
def _evaluating(built: Built) -> Iterator[None]:
    built.loss.eval()
    context: AbstractContextManager[Any] = built.precision()
    with translate_loading_errors(WHERE, "it cannot be run", ANOTHER), context:
        yield
