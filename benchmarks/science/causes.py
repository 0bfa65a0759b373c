"""Do RelIE and RelDec predict causes? Held-out effects, the ablation table, what the choices change, which classes."""

import numpy as np
import pandas as pd

import ctt_helpers as ctt
from benchmarks.science import page
from benchmarks.science.context import INACTIVE, Context, decide, labels, short, spearman
from ctt_helpers.activations import stacked_activations
from ctt_helpers.controls import control_groups

CHEAP = ("atp", "ig")
SIZES, N_CONTROLS = (10, 100), 5


def run(context: Context) -> dict[str, pd.DataFrame]:
    return {
        "prediction": prediction(context),
        "ablation_groups": ablation_groups(context),
        "choices": choices(context),
        "classes": classes(context),
    }


def prediction(context: Context) -> pd.DataFrame:
    """Shares found on one half of the pairs against the shares of exact effects on the other half.

    The latents are those that are active by exact effects on both halves. Intervals: 95 %, bootstrap over the test
    sentences (twins together), with latents and predictions kept.
    """
    rows, target, drawn, guesses = [], [], [], []
    rel_dec = ctt.rel_dec(context.crosscoder.decoder_norms())
    for task in context.tasks:
        found = {m: context.effects(task, "find", m).mean for m in ("ablation", *CHEAP)}
        test = context.effects(task, "test")
        kept = ~np.isnan(ctt.rel_ie(found["ablation"], INACTIVE) + ctt.rel_ie(test.mean, INACTIVE)).any(0)
        guess = {f"RelIE, {m}": ctt.rel_ie(ie, 0)[:, kept] for m, ie in found.items()} | {"RelDec": rel_dec[:, kept]}
        draws = context.draws(test, context.pairs(task, "test"))[..., kept]
        target.append(ctt.rel_ie(test.mean, 0)[:, kept])
        drawn.append(draws)
        guesses.append(guess)
        rows += compare(short(task), guess, target[-1], drawn[-1], context.names)
    pooled = {name: np.concatenate([g[name] for g in guesses], axis=1) for name in guesses[0]}
    rows += compare("pooled", pooled, np.concatenate(target, 1), np.concatenate(drawn, 2), context.names)
    return pd.DataFrame(rows)


def compare(task: str, guesses: dict, target: np.ndarray, draws: np.ndarray, names: list[str]) -> list[dict]:
    """One row a predictor: rank correlation over latents at each checkpoint, mean error, and how far it beats RelDec.

    Intervals are 1.96 standard deviations over the draws around the value itself, because the draws are biased: they
    hold the noise of the sentences twice, so their correlations are lower.

    Args:
        guesses: predictor -> [checkpoints, latents] shares; "RelDec" is one of them.
        target: [checkpoints, latents] shares to be predicted.
        draws: [draws, checkpoints, latents] effects on sentences drawn anew; a latent that none of them has is left
            out of that draw.
    """
    points = {k: _fit(g, target) for k, g in guesses.items()}
    drawn = {k: [] for k in guesses}
    for draw in np.abs(draws):
        there = draw.sum(0) > 0
        truth = draw[:, there] / draw[:, there].sum(0)
        for name, guess in guesses.items():
            drawn[name].append(_fit(guess[:, there], truth))
    drawn = {k: np.array(v) for k, v in drawn.items()}
    rows = []
    for name, guess in guesses.items():
        row = {"task": task, "predictor": name, "latents": target.shape[1]}
        row |= {f"rank correlation {c}": r for c, r in zip(names, spearman(guess, target), strict=True)}
        for i, figure in enumerate(("rank correlation", "error")):
            for versus, base in (("", 0.0), (" - RelDec", 1.0)):
                value = points[name][i] - base * points["RelDec"][i]
                spread = 1.96 * (drawn[name][:, i] - base * drawn["RelDec"][:, i]).std()
                title = f"{figure}{versus}"
                row |= {title: value, f"{title} low": value - spread, f"{title} high": value + spread}
        rows.append(row)
    return rows


