"""The dictionary: does a class depend on the decoder-norm penalty, and what keeps latents alive?

Penalty x seed in full, k and size one at a time, joint and separate PCA beside them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.toy.dictionary import EVAL_TOKENS
from experiments.context import INACTIVE, SPECIFIC, Context, count_specific, labels, train_once

PENALTIES = (0.0, 0.05, 0.5)
SEEDS = (0, 1, 2)
FEWER_SEEDS = (0, 1)  # where k or the size is another
K_TIMES = (2 / 3, 4 / 3)
SIZE_TIMES = (1 / 2, 2)
N_PAIRS = 120  # of the task that RelIE is taken on
CE_TOKENS = 12_000
AT_ONCE = 2**13  # tokens that are encoded at once
MORE_TEXT = 4

TABLES = {
    "penalty": (
        "One row for each crosscoder: penalty (weight of the decoder norms; the paper has 0), k, "
        "latents, seed (of text, order and initial weights). alive: share of latents active on "
        f"{EVAL_TOKENS:,} held-out tokens. RelDec: latents specific to a checkpoint (ratio above "
        f"{SPECIFIC}), to each and to any; of these, by latent scaling, shrinkage (the activations "
        "hold the latent elsewhere, too, and the decoder was made too short there) and its share, "
        "and the other verdicts of `ctt.artefacts`: written elsewhere (it is no exclusive latent), "
        "decoupled (others write the same there, as they do for most directions of a dictionary: "
        "see the part scaling), genuine. "
        f"RelIE (task with an attractor, find half, {N_PAIRS} pairs, exact ablation): latents "
        "active there; specific to each and to any; shared by two or more; share of all |IE| that "
        "the specific ones have."
    ),
    "penalty_classes": (
        "One row for each k, size, ratio and class: how many latents, mean over seeds with the "
        "fewest and the most, at each penalty. depends: the ranges without a penalty and with the "
        "largest do not overlap (a rule made before any of them was trained; luck alone does this "
        "to one class in ten with three seeds each, to one in three with two)."
    ),
    "dictionary": (
        "One row for each crosscoder of the table penalty: l0, alive, and at each checkpoint "
        f"explained variance and recovered cross-entropy ({CE_TOKENS:,} tokens), held out. off: "
        "accuracy of the model when all latents are taken away, so that only the bias and what the "
        "crosscoder misses are left, on the plain task and on the one with an attractor, there in "
        "the congruent cells, where it has cells (test half; a guess has 0.5). The row `none` is "
        "the whole model."
    ),
    "dictionary_pca": (
        "One row for each k and dictionary: explained variance at each checkpoint, on the same "
        "held-out tokens. joint PCA: k directions for all checkpoints together, in scaled space; "
        "separate PCA: k directions for each checkpoint, so as many times k as there are "
        "checkpoints; both fitted on the training text. crosscoder: mean over seeds, without a "
        "penalty, of the default size."
    ),
    "dictionary_alive": (
        "One row for each setting, mean over the seeds named: what differs from the default, which "
        "has no penalty (initial norm: of the decoder vectors; AuxK: the weight of dead latents; "
        f"text x {MORE_TEXT}: so many times the training tokens, in as many steps). alive, "
        "explained variance, latents specific by RelDec, and how many of them are shrinkage."
    ),
}

# ---- what is trained


@dataclass(frozen=True)
class Setting:
    """What a crosscoder is trained with.

    Attributes:
        k, n_latents: its sizes.
        penalty: weight of the decoder norms.
        decoder_norm: of the initial vectors.
        aux_weight: of the loss of dead latents.
        text_times: how many times the training tokens.
    """

    k: int
    n_latents: int
    penalty: float = 0.0
    decoder_norm: float = 0.5
    aux_weight: float = ctt.TrainConfig().aux_weight
    text_times: int = 1

    def folder(self, seed: int) -> str:
        parts = [f"k{self.k}", f"h{self.n_latents}", f"penalty{self.penalty:g}"]
        parts += [f"norm{self.decoder_norm:g}", f"aux{self.aux_weight:.3g}"]
        return "-".join([*parts, f"text{self.text_times}", f"seed{seed}"])


RUN = tuple[Setting, int]  # and its seed


def default_of(context: Context) -> Setting:
    """As the context's crosscoder, but BatchTopK and without a penalty."""
    like = context.crosscoder
    return Setting(k=like.k or 16, n_latents=like.n_latents, decoder_norm=like.decoder_norm)


