"""Scan the text of every row: what makes it doubtful, and its signature for near duplicates.

In:   FileScans, whose rows are clean     Out: a QualityScan
A large file is scanned in parts, each by a process of its own, which leaves its arrays in a scratch folder. Rows are
counted through all files, and those from minhash.MOST_ROWS on get no signature, so the result does not depend on the
number of processes.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from infra.errors import Transient
from infra.process import no_grace, spawn, stop_tree, tail
from tasks.data import schema as check
from tasks.data.jsonl import numbered
from tasks.data.minhash import MOST_ROWS, Sketches, grams_of, sketch_of
from tasks.data.quality_rules import RULES, flags_of
from tasks.data.scan import FileScan, judge_line
from tasks.data.sources import Places

DOUBTS = {rule: 1 << i for i, rule in enumerate(RULES)}
"""The bit of each rule that a row may meet."""
COPY_BYTES = 1 << 20
POLL_S = 0.05
S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True)
class QualityScan:
    """What was seen in all rows, those of the first file before those of the second."""

    doubts: NDArray[np.uint16]
    """DOUBTS of each row."""
    sketches: Sketches
    """On disk, in the scratch folder."""
    spaced: int
    """Rows whose prompt and completion keep a distance already."""


@dataclass(frozen=True)
class ScanPart:
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


def scan_quality(files: list[FileScan], shared: int, processes: int, folder: Path) -> QualityScan:
    """Scan all rows, in up to `processes` processes. Near duplicates are looked for after the first `shared` words.

    Raises Transient when a process died.
    """
    parts: list[ScanPart] = []
    for number, file in enumerate(files):
        row = sum(one.count for one in files[:number])
        for start, before, end in cuts(file, processes):
            out = str(folder / f"part-{len(parts):02}")
            parts.append(ScanPart(str(file.path), start, end, row + before, shared, out))
    if len(parts) > len(files):
        _side_by_side(parts, processes, folder)
    else:
        for part in parts:
            scan_part(part)
    return QualityScan(
        _joined(parts, "doubts", np.uint16),
        Sketches(_appended(parts, "values"), _joined(parts, "rows", np.int64)),
        sum(json.loads(Path(f"{part.out}.json").read_text()) for part in parts))


def cuts(file: FileScan, pieces: int) -> list[tuple[int, int, int | None]]:
    """(first byte, rows before it, byte behind the last one) of at most so many pieces of about the same size."""
    size = file.path.stat().st_size
    wanted = [size * i / pieces for i in range(1, pieces)]
    inner = {min(file.marks, key=lambda mark: abs(mark[0] - place)) for place in wanted} if file.marks else set()
    begins = [(0, 0), *sorted(inner)]
    ends = [*(at for at, _ in begins[1:]), None]
    return [(at, rows, end) for (at, rows), end in zip(begins, ends, strict=True)]


def scan_part(part: ScanPart) -> None:
    """Scan one part, and leave its arrays."""
    doubts, rows, spaced, places = array("H"), array("q"), 0, Places(part.path)
    with Path(f"{part.out}.values").open("wb") as values:
        lines = numbered(Path(part.path), start=part.start, end=part.end)
        for number, (line_number, line) in enumerate(lines, start=part.row):
            row = judge_line(line, line_number, places)
            texts = check.texts_of(row.value, row.kind)
            words = "\n".join(texts).lower().split()
            grams = grams_of(words)
            doubts.append(sum(DOUBTS[rule] for rule in flags_of(texts, words, grams)))
            spaced += row.kind == "prompt" and (texts[0][-1:].isspace() or texts[1][:1].isspace())
            if number < MOST_ROWS and (compared := grams[part.shared :]):
                values.write(sketch_of(compared))
                rows.append(number)
    Path(f"{part.out}.doubts").write_bytes(doubts)
    Path(f"{part.out}.rows").write_bytes(rows)
    Path(f"{part.out}.json").write_text(json.dumps(spaced))


def _side_by_side(parts: list[ScanPart], processes: int, folder: Path) -> None:
    log, waiting = folder / "scan.log", list(parts)
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


def _joined(parts: list[ScanPart], name: str, kind: type[S]) -> NDArray[S]:
    """The arrays of all parts as one, without holding any of it twice."""
    files = [Path(f"{part.out}.{name}") for part in parts]
    sizes = [file.stat().st_size // np.dtype(kind).itemsize for file in files]
    whole, at = np.empty(sum(sizes), kind), 0
    for file, size in zip(files, sizes, strict=True):
        with file.open("rb") as source:
            source.readinto(whole[at : at + size].data)
        at += size
    return whole


def _appended(parts: list[ScanPart], name: str) -> Path:
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
    scan_part(ScanPart(**json.loads(Path(sys.argv[1]).read_text())))
