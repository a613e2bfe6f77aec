"""JSONL in another form as rows: columns under other names, Alpaca's and ShareGPT's files.

In:   chunks of JSONL     Out: chunks of JSONL, a line a line
What is no object is passed on as it is, and judged later with its line like that of any file. Memory: one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from infra.errors import DataError, shown
from infra.storage.addresses import Form
from tasks.data.jsonl import LINE_BYTES

BOM = b"\xef\xbb\xbf"
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
            "chatgpt": "assistant", "bot": "assistant", "system": "system", "tool": "tool", "observation": "tool",
            "function_response": "tool"}
"""Who speaks in ShareGPT's files, and the role that it is; others are named when the row is judged."""
Row = dict[str, Any]
Change = Callable[[Row], Row]


def changed(chunks: Iterator[bytes], form: Form, columns: dict[str, str], name: str) -> Iterator[bytes]:
    """The lines with the keys of rows. Raises DataError for a column that a line does not have."""
    for number, line in enumerate(_lines(chunks), start=1):
        try:
            row = orjson.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            yield line + b"\n"
            continue
        if columns:
            row = renamed(row, columns, f"{name} line {number}")
        yield orjson.dumps(CHANGES[form](row) if form in CHANGES else row) + b"\n"


def renamed(row: Row, columns: dict[str, str], where: str) -> Row:
    """The named columns under their keys, without the others. Numbers of a label become texts. Raises DataError."""
    for column in columns.values():
        if column not in row:
            raise missing_column(column, list(row), where)
    return {key: _as_text(row[column]) if key in ("prompt", "completion", "text") else row[column]
            for key, column in columns.items()}


def missing_column(column: str, names: list[str], where: str) -> DataError:
    """What to say about a column that is not there."""
    return DataError(f"there is no column {shown(column)}", where=where,
                     allowed="one of " + ", ".join(map(shown, names[:20])), fix="Name it in columns as it is written.")


def of_alpaca(row: Row) -> Row:
    """{instruction, input, output} as prompt and completion; a system text stands in front."""
    if not {"instruction", "output"} <= row.keys():
        return row
    asked = [row.get("system"), row["instruction"], row.get("input")]
    if any(text is not None and not isinstance(text, str) for text in asked):
        return row
    rest = {key: value for key, value in row.items() if key not in ("system", "instruction", "input", "output")}
    return {"prompt": "\n\n".join(text for text in asked if text), "completion": row["output"], **rest}


def of_sharegpt(row: Row) -> Row:
    """{conversations: [{from, value}]} as messages."""
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return row
    messages = [_message(turn) for turn in turns]
    if isinstance(row.get("system"), str) and row["system"].strip():
        messages.insert(0, {"role": "system", "content": row["system"]})
    rest = {key: value for key, value in row.items() if key not in ("system", "conversations")}
    return {"messages": messages, **rest}


def _message(turn: Row) -> Row:
    said = {key: value for key, value in turn.items() if key not in ("from", "value")}
    speaker, value = turn.get("from"), turn.get("value")
    if speaker == "function_call":
        try:
            calls = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            calls = value
        calls = calls if isinstance(calls, list) else [calls]
        return {**said, "role": "assistant", "content": None,
                "tool_calls": [{"type": "function", "function": call} for call in calls]}
    role = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    given = {"role": role, "content": value} if "from" in turn or "value" in turn else {}
    return {**said, **given}


CHANGES: dict[str, Change] = {"alpaca": of_alpaca, "sharegpt": of_sharegpt}


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their line feeds; one that is longer than a line may be comes in pieces, and is judged so later."""
    held, first = b"", True
    for chunk in chunks:
        held += chunk
        if first:
            held, first = held.removeprefix(BOM), len(held) < len(BOM)
        *whole, held = held.split(b"\n")
        yield from whole
        if len(held) > LINE_BYTES:
            yield held
            held = b""
    if held:
        yield held
