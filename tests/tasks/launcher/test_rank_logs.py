"""Rank output in the run's log: pytest tests/tasks/launcher/test_rank_logs.py"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tasks.launcher import rank_logs
from tasks.launcher.rank_logs import RankLines


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What goes to the run's log."""
    caplog.set_level(logging.INFO, logger="tasks.launcher.rank_logs")
    return caplog


def test_a_line_that_every_rank_says_is_shown_once(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    with RankLines(tmp_path) as lines:
        for rank in range(4):
            with (tmp_path / "log.txt").open("a") as file:
                file.write(f"[rank{rank}]: NCCL 2.2{rank} at 0x7f{rank}a is slow\n")
            lines.look()
    assert said.messages == ["[rank0]: NCCL 2.20 at 0x7f0a is slow",
                             f"3 more lines, most of them alike, are in {tmp_path / 'log*.txt'}"]


def test_half_a_line_waits_for_its_end(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    with RankLines(tmp_path) as lines:
        (tmp_path / "log.txt").write_text("out of")
        lines.look()
        assert said.messages == []
        (tmp_path / "log.txt").write_text("out of memory\n  5%|#     | 3/60 [00:01<00:20,  2.90it/s]\n\n")
    assert said.messages == ["out of memory"]


def test_other_nodes_lines_are_shown_and_those_of_earlier_launches_are_not(
    tmp_path: Path, said: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "log-node1.txt").write_text("yesterday\n")
    with RankLines(tmp_path), (tmp_path / "log-node1.txt").open("a") as file:
        file.write("today\n")
    assert said.messages == ["today"]


@pytest.mark.parametrize(("lines", "shown"), [(199, 199), (200, 200), (201, 201)])
def test_a_flood_is_cut_and_counted(
    tmp_path: Path, said: pytest.LogCaptureFixture, lines: int, shown: int,
) -> None:
    assert rank_logs.LINES_AT_MOST == 200
    with RankLines(tmp_path):
        (tmp_path / "log.txt").write_text("".join("x" * n + "\n" for n in range(1, lines + 1)))
    assert len(said.messages) == shown  # the 201st says that there was one more
    assert said.messages[-1].startswith("1 more lines" if lines > 200 else "x")
