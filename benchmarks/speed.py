"""What the shortcuts save: times of two ways, taken in turns (A B A B ...) in one process."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import ctt_helpers as ctt
from ctt_helpers import hooks

TASKS = ("agreement/simple", "agreement/pp", "agreement/subj_rel", "agreement/nested_pp")
REPEATS = 5  # rounds of two ways in turns
ABLATION_ROUNDS = 3
PAIRS = 128  # what indirect_effects reads at once
LARGE_PAIRS = 32  # the same for the larger model, so that it takes no minutes
ABLATION_PAIRS = 100
SEQUENCES = 16

TABLES = {
    "speed": (
        "One row for each shortcut and size. Medians over rounds: milliseconds of the shortcut "
        "(ms) and of the plain way (against_ms); ratio: how many times longer the plain way takes, "
        f"round by round. logits_above: pairs of {TASKS[1]}; residual_stream: running text."
    ),
    "ablation": (
        "One row for each task: exact ablation of every active latent, one by one, at all "
        "checkpoints of the triplet. Passes through the layers above the layer that is read, all "
        "checkpoints together; medians over rounds."
    ),
}


def run() -> dict[str, pd.DataFrame]:
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder)
    pairs = suite.pairs(TASKS[1], n=PAIRS)
    text = suite.text(SEQUENCES * suite.meta["context_length"])
    # a second model of a usual size, with random weights: times depend on sizes, not on what the
    # weights know
    large = pythia_shaped(suite.tokenizer)
    rows = shortcuts(list(ckpts), pairs, text)
    rows += shortcuts([large] * len(ckpts), pairs[:LARGE_PAIRS], text)
    return {"speed": pd.DataFrame(rows), "ablation": ablation_times(suite, ckpts, crosscoder)}


def pythia_shaped(tokenizer: Any) -> hooks.HookedModel:
    """Random weights in the shape of Pythia-70m."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50_304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
    )
    model = GPTNeoXForCausalLM(config)
    return hooks.HookedModel(model, tokenizer, layer=3, label="Pythia-70m's shape")


# ---- two ways in turns


def in_turns(ours: Callable[[], Any], other: Callable[[], Any]) -> dict[str, float]:
    """Median milliseconds of both, and the median over rounds of other / ours.

    One more round, the first, is not counted: it pays for what is set up once.
    """
    times = np.array([[seconds(ours), seconds(other)] for _ in range(REPEATS + 1)])[1:]
    ms, against_ms = 1000 * np.median(times, axis=0)
    ratio = np.median(times[:, 1] / times[:, 0])
    return {"ms": ms, "against_ms": against_ms, "ratio": ratio, "rounds": REPEATS}


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


# ---- reading, and what follows the layer


def shortcuts(
    models: Sequence[hooks.HookedModel],
    pairs: ctt.MinimalPairs,
    text: Int[Tensor, "sequences length"],
) -> list[dict[str, Any]]:
    """The package's ways against the plain ones, on the last of the models."""
    model = models[-1]
    x = hooks.stacked_activations(models, pairs.input_ids, pairs.attention_mask)[:, :, -1]

    def above() -> Float[Tensor, "pairs 2"]:
        """Answer logits, from the layers above."""
        return hooks.logits_above(
            model, x, pairs.attention_mask, position=pairs.answer_position, tokens=pairs.answers
        )

    def whole() -> Float[Tensor, "pairs 2"]:
        """Answer logits, out of those of a whole pass."""
        rows = torch.arange(len(pairs))[:, None]
        logits = whole_pass(model, pairs.input_ids, pairs.attention_mask)
        return logits[rows, pairs.answer_position[:, None], pairs.answers]

    # what is compared must be the same thing
    torch.testing.assert_close(above(), whole(), rtol=1e-3, atol=1e-4)
    sizes = f"{model.label}: {model.n_layers} blocks, d {model.d_model}, layer {model.layer}"
    return [
        {
            "what": "residual_stream",
            "against": "whole pass",
            "on": f"{sizes}, {len(text)} sequences",
            **in_turns(
                lambda: hooks.residual_stream(model, text), lambda: whole_pass(model, text, None)
            ),
        },
        {
            "what": "logits_above",
            "against": "whole pass",
            "on": f"{sizes}, {len(pairs)} pairs",
            **in_turns(above, whole),
        },
    ]


@torch.no_grad()
def whole_pass(
    model: hooks.HookedModel,
    ids: Int[Tensor, "batch tokens"],
    mask: Int[Tensor, "batch tokens"] | None,
) -> Float[Tensor, "batch tokens vocabulary"]:
    """The plain forward pass: logits of all positions."""
    return model.hf_model(input_ids=ids, attention_mask=mask, use_cache=False).logits


# ---- exact ablation


def ablation_times(
    suite: ctt.Suite, ckpts: ctt.Checkpoints, crosscoder: ctt.Crosscoder
) -> pd.DataFrame:
    """Exact effects of every active latent at every checkpoint of the triplet, task by task."""
    pairs = {task: suite.pairs(task, n=ABLATION_PAIRS) for task in TASKS}
    rows = []
    for _ in range(ABLATION_ROUNDS):
        for task, some in pairs.items():
            begin = time.perf_counter()
            effects = ctt.indirect_effects(crosscoder, ckpts, some, "ablation")
            taken = time.perf_counter() - begin
            rows.append(
                {
                    "task": task,
                    "seconds_per_100_pairs": taken * 100 / len(some),
                    "passes_per_pair": effects.n_nodes.sum(),
                }
            )
    table = pd.DataFrame(rows).groupby("task", sort=False).median().reset_index()
    return table.assign(checkpoints=len(ckpts), pairs=ABLATION_PAIRS, rounds=ABLATION_ROUNDS)
