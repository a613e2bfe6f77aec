"""The gateway's pages in a real browser, as a person uses them: at 1280 and 390 pixels, with and without script.

Screenshots lie in the test's folder, or where SCREENSHOTS says.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deployments.gateway.intents import begun
from deployments.gateway.tables import Delivery, Model, Training
from tests.support.gateway import LINEAGE, Running
from tests.support.pages import click, complaints, see

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.slow
ROWS = "".join(json.dumps({"prompt": f"Summarize: {n} cats sat on {n} mats. " * (1 + n % 7), "completion": "Cats sat."})
               + "\n" for n in range(60))
WIDTHS = (1280, 390)
SHOTS = os.environ.get("SCREENSHOTS", "")
STEPS = 200


@pytest.fixture
def walker(gateway: Running, browser: Chrome) -> Iterator[Chrome]:
    """A browser that is signed in by the link that `anneal up` prints."""
    width(browser, WIDTHS[0])
    browser.get(f"{gateway.url}/sign-in#the-key")
    see(browser, "//h1[.='Overview']")
    yield browser
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where the screenshots go."""
    found = Path(SHOTS or tmp_path)
    found.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture
def under_way(gateway: Running) -> str:
    """A training that has come to its half, as its events tell."""
    return told(gateway, "r" * 26, STEPS // 2, status="processing", started_at=time.time() - 60)


def told(gateway: Running, identity: str, steps: int, **columns: Any) -> str:
    """A row and its events."""
    values = {
        **begun(), "id": identity, "owner": "acme", "model": "anneal/demo-base", "version": "0" * 64, "spec": {},
        "destination": "acme/notes", "input": {"train_data": "https://data.example/rows.jsonl", "lora_rank": 16},
        "about": {}, "request_hash": "", "idempotency_key": None, "source": "api", "base_url": "", "webhook": "",
        "webhook_completed": "", "webhook_events": [], "content_id": identity, "created_at": time.time() - 90,
        **columns}
    with gateway.here.database.session() as session:
        session.merge(Training(**values))
    folder = gateway.settings.home_path / "trainings" / identity
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").unlink(missing_ok=True)
    write(folder, [{"event": "start", "step": 0, "total": STEPS, "ranks": 1, "parallelism": "ddp"}])
    write(folder, [one for step in range(1, steps + 1) for one in events_of(step)])
    return identity


def events_of(step: int) -> list[dict[str, Any]]:
    loss = 3 * 0.98 ** step + 0.4 + 0.1 * (step * 7 % 11) / 11
    found: list[dict[str, Any]] = [{
        "event": "step", "step": step, "total": STEPS, "loss": loss, "tokens_per_s": 5120.0,
        "eta_s": (STEPS - step) * 1.5, "usd": step * 0.004}]
    if step % 50 == 0:
        found += [{"event": "validation", "step": step, "loss": loss + 0.1}, {"event": "checkpoint", "step": step}]
    return found


def write(folder: Path, events: list[dict[str, Any]]) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.writelines(json.dumps({**one, "time": time.time()}) + "\n" for one in events)


def width(browser: Chrome, pixels: int) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": pixels < 500})


def pictured(browser: Chrome, shots: Path, name: str) -> None:
    """Screenshots at both widths; nothing may stick out of the narrow one."""
    for pixels in WIDTHS:
        width(browser, pixels)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= pixels, f"{name} is {wide} pixels wide at {pixels}"
        height = int(browser.execute_script("return document.documentElement.scrollHeight"))
        picture = browser.execute_cdp_cmd("Page.captureScreenshot", {
            "captureBeyondViewport": True,
            "clip": {"x": 0, "y": 0, "width": pixels, "height": min(height, 2600), "scale": 1}})
        import base64

        (shots / f"{name}-{pixels}.png").write_bytes(base64.b64decode(picture["data"]))
    width(browser, WIDTHS[0])
    assert complaints(browser) == []


def test_a_person_uploads_estimates_starts_and_cancels(
    gateway: Running, walker: Chrome, shots: Path, tmp_path: Path,
) -> None:
    (tmp_path / "cats.jsonl").write_text(ROWS)
    click(walker, "//a[.='New training'][contains(@class, 'button')]")
    see(walker, "//input[@id='content']").send_keys(str(tmp_path / "cats.jsonl"))
    click(walker, "//button[.='Upload']")
    see(walker, "//p[contains(@class, 'note')][contains(., '60 rows of the kind prompt')]")
    name = see(walker, "//input[@id='destination']")
    name.clear()
    name.send_keys("acme/cats")
    steps = see(walker, "//input[@id='num_train_epochs']")
    steps.clear()
    steps.send_keys("2")
    click(walker, "//button[.='Estimate']")
    see(walker, "//dt[.='Price']")
    assert see(walker, "//mark").text and see(walker, "//*[local-name()='svg']")
    assert see(walker, "//input[@id='num_train_epochs']").get_property("value") == "2"
    pictured(walker, shots, "new")
    click(walker, "//button[.='Start the training']")
    see(walker, "//h1[.='Training of acme/cats']")
    see(walker, "//*[contains(., 'in the queue')]")
    pictured(walker, shots, "waiting")
    click(walker, "//button[.='Cancel']")
    walker.switch_to.alert.accept()
    see(walker, "//span[contains(@class, 'status')][.='canceled']")


def test_a_training_moves_on_while_one_looks_and_a_reload_shows_the_same(
    gateway: Running, walker: Chrome, shots: Path, under_way: str,
) -> None:
    walker.get(f"{gateway.url}/trainings/{under_way}")
    see(walker, f"//dd[.='{STEPS // 2} of {STEPS}']")
    pictured(walker, shots, "training")
    write(gateway.settings.home_path / "trainings" / under_way, events_of(STEPS // 2 + 1))
    see(walker, f"//dd[.='{STEPS // 2 + 1} of {STEPS}']")
    walker.refresh()
    see(walker, f"//dd[.='{STEPS // 2 + 1} of {STEPS}']")
    with gateway.here.database.session() as session:
        row = session.get_one(Training, under_way)
        row.status, row.completed_at, row.error = "failed", time.time(), "The disk is full. Free some space."
    see(walker, "//p[contains(@class, 'error')][contains(., 'The disk is full')]")


def test_everything_is_there_without_script(gateway: Running, walker: Chrome, under_way: str) -> None:
    walker.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    walker.get(f"{gateway.url}/trainings/{under_way}")
    see(walker, f"//dd[.='{STEPS // 2} of {STEPS}']")
    click(walker, "//button[.='Pause']")
    see(walker, "//span[contains(@class, 'status')][.='paused']")
    click(walker, "//button[.='Resume']")
    see(walker, "//button[.='Pause']")


def test_every_page_is_legible_wide_and_narrow(gateway: Running, walker: Chrome, shots: Path, under_way: str) -> None:
    told(gateway, "f" * 26, 20, status="failed", completed_at=time.time() - 400,
         error='data.jsonl line 4811: "completion" is a number (17); expected a string. Quote it.')
    told(gateway, "s" * 26, STEPS, status="succeeded", completed_at=time.time() - 4000, output_version="ab" * 32)
    gateway.here.store.write(f"versions/{'ab' * 32}/training.json", json.dumps(LINEAGE))
    told(gateway, "w" * 26, 0, waits_for="Waiting for another training to end.", created_at=time.time() - 20)
    gateway.upload(ROWS, "cats.jsonl")
    bad = gateway.upload('{"prompt": 3}\n{"prompt": "a", "completion": "b"}\nx\n', "bad.jsonl")
    with gateway.here.database.session() as session:
        session.query(Model).update({"about": {"description": "Notes in a sentence."}})
        session.merge(Delivery(
            id="msg_w", owner="acme", subject="s" * 26, event="completed", url="https://hooks.example/very/long/address",
            body=b'{"id":"x","status":"succeeded"}', due=0.0, tries=2, answer="not delivered (HTTP 500)",
            created_at=time.time() - 30, done_at=None))
    pages = {"overview": "/", "model": "/models/acme/notes", "models": "/models", "files": "/files", "keys": "/keys",
             "bad-file": f"/files/{bad['id']}", "webhooks": "/webhooks", "succeeded": f"/trainings/{'s' * 26}",
             "failed": f"/trainings/{'f' * 26}"}
    for name, path in pages.items():
        walker.get(gateway.url + path)
        see(walker, "//h1")
        pictured(walker, shots, name)
    walker.delete_all_cookies()
    walker.get(gateway.url)
    see(walker, "//h1[.='Sign in']")
    pictured(walker, shots, "sign-in")
