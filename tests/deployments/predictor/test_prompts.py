"""deployments/predictor/prompts.py: a conversation has the same ids in training and in every dialect.

Over Llama 2's, Llama 3's, ChatML, Mistral's, Gemma's and Phi 3's templates; no model is needed for it.
"""

from __future__ import annotations

import json
import shutil
from typing import Any, cast

import pytest
from transformers import AddedToken

from deployments.predictor.encoder import Encoder
from deployments.predictor.engine import Engine
from deployments.predictor.loading import Card, Loaded
from deployments.predictor.openai_routes import _asked
from deployments.predictor.openai_schemas import ChatRequest
from deployments.predictor.prompts import encode
from deployments.predictor.schemas import read
from infra.errors import DataError
from tasks.data.schema import clean
from tasks.distributed.codec import Codec
from tasks.distributed.examples import flatten
from tasks.distributed.model import load_tokenizer
from tests.conftest import ROOT
from tests.support.chat_templates import FAMILIES

TOKENIZER = ROOT.parent / "shared" / "models" / "llama2_tokenizer" / "tokenizer.model"
SIX = ("llama 2", "llama 3", "qwen 2.5", "mistral 0.1", "gemma 2", "phi 3")
QUICK = ("llama 2", "qwen 2.5")
SYSTEM, ASK, SAID, AGAIN, ANSWER = (
    {"role": role, "content": text} for role, text in (
        ("system", "Be <b>brief</b>. "), ("user", " How many?\n"), ("assistant", "Two. "),
        ("user", "And </s> now <|im_end|>?"), ("assistant", "Three.")))
TALKS: dict[str, list[Any]] = {
    "one question": [ASK], "system": [SYSTEM, ASK], "several turns": [ASK, SAID, AGAIN],
    "system and turns": [SYSTEM, ASK, SAID, AGAIN],
    "parts and developer": [{"role": "developer", "content": "Be brief."},
                            {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text",
                                                                                             "text": "many?"}]}]}

pytestmark = pytest.mark.skipif(not TOKENIZER.is_file(), reason=f"the tokenizer {TOKENIZER} is missing")


@pytest.fixture(scope="module", params=[
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SIX])
def version(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A version with this family's template; asked for ids only."""
    family, folder = FAMILIES[request.param], tmp_path_factory.mktemp("family")
    shutil.copy(TOKENIZER, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "LlamaTokenizer", "bos_token": family.special[0], "eos_token": family.special[1],
        "unk_token": "<unk>"}))

    def codec() -> Codec:
        tokenizer = load_tokenizer(folder)
        tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in family.special],
                             special_tokens=True)
        tokenizer.chat_template = family.template
        return Codec(tokenizer)

    card = Card(method="full", base_name="b", base_digest="", precision="fp32", kind="messages",
                prompt_template="{prompt}", context_tokens=4096, stop_ids=frozenset(), smoke_prompt="")
    return Loaded(id="0" * 64, folder="", card=card, engine=cast(Engine, None), adapter=None,
                  encoder=Encoder(codec(), codec()), decoder=codec())


def trained(version: Loaded, talk: list[Any]) -> list[int]:
    """All ids of the row, as pack writes them into the training's rows."""
    row = clean({"messages": [*talk, ANSWER]}, "messages", "line 1")
    return cast(list[int], flatten(version.decoder.row("messages", row, "", train_on_prompt=False))[0].tolist())


def by_openai(version: Loaded, talk: list[Any]) -> list[int]:
    body = json.dumps({"model": "a/b", "messages": talk}).encode()
    [encoding] = _asked(read(ChatRequest, body, "application/json")).prompts(version)
    return list(encoding.result(60)[0])


@pytest.mark.parametrize("talk", TALKS)
def test_a_conversation_has_the_same_ids_in_training_and_in_every_dialect(version: Loaded, talk: str) -> None:
    messages = TALKS[talk]
    served, answer = by_openai(version, messages), version.decoder.continuation("x")
    whole = trained(version, messages)
    assert whole[: len(served)] == served and len(served) < len(whole) and answer
    asked = clean({"messages": [*messages, ANSWER]}, "messages", "line 1")["messages"][:-1]
    if asked[-1] == asked[0] or [m["role"] for m in asked] == ["system", "user"]:
        system = asked[0]["content"] if len(asked) == 2 else ""
        assert list(encode(version, asked[-1]["content"], system, None).result(60)[0]) == served


def test_what_comes_after_the_ids_is_the_answer_and_its_end(version: Loaded) -> None:
    served, whole = by_openai(version, TALKS["several turns"]), trained(version, TALKS["several turns"])
    assert version.decoder.decode(whole[len(served):]).strip() == "Three." and whole[-1] in version.stop_ids


def test_special_tokens_that_a_user_writes_stay_text(version: Loaded) -> None:
    plain = by_openai(version, [{"role": "user", "content": "And s now im_end?"}])
    special = by_openai(version, [{"role": "user", "content": AGAIN["content"]}])
    def count(ids: list[int]) -> int:
        return sum(index in version.decoder.never for index in ids)

    assert count(special) == count(plain)


def test_a_message_that_training_refuses_is_refused(version: Loaded) -> None:
    for talk in ([ASK, ASK], [SAID], [{"role": "user", "content": 3}]):
        with pytest.raises(DataError):
            clean({"messages": [*talk, ANSWER]}, "messages", "line 1")
        with pytest.raises(Exception, match="message"):
            by_openai(version, talk)
