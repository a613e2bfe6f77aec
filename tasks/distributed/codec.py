"""Between text and token ids: the one place that training, evaluation and serving share.

In:   rows of {prompt, completion}, {text} or {messages}     Out: token ids with loss labels
A prompt is encoded by itself, exactly as the predictor will encode it; a completion is encoded
as its continuation. Text from users can never become a special token: `</s>` in a row is five
characters. The end token is appended by us and labelled, so that the model learns to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from infra.errors import Broken, DataError
from infra.records import RowKind
from tasks.distributed.templates import FIX, Templates

ANCHORS = ("\n", ":", "a")
PLACE, PLACEHOLDER = "\ue000", "\ue000{}\ue001"
DATED = "strftime_now"
"""What templates ask for today's date (transformers.utils.chat_template_utils)."""
NO_DATE = ("{% macro strftime_now(format) %}{{ '2024-07-26' if format == '%Y-%m-%d' else '26 Jul 2024' }}"
           "{% endmacro %}")
"""A model must be asked as it was trained, and the same rows give the same bytes: it is always the day that Llama 3's
template falls back to."""
PLAIN_TURN = "{role}: {content}\n"


@dataclass(frozen=True, slots=True)
class Segment:
    """Token ids that are all learned, or all only read."""

    ids: list[int]
    labelled: bool
    asked: bool = False
    """What a user says in a conversation."""


