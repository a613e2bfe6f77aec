"""The predictor's page: what it is served with, and a person's use of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deployments.predictor.playground import PAGE
from tests.deployments.predictor.conftest import PROMPT, Predictor, needs_stories, running
from tests.support.pages import complaints, see

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = needs_stories


def test_page_runs_nothing_but_its_own_script(served: Predictor) -> None:
    response = served.http.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert response.status_code == 200 and response.text == PAGE
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["script-src"].startswith("'sha256-") and policy["style-src"].startswith("'sha256-")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not [word for word in ("http://", "https://", "innerHTML", "cookie") if word in PAGE]


def test_page_streams_the_answer_to_what_is_typed(
    served: Predictor, expected: dict[str, str], browser: Chrome, tmp_path: Path,
) -> None:
    browser.get(f"{served.url}/?model=acme/tales")
    version = served.put("a")
    see(browser, f"//option[starts-with(normalize-space(), 'acme/tales (version {version[:12]}')]")
    fill(browser, prompt=PROMPT, max_new_tokens="16")
    see(browser, f"//*[@id='status'][starts-with(., '16 tokens') and contains(., '{version[:12]}')]")
    browser.save_screenshot(str(tmp_path / "answer.png"))
    assert at(browser, "answer") == expected[version]
    assert at(browser, "error") == ""
    assert not browser.find_element("id", "key").is_displayed()
    assert complaints(browser) == []


def test_refusals_are_shown_as_the_predictors_sentence(served: Predictor, browser: Chrome, tmp_path: Path) -> None:
    browser.get(f"{served.url}/?model=acme/tales")
    see(browser, "//option[starts-with(., 'acme/tales')]")
    fill(browser, prompt="word " * 2000)
    see(browser, "//*[@id='error'][contains(., 'tokens') and contains(., 'Shorten')]")
    browser.save_screenshot(str(tmp_path / "refusal.png"))


def test_what_the_address_says_is_text_and_never_markup(served: Predictor, browser: Chrome) -> None:
    browser.get(f"{served.url}/?model=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    see(browser, "//*[@id='error'][.='<img src=x onerror=alert(1)> is not served.']")
    assert "<img" not in browser.page_source.split("</form>")[1].split("<script>")[0]


def test_page_asks_for_the_key_where_there_is_one(
    tmp_path: Path, versions: Path, browser: Chrome, expected: dict[str, str],
) -> None:
    with running(tmp_path, versions, api_key="secret-key") as predictor:
        predictor.http.headers["Authorization"] = "Bearer secret-key"
        assert predictor.deploy(predictor.put("a")).status_code == 200
        browser.get(f"{predictor.url}/")
        see(browser, "//*[@id='error'][contains(., 'API key is missing or wrong')]")
        see(browser, "//input[@id='key' and @type='password']").send_keys("secret-key")
        fill(browser, prompt=PROMPT, max_new_tokens="16")
        see(browser, "//*[@id='status'][starts-with(., '16 tokens')]")
        browser.save_screenshot(str(tmp_path / "key.png"))
        assert at(browser, "answer") == expected[predictor.put("a")]
        browser.refresh()
        assert see(browser, "//input[@id='key']").get_property("value") == ""


def test_a_link_brings_the_key_and_the_address_forgets_it(tmp_path: Path, versions: Path, browser: Chrome) -> None:
    with running(tmp_path, versions, api_key="secret-key") as predictor:
        predictor.http.headers["Authorization"] = "Bearer secret-key"
        assert predictor.deploy(predictor.put("a")).status_code == 200
        browser.get(f"{predictor.url}/?model=acme/tales")
        see(browser, "//*[@id='error'][contains(., 'API key is missing or wrong')]")
        browser.get(f"{predictor.url}/?model=acme/tales#key=secret-key")  # into a page that is open already
        see(browser, "//option[starts-with(., 'acme/tales')]")
        assert browser.current_url == f"{predictor.url}/?model=acme/tales"
        assert at(browser, "error") == ""
        browser.get("about:blank")
        browser.get(f"{predictor.url}/?model=acme/tales")  # as the link of a run opens it later
        see(browser, "//option[starts-with(., 'acme/tales')]")
        browser.execute_script("localStorage.setItem('anneal-key', 'of an earlier start')")
        browser.refresh()
        see(browser, "//*[@id='error'][contains(., 'API key is missing or wrong')]")
        assert browser.execute_script("return localStorage.length") == 0, "what is refused is not kept"
        browser.get("about:blank")


def fill(browser: Chrome, **values: str) -> None:
    """Type into the page's fields, and run."""
    for name, value in values.items():
        browser.execute_script("arguments[0].value = arguments[1]", see(browser, f"//*[@id='{name}']"), value)
    see(browser, "//button[@id='run']").click()


def at(browser: Chrome, name: str) -> str:
    """The text of one of the page's parts."""
    return str(browser.find_element("id", name).get_property("textContent"))
