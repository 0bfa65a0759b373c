"""How far to trust effects, RelIE and classes: the bootstrap over sentences, on arrays.

Sentences are drawn anew, with replacement, and every number is taken again: its spread over the
draws says how much hangs on which sentences there were. All checkpoints read the same sentences in
a draw, so what they share cancels.

RelIE needs this most. It is made of absolute values, and noise has one too: where the effects are
near zero, RelIE is pulled towards equal shares, and its draws even more so, having the noise twice.
A weak latent's ratio may look like a finding and be none; its interval is wide then, and its class
undecided.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ctt_helpers.metrics import LABELS, PER_LATENT, check_ratios, members, places, rel_ie

DRAWS = Float[np.ndarray, "draws checkpoints latents"]

# ---- draws


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
    (n, n_pairs, n_latents), (checkpoint, pair, latent), value = _entries(effects)
    labels = np.arange(n_pairs) if clusters is None else np.asarray(clusters)
    if labels.shape != (n_pairs,):
        raise ValueError(
            f"clusters has shape {labels.shape}; it must hold one label for each of the {n_pairs} "
            "pairs."
        )
    _, group, size = np.unique(labels, return_inverse=True, return_counts=True)
    n_groups = len(size)
    if n_groups < 2 or n_draws < 1:
        raise ValueError(
            f"n_draws={n_draws} from {n_groups} pair(s) or cluster(s): take at least 1 draw, and "
            "at least 2 of them, for the spread of a single one cannot be known."
        )
    active, column = np.unique(latent, return_inverse=True)  # few of a large dictionary
    even = np.full(n_groups, 1 / n_groups)
    times = np.random.default_rng(seed).multinomial(n_groups, even, n_draws)
    weight = times / (times @ size)[:, None]
    draws = np.zeros((n_draws, n, n_latents), np.float32)
    for c in range(n):
        here = checkpoint == c
        summed = np.zeros((n_groups, len(active)))
        np.add.at(summed, (group[pair[here]], column[here]), value[here])
        draws[:, c, active] = weight @ summed
    return draws


def _entries(
    effects: Any,
) -> tuple[tuple[int, int, int], Int[np.ndarray, "3 entries"], Float[np.ndarray, " entries"]]:
    """Shape, indices and values of effects by pair."""
    per_pair = getattr(effects, "per_pair", effects)
    if len(per_pair.shape) != 3:
        raise ValueError(
            f"Effects of shape {tuple(per_pair.shape)}: give them by pair, [checkpoints, pairs, "
            "latents]."
        )
    if isinstance(per_pair, np.ndarray):
        where = np.stack(np.nonzero(per_pair))
        return per_pair.shape, where, per_pair[tuple(where)].astype(np.float64)
    sparse = (per_pair if per_pair.is_sparse else per_pair.to_sparse()).coalesce()
    value = sparse.values().cpu().double().numpy()
    return tuple(sparse.shape), sparse.indices().cpu().numpy(), value


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
    ends = [(1 - level) / 2, (1 + level) / 2]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "All-NaN slice"
        )  # a latent that is inactive in every draw
        low, high = np.nanquantile(draws, ends, axis=0)
    return low, high


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
    if np.ndim(draws) != 3:
        raise ValueError(
            f"draws has shape {np.shape(draws)}; it must be [draws, checkpoints, latents]."
        )
    totals = [total] * len(draws) if np.ndim(total) < 2 else total
    each = [
        rel_ie(draw, inactive_below, of_draw).astype(np.float32)
        for draw, of_draw in zip(draws, totals, strict=True)
    ]
    return np.stack(each)


# ---- what the draws agree on


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
    return own, share[own, np.arange(len(own))]
