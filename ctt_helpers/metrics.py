"""RelIE, RelDec and what follows from them: pure functions on arrays [checkpoints, latents].

Checkpoints are in the order of training. A ratio says how a latent's effect (or its decoder norm)
is shared out among the checkpoints. A latent without effect has no such share: its ratios are NaN,
never 0.5.
"""

from collections.abc import Sequence
from numbers import Integral

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from ctt_helpers.arguments import checked

PER_LATENT = Float[np.ndarray, "checkpoints latents"]
LABELS = ("other", "specific", "shared", "shared")  # by how many checkpoints a latent belongs to

# ---- ratios


@checked
def rel_ie(
    ie: PER_LATENT,
    inactive_below: float = 1e-3,
    total: Float[np.ndarray, " checkpoints"] | None = None,
) -> PER_LATENT:
    """RelIE: each checkpoint's share of a latent's absolute effect (Crosscoding Through Time).

    RelIE_c = |IE_c| / sum_j |IE_j|. With two checkpoints, row 1 is the paper's
    |IE_2| / (|IE_1| + |IE_2|).

    This asks at which checkpoint the latent does most, in logits. Logits grow in training, and so
    does what hangs on them: most latents lean to the late side. With `total`, |IE_c| / total_c
    takes the place of |IE_c|: competence-corrected RelIE asks where the latent is the larger part
    of what that checkpoint does for the task at all. A latent that only grows along with the rest
    is then shared. At a checkpoint without the skill the total is small, mostly noise, and the
    correction makes that noise large: read it beside the raw ratio.

    Args:
        ie: [checkpoints, latents] indirect effects, signed or not; a numpy array or a tensor.
        inactive_below: a latent whose summed |IE| is below this share of the sum over all latents
            is inactive. This is judged before the correction, so that both ratios are about the
            same latents. The default was set on planted features (`experiments`; 96 latents): it
            loses none with an effect, and lets through a third of those that nothing reads; 3e-3
            lets through 8 % and loses 1 %. A share of the total means less in a larger dictionary.
        total: [checkpoints] what each checkpoint does in all, above 0, in the units of `ie`:
            `np.abs(ie).sum(1)`, or the absolute value of `Effects.total`. None: no correction.

    Returns:
        [checkpoints, latents] ratios that add up to 1 over the checkpoints; NaN for inactive
        latents.

    Raises:
        ValueError: fewer than two checkpoints, values that are not finite, `inactive_below` outside
            [0, 1), or a total of another shape or not above 0.
    """
    if not 0 <= inactive_below < 1:
        raise ValueError(
            f"inactive_below={inactive_below} is a share of the total effect: take 0 <= value < 1."
        )
    size = np.abs(_per_latent(ie, "ie"))
    summed = size.sum(0)
    inactive = summed < inactive_below * summed.sum()
    if total is not None:
        total = to_numpy(total).astype(np.float64)
        if total.shape != size.shape[:1] or not (np.isfinite(total) & (total > 0)).all():
            raise ValueError(
                f"total is {np.array2string(total, precision=3)}; it must hold one number above 0 "
                f"for each of the {len(size)} checkpoints, such as np.abs(ie).sum(1)."
            )
        size = size / (total / total.max())[:, None]
    return _shares(size, inactive)


@checked
def rel_dec(norms: PER_LATENT, dead: Bool[np.ndarray, " latents"] | None = None) -> PER_LATENT:
    """RelDec: each checkpoint's share of a latent's decoder norm (Crosscoding Through Time).

    Args:
        norms: [checkpoints, latents] decoder norms in scaled space, as
            `Crosscoder.decoder_norms()` gives them.
        dead: [latents] True for latents that are never active (`Report.dead_mask`).

    Returns:
        [checkpoints, latents] ratios that add up to 1 over the checkpoints; NaN for dead latents.

    Raises:
        ValueError: fewer than two checkpoints, negative or not finite norms, or a mask of another
            length.
    """
    norms = _per_latent(norms, "norms")
    if (norms < 0).any():
        raise ValueError("A norm is negative: rel_dec takes decoder norms; for effects use rel_ie.")
    n_latents = norms.shape[1]
    dead = np.zeros(n_latents, bool) if dead is None else to_numpy(dead)
    if dead.dtype != bool or dead.shape != (n_latents,):
        raise ValueError(
            f"dead has dtype {dead.dtype} and shape {dead.shape}; it must be a mask (bool) with "
            f"one entry for each of the {n_latents} latents."
        )
    return _shares(norms, inactive=dead)


