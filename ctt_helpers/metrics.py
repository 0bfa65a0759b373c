"""RelIE, RelDec and what follows from them: pure functions on arrays [checkpoints, latents], in the order of training.

A ratio says how a latent's effect (or its decoder norm) is shared out among the checkpoints. A latent without effect
has no such share: its ratios are NaN, never 0.5.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

PER_LATENT = Float[np.ndarray, "checkpoints latents"]


def rel_ie(ie: PER_LATENT, inactive_below: float = 1e-4) -> PER_LATENT:
    """RelIE: each checkpoint's share of a latent's absolute effect (Crosscoding Through Time, RelIE).

    RelIE_c = |IE_c| / sum_j |IE_j|. With two checkpoints, row 1 is the paper's |IE_2| / (|IE_1| + |IE_2|).

    Args:
        ie: [checkpoints, latents] indirect effects, signed or not; a numpy array or a tensor.
        inactive_below: a latent whose summed |IE| is below this share of the sum over all latents is inactive.

    Returns:
        [checkpoints, latents] ratios that add up to 1 over the checkpoints; NaN for inactive latents.

    Raises:
        ValueError: fewer than two checkpoints, values that are not finite, or `inactive_below` outside [0, 1).
    """
    if not 0 <= inactive_below < 1:
        raise ValueError(f"inactive_below={inactive_below} is a share of the total effect: take 0 <= value < 1.")
    size = np.abs(_per_latent(ie, "ie"))
    summed = size.sum(0)
    return _shares(size, inactive=summed < inactive_below * summed.sum())


def rel_dec(norms: PER_LATENT, dead: Bool[np.ndarray, " latents"] | None = None) -> PER_LATENT:
    """RelDec: each checkpoint's share of a latent's decoder norm (Crosscoding Through Time, RelDec).

    Args:
        norms: [checkpoints, latents] decoder norms in scaled space, as `Crosscoder.decoder_norms()` gives them.
        dead: [latents] True for latents that are never active (`Report.dead_mask`).

    Returns:
        [checkpoints, latents] ratios that add up to 1 over the checkpoints; NaN for dead latents.

    Raises:
        ValueError: fewer than two checkpoints, negative or not finite norms, or a mask of another length.
    """
    norms = _per_latent(norms, "norms")
    if (norms < 0).any():
        raise ValueError("A norm is negative: rel_dec takes decoder norms; for effects use rel_ie.")
    dead = np.zeros(norms.shape[1], bool) if dead is None else _to_numpy(dead)
    if dead.dtype != bool or dead.shape != norms.shape[1:]:
        raise ValueError(
            f"dead has dtype {dead.dtype} and shape {dead.shape}; it must be a mask (bool) with one entry for each of "
            f"the {norms.shape[1]} latents."
        )
    return _shares(norms, inactive=dead)


def pairwise(v: PER_LATENT) -> Float[np.ndarray, "checkpoints checkpoints latents"]:
    """P[a, b] = |v_b| / (|v_a| + |v_b|) for each pair of checkpoints (Crosscoding Through Time, pairwise RelIE).

    The paper's three numbers for a triplet A, B, C are P[A, B], P[B, C] and P[A, C].

    Args:
        v: [checkpoints, latents] effects, norms, or their ratios; NaN marks inactive latents.

    Returns:
        [n, n, latents]; near 1 where the second checkpoint has it all. P[a, b] + P[b, a] = 1, and P[a, a] = 0.5. NaN
        where both values are 0 and where a value is NaN.

    Raises:
        ValueError: fewer than two checkpoints, or infinite values.
    """
    size = np.abs(_per_latent(v, "v", nan=True))
    first, second = np.broadcast_arrays(size[:, None], size[None, :])
    with np.errstate(invalid="ignore"):
        largest = np.maximum(first, second)  # divided out, so that tiny values do not underflow
        return second / largest / (first / largest + second / largest)


def classify(ratios: PER_LATENT, names: Sequence[str], specific: float = 0.7, shared: float = 0.3) -> pd.DataFrame:
    """Sort latents into those of one checkpoint and those of several (Crosscoding Through Time, feature classes).

    Args:
        ratios: [checkpoints, latents] RelIE or RelDec of two or three checkpoints.
        names: labels of the checkpoints.
        specific: a ratio above this makes the latent specific to its checkpoint.
        shared: otherwise, checkpoints with at least this ratio share the latent, if there are two of them or more.

    Returns:
        One row a latent: feature, label ("specific", "shared", "other" or "inactive"), members (names of the
        checkpoints that it belongs to; none for the last two).

    Raises:
        ValueError: more than three checkpoints, ratios that do not add up to 1, or thresholds that contradict.
    """
    ratios = _ratios(ratios, names)
    if len(names) > 3:
        raise ValueError(
            f"These classes say something for two or three checkpoints, and here are {len(names)}: nearly every latent "
            "would be 'other'. Use trajectory(ratios, names), which gives onset, peak and centre of mass."
        )
    if not (0 < shared <= 0.5 <= specific < 1):
        raise ValueError(f"specific={specific}, shared={shared}: take 0 < shared <= 0.5 <= specific < 1.")
    rows = []
    for feature, ratio in enumerate(ratios.T):
        alone, together = ratio > specific, ratio >= shared
        if np.isnan(ratio).any():
            label, members = "inactive", np.zeros(len(names), bool)
        elif alone.any():
            label, members = "specific", alone
        elif together.sum() >= 2:
            label, members = "shared", together
        else:
            label, members = "other", np.zeros(len(names), bool)
        rows.append((feature, label, tuple(n for n, m in zip(names, members, strict=True) if m)))
    return pd.DataFrame(rows, columns=["feature", "label", "members"])


def trajectory(ratios: PER_LATENT, names: Sequence[str]) -> pd.DataFrame:
    """When each latent matters, for any number of checkpoints.

    Args:
        ratios: [checkpoints, latents] RelIE or RelDec.
        names: labels of the checkpoints.

    Returns:
        One row a latent: feature; onset and end, the first and the last checkpoint with at least half of the latent's
        largest ratio; centre_of_mass, sum_c c * ratio_c with checkpoints counted from 0; peak, the checkpoint with the
        largest ratio (the first of equals). Missing for inactive latents.

    Raises:
        ValueError: ratios that do not add up to 1, or another number of names than of checkpoints.
    """
    ratios = _ratios(ratios, names)
    n = len(names)
    active = ~np.isnan(ratios).any(0)
    high = ratios >= 0.5 * ratios.max(0)
    places = {"onset": high.argmax(0), "end": n - 1 - high[::-1].argmax(0)}
    # the peak of a latent without ratios is never looked up
    places["peak"] = np.where(active, ratios, 0).argmax(0)
    named = {k: [names[i] if a else None for i, a in zip(v, active, strict=True)] for k, v in places.items()}
    return pd.DataFrame(
        {
            "feature": np.arange(ratios.shape[1]),
            "onset": named["onset"],
            "end": named["end"],
            "centre_of_mass": np.arange(n) @ ratios,
            "peak": named["peak"],
        }
    )


def _to_numpy(values) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _per_latent(values, name: str, nan: bool = False) -> PER_LATENT:
    """`values` as float64 [checkpoints >= 2, latents], finite (or NaN where that is allowed)."""
    values = _to_numpy(values)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(
            f"{name} has shape {values.shape}; it must be [checkpoints, latents] with at least two checkpoints."
        )
    values = values.astype(np.float64)
    if (np.isinf(values) if nan else ~np.isfinite(values)).any():
        raise ValueError(f"{name} holds values that are not finite: find out where they come from before comparing.")
    return values


def _shares(size: PER_LATENT, inactive: Bool[np.ndarray, " latents"]) -> PER_LATENT:
    largest = size.max(0)
    size = size / np.where(largest > 0, largest, 1)  # so that sums of tiny or huge values stay in range
    summed = np.where(inactive | (largest == 0), np.nan, size.sum(0))
    return size / summed


def _ratios(ratios, names: Sequence[str]) -> PER_LATENT:
    ratios = _per_latent(ratios, "ratios", nan=True)
    if len(names) != len(ratios):
        raise ValueError(f"{len(names)} names {list(names)} for {len(ratios)} checkpoints: give one name each.")
    total = ratios.sum(0)
    wrong = np.isnan(ratios).any(0) != np.isnan(ratios).all(0)
    wrong |= ~np.isnan(total) & ((np.abs(total - 1) > 1e-4) | (ratios < 0).any(0))
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(
            f"The ratios of latent {i} are {ratios[:, i].round(4).tolist()}; they must be shares that add up to 1, or "
            "all NaN. Effects and norms go through rel_ie or rel_dec first."
        )
    return ratios
