"""Controls: how often is there something where there is nothing?

One checkpoint under two names, a checkpoint before any training, labels swapped, and random
directions. And what is left of the classes once all of them are heeded.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

import ctt_helpers as ctt
from ctt_helpers.files import write_json
from ctt_helpers.pairs import twins
from ctt_helpers.uncertainty import null_threshold
from experiments.context import (
    INACTIVE,
    SPECIFIC,
    Context,
    active_by,
    count_specific,
    decided,
    decided_by_draws,
    labels,
)

N_PAIRS = 200  # where effects are computed anew
N_SWAPS = 100
N_DRAWN = 10  # of the swaps; the bootstrap takes a hundred times as long
N_DIRECTIONS = 3  # the last of them is judged by the others

TABLES = {
    "null_twins": (
        "One row for each crosscoder, task and ratio: the last checkpoint under two names, alone "
        "(two-way) and after an earlier one (three-way), crosscoders trained anew. Nothing can be "
        "specific to one of the two, and P, the ratio between them, should be 0.5. specific to one "
        "twin: how many of the active latents look so; decided: of these; then how many have a P "
        "far from 0.5, and P's mean, spread and extremes."
    ),
    "null_start": (
        "One row for each task and ratio: a checkpoint before any training in place of the first "
        "of the triplet, on which nothing can depend. specific: latents that look specific to each "
        "checkpoint, of `latents`; share of |IE|: how much of all effects each checkpoint has."
    ),
    "null_labels": (
        "One row for each task: right and wrong are swapped in each group of pairs by the toss of "
        "a coin, so that all mean effects are noise, and every class that is decided is false. "
        f"active: latents active by RelIE, mean of {N_SWAPS} swaps; specific: the share of these "
        f"that looks specific; 95 % of draws: the share with a class in 95 % of the bootstrap "
        f"draws, one latent at a time (mean of {N_DRAWN} swaps); decided: the share with a class "
        "that `decide` decides (random directions not asked); any decided: share of the swaps in "
        "which it decides any; p below .05: share of single latents whose test is wrong at 5 %."
    ),
    "null_directions": (
        "One row for each task and checkpoint: trained directions and random ones of the same "
        "norms that are active as often, so effects of size alone. largest and sum of |IE|, of the "
        f"random ones mean over {N_DIRECTIONS} draws; threshold: what 95 % of them stay below; "
        "beyond: trained latents above it, of `active` ones; random decided: latents of a further "
        "dictionary of random directions whose class is decided and beyond the threshold."
    ),
    "classes": (
        "One row for each task and class by RelIE (find half): number of latents as it comes; of "
        "those whose class 95 % of the bootstrap draws share, one at a time; of those decided, at "
        "a false discovery rate of 5 %; and of these the ones beyond random directions at each of "
        "their checkpoints, which is what counts. share of |IE|: what all latents of the class "
        "have of all effects, and what those that count have."
    ),
}


def run(context: Context) -> dict[str, pd.DataFrame]:
    return {
        "null_twins": twin_checkpoints(context),
        "null_start": random_start(context),
        "null_labels": swapped_labels(context),
        **random_and_classes(context),
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
            sure = decided(effects, pairs)
            ratios = {"RelIE": rel_ie, "RelDec": np.where(active, rel_dec, np.nan)}
            for ratio, values in ratios.items():
                p = ctt.pairwise(values)[-2, -1][active]
                far = (p < 1 - SPECIFIC) | (p > SPECIFIC)
                two = ckpts.labels[-2:]
                rows.append(
                    {
                        "crosscoder": name,
                        "task": task,
                        "ratio": ratio,
                        "active latents": int(active.sum()),
                        "specific to one twin": count_specific(labels(values, ckpts.labels), two),
                        "decided": count_specific(sure, two) if ratio == "RelIE" else np.nan,
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
            "RelIE, decided": decided(effects, pairs),
            "RelIE, divided by the total": labels(corrected, revisions),
            "RelDec, active latents": labels(np.where(active, rel_dec, np.nan), revisions),
            "RelDec, all latents": labels(rel_dec, revisions),
        }
        for ratio, words in found.items():
            counted = len(words) if ratio == "RelDec, all latents" else int(active.sum())
            row = {"task": task, "ratio": ratio, "latents": counted}
            for name in revisions:
                row[f"specific {name}"] = count_specific(words, [name])
            for name, size in zip(revisions, total, strict=True):
                row[f"share of |IE| {name}"] = size / total.sum()
            rows.append(row)
    return pd.DataFrame(rows)


# ---- labels swapped


def swapped_labels(context: Context) -> pd.DataFrame:
    """Right and wrong swapped in each group of pairs by the toss of a coin.

    m, and so every effect, changes its sign there. No latent has a mean effect then, whatever its
    class looks like: what is left is noise.
    """
    rows = []
    for task in context.tasks:
        effects, pairs = context.effects(task, "find"), context.pairs(task, "find")
        group = twins(pairs)
        rng = np.random.default_rng(context.seed)
        found = []
        for swap in range(N_SWAPS):
            swapped = flipped(effects, rng.random(group.max() + 1)[group] < 0.5)
            words = labels(ctt.rel_ie(swapped.mean, INACTIVE), effects.names)
            table = ctt.decide(swapped, group, inactive_below=INACTIVE)
            active = (words != "inactive").sum()
            sure = ~table["label"].isin(["undecided", "inactive"])
            row = {
                "active": active,
                "specific": count_specific(words, effects.names) / active,
                "decided": sure.sum() / active,
                "any decided": float(sure.any()),
                "p below .05": (table["p"] <= 0.05).sum() / active,
            }
            if swap < N_DRAWN:
                by_draws = decided_by_draws(swapped, context.draws(swapped, pairs))
                undecided = np.isin(by_draws, ["undecided", "inactive"])
                row["95 % of draws"] = (~undecided).sum() / active
            found.append(row)
        mean = pd.DataFrame(found).mean().to_dict()
        rows.append({"task": task, "groups": int(group.max() + 1), **mean})
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


# ---- random directions, and what counts in the end


def random_and_classes(context: Context) -> dict[str, pd.DataFrame]:
    """Each latent writes in a random direction, as often and as strongly as before.

    What is left are effects of size alone: the null that classes are held against.
    """
    directions, classes = [], []
    for task in context.tasks:
        pairs, trained = context.pairs(task, "find"), context.effects(task, "find")
        null = context.random_effects(task, "find", N_DIRECTIONS)
        directions += beside_random(task, trained, null, pairs)
        classes += counts_of_classes(context, task, trained, null, pairs)
    return {"null_directions": pd.DataFrame(directions), "classes": pd.DataFrame(classes)}


def beside_random(
    task: str, trained: ctt.Effects, null: list[ctt.Effects], pairs: ctt.MinimalPairs
) -> list[dict]:
    """Trained directions beside random ones, at each checkpoint."""
    threshold = null_threshold(null[:-1])
    judged = ctt.decide(null[-1], twins(pairs), threshold, inactive_below=INACTIVE)
    active = active_by(ctt.rel_ie(trained.mean, INACTIVE))
    size = np.abs(trained.mean)
    of_null = np.abs(np.stack([effects.mean for effects in null]))  # [draws, checkpoints, latents]
    rows = []
    for c, name in enumerate(trained.names):
        rows.append(
            {
                "task": task,
                "checkpoint": name,
                "largest |IE|": size[c].max(),
                "largest |IE|, random": of_null[:, c].max(1).mean(),
                "sum of |IE|": size[c].sum(),
                "sum of |IE|, random": of_null[:, c].sum(1).mean(),
                "threshold": threshold[c],
                "active": int(active.sum()),
                "beyond": int((size[c, active] > threshold[c]).sum()),
                "random decided": int((~judged["label"].isin(["undecided", "inactive"])).sum()),
            }
        )
    return rows


def counts_of_classes(
    context: Context,
    task: str,
    effects: ctt.Effects,
    null: list[ctt.Effects],
    pairs: ctt.MinimalPairs,
) -> list[dict]:
    """Classes by RelIE as they come, decided, and beyond random directions."""
    point = labels(ctt.rel_ie(effects.mean, INACTIVE), effects.names)
    by_draws = decided_by_draws(effects, context.draws(effects, pairs))
    by_rate = decided(effects, pairs)
    counts = decided(effects, pairs, null)
    size = np.abs(effects.mean).sum(0)
    rows = []
    for word in sorted({*point} - {"inactive"}):
        rows.append(
            {
                "task": task,
                "class": word,
                "as it comes": int((point == word).sum()),
                "95 % of draws": int((by_draws == word).sum()),
                "decided": int((by_rate == word).sum()),
                "decided, beyond random": int((counts == word).sum()),
                "share of |IE|": size[point == word].sum() / size.sum(),
                "share of |IE|, beyond random": size[counts == word].sum() / size.sum(),
            }
        )
    return rows
