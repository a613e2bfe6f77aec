"""Data that arrives in several files: which are taken, in what order, and what a line is called afterwards.

Tests tasks/data/datasets.py too.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from backports import zstd

from infra.errors import DataError, UserError
from infra.settings import Settings
from infra.storage.store import Store, filesystem
from tasks.data.datasets import FILE
from tasks.data.sources import find_shards, places_of, shards_in
from tasks.ingest import ingest
from tasks.validate import validate
from tests.conftest import BUCKET

BOM = b"\xef\xbb\xbf"


def row(text: str) -> bytes:
    return json.dumps({"text": text}).encode() + b"\n"


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def names_of(settings: Settings, source: object) -> list[str]:
    return [one.name for one in find_shards(settings, str(source))]


def data_of(settings: Settings, store: Store, source: object) -> bytes:
    return (store.fetch(ingest(settings, store, str(source)).folder) / FILE).read_bytes()


@pytest.fixture
def remote(s3_endpoint: str, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Settings, str]:
    """Settings with an S3 server, and a prefix of one's own."""
    settings = Settings(home=tmp_path / "home", s3_endpoint_url=s3_endpoint)
    return settings, f"s3://{BUCKET}/{request.node.name.split('[')[0]}"


def put(settings: Settings, address: str, content: bytes) -> None:
    filesystem(address, settings).pipe_file(address, content)


def test_the_files_of_a_folder_are_joined_in_the_order_of_their_names(
    settings: Settings, store: Store, tmp_path: Path,
) -> None:
    folder = lay(tmp_path / "data", {
        "b.jsonl": row("3"), "a.json": row("1"), "a10.ndjson": row("2"), "day=1/x.jsonl.gz": gzip.compress(row("4")),
        "day=2/x.JSONL.zst": zstd.compress(row("5"))})
    assert data_of(settings, store, folder) == b"".join(row(str(n)) for n in range(1, 6))


def test_hidden_and_unrelated_files_are_left_out_and_one_line_says_so(
    settings: Settings, tmp_path: Path,
) -> None:
    said: list[str] = []
    folder = lay(tmp_path / "data", dict.fromkeys(
        ("a.jsonl", ".b.jsonl", "_SUCCESS", "_temporary/0/c.jsonl", "notes.txt", "jsonl", "old.jsonl.bak"), row("x")))
    assert [one.name for one in find_shards(settings, str(folder), said.append)] == ["a.jsonl"]
    (line,) = said
    assert "notes.txt" in line and "and 1 more" in line


def test_a_folder_without_data_says_what_is_there(settings: Settings, tmp_path: Path) -> None:
    folder = lay(tmp_path / "data", dict.fromkeys(("a.csv", "b.csv", "c", "d", "e", "f/g"), b""))
    with pytest.raises(DataError) as caught:
        find_shards(settings, str(folder))
    message = str(caught.value)
    assert str(folder) in message and ".jsonl" in message
    assert "There are a.csv, b.csv, c, d, e and 1 more." in message


@pytest.mark.parametrize(("pattern", "names"), [
    ("*.jsonl", ["a.jsonl"]), ("day=*/*", ["day=1/b.jsonl", "day=2/c.jsonl.gz"]), ("day=[2-9]/*", ["day=2/c.jsonl.gz"]),
    ("**/*.jsonl", ["a.jsonl", "day=1/b.jsonl", "day=1/deep/d.jsonl"]),
    ("day=?/**.jsonl", ["day=1/b.jsonl", "day=1/deep/d.jsonl"]), ("day=1/*.jsonl", ["b.jsonl"])])
def test_a_pattern_takes_what_fits(settings: Settings, tmp_path: Path, pattern: str, names: list[str]) -> None:
    folder = lay(tmp_path / "data", dict.fromkeys(
        ("a.jsonl", "day=1/b.jsonl", "day=1/deep/d.jsonl", "day=2/c.jsonl.gz", "day=1/_x.jsonl"), row("x")))
    assert names_of(settings, folder / pattern) == names


@pytest.mark.parametrize(("pattern", "words"), [
    ("*.json", "no file fits the pattern.*There is nothing.|no file fits the pattern.* there are a.jsonl, day=1."),
    ("day=3/*.jsonl", "begins in a folder that does not exist"), ("a**", r"write day=\*/\*\*/\*.jsonl")])
