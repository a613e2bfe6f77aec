"""OpenAI's dialect by the official client; Prefect, MLflow and the predictor are away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import openai
import pytest

from tests.support.gateway import Running

pytestmark = pytest.mark.slow
CHAT = "".join(json.dumps({"messages": [
    {"role": "system", "content": "Marv is a chatbot that is also sarcastic."},
    {"role": "user", "content": f"What is {n} and {n}?"},
    {"role": "assistant", "content": f"{2 * n}, as ever."}]}) + "\n"
    for n in range(12))


@pytest.fixture
def client(alone: Running) -> openai.OpenAI:
    return openai.OpenAI(api_key="the-key", base_url=f"{alone.url}/openai/v1", max_retries=0)


@pytest.fixture
def chat(client: openai.OpenAI, tmp_path: Path) -> str:
    """The id of an uploaded chat file."""
    (tmp_path / "mydata.jsonl").write_text(CHAT)
    with (tmp_path / "mydata.jsonl").open("rb") as file:
        return client.files.create(file=file, purpose="fine-tune").id


def test_a_chat_file_is_uploaded_listed_read_and_deleted(client: openai.OpenAI, chat: str) -> None:
    found = client.files.retrieve(chat)
    assert (found.object, found.filename, found.status, found.bytes) == (
        "file", "mydata.jsonl", "processed", len(CHAT))
    assert chat in [one.id for one in client.files.list(purpose="fine-tune")]
    assert client.files.content(chat).text == CHAT
    assert client.files.delete(chat).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(chat)


def test_bad_rows_are_refused_with_their_line(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="line 1") as caught:
        client.files.create(file=("bad.jsonl", b'{"messages": []}\n'), purpose="fine-tune")
    assert caught.value.param == "file" and caught.value.type == "invalid_request_error"


def test_a_job_is_queued_listed_read_and_cancelled(client: openai.OpenAI, chat: str) -> None:
    job = client.fine_tuning.jobs.create(
        model="anneal/demo-base", training_file=chat, suffix="Marv bot", seed=7, metadata={"who": "me"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}})
    assert (job.status, job.object, job.training_file, job.seed) == ("queued", "fine_tuning.job", chat, 7)
    assert job.hyperparameters.n_epochs == 2 and job.id.startswith("ftjob-") and job.fine_tuned_model is None
    assert client.fine_tuning.jobs.retrieve(job.id).id == job.id
    assert job.id in [one.id for one in client.fine_tuning.jobs.list(limit=2)]
    chosen = client.fine_tuning.jobs.list(extra_query={"metadata[who]": "me"})
    assert {one.metadata and one.metadata["who"] for one in chosen} == {"me"}
    assert client.fine_tuning.jobs.list_events(job.id).data[0].object == "fine_tuning.job.event"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_lists_go_on_after_the_last_id(client: openai.OpenAI, chat: str) -> None:
    made = [client.fine_tuning.jobs.create(model="anneal/demo-base", training_file=chat).id for _ in range(3)]
    first = client.fine_tuning.jobs.list(limit=2)
    assert first.has_more and [one.id for one in first.data] == made[:0:-1]
    assert first.get_next_page().data[0].id == made[0]


def test_hyperparameters_are_mapped_and_unknown_ones_refused_by_name(client: openai.OpenAI, chat: str) -> None:
    made = client.fine_tuning.jobs.create(
        model="anneal/demo-base", training_file=chat,
        hyperparameters=cast(Any, {"learning_rate_multiplier": 2, "lora_rank": 4}))
    assert made.hyperparameters.learning_rate_multiplier == 2
    with pytest.raises(openai.BadRequestError, match="n_epochs") as caught:
        client.fine_tuning.jobs.create(
            model="anneal/demo-base", training_file=chat,
            hyperparameters=cast(Any, {"n_epoch": 2}))
    assert caught.value.param == "hyperparameters.n_epoch"
    with pytest.raises(openai.BadRequestError) as method:
        client.fine_tuning.jobs.create(model="anneal/demo-base", training_file=chat, method={"type": "dpo"})
    assert method.value.param == "method.type"


def test_models_and_errors_have_its_shape(client: openai.OpenAI, alone: Running, chat: str) -> None:
    assert "anneal/demo-base" in [one.id for one in client.models.list()]
    assert client.models.retrieve("anneal/demo-base").owned_by == "anneal"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=chat)
    assert unknown.value.param == "model"
    with pytest.raises(openai.AuthenticationError) as wrong:
        openai.OpenAI(api_key="wrong", base_url=f"{alone.url}/openai/v1").models.list()
    assert wrong.value.code == "invalid_api_key"
