"""Other seeds: which latents, classes and stories come back in other crosscoders, and in another model."""

import numpy as np
import pandas as pd

import ctt_helpers as ctt
from benchmarks.science import page
from benchmarks.science.context import INACTIVE, Context, decide, labels, short, spearman
from benchmarks.science.prediction import latents_drawn
from ctt_helpers.activations import stacked_activations
from ctt_helpers.metrics import activation_similarity, decoder_similarity, match_features
from ctt_helpers.toy import pretrain

SEEDS, N_PAIRS, TOP, SHOWN = (0, 1, 2, 3, 4), 200, 12, 8
STABLE = 0.7  # a latent is stable if its mutual best match at every other seed is at least so similar
TEXT_TOKENS = 40_000  # validation tokens, on which latents of two models are compared
OTHER_MODEL, DIFFERENCE = "model, seed 1", "same class, RelIE - RelDec"
ALL, BY_DECODER, BY_ACTIVATIONS, MODELS = (
    f"{len(SEEDS)} crosscoders",
    "1 other crosscoder, by decoder",
    "1 other crosscoder, by activations",
    "1 other model, by activations",
)


def run(context: Context) -> dict[str, pd.DataFrame]:
    tasks = context.tasks[1::-1]  # the one with an attractor first
    names = [f"seed {s}" for s in SEEDS]
    crosscoders = [context.train(context.ckpts, f"crosscoder seed {s}", s) for s in SEEDS]
    pairs = {task: context.pairs(task, "find", N_PAIRS) for task in tasks}
    effects = {t: [ctt.indirect_effects(c, context.ckpts, p) for c in crosscoders] for t, p in pairs.items()}
    decided = {t: decide(effects[t][0], context.draws(effects[t][0], p)) != "undecided" for t, p in pairs.items()}
    ie = {t: [e.mean for e in found] for t, found in effects.items()}
    weights = [c.W_dec.detach() for c in crosscoders]
    matches = [match_features(decoder_similarity(weights[0], w)) for w in weights[1:]]
    ratios = [ctt.rel_dec(c.decoder_norms()) for c in crosscoders]
    text = context.suite.text(TEXT_TOKENS, split="validation", seed=context.seed + 1, path=context.text)
    first, *others = latents_on(crosscoders, context.ckpts, text)
    alike = [match_features(activation_similarity(first, f)) for f in others]
    frames = [stability(context, ie, ratios, matches, decided, ALL)]
    frames += [
        one_other(context, ie, ratios, m, decided, w) for m, w in ((matches, BY_DECODER), (alike, BY_ACTIVATIONS))
    ]
    told = [stories(context, ie, matches, names)]
    if other := _other_model(context, first, text, pairs):
        both = {t: [ie[t][0], other["ie"][t]] for t in tasks}
        match = [other["match"]]
        frames.append(stability(context, both, [ratios[0], other["ratios"]], match, decided, MODELS))
        told.append(stories(context, both, match, [names[0], OTHER_MODEL]).iloc[1::2])
    return {
        "seeds": pd.concat(frames, ignore_index=True),
        "seeds_classes": stable_classes(context, ie, ratios, matches),
        "seeds_stable": stable_latents(context, ie, matches),
        "seeds_stories": pd.concat(told, ignore_index=True),
    }


def _other_model(context: Context, first: np.ndarray, text, pairs: dict[str, ctt.MinimalPairs]) -> dict | None:
    """Effects of a crosscoder of the model pretrained with seed 1, matched by activations on the text to the first."""
    if "seed" not in context.suite.meta:  # only the embedded suite can be made anew
        return None
    folder = context.work / "model-seed1"
    there = (folder / "suite.json").is_file()
    context.trainings["reused" if there else "anew"] += 1
    if not there:
        pretrain.pretrain(folder, seed=1)
    suite = ctt.load_suite(folder)
    ckpts = suite.checkpoints(context.names, layer=context.ckpts.layer, device=context.ckpts.device)
    theirs = context.train(ckpts, "crosscoder of model-seed1")
    return {
        "match": match_features(activation_similarity(first, latents_on([theirs], ckpts, text)[0])),
        "ie": {task: ctt.indirect_effects(theirs, ckpts, p).mean for task, p in pairs.items()},
        "ratios": ctt.rel_dec(theirs.decoder_norms()),
    }


def latents_on(crosscoders: list[ctt.Crosscoder], ckpts: ctt.Checkpoints, text) -> list[np.ndarray]:
    """Latents of each crosscoder on the same activations of a text: [tokens, latents], one a crosscoder."""
    parts = [[] for _ in crosscoders]
    for ids in text.split(64):
        x = stacked_activations(ckpts, ids)[:, 1:].flatten(0, 1)
        for part, crosscoder in zip(parts, crosscoders, strict=True):
            part.append(crosscoder.encode(x).detach().cpu().numpy())
    return [np.concatenate(part) for part in parts]


