"""Minimal pairs of the embedded suite: one prefix, a right next word and a wrong one.

Each task crosses two things: what decides which word is right (the number of the subject, say) and
what only distracts (the number of the noun nearest to the verb). Pairs come in groups of the same
words, one pair for each combination, so that nothing but these levels differs within a group. Each
tested word is right as often as it is wrong, and a model that knows words but not sentences scores
one half.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ctt_helpers.toy import lexicon as lex
from ctt_helpers.toy.lexicon import Noun, Verb, held_out, lexicon

SPLITS = ("find", "test", "far")
GIVE_UP = 2000  # drafts in a row that hold nothing new
# what is crossed -> its two levels
LEVELS = {
    "number": ("sg", "pl"),
    "gender": ("he", "she"),
    "polarity": ("pos", "neg"),
    "tense": ("past", "present"),
    "topic": ("one", "other"),
}


# ---- the tasks


@dataclass(frozen=True)
class Task:
    """A set of minimal pairs.

    Attributes:
        name: "phenomenon/structure".
        template: the prefix of the splits "find" and "test", word by word. These are slots; every
            other word stands for itself.
            H: the head. A: the attractor. B: one more noun.
            D, E: the determiners of H and A.
            J: an adjective, or nothing. P: a preposition. N: a name.
            V: a verb with an object, which agrees with H. W, X: likewise with A and with B.
            SAY: a verb that reports, in the past. OFTEN: an adverb.
            PAST: the verb before a reflexive. DEM: a demonstrative, in the number of H.
            TIME: a time adverb. VERB: the verb whose object is tested.
        far: the template of the split "far", another structure.
        title: in plain words.
        measures: what a model needs in order to get it right.
        factor: what is crossed, a key of `LEVELS`.
        attractor: what carries the distracting level, in plain words; None: nothing does.
        tested: "verb" (its present forms), "reflexive" (its number or its gender), "possessive",
            "noun" (after this and these), "adverb" ("ever" or another one), "tense" (past or
            present), "which verb" or "which noun" (the one of the right topic).
        heads: which nouns can be the head: "animate", "irregular" (animate too), or "person".
        others: what carries a third level, in plain words.
    """

    name: str
    template: str
    far: str
    title: str
    measures: str
    factor: str = "number"
    attractor: str | None = None
    tested: str = "verb"
    heads: str = "animate"
    others: str | None = None

    @property
    def file(self) -> str:
        """Where its pairs are, from the suite's folder."""
        return f"pairs/{self.name.replace('/', '_')}.jsonl"


