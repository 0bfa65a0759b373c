"""Checks of the exercises: one function for each, with the name of what the student writes.

A check draws random inputs, calls the student's function on copies of them, and compares what
comes back with another formulation: the package's, or plain loops. Where the two differ, it also
tries the mistakes that it knows, and names the one that gives what came. A function that changes
what it was given does not pass. `seed` is drawn anew each time; an error tells it, so that the same
numbers can be drawn again.

    checks.encode(encode)            # passed: encode
    checks.encode(encode, seed=123)  # the numbers of seed 123
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ctt_helpers import metrics
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.hooks import HookedModel, residual_stream
from ctt_helpers.pairs import make_pairs
from ctt_helpers.uncertainty import resample

Mistakes = dict[str, Callable[..., Any]]  # what it is likely to be -> what it gives
TRIES = 1000  # draws, until every known mistake gives something else than the truth
DRAWS = 3  # inputs that a check goes through


class CheckFailed(AssertionError):
    """An answer that is not right yet."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message alone, for the fault is not in the lines of the check."""
        return str(self).splitlines()


# ---- how a check works


def _seed(seed: int | None) -> int:
    return secrets.randbelow(10**6) if seed is None else seed


def _tensor(values) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def _normal(rng: np.random.Generator, *size: int) -> Tensor:
    return _tensor(rng.normal(size=size))


def _sizes(rng: np.random.Generator, *ranges: tuple[int, int]) -> list[int]:
    """Different sizes, one from each range, so that no two axes can be mixed up unseen."""
    while True:
        sizes = [int(rng.integers(low, high + 1)) for low, high in ranges]
        if len(set(sizes)) == len(sizes):
            return sizes


def _copy(value: Any) -> Any:
    """A copy, so that what a student's function changes in place changes nothing here."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, tuple | list):
        return type(value)(_copy(each) for each in value)
    return value


def _as_it_was(value: Any, before: Any) -> bool:
    """Whether an array, or a list or tuple with arrays in it, is still what it was."""
    if isinstance(before, Tensor):
        return torch.equal(value, before)
    if isinstance(before, np.ndarray):
        return np.array_equal(value, before)
    if isinstance(before, tuple | list):
        same = (_as_it_was(*both) for both in zip(value, before, strict=False))
        return len(value) == len(before) and all(same)
    return not isinstance(before, int | float | str) or value == before


def _argument(student: Callable, at: int) -> str:
    """What the student's function calls one of its arguments."""
    try:
        parameters = inspect.signature(student).parameters.values()
    except (TypeError, ValueError):  # some functions of C have no signature
        parameters = ()
    names = [each.name for each in parameters if each.kind is not each.VAR_POSITIONAL]
    return names[at] if at < len(names) else f"argument {at + 1}"


def _shown(value: Any) -> str:
    """What a value is, in a line."""
    if value is None:
        return "nothing (None): does the function end with return?"
    if isinstance(value, Tensor | np.ndarray | pd.DataFrame | pd.Series):
        array = metrics.to_numpy(value)
        if array.size > 6 or array.ndim > 1:
            return f"{type(value).__name__} of shape {tuple(array.shape)}"
        return f"{np.array2string(array, precision=4)}"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)[:200]


def _array(value: Any) -> np.ndarray | None:
    """A value as numbers, or None where it is none."""
    if value is None:
        return None
    try:
        return np.asarray(metrics.to_numpy(value), dtype=np.float64)
    except (TypeError, ValueError):
        return None


def _same(one: Any, other: Any, within: float | None = None) -> bool:
    """Equal to rounding, or, for what is sampled, to `within`."""
    one, other = _array(one), _array(other)
    if one is None or other is None or one.shape != other.shape:
        return False
    if within is not None:
        return np.allclose(one, other, rtol=0, atol=within)
    size = np.nanmax(np.abs(other), initial=0)
    size = size if np.isfinite(size) else 1.0
    return np.allclose(one, other, rtol=1e-3, atol=1e-4 * size + 1e-9, equal_nan=True)


def _fail(name: str, seed: int, expected: str, came: str, likely: str | None) -> None:
    """Raise CheckFailed with what was expected, what came, and the likely mistake."""
    lines = [f"{name} is not right yet.", f"  expected: {expected}", f"  came:     {came}"]
    if likely:
        lines.append(f"  likely:   {likely}")
    further = list(inspect.signature(globals()[name]).parameters)[1:-1]  # a model, a tokenizer
    again = ", ".join([name, *further, f"seed={seed}"])
    lines.append(f"  The same numbers again: checks.{name}({again})")
    raise CheckFailed("\n".join(lines)) from None


def _call(
    student: Callable, name: str, seed: int, arguments: Sequence, to_change: Sequence[int] = ()
) -> Any:
    """What the student's function gives on copies, which it must leave as they are.

    An error of it tells what it was called with. `to_change` are the places of arguments that the
    function is there to change: they are given themselves.
    """
    if not callable(student):
        raise TypeError(
            f"checks.{name} takes the function itself: checks.{name}({name}), without brackets "
            f"behind it. This is {_shown(student)}."
        )
    given = [v if at in to_change else _copy(v) for at, v in enumerate(arguments)]
    try:
        came = student(*given)
    except (NotImplementedError, CheckFailed):
        raise  # the stub, or a check's own: it says what to do
    except Exception as error:
        shown = ", ".join(_shown(each) for each in arguments)
        error.add_note(f"(checks.{name} called it with {shown}; seed={seed})")
        raise
    for at, before in enumerate(arguments):
        if at not in to_change and not _as_it_was(given[at], before):
            which = _argument(student, at)
            copied = "clone" if isinstance(before, Tensor) else "copy"
            told = f"you changed {which} itself; work on a copy, {which}.{copied}()"
            if isinstance(before, tuple):
                told = f"you changed what is in {which} itself; work on a copy of it"
            _fail(name, seed, f"{which} as it was, after the call", "it has changed", told)
    return came


def _judge(
    name: str,
    seed: int,
    came: Any,
    expected: Any,
    mistakes: dict[str, Any],
    axes: str,
    within: float | None = None,
) -> None:
    """Pass over what is right; raise CheckFailed for all else."""
    if _same(came, expected, within):
        return
    fits = (told for told, value in mistakes.items() if _same(came, value, within))
    likely = next(fits, None)
    got, true = _array(came), _array(expected)
    if isinstance(came, dict):
        likely = "that is a dict: give the values alone, in the order of the text"
    if came is None or got is None:
        _fail(name, seed, f"{axes}, {_shown(expected)}", _shown(came), likely)
    if got.shape != true.shape:
        if likely is None and got.ndim == 2 and got.T.shape == true.shape:
            likely = "the axes are swapped"
        told = f"{axes}, of shape {tuple(true.shape)}"
        _fail(name, seed, told, f"shape {tuple(got.shape)}", likely)
    if not true.ndim:
        _fail(name, seed, f"{axes}: {float(true):.4f}", f"{float(got):.4f}", likely)
    apart = np.where(np.isnan(got) & np.isnan(true), 0, np.abs(got - true))
    place = np.unravel_index(np.argmax(np.nan_to_num(apart, nan=np.inf)), true.shape)
    where = ", ".join(str(i) for i in place)
    off = np.mean(~np.isclose(got, true, rtol=1e-3, atol=1e-4, equal_nan=True))
    told = f"{axes}, with {true[place]:.4f} at [{where}]"
    _fail(name, seed, told, f"{got[place]:.4f} there; {off:.0%} of all entries differ", likely)


def _check(
    student: Callable,
    name: str,
    seed: int | None,
    draw: Callable[[np.random.Generator], tuple],
    truth: Callable[..., Any],
    mistakes: Mistakes,
    axes: str,
    draws: int = DRAWS,
    close: str | None = None,
) -> None:
    """Hold a function to the truth on several draws; all known mistakes must differ from it there.

    Args:
        student: the function.
        name: of the exercise.
        seed: None: a new one.
        draw: random arguments.
        truth: what should come, another formulation.
        mistakes: what is said -> what comes if that is what the student did.
        axes: what comes, in words.
        draws: how many inputs.
        close: what an answer within 0.1 is likely to be, where no mistake gives it.
    """
    seed = _seed(seed)
    rng = np.random.default_rng(seed)
    asked = [_drawn(name, rng, draw, truth, mistakes) for _ in range(draws)]
    came = [_call(student, name, seed, arguments) for arguments, _, _ in asked]
    wrong = [i for i, (_, expected, _) in enumerate(asked) if not _same(came[i], expected)]
    # a mistake is named where it explains every draw that went wrong
    fits = [told for told in mistakes if all(_same(came[i], asked[i][2][told]) for i in wrong)]
    for i in wrong:
        _, expected, known = asked[i]
        likely = {told: known[told] for told in fits}
        if close and all(_same(came[j], asked[j][1], within=0.1) for j in wrong):
            likely[close] = came[i]
        _judge(name, seed, came[i], expected, likely, axes)


def _drawn(
    name: str,
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator], tuple],
    truth: Callable[..., Any],
    mistakes: Mistakes,
) -> tuple[tuple, Any, dict[str, Any]]:
    """Arguments on which truth and mistakes all differ, what should come, and what each gives."""
    for _ in range(TRIES):
        arguments = draw(rng)
        expected = truth(*arguments)
        known = {told: mistake(*arguments) for told, mistake in mistakes.items()}
        values = [expected, *known.values()]
        if not any(_same(a, b) for a, b in itertools.combinations(values, 2)):
            return arguments, expected, known
    raise RuntimeError(f"{name}: no inputs on which every known mistake shows.")


def _passed(name: str) -> None:
    print(f"passed: {name}")


# ---- 01: hooks and pairs


def unwrap(student: Callable, seed: int | None = None) -> None:
    """`unwrap(output)`: the residual stream in what a block gives, a tensor or a tuple."""
    name, seed = "unwrap", _seed(seed)
    rng = np.random.default_rng(seed)
    x = _normal(rng, *_sizes(rng, (2, 4), (5, 7), (8, 9)))
    more = _normal(rng, 3, 4)
    axes = "the stream, [batch, tokens, d_model]"
    for output in ((x, more), (x, None), (x,), x):
        came = _call(student, name, seed, [output])
        kind = "tensor" if isinstance(output, Tensor) else f"tuple of {len(output)}"
        if isinstance(came, tuple):
            likely = "some blocks give a tuple: the stream is its first entry"
            _fail(name, seed, axes, f"a tuple, from a block that gives a {kind}", likely)
        mistakes = {"that is the last entry of the tuple; the stream is the first": more}
        mistakes["of a tensor, output[0] is the first sentence alone: index tuples only"] = x[0]
        _judge(name, seed, came, x, mistakes, f"{axes}, from a block that gives a {kind}")
    _passed(name)


def from_hidden_states(student: Callable, model: HookedModel, seed: int | None = None) -> None:
    """`from_hidden_states(hf_model, input_ids, attention_mask, layer)`: the output of a block.

    Compared with `residual_stream` at every layer but the last, at the real tokens.

    Args:
        student: the function.
        model: any checkpoint.
        seed: of the tokens.
    """
    name, seed = "from_hidden_states", _seed(seed)
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(2, model.config.vocab_size, (4, 7))).to(model.device)
    mask = (torch.arange(7) < torch.tensor([7, 5, 6, 7])[:, None]).long().to(model.device)
    real = mask.bool()
    with torch.no_grad():
        given = model.hf_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    for layer in range(model.n_layers - 1):
        came = _call(student, name, seed, [model.hf_model, ids, mask, layer])
        if isinstance(came, Tensor) and came.shape[:2] == ids.shape:
            came = came[real]
        expected = residual_stream(model, ids, mask, layer)[real]
        before = "hidden_states begins with the embeddings: the output of block L stands at L + 1"
        last = "that is after the last block and the final norm; take the one after block `layer`"
        mistakes = {
            before: given.hidden_states[layer][real],
            last: given.hidden_states[-1][real],
            "these are the logits: look at .hidden_states": given.logits[real],
        }
        _judge(
            name, seed, came, expected, mistakes, f"the output of block {layer}, all real tokens"
        )
    _passed(name)


