"""infra/errors.py: four-part messages that survive process boundaries."""

from __future__ import annotations

import errno
import json
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
    sentence_in,
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


@pytest.mark.parametrize(("body", "sentence"), [
    ({"detail": "No."}, "No."), ({"detail": [{"msg": "No.", "loc": []}, {"msg": "Nor that."}]}, "No. Nor that."),
    ({"error": {"message": "No.", "code": None}}, "No."), ({"error": "No.", "detail": "No."}, "No.")])
def test_a_refusal_is_one_sentence_in_every_form(body: object, sentence: str) -> None:
    assert sentence_in(json.dumps(body), "nothing") == sentence


@pytest.mark.parametrize("body", [
    b"{}", b"null", b'{"detail": [1]}', b'{"detail": [{}]}', b"[]", b'{"error": {}}', b"<html>", b"\xff", b""])
def test_a_body_of_another_form_is_no_refusal(body: bytes) -> None:
    assert sentence_in(body, "nothing") == "nothing"
