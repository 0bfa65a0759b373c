"""What the shortcuts save: times of two ways, taken in turns (A B A B ...) in one process."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import ctt_helpers as ctt
from ctt_helpers import hooks
from ctt_helpers.attribution import NODES, WEIGHTS, effects_from_gradient
from ctt_helpers.effects import readout_of, touched

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
        f"round by round. IG: one checkpoint, {len(NODES)} nodes, pairs of {TASKS[1]}; "
        "logits_above: the same pairs; residual_stream: running text."
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
    n_latents = 8 * large.d_model
    dictionary = ctt.Crosscoder(len(ckpts), large.d_model, n_latents, sparsity="l1").eval()
    rows = shortcuts(list(ckpts), crosscoder, pairs, text)
    rows += shortcuts([large] * len(ckpts), dictionary, pairs[:LARGE_PAIRS], text)
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


# ---- reading, and effects


def shortcuts(
    models: Sequence[hooks.HookedModel],
    crosscoder: ctt.Crosscoder,
    pairs: ctt.MinimalPairs,
    text: Int[Tensor, "sequences length"],
) -> list[dict[str, Any]]:
    """The package's ways against the plain ones, on the last of the models."""
    model = models[-1]
    case = make_case(models, crosscoder, pairs)
    # what is compared must be the same thing
    latents, residual = case.on_the_latents(), case.on_the_residual()
    torch.testing.assert_close(residual, latents, rtol=1e-3, atol=1e-4)
    whole, above = case.answers_whole(), case.answers_above()
    torch.testing.assert_close(above, whole, rtol=1e-3, atol=1e-4)

    sizes = f"{model.label}: {model.n_layers} blocks, d {model.d_model}, layer {model.layer}"
    on_pairs = f"{sizes}, {len(pairs)} pairs"
    on_text = f"{sizes}, {len(text)} sequences"
    return [
        {
            "what": "IG, gradient on the residual",
            "against": "gradient on f, whole passes",
            "on": on_pairs,
            **in_turns(case.on_the_residual, case.on_the_latents),
        },
        {
            "what": "residual_stream",
            "against": "whole pass",
            "on": on_text,
            **in_turns(
                lambda: hooks.residual_stream(model, text), lambda: whole_pass(model, text, None)
            ),
        },
        {
            "what": "logits_above",
            "against": "whole pass",
            "on": on_pairs,
            **in_turns(case.answers_above, case.answers_whole),
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


@dataclass
class Case:
    """One model, dictionary and batch of pairs: IG's gradients over the same nodes, in two ways.

    Attributes:
        model: the checkpoint.
        pairs: the batch.
        x: [pairs, t, d_model] its activations.
        f: [pairs, t, latents] latents, zero where nothing is touched.
        W_dec, b_dec: the decoder of this checkpoint, in raw space.
        touched: [pairs, t] where the method reaches.
    """

    model: hooks.HookedModel
    pairs: ctt.MinimalPairs
    x: Float[Tensor, "pairs t d_model"]
    f: Float[Tensor, "pairs t latents"]
    W_dec: Float[Tensor, "latents d_model"]
    b_dec: Float[Tensor, " d_model"]
    touched: Bool[Tensor, "pairs t"]

    def on_the_residual(self) -> Float[Tensor, "pairs latents"]:
        """As the package does it: gradient on the residual stream, layers above, two logits."""
        readout = readout_of(self.model, self.pairs, self.x, self.b_dec)
        grad = torch.zeros_like(self.x)
        for a, weight in zip(NODES, WEIGHTS, strict=True):
            grad += weight * readout.gradient(readout.at(a.expand(len(self.pairs))))
        return effects_from_gradient(self.f, self.W_dec, grad).sum(1)

    def on_the_latents(self) -> Float[Tensor, "pairs latents"]:
        """As the definition reads: gradient on f and e, a whole pass from the embedding each."""
        touched = self.touched[..., None]
        rows = torch.arange(len(self.pairs))
        e = (self.x - self.f @ self.W_dec - self.b_dec) * touched
        block = self.model.hf_model.gpt_neox.layers[self.model.layer]
        effects = torch.zeros(len(self.pairs), len(self.W_dec))
        for a, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True):
            f = ((1 - a) * self.f).requires_grad_(True)
            error = ((1 - a) * e).requires_grad_(True)
            rebuilt = torch.where(touched, f @ self.W_dec + self.b_dec + error, self.x)
            handle = block.register_forward_hook(lambda *_, new=rebuilt: new)
            try:
                logits = self.model.hf_model(
                    input_ids=self.pairs.input_ids,
                    attention_mask=self.pairs.attention_mask,
                    use_cache=False,
                ).logits
            finally:
                handle.remove()
            last = logits[rows, self.pairs.answer_position]
            m = (last[rows, self.pairs.wrong] - last[rows, self.pairs.right]).sum()
            # the gradient on the error is not used here, but belongs to what this way costs
            grad, _ = torch.autograd.grad(m, (f, error))
            effects -= weight * (grad * self.f).sum(1)
        return effects

    @torch.no_grad()
    def answers_above(self) -> Float[Tensor, "pairs 2"]:
        """Answer logits, from the layers above."""
        return hooks.logits_above(
            self.model,
            self.x,
            self.pairs.attention_mask,
            position=self.pairs.answer_position,
            tokens=self.pairs.answers,
        )

    def answers_whole(self) -> Float[Tensor, "pairs 2"]:
        """Answer logits, out of those of a whole pass."""
        pairs = self.pairs
        rows = torch.arange(len(pairs))[:, None]
        logits = whole_pass(self.model, pairs.input_ids, pairs.attention_mask)
        return logits[rows, pairs.answer_position[:, None], pairs.answers]


@torch.no_grad()
def make_case(
    models: Sequence[hooks.HookedModel], crosscoder: ctt.Crosscoder, pairs: ctt.MinimalPairs
) -> Case:
    """A case of the last model, with latents that are read from all of them."""
    x = hooks.stacked_activations(models, pairs.input_ids, pairs.attention_mask)
    where = touched(pairs)
    W_dec, b_dec = crosscoder.raw_decoder()
    return Case(
        model=models[-1],
        pairs=pairs,
        x=x[:, :, -1],
        f=crosscoder.encode(x) * where[..., None],
        W_dec=W_dec[:, -1],
        b_dec=b_dec[-1],
        touched=where,
    )


# ---- training, and exact ablation


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
