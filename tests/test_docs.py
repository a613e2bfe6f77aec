"""The documents tell the truth about parameters, settings, commands, targets, files and events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from deployments import docs
from deployments.cli.main import parser
from tasks.distributed.events import Event, EventName

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
GUIDES = [ROOT / "README.md", *docs.PAGES]
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "tasks/README.md", ROOT / "tests/README.md"]
LINKED = [*PAGES, ROOT / "DECISIONS.md", ROOT / "CHANGELOG.md", ROOT / "infra/README.md",
          ROOT / "deployments/examples/README.md"]
README_LINES = 150
LINK = r"\]\((?!https?:)([^)]+)\)"
"""Made by the test that walks through the pages, in a browser: a checkout may lack them."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", docs.PAGES, ids=name_of)
def test_the_tables_are_up_to_date(page: Path) -> None:
    assert docs.filled(text_of(page)) == text_of(page), "run: python -m deployments.docs"


def test_every_table_stands_in_one_page() -> None:
    marks = [mark for page in docs.PAGES for mark in re.findall(r"<!-- table: (\w+) -->", text_of(page))]
    assert sorted(marks) == ["forecasts", "inputs", "parameters", "settings"]


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= README_LINES


def test_every_command_that_is_shown_exists() -> None:
    known = parser().format_help()
    shown = {name for page in GUIDES for name in re.findall(r"\banneal ([a-z]+)\b(?!/)", text_of(page))}
    assert shown and all(re.search(rf"^\s+{name}\s", known, re.MULTILINE) for name in shown), shown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_that_is_shown_exists(page: Path) -> None:
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text_of(page), re.MULTILINE):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_the_readme_names_the_command_of_the_tests() -> None:
    assert re.search(r"^make test\b", text_of(ROOT / "README.md"), re.MULTILINE)


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    for link in re.findall(LINK, text_of(page)):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors_of(file), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_that_is_named_exists(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", text_of(page))
    for path in re.findall(r"(?<![\w./-])(?:[\w.-]+/)+\w+\.py\b", text):
        assert (ROOT / path).exists() or (page.parent / path).exists(), path


def test_every_event_of_the_trainer_stands_in_the_table_with_its_fields() -> None:
    code = "".join(text_of(path) for path in (ROOT / "tasks/distributed").glob("*.py"))
    emitted = set(re.findall(r"\"(\w+)\"", " ".join(re.findall(r"(?:emit|_tell)\(([^,)]*),", code))))
    assert emitted == set(get_args(EventName))
    told = text_of(ROOT / "docs/architecture.md").split("## Events of the trainer")[1].split("\n## ")[0]
    rows = dict(re.findall(r"(?m)^\| `(\w+)` \|[^|]*\| (.*) \|$", told))
    for kind in get_args(Event):
        hints = get_type_hints(kind)
        for name in get_args(hints["event"]):
            shown = rows.pop(name)
            assert shown == "the same" or set(re.findall(r"`(\w+)`", shown.partition(":")[0])) <= set(hints), name
    assert not rows