@checked
def pairwise(v: PER_LATENT) -> Float[np.ndarray, "checkpoints checkpoints latents"]:
    """P[a, b] = |v_b| / (|v_a| + |v_b|) for each pair of checkpoints (the paper's pairwise RelIE).

    The paper's three numbers for a triplet A, B, C are P[A, B], P[B, C] and P[A, C].

    Args:
        v: [checkpoints, latents] effects, norms, or their ratios; NaN marks inactive latents.

    Returns:
        [n, n, latents]; near 1 where the second checkpoint has it all. P[a, b] + P[b, a] = 1, and
        P[a, a] = 0.5. NaN where both values are 0 and where a value is NaN.

    Raises:
        ValueError: fewer than two checkpoints, or infinite values.
    """
    size = np.abs(_per_latent(v, "v", nan=True))
    first, second = np.broadcast_arrays(size[:, None], size[None, :])
    with np.errstate(invalid="ignore"):
        largest = np.maximum(first, second)  # divided out, so that tiny values do not underflow
        return second / largest / (first / largest + second / largest)


def _per_latent(values, name: str, nan: bool = False) -> PER_LATENT:
    """`values` as float64 [checkpoints >= 2, latents], finite (or NaN where that is allowed)."""
    values = to_numpy(values)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(
            f"{name} has shape {values.shape}; it must be [at least two checkpoints, latents]."
        )
    values = values.astype(np.float64)
    bad = np.isinf(values) if nan else ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{name} holds values that are not finite: find out where they come from before "
            "comparing."
        )
    return values


def _shares(size: PER_LATENT, inactive: Bool[np.ndarray, " latents"]) -> PER_LATENT:
    largest = size.max(0)
    size = size / np.where(
        largest > 0, largest, 1
    )  # so that sums of tiny or huge values stay in range
    summed = np.where(inactive | (largest == 0), np.nan, size.sum(0))
    return size / summed


# ---- classes of two or three checkpoints


@checked
def classify(
    ratios: PER_LATENT, names: Sequence[str], specific: float = 0.7, shared: float = 0.3
) -> pd.DataFrame:
    """Sort latents into those of one checkpoint and those of several (the paper's feature classes).

    Args:
        ratios: [checkpoints, latents] RelIE or RelDec of two or three checkpoints.
        names: labels of the checkpoints.
        specific: a ratio above this makes the latent specific to its checkpoint.
        shared: otherwise, checkpoints with at least this ratio share the latent, if there are two
            of them or more.

    Returns:
        One row a latent: feature, label ("specific", "shared", "other" or "inactive"), members
        (names of the checkpoints that it belongs to; none for the last two).

    Raises:
        ValueError: more than three checkpoints, ratios that do not add up to 1, or thresholds that
            contradict.
    """
    ratios = check_ratios(ratios, names)
    active = ~np.isnan(ratios).any(0)
    rows = []
    for feature, belongs in enumerate(members(ratios, specific, shared).T):
        label = LABELS[belongs.sum()] if active[feature] else "inactive"
        whose = tuple(name for name, member in zip(names, belongs, strict=True) if member)
        rows.append({"feature": feature, "label": label, "members": whose})
    return pd.DataFrame(rows, columns=["feature", "label", "members"])


def members(
    ratios: Float[np.ndarray, "... checkpoints latents"], specific: float = 0.7, shared: float = 0.3
) -> Bool[np.ndarray, "... checkpoints latents"]:
    """The rule of `classify`: which checkpoints a latent belongs to.

    One checkpoint: specific; more: shared; none: other.

    Raises:
        ValueError: more than three checkpoints, or thresholds that contradict.
    """
    n = ratios.shape[-2]
    if n > 3:
        raise ValueError(
            f"These classes say something for two or three checkpoints, and here are {n}: nearly "
            "every latent would be 'other'. Use trajectory(ratios, names), which gives onset, peak "
            "and centre of mass."
        )
    if not (0 < shared <= 0.5 <= specific < 1):
        raise ValueError(
            f"specific={specific}, shared={shared}: take 0 < shared <= 0.5 <= specific < 1."
        )
    alone = ratios > specific
    together = ratios >= shared
    enough = together.sum(-2, keepdims=True) >= 2
    return alone | (together & enough & ~alone.any(-2, keepdims=True))


