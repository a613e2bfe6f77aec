"""Judge every line of a data file: which cannot be used, and what is remembered of the others.

In:   data.jsonl     Out: a FileScan, or one DataError that names every bad line (the first 20 in full)
Streams: what is remembered of a row is on disk (tasks/data/hash_index.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from infra.errors import DataError, shown
from infra.records import Finding, RowKind
from tasks.data import jsonl
from tasks.data import schema as check
from tasks.data.hash_index import HASH_BYTES, Hashes
from tasks.data.jsonl import LINE_BYTES, is_cut, numbered
from tasks.data.sources import Places

SHOWN_ERRORS, SHOWN_RANGES = 20, 20
SHOWN_PLACES = 5
MOST_ROWS = 50_000_000
"""Rows of a file; packing holds about 20 bytes of each."""
MARK_BYTES = 1 << 24
NOTHING: tuple[str, ...] = ()
UNUSED_KEYS, EMPTY_PROMPTS = "rows with keys that are not used", "rows with an empty prompt"


class Row(NamedTuple):
    """One clean row, its line, and the keys that were left out of it."""

    value: dict[str, Any]
    kind: RowKind
    line: int
    unused: Sequence[str]


@dataclass
class Notes:
    """What is worth knowing and no error: counted, with the first few places."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, where: str) -> None:
        """Count one more of `what`."""
        self.counts[what] = count = self.counts.get(what, 0) + 1
        if count <= SHOWN_PLACES:
            self.first.setdefault(what, []).append(where)

    def findings(self) -> list[Finding]:
        """All of it, in the order in which it was met first."""
        return [Finding(what=what, count=count, first=self.first[what]) for what, count in self.counts.items()]


@dataclass
class Alike:
    """Lines with the same mistake, as ranges of their numbers in data.jsonl."""

    first: str
    """The place of the first one, as people look for it: a name, a unit, a number."""
    within: str
    """Where in the line, such as a message."""
    ranges: list[list[int]] = field(default_factory=list)
    left_out: int = 0

    def add(self, number: int) -> None:
        """Take one more line."""
        if self.ranges and not self.left_out and number == self.ranges[-1][1] + 1:
            self.ranges[-1][1] = number
        elif len(self.ranges) < SHOWN_RANGES:
            self.ranges.append([number, number])
        else:
            self.left_out += 1

    def where(self) -> str:
        """d.jsonl line 4 | d.jsonl lines 4-6, 9, and 2 more."""
        (begin, end), *others = self.ranges
        if begin == end and not others:
            return self.first + self.within
        name, _, number = self.first.rpartition(" ")
        shift = int(number) - begin  # a shard's lines are counted from its own first one
        listed = ", ".join(f"{a + shift}" if a == b else f"{a + shift}-{b + shift}" for a, b in self.ranges)
        return f"{name}s {listed}{f', and {self.left_out} more' if self.left_out else ''}{self.within}"


@dataclass
class Bad:
    """The lines that cannot be used."""

    name: str
    lines: int = 0
    count: int = 0
    first: dict[tuple[str, ...], Alike] = field(default_factory=dict)
    """The first few kinds, by their file and by what is wrong with them: found, allowed, fix, where in the line."""
    others: int = 0
    """Bad lines of further kinds."""

    def add(self, error: DataError, number: int, place: str) -> None:
        """Count the line of that number; of the error only the words are kept, not the frames that hold its text."""
        self.count += 1
        within = error.where.removeprefix(place)
        wrong = (error.found, error.allowed, error.fix, within, place.rpartition(" ")[0])
        if wrong not in self.first and len(self.first) == SHOWN_ERRORS:
            self.others += 1
            return
        self.first.setdefault(wrong, Alike(place, within)).add(number)

    def raise_if_any(self) -> None:
        """Raise DataError with what is wrong, each kind once with its lines, and the number of all."""
        if not self.count:
            return
        told = [DataError(found, where=alike.where(), allowed=allowed, fix=fix)
                for (found, allowed, fix, *_), alike in self.first.items()]
        if self.count == 1:
            raise told[0]
        kinds = "".join(f"\n  {one}" for one in told[1:])
        more = f"\n  and {self.others} more" if self.others else ""
        raise DataError(
            f"{self.count} of {self.lines} lines cannot be used. {told[0]}{kinds}{more}", where=self.name)


class Index:
    """The prompts and contents of all rows, by their hashes; files are surveyed into it one after the other."""

    def __init__(self, folder: Path) -> None:
        for name in ("prompts", "contents"):
            (folder / name).mkdir()
        self.prompts, self.contents = Hashes(folder / "prompts"), Hashes(folder / "contents")
        self.rows = 0

    def add(self, value: dict[str, Any], kind: RowKind) -> None:
        """Take one more row."""
        prompt, content = _hashes(value, kind)
        self.prompts.add(prompt, self.rows)
        self.contents.add(content, self.rows)
        self.rows += 1


