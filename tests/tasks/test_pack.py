"""tasks/pack.py with a real tokenizer: what is heard while it works: pytest tests/tasks/test_pack.py"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from infra.models.base_models import find_base
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.ingest import ingest
from tasks.pack import find_pack, notes_of, pack
from tasks.validate import validate
from tests.support.past import Past


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_how_far_tokenising_is_can_be_heard(
    store: Store, tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch, threads: int,
) -> None:
    settings, words = Settings(home=tmp_path / "home", threads=threads), "Once upon a time there was a little girl. "
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"{number} {words * 25}"}) + "\n" for number in range(6000)))
    spec = TrainingSpec(train_data=str(data), base_model=str(stories), destination="acme/told", chunk_size=512)
    split, base = validate(store, ingest(settings, store, spec.train_data), None, 10), find_base(settings, str(stories))
    monkeypatch.setattr("infra.progress.TELL_EVERY_S", 0.0)
    said: list[str] = []
    packed = pack(settings, store, split, base, spec, say=said.append)
    assert find_pack(store, split, base, spec) == packed and packed.train.examples == 5990
    done = [int(found[1]) for line in said if (found := re.fullmatch(r"tokenised: (\d) of 6 MB \(\d+%\)", line))]
    assert len(done) == len(said) > 0 and done == sorted(done) and done[-1] <= 6
    assert sorted(path.suffix for path in (store.fetch(packed.folder)).glob("*.jsonl")) == [], "its events are not kept"


def test_what_nobody_asked_for_is_told(past: Past) -> None:
    spec = dataclasses.replace(past.spec, chunk_size=2048)
    train = dataclasses.replace(past.pack.train, truncated=9, examples=100, lost=17)
    validation = dataclasses.replace(past.pack.validation, truncated=0)
    lowered, cut = notes_of(dataclasses.replace(past.pack, chunk_tokens=512, train=train, validation=validation), spec)
    assert lowered == "chunk_size is lowered from 2048 to 512 tokens, the longest context of the base model"
    assert cut == "9 of 100 training rows (9%) are longer than 512 tokens and were cut; 17 tokens are lost"
    asked = dataclasses.replace(spec, chunk_size=512)
    (cut,) = notes_of(dataclasses.replace(past.pack, chunk_tokens=512, train=train, validation=validation), asked)
    assert cut.endswith("A larger chunk_size keeps them")
