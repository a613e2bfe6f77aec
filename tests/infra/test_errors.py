"""infra/errors.py: four-part messages that survive process boundaries."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest

from infra.errors import (
    BY_EXIT_CODE,
    EXIT_NON_FINITE,
    Broken,
    DataError,
    Diverged,
    Transient,
    UserError,
    from_os_error,
    read_error,
    shown,
    write_error,
)

ERROR = DataError('"completion" is a number (17)', where="data.jsonl line 4811", allowed="a string", fix="Quote it.")
SENTENCE = 'data.jsonl line 4811: "completion" is a number (17); expected a string. Quote it.'


def test_a_message_says_where_what_allowed_and_what_to_do() -> None:
    assert str(ERROR) == SENTENCE


def test_an_error_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(ERROR))
    assert type(copy) is DataError and str(copy) == SENTENCE


def test_an_error_survives_a_child_process(tmp_path: Path) -> None:
    write_error(tmp_path / "error.json", ERROR)
    copy = read_error(tmp_path / "error.json", 3)
    assert type(copy) is DataError and str(copy) == SENTENCE


def test_a_child_that_left_no_error_gives_none(tmp_path: Path) -> None:
    assert read_error(tmp_path / "error.json", 1) is None


def test_exit_codes_name_their_errors() -> None:
    assert BY_EXIT_CODE[EXIT_NON_FINITE] is Diverged and issubclass(Diverged, Broken)


def test_shown_values_are_escaped_and_shortened() -> None:
    assert shown("a\n\x1b[31m") == '"a\\n\\u001b[31m"'
    assert len(shown("x" * 500)) == 80


@pytest.mark.parametrize(("number", "kind"), [
    (errno.ENOSPC, UserError), (errno.EACCES, UserError), (errno.EIO, Transient)])
def test_disk_errors_are_told_apart(number: int, kind: type[Exception]) -> None:
    assert type(from_os_error(OSError(number, "x"), "here")) is kind
