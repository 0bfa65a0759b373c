"""Baselines: what does a crosscoder do better than PCA, coordinates, SAEs, random directions?

All through the same effects: exact ablations of single features, and groups of them removed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.factorial import LABELS
from ctt_helpers.metrics import activation_similarity, match_features, rank_correlation
from experiments.context import Context
from experiments.dictionary import (
    AT_ONCE,
    Bench,
    Components,
    activations,
    default_of,
    explained_variance,
    principal_components,
)

SEEDS = (0, 1, 2)  # the first is compared with the others
N_PAIRS = 120  # of the plain task, and of what groups are removed from
TOP = 20  # features that are looked at, at each checkpoint: the largest mean |IE| of a pair
LEAST = 8  # matched features, below which their RelIE is not correlated
MATCHED = 50  # features of SAEs whose RelIE is compared with a crosscoder's
PARTNER = 0.7  # correlation of activations from which on a mutual best match is a partner
TEXT_TOKENS = 30_000
ENOUGH = 0.8  # of the effect
CLEAR = 0.5  # |mean| over mean |.| of the logit differences from which on the model has an answer
FEW = (1, 10)  # sizes that the table shows

CROSSCODER, RANDOM = "crosscoder", "random directions"
JOINT, SEPARATE, SAE = "joint PCA", "PCA of each", "SAE of each"
COORDINATES, BASIS = "coordinates of each", "random basis of each"

_KINDS = (
    f"{CROSSCODER}: the suite's; {JOINT}: components of all checkpoints together, in scaled space; "
    f"{SEPARATE}, {SAE}, {COORDINATES}, {BASIS}: each checkpoint has its own (the SAE with as many "
    f"latents and the same k as the crosscoder, trained by the same code; the basis orthonormal); "
    f"{RANDOM}: the crosscoder's activations, written in other directions of the same norms. The "
    "others are signed, active on every token, and complete, so that they explain everything."
)
_TOP = f"the {TOP} features with the largest mean |IE| of a pair"
TABLES = {
    "baselines": (
        f"One row for each dictionary, a summary of the tables below. {_KINDS} features; active: a "
        "token; explained variance at each checkpoint, held out. removed, kept: medians of the "
        "table baselines_few, over rows in which every dictionary but the random ones gets there; "
        "one noun, same on far: means over the checkpoints of baselines_pure; partner: mean over "
        "those of baselines_stable."
    ),
    "baselines_few": (
        "One row for each dictionary, task, half and checkpoint. How few features are enough? They "
        f"are ranked by exact effects on the find half ({N_PAIRS} pairs of the plain task, all of "
        "the other), towards what the model answers there, and removed or kept on the far half "
        f"(other words, another structure). cells: all, or the congruent or incongruent ones, in "
        "which a model that agrees with the nearest noun answers differently; left out where it "
        f"has no clear answer (mean logit difference below {CLEAR} of the mean |.|). before: mean "
        f"logit difference; gone with {FEW[0]}, {FEW[1]}: the share of it that goes with so many "
        "features (above 1: the answer turns round). removed: how many must go until "
        f"{ENOUGH:.0%} of it has gone. kept: how many, ranked by |effect|, are needed until the "
        f"difference is, and with more of them stays, within {1 - ENOUGH:.0%} of what it was, the "
        "others and the reconstruction error set to 0. Empty: no number is enough."
    ),
    "baselines_pure": (
        f"One row for each dictionary and checkpoint, on the task with an attractor: {_TOP}, by "
        "`ctt.factorial_of` (find half, exact effects): how many are about the subject, the "
        "attractor, both, mixed, none; purity: mean of the larger of the shares of subject and "
        "attractor (without those labelled none); same on far: share of the first four kinds that "
        "has the same label on the far half; purity of f: as purity, but of the activations at the "
        "answer position. one noun: share of all strength that goes through features about one "
        "noun alone (`ctt.shares_of_effect`, with its 95 % interval). Where the model itself "
        "follows one noun, all dictionaries are pure: look at the checkpoint in between."
    ),
    "baselines_stable": (
        "One row for each dictionary and checkpoint: made anew with another seed (text, order, "
        f"initial weights, or basis), mean over {len(SEEDS) - 1} others. {_TOP}: share that has a "
        f"partner, a mutual best match by |correlation| of activations of at least {PARTNER}; "
        "median correlation of the best match; and rank correlation of mean |IE| with the best "
        "match's. Coordinates are the same with every seed."
    ),
    "baselines_time": (
        "One row for each dictionary that has its own features at each checkpoint, and pair of "
        f"checkpoints: {_TOP} at the first, and the share that has a partner at the second (as in "
        "baselines_stable); median correlation of the best match. In a crosscoder every latent is "
        "its own partner, by construction."
    ),
    "baselines_sae": (
        f"SAEs matched over time, beside the crosscoder: of the {MATCHED} features of the last "
        "checkpoint's SAE with the largest mean |IE|, how many have a partner at all other "
        "checkpoints; in the crosscoder; in both. For the last: rank correlation of RelIE (share "
        "of the last checkpoint), matched SAE features against crosscoder latent (empty below "
        f"{LEAST}), and mean RelIE of each."
    ),
}


# ---- dictionaries


@dataclass
class Dictionary:
    """What effects need to know of a dictionary: how activations are read, and what is written.

    Attributes:
        encode: raw activations [tokens, checkpoints, d_model] -> [tokens, features], of any sign.
        W_dec: [features, checkpoints, d_model] what each feature writes, in raw space.
        b_dec: [checkpoints, d_model].
    """

    encode: Callable[[Float[Tensor, "tokens n d_model"]], Float[Tensor, "tokens features"]]
    W_dec: Float[Tensor, "features n d_model"]
    b_dec: Float[Tensor, "n d_model"]
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def n_checkpoints(self) -> int:
        return self.W_dec.shape[1]

    @property
    def n_latents(self) -> int:
        return len(self.W_dec)

    def raw_decoder(self) -> tuple[Tensor, Tensor]:
        return self.W_dec, self.b_dec

    def decoder_norms(self) -> Float[Tensor, "n features"]:
        return self.W_dec.norm(dim=-1).T

    def decode(self, f: Float[Tensor, "*tokens features"]) -> Float[Tensor, "*tokens n d_model"]:
        return torch.einsum("...h,hnd->...nd", f, self.W_dec) + self.b_dec

    def __call__(self, x: Float[Tensor, "tokens n d_model"]) -> Float[Tensor, "tokens n d_model"]:
        return self.decode(self.encode(x))


def linear(
    vectors: Float[Tensor, "features d_model"], mean: Float[Tensor, " d_model"]
) -> Dictionary:
    """Signed coordinates of one checkpoint's centred activations in an orthonormal basis."""
    return Dictionary(
        encode=lambda x: (x[:, 0] - mean) @ vectors.T, W_dec=vectors[:, None], b_dec=mean[None]
    )


