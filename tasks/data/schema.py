"""What a training row may look like, and what to say about one that does not.

Three layers: UTF-8, JSON (`json_value`), and the shape of a row (`parse`, `kind_of`, `clean`). Decoding is strict:
Python's own json accepts NaN, lone surrogates, UTF-16 and repeated keys, and turns 1e400 into infinity.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

import orjson

from infra.errors import DataError, shown
from infra.records import RowKind
from tasks.data.hints import WRAP_MESSAGES, remedy

KEYS: dict[RowKind, tuple[str, ...]] = {
    "prompt": ("prompt", "completion"), "text": ("text",), "messages": ("messages",)}
KNOWN = tuple(key for keys in KEYS.values() for key in keys)
MESSAGE = {"role": b'"role"', "content": b'"content"'}
ROLES = ("system", "user", "assistant", "tool")
MAY_FOLLOW = {
    "": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"),
    "tool": ("tool", "assistant")}
"""Which roles may stand behind which; "" is the beginning."""
ESCAPED_LETTER = re.compile(rb"\\u00[67]")
"""A letter of a key may be written so."""
SHAPES = '{"prompt", "completion"}, {"text"} or {"messages"}'
TYPE_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "a number",
              float: "a number", type(None): "null"}
INTEGER_DIGITS = 4300
"""Python's own limit: longer ones take quadratic time."""


def quick(line: bytes) -> tuple[dict[str, Any], RowKind] | None:
    """A clean row that has no other keys than those of its kind, and its kind; None: look at the line closely.

    orjson takes the last of repeated keys: rows in which a key could stand twice are left to `parse`. (As many quotes
    as the keys and their strings have leave no room for another key.) Written for speed: this is done for every line.
    """
    try:
        row = orjson.loads(line)
    except ValueError:
        return None
    if type(row) is not dict:
        return None
    if len(row) == 2 and "prompt" in row and "completion" in row:
        prompt, answer = row["prompt"], row["completion"]
        if (type(prompt) is str and type(answer) is str and answer and not answer.isspace() and "\0" not in prompt
                and "\0" not in answer
                and (line.count(b'"') == 8 or _quotes(line) == 8 or _stand_once(line, b'"prompt"', b'"completion"'))):
            return {"prompt": prompt, "completion": answer}, "prompt"
    elif len(row) == 1 and "text" in row:
        text = row["text"]
        if (type(text) is str and text and not text.isspace() and "\0" not in text
                and (line.count(b'"') == 4 or _quotes(line) == 4 or _stand_once(line, b'"text"'))):
            return row, "text"
    elif len(row) == 1 and "messages" in row and _stand_once(line, b'"messages"'):
        return _quick_messages(row["messages"], line)
    return None


