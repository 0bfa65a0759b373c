"""Controls where the answer is known: one checkpoint twice, a random start, labels swapped, random directions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import ctt_helpers as ctt
from benchmarks.science import page
from benchmarks.science.context import INACTIVE, Context, decide, labels, short
from ctt_helpers.controls import random_directions
from ctt_helpers.effects import Effects
from ctt_helpers.runtime import write_json
from ctt_helpers.suites import Suite
from ctt_helpers.uncertainty import interval, resample

N_PAIRS, N_SWAPS, N_DIRECTIONS = 200, 40, 3
SPECIFIC = 0.7
OFTEN = 20  # pairs; the bootstrap needs some, to know a spread


def run(context: Context) -> dict[str, pd.DataFrame]:
    return {
        "null_twins": twin_checkpoints(context),
        "null_start": random_start(context),
        "null_labels": swapped_labels(context),
        "null_directions": random_dictionary(context),
    }


def copied_suite(context: Context, revisions: Sequence[str], folder: Path) -> Suite:
    """A folder of checkpoints copied from the context's suite; one that is named twice gets " again" to its name."""
    meta, seen = [], []
    for revision in revisions:
        name = f"{revision} again" if revision in seen else revision
        seen.append(revision)
        if not (folder / name / "model.safetensors").is_file():
            model = context.suite.checkpoints([revision], layer=context.ckpts.layer, device="cpu")[0]
            model.hf_model.save_pretrained(folder / name)
        meta.append({"revision": name, "tokens": context.suite.tokens_seen(revision)})
    context.suite.tokenizer.save_pretrained(folder)
    triplet = [m["revision"] for m in meta]
    about = {"revisions": meta, "default_layer": context.ckpts.layer, "default_triplet": triplet}
    write_json(folder / "suite.json", about)
    return ctt.load_suite(folder)


def twin_checkpoints(context: Context) -> pd.DataFrame:
    """The last checkpoint under two names, alone and with an earlier one: nothing can be specific to one of the two.

    P is the pairwise ratio between the two, which should be 0.5.
    """
    *_, earlier, last = context.names
    rows = []
    for name, revisions in (("two-way", [last, last]), ("three-way", [earlier, last, last])):
        suite = copied_suite(context, revisions, context.work / f"twins {name}")
        ckpts = suite.checkpoints(suite.revisions, layer=context.ckpts.layer, device=context.ckpts.device)
        crosscoder = context.train(ckpts, f"twins {name} crosscoder")
        a, b = len(revisions) - 2, len(revisions) - 1
        for task in context.tasks[:2]:
            pairs = context.pairs(task, "find", N_PAIRS)
            effects = ctt.indirect_effects(crosscoder, ckpts, pairs)
            ie = ctt.rel_ie(effects.mean, INACTIVE)
            decided = decide(effects, context.draws(effects, pairs))
            active = ~np.isnan(ie[0])
            for ratio, v in (
                ("RelIE", ie),
                ("RelDec", np.where(active, ctt.rel_dec(crosscoder.decoder_norms()), np.nan)),
            ):
                p = ctt.pairwise(v)[a, b][active]
                row = {"crosscoder": name, "task": short(task), "ratio": ratio, "active latents": int(active.sum())}
                point = labels(v, ckpts.labels)
                row["specific to one twin"] = _specific(point, ckpts.labels[a:])
                row["decided"] = _specific(decided, ckpts.labels[a:]) if ratio == "RelIE" else np.nan
                row |= {"P below 0.3 or above 0.7": int(((p < 1 - SPECIFIC) | (p > SPECIFIC)).sum())}
                row |= {"P mean": p.mean(), "P sd": p.std(), "P smallest": p.min(), "P largest": p.max()}
                rows.append(row)
    return pd.DataFrame(rows)


def _specific(found: np.ndarray, names: Sequence[str]) -> int:
    """How many latents belong to one of these checkpoints alone (of more than three: peak there)."""
    return int(np.isin(found, [f"{kind} {name}" for kind in ("specific", "peak") for name in names]).sum())