# slot -> what its word is called in the pairs
ROLES = {
    "H": "subject",
    "A": "attractor",
    "B": "other",
    "V": "inner_verb",
    "W": "inner_verb",
    "X": "inner_verb",
    "DEM": "determiner",
    "TIME": "time",
}
TASKS = (
    Task(
        name="agreement/simple",
        template="D J H",
        far="N SAY that D H",
        title="simple agreement",
        measures="the number of the noun right before the verb",
    ),
    Task(
        name="agreement/irregular",
        template="D J H",
        far="N SAY that D H",
        title="irregular nouns",
        measures="the number of nouns whose plural has no -s",
        heads="irregular",
    ),
    Task(
        name="agreement/pp",
        template="D H P E A",
        far="N SAY that D H P E A",
        title="across a prepositional phrase",
        measures="the subject, not the nearest noun",
        attractor="the noun in the phrase",
    ),
    Task(
        name="agreement/nested_pp",
        template="D H P the B P E A",
        far="N SAY that D H P the B P E A",
        title="across two prepositional phrases",
        measures="the subject, with two nouns between",
        attractor="the noun in the second phrase",
        others="the noun in the first phrase",
    ),
    Task(
        name="agreement/subj_rel",
        template="D H that V E A",
        far="N SAY that D H that V E A",
        title="across a subject relative",
        measures="the subject, not the object in the relative",
        attractor="the object in the relative",
    ),
    Task(
        name="agreement/obj_rel",
        template="D H that E A W",
        far="D H E A W",
        title="across an object relative",
        measures="the subject, not the subject of the relative",
        attractor="the subject of the relative",
    ),
    Task(
        name="agreement/sent_comp",
        template="D A SAY that the H",
        far="D A SAY the H",
        title="inside a reported clause",
        measures="the nearest noun, not the first one",
        attractor="the subject of the main clause",
    ),
    Task(
        name="agreement/vp_coord",
        template="D H V E A and",
        far="N SAY that D H V E A and",
        title="coordinated verbs",
        measures="the subject, for a verb that goes on after 'and'",
        attractor="the object of the first verb",
    ),
    Task(
        name="agreement/reflexive",
        template="D J H PAST",
        far="N SAY that D H PAST",
        title="number of reflexives",
        measures="the number of the subject, for himself and themselves",
        tested="reflexive",
        heads="person",
    ),
    Task(
        name="agreement/reflexive_pp",
        template="D H P E A PAST",
        far="N SAY that D H P E A PAST",
        title="number of reflexives across a phrase",
        measures="the subject's number, not the nearest noun's",
        attractor="the noun in the phrase",
        tested="reflexive",
        heads="person",
    ),
    Task(
        name="agreement/det_noun",
        template="D A W DEM",
        far="N SAY that D A W DEM",
        title="determiner and noun",
        measures="the number of this and these, for the noun",
        attractor="the subject of the sentence",
        tested="noun",
    ),
    Task(
        name="agreement/center_embed",
        template="D B that the H that E A W",
        far="D B that the H E A W",
        title="two relatives, one inside the other",
        measures="the middle subject; the pretraining text never embeds twice",
        attractor="the subject of the inner relative",
        others="the first noun",
    ),
    Task(
        name="gender/simple",
        template="D J H PAST",
        far="N SAY that D H PAST",
        title="gender of reflexives",
        measures="whether the subject is he or she",
        factor="gender",
        tested="reflexive",
        heads="person",
    ),
    Task(
        name="gender/pp",
        template="D H P E A PAST",
        far="N SAY that D H P E A PAST",
        title="gender of reflexives across a phrase",
        measures="the subject's gender, not the nearest person's",
        factor="gender",
        attractor="the person in the phrase",
        tested="reflexive",
        heads="person",
    ),
    Task(
        name="gender/possessive",
        template="D J H PAST",
        far="N SAY that D H PAST",
        title="gender of possessives",
        measures="whether the subject is he or she, for his and her",
        factor="gender",
        tested="possessive",
        heads="person",
    ),
    Task(
        name="polarity/simple",
        template="D J H",
        far="N SAY that D H",
        title="negative polarity",
        measures="that 'ever' needs a negative subject",
        factor="polarity",
        tested="adverb",
    ),
    Task(
        name="polarity/pp",
        template="D H P E A",
        far="N SAY that D H P E A",
        title="negative polarity across a phrase",
        measures="that a 'no' inside a phrase does not license 'ever'",
        factor="polarity",
        attractor="the determiner in the phrase",
        tested="adverb",
    ),
    Task(
        name="tense/simple",
        template="TIME D J H",
        far="TIME D H P E A",
        title="tense after a time adverb",
        measures="that yesterday takes the past, and now the present",
        factor="tense",
        tested="tense",
    ),
    Task(
        name="tense/subj_rel",
        template="TIME D H that V E A",
        far="TIME D H that E A W",
        title="tense after a time adverb, across a relative",
        measures="the adverb, not the tense of the verb in the relative",
        factor="tense",
        attractor="the verb in the relative",
        tested="tense",
    ),
    Task(
        name="selection/subject",
        template="D J H",
        far="N SAY that D H",
        title="which verb suits the subject",
        measures="which verbs go with which kind of noun",
        factor="topic",
        tested="which verb",
    ),
    Task(
        name="selection/subject_pp",
        template="D H P E A",
        far="N SAY that D H P E A",
        title="which verb suits the subject, across a phrase",
        measures="the subject's kind, not the nearest noun's",
        factor="topic",
        attractor="the noun in the phrase",
        tested="which verb",
    ),
    Task(
        name="selection/object",
        template="D A VERB the",
        far="N SAY that D A VERB the",
        title="which object suits the verb",
        measures="which nouns go with which verb",
        factor="topic",
        attractor="the subject of the sentence",
        tested="which noun",
    ),
)


