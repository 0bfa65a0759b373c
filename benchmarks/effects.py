"""Effects and evaluation beside the paper's formulation, written afresh from the equations.

    python -m benchmarks.effects [--device cuda] [--shrink]

The paper's formulation keeps the gradient at [tokens, latents] and takes it through a whole pass of
the model at each of ten points; for exact ablation it runs a whole pass for each latent, for
evaluation one for each thing that is put in the layer's place. Models of true shape with random
weights are made on the spot, and the embedded suite is read. On a CPU it takes ten minutes at one
thread; `--device cuda` is for a GPU and takes one (models of Pythia-1B's shape); `--shrink` runs
the same code with small sizes.
"""

import argparse
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPTNeoXConfig

import ctt_helpers as ctt
from benchmarks import estimates, report
from ctt_helpers import hooks
from ctt_helpers.attribution import METHODS, Attribution, Options
from ctt_helpers.effects import readout_of, touched
from ctt_helpers.hooks import HookedModel, pick_device

N = 3  # checkpoints
ROUNDS = 3
POINTS = 10  # of the paper's integral: a = 0, .1, ... .9
TASK = "agreement/subj_rel"
EASY = "agreement/simple"
TOLERANCES = (0.2, 0.05)  # of a piece of the line; their sum is off by far less
SAMPLED = 12  # latents whose whole passes are timed; the plain way takes as long for each
ABLATED = 16  # pairs of exact ablation
BATCH = 64  # pairs of a batch, where both formulations are timed on a GPU
FINE = 256  # pairs that are integrated coarsely and finely
ALL = 10**6
METHOD_NAMES = {"ig": "IG", "atp": "AtP"}
ORDERS = 8  # of Shapley values

TABLES = {
    "effects_speed": (
        "One row for each piece of work: medians of alternating rounds of the process's own time, "
        "in milliseconds, of the package (ms) and of the paper's formulation (against_ms), and "
        "their ratio, round by round; what both of them leave unexplained (gap, against_gap: "
        "|effects + error - change of m| over mean |change|) where they integrate; operations of "
        "the products of matrices of both, in 10^9, and what share of the speed of a large product "
        "on the same machine the package reaches (of_peak). Exact ablation: the plain way is timed "
        f"on {SAMPLED} latents and multiplied."
    ),
    "effects_gpu": (
        "One row for each piece of work on a GPU, with models of Pythia-1B's shape and random "
        "weights in bfloat16: seconds, how much was done, the rate, the memory at its peak beside "
        "the models in 10^9 bytes, how often the host waits for the device in a small part of it, "
        "and what share of the speed of a large product on the same device the products take. IG "
        "takes ten gradients a pair here, and 13 to 40 to a tolerance of 0.05 on trained models: "
        "its seconds grow with them, its memory does not (the two rows of it; weights that "
        "know nothing leave m to rounding, so that pieces are halved again and again). Pairs of "
        "BLiMP are read where $CTT_SHARED or ../shared holds them. ratio: how many "
        "times longer the paper's formulation takes for the same, from the activations of one "
        f"batch of pairs on ({BATCH}; exact ablation: of {ABLATED}, a hook for each latent)."
    ),
}

# ---- what is worked on


@dataclass(frozen=True)
class Sizes:
    """Shape of the models, and how much is done.

    Attributes:
        d_model, n_layers, layer, n_heads, vocabulary: of the models, GPT-NeoX.
        n_latents, k: of the crosscoder; k is its L0.
        pairs: how many at once.
        sequences, length: of the text that is evaluated.
    """

    d_model: int
    n_layers: int
    layer: int
    n_heads: int
    vocabulary: int
    n_latents: int
    k: int
    pairs: int
    sequences: int
    length: int

    def __str__(self) -> str:
        return (
            f"d {self.d_model}, {self.n_layers} blocks, layer {self.layer}, vocabulary "
            f"{self.vocabulary:,}, {self.n_latents:,} latents"
        )


SMALL_VOCABULARY = Sizes(256, 16, 8, 8, 1_000, 4096, 32, pairs=64, sequences=4, length=128)
LARGE_VOCABULARY = Sizes(256, 16, 8, 8, 50_304, 4096, 32, pairs=64, sequences=4, length=128)
PYTHIA_1B = Sizes(2048, 16, 8, 8, 50_304, 16384, 200, pairs=3000, sequences=96, length=1024)
SHRUNK = Sizes(32, 4, 1, 4, 1_000, 64, 4, pairs=8, sequences=2, length=16)


