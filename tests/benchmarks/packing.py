"""`make bench-packing`: how full the rows are and how long it takes, against TRL's `pack_dataset`.

Sets: SAMSum in Llama-2 tokens, 14,732 lengths like it, and a million of those. Longer examples are cut to
the row. TRL packs as it is shipped (strategy bfd, per 1,000 rows) and moves token arrays; ours decides by
lengths, so our time includes moving the same tokens once. axolotl's packer is not measured: the package
does not install beside these versions (it pins transformers 5.16.1 and TRL of its own).
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from numpy.typing import NDArray
from trl import pack_dataset

from tasks.distributed.bin_packing import Rows, best_fit
from tests.benchmarks.data import llama_2_tokenizer, lognormal_lengths, needs_shared, packs_of, samsum
from tests.benchmarks.report import finish, interleaved, medians, say, seconds
from tests.tasks.distributed.test_bin_packing import check

CAPACITIES = (512, 2048, 8192)
ROUNDS = 5
MILLION = 1_000_000
PART = 100_000
"""TRL packs these many of the million, per 1,000 rows as it is shipped: its time grows with their number."""
GOAL_FILL, GOAL_OVER, GOAL_RATIO = 0.9985, 2, 100
GOAL_AT = 2048


def main() -> None:
    """Measure, print, judge."""
    needs_shared()
    disable_progress_bars()
    figures: dict[str, Any] = {"sets": {}}
    goals: dict[str, bool] = {}
    for name, lengths in (("samsum", samsum_lengths()), ("samsum_like", lognormal_lengths(14_732, 8192))):
        for capacity in CAPACITIES:
            found = against_trl(f"{name}_{capacity}", np.minimum(lengths, capacity), capacity)
            figures["sets"][f"{name}_{capacity}"] = found
            if capacity == GOAL_AT:
                goals[f"{name}: at least {GOAL_FILL:.2%} of {capacity}"] = found["fill"] >= GOAL_FILL
                goals[f"{name}: within {GOAL_OVER} rows of the bound at {capacity}"] = found["over"] <= GOAL_OVER
                figures[f"ratio_trl_{name}"] = found["ratio_trl"]
    lengths = lognormal_lengths(MILLION, GOAL_AT)
    times = [seconds(lambda: best_fit(lengths, GOAL_AT)) for _ in range(ROUNDS)]
    ratio = trl_of(lengths[:PART]) * MILLION / PART / median(times)
    figures["million"] = {**judge(best_fit(lengths, GOAL_AT), lengths, GOAL_AT), "seconds": median(times),
                          "ratio_trl": ratio}
    say(f"a million lengths: {figures['million']}")
    goals[f"a million lengths: {GOAL_RATIO} times as fast as TRL (is {ratio:.0f})"] = ratio >= GOAL_RATIO
    goals[f"a million lengths: at least {GOAL_FILL:.2%}"] = figures["million"]["fill"] >= GOAL_FILL
    finish(figures, goals, ("trl", "datasets"))


def samsum_lengths() -> NDArray[np.int64]:
    """Tokens of each training example of SAMSum, as the pipeline encodes it for Llama 2."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        llama_2_tokenizer().save_pretrained(folder / "tokenizer")
        packs = packs_of(samsum(folder / "rows", 1), folder / "tokenizer", GOAL_AT, folder / "packs")
        starts: NDArray[np.int64] = np.load(packs / "train" / "segments.npy")
        return np.diff(starts)


def against_trl(name: str, lengths: NDArray[np.int64], capacity: int) -> dict[str, Any]:
    """Both packers on the same tokens."""
    say(f"{name}: {len(lengths)} examples, {lengths.sum()} tokens, rows of {capacity}")
    flat = np.arange(lengths.sum(), dtype=np.int32)
    ends = np.cumsum(lengths)
    examples = np.split(flat, ends[:-1])
    dataset = Dataset.from_dict({"input_ids": examples})
    pack = partial(pack_dataset, dataset, capacity, "bfd", {"load_from_cache_file": False})
    times = medians(interleaved({
        "anneal": lambda: seconds(lambda: moved(examples, best_fit(lengths, capacity))),
        "trl": lambda: seconds(pack),
    }, ROUNDS))
    ours = judge(best_fit(lengths, capacity), lengths, capacity)
    fills = np.array([len(row) for row in pack()["input_ids"]])
    trl = {"rows": len(fills), "fill": fills.sum() / (len(fills) * capacity), "over": len(fills) - ours["bound"],
           "seconds": times["trl"]}
    found = {**ours, "seconds": times["anneal"], "trl": trl, "ratio_trl": times["trl"] / times["anneal"]}
    say(f"  anneal {ours['fill']:.3%} (+{ours['over']} rows)   TRL {trl['fill']:.3%} (+{trl['over']} rows)")
    return found


def trl_of(lengths: NDArray[np.int64]) -> float:
    """Seconds that TRL takes to pack examples of these lengths, the median of ROUNDS."""
    examples = np.split(np.arange(lengths.sum(), dtype=np.int32), np.cumsum(lengths)[:-1])
    dataset = Dataset.from_dict({"input_ids": examples})
    pack = partial(pack_dataset, dataset, GOAL_AT, "bfd", {"load_from_cache_file": False})
    return median(seconds(pack) for _ in range(ROUNDS))


def moved(examples: list[NDArray[np.int32]], rows: Rows) -> NDArray[np.int32]:
    """The tokens in their new order."""
    return np.concatenate([examples[index] for index in rows.order])


def judge(rows: Rows, lengths: NDArray[np.int64], capacity: int) -> dict[str, Any]:
    """Rows, how full they are, and how many more than any packing needs. Every example is there once."""
    fills = check(rows, lengths, capacity)
    bound = -(-int(lengths.sum()) // capacity)
    return {"rows": len(rows), "bound": bound, "over": len(rows) - bound,
            "fill": float(fills.sum() / (len(rows) * capacity))}


if __name__ == "__main__":
    main()
