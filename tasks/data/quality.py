"""Look at the text of every row: what makes it doubtful, and its signature for near duplicates.

In:   files of clean rows, surveyed     Out: a `Looked`
A large file is looked at in parts, each by a process of its own, which leaves three arrays in a scratch folder. The
signatures of rows beyond near.MOST_ROWS are not made; row numbers, not parts, decide, so that the findings do not
depend on how many processes there were.
Dies half-way: the scratch folder is swept, and its processes die with their parent.
Run alone: python -m tasks.data.quality PART.json
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from infra.errors import Transient
from infra.process import no_grace, spawn, stop_tree, tail
from tasks.data import schema as check
from tasks.data.jsonl import numbered
from tasks.data.minhash import MOST_ROWS, VALUES, Sketches, grams_of, sketch_of, sketches_of
from tasks.data.quality_rules import ECHO, RULES, echoes, flags_of
from tasks.data.scan import Row, Survey, judge
from tasks.data.sources import Places
from tasks.data.words import Words, words_of

DOUBTS = {rule: 1 << i for i, rule in enumerate(RULES)}
"""The bit of each rule that a row may meet."""
BATCH_ROWS, BATCH_BYTES = 1 << 8, 1 << 18
"""Looked at together: as much as a processor's cache holds."""
COPY_BYTES = 1 << 20
POLL_S = 0.05
S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True)
class Looked:
    """What was seen in all rows, those of the first file before those of the second."""

    doubts: NDArray[np.uint16]
    """DOUBTS of each row."""
    sketches: Sketches
    """On disk, in the scratch folder."""
    spaced: int
    """Rows whose prompt and completion keep a distance already."""


@dataclass(frozen=True)
class Part:
    """Rows that begin in some bytes of a file."""

    path: str
    start: int
    end: int | None
    row: int
    """Number of the first one, counted through all files."""
    shared: int
    """Words that all rows begin with; they are not compared."""
    out: str
    """What the files of its arrays begin with."""


def look(files: list[Survey], shared: int, processes: int, folder: Path) -> Looked:
    """Look at all rows, by so many processes. Near duplicates are looked for behind the first `shared` words.

    Raises Transient when a process died.
    """
    parts: list[Part] = []
    for number, file in enumerate(files):
        row = sum(one.count for one in files[:number])
        for start, before, end in cuts(file, processes):
            out = str(folder / f"part-{len(parts):02}")
            parts.append(Part(str(file.path), start, end, row + before, shared, out))
    if len(parts) > len(files):
        _side_by_side(parts, processes, folder)
    else:
        for part in parts:
            look_at(part)
    return Looked(
        _joined(parts, "doubts", np.uint16),
        Sketches(_appended(parts, "values"), _joined(parts, "rows", np.int64)),
        sum(json.loads(Path(f"{part.out}.json").read_text()) for part in parts))


def cuts(file: Survey, pieces: int) -> list[tuple[int, int, int | None]]:
    """(first byte, rows before it, byte behind the last one) of at most so many pieces of about the same size."""
    size = file.path.stat().st_size
    wanted = [size * i / pieces for i in range(1, pieces)]
    inner = {min(file.marks, key=lambda mark: abs(mark[0] - place)) for place in wanted} if file.marks else set()
    begins = [(0, 0), *sorted(inner)]
    ends = [*(at for at, _ in begins[1:]), None]
    return [(at, rows, end) for (at, rows), end in zip(begins, ends, strict=True)]


def look_at(part: Part) -> None:
    """Look at one part, and leave its arrays."""
    doubts, rows, spaced = array("H"), array("q"), 0
    with Path(f"{part.out}.values").open("wb") as values:
        first = part.row
        for batch in _batches(part):
            texts = [check.texts_of(row.value, row.kind) for row in batch]
            lower = ["\n".join(one).lower() for one in texts]
            words = words_of(lower)
            doubts.extend(_doubts(texts, lower, words.suspects.tolist()))
            spaced += sum(row.kind == "prompt" and (one[0][-1:].isspace() or one[1][:1].isspace())
                          for row, one in zip(batch, texts, strict=True))
            if (count := min(len(batch), MOST_ROWS - first)) > 0:
                has, sketches = _sketches(lower[:count], words, part.shared)
                values.write(sketches.tobytes())
                rows.extend((first + np.flatnonzero(has)).tolist())
            first += len(batch)
    Path(f"{part.out}.doubts").write_bytes(doubts)
    Path(f"{part.out}.rows").write_bytes(rows)
    Path(f"{part.out}.json").write_text(json.dumps(spaced))


