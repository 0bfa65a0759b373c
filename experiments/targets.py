"""Two kinds of causes: which estimator of effects is right about what, and what each costs.

(claim)
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.attribution import Latents, Readout
from ctt_helpers.effects import readout_of, touched
from ctt_helpers.metrics import PER_LATENT, rank_correlation
from ctt_helpers.pairs import twins
from ctt_helpers.uncertainty import resample
from experiments.context import INACTIVE, Context

ESTIMATORS = ("ablation", "atp", "ig_near", "ig", "shapley")
N_PAIRS = 96  # of each split
PERMUTATIONS = 4  # orders for each pair, of Shapley values
N_GROUPS = 60  # random groups of each size
N_FEW = 5  # latents of the small ones
SIZES = (1, 2, 5, 10, 20, 50)  # of the groups that a ranking puts first
N_RANDOM = 3  # random rankings
PARTS_OF_PAIRS = (0.1, 0.25)  # for exact ablation on fewer
N_DRAWS = 300  # of latents and sentences
GRADIENT = 3  # a gradient costs about as much as three forward passes
BASE = "ablation"  # the estimator that the others are compared with
RATIO_BASE = "RelDec"  # the same among predictors of shares

# targets
SINGLE, SHAPLEY, TEST = "single", "shapley", ", test"
OF_LATENTS = (SINGLE, SINGLE + TEST, SHAPLEY, SHAPLEY + TEST)
FEW, HALF = f"groups of {N_FEW}", "halves"
# figures, rankings, and the mean over tasks
RANK, ERROR = "rank", "error"
WRITTEN, RANDOM, HELP, HURT = "written", "random", ": helps", ": hurts"
ALL = "all tasks"

_TARGETS = (
    f"{SINGLE}: exact effect of removing a latent alone; {SHAPLEY}: Shapley values over all "
    f"latents and the error ({PERMUTATIONS} orders a pair); {FEW}, {HALF}: exact effects of "
    f"removing {N_GROUPS} random groups of {N_FEW}, or of half of the latents, estimated by the "
    f"sum over the members; all on far (other words, another structure), {TEST[2:]}: on other "
    "sentences of the same words"
)
_INTERVALS = (
    "low, high: 95 %, 1.96 standard deviations over draws of latents (or groups) and of target "
    "sentences, around the value itself"
)
TABLES = {
    "targets": (
        "One row for each task, target and estimator: rank correlation of estimated effects "
        f"({N_PAIRS} pairs, find half) with those of the target (as many pairs), at each "
        f"checkpoint and on average. {_TARGETS}. items: latents that "
        f"have {INACTIVE:g} of all |IE| by at least one estimator, or groups of them. - {BASE}: by "
        f"how much the mean differs from that of {BASE}. reliability: share of the target's "
        f"variance over latents that is not due to the drawing of orders. {_INTERVALS}. {ALL}: the "
        "mean over tasks, the same latents drawn on each."
    ),
    "targets_shares": (
        "One row for each task, target and predictor: rank correlation of the predicted share of a "
        "checkpoint (RelIE by each estimator on the find half, and RelDec) with its share in the "
        "target, |effect| over the sum of |effect| over checkpoints; error: mean |difference|. "
        f"Targets and items as in targets; of {FEW} the share of the group's effect, predicted by "
        f"the mean ratio of its members. {_INTERVALS}."
    ),
    "targets_groups": (
        "One row for each task, checkpoint and ranking (find half): the first m latents removed "
        "together, on far. m=...: mean |change of the logit difference| over pairs, ranked by "
        "|IE|; area: mean over m. signed area: half the sum of what the difference loses without "
        "the first m helpers (largest IE) and gains without the first m that hurt (smallest). of "
        f"best: part of the largest area of an estimator. {WRITTEN}: ranked by activation times "
        f"decoder norm where the answer is read; {RANDOM}: mean of {N_RANDOM} orders of the same "
        f"latents. low, high: 95 %, bootstrap over sentences. {ALL}: the mean over tasks and "
        "checkpoints."
    ),
    "targets_cost": (
        "One row for each way to spend passes (find half), mean over tasks and checkpoints: "
        "passes: forward passes through the layers above, a pair and checkpoint, a gradient "
        f"counted as {GRADIENT}; seconds: for 100 pairs at all checkpoints; then the rank "
        "correlation with each target, as in targets, and the parts of the best areas, as in "
        "targets_groups. ablation, ... of pairs: exact effects on the first of the pairs alone."
    ),
}


def run(context: Context) -> dict[str, pd.DataFrame]:
    sights = []
    for task in context.tasks:
        print(f"targets: {task}", flush=True)
        sights.append(look(context, task))
    effects, shares = {}, {}
    for target in (*OF_LATENTS, FEW, HALF):
        cases = {sight.task: effects_case(sight, target) for sight in sights}
        effects[target] = compare(cases, fit_effects, context, BASE)
    rel_dec = ctt.rel_dec(context.crosscoder.decoder_norms())
    for target in (*OF_LATENTS, FEW):  # the shares of random halves are all alike
        cases = {sight.task: shares_case(sight, target, rel_dec) for sight in sights}
        shares[target] = compare(cases, fit_shares, context, RATIO_BASE)
    groups = top_groups(sights, context)
    return {
        "targets": joined(effects, "estimator"),
        "targets_shares": joined(shares, "predictor"),
        "targets_groups": groups,
        "targets_cost": costs(sights, effects, groups),
    }


def joined(tables: dict[str, pd.DataFrame], who: str) -> pd.DataFrame:
    """One table under another, each with its target."""
    each = [table.assign(target=target) for target, table in tables.items()]
    table = pd.concat(each, ignore_index=True).rename(columns={"name": who})
    first = ["task", "target", who, "items"]
    return table[[*first, *(column for column in table if column not in first)]]


# ---- what is asked on one task


@dataclass
class Sight:
    """One task: the estimates, and the targets.

    Attributes:
        task: its name.
        found: estimator -> its effects on the find half.
        seconds: estimator -> for 100 pairs.
        truth: target -> effects of latents on other sentences.
        clusters: target -> [pairs] of these sentences, the same number where drawn together.
        latents: [kept] which latents are compared.
        groups: target -> groups of latents.
        changes: target -> [checkpoints, pairs, groups] effects of removing these.
        curves: ranking -> [checkpoints, sizes, pairs] change of m without the first few.
        sizes: of these.
    """

    task: str
    found: dict[str, ctt.Effects]
    seconds: dict[str, float]
    truth: dict[str, ctt.Effects]
    clusters: dict[str, Int[np.ndarray, " pairs"]]
    latents: Int[np.ndarray, " kept"]
    groups: dict[str, list[Int[np.ndarray, " members"]]]
    changes: dict[str, Float[np.ndarray, "checkpoints pairs groups"]]
    curves: dict[str, Float[np.ndarray, "checkpoints sizes pairs"]]
    sizes: list[int]


def look(context: Context, task: str) -> Sight:
    """Everything that is measured on one task."""
    find, test = (context.pairs(task, split, N_PAIRS) for split in ("find", "test"))
    far = context.far(task, N_PAIRS)

    def effects(pairs: ctt.MinimalPairs, method: str) -> ctt.Effects:
        return ctt.indirect_effects(
            context.crosscoder, context.ckpts, pairs, method, permutations=PERMUTATIONS
        )

    found, seconds = {}, {}
    for method in ESTIMATORS:
        begin = time.perf_counter()
        found[method] = effects(find, method)
        seconds[method] = (time.perf_counter() - begin) * 100 / len(find)
    truth = {
        target + where: effects(pairs, method)
        for target, method in {SINGLE: "ablation", SHAPLEY: "shapley"}.items()
        for where, pairs in {"": far, TEST: test}.items()
    }
    latents = compared(found.values(), truth.values())
    removal = Removal.of(context, far)
    rng = np.random.default_rng(context.seed)
    groups = {
        target: [rng.permutation(latents)[:size] for _ in range(N_GROUPS)]
        for target, size in {FEW: N_FEW, HALF: len(latents) // 2}.items()
    }
    changes = {
        target: np.stack([removal.change(c, some).T for c in range(len(context.ckpts))])
        for target, some in groups.items()
    }
    clusters = dict.fromkeys((SINGLE, SHAPLEY, FEW, HALF), twins(far))
    clusters |= dict.fromkeys((SINGLE + TEST, SHAPLEY + TEST), twins(test))
    sizes = [size for size in SIZES if size <= len(latents)]
    orders = rankings(found, Removal.of(context, find).written(), latents, rng)
    curves = {
        ranking: np.stack(
            [removal.change(c, [order[:size] for size in sizes]) for c, order in enumerate(each)]
        )
        for ranking, each in orders.items()
    }
    return Sight(
        task=task,
        found=found,
        seconds=seconds,
        truth=truth,
        clusters=clusters,
        latents=latents,
        groups=groups,
        changes=changes,
        curves=curves,
        sizes=sizes,
    )


def compared(
    found: Iterable[ctt.Effects], truth: Iterable[ctt.Effects]
) -> Int[np.ndarray, " kept"]:
    """Latents that matter by any of the estimators, so that none chooses its own.

    And that have an effect on the sentences of every target.
    """
    sums = [np.abs(effects.mean).sum(0) for effects in found]
    matters = np.any([each >= INACTIVE * each.sum() for each in sums], axis=0)
    there = np.all([(effects.mean != 0).any(0) for effects in truth], axis=0)
    return np.flatnonzero(matters & there)


def rankings(
    found: dict[str, ctt.Effects],
    written: PER_LATENT,
    latents: Int[np.ndarray, " kept"],
    rng: np.random.Generator,
) -> dict[str, list[Int[np.ndarray, " kept"]]]:
    """Name -> an order of the latents at each checkpoint, the first to be removed first."""

    def order(scores: PER_LATENT) -> list[Int[np.ndarray, " kept"]]:
        return [latents[np.argsort(-each[latents], kind="stable")] for each in scores]

    orders = {}
    for method, effects in found.items():
        orders[method] = order(np.abs(effects.mean))
        orders[f"{method}{HELP}"] = order(effects.mean)
        orders[f"{method}{HURT}"] = order(-effects.mean)
    orders[WRITTEN] = order(written)
    for draw in range(N_RANDOM):
        orders[f"{RANDOM} {draw}"] = [rng.permutation(latents)] * len(written)
    return orders


@dataclass
class Removal:
    """Groups of latents taken away on some pairs; these are read once.

    Attributes:
        readouts: of each checkpoint.
        f: [pairs, t, latents].
        decoders: of each checkpoint, in raw space.
        answer: [pairs] where the answer is read.
    """

    readouts: list[Readout]
    f: Latents
    decoders: list[Float[Tensor, "latents d_model"]]
    answer: Int[Tensor, " pairs"]

    @classmethod
    def of(cls, context: Context, pairs: ctt.MinimalPairs) -> "Removal":
        crosscoder = context.crosscoder.eval()
        x = hooks.stacked_activations(context.ckpts, pairs.input_ids, pairs.attention_mask)
        where = touched(pairs).to(x.device)
        f = x.new_zeros(*x.shape[:2], crosscoder.n_latents)
        f[where] = crosscoder.encode(x[where]).detach()
        W_dec, b_dec = (weights.detach().to(x) for weights in crosscoder.raw_decoder())
        readouts = [
            readout_of(model, pairs, x[:, :, c], b_dec[c]) for c, model in enumerate(context.ckpts)
        ]
        return cls(readouts, f, list(W_dec.unbind(1)), pairs.answer_position)

    def change(
        self, checkpoint: int, groups: Sequence[Int[np.ndarray, " members"]]
    ) -> Float[np.ndarray, "groups pairs"]:
        """m without each group, minus m: above 0 where the group has helped."""
        readout, decoder = self.readouts[checkpoint], self.decoders[checkpoint]
        changes = []
        for group in groups:
            removed = self.f[..., group] @ decoder[group]
            changes.append((readout.value(readout.x - removed) - readout.clean).cpu().double())
        return torch.stack(changes).numpy()

    def written(self) -> PER_LATENT:
        """Mean activation times decoder norm where the answer is read."""
        f = self.f[range(len(self.f)), self.answer].mean(0)
        return np.stack([(f * decoder.norm(dim=1)).cpu().numpy() for decoder in self.decoders])


# ---- estimates against targets


@dataclass
class Case:
    """What is to be predicted on one task, and by what.

    Attributes:
        guesses: name -> [checkpoints, items]; an item is a latent or a group of them.
        target: [checkpoints, pairs, items] effects on each pair.
        clusters: [pairs] the same number where they are drawn together.
        latents: [items] which latent each is; None: groups, which are drawn by themselves.
        reliability: share of the target's variance that is not due to chance in how it was taken.
    """

    guesses: dict[str, Float[np.ndarray, "checkpoints items"]]
    target: Float[np.ndarray, "checkpoints pairs items"]
    clusters: Int[np.ndarray, " pairs"]
    latents: Int[np.ndarray, " items"] | None = None
    reliability: float = np.nan

    def drawn(
        self, times: Int[np.ndarray, " latents"], rng: np.random.Generator
    ) -> Int[np.ndarray, " drawn"]:
        """Items drawn with replacement; `times` says how often each latent is."""
        n_items = self.target.shape[2]
        if self.latents is None:
            return rng.integers(n_items, size=n_items)
        return np.repeat(np.arange(n_items), times[self.latents])


def effects_case(sight: Sight, target: str) -> Case:
    """Effects of latents, or of groups as the sums over their members."""
    if target in OF_LATENTS:
        truth, kept = sight.truth[target], sight.latents
        return Case(
            guesses={name: effects.mean[:, kept] for name, effects in sight.found.items()},
            target=by_pair(truth, kept),
            clusters=sight.clusters[target],
            latents=kept,
            reliability=reliability(truth, kept),
        )
    groups = sight.groups[target]
    guesses = {
        name: np.stack([effects.mean[:, group].sum(1) for group in groups], 1)
        for name, effects in sight.found.items()
    }
    return Case(guesses, sight.changes[target], sight.clusters[target])


def shares_case(sight: Sight, target: str, rel_dec: PER_LATENT) -> Case:
    """Shares of checkpoints; of a group the mean over its members."""
    ratios = {f"RelIE, {name}": ctt.rel_ie(e.mean, 0) for name, e in sight.found.items()}
    ratios[RATIO_BASE] = rel_dec
    if target in OF_LATENTS:
        truth, kept = sight.truth[target], sight.latents
        guesses = {name: ratio[:, kept] for name, ratio in ratios.items()}
        return Case(
            guesses=guesses,
            target=by_pair(truth, kept),
            clusters=sight.clusters[target],
            latents=kept,
            reliability=reliability(truth, kept),
        )
    groups = sight.groups[target]
    guesses = {
        name: np.stack([ratio[:, group].mean(1) for group in groups], 1)
        for name, ratio in ratios.items()
    }
    return Case(guesses, sight.changes[target], sight.clusters[target])


def by_pair(
    effects: ctt.Effects, latents: Int[np.ndarray, " kept"]
) -> Float[np.ndarray, "checkpoints pairs kept"]:
    return effects.per_pair.to_dense().double().numpy()[..., latents]


def reliability(effects: ctt.Effects, latents: Int[np.ndarray, " kept"]) -> float:
    """Share of the variance over latents that is not due to the drawing of orders."""
    if effects.stderr is None:
        return np.nan
    noise = (effects.stderr[:, latents] ** 2).mean(1)
    return float((1 - noise / effects.mean[:, latents].var(1)).mean())


Values = Float[np.ndarray, "guesses checkpoints"]
Fit = Callable[
    [Float[np.ndarray, "guesses checkpoints items"], Float[np.ndarray, "checkpoints items"]],
    dict[str, Values],
]


def fit_effects(
    guesses: Float[np.ndarray, "guesses checkpoints items"],
    target: Float[np.ndarray, "checkpoints items"],
) -> dict[str, Values]:
    """How well effects are put in order, with their signs."""
    return {RANK: rank_correlation(guesses, np.broadcast_to(target, guesses.shape))}


def fit_shares(
    guesses: Float[np.ndarray, "guesses checkpoints items"],
    target: Float[np.ndarray, "checkpoints items"],
) -> dict[str, Values]:
    """How well the shares of checkpoints are put in order, and how far off they are."""
    size = np.abs(target)
    there = size.sum(0) > 0  # others have no effect on any of the drawn sentences
    shares, guesses = size[:, there] / size[:, there].sum(0), guesses[..., there]
    return {
        RANK: rank_correlation(guesses, np.broadcast_to(shares, guesses.shape)),
        ERROR: np.abs(guesses - shares).mean(-1),
    }


def compare(cases: dict[str, Case], fit: Fit, context: Context, base: str) -> pd.DataFrame:
    """One row a task and guess, and for the mean over tasks, with intervals.

    Draws of sentences hold the noise of the sentences twice, and so their correlations are lower:
    only their spread is taken, around the value itself. The same latents are drawn on every task.

    Args:
        cases: task -> what is predicted there, all by the same guesses.
        fit: `fit_effects` or `fit_shares`.
        context: names of checkpoints, seed.
        base: the guess that the others are compared with.
    """
    tasks, who = list(cases), list(next(iter(cases.values())).guesses)
    guesses = {task: np.stack(list(case.guesses.values())) for task, case in cases.items()}
    points = [fit(guesses[task], case.target.mean(1)) for task, case in cases.items()]
    anew = {t: resample(c.target, N_DRAWS, context.seed, c.clusters) for t, c in cases.items()}
    rng = np.random.default_rng(context.seed)
    n_latents = context.crosscoder.n_latents
    draws = []  # [draws][tasks] figures
    for draw in range(N_DRAWS):
        times = rng.multinomial(n_latents, np.full(n_latents, 1 / n_latents))
        each = []
        for task, case in cases.items():
            items = case.drawn(times, rng)
            each.append(fit(guesses[task][..., items], anew[task][draw][:, items]))
        draws.append(each)
    rows = []
    for task in [*tasks, ALL]:
        some = [t for t in range(len(tasks)) if task in (tasks[t], ALL)]
        for g, name in enumerate(who):
            b = who.index(base)
            row = {"task": task, "name": name}
            row["items"] = int(np.mean([guesses[tasks[t]].shape[2] for t in some]))
            for what in points[0]:
                point = np.mean([points[t][what] for t in some], 0)  # [guesses, checkpoints]
                drawn = np.array([[each[t][what].mean(1) for t in some] for each in draws])
                drawn = drawn.mean(1)  # [draws, guesses]
                if what == RANK:
                    values = zip(context.names, point[g], strict=True)
                    row |= {f"{RANK} {checkpoint}": value for checkpoint, value in values}
                mean = point.mean(1)
                row |= with_interval(what, mean[g], drawn[:, g])
                difference = drawn[:, g] - drawn[:, b]
                row |= with_interval(f"{what} - {base}", mean[g] - mean[b], difference)
            row["reliability"] = np.mean([cases[tasks[t]].reliability for t in some])
            rows.append(row)
    return pd.DataFrame(rows)


def with_interval(title: str, value: float, draws: Float[np.ndarray, " draws"]) -> dict[str, float]:
    """A figure and its 95 % interval, as columns of a table."""
    spread = 1.96 * np.nanstd(draws)
    return {title: value, f"{title} low": value - spread, f"{title} high": value + spread}


# ---- the first few removed


def top_groups(sights: Sequence[Sight], context: Context) -> pd.DataFrame:
    """How much of the answer each ranking gets hold of."""
    rows, of_best = [], []
    names = [*ESTIMATORS, WRITTEN, RANDOM]
    for sight in sights:
        clusters = sight.clusters[SINGLE]
        for c, checkpoint in enumerate(context.names):
            # [rankings, sizes, pairs]
            moved = np.stack([np.abs(curve(sight, name)[..., c, :, :]).mean(0) for name in names])
            area = drawn_with_point(moved.mean(1), clusters, context)
            signed = drawn_with_point(signed_areas(sight, c), clusters, context)
            best = part_of_best(area), part_of_best(signed)
            of_best.append(best)
            for r, name in enumerate(names):
                row = {"task": sight.task, "checkpoint": checkpoint, "ranking": name}
                means = zip(sight.sizes, moved[r].mean(1), strict=True)
                row |= {f"m={size}": value for size, value in means}
                row |= with_interval("area", area[0, r], area[1:, r])
                row["of best"] = best[0][0, r]
                if name in ESTIMATORS:
                    row |= with_interval("signed area", signed[0, r], signed[1:, r])
                    row["signed of best"] = best[1][0, r]
                rows.append(row)
    areas, signed = (np.mean([best[kind] for best in of_best], 0) for kind in (0, 1))
    for r, name in enumerate(names):
        row = {"task": ALL, "checkpoint": "all", "ranking": name}
        row |= with_interval("of best", areas[0, r], areas[1:, r])
        if name in ESTIMATORS:
            row |= with_interval("signed of best", signed[0, r], signed[1:, r])
        rows.append(row)
    return pd.DataFrame(rows)


def curve(sight: Sight, name: str) -> Float[np.ndarray, "orders checkpoints sizes pairs"]:
    """Changes of m by a ranking; of random ones several."""
    if name == RANDOM:
        return np.stack([sight.curves[f"{RANDOM} {draw}"] for draw in range(N_RANDOM)])
    return sight.curves[name][None]


def signed_areas(sight: Sight, checkpoint: int) -> Float[np.ndarray, "estimators pairs"]:
    """Half of what is lost without the first helpers and gained without the first that hurt."""
    return np.stack(
        [
            (sight.curves[name + HELP] - sight.curves[name + HURT])[checkpoint].mean(0) / 2
            for name in ESTIMATORS
        ]
    )


def drawn_with_point(
    values: Float[np.ndarray, "rankings pairs"],
    clusters: Int[np.ndarray, " pairs"],
    context: Context,
) -> Float[np.ndarray, "draws+1 rankings"]:
    """The mean over pairs, and below it the means over pairs drawn anew."""
    draws = resample(values.T[None], context.n_draws, context.seed, clusters)[:, 0]
    return np.vstack([values.mean(1), draws])


def part_of_best(
    areas: Float[np.ndarray, "draws+1 rankings"],
) -> Float[np.ndarray, "draws+1 rankings"]:
    """Each area over the largest of an estimator, in every draw."""
    return areas / areas[:, : len(ESTIMATORS)].max(1, keepdims=True)


# ---- what it costs


def costs(
    sights: Sequence[Sight], effects: dict[str, pd.DataFrame], groups: pd.DataFrame
) -> pd.DataFrame:
    """What each way to spend passes buys."""
    of_best = groups[groups["task"] == ALL].set_index("ranking")
    rows = []
    for method in ESTIMATORS:
        nodes = np.mean([sight.found[method].n_nodes for sight in sights])
        row = {"way": method, "passes": passes(method, nodes)}
        row["seconds"] = np.mean([sight.seconds[method] for sight in sights])
        for target, table in effects.items():
            own = table[(table["task"] == ALL) & (table["name"] == method)]
            row[target] = own[RANK].item()
        row["of best"] = of_best.loc[method, "of best"]
        row["signed of best"] = of_best.loc[method, "signed of best"]
        rows.append(row)
    for share in PARTS_OF_PAIRS:
        row = {"way": f"ablation, {share:.0%} of pairs"}
        row["passes"] = share * rows[0]["passes"]
        row["seconds"] = share * rows[0]["seconds"]
        fewer = [on_fewer(sight, share) for sight in sights]
        for target in effects:
            cases = [effects_case(sight, target) for sight in fewer]
            ranks = [
                fit_effects(case.guesses[BASE][None], case.target.mean(1))[RANK] for case in cases
            ]
            row[target] = np.mean(ranks)
        rows.append(row)
    return pd.DataFrame(rows)


def passes(method: str, evaluations: float) -> float:
    """Forward passes of the layers above for a pair and checkpoint, a gradient counted as three."""
    each = 1 if method in ("ablation", "shapley") else GRADIENT
    return float(each * evaluations)


def on_fewer(sight: Sight, share: float) -> Sight:
    """The same with exact ablation on the first of the pairs; whole groups stand in a row."""
    exact = sight.found[BASE]
    n = max(1, round(share * exact.per_pair.shape[1]))
    mean = exact.per_pair.to_dense()[:, :n].double().mean(1).numpy()
    return replace(sight, found={BASE: replace(exact, mean=mean)})
