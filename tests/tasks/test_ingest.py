"""tasks/ingest.py: the same bytes, from anywhere, or a sentence."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from backports import zstd

from infra.errors import DataError
from infra.files import READ_BYTES
from infra.settings import Settings
from infra.storage.store import Store, filesystem
from tasks.data.compression import bounded, unpacked
from tasks.data.datasets import FILE
from tasks.ingest import ingest
from tests.conftest import BUCKET

DATA = b'{"text": "hello"}\n' * 5000


def test_a_file_is_copied_and_known_by_its_hash(settings: Settings, store: Store, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(DATA)
    dataset = ingest(settings, store, str(tmp_path / "d.jsonl"))
    assert dataset.sha256 == hashlib.sha256(DATA).hexdigest() and dataset.bytes == len(DATA)
    assert (store.fetch(dataset.folder) / FILE).read_bytes() == DATA


def test_gzip_is_unpacked_to_the_same_data(settings: Settings, store: Store, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(DATA)
    (tmp_path / "packed").write_bytes(gzip.compress(DATA[:9000]) + gzip.compress(DATA[9000:]))
    plain, packed = (ingest(settings, store, str(tmp_path / name)) for name in ("plain", "packed"))
    assert plain.sha256 == packed.sha256 and plain.folder == packed.folder


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_file_that_was_packed_to_fill_a_disk_is_refused(
    monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes],
) -> None:
    monkeypatch.setattr("tasks.data.compression.UNFOLDED_BYTES", 1 << 20)
    for content, passes in ((os.urandom(1 << 20).hex().encode(), True), (b'{"text": "' + b"0" * (1 << 25), False)):
        chunks = unpacked(io.BytesIO(pack(content)), "d")
        if passes:
            assert b"".join(chunks) == content
            continue
        with pytest.raises(DataError, match=r"packed bytes have become \d+; expected at most 500 for each"):
            for _ in chunks:
                pass


@pytest.mark.parametrize(("size", "passes"), [(500, True), (501, False)])
def test_a_packed_byte_may_stand_for_five_hundred(monkeypatch: pytest.MonkeyPatch, size: int, passes: bool) -> None:
    monkeypatch.setattr("tasks.data.compression.UNFOLDED_BYTES", 10)
    refused = nullcontext() if passes else pytest.raises(DataError, match=f"1 packed bytes have become {size}")
    with refused:
        assert list(bounded(iter([b"a" * size]), lambda: 1, "d")) == [b"a" * size]


@pytest.mark.parametrize("begins", [b"", b"\x50\x2a\x4d\x18\4\0\0\0abcd", b"\x5f\x2a\x4d\x18\0\0\0\0"])
def test_zstandard_is_unpacked_to_the_same_data(
    settings: Settings, store: Store, tmp_path: Path, begins: bytes,
) -> None:
    """A frame to be skipped may stand at the beginning too."""
    pack = zstd.compress
    (tmp_path / "plain").write_bytes(DATA)
    (tmp_path / "packed").write_bytes(begins + pack(DATA[:9000]) + begins + pack(b"") + pack(DATA[9000:]) + begins)
    plain, packed = (ingest(settings, store, str(tmp_path / name)) for name in ("plain", "packed"))
    assert plain.sha256 == packed.sha256 and plain.folder == packed.folder


def test_a_file_that_was_packed_to_fill_the_memory_comes_in_pieces() -> None:
    zeros = 200 << 20
    chunks = unpacked(io.BytesIO(zstd.compress(bytes(zeros))), "zeros.zst")
    sizes = [len(chunk) for chunk in chunks]
    assert sum(sizes) == zeros and max(sizes) <= (32 << 20) + READ_BYTES


def test_one_file_lies_in_the_store_as_it_did_before_there_were_shards(
    settings: Settings, store: Store, tmp_path: Path,
) -> None:
    content = b"\xef\xbb\xbf" + DATA + b'{"text": "no line break"}'
    (tmp_path / "d.jsonl").write_bytes(content)
    dataset = ingest(settings, store, str(tmp_path / "d.jsonl"))
    sha256 = hashlib.sha256(content).hexdigest()
    assert (dataset.folder, dataset.sha256, dataset.shards) == (f"datasets/{sha256[:32]}", sha256, 1)
    assert dataset.source == str(tmp_path / "d.jsonl")
    assert {path.name for path in store.fetch(dataset.folder).iterdir()} == {FILE, "manifest.json"}


def test_an_s3_object_is_read_into_an_s3_store(s3_endpoint: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, store=f"s3://{BUCKET}/ingest", s3_endpoint_url=s3_endpoint)
    with filesystem("s3://", settings).open(f"s3://{BUCKET}/in/d.jsonl.gz", "wb") as file:
        file.write(gzip.compress(DATA))
    dataset = ingest(settings, Store(settings), f"s3://{BUCKET}/in/d.jsonl.gz")
    assert (Store(settings).fetch(dataset.folder) / FILE).read_bytes() == DATA


@pytest.mark.parametrize(("content", "words"), [
    (b"", "the file is empty"), (b"<!DOCTYPE html><html>", "a web page.* 'raw'"),
    (b'[{"text": "a"}]', r"one JSON array.* jq -c '\.\[\]'"),
    (b"PK\x03\x04rest", "a zip archive.* Unpack it"), (b"\xff\xfe{\0", "UTF-16.* iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff\0{", "UTF-16.* iconv -f UTF-16 -t UTF-8"), (b"PAR1", "a Parquet file.* Put parquet: in front"),
    (b"%PDF-1.7", "a PDF document.* Extract the text"),
    (gzip.compress(DATA, mtime=0)[:60], "gzip file is damaged"),
    (zstd.compress(DATA)[:-1], "zstandard file is damaged .it is cut off."),
    (zstd.compress(DATA) + b"x", "zstandard file is damaged"),
    (b"\xef\xbb\xbf  [1]", "one JSON array"), (b'{\n  "text": "a"\n}\n', "pretty-printed JSON.* jq -c ."),
    (b'id,"prompt",completion\n1,a,b\n', "a table with a line of column names. .* csv: in front"),
    (b"text\na\n", "a table with a line of column names"), (b"prompt\tcompletion\r\na\tb\r\n", "a table")])
def test_other_formats_are_refused_by_content(
    settings: Settings, store: Store, tmp_path: Path, content: bytes, words: str,
) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=words):
        ingest(settings, store, str(tmp_path / "d.jsonl"))
    assert store.names("datasets") == []


@pytest.mark.parametrize("row", [
    b'{"text": "a,text,b"}\n', b'{"prompt": "a;prompt;completion;", "completion": "b"}\n',
    b'{"x": [1,"text",2], "text": "a"}\n'])
def test_a_row_that_speaks_of_columns_is_no_table(
    settings: Settings, store: Store, tmp_path: Path, row: bytes,
) -> None:
    (tmp_path / "d.jsonl").write_bytes(row)
    assert ingest(settings, store, str(tmp_path / "d.jsonl")).bytes == len(row)


@pytest.mark.parametrize(("name", "words"), [
    ("none.jsonl", "no such file"), (".", "no data is in the folder"), ("*.jsonl", "no file fits the pattern")])
def test_a_wrong_path_is_the_users_to_mend(
    settings: Settings, store: Store, tmp_path: Path, name: str, words: str,
) -> None:
    with pytest.raises(DataError, match=words):
        ingest(settings, store, str(tmp_path / name))


@pytest.mark.parametrize("packed", [False, True])
def test_the_size_limit_holds_after_unpacking(store: Store, tmp_path: Path, packed: bool) -> None:
    settings = Settings(home=tmp_path / "home", max_data_bytes=len(DATA) - 1)
    (tmp_path / "d").write_bytes(gzip.compress(DATA) if packed else DATA)
    with pytest.raises(DataError, match="more than 89999 bytes"):
        ingest(settings, store, str(tmp_path / "d"))