def random_start(context: Context) -> pd.DataFrame:
    """The first checkpoint, before any training, in place of the triplet's own first: nothing can depend on it."""
    revisions = [context.suite.revisions[0], *context.names[1:]]
    ckpts = context.suite.checkpoints(revisions, layer=context.ckpts.layer, device=context.ckpts.device)
    crosscoder = context.train(ckpts, "random start crosscoder")
    rel_dec, rows = ctt.rel_dec(crosscoder.decoder_norms()), []
    for task in context.tasks[:2]:
        pairs = context.pairs(task, "find", N_PAIRS)
        effects = ctt.indirect_effects(crosscoder, ckpts, pairs)
        total, ratios = np.abs(effects.mean).sum(1), ctt.rel_ie(effects.mean, INACTIVE)
        corrected = ctt.rel_ie(effects.mean, INACTIVE, total=total)
        active = ~np.isnan(ratios[0])
        found = {
            "RelIE": labels(ratios, revisions),
            "RelIE, decided": decide(effects, context.draws(effects, pairs)),
            "RelIE, divided by the total": labels(corrected, revisions),
            "RelDec, active latents": labels(np.where(active, rel_dec, np.nan), revisions),
            "RelDec, all latents": labels(rel_dec, revisions),
        }
        for ratio, label in found.items():
            counted = len(label) if "all" in ratio else int(active.sum())
            row = {"task": short(task), "ratio": ratio, "latents": counted}
            row |= {f"specific {name}": _specific(label, [name]) for name in revisions}
            rows.append(row | {f"share of |IE| {n}": t / total.sum() for n, t in zip(revisions, total, strict=True)})
    return pd.DataFrame(rows)


def swapped_labels(context: Context) -> pd.DataFrame:
    """Right and wrong swapped in each pair by the toss of a coin: m, and so every effect, changes its sign there.

    No latent has a mean effect then, whatever its class looks like: what is left is noise.
    """
    rows = []
    for task in context.tasks:
        effects, pairs = context.effects(task, "find"), context.pairs(task, "find")
        rng = np.random.default_rng(context.seed)
        found = [_labels_row(effects, context.draws(effects, pairs))]
        for _ in range(N_SWAPS):
            swapped = rng.random(len(pairs)) < 0.5
            # single pairs, not twins, are swapped: so it is single pairs that are drawn
            turned = flipped(effects, swapped)
            found.append(_labels_row(turned, resample(turned, context.n_draws, context.seed)))
        for kind, part in (("true", found[:1]), (f"swapped, mean of {N_SWAPS}", found[1:])):
            rows.append({"task": short(task), "labels": kind, **pd.DataFrame(part).mean().to_dict()})
    return pd.DataFrame(rows)


def flipped(effects: Effects, swapped: np.ndarray) -> Effects:
    """The effects with right and wrong swapped in the pairs of the mask `swapped` [pairs]."""
    sparse = effects.per_pair.coalesce()
    sign = torch.from_numpy(np.where(swapped, -1.0, 1.0)).to(sparse.values())
    values = sparse.values() * sign[sparse.indices()[1]]
    turned = torch.sparse_coo_tensor(sparse.indices(), values, sparse.shape, check_invariants=True).coalesce()
    mean = np.stack([part.to_dense().double().mean(0).numpy() for part in turned])
    unknown = np.full(len(mean), np.nan)
    return replace(effects, mean=mean, per_pair=turned, total=unknown, error=unknown, gap=unknown)


def swap(pairs: ctt.MinimalPairs, swapped: np.ndarray) -> ctt.MinimalPairs:
    """The pairs themselves with right and wrong swapped where the mask says so."""
    mask = torch.from_numpy(swapped)
    right, wrong = torch.where(mask, pairs.wrong, pairs.right), torch.where(mask, pairs.right, pairs.wrong)
    return replace(pairs, right=right, wrong=wrong)


