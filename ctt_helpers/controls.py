"""Controls: other latents in place of a group, and other directions in place of a dictionary's."""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float

from ctt_helpers.crosscoder import Crosscoder


def control_groups(
    group: Iterable[int],
    eligible: Iterable[int],
    n_groups: int = 5,
    seed: int = 0,
    size: Float[np.ndarray, " latents"] | None = None,
    among: int = 5,
) -> list[list[int]]:
    """Groups of other latents, as many as `group` has: what would removing any others do?

    Args:
        group: the latents to be compared with.
        eligible: latents to draw from, without those of the group; for a fair control those active on the task.
        n_groups: how many groups.
        seed: of the draws.
        size: a number above 0 for each latent, for instance how much it writes where the answer is read (mean
            activation times decoder norm). Each member is replaced by one of the `among` latents closest in log size
            that the control group does not hold yet. None: any eligible latent.
        among: how many to choose from; fewer match better, more differ more.

    Returns:
        `n_groups` lists, in the order of the group, each without repeats.

    Raises:
        ValueError: fewer latents to draw from than the group has, a size that is not above 0, or counts below 1.
    """
    group = list(dict.fromkeys(map(int, group)))
    pool = np.array(sorted({*map(int, eligible)} - {*group}), int)
    if len(pool) < len(group):
        told = f"{len(pool)} eligible latents outside the group cannot replace its {len(group)}"
        raise ValueError(f"{told}: take a smaller group, or more eligible latents.")
    if n_groups < 1 or among < 1:
        raise ValueError(f"n_groups={n_groups}, among={among}: both must be at least 1.")
    rng = np.random.default_rng(seed)
    if size is None:
        return [rng.choice(pool, len(group), replace=False).tolist() for _ in range(n_groups)]
    size = np.asarray(size, float)
    if not (size[[*group, *pool]] > 0).all() or not np.isfinite(size[[*group, *pool]]).all():
        raise ValueError("A size is not a number above 0: leave latents of size 0 out of `eligible`, or add a little.")
    away = np.abs(np.log(size[pool]) - np.log(size[group])[:, None])
    groups = []
    for _ in range(n_groups):
        left, chosen = np.ones(len(pool), bool), {}
        for member in rng.permutation(len(group)):  # no member always chooses first
            nearest = np.argsort(np.where(left, away[member], np.inf), kind="stable")
            pick = rng.choice(nearest[: min(among, left.sum())])
            left[pick], chosen[member] = False, int(pool[pick])
        groups.append([chosen[member] for member in range(len(group))])
    return groups


@torch.no_grad()
def random_directions(crosscoder: Crosscoder, seed: int = 0) -> Crosscoder:
    """A copy whose latents write in random directions: features of the same norm and frequency, without meaning.

    Each latent's decoder vectors are turned together, so their norms and the angles between checkpoints stay, and f
    is the same on every input. Only effects are meant to be taken of it: it reconstructs nothing.

    Args:
        crosscoder: any; it is left as it is.
        seed: of the rotations.
    """
    other = copy.deepcopy(crosscoder).requires_grad_(False)
    vectors = crosscoder.W_dec.detach().cpu().double().mT  # [latents, d_model, checkpoints]
    inner = torch.linalg.qr(vectors)[1]  # the vectors in a basis of their own
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*vectors.shape[:2], inner.shape[1], generator=draw, dtype=torch.float64)
    basis, turned = torch.linalg.qr(drawn)
    basis *= turned.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # else not uniform over directions
    other.W_dec.copy_((basis @ inner).mT)
    return other