def varied(setting: Setting, **changes) -> Setting:
    """The setting with some other."""
    return Setting(**{**setting.__dict__, **changes})


def grid(default: Setting) -> Iterator[RUN]:
    """Penalty x seed in full; k and size, one at a time, without a penalty and with the largest."""
    for penalty, seed in product(PENALTIES, SEEDS):
        yield varied(default, penalty=penalty), seed
    other = [varied(default, k=round(times * default.k)) for times in K_TIMES]
    other += [varied(default, n_latents=round(t * default.n_latents)) for t in SIZE_TIMES]
    ends = (PENALTIES[0], PENALTIES[-1])
    for setting, penalty, seed in product(other, ends, FEWER_SEEDS):
        yield varied(setting, penalty=penalty), seed


def levers(default: Setting) -> dict[str, list[RUN]]:
    """What might keep latents alive, or not: name -> the crosscoders of that setting."""
    small = varied(default, decoder_norm=0.1)
    more = varied(default, text_times=MORE_TEXT)
    one, two = SEEDS[:1], SEEDS[:2]
    wanted = {
        "default": (default, SEEDS),
        "initial norm 0.1": (small, two),
        "no AuxK": (varied(default, aux_weight=0.0), two),
        "AuxK 1": (varied(default, aux_weight=1.0), one),
        "initial norm 0.1, no AuxK": (varied(small, aux_weight=0.0), one),
        f"text x {MORE_TEXT}": (more, one),
        f"initial norm 0.1, text x {MORE_TEXT}": (varied(more, decoder_norm=0.1), one),
        f"penalty {PENALTIES[-1]}": (varied(default, penalty=PENALTIES[-1]), SEEDS),
    }
    return {name: [(setting, seed) for seed in seeds] for name, (setting, seeds) in wanted.items()}


def run(context: Context) -> dict[str, pd.DataFrame]:
    default = default_of(context)
    in_grid, by_lever = list(grid(default)), levers(default)
    everyone = dict.fromkeys([*in_grid, *(one for some in by_lever.values() for one in some)])
    bench = Bench(context)
    found = {}
    # those of one text in a row, so that it is read once
    for setting, seed in sorted(everyone, key=lambda one: (one[0].text_times, one[1])):
        print(f"  {setting.folder(seed)}", flush=True)
        found[setting, seed] = bench.measure(bench.train(setting, seed))
    names = context.names
    return {
        "penalty": pd.DataFrame([sizes(*one) | found[one].classes(names) for one in in_grid]),
        "penalty_classes": classes_by_penalty(in_grid, found),
        "dictionary": pd.DataFrame(
            [sizes(*one) | found[one].quality(names) for one in in_grid] + [bench.whole_model()]
        ),
        "dictionary_pca": beside_pca(bench, default, found),
        "dictionary_alive": alive(by_lever, found, names),
    }


def sizes(setting: Setting, seed: int) -> dict[str, float]:
    """The columns that say which crosscoder a row is about."""
    return {"penalty": setting.penalty, "k": setting.k, "latents": setting.n_latents, "seed": seed}


# ---- what is measured