def json_value(line: bytes, where: str) -> tuple[Any, list[tuple[dict[str, Any], str]]]:
    """One line as JSON (RFC 8259), and the objects with a key that stands twice. Raises DataError for anything else."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start + 1} is not UTF-8", where=where, fix="Save the file as UTF-8.") from error
    repeated: list[tuple[dict[str, Any], str]] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            repeated.append((value, _first_repeated(name for name, _ in pairs)))
        return value

    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer,
                          object_pairs_hook=unique), repeated
    except RecursionError as error:
        raise DataError("the JSON is nested too deeply", where=where, fix="Leave the nested field out.") from error
    except ValueError as error:
        raise DataError(f"not JSON: {_reason(error)}", where=where, fix=remedy(text, SHAPES)) from error


def parse(line: bytes, where: str) -> dict[str, Any]:
    """One line as a JSON object whose keys stand once, those of its messages too. What lies below keys that `clean`
    leaves out may be anything. Raises DataError for anything else."""
    row, repeated = json_value(line, where)
    if repeated:
        messages = row.get("messages") if isinstance(row, dict) else None
        in_use = {id(value) for value in (row, *(messages if isinstance(messages, list) else ()))}
        for value, name in repeated:
            if id(value) in in_use:
                raise DataError(f"the key {shown(name)} stands twice", where=where, fix="Keep one of the two.")
    if not isinstance(row, dict):
        fix = WRAP_MESSAGES if isinstance(row, list) and row and _is_message(row[0]) else ""
        raise DataError(f"the line is {kind_name(row)}", where=where, allowed=f"an object: {SHAPES}", fix=fix)
    return row


def kind_of(row: dict[str, Any], where: str) -> RowKind:
    """Which of the three shapes a row has. Raises DataError for none or several."""
    kinds = [kind for kind, keys in KEYS.items() if any(key in row for key in keys)]
    if len(kinds) != 1:
        names = ", ".join(list(row)[:20]) or "none"
        found = f"the keys are {shown(names)}" if not kinds else f"the row mixes {' and '.join(kinds)}"
        usual = "Rename the fields: the input is the prompt, the answer the completion."
        raise DataError(found, where=where, allowed=SHAPES, fix=respelled(row) or usual)
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


def unused_keys(row: dict[str, Any], kind: RowKind) -> list[str]:
    """Keys that `clean` leaves out, those of messages too."""
    found = [key for key in row if key not in KEYS[kind]]
    if kind == "messages":
        found += sorted({key for message in row["messages"] for key in message} - {"role", "content"})
    return found


def prompt_of(row: dict[str, Any], kind: RowKind) -> str:
    """What is asked: rows with the same prompt go to the same side of the split. A text is its own prompt."""
    return json.dumps(row["messages"][:-1]) if kind == "messages" else str(row[KEYS[kind][0]])


def texts_of(row: dict[str, Any], kind: RowKind) -> list[str]:
    """All that a row says, in order; the last one is the answer."""
    return [m["content"] for m in row["messages"]] if kind == "messages" else [row[key] for key in KEYS[kind]]


def kind_name(value: object) -> str:
    """A JSON value's type in words."""
    return TYPE_NAMES.get(type(value), type(value).__name__)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if key not in row:
        raise DataError(f'"{key}" is missing', where=where, allowed=SHAPES if key in KNOWN else "",
                        fix=respelled(row))
    value = row[key]
    if not isinstance(value, str):
        fix = "Quote it." if isinstance(value, (int, float)) else ""
        if value is None:
            raise DataError(f'"{key}" is null', where=where, allowed="a string",
                            fix="Write the text, or leave the line out.")
        if isinstance(value, list) and value and _is_message(value[0]):
            fix = WRAP_MESSAGES
        raise DataError(f'"{key}" is {kind_name(value)} ({shown(value)})', where=where, allowed="a string", fix=fix)
    if "\0" in value:
        raise DataError(f'"{key}" has a zero character (\\u0000)', where=where, fix="Remove it.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f'"{key}" has half of a surrogate pair', where=where,
                        fix=r"Write the character itself, or both halves (\ud83d\ude00).") from error
    return value


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    """Messages in an order that can be learned: system first, then user and assistant in turn, the answer last."""
    if not isinstance(value, list) or not value:
        raise DataError(f'"messages" is {"an empty array" if value == [] else kind_name(value)}', where=where,
                        allowed='a list such as [{"role": "user", "content": "..."}, ...]')
    cleaned: list[dict[str, str]] = []
    for number, message in enumerate(value, start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise DataError(f"it is {kind_name(message)}", where=place, allowed="an object with role and content")
        role = _text(message, "role", place)
        if role not in ROLES:
            raise DataError(f'"role" is {shown(role)}', where=place, allowed="one of " + ", ".join(ROLES))
        _check_turn(cleaned[-1]["role"] if cleaned else "", role, place)
        cleaned.append({"role": role, "content": _text(message, "content", place)})
        if role == "assistant" and not cleaned[-1]["content"].strip():
            raise DataError("the assistant's message is empty", where=place, fix="Fill it in, or remove the turn.")
    if not any(m["role"] == "assistant" for m in cleaned):
        raise DataError("there is no assistant message with text", where=where, fix="Add the answer to learn.")
    if cleaned[-1]["role"] != "assistant":
        raise DataError(f"the last message is by the {cleaned[-1]['role']}", where=where,
                        allowed="the assistant's answer at the end", fix="Add the answer, or remove the last message.")
    return cleaned


def _check_turn(before: str, role: str, where: str) -> None:
    if role in MAY_FOLLOW[before]:
        return
    behind = f"behind one of {before}" if before else "at the beginning"
    fix = ("Join neighbouring messages of one role into one." if role == before
           else "Put the system message first, then user and assistant in turn.")
    raise DataError(f"a message of {role} stands {behind}", where=where, allowed=" or ".join(MAY_FOLLOW[before]),
                    fix=fix)


def respelled(row: Iterable[str]) -> str:
    """What to do about keys such as "Prompt" or "text "."""
    wrong = {key: known for key in row for known in KNOWN if key != known and key.strip().casefold() == known}
    return " ".join(f"Write {shown(known)} instead of {shown(key)}." for key, known in wrong.items())


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and "role" in value


def _quotes(line: bytes) -> int:
    """Those that begin or end a string; -1 where a backslash behind a backslash makes that hard to tell."""
    return -1 if b"\\\\" in line else line.count(b'"') - line.count(b'\\"')


def _stand_once(line: bytes, *keys: bytes) -> bool:
    if b"\\u00" in line and ESCAPED_LETTER.search(line):
        return False
    return all(line.count(key) == 1 for key in keys)


def _quick_messages(messages: Any, line: bytes) -> tuple[dict[str, Any], RowKind] | None:
    """For messages with a role and a content, once each, and nothing else."""
    if not isinstance(messages, list) or any(line.count(key) != len(messages) for key in MESSAGE.values()):
        return None
    try:
        plain = all(one.keys() == MESSAGE.keys() for one in messages)
        return ({"messages": _messages(messages, "")}, "messages") if plain else None
    except (AttributeError, DataError):
        return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {shown(text)} is too large")
    return value


def _integer(text: str) -> int:
    if len(text) > INTEGER_DIGITS:
        raise ValueError(f"a number has {len(text)} digits, more than {INTEGER_DIGITS}")
    return int(text)


def _first_repeated(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    raise AssertionError("no name is repeated")


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)
