"""Controls: how often is there something where there is nothing?

One checkpoint under two names, a checkpoint before any training, labels swapped, and random
directions.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

import ctt_helpers as ctt
from ctt_helpers.controls import random_directions
from ctt_helpers.files import write_json
from ctt_helpers.uncertainty import DRAWS, interval, resample
from experiments.context import (
    INACTIVE,
    SPECIFIC,
    Context,
    active_by,
    count_specific,
    decide,
    labels,
    short,
)

N_PAIRS = 200  # where effects are computed anew
N_SWAPS = 40
N_DIRECTIONS = 3
OFTEN = 20  # pairs; the bootstrap needs some, to know a spread

TABLES = {
    "null_twins": (
        "One row for each crosscoder, task and ratio: the last checkpoint under two names, alone "
        "(two-way) and after an earlier one (three-way), crosscoders trained anew. Nothing can be "
        "specific to one of the two, and P, the ratio between them, should be 0.5. specific to one "
        "twin: how many of the active latents look so; decided: in 95 % of the draws over "
        "sentences; then how many have a P far from 0.5, and P's mean, spread and extremes."
    ),
    "null_start": (
        "One row for each task and ratio: a checkpoint before any training in place of the first "
        "of the triplet, on which nothing can depend. specific: latents that look specific to each "
        "checkpoint, of `latents`; share of |IE|: how much of all effects each checkpoint has."
    ),
    "null_labels": (
        "One row for each task, with true labels and with right and wrong swapped in each pair by "
        f"the toss of a coin (mean of {N_SWAPS}): then mean effects are noise. specific: latents "
        "that look so; decided: in 95 % of the draws; IE not 0: and the effect's own interval "
        "there leaves out 0. IE interval without 0: share of latents and checkpoints (5 % "
        f"expected), of those active in any pair, and in {OFTEN} or more."
    ),
    "null_directions": (
        "One row for each task, with the trained directions and with random ones of the same norms "
        f"that are active as often (mean of {N_DIRECTIONS}): effects of size alone. Sum and "
        "largest of |IE| at each checkpoint, and latents specific to it by RelIE, plain or with "
        "effects divided by the checkpoint's total."
    ),
}


def run(context: Context) -> dict[str, pd.DataFrame]:
    return {
        "null_twins": twin_checkpoints(context),
        "null_start": random_start(context),
        "null_labels": swapped_labels(context),
        "null_directions": random_dictionary(context),
    }


# ---- one checkpoint twice


def twin_checkpoints(context: Context) -> pd.DataFrame:
    """The last checkpoint under two names, alone and with an earlier one.

    Nothing can be specific to one of the two. P is the pairwise ratio between the two, which should
    be 0.5.
    """
    *_, earlier, last = context.names
    layer, device = context.ckpts.layer, context.ckpts.device
    rows = []
    for name, revisions in (("two-way", [last, last]), ("three-way", [earlier, last, last])):
        suite = copied_suite(context, revisions, context.work / f"twins {name}")
        ckpts = suite.checkpoints(suite.revisions, layer=layer, device=device)
        crosscoder = context.train(ckpts, f"twins {name} crosscoder")
        rel_dec = ctt.rel_dec(crosscoder.decoder_norms())
        for task in context.tasks[:2]:
            pairs = context.pairs(task, "find", N_PAIRS)
            effects = ctt.indirect_effects(crosscoder, ckpts, pairs)
            rel_ie = ctt.rel_ie(effects.mean, INACTIVE)
            active = active_by(rel_ie)
            decided = decide(effects, context.draws(effects, pairs))
            ratios = {"RelIE": rel_ie, "RelDec": np.where(active, rel_dec, np.nan)}
            for ratio, values in ratios.items():
                p = ctt.pairwise(values)[-2, -1][active]
                far = (p < 1 - SPECIFIC) | (p > SPECIFIC)
                twins = ckpts.labels[-2:]
                rows.append(
                    {
                        "crosscoder": name,
                        "task": short(task),
                        "ratio": ratio,
                        "active latents": int(active.sum()),
                        "specific to one twin": count_specific(labels(values, ckpts.labels), twins),
                        "decided": count_specific(decided, twins) if ratio == "RelIE" else np.nan,
                        "P below 0.3 or above 0.7": int(far.sum()),
                        "P mean": p.mean(),
                        "P sd": p.std(),
                        "P smallest": p.min(),
                        "P largest": p.max(),
                    }
                )
    return pd.DataFrame(rows)


def copied_suite(context: Context, revisions: Sequence[str], folder: Path) -> ctt.Suite:
    """A folder of checkpoints that are copied from the context's suite.

    One that is named twice gets " again" to its name.
    """
    names = []
    for revision in revisions:
        name = f"{revision} again" if revision in names else revision
        if not (folder / name / "model.safetensors").is_file():
            ckpts = context.suite.checkpoints([revision], layer=context.ckpts.layer, device="cpu")
            ckpts[0].hf_model.save_pretrained(folder / name)
        names.append(name)
    context.suite.tokenizer.save_pretrained(folder)
    tokens = [context.suite.tokens_seen(revision) for revision in revisions]
    about = {
        "revisions": [
            {"revision": name, "tokens": seen} for name, seen in zip(names, tokens, strict=True)
        ],
        "default_layer": context.ckpts.layer,
        "default_triplet": names,
    }
    write_json(folder / "suite.json", about)
    return ctt.load_suite(folder)


# ---- a checkpoint before any training


def random_start(context: Context) -> pd.DataFrame:
    """The first checkpoint, before any training, in place of the triplet's own first.

    Nothing can depend on it.
    """
    revisions = [context.suite.revisions[0], *context.names[1:]]
    ckpts = context.suite.checkpoints(
        revisions, layer=context.ckpts.layer, device=context.ckpts.device
    )
    crosscoder = context.train(ckpts, "random start crosscoder")
    rel_dec = ctt.rel_dec(crosscoder.decoder_norms())
    rows = []
    for task in context.tasks[:2]:
        pairs = context.pairs(task, "find", N_PAIRS)
        effects = ctt.indirect_effects(crosscoder, ckpts, pairs)
        total = np.abs(effects.mean).sum(1)
        ratios = ctt.rel_ie(effects.mean, INACTIVE)
        corrected = ctt.rel_ie(effects.mean, INACTIVE, total=total)
        active = active_by(ratios)
        found = {
            "RelIE": labels(ratios, revisions),
            "RelIE, decided": decide(effects, context.draws(effects, pairs)),
            "RelIE, divided by the total": labels(corrected, revisions),
            "RelDec, active latents": labels(np.where(active, rel_dec, np.nan), revisions),
            "RelDec, all latents": labels(rel_dec, revisions),
        }
        for ratio, words in found.items():
            counted = len(words) if ratio == "RelDec, all latents" else int(active.sum())
            row = {"task": short(task), "ratio": ratio, "latents": counted}
            for name in revisions:
                row[f"specific {name}"] = count_specific(words, [name])
            for name, size in zip(revisions, total, strict=True):
                row[f"share of |IE| {name}"] = size / total.sum()
            rows.append(row)
    return pd.DataFrame(rows)


# ---- labels swapped


def swapped_labels(context: Context) -> pd.DataFrame:
    """Right and wrong swapped in each pair by the toss of a coin.

    m, and so every effect, changes its sign there. No latent has a mean effect then, whatever its
    class looks like: what is left is noise.
    """
    rows = []
    for task in context.tasks:
        effects = context.effects(task, "find")
        pairs = context.pairs(task, "find")
        rng = np.random.default_rng(context.seed)
        true = what_is_found(effects, context.draws(effects, pairs))
        turned = []
        for _ in range(N_SWAPS):
            swapped = flipped(effects, rng.random(len(pairs)) < 0.5)
            # single pairs, not twins, are swapped: so it is single pairs that are drawn
            draws = resample(swapped, context.n_draws, context.seed)
            turned.append(what_is_found(swapped, draws))
        found = {"true": [true], f"swapped, mean of {N_SWAPS}": turned}
        for kind, figures in found.items():
            mean = pd.DataFrame(figures).mean().to_dict()
            rows.append({"task": short(task), "labels": kind, **mean})
    return pd.DataFrame(rows)


def flipped(effects: ctt.Effects, swapped: Bool[np.ndarray, " pairs"]) -> ctt.Effects:
    """The effects with right and wrong swapped in the pairs of the mask."""
    sparse = effects.per_pair.coalesce()
    sign = torch.from_numpy(np.where(swapped, -1.0, 1.0)).to(sparse.values())
    _, pair, _ = sparse.indices()
    values = sparse.values() * sign[pair]
    turned = torch.sparse_coo_tensor(
        sparse.indices(), values, sparse.shape, check_invariants=True
    ).coalesce()
    mean = np.stack([part.to_dense().double().mean(0).numpy() for part in turned])
    unknown = np.full(len(mean), np.nan)
    return replace(effects, mean=mean, per_pair=turned, total=unknown, error=unknown, gap=unknown)


def swap(pairs: ctt.MinimalPairs, swapped: Bool[np.ndarray, " pairs"]) -> ctt.MinimalPairs:
    """The pairs themselves with right and wrong swapped where the mask says so."""
    mask = torch.from_numpy(swapped)
    return replace(
        pairs,
        right=torch.where(mask, pairs.wrong, pairs.right),
        wrong=torch.where(mask, pairs.right, pairs.wrong),
    )


def what_is_found(effects: ctt.Effects, draws: DRAWS) -> dict[str, float]:
    """Sizes of effects, and how many latents look specific, as they come and after checks."""
    names = effects.names
    ratios = ctt.rel_ie(effects.mean, INACTIVE)
    decided = decide(effects, draws)
    low, high = interval(draws)
    not_zero = (low > 0) | (high < 0)  # [checkpoints, latents]
    specific_and_not_zero = [
        count_specific(decided[not_zero[c]], [name]) for c, name in enumerate(names)
    ]
    # a latent is active at all checkpoints or at none: those of the first are counted
    checkpoint, _, latent = effects.per_pair.coalesce().indices()
    n_latents = effects.per_pair.shape[2]
    active_in = np.bincount(latent[checkpoint == 0].numpy(), minlength=n_latents)
    return {
        "sum of |IE|": np.abs(effects.mean).sum(),
        "largest |IE|": np.abs(effects.mean).max(),
        "active latents": active_by(ratios).sum(),
        "specific": count_specific(labels(ratios, names), names),
        "specific, decided": count_specific(decided, names),
        "specific, decided, IE not 0": sum(specific_and_not_zero),
        "IE interval without 0": not_zero[:, active_in > 0].mean(),
        f"the same, in {OFTEN} pairs or more": not_zero[:, active_in >= OFTEN].mean(),
    }


# ---- random directions


def random_dictionary(context: Context) -> pd.DataFrame:
    """Each latent writes in a random direction, as often and as strongly as before.

    What is left are effects of size alone.
    """
    rows = []
    for task in context.tasks:
        pairs = context.pairs(task, "find", N_PAIRS)
        trained = ctt.indirect_effects(context.crosscoder, context.ckpts, pairs)
        random = []
        for seed in range(context.seed, context.seed + N_DIRECTIONS):
            other = random_directions(context.crosscoder, seed)
            random.append(ctt.indirect_effects(other, context.ckpts, pairs))
        found = {"trained": [trained], f"random, mean of {N_DIRECTIONS}": random}
        for kind, effects in found.items():
            mean = pd.DataFrame([by_checkpoint(e) for e in effects]).mean().to_dict()
            rows.append({"task": short(task), "directions": kind, **mean})
    return pd.DataFrame(rows)


def by_checkpoint(effects: ctt.Effects) -> dict[str, float]:
    """Sizes of effects and numbers of specific latents, at each checkpoint."""
    names = effects.names
    size = np.abs(effects.mean)
    total = size.sum(1)
    words = labels(ctt.rel_ie(effects.mean, INACTIVE), names)
    corrected = labels(ctt.rel_ie(effects.mean, INACTIVE, total=total), names)
    row = {}
    for name, summed in zip(names, total, strict=True):
        row[f"sum of |IE| {name}"] = summed
    for name, largest in zip(names, size.max(1), strict=True):
        row[f"largest |IE| {name}"] = largest
    for name in names:
        row[f"specific {name}"] = count_specific(words, [name])
    for name in names:
        row[f"specific, divided by the total {name}"] = count_specific(corrected, [name])
    row["active latents"] = int((words != "inactive").sum())
    return row
