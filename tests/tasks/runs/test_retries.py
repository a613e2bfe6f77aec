"""Small pure parts: the gate, the forecast, the reports, the base model, the retry rule.

Tests infra/records.py, tasks/evaluate.py, tasks/ui/reports.py too.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

from flows.parameters import Parameters
from infra.errors import BaseModelError, DataError, GateError, OutOfMemory, Preempted, RanksLost, Transient
from infra.files import digest_of
from infra.models.base_models import find_base, look_for_base
from infra.records import Finding, Pack, Split
from infra.settings import Settings
from infra.spec import Group, TrainingSpec
from infra.storage.store import Store
from tasks.evaluate import find_evaluation, refuse_unscorable
from tasks.launcher.forecast import forecast
from tasks.runs.retries import DELAYS_S, may_pass, step
from tasks.train import training_id
from tasks.ui import reports
from tasks.ui.progress import if_it_can, standing
from tests.support.past import Past

NEEDED: dict[str, Any] = {"train_data": "d", "base_model": "m", "destination": "a/b"}
SPEC = TrainingSpec(**NEEDED)


def test_rows_without_answers_have_no_task_type_but_style(store: Store, past: Past) -> None:
    rows = dataclasses.replace(past.split, kind="text")
    refuse_unscorable(store, dataclasses.replace(SPEC, task_type="style"), rows)
    with pytest.raises(DataError, match="task_type is question and the rows are of the kind text"):
        refuse_unscorable(store, dataclasses.replace(SPEC, task_type="question"), rows)


def test_an_extraction_needs_json_to_compare_with(store: Store, past: Past) -> None:
    with store.draft() as draft:
        lines = [{"prompt": "Who?", "completion": answer} for answer in (' {"who": "Ann"}', " Ann")]
        (draft.path / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        draft.commit(past.split.folder, past.split.to_json())
    spec = dataclasses.replace(SPEC, task_type="extraction")
    with pytest.raises(DataError, match='a held-out answer is " Ann"; expected JSON'):
        refuse_unscorable(store, spec, past.split)
    refuse_unscorable(store, dataclasses.replace(spec, num_evaluation_samples=1), past.split)  # the rest is not scored


def test_an_evaluation_made_before_there_were_task_types_is_found(store: Store, past: Past) -> None:
    knobs = {"max_new_tokens": 128, "num_evaluation_samples": 50, "validation_prompt": ""}
    folder = f"evaluations/{digest_of([1, knobs, past.trained.digest, past.split.digest])[:32]}"
    record = dataclasses.replace(past.evaluation, folder=folder).to_json()
    with store.draft() as draft:
        (draft.path / "answers.jsonl").write_text("")
        draft.commit(folder, {name: value for name, value in record.items() if name not in ("scores", "confusions")})
    found = find_evaluation(store, past.spec, past.trained, past.split)
    assert found and found.rouge == past.evaluation.rouge and not found.scores
    assert not find_evaluation(store, dataclasses.replace(past.spec, task_type="question"), past.trained, past.split)


def test_a_report_of_a_classification_shows_scores_and_mistakes(past: Past) -> None:
    accuracy = {"accuracy": [0.4, 0.5, 0.6], "macro_f1": [0.1, 0.2, 0.3]}
    text = reports.rouge_report(dataclasses.replace(
        past.evaluation, rouge={}, scores={"tuned": accuracy, "most_frequent": accuracy},
        confusions=[["a|b", "", 3]]))
    assert "| | accuracy | macro_f1 |" in text and "| most_frequent | **0.500** (0.400 to 0.600) |" in text
    assert "| a&#124;b | no label | 3 |" in text and "ROUGE" not in text


def test_the_log_tells_scores_losses_and_the_verdict(past: Past) -> None:
    accuracy = {"accuracy": [0.4, 0.5, 0.6], "macro_f1": [0.1, 0.2, 0.3]}
    found = dataclasses.replace(past.evaluation, loss={"tuned": 1.25, "base": 2.0}, verdict="Better: so it is.")
    by_task = dataclasses.replace(found, rouge={}, scores={"tuned": accuracy, "most_frequent": accuracy})
    assert reports.scores(by_task) == [
        "tuned: accuracy 0.500 (0.400 to 0.600), macro_f1 0.200 (0.100 to 0.300), held-out loss 1.2500",
        "most_frequent: accuracy 0.500 (0.400 to 0.600), macro_f1 0.200 (0.100 to 0.300)", "Better: so it is."]
    of_text = dataclasses.replace(found, rouge={}, scores={})
    assert reports.scores(of_text)[:2] == ["tuned: held-out loss 1.2500", "base: held-out loss 2.0000"]
    of_nothing = dataclasses.replace(of_text, loss={"tuned": float("nan")})
    assert reports.scores(of_nothing)[0] == "tuned: held-out loss not computed"
    assert "(nats per token): tuned not computed" in reports.rouge_report(of_nothing)
    of_style = dataclasses.replace(of_text, scores={"tuned": {"loss": [1.0, 1.25, 1.5]}})
    assert reports.scores(of_style)[0] == "tuned: loss 1.250 (1.000 to 1.500)"


@pytest.mark.parametrize("verdict", ["Better than the base: ROUGE-L 0.5.", "Worse than the base: ROUGE-L 0.1."])
def test_the_gates_verdict_opens_the_report(past: Past, verdict: str) -> None:
    text = reports.rouge_report(dataclasses.replace(past.evaluation, verdict=verdict))
    assert text.splitlines()[:3] == ["## Evaluation", "", verdict]


def test_reports_are_tables_that_content_cannot_break(settings: Settings, past: Past) -> None:
    text = reports.rouge_report(past.evaluation) + reports.samples_report(past.evaluation)
    assert "**0.500** (0.400 to 0.600)" in text and "&lt;b>&#124;x" in text
    assert reports.evaluation_table(past.evaluation)[0]["model"] == "tuned"
    report = reports.forecast_report(forecast(settings, past.spec, past.pack, past.base), past.trained)
    assert "5 |" in report and "| train loss last | | 3 |" in report


def test_the_data_report_names_what_was_found_dropped_and_learned(past: Past) -> None:
    findings = [Finding(what="a | b", count=9, first=["d line 2", "d line 3"]), Finding(what="c", count=1, first=["e"])]
    runs = [{"learned": False, "text": "<s>Hi"}, {"learned": True, "text": "|you|"}]
    samples = [{"tokens": 7, "learned": 3, "runs": runs, "more": n} for n in (0, 4)]
    text = reports.data_report(dataclasses.replace(past.split, findings=findings, dropped=5, compared=22),
                              dataclasses.replace(past.pack, samples=samples))
    assert "## Data: 20 training and 2 held-out rows (prompt)" in text
    assert "Repeated prompts: 6. Held-out prompts that also stand in the training rows: 7. " in text
    assert "Between prompt and completion: a line break." in text
    assert "| | examples | rows of 64 | tokens | learned | longest | cut | split | fill |" in text
    for name in ("train", "held out"):
        assert f"| {name} | 20 | 10 | 600 | 200 | 60 | 3 (17 tokens) | 4 | 90.00% |" in text
    assert "| a &#124; b | 9 | d line 2, d line 3, ... |" in text and "| c | 1 | e |" in text
    assert "5, in splits/s/dropped.jsonl" in text and "22 rows looked at for near duplicates" in text
    assert "| 2: 3 of 7 tokens learned | read | &lt;s>Hi |" in text and "| learned | &#124;you&#124; |" in text
    assert "| and 4 more pieces |" in text


@pytest.mark.parametrize(("text", "shown"), [
    ("a\r\nb\rc\nd", "a<br>b<br>c<br>d"), ("![](http://evil/x)", "!&#91;&#93;(http://evil/x)"),
    ("*a* _b_ ~~c~~ `d` \\|", "&#42;a&#42; &#95;b&#95; &#126;&#126;c&#126;&#126; &#96;d&#96; &#92;&#124;"),
    ("<img src=x> &lt;", "&lt;img src=x> &amp;lt;")])
def test_text_of_rows_is_shown_as_it_is_and_loads_nothing(past: Past, text: str, shown: str) -> None:
    samples = [{"tokens": 7, "learned": 3, "runs": [{"learned": True, "text": text}], "more": 0}]
    found = reports.data_report(past.split, dataclasses.replace(past.pack, samples=samples))
    assert f"| learned | {shown} |" in found


def test_a_split_and_a_pack_of_an_earlier_release_can_be_reported(past: Past) -> None:
    new = {"findings", "compared", "dropped", "samples", "lengths", "bin_tokens"}
    split = Split.of({name: value for name, value in past.split.to_json().items() if name not in new})
    pack = Pack.of({name: value for name, value in past.pack.to_json().items() if name not in new})
    assert "Nothing else was found" not in reports.data_report(split, pack)  # nothing else was looked for
    looked = dataclasses.replace(split, compared=20)
    assert "Nothing else was found (20 rows" in reports.data_report(looked, pack)


@pytest.mark.parametrize(("eta_s", "usd", "end"), [
    (9.4, 0.0, "9 s left"), (61.0, 0.126, "1 min 1 s left, 0.13 USD so far"),
    (7190.0, 3.0, "119 min left, 3.00 USD so far")])
def test_progress_says_where_the_training_is(eta_s: float, usd: float, end: str) -> None:
    event: Any = {
        "step": 7, "total": 90, "loss": 1.23456, "lr": 1e-4, "tokens_per_s": 812.6, "eta_s": eta_s, "usd": usd}
    assert standing(event) == f"step 7 of 90, loss 1.2346, learning rate 0.0001, 813 tokens/s, {end}"


@pytest.mark.parametrize(("lacking", "words"), [
    ("config.json", "config.json is missing"), ("model.safetensors", "no safetensors"),
    ("tokenizer.json", "there is no tokenizer")])
def test_a_folder_that_is_no_model_is_told(
    settings: Settings, past: Past, tmp_path: Path, lacking: str, words: str,
) -> None:
    folder = Path(shutil.copytree(past.base.path, tmp_path / "copy"))
    (folder / lacking).unlink()
    for find in (find_base, look_for_base):
        with pytest.raises(BaseModelError, match=words):
            find(settings, str(folder))


@pytest.mark.parametrize("name", ["/no/such/folder", "no such folder", "../x/y/z"])
def test_a_wrong_base_path_is_told(settings: Settings, name: str) -> None:
    for find in (find_base, look_for_base):
        with pytest.raises(BaseModelError, match="there is no such folder"):
            find(settings, name)


def test_the_base_is_known_by_its_content(settings: Settings, past: Past, tmp_path: Path) -> None:
    one = find_base(settings, past.base.path)
    two = find_base(settings, str(shutil.copytree(past.base.path, tmp_path / "elsewhere")))
    assert one.digest == two.digest and (one.name, two.name) == ("base-model", "elsewhere")
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps({"changed": 1}))
    assert find_base(settings, str(tmp_path / "elsewhere")).digest != one.digest


def test_the_training_id_follows_the_weights_and_nothing_else(past: Past) -> None:
    identity = training_id(past.spec, past.pack, past.base)
    elsewhere = dataclasses.replace(past.spec, num_ranks=8, destination="acme/other", max_new_tokens=5, drop="all")
    assert len(identity) == 26 and identity == identity.lower()
    assert training_id(elsewhere, past.pack, past.base) == identity
    assert training_id(dataclasses.replace(past.spec, lora_rank=9), past.pack, past.base) != identity


class _State:
    def __init__(self, data: BaseException) -> None:
        self.data = data


@pytest.mark.parametrize(("error", "again"), [
    (Transient("x"), True), (RanksLost("x"), True), (DataError("x"), False), (ValueError("x"), False),
    (GateError("x"), False), (OutOfMemory("x"), False), (Preempted("x"), True)])
def test_only_what_may_pass_is_retried(error: Exception, again: bool) -> None:
    assert may_pass(None, SimpleNamespace(id=uuid4()), _State(error)) is again  # type: ignore[arg-type]


def test_steps_wait_longer_from_try_to_try_and_not_all_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def task(**options: Any) -> Callable[[Any], Any]:
        asked.update(options)
        return lambda function: function

    monkeypatch.setattr("tasks.runs.retries.task", task)
    step("any", timeout_s=1.0)(lambda subject: None)
    delays = asked["retry_delay_seconds"]
    assert len(delays) == asked["retries"] and delays == sorted(delays) and delays[0] < 5 < 10 * 60 < sum(delays)
    assert 0 < asked["retry_jitter_factor"] < 1 and asked["retry_condition_fn"] is may_pass


def test_an_outage_is_waited_for_a_quarter_of_an_hour_and_another_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = SimpleNamespace(id=uuid4()), [0.0]
    monkeypatch.setattr("tasks.runs.retries.time.monotonic", lambda: 10_000 + clock[0])

    def tries(error: Exception, count: int) -> list[bool]:
        return [may_pass(None, run, _State(error)) for _ in range(count)]  # type: ignore[arg-type]

    whole = [True] * len(DELAYS_S) + [False]
    assert all(tries(RanksLost("x"), 500)) and tries(Transient("x"), len(whole)) == whole
    assert tries(RanksLost("x"), 1) == [True] and tries(Transient("x"), len(whole)) == whole
    clock[0] += 4000  # of training
    assert tries(Transient("x"), len(whole)) == whole


def test_the_form_has_every_knob_with_range_and_help() -> None:
    schema = Parameters.model_json_schema()
    positions = [field["position"] for field in schema["properties"].values()]
    titles = [field["title"] for field in schema["properties"].values()]
    assert {field.name for field in dataclasses.fields(TrainingSpec)} == set(schema["properties"])
    assert positions == sorted(positions)
    assert [group for group, _ in groupby(title.split(": ")[0] for title in titles)] == list(get_args(Group))
    assert [title.split(": ")[1] for title in titles] == list(schema["properties"])
    assert schema["required"] == ["train_data", "base_model", "destination"]
    assert schema["additionalProperties"] is False
    rank = schema["properties"]["lora_rank"]
    assert (rank["minimum"], rank["maximum"], rank["default"]) == (1, 1024, 8)
    assert rank["description"] == "Rank of the adapters. Range: 1 to 1024."
    assert schema["properties"]["peft_method"]["enum"] == ["lora", "qlora", "full"]
    assert schema["properties"]["task_type"]["enum"][0] == schema["properties"]["task_type"]["default"] == "auto"


def test_whoever_watches_ranks_does_not_wait_for_a_server_that_is_away() -> None:
    tries = PREFECT_CLIENT_MAX_RETRIES.value
    assert if_it_can(tries, at_once=True) == 0 < (if_it_can(tries) or 0) == tries()
