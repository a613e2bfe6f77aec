"""What `anneal gc` removes and what it leaves: pytest tests/deployments/cli/test_gc.py"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from deployments.cli import main as cli
from deployments.cli.gc import collect
from infra.settings import Settings
from infra.storage.store import Store
from tasks.ingest import upload
from tasks.register import register
from tests.conftest import BUCKET
from tests.support.past import Past

pytestmark = pytest.mark.usefixtures("database")
NOW, DAYS = timedelta(0), timedelta(days=30)
KINDS = ("datasets", "splits", "packs", "trainings", "evaluations")


def put(store: Store, name: str) -> str:
    with store.draft() as draft:
        (draft.path / "file").write_bytes(b"x" * 1000)
        draft.commit(name, {})
    return name


def aged(folder: Path, days: float) -> None:
    """Set the clock of every file back."""
    then = time.time() - days * 86_400
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))


@pytest.fixture
def old_pack(settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """packs/old, of 40 days, in the home that commands take."""
    monkeypatch.setenv("ANNEAL_HOME", str(settings.home_path))
    monkeypatch.setattr("infra.stack.services.for_runs", lambda _: {})
    aged(Path(store.root) / put(store, "packs/old"), 40)


def test_what_is_old_and_nobodys_goes(settings: Settings, store: Store) -> None:
    old, young = [put(store, f"{kind}/old") for kind in KINDS], [put(store, f"{kind}/young") for kind in KINDS]
    for name in old:
        aged(Path(store.root) / name, 31)
    gone = collect(settings, store, DAYS, dry_run=False)
    assert {one.name for one in gone} == set(old) and all(one.bytes > 1000 for one in gone)
    assert [store.find(name) for name in old] == [None] * len(old)
    assert all(store.find(name) for name in young)
    assert collect(settings, store, DAYS, dry_run=False) == []


def test_a_dry_run_removes_nothing_and_names_the_same(settings: Settings, store: Store) -> None:
    put(store, "packs/old")
    seen = collect(settings, store, NOW, dry_run=True)
    assert [one.name for one in seen] == ["packs/old"] and store.find("packs/old")
    assert collect(settings, store, NOW, dry_run=False) == seen


@pytest.mark.usefixtures("old_pack")
def test_the_command_tells_what_goes_and_what_would_go(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gc", "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("0.0 MiB  packs/old") and told[1] == "1 folders, 0.0 MiB, still there (--dry-run)"
    assert cli.main(["gc", "--days", "41"]) == 0
    assert capsys.readouterr().out == "Nothing that no version needs is older than 41 days.\n"
    assert store.find("packs/old")
    assert cli.main(["gc", "--days", "-1"]) == cli.EXIT_USER_ERROR
    assert "--days is -1" in capsys.readouterr().err


@pytest.mark.usefixtures("old_pack")
def test_the_commands_answer_in_json_names_what_went(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gc", "--json"]) == 0
    gone = json.loads(capsys.readouterr().out)
    assert ([one["name"] for one in gone["gone"]], gone["dry_run"]) == (["packs/old"], False)
    assert store.find("packs/old") is None


def test_uploaded_data_stays_until_it_is_asked_for(settings: Settings, store: Store, tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text('{"text": "only here"}\n')
    folder = upload(settings, store, str(tmp_path / "chats.jsonl")).folder
    put(store, "datasets/old")
    assert [one.name for one in collect(settings, store, NOW, dry_run=False)] == ["datasets/old"]
    for dry_run in (True, False):
        assert [one.name for one in collect(settings, store, NOW, dry_run=dry_run, uploads=True)] == [folder]
    assert store.find(folder) is None and store.names("uploads") == []


def test_what_a_version_was_made_from_stays(settings: Settings, store: Store, past: Past) -> None:
    data, orphan = put(store, "datasets/0123"), put(store, "datasets/4567")
    past.spec = dataclasses.replace(past.spec, train_data=f"store://{data}/chats.jsonl")
    version = register(
        settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)
    for name in (past.split.folder, past.pack.folder):
        if store.find(name) is None:
            put(store, name)
    gone = {one.name for one in collect(settings, store, NOW, dry_run=False)}
    assert orphan in gone
    for name in (data, past.trained.folder, past.split.folder, past.pack.folder, version.folder):
        assert name not in gone and store.find(name), name


@pytest.mark.slow
def test_half_a_folder_on_s3_goes_too(settings: Settings, tmp_path: Path, s3_endpoint: str) -> None:
    store = Store(Settings(home=tmp_path, store=f"s3://{BUCKET}/gc", s3_endpoint_url=s3_endpoint))
    put(store, "packs/whole")
    store.write("packs/half/file", "never sealed")
    gone = collect(settings, store, NOW, dry_run=False)
    assert {one.name for one in gone} == {"packs/whole", "packs/half"}
    assert store.names("packs") == []


def test_checkpoints_of_a_training_that_runs_are_left(settings: Settings, store: Store) -> None:
    runs = settings.home_path / "trainings"
    for name in ("runs", "died"):
        (runs / name / "step-000002").mkdir(parents=True)
        (runs / name / "step-000002" / "file").write_text("x")
        aged(runs / name, 40)
    with (runs / "runs.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        gone = collect(settings, store, DAYS, dry_run=False)
    assert [one.name for one in gone] == [str(runs / "died")]
    assert (runs / "runs" / "step-000002" / "file").exists() and not (runs / "died").exists()


def test_base_models_and_results_stay_and_old_copies_go(settings: Settings, store: Store) -> None:
    cache, copy = settings.home_path / "cache", "0123456789abcdef" * 4
    for name in ("hub/models--acme", "bases/x", f"places/{'f' * 64}", copy):
        (cache / name).mkdir(parents=True)
        (cache / name / "file").write_text("x")
    put(store, "predictions/answers")
    aged(cache, 400)
    aged(Path(store.root), 400)
    assert [one.name for one in collect(settings, store, DAYS, dry_run=False)] == [str(cache / copy)]
    assert {path.name for path in cache.iterdir()} == {"hub", "bases", "places"}
    assert store.find("predictions/answers")


@pytest.mark.parametrize("folder", ["datasets", "packs/store"])
def test_a_store_below_a_folder_with_the_name_of_a_kind(tmp_path: Path, folder: str) -> None:
    settings = Settings(home=tmp_path / folder / "home")
    store = Store(settings)
    put(store, "datasets/old")
    assert list(store.sizes("datasets")) == ["datasets/old"] and store.sizes("packs") == {}


def test_a_version_from_before_there_was_a_list_keeps_what_it_names(
    settings: Settings, store: Store, past: Past, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks import register as module

    real = module.lineage_of
    monkeypatch.setattr(module, "lineage_of", lambda *a: {k: v for k, v in real(*a).items() if k != "made_from"})
    register(settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)
    named = [f"splits/{past.split.digest[:32]}", f"packs/{past.pack.digest[:32]}"]
    for name in named:
        put(store, name)
    collect(settings, store, NOW, dry_run=False)
    assert all(store.find(name) for name in named)
