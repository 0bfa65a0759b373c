"""Other seeds: which claims, classes and stories come back in another training run.

Three models, pretrained with three seeds, and three crosscoders of each: what is said of estimators
is said over all nine, with intervals over models, crosscoders, latents and sentences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.metrics import PER_LATENT, activation_similarity, match_features, rank_correlation
from ctt_helpers.toy import pretrain
from experiments.context import INACTIVE, Context, active_by, decided, labels
from experiments.dictionary import Bench, default_of
from experiments.targets import BASE, N_DRAWS, RANK, RATIO_BASE, Drawn, fits, look

MODELS = (0, 1, 2)  # seeds of pretraining; of a suite that cannot be made anew only its own
CROSSCODERS = (0, 1, 2)  # seeds of weights, text and order
ESTIMATORS = ("ablation", "atp", "ig")
N_PAIRS = 64  # of each split, for estimators
CLASS_PAIRS = 120  # for classes and stories
# a latent has a partner if the mutual best match correlates so much, in activations over text
PARTNER = 0.7
TEXT_TOKENS = 20_000  # validation tokens, on which latents are matched
RATIOS = ("RelIE", "RelDec")
AHEAD = "ahead"
CROSSCODER, MODEL = "another crosscoder", "another model"

_SEEDS = (
    f"{len(MODELS)} models (seeds of pretraining) and {len(CROSSCODERS)} crosscoders of each "
    "(seeds of weights, text and order)"
)
TABLES = {
    "seeds_dip": (
        "One row for each model and checkpoint: accuracy on the plain task, and on the one with an "
        "attractor in each cell, the subject's level first (test half)."
    ),
    "seeds_claims": (
        f"What the tables targets and targets_shares ask, over {_SEEDS}, mean over two tasks, a "
        f"plain one and one with an attractor, {N_PAIRS} pairs. One row for each measure, target "
        "and estimator (by): rank correlation, mean over all; ahead: by how much it is better than "
        f"{BASE} (effects) or {RATIO_BASE} (shares); lowest, highest: the same in single "
        "crosscoders; in: in how many of them it is. low, high: 95 %, bootstrap over models, "
        "crosscoders within a model, latents and sentences; of three models such an interval is "
        "too short by about a fifth."
    ),
    "seeds_classes": (
        f"One row for each comparison, task and ratio: {CROSSCODER} of the same model, or one of "
        f"{MODEL}; mean over all ordered pairs. active: latents active by RelIE in the first; "
        "partner: share of them with a mutual best match in the other that correlates by "
        f"{PARTNER} or more, in activations on the same text; their share of |IE|. Of these, same "
        "class: share with one class in both; low, high: 95 %, bootstrap over models, crosscoders "
        "and latents; by chance: if each dealt out its classes anew; rank correlation of the "
        "ratios. decided: latents whose class is decided and beyond random directions in the "
        "first; share of them with a partner, and share of these with the same class."
    ),
    "seeds_stars": (
        "One row for each story and crosscoder, told on the pairs of the task with an attractor in "
        "which it distracts: the latent that helps most at the last checkpoint, that hurts most at "
        "the one that does worst, and that helps throughout (whose smallest effect is largest); "
        "its effects and RelIE there, its effects on the plain task, and what its effects are "
        "about at each checkpoint, by factorial. Then what became of the first crosscoder's star: "
        "similarity of its mutual best match (empty: it has none), the rank of that in the same "
        "story, and its effects."
    ),
    "seeds_switch": (
        "One row for each crosscoder: the latent that helps most where something distracts, beyond "
        "what it does where nothing does, at the last checkpoint (switch; chosen on the find "
        "half), its effects in both, and similarity of the first one's best match, where that is "
        "the switch itself. Then accuracy on far at the last checkpoint, in each cell, as it is "
        "and without this latent alone; and at the checkpoint that does worst, as it is."
    ),
}


def run(context: Context) -> dict[str, pd.DataFrame]:
    tasks = context.tasks[:2]
    cells = all_cells(replace(context, tasks=tasks))
    return {
        "seeds_dip": dip(cells),
        "seeds_claims": claims(cells),
        "seeds_classes": classes(cells),
        "seeds_stars": stars(cells),
        "seeds_switch": switches(cells),
    }


# ---- models and crosscoders


@dataclass
class Cell:
    """One crosscoder of one model, and what is asked of it.

    Attributes:
        model, crosscoder: their seeds.
        context: with that model and that crosscoder.
        effects, null: task -> its effects on the find half, and those of random directions.
        codes: [tokens, latents] its latents on the text.
    """

    model: int
    crosscoder: int
    context: Context
    effects: dict[str, ctt.Effects]
    null: dict[str, ctt.Effects]
    codes: Float[np.ndarray, "tokens latents"]

    @property
    def name(self) -> str:
        return f"model {self.model}, crosscoder {self.crosscoder}"


def all_cells(context: Context) -> list[Cell]:
    """Every crosscoder of every model; the first is the context's own."""
    text = context.validation_text(TEXT_TOKENS)
    cells = []
    for seed in seeds_of_models(context):
        own = of_model(context, seed)
        bench = Bench(own)
        for s in CROSSCODERS:
            print(f"seeds: model {seed}, crosscoder {s}", flush=True)
            is_own = own is context and s == CROSSCODERS[0]
            crosscoder = context.crosscoder if is_own else bench.train(default_of(context), s)
            one = replace(own, crosscoder=crosscoder.eval())
            random = ctt.random_directions(crosscoder, context.seed)
            effects, null = {}, {}
            for task in one.tasks:
                pairs = one.pairs(task, "find", CLASS_PAIRS)
                effects[task] = ctt.indirect_effects(crosscoder, one.ckpts, pairs)
                null[task] = ctt.indirect_effects(random, one.ckpts, pairs[:N_PAIRS])
            codes = latents_on(crosscoder, one.ckpts, text)
            cells.append(Cell(seed, s, one, effects, null, codes))
    return cells


