"""The Prefect UI: its form starts a training, its run page shows the results: pytest tests/e2e/test_form.py

Headless Chromium against the real server; the pictures stay in pytest's temporary folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import needed
from tests.e2e.conftest import Stack, Training

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.slow

WINDOW = "1400,2400"
WAIT_S = 60
CONTROL = "following::*[self::textarea or self::input or self::select or @role='switch'][1]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    """A headless Chromium."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = needed("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={WINDOW}"):
        options.add_argument(argument)
    driver = Chrome(options=options, service=Service(needed("chromedriver")))
    yield driver
    driver.quit()


def test_form_starts_a_training(stack: Stack, first: Training, browser: Chrome, tmp_path: Path) -> None:
    deployment = stack.prefect("/deployments/name/finetune/gpu")["id"]
    before = runs_of(stack, deployment)
    browser.get(f"{ui(stack)}/deployments/deployment/{deployment}/run")
    for name, value in first.parameters.items():
        fill(browser, name, value)
    browser.save_screenshot(str(tmp_path / "form.png"))
    see(browser, "//button[normalize-space()='Submit']").click()
    see(browser, "//*[contains(., 'scheduled') or contains(., 'Scheduled')]")
    (run,) = runs_of(stack, deployment) - before
    assert stack.wait_until_over(run)["type"] == "COMPLETED"
    assert first.version["id"][:12] in stack.artifacts(run)["endpoint"]


def test_run_page_leads_to_the_pictures_and_the_scores(
    stack: Stack, first: Training, browser: Chrome, tmp_path: Path,
) -> None:
    page = f"{ui(stack)}/runs/flow-run/{stack.runs('finetune acme/notes')[0]}"
    for name in ("data-lengths", "training-loss"):
        open_artifact(browser, page, name)
        picture = see(browser, "//img[starts-with(@src, 'data:image/svg')]")
        assert int(picture.get_property("naturalWidth")) > 0
        browser.save_screenshot(str(tmp_path / f"{name}.png"))

    open_artifact(browser, page, "rouge", tmp_path / "run.png")
    for model in ("tuned", "base", "lead3"):
        see(browser, f"//td[normalize-space()='{model}']")
    browser.save_screenshot(str(tmp_path / "rouge.png"))


def open_artifact(browser: Chrome, page: str, key: str, picture: Path | None = None) -> None:
    """From the run's page to one of its artifacts."""
    browser.get(page)
    see(browser, "//li[normalize-space()='Artifacts']").click()
    card = see(browser, f"//div[normalize-space()='{key}']")
    if picture:
        browser.save_screenshot(str(picture))
    card.click()


def ui(stack: Stack) -> str:
    """Address of the Prefect UI."""
    return stack.settings.prefect_api.removesuffix("/api")


def runs_of(stack: Stack, deployment: str) -> set[str]:
    """Ids of all runs of a deployment."""
    return {run["id"] for run in stack.prefect("/flow_runs/filter", deployments={"id": {"any_": [deployment]}})}


def fill(browser: Chrome, name: str, value: Any) -> None:
    """Set one field of the form, found by its visible label."""
    from selenium.webdriver.support.ui import Select

    control = see(browser, f"//span[normalize-space()='{name}' or normalize-space()='{name} (Optional)']/{CONTROL}")
    if control.tag_name == "select":
        Select(control).select_by_visible_text(value)
    elif isinstance(value, bool):
        if (control.get_attribute("aria-checked") == "true") != value:
            control.click()
    else:
        control.clear()
        control.send_keys(str(value))


def see(browser: Chrome, path: str) -> WebElement:
    """Wait for an element to be visible."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.expected_conditions import visibility_of_element_located
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT_S).until(visibility_of_element_located((By.XPATH, path)))
