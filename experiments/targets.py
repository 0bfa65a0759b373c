"""Two kinds of causes: which estimator of effects is right about what, and what each costs.

Effects answer questions, and the estimators here answer two. What goes if this latent goes and all
else stays? That is exact ablation; atp (attribution patching) and ig_near estimate it from slopes.
Of two latents that do the same, neither has an effect then; of two that need each other, each has
the whole. What is its share in what all do together? That is the Shapley value; ig (integrated
gradients) estimates it along one path. The two that do the same have half each, and all effects add
up. Neither is the truth of the other, and a target of one kind favours estimators of its kind: so
there are targets of both, and random groups of latents removed together, which are of neither.

On the embedded suite, over six tasks (and what is said of ablation, atp and ig on single latents,
Shapley values and random groups, over three models with three crosscoders each: `seeds`):

- For removing one latent: ablation, then atp and ig_near, then ig and shapley.
- For Shapley values: ablation, ig and shapley cannot be told apart. On the first version of the
  suite ig was ahead; that was no law.
- For groups of a few: ablation. For half of all: ablation, ig and shapley alike, atp behind.
- For a list of the first few: those of any of them move the answer as far, and so do those that
  write most. In the right direction, those of ablation and shapley do so a little further.
- For shares of checkpoints: RelIE by ablation is ahead of RelDec where latents are removed one at a
  time, and not where Shapley values are shared out.
- On other words and structures the best of them lose more than they are ahead of the next.

When to use which: ablation where it can be paid for, a forward pass for each active latent and
pair; on a quarter of the pairs it costs a tenth of ig, and orders latents on other words as well as
on all pairs. atp, the price of three passes, to choose among thousands whose exact effects are
taken next. shapley or ig where effects must add up: ig without chance, shapley without a path that
somebody chose. No claim for one of them where their intervals overlap.
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
from experiments.context import Context

ESTIMATORS = ("ablation", "atp", "ig_near", "ig", "shapley")
N_PAIRS = 96  # of each split
PERMUTATIONS = 4  # orders for each pair, of Shapley values
RELEVANT = 0.01  # of all |IE| by at least one estimator: then a latent is compared
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
        f"checkpoint and on average. {_TARGETS}. items: latents that have {RELEVANT:.0%} of all "
        f"|IE| by at least one estimator, or groups of them. - {BASE}: by how much the mean "
        f"differs from that of {BASE}. reliability: share of the target's variance over latents "
        f"that is not due to the drawing of orders. {_INTERVALS}. {ALL}: the mean over tasks, the "
        "same latents drawn on each."
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
        f"best: both as parts of the largest area of an estimator. {WRITTEN}: ranked by activation "
        f"times decoder norm where the answer is read; {RANDOM}: mean of {N_RANDOM} orders. All "
        "rank the latents that are active on the find half. low, high: 95 %, bootstrap over "
        f"sentences. {ALL}: the mean over tasks and checkpoints."
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
    effects, shares = fits(sights, context)
    groups = top_groups(sights, context)
    return {
        "targets": joined(effects, context, "estimator", BASE),
        "targets_shares": joined(shares, context, "predictor", RATIO_BASE),
        "targets_groups": groups,
        "targets_cost": costs(sights, effects, groups),
    }


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
        active: [active] which latents are active on the find half; these are ranked.
        removal: of groups of latents, on far.
        groups: target -> groups of latents.
        changes: target -> [checkpoints, pairs, groups] effects of removing these on far.
        written: [checkpoints, latents] mean activation times decoder norm where the answer is read,
            on the find half.
    """

    task: str
    found: dict[str, ctt.Effects]
    seconds: dict[str, float]
    truth: dict[str, ctt.Effects]
    clusters: dict[str, Int[np.ndarray, " pairs"]]
    latents: Int[np.ndarray, " kept"]
    active: Int[np.ndarray, " active"]
    removal: "Removal"
    groups: dict[str, list[Int[np.ndarray, " members"]]]
    changes: dict[str, Float[np.ndarray, "checkpoints pairs groups"]]
    written: PER_LATENT


