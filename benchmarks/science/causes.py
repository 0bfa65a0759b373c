"""Do RelIE and RelDec predict causes? Held-out effects, the ablation table, what the choices change, which classes."""

import numpy as np
import pandas as pd

import ctt_helpers as ctt
from benchmarks.science import page, prediction
from benchmarks.science.context import INACTIVE, Context, decide, labels, short
from ctt_helpers.activations import stacked_activations
from ctt_helpers.controls import control_groups

SIZES, N_CONTROLS = (10, 100), 5


def run(context: Context) -> dict[str, pd.DataFrame]:
    return {
        "prediction": prediction.run(context),
        "ablation_groups": ablation_groups(context),
        "choices": choices(context),
        "classes": classes(context),
    }


def ablation_groups(context: Context) -> pd.DataFrame:
    """The top helpers of each checkpoint removed there, against random and matched groups of the same size, and all.

    Helpers: the largest exact effects above 0 on the find half, at that checkpoint. Random groups are drawn from the
    other latents that are active on the task, none of them in the top group (none where too few are left); matched
    ones take, for each helper, one of these that writes about as much at the answer position. All: every latent of
    the dictionary at once, which leaves b_dec and what the crosscoder misses. Measured on the test half.
    """
    rows = []
    for task in context.tasks:
        ie, size, test = context.effects(task, "find").mean, written(context, task), context.pairs(task, "test")
        active = np.flatnonzero((ie != 0).any(0))
        every = [_changes(context, test, [range(ie.shape[1])] * len(ie))]
        for k in SIZES:
            top = [[int(i) for i in np.argsort(-e)[:k] if e[i] > 0] for e in ie]
            drawn = {
                "random": [_others(g, active, context.seed, 1) for g in top],
                "matched": [_others(g, active, context.seed, 2, s) for g, s in zip(top, size, strict=True)],
            }
            tables = {"top": [_changes(context, test, top)], "all": every}
            for kind, found in drawn.items():
                by_draw = zip(*[groups or [[]] * N_CONTROLS for groups in found], strict=True)
                tables[kind] = [_changes(context, test, groups) for groups in by_draw]
            for c, name in enumerate(context.names):
                first = tables["top"][0].iloc[c]
                row = {"task": short(task), "k": k, "checkpoint": name, "latents": len(top[c]), "active": len(active)}
                row |= {"accuracy": first["accuracy_before"], "log-prob. difference": first["logit_difference_before"]}
                for kind in ("top", "random", "matched", "all"):
                    there = kind not in drawn or drawn[kind][c]
                    for figure in ("accuracy", "log-prob."):
                        found = [t[figure].iloc[c] for t in tables[kind]] if there else []
                        row[f"{figure}: {kind}"] = np.mean(found) if found else np.nan
                        if kind in drawn:
                            row[f"{figure}: {kind}, worst"] = min(found, default=np.nan)
                rows.append(row | {"stderr": first["effect_stderr"], "pairs": int(first["n_pairs"])})
    return pd.DataFrame(rows)


def written(context: Context, task: str) -> np.ndarray:
    """Activation times decoder norm at the answer position, mean over the find half: [checkpoints, latents]."""
    pairs = context.pairs(task, "find")
    x = stacked_activations(context.ckpts, pairs.input_ids, pairs.attention_mask)
    f = context.crosscoder.encode(x[range(len(x)), pairs.answer_position]).detach().cpu().numpy()
    return f.mean(0) * context.crosscoder.decoder_norms().detach().cpu().numpy() + 1e-6


def _others(group: list[int], active: np.ndarray, seed: int, times: int, size: np.ndarray | None = None) -> list:
    """Groups of latents outside this one; none where fewer than `times` as many are left as it has."""
    if len(set(active) - set(group)) < times * len(group):
        return []
    return control_groups(group, active.tolist(), N_CONTROLS, seed=seed, size=size)


def _changes(context: Context, pairs: ctt.MinimalPairs, groups: list) -> pd.DataFrame:
    table = ctt.ablate(context.crosscoder, context.ckpts, pairs, groups)
    change = {"accuracy": table["accuracy_after"] - table["accuracy_before"], "log-prob.": -table["effect"]}
    return table[["accuracy_before", "logit_difference_before", "effect_stderr", "n_pairs"]].assign(**change)


