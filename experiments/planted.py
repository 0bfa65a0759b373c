"""Planted truth: what a crosscoder finds of it, and which measure tells its kinds apart.

And where RelIE goes wrong.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers import planted as truth
from ctt_helpers.attribution import METHODS, Options
from ctt_helpers.metrics import rank_correlation
from experiments.context import SPECIFIC, Context

LATENTS = 96
TRAIN_TOKENS = 20_000
TEST_TOKENS = 8_000
STEPS = 400
BATCH = 1024
SEEDS = (0, 1, 2)
# name -> how the world differs from the defaults of `plant`
WORLDS = {
    "plain": {},
    "crowded": {"counts": {kind: 2 * n for kind, n in truth.COUNTS.items()}, "noise": 0.1},
    "entangled": {"together": 0.9, "saturation": 2.0},
}
THRESHOLDS = (1e-4, 1e-3, 3e-3, 1e-2)
SATURATIONS = (float("inf"), 4.0, 2.0, 1.0)
TOLERANCE = 1e-6  # of the joint line; the metric is cheap here


@dataclass(frozen=True)
class Setting:
    """A crosscoder and its training; k is left to the world.

    Attributes:
        training: settings of `TrainConfig`.
        shape: arguments of `Crosscoder`.
    """

    training: dict[str, float]
    shape: dict[str, Any] = field(default_factory=dict)


SETTINGS = {
    "L1": Setting(training={"l1": 1.0}, shape={"sparsity": "l1"}),
    "BatchTopK": Setting(training={"decoder_norm_penalty": 0.0}),
    "BatchTopK, norm penalty": Setting(training={"decoder_norm_penalty": 0.5}),
}

_WORLDS = (
    f"Three checkpoints, 32 dimensions; {TRAIN_TOKENS:,} tokens, {STEPS} steps of {BATCH}, "
    f"{LATENTS} latents; the seed is that of the world and of the crosscoder. plain: "
    f"{sum(truth.COUNTS.values())} features, independent, a linear task; crowded: twice as many, "
    "three times the noise; entangled: on 90 % of their tokens the features without effect go with "
    "one that has an effect, and the task saturates"
)
TABLES = {
    "planted_found": (
        "One row for each world, setting of the crosscoder and seed: how much of the truth it "
        "found. found: share of the features whose closest latent has a cosine above 0.9 over all "
        "checkpoints together, each being the other's best; cosine: mean over features, and over "
        "those of each kind; l0: active latents a token; dead: number of latents that are silent "
        f"on all {TEST_TOKENS:,} test tokens; seconds of training. {_WORLDS}."
    ),
    "planted_scores": (
        "One row for each world, setting, seed and measure: does the measure tell the kinds apart, "
        "by the first checkpoint against the last, among the features that were found? auroc: "
        "features that emerge, or fade, against those that persist; accuracy: over these three "
        "kinds; accuracy_of_all: a feature that was not found counts as wrong; specific: share "
        "called specific among features that only turn, only grow, or that nothing reads (as an "
        "answer about the task each of these is false)."
    ),
    "planted_threshold": (
        "One row for each world, setting, seed and threshold of inactivity (inactive_below, a "
        "share of all |IE|): share of the features that nothing reads that RelIE calls specific "
        "(specific_decodable), or active at all (active_decodable), and share of the features with "
        "an effect that are called inactive. RelIE of a feature that nothing reads is a ratio of "
        "two small numbers, made by errors of its decoder: only this threshold holds it back."
    ),
    "planted_estimators": (
        "One row for each saturation of the task (inf: linear) and method, on the planted "
        "features themselves. off_closed_form: largest difference from what the method should "
        "give, in mean |effects|; the rest is against exact ablation: rank correlation, share with "
        "the same sign, size (slope through 0; 1: right); nodes: gradients a token (ablation: "
        "passes)."
    ),
    "planted_saturation": (
        "One row for each share of features that hurt, saturation of the task, and seed: features "
        "that persist and are read alike throughout, beside 40 that emerge; exact effects, no "
        "crosscoder. late_share: the last checkpoint's part of first and last, 0.5 for a feature "
        "that is used alike; specific: share of them that this calls specific; corrected: effects "
        "over the checkpoint's total, which asks for the share of the skill and not for the use. "
        "Where the task saturates, what emerges takes away from the effect of what was there."
    ),
}


def run(context: Context | None = None) -> dict[str, pd.DataFrame]:
    """The tables; they need no model: of the context only the count of trainings is used."""
    found, scores, thresholds = [], [], []
    for world, differs in WORLDS.items():
        for seed in SEEDS:
            planted = truth.plant(seed=seed, **differs)
            sample, _ = planted.sample(TRAIN_TOKENS, seed)
            stream = ctt.TensorStream(sample.float(), BATCH, seed)
            x, _ = planted.sample(TEST_TOKENS, seed + 1000)
            for name, setting in SETTINGS.items():
                print(f"planted: {world}, {name}, seed {seed}", flush=True)
                crosscoder, figures = train(setting, planted, stream, x, seed)
                if context is not None:
                    context.trainings["anew"] += 1
                recovered = truth.recovery(crosscoder, planted)
                where = {"world": world, "setting": name, "seed": seed}
                found.append({**where, **how_much_is_found(recovered), **figures})
                for row in scores_of(crosscoder, planted, x, recovered):
                    scores.append({**where, **row})
                for threshold in THRESHOLDS:
                    row = at_threshold(crosscoder, planted, x, recovered, threshold)
                    thresholds.append({**where, **row})
    return {
        "planted_found": pd.DataFrame(found),
        "planted_scores": pd.DataFrame(scores),
        "planted_threshold": pd.DataFrame(thresholds),
        "planted_estimators": estimators(),
        "planted_saturation": saturation(),
    }


# ---- what a crosscoder finds


def train(
    setting: Setting,
    planted: truth.Planted,
    stream: ctt.TensorStream,
    x: Float[Tensor, "tokens checkpoints d_model"],
    seed: int,
) -> tuple[ctt.Crosscoder, dict[str, float]]:
    """One crosscoder, and how sparse and how faithful it is on the test tokens x."""
    shape = dict(setting.shape)
    if "sparsity" not in shape:
        # a little more than there is
        shape["k"] = math.ceil(planted.density * len(planted.kinds)) + 1
    crosscoder = ctt.Crosscoder(stream.n_checkpoints, stream.d_model, LATENTS, seed=seed, **shape)
    config = ctt.TrainConfig(steps=STEPS, **setting.training)
    result = ctt.train(crosscoder, stream, config, device="cpu")
    with torch.no_grad():
        f = crosscoder.encode(x.float())
        error = (x - crosscoder.decode(f)).square().sum()
    spread = (x - x.mean(0)).square().sum()
    figures = {
        "l0": float((f > 0).float().sum(1).mean()),
        "dead": int((f == 0).all(0).sum()),
        "explained_variance": float(1 - error / spread),
        "seconds": result.seconds,
    }
    return crosscoder, figures


def how_much_is_found(recovered: pd.DataFrame) -> dict[str, float]:
    """Share of the features that were found, and cosines, of all and of each kind."""
    by_kind = recovered.groupby("kind")["cosine"].mean().add_prefix("cosine ")
    return {
        "found": recovered["found"].mean(),
        "cosine": recovered["cosine"].mean(),
        **by_kind.to_dict(),
    }


def scores_of(
    crosscoder: ctt.Crosscoder,
    planted: truth.Planted,
    x: Float[Tensor, "tokens checkpoints d_model"],
    recovered: pd.DataFrame,
) -> list[dict]:
    """One row a measure: how well it tells the kinds apart."""
    is_scored = recovered["kind"].isin(["emerge", "persist", "fade"])
    share_found = recovered.loc[is_scored, "found"].mean()
    rows = []
    for measure, ratios in truth.measures(crosscoder, planted, x).items():
        row = {"measure": measure, **truth.score(ratios, recovered)}
        # one that is not found is wrong
        row["accuracy_of_all"] = np.nan_to_num(row["accuracy"]) * share_found
        rows.append(row)
    return rows


def at_threshold(
    crosscoder: ctt.Crosscoder,
    planted: truth.Planted,
    x: Float[Tensor, "tokens checkpoints d_model"],
    recovered: pd.DataFrame,
    inactive_below: float,
) -> dict[str, float]:
    """What the threshold of inactivity lets through, and what it costs."""
    ratios = truth.measures(crosscoder, planted, x, inactive_below)["RelIE"]
    kept = recovered[recovered["found"]]
    causal = (kept["kind"] != "decodable").to_numpy()
    active = ~np.isnan(ratios[0, kept["latent"]])
    return {
        "inactive_below": inactive_below,
        "specific_decodable": truth.score(ratios, recovered)["specific_decodable"],
        "active_decodable": float(active[~causal].mean()),
        "causal_called_inactive": float(1 - active[causal].mean()),
    }


# ---- without a crosscoder


def estimators(n_tokens: int = 1500) -> pd.DataFrame:
    """The package's methods on the planted features: against closed form and exact ablation."""
    rows = []
    for limit in SATURATIONS:
        planted = truth.plant(saturation=limit, hurts=0.2)
        x, g = planted.sample(n_tokens, seed=1)
        exact = planted.exact_effects(x, g).numpy()
        causal = planted.gains.numpy() != 0
        for method in METHODS:
            if METHODS[method].sampled:  # no closed form
                continue
            closed = planted.exact_effects(x, g, method=method).numpy()
            ie, evaluations, figures = [], [], []
            for c in range(len(exact)):
                # every token is a sequence of its own
                readout = planted.readout(c, x[:, None, c])
                found = METHODS[method].attribute(
                    readout, g[:, None], planted.directions[:, c], Options(tolerance=TOLERANCE)
                )
                ie.append(found.ie.mean(0).numpy())
                evaluations.append(found.evaluations.mean())
                figures.append(agreement(ie[c][causal[c]], exact[c][causal[c]]))
            off = np.abs(np.stack(ie) - closed).max() / np.abs(exact).mean()
            rows.append(
                {
                    "saturation": limit,
                    "method": method,
                    "off_closed_form": off,
                    **pd.DataFrame(figures).mean().to_dict(),
                    "nodes": np.mean(evaluations),
                }
            )
    return pd.DataFrame(rows)


