"""`make bench-gpu`: tokens a second on one GPU against TRL, and how long the guide's job takes there.

lora: the shape of Llama 2 7B, r=16 beside every linear layer; and the guide's job, SAMSum for 3 epochs, extrapolated
      from all of our steps (training steps alone).   full: the shape of TinyLlama (1.1 billion weights).
Both: random weights, bf16, SAMSum in Llama-2 tokens packed into rows of 4,096, 4 rows a step, loss on the summaries
only, gradients clipped, no dropout, no activation checkpointing. Each contender's fastest variant is measured, in
turns with the other's (medians); warm-up and validation are not in the figures. Options of `make`:
OPTIONS="--part lora --bases FOLDER" runs one part and keeps the bases (13.5 and 2.2 GB) for the next one;
--only 'anneal: accumulation 2, compiled' (a regular expression, for several with |) tries some of the variants.
Without a GPU the same code runs a Llama of 20 million weights on rows of 512: no goal is met by that.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch

from infra.settings import Settings
from infra.spec import Precision
from tasks.distributed.batches import BatchPlan
from tasks.distributed.packs import PackedRows
from tasks.launcher.device_table import known_device
from tests.benchmarks.data import LLAMA_20M, needs_shared, packs_of, random_llama, samsum
from tests.benchmarks.report import finish, interleaved, medians, say
from tests.benchmarks.setting import Setting
from tests.benchmarks.windows import Contender, best_of

LLAMA_2_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 4096}
TINYLLAMA = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "max_position_embeddings": 4096}
LORA_RANK, LEARNING_RATE, HELD_OUT, EPOCHS = 16, 1e-4, 100, 3
GOAL_TOKENS_PER_S = 14_900
"""The 402 TFLOP/s that NeMo AutoModel reached with Llama 3 8B and LoRA on an H100, in tokens of 4 x 6.74e9 FLOP."""
GOAL_TRL, GOAL_MINUTES, JOB_STEPS = 1.3, 12.0, 200
COMPILED = ", compiled"
OPTIONAL = ("flash_attn", "liger_kernel")
FORMULAS = {
    "tflops": "FLOP: 4 (full: 6) a weight of every linear layer and processed token, the head's at labelled tokens "
              "only; adapters, norms and attention scores are left out",
    "tflops_of_all": "FLOP: 4 (full: 6) for each of all N weights, embeddings too, and processed token: the record's "
                     "4N",
    "mfu": "tflops over the dense bf16 peak of infra/hardware.toml; mfu_of_all the same of tflops_of_all",
    "pad_share": "padding among what our trainer computes: rows are flattened and have none, but for compiled layers "
                 "they are filled up; unfilled_share is the part of a row that packing leaves free",
    "labelled_tokens_per_s": "processed tokens a second times the labelled share of the training split"}

Goals = dict[str, tuple[str, bool]]
"""{goal: what was found, whether it is met}."""


@dataclass(frozen=True)
class Scale:
    """What is measured on a kind of device."""

    lora: tuple[str, dict[str, int]]
    full: tuple[str, dict[str, int]]
    precision: Precision
    length: int
    rows: int
    """Of a step."""
    trial: int
    """Steps of a window in which a variant is tried."""
    rounds: int
    windows: dict[str, int]
    """Steps of a contender in a round."""


GPU = Scale(("llama2_7b", LLAMA_2_7B), ("tinyllama", TINYLLAMA), "bf16", length=4096, rows=4, trial=3, rounds=3,
            windows={"anneal": 67, "trl": 8})
CPU = Scale(("llama20m", LLAMA_20M), ("llama20m_grouped", {**LLAMA_20M, "num_key_value_heads": 2}), "bf16",
            length=512, rows=1, trial=1, rounds=2, windows={"anneal": 2, "trl": 2})


@dataclass(frozen=True)
class Bench:
    """One part: a setting on this device."""

    setting: Setting
    scale: Scale
    folder: Path
    only: re.Pattern[str]
    peak_tflops: float | None

    def variants(self) -> dict[str, dict[str, Callable[[], Contender]]]:
        """By contender: one or two rows at a time; TRL also with the attention kernels that it can have here.

        TRL is the first to be tried: it needs more memory.
        """
        parts = dict.fromkeys((self.scale.rows, max(1, self.scale.rows // 2)))
        attentions = ["sdpa"]
        if torch.cuda.is_available():
            attentions.append("flash_attention_2" if find_spec("flash_attn") else "flex_attention")
        precision = self.scale.precision
        variants: dict[str, dict[str, Callable[[], Contender]]] = {
            "trl": {f"accumulation {a}, {attention}": partial(
                self.setting.peer, self.folder, 1, "trl", precision, a, attention)
                for attention, a in product(attentions, parts)},
            "anneal": {f"accumulation {a}{COMPILED if compiled else ''}": partial(
                self.setting.anneal, self.folder, 1, precision, a, compiled=compiled)
                for compiled in (False, True)[: 1 + torch.cuda.is_available()] for a in parts}}
        return {name: {variant: start for variant, start in theirs.items() if self.only.search(f"{name}: {variant}")}
                for name, theirs in variants.items()}

    def speed(self, tokens_per_s: float) -> dict[str, Any]:
        """Tokens a second, and what share of the device they use."""
        tokens, labels = self.setting.tokens_and_labels()
        rates = {"tflops": tokens_per_s * self.setting.flop_per_token() / 1e12,
                 "tflops_of_all": tokens_per_s * self.setting.flop_per_token_of_all() / 1e12}
        shares = {name.replace("tflops", "mfu"): rate / self.peak_tflops if self.peak_tflops else None
                  for name, rate in rates.items()}
        return {"tokens_per_s": tokens_per_s, "labelled_tokens_per_s": tokens_per_s * labels / tokens,
                **rates, **shares}

    def about(self, ours: str) -> dict[str, Any]:
        """What was trained on what, by our fastest variant."""
        tokens, labels = self.setting.tokens_and_labels()
        rows = len(PackedRows(self.setting.packs / "train"))
        unfilled = 1 - tokens / (rows * self.setting.length)
        return {
            "shape": self.setting.name, "lora_rank": self.setting.lora_rank, "precision": self.scale.precision,
            "length": self.setting.length, "rows_a_step": self.setting.rows,
            "labelled_share": labels / tokens,
            "pad_share": unfilled if COMPILED in ours else 0.0, "unfilled_share": unfilled}


def main() -> None:
    """Measure, print, judge."""
    options = options_of()
    needs_shared()
    cuda = torch.cuda.is_available()
    if cuda and not find_spec("liger_kernel"):
        sys.exit("TRL is compared at its best: pip install liger-kernel")
    scale = GPU if cuda else CPU
    figures: dict[str, Any] = {"formulas": FORMULAS}
    goals: Goals = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, device = known_device(Settings(home=folder))
        figures["peak_tflops"] = peak = device.tflops if device and device.name != "CPU" else None
        rows, packs = samsum(folder / "rows", HELD_OUT), folder / "packs"
        for part in options.part or PARTS:
            name, shape = scale.full if part == "full" else scale.lora
            base = base_of((options.bases or folder) / name, shape, scale.precision)
            if not packs.exists():
                packs_of(rows, base, scale.length, packs)
            setting = Setting(name, base, packs, scale.length, scale.rows, scale.trial,
                              lora_rank=0 if part == "full" else LORA_RANK, learning_rate=LEARNING_RATE)
            bench = Bench(setting, scale, folder, options.only, peak)
            say(f"{part}: {name}, {scale.rows} rows of {scale.length} tokens a step")
            figures[part], part_goals = PARTS[part](bench)
            goals |= part_goals
            say(json.dumps({part: figures[part]}))  # a later part, or a lease that ends, must not cost them
    if not cuda:
        figures["missing"] = "no CUDA device: these are figures of a small model on a CPU, those of a GPU are missing"
    judged = {f"{goal} (is {found})" if cuda else f"{goal} (missing: no CUDA device)": cuda and met
              for goal, (found, met) in goals.items()}
    installed = [name for name in OPTIONAL if find_spec(name)]
    finish(figures, judged, ("trl", "peft", "accelerate", "datasets", *installed))


def options_of() -> argparse.Namespace:
    """--part, --only and --bases."""
    parser = argparse.ArgumentParser(description="One GPU against TRL.")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this one; may be repeated")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="variants to try: a regular expression")
    parser.add_argument("--bases", type=Path, help="folder that keeps the bases; default: none")
    return parser.parse_args()


def base_of(folder: Path, shape: dict[str, int], precision: str) -> Path:
    """The base of random weights, made unless an earlier run has left it."""
    if not folder.exists():
        random_llama(folder, shape, torch.bfloat16 if precision == "bf16" else torch.float32)
    return folder


def lora(bench: Bench) -> tuple[dict[str, Any], Goals]:
    """LoRA against TRL and against the record."""
    found = compare(bench)
    speed, ratio = found["anneal"]["tokens_per_s"], found["ratio_trl"]
    found["job"] = job(bench, found["anneal"])
    minutes, measured = found["job"]["minutes"], found["job"]["measured_steps"]
    return found, {f"lora: at least {GOAL_TOKENS_PER_S} tokens/s": (f"{speed:.0f}", speed >= GOAL_TOKENS_PER_S),
                   f"lora: {GOAL_TRL} times TRL": (f"{ratio:.2f}", ratio >= GOAL_TRL),
                   f"job: {EPOCHS} epochs in {GOAL_MINUTES:.0f} min, from {JOB_STEPS} steps or more": (
                       f"{minutes:.1f}, from {measured}", minutes <= GOAL_MINUTES and measured >= JOB_STEPS)}


def job(bench: Bench, ours: dict[str, Any]) -> dict[str, Any]:
    """Minutes of the guide's job: its steps over the steps a minute of all our windows together."""
    a_minute = 60 * ours["measured_steps"] / ours["measured_s"]
    steps = BatchPlan(len(PackedRows(bench.setting.packs / "train")), bench.setting.rows, EPOCHS, 0, 0).steps
    return {"epochs": EPOCHS, "steps": steps, "steps_a_minute": a_minute, "minutes": steps / a_minute,
            "measured_steps": ours["measured_steps"]}


