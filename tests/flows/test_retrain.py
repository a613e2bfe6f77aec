"""flows/retrain.py: whether the data changed, and what is new in it; with Prefect: tests/e2e/test_watch.py."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from flows import retrain as module
from flows.parameters import Parameters
from flows.retrain import from_champion, is_same_data, look_first, shard_news
from infra.errors import AnnealError, DataError, Transient
from infra.models.registry import Origin, Registry
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.data.datasets import address_of
from tasks.data.source_cache import Look, last_look, look_name, note_look
from tasks.ingest import ingest
from tasks.register import register
from tasks.validate import validate
from tests.support.past import Past


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is watched, without Prefect: no other retraining is under way."""
    monkeypatch.setattr(module, "get_client", lambda sync_client: nullcontext())
    monkeypatch.setattr(module, "other_retraining", lambda client, destination, own: "")
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    return tmp_path / "d.jsonl"


def spec_of(data: Path) -> TrainingSpec:
    return TrainingSpec(train_data=str(data), base_model="m", destination="acme/notes")


def looked(settings: Settings, data: Path, run: str) -> Any:
    """What a run of that id is to do."""
    return look_first(settings, Store(settings), spec_of(data), run, sleep=lambda _: None)


def test_what_a_version_learned_from_is_not_trained_on_again(settings: Settings, data: Path) -> None:
    seen, store = looked(settings, data, "1"), Store(settings)
    assert isinstance(seen, Look) and (seen.files, seen.run) == (1, "1")
    note_look(store, spec_of(data), Look.of({**seen.to_json(), "version": 3}))
    for run in ("1", "2"):  # also when somebody presses Retry
        state = looked(settings, data, run)
        assert (state.type, state.name) == ("COMPLETED", "Unchanged")
        assert state.message == "The data has not changed since version 3 (1 file, 14 bytes)."
    data.write_text('{"text": "ab"}\n')
    assert isinstance(looked(settings, data, "2"), Look)


def test_a_run_that_was_started_again_goes_on_and_others_leave_its_data_alone(settings: Settings, data: Path) -> None:
    seen = looked(settings, data, "1")
    assert looked(settings, data, "1") == seen
    state = looked(settings, data, "2")
    assert state.name == "Unchanged" and "since the last retraining began (1 file, 14 bytes)" in state.message


def test_what_an_earlier_release_noted_is_known(settings: Settings, data: Path) -> None:
    seen, store = looked(settings, data, "1"), Store(settings)
    noted = {"fingerprint": seen.fingerprint, "files": 1, "bytes": 14, "told": "2026-11-23T00:00:00+00:00"}
    store.write(look_name(spec_of(data)), json.dumps(noted))
    assert looked(settings, data, "1").name == "Unchanged"


def test_while_another_retraining_of_it_is_under_way_nothing_is_trained(
    settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "other_retraining", lambda client, destination, own: f"{destination} beside {own}")
    state = looked(settings, data, "1")
    assert (state.type, state.name) == ("COMPLETED", "Postponed")
    assert "'acme/notes beside 1' is under way" in state.message
    assert last_look(Store(settings), spec_of(data)) is None


def test_files_that_go_on_changing_are_left_to_the_next_look(settings: Settings, data: Path) -> None:
    def sleep(_: float) -> None:
        data.write_text(data.read_text() + "\n")

    state: Any = look_first(settings, Store(settings), spec_of(data), "1", sleep)
    assert state.name == "Postponed" and "still being written (1 file, 14 bytes at first)" in state.message
    assert last_look(Store(settings), spec_of(data)) is None


def test_data_that_is_back_is_not_trained_on_again(settings: Settings, data: Path) -> None:
    looked(settings, data, "1")
    data.rename(data.with_suffix(".moved"))
    state = looked(settings, data, "2")
    assert (state.type, state.name) == ("FAILED", "Unseen")
    assert "there is no such file" in state.message and "the next look tries again" in state.message
    data.with_suffix(".moved").rename(data)
    assert looked(settings, data, "3").name == "Unchanged"


@pytest.mark.parametrize(("error", "is_tried_again"), [
    (Transient("no answer"), True), (DataError("a bad line"), False)])