# ---- which words a group can be made of


class Words:
    """The nouns and verbs of a split: those of "far" are never in "find" or "test"."""

    def __init__(self, split: str) -> None:
        words = lexicon()
        far = split == "far"
        self.nouns = [noun for noun in words.nouns.values() if noun.far == far]
        self.verbs = [verb for verb in words.verbs.values() if verb.far == far]
        self._known: dict[str, list[tuple[Noun, Verb]]] = {}

    def candidates(self, task: Task) -> list[tuple[Noun, Verb]]:
        """See `_candidates`; found once."""
        if task.name not in self._known:
            self._known[task.name] = _candidates(task, self)
        return self._known[task.name]

    def nouns_of(self, *kinds: str) -> list[Noun]:
        return [noun for noun in self.nouns if noun.kind in kinds]

    def verbs_of(self, *kinds: str) -> list[Verb]:
        return [verb for verb in self.verbs if verb.kind in kinds]

    @property
    def animate(self) -> list[Noun]:
        return self.nouns_of("person", "animal")


@dataclass(frozen=True)
class Cell:
    """The levels of one pair: 0 or 1, the first or the second of `LEVELS`.

    Attributes:
        subject: of what decides.
        attractor: of what distracts.
        other: of a third word that distracts.
    """

    subject: int
    attractor: int
    other: int


def _cells(task: Task) -> list[Cell]:
    """Every combination of the levels that the task crosses."""
    attractor = (0, 1) if task.attractor else (0,)
    other = (0, 1) if task.others else (0,)
    return [Cell(*levels) for levels in itertools.product((0, 1), attractor, other)]


def group_size(task: Task) -> int:
    """How many pairs a group has: one for each combination of levels."""
    return len(_cells(task))


def _candidates(task: Task, words: Words) -> list[tuple[Noun, Verb]]:
    """The pairs of a head and a verb that a task with one head can test.

    The two never meet in running text.
    """
    heads = words.animate
    verbs = words.verbs_of("act", "meet", "handle")
    if task.heads == "irregular":
        heads = [head for head in heads if head.irregular]
    elif task.heads == "person":
        heads = words.nouns_of("person")
    if task.tested == "noun":
        verbs = words.verbs_of("meet")
    elif task.tested == "reflexive":
        verbs = [verb for verb in words.verbs if verb.base in lex.REFLEXIVE_VERBS]
    if task.attractor and task.factor == "number":
        heads = [head for head in heads if _attractors(task, head, words)]
    return [(head, verb) for head in heads for verb in verbs if held_out(head.singular, verb.base)]


def _attractors(task: Task, head: Noun, words: Words) -> list[Noun]:
    """The nouns that never meet the head in running text."""
    nouns = words.animate
    # an attractor with a verb of its own, or a verb before it that takes persons, is animate
    slots = set(f"{task.template} {task.far}".split())
    if not slots & {"V", "W", "SAY"}:
        nouns = nouns + words.nouns_of("artifact", "place")
    return [noun for noun in nouns if held_out(head.singular, noun.singular)]


# ---- one group: the words of every slot, by level


