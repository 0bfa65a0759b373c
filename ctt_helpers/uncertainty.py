"""How far to trust effects, RelIE and classes: the bootstrap over sentences, on arrays.

Sentences are drawn anew, with replacement, and every number is taken again: its spread over the
draws says how much hangs on which sentences there were. All checkpoints read the same sentences in
a draw, so what they share cancels.

RelIE needs this most. It is made of absolute values, and noise has one too: where the effects are
near zero, RelIE is pulled towards equal shares, and its draws even more so, having the noise twice.
A weak latent's ratio may look like a finding and be none; its interval is wide then, and its class
undecided.

And where effects are nothing but noise, the draws may agree all the same: noise that is larger at
one checkpoint looks specific to it in nearly every draw. So a class is decided by `decide`, which
asks for effects first, and counts how many latents were asked about.
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped

from ctt_helpers.arguments import checked
from ctt_helpers.metrics import LABELS, PER_LATENT, check_ratios, members, places, rel_ie

DRAWS = Float[np.ndarray, "draws checkpoints latents"]

SPECIFIC, SHARED = 0.7, 0.3  # as `metrics.classify` has them
OF_NULL = 0.95  # quantile of |IE| of random directions that an effect must pass

# ---- draws


@checked
def resample(
    effects: Any, n_draws: int = 1000, seed: int = 0, clusters: Sequence | None = None
) -> DRAWS:
    """The mean effect of each latent at each checkpoint, over sentences drawn anew (Efron).

    Args:
        effects: `Effects`, or what has its `per_pair`: a sparse tensor [checkpoints, pairs,
            latents]; or such a tensor itself, or a numpy array of that shape.
        n_draws: how many draws.
        seed: of the draws.
        clusters: a label for each pair; pairs with the same label are drawn together, for variants
            of one sentence are not independent: `pairs.twins(pairs)`. None: each pair by itself.

    Returns:
        float32 [draws, checkpoints, latents], in the unit of the effects; 4 bytes each, so 200 MB
        for 16,384 latents at three checkpoints.

    Raises:
        ValueError: labels for another number of pairs, fewer than two pairs or clusters, or no
            draws.
    """
    summed, active, size, shape = _by_group(effects, clusters)
    n, n_groups, _ = summed.shape
    if n_groups < 2 or n_draws < 1:
        raise ValueError(
            f"n_draws={n_draws} from {n_groups} pair(s) or cluster(s): take at least 1 draw, and "
            "at least 2 of them, for the spread of a single one cannot be known."
        )
    even = np.full(n_groups, 1 / n_groups)
    times = np.random.default_rng(seed).multinomial(n_groups, even, n_draws)
    weight = times / (times @ size)[:, None]
    draws = np.zeros((n_draws, n, shape[2]), np.float32)
    for c in range(n):
        draws[:, c, active] = weight @ summed[c]
    return draws


def _by_group(
    effects: Any, clusters: Sequence | None
) -> tuple[
    Float[np.ndarray, "checkpoints groups active"],
    Int[np.ndarray, " active"],
    Int[np.ndarray, " groups"],
    tuple[int, int, int],
]:
    """Effects summed over each group, of which latents, the sizes of the groups, and the shape.

    Only latents that have an effect somewhere are there: few of a large dictionary.
    """
    shape, (checkpoint, pair, latent), value = _entries(effects)
    labels = np.arange(shape[1]) if clusters is None else np.asarray(clusters)
    if labels.shape != (shape[1],):
        raise ValueError(
            f"clusters has shape {labels.shape}; it must hold one label for each of the {shape[1]} "
            "pairs."
        )
    _, group, size = np.unique(labels, return_inverse=True, return_counts=True)
    active, column = np.unique(latent, return_inverse=True)
    summed = np.zeros((shape[0], len(size), len(active)))
    np.add.at(summed, (checkpoint, group[pair], column), value)
    return summed, active, size, shape


def _entries(
    effects: Any,
) -> tuple[tuple[int, int, int], Int[np.ndarray, "3 entries"], Float[np.ndarray, " entries"]]:
    """Shape, indices and values of effects by pair."""
    per_pair = getattr(effects, "per_pair", effects)
    shape = tuple(getattr(per_pair, "shape", ()))
    if len(shape) != 3 or 0 in shape[:2]:
        of = f"of shape {shape}" if shape else repr(effects)[:60]
        raise ValueError(
            f"Effects {of}: give them by pair, a tensor or an array [checkpoints, pairs, latents]."
        )
    if isinstance(per_pair, np.ndarray):
        where = np.stack(np.nonzero(per_pair))
        value = per_pair[tuple(where)]
    else:
        sparse = (per_pair if per_pair.is_sparse else per_pair.to_sparse()).coalesce()
        where, value = sparse.indices().cpu().numpy(), sparse.values().cpu().numpy()
    value = value.astype(np.float64)
    if not np.isfinite(value).all():
        raise ValueError(
            f"{(~np.isfinite(value)).sum()} of the effects are NaN or infinite: find out where "
            "they come from first."
        )
    return shape, where, value


@checked
def interval(
    draws: Float[np.ndarray, "draws ..."], level: float = 0.95
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The percentile interval over the draws: `level` of them lie inside. NaN draws are left out.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(
            f"level={level} is the share of draws inside an interval: take 0 < level < 1, such as "
            "0.95."
        )
    if not np.shape(draws) or not len(draws):
        raise ValueError(f"draws has shape {np.shape(draws)}: give at least one draw, first.")
    ends = [(1 - level) / 2, (1 + level) / 2]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "All-NaN slice"
        )  # a latent that is inactive in every draw
        low, high = np.nanquantile(draws, ends, axis=0)
    return low, high


@checked
def rel_ie_draws(
    draws: DRAWS,
    inactive_below: float = 1e-3,
    total: Float[np.ndarray, " checkpoints"] | Float[np.ndarray, "draws checkpoints"] | None = None,
) -> DRAWS:
    """RelIE of each draw: `metrics.rel_ie`, with NaN where a latent is inactive in that draw.

    Args:
        draws: effects, from `resample`.
        inactive_below: as for `metrics.rel_ie`.
        total: for the competence-corrected ratio: one number a checkpoint, or one a draw and
            checkpoint, such as `np.abs(draws).sum(2)`, which takes the uncertainty of the total
            along.
    """
    if np.ndim(draws) != 3 or not len(draws):
        raise ValueError(
            f"draws has shape {np.shape(draws)}; it must be [draws, checkpoints, latents]."
        )
    totals = [total] * len(draws) if np.ndim(total) < 2 else total
    if len(totals) != len(draws):
        raise ValueError(f"total is of {len(totals)} draws, and there are {len(draws)}.")
    each = [
        rel_ie(draw, inactive_below, of_draw).astype(np.float32)
        for draw, of_draw in zip(draws, totals, strict=True)
    ]
    return np.stack(each)


# ---- what the draws agree on


@checked
def classify_draws(
    ratios: DRAWS, names: Sequence[str], level: float = 0.95, point: PER_LATENT | None = None
) -> pd.DataFrame:
    """The classes of `metrics.classify`, with "undecided" where the sentences do not settle one.

    A class is decided if at least `level` of the draws give that very label and the same members.

    Args:
        ratios: RelIE of each draw, from `rel_ie_draws`, at two or three checkpoints.
        names: labels of the checkpoints.
        level: of the decision, and of the intervals.
        point: [checkpoints, latents] RelIE of all the sentences (`rel_ie(effects.mean)`), whose
            class is the candidate. None: the class that most draws give.

    Returns:
        One row a latent: feature; label ("specific", "shared", "other", "inactive" or "undecided");
        candidate, the label in question; members, its checkpoints; probability, the share of draws
        that agree with it; low_<name> and high_<name>, the interval of RelIE at each checkpoint
        over the draws in which the latent is active.

    Raises:
        ValueError: more than three checkpoints (see `trajectory_draws`), draws that are not ratios,
            or a level outside (0, 1).
    """
    ratios = check_ratios(ratios, names, draws=True)
    code = _class_codes(ratios)
    own = None if point is None else _class_codes(check_ratios(point, names)[None])[0]
    classes = _classes(names)
    own, probability = _vote(code, len(classes), own)
    candidate = np.array([label for label, _ in classes], dtype=object)[own]
    table = {
        "feature": np.arange(len(own)),
        "label": np.where(probability >= level, candidate, "undecided"),
        "candidate": candidate,
        "members": [classes[index][1] for index in own],
        "probability": probability,
    }
    for name, low, high in zip(names, *interval(ratios, level), strict=True):
        table[f"low_{name}"] = low
        table[f"high_{name}"] = high
    return pd.DataFrame(table)


@checked
def trajectory_draws(
    ratios: DRAWS, names: Sequence[str], level: float = 0.95, point: PER_LATENT | None = None
) -> pd.DataFrame:
    """`metrics.trajectory` for any number of checkpoints, with the share of draws that agree.

    Args:
        ratios, names, point: as for `classify_draws`.
        level: of the interval of the centre of mass.

    Returns:
        One row a latent: feature; onset, end and peak (missing if inactive), each with
        <it>_probability, the share of draws that give the same; centre_of_mass_low and
        centre_of_mass_high, with checkpoints counted from 0.
    """
    ratios, n = check_ratios(ratios, names, draws=True), len(names)
    known = {} if point is None else _places(check_ratios(point, names)[None])
    table = {"feature": np.arange(ratios.shape[2])}
    for what, code in _places(ratios).items():
        own, probability = _vote(code, n + 1, known[what][0] if known else None)
        table[what] = [[*names, None][index] for index in own]
        table[f"{what}_probability"] = probability
    centre = np.einsum("n,dnh->dh", np.arange(n), ratios)
    table["centre_of_mass_low"], table["centre_of_mass_high"] = interval(centre, level)
    return pd.DataFrame(table)


def _classes(names: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Label and members of each code.

    Bit c of a code stands for membership of checkpoint c; the last code is "inactive".
    """
    classes = []
    for code in range(2 ** len(names)):
        who = tuple(name for c, name in enumerate(names) if code >> c & 1)
        classes.append((LABELS[len(who)], who))
    return [*classes, ("inactive", ())]