def pair_accuracy(student: Callable, seed: int | None = None) -> None:
    """`pair_accuracy(logits, position, answers)`: the share of pairs that are right."""

    def draw(rng):
        pairs, tokens, words = _sizes(rng, (20, 40), (5, 8), (9, 12))
        logits = _normal(rng, pairs, tokens, words)
        position = torch.from_numpy(rng.integers(1, tokens - 1, pairs))
        both = np.stack([rng.permutation(words)[:2] for _ in range(pairs)])
        answers = torch.from_numpy(both)
        for i in range(0, pairs, 7):  # ties
            logits[i, position[i], answers[i, 0]] = logits[i, position[i], answers[i, 1]]
        return logits, position, answers

    def each(logits, position, answers, tie=0.5):
        won = []
        for i, (at, (right, wrong)) in enumerate(zip(position, answers, strict=True)):
            lead = float(logits[i, at, right] - logits[i, at, wrong])
            won.append(tie if lead == 0 else float(lead > 0))
        return np.array(won)

    def share(*arguments, tie=0.5):
        won = each(*arguments, tie=tie)
        return sum(won) / len(won)

    def over(right, wrong):  # the share of right answers in all that is there
        return float(((right > wrong) + 0.5 * (right == wrong)).double().mean())

    mistakes: Mistakes = {
        "the last column may be padding: take each pair's own answer position": lambda x, p, a: (
            share(x, torch.full_like(p, x.shape[1] - 1), a)
        ),
        "that is the position after the answer position": lambda x, p, a: share(x, p + 1, a),
        "that is the position before the answer position": lambda x, p, a: share(x, p - 1, a),
        "right and wrong are swapped: answers[:, 0] is the right word": lambda x, p, a: share(
            x, p, a.flip(1)
        ),
        "a tie counts as half": lambda x, p, a: share(x, p, a, tie=0.0),
        "a tie counts as half, and not as right": lambda x, p, a: share(x, p, a, tie=1.0),
        "the right word need only beat the wrong one, not all words": lambda x, p, a: float(
            np.mean([x[i, p[i]].argmax() == a[i, 0] for i in range(len(p))])
        ),
        "that is in percent: give a share from 0 to 1": lambda x, p, a: 100 * share(x, p, a),
        "that is a result for each pair: take the mean": each,
        "that is a result for each pair: take the mean, in which a tie counts as half": (
            lambda x, p, a: each(x, p, a, tie=0.0)
        ),
        "logits[:, position] takes all positions from every row: torch.arange(len(logits)) in "
        "place of the colon takes from each row its own": lambda x, p, a: over(
            x[:, p, a[:, 0]], x[:, p, a[:, 1]]
        ),
        "logits[:, position] takes all positions from every row, and then all answers: "
        "torch.arange(len(logits)) in place of the colon takes from each row its own": (
            lambda x, p, a: over(x[:, p][..., a[:, 0]], x[:, p][..., a[:, 1]])
        ),
    }
    _check(student, "pair_accuracy", seed, draw, share, mistakes, "a share")
    _passed("pair_accuracy")


def next_token_loss(student: Callable, seed: int | None = None) -> None:
    """`next_token_loss(logits, ids)`: mean surprise at the next token, first position left out."""

    def draw(rng):
        rows, tokens, words = _sizes(rng, (3, 4), (6, 8), (9, 11))
        ids = torch.from_numpy(rng.integers(0, words, (rows, tokens)))
        return 2 * _normal(rng, rows, tokens, words), ids

    def surprise(row, token):
        return math.log(sum(math.exp(value) for value in row)) - row[token]

    def probability(row, token):
        return math.exp(-surprise(row, token))

    def twice(row, token):
        return surprise([probability(row, word) for word in range(len(row))], token)

    def surprises(logits, ids, first=1, ahead=1, of=surprise):
        """-log P of the token `ahead` of every position from `first` on."""
        found = []
        for row, line in zip(logits.double().tolist(), ids.tolist(), strict=True):
            for t in range(first, len(line)):
                if 0 <= t + ahead < len(line):
                    found.append(of(row[t], line[t + ahead]))
        return found

    def mean(*arguments, **choices):
        found = surprises(*arguments, **choices)
        return sum(found) / len(found)

    mistakes: Mistakes = {
        "that is the surprise at the token itself: position t predicts token t + 1": (
            lambda x, ids: mean(x, ids, ahead=0)
        ),
        "the shift goes the wrong way: position t predicts token t + 1": (
            lambda x, ids: mean(x, ids, ahead=-1)
        ),
        "what the first position predicts is counted: leave it out": (
            lambda x, ids: mean(x, ids, first=0)
        ),
        "two positions are left out: token 2 is predicted at position 1, which counts": (
            lambda x, ids: mean(x, ids, first=2)
        ),
        "that is a sum: take the mean over all predictions": lambda x, ids: sum(surprises(x, ids)),
        "the sign is turned: surprise is minus the log of a probability": (
            lambda x, ids: -mean(x, ids)
        ),
        "that is in bits: take natural logarithms": lambda x, ids: mean(x, ids) / math.log(2),
        "that is the log of a mean: take the log of each probability first, then the mean": (
            lambda x, ids: -math.log(mean(x, ids, of=probability))
        ),
        "these are raw logits: log_softmax makes log probabilities of them": lambda x, ids: (
            -mean(x, ids, of=lambda row, token: row[token])
        ),
        "these are probabilities: take their logs": lambda x, ids: -mean(x, ids, of=probability),
        "that is a softmax of a softmax: log_softmax takes the logits themselves": lambda x, ids: (
            mean(x, ids, of=twice)
        ),
        "that is the token after the next one: position t predicts token t + 1": (
            lambda x, ids: mean(x, ids, ahead=2)
        ),
    }
    _check(student, "next_token_loss", seed, draw, mean, mistakes, "nats a token")
    _passed("next_token_loss")


# ---- 00: rules and cells


def neighbour_rule(student: Callable, seed: int | None = None) -> None:
    """`neighbour_rule(subject, attractor)`: the share right if the verb agrees with the latter."""
    name, seed = "neighbour_rule", _seed(seed)
    levels = np.random.default_rng(seed).permutation(
        [[s, t] for s in ("sg", "pl") for t in ("sg", "pl")]
    )
    came = [_call(student, name, seed, [str(s), str(t)]) for s, t in levels]
    expected = [1.0 if s == t else 0.0 for s, t in levels]
    mistakes = {
        "that model would know the subject: this one knows the neighbour alone": np.ones(4),
        "turned round: the rule is right where both have the same number": 1 - np.array(expected),
        "that model guesses: this one always follows its rule": np.full(4, 0.5),
        "where the two differ this model does not guess: it follows the neighbour": [
            1.0 if s == t else 0.5 for s, t in levels
        ],
        "that looks at the neighbour alone: the right verb has the *subject's* number": [
            float(t == "pl") for _, t in levels
        ],
    }
    for i, cell in enumerate(levels):
        known = {told: gives[i] for told, gives in mistakes.items() if _all_same(came, gives)}
        _judge(name, seed, came[i], expected[i], known, f"a share, in the cell {'-'.join(cell)}")
    _passed(name)


def _all_same(came: Sequence, expected: Sequence) -> bool:
    return all(_same(one, other) for one, other in zip(came, expected, strict=True))


def rule_weights(student: Callable, seed: int | None = None) -> None:
    """`rule_weights(v)`: subject, attractor and both, of [2, 2] means in cells."""

    def draw(rng):
        return (rng.normal(size=(2, 2)) * 3 + rng.normal(),)

    def truth(v):
        # the formula in all four cells, as a system of linear equations
        cells = [(s, t) for s in (-1, 1) for t in (-1, 1)]
        rows = [[1, s, t, s * t] for s, t in cells]
        return np.linalg.solve(np.array(rows, dtype=float), v.flatten())[1:]

    mistakes: Mistakes = {
        "from -1 to +1 are two steps: halve the differences": lambda v: 2 * truth(v),
        "these are whole differences, not yet divided: each is a mean over the four cells, so "
        "halve the differences of two means, and divide that of all four cells by 4": lambda v: (
            truth(v) * [2, 2, 4]
        ),
        "both is a mean over the four cells, too: divide by 4": lambda v: truth(v) * [1, 1, 4],
        "halved once too often: each is the mean over the four cells": lambda v: truth(v) / 2,
        "that is a sum over four cells: take the mean": lambda v: 4 * truth(v),
        "subject and attractor are swapped: the subject goes down, the neighbour across": (
            lambda v: truth(v.T)
        ),
        "the signs are turned: sg is -1, pl is +1": lambda v: truth(v[::-1, ::-1]),
        "the mean is no rule: give subject, attractor and both": lambda v: np.array(
            [v.mean(), *truth(v)]
        ),
    }
    _check(student, "rule_weights", seed, draw, truth, mistakes, "three numbers")
    _passed("rule_weights")


# ---- 02: cells, similarity, onset


def two_by_two(student: Callable, seed: int | None = None) -> None:
    """`two_by_two(lead, subject, attractor)`: a table of accuracies, subject by attractor."""
    name, levels = "two_by_two", ["sg", "pl"]

    def draw(rng):
        n = int(rng.integers(30, 60))
        subject, attractor = (rng.choice(levels, n, p=p) for p in ([0.6, 0.4], [0.3, 0.7]))
        lead = rng.normal(size=n) + (subject == "sg") - 0.5 * (attractor == "pl")
        subject[:4], attractor[:4] = ["sg", "sg", "pl", "pl"], ["sg", "pl", "sg", "pl"]
        lead[:4] = 0  # in each cell one that is not right
        return lead, subject, attractor

    def each(of):
        def table(lead, subject, attractor):
            cells = np.zeros((2, 2))
            for i, s in enumerate(levels):
                for j, t in enumerate(levels):
                    here = [
                        v
                        for v, a, b in zip(lead, subject, attractor, strict=True)
                        if a == s and b == t
                    ]
                    cells[i, j] = of(here, len(lead))
            return cells

        return table

    right = each(lambda here, n: sum(v > 0 for v in here) / len(here))

    asked = "a DataFrame with rows sg, pl (subject) and columns sg, pl (attractor)"

    @functools.wraps(student)
    def as_numbers(*arguments):
        table = student(*arguments)
        if isinstance(table, pd.DataFrame):
            if {*table.index} == {*table.columns} == {*levels}:
                return table.loc[levels, levels].to_numpy(float)
            told = f"rows {list(table.index)} and columns {list(table.columns)}"
            _fail(name, seed, asked, told, None)
        if isinstance(table, pd.Series):
            told = "a Series has one axis: .unstack() makes a table of a Series of cells"
            _fail(name, seed, asked, _shown(table), told)
        if _array(table) is not None:
            told = "an array has no names: pd.DataFrame(array, index=..., columns=...) gives them"
            _fail(name, seed, asked, _shown(table), told)
        return table

    mistakes: Mistakes = {
        "rows and columns are swapped: the subject goes down, the attractor across": lambda *a: (
            right(*a).T
        ),
        "that is the mean lead; count in which share of the pairs it is above 0": each(
            lambda here, n: sum(here) / len(here)
        ),
        "that counts the pairs that are wrong: a lead above 0 is right": each(
            lambda here, n: sum(v < 0 for v in here) / len(here)
        ),
        "that is a number of pairs, not a share of those in the cell": each(
            lambda here, n: sum(v > 0 for v in here)
        ),
        "divide by the number of pairs in the cell, not by that of all pairs": each(
            lambda here, n: sum(v > 0 for v in here) / n
        ),
        "a lead of exactly 0 is not right: it must be above 0": each(
            lambda here, n: sum(v >= 0 for v in here) / len(here)
        ),
        "a lead of exactly 0 is not right, and not half right: it must be above 0": each(
            lambda here, n: sum((v > 0) + 0.5 * (v == 0) for v in here) / len(here)
        ),
    }
    seed = _seed(seed)
    wrapped = as_numbers if callable(student) else student
    told = "the accuracy in each cell, subject by attractor"
    _check(wrapped, name, seed, draw, right, mistakes, told)
    _passed(name)