def seeds_of_models(context: Context) -> list[int]:
    """The suite's own first."""
    if "seed" not in context.suite.meta:
        return [0]
    own = context.suite.meta["seed"]
    return [own, *(seed for seed in MODELS if seed != own)]


def of_model(context: Context, seed: int) -> Context:
    """The same questions to a model that is pretrained with this seed, made where it is missing."""
    if seed == context.suite.meta.get("seed", seed):
        return context
    folder = context.work / f"model seed {seed}"
    finished = (folder / "SHA256SUMS").is_file()
    context.trainings["reused" if finished else "anew"] += 1
    if not finished:
        pretrain.pretrain(folder, seed=seed)
    suite = ctt.load_suite(folder)
    ckpts = suite.checkpoints(context.names, layer=context.ckpts.layer, device=context.ckpts.device)
    work = context.work / f"of model seed {seed}"
    return replace(context, suite=suite, ckpts=ckpts, asked=context.suite, work=work, _effects={})


def latents_on(
    crosscoder: ctt.Crosscoder, ckpts: ctt.Checkpoints, text: Tensor
) -> Float[np.ndarray, "tokens latents"]:
    """Latents on the activations of a text."""
    parts = []
    for ids in text.split(64):
        x = hooks.stacked_activations(ckpts, ids)[:, 1:].flatten(0, 1)
        parts.append(crosscoder.encode(x).detach().cpu().numpy())
    return np.concatenate(parts)


# ---- the dip


def dip(cells: Sequence[Cell]) -> pd.DataFrame:
    """Accuracy by cell at all checkpoints of each model."""
    rows = []
    for cell in cells:
        if cell.crosscoder != CROSSCODERS[0]:
            continue
        context = cell.context
        plain, hard = context.tasks
        for revision in context.suite.revisions:
            (model,) = context.suite.checkpoints(
                [revision], layer=context.ckpts.layer, device=context.ckpts.device
            )
            row = {"model": cell.model, "checkpoint": revision}
            row["plain"] = ctt.accuracy(model, context.pairs(plain, "test"))
            pairs = context.pairs(hard, "test")
            for name in dict.fromkeys(pairs.cells):
                row[name or hard] = ctt.accuracy(model, pairs[pairs.cells == name])
            rows.append(row)
    return pd.DataFrame(rows)


# ---- estimators and ratios, over all seeds


