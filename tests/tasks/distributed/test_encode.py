"""tasks/distributed/{text,encode}.py: what is read, what is learned, what is cut.

Tests tasks/distributed/examples.py too.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import BaseModelError, DataError
from tasks.data.schema import parse
from tasks.distributed.codec import Codec
from tasks.distributed.contract import EncodeJob
from tasks.distributed.encode import bins, encode, show_example
from tasks.distributed.examples import LEFT_OUT, NO_END, NO_PROMPT, TEMPLATED, flatten
from tasks.distributed.model import load_tokenizer
from tasks.distributed.packs import PackedRows

ROWS = [{"prompt": f"Question {i}:", "completion": f" answer {i}" * (i % 4 + 1)} for i in range(40)]


@pytest.fixture(scope="module")
def codec(stories: Path) -> Codec:
    return Codec(load_tokenizer(stories))


def run(tmp_path: Path, tokenizer: Path, **knobs: Any) -> tuple[Path, dict[str, Any]]:
    source, out = tmp_path / "rows", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for split in ("train", "validation"):
        (source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values: dict[str, Any] = {"chunk_tokens": 64, "pack": True, "wrap": False, "train_on_prompt": False, **knobs}
    job = EncodeJob(out=str(out), rows=str(source), tokenizer=str(tokenizer), kind="prompt", separator="", **values)
    assert encode(job) == 0
    return out, json.loads((out / "result.json").read_text())


def test_the_loss_is_on_completions_and_the_end_token(codec: Codec) -> None:
    ids, labels = flatten(codec.row("prompt", {"prompt": "Hi:", "completion": " you"}, "", train_on_prompt=False))
    assert ids[0] == codec.bos[0] and ids[-1] == codec.eos and labels[-1]
    assert codec.decode(ids[labels][:-1].tolist()).strip() == "you"


def test_the_loss_can_be_put_on_prompts_too(codec: Codec) -> None:
    _, labels = flatten(codec.row("prompt", {"prompt": "Hi:", "completion": " you"}, "", train_on_prompt=True))
    assert not labels[0] and labels[1:].all()


def test_a_prompt_has_the_ids_that_the_predictor_will_send(codec: Codec) -> None:
    segments = codec.row("prompt", {"prompt": "Tell me:", "completion": "now"}, "\n", train_on_prompt=False)
    assert segments[0].ids == codec.prompt("Tell me:\n")


@pytest.fixture(scope="module")
def llama_2(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of Llama 2, with the names of its special tokens, which the published files leave empty."""
    folder = tmp_path_factory.mktemp("llama2")
    shutil.copy(shared / "models" / "llama2_tokenizer" / "tokenizer.model", folder)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **names}))
    return folder


@pytest.fixture(scope="module")
def gpt_2(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of bytes, with one special token."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        shutil.copy(shared / "models" / "gpt2_tokenizer" / name, folder / ours)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **names}))
    return folder


@pytest.fixture(scope="module", params=["llama_2", "stories", "gpt_2"])
def each_codec(request: pytest.FixtureRequest) -> Codec:
    return Codec(load_tokenizer(request.getfixturevalue(request.param)))


def comes_back(codec: Codec, text: str) -> bool:
    """Whether a prompt and the text behind it are told by their ids, none of which is special."""
    ids = codec.prompt("a")[len(codec.bos):] + codec.continuation(text)
    return not set(ids) & set(codec.tokenizer.all_special_ids) and codec.decode(ids) == f"a{text}"


@pytest.mark.parametrize("text", [
    "</s>", "a</s>b<s>", "<unk> <s>", "[INST] </s> [/INST]", "<|eot_id|>", "<|endoftext|>", "a<|endoftext|>"])
def test_text_never_becomes_a_special_token(each_codec: Codec, text: str) -> None:
    assert comes_back(each_codec, text)
    assert each_codec.eos not in each_codec.continuation(text)


def test_naughty_strings_come_back_unchanged(each_codec: Codec, shared: Path) -> None:
    strings = json.loads((shared / "data" / "naughty_strings" / "blns.json").read_text())
    assert [text for text in strings if not comes_back(each_codec, text)] == [] and len(strings) == 515


def test_unusual_utf_8_comes_back_unchanged_or_is_refused_as_a_line(each_codec: Codec, shared: Path) -> None:
    """Lines of utf8tests.bin are `number:description:bytes`."""
    lines = (shared / "data" / "utf8_tests" / "utf8tests.bin").read_bytes().splitlines(keepends=True)
    refused = 0
    for line in (line.rstrip(b"\n") for line in lines):
        row = b'{"text": "' + line + b'"}'
        try:
            text = line.decode()
        except UnicodeDecodeError:
            with pytest.raises(DataError, match="is not UTF-8"):
                parse(row, "here")
            refused += 1
        else:
            assert comes_back(each_codec, text), text
    assert 20 < refused < len(lines) - 20


def test_every_example_that_is_whole_ends_once(tmp_path: Path, stories: Path) -> None:
    out, _ = run(tmp_path, stories)
    packs, eos = PackedRows(out / "train"), Codec(load_tokenizer(stories)).eos
    ends = [np.flatnonzero(ids == eos).tolist() for ids, _ in map(packs.segment, range(packs.segments))]
    assert ends == [[len(packs.segment(number)[0]) - 1] for number in range(packs.segments)]
    assert all(packs.segment(number)[1][-1] for number in range(packs.segments))


def test_a_tokenizer_whose_special_tokens_have_no_names_is_told(shared: Path) -> None:
    with pytest.raises(BaseModelError, match=r"special tokens are empty.*Set \"bos_token\""):
        load_tokenizer(shared / "models" / "llama2_tokenizer")


def test_only_what_the_assistant_says_is_learned(codec: Codec) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
                {"role": "user", "content": "bye"}, {"role": "assistant", "content": "ciao"}]
    ids, labels = flatten(codec.row("messages", {"messages": messages}, "", train_on_prompt=False))
    assert codec.decode(ids[labels].tolist()) == "yociao" and list(ids[labels]).count(codec.eos) == 2
    question, answer = codec.question("messages", {"messages": messages}, "")
    assert answer == "ciao" and question == ids[: len(question)].tolist()


