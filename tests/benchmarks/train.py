"""`make bench-train`: tokens a second and peak memory against TRL's SFTTrainer and transformers' Trainer.

Full fine-tuning on SAMSum, loss on the summaries only, the same tokens and the same global batch for all, on
stories260K (rows of 512 tokens, 4 a step) and on a Llama of 20 million random weights (rows of 1,024, 2 a
step), on 1 and 2 ranks. Every contender is first tried in fp32 and bf16, and the peers also with sdpa and eager
attention, with one row of a step or (sdpa) all rows at a time; the fastest variant of each stays. Those are measured in
turns, and so is the rate of matrix products; medians count.
Quality: validation loss of stories260K after the same number of steps, in the variants whose speed is reported.
FLOP: 6 a weight of every linear layer and token, of the head per labelled token (tasks/distributed/build.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from infra.spec import Precision
from tasks.distributed.model import dtype_of
from tests.benchmarks.data import STORIES, llama_20m, needs_shared, packs_of, samsum
from tests.benchmarks.report import finish, interleaved, medians, say, seconds, spreads
from tests.benchmarks.setting import Setting
from tests.benchmarks.windows import Contender, best_of

ROUNDS = 5
HELD_OUT = 100
QUALITY_STEPS = 100
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
CPU = torch.device("cpu")
GOALS = {"stories260k": {"trl": 1.6, "hf_trainer": 1.7}, "llama20m": {"trl": 7.0, "hf_trainer": 3.0}}
GOAL_OF_MATMUL, GOAL_QUALITY = 0.60, 1.005


def main() -> None:
    """Measure, print, judge."""
    needs_shared()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        figures: dict[str, Any] = {}
        goals: dict[str, bool] = {}
        for setting, ranks in product(settings(folder), (1, 2)):
            name = f"{setting.name}_{ranks}"
            say(f"{name}: {setting.rows} rows of {setting.length} tokens a step")
            found = compare(setting, folder, ranks)
            figures[name] = found
            for peer, goal in GOALS[setting.name].items():
                ratio = found["tokens_per_s"]["anneal"] / found["tokens_per_s"][peer]
                figures[f"ratio_{peer}_{name}"] = ratio
                goals[f"{name}: {goal} times {peer} (is {ratio:.2f})"] = ratio >= goal
            if setting.name == "llama20m" and ranks == 1:
                share = share_of_matmul(setting, found)
                figures["share_of_matmul_rate"] = share
                goals[f"{name}: {GOAL_OF_MATMUL:.0%} of the matmul rate (is {share:.0%})"] = share >= GOAL_OF_MATMUL
        quality = same_tokens(next(settings(folder)), folder, figures["stories260k_1"]["variant"])
        figures["validation_loss"] = quality
        goals[f"validation loss within 0.5 % of TRL's ({quality['anneal']:.4f}, TRL {quality['trl']:.4f})"] = (
            quality["anneal"] <= quality["trl"] * GOAL_QUALITY)
        finish(figures, goals, ("trl", "accelerate", "datasets"))


def settings(folder: Path) -> Iterator[Setting]:
    """The two models with their packs."""
    if not (folder / "rows").exists():
        rows = samsum(folder / "rows", HELD_OUT)
        llama_20m(folder / "llama20m")
        packs_of(rows, STORIES, 512, folder / "packs512")
        packs_of(rows, folder / "llama20m", 1024, folder / "packs1024")
    yield Setting("stories260k", STORIES, folder / "packs512", 512, rows=4, steps=6)
    yield Setting("llama20m", folder / "llama20m", folder / "packs1024", 1024, rows=2, steps=2)


def variants_of(setting: Setting, folder: Path, ranks: int) -> dict[str, dict[str, Callable[[], Contender]]]:
    """What is tried, by contender."""
    found: dict[str, dict[str, Callable[[], Contender]]] = {
        "anneal": {p: partial(setting.anneal, folder, ranks, p) for p in PRECISIONS}}
    mine = setting.rows // ranks
    for trainer in ("trl", "hf_trainer"):
        found[trainer] = {
            f"{p}, accumulation {a}, {attention}": partial(setting.peer, folder, ranks, trainer, p, a, attention)
            for p in PRECISIONS for a, attention in dict.fromkeys([(mine, "sdpa"), (mine, "eager"), (1, "sdpa")])}
    return found


def compare(setting: Setting, folder: Path, ranks: int) -> dict[str, Any]:
    """Median tokens a second, and peak memory, of the best variant of each contender."""
    chosen = {name: best_of(variants, setting.steps) for name, variants in variants_of(setting, folder, ranks).items()}
    measures = {name: partial(contender.tokens_per_s, contender.steps_of_a_window(setting.steps))
                for name, (_, contender) in chosen.items()}
    matmul = {f"matmul_{name}": partial(matmul_tflops, dtype_of(name, CPU)) for name in PRECISIONS}
    figures = interleaved({**measures, **matmul}, ROUNDS)
    ends = {name: contender.end() for name, (_, contender) in chosen.items()}
    middle = medians(figures)
    return {
        "tokens_per_s": {name: middle[name] for name in chosen},
        "tokens_a_step": {name: round(contender.tokens_a_step) for name, (_, contender) in chosen.items()},
        "matmul_tflops": {name: middle[f"matmul_{name}"] for name in PRECISIONS},
        "variant": {name: variant for name, (variant, _) in chosen.items()},
        "rounds": figures, "spread": spreads(figures),
        "peak_memory_mib": {name: end["peak_memory_bytes"] >> 20 for name, end in ends.items()}}


def same_tokens(setting: Setting, folder: Path, chosen: dict[str, str]) -> dict[str, float]:
    """Validation loss after QUALITY_STEPS steps of the same batch size, in the fastest variants."""
    found, variants = {}, variants_of(setting, folder, 1)
    for name in ("anneal", "trl"):
        contender = variants[name][chosen[name]]()
        contender.tokens_per_s(QUALITY_STEPS)
        end = contender.end()
        say(f"  {name}: validation loss {end['validation_loss']:.4f} after {end['tokens']} tokens")
        found[name] = float(end["validation_loss"])
    return found


def matmul_tflops(dtype: torch.dtype) -> float:
    """TFLOP/s of a product of two 2048 x 2048 matrices on this machine, the median of 9 products."""
    a = torch.randn(2048, 2048).to(dtype)
    torch.mm(a, a)
    return 2 * 2048**3 / median(seconds(partial(torch.mm, a, a)) for _ in range(9)) / 1e12


def share_of_matmul(setting: Setting, found: dict[str, Any]) -> float:
    """Our FLOP/s over the matmul rate of the precision that won."""
    flops = found["tokens_per_s"]["anneal"] * setting.flop_per_token()
    return float(flops / 1e12 / found["matmul_tflops"][found["variant"]["anneal"]])


if __name__ == "__main__":
    main()
