"""infra/redaction.py: which variables and addresses hold a secret, and what is shown of a text."""

from __future__ import annotations

import logging
import re
import time
import traceback

import pytest

from infra.errors import DataError, Transient, UserError
from infra.redaction import NO_SECRETS, is_secret, redacted, secret_in
from infra.settings import Settings
from infra.storage.host_guard import parsed
from infra.storage.https import without_secrets
from infra.storage.store import filesystem

WORD = "k7Qw9ZrT2mXc5vBn"


@pytest.mark.parametrize(("name", "value"), [
    ("AWS_SECRET_ACCESS_KEY", WORD), ("AWS_SESSION_TOKEN", WORD), ("HF_TOKEN", WORD), ("ANNEAL_API_KEY", WORD),
    ("ANNEAL_WEBHOOK_SECRET", WORD), ("ANNEAL_WEBHOOK_URL", f"https://hooks.example/{WORD}"),
    ("MLFLOW_TRACKING_PASSWORD", WORD), ("PREFECT_API_AUTH_STRING", f"anneal:{WORD}"), ("PGPASSWORD", WORD),
    ("MYSQL_PWD", WORD), ("DB_PASS", WORD), ("SSHPASS", WORD), ("GH_PAT", WORD), ("SENTRY_DSN", WORD),
    ("REDISCLI_AUTH", WORD), ("OTEL_EXPORTER_OTLP_HEADERS", WORD), ("OPENAI_APIKEY", WORD),
    ("PREFECT_API_DATABASE_CONNECTION_URL", WORD), ("DATABASE_URL", f"postgresql+asyncpg://anneal:{WORD}@db/prefect"),
    ("HTTPS_PROXY", f"http://me:{WORD}@proxy:3128"), ("https_proxy", f"me:{WORD}@proxy:3128"),
    ("ANNEAL_MLFLOW_URI", f"https://{WORD}@mlflow"), ("DATA", f"https://box.example/d?sv=1&sig={WORD}"),
    ("DATA", f"https://s3.example/d?X-Amz-Signature={WORD}"), ("EXTRA", f"Authorization: Bearer {WORD}")])
def test_a_variable_that_holds_a_secret_is_known(name: str, value: str) -> None:
    assert is_secret(name, value)


@pytest.mark.parametrize(("name", "value"), [
    ("PATH", "/usr/bin:/bin"), ("PWD", "/home/me"), ("OLDPWD", "/"), ("HOME", "/root"), ("CUDA_VISIBLE_DEVICES", "0,1"),
    ("TOKENIZERS_PARALLELISM", "false"), ("LD_LIBRARY_PATH", "/usr/lib"), ("ANNEAL_HOME", "/data/a@b"),
    ("NCCL_SOCKET_IFNAME", "eth0"), ("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000"), ("NO_PROXY", "localhost,::1"),
    ("ANNEAL_STORE", "s3://bucket/day=1"), ("PREFECT_API_URL", "http://[fd00::1]:4200/api"), ("LANG", "C.UTF-8")])
def test_what_ranks_need_is_not_taken_for_a_secret(name: str, value: str) -> None:
    assert not is_secret(name, value)


@pytest.mark.parametrize("address", [
    "data.jsonl", "/data/day=*/a@b.jsonl", "../x?y.jsonl", "https://data.example/d.jsonl",
    "https://data.example:8443/@scope/d.jsonl?raw=true&design=1", "http://[fd00::1]:8080/d", "s3://bucket/a@b/day=?/*.jsonl",
    "s3://bucket/day=?/token=a/*.jsonl", "csv:https://data.example/d.csv", "parquet:s3://bucket/a", "store://datasets/ab/d",
    "hf://datasets/me/rows@main/d.jsonl", "acme/model", "/models/llama", ""])
def test_an_address_without_secrets_passes(address: str) -> None:
    assert secret_in(address) == "" and re.search(NO_SECRETS, address)


