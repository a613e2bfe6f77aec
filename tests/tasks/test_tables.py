"""tasks/tables.py: CSV and Parquet become JSONL where the source says so, and are named where they cannot."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from infra.errors import DataError
from infra.fetch import without_secrets
from infra.settings import Settings
from infra.store import Store
from tasks import tables
from tasks.ingest import ingest
from tasks.shards import find_shards
from tasks.tables import form_of
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
    return [json.loads(line) for line in text.split(b"\n")[:-1]]


COLUMNS = {"id": [1, 2], **{key: [row[key] for row in ROWS] for key in ("prompt", "completion")}}


@pytest.mark.parametrize(("form", "content"), [
    ("csv", CSV), ("csv", "\ufeff" + CSV), ("csv", CSV.replace("\n\n", "\n").replace("\n2", "\r\n2")),
    ("csv", gzip.compress(CSV.encode())), ("csv", CSV.rstrip("\n")),
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
    ("csv", "question,answer\nq,a\n", "columns are question, answer; expected those of one kind of row: prompt and"),
    ("csv", "prompt,completion,text\np,c,t\n", "the columns are prompt, completion, text"),
    ("csv", "text,text\np,c\n", "the columns are text, text"), ("csv", "messages\nx\n", "the columns are messages"),
    ("csv", "prompt,completion\np,c\np,c,d\n", "table line 3: the record has 3 fields; expected 2"),
    ("csv", 'prompt,completion\np,"c" d\n', "table line 2: not CSV"), ("csv", "", "the columns are none"),
    ("csv", 'prompt,completion\np,"c\n', "table line 2: not CSV: unexpected end"),
    ("csv", b"text\n\xff\n", "it is not UTF-8"), ("csv", b"PAR1", "a Parquet file"),
    ("csv", b"\xff\xfet\0", "UTF-16"), ("csv", "text\n" + "x" * 100, "a line is longer than 60 characters"),
    ("parquet", "text\none\n", "the Parquet file cannot be read"), ("parquet", b"PAR1" + bytes(30), "cannot be read"),
    ("parquet", {"question": ["a"]}, "the columns are question; .*or text or messages"),
    ("parquet", {"text": [b"bytes"]}, "a column holds bytes")])
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


def test_a_copy_of_a_parquet_file_has_the_limit_of_data(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", max_data_bytes=100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        ingest(settings, Store(settings), f"parquet:{lay(tmp_path / 't', {'text': ['x' * 300]})}")


@pytest.mark.parametrize("source", ["csv:https://me:secret@host/a.csv?token=x", "parquet:s3://key:secret@bucket/a"])
def test_secrets_are_not_shown_behind_the_form(source: str) -> None:
    shown = without_secrets(source)
    assert "secret" not in shown and "token" not in shown and shown.startswith(source.partition(":")[0] + ":")


@pytest.mark.parametrize(("source", "form", "address"), [
    ("csv:a.csv", "csv", "a.csv"), ("parquet:s3://b/x", "parquet", "s3://b/x"), ("s3://b/x", "jsonl", "s3://b/x"),
    ("a.csv", "jsonl", "a.csv"), ("csv", "jsonl", "csv"), ("tsv:a", "jsonl", "tsv:a")])
def test_the_form_stands_in_front(source: str, form: str, address: str) -> None:
    assert form_of(source) == (form, address)
