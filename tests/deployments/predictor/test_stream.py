"""pytest tests/deployments/predictor/test_stream.py"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from deployments.predictor.stream import Detokenizer, StopFilter, TextStream
from tests.conftest import ROOT

SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models" / "stories260K" / "hf"


def _bytes(ids: Sequence[int]) -> str:
    """A tokenizer with a token a byte, as in byte-level BPE."""
    return bytes(ids).decode("utf-8", "replace")


def _run(pieces: Sequence[str], stops: Sequence[str]) -> tuple[list[str], bool]:
    stream = StopFilter(stops)
    shown = [stream.push(piece) for piece in pieces]
    return [*shown, stream.finish()], stream.stopped


@pytest.mark.parametrize(("pieces", "stops", "shown", "stopped"), [
    (["Hello", " world"], [], ["Hello", " world", ""], False),
    (["Hello", " STOP", " more"], ["STOP"], ["Hello", " ", "", ""], True),
    (["Hello S", "TO", "P more"], ["STOP"], ["Hello ", "", "", ""], True),
    (["Hello S", "TO", "NE"], ["STOP"], ["Hello ", "", "STONE", ""], False),
    (["Hello S", "TO"], ["STOP"], ["Hello ", "", "STO"], False),
    (["STOP at once"], ["STOP"], ["", ""], True),
    (["aab"], ["ab"], ["a", ""], True),
    (["aa", "ab"], ["aab"], ["", "a", ""], True),
    (["a", "b", "a", "b", "c"], ["abc"], ["", "", "ab", "", "", ""], True),
    (["x\n", "\n", "y"], ["\n\n"], ["x", "", "", ""], True),
    (["one two three"], ["three", "two"], ["one ", ""], True),
    (["a", "bc", "d"], ["abcd", "bc"], ["", "a", "", ""], True),
    (["abcd"], ["abcd", "bc"], ["a", ""], True),
    (["xyz", "!"], ["", "z!"], ["xy", "", ""], True),
    (["no", "", "thing"], ["q"], ["no", "", "thing", ""], False),
])
def test_stop_sequences(pieces: list[str], stops: list[str], shown: list[str], stopped: bool) -> None:
    assert _run(pieces, stops) == (shown, stopped)


def test_only_the_ambiguous_end_is_held_back() -> None:
    stream = StopFilter(["a very long stop sequence"])
    assert stream.push("all of this is shown") == "all of this is shown"
    assert stream.push(" and a v") == " and "


@pytest.mark.parametrize(("stops", "shown"), [
    (["END"], "the caf\u00e9 \U0001f642 said d"), (["E", "END"], "the caf\u00e9 \U0001f642 said d"),
    (["dEN", "NDx", "EN"], "the caf\u00e9 \U0001f642 said "), (["\U0001f642"], "the caf\u00e9 "),
    (["\u00e9", "zz"], "the caf"), (["none of it"], "the caf\u00e9 \U0001f642 said dEND and zz END.")])
def test_text_does_not_depend_on_how_it_was_cut(stops: list[str], shown: str) -> None:
    text, draw = "the caf\u00e9 \U0001f642 said dEND and zz END.", random.Random(0)
    for _ in range(200):
        cuts = sorted({0, len(text), *draw.sample(range(len(text)), draw.randrange(len(text)))})
        pieces = [text[a:b] for a, b in pairwise(cuts)]
        assert "".join(_run(pieces, stops)[0]) == shown


@pytest.mark.parametrize(("data", "shown"), [
    ("\U0001f642!".encode(), ["", "", "", "\U0001f642", "!", ""]),
    ("é".encode(), ["", "é", ""]),
    (b"\xf0\x9f\x99", ["", "", "", "\ufffd"]),
    (b"a\xc3b", ["a", "", "\ufffdb", ""]),
    (b"", [""]),
])
def test_incomplete_characters_are_held_back(data: bytes, shown: list[str]) -> None:
    stream = Detokenizer(_bytes)
    assert [*(stream.push(byte) for byte in data), stream.finish()] == shown


def test_text_that_stays_broken_is_shown_in_the_end() -> None:
    stream = Detokenizer(_bytes)
    assert "".join(stream.push(255) for _ in range(100)).count("\ufffd") == 96


def test_stop_sequence_split_over_bytes_of_an_emoji() -> None:
    stream = TextStream(_bytes, ["\U0001f642"])
    shown = [stream.push(byte) for byte in "ok \U0001f642 no".encode()]
    assert "".join(shown) + stream.finish() == "ok " and stream.stopped


def test_emoji_that_shares_bytes_with_a_stop_sequence_is_shown() -> None:
    stream = TextStream(_bytes, ["\U0001f642"])
    shown = [stream.push(byte) for byte in "\U0001f643".encode()]
    assert "".join(shown) + stream.finish() == "\U0001f643" and not stream.stopped


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"the base model {STORIES} is missing")
def test_pieces_add_up_to_what_the_tokenizer_makes_of_the_whole() -> None:
    from tasks.distributed.codec import Codec
    from tasks.distributed.model import load_tokenizer

    codec, draw = Codec(load_tokenizer(STORIES)), random.Random(0)
    for text in ("Once  upon a\ntime", "   spaces   kept   ", "caf\u00e9 \U0001f642\u2603 \U0001f468\u200d\U0001f469"):
        for ids in (codec.prompt(text)[1:], codec.continuation(text)):
            stream = TextStream(codec.decode)
            assert "".join([*map(stream.push, ids), stream.finish()]) == codec.decode(ids)
    for _ in range(300):
        ids = [draw.randrange(259, 512) for _ in range(draw.randrange(1, 40))]
        stream = TextStream(codec.decode)
        assert "".join([*map(stream.push, ids), stream.finish()]) == codec.decode(ids)
