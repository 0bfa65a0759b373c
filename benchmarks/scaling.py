"""How cost grows, and what a whole run costs.

    python -m benchmarks.scaling [--shrink]

Each piece of work at several sizes in turns, by the process's own time at one thread, and the slope
of the logarithms: twice the size takes 2 to that power as long. Then whole runs, at rates that
`benchmarks.effects` and `benchmarks.training` measured on a GPU. It takes four minutes; `--shrink`
runs the same code with small sizes.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from transformers import AutoConfig

import ctt_helpers as ctt
from benchmarks import effects, report, training
from benchmarks.effects import TASK, N, random_checkpoints, random_crosscoder, running_text
from ctt_helpers import hooks
from ctt_helpers.attribution import METHODS
from ctt_helpers.notebook.forecast import Work, count_memory
from ctt_helpers.sources.machine import count_parameters
from ctt_helpers.sources.presets import PRESETS
from ctt_helpers.training import TrainingRun

ROUNDS = 3
LEAST = 0.05  # seconds of a measurement: short work is done several times
MODELS = effects.Sizes(128, 8, 4, 4, 8_000, 2048, 32, pairs=64, sequences=32, length=128)

TABLES = {
    "scaling": (
        "One row for each piece of work and what it grows with: from which size to which, "
        "milliseconds at both (medians of the process's own time), the slope of log time over log "
        "size by least squares with its standard error, that between the two largest sizes alone "
        "(at_the_end), and what is expected. Below 1: a part of the cost does not grow."
    ),
    "scaling_points": "The times behind these slopes: one row for each size.",
    "scaling_runs": (
        "Whole runs on one NVIDIA H200: 100,000 steps of 4,096 tokens, each token read once; "
        "100,000 tokens of evaluation; 3,000 pairs of 7 tokens, IG with the gradients that it "
        "takes on the embedded suite. basis: measured (a rate that was measured at this shape, "
        "from `effects_gpu` and `training_gpu`, times the amount), scaled (the same, times "
        "operations here over operations there: nothing of that shape was run), counted (sizes; "
        "10^9 bytes)."
    ),
}


# ---- how cost grows


@dataclass(frozen=True)
class Series:
    """A piece of work at several sizes.

    Attributes:
        what: the work.
        along: what grows.
        sizes: how much of it.
        make: (size) -> the work at that size, ready to be called.
        expected: the exponent; "at most" where parts of the cost are fixed.
        why: in short.
    """

    what: str
    along: str
    sizes: Sequence[float]
    make: Callable[[Any], Callable[[], Any]]
    expected: str
    why: str


def slope(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Exponent of a power law by least squares on the logarithms, and its standard error."""
    x, y = np.log(sizes), np.log(times)
    x, y = x - x.mean(), y - y.mean()
    exponent = float(x @ y / (x @ x))
    left = y - exponent * x
    return exponent, float(np.sqrt(left @ left / (len(x) - 2) / (x @ x)))


def measured(series: Series, rounds: int) -> Float[np.ndarray, " sizes"]:
    """Median milliseconds of each size, in turns; a first round, not counted, sets up."""
    works = [series.make(size) for size in series.sizes]
    repeats = [max(1, round(LEAST / seconds(work))) for work in works for _ in [work()]]
    times = [
        [seconds(work, often) for work, often in zip(works, repeats, strict=True)]
        for _ in range(rounds)
    ]
    return 1000 * np.median(times, axis=0)


def seconds(work: Callable[[], Any], often: int = 1) -> float:
    begin = time.process_time()
    for _ in range(often):
        work()
    return max(time.process_time() - begin, 1e-6) / often


def training_step(
    n: int = 3, d_model: int = 128, n_latents: int = 1024, batch_size: int = 1024
) -> Callable[[], Any]:
    """A BatchTopK step, k 16."""
    crosscoder = ctt.Crosscoder(n, d_model, n_latents, k=16)
    run = TrainingRun(crosscoder.train(), ctt.TrainConfig(steps=10**6, k_anneal=0))
    x = torch.randn(batch_size, n, d_model)
    return lambda: run.step(x, log=False)


