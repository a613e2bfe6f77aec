"""infra/files.py: a folder is done if and only if its manifest verifies."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.files import MANIFEST, Manifest, digest_of, seal, verify, write_atomic


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "done"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("alpha")
    (folder / "deep" / ".b").write_text("beta")
    seal(folder, {"rows": 2})
    return folder


def test_a_sealed_folder_verifies_with_its_record(sealed: Path) -> None:
    manifest = verify(sealed)
    assert manifest is not None
    assert manifest.record == {"rows": 2}
    assert set(manifest.files) == {"a.txt", "deep/.b"}


@pytest.mark.parametrize("damage", ["flip", "truncate", "zeros", "remove", "unsealed", "torn manifest"])
def test_a_damaged_folder_is_not_done(sealed: Path, damage: str) -> None:
    path = sealed / "a.txt"
    damages: dict[str, Callable[[], object]] = {
        "flip": lambda: path.write_text("alphA"), "truncate": lambda: path.write_text("alph"),
        "zeros": lambda: path.write_bytes(b"\0" * 5), "remove": path.unlink,
        "unsealed": (sealed / MANIFEST).unlink,
        "torn manifest": lambda: (sealed / MANIFEST).write_text((sealed / MANIFEST).read_text()[:-20]),
    }
    damages[damage]()
    assert verify(sealed) is None


def test_the_digest_depends_on_contents_and_not_on_order() -> None:
    one = Manifest.from_json('{"format": 1, "record": {}, "files": '
                             '{"a": {"bytes": 1, "sha256": "x"}, "b": {"bytes": 1, "sha256": "y"}}}')
    two = Manifest.from_json('{"format": 1, "record": {"n": 1}, "files": '
                             '{"b": {"bytes": 1, "sha256": "y"}, "a": {"bytes": 1, "sha256": "x"}}}')
    assert one.digest == two.digest


def test_a_manifest_that_names_a_file_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="outside its folder"):
        Manifest.from_json('{"format": 1, "record": {}, "files": {"../x": {"bytes": 1, "sha256": "x"}}}')


def test_sealed_files_may_be_read_by_a_predictor_under_another_user(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("w")
    (tmp_path / "weights").chmod(0o600)
    before = os.umask(0o022)
    try:
        seal(tmp_path, {})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}


def test_a_folder_that_has_gone_is_not_sealed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        seal(tmp_path / "gone", {})
    assert not (tmp_path / "gone").exists()


def test_a_link_cannot_be_sealed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="is a link"):
        seal(tmp_path, {})


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "f", "old")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "f", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_text() == "old"


def test_the_digest_of_a_value_is_canonical() -> None:
    assert digest_of({"b": 1, "a": "\u00e9"}) == digest_of({"a": "\u00e9", "b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of(float("nan"))