def similarity_matrix(student: Callable, seed: int | None = None) -> None:
    """`similarity_matrix(x, mask)`: mean cosine between checkpoints, [checkpoints, checkpoints]."""

    def draw(rng):
        n, pairs, tokens, d = _sizes(rng, (3, 4), (5, 6), (7, 8), (9, 10))
        x = _normal(rng, n, pairs, tokens, d) + _normal(rng, pairs, tokens, d)
        x[:, :, 0] = 3 * _normal(rng, d)  # the first token: the same in every row
        length = torch.from_numpy(rng.integers(3, tokens, pairs))
        length[rng.integers(pairs)] = tokens  # one reaches the last column
        mask = (torch.arange(tokens) < length[:, None]).long()
        return x * _tensor(rng.uniform(0.3, 3, (n, 1, 1, 1))), mask

    def by_token(x, mask, first=1, padding=False):
        out = np.zeros((len(x), len(x)))
        for a in range(len(x)):
            for b in range(len(x)):
                cosines = [
                    float(torch.cosine_similarity(x[a, i, t], x[b, i, t], dim=0))
                    for i in range(x.shape[1])
                    for t in range(first, x.shape[2])
                    if padding or mask[i, t]
                ]
                out[a, b] = sum(cosines) / len(cosines)
        return out

    def chosen(x, mask):
        keep = mask.bool().clone()
        keep[:, 0] = False
        return x[:, keep]

    def of_means(x, mask):
        mean = chosen(x, mask).mean(1)
        return torch.cosine_similarity(mean[:, None], mean[None], dim=-1)

    def of_all(x, mask):
        rows = chosen(x, mask).flatten(1)
        return torch.cosine_similarity(rows[:, None], rows[None], dim=-1)

    def products(x, mask):
        rows = chosen(x, mask)
        return torch.einsum("atd,btd->ab", rows, rows) / rows.shape[1]

    mistakes: Mistakes = {
        "the first token is kept: leave it out": lambda x, m: by_token(x, m, first=0),
        "padding is kept: take the tokens where mask is 1": lambda x, m: by_token(
            x, m, padding=True
        ),
        "first token and padding are kept": lambda x, m: by_token(x, m, 0, True),
        "the last column is left out: some sentences reach it": lambda x, m: by_token(
            x[:, :, :-1], m
        ),
        "the mean was taken before the cosine: one cosine a token, then their mean": of_means,
        "that is one cosine of all tokens end to end: one cosine a token, then their mean": of_all,
        "these are inner products: divide by both lengths": products,
    }
    told = "the mean cosine, [checkpoints, checkpoints]"
    _check(student, "similarity_matrix", seed, draw, by_token, mistakes, told)
    _passed("similarity_matrix")


def onset(student: Callable, seed: int | None = None) -> None:
    """`onset(accuracy)`: the first checkpoint from which on the worst cell is at least 0.75."""
    name, seed = "onset", _seed(seed)

    def draw(rng):
        cells, n = _sizes(rng, (3, 4), (24, 28))
        while True:
            rise = np.linspace(0.4, 1.1, n) + rng.normal(0, 0.25, (cells, n))
            accuracy = np.clip(rise, 0, 1).round(2)
            at = first(accuracy)
            if at < n:  # never is asked for below
                accuracy[accuracy[:, at].argmin(), at] = 0.75  # just good enough
                return (accuracy,)

    def first(accuracy, worst=np.min, ever=True, bar=0.75):
        line = worst(accuracy, axis=0)
        for c in range(len(line)):
            if line[c] >= bar and (not ever or all(v >= bar for v in line[c:])):
                return c
        return len(line)

    def anew(of):
        return "the first time is not enough, it must stay so; and " + of

    mistakes: Mistakes = {
        "it is good there for the first time, but not ever after": lambda a: first(a, ever=False),
        "that is the mean over cells: take the worst cell": lambda a: first(a, np.mean),
        "that is the best cell: take the worst one": lambda a: first(a, np.max),
        anew("that is the mean over cells: take the worst"): lambda a: first(a, np.mean, False),
        anew("that is the best cell: take the worst"): lambda a: first(a, np.max, False),
        "that is the onset of the cell that comes first: wait for all of them": lambda a: min(
            first(cell[None]) for cell in a
        ),
        "that is the last checkpoint that is not good: the onset is the one after it": (
            lambda a: first(a) - 1
        ),
        "exactly 0.75 is good enough: at least, >=": lambda a: first(a, bar=0.7501),
    }
    axes = "the index of a checkpoint"
    _check(student, name, seed, draw, first, mistakes, axes)

    def low(rng):
        return (0.7 * draw(rng)[0],)

    never: Mistakes = {
        "never must give the number of checkpoints, not 0": lambda a: 0,
        "never must give the number of checkpoints, one past the last": lambda a: a.shape[1] - 1,
        "never must give the number of checkpoints, not -1": lambda a: -1,
        "never must give the number of checkpoints, not that of cells": len,
    }
    _check(student, name, seed, low, first, never, f"{axes}, or their number where it is never")

    def high(rng):
        return (0.75 + draw(rng)[0] / 4,)

    always: Mistakes = {"good at all checkpoints: the first is 0": lambda a: a.shape[1]}
    _check(student, name, seed, high, first, always, f"{axes}, where all are good")
    _passed(name)


def own_task(student: Callable, tokenizer: Any, seed: int | None = None) -> None:
    """`own_task()`: rows with prefix, right and wrong, for a task of one's own.

    Nothing is drawn here. Twelve pairs or more, of known words, each right as often as wrong.

    Args:
        student: the function.
        tokenizer: of the suite.
        seed: is not used.
    """
    name, seed = "own_task", seed or 0
    unknown = tokenizer.unk_token_id
    after = defaultdict(lambda: defaultdict(set))  # prefix -> right word -> what it must beat
    rows = _call(student, name, seed, [])
    keys = ("prefix", "right", "wrong")
    axes = "a list of at least 12 dicts with the texts 'prefix', 'right' and 'wrong'"
    if not isinstance(rows, list | tuple) or len(rows) < 12:
        came = f"{len(rows)} of them" if isinstance(rows, list | tuple) else _shown(rows)
        _fail(name, seed, axes, came, "more nouns, more verbs, both numbers: pairs multiply")
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or any(not isinstance(row.get(key), str) for key in keys):
            _fail(name, seed, axes, f"row {i} is {_shown(row)}", None)
        for key in ("right", "wrong"):
            if not row[key].startswith(" "):
                told = "words have their blank before them: ' laughs', and no blank ends a prefix"
                _fail(name, seed, "a continuation that begins with a blank", repr(row[key]), told)
        _refuse_prefix(row["prefix"], seed, tokenizer)
        for word in (row["prefix"] + row["right"] + row["wrong"]).split():
            forms = [
                tokenizer.encode(form, add_special_tokens=False) for form in (word, f" {word}")
            ]
            if unknown is not None and all(unknown in form for form in forms):
                told = "this model was trained on few words: tokenizer.get_vocab() lists them"
                _fail(name, seed, "words that the model knows", repr(word), told)
        for key in ("right", "wrong"):
            text = row["prefix"] + row[key]
            if unknown is not None and unknown in tokenizer.encode(text, add_special_tokens=False):
                told = (
                    "one blank between two words, and many words are known only with a blank "
                    "before them, not at the beginning of a sentence"
                )
                _fail(name, seed, "sentences without an unknown token", repr(text), told)
        after[row["prefix"]][row["right"]].add(row["wrong"])
    for prefix, better in after.items():
        try:
            TopologicalSorter(better).prepare()
        except CycleError as error:
            came = f"after {prefix!r} each of {sorted(set(error.args[1]))} is right, and wrong"
            told = "the same prefix has both answers right: no model can beat one half there"
            _fail(name, seed, "one right answer to a prefix", came, told)
    try:
        left_out = make_pairs(rows, tokenizer, name).left_out
    except ValueError as error:
        _fail(name, seed, "rows that can be used", str(error), None)
    if left_out:
        came = "; ".join(f"{reason} ({count})" for reason, count in left_out.items())
        _fail(name, seed, "rows that can all be used, once each", came, None)
    right, wrong = (Counter(row[key].strip() for row in rows) for key in ("right", "wrong"))
    for word in right | wrong:
        if right[word] != wrong[word]:
            told = (
                "a model that always says one of the two words must get one half: give both sides"
            )
            came = f"{word!r} is right {right[word]} times and wrong {wrong[word]} times"
            _fail(name, seed, "each word right as often as it is wrong", came, told)
    _passed(name)


def _refuse_prefix(prefix: str, seed: int, tokenizer: Any) -> None:
    """Fail where a prefix ends with a blank, or has a special token written in it."""
    if prefix != prefix.rstrip():
        told = "the blank belongs to the word that follows: ' laughs', and no blank ends a prefix"
        _fail("own_task", seed, "a prefix that ends with a word", repr(prefix), told)
    for token in tokenizer.all_special_tokens:
        if token in prefix:
            told = f"{token} is no word: leave it out; what a sentence begins with is put before it"
            _fail("own_task", seed, "a prefix of words alone", repr(prefix), told)


# ---- 03: the crosscoder


def _weights(rng: np.random.Generator) -> dict[str, Tensor]:
    """Weights of a small crosscoder, with scales far from 1, and activations."""
    tokens, n, d, latents = _sizes(rng, (6, 7), (2, 3), (4, 5), (8, 9))
    return {
        "x": _normal(rng, tokens, n, d),
        "scales": _tensor(rng.uniform(0.3, 3, n)),
        "W_enc": _normal(rng, n, d, latents),
        "b_enc": _normal(rng, latents),
        "W_dec": _normal(rng, latents, n, d),
        "b_dec": _normal(rng, n, d),
        "f": _normal(rng, tokens, latents).relu(),
    }


def _crosscoder(scales: Tensor, W_dec: Tensor, **weights: Tensor) -> Crosscoder:
    """The package's crosscoder with these weights; those that are not given stay as they begin."""
    latents, n, d = W_dec.shape
    made = Crosscoder(n, d, latents, sparsity="l1", scales=scales)
    with torch.no_grad():
        for name, weight in {"W_dec": W_dec, **weights}.items():
            getattr(made, name).copy_(weight)
    return made.requires_grad_(False).eval()


