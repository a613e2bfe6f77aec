"""What a base's chat template makes of a conversation, and where in that text the answers stand.

In:   messages and tools     Out: a ShownChat: the text up to the last answer's end, with the places of what is said
The template sees the real content: what it trims, splits or leaves out is what is trained. Noncharacters are
put into copies of a conversation and never reach the model: END marks where a message ends, GUARD breaks text that
spells a special token (it is tokenised as plain text), STOP stands for the end token where a template writes none.
An answer begins where the generation prompt ends, so that before it stand the tokens that a prediction sends; for the
same reason what stands before the last answer is the text that the template shows when that answer is asked for. A
template that takes no notice of the generation prompt is asked for an answer with the text that it puts before one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from infra.errors import DataError
from tasks.distributed.chat_marks import (
    CUT,
    END,
    GUARD,
    NONE_OF_OURS,
    STOP,
    ChatSpan,
    Message,
    ShownChat,
    called_otherwise,
    calls_in,
    common_length,
    repeated_until,
    said_at,
    up_to_answer,
    with_end,
    with_stops,
    with_string_arguments,
)
from tasks.distributed.templates import FIX, Asked, TemplateRefusal

FOLDED_FAMILIES = ("<start_of_turn>", "[INST]")
"""What stands in the templates of Gemma and Mistral, whose makers document that the system text belongs in front of the
first question (ai.google.dev/gemma/docs/core/prompt-structure; docs.mistral.ai on guardrails)."""
FOLDED = "conversations whose system text was put in front of the first question: the chat template has no role for it"
FOLD_BETWEEN = "\n\n"
PLAIN_TURN = {"assistant": f"assistant: {CUT}{{content}}\n"}
PLAIN_PROMPT = f"assistant: {CUT}"
"""Where a base has no template: other messages are `role: content`. Its answers are read apart from what stands before
them, as a model without a template of its own has no ids to agree with."""

Tools = list[dict[str, Any]]
Render = Callable[[list[Message], Tools, bool], str]
"""(messages, tools, up to where an answer begins) -> text"""


class Conversations:
    """Conversations by one template."""

    def __init__(self, render: Render | None, special: re.Pattern[str] | None, family: str) -> None:
        """`render` is None for a base without a template; `special` finds the texts of special tokens; `family` is
        the template itself, by which families that fold the system text are known."""
        self._by_template, self._special = render, special
        self._folds = any(mark in family for mark in FOLDED_FAMILIES)
        self._as_strings = False
        self._asks: bool | None = None
        self._tails: dict[str, str] = {}
        self._ends: frozenset[str] | None = None

    def show(self, messages: list[Message], tools: Tools) -> ShownChat:
        """The text of a conversation, and what of it is learned. Raises DataError for what the template cannot show."""
        messages, tools = self._guarded(up_to_answer(messages)), self._guarded(tools)
        notes: list[str] = []
        try:
            whole, ends = self._marked(messages, tools)
        except TemplateRefusal as error:
            messages, notes = self._folded(messages, tools, error), [FOLDED]
            whole, ends = self._marked(messages, tools)
        self._check_shown(messages, tools, whole)
        last = len(messages) - 1
        text, places = self._marked(messages[:last], tools, prompt=True)
        spans, stops = list[ChatSpan](), list[int]()
        for i, message in enumerate(messages[:last]):
            if message["role"] == "assistant":
                start = self._start(messages, tools, i, text, places)
                end, closed = self._end(messages, i, text, places, lambda some: self._render(some[:last], tools, True))
                spans.append(ChatSpan(start, end, answer=True, learned=bool(message.get("weight", 1))))
                stops += [] if closed else [end]
            elif places[i] >= 0:
                spans.append(ChatSpan(*said_at(text, places[i], message), asked=message["role"] == "user"))
        at, where = ends[last - 1], places[last - 1]
        tail = text[where:] if where >= 0 else ""
        start = repeated_until(whole, at, tail, ends[last], messages[last]) if tail else common_length(whole, text)
        end, closed = self._end(messages, last, whole, ends, lambda some: self._render(some, tools))
        text = text[: where + start - at] if tail else text[:start]
        began = self._unasked(whole, start, ends[last], messages[last])
        text, start = text + whole[start:began], began
        answer = whole[start:end] + ("" if closed else min(self.closing(), default=STOP))
        spans.append(ChatSpan(len(text), len(text) + len(answer), answer=True, learned=True))
        self._check_joints(text, spans)
        return ShownChat(*with_stops(text + answer, spans, stops), notes)

    def look_ahead(self, row: dict[str, Any]) -> list[Asked]:
        """What `show` will ask the template for first, in the form in which it does."""
        messages, tools = self._guarded(up_to_answer(row["messages"])), self._guarded(row.get("tools") or [])
        marked = [with_end(message) for message in messages]
        return [(_unweighted(some), tools, prompt) for some, prompt in (
            (messages, False), (marked, False), (messages[:-1], True), (marked[:-1], True))]

    def closing(self) -> frozenset[str]:
        """The special tokens with which the template closes a plain answer, at the end or in front of a question."""
        if self._ends is None:
            found: set[str] = set()
            turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
            for some in (turns[:2], turns):
                with suppress(DataError):
                    text, places = self._marked(some, [])
                    match = self._special.search(text, places[1]) if self._special else None
                    found |= {match[0]} if match else set()
            self._ends = frozenset(found)
        return self._ends

    def _render(self, messages: list[Message], tools: Tools, prompt: bool = False) -> str:
        if self._by_template is None:
            if tools or any("tool_calls" in m or "reasoning_content" in m for m in messages):
                raise DataError("the base model has no chat template, so it cannot be shown tools or thoughts",
                                fix="Choose a base model with a chat template.")
            shown = [PLAIN_TURN.get(m["role"], "{role}: {content}\n").format_map(m) for m in messages]
            return "".join(shown) + (PLAIN_PROMPT if prompt else "")
        plain = _unweighted(messages)
        if self._as_strings:
            return self._by_template(with_string_arguments(plain), tools, prompt)
        try:
            text = self._by_template(plain, tools, prompt)
            if not any(repr(call["function"]["arguments"]) in text for call in calls_in(plain)
                       if repr(call["function"]["arguments"]) != json.dumps(call["function"]["arguments"])):
                return text
        except TemplateRefusal:
            raise
        except DataError:
            if not calls_in(plain):
                raise
        text = self._by_template(with_string_arguments(plain), tools, prompt)  # as DeepSeek's wants them
        self._as_strings = True
        return text

    def _marked(self, messages: list[Message], tools: Tools, *, prompt: bool = False) -> tuple[str, list[int]]:
        """The text, and where each message's content ends in it (-1: it has none). Raises DataError if the template
        leaves a message out, repeats or moves it."""
        text = self._render(messages, tools, prompt)
        with_ends = self._render([with_end(m) for m in messages], tools, prompt)
        found = [match.start() - number for number, match in enumerate(re.finditer(END, with_ends))]
        said = [m for m in messages if m["content"].strip()]
        if with_ends.replace(END, "") != text:  # a template that looks at how a content ends: it is searched for
            found, at = [], 0
            for message in said:
                content = message["content"].strip()
                at = text.find(content, at) + len(content)
                found.append(at if at >= len(content) else -1)
        if len(found) != len(said) or min(found, default=0) < 0:
            raise DataError("the base model's chat template leaves out or repeats a message",
                            fix="Use prompt/completion rows, or a template that shows every message once.")
        places = iter(found)
        return text, [next(places) if m["content"].strip() else -1 for m in messages]

    def _start(self, messages: list[Message], tools: Tools, i: int, text: str, ends: list[int]) -> int:
        """Where answer `i` begins: behind the generation prompt, as far as the conversation repeats it."""
        at, role = ends[i - 1], messages[i - 1]["role"]
        if at < 0:
            return common_length(text, self._render(messages[:i], tools, True))
        if not text.startswith(self._tails.get(role, END), at):
            asked = self._render([*messages[: i - 1], with_end(messages[i - 1])], tools, True)
            self._tails[role] = asked.partition(END)[2]
        start = repeated_until(text, at, self._tails[role], ends[i], messages[i])
        return self._unasked(text, start, ends[i], messages[i])

    def _unasked(self, text: str, start: int, end: int, message: Message) -> int:
        """Where an answer begins that the template does not ask for: behind the words that it puts before one."""
        if self._asks is None:
            question = [{"role": "user", "content": "a"}]
            self._asks = self._render(question, [], True) != self._render(question, [])
        said = said_at(text, end, message)[0] if end >= 0 else start
        return start if self._asks or not text[start:said].strip() else said

    def _end(
        self, messages: list[Message], i: int, text: str, ends: list[int], again: Callable[[list[Message]], str],
    ) -> tuple[int, bool]:
        """Where answer `i` ends, and whether a special token closes it, which is learned with it. `again` makes the
        same text of other messages."""
        at, message = ends[i], messages[i]
        following = next((said_at(text, ends[k], messages[k])[0] for k in range(i + 1, len(ends)) if ends[k] >= 0),
                         len(text))
        calls = "tool_calls" in message
        if calls:  # behind the last arguments the text stays as it is when these change
            changed = again([*messages[:i], called_otherwise(message), *messages[i + 1 :]])
            at = len(text) - common_length(text[::-1], changed[::-1])
        found = list(self._special.finditer(text, at, following)) if self._special else []
        closing = [match for match in found if match[0] in self.closing()] if calls else []
        if closing or found:
            return (closing or found)[0].end(), True
        if calls:
            line = text.find("\n", at, following)
            return line if line >= 0 else following, False
        return at, False

    def _folded(self, messages: list[Message], tools: Tools, refusal: TemplateRefusal) -> list[Message]:
        """The conversation with its system text in the first question. Raises DataError where no family does so."""
        if messages[0]["role"] != "system":
            raise refusal
        self._render(messages[1:], tools)  # if that is refused too, it is not for the system message
        if not self._folds:
            raise DataError(f"the base model's chat template takes no message of the role system ({refusal.reason})",
                            fix="Put its text in front of the first user message.") from refusal
        system, first, *rest = messages
        return [{**first, "content": system["content"].strip() + FOLD_BETWEEN + first["content"]}, *rest]

    def _check_shown(self, messages: list[Message], tools: Tools, text: str) -> None:
        """Raise DataError if tools, calls or thoughts of the last answers are not in the text."""
        missing = ""
        if tools and self._render(messages, []) == text:
            missing = "tools"
        elif any(call["function"]["name"] not in text for call in calls_in(messages)):
            missing = "tool_calls"
        elif thoughts := [m["reasoning_content"].strip() for m in messages if "reasoning_content" in m]:
            missing = "" if any(one in text for one in thoughts) else "reasoning_content"
        if missing:
            raise DataError(f"the base model's chat template does not show {missing}",
                            fix=f"Choose a base model whose template does, or leave {missing} out.")

    def _check_joints(self, text: str, spans: list[ChatSpan]) -> None:
        """Raise DataError if what is said and the template's text around it spell a special token together."""
        said = [span for span in spans if not span.answer]
        for match in self._special.finditer(text) if self._special else ():
            if any(span.start < match.end() and match.start() < span.end for span in said):
                raise DataError(f"a message and the chat template around it spell {match[0]} together", fix=FIX)

    def _guarded(self, value: Any) -> Any:
        """A copy in which no text spells a special token: GUARD stands behind its first character."""
        if isinstance(value, str):
            text = NONE_OF_OURS.sub("\ufffd", value)
            return self._special.sub(lambda m: m[0][0] + GUARD + m[0][1:], text) if self._special else text
        if isinstance(value, list):
            return [self._guarded(one) for one in value]
        return {key: self._guarded(one) for key, one in value.items()} if isinstance(value, dict) else value


def _unweighted(messages: list[Message]) -> list[Message]:
    return [{key: value for key, value in m.items() if key != "weight"} for m in messages]
