"""Write the pre-training corpus of the demo's base: messenger talk, notes, recaps and copying drills.

In:   a seed     Out: rows {"text"}, a few hundred characters each
Leaves one JSONL file; rerun after a crash, the same seed gives the same bytes.
People and places are invented spellings, new in nearly every row, so that the only way to predict a name
is to copy it from the context. The base reads the same plots as the demo set, but never the instruction
"Summarize the conversation", never a summary sentence, and no name of either split.
Run alone: python -m deployments.examples.corpus FILE ROWS
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from deployments.examples.dialogues import SLOT, Conversation, Draw, pick, play, shuffled, write_jsonl
from deployments.examples.names import TEST, TRAIN, Cast
from deployments.examples.scenes import SCENES, Scene

REAL = TRAIN.words() | TEST.words()

# ---- invented spellings

PLAIN = list("bcdfghjklmnprstvwz")
CLUSTERS = "q,x,y,br,ch,cl,cr,dr,fl,fr,gl,gr,kr,ll,ph,pr,sh,sk,sl,st,th,tr"
ONSETS = PLAIN * 3 + re.findall(r"\w+", CLUSTERS)
VOWELS = list("aeiou") * 4 + re.findall(r"\w+", "ai,au,ea,ee,ei,ia,ie,io,oa,ou,ue,y")
CODAS = list("bdfgklmnprstxz") * 2 + re.findall(r"\w+", "ck,ld,ll,lm,nd,nk,nn,ns,nt,rd,rk,rs,rt,sh,ss,st,th")


def invented(rng: Random) -> str:
    """A pronounceable capitalised word of 3 to 9 letters that is in neither split."""
    while True:
        word = _syllables(rng) if rng.random() < 0.4 else _lookalike(rng)
        if 3 <= len(word) <= 9 and word.capitalize() not in REAL:
            return word.capitalize()


def _syllables(rng: Random) -> str:
    word = "" if rng.random() < 0.8 else pick(rng, VOWELS)
    for _ in range(1 + int(rng.random() * 2.4)):
        word += pick(rng, ONSETS) + pick(rng, VOWELS)
        word += pick(rng, CODAS) if rng.random() < 0.4 else ""
    return word


def _followers() -> dict[str, list[str]]:
    """The letters seen after each pair of letters in the training names; "." marks both ends."""
    table: dict[str, list[str]] = {}
    for name in sorted(TRAIN.words()):
        spelled = f"..{name.lower()}."
        for at in range(len(spelled) - 2):
            table.setdefault(spelled[at : at + 2], []).append(spelled[at + 2])
    return table


FOLLOWERS = _followers()


def _lookalike(rng: Random) -> str:
    """A word drawn letter by letter from the two letters before it (Shannon 1948, section 3)."""
    word = ".."
    while len(word) < 3 or word[-1] != ".":
        word += pick(rng, FOLLOWERS[word[-2:]])
    return word.strip(".")


def invented_cast(rng: Random) -> Cast:
    def words(n: int) -> tuple[str, ...]:
        return tuple(sorted({invented(rng) for _ in range(n)}))

    return Cast(people=words(24), towns=words(5), venues=words(5))


# ---- rows


def corpus_rows(n: int, seed: int = 7) -> Iterator[dict[str, str]]:
    rng = Random(seed)
    for _ in range(n):
        yield {"text": _text(rng)}


def write_corpus(path: Path, n: int, seed: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, corpus_rows(n, seed))
    return path


def _text(rng: Random) -> str:
    if rng.random() < 0.25:
        return pick(rng, DRILLS)(rng)
    scene = pick(rng, SCENES)
    conversation = play(rng, invented_cast(rng), scene)
    kinds = dict.fromkeys(shuffled(rng, RECAPS)[: 1 + int(rng.random() * 3)])
    recaps = "\n\n".join(kind(rng, scene, conversation) for kind in kinds)
    header = Draw(rng, TRAIN).fill(pick(rng, HEADERS)) + "\n\n" if rng.random() < 0.4 else ""
    return f"{header}{conversation.dialogue()}\n\n{recaps}"


# ---- recaps of a conversation: each asks for something said, none is a summary sentence

LABELS = {"A": "person", "B": "person", "C": "person", "N": "person", "excuse": "reason", "doc": "document"}


def _notes(rng: Random, scene: Scene, conversation: Conversation) -> str:
    """What holds at the end, one value a line, under the slot's plain label."""
    lines = []
    for pool, digit, third in dict.fromkeys(SLOT.findall(scene.summary)):
        mine, _, theirs = conversation.facts[pool + digit].partition(" ~ ")
        lines.append(f"- {LABELS.get(pool, pool)}: {theirs if third else mine}")
    return pick(rng, ("Notes:", "To remember:", "Decided:")) + "\n" + "\n".join(lines)


