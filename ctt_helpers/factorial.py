"""Is a feature about the subject, about its neighbour, or does it compare the two?

Pairs in design cells settle it: subject level x attractor level, sg or pl each, and all other words
the same ("The author near the teachers laughs/*laugh"). Whatever is measured on a pair is written

    v(s, t) = mean + subject s + attractor t + both s t,      s, t = -1 or +1,

s the level of the subject, t that of the attractor, its neighbour. Each group of pairs that fills
all cells gives its own four coefficients, exactly, for nothing but the levels changes inside it;
the result is their mean over groups, and its spread comes from drawing groups anew, those of the
same words together.

An indirect effect helps or hurts the right answer, and which one is right depends on the subject.
So it is first turned towards the plus level: e = IE s, an effect on logit(plus form) - logit(minus
form). A feature that says "the last noun is plural" then has the same e with either subject, and a
feature that always helps is one about the subject, as it must be.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ctt_helpers.arguments import checked
from ctt_helpers.effects import METRICS, Effects
from ctt_helpers.messages import abridged, choose, whole_number
from ctt_helpers.metrics import check_features
from ctt_helpers.pairs import MinimalPairs, twins
from ctt_helpers.uncertainty import interval

PER_FEATURE = Float[np.ndarray, "checkpoints features"]

FACTORS = ("subject", "attractor", "both")
LABELS = ("subject", "attractor", "both", "mixed", "none")
KINDS = ("effects", "activations")
KNOWN_LEVELS = ("sg", "pl")  # minus and plus, whichever comes first in the table

MAIN = 2 / 3  # a factor with more than this share of the variance has the feature to itself
COMPARES = 1 / 6  # half way between two effects that only add (0) and a conjunction (1/3)
ROUNDING = 1e-6  # a strength below this part of a feature's size is rounding
OF_NULL = 0.95  # quantile of the strengths of random directions
SELDOM = 0.025  # draws without an effect: where there are more, it has no shares
N_SPLITS = 100  # into halves, for the estimate; each draw has a split of its own
BLOCK = 1024  # columns whose draws are held at once

# ---- the result


@dataclass
class Factorial:
    """Coefficients of the two-way model for every feature at every checkpoint.

    Arrays are [checkpoints, features], in the unit of what was given.

    Attributes:
        mean: the same in all cells.
        subject: half of what changes with the subject, from minus to plus.
        attractor: half of what changes with the attractor.
        both: the interaction: how far the two do not just add.
        other: half of what changes with the third factor; None where the design has two.
        stderr, lower, upper: of each coefficient by name, over groups: the standard error of its
            mean, and the ends of the bootstrap interval.
        label: "subject", "attractor", "both", "mixed" or "none": see `factorial_of`.
        threshold: [checkpoints] strength that `null` seldom exceeds; None without a null.
        by_group: [checkpoints, coefficients, groups, features] what the coefficients are means of,
            in the order mean, subject, attractor, both, other.
        clusters: [groups] the same number for groups of the same words, which are drawn together.
        features: [features] which latents they are.
        names: labels of the checkpoints.
        levels: what s, t = -1 and +1 stand for.
        kind: "effects" or "activations".
        n_incomplete: groups that were left out, for a cell of theirs has no pair.
    """

    mean: PER_FEATURE
    subject: PER_FEATURE
    attractor: PER_FEATURE
    both: PER_FEATURE
    other: PER_FEATURE | None
    stderr: dict[str, PER_FEATURE] = field(repr=False)
    lower: dict[str, PER_FEATURE] = field(repr=False)
    upper: dict[str, PER_FEATURE] = field(repr=False)
    label: Shaped[np.ndarray, "checkpoints features"]
    threshold: Float[np.ndarray, " checkpoints"] | None
    by_group: Float[np.ndarray, "checkpoints coefficients groups features"] = field(repr=False)
    clusters: Int[np.ndarray, " groups"] = field(repr=False)
    features: Int[np.ndarray, " features"]
    names: list[str]
    levels: tuple[Any, Any]
    kind: str
    n_incomplete: int

    @property
    def n_groups(self) -> int:
        """Groups that fill all cells."""
        return self.by_group.shape[2]

    @property
    def strength(self) -> PER_FEATURE:
        """Root mean square over the cells, once the mean is taken out."""
        return np.sqrt(self.subject**2 + self.attractor**2 + self.both**2)

    @property
    def shares(self) -> dict[str, PER_FEATURE]:
        """Each factor's share of the variance between cells; NaN where there is none.

        The square of an estimate is too large by its own variance, E[S^2] = S_true^2 + stderr^2, so
        that is taken off first, and what falls below 0 counts as 0. Without it noise alone would
        look like a feature that is a third of everything.
        """
        return _shares({name: getattr(self, name) for name in FACTORS}, self.stderr)

    def cells(self) -> pd.DataFrame:
        """The mean of every cell: one row a checkpoint and feature, one column a cell ("pl-sg").

        The subject's level comes first. Effects are towards the plus level, not the right answer.
        """
        table = self._rows()
        for s, t in itertools.product((0, 1), repeat=2):
            sign_s, sign_t = 2 * s - 1, 2 * t - 1
            value = self.mean + sign_s * self.subject + sign_t * self.attractor
            value = value + sign_s * sign_t * self.both
            table[f"{self.levels[s]}-{self.levels[t]}"] = value.ravel()
        return pd.DataFrame(table)

    def to_frame(self) -> pd.DataFrame:
        """One row a checkpoint and feature.

        Columns: checkpoint, feature; each coefficient with <it>_low and <it>_high; strength;
        <factor>_share; label.
        """
        table = self._rows()
        for name in self.stderr:
            table[name] = getattr(self, name).ravel()
            table[f"{name}_low"] = self.lower[name].ravel()
            table[f"{name}_high"] = self.upper[name].ravel()
        table["strength"] = self.strength.ravel()
        for name, share in self.shares.items():
            table[f"{name}_share"] = share.ravel()
        table["label"] = self.label.ravel()
        return pd.DataFrame(table)

    def _rows(self) -> dict[str, np.ndarray]:
        names = np.array(self.names, object)
        return {
            "checkpoint": np.repeat(names, len(self.features)),
            "feature": np.tile(self.features, len(names)),
        }


def _shares(
    coefficients: dict[str, PER_FEATURE], stderr: dict[str, PER_FEATURE]
) -> dict[str, PER_FEATURE]:
    square = {name: np.maximum(coefficients[name] ** 2 - stderr[name] ** 2, 0) for name in FACTORS}
    total = sum(square.values())
    total = np.where(total > 0, total, np.nan)
    return {name: square[name] / total for name in FACTORS}


# ---- the design: which pair is in which cell of which group


@dataclass(frozen=True)
class _Design:
    """Where every pair stands.

    Attributes:
        rows: the pairs that are used, sorted by group and by cell within it.
        starts, count: [groups x cells] where each cell of each group begins in `rows`, and how
            many pairs it has: one, as a rule.
        clusters: [groups] the same number for groups of the same words.
        contrasts: [coefficients, cells] the sign of each cell in each coefficient.
        names: of the coefficients.
        subject: [rows] -1 or +1.
        levels: minus and plus.
        n_incomplete: groups that do not fill all cells.
    """

    rows: Int[np.ndarray, " rows"]
    starts: Int[np.ndarray, " slots"]
    count: Int[np.ndarray, " slots"]
    clusters: Int[np.ndarray, " groups"]
    contrasts: Float[np.ndarray, "coefficients cells"]
    names: list[str]
    subject: Float[np.ndarray, " rows"]
    levels: tuple[Any, Any]
    n_incomplete: int

    def coefficients(
        self, values: Float[np.ndarray, "pairs features"], kind: str
    ) -> Float[np.ndarray, "coefficients groups features"]:
        """Each group's own coefficients, which fit the means of its cells exactly."""
        used = values[self.rows]
        if kind == "effects":
            used *= self.subject[:, None]  # from the right answer to the plus level
        cells = np.add.reduceat(used, self.starts) / self.count[:, None]
        cells = cells.reshape(len(self.clusters), -1, values.shape[1])
        return np.tensordot(self.contrasts, cells, (1, 1)) / cells.shape[1]


