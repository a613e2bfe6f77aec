"""tasks/distributed/text.py: conversations by the templates that chat models bring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AddedToken, AutoTokenizer

from tasks.distributed.examples import flatten
from tasks.distributed.model import load_tokenizer
from tasks.distributed.text import Codec

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
