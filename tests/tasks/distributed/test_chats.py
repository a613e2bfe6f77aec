"""tasks/distributed/codec.py: conversations by the templates that chat models bring.

Tests tasks/distributed/generate.py too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AddedToken, AutoTokenizer

from infra.errors import DataError
from tasks.distributed.codec import Codec, Segment
from tasks.distributed.contract import EncodeJob, GenerateJob
from tasks.distributed.examples import Encoded, add, flatten
from tasks.distributed.generate import prompt_ids
from tasks.distributed.model import load_tokenizer

CHATS = {
    "chatml": ("<|im_end|>", "{% for m in messages %}<|im_start|>{{ m.role }}\n"
                             "{{ m.content }}<|im_end|>\n{% endfor %}"),
    "llama 3": ("<|eot_id|>", "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
                              "\n\n{{ m.content }}<|eot_id|>{% endfor %}")}
ADDED = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.fixture(scope="module", params=CHATS)
def chat(
    request: pytest.FixtureRequest, stories: Path, tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Codec, int]:
    """A tokenizer with a chat template whose turns end with another special token than its end token; that one's id."""
    folder, (end, template) = tmp_path_factory.mktemp("chat"), CHATS[request.param]
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in ADDED], special_tokens=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    codec = Codec(load_tokenizer(folder))
    return codec, codec.tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("text", [*ADDED, "a<|eot_id|>b<|im_end|>", "</s><|eot_id|></s>"])
def test_text_never_becomes_a_special_token_of_a_chat(chat: tuple[Codec, int], text: str) -> None:
    codec, _ = chat
    ids = codec.continuation(text)
    assert max(ids) < len(codec.tokenizer) - len(ADDED) and codec.eos not in ids and codec.decode(ids) == text


def test_of_a_chat_the_answers_and_their_ends_are_learned(chat: tuple[Codec, int]) -> None:
    codec, end = chat
    says = ["hi <|eot_id|>", "yo", "and <|im_end|> you?", "fine </s>"]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, says, strict=True)]
    ids, labels = flatten(codec.row("messages", {"messages": turns}, "", train_on_prompt=False))
    assert np.count_nonzero(ids == end) == 4 and np.count_nonzero(ids[labels] == end) == 2
    assert codec.eos not in ids and ids[-1] == end and labels[-1]
    learned = "".join(codec.decode(ids[labels].tolist()).split())
    assert learned == "yofine</s>"
    assert end in codec.stop_ids
    rendered = codec.tokenizer.apply_chat_template(turns, tokenize=False)
    shown = codec.tokenizer.decode(ids, skip_special_tokens=False)
    assert "".join(shown.split()) in "".join(f"{codec.tokenizer.bos_token}{rendered}".split())


LONG = [{"role": "system", "content": "be kind"}] + [
    {"role": role, "content": f"{word} {number}"} for number in range(4)
    for role, word in (("user", "what is"), ("assistant", "it is"))]


def packed(codec: Codec, messages: list[dict[str, str]], size: int) -> tuple[list[int], list[bool], Encoded]:
    """What a row of so many tokens has of a conversation, if anything."""
    encoded, job = Encoded(), EncodeJob(
        out="", rows="", tokenizer="", kind="messages", separator="", chunk_tokens=size, pack=True, wrap=False,
        train_on_prompt=False)
    add(encoded, codec, job, Path("train.jsonl"), {0: {"messages": messages}})
    ids, labels = (part[0].tolist() if part else [] for part in (encoded.ids, encoded.labels))
    return ids, labels, encoded


def whole(codec: Codec, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    ids, labels = flatten(codec.row("messages", {"messages": messages}, "", train_on_prompt=False))
    return ids.tolist(), labels.tolist()


@pytest.mark.parametrize("exchanges", [1, 2, 3])
def test_a_chat_that_is_too_long_loses_its_oldest_exchanges(chat: tuple[Codec, int], exchanges: int) -> None:
    codec, _ = chat
    kept = [LONG[0], *LONG[-2 * exchanges:]]
    ids, labels = whole(codec, kept)
    longer = len(whole(codec, [LONG[0], *LONG[-2 * exchanges - 2:]])[0])
    for size in (len(ids), longer - 1):
        found = packed(codec, LONG, size)
        assert found[:2] == (ids, labels)
        assert (found[2].truncated, found[2].lost) == (1, len(whole(codec, LONG)[0]) - len(ids))


def test_of_an_exchange_that_is_too_long_the_question_is_cut_on_its_left(chat: tuple[Codec, int]) -> None:
    codec, end = chat
    short = [LONG[0], {"role": "user", "content": " that"}, {"role": "assistant", "content": "it is"}]
    wanted, labels = whole(codec, short)
    asks = {"role": "user", "content": "well, " * 50 + "and what about that"}
    ids, marks, _ = packed(codec, [LONG[0], asks, short[2]], len(wanted))
    assert (ids, marks) == (wanted, labels) and ids[-1] == end
    _, _, encoded = packed(codec, [{"role": "system", "content": "be kind " * 50}, *short[1:]], len(wanted))
    assert encoded.idle and not encoded.ids, "the system message alone is too long: nothing is left to learn"


def test_a_long_chat_is_asked_as_it_is_learned(chat: tuple[Codec, int]) -> None:
    codec, _ = chat
    wanted = codec.question("messages", {"messages": [LONG[0], *LONG[-4:]]}, "")[0]
    job = GenerateJob.__new__(GenerateJob)
    object.__setattr__(job, "kind", "messages")
    object.__setattr__(job, "separator", "")
    assert prompt_ids(codec, job, {"messages": LONG}, len(wanted)) == wanted


def dated(codec: Codec, template: str, messages: list[dict[str, str]]) -> list[Segment]:
    before, codec.tokenizer.chat_template = codec.tokenizer.chat_template, template
    try:
        return codec.row("messages", {"messages": messages}, "", train_on_prompt=False)
    finally:
        codec.tokenizer.chat_template = before


@pytest.mark.parametrize(("date", "shown"), [("%d %b %Y", "26 Jul 2024"), ("%Y-%m-%d", "2024-07-26")])
def test_a_template_that_asks_for_the_date_gets_the_same_one_every_day(
    chat: tuple[Codec, int], date: str, shown: str,
) -> None:
    codec, _ = chat
    template = "\nToday: {{ strftime_now('" + date + "') }}\n{% for m in messages %}{{ m.content }}|{% endfor %}"
    first = dated(codec, template, LONG[-2:])[0]
    assert codec.decode(first.ids).strip() == f"Today: {shown}"


@pytest.mark.parametrize("shows", ["{{ m.content }}{{ m.content }}", "{{ m.role }}", "{{ m.content }}"])
def test_a_template_that_repeats_or_leaves_out_a_message_is_refused(chat: tuple[Codec, int], shows: str) -> None:
    codec, _ = chat
    again = "{{ messages[0].content }}" if shows == "{{ m.content }}" else ""
    template = "{% for m in messages %}" + shows + "|{% endfor %}" + again
    with pytest.raises(DataError, match="leaves out or repeats a message"):
        dated(codec, template, LONG[-2:])
