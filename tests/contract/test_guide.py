"""The guide from top to bottom, by its own Python and curl lines, with the client replicate 1.0.7, unmodified."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.conftest import needed, wait_for
from tests.contract.conftest import LLAMA, script
from tests.e2e.conftest import KNOBS
from tests.support.gateway import Receiver, Running

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("environment")]

ROWS = "".join(json.dumps({"prompt": f"What is {n} and {n}?\n", "completion": f"It is {2 * n}."}) + "\n"
               for n in range(40))
TRAIN = f"""
import json, time
import replicate

model = replicate.models.create(
    owner="acme", name="llama2-summarizer", visibility="private", hardware="gpu-a40-large")
file = replicate.files.create("data.jsonl")
training = replicate.trainings.create(
    version="meta/llama-2-7b:{LLAMA}",
    input={{"train_data": file.urls["get"], "num_train_epochs": 3, **KNOBS}},
    destination="acme/llama2-summarizer",
    webhook="HOOK",
)
first = training.status
progress = set()
while training.status not in ("succeeded", "failed", "canceled"):
    time.sleep(1)
    training.reload()
    parsed = replicate.prediction.Prediction.Progress.parse(training.logs)
    if parsed:
        progress.add((parsed.current, parsed.total))
training = replicate.trainings.get(training.id)
print(json.dumps({{"id": training.id, "first": first, "status": training.status, "output": training.output,
                   "error": training.error, "logs": training.logs, "progress": sorted(progress),
                   "secret": replicate.webhooks.default.secret().key}}))
"""
RUN = """
import replicate

output = replicate.run(
  "VERSION",
  input={"prompt": '''[INST] <<SYS>>\\
Use the Input to provide a summary of a conversation.
<</SYS>>

Input:
Harry: Who are you?
Hagrid: Rubeus Hagrid, Keeper of Keys and Grounds at Hogwarts. [/INST]

Summary: ''', "stop_sequences": "</s>", "seed": 1, "max_new_tokens": 24}
)
for s in output:
  print(s, end="", flush=True)
"""
STREAM = """
import replicate

for event in replicate.stream("VERSION", input={"prompt": "What is 2 and 2?\\n", "seed": 1, "max_new_tokens": 24}):
    print(str(event), end="")