def look(
    context: Context,
    task: str,
    estimators: Sequence[str] = ESTIMATORS,
    n_pairs: int = N_PAIRS,
    also_test: bool = True,
) -> Sight:
    """All that is measured on one task.

    Args:
        context: what it is measured on.
        task: its name.
        estimators: those asked.
        n_pairs: of each split.
        also_test: targets on sentences of the same words, too.
    """
    find, far = context.pairs(task, "find", n_pairs), context.far(task, n_pairs)
    splits = {"": far, TEST: context.pairs(task, "test", n_pairs)} if also_test else {"": far}

    def effects(pairs: ctt.MinimalPairs, method: str) -> ctt.Effects:
        return ctt.indirect_effects(
            context.crosscoder, context.ckpts, pairs, method, permutations=PERMUTATIONS
        )

    found, seconds = {}, {}
    for method in estimators:
        begin = time.perf_counter()
        found[method] = effects(find, method)
        seconds[method] = (time.perf_counter() - begin) * 100 / len(find)
    truth = {
        target + where: effects(pairs, method)
        for target, method in {SINGLE: "ablation", SHAPLEY: "shapley"}.items()
        for where, pairs in splits.items()
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
    clusters = {
        target + where: twins(pairs)
        for target in (SINGLE, SHAPLEY, FEW, HALF)
        for where, pairs in splits.items()
    }
    return Sight(
        task=task,
        found=found,
        seconds=seconds,
        truth=truth,
        clusters=clusters,
        latents=latents,
        active=np.flatnonzero((found[BASE].mean != 0).any(0)),
        removal=removal,
        groups=groups,
        changes=changes,
        written=Removal.of(context, find).written(),
    )


def compared(
    found: Iterable[ctt.Effects], truth: Iterable[ctt.Effects]
) -> Int[np.ndarray, " kept"]:
    """Latents that matter by any of the estimators, so that none chooses its own.

    And that have an effect on the sentences of every target.
    """
    sums = [np.abs(effects.mean).sum(0) for effects in found]
    matters = np.any([each >= RELEVANT * each.sum() for each in sums], axis=0)
    there = np.all([(effects.mean != 0).any(0) for effects in truth], axis=0)
    return np.flatnonzero(matters & there)


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
    if target in sight.truth:
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
    if target in sight.truth:
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


@dataclass
class Drawn:
    """How well guesses do, and in draws of latents and sentences.

    Attributes:
        tasks, guesses: their names.
        point: figure -> [tasks, guesses, checkpoints].
        draws: figure -> [draws, tasks, guesses], mean over checkpoints.
        items: [tasks] how many were compared.
        reliability: [tasks] of the target.
    """

    tasks: list[str]
    guesses: list[str]
    point: dict[str, Float[np.ndarray, "tasks guesses checkpoints"]]
    draws: dict[str, Float[np.ndarray, "draws tasks guesses"]]
    items: list[int]
    reliability: list[float]


def fits(sights: Sequence[Sight], context: Context) -> tuple[dict[str, Drawn], dict[str, Drawn]]:
    """Target -> how well effects are estimated, and shares of checkpoints predicted."""
    effects, shares = {}, {}
    rel_dec = ctt.rel_dec(context.crosscoder.decoder_norms())
    for target in [*sights[0].truth, *sights[0].changes]:
        cases = {sight.task: effects_case(sight, target) for sight in sights}
        effects[target] = draw(cases, fit_effects, context)
        if target != HALF:  # the shares of random halves are all alike
            cases = {sight.task: shares_case(sight, target, rel_dec) for sight in sights}
            shares[target] = draw(cases, fit_shares, context)
    return effects, shares


def draw(cases: dict[str, Case], fit: Fit, context: Context) -> Drawn:
    """Fits of all guesses, and of draws: the same latents on every task.

    Args:
        cases: task -> what is predicted there, all by the same guesses.
        fit: `fit_effects` or `fit_shares`.
        context: seed, number of latents.
    """
    guesses = {task: np.stack(list(case.guesses.values())) for task, case in cases.items()}
    points = [fit(guesses[task], case.target.mean(1)) for task, case in cases.items()]
    anew = {t: resample(c.target, N_DRAWS, context.seed, c.clusters) for t, c in cases.items()}
    rng = np.random.default_rng(context.seed)
    n_latents = context.crosscoder.n_latents
    draws = []  # [draws][tasks] figures
    for d in range(N_DRAWS):
        times = rng.multinomial(n_latents, np.full(n_latents, 1 / n_latents))
        each = []
        for task, case in cases.items():
            items = case.drawn(times, rng)
            each.append(fit(guesses[task][..., items], anew[task][d][:, items]))
        draws.append(each)
    figures = list(points[0])
    return Drawn(
        tasks=list(cases),
        guesses=list(next(iter(cases.values())).guesses),
        point={what: np.stack([p[what] for p in points]) for what in figures},
        draws={
            what: np.array([[one[what].mean(1) for one in each] for each in draws])
            for what in figures
        },
        items=[case.target.shape[2] for case in cases.values()],
        reliability=[case.reliability for case in cases.values()],
    )


def joined(fitted: dict[str, Drawn], context: Context, who: str, base: str) -> pd.DataFrame:
    """One row a task, target and guess, and for the mean over tasks.

    Draws of sentences hold the noise of the sentences twice, and so their correlations are lower:
    only their spread is taken, around the value itself.
    """
    rows = []
    for target, found in fitted.items():
        b = found.guesses.index(base)
        for task in [*found.tasks, ALL]:
            some = [t for t, name in enumerate(found.tasks) if task in (name, ALL)]
            for g, name in enumerate(found.guesses):
                row = {"task": task, "target": target, who: name}
                row["items"] = round(np.mean([found.items[t] for t in some]))
                for what in found.point:
                    point = found.point[what][some].mean(0)  # [guesses, checkpoints]
                    draws = found.draws[what][:, some].mean(1)  # [draws, guesses]
                    if what == RANK:
                        values = zip(context.names, point[g], strict=True)
                        row |= {f"{RANK} {checkpoint}": value for checkpoint, value in values}
                    mean = point.mean(1)
                    row |= with_interval(what, mean[g], draws[:, g])
                    ahead = draws[:, g] - draws[:, b]
                    row |= with_interval(f"{what} - {base}", mean[g] - mean[b], ahead)
                row["reliability"] = np.mean([found.reliability[t] for t in some])
                rows.append(row)
    return pd.DataFrame(rows)


def with_interval(title: str, value: float, draws: Float[np.ndarray, " draws"]) -> dict[str, float]:
    """A figure and its 95 % interval, as columns of a table."""
    spread = 1.96 * np.nanstd(draws)
    return {title: value, f"{title} low": value - spread, f"{title} high": value + spread}


# ---- the first few removed


def rankings(sight: Sight, rng: np.random.Generator) -> dict[str, list[Int[np.ndarray, " kept"]]]:
    """Name -> an order of the latents at each checkpoint, the first to be removed first."""
    latents = sight.active

    def order(scores: PER_LATENT) -> list[Int[np.ndarray, " active"]]:
        return [latents[np.argsort(-each[latents], kind="stable")] for each in scores]

    orders = {}
    for method, effects in sight.found.items():
        orders[method] = order(np.abs(effects.mean))
        orders[f"{method}{HELP}"] = order(effects.mean)
        orders[f"{method}{HURT}"] = order(-effects.mean)
    orders[WRITTEN] = order(sight.written)
    for number in range(N_RANDOM):
        orders[f"{RANDOM} {number}"] = [rng.permutation(latents)] * len(sight.written)
    return orders


def top_groups(sights: Sequence[Sight], context: Context) -> pd.DataFrame:
    """How much of the answer each ranking gets hold of."""
    rows, areas, signed_areas = [], [], []
    names = [*ESTIMATORS, WRITTEN, RANDOM]
    for sight in sights:
        sizes = [size for size in SIZES if size <= len(sight.active)]
        orders = rankings(sight, np.random.default_rng(context.seed))
        clusters = sight.clusters[SINGLE]
        for c, checkpoint in enumerate(context.names):

            def change(ranking: str, c=c, orders=orders, sizes=sizes, sight=sight):
                """[sizes, pairs] of m without the first few."""
                firsts = [orders[ranking][c][:size] for size in sizes]
                return sight.removal.change(c, firsts)

            # [rankings, sizes, pairs]
            moved = [np.abs(change(name)) for name in (*ESTIMATORS, WRITTEN)]
            random = [np.abs(change(f"{RANDOM} {order}")) for order in range(N_RANDOM)]
            moved = np.stack([*moved, np.mean(random, 0)])
            both = [change(name + HELP) - change(name + HURT) for name in ESTIMATORS]
            area = drawn_with_point(moved.mean(1), clusters, context)
            signed = drawn_with_point(np.mean(both, 1) / 2, clusters, context)
            best = area[:, : len(ESTIMATORS)].max(1, keepdims=True)
            areas.append(area / best)
            signed_areas.append(signed / best)
            for r, name in enumerate(names):
                row = {"task": sight.task, "checkpoint": checkpoint, "ranking": name}
                means = zip(sizes, moved[r].mean(1), strict=True)
                row |= {f"m={size}": value for size, value in means}
                row |= with_interval("area", area[0, r], area[1:, r])
                row["of best"] = areas[-1][0, r]
                if name in ESTIMATORS:
                    row |= with_interval("signed area", signed[0, r], signed[1:, r])
                    row["signed of best"] = signed_areas[-1][0, r]
                rows.append(row)
    area, signed = np.mean(areas, 0), np.mean(signed_areas, 0)
    for r, name in enumerate(names):
        row = {"task": ALL, "checkpoint": "all", "ranking": name}
        row |= with_interval("of best", area[0, r], area[1:, r])
        if name in ESTIMATORS:
            row |= with_interval("signed of best", signed[0, r], signed[1:, r])
        rows.append(row)
    return pd.DataFrame(rows)


def drawn_with_point(
    values: Float[np.ndarray, "rankings pairs"],
    clusters: Int[np.ndarray, " pairs"],
    context: Context,
) -> Float[np.ndarray, "draws+1 rankings"]:
    """The mean over pairs, and below it the means over pairs drawn anew."""
    draws = resample(values.T[None], context.n_draws, context.seed, clusters)[:, 0]
    return np.vstack([values.mean(1), draws])


# ---- what it costs


def costs(sights: Sequence[Sight], effects: dict[str, Drawn], groups: pd.DataFrame) -> pd.DataFrame:
    """What each way to spend passes buys."""
    of_best = groups[groups["task"] == ALL].set_index("ranking")
    rows = []
    for method in ESTIMATORS:
        nodes = np.mean([sight.found[method].n_nodes for sight in sights])
        row = {"way": method, "passes": passes(method, nodes)}
        row["seconds"] = np.mean([sight.seconds[method] for sight in sights])
        for target, found in effects.items():
            row[target] = found.point[RANK][:, found.guesses.index(method)].mean()
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
