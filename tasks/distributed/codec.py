"""Between text and token ids: the one place that training, evaluation and serving share.

In:   rows of {prompt, completion}, {text} or {messages}     Out: token ids with loss labels
A prompt is encoded by itself, exactly as the predictor will encode it; a completion is encoded
as its continuation. Text from users can never become a special token: `</s>` in a row is five
characters. The end token is appended by us and labelled, so that the model learns to stop.
`templated`: texts were written by a chat template; what they spell is read as special tokens, and none is added twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from infra.errors import Broken, DataError
from infra.records import RowKind
from tasks.distributed.chat_marks import up_to_answer
from tasks.distributed.conversation import Conversations
from tasks.distributed.special_tokens import ChatReader, pattern_of
from tasks.distributed.stops import NAMES, ends_of_template
from tasks.distributed.templates import FIX, Templates

LOOKED_AHEAD = 32
"""Conversations that the template is asked for at once."""
ANCHORS = ("\n", ":", "a")
DATED = "strftime_now"
"""What templates ask for today's date (transformers.utils.chat_template_utils)."""
NO_DATE = ("{% macro strftime_now(format) %}{{ '2024-07-26' if format == '%Y-%m-%d' else '26 Jul 2024' }}"
           "{% endmacro %}")
"""A model must be asked as it was trained, and the same rows give the same bytes: it is always the day that Llama 3's
template falls back to."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Token ids that are all learned, or all only read."""

    ids: list[int]
    labelled: bool
    asked: bool = False
    """What a user says in a conversation."""


