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
    """The items, each as often as it is frequent: to draw one is to look up a random place.

    The probability of an item falls with its rank, p ~ 1 / (rank + 3), ranks counted from 1.
    """
    cumulative = list(accumulate(1 / (i + 4) for i in range(len(items))))
    points = (np.arange(QUANTILES) + 0.5) / QUANTILES * cumulative[-1]
    return [items[bisect(cumulative, point)] for point in points]


def _choice(items: Sequence, topics: Sequence[str | None]) -> "Choice":
    """The items as the sampler draws them: of all topics, and of one."""
    everything = _zipf(items)
    topic = dict(zip(items, topics, strict=True))
    of_topic = [[item for item in everything if topic[item] == name] for name in lex.TOPICS]
    return Choice(all=everything, of_topic=[own or everything for own in of_topic])


class NounIds(NamedTuple):
    """A noun as the sampler sees it.

    Attributes:
        bit: its bit in a set of lemmas.
        blocked: the set of the lemmas that it never meets in a sentence.
        singular: id of the singular.
        plural: id of the plural.
        kind: its semantic class.
        topic: its place in `lexicon.TOPICS`.
        animate: whether it is a person or an animal.
        reflexive: id of "himself", "herself" or "itself", whichever the singular takes.
        possessive: id of "his" or "her", whichever the singular takes; None for what is no person.
    """

    bit: int
    blocked: int
    singular: int
    plural: int
    kind: str
    topic: int
    animate: bool
    reflexive: int
    possessive: int | None


class VerbIds(NamedTuple):
    """A verb as the sampler sees it.

    Attributes:
        bit: its bit in a set of lemmas.
        blocked: 0, the empty set: the nouns hold whom they never meet.
        third: id of the third person singular.
        base: id of the base form, which is the plural present too.
        past: id of the past tense.
        object_kind: the class of objects that it prefers.
        object_topic: the topic of objects that it prefers.
    """

    bit: int
    blocked: int
    third: int
    base: int
    past: int
    object_kind: str
    object_topic: int


class Choice(NamedTuple):
    """Words to draw from: all of a kind, and those of each topic.

    Attributes:
        all: each word as often as it is frequent.
        of_topic: the same for each topic; all of them where a topic has none.
    """

    all: list
    of_topic: list[list]


class Tables:
    """Everything that the sampler looks up, as token ids.

    In a list made by `_zipf` an id stands as often as it is frequent.

    Attributes:
        end: the end-of-text token.
        stop: the full stop.
        nouns: semantic class -> nouns.
        verbs: what they combine with -> verbs, by the topic of the subjects that they prefer.
        report_verbs: verbs that take a clause.
        reflexive_verbs: verbs that take "himself" or "themselves".
        adjectives: whether the noun is animate -> adjectives.
        often: adverbs of frequency.
        quickly: adverbs of manner.
        prepositions: prepositions.
        names: first names.
        neutral: determiners of both numbers, "the" most often.
        marked: determiners of the singular, and of the plural.
        pronouns: pronouns of the singular, and of the plural.
        times: tense -> time adverbs.
        vowel: ids of the words before which "a" becomes "an".
        word: word -> id, with a leading space.
        capital: id of a word -> id of the same with a capital letter.
        first: id of a word -> id of the same with a capital letter and no leading space.
    """

    def __init__(self) -> None:
        vocabulary = lexicon().vocabulary
        self.end = vocabulary[END_OF_TEXT]
        self.stop = vocabulary["."]
        self.word = {token[1:]: i for token, i in vocabulary.items() if token[0] == " "}
        self.vowel = {i for word, i in self.word.items() if word[:1] in "aeiou" or word == "honest"}
        self._add_lemmas()
        self._add_other_words()
        self._add_openers(vocabulary)

    def _ids(self, words: Sequence[str]) -> list[int]:
        return [self.word[word] for word in words]

    def _add_lemmas(self) -> None:
        words = lexicon()
        lemmas = [*words.nouns, *words.verbs]
        bit = {lemma: 1 << i for i, lemma in enumerate(lemmas)}
        topics = {topic: i for i, topic in enumerate(lex.TOPICS)}
        nouns = {
            lemma: NounIds(
                bit=bit[lemma],
                blocked=sum(bit[other] for other in lemmas if held_out(lemma, other)),
                singular=self.word[noun.singular],
                plural=self.word[noun.plural],
                kind=noun.kind,
                topic=topics[noun.topic],
                animate=noun.animate,
                reflexive=self.word[noun.reflexive],
                possessive=self.word.get(noun.possessive),
            )
            for lemma, noun in words.nouns.items()
        }
        verbs = {
            lemma: VerbIds(
                bit=bit[lemma],
                blocked=0,
                third=self.word[verb.third],
                base=self.word[verb.base],
                past=self.word[verb.past],
                object_kind=verb.object_kind,
                object_topic=topics[verb.object_topic],
            )
            for lemma, verb in words.verbs.items()
        }
        self.nouns = {
            kind: _choice(
                [nouns[noun.singular] for noun in words.nouns_of(kind)],
                [noun.topic for noun in words.nouns_of(kind)],
            )
            for kind in lex.NOUNS
        }
        self.verbs = {
            kind: _choice(
                [verbs[verb.base] for verb in words.verbs_of(kind)],
                [verb.topic for verb in words.verbs_of(kind)],
            )
            for kind in lex.VERBS
        }
        self.report_verbs = _zipf([verbs[verb.base] for verb in words.verbs_of("report")])
        self.reflexive_verbs = _zipf([verbs[lemma] for lemma in lex.REFLEXIVE_VERBS])

    def _add_other_words(self) -> None:
        self.adjectives = {}
        for animate, kind in ((True, "animate"), (False, "thing")):
            words, topics = zip(*lex.adjectives(kind), strict=True)
            self.adjectives[animate] = _choice(self._ids(words), list(topics))
        self.often = _zipf(self._ids(lex.FREQUENCY_ADVERBS))
        self.quickly = _zipf(self._ids(lex.MANNER_ADVERBS))
        self.prepositions = _zipf(self._ids(lex.PREPOSITIONS))
        self.names = _zipf(self._ids(lex.NAMES))
        the, *others = lex.NEUTRAL_DETERMINERS
        self.neutral = self._ids([the] * 8 + others)
        self.marked = [
            _zipf(self._ids(lex.SINGULAR_DETERMINERS)),
            _zipf(self._ids(lex.PLURAL_DETERMINERS)),
        ]
        self.pronouns = [self._ids(pronouns) for pronouns in lex.PRONOUNS]
        self.times: dict[str, list[int]] = {}
        for word, tense in lex.TIMES.items():
            self.times.setdefault(tense, []).append(self.word[word])

    def _add_openers(self, vocabulary: dict[str, int]) -> None:
        capitals = {word: word.capitalize() for word in lex.OPENERS}
        # a name has its capital letter wherever it stands
        capitals |= {name: name for name in lex.NAMES}
        self.capital = {self.word[word]: self.word[capital] for word, capital in capitals.items()}
        self.first = {self.word[word]: vocabulary[capital] for word, capital in capitals.items()}


@cache
def tables() -> Tables:
    """The look-up tables; made once."""
    return Tables()
