"""A small probabilistic grammar of English that writes running text as token ids, quickly."""

import random
import zlib
from array import array
from typing import Any

import numpy as np
from jaxtyping import Int

from ctt_helpers.toy.tables import NounIds, VerbIds, tables

PLURAL = 0.45  # share of noun phrases in the plural
PRESENT = 0.62  # share of verbs in the present tense
# Shares of subjects that carry a structure. The rarer they are, the longer the model gets by with
# "agree with the nearest noun", and the deeper its accuracy falls below chance on sentences with an
# attractor.
SUBJECT_PHRASE = 0.06  # prepositional phrase
SUBJECT_SECOND_PHRASE = 0.12  # of those: one more prepositional phrase inside
SUBJECT_RELATIVE = 0.03
OBJECT_RELATIVE = 0.028
OBJECT_RELATIVE_BARE = 0.012  # object relative without "that"
PHRASE_IN_RELATIVE = 0.08  # prepositional phrase on the subject of an object relative
SENTENCES = (2, 7)  # fewest and most in a document
PARTS = ("pretraining", "train", "validation")


class Sampler:
    """Draws sentences and documents, each a list of token ids.

    Args:
        seed: which stream of random numbers; equal seeds give equal text.

    Attributes:
        random: draws a number from 0 to below 1.
        t: the look-up tables.
        out: the ids of the sentence so far.
        bits: the set of the lemmas in it, a bit each.
        blocked: the set of the lemmas that may not stand in it.
    """

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed).random
        self.t = tables()
        self.out: list[int] = []
        self.bits = 0
        self.blocked = 0

    def sentence(self, first: bool) -> list[int]:
        """One sentence without any held-out pair of lemmas.

        Args:
            first: it is the first of its document, and has no leading space.
        """
        while True:
            self.out = []
            self.bits = 0
            self.blocked = 0
            self._clause(may_report=True)
            if not self.bits & self.blocked:
                break
        capital = self.t.first if first else self.t.capital
        self.out[0] = capital[self.out[0]]
        self.out.append(self.t.stop)
        return self.out

    def document(self, part: str) -> list[int]:
        """The end-of-text token and 2 to 7 sentences.

        Documents of different parts never begin with the same sentence, so no document is in two
        parts: a hash of the first sentence decides which part it belongs to.

        Args:
            part: one of `PARTS`.
        """
        wanted = PARTS.index(part)
        while True:
            out = [self.t.end, *self.sentence(first=True)]
            if zlib.crc32(array("H", out).tobytes()) % len(PARTS) == wanted:
                break
        fewest, most = SENTENCES
        further = fewest - 1 + int(self.random() * (most - fewest + 1))
        for _ in range(further):
            out += self.sentence(first=False)
        return out

    def rows(self, n_rows: int, length: int, part: str) -> Int[np.ndarray, "rows length"]:
        """Documents packed into rows of token ids.

        A row begins with a new document. Its last document may be cut.

        Args:
            n_rows: how many rows.
            length: tokens per row.
            part: one of `PARTS`.
        """
        rows = np.empty((n_rows, length), dtype=np.int64)
        for i in range(n_rows):
            row: list[int] = []
            while len(row) < length:
                row += self.document(part)
            rows[i] = row[:length]
        return rows

    # ---- drawing

    def _pick(self, items: list) -> Any:
        return items[int(self.random() * len(items))]

    def _use(self, lemma: NounIds | VerbIds) -> NounIds | VerbIds:
        """Note that the lemma is in the sentence."""
        self.bits |= lemma.bit
        self.blocked |= lemma.blocked
        return lemma

    # ---- the grammar: each rule appends ids to self.out

    def _clause(self, may_report: bool = False) -> None:
        if self.random() < 0.09:
            plural = self._name_or_pronoun()
            self._verb_phrase(plural, None, may_report)
            return
        noun, plural = self._noun_phrase(self._kind_of_subject())
        self._structure(noun, plural)
        self._verb_phrase(plural, noun, may_report)

    def _name_or_pronoun(self) -> bool:
        """A subject that is no noun; returns whether it is plural."""
        if self.random() < 0.5:
            self.out.append(self._pick(self.t.names))
            return False
        plural = self.random() < 0.5
        self.out.append(self._pick(self.t.pronouns[plural]))
        return plural

    def _kind_of_subject(self) -> str:
        r = self.random()
        if r < 0.56:
            return "person"
        if r < 0.80:
            return "animal"
        return self._pick(["artifact", "food", "plant", "idea"])

    def _structure(self, noun: NounIds, plural: bool) -> None:
        """What stands between a subject and its verb, most often nothing.

        One draw decides: each structure in turn takes its share off it, and the one that takes it
        below 0 is written.
        """
        r = self.random()
        r -= SUBJECT_PHRASE
        if r < 0:
            self._phrase()
            if self.random() < SUBJECT_SECOND_PHRASE:
                self._phrase()
            return
        r -= SUBJECT_RELATIVE
        if r < 0:
            if noun.animate:
                self.out.append(self.t.word["that"])
                self._transitive(plural, self.random() < PRESENT)
            return
        r -= OBJECT_RELATIVE
        if r < 0:
            self._object_relative(noun, that=True)
        elif r < OBJECT_RELATIVE_BARE:
            self._object_relative(noun, that=False)

    def _noun_phrase(self, kind: str, simple: bool = False) -> tuple[NounIds, bool]:
        """A determiner, perhaps an adjective, and a noun.

        Args:
            kind: the semantic class of the noun.
            simple: no adjective.

        Returns:
            The noun, and whether it is plural.
        """
        t = self.t
        plural = self.random() < PLURAL
        noun = self._use(self._pick(t.nouns[kind]))
        determiners = t.neutral if self.random() < 0.7 else t.marked[plural]
        determiner = self._pick(determiners)
        described = self.random() < 0.2 and not simple
        adjective = self._pick(t.adjectives[noun.animate]) if described else None

        following = adjective if described else noun.singular
        if determiner == t.word["a"] and following in t.vowel:
            determiner = t.word["an"]
        self.out.append(determiner)
        if described:
            self.out.append(adjective)
        self.out.append(noun.plural if plural else noun.singular)
        return noun, plural

    def _phrase(self) -> None:
        """A preposition and a noun phrase."""
        self.out.append(self._pick(self.t.prepositions))
        r = self.random()
        if r < 0.3:
            kind = "person"
        elif r < 0.5:
            kind = "animal"
        elif r < 0.75:
            kind = "place"
        else:
            kind = "artifact"
        self._noun_phrase(kind, simple=True)

    def _object_relative(self, noun: NounIds, that: bool) -> None:
        """A relative clause whose object is the noun: "(that) the dog sees"."""
        if that:
            self.out.append(self.t.word["that"])
        kind = "person" if self.random() < 0.7 else "animal"
        _, plural = self._noun_phrase(kind, simple=True)
        if self.random() < PHRASE_IN_RELATIVE:
            self._phrase()
        verb = self._pick(self.t.verbs["meet" if noun.animate else "handle"])
        self._finite(verb, plural, self.random() < PRESENT)

    def _finite(self, verb: VerbIds, plural: bool, present: bool) -> None:
        """A verb in the past, or in the present form that agrees with its subject."""
        self._use(verb)
        if not present:
            self.out.append(verb.past)
        elif plural:
            self.out.append(verb.base)
        else:
            self.out.append(verb.third)

    def _transitive(self, plural: bool, present: bool) -> None:
        """A verb and its object."""
        if self.random() < 0.55:
            self._finite(self._pick(self.t.verbs["meet"]), plural, present)
            if self.random() < 0.1:
                self.out.append(self._pick(self.t.names))
            else:
                self._noun_phrase("person" if self.random() < 0.65 else "animal")
        else:
            self._finite(self._pick(self.t.verbs["handle"]), plural, present)
            self._noun_phrase(self._pick(["artifact", "artifact", "food", "plant", "idea"]))

    def _copula(self, plural: bool, present: bool, animate: bool) -> None:
        """A form of "be", and an adjective or a prepositional phrase."""
        if present:
            word = "are" if plural else "is"
        else:
            word = "were" if plural else "was"
        self.out.append(self.t.word[word])
        if self.random() < 0.6:
            self.out.append(self._pick(self.t.adjectives[animate]))
        else:
            self._phrase()

    def _verb_phrase(self, plural: bool, noun: NounIds | None, may_report: bool) -> None:
        """The verb of a clause and what follows it.

        Args:
            plural: the number of the subject.
            noun: the subject; None for a name or a pronoun.
            may_report: the verb may take a clause of its own.
        """
        t = self.t
        out = self.out
        animate = noun is None or noun.animate
        subject_plural = plural
        present = self.random() < PRESENT
        if self.random() < 0.12:
            out.append(self._pick(t.often))

        # one draw decides what kind of verb phrase it is
        r = self.random()
        if r < 0.10:
            self._copula(plural, present, animate)
            return
        if r < 0.14:
            if present:
                out.append(t.word["do" if plural else "does"])
            else:
                out.append(t.word["did"])
            out.append(t.word["not"])
            # the verb after "do" carries no number: it is the base form, as in the plural present
            plural = True
            present = True
        if not animate:
            self._finite(self._pick(t.verbs["happen"]), plural, present)
        elif r < 0.19 and noun is not None:
            self._finite(self._pick(t.reflexive_verbs), plural, present)
            if subject_plural:
                out.append(t.word["themselves"])
            else:
                out.append(self._pick(noun.reflexives))
            return
        elif r < 0.24 and may_report:
            self._finite(self._pick(t.verbs["report"]), plural, present)
            if self.random() < 0.6:
                out.append(t.word["that"])
            self._clause()
            return
        elif r < 0.60:
            self._finite(self._pick(t.verbs["act"]), plural, present)
        else:
            self._transitive(plural, present)

        # how the sentence ends: a second verb, an adverb, a prepositional phrase, or as it is
        if r >= 0.24 and self.random() < 0.08 and animate:
            out.append(t.word["and"])
            if self.random() < 0.5:
                self._finite(self._pick(t.verbs["act"]), plural, present)
            else:
                self._transitive(plural, present)
        elif self.random() < 0.15:
            out.append(self._pick(t.quickly))
        elif self.random() < 0.12:
            self._phrase()