# ---- any number of checkpoints


@checked
def trajectory(ratios: PER_LATENT, names: Sequence[str]) -> pd.DataFrame:
    """When each latent matters, for any number of checkpoints.

    Args:
        ratios: [checkpoints, latents] RelIE or RelDec.
        names: labels of the checkpoints.

    Returns:
        One row a latent: feature; onset and end, the first and the last checkpoint with at least
        half of the latent's largest ratio; centre_of_mass, sum_c c * ratio_c with checkpoints
        counted from 0; peak, the checkpoint with the largest ratio (the first of equals). Missing
        for inactive latents.

    Raises:
        ValueError: ratios that do not add up to 1, or another number of names than of checkpoints.
    """
    ratios = check_ratios(ratios, names)
    active = ~np.isnan(ratios).any(0)
    table = {"feature": np.arange(ratios.shape[1])}
    for what, where in places(ratios).items():
        table[what] = [names[c] if a else None for c, a in zip(where, active, strict=True)]
    table["centre_of_mass"] = np.arange(len(names)) @ ratios
    return pd.DataFrame(table)[["feature", "onset", "end", "centre_of_mass", "peak"]]


def places(
    ratios: Float[np.ndarray, "... checkpoints latents"],
) -> dict[str, Int[np.ndarray, "... latents"]]:
    """The rules of `trajectory`: onset, end and peak, as indices of checkpoints.

    They mean nothing for inactive latents.
    """
    high = ratios >= 0.5 * ratios.max(-2, keepdims=True)
    last = ratios.shape[-2] - 1
    return {
        "onset": high.argmax(-2),
        "end": last - high[..., ::-1, :].argmax(-2),
        "peak": np.where(np.isnan(ratios), 0, ratios).argmax(-2),
    }


# ---- two dictionaries


@checked
def decoder_similarity(
    first: Float[np.ndarray, "latents_a checkpoints d_model"],
    second: Float[np.ndarray, "latents_b checkpoints d_model"],
) -> Float[np.ndarray, "latents_a latents_b"]:
    """Cosines of decoder vectors (scaled space, `Crosscoder.W_dec`), all checkpoints end to end.

    0 for zero vectors.

    Raises:
        ValueError: other shapes, or decoders of different checkpoints or widths.
    """
    first, second = to_numpy(first), to_numpy(second)
    if first.ndim != 3 or first.shape[1:] != second.shape[1:] or not first.size * second.size:
        raise ValueError(
            f"The decoders are {first.shape} and {second.shape}; both must be [latents, "
            "checkpoints, d_model], of the same checkpoints. Of two models of different seeds, "
            "compare what the latents do: activation_similarity."
        )
    _require_finite(first, second)
    return _cosine(first.reshape(len(first), -1), second.reshape(len(second), -1))


@checked
def activation_similarity(
    first: Float[np.ndarray, "tokens latents_a"], second: Float[np.ndarray, "tokens latents_b"]
) -> Float[np.ndarray, "latents_a latents_b"]:
    """Correlations of activations over the same tokens, for crosscoders of different models.

    0 for dead latents.

    Raises:
        ValueError: other shapes, or different numbers of tokens.
    """
    first, second = to_numpy(first), to_numpy(second)
    sizes = first.size * second.size
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second) or not sizes:
        raise ValueError(
            f"The activations are {first.shape} and {second.shape}; both must be [tokens, latents] "
            "on the same tokens."
        )
    _require_finite(first, second)
    return _cosine((first - first.mean(0)).T, (second - second.mean(0)).T)


@checked
def match_features(
    similarity: Float[np.ndarray, "latents_a latents_b"], at_least: float = 0.0
) -> pd.DataFrame:
    """The most similar latent of another crosscoder, for each latent.

    Args:
        similarity: [latents_a, latents_b], from `decoder_similarity` or `activation_similarity`.
        at_least: a best match that is less similar than this counts as none. A similarity of 0 or
            less never counts.

    Returns:
        One row a latent of the first: feature; match, its best match in the second (<NA> if it has
        none); similarity of the best, whether it counts or not; mutual: it counts, and each is the
        other's best.

    Raises:
        ValueError: similarities that are not a matrix, or not finite.
    """
    similarity = to_numpy(similarity)
    if similarity.ndim != 2 or not similarity.size or not np.isfinite(similarity).all():
        raise ValueError(
            f"similarity has shape {similarity.shape}; it must be [latents_a, latents_b] and "
            "finite."
        )
    feature = np.arange(len(similarity))
    match = similarity.argmax(1)
    best = similarity[feature, match]
    found = (best >= at_least) & (best > 0)
    mutual = found & (similarity.argmax(0)[match] == feature)
    matched = pd.Series(match, dtype="Int64").where(found)
    return pd.DataFrame(
        {"feature": feature, "match": matched, "similarity": best, "mutual": mutual}
    )


