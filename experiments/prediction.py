"""Shares found on one half of the sentences against exact effects on the other half."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

import ctt_helpers as ctt
from ctt_helpers.metrics import PER_LATENT, rank_correlation
from ctt_helpers.uncertainty import DRAWS
from experiments.context import INACTIVE, Context, active_by, short

CHEAP = ("atp", "ig")
RANK = "rank correlation"
ERROR = "error"
BASE = "RelDec"  # the predictor that the others are compared with

TABLES = {
    "prediction": (
        "One row for each task and predictor of a latent's share |IE_c| / sum |IE| of exact "
        "effects on the *test* sentences: RelIE on the *find* sentences (by three methods; "
        "ablation is the same as the truth, and says how well the truth itself comes back) and "
        "RelDec. latents: those that are active on both halves; rank correlation: over latents, at "
        "each checkpoint and on average; error: mean |difference| of a share; - RelDec: by how "
        "much it differs from RelDec's. low and high: 95 % intervals over test sentences, the "
        "latents kept; low, latents and high, latents: over latents, the sentences kept. pooled: a "
        "latent's rows of all tasks, drawn together."
    )
}


@dataclass
class Case:
    """What is to be predicted on one task, and by what.

    Attributes:
        guesses: predictor -> [checkpoints, items] shares; `BASE` is one of them.
        target: [checkpoints, items] shares that are to be predicted.
        draws: [draws, checkpoints, items] effects on sentences drawn anew; an item that none of
            them has is left out of that draw.
        latents: [items] whose they are: items of one latent are drawn together. None: each is a
            latent by itself.
    """

    guesses: dict[str, Float[np.ndarray, "checkpoints items"]]
    target: Float[np.ndarray, "checkpoints items"]
    draws: Float[np.ndarray, "draws checkpoints items"]
    latents: Int[np.ndarray, " items"] | None = None


def run(context: Context) -> pd.DataFrame:
    """Shares found on the find half against the shares of exact effects on the test half.

    The latents are those that are active by exact effects on both halves. There are two kinds of
    95 % intervals: bootstrap over the test sentences (twins together), with latents and predictions
    kept; and bootstrap over the latents, with the sentences kept.
    """
    rel_dec = ctt.rel_dec(context.crosscoder.decoder_norms())
    cases = [case_of(context, task, rel_dec) for task in context.tasks]
    rows = []
    for task, case in zip(context.tasks, cases, strict=True):
        rows += compare(short(task), case, context.names, context.seed)
    rows += compare("pooled", pooled(cases), context.names, context.seed)
    return pd.DataFrame(rows)


def case_of(context: Context, task: str, rel_dec: PER_LATENT) -> Case:
    """One task, with the latents that are active on both halves."""
    found = {m: context.effects(task, "find", m).mean for m in ("ablation", *CHEAP)}
    test = context.effects(task, "test")
    kept = active_by(ctt.rel_ie(found["ablation"], INACTIVE))
    kept &= active_by(ctt.rel_ie(test.mean, INACTIVE))
    guesses = {f"RelIE, {m}": ctt.rel_ie(ie, 0)[:, kept] for m, ie in found.items()}
    guesses[BASE] = rel_dec[:, kept]
    draws: DRAWS = context.draws(test, context.pairs(task, "test"))
    return Case(
        guesses=guesses,
        target=ctt.rel_ie(test.mean, 0)[:, kept],
        draws=draws[..., kept],
        latents=np.flatnonzero(kept),
    )


def pooled(cases: Sequence[Case]) -> Case:
    """The items of all cases side by side."""
    guesses = {
        name: np.concatenate([case.guesses[name] for case in cases], axis=1)
        for name in cases[0].guesses
    }
    return Case(
        guesses=guesses,
        target=np.concatenate([case.target for case in cases], axis=1),
        draws=np.concatenate([case.draws for case in cases], axis=2),
        latents=np.concatenate([case.latents for case in cases]),
    )


def compare(task: str, case: Case, names: Sequence[str], seed: int = 0) -> list[dict]:
    """One row a predictor: how well it does, with intervals, and how far it is ahead of RelDec.

    Intervals over sentences ("low", "high") are 1.96 standard deviations over the draws around the
    value itself, because the draws are biased: they hold the noise of the sentences twice, so their
    correlations are lower. Those over latents ("low, latents", "high, latents") are percentiles of
    as many draws.

    Args:
        task: its name.
        case: shares to be predicted, and predictions.
        names: of the checkpoints.
        seed: of the draws of latents.
    """
    guesses, target = case.guesses, case.target
    over_sentences = {name: [] for name in guesses}
    for draw in np.abs(case.draws):
        there = draw.sum(0) > 0
        truth = draw[:, there] / draw[:, there].sum(0)
        for name, guess in guesses.items():
            over_sentences[name].append(fit(guess[:, there], truth))
    over_latents = {name: [] for name in guesses}
    n_items = target.shape[1]
    whose = np.arange(n_items) if case.latents is None else case.latents
    for items in latents_drawn(whose, len(case.draws), seed):
        for name, guess in guesses.items():
            over_latents[name].append(fit(guess[:, items], target[:, items]))
    sentences = {name: pd.DataFrame(found) for name, found in over_sentences.items()}
    latents = {name: pd.DataFrame(found) for name, found in over_latents.items()}

    points = {name: fit(guess, target) for name, guess in guesses.items()}
    rows = []
    for name, guess in guesses.items():
        row = {"task": task, "predictor": name, "latents": n_items}
        for checkpoint, value in zip(names, rank_correlation(guess, target), strict=True):
            row[f"{RANK} {checkpoint}"] = value
        for figure in (RANK, ERROR):
            row |= with_intervals(
                figure, points[name][figure], sentences[name][figure], latents[name][figure]
            )
            row |= with_intervals(
                f"{figure} - {BASE}",
                points[name][figure] - points[BASE][figure],
                sentences[name][figure] - sentences[BASE][figure],
                latents[name][figure] - latents[BASE][figure],
            )
        rows.append(row)
    return rows


def fit(
    guess: Float[np.ndarray, "checkpoints items"], truth: Float[np.ndarray, "checkpoints items"]
) -> dict[str, float]:
    """Rank correlation, mean over checkpoints, and mean absolute error."""
    return {RANK: rank_correlation(guess, truth).mean(), ERROR: np.abs(guess - truth).mean()}


def with_intervals(
    title: str, value: float, over_sentences: pd.Series, over_latents: pd.Series
) -> dict[str, float]:
    """A figure with its two intervals, as columns of the table."""
    spread = 1.96 * over_sentences.to_numpy().std()
    low, high = np.nanquantile(over_latents, (0.025, 0.975))
    return {
        title: value,
        f"{title} low": value - spread,
        f"{title} high": value + spread,
        f"{title} low, latents": low,
        f"{title} high, latents": high,
    }


def latents_drawn(
    latents: Int[np.ndarray, " items"], n_draws: int, seed: int
) -> list[Int[np.ndarray, " drawn"]]:
    """Items of latents drawn with replacement, as many latents as there are.

    A latent brings all its items along.
    """
    rng = np.random.default_rng(seed)
    who = np.unique(latents)
    items = [np.flatnonzero(latents == latent) for latent in who]
    draws = []
    for _ in range(n_draws):
        drawn = rng.integers(len(who), size=len(who))
        draws.append(np.concatenate([items[index] for index in drawn]))
    return draws
