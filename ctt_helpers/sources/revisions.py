"""What the name of a checkpoint tells: its stage and step, tokens seen, and the order of training.

Names are read, never guessed at: where they do not tell one order, that is an error.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ctt_helpers.messages import abridged, closest

LAST = ("main", "final", "last")  # names without a number that mean the end of training
STAGES = ("stage", "phase", "ingredient")  # numbers that come before the step
STEPS = ("step", "steps", "iter", "iteration", "checkpoint", "ckpt", "")
GROW = ("tokens", "epoch", "samples")  # numbers that may grow along with the step
NUMBER = re.compile(r"([A-Za-z]*)[-_ ]*(\d+)([A-Za-z]*)")


@dataclass(frozen=True)
class _Name:
    """A name taken apart.

    Attributes:
        stages: numbers of stages, in their order.
        step: the number that counts training; None where there is none.
        counts: the word before it: "step", "checkpoint", "epoch" ...
        others: word before a further number -> number.
        skeleton: what is left when stages and numbers are taken away.
    """

    stages: tuple[int, ...]
    step: int | None
    counts: str = ""
    others: dict[str, int] = field(default_factory=dict)
    skeleton: str = ""


def _taken_apart(name: str) -> _Name:
    found = [(m[1].lower(), int(m[2])) for m in NUMBER.finditer(name)]
    stages = tuple(number for word, number in found if word in STAGES)
    rest = [(word, number) for word, number in found if word not in STAGES]
    steps = [i for i, (word, _) in enumerate(rest) if word in STEPS]
    countable = [i for i, (word, _) in enumerate(rest) if word not in GROW]
    counters = steps or countable or list(range(len(rest)))
    at = counters[-1] if counters else None
    others = {word: number for i, (word, number) in enumerate(rest) if i != at}
    stage = rf"(?:{'|'.join(STAGES)})[-_ ]*\d+[-_ ]*"
    skeleton = re.sub(r"\d+", "#", re.sub(stage, "", name, flags=re.IGNORECASE))
    counts, step = ("", None) if at is None else rest[at]
    return _Name(stages=stages, step=step, counts=counts, others=others, skeleton=skeleton)


def step_of(revision: str) -> int | None:
    """The step that a revision's name tells, "step512" -> 512; None where it tells none."""
    return _taken_apart(revision).step


def tokens_of(revision: str, tokens_per_step: int | None = None) -> int | None:
    """Tokens seen: from the name where it says so ("...tokens2B"), else steps times tokens a step.

    None in a second or later stage, whose names count from its own start.
    """
    name = _taken_apart(revision)
    if name.stages and name.stages[0] > 1:
        return None
    if match := re.search(r"tokens(\d+)B", revision):
        return int(match.group(1)) * 10**9
    if name.step is None or name.counts in GROW or not tokens_per_step:
        return None
    return name.step * tokens_per_step


def in_training_order(names: Sequence[str]) -> list[str]:
    """The names in the order of training: stages in turn, then steps, "main" last.

    Raises:
        ValueError: the names do not tell one order; the message says why.
    """
    end = [name for name in names if name.lower() in LAST]
    apart = {name: _taken_apart(name) for name in names if name not in end}
    problem = None
    if len(end) > 1:
        problem = f"{' and '.join(end)} would both be the last"
    if without := [name for name, parts in apart.items() if parts.step is None]:
        problem = f"{without[0]!r} has no number"
    if len(names) == 1:
        return list(names)
    ordered = sorted(apart, key=lambda name: (apart[name].stages, apart[name].step or 0))
    skeletons = sorted({parts.skeleton for parts in apart.values()})
    if not problem and len(skeletons) > 1:
        problem = f"{skeletons[0]!r} and {skeletons[1]!r} look like checkpoints of two runs"
    for before, after in pairwise(ordered):
        problem = problem or _contradiction(before, apart[before], after, apart[after])
    if problem:
        raise ValueError(
            f"The order of training cannot be told from these names: {problem}. There are "
            f"{abridged(sorted(names))}. Give revisions=[...] in the order of training."
        )
    return [*ordered, *end]


def _contradiction(before: str, a: _Name, after: str, b: _Name) -> str | None:
    """Why one name may not come before another, or None."""
    if (a.stages, a.step) == (b.stages, b.step):
        return f"{before!r} and {after!r} have the same step"
    for word in a.others.keys() & b.others.keys():
        if a.others[word] == b.others[word]:
            continue
        if word not in GROW:
            return f"{before!r} and {after!r} differ in {word!r}, too"
        if a.stages == b.stages and a.others[word] > b.others[word]:
            return f"{before!r} has more {word} than {after!r}, which has the later step"
    return None


def nearest(revision: str, known: Sequence[str]) -> str:
    """' Did you mean ...?' with the revision nearest by step (on a log scale), or by spelling."""
    step, skeleton = step_of(revision), _taken_apart(revision).skeleton
    others = {
        other: step_of(other)
        for other in known
        if step_of(other) is not None and _taken_apart(other).skeleton == skeleton
    }
    if step is None or not others:
        return closest(revision, known)
    best = min(others, key=lambda other: abs(math.log((others[other] + 1) / (step + 1))))
    return f" Did you mean {best!r}?"
