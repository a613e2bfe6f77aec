"""Tables as JSONL: CSV and Parquet, where the source says so: csv:ADDRESS, parquet:ADDRESS.

In:   the bytes of a table     Out: JSONL, an object a record, with the columns that rows are made of and no others
Nothing is guessed of values: an empty field, a null or a number is judged later like that of any row, and what JSON has
no word for is refused. Streams; Parquet is read from its end, so it is first copied to a file, and by
tasks/data/parquet.py.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from infra.errors import DataError, shown
from infra.files import READ_BYTES
from infra.records import RowKind
from infra.storage.addresses import Form
from tasks.data.columns import changed, missing_column
from tasks.data.compression import DELIMITERS, Readable, bounded, unpacked
from tasks.data.jsonl import LINE_BYTES
from tasks.data.parquet import ERROR, UNUSED, rows_of
from tasks.data.schema import CLASSES, KEYS, other_form, respelled

RECORD_CHARACTERS = 2 * LINE_BYTES
"""Of CSV, those of columns that are left out included."""
SHOWN_COLUMNS = 500
RECORDS_OF_CSV = "CSV with a first line of column names"
QUOTE = "Put fields with commas, quotes or line breaks into double quotes."


def jsonl_of(
    form: Form, raw: Readable, name: str, folder: Path, limit_bytes: int, columns: dict[str, str] | None = None,
    unused: list[str] | None = None,
) -> Iterator[bytes]:
    """Chunks of JSONL. `folder` takes a copy of a Parquet file of at most `limit_bytes`. `columns` says which ones are
    read as which keys; `unused` takes the names of those of a table that are left out.

    Raises DataError for a file that is not what the source says, lacks the columns of a row, or is damaged.
    """
    columns, unused = columns or {}, unused if unused is not None else []
    if form == "csv":
        return _of_csv(unpacked(raw, name, RECORDS_OF_CSV), name, columns, unused)
    if form == "parquet":
        return _of_parquet(raw, name, folder, limit_bytes, columns, unused)
    rows = unpacked(raw, name)
    return changed(rows, form, columns, name) if columns or form != "jsonl" else rows


def _of_csv(
    chunks: Iterator[bytes], name: str, columns: dict[str, str], unused: list[str],
) -> Iterator[bytes]:
    text = io.TextIOWrapper(io.BufferedReader(_Stream(chunks)), encoding="utf-8-sig", newline="")
    csv.field_size_limit(LINE_BYTES)
    lines = Lines(text, name)
    line = 1
    try:
        first = next(lines, "")
        delimiter = next((sign for sign in DELIMITERS if _columns(_record(first, sign))
                          or (columns and set(columns.values()) <= set(_record(first, sign)))), ",")
        header = _record(first, delimiter)
        wanted = columns_in(header, ("prompt", "text"), name, columns)
        unused += [column for column in header if column not in wanted.values()]
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        line, lines.characters = 2, 0
        for record in records:
            if len(record) not in (0, len(header)):
                raise DataError(f"the record has {len(record)} fields", where=f"{name} line {line}",
                                allowed=f"{len(header)}, as in the first line", fix=QUOTE)
            row = dict(zip(header, record, strict=False))
            yield orjson.dumps({key: row[column] for key, column in wanted.items()}) + b"\n" if record else b"\n"
            line = records.line_num + 2
            lines.characters = 0
    except csv.Error as error:
        raise DataError(f"not CSV: {error}, in the record that begins there", where=f"{name} line {line}",
                        fix=QUOTE) from error
    except UnicodeDecodeError as error:
        raise DataError("it is not UTF-8", where=name, fix="Save the file as UTF-8.") from error


def _of_parquet(
    raw: Readable, name: str, folder: Path, limit_bytes: int, columns: dict[str, str], unused: list[str],
) -> Iterator[bytes]:
    path = folder / "table.parquet"
    with path.open("wb") as copy:
        while chunk := raw.read(READ_BYTES):
            copy.write(chunk)
            if copy.tell() > limit_bytes:
                raise DataError(f"more than {limit_bytes} bytes", where=name,
                                fix="Raise ANNEAL_MAX_DATA_BYTES if that is meant.")
        size = copy.tell()
    try:
        yield from bounded(rows_of(path, name, columns), lambda: size, name)
        unused += json.loads(path.with_suffix(UNUSED).read_text(encoding="utf-8"))
    finally:
        path.unlink(missing_ok=True)
        path.with_suffix(UNUSED).unlink(missing_ok=True)
        path.with_suffix(ERROR).unlink(missing_ok=True)


def columns_in(names: list[str], kinds: tuple[RowKind, ...], name: str, columns: dict[str, str]) -> dict[str, str]:
    """{key of a row: its column}. Raises DataError if there are none, those of several kinds of row, or a text with a
    label, which is a class to be learned and no text."""
    if columns:
        for column in columns.values():
            if column not in names:
                raise missing_column(column, names, name)
        return columns
    found = _columns(names, kinds)
    if found == ("text",) and "label" in names:
        raise DataError("the columns are a text and its label", where=name, allowed="prompt and completion",
                        fix=CLASSES)
    if found:
        beside = ("tools",) if "tools" in names and found == ("messages",) else ()
        return {key: key for key in (*found, *beside)}
    allowed = " or ".join(" and ".join(KEYS[kind]) for kind in kinds)
    usual = "Rename them: the input is the prompt, the answer the completion."
    if names and names[0].startswith("{"):
        usual = "It looks like JSONL: leave the word in front of the address out."
    raise DataError(f"the columns are {shown(', '.join(names), SHOWN_COLUMNS)}" if names else "there are no columns",
                    where=name, allowed=f"those of one kind of row: {allowed}; others are left out",
                    fix=respelled(names) or other_form(names) or usual)


def _columns(names: list[str], kinds: tuple[RowKind, ...] = ("prompt", "text")) -> tuple[str, ...]:
    found = [keys for kind, keys in KEYS.items() if kind in kinds and set(keys) <= set(names)]
    return found[0] if len(found) == 1 and len(set(names)) == len(names) else ()


def _record(line: str, delimiter: str) -> list[str]:
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]


class Lines:
    """Those of a CSV file; `characters` counts those of a record. Raises csv.Error for one that would fill memory: the
    library takes any number of fields, and lines within quotes."""

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self._text, self._name = text, name
        self.characters = 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(LINE_BYTES + 1)
        if not line:
            raise StopIteration
        self.characters += len(line)
        if len(line) > LINE_BYTES:
            raise DataError(f"a line is longer than {LINE_BYTES} characters", where=self._name,
                            fix="Check that it is CSV.")
        if self.characters > RECORD_CHARACTERS:
            raise csv.Error(f"more than {RECORD_CHARACTERS} characters")
        return line


class _Stream(io.RawIOBase):
    """Chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