def random_checkpoints(sizes: Sizes, device: str, dtype: torch.dtype) -> ctt.Checkpoints:
    """Models of one shape, each with a seed of its own, and the embedded suite's tokenizer."""
    config = GPTNeoXConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.d_model,
        num_hidden_layers=sizes.n_layers,
        num_attention_heads=sizes.n_heads,
        intermediate_size=4 * sizes.d_model,
    )
    revisions = [f"seed{seed}" for seed in range(N)]
    suite = ctt.Suite(
        name="random weights",
        source=Path("."),
        revisions=revisions,
        tokens=dict.fromkeys(revisions),
        default_layer=sizes.layer,
        default_triplet=revisions,
    )
    suite.config, suite.tokenizer = config, ctt.load_suite("tiny").tokenizer
    ckpts = ctt.Checkpoints(suite, revisions, sizes.layer, device, dtype)
    for seed, revision in enumerate(revisions):
        torch.manual_seed(seed)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        # as if they had been loaded: there are no files that they could be loaded from
        ckpts._loaded[revision] = HookedModel(model, suite.tokenizer, sizes.layer, revision)
        ckpts._fingerprints[revision] = revision
    return ckpts


@torch.no_grad()
def random_crosscoder(
    ckpts: ctt.Checkpoints, pairs: ctt.MinimalPairs, n_latents: int, k: int
) -> ctt.Crosscoder:
    """Random directions around the mean activation, of which k are active at a token."""
    x = hooks.stacked_activations(ckpts, pairs.input_ids, pairs.attention_mask)
    x = x[touched(pairs).to(x.device)]
    scales = ckpts.d_model**0.5 / x.norm(dim=-1).mean(0)
    crosscoder = ctt.Crosscoder(
        N, ckpts.d_model, n_latents, sparsity="batch_topk", k=k, scales=scales.tolist(), seed=0
    )
    crosscoder = crosscoder.to(x.device).requires_grad_(False).eval()
    crosscoder.b_dec.copy_(x.mean(0) * scales[:, None])
    crosscoder.b_enc.copy_(-(crosscoder.b_dec[..., None] * crosscoder.W_enc).sum((0, 1)))
    sizes = (crosscoder.pre_activations(x).relu() * crosscoder.code_norms()).flatten()
    kept = min(k * len(x), len(sizes))
    crosscoder.threshold.fill_(float(sizes.topk(kept).values[-1]))
    crosscoder.source = ckpts.source
    return crosscoder


