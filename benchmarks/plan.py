"""What to use where, and a plan for Pythia-12B, 154 checkpoints and ten languages, in figures.

    python -m benchmarks.plan

Nothing is measured: amounts times rates that other benchmarks measured, and sizes that are counted.
The tables go into docs/scale.md, too, between its marks.
"""

import argparse
import math
import shlex
import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

import ctt_helpers as ctt
from benchmarks import report
from benchmarks.estimates import N
from benchmarks.scaling import MEASURED, Run, whole_run
from ctt_helpers.files import atomic_path, read_text
from ctt_helpers.notebook.forecast import Work, count_memory
from ctt_helpers.notebook.parameters import PROFILES
from ctt_helpers.sources.machine import count_parameters
from ctt_helpers.sources.presets import PRESETS

PAGE = Path("docs/scale.md")
GPU = 141e9  # bytes of an H200's memory, as its maker gives them
USED = 0.9  # of it: the rest is for what is not counted
GPUS = 8  # of a node
LINK = 1e9 / 8  # bytes a second of a network of 1 Gbit/s

MODEL, WIDTHS = "pythia-12b", 8  # latents a dimension, as the paper's
LANGUAGES, PAIRS, LENGTH = 10, 1000, 30  # pairs a language, and tokens of a pair
SHORT = 7  # tokens of a pair where the rates of effects were measured
COMPARED = 100_000  # tokens by which neighbouring checkpoints are compared
SEEDS = 5
FEW = 13  # checkpoints of notebook 08
SMALL_BUFFER = 2**13  # tokens, two batches, where the usual 2**17 do not fit

TABLES = {
    "plan": (
        f"Pythia-12B's {len(PRESETS[MODEL].tokens)} checkpoints and ten languages of "
        f"{PAIRS:,} pairs of {LENGTH} tokens, on NVIDIA H200s; a crosscoder has the paper's "
        "100,000 steps of 4,096 tokens and 8 latents a dimension. basis: scaled (a rate measured "
        "with Pythia-1B's shape, times operations here over operations there: nothing of this "
        "shape was run), counted (sizes; 10^9 bytes)."
    ),
    "plan_places": (
        "What a place is good for, with figures. basis: measured; rates measured (times amounts), "
        "scaled, counted (sizes), shared (hours of one GPU over the GPUs there are: the least that "
        "it can take, for what they tell each other is not in it, and was not measured on GPUs)."
    ),
}


@dataclass(frozen=True)
class Held:
    """Bytes that a run takes on a GPU: of training, which GPUs can share; the rest, on each.

    Attributes:
        training: weights, gradients, moments and codes of the crosscoder.
        rest: the stream's buffer, and one model up to its layer.
    """

    training: float
    rest: float

    @property
    def gpus(self) -> int:
        """How many GPUs must share the latents for their part to fit; 0: however many, never."""
        free = USED * GPU - self.rest
        return math.ceil(self.training / free) if free > 0 else 0


def held(run: Run, buffer_tokens: int) -> Held:
    """What a run takes."""
    config, preset = run.config, PRESETS[run.model]
    work = Work(
        tokens=run.tokens, steps=run.steps, batch_size=run.batch_size, n_latents=run.n_latents,
        k=run.k, keeps=False, buffer_tokens=buffer_tokens,
    )  # fmt: skip
    above = config.num_hidden_layers - preset.layer - 1
    sizes = count_memory(work, run.n, config.hidden_size, config.vocab_size, 2, above, "cuda")
    return Held(sizes["training"], sizes["activations"] + _a_model(run.model))


@lru_cache
def _a_model(name: str) -> float:
    """Bytes of a model up to its layer, in half precision."""
    preset = PRESETS[name]
    return 2 * count_parameters(Run(name, 1, 1).config, preset.layer)["below"]


def most_checkpoints(run: Run, buffer_tokens: int) -> int:
    """How many checkpoints a crosscoder of this size may have on one GPU."""
    fits = (n for n in range(len(PRESETS[run.model].tokens), 0, -1)
            if held(replace(run, n=n), buffer_tokens).gpus == 1)  # fmt: skip
    return next(fits, 0)


# ---- the plan


