"""tasks/data/columns.py, infra/storage/addresses.py: data whose columns have other names, and the forms of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DataError, UserError
from infra.settings import Settings
from infra.spec import columns_named
from infra.storage.addresses import columns_of, form_of, with_columns
from infra.storage.store import Store
from tasks.data.columns import of_alpaca, of_sharegpt
from tasks.data.schema import clean
from tasks.ingest import ingest
from tasks.validate import UNUSED_COLUMNS, validate

ASKED = "prompt=question,completion=answer"
TABLE = [{"id": number, "question": f"How many {number}?", "answer": f"{number}"} for number in range(4)]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """A table in the form that the name asks for; its address."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)
    return f"{path.suffix[1:]}:{path}"


def brought(settings: Settings, store: Store, source: str) -> list[dict[str, Any]]:
    dataset = ingest(settings, store, source)
    text = (store.fetch(dataset.folder) / "data.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_columns_under_other_names_are_read(settings: Settings, store: Store, tmp_path: Path, suffix: str) -> None:
    source = with_columns(ASKED, written(tmp_path / f"data.{suffix}", TABLE))
    assert brought(settings, store, source) == [
        {"prompt": row["question"], "completion": row["answer"]} for row in TABLE]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_column_that_is_not_there_is_one_sentence(
    settings: Settings, store: Store, tmp_path: Path, suffix: str,
) -> None:
    source = with_columns("prompt=questoin,completion=answer", written(tmp_path / f"data.{suffix}", TABLE))
    with pytest.raises(DataError) as caught:
        ingest(settings, store, source)
    message = str(caught.value)
    assert 'there is no column "questoin"; expected one of "id", "question", "answer"' in message
    assert store.names("datasets") == []


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_text_with_a_label_is_no_text_to_imitate(
    settings: Settings, store: Store, tmp_path: Path, suffix: str,
) -> None:
    source = written(tmp_path / f"data.{suffix}", [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}])
    with pytest.raises(DataError, match="--columns prompt=text,completion=label"):
        ingest(settings, store, source)
    rows = brought(settings, store, with_columns("prompt=text,completion=label", source))
    assert rows[0] == {"prompt": "good film", "completion": "1"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_of_a_table_that_are_not_used_are_named(
    settings: Settings, store: Store, tmp_path: Path, suffix: str,
) -> None:
    rows = [{"prompt": f"p{row['id']}", "completion": row["answer"], "mood": "good"} for row in TABLE]
    split = validate(store, ingest(settings, store, written(tmp_path / f"data.{suffix}", rows)), None, 1)
    assert {finding.what: finding.first for finding in split.findings}[UNUSED_COLUMNS] == ["mood"]


def test_alpaca_is_prompt_and_completion(settings: Settings, store: Store, tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Hi", "input": "", "output": "Ho"}]
    assert brought(settings, store, "alpaca:" + written(tmp_path / "a.jsonl", rows)) == [
        {"prompt": "Add.\n\n1 2", "completion": "3"}, {"prompt": "Hi", "completion": "Ho"}]
    assert of_alpaca({"text": "t"}) == {"text": "t"}


def test_sharegpt_is_messages(settings: Settings, store: Store, tmp_path: Path) -> None:
    call = json.dumps({"name": "count", "arguments": {"of": "plates"}})
    turns = [("human", "How many?"), ("function_call", call), ("observation", "2"), ("gpt", "Two.")]
    row = {"system": "Be kind.", "conversations": [{"from": who, "value": what} for who, what in turns]}
    (found,) = brought(settings, store, "sharegpt:" + written(tmp_path / "s.jsonl", [row]))
    messages = clean(found, "messages", "here")["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2]["tool_calls"][0]["function"] == json.loads(call)


def test_a_speaker_of_sharegpt_that_nobody_knows_is_named() -> None:
    row = of_sharegpt({"conversations": [{"from": "human", "value": "a"}, {"from": "narrator", "value": "b"}]})
    with pytest.raises(DataError, match='"role" is "narrator"'):
        clean(row, "messages", "d line 1")


@pytest.mark.parametrize("columns", ["prompt", "prompt=q", "prompt=a,prompt=b", "question=a,answer=b", "text=", "a=b="])
def test_columns_that_make_no_row_are_refused(columns: str) -> None:
    with pytest.raises(UserError, match="columns is"):
        columns_named(columns)


def test_columns_stand_in_front_of_a_source() -> None:
    source = with_columns(ASKED, "csv:https://host/a.csv")
    assert form_of(source) == ("csv", "https://host/a.csv") and with_columns("", "x") == "x"
    assert columns_of(source) == ({"prompt": "question", "completion": "answer"}, "csv:https://host/a.csv")
    assert columns_of("[odd] name.jsonl") == ({}, "[odd] name.jsonl")
    with pytest.raises(UserError, match="is in the store already"):
        with_columns(ASKED, "store://datasets/abc")