def test_data_that_cannot_be_trained_on_is_not_tried_again_unless_its_source_was_away(
    settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch, error: AnnealError, is_tried_again: bool,
) -> None:
    def fails(spec: TrainingSpec) -> None:
        raise error

    monkeypatch.setenv("ANNEAL_HOME", str(settings.home_path))
    monkeypatch.setattr(module, "data_of", fails)
    monkeypatch.setattr("tasks.data.source_cache.SETTLE_S", 0.0)
    training = Parameters(**asdict(spec_of(data)))
    with pytest.raises(type(error)):
        module.retrain.fn(training, watch=True)
    assert isinstance(looked(settings, data, "another"), Look) is is_tried_again


@pytest.mark.parametrize("number", [0, 7])
def test_what_came_of_the_data_is_noted(
    settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch, number: int,
) -> None:
    monkeypatch.setenv("ANNEAL_HOME", str(settings.home_path))
    monkeypatch.setattr(module, "data_of", lambda spec: ())
    monkeypatch.setattr(module, "trained", lambda *_: ("what came of it", number))
    monkeypatch.setattr("tasks.data.source_cache.SETTLE_S", 0.0)
    training = Parameters(**asdict(spec_of(data)))
    for watch in (False, True):
        assert module.retrain.fn(training, watch=watch) == "what came of it"
        noted = last_look(Store(settings), spec_of(data))
        assert (noted is not None) == watch
    assert noted is not None and noted.version == number


def test_new_files_and_those_that_are_gone_are_counted(settings: Settings, store: Store, tmp_path: Path) -> None:
    def write(name: str) -> None:
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_text("".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(3)))

    def learned() -> Origin:
        return Origin(3, validate(store, ingest(settings, store, str(tmp_path / "d")), None, 1).digest, True)

    def news(newest: Origin | None) -> str:
        return shard_news(store, validate(store, ingest(settings, store, str(tmp_path / "d")), None, 1), newest)

    write("a.jsonl")
    alone = learned()
    assert news(alone) == ""
    write("b.jsonl")
    assert news(None) == "2 shards"
    assert news(alone) == "2 shards, 1 new and 0 gone since version 3"
    two = learned()
    assert news(two) == "2 shards, 0 new and 0 gone since version 3"
    for name in ("c.jsonl", "d.jsonl"):
        write(name)
    (tmp_path / "d" / "a.jsonl").unlink()
    assert news(two) == "3 shards, 2 new and 1 gone since version 3"
    assert news(Origin(3, "0" * 64, True)) == "3 shards"


@pytest.mark.parametrize(("option", "text", "same"), [(50, "a", True), (3, "a", True), (3, "b", False)])
def test_an_option_that_changes_the_split_trains_nothing_again(
    settings: Settings, data: Path, option: int, text: str, same: bool,
) -> None:
    store, rows = Store(settings), '{"text": "%s"}\n{"text": "2"}\n{"text": "3"}\n'
    data.write_text(rows % "a")
    first = ingest(settings, store, str(data))
    split = validate(store, first, None, 50)
    with store.draft() as draft:
        draft.commit("versions/v", {"made_from": [first.folder, split.folder, "packs/p"]})
    newest = Origin(number=1, data_digest=split.digest, is_settled=True, id="v")
    data.write_text(rows % text)
    now = ingest(settings, store, str(data))
    spec = replace(spec_of(data), train_data=address_of(now), num_validation_samples=option)
    assert is_same_data(store, newest, spec, validate(store, now, None, option)) is same
@pytest.mark.usefixtures("database")
def test_a_retraining_goes_on_from_the_champion_where_there_is_one(
    settings: Settings, store: Store, past: Past,
) -> None:
    assert from_champion(settings, past.spec) == past.spec
    register(settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)
    assert from_champion(settings, past.spec) == past.spec, "registered, and not served"
    Registry(settings).point("champion", "acme/summarizer", 1)
    assert from_champion(settings, past.spec).base_version == "acme/summarizer:champion"
    asked = replace(past.spec, base_version="acme/other:3")
    assert from_champion(settings, asked) == asked, "what was asked for counts"
