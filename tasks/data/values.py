"""Values of a row: their types in words, and texts that can be trained on."""

from __future__ import annotations

from typing import Any

from infra.errors import DataError, shown

TYPE_NAMES = {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "a number",
              float: "a number", type(None): "null"}
WRAP_MESSAGES = 'Write the conversation as {"messages": [...]}.'
SURROGATE = r"Write the character itself, or both halves (\ud83d\ude00)."


def kind_name(value: object) -> str:
    """A JSON value's type in words."""
    return TYPE_NAMES.get(type(value), type(value).__name__)


def text_of(row: dict[str, Any], key: str, where: str, *, allowed: str = "", fix: str = "") -> str:
    """The text behind a key. Raises DataError; `allowed` and `fix` are for a key that is missing."""
    if key not in row:
        raise DataError(f'"{key}" is missing', where=where, allowed=allowed, fix=fix)
    value = row[key]
    if value is None:
        raise DataError(f'"{key}" is null', where=where, allowed="a string",
                        fix="Write the text, or leave the line out.")
    if not isinstance(value, str):
        fix = "Quote it." if isinstance(value, (int, float)) else ""
        if is_message_list(value):
            fix = WRAP_MESSAGES
        raise DataError(f'"{key}" is {kind_name(value)} ({shown(value)})', where=where, allowed="a string", fix=fix)
    return whole_text(value, key, where)


def whole_text(value: str, key: str, where: str) -> str:
    """The text itself. Raises DataError for what no tokenizer takes: a zero character, half of a surrogate pair."""
    if "\0" in value:
        raise DataError(f'"{key}" has a zero character (\\u0000)', where=where, fix="Remove it.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f'"{key}" has half of a surrogate pair', where=where, fix=SURROGATE) from error
    return value


def whole_json(value: Any, key: str, where: str) -> Any:
    """A JSON value, all texts of which are whole. Raises DataError."""
    if isinstance(value, str):
        whole_text(value, key, where)
    elif isinstance(value, (list, dict)):
        for part in value.items() if isinstance(value, dict) else value:
            whole_json(list(part) if isinstance(part, tuple) else part, key, where)
    return value


def is_message_list(value: object) -> bool:
    """Whether it looks like the messages of a conversation."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]
