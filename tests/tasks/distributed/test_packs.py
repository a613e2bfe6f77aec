"""tasks/distributed/{encode,examples,packs}.py: a file is tokenised in parts, by any number of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from typing import Any

import numpy as np
import pytest

from infra.errors import DataError, Transient
from tasks.distributed import encode as encoding
from tasks.distributed import packs
from tasks.distributed.bin_packing import best_fit
from tasks.distributed.codec import Codec
from tasks.distributed.contract import RESULT, EncodeJob
from tasks.distributed.encode import encode
from tasks.distributed.examples import batches_of, flatten
from tasks.distributed.model import load_tokenizer
from tasks.distributed.packs import PackedRows, write_index, write_part
from tasks.launcher.jobs import CONTRACT_FILES
from tests.conftest import ROOT

ROWS = [{"prompt": f"Question {i}: caf\u00e9 \u2028 {'so ' * (i % 7)}", "completion": f" answer {i}" * (i % 4 + 1)}
        for i in range(200)]
READ = """
import json, pathlib, re, sys
from tasks.distributed.packs import PackedRows

def status():
    text = pathlib.Path("/proc/self/status").read_text()
    return [int(re.search(name + r":\\s+(\\d+)", text)[1]) for name in ("RssAnon", "RssFile")]

packs = PackedRows(pathlib.Path(sys.argv[1]))
before = status()
for number in range(packs.segments):
    ids, labels = packs.segment(number)
    ids.max(), labels.any(), labels.sum()
print(json.dumps([now - was for now, was in zip(status(), before)]))
"""


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few rows, batches of fewer."""
    monkeypatch.setattr(encoding, "LEAST_PART_BYTES", 1000)
    monkeypatch.setattr(encoding, "MOST_PART_BYTES", 1000)
    monkeypatch.setattr("tasks.distributed.examples.BATCH_BYTES", 300)


