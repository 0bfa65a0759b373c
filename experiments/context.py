"""What the experiments are run on: a suite, three of its checkpoints, their crosscoder, tasks."""

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

import ctt_helpers as ctt
from ctt_helpers.files import InUse
from ctt_helpers.metrics import PER_LATENT
from ctt_helpers.pairs import twins
from ctt_helpers.toy.dictionary import TRAIN_TOKENS
from ctt_helpers.uncertainty import DRAWS, classify_draws, rel_ie_draws, resample, trajectory_draws

# a latent whose summed |IE| is below this share of the sum over all latents is inactive
INACTIVE = 1e-3
SPECIFIC = 0.7  # a ratio above this makes a latent specific to its checkpoint
# of the embedded suite, the plain one and one with an attractor first
TASKS = (
    "agreement/simple",
    "agreement/pp",
    "agreement/subj_rel",
    "agreement/obj_rel",
    "gender/pp",
    "tense/subj_rel",
)


@dataclass(eq=False)
class Context:
    """What an experiment is run on. Effects are worked out once and kept in memory.

    Attributes:
        suite, ckpts, crosscoder: as everywhere.
        tasks: names of tasks; the first is the plain one, the second the one with an attractor.
        n_pairs: pairs of each half (find, test).
        n_draws: bootstrap draws.
        seed: of every draw.
        work: folder of what is trained here; a finished training that is found there is used again.
        data: for tasks that are not the suite's own: the folder with the published data.
        text: for suites without a text of their own: the file with it.
        train_tokens, train_config: of the crosscoders that are trained here; their sizes are those
            of `crosscoder`.
        asked: the suite whose pairs are taken; None: `suite`.
        trainings: how many were made anew and how many found in `work`, for the record.
    """

    suite: ctt.Suite
    ckpts: ctt.Checkpoints
    crosscoder: ctt.Crosscoder
    tasks: list[str]
    n_pairs: int = 240
    n_draws: int = 1000
    seed: int = 0
    work: Path = Path("runs/experiments")
    data: Path | None = None
    text: Path | None = None
    train_tokens: int = TRAIN_TOKENS
    train_config: ctt.TrainConfig = field(default_factory=ctt.TrainConfig)
    asked: ctt.Suite | None = None
    trainings: Counter = field(default_factory=Counter)
    _effects: dict[tuple[str, str, str], ctt.Effects] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> list[str]:
        """Labels of the checkpoints."""
        return self.ckpts.labels

    @cached_property
    def middle(self) -> int:
        """The checkpoint that does worst where the second task distracts: features hurt there."""
        pairs = distracting(self.pairs(self.tasks[1], "find"))
        return int(np.argmin([ctt.accuracy(model, pairs) for model in self.ckpts]))

    def pairs(self, task: str, split: str, n: int | None = None) -> ctt.MinimalPairs:
        """Pairs of one half of a task; `n` in place of the context's own number."""
        suite = self.asked or self.suite
        return suite.pairs(task, split=split, path=self.data, n=n or self.n_pairs)

    def far(self, task: str, n: int | None = None) -> ctt.MinimalPairs:
        """Pairs with other words and another structure than "find"; "test" where there are none."""
        try:
            return self.pairs(task, "far", n)
        except ValueError:  # no such split; whatever else is wrong is wrong with "test", too
            return self.pairs(task, "test", n)

    def effects(self, task: str, split: str, method: str = "ablation") -> ctt.Effects:
        """Effects of all latents of the context's crosscoder on one half of a task's pairs."""
        key = (task, split, method)
        if key not in self._effects:
            pairs = self.pairs(task, split)
            self._effects[key] = ctt.indirect_effects(self.crosscoder, self.ckpts, pairs, method)
        return self._effects[key]

    def random_effects(self, task: str, split: str, n_draws: int = 2) -> list[ctt.Effects]:
        """The same for crosscoders whose latents write in random directions: the null."""
        others = [ctt.random_directions(self.crosscoder, self.seed + s) for s in range(n_draws)]
        pairs = self.pairs(task, split)
        return [ctt.indirect_effects(other, self.ckpts, pairs) for other in others]

    def draws(self, effects: ctt.Effects, pairs: ctt.MinimalPairs) -> DRAWS:
        """Bootstrap draws of the mean effects, twins drawn together."""
        return resample(effects, self.n_draws, self.seed, twins(pairs))

    def validation_text(self, n_tokens: int) -> Int[Tensor, "sequences length"]:
        """Running text that no crosscoder was trained on."""
        return self.suite.text(n_tokens, split="validation", seed=self.seed + 1, path=self.text)

    def train(self, ckpts: ctt.Checkpoints, name: str, seed: int = 0) -> ctt.Crosscoder:
        """A crosscoder like the context's own, on other checkpoints or with another seed.

        It is kept in the subfolder `name` of `work`.
        """
        like = self.crosscoder
        shape = {
            "n_latents": like.n_latents,
            "sparsity": like.sparsity,
            "decoder_norm": like.decoder_norm,
        }
        if like.k:
            shape["k"] = like.k
        crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, seed=seed, **shape)
        text = self.suite.text(self.train_tokens, seed=seed, path=self.text)
        with warnings.catch_warnings():
            # one of the controls is about just that
            warnings.filterwarnings("ignore", message=".*hold the same weights")
            stream = ctt.ActivationStream(ckpts, text, seed=seed)
        out = self.work / name
        finished = (out / "train_config.json").is_file()
        self.trainings["reused" if finished else "anew"] += 1
        train_once(crosscoder, stream, self.train_config, out=out, device=ckpts.device)
        return crosscoder