def scales_of(student: Callable, seed: int | None = None) -> None:
    """`scales_of(x)`: the factors that bring each checkpoint's mean norm to the root of d_model."""

    def draw(rng):
        tokens, n, d = _sizes(rng, (8, 12), (2, 3), (4, 6))
        return (_normal(rng, tokens, n, d) * _tensor(rng.uniform(0.5, 3, (n, 1))) + 0.5,)

    def truth(x):
        out = []
        for c in range(x.shape[1]):
            norms = [math.sqrt(sum(float(v) ** 2 for v in row)) for row in x[:, c]]
            out.append(math.sqrt(x.shape[2]) / (sum(norms) / len(norms)))
        return np.array(out)

    mistakes: Mistakes = {
        "the mean was taken before the norm: first each token's length, then their mean": (
            lambda x: x.shape[2] ** 0.5 / x.mean(0).norm(dim=-1)
        ),
        "that is upside down: the mean norm times its scale is the root of d_model": (
            lambda x: x.norm(dim=-1).mean(0) / x.shape[2] ** 0.5
        ),
        "the mean norm should become the square root of d_model, not 1": (
            lambda x: 1 / x.norm(dim=-1).mean(0)
        ),
        "the mean norm should become the square root of d_model, not d_model": (
            lambda x: x.shape[2] / x.norm(dim=-1).mean(0)
        ),
        "that is the root of the mean square, not the mean norm": (
            lambda x: (x.shape[2] / x.pow(2).sum(-1).mean(0)).sqrt()
        ),
        "that is one factor for all: each checkpoint has its own": (
            lambda x: x.shape[2] ** 0.5 / x.norm(dim=-1).mean()
        ),
        "that is one factor for all, over and over: each checkpoint has its own mean norm": (
            lambda x: np.full(x.shape[1], x.shape[2] ** 0.5 / float(x.norm(dim=-1).mean()))
        ),
        "that is the norm of all checkpoints together: a token has one norm at each of them": (
            lambda x: x.shape[2] ** 0.5 / x.norm(dim=(1, 2)).mean()
        ),
        "len(x) is the number of tokens: d_model is x.shape[-1]": lambda x: (
            len(x) ** 0.5 / x.norm(dim=-1).mean(0)
        ),
        "x.shape[1] is the number of checkpoints: d_model is x.shape[-1]": lambda x: (
            x.shape[1] ** 0.5 / x.norm(dim=-1).mean(0)
        ),
    }
    _check(student, "scales_of", seed, draw, truth, mistakes, "the scales, [checkpoints]")
    _passed("scales_of")


def encode(student: Callable, seed: int | None = None) -> None:
    """`encode(x, scales, W_enc, b_enc)`: the code of raw activations, [tokens, latents]."""

    def draw(rng):
        w = _weights(rng)
        return w["x"], w["scales"], w["W_enc"], w["b_enc"]

    def truth(x, scales, W_enc, b_enc):
        made = _crosscoder(scales, W_enc.permute(2, 0, 1), W_enc=W_enc, b_enc=b_enc)
        return made.encode(x)

    def before(x, W):  # what the checkpoints add up to
        return torch.einsum("tcd,cdh->th", x, W)

    def each(x, W):  # what each of them adds
        return torch.einsum("tcd,cdh->tch", x, W)

    mistakes: Mistakes = {
        "x was taken raw: multiply each checkpoint by its s_c first": lambda x, s, W, b: (
            before(x, W) + b
        ).relu(),
        "x was divided by the scales: multiply": lambda x, s, W, b: (
            before(x / s[:, None], W) + b
        ).relu(),
        "the ReLU is missing": lambda x, s, W, b: before(x * s[:, None], W) + b,
        "b_enc is missing": lambda x, s, W, b: before(x * s[:, None], W).relu(),
        "b_enc goes inside the ReLU": lambda x, s, W, b: before(x * s[:, None], W).relu() + b,
        "the checkpoints are averaged: add them up": lambda x, s, W, b: (
            before(x * s[:, None], W) / len(s) + b
        ).relu(),
        "each checkpoint has a code of its own here: add up over them before the ReLU": (
            lambda x, s, W, b: (each(x * s[:, None], W) + b).relu()
        ),
        "the ReLU comes after the sum over checkpoints, and b_enc counts once": (
            lambda x, s, W, b: (each(x * s[:, None], W) + b).relu().sum(1)
        ),
        "the ReLU comes after the sum over checkpoints and b_enc": lambda x, s, W, b: (
            each(x * s[:, None], W).relu().sum(1) + b
        ),
        "one ReLU is enough, after the sum over checkpoints": lambda x, s, W, b: (
            each(x * s[:, None], W).relu().sum(1) + b
        ).relu(),
        "b_enc was added at each checkpoint: it counts once, after the sum": lambda x, s, W, b: (
            before(x * s[:, None], W) + len(s) * b
        ).relu(),
    }
    _check(student, "encode", seed, draw, truth, mistakes, "the code f, [tokens, latents]")
    _passed("encode")


def decode(student: Callable, seed: int | None = None) -> None:
    """`decode(f, scales, W_dec, b_dec)`: raw activations, [tokens, checkpoints, d_model]."""

    def draw(rng):
        w = _weights(rng)
        return w["f"], w["scales"], w["W_dec"], w["b_dec"]

    def truth(f, scales, W_dec, b_dec):
        return _crosscoder(scales, W_dec, b_dec=b_dec).decode(f)

    def written(f, W):
        return torch.einsum("th,hcd->tcd", f, W)

    mistakes: Mistakes = {
        "that is in scaled space: divide each checkpoint by its s_c": lambda f, s, W, b: (
            written(f, W) + b
        ),
        "it was multiplied by the scales: the way back divides": lambda f, s, W, b: (
            (written(f, W) + b) * s[:, None]
        ),
        "b_dec is missing": lambda f, s, W, b: written(f, W) / s[:, None],
        "b_dec is in scaled space, too: add it before you divide": lambda f, s, W, b: (
            written(f, W) / s[:, None] + b
        ),
    }
    told = "raw activations, [tokens, checkpoints, d_model]"
    _check(student, "decode", seed, draw, truth, mistakes, told)
    _passed("decode")


def _kept(f: Tensor, norms: Tensor, k: int) -> Tensor:
    """BatchTopK by sorting a list."""
    count = k * len(f)
    sizes = [(float(f[t, i] * norms[i]), t, i) for t in range(len(f)) for i in range(len(norms))]
    out = torch.zeros_like(f)
    for _, t, i in sorted(sizes, reverse=True)[:count]:
        out[t, i] = f[t, i]
    return out


def batch_topk(student: Callable, seed: int | None = None) -> None:
    """`batch_topk(f, norms, k)`: f with all but the k largest sizes a token set to 0."""

    def draw(rng):
        w = _weights(rng)
        f = w["f"] * _tensor(rng.uniform(0.2, 3, (len(w["f"]), 1)))  # some tokens are louder
        return f, w["W_dec"].norm(dim=-1).sum(1) * _tensor(rng.uniform(0.2, 3, f.shape[1])), 2

    def of_each_token(f, u, k):
        sizes = f * u
        return f * (sizes >= sizes.topk(k, dim=1).values[:, -1:])

    def of_each_latent(f, u, k):
        sizes = f * u
        return f * (sizes >= sizes.topk(k, dim=0).values[-1:])

    mistakes: Mistakes = {
        "these are the k largest of each token: take k * tokens over the batch": of_each_token,
        "these are the k largest of each latent: take k * tokens over the batch": of_each_latent,
        "these are the largest f: compare sizes, f_i u_i": lambda f, u, k: _kept(
            f, torch.ones_like(u), k
        ),
        "that keeps k in the whole batch: k * tokens": lambda f, u, k: (
            f * (f * u >= (f * u).flatten().topk(k).values[-1])
        ),
        "these are the sizes: choose by them, but give f itself": lambda f, u, k: (
            _kept(f, u, k) * u
        ),
        "that is a mask: multiply f by it": lambda f, u, k: (_kept(f, u, k) > 0).float(),
        "the smallest of the largest was lost: it stays, so compare with >=": lambda f, u, k: (
            f * (f * u > (f * u).flatten().topk(k * len(f)).values[-1])
        ),
        "a size is f_i times u_i: f was divided by the norms": lambda f, u, k: _kept(f, 1 / u, k),
    }
    told = "f, [tokens, latents], with k * tokens entries that are not 0"
    _check(student, "batch_topk", seed, draw, _kept, mistakes, told)
    _passed("batch_topk")


def above_threshold(student: Callable, seed: int | None = None) -> None:
    """`above_threshold(f, norms, threshold)`: f with sizes up to the threshold set to 0."""

    def draw(rng):
        w = _weights(rng)
        norms = w["W_dec"].norm(dim=-1).sum(1)
        return w["f"], norms, float(np.median((w["f"] * norms)[w["f"] > 0]))

    def truth(f, norms, threshold):
        out = torch.zeros_like(f)
        for t in range(len(f)):
            for i in range(f.shape[1]):
                if f[t, i] * norms[i] > threshold:
                    out[t, i] = f[t, i]
        return out

    mistakes: Mistakes = {
        "f itself was compared with the threshold: compare sizes, f_i u_i": lambda f, u, at: (
            f * (f > at)
        ),
        "these are the sizes: choose by them, but give f itself": lambda f, u, at: (
            f * u * (f * u > at)
        ),
        "the threshold was taken off: what exceeds it stays as it is": lambda f, u, at: (
            (f * u - at).relu() / u
        ),
        "that is a mask: multiply f by it": lambda f, u, at: (f * u > at).float(),
        "these are the ones that fall below": lambda f, u, at: f * (f * u <= at),
    }
    told = "f, [tokens, latents], 0 where its size does not exceed the threshold"
    _check(student, "above_threshold", seed, draw, truth, mistakes, told)
    _passed("above_threshold")


def _steps(
    batches: Sequence[Tensor],
    scales: Tensor,
    start: Sequence[Tensor],
    k: int,
    *,
    read: int = 1,  # how often what is encoded was scaled
    target: int = 1,  # how often what it is compared with was scaled
    raw: bool = False,  # whether what is rebuilt was brought back to raw space
    norms: str = "summed",
    topk: str = "batch",
    over: str = "tokens",
    zero: bool = True,
    move: bool = True,
) -> tuple[list[float], list[Tensor]]:
    """Losses and weights after some steps of plain gradient descent, right or with one mistake."""
    W_enc, b_enc, W_dec, b_dec = weights = [w.clone().requires_grad_() for w in start]
    optimiser, losses = torch.optim.SGD(weights, lr=1e-3), []
    by = scales[:, None]
    for x in batches:
        f = (torch.einsum("tcd,cdh->th", x * by**read, W_enc) + b_enc).relu()
        each_norm = W_dec.detach().norm(dim=-1)
        u = {"summed": each_norm.sum(1), "joint": each_norm.norm(dim=1), "none": 1.0}[norms]
        sizes = f.detach() * u
        if topk == "batch":
            f = f * (sizes >= sizes.flatten().sort().values[-k * len(x)])
        elif topk == "token":
            f = f * (sizes >= sizes.sort(dim=1).values[:, -k, None])
        rebuilt = torch.einsum("th,hcd->tcd", f, W_dec) + b_dec
        squares = (x * by**target - (rebuilt / by if raw else rebuilt)).pow(2)
        loss = squares.sum() / {
            "tokens": len(x),
            "tokens and checkpoints": len(x) * len(scales),
            "all": squares.numel(),
            "nothing": 1,
        }[over]  # fmt: skip
        if zero:
            optimiser.zero_grad()
        loss.backward()
        if move:
            optimiser.step()
        losses.append(loss.item())
    return losses, [w.detach() for w in weights]