def of_components(components: Components) -> Dictionary:
    """Principal components as a dictionary for all their checkpoints."""
    scales = components.scales[:, None]
    unflat = (len(components.scales), -1)
    return Dictionary(
        encode=components.encode,
        W_dec=components.vectors.unflatten(-1, unflat) / scales,
        b_dec=components.mean.unflatten(-1, unflat) / scales,
    )


def sae(x: Float[Tensor, "tokens d_model"], context: Context, name: str, seed: int) -> Dictionary:
    """A BatchTopK SAE of one checkpoint, of the crosscoder's size and by its training code.

    It is a crosscoder on the same activations twice, whose two halves begin alike: they have the
    same gradients, and stay alike.
    """
    like = default_of(context)
    twice = ctt.Crosscoder(
        2, x.shape[1], like.n_latents, k=like.k, seed=seed, decoder_norm=like.decoder_norm
    )
    with torch.no_grad():
        twice.W_dec[:, 1] = twice.W_dec[:, 0]
        twice.W_enc[1] = twice.W_enc[0]
    stream = ctt.TensorStream(x[:, None].expand(-1, 2, -1), seed=seed)
    out = context.work / "sae" / f"{name} seed{seed}"
    finished = (out / "train_config.json").is_file()
    context.trainings["reused" if finished else "anew"] += 1
    ctt.train(twice, stream, context.train_config, out=out, device=x.device.type)
    twice.requires_grad_(False)
    W_dec, b_dec = twice.raw_decoder()
    return Dictionary(
        encode=lambda x: twice.encode(x.expand(-1, 2, -1)), W_dec=W_dec[:, :1], b_dec=b_dec[:1]
    )


