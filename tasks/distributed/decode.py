"""Decode batches of prompts: the loop that evaluation and the predictor share.

In:   token ids of prompts, how to sample each     Out: one new token id a row and step
The prompts are padded on the left and share one key/value cache; a row that has finished leaves
the batch. Every row has its own random numbers, so that a seed does not depend on neighbours,
and its own adapter, so that two versions never mix. Greedy ids are those of transformers'
`generate`. Float sums may differ in the last bit between batch shapes: a near tie can turn.
Knows nothing about text. Leaves nothing on disk.

Letters: R rows still running, T positions so far, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from infra.errors import AnnealError, Broken, UserError
from tasks.distributed.head import accepted, state_of

BARE_BASE = "__base__"
"""PEFT's own name for a row without an adapter."""
COLDEST = 1e-5
"""Smallest temperature that is divided by; fp32 logits stay finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of one row are chosen. Raises UserError for a value out of range."""

    max_new_tokens: int = 128
    """Longest answer, in tokens; >= 1."""
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability; 1: off."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0: off."""
    seed: int | None = None
    """None: a fresh one."""

    def __post_init__(self) -> None:
        limits = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_p", 0 <= self.top_p <= 1, "0 to 1"), ("top_k", self.top_k >= 0, "0 (off) or more"))
        for name, fits, allowed in limits:
            if not fits:
                raise UserError(f"{name} is {getattr(self, name)}", allowed=allowed)


def decode(
    model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling], *,
    stop_ids: frozenset[int], adapters: Sequence[str] | None = None,
    cancelled: Callable[[int], bool] | None = None, failed: Callable[[int, AnnealError], None] | None = None,
) -> Iterator[list[int | None]]:
    """Yield one token id a prompt and step; None for those that have finished.

    A stop id ends its row and is not yielded. The caller may load adapters between two steps.

    Args:
        adapters: PEFT's name of each row's adapter, or BARE_BASE. Without it the active adapter answers.
        cancelled: asked for every row after each step; a row that says yes is dropped.
        failed: told about a row with non-finite logits, which is dropped.

    Raises:
        Broken: non-finite logits, and there is no `failed`.
        UserError: a prompt without tokens.
    """
    if any(not ids for ids in prompts):
        raise UserError("the prompt has no tokens", fix="Write something into the prompt.")
    model.eval()
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    rows = list(range(len(prompts)))
    # Padding on the left would become part of a state: each prompt has lines of its own then.
    groups = [[row] for row in rows] if state_of(causal) else [rows]
    if adapters is not None and _shared_experts(model):  # experts have one adapter at a time
        groups = [[row for row in group if adapters[row] == name]
                  for group in groups for name in dict.fromkeys(adapters[row] for row in group)]
    every = [_Lines(model, causal, group, prompts, sampling, adapters) for group in groups]
    left = [row.max_new_tokens for row in sampling]
    while any(lines.rows for lines in every):
        step: list[int | None] = [None] * len(prompts)
        for lines in every:
            if not lines.rows:
                continue
            tokens, finite = lines.step()
            for row, token, good in zip(lines.rows, tokens, finite, strict=True):
                left[row] -= 1
                if not good:
                    left[row] = 0
                    _report(row, failed)
                elif token in stop_ids:
                    left[row] = 0
                else:
                    step[row] = token
        yield step
        for lines in every:
            lines.keep([left[row] > 0 and not (cancelled and cancelled(row)) for row in lines.rows])


def decode_all(
    model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling], *,
    stop_ids: frozenset[int], adapters: Sequence[str] | None = None,
) -> list[list[int]]:
    """Whole answers, one list of token ids a prompt. Raises what `decode` raises."""
    found: list[list[int]] = [[] for _ in prompts]
    for step in decode(model, prompts, sampling, stop_ids=stop_ids, adapters=adapters):
        for ids, token in zip(found, step, strict=True):
            if token is not None:
                ids.append(token)
    return found


def _report(row: int, failed: Callable[[int, AnnealError], None] | None) -> None:
    error = Broken("the model's output is not finite", where=f"row {row} of a batch",
                   fix="The weights are damaged or overflow in this number format; use another version.")
    if failed is None:
        raise error
    failed(row, error)


def _cache_of(causal: PreTrainedModel) -> DynamicCache | None:
    own = not causal._supports_default_dynamic_cache()  # MiniMax and others make a cache of a class of theirs
    if own or "past_key_values" not in inspect.signature(causal.forward).parameters:
        return None
    cache = DynamicCache(config=causal.config)
    try:
        cache.get_seq_length()
    except ValueError:  # no layer of attention: models ask for the length all the same
        return None
    return cache


def _shared_experts(model: PreTrainedModel | PeftModel) -> bool:
    return isinstance(model, PeftModel) and any(isinstance(module, ParamWrapper) for module in model.modules())