def claims(cells: Sequence[Cell]) -> pd.DataFrame:
    """What is said of estimators and ratios, over models and crosscoders."""
    found = {"effects": [], "shares": []}
    for cell in cells:
        print(f"seeds: estimators, {cell.name}", flush=True)
        sights = [
            look(cell.context, task, ESTIMATORS, N_PAIRS, also_test=False)
            for task in cell.context.tasks
        ]
        for measure, fitted in zip(found, fits(sights, cell.context), strict=True):
            found[measure].append(fitted)
    rng = np.random.default_rng(cells[0].context.seed)
    orders = [drawn_cells(cells, rng) for _ in range(N_DRAWS)]
    rows = []
    for measure, base in {"effects": BASE, "shares": RATIO_BASE}.items():
        for target in found[measure][0]:
            rows += over_cells([f[target] for f in found[measure]], orders, base, measure, target)
    return pd.DataFrame(rows)


def over_cells(
    fitted: Sequence[Drawn],
    orders: Sequence[Int[np.ndarray, " cells"]],
    base: str,
    measure: str,
    target: str,
) -> list[dict]:
    """One row a guess: rank correlations over all crosscoders, and against that of `base`."""
    point = np.stack([f.point[RANK].mean((0, 2)) for f in fitted])  # [cells, guesses]
    draws = np.stack([f.draws[RANK].mean(1) for f in fitted], 1)  # [draws, cells, guesses]
    # draws have the noise of the sentences twice: their spread is taken, around the value
    draws = draws - draws.mean(0) + point
    over = np.stack([draws[d, order].mean(0) for d, order in enumerate(orders)])
    names = fitted[0].guesses
    b = names.index(base)
    rows = []
    for g, name in enumerate(names):
        ahead = point[:, g] - point[:, b]
        low, high = np.quantile(over[:, g], (0.025, 0.975))
        row = {"measure": measure, "target": target, "by": name}
        row |= {RANK: point[:, g].mean(), "low": low, "high": high}
        low, high = np.quantile(over[:, g] - over[:, b], (0.025, 0.975))
        row |= {AHEAD: ahead.mean(), f"{AHEAD} low": low, f"{AHEAD} high": high}
        if g != b:
            row |= {"lowest": ahead.min(), "highest": ahead.max()}
            row["in"] = f"{(ahead > 0).sum()} of {len(ahead)}"
        rows.append(row)
    return rows


def drawn_cells(cells: Sequence[Cell], rng: np.random.Generator) -> Int[np.ndarray, " cells"]:
    """Models drawn with replacement, and of each drawn one its crosscoders likewise."""
    by_model = {}
    for index, cell in enumerate(cells):
        by_model.setdefault(cell.model, []).append(index)
    models = list(by_model.values())
    drawn = [models[m] for m in rng.integers(len(models), size=len(models))]
    return np.concatenate([rng.choice(own, len(own)) for own in drawn])


# ---- classes


@dataclass
class Matched:
    """Latents of one crosscoder beside their partners in another.

    Attributes:
        group: what is drawn together: the model, or the two models.
        active, partnered: [active], how many are active in the first, and which have a partner.
        strength: [active] |IE| in the first.
        same: ratio -> [partnered] the same class in both.
        chance: ratio -> share that would be, if each dealt out its classes anew.
        correlation: ratio -> rank correlation.
        decided: [active] whose class is decided in the first.
    """

    group: tuple[int, ...]
    strength: Float[np.ndarray, " active"]
    partnered: Bool[np.ndarray, " active"]
    decided: Bool[np.ndarray, " active"]
    same: dict[str, Bool[np.ndarray, " partnered"]]
    chance: dict[str, float]
    correlation: dict[str, float]


