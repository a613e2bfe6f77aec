"""Bodies of OpenAI's completions and chat completions.

In:   the body of a request     Out: the checked object, or one sentence that names a field
What would change the answer and is not done here is refused by name, never ignored. Fields that only concern OpenAI's
own service are taken and have no effect. https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from deployments.predictor.schemas import BadField, Strict, Text, check_stops
from infra.errors import DataError, shown
from tasks.data.chat import turns_of

MOST_CHOICES = 16
MOST_PROMPTS = 64
MOST_ROWS = 128
"""Prompts times choices: half of what may wait for an engine."""
WITHOUT_EFFECT = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls"})
NOT_DONE: dict[str, tuple[tuple[Any, ...], str]] = {
    "logprobs": ((False,), "Leave it out."),
    "top_logprobs": ((0,), "Leave it out."),
    "presence_penalty": ((0,), "Leave it out."),
    "frequency_penalty": ((0,), "Leave it out."),
    "logit_bias": (({},), "Leave it out."),
    "best_of": ((1,), "Ask for several answers with n and choose one."),
    "echo": ((False,), "Put the prompt in front of the answer yourself."),
    "suffix": (("",), "Put it into the prompt."),
    "tools": (([],), "POST /predictions takes tools and gives the call as the model wrote it."),
    "tool_choice": (("none", "auto"), "POST /predictions takes tools."),
    "functions": (([],), "POST /predictions takes tools."),
    "function_call": (("none", "auto"), "POST /predictions takes tools."),
    "response_format": (({"type": "text"},), "Say in the prompt which form the answer is to have."),
    "modalities": ((["text"],), "Only text is written."),
    "audio": ((), "Only text is written."),
    "prediction": ((), "Leave it out."),
    "reasoning_effort": (("none",), "Leave it out."),
    "verbosity": (("medium",), "Leave it out."),
    "web_search_options": ((), "Leave it out."),
}
"""Fields of OpenAI's that are not done here: values that ask for nothing, and what to do instead."""


class StreamOptions(Strict):
    """What a stream tells beside the text."""

    include_usage: bool | None = Field(None, description="A last chunk counts the tokens.")
    include_obfuscation: bool | None = Field(None, description="Without effect.")


class Sampled(Strict):
    """What both kinds of completions have."""

    model: Text = Field(description="owner/name: its current version; or owner/name:2, owner/name:champion, a "
                                    "version's 64 hex digits.")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Longest answer, in tokens.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0: the likeliest token; "
                                                                                      "empty: 1.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Keep the likeliest tokens up to this "
                                                                                "probability; empty: 1, off.")
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="Not of OpenAI: keep this many of the "
                                                                         "likeliest tokens.")
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = Field(None, description="Answers to each prompt.")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(None, description="Same seed, same answer.")
    stop: Text | list[Text] | None = Field(None, description="Texts that end the answer and are not shown.")
    stream: bool | None = Field(None, description="Send the text as it is written.")
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, values: Any) -> Any:
        """Refuse what is not done, drop what has no effect, and keep the first unknown field."""
        if not isinstance(values, dict):
            return values
        for name, (neutral, fix) in NOT_DONE.items():
            value = values.get(name)
            if value is not None and not any(value == one and type(value) is type(one) for one in _as_given(neutral)):
                raise BadField.of(name, f"{name} is {shown(value)}, which this predictor does not do", fix)
        skipped = WITHOUT_EFFECT | NOT_DONE.keys()
        return cls.with_one_unknown({name: value for name, value in values.items() if name not in skipped})

    @field_validator("stop", mode="before")
    @classmethod
    def _few_and_short(cls, value: Any) -> Any:
        check_stops([value] if isinstance(value, str) else value)
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop sequences, empty ones left out."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the tokens that were used."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampled):
    """Body of POST /v1/chat/completions."""

    messages: list[Any] = Field(description="The conversation, as in a training row, up to the answer that is asked "
                                            "for.")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="The same as max_tokens.")

    @field_validator("messages")
    @classmethod
    def _as_in_training(cls, value: list[Any]) -> list[Any]:
        """In the form in which training rows are kept, by the same function."""
        try:
            turns = turns_of(value, "the request")
        except DataError as error:
            raise BadField.of("messages", str(error)) from None
        if turns[-1]["role"] not in ("user", "tool"):
            raise BadField.of("messages", f"the last message is by the {turns[-1]['role']}",
                       "End with the message that is to be answered.")
        return turns

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise BadField.of("max_tokens", f"max_tokens is {self.max_tokens} and max_completion_tokens is "
                                     f"{self.max_completion_tokens}", "Leave max_tokens out, the older name.")
        return self

    @property
    def limit(self) -> int | None:
        """Longest answer; None: all that the context leaves."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampled):
    """Body of POST /v1/completions."""

    prompt: Text | list[Any] = Field(description="A text, a list of texts, token ids, or a list of lists of token ids.")

    @field_validator("prompt")
    @classmethod
    def _of_one_kind(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value
        if not value or (len(value) > MOST_PROMPTS and not all(type(one) is int for one in value)):
            raise ValueError(f"expected 1 to {MOST_PROMPTS} prompts")
        lists = [value] if all(type(one) is int for one in value) else value
        kinds = {type(one) for one in value}
        if kinds not in ({str}, {int}, {list}) or (kinds != {str} and not all(
                one and all(type(index) is int for index in one) for one in lists)):
            raise ValueError("expected a text, texts, token ids, or lists of token ids")
        if kinds == {str}:
            for text in value:
                _ = text.encode()  # half of a surrogate pair raises a ValueError
        return value

    @model_validator(mode="after")
    def _few_enough(self) -> CompletionRequest:
        if (rows := len(self.every) * (self.n or 1)) > MOST_ROWS:
            raise BadField.of("n", f"{len(self.every)} prompts with n={self.n} are {rows} answers; expected at most "
                                   f"{MOST_ROWS}", "Send several requests.")
        return self

    @property
    def every(self) -> list[str | list[int]]:
        """The prompts, one or more."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


def _as_given(neutral: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, and whole numbers as floats too."""
    return (*neutral, *(float(one) for one in neutral if type(one) is int))