TRAINING_MISTAKES: dict[str, dict[str, Any]] = {
    "gradients of earlier steps pile up: optimiser.zero_grad() before backward": {"zero": False},
    "the weights did not move: call backward and optimiser.step()": {"move": False},
    "the target is scaled, x * scales[:, None], and not raw": {"read": 0, "target": 0},
    "the target is scaled, as what is encoded is, and not raw": {"target": 0},
    "decode gives raw activations; the loss is in scaled space: compare f W_dec + b_dec with x~": {
        "target": 0,
        "raw": True,
    },
    "decode gives raw activations, and x~ is scaled: compare f W_dec + b_dec with x~": {
        "raw": True
    },
    "encode scales already: x was scaled twice": {"read": 2},
    "encode scales already: x was scaled twice; and decode gives raw activations, so compare "
    "f W_dec + b_dec with x~": {"read": 2, "raw": True},
    "BatchTopK is missing": {"topk": "none"},
    "that keeps the k largest of each token: k * tokens over the batch": {"topk": "token"},
    "u_i is the sum of a latent's norms at each checkpoint, W_dec.norm(dim=-1).sum(1), not one "
    "norm over all of them": {"norms": "joint"},
    "that keeps the largest f: compare sizes, f_i u_i": {"norms": "none"},
    "the loss is a sum over checkpoints and d_model, and a mean over tokens": {"over": "all"},
    "the loss is a sum over checkpoints, too, and not their mean": {
        "over": "tokens and checkpoints"
    },
    "that is a sum over tokens, too: take their mean": {"over": "nothing"},
}


def training_step(student: Callable, seed: int | None = None) -> None:
    """`training_step(x, scales, weights, k, optimiser)`: one step; it gives the loss back.

    `weights` are W_enc, b_enc, W_dec and b_dec. Compared with the package's crosscoder over three
    steps of plain gradient descent (where a factor on the loss would show).
    """
    name, seed, k = "training_step", _seed(seed), 2
    rng = np.random.default_rng(seed)
    for _ in range(TRIES):
        w = _weights(rng)
        batches = [
            w["x"] * _tensor(rng.uniform(0.5, 1.5)) + _normal(rng, *w["x"].shape) for _ in range(3)
        ]
        latents, n, _ = w["W_dec"].shape
        # norms that differ much between checkpoints: their sum is not the norm of all
        W_dec = w["W_dec"] * _tensor(np.exp(rng.uniform(-2, 0.5, (latents, n, 1))))
        start = [w["W_enc"], w["b_enc"], W_dec, w["b_dec"]]
        known = {
            told: _steps(batches, w["scales"], start, k, **one)
            for told, one in TRAINING_MISTAKES.items()
        }
        mistakes = {told: lost for told, (lost, _) in known.items()}
        values = [_steps(batches, w["scales"], start, k)[0], *mistakes.values()]
        if not any(_same(a, b) for a, b in itertools.combinations(values, 2)):
            break
    else:
        raise RuntimeError(f"{name}: no inputs on which every known mistake shows.")
    truth = Crosscoder(*w["b_dec"].shape, w["f"].shape[1], k=k, scales=w["scales"])
    own = [truth.W_enc, truth.b_enc, truth.W_dec, truth.b_dec]
    with torch.no_grad():
        for parameter, value in zip(own, start, strict=True):
            parameter.copy_(value)
    reference, losses = torch.optim.SGD(own, lr=1e-3), []
    for x in batches:
        miss = x * truth.scales[:, None] - truth.decode_scaled(truth.encode(x))
        loss = miss.pow(2).sum() / len(x)
        reference.zero_grad()
        loss.backward()
        reference.step()
        losses.append(loss.item())

    weights = [value.clone().requires_grad_() for value in start]
    optimiser, came = torch.optim.SGD(weights, lr=1e-3), []
    for x in batches:
        given = [x, w["scales"], weights, k, optimiser]
        loss = _call(student, name, seed, given, to_change=[2])
        if _array(loss) is None or np.size(metrics.to_numpy(loss)) != 1:
            _fail(name, seed, "one number, the loss", _shown(loss), None)
        came.append(float(loss))
    # one that explains all losses is likelier than one that gives the first alone
    fits = {told: lost for told, lost in mistakes.items() if _same(came, lost)} or mistakes
    first = {told: lost[:1] for told, lost in fits.items()}
    _judge(name, seed, came[:1], losses[:1], first, "the first loss")
    _judge(name, seed, came, losses, mistakes, "the losses of three steps")
    for i, which in enumerate(("W_enc", "b_enc", "W_dec", "b_dec")):
        others = {told: moved[i] for told, (_, moved) in known.items()}
        _judge(name, seed, weights[i], own[i], others, f"{which} after three steps")
    _passed(name)


def explained_variance(student: Callable, seed: int | None = None) -> None:
    """`explained_variance(x, rebuilt)`: [checkpoints]."""

    def draw(rng):
        tokens, n, d = _sizes(rng, (8, 12), (2, 3), (5, 7))
        x = _normal(rng, tokens, n, d) * _tensor(rng.uniform(0.5, 3, (n, 1)))
        x = x + 2 * _normal(rng, n, d)  # a mean far from 0
        return x, x + 0.5 * _normal(rng, tokens, n, d) + 0.3 * _normal(rng, n, d)

    def truth(x, rebuilt):
        out = []
        for c in range(x.shape[1]):
            own, missed = x[:, c].double(), (x - rebuilt)[:, c].double()
            out.append(1 - float((missed**2).sum() / (own.var(0, correction=0).sum() * len(x))))
        return np.array(out)

    def missed(x, rebuilt):
        return (x - rebuilt).pow(2).sum((0, 2))

    def against(mean):
        return lambda x, rebuilt: 1 - missed(x, rebuilt) / (x - mean(x)).pow(2).sum((0, 2))

    def whole(x, rebuilt):
        return 1 - (x - rebuilt).pow(2).sum() / (x - x.mean(0)).pow(2).sum()

    def by_token(x, rebuilt):
        each = (x - rebuilt).pow(2).sum(2) / (x - x.mean(0)).pow(2).sum(2)
        return 1 - each.mean(0)

    mistakes: Mistakes = {
        "the mean was not taken off: compare with the deviation from the mean": lambda x, r: (
            1 - missed(x, r) / x.pow(2).sum((0, 2))
        ),
        "that is the share left unexplained: 1 minus it": lambda x, r: (
            missed(x, r) / (x - x.mean(0)).pow(2).sum((0, 2))
        ),
        "that is one number for all checkpoints: one for each": whole,
        "that is a mean of ratios over tokens: add up over tokens first, then divide": by_token,
        "the mean is one over all dimensions: each dimension has its own": against(
            lambda x: x.mean((0, 2), keepdim=True)
        ),
        "x.mean() is one number: the mean is a vector for each checkpoint, x.mean(0)": against(
            lambda x: x.mean()
        ),
        "the mean is one for all checkpoints: each has its own, x.mean(0)": against(
            lambda x: x.mean((0, 1))
        ),
        "that is the mean of each token's dimensions: take the mean over tokens, x.mean(0)": (
            against(lambda x: x.mean(-1, keepdim=True))
        ),
        "the mean is that of x, not of what was rebuilt": lambda x, r: (
            1 - missed(x, r) / (x - r.mean(0)).pow(2).sum((0, 2))
        ),
        "the error's own mean was taken off: an error that is always there counts, too": (
            lambda x, r: 1 - (x - r).var(0).sum(-1) / x.var(0).sum(-1)
        ),
        "that is the variance of what was rebuilt: how much of it is an error?": lambda x, r: (
            r.var(0).sum(-1) / x.var(0).sum(-1)
        ),
    }
    told = "explained variance, [checkpoints]"
    _check(student, "explained_variance", seed, draw, truth, mistakes, told)
    _passed("explained_variance")


def ce_recovered(student: Callable, seed: int | None = None) -> None:
    """`ce_recovered(clean, rebuilt, zeros)`: the share of the model's skill that is left."""

    def draw(rng):
        clean = rng.uniform(1, 3)
        return clean, clean + rng.uniform(0.05, 0.4), clean + rng.uniform(1, 4)

    def truth(clean, rebuilt, zeros):
        return float(np.interp(rebuilt, [clean, zeros], [1.0, 0.0]))  # 1 at clean, 0 at zeros

    mistakes: Mistakes = {
        "that is the share that is lost: with zeros instead it must be 0": (
            lambda clean, rebuilt, zeros: (rebuilt - clean) / (zeros - clean)
        ),
        "that compares with a cross-entropy of 0: compare with zeros in place of the stream": (
            lambda clean, rebuilt, zeros: clean / rebuilt
        ),
        "that is in nats: divide by what is lost with zeros": (
            lambda clean, rebuilt, zeros: zeros - rebuilt
        ),
        "divide by zeros - clean, all that there is to lose": (
            lambda clean, rebuilt, zeros: (zeros - rebuilt) / zeros
        ),
    }
    _check(student, "ce_recovered", seed, draw, truth, mistakes, "a share")
    _passed("ce_recovered")


def pca_explained(student: Callable, seed: int | None = None) -> None:
    """`pca_explained(seen, probe, rank)`: the share of `probe` on the first directions of `seen`.

    Both are [tokens, d_model]; compared with projections onto the eigenvectors of a covariance.
    """

    def draw(rng):
        d = int(rng.integers(16, 20))
        # one direction is not much stronger than the next: an approximation does not find them
        shape = np.diag(np.geomspace(3, 0.5, d)) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
        mean = rng.normal(size=d) * 3
        means = (mean, mean + 0.3 * rng.normal(size=d))
        seen, probe = (
            _tensor(rng.normal(size=(n, d)) @ shape + at)
            for n, at in zip((40, 30), means, strict=True)
        )
        return seen, probe, int(rng.integers(10, 14))

    def share(seen, probe, rank, centre="seen", last=False, of="probe", below="own", back=True):
        seen, probe = seen.double().numpy(), probe.double().numpy()
        mean = 0 * seen[0] if centre == "nothing" else seen.mean(0)
        values, vectors = np.linalg.eigh((seen - mean).T @ (seen - mean))
        order = np.argsort(values if last else -values)[:rank]
        x = probe if of == "probe" else seen
        mean = probe.mean(0) if centre == "probe" else mean
        kept = ((x - mean) @ vectors[:, order]) @ vectors[:, order].T + mean * back
        whole = x - (x.mean(0) if below == "own" else seen.mean(0))
        return float(1 - ((x - kept) ** 2).sum() / (whole**2).sum())

    mistakes: Mistakes = {
        "the mean was not taken off before the directions were fitted": lambda s, p, r: share(
            s, p, r, centre="nothing"
        ),
        "probe was centred by its own mean: the mean is fitted on seen, as the directions are": (
            lambda s, p, r: share(s, p, r, centre="probe")
        ),
        "below stands the deviation from probe's own mean, not from that of seen": (
            lambda s, p, r: share(s, p, r, below="seen")
        ),
        "the mean must be added again to what was projected": lambda s, p, r: share(
            s, p, r, back=False
        ),
        "that is the share of the text on which the directions were fitted: take the other": (
            lambda s, p, r: share(s, p, r, of="seen")
        ),
        "the directions were fitted on the text that they are tested on": (
            lambda s, p, r: share(p, p, r)
        ),
        "these are the last directions, not the first": lambda s, p, r: share(s, p, r, last=True),
        "that is the share left unexplained: 1 minus it": lambda s, p, r: 1 - share(s, p, r),
    }
    close = "close, but not exact: torch.pca_lowrank is approximate, torch.linalg.svd is not"
    told = "explained variance, a share"
    _check(student, "pca_explained", seed, draw, share, mistakes, told, close=close)
    _passed("pca_explained")


