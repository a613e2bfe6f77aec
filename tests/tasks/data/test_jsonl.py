"""Every line once, with its number and its place, whatever the size of the blocks that are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.data import jsonl
from tasks.data.jsonl import numbered

CONTENT = b"\xef\xbb\xbffirst\n\n  \r\nfour\r\n" + b"x" * 50 + b"\nsix\n" + b"y" * 90 + b"\neight"
WANTED = [(1, b"first"), (4, b"four\r"), (5, b"x" * 50), (6, b"six"), (7, b"y" * 90), (8, b"eight")]


@pytest.fixture(params=[1, 2, 7, 64, 1 << 16])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The content, read in blocks of this many bytes."""
    monkeypatch.setattr(jsonl, "BLOCK_BYTES", request.param)
    path = tmp_path / "data"
    path.write_bytes(CONTENT)
    return path


def test_lines_are_numbered_and_blank_ones_noted(path: Path) -> None:
    noted: list[tuple[str, int]] = []
    assert list(numbered(path, lambda what, number: noted.append((what, number)))) == WANTED
    assert noted == [(jsonl.MARKED, 1), (jsonl.BLANK_LINES, 2), (jsonl.BLANK_LINES, 3)]


def test_of_a_line_that_is_too_long_the_beginning_comes_and_the_others_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jsonl, "LINE_BYTES", 40)
    found = list(numbered(path))
    assert [number for number, _ in found] == [number for number, _ in WANTED]
    assert [jsonl.is_cut(line) for _, line in found] == [len(line) > 40 for _, line in WANTED]
    assert all(line.startswith(cut[:41]) for (_, line), (_, cut) in zip(WANTED, found, strict=True))


def test_many_spaces_before_a_row_are_not_a_blank_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LINE_BYTES", 40)
    monkeypatch.setattr(jsonl, "HELD_BYTES", 44)
    for front in (b"", jsonl.BOM):
        (tmp_path / "data").write_bytes(front + b" " * 60 + b'{"text": "x"}\nnext\n')
        first, second = numbered(tmp_path / "data")
        assert jsonl.is_cut(first[1]) and second == (2, b"next")


@pytest.mark.parametrize("limit", [40, 1 << 24])
def test_a_file_divided_at_any_place_that_is_told_has_the_same_lines(
    path: Path, limit: int, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jsonl, "LINE_BYTES", limit)
    begins: list[int] = []
    whole = [line[: limit + 1] for _, line in numbered(path, begins=begins.append)]
    for place in begins:
        assert place == 0 or CONTENT[place - 1 : place] == b"\n"
        parts = [*numbered(path, end=place), *numbered(path, start=place)]
        assert [line[: limit + 1] for _, line in parts] == whole
