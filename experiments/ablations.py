"""What a latent is set to, and other choices behind RelIE: do ranks and classes agree?

Ablation to zero asks what a latent's being there does; to the mean over the task, what it does
beyond what all pairs have in common; to its value in the same sentence with another level of the
subject, or of the attractor, what its information about that noun does, and nothing else.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Int

import ctt_helpers as ctt
from ctt_helpers.metrics import rank_correlation
from experiments.context import INACTIVE, Context, active_by, decided, labels

N_PAIRS = 120
ZERO = "zero"

TABLES = {
    "baselines_of_ablation": (
        f"One row for each task and what latents are set to (find half, {N_PAIRS} pairs): zero; "
        "mean: over the task, at the same distance from the answer; other subject, other "
        "attractor: in the pair of the same words where that level alone is another. sum of |IE| "
        "at each checkpoint; active: latents active by RelIE; decided: of these; then, over the "
        "latents active under this and under zero (both): rank correlation of the effects with "
        "those of zero at each checkpoint, same sign: share of them, by |IE|, same class; of the "
        "classes decided under zero, how many are decided (decided too) and the same (same class)."
    ),
    "choices": (
        "One row for each task and choice: how many latents change their class by RelIE (find "
        "half) when effects are divided by their checkpoint's total, or when the absolute value is "
        "taken before the mean over pairs. latents: those active under both; share: of them; "
        "largest share moves: to another checkpoint; total |IE|: the totals."
    ),
}


def run(context: Context) -> dict[str, pd.DataFrame]:
    context = replace(context, n_pairs=N_PAIRS, _effects={})
    rows = []
    for task in context.tasks:
        print(f"ablations: {task}", flush=True)
        rows += baselines(context, task)
    return {"baselines_of_ablation": pd.DataFrame(rows), "choices": choices(context)}


# ---- what latents are set to


def baselines(context: Context, task: str) -> list[dict]:
    """One row a baseline, each against zero."""
    pairs = context.pairs(task, "find")
    found = {ZERO: context.effects(task, "find")}
    found["mean"] = ctt.indirect_effects(context.crosscoder, context.ckpts, pairs, baseline="mean")
    for factor in pairs.levels:
        partner = partners(pairs, factor)
        if (partner < 0).any():  # not a design, or other lengths
            continue
        found[f"other {factor}"] = ctt.indirect_effects(
            context.crosscoder, context.ckpts, pairs, baseline="resample", partner=partner
        )
    words = {name: labels(ctt.rel_ie(e.mean, INACTIVE), e.names) for name, e in found.items()}
    sure = {name: decided(effects, pairs) for name, effects in found.items()}
    zero = found[ZERO]
    is_sure = ~np.isin(sure[ZERO], ["undecided", "inactive"])
    rows = []
    for name, effects in found.items():
        active = words[name] != "inactive"
        both = active & (words[ZERO] != "inactive")
        row = {"task": task, "set to": name}
        size = np.abs(effects.mean)
        for c, checkpoint in enumerate(effects.names):
            row[f"sum of |IE| {checkpoint}"] = size[c].sum()
        row |= {"active": int(active.sum())}
        row["decided"] = int((~np.isin(sure[name], ["undecided", "inactive"])).sum())
        row["both"] = int(both.sum())
        ranks = rank_correlation(effects.mean[:, both], zero.mean[:, both])
        for checkpoint, rank in zip(effects.names, ranks, strict=True):
            row[f"rank correlation {checkpoint}"] = rank
        agree = np.sign(effects.mean) == np.sign(zero.mean)
        weight = np.abs(zero.mean)[:, both]
        row["same sign, by |IE|"] = (agree[:, both] * weight).sum() / weight.sum()
        row["same class"] = np.mean(words[name][both] == words[ZERO][both])
        row["decided under zero"] = int(is_sure.sum())
        decided_too = is_sure & ~np.isin(sure[name], ["undecided", "inactive"])
        row["decided too"] = int(decided_too.sum())
        row["the same class"] = int((sure[name] == sure[ZERO])[decided_too].sum())
        rows.append(row)
    return rows


def partners(pairs: ctt.MinimalPairs, factor: str) -> Int[np.ndarray, " pairs"]:
    """For each pair that of the same group in which this factor alone has another level; -1: none.

    It must have as many tokens.
    """
    partner = np.full(len(pairs), -1)
    if "group" not in pairs.table:
        return partner
    length = pairs.attention_mask.sum(1).tolist()
    others = [f"{name}_level" for name in pairs.levels if name != factor]
    own = f"{factor}_level"
    for _, rows in pairs.table.groupby(["group", *others], dropna=False):
        for row in rows.index:
            found = rows.index[rows[own] != rows[own][row]]
            found = [other for other in found if length[other] == length[row]]
            if found:
                partner[row] = found[0]
    return partner


# ---- choices


def choices(context: Context) -> pd.DataFrame:
    """What two choices change: effects over their checkpoint's total; |.| before the mean."""
    rows = []
    for task in context.tasks:
        effects = context.effects(task, "find")
        total = np.abs(effects.mean).sum(1)
        plain = ctt.rel_ie(effects.mean, INACTIVE)
        others = {
            "divided by the checkpoint's total": ctt.rel_ie(effects.mean, INACTIVE, total=total),
            "|.| before the mean": ctt.rel_ie(effects.abs_mean, INACTIVE),
        }
        for choice, other in others.items():
            both = active_by(plain) & active_by(other)
            changed = labels(plain, context.names) != labels(other, context.names)
            moved = plain.argmax(0) != other.argmax(0)
            row = {
                "task": task,
                "choice": choice,
                "latents": int(both.sum()),
                "class changes": int(changed[both].sum()),
                "share": changed[both].mean(),
                "largest share moves": int(moved[both].sum()),
                "active before": int(active_by(plain).sum()),
                "active after": int(active_by(other).sum()),
            }
            for name, size in zip(context.names, total, strict=True):
                row[f"total |IE| {name}"] = size
            rows.append(row)
    return pd.DataFrame(rows)
