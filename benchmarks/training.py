"""A training step: beside the paper's formulation, by density, and on a GPU.

    python -m benchmarks.training [--threads 1 2] [--device cuda] [--shrink]

On a CPU, with one thread, times are those of the process; with more, they are the clock's, and want
a machine that does nothing else. `--device cuda` takes a minute and the paper's sizes instead.
`--shrink` runs the same code with small sizes.
"""

import argparse
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

import ctt_helpers as ctt
from benchmarks import report
from ctt_helpers import sparse
from ctt_helpers.crosscoder import largest_sizes
from ctt_helpers.hooks import pick_device
from ctt_helpers.training import BETAS, CLIP, LOG_EVERY, TrainingRun

REPEATS = 7  # rounds of two ways in turns
DEAD = 0.1  # share of dead latents, where there are any
L1_DENSITIES = (None, 0.03)  # as it starts, and once it is sparse
DENSITIES = (0.02, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
DENSITY_REPEATS = 3
GPU_STEPS = 20
PLANTED_STEPS = 400

TABLES = {
    "training": (
        "One row for each size, sparsity, share of dead latents and number of threads. Medians "
        "over rounds: milliseconds of a step (ms) and of the paper's formulation (against_ms: "
        "einsum, autograd, topk over the batch, plain Adam, clipping, AuxK through the whole "
        "decoder, figures every step); ratio: how many times longer that takes, round by round. "
        "density: share of active latents. gflop: operations that a step cannot do without (all "
        "latents in the encoder, active ones elsewhere, dead ones for AuxK). mbyte: weights, "
        "moments, gradients and codes that have to pass through memory. share: the time that both "
        "would take at the speed of one product of these sizes (gflops) and of one copy "
        "(gbyte_s), divided by ms; a product with few active latents may beat that, as it stays "
        "in the cache."
    ),
    "training_density": (
        "One row for each size, density and number of threads: milliseconds of a BatchTopK step "
        "with products of the active latents alone (sparse_ms) and of whole matrices (dense_ms); "
        "ratio: dense / sparse, round by round. A step takes the first up to a density of "
        f"{sparse.SPARSE_BELOW:g}."
    ),
    "training_checkpoints": (
        "One row for each number of checkpoints and threads, d 128, 1,024 latents: milliseconds "
        "of a BatchTopK step, of the paper's formulation, and of either for one checkpoint."
    ),
    "training_gpu": (
        "The paper's sizes on a GPU, one row for each precision, sparsity (L1: half of all latents "
        "active) and share of dead latents: milliseconds of a step, peak "
        "memory, waits for the device in a step without logging, speed of the products in a step "
        "as a share of that of one product alone."
    ),
    "training_gpu_parts": "Where such a step goes: milliseconds of each kind of GPU kernel.",
    "training_gpu_quality": (
        "Planted activations, the same steps in both precisions: explained variance and L0 over "
        "the last hundred steps."
    ),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a crosscoder and its batches; k and dead do not matter for "l1"."""

    d_model: int
    n_latents: int
    k: int
    n_checkpoints: int = 3
    batch_size: int = 1024
    sparsity: str = "batch_topk"
    dead: float = 0.0
    density: float | None = None


SHAPES = [Shape(64, 512, 16), Shape(96, 512, 12)]
SHAPES += [Shape(128, 2048, 32), Shape(256, 4096, 32), Shape(512, 4096, 32)]
PAPER = Shape(2048, 16384, 200, batch_size=4096)
PLANTED = Shape(512, 4096, 32, batch_size=4096)
SMALL = Shape(16, 64, 4, batch_size=64)  # a test's seconds


# ---- the two ways


class PaperRun:
    """A step as the equations read, with whole matrices everywhere."""

    def __init__(self, run: TrainingRun):
        self.run, self.config = run, run.config
        own = run.crosscoder
        self.W_enc = own.W_enc.detach().clone(memory_format=torch.contiguous_format)
        self.W_dec = own.W_dec.detach().clone()
        self.b_enc, self.b_dec = own.b_enc.detach().clone(), own.b_dec.detach().clone()
        self.parameters = [self.W_enc, self.W_dec, self.b_enc, self.b_dec]
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.adam = torch.optim.Adam(self.parameters, lr=run.config.lr, betas=BETAS)
        self.silent = run.silent.clone()

    def loss(self, x: Float[Tensor, "batch checkpoints d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, code, and what is left out."""
        own, config = self.run.crosscoder, self.config
        target = x * own.scales[:, None]
        f = (torch.einsum("bnd,ndh->bh", target, self.W_enc) + self.b_enc).relu()
        u = self.W_dec.norm(dim=-1).sum(1)
        if own.sparsity == "batch_topk":
            sizes = (f * u).flatten()
            kept = sizes.topk(own.k * len(x), sorted=False).indices
            chosen = torch.zeros_like(sizes).scatter(0, kept, 1.0).view_as(f)
            f = f * chosen
        error = target - torch.einsum("bh,hnd->bnd", f, self.W_dec) - self.b_dec
        loss = error.pow(2).sum((1, 2)).mean()
        if own.sparsity == "l1":
            return loss + self.run.penalty(self.run.done) * (f * u).sum() / len(x), f, error
        dead = self.silent >= config.dead_after_tokens
        if dead.any():
            all_f = (torch.einsum("bnd,ndh->bh", target, self.W_enc) + self.b_enc).relu()
            dead_f = torch.where(dead, all_f, 0)
            top = (dead_f * u).topk(own.d_model // 2, dim=1, sorted=False).indices
            dead_f = torch.zeros_like(f).scatter(1, top, dead_f.gather(1, top))
            rebuilt = torch.einsum("bh,hnd->bnd", dead_f, self.W_dec)
            loss = loss + config.aux_weight * (error.detach() - rebuilt).pow(2).sum((1, 2)).mean()
        return loss, f, error

    def step(self, x: Float[Tensor, "batch checkpoints d_model"]) -> dict[str, float]:
        loss, f, error = self.loss(x)
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.adam.step()
        with torch.no_grad():
            self.silent += len(x)
            self.silent[(f > 0).any(0)] = 0
            target = x * self.run.crosscoder.scales[:, None]
            deviation = (target - target.mean(0)).pow(2).sum(-1)
            squares = error.pow(2).sum(-1)
            return {
                "loss": loss.item(),
                "l0": (f > 0).float().sum(1).mean().item(),
                "explained_variance": (1 - squares.sum() / deviation.sum()).item(),
                "at_each": (1 - squares.sum(0) / deviation.sum(0)).tolist(),
                "dead": (self.silent >= self.config.dead_after_tokens).sum().item(),
            }


def made(
    shape: Shape, device: str = "cpu", bf16: bool = False
) -> tuple[TrainingRun, Float[Tensor, "batch checkpoints d_model"]]:
    """A run in its middle, with as many dead latents as the shape says, and a batch."""
    generator = torch.Generator(device).manual_seed(0)
    sizes = (shape.batch_size, shape.n_checkpoints, shape.d_model)
    x = torch.randn(sizes, generator=generator, device=device)
    crosscoder = ctt.Crosscoder(
        shape.n_checkpoints, shape.d_model, shape.n_latents, shape.sparsity, shape.k
    ).to(device)
    dead = round(shape.dead * shape.n_latents)
    with torch.no_grad():
        # positive at times, never among the largest
        crosscoder.W_enc[..., :dead] *= 1e-3
        if shape.density is not None:
            pre = crosscoder.pre_activations(x).flatten().sort().values
            at = len(pre) - round(shape.density * len(pre))
            crosscoder.b_enc -= pre[at - 1 : at + 1].mean()  # between two: none is at 0 itself
    # far too slow to learn anything: every step is like the first
    config = ctt.TrainConfig(
        steps=10**6, lr=1e-9, k_anneal=0.0, penalty_warmup=0.0, dead_after_tokens=10**6, bf16=bf16
    )
    run = TrainingRun(crosscoder.train(), config)
    run.tokens = 10**6 * dead  # none is looked for in the first million
    run.silent[:dead] = 10**6
    return run, x


def check_equal(run: TrainingRun, paper: PaperRun, x: Tensor) -> None:
    """What is compared must be the same thing: losses, and gradients up to their clipping.

    A latent within a rounding of the threshold may be active in one alone, so this is no test of
    the gradients' last digits: tests/test_sparse.py is.
    """
    loss, _, _ = paper.loss(x)
    wanted = torch.autograd.grad(loss, paper.parameters)
    told = run.step(x, log=True)
    torch.testing.assert_close(told["loss"], loss.detach(), rtol=1e-5, atol=0)
    for mine, theirs in zip(run.crosscoder.parameters(), [wanted[1], *_rest(wanted)], strict=True):
        theirs = theirs / torch.stack([g.norm() for g in wanted]).norm().clamp_min(CLIP)
        miss = float((mine.grad - theirs).norm() / theirs.norm().clamp_min(1e-12))
        assert miss < 1e-2, (run.crosscoder, miss)


def _rest(gradients: tuple[Tensor, ...]) -> list[Tensor]:
    """W_enc, b_enc, b_dec: a crosscoder names its parameters in another order."""
    return [gradients[0], gradients[2], gradients[3]]


# ---- times


def in_turns(
    ways: list[Callable[[], Any]], clock: Callable[[], float], rounds: int = REPEATS
) -> np.ndarray:
    """Milliseconds [rounds, ways]; a first round, not counted, pays for what is set up once."""

    def taken(way: Callable[[], Any]) -> float:
        begin = clock()
        way()
        return 1000 * (clock() - begin)

    return np.array([[taken(way) for way in ways] for _ in range(rounds + 1)])[1:]


def clock_for(threads: int) -> Callable[[], float]:
    torch.set_num_threads(threads)
    return time.process_time if threads == 1 else time.perf_counter


def ceilings(shape: Shape, clock: Callable[[], float]) -> dict[str, float]:
    """What the machine can do: one product of the encoder's sizes, one copy of the weights."""
    width = shape.n_checkpoints * shape.d_model
    x, W = torch.randn(shape.batch_size, width), torch.randn(shape.n_latents, width)
    there = torch.empty(2**25)
    here = torch.randn(2**25)
    times = in_turns([lambda: x @ W.T, lambda: there.copy_(here)], clock)
    product, copy = np.median(times, axis=0) / 1000
    flop = 2 * shape.batch_size * width * shape.n_latents
    return {"gflops": flop / product / 1e9, "gbyte_s": 2 * 4 * len(here) / copy / 1e9}


def needed(shape: Shape, density: float) -> dict[str, float]:
    """Operations and bytes without which there is no step; see TABLES."""
    width = shape.n_checkpoints * shape.d_model
    weights = 2 * shape.n_latents * width
    codes = shape.batch_size * shape.n_latents
    dead = round(shape.dead * shape.n_latents)
    # the encoder for all; decoder, its gradient, and both weights' for those that are active
    flop = 2 * width * codes * (1 + 4 * density) + 8 * width * shape.batch_size * dead
    # Adam reads 4 numbers a weight and writes 3, clipping reads 1 twice and writes it; codes are
    # written, read for their sizes, and the sizes written and read twice
    byte = 4 * (10 * weights + 5 * codes)
    return {"gflop": flop / 1e9, "mbyte": byte / 1e6}


def beside_the_paper(shape: Shape, threads: int) -> dict[str, Any]:
    """One row of the table `training`."""
    clock = clock_for(threads)
    run, x = made(shape)
    paper = PaperRun(run)
    check_equal(run, paper, x)
    steps = iter(range(10**9))
    ways = [lambda: _note(run, x, next(steps)), lambda: paper.step(x)]
    times = in_turns(ways, clock)
    ms, against_ms = np.median(times, axis=0)
    density = float(run.step(x, log=True)["l0"]) / shape.n_latents
    can, must = ceilings(shape, clock), needed(shape, density)
    least = must["gflop"] / can["gflops"] + must["mbyte"] / 1000 / can["gbyte_s"]
    about = {
        "sparsity": shape.sparsity,
        "n": shape.n_checkpoints,
        "d_model": shape.d_model,
        "latents": shape.n_latents,
        "density": density,
        "dead": shape.dead,
        "threads": threads,
        "ms": ms,
        "against_ms": against_ms,
        "ratio": np.median(times[:, 1] / times[:, 0]),
    }
    return {**about, **must, **can, "share": 1000 * least / ms, "rounds": REPEATS}


def _note(run: TrainingRun, x: Tensor, step: int) -> None:
    """A step as `train` takes it, with its figures once in a while."""
    figures = run.step(x, log=step % LOG_EVERY == 0)
    if figures:
        torch.stack(list(figures.values())).tolist()


def by_density(shape: Shape, density: float, threads: int) -> dict[str, Any]:
    """One row of the table `training_density`."""
    clock = clock_for(threads)
    shape = replace(shape, k=max(1, round(density * shape.n_latents)))
    ways = []
    for below in (1.0, 0.0):
        run, x = made(shape)

        def step(run: TrainingRun = run, x: Tensor = x, below: float = below) -> None:
            with mock.patch.object(sparse, "SPARSE_BELOW", below):
                run.step(x, log=False)

        ways.append(step)
    times = in_turns(ways, clock, DENSITY_REPEATS)
    sparse_ms, dense_ms = np.median(times, axis=0)
    return {
        "d_model": shape.d_model,
        "latents": shape.n_latents,
        "density": shape.k / shape.n_latents,
        "threads": threads,
        "sparse_ms": sparse_ms,
        "dense_ms": dense_ms,
        "ratio": np.median(times[:, 1] / times[:, 0]),
        "rounds": DENSITY_REPEATS,
    }


def by_checkpoints(n: int, threads: int, shape: Shape) -> dict[str, Any]:
    """One row of the table `training_checkpoints`."""
    row = beside_the_paper(replace(shape, n_checkpoints=n), threads)
    kept = {name: row[name] for name in ("n", "threads", "ms", "against_ms", "ratio")}
    return {**kept, "ms_each": row["ms"] / n, "against_ms_each": row["against_ms"] / n}


def on_cpu(threads: list[int], shrink: bool) -> dict[str, pd.DataFrame]:
    shapes = [SMALL] if shrink else SHAPES
    rows, densities, checkpoints = [], [], []
    for count in threads:
        for shape in shapes:
            print(f"{count} thread(s): {shape}", flush=True)
            for dead in (0.0, DEAD):
                rows.append(beside_the_paper(replace(shape, dead=dead), count))
            for density in L1_DENSITIES:
                l1 = replace(shape, sparsity="l1", density=density)
                rows.append(beside_the_paper(l1, count))
            densities += [by_density(shape, density, count) for density in DENSITIES]
        many = SMALL if shrink else Shape(128, 1024, 16)
        checkpoints += [by_checkpoints(n, count, many) for n in (3, 19)]
    rows.sort(key=lambda row: row["sparsity"])  # BatchTopK first; otherwise as they came
    return {
        "training": pd.DataFrame(rows),
        "training_density": pd.DataFrame(densities),
        "training_checkpoints": pd.DataFrame(checkpoints),
    }


# ---- on a GPU

KINDS = {  # parts of kernels' names -> what they do
    "products": ("gemm", "cutlass", "nvjet", "xmma", "cublas"),
    "BatchTopK": ("topk", "radix", "sort", "blockwise", "kth"),
    "Adam": ("adam",),
    "clipping": ("norm", "lpnorm", "multi_tensor"),
    "sums": ("reduce",),
    "places": ("scatter", "gather", "index", "fill"),
    "copies": ("memcpy", "memset", "copy"),
}


def kind_of(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in name for p in parts)), "rest")


def on_device(work: Callable[[], Any], times: int, device: str) -> float:
    """Milliseconds of a call, by the wall clock, over several of them."""
    work()
    wait(device)
    begin = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return 1000 * (time.perf_counter() - begin) / times


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def kernels(work: Callable[[], Any], times: int, device: str) -> dict[str, float]:
    """Milliseconds a call of each kernel on the device (on a CPU: of each operator)."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.startswith("cuda")
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(times):
            work()
        wait(device)
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return {e.key: getattr(e, field) / 1000 / times for e in profiler.key_averages()}


def waits(work: Callable[[], Any], times: int, device: str) -> float:
    """How often the host waits for the device in a call."""
    if not device.startswith("cuda"):
        return 0.0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(times):
                work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for message in sorted({str(w.message)[:160] + f" at {w.filename}:{w.lineno}" for w in told}):
        print(f"  waits: {message}", flush=True)
    return sum("synchroniz" in str(w.message) for w in told) / times


def on_gpu(device: str, shrink: bool) -> dict[str, pd.DataFrame]:
    shape = SMALL if shrink else PAPER
    kinds = [replace(shape, dead=dead) for dead in (0.0, DEAD)] + [replace(shape, sparsity="l1")]
    rows, parts = [], []
    for bf16 in (True, False):
        for kind in kinds:
            row, where = one_on_gpu(kind, device, bf16)
            print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()})
            rows.append(row)
            key = {name: row[name] for name in ("precision", "sparsity", "dead")}
            parts += [{**key, **part} for part in where]
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
    quality = [
        planted_quality(SMALL if shrink else PLANTED, device, bf16) for bf16 in (True, False)
    ]
    return {
        "training_gpu": pd.DataFrame(rows),
        "training_gpu_parts": pd.DataFrame(parts),
        "training_gpu_quality": pd.DataFrame(quality),
    }


def one_on_gpu(
    shape: Shape, device: str, bf16: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rows of `training_gpu` and `training_gpu_parts`."""
    run, x = made(shape, device, bf16)
    step = lambda: run.step(x, log=False)  # noqa: E731
    steps = GPU_STEPS if bf16 else GPU_STEPS // 4
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    ms = on_device(step, steps, device)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else np.nan
    dtype = torch.bfloat16 if bf16 else torch.float32
    width = shape.n_checkpoints * shape.d_model
    a = torch.randn(shape.batch_size, width, device=device, dtype=dtype)
    W = torch.randn(shape.n_latents, width, device=device, dtype=dtype)
    product = on_device(lambda: a @ W.T, 10, device)
    pre = torch.randn(shape.batch_size, shape.n_latents, device=device)
    u = torch.rand(shape.n_latents, device=device) + 0.5
    count, compared = shape.k * len(pre), torch.bfloat16 if bf16 else None
    topk = on_device(lambda: largest_sizes(pre, u, count, compared), 5, device)
    taken = kernels(step, 5, device)
    where = pd.Series(taken).groupby(kind_of).sum().sort_values(ascending=False)
    longest = sorted(taken.items(), key=lambda item: -item[1])[:14]
    print("\n".join(f"  {ms:8.3f} ms {kind_of(name):10} {name[:110]}" for name, ms in longest))
    dead = round(shape.dead * shape.n_latents)
    products = 5 + 4 * dead / shape.n_latents  # of the encoder's size
    row = {
        "precision": "bf16" if bf16 else "float32",
        "sparsity": shape.sparsity,
        "dead": shape.dead,
        "ms": ms,
        "peak_gb": peak,
        "waits": waits(step, LOG_EVERY, device),
        "product_tflops": 2 * shape.batch_size * width * shape.n_latents / product / 1e9,
        "product_share": products * product / max(where.get("products", np.nan), 1e-9),
        "kernels_ms": where.sum(),
        "topk_alone_ms": topk,
    }
    return row, [{"what": name, "ms": ms, "share": ms / where.sum()} for name, ms in where.items()]


def planted_quality(shape: Shape, device: str, bf16: bool) -> dict[str, Any]:
    """One row of `training_gpu_quality`: a training on activations made of a sparse dictionary."""
    draw = torch.Generator(device).manual_seed(1)
    n, d, h = shape.n_checkpoints, shape.d_model, shape.n_latents // 2
    directions = torch.randn(h, n * d, generator=draw, device=device) / d**0.5
    crosscoder = ctt.Crosscoder(n, d, shape.n_latents, k=shape.k).to(device)
    config = ctt.TrainConfig(steps=PLANTED_STEPS, bf16=bf16, dead_after_tokens=200_000)
    run = TrainingRun(crosscoder.train(), config)
    told = []
    for step in range(PLANTED_STEPS):
        active = torch.rand(shape.batch_size, h, generator=draw, device=device) < shape.k / h
        size = 0.5 + torch.rand(shape.batch_size, h, generator=draw, device=device)
        x = ((active * size) @ directions).unflatten(1, (n, d))
        figures = run.step(x, log=step >= PLANTED_STEPS - 100)
        told += [torch.stack([figures["explained_variance"], figures["l0"]])] if figures else []
    explained, l0 = torch.stack(told).mean(0).tolist()
    precision = "bf16" if bf16 else "float32"
    about = {"steps": PLANTED_STEPS, "d_model": d, "latents": shape.n_latents}
    return {"precision": precision, "explained_variance": explained, "l0": l0, **about}


def main(arguments: list[str] | None = None) -> dict[str, pd.DataFrame]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="on a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gpu-sizes", action="store_true", help="the GPU's tables, on a CPU too")
    parser.add_argument("--shrink", action="store_true", help="small sizes: to try the code")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the results"
    )
    given = parser.parse_args(arguments)
    device = pick_device(given.device)
    told = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.training", *told])
    about = {"command": command, **report.machine(), "device": device}
    about["threads"] = ", ".join(map(str, given.threads))
    begin = time.perf_counter()
    if device == "cpu" and not given.gpu_sizes:
        part, frames = "training", on_cpu(given.threads, given.shrink)
    else:
        part, frames = "training_gpu", on_gpu(device, given.shrink)
        about["threads"] = torch.get_num_threads()
    if device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name()
    about["seconds"] = round(time.perf_counter() - begin)
    report.publish(given.out, part, frames, about)
    return frames


if __name__ == "__main__":
    main()
