"""Tables as JSONL: CSV and Parquet, where the source says so: csv:ADDRESS, parquet:ADDRESS.

In:   the bytes of a table     Out: JSONL, an object a record, with the columns that rows are made of and no others
Nothing is guessed of values: an empty field, a null or a number is judged later like that of any row. Streams; Parquet
is read from its end, so it is first copied to a file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import orjson

from infra.errors import DataError
from infra.files import READ_BYTES
from tasks.lines import LINE_BYTES
from tasks.rows import KEYS
from tasks.unpack import Readable, unpacked

Form = Literal["jsonl", "csv", "parquet"]
DELIMITERS = ",;\t"
RECORDS = 500
"""Read from Parquet at a time."""


def form_of(source: str) -> tuple[Form, str]:
    """What a source is written in, and its address without the word for it."""
    word, colon, address = source.partition(":")
    forms: dict[str, Form] = {"csv": "csv", "parquet": "parquet"}
    return (forms[word], address) if colon and word in forms else ("jsonl", source)


def jsonl_of(form: Form, raw: Readable, name: str, folder: Path, limit_bytes: int) -> Iterator[bytes]:
    """Chunks of JSONL. `folder` takes a copy of a Parquet file of at most `limit_bytes`.

    Raises DataError for a file that is not what the source says, lacks the columns of a row, or is damaged.
    """
    if form == "csv":
        return _of_csv(unpacked(raw, name), name)
    return _of_parquet(raw, name, folder, limit_bytes) if form == "parquet" else unpacked(raw, name)


def _of_csv(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    text = io.TextIOWrapper(io.BufferedReader(_Stream(chunks)), encoding="utf-8-sig", newline="")
    csv.field_size_limit(LINE_BYTES)
    lines = _lines(text, name)
    try:
        first = next(lines, "")
        delimiter = next((sign for sign in DELIMITERS if _columns(_record(first, sign))), ",")
        header = _record(first, delimiter)
        wanted = _named(header, ("prompt", "text"), name)
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        for record in records:
            if len(record) not in (0, len(header)):
                raise DataError(f"the record has {len(record)} fields", where=f"{name} line {records.line_num + 1}",
                                allowed=f"{len(header)}, as in the first line",
                                fix="Put fields with commas, quotes or line breaks into double quotes.")
            row = dict(zip(header, record, strict=False))
            yield orjson.dumps({key: row[key] for key in wanted}) + b"\n" if record else b""
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{name} line {records.line_num + 1}",
                        fix="Put fields with commas, quotes or line breaks into double quotes.") from error
    except UnicodeDecodeError as error:
        raise DataError("it is not UTF-8", where=name, fix="Save the file as UTF-8.") from error


def _of_parquet(raw: Readable, name: str, folder: Path, limit_bytes: int) -> Iterator[bytes]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    path = folder / "table.parquet"
    with path.open("wb") as copy:
        while chunk := raw.read(READ_BYTES):
            copy.write(chunk)
            if copy.tell() > limit_bytes:
                raise DataError(f"more than {limit_bytes} bytes", where=name,
                                fix="Raise ANNEAL_MAX_DATA_BYTES if that is meant.")
    try:
        with ParquetFile(path) as table:
            wanted = _named(table.schema_arrow.names, ("prompt", "text", "messages"), name)
            for batch in table.iter_batches(RECORDS, columns=list(wanted)):
                yield b"".join(orjson.dumps(row) + b"\n" for row in _plain(batch.to_pylist(), name))
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"the Parquet file cannot be read ({error})", where=name,
                        fix="Check that it was written and copied whole.") from error
    finally:
        path.unlink()


def _plain(rows: list[dict[str, Any]], name: str) -> Iterable[dict[str, Any]]:
    """The rows, if all their values can be written as JSON."""
    for row in rows:
        if any(isinstance(value, bytes) for value in row.values()):
            raise DataError("a column holds bytes", where=name, allowed="strings",
                            fix="Write the columns of the rows as UTF-8 strings.")
    return rows


def _named(names: list[str], kinds: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The columns of a row. Raises DataError if there are none, or those of several kinds of row."""
    if found := _columns(names, kinds):
        return found
    allowed = " or ".join(" and ".join(KEYS[kind]) for kind in KEYS if kind in kinds)
    raise DataError(f"the columns are {', '.join(names)[:500] or 'none'}", where=name,
                    allowed=f"those of one kind of row: {allowed}; others are left out",
                    fix="Rename them: the input is the prompt, the answer the completion.")


def _columns(names: list[str], kinds: tuple[str, ...] = ("prompt", "text")) -> tuple[str, ...]:
    found = [keys for kind, keys in KEYS.items() if kind in kinds and set(keys) <= set(names)]
    return found[0] if len(found) == 1 and len(set(names)) == len(names) else ()


def _record(line: str, delimiter: str) -> list[str]:
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    while line := text.readline(LINE_BYTES + 1):
        if len(line) > LINE_BYTES:
            raise DataError(f"a line is longer than {LINE_BYTES} characters", where=name, fix="Check that it is CSV.")
        yield line


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
