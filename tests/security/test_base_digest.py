"""The base that is loaded is the one that a version names.

Run: pytest tests/security/test_base_digest.py

The predictor is a real one on a real port. Each test gives it another base than the one that its versions were
trained on, or one from a place that it was not told to trust.

Tests infra/models/base_folders.py too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.predictor import loading
from infra.errors import BaseModelError
from infra.models.base_folders import digest_of_base, note_base
from infra.records import Base, Version
from infra.settings import Settings
from tasks.deploy import switch
from tasks.distributed import model as models
from tests.deployments.predictor.conftest import (
    BASE_DIGEST,
    STORIES,
    Predictor,
    expected,
    needs_stories,
    running,
    text_of,
    versions,
)

__all__ = ["expected", "versions"]  # fixtures
pytestmark = needs_stories
WEIGHTS = "model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the base, below a folder that the predictor trusts."""
    return writable(shutil.copytree(STORIES, tmp_path / "models" / "base"))


@pytest.fixture
def other(base: Path) -> Path:
    """Another model of the same shape beside it."""
    folder = writable(shutil.copytree(base, base.parent / "other"))
    torch.manual_seed(1)
    noise = {name: torch.randn_like(weight) for name, weight in load_file(folder / WEIGHTS).items()}
    save_file(noise, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture
def predictor(tmp_path: Path, base: Path, versions: Path) -> Iterator[Predictor]:
    """It serves nothing yet."""
    with running(tmp_path / "home", versions, base_folders=str(base.parent)) as found:
        yield found


def writable(folder: str | Path) -> Path:
    for path in [Path(folder), *Path(folder).iterdir()]:
        path.chmod(0o755)
    return Path(folder)


def refused(answer: httpx.Response, words: str) -> bool:
    return answer.status_code == 422 and words in answer.json()["error"]


def flip(path: Path) -> None:
    """Change one byte in the middle; size and mtime stay."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_another_base_with_the_right_digest_is_refused_and_the_next_version_gets_the_right_one(
    predictor: Predictor, base: Path, other: Path, expected: dict[str, str],
) -> None:
    a, b = predictor.put("a"), predictor.put("b")
    assert refused(predictor.deploy(a, base_path=str(other)), "has digest")
    assert predictor.http.get("/models").json()["versions"] == []

    assert predictor.deploy(b, model="acme/b", base_path=str(base)).status_code == 200
    assert text_of(predictor.answer(model="acme/b")) == expected[b]


def test_a_version_in_memory_is_judged_too(predictor: Predictor, base: Path, other: Path) -> None:
    a, b = predictor.put("a"), predictor.put("b")
    assert predictor.deploy(a, base_path=str(base)).status_code == 200
    for model, version in (("acme/tales", a), ("acme/again", a), ("acme/b", b)):
        assert refused(predictor.deploy(version, model=model, base_path=str(other)), "has digest")
    assert predictor.deploy(a, base_path=str(base)).json()["status"] == "serving"


def _weights(folder: Path) -> None:
    flip(folder / WEIGHTS)


def _config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "rms_norm_eps": 0.5}))


def _tokenizer(folder: Path) -> None:
    flip(folder / "tokenizer.model")


def _more(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _hard_link(folder: Path) -> None:
    """The file is changed under another name."""
    os.link(folder / WEIGHTS, folder.parent / "link")
    flip(folder.parent / "link")


@pytest.mark.slow
@pytest.mark.parametrize("change", [_weights, _config, _tokenizer, _more, _hard_link])
def test_a_base_that_changed_since_the_training_is_refused_also_after_a_restart(
    tmp_path: Path, base: Path, versions: Path, change: Callable[[Path], None],
) -> None:
    here = {"base_folders": str(base.parent)}
    with running(tmp_path / "home", versions, **here) as predictor:
        a, full = predictor.put("a"), predictor.put("full")
        for version, model in ((a, "acme/tales"), (full, "acme/full")):
            assert predictor.deploy(version, model=model, base_path=str(base)).status_code == 200
        change(base)
        assert refused(predictor.deploy(a, base_path=str(base)), "has digest")
        assert refused(predictor.deploy(predictor.put("b"), base_path=str(base)), "has digest")
        assert predictor.answer(model="acme/tales")["version"] == a, "what was loaded before answers on"

    with running(tmp_path / "home", versions, **here) as again:
        found = again.http.get("/health/ready").json()
        assert found["status"] == "degraded" and list(found["models"]) == ["acme/full"]
        assert "has digest" in found["failed"]["acme/tales"] and str(tmp_path) not in found["failed"]["acme/tales"]
        assert str(base) in again.http.get("/models").json()["failed"]["acme/tales"]
        again.http.delete("/deployments/acme/full")
        alone = again.http.get("/health/ready")
        assert (alone.status_code, alone.json()["status"]) == (503, "failed")


def test_a_file_that_changes_under_a_loaded_base_does_not_change_its_answers(
    predictor: Predictor, base: Path, expected: dict[str, str],
) -> None:
    a = predictor.put("a")
    assert predictor.deploy(a, base_path=str(base)).status_code == 200
    with (base / WEIGHTS).open("r+b") as file:  # in place, as rsync --inplace does
        file.seek((base / WEIGHTS).stat().st_size // 4)
        file.write(bytes((base / WEIGHTS).stat().st_size // 2))
    assert text_of(predictor.answer()) == expected[a]


@pytest.mark.parametrize("back", [False, True])
def test_a_folder_that_is_replaced_between_hashing_and_loading_is_not_served(
    predictor: Predictor, base: Path, other: Path, monkeypatch: pytest.MonkeyPatch, back: bool,
) -> None:
    load, aside = models.load_base, base.with_name("aside")

    def swapped(path: Path, **more: Any) -> Any:
        base.rename(aside)
        other.rename(base)
        try:
            return load(path, **more)
        finally:
            if back:
                base.rename(other)
                aside.rename(base)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_base", swapped)
        answer = predictor.deploy(predictor.put("a"), base_path=str(base))
    assert answer.status_code == 503 and "changed while they were loaded" in answer.json()["error"]
    assert predictor.app.state.shelf._engines == {}


@pytest.mark.parametrize("named", [
    "{}/elsewhere", "{}/models/link", "{}/models/../elsewhere", "elsewhere", "\0", "/a" * 3000])
def test_a_right_base_in_a_place_that_nobody_named_is_refused(
    predictor: Predictor, tmp_path: Path, base: Path, named: str,
) -> None:
    shutil.copytree(base, tmp_path / "elsewhere")
    (tmp_path / "models" / "link").symlink_to(tmp_path / "elsewhere")
    answer = predictor.deploy(predictor.put("a"), base_path=named.format(tmp_path))
    assert refused(answer, "ANNEAL_BASE_FOLDERS"), answer.text


@pytest.mark.slow
def test_a_training_of_the_same_home_needs_no_setting(
    tmp_path: Path, versions: Path, expected: dict[str, str],
) -> None:
    home, folder = tmp_path / "home", shutil.copytree(STORIES, tmp_path / "models" / "mine")
    with running(home, versions, base_folders="") as predictor:
        a = predictor.put("a")
        assert refused(predictor.deploy(a, base_path=str(folder)), "ANNEAL_BASE_FOLDERS")
        version = Version(destination="acme/tales", id=a, number=1, folder=f"versions/{a}", uri="", training_id="t")
        base = Base(name="mine", path=str(folder), digest=BASE_DIGEST, context_tokens=512)
        switch(predictor.settings, predictor.url, version, base)
        assert text_of(predictor.answer()) == expected[a]
    with running(home, versions, base_folders="") as again:
        assert text_of(again.answer()) == expected[a]


@pytest.mark.slow
def test_a_base_that_moved_is_found_after_a_restart_once_it_was_deployed_again(
    tmp_path: Path, base: Path, versions: Path,
) -> None:
    here = {"base_folders": f":{base.parent}"}
    with running(tmp_path / "home", versions, **here) as predictor:
        a = predictor.put("a")
        assert predictor.deploy(a, base_path=str(base)).status_code == 200
        moved = base.rename(base.parent / "moved")
        assert predictor.deploy(a, base_path=str(moved)).json()["status"] == "serving"
    with running(tmp_path / "home", versions, **here) as again:
        assert again.answer()["version"] == a


def test_a_file_beside_those_of_a_version_is_refused(predictor: Predictor, base: Path) -> None:
    a = predictor.put("a")
    folder = Path(predictor.settings.store_root) / "versions" / a
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert refused(predictor.deploy(a, base_path=str(base)), "not part of the version")


@pytest.mark.parametrize("place", ["inner/shard.safetensors", "../other/model.safetensors", "shard.dat"])
def test_weights_that_the_digest_would_not_cover_are_refused(base: Path, place: str) -> None:
    (base / WEIGHTS).rename(base / "all.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "all.safetensors", "b": place}}))
    with pytest.raises(BaseModelError, match="names the file"):
        models.load_base(base, dtype=torch.float32, device=torch.device("cpu"))
    (base / "model.safetensors.index.json").unlink()
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "transformers_weights": place}))
    with pytest.raises(BaseModelError, match="transformers_weights"):
        models.load_base(base, dtype=torch.float32, device=torch.device("cpu"))


def test_a_digest_is_made_once_and_again_when_a_byte_changed(
    settings: Settings, base: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("infra.models.base_folders.SETTLED_S", -60)  # as if the files were old
    first = digest_of_base(settings, base)
    assert first == BASE_DIGEST
    with monkeypatch.context() as patch:
        patch.setattr("infra.models.base_folders.sha256_of", lambda _: pytest.fail("it was read again"))
        assert digest_of_base(settings, base) == first
    flip(base / WEIGHTS)
    assert digest_of_base(settings, base) != first


def test_young_files_are_read_every_time(settings: Settings, base: Path) -> None:
    digest_of_base(settings, base)
    assert not (settings.home_path / "cache" / "digests").exists()


def test_a_note_is_of_one_folder(settings: Settings, base: Path, tmp_path: Path) -> None:
    note_base(settings, base)
    (place,) = (settings.home_path / "bases").iterdir()
    assert place.read_text() == str(base) and place.stat().st_mode & 0o022 == 0
