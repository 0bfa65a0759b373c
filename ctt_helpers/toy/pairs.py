"""Minimal pairs of the embedded suite: one prefix, a right next word and a wrong one.

There is a task for each structure of the grammar. Each pair comes with its twin, in which singular
and plural are swapped throughout. So each tested word is right as often as it is wrong, and a model
that knows words but not sentences scores one half.
"""

import random
from dataclasses import dataclass
from typing import Any

from ctt_helpers.toy import lexicon as lex
from ctt_helpers.toy.lexicon import Noun, Verb, held_out, lexicon

# ---- the tasks


@dataclass(frozen=True)
class Task:
    """A set of minimal pairs.

    Attributes:
        name: of the file; the suite calls the task "agreement/<name>".
        template: the prefix, word by word. These are slots; every other word stands for itself.
            H: the head, whose number decides.
            A: the attractor, the noun nearest to the tested word; its number is not the head's.
            B: a third noun, whose number is not the head's either.
            D: a determiner.
            J: an adjective, or nothing.
            P: a preposition.
            V: a present verb that agrees with the first noun.
            T: a present verb that agrees with A.
            U: a present verb that agrees with B.
            SAY: a present verb that reports, and agrees with A.
            OFTEN: an adverb.
            PAST: a verb in the past tense.
            DEM: a demonstrative.
        title: in plain words.
        measures: what a model needs in order to get it right.
        tested: the pair of words: "verb" (a present form), "reflexive", or "noun" (after this and
            these, that and those).
        heads: which nouns can be the head: "animate", or "irregular" (animate too).
    """

    name: str
    template: str
    title: str
    measures: str
    tested: str = "verb"
    heads: str = "animate"


# slot -> what its word is called in the pairs
ROLES = {
    "H": "subject",
    "A": "attractor",
    "B": "other",
    "V": "inner_verb",
    "T": "inner_verb",
    "U": "inner_verb",
    "SAY": "report_verb",
    "DEM": "determiner",
}
NUMBERS = ("sg", "pl")
TASKS = (
    Task(
        name="simple",
        template="D J H",
        title="simple agreement",
        measures="the number of the noun right before the verb",
    ),
    Task(
        name="irregular",
        template="D J H",
        title="irregular nouns",
        measures="the number of nouns whose plural has no -s",
        heads="irregular",
    ),
    Task(
        name="adverb",
        template="D J H OFTEN",
        title="across an adverb",
        measures="the subject's number, carried over one word",
    ),
    Task(
        name="pp",
        template="D H P the A",
        title="across a prepositional phrase",
        measures="the subject, not the nearest noun",
    ),
    Task(
        name="nested_pp",
        template="D H P the B P the A",
        title="across two prepositional phrases",
        measures="the subject, with two nouns between",
    ),
    Task(
        name="subj_rel",
        template="D H that V the A",
        title="across a subject relative",
        measures="the subject, not the object in the relative",
    ),
    Task(
        name="obj_rel",
        template="D H that the A T",
        title="across an object relative",
        measures="the subject, not the subject of the relative",
    ),
    Task(
        name="obj_rel_bare",
        template="D H the A T",
        title="object relative without 'that'",
        measures="the same, with no word to announce it",
    ),
    Task(
        name="obj_rel_pp",
        template="D H that the B P the A U",
        title="object relative with a phrase",
        measures="the subject, two nouns on",
    ),
    Task(
        name="sent_comp",
        template="D A SAY that the H",
        title="inside a reported clause",
        measures="the nearest noun, not the first one",
    ),
    Task(
        name="vp_coord",
        template="D J H V and",
        title="coordinated verbs",
        measures="the number of a verb that goes on after 'and'",
    ),
    Task(
        name="reflexive",
        template="D J H PAST",
        title="reflexives",
        measures="the number of the subject, for himself and themselves",
        tested="reflexive",
    ),
    Task(
        name="det_noun",
        template="D B V DEM",
        title="determiner and noun",
        measures="the number of this and these, for the noun",
        tested="noun",
    ),
    Task(
        name="center_embed",
        template="D B that the H that the A T",
        title="two relatives, one inside the other",
        measures="the middle subject; the pretraining text never embeds twice",
    ),
)

# ---- which lemmas a pair can be made of


def _animate() -> list[Noun]:
    return lexicon().nouns_of("person", "animal")


def _candidates(task: Task) -> list[tuple[Noun, Verb]]:
    """The pairs of a head and a verb that a task can test.

    The two never meet in running text.
    """
    words = lexicon()
    heads = _animate()
    verbs = words.verbs_of("act", "meet", "handle")
    if task.heads == "irregular":
        heads = [head for head in heads if head.irregular]
    if task.tested == "noun":
        verbs = words.verbs_of("meet")
    elif task.tested == "reflexive":
        heads = words.nouns_of("person")
        verbs = [words.verbs[lemma] for lemma in lex.REFLEXIVE_VERBS]
    if "A" in task.template.split():
        heads = [head for head in heads if _attractors(task, head)]
    return [(head, verb) for head in heads for verb in verbs if held_out(head.singular, verb.base)]


