"""What clients may send, strictly: an unknown or mistyped field is refused by name.

In:   the body of a request     Out: the checked object, or one sentence
Input names, defaults and ranges are those of Replicate's language models. A body of 1 MiB can hold 100,000 unknown
fields or complaints: the first is enough, the others are never looked at. Not for the event loop.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from infra.errors import UserError, shown

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
UNION_MEMBER = re.compile(r"str$|list\[|function-|constrained-")
"""What pydantic adds to a location to say which type of a union it tried."""
IDENTITY = r"^[A-Za-z0-9_-]{1,64}$"
VERSION = r"^[0-9a-f]{64}$"
FOLDER = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$"
NAME_CHARACTERS = 80
"""Of a field's name in a sentence."""

def _whole(text: str) -> str:
    """JSON can carry half of a surrogate pair, which no tokenizer and no UTF-8 can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("expected valid Unicode; it holds half of a surrogate pair") from error
    return text



class BadField(UserError):
    """A field of a request; `param` is its name."""

    param = ""

    @classmethod
    def of(cls, param: str, found: str, fix: str = "") -> BadField:
        """A sentence about a field, with its name."""
        error = cls(found, fix=fix)
        error.param = param
        return error


Text = Annotated[str, AfterValidator(_whole)]
VersionId = Annotated[str, Field(pattern=VERSION, description="64 hex digits.")]


class Strict(BaseModel):
    """No unknown fields, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, values: Any) -> Any:
        """Keep the first unknown field only: each would be an error of its own."""
        return cls.with_one_unknown(values) if isinstance(values, dict) else values

    @classmethod
    def with_one_unknown(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The known fields and the first unknown one."""
        known = {name: values[name] for name in cls.model_fields if name in values}
        unknown = next((name for name in values if name not in known), None)
        return known if unknown is None else {**known, unknown: values[unknown]}


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
    tools: list[dict[str, Any]] | None = Field(
        None, description="Tools that the model may call, as in a training row; for versions trained on messages.")
    prompt_template: Text | None = Field(
        None, description="Text around the prompt, with {prompt} and perhaps {system_prompt}; empty: the version's.")

    @property
    def stops(self) -> list[str]:
        """The stop sequences as a list, empty ones left out."""
        given = self.stop_sequences or []
        return [stop for stop in (given.split(",") if isinstance(given, str) else given) if stop]

    @field_validator("stop_sequences", mode="before")
    @classmethod
    def _few_and_short(cls, value: Any) -> Any:
        """Before the items are looked at one by one."""
        check_stops(value.split(",", MAX_STOPS) if isinstance(value, str) else value)
        return value

    @field_validator("tools")
    @classmethod
    def _are_functions(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """A template reads their names, and whatever else stands there."""
        for tool in value or []:
            function = tool.get("function")
            if tool.get("type") != "function" or not isinstance(function, dict) or not function.get("name"):
                raise ValueError('expected objects {"type": "function", "function": {"name": "...", ...}}')
        _whole(json.dumps(value, ensure_ascii=False))
        return value

    @field_validator("prompt_template")
    @classmethod
    def _has_prompt(cls, value: str | None) -> str | None:
        if value is not None and "{prompt}" not in value:
            raise ValueError("it does not contain {prompt}. Put {prompt} where the prompt belongs")
        return value


def check_stops(stops: Any) -> None:
    """Raise ValueError for stop sequences that are too many or too long."""
    some = stops if isinstance(stops, list) else []
    if len(some) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in some if isinstance(stop, str)):
        raise ValueError(f"expected at most {MAX_STOPS} sequences of at most {MAX_STOP_CHARACTERS} characters")


class PredictionRequest(Strict):
    """Body of POST /predictions."""

    version: Text | None = Field(
        None, description="64 hex digits, owner/name:2 (number), or owner/name:champion, owner/name:previous.")
    model: Text | None = Field(None, description="owner/name: its current version; or as in version.")
    id: Annotated[str, Field(pattern=IDENTITY)] | None = Field(None, description="The client's own id for it.")
    input: Input

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, values: Any) -> Any:
        """Refuse what Cog has and we have not, by name."""
        if isinstance(values, dict) and values.get("webhook"):
            raise BadField.of("webhook", "webhook is set, and the predictor sends none", "Ask the gateway, which does; "
                              "or Prefer: respond-async, and then GET /predictions/{id}.")
        skipped = ("webhook", "webhook_events_filter", "context")
        return cls.with_one_unknown({name: value for name, value in values.items() if name not in skipped}
                                    ) if isinstance(values, dict) else values


class DeploymentRequest(Strict):
    """Body of PUT /deployments/{owner}/{name}."""

    version: VersionId
    folder: str = Field(pattern=FOLDER, max_length=500, description="Name of the version's folder in the store.")
    base_path: Text | None = Field(None, description="Folder of the base model on this machine, for adapters.")
    base_digest: Text | None = Field(None, description="What base.json has to say about the base model.")
    smoke_prompt: Text = Field("", description="Answered before the switch; empty: the version's own.")
    number: int = Field(0, ge=0, description="The version's number, by which clients may ask for it.")


Body = TypeVar("Body", bound=Strict)


def read(kind: type[Body], body: bytes, content_type: str) -> Body:
    """The object that a body holds. Raises UserError with its first fault as a sentence."""
    if not body:
        raise UserError("the request's body is missing", fix="Add it.")
    essence = content_type.partition(";")[0].strip().lower()
    if not re.fullmatch(r"application/([^/]+\+)?json", essence):
        raise UserError(f"the request's Content-Type is {shown(essence)}", allowed="application/json",
                        fix="Send JSON with Content-Type: application/json.")
    try:
        return kind.model_validate(json.loads(body), from_attributes=True)  # of a list it says then what FastAPI says
    except ValidationError as error:
        raise _sentence_of(error) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError("the request's body is not JSON", fix="Send Content-Type: application/json.") from None
    except RecursionError:
        raise UserError("the request's body is nested too deeply", fix="Send an object of the documented fields."
                        ) from None
    except ValueError:  # by int: sys.get_int_max_str_digits
        raise UserError("the request's body holds a number with thousands of digits", fix="Shorten it.") from None


def described(kind: type[Strict]) -> dict[str, Any]:
    """The part of the OpenAPI document about a body, which FastAPI does not read for us."""
    return {"requestBody": {"required": True, "content": {"application/json": {
        "schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}}}


def _sentence_of(error: ValidationError) -> BadField:
    """The first complaint, with the name of its field."""
    first: dict[str, Any] = dict(error.errors(include_url=False, include_context=False)[0])
    path = [_name(part) for part in first["loc"] if not UNION_MEMBER.match(str(part))]
    name = ".".join(path) or "the request's body"
    if first["type"] == "extra_forbidden":
        known = "one of " + ", ".join(Input.model_fields) if path[0] == "input" else ""
        found = BadField(f"{name} is not a known field", allowed=known, fix="Check the spelling.")
    elif first["type"] == "missing":
        found = BadField(f"{name} is missing", fix="Add it.")
    else:
        message = str(first["msg"]).removeprefix("Value error, ")
        found = BadField(f"{name} is {_found(first.get('input'))}: {message[:1].lower()}{message[1:]}")
    found.param = ".".join(path)
    return found


def _name(part: str | int) -> str:
    """A part of a location, as it may stand in a sentence: clients choose the names of unknown fields."""
    text = str(part)[: NAME_CHARACTERS + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= NAME_CHARACTERS else f"{text[:NAME_CHARACTERS]}..."


def _found(value: Any) -> str:
    try:
        return shown(value)
    except RecursionError:
        return "nested too deeply"