# ---- text


def training_rows(
    seed: int = 0, n_rows: int = 24_000, length: int = 64
) -> Int[np.ndarray, "rows length"]:
    """The text that the embedded suite is pretrained on, in the order of training.

    Args:
        seed: the suite's seed.
        n_rows: batch size times steps.
        length: tokens per row.

    Returns:
        [rows, length] token ids; each row begins with the end-of-text token.
    """
    return Sampler(f"pretraining {seed}").rows(n_rows, length, "pretraining")


def sample_rows(
    n_rows: int, length: int = 64, seed: int = 0, split: str = "train"
) -> Int[np.ndarray, "rows length"]:
    """Fresh text from the same grammar.

    None of its documents is in the pretraining text or in the other split.

    Args:
        n_rows: how many rows.
        length: tokens per row.
        seed: which sample.
        split: "train" or "validation".

    Returns:
        [rows, length] token ids; each row begins with the end-of-text token.

    Raises:
        ValueError: an unknown split, or a size below one.
    """
    if split not in PARTS[1:]:
        raise ValueError(f"split={split!r} does not exist; take 'train' or 'validation'.")
    if n_rows < 1 or length < 1:
        raise ValueError(f"n_rows={n_rows}, length={length}: both are at least 1.")
    return Sampler(f"{split} {seed}").rows(n_rows, length, split)
