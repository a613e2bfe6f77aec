"""tasks/distributed/{text,encode}.py: what is read, what is learned, what is cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from infra.errors import DataError
from tasks.distributed.data import PackedRows
from tasks.distributed.encode import cut, encode, flatten, wrap
from tasks.distributed.job import EncodeJob
from tasks.distributed.model import load_tokenizer
from tasks.distributed.text import Codec

ROWS = [{"prompt": f"Question {i}:", "completion": f" answer {i}" * (i % 4 + 1)} for i in range(40)]


@pytest.fixture(scope="module")
def codec(stories: Path) -> Codec:
    return Codec(load_tokenizer(stories))


def run(tmp_path: Path, tokenizer: Path, **knobs: object) -> tuple[Path, dict[str, dict[str, int]]]:
    source, out = tmp_path / "rows", tmp_path / "out"
    source.mkdir(), out.mkdir()
    for split in ("train", "validation"):
        (source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values = {"chunk_tokens": 64, "pack": True, "wrap": False, "train_on_prompt": False, **knobs}
    job = EncodeJob(out=str(out), rows=str(source), tokenizer=str(tokenizer), kind="prompt", separator="", **values)
    assert encode(job) == 0
    return out, json.loads((out / "result.json").read_text())


def test_the_loss_is_on_completions_and_the_end_token(codec: Codec) -> None:
    ids, labels = flatten(codec.row("prompt", {"prompt": "Hi:", "completion": " you"}, "", train_on_prompt=False))
    assert ids[0] == codec.bos[0] and ids[-1] == codec.eos and labels[-1]
    assert codec.decode(ids[labels][:-1]).strip() == "you"


def test_the_loss_can_be_put_on_prompts_too(codec: Codec) -> None:
    _, labels = flatten(codec.row("prompt", {"prompt": "Hi:", "completion": " you"}, "", train_on_prompt=True))
    assert not labels[0] and labels[1:].all()


def test_a_prompt_has_the_ids_that_the_predictor_will_send(codec: Codec) -> None:
    segments = codec.row("prompt", {"prompt": "Tell me:", "completion": "now"}, "\n", train_on_prompt=False)
    assert segments[0].ids == codec.prompt("Tell me:\n")


@pytest.mark.parametrize("text", ["</s>", "a</s>b<s>", "<unk> <s>", "[INST] </s> [/INST]"])
def test_text_never_becomes_a_special_token(codec: Codec, text: str) -> None:
    assert not {codec.eos, codec.bos[0]} & set(codec.continuation(text))
    assert codec.decode(codec.continuation(text)) == text


def test_naughty_strings_come_back_unchanged(codec: Codec, shared: Path) -> None:
    strings = json.loads((shared / "data" / "naughty_strings" / "blns.json").read_text())
    for text in (s for s in strings if s and not s.startswith("  ")):
        assert not {codec.eos, codec.bos[0]} & set(codec.continuation(text))


def test_only_what_the_assistant_says_is_learned(codec: Codec) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
                {"role": "user", "content": "bye"}, {"role": "assistant", "content": "ciao"}]
    ids, labels = flatten(codec.row("messages", {"messages": messages}, "", train_on_prompt=False))
    assert codec.decode(ids[labels]) == "yociao" and list(ids[labels]).count(codec.eos) == 2
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
    found = sorted(rows.tokens[a:b].tolist() for a, b in zip(rows.segments[:-1], rows.segments[1:], strict=True))
    wanted = sorted(flatten(codec.row("prompt", row, "", train_on_prompt=False))[0].tolist() for row in ROWS)
    assert found == wanted
    assert counts["train"]["examples"] == 40 and counts["train"]["truncated"] == 0
    assert (len(rows) == 40) is not pack
    assert rows.tokens_in.max() <= 64


def test_the_preview_shows_what_is_learned(tmp_path: Path, stories: Path) -> None:
    out, _ = run(tmp_path, stories)
    runs = json.loads((out / "result.json").read_text())["preview"]
    assert [piece["learned"] for piece in runs] == [False, True]
    assert runs[1]["text"].endswith("</s>")


def test_cutting_takes_the_prompt_from_its_left_first() -> None:
    ids, labels = np.arange(10, dtype=np.int32), np.arange(10) >= 7
    kept, marks = cut(ids, labels, 6, begin=1, prompt=7)
    assert kept.tolist() == [0, 5, 6, 7, 8, 9] and marks.sum() == 3


def test_cutting_spares_the_completion_when_prompts_are_learned_too() -> None:
    ids = np.arange(10, dtype=np.int32)
    kept, marks = cut(ids, ids >= 1, 6, begin=1, prompt=7)
    assert kept.tolist() == [0, 5, 6, 7, 8, 9] and marks.sum() == 5


def test_cutting_takes_the_end_when_the_prompt_is_used_up() -> None:
    ids, labels = np.arange(10, dtype=np.int32), np.arange(10) >= 3
    kept, marks = cut(ids, labels, 4, begin=1, prompt=3)
    assert kept.tolist() == [0, 3, 4, 5] and marks.sum() == 3


@pytest.mark.parametrize("size", [2, 3, 5, 9, 10, 30])
def test_wrapping_learns_every_label_exactly_once(size: int) -> None:
    ids, labels = np.arange(23, dtype=np.int32), np.arange(23) >= 4
    pieces = list(wrap(ids, labels, size))
    learned = [token for piece, marks in pieces for token in piece[marks].tolist()]
    assert learned == list(range(4, 23))
    assert max(len(piece) for piece, _ in pieces) <= size


def test_a_row_that_would_teach_nothing_is_refused(tmp_path: Path, stories: Path) -> None:
    late = {"messages": [
        {"role": "system", "content": "be kind"}, {"role": "user", "content": "a long story " * 20},
        {"role": "assistant", "content": "yo"}]}
    source = tmp_path / "late"
    source.mkdir()
    for split in ("train", "validation"):
        (source / f"{split}.jsonl").write_text(json.dumps(late) + "\n")
    job = EncodeJob(
        out=str(tmp_path / "out"), rows=str(source), tokenizer=str(stories), kind="messages", separator="",
        chunk_tokens=32, pack=True, wrap=False, train_on_prompt=False)
    with pytest.raises(DataError, match="nothing of it is left to learn in 32 tokens"):
        encode(job)


def test_the_truncation_is_counted(tmp_path: Path, stories: Path) -> None:
    _, counts = run(tmp_path, stories, chunk_tokens=16)
    assert counts["train"]["truncated"] > 0 and counts["train"]["lost"] > 0 and counts["train"]["split"] == 0


def test_wrapping_instead_of_truncation_loses_nothing(tmp_path: Path, stories: Path) -> None:
    _, counts = run(tmp_path, stories, chunk_tokens=16, wrap=True)
    assert counts["train"]["split"] > 0 and counts["train"]["lost"] == 0