class Codec:
    """A tokenizer with the rules above."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, templated: bool = False) -> None:
        self.tokenizer, self._templated = tokenizer, templated
        self._templates = Templates()
        self.eos: int = _only_id(tokenizer.eos_token_id)
        start = list(tokenizer("")["input_ids"])
        self.bos: list[int] = [i for i in start if i != self.eos][:1]
        self.vocabulary: int = max(tokenizer.get_vocab().values()) + 1
        """More than any token id: ids may have gaps."""
        # all_special_ids has only those with a role of their own: not <|eot_id|> beside another end token
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = frozenset(tokenizer.all_special_ids) | added
        self.never = self._special - {tokenizer.unk_token_id}
        if tokenizer.is_fast:  # some are published with a length to cut to
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        special = self._spelled = pattern_of(tokenizer)
        self._first_letters = {text[0] for text in map(str, tokenizer.added_tokens_decoder.values()) if text}
        self._reader = ChatReader(self, special)
        self.noted: list[tuple[int, str]] = []
        """Of the conversations encoded last: (number in the batch, what is to be said of it)."""

    @cached_property
    def _conversations(self) -> Conversations:
        template = self.tokenizer.chat_template
        return Conversations(self._rendered if template else None, self._spelled, str(template or ""))

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer, as far as the tokenizer and its template tell: see tasks/distributed/stops.py."""
        ends = {self.eos, *ends_of_template(self)}
        for text in NAMES:
            index = self.tokenizer.convert_tokens_to_ids(text)
            if isinstance(index, int) and index in self._special and index != self.tokenizer.unk_token_id:
                ends.add(index)
        return frozenset(ends)

    def prompt(self, text: str) -> list[int]:
        """Ids of a prompt, as both training and the predictor see it: begin token, then text."""
        return self.prompts([text])[0]

    def prompts(self, texts: list[str]) -> list[list[int]]:
        """The same of many at once."""
        return [ids if self._templated and ids[:1] == self.bos else self.bos + ids for ids in self._read(texts)]

    def continuation(self, text: str) -> list[int]:
        """Ids of text that follows other text."""
        return self.continuations([text])[0]

    def continuations(self, texts: list[str]) -> list[list[int]]:
        """The same of many at once.

        SentencePiece puts a space in front of what it encodes; an anchor takes that space and is
        cut off again. The first anchor whose ids survive in front of the text is used.
        """
        found: dict[int, list[int]] = {}
        left = list(range(len(texts)))
        for anchor in ANCHORS:
            start, *wholes = self._read([anchor, *(anchor + texts[i] for i in left)])
            found |= {i: ids[len(start):] for i, ids in zip(left, wholes, strict=True) if ids[: len(start)] == start}
            left = [i for i in left if i not in found]
            if not left:
                break
        found |= dict(zip(left, self._read([texts[i] for i in left]), strict=True))
        return [found[i] for i in range(len(texts))]

    def rows(
        self, kind: RowKind, rows: list[dict[str, Any]], separator: str, *, train_on_prompt: bool,
    ) -> list[list[Segment]]:
        """Training rows as segments; the last one of a row ends with the end token and is labelled.

        Raises DataError for a conversation that the chat template cannot show.
        """
        if kind == "text":
            return [[Segment(self._ended(ids), True)] for ids in self.prompts([row["text"] for row in rows])]
        if kind == "prompt":
            asked = self.prompts([row["prompt"] + separator for row in rows])
            answers = self.continuations([row["completion"] for row in rows])
            return [[Segment(ids, train_on_prompt), Segment(self._ended(answer), True)]
                    for ids, answer in zip(asked, answers, strict=True)]
        found = []
        for number, row in enumerate(rows):
            if number % LOOKED_AHEAD == 0 and len(rows) > 1 and self.tokenizer.chat_template:
                coming = rows[number : number + LOOKED_AHEAD]
                renderings = [one for some in coming for one in self._conversations.look_ahead(some)]
                self._templates.look_ahead(self._template({}), renderings, dict(self.tokenizer.special_tokens_map))
            found.append(self._turns(row, train_on_prompt=train_on_prompt))
        self.noted = [(number, note) for number, (_, notes) in enumerate(found) for note in notes]
        return [segments for segments, _ in found]

    def row(self, kind: RowKind, row: dict[str, Any], separator: str, *, train_on_prompt: bool) -> list[Segment]:
        """One training row as segments."""
        return self.rows(kind, [row], separator, train_on_prompt=train_on_prompt)[0]

    def question(self, kind: RowKind, row: dict[str, Any], separator: str) -> tuple[list[int], str]:
        """Ids of the prompt of a held-out row, and the reference answer."""
        if kind == "prompt":
            return self.prompt(row["prompt"] + separator), row["completion"]
        ids = [i for segment in self.asked(row) for i in segment.ids]
        return ids, str(up_to_answer(row["messages"])[-1]["content"])

    def asked(self, row: dict[str, Any]) -> list[Segment]:
        """A conversation up to its last answer, as segments."""
        return self.row("messages", row, "", train_on_prompt=False)[:-1]

    def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Ids of a conversation up to the answer that is asked for: those that stand before it in training."""
        answer = {"role": "assistant", "content": "answer"}
        return self.question("messages", {"messages": [*messages, answer], "tools": tools or []}, "")[0]

    def turn(self, prompt: str, system_prompt: str, tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Ids of one question, for a version trained on messages."""
        before = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return self.chat([*before, {"role": "user", "content": prompt}], tools)

    def spells_special(self, text: str) -> bool:
        """Whether a text spells a special token: it stays text, and whoever wrote it may not know that."""
        return any(letter in text for letter in self._first_letters) and bool(
            self._spelled and self._spelled.search(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        return str(self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _turns(self, row: dict[str, Any], *, train_on_prompt: bool) -> tuple[list[Segment], list[str]]:
        """Segments of a conversation up to its last answer, which is the last segment; and what is to be said of it."""
        shown = self._conversations.show(row["messages"], row.get("tools") or [])
        text, last = shown.text, shown.spans[-1]
        bounds = [place for span in shown.spans for place in (span.start, span.end)]
        before = self._reader.tokens(text[: last.start], bounds)
        ids = [index for index, _ in before]
        whole = [index for index, _ in self._reader.tokens(text, bounds)]
        rest = (whole[len(ids):] if whole[: len(ids)] == ids else
                [index for index, _ in self._reader.tokens(text[last.start :], first=False)])
        segments = [Segment(list(self.bos), False)] if not self.tokenizer.chat_template and self.bos else []
        at = 0
        for span in shown.spans[:-1]:
            for until, learned, asked in ((span.start, False, False), (
                    span.end, span.learned or (train_on_prompt and not span.answer), span.asked)):
                end = at
                while end < len(before) and before[end][1] < until:
                    end += 1
                if until == span.start and span.learned and end > at and _only_space_before(text, before, end, until):
                    end -= 1
                segments.append(Segment(ids[at:end], learned, asked))
                at = end
        segments.append(Segment(ids[at:], False))
        found = [segment for segment in segments if segment.ids]
        return [*found, Segment(rest, True)], shown.notes

    def _rendered(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], prompt: bool) -> str:
        """The conversation by the chat template. Raises DataError when the template refuses it or fails."""
        template = self._template(tools)
        return self._templates.render(
            template, messages, dict(self.tokenizer.special_tokens_map), tools=tools, prompt=prompt)

    def _template(self, tools: object) -> object:
        try:
            template: object = self.tokenizer.get_chat_template(tools=tools or None)
        except ValueError as error:
            raise DataError("the base model has several chat templates and none is the default", fix=FIX) from error
        return NO_DATE + template if isinstance(template, str) and DATED in template else template

    def _ended(self, ids: list[int]) -> list[int]:
        """With the end token behind them, unless a template has written one: the line break behind that is dropped."""
        last = next((at for at in reversed(range(len(ids))) if ids[at] in self.stop_ids), -1) if self._templated else -1
        return ids[: last + 1] if last >= 0 and not self.decode(ids[last + 1:]).strip() else [*ids, self.eos]

    def _read(self, texts: list[str]) -> list[list[int]]:
        """Ids of user texts. Raises Broken if a special token comes out that is not meant."""
        plain = not self._templated
        if self.tokenizer.is_fast:
            backend = self.tokenizer.backend_tokenizer
            if backend.encode_special_tokens != plain:  # transformers sets it for each of its own calls
                backend.encode_special_tokens = plain
            found = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        else:
            ask = partial(self.tokenizer, add_special_tokens=False, split_special_tokens=plain, verbose=False)
            found = [list(ask(text)["input_ids"]) for text in texts]
        if plain and not all(self.never.isdisjoint(ids) for ids in found):
            raise Broken("the base model's tokenizer turns plain text into special tokens",
                         fix="Report the tokenizer's class.")
        return found


def _only_space_before(text: str, tokens: list[tuple[int, int]], number: int, place: int) -> bool:
    """Whether the token before this one has something behind `place`, and only spaces in front of it."""
    after = tokens[number][1] if number < len(tokens) else len(text)
    return after > place and text[tokens[number - 1][1] : place].isspace()


def _only_id(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)
