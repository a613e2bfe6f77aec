"""A page of another origin, in the browser of somebody who has signed in, against the running stack.

Run alone: pytest tests/e2e/test_doors.py
The page sends what needs no preflight, and what does, to Prefect, MLflow and the predictor: from another port, from
another name, from the tunnel's own name on another port, and (DNS rebinding) from a name that leads to the service.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from deployments.cli.console import links_of, signed_in
from tests.conftest import wait_for
from tests.e2e.conftest import Stack
from tests.support import prefect_api
from tests.support.pages import see
from tests.support.site import serving
from tests.support.stack import TUNNEL

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.slow

PAGE = Path(__file__).with_name("attack.html")
PLACES = ("127.0.0.1", "localhost", "attack.example", TUNNEL)


class Foreign(ThreadingHTTPServer):
    """Serves the page, and notes what else it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: set[tuple[str, str]] = set()


class Handler(BaseHTTPRequestHandler):
    server: Foreign

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_page = self.path.startswith("/page")
        if not is_page:
            kind = self.headers.get("Content-Type", "").split(";")[0]
            self.server.asked.add((self.headers.get("Upgrade") or self.command, kind))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE.read_bytes() if is_page else b"")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def foreign() -> Iterator[Foreign]:
    """On a port of its own."""
    with serving(Foreign()) as server:
        yield server


@pytest.fixture
def targets(stack: Stack, tmp_path: Path) -> list[dict[str, str]]:
    """What would do harm: a command, a variable, an experiment, a model that is served no more."""
    settings, run = stack.settings, {"name": "attacked", "job_variables": {"command": f"touch {tmp_path}/attacked"}}
    deployment = stack.prefect("/deployments/name/predict/predict")["id"]
    return [{"url": url, "body": json.dumps(body)} for url, body in {
        f"{settings.prefect_api}/deployments/{deployment}/create_flow_run": run,
        f"{settings.prefect_api}/variables/": {"name": "attacked", "value": "yes"},
        f"{settings.prefect_api}/logs/filter": {},
        f"{settings.prefect_api}/events/in": {},
        f"{settings.tracking_uri}/api/2.0/mlflow/experiments/create": {"name": "attacked"},
        f"{settings.tracking_uri}/ajax-api/2.0/mlflow/experiments/create": {"name": "attacked"},
        f"{settings.predictor}/predictions": {"input": {"prompt": "Hi"}},
        f"{settings.predictor}/deployments/acme/attacked": {},
        f"{settings.predictor}/models": {}}.items()]


def harm(stack: Stack, folder: Path) -> list[Any]:
    """What the page has achieved."""
    from mlflow import MlflowClient

    variable = prefect_api.ask(stack.settings, "/variables/name/attacked")
    experiment = MlflowClient(stack.settings.tracking_uri).get_experiment_by_name("attacked")
    return [*stack.runs("attacked"), *([] if variable.status_code == 404 else [variable.text]),
            *([experiment] if experiment else []), *folder.glob("attacked")]


def attacked(browser: Chrome, page: str, targets: list[dict[str, str]]) -> list[str]:
    """What the page could read."""
    browser.set_script_timeout(120)
    browser.get(page)
    return list(browser.execute_async_script(
        "attack(arguments[0]).then(arguments[1], (error) => arguments[1]([String(error)]))", targets))


@pytest.mark.parametrize("place", PLACES)
def test_a_page_of_another_origin_gets_nothing(
    place: str, stack: Stack, browser: Chrome, foreign: Foreign, targets: list[dict[str, str]], tmp_path: Path,
) -> None:
    page = f"http://{place}:{foreign.server_port}/page"
    if place == TUNNEL:  # the services are called by that name, too
        targets = [{**one, "url": one["url"].replace("127.0.0.1", TUNNEL)} for one in targets]
    assert attacked(browser, page, targets) == []
    assert harm(stack, tmp_path) == []


def test_the_page_does_send_all_of_it(browser: Chrome, foreign: Foreign) -> None:
    """Else the test above could not fail."""
    page = f"http://127.0.0.1:{foreign.server_port}/page"
    read = attacked(browser, page, [{"url": f"http://127.0.0.1:{foreign.server_port}/x", "body": "{}"}])
    kinds = {"", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json"}
    assert {(method, kind) for method in ("POST",) for kind in kinds - {"application/json"}} <= foreign.asked
    assert {method for method, _ in foreign.asked} >= {"GET", "POST", "PUT", "PATCH", "DELETE", "websocket"}
    assert read


@pytest.mark.parametrize("service", ["prefect", "mlflow", "predictor"])
def test_a_name_that_was_bent_to_our_address_is_refused(stack: Stack, browser: Chrome, service: str) -> None:
    address = urlsplit(links_of(stack.settings)[service])
    browser.get(f"http://attack.example:{address.port}/")
    assert "is not called" in browser.find_element("tag name", "body").text
    found = browser.execute_async_script(
        "const done = arguments[1]; Promise.all(arguments[0].map((path) => fetch(path, {method: 'POST', body: '{}'})"
        ".then((answer) => answer.status))).then(done)", ["/api/flow_runs/filter", "/predictions", "/models"])
    assert found == [403, 403, 403]


def test_the_links_sign_in_under_the_tunnels_name_too(stack: Stack, browser: Chrome, tmp_path: Path) -> None:
    links = signed_in(stack.settings, links_of(stack.settings))
    shown = {"prefect": "Flow Runs", "mlflow": "Experiments", "predictor": "Anneal playground",
             "gateway": "No training runs"}
    for service, text in shown.items():
        browser.get(links[service].replace("127.0.0.1", TUNNEL))
        see(browser, f"//body//*[contains(text(), '{text}')]")
        assert stack.settings.secret not in browser.current_url
        browser.save_screenshot(str(tmp_path / f"{service}.png"))


def test_a_wrong_link_says_what_to_do(stack: Stack, browser: Chrome) -> None:
    browser.get("about:blank")
    browser.get(f"{links_of(stack.settings)['mlflow'].replace('127.0.0.1', 'localhost')}/sign-in#wrong")
    wait_for(lambda: "Run `anneal up`" in browser.find_element("tag name", "body").text, "it says nothing")


@pytest.mark.parametrize(("url", "status"), [
    ("{prefect}/flow_runs/filter", 403), ("{prefect}/logs/filter", 403),
    ("{mlflow}/api/2.0/mlflow/experiments/search", 401), ("{predictor}/predictions", 401), ("{predictor}/models", 401)])
def test_a_program_without_the_secret_gets_nothing(stack: Stack, url: str, status: int) -> None:
    settings = stack.settings
    url = url.format(prefect=settings.prefect_api, mlflow=settings.tracking_uri, predictor=settings.predictor)
    assert httpx.post(url, json={}).status_code == status
    assert httpx.get(url).status_code in (401, 405)


def test_job_variables_choose_no_code(stack: Stack) -> None:
    deployment = stack.prefect("/deployments/name/predict/predict")["id"]
    for wrong in ({"command": "id"}, {"working_dir": "/tmp"}, {"env": {"PYTHONPATH": "/tmp"}},
                  {"env": {"LD_PRELOAD": "/tmp/x.so"}}, {"env": {"PREFECT__FLOW_ENTRYPOINT": "/tmp/x.py:x"}}):
        answer = prefect_api.ask(
            stack.settings, f"/deployments/{deployment}/create_flow_run", {"name": "attacked", "job_variables": wrong})
        assert answer.is_client_error and "Validation failed" in answer.json()["detail"], answer.text
    assert stack.runs("attacked") == []
