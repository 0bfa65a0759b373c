"""Leak: does what a late checkpoint knows get into effects at an early one?

A latent is read from all checkpoints at once. So each checkpoint's part is replaced by what another
one predicts of it, and effects are taken again.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.controls import PredictedOthers
from ctt_helpers.factorial import LABELS
from ctt_helpers.metrics import rank_correlation
from experiments.baselines import Dictionary, halves, in_cells, mean
from experiments.context import INACTIVE, Context, active_by, count_specific, labels

TOP = 20  # helpers that are removed together, at each checkpoint
FIT_TOKENS = 60_000  # that predictions are fitted on, and judged by
MODEL = "the model itself"

_READ = (
    "f is read from all checkpoints, as always, or from the one alone whose effects are taken; of "
    "the others it then gets what is linearly predicted from that one (`ctt.predict_others`)"
)
TABLES = {
    "leak_predict": (
        "One row for each two checkpoints: share of the variance of the one (to) that is linearly "
        f"predicted from the other (from), on text that was not fitted ({FIT_TOKENS:,} tokens in "
        "all). What is not predicted is what only `to` could add to f."
    ),
    "leak": (
        "One row for each task, half (cells: congruent, incongruent, or all) and checkpoint. "
        f"{_READ}. kept: share of what is active on the task, token by token, that still is; "
        "added: of what is active then, what was not; correlation of both f. |IE|: sum over "
        "latents of the mean size in a pair (find half), with either reading, and their ratio; "
        f"rank correlation of the sizes over latents. The {TOP} strongest helpers of the right "
        "answer (read from all, find half) are removed together on the far half: accuracy before "
        "and without them, and how far the logit difference falls, with either reading. The last "
        "checkpoint is the control: it needs nobody's knowledge, so what is lost there is lost by "
        "predicting and by thresholds."
    ),
    "leak_classes": (
        f"One row for each task: classes by RelIE (find half). {_READ}. active: under both; class "
        "changes, and their share; the checkpoint with the largest RelIE moves; specific to each "
        "checkpoint with either reading; mean |change| of RelIE; rank correlation of RelIE at each "
        "checkpoint."
    ),
    "leak_parts": (
        "One row for each checkpoint, and for each that f is robbed of, on the task with an "
        "attractor (find half): the part of `replaced` in f is predicted from the checkpoint whose "
        "effects are taken, all else is read as it is (none: nothing is replaced; all others: as "
        "in the table leak). kept: share of the latents active in a pair that still are. |IE|: sum "
        "over latents of the mean size in a pair; of those gone: its share, nothing replaced, that "
        "goes through latents that are then off in the pair, so light up only because of that "
        "part; of those new: the reverse. subject, attractor, both: sums over latents of the sizes "
        "of the coefficients (`ctt.shares_of_effect`: cross-fitted, with 95 % intervals over "
        "sentences), in logits. net subject: with signs. of subject latents: the subject sum of "
        "those labelled subject at the last checkpoint (n of them, random directions as null). "
        f"{MODEL}: the coefficients of its own logit differences."
    ),
    "leak_held": (
        "One row for each checkpoint and reading, on the task with an attractor (find half): the "
        "latents whose activations at the answer position, on the noun in between, follow the "
        "subject when f is read from all (`ctt.factorial_of`, kind activations). How many do so "
        "with this reading, follow the attractor, both, mixed, or none; mean share of the variance "
        "between cells that is the subject's; size: median of the subject's coefficient over the "
        "one read from all. effect: their sum of |subject| coefficients of effects, in logits, "
        "with its 95 % interval. What a checkpoint holds of the subject stays when f is read from "
        "it alone; what only others know goes."
    ),
}


def run(context: Context) -> dict[str, pd.DataFrame]:
    text = context.validation_text(FIT_TOKENS)
    others = ctt.predict_others(context.ckpts, text)
    alone = {}
    for task in context.tasks:
        print(f"  {task}, read from one", flush=True)
        pairs = context.pairs(task, "find")
        alone[task] = ctt.indirect_effects(
            context.crosscoder, context.ckpts, pairs, read_from=others
        )
    frames = {
        "leak_predict": predicted(others, context.names),
        "leak": by_task(context, alone, others),
        "leak_classes": classes(context, alone),
    }
    hard = context.tasks[1]
    if in_cells(context.pairs(hard, "find")):
        print(f"  {hard}, part by part", flush=True)
        frames["leak_parts"] = parts(context, alone[hard], others)
        frames["leak_held"] = held(context, alone[hard], others)
    else:
        print(f"  {hard} has no design cells: no tables leak_parts, leak_held", flush=True)
    return frames


def predicted(others: PredictedOthers, names: Sequence[str]) -> pd.DataFrame:
    rows = []
    for a, b in np.ndindex(others.explained.shape):
        if a != b:
            row = {"from": names[a], "to": names[b], "explained": others.explained[a, b]}
            rows.append(row)
    return pd.DataFrame(rows)


# ---- all tasks


def by_task(
    context: Context, alone: dict[str, ctt.Effects], others: PredictedOthers
) -> pd.DataFrame:
    rows = []
    for task, one in alone.items():
        pairs, far = context.pairs(task, "find"), context.far(task)
        there = halves(task, far)
        everything = context.effects(task, "find")
        for half, inside in halves(task, pairs).items():
            ie = {
                what: [each.to_dense().double().numpy()[inside] for each in effects.per_pair]
                for what, effects in {"all": everything, "one": one}.items()
            }
            top = [top_helpers(each.mean(0)) for each in ie["all"]]
            some = far[there[half]]
            ask = (context.crosscoder, context.ckpts, some, top)
            without = {"all": ctt.ablate(*ask), "one": ctt.ablate(*ask, read_from=others)}
            for c, name in enumerate(context.names):
                sizes = {what: np.abs(each[c]).mean(0) for what, each in ie.items()}
                row = {"task": task, "cells": half, "checkpoint": name}
                row |= one.info["read_from"][c]
                row |= {f"|IE| from {what}": size.sum() for what, size in sizes.items()}
                row["ratio"] = sizes["one"].sum() / sizes["all"].sum()
                row["rank correlation"] = active_rank_correlation(sizes["all"], sizes["one"])
                row["accuracy"] = without["all"]["accuracy_before"].iloc[c]
                for what, table in without.items():
                    row[f"accuracy without, from {what}"] = table["accuracy_after"].iloc[c]
                for what, table in without.items():
                    row[f"effect of the group, from {what}"] = table["effect"].iloc[c]
                row["stderr"] = without["all"]["effect_stderr"].iloc[c]
                rows.append(row)
    return pd.DataFrame(rows)


def top_helpers(ie: Float[np.ndarray, " latents"]) -> list[int]:
    """The strongest helpers of a checkpoint."""
    return [int(i) for i in np.argsort(-ie, kind="stable")[:TOP] if ie[i] > 0]


def active_rank_correlation(
    first: Float[np.ndarray, " latents"], second: Float[np.ndarray, " latents"]
) -> float:
    """Over the latents that have an effect in either."""
    active = (first != 0) | (second != 0)
    return rank_correlation(first[active], second[active])


def classes(context: Context, alone: dict[str, ctt.Effects]) -> pd.DataFrame:
    rows = []
    names = context.names
    for task, one in alone.items():
        ratios = {
            "all": ctt.rel_ie(context.effects(task, "find").mean, INACTIVE),
            "one": ctt.rel_ie(one.mean, INACTIVE),
        }
        both = active_by(ratios["all"]) & active_by(ratios["one"])
        words = {what: labels(each, names) for what, each in ratios.items()}
        changed = words["all"] != words["one"]
        moved = ratios["all"].argmax(0) != ratios["one"].argmax(0)
        row = {
            "task": task,
            "active": int(both.sum()),
            "class changes": int(changed[both].sum()),
            "share": changed[both].mean(),
            "largest moves": int(moved[both].sum()),
        }
        for name in names:
            for what, each in words.items():
                row[f"specific {name}, from {what}"] = count_specific(each, [name])
        row["mean |change|"] = np.abs(ratios["all"] - ratios["one"])[:, both].mean()
        for c, name in enumerate(names):
            row[f"rank correlation {name}"] = rank_correlation(
                ratios["all"][c, both], ratios["one"][c, both]
            )
        rows.append(row)
    return pd.DataFrame(rows)


# ---- one part replaced


def robbed(
    crosscoder: ctt.Crosscoder, others: PredictedOthers, here: int, replaced: Iterable[int]
) -> Dictionary:
    """The crosscoder, its reading of some checkpoints replaced by what one predicts of them."""
    replaced = list(replaced)

    def encode(x: Float[Tensor, "tokens n d_model"]) -> Float[Tensor, "tokens latents"]:
        x = x.clone()
        x[:, replaced] = others(here, x[:, here])[:, replaced]
        return crosscoder.encode(x)

    return Dictionary(encode, *(weights.detach() for weights in crosscoder.raw_decoder()))


def parts(context: Context, alone: ctt.Effects, others: PredictedOthers) -> pd.DataFrame:
    """Effects at each checkpoint, with each part of f replaced in turn."""
    task, names = context.tasks[1], context.names
    pairs = context.pairs(task, "find")
    everything = context.effects(task, "find")
    random = ctt.random_directions(context.crosscoder, context.seed)
    null = ctt.indirect_effects(random, context.ckpts, pairs)
    found = ctt.factorial_of(everything, pairs, null=null)
    followed = np.flatnonzero(found.label[-1] == "subject").tolist()
    truth = ctt.behaviour_factorial(
        [ctt.logit_differences(model, pairs) for model in context.ckpts], pairs
    )
    rows = []
    for here, name in enumerate(names):
        full = everything.per_pair[here].to_dense().double().numpy()
        own = truth.iloc[here]
        row = {"checkpoint": name, "replaced": MODEL}
        for factor in ("subject", "attractor", "both"):
            row |= {factor: abs(own[factor])}
            row |= {f"{factor} {end}": own[f"{factor}_{end}"] for end in ("low", "high")}
        rows.append({**row, "net subject": own["subject"]})
        rest = [c for c in range(len(names)) if c != here]
        readings: dict[str, np.ndarray] = {"none": full}
        for c in rest:
            crosscoder = robbed(context.crosscoder, others, here, [c])
            effects = ctt.indirect_effects(crosscoder, context.ckpts, pairs)
            readings[names[c]] = effects.per_pair[here].to_dense().double().numpy()
        readings["all others"] = alone.per_pair[here].to_dense().double().numpy()
        for replaced, ie in readings.items():
            row = {"checkpoint": name, "replaced": replaced}
            row |= what_is_left(full, ie)
            row |= sums_of(ie, pairs, followed, name)
            rows.append(row)
    return pd.DataFrame(rows)


def what_is_left(
    full: Float[np.ndarray, "pairs latents"], ie: Float[np.ndarray, "pairs latents"]
) -> dict[str, float]:
    """How much of activity and effects there is without a part of f."""
    was, still = full != 0, ie != 0
    size, left = np.abs(full), np.abs(ie)
    return {
        "kept": (was & still).sum() / was.sum(),
        "|IE|": left.mean(0).sum(),
        "|IE| of those gone": size[~still].sum() / size.sum(),
        "|IE| of those new": left[~was].sum() / left.sum(),
        "rank correlation": active_rank_correlation(size.mean(0), left.mean(0)),
    }


def sums_of(
    ie: Float[np.ndarray, "pairs latents"], pairs: ctt.MinimalPairs, followed: list[int], name: str
) -> dict[str, float]:
    """Sums of coefficients over all latents, and of the subject's over those that are followed."""
    found = ctt.factorial_of(ie, pairs, kind="effects", names=[name])
    sums = ctt.shares_of_effect(found).iloc[0]
    row = {}
    for factor in ("subject", "attractor", "both"):
        row[factor] = sums[factor]
        row |= {f"{factor} {end}": sums[f"{factor}_{end}"] for end in ("low", "high")}
    row["net subject"] = found.subject[0].sum()
    row["n"] = len(followed)
    if followed:
        some = ctt.factorial_of(ie, pairs, features=followed, kind="effects", names=[name])
        of_some = ctt.shares_of_effect(some).iloc[0]
        row["of subject latents"] = of_some["subject"]
        row |= {f"of subject latents {end}": of_some[f"subject_{end}"] for end in ("low", "high")}
    return row


