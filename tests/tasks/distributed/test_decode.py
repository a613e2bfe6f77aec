"""pytest tests/tasks/distributed/test_decode.py"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from infra.errors import AnnealError, Broken, UserError
from tasks.distributed.codec import Codec
from tasks.distributed.decode import BARE_BASE, Sampling, _draw, decode, decode_all
from tasks.distributed.model import load_base, load_tokenizer
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models" / "stories260K" / "hf"
PROMPTS = [
    "Once upon a time", "Lily and Tom went to the park to play with the big red ball.", "The", "One day, a cat",
    "Sara was sad because her toy was broken. Her mom said, \"Do not cry, I can"]
GREEDY = Sampling(max_new_tokens=40)
NONE: frozenset[int] = frozenset()

pytestmark = pytest.mark.skipif(not STORIES.is_dir(), reason=f"the base model {STORIES} is missing")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.set_num_threads(1)
    return load_base(STORIES, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(load_tokenizer(STORIES))


@pytest.fixture(scope="module")
def tuned() -> PeftModel:
    base = load_base(STORIES, dtype=torch.float32, device=torch.device("cpu"))
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    model = get_peft_model(base, config, adapter_name="one")
    model.add_adapter("two", config)
    return model.eval()


def _generate(model: PreTrainedModel, ids: list[int], stop: int, tokens: int = 40) -> list[int]:
    """What transformers' own loop makes of one prompt."""
    out = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        max_new_tokens=tokens, use_cache=True, pad_token_id=0, eos_token_id=stop)
    new: list[int] = out[0, len(ids):].tolist()
    return new[: new.index(stop)] if stop in new else new


def test_greedy_batch_equals_generate_row_by_row(model: PreTrainedModel, codec: Codec) -> None:
    ids = [codec.prompt(text) for text in PROMPTS]

    found = decode_all(model, ids, [GREEDY] * len(ids), stop_ids=codec.stop_ids)

    assert found == [_generate(model, row, codec.eos) for row in ids]


def test_greedy_batch_equals_generate_of_the_left_padded_batch(model: PreTrainedModel, codec: Codec) -> None:
    ids = [codec.prompt(text) for text in PROMPTS]
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])

    found = decode_all(model, ids, [GREEDY] * len(ids), stop_ids=NONE)

    out = model.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=40, use_cache=True,
                         pad_token_id=0, eos_token_id=-1)
    assert found == out[:, width:].tolist()


def test_rows_of_different_length_leave_the_batch_and_change_nothing(model: PreTrainedModel, codec: Codec) -> None:
    ids = [codec.prompt(text) for text in PROMPTS]
    lengths = [1, 25, 3, 40, 12]

    found = decode_all(model, ids, [Sampling(max_new_tokens=n) for n in lengths], stop_ids=NONE)

    assert found == [_generate(model, row, -1, n) for row, n in zip(ids, lengths, strict=True)]


def test_stop_token_is_not_yielded(model: PreTrainedModel, codec: Codec) -> None:
    ids = [codec.prompt(PROMPTS[0]), codec.prompt(PROMPTS[1])]
    free = decode_all(model, ids, [GREEDY] * 2, stop_ids=NONE)
    stop = free[0][5]

    steps = list(decode(model, ids, [GREEDY] * 2, stop_ids=frozenset({stop})))

    assert [step[0] for step in steps][:7] == [*free[0][: free[0].index(stop)], None, None][:7]


def test_seed_does_not_depend_on_neighbours_or_place(model: PreTrainedModel, codec: Codec) -> None:
    ids = [codec.prompt(text) for text in PROMPTS]
    rows = [Sampling(max_new_tokens=30, temperature=1.0, top_p=0.9, seed=n) for n in range(len(ids))]

    together = decode_all(model, ids, rows, stop_ids=codec.stop_ids)
    backwards = decode_all(model, ids[::-1], rows[::-1], stop_ids=codec.stop_ids)[::-1]
    alone = [decode_all(model, [i], [s], stop_ids=codec.stop_ids)[0] for i, s in zip(ids, rows, strict=True)]

    assert together == alone == backwards
    assert together != decode_all(model, ids, [GREEDY] * len(ids), stop_ids=codec.stop_ids)


def test_greedy_and_sampled_rows_share_a_batch(model: PreTrainedModel, codec: Codec) -> None:
    ids = codec.prompt(PROMPTS[0])

    mixed = decode_all(model, [ids, ids], [GREEDY, Sampling(max_new_tokens=40, temperature=1.5, seed=3)], stop_ids=NONE)

    assert mixed[0] == _generate(model, ids, -1) and mixed[0] != mixed[1]


