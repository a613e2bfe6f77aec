"""What users get wrong: one clear sentence, exit code 2, a Failed run, nothing registered.

All cases but the last few run in one child process, for the imports take longer than the cases.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import Stack, options

pytestmark = pytest.mark.slow

PROMPT, TEXT = '{"prompt": "a", "completion": "b"}', '{"text": "a"}'
UGLY = {
    "dialogsum_dev__jsonl_is_python_repr.jsonl": ["line", "not JSON", "It is a Python dict"],
    "samsum_validation.csv": ["line", "not JSON", "It looks like CSV"],
    "samsum_validation__named_json_is_jsonl.json": [
        "line", "the keys are", "dialogue", "--columns prompt=dialogue,completion=summary"]}
WRONG = {
    "empty.jsonl": ("", ["the file is empty", "JSONL, one object per line"]),
    "page.jsonl": ("<!DOCTYPE html>\n<html></html>\n", ["the file is a web page", "'raw' or 'download' link"]),
    "array.json": (f"[{PROMPT}]\n", ["the file is one JSON array", "jq -c '.[]'"]),
    "mixed.jsonl": (f"{PROMPT}\n{TEXT}\n", ["line 2: the row is of the kind text", "a file of its own"])}
BASES = {
    "missing/folder/of/a/model": ["there is no such folder", "Check the path"],
    "no-tokenizer": ["there is no tokenizer", "Copy the tokenizer's files"]}
BATCH = """
import json, os, sys
from deployments.cli import main as cli
for number, arguments in enumerate(json.load(sys.stdin)):
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{sys.argv[1]}/{number}.{name}", os.O_CREAT | os.O_WRONLY), stream)
    code = cli.main(arguments)
    sys.stdout.flush()
    with open(f"{sys.argv[1]}/{number}.code", "w") as file:
        file.write(str(code))
"""


@dataclass(frozen=True)
class Refusal:
    """How one command ended."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """The one error on stderr, also when it goes on over further lines."""
        assert self.code == 2, self.err
        assert "Traceback" not in self.err
        (start,) = [i for i, line in enumerate(self.err.splitlines()) if line.startswith("error: ")]
        return "\n".join(self.err.splitlines()[start:]).removeprefix("error: ")


@pytest.fixture(scope="module")
def cases(shared: Path, stories: Path, parameters: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[
        str, dict[str, Any]]:
    """What differs from a good training, by the name of the case."""
    folder = tmp_path_factory.mktemp("wrong")
    for name, (content, _) in WRONG.items():
        (folder / name).write_text(content)
    shutil.copytree(stories, folder / "no-tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    ugly = {name: {"train_data": str(shared / "data" / "ugly_realworld" / name)} for name in UGLY}
    wrong = {name: {"train_data": str(folder / name)} for name in WRONG}
    bases = {name: {"base_model": str(folder / name)} for name in BASES}
    found = {**ugly, **wrong, **bases}
    return {name: {**parameters, **found[name], "destination": f"wrong/{i}"} for i, name in enumerate(found)}


@pytest.fixture(scope="module")
def refusals(stack: Stack, cases: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[
        str, Refusal]:
    """All cases, one after the other in one process."""
    folder = tmp_path_factory.mktemp("refusals")
    commands = [["train", "--json", *options(parameters)] for parameters in cases.values()]
    subprocess.run(
        [sys.executable, "-c", BATCH, str(folder)], input=json.dumps(commands), text=True, cwd=ROOT, timeout=150,
        env={**os.environ, **stack.environment}, check=True)
    return {
        name: Refusal(int((folder / f"{i}.code").read_text()), *(
            (folder / f"{i}.{stream}").read_text() for stream in ("out", "err")))
        for i, name in enumerate(cases)}


@pytest.mark.parametrize(("name", "parts"), BASES.items())
def test_a_wrong_path_is_one_sentence_and_leaves_no_run(
    name: str, parts: list[str], stack: Stack, cases: dict[str, dict[str, Any]], refusals: dict[str, Refusal],
) -> None:
    sentence = refusals[name].sentence()
    assert not [part for part in [name, *parts] if part not in sentence], sentence
    assert stack.runs(f"finetune {cases[name]['destination']}") == []


@pytest.mark.parametrize(("name", "parts"), [*UGLY.items(), *((name, parts) for name, (_, parts) in WRONG.items())])
def test_wrong_input_is_one_sentence_and_a_failed_run_and_registers_nothing(
    name: str, parts: list[str], stack: Stack, cases: dict[str, dict[str, Any]], refusals: dict[str, Refusal],
) -> None:
    destination, sentence = cases[name]["destination"], refusals[name].sentence()
    assert not [part for part in [name, *parts] if part not in sentence], sentence
    assert json.loads(refusals[name].out)["error"] == sentence
    (run,) = stack.runs(f"finetune {destination}")
    state = stack.wait_until_over(run)
    assert state["type"] == "FAILED"
    assert sentence.splitlines()[0] in state["message"]
    assert stack.versions(destination) == []


def test_wrong_destination_is_refused_before_anything_is_done(stack: Stack, parameters: dict[str, Any]) -> None:
    before = stack.runs("finetune ../x")
    done = stack.anneal("train", "--json", *options({**parameters, "destination": "../x"}))
    sentence = Refusal(done.returncode, done.stdout, done.stderr).sentence()
    assert 'destination is "../x"; expected owner/name' in sentence
    assert json.loads(done.stdout) == {"error": sentence, "type": "UserError"}
    assert stack.runs("finetune ../x") == before


def test_full_disk_says_so_and_what_was_finished_is_kept(
    stack: Stack, parameters: dict[str, Any], full_disk: Path,
) -> None:
    environment = {"ANNEAL_STORE": str(full_disk)}
    done = stack.anneal("train", *options({**parameters, "destination": "wrong/disk"}), **environment)
    sentence = Refusal(done.returncode, done.stdout, done.stderr).sentence()
    assert "the disk is full" in sentence
    assert "Free some space and run the same command again" in sentence
    assert stack.versions("wrong/disk") == []
    assert list((full_disk / ".drafts").iterdir()) == []