def choices(context: Context) -> pd.DataFrame:
    """What two choices change: effects divided by their checkpoint's total; |.| before the mean over pairs, or after.

    A latent's class is that of its RelIE on the find half. Counted are the latents that are active under both.
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
            both = ~np.isnan(plain + other).any(0)
            a, b = labels(plain, context.names), labels(other, context.names)
            row = {"task": short(task), "choice": choice, "latents": int(both.sum())}
            row |= {"class changes": int((a != b)[both].sum()), "share": (a != b)[both].mean()}
            row |= {"largest share moves": int((plain.argmax(0) != other.argmax(0))[both].sum())}
            row |= {"active before": int((~np.isnan(plain[0])).sum()), "active after": int((~np.isnan(other[0])).sum())}
            rows.append(row | {f"total |IE| {n}": t for n, t in zip(context.names, total, strict=True)})
    return pd.DataFrame(rows)


def classes(context: Context) -> pd.DataFrame:
    """Counts of classes by RelIE on the find half: as they come, and of those how many 95 % of the draws share."""
    rows = []
    for task in context.tasks:
        effects, pairs = context.effects(task, "find"), context.pairs(task, "find")
        point = labels(ctt.rel_ie(effects.mean, INACTIVE), context.names)
        decided = decide(effects, context.draws(effects, pairs))
        for label in sorted({*point, *decided}):
            rows.append((short(task), label, int((point == label).sum()), int((decided == label).sum())))
    return pd.DataFrame(rows, columns=["task", "class", "as it comes", "decided"])


def headline(frames: dict[str, pd.DataFrame]) -> str:
    groups = frames["ablation_groups"]
    last = groups[(groups["checkpoint"] == groups["checkpoint"].iloc[-1]) & (groups["k"] == groups["k"].min())]
    figures = last.set_index("task")[[f"log-prob.: {kind}" for kind in ("top", "random", "all")]]
    cost = ", ".join(f"{task} {' / '.join(f'{v:+.2f}' for v in row)}" for task, *row in figures.itertuples())
    left = ", ".join(f"{r['task']} {r['accuracy'] + r['accuracy: all']:.2f}" for _, r in last.iterrows())
    return (
        f"**Causes on other sentences.** {prediction.headline(frames['prediction'])} Logits when the top "
        f"{last['k'].iloc[0]} / as many random others / all latents together are removed at "
        f"{last['checkpoint'].iloc[0]}: {cost}. Without any feature accuracy there is still {left}: what the "
        "crosscoder misses, and the ablation leaves in place, knows much of the answer."
    )


def brief(frames: dict[str, pd.DataFrame]) -> str:
    return prediction.brief(frames["prediction"])


def section(frames: dict[str, pd.DataFrame]) -> str:
    return "\n\n".join(
        [
            "## Does RelIE predict causes better than RelDec?",
            prediction.section(frames["prediction"]),
            "## The top features removed",
            _ablation_text(frames["ablation_groups"]),
            "## What two choices change",
            _choices_text(frames["choices"]),
            "## Classes with their uncertainty",
            _classes_text(frames["classes"]),
        ]
    )


def _ablation_text(table: pd.DataFrame) -> str:
    shown = table[["task", "checkpoint", "accuracy", "log-prob. difference"]].drop_duplicates().reset_index(drop=True)
    for k, part in table.groupby("k"):
        for figure in ("accuracy", "log-prob."):
            cells = part[[f"{figure}: {kind}" for kind in ("top", "random", "matched")]].to_numpy()
            shown[f"{figure}, top {k}"] = [" / ".join("-" if v != v else f"{v:+.2f}" for v in row) for row in cells]
    for figure in ("accuracy", "log-prob."):
        shown[f"{figure}, all"] = part[f"{figure}: all"].map("{:+.2f}".format).to_numpy()
    counts = table.groupby("k")[["latents", "active"]].agg(["min", "max"])
    last = counts.iloc[-1]["latents"]
    drawn = table[table["log-prob.: random"].notna()]
    worse, more = (drawn[f"{f}: top"] < drawn[f"{f}: random, worst"] for f in ("accuracy", "log-prob."))
    return (
        "Change of accuracy and of the log-probability difference on the test half without the k strongest helpers of "
        f"that checkpoint (chosen on the find half): top / random / matched (means of {N_CONTROLS} groups). Random: "
        "other latents active on the task, none of the top group among them. Matched: those that write as much at the "
        "answer position (-: too few are left to choose from). all: every latent of the dictionary, so that the bias "
        "and what the crosscoder misses are left. Only latents with an effect above 0 count as helpers: "
        f"top {counts.index[-1]} are {last['min']} to {last['max']} of {table['active'].min()} to "
        f"{table['active'].max()} active ones.\n\n{page.table(shown)}\n\n"
        f"The top group costs more accuracy than the worst of its random groups in {worse.sum()} of {len(drawn)} "
        f"cases, and more logits in {more.sum()}."
    )


def _choices_text(table: pd.DataFrame) -> str:
    totals = [c for c in table if c.startswith("total |IE| ")]
    wide = table[table["choice"] == table["choice"].iloc[0]][["task", *totals]].reset_index(drop=True)
    for choice, part in table.groupby("choice", sort=False):
        parts = zip(part["class changes"], part["latents"], strict=True)
        wide[choice] = [f"{changed} of {latents}" for changed, latents in parts]
    return (
        "How many latents change their class when effects are divided by their checkpoint's total, or when the "
        f"absolute value is taken before the mean over pairs (latents active under both).\n\n{page.table(wide)}"
    )


def _classes_text(table: pd.DataFrame) -> str:
    kind = table["class"].str.split().str[0]
    rows = []
    for task, part in table.groupby("task", sort=False):
        counted = part.groupby(kind[part.index], sort=False)[["as it comes", "decided"]].sum()
        row = {"task": task}
        for name in [k for k in kind.unique() if k != "undecided"]:
            row[name] = "{} ({})".format(*(counted.loc[name] if name in counted.index else (0, 0)))
        rows.append(row | {"undecided": counted["decided"].get("undecided", 0)})
    return (
        "Latents a class by RelIE on the find half; in brackets, how many of them keep it in 95 % of bootstrap draws "
        f"over sentences.\n\n{page.table(pd.DataFrame(rows))}"
    )