@dataclass
class Case:
    """One checkpoint, dictionary and batch of pairs.

    Attributes:
        model: the checkpoint.
        pairs: the batch.
        x: [pairs, t, d_model] its activations.
        f: [pairs, t, latents] latents, zero where nothing is touched.
        W_dec, b_dec: the decoder of this checkpoint, in raw space.
        touched: [pairs, t] where the method reaches.
    """

    model: HookedModel
    pairs: ctt.MinimalPairs
    x: Float[Tensor, "pairs t d_model"]
    f: Float[Tensor, "pairs t latents"]
    W_dec: Float[Tensor, "latents d_model"]
    b_dec: Float[Tensor, " d_model"]
    touched: Bool[Tensor, "pairs t"]

    # as the package does it

    def by(self, method: str, tolerance: float = 0.0) -> Attribution:
        """A method of the package."""
        readout = readout_of(self.model, self.pairs, self.x, self.b_dec)
        options = Options(tolerance=tolerance)
        if tolerance:
            options = Options(tolerance=tolerance * float(readout.change.abs().mean()))
        return METHODS[method].attribute(readout, self.f, self.W_dec, options)

    def ten_points(self) -> Float[Tensor, "pairs latents"]:
        """The paper's ten points, as the package takes gradients."""
        readout = readout_of(self.model, self.pairs, self.x, self.b_dec)
        grad = torch.zeros_like(self.x)
        rows = readout.every.repeat(POINTS)
        a = torch.arange(POINTS).repeat_interleave(len(self.x)) / POINTS
        for pack in readout.packs(rows, readout.gradients_at_once):
            own = rows[pack.items]
            x = readout.at(a[pack.items], own, pack.where)
            found = readout.with_gradient(x, own, pack.start)[1]
            grad[:, pack.where].index_add_(0, own, found / POINTS)
        return ctt.effects_from_gradient(self.f, self.W_dec, grad).sum(1)

    # as the definition reads

    @cached_property
    def error(self) -> Float[Tensor, "pairs t d_model"]:
        return (self.x - self.f @ self.W_dec - self.b_dec) * self.touched[..., None]

    def whole_pass(self, x: Float[Tensor, "pairs t d_model"]) -> Float[Tensor, " pairs"]:
        """m of a pass from the embedding on, with x in the place of the layer's output."""
        block = self.model.hf_model.gpt_neox.layers[self.model.layer]
        handle = block.register_forward_hook(lambda *_: x.to(self.model.dtype))
        try:
            logits = self.model.hf_model(
                input_ids=self.pairs.input_ids.to(self.model.device),
                attention_mask=self.pairs.attention_mask.to(self.model.device),
                use_cache=False,
            ).logits
        finally:
            handle.remove()
        rows = torch.arange(len(self.pairs))
        last = logits[rows, self.pairs.answer_position]
        return last[rows, self.pairs.wrong] - last[rows, self.pairs.right]

    def gradients(self, a: float) -> tuple[Tensor, Tensor]:
        """On the latents and the error, at a point of the joint line."""
        f = ((1 - a) * self.f).requires_grad_(True)
        error = ((1 - a) * self.error).requires_grad_(True)
        rebuilt = f @ self.W_dec + self.b_dec + error
        m = self.whole_pass(torch.where(self.touched[..., None], rebuilt, self.x))
        return torch.autograd.grad(m.sum(), (f, error))

    def paper(self, points: int = POINTS) -> tuple[Tensor, Tensor]:
        """IG (one point: AtP): effects of latents [pairs, latents] and of the error [pairs]."""
        on_f, on_error = torch.zeros_like(self.f), torch.zeros_like(self.x)
        for step in range(points):
            for_f, for_error = self.gradients(step / points)
            on_f += for_f / points
            on_error += for_error / points
        return -(on_f * self.f).sum(1), -(on_error * self.error).sum((1, 2))

    @torch.no_grad()
    def paper_ablation(self, latents: Sequence[int]) -> Float[Tensor, "pairs latents"]:
        """A whole pass for each latent, with a hook that takes it away in all pairs."""
        clean = self.whole_pass(self.x)
        effects = []
        for latent in latents:
            removed = self.f[..., [latent]] * self.W_dec[latent]
            effects.append(self.whole_pass(self.x - removed) - clean)
        return torch.stack(effects, dim=1)

    def gap(self, ie: Float[Tensor, "pairs latents"], error: Float[Tensor, " pairs"]) -> float:
        """What effects and error leave unexplained of the change of m."""
        change = readout_of(self.model, self.pairs, self.x, self.b_dec).change
        return float((ie.sum(1) + error - change).mean().abs() / change.abs().mean())


@torch.no_grad()
def make_case(
    ckpts: Sequence[HookedModel], crosscoder: ctt.Crosscoder, pairs: ctt.MinimalPairs, c: int = 0
) -> Case:
    """A case of one of the models, with latents that are read from all of them."""
    x = hooks.stacked_activations(ckpts, pairs.input_ids, pairs.attention_mask)
    where = touched(pairs).to(x.device)
    W_dec, b_dec = crosscoder.raw_decoder()
    return Case(
        model=ckpts[c],
        pairs=pairs,
        x=x[:, :, c].contiguous(),
        f=crosscoder.encode(x) * where[..., None],
        W_dec=W_dec[:, c].contiguous(),
        b_dec=b_dec[c],
        touched=where,
    )


# ---- two ways in turns