def classes(cells: Sequence[Cell]) -> pd.DataFrame:
    """How many latents have a partner in another run, and how many of these the same class."""
    compared = {CROSSCODER: [], MODEL: []}
    for first, second in permutations(cells, 2):
        kind = CROSSCODER if first.model == second.model else MODEL
        match = match_features(activation_similarity(first.codes, second.codes))
        compared[kind].append((first, second, match))
    rng = np.random.default_rng(cells[0].context.seed)
    rows = []
    for kind, three in compared.items():
        for task in cells[0].effects if three else []:
            pairs = [beside(first, second, match, task) for first, second, match in three]
            partner = [one.partnered.mean() for one in pairs]
            share = [one.strength[one.partnered].sum() / one.strength.sum() for one in pairs]
            sure = np.concatenate([one.decided for one in pairs])
            found = np.concatenate([one.partnered for one in pairs])
            for ratio in RATIOS:
                same = np.concatenate([one.same[ratio] for one in pairs])
                low, high = interval_of_same(pairs, ratio, rng)
                rows.append(
                    {
                        "compared with": kind,
                        "task": task,
                        "ratio": ratio,
                        "pairs": len(pairs),
                        "active": np.mean([len(one.strength) for one in pairs]),
                        "partner": np.mean(partner),
                        "their share of |IE|": np.mean(share),
                        "same class": np.mean([one.same[ratio].mean() for one in pairs]),
                        "low": low,
                        "high": high,
                        "by chance": np.mean([one.chance[ratio] for one in pairs]),
                        "rank correlation": np.nanmean([one.correlation[ratio] for one in pairs]),
                        "decided": sure.sum() / len(pairs),
                        "decided: partner": found[sure].mean() if sure.any() else np.nan,
                        "decided: same class": mean_or_nan(same[sure[found]]),
                    }
                )
    return pd.DataFrame(rows)


def beside(first: Cell, second: Cell, match: pd.DataFrame, task: str) -> Matched:
    """Classes of the latents that are active in the first, and of their partners."""
    names = first.context.names
    ratios = []
    for cell in (first, second):
        rel_ie = ctt.rel_ie(cell.effects[task].mean, INACTIVE)
        ratios.append(
            {"RelIE": rel_ie, "RelDec": ctt.rel_dec(cell.context.crosscoder.decoder_norms())}
        )
    active = np.flatnonzero(active_by(ratios[0]["RelIE"]))
    partnered = (match["mutual"] & (match["similarity"] >= PARTNER)).to_numpy(bool)[active]
    mine = active[partnered]
    theirs = match["match"].to_numpy()[mine].astype(int)
    words = decided(
        first.effects[task], first.context.pairs(task, "find", CLASS_PAIRS), first.null[task]
    )
    same, chance, correlation = {}, {}, {}
    for ratio in RATIOS:
        a, b = ratios[0][ratio][:, mine], ratios[1][ratio][:, theirs]
        of_first, of_second = labels(a, names), labels(b, names)
        same[ratio] = of_first == of_second
        chance[ratio] = sum(
            np.mean(of_first == word) * np.mean(of_second == word) for word in set(of_first)
        )
        both = active_by(a) & active_by(b)
        correlation[ratio] = np.mean(rank_correlation(a[:, both], b[:, both]))
    return Matched(
        group=tuple(sorted({first.model, second.model})),
        strength=np.abs(first.effects[task].mean).sum(0)[active],
        partnered=partnered,
        decided=(words != "undecided")[active],
        same=same,
        chance=chance,
        correlation=correlation,
    )


