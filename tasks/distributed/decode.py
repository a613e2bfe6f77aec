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

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from infra.errors import AnnealError, Broken, UserError

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
    lines = _Lines(model, prompts, sampling, adapters)
    left = [row.max_new_tokens for row in sampling]
    while lines.rows:
        tokens, finite = lines.step()
        step: list[int | None] = [None] * len(prompts)
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


class _Lines:
    """The running rows of a batch and their shared cache; line i belongs to prompt rows[i]."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]],
        sampling: Sequence[Sampling], adapters: Sequence[str] | None,
    ) -> None:
        self.model, self.rows = model, list(range(len(prompts)))
        self.sampling = list(sampling)
        self.dice = [_generator(row.seed) for row in sampling]
        self.adapters = None if adapters is None else list(adapters)
        assert len(self.sampling) == len(self.rows) and len(adapters or prompts) == len(self.rows)
        self.device = next(model.parameters()).device
        width = max(map(len, prompts), default=0)
        padded = [[0] * (width - len(ids)) + list(ids) for ids in prompts]
        real = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        self.ids_RT = torch.tensor(padded, device=self.device)
        self.mask_RT = torch.tensor(real, device=self.device)
        self.cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def step(self) -> tuple[list[int], list[bool]]:
        """The next token of every running row, and whether its logits were finite."""
        width = self.ids_RT.shape[1]
        positions_RT = (self.mask_RT.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        pinned = {} if self.adapters is None else {"adapter_names": self.adapters}
        logits_RV = self.model(
            input_ids=self.ids_RT, attention_mask=self.mask_RT, position_ids=positions_RT,
            past_key_values=self.cache, use_cache=True, logits_to_keep=1, **pinned).logits[:, -1].float()
        finite_R = logits_RV.isfinite().all(-1)
        tokens_R = self._choose(torch.where(finite_R[:, None], logits_RV, 0.0))
        self.ids_RT = tokens_R[:, None]
        self.mask_RT = torch.cat([self.mask_RT, torch.ones_like(self.ids_RT)], dim=1)
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
            self.cache.batch_select_indices(index)

    def _choose(self, logits_RV: Tensor) -> Tensor:
        tokens_R = logits_RV.argmax(-1)
        warm = [line for line, row in enumerate(self.sampling) if row.temperature > 0]
        if warm:
            dice = [float(torch.rand((), generator=self.dice[line], dtype=torch.float64)) for line in warm]
            tokens_R[warm] = _draw(logits_RV[warm], [self.sampling[line] for line in warm], dice)
        return tokens_R


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
