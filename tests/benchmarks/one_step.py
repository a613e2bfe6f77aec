"""One way to bring in, judge or pack a file, in a process of its own; the last line says how long it took.

Run by tests/benchmarks/preparing.py: python -m tests.benchmarks.one_step NAME '{"rows": ..., ...}'
Seconds are those of the work itself, without imports.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

Work = Callable[[], Any]
TEXTS = 1000
"""That encode_batch gets at a time."""


def ingest(source: str) -> Work:
    """Anneal's ingest step: reads, hashes and stores."""
    import s3fs  # noqa: F401  # fsspec imports it at the first address; imports do not count

    from infra.settings import Settings
    from infra.storage.store import Store
    from tasks.ingest import ingest

    settings = Settings()
    return lambda: ingest(settings, Store(settings), source)


def s3fs(source: str) -> Work:
    """`s3fs.open().read()`."""
    from infra.settings import Settings
    from infra.storage.store import filesystem

    files = filesystem(source, Settings())

    def read() -> None:
        with files.open(source.removeprefix("s3://"), "rb") as file:
            file.read()

    return read


def judge(rows: str) -> Work:
    """The first pass alone: every line is judged."""
    from tasks.data.scan import survey
    from tasks.data.sources import Places

    return lambda: survey(Path(rows), Places("rows"))


def validate(rows: str, processes: int) -> Work:
    """Anneal's validate step on data that is in the store: judges, compares, writes the split."""
    from infra.settings import Settings
    from infra.storage.store import Store
    from tasks.ingest import ingest
    from tasks.validate import validate

    settings = Settings()
    store = Store(settings)
    data = ingest(settings, store, rows)
    return lambda: validate(store, data, None, 50, processes=processes)


def orjson(rows: str) -> Work:
    """`orjson.loads` of every line."""
    from orjson import loads

    def read() -> None:
        with Path(rows).open("rb") as file:
            for line in file:
                loads(line)

    return read


def pack(rows: str, tokenizer: str, out: str, processes: int, length: int) -> Work:
    """Anneal's tokenising and packing of a clean file."""
    from tasks.distributed.contract import EncodeJob
    from tasks.distributed.encode import encode

    folder = Path(out) / "rows"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").symlink_to(rows)
    with Path(rows).open("rb") as lines:
        (folder / "validation.jsonl").write_bytes(b"".join(islice(lines, 50)))
    job = EncodeJob(out=out, rows=str(folder), tokenizer=tokenizer, kind="prompt", separator="", chunk_tokens=length,
                    pack=True, wrap=False, train_on_prompt=False, processes=processes)
    return lambda: encode(job)


def encode_batch(rows: str, tokenizer: str) -> Work:
    """The tokenizer's own batches over the same texts; its threads are set by the environment."""
    from tasks.distributed.examples import read_rows
    from tasks.distributed.model import load_tokenizer

    backend = load_tokenizer(Path(tokenizer)).backend_tokenizer
    texts = list(chain.from_iterable((row["prompt"], row["completion"]) for row in read_rows(Path(rows))))

    def encode() -> None:
        for start in range(0, len(texts), TEXTS):
            backend.encode_batch(texts[start : start + TEXTS], add_special_tokens=False)

    return encode


def trl(rows: str, model: str, out: str, processes: int, length: int) -> Work:
    """What TRL's SFTTrainer does with the file before it trains: datasets reads it, TRL tokenises and packs."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=out, max_length=length, packing=True, completion_only_loss=True, dataset_num_proc=processes,
        use_cpu=True, report_to=[], bf16=False)
    start, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)

    def prepare() -> None:
        data = load_dataset("json", data_files=rows, split="train", cache_dir=f"{out}/datasets")
        SFTTrainer(start, config, train_dataset=data, processing_class=tokenizer)

    return prepare


STEPS: dict[str, Callable[..., Work]] = {
    step.__name__: step for step in (ingest, s3fs, judge, validate, orjson, pack, encode_batch, trl)}


def main() -> None:
    """Prepare, work, and print {"seconds", "cpu_seconds"}."""
    work = STEPS[sys.argv[1]](**json.loads(sys.argv[2]))
    began, cpu = time.perf_counter(), time.process_time()
    work()
    print(json.dumps({"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
