"""Shares found on one half of the sentences against exact effects on the other: what `causes` opens with."""

import numpy as np
import pandas as pd

import ctt_helpers as ctt
from benchmarks.science import page
from benchmarks.science.context import INACTIVE, Context, short, spearman

CHEAP = ("atp", "ig")
FIGURE = "rank correlation"


def run(context: Context) -> pd.DataFrame:
    """Shares found on one half of the pairs against the shares of exact effects on the other half.

    The latents are those that are active by exact effects on both halves. Two kinds of 95 % intervals: bootstrap over
    the test sentences (twins together), with latents and predictions kept; and bootstrap over the latents, with the
    sentences kept. Pooled, a latent's rows of all tasks are drawn together.
    """
    rows, parts = [], []
    rel_dec = ctt.rel_dec(context.crosscoder.decoder_norms())
    for task in context.tasks:
        found = {m: context.effects(task, "find", m).mean for m in ("ablation", *CHEAP)}
        test = context.effects(task, "test")
        kept = ~np.isnan(ctt.rel_ie(found["ablation"], INACTIVE) + ctt.rel_ie(test.mean, INACTIVE)).any(0)
        guess = {f"RelIE, {m}": ctt.rel_ie(ie, 0)[:, kept] for m, ie in found.items()} | {"RelDec": rel_dec[:, kept]}
        draws = context.draws(test, context.pairs(task, "test"))[..., kept]
        parts.append((guess, ctt.rel_ie(test.mean, 0)[:, kept], draws, np.flatnonzero(kept)))
        rows += compare(short(task), *parts[-1][:3], context.names, parts[-1][3], context.seed)
    guesses, targets, drawn, latents = zip(*parts, strict=True)
    pooled = {name: np.concatenate([g[name] for g in guesses], axis=1) for name in guesses[0]}
    target, draws, latents = np.concatenate(targets, 1), np.concatenate(drawn, 2), np.concatenate(latents)
    return pd.DataFrame(rows + compare("pooled", pooled, target, draws, context.names, latents, context.seed))


def compare(
    task: str,
    guesses: dict,
    target: np.ndarray,
    draws: np.ndarray,
    names: list[str],
    latents: np.ndarray | None = None,
    seed: int = 0,
) -> list[dict]:
    """One row a predictor: rank correlation over latents at each checkpoint, mean error, and how far it beats RelDec.

    Intervals over sentences ("low", "high") are 1.96 standard deviations over the draws around the value itself,
    because the draws are biased: they hold the noise of the sentences twice, so their correlations are lower. Those
    over latents ("low, latents", "high, latents") are percentiles of as many draws.

    Args:
        guesses: predictor -> [checkpoints, items] shares; "RelDec" is one of them.
        target: [checkpoints, items] shares to be predicted.
        draws: [draws, checkpoints, items] effects on sentences drawn anew; an item that none of them has is left out
            of that draw.
        latents: [items] whose they are: items of one latent are drawn together. None: each is a latent by itself.
        seed: of the draws of latents.
    """
    points = {k: _fit(g, target) for k, g in guesses.items()}
    drawn, other = {k: [] for k in guesses}, {k: [] for k in guesses}
    for draw in np.abs(draws):
        there = draw.sum(0) > 0
        truth = draw[:, there] / draw[:, there].sum(0)
        for name, guess in guesses.items():
            drawn[name].append(_fit(guess[:, there], truth))
    for items in latents_drawn(np.arange(target.shape[1]) if latents is None else latents, len(draws), seed):
        for name, guess in guesses.items():
            other[name].append(_fit(guess[:, items], target[:, items]))
    drawn, other = ({k: np.array(v) for k, v in found.items()} for found in (drawn, other))
    rows = []
    for name, guess in guesses.items():
        row = {"task": task, "predictor": name, "latents": target.shape[1]}
        row |= {f"{FIGURE} {c}": r for c, r in zip(names, spearman(guess, target), strict=True)}
        for i, figure in enumerate((FIGURE, "error")):
            for versus, base in (("", 0.0), (" - RelDec", 1.0)):
                value = points[name][i] - base * points["RelDec"][i]
                spread = 1.96 * (drawn[name][:, i] - base * drawn["RelDec"][:, i]).std()
                low, high = np.nanquantile(other[name][:, i] - base * other["RelDec"][:, i], (0.025, 0.975))
                title = f"{figure}{versus}"
                row |= {title: value, f"{title} low": value - spread, f"{title} high": value + spread}
                row |= {f"{title} low, latents": low, f"{title} high, latents": high}
        rows.append(row)
    return rows