def stable(matches: list[pd.DataFrame], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents of the first seed found in all others, [stable], and who they are there, [seeds, stable]."""
    kept = np.ones(size, bool)
    partners = [np.arange(size)]
    for match in matches:
        match = match.set_index("feature").reindex(range(size))
        kept &= (match["mutual"].eq(True) & (match["similarity"] >= STABLE)).to_numpy()
        partners.append(match["match"].fillna(-1).astype(int).to_numpy())
    return np.flatnonzero(kept), np.stack(partners)[:, kept]


def stability(context: Context, effects, rel_dec, matches, decided, what: str) -> pd.DataFrame:
    """How many latents are stable; of those active in the first seed, how many keep their class in others.

    By chance: the share that two seeds would have in common if each dealt out its classes anew among these latents.
    Active in both: only those that are active by RelIE at the other seed, too (by RelDec a latent is never inactive).
    The interval of the difference is 95 %, bootstrap over latents.

    Args:
        effects: task -> one array [checkpoints, latents] a seed; `rel_dec`: one a seed.
        matches: of the first seed's latents, one table for each other seed.
        decided: task -> mask of the latents whose class at the first seed the sentences decide.
    """
    rows = []
    features, partners = stable(matches, rel_dec[0].shape[1])
    for task, means in effects.items():
        ie, strength = [ctt.rel_ie(e, INACTIVE) for e in means], np.abs(means[0]).sum(0)
        active = ~np.isnan(ie[0][0, features])
        row = {"what": what, "task": short(task), "active": int((~np.isnan(ie[0][0])).sum())}
        row |= {"stable": len(features), "stable and active": int(active.sum())}
        row |= {"their share of |IE|": strength[features][active].sum() / strength.sum()}
        sure = decided[task][features[active]]
        row["decided by sentences"] = int(sure.sum())
        both, kept = np.stack([~np.isnan(e[0, p[active]]) for e, p in zip(ie[1:], partners[1:], strict=True)]), {}
        for kind, all_ratios in (("RelIE", ie), ("RelDec", rel_dec)):
            found = [r[:, p[active]] for r, p in zip(all_ratios, partners, strict=True)]
            words = np.stack([labels(r, context.names) for r in found])
            same = words[1:] == words[0]
            dealt = [[np.mean(w == word) for word in np.unique(words)] for w in words]
            row |= {f"{kind}: same class": _mean(same), f"{kind}: by chance": np.mean(np.dot(dealt[1:], dealt[0]))}
            row[f"{kind}: same class, active in both"], kept[kind] = _mean(same[both]), same.mean(0)
            row |= {f"{kind}: in all": _mean(same.all(0)), f"{kind}: of the decided": _mean(same[:, sure])}
            row[f"{kind}: rank correlation"] = np.mean([_agreement(found[0], r) for r in found[1:]])
        more = kept["RelIE"] - kept["RelDec"]
        drawn = [_mean(more[i]) for i in latents_drawn(np.arange(len(more)), context.n_draws, context.seed)]
        low, high = np.quantile(drawn, (0.025, 0.975))
        rows.append(row | {DIFFERENCE: _mean(more), f"{DIFFERENCE} low": low, f"{DIFFERENCE} high": high})
    return pd.DataFrame(rows)


def one_other(context: Context, effects, rel_dec, matches, decided, what: str) -> pd.DataFrame:
    """`stability` over one other seed at a time, and the mean (of intervals, too): to compare one other model with."""
    tables = []
    for s, match in enumerate(matches, 1):
        two = {task: [means[0], means[s]] for task, means in effects.items()}
        tables.append(stability(context, two, [rel_dec[0], rel_dec[s]], [match], decided, what))
    return pd.concat(tables).groupby(["what", "task"], sort=False).mean().reset_index()


def stable_classes(context: Context, effects, rel_dec, matches) -> pd.DataFrame:
    """Which classes come back: of the stable latents of each class at the first seed, how many keep it.

    Kept by another seed: mean over the other seeds; kept by all: the same at every seed.
    """
    rows, (features, found) = [], stable(matches, rel_dec[0].shape[1])
    for task, means in effects.items():
        ie = [ctt.rel_ie(e, INACTIVE) for e in means]
        partners = found[:, ~np.isnan(ie[0][0, features])]
        for kind, ratios in (("RelIE", ie), ("RelDec", rel_dec)):
            words = np.stack([labels(r[:, p], context.names) for r, p in zip(ratios, partners, strict=True)])
            same = words[1:] == words[0]
            for word in sorted(set(words[0])):
                kept = same[:, words[0] == word]
                row = {"ratio": kind, "task": short(task), "class": word, "stable latents": kept.shape[1]}
                rows.append(row | {"kept by another seed": kept.mean(), "kept by all": kept.all(0).mean()})
    return pd.DataFrame(rows)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    both = ~np.isnan(a + b).any(0)
    return float(spearman(a[:, both], b[:, both]).mean()) if both.sum() > 2 else np.nan


def stable_latents(context: Context, effects, matches) -> pd.DataFrame:
    """The strongest stable latents: effect and RelIE at each checkpoint, mean and standard deviation over seeds."""
    rows = []
    for task, means in effects.items():
        features, partners = stable(matches, means[0].shape[1])
        seeds = list(zip(means, partners, strict=True))
        ie = np.stack([e[:, p] for e, p in seeds])  # [seeds, checkpoints, stable]
        ratios = np.stack([ctt.rel_ie(e, 0)[:, p] for e, p in seeds])
        words = np.stack([labels(ctt.rel_ie(e, INACTIVE)[:, p], context.names) for e, p in seeds])
        for j in np.argsort(-np.abs(ie).sum(1).mean(0))[:TOP]:
            row = {"task": short(task), "latent": int(features[j]), "class": words[0, j]}
            row["seeds with it"] = int((words[:, j] == words[0, j]).sum())
            for kind, values in (("IE", ie), ("RelIE", ratios)):
                for c, name in enumerate(context.names):
                    there = values[:, c, j][~np.isnan(values[:, c, j])]
                    row |= {f"{kind} {name}": there.mean(), f"{kind} {name} sd": there.std(ddof=1)}
            rows.append(row)
    return pd.DataFrame(rows)


def stories(context: Context, effects, matches, names: list[str]) -> pd.DataFrame:
    """Two stories, told by each seed on its own: what helps most at the end, and what hurts most at the middle.

    And where the first seed's own hero ends up: how similar its mutual best match is, and its rank in the same story.
    """
    rows, (hard, plain) = [], effects
    middle = context.names[context.middle]
    scores = {"helps most at the end": lambda e: e[-1], f"hurts most at {middle}": lambda e: -e[context.middle]}
    for story, score in scores.items():
        hero = int(score(effects[hard][0]).argmax())
        for s, name in enumerate(names):
            order = np.argsort(-score(effects[hard][s])).tolist()
            row = {"story": story, "crosscoder": name, "latent": (i := order[0])}
            here = {"IE": effects[hard][s], "RelIE": ctt.rel_ie(effects[hard][s], 0)}
            row |= {
                f"{k} {c}": v for k, values in here.items() for c, v in zip(context.names, values[:, i], strict=True)
            }
            row[f"IE {middle}, {short(plain)}"] = effects[plain][s][context.middle, i]
            row["similarity of the first's"], row["its rank"] = (1.0, 1) if s == 0 else (np.nan, np.nan)
            if s and matches[s - 1].set_index("feature")["mutual"][hero]:
                match = matches[s - 1].set_index("feature").loc[hero]
                row |= {"similarity of the first's": match["similarity"], "its rank": order.index(match["match"]) + 1}
            rows.append(row)
    return pd.DataFrame(rows)


def brief(frames: dict[str, pd.DataFrame]) -> str:
    """How much comes back with another seed."""
    heads = ["what", "task", "active", "stable and active", "their share of |IE|"]
    heads += [f"{r}: {k}" for r in ("RelIE", "RelDec") for k in ("same class", "by chance", "rank correlation")]
    return page.table(_with_difference(frames["seeds"], heads), {"active": 0, "stable and active": 1})


def _with_difference(table: pd.DataFrame, heads: list[str]) -> pd.DataFrame:
    figures = table[[DIFFERENCE, f"{DIFFERENCE} low", f"{DIFFERENCE} high"]].to_numpy()
    return table[heads].assign(**{DIFFERENCE: [f"{v:+.2f} [{low:+.2f}, {high:+.2f}]" for v, low, high in figures]})


def headline(frames: dict[str, pd.DataFrame]) -> str:
    table = frames["seeds"]
    told = []
    for what, part in table.groupby("what", sort=False):
        found = ", ".join(
            f"{r['stable and active']:.0f} of {r['active']:.0f} on {r['task']} ({r['their share of |IE|']:.0%} of the "
            f"effects; class kept {r['RelIE: same class']:.0%}, by chance {r['RelIE: by chance']:.0%})"
            for _, r in part.iterrows()
        )
        told.append(f"{what}: {found}")
    return f"**Other seeds.** Active latents found again. {'; '.join(told)}. {_reproducible(table)}"


def _reproducible(table: pd.DataFrame) -> str:
    """Whose classes come back more often, RelIE's or RelDec's: in words that follow the numbers."""
    sides = {"less": table[DIFFERENCE] < 0, "more": table[DIFFERENCE] > 0}
    sure = {"less": table[f"{DIFFERENCE} high"] < 0, "more": table[f"{DIFFERENCE} low"] > 0}
    told = " and ".join(
        f"{side} often in {mask.sum()} (interval over latents without 0: {sure[side].sum()})"
        for side, mask in sides.items()
        if mask.any()
    )
    lower = (table["RelIE: same class, active in both"] < table["RelDec: same class, active in both"]).sum()
    return (
        f"Of {len(table)} rows, classes by RelIE come back {told or 'as often'} than those by RelDec; counting only "
        f"latents that are active with both seeds, less often in {lower}."
    )


def section(frames: dict[str, pd.DataFrame]) -> str:
    table, strongest, told = (frames[k] for k in ("seeds", "seeds_stable", "seeds_stories"))
    heads = ["what", "task", "active", "stable and active", "their share of |IE|", "decided by sentences"]
    classes = _with_difference(table, heads)
    for kind in ("RelIE", "RelDec"):
        parts = ("same class", "by chance", "of the decided", "same class, active in both", "rank correlation")
        figures = [f"{kind}: {f}" for f in parts]
        classes[kind] = [" / ".join(f"{v:.2f}" for v in row) for row in table[figures].to_numpy()]
    task = strongest["task"].iloc[0]
    strongest = strongest[strongest["task"] == task].head(SHOWN).reset_index(drop=True)
    shown = strongest[["latent", "class", "seeds with it"]].copy()
    for column in [c for c in strongest if f"{c} sd" in strongest]:
        pairs = zip(strongest[column], strongest[f"{column} sd"], strict=True)
        shown[column] = [f"{mean:.2f} ± {sd:.2f}" for mean, sd in pairs]
    digits = {"its rank": 0} | {c: 3 for c in told if c.startswith("IE ")}
    late, hurting = (part for _, part in told.groupby("story", sort=False))
    plain = next(c for c in told if c.startswith("IE ") and ", " in c)
    digits |= {"active": 0, "stable and active": 1, "decided by sentences": 1}
    return (
        "## Other seeds\n\n"
        f"{len(SEEDS)} crosscoders on the same checkpoints, matched to the first by decoder similarity; and a second "
        "model, pretrained with another seed, matched by activations on the same text. To be compared with it: one "
        "other crosscoder of the same model, matched in the same way, mean over the four (by decoder, too; that match "
        "goes by the vectors that RelDec is made of). Stable: the mutual best match "
        f"is at least {STABLE} alike at every other seed ({table['stable'].iloc[0]:.0f} latents over {ALL}). For "
        "RelIE and for RelDec, of the stable latents that are active at the first seed: share with the first seed's "
        "class at another seed / by chance / the same among those whose class the sentences decide / among those "
        "active at the other seed, too / rank correlation "
        f"of the ratios. In brackets: 95 % over latents.\n\n{page.table(classes, digits)}\n\n{_reproducible(table)}\n\n"
        f"Which classes come back over {ALL}: of the stable latents of a class at the first seed (active on the task), "
        f"the share that has it at another seed (mean), and at every one.\n\n{page.table(_by_class(frames))}\n\n"
        f"The strongest stable latents on {task}: mean and standard deviation over {len(SEEDS)} seeds.\n\n"
        f"{page.table(shown)}\n\n"
        "Do the stories come back? Each seed's own strongest; and how similar the best match of the first seed's "
        f"strongest is, with its rank there.\n\n{page.table(told, digits)}\n\n"
        f"The late helper of each seed has between {late.filter(like='RelIE').iloc[:, -1].min():.2f} and "
        f"{late.filter(like='RelIE').iloc[:, -1].max():.2f} of its effect at the last checkpoint; what hurts most "
        f"helps on the plain task in {(hurting[plain] > 0).sum()} of {len(hurting)}."
    )


def _by_class(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a task and class, RelIE and RelDec side by side: latents, kept by another seed, kept by all."""
    table = frames["seeds_classes"]
    cells = [f"{n}: {one:.2f} / {every:.2f}" for n, one, every in table.iloc[:, 3:].itertuples(index=False)]
    wide = table.assign(shown=cells).pivot(index=["task", "class"], columns="ratio", values="shown")
    return wide.fillna("-")[["RelIE", "RelDec"]].reset_index()
