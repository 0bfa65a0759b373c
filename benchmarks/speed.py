"""How much the package's shortcuts save: ratios of times taken in one process, in turns (A B A B ...)."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import ctt_helpers as ctt
from benchmarks.report import markdown
from ctt_helpers import hooks
from ctt_helpers.activations import stacked_activations
from ctt_helpers.checkpoints import Checkpoints
from ctt_helpers.optimisation import TrainingRun
from ctt_helpers.paths import NODES, WEIGHTS, ActivationPath, effects_from_gradient, touched
from ctt_helpers.tasks import MinimalPairs
from ctt_helpers.toy.dictionary import N_LATENTS, TRAIN_TOKENS, K

TASKS = ("agreement/simple", "agreement/pp", "agreement/subj_rel", "agreement/obj_rel_pp")
REPEATS, ABLATION_ROUNDS = 5, 3
PAIRS, LARGE_PAIRS, ABLATION_PAIRS, SEQUENCES = 128, 32, 100, 16  # 128: what indirect_effects reads at once
STEPS = 20  # training steps timed together


def run() -> dict[str, pd.DataFrame]:
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder)
    # a second model of a usual size, with random weights: times depend on sizes, not on what the weights know
    large = pythia_shaped(suite.tokenizer)
    dictionary = ctt.Crosscoder(len(ckpts), large.d_model, 8 * large.d_model, sparsity="l1").eval()
    pairs, text = suite.pairs(TASKS[1], n=PAIRS), suite.text(SEQUENCES * suite.meta["context_length"])
    rows = shortcuts(list(ckpts), crosscoder, pairs, text)
    rows += shortcuts([large] * len(ckpts), dictionary, pairs[:LARGE_PAIRS], text)
    rows.append(training_steps(suite, ckpts))
    return {"speed": pd.DataFrame(rows), "ablation": ablation_times(suite, ckpts, crosscoder)}


def shortcuts(models: list, crosscoder: ctt.Crosscoder, pairs: MinimalPairs, text: Tensor) -> list[dict[str, Any]]:
    """The package's ways against the plain ones, on the last of the models."""
    model, case = models[-1], Case.of(models, crosscoder, pairs)
    # what is compared must be the same thing
    torch.testing.assert_close(case.on_the_residual(), case.on_the_latents(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(case.answers_above(), case.answers_whole(), rtol=1e-3, atol=1e-4)
    read, whole = (lambda: hooks.residual_stream(model, text)), (lambda: whole_pass(model, text, None))
    some, much = f"{len(pairs)} pairs", f"{len(text)} sequences"
    ways = (
        (
            "IG, gradient on the residual",
            "gradient on f, whole passes",
            some,
            case.on_the_residual,
            case.on_the_latents,
        ),
        ("residual_stream", "whole pass", much, read, whole),
        ("logits_above", "whole pass", some, case.answers_above, case.answers_whole),
    )
    sizes = f"{model.label}: {model.n_layers} blocks, d {model.d_model}, layer {model.layer}"
    return [
        {"what": what, "against": other, "on": f"{sizes}, {data}", **in_turns(*both)}
        for what, other, data, *both in ways
    ]


def in_turns(ours: Callable, other: Callable) -> dict[str, float]:
    """Median milliseconds of both, and the median over rounds of other / ours; one round first goes uncounted."""
    times = np.array([[seconds(ours), seconds(other)] for _ in range(REPEATS + 1)])[1:]
    ms, other_ms = 1000 * np.median(times, axis=0)
    return {"ms": ms, "against_ms": other_ms, "ratio": np.median(times[:, 1] / times[:, 0]), "rounds": REPEATS}


def seconds(function: Callable) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def pythia_shaped(tokenizer) -> hooks.HookedModel:
    """Random weights in the shape of Pythia-70m."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50_304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048
    )
    return hooks.HookedModel(GPTNeoXForCausalLM(config), tokenizer, 3, "Pythia-70m's shape")


@torch.no_grad()
def whole_pass(model: hooks.HookedModel, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The plain forward pass: logits of all positions."""
    return model.hf_model(input_ids=ids, attention_mask=mask, use_cache=False).logits


@dataclass
class Case:
    """One model, dictionary and batch of pairs: IG's gradients, formulated in two ways, over the same nodes."""

    model: hooks.HookedModel
    pairs: MinimalPairs
    x: Tensor
    f: Tensor
    W: Tensor
    b: Tensor
    keep: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, models: list[hooks.HookedModel], crosscoder: ctt.Crosscoder, pairs: MinimalPairs) -> "Case":
        x, keep = stacked_activations(models, pairs.input_ids, pairs.attention_mask), touched(pairs)
        W, b = crosscoder.raw_decoder()
        return cls(models[-1], pairs, x[:, :, -1], crosscoder.encode(x) * keep[..., None], W[:, -1], b[-1], keep)

    def on_the_residual(self) -> Tensor:
        """As the package does it: the gradient on the residual stream, only the layers above, two logits."""
        path, grad = ActivationPath(self.model, self.pairs, self.x, self.b, self.keep), torch.zeros_like(self.x)
        for a, weight in zip(NODES, WEIGHTS, strict=True):
            grad += weight * path.gradient(a.expand(len(self.pairs)))
        return effects_from_gradient(self.f, self.W, grad).sum(1)

    def on_the_latents(self) -> Tensor:
        """As the definition reads: the gradient on f and e, and a whole pass from the embedding, at every node."""
        keep, rows = self.keep[..., None], torch.arange(len(self.pairs))
        e = (self.x - self.f @ self.W - self.b) * keep
        effects = torch.zeros(len(self.pairs), len(self.W))
        for a, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True):
            f, error = ((1 - a) * self.f).requires_grad_(True), ((1 - a) * e).requires_grad_(True)
            rebuilt = torch.where(keep, f @ self.W + self.b + error, self.x)
            block = self.model.hf_model.gpt_neox.layers[self.model.layer]
            handle = block.register_forward_hook(lambda *_, new=rebuilt: new)
            try:
                logits = self.model.hf_model(
                    input_ids=self.pairs.input_ids, attention_mask=self.pairs.attention_mask, use_cache=False
                ).logits
            finally:
                handle.remove()
            last = logits[rows, self.pairs.answer_position]
            m = (last[rows, self.pairs.wrong] - last[rows, self.pairs.right]).sum()
            effects -= weight * (torch.autograd.grad(m, (f, error))[0] * self.f).sum(1)
        return effects

    @torch.no_grad()
    def answers_above(self) -> Tensor:
        pairs = self.pairs
        return hooks.logits_above(self.model, self.x, pairs.attention_mask, pairs.answer_position, pairs.answers)

    def answers_whole(self) -> Tensor:
        pairs, rows = self.pairs, torch.arange(len(self.pairs))
        logits = whole_pass(self.model, pairs.input_ids, pairs.attention_mask)
        return logits[rows[:, None], pairs.answer_position[:, None], pairs.answers]


