"""Answer every prompt of a file with a deployed model.

In:   a JSONL file with "prompt" in each row, a model that the predictor serves
Out:  predictions/<key>/answers.jsonl in the store: the rows with "output" added, in their order
On disk meanwhile: <home>/predictions/<key>.jsonl, the rows answered so far
Dies half-way: rows that this version answered are not asked again. The same file, version and options are answered
once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import httpx

from infra.errors import Broken, DataError, Transient, UserError, sentence_in, shown
from infra.files import digest_of
from infra.models.registry import Registry
from infra.models.version_names import read_name
from infra.records import Answers, Dataset
from infra.settings import Settings
from infra.storage.store import Store
from tasks.data.datasets import FILE
from tasks.data.sources import Places, places_of
from tasks.runs.locks import exclusive_lock
from tasks.runs.retries import HOUR_S, found_done, step

FOLDER = "predictions"
AT_A_TIME = 32
"""Rows under way; the predictor puts them into batches."""
TIMEOUT = httpx.Timeout(600.0, connect=10.0)


def answer(settings: Settings, store: Store, data: Dataset, version: str, inputs: dict[str, Any]) -> Answers:
    """Ask for every row that is not answered yet.

    Raises:
        DataError: a row has no prompt; the line is named.
        UserError: an input is wrong, or another process is at the same answers.
        Transient: the predictor does not answer.
    """
    key = prediction_key(version, data, inputs)
    part = settings.home_path / FOLDER / f"{key}.jsonl"
    with exclusive_lock(part.with_suffix(".lock"), f"answers {key}"), connected(settings) as client:
        done = rows_done(part)
        with part.open("a", encoding="utf-8") as file, ThreadPoolExecutor(AT_A_TIME) as pool:
            folder = store.fetch(data.folder)
            rows_given = prompts(folder / FILE, places_of(folder, data))
            waiting = ((number, row) for number, row in rows_given if number not in done)
            while rows := list(islice(waiting, AT_A_TIME)):
                outputs = pool.map(lambda row: ask_predictor(client, version, row[1]["prompt"], inputs), rows)
                write(file, ({"line": number, "row": {**row, "output": text}}
                             for (number, row), text in zip(rows, outputs, strict=True)))
        with store.draft() as draft:
            answered = sorted(rows_done(part).items())
            with (draft.path / "answers.jsonl").open("w", encoding="utf-8") as file:
                write(file, (row for _, row in answered))
            answers = Answers(folder=f"{FOLDER}/{key}", rows=len(answered), version=version)
            draft.commit(answers.folder, answers.to_json(), kept=False)
        part.unlink()
    return answers


def find_answers(store: Store, data: Dataset, version: str, inputs: dict[str, Any]) -> Answers | None:
    """What the version answered earlier, if it still verifies."""
    manifest = store.find(f"{FOLDER}/{prediction_key(version, data, inputs)}")
    return Answers.kept(manifest.record if manifest else None)


def prediction_key(version: str, data: Dataset, inputs: dict[str, Any]) -> str:
    """Name of the answers: 32 hex digits of what they depend on."""
    return digest_of([version, data.sha256, inputs])[:32]


def connected(settings: Settings) -> httpx.Client:
    """A client of the predictor, with its key. Raises UserError without one."""
    if not settings.predictor:
        raise UserError("no predictor is known", fix="Start one with `anneal up`, or set ANNEAL_PREDICTOR_URL.")
    return httpx.Client(base_url=settings.predictor, headers=settings.predictor_headers, timeout=TIMEOUT)


def version_of(client: httpx.Client, model: str) -> str:
    """The version that serves a model now, or that another name than the model's stands for."""
    if not (name := read_name(model)).destination:
        return name.which
    if name.which:
        return Registry(Settings()).named(model).id
    served = sent(client, "GET", "/models").json()["models"]
    if model not in served:
        raise UserError(f"{shown(model)} is not served", allowed=", ".join(sorted(served)) or "none is",
                        where=str(client.base_url), fix="Train and deploy it first.")
    return str(served[model]["version"])


def prompts(path: Path, places: Places) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and row. Raises DataError for one without a prompt."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
                text = row.get("prompt") if isinstance(row, dict) else None
            except ValueError:
                row, text = None, None
            if not isinstance(text, str) or not text:
                raise DataError('no object with a text "prompt"', where=places.of(number), fix="Correct this line.")
            yield number, row


def ask_predictor(client: httpx.Client, version: str, prompt: str, inputs: dict[str, Any]) -> str:
    """One answer."""
    body = {"version": version, "input": {**inputs, "prompt": prompt}}
    found = sent(client, "POST", "/predictions", body).json()
    if found.get("error"):
        raise Broken(str(found["error"]), where=str(client.base_url))
    return "".join(found["output"] or [])


def sent(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """The predictor's answer. Raises UserError for what it refuses, Transient where it may pass."""
    try:
        response = client.request(method, path, json=body)
    except httpx.TransportError as error:
        raise Transient("the predictor does not answer", where=str(client.base_url)) from error
    if response.is_success:
        return response
    kind = Transient if response.status_code == 429 or response.status_code >= 500 else UserError
    raise kind(sentence_in(response.content, response.text)[:300], where=str(client.base_url))


def rows_done(part: Path) -> dict[int, dict[str, Any]]:
    """Answered rows by line; a last line that was cut off is dropped."""
    found: dict[int, dict[str, Any]] = {}
    if not part.exists():
        return found
    whole = part.read_bytes()
    whole = whole[:whole.rfind(b"\n") + 1]
    part.write_bytes(whole)
    for line in whole.decode().split("\n")[:-1]:
        row = json.loads(line)
        found[row["line"]] = row["row"]
    return found


def write(file: TextIO, rows: Iterator[dict[str, Any]]) -> None:
    """Rows as JSON lines."""
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.flush()


@step("version", timeout_s=HOUR_S)
def version_task(model: str, subject: str) -> str:
    """The version that serves a model now; it answers all rows, also when another one is deployed meanwhile."""
    with connected(Settings()) as client:
        return version_of(client, model)


@step("answer", timeout_s=24 * HOUR_S)
def answer_task(data: Dataset, version: str, inputs: dict[str, Any], subject: str) -> Answers:
    """Answer a file; returns the Answers."""
    settings = Settings()
    store = Store(settings)
    found = find_answers(store, data, version, inputs)
    return found_done(found) if found else answer(settings, store, data, version, inputs)
