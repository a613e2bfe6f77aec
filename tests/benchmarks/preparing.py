"""`make bench-data`: how fast data is brought in, judged and packed, and in how much memory.

Ratios are of medians over interleaved rounds, each contender in a process of its own: ingest against
`s3fs.open().read()` of the same object, as large as the smallest of the sizes; and on a part of the rows validate
against `orjson.loads` of the same lines (both on one core), tokenise and pack against the tokenizer's `encode_batch`
with as many threads, validate and pack together against what datasets and TRL do to prepare the same file. Judging
alone, without the look at copies and doubtful rows, is compared with orjson too. Memory is the largest sum of
proportional set sizes (PSS) of a step's processes, at several sizes of data, of which no two rows are alike, and of
SAMSum so many times over (--copies: 200 are 2 GB, in which nearly all are).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil

from infra.settings import Settings
from tests.benchmarks.data import needs_shared, random_llama, rows_of
from tests.benchmarks.report import finish, interleaved, medians, say
from tests.conftest import BUCKET, S3_KEY, S3_SECRET, S3Server

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "max_position_embeddings": 1024}
LENGTH = 1024
MEMORY_MIB = 1024
FLAT = 1.25
"""Memory at the largest size over memory at the smallest one, which is at most half as large."""
POLL_S = 0.1
HOME = "home"
"""Folder of one contender at a time."""
STEPS = ("ingest", "validate", "pack")


def main() -> None:
    """Make the data, measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2], help="gigabytes at which memory is read")
    parser.add_argument("--copies", type=int, default=200, help="also SAMSum so many times over; 0: not")
    parser.add_argument("--part", type=float, default=0.2, help="gigabytes on which speeds are compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="where to draw memory over size (SVG)")
    options = parser.parse_args()
    sizes = sorted(options.sizes)
    if len(sizes) < 2 or sizes[0] > sizes[-1] / 2:
        parser.error("--sizes needs two or more, the largest at least twice as large as the smallest")
    needs_shared()
    with tempfile.TemporaryDirectory(prefix="anneal-bench-") as temporary:
        folder = Path(temporary)
        random_llama(folder / "tiny", TINY)
        speeds = {**compare_ingest(folder, sizes[0], options.rounds), **compare(folder, options.part, options.rounds)}
        memory = {size: peaks(folder, f"{size} GB", rows(size)) for size in sizes}
        copied = peaks(folder, f"SAMSum x {options.copies}", copies(options.copies)) if options.copies else {}
    if options.plot:
        draw(memory, options.plot)
    largest = max(max(peak.values()) for peak in [*memory.values(), *([copied] if copied else [])])
    first, last = memory[sizes[0]], memory[sizes[-1]]
    goals = {
        f"ingest is at least 0.8 x s3fs (is {speeds['ratio_s3fs']:.2f})": speeds["ratio_s3fs"] >= 0.8,
        f"validate is at least 0.5 x orjson (is {speeds['ratio_orjson']:.3f})": speeds["ratio_orjson"] >= 0.5,
        f"pack is at least 0.8 x encode_batch (is {speeds['ratio_encode_batch']:.2f})":
            speeds["ratio_encode_batch"] >= 0.8,
        f"faster than datasets + TRL (is {speeds['ratio_trl']:.1f})": speeds["ratio_trl"] > 1,
        f"with less memory than they (is {speeds['ratio_trl_memory']:.2f})": speeds["ratio_trl_memory"] < 1,
        f"with less disk than they (is {speeds['ratio_trl_disk']:.2f})": speeds["ratio_trl_disk"] < 1,
        f"every step stays below {MEMORY_MIB} MiB (is {largest:.0f})": largest < MEMORY_MIB,
        f"memory is flat: at most {FLAT} x from {sizes[0]} to {sizes[-1]} GB (is {last} after {first})":
            all(last[step] <= FLAT * first[step] for step in STEPS)}
    finish({**speeds, "peak_mib": {str(size): peak for size, peak in memory.items()}, "peak_mib_of_copies": copied},
           goals,
           ("trl", "datasets", "tokenizers", "orjson", "s3fs"))


def rows(gigabytes: float) -> Iterator[bytes]:
    """SAMSum's rows over and over, each with a number of its own in front of its dialogue."""
    left = int(gigabytes * 1e9)
    for number, line in enumerate(cycle(samsum_rows())):
        row = line.replace(b"\\n\\n", b"\\n\\n%d " % number, 1)
        yield row
        left -= len(row)
        if left <= 0:
            return


def copies(count: int) -> Iterator[bytes]:
    """SAMSum's rows so many times over."""
    for _ in range(count):
        yield from samsum_rows()


@cache
def samsum_rows() -> tuple[bytes, ...]:
    """Of the training split."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple((rows_of(Path(folder), train="train") / "train.jsonl").read_bytes().splitlines(keepends=True))


def compare_ingest(folder: Path, gigabytes: float, rounds: int) -> dict[str, Any]:
    """By themselves: what the others leave on the disk slows the next one."""
    server_folder = folder / "s3"
    server_folder.mkdir()
    server = S3Server(server_folder)
    try:
        size = written(server_folder / BUCKET / "rows.jsonl", rows(gigabytes))
        source = {"source": f"s3://{BUCKET}/rows.jsonl"}
        environment = {"ANNEAL_S3_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": S3_KEY,
                       "AWS_SECRET_ACCESS_KEY": S3_SECRET}
        times = medians(interleaved({
            "ingest": lambda: alone(folder, "ingest", source, environment)[0],
            "s3fs": lambda: alone(folder, "s3fs", source, environment)[0]}, rounds))
    finally:
        server.kill()
        shutil.rmtree(server_folder)
    return {"mb_of_object": size, "mb_per_s_of_object": {name: size / seconds for name, seconds in times.items()},
            "ratio_s3fs": times["s3fs"] / times["ingest"]}


def compare(folder: Path, gigabytes: float, rounds: int) -> dict[str, Any]:
    """Validate and pack: speeds, and the ratios of ours to the peers'."""
    path = folder / "rows.jsonl"
    size = written(path, rows(gigabytes))
    threads = Settings().threads_for(1)
    peak: dict[str, float] = {}
    disk: dict[str, float] = {}

    def run(name: str, **arguments: Any) -> float:
        environment = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": str(name == "encode_batch").lower()}
        if name in ("pack", "trl"):
            arguments |= {"out": str(folder / HOME), "length": LENGTH, "processes": threads}
        seconds, peak[name] = alone(
            folder, name.removesuffix("_together"), {"rows": str(path), **arguments}, environment)
        disk[name] = sum(file.stat().st_size for file in (folder / HOME).rglob("*") if not file.is_symlink()) / 1e6
        return seconds

    tokenizer = str(folder / "tiny")
    times = medians(interleaved({
        "judge": lambda: run("judge"), "validate": lambda: run("validate", processes=1),
        "validate_together": lambda: run("validate_together", processes=threads), "orjson": lambda: run("orjson"),
        "pack": lambda: run("pack", tokenizer=tokenizer),
        "encode_batch": lambda: run("encode_batch", tokenizer=tokenizer),
        "trl": lambda: run("trl", model=tokenizer)}, rounds))
    path.unlink()
    ours_disk = disk["validate"] + disk["pack"]  # with the store's copy of the data, which the peers do not make
    return {
        "mb": size, "processes": threads, "mb_per_s": {name: size / seconds for name, seconds in times.items()},
        "peak_mib_of_part": peak, "disk_mb": {"anneal": ours_disk, "trl": disk["trl"]},
        "ratio_orjson": times["orjson"] / times["validate"],
        "ratio_orjson_judging": times["orjson"] / times["judge"],
        "ratio_encode_batch": times["encode_batch"] / times["pack"],
        "ratio_trl": times["trl"] / (times["validate_together"] + times["pack"]),
        "ratio_trl_memory": max(peak["validate_together"], peak["pack"]) / peak["trl"],
        "ratio_trl_disk": ours_disk / disk["trl"]}


def written(path: Path, data: Iterable[bytes]) -> float:
    """Write a file; returns its MB."""
    with path.open("wb") as file:
        file.writelines(data)
    say(f"{path.stat().st_size / 1e6:.0f} MB of rows")
    return path.stat().st_size / 1e6


def alone(folder: Path, step: str, arguments: dict[str, Any], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of one contender in an empty home, which it leaves behind, and the peak of its memory in MiB."""
    shutil.rmtree(folder / HOME, ignore_errors=True)
    (folder / HOME).mkdir()
    return measured(step, arguments, {**environment, "ANNEAL_HOME": str(folder / HOME)})


def peaks(folder: Path, name: str, data: Iterable[bytes]) -> dict[str, float]:
    """MiB that each step takes with these rows."""
    path, home = folder / "rows.jsonl", folder / HOME
    written(path, data)
    found = {}
    arguments: dict[str, dict[str, Any]] = {
        "ingest": {"source": str(path)}, "validate": {"rows": str(path), "processes": Settings().threads_for(1)},
        "pack": {"rows": str(path), "tokenizer": str(folder / "tiny"), "out": str(home), "length": LENGTH,
                 "processes": Settings().threads_for(1)}}
    for step in STEPS:
        seconds, found[step] = alone(folder, step, arguments[step], {"TOKENIZERS_PARALLELISM": "false"})
        say(f"  {name}  {step:<10} {found[step]:.0f} MiB at most, {seconds:.0f} s")
    path.unlink()
    shutil.rmtree(home)
    return found


def measured(step: str, arguments: dict[str, Any], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of the work, and the peak of the memory of all its processes in MiB."""
    command = [sys.executable, "-m", "tests.benchmarks.one_step", step, json.dumps(arguments)]
    os.sync()  # what the one before has left for the disk is not this one's
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile("w+") as output:
        child = psutil.Popen(command, stdout=output, stderr=errors, env={**os.environ, **environment})
        peak = 0.0
        try:
            while child.poll() is None:
                peak = max(peak, memory_mib(child))
                time.sleep(POLL_S)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if child.returncode:
            errors.seek(0)
            raise SystemExit(f"{step} ended with exit code {child.returncode}:\n{errors.read().decode()[-3000:]}")
        output.seek(0)
        return json.loads(output.read().splitlines()[-1])["seconds"], peak


def memory_mib(process: psutil.Process) -> float:
    """Proportional set sizes of a process and its children."""
    total = 0
    for one in [process, *islice(process.children(recursive=True), 100)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue
    return total / (1 << 20)


def draw(memory: dict[float, dict[str, float]], path: Path) -> None:
    """Memory over size, a line a step."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    for step in STEPS:
        axes.plot(list(memory), [peak[step] for peak in memory.values()], marker="o", label=step)
    axes.axhline(MEMORY_MIB, color="grey", linestyle="--")
    axes.set(xlabel="GB of rows", ylabel="peak memory in MiB (PSS of all processes)", ylim=(0, None))
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
