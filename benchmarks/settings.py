"""Settings of the crosscoder compared on the default triplet: one change at a time, and three seeds."""

import itertools

import pandas as pd

import ctt_helpers as ctt
from benchmarks.report import markdown
from ctt_helpers.toy.dictionary import EVAL_TOKENS, N_LATENTS, TRAIN_TOKENS, K

DEFAULT = "shipped default"
# name -> (what differs in the crosscoder, what differs in the training)
SETTINGS = {
    DEFAULT: ({}, {}),
    "no k annealing": ({}, {"k_anneal": 0}),
    "AuxK weight 1/32": ({}, {"aux_weight": 1 / 32}),
    "no AuxK": ({}, {"aux_weight": 0}),
    "dead after 50,000 tokens": ({}, {"dead_after_tokens": 50_000}),
    "no decoder-norm penalty": ({}, {"decoder_norm_penalty": 0}),
    "decoder-norm penalty 1": ({}, {"decoder_norm_penalty": 1}),
    "k = 24": ({"k": 24}, {}),
    "256 latents": ({"n_latents": 256}, {}),
    "L1, weight 2": ({"sparsity": "l1"}, {"l1": 2}),
    "L1, weight 1": ({"sparsity": "l1"}, {"l1": 1}),
}
SEEDS = (0, 1, 2)


def run() -> dict[str, pd.DataFrame]:
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    rows = []
    for seed in SEEDS:  # as the shipped crosscoder is made: the seed decides text, order and initial weights
        stream = ctt.ActivationStream(ckpts, suite.text(TRAIN_TOKENS, seed=seed), seed=seed)
        held_out = suite.text(EVAL_TOKENS, split="validation", seed=seed + 1)
        for _ in itertools.islice(stream.batches(), -(-stream.n_tokens // stream.batch_size)):
            pass  # activations are read once, and stay in memory: no run pays for them
        for name in SETTINGS if seed == SEEDS[0] else [DEFAULT]:
            print(f"{name}, seed {seed}", flush=True)
            rows.append({"setting": name, "seed": seed, **measure(ckpts, stream, held_out, seed, *SETTINGS[name])})
    return {"settings": pd.DataFrame(rows)}


def measure(ckpts, stream, held_out, seed: int, shape: dict, training: dict) -> dict:
    """Train one crosscoder and evaluate it on the held-out text: one row of the table."""
    shape = {"n_latents": N_LATENTS, "k": K, **shape}
    crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, seed=seed, **shape)
    result = ctt.train(crosscoder, stream, ctt.TrainConfig(**training), device="cpu")
    report = ctt.evaluate(crosscoder, ckpts, held_out)
    row = {"n_latents": crosscoder.n_latents, "l0": report.l0, "dead": report.dead, "dead_tokens": report.dead_tokens}
    for figure in ("explained_variance", "ce_recovered"):
        row |= {f"{figure} {name}": v for name, v in zip(report.names, getattr(report, figure), strict=True)}
    return {**row, "seconds": result.seconds}


def section(frames: dict[str, pd.DataFrame]) -> str:
    table = frames["settings"]
    heads = {c: c.replace("explained_variance", "EV").replace("ce_recovered", "CE rec.") for c in table}
    heads |= {"l0": "L0", "n_latents": "latents", "dead": "dead share", "seconds": "seconds"}
    shown = table.drop(columns="dead_tokens").rename(columns=heads)
    digits = {"L0": 1, "dead share": 3, "seconds": 1} | {c: 3 for c in shown if c.startswith(("EV", "CE"))}
    return (
        "## Settings of the crosscoder\n\n"
        f"The default is {N_LATENTS} latents, k = {K} and `TrainConfig()`; every other row changes what it names. All "
        f"with one seed see the same {TRAIN_TOKENS:,} training tokens. Evaluation mode, "
        f"{table['dead_tokens'].min():,} held-out tokens; dead: silent on all of them. EV: explained variance, CE "
        f"rec.: cross-entropy recovered, by checkpoint. Seconds: training alone.\n\n{markdown(shown, digits)}"
    )
