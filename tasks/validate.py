"""Judge every line, look at the rows, then split into training and held-out rows.

In:   datasets/<sha>/data.jsonl (and the validation data's)
Out:  splits/<key>/train.jsonl, validation.jsonl with only the keys of their kind; *.places with the line that each
      row came from; dropped.jsonl with what `drop` left out, and why
Three passes over the file: tasks/data/scan.py, tasks/data/cleaning.py, and the writing. What is remembered of a row is
on disk, but for a few numbers.
Dies half-way: nothing is in the store; the same input gives the same split.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray
from prefect.logging import get_run_logger

from infra.crashpoints import crashpoint
from infra.errors import DataError
from infra.files import digest_of
from infra.progress import ProgressLog
from infra.records import Dataset, Finding, Split
from infra.settings import Settings
from infra.spec import Drop
from infra.storage.store import Store
from tasks.data.cleaning import note_held_out, review
from tasks.data.datasets import FILE
from tasks.data.hash_index import Hashes
from tasks.data.scan import SHOWN_PLACES, FileScan, Index, Notes, Row, survey
from tasks.data.sources import places_of
from tasks.distributed.contract import SPLITS, rows_name
from tasks.runs.retries import HOUR_S, found_done, step

RULES = 1
"""Raised when the same rows would be split differently."""
ALL_RULES = 2
"""The same for `drop=all` only."""
CHAT_RULES = 2
"""The same for conversations only."""
HELD_OUT_SHARE = 10
"""At most one row in this many is held out."""
JSON = json.JSONEncoder(ensure_ascii=False)
ONE_ROW = "no held-out rows: the data has one prompt"
DROPPED = rows_name("dropped")
GLUED = ("rows whose completion stands right behind the prompt: most rows bring a space between them, so none is put "
         "there")
UNUSED_COLUMNS = "columns of the table that are not used"


def validate(
    store: Store, data: Dataset, validation: Dataset | None, num_validation: int, drop: Drop = "none", *,
    processes: int = 1, say: Callable[[str], None] = lambda _: None,
) -> Split:
    """Check and split; `processes` look at the rows of a large file. The split is the same for any number of them.
    `say` hears now and then how far it is.

    Raises DataError that names every bad line (the first 20 in full), Transient when one of the processes died.
    """
    split = find_split(store, data, validation, num_validation, drop)
    if split is not None:
        return split
    with store.scratch() as scratch:
        index = Index(scratch)
        train, others = both_surveyed(store, data, validation, index, say)
        if others and others.kind != train.kind:
            raise DataError(f"its rows are of the kind {others.kind}", where=others.places.name,
                            allowed=f"{train.kind}, as in the training data")
        say(f"looking at {index.rows} rows: copies, near copies, doubtful ones")
        found = review(train, others, index, drop, folder=scratch, processes=processes)
        kept = found.kept
        if not kept.any():
            raise DataError(f"drop is {drop}, and no row is left", where=train.places.name, fix="Set drop to none.")
        held_out = np.zeros_like(kept) if others else hold_out(index.prompts, kept, num_validation)
    if held_out.any():
        note_held_out(found, held_out)
    shown = {row for _, rows in found.noted.values() for row in rows}
    places: dict[int, str] = {}
    separator = "" if found.spaced * 2 > found.rows else "\n"
    glues, glued = train.kind == "prompt" and not separator and found.spaced < found.rows, Notes()
    with store.draft() as draft:
        with Files(draft.path, not kept.all()) as files:
            so_far = ProgressLog(say, "written", "rows", train.count)
            for number, row in enumerate(train.rows()):
                so_far.at(number)
                side, where = "validation" if held_out[number] else "train", train.places.of(row.line)
                files.write(row, where, side, found.reason(number))
                if glues and not keeps_distance(row.value):
                    glued.add(GLUED, where)
                if number in shown:
                    places[number] = where
            if others:
                for row in islice(others.rows(), num_validation):
                    files.write(row, others.places.of(row.line), "validation")
        key = _key(data, validation, num_validation, drop, chat=train.kind == "messages")
        split = Split(
            folder=split_folder(key), digest=key, kind=train.kind, data=data.folder,
            separator=separator,
            train_rows=files.rows["train"], validation_rows=files.rows["validation"], dropped=files.rows["dropped"],
            duplicates=train.count - found.prompts, leaks=found.leaks, longest_characters=train.longest,
            findings=_left_out(data) + _findings(train, others, files.rows["validation"]) + glued.findings()
            + found.findings(places),
            compared=len(found.compared))
        crashpoint("validate.before_commit")
        draft.commit(split.folder, split.to_json())
    return split


def find_split(
    store: Store, data: Dataset, validation: Dataset | None, num_validation: int, drop: Drop = "none",
) -> Split | None:
    """The split made earlier from the same data, if it still verifies."""
    for chat in (False, True):  # what kind the rows are of is not known yet
        manifest = store.find(split_folder(_key(data, validation, num_validation, drop, chat=chat)))
        found = Split.kept(manifest.record if manifest else None)
        if found is not None and (found.kind == "messages") == chat:
            return found
    return None


def split_folder(digest: str) -> str:
    """Name in the store of the split with this digest."""
    return f"splits/{digest[:32]}"


def both_surveyed(
    store: Store, data: Dataset, validation: Dataset | None, index: Index, say: Callable[[str], None],
) -> tuple[FileScan, FileScan | None]:
    """Judge the validation data also where the training data is bad: raises one DataError for both."""
    try:
        train = surveyed(store, data, index, ProgressLog(say, "judged", "MB", data.bytes).at)
    except DataError as error:
        if validation is None:
            raise
        try:
            surveyed(store, validation)
        except DataError as other:
            raise DataError(f"{error}\n{other}", where="training and validation data") from error
        raise
    return train, surveyed(store, validation, index) if validation else None


def surveyed(
    store: Store, data: Dataset, index: Index | None = None, at: Callable[[int], None] | None = None,
) -> FileScan:
    """Fetch a data set and judge its lines; they are called by the files that they came from."""
    folder = store.fetch(data.folder)
    return survey(folder / FILE, places_of(folder, data), index, at)


def hold_out(prompts: Hashes, kept: NDArray[np.bool_], wanted: int) -> NDArray[np.bool_]:
    """Which rows are held out: the prompts with the smallest hashes, every copy of a prompt together.

    At most a tenth of the rows that are kept, never all; the rarest prompt if every one has more copies than that.
    """
    held = np.zeros_like(kept)
    room = min(wanted, max(1, np.count_nonzero(kept) // HELD_OUT_SHARE))
    seen, rarest = 0, (len(kept) + 1, np.zeros(0, np.int64))
    for groups in prompts.groups():
        copies = groups.count(kept)
        for number in np.flatnonzero(copies).tolist():
            seen += 1
            if copies[number] <= room:
                held[groups.group(number)] = True
                room -= copies[number]
            elif copies[number] < rarest[0]:
                rarest = (copies[number], groups.group(number))
            if room == 0 and seen > 1 and held.any():
                return held
    if seen < 2:
        return np.zeros_like(kept)
    if not held.any():
        held[rarest[1]] = True
    return held


def keeps_distance(row: dict[str, Any]) -> bool:
    """Whether prompt and completion have a space or a line break between them."""
    return bool(row["prompt"][-1:].isspace() or row["completion"][:1].isspace())


def line_of(value: dict[str, Any]) -> bytes:
    """What JSON makes of a clean row. orjson writes strings alike, five times as fast, but no spaces between."""
    if "messages" in value:
        return JSON.encode(value).encode()
    return b"{%s}" % b", ".join([b'"%s": %s' % (key.encode(), orjson.dumps(text)) for key, text in value.items()])


class Files:
    """The files of a split while they are written; `rows` counts what went into each."""

    def __init__(self, folder: Path, drops: bool) -> None:
        self._folder, self._stack = folder, ExitStack()
        self.rows = {"train": 0, "validation": 0, "dropped": 0}
        self._rows = {name: self._new(rows_name(name)) for name in self.rows if drops or name != "dropped"}
        self._places = {name: self._new(f"{name}.places") for name in SPLITS}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def write(self, row: Row, where: str, name: str, reason: str | None = None) -> None:
        """Put a row and its place into a split, or among the dropped ones if there is a reason."""
        if reason is None:
            self._put(name, line_of(row.value))
            self._places[name].write(where.encode() + b"\n")
        else:
            self._put("dropped", JSON.encode({"where": where, "reason": reason, "row": row.value}).encode())

    def _put(self, name: str, line: bytes) -> None:
        self._rows[name].write(line + b"\n")
        self.rows[name] += 1
        crashpoint("validate.mid_file")

    def _new(self, name: str) -> BinaryIO:
        return self._stack.enter_context((self._folder / name).open("wb"))


def _left_out(data: Dataset) -> list[Finding]:
    """The columns of a table that are no part of its rows."""
    if not data.unused:
        return []
    return [Finding(what=UNUSED_COLUMNS, count=len(data.unused), first=data.unused[:SHOWN_PLACES])]


def _findings(train: FileScan, others: FileScan | None, held: int) -> list[Finding]:
    """What was noted of the files."""
    findings = train.notes.findings() + (others.notes.findings() if others else [])
    if held == 0:
        findings.append(Finding(what=ONE_ROW, count=1, first=[train.first]))
    return findings


def _key(data: Dataset, validation: Dataset | None, num_validation: int, drop: Drop, *, chat: bool) -> str:
    parts = [RULES, data.sha256, validation and validation.sha256, num_validation, *([CHAT_RULES] if chat else [])]
    return digest_of(parts if drop == "none" else [*parts, drop, *([ALL_RULES] if drop == "all" else [])])


@step("validate", timeout_s=2 * HOUR_S)
def validate_task(
    data: Dataset, validation: Dataset | None, num_validation: int, drop: Drop, subject: str,
) -> Split:
    """Judge and split; returns the Split."""
    settings = Settings()
    store = Store(settings)
    found = find_split(store, data, validation, num_validation, drop)
    split = found or validate(
        store, data, validation, num_validation, drop, processes=settings.threads_for(1),
        say=get_run_logger().info)
    tell(split, drop, get_run_logger().warning)
    return found_done(split) if found else split


def tell(split: Split, drop: Drop, warn: Callable[[str], object]) -> None:
    """What was found in the data, and what became of it."""
    for finding in split.findings:
        warn(str(finding))
    if split.dropped:
        warn(f"drop={drop} left {split.dropped} rows out of those found; they are in {split.folder}/{DROPPED}")