def test_a_version_trained_on_messages_is_asked_as_it_was_trained(codec: Codec) -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "yo"}]
    trained = codec.row("messages", {"messages": messages}, "", train_on_prompt=False)
    before = [i for segment in trained if not segment.labelled for i in segment.ids]
    assert codec.turn("hi", "be kind") == before


@pytest.mark.parametrize("pack", [True, False])
def test_packing_keeps_every_example_whole_and_once(tmp_path: Path, stories: Path, codec: Codec, pack: bool) -> None:
    out, counts = run(tmp_path, stories, pack=pack)
    rows = PackedRows(out / "train")
    found = sorted(ids.tolist() for row in range(len(rows)) for ids, _ in rows.row(row))
    wanted = sorted(flatten(codec.row("prompt", row, "", train_on_prompt=False))[0].tolist() for row in ROWS)
    assert found == wanted
    assert counts["train"]["examples"] == 40 and counts["train"]["truncated"] == 0
    assert (len(rows) == 40) is not pack
    assert rows.tokens_in.max() <= 64


def test_ten_samples_show_what_is_learned(tmp_path: Path, stories: Path) -> None:
    samples = json.loads((run(tmp_path, stories)[0] / "result.json").read_text())["samples"]
    assert len(samples) == 10 and samples[0]["runs"][0]["text"].endswith("Question 0:")
    for sample in samples:
        assert [piece["learned"] for piece in sample["runs"]] == [False, True] and sample["more"] == 0
        assert sample["runs"][1]["text"].endswith("</s>") and 0 < sample["learned"] < sample["tokens"]


def test_long_samples_keep_their_ends(codec: Codec) -> None:
    turns = [{"role": role, "content": "so " * 300} for role in ("user", "assistant")] * 9
    shown = show_example(codec, *flatten(codec.row("messages", {"messages": turns}, "", train_on_prompt=False)))
    assert len(shown["runs"]) == 8 and shown["more"] == 10
    assert all(len(piece["text"]) <= 247 and " [...] " in piece["text"] for piece in shown["runs"])


def test_the_histogram_counts_every_example_by_its_length(tmp_path: Path, stories: Path) -> None:
    out, counts = run(tmp_path, stories, chunk_tokens=16)
    found = json.loads((out / "result.json").read_text())
    width, bars = found["bin_tokens"], found["lengths"]["train"]
    assert sum(bars) == 40 and bars[-1] > 0 and (len(bars) - 1) * width <= counts["train"]["longest"]
    assert found["lengths"]["validation"] == bars


def test_bars_are_as_wide_as_it_takes_for_forty() -> None:
    assert bins({"train": [np.array([1, 1]), np.array([3])], "validation": []}) == (1, {
        "train": [0, 2, 0, 1], "validation": [0, 0, 0, 0]})
    width, bars = bins({"train": [np.array([0, 99, 100, 4000])]})
    assert width == 101 and bars["train"] == [3, *[0] * 38, 1]


