"""The README tells the truth about parameters, settings, commands and targets."""

from __future__ import annotations

import re
from pathlib import Path

from deployments import docs
from deployments.cli.main import parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_are_up_to_date() -> None:
    assert docs.filled(README) == README, "run: python -m deployments.docs"


def test_every_command_that_is_shown_exists() -> None:
    known = parser().format_help()
    shown = set(re.findall(r"\banneal ([a-z]+)\b(?!/)", README)) - {"on"}
    assert shown and all(re.search(rf"^\s+{name}\s", known, re.MULTILINE) for name in shown), shown


def test_every_make_target_that_is_shown_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_that_is_linked_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)