def full(bench: Bench) -> tuple[dict[str, Any], Goals]:
    """Full fine-tuning against TRL; there is no record to beat."""
    found = compare(bench)
    ratio = found["ratio_trl"]
    return found, {"full: at least as fast as TRL": (f"{ratio:.2f} times as fast", ratio >= 1.0)}


def compare(bench: Bench) -> dict[str, Any]:
    """The figures of both contenders, each in its fastest variant."""
    chosen = {name: best_of(variants, bench.scale.trial) for name, variants in bench.variants().items()}
    rounds = interleaved(
        {name: partial(contender.tokens_per_s, bench.scale.windows[name]) for name, (_, contender) in chosen.items()},
        bench.scale.rounds)
    middle, found = medians(rounds), bench.about(chosen["anneal"][0])
    for name, (variant, contender) in chosen.items():
        end = contender.end()
        found[name] = {
            **bench.speed(middle[name]), "variant": variant, "rounds": rounds[name],
            "measured_steps": bench.scale.windows[name] * bench.scale.rounds,
            "measured_s": sum(contender.seconds[-bench.scale.rounds :]),
            "peak_memory_mib": end["peak_memory_bytes"] >> 20, "validation_loss": end["validation_loss"]}
    return {**found, "ratio_trl": middle["anneal"] / middle["trl"]}


PARTS = {"lora": lora, "full": full}


if __name__ == "__main__":
    main()