def test_a_row_that_would_teach_nothing_is_refused(tmp_path: Path, stories: Path) -> None:
    late = {"messages": [
        {"role": "system", "content": "a long story " * 20}, {"role": "user", "content": "be kind"},
        {"role": "assistant", "content": "yo"}]}
    source = tmp_path / "late"
    source.mkdir()
    fits = {"messages": late["messages"][1:]}
    (source / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [fits, late, late]))
    job = EncodeJob(
        out=str(tmp_path / "out"), rows=str(source), tokenizer=str(stories), kind="messages", separator="",
        chunk_tokens=32, pack=True, wrap=False, train_on_prompt=False)
    with pytest.raises(DataError, match=r"^train row 2: nothing of it is left to learn in 32 tokens: it has \d+, .* "
                                        r"too late; the same is true of 1 more: train row 3\. Raise chunk_size"):
        encode(job)
    (source / "train.places").write_text("d.jsonl line 1\nd.jsonl line 7\nd.jsonl line 9\n")
    with pytest.raises(DataError, match=r"^d.jsonl line 7: nothing of it .* d.jsonl line 9\. Raise chunk_size"):
        encode(dataclasses.replace(job, out=str(tmp_path / "again")))
    (source / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [fits, *[late] * 30]))
    (source / "train.places").unlink()
    with pytest.raises(DataError, match=r"true of 29 more: train row 3, .* train row 21, \.\.\.\. Raise"):
        encode(dataclasses.replace(job, out=str(tmp_path / "many")))


def test_a_row_that_the_chat_template_refuses_is_named_by_its_line(tmp_path: Path, stories: Path) -> None:
    base = Path(shutil.copytree(stories, tmp_path / "base"))
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}{% endfor %}")
    turns = [{"role": role, "content": "hi"} for role in ("system", "user", "assistant")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"messages": part}) + "\n" for part in (turns[1:], turns)))
    (tmp_path / "train.places").write_text("d.jsonl line 4\nd.jsonl line 9\n")
    job = EncodeJob(
        out=str(tmp_path / "out"), rows=str(tmp_path), tokenizer=str(base), kind="messages", separator="",
        chunk_tokens=32, pack=True, wrap=False, train_on_prompt=False)
    with pytest.raises(DataError, match=(r"^d.jsonl line 9: the base model's chat template takes no message of "
                                         r"the role system \(no system here\)\. Put its text in front of the first")):
        encode(job)


@pytest.mark.parametrize(("over", "truncated", "lost"), [(-1, 0, 0), (0, 0, 0), (1, 40, 40)])
def test_an_example_may_have_as_many_tokens_as_a_row(
    tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch, over: int, truncated: int, lost: int,
) -> None:
    monkeypatch.setattr(f"{__name__}.ROWS", ROWS[:1] * 40)
    (tmp_path / "longest").mkdir()
    longest = run(tmp_path / "longest", stories)[1]["train"]["longest"]
    counts = run(tmp_path, stories, chunk_tokens=longest - over, pack=False)[1]["train"]
    assert (counts["examples"], counts["truncated"], counts["lost"]) == (40, truncated, lost)


def test_the_truncation_is_counted(tmp_path: Path, stories: Path) -> None:
    _, counts = run(tmp_path, stories, chunk_tokens=16)
    assert counts["train"]["truncated"] > 0 and counts["train"]["lost"] > 0 and counts["train"]["split"] == 0


def test_wrapping_counts_what_it_leaves_out(tmp_path: Path, stories: Path) -> None:
    _, counts = run(tmp_path, stories, chunk_tokens=16, wrap=True)
    train, longer = counts["train"], ROWS[3::4]
    left = [finding for finding in counts["findings"] if finding["what"] == LEFT_OUT]
    assert train["split"] > 0 and (train["lost"] > 0) == bool(left) and train["truncated"] == 0
    (tmp_path / "whole").mkdir()
    _, whole = run(tmp_path / "whole", stories)
    assert train["labelled"] == whole["train"]["labelled"] and len(longer) == 10


def test_cuts_that_do_harm_are_told_apart(tmp_path: Path, stories: Path) -> None:
    _, counts = run(tmp_path, stories, chunk_tokens=16)
    found = {finding["what"]: finding for finding in counts["findings"][:2]}
    assert set(found) == {NO_PROMPT, NO_END}
    assert 0 < found[NO_END]["count"] < counts["train"]["truncated"]
    assert found[NO_END]["first"][0].startswith("train row ")


def test_rows_in_which_a_template_stands_already_are_told(
    tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{__name__}.ROWS", [*ROWS[:2], {"prompt": "<s>[INST] q [/INST]", "completion": " a </s>"}])
    _, counts = run(tmp_path, stories)
    assert [(one["what"], one["count"]) for one in counts["findings"]] == [(TEMPLATED, 1), (TEMPLATED, 1)]
    assert counts["findings"][0]["first"] == ["train row 3"]