def plan(results: Path) -> pd.DataFrame:
    """Each stage of it: GPU hours, bytes, GPUs."""
    found = {name: pd.read_csv(results / f"{name}.csv") for name in ("effects_gpu", "training_gpu")}
    preset = PRESETS[MODEL]
    config, n_all = Run(MODEL, 1, 1).config, len(preset.tokens)
    three = Run(MODEL, 3, WIDTHS * config.hidden_size, pairs=LANGUAGES * PAIRS)
    n_layers, read = config.num_hidden_layers, preset.layer + 1
    rows: list[dict[str, Any]] = []

    def add(stage: str, what: str, amount: float, unit: str, basis: str) -> None:
        rows.append({"stage": stage, "what": what, "amount": amount, "unit": unit, "basis": basis})

    first = f"1. all {n_all} checkpoints, without a crosscoder"
    passes = n_all * LANGUAGES * PAIRS * LENGTH * three.operations(0, n_layers)
    add(first, "accuracies", passes / _short_rate(results) / 3600, "GPU hours", "scaled")
    compared = n_all * COMPARED * three.operations(0, read)
    add(first, "similarities", compared / _long_rate(found) / 3600, "GPU hours", "scaled")
    download = n_all * preset.file_bytes
    add(first, "download", download / 1e9, "GB", "counted")
    add(first, "download at 1 Gbit/s", download / LINK / 3600, "hours", "counted")
    add(first, "disk, one checkpoint after the other", preset.file_bytes / 1e9, "GB", "counted")

    for number, (run, buffer) in enumerate(
        ((three, 2**17), (replace(three, n=FEW), 2**17), (replace(three, n=n_all), SMALL_BUFFER)), 2
    ):
        stage = f"{number}. a crosscoder of {run.n} checkpoints, {run.n_latents:,} latents"
        whole = whole_run(run, found).set_index("what")["amount"]
        for what in ("harvest", "training", "evaluate"):
            add(stage, what, whole[what], "GPU hours", "scaled")
        longer = LENGTH / SHORT
        add(stage, "effects, IG, all languages", whole["IG"] * longer, "GPU hours", "scaled")
        if run == three:
            # as many latents more are active as tokens, and each pass has as many tokens more
            exact = whole["exact ablation"] * longer**2
            add(stage, "effects, exact ablation, at most", exact, "GPU hours", "scaled")
        add(stage, "download", whole["download"], "GB", "counted")
        add(stage, "activation cache on disk", whole["activation cache on disk"], "GB", "counted")
        add(stage, "crosscoder on disk", whole["crosscoder on disk"], "GB", "counted")
        memory = held(run, buffer)
        add(stage, "memory: training, to be shared", memory.training / 1e9, "GB", "counted")
        rest = f"memory: one model, a buffer of {buffer:,} tokens"
        add(stage, rest, memory.rest / 1e9, "GB", "counted")
        add(stage, "GPUs that share the latents, at least", memory.gpus, "GPUs", "counted")
    most = most_checkpoints(three, SMALL_BUFFER)
    last = f"one GPU, a buffer of {SMALL_BUFFER:,} tokens, {three.n_latents:,} latents"
    add(last, "checkpoints at most", most, "checkpoints", "counted")
    return pd.DataFrame(rows)


def _long_rate(found: dict[str, pd.DataFrame]) -> float:
    """Operations a second of reading text, as measured."""
    gpu = found["effects_gpu"]
    rate = gpu[gpu["what"].str.startswith("harvest")]["a_second"].iloc[0]
    return rate * MEASURED.n * MEASURED.operations(0, PRESETS[MEASURED.model].layer + 1)


def _short_rate(results: Path) -> float:
    """Operations a second of accuracies on short pairs, as measured on the embedded suite's."""
    table = pd.read_csv(results / "estimates_paper.csv").set_index("what")
    timed = ctt.load_suite("tiny").pairs("agreement/pp", n=240).attention_mask.sum().item()
    n_layers = MEASURED.config.num_hidden_layers
    return timed * N * MEASURED.operations(0, n_layers) / table["seconds"]["accuracy"]


# ---- places


