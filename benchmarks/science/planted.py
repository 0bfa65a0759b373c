"""Planted truth: what a crosscoder finds of it, which measure tells its kinds apart, and where RelIE goes wrong."""

import math

import numpy as np
import pandas as pd

import ctt_helpers as ctt
from benchmarks.report import markdown
from ctt_helpers.paths import METHODS, estimate
from ctt_helpers.toy import planted as toy

LATENTS, TRAIN_TOKENS, TEST_TOKENS, STEPS, BATCH = 96, 20_000, 8_000, 400, 1024
SEEDS = (0, 1, 2)
# name -> how the world differs from the defaults of `plant`
WORLDS = {
    "plain": {},
    "crowded": {"counts": {kind: 2 * n for kind, n in toy.COUNTS.items()}, "noise": 0.1},
    "entangled": {"together": 0.9, "saturation": 2.0},
}
# name -> (what differs in the crosscoder, what differs in the training); k is left to the world
SETTINGS = {
    "L1": ({"sparsity": "l1"}, {"l1": 1.0}),
    "BatchTopK": ({}, {"decoder_norm_penalty": 0.0}),
    "BatchTopK, norm penalty": ({}, {"decoder_norm_penalty": 0.5}),
}
THRESHOLDS = (1e-4, 1e-3, 3e-3, 1e-2)
SATURATIONS = (float("inf"), 4.0, 2.0, 1.0)


def run(context=None) -> dict[str, pd.DataFrame]:
    """The tables; they need no model, so of `context` only the count of trainings is used."""
    scores, found, thresholds = [], [], []
    for world, differs in WORLDS.items():
        for seed in SEEDS:
            planted = toy.plant(seed=seed, **differs)
            stream = ctt.TensorStream(planted.sample(TRAIN_TOKENS, seed)[0].float(), BATCH, seed)
            x = planted.sample(TEST_TOKENS, seed + 1000)[0]
            for setting in SETTINGS:
                print(f"planted: {world}, {setting}, seed {seed}", flush=True)
                where = {"world": world, "setting": setting, "seed": seed}
                crosscoder, row = train(planted, stream, x, seed, *SETTINGS[setting])
                if context:
                    context.trainings["anew"] += 1
                table = toy.recovery(crosscoder, planted)
                kinds = table.groupby("kind")["cosine"].mean().add_prefix("cosine ").to_dict()
                found.append(where | {"found": table["found"].mean(), "cosine": table["cosine"].mean()} | kinds | row)
                ratios = toy.measures(crosscoder, planted, x)
                told = table.loc[table["kind"].isin(["emerge", "persist", "fade"]), "found"].mean()
                for name, r in ratios.items():
                    row = where | {"measure": name, **toy.score(r, table)}
                    row["accuracy_of_all"] = np.nan_to_num(row["accuracy"]) * told  # one that is not found is wrong
                    scores.append(row)
                thresholds += [where | at_threshold(crosscoder, planted, x, table, t) for t in THRESHOLDS]
    return {
        "planted_found": pd.DataFrame(found),
        "planted_scores": pd.DataFrame(scores),
        "planted_threshold": pd.DataFrame(thresholds),
        "planted_estimators": estimators(),
        "planted_saturation": saturation(),
    }


def train(planted, stream, x, seed: int, shape: dict, training: dict):
    """One crosscoder, and how sparse and how faithful it is on the test tokens."""
    k = math.ceil(planted.density * len(planted.kinds)) + 1  # a little more than there is
    shape = shape if "sparsity" in shape else {"k": k, **shape}
    crosscoder = ctt.Crosscoder(stream.n_checkpoints, stream.d_model, LATENTS, seed=seed, **shape)
    seconds = ctt.train(crosscoder, stream, ctt.TrainConfig(steps=STEPS, **training), device="cpu").seconds
    f = crosscoder.encode(x.float()).detach()
    error, spread = (x - crosscoder.decode(f).detach()).pow(2).sum(), (x - x.mean(0)).pow(2).sum()
    l0, dead = (f > 0).float().sum(1).mean(), int((f == 0).all(0).sum())
    figures = {"l0": float(l0), "dead": dead, "explained_variance": float(1 - error / spread), "seconds": seconds}
    return crosscoder, figures


