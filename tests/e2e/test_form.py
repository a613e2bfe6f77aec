"""The Prefect UI: its form starts a training, its run page shows the results: pytest tests/e2e/test_form.py

Headless Chromium against the real server; the pictures stay in pytest's temporary folders. The UI is V2, which the
server's address leads to.
"""

from __future__ import annotations

from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import httpx
import pytest

from deployments.prefect_setup.form import FIRST
from infra.spec import FIELD_TYPES, FIELDS, Group
from tests.conftest import training_processes, wait_for
from tests.e2e.conftest import BUSY_TRIES, COMMAND_TIMEOUT_S, LONG, Stack, Training
from tests.e2e.test_cancel import checkpoints
from tests.support import prefect_api
from tests.support.pages import Album, choose, click, control, fill, property_of, see, steadily, tab

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.slow

SHORT, ADVANCED = "finetune/finetune", "finetune/finetune-advanced"
REQUIRED = ("train_data", "base_model", "destination")
NONSENSE = {
    "num_train_epochs": (0, "less than the minimum of 1"), "lora_rank": (4096, "greater than the maximum of 1024"),
    "peft_method": ("prefix", "is not one of ['lora', 'qlora', 'full']"), "seed": ("x", "not of type 'integer'"),
    "destination": ("summarizer", "'owner/name in lower case, such as acme/summarizer' was expected"),
    "train_data": ("", "should be non-empty"),
    "lerning_rate": (1, "is not one of")}


def test_the_form_shows_what_people_change_first(stack: Stack, browser: Chrome, tmp_path: Path) -> None:
    open_form(browser, stack)
    Album(browser, tmp_path).take("form")
    assert [title.split(": ")[1] for title in titles_in(browser)] == list(FIRST)


def test_the_other_form_groups_orders_and_describes_every_parameter(
    stack: Stack, browser: Chrome, tmp_path: Path,
) -> None:
    album = Album(browser, tmp_path)
    open_form(browser, stack, ADVANCED)
    album.take("form")
    titles = titles_in(browser)
    assert [title.split(": ")[1] for title in titles] == [field.name for field in FIELDS]
    assert [group for group, _ in groupby(title.split(": ")[0] for title in titles)] == list(get_args(Group))
    for field in FIELDS:
        kind, found = FIELD_TYPES[field.name], control(browser, field.name)
        see(browser, f"//p[starts-with(normalize-space(), {field.metadata['help'][:30]!r})]")
        if get_origin(kind) is Literal:
            assert (found.tag_name, found.text) == ("button", field.default), "a choice with its default"
        elif kind is bool:
            assert found.get_attribute("role") == "switch", field.name
        elif kind is not str:
            assert found.get_attribute("type") == "number", field.name
            limits = [found.get_attribute(name) or None for name in ("min", "max")]
            assert limits == [None if field.metadata[end] is None else str(field.metadata[end]) for end in ("ge", "le")]
    control(browser, "peft_method").click()
    album.take("choices")
    options = browser.find_elements("xpath", "//*[@role='option']")
    assert [option.text for option in options] == ["lora", "qlora", "full"]


def test_nonsense_in_the_form_is_refused_at_its_field(stack: Stack, browser: Chrome, tmp_path: Path) -> None:
    before, album = runs_of(stack), Album(browser, tmp_path)
    filled_and_submitted(browser, stack, {})
    for name in REQUIRED:
        see(browser, f"//p[.=\"'{name}' is a required property\"]")
    album.take("missing")
    filled_and_submitted(browser, stack, dict.fromkeys(REQUIRED, "somewhere"))
    see(browser, "//p[.=\"'owner/name in lower case, such as acme/summarizer' was expected\"]")
    see(browser, "//*[starts-with(text(), 'Error creating') and contains(text(), \"field 'training.destination'\")]")
    album.take("destination")
    filled_and_submitted(browser, stack, {"num_train_epochs": 0})
    assert control(browser, "num_train_epochs").get_property("validationMessage") == (
        "Value must be greater than or equal to 1.")
    album.take("range")
    assert runs_of(stack) == before


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused_by_the_server_with_the_fields_name(
    name: str, stack: Stack, parameters: dict[str, Any],
) -> None:
    before, (value, reason) = runs_of(stack), NONSENSE[name]
    path = f"/deployments/{deployment_of(stack)}/create_flow_run"
    answer = prefect_api.ask(stack.settings, path, {"parameters": {"training": {**parameters, name: value}}})
    assert answer.status_code == httpx.codes.CONFLICT
    assert name in answer.json()["detail"] and reason in answer.json()["detail"]
    assert runs_of(stack) == before