def all_series(shrink: bool) -> list[Series]:
    """What is measured."""
    sizes = effects.SHRUNK if shrink else MODELS
    ckpts = random_checkpoints(sizes, "cpu", torch.float32)
    suite = ctt.load_suite("tiny")
    pairs = suite.pairs(TASK)
    text = running_text(replace(sizes, sequences=32))
    dictionary = random_crosscoder(ckpts, pairs[:8], sizes.n_latents, sizes.k)

    def harvest(n_tokens: int) -> Callable[[], Any]:
        ids = text[: n_tokens // sizes.length]
        return lambda: hooks.stacked_activations(ckpts, ids)

    def evaluate(n_tokens: int) -> Callable[[], Any]:
        ids = text[: n_tokens // sizes.length]
        return lambda: ctt.evaluate(dictionary, ckpts, ids)

    trained = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder).requires_grad_(False)

    def effects_of(method: str) -> Callable[[int], Callable[[], Any]]:
        def make(n_pairs: int) -> Callable[[], Any]:
            some = pairs[[index % len(pairs) for index in range(n_pairs)]]
            return lambda: ctt.indirect_effects(crosscoder, trained, some, method)

        return make

    few = pairs[: 4 if shrink else 60]
    order = np.random.default_rng(0).permutation(crosscoder.n_latents).tolist()

    def ablate(passes: float) -> Callable[[], Any]:
        features = by_passes[passes]
        return lambda: ctt.indirect_effects(crosscoder, trained, few, "ablation", features=features)

    # of a random half, quarter ... of the latents: how many are active in a pair is counted
    by_passes = {}
    for share in (8, 4, 2, 1):
        some = order[: len(order) // share]
        found = ctt.indirect_effects(crosscoder, trained, few, "ablation", features=some)
        by_passes[float(found.n_nodes.mean() - 1)] = some

    parts = (1, 2, 4) if shrink else (4, 8, 16, 32)
    tokens = [sizes.length * sequences for sequences in parts]
    counts = [2, 4, 8] if shrink else [60, 120, 240, 480]
    step = "a training step"
    fixed = "products and passes over codes grow in proportion, calls do not"
    series = [
        Series("harvest", "tokens", tokens, harvest, "1", "each token the same"),
        Series(
            "evaluate",
            "tokens",
            tokens,
            evaluate,
            "at most 1",
            "each token the same, but zeros run for one sequence",
        ),
    ]
    grids = {
        "latents": ("n_latents", [512, 1024, 2048, 4096, 8192]),
        "checkpoints": ("n", [2, 4, 8, 16]),
        "width": ("d_model", [64, 128, 256, 512]),
        "batch": ("batch_size", [512, 1024, 2048, 4096]),
    }
    for along, (name, values) in grids.items():
        if shrink:
            values = values[:3]
        make = lambda size, name=name: training_step(**{name: size})  # noqa: E731
        series.append(Series(step, along, values, make, "at most 1", fixed))
    for method in ("ig", "atp", "ablation"):
        why = "each pair the same; a model this small takes as long to call as to run"
        series.append(Series(method, "pairs", counts, effects_of(method), "at most 1", why))
    why = "a pass for each; reading, and what comes before a change, do not grow"
    series.append(Series("ablation", "active latents", list(by_passes), ablate, "at most 1", why))
    return series


def growth(shrink: bool) -> dict[str, pd.DataFrame]:
    rows, points = [], []
    for series in all_series(shrink):
        times = measured(series, 1 if shrink else ROUNDS)
        exponent, error = slope(series.sizes, times)
        at_the_end = float(np.diff(np.log(times[-2:]))[0] / np.diff(np.log(series.sizes[-2:]))[0])
        print(f"{series.what} by {series.along}: {exponent:.2f} +- {error:.2f}", flush=True)
        about = {"what": series.what, "along": series.along}
        rows.append(
            {
                **about,
                "smallest": series.sizes[0],
                "largest": series.sizes[-1],
                "smallest_ms": times[0],
                "largest_ms": times[-1],
                "exponent": exponent,
                "at_the_end": at_the_end,
                "stderr": error,
                "expected": series.expected,
                "why": series.why,
            }
        )
        points += [
            {**about, "size": size, "ms": ms} for size, ms in zip(series.sizes, times, strict=True)
        ]
    return {"scaling": pd.DataFrame(rows), "scaling_points": pd.DataFrame(points)}


# ---- what a whole run costs


@dataclass(frozen=True)
class Run:
    """A run at the paper's settings: 100,000 steps of 4,096 tokens, each token read once.

    Attributes:
        model: a preset.
        n: checkpoints.
        n_latents: of the crosscoder; the paper's 16,384 are 8 d_model of Pythia-1B.
    """

    model: str
    n: int
    n_latents: int
    k: int = 200
    steps: int = 100_000
    batch_size: int = 4096
    pairs: int = 3000
    evaluated: int = 100_000
    length: int = 1024

    def __str__(self) -> str:
        return f"{self.model}, {self.n} checkpoints, {self.n_latents:,} latents"

    @property
    def config(self) -> Any:
        facts = dict(PRESETS[self.model].config)
        return AutoConfig.for_model(facts.pop("model_type"), **facts)

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_size

    def operations(self, first: int, last: int) -> float:
        """Of a token through some blocks: two a weight, and attention over the whole sequence."""
        config = self.config
        blocks = count_parameters(config, config.num_hidden_layers - 1)["blocks"]
        a_block = 2 * blocks / config.num_hidden_layers + 4 * self.length * config.hidden_size
        return (last - first) * a_block


MEASURED = Run("pythia-1b", 3, 16384)  # the shape that was measured
RUNS = [MEASURED, Run("pythia-6.9b", 3, 32768), Run("pythia-1b", 32, 16384)]


def whole_run(run: Run, found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Hours on one GPU, and bytes.

    Args:
        run: what is done.
        found: the tables `effects_gpu` and `training_gpu`.
    """
    gpu, steps = found["effects_gpu"], found["training_gpu"].query("precision == 'bf16'")
    rates = gpu.set_index(gpu["what"].str.split(",").str[0])["a_second"]
    step = steps.set_index("dead")["ms"][training.DEAD] / 1000
    passes = gpu.loc[gpu["unit"] == "passes", "done"].iloc[0] / effects.ABLATED / N  # a pair
    config, preset, theirs = run.config, PRESETS[run.model], MEASURED.config
    layer, n_layers, d = preset.layer, config.num_hidden_layers, config.hidden_size
    harvested = layer + 1, PRESETS[MEASURED.model].layer + 1
    # how much longer than where it was measured: by operations a token, and for all checkpoints
    below = run.operations(0, harvested[0]) / MEASURED.operations(0, harvested[1])
    above = run.operations(harvested[0], n_layers)
    above /= MEASURED.operations(harvested[1], theirs.num_hidden_layers)
    times = run.n / MEASURED.n
    products = times * d * run.n_latents / (theirs.hidden_size * MEASURED.n_latents)
    gradients = METHODS["ig"].cost.gradients
    hours = {
        "harvest": run.tokens / rates["harvest"] * times * below,
        "training": run.steps * step * products,
        "evaluate": run.evaluated / rates["evaluate"] * times * above,
        "IG": run.n * run.pairs * gradients / rates["IG"] * above,
        "exact ablation": run.n * run.pairs * passes
        / rates["exact ablation of all active latents"] * above,
    }  # fmt: skip
    basis = "measured" if run == MEASURED else "scaled"
    work = Work(
        tokens=run.tokens, steps=run.steps, batch_size=run.batch_size, n_latents=run.n_latents,
        k=run.k, keeps=False,
    )  # fmt: skip
    memory = count_memory(work, run.n, d, config.vocab_size, 2, n_layers - layer - 1, "cuda")
    each = 2 * count_parameters(config, layer)["all"]
    sizes = {
        "download": run.n * preset.file_bytes,
        "activation cache on disk": 2 * run.tokens * run.n * d,
        "crosscoder on disk": 4 * 2 * run.n * d * run.n_latents,
        "memory: one model": each,
        "memory: all models": run.n * each,
        "memory: training": memory["training"],
        "memory: stream": memory["activations"],
    }
    rows = [
        {"what": what, "amount": seconds / 3600, "unit": "GPU hours", "basis": basis}
        for what, seconds in hours.items()
    ]
    total = sum(hours.values()) / 3600
    rows.append({"what": "in all", "amount": total, "unit": "GPU hours", "basis": basis})
    rows += [
        {"what": what, "amount": size / 1e9, "unit": "GB", "basis": "counted"}
        for what, size in sizes.items()
    ]
    return pd.DataFrame([{"run": str(run), **row} for row in rows])


def whole_runs(results: Path) -> pd.DataFrame:
    """All of them, from the tables in a folder of results."""
    found = {name: pd.read_csv(results / f"{name}.csv") for name in ("effects_gpu", "training_gpu")}
    return pd.concat([whole_run(run, found) for run in RUNS], ignore_index=True)


def main(arguments: list[str] | None = None) -> dict[str, pd.DataFrame]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shrink", action="store_true", help="small sizes: to try the code")
    parser.add_argument(
        "--rates", type=Path, default=Path("benchmarks/results"), help="folder of the GPU's tables"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the results"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    told = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.scaling", *told])
    about = {"command": command, **report.machine()}
    begin = time.perf_counter()
    frames = growth(given.shrink)
    frames["scaling_runs"] = whole_runs(given.rates)
    about["seconds"] = round(time.perf_counter() - begin)
    report.publish(given.out, "scaling", frames, about)
    return frames


if __name__ == "__main__":
    main()