def _fit(guess: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    return spearman(guess, truth).mean(), np.abs(guess - truth).mean()


def ablation_groups(context: Context) -> pd.DataFrame:
    """The top helpers of each checkpoint removed there, against random and matched groups of the same size.

    Helpers: the largest exact effects above 0 on the find half, at that checkpoint. Random groups are drawn from all
    latents that are active on the task, helpers included; matched ones take, for each helper, a latent outside the
    group that writes about as much at the answer position. Measured on the test half.
    """
    rows, rng = [], np.random.default_rng(context.seed)
    for task in context.tasks:
        ie, size, test = context.effects(task, "find").mean, written(context, task), context.pairs(task, "test")
        active = np.flatnonzero((ie != 0).any(0))
        for k in SIZES:
            top = [[int(i) for i in np.argsort(-e)[:k] if e[i] > 0] for e in ie]
            drawn = {"random": [[rng.choice(active, len(g), replace=False) for g in top] for _ in range(N_CONTROLS)]}
            matched = [_matched(g, active, context.seed, s) for g, s in zip(top, size, strict=True)]
            if all(matched):
                drawn["matched"] = list(zip(*matched, strict=True))
            tables = {"top": [_changes(context, test, top)]}
            tables |= {kind: [_changes(context, test, g) for g in groups] for kind, groups in drawn.items()}
            for c, name in enumerate(context.names):
                first = tables["top"][0].iloc[c]
                row = {"task": short(task), "k": k, "checkpoint": name, "latents": len(top[c]), "active": len(active)}
                row |= {"accuracy": first["accuracy_before"], "log-prob. difference": first["logit_difference_before"]}
                for kind in ("top", "random", "matched"):
                    for figure in ("accuracy", "log-prob."):
                        found = [t[figure].iloc[c] for t in tables.get(kind, [])]
                        row[f"{figure}: {kind}"] = np.mean(found) if found else np.nan
                        if kind != "top":
                            row[f"{figure}: {kind}, worst"] = min(found, default=np.nan)
                rows.append(row | {"stderr": first["effect_stderr"], "pairs": int(first["n_pairs"])})
    return pd.DataFrame(rows)


def written(context: Context, task: str) -> np.ndarray:
    """Activation times decoder norm at the answer position, mean over the find half: [checkpoints, latents]."""
    pairs = context.pairs(task, "find")
    x = stacked_activations(context.ckpts, pairs.input_ids, pairs.attention_mask)
    f = context.crosscoder.encode(x[range(len(x)), pairs.answer_position]).detach().cpu().numpy()
    return f.mean(0) * context.crosscoder.decoder_norms().detach().cpu().numpy() + 1e-6


def _matched(group: list[int], active: np.ndarray, seed: int, size: np.ndarray) -> list[list[int]]:
    """Matched groups; none where there is no choice: fewer than twice as many latents are left."""
    if len(active) - len(group) < 2 * len(group):
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
    pooled = frames["prediction"].query("task == 'pooled'").set_index("predictor")["rank correlation"]
    groups = frames["ablation_groups"]
    last = groups[(groups["checkpoint"] == groups["checkpoint"].iloc[-1]) & (groups["k"] == groups["k"].min())]
    parts = [last[f"log-prob.: {kind}"].mean() for kind in ("top", "random")]
    return (
        f"**Causes on other sentences.** Rank correlation of {_listed(pooled)}. The top {last['k'].iloc[0]} removed at "
        f"{last['checkpoint'].iloc[0]}: {parts[0]:+.2f} logits, random ones {parts[1]:+.2f} (mean over tasks)."
    )


def brief(frames: dict[str, pd.DataFrame]) -> str:
    """RelIE and RelDec, a row a task."""
    table, figure = frames["prediction"], "rank correlation"
    numbers = table[[figure, f"{figure} low", f"{figure} high"]].clip(-1, 1).to_numpy()
    table = table.assign(shown=[f"{r:.2f} [{low:.2f}, {high:.2f}]" for r, low, high in numbers])
    order = list(dict.fromkeys(table["predictor"]))
    wide = table.pivot(index="task", columns="predictor", values="shown").loc[list(dict.fromkeys(table["task"])), order]
    return page.table(wide.reset_index())


def _listed(figures: pd.Series) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())


