"""deployments/cli/rollout.py with MLflow's registry and the real predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.cli import main as cli
from deployments.cli.rollout import ROLLED_BACK_TAG, promote, rollback
from deployments.gateway.keys import create_key
from infra.errors import AnnealError, GateError, UserError
from infra.models.registry import GATE_TAG, Registry
from infra.settings import Settings
from tests.deployments.cli.conftest import Make
from tests.deployments.predictor.conftest import Predictor, running
from tests.support.gateway import browser
from tests.support.gateway import running as gateway_running

pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.slow]
NAME = "acme/summarizer"
Aliases = Callable[[], tuple[int | None, int | None]]


@pytest.fixture
def predictor(settings: Settings, tmp_path: Path) -> Iterator[Predictor]:
    with running(settings.home_path, tmp_path, base_folders="") as found:
        yield found


@pytest.fixture
def here(settings: Settings, predictor: Predictor) -> Settings:
    return settings.model_copy(update={"predictor_url": predictor.url})


@pytest.fixture
def aliases(settings: Settings) -> Aliases:
    """Numbers of champion and previous."""
    def found() -> tuple[int | None, int | None]:
        registry = Registry(settings)
        return registry.number_at("champion", NAME), registry.number_at("previous", NAME)

    return found


def served(predictor: Predictor) -> str | None:
    """The id of the version that the model answers with."""
    models = predictor.http.get("/models").json()["models"]
    return str(models[NAME]["version"]) if NAME in models else None


def test_promote_and_rollback_choose_what_a_model_answers_with(
    here: Settings, make: Make, predictor: Predictor, aliases: Aliases,
) -> None:
    one, two = make(0), make(1)
    done = promote(here, f"{NAME}:1")
    assert (done.before, served(predictor), aliases()) == (None, one.id, (1, None)) and done.smoke
    assert promote(here, two.id).before == 1 and (served(predictor), aliases()) == (two.id, (2, 1))
    assert promote(here, f"{NAME}:2").before == 2 and aliases() == (2, 1), "the same again changes nothing"

    assert rollback(here, NAME).version == one and (served(predictor), aliases()) == (one.id, (1, 2))
    assert ROLLED_BACK_TAG in Registry(here).tags(NAME, 2)
    assert rollback(here, NAME).version == two and (served(predictor), aliases()) == (two.id, (2, 1))


def test_the_gateways_page_promotes_and_rolls_back(
    here: Settings, make: Make, predictor: Predictor, aliases: Aliases,
) -> None:
    one, two = make(0), make(1)
    with gateway_running(here.model_copy(update={"api_key": "the-key"}), projecting=False) as gateway:
        gateway.model(*NAME.split("/"))
        page = f"/models/{NAME}"
        with browser(gateway, "the-key") as visit:
            for version in (one, two):
                assert visit.post(f"{page}/promote", data={"version": version.id}).status_code == 303
            assert (served(predictor), aliases()) == (two.id, (2, 1))
            shown = visit.get(page).text
            assert shown.count(">Promote<") == shown.count(">Roll back<") == 1
            assert visit.post(f"{page}/rollback").status_code == 303
            assert (served(predictor), aliases()) == (one.id, (1, 2))
            for wrong, why in (("", "404"), ("champion", "404"), ("ab" * 32, "there is no version")):
                refused = visit.post(f"{page}/promote", data={"version": wrong})
                assert refused.status_code in (404, 422) and why in refused.text
            Registry(here).tag(NAME, 2, {GATE_TAG: "failed"})
            assert "not good enough" in visit.post(f"{page}/promote", data={"version": two.id}).text
        for owner, scopes, status in (("other", ["read", "train"], 404), ("acme", ["read"], 403)):
            with browser(gateway, create_key(gateway.here.database, owner, scopes)) as visit:
                assert visit.post(f"{page}/promote", data={"version": two.id}).status_code == status
                assert visit.post(f"{page}/rollback").status_code == status
        assert (served(predictor), aliases()) == (one.id, (1, 2))


def test_promote_takes_the_challenger_and_keeps_to_the_gate(
    here: Settings, make: Make, predictor: Predictor, aliases: Aliases,
) -> None:
    one, two, registry = make(0), make(1), Registry(here)
    promote(here, f"{NAME}:1")
    registry.point("challenger", NAME, 2)
    registry.tag(NAME, 2, {GATE_TAG: "failed"})
    with pytest.raises(GateError, match="--force"):
        promote(here, NAME)
    assert (served(predictor), aliases()) == (one.id, (1, None))
    assert promote(here, NAME, force=True).version == two and aliases() == (2, 1)


def test_a_version_that_the_predictor_refuses_changes_nothing(
    here: Settings, make: Make, predictor: Predictor, aliases: Aliases,
) -> None:
    def spoilt(path: Path) -> None:
        save_file({name: torch.full_like(weight, torch.nan) for name, weight in load_file(path).items()}, path)

    one, _ = make(0), make(1, change=spoilt)
    promote(here, f"{NAME}:1")
    with pytest.raises(AnnealError, match="goes on answering"):
        promote(here, f"{NAME}:2")
    assert (served(predictor), aliases()) == (one.id, (1, None))


def test_what_cannot_be_done_is_one_sentence(
    settings: Settings, here: Settings, make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(0)
    promote(here, f"{NAME}:1")
    with pytest.raises(UserError, match="no version before"):
        rollback(here, NAME)
    with pytest.raises(UserError, match="expected owner/name"):
        rollback(here, f"{NAME}:1")
    with pytest.raises(UserError, match="there is no version"):
        promote(here, f"{NAME}:9")
    with pytest.raises(UserError, match="anneal up"):
        promote(settings, f"{NAME}:1")
    monkeypatch.setenv("ANNEAL_HOME", str(settings.home_path))
    assert cli.main(["rollback", "acme/none"]) == 2 and "acme/none" in capsys.readouterr().err