def _batches(part: Part) -> Iterator[list[Row]]:
    places, batch, size = Places(part.path), list[Row](), 0
    for number, line in numbered(Path(part.path), start=part.start, end=part.end):
        batch.append(judge(line, number, places))
        size += len(line)
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _doubts(texts: list[list[str]], lower: list[str], suspects: list[bool]) -> Iterator[int]:
    """DOUBTS of each row; only suspected ones are looked at by all rules."""
    for one, text, suspected in zip(texts, lower, suspects, strict=True):
        if suspected:
            words = text.split()
            yield sum(DOUBTS[doubt] for doubt in flags_of(one, words, grams_of(words)))
        else:
            yield DOUBTS[ECHO] if echoes(one, [], []) else 0


def _sketches(lower: list[str], words: Words, shared: int) -> tuple[NDArray[np.bool_], NDArray[np.uint16]]:
    """Which of these texts have 5-grams behind the first `shared` ones; and the signatures of those."""
    grams = words.grams[: len(lower)]
    hashes, counts = words.hashes[: grams.sum()], np.maximum(grams - shared, 0)
    place = np.arange(len(hashes)) - np.repeat(np.cumsum(grams) - grams, grams)
    has = counts > 0
    values = np.zeros((len(lower), VALUES), np.uint16)
    values[has] = sketches_of(hashes[place >= shared], counts[has])
    for number in np.flatnonzero(words.too_long[: len(lower)]).tolist():
        if compared := grams_of(lower[number].split())[shared:]:
            has[number], values[number] = True, np.frombuffer(sketch_of(compared), np.uint16)
    return has, values[has]


def _side_by_side(parts: list[Part], processes: int, folder: Path) -> None:
    log, waiting = folder / "look.log", list(parts)
    running: list[subprocess.Popen[bytes]] = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                part = waiting.pop(0)
                job = Path(f"{part.out}.job")
                job.write_text(json.dumps(asdict(part)))
                running.append(spawn([sys.executable, "-m", "tasks.data.quality", str(job)], log=log))
            time.sleep(POLL_S)
            ended = {child for child in running if child.poll() is not None}
            if any(child.returncode for child in ended):
                raise Transient("a process that looked at rows died", where="validate",
                                fix=f"Short of memory? Lower ANNEAL_THREADS. The end of its log:\n{tail(log)}")
            running = [child for child in running if child not in ended]
    finally:
        for child in running:
            stop_tree(child, set(), no_grace)


def _joined(parts: list[Part], name: str, kind: type[S]) -> NDArray[S]:
    """The arrays of all parts as one, without holding any of it twice."""
    files = [Path(f"{part.out}.{name}") for part in parts]
    sizes = [file.stat().st_size // np.dtype(kind).itemsize for file in files]
    whole, at = np.empty(sum(sizes), kind), 0
    for file, size in zip(files, sizes, strict=True):
        with file.open("rb") as source:
            source.readinto(whole[at : at + size].data)
        at += size
    return whole


def _appended(parts: list[Part], name: str) -> Path:
    """The files of all parts in one, that of the first."""
    whole = Path(f"{parts[0].out}.{name}")
    with whole.open("ab") as target:
        for part in parts[1:]:
            file = Path(f"{part.out}.{name}")
            with file.open("rb") as source:
                shutil.copyfileobj(source, target, COPY_BYTES)
            file.unlink()
    return whole


if __name__ == "__main__":
    look_at(Part(**json.loads(Path(sys.argv[1]).read_text())))