def training_steps(suite: ctt.Suite, ckpts: Checkpoints) -> dict[str, Any]:
    """A step of BatchTopK against one of L1, with the default settings, from the first step on."""
    stream = ctt.ActivationStream(ckpts, suite.text(TRAIN_TOKENS))
    batches = list(itertools.islice(stream.batches(), (REPEATS + 1) * STEPS))

    def block(sparsity: str) -> Callable:
        crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, N_LATENTS, sparsity, k=K, scales=stream.scales())
        training, left = TrainingRun(crosscoder.train(), ctt.TrainConfig()), iter(batches)
        return lambda: [training.step(x, log=False) for x in itertools.islice(left, STEPS)]

    times = in_turns(block("batch_topk"), block("l1"))
    times |= {name: times[name] / STEPS for name in ("ms", "against_ms")}
    sizes = f"{len(ckpts)} checkpoints, d {ckpts.d_model}, {N_LATENTS} latents, {stream.batch_size} tokens"
    return {"what": "training step, BatchTopK", "against": "L1", "on": sizes, **times}


def ablation_times(suite: ctt.Suite, ckpts: Checkpoints, crosscoder: ctt.Crosscoder) -> pd.DataFrame:
    """Exact effects of every active latent at every checkpoint of the triplet, task by task."""
    pairs, rows = {task: suite.pairs(task, n=ABLATION_PAIRS) for task in TASKS}, []
    for _ in range(ABLATION_ROUNDS):
        for task, some in pairs.items():
            begin = time.perf_counter()
            effects = ctt.indirect_effects(crosscoder, ckpts, some, "ablation")
            taken = (time.perf_counter() - begin) * 100 / len(some)
            rows.append((task, taken, effects.n_nodes.sum()))
    table = pd.DataFrame(rows, columns=["task", "seconds_per_100_pairs", "passes_per_pair"])
    table = table.groupby("task", sort=False).median().reset_index()
    return table.assign(checkpoints=len(ckpts), pairs=ABLATION_PAIRS, rounds=ABLATION_ROUNDS)


def section(frames: dict[str, pd.DataFrame]) -> str:
    speed, ablation = (f.rename(columns=lambda c: c.replace("_", " ")) for f in (frames["speed"], frames["ablation"]))
    return (
        "## What the shortcuts save\n\n"
        "Medians over rounds in turns (A B A B ...) in one process; ratio: how many times longer the other way takes, "
        f"median over rounds. IG: one checkpoint, {len(NODES)} nodes, pairs of {TASKS[1]}; logits_above: the same "
        f"pairs; residual_stream: text.\n\n{markdown(speed)}\n\n"
        "Exact ablation of every active latent, one by one, at all checkpoints of the triplet; passes of the layers "
        f"above, all checkpoints together.\n\n{markdown(ablation, {'passes per pair': 0})}"
    )