@dataclass
class Kind:
    """Dictionaries of one kind: one for all checkpoints, or one for each.

    Attributes:
        parts: one, or as many as there are checkpoints.
        ckpts: all checkpoints.
    """

    parts: list[Dictionary | ctt.Crosscoder]
    ckpts: ctt.Checkpoints

    @property
    def own(self) -> bool:
        """Whether each checkpoint has its own features."""
        return len(self.parts) > 1

    def split(self) -> Iterator[tuple[Dictionary | ctt.Crosscoder, slice]]:
        """Each dictionary, and the checkpoints that it is of."""
        if not self.own:
            yield self.parts[0], slice(0, len(self.ckpts))
        for c, part in enumerate(self.parts if self.own else []):
            yield part, slice(c, c + 1)

    def effects(
        self, pairs: ctt.MinimalPairs, features: Sequence[Sequence[int]] | None = None
    ) -> list[Float[np.ndarray, "pairs features"]]:
        """Exact effects at each checkpoint; of these features of each, or of all."""
        out = []
        for part, here in self.split():
            wanted = features and sorted({i for some in features[here] for i in some})
            found = ctt.indirect_effects(part, self.ckpts[here], pairs, features=wanted)
            out += [each.to_dense().double().numpy() for each in found.per_pair]
        return out

    def curve(
        self,
        pairs: ctt.MinimalPairs,
        rankings: Sequence[Sequence[int]],
        sizes: Sequence[int],
        **how,
    ) -> list[pd.DataFrame]:
        """`ctt.ablation_curve` of each checkpoint's ranking."""
        out = []
        for part, here in self.split():
            there = self.ckpts[here]
            table = ctt.ablation_curve(part, there, pairs, rankings[here], sizes, **how)
            out += [table[table["checkpoint"] == name] for name in there.labels]
        return out

    @torch.no_grad()
    def codes(
        self, x: Float[Tensor, "tokens n d_model"]
    ) -> list[Float[np.ndarray, "tokens features"]]:
        """Activations of the features, for each checkpoint."""
        out = []
        for part, here in self.split():
            f = torch.cat([part.encode(some[:, here]) for some in x.split(AT_ONCE)]).cpu().numpy()
            out += [f] * (here.stop - here.start)
        return out

    @torch.no_grad()
    def explained_variance(self, x: Float[Tensor, "tokens n d_model"]) -> list[float]:
        return [v for part, here in self.split() for v in explained_variance(x[:, here], part)]


def kinds(context: Context, bench: Bench, seed: int) -> dict[str, Kind]:
    """All dictionaries, made with one seed; the first crosscoder is the context's own."""
    ckpts = context.ckpts
    text = context.suite.text(context.train_tokens, seed=seed, path=context.text)
    x = activations(ckpts, text)
    crosscoder = context.crosscoder
    if seed != SEEDS[0]:
        crosscoder = bench.train(default_of(context), seed)
    joint = principal_components(x, crosscoder.scales).first(crosscoder.n_latents)
    each = {name: x[:, c].contiguous() for c, name in enumerate(context.names)}
    draw = torch.Generator().manual_seed(seed)
    made: dict[str, list] = {
        CROSSCODER: [crosscoder],
        JOINT: [of_components(joint)],
        SEPARATE: [],
        SAE: [sae(own, context, name, seed) for name, own in each.items()],
        COORDINATES: [],
        BASIS: [],
    }
    for own in each.values():
        d_model = own.shape[1]
        one = torch.ones(1).to(own)
        components = principal_components(own[:, None], one)
        turned, _ = torch.linalg.qr(torch.randn(d_model, d_model, generator=draw))
        mean = own.mean(0)
        made[SEPARATE].append(linear(components.vectors, mean))
        made[COORDINATES].append(linear(torch.eye(d_model).to(own), mean))
        made[BASIS].append(linear(turned.T.to(own), mean))
    if seed == SEEDS[0]:
        made[RANDOM] = [ctt.random_directions(crosscoder, seed)]
    return {name: Kind(parts, ckpts) for name, parts in made.items()}


# ---- the tables