def section(frames: dict[str, pd.DataFrame]) -> str:
    return "\n\n".join(
        [
            "## Does RelIE predict causes better than RelDec?",
            _prediction_text(frames["prediction"]),
            "## The top features removed",
            _ablation_text(frames["ablation_groups"]),
            "## What two choices change",
            _choices_text(frames["choices"]),
            "## Classes with their uncertainty",
            _classes_text(frames["classes"]),
        ]
    )


def _cell(row: pd.Series, figure: str, digits: int = 2) -> str:
    return f"{row[figure]:.{digits}f} [{row[f'{figure} low']:.{digits}f}, {row[f'{figure} high']:.{digits}f}]"


def _prediction_text(table: pd.DataFrame) -> str:
    figure, rows = "rank correlation", []
    for task, part in table.groupby("task", sort=False):
        row = {"task": task, "latents": part["latents"].iloc[0]}
        row |= {p["predictor"]: _cell(p, figure) for _, p in part.iterrows()}
        ahead = part[part["predictor"] == "RelIE, atp"].iloc[0]
        rows.append(row | {"atp - RelDec": _cell(ahead, f"{figure} - RelDec")})
    others = table[table["predictor"] != "RelDec"]
    wins = others[f"{figure} - RelDec low"] > 0
    losses = others[f"{figure} - RelDec high"] < 0
    told = "; ".join(
        f"{p}: ahead on {wins[part.index].sum()}, behind on {losses[part.index].sum()} of {len(part)}"
        for p, part in others.groupby("predictor", sort=False)
    )
    pooled = table[table["task"] == "pooled"]
    errors = ", ".join(f"{p['predictor']} {_cell(p, 'error', 3)}" for _, p in pooled.iterrows())
    return (
        "Each latent's share |IE_c| / sum |IE| of exact effects on the *test* sentences, against shares found without "
        "them: RelIE on the *find* sentences and RelDec. Rank correlation over latents, mean over checkpoints, with "
        '95 % intervals (bootstrap over test sentences). "RelIE, ablation" is the same estimator as the truth: how '
        "well the truth itself comes back.\n\n"
        f"{page.table(pd.DataFrame(rows))}\n\n"
        f"Where the interval of the difference from RelDec leaves out 0 (rows of the table, pooled included): {told}. "
        f"Mean absolute error of a share, pooled: {errors}."
    )


def _ablation_text(table: pd.DataFrame) -> str:
    shown = table[["task", "checkpoint", "accuracy"]].drop_duplicates().reset_index(drop=True)
    for k, part in table.groupby("k"):
        for figure in ("accuracy", "log-prob."):
            cells = part[[f"{figure}: {kind}" for kind in ("top", "random", "matched")]].to_numpy()
            shown[f"{figure}, top {k}"] = [" / ".join("-" if v != v else f"{v:+.2f}" for v in row) for row in cells]
    counts = table.groupby("k")[["latents", "active"]].agg(["min", "max"])
    last = counts.iloc[-1]["latents"]
    worse, more = (table[f"{f}: top"] < table[f"{f}: random, worst"] for f in ("accuracy", "log-prob."))
    return (
        "Change of accuracy and of the log-probability difference on the test half without the k strongest helpers of "
        f"that checkpoint (chosen on the find half): top / random / matched (means of {N_CONTROLS} groups). Random: "
        "from all latents active on the task. Matched: other latents that write as much at the answer position (-: "
        "too few are left). Only latents with an effect above 0 count as helpers: "
        f"top {counts.index[-1]} are {last['min']} to {last['max']} of {table['active'].min()} to "
        f"{table['active'].max()} active ones.\n\n{page.table(shown)}\n\n"
        f"The top group costs more accuracy than the worst of its random groups in {worse.sum()} of {len(table)} "
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