def _labels_row(effects: Effects, draws: np.ndarray) -> dict[str, float]:
    low, high = interval(draws)
    sentences = torch.zeros(effects.per_pair.shape[2])
    c, _, i = effects.per_pair.coalesce().indices()
    sentences = sentences.index_add_(0, i[c == 0], torch.ones(int((c == 0).sum()))).numpy()
    away = (low > 0) | (high < 0)
    ratios = ctt.rel_ie(effects.mean, INACTIVE)
    point, decided = labels(ratios, effects.names), decide(effects, draws)
    sure = [_specific(decided[away[c]], [name]) for c, name in enumerate(effects.names)]
    return {
        "sum of |IE|": np.abs(effects.mean).sum(),
        "largest |IE|": np.abs(effects.mean).max(),
        "active latents": (~np.isnan(ratios[0])).sum(),
        "specific": _specific(point, effects.names),
        "specific, decided": _specific(decided, effects.names),
        "specific, decided, IE not 0": sum(sure),
        "IE interval without 0": away[:, sentences > 0].mean(),
        f"the same, in {OFTEN} pairs or more": away[:, sentences >= OFTEN].mean(),
    }


def random_dictionary(context: Context) -> pd.DataFrame:
    """Each latent writes in a random direction, as often and as strongly as before: effects of size alone."""
    rows = []
    for task in context.tasks:
        pairs = context.pairs(task, "find", N_PAIRS)
        real = ctt.indirect_effects(context.crosscoder, context.ckpts, pairs)
        seeds = range(context.seed, context.seed + N_DIRECTIONS)
        drawn = [ctt.indirect_effects(random_directions(context.crosscoder, s), context.ckpts, pairs) for s in seeds]
        for kind, found in (("trained", [real]), (f"random, mean of {N_DIRECTIONS}", drawn)):
            parts = pd.DataFrame([_directions_row(e) for e in found]).mean()
            rows.append({"task": short(task), "directions": kind, **parts.to_dict()})
    return pd.DataFrame(rows)


def _directions_row(effects: Effects) -> dict[str, float]:
    size = np.abs(effects.mean)
    point = labels(ctt.rel_ie(effects.mean, INACTIVE), effects.names)
    row = {f"sum of |IE| {n}": s for n, s in zip(effects.names, size.sum(1), strict=True)}
    row |= {f"largest |IE| {n}": s for n, s in zip(effects.names, size.max(1), strict=True)}
    row |= {f"specific {n}": _specific(point, [n]) for n in effects.names}
    corrected = labels(ctt.rel_ie(effects.mean, INACTIVE, total=size.sum(1)), effects.names)
    row |= {f"specific, divided by the total {n}": _specific(corrected, [n]) for n in effects.names}
    return row | {"active latents": int((point != "inactive").sum())}


def brief(frames: dict[str, pd.DataFrame]) -> str:
    """Swapped labels and random directions: what is left of a finding where there is nothing."""
    swapped = frames["null_labels"].groupby("labels", sort=False).mean(numeric_only=True).reset_index()
    kept = ["labels", "sum of |IE|", "active latents", "specific", "specific, decided", "specific, decided, IE not 0"]
    note = "Random directions keep each latent's activations and norms (by checkpoint):"
    directions = page.table(_short_directions(frames["null_directions"]))
    return f"Labels swapped, mean over tasks:\n\n{page.table(swapped[kept])}\n\n{note}\n\n{directions}"


def headline(frames: dict[str, pd.DataFrame]) -> str:
    twin, swapped = frames["null_twins"].query("ratio == 'RelIE'"), frames["null_labels"]
    start = frames["null_start"].groupby("ratio")[["latents", *frames["null_start"].filter(like="specific")]].sum()
    untrained = start.columns[1]
    told = {r: f"{start[untrained][r]} of {start['latents'][r]}" for r in ("RelIE", "RelDec, active latents")}
    whole = frames["null_start"].query("ratio == 'RelDec, all latents'").iloc[0]
    return (
        f"**False specifics.** Between two copies of a checkpoint {twin['specific to one twin'].sum()} of "
        f"{twin['active latents'].sum()} active latents by RelIE; to an untrained checkpoint {told['RelIE']} by RelIE "
        f"and {told['RelDec, active latents']} by RelDec (of the whole dictionary {whole[untrained]} of "
        f"{whole['latents']}); with labels swapped {_rates(swapped[swapped['labels'] != 'true'])} of the active ones "
        f"(as they come / decided by the sentences / and with an effect that is not 0). {_largest(frames)}"
    )