def run(context: Context) -> dict[str, pd.DataFrame]:
    bench = Bench(context)
    plain, hard = context.tasks[:2]
    find = {plain: context.pairs(plain, "find", N_PAIRS), hard: context.pairs(hard, "find")}
    first = kinds(context, bench, SEEDS[0])
    effects = {}
    for name, kind in first.items():
        print(f"  effects: {name}", flush=True)
        effects[name] = {task: kind.effects(pairs) for task, pairs in find.items()}
    print("  groups", flush=True)
    frames = {"baselines_few": few(context, first, effects, find)}
    if in_cells(find[hard]):
        print("  cells", flush=True)
        frames["baselines_pure"] = pure(context, first, effects, find[hard])
    else:
        print(f"  {hard} has no design cells: no table baselines_pure", flush=True)
    x = activations(context.ckpts, context.validation_text(TEXT_TOKENS))
    codes = {name: kind.codes(x) for name, kind in first.items()}
    on_hard = {name: found[hard] for name, found in effects.items()}
    print("  seeds", flush=True)
    frames["baselines_stable"] = stable(context, bench, codes, on_hard, find[hard], x)
    frames["baselines_time"] = over_time(context.names, first, codes, on_hard)
    frames["baselines_sae"] = saes_beside(codes, on_hard)
    return {"baselines": summary(context, first, codes, x, frames), **frames}


def in_cells(pairs: ctt.MinimalPairs) -> bool:
    """Whether a factorial of subject and attractor can be taken."""
    return {"subject", "attractor"} <= set(pairs.levels)


def sizes_of(ie: Float[np.ndarray, "pairs features"]) -> Float[np.ndarray, " features"]:
    """Mean |IE| of a pair: effects of mirrored cells do not cancel."""
    return np.abs(ie).mean(0)


def top_of(ie: Float[np.ndarray, "pairs features"], n: int = TOP) -> list[int]:
    size = sizes_of(ie)
    return [int(i) for i in np.argsort(-size, kind="stable")[:n] if size[i] > 0]


# ---- how few are enough


def halves(task: str, pairs: ctt.MinimalPairs) -> dict[str, Bool[np.ndarray, " pairs"]]:
    """All pairs, or those of congruent and incongruent cells."""
    if not in_cells(pairs):
        return {"all": np.ones(len(pairs), bool)}
    return {"congruent": pairs.congruent, "incongruent": ~pairs.congruent}


def few(
    context: Context,
    first: dict[str, Kind],
    effects: dict[str, dict[str, list]],
    find: dict[str, ctt.MinimalPairs],
) -> pd.DataFrame:
    rows = []
    for task, pairs in find.items():
        far = context.far(task, N_PAIRS)
        there = halves(task, far)
        for half, inside in halves(task, pairs).items():
            some, others = pairs[inside], far[there[half]]
            answers = [ctt.logit_differences(model, some).mean() for model in context.ckpts]
            on_far = [ctt.logit_differences(model, others) for model in context.ckpts]
            for name, kind in first.items():
                towards = [
                    ie[inside].mean(0) * float(np.sign(answer))
                    for ie, answer in zip(effects[name][task], answers, strict=True)
                ]
                found = how_few(kind, others, towards)
                for c, checkpoint in enumerate(context.names):
                    clear = abs(on_far[c].mean()) >= CLEAR * on_far[c].abs().mean()
                    rows.append(
                        {
                            "dictionary": name,
                            "task": task,
                            "cells": half,
                            "checkpoint": checkpoint,
                            "active": int((effects[name][task][c] != 0).any(0).sum()),
                            "before": float(on_far[c].mean()),
                            **{key: value if clear else np.nan for key, value in found[c].items()},
                        }
                    )
    return pd.DataFrame(rows)


def how_few(
    kind: Kind, pairs: ctt.MinimalPairs, towards: list[Float[np.ndarray, " features"]]
) -> list[dict[str, float]]:
    """For each checkpoint, what goes with few features and how many are enough.

    Args:
        kind: the dictionaries.
        pairs: that features are removed from.
        towards: their effects at each checkpoint, above 0 where they help what is answered.
    """
    helpers = [np.argsort(-ie, kind="stable").tolist() for ie in towards]
    strongest = [np.argsort(-np.abs(ie), kind="stable").tolist() for ie in towards]
    sizes = growing(min(len(ie) for ie in towards))
    removed = kind.curve(pairs, helpers, sizes)
    kept = kind.curve(pairs, strongest, [0, *sizes], keep_only=True, keep_error=False)
    out = []
    for gone, left in zip(removed, kept, strict=True):
        share = 1 - (gone["logit_difference_after"] / gone["logit_difference_before"]).to_numpy()
        after = left["logit_difference_after"].to_numpy()
        there = (after[1:] - after[0]) / (left["logit_difference_before"].iloc[0] - after[0])
        near = np.abs(there - 1) <= 1 - ENOUGH
        row = {f"gone with {n}": share[sizes.index(n)] if n in sizes else np.nan for n in FEW}
        row["removed"] = first_size(sizes, share >= ENOUGH)
        row["kept"] = first_size(sizes, np.logical_and.accumulate(near[::-1])[::-1])
        out.append(row)
    return out


