"""infra/models/base_models.py: what the hub says of a name, before anything else is done.

No hub can be reached here; a server of our own answers with what the hub's documentation says.
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from infra.errors import BaseModelError, Transient
from infra.models.base_models import find_base, look_for_base
from infra.settings import Settings
from tests.conftest import free_port


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers every request with one status."""

    status = 200

    def do_GET(self) -> None:
        body = b'{"id": "acme/model", "sha": "0"}'
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """Where huggingface_hub asks."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield Hub
        server.shutdown()


@pytest.mark.parametrize(("status", "words"), [
    (401, "the model hub answers 401.*HF_TOKEN"), (403, "the model hub answers 403"),
    (404, "the model hub answers 404")])
def test_a_name_that_the_hub_refuses_is_refused_first(
    settings: Settings, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, status: int, words: str,
) -> None:
    monkeypatch.setattr(hub, "status", status)
    with pytest.raises(BaseModelError, match=words):
        look_for_base(settings, "acme/model")


@pytest.mark.parametrize("status", [200, 429, 500, 503])
def test_a_hub_that_does_not_say_is_asked_again_later(
    settings: Settings, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, status: int,
) -> None:
    monkeypatch.setattr(hub, "status", status)
    look_for_base(settings, "acme/model")
    assert list(settings.home_path.iterdir()) == [], "nothing is fetched"


def test_a_hub_that_is_away_is_no_reason_to_refuse_at_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    look_for_base(settings, "acme/model")
    with pytest.raises((BaseModelError, Transient), match=r"cannot be reached|does not answer"):
        find_base(settings, "acme/model")


@pytest.mark.parametrize("name", ["acme--x/model", "acme/model.git"])
def test_a_name_that_is_none_of_the_hub_is_told_by_the_step(settings: Settings, name: str) -> None:
    look_for_base(settings, name)
    with pytest.raises(BaseModelError, match="no name of the hub"):
        find_base(settings, name)