@dataclass
class Draft:
    """What a group of pairs is made of.

    Attributes:
        forms: (slot, cell) -> its word; "" for none.
        answers: cell -> the right word and the wrong one.
        lemmas: cell -> the lemmas of head, attractor and tested verb.
    """

    forms: Callable[[str, Cell], str]
    answers: Callable[[Cell], tuple[str, str]]
    lemmas: Callable[[Cell], tuple[str, str | None, str]]


def _number(task: Task, words: Words, rng: random.Random) -> Draft:
    """Levels are numbers: of the head, of the attractor, of a third noun."""
    head, tested = rng.choice(words.candidates(task))
    attractor = rng.choice(_attractors(task, head, words)) if task.attractor else None
    third = rng.choice([noun for noun in words.animate if noun not in (head, attractor)])
    inner = rng.choice([verb for verb in words.verbs_of("meet") if verb != tested])
    if task.tested == "noun":
        inner = tested  # the verb before the noun is the one that the noun never met
    demonstrative = rng.choice(lex.DEMONSTRATIVES)

    def forms(slot: str, cell: Cell) -> str:
        return {
            "D": "the",
            "E": "the",
            "H": head.form(bool(cell.subject)),
            "A": attractor.form(bool(cell.attractor)) if attractor else "",
            "B": third.form(bool(cell.other)),
            "V": inner.form(bool(cell.subject)),
            "W": inner.form(bool(cell.attractor)),
            "X": inner.form(bool(cell.other)),
            "PAST": tested.past,
            "DEM": demonstrative[cell.subject],
        }[slot]

    def answers(cell: Cell) -> tuple[str, str]:
        plural = bool(cell.subject)
        if task.tested == "verb":
            return tested.form(plural), tested.form(not plural)
        if task.tested == "noun":
            return head.form(plural), head.form(not plural)
        both = (head.reflexive, "themselves")
        return both[plural], both[not plural]

    name = attractor.singular if attractor else None
    return Draft(forms, answers, lambda cell: (head.singular, name, tested.base))


def _gender(task: Task, words: Words, rng: random.Random) -> Draft:
    """Levels are "he" and "she": two heads and two attractors, all in the singular."""
    persons = [
        [noun for noun in words.nouns_of("person") if noun.pronoun == level]
        for level in LEVELS["gender"]
    ]
    heads = [rng.choice(nouns) for nouns in persons]
    attractors = [
        rng.choice([noun for noun in nouns if noun not in heads]) if task.attractor else None
        for nouns in persons
    ]
    verb = rng.choice([verb for verb in words.verbs if verb.base in lex.REFLEXIVE_VERBS])
    tested = "possessive" if task.tested == "possessive" else "reflexive"

    def forms(slot: str, cell: Cell) -> str:
        attractor = attractors[cell.attractor]
        return {
            "D": "the",
            "E": "the",
            "H": heads[cell.subject].singular,
            "A": attractor.singular if attractor else "",
            "PAST": verb.past,
        }[slot]

    def answers(cell: Cell) -> tuple[str, str]:
        both = [getattr(head, tested) for head in heads]
        return both[cell.subject], both[1 - cell.subject]

    def lemmas(cell: Cell) -> tuple[str, str | None, str]:
        attractor = attractors[cell.attractor]
        return heads[cell.subject].singular, attractor.singular if attractor else None, verb.base

    return Draft(forms, answers, lemmas)


def _polarity(task: Task, words: Words, rng: random.Random) -> Draft:
    """Levels are those of the determiners: "the" and "no"."""
    plural = rng.random() < 0.5
    head = rng.choice(words.animate)
    attractor = rng.choice([noun for noun in words.nouns_of("person", "animal") if noun != head])
    determiner = ("the", "no")
    adverb = rng.choice([word for word in lex.FREQUENCY_ADVERBS if word not in ("never", "seldom")])

    def forms(slot: str, cell: Cell) -> str:
        return {
            "D": determiner[cell.subject],
            "E": determiner[cell.attractor],
            "H": head.form(plural),
            "A": attractor.form(plural),
        }[slot]

    def answers(cell: Cell) -> tuple[str, str]:
        return ("ever", adverb) if cell.subject else (adverb, "ever")

    name = attractor.singular if task.attractor else None
    return Draft(forms, answers, lambda cell: (head.singular, name, "ever"))


