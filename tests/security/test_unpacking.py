"""A few bytes that stand for much memory or time: packed files, CSV, Parquet.

Tests tasks/data/compression.py too.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pytest
from backports import zstd
from pyarrow import parquet

from infra.errors import DataError
from tasks.data import tables
from tasks.data.compression import FREE_FRAMES, unpacked
from tests.conftest import ROOT

ROW = b'{"text": "a row"}\n'
SKIPPED = b"\x50\x2a\x4d\x18\0\0\0\0"
READ = """
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from infra.errors import DataError
from tasks.data.tables import jsonl_of
form, path = sys.argv[1:]
try:
    with open(path, "rb") as raw:
        print(sum(map(len, jsonl_of(form, raw, "t", Path(path).parent, 1 << 40))), "bytes")
except DataError as error:
    print(error)
# Of ourselves not ru_maxrss, which begins with that of who started us.
(ours,) = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(max(ours, getrusage(RUSAGE_CHILDREN).ru_maxrss) // 1024)
"""


def content(packed: bytes) -> bytes:
    return b"".join(unpacked(io.BytesIO(packed), "d"))


def read(form: str, path: Path) -> tuple[str, int]:
    """What a process of its own says of a table, and the MiB that it or a child of it took."""
    done = subprocess.run([sys.executable, "-c", READ, form, str(path)], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    message, taken = done.stdout.rstrip().rsplit("\n", 1)
    return message, int(taken)


@pytest.mark.parametrize("piece", [gzip.compress(b""), zstd.compress(b""), SKIPPED, gzip.compress(b"{")],
                         ids=["gzip", "zstandard", "skipped", "a byte each"])
def test_pieces_that_hold_nothing_are_refused_at_once(piece: bytes) -> None:
    began = time.process_time()
    with pytest.raises(DataError, match=r"packed pieces have become .* expected at least 8 in each"):
        content(piece * 200_000)
    assert time.process_time() - began < 2


def test_pieces_of_a_row_each_and_a_few_empty_ones_are_read() -> None:
    for pack in (gzip.compress, zstd.compress):
        assert content(pack(ROW) * 5000 + pack(b"") * FREE_FRAMES) == ROW * 5000


@pytest.mark.parametrize(("window_log", "passes"), [(27, True), (28, False)])
def test_a_zstandard_window_is_128_mib_at_most(window_log: int, passes: bool) -> None:
    """The window is memory that a few bytes ask for."""
    packing = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
    packed = packing.compress(ROW) + packing.flush(zstd.ZstdCompressor.FLUSH_BLOCK) + packing.flush()
    if passes:
        assert content(packed) == ROW
        return
    with pytest.raises(DataError, match=r"zstandard file is damaged .*requires too much memory"):
        content(packed)


def test_zeros_between_and_after_gzip_members_are_left_out() -> None:
    piece = gzip.compress(ROW) + bytes(1 << 20)
    assert content(piece * 3) == ROW * 3
    with pytest.raises(DataError, match="the gzip file is damaged"):
        content(piece + b"x")


def test_a_long_name_in_a_gzip_header_takes_no_time() -> None:
    packed = gzip.compress(ROW, mtime=0)
    began = time.process_time()
    assert content(packed[:3] + b"\x08" + packed[4:10] + b"n" * (1 << 25) + b"\0" + packed[10:]) == ROW
    assert time.process_time() - began < 2


@pytest.mark.parametrize("outer", [gzip.compress, zstd.compress])
@pytest.mark.parametrize("inner", [gzip.compress, zstd.compress])
def test_what_is_packed_twice_is_refused(outer: object, inner: object) -> None:
    with pytest.raises(DataError, match=r"the file is packed twice.*Unpack it once"):
        content(outer(inner(ROW)))  # type: ignore[operator]


@pytest.mark.slow
def test_a_record_of_csv_without_end_is_refused_in_little_memory(tmp_path: Path) -> None:
    """Each line ends within quotes, so that the record goes on; no field is long."""
    with (tmp_path / "t.csv").open("wb") as file:
        file.write(b"prompt,completion\n")
        for _ in range(100):
            file.write((b"x," * 500 + b'"\n",') * 1000)
    message, taken_mib = read("csv", tmp_path / "t.csv")
    assert message.startswith("t line 2: not CSV: more than 33554432 characters, in the record that begins there")
    assert taken_mib < 1024


@pytest.mark.slow
def test_columns_of_csv_that_are_left_out_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,text\n" + ("x" * 9_000_000 + ",a\n") * 5)
    assert read("csv", tmp_path / "t.csv")[0] == "65 bytes", "five times {\"text\":\"a\"} and a line feed"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("columns", [
    "{'text': pa.DictionaryArray.from_arrays(pa.array([0] * 32, pa.int32()), ['x' * (1 << 28)])}",
    "{'messages': pa.ListArray.from_arrays(pa.array([0, 40_000_000], pa.int32()), pa.nulls(40_000_000, pa.string()))}",
], ids=["one long value", "empty elements of one list"])
def test_parquet_that_stands_for_gigabytes_takes_bounded_memory(tmp_path: Path, columns: str) -> None:
    write = (f"import pyarrow as pa; from pyarrow import parquet; "
             f"parquet.write_table(pa.table({columns}), 'in', compression='zstd')")
    subprocess.run([sys.executable, "-c", write], cwd=tmp_path, check=True)
    assert (tmp_path / "in").stat().st_size < 50_000
    assert "takes more than 4 GiB of memory" in read("parquet", tmp_path / "in")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["in"], "the copy and the error are gone"


def test_the_type_of_a_column_is_named_in_short(tmp_path: Path) -> None:
    kind = pyarrow.map_(pyarrow.string(), pyarrow.struct([("n" * 10_000, pyarrow.string())]))
    parquet.write_table(pyarrow.table({"text": pyarrow.array([None], kind)}), tmp_path / "in")
    (tmp_path / "copy").mkdir()
    with pytest.raises(DataError, match='the column "text" is of the type map') as caught:
        list(tables.jsonl_of("parquet", (tmp_path / "in").open("rb"), "t", tmp_path / "copy", 1 << 30))
    assert len(str(caught.value)) < 500