def in_turns(
    ours: Callable[[], Any],
    other: Callable[[], Any],
    times: float = 1,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Median milliseconds of both, and the median over rounds of other / ours.

    One more round, the first, is not counted: it pays for what is set up once.

    Args:
        ours, other: the package and the plain way.
        times: how often `other` would have to be done.
        rounds: how many are counted.
        clock: the time of this process alone: what else runs on the machine does not count.
    """

    def seconds(function: Callable[[], Any]) -> float:
        begin = clock()
        function()
        return clock() - begin

    taken = np.array([[seconds(ours), times * seconds(other)] for _ in range(rounds + 1)])
    ms, against_ms = 1000 * np.median(taken[1:], axis=0)
    ratio = np.median(taken[1:, 1] / taken[1:, 0])
    return {"ms": ms, "against_ms": against_ms, "ratio": ratio, "rounds": rounds}


class Products(TorchDispatchMode):
    """Counts the operations of products of matrices, 2 m k n each."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"):
            inner = args[-2].shape[-1]
            self.operations += 2 * out.numel() * inner
        return out


def operations(function: Callable[[], Any]) -> float:
    """Operations of all products of matrices in a call, in 10^9."""
    with Products() as counted:
        function()
    return counted.operations / 1e9


def ceiling(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """10^9 operations a second of a large product of matrices, the best of some."""
    size = 1024 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(10):
        begin = time.perf_counter()
        a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - begin) / 1e9)
    return best


def row(
    what: str,
    against: str,
    on: str,
    ours: Callable[[], Any],
    other: Callable[[], Any],
    peak: float,
    **more: float,
) -> dict[str, Any]:
    """One row of the table; `more` goes to `in_turns`, or into the row."""
    gaps = {name: more.pop(name) for name in ("gap", "against_gap") if name in more}
    times = in_turns(ours, other, **more)
    counted, against_counted = operations(ours), more.get("times", 1) * operations(other)
    share = counted / (times["ms"] / 1000) / peak
    print(f"{what}, {on}: {times['ms']:.0f} ms, {times['ratio']:.2f} x", flush=True)
    return {
        "what": what,
        "against": against,
        "on": on,
        **times,
        "gap": gaps.get("gap", np.nan),
        "against_gap": gaps.get("against_gap", np.nan),
        "operations": counted,
        "against_operations": against_counted,
        "of_peak": share,
    }


# ---- on a CPU


def attribution_rows(case: Case, on: str, peak: float) -> list[dict[str, Any]]:
    """IG and AtP of one batch of pairs, from its activations on."""
    for found, (ie, _) in ((case.ten_points(), case.paper()), (case.by("atp").ie, case.paper(1))):
        torch.testing.assert_close(found, ie, rtol=1e-3, atol=1e-4 * float(ie.abs().max()))
    return [
        row(
            "IG, the same ten points", "gradient on f, whole passes", on, case.ten_points,
            case.paper, peak,
        ),
        row(
            "AtP", "gradient on f, whole pass", on, lambda: case.by("atp"),
            lambda: case.paper(1), peak,
        ),
    ]  # fmt: skip


