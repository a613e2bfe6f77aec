"""What `anneal train` says at its end: pytest tests/deployments/cli/test_outcome.py"""

from __future__ import annotations

import io
import json
import re
import shlex

import pytest
from rich.console import Console

from deployments.cli import outcome as module
from deployments.cli.outcome import curl, outcome
from deployments.cli.terminal import Terminal
from infra.models.registry import Registry
from infra.records import Deployment, Version
from infra.settings import Settings
from tasks.launcher.forecast import forecast
from tests.support.past import Past

VERSION = Version(destination="acme/summarizer", id="0" * 64, number=3, folder="versions/v", uri="models:/x/3",
                  training_id="t")
PREDICTOR = "http://127.0.0.1:5001"


@pytest.fixture
def seen(settings: Settings, past: Past) -> Terminal:
    """A terminal that has heard a whole run."""
    one = Terminal(Console(file=io.StringIO()), prefect_page="http://127.0.0.1:4200/v2/runs/flow-run/")
    one.run_begins("abc")
    one.expects(forecast(settings, past.spec, past.pack, past.base))
    for step, record in (("train", past.trained), ("evaluate", past.evaluation)):
        one.step_ends(step, record, was_done=False)
    return one


def test_the_end_has_verdict_version_price_sample_and_links(
    settings: Settings, past: Past, seen: Terminal, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Registry, "run_of", lambda *_: ("1", "r"))
    served = settings.model_copy(update={"predictor_url": PREDICTOR, "mlflow_uri": "http://127.0.0.1:5000"})
    seen.step_ends("deploy", Deployment(version="v", status="serving", url=PREDICTOR), was_done=False)
    text = outcome(served, VERSION, seen)
    assert text.startswith(f"acme/summarizer version 3\n{VERSION.id}\n\n{past.evaluation.verdict}\n")
    for words in ("new model  <b>|x", "base       c", "reference  a", "Trained for 1.0 s on 1 x "):
        assert words in text
    for link in (f"{PREDICTOR}/?model=acme/summarizer", "http://127.0.0.1:4200/v2/runs/flow-run/abc",
                 "http://127.0.0.1:5000/#/experiments/1/runs/r?workflowType=machine_learning",
                 "http://127.0.0.1:5000/#/models/acme--summarizer/versions/3?workflowType=machine_learning"):
        assert link in text
    assert f"  curl -s {PREDICTOR}/predictions" in text


def test_without_a_predictor_it_says_why_and_what_to_do(
    settings: Settings, seen: Terminal, monkeypatch: pytest.MonkeyPatch,
) -> None:
    none = Deployment(version="v", status="skipped", reason="no predictor is running")
    seen.step_ends("deploy", none, was_done=False)
    text = outcome(settings, VERSION, seen)
    assert "Not deployed: no predictor is running." in text and "curl" not in text


def test_the_curl_line_can_be_pasted(settings: Settings) -> None:
    served = settings.model_copy(update={"predictor_url": PREDICTOR, "api_key": "k"})
    line = curl(served, VERSION, "It's \"five\"\n o'clock")
    words = shlex.split(line)
    assert json.loads(words[words.index("-d") + 1]) == {
        "model": "acme/summarizer", "input": {"prompt": "It's \"five\"\n o'clock"}}
    assert re.search(r"Bearer \$ANNEAL_API_KEY", line) and served.api_key not in words


def test_the_key_is_not_written_into_files(
    settings: Settings, seen: Terminal, monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = settings.model_copy(update={"predictor_url": PREDICTOR})
    monkeypatch.setattr(module, "signed_in", lambda *_: {"predictor": f"{PREDICTOR}/#key=secret"})
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert "secret" not in module.pages(served, VERSION, seen, served=True)["playground"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert module.pages(served, VERSION, seen, served=True)["playground"].endswith("#key=secret")
