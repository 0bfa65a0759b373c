"""Minimal pairs of the embedded suite: one prefix, a right and a wrong next word, for each structure of the grammar.

Each pair comes with its twin, in which every number is turned round: each tested word is right as often as it is
wrong, so that a model that knows words but not sentences scores one half.
"""

import random
from dataclasses import dataclass
from typing import Any

from ctt_helpers.toy import lexicon as lex
from ctt_helpers.toy.lexicon import Noun, Verb, held_out, lexicon


@dataclass(frozen=True)
class Task:
    """A set of minimal pairs.

    Attributes:
        name: of the file; the suite calls the task "agreement/<name>".
        template: the prefix, word by word. H: the head, whose number decides. A: the attractor, the noun nearest to
            the tested word. B: a third noun. Both have the other number than the head. D: a determiner. J: an
            adjective or nothing. P: a preposition. V: a present verb that agrees with the first noun; T: one that
            agrees with A; U: one that agrees with B; SAY: one that reports and agrees with A. OFTEN: an adverb.
            PAST: a verb in the past tense. DEM: a demonstrative. Every other word stands for itself.
        tested: the pair of words: "verb" (a present form), "reflexive", or "noun" (after this/these, that/those).
        title: in plain words.
        measures: what a model needs in order to get it right.
        heads: which nouns can be the head.
    """

    name: str
    template: str
    title: str
    measures: str
    tested: str = "verb"
    heads: str = "animate"


ROLES = {"H": "subject", "A": "attractor", "B": "other", "V": "inner_verb", "T": "inner_verb", "U": "inner_verb",
         "SAY": "report_verb", "DEM": "determiner"}  # fmt: skip
NUMBERS = ("sg", "pl")
TASKS = (
    Task("simple", "D J H", "simple agreement", "the number of the noun right before the verb"),
    Task("irregular", "D J H", "irregular nouns", "the number of nouns whose plural has no -s", heads="irregular"),
    Task("adverb", "D J H OFTEN", "across an adverb", "the subject's number, carried over one word"),
    Task("pp", "D H P the A", "across a prepositional phrase", "the subject, not the nearest noun"),
    Task("nested_pp", "D H P the B P the A", "across two prepositional phrases", "the subject, with two nouns between"),
    Task("subj_rel", "D H that V the A", "across a subject relative", "the subject, not the object in the relative"),
    Task("obj_rel", "D H that the A T", "across an object relative", "the subject, not the subject of the relative"),
    Task("obj_rel_bare", "D H the A T", "object relative without 'that'", "the same, with no word to announce it"),
    Task("obj_rel_pp", "D H that the B P the A U", "object relative with a phrase", "the subject, two nouns on"),
    Task("sent_comp", "D A SAY that the H", "inside a reported clause", "the nearest noun, not the first one"),
    Task("vp_coord", "D J H V and", "coordinated verbs", "the number of a verb that goes on after 'and'"),
    Task("reflexive", "D J H PAST", "reflexives", "the number of the subject, for himself and themselves", "reflexive"),
    Task("det_noun", "D B V DEM", "determiner and noun", "the number of this and these, for the noun", "noun"),
    Task("center_embed", "D B that the H that the A T", "two relatives, one inside the other",
         "the middle subject; the pretraining text never embeds twice"),
)  # fmt: skip


def _animate() -> list[Noun]:
    return lexicon().nouns_of("person", "animal")


def _candidates(task: Task) -> list[tuple[Noun, Verb]]:
    """The (head, verb) pairs of lemmas that never meet in running text and that the task can test."""
    heads = [n for n in _animate() if n.irregular or task.heads == "animate"]
    verbs = lexicon().verbs_of("act", "meet", "handle")
    if task.tested == "reflexive":
        heads, verbs = lexicon().nouns_of("person"), [lexicon().verbs[v] for v in lex.REFLEXIVE_VERBS]
    elif task.tested == "noun":
        verbs = lexicon().verbs_of("meet")
    if "A" in task.template.split():
        heads = [head for head in heads if _attractors(task, head)]
    return [(head, verb) for head in heads for verb in verbs if held_out(head.singular, verb.base)]


