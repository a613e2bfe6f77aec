"""`anneal watch` without a server; with one: tests/e2e/test_watch.py."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest

from deployments.cli import main as cli
from infra.errors import UserError
from infra.settings import Settings
from infra.spec import TrainingSpec
from infra.storage.store import Store
from tasks.register import register
from tests.support.past import Past

OPTIONS = ["--train-data", "d.jsonl", "--base-model", "b", "--destination", "a/b"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without a stack."""
    for name in ("PREFECT_API_URL", "ANNEAL_PREFECT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANNEAL_HOME", str(tmp_path))
    monkeypatch.setattr("infra.stack.services.for_runs", lambda _: {})


@pytest.mark.parametrize(("options", "words"), [
    (OPTIONS, "anneal up"), (["--off", "--destination", "a/b"], "anneal up"), (["--off"], "anneal up"),
    (["--off", "--destination", "x"], 'destination is "x"'),
    (OPTIONS[:4], "destination is missing"), ([*OPTIONS, "--every", "soon"], "a number and m, h or d"),
    ([*OPTIONS, "--every", "0m"], "a number and m, h or d"), ([*OPTIONS, "--cron", "x"], "five fields"),
    ([*OPTIONS, "--every", "5m", "--cron", "* * * * *"], "not allowed with"),
    ([*OPTIONS, "--lora-rank", "0"], "lora_rank is 0")])
def test_what_the_user_can_mend_is_a_sentence(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["watch", *options]) == cli.EXIT_USER_ERROR
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("every", "span"), [
    ("1m", timedelta(minutes=1)), ("90m", timedelta(minutes=90)), ("2h", timedelta(hours=2)), ("1d", timedelta(1))])
def test_destinations_look_at_moments_of_their_own_that_stay(every: str, span: timedelta) -> None:
    from deployments.cli.watch import interval_of

    schedules = [interval_of(every, destination) for destination in ("a/b", "a/b", "a/c")]
    assert {schedule.interval for schedule in schedules} == {span}
    first, again, other = (schedule.anchor_date for schedule in schedules)
    assert first == again != other


def test_patterns_and_folders_of_here_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.cli.remote import from_anywhere

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for given, expected in (
        ("data", str(tmp_path / "data")), ("data/*.jsonl", str(tmp_path / "data" / "*.jsonl")),
        ("*.jsonl", str(tmp_path / "*.jsonl")), ("elsewhere/*.jsonl", "elsewhere/*.jsonl"),
        ("s3://b/*.jsonl", "s3://b/*.jsonl")):
        spec = TrainingSpec(train_data=given, base_model="owner/name", destination="a/b")
        assert (from_anywhere(spec).train_data, from_anywhere(spec).base_model) == (expected, "owner/name")


def test_cron_is_read_in_utc() -> None:
    from deployments.cli.watch import cron_of

    assert cron_of("*/10 * * * *").timezone == "UTC"
    with pytest.raises(UserError):
        cron_of("often")


@pytest.mark.slow
@pytest.mark.usefixtures("database")
def test_the_newest_versions_parameters_are_taken_and_told(
    settings: Settings, store: Store, past: Past, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deployments.cli.watch import plan_of

    past.spec = dataclasses.replace(past.spec, lora_rank=4, train_batch_size=2)
    register(settings, store, past.spec, past.trained, past.evaluation, past.split, past.pack, past.base)
    monkeypatch.setattr("deployments.cli.watch.find_same", lambda *_: past.base)
    asked = ["watch", "--train-data", "s3://b/*.jsonl", "--destination", past.spec.destination, "--lora-rank", "16"]
    options = cli.parser().parse_args(asked)
    plan = plan_of(settings.model_copy(update={"prefect_url": "http://127.0.0.1:9/api"}), options)
    assert (plan.spec.train_batch_size, plan.spec.lora_rank, plan.version) == (2, 16, 1)
    assert (plan.spec.train_data, plan.spec.base_model) == ("s3://b/*.jsonl", past.base.path)
    told = plan.lines()
    assert "lora_rank 16, train_batch_size 2" in told["parameters"] and "as of version 1" in told["parameters"]
    assert told["data"] == "s3://b/*.jsonl"