@dataclass
class FileScan:
    """What is remembered of a file without a bad line."""

    path: Path
    places: Places
    """What a line of it is called."""
    kind: RowKind
    notes: Notes
    first: str
    """The place of the first row."""
    count: int = 0
    """Rows."""
    longest: int = 0
    """In bytes, as JSON."""
    opening: str | None = None
    """What the texts of all rows begin with."""
    marks: list[tuple[int, int]] = field(default_factory=list)
    """(byte at which a line begins, rows before it): where the file can be divided."""

    def rows(self) -> Iterator[Row]:
        """The rows again, in order."""
        for number, line in numbered(self.path):
            yield judge_line(line, number, self.places)

    def mark(self, at: int) -> None:
        """Note that a line begins here, if it is far enough from the last one noted."""
        if at - (self.marks[-1][0] if self.marks else 0) >= MARK_BYTES:
            self.marks.append((at, self.count))

    def add(self, value: dict[str, Any], number: int, length: int) -> None:
        """Take one more row, in line `number`. Raises DataError for more than can be held."""
        if self.count >= MOST_ROWS:
            raise DataError(f"the file has more than {MOST_ROWS} rows", where=self.places.name,
                            fix="Train on a part of it: `shuf -n 1000000` takes a million lines by chance.")
        self.count += 1
        if length > self.longest:
            self.longest = length
        first = value[check.KEYS[self.kind][0]]
        if self.kind == "messages" or not first.startswith(self.opening or "\0"):
            self._compare("\n".join(check.texts_of(value, self.kind)))
        if self.kind == "prompt" and (not first or first.isspace()):
            self.notes.add(EMPTY_PROMPTS, self.places.of(number))

    def note_unused(self, row: Row) -> None:
        """Note the keys that were left out of a row."""
        if row.unused:
            where = self.places.of(row.line)
            self.notes.add(UNUSED_KEYS, f"{where} ({shown(', '.join(row.unused[:SHOWN_PLACES]))})")

    def _compare(self, text: str) -> None:
        if self.opening is None:
            self.opening = text
        elif not text.startswith(self.opening):
            self.opening = common_opening(self.opening, text)


def survey(
    path: Path, places: Places, index: Index | None = None, at: Callable[[int], None] | None = None,
) -> FileScan:
    """Judge every line, and put the rows into the index. Raises DataError for bad lines, and for a file without rows.

    A file with a bad line is read to its end, but nothing more goes into the index. `at` hears how many bytes are read.
    """
    bad, notes, found = Bad(places.name), Notes(), None

    def note(what: str, number: int) -> None:
        notes.add(what, places.of(number))

    def begins(byte: int) -> None:
        if found is not None:
            found.mark(byte)
        if at is not None:
            at(byte)

    longest = jsonl.LINE_BYTES
    for number, line in numbered(path, note, begins=begins):
        bad.lines = number
        common = check.quick(line) if len(line) <= longest else None
        if common and found and common[1] == found.kind:  # for speed: nearly all rows
            value = common[0]
        else:
            try:
                row = judge_line(line, number, places)
                if found is None:
                    found = FileScan(path, places, row.kind, notes, places.of(number))
                check_kind(row, found)
            except DataError as error:
                bad.add(error, number, places.of(number))
                continue
            found.note_unused(row)
            value = row.value
        found.add(value, number, len(line))
        if index is not None and not bad.count:
            index.add(value, found.kind)
    bad.raise_if_any()
    if found is None:
        raise DataError("there is no row in it", where=places.name, allowed="JSONL, one object per line")
    return found


def judge_line(line: bytes, number: int, places: Places) -> Row:
    """One line as a clean row. Raises DataError."""
    if not is_cut(line) and (common := check.quick(line)):
        return Row(common[0], common[1], number, NOTHING)
    where = places.of(number)
    if is_cut(line):
        raise DataError(f"the line is longer than {LINE_BYTES} bytes", where=where,
                        fix="Split the text over several rows, or end every row with a line feed.")
    raw = check.parse(line, where)
    kind = check.kind_of(raw, where)
    value = check.clean(raw, kind, where)
    return Row(value, kind, number, check.unused_keys(raw, kind))


def common_opening(one: str, other: str) -> str:
    """What both begin with."""
    differs = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differs, min(len(one), len(other)))]


def check_kind(row: Row, found: FileScan) -> None:
    """Raise DataError if a row is not like the first one."""
    if row.kind != found.kind:
        raise DataError(f"the row is of the kind {row.kind}", where=found.places.of(row.line),
                        allowed=f"{found.kind}, as in {found.first}", fix="Put each kind into a file of its own.")


def _hashes(value: dict[str, Any], kind: RowKind) -> tuple[bytes, bytes]:
    """Of the prompt, and of all of it."""
    prompt = hashlib.blake2b(check.prompt_of(value, kind).encode(), digest_size=HASH_BYTES)
    if kind == "text":
        return prompt.digest(), prompt.digest()
    whole = prompt.copy()
    last = check.answer_of(value) if kind == "messages" else value["completion"]
    whole.update(b"\0" + last.encode())  # no text has a zero character, and the last message is always an answer
    return prompt.digest(), whole.digest()
