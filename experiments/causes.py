"""Do RelIE and RelDec predict causes? Effects on other sentences, and top features removed.

And what the choices behind RelIE change, and which classes the sentences decide.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.controls import control_groups
from ctt_helpers.metrics import PER_LATENT
from experiments import prediction
from experiments.context import INACTIVE, Context, active_by, decide, labels, short

SIZES = (10, 100)  # of the groups of helpers
N_CONTROLS = 5  # random and matched groups for each of them
FIGURES = ("accuracy", "log-prob.")

TABLES = {
    **prediction.TABLES,
    "ablation_groups": (
        "One row for each task, k and checkpoint: the k strongest helpers of that checkpoint "
        "(largest effects above 0 on the find half; latents: how many these are) removed together, "
        "measured on the test half. accuracy and log-prob. difference: before; then their changes "
        f"without the top group, without random and matched groups of its size (mean of "
        f"{N_CONTROLS}, and the worst; empty where too few latents are left to draw from), and "
        "without all latents of the dictionary, which leaves the bias and what the crosscoder "
        "misses. random: other latents active on the task; matched: those of them that write as "
        "much at the answer position; stderr: of the change of log-prob. by the top group."
    ),
    "choices": (
        "One row for each task and choice: how many latents change their class by RelIE (find "
        "half) when effects are divided by their checkpoint's total, or when the absolute value is "
        "taken before the mean over pairs. latents: those active under both; share: of them; "
        "largest share moves: to another checkpoint; total |IE|: the totals."
    ),
    "classes": (
        "One row for each task and class by RelIE on the find half: number of latents as it comes, "
        "and of those whose class 95 % of the bootstrap draws over sentences share."
    ),
}


def run(context: Context) -> dict[str, pd.DataFrame]:
    return {
        "prediction": prediction.run(context),
        "ablation_groups": ablation_groups(context),
        "choices": choices(context),
        "classes": classes(context),
    }


# ---- groups removed


def ablation_groups(context: Context) -> pd.DataFrame:
    """The top helpers of each checkpoint removed there, against other groups of the same size.

    Helpers: the largest exact effects above 0 on the find half, at that checkpoint. Random groups
    are drawn from the other latents that are active on the task (there are none where too few are
    left). Matched groups take, for each helper, one of these that writes about as much at the
    answer position. All: every latent of the dictionary at once. Measured on the test half.
    """
    rows = []
    for task in context.tasks:
        ie = context.effects(task, "find").mean
        size = written(context, task)
        test = context.pairs(task, "test")
        active = np.flatnonzero((ie != 0).any(0))
        all_latents = [range(ie.shape[1])] * len(ie)
        without_all = changes(context, test, all_latents)
        for k in SIZES:
            top = [helpers(effects, k) for effects in ie]
            random = [other_groups(group, active, context.seed) for group in top]
            matched = [
                matched_groups(group, active, context.seed, of_checkpoint)
                for group, of_checkpoint in zip(top, size, strict=True)
            ]
            without_top = changes(context, test, top)
            without_random = changes_of_draws(context, test, random)
            without_matched = changes_of_draws(context, test, matched)
            for c, name in enumerate(context.names):
                before = without_top.iloc[c]
                row = {
                    "task": short(task),
                    "k": k,
                    "checkpoint": name,
                    "latents": len(top[c]),
                    "active": len(active),
                    "accuracy": before["accuracy_before"],
                    "log-prob. difference": before["logit_difference_before"],
                }
                for figure in FIGURES:
                    row[f"{figure}: top"] = without_top[figure].iloc[c]
                row |= mean_and_worst("random", without_random, c, there=bool(random[c]))
                row |= mean_and_worst("matched", without_matched, c, there=bool(matched[c]))
                for figure in FIGURES:
                    row[f"{figure}: all"] = without_all[figure].iloc[c]
                row["stderr"] = before["effect_stderr"]
                row["pairs"] = int(before["n_pairs"])
                rows.append(row)
    return pd.DataFrame(rows)


def helpers(effects: Float[np.ndarray, " latents"], k: int) -> list[int]:
    """The k latents with the largest effects above 0."""
    return [int(latent) for latent in np.argsort(-effects)[:k] if effects[latent] > 0]


def other_groups(group: list[int], active: Int[np.ndarray, " active"], seed: int) -> list:
    """Random groups of active latents outside this one; none where too few are left."""
    if len(set(active) - set(group)) < len(group):
        return []
    return control_groups(group, active.tolist(), N_CONTROLS, seed=seed)


def matched_groups(
    group: list[int],
    active: Int[np.ndarray, " active"],
    seed: int,
    size: Float[np.ndarray, " latents"],
) -> list:
    """Groups of others, of like size each; none unless twice as many latents are left to choose."""
    if len(set(active) - set(group)) < 2 * len(group):
        return []
    return control_groups(group, active.tolist(), N_CONTROLS, seed=seed, size=size)


def written(context: Context, task: str) -> PER_LATENT:
    """Activation times decoder norm at the answer position, mean over the find half."""
    pairs = context.pairs(task, "find")
    x = hooks.stacked_activations(context.ckpts, pairs.input_ids, pairs.attention_mask)
    at_answer = x[range(len(x)), pairs.answer_position]
    f = context.crosscoder.encode(at_answer).detach().cpu().numpy()
    norms = context.crosscoder.decoder_norms().detach().cpu().numpy()
    return f.mean(0) * norms + 1e-6  # sizes must be above 0


def changes(
    context: Context, pairs: ctt.MinimalPairs, groups: Sequence[Iterable[int]]
) -> pd.DataFrame:
    """What removing a group at each checkpoint does: the table of `ablate`, with two changes."""
    table = ctt.ablate(context.crosscoder, context.ckpts, pairs, groups)
    return table.assign(
        **{
            "accuracy": table["accuracy_after"] - table["accuracy_before"],
            "log-prob.": -table["effect"],
        }
    )


def changes_of_draws(
    context: Context, pairs: ctt.MinimalPairs, groups: list[list[list[int]]]
) -> list[pd.DataFrame]:
    """One table of changes a draw.

    Args:
        context, pairs: what is measured on.
        groups: of each checkpoint, its draws; empty where there are none.
    """
    tables = []
    for draw in range(N_CONTROLS):
        drawn = [of_checkpoint[draw] if of_checkpoint else [] for of_checkpoint in groups]
        tables.append(changes(context, pairs, drawn))
    return tables


def mean_and_worst(
    kind: str, tables: list[pd.DataFrame], checkpoint: int, there: bool
) -> dict[str, float]:
    """Columns of one kind of control: mean over the draws, and the worst of them."""
    row = {}
    for figure in FIGURES:
        values = [table[figure].iloc[checkpoint] for table in tables] if there else [np.nan]
        row[f"{figure}: {kind}"] = np.mean(values)
        row[f"{figure}: {kind}, worst"] = min(values)
    return row


# ---- choices, and classes


def choices(context: Context) -> pd.DataFrame:
    """What two choices change: effects over their checkpoint's total; |.| before the mean.

    A latent's class is that of its RelIE on the find half. The latents counted are those that are
    active under both.
    """
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
                "task": short(task),
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


def classes(context: Context) -> pd.DataFrame:
    """Counts of classes by RelIE on the find half: as they come, and decided by the sentences."""
    rows = []
    for task in context.tasks:
        effects = context.effects(task, "find")
        draws = context.draws(effects, context.pairs(task, "find"))
        point = labels(ctt.rel_ie(effects.mean, INACTIVE), context.names)
        decided = decide(effects, draws)
        for label in sorted({*point, *decided}):
            rows.append(
                {
                    "task": short(task),
                    "class": label,
                    "as it comes": int((point == label).sum()),
                    "decided": int((decided == label).sum()),
                }
            )
    return pd.DataFrame(rows)
