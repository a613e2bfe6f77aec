"""tasks/launcher/jobs.py: what the end of a child process means.

Tests tasks/distributed/contract.py too.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.errors import AnnealError, Broken, DataError, Transient, write_error
from infra.settings import Settings
from tasks.distributed.contract import ERROR, EncodeJob, TrainJob
from tasks.launcher.devices import gpus
from tasks.launcher.jobs import LOG, TRAIN, failure, rank_environment, run_child
from tasks.launcher.nodes import FOLDER, Nodes, ended_mark


def test_what_the_child_said_is_raised(tmp_path: Path) -> None:
    write_error(tmp_path / ERROR, DataError("no rows", where="d.jsonl"))
    assert str(failure(tmp_path, 3, "tasks.distributed.encode")) == "d.jsonl: no rows"


@pytest.mark.parametrize(("code", "log", "kind"), [
    (-9, "", Transient), (1, "traceback : Signal 9 (SIGKILL) received by PID 7", Transient),
    (1, "gloo/transport/tcp/pair.cc:547] Connection closed by peer", Transient), (1, "TypeError: x", Broken)])
def test_a_killed_rank_is_retried_and_a_bug_is_not(
    tmp_path: Path, code: int, log: str, kind: type[AnnealError],
) -> None:
    (tmp_path / LOG).write_text(log + "\n" * 20)
    assert type(failure(tmp_path, code, "tasks.distributed.train")) is kind


def test_what_a_rank_raised_is_told_not_torchruns_banner(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text(
        "[rank0]: Traceback (most recent call last):\n[rank0]: KeyError: 'w'\n" + "=====\n" * 30
        + "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n" + "-----\n" * 30)
    assert "exit code 1 (KeyError: 'w')" in str(failure(tmp_path, 1, "tasks.distributed.train"))


@pytest.mark.parametrize(("visible", "count"), [("0,1", 2), ("0,-1,1", 1), ("-1", 0), ("", 0), (None, 2)])
def test_only_visible_devices_count(visible: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.launcher.devices.subprocess.run", lambda *a, **k: SimpleNamespace(stdout="H100\nH100\n"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(gpus.__wrapped__()) == count


@pytest.mark.parametrize(("ranks", "threads", "told"), [(1, 0, "6"), (2, 0, "3"), (8, 0, "1"), (2, 4, "4")])
def test_every_rank_is_told_how_many_threads_it_has(
    ranks: int, threads: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads on one busy core are far slower than one."""
    monkeypatch.setattr("infra.settings.os.sched_getaffinity", lambda _: set(range(6)))
    settings = Settings(home=tmp_path, threads=threads)
    assert rank_environment(settings, ranks)["OMP_NUM_THREADS"] == told


@pytest.mark.slow
def test_a_child_that_cannot_read_its_input_says_so(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    job = EncodeJob(out=str(tmp_path / "out"), rows=str(tmp_path), tokenizer=str(tmp_path / "none"), kind="text",
                    separator="", chunk_tokens=8, pack=True, wrap=False, train_on_prompt=False)
    with pytest.raises(AnnealError, match="no tokenizer can be loaded"):
        run_child(settings, job, "tasks.distributed.encode")


def test_a_node_that_fails_while_others_are_waited_for_ends_the_launch(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.launcher.nodes.ENDING_S", -1.0)
    monkeypatch.setattr("tasks.launcher.jobs.interface_to", lambda launch, environment: {})
    job = TrainJob(out=str(tmp_path), spec="", base="", packs="", chunk_tokens=8, key="k")

    def fail_on_the_second() -> None:
        (launch,) = (settings.home_path / FOLDER).glob("*.json")
        ended_mark(launch, 1).write_text("7")

    with pytest.raises(Transient, match="the ranks of node 1 ended with exit code 7"):
        run_child(settings, job, TRAIN, ranks=2, on_poll=fail_on_the_second, nodes=Nodes(3, "10.0.0.1:29500"))
    assert list((settings.home_path / FOLDER).iterdir()) == []