def rel_dec(student: Callable, seed: int | None = None) -> None:
    """`rel_dec(W_dec)`: shares of the decoder norm, [checkpoints, latents]."""

    def draw(rng):
        return (_weights(rng)["W_dec"] * _tensor(rng.uniform(0.2, 2, (1, 1, 1))),)

    def truth(W_dec):
        norms = [[math.sqrt(sum(float(v) ** 2 for v in row)) for row in latent] for latent in W_dec]
        return metrics.rel_dec(np.array(norms).T)

    def shares(norms, axis=0):
        return norms / norms.sum(axis, keepdim=True)

    mistakes: Mistakes = {
        "shares must add up to 1 over the checkpoints of a latent, not over the latents": (
            lambda W: shares(W.norm(dim=-1).T, axis=1)
        ),
        "these are squared lengths: a norm has a root": lambda W: shares(W.pow(2).sum(-1).T),
        "that adds up absolute entries: a norm is the root of the sum of squares": lambda W: shares(
            W.abs().sum(-1).T
        ),
        "these are the norms: divide by their sum over the checkpoints": lambda W: W.norm(dim=-1).T,
        "latents and checkpoints are swapped: [checkpoints, latents]": lambda W: (
            shares(W.norm(dim=-1).T).T
        ),
    }
    _check(student, "rel_dec", seed, draw, truth, mistakes, "shares, [checkpoints, latents]")
    _passed("rel_dec")


def fold(student: Callable, seed: int | None = None) -> None:
    """`fold(W_enc, W_dec, b_dec, scales)`: the three for raw activations, in this order."""
    name, seed = "fold", _seed(seed)
    w = _weights(np.random.default_rng(seed))
    weights = {which: w[which] for which in ("W_enc", "W_dec", "b_dec")}
    folded = _crosscoder(w["scales"], **weights).folded()
    came = _call(student, name, seed, [*weights.values(), w["scales"]])
    if not isinstance(came, tuple | list) or len(came) != 3:
        _fail(name, seed, "three tensors: W_enc, W_dec and b_dec", _shown(came), None)
    by = {"W_enc": w["scales"][:, None, None], "W_dec": w["scales"][:, None]}
    by["b_dec"] = by["W_dec"]
    for (which, raw), value in zip(weights.items(), came, strict=True):
        writes = which != "W_enc"
        told = (
            "it writes to the raw stream, so divide"
            if writes
            else "it reads the raw stream: multiply"
        )
        mistakes = {
            f"{which} is as it was: {told}": raw,
            f"{which} went the wrong way: {told}": raw * by[which] if writes else raw / by[which],
        }
        _judge(name, seed, value, getattr(folded, which), mistakes, which)
    _passed(name)


# ---- 04: effects and their shares


def _task(rng: np.random.Generator) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    """A smooth m of a stream [tokens, d_model], the stream, its code, and a raw decoder."""
    tokens, d, latents = _sizes(rng, (4, 5), (6, 7), (8, 9))
    A, v = _normal(rng, tokens * d, 5) / d, _normal(rng, 5)

    def m(stream):
        return torch.tanh(stream.flatten() @ A.to(stream)) @ v.to(stream) * 4

    f = (_normal(rng, tokens, latents) + 0.5).relu()
    return m, _normal(rng, tokens, d), f, _normal(rng, latents, d)


def indirect_effect(student: Callable, seed: int | None = None) -> None:
    """`indirect_effect(m, x, f, W_dec, i)`: how much m rises without feature i."""

    def draw(rng):
        m, x, f, W_dec = _task(rng)
        i = int(rng.integers(f.shape[1]))
        f[:, i] += 0.3  # active at every token, the first one too
        return m, x, f, W_dec, i

    def truth(m, x, f, W_dec, i):
        stream = x.clone()
        for t in range(1, len(x)):
            for d in range(x.shape[1]):
                stream[t, d] = x[t, d] - f[t, i] * W_dec[i, d]
        return float(m(stream) - m(x))

    def written(f, W, i):
        return f[:, [i]] * W[i] * (torch.arange(len(f)) > 0)[:, None]

    def rebuilt(x, f, W, first):
        """What the features write alone, with the first token of x or without."""
        return torch.cat([x[:first], (f @ W)[first:]])

    def without_error(first, clean):
        def effect(m, x, f, W, i):
            rest = f.clone()
            rest[:, i] = 0
            before = m(rebuilt(x, f, W, first)) if clean == "rebuilt" else m(x)
            return float(m(rebuilt(x, rest, W, first)) - before)

        return effect

    mistakes: Mistakes = {
        "the sign is turned: m without the feature, minus m with it": lambda m, x, f, W, i: float(
            m(x) - m(x - written(f, W, i))
        ),
        "the first token was changed, too: leave it as it is": lambda m, x, f, W, i: float(
            m(x - f[:, [i]] * W[i]) - m(x)
        ),
        "the feature was added once more: subtract what it writes": lambda m, x, f, W, i: float(
            m(x + written(f, W, i)) - m(x)
        ),
        "the error is lost: subtract the feature from x, not from what the features rebuild": (
            without_error(1, clean="x")
        ),
        "the error is lost, at the first token, too: subtract what the feature writes from x": (
            without_error(0, clean="x")
        ),
        "the error is lost in both: subtract the feature from x, and compare with m of x": (
            without_error(1, clean="rebuilt")
        ),
        "the error is lost in both, at the first token, too: subtract the feature from x, and "
        "compare with m of x": without_error(0, clean="rebuilt"),
        "that is m without the feature: take m of the clean stream off": lambda m, x, f, W, i: (
            float(m(x - written(f, W, i)))
        ),
        "the feature was taken away once, not as often as it is active: f_i times its vector": (
            lambda m, x, f, W, i: float(m(torch.cat([x[:1], x[1:] - W[i]])) - m(x))
        ),
    }
    _check(student, "indirect_effect", seed, draw, truth, mistakes, "the effect, one number")
    _passed("indirect_effect")