def test_a_pattern_that_finds_nothing_is_explained(
    settings: Settings, tmp_path: Path, pattern: str, words: str,
) -> None:
    folder = lay(tmp_path / "data", {"a.jsonl": row("x"), "day=1/b.jsonl": row("x")})
    with pytest.raises(DataError, match=words):
        find_shards(settings, str(folder / pattern))


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(settings: Settings, store: Store, tmp_path: Path) -> None:
    lay(tmp_path, {"data[1].jsonl": row("this"), "data1.jsonl": row("not this")})
    assert data_of(settings, store, tmp_path / "data[1].jsonl") == row("this")


def test_a_name_that_is_not_utf8_can_be_read_in_what_is_said_of_it(settings: Settings, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / os.fsdecode(b"n\xe9.txt")).write_text("")
    assert [one.name for one in find_shards(settings, str(tmp_path), said.append)] == ["a.jsonl"]
    assert said == [f"Left out beside the data of {tmp_path}: there is n\\udce9.txt."]
    (tmp_path / os.fsdecode(b"n\xe9.jsonl")).write_text("{}")
    with pytest.raises(DataError, match=r"n\\udce9.jsonl\": its path is not UTF-8"):
        find_shards(settings, str(tmp_path))


def test_links_to_files_count_and_broken_ones_are_an_error(settings: Settings, store: Store, tmp_path: Path) -> None:
    folder = lay(tmp_path / "data", {"a.jsonl": row("a")})
    lay(tmp_path, {"elsewhere": row("b")})
    (folder / "b.jsonl").symlink_to(tmp_path / "elsewhere")
    assert data_of(settings, store, folder) == row("a") + row("b")
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(DataError, match=r"b.jsonl.*no such file"):
        find_shards(settings, str(folder))


def test_line_breaks_are_added_between_files_and_byte_order_marks_removed(
    settings: Settings, store: Store, tmp_path: Path,
) -> None:
    first, last = BOM + row("a")[:-1], BOM + row("b")[:-1]
    lay(tmp_path / "d", {"1.jsonl": first, "2.jsonl": b"", "3.jsonl": BOM, "4.jsonl": last})
    assert data_of(settings, store, tmp_path / "d") == row("a") + row("b")[:-1]
    dataset = ingest(settings, store, str(tmp_path / "d"))
    assert [(one.name, one.line, one.lines) for one in shards_in(store, dataset.folder)] == [
        ("1.jsonl", 1, 1), ("2.jsonl", 2, 0), ("3.jsonl", 2, 0), ("4.jsonl", 2, 1)]


@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 3), (5, 5, 9), (10,)])
def test_the_same_rows_are_the_same_data_however_they_are_cut(
    settings: Settings, store: Store, tmp_path: Path, cuts: tuple[int, ...],
) -> None:
    rows = [row(f"row {n}") for n in range(10)]
    edges = [0, *cuts, len(rows)]
    lay(tmp_path / "d", {f"{n:03}.jsonl": b"".join(rows[a:b]) for n, (a, b) in enumerate(pairwise(edges))})
    whole = lay(tmp_path, {"whole.jsonl": b"".join(rows)}) / "whole.jsonl"
    joined, alone = ingest(settings, store, str(tmp_path / "d")), ingest(settings, store, str(whole))
    assert joined.sha256 == alone.sha256 == hashlib.sha256(b"".join(rows)).hexdigest()
    assert (joined.folder == alone.folder) == (not cuts)
    split = validate(store, alone, None, 2)
    assert validate(store, joined, None, 2) == split


def test_shards_json_describes_each_file(settings: Settings, store: Store, tmp_path: Path) -> None:
    contents = {"a.jsonl": row("1") + row("2"), "day=2/b.jsonl": row("3")}
    dataset = ingest(settings, store, str(lay(tmp_path / "d", contents)))
    listed = json.loads((store.fetch(dataset.folder) / "shards.json").read_text())
    assert listed == [
        {"name": name, "line": line, "lines": content.count(b"\n"), "bytes": len(content),
         "sha256": hashlib.sha256(content).hexdigest()}
        for line, (name, content) in zip((1, 3), contents.items(), strict=True)]
    assert dataset.shards == 2


def test_a_bad_line_is_named_by_its_file_and_its_line_there(settings: Settings, store: Store, tmp_path: Path) -> None:
    folder = lay(tmp_path / "d", {"day=1/a.jsonl": row("1") * 40, "day=2/b.jsonl": row("2") * 16 + b'{"text": 17}\n'})
    with pytest.raises(DataError) as caught:
        validate(store, ingest(settings, store, str(folder)), None, 5)
    assert str(caught.value).startswith('day=2/b.jsonl line 17: "text" is a number (17)')


