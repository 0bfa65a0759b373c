"""Latent scaling: which latents that look specific to a checkpoint are artefacts.

And what the check is worth: along the direction of another latent, drawn at random, it should find
nothing.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.controls import (
    MAX_ERROR,
    MAX_RECONSTRUCTION,
    LatentScaling,
    artefacts,
    latent_scaling,
)
from experiments.context import INACTIVE, SPECIFIC, Context

TOKENS = 100_000
TWIN = 0.5  # cosine above which two latents do the same, in activations and in direction
SHUFFLES = 20
VERDICTS = ("genuine", "written elsewhere", "shrinkage", "decoupled", "undefined")

_VERDICTS = (
    f"genuine; written elsewhere: the latent itself writes more than {MAX_ERROR} of its length at "
    f"another checkpoint; shrinkage: it does not, but nu_error is above {MAX_ERROR} there; "
    f"decoupled: only nu_reconstruction is, above {MAX_RECONSTRUCTION}; undefined: never active"
)
TABLES = {
    "scaling": (
        f"One row for each ratio and checkpoint: the latents specific to it (above {SPECIFIC}; by "
        f"RelIE on the find half) by verdict of latent scaling. {_VERDICTS}. Medians are of the "
        "largest value at the other checkpoints."
    ),
    "scaling_null": (
        "What the check is worth: one row for each ratio, over the latents specific by it. The "
        "same figures along their own direction, and along that of another latent drawn at random "
        f"(mean of {SHUFFLES} draws). missed: nu_error without what the latent itself writes; with "
        f"a twin: another latent has a cosine above {TWIN} to it in activations over the text and, "
        "at another checkpoint, in direction."
    ),
}

Batches = list[Float[Tensor, "tokens checkpoints d_model"]]


def run(context: Context) -> dict[str, pd.DataFrame]:
    crosscoder, names = context.crosscoder, context.names
    batches = read(context.ckpts, context.validation_text(TOKENS))
    scaling = latent_scaling(crosscoder, batches)
    never_active = np.isnan(scaling.beta_error[0])
    ratios = {"RelDec": ctt.rel_dec(crosscoder.decoder_norms(), never_active)}
    for task in context.tasks:
        effects = context.effects(task, "find")
        ratios[f"RelIE, {task}"] = ctt.rel_ie(effects.mean, INACTIVE)
    tables = {name: artefacts(r, scaling, names, SPECIFIC) for name, r in ratios.items()}
    counts = [counts_of(name, table, names) for name, table in tables.items()]
    return {
        "scaling": pd.concat(counts, ignore_index=True),
        "scaling_null": shuffled(context, scaling, batches, tables),
    }


def read(ckpts: ctt.Checkpoints, text: Int[Tensor, "sequences length"]) -> Batches:
    """Activations of a text, the first token of each sequence left out."""
    batches = []
    for ids in text.split(64):
        x = hooks.stacked_activations(ckpts, ids)[:, 1:].flatten(0, 1)
        batches += x.split(4096)
    return batches


def counts_of(ratio: str, table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Verdicts counted for each checkpoint, from what `artefacts` gave."""
    rows = []
    for name in names:
        part = table[table["checkpoint"] == name]
        row = {"ratio": ratio, "specific to": name, "latents": len(part)}
        for verdict in VERDICTS:
            row[verdict] = int((part["verdict"] == verdict).sum())
        for figure in ("written", "nu_error", "nu_reconstruction"):
            row[f"median {figure}"] = part[figure].median()
        rows.append(row)
    return pd.DataFrame(rows)


# ---- what the check is worth


@dataclass
class Sums:
    """What has to be summed over tokens to measure specific latents along any direction.

    Attributes:
        missed: [specific, n, d_model] sum of f_i (x~ - x^), the activation that is left out.
        rebuilt: [specific, n, d_model] sum of f_i x^.
        together: [specific, latents] sum of f_i f_j.
        square: [latents] sum of f_j^2.
    """

    missed: Float[Tensor, "specific n d_model"]
    rebuilt: Float[Tensor, "specific n d_model"]
    together: Float[Tensor, "specific latents"]
    square: Float[Tensor, " latents"]