class Codec:
    """A tokenizer with the rules above."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._templates = Templates()
        self.eos: int = _only_id(tokenizer.eos_token_id)
        start = list(tokenizer("")["input_ids"])
        self.bos: list[int] = [i for i in start if i != self.eos][:1]
        self.vocabulary: int = max(tokenizer.get_vocab().values()) + 1
        """More than any token id: ids may have gaps."""
        # all_special_ids has only those with a role of their own: not <|eot_id|> beside another end token
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = frozenset(tokenizer.all_special_ids) | added
        self._never = self._special - {tokenizer.unk_token_id}
        if tokenizer.is_fast:  # some are published with a length to cut to
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        ends = {self.eos}
        for text in ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"):
            index = self.tokenizer.convert_tokens_to_ids(text)
            if isinstance(index, int) and index in self._special and index != self.tokenizer.unk_token_id:
                ends.add(index)
        return frozenset(ends)

    def prompt(self, text: str) -> list[int]:
        """Ids of a prompt, as both training and the predictor see it: begin token, then text."""
        return self.prompts([text])[0]

    def prompts(self, texts: list[str]) -> list[list[int]]:
        """The same of many at once."""
        return [self.bos + ids for ids in self._plain(texts)]

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
            start, *wholes = self._plain([anchor, *(anchor + texts[i] for i in left)])
            found |= {i: ids[len(start):] for i, ids in zip(left, wholes, strict=True) if ids[: len(start)] == start}
            left = [i for i in left if i not in found]
            if not left:
                break
        found |= dict(zip(left, self._plain([texts[i] for i in left]), strict=True))
        return [found[i] for i in range(len(texts))]

    def rows(
        self, kind: RowKind, rows: list[dict[str, Any]], separator: str, *, train_on_prompt: bool,
    ) -> list[list[Segment]]:
        """Training rows as segments; the last one of a row ends with the end token and is labelled.

        Raises DataError for a conversation that the chat template cannot show.
        """
        if kind == "text":
            return [[Segment([*ids, self.eos], True)] for ids in self.prompts([row["text"] for row in rows])]
        if kind == "prompt":
            asked = self.prompts([row["prompt"] + separator for row in rows])
            answers = self.continuations([row["completion"] for row in rows])
            return [[Segment(ids, train_on_prompt), Segment([*answer, self.eos], True)]
                    for ids, answer in zip(asked, answers, strict=True)]
        contents = iter(self.continuations([m["content"] for row in rows for m in row["messages"]]))
        return [self._turns(row["messages"], list(islice(contents, len(row["messages"]))),
                            train_on_prompt=train_on_prompt) for row in rows]

    def row(self, kind: RowKind, row: dict[str, Any], separator: str, *, train_on_prompt: bool) -> list[Segment]:
        """One training row as segments."""
        return self.rows(kind, [row], separator, train_on_prompt=train_on_prompt)[0]

    def question(self, kind: RowKind, row: dict[str, Any], separator: str) -> tuple[list[int], str]:
        """Ids of the prompt of a held-out row, and the reference answer."""
        if kind == "prompt":
            return self.prompt(row["prompt"] + separator), row["completion"]
        ids = [i for segment in self.asked(row["messages"]) for i in segment.ids]
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        return ids, answers[-1]

    def asked(self, messages: list[dict[str, str]]) -> list[Segment]:
        """A conversation up to its last answer, as segments."""
        segments = self.row("messages", {"messages": messages}, "", train_on_prompt=False)
        return segments[: max(i for i, segment in enumerate(segments) if segment.labelled)]

    def turn(self, prompt: str, system_prompt: str) -> list[int]:
        """Ids of a conversation up to the assistant's answer, for a version trained on messages."""
        before = [{"role": "system", "content": system_prompt}] if system_prompt else []
        messages = [*before, {"role": "user", "content": prompt}, {"role": "assistant", "content": "answer"}]
        return self.question("messages", {"messages": messages}, "")[0]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        return str(self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _turns(
        self, messages: list[dict[str, str]], contents: list[list[int]], *, train_on_prompt: bool,
    ) -> list[Segment]:
        """Segments of a conversation: what the assistant says, and its end, is labelled."""
        pieces = self._template(messages)
        segments = [Segment([*self.bos, *self._markup(pieces[0])], False)] if self.bos or pieces[0] else []
        for message, ids, after in zip(messages, contents, pieces[1:], strict=True):
            answer = message["role"] == "assistant"
            markup = self._markup(after)
            end = next((i + 1 for i, token in enumerate(markup) if token in self._special), 0)
            if answer and not end:
                markup, end = [self.eos, *markup], 1
            segments.append(Segment(
                ids + (markup[:end] if answer else []), answer or train_on_prompt, message["role"] == "user"))
            segments.append(Segment(markup[end:] if answer else markup, False))
        while segments and not segments[-1].labelled:
            segments.pop()
        if not segments:
            raise DataError("a conversation has no assistant message", fix="Add the answer to learn.")
        return [segment for segment in segments if segment.ids]

    def _template(self, messages: list[dict[str, str]]) -> list[str]:
        """The chat template's own text around the messages, one piece more than messages.

        Contents are replaced by placeholders while the template is rendered, so that what a user
        writes is never read as markup.
        """
        marked = [{**m, "content": PLACEHOLDER.format(i)} for i, m in enumerate(messages)]
        if self.tokenizer.chat_template:
            text = self._rendered(marked)
            begin = str(self.tokenizer.bos_token or "")
            text = text.removeprefix(begin) if self.bos and begin else text
        else:
            text = "".join(PLAIN_TURN.format(**m) for m in marked)
        pieces, at = [], 0
        for message in marked:
            found = text.find(message["content"], at)
            if found < 0:
                pieces.append(PLACE)
                break
            pieces.append(text[at:found])
            at = found + len(message["content"])
        if any(PLACE in piece for piece in (*pieces, text[at:])):
            raise DataError("the base model's chat template leaves out or repeats a message",
                            fix="Use prompt/completion rows, or a template that shows every message once.")
        return [*pieces, text[at:]]

    def _rendered(self, marked: list[dict[str, str]]) -> str:
        """The conversation by the chat template. Raises DataError when the template refuses it or fails."""
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError("the base model has several chat templates and none is the default", fix=FIX) from error
        if isinstance(template, str) and DATED in template:
            template = NO_DATE + template
        return self._templates.render(template, marked, dict(self.tokenizer.special_tokens_map))

    def _markup(self, text: str) -> list[int]:
        """Ids of the template's own text, special tokens included."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _plain(self, texts: list[str]) -> list[list[int]]:
        """Ids of user texts. Raises Broken if a special token comes out all the same."""
        if self.tokenizer.is_fast:
            backend = self.tokenizer.backend_tokenizer
            if not backend.encode_special_tokens:  # transformers sets it for each of its own calls
                backend.encode_special_tokens = True
            found = [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
        else:
            ask = partial(self.tokenizer, add_special_tokens=False, split_special_tokens=True, verbose=False)
            found = [list(ask(text)["input_ids"]) for text in texts]
        if not all(self._never.isdisjoint(ids) for ids in found):
            raise Broken("the base model's tokenizer turns plain text into special tokens",
                         fix="Report the tokenizer's class.")
        return found


def _only_id(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)
