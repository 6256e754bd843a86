"""Korean dialogues with summaries, written from the templates in `situations/`.

A template is a line of turns separated by `" / "`; the two speakers take turns, #Person1# first.
`{day}` stands for a value of the pool `day`, `{day2}` for another value of the same pool, and
`{day:을/를}` adds the particle that the value's last syllable asks for.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
SPEAKERS = ("#Person1#", "#Person2#")
ROWS_PER_SITUATION = {"train": 20, "validation": 3, "test": 3}
# Pairs of values are dealt out by (index + index) modulo this; see `pairs_of`.
DEAL = 6
MAX_TURNS = 9
TURN = " / "  # between two turns of a template


@dataclass(frozen=True)
class Outcome:
    """One way a dialogue can end: the turns in which it is decided, and what a summary says."""

    name: str
    turns: list[str]
    summaries: list[str]
    aside: bool = True  # whether small talk may follow


@dataclass(frozen=True)
class Situation:
    """An everyday situation: phrasings, the values they take, and how it may end.

    `held_out_by` names the two pools whose values the splits combine differently.
    """

    name: str
    register: str
    held_out_by: list[str]
    pools: dict[str, list[str]]
    openings: list[str]
    bodies: list[str]
    outcomes: list[Outcome]
    asides: list[str]


@dataclass(frozen=True)
class Dialogue:
    """A finished dialogue with its summary and the values it was written with."""

    situation: str
    outcome: str
    pair: tuple[str, str]
    text: str
    summary: str


class Word(str):
    """A Korean word; formatting it with `"을/를"` appends the particle that fits it.

    >>> f"{Word('가방'):을/를} {Word('모자'):을/를} {Word('서울'):으로/로}"
    '가방을 모자를 서울로'
    """

    def __format__(self, particles: str) -> str:
        if not particles:
            return str(self)
        after_consonant, after_vowel = particles.split("/")
        final = final_consonant(self)
        takes_vowel_form = final == 0 or (after_vowel == "로" and final == _RIEUL)
        return str(self) + (after_vowel if takes_vowel_form else after_consonant)


_RIEUL = 8  # ㄹ, after which 으로 becomes 로


def final_consonant(word: str) -> int:
    """Returns the number of the last syllable's final consonant (jongseong), 0 for none.

    Hangul syllables are in Unicode from U+AC00 on, 28 to each pair of initial and vowel.

    Raises:
        ValueError: The word does not end in a Hangul syllable.
    """
    if not "가" <= word[-1:] <= "힣":
        raise ValueError(f"a particle needs a word that ends in Hangul, got {word!r}; reword it")
    return (ord(word[-1]) - ord("가")) % 28


def load_situations(folder: Path = FOLDER) -> tuple[list[Situation], dict[str, list[str]]]:
    """Reads all situations (each with the shared pools added) and the closings by register."""
    shared = yaml.safe_load((folder / "pools.yaml").read_text("utf-8"))
    situations = []
    for path in sorted((folder / "situations").glob("*.yaml")):
        for raw in yaml.safe_load(path.read_text("utf-8")):
            raw["pools"] = shared["pools"] | raw.get("pools", {})
            raw["outcomes"] = [Outcome(**outcome) for outcome in raw["outcomes"]]
            situations.append(Situation(**{"asides": [], **raw}))
    return situations, shared["closings"]


def pairs_of(situation: Situation, split: str) -> list[tuple[str, str]]:
    """The pairs of values that belong to a split.

    With the values' places i and j in their two pools, (i + j) modulo 6 is 0 for validation, 1 for
    test and anything else for training: every value is trained on, and no held-out pair is.
    """
    first, second = (situation.pools[pool] for pool in situation.held_out_by)
    return [
        (a, b)
        for (i, a), (j, b) in itertools.product(enumerate(first), enumerate(second))
        if {0: "validation", 1: "test"}.get((i + j) % DEAL, "train") == split
    ]


def write_dialogue(
    situation: Situation,
    outcome: Outcome,
    pair: tuple[str, str],
    closings: Sequence[str],
    rng: random.Random,
) -> Dialogue:
    """Writes one dialogue about a pair of values; `rng` draws phrasings and all other values."""
    segments = [rng.choice(part) for part in (situation.openings, situation.bodies, outcome.turns)]
    if _n_turns(segments) == 6 and situation.asides and outcome.aside and rng.random() < 0.4:
        segments.append(rng.choice(situation.asides))
    segments.append(rng.choice([c for c in closings if _n_turns([*segments, c]) <= MAX_TURNS]))
    words = _draw_words(situation, pair, rng)
    turns = TURN.join(segments).format_map(words).split(TURN)
    text = "\n".join(f"{name}: {turn}" for name, turn in zip(itertools.cycle(SPEAKERS), turns))
    summary = rng.choice(outcome.summaries).format_map(words)
    return Dialogue(situation.name, outcome.name, pair, text, summary)


def _n_turns(segments: Sequence[str]) -> int:
    return sum(len(segment.split(TURN)) for segment in segments)


def _draw_words(situation: Situation, pair: tuple[str, str], rng: random.Random) -> dict[str, Word]:
    """Draws a value for every placeholder; `x` and `x2` never get the same one."""
    words = {}
    for pool, values in situation.pools.items():
        words[pool], words[f"{pool}2"] = map(Word, rng.sample(values, 2))
    for pool, value in zip(situation.held_out_by, pair):
        words[pool] = Word(value)
        words[f"{pool}2"] = Word(
            rng.choice([other for other in situation.pools[pool] if other != value])
        )
    return words


def write_corpus(seed: int = 0) -> dict[str, list[Dialogue]]:
    """Writes all splits, with the same number of dialogues for every situation.

    Returns:
        `{"train": 480, "validation": 72, "test": 72}` dialogues, shuffled.
    """
    rng = random.Random(seed)
    situations, closings = load_situations()
    corpus: dict[str, list[Dialogue]] = {split: [] for split in ROWS_PER_SITUATION}
    for situation in situations:
        for split, dialogues in _write_situation(situation, closings[situation.register], rng):
            corpus[split] += dialogues
    for dialogues in corpus.values():
        rng.shuffle(dialogues)
    check_corpus(corpus)
    return corpus


def _write_situation(
    situation: Situation, closings: Sequence[str], rng: random.Random
) -> Iterator[tuple[str, list[Dialogue]]]:
    """Yields each split with this situation's dialogues; outcomes and pairs take turns."""
    for split, n_rows in ROWS_PER_SITUATION.items():
        pairs = pairs_of(situation, split)
        rng.shuffle(pairs)
        turns = zip(range(n_rows), itertools.cycle(situation.outcomes), itertools.cycle(pairs))
        yield split, [write_dialogue(situation, o, pair, closings, rng) for _, o, pair in turns]


def check_corpus(corpus: dict[str, list[Dialogue]]) -> None:
    """Asserts what the quick start promises about its splits.

    Raises:
        ValueError: A dialogue is in two splits, training has combined what a held-out dialogue
            combines, or a held-out dialogue has a value that training lacks or does not say it.
    """
    trained = {(d.situation, *d.pair) for d in corpus["train"]}
    trained_words = " ".join(d.text + d.summary for d in corpus["train"])
    texts = [d.text for dialogues in corpus.values() for d in dialogues]
    if len(set(texts)) < len(texts):
        raise ValueError("a dialogue is in two places of the corpus; change the seed")
    for dialogue in corpus["validation"] + corpus["test"]:
        if (dialogue.situation, *dialogue.pair) in trained:
            raise ValueError(f"{dialogue.pair} is held out but also trained on; see pairs_of")
        if missing := [value for value in dialogue.pair if value not in trained_words]:
            raise ValueError(f"{missing} is held out but never trained on; see pairs_of")
        if absent := [value for value in dialogue.pair if value not in dialogue.text]:
            raise ValueError(f"{absent} is held out but not in the dialogue; fix its templates")
