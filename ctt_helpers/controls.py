"""Is it real? Other latents in place of a group, other directions in place of a dictionary's,
latents read from one checkpoint alone, and whether a latent that looks exclusive to one checkpoint
is really absent at the others."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ctt_helpers import hooks
from ctt_helpers.arguments import checked
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.dictionary import Dictionary
from ctt_helpers.messages import whole_number
from ctt_helpers.metrics import PER_LATENT

if TYPE_CHECKING:
    from ctt_helpers.sources.checkpoints import Checkpoints

# Minder et al. take latents with nu below these for truly exclusive
MAX_ERROR, MAX_RECONSTRUCTION = 0.2, 0.5

# ---- other latents, other directions


@checked
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
        eligible: latents to draw from, without those of the group; for a fair control those active
            on the task.
        n_groups: how many groups.
        seed: of the draws.
        size: a number above 0 for each latent, for instance how much it writes where the answer is
            read (mean activation times decoder norm). Each member is replaced by one of the `among`
            latents closest in log size that the control group does not hold yet. None: any eligible
            latent.
        among: how many to choose from; fewer match better, more differ more.

    Returns:
        `n_groups` lists, in the order of the group, each without repeats.

    Raises:
        ValueError: fewer latents to draw from than the group has, a size that is not above 0, or
            counts below 1.
    """
    group = list(dict.fromkeys(int(latent) for latent in group))
    pool = np.array(sorted({int(latent) for latent in eligible} - set(group)), int)
    if len(pool) < len(group):
        raise ValueError(
            f"{len(pool)} eligible latents outside the group cannot replace its {len(group)}: take "
            "a smaller group, or more eligible latents."
        )
    n_groups, among = whole_number("n_groups", n_groups), whole_number("among", among)
    rng = np.random.default_rng(seed)
    if size is None:
        return [rng.choice(pool, len(group), replace=False).tolist() for _ in range(n_groups)]
    size = np.asarray(size, float)
    if size.ndim != 1 or min(group, default=0) < 0 or max([*group, *pool], default=-1) >= len(size):
        raise ValueError(
            f"size is {size.shape}, and there are latents up to {max([*group, *pool], default=0)}: "
            "give one number for each latent of the crosscoder."
        )
    used = size[[*group, *pool]]
    if not (np.isfinite(used) & (used > 0)).all():
        raise ValueError(
            "A size is not a number above 0: leave latents of size 0 out of `eligible`, or add a "
            "little."
        )
    distance = np.abs(np.log(size[pool]) - np.log(size[group])[:, None])  # [group, pool]
    groups = []
    for _ in range(n_groups):
        left = np.ones(len(pool), bool)
        chosen = {}
        for member in rng.permutation(len(group)):  # no member always chooses first
            nearest = np.argsort(np.where(left, distance[member], np.inf), kind="stable")
            pick = rng.choice(nearest[: min(among, left.sum())])
            left[pick] = False
            chosen[member] = int(pool[pick])
        groups.append([chosen[member] for member in range(len(group))])
    return groups


@checked
@torch.no_grad()
def random_directions(crosscoder: Crosscoder | Dictionary, seed: int = 0) -> Dictionary:
    """A copy whose latents write in random directions: features of the same norm and frequency.

    Each latent's decoder vectors are turned together, so their norms and the angles between
    checkpoints stay, and f is the same on every input. Only effects are meant to be taken of it: it
    reconstructs nothing.

    Args:
        crosscoder: any; it is left as it is. A module of one's own will do whose decoder is W_dec,
            [latents, checkpoints, d_model].
        seed: of the rotations.
    """
    other = copy.deepcopy(crosscoder).requires_grad_(False)
    vectors = crosscoder.W_dec.detach().cpu().double().mT  # [latents, d_model, checkpoints]
    inner = torch.linalg.qr(vectors)[1]  # the vectors in a basis of their own
    draw = torch.Generator().manual_seed(seed)
    sizes = (*vectors.shape[:2], inner.shape[1])
    basis, turned = torch.linalg.qr(torch.randn(sizes, generator=draw, dtype=torch.float64))
    basis *= turned.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # else not uniform over directions
    other.W_dec.copy_((basis @ inner).mT)
    return other


# ---- latents of one checkpoint alone


