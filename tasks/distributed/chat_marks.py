"""Marks in rendered conversations, and the places of what is said between them: pure text, no template, no tokens."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from infra.errors import DataError

END, GUARD, STOP, CUT = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
"""Noncharacters, which no text has (Unicode, section 23.7); where one has, it is damaged."""
NONE_OF_OURS = re.compile("[\ufdd0-\ufdd3]")

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChatSpan:
    """A piece of the text: characters from `start` to `end`."""

    start: int
    end: int
    answer: bool = False
    """Said by the assistant."""
    learned: bool = False
    """That with a weight of 1."""
    asked: bool = False
    """Said by a user."""


@dataclass(frozen=True, slots=True)
class ShownChat:
    """A conversation as the model sees it."""

    text: str
    """Up to the end of the last answer; with GUARD and STOP in it."""
    spans: list[ChatSpan]
    """What is said, in order; the last one is the last answer."""
    notes: list[str] = field(default_factory=list)


def up_to_answer(messages: list[Message]) -> list[Message]:
    """The conversation up to the last answer that is learned. Raises DataError if there is none."""
    learned = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1)]
    if not learned:
        raise DataError("a conversation has no assistant message", fix="Add the answer to learn.")
    return messages[: learned[-1] + 1]


def with_end(message: Message) -> Message:
    """The message with END behind its content, in front of what a template may trim."""
    content = message["content"]
    kept = content.rstrip()
    return {**message, "content": kept + END + content[len(kept):]} if kept else message


def said_at(text: str, end: int, message: Message) -> tuple[int, int]:
    """Where the content stands that ends there: all of it, or as much as the template has kept."""
    content = message["content"].rstrip()
    for said in (content, content.lstrip()):
        if text[: end].endswith(said):
            return end - len(said), end
    return end - common_length(text[:end][::-1], content[::-1]), end


def common_length(one: str, other: str) -> int:
    """How many characters both begin with."""
    differs = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differs, min(len(one), len(other)))


def repeated_until(text: str, at: int, tail: str, end: int, message: Message) -> int:
    """How far the text repeats the `tail` that a generation prompt has from there on; an answer is no part of it."""
    start = at + common_length(text[at : at + len(tail)], tail)
    return start if end < 0 or text.startswith(tail, at) else min(start, said_at(text, end, message)[0])


def called_otherwise(message: Message) -> Message:
    """The same message whose last call has one more argument."""
    *calls, last = message["tool_calls"]
    function = {**last["function"], "arguments": {**last["function"]["arguments"], END: END}}
    return {**message, "tool_calls": [*calls, {**last, "function": function}]}


def calls_in(messages: list[Message]) -> list[dict[str, Any]]:
    return [call for message in messages for call in message.get("tool_calls", ())]


def with_string_arguments(messages: list[Message]) -> list[Message]:
    """Arguments of calls as strings of JSON."""
    def strung(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
    return [{**m, "tool_calls": [strung(call) for call in m["tool_calls"]]} if "tool_calls" in m else m
            for m in messages]


def with_stops(text: str, spans: list[ChatSpan], stops: list[int]) -> tuple[str, list[ChatSpan]]:
    """STOP behind the answers that no special token closes; it belongs to the answer."""
    for done, at in enumerate(stops):
        place = at + done
        text = text[:place] + STOP + text[place:]
        spans = [replace(span, start=span.start + (span.start >= place), end=span.end + (span.end >= place))
                 for span in spans]
    return text, spans