def _design(pairs: MinimalPairs, levels: Sequence | None) -> _Design:
    """Raises ValueError where the table has no design, or no two groups fill it."""
    table, columns = pairs.table, ["subject_level", "attractor_level"]
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(
            f"The table of {pairs.name!r} has no column {' and no '.join(missing)}; it has: "
            f"{abridged(table.columns)}. A factorial needs the level of the subject and that of "
            "the attractor of every pair: take a task whose pairs come in design cells, or add "
            "the columns."
        )
    if "other_level" in table and table["other_level"].notna().any():
        columns.append("other_level")
    levels = _levels(table[columns], levels, pairs.name)
    sign = {levels[0]: -1.0, levels[1]: 1.0}
    signs = np.stack([table[column].map(sign).to_numpy(float) for column in columns], 1)
    in_cell = np.isfinite(signs).all(1)  # the others have no attractor, or another level
    cells = np.array(list(itertools.product((-1.0, 1.0), repeat=len(columns))))
    n_cells = len(cells)
    cell = ((signs > 0) @ (2 ** np.arange(len(columns))[::-1])).astype(int)  # their place in it
    words = twins(pairs)
    # two groups of the same words differ in others, and each is compared with itself
    group = pd.factorize(table["group"], use_na_sentinel=False)[0] if "group" in table else words
    count = np.zeros((group.max(initial=-1) + 1, n_cells), int)
    np.add.at(count, (group[in_cell], cell[in_cell]), 1)
    complete = (count > 0).all(1)
    n_groups, n_incomplete = int(complete.sum()), int((count.any(1) & ~complete).sum())
    used = np.flatnonzero(in_cell & complete[group])
    number = np.cumsum(complete) - 1
    slot = number[group[used]] * n_cells + cell[used]
    rows = used[np.argsort(slot, kind="stable")]
    count = count[complete].ravel()
    starts = np.cumsum(count) - count
    clusters = np.unique(words[rows[starts[::n_cells]]], return_inverse=True)[1]
    if clusters.max(initial=0) < 1:
        raise ValueError(
            f"{n_groups} of {n_groups + n_incomplete} groups of {pairs.name!r} have pairs in all "
            f"{n_cells} cells of {' x '.join(columns)} (levels {levels[0]!r} and {levels[1]!r}). "
            "At least 2 of different words must: a group is the pairs of one number in the "
            "table's column 'group', or else of the same words (pairs.twins). Take whole groups "
            "(pairs.sample keeps them together), and all conditions."
        )
    s, t = cells[:, 0], cells[:, 1]
    contrasts = {"mean": np.ones(n_cells), "subject": s, "attractor": t, "both": s * t}
    if len(columns) == 3:
        contrasts["other"] = cells[:, 2]
    return _Design(
        rows=rows,
        starts=starts,
        count=count,
        clusters=clusters,
        contrasts=np.stack(list(contrasts.values())),
        names=list(contrasts),
        subject=signs[rows, 0],
        levels=levels,
        n_incomplete=n_incomplete,
    )


