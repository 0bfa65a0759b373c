"""Look-up tables that let the grammar write token ids directly, without strings."""

from bisect import bisect
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from ctt_helpers.toy import lexicon as lex
from ctt_helpers.toy.lexicon import END_OF_TEXT, held_out, lexicon

QUANTILES = 8192


def _zipf(items: Sequence) -> list:
    """The items at equal steps of probability, p ~ 1 / (rank + 3): drawing one is one look-up."""
    cumulative = list(accumulate(1 / (rank + 4) for rank in range(len(items))))
    points = (np.arange(QUANTILES) + 0.5) / QUANTILES * cumulative[-1]
    return [items[bisect(cumulative, point)] for point in points]


class NounIds(NamedTuple):
    """A noun as the sampler sees it: its bit in the set of a sentence's lemmas, the bits of those that it never
    meets, and the ids of its forms."""

    bit: int
    blocked: int
    singular: int
    plural: int
    animate: bool
    reflexives: list[int]


class VerbIds(NamedTuple):
    """A verb as the sampler sees it."""

    bit: int
    blocked: int
    third: int
    base: int
    past: int


class Tables:
    """Everything that the sampler looks up, as ids."""

    def __init__(self) -> None:
        words = lexicon()
        vocabulary = words.vocabulary
        self.end, self.stop = vocabulary[END_OF_TEXT], vocabulary["."]
        lemmas = [*words.nouns, *words.verbs]
        bit = {lemma: 1 << i for i, lemma in enumerate(lemmas)}
        blocked = {n: sum(bit[other] for other in lemmas if held_out(n, other)) for n in words.nouns}
        noun = {
            n.singular: NounIds(bit[n.singular], blocked[n.singular], vocabulary[f" {n.singular}"],
                              vocabulary[f" {n.plural}"], n.animate, self._reflexives(n, vocabulary))
            for n in words.nouns.values()
        }  # fmt: skip
        verb = {
            v.base: VerbIds(bit[v.base], 0, *(vocabulary[f" {form}"] for form in (v.third, v.base, v.past)))
            for v in words.verbs.values()
        }
        self.nouns = {kind: _zipf([noun[n.singular] for n in words.nouns_of(kind)]) for kind in lex.NOUNS}
        self.verbs = {kind: _zipf([verb[v.base] for v in words.verbs_of(kind)]) for kind in lex.VERBS}
        self.reflexive_verbs = _zipf([verb[v] for v in lex.REFLEXIVE_VERBS])

        def ids(tokens: Sequence[str]) -> list[int]:
            return [vocabulary[f" {token}"] for token in tokens]

        self.adjectives = {kind == "animate": _zipf(ids(a)) for kind, a in lex.ADJECTIVES.items()}
        self.often, self.quickly = _zipf(ids(lex.FREQUENCY_ADVERBS)), _zipf(ids(lex.MANNER_ADVERBS))
        self.prepositions, self.names = _zipf(ids(lex.PREPOSITIONS)), _zipf(ids(lex.NAMES))
        self.neutral = ids([lex.NEUTRAL_DETERMINERS[0]] * 8 + lex.NEUTRAL_DETERMINERS[1:])
        self.marked = [_zipf(ids(lex.SINGULAR_DETERMINERS)), _zipf(ids(lex.PLURAL_DETERMINERS))]
        self.pronouns = [ids(p) for p in lex.PRONOUNS]
        self.vowel = {i for token, i in vocabulary.items() if token[1:2] in "aeiou" and token[0] == " "}
        self.word = {token[1:]: i for token, i in vocabulary.items() if token[0] == " "}
        openers = [*lex.NEUTRAL_DETERMINERS, *lex.SINGULAR_DETERMINERS, "an", *lex.PLURAL_DETERMINERS]
        openers = {w: w.capitalize() for w in [*openers, *sum(lex.PRONOUNS, ())]} | {name: name for name in lex.NAMES}
        self.capital = {vocabulary[f" {w}"]: vocabulary[f" {capital}"] for w, capital in openers.items()}
        self.first = {vocabulary[f" {w}"]: vocabulary[capital] for w, capital in openers.items()}

    @staticmethod
    def _reflexives(noun: lex.Noun, vocabulary: dict[str, int]) -> list[int]:
        if noun.kind != "person":
            words = ["itself"]
        else:
            words = [w for w, other in (("himself", lex.FEMALE), ("herself", lex.MALE)) if noun.singular not in other]
        return [vocabulary[f" {w}"] for w in words]


@cache
def tables() -> Tables:
    """The look-up tables; made once."""
    return Tables()
