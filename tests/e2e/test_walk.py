"""The way of a person through the pages, with pictures: ANNEAL_WALK=<folder> pytest -m chaos tests/e2e/test_walk.py

From the address that `anneal up` prints: form, run page, results, the version in MLflow, the playground. The data and
the base are those of `make demo`, so that there is something to read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deployments.examples import dialogues
from deployments.examples.demo import BASE, KNOBS
from tests.conftest import wait_for
from tests.e2e.conftest import COMMAND_TIMEOUT_S, Stack
from tests.e2e.test_form import open_artifact, progress, runs_of, started, ui
from tests.support.pages import Album, choose, click, control, fill, into_view, see, tab

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]

PICTURES = os.environ.get("ANNEAL_WALK")
DESTINATION = "walk/summarizer"
LESS = {"max_steps": 120, "num_validation_samples": 12, "num_evaluation_samples": 12}
"""Than the demo, which takes minutes: enough for answers in whole words."""


def test_walk_from_the_form_to_an_answer(stack: Stack, browser: Chrome, tmp_path: Path) -> None:
    album = Album(browser, Path(PICTURES or tmp_path))
    train, test = dialogues.write(tmp_path / "data")
    run = start(stack, browser, album, {
        "train_data": train, "validation_data": test, "base_model": BASE, "destination": DESTINATION,
        **KNOBS, **LESS})
    wait_for(lambda: trains(stack, run), "it does not train", COMMAND_TIMEOUT_S)
    browser.refresh()
    tab(browser, "Logs")
    see(browser, "//*[starts-with(normalize-space(text()), 'step 1/')]")
    album.take("run-logs")
    assert " left" in progress(browser, stack, run)
    album.take("run-progress")
    assert stack.wait_until_over(run, 600)["type"] == "COMPLETED"

    browser.get(f"{ui(stack)}/runs/flow-run/{run}")
    see(browser, "//*[normalize-space(text())='Completed']")
    tab(browser, "Artifacts")
    see(browser, "//h3[.='links']")
    album.take("run-done")
    shown = {"data": "//h2", "forecast": "//h2[contains(., 'what it was')]", "verdict": "//td[.='lead3']",
             "training-curves": "//img[starts-with(@src, 'data:image/svg')]"}
    for key, part in shown.items():
        open_artifact(browser, stack, run, key)
        see(browser, part)
        album.take(key)

    open_artifact(browser, stack, run, "links")
    see(browser, "//a[contains(., 'registry')]")
    album.take("links")
    click(browser, "//a[contains(., 'registry')]")
    browser.switch_to.window(browser.window_handles[-1])
    see(browser, "//*[text()[contains(., 'challenger') or contains(., 'champion')]]")
    album.take("mlflow-version")

    open_artifact(browser, stack, run, "links")
    click(browser, "//a[contains(., 'Playground')]")
    browser.switch_to.window(browser.window_handles[-1])
    asked = json.loads(test.read_text(encoding="utf-8").splitlines()[0])
    see(browser, f"//option[starts-with(., '{DESTINATION}')]")
    see(browser, "//textarea").send_keys(asked["prompt"])
    album.take("playground")
    see(browser, "//button[@id='run']").click()
    see(browser, "//*[@id='status'][contains(., 'tokens/s')]")
    album.take("playground-answer")
    assert see(browser, "//*[@id='answer']").text.strip()
    assert browser.find_element("id", "error").text == ""


def trains(stack: Stack, run: str) -> bool:
    """Whether the run's log tells of a first step."""
    logs = stack.prefect("/logs/filter", logs={"flow_run_id": {"any_": [run]}})
    return any(line["message"].startswith("step 1/") for line in logs)


def start(stack: Stack, browser: Chrome, album: Album, parameters: dict[str, Any]) -> str:
    """From the start page to the form, fill it, submit it, and on to the run's page; returns the run's id."""
    before = runs_of(stack)
    browser.get(stack.settings.prefect_api.removesuffix("/api"))
    click(browser, "//a[normalize-space()='Deployments']")
    see(browser, "//a[normalize-space()='finetune-advanced']")
    album.take("deployments")
    click(browser, "//a[normalize-space()='finetune-advanced']")
    choose(browser, "Run", "Custom run")
    for name, value in parameters.items():
        fill(browser, name, value)
    into_view(browser, control(browser, "train_data"))
    album.take("form")
    return started(stack, browser, before)
