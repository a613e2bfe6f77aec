"""Words of every script, for ROUGE: rouge-score knows ASCII letters and digits only and scores all other text 0.

In:   a text     Out: its tokens. `RougeScorer(tokenizer=UnicodeTokenizer(...))` takes it
ASCII words come out as rouge-score has them, Porter stems included, so that no row of Latin text gets another score.
Words of other scripts are added to them; a script that puts no spaces between words gives its characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal
from unicodedata import normalize

import regex

SPACELESS = "".join(rf"\p{{scx={script}}}" for script in (
    "Han", "Hira", "Kana", "Bopo", "Yiii", "Thai", "Laoo", "Khmr", "Mymr", "Lana", "Tale", "Talu", "Tavt", "Java",
    "Bali"))
"""Scripts whose lines break within or between words without a space (Unicode Standard Annex 14, classes ID and SA)."""
LETTER = rf"[[[\p{{L}}--\p{{Latin}}]--\p{{Common}}][\p{{L}}\p{{Nl}}&&[{SPACELESS}]][\p{{Nd}}--[0-9]]]"
"""A letter or digit that rouge-score does not see. Latin letters with accents part a word, as they do there."""
JOINERS = "\u0640\u200c\u200d"
"""Within a word and no part of its spelling: the stretch of Arabic letters, the invisible (non-)joiners."""
WIDE = r"\uff00-\uffef"
"""Latin letters, digits and Katakana in the width of Han characters."""
PIECES = regex.compile(rf"(?V1)[a-z0-9]+|[{LETTER}\p{{M}}{JOINERS}{WIDE}]+")
TOKENS = regex.compile(
    rf"(?V1)[a-z0-9]+|[{LETTER}&&[{SPACELESS}]]\p{{M}}*"
    rf"|[{LETTER}--[{SPACELESS}]][[{LETTER}--[{SPACELESS}]]\p{{M}}{JOINERS}]*")
UNSEEN, LATIN = regex.compile(rf"(?V1){LETTER}"), regex.compile(r"\p{Latin}")


def needs_unicode(references: Iterable[str]) -> bool:
    """Whether rouge-score's own tokens would miss most of what a reference says.

    The rule: in at least one reference of the whole set, there are as many letters and digits of other scripts as
    Latin letters, or more. English with some Greek letters, or French, keeps the published tokens; a set with one
    Arabic reference does not, and its English rows get the same scores all the same. Emoji count nowhere.
    """
    return any(unseen >= len(LATIN.findall(text)) for text in references if (unseen := len(UNSEEN.findall(text))))


def tokenizer_for(references: Iterable[str]) -> Literal["unicode", "rouge-score"]:
    """The name under which reports show it."""
    return "unicode" if needs_unicode(references) else "rouge-score"


class UnicodeTokenizer:
    """A tokenizer for RougeScorer. Other scripts than Latin are brought into one form (NFKC, one case) first."""

    def __init__(self, *, stem: bool) -> None:
        from nltk.stem.porter import PorterStemmer
        from rouge_score.tokenize import tokenize  # brings nltk, as RougeScorer does

        self._published, self._stemmer = tokenize, PorterStemmer() if stem else None

    def tokenize(self, text: str) -> list[str]:
        """Called by RougeScorer."""
        return [token for piece in PIECES.findall(text.lower()) for token in self._tokens(piece)]

    def _tokens(self, piece: str) -> Iterator[str]:
        found = [piece] if piece.isascii() else TOKENS.findall(normalize("NFKC", piece).casefold())
        for token in found:
            if token.isascii():
                yield from self._published(token, self._stemmer)
            else:
                yield regex.sub(f"[{JOINERS}]", "", token)