def test_form_starts_a_training(stack: Stack, first: Training, browser: Chrome, tmp_path: Path) -> None:
    before, album = runs_of(stack), Album(browser, tmp_path)
    open_form(browser, stack, ADVANCED)
    for name, value in first.parameters.items():
        fill(browser, name, value)
    album.take("filled")
    run = started(stack, browser, before)
    assert stack.wait_until_over(run)["type"] == "COMPLETED"
    assert first.version["id"][:12] in stack.artifacts(run)["links"]


@pytest.mark.timeout(600)
def test_defaults_train(stack: Stack, parameters: dict[str, Any], browser: Chrome, tmp_path: Path) -> None:
    before, data = runs_of(stack), tmp_path / "few.jsonl"
    with Path(parameters["train_data"]).open() as file:
        data.write_text("".join(islice(file, 12)))
    open_form(browser, stack)
    for name, value in {**parameters, "train_data": data, "destination": "acme/defaults"}.items():
        if name in REQUIRED:
            fill(browser, name, value)
    run = started(stack, browser, before)
    browser.get("about:blank")  # a run's page is drawn anew all the time
    state = stack.wait_until_over(run, 400)
    assert state["type"] == "COMPLETED", state
    assert len(stack.versions("acme/defaults")) == 1


def test_run_page_leads_to_the_pictures_and_the_scores(
    stack: Stack, first: Training, browser: Chrome, tmp_path: Path,
) -> None:
    run, album = first.run, Album(browser, tmp_path)
    for name in ("data-lengths", "training-curves"):
        open_artifact(browser, stack, run, name)
        assert property_of(browser, "//img[starts-with(@src, 'data:image/svg')]", "naturalWidth") > 0
        album.take(name)
    open_artifact(browser, stack, run, "verdict")
    for model in ("tuned", "base", "lead3"):
        see(browser, f"//td[normalize-space()='{model}']")
    album.take("verdict")
    open_artifact(browser, stack, run, "forecast")
    see(browser, "//*[contains(., '<home>/hardware.toml')]")
    album.take("forecast")


