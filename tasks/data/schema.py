"""What a training row may look like, and what to say about one that does not.

Three layers: UTF-8, JSON (`json_value`), and the shape of a row (`parse`, `kind_of`, `clean`). Decoding is strict:
Python's own json accepts NaN, lone surrogates, UTF-16 and repeated keys, and turns 1e400 into infinity.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import orjson

from infra.errors import DataError, shown
from infra.records import RowKind
from tasks.data.chat import MESSAGE_KEYS, REASONING, conversational, messages_of, said_by, tools_of
from tasks.data.hints import BEDROCK, OTHER_FORMS, remedy
from tasks.data.values import WRAP_MESSAGES, is_message_list, kind_name, text_of

KEYS: dict[RowKind, tuple[str, ...]] = {
    "prompt": ("prompt", "completion"), "text": ("text",), "messages": ("messages",)}
KNOWN = tuple(key for keys in KEYS.values() for key in keys)
MESSAGE = {"role": b'"role"', "content": b'"content"'}
ESCAPED_LETTER = re.compile(rb"\\u00[67]")
"""A letter of a key may be written so."""
CLASSES = "Classes are learned as prompt and completion: --columns prompt=text,completion=label."
AS_MESSAGES = 'Write the row as {"messages": [...]}, beginning with a system message.'
ONLY_TEXT = "Only text can be trained on: leave the row out."
COMMON = {"weight": "Rows count alike: leave the key out, or leave rows out that are to count less.",
          "images": ONLY_TEXT, "image": ONLY_TEXT, "input_ids": "Give the text: it is tokenised here."}
BESIDE_TEXT = {"tools": AS_MESSAGES, "system": AS_MESSAGES, "system_prompt": AS_MESSAGES, "history": AS_MESSAGES}
MEANINGS: dict[RowKind, dict[str, str]] = {
    "prompt": {**COMMON, **BESIDE_TEXT, "label": "Leave out the rows whose label is false, and the key."},
    "text": {**COMMON, **BESIDE_TEXT, "label": CLASSES},
    "messages": {
        **COMMON, "functions": 'Write them as "tools": [{"type": "function", "function": {...}}].',
        "schemaVersion": BEDROCK, "system": AS_MESSAGES, "system_prompt": AS_MESSAGES,
        "label": "Leave out the rows whose label is false.",
        "documents": "Write them into the messages.",
        "chat_template_kwargs": "Leave it out: the template is asked with its defaults, as in prediction."}}
"""Keys beside those of a row that change what it means, and what to do about them."""
NOTHING: tuple[object, ...] = (None, "", [], {})
ASKS = ("question", "input", "instruction", "query", "dialogue", "document", "article", "source", "text", "context")
ANSWERS = ("answer", "output", "response", "summary", "highlights", "target", "label", "reply")
"""What people call the prompt and the completion."""
SHAPES = '{"prompt", "completion"}, {"text"} or {"messages"}'
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
    """One line as a JSON object whose keys stand once, those of its messages and tools too. What lies below keys that
    `clean` leaves out may be anything. Raises DataError for anything else."""
    row, repeated = json_value(line, where)
    if repeated:
        in_use = {id(value) for value in _in_use(row)}
        for value, name in repeated:
            if id(value) in in_use:
                raise DataError(f"the key {shown(name)} stands twice", where=where, fix="Keep one of the two.")
    if not isinstance(row, dict):
        fix = WRAP_MESSAGES if is_message_list(row) else ""
        raise DataError(f"the line is {kind_name(row)}", where=where, allowed=f"an object: {SHAPES}", fix=fix)
    return row


def kind_of(row: dict[str, Any], where: str) -> RowKind:
    """Which of the three shapes a row has. Raises DataError for none or several."""
    kinds = [kind for kind, keys in KEYS.items() if any(key in row for key in keys)]
    if preferred := [key for key in ("chosen", "rejected") if key in row]:
        raise DataError(f"the row has {' and '.join(preferred)}", where=where, allowed=SHAPES,
                        fix="Preferences cannot be learned here: --columns prompt=prompt,completion=chosen trains on "
                            "the chosen answers.")
    if len(kinds) != 1:
        names = ", ".join(list(row)[:20]) or "none"
        found = f"the keys are {shown(names)}" if not kinds else f"the row mixes {' and '.join(kinds)}"
        usual = "Rename the fields: the input is the prompt, the answer the completion."
        raise DataError(found, where=where, allowed=SHAPES, fix=respelled(row) or other_form(row) or usual)
    if kinds[0] == "prompt" and (is_message_list(row.get("completion")) and "prompt" in row):
        return "messages"
    return kinds[0]


def clean(row: dict[str, Any], kind: RowKind, where: str) -> dict[str, Any]:
    """The row with only the keys of its kind, conversations in one form. Raises DataError, naming the key, for a bad
    value, and for a key that changes what the row means and cannot be used."""
    for key, fix in MEANINGS[kind].items():
        if _means(key, row.get(key), kind):
            raise DataError(f"{shown(key)} is {shown(row[key])}, which cannot be used", where=where,
                            allowed=" and ".join(KEYS[kind]), fix=fix)
    if kind == "messages":
        row = row if "messages" in row else conversational(row, where)
        cleaned: dict[str, Any] = {"messages": messages_of(row["messages"], where)}
        tools = tools_of(row.get("tools"), where)
        return {**cleaned, "tools": tools} if tools else cleaned
    cleaned = {key: text_of(row, key, where, allowed=SHAPES, fix=respelled(row)) for key in KEYS[kind]}
    for key in ("text", "completion"):
        if key in cleaned and not cleaned[key].strip():
            raise DataError(f'"{key}" is empty', where=where, fix="Remove the line or fill it in.")
    return cleaned


def unused_keys(row: dict[str, Any], kind: RowKind) -> list[str]:
    """Keys that `clean` leaves out, those of messages too."""
    if kind != "messages":
        return [key for key in row if key not in KEYS[kind]]
    shape = ("messages",) if "messages" in row else ("prompt", "completion")
    found = [key for key in row if key not in (*shape, "tools")]
    messages = [message for key in shape for message in row[key]]
    named = {"name" for message in messages if message.get("name") and message["role"] != "tool"}
    beside = {key for message in messages for key, value in message.items() if value not in NOTHING}
    return found + sorted(beside - {*MESSAGE_KEYS, *REASONING} | named)


def prompt_of(row: dict[str, Any], kind: RowKind) -> str:
    """What is asked: rows with the same prompt go to the same side of the split. A text is its own prompt."""
    if kind != "messages":
        return str(row[KEYS[kind][0]])
    asked = row["messages"][:-1]
    return json.dumps([asked, row["tools"]] if "tools" in row else asked)


def texts_of(row: dict[str, Any], kind: RowKind) -> list[str]:
    """All that a row says, in order; the last one is the answer."""
    return [said_by(m) for m in row["messages"]] if kind == "messages" else [row[key] for key in KEYS[kind]]


def answer_of(row: dict[str, Any]) -> str:
    """All that the last message of a conversation says, thoughts and calls too."""
    last = row["messages"][-1]
    return last["content"] if last.keys() == MESSAGE.keys() else json.dumps(last)


def other_form(names: Iterable[str]) -> str:
    """What to do about a file in another program's form, by the keys of a row or the columns of a table."""
    names = set(names)
    for key, fix in OTHER_FORMS.items():
        if key in names:
            return fix
    if {"instruction", "output"} <= names:
        return "It looks like Alpaca: put alpaca: in front of the address."
    pairs = [(a, b) for a in ASKS for b in ANSWERS if a in names and b in names and a != b]
    return f"Name the fields: --columns prompt={pairs[0][0]},completion={pairs[0][1]}." if pairs else ""


def respelled(row: Iterable[str]) -> str:
    """What to do about keys such as "Prompt" or "text "."""
    wrong = {key: known for key in row for known in KNOWN if key != known and key.strip().casefold() == known}
    return " ".join(f"Write {shown(known)} instead of {shown(key)}." for key, known in wrong.items())


def _means(key: str, value: Any, kind: RowKind) -> bool:
    """Whether a key of MEANINGS says something with this value. A label beside a prompt is TRL's, if it is a bool."""
    if value in NOTHING:
        return False
    if key == "label":
        return kind == "text" or value is False
    return key != "weight" or isinstance(value, bool) or value != 1


def _in_use(row: Any) -> Iterator[Any]:
    """The objects of a row that are used: itself, its messages and what they call, its tools."""
    yield row
    if isinstance(row, dict):
        for key in ("messages", "prompt", "completion"):
            for message in row[key] if isinstance(row.get(key), list) else ():
                yield message
                if isinstance(message, dict):
                    yield from _below(message.get("tool_calls"))
        yield from _below(row.get("tools"))


def _below(value: Any) -> Iterator[Any]:
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _below(part)


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
        return ({"messages": messages_of(messages, "")}, "messages") if plain else None
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
