"""Every way in which a file of rows goes wrong that we know of: accepted, refused with its line, or noted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from infra.errors import DataError
from infra.settings import Settings
from infra.storage.store import Store
from tasks.data.jsonl import BLANK_LINES, MARKED
from tasks.data.scan import EMPTY_PROMPTS, UNUSED_KEYS, survey
from tasks.data.sources import Places, Shard
from tasks.ingest import ingest
from tasks.validate import ONE_ROW, validate

ROW = b'{"prompt": "p", "completion": "c"}'
GOOD = ROW + b'\n{"prompt": "q", "completion": "d"}\n'
FILE, FIRST, THIRD = "data.jsonl: ", "data.jsonl line 1: ", "data.jsonl line 3: "
MESSAGES = b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
BOM = b"\xef\xbb\xbf"

ACCEPTED = {
    "3 no line feed at the end": GOOD.rstrip(), "7 CRLF": GOOD.replace(b"\n", b"\r\n"),
    "15 U+2028 in a string": ROW.replace(b"p\"", "p\u2028\"".encode(), 1) + b"\n" + ROW,
    "16 U+0085 in a string": ROW.replace(b"c\"}", "c\u0085d\"}".encode()) + b"\n" + ROW.replace(b"p\"", b"q\"", 1)}

NOTED = {
    "4 blank lines": (GOOD.replace(b"\n{", b"\n\n{"), BLANK_LINES, "data.jsonl line 2"),
    "5 lines of spaces": (GOOD.replace(b"\n{", b"\n \t \n{"), BLANK_LINES, "data.jsonl line 2"),
    "6 byte-order mark": (BOM + GOOD, MARKED, "data.jsonl line 1"),
    "45 other keys": (GOOD + b'{"id": 7, "prompt": "r", "completion": "c"}', UNUSED_KEYS, 'data.jsonl line 3 ("id")'),
    "53 empty prompt": (GOOD + b'{"prompt": " ", "completion": "c"}', EMPTY_PROMPTS, "data.jsonl line 3"),
    "55 one row": (ROW, ONE_ROW, "data.jsonl line 1")}

REFUSED = {
    "1 empty": (b"", FILE, "the file is empty"), "2 only line feeds": (b"\n\n\n", FILE, "there is no row in it"),
    "8 bare carriage returns": (ROW + b"\r" + ROW, FIRST, "carriage returns alone; save the file with line feeds"),
    "9 UTF-16 LE": (GOOD.decode().encode("utf-16-le"), FIRST, "save UTF-16 text as UTF-8"),
    "9 UTF-16 LE, marked": (b"\xff\xfe" + GOOD.decode().encode("utf-16-le"), FILE, "iconv -f UTF-16 -t UTF-8"),
    "10 UTF-16 BE": (GOOD.decode().encode("utf-16-be"), "data.jsonl lines 1-2: ", "save UTF-16 text as UTF-8"),
    "10 UTF-16 BE, marked": (b"\xfe\xff" + GOOD.decode().encode("utf-16-be"), FILE, "iconv -f UTF-16 -t UTF-8"),
    "11 Latin-1": (GOOD + b'{"prompt": "caf\xe9", "completion": "c"}', THIRD, "byte 16 is not UTF-8"),
    "12 overlong": (GOOD + b'{"prompt": "\xc0\xaf", "completion": "c"}', THIRD, "byte 13 is not UTF-8"),
    "13 CESU-8": (GOOD + b'{"prompt": "\xed\xa0\xbd\xed\xb8\x80", "completion": "c"}', THIRD, "is not UTF-8"),
    "14 NULs at the end": (GOOD + bytes(99), THIRD, "was not written or copied whole"),
    "17 gzip, damaged": (b"\x1f\x8b" + GOOD, FILE, "the gzip file is damaged"),
    "17 gzip in gzip": (gzip.compress(gzip.compress(GOOD)), FIRST, "byte 2 is not UTF-8"),
    "18 zip": (b"PK\x03\x04abc", FILE, "a zip archive"), "19 Parquet": (b"PAR1abc", FILE, "a Parquet file"),
    "20 CSV": (b"prompt,completion\np,c\n", FILE, "a table with a line of column names"),
    "21 web page": (b"<!DOCTYPE html>\n<html>", FILE, "the file is a web page"),
    "22 one array": (b"[" + ROW + b"]", FILE, "jq -c '.[]' data.json"),
    "23 pretty-printed": (json.dumps(json.loads(ROW), indent=1).encode(), FILE, "pretty-printed JSON"),
    "24 YAML": (b"- prompt: p\n  completion: c\n", FILE, "It looks like YAML"),
    "25 cut off": (GOOD + ROW[:20], THIRD, "Write one complete object per line"),
    "26 comma at the end": (GOOD + b'{"prompt": "p", "completion": "c",}', THIRD, "no comma stands before a closing"),
    "27 single quotes": (GOOD + ROW.replace(b'"', b"'"), THIRD, "Python dict; write it with json.dumps"),
    "28 bare keys": (GOOD + b'{prompt: "p", completion: "c"}', THIRD, "Put keys into double quotes"),
    "29 comment": (GOOD + b"// more\n", THIRD, "JSON has no comments"),
    "29 comment inside": (GOOD + b'{"prompt": "p", /* x */ "completion": "c"}', THIRD, "not JSON: "),
    "30 NaN": (GOOD + ROW.replace(b'"c"', b"NaN"), THIRD, "NaN is not a JSON value"),
    "31 Infinity": (GOOD + ROW.replace(b'"c"', b"-Infinity"), THIRD, "-Infinity is not a JSON value"),
    "32 1e400": (GOOD + ROW.replace(b"}", b', "id": 1e400}'), THIRD, 'the number "1e400" is too large'),
    "33 5000 digits": (GOOD + ROW.replace(b"}", b', "id": ' + b"7" * 5000 + b"}"), THIRD, "a number has 5000 digits"),
    "34 repeated key": (GOOD + ROW.replace(b"completion", b"prompt"), THIRD, 'the key "prompt" stands twice'),
    "35 two objects": (GOOD + ROW + ROW, THIRD, "Write each object on a line of its own"),
    "36 array": (GOOD + b"[1]", THIRD, "the line is an array"),
    "37 scalar": (GOOD + b"17", THIRD, "the line is a number"),
    "38 control character": (GOOD + ROW.replace(b"p\"", b"\x01\"", 1), THIRD, "Invalid control character"),
    "39 NUL": (GOOD + ROW.replace(b"p\"", b"\0\"", 1), THIRD, "There are zero bytes in it"),
    "40 escaped NUL": (GOOD + ROW.replace(b'"p"', b'"a\\u0000b"'), THIRD, '"prompt" has a zero character'),
    "41 lone surrogate": (GOOD + ROW.replace(b'"c"', b'"\\udc00"'), THIRD, "half of a surrogate pair"),
    "42 deep nesting": (GOOD + b'{"prompt": ' + b"[" * 200_000, THIRD, "the JSON is nested too deeply"),
    "43 no completion": (GOOD + b'{"prompt": "p"}', THIRD, '"completion" is missing'),
    "44 no prompt": (GOOD + b'{"completion": "p"}', THIRD, '"prompt" is missing'),
    "46 text and prompt": (GOOD + b'{"text": "t", "prompt": "p"}', THIRD, "the row mixes prompt and text"),
    "47 two kinds": (GOOD + b'{"text": "t"}', THIRD, "kind text; expected prompt, as in data.jsonl line 1."),
    "48 null": (GOOD + ROW.replace(b'"c"', b"null"), THIRD, '"completion" is null'),
    "49 number": (GOOD + ROW.replace(b'"c"', b"17"), THIRD, '"completion" is a number (17); expected a string. Q'),
    "50 list of messages": (GOOD + ROW.replace(b'"p"', MESSAGES), THIRD, '{"messages": [...]}'),
    "50 bare list of messages": (GOOD + MESSAGES, THIRD, '{"messages": [...]}'),
    "51 empty completion": (GOOD + ROW.replace(b'"c"', b'""'), THIRD, '"completion" is empty'),
    "52 blank completion": (GOOD + ROW.replace(b'"c"', b'" \\n"'), THIRD, '"completion" is empty'),
    "54 key in capitals": (GOOD + ROW.replace(b"prompt", b"Prompt"), THIRD, 'Write "prompt" instead of "Prompt".'),
    "54 key with a space": (GOOD + b'{"text ": "t"}', THIRD, 'Write "text" instead of "text ".')}


def judged(settings: Settings, store: Store, tmp_path: Path, content: bytes) -> dict[str, list[str]]:
    """What is noted of the file, and where."""
    (tmp_path / "data.jsonl").write_bytes(content)
    split = validate(store, ingest(settings, store, str(tmp_path / "data.jsonl")), None, 1)
    return {finding.what: finding.first for finding in split.findings}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED)
def test_a_good_file_is_accepted_without_a_word(
    settings: Settings, store: Store, tmp_path: Path, content: bytes,
) -> None:
    assert judged(settings, store, tmp_path, content) == {}


@pytest.mark.parametrize(("content", "what", "where"), NOTED.values(), ids=NOTED)
def test_what_is_odd_is_accepted_and_noted(
    settings: Settings, store: Store, tmp_path: Path, content: bytes, what: str, where: str,
) -> None:
    assert judged(settings, store, tmp_path, content) == {what: [where]}


@pytest.mark.parametrize(("content", "where", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused_with_its_place_and_a_remedy(
    settings: Settings, store: Store, tmp_path: Path, content: bytes, where: str, words: str,
) -> None:
    with pytest.raises(DataError) as caught:
        judged(settings, store, tmp_path, content)
    message = str(caught.value)
    assert where in message and words in message and "recursion" not in message
    assert store.names("splits") == []


def test_the_list_is_complete() -> None:
    """Number 56, rows of which nothing is left to learn, needs a tokenizer: tests/tasks/distributed/test_encode.py."""
    assert {int(name.split()[0]) for table in (ACCEPTED, NOTED, REFUSED) for name in table} == set(range(1, 56))


@pytest.mark.parametrize(("lines", "words"), [
    ([1, 2, 3, 4, 5, 9], "data.jsonl lines 1-5, 9: "), ([2], "data.jsonl line 2: "),
    ([2, 4], "data.jsonl lines 2, 4: ")])
def test_equal_bad_lines_are_told_once_with_their_numbers(tmp_path: Path, lines: list[int], words: str) -> None:
    (tmp_path / "data.jsonl").write_text("".join(
        ('{"text": 17}' if number in lines else '{"text": "t"}') + "\n" for number in range(1, 12)))
    with pytest.raises(DataError) as caught:
        survey(tmp_path / "data.jsonl", Places("data.jsonl"))
    assert str(caught.value).count('"text" is a number (17); expected a string') == 1
    assert words in str(caught.value)


def test_equal_bad_lines_of_a_shard_have_the_shards_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "t"}\n{"text": 1}\n{"text": "t"}\n{"text": 1}\n{"text": 1}\n')
    shards = tuple(Shard(name=name, line=line, lines=2, bytes=1, sha256="") for name, line in (("a", 1), ("b", 3)))
    with pytest.raises(DataError) as caught:
        survey(tmp_path / "data.jsonl", Places("both", (*shards, Shard(name="c", line=5, lines=1, bytes=1, sha256=""))))
    for words in ("a line 2: ", "b line 2: ", "c line 1: "):
        assert words in str(caught.value)


def test_a_kind_of_mistake_on_very_many_lines_names_the_first_places(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": 1}\n{"text": "t"}\n' * 100)
    with pytest.raises(DataError, match=r"100 of 200 lines.* lines 1, 3, 5.*, 39, and 80 more: "):
        survey(tmp_path / "data.jsonl", Places("data.jsonl"))
