"""tasks/train.py: whose training it is, and which checkpoint it goes on from.

Tests tasks/launcher/checkpoint_copies.py, tasks/launcher/relaunch.py too.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from infra.errors import OutOfMemory, RanksLost, Transient, UserError
from infra.files import seal, verify
from infra.records import Trained
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Draft, Store
from tasks.distributed.contract import TrainJob
from tasks.launcher import jobs
from tasks.launcher.checkpoint_copies import CHECKPOINTS, Copies, bring_checkpoint, in_store
from tasks.launcher.placement import Placement, place
from tasks.launcher.relaunch import Launches, comes_no_further
from tasks.launcher.watchdog import StallWatchdog
from tasks.runs.locks import exclusive_lock
from tasks.train import train, training_id
from tests.conftest import BUCKET, ROOT
from tests.support.past import Past


def placed(settings: Settings, past: Past) -> Placement:
    return place(settings, past.spec, past.pack, past.base)


@pytest.fixture
def remote(tmp_path: Path, s3_endpoint: str) -> Store:
    """A store that other machines see too."""
    return Store(Settings(
        home=tmp_path / "home", store=f"s3://{BUCKET}/{uuid.uuid4()}", s3_endpoint_url=s3_endpoint))


def checkpoint(folder: Path, step: int, text: str) -> Path:
    """A sealed checkpoint of `step`."""
    path = folder / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "weights").write_text(text)
    seal(path, {"step": step})
    return path


def publish(store: Store, step: int) -> None:
    """A checkpoint of the training `t` that another machine has copied to the store."""
    with store.draft() as draft:
        checkpoint(draft.path / "made", step, "theirs")
        (draft.path / "made" / f"step-{step:06d}").rename(draft.path / CHECKPOINTS)
        (draft.path / "made").rmdir()
        draft.commit(f"{CHECKPOINTS}/t/step-{step:06d}", {"training": "t"})


@pytest.mark.parametrize(("here", "there", "newest"), [
    ([], [5, 10], "theirs"), ([5], [10], "theirs"), ([10], [5], "ours"), ([10], [10], "ours"), ([5], [], "ours")])
def test_the_newest_checkpoint_of_all_machines_is_used(
    here: list[int], there: list[int], newest: str, remote: Store, tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for step in here:
        checkpoint(run, step, "ours")
    for step in there:
        publish(remote, step)
    bring_checkpoint(remote, "t", run)
    last = max(run.glob("step-??????"))
    assert last.name == f"step-{max(here + there):06d}"
    assert (last / "weights").read_text() == newest
    assert verify(last) is not None


def test_a_damaged_checkpoint_here_gives_way_to_the_same_step_from_elsewhere(remote: Store, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (checkpoint(run, 10, "ours") / "weights").write_text("torn")
    publish(remote, 10)
    bring_checkpoint(remote, "t", run)
    assert (run / "step-000010" / "weights").read_text() == "theirs"


def test_watching_goes_on_while_a_checkpoint_is_copied_with_the_best_weights(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, draft = threading.Event(), remote.draft
    monkeypatch.setattr(remote, "draft", lambda: draft() if opened.wait(60) else None)
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    copies = Copies(remote, "t", here)
    checkpoint(here, 999_950, "first")
    copies.look(new=True)
    checkpoint(here, 1_000_000, "second")
    checkpoint(here, 0, "best").rename(here / "best")
    copies.look(new=True)
    assert in_store(remote, "t") == []
    opened.set()
    copies.finish()
    assert in_store(remote, "t")[0] == f"{CHECKPOINTS}/t/step-1000000"
    bring_checkpoint(remote, "t", there)
    assert {path.name: (path / "weights").read_text() for path in there.iterdir()} == {
        "step-1000000": "second", "best": "best"}


def test_what_auto_precision_means_here_is_part_of_the_training(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = {}, dataclasses.replace(past.spec, precision="auto")
    for gpus, bf16 in (((), True), (("NVIDIA T4",), False), (("NVIDIA H100",), True)):
        monkeypatch.setattr(jobs, "gpus", lambda gpus=gpus: gpus)
        monkeypatch.setattr(jobs, "gpus_have_bf16", lambda bf16=bf16: bf16)
        found[gpus] = training_id(jobs.settled(asked), past.pack, past.base)
    assert found[()] == found[("NVIDIA T4",)] != found[("NVIDIA H100",)]


def test_auto_precision_is_fp32_on_every_cpu(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "gpus", lambda: ())
    auto = dataclasses.replace(past.spec, precision="auto")
    assert jobs.settled(auto).precision == "fp32"
    assert jobs.settled(dataclasses.replace(past.spec, precision="bf16")).precision == "bf16"


def test_memory_that_runs_out_halves_the_micro_batch_until_it_is_a_row(
    past: Past, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def run(settings: Settings, job: TrainJob, module: str, **rest: Any) -> dict[str, Any]:
        tried.append(TrainingSpec.from_json(job.spec).gradient_accumulation_steps)
        raise OutOfMemory("out of memory", where="training")

    monkeypatch.setattr("tasks.launcher.relaunch.run_child", run)
    spec = dataclasses.replace(past.spec, train_batch_size=12, num_ranks=2, gradient_accumulation_steps=1)
    job = TrainJob(out=str(tmp_path), spec=spec.to_json(), base="", packs="", chunk_tokens=8, key="k")
    with pytest.raises(OutOfMemory):
        Launches(settings, StallWatchdog(settings), lambda: None).run_smaller_if_needed(job)
    assert tried == [1, 2, 4, 6]
    with pytest.raises(OutOfMemory):
        Launches(settings, StallWatchdog(settings), lambda: None).run_smaller_if_needed(job)
    assert tried[4:] == [6], "what fitted is known to the next launch"


def test_a_second_process_at_the_same_training_is_refused(tmp_path: Path) -> None:
    lock, refused = tmp_path / "lock", pytest.raises(UserError, match="training t: another")
    with exclusive_lock(lock, "training t"), refused, exclusive_lock(lock, "training t"):
        pass


def test_three_launches_that_end_at_one_checkpoint_are_enough(tmp_path: Path) -> None:
    assert not comes_no_further(tmp_path)
    (tmp_path / "step-000050").mkdir()
    assert [comes_no_further(tmp_path) for _ in range(2)] == [False, False]
    (tmp_path / "step-000100").mkdir()
    assert [comes_no_further(tmp_path) for _ in range(3)] == [False, False, True]


def test_ranks_that_die_after_a_checkpoint_are_started_again_at_once_and_others_are_left_to_the_retry(
    past: Past, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    launches = [100, 200, 200]

    def run(*_: Any, **__: Any) -> dict[str, Any]:
        (tmp_path / f"step-{launches.pop(0):06d}").mkdir(exist_ok=True)
        raise Transient("a rank was killed")

    monkeypatch.setattr("tasks.launcher.relaunch.run_child", run)
    job = TrainJob(out=str(tmp_path), spec=past.spec.to_json(), base="", packs="", chunk_tokens=8, key="k")
    with pytest.raises(RanksLost, match="a rank was killed"):
        Launches(settings, StallWatchdog(settings), lambda: None).run_while_it_gets_on(job)
    assert launches == []


@pytest.mark.slow
def test_a_process_that_lost_its_training_is_killed_when_it_does_not_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.runs.locks.LOCK_POLL_S", 0.05)
    code = f"import time; from pathlib import Path; from tasks.runs.locks import exclusive_lock\n" \
           f"with exclusive_lock(Path({str(tmp_path / 't')!r}), 't'): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with exclusive_lock(tmp_path / "t", "t", takeover_s=0.2):
        assert holder.wait(5) == -signal.SIGKILL
    holder.stdout.close()


def test_a_resumed_training_shows_the_whole_curve(
    past: Past, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = settings.home_path / "trainings" / training_id(past.spec, past.pack, past.base)
    run.mkdir(parents=True)
    earlier = [{"event": "start"}, {"event": "step", "step": 1}, {"event": "validation", "step": 1}]
    torn = '{"event": "st'
    (run / "events.jsonl").write_text("\n".join([*map(json.dumps, earlier), torn]))
    monkeypatch.setattr("tasks.launcher.relaunch.run_child", lambda *a, **k: pytest.fail("far enough", pytrace=False))
    with store.draft() as draft:
        (draft.path / "x").touch()
        draft.commit(past.pack.folder, {})
    seen: list[Any] = []
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        train(settings, store, placed(settings, past), past.pack, past.base, seen.append)
    assert seen == earlier[1:]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_training_that_could_not_be_stored_is_not_trained_again(
    past: Past, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch, damaged: bool,
) -> None:
    run = settings.home_path / "trainings" / training_id(past.spec, past.pack, past.base)
    with store.draft() as draft:
        (draft.path / "x").touch()
        draft.commit(past.pack.folder, {})
    launches, commit, away = list[int](), Draft.commit, [Transient("away")]

    def trains(*_: Any, **__: Any) -> dict[str, Any]:
        launches.append(1)
        (run / "model").mkdir(exist_ok=True)
        (run / "model" / "weights").write_text("w")
        (run / "events.jsonl").write_text("")
        return {name: value for name, value in past.trained.to_json().items()
                if name not in ("folder", "training_id", "method", "digest")}

    def commits(draft: Draft, *arguments: Any) -> Any:
        if away:
            raise away.pop()
        return commit(draft, *arguments)

    monkeypatch.setattr("tasks.launcher.relaunch.run_child", trains)
    monkeypatch.setattr(Draft, "commit", commits)

    def once() -> Trained:
        return train(settings, store, placed(settings, past), past.pack, past.base, lambda event: None)

    with pytest.raises(Transient, match="away"):
        once()
    if damaged:
        (run / "model" / "weights").write_text("v")
    trained = once()
    assert len(launches) == 1 + damaged and not run.exists()
    assert (store.fetch(trained.folder) / "model" / "weights").read_text() == "w"
    assert once() == trained and len(launches) == 1 + damaged
