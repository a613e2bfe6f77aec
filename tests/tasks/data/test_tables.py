"""tasks/data/tables.py: CSV and Parquet become JSONL where the source says so, and are named where they cannot.

Tests infra/storage/addresses.py, tasks/data/parquet.py too.
"""

from __future__ import annotations

import gc
import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from infra.errors import DataError
from infra.settings import Settings
from infra.storage.addresses import form_of
from infra.storage.https import without_secrets
from infra.storage.store import Store
from tasks.data import compression, tables
from tasks.data.sources import find_shards
from tasks.ingest import ingest
from tasks.validate import validate

ROWS = [{"prompt": "a, \"b\"\nc\u2028", "completion": "caf\u00e9 \U0001f600"}, {"prompt": "", "completion": "x;y\tz"}]
CSV = 'id,prompt,completion\n1,"a, ""b""\nc\u2028",caf\u00e9 \U0001f600\n\n2,,x;y\tz\n'


def lay(path: Path, content: bytes | str | dict[str, list[Any]]) -> Path:
    """A file; a dict becomes a Parquet file with these columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        parquet.write_table(pyarrow.table(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def brought(settings: Settings, store: Store, source: str) -> list[dict[str, Any]]:
    """The rows that a source gives."""
    text = (store.fetch(ingest(settings, store, source).folder) / "data.jsonl").read_bytes()
    return [json.loads(line) for line in text.split(b"\n") if line]


COLUMNS = {"id": [1, 2], **{key: [row[key] for row in ROWS] for key in ("prompt", "completion")}}


@pytest.mark.parametrize(("form", "content"), [
    ("csv", CSV), ("csv", "\ufeff" + CSV), ("csv", CSV.replace("\n\n", "\n").replace("\n2", "\r\n2")),
    ("csv", gzip.compress(CSV.encode(), mtime=0)), ("csv", CSV.rstrip("\n")),
    ("csv", 'completion;prompt\ncaf\u00e9 \U0001f600;"a, ""b""\nc\u2028"\n"x;y\tz";\n'),
    ("csv", 'completion\tprompt\ncaf\u00e9 \U0001f600\t"a, ""b""\nc\u2028"\n"x;y\tz"\t\n'),
    ("parquet", COLUMNS)])
def test_a_table_gives_the_rows_of_its_columns(
    settings: Settings, store: Store, tmp_path: Path, form: str, content: bytes | str | dict[str, list[Any]],
) -> None:
    assert brought(settings, store, f"{form}:{lay(tmp_path / 'table', content)}") == ROWS


def test_texts_and_messages_are_rows_too(settings: Settings, store: Store, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    chats = lay(tmp_path / "chats", {"messages": [turns, turns[:1]], "source": ["a", "b"]})
    assert brought(settings, store, f"parquet:{chats}") == [{"messages": turns}, {"messages": turns[:1]}]
    texts = lay(tmp_path / "texts", "text\none\ntwo")
    assert brought(settings, store, f"csv:{texts}") == [{"text": "one"}, {"text": "two"}]


@pytest.mark.parametrize(("form", "content", "words"), [
    ("csv", "question,answer\nq,a\n", 'columns are "question, answer"; expected those of one kind of row: prompt and'),
    ("csv", "prompt,completion,text\np,c,t\n", 'the columns are "prompt, completion, text"'),
    ("csv", "text,text\np,c\n", 'the columns are "text, text"'), ("csv", "messages\nx\n", 'the columns are "messages"'),
    ("csv", "prompt,completion\np,c\np,c,d\n", "table line 3: the record has 3 fields; expected 2"),
    ("csv", 'prompt,completion\np,"c" d\n', "table line 2: not CSV"), ("csv", "", "there are no columns"),
    ("csv", 'prompt,completion\na,b\n\np,"c\n' + "x,y\n" * 9, "table line 4: not CSV: unexpected end"),
    ("csv", 'prompt,completion\n"a\nb",c\np,c,d\n', "table line 4: the record has 3 fields"),
    ("csv", '{"text": "a"}\n', "looks like JSONL: leave the word"),
    ("csv", "Prompt,Completion\n", 'Write "prompt" instead'),
    ("csv", "text\n", "the file is empty; expected records"), ("csv", b"PK\x03\x04", "zip archive; expected CSV with"),
    ("csv", "[text],id\n", "the columns are"),
    ("csv", b"text\n\xff\n", "it is not UTF-8"), ("csv", b"PAR1", "a Parquet file"),
    ("csv", b"\xff\xfet\0", "UTF-16"), ("csv", "text\n" + "x" * 100, "a line is longer than 60 characters"),
    ("parquet", "text\none\n", "the Parquet file cannot be read"), ("parquet", b"PAR1" + bytes(30), "cannot be read"),
    ("parquet", {"question": ["a"]}, 'the columns are "question"; .*or text or messages'),
    ("parquet", {"text": [b"bytes"]}, 'the column "text" is of the type binary; expected strings'),
    ("parquet", {"text": [Decimal(1)]}, "is of the type decimal"),
    ("parquet", {"text": [datetime(2026, 1, 1, tzinfo=UTC)]}, "timestamp"),
    ("parquet", {"messages": [[{"role": "user", "content": b"x"}]]}, 'the column "messages" is of the type binary')])
def test_a_table_that_is_none_is_named(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str,
    content: bytes | str | dict[str, list[Any]], words: str,
) -> None:
    monkeypatch.setattr(tables, "LINE_BYTES", 60)
    with pytest.raises(DataError, match=words):
        ingest(settings, store, f"{form}:{lay(tmp_path / 'table', content)}")
    assert list(store.names("datasets")) == []


def test_a_bad_value_is_named_by_its_record(settings: Settings, store: Store, tmp_path: Path) -> None:
    table = lay(tmp_path / "t.parquet", {"prompt": ["a", "b", None], "completion": ["c", "d", "e"]})
    with pytest.raises(DataError, match=r't.parquet record 3: "prompt" is null'):
        validate(store, ingest(settings, store, f"parquet:{table}"), None, 1)


def test_shards_are_tables_of_one_form(settings: Settings, store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for name in ("b", "a"):
        lay(folder / f"day=1/{name}.csv", f"text\n{name}1\n{name}2")
    lay(folder / "c.jsonl", '{"text": "no"}\n')
    found = brought(settings, store, f"csv:{folder}")
    assert [row["text"] for row in found] == ["a1", "a2", "b1", "b2"]
    assert [one.name for one in find_shards(settings, str(folder))] == ["c.jsonl"]
    with pytest.raises(DataError, match=r"expected names that end in \.parquet"):
        ingest(settings, store, f"parquet:{folder}")


@pytest.mark.parametrize("word", ["csv:", "parquet:"])
def test_an_address_is_needed_behind_the_word(settings: Settings, word: str) -> None:
    with pytest.raises(DataError, match=f"there is no address behind {word}"):
        find_shards(settings, word)


@pytest.mark.parametrize("limit", [3000, 50_000])
def test_what_is_unfolded_has_the_limit_of_data(tmp_path: Path, limit: int) -> None:
    """The second limit is larger than the file and smaller than its rows."""
    settings = Settings(home=tmp_path / "home", max_data_bytes=limit)
    rows = [f"{number}" + "x" * 900 for number in range(100)]
    path = lay(tmp_path / "t", {"text": rows})
    assert 3000 < path.stat().st_size < 50_000
    with pytest.raises(DataError, match=f"more than {limit} bytes"):
        ingest(settings, Store(settings), f"parquet:{path}")
    gc.collect()
    assert list((tmp_path / "home").rglob("*.parquet")) == []


def test_parquet_that_was_packed_to_fill_a_disk_is_refused(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One long value, and 4000 times the number of it."""
    path = lay(tmp_path / "t", {"text": ["x" * 10_000] * 4000})
    assert path.stat().st_size < 40_000_000 / compression.MOST_UNFOLDED
    monkeypatch.setattr(compression, "UNFOLDED_BYTES", 1 << 20)
    with pytest.raises(DataError, match="packed bytes have become"):
        ingest(settings, store, f"parquet:{path}")
    gc.collect()
    assert list(settings.home_path.rglob("*.parquet")) == []


