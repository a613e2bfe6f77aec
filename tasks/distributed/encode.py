"""Tokenise and pack clean rows: the child process of the pack step.

In:   job.json (EncodeJob): train.jsonl, validation.jsonl, the base model's tokenizer
Out:  train/*.npy and validation/*.npy (tasks/distributed/data.py), result.json with counts, samples and the
      histogram of lengths
Dies half-way: the folder has no manifest and is thrown away.
Run alone: python -m tasks.distributed.encode job.json
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.crash import crashpoint
from infra.errors import DataError
from infra.records import PackCounts
from tasks.distributed.job import EncodeJob, main_of
from tasks.distributed.model import load_tokenizer
from tasks.distributed.packer import Rows, best_fit, one_each
from tasks.distributed.text import Codec, Segment

SAMPLES = 10
"""Examples shown in the data report."""
SAMPLE_RUNS, RUN_CHARACTERS = 8, 240
"""Of an example at most this many runs of text are shown, and of each its beginning and its end."""
BINS = 40
"""Bars of the histogram of lengths."""


@dataclass
class Encoded:
    """The examples of one split, each a list of isolated segments; and what cutting did to them."""

    ids: list[NDArray[np.int32]]
    labels: list[NDArray[np.bool_]]
    lengths: array[int] = field(default_factory=lambda: array("q"))
    """Tokens of every example before it was cut or split."""
    truncated: int = 0
    lost: int = 0
    split: int = 0


def encode(job: EncodeJob) -> int:
    """Write both splits. The longest row of either has at most `chunk_tokens` tokens."""
    codec = Codec(load_tokenizer(Path(job.tokenizer)))
    counts: dict[str, Any] = {}
    histogram: dict[str, array[int]] = {}
    for split in ("train", "validation"):
        encoded = encode_split(codec, job, Path(job.rows) / f"{split}.jsonl")
        lengths = np.array([len(ids) for ids in encoded.ids], dtype=np.int64)
        rows = best_fit(lengths, job.chunk_tokens) if job.pack else one_each(len(lengths))
        write_rows(Path(job.out) / split, encoded, rows)
        counts[split] = dataclasses.asdict(count(encoded, rows, job.chunk_tokens))
        histogram[split] = encoded.lengths
        if split == "train":
            counts["samples"] = show_samples(codec, encoded)
    counts["bin_tokens"], counts["lengths"] = bins(histogram)
    job.finish(counts)
    return 0


def encode_split(codec: Codec, job: EncodeJob, path: Path) -> Encoded:
    """Tokenise every row; cut or split those longer than `chunk_tokens`.

    Raises DataError for a row that would teach nothing.
    """
    encoded = Encoded([], [])
    for number, row in enumerate(read_rows(path), start=1):
        try:
            segments = codec.row(job.kind, row, job.separator, train_on_prompt=job.train_on_prompt)
        except DataError as error:
            raise DataError(error.found, where=place_of(path, number), fix=error.fix) from error
        ids, labels = flatten(segments)
        encoded.lengths.append(len(ids))
        if len(ids) <= job.chunk_tokens:
            pieces = [(ids, labels)]
        elif job.wrap:
            pieces = list(wrap(ids, labels, job.chunk_tokens))
            encoded.split += 1
        else:
            read = 0 if job.kind == "text" else len(segments[0].ids)
            pieces = [cut(ids, labels, job.chunk_tokens, begin=len(codec.bos), prompt=read)]
            encoded.truncated += 1
            encoded.lost += len(ids) - job.chunk_tokens
        if not any(marks.any() for _, marks in pieces):
            raise DataError(
                f"nothing of it is left to learn in {job.chunk_tokens} tokens: it has {len(ids)}, and what it teaches "
                "comes too late", where=place_of(path, number),
                fix="Raise chunk_size, shorten what stands before the answer, or leave the row out.")
        for piece_ids, piece_labels in pieces:
            encoded.ids.append(piece_ids)
            encoded.labels.append(piece_labels)
    return encoded


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a clean JSONL file, split at line feeds only."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def place_of(path: Path, number: int) -> str:
    """Where the row with this number stood in the user's file; a split of an earlier release does not know."""
    places = path.with_suffix(".places")
    if not places.exists():
        return f"{path.stem} row {number}"
    with places.open(encoding="utf-8", newline="\n") as lines:
        return next(islice(lines, number - 1, None)).rstrip("\n")


