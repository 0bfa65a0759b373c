"""Latent scaling: is a latent that looks exclusive to one checkpoint really absent at the others?

A decoder norm near zero says that the crosscoder does not write the latent there. Training for sparsity, or a second
latent, can bring that about although the activations hold it. So ask the activations (Minder et al. 2025).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.metrics import PER_LATENT

MAX_ERROR, MAX_RECONSTRUCTION = 0.2, 0.5  # Minder et al. take latents with nu below these for truly exclusive


@dataclass
class LatentScaling:
    """How much of each latent is found at each checkpoint, along d_i, its decoder vector where that is longest.

    Attributes:
        nu_error: [n, latents] what the latent itself writes and what the reconstruction misses, 1 at `strongest`.
            High elsewhere, although the latent hardly writes there: shrinkage, the decoder is too short.
        nu_reconstruction: [n, latents] what all latents together write, 1 at `strongest`. High elsewhere: decoupled,
            others write the same there. But others write along any direction: with many more latents than dimensions
            most directions come out high, so compare with `nu_reconstruction` of shuffled directions before believing
            it (`benchmarks.science`, scaling).
        written: [n, latents] what the latent itself writes, d_i . d_{i,c} / ||d_i||^2: 1 at `strongest`. What nu_error
            has beyond that was missed.
        beta_error, beta_reconstruction: [n, latents] the least-squares factors of which the nu are ratios. beta_error
            above 1 at `strongest`: f is too small there.
        strongest: [latents] the checkpoint with the largest decoder norm.
        n_tokens: tokens it was measured on.

    NaN: nu and beta of latents that were never active; nu of latents whose beta at `strongest` is not above 0.
    """

    nu_error: PER_LATENT
    nu_reconstruction: PER_LATENT
    written: PER_LATENT
    beta_error: PER_LATENT
    beta_reconstruction: PER_LATENT
    strongest: Int[np.ndarray, " latents"]
    n_tokens: int


@torch.no_grad()
def latent_scaling(crosscoder: Crosscoder, batches: Iterable[Float[Tensor, "tokens n d"]]) -> LatentScaling:
    """Latent scaling for any number of checkpoints, in one pass (Minder et al. 2025).

    beta_{i,c} = argmin_b sum_t ||y_c - b f_i d_i||^2 = d_i . (Y_c^T f_i) / (||f_i||^2 ||d_i||^2), in scaled space, with
    d_i the longest decoder vector of latent i and as target y_c either x~_c - x^_c + f_i d_{i,c} (error) or x^_c
    (reconstruction). nu is beta divided by beta at the checkpoint of d_i. Only active latents cost anything.

    From models, without the first tokens; an `ActivationStream` is endless, so cut `stream.batches()` with `islice`:

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
        raise ValueError("This crosscoder is folded: its scaled space is gone. Give the original, before folded().")
    crosscoder.eval()
    W_dec, (n, h) = crosscoder.W_dec, crosscoder.decoder_norms().shape
    strongest = crosscoder.decoder_norms().argmax(0)
    d = W_dec[torch.arange(h, device=W_dec.device), strongest]
    missed, rebuilt = torch.zeros(2, n, h, dtype=torch.float64)  # sums over tokens of f_i (d_i . y_c)
    square, tokens = torch.zeros(h, dtype=torch.float64), 0
    for x in batches:
        f = crosscoder.encode(x)
        recon = crosscoder.decode_scaled(f)
        by_latent = f.T if f.device.type == "mps" else f.T.to_sparse()  # few sparse products on MPS
        for total, y in ((missed, x * crosscoder.scales[:, None] - recon), (rebuilt, recon)):
            product = (by_latent @ y.flatten(1)).unflatten(1, (n, -1))  # Y^T f
            total += torch.einsum("hnd,hd->nh", product, d).cpu().double()  # some devices have no float64
        square += f.square().sum(0).cpu().double()
        tokens += len(x)
    if not tokens:
        raise ValueError("There are no tokens in the batches; an iterator can be run through only once.")
    length, at = d.square().sum(1).cpu().double(), strongest.cpu()[None]
    written = torch.einsum("hnd,hd->nh", W_dec, d).cpu().double() / length
    weight = square * length
    weight = torch.where(weight > 0, weight, torch.nan)
    betas = missed / weight + written, rebuilt / weight
    own = [beta.gather(0, at) for beta in betas]
    nus = [beta / torch.where(b > 0, b, torch.nan) for beta, b in zip(betas, own, strict=True)]
    return LatentScaling(*(a.numpy() for a in (*nus, written, *betas, at[0])), n_tokens=tokens)


def artefacts(ratios: PER_LATENT, scaling: LatentScaling, names: Sequence[str], specific: float = 0.7) -> pd.DataFrame:
    """Latents that look specific to one checkpoint: RelDec or RelIE crossed with latent scaling.

    Args:
        ratios: [n, latents] RelDec or RelIE.
        scaling: of the same crosscoder.
        names: labels of the checkpoints.
        specific: a ratio above this makes the latent specific to its checkpoint.

    Returns:
        One row a specific latent: feature; checkpoint and ratio, where it is specific; written, nu_error and
        nu_reconstruction, each the largest at the other checkpoints; verdict, the first of these that holds:
        "undefined" (never active, or nu is NaN), "written elsewhere" (the latent itself writes there, above
        0.2: not exclusive, but no artefact; a latent may be there and not be used, if `ratios` is RelIE),
        "shrinkage" (nu_error above 0.2), "decoupled" (nu_reconstruction above 0.5), "genuine".

    Raises:
        ValueError: ratios, scaling and names of different sizes.
    """
    ratios = np.asarray(ratios)
    if ratios.shape != scaling.nu_error.shape or len(names) != len(ratios):
        raise ValueError(
            f"ratios are {ratios.shape}, scaling is {scaling.nu_error.shape}, and there are {len(names)} names: give "
            "[checkpoints, latents] twice, of the same crosscoder, and one name a checkpoint."
        )
    c, i = np.nonzero(ratios > specific)
    others = np.arange(len(ratios))[:, None] != c
    names_of = ("written", "nu_error", "nu_reconstruction")
    high = {name: np.where(others, getattr(scaling, name)[:, i], -np.inf).max(0) for name in names_of}
    verdicts = {
        "undefined": np.isnan(high["nu_error"] + high["nu_reconstruction"]),
        "written elsewhere": high["written"] > MAX_ERROR,
        "shrinkage": high["nu_error"] > MAX_ERROR,
        "decoupled": high["nu_reconstruction"] > MAX_RECONSTRUCTION,
    }
    verdict = np.select(list(verdicts.values()), list(verdicts), "genuine")
    table = {"feature": i, "checkpoint": np.array(names, object)[c], "ratio": ratios[c, i], **high, "verdict": verdict}
    return pd.DataFrame(table).sort_values("feature", ignore_index=True)
