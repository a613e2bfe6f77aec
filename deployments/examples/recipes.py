"""Write the rows of a recipe, and say what to run next.

In:   a recipe's name, a seed     Out: FILE and FILE.held-out.jsonl; they share no person, town or venue
Every row is made of our own sentences and the demo's names; the same seed gives the same bytes.
Dies half-way: run it again.
Run alone: python -m deployments.examples.recipes classification data.jsonl --rows 1500 --seed 7
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from deployments.examples import chat, classification, extraction, question, style, summary
from deployments.examples.names import TEST, TRAIN, Cast
from infra.files import write_atomic

BASE = Path(__file__).resolve().parent / "base"
RECIPES: dict[str, Callable[[Random, Cast, bool], Iterator[dict[str, Any]]]] = {
    "summary": summary.rows, "classification": classification.rows, "question": question.rows,
    "extraction": extraction.rows, "chat": chat.rows, "style": style.rows}
"""Endless rows of a task type: (random numbers, people and places, whether they are held out)."""
KNOBS: dict[str, Any] = {
    "num_train_epochs": 2, "train_batch_size": 8, "learning_rate": 5e-3, "lora_rank": 32, "lora_alpha": 64,
    "lora_dropout": 0.0, "chunk_size": 512, "num_validation_samples": 100, "num_evaluation_samples": 100,
    "validation_batch_size": 20}
"""For the demo's tiny base; a base of billions takes the defaults."""
OWN_KNOBS: dict[str, dict[str, Any]] = {
    "summary": {"max_new_tokens": 48}, "classification": {"max_new_tokens": 8}, "question": {"max_new_tokens": 16},
    "extraction": {"max_new_tokens": 80}, "chat": {"max_new_tokens": 48},
    "style": {"pack_sequences": True, "train_batch_size": 2}}
ROWS, HELD_OUT_ROWS, SEED = 1500, 100, 7


def made(task: str, count: int, seed: int, *, held_out: bool) -> list[dict[str, Any]]:
    """Rows of one split. A shorter list is the start of a longer one."""
    rng = Random(f"{task} {seed} {held_out}")
    return list(islice(RECIPES[task](rng, TEST if held_out else TRAIN, held_out), count))


def write(task: str, file: Path, count: int = ROWS, seed: int = SEED) -> tuple[Path, Path]:
    """Write both splits; returns their paths."""
    others = file.with_suffix(".held-out.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    for path, number in ((file, count), (others, HELD_OUT_ROWS)):
        rows = made(task, number, seed, held_out=path is others)
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file, others


def parameters(task: str, train: Path, held_out: Path, base: Path = BASE) -> dict[str, Any]:
    """A training of that recipe on the demo's base."""
    return {"train_data": str(train), "validation_data": str(held_out), "base_model": str(base),
            "destination": f"recipes/{task}", "task_type": task, **KNOBS, **OWN_KNOBS[task]}


def command(values: dict[str, Any]) -> str:
    """The same as a command line."""
    words = ["anneal", "train"]
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.examples.recipes", description="Write the rows of a recipe.")
    parser.add_argument("task", choices=RECIPES, help="what the model is for")
    parser.add_argument("file", type=Path, metavar="FILE", help="where the training rows go, such as data.jsonl")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"training rows (default: {ROWS})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"same seed, same rows (default: {SEED})")
    options = parser.parse_args()
    train, held_out = write(options.task, options.file, options.rows, options.seed)
    print(f"{options.rows} rows: {train}\n{HELD_OUT_ROWS} held-out rows: {held_out}\n\nNext:\n")
    print(command(parameters(options.task, train, held_out)))


if __name__ == "__main__":
    main()