def attribution_patching(student: Callable, seed: int | None = None) -> None:
    """`attribution_patching(m, x, f, W_dec)`: the estimate for all features, [latents].

    Compared with the slope that a very small removal of each shows.
    """

    def small(m, x, f, W_dec):
        x, f, W_dec, h = x.double(), f.double(), W_dec.double(), 1e-4
        out = []
        for i in range(f.shape[1]):
            step = h * f[:, [i]] * W_dec[i]
            step[0] = 0
            out.append(float(m(x - step) - m(x + step)) / (2 * h))
        return np.array(out)

    def removed(m, x, f, W):
        rows = torch.arange(len(x))[:, None] > 0
        return torch.stack([m(x - rows * f[:, [i]] * W[i]) - m(x) for i in range(f.shape[1])])

    def gradient(m, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(m(x), x)[0]

    def estimate(m, x, f, W, first=1):
        return -(f * (gradient(m, x) @ W.T))[first:].sum(0)

    mistakes: Mistakes = {
        "the sign is turned: taking a feature away moves x by minus f_i W_dec": lambda *a: (
            -estimate(*a)
        ),
        "the first token is counted: leave it out": lambda *a: estimate(*a, first=0),
        "f is missing: the slope times how much of the feature there is": lambda m, x, f, W: (
            -(gradient(m, x) @ W.T)[1:].sum(0)
        ),
        "that is a mean over tokens: add them up": lambda m, x, f, W: (
            estimate(m, x, f, W) / (len(x) - 1)
        ),
        "that is an estimate for each token: add up over the tokens": lambda m, x, f, W: (
            -(f * (gradient(m, x) @ W.T))[1:]
        ),
        "these are sizes: an estimate has a sign, as the effect has": lambda *a: estimate(*a).abs(),
        "these are sums of sizes: tokens may cancel, and an estimate has a sign": (
            lambda m, x, f, W: (f * (gradient(m, x) @ W.T))[1:].abs().sum(0)
        ),
        "these are the effects themselves: an estimate for all comes from one gradient": removed,
    }
    told = "the estimates, [latents]"
    _check(student, "attribution_patching", seed, _task, small, mistakes, told)
    _passed("attribution_patching")


def rel_ie(student: Callable, seed: int | None = None) -> None:
    """`rel_ie(per_pair)`: from effects [checkpoints, pairs, latents] to [checkpoints, latents]."""

    def draw(rng):
        n, pairs, latents = _sizes(rng, (2, 4), (5, 7), (8, 10))
        per_pair = rng.normal(size=(n, pairs, latents)) + rng.normal(size=(n, 1, latents))
        per_pair[:, :, rng.integers(latents)] = 0  # never active
        return (per_pair,)

    def truth(per_pair):
        means = [[sum(row) / len(row) for row in at.T] for at in per_pair]
        return metrics.rel_ie(np.array(means))

    def shares(size, axis=0):
        summed = size.sum(axis, keepdims=True)
        return size / np.where(summed == 0, np.nan, summed)

    mistakes: Mistakes = {
        "the absolute value came before the mean: over pairs help and harm must cancel": (
            lambda v: shares(np.abs(v).mean(1))
        ),
        "shares must add up to 1 over the checkpoints of a latent, not over the latents": (
            lambda v: shares(np.abs(v.mean(1)), axis=1)
        ),
        "these have signs: take absolute values before you divide": lambda v: shares(v.mean(1)),
        "the sum has signs: add up absolute values": lambda v: (
            np.abs(v.mean(1)) / np.abs(v.mean(1).sum(0) + np.where(v.any((0, 1)), 0, np.nan))
        ),
        "a latent without any effect has no shares: NaN, and not 0": lambda v: np.nan_to_num(
            shares(np.abs(v.mean(1)))
        ),
        "that is the mean over latents: the pairs are the middle axis": lambda v: shares(
            np.abs(v.mean(2))
        ),
    }
    _check(student, "rel_ie", seed, draw, truth, mistakes, "shares, [checkpoints, latents]")
    _passed("rel_ie")


def feature_class(student: Callable, seed: int | None = None) -> None:
    """`feature_class(shares)`: "specific", "shared" or "other", of one feature's shares."""
    name, seed = "feature_class", _seed(seed)
    rng = np.random.default_rng(seed)
    cases = [[0.69, 0.2, 0.11], [0.3, 0.3, 0.4], [0.35, 0.05, 0.6], [0.1, 0.75, 0.15], [0.5, 0.5]]
    cases = [np.array(shares) for shares in (*cases, [0.7, 0.2, 0.1])]
    cases += list(rng.dirichlet([0.8] * 3, 60)) + list(rng.dirichlet([0.8] * 2, 20))
    for shares in cases:
        labels = [f"checkpoint {c}" for c in range(len(shares))]
        expected = metrics.classify(shares[:, None], labels)["label"][0]
        came = _call(student, name, seed, [shares])
        if isinstance(came, str) and came == expected:
            continue
        largest, many = shares.max(), int((shares >= 0.3).sum())
        likely = None
        if came not in ("specific", "shared", "other"):
            likely = "give one of the words 'specific', 'shared', 'other'"
        elif came == "specific" and 0.7 - 1e-9 <= largest <= 0.7:
            likely = "exactly 0.7 is not above 0.7"
        elif came == "specific":
            likely = "the largest share alone does not make it specific: it must be above 0.7"
        elif came == "shared" and many < 2:
            likely = "sharing takes two: at least two shares of 0.3 or more"
        elif came == "other" and many >= 2:
            likely = "two shares of 0.3 or more are enough, and exactly 0.3 counts"
        elif expected == "specific":
            likely = "a share above 0.7 comes first: then it is specific"
        _fail(name, seed, f"{expected!r} for shares {shares.round(3)}", repr(came), likely)
    _passed(name)


def factorial(student: Callable, seed: int | None = None) -> None:
    """`factorial(ie)`: (mean, subject, attractor, both) of the effects in four cells [2, 2]."""

    def draw(rng):
        return (rng.normal(size=(2, 2)) * 3,)

    def truth(ie):
        rows, values = [], []
        for i, s in enumerate((-1, 1)):
            for j, t in enumerate((-1, 1)):
                rows.append([1, s, t, s * t])
                values.append(ie[i, j] * s)
        return np.linalg.solve(np.array(rows, float), np.array(values))

    def of(e, by=4.0):
        mean = e.sum()
        subject, attractor = (e[1] - e[0]).sum(), (e[:, 1] - e[:, 0]).sum()
        both = e[1, 1] + e[0, 0] - e[0, 1] - e[1, 0]
        return np.array([mean, subject, attractor, both]) / by

    def turned(ie):
        return ie * np.array([[-1], [1]])

    mistakes: Mistakes = {
        "IE is towards the right answer: turn it first, where the subject is singular": of,
        "these are whole differences: the coefficient is half of what changes from -1 to +1": (
            lambda ie: of(turned(ie), np.array([4, 2, 2, 2]))
        ),
        "these are sums: each is a mean over the four cells": lambda ie: of(turned(ie), 1.0),
        "subject and attractor are swapped: ie[s, t], the subject goes down": lambda ie: of(
            turned(ie)
        )[[0, 2, 1, 3]],
        "it was turned by the attractor: which word is right depends on the subject": lambda ie: of(
            ie * np.array([-1, 1])
        ),
        "the signs are those of singular minus plural: -1 is singular, +1 plural": lambda ie: of(
            -turned(ie)
        ),
        "singular is -1 and plural +1, in s and t as well as where the effect is turned": (
            lambda ie: of(turned(ie)) * [-1, 1, 1, -1]
        ),
        "singular is -1 and plural +1, in s and t, too": (
            lambda ie: of(turned(ie)) * [1, -1, -1, 1]
        ),
        "the last one is a mean over the four cells, too: divide by 4": lambda ie: of(
            turned(ie), np.array([4, 4, 4, 1])
        ),
        "these are whole differences, and the last is one of all four cells: each is a mean": (
            lambda ie: of(turned(ie), np.array([4, 2, 2, 1]))
        ),
        "these are halves of sums: each is a mean over the four cells": lambda ie: of(
            turned(ie), 2.0
        ),
        "halved once too often: a mean over the four cells divides by 4": lambda ie: of(
            turned(ie), np.array([4, 8, 8, 8])
        ),
        "the mean is missing: it comes first, then subject, attractor and both": lambda ie: of(
            turned(ie)
        )[1:],
    }
    told = "mean, subject, attractor, both"
    _check(student, "factorial", seed, draw, truth, mistakes, told)
    _passed("factorial")


def null_bar(student: Callable, seed: int | None = None) -> None:
    """`null_bar(null)`: what 95 % of random directions do not exceed, [checkpoints]."""

    def draw(rng):
        n, latents = _sizes(rng, (2, 4), (150, 250))
        null = rng.normal(size=(n, latents)) * rng.uniform(0.5, 2, (n, 1)) - 0.3
        null[rng.random((n, latents)) < 0.03] = 0  # no effect at one checkpoint
        null[:, rng.random(latents) < 0.4] = 0  # never active on the task
        return (null,)

    def truth(null):
        out = []
        for row in null:
            ranked = sorted(
                abs(v) for v, any_effect in zip(row, null.any(0), strict=True) if any_effect
            )
            at = 0.95 * (len(ranked) - 1)
            low = int(at)
            out.append(ranked[low] + (at - low) * (ranked[low + 1] - ranked[low]))
        return np.array(out)

    def of(values, q=0.95):
        return np.quantile(values, q, axis=1)

    def active(null):
        return null[:, null.any(0)]

    def of_each(row_of):
        return lambda null: np.array([row_of(np.abs(row)) for row in null])

    mistakes: Mistakes = {
        "directions without any effect on the task are counted: leave them out": lambda v: of(
            np.abs(v)
        ),
        "take sizes: the absolute value comes before the percentile": lambda v: of(active(v)),
        "that is the largest one: the bar lies at 95 %": lambda v: of(np.abs(active(v)), 1.0),
        "that is the 5th percentile: 95 % must lie below the bar": lambda v: of(
            np.abs(active(v)), 0.05
        ),
        "that is one bar for all checkpoints: each has its own": lambda v: np.quantile(
            np.abs(active(v)), 0.95
        ),
        "np.percentile counts from 0 to 100: 95, or np.quantile with 0.95": lambda v: of(
            np.abs(active(v)), 0.0095
        ),
        "that is one of the sizes: np.quantile goes between the two that are nearest": (
            lambda v: of_each(lambda row: sorted(row)[int(0.95 * len(row))])(active(v))
        ),
        "a latent with an effect of 0 at this checkpoint alone counts: leave out those that have "
        "none at any": of_each(lambda row: np.quantile(row[row > 0], 0.95)),
        "a latent with an effect somewhere counts: null.any(0), not null.all(0)": lambda v: of(
            np.abs(v[:, v.all(0)])
        ),
    }
    _check(student, "null_bar", seed, draw, truth, mistakes, "the bar, [checkpoints]")
    _passed("null_bar")


# ---- 05 and 09: together, sampled, along a line


def beyond_the_parts(student: Callable, seed: int | None = None) -> None:
    """`beyond_the_parts(m, x, f, W_dec, group)`: what a group does more than its members alone."""

    def draw(rng):
        m, x, f, W_dec = _task(rng)
        group = rng.permutation(f.shape[1])[:3].tolist()
        f[:, group] += 0.3
        return m, x, f, W_dec, group

    def without(x, f, W, group, first=1):
        stream = x.clone()
        for i in group:
            for t in range(first, len(x)):
                stream[t] -= f[t, i] * W[i]
        return stream

    def parts(m, x, f, W, group):
        return [float(m(without(x, f, W, [i])) - m(x)) for i in group]

    def truth(m, x, f, W, group):
        return float(m(without(x, f, W, group)) - m(x)) - sum(parts(m, x, f, W, group))

    def all_tokens(m, x, f, W, group):
        alone = sum(float(m(without(x, f, W, [i], 0)) - m(x)) for i in group)
        return float(m(without(x, f, W, group, 0)) - m(x)) - alone

    mistakes: Mistakes = {
        "the sign is turned: the group's effect minus the sum of the single ones": (
            lambda *a: -truth(*a)
        ),
        "that is the group's effect: take the single ones off": lambda m, x, f, W, g: float(
            m(without(x, f, W, g)) - m(x)
        ),
        "that takes their mean off: take their sum": lambda m, x, f, W, g: (
            float(m(without(x, f, W, g)) - m(x)) - np.mean(parts(m, x, f, W, g))
        ),
        "m of the clean stream must be taken off every single effect, too": lambda m, x, f, W, g: (
            float(m(without(x, f, W, g)) - m(x)) - sum(float(m(without(x, f, W, [i]))) for i in g)
        ),
        "the first token was changed, too: leave it as it is": all_tokens,
    }
    _check(student, "beyond_the_parts", seed, draw, truth, mistakes, "one number")
    _passed("beyond_the_parts")


def bootstrap_interval(student: Callable, seed: int | None = None) -> None:
    """`bootstrap_interval(values, groups, rng)`: low and high end for the mean, groups together.

    Sampled: held to the package's draws within 4 % of the interval's width.
    """
    name, seed = "bootstrap_interval", _seed(seed)
    rng = np.random.default_rng(seed)
    sizes = rng.integers(6, 12, 40)
    groups = np.repeat(rng.permutation(40), sizes)
    values = rng.normal(size=40)[groups] + 0.1 * rng.normal(size=len(groups)) + 2

    def ends(draws, outside=0.05):
        return np.quantile(draws, [outside / 2, 1 - outside / 2])

    def means(clusters):
        drawn = resample(values[None, :, None], 20_000, seed, clusters)
        return drawn[:, 0, 0].astype(float)

    draws, alone = means(groups), means(None)
    centre, spread = draws.mean(), draws.std()
    mistakes = {
        "pairs were drawn one by one: those of a group are drawn together": ends(alone),
        "that is where 95 % of the values lie: draw means, and see where 95 % of these lie": ends(
            values
        ),
        "that leaves 10 % outside: 2.5 % on each side": ends(draws, 0.1),
        "that is one standard error to each side, 68 %": [centre - spread, centre + spread],
        "every draw gives the same: draw with replacement": [values.mean(), values.mean()],
    }
    expected = ends(draws)
    within = 0.04 * float(expected[1] - expected[0])
    generator = np.random.default_rng(seed + 1)
    came = _call(student, name, seed, [values, groups, generator])
    told = "low and high end of the interval"
    _judge(name, seed, came, expected, mistakes, told, within)
    _passed(name)


def shapley(student: Callable, seed: int | None = None) -> None:
    """`shapley(m_without, players, n_orders, rng)`: sampled Shapley values, in the players' order.

    `m_without(gone)` gives m when the players in the set `gone` are taken away. Held to the exact
    values, from all orders; together they must add up to what is lost when all go.
    """
    name, seed = "shapley", _seed(seed)
    rng = np.random.default_rng(seed)
    players = [int(i) for i in rng.permutation(90)[:4] + 10]
    subsets = [frozenset(g) for r in range(5) for g in itertools.combinations(players, r)]
    table = {gone: 2 * len(gone) ** 0.5 + 2 * float(rng.normal()) for gone in subsets}

    def m_without(gone):
        return table[frozenset(int(i) for i in gone)]

    orders = list(itertools.permutations(players))
    credit = np.zeros((len(orders), 4))
    for k, order in enumerate(orders):
        for place, player in enumerate(order):
            after, before = m_without(order[: place + 1]), m_without(order[:place])
            credit[k, players.index(player)] = after - before
    exact, whole = credit.mean(0), m_without(players) - m_without([])
    n_orders = 2000
    within = 5 * float(credit.std(0).max()) / n_orders**0.5
    came = _call(student, name, seed, [m_without, players, n_orders, np.random.default_rng(seed)])
    rest = [[j for j in players if j != i] for i in players]
    mistakes = {
        "that is each player taken away alone: go through orders, in which others have gone": (
            np.array([m_without([i]) - m_without([]) for i in players])
        ),
        "that is each player taken away last: its place in the order must vary": (
            np.array([m_without(players) - m_without(others) for others in rest])
        ),
        "the sign is turned: m after it has gone, minus m before": -exact,
        "the values stand in the order in which they were drawn: credit each to its player": (
            np.full(4, whole / 4)
        ),
    }
    got = _array(came)
    if got is not None and got.shape == (4,) and _same(got / n_orders, exact, within):
        mistakes["these are sums over orders: take the mean"] = got
    _judge(name, seed, came, exact, mistakes, "a value for each player", within)
    told = "their sum, what is lost when all go"
    _judge(name, seed, float(np.sum(_array(came))), whole, {}, told)
    _passed(name)


def _line(rng: np.random.Generator) -> tuple:
    """A task, a bias where the line ends, and the code; x is far from what the features rebuild."""
    m, x, f, W_dec = _task(rng)
    return m, x, f, W_dec / 2, _normal(rng, x.shape[1]) / 2


def _mean_gradient(m, x, b_dec, until=1.0, first=1, at=None) -> Tensor:
    """dm/dx averaged from x to b_dec with 40 nodes, in double precision; or at one place."""
    x, end = x.double(), x.double().clone()
    end[first:] = b_dec.double()
    nodes, weights = np.polynomial.legendre.leggauss(40)
    places = [(at, 1.0)] if at is not None else zip((nodes + 1) / 2, weights / 2, strict=True)
    total = torch.zeros_like(x)
    for a, weight in places:
        stream = (x + float(a) * until * (end - x)).requires_grad_()
        total += weight * torch.autograd.grad(m(stream), stream)[0]
    return total


def integrated_gradients(student: Callable, seed: int | None = None) -> None:
    """`integrated_gradients(m, x, f, W_dec, b_dec)`: effects from the averaged gradient, [latents].

    Held to forty nodes in double precision, within one percent of the largest effect.
    """
    name, seed = "integrated_gradients", _seed(seed)
    rng = np.random.default_rng(seed)
    for _ in range(TRIES):
        m, x, f, W_dec, b_dec = _line(rng)

        def effects(gradient, first=1, f=f, W_dec=W_dec):
            return -(f.double() * (gradient @ W_dec.double().T))[first:].sum(0)

        right = _mean_gradient(m, x, b_dec)
        expected = effects(right)
        within = 0.01 * float(expected.abs().max())
        mistakes = {
            "that is the gradient at the clean stream alone: average it along the line": effects(
                _mean_gradient(m, x, b_dec, at=0.0)
            ),
            "that is the gradient at the end of the line alone: average it along the line": effects(
                _mean_gradient(m, x, b_dec, at=1.0)
            ),
            "the line ends at 0: it must end at b_dec": effects(
                _mean_gradient(m, x, torch.zeros_like(b_dec))
            ),
            "the first token moves along, too: leave it as it is": effects(
                _mean_gradient(m, x, b_dec, first=0)
            ),
            "the first token is counted: leave it out": effects(right, first=0),
            "the sign is turned: taking a feature away moves x by minus f_i W_dec": -expected,
        }
        values = [expected, *mistakes.values()]
        if not any(_same(a, b, 2 * within) for a, b in itertools.combinations(values, 2)):
            break
    came = _call(student, name, seed, [m, x, f, W_dec, b_dec])
    _judge(name, seed, came, expected, mistakes, "the effects, [latents]", within)
    _passed(name)


def error_effect(student: Callable, seed: int | None = None) -> None:
    """`error_effect(gradient, x, f, W_dec, b_dec)`: what the error adds, so that all adds up.

    The truth is what is missing: m(all gone) - m(clean), minus the effects of all features.
    """
    name, seed = "error_effect", _seed(seed)
    rng = np.random.default_rng(seed)
    for _ in range(TRIES):
        m, x, f, W_dec, b_dec = _line(rng)
        gradient = _mean_gradient(m, x, b_dec).float()
        gone = x.clone()
        gone[1:] = b_dec
        effects = -(f * (gradient @ W_dec.T))[1:].sum()
        expected = float(m(gone) - m(x) - effects)
        error = x - b_dec - f @ W_dec
        mistakes = {
            "the sign is turned: the error goes, so the stream moves by minus the error": float(
                (error * gradient)[1:].sum()
            ),
            "the first token is counted: leave it out": float(-(error * gradient).sum()),
            "b_dec is no error: x = f W_dec + b_dec + error": float(
                -((x - f @ W_dec) * gradient)[1:].sum()
            ),
            "that is the effect of everything, features and error: take off what features write": (
                float(-((x - b_dec) * gradient)[1:].sum())
            ),
            "that is the effect of the features": float(effects),
            "that is a mean: add up over tokens and dimensions": float(
                -(error * gradient)[1:].mean()
            ),
        }
        within = 1e-3 * max(1.0, abs(expected), abs(float(effects)))
        values = [expected, *mistakes.values()]
        if not any(_same(a, b, 2 * within) for a, b in itertools.combinations(values, 2)):
            break
    came = _call(student, name, seed, [gradient, x, f, W_dec, b_dec])
    _judge(name, seed, came, expected, mistakes, "one number", within)
    _passed(name)


# ---- 04, 06, 08: orders, chance, partners


def rank_correlation(student: Callable, seed: int | None = None) -> None:
    """`rank_correlation(a, b)`: Spearman's, of rows without ties."""

    def draw(rng):
        n = int(rng.integers(9, 14))
        a = rng.normal(size=n)
        return np.sinh(2 * a), np.exp(a + rng.normal(size=n))

    def truth(a, b):
        return _pearson(*([sum(w < v for w in row) for v in row] for row in (a, b)))

    def order(row):
        return sorted(range(len(row)), key=lambda i: row[i])

    mistakes: Mistakes = {
        "that is the ordinary correlation of the numbers: rank them first": _pearson,
        "argsort gives an order, not ranks: take the argsort of the argsort": lambda a, b: _pearson(
            order(a), order(b)
        ),
        "one of the two is ranked the other way round": lambda a, b: -truth(a, b),
        "only one of the rows is ranked": lambda a, b: _pearson(
            [sum(w < v for w in a) for v in a], b
        ),
    }
    _check(student, "rank_correlation", seed, draw, truth, mistakes, "a number from -1 to 1")
    _passed("rank_correlation")


def _pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """The ordinary correlation, in plain sums."""
    n = len(a)
    mean_a, mean_b = sum(a) / n, sum(b) / n
    together = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    alone_a = sum((x - mean_a) ** 2 for x in a)
    alone_b = sum((y - mean_b) ** 2 for y in b)
    return float(together / math.sqrt(alone_a * alone_b))


def chance_of(student: Callable, seed: int | None = None) -> None:
    """`chance_of(observed, null)`: a p value of a count, one's own world counted in."""

    def draw(rng):
        null = rng.integers(3, 9, int(rng.integers(15, 40)))
        return int(rng.choice(null)), null

    def share(observed, null, own=1, beyond=lambda value, observed: value >= observed):
        as_many = sum(bool(beyond(int(value), observed)) for value in null)
        return (own + as_many) / (own + len(null))

    mistakes: Mistakes = {
        "your own world counts among them: one more above, one more below": lambda o, null: share(
            o, null, own=0
        ),
        "as many is as well as more: >=": lambda o, null: share(
            o, null, beyond=lambda value, observed: value > observed
        ),
        "turned round: count the worlds with as many or more": lambda o, null: share(
            o, null, beyond=lambda value, observed: value <= observed
        ),
        "one more above, and one more below, too": lambda o, null: (
            share(o, null) * (1 + len(null)) / len(null)
        ),
    }
    _check(student, "chance_of", seed, draw, share, mistakes, "a share")
    _passed("chance_of")


def beyond_chance(student: Callable, seed: int | None = None) -> None:
    """`beyond_chance(before, after)`: Cohen's kappa of two lists of labels."""

    def draw(rng):
        n = int(rng.integers(20, 40))
        labels = np.array(["subject", "attractor", "both", "mixed"])
        before = rng.choice(labels, n, p=[0.1, 0.2, 0.1, 0.6])
        anew = rng.choice(labels, n, p=[0.3, 0.1, 0.1, 0.5])
        return before, np.where(rng.random(n) < 0.5, before, anew)

    def shares(before, after):
        """Agreement, and the mean agreement over all ways to shift one list against the other.

        Every pair of places meets once, so that this is the mean over all shuffles.
        """
        n = len(before)
        each = [np.mean(before == np.roll(after, shift)) for shift in range(n)]
        return each[0], sum(each) / n

    def truth(before, after):
        agree, chance = shares(before, after)
        return (agree - chance) / (1 - chance)

    def even(before, after):
        agree, chance = shares(before, after)[0], 1 / len({*before, *after})
        return (agree - chance) / (1 - chance)

    mistakes: Mistakes = {
        "that is the share that agrees: take off what chance gives": lambda b, a: shares(b, a)[0],
        "that is the share by chance": lambda b, a: shares(b, a)[1],
        "chance is not one in so many labels: some labels are frequent": even,
        "divide by 1 - c, so that the same list gives 1": lambda b, a: (
            shares(b, a)[0] - shares(b, a)[1]
        ),
        "the second list's shares count, too: multiply the two, label by label": lambda b, a: (
            (shares(b, a)[0] - shares(b, b)[1]) / (1 - shares(b, b)[1])
        ),
    }
    _check(student, "beyond_chance", seed, draw, truth, mistakes, "a number up to 1")
    _passed("beyond_chance")


def subject_share(student: Callable, seed: int | None = None) -> None:
    """`subject_share(S, N, B)`: the subject's part of the sizes of three rows."""

    def draw(rng):
        n = int(rng.integers(5, 9))
        return tuple(rng.normal(size=n) * rng.uniform(0.3, 3, n) for _ in range(3))

    def share(S, N, B, size=abs):
        subject, neighbour, both = (sum(size(float(v)) for v in row) for row in (S, N, B))
        return subject / (subject + neighbour + both)

    mistakes: Mistakes = {
        "take sizes before you add up: features that work against each other are not nothing": (
            lambda S, N, B: abs(S.sum()) / (abs(S.sum()) + abs(N.sum()) + abs(B.sum()))
        ),
        "without absolute values this is no share": lambda S, N, B: S.sum() / (S + N + B).sum(),
        "what compares the two nouns depends on them, too: it belongs below": lambda S, N, B: (
            np.abs(S).sum() / (np.abs(S) + np.abs(N)).sum()
        ),
        "that is a mean of ratios: a weak feature has as much say as a strong one": (
            lambda S, N, B: (np.abs(S) / (np.abs(S) + np.abs(N) + np.abs(B))).mean()
        ),
        "these are squares: take sizes": lambda S, N, B: share(S, N, B, size=lambda v: v * v),
    }
    _check(student, "subject_share", seed, draw, share, mistakes, "a share")
    _passed("subject_share")


def most_alike(student: Callable, seed: int | None = None) -> None:
    """`most_alike(f, g)`: for each latent of f the latent of g whose activations correlate most."""

    def draw(rng):
        tokens, mine, theirs = _sizes(rng, (30, 40), (5, 7), (8, 10))
        f = np.maximum(rng.normal(size=(tokens, mine)), 0) * rng.uniform(0.2, 5, mine)
        mixed = f[:, rng.integers(0, mine, theirs)] + rng.normal(size=(tokens, theirs))
        return f, np.maximum(mixed, 0) * rng.uniform(0.1, 9, theirs) + rng.uniform(0, 3, theirs)

    def table(f, g):
        return np.array([[_pearson(a, b) for b in g.T] for a in f.T])

    def cosines(f, g):
        return (f / np.linalg.norm(f, axis=0)).T @ (g / np.linalg.norm(g, axis=0))

    mistakes: Mistakes = {
        "that looks for the partners of g's latents: look along the latents of g": lambda f, g: (
            table(f, g).argmax(0)
        ),
        "without taking off the means, latents that are never silent look alike": lambda f, g: (
            cosines(f, g).argmax(1)
        ),
        "divide by the lengths: the loudest latent is not the most alike": lambda f, g: (
            (f - f.mean(0)).T @ (g - g.mean(0))
        ).argmax(1),
        "these are the correlations themselves: give the index of the largest": lambda f, g: table(
            f, g
        ).max(1),
        "that is the least alike": lambda f, g: table(f, g).argmin(1),
    }
    _check(
        student,
        "most_alike",
        seed,
        draw,
        lambda f, g: table(f, g).argmax(1),
        mistakes,
        "an index for each latent of f",
    )
    _passed("most_alike")