def at_threshold(crosscoder, planted, x, table: pd.DataFrame, inactive_below: float) -> dict:
    """What the threshold of inactivity lets through, and what it costs."""
    ratios = toy.measures(crosscoder, planted, x, inactive_below)["RelIE"]
    kept, causal = table[table["found"]], table["kind"] != "decodable"
    active = ~np.isnan(ratios[0, kept["latent"]])
    return {
        "inactive_below": inactive_below,
        "specific_decodable": toy.score(ratios, table)["specific_decodable"],
        "active_decodable": float(active[~causal[table["found"]]].mean()),
        "causal_called_inactive": float(1 - active[causal[table["found"]]].mean()),
    }


def estimators(n_tokens: int = 1500) -> pd.DataFrame:
    """The package's estimators on the planted features: against their closed form, and against exact ablation."""
    rows = []
    for saturation in SATURATIONS:
        planted = toy.plant(saturation=saturation, hurts=0.2)
        x, g = planted.sample(n_tokens, seed=1)
        exact = planted.exact_effects(x, g).numpy()
        causal = planted.gains.numpy() != 0
        for method in METHODS:
            closed = planted.exact_effects(x, g, method=method).numpy()
            runs = [planted.run(c, x[:, None, c]) for c in range(len(exact))]
            found = [estimate(r, g[:, None], planted.directions[:, c], method, 1e-6) for c, r in enumerate(runs)]
            ie = np.stack([e.ie.mean(0).numpy() for e in found])
            pairs = [(ie[c][causal[c]], exact[c][causal[c]]) for c in range(len(ie))]
            rows.append(
                {
                    "saturation": saturation,
                    "method": method,
                    "off_closed_form": np.abs(ie - closed).max() / np.abs(exact).mean(),
                    "rank_correlation": np.mean([rank_correlation(a, b) for a, b in pairs]),
                    "same_sign": np.mean([(np.sign(a) == np.sign(b)).mean() for a, b in pairs]),
                    "size": np.mean([(a @ b) / (b @ b) for a, b in pairs]),
                    "nodes": np.mean([e.nodes.mean() for e in found]),
                }
            )
    return pd.DataFrame(rows)


def rank_correlation(a, b) -> float:
    return float(np.corrcoef(pd.Series(a).rank(), pd.Series(b).rank())[0, 1])


def saturation(n_tokens: int = 8000) -> pd.DataFrame:
    """Features that persist, used alike throughout, beside 40 that emerge: what their exact effects say of them."""
    rows = []
    for hurts in (0.2, 0.0):
        for limit in SATURATIONS:
            for seed in SEEDS:
                planted = toy.plant(
                    counts={"emerge": 40, "persist": 10}, saturation=limit, hurts=hurts, seed=seed
                )  # their answer is known without a crosscoder
                x, g = planted.sample(n_tokens, seed)
                ie = planted.exact_effects(x, g)
                total = planted.exact_effects(x, g, method="ig").sum(1)
                persist = planted.kinds == "persist"
                row = {"hurts": hurts, "saturation": limit, "seed": seed}
                for name, v in (("raw", ie.abs()), ("corrected", ie.abs() / total.abs()[:, None])):
                    late = (v[-1] / (v[0] + v[-1]))[persist]
                    row |= {f"late_share_{name}": float(late.mean())}
                    row |= {f"specific_{name}": float(((late > 0.7) | (late < 0.3)).double().mean())}
                rows.append(row)
    return pd.DataFrame(rows)


def headline(frames: dict[str, pd.DataFrame]) -> str:
    seeds = frames["planted_found"]
    thresholds = frames["planted_threshold"].groupby("inactive_below")["specific_decodable"].mean()
    told = ", ".join(f"{v:.0%} at {t:g}" for t, v in thresholds.items())
    return (
        f"**Planted truth.** Share of planted features found, and false 'specific' by RelIE and RelDec, mean over "
        f"{seeds['world'].nunique()} worlds. Features that nothing reads, called specific by RelIE, by the threshold "
        f"of inactivity: {told}."
    )


def brief(frames: dict[str, pd.DataFrame]) -> str:
    """One row a setting."""
    shown = frames["planted_found"].groupby("setting", sort=False)[["found"]].mean()
    scores = frames["planted_scores"].groupby(["measure", "setting"], sort=False).mean(numeric_only=True)
    for measure in ("RelIE", "RelDec"):
        shown[f"class accuracy, {measure} (of those found)"] = scores.loc[measure]["accuracy"]
        shown[f"class accuracy, {measure} (of all)"] = scores.loc[measure]["accuracy_of_all"]
        for kind in ("scale", "decodable"):
            shown[f"{kind}: specific by {measure}"] = scores.loc[measure][f"specific_{kind}"]
    return markdown(shown.reset_index())


