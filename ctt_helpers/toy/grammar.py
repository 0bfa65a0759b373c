"""A small probabilistic grammar of English that writes running text as token ids, quickly."""

import random
import zlib
from array import array
from typing import Any

import numpy as np
from jaxtyping import Int

from ctt_helpers.toy.tables import NounIds, VerbIds, tables

PLURAL = 0.45
PRESENT = 0.62
# Shares of subjects that carry a structure. The rarer they are, the longer the model gets by with "agree with the
# nearest noun", and the deeper its accuracy falls below chance on sentences with an attractor.
SUBJECT_PHRASE = 0.06  # prepositional phrase
SUBJECT_SECOND_PHRASE = 0.12  # ... with one more inside
SUBJECT_RELATIVE = 0.03
OBJECT_RELATIVE = 0.028
OBJECT_RELATIVE_BARE = 0.012  # without "that"
PHRASE_IN_RELATIVE = 0.08  # prepositional phrase on the subject of an object relative
SENTENCES = (2, 7)  # a document, after its end-of-text token
PARTS = ("pretraining", "train", "validation")


class Sampler:
    """Draws sentences and documents, each a list of token ids.

    Args:
        seed: which stream of random numbers; equal seeds give equal text.
    """

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed).random
        self.t = tables()
        self.out: list[int] = []
        self.bits = self.blocked = 0

    def sentence(self, first: bool) -> list[int]:
        """One sentence without any held-out pair of lemmas; `first` in its document, it has no leading space."""
        while True:
            self.out, self.bits, self.blocked = [], 0, 0
            self._clause(may_report=True)
            if not self.bits & self.blocked:
                break
        self.out[0] = (self.t.first if first else self.t.capital)[self.out[0]]
        self.out.append(self.t.stop)
        return self.out

    def document(self, part: str) -> list[int]:
        """The end-of-text token and 2 to 7 sentences. Documents of different parts never begin with the same
        sentence, so no document is in two parts."""
        wanted = PARTS.index(part)
        while True:
            out = [self.t.end, *self.sentence(first=True)]
            if zlib.crc32(array("H", out).tobytes()) % len(PARTS) == wanted:
                break
        low, high = SENTENCES
        for _ in range(low - 1 + int(self.random() * (high - low + 1))):
            out += self.sentence(first=False)
        return out

    def rows(self, n_rows: int, length: int, part: str) -> Int[np.ndarray, "rows length"]:
        """Documents packed into rows; a row begins with a new document, and its last one may be cut."""
        rows = np.empty((n_rows, length), dtype=np.int64)
        for i in range(n_rows):
            row: list[int] = []
            while len(row) < length:
                row += self.document(part)
            rows[i] = row[:length]
        return rows

    # ---- the grammar: each rule appends ids to self.out

    def _pick(self, items: list) -> Any:
        return items[int(self.random() * len(items))]

    def _use(self, lemma: NounIds | VerbIds) -> NounIds | VerbIds:
        self.bits |= lemma.bit
        self.blocked |= lemma.blocked
        return lemma

    def _clause(self, may_report: bool = False) -> None:
        if self.random() < 0.09:
            plural = False
            if self.random() < 0.5:
                self.out.append(self._pick(self.t.names))
            else:
                plural = self.random() < 0.5
                self.out.append(self._pick(self.t.pronouns[plural]))
            return self._verb_phrase(plural, None, may_report)
        r = self.random()
        kind = "person" if r < 0.56 else "animal" if r < 0.80 else self._pick(["artifact", "food", "plant", "idea"])
        noun, plural = self._noun_phrase(kind)
        r = self.random()
        if (r := r - SUBJECT_PHRASE) < 0:
            self._phrase()
            if self.random() < SUBJECT_SECOND_PHRASE:
                self._phrase()
        elif (r := r - SUBJECT_RELATIVE) < 0:
            if noun.animate:
                self.out.append(self.t.word["that"])
                self._transitive(plural, self.random() < PRESENT)
        elif (r := r - OBJECT_RELATIVE) < 0:
            self._object_relative(noun, that=True)
        elif r < OBJECT_RELATIVE_BARE:
            self._object_relative(noun, that=False)
        self._verb_phrase(plural, noun, may_report)

    def _noun_phrase(self, kind: str, simple: bool = False) -> tuple[NounIds, bool]:
        random, out, t = self.random, self.out, self.t
        plural = random() < PLURAL
        noun = self._use(self._pick(t.nouns[kind]))
        out.append(self._pick(t.neutral if random() < 0.7 else t.marked[plural]))
        following = noun.singular
        if random() < 0.2 and not simple:
            following = self._pick(t.adjectives[noun.animate])
        if out[-1] == t.word["a"] and following in t.vowel:
            out[-1] = t.word["an"]
        if following != noun.singular:
            out.append(following)
        out.append(noun.plural if plural else noun.singular)
        return noun, plural

    def _phrase(self) -> None:
        self.out.append(self._pick(self.t.prepositions))
        r = self.random()
        self._noun_phrase("person" if r < 0.3 else "animal" if r < 0.5 else "place" if r < 0.75 else "artifact", True)

    def _object_relative(self, noun: NounIds, that: bool) -> None:
        if that:
            self.out.append(self.t.word["that"])
        _, plural = self._noun_phrase("person" if self.random() < 0.7 else "animal", simple=True)
        if self.random() < PHRASE_IN_RELATIVE:
            self._phrase()
        self._finite(self._pick(self.t.verbs["meet" if noun.animate else "handle"]), plural, self.random() < PRESENT)

    def _finite(self, verb: VerbIds, plural: bool, present: bool) -> None:
        self._use(verb)
        self.out.append(verb.past if not present else verb.base if plural else verb.third)

    def _transitive(self, plural: bool, present: bool) -> None:
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
        word = ("are" if plural else "is") if present else ("were" if plural else "was")
        self.out.append(self.t.word[word])
        if self.random() < 0.6:
            self.out.append(self._pick(self.t.adjectives[animate]))
        else:
            self._phrase()

    def _verb_phrase(self, plural: bool, noun: NounIds | None, may_report: bool) -> None:
        random, out, t = self.random, self.out, self.t
        present, subject_plural = random() < PRESENT, plural
        animate = noun is None or noun.animate
        if random() < 0.12:
            out.append(self._pick(t.often))
        r = random()
        if r < 0.10:
            return self._copula(plural, present, animate)
        if r < 0.14:  # negated: the verb after do carries no number
            out.append(t.word[("do" if plural else "does") if present else "did"])
            out.append(t.word["not"])
            plural, present = True, True
        if not animate:
            self._finite(self._pick(t.verbs["happen"]), plural, present)
        elif r < 0.19 and noun is not None:
            self._finite(self._pick(t.reflexive_verbs), plural, present)
            out.append(t.word["themselves"] if subject_plural else self._pick(noun.reflexives))
            return
        elif r < 0.24 and may_report:
            self._finite(self._pick(t.verbs["report"]), plural, present)
            if random() < 0.6:
                out.append(t.word["that"])
            return self._clause()
        elif r < 0.60:
            self._finite(self._pick(t.verbs["act"]), plural, present)
        else:
            self._transitive(plural, present)
        if r >= 0.24 and random() < 0.08 and animate:
            out.append(t.word["and"])
            if random() < 0.5:
                self._finite(self._pick(t.verbs["act"]), plural, present)
            else:
                self._transitive(plural, present)
        elif random() < 0.15:
            out.append(self._pick(t.quickly))
        elif random() < 0.12:
            self._phrase()


def training_rows(seed: int = 0, n_rows: int = 24_000, length: int = 64) -> Int[np.ndarray, "rows length"]:
    """The text that the embedded suite is pretrained on, in the order of training.

    Args:
        seed: the suite's seed.
        n_rows: batch size times steps.
        length: tokens a row.
    """
    return Sampler(f"pretraining {seed}").rows(n_rows, length, "pretraining")


def sample_rows(n_rows: int, length: int = 64, seed: int = 0, split: str = "train") -> Int[np.ndarray, "rows length"]:
    """Fresh text from the same grammar, none of whose documents is in the pretraining text or in the other split.

    Args:
        n_rows: how many rows.
        length: tokens a row; each begins with the end-of-text token.
        seed: which sample.
        split: "train" or "validation".

    Raises:
        ValueError: an unknown split, or a size below one.
    """
    if split not in PARTS[1:]:
        raise ValueError(f"split={split!r} does not exist; take 'train' or 'validation'.")
    if n_rows < 1 or length < 1:
        raise ValueError(f"n_rows={n_rows}, length={length}: both are at least 1.")
    return Sampler(f"{split} {seed}").rows(n_rows, length, split)
