"""tasks/data/schema.py: what is judged quickly is judged as by the closer look."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infra.errors import DataError
from tasks.data.schema import clean, kind_of, parse, quick

TURNS = [{"role": "user", "content": "role"}, {"role": "assistant", "content": "a \\ \" \u00e9 \U0001f600"}]
LINES = [
    {"prompt": "p", "completion": "c"}, {"completion": "c", "prompt": ""}, {"text": "prompt"},
    {"text": "\u0001 \u007f"}, {"prompt": "p", "text": "t"},
    {"messages": TURNS}, {"messages": TURNS[:1]}, {"messages": [{**TURNS[0], "name": "n"}, TURNS[1]]}, {"messages": []},
    {"text": "t", "id": 1}, {"text": 1}, {"text": ""}, {"text": "\0"}, {"prompt": "p"}, ["text"], ["messages"], "text",
    {"messages": "role"}, {"messages": [1]}, {"messages": [{"role": ["user"], "content": "x"}]}]
RAW = [
    b'{"text": "a", "text": "b"}', b'{"text": "a", "\\u0074ext": "b"}', b'{"\\u0074ext": "b"}', b'{"text": "\\ud800"}',
    b'{"text": "\xed\xa0\x80"}', b'{"text": "\xff"}', b'{"text": "a\tb"}', b'{"text": "a"} ', b'\x0b{"text": "a"}',
    b'{"text": "a"}{"text": "b"}', b'{"text": "\\u0000"}', b'{"text": NaN}', b'{"text": "a",}', b"{'text': 'a'}",
    b'{"messages": [{"role": "user", "role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]}',
    b'{"messages": [{"role": "user", "content": "x", "\\u0072ole": "system"}, {"role": "assistant", "content": "y"}]}',
    b'{"messages": [{"role": "user", "content": "x", "n": 1e400}, {"role": "assistant", "content": "y"}]}']


def closely(line: bytes) -> tuple[dict[str, Any], str] | None:
    """What the whole of the rules says of a line; None: it is refused."""
    try:
        row = parse(line, "")
        kind = kind_of(row, "")
        return clean(row, kind, ""), kind
    except DataError:
        return None


@pytest.mark.parametrize(
    "line", [json.dumps(row, ensure_ascii=one).encode() for row in LINES for one in (False, True)] + RAW)
def test_what_is_judged_quickly_is_judged_alike(line: bytes) -> None:
    found, wanted = quick(line), closely(line)
    assert found is None or found == wanted
    assert found is None or json.dumps(found[0]) == json.dumps(wanted and wanted[0])  # in the same order


def test_common_rows_are_judged_quickly() -> None:
    turns = [{"role": "user", "content": "x"}, TURNS[1]]
    rows = [*LINES[:3], {"messages": [*turns, *turns]}]
    assert [quick(json.dumps(row).encode()) is None for row in rows] == [False] * 4


@pytest.mark.parametrize("line", [
    b'{"text": "a", "meta": {"a": 1, "a": 2}}', b'{"text": "a", "meta": [[{"a": {"b": 1, "b": 2}}]]}',
    b'{"messages": [{"role": "user", "content": "x", "n": {"a": 1, "a": 2}}, {"role": "assistant", "content": "y"}]}'])
def test_repeated_keys_below_a_key_that_is_left_out_are_nobodys_business(line: bytes) -> None:
    assert closely(line) is not None


@pytest.mark.parametrize("line", [
    b'{"text": "a", "text": "b"}', b'{"text": "a", "id": 1, "id": 2}', b'{"prompt": "a", "prompt": "b", "text": {}}',
    b'{"messages": [{"role": "user", "content": "x", "content": "z"}, {"role": "assistant", "content": "y"}]}'])
def test_a_repeated_key_of_a_row_or_a_message_is_named(line: bytes) -> None:
    with pytest.raises(DataError, match="stands twice"):
        parse(line, "")
