"""Object stores that fsspec knows, by the one of them that needs no server: its store in memory.

Tests infra/storage/store_errors.py too.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import fsspec
import pytest

from infra.errors import DataError, Transient, UserError
from infra.settings import Settings
from infra.storage import clouds
from infra.storage.store import Store
from infra.storage.store_errors import translate_storage_errors
from tasks import ingest as ingest_module
from tasks.data.datasets import FILE
from tasks.data.source_cache import source_key
from tasks.data.sources import find_shards
from tasks.data.streams import ProgressListener
from tasks.ingest import ingest


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """memory:// counts as one of the clouds, and holds three files."""
    monkeypatch.setattr(clouds, "CLOUDS", {**clouds.CLOUDS, "memory": "fsspec"})
    files = fsspec.filesystem("memory")
    for name in ("a.jsonl", "day=1/b.jsonl", "day=1/notes.txt"):
        files.pipe_file(f"/bucket/{name}", f'{{"text": "{name}"}}\n'.encode())
    yield
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize(("source", "names"), [
    ("memory://bucket/a.jsonl", ["a.jsonl"]), ("memory://bucket", ["a.jsonl", "day=1/b.jsonl"]),
    ("memory://bucket/day=*/**.jsonl", ["day=1/b.jsonl"])])
@pytest.mark.usefixtures("memory")
def test_files_folders_and_patterns_are_brought_in(
    settings: Settings, store: Store, source: str, names: list[str],
) -> None:
    dataset = ingest(settings, store, source)
    content = (store.fetch(dataset.folder) / FILE).read_text()
    assert content == "".join(f'{{"text": "{name}"}}\n' for name in names)
    assert all(one.address.startswith("memory://bucket/") for one in find_shards(settings, source))


@pytest.mark.usefixtures("memory")
def test_without_a_mark_nothing_is_taken_for_known(settings: Settings) -> None:
    assert source_key(settings, "memory://bucket/a.jsonl") == ""


@pytest.mark.usefixtures("memory")
def test_what_is_not_there_is_told(settings: Settings, store: Store) -> None:
    with pytest.raises(UserError, match="no such object"):
        ingest(settings, store, "memory://bucket/none.jsonl")


@pytest.mark.parametrize("address", [
    "file:///etc/passwd", "ftp://host/d", "webhdfs://host/d", "memory://d", "github://a:b@/d", "http+unix://x"])
def test_other_schemes_stay_refused(settings: Settings, store: Store, address: str) -> None:
    with pytest.raises(DataError, match=r"the address begins with|it is not an address"):
        ingest(settings, store, address)


def test_a_library_that_is_missing_is_named(settings: Settings, store: Store) -> None:
    if find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(UserError, match=r"gs:// addresses need a library that is not installed.*pip install gcsfs"):
        ingest(settings, store, "gs://bucket/d.jsonl")


@pytest.mark.usefixtures("memory")
def test_a_file_that_changes_while_it_is_read_is_read_once_more(settings: Settings, store: Store) -> None:
    class Changing(ProgressListener):
        def say(self, line: str) -> None:
            said.append(line)

    said: list[str] = []
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/big.jsonl", b'{"text": "old"}\n' * 9)
    looks: list[tuple[Any, ...]] = []

    def finding(*given: Any) -> Any:
        if len(looks) == 1:
            files.pipe_file("/bucket/big.jsonl", b'{"text": "newer"}\n' * 9)
        looks.append(given)
        return find_shards(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_module, "find_shards", finding)
        dataset = ingest(settings, store, "memory://bucket/big.jsonl", Changing())
    assert (store.fetch(dataset.folder) / FILE).read_bytes() == b'{"text": "newer"}\n' * 9
    assert len(said) == 1 and "it changed while it was read" in said[0]


@pytest.mark.parametrize("address", [
    "abfs://box@other.dfs.core.windows.net/f", "az://box/f.jsonl?sv=1&sig=secret", "abfss://a@b/f"])
def test_an_account_or_a_signature_in_an_address_is_refused_and_not_shown(
    settings: Settings, store: Store, address: str,
) -> None:
    with pytest.raises(UserError, match="names an account, or is signed") as refused:
        ingest(settings, store, address)
    assert "secret" not in str(refused.value) and "other" not in str(refused.value)


def test_what_the_hub_does_not_know_is_the_users_to_mend() -> None:
    gone = type("RepositoryNotFoundError", (OSError,), {})("404")
    for error, kind in ((gone, UserError), (NotImplementedError("x"), UserError), (TimeoutError("x"), Transient)):
        with pytest.raises(kind), translate_storage_errors("hf://datasets/a/b/c.jsonl"):
            raise error


@pytest.mark.parametrize(("about", "mark"), [
    ({"ETag": '"x"'}, "x"), ({"etag": "y"}, "y"), ({"md5Hash": "z=="}, "z=="), ({"blob_id": "w"}, "w"),
    ({"size": 3}, "")])
def test_the_mark_is_what_changes_with_the_content(about: dict[str, str], mark: str) -> None:
    assert clouds.mark_of(about) == mark
