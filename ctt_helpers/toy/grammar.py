"""A small probabilistic grammar of English that writes running text as token ids, quickly.

Words predict words. A document has a topic and its nouns come back; verbs and adjectives prefer
nouns of their own topic. Besides number, a sentence holds gender (himself, her dog), polarity ("no
... ever") and tense ("yesterday ..."): several things to learn, each at its own time.
"""

import random
import zlib
from array import array
from typing import Any

import numpy as np
from jaxtyping import Int

from ctt_helpers.toy.lexicon import TOPICS
from ctt_helpers.toy.tables import Choice, NounIds, VerbIds, tables

PLURAL = 0.45  # share of noun phrases in the plural
PRESENT = 0.62  # share of verbs in the present tense, where no adverb says when
# Shares of subjects that carry a structure. The rarer they are, the longer the model gets by with
# "agree with the nearest noun", and the deeper its accuracy falls below chance on sentences with an
# attractor.
SUBJECT_PHRASE = 0.03  # prepositional phrase
SUBJECT_SECOND_PHRASE = 0.12  # of those: one more prepositional phrase inside
SUBJECT_RELATIVE = 0.03
OBJECT_RELATIVE = 0.02
OBJECT_RELATIVE_BARE = 0.01  # object relative without "that"
PHRASE_IN_RELATIVE = 0.08  # prepositional phrase on the subject of an object relative
# Words that predict words
SELECTION = 0.75  # how often a word is drawn from the topic that its partner prefers
TOPICAL = 0.5  # of the other nouns: how often one is drawn from the topic of the document
REPEATED = 0.2  # how often a noun is taken up again from the sentences before
REMEMBERED = 4  # how many nouns can be taken up again
# Time and polarity
TIMED = 0.3  # share of sentences that begin with a time adverb
TENSES = ["past"] * 6 + ["present"] * 9 + ["future"] * 5  # of those, as often as they stand here
NEGATIVE_SUBJECT = 0.12  # share of subjects with "no" or "few"
NEGATIVE_OTHER = 0.1  # share of other noun phrases with "no", which license nothing
FEW = 0.3  # of the negative plural subjects: "few" in place of "no"
POLAR = 0.5  # under a negative subject: how often "ever" stands before the verb, "any" after it
POSSESSIVE = 0.35  # of objects whose subject is one person: share with "his" or "her"
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
        topic: of the document.
        recent: the last nouns of the document.
        tense: of the clause, where an adverb says when; else None.
        negative: the clause has a negative subject, which licenses "ever" and "any".
        owner: the subject of the clause where it is one person, who can have an object of his own.
    """

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed).random
        self.t = tables()
        self.out: list[int] = []
        self.bits = 0
        self.blocked = 0
        self.topic = 0
        self.recent: list[NounIds] = []
        self.tense: str | None = None
        self.negative = False
        self.owner: NounIds | None = None

    def sentence(self, first: bool) -> list[int]:
        """One sentence without any held-out pair of lemmas.

        Args:
            first: it is the first of its document, and has no leading space.
        """
        before = self.recent
        while True:
            self.out = []
            self.bits = 0
            self.blocked = 0
            self.recent = list(before)
            self.negative = False
            self._time()
            self._clause(may_report=True)
            if not self.bits & self.blocked:
                break
        self.recent = self.recent[-REMEMBERED:]
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
            self.topic = int(self.random() * len(TOPICS))
            self.recent = []
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

    # ---- drawing words

    def _pick(self, items: list) -> Any:
        return items[int(self.random() * len(items))]

    def _prefer(self, words: Choice, topic: int | None) -> Any:
        """A word that most often is of a topic; of any, where there is none to prefer."""
        if topic is not None and self.random() < SELECTION:
            return self._pick(words.of_topic[topic])
        return self._pick(words.all)

    def _noun(self, kind: str, topic: int | None) -> NounIds:
        """A noun of a semantic class.

        Args:
            kind: the class.
            topic: of the nouns that the verb before prefers; None: none is preferred.
        """
        if self.recent and self.random() < REPEATED:
            again = [noun for noun in self.recent if noun.kind == kind]
            if again:
                return self._pick(again)
        words = self.t.nouns[kind]
        if topic is not None:
            return self._prefer(words, topic)
        if self.random() < TOPICAL:
            return self._pick(words.of_topic[self.topic])
        return self._pick(words.all)

    def _verb(self, kind: str, subject: NounIds | None) -> VerbIds:
        """A verb that suits its subject; None: a name or a pronoun, which any verb suits."""
        return self._prefer(self.t.verbs[kind], None if subject is None else subject.topic)

    def _use(self, lemma: NounIds | VerbIds) -> None:
        """Note that the lemma is in the sentence."""
        self.bits |= lemma.bit
        self.blocked |= lemma.blocked

    # ---- the grammar: each rule appends ids to self.out

    def _time(self) -> None:
        """Perhaps a time adverb, which decides the tense of the clause."""
        self.tense = None
        if self.random() >= TIMED:
            return
        self.tense = self._pick(TENSES)
        self.out.append(self._pick(self.t.times[self.tense]))

    def _clause(self, may_report: bool = False) -> None:
        if self.random() < 0.09:
            plural = self._name_or_pronoun()
            self.owner = None
            self._verb_phrase(plural, None, may_report)
            return
        noun, plural = self._noun_phrase(self._kind_of_subject(), role="subject")
        self.owner = noun if noun.kind == "person" and not plural else None
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
        below 0 is written. Time adverbs and negation do not reach into a relative clause.
        """
        r = self.random()
        r -= SUBJECT_PHRASE
        if r < 0:
            self._phrase()
            if self.random() < SUBJECT_SECOND_PHRASE:
                self._phrase()
            return
        outside = self.tense, self.negative
        self.tense, self.negative = None, False
        r -= SUBJECT_RELATIVE
        if r < 0:
            if noun.animate:
                self.out.append(self.t.word["that"])
                self._transitive(noun, plural, self.random() < PRESENT)
        else:
            r -= OBJECT_RELATIVE
            if r < 0:
                self._object_relative(noun, that=True)
            elif r < OBJECT_RELATIVE_BARE:
                self._object_relative(noun, that=False)
        self.tense, self.negative = outside

    def _noun_phrase(
        self, kind: str, role: str = "other", topic: int | None = None, simple: bool = False
    ) -> tuple[NounIds, bool]:
        """A determiner, perhaps an adjective, and a noun.

        Args:
            kind: the semantic class of the noun.
            role: "subject" of a clause, "object" of its verb, or "other".
            topic: of the nouns that the verb before prefers.
            simple: no adjective.

        Returns:
            The noun, and whether it is plural.
        """
        plural = self.random() < PLURAL
        noun = self._noun(kind, topic)
        self._use(noun)
        described = self.random() < 0.2 and not simple
        adjective = None
        if described:
            adjective = self._prefer(self.t.adjectives[noun.animate], noun.topic)
        following = adjective if described else noun.singular
        self.out.append(self._determiner(role, plural, following))
        if described:
            self.out.append(adjective)
        self.out.append(noun.plural if plural else noun.singular)
        self.recent.append(noun)
        return noun, plural

    def _determiner(self, role: str, plural: bool, following: int) -> int:
        """The id of a determiner.

        Args:
            role: of the noun phrase.
            plural: its number.
            following: id of the word after it.
        """
        t = self.t
        if role == "subject" and self.random() < NEGATIVE_SUBJECT:
            self.negative = True
            return t.word["few" if plural and self.random() < FEW else "no"]
        if role == "object" and self.negative and self.random() < POLAR:
            return t.word["any"]
        if role == "object" and self.owner is not None and self.random() < POSSESSIVE:
            return self.owner.possessive
        if role != "subject" and self.random() < NEGATIVE_OTHER:
            return t.word["no"]
        determiner = self._pick(t.neutral if self.random() < 0.7 else t.marked[plural])
        if determiner == t.word["a"] and following in t.vowel:
            return t.word["an"]
        return determiner

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
        inner, plural = self._noun_phrase(kind, simple=True)
        if self.random() < PHRASE_IN_RELATIVE:
            self._phrase()
        verb = self._verb("meet" if noun.animate else "handle", inner)
        self._finite(verb, plural, self.random() < PRESENT)

    def _finite(self, verb: VerbIds, plural: bool, present: bool) -> None:
        """A verb in the future, in the past, or in the present form that agrees."""
        self._use(verb)
        if self.tense == "future":
            self.out += [self.t.word["will"], verb.base]
        elif not present:
            self.out.append(verb.past)
        elif plural:
            self.out.append(verb.base)
        else:
            self.out.append(verb.third)

    def _transitive(self, subject: NounIds | None, plural: bool, present: bool) -> None:
        """A verb and its object."""
        if self.random() < 0.55:
            verb = self._verb("meet", subject)
            self._finite(verb, plural, present)
            if self.random() < 0.08:
                self.out.append(self._pick(self.t.names))
                return
            kind = "person" if self.random() < 0.65 else "animal"
        else:
            verb = self._verb("handle", subject)
            self._finite(verb, plural, present)
            kind = verb.object_kind
            if self.random() >= SELECTION:
                kind = self._pick(["artifact", "artifact", "food", "plant", "idea"])
        self._noun_phrase(kind, role="object", topic=verb.object_topic)

    def _copula(self, subject: NounIds | None, plural: bool, present: bool) -> None:
        """A form of "be", and an adjective or a prepositional phrase."""
        if present:
            word = "are" if plural else "is"
        else:
            word = "were" if plural else "was"
        self.out.append(self.t.word[word])
        if self.random() < 0.6:
            animate = subject is None or subject.animate
            topic = None if subject is None else subject.topic
            self.out.append(self._prefer(self.t.adjectives[animate], topic))
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
        present = self.random() < PRESENT if self.tense is None else self.tense == "present"
        if self.negative and self.random() < POLAR:
            out.append(t.word["ever"])
        elif self.random() < 0.12:
            out.append(self._pick(t.often))

        # one draw decides what kind of verb phrase it is
        r = self.random()
        if r < 0.10 and self.tense != "future":
            self._copula(noun, plural, present)
            return
        if r < 0.14 and self.tense != "future":
            if present:
                out.append(t.word["do" if plural else "does"])
            else:
                out.append(t.word["did"])
            out.append(t.word["not"])
            # the verb after "do" carries no number: it is the base form, as in the plural present
            plural = True
            present = True
            self.negative = True
        if not animate:
            self._finite(self._verb("happen", noun), plural, present)
        elif r < 0.20 and noun is not None:
            self._finite(self._pick(t.reflexive_verbs), plural, present)
            out.append(t.word["themselves"] if subject_plural else noun.reflexive)
            return
        elif r < 0.25 and may_report:
            self._finite(self._pick(t.report_verbs), plural, present)
            if self.random() < 0.6:
                out.append(t.word["that"])
            # a reported clause has a time and a polarity of its own
            self.tense = None
            self.negative = False
            self._clause()
            return
        elif r < 0.55:
            self._finite(self._verb("act", noun), plural, present)
        else:
            self._transitive(noun, plural, present)

        # how the sentence ends: a second verb, an adverb, a prepositional phrase, or as it is
        if r >= 0.25 and self.random() < 0.08 and animate:
            out.append(t.word["and"])
            if self.random() < 0.5:
                self._finite(self._verb("act", noun), plural, present)
            else:
                self._transitive(noun, plural, present)
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