def _attractors(task: Task, head: Noun) -> list[Noun]:
    """The nouns that never meet the head in running text."""
    nouns = _animate()
    # an attractor with a verb of its own has to be animate
    has_verb = {"T", "SAY"} & set(task.template.split())
    if not has_verb:
        nouns = nouns + lexicon().nouns_of("artifact", "place")
    return [noun for noun in nouns if held_out(head.singular, noun.singular)]


# ---- writing pairs


def _spell(
    slots: list[str], forms: dict[str, str], prepositions: list[str]
) -> tuple[list[str], dict[str, int]]:
    """The words of a prefix, and the token positions of its roles."""
    prefix: list[str] = []
    roles: dict[str, int] = {}
    for slot, preposition in zip(slots, prepositions, strict=True):
        word = preposition if slot == "P" else forms.get(slot, slot)
        if not word:  # no adjective
            continue
        prefix.append(word)
        if slot in ROLES:
            roles[ROLES[slot]] = len(prefix)  # the end-of-text token is position 0
    return prefix, roles


def _twins(
    task: Task, rng: random.Random, candidates: list[tuple[Noun, Verb]]
) -> list[dict[str, Any]]:
    """Two pairs with the same lemmas, one with a singular head and one with a plural head.

    Every word is drawn, whether the template has a slot for it or not: the order of the draws is
    part of what a seed means.
    """
    words = lexicon()
    slots = task.template.split()
    head, tested = rng.choice(candidates)
    attractor = rng.choice(_attractors(task, head)) if "A" in slots else None
    third = rng.choice([noun for noun in _animate() if noun not in (head, attractor)])
    if task.tested == "noun":
        inner = tested  # the verb before the noun is the one that the noun never met
    else:
        inner = rng.choice([verb for verb in words.verbs_of("meet") if verb != tested])
    # used where a noun is tested; everywhere else the third noun has not the head's number
    drawn_plural = rng.random() < 0.5
    fixed = {
        "D": rng.choice(["The"] * 6 + ["My", "Our", "Her", "His"]),
        "J": rng.choice(["", rng.choice(lex.ADJECTIVES["animate"])]),
        "OFTEN": rng.choice(lex.FREQUENCY_ADVERBS),
        "PAST": tested.past,
    }
    say = rng.choice(words.verbs_of("report"))
    demonstrative = rng.choice(lex.DEMONSTRATIVES)
    reflexive = rng.choice(lex.reflexives(head.singular))
    prepositions = [rng.choice(lex.PREPOSITIONS) for _ in slots]

    pairs = []
    for plural in (False, True):
        opposite = not plural
        third_plural = drawn_plural if task.tested == "noun" else opposite
        # V agrees with the first noun: the head where a verb is tested, else B
        first_plural = plural if task.tested == "verb" else third_plural
        forms = fixed | {
            "H": head.form(plural),
            "A": attractor.form(opposite) if attractor else "",
            "B": third.form(third_plural),
            "V": inner.form(first_plural),
            "T": inner.form(opposite),
            "U": inner.form(third_plural),
            "SAY": say.form(opposite),
            "DEM": demonstrative[plural],
        }
        prefix, roles = _spell(slots, forms, prepositions)
        right, wrong = _tested_words(task, head, tested, reflexive, plural)
        number = NUMBERS[plural]
        attractor_number = NUMBERS[opposite] if attractor else None
        pairs.append(
            {
                "prefix": " ".join(prefix),
                "right": f" {right}",
                "wrong": f" {wrong}",
                "head": head.singular,
                "head_number": number,
                "attractor": attractor.singular if attractor else None,
                "attractor_number": attractor_number,
                "verb": tested.base,
                "condition": f"{number}-{attractor_number}" if attractor else number,
                "roles": roles,
            }
        )
    return pairs


def _tested_words(
    task: Task, head: Noun, verb: Verb, reflexive: str, plural: bool
) -> tuple[str, str]:
    """The right word and the wrong one, for a plural head or for a singular one."""
    if task.tested == "verb":
        return verb.form(plural), verb.form(not plural)
    if task.tested == "noun":
        return head.form(plural), head.form(not plural)
    if plural:
        return "themselves", reflexive
    return reflexive, "themselves"


def make_pairs(task: Task, n: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Minimal pairs of a task: `n` to find features with and `n` others to test them on.

    Args:
        task: one of `TASKS`.
        n: pairs per split; even, since they come in twins.
        seed: the suite's seed.

    Returns:
        A dict per pair. "split" is "find" or "test". "prefix", "right" and "wrong" are text.
        "head", "attractor" and "verb" are lemmas. "head_number" and "attractor_number" are "sg" or
        "pl", and "condition" is both in one word. Without an attractor, its entries are None.
        "roles" maps each role to its token position; the end-of-text token, which is put before a
        prefix when it is read, is position 0.

    Raises:
        ValueError: `n` is odd.
    """
    if n % 2:
        raise ValueError(f"n={n} is odd; pairs come in twins, so give an even number.")
    rng = random.Random(f"pairs {task.name} {seed}")
    candidates = _candidates(task)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < 2 * n:
        twins = _twins(task, rng, candidates)
        prefixes = [twin["prefix"] for twin in twins]
        # a sentence in one split is not in the other, whichever word is tested after it
        if seen.isdisjoint(prefixes):
            seen.update(prefixes)
            split = "find" if len(rows) < n else "test"
            rows += [{"split": split, **twin} for twin in twins]
    return rows