def ablation_row(case: Case, on: str, peak: float) -> dict[str, Any]:
    """Exact ablation of all active latents of one batch of pairs, from its activations on."""
    active = (case.f != 0).any(1)
    latents = active.any(0).nonzero().flatten().tolist()
    some = latents[:: max(1, len(latents) // SAMPLED)][:SAMPLED]
    exact, plain = case.by("ablation").ie[:, some], case.paper_ablation(some)
    torch.testing.assert_close(exact, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
    return row(
        "exact ablation of all active latents",
        "a whole pass for each latent",
        on,
        lambda: case.by("ablation"),
        lambda: case.paper_ablation(some),
        peak,
        times=len(latents) / len(some),
        rounds=2,
    )


@torch.no_grad()
def evaluation_row(
    ckpts: ctt.Checkpoints, crosscoder: ctt.Crosscoder, sizes: Sizes, on: str, peak: float
) -> dict[str, Any]:
    """`evaluate` beside three whole passes a sequence, and sums in float64 on the CPU."""
    text = running_text(sizes)
    ours = ctt.evaluate(crosscoder, ckpts, text)
    np.testing.assert_allclose(plain_evaluation(crosscoder, ckpts, text), ours.dce, atol=2e-3)
    return row(
        "evaluate",
        "whole passes, one sequence at a time",
        on,
        lambda: ctt.evaluate(crosscoder, ckpts, text),
        lambda: plain_evaluation(crosscoder, ckpts, text),
        peak,
        rounds=2,
    )


def running_text(sizes: Sizes) -> Int[Tensor, "sequences length"]:
    """Random tokens after one that begins all sequences."""
    draw = torch.Generator().manual_seed(0)
    highest = min(sizes.vocabulary, 900)
    text = torch.randint(2, highest, (sizes.sequences, sizes.length), generator=draw)
    text[:, 0] = 0
    return text


def plain_evaluation(
    crosscoder: ctt.Crosscoder, ckpts: ctt.Checkpoints, text: Int[Tensor, "sequences length"]
) -> Float[np.ndarray, " n"]:
    """Rise of the cross-entropy with the reconstruction, as the definition reads."""
    n, predicted = len(ckpts), text.shape[0] * (text.shape[1] - 2)
    ce = np.zeros((3, n))
    squares = torch.zeros(2, n, dtype=torch.float64)
    for ids in text.split(1):
        x = hooks.stacked_activations(ckpts, ids)
        again = torch.cat([x[:, :1], crosscoder(x[:, 1:])], dim=1)
        squares[0] += (x - again).cpu().double().square().sum((0, 1, 3))
        squares[1] += x.cpu().double().square().sum((0, 1, 3))
        zero = torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], dim=1)
        for c, model in enumerate(ckpts):
            for what, stream in enumerate((x, again, zero)):
                logits = hooks.spliced_logits(model, ids, None, stream[:, :, c])[:, 1:-1]
                after = ids[:, 2:].flatten().to(logits.device)
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), after, reduction="sum"
                )
                ce[what, c] += loss.item() / predicted
    return ce[1] - ce[0]


def complete_row(case: Case, on: str, tol: float, peak: float) -> dict[str, Any]:
    """IG to a gap of a hundredth at most beside the paper's ten points, with the gap of both."""
    found = case.by("ig", tol)
    return row(
        f"IG to a tolerance of {tol:g}",
        "ten points of the paper",
        on,
        lambda: case.by("ig", tol),
        case.paper,
        peak,
        gap=case.gap(found.ie, found.error),
        against_gap=case.gap(*case.paper()),
    )


def shapley_row(
    ckpts: ctt.Checkpoints, crosscoder: ctt.Crosscoder, pairs: ctt.MinimalPairs
) -> dict[str, Any]:
    """Shapley values of a task at three checkpoints, and how certain they are.

    The gap is the largest standard error of all, in units of the largest effect of all.
    """
    begin = time.process_time()
    found = ctt.indirect_effects(crosscoder, ckpts, pairs, "shapley", permutations=ORDERS)
    seconds = time.process_time() - begin
    error = found.stderr.max() / np.abs(found.mean).max()
    print(f"Shapley: {seconds:.1f} s, standard error {error:.2%} of the largest", flush=True)
    return {
        "what": f"Shapley values, {ORDERS} orders; gap: largest standard error / largest effect",
        "against": "",
        "on": f"{TASK}, {len(pairs)} pairs, {len(ckpts)} checkpoints",
        "ms": 1000 * seconds,
        "rounds": 1,
        "gap": error,
    }


def run(shrink: bool = False) -> dict[str, pd.DataFrame]:
    peak = ceiling()
    rows = []
    suite = ctt.load_suite("tiny")
    pairs = suite.pairs(TASK)
    for sizes in [SHRUNK] if shrink else [SMALL_VOCABULARY, LARGE_VOCABULARY]:
        ckpts = random_checkpoints(sizes, "cpu", torch.float32)
        some, few = pairs[: sizes.pairs], pairs[:ABLATED]
        crosscoder = random_crosscoder(ckpts, some, sizes.n_latents, sizes.k)
        on = str(sizes)
        rows += attribution_rows(
            make_case(ckpts, crosscoder, some), f"{on}, {len(some)} pairs", peak
        )
        case = make_case(ckpts, crosscoder, few)
        rows.append(ablation_row(case, f"{on}, {len(few)} pairs", peak))
        on_text = f"{on}, {sizes.sequences} sequences of {sizes.length}"
        rows.append(evaluation_row(ckpts, crosscoder, sizes, on_text, peak))
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder).requires_grad_(False)
    for c, model in enumerate(ckpts):
        case = make_case(ckpts, crosscoder, pairs[: 8 if shrink else 64], c)
        on = f"{model.label}, {len(case.pairs)} pairs"
        rows += [complete_row(case, on, tol, peak) for tol in TOLERANCES]
        other = make_case(ckpts, crosscoder, suite.pairs(EASY)[: len(case.pairs)], c)
        rows.append(complete_row(other, f"{on} of {EASY}", TOLERANCES[0], peak))
    case = make_case(ckpts, crosscoder, pairs[: 4 if shrink else 64], 2)
    rows.append(ablation_row(case, f"{ckpts.labels[2]}, {len(case.pairs)} pairs", peak))
    rows.append(shapley_row(ckpts, crosscoder, pairs[:4] if shrink else pairs))
    return {"effects_speed": pd.DataFrame(rows)}