def growing(most: int) -> list[int]:
    """Sizes of groups, each about a quarter larger than the one before, up to all features."""
    sizes = {1, *FEW, most}
    size = 1.0
    while size < most:
        sizes.add(int(size))
        size = max(size + 1, size * 1.25)
    return sorted(size for size in sizes if size <= most)


def first_size(sizes: Sequence[int], enough: Bool[np.ndarray, " sizes"]) -> float:
    """The smallest size that is enough; NaN where none is."""
    return sizes[int(enough.argmax())] if enough.any() else np.nan


# ---- how pure


def pure(
    context: Context,
    first: dict[str, Kind],
    effects: dict[str, dict[str, list]],
    pairs: ctt.MinimalPairs,
) -> pd.DataFrame:
    rows = []
    far = context.far(context.tasks[1])
    ids, answer = pairs.input_ids, pairs.answer_position
    x = hooks.stacked_activations(context.ckpts, ids, pairs.attention_mask)
    x = x[torch.arange(len(x)), answer.to(x.device)]
    for name, kind in first.items():
        here = effects[name][context.tasks[1]]
        top = [top_of(ie) for ie in here]
        on_far = kind.effects(far, features=top)
        at_answer = kind.codes(x)
        for c, checkpoint in enumerate(context.names):
            found = ctt.factorial_of(here[c], pairs, kind="effects", names=[checkpoint])
            of_top = {label: found.label[0, top[c]] == label for label in LABELS}
            again = ctt.factorial_of(on_far[c], far, features=top[c], kind="effects")
            f = ctt.factorial_of(at_answer[c], pairs, features=top[c], kind="activations")
            told = ~of_top["none"]
            same = again.label[0] == found.label[0, top[c]]
            row = {"dictionary": name, "checkpoint": checkpoint}
            row |= {label: int(which.sum()) for label, which in of_top.items()}
            row["purity"] = mean(purest(found)[top[c]][told])
            row["same on far"] = mean(same[told])
            row["purity of f"] = mean(purest(f)[f.label[0] != "none"])
            row |= one_noun(found)
            rows.append(row)
    return pd.DataFrame(rows)


def one_noun(found: ctt.Factorial) -> dict[str, float]:
    """Share of strength through features about one noun alone, with its interval."""
    alone = np.isin(found.label, ("subject", "attractor"))
    # under one name, so that they have one interval
    merged = np.where(alone, "subject", "mixed").astype(object)
    through = ctt.shares_of_effect(found, labels=merged).iloc[0]
    columns = {"one noun": "", "low": "_low", "high": "_high"}
    return {column: through[f"through_subject{end}"] for column, end in columns.items()}


def purest(found: ctt.Factorial) -> Float[np.ndarray, " features"]:
    """The larger share of subject and attractor."""
    shares = found.shares
    return np.fmax(shares["subject"][0], shares["attractor"][0])


