"""What the measurements are taken on: a suite, three of its checkpoints, their crosscoder, tasks, sizes."""

import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

import ctt_helpers as ctt
from ctt_helpers.toy.dictionary import TRAIN_TOKENS
from ctt_helpers.uncertainty import classify_draws, rel_ie_draws, resample, trajectory_draws, twins

INACTIVE = 1e-3  # a latent whose summed |IE| is below this share of the sum over all latents is inactive
AGREEMENT = ("agreement/simple", "agreement/pp", "agreement/subj_rel", "agreement/obj_rel")


@dataclass(eq=False)
class Context:
    """What a benchmark is run on. Effects are worked out once and kept in memory.

    Attributes:
        suite, ckpts, crosscoder: as everywhere.
        tasks: names of tasks; the first is the plain one, the second the one with an attractor.
        n_pairs: pairs of each half (find, test).
        n_draws: bootstrap draws.
        seed: of every draw.
        work: folder of what is trained here; a finished training found there is used again.
        data: for tasks that are not the suite's own: the folder with the published data.
        text: for suites without a text of their own: the file with it.
        train_tokens, train_config: of the crosscoders trained here; their sizes are those of `crosscoder`.
        trainings: how many were made anew and how many found in `work`, for the record.
    """

    suite: ctt.Suite
    ckpts: ctt.Checkpoints
    crosscoder: ctt.Crosscoder
    tasks: list[str]
    n_pairs: int = 400
    n_draws: int = 1000
    seed: int = 0
    work: Path = Path("runs/science")
    data: Path | None = None
    text: Path | None = None
    train_tokens: int = TRAIN_TOKENS
    train_config: ctt.TrainConfig = field(default_factory=ctt.TrainConfig)
    trainings: Counter = field(default_factory=Counter)
    _effects: dict = field(default_factory=dict, repr=False)

    @property
    def names(self) -> list[str]:
        return self.ckpts.labels

    @cached_property
    def middle(self) -> int:
        """The checkpoint that does worst on the second task: where features can be expected to hurt."""
        return int(np.argmin([ctt.accuracy(model, self.pairs(self.tasks[1], "find")) for model in self.ckpts]))

    def pairs(self, task: str, split: str, n: int | None = None) -> ctt.MinimalPairs:
        return self.suite.pairs(task, split=split, path=self.data, n=n or self.n_pairs)

    def effects(self, task: str, split: str, method: str = "ablation") -> ctt.Effects:
        """Effects of all latents of the context's crosscoder on one half of a task's pairs."""
        key = (task, split, method)
        if key not in self._effects:
            self._effects[key] = ctt.indirect_effects(self.crosscoder, self.ckpts, self.pairs(task, split), method)
        return self._effects[key]

    def draws(self, effects: ctt.Effects, pairs: ctt.MinimalPairs) -> np.ndarray:
        """Bootstrap draws of the mean effects, twins drawn together: [draws, checkpoints, latents]."""
        return resample(effects, self.n_draws, self.seed, twins(pairs))

    def train(self, ckpts: ctt.Checkpoints, name: str, seed: int = 0) -> ctt.Crosscoder:
        """A crosscoder like the context's own on other checkpoints or with another seed, kept in `work`/`name`."""
        shape = {k: self.crosscoder.config[k] for k in ("n_latents", "sparsity", "decoder_norm")}
        shape |= {"k": self.crosscoder.k} if self.crosscoder.k else {}
        crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, seed=seed, **shape)
        text = self.suite.text(self.train_tokens, seed=seed, path=self.text)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*hold the same weights")  # what one of the controls is about
            stream = ctt.ActivationStream(ckpts, text, seed=seed)
        self.trainings["reused" if (self.work / name / "train_config.json").is_file() else "anew"] += 1
        ctt.train(crosscoder, stream, self.train_config, out=self.work / name, device=ckpts.device)
        return crosscoder


def short(task: str) -> str:
    return task.split("/")[-1]


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis; NaN where one side is constant."""
    a, b = rankdata(a, axis=-1), rankdata(b, axis=-1)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def labels(ratios: np.ndarray, names: list[str]) -> np.ndarray:
    """A word for each latent: its class and whose it is, or, for more than three checkpoints, where its peak is."""
    if len(names) > 3:
        peak = ctt.trajectory(ratios, names)["peak"]
        return np.array(["inactive" if p is None else f"peak {p}" for p in peak])
    table = ctt.classify(ratios, names)
    return np.array([" ".join((a, *b)) for a, b in zip(table["label"], table["members"], strict=True)])


def decide(effects: ctt.Effects, draws: np.ndarray) -> np.ndarray:
    """The labels by RelIE that 95 % of the bootstrap draws share; "undecided" for the others."""
    names, point, ratios = effects.names, ctt.rel_ie(effects.mean, INACTIVE), rel_ie_draws(draws, INACTIVE)
    if len(names) > 3:
        sure = trajectory_draws(ratios, names, point=point)["peak_probability"] >= 0.95
    else:
        sure = classify_draws(ratios, names, point=point)["label"] != "undecided"
    return np.where(sure, labels(point, names), "undecided")