def _fit(guess: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    return spearman(guess, truth).mean(), np.abs(guess - truth).mean()


def latents_drawn(latents: np.ndarray, n_draws: int, seed: int) -> list[np.ndarray]:
    """Items of latents drawn with replacement, as many latents as there are; a latent brings all its items along."""
    rng, who = np.random.default_rng(seed), np.unique(latents)
    items = [np.flatnonzero(latents == i) for i in who]
    return [np.concatenate([items[j] for j in rng.integers(len(who), size=len(who))]) for _ in range(n_draws)]


def headline(table: pd.DataFrame) -> str:
    pooled = table[table["task"] == "pooled"].set_index("predictor")
    told = ", ".join(f"{name} {value:.2f}" for name, value in pooled[FIGURE].items())
    return f"Rank correlation of {told}. {_ahead(table)}"


def brief(table: pd.DataFrame) -> str:
    """RelIE and RelDec, a row a task, and how far RelIE is ahead."""
    wide = {name: part.set_index("task") for name, part in table.groupby("predictor", sort=False)}
    columns = {name: part.apply(_cell, axis=1, args=(FIGURE,)) for name, part in wide.items()}
    for name, part in wide.items():
        if name in ("RelIE, atp", "RelIE, ig"):
            columns[f"{name} - RelDec"] = part.apply(_cell, axis=1, args=(f"{FIGURE} - RelDec",))
    return f"In brackets: 95 % over latents.\n\n{page.table(pd.DataFrame(columns).reset_index())}"


def _cell(row: pd.Series, figure: str, over: str = ", latents", digits: int = 2) -> str:
    ends = (row[f"{figure} {end}{over}"] for end in ("low", "high"))
    return f"{row[figure]:.{digits}f} [{', '.join(f'{e:.{digits}f}' for e in ends)}]"


def _ahead(table: pd.DataFrame) -> str:
    """Where the interval of the difference from RelDec leaves out 0, over sentences and over latents."""
    difference, told = f"{FIGURE} - RelDec", []
    for name, part in table[table["predictor"] != "RelDec"].groupby("predictor", sort=False):
        found = []
        for over in ("", ", latents"):
            sides = {"ahead": part[f"{difference} low{over}"] > 0, "behind": part[f"{difference} high{over}"] < 0}
            found.append([f"{side} {_where(part['task'], mask)}" for side, mask in sides.items() if mask.any()])
        sentences, latents = (" and ".join(words) or "nowhere" for words in found)
        same = f"{name} {latents}"
        told.append(same if sentences == latents else f"{same} (over sentences alone: {sentences})")
    return f"Where a 95 % interval over latents leaves out 0, against RelDec: {'; '.join(told)}."


def _where(tasks: pd.Series, mask: pd.Series) -> str:
    return "everywhere" if mask.all() else f"on {', '.join(tasks[mask])}"


def section(table: pd.DataFrame) -> str:
    figure, shown = FIGURE, []
    for over in ("", ", latents"):
        rows = []
        for task, part in table.groupby("task", sort=False):
            row = {"task": task, "latents": part["latents"].iloc[0]}
            row |= {p["predictor"]: _cell(p, figure, over) for _, p in part.iterrows()}
            for _, p in part[part["predictor"] != "RelDec"].iterrows():
                row[f"{p['predictor'].split(', ')[1]} - RelDec"] = _cell(p, f"{figure} - RelDec", over)
            rows.append(row)
        shown.append(page.table(pd.DataFrame(rows)))
    errors = ", ".join(
        f"{p['predictor']} {_cell(p, 'error', digits=3)}" for _, p in table[table["task"] == "pooled"].iterrows()
    )
    return (
        "Each latent's share |IE_c| / sum |IE| of exact effects on the *test* sentences, against shares found without "
        "them: RelIE on the *find* sentences and RelDec. Rank correlation over latents, mean over checkpoints. "
        '"RelIE, ablation" is the same estimator as the truth: how well the truth itself comes back. First with 95 % '
        f"intervals over test sentences, the latents kept:\n\n{shown[0]}\n\n"
        "Then with 95 % intervals over latents (bootstrap), the sentences kept; pooled, a latent's rows of all tasks "
        f"are drawn together:\n\n{shown[1]}\n\n{_ahead(table)} Mean absolute error of a share, pooled, over latents: "
        f"{errors}."
    )
