"""What a training row may look like, and what to say about one that does not.

Lines are split at line feeds only and decoded strictly: Python's own json accepts NaN, lone
surrogates, UTF-16 and repeated keys, and `splitlines` splits inside of strings.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any, NoReturn

from infra.errors import DataError, shown
from infra.records import RowKind

KEYS: dict[RowKind, tuple[str, ...]] = {
    "prompt": ("prompt", "completion"), "text": ("text",), "messages": ("messages",)}
ROLES = ("system", "user", "assistant", "tool")
SHAPES = '{"prompt", "completion"}, {"text"} or {"messages"}'
SURROGATE = re.compile("[\ud800-\udfff]")
TYPE_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "a number",
              float: "a number", type(None): "null"}
BOM = b"\xef\xbb\xbf"


def parse(line: bytes, where: str) -> dict[str, Any]:
    """One line as a JSON object. Raises DataError for anything else."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start + 1} is not UTF-8", where=where, fix="Save the file as UTF-8.") from error
    try:
        row = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except RecursionError as error:
        raise DataError("the JSON is nested too deeply", where=where) from error
    except ValueError as error:
        raise DataError(f"not JSON: {_reason(error)}", where=where, fix=_remedy(text)) from error
    if not isinstance(row, dict):
        raise DataError(f"the line is {kind_name(row)}", where=where, allowed=f"an object: {SHAPES}")
    return row


def kind_of(row: dict[str, Any], where: str) -> RowKind:
    """Which of the three shapes a row has. Raises DataError for none or several."""
    kinds = [kind for kind, keys in KEYS.items() if any(key in row for key in keys)]
    if len(kinds) != 1:
        keys = ", ".join(map(str, row)) or "none"
        found = f"the keys are {shown(keys)}" if not kinds else f"the row mixes {' and '.join(kinds)}"
        raise DataError(found, where=where, allowed=SHAPES,
                        fix="Rename the fields: the input is the prompt, the answer the completion.")
    return kinds[0]


def clean(row: dict[str, Any], kind: RowKind, where: str) -> dict[str, Any]:
    """The row with only the keys of its kind. Raises DataError, naming the key, for a bad value."""
    if kind == "messages":
        return {"messages": _messages(row["messages"], where)}
    cleaned = {key: _text(row, key, where) for key in KEYS[kind]}
    for key in ("text", "completion"):
        if key in cleaned and not cleaned[key].strip():
            raise DataError(f'"{key}" is empty', where=where, fix="Remove the line or fill it in.")
    return cleaned


def kind_name(value: object) -> str:
    """A JSON value's type in words."""
    return TYPE_NAMES.get(type(value), type(value).__name__)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise DataError(f'"{key}" is missing', where=where, allowed=SHAPES)
    value = row[key]
    if not isinstance(value, str):
        fix = "Quote it." if isinstance(value, (int, float)) else ""
        raise DataError(f'"{key}" is {kind_name(value)} ({shown(value)})', where=where, allowed="a string", fix=fix)
    if SURROGATE.search(value):
        raise DataError(f'"{key}" has half of a surrogate pair', where=where,
                        fix=r"Write the character itself, or both halves (\ud83d\ude00).")
    return value


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise DataError(f'"messages" is {kind_name(value)}', where=where,
                        allowed='a list such as [{"role": "user", "content": "..."}, ...]')
    cleaned = []
    for number, message in enumerate(value, start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise DataError(f"it is {kind_name(message)}", where=place, allowed="an object with role and content")
        role = _text(message, "role", place)
        if role not in ROLES:
            raise DataError(f'"role" is {shown(role)}', where=place, allowed="one of " + ", ".join(ROLES))
        cleaned.append({"role": role, "content": _text(message, "content", place)})
    if not any(m["role"] == "assistant" and m["content"].strip() for m in cleaned):
        raise DataError("there is no assistant message with text", where=where, fix="Add the answer to learn.")
    return cleaned


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shown(max(names, key=names.count))} stands twice")
    return row


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)


def _remedy(text: str) -> str:
    """What probably happened."""
    if text.lstrip().startswith("{'") or (text.lstrip().startswith('{"') and "': " in text):
        try:
            ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
        else:
            return "It is a Python dict; write it with json.dumps."
    if "{" not in text and "," in text:
        return "It looks like CSV; write each record as one JSON object."
    if text.lstrip().startswith("{"):
        return "Write one complete object per line; line breaks inside of strings are \\n."
    return f"Write one object per line: {SHAPES}."