@dataclass
class Measured:
    """Figures of one crosscoder.

    Attributes:
        l0, alive: mean active latents a token, and the share that ever is.
        explained_variance, ce_recovered: [checkpoints].
        off: task -> [checkpoints] accuracy with all latents away.
        rel_dec, rel_ie: the class of each latent, in words.
        verdicts: of the latents specific by RelDec, by latent scaling.
        ie_specific: share of all |IE| that those specific by RelIE have.
    """

    l0: float
    alive: float
    explained_variance: list[float]
    ce_recovered: list[float]
    off: dict[str, list[float]]
    rel_dec: np.ndarray
    rel_ie: np.ndarray
    verdicts: Counter
    ie_specific: float

    def classes(self, names: Sequence[str]) -> dict[str, float]:
        """Columns of the table penalty."""
        row = {"alive": self.alive}
        row |= _specific("RelDec", self.rel_dec, names)
        shrinkage = self.verdicts["shrinkage"]
        some = self.verdicts.total()
        row |= {"shrinkage": shrinkage, "share": shrinkage / some if some else np.nan}
        row |= {what: self.verdicts[what] for what in ("written elsewhere", "decoupled", "genuine")}
        row["RelIE: active"] = int((self.rel_ie != "inactive").sum())
        row |= _specific("RelIE", self.rel_ie, names)
        row["RelIE: shared"] = sum(word.startswith("shared") for word in self.rel_ie)
        row["share of |IE|"] = self.ie_specific
        return row

    def quality(self, names: Sequence[str]) -> dict[str, float]:
        """Columns of the table dictionary."""
        row = {"l0": self.l0, "alive": self.alive}
        row |= _each("explained variance", self.explained_variance, names)
        row |= _each("CE recovered", self.ce_recovered, names)
        for task, accuracy in self.off.items():
            row |= _each(f"off: {task}", accuracy, names)
        return row


