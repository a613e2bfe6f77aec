"""prompt_format=templated: rows that a chat template wrote already.

tasks/distributed/codec.py, tasks/pack.py, infra/models/base_tokens.py
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from deployments.predictor.loading import load_codecs
from infra.errors import DataError, UserError
from infra.models.base_tokens import special_tokens_of
from infra.records import Split
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.distributed.codec import Codec
from tasks.distributed.contract import EncodeJob, rows_name
from tasks.distributed.encode import encode
from tasks.distributed.examples import UNTEMPLATED, flatten
from tasks.distributed.model import load_tokenizer
from tasks.distributed.packs import PackedRows
from tasks.distributed.special_tokens import pattern_of
from tasks.evaluate import prompt_and_reference, refuse_unscorable
from tasks.pack import as_formatted
from tasks.scoring.rouge import lead, longest_turn
from tests.support.past import Past

LLAMA_2 = {"prompt": "<s>[INST] How many plates? [/INST]", "completion": " Four plates. </s>"}


@pytest.fixture(scope="module")
def llama_2(stories: Path) -> Codec:
    """A tokenizer of Llama 2's kind: SentencePiece, with a begin token of its own."""
    return Codec(load_tokenizer(stories), templated=True)


@pytest.fixture(scope="module")
def case(shared: Path) -> Path:
    folder = shared / "cases" / "pretemplated"
    if not folder.is_dir():
        pytest.skip("needs ../shared/cases/pretemplated")
    return folder


def ids_of(codec: Codec, kind: Any, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """All token ids, and those that are learned."""
    ids, labels = flatten(codec.row(kind, row, "", train_on_prompt=False))
    return ids.tolist(), ids[labels].tolist()


def test_a_rendered_row_has_the_ids_of_the_tokenizers_own_call_and_no_token_twice(llama_2: Codec) -> None:
    ids, learned = ids_of(llama_2, "prompt", LLAMA_2)
    whole = llama_2.tokenizer(LLAMA_2["prompt"] + LLAMA_2["completion"], add_special_tokens=False)["input_ids"]
    assert ids == whole and ids.count(llama_2.bos[0]) == ids.count(llama_2.eos) == 1
    assert learned[-1] == llama_2.eos and llama_2.decode(learned).strip() == "Four plates."


def test_a_row_without_begin_and_end_gets_both(llama_2: Codec) -> None:
    ids, learned = ids_of(llama_2, "prompt", {"prompt": "[INST] How many? [/INST]", "completion": " Four."})
    assert ids[0] == llama_2.bos[0] and ids[-1] == learned[-1] == llama_2.eos


def test_an_end_token_in_the_middle_is_not_the_end(llama_2: Codec) -> None:
    ids, _ = ids_of(llama_2, "text", {"text": "<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d"})
    assert ids.count(llama_2.eos) == 2 and ids[-1] == llama_2.eos and ids.count(llama_2.bos[0]) == 2


def test_training_before_an_answer_is_what_the_predictor_sends(llama_2: Codec) -> None:
    ids, learned = ids_of(llama_2, "prompt", LLAMA_2)
    assert llama_2.prompt(LLAMA_2["prompt"]) == ids[: len(ids) - len(learned)]


@pytest.mark.slow
def test_the_case_is_read_as_its_template_writes_it(case: Path, tmp_path: Path) -> None:
    rows = (case / "pretemplated_chatml.jsonl").read_text().splitlines()
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out"
    job = EncodeJob(out=str(out), rows=str(tmp_path), tokenizer=str(case / "base"), kind="text", separator="",
                    chunk_tokens=128, pack=False, wrap=False, train_on_prompt=False, templated=True)
    assert encode(job) == 0
    packs, tokenizer = PackedRows(out / "train"), load_tokenizer(case / "base")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for number, row in enumerate(rows):
        ids, labels = packs.segment(number)
        assert ids.tolist() == tokenizer(json.loads(row)["text"].rstrip(), add_special_tokens=False)["input_ids"]
        assert ids[-1] == end and labels[-1] and ids.tolist().count(end) == 2
    assert json.loads((out / "result.json").read_text())["findings"] == []


def test_rows_of_another_familys_template_are_told(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "<|im_start|>user\\na<|im_end|>"}) + "\n")
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "validation.jsonl")
    job = EncodeJob(out=str(tmp_path / "out"), rows=str(tmp_path), tokenizer=str(stories), kind="text", separator="",
                    chunk_tokens=128, pack=False, wrap=False, train_on_prompt=False, templated=True)
    assert encode(job) == 0
    findings = json.loads((tmp_path / "out" / "result.json").read_text())["findings"]
    assert [one["what"] for one in findings] == [UNTEMPLATED, UNTEMPLATED]


def test_the_predictor_reads_prompts_of_such_a_version_as_training_did(llama_2: Codec, stories: Path) -> None:
    encoder, _ = load_codecs(stories, templated=True)
    assert encoder.submit(1, lambda codec: codec.prompt(LLAMA_2["prompt"])).result() == llama_2.prompt(
        LLAMA_2["prompt"])


