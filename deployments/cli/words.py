"""How the terminal writes times, prices, and what a step made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infra.progress import price_in_words
from infra.records import Base, Dataset, Deployment, Evaluation, Pack, Record, Split, Trained, Version

UNITS = ("B", "kB", "MB", "GB", "TB")


def money(usd: float | None) -> str:
    """The price so far, after two spaces; nothing where it is not known."""
    return "" if usd is None else f"  {price_in_words(usd)}"


def size_in_words(size: float) -> str:
    """Bytes with a decimal unit."""
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"


def summary_of(step: str, result: Record | None) -> str:
    """What a step made, in some words."""
    told = SUMMARIES.get(type(result))
    return told(result) if told is not None and result is not None else ""


def _dataset(data: Dataset) -> str:
    return f"{size_in_words(data.bytes)}{f' of {data.shards} files' if data.shards > 1 else ''}"


def _split(split: Split) -> str:
    left_out = f", {split.dropped} left out" if split.dropped else ""
    return f"{split.train_rows} training rows, {split.validation_rows} held out{left_out}"


def _pack(pack: Pack) -> str:
    return f"{pack.train.tokens} tokens in {pack.train.rows} rows, at most {pack.chunk_tokens} each"


def _trained(trained: Trained) -> str:
    return (f"{trained.steps} steps, loss {trained.loss_first:.3f} to {trained.loss_last:.3f}, "
            f"{trained.tokens_per_s:.0f} tokens/s")


def _deployment(deployment: Deployment) -> str:
    return f"answers at {deployment.url}" if deployment.url else "not deployed"


SUMMARIES: dict[type[Any], Callable[[Any], str]] = {
    Dataset: _dataset, Split: _split, Base: lambda base: f"{base.name}, digest {base.digest[:12]}", Pack: _pack,
    Trained: _trained, Evaluation: lambda evaluation: f"{evaluation.samples} held-out rows",
    Version: lambda version: f"{version.destination} version {version.number}", Deployment: _deployment}