def _levels(columns: pd.DataFrame, levels: Sequence | None, name: str) -> tuple[Any, Any]:
    """Minus and plus: as asked for, or those of the table."""
    there = [level for level in pd.unique(columns.to_numpy(object).ravel()) if pd.notna(level)]
    if levels is None:
        levels = KNOWN_LEVELS if set(there) == set(KNOWN_LEVELS) else there
    if len(levels) != 2 or levels[0] == levels[1] or not set(levels) <= set(there):
        raise ValueError(
            f"levels={tuple(levels)!r}, and {name!r} has {abridged(there) or 'none'} in "
            f"{', '.join(columns)}: a factorial has two levels. Give two of these, "
            "levels=(minus, plus); pairs of others are left out."
        )
    return tuple(levels)


# ---- what is measured


def _by_checkpoint(values: Any, n_pairs: int, what: str) -> Any:
    """Values as [checkpoints, pairs, features], still as they are stored.

    Raises:
        ValueError: another shape, effects of a metric that does not compare two forms, or effects
            that some of the pairs lack.
    """
    if isinstance(values, Effects):
        metric = values.info.get("metric", "wrong_minus_right")
        if metric in METRICS and metric != "wrong_minus_right":
            raise ValueError(
                f"{what}: these are effects on {metric!r}, and a factorial needs effects on the "
                "difference of the two forms, which can be turned from the right one to the plus "
                "level: take indirect_effects(...) with metric=None."
            )
        counted = values.info.get("n_counted", n_pairs)
        if counted < n_pairs:
            raise ValueError(
                f"{what}: only {counted} of {n_pairs} pairs had a partner to resample from, and "
                "the others' effects are no measurements: take the pairs that have one, or another "
                "baseline."
            )
        values = values.per_pair
    if not isinstance(values, Tensor):
        values = np.asarray(values)
    shape = tuple(values.shape)
    if len(shape) not in (2, 3) or shape[-2] != n_pairs or 0 in shape:
        raise ValueError(
            f"{what} has shape {shape} for {n_pairs} pairs: give [pairs, features] or "
            "[checkpoints, pairs, features], with the pairs that they were measured on. "
            "Logit differences [checkpoints, pairs] go to behaviour_factorial."
        )
    if len(shape) == 3:
        return values
    return values.unsqueeze(0) if isinstance(values, Tensor) else values[None]


