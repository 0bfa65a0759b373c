"""Latent scaling: which latents that look specific to a checkpoint are artefacts, and what the check is worth."""

import copy
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

import ctt_helpers as ctt
from benchmarks.report import markdown
from benchmarks.science.context import INACTIVE, Context, short
from ctt_helpers.activations import stacked_activations
from ctt_helpers.scaling import LatentScaling, artefacts, latent_scaling

TOKENS, SPECIFIC, MAX_ERROR, MAX_RECONSTRUCTION, TWIN, SHUFFLES = 100_000, 0.7, 0.2, 0.5, 0.5, 20
VERDICTS = ("genuine", "written elsewhere", "shrinkage", "decoupled", "undefined")


def run(context: Context) -> dict[str, pd.DataFrame]:
    text = context.suite.text(TOKENS, split="validation", seed=context.seed + 1, path=context.text)
    seconds, x = {}, []

    def timed(what: str, function: Callable):
        begin = time.perf_counter()
        out = function()
        seconds[what] = time.perf_counter() - begin
        return out

    for ids in text.split(64):
        x += timed("x", lambda ids=ids: stacked_activations(context.ckpts, ids)[:, 1:].flatten(0, 1)).split(4096)
        seconds["activations"] = seconds.get("activations", 0) + seconds.pop("x")
    timed("encode and decode", lambda: _rebuild(context.crosscoder, x))
    scaling = timed("latent scaling", lambda: latent_scaling(context.crosscoder, x))
    timed("evaluate() from text", lambda: ctt.evaluate(context.crosscoder, context.ckpts, text))
    rel_dec = ctt.rel_dec(context.crosscoder.decoder_norms(), np.isnan(scaling.beta_error[0]))
    ratios = {"RelDec": rel_dec}
    ratios |= {f"RelIE, {short(t)}": ctt.rel_ie(context.effects(t, "find").mean, INACTIVE) for t in context.tasks}
    tables = {name: artefacts(r, scaling, context.names, SPECIFIC) for name, r in ratios.items()}
    return {
        "scaling": pd.concat([_counts(n, t, context.names) for n, t in tables.items()], ignore_index=True),
        "scaling_latents": tables["RelDec"],
        "scaling_null": shuffled(context, scaling, x, tables["RelDec"]),
        "scaling_causal": corrected(context, scaling),
        "scaling_seconds": pd.DataFrame(
            {"part": seconds.keys(), "seconds": seconds.values(), "tokens": scaling.n_tokens}
        ),
    }


@torch.no_grad()
def _rebuild(crosscoder: ctt.Crosscoder, batches: list[torch.Tensor]) -> None:
    for x in batches:
        crosscoder(x)