def interval_of_same(
    pairs: Sequence[Matched], ratio: str, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % over models (or pairs of models), pairs of crosscoders, and latents."""
    by_group = {}
    for one in pairs:
        by_group.setdefault(one.group, []).append(one.same[ratio])
    groups = list(by_group.values())
    means = []
    for _ in range(N_DRAWS):
        drawn = []
        for g in rng.integers(len(groups), size=len(groups)):
            for i in rng.integers(len(groups[g]), size=len(groups[g])):
                latents = groups[g][i]
                drawn.append(latents[rng.integers(len(latents), size=len(latents))].mean())
        means.append(np.mean(drawn))
    low, high = np.quantile(means, (0.025, 0.975))
    return low, high


def mean_or_nan(values: np.ndarray) -> float:
    """The mean, without a warning where there is nothing."""
    return float(values.mean()) if values.size else np.nan


# ---- stories


def stars(cells: Sequence[Cell]) -> pd.DataFrame:
    """Three stories, each crosscoder telling its own; and what became of the first one's star."""
    first = cells[0]
    context = first.context
    plain, hard = context.tasks
    matches = [match_features(activation_similarity(first.codes, cell.codes)) for cell in cells]
    where = where_it_distracts(context.pairs(hard, "find", CLASS_PAIRS))
    ie = [over(cell.effects[hard], where) for cell in cells]
    middle, names = context.middle, context.names
    scores = {
        "helps most at the end": [one[-1] for one in ie],
        f"hurts most at {names[middle]}": [-one[middle] for one in ie],
        "helps throughout": [one.min(0) for one in ie],
    }
    rows = []
    for story, each in scores.items():
        hero = int(each[0].argmax())
        for cell, own, score, match in zip(cells, ie, each, matches, strict=True):
            star = int(score.argmax())
            row = {"story": story, "model": cell.model, "crosscoder": cell.crosscoder}
            row |= {"latent": star, **told("IE", own[:, star], names)}
            row |= told("RelIE", ctt.rel_ie(own, 0)[:, star], names)
            row |= told(f"IE, {plain}", cell.effects[plain].mean[:, star], names)
            row |= told("about", about(cell, hard, star), names)
            partner = match.set_index("feature").loc[hero]
            row["similarity of the first's"] = (
                partner["similarity"] if partner["mutual"] else np.nan
            )
            row["its rank"] = np.nan
            if partner["mutual"]:
                theirs = int(partner["match"])
                row["its rank"] = int((score > score[theirs]).sum()) + 1
                row |= told("its IE", own[:, theirs], names)
            rows.append(row)
    return pd.DataFrame(rows)


def told(what: str, values: Sequence, names: Sequence[str]) -> dict:
    """A column for each checkpoint."""
    return {f"{what} {name}": value for name, value in zip(names, values, strict=True)}


def where_it_distracts(pairs: ctt.MinimalPairs) -> Bool[np.ndarray, " pairs"]:
    if len(pairs.levels) < 2 or "subject" not in pairs.levels:
        return np.ones(len(pairs), bool)
    return ~pairs.congruent


def over(effects: ctt.Effects, rows: Bool[np.ndarray, " pairs"]) -> PER_LATENT:
    """Mean effects over some of the pairs."""
    per_pair = effects.per_pair.to_dense().double().numpy()
    return per_pair[:, rows].mean(1)


def about(cell: Cell, task: str, latent: int) -> list[str]:
    """What a latent's effects are about at each checkpoint; "" where pairs have no cells."""
    pairs = cell.context.pairs(task, "find", CLASS_PAIRS)
    if len(pairs.levels) < 2:
        return [""] * len(cell.context.names)
    return ctt.factorial_of(cell.effects[task], pairs, features=[latent]).label[:, 0].tolist()


# ---- one latent that decides between subject and neighbour


def switches(cells: Sequence[Cell]) -> pd.DataFrame:
    """Is the model back in the dip without one latent, in every crosscoder?"""
    first, rows = cells[0], []
    hard = first.context.tasks[1]
    distracts = where_it_distracts(first.context.pairs(hard, "find", CLASS_PAIRS))
    if distracts.all():  # nothing is crossed with the subject
        return pd.DataFrame(columns=["model", "crosscoder", "switch"])
    own = []
    for cell in cells:
        with_it = over(cell.effects[hard], distracts)[-1]
        without = over(cell.effects[hard], ~distracts)[-1]
        switch = int((with_it - without).argmax())
        own.append(switch)
        row = {"model": cell.model, "crosscoder": cell.crosscoder, "switch": switch}
        row |= {"IE where it distracts": with_it[switch], "IE elsewhere": without[switch]}
        match = match_features(activation_similarity(first.codes, cell.codes))
        partner = match.set_index("feature").loc[own[0]]
        is_switch = bool(partner["mutual"]) and int(partner["match"]) == switch
        row["similarity of the first's"] = partner["similarity"] if is_switch else np.nan
        context = cell.context
        pairs = context.far(hard)
        for name in dict.fromkeys(pairs.cells):
            some = pairs[pairs.cells == name]
            table = ctt.ablate(context.crosscoder, context.ckpts, some, [switch])
            row[f"{name}"] = table["accuracy_before"].iloc[-1]
            row[f"{name}, without"] = table["accuracy_after"].iloc[-1]
            row[f"{name}, {context.names[context.middle]}"] = table["accuracy_before"].iloc[
                context.middle
            ]
        rows.append(row)
    return pd.DataFrame(rows)