def test_mlflow_reads_them_alike(llama_2: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.models.set_model", lambda _: None)
    from infra.models.pyfunc_model import PyfuncVersion

    version = PyfuncVersion()
    version.tokenizer, version.template, version.templated = llama_2.tokenizer, "{prompt}", True
    for text in (LLAMA_2["prompt"], "[INST] without a begin token [/INST]"):
        assert version.prompt(text) == llama_2.prompt(text)


@pytest.mark.parametrize(("answer", "wanted"), [
    (" Four. </s>", " Four. "), ("<b>Four</b></s>\n", "<b>Four</b>\n"), ("1 < 2 > 0", "1 < 2 > 0"),
    ("<b>Four</b>", "<b>Four</b>"), ("<answer>4</answer>", "<answer>4</answer>"), ("4<|im_end|>", "4<|im_end|>")])
def test_an_answer_is_scored_without_the_bases_own_special_tokens(
    llama_2: Codec, stories: Path, answer: str, wanted: str,
) -> None:
    row = {"prompt": "<s>[INST] How many? [/INST]", "completion": answer}
    marks = special_tokens_of(stories)
    assert prompt_and_reference("prompt", row, marks) == ("[INST] How many? [/INST]", wanted)
    assert prompt_and_reference("prompt", row)[1] == answer
    assert llama_2.decode(ids_of(llama_2, "prompt", row)[1]).strip() == wanted.strip(), "as a model's answer is decoded"


DOCUMENT = "One came. Two saw it! Three left? Four stayed. Five slept."
MARKS = re.compile(r"<s>|</s>|<\|im_start\|>|<\|im_end\|>|<\|start_header_id\|>|<\|end_header_id\|>|<start_of_turn>")


@pytest.mark.parametrize("prompt", [
    f"<s>[INST] {DOCUMENT} [/INST]", f"<|im_start|>user\n{DOCUMENT}<|im_end|>\n<|im_start|>assistant\n",
    f"<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\n{DOCUMENT} [/INST]", f"<start_of_turn>user\n{DOCUMENT}",
    f"<|start_header_id|>user<|end_header_id|>\n\n{DOCUMENT}<|start_header_id|>assistant<|end_header_id|>\n\n"])
def test_lead_3_reads_the_document_and_not_the_template(prompt: str) -> None:
    assert lead(longest_turn(prompt, MARKS)) == lead(DOCUMENT) == "One came. Two saw it! Three left?"


@pytest.mark.parametrize(("answer", "is_scored"), [
    ('{"a": "1"}</s>', True), (' {"a": "1"} </s>\n', True), ('The answer: {"a": "1"} I hope.</s>', False),
    ('{"a": "1"}</b>', False)])
def test_answers_that_are_no_json_are_refused_before_training(
    store: Store, past: Past, stories: Path, answer: str, is_scored: bool,
) -> None:
    with store.draft() as draft:
        row = {"prompt": "<s>[INST] q [/INST]", "completion": answer}
        (draft.path / rows_name("validation")).write_text(json.dumps(row) + "\n")
        draft.commit("splits/x", {})
    split = dataclasses.replace(past.split, folder="splits/x")
    spec = dataclasses.replace(past.spec, task_type="extraction", prompt_format="templated")
    base = dataclasses.replace(past.base, path=str(stories))
    if is_scored:
        refuse_unscorable(store, spec, split, base)
        refuse_unscorable(store, spec, split)  # while the base is not known
    else:
        with pytest.raises(DataError, match="task_type is extraction and a held-out answer is"):
            refuse_unscorable(store, spec, split, base)


def test_the_special_tokens_are_those_of_the_loaded_tokenizers(shared: Path, stories: Path) -> None:
    folders = {stories, *(path.parent for path in shared.glob("cases/**/tokenizer_config.json"))}
    for folder in sorted(folders):
        marks, wanted = special_tokens_of(folder), pattern_of(load_tokenizer(folder))
        assert marks is not None and wanted is not None, folder
        assert set(marks.pattern.split("|")) == set(wanted.pattern.split("|")), folder


def a_split(kind: Any) -> Split:
    return Split(folder="f", digest="d", kind=kind, separator="\n", train_rows=1, validation_rows=1)


def test_nothing_is_put_between_a_rendered_prompt_and_its_completion() -> None:
    spec = TrainingSpec(train_data="d.jsonl", base_model="b", destination="a/b", prompt_format="templated")
    assert as_formatted(a_split("prompt"), spec).separator == ""
    assert as_formatted(a_split("prompt"), dataclasses.replace(spec, prompt_format="plain")).separator == "\n"


def test_conversations_that_are_said_to_be_rendered_are_refused() -> None:
    spec = TrainingSpec(train_data="d.jsonl", base_model="b", destination="a/b", prompt_format="templated")
    with pytest.raises(UserError, match=r"prompt_format is templated and the rows are conversations.*Leave prompt_fo"):
        as_formatted(a_split("messages"), spec)
