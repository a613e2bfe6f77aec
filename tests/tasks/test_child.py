"""tasks/child.py: what the end of a child process means."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import AnnealError, Broken, DataError, Transient, write_error
from infra.settings import Settings
from tasks.child import LOG, failure, run_child
from tasks.distributed.job import ERROR, EncodeJob


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


def test_a_child_that_cannot_read_its_input_says_so(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    job = EncodeJob(out=str(tmp_path / "out"), rows=str(tmp_path), tokenizer=str(tmp_path / "none"), kind="text",
                    separator="", chunk_tokens=8, pack=True, wrap=False, train_on_prompt=False)
    with pytest.raises(AnnealError, match="no tokenizer can be loaded"):
        run_child(settings, job, "tasks.distributed.encode")
