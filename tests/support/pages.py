"""What a person does in a browser: find, fill, click, look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

WAIT_S = 60
T = TypeVar("T")


def see(browser: Chrome, path: str) -> WebElement:
    """Wait for an element to be visible; a failure says what is on the page instead."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.expected_conditions import visibility_of_element_located
    from selenium.webdriver.support.ui import WebDriverWait

    try:
        return WebDriverWait(browser, WAIT_S).until(visibility_of_element_located((By.XPATH, path)))
    except TimeoutException:
        page = browser.find_element(By.TAG_NAME, "body").text
        raise AssertionError(f"{path} is not on {browser.current_url}, which says:\n{page}") from None


def steadily(browser: Chrome, act: Callable[[], T]) -> T:
    """What `act` gives; it is done again where the page has drawn an element anew, or something still lies over it."""
    from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    passing = (ElementClickInterceptedException, StaleElementReferenceException)
    return WebDriverWait(browser, WAIT_S, ignored_exceptions=passing).until(lambda _: [act()])[0]


def property_of(browser: Chrome, path: str, name: str) -> Any:
    """A property of an element, such as its tagName or innerText."""
    return steadily(browser, lambda: see(browser, path).get_property(name))


def complaints(browser: Chrome) -> list[str]:
    """What the browser's console says since it was last asked, of the server that the page is from; other tests'
    pages speak there too."""
    server = "/".join(browser.current_url.split("/")[:3]) + "/"
    said = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in said if server in message and "favicon" not in message]


def into_view(browser: Chrome, element: WebElement) -> None:
    """Scroll to it."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)


def click(browser: Chrome, path: str) -> None:
    """Wait for an element, and click on it."""
    def clicked() -> None:
        element = see(browser, path)
        into_view(browser, element)
        element.click()

    steadily(browser, clicked)


def control(browser: Chrome, name: str) -> WebElement:
    """The control of a parameter in Prefect's form, found by its visible label."""
    ends = " or ".join(f"substring-after(normalize-space(), ': ')='{end}'" for end in (name, f"{name} (Optional)"))
    return see(browser, f"//*[@id=//label[{ends}]/@for]")


def fill(browser: Chrome, name: str, value: Any) -> None:
    """Set one parameter in the form."""
    steadily(browser, lambda: _fill(browser, name, value))


def _fill(browser: Chrome, name: str, value: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    found = control(browser, name)
    into_view(browser, found)
    if isinstance(value, bool):
        if (found.get_attribute("aria-checked") == "true") != value:
            found.click()
    elif found.tag_name == "button":
        found.click()
        click(browser, f"//*[@role='option'][normalize-space()='{value}']")
    else:
        found.send_keys(Keys.CONTROL, "a")
        found.send_keys(str(value))


def tab(browser: Chrome, name: str) -> None:
    """Open one of the tabs of Prefect's run page."""
    click(browser, f"//*[@role='tab'][normalize-space()='{name}']")


def choose(browser: Chrome, button: str, item: str) -> None:
    """Open the menu behind a button, and choose from it."""
    click(browser, f"//button[normalize-space()='{button}']")
    click(browser, f"//*[@role='menuitem'][normalize-space()='{item}']")


class Album:
    """Numbered pictures of the browser."""

    def __init__(self, browser: Chrome, folder: Path) -> None:
        self._browser, self._folder, self._count = browser, folder, 0
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, name: str) -> None:
        """01-form.png and so on."""
        self._count += 1
        assert self._browser.save_screenshot(str(self._folder / f"{self._count:02d}-{name}.png"))