def mean(values: np.ndarray) -> float:
    """The mean; NaN of nothing."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


# ---- how stable


def partners(
    first: Float[np.ndarray, "tokens a"], second: Float[np.ndarray, "tokens b"]
) -> pd.DataFrame:
    """Best matches by |correlation| of activations; partner: mutual, and close enough."""
    similarity = np.abs(activation_similarity(first, second))
    table = match_features(similarity)
    table["partner"] = table["mutual"] & (table["similarity"] >= PARTNER)
    return table


def stable(
    context: Context,
    bench: Bench,
    codes: dict[str, list],
    effects: dict[str, list],
    pairs: ctt.MinimalPairs,
    x: Float[Tensor, "tokens n d_model"],
) -> pd.DataFrame:
    rows = []
    for seed in SEEDS[1:]:
        for name, kind in kinds(context, bench, seed).items():
            others = kind.codes(x)
            top = [top_of(ie) for ie in effects[name]]
            found = [
                partners(mine, theirs).loc[some]
                for mine, theirs, some in zip(codes[name], others, top, strict=True)
            ]
            there = kind.effects(pairs, [one["match"].dropna().tolist() for one in found])
            for c, checkpoint in enumerate(context.names):
                has = found[c]["match"].notna().to_numpy()
                own = sizes_of(effects[name][c])[top[c]][has]
                other = sizes_of(there[c])[found[c]["match"][has].astype(int)]
                rows.append(
                    {
                        "dictionary": name,
                        "checkpoint": checkpoint,
                        "partner": found[c]["partner"].mean(),
                        "median correlation": found[c]["similarity"].median(),
                        "rank correlation of |IE|": rank_correlation(own, other),
                    }
                )
    table = pd.DataFrame(rows)
    return table.groupby(["dictionary", "checkpoint"], sort=False, as_index=False).mean()


def over_time(
    names: Sequence[str], first: dict[str, Kind], codes: dict[str, list], effects: dict[str, list]
) -> pd.DataFrame:
    rows = []
    for name, kind in first.items():
        for a, b in np.ndindex(len(names), len(names)):
            if a == b or not kind.own:
                continue
            found = partners(codes[name][a], codes[name][b]).loc[top_of(effects[name][a])]
            rows.append(
                {
                    "dictionary": name,
                    "from": names[a],
                    "to": names[b],
                    "partner": found["partner"].mean(),
                    "median correlation": found["similarity"].median(),
                }
            )
    return pd.DataFrame(rows)


def saes_beside(codes: dict[str, list], effects: dict[str, list]) -> pd.DataFrame:
    """Trajectories of matched SAE features against those of crosscoder latents."""
    last = len(effects[SAE]) - 1
    top = top_of(effects[SAE][last], MATCHED)
    in_time = [partners(codes[SAE][last], codes[SAE][c]) for c in range(last)]
    in_crosscoder = partners(codes[SAE][last], codes[CROSSCODER][last])
    has_past = np.all([table["partner"].to_numpy()[top] for table in in_time], axis=0)
    has_latent = in_crosscoder["partner"].to_numpy()[top]
    both = np.array(top)[has_past & has_latent]
    chains = [table["match"].to_numpy()[both].astype(int) for table in in_time] + [both]
    latents = in_crosscoder["match"].to_numpy()[both].astype(int)

    def rel_ie(features: Sequence[np.ndarray], of: list) -> np.ndarray:
        size = np.stack([sizes_of(ie)[some] for ie, some in zip(of, features, strict=True)])
        return size[-1] / size.sum(0)

    matched = rel_ie(chains, effects[SAE])
    own = rel_ie([latents] * len(chains), effects[CROSSCODER])
    row = {
        "features": len(top),
        "partner at all others": int(has_past.sum()),
        "partner in the crosscoder": int(has_latent.sum()),
        "both": len(both),
        "rank correlation of RelIE": rank_correlation(matched, own)
        if len(both) >= LEAST
        else np.nan,
        "RelIE, SAEs": mean(matched),
        "RelIE, crosscoder": mean(own),
    }
    return pd.DataFrame([row])


# ---- all in one


def summary(
    context: Context,
    first: dict[str, Kind],
    codes: dict[str, list],
    x: Float[Tensor, "tokens n d_model"],
    frames: dict[str, pd.DataFrame],
) -> pd.DataFrame:
    table = frames["baselines_few"]
    able = table[~table["dictionary"].isin([BASIS, RANDOM])]
    rows = []
    for name, kind in first.items():
        active = [(f != 0).sum(1).mean() for f in codes[name]]
        row = {"dictionary": name, "features": codes[name][0].shape[1], "active": np.mean(active)}
        if name != RANDOM:  # it rebuilds nothing
            values = kind.explained_variance(x)
            row |= {
                f"explained variance {c}": v for c, v in zip(context.names, values, strict=True)
            }
        for what in ("removed", "kept"):
            # like with like: the same rows for all
            keys = ["task", "cells", "checkpoint"]
            everywhere = able.groupby(keys)[what].transform(lambda v: v.notna().all())
            rows_of = able[everywhere][keys].drop_duplicates().merge(table, on=keys)
            row[what] = rows_of.loc[rows_of["dictionary"] == name, what].median()
        for frame, columns in {
            "baselines_pure": ("one noun", "same on far"),
            "baselines_stable": ("partner",),
        }.items():
            if frame in frames:
                own = frames[frame][frames[frame]["dictionary"] == name]
                row |= {column: mean(own[column]) for column in columns}
        rows.append(row)
    return pd.DataFrame(rows)