def test_run_page_says_in_one_sentence_why_a_run_failed_and_what_to_do(
    stack: Stack, parameters: dict[str, Any], browser: Chrome, tmp_path: Path,
) -> None:
    (data := tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": 17}\n')
    run = stack.start_run({**parameters, "train_data": str(data), "destination": "acme/bad"})
    assert stack.wait_until_over(run)["type"] == "FAILED"
    browser.get(f"{ui(stack)}/runs/flow-run/{run}")
    tab(browser, "Details")
    sentence = 'bad.jsonl line 1: "completion" is a number (17); expected a string. Quote it.'
    see(browser, f"//*[contains(text(), '{sentence}')]")
    Album(browser, tmp_path).take("failed")


@pytest.mark.chaos
def test_a_training_is_watched_and_cancelled_in_the_browser(
    stack: Stack, parameters: dict[str, Any], browser: Chrome, tmp_path: Path,
) -> None:
    home, album = stack.settings.home_path, Album(browser, tmp_path)
    known = checkpoints(home)
    run = stack.start_run({
        **parameters, **LONG, "num_train_epochs": 500, "max_steps": 0, "destination": "acme/watched", "seed": 11})
    wait_for(lambda: checkpoints(home) - known, "it does not train", COMMAND_TIMEOUT_S)
    (folder,) = {path.parent for path in checkpoints(home) - known}
    browser.get(f"{ui(stack)}/runs/flow-run/{run}")
    tab(browser, "Logs")
    see(browser, "//*[starts-with(normalize-space(text()), 'step 1/')]")
    album.take("logs")
    seen = {progress(browser, stack, run)}
    wait_for(lambda: len(seen | {progress(browser, stack, run)}) > 1, "the progress does not move", COMMAND_TIMEOUT_S)
    album.take("progress")

    choose(browser, "Open menu", "Cancel")
    see(browser, "//*[@role='dialog' or @role='alertdialog']")
    album.take("cancel")
    click(browser, "//button[normalize-space()='Cancel Flow Run']")
    assert stack.wait_until_over(run)["type"] == "CANCELLED"
    wait_for(lambda: not training_processes(home), "a rank goes on", COMMAND_TIMEOUT_S)
    assert list(folder.glob("step-??????")), "the last checkpoint is kept"
    assert stack.versions("acme/watched") == []
    browser.refresh()
    see(browser, "//*[normalize-space(text())='Cancelled']")
    album.take("cancelled")


def open_form(browser: Chrome, stack: Stack, deployment: str = SHORT) -> None:
    """The form of a custom run, once it has its defaults."""
    browser.get(f"{ui(stack)}/deployments/deployment/{deployment_of(stack, deployment)}/run")
    wait_for(lambda: steadily(browser, lambda: control(browser, "num_train_epochs").get_property("value")) == "1",
             "the form has no defaults")


def titles_in(browser: Chrome) -> list[str]:
    """The labels of parameters, from top to bottom."""
    labels = [label.text.removesuffix(" (Optional)") for label in browser.find_elements("tag name", "label")]
    return [label for label in labels if ": " in label]


def filled_and_submitted(browser: Chrome, stack: Stack, values: dict[str, Any]) -> None:
    """A fresh form each time: the message about a refusal covers the button for as long as the mouse is there."""
    open_form(browser, stack)
    for name, value in values.items():
        fill(browser, name, value)
    submit(browser)


def submit(browser: Chrome) -> None:
    """Press the form's button."""
    click(browser, "//button[normalize-space()='Submit']")


def started(stack: Stack, browser: Chrome, before: set[str]) -> str:
    """Submit the form, again where the server was too busy; the id of the run that it made.

    Prefect answers 503 where its SQLite is written at that moment. Its client asks again, its UI leaves that to people.
    """
    made, busy = "//button[normalize-space()='View run']", "//*[.='Unknown error while creating flow run.']"
    for _ in range(BUSY_TRIES):
        submit(browser)
        if property_of(browser, f"{made} | {busy}", "tagName") == "BUTTON":
            break
        wait_for(lambda: not browser.find_elements("xpath", busy), "the message stays")
    click(browser, made)
    see(browser, "//*[@role='tab'][normalize-space()='Logs']")
    (run,) = runs_of(stack) - before
    assert run in browser.current_url
    return run


def open_artifact(browser: Chrome, stack: Stack, run: str, key: str) -> None:
    """From the run's page to the newest of its artifacts of that key; between them are those of all runs."""
    wanted = {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}
    newest = stack.prefect("/artifacts/filter", artifacts=wanted, sort="UPDATED_DESC")[0]["id"]
    browser.get(f"{ui(stack)}/runs/flow-run/{run}")
    tab(browser, "Artifacts")
    click(browser, f"//h3[normalize-space()='{key}']")
    click(browser, f"//*[@data-testid='timeline-card-{newest}']//a")


def progress(browser: Chrome, stack: Stack, run: str) -> str:
    """What the run's page says now about how far the training is."""
    browser.get(f"{ui(stack)}/runs/flow-run/{run}")
    tab(browser, "Artifacts")
    step = "//*[starts-with(normalize-space(text()), 'step ') and contains(., ' of ')]"
    return str(property_of(browser, step, "innerText"))


def ui(stack: Stack) -> str:
    """Address of the Prefect UI."""
    return stack.settings.prefect_api.removesuffix("/api") + "/v2"


def deployment_of(stack: Stack, name: str = SHORT) -> str:
    """Its id."""
    return str(stack.prefect(f"/deployments/name/{name}")["id"])


def runs_of(stack: Stack) -> set[str]:
    """Ids of all runs of both deployments."""
    wanted = {"id": {"any_": [deployment_of(stack, name) for name in (SHORT, ADVANCED)]}}
    return {run["id"] for run in stack.prefect("/flow_runs/filter", deployments=wanted)}
