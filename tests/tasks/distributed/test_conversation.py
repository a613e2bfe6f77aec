"""Training and prediction send the same tokens: tasks/distributed/conversation.py, with tasks/distributed/chat_marks.py
and tasks/distributed/special_tokens.py.

Over the families of tests/support/chat_templates.py, with a tokenizer of bytes (GPT-2's) and SentencePiece (Llama 2's).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken

from infra.errors import DataError
from tasks.data.schema import clean
from tasks.distributed.codec import Codec
from tasks.distributed.conversation import FOLDED
from tasks.distributed.examples import flatten
from tasks.distributed.model import load_tokenizer
from tests.support.chat_templates import FAMILIES, Family

TURNS = [("user", " How many?\n"), ("assistant", "Two. "), ("user", "[NST] And\nnow? "), ("assistant", "\nThree <b>.")]
KINDS = ("bytes", "pieces")


def chat(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


@pytest.fixture(scope="module")
def folders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for name, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        shutil.copy(shared / "models" / "gpt2_tokenizer" / name, found["bytes"] / ours)
    shutil.copy(shared / "models" / "llama2_tokenizer" / "tokenizer.model", found["pieces"])
    return found


def codec_of(folders: dict[str, Path], kind: str, family: Family) -> Codec:
    folder = folders[kind]
    unknown = "<unk>" if kind == "pieces" else family.special[1]
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "LlamaTokenizer" if kind == "pieces" else "GPT2Tokenizer", "bos_token": family.special[0],
        "eos_token": family.special[1], "unk_token": unknown}))
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in family.special],
                         special_tokens=True)
    tokenizer.chat_template = family.template
    return Codec(tokenizer)


QUICK = ("bytes llama 3", "bytes qwen 3", "bytes gemma 2", "pieces llama 2", "pieces mistral 0.1", "bytes harmony")
GRID = [(kind, name) for name in FAMILIES for kind in KINDS]


@pytest.fixture(scope="module", params=[
    pytest.param(one, id=" ".join(one), marks=() if " ".join(one) in QUICK else pytest.mark.slow) for one in GRID])
def family(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Codec, Family]:
    kind, name = request.param
    return codec_of(folders, kind, FAMILIES[name]), FAMILIES[name]


def asked(codec: Codec, messages: list[dict[str, Any]], **knobs: Any) -> list[int]:
    """What every other program sends."""
    ids: list[int] = codec.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **knobs)
    return ids


def learned(codec: Codec, **row: Any) -> tuple[list[int], list[str]]:
    """All ids, and the texts that are learned."""
    segments = codec.row("messages", row, "", train_on_prompt=False)
    texts = [codec.tokenizer.decode(segment.ids) for segment in segments if segment.labelled]
    return [i for segment in segments for i in segment.ids], texts


@pytest.mark.parametrize("turns", [2, 4])
def test_before_an_answer_stands_what_prediction_and_all_others_send(
    family: tuple[Codec, Family], turns: int,
) -> None:
    codec, facts = family
    messages = chat(*TURNS[:turns])
    before, _ = codec.question("messages", {"messages": messages}, "")
    ids, _ = learned(codec, messages=messages)
    wanted = asked(codec, messages[:-1])
    assert ids[: len(before)] == before == codec.chat(messages[:-1])
    if facts.differs:
        assert wanted[: len(before)] == before and len(wanted) > len(before)
    else:
        assert before == wanted


def test_an_answer_ends_with_what_the_template_closes_it_with(family: tuple[Codec, Family]) -> None:
    codec, facts = family
    ids, _ = learned(codec, messages=chat(*TURNS))
    assert codec.tokenizer.convert_ids_to_tokens(ids[-1]) == facts.ends


def test_earlier_answers_are_learned_as_the_template_writes_them(family: tuple[Codec, Family]) -> None:
    codec, _ = family
    _, texts = learned(codec, messages=chat(*TURNS))
    assert len(texts) == 2 and "Two." in texts[0] and "How" not in texts[0] and "And" not in texts[0]
    assert "Three <b>." in texts[1] and "now" not in texts[1]


def test_text_that_spells_a_special_token_stays_text(family: tuple[Codec, Family]) -> None:
    codec, facts = family
    plain, spelled = (learned(codec, messages=chat(("user", f"say {word}"), ("assistant", f"{word} it is")))
                      for word in ("x", "".join(facts.special)))
    special = {codec.tokenizer.convert_tokens_to_ids(text) for text in facts.special}
    count = [sum(index in special for index in ids) for ids, _ in (plain, spelled)]
    assert count[0] == count[1] and all(text in codec.tokenizer.decode(spelled[0]) for text in facts.special)


def test_a_system_text_is_shown_or_folded_where_the_family_says_so(family: tuple[Codec, Family]) -> None:
    codec, facts = family
    system = {"role": "system", "content": "Be kind."}
    before = codec.chat([system, *chat(TURNS[0])])
    assert codec.noted == ([(0, FOLDED)] if facts.folds else [])
    if facts.folds:
        assert before == codec.chat(chat(("user", "Be kind.\n\n" + TURNS[0][1])))
    elif not facts.differs:
        assert before == asked(codec, [system, *chat(TURNS[0])])


def test_a_message_of_weight_0_is_read_and_not_learned(family: tuple[Codec, Family]) -> None:
    codec, _ = family
    messages = chat(*TURNS)
    ids, texts = learned(codec, messages=[messages[0], {**messages[1], "weight": 0}, *messages[2:]])
    assert (ids, texts) == (learned(codec, messages=messages)[0], learned(codec, messages=messages)[1][1:])


@pytest.fixture(scope="module")
def qwen(folders: dict[str, Path]) -> Codec:
    return codec_of(folders, "bytes", FAMILIES["qwen 3"])


def test_thoughts_are_rendered_once_and_dropped_where_the_template_drops_them(qwen: Codec) -> None:
    told = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "hm"}]
    inline = [told[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}]
    for turns in (told, inline):
        assert learned(qwen, messages=turns)[1] == ["<think>\nhm\n</think>\n\nb<|im_end|>"]
        assert learned(qwen, messages=[*turns, *turns])[1] == ["b<|im_end|>", "<think>\nhm\n</think>\n\nb<|im_end|>"]


TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}]
CALLS = [{"type": "function", "id": "c1", "function": {"name": "count", "arguments": {"of": "plates"}}}]
ROW = clean({"tools": TOOLS, "messages": [
    {"role": "user", "content": "How many?"}, {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c1", "content": "2"}, {"role": "assistant", "content": "Two."}]}, "messages", "d")
SHOWS_TOOLS = ("{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
               "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls | default([]) %}<tool_call>"
               "{{ c.function.name }} {{ ARGUMENTS }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
               "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@pytest.mark.parametrize("arguments", ["c.function.arguments | tojson", "c.function.arguments",
                                       "'' + c.function.arguments"])
def test_calls_are_learned_with_their_end_and_results_are_read(folders: dict[str, Path], arguments: str) -> None:
    family = Family(SHOWS_TOOLS.replace("ARGUMENTS", arguments), FAMILIES["qwen 2.5"].special, "<|im_end|>")
    codec = codec_of(folders, "bytes", family)
    ids, texts = learned(codec, **ROW)
    assert texts == ['<tool_call>count {"of": "plates"}</tool_call><|im_end|>', "Two.<|im_end|>"]
    text = codec.tokenizer.decode(ids)
    assert '"name": "count"' in text and "<|im_start|>tool\n2<|im_end|>" in text
    last, _ = learned(codec, tools=TOOLS, messages=ROW["messages"][:2])
    assert last == ids[: len(last)]
    assert codec.chat(ROW["messages"][:-1], TOOLS) == codec.question("messages", ROW, "")[0]


@pytest.mark.parametrize(("row", "words"), [
    (ROW, "does not show tools"), ({"messages": ROW["messages"]}, "does not show tool_calls"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "hm"}]},
     "does not show reasoning_content")])
def test_what_a_template_does_not_show_is_refused(folders: dict[str, Path], row: dict[str, Any], words: str) -> None:
    codec = codec_of(folders, "bytes", FAMILIES["qwen 2.5"])
    with pytest.raises(DataError, match=words):
        codec.row("messages", row, "", train_on_prompt=False)


def test_a_template_without_a_system_role_of_another_family_names_the_role(folders: dict[str, Path]) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + FAMILIES["phi 3"].template
    codec = codec_of(folders, "bytes", Family(refuses, FAMILIES["phi 3"].special, "<|end|>"))
    with pytest.raises(DataError, match=r"takes no message of the role system \(no\)\. Put its text in front"):
        codec.turn("hi", "be kind")


@pytest.mark.parametrize("name", ["trim-llama3", "think-qwen3", "gemma2-message", "stop-gemma4"])
def test_the_cases_agree_with_apply_chat_template(shared: Path, name: str) -> None:
    if not (shared / "cases" / name).is_dir():
        pytest.skip(f"needs ../shared/cases/{name}")
    codec = Codec(load_tokenizer(shared / "cases" / name / "base"))
    (path,) = (shared / "cases" / name).glob("*.jsonl")
    messages = [*chat(*TURNS[:2]), *json.loads(path.read_text().splitlines()[0])["messages"]]
    ids, labels = flatten(codec.row("messages", {"messages": messages}, "", train_on_prompt=False))
    whole = codec.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    if name != "trim-llama3":  # its template shows the date, which is the same every day here
        assert ids.tolist() == whole[: len(ids)]
    assert labels[-1] and codec.tokenizer.decode(ids[labels]).count("<think>") == (name == "think-qwen3")


def test_qwen_without_thinking_is_asked_as_with_it(qwen: Codec) -> None:
    """enable_thinking=False puts an empty thought into the prompt; here the model learns to write it itself."""
    before = qwen.chat(chat(("user", "a")))
    wanted = asked(qwen, chat(("user", "a")), enable_thinking=False)
    assert wanted[: len(before)] == before and "<think>" in qwen.tokenizer.decode(wanted[len(before):])


def case_of(shared: Path, name: str) -> Path:
    folder = shared / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/cases/{name}")
    return folder


def test_a_template_in_chat_template_json_is_found(shared: Path) -> None:
    codec = Codec(load_tokenizer(case_of(shared, "chat-template-json") / "base"))
    before = codec.chat(chat(("user", "a")))
    assert before == asked(codec, chat(("user", "a")))
    assert codec.tokenizer.decode(before).endswith("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")


def test_the_case_with_templates_in_its_texts_is_seen(shared: Path) -> None:
    folder = case_of(shared, "pretemplated")
    codec = Codec(load_tokenizer(folder / "base"))
    rows = [json.loads(line) for line in (folder / "pretemplated_chatml.jsonl").read_text().splitlines()]
    assert rows and all(codec.spells_special(row["text"]) for row in rows) and not codec.spells_special("a < b")
