"""`make families`: what each family of causal language models can do here, as a table in docs/families.md.

A tiny random base of each is written as its authors would, loaded as a training does, and tried: LoRA, QLoRA (where
bitsandbytes is installed) and full fine-tuning for two steps, packed against alone, greedy answers in a batch against
transformers' `generate`, the merge loaded again. Nothing is a yes that was not compared with transformers.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infra.errors import AnnealError
from infra.spec import TrainingSpec
from tasks.distributed.batches import Batch
from tasks.distributed.build import start_adapter
from tasks.distributed.decode import Sampling, decode_all
from tasks.distributed.lora import add_adapter
from tasks.distributed.loss import PackedLoss
from tasks.distributed.model import load_base
from tasks.distributed.preflight import Proof, prove
from tests.support.families import FAMILIES, NOT_BUILT, VOCABULARY, tiny

CPU = torch.device("cpu")
TABLE = Path(__file__).resolve().parent.parent.parent / "docs" / "families.md"
LIBRARIES = ("transformers", "torch", "peft")
NEW_TOKENS = 6
RIGHT = 1e-4
"""Largest difference of logits, of the largest."""


@dataclasses.dataclass
class Row:
    """A line of the table: "yes", or why not."""

    family: str
    lora: str = ""
    qlora: str = ""
    full: str = ""
    packed: str = ""
    answers: str = ""
    merged: str = ""
    wrong: bool = False
    """A number that is not transformers' came out, or something else than an AnnealError was raised."""


def row_of(family: str, folder: Path) -> Row:
    """Try one family."""
    row = Row(family)
    if family in NOT_BUILT:
        row.lora = NOT_BUILT[family]
        return row
    torch.manual_seed(0)
    try:
        tiny(family).save_pretrained(folder)
    except Exception as error:  # noqa: BLE001
        row.lora, row.wrong = f"TRACEBACK: {type(error).__name__}: {str(error)[:200]}", True
        return row
    for name, attempt in (("lora", _lora), ("qlora", _qlora), ("full", _full), ("answers", _answers),
                          ("merged", _merged)):
        if name == "merged" and row.lora != "yes":
            row.merged = row.lora
            continue
        found, wrong = _tried(attempt, folder)
        row.wrong |= wrong
        setattr(row, name, found if isinstance(found, str) else "yes")
        if isinstance(found, Proof):
            row.packed = "yes" if found.packed else f"no: {found.why}"
    return row


def _tried(attempt: Callable[[Path], Proof | str], folder: Path) -> tuple[Proof | str, bool]:
    try:
        return attempt(folder), False
    except AnnealError as error:
        return f"no: {error.found}", False
    except AssertionError as error:
        return f"WRONG: {error}", True
    except Exception as error:  # noqa: BLE001  (this is what the table is to show)
        return f"TRACEBACK: {type(error).__name__}: {str(error)[:200]}", True


def _lora(folder: Path, quantized: bool = False) -> Proof:
    spec = TrainingSpec(train_data="d", base_model="m", destination="a/b", lora_dropout=0.0)
    base = load_base(folder, dtype=torch.float32, device=CPU, quantized=quantized)
    model = add_adapter(base, spec)
    start_adapter(model, 0)
    return _two_steps(PackedLoss(base), exact=not quantized)


def _qlora(folder: Path) -> Proof:
    return _lora(folder, quantized=True)


def _full(folder: Path) -> Proof:
    return _two_steps(PackedLoss(load_base(folder, dtype=torch.float32, device=CPU)))


def _two_steps(loss: PackedLoss, exact: bool = True) -> Proof:
    """Prove the loss, and let it fall."""
    found = prove(loss, torch.float32, CPU)
    assert not exact or found.loss_error < 1e-6, f"its loss is off by {found.loss_error:.1g}"
    optimizer = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    values = []
    for _ in range(3):
        value = loss.train()(_batch())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    assert values[-1] < values[0], f"its loss went from {values[0]:.4g} to {values[-1]:.4g} in two steps"
    return found


