"""What clients may send, strictly: an unknown or mistyped field is refused by name.

Input names, defaults and ranges are those of Replicate's language models.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from infra.errors import UserError, shown

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
UNION_MEMBER = re.compile(r"str$|list\[|function-")
"""What pydantic adds to a location to say which type of a union it tried."""
VERSION = r"^[0-9a-f]{64}$"
FOLDER = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"



def _whole(text: str) -> str:
    """JSON can carry half of a surrogate pair, which no tokenizer and no UTF-8 can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("expected valid Unicode; it holds half of a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
VersionId = Annotated[str, Field(pattern=VERSION, description="64 hex digits.")]


class Strict(BaseModel):
    """No unknown fields, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Input(Strict):
    """The model's input."""

    prompt: Text = Field(description="What the model is asked.")
    system_prompt: Text = Field("", description="Fills {system_prompt} of the prompt template.")
    max_new_tokens: int = Field(128, ge=1, description="Longest answer, in tokens; cut to what the context leaves.")
    temperature: float = Field(0.7, ge=0, le=5, description="0: always the likeliest token.")
    top_p: float = Field(0.95, ge=0, le=1, description="Keep the likeliest tokens up to this probability; 1: off.")
    top_k: int = Field(0, ge=-1, description="Keep this many of the likeliest tokens; 0 or -1: off.")
    stop_sequences: Text | list[Text] | None = Field(
        None, description="Texts that end the answer: a list, or one string separated by commas.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Same seed, same answer; empty: a fresh one.")
    prompt_template: Text | None = Field(
        None, description="Text around the prompt, with {prompt} and perhaps {system_prompt}; empty: the version's.")

    @property
    def stops(self) -> list[str]:
        """The stop sequences as a list, empty ones left out."""
        given = self.stop_sequences or []
        return [stop for stop in (given.split(",") if isinstance(given, str) else given) if stop]

    @field_validator("stop_sequences")
    @classmethod
    def _few_and_short(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = value.split(",") if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
            raise ValueError(f"expected at most {MAX_STOPS} sequences of at most {MAX_STOP_CHARACTERS} characters")
        return value

    @field_validator("prompt_template")
    @classmethod
    def _has_prompt(cls, value: str | None) -> str | None:
        if value is not None and "{prompt}" not in value:
            raise ValueError("it does not contain {prompt}. Put {prompt} where the prompt belongs")
        return value


class PredictionRequest(Strict):
    """Body of POST /predictions."""

    version: VersionId | None = None
    model: Text | None = Field(None, description="owner/name: its current version.")
    input: Input


class DeploymentRequest(Strict):
    """Body of PUT /deployments/{owner}/{name}."""

    version: VersionId
    folder: str = Field(pattern=FOLDER, max_length=500, description="Name of the version's folder in the store.")
    base_path: Text | None = Field(None, description="Folder of the base model on this machine, for adapters.")
    base_digest: Text | None = Field(None, description="What base.json has to say about the base model.")
    smoke_prompt: Text = Field("", description="Answered before the switch; empty: the version's own.")


def sentence_of(error: RequestValidationError) -> str:
    """The first complaint as one sentence that names the field; a body that is no JSON included."""
    first: dict[str, Any] = dict(error.errors()[0])
    path = [str(part) for part in first["loc"] if part != "body" and not UNION_MEMBER.match(str(part))]
    name = ".".join(path) or "the request's body"
    kind, found = first["type"], first.get("input")
    if kind == "extra_forbidden":
        known = "one of " + ", ".join(Input.model_fields) if path[0] == "input" else ""
        return str(UserError(f"{name} is not a known field", allowed=known, fix="Check the spelling."))
    if kind == "missing":
        return str(UserError(f"{name} is missing", fix="Add it."))
    if kind == "json_invalid":
        return str(UserError("the request's body is not JSON", fix="Send Content-Type: application/json."))
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{name} is {shown(found)}: {message[:1].lower()}{message[1:]}."