def _attractors(task: Task, head: Noun) -> list[Noun]:
    """The nouns that never meet the head in running text; one that has a verb of its own is animate."""
    has_verb = {"T", "SAY"} & set(task.template.split())
    nouns = _animate() if has_verb else [*_animate(), *lexicon().nouns_of("artifact", "place")]
    return [noun for noun in nouns if held_out(head.singular, noun.singular)]


def _spell(slots: list[str], forms: dict[str, str], prepositions: list[str]) -> tuple[list[str], dict[str, int]]:
    """The words of a prefix, and the token positions of its roles."""
    prefix, roles = [], {}
    for slot, preposition in zip(slots, prepositions, strict=True):
        if word := preposition if slot == "P" else forms.get(slot, slot):
            prefix.append(word)
            if slot in ROLES:
                roles[ROLES[slot]] = len(prefix)  # the end-of-text token is position 0
    return prefix, roles


def _twins(task: Task, rng: random.Random, candidates: list[tuple[Noun, Verb]]) -> list[dict[str, Any]]:
    """Two pairs with the same lemmas, one with a singular head and one with a plural head."""
    words = lexicon()
    head, tested = rng.choice(candidates)
    slots = task.template.split()
    attractor = rng.choice(_attractors(task, head)) if "A" in slots else None
    third = rng.choice([n for n in _animate() if n not in (head, attractor)])
    # in det_noun the verb before the noun is the one that the noun never met
    inner = tested if task.tested == "noun" else rng.choice([v for v in words.verbs_of("meet") if v != tested])
    third_plural = rng.random() < 0.5  # in det_noun alone; everywhere else it is the opposite of the head's number
    fixed = {
        "D": rng.choice(["The"] * 6 + ["My", "Our", "Her", "His"]),
        "J": rng.choice(["", rng.choice(lex.ADJECTIVES["animate"])]),
        "OFTEN": rng.choice(lex.FREQUENCY_ADVERBS),
        "PAST": tested.past,
    }
    say, demonstrative = rng.choice(words.verbs_of("report")), rng.choice(lex.DEMONSTRATIVES)
    own = [w for w, other in (("himself", lex.FEMALE), ("herself", lex.MALE)) if head.singular not in other]
    reflexive = rng.choice(own)
    prepositions = [rng.choice(lex.PREPOSITIONS) for _ in slots]

    pairs = []
    for plural in (False, True):
        opposite = not plural
        if task.tested != "noun":
            third_plural = opposite
        forms = fixed | {
            "H": head.form(plural),
            "A": attractor.form(opposite) if attractor else "",
            "B": third.form(third_plural),
            "V": inner.form(plural if task.tested == "verb" else third_plural),
            "T": inner.form(opposite),
            "U": inner.form(third_plural),
            "SAY": say.form(opposite),
            "DEM": demonstrative[plural],
        }
        prefix, roles = _spell(slots, forms, prepositions)
        if task.tested == "verb":
            right, wrong = tested.form(plural), tested.form(opposite)
        elif task.tested == "noun":
            right, wrong = head.form(plural), head.form(opposite)
        else:
            right, wrong = ("themselves", reflexive)[:: 1 if plural else -1]
        pairs.append({
            "prefix": " ".join(prefix),
            "right": f" {right}",
            "wrong": f" {wrong}",
            "head": head.singular,
            "head_number": NUMBERS[plural],
            "attractor": attractor.singular if attractor else None,
            "attractor_number": NUMBERS[opposite] if attractor else None,
            "verb": tested.base,
            "condition": f"{NUMBERS[plural]}-{NUMBERS[opposite]}" if attractor else NUMBERS[plural],
            "roles": roles,
        })  # fmt: skip
    return pairs


def make_pairs(task: Task, n: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Minimal pairs of a task: `n` to find features with and `n` others to test them on.

    Args:
        task: one of `TASKS`.
        n: pairs a split; even, since they come in twins.
        seed: the suite's seed.

    Returns:
        Rows with split, prefix, right, wrong, head, attractor, verb, their numbers, and the token positions of the
        roles (the end-of-text token, which is put before a prefix when it is read, is position 0).

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
        # a sentence in one split is not in the other, whichever word is tested after it
        if seen.isdisjoint(twin["prefix"] for twin in twins):
            seen.update(twin["prefix"] for twin in twins)
            rows += [{"split": "find" if len(rows) < n else "test", **twin} for twin in twins]
    return rows
