"""The Prefect UI's form starts a training: headless Chromium against the real server. Pictures stay in pytest's folder."""

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


@pytest.fixture
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


def test_form_starts_a_run_whose_page_shows_curve_and_scores(
    stack: Stack, first: Training, browser: Chrome, tmp_path: Path,
) -> None:
    deployment = stack.prefect("/deployments/name/finetune/gpu")["id"]
    ui = stack.settings.prefect_api.removesuffix("/api")
    browser.get(f"{ui}/deployments/deployment/{deployment}/run")
    for name, value in first.parameters.items():
        fill(browser, name, value)
    browser.save_screenshot(str(tmp_path / "form.png"))
    before = set(stack.runs("finetune acme/notes"))
    see(browser, "//button[@type='submit']").click()

    (run,) = started(stack, before)
    assert stack.wait_until_over(run)["type"] == "COMPLETED"
    assert first.version["id"][:12] in stack.artifacts(run)["endpoint"]


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