# ---- what a checkpoint holds


def held(context: Context, alone: ctt.Effects, others: PredictedOthers) -> pd.DataFrame:
    """Do latents that follow the subject on the noun in between do so for one checkpoint alone?"""
    task = context.tasks[1]
    pairs = context.pairs(task, "find")
    x = hooks.stacked_activations(context.ckpts, pairs.input_ids, pairs.attention_mask)
    x = x[torch.arange(len(x)), pairs.answer_position.to(x.device)]

    def follows(x: Float[Tensor, "pairs n d_model"], some: list[int] | None) -> ctt.Factorial:
        f = context.crosscoder.encode(x).detach().cpu().numpy()
        return ctt.factorial_of(f, pairs, features=some, kind="activations")

    followed = np.flatnonzero(follows(x, None).label[0] == "subject").tolist()
    if not followed:
        return pd.DataFrame(columns=["checkpoint", "read from", "latents"])
    as_read = follows(x, followed)
    rows = []
    for here, name in enumerate(context.names):
        readings = {
            "all": (as_read, context.effects(task, "find")),
            "one": (follows(others(here, x[:, here]), followed), alone),
        }
        for what, (found, effects) in readings.items():
            row = {"checkpoint": name, "read from": what, "latents": len(followed)}
            for label in LABELS:
                row[label] = int((found.label[0] == label).sum())
            row["subject's share"] = mean(found.shares["subject"][0])
            row["size"] = np.median(found.subject[0] / as_read.subject[0])
            ie = effects.per_pair[here].to_dense().double().numpy()
            of_effects = ctt.factorial_of(ie, pairs, features=followed, kind="effects")
            summed = ctt.shares_of_effect(of_effects).iloc[0]
            row["effect"] = summed["subject"]
            row |= {f"effect {end}": summed[f"subject_{end}"] for end in ("low", "high")}
            rows.append(row)
    return pd.DataFrame(rows)
