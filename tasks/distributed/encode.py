"""Tokenise and pack clean rows: the child process of the pack step.

In:   job.json (EncodeJob): train.jsonl, validation.jsonl, the base model's tokenizer
Out:  train/*.npy and validation/*.npy (tasks/distributed/packs.py), result.json with counts, samples and the
      histogram of lengths; events.jsonl with the bytes of rows that are tokenised so far
A file is tokenised in parts of fixed size, by several processes; only lengths come back, over which the packing is made
at once. Memory: the tokens of one part a process, and about 20 bytes a row.
Dies half-way: the folder has no manifest and is thrown away.
Run alone: python -m tasks.distributed.encode job.json
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.errors import Transient
from infra.parent_death import die_with_parent
from infra.records import Finding, PackCounts
from tasks.distributed.bin_packing import best_fit, one_each
from tasks.distributed.codec import Codec
from tasks.distributed.contract import SPLITS, EncodeJob, main_of, rows_name
from tasks.distributed.events import Events
from tasks.distributed.examples import Encoded, add, batches_of, line_numbers, place_of, refuse_idle
from tasks.distributed.model import load_tokenizer
from tasks.distributed.packs import Ids, Marks, PackedRows, PackPart, counted, joined, write_index, write_part

PARTS, LEAST_PART_BYTES, MOST_PART_BYTES = 64, 1 << 20, 1 << 24
"""A file is cut into so many parts, if these are neither too small nor too large."""
SAMPLES = 10
"""Examples shown in the data report."""
SAMPLE_RUNS, RUN_CHARACTERS = 8, 240
"""Of an example at most this many runs of text are shown, and of each its beginning and its end."""
SHOWN_PLACES = 5
NO_TEMPLATE = ("the base model has no chat template: conversations are written as `role: text` in lines; a chat model "
               "of the same family has one")
TEMPLATE_FILE = "chat_template.jinja"
BINS = 40
"""Bars of the histogram of lengths."""


@dataclass(frozen=True)
class Written(PackPart):
    """A part that is on disk, with what its report needs."""

    lengths: NDArray[np.integer]
    """Before anything was cut or split; the same array as `tokens` where nothing was."""
    truncated: int
    lost: int
    split: int
    idle: list[tuple[int, int]]
    noted: dict[str, tuple[int, list[int]]]
    """{what: (how many rows, places in the file of the first few)}"""


def encode(job: EncodeJob) -> int:
    """Write both splits. The longest row of either has at most `chunk_tokens` tokens."""
    codec = Codec(load_tokenizer(Path(job.tokenizer)), templated=job.templated)
    counts: dict[str, Any] = {}
    histogram: dict[str, list[NDArray[np.integer]]] = {}
    events, before, findings = Events(Path(job.out), total=0), 0, about_template(codec, job)
    for split in SPLITS:
        folder = Path(job.out) / split
        folder.mkdir(parents=True)
        path = Path(job.rows) / rows_name(split)
        parts = []
        for done, part in write_parts(codec, job, path, folder):
            parts.append(part)
            events.emit("tokenised", bytes=before + done)
        before += path.stat().st_size
        refuse_idle(path, [row for part in parts for row in part.idle], job.chunk_tokens)
        findings += found_in(path, parts)
        tokens = joined([part.tokens for part in parts])
        rows = best_fit(tokens, job.chunk_tokens) if job.pack else one_each(len(tokens))
        write_index(folder, parts, rows)
        histogram[split] = [part.lengths for part in parts]
        counts[split] = dataclasses.asdict(count(parts, len(rows), job.chunk_tokens))
        if split == "train":
            counts["samples"] = show_samples(codec, PackedRows(folder))
    counts["bin_tokens"], counts["lengths"] = bins(histogram)
    counts["findings"] = [finding.to_json() for finding in findings]
    job.finish(counts)
    return 0


def write_parts(codec: Codec, job: EncodeJob, path: Path, folder: Path) -> Iterator[tuple[int, Written]]:
    """Tokenise a file in parts, by as many processes as the job says; with each part how many bytes are done.

    Raises DataError for a row that cannot be encoded, Transient when a process was killed.
    """
    size = path.stat().st_size
    part = min(max(size // PARTS, LEAST_PART_BYTES), MOST_PART_BYTES)
    work = partial(write_one, codec, job, path, folder, part)
    ends = [min(start + part, size) for start in range(0, size, part)]
    processes = min(job.processes, len(ends))
    if processes < 2:
        yield from zip(ends, map(work, range(len(ends))), strict=True)
        return
    with ProcessPoolExecutor(processes, get_context("fork"), _begin, (work, os.getpid())) as pool:
        try:
            yield from zip(ends, pool.map(_one, range(len(ends))), strict=True)
        except BrokenProcessPool as error:
            raise Transient("a process that tokenised was killed", where=path.stem,
                            fix="If it was short of memory, lower ANNEAL_THREADS.") from error


def write_one(codec: Codec, job: EncodeJob, path: Path, folder: Path, part: int, number: int) -> Written:
    """Tokenise the lines that begin in the part with this number; parts have `part` bytes."""
    encoded = Encoded()
    for batch in batches_of(path, number * part, part):
        add(encoded, codec, job, path, batch)
    written = write_part(folder, number, encoded.ids, encoded.labels, vocabulary=codec.vocabulary)
    lengths = counted(encoded.lengths) if encoded.truncated or encoded.split else written.tokens
    return Written(
        written.tokens, written.labelled, lengths, encoded.truncated, encoded.lost, encoded.split, encoded.idle,
        {what: (len(places), places[:SHOWN_PLACES]) for what, places in encoded.noted.items()})


def about_template(codec: Codec, job: EncodeJob) -> list[Finding]:
    """What is to be said of the base's chat template, if conversations are to be shown by it."""
    if job.kind != "messages" or codec.tokenizer.chat_template:
        return []
    return [Finding(what=NO_TEMPLATE, count=1, first=[TEMPLATE_FILE])]