def test_parquet_is_read_in_little_memory(tmp_path: Path) -> None:
    pool = pyarrow.default_memory_pool()
    rows = [f"{number} " * 2000 for number in range(10_000)]
    path = lay(tmp_path / "t", {"text": rows})
    before = pool.max_memory()
    (tmp_path / "copy").mkdir()
    with path.open("rb") as raw:
        size = sum(map(len, tables.jsonl_of("parquet", raw, "t", tmp_path / "copy", 1 << 30)))
    assert size > 90_000_000 and pool.max_memory() == before


def test_a_copy_of_a_parquet_file_has_the_limit_of_data(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", max_data_bytes=100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        ingest(settings, Store(settings), f"parquet:{lay(tmp_path / 't', {'text': ['x' * 300]})}")


@pytest.mark.parametrize("source", [
    "csv:" * 2000 + "https://me:secret@host/x", "csv:https://me:secret@host/a.csv?token=x", "parquet:s3://key:secret@bucket/a"])
def test_secrets_are_not_shown_behind_the_form(source: str) -> None:
    shown = without_secrets(source)
    assert "secret" not in shown and "token" not in shown and shown.startswith(source.partition(":")[0] + ":")


@pytest.mark.parametrize(("source", "form", "address"), [
    ("csv:a.csv", "csv", "a.csv"), ("parquet:s3://b/x", "parquet", "s3://b/x"), ("s3://b/x", "jsonl", "s3://b/x"),
    ("a.csv", "jsonl", "a.csv"), ("csv", "jsonl", "csv"), ("tsv:a", "jsonl", "tsv:a")])
def test_the_form_stands_in_front(source: str, form: str, address: str) -> None:
    assert form_of(source) == (form, address)
