"""A version as MLflow loads it. This file lies beside the version's own in MLflow, and needs mlflow, torch,
transformers and peft, nothing of Anneal.

    model = mlflow.pyfunc.load_model("models:/owner--name@champion")
    model.predict(["Once upon a time"], params={"max_new_tokens": 20})

A base that is no hub model lies wherever this machine keeps it:

    mlflow.pyfunc.load_model(uri, model_config={"base": "/models/llama"})
    SERVING_MODEL_CONFIG='{"base": "/models/llama"}' mlflow models serve -m URI --env-manager local

Prompts become the same token ids as in training (tasks/distributed/codec.py); only safetensors are read, and no code of
a model is run. Answers are greedy unless `temperature` says otherwise.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

HERE = Path(__file__).parent
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
PLACE, PLACES, CUT = "\ufdd0{}\ufdd1", re.compile("\ufdd0(\\d+)\ufdd1"), "\ufdd2"
"""Noncharacters: what stands between them is a special token that a message spells."""
ANCHOR = "\n"
NO_DATE = ("{% macro strftime_now(format) %}{{ '2024-07-26' if format == '%Y-%m-%d' else '26 Jul 2024' }}"
           "{% endmacro %}")
MAX_NEW_TOKENS = 128


class PyfuncVersion(PythonModel):
    """A version's weights and tokenizer, loaded by `load_context`."""

    templated = False
    """Prompts spell special tokens, and mean them."""

    def load_context(self, context: Any) -> None:
        """Load base and adapter, or whole weights. Raises ValueError for a base that is not named."""
        import torch
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoTokenizer,
            GenerationConfig,
        )
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        base, serve = (json.loads((HERE / name).read_text(encoding="utf-8")) for name in ("base.json", "serve.json"))
        self.kind, self.template, self.stops = serve["kind"], serve["prompt_template"], serve.get("stop_ids", [])
        self.templated = serve.get("prompt_format") == "templated"
        dtype = torch.bfloat16 if "bf" in base["dtype"] else torch.float32
        folder, revision = _weights(context.model_config or {}, whole=base["method"] == "full")
        kind = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False).model_type
        auto: Any = (  # Mistral 3, Qwen-VL and others are wrappers around a language model
            AutoModelForCausalLM if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForImageTextToText)
        model = auto.from_pretrained(
            folder, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        if base["method"] != "full":
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(HERE))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)
        self.model.generation_config = GenerationConfig()  # the base's own may ask for sampling
        self.tokenizer = AutoTokenizer.from_pretrained(HERE, trust_remote_code=False)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """An answer for each row: a prompt, or for a version trained on messages a conversation."""
        rows = model_input.iloc[:, 0].tolist() if isinstance(model_input, pd.DataFrame) else list(model_input)
        asked = [self.conversation(row) if self.kind == "messages" else self.prompt(row) for row in rows]
        return [self.answer(ids, **(params or {})) for ids in asked]

    def answer(self, ids: list[int], max_new_tokens: int = MAX_NEW_TOKENS, temperature: float = 0.0) -> str:
        """What the model writes after those token ids."""
        import torch

        tokenizer = self.tokenizer
        ends = self.stops or [tokenizer.eos_token_id]
        inputs = torch.tensor([ids], device=self.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_new_tokens,
                eos_token_id=ends, pad_token_id=tokenizer.eos_token_id, use_cache=True, **sampling)
        return str(tokenizer.decode(
            out[0, len(ids):], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def prompt(self, text: str) -> list[int]:
        """Ids of a prompt: the begin token, then text that becomes a special token only if it was so in training."""
        whole, begin = self.template.replace("{prompt}", text), self.begin()
        if not self.templated:
            return begin + self.plain(whole)
        ids = list(self.tokenizer(whole, add_special_tokens=False)["input_ids"])
        return ids if ids[:1] == begin else begin + ids

    def conversation(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation up to the answer that is asked for. What a message spells stays text."""
        tokenizer, spelled = self.tokenizer, list[str]()
        texts = sorted({str(token) for token in tokenizer.all_special_tokens}, key=len, reverse=True)
        special = "|".join(map(re.escape, texts))

        def hidden(match: re.Match[str]) -> str:
            spelled.append(match[0])
            return PLACE.format(len(spelled) - 1)

        text = self.rendered([{**m, "content": re.sub(special, hidden, m["content"])} for m in messages])
        if not spelled and CUT not in text:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = [] if tokenizer.chat_template else self.begin()  # a template writes its begin token itself
        began = len(ids)
        for piece in filter(None, re.split(f"({special}|{CUT})", text)):
            if re.fullmatch(special, piece):
                ids.append(tokenizer.convert_tokens_to_ids(piece))
            elif piece != CUT:
                shown = PLACES.sub(lambda match: spelled[int(match[1])], piece)
                ids += self.after(shown) if len(ids) > began else self.plain(shown)
        return ids

    def rendered(self, messages: list[dict[str, str]]) -> str:
        """The text in front of the answer; CUT stands where the tokenizer begins anew."""
        tokenizer = self.tokenizer
        if not tokenizer.chat_template:
            turns = (f"{m['role']}: {CUT if m['role'] == 'assistant' else ''}{m['content']}\n" for m in messages)
            return "".join(turns) + f"assistant: {CUT}"
        template = tokenizer.get_chat_template()
        dated = NO_DATE + template if "strftime_now" in template else template

        def show(some: list[dict[str, str]], prompt: bool) -> str:
            return str(tokenizer.apply_chat_template(
                some, chat_template=dated, tokenize=False, add_generation_prompt=prompt))

        text = show(messages, True)
        if text != show(messages, False):
            return text
        return show([*messages, {"role": "assistant", "content": CUT}], False).partition(CUT)[0]

    def begin(self) -> list[int]:
        """The begin token, where the tokenizer has one."""
        return [index for index in self.tokenizer("")["input_ids"] if index != self.tokenizer.eos_token_id][:1]

    def plain(self, text: str) -> list[int]:
        """Ids of a user's text."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def after(self, text: str) -> list[int]:
        """Ids of text that follows other text: SentencePiece puts a space in front of what it encodes."""
        if not text:
            return []
        start, whole = self.plain(ANCHOR), self.plain(ANCHOR + text)
        return whole[len(start):] if whole[:len(start)] == start else self.plain(text)


def _weights(config: dict[str, Any], *, whole: bool) -> tuple[str, str | None]:
    """The folder or hub name to load, and its revision."""
    place = str(config["weights" if whole else "base"])
    if whole and "://" in place:
        from mlflow.artifacts import download_artifacts

        return str(download_artifacts(artifact_uri=place)), None
    if Path(place).is_dir():
        return place, None
    if whole or not HUB_NAME.fullmatch(place):
        key = "weights" if whole else "base"
        raise ValueError(
            f"{key} is {place!r}, which is no folder of this machine. Name the folder: "
            f"mlflow.pyfunc.load_model(uri, model_config={{{key!r}: '/path/to/it'}})")
    return place, config.get("revision") or None


set_model(PyfuncVersion())