def places(results: Path) -> pd.DataFrame:
    """What each place takes for what it is good for."""
    notebooks = pd.read_csv(results / "notebooks.csv").set_index("notebook")["seconds"]
    reading = pd.read_csv(results / "stream_reading.csv").iloc[0]
    runs = pd.read_csv(results / "scaling_runs.csv").set_index(["run", "what"])["amount"]
    rows: list[dict[str, Any]] = []

    def add(place: str, what: str, amount: float, unit: str, basis: str) -> None:
        rows.append({"place": place, "what": what, "amount": amount, "unit": unit, "basis": basis})

    laptop = "laptop, two cores"
    together = notebooks[notebooks.index.str.startswith("all")].iloc[0]
    add(laptop, "all notebooks on the embedded suite", together / 60, "minutes", "measured")
    tokens = PROFILES["colab"]["03"]["n_tokens"]
    add(laptop, f"reading {tokens:,} tokens at three checkpoints of {reading['model']}",
        3 * tokens / reading["tokens_s"] / 60, "minutes", "rates measured")  # fmt: skip

    colab, values = "Colab, a GPU of 16 GB", PROFILES["colab"]["03"]
    name = PROFILES["colab"]["*"]["model"]
    run = Run(name, 3, values["n_latents"], values["k"], values["steps"], values["batch_size"])
    config, preset = run.config, PRESETS[name]
    work = Work(
        tokens=values["n_tokens"], steps=run.steps, batch_size=run.batch_size, k=run.k,
        n_latents=run.n_latents, evaluated=values["n_eval_tokens"], keeps=False,
    )  # fmt: skip
    above = config.num_hidden_layers - preset.layer - 1
    memory = count_memory(work, 3, config.hidden_size, config.vocab_size, 2, above, "cuda")
    models = 3 * 2 * count_parameters(config, preset.layer)["all"]
    add(colab, f"{name}, a triplet: memory", (sum(memory.values()) + models) / 1e9, "GB", "counted")
    add(colab, f"{name}, a triplet: download", 3 * preset.file_bytes / 1e9, "GB", "counted")

    whole, large = str(MEASURED), next(r for r in runs.index.unique("run") if "6.9b" in r)
    for name_, basis in ((whole, "rates measured"), (large, "scaled")):
        place = "one GPU, an H200"
        add(place, f"{name_}: in all", runs[name_, "in all"], "hours", basis)
        parts = ("training", "stream", "all models")
        memory = sum(runs[name_, f"memory: {part}"] for part in parts)
        add(place, f"{name_}: memory", memory, "GB", "counted")
        add(place, f"{name_}: download", runs[name_, "download"], "GB", "counted")
    add(f"one node of {GPUS} H200s", f"{large}: in all", runs[large, "in all"] / GPUS, "hours",
        "shared")  # fmt: skip
    add("a cluster", f"{SEEDS} seeds of {whole}: in all", SEEDS * runs[whole, "in all"],
        "GPU hours", "rates measured")  # fmt: skip
    return pd.DataFrame(rows)


# ---- the page


def with_tables(page: str, frames: dict[str, pd.DataFrame]) -> str:
    """The page with these tables between its marks."""
    for name, frame in frames.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = f"{before}{begin}\n{markdown(frame)}\n{end}{after}"
    return page


def markdown(frame: pd.DataFrame) -> str:
    """A table whose first column is said once."""
    lines = [f"| {frame.columns[0]} | what | | basis |", "|---|---|---:|---|"]
    last = None
    for where, what, amount, unit, basis in frame.itertuples(index=False):
        shown = "" if where == last else where
        lines.append(f"| {shown} | {what} | {_amount(amount, unit)} | {basis} |")
        last = where
    return "\n".join(lines) + "\n"


def _amount(amount: float, unit: str) -> str:
    if unit == "GB" and amount >= 1000:
        amount, unit = amount / 1000, "TB"
    if unit in ("GPUs", "checkpoints"):
        return f"{amount:,.0f}"
    digits = max(0, 1 - math.floor(math.log10(amount)))
    return f"{amount:,.{digits}f} {unit}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    told = sys.argv[1:] if arguments is None else arguments
    about = {"command": shlex.join(["python", "-m", "benchmarks.plan", *told]), **report.machine()}
    begin = time.perf_counter()
    frames = {"plan": plan(given.out), "plan_places": places(given.out)}
    about["seconds"] = round(time.perf_counter() - begin)
    report.publish(given.out, "plan", frames, about)
    page = with_tables(read_text(given.page), frames)
    with atomic_path(given.page) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