def _largest(frames: dict[str, pd.DataFrame]) -> str:
    """The largest effect of random directions (mean of the draws) as a share of the largest trained one."""
    table = frames["null_directions"].set_index("task")
    columns = [c for c in table if c.startswith("largest |IE|")]
    trained, random = (part[columns] for _, part in table.groupby(table["directions"] != "trained"))
    told = ", ".join(f"{t} {' / '.join(f'{v:.0%}' for v in shares)}" for t, *shares in (random / trained).itertuples())
    return (
        "The strongest random direction has this share of the effect of the strongest trained one, checkpoint by "
        f"checkpoint: {told}."
    )


def section(frames: dict[str, pd.DataFrame]) -> str:
    twin, start, swapped, random = (frames[f"null_{k}"] for k in ("twins", "start", "labels", "directions"))
    told = {"active latents": "sum", "specific to one twin": "sum", "decided": "sum", "P below 0.3 or above 0.7": "sum"}
    told |= {"P sd": "max", "P smallest": "min", "P largest": "max"}
    twin = twin.groupby(["crosscoder", "ratio"], sort=False).agg(told).reset_index()
    twin.loc[twin["ratio"] == "RelDec", "decided"] = np.nan
    digits = {"decided": 0} | {c: 3 for c in twin if c.startswith("P ")}
    exact = dict.fromkeys(swapped, 1) | {c: 3 for c in swapped if "|IE|" in c or "interval" in c or "same" in c}
    rates = {kind: _rates(part) for kind, part in swapped.groupby(swapped["labels"] == "true")}
    specific = [c for c in start if c.startswith("specific ")]
    share = start.filter(like="share of |IE|").iloc[:, 0]
    columns = ["task", "ratio", "latents", *specific]
    return "\n\n".join(
        [
            "## Controls: how often is there something where there is nothing?",
            "**One checkpoint under two names** (crosscoders trained anew): nothing is specific to either, and P, the "
            f"ratio between the two, should be 0.5 (both tasks together).\n\n{page.table(twin, digits)}",
            f"**A checkpoint before any training** in place of the first one: it holds {share.min():.1%} to "
            f"{share.max():.1%} of all |IE|. Latents specific to each:\n\n{page.table(start[columns])}",
            "**Labels swapped** in each pair by the toss of a coin: mean effects are noise. IE interval without 0: "
            f"share of latents and checkpoints (5 % expected).\n\n{page.table(swapped, exact)}\n\n"
            "Of the active latents look specific / so in 95 % of the draws / and the effect's own interval there "
            f"leaves out 0: with swapped labels {rates[False]}, with the true ones {rates[True]}.",
            f"**Random directions** of the same norms, active as often; numbers by checkpoint.\n\n"
            f"{page.table(_short_directions(random))}",
        ]
    )


def _rates(table: pd.DataFrame) -> str:
    summed = table.sum(numeric_only=True)
    names = ("specific", "specific, decided", "specific, decided, IE not 0")
    return " / ".join(f"{summed[name] / summed['active latents']:.0%}" for name in names)


def _short_directions(table: pd.DataFrame) -> pd.DataFrame:
    shown = table[["task", "directions"]].copy()
    figures = {"sum of |IE|": 2, "largest |IE|": 3, "specific": 0, "specific, divided by the total": 0}
    for figure, digits in figures.items():
        part = table[[c for c in table if c.startswith(f"{figure} ")]].to_numpy()
        shown[figure] = [" / ".join(f"{v:.{digits}f}" for v in row) for row in part]
    return shown