def _tense(task: Task, words: Words, rng: random.Random) -> Draft:
    """Levels are tenses: of the time adverb, and of the verb in the relative clause."""
    plural = rng.random() < 0.5
    head, tested = rng.choice(words.candidates(task))
    second = rng.choice([noun for noun in words.animate if noun != head])
    second_plural = rng.random() < 0.5
    inner = rng.choice([verb for verb in words.verbs_of("meet") if verb != tested])
    now = rng.choice(["now", "today"])

    def forms(slot: str, cell: Cell) -> str:
        present = bool(cell.attractor)
        return {
            "TIME": now if cell.subject else "yesterday",
            "D": "the",
            "E": "the",
            "H": head.form(plural),
            "A": second.form(second_plural),
            "V": inner.form(plural) if present else inner.past,
            "W": inner.form(second_plural) if present else inner.past,
        }[slot]

    def answers(cell: Cell) -> tuple[str, str]:
        both = (tested.past, tested.form(plural))
        return both[cell.subject], both[1 - cell.subject]

    name = second.singular if task.attractor else None
    return Draft(forms, answers, lambda cell: (head.singular, name, tested.base))


def _topic(task: Task, words: Words, rng: random.Random) -> Draft:
    """Levels are two topics, drawn for each group: of the head, and of the attractor."""
    plural = rng.random() < 0.5
    nouns = words.animate
    verbs = words.verbs_of("act")
    if task.tested == "which noun":
        verbs = words.verbs_of("meet")
        nouns = words.nouns_of("person")

    def of(topic: str, items: list, attribute: str = "topic") -> list:
        return [item for item in items if getattr(item, attribute) == topic]

    by = "object_topic" if task.tested == "which noun" else "topic"
    usable = [t for t in lex.TOPICS if len(of(t, nouns)) >= 2 and of(t, verbs, by)]
    topics = rng.sample(usable, 2)
    heads = [rng.choice(of(topic, nouns)) for topic in topics]
    others = [
        rng.choice([noun for noun in of(topic, nouns) if noun not in heads]) for topic in topics
    ]
    tested = [rng.choice(of(topic, verbs, by)) for topic in topics]

    def forms(slot: str, cell: Cell) -> str:
        return {
            "D": "the",
            "E": "the",
            "H": heads[cell.subject].form(plural),
            "A": others[cell.attractor].form(plural),
            "VERB": tested[cell.subject].past,
        }[slot]

    def answers(cell: Cell) -> tuple[str, str]:
        if task.tested == "which noun":
            both = [head.form(plural) for head in heads]
        else:
            both = [verb.form(plural) for verb in tested]
        return both[cell.subject], both[1 - cell.subject]

    def lemmas(cell: Cell) -> tuple[str, str | None, str]:
        name = others[cell.attractor].singular if task.attractor else None
        return heads[cell.subject].singular, name, tested[cell.subject].base

    return Draft(forms, answers, lemmas)


DRAFTS: dict[str, Callable[[Task, Words, random.Random], Draft]] = {
    "number": _number,
    "gender": _gender,
    "polarity": _polarity,
    "tense": _tense,
    "topic": _topic,
}


# ---- writing pairs