@torch.no_grad()
def shuffled(
    context: Context, scaling: LatentScaling, batches: Batches, tables: dict[str, pd.DataFrame]
) -> pd.DataFrame:
    """The same nu of latents that are specific by a ratio, along another latent's direction."""
    known = {
        name: table.loc[table["verdict"] != "undefined", "feature"].to_numpy()
        for name, table in tables.items()
    }
    specific = np.unique(np.concatenate(list(known.values())))
    if not len(specific):
        return pd.DataFrame(columns=["ratio", "latents"])
    n_latents = scaling.nu_error.shape[1]
    sums = sums_over(context.crosscoder, batches, specific)
    W_dec = context.crosscoder.W_dec.detach().cpu().double()
    rng = np.random.default_rng(context.seed)
    own = [nu_elsewhere(specific, specific, sums, scaling, W_dec)]
    other = []
    for _ in range(SHUFFLES):
        drawn = rng.integers(n_latents, size=len(specific))
        other.append(nu_elsewhere(drawn, specific, sums, scaling, W_dec))
    twin = has_twin(specific, sums, scaling, W_dec)
    bounds = {"missed": MAX_ERROR, "nu_reconstruction": MAX_RECONSTRUCTION}
    rows = []
    for name, latents in known.items():
        kept = np.isin(specific, latents)
        if not kept.any():
            continue
        row = {"ratio": name, "latents": int(kept.sum()), "with a twin": int(twin[kept].sum())}
        for kind, draws in (("own", own), ("other", other)):
            for figure, bound in bounds.items():
                nu = np.stack([draw[figure][kept] for draw in draws])  # [draws, latents]
                row[f"median {figure}, {kind}"] = np.nanmedian(nu, axis=1).mean()
                row[f"{figure} > {bound}, {kind}"] = (nu > bound).sum(1).mean()
        rows.append(row)
    return pd.DataFrame(rows)


def sums_over(
    crosscoder: ctt.Crosscoder, batches: Batches, specific: Int[np.ndarray, " specific"]
) -> Sums:
    """One pass over the activations."""
    n, n_latents, d_model = crosscoder.n_checkpoints, crosscoder.n_latents, crosscoder.d_model
    sums = Sums(
        missed=torch.zeros(len(specific), n, d_model, dtype=torch.float64),
        rebuilt=torch.zeros(len(specific), n, d_model, dtype=torch.float64),
        together=torch.zeros(len(specific), n_latents, dtype=torch.float64),
        square=torch.zeros(n_latents, dtype=torch.float64),
    )
    for x in batches:
        f = crosscoder.encode(x)
        reconstruction = crosscoder.decode_scaled(f)
        error = x * crosscoder.scales[:, None] - reconstruction
        own = f[:, specific]
        sums.missed += torch.einsum("ti,tnd->ind", own, error).cpu().double()
        sums.rebuilt += torch.einsum("ti,tnd->ind", own, reconstruction).cpu().double()
        sums.together += (own.T @ f).cpu().double()
        sums.square += f.square().sum(0).cpu().double()
    return sums


def others_of(
    scaling: LatentScaling, specific: Int[np.ndarray, " specific"]
) -> Bool[Tensor, "n specific"]:
    """Which checkpoints are not a latent's strongest."""
    n = len(scaling.nu_error)
    return torch.arange(n)[:, None] != torch.from_numpy(scaling.strongest[specific])


def nu_elsewhere(
    along: Int[np.ndarray, " specific"],
    specific: Int[np.ndarray, " specific"],
    sums: Sums,
    scaling: LatentScaling,
    W_dec: Float[Tensor, "latents n d_model"],
) -> dict[str, Float[np.ndarray, " specific"]]:
    """What was missed, and nu_reconstruction, the largest at the other checkpoints.

    Args:
        along: for each specific latent, the latent whose longest decoder vector is taken.
        specific: the latents themselves.
        sums: over tokens.
        scaling: of the crosscoder.
        W_dec: its decoder, in scaled space.
    """
    d = W_dec[along, scaling.strongest[along]]
    weight = sums.square[specific] * d.square().sum(1)
    missed = torch.einsum("ind,id->ni", sums.missed, d) / weight
    rebuilt = torch.einsum("ind,id->ni", sums.rebuilt, d) / weight
    at = scaling.strongest[specific]
    own = {
        "missed": torch.from_numpy(scaling.beta_error[at, specific]),
        "nu_reconstruction": rebuilt[at, range(len(specific))],
    }
    values = {"missed": missed, "nu_reconstruction": rebuilt}
    nu = {
        figure: values[figure] / torch.where(size > 0, size, torch.nan)
        for figure, size in own.items()
    }
    others = others_of(scaling, specific)
    return {
        figure: torch.where(others, values, -torch.inf).amax(0).numpy()
        for figure, values in nu.items()
    }


def has_twin(
    specific: Int[np.ndarray, " specific"],
    sums: Sums,
    scaling: LatentScaling,
    W_dec: Float[Tensor, "latents n d_model"],
) -> Bool[np.ndarray, " specific"]:
    """Whether another latent is active along with it, and writes the same at another checkpoint."""
    direction = torch.nn.functional.normalize(W_dec, dim=2)
    own = direction[specific, scaling.strongest[specific]]
    aligned = torch.einsum("id,jnd->nij", own, direction) > TWIN
    elsewhere = aligned & others_of(scaling, specific)[..., None]
    sizes = (sums.square[specific, None] * sums.square).sqrt()
    cosine = sums.together / sizes.clamp_min(1e-12)
    twin = elsewhere.any(0) & (cosine > TWIN)
    twin[range(len(specific)), specific] = False
    return twin.any(1).numpy()