def flatten(segments: list[Segment]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Token ids and labels of one example; its first token has nothing to be predicted from."""
    ids = np.fromiter(chain.from_iterable(s.ids for s in segments), dtype=np.int32)
    labels = np.repeat([s.labelled for s in segments], [len(s.ids) for s in segments])
    labels[:1] = False
    return ids, labels


def cut(ids: NDArray[np.int32], labels: NDArray[np.bool_], size: int, *, begin: int, prompt: int
        ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Shorten to `size` tokens: the first `prompt` tokens on their left, after `begin` of them, then the end.

    A completion cut on the right ends without the end token, so the model does not learn to stop there.
    """
    excess = len(ids) - size
    left = min(excess, max(0, prompt - max(1, begin)))
    keep = np.concatenate([np.arange(begin), np.arange(begin + left, len(ids))])[:size]
    return ids[keep], labels[keep]


def wrap(ids: NDArray[np.int32], labels: NDArray[np.bool_], size: int
         ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """Split into pieces of at most `size` tokens; each goes on from the last token of the one before.

    That token is read again, not learned again, so every label is learned exactly once. A piece
    without labels is left out.
    """
    for start in range(0, len(ids) - 1, size - 1):
        piece = labels[start : start + size].copy()
        piece[0] = False
        if piece.any():
            yield ids[start : start + size], piece


def write_rows(folder: Path, encoded: Encoded, rows: Rows) -> None:
    """The four arrays of tasks/distributed/data.py, in row order."""
    folder.mkdir(parents=True)
    ids = [encoded.ids[i] for i in rows.order]
    labels = [encoded.labels[i] for i in rows.order]
    bounds = np.concatenate([[0], np.cumsum([len(x) for x in ids], dtype=np.int64)]).astype(np.int64)
    np.save(folder / "tokens.npy", np.concatenate(ids) if ids else np.zeros(0, np.int32))
    crashpoint("pack.mid_file")
    np.save(folder / "labels.npy", np.concatenate(labels) if labels else np.zeros(0, bool))
    np.save(folder / "segments.npy", bounds)
    np.save(folder / "rows.npy", rows.starts)


def count(encoded: Encoded, rows: Rows, chunk_tokens: int) -> PackCounts:
    """What the pack report shows."""
    tokens = sum(len(ids) for ids in encoded.ids)
    return PackCounts(
        rows=len(rows), examples=len(encoded.lengths), tokens=tokens,
        labelled=int(sum(labels.sum() for labels in encoded.labels)), truncated=encoded.truncated,
        lost=encoded.lost, split=encoded.split, longest=max(encoded.lengths, default=0),
        fill=round(tokens / max(1, len(rows) * chunk_tokens), 6))


def bins(lengths: dict[str, array[int]]) -> tuple[int, dict[str, list[int]]]:
    """The histogram of each split: how many tokens a bar is wide, and how many examples are in each bar."""
    longest = max((max(part, default=0) for part in lengths.values()), default=0)
    width = longest // BINS + 1
    return width, {
        split: np.bincount(np.array(part, dtype=np.int64) // width, minlength=longest // width + 1).tolist()
        for split, part in lengths.items()}


def show_samples(codec: Codec, encoded: Encoded) -> list[dict[str, Any]]:
    """The first example and others taken by chance, as the model sees them: runs of text, read or learned."""
    count = len(encoded.ids)
    others = np.random.default_rng(count).choice(np.arange(1, count), min(SAMPLES, count) - 1, replace=False)
    return [show(codec, encoded.ids[i], encoded.labels[i]) for i in [0, *sorted(others.tolist())]]


def show(codec: Codec, ids: NDArray[np.int32], labels: NDArray[np.bool_]) -> dict[str, Any]:
    """One example: its tokens, and its runs of text with special tokens, long ones without their middle."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(ids)]
    runs = [{"learned": bool(labels[a]), "text": _ends(codec.tokenizer.decode(ids[a:b].tolist()))}
            for a, b in pairwise(edges)]
    return {"tokens": len(ids), "learned": int(labels.sum()), "runs": runs[:SAMPLE_RUNS],
            "more": len(runs[SAMPLE_RUNS:])}


def _ends(text: str) -> str:
    half = RUN_CHARACTERS // 2
    return text if len(text) <= RUN_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"


if __name__ == "__main__":
    main_of(EncodeJob, encode)