def _each(what: str, values: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    return {f"{what} {name}": value for name, value in zip(names, values, strict=True)}


def _specific(ratio: str, words: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    row = {f"{ratio}: specific {name}": count_specific(words, [name]) for name in names}
    return {**row, f"{ratio}: specific": count_specific(words, names)}


class Bench:
    """What the crosscoders of this part share: text, activations, pairs. Each is read once."""

    def __init__(self, context: Context):
        self.context = context
        self.ckpts = context.ckpts
        self._stream: tuple[tuple[int, int], ctt.ActivationStream] | None = None

    # ---- training

    def stream(self, seed: int, text_times: int = 1) -> ctt.ActivationStream:
        """Training activations; those of the last text stay in memory."""
        key = (seed, text_times)
        if self._stream is None or self._stream[0] != key:
            n_tokens = text_times * self.context.train_tokens
            text = self.context.suite.text(n_tokens, seed=seed, path=self.context.text)
            self._stream = key, ctt.ActivationStream(self.ckpts, text, seed=seed)
        return self._stream[1]

    def train(self, setting: Setting, seed: int) -> ctt.Crosscoder:
        """The crosscoder of a setting; one that is finished in the work folder is used again."""
        crosscoder = ctt.Crosscoder(
            n_checkpoints=len(self.ckpts),
            d_model=self.ckpts.d_model,
            n_latents=setting.n_latents,
            k=setting.k,
            seed=seed,
            decoder_norm=setting.decoder_norm,
        )
        config = ctt.TrainConfig(
            steps=self.context.train_config.steps,
            decoder_norm_penalty=setting.penalty,
            aux_weight=setting.aux_weight,
        )
        out = self.context.work / "dictionary" / setting.folder(seed)
        finished = (out / "train_config.json").is_file()
        self.context.trainings["reused" if finished else "anew"] += 1
        stream = self.stream(seed, setting.text_times)
        train_once(crosscoder, stream, config, out=out, device=self.ckpts.device)
        return crosscoder.requires_grad_(False)

    # ---- measuring

    @cached_property
    def held_out(self) -> Float[Tensor, "tokens checkpoints d_model"]:
        """Activations of validation text, first tokens left out."""
        return activations(self.ckpts, self.context.validation_text(EVAL_TOKENS))

    @cached_property
    def ce_text(self) -> Tensor:
        return self.context.validation_text(CE_TOKENS)

    @cached_property
    def pairs(self) -> ctt.MinimalPairs:
        return self.context.pairs(self.context.tasks[1], "find", N_PAIRS)

    @cached_property
    def tests(self) -> dict[str, ctt.MinimalPairs]:
        """What is asked with all latents off: of the task with an attractor the congruent cells."""
        plain, hard = (self.context.pairs(task, "test") for task in self.context.tasks[:2])
        named = {self.context.tasks[0]: plain}
        if len(hard.levels) > 1 and "subject" in hard.levels:
            named[f"{self.context.tasks[1]}, congruent"] = hard[hard.congruent]
        else:
            named[self.context.tasks[1]] = hard
        return named

    def measure(self, crosscoder: ctt.Crosscoder) -> Measured:
        names, x = self.ckpts.labels, self.held_out
        frequency = torch.zeros(crosscoder.n_latents, dtype=torch.float64)
        for part in x.split(AT_ONCE):
            frequency += (crosscoder.encode(part) > 0).sum(0).cpu().double() / len(x)
        dead = (frequency == 0).numpy()
        rel_dec = ctt.rel_dec(crosscoder.decoder_norms(), dead)
        scaling = ctt.latent_scaling(crosscoder, x.split(AT_ONCE))
        verdicts = Counter(ctt.artefacts(rel_dec, scaling, names, SPECIFIC)["verdict"])
        ie = ctt.indirect_effects(crosscoder, self.ckpts, self.pairs).mean
        words = labels(ctt.rel_ie(ie, INACTIVE), names)
        specific = [word.startswith(("specific", "peak")) for word in words]
        everything = range(crosscoder.n_latents)
        off = {
            task: ctt.ablate(crosscoder, self.ckpts, pairs, everything)["accuracy_after"].tolist()
            for task, pairs in self.tests.items()
        }
        return Measured(
            l0=float(frequency.sum()),
            alive=float((~dead).mean()),
            explained_variance=explained_variance(x, crosscoder),
            ce_recovered=ctt.evaluate(crosscoder, self.ckpts, self.ce_text).ce_recovered,
            off=off,
            rel_dec=labels(rel_dec, names),
            rel_ie=words,
            verdicts=verdicts,
            ie_specific=float(np.abs(ie[:, specific]).sum() / np.abs(ie).sum()),
        )

    def whole_model(self) -> dict[str, float]:
        """The row of the model itself."""
        row = {}
        for task, pairs in self.tests.items():
            accuracy = [ctt.accuracy(model, pairs) for model in self.ckpts]
            row |= _each(f"off: {task}", accuracy, self.ckpts.labels)
        return {"penalty": "none", **row}


def activations(ckpts: ctt.Checkpoints, text: Tensor) -> Float[Tensor, "tokens checkpoints d"]:
    """Activations of all checkpoints on a text, first tokens left out."""
    read = hooks.stacked_batches(ckpts, [(ids, None) for ids in text.split(64)])
    return torch.cat([x[:, 1:].flatten(0, 1) for x in read])


def explained_variance(x: Float[Tensor, "tokens checkpoints d_model"], dictionary) -> list[float]:
    """Share of the variance that is rebuilt, at each checkpoint.

    Args:
        x: raw activations.
        dictionary: rebuilds them: a crosscoder, or any function of activations.
    """
    missed = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in x.split(AT_ONCE):
        missed += (part - dictionary(part)).square().sum((0, 2)).cpu().double()
    deviation = (x - x.mean(0)).square().sum((0, 2)).cpu().double()
    return (1 - missed / deviation).tolist()


# ---- PCA


@dataclass
class Components:
    """Principal components of activations in scaled space, the largest first.

    Attributes:
        mean: [checkpoints x d_model] of the scaled activations.
        vectors: [components, checkpoints x d_model] orthonormal.
        scales: [checkpoints].
    """

    mean: Float[Tensor, " n_d"]
    vectors: Float[Tensor, "components n_d"]
    scales: Float[Tensor, " checkpoints"]

    def encode(
        self, x: Float[Tensor, "*tokens checkpoints d_model"]
    ) -> Float[Tensor, "*tokens components"]:
        """Signed coordinates of raw activations."""
        return ((x * self.scales[:, None]).flatten(-2) - self.mean) @ self.vectors.T

    def decode(
        self, f: Float[Tensor, "*tokens components"]
    ) -> Float[Tensor, "*tokens checkpoints d_model"]:
        flat = f @ self.vectors + self.mean
        return flat.unflatten(-1, (len(self.scales), -1)) / self.scales[:, None]

    def __call__(self, x: Float[Tensor, "*t n d_model"]) -> Float[Tensor, "*t n d_model"]:
        return self.decode(self.encode(x))

    def first(self, k: int) -> "Components":
        """The first k of them."""
        return Components(self.mean, self.vectors[:k], self.scales)


def principal_components(
    x: Float[Tensor, "tokens checkpoints d_model"], scales: Float[Tensor, " checkpoints"]
) -> Components:
    """All components of all checkpoints together."""
    flat = (x * scales[:, None]).flatten(1).double()
    mean = flat.mean(0)
    flat -= mean
    _, vectors = torch.linalg.eigh(flat.T @ flat)  # the largest last
    return Components(mean.to(x), vectors.T.flip(0).to(x), scales.to(x))


def beside_pca(bench: Bench, default: Setting, found: dict[RUN, Measured]) -> pd.DataFrame:
    """Crosscoders of each k, and as many principal components."""
    stream, x = bench.stream(SEEDS[0]), bench.held_out
    scales = stream.scales().to(x)
    trained_on = activations(bench.ckpts, stream.text)
    joint = principal_components(trained_on, scales)
    n = len(scales)
    separate = [principal_components(trained_on[:, c, None], scales[c, None]) for c in range(n)]
    rows = []
    names = bench.ckpts.labels
    for k in sorted({default.k, *(round(times * default.k) for times in K_TIMES)}):
        own = varied(default, k=k)
        alike = [m.explained_variance for (setting, _), m in found.items() if setting == own]
        alone = [explained_variance(x[:, c, None], separate[c].first(k))[0] for c in range(n)]
        for what, values in {
            "crosscoder": np.mean(alike, axis=0).tolist(),
            "joint PCA": explained_variance(x, joint.first(k)),
            "separate PCA": alone,
        }.items():
            rows.append({"k": k, "dictionary": what, **_each("explained variance", values, names)})
    return pd.DataFrame(rows)


# ---- tables


def classes_by_penalty(in_grid: Sequence[RUN], found: dict[RUN, Measured]) -> pd.DataFrame:
    """How many latents each class has, by penalty; does the penalty move them beyond the seeds?"""
    rows = []
    for k, n_latents in dict.fromkeys((setting.k, setting.n_latents) for setting, _ in in_grid):
        alike = [one for one in in_grid if (one[0].k, one[0].n_latents) == (k, n_latents)]
        for ratio in ("RelDec", "RelIE"):
            counts = {one: _counts(found[one], ratio) for one in alike}
            for word in sorted({word for count in counts.values() for word in count}):
                row = {"k": k, "latents": n_latents, "ratio": ratio, "class": word}
                ranges = {}
                for penalty in PENALTIES:
                    values = [counts[one][word] for one in alike if one[0].penalty == penalty]
                    if values:
                        ranges[penalty] = min(values), max(values)
                    row |= {
                        f"penalty {penalty:g}": np.mean(values) if values else np.nan,
                        f"penalty {penalty:g}, fewest": min(values, default=np.nan),
                        f"penalty {penalty:g}, most": max(values, default=np.nan),
                    }
                without, largest = ranges[PENALTIES[0]], ranges[PENALTIES[-1]]
                apart = without[1] < largest[0] or largest[1] < without[0]
                rows.append({**row, "depends": "yes" if apart else "no"})
    return pd.DataFrame(rows)


def _counts(measured: Measured, ratio: str) -> Counter:
    """Latents of each class, those specific to any checkpoint added as one more."""
    words = measured.rel_dec if ratio == "RelDec" else measured.rel_ie
    counts = Counter(words.tolist())
    alone = [word for word in counts if word.startswith(("specific", "peak"))]
    counts["specific, any"] = sum(counts[word] for word in alone)
    return counts


def alive(
    by_lever: dict[str, list[RUN]], found: dict[RUN, Measured], names: Sequence[str]
) -> pd.DataFrame:
    """What keeps latents alive, and whether those it keeps are specific."""
    rows = []
    for name, some in by_lever.items():
        these = [found[one] for one in some]
        row = {
            "setting": name,
            "seeds": ", ".join(str(seed) for _, seed in some),
            "alive": np.mean([one.alive for one in these]),
        }
        row |= _each(
            "explained variance",
            np.mean([one.explained_variance for one in these], axis=0).tolist(),
            names,
        )
        row["RelDec: specific"] = np.mean([count_specific(one.rel_dec, names) for one in these])
        row["shrinkage"] = np.mean([one.verdicts["shrinkage"] for one in these])
        rows.append(row)
    return pd.DataFrame(rows)
