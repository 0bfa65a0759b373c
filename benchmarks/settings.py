"""Settings of the crosscoder compared on the default triplet: one change at a time, three seeds."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

import ctt_helpers as ctt
from ctt_helpers.toy.dictionary import EVAL_TOKENS, N_LATENTS, TRAIN_TOKENS, K


@dataclass(frozen=True)
class Setting:
    """What differs from the crosscoder that is shipped with the embedded suite.

    Attributes:
        shape: arguments of `Crosscoder`.
        training: settings of `TrainConfig`.
    """

    shape: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


DEFAULT = "shipped default"
SETTINGS = {
    DEFAULT: Setting(),
    "no k annealing": Setting(training={"k_anneal": 0}),
    "dead after 50,000 tokens": Setting(training={"dead_after_tokens": 50_000}),
    "L1, weight 2": Setting(shape={"sparsity": "l1"}, training={"l1": 2}),
    "L1, weight 1": Setting(shape={"sparsity": "l1"}, training={"l1": 1}),
}
SEEDS = (0, 1, 2)

TABLES = {
    "settings": (
        f"One row for each crosscoder. The default has {N_LATENTS} latents, k = {K} and "
        "`TrainConfig()`; every other row changes what it names. All with one seed see the same "
        f"{TRAIN_TOKENS:,} training tokens. Figures are of evaluation mode, over `dead_tokens` "
        "held-out tokens: l0 (active latents a token), dead (share of latents that are silent on "
        "all of them), explained variance and recovered cross-entropy at each checkpoint; seconds "
        "of training alone. Penalty, k, size, AuxK and initial norms: the tables penalty and "
        "dictionary_alive of the experiments."
    )
}


def run() -> dict[str, pd.DataFrame]:
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    rows = []
    # as the shipped crosscoder is made: the seed decides text, order and initial weights
    for seed in SEEDS:
        text = suite.text(TRAIN_TOKENS, seed=seed)
        stream = ctt.ActivationStream(ckpts, text, seed=seed)
        held_out = suite.text(EVAL_TOKENS, split="validation", seed=seed + 1)
        # activations are read once, and stay in memory: no training pays for them
        n_batches = -(-stream.n_tokens // stream.batch_size)
        for _ in itertools.islice(stream.batches(), n_batches):
            pass
        for name in SETTINGS if seed == SEEDS[0] else [DEFAULT]:
            print(f"{name}, seed {seed}", flush=True)
            figures = measure(SETTINGS[name], ckpts, stream, held_out, seed)
            rows.append({"setting": name, "seed": seed, **figures})
    return {"settings": pd.DataFrame(rows)}


def measure(
    setting: Setting,
    ckpts: ctt.Checkpoints,
    stream: ctt.ActivationStream,
    held_out: torch.Tensor,
    seed: int,
) -> dict[str, float]:
    """Train one crosscoder and evaluate it on the held-out text: one row of the table."""
    shape = {"n_latents": N_LATENTS, "k": K, **setting.shape}
    crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, seed=seed, **shape)
    config = ctt.TrainConfig(**setting.training)
    result = ctt.train(crosscoder, stream, config, device="cpu")
    report = ctt.evaluate(crosscoder, ckpts, held_out)
    row = {
        "n_latents": crosscoder.n_latents,
        "l0": report.l0,
        "dead": report.dead,
        "dead_tokens": report.dead_tokens,
    }
    for name, value in zip(report.names, report.explained_variance, strict=True):
        row[f"explained_variance {name}"] = value
    for name, value in zip(report.names, report.ce_recovered, strict=True):
        row[f"ce_recovered {name}"] = value
    row["seconds"] = result.seconds
    return row