def train_once(*args: Any, **kwargs: Any) -> None:
    """`ctt.train`; where the other lane trains the same at this moment, its result is taken."""
    while True:
        try:
            ctt.train(*args, **kwargs)
            return
        except InUse as error:
            print(f"{error} Waiting.", flush=True)
            time.sleep(10)


# ---- small tools


def labels(ratios: PER_LATENT, names: Sequence[str]) -> np.ndarray:
    """A word for each latent: its class and whose it is ("specific step512").

    For more than three checkpoints, where its peak is ("peak step512").
    """
    if len(names) > 3:
        peaks = ctt.trajectory(ratios, names)["peak"]
        # what is missing is None or NaN, by the version of pandas
        return np.array(["inactive" if pd.isna(peak) else f"peak {peak}" for peak in peaks])
    table = ctt.classify(ratios, names)
    words = [
        " ".join([label, *members])
        for label, members in zip(table["label"], table["members"], strict=True)
    ]
    return np.array(words)


def decided(effects: ctt.Effects, pairs: ctt.MinimalPairs, null: Any = None) -> np.ndarray:
    """The labels by RelIE that `ctt.decide` decides; "undecided" for the others."""
    table = ctt.decide(effects, twins(pairs), null, inactive_below=INACTIVE)
    words = labels(ctt.rel_ie(effects.mean, INACTIVE), effects.names)
    return np.where(table["label"] == "undecided", "undecided", words)


def decided_by_draws(effects: ctt.Effects, draws: DRAWS) -> np.ndarray:
    """The labels that 95 % of bootstrap draws share, one latent at a time: what `decide` mends."""
    names = effects.names
    point = ctt.rel_ie(effects.mean, INACTIVE)
    ratios = rel_ie_draws(draws, INACTIVE)
    if len(names) > 3:
        sure = trajectory_draws(ratios, names, point=point)["peak_probability"] >= 0.95
    else:
        sure = classify_draws(ratios, names, point=point)["label"] != "undecided"
    return np.where(sure, labels(point, names), "undecided")


def distracting(pairs: ctt.MinimalPairs) -> ctt.MinimalPairs:
    """Where something distracts from the subject; all pairs where nothing is crossed with it."""
    if len(pairs.levels) < 2 or "subject" not in pairs.levels:
        return pairs
    return pairs[~pairs.congruent]


def count_specific(words: np.ndarray, names: Sequence[str]) -> int:
    """How many latents belong to one of these checkpoints alone (of more than three: peak there).

    Args:
        words: from `labels` or `decided`.
        names: the checkpoints.
    """
    wanted = [f"{kind} {name}" for kind in ("specific", "peak") for name in names]
    return int(np.isin(words, wanted).sum())


def active_by(ratios: Float[np.ndarray, "... checkpoints latents"]) -> np.ndarray:
    """Which latents have a ratio at all: [..., latents]."""
    return ~np.isnan(ratios).any(-2)