def _require_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueError("Values are NaN or infinite: find out where they come from first.")


def _cosine(
    first: Float[np.ndarray, "a k"], second: Float[np.ndarray, "b k"]
) -> Float[np.ndarray, "a b"]:
    def unit(rows):
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)

    return unit(first) @ unit(second).T


# ---- small tools


@checked
def rank_correlation(
    a: Float[np.ndarray, "... items"], b: Float[np.ndarray, "... items"]
) -> float | Float[np.ndarray, "..."]:
    """Spearman's rank correlation along the last axis, equal values sharing their mean rank.

    NaN where one side is constant, where a value is NaN, and for fewer than two items.

    Raises:
        ValueError: different numbers of items.
    """
    a, b = to_numpy(a).astype(np.float64), to_numpy(b).astype(np.float64)
    if not (a.ndim and b.ndim and a.size and b.size):
        raise ValueError("There is nothing to rank: give arrays [..., items].")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"There are {a.shape[-1]} items on one side and {b.shape[-1]} on the other."
        )
    a, b = _centred_ranks(a), _centred_ranks(b)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def _centred_ranks(values: Float[np.ndarray, "... items"]) -> Float[np.ndarray, "... items"]:
    rows = pd.DataFrame(values.reshape(-1, values.shape[-1]))
    ranks = rows.rank(axis=1).to_numpy().reshape(values.shape)
    return ranks - ranks.mean(-1, keepdims=True)


def share_right(differences: Float[np.ndarray, "... pairs"]) -> float | Float[np.ndarray, "..."]:
    """Accuracy from logit(right) - logit(wrong), along the last axis; a tie counts as half.

    NaN where a difference is NaN.
    """
    differences = to_numpy(differences)
    right = (differences > 0) + 0.5 * (differences == 0)
    return np.where(np.isnan(differences), np.nan, right).mean(-1)


def to_numpy(values) -> np.ndarray:
    """A numpy array of a tensor (from any device) or of anything that numpy takes."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def check_features(features: Sequence[int], n_latents: int) -> list[int]:
    """The features as ints; raise ValueError unless all are among the latents."""
    for feature in features:
        if not isinstance(feature, Integral) or isinstance(feature, bool):
            raise ValueError(f"Feature {feature!r} is no whole number: give indices of latents.")
        if not 0 <= feature < n_latents:
            raise ValueError(
                f"There is no feature {feature}: this crosscoder has {n_latents}, 0 to "
                f"{n_latents - 1}."
            )
    return [int(feature) for feature in features]


def check_ratios(
    ratios, names: Sequence[str], draws: bool = False
) -> Float[np.ndarray, "... checkpoints latents"]:
    """Raise ValueError unless `ratios` are shares of these checkpoints.

    [checkpoints, latents], or with `draws` [draws, checkpoints, latents].
    """
    ratios = to_numpy(ratios)
    if ratios.ndim != 2 + draws or ratios.shape[-2] != len(names):
        raise ValueError(
            f"{len(names)} names {list(names)} for ratios of shape {ratios.shape}: give "
            "[checkpoints, latents], or [draws, checkpoints, latents] where draws are asked for, "
            "and one name for each checkpoint."
        )
    missing = np.isnan(ratios)
    wrong = missing.any(-2) != missing.all(-2)
    wrong |= np.abs(ratios.sum(-2) - 1) > 1e-3
    wrong |= (ratios < 0).any(-2)
    if wrong.any():
        *draw, latent = np.argwhere(wrong)[0]
        shown = ratios[*draw, :, latent].round(4).tolist()
        raise ValueError(
            f"The ratios of latent {latent} are {shown}; they must be shares that add up to 1, or "
            "all NaN. Effects and norms go through rel_ie, rel_dec or rel_ie_draws first."
        )
    return ratios
