"""Rows of a Parquet file, read by a process of its own, whose memory is limited.

In:   a local Parquet file, its name for messages      Out: JSONL on stdout; an error beside the file
A few bytes of Parquet can stand for gigabytes: runs of a value, empty elements of a list, a packed page. What a file
says of itself need not be true, and libraries believe it; where memory ends, pyarrow and orjson end the process.
Dies half-way: nothing is left but what the parent removes.
Run alone: python -m tasks.data.parquet FILE NAME {}
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.errors import EXIT_USER_ERROR, DataError, Transient, read_error, shown, write_error
from infra.files import READ_BYTES
from infra.process import environment_with

MEMORY_BYTES = 1 << 32
"""Enough for a page of 1 GiB, the largest that usual writers make of texts of a megabyte each."""
RECORDS = 32
"""Unfolded at a time: a few bytes may stand for a value of LINE_BYTES in each of them."""
SHOWN_TYPE = 200
ERROR, UNUSED = ".error", ".unused"
DAMAGED = "Check that it was written and copied whole."
KILLED = -9


def rows_of(path: Path, name: str, columns: dict[str, str]) -> Iterator[bytes]:
    """Chunks of JSONL. Raises DataError for a file that cannot be read, and Transient if the process was killed."""
    command = [sys.executable, "-m", "infra.process", str(os.getpid()), sys.executable, "-m", __name__, str(path), name,
               json.dumps(columns)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env=environment_with({"ARROW_DEFAULT_MEMORY_POOL": "system"})) as child:
        assert child.stdout is not None
        try:
            while chunk := child.stdout.read(READ_BYTES):
                yield chunk
            code = child.wait()
        finally:
            child.kill()
    if code == KILLED:
        raise Transient("the process that read the Parquet file was killed", where=name,
                        fix="Free memory on this machine, and start again.")
    if code:
        raise read_error(path.with_suffix(ERROR), code) or DataError(
            f"the Parquet file takes more than {MEMORY_BYTES >> 30} GiB of memory, or is damaged", where=name,
            allowed="pages and values that fit", fix="Write it with more and smaller row groups, or give it as JSONL.")


def read_parquet(path: Path, name: str, target: Any, columns: dict[str, str]) -> None:
    """Write the rows, and the names of columns that are left out beside the file. Raises DataError."""
    import orjson
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    from tasks.data.columns import renamed
    from tasks.data.tables import columns_in

    try:
        with ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES) as table:
            names = table.schema_arrow.names
            wanted = columns_in(names, ("prompt", "text", "messages"), name, columns)
            unused = [column for column in names if column not in wanted.values()]
            path.with_suffix(UNUSED).write_text(json.dumps(unused), encoding="utf-8")
            for column in wanted.values():
                _check_type(table.schema_arrow.field(column).type, column, name)
            for batch in table.iter_batches(RECORDS, columns=list(wanted.values()), use_threads=False):
                for row in batch.to_pylist():
                    target.write(orjson.dumps(renamed(row, wanted, name) if columns else row) + b"\n")
    except MemoryError:  # Arrow's own is an ArrowException too
        raise
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise DataError(f"the Parquet file cannot be read ({shown(str(error), SHOWN_TYPE)})", where=name,
                        fix=DAMAGED) from error


def _check_type(kind: Any, column: str, name: str) -> None:
    """Raise DataError for a type that JSON has no word for; whether a number may stand there is judged later."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind):
        _check_type(kind.value_type, column, name)
    elif types.is_struct(kind):
        for field in kind:
            _check_type(field.type, column, name)
    elif not any(fits(kind) for fits in (types.is_string, types.is_large_string, types.is_string_view, types.is_null,
                                         types.is_integer, types.is_floating, types.is_boolean)):
        found = str(kind)
        raise DataError(f'the column "{column}" is of the type {found[:SHOWN_TYPE]}', where=name, allowed="strings",
                        fix="Write it as UTF-8 strings.")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    file = Path(sys.argv[1])
    try:
        read_parquet(file, sys.argv[2], sys.stdout.buffer, json.loads(sys.argv[3]))
        sys.stdout.buffer.flush()
    except DataError as error:
        write_error(file.with_suffix(ERROR), error)
        raise SystemExit(EXIT_USER_ERROR) from None