class _Lines:
    """The running rows of a batch and their shared cache; line i belongs to prompt rows[i]."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, causal: PreTrainedModel, rows: list[int],
        all_prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling], adapters: Sequence[str] | None,
    ) -> None:
        assert len(sampling) == len(all_prompts) == len(adapters or all_prompts)
        self.model, self.causal, self.rows = model, causal, list(rows)
        prompts = [all_prompts[row] for row in rows]
        self.sampling = [sampling[row] for row in rows]
        self.dice = [_generator(row.seed) for row in self.sampling]
        self.adapters = None if adapters is None else [adapters[row] for row in rows]
        self._together = adapters is not None and _shared_experts(model)
        self.device = next(model.parameters()).device
        width = max(map(len, prompts), default=0)
        padded = [[0] * (width - len(ids)) + list(ids) for ids in prompts]
        real = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        self.ids_RT = torch.tensor(padded, device=self.device)
        self.mask_RT = torch.tensor(real, device=self.device)
        self.cache = _cache_of(causal)
        """None: a family that keeps its state otherwise; it reads everything again for each token."""

    @torch.inference_mode()
    def step(self) -> tuple[list[int], list[bool]]:
        """The next token of every running row, and whether its logits were finite."""
        width = self.ids_RT.shape[1]
        positions_RT = (self.mask_RT.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        one = self.adapters[0] if self.adapters and self._together else None
        pinned = {} if self.adapters is None or one else {"adapter_names": self.adapters}
        cached: dict[str, Any] = {"past_key_values": self.cache} if self.cache is not None else {}
        options = accepted(self.causal.forward, attention_mask=self.mask_RT, position_ids=positions_RT,
                           logits_to_keep=1, use_cache=self.cache is not None, **cached)
        with _only(self.model, one):
            logits_RV = self.model(input_ids=self.ids_RT, **options, **pinned).logits[:, -1].float()
        finite_R = logits_RV.isfinite().all(-1)
        tokens_R = self._choose(torch.where(finite_R[:, None], logits_RV, 0.0))
        new_R1 = tokens_R[:, None]
        self.ids_RT = new_R1 if self.cache is not None else torch.cat([self.ids_RT, new_R1], dim=1)
        self.mask_RT = torch.cat([self.mask_RT, torch.ones_like(new_R1)], dim=1)
        return tokens_R.tolist(), finite_R.tolist()

    @torch.inference_mode()
    def keep(self, wanted: Sequence[bool]) -> None:
        """Drop the lines that are not wanted."""
        if all(wanted):
            return
        lines = [line for line, want in enumerate(wanted) if want]
        self.rows = [self.rows[line] for line in lines]
        self.sampling = [self.sampling[line] for line in lines]
        self.dice = [self.dice[line] for line in lines]
        self.adapters = self.adapters and [self.adapters[line] for line in lines]
        if lines:
            index = torch.tensor(lines, device=self.device)
            self.ids_RT, self.mask_RT = self.ids_RT[index], self.mask_RT[index]
            if self.cache is not None:
                self.cache.batch_select_indices(index)

    def _choose(self, logits_RV: Tensor) -> Tensor:
        tokens_R = logits_RV.argmax(-1)
        warm = [line for line, row in enumerate(self.sampling) if row.temperature > 0]
        if warm:
            dice = [float(torch.rand((), generator=self.dice[line], dtype=torch.float64)) for line in warm]
            tokens_R[warm] = _draw(logits_RV[warm], [self.sampling[line] for line in warm], dice)
        return tokens_R


@contextmanager
def _only(model: PreTrainedModel | PeftModel, adapter: str | None) -> Iterator[None]:
    """Within it, all rows have one adapter, or the bare base."""
    if adapter is None or not isinstance(model, PeftModel):
        yield
    elif adapter == BARE_BASE:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(adapter, inference_mode=True)
        yield


def _draw(logits_RV: Tensor, sampling: Sequence[Sampling], dice: Sequence[float]) -> Tensor:
    """Sample by temperature, then top_k, then top_p (arXiv 1904.09751, section 3.1).

    One uniform number a row picks the token from the cumulative distribution, likeliest first.
    """
    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_RV.device)[:, None]

    size = logits_RV.shape[-1]
    scaled_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)).double()
    scaled_RV /= column([max(row.temperature, COLDEST) for row in sampling])
    chance_RV, order_RV = scaled_RV.softmax(-1).sort(stable=True, dim=-1, descending=True)
    rank_V = torch.arange(size, device=logits_RV.device)
    chance_RV = chance_RV * (rank_V < column([row.top_k or size for row in sampling]))
    chance_RV = chance_RV / chance_RV.sum(-1, keepdim=True)
    before_RV = chance_RV.cumsum(-1) - chance_RV
    enough = column([row.top_p if row.top_p < 1 else math.inf for row in sampling])
    chance_RV = chance_RV * ((before_RV < enough) | (rank_V == 0))
    reached_RV = chance_RV.cumsum(-1)
    picked_R = (reached_RV <= column(dice) * reached_RV[:, -1:]).sum(-1)
    last_R = (chance_RV > 0).sum(-1) - 1
    tokens_R: Tensor = order_RV.gather(-1, picked_R.minimum(last_R)[:, None])[:, 0]
    return tokens_R


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
