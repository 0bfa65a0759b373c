"""Other seeds: which latents, classes and stories come back in another training run.

In other crosscoders on the same checkpoints, and in one of another model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.metrics import (
    PER_LATENT,
    activation_similarity,
    decoder_similarity,
    match_features,
    rank_correlation,
)
from ctt_helpers.toy import pretrain
from experiments.context import INACTIVE, Context, active_by, labels, short
from experiments.context import decided as decided_words
from experiments.prediction import latents_drawn

SEEDS = (0, 1, 2, 3, 4)
N_PAIRS = 200
TOP = 12  # strongest stable latents that are listed, for each task
# a latent is stable if its mutual best match at every other seed is at least so similar
STABLE = 0.7
TEXT_TOKENS = 40_000  # validation tokens, on which latents of two models are compared
OTHER_MODEL = "model, seed 1"
DIFFERENCE = "same class, RelIE - RelDec"
# what is compared with the first crosscoder
ALL = f"{len(SEEDS)} crosscoders"
BY_DECODER = "1 other crosscoder, by decoder"
BY_ACTIVATIONS = "1 other crosscoder, by activations"
MODELS = "1 other model, by activations"

_STABLE = (
    f"Stable: the mutual best match is at least {STABLE} alike at every other seed that is compared"
)
TABLES = {
    "seeds": (
        f"One row for each comparison (what) and task: {len(SEEDS)} crosscoders on the same "
        "checkpoints, matched to the first by decoder; a crosscoder of a second model, pretrained "
        "with another seed, matched by activations on the same text; and, to compare that with, "
        "one other crosscoder of the same model (mean over the four), matched by activations or by "
        f"decoder (the vectors that RelDec is made of). {_STABLE}. active: latents of the first "
        "seed; their share of |IE|: of the stable and active ones. Of these, for RelIE and RelDec: "
        "share with the first seed's class at another seed; by chance (if each seed dealt out its "
        "classes anew among them); of those active at the other seed, too; at all seeds; of those "
        "whose class the sentences decide; rank correlation of the ratios. low, high: 95 %, "
        "bootstrap over latents."
    ),
    "seeds_classes": (
        f"One row for each ratio, task and class, over {ALL}: number of stable latents that have "
        "the class at the first seed and are active on the task; share of them that has it at "
        "another seed (mean), and at every one."
    ),
    "seeds_stable": (
        f"One row for each of the {TOP} strongest stable latents of a task, over {ALL}: its class "
        "at the first seed, at how many seeds it has that class, and effect and RelIE at each "
        "checkpoint, mean and standard deviation over seeds."
    ),
    "seeds_stories": (
        "One row for each story and crosscoder: the latent that helps most at the last checkpoint, "
        "and the one that hurts most at the checkpoint that does worst on the task with an "
        "attractor; its effects and RelIE there, and its effect on the plain task. And how similar "
        "the mutual best match of the first seed's latent is, with its rank in the same story "
        "(empty: it has none)."
    ),
}


@dataclass
class Seed:
    """A crosscoder of one training run, and what is asked of it.

    Attributes:
        name: for tables.
        ie: task -> [checkpoints, latents] effects.
        rel_dec: [checkpoints, latents].
        match: its latents as best matches of the first seed's, from `match_features`; None for the
            first seed itself.
    """

    name: str
    ie: dict[str, PER_LATENT]
    rel_dec: PER_LATENT
    match: pd.DataFrame | None = None


def run(context: Context) -> dict[str, pd.DataFrame]:
    plain, hard = context.tasks[:2]
    pairs = {task: context.pairs(task, "find", N_PAIRS) for task in (hard, plain)}
    crosscoders = [context.train(context.ckpts, f"crosscoder seed {s}", s) for s in SEEDS]
    effects = {
        task: [ctt.indirect_effects(c, context.ckpts, some) for c in crosscoders]
        for task, some in pairs.items()
    }
    decided = {}
    for task, some in pairs.items():
        decided[task] = decided_words(effects[task][0], some) != "undecided"

    text = context.validation_text(TEXT_TOKENS)
    codes = latents_on(crosscoders, context.ckpts, text)
    directions = [crosscoder.W_dec.detach() for crosscoder in crosscoders]
    by_decoder, by_activations = [], []
    for s, crosscoder in enumerate(crosscoders):
        name = f"seed {SEEDS[s]}"
        ie = {task: effects[task][s].mean for task in pairs}
        rel_dec = ctt.rel_dec(crosscoder.decoder_norms())
        like_decoder = like_codes = None
        if s > 0:
            like_decoder = match_features(decoder_similarity(directions[0], directions[s]))
            like_codes = match_features(activation_similarity(codes[0], codes[s]))
        by_decoder.append(Seed(name, ie, rel_dec, like_decoder))
        by_activations.append(Seed(name, ie, rel_dec, like_codes))

    frames = [
        stability(context, by_decoder, decided, ALL),
        one_other(context, by_decoder, decided, BY_DECODER),
        one_other(context, by_activations, decided, BY_ACTIVATIONS),
    ]
    told = [stories(context, by_decoder, hard, plain)]
    other = other_model(context, codes[0], text, pairs)
    if other is not None:
        two = [by_decoder[0], other]
        frames.append(stability(context, two, decided, MODELS))
        in_two = stories(context, two, hard, plain)
        told.append(in_two[in_two["crosscoder"] == OTHER_MODEL])
    return {
        "seeds": pd.concat(frames, ignore_index=True),
        "seeds_classes": stable_classes(context, by_decoder),
        "seeds_stable": stable_latents(context, by_decoder),
        "seeds_stories": pd.concat(told, ignore_index=True),
    }


def other_model(
    context: Context,
    first: Float[np.ndarray, "tokens latents"],
    text: Int[Tensor, "sequences length"],
    pairs: dict[str, ctt.MinimalPairs],
) -> Seed | None:
    """A crosscoder of the model that is pretrained with seed 1, matched by activations.

    None for suites other than the embedded one, which cannot be made anew.

    Args:
        context: what is compared with.
        first: latents of the first crosscoder on the text.
        text: the text.
        pairs: task -> pairs.
    """
    if "seed" not in context.suite.meta:
        return None
    folder = context.work / "model-seed1"
    finished = (folder / "suite.json").is_file()
    context.trainings["reused" if finished else "anew"] += 1
    if not finished:
        pretrain.pretrain(folder, seed=1)
    suite = ctt.load_suite(folder)
    ckpts = suite.checkpoints(context.names, layer=context.ckpts.layer, device=context.ckpts.device)
    crosscoder = context.train(ckpts, "crosscoder of model-seed1")
    (codes,) = latents_on([crosscoder], ckpts, text)
    effects = {t: ctt.indirect_effects(crosscoder, ckpts, some) for t, some in pairs.items()}
    return Seed(
        name=OTHER_MODEL,
        ie={task: found.mean for task, found in effects.items()},
        rel_dec=ctt.rel_dec(crosscoder.decoder_norms()),
        match=match_features(activation_similarity(first, codes)),
    )


def latents_on(
    crosscoders: Sequence[ctt.Crosscoder],
    ckpts: ctt.Checkpoints,
    text: Int[Tensor, "sequences length"],
) -> list[Float[np.ndarray, "tokens latents"]]:
    """Latents of each crosscoder on the same activations of a text."""
    parts = [[] for _ in crosscoders]
    for ids in text.split(64):
        x = hooks.stacked_activations(ckpts, ids)[:, 1:].flatten(0, 1)
        for part, crosscoder in zip(parts, crosscoders, strict=True):
            part.append(crosscoder.encode(x).detach().cpu().numpy())
    return [np.concatenate(part) for part in parts]


# ---- what comes back


@dataclass
class Stable:
    """Latents of the first seed that are found in all others.

    Attributes:
        features: [stable] which latents of the first seed.
        partners: [seeds, stable] who they are at each seed.
    """

    features: Int[np.ndarray, " stable"]
    partners: Int[np.ndarray, "seeds stable"]

    def some(self, mask: Bool[np.ndarray, " stable"]) -> "Stable":
        return Stable(self.features[mask], self.partners[:, mask])

    def at_each_seed(
        self, ratios: Sequence[PER_LATENT]
    ) -> list[Float[np.ndarray, "checkpoints stable"]]:
        """What each seed says of its own partner of them."""
        return [r[:, who] for r, who in zip(ratios, self.partners, strict=True)]


def stable(seeds: Sequence[Seed]) -> Stable:
    """Latents of the first seed whose mutual best match is much alike, at every other seed."""
    n_latents = seeds[0].rel_dec.shape[1]
    kept = np.ones(n_latents, bool)
    partners = [np.arange(n_latents)]
    for seed in seeds[1:]:
        match = seed.match.set_index("feature").reindex(range(n_latents))
        kept &= (match["mutual"].eq(True) & (match["similarity"] >= STABLE)).to_numpy()
        partners.append(match["match"].fillna(-1).astype(int).to_numpy())
    return Stable(np.flatnonzero(kept), np.stack(partners)[:, kept])


def stability(
    context: Context,
    seeds: Sequence[Seed],
    decided: dict[str, Bool[np.ndarray, " latents"]],
    what: str,
) -> pd.DataFrame:
    """How many latents are stable; of those active in the first seed, how many keep their class.

    By chance: the share that two seeds would have in common if each dealt out its classes anew
    among these latents. Active in both: only those that are active by RelIE at the other seed, too
    (by RelDec a latent is never inactive). The interval of the difference is 95 %, bootstrap over
    latents.

    Args:
        context: checkpoints, draws, seed.
        seeds: the first, and those that it is compared with.
        decided: task -> mask of the latents whose class at the first seed the sentences decide.
        what: name of the comparison.
    """
    found = stable(seeds)
    rows = []
    for task, mask in decided.items():
        rel_ie = [ctt.rel_ie(seed.ie[task], INACTIVE) for seed in seeds]
        rel_dec = [seed.rel_dec for seed in seeds]
        strength = np.abs(seeds[0].ie[task]).sum(0)
        kept = found.some(active_by(rel_ie[0])[found.features])
        sure = mask[kept.features]
        # [other seeds, stable]
        active_too = np.stack([active_by(r) for r in kept.at_each_seed(rel_ie)[1:]])
        row = {
            "what": what,
            "task": short(task),
            "active": int(active_by(rel_ie[0]).sum()),
            "stable": len(found.features),
            "stable and active": len(kept.features),
            "their share of |IE|": strength[kept.features].sum() / strength.sum(),
            "decided by sentences": int(sure.sum()),
        }
        times_kept = {}  # ratio -> [stable] share of the other seeds at which the class is the same
        for kind, ratios in (("RelIE", rel_ie), ("RelDec", rel_dec)):
            each = kept.at_each_seed(ratios)
            words = np.stack([labels(r, context.names) for r in each])
            same = words[1:] == words[0]  # [other seeds, stable]
            times_kept[kind] = same.mean(0)
            correlations = [rank_agreement(each[0], r) for r in each[1:]]
            row |= {
                f"{kind}: same class": mean_or_nan(same),
                f"{kind}: by chance": chance_agreement(words),
                f"{kind}: same class, active in both": mean_or_nan(same[active_too]),
                f"{kind}: in all": mean_or_nan(same.all(0)),
                f"{kind}: of the decided": mean_or_nan(same[:, sure]),
                f"{kind}: rank correlation": np.mean(correlations),
            }
        more = times_kept["RelIE"] - times_kept["RelDec"]
        drawn = latents_drawn(np.arange(len(more)), context.n_draws, context.seed)
        low, high = np.quantile([mean_or_nan(more[items]) for items in drawn], (0.025, 0.975))
        row |= {DIFFERENCE: mean_or_nan(more), f"{DIFFERENCE} low": low, f"{DIFFERENCE} high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def mean_or_nan(values: np.ndarray) -> float:
    """The mean, without a warning where there is nothing."""
    return float(values.mean()) if values.size else np.nan


def chance_agreement(words: np.ndarray) -> float:
    """Share that the first seed and another would have in common if words were dealt out anew.

    Args:
        words: [seeds, latents].
    """
    shares = [[np.mean(of_seed == word) for word in np.unique(words)] for of_seed in words]
    return np.mean(np.dot(shares[1:], shares[0]))


def rank_agreement(
    a: Float[np.ndarray, "checkpoints latents"], b: Float[np.ndarray, "checkpoints latents"]
) -> float:
    """Rank correlation of ratios, mean over checkpoints, of latents that are active in both."""
    both = active_by(a) & active_by(b)
    if both.sum() < 3:
        return np.nan
    return float(rank_correlation(a[:, both], b[:, both]).mean())


def one_other(
    context: Context,
    seeds: Sequence[Seed],
    decided: dict[str, Bool[np.ndarray, " latents"]],
    what: str,
) -> pd.DataFrame:
    """`stability` over one other seed at a time, and the mean (of the ends of intervals, too).

    It is there to compare one other model with.
    """
    tables = [stability(context, [seeds[0], other], decided, what) for other in seeds[1:]]
    return pd.concat(tables).groupby(["what", "task"], sort=False).mean().reset_index()


def stable_classes(context: Context, seeds: Sequence[Seed]) -> pd.DataFrame:
    """Which classes come back: of the stable latents of each class, how many keep it.

    The class is that at the first seed. Kept by another seed: mean over the other seeds; kept by
    all: the same at every seed.
    """
    found = stable(seeds)
    rows = []
    for task in seeds[0].ie:
        rel_ie = [ctt.rel_ie(seed.ie[task], INACTIVE) for seed in seeds]
        rel_dec = [seed.rel_dec for seed in seeds]
        kept = found.some(active_by(rel_ie[0])[found.features])
        for kind, ratios in (("RelIE", rel_ie), ("RelDec", rel_dec)):
            words = np.stack([labels(r, context.names) for r in kept.at_each_seed(ratios)])
            same = words[1:] == words[0]
            for word in sorted(set(words[0])):
                of_class = same[:, words[0] == word]
                rows.append(
                    {
                        "ratio": kind,
                        "task": short(task),
                        "class": word,
                        "stable latents": of_class.shape[1],
                        "kept by another seed": of_class.mean(),
                        "kept by all": of_class.all(0).mean(),
                    }
                )
    return pd.DataFrame(rows)


def stable_latents(context: Context, seeds: Sequence[Seed]) -> pd.DataFrame:
    """The strongest stable latents: effect and RelIE, mean and standard deviation over seeds."""
    found = stable(seeds)
    rows = []
    for task in seeds[0].ie:
        means = [seed.ie[task] for seed in seeds]
        # [seeds, checkpoints, stable]
        ie = np.stack(found.at_each_seed(means))
        rel_ie = np.stack(found.at_each_seed([ctt.rel_ie(mean, 0) for mean in means]))
        judged = found.at_each_seed([ctt.rel_ie(mean, INACTIVE) for mean in means])
        words = np.stack([labels(r, context.names) for r in judged])
        strength = np.abs(ie).sum(1).mean(0)
        for j in np.argsort(-strength)[:TOP]:
            row = {
                "task": short(task),
                "latent": int(found.features[j]),
                "class": words[0, j],
                "seeds with it": int((words[:, j] == words[0, j]).sum()),
            }
            for kind, values in (("IE", ie), ("RelIE", rel_ie)):
                for c, name in enumerate(context.names):
                    there = values[:, c, j]
                    there = there[~np.isnan(there)]
                    row[f"{kind} {name}"] = there.mean()
                    row[f"{kind} {name} sd"] = there.std(ddof=1)
            rows.append(row)
    return pd.DataFrame(rows)


def stories(context: Context, seeds: Sequence[Seed], hard: str, plain: str) -> pd.DataFrame:
    """Two stories, each seed telling its own: what helps most late, and what hurts most midway.

    And where the first seed's own hero ends up: how similar its mutual best match is, and its rank
    in the same story.

    Args:
        context: names of checkpoints, and which is the one midway.
        seeds: the first, and others.
        hard: the task with an attractor, on which the stories are told.
        plain: the other.
    """
    middle = context.middle
    name_of_middle = context.names[middle]
    # story -> checkpoint, and the sign of the effects that are looked for
    told = {"helps most at the end": (-1, 1), f"hurts most at {name_of_middle}": (middle, -1)}
    rows = []
    for story, (checkpoint, sign) in told.items():
        scores = [sign * seed.ie[hard][checkpoint] for seed in seeds]
        hero = int(scores[0].argmax())
        for seed, score in zip(seeds, scores, strict=True):
            order = np.argsort(-score).tolist()
            latent = order[0]
            row = {"story": story, "crosscoder": seed.name, "latent": latent}
            for name, value in zip(context.names, seed.ie[hard][:, latent], strict=True):
                row[f"IE {name}"] = value
            ratios = ctt.rel_ie(seed.ie[hard], 0)[:, latent]
            for name, value in zip(context.names, ratios, strict=True):
                row[f"RelIE {name}"] = value
            row[f"IE {name_of_middle}, {short(plain)}"] = seed.ie[plain][middle, latent]
            row["similarity of the first's"] = np.nan
            row["its rank"] = np.nan
            if seed.match is None:  # the first seed itself
                row["similarity of the first's"] = 1.0
                row["its rank"] = 1
            else:
                match = seed.match.set_index("feature").loc[hero]
                if match["mutual"]:
                    row["similarity of the first's"] = match["similarity"]
                    row["its rank"] = order.index(match["match"]) + 1
            rows.append(row)
    return pd.DataFrame(rows)