@pytest.mark.parametrize("address", [
    f"https://me:{WORD}@host/d", f"https://{WORD}@host/d", f"HTTPS://me:{WORD}@host", f"s3://key:{WORD}@bucket/d",
    f"csv:parquet:https://me:{WORD}@host/d", f" https://me:{WORD}@host/d", f"https:\\\\me:{WORD}@host/d",
    f"https:/me:{WORD}@host/d", f"https:me:{WORD}@host/d", f"https://me:{WORD}\n@host/d", f"postgresql://me:{WORD}@db/x",
    f"https://me:{WORD}/x@host/d", f"https://me:{WORD}#x@host/d", f"https://me:{WORD}?x@host/d",
    f"https://h/d?X-Amz-Algorithm=a&X-Amz-Signature={WORD}", f"https://h/d?token={WORD}", f"https://h/d?SIG={WORD}",
    f"https://h/d?AWSAccessKeyId={WORD}", f"https://h/d#access_token={WORD}", f"csv:https://h/d?a=1;key={WORD}"])
def test_an_address_with_a_secret_is_found_here_and_by_the_form(address: str) -> None:
    assert secret_in(address) and not re.search(NO_SECRETS, address)


@pytest.mark.parametrize("address", [
    f"https://me:{WORD}%40host/d", f"https://me:{WORD}\uff20host/d", f"https://h/d?X%2DAmz%2DSignature={WORD}"])
def test_another_spelling_of_it_is_found(address: str) -> None:
    assert secret_in(address)


@pytest.mark.parametrize(("text", "shown"), [
    (f"GET http://me:{WORD}@host:1/d failed", "GET http://host:1/d failed"),
    (f'"https://h/d?raw=1&X-Amz-Signature={WORD}&x=2"', '"https://h/d?raw=1&X-Amz-Signature=***&x=2"'),
    ("s3://bucket/a@b.jsonl line 3", "s3://bucket/a@b.jsonl line 3"), ("mail me@example.com", "mail me@example.com"),
    (f"it said {WORD}", f"it said {WORD}")])
def test_a_text_is_shown_without_the_secrets_of_its_addresses(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(("name", "value"), [
    ("HF_TOKEN", WORD), ("ANNEAL_API_KEY", WORD + "\n"), ("PREFECT_API_AUTH_STRING", f"anneal:{WORD}"),
    ("HTTPS_PROXY", f"http://me:{WORD}@proxy:3128")])
def test_the_secrets_of_the_environment_are_in_no_error_and_no_log(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from infra.redaction import _redacted_record

    monkeypatch.setenv(name, value)
    error = Transient(f"illegal header b'Bearer {WORD}'", where=f"http://x:{WORD}@host", fix=f"Look at {WORD}.")
    assert WORD not in f"{error}{error!r}{error.__reduce__()}" and "Bearer ***" in str(error)
    try:
        raise ValueError(WORD)
    except ValueError as raised:
        info = (type(raised), raised, raised.__traceback__)
    record = _redacted_record(logging.LogRecord("a", logging.ERROR, "f", 1, "it is %s", (WORD,), info))
    shown = logging.Formatter().format(record)
    assert WORD not in shown and "it is ***" in shown and "ValueError: ***" in shown


@pytest.mark.parametrize("address", [
    f"https://me:{WORD}/x@host/d", f"https://me:{WORD}\uff20host/d", f"https://me:{WORD}@[bad/d", f"https://{WORD}:x/d"])
def test_an_address_that_cannot_be_read_is_refused_without_its_parts(address: str) -> None:
    for read in (without_secrets, lambda one: str(parsed(one, "data"))):
        with pytest.raises(DataError) as refused:
            read(address)
        assert WORD.lower() not in "".join(traceback.format_exception(refused.value)).lower()


def test_an_endpoint_of_s3_with_a_password_is_refused_without_it(settings: Settings) -> None:
    there = settings.model_copy(update={"s3_endpoint_url": f"http://key:{WORD}@127.0.0.1:9"})
    with pytest.raises(UserError, match="ANNEAL_S3_ENDPOINT_URL: the address has a user name") as refused:
        filesystem("s3://bucket/d", there)
    assert WORD not in str(refused.value)


@pytest.mark.parametrize("text", ["a:" * 50_000, "?token" * 50_000, "https://h/?" + "token" * 50_000, "a" * 300_000])
def test_a_long_text_takes_no_time(text: str) -> None:
    began = time.process_time()
    secret_in(text)
    redacted(text)
    assert time.process_time() - began < 5