def _group(
    task: Task, split: str, words: Words, rng: random.Random, group: int
) -> list[dict[str, Any]]:
    """One pair for each combination of levels; all else is the same in them."""
    draft = DRAFTS[task.factor](task, words, rng)
    slots = (task.far if split == "far" else task.template).split()
    drawn = {
        "J": rng.choice(["", *[word for word, _ in lex.adjectives("animate")]]),
        "N": rng.choice(lex.NAMES),
        "SAY": rng.choice(words.verbs_of("report")).past,
    }
    prepositions = [rng.choice(lex.PREPOSITIONS) for _ in slots]
    subject_determiner = rng.choice(["the"] * 4 + ["my", "our"])

    rows = []
    for cell in _cells(task):
        prefix: list[str] = []
        roles: dict[str, int] = {}
        for slot, preposition in zip(slots, prepositions, strict=True):
            if slot == "P":
                word = preposition
            elif slot in drawn:
                word = drawn[slot]
            elif slot == slot.upper():
                word = draft.forms(slot, cell)
                if slot == "D" and word == "the":
                    word = subject_determiner
            else:
                word = slot
            if not word:  # no adjective
                continue
            prefix.append(word)
            if slot in ROLES:
                roles[ROLES[slot]] = len(prefix)  # the end-of-text token is position 0
        prefix[0] = prefix[0].capitalize()
        rows.append(_row(task, split, group, cell, prefix, roles, draft))
    return rows


def _row(
    task: Task,
    split: str,
    group: int,
    cell: Cell,
    prefix: list[str],
    roles: dict[str, int],
    draft: Draft,
) -> dict[str, Any]:
    right, wrong = draft.answers(cell)
    head, attractor, verb = draft.lemmas(cell)
    names = LEVELS[task.factor]
    levels = {"subject_level": names[cell.subject]}
    if task.attractor:
        levels["attractor_level"] = names[cell.attractor]
    if task.others:
        levels["other_level"] = names[cell.other]
    return {
        "split": split,
        "group": group,
        "prefix": " ".join(prefix),
        "right": f" {right}",
        "wrong": f" {wrong}",
        **levels,
        "head": head,
        "attractor": attractor,
        "verb": verb,
        "roles": roles,
    }


def make_pairs(task: Task, n: int = 240, seed: int = 0) -> list[dict[str, Any]]:
    """Minimal pairs of a task: `n` in each of the splits "find", "test" and "far".

    "test" has other sentences than "find", of the same words and structure. "far" has none of its
    nouns and verbs, and another structure: what was found on "find" and holds there is more than a
    list of words.

    Args:
        task: one of `TASKS`.
        n: pairs per split; a multiple of 8, the size of the largest group.
        seed: the suite's seed.

    Returns:
        A dict per pair. "prefix", "right" and "wrong" are text. "group" is one number for pairs of
        the same words. "subject_level" is the level of what decides, "attractor_level" and
        "other_level" are those of what distracts (only where something does). "head", "attractor"
        and "verb" are lemmas; "attractor" is None where there is none. "roles" maps each role to
        its token position; the end-of-text token, which is put before a prefix when it is read, is
        position 0.

    Raises:
        ValueError: `n` is no multiple of 8, or more than there are.
    """
    check_number(n)
    rng = random.Random(f"pairs {task.name} {seed}")
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    group = 0
    for split in SPLITS:
        words = Words(split)
        made: list[dict[str, Any]] = []
        misses = 0  # drafts in a row that hold a sentence again
        while len(made) < n:
            pairs = _group(task, split, words, rng, group)
            prefixes = {pair["prefix"] for pair in pairs}
            # a sentence in one split is not in the other, whichever word is tested after it
            if len(prefixes) < len(pairs) or not seen.isdisjoint(prefixes):
                misses += 1
                if misses == GIVE_UP:
                    raise ValueError(
                        f"The grammar has no {n} different pairs of {task.name!r} for {split!r}: "
                        f"it has made {len(made)}. Ask for fewer."
                    )
                continue
            seen |= prefixes
            made += pairs
            group += 1
            misses = 0
        rows += made
    return rows


def check_number(n: int) -> None:
    """Raise ValueError if there cannot be `n` pairs in a split."""
    if n % 8 or n < 8:
        raise ValueError(
            f"n={n} is no multiple of 8: pairs come in groups of 2, 4 or 8, one for each "
            "combination of levels."
        )
