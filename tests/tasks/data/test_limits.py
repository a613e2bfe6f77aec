"""Files at and beyond the limits: exactly what is allowed passes, and nothing takes memory without bound."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import DataError
from infra.settings import Settings
from infra.storage.store import Store
from tasks.data.scan import UNUSED_KEYS, FileScan, survey
from tasks.data.schema import INTEGER_DIGITS, parse
from tasks.data.sources import Places
from tasks.ingest import ingest
from tests.conftest import ROOT

ROW = '{"text": "t"}'
MIB = 1 << 20
SURVEYED = """
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from infra.errors import DataError
from tasks.data.sources import Places
from tasks.data.scan import survey
before = getrusage(RUSAGE_SELF).ru_maxrss
try:
    print(survey(Path(sys.argv[1]), Places("data.jsonl")).count, "rows")
except DataError as error:
    print(error)
print((getrusage(RUSAGE_SELF).ru_maxrss - before) // 1024)
"""

VALIDATED = """
import sys
from resource import RUSAGE_SELF, getrusage
from infra.settings import Settings
from infra.storage.store import Store
from tasks.ingest import ingest
from tasks.data.cleaning import NEAR
from tasks.validate import validate
before = getrusage(RUSAGE_SELF).ru_maxrss
store = Store(Settings())
split = validate(store, ingest(Settings(), store, sys.argv[1]), None, 50)
print(*(one.count for one in split.findings if one.what == NEAR))
print((getrusage(RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def surveyed(path: Path) -> tuple[str, int]:
    """What a process of its own says of the file, and by how many MiB its peak memory grew."""
    done = subprocess.run(
        [sys.executable, "-c", SURVEYED, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    message, grown = done.stdout.rstrip().rsplit("\n", 1)
    return message, int(grown)


def of_lines(tmp_path: Path, lines: list[str]) -> FileScan:
    (tmp_path / "data.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return survey(tmp_path / "data.jsonl", Places("data.jsonl"))


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize(("limit", "passes"), [(len(ROW) - 1, False), (len(ROW), True), (len(ROW) + 1, True)])
def test_a_line_may_be_as_long_as_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, passes: bool, end: str,
) -> None:
    monkeypatch.setattr("tasks.data.jsonl.LINE_BYTES", limit)
    (tmp_path / "d").write_text(f'{{"text":""}}\n{ROW}{end}')
    with pytest.raises(DataError) as caught:
        survey(tmp_path / "d", Places("d"))
    assert ("2 of 2 lines" in str(caught.value) and "d line 2: the line is longer" in str(caught.value)) is not passes


def test_the_lines_behind_one_that_is_too_long_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.data.jsonl.LINE_BYTES", len(ROW))
    with pytest.raises(DataError) as caught:
        of_lines(tmp_path, [ROW, " " * 100 + ROW, ROW, "x" * (3 * len(ROW)), "[1]"])
    assert "lines 2, 4: the line is longer" in str(caught.value) and "line 5: " in str(caught.value)
    assert "3 of 5 lines" in str(caught.value)


@pytest.mark.parametrize(("limit", "passes"), [(13, False), (14, True), (15, True)])
def test_a_file_may_be_as_long_as_the_limit(tmp_path: Path, limit: int, passes: bool) -> None:
    settings = Settings(home=tmp_path / "home", max_data_bytes=limit)
    (tmp_path / "d.jsonl").write_text(f"{ROW}\n")
    if passes:
        assert ingest(settings, Store(settings), str(tmp_path / "d.jsonl")).bytes == 14
    else:
        with pytest.raises(DataError, match="more than 13 bytes after unpacking"):
            ingest(settings, Store(settings), str(tmp_path / "d.jsonl"))


@pytest.mark.parametrize(("limit", "passes"), [(2, False), (3, True), (4, True)])
def test_a_file_may_have_as_many_rows_as_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, passes: bool,
) -> None:
    monkeypatch.setattr("tasks.data.scan.MOST_ROWS", limit)
    if passes:
        assert of_lines(tmp_path, [ROW] * 3).count == 3
    else:
        with pytest.raises(DataError, match="more than 2 rows"):
            of_lines(tmp_path, [ROW] * 3)


@pytest.mark.parametrize("bad", [19, 20, 21])
def test_the_first_twenty_bad_lines_are_named_and_the_others_counted(tmp_path: Path, bad: int) -> None:
    with pytest.raises(DataError) as caught:
        of_lines(tmp_path, [f'{{"text": {i}}}' for i in range(bad)] + [ROW])
    message = str(caught.value)
    assert f"{bad} of {bad + 1} lines cannot be used" in message
    assert [n for n in range(1, 30) if f"line {n}:" in message] == list(range(1, min(bad, 20) + 1))
    assert ("and 1 more" in message) is (bad == 21)


@pytest.mark.parametrize(("digits", "passes"), [
    (INTEGER_DIGITS - 1, True), (INTEGER_DIGITS, True), (INTEGER_DIGITS + 1, False)])
def test_a_number_may_have_as_many_digits_as_python_reads(digits: int, passes: bool) -> None:
    line = f'{{"text": "t", "id": {"7" * digits}}}'.encode()
    if passes:
        assert parse(line, "here")["text"] == "t"
    else:
        with pytest.raises(DataError, match=f"a number has {digits} digits"):
            parse(line, "here")


@pytest.mark.slow
def test_of_a_million_lines_exactly_the_three_bad_ones_are_named(tmp_path: Path) -> None:
    bad = {3: "[1]", 500_000: '{"text": 17}', 1_000_000: '{"text": "cut'}
    with (tmp_path / "data.jsonl").open("w") as file:
        for number in range(1, 1_000_001):
            file.write(bad.get(number, f'{{"text": "This is text number {number}."}}') + "\n")
    message, grown_mib = surveyed(tmp_path / "data.jsonl")
    assert message.startswith("data.jsonl: 3 of 1000000 lines cannot be used.")
    assert [int(number) for number in re.findall(r"data\.jsonl line (\d+): ", message)] == list(bad)
    assert grown_mib < 1024


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"", b'{"text": "'])
def test_a_gigabyte_without_a_line_feed_is_refused_in_little_memory(tmp_path: Path, start: bytes) -> None:
    with (tmp_path / "data.jsonl").open("wb") as file:
        file.write(start)
        file.truncate(1 << 30)
    message, grown_mib = surveyed(tmp_path / "data.jsonl")
    assert message.startswith("data.jsonl line 1: the line is longer than 16777216 bytes.") and grown_mib < 128


@pytest.mark.slow
def test_long_bad_lines_are_not_kept_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "data.jsonl").open("wb") as file:
        for _ in range(20):
            file.write(b'{"text": "' + b"x" * (15 * MIB) + b"\n")
    message, grown_mib = surveyed(tmp_path / "data.jsonl")
    assert "20 of 20 lines cannot be used" in message and grown_mib < 160


@pytest.mark.slow
@pytest.mark.parametrize("line", [
    pytest.param("1\n", marks=[pytest.mark.chaos, pytest.mark.timeout(900)]), "\n"], ids=["of one digit", "empty"])
def test_ten_million_tiny_lines_are_refused_in_little_memory(tmp_path: Path, line: str) -> None:
    (tmp_path / "data.jsonl").write_text(line * 10_000_000)
    message, grown_mib = surveyed(tmp_path / "data.jsonl")
    wanted = "10000000 of 10000000 lines cannot be used" if line.strip() else "there is no row in it"
    assert wanted in message and grown_mib < 64


@pytest.mark.slow
def test_a_million_keys_are_read_and_noted(tmp_path: Path) -> None:
    many = json.dumps({"text": "t", **dict.fromkeys(map(str, range(1_000_000)), 1)}, separators=(",", ":"))
    assert of_lines(tmp_path, [many]).notes.counts == {UNUSED_KEYS: 1}


@pytest.mark.slow
def test_a_key_that_is_repeated_among_a_million_is_named(tmp_path: Path) -> None:
    names = [*map(str, range(1_000_000)), "text", "777777"]
    with pytest.raises(DataError, match='the key "777777" stands twice'):
        of_lines(tmp_path, ["{" + ",".join(f'"{name}":1' for name in names) + "}"])


@pytest.mark.parametrize("opening", ["[", '{"text":'])
def test_nesting_without_end_is_refused(tmp_path: Path, opening: str) -> None:
    with pytest.raises(DataError, match="the JSON is nested too deeply"):
        of_lines(tmp_path, [opening * 200_000])


@pytest.mark.parametrize("line", ["{}" + " " * 10_000_000 + "x", '{"a": ' + " " * 10_000_000, "x" * 10_000_000])
def test_the_remedy_of_a_long_line_is_found_at_once(tmp_path: Path, line: str) -> None:
    with pytest.raises(DataError, match="line 1: not JSON"):
        of_lines(tmp_path, [line])


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_million_rows_that_are_nearly_the_same_are_validated_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "data.jsonl").open("w") as file:
        for number in range(1_000_000):
            file.write(f'{{"prompt": "{number} {" ".join(map(str, range(40)))}", "completion": "Row {number}."}}\n')
    done = subprocess.run(
        [sys.executable, "-c", VALIDATED, str(tmp_path / "data.jsonl")], cwd=ROOT, capture_output=True, text=True,
        check=True, env={**os.environ, "ANNEAL_HOME": str(tmp_path / "home")})
    near, grown_mib = map(int, done.stdout.split())
    assert near == 999_999 and grown_mib < 1024