"""


@pytest.fixture(scope="module")
def trained(gateway: Running, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the guide's training gave, and what its script saw on the way."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "data.jsonl").write_text(ROWS)
    code = TRAIN.replace("**KNOBS", f"**{ {**KNOBS, 'deploy': True}!r}").replace("HOOK", receiver.url)
    done = script(gateway, code, folder)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_guides_training_succeeds_and_names_its_version_and_weights(trained: dict[str, object]) -> None:
    """Rows 2, 5, 12, 17, 21."""
    assert trained["first"] == "starting" and trained["error"] is None
    assert trained["status"] == "succeeded", trained["logs"]
    output = dict(trained["output"])  # type: ignore[call-overload]
    owner, _, version = output["version"].partition(":")
    assert owner == "acme/llama2-summarizer" and len(bytes.fromhex(version)) == 32
    assert output["weights"].endswith(f"/v1/trainings/{trained['id']}/weights.zip")


def test_its_log_is_read_as_progress_by_the_clients_own_parser(trained: dict[str, object]) -> None:
    """R18."""
    import replicate.prediction

    progress = replicate.prediction.Prediction.Progress.parse(str(trained["logs"]))
    assert progress is not None and progress.current == progress.total > 0
    assert trained["progress"]  # while it ran, too


def test_its_webhook_is_validated_by_the_clients_own_validator(
    trained: dict[str, object], receiver: Receiver,
) -> None:
    """Row 23."""
    import replicate.webhook

    secret = replicate.webhook.WebhookSigningSecret(key=str(trained["secret"]))
    wait_for(lambda: any(headers["webhook-id"] == f"msg_{trained['id']}_completed" for headers, _ in receiver.got))
    ours = [(headers, json.loads(body), body) for headers, body in receiver.got
            if json.loads(body)["id"] == trained["id"]]
    for headers, _, body in ours:
        replicate.webhook.Webhooks.validate(headers=headers, body=body.decode(), secret=secret, tolerance=300)
    completed = [body for headers, body, _ in ours if headers["webhook-id"].endswith("_completed")]
    assert [body["status"] for body in completed] == ["succeeded"]
    assert completed[0]["output"] == trained["output"]


def test_the_guides_run_answers_with_the_version(
    gateway: Running, trained: dict[str, object], tmp_path: Path,
) -> None:
    """Row 27, R4."""
    version = str(trained["output"]["version"])  # type: ignore[index]
    done = script(gateway, RUN.replace("VERSION", version), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_stream_says_the_same_as_the_prediction(
    gateway: Running, trained: dict[str, object], tmp_path: Path,
) -> None:
    """Row 29."""
    version = str(trained["output"]["version"])  # type: ignore[index]
    done = script(gateway, STREAM.replace("VERSION", version), tmp_path)
    assert done.returncode == 0, done.stderr
    asked = {"prompt": "What is 2 and 2?\n", "seed": 1, "max_new_tokens": 24}
    whole = gateway.http.post("/v1/predictions", headers={"Prefer": "wait"},
                              json={"version": version.partition(":")[2], "input": asked}).json()
    assert done.stdout == "".join(whole["output"]) != ""


def test_the_guides_curl_lines_upload_and_train(gateway: Running, trained: dict[str, object], tmp_path: Path) -> None:
    """Row 9: two addresses, a PUT without a key, and a training from the second one."""
    curl = needed("curl")
    (tmp_path / "data.jsonl").write_text(ROWS)
    lines = f"""
RESPONSE=$({curl} -s -X POST -H "Authorization: Token $REPLICATE_API_TOKEN" $BASE/v1/upload/data.jsonl)
{curl} -s -X PUT -H "Content-Type: application/jsonl" --upload-file data.jsonl "$(jq -r ".upload_url" <<< "$RESPONSE")"
SERVING_URL=$(jq -r ".serving_url" <<< $RESPONSE)
echo; {curl} -s -X POST -H "Content-Type: application/json" \\
  -d '{{"destination": "acme/llama2-summarizer", "input": {{"train_data": "'$SERVING_URL'"}}}}' \\
  -H "Authorization: Token $REPLICATE_API_TOKEN" $BASE/v1/models/meta/llama-2-7b/versions/{LLAMA}/trainings
""".replace("jq -r", f"{jq(tmp_path)}")
    environment = {**os.environ, "REPLICATE_API_TOKEN": gateway.settings.predictor_key, "BASE": gateway.url}
    done = subprocess.run(["bash", "-c", lines], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          check=True)
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["status"] == "starting" and len(made["id"]) == 26, done.stdout
    gateway.http.post(f"/v1/trainings/{made['id']}/cancel")


def test_weights_are_a_peft_adapter_with_checksums(
    gateway: Running, trained: dict[str, object], tmp_path: Path,
) -> None:
    """Row 21: what a client downloads loads elsewhere, and only with a key."""
    import hashlib
    import zipfile

    address = str(trained["output"]["weights"])  # type: ignore[index]
    assert httpx.get(address, trust_env=False).status_code == 401
    (tmp_path / "weights.zip").write_bytes(gateway.http.get(address).content)
    with zipfile.ZipFile(tmp_path / "weights.zip") as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())
        sums = archive.read("MANIFEST.sha256").decode().splitlines()
        assert all(hashlib.sha256(archive.read(name)).hexdigest() == digest
                   for digest, _, name in (line.partition("  ") for line in sums))


def jq(folder: Path) -> str:
    """As much of jq as the guide's lines need, where it is not installed."""
    program = folder / "jq.py"
    program.write_text("import json, sys\nprint(json.load(sys.stdin)[sys.argv[1].lstrip('.')])\n")
    return f"python3 {program}"