def job_of(folder: Path, tokenizer: Path, rows: list[dict[str, Any]] = ROWS, **values: Any) -> EncodeJob:
    """A job over the rows, the same for both splits."""
    source, out = folder / "rows", folder / "out"
    source.mkdir(parents=True)
    for split in ("train", "validation"):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (source / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        (source / f"{split}.places").write_text("".join(f"d.jsonl line {3 * i}\n" for i in range(len(rows))))
    values = {"kind": "prompt", "separator": "", "chunk_tokens": 256, "pack": True, "wrap": False,
              "train_on_prompt": False, **values}
    return EncodeJob(out=str(out), rows=str(source), tokenizer=str(tokenizer), **values)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """{file: content} of what pack keeps; result.json goes into its record."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and (path.name not in CONTRACT_FILES or path.name == RESULT)}


@pytest.mark.usefixtures("small_parts")
def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path, stories: Path) -> None:
    found = []
    for processes in (1, 2, 5):
        job = job_of(tmp_path / str(processes), stories, processes=processes)
        assert encode(job) == 0
        found.append(bytes_of(Path(job.out)))
    assert found[0] == found[1] == found[2]
    assert sum("tokens-" in name for name in found[0]) > 30 and RESULT in found[0]


@pytest.mark.usefixtures("small_parts")
def test_parts_hold_every_example_once_in_the_order_of_the_data(tmp_path: Path, stories: Path) -> None:
    job = job_of(tmp_path, stories, processes=2)
    encode(job)
    packs, codec = PackedRows(Path(job.out) / "train"), Codec(load_tokenizer(stories))
    wanted = [flatten(codec.row("prompt", row, "", train_on_prompt=False)) for row in ROWS]
    assert packs.segments == len(ROWS)
    for number, (ids, labels) in enumerate(wanted):
        assert [part.tolist() for part in packs.segment(number)] == [ids.tolist(), labels.tolist()]
    rows = [packs.row(number) for number in range(len(packs))]
    assert sorted(ids.tolist() for row in rows for ids, _ in row) == sorted(ids.tolist() for ids, _ in wanted)
    assert packs.tokens_in.tolist() == [sum(len(ids) for ids, _ in row) for row in rows]
    assert packs.labels_in.tolist() == [int(sum(marks.sum() for _, marks in row)) for row in rows]
    counts = json.loads((Path(job.out) / RESULT).read_text())["train"]
    assert (counts["examples"], counts["rows"]) == (len(ROWS), len(packs))
    assert (counts["tokens"], counts["labelled"]) == (packs.tokens_in.sum(), packs.labels_in.sum())
    assert counts["longest"] == max(len(ids) for ids, _ in wanted) and counts["truncated"] == counts["split"] == 0


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 10, 16, 17, 1000])
def test_a_line_belongs_to_the_part_in_which_it_begins(tmp_path: Path, size: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n{"b":22}\n{"c":3}\n{"d":"\xe2\x80\xa8"}')
    parts = [batch for start in range(0, path.stat().st_size, size) for batch in batches_of(path, start, size)]
    assert [(at, row) for batch in parts for at, row in batch.items()] == [
        (0, {"a": 1}), (8, {"b": 22}), (17, {"c": 3}), (25, {"d": "\u2028"})]


def test_ranks_share_what_is_on_disk(tmp_path: Path, stories: Path) -> None:
    """Their rows are views of the file's pages, which the kernel has once for all of them."""
    job = job_of(tmp_path, stories)
    assert encode(job) == 0
    packs, maps = PackedRows(tmp_path / "out" / "train"), Path("/proc/self/maps")
    ids, labels = packs.segment(0)
    assert isinstance(ids, np.memmap) and isinstance(labels, np.memmap)
    assert all(f"{tmp_path}/out/train/{name}-00000.npy" in maps.read_text() for name in ("tokens", "labels"))


def test_processes_that_read_all_of_it_have_it_in_memory_once(tmp_path: Path) -> None:
    """What a process holds for itself does not grow by what it reads; what it maps does."""
    rng, length, count = np.random.default_rng(0), 1 << 16, 256
    part = write_part(tmp_path, 0, [rng.integers(0, 500, length, np.int32) for _ in range(count)],
                      [np.ones(length, bool)] * count, vocabulary=512)
    write_index(tmp_path, [part], best_fit(np.full(count, length), length))
    readers = [subprocess.Popen([sys.executable, "-c", READ, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
               for _ in range(3)]
    told = [json.loads(reader.communicate(timeout=100)[0]) for reader in readers]
    for own, mapped in told:
        assert mapped > 0.9 * count * length * 3 / 1024 and own < mapped / 8, "KiB; two bytes a token, one a label"


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("processes", [1, 3])
def test_bad_rows_are_named_by_their_lines(tmp_path: Path, stories: Path, processes: int) -> None:
    short = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    late = {"messages": [{"role": "system", "content": "a long story " * 20}, *short["messages"]]}
    rows = [late if i in (133, 171) else short for i in range(200)]
    job = job_of(tmp_path, stories, rows, kind="messages", chunk_tokens=20, processes=processes)
    with pytest.raises(DataError, match=r"^d.jsonl line 399: nothing of it is left to learn in 20 tokens.* 1 more: "
                                        r"d.jsonl line 513\. Raise"):
        encode(job)


@pytest.mark.usefixtures("small_parts")
def test_a_killed_process_is_no_fault_of_the_data(
    tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    ourselves = os.getpid()

    def die(*_: object, **__: object) -> None:
        assert os.getpid() != ourselves
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(encoding, "write_part", die)
    with pytest.raises(Transient, match=r"train: a process that tokenised was killed"):
        encode(job_of(tmp_path, stories, processes=2))


@pytest.mark.parametrize(("vocabulary", "kind"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_token_ids_take_as_many_bytes_as_the_vocabulary_needs(tmp_path: Path, vocabulary: int, kind: type) -> None:
    ids = [np.array([vocabulary - 1, 3], np.int32), np.array([0], np.int32)]
    labels = [np.array([False, True]), np.array([True])]
    write_index(tmp_path, [write_part(tmp_path, 0, ids, labels, vocabulary=vocabulary)], best_fit(np.array([2, 1]), 3))
    found = PackedRows(tmp_path)
    assert np.load(tmp_path / "tokens-00000.npy").dtype == kind
    assert [(part.tolist(), marks.tolist()) for part, marks in found.row(0)] == [
        ([vocabulary - 1, 3], [False, True]), ([0], [True])]


def test_a_token_that_the_vocabulary_does_not_know_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token id 70000 of a vocabulary of 500"):
        write_part(tmp_path, 0, [np.array([70_000], np.int32)], [np.array([True])], vocabulary=500)


def test_the_vocabulary_counts_gaps_between_ids(stories: Path) -> None:
    tokenizer = load_tokenizer(stories)
    vocabulary = Codec(tokenizer).vocabulary
    tokenizer.get_vocab = lambda: {"a": 1, "b": 70_000}
    assert vocabulary == 512 and Codec(tokenizer).vocabulary == 70_001


def test_more_parts_than_a_process_may_open_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = getrlimit(RLIMIT_NOFILE)
    monkeypatch.setattr(packs, "OPEN_PARTS", 20)
    parts = [write_part(tmp_path, i, [np.array([i], np.int32)], [np.array([True])], vocabulary=500) for i in range(400)]
    write_index(tmp_path, parts, best_fit(np.ones(400, np.int64), 1))
    try:
        used = max(int(name) for name in os.listdir("/proc/self/fd"))  # by the tests before this one
        setrlimit(RLIMIT_NOFILE, (used + 100, hard))
        rows = PackedRows(tmp_path)
        assert [int(ids[0]) for number in range(400) for ids, _ in rows.row(number)] == list(range(400))
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))


def test_a_tokenizer_that_was_published_with_a_length_cuts_nothing(stories: Path) -> None:
    tokenizer = load_tokenizer(stories)
    wanted = Codec(tokenizer).prompt("a long story about a fox")
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    assert Codec(tokenizer).prompt("a long story about a fox") == wanted and len(wanted) > 5


def test_no_rows_are_no_parts(tmp_path: Path, stories: Path) -> None:
    job = job_of(tmp_path, stories)
    (Path(job.rows) / "validation.jsonl").write_bytes(b"")
    encode(job)
    packs = PackedRows(Path(job.out) / "validation")
    assert (len(packs), packs.segments, len(packs.tokens_in)) == (0, 0, 0)
