"""deployments/examples/tools.py: 200 chats with tools, from the generator to the predictor's answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from deployments.examples.tools import ROWS, TEMPLATE, TOOL, write
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.data.chat import said_by
from tasks.distributed.codec import Codec
from tasks.distributed.decode import Sampling, decode_all
from tasks.distributed.model import load_tokenizer, load_tuned
from tasks.ingest import ingest
from tasks.validate import validate
from tests.deployments.predictor.conftest import STORIES, needs_stories, running, versions  # noqa: F401

QUESTION = "When is the table of Blake?"


def test_same_seed_same_rows_and_parameters_that_a_training_takes(tmp_path: Path) -> None:
    values, again = write(tmp_path / "a"), write(tmp_path / "b")
    one, other = (Path(some["train_data"]).read_bytes() for some in (values, again))
    assert one == other and one.count(b"\n") == ROWS and TrainingSpec.of(values).task_type == "chat"


def test_validate_takes_all_rows_with_their_tools(settings: Settings, store: Store, tmp_path: Path) -> None:
    values = write(tmp_path)
    data, held_out = (ingest(settings, store, values[name]) for name in ("train_data", "validation_data"))
    split = validate(store, data, held_out, 20)
    assert (split.kind, split.train_rows, split.validation_rows) == ("messages", ROWS, 20)
    assert not [finding for finding in split.findings if "keys" in finding.what]
    row = json.loads((store.fetch(split.folder) / "train.jsonl").read_text().splitlines()[0])
    assert row["tools"] == [TOOL] and said_by(row["messages"][1]).startswith('{"name": "find_table"')


def test_calls_and_answers_are_learned_as_the_template_shows_them(tmp_path: Path) -> None:
    codec = Codec(load_tokenizer(Path(write(tmp_path)["base_model"])))
    asked = [{"role": "user", "content": QUESTION}]
    call = {"type": "function", "function": {"name": "find_table", "arguments": {"guest": "Blake"}}}
    row = {"messages": [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [TOOL]}
    segments = codec.row("messages", row, "", train_on_prompt=False)
    assert codec.decode(segments[-1].ids).strip() == 'call find_table {"guest": "Blake"}'
    before = [i for segment in segments[:-1] for i in segment.ids]
    assert before == codec.turn(QUESTION, "", [TOOL]) == codec.tokenizer.apply_chat_template(
        asked, tools=[TOOL], add_generation_prompt=True, tokenize=True, return_dict=False)


@needs_stories
@pytest.mark.slow
def test_the_predictor_asks_with_tools_as_training_did(
    tmp_path: Path, versions: Path,  # noqa: F811
) -> None:
    def with_template(folder: Path) -> None:
        card = json.loads((folder / "serve.json").read_text())
        (folder / "serve.json").write_text(json.dumps({**card, "kind": "messages"}))
        (folder / "chat_template.jinja").write_text(TEMPLATE)

    with running(tmp_path, versions) as predictor:
        assert predictor.deploy(predictor.put("a", with_template), "acme/tools").status_code == 200
        asked = {"prompt": QUESTION, "tools": [TOOL], "temperature": 0, "max_new_tokens": 16}
        answered = predictor.answer(asked, model="acme/tools")
        refused = predictor.http.post("/predictions", json={
            "model": "acme/tools", "input": {**asked, "tools": [{"name": "x"}]}})
    shutil.copytree(STORIES, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(TEMPLATE)
    codec = Codec(load_tokenizer(tmp_path / "base"))
    ids, cpu = codec.turn(QUESTION, "", [TOOL]), torch.device("cpu")
    model = load_tuned(STORIES, versions / "a", dtype=torch.float32, device=cpu)
    (wanted,) = decode_all(model, [ids], [Sampling(max_new_tokens=16)], stop_ids=codec.stop_ids)
    assert "".join(answered["output"]) == codec.decode(wanted)
    assert refused.status_code == 422 and "input.tools" in refused.text
