"""tasks/scoring/tokens.py: words of every script; Latin text keeps the published scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rouge_score.tokenizers import DefaultTokenizer

from tasks.scoring.rouge import lead, score_rows
from tasks.scoring.tokens import UnicodeTokenizer, needs_unicode, tokenizer_for

SENTENCES = {
    "Chinese": ("猫坐在垫子上。", "猫在垫子上。"), "Japanese": ("猫がマットに座った。", "猫はマットの上だ。"),
    "Thai": ("แมวนั่งบนเสื่อ", "แมวบนเสื่อ"), "Lao": ("ແມວນັ່ງຢູ່ເທິງເສື່ອ", "ແມວຢູ່ເສື່ອ"),
    "Khmer": ("ឆ្មាអង្គុយលើកន្ទេល", "ឆ្មាលើកន្ទេល"), "Burmese": ("ကြောင်ဖျာပေါ်ထိုင်", "ကြောင်ဖျာပေါ်"),
    "Korean": ("고양이가 매트 위에 앉았다", "고양이가 매트 위에 있다"),
    "Hindi": ("बिल्ली चटाई पर बैठी", "बिल्ली चटाई पर है"),
    "Arabic": ("جلست القطة على الحصيرة", "القطة على الحصيرة"), "Hebrew": ("החתול ישב על המחצלת", "החתול על המחצלת"),
    "Russian": ("Кошка сидела на коврике", "Кошка на коврике"), "Greek": ("Η γάτα είναι στο χαλί", "Η γάτα στο χαλί"),
    "Georgian": ("კატა იჯდა ხალიჩაზე", "კატა ხალიჩაზე"), "Tamil": ("பூனை பாயில் அமர்ந்தது", "பூனை பாயில்")}


@pytest.mark.parametrize("language", SENTENCES)
def test_every_script_has_scores(language: str) -> None:
    reference, answer = SENTENCES[language]
    scores = score_rows([reference] * 3, [reference, answer, "nothing of it"], ("rouge1", "rougeL"))
    assert (scores[0] == 1).all() and (scores[2] == 0).all()
    assert (scores[1] > 0.2).all() and (scores[1] < 1).all()
    assert tokenizer_for([reference]) == "unicode"


@pytest.mark.parametrize(("text", "tokens"), [
    ("ＡＢＣ１２ ﾊﾞﾅﾅー", ["abc12", "バ", "ナ", "ナ", "ー"]), ("AI研究、2024年", ["ai", "研", "究", "2024", "年"]),
    ("किताबें पढ़ना", ["किताबें", "पढ़ना"]), ("می‌خواهم كـــتاب", ["میخواهم", "كتاب"]),
    ("ΟΔΟΣ", ["οδοσ"]), ("นี่", ["นี่"]), ("👨‍👩‍👧 🇩🇪❤️", []), ("۲۰ т. м’яч!", ["۲۰", "т", "м", "яч"]),
    ("The running cats’ café ™ ½", ["the", "run", "cat", "caf"]), ("", []), (" \n…", []), ("\u0301", [])])
def test_tokens_of_a_text(text: str, tokens: list[str]) -> None:
    assert UnicodeTokenizer(stem=True).tokenize(text) == tokens


def test_one_way_to_write_a_word_is_as_good_as_another() -> None:
    composed, apart = "Й が 각", "\u0418\u0306 \u304b\u3099 \u1100\u1161\u11a8"
    tokens = UnicodeTokenizer(stem=False).tokenize
    assert composed != apart and tokens(composed) == tokens(apart) == ["й", "が", "각"]


@pytest.mark.parametrize(("references", "wanted"), [
    (["The cat.", "Le café à côté, Øresund, ěščř, Việt Nam đã ở"], False), ([], False), (["", " ", "42", "?!"], False),
    (["An angle of β and 0.05 μm"], False), (["Great, thanks 👍"], False), (["👍"], False), (["β"], True),
    (["AI研究"], True), (["2024年"], True), (["The cat."] * 99 + ["Кошка"], True)])
def test_the_whole_set_of_references_decides(references: list[str], wanted: bool) -> None:
    assert needs_unicode(references) is wanted


def test_latin_text_keeps_the_published_scores_beside_rows_of_another_script(shared: Path) -> None:
    lines = (shared / "data" / "rouge_vectors" / "mts_valid_lead3_rouge_score_0.1.2.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    texts = [(row["target"], row["prediction"]) for row in rows] + [("Le café à côté ©, cœur™", "le cafe, cœur ½")]
    published = score_rows(*zip(*texts, strict=True))
    mixed = score_rows(*zip(*texts, ("猫", "猫"), strict=True))
    assert np.array_equal(mixed[:-1], published) and (mixed[-1] == [1, 0, 1, 1]).all()


def test_on_ascii_both_tokenizers_are_the_same() -> None:
    draw = np.random.default_rng(0)
    for stem in (False, True):
        ours, theirs = UnicodeTokenizer(stem=stem), DefaultTokenizer(use_stemmer=stem)
        for _ in range(200):
            text = "".join(map(chr, draw.integers(1, 128, 80)))
            assert ours.tokenize(text) == theirs.tokenize(text)


@pytest.mark.parametrize(("prompt", "expected"), [
    ("猫。犬！鳥？魚。", "猫。犬！鳥？"), ("एक। दो। तीन। चार।", "एक। दो। तीन।"), ("猫。犬。", "猫。犬。")])
def test_lead3_knows_the_full_stops_of_other_scripts(prompt: str, expected: str) -> None:
    assert lead(prompt) == expected