def _who(rng: Random, scene: Scene, conversation: Conversation) -> str:
    said = shuffled(rng, conversation.lines)[:3]
    return "Who said it?\n" + "\n".join(f'"{utterance}" {speaker}' for speaker, utterance in said)


def _lines_of(rng: Random, scene: Scene, conversation: Conversation) -> str:
    name = pick(rng, conversation.lines)[0]
    own = [utterance for speaker, utterance in conversation.lines if speaker == name]
    return f"All {name} wrote:\n" + "\n".join(f"- {utterance}" for utterance in own)


def _minutes(rng: Random, scene: Scene, conversation: Conversation) -> str:
    people = list(dict.fromkeys(speaker for speaker, _ in conversation.lines))
    named = [value for slot, value in conversation.facts.items() if slot.strip("23") in ("town", "venue")]
    places = f"\nPlaces: {', '.join(named)}" if named else ""
    return f"Present: {', '.join(people)}{places}\nLast word: {conversation.lines[-1][0]}"


def _answers(rng: Random, scene: Scene, conversation: Conversation) -> str:
    at = int(rng.random() * (len(conversation.lines) - 1))
    (first, said), (second, reply) = conversation.lines[at : at + 2]
    return f'{first} wrote "{said}" and {second} wrote "{reply}"'


RECAPS: tuple[Callable[[Random, Scene, Conversation], str], ...] = (
    _notes, _notes, _notes, _who, _lines_of, _minutes, _answers,
)

# ---- drills: short third-person prose and lists with much to copy

SENTENCES = (
    "{A} lives in {town} and likes {hobby}.",
    "{A} went to {town} by {ride} last {day}.",
    "{A} bought {gift} for {price}.",
    "{A}'s {object} was {spot}.",
    "{A} and {B} met at {venue} at {time}.",
    "{A} gave {B} {gift} and {B} gave {A} {gift2}.",
    "{A} {excuse'} and {B} {news}.",
    "{B}'s {relative} eats {dish} with {food}.",
    "{A} asked {B} to {task}, but {B} {excuse'}.",
    "{A} had {pain} on {day}, so {B} came at {time}.",
    "{B} saw {media} with {A}.",
    "{A} and {B} work at {venue} in {town}.",
    "{B} is {number} minutes from {town2}.",
    "{A} will {task} on {day} because {B} {excuse'}.",
    "{B} has {pet} and a {colour} {thing}.",
    "{A} told {B} about the {event} on {day}.",
    "{B} wrote the {doc} for {A} in {number} days.",
    "In {town} there was {weather}, so {A} and {B} went to {outing}.",
    "{A} wants {pet} instead of {pet2}.",
    "{A} can't find {B}'s {object}, which is {spot}.",
    "{A} doesn't eat {food}; {B} will cook {dish}.",
    "{B} will paint {A}'s {thing} {colour} on {day}.",
    "{A} has until {day} at {time}, {B} until {day2} at {time2}.",
    "{A} sold the {thing} to {B}, who will use it for {hobby}.",
    "{A}, {B} and {C} will be in {town} on {day}.",
    "{C} tells {A} that {B} found the {object} at {venue}.",
    "{A} knows the {dish} at {venue} and {B} the {dish2} at {venue2}.",
    "The {event} of {A} was at {time}, that of {B} at {time2}.",
)
HEADERS = ("Chat of {day}", "Group chat", "Messages, {time}", "Log of a chat.", "{day}, {time}.", "Read this chat.")


def _story(rng: Random) -> str:
    """Some sentences about several people, then some of them again, word for word."""
    cast, sentences = invented_cast(rng), []
    for wording in shuffled(rng, SENTENCES)[: 3 + int(rng.random() * 3)]:
        sentences.append(Draw(rng, cast).fill(wording))
    again = [pick(rng, ("Again:", "Once more:", "As I said:")), *shuffled(rng, sentences)[:2]]
    return " ".join(sentences) + "\n\n" + " ".join(again)


def _lists(rng: Random) -> str:
    names = [invented(rng) for _ in range(3 + int(rng.random() * 5))]
    how = pick(rng, ("Same order", "Backwards", "Alphabetical", "First and last"))
    changed = {
        "Same order": names, "Backwards": names[::-1], "Alphabetical": sorted(names),
        "First and last": [names[0], names[-1]],
    }[how]
    return f"List: {', '.join(names)}\n{how}: {', '.join(changed)}"


def _address_book(rng: Random) -> str:
    cards = [(invented(rng), invented(rng)) for _ in range(3 + int(rng.random() * 4))]
    asked = shuffled(rng, cards)[:3]
    lines = [f"{name} lives in {town}." for name, town in cards]
    return "\n".join(lines) + "\n\n" + "\n".join(f"Where is {name}? In {town}." for name, town in asked)


DRILLS: tuple[Callable[[Random], str], ...] = (_story, _story, _lists, _address_book)


if __name__ == "__main__":
    print(write_corpus(Path(sys.argv[1]), int(sys.argv[2])))
