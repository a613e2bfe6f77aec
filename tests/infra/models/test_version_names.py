"""One name for a version everywhere."""

from __future__ import annotations

import pytest

from infra.errors import UserError
from infra.models.version_names import VersionName, choose, read_name, which_exist

A, B = "a" * 64, "b" * 64
VERSIONS = [(1, A), (2, B)]


@pytest.mark.parametrize(("text", "name"), [
    ("acme/x", VersionName("acme/x", "")), ("acme/x:2", VersionName("acme/x", "2")),
    ("acme/x:champion", VersionName("acme/x", "champion")), (f"acme/x:{A}", VersionName("acme/x", A)),
    (A, VersionName("", A))])
def test_a_name_is_read(text: str, name: VersionName) -> None:
    assert read_name(text) == name


@pytest.mark.parametrize("text", ["", "acme", "acme/x:", "Acme/x:1", A[:63]])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected owner/name"):
        read_name(text)


@pytest.mark.parametrize(("which", "identity"), [
    ("1", A), ("2", B), (B, B), ("champion", A), ("3", None), ("challenger", None), ("", None)])
def test_number_alias_and_id_stand_for_one_version(which: str, identity: str | None) -> None:
    assert choose(VersionName("acme/x", which), VERSIONS, {"champion": A}) == identity


def test_a_number_that_is_not_known_is_no_name() -> None:
    assert choose(VersionName("acme/x", "0"), [(0, A)], {}) is None
    assert which_exist([(0, A), (10, B), (9, A)], ["previous"]).startswith("one of 9, 10, previous, ")