def _class_codes(ratios: DRAWS) -> Int[np.ndarray, "draws latents"]:
    belongs, n = members(ratios), ratios.shape[1]
    code = sum(belongs[:, c] * np.uint8(2**c) for c in range(n))
    return np.where(np.isnan(ratios).any(1), np.uint8(2**n), code)


def _places(ratios: DRAWS) -> dict[str, Int[np.ndarray, "draws latents"]]:
    inactive, n = np.isnan(ratios).any(1), ratios.shape[1]
    return {what: np.where(inactive, n, where) for what, where in places(ratios).items()}


def _vote(
    code: Int[np.ndarray, "draws latents"], n_codes: int, own: np.ndarray | None
) -> tuple[Int[np.ndarray, " latents"], Float[np.ndarray, " latents"]]:
    """The code in question of each latent, and the share of draws that give it.

    In question is `own`, or the code of most draws.
    """
    share = np.stack([(code == k).mean(0) for k in range(n_codes)])
    own = share.argmax(0) if own is None else own
    if len(own) != share.shape[1]:
        raise ValueError(f"point has {len(own)} latents, and the draws have {share.shape[1]}.")
    return own, share[own, np.arange(len(own))]


# ---- what the sentences decide, of so many latents


@checked
def decide(
    effects: Any,
    clusters: Sequence | None = None,
    null: Any = None,
    rate: float = 0.05,
    inactive_below: float = 1e-3,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Which classes by RelIE the sentences decide, corrected for how many latents were asked.

    A class is decided where three things hold:

    - beyond: at each of its checkpoints |IE| is above the 95th percentile of random directions
      there (`null`);
    - effect: at each of its checkpoints the sentences show an effect that is not 0;
    - class: they show all inequalities that make the class, such as |IE_c| > 0.7 of the sum.

    The last two are linear in the effects, once these have the signs of the data: t-tests of means
    over groups of pairs. Unlike the share of some bootstrap draws such a test has no smallest
    p-value, which matters among hundreds of latents. All hold where the one with the largest p does
    (Berger 1982). Of the latents that have any effect, as many are decided as keep the expected
    share of false ones at `rate` (Benjamini and Hochberg 1995). Where nothing is there at all, that
    is a chance of `rate` to decide anything.

    Args:
        effects: as for `resample`.
        clusters: as for `resample`: `pairs.twins(pairs)`.
        null: `Effects` of the same pairs for a crosscoder with `controls.random_directions`, or a
            list of such; or [checkpoints] thresholds of |IE|, from `null_threshold`. None: 0.
        rate: of false discoveries.
        inactive_below: as for `metrics.rel_ie`.
        names: labels of the checkpoints; None: those of the effects.

    Returns:
        One row a latent: feature; label, which is candidate or "undecided"; candidate, the class of
        the mean effects ("specific", "shared", "other" or "inactive", which is neither decided nor
        undecided; of more than three checkpoints "peak", where |IE| is largest); members, its
        checkpoints (none for "other", of which the strongest is asked for an effect); beyond_null;
        p_effect and p_class; p, the larger of them; q, the smallest rate at which it would be
        decided. The p of inactive latents is 1.

    Raises:
        ValueError: fewer than two groups or checkpoints, a rate outside (0, 1), or a null of other
            checkpoints.
    """
    if not 0 < rate < 1:
        raise ValueError(
            f"rate={rate} is the share of false discoveries: take 0 < rate < 1, such as 0.05."
        )
    summed, active, size, (n, n_pairs, n_latents) = _by_group(effects, clusters)
    if len(size) < 2 or n < 2:
        raise ValueError(
            f"{len(size)} group(s) of pairs at {n} checkpoint(s): at least two of each are needed."
        )
    mean = np.zeros((n, n_latents))
    mean[:, active] = summed.sum(1) / n_pairs
    candidate, who = _candidates(rel_ie(mean, inactive_below))
    sign = np.where(mean < 0, -1.0, 1.0)
    covariance = _covariance(summed, size) * sign[:, None, active] * sign[None, :, active]

    df = len(size) - 1
    p_class, p_effect = np.ones(n_latents), np.ones(n_latents)
    for column, latent in enumerate(active):
        at = list(who[latent])
        if at:
            strength = np.abs(mean[:, latent])
            own = covariance[:, :, column]
            p_class[latent] = _p_class(candidate[latent], at, strength, own, df)
            spread = np.sqrt(own.diagonal()[at])
            p_effect[latent] = max(
                2 * student_tail(value, error, df)
                for value, error in zip(strength[at], spread, strict=True)
            )
    p = np.maximum(p_class, p_effect)
    q = np.ones(n_latents)
    q[active] = benjamini_hochberg(p[active])

    above = np.abs(mean) > _thresholds(null, n)[:, None]
    beyond = np.array([bool(at) and above[list(at), i].all() for i, at in enumerate(who)])
    decided = (beyond & (q <= rate)) | (candidate == "inactive")
    names = _names(effects, names, n)
    return pd.DataFrame(
        {
            "feature": np.arange(n_latents),
            "label": np.where(decided, candidate, "undecided"),
            "candidate": candidate,
            "members": [
                () if label == "other" else tuple(names[c] for c in at)
                for label, at in zip(candidate, who, strict=True)
            ],
            "beyond_null": beyond,
            "p_effect": p_effect,
            "p_class": p_class,
            "p": p,
            "q": q,
        }
    )


@checked
def null_threshold(null: Any, quantile: float = OF_NULL) -> Float[np.ndarray, " checkpoints"]:
    """The |IE| that random directions seldom exceed, at each checkpoint.

    Over those that have any effect on the task.

    Args:
        null: `Effects` for a crosscoder with `controls.random_directions`, or a list of such; or
            their means, [checkpoints, latents].
        quantile: 0.95 lets one in twenty of them pass.

    Raises:
        ValueError: no effects, or of different checkpoints, or a quantile outside 0 to 1.
    """
    each = null if isinstance(null, list | tuple) else [null]
    means = [e if isinstance(e, np.ndarray) else getattr(e, "mean", None) for e in each]
    shapes = [e.shape if isinstance(e, np.ndarray) else None for e in means]
    if (
        not shapes
        or None in shapes
        or {len(s) for s in shapes} != {2}
        or len({s[0] for s in shapes}) > 1
    ):
        raise ValueError(
            f"null={repr(null)[:60]}: give effects of random directions, or a list of such, at the "
            "same checkpoints; or their means, [checkpoints, latents]."
        )
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile={quantile}: take 0 to 1, such as 0.95.")
    sizes = np.abs(np.concatenate(means, axis=1))
    if not sizes.any() or not np.isfinite(sizes).all():
        raise ValueError(
            "The effects of the null are all 0, or not finite: take random directions that are "
            "active on these pairs."
        )
    return np.quantile(sizes[:, sizes.any(0)], quantile, axis=1)


def benjamini_hochberg(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """The smallest false discovery rate at which each of these tests would be a discovery.

    Benjamini and Hochberg 1995: with the k-th smallest of m, p m / k, or that of a larger p where
    it is smaller. It holds for independent tests, and for those that are positively related.
    """
    order = np.argsort(p)[::-1]  # the largest first
    rank = np.arange(len(p), 0, -1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(np.minimum(1, np.asarray(p)[order] * len(p) / rank))
    return q


def _thresholds(null: Any, n: int) -> Float[np.ndarray, " checkpoints"]:
    """What |IE| must pass at each checkpoint."""
    if null is None:
        return np.zeros(n)
    given = null if isinstance(null, np.ndarray) and null.ndim == 1 else null_threshold(null)
    if given.shape != (n,) or not (given >= 0).all():
        raise ValueError(
            f"null gives thresholds {np.array2string(given, precision=3)} for {n} checkpoints: "
            "take effects of random directions at the same ones."
        )
    return given


def _names(effects: Any, names: Sequence[str] | None, n: int) -> list[str]:
    if names is None:
        names = effects.names if hasattr(effects, "per_pair") else range(n)
    if len(names) != n:
        raise ValueError(f"{len(names)} names for {n} checkpoints: give one each.")
    return [str(name) for name in names]


def _candidates(ratios: PER_LATENT) -> tuple[Shaped[np.ndarray, " latents"], list[tuple[int, ...]]]:
    """The class of each latent, and the checkpoints at which it must have an effect."""
    n = len(ratios)
    inactive = np.isnan(ratios).any(0)
    strongest = np.where(inactive, 0, ratios).argmax(0)
    belongs = members(ratios) if n <= 3 else np.arange(n)[:, None] == strongest
    count = belongs.sum(0)
    label = np.array(LABELS, object)[count] if n <= 3 else np.full(len(inactive), "peak", object)
    label[inactive] = "inactive"
    who = []
    for latent, is_inactive in enumerate(inactive):
        at = np.flatnonzero(belongs[:, latent]).tolist() or [int(strongest[latent])]
        who.append(() if is_inactive else tuple(at))
    return label, who


def _covariance(
    summed: Float[np.ndarray, "checkpoints groups active"], size: Int[np.ndarray, " groups"]
) -> Float[np.ndarray, "checkpoints checkpoints active"]:
    """How the means over pairs vary, and with each other: the sandwich of Liang and Zeger 1986."""
    n_groups, n_pairs = len(size), size.sum()
    off = summed - size[:, None] * (summed.sum(1, keepdims=True) / n_pairs)
    return np.einsum("agl,bgl->abl", off, off) * n_groups / (n_groups - 1) / n_pairs**2


def _claims(label: str, who: list[int], n: int) -> Float[np.ndarray, "claims checkpoints"]:
    """Weights of |IE| whose sums must all be above 0 for a latent to be of this class."""

    def claim(one: int, of_one: float, of_others: float) -> list[float]:
        return [of_one if c == one else of_others for c in range(n)]

    others = [c for c in range(n) if c not in who]
    if label == "peak":
        return np.eye(n)[who * len(others)] - np.eye(n)[others]
    if label == "specific":
        return np.array([claim(who[0], 1 - SPECIFIC, -SPECIFIC)])
    rows = [claim(c, SHARED - 1, SHARED) for c in others]
    if label == "shared":
        rows += [claim(c, 1 - SHARED, -SHARED) for c in who]
    else:
        rows += [claim(who[0], SPECIFIC - 1, SPECIFIC)]
    return np.array(rows)


def _p_class(
    label: str,
    who: list[int],
    strength: Float[np.ndarray, " checkpoints"],
    covariance: Float[np.ndarray, "checkpoints checkpoints"],
    df: int,
) -> float:
    """The p-value that a latent is of this class: that of the weakest claim.

    |IE| that speaks against a claim is tried with both signs. |IE| that speaks for it has the sign
    of the data, which the test of the effect confirms where the latent belongs; elsewhere the sign
    may be chance, and p is doubled for it (Bonferroni).
    """
    n, largest = len(strength), 0.0
    for claim in _claims(label, who, n):
        chosen = sum(claim[c] > 0 for c in range(n) if c not in who)
        for signs in itertools.product(*[(1, -1) if weight < 0 else (1,) for weight in claim]):
            weights = claim * signs
            error = math.sqrt(max(weights @ covariance @ weights, 0.0))
            p = student_tail(weights @ strength, error, df)
            largest = max(largest, min(1.0, 2**chosen * p))
    return largest


def student_tail(value: float, error: float, df: int) -> float:
    """P(T > value / error) of Student's t.

    By the normal deviate of Wallace 1959, which is off by some per cent of p at most.
    """
    if error == 0:
        return 0.0 if value > 0 else 1.0
    t = value / error
    deviate = math.sqrt(df * math.log1p(t * t / df)) * (8 * df + 1) / (8 * df + 3)
    return 0.5 * math.erfc(math.copysign(deviate, t) / math.sqrt(2))