def _counts(ratio: str, table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    rows = []
    for name in names:
        part = table[table["checkpoint"] == name]
        row = {"ratio": ratio, "specific to": name, "latents": len(part)}
        row |= {v: int((part["verdict"] == v).sum()) for v in VERDICTS}
        rows.append(row | {f"median {k}": part[k].median() for k in ("written", "nu_error", "nu_reconstruction")})
    return pd.DataFrame(rows)


@torch.no_grad()
def shuffled(context: Context, scaling: LatentScaling, batches: list, table: pd.DataFrame) -> pd.DataFrame:
    """The same nu, of latents that are specific by RelDec, along the direction of another latent; mean of `SHUFFLES`.

    Missed: nu_error without what the latent itself writes. Twin: another latent with a cosine above `TWIN` to it both
    in activations over the text and, at another checkpoint, in direction.
    """
    crosscoder, table = context.crosscoder, table[table["verdict"] != "undefined"]
    i = table["feature"].to_numpy().copy()
    at, (n, h) = scaling.strongest[i], scaling.nu_error.shape
    W_dec = crosscoder.W_dec.detach().cpu().double()
    missed, rebuilt = torch.zeros(2, len(i), n, crosscoder.d_model, dtype=torch.float64)
    together, square = torch.zeros(len(i), h).double(), torch.zeros(h).double()
    for x in batches:
        f = crosscoder.encode(x)
        recon = crosscoder.decode_scaled(f)
        for total, y in ((missed, x * crosscoder.scales[:, None] - recon), (rebuilt, recon)):
            total += torch.einsum("ti,tnd->ind", f[:, i], y).cpu().double()
        together += (f[:, i].T @ f).cpu().double()
        square += f.square().sum(0).cpu().double()
    others = torch.arange(n)[:, None] != torch.from_numpy(at)  # [n, specific]

    def largest(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(missed, nu_reconstruction) along the directions of these latents, the largest at the other checkpoints."""
        d = W_dec[latents, scaling.strongest[latents]]
        along = [torch.einsum("ind,id->ni", y, d) / (square[i] * d.square().sum(1)) for y in (missed, rebuilt)]
        nus = along[0] / torch.from_numpy(scaling.beta_error[at, i]), along[1] / along[1][at, range(len(i))]
        return tuple(torch.where(others, nu, -torch.inf).amax(0).numpy() for nu in nus)

    rng = np.random.default_rng(context.seed)
    drawn = {"own": [largest(i)], "other": [largest(rng.permutation(h)[: len(i)]) for _ in range(SHUFFLES)]}
    direction = torch.nn.functional.normalize(W_dec, dim=2)
    aligned = (torch.einsum("id,jnd->nij", direction[i, at], direction) > TWIN) & others[..., None]
    cosine = together / (square[i, None] * square).sqrt().clamp_min(1e-12)
    twin = aligned.any(0) & (cosine > TWIN)
    twin[range(len(i)), i] = False
    rows = []
    for verdict in ("all", *VERDICTS[:-1]):
        kept = np.ones(len(i), bool) if verdict == "all" else (table["verdict"] == verdict).to_numpy()
        if kept.any():
            row = {"verdict": verdict, "latents": kept.sum(), "with a twin": int(twin.any(1).numpy()[kept].sum())}
            for kind, draws in drawn.items():
                for k, (name, bound) in enumerate((("missed", MAX_ERROR), ("nu_reconstruction", MAX_RECONSTRUCTION))):
                    nu = np.stack([draw[k][kept] for draw in draws])
                    row[f"median {name}, {kind}"] = np.median(nu, axis=1).mean()
                    row[f"{name} > {bound}, {kind}"] = (nu > bound).sum(1).mean()
            rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def lengthened(crosscoder: ctt.Crosscoder, scaling: LatentScaling) -> ctt.Crosscoder:
    """A copy that also writes, along each latent's longest vector, what latent scaling finds missed; f is the same."""
    other = copy.deepcopy(crosscoder).requires_grad_(False)
    other.scaled_norms = (
        crosscoder.decoder_norms().detach().clone()
    )  # the threshold goes by the norms it was found with
    missed = torch.from_numpy(np.nan_to_num(scaling.beta_error - scaling.written)).to(other.W_dec)
    d = crosscoder.W_dec.detach()[range(len(other.W_dec)), scaling.strongest]
    other.W_dec += missed.T[:, :, None] * d[:, None]
    return other


def corrected(context: Context, scaling: LatentScaling) -> pd.DataFrame:
    """Effects of removing each latent with what was missed of it: which latents specific by RelIE stay so?"""
    rows, longer = [], lengthened(context.crosscoder, scaling)
    for task in context.tasks[:2]:
        plain = ctt.rel_ie(context.effects(task, "find").mean, INACTIVE)
        after = ctt.rel_ie(ctt.indirect_effects(longer, context.ckpts, context.pairs(task, "find")).mean, INACTIVE)
        verdict = artefacts(plain, scaling, context.names, SPECIFIC).set_index("feature")
        for kind in VERDICTS:
            here = verdict.index[verdict["verdict"] == kind]
            if not len(here):
                continue
            at = [context.names.index(c) for c in verdict.loc[here, "checkpoint"]]
            stays, before = after[at, here], plain[at, here]
            row = {"task": short(task), "verdict": kind, "specific by RelIE": len(here)}
            row |= {"still specific": int((stays > SPECIFIC).sum())}
            rows.append(row | {"RelIE there": np.mean(before), "RelIE there, with what was missed": np.nanmean(stays)})
    return pd.DataFrame(rows)


def headline(frames: dict[str, pd.DataFrame]) -> str:
    every, causal = frames["scaling_null"].iloc[0], frames["scaling_causal"]
    own, other = (every[f"nu_reconstruction > {MAX_RECONSTRUCTION}, {kind}"] for kind in ("own", "other"))
    return (
        f"**Latent scaling.** Of {every['latents']} latents specific by RelDec, {own:.0f} have a nu_reconstruction "
        f"above {MAX_RECONSTRUCTION} elsewhere; along another latent's direction {other:.0f}: here it proves nothing. "
        f"With what was missed of a latent removed along with it, {causal['still specific'].sum()} of "
        f"{causal['specific by RelIE'].sum()} latents specific by RelIE stay so."
    )


def brief(frames: dict[str, pd.DataFrame]) -> str:
    """Verdicts by ratio."""
    return markdown(frames["scaling"].groupby("ratio", sort=False)[["latents", *VERDICTS]].sum().reset_index())


def section(frames: dict[str, pd.DataFrame]) -> str:
    counts, null, causal = (frames[k] for k in ("scaling", "scaling_null", "scaling_causal"))
    seconds = frames["scaling_seconds"].set_index("part")["seconds"]
    dec = counts[counts["ratio"] == "RelDec"].sum(numeric_only=True).astype(int)
    ie = counts[counts["ratio"] != "RelDec"].sum(numeric_only=True).astype(int)
    every = null.iloc[0].rename(
        lambda name: name.replace(f" > {MAX_ERROR}", "").replace(f" > {MAX_RECONSTRUCTION}", "")
    )
    stay, specific = causal["still specific"].sum(), causal["specific by RelIE"].sum()
    parts = [
        "## Latent scaling: artefacts among the specific latents",
        f"Of {dec['latents']} latents specific by RelDec (> {SPECIFIC}), {dec['genuine']} are genuine, "
        f"{dec['written elsewhere']} are written elsewhere by more than {MAX_ERROR} of their length, "
        f"{dec['shrinkage']} are not, but have nu_error above {MAX_ERROR} there (shrinkage), {dec['decoupled']} only "
        f"nu_reconstruction above {MAX_RECONSTRUCTION} (decoupled). Of {ie['latents']} specific by RelIE, over all "
        f"tasks, {ie['written elsewhere']} are written elsewhere: there, but used far less. Medians are of the largest "
        "value at the other checkpoints.",
        markdown(counts),
        "What the check is worth: the same along the direction of another latent, drawn at random (mean of "
        f"{SHUFFLES} draws). nu_reconstruction is above {MAX_RECONSTRUCTION} for "
        f"{every['nu_reconstruction, own']:.0f} of {every['latents']} latents along their own direction, and for "
        f"{every['nu_reconstruction, other']:.0f} along another's. What was missed is above {MAX_ERROR} for "
        f"{every['missed, own']:.0f} and for {every['missed, other']:.0f}; its median is "
        f"{every['median missed, own']:.2f} and {every['median missed, other']:.2f}. Twin: another latent with a "
        f"cosine above {TWIN} in activations and, at another checkpoint, in direction.",
        markdown(null),
        f"RelIE again, with what was missed of each latent removed along with it: {stay} of {specific} specific "
        "latents stay so.",
        markdown(causal),
        f"The pass over {frames['scaling_seconds']['tokens'][0]:,} tokens took {seconds['latent scaling']:.1f} s; to "
        f"encode and decode them alone {seconds['encode and decode']:.1f} s, to read the activations "
        f"{seconds['activations']:.1f} s, `evaluate()` on the same text {seconds['evaluate() from text']:.1f} s.",
    ]
    return "\n\n".join(parts)