def _each(values: Any, what: str) -> Iterator[Float[np.ndarray, "pairs features"]]:
    """One checkpoint after the other, dense and in float64.

    Raises:
        ValueError: a value is not finite.
    """
    for c in range(len(values)):
        each = values[c]
        if isinstance(each, Tensor):
            each = each.detach().cpu().to_dense().double().numpy()
        each = np.asarray(each, np.float64)
        wrong = np.argwhere(~np.isfinite(each))
        if len(wrong):
            pair, feature = wrong[0]
            raise ValueError(
                f"{what}: {len(wrong)} value(s) at checkpoint {c} are NaN or infinite, the first "
                f"at pair {pair}, feature {feature}. Leave that feature out, or that checkpoint."
            )
        yield each


@checked
def factorial_of(
    values: Effects | Float[Tensor, "... pairs features"] | Float[np.ndarray, "... pairs features"],
    pairs: MinimalPairs,
    features: Sequence[int] | None = None,
    kind: str | None = None,
    levels: Sequence | None = None,
    n_draws: int = 1000,
    seed: int = 0,
    null: Any = None,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> Factorial:
    """Subject, attractor or both? The two-way model of every feature at every checkpoint.

    The label of a feature at a checkpoint is the first of these that holds. It was fixed before
    there was any data:

    "none": no coefficient but the mean is known from 0: the bootstrap intervals of all three hold
    it, with 1 - `confidence` shared out among the three (Bonferroni). Or, with a null,
    the strength is not above the 95th percentile of the strengths of its features at that
    checkpoint. Or the strength is below a millionth of the feature's size, which is rounding.
    "subject", "attractor": the factor has more than 2/3 of the variance between cells, so more than
    twice what the others have together.
    "both": the interaction has more than 1/6: the feature compares.
    "mixed": the rest: two main effects that add.

    Where the lines are drawn: of the 16 ways to be on or off in four cells, two are constant, four
    follow one noun alone (its share is 1), two say whether the nouns agree (the interaction has
    all), and eight are on in one cell or in three: a conjunction, which compares too, and has
    1/3, 1/3, 1/3. Two main effects of equal size that add have 1/2, 1/2, 0. So 1/6 is half way
    between adding and comparing. It meets 2/3 where a feature changes by degrees: one that is 1 for
    a plural subject and falls to x where the attractor is plural passes from "both" to "subject" at
    x = 1/3, where both lines lie, and is never "mixed" on the way.

    With two attractors, "attractor" is the nearest noun, and the table says of the further one
    where it stands, in "other_level". A group then has eight cells; the third factor is averaged
    over, its own main effect is `other`, and its interactions are left alone. Strength, shares and
    label are about the two factors.

    Args:
        values: `Effects` of the pairs; or [pairs, features] or [checkpoints, pairs, features],
            dense or sparse: effects, positive where they help the right answer, or activations
            (of a latent at a position, or its largest).
        pairs: those that the values belong to, in the same order; "subject_level" and
            "attractor_level" in their table say where each stands. Pairs with the same number in
            its column "group", or without one those of the same words (`twins`), are compared with
            each other; a group without a pair in each cell is left out, and several in one cell are
            averaged.
        features: which columns of the values; None: all.
        kind: "effects", turned towards the plus level, or "activations", taken as they are. None:
            "effects" for `Effects`; anything else must say.
        levels: (minus, plus), the same for all factors. None: sg and pl, or else the two of the
            table by first appearance.
        n_draws: of groups, for the intervals; the same groups at all checkpoints and features, and
            those of the same words together.
        seed: of the draws.
        null: the same as `values`, of random directions on the same pairs (effects of
            `controls.random_directions(crosscoder)`, say), with as many features as you like. Those
            that are 0 on all pairs do not count.
        names: labels of the checkpoints. None: those of `Effects`, or 0, 1, 2 ...
        confidence: the share of draws inside an interval.

    Returns:
        `Factorial`; its `by_group` takes 32 bytes a checkpoint, group and feature: name the
        features of a large dictionary.

    Raises:
        ValueError: no levels in the table or not two of them, fewer than two groups of different
            words that fill all cells, values that do not fit the pairs or are not finite, effects
            of a metric that does not compare two forms, or a null of other checkpoints.
    """
    if kind is None and not isinstance(values, Effects):
        raise ValueError(
            "values are an array, and effects are turned where activations are not: say "
            "kind='effects' or kind='activations'."
        )
    kind = "effects" if kind is None else kind
    choose("kind", kind, KINDS)
    n_draws = whole_number("n_draws", n_draws)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: take 0 < confidence < 1, such as 0.95.")
    design = _design(pairs, levels)
    stored = _by_checkpoint(values, len(pairs), "values")
    n, _, n_features = stored.shape
    names = _names(values, names, n)
    chosen = np.arange(n_features)
    if features is not None:
        chosen = np.array(check_features(list(features), n_features), int)
    by_group = np.stack(
        [design.coefficients(each[:, chosen], kind) for each in _each(stored, "values")]
    )
    threshold = None if null is None else _threshold(null, pairs, design, kind, names)

    tail = (1 - confidence) / 2
    ends = [tail, 1 - tail, tail / len(FACTORS), 1 - tail / len(FACTORS)]
    low, high, surely_low, surely_high = _intervals(by_group, design.clusters, n_draws, seed, ends)
    mean = by_group.mean(2)
    stderr = _stderr(by_group, design.clusters)
    known = ((surely_low > 0) | (surely_high < 0))[:, 1:4].any(1)

    def named(array: Float[np.ndarray, "n coefficients features"]) -> dict[str, PER_FEATURE]:
        return {name: array[:, k] for k, name in enumerate(design.names)}

    coefficients = named(mean)
    return Factorial(
        **{"other": None, **coefficients},
        stderr=named(stderr),
        lower=named(low),
        upper=named(high),
        label=_labels(coefficients, named(stderr), known, threshold),
        threshold=threshold,
        by_group=by_group,
        clusters=design.clusters,
        features=chosen,
        names=names,
        levels=design.levels,
        kind=kind,
        n_incomplete=design.n_incomplete,
    )


def _names(values: Any, names: Sequence[str] | None, n: int) -> list[str]:
    if names is None:
        names = values.names if isinstance(values, Effects) else range(n)
    if len(names) != n:
        raise ValueError(f"{len(names)} names for {n} checkpoints: give one each.")
    return [str(name) for name in names]


def _threshold(
    null: Any, pairs: MinimalPairs, design: _Design, kind: str, names: list[str]
) -> Float[np.ndarray, " checkpoints"]:
    """The strength that features of the null seldom exceed, at each checkpoint."""
    stored = _by_checkpoint(null, len(pairs), "null")
    if len(stored) != len(names):
        raise ValueError(
            f"null has {len(stored)} checkpoints and the values have {len(names)}: measure the "
            "random directions at the same ones."
        )
    threshold = []
    for name, each in zip(names, _each(stored, "null"), strict=True):
        active = each[:, each[design.rows].any(0)]
        if not active.shape[1]:
            raise ValueError(
                f"null is 0 everywhere at {name}: take random directions that are active on these "
                "pairs, or null=None."
            )
        mean = design.coefficients(active, kind).mean(1)
        threshold.append(np.quantile(np.sqrt((mean[1:4] ** 2).sum(0)), OF_NULL))
    return np.array(threshold)


def _weights(
    times: Float[np.ndarray, "n clusters"], clusters: Int[np.ndarray, " groups"]
) -> Float[np.ndarray, "n groups"]:
    """Weights of the groups in a mean that takes each cluster so many times."""
    weights = times[:, clusters]
    return weights / weights.sum(1, keepdims=True)


def _stderr(
    by_group: Float[np.ndarray, "n coefficients groups features"],
    clusters: Int[np.ndarray, " groups"],
) -> Float[np.ndarray, "n coefficients features"]:
    """`effects.clustered_stderr` of every coefficient."""
    n = clusters.max() + 1
    off = by_group - by_group.mean(2, keepdims=True)
    member = (np.arange(n)[:, None] == clusters).astype(float)
    sums = member @ off  # of each cluster
    return np.sqrt((sums**2).sum(2) * n / (n - 1)) / len(clusters)


def _intervals(
    by_group: Float[np.ndarray, "n coefficients groups features"],
    clusters: Int[np.ndarray, " groups"],
    n_draws: int,
    seed: int,
    ends: Sequence[float],
) -> Float[np.ndarray, "ends n coefficients features"]:
    """Quantiles of the means over groups drawn anew.

    A block of columns at a time, for their draws take room; a column that is 0 in all groups is 0
    in all draws.
    """
    n_clusters = clusters.max() + 1
    even = np.full(n_clusters, 1 / n_clusters)
    times = np.random.default_rng(seed).multinomial(n_clusters, even, n_draws)
    weights = _weights(times, clusters)
    columns = by_group.transpose(0, 1, 3, 2).reshape(-1, len(clusters))
    active = np.flatnonzero(columns.any(1))
    out = np.zeros((len(ends), len(columns)))
    for start in range(0, len(active), BLOCK):
        block = active[start : start + BLOCK]
        out[:, block] = np.quantile(columns[block] @ weights.T, ends, axis=1)
    n, n_coefficients, _, n_features = by_group.shape
    return out.reshape(len(ends), n, n_coefficients, n_features)


def _labels(
    coefficients: dict[str, PER_FEATURE],
    stderr: dict[str, PER_FEATURE],
    known: Shaped[np.ndarray, "n features"],
    threshold: Float[np.ndarray, " n"] | None,
) -> Shaped[np.ndarray, "n features"]:
    """The rule that `factorial_of` tells."""
    share = _shares(coefficients, stderr)
    strength = np.sqrt(sum(coefficients[name] ** 2 for name in FACTORS))
    size = np.hypot(strength, coefficients["mean"])
    none = ~known | (strength <= ROUNDING * size)
    if threshold is not None:
        none |= strength <= threshold[:, None]
    none |= np.isnan(share["subject"])
    rule = {
        "none": none,
        "subject": share["subject"] > MAIN,
        "attractor": share["attractor"] > MAIN,
        "both": share["both"] > COMPARES,
    }
    return np.select(list(rule.values()), list(rule), "mixed").astype(object)


# ---- the model's own behaviour


@checked
def behaviour_factorial(
    differences: Float[Tensor, "checkpoints pairs"] | Sequence[Float[Tensor, " pairs"]],
    pairs: MinimalPairs,
    levels: Sequence | None = None,
    n_draws: int = 1000,
    seed: int = 0,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """What the model itself does: the truth, which needs no dictionary.

    `factorial_of` on logit(plus form) - logit(minus form): a model that agrees with the subject has
    `subject` alone, one that agrees with the last noun `attractor` alone.

    Args:
        differences: logit(right) - logit(wrong) of each pair, `behaviour.logit_differences`, at
            each checkpoint: [checkpoints, pairs], a list of [pairs], or of one checkpoint [pairs].
        pairs, levels, n_draws, seed, names, confidence: as for `factorial_of`.

    Returns:
        One row a checkpoint: checkpoint; mean, subject, attractor, both (and other), in logits,
        each with <it>_low and <it>_high; strength; <factor>_share; label; n_groups.

    Raises:
        ValueError: as `factorial_of`.
    """
    if not isinstance(differences, Tensor | np.ndarray):
        each = [torch.as_tensor(of_one) for of_one in differences]
        sizes = sorted({tuple(of_one.shape) for of_one in each})
        if len(sizes) != 1:
            raise ValueError(
                f"The differences have shapes {sizes}: give those of every checkpoint on the same "
                f"{len(pairs)} pairs."
            )
        differences = torch.stack(each)
    values = differences[None] if differences.ndim == 1 else differences
    if values.ndim != 2 or values.shape[1] != len(pairs):
        raise ValueError(
            f"differences has shape {tuple(differences.shape)} for {len(pairs)} pairs: give "
            "logit(right) - logit(wrong) as [checkpoints, pairs]."
        )
    found = factorial_of(
        values[..., None],
        pairs,
        kind="effects",
        levels=levels,
        n_draws=n_draws,
        seed=seed,
        names=names,
        confidence=confidence,
    )
    return found.to_frame().drop(columns="feature").assign(n_groups=found.n_groups)


# ---- all features together


@checked
def shares_of_effect(
    found: Factorial,
    labels: Sequence[str] | Shaped[np.ndarray, "checkpoints features"] | None = None,
    n_draws: int = 1000,
    seed: int = 0,
    crossfit: bool = True,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """How much of the effect is about the subject, about the attractor, or compares the two.

    Two answers. One needs no labels: the sum over features of |subject|, of |attractor| and of
    |both|. The other says through which features the effect goes: the sum of the strengths of those
    of each label, as a share of the sum over all features.

    A sum of absolute values grows with the noise in each. So the groups are split into halves: one
    gives the sign, the other the size, and the reverse, with a mean over 100 splits. Noise then
    adds up to 0, for its sign in one half says nothing about the other. The strength is
    cross-fitted likewise, with the direction of (subject, attractor, both) in place of the sign.

    Where a feature is weak its sign may be wrong, and its part is too small: of coefficients that
    are 1, 2 or 3 standard errors from 0, 0.5, 0.8 and 0.96 are found, and no interval knows what is
    missing. With crossfit=False it is 1.2, 1.0 and 1.0, and all of the noise. So the two are a
    lower and an upper bound; where they differ, take more groups.

    The intervals come from drawing groups anew within each half, with another split in each draw.
    Draws have the noise twice, and so more wrong signs than the estimate; they are moved to have
    their mean where the estimate is.

    Args:
        found: of effects.
        labels: one of `LABELS` for each feature, or [checkpoints, features]: from other pairs,
            perhaps, for a label and a size from the same pairs favour each other. None: those of
            `found`. They stay as they are in all draws.
        n_draws: for the intervals.
        seed: of splits and draws.
        crossfit: False takes the plain sums of absolute values.
        confidence: the share of draws inside an interval.

    Returns:
        One row a checkpoint: checkpoint, n_groups; subject, attractor and both, the sums in the
        unit of the effects; <factor>_share, of the three; strength, the sum of strengths over all
        features; through_<label>, the share of it that features of that label have. All but the
        first two with <it>_low and <it>_high. A sum below 0 counts as 0 in a share. Where more than
        a fortieth of the draws have nothing at all to share, shares are NaN: parts of noise.

    Raises:
        ValueError: a factorial of activations, labels that are unknown or of another shape, or
            fewer than four groups of different words to be split.
    """
    if found.kind != "effects":
        raise ValueError(
            "These are activations, whose sizes differ from latent to latent for no reason: shares "
            "are of effects, factorial_of(effects, pairs)."
        )
    n_clusters = found.clusters.max() + 1
    if crossfit and n_clusters < 4:
        raise ValueError(
            f"{n_clusters} groups of different words cannot be split into halves that can be drawn "
            "anew: take 4 or more, or crossfit=False."
        )
    labels = _check_labels(found.label if labels is None else labels, found)
    rng = np.random.default_rng(seed)
    splits = _halves(found.clusters, N_SPLITS if crossfit else 1, rng, crossfit, anew=False)
    draws = _halves(found.clusters, whole_number("n_draws", n_draws), rng, crossfit, anew=True)
    k = len(FACTORS)
    rows = []
    for c, name in enumerate(found.names):
        member = np.stack([labels[c] == label for label in LABELS]).astype(float)
        point = _sums(found.by_group[c, 1:4], member, *splits).mean(0)
        drawn = _sums(found.by_group[c, 1:4], member, *draws)
        drawn += point - drawn.mean(0)
        by_factor, by_label = (point[:k], drawn[:, :k]), (point[k:], drawn[:, k:])
        strength = tuple(each.sum(-1, keepdims=True) for each in by_label)
        row = {"checkpoint": name, "n_groups": found.n_groups}
        row |= _columns(FACTORS, *by_factor, confidence)
        row |= _columns([f"{factor}_share" for factor in FACTORS], *_parts(*by_factor), confidence)
        row |= _columns(["strength"], *strength, confidence)
        row |= _columns([f"through_{label}" for label in LABELS], *_parts(*by_label), confidence)
        rows.append(row)
    return pd.DataFrame(rows)


def _check_labels(labels: Any, found: Factorial) -> Shaped[np.ndarray, "checkpoints features"]:
    given = np.asarray(labels, object)
    shape = found.label.shape
    if given.shape not in (shape, shape[1:]):
        raise ValueError(
            f"labels has shape {given.shape}: give one for each of the {shape[1]} features, or "
            f"[checkpoints, features], {shape}."
        )
    for label in dict.fromkeys(given.ravel()):
        choose("label", label, LABELS)
    return np.broadcast_to(given, shape)


def _halves(
    clusters: Int[np.ndarray, " groups"],
    n: int,
    rng: np.random.Generator,
    crossfit: bool,
    anew: bool,
) -> tuple[Float[np.ndarray, "n groups"], Float[np.ndarray, "n groups"]]:
    """Weights of the groups in two means that share no words, `n` times; drawn anew within each.

    Without cross-fitting both are the same mean, over all groups.
    """
    n_clusters = clusters.max() + 1
    in_first = np.tile(np.arange(n_clusters) < n_clusters // 2, (n, 1))
    in_first = rng.permuted(in_first, axis=1) if crossfit else np.ones_like(in_first)
    weights = []
    for half in (in_first, ~in_first)[: 1 + crossfit]:
        size = half.sum(1)
        times = rng.multinomial(size, half / size[:, None]) if anew else half.astype(float)
        weights.append(_weights(times, clusters))
    return weights[0], weights[-1]


def _sums(
    by_group: Float[np.ndarray, "factors groups features"],
    member: Float[np.ndarray, "labels features"],
    first: Float[np.ndarray, "n groups"],
    second: Float[np.ndarray, "n groups"],
) -> Float[np.ndarray, "n sums"]:
    """Sums over features of |coefficient| by factor, then of the strength by label."""
    active = np.flatnonzero(by_group.any((0, 1)))
    by_factor = np.zeros((len(first), len(by_group)))
    by_label = np.zeros((len(first), len(member)))
    for start in range(0, len(active), BLOCK):
        block = active[start : start + BLOCK]
        a, b = first @ by_group[:, :, block], second @ by_group[:, :, block]
        by_factor += (np.sign(a) * b + np.sign(b) * a).sum(2).T / 2
        along = (a * b).sum(0)
        strength = np.zeros_like(along)
        for one in (a, b):
            length = np.sqrt((one**2).sum(0))
            strength += np.divide(along, 2 * length, out=np.zeros_like(along), where=length > 0)
        by_label += strength @ member[:, block].T
    return np.hstack([by_factor, by_label])


def _parts(
    point: Float[np.ndarray, " parts"], drawn: Float[np.ndarray, "draws parts"]
) -> tuple[Float[np.ndarray, " parts"], Float[np.ndarray, "draws parts"]]:
    """What each is of all, in the estimate and in each draw; NaN where all is hardly above 0."""
    if (drawn.sum(1) <= 0).mean() > SELDOM:
        return np.full_like(point, np.nan), np.full_like(drawn, np.nan)
    shares = []
    for sums in (point, drawn):
        sums = np.maximum(sums, 0)
        total = sums.sum(-1, keepdims=True)
        shares.append(sums / np.where(total > 0, total, np.nan))
    return shares[0], shares[1]


def _columns(
    names: Sequence[str],
    point: Float[np.ndarray, " columns"],
    drawn: Float[np.ndarray, "draws columns"],
    confidence: float,
) -> dict[str, float]:
    """Each estimate, beside the ends of its interval."""
    low, high = interval(drawn, confidence)
    columns = {}
    for i, name in enumerate(names):
        columns |= {name: point[i], f"{name}_low": low[i], f"{name}_high": high[i]}
    return columns