def _batch() -> Batch:
    ids_T = torch.randint(5, VOCABULARY, (21,), generator=torch.Generator().manual_seed(0))
    places_T = torch.cat([torch.arange(9), torch.arange(12)])
    predicts_N = torch.tensor([*range(8), *range(9, 20)])
    bounds = torch.tensor([0, 9, 21], dtype=torch.int32)
    return Batch(ids_T, places_T, bounds, 12, predicts_N, ids_T[predicts_N + 1])


@torch.inference_mode()
def _answers(folder: Path) -> str:
    """Two prompts of unequal length in one batch, as evaluation and predictor ask, against `generate` of each."""
    prompts = [[7, 8, 9, 10, 11, 12, 13], [20, 21, 22]]
    model = load_base(folder, dtype=torch.float32, device=CPU)
    ours = decode_all(model, prompts, [Sampling(max_new_tokens=NEW_TOKENS)] * 2, stop_ids=frozenset())
    model = load_base(folder, dtype=torch.float32, device=CPU)
    for prompt, answer in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        whole: Any = model
        try:
            theirs = whole.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
                eos_token_id=None, pad_token_id=0)[0, len(prompt):].tolist()
        except Exception as error:  # noqa: BLE001
            return f"not compared: transformers' generate raises {type(error).__name__}"
        assert answer == theirs, f"its greedy answer is {answer}, that of generate {theirs}"
    return "yes"


def _merged(folder: Path) -> str:
    """An adapter merged, written, and loaded again."""
    spec = TrainingSpec(train_data="d", base_model="m", destination="a/b", lora_dropout=0.0)
    base = load_base(folder, dtype=torch.float32, device=CPU)
    tuned = add_adapter(base, spec)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                nn.init.normal_(weight, std=0.05)
    ids = torch.arange(5, 14)[None]
    with torch.inference_mode():
        by_adapter = tuned.eval()(input_ids=ids, use_cache=False).logits
    merged = tuned.merge_and_unload(safe_merge=True)
    with tempfile.TemporaryDirectory() as where:
        merged.save_pretrained(where)
        again = load_base(Path(where), dtype=torch.float32, device=CPU)
        with torch.inference_mode():
            by_files = again(input_ids=ids, use_cache=False).logits
    error = float((by_adapter - by_files).abs().max() / by_adapter.abs().max())
    found = f"no: refused, its merged logits are off by {error:.2g} (an export is compared before it is written)"
    return "yes" if error < RIGHT else found


def main(families: list[str]) -> int:
    """Try them all; write the table where no family was named. 1 if one of them is wrong."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    rows = []
    for family in families or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row_of(family, Path(folder)))
        print(*dataclasses.astuple(rows[-1]), sep=" | ", flush=True)
    if not families:
        TABLE.write_text(table(rows), encoding="utf-8")
    return int(any(row.wrong for row in rows))


def table(rows: list[Row]) -> str:
    """docs/families.md."""
    right = sum(row.lora == "yes" and row.full == "yes" for row in rows)
    wrong = sum(row.wrong for row in rows)
    lines = [
        "# Families of base models", "",
        "Filled by `make families`: do not edit. Tiny random models of every causal language model in transformers,",
        "each compared with transformers itself: the first loss and its gradient, packed examples against single ones,",
        "greedy answers in a batch (evaluation and predictor) against `generate`, the merged model loaded again.", "",
        ", ".join([datetime.now(UTC).date().isoformat(), *(f"{name} {version(name)}" for name in LIBRARIES)])
        + f": {len(rows)} families, {right} trained right, {wrong} wrong.", "",
        "| family | LoRA | QLoRA | full | packed | answers | merged |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        texts = dataclasses.astuple(row)[:-1]
        cells = [text.replace("|", "/").replace("\n", " ") for text in texts]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