# ---- on a GPU


@dataclass(frozen=True)
class Work:
    """A piece of work whose rate is measured.

    Attributes:
        what: name.
        run: all of it; gives how many units it did.
        unit: of what it does.
        small: a small part of it: what is set up once, and how often the host waits.
        ours, other: a batch as the package does it and as the paper does; None: not compared.
        times: how often `other` would have to be done.
    """

    what: str
    run: Callable[[], float]
    unit: str
    small: Callable[[], Any]
    ours: Callable[[], Any] | None = None
    other: Callable[[], Any] | None = None
    times: float = 1


def rates(device: str, sizes: Sizes) -> dict[str, pd.DataFrame]:
    """How fast a GPU does it, with three models of Pythia-1B's shape in bfloat16."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    ckpts = random_checkpoints(sizes, device, dtype)
    print(f"takes_past: {ckpts[0].takes_past}, answers_alone: {ckpts[0].answers_alone}", flush=True)
    some = ctt.load_suite("tiny").pairs(TASK)
    crosscoder = random_crosscoder(ckpts, some[:64], sizes.n_latents, sizes.k)
    peak = ceiling(device, dtype)
    rows = [rate(work, device, peak) for work in works(ckpts, crosscoder, some, sizes)]
    # shrunk, the vocabulary is the embedded suite's
    blimp = some if sizes is SHRUNK else estimates.some_pairs(ckpts, ALL)
    for method in ("ig", "atp"):
        rows.append(rate(of_blimp(ckpts, crosscoder, blimp, method), device, peak))
    return {"effects_gpu": pd.DataFrame(rows)}


def of_blimp(
    ckpts: ctt.Checkpoints, crosscoder: ctt.Crosscoder, pairs: ctt.MinimalPairs, method: str
) -> Work:
    """Effects on all subject-verb pairs of BLiMP, where they are at hand."""

    def effects(some: ctt.MinimalPairs) -> float:
        found = ctt.indirect_effects(crosscoder, ckpts, some, method, tol=1.0)
        return float(found.n_nodes.sum() * len(some))

    lengths = pairs.answer_position + 1
    told = f"{len(pairs):,} pairs of {lengths.min()} to {lengths.max()} tokens"
    where = "all of BLiMP's agreement" if pairs.name == "blimp" else pairs.name
    return Work(
        f"{where}, {METHOD_NAMES[method]}, {told}, {N} checkpoints",
        lambda: effects(pairs), "gradients", lambda: effects(pairs[:ABLATED]),
    )  # fmt: skip


def works(
    ckpts: ctt.Checkpoints, crosscoder: ctt.Crosscoder, pairs: ctt.MinimalPairs, sizes: Sizes
) -> list[Work]:
    """What is measured there."""
    many = pairs[[index % len(pairs) for index in range(sizes.pairs)]]
    few = many[: min(ABLATED, len(many))]
    text = running_text(sizes)
    batches = [(ids, None) for ids in text.split(16)]

    def effects(method: str, some: ctt.MinimalPairs, tol: float = 1.0) -> float:
        # weights that know nothing leave m to rounding: all that is asked for are the first points
        found = ctt.indirect_effects(crosscoder, ckpts, some, method, tol=tol)
        return float(found.n_nodes.sum() * len(some))

    def harvest(batches: list) -> float:
        for batch in batches:
            hooks.stacked_batches(ckpts, [batch])
        return sum(ids.numel() for ids, _ in batches)

    def evaluate(text: Int[Tensor, "sequences length"]) -> float:
        ctt.evaluate(crosscoder, ckpts, text)
        return text.numel()

    third = text[: max(1, len(text) // 3)]
    tokens = int(many.answer_position[0]) + 1
    case = make_case(ckpts, crosscoder, many[: min(BATCH, len(many))])
    ablated = make_case(ckpts, crosscoder, few)
    latents = (ablated.f != 0).flatten(0, 1).any(0).nonzero().flatten().tolist()
    sample = latents[:: max(1, len(latents) // SAMPLED)][:SAMPLED]
    some = many[: min(FINE, len(many))]
    return [
        Work(
            f"IG, {len(many)} pairs of {tokens} tokens, {N} checkpoints",
            lambda: effects("ig", many), "gradients", lambda: effects("ig", few),
            case.ten_points, case.paper,
        ),
        Work(
            f"AtP, the same pairs, {N} checkpoints",
            lambda: effects("atp", many), "gradients", lambda: effects("atp", few),
            lambda: case.by("atp"), lambda: case.paper(1),
        ),
        Work(
            f"exact ablation of all active latents, {len(few)} pairs, {N} checkpoints",
            lambda: effects("ablation", few), "passes", lambda: effects("ablation", few[:2]),
            lambda: ablated.by("ablation"), lambda: ablated.paper_ablation(sample),
            len(latents) / len(sample),
        ),
        Work(
            f"harvest, {N} models to block {ckpts.layer}",
            lambda: harvest(batches), "tokens", lambda: harvest(batches[:1]),
        ),
        Work(
            f"evaluate, {N} models",
            lambda: evaluate(third), "tokens", lambda: evaluate(text[:2]),
        ),
        Work(
            f"memory of IG, {len(some)} pairs, ten gradients each",
            lambda: effects("ig", some), "gradients", lambda: effects("ig", few),
        ),
        Work(
            f"memory of IG, {len(some)} pairs to a tolerance of 0.01",
            lambda: effects("ig", some, 0.01), "gradients", lambda: effects("ig", few, 0.01),
        ),
    ]  # fmt: skip


def rate(work: Work, device: str, peak: float) -> dict[str, Any]:
    """One row: the small part first, to set up and to count, then all of it."""
    work.small()
    counted, (waits, part) = operations(work.small), waiting(work.small, device)
    cuda = device != "cpu"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    done = work.run()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    memory = (torch.cuda.max_memory_allocated() - before) / 1e9 if cuda else np.nan
    ratio = np.nan
    if work.ours is not None:
        clock = time.perf_counter if cuda else time.process_time
        ratio = in_turns(work.ours, work.other, work.times, 2, synchronized(clock, cuda))["ratio"]
    print(f"{work.what}: {seconds:.2f} s, {done / seconds:,.0f} {work.unit}/s", flush=True)
    return {
        "what": work.what,
        "seconds": seconds,
        "done": done,
        "unit": work.unit,
        "a_second": done / seconds,
        "memory_gb": memory,
        "waits_in_a_part": waits,
        "of_peak": counted / part * done / seconds / peak,
        "ratio": ratio,
    }


def synchronized(clock: Callable[[], float], cuda: bool) -> Callable[[], float]:
    """A clock that is read when the device has done what it was given."""

    def read() -> float:
        if cuda:
            torch.cuda.synchronize()
        return clock()

    return read


def waiting(function: Callable[[], float], device: str) -> tuple[float, float]:
    """How often the host waits for the device in a call, and what the call gives."""
    if device == "cpu":
        return np.nan, function()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            found = function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in told), found


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.effects",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shrink", action="store_true", help="small sizes: to try the code")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the results"
    )
    given = parser.parse_args(arguments)
    device = pick_device(given.device)
    if device == "cpu":
        torch.set_num_threads(1)
    told = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.effects", *told])
    about = {"command": command, **report.machine(), "device": device}
    begin = time.perf_counter()
    if device == "cpu":
        frames = run(given.shrink)
    else:
        about["gpu"] = torch.cuda.get_device_name()
        frames = rates(device, SHRUNK if given.shrink else PYTHIA_1B)
    about["seconds"] = round(time.perf_counter() - begin)
    (part,) = frames
    report.publish(given.out, part, frames, about)
    return frames[part]


if __name__ == "__main__":
    main()
