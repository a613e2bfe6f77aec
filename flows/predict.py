"""Answer every prompt of a file with a deployed model.

In:   a JSONL file with "prompt" in each row     Out: predictions/<key>/answers.jsonl in the store
Dies half-way: start it again; rows that were answered are not asked again.
Run alone:
    from flows.predict import predict
    predict("acme/summarizer", "dialogues.jsonl")
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.parameters import WITHOUT_SECRETS, guarded
from infra.records import Answers
from infra.settings import Settings
from infra.spec import refuse_secrets
from infra.storage.store import Store
from tasks.ingest import ingest_task
from tasks.predict import answer_task, version_task
from tasks.runs.attempt import survives
from tasks.ui import reports

Address = Annotated[str, Field(json_schema_extra=WITHOUT_SECRETS)]
Tokens = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, le=5)]


@guarded
@flow(name="predict", flow_run_name="predict {model}", persist_result=False)
@survives
def predict(
    model: str, prompts: Address, max_new_tokens: Tokens = 128, temperature: Temperature = 0.0,
) -> Answers:
    """Answer every prompt of a file with a deployed model.

    Args:
        model: Model that answers: owner/name; or a version that is served: owner/name:2, owner/name:champion, its id.
        prompts: JSONL with "prompt" in each row: a path, https:// or s3:// address, or shards as in train_data.
        max_new_tokens: Longest answer, in tokens. Range: 1 or more.
        temperature: 0: always the likeliest token. Range: 0 to 5.
    """
    refuse_secrets("prompts", prompts)
    inputs: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    data = ingest_task(prompts, subject="prompts")
    answers = answer_task(data, version_task(model, subject=model), inputs, subject=model)
    reports.show_report("answers", f"## {answers.rows} answers\n\n`{Store(Settings()).root}/{answers.folder}/"
                        f"answers.jsonl`, by version {answers.version[:12]}")
    return answers