def section(frames: dict[str, pd.DataFrame]) -> str:
    found, scores, thresholds, methods, limits = (
        frames[f"planted_{name}"] for name in ("found", "scores", "threshold", "estimators", "saturation")
    )
    groups = ["world", "setting"]
    first = found.drop(columns="seed").groupby(groups, sort=False).mean().reset_index()
    first["found, worst seed"] = found.groupby(groups, sort=False)["found"].min().to_numpy()
    second = scores.drop(columns="seed").groupby([*groups, "measure"], sort=False).mean().reset_index()
    third = thresholds.drop(columns="seed").groupby(["world", "inactive_below"], sort=False).mean(numeric_only=True)
    fourth = limits.drop(columns="seed").groupby(["hurts", "saturation"], sort=False).mean().reset_index()
    columns = ["found", "found, worst seed", *[c for c in first if c.startswith("cosine")]]
    columns += ["l0", "dead", "explained_variance", "seconds"]
    shown = [c for start in ("auroc", "accuracy", "specific") for c in second if c.startswith(start)]
    rates = second.groupby("measure", sort=False).mean(numeric_only=True)
    low, high = third.loc[(slice(None), min(THRESHOLDS)), :], third.loc[(slice(None), max(THRESHOLDS)), :]
    return "\n\n".join(
        [
            "## Planted truth",
            f"Three checkpoints, 32 dimensions; {TRAIN_TOKENS:,} tokens, {STEPS} steps of {BATCH}, {LATENTS} latents; "
            f"means of {found['seed'].nunique()} seeds (of the world and of the crosscoder). plain: "
            f"{sum(toy.COUNTS.values())} features, independent, a linear task. crowded: twice as many features, three "
            "times the noise. entangled: on 90 % of their tokens the features without effect go with one that has "
            "some, and the task saturates. Found: cosine above 0.9 over all checkpoints together, best both ways.",
            markdown(first[[*groups, *columns]], {"explained_variance": 3, "seconds": 1, "l0": 1, "dead": 1}),
            "Which measure tells the kinds apart, first checkpoint against last, among the features that were found? "
            "AUROC is against features that persist; accuracy over emerge, persist, fade, and then over all that were "
            "planted, where one that was not found counts as wrong. Then the share called "
            "specific among features that only turn, only grow, or that nothing reads: as an answer about the task, "
            "each of these is false. Over all rows, the features that only grow are called specific by RelIE in "
            f"{rates.loc['RelIE', 'specific_scale']:.0%} of cases and by RelDec in "
            f"{rates.loc['RelDec', 'specific_scale']:.0%}; those that only turn, by RelIE in "
            f"{rates.loc['RelIE', 'specific_rotate']:.0%} and by nu_error in "
            f"{rates.loc['nu_error', 'specific_rotate']:.0%}.",
            markdown(second[[*groups, "measure", *shown]]),
            "RelIE of a feature that nothing reads is a ratio of two small numbers, made by errors of its decoder; for "
            "a linear task no resampling of tokens moves it. Only the threshold of inactivity (a share of all |IE|) "
            f"holds it back. At {min(THRESHOLDS):g}, {low['specific_decodable'].mean():.0%} of them are called "
            f"specific, at {max(THRESHOLDS):g} {high['specific_decodable'].mean():.0%}; but there "
            f"{high['causal_called_inactive'].mean():.0%} of the features with an effect are called inactive.",
            markdown(third.reset_index(), {"inactive_below": 4}),
            "The package's estimators on the planted features. off_closed_form: largest difference from what the "
            "estimator should give, in mean |effects|. The rest is against exact ablation; size: slope through 0.",
            markdown(methods.assign(off_closed_form=methods["off_closed_form"].map("{:.0e}".format)), {"nodes": 1}),
            "Features that persist, read alike throughout, beside 40 that emerge; exact effects, no crosscoder. Where "
            "the task saturates, what emerges takes away from the effect of what was there. late_share: last over "
            "first and last, 0.5 for a feature that is used alike; corrected: effects over the checkpoint's total, "
            "which asks for the share of the skill and not for the use.",
            markdown(fourth),
        ]
    )
