"""Latent scaling: which latents that look specific to a checkpoint are artefacts.

And what the check is worth.
"""

import copy
import time
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
from experiments.context import INACTIVE, SPECIFIC, Context, short

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
        f"One row for each ratio and checkpoint: the latents specific to it (above {SPECIFIC}) by "
        f"verdict of latent scaling. {_VERDICTS}. Medians are of the largest value at the other "
        "checkpoints."
    ),
    "scaling_latents": (
        "One row for each latent that is specific by RelDec: its checkpoint and ratio there; what "
        "it writes (written), nu_error and nu_reconstruction, each the largest at the other "
        "checkpoints; the verdict."
    ),
    "scaling_null": (
        "What the check is worth: one row for all latents specific by RelDec, and one for each "
        "verdict. The same figures along their own direction, and along that of another latent "
        f"drawn at random (mean of {SHUFFLES} draws). missed: nu_error without what the latent "
        f"itself writes; with a twin: another latent has a cosine above {TWIN} to it in "
        "activations over the text and, at another checkpoint, in direction."
    ),
    "scaling_causal": (
        "One row for each task and verdict: RelIE again, with what was missed of each latent "
        "removed along with it. How many of the latents specific by RelIE stay so, and their mean "
        "RelIE before and after."
    ),
    "scaling_seconds": (
        "One row for each part of the work: seconds it took on so many tokens. Latent scaling "
        "takes one pass over activations that are there; evaluate() reads the text itself."
    ),
}

Batches = list[Float[Tensor, "tokens checkpoints d_model"]]


def run(context: Context) -> dict[str, pd.DataFrame]:
    crosscoder, ckpts, names = context.crosscoder, context.ckpts, context.names
    text = context.validation_text(TOKENS)
    stopwatch = Stopwatch()
    batches = read(ckpts, text)
    stopwatch.lap("activations")
    with torch.no_grad():
        for x in batches:
            crosscoder(x)
    stopwatch.lap("encode and decode")
    scaling = latent_scaling(crosscoder, batches)
    stopwatch.lap("latent scaling")
    ctt.evaluate(crosscoder, ckpts, text)
    stopwatch.lap("evaluate() from text")

    never_active = np.isnan(scaling.beta_error[0])
    ratios = {"RelDec": ctt.rel_dec(crosscoder.decoder_norms(), never_active)}
    for task in context.tasks:
        effects = context.effects(task, "find")
        ratios[f"RelIE, {short(task)}"] = ctt.rel_ie(effects.mean, INACTIVE)
    tables = {name: artefacts(r, scaling, names, SPECIFIC) for name, r in ratios.items()}
    counts = [counts_of(name, table, names) for name, table in tables.items()]
    return {
        "scaling": pd.concat(counts, ignore_index=True),
        "scaling_latents": tables["RelDec"],
        "scaling_null": shuffled(context, scaling, batches, tables["RelDec"]),
        "scaling_causal": corrected(context, scaling),
        "scaling_seconds": pd.DataFrame(stopwatch.laps).assign(tokens=scaling.n_tokens),
    }


class Stopwatch:
    """Seconds of one part of the work after another."""

    def __init__(self):
        self.laps = []
        self.begin = time.perf_counter()

    def lap(self, part: str) -> None:
        """The time since the last part ended belongs to this one."""
        now = time.perf_counter()
        self.laps.append({"part": part, "seconds": now - self.begin})
        self.begin = now


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
    context: Context, scaling: LatentScaling, batches: Batches, table: pd.DataFrame
) -> pd.DataFrame:
    """The same nu of latents that are specific by RelDec, along the direction of another latent."""
    crosscoder = context.crosscoder
    table = table[table["verdict"] != "undefined"]
    specific = table["feature"].to_numpy().copy()
    n_latents = scaling.nu_error.shape[1]
    sums = sums_over(crosscoder, batches, specific)
    W_dec = crosscoder.W_dec.detach().cpu().double()
    rng = np.random.default_rng(context.seed)
    own = [nu_elsewhere(specific, specific, sums, scaling, W_dec)]
    other = []
    for _ in range(SHUFFLES):
        drawn = rng.permutation(n_latents)[: len(specific)]
        other.append(nu_elsewhere(drawn, specific, sums, scaling, W_dec))
    twin = has_twin(specific, sums, scaling, W_dec)
    bounds = {"missed": MAX_ERROR, "nu_reconstruction": MAX_RECONSTRUCTION}
    rows = []
    for verdict in ("all", *VERDICTS[:-1]):
        kept = (table["verdict"] == verdict).to_numpy() | (verdict == "all")
        if not kept.any():
            continue
        row = {"verdict": verdict, "latents": kept.sum(), "with a twin": int(twin[kept].sum())}
        for kind, draws in (("own", own), ("other", other)):
            for figure, bound in bounds.items():
                nu = np.stack([draw[figure][kept] for draw in draws])  # [draws, latents]
                row[f"median {figure}, {kind}"] = np.median(nu, axis=1).mean()
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
    nu = {
        "missed": missed / torch.from_numpy(scaling.beta_error[at, specific]),
        "nu_reconstruction": rebuilt / rebuilt[at, range(len(specific))],
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


# ---- effects with what was missed


@torch.no_grad()
def lengthened(crosscoder: ctt.Crosscoder, scaling: LatentScaling) -> ctt.Crosscoder:
    """A copy that also writes, along each latent's longest vector, what latent scaling misses.

    f is the same.
    """
    other = copy.deepcopy(crosscoder).requires_grad_(False)
    # the threshold goes by the norms that it was found with
    other.scaled_norms = crosscoder.decoder_norms().detach().clone()
    missed = np.nan_to_num(scaling.beta_error - scaling.written)
    missed = torch.from_numpy(missed).to(other.W_dec)
    d = crosscoder.W_dec.detach()[range(len(other.W_dec)), scaling.strongest]
    other.W_dec += missed.T[:, :, None] * d[:, None]
    return other


def corrected(context: Context, scaling: LatentScaling) -> pd.DataFrame:
    """Effects of removing each latent with what was missed of it: which specific ones stay so?"""
    longer = lengthened(context.crosscoder, scaling)
    rows = []
    for task in context.tasks[:2]:
        effects = context.effects(task, "find")
        plain = ctt.rel_ie(effects.mean, INACTIVE)
        pairs = context.pairs(task, "find")
        again = ctt.indirect_effects(longer, context.ckpts, pairs)
        after = ctt.rel_ie(again.mean, INACTIVE)
        table = artefacts(plain, scaling, context.names, SPECIFIC)
        for verdict in VERDICTS:
            part = table[table["verdict"] == verdict]
            if part.empty:
                continue
            latents = part["feature"].to_numpy()
            there = [context.names.index(name) for name in part["checkpoint"]]
            rows.append(
                {
                    "task": short(task),
                    "verdict": verdict,
                    "specific by RelIE": len(part),
                    "still specific": int((after[there, latents] > SPECIFIC).sum()),
                    "RelIE there": np.mean(plain[there, latents]),
                    "RelIE there, with what was missed": np.nanmean(after[there, latents]),
                }
            )
    return pd.DataFrame(rows)