def test_each_row_keeps_its_adapter(tuned: PeftModel, model: PreTrainedModel, codec: Codec) -> None:
    ids = codec.prompt(PROMPTS[0])
    names = ["two", BARE_BASE, "one", "two"]

    mixed = decode_all(tuned, [ids] * 4, [GREEDY] * 4, stop_ids=NONE, adapters=names)

    alone = {n: decode_all(tuned, [ids], [GREEDY], stop_ids=NONE, adapters=[n])[0] for n in ("one", "two")}
    assert mixed == [alone["two"], _generate(model, ids, -1), alone["one"], alone["two"]]
    assert alone["one"] != alone["two"]


def test_rows_keep_adapter_and_dice_when_others_leave(tuned: PeftModel, codec: Codec) -> None:
    ids, names = codec.prompt(PROMPTS[0]), ["one", "two", BARE_BASE, "one"]
    rows = [Sampling(max_new_tokens=n, temperature=t, seed=n) for n, t in ((2, 0), (25, 1), (5, 1), (20, 1))]

    mixed = decode_all(tuned, [ids] * 4, rows, stop_ids=NONE, adapters=names)

    assert mixed == [
        decode_all(tuned, [ids], [row], stop_ids=NONE, adapters=[name])[0]
        for row, name in zip(rows, names, strict=True)]


def test_without_names_the_active_adapter_answers_the_same(tuned: PeftModel, codec: Codec) -> None:
    ids = [codec.prompt(text) for text in PROMPTS]
    rows = [GREEDY] * len(ids)

    named = decode_all(tuned, ids, rows, stop_ids=codec.stop_ids, adapters=["one"] * len(ids))

    assert decode_all(tuned, ids, rows, stop_ids=codec.stop_ids) == named


def test_cancelled_row_leaves_and_the_others_go_on(model: PreTrainedModel, codec: Codec) -> None:
    ids, gone = [codec.prompt(text) for text in PROMPTS[:2]], set[int]()
    steps = []
    for step in decode(model, ids, [GREEDY] * 2, stop_ids=NONE, cancelled=gone.__contains__):
        steps.append(step)
        if len(steps) == 3:
            gone.add(0)

    assert [step[0] is None for step in steps] == [False] * 3 + [True] * 37
    assert [step[1] for step in steps] == _generate(model, ids[1], -1)


def test_model_is_left_in_evaluation_mode_and_outside_inference_mode(model: PreTrainedModel, codec: Codec) -> None:
    model.train()
    for _ in decode(model, [codec.prompt("The")], [Sampling(max_new_tokens=2)], stop_ids=NONE):
        assert not torch.is_inference_mode_enabled()
    assert not model.training


def test_non_finite_adapter_fails_its_own_row_only(tuned: PeftModel, codec: Codec) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    tuned.add_adapter("broken", config)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if ".broken." in name:
                weight.fill_(float("nan"))
    ids, failures = codec.prompt(PROMPTS[0]), dict[int, AnnealError]()
    names = ["one", "broken"]

    steps = list(decode(tuned, [ids] * 2, [GREEDY] * 2, stop_ids=NONE, adapters=names, failed=failures.__setitem__))

    good = decode_all(tuned, [ids], [GREEDY], stop_ids=NONE, adapters=["one"])[0]
    assert list(failures) == [1] and [s[0] for s in steps] == good and {s[1] for s in steps} == {None}
    with pytest.raises(Broken, match="not finite"):
        decode_all(tuned, [ids], [GREEDY], stop_ids=NONE, adapters=["broken"])
    tuned.delete_adapter("broken")


def test_empty_prompt_is_refused_and_no_prompts_give_no_steps(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="no tokens"):
        decode_all(model, [[]], [GREEDY], stop_ids=NONE)
    assert list(decode(model, [], [], stop_ids=NONE)) == []


@pytest.mark.parametrize(("field", "value"), [
    ("max_new_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")),
    ("top_p", 1.1), ("top_p", float("nan")), ("top_k", -1)])
def test_sampling_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UserError, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]


def _drawn(dice: float, **how: float) -> int:
    chances = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    return int(_draw(chances.log(), [Sampling(temperature=how.pop("temperature", 1.0), **how)], [dice]))  # type: ignore[arg-type]


def test_draw_follows_the_cumulative_distribution_likeliest_first() -> None:
    assert [_drawn(d) for d in (0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 0.9999)] == [1, 1, 3, 3, 2, 2, 0, 0]


def test_draw_cuts_by_top_k_then_renormalises_for_top_p() -> None:
    assert {_drawn(d / 50, top_k=1) for d in range(50)} == {1}
    assert {_drawn(d / 50, top_k=2) for d in range(50)} == {1, 3}
    assert {_drawn(d / 50, top_p=0.5) for d in range(50)} == {1, 3}
    assert {_drawn(d / 50, top_p=0.0) for d in range(50)} == {1}
    assert {_drawn(d / 50, top_k=2, top_p=0.57) for d in range(50)} == {1}
    assert {_drawn(d / 50, top_k=99, top_p=1.0) for d in range(50)} == {0, 1, 2, 3}


def test_draw_survives_the_smallest_temperature() -> None:
    assert _drawn(0.999, temperature=1e-300) == 1
