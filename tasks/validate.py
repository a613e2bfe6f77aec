"""Judge every line, then split into training and held-out rows.

In:   datasets/<sha>/data.jsonl (and the validation data's)
Out:  splits/<key>/train.jsonl, validation.jsonl with only the keys of their kind
Streams: memory grows with the number of rows (a 16-byte hash each), not with their text.
Dies half-way: nothing is in the store; the same input gives the same split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from infra.crash import crashpoint
from infra.errors import DataError
from infra.files import digest_of
from infra.records import Dataset, RowKind, Split
from infra.settings import Settings
from infra.store import Store
from tasks import rows as check
from tasks.ingest import FILE
from tasks.policy import HOUR_S, found_done, step

RULES = 1
"""Raised when the same data would be judged or split differently."""
SHOWN_ERRORS = 20
HELD_OUT_SHARE = 10
"""At most one row in this many is held out."""


class Row(NamedTuple):
    """One clean row and the hash of its prompt."""

    value: dict[str, Any]
    kind: RowKind
    prompt: bytes


@dataclass
class Bad:
    """The lines that cannot be used."""

    name: str
    lines: int = 0
    count: int = 0
    first: list[DataError] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        """Count one; the first few are kept."""
        self.count += 1
        if self.count <= SHOWN_ERRORS:
            self.first.append(error)

    def raise_if_any(self) -> None:
        """Raise DataError with the first bad lines and the number of all."""
        if not self.count:
            return
        first = self.first[0]
        if self.count == 1:
            raise first
        others = "\n".join(f"  {error}" for error in self.first[1:])
        more = f"\n  and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        raise DataError(
            f"{self.count} of {self.lines} lines cannot be used. {first}\n{others}{more}", where=self.name)


def validate(store: Store, data: Dataset, validation: Dataset | None, num_validation: int) -> Split:
    """Check and split. Raises DataError that names every bad line (the first 20 in full)."""
    split = find_split(store, data, validation, num_validation)
    if split is not None:
        return split
    train_file = store.fetch(data.folder) / FILE
    prompts, kind, longest = survey(train_file, Path(data.source).name)
    with store.draft() as draft:
        if validation is None:
            held_out = hold_out(prompts, num_validation)
            sources = [(train_file, data.source)]
        else:
            held_out = set()
            file = store.fetch(validation.folder) / FILE
            others, other_kind, _ = survey(file, Path(validation.source).name)
            if other_kind != kind:
                raise DataError(f"its rows are of the kind {other_kind}", where=Path(validation.source).name,
                                allowed=f"{kind}, as in the training data")
            sources = [(train_file, data.source), (file, validation.source)]
        spaced = [_brings_space(row) for path, name in sources for row in read(path, name)]
        train = _write(draft.path / "train.jsonl", (
            row for row in read(train_file, data.source) if row.prompt not in held_out))
        if validation is None:
            chosen = (row for row in read(train_file, data.source) if row.prompt in held_out)
        else:
            chosen = (row for i, row in enumerate(read(file, validation.source)) if i < num_validation)
        held = _write(draft.path / "validation.jsonl", chosen)
        key = _key(data, validation, num_validation)
        split = Split(
            folder=f"splits/{key[:32]}", digest=key, kind=kind, separator="" if sum(spaced) * 2 > len(spaced) else "\n",
            train_rows=train, validation_rows=held, duplicates=len(prompts) - len(set(prompts)),
            leaks=0 if validation is None else len(set(prompts) & set(others)), longest_characters=longest)
        crashpoint("validate.before_commit")
        draft.commit(split.folder, split.to_json())
    return split


def find_split(store: Store, data: Dataset, validation: Dataset | None, num_validation: int) -> Split | None:
    """The split made earlier from the same data, if it still verifies."""
    manifest = store.find(f"splits/{_key(data, validation, num_validation)[:32]}")
    return Split.of(dict(manifest.record)) if manifest else None


def survey(path: Path, name: str) -> tuple[list[bytes], RowKind, int]:
    """Judge every line: prompt hashes in order, the rows' kind, the longest row in characters."""
    bad, prompts, kind, longest = Bad(name), [], None, 0
    for number, line in _lines(path):
        bad.lines = number
        try:
            row = _judge(line, f"{name} line {number}", kind)
        except DataError as error:
            bad.add(error)
            continue
        kind = row.kind
        prompts.append(row.prompt)
        longest = max(longest, len(line))
    bad.raise_if_any()
    if kind is None:
        raise DataError("there is no row in it", where=name, allowed="JSONL, one object per line")
    return prompts, kind, longest


def hold_out(prompts: list[bytes], wanted: int) -> set[bytes]:
    """The prompts that are held out: those with the smallest hashes, every copy of a prompt together.

    At most a tenth of the rows, never all; the rarest prompt if every one has more copies than that.
    """
    copies: dict[bytes, int] = {}
    for prompt in prompts:
        copies[prompt] = copies.get(prompt, 0) + 1
    if len(copies) < 2:
        return set()
    room = min(wanted, max(1, len(prompts) // HELD_OUT_SHARE))
    chosen: set[bytes] = set()
    for prompt in sorted(copies):
        if copies[prompt] <= room:
            chosen.add(prompt)
            room -= copies[prompt]
        if room == 0:
            break
    return chosen or {min(copies, key=lambda prompt: (copies[prompt], prompt))}


def read(path: Path, name: str) -> Iterator[Row]:
    """The rows of a file that was surveyed."""
    kind: RowKind | None = None
    for number, line in _lines(path):
        row = _judge(line, f"{name} line {number}", kind)
        kind = row.kind
        yield row


def _judge(line: bytes, where: str, kind: RowKind | None) -> Row:
    raw = check.parse(line, where)
    found = check.kind_of(raw, where)
    if kind is not None and found != kind:
        raise DataError(f"the row is of the kind {found}", where=where, allowed=f"{kind}, as in the lines before",
                        fix="Put each kind into a file of its own.")
    row = check.clean(raw, found, where)
    prompt = json.dumps(row["messages"][:-1]) if found == "messages" else row[check.KEYS[found][0]]
    return Row(row, found, hashlib.blake2b(prompt.encode(), digest_size=16).digest())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, without a byte-order mark and without blank ones."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(check.BOM)
            if line.strip():
                yield number, line


def _brings_space(row: Row) -> bool:
    """True if prompt and completion already keep a distance."""
    return row.kind == "prompt" and (row.value["prompt"][-1:].isspace() or row.value["completion"][:1].isspace())


def _write(path: Path, chosen: Iterator[Row]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in chosen:
            file.write(json.dumps(row.value, ensure_ascii=False) + "\n")
            count += 1
            crashpoint("validate.mid_file")
    return count


def _key(data: Dataset, validation: Dataset | None, num_validation: int) -> str:
    return digest_of([RULES, data.sha256, validation and validation.sha256, num_validation])


@step("validate", timeout_s=2 * HOUR_S)
def validate_task(data: Dataset, validation: Dataset | None, num_validation: int, subject: str) -> Split:
    """Judge and split; returns the Split."""
    store = Store(Settings())
    found = find_split(store, data, validation, num_validation)
    return found_done(found) if found else validate(store, data, validation, num_validation)
