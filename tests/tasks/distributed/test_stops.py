"""tasks/distributed/stops.py: what ends an answer is the same in evaluation, predictor and export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.distributed.codec import Codec
from tasks.distributed.model import load_tokenizer
from tasks.distributed.stops import SAMPLE, stop_ids, write_stops


def test_the_end_that_a_template_writes_is_a_stop(shared: Path) -> None:
    base = shared / "cases" / "stop-gemma4" / "base"
    codec = Codec(load_tokenizer(base))
    assert codec.tokenizer.convert_tokens_to_ids("<turn|>") in stop_ids(codec, base)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["trim-llama3", "think-qwen3", "gemma2-message", "crash-qwen3_5",
                                  "crash-llama4", "merge-gemma3", "moe-experts-frozen"])
def test_the_last_labelled_id_of_a_conversation_is_a_stop(shared: Path, case: str) -> None:
    base = shared / "cases" / case / "base"
    codec = Codec(load_tokenizer(base))
    learned = [s for s in codec.row("messages", {"messages": SAMPLE}, "", train_on_prompt=False) if s.labelled]
    assert {segment.ids[-1] for segment in learned} <= stop_ids(codec, base)


def test_ends_of_the_bases_own_generation_config_are_stops(stories: Path, tmp_path: Path) -> None:
    codec = Codec(load_tokenizer(stories))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert stop_ids(codec, tmp_path) == codec.stop_ids | {7, 9}


def test_an_export_names_all_of_them_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 9, "temperature": 0.6}))
    write_stops(tmp_path, frozenset({2, 9}))
    assert json.loads(path.read_text()) == {"eos_token_id": [9, 2], "temperature": 0.6}