@dataclass(frozen=True)
class PredictedOthers:
    """Activations of all checkpoints, predicted from those of one: `read_from` of effects.

    Attributes:
        weight: [n (from), d_model, n (to), d_model], on raw activations.
        bias: [n (from), n (to), d_model].
        explained: [n (from), n (to)] share of the variance of one checkpoint that another predicts,
            on text that was not fitted; 1 on the diagonal.
        source: what it was fitted on.
    """

    weight: Float[Tensor, "n d_model n d_model"]
    bias: Float[Tensor, "n n d_model"]
    explained: Float[np.ndarray, "n n"]
    source: dict[str, Any]

    def __call__(
        self, checkpoint: int, x: Float[Tensor, "tokens d_model"]
    ) -> Float[Tensor, "tokens n d_model"]:
        """Raw activations of all checkpoints from those of one; its own are left as they are."""
        weight = self.weight[checkpoint].to(x)
        predicted = (x @ weight.flatten(1)).unflatten(1, weight.shape[1:])
        predicted += self.bias[checkpoint].to(x)
        predicted[:, checkpoint] = x
        return predicted


@checked
@torch.no_grad()
def predict_others(
    ckpts: Checkpoints, text: Int[Tensor, "sequences length"], ridge: float = 1e-6
) -> PredictedOthers:
    """Predict every checkpoint's activations from each one's, by ridge regression on running text.

    A crosscoder reads f from all checkpoints at once. So a latent may be active because a late
    model sees something, and have an effect at an early one, which does not. With
    `indirect_effects(..., read_from=predict_others(ckpts, text))` f at c is read from x_c alone:
    the crosscoder is given x_c, and in the place of the others what is linearly readable of them in
    x_c. An effect that stays does not need the others; one that goes does, or its latent's
    threshold was missed by a prediction that is too small, as those of a regression are: compare
    `explained`, and the shares in `info["read_from"]`. What c holds without using it stays.

    Args:
        ckpts: the checkpoints.
        text: of which the last fifth of the sequences is kept for `explained`, and the first token
            of each is left out. Some hundred tokens for each dimension are plenty; all of their
            activations are in memory at once.
        ridge: penalty, in units of the mean variance of a dimension.

    Raises:
        ValueError: fewer tokens to be fitted than dimensions, or a penalty that is not above 0.
    """
    if not 0 < ridge < float("inf"):
        raise ValueError(f"ridge={ridge!r} must be above 0: 1e-6 is usual.")
    groups = [(ids, None) for ids in text.split(64)]
    read = hooks.stacked_batches(ckpts, groups)
    x = torch.cat([part[:, 1:].cpu() for part in read])
    for c, label in enumerate(ckpts.labels):
        hooks.check_norms(hooks.norms_not_finite(x[:, :, c]), label)
    x = x.double()
    fitted = len(x) - max(1, len(x) // 5)
    weight, bias = _regression(x[:fitted].flatten(0, 1), ridge)
    return PredictedOthers(
        weight=weight,
        bias=bias,
        explained=_explained(x[fitted:].flatten(0, 1), weight, bias),
        source=ckpts.source,
    )


def _regression(
    x: Float[Tensor, "tokens n d_model"], ridge: float
) -> tuple[Float[Tensor, "n d_model n d_model"], Float[Tensor, "n n d_model"]]:
    """Weights and biases of the ridge regressions of all checkpoints on each."""
    tokens, n, d_model = x.shape
    if tokens <= d_model:
        raise ValueError(
            f"{tokens} tokens to fit {d_model} dimensions on: give more text, some hundred tokens "
            "for each dimension."
        )
    mean = x.mean(0)
    centred = x - mean
    weights, biases = [], []
    for c in range(n):
        own = centred[:, c]
        covariance = own.T @ own / tokens
        penalty = ridge * covariance.diagonal().mean() * torch.eye(d_model).to(x)
        shared = own.T @ centred.flatten(1) / tokens
        weight = torch.linalg.solve(covariance + penalty, shared)
        weights.append(weight.unflatten(1, (n, d_model)))
        biases.append(mean - (mean[c] @ weight).unflatten(0, (n, d_model)))
    return torch.stack(weights), torch.stack(biases)


def _explained(
    x: Float[Tensor, "tokens n d_model"],
    weight: Float[Tensor, "n d_model n d_model"],
    bias: Float[Tensor, "n n d_model"],
) -> Float[np.ndarray, "n n"]:
    """Share of the variance of each checkpoint that each one predicts."""
    variance = (x - x.mean(0)).square().sum((0, 2))
    shares = torch.eye(len(weight), dtype=torch.float64)
    for c in range(len(weight)):
        for other in range(len(weight)):
            if other != c:
                predicted = x[:, c] @ weight[c, :, other] + bias[c, other]
                missed = (x[:, other] - predicted).square().sum()
                shares[c, other] = 1 - missed / variance[other]
    return shares.numpy()


# ---- latent scaling


@dataclass
class LatentScaling:
    """How much of each latent is found at each checkpoint, along d_i, its longest decoder vector.

    Attributes:
        nu_error: [n, latents] what the latent itself writes and what the reconstruction misses, 1
            at `strongest`. High elsewhere, although the latent hardly writes there: shrinkage, the
            decoder is too short.
        nu_reconstruction: [n, latents] what all latents together write, 1 at `strongest`. High
            elsewhere: decoupled, others write the same there. But others write along any direction:
            with many more latents than dimensions most directions come out high, so compare with
            `nu_reconstruction` of shuffled directions before believing it (`experiments`, scaling).
        written: [n, latents] what the latent itself writes, d_i . d_{i,c} / ||d_i||^2: 1 at
            `strongest`. What nu_error has beyond that was missed.
        beta_error, beta_reconstruction: [n, latents] the least-squares factors of which the nu are
            ratios. beta_error above 1 at `strongest`: f is too small there.
        strongest: [latents] the checkpoint with the largest decoder norm.
        n_tokens: tokens it was measured on.

    NaN: nu and beta of latents that were never active; nu of latents whose beta at `strongest` is
    not above 0.
    """

    nu_error: PER_LATENT
    nu_reconstruction: PER_LATENT
    written: PER_LATENT
    beta_error: PER_LATENT
    beta_reconstruction: PER_LATENT
    strongest: Int[np.ndarray, " latents"]
    n_tokens: int


@checked
@torch.no_grad()
def latent_scaling(
    crosscoder: Crosscoder, batches: Iterable[Float[Tensor, "tokens n d"]]
) -> LatentScaling:
    """Latent scaling for any number of checkpoints, in one pass (Minder et al. 2025).

    A decoder norm near zero says that the crosscoder does not write the latent there. Training for
    sparsity, or a second latent, can bring that about although the activations hold it. So ask the
    activations:

    beta_{i,c} = argmin_b sum_t ||y_c - b f_i d_i||^2 = d_i . (Y_c^T f_i) / (||f_i||^2 ||d_i||^2),
    in scaled space, with d_i the longest decoder vector of latent i and as target y_c either
    x~_c - x^_c + f_i d_{i,c} (error) or x^_c (reconstruction). nu is beta divided by beta at the
    checkpoint of d_i. Only active latents cost anything.

    From models, without the first tokens; an `ActivationStream` is endless, so cut
    `stream.batches()` with `islice`:

        batches = (stacked_activations(ckpts, ids)[:, 1:].flatten(0, 1) for ids in text.split(64))
        scaling = latent_scaling(crosscoder, batches)
        artefacts(ctt.rel_dec(crosscoder.decoder_norms()), scaling, ckpts.labels)

    Args:
        crosscoder: used in evaluation mode.
        batches: raw activations; how tokens are split into batches does not matter.

    Raises:
        ValueError: a folded crosscoder, no tokens, or activations that do not fit the crosscoder.
    """
    if crosscoder.scaled_norms is not None:
        raise ValueError(
            "This crosscoder is folded: its scaled space is gone. Give the original, before "
            "folded()."
        )
    crosscoder.eval()
    W_dec, norms = crosscoder.W_dec, crosscoder.decoder_norms()
    n, n_latents = norms.shape
    strongest = norms.argmax(0)
    d = W_dec[torch.arange(n_latents, device=W_dec.device), strongest]
    # sums over tokens of f_i (d_i . y_c), for both targets
    # kept where the activations are; some devices have no float64
    exact = torch.float32 if d.device.type == "mps" else torch.float64
    missed = torch.zeros(n, n_latents, dtype=exact, device=d.device)
    rebuilt = torch.zeros_like(missed)
    square = torch.zeros_like(missed[0])  # sums over tokens of f_i^2
    tokens = 0
    for x in batches:
        if x.ndim != 3:
            raise ValueError(
                f"A batch is {tuple(x.shape)}; it must be [tokens, checkpoints, d_model]. Of one "
                "batch alone give a list, [x]."
            )
        f = crosscoder.encode(x)
        reconstruction = crosscoder.decode_scaled(f)
        error = x * crosscoder.scales[:, None] - reconstruction
        by_latent = f.T if f.device.type == "mps" else f.T.to_sparse()  # few sparse products on MPS
        for total, y in ((missed, error), (rebuilt, reconstruction)):
            product = (by_latent @ y.flatten(1)).unflatten(1, (n, -1))  # Y^T f
            total += torch.einsum("hnd,hd->nh", product, d)
        square += f.square().sum(0)
        tokens += len(x)
    if not tokens:
        raise ValueError(
            "There are no tokens in the batches; an iterator can be run through only once."
        )
    missed, rebuilt, square = (total.cpu().double() for total in (missed, rebuilt, square))
    if not all(total.isfinite().all() for total in (missed, rebuilt, square)):
        raise ValueError(
            "Activations in the batches are not finite, or too large for their dtype: look at the "
            "checkpoints that they come from."
        )
    length = d.square().sum(1).cpu().double()
    written = torch.einsum("hnd,hd->nh", W_dec, d).cpu().double() / length
    weight = square * length
    weight = torch.where(weight > 0, weight, torch.nan)
    beta_error = missed / weight + written
    beta_reconstruction = rebuilt / weight
    at = strongest.cpu()[None]

    def relative(beta: Float[Tensor, "n latents"]) -> Float[np.ndarray, "n latents"]:
        own = beta.gather(0, at)
        return (beta / torch.where(own > 0, own, torch.nan)).numpy()

    return LatentScaling(
        nu_error=relative(beta_error),
        nu_reconstruction=relative(beta_reconstruction),
        written=written.numpy(),
        beta_error=beta_error.numpy(),
        beta_reconstruction=beta_reconstruction.numpy(),
        strongest=at[0].numpy(),
        n_tokens=tokens,
    )


@checked
def artefacts(
    ratios: PER_LATENT, scaling: LatentScaling, names: Sequence[str], specific: float = 0.7
) -> pd.DataFrame:
    """Latents that look specific to one checkpoint: RelDec or RelIE crossed with latent scaling.

    Args:
        ratios: [n, latents] RelDec or RelIE.
        scaling: of the same crosscoder.
        names: labels of the checkpoints.
        specific: a ratio above this makes the latent specific to its checkpoint.

    Returns:
        One row a specific latent: feature; checkpoint and ratio, where it is specific; written,
        nu_error and nu_reconstruction, each the largest at the other checkpoints; verdict, the
        first of these that holds: "undefined" (never active, or nu is NaN), "written elsewhere"
        (the latent itself writes there, above 0.2: not exclusive, but no artefact; a latent may be
        there and not be used, if `ratios` is RelIE), "shrinkage" (nu_error above 0.2), "decoupled"
        (nu_reconstruction above 0.5), "genuine".

    Raises:
        ValueError: ratios, scaling and names of different sizes.
    """
    ratios = np.asarray(ratios)
    if ratios.shape != scaling.nu_error.shape or len(names) != len(ratios):
        raise ValueError(
            f"ratios are {ratios.shape}, scaling is {scaling.nu_error.shape}, and there are "
            f"{len(names)} names: give [checkpoints, latents] twice, of the same crosscoder, and "
            "one name a checkpoint."
        )
    checkpoint, latent = np.nonzero(ratios > specific)
    others = np.arange(len(ratios))[:, None] != checkpoint

    def highest_elsewhere(values: PER_LATENT) -> Float[np.ndarray, " specific"]:
        return np.where(others, values[:, latent], -np.inf).max(0)

    written = highest_elsewhere(scaling.written)
    nu_error = highest_elsewhere(scaling.nu_error)
    nu_reconstruction = highest_elsewhere(scaling.nu_reconstruction)
    verdicts = {
        "undefined": np.isnan(nu_error + nu_reconstruction),
        "written elsewhere": written > MAX_ERROR,
        "shrinkage": nu_error > MAX_ERROR,
        "decoupled": nu_reconstruction > MAX_RECONSTRUCTION,
    }
    table = {
        "feature": latent,
        "checkpoint": np.array(names, object)[checkpoint],
        "ratio": ratios[checkpoint, latent],
        "written": written,
        "nu_error": nu_error,
        "nu_reconstruction": nu_reconstruction,
        "verdict": np.select(list(verdicts.values()), list(verdicts), "genuine"),
    }
    return pd.DataFrame(table).sort_values("feature", ignore_index=True)
