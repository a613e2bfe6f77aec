"""tasks/news.py: what is new among the files of a data source."""

from __future__ import annotations

import json
from pathlib import Path

from infra.models.registry import Origin
from infra.settings import Settings
from infra.storage.store import Store
from tasks.ingest import ingest
from tasks.news import shard_news
from tasks.validate import validate


def test_new_files_and_those_that_are_gone_are_counted(settings: Settings, store: Store, tmp_path: Path) -> None:
    def write(name: str) -> None:
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_text("".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(3)))

    def learned() -> Origin:
        return Origin(3, validate(store, ingest(settings, store, str(tmp_path / "d")), None, 1).digest, True)

    def news(newest: Origin | None) -> str:
        return shard_news(store, validate(store, ingest(settings, store, str(tmp_path / "d")), None, 1), newest)

    write("a.jsonl")
    alone = learned()
    assert news(alone) == ""
    write("b.jsonl")
    assert news(None) == "2 shards"
    assert news(alone) == "2 shards, 1 new and 0 gone since version 3"
    two = learned()
    assert news(two) == "2 shards, 0 new and 0 gone since version 3"
    for name in ("c.jsonl", "d.jsonl"):
        write(name)
    (tmp_path / "d" / "a.jsonl").unlink()
    assert news(two) == "3 shards, 2 new and 1 gone since version 3"
    assert news(Origin(3, "0" * 64, True)) == "3 shards"