def agreement(
    estimate: Float[np.ndarray, " features"], exact: Float[np.ndarray, " features"]
) -> dict[str, float]:
    """Order, sign and size of effects at one checkpoint."""
    return {
        "rank_correlation": rank_correlation(estimate, exact),
        "same_sign": (np.sign(estimate) == np.sign(exact)).mean(),
        "size": (estimate @ exact) / (exact @ exact),
    }


def saturation(n_tokens: int = 8000) -> pd.DataFrame:
    """Features that persist, used alike throughout, beside 40 that emerge: their exact effects."""
    rows = []
    for hurts in (0.2, 0.0):
        for limit in SATURATIONS:
            for seed in SEEDS:
                planted = truth.plant(
                    counts={"emerge": 40, "persist": 10}, saturation=limit, hurts=hurts, seed=seed
                )
                x, g = planted.sample(n_tokens, seed)
                effects = planted.exact_effects(x, g).abs()
                total = planted.exact_effects(x, g, method="ig").sum(1).abs()
                persist = planted.kinds == "persist"
                row = {"hurts": hurts, "saturation": limit, "seed": seed}
                sizes = {"raw": effects, "corrected": effects / total[:, None]}
                for name, size in sizes.items():
                    late = (size[-1] / (size[0] + size[-1]))[persist]
                    specific = (late > SPECIFIC) | (late < 1 - SPECIFIC)
                    row[f"late_share_{name}"] = float(late.mean())
                    row[f"specific_{name}"] = float(specific.double().mean())
                rows.append(row)
    return pd.DataFrame(rows)