def found_in(path: Path, parts: list[Written]) -> list[Finding]:
    """What is to be said of the rows of a file, with the places of the first few."""
    whats = dict.fromkeys(what for part in parts for what in part.noted)
    findings = []
    for what in whats:
        places = [at for part in parts for at in part.noted.get(what, (0, []))[1]][:SHOWN_PLACES]
        count = sum(part.noted.get(what, (0, []))[0] for part in parts)
        findings.append(Finding(what=what, count=count, first=[
            place_of(path, number) for number in line_numbers(path, places)]))
    return findings


def count(parts: list[Written], rows: int, chunk_tokens: int) -> PackCounts:
    """What the pack report shows."""
    tokens = sum(int(part.tokens.sum()) for part in parts)
    return PackCounts(
        rows=rows, examples=sum(len(part.lengths) for part in parts), tokens=tokens,
        labelled=sum(int(part.labelled.sum()) for part in parts), truncated=sum(part.truncated for part in parts),
        lost=sum(part.lost for part in parts), split=sum(part.split for part in parts),
        longest=max((int(part.lengths.max(initial=0)) for part in parts), default=0),
        fill=round(tokens / max(1, rows * chunk_tokens), 6))


def bins(lengths: dict[str, list[NDArray[np.integer]]]) -> tuple[int, dict[str, list[int]]]:
    """The histogram of each split: how many tokens a bar is wide, and how many examples are in each bar."""
    longest = max((int(part.max(initial=0)) for parts in lengths.values() for part in parts), default=0)
    width = longest // BINS + 1
    bars = longest // width + 1
    found = {split: np.zeros(bars, np.int64) for split in lengths}
    for split, parts in lengths.items():
        for part in parts:
            found[split] += np.bincount(part.astype(np.int64) // width, minlength=bars)
    return width, {split: counts.tolist() for split, counts in found.items()}


def show_samples(codec: Codec, packs: PackedRows) -> list[dict[str, Any]]:
    """The first example and others taken by chance, as the model sees them: runs of text, read or learned."""
    count = packs.segments
    others = 1 + np.random.default_rng(count).choice(count - 1, min(SAMPLES, count) - 1, replace=False)
    return [show_example(codec, *packs.segment(i)) for i in [0, *sorted(others.tolist())]]


def show_example(codec: Codec, ids: Ids, labels: Marks) -> dict[str, Any]:
    """One example: its tokens, and its runs of text with special tokens, long ones without their middle."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(ids)]
    runs = [{"learned": bool(labels[a]), "text": _ends(codec.tokenizer.decode(ids[a:b].tolist()))}
            for a, b in pairwise(edges)]
    return {"tokens": len(ids), "learned": int(labels.sum()), "runs": runs[:SAMPLE_RUNS],
            "more": len(runs[SAMPLE_RUNS:])}


def _ends(text: str) -> str:
    half = RUN_CHARACTERS // 2
    return text if len(text) <= RUN_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"


_work: Callable[[int], Written]
"""What a process of the pool does; its own copy of the parent's memory holds it."""


def _begin(work: Callable[[int], Written], parent: int) -> None:
    global _work
    die_with_parent(parent)
    _work = work


def _one(number: int) -> Written:
    return _work(number)


if __name__ == "__main__":
    main_of(EncodeJob, encode)