def test_every_line_is_found_in_its_file(settings: Settings, store: Store, tmp_path: Path) -> None:
    sizes = {"a.jsonl": 3, "b.jsonl": 0, "c.jsonl": 1, "d.jsonl": 2}
    folder = lay(tmp_path / "d", {name: row("x") * count for name, count in sizes.items()})
    dataset = ingest(settings, store, str(folder))
    places = places_of(store.fetch(dataset.folder), dataset)
    expected = [f"{name} line {number}" for name, count in sizes.items() for number in range(1, count + 1)]
    assert [places.of(number) for number in range(1, 7)] == expected


@pytest.mark.parametrize(("content", "words"), [
    (b"[1]", r"^b.jsonl: the file is one JSON array"),
    (gzip.compress(b"x" * 999, mtime=0)[:20], "^b.jsonl: the gzip file")], ids=["array", "gzip"])
def test_a_file_among_others_that_cannot_be_used_is_named(
    settings: Settings, store: Store, tmp_path: Path, content: bytes, words: str,
) -> None:
    with pytest.raises(DataError, match=words):
        ingest(settings, store, str(lay(tmp_path / "d", {"a.jsonl": row("x"), "b.jsonl": content})))
    assert store.names("datasets") == []


def test_empty_files_alone_are_no_data(settings: Settings, store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 2 files are empty"):
        ingest(settings, store, str(lay(tmp_path / "d", {"a.jsonl": b"", "b.jsonl": b""})))


def test_the_size_limit_is_for_all_files_together(store: Store, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", max_data_bytes=2 * len(row("a")))
    folder = lay(tmp_path / "d", {"a.jsonl": row("a"), "b.jsonl": row("b")})
    assert ingest(settings, store, str(folder)).bytes == settings.max_data_bytes
    lay(folder, {"c.jsonl": b"{"})
    with pytest.raises(DataError, match="after unpacking"):
        ingest(settings, store, str(folder))


def test_objects_of_s3_are_joined(remote: tuple[Settings, str]) -> None:
    settings, prefix = remote
    store = Store(settings)
    for name in ("day=1/a.jsonl", "day=2/b.jsonl.gz", "day=2/_SUCCESS", "top.jsonl"):
        put(settings, f"{prefix}/{name}", gzip.compress(row(name)) if name.endswith("gz") else row(name))
    everything = row("day=1/a.jsonl") + row("day=2/b.jsonl.gz") + row("top.jsonl")
    assert data_of(settings, store, prefix) == data_of(settings, store, f"{prefix}/") == everything
    assert data_of(settings, store, f"{prefix}/*.jsonl") == row("top.jsonl")
    assert data_of(settings, store, f"{prefix}/day=*/**.jsonl") == row("day=1/a.jsonl")
    assert names_of(settings, f"{prefix}/**") == ["day=1/a.jsonl", "day=2/b.jsonl.gz", "top.jsonl"]
    with pytest.raises(DataError, match=r"no file fits the pattern.* there are day=1, day=2, top.jsonl"):
        find_shards(settings, f"{prefix}/*.json")


def test_a_missing_prefix_and_a_missing_bucket_are_the_users_to_mend(remote: tuple[Settings, str]) -> None:
    settings, prefix = remote
    for source in (f"{prefix}/none.jsonl", f"{prefix}/none/", f"{prefix}/none/*.jsonl", "s3://nobody/x/", "s3://*/x"):
        with pytest.raises(UserError, match=r"no such object|does not exist|bucket's name"):
            find_shards(settings, source)


def test_a_mark_changes_with_the_content(remote: tuple[Settings, str], tmp_path: Path) -> None:
    settings, prefix = remote
    put(settings, f"{prefix}/a.jsonl", row("1"))
    for source, write in ((tmp_path / "d.jsonl", None), (f"{prefix}/a.jsonl", put)):
        marks = set()
        for text in ("1", "2", "1"):
            if write:
                write(settings, str(source), row(text))
            else:
                (tmp_path / "d.jsonl").write_bytes(row(text))
                os.utime(tmp_path / "d.jsonl", ns=(int(text), int(text)))
            (one,) = find_shards(settings, str(source))
            assert one.bytes == len(row(text))
            marks.add(one.mark)
        assert len(marks) == 2
    (alone,) = find_shards(settings, f"{prefix}/a.jsonl")
    (listed,) = find_shards(settings, f"{prefix}/")
    assert (alone.mark, alone.bytes) == (listed.mark, listed.bytes)
