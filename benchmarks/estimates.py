"""Estimates against measurements: time and memory of everything that takes long.

    python -m benchmarks.estimates [--model pythia-70m ...] [--only stream ...] [--device cuda]
                                   [--paper] [--shrink]

Models of true shape with random weights are made on the spot: nothing is downloaded. `--paper`, for
a GPU: three models of Pythia-1B's shape, a crosscoder of the paper's (16,384 latents, batches of
4,096, products in bfloat16), effects over all subject-verb pairs of BLiMP where $CTT_SHARED or
../shared holds them. `--shrink` runs the same code with small sizes.
"""

import argparse
import ctypes
import gc
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import ctt_helpers as ctt
from benchmarks import report
from ctt_helpers.files import read_json
from ctt_helpers.hooks import HookedModel, at_least_float32, pick_device, residual_stream
from ctt_helpers.notebook import forecast
from ctt_helpers.notebook.forecast import GROUP, Work, count_memory, count_seconds, measure_speeds
from ctt_helpers.pairs import make_pairs
from ctt_helpers.sources.machine import pick_dtype
from ctt_helpers.sources.presets import BLIMP_AGREEMENT, PRESETS
from ctt_helpers.sources.published import published_rows

N = 3  # checkpoints
ROUNDS = 3  # of estimate and measurement in turns
IG_TOLERANCE = 0.05


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        sequences: of text that are read.
        length: tokens of each.
        pairs: of accuracy and AtP.
        ablated: pairs of exact ablation and IG.
        n_latents, k: of the crosscoder.
        batch_size, steps: of its training.
    """

    sequences: int
    length: int
    pairs: int
    ablated: int
    n_latents: int
    k: int
    batch_size: int
    steps: int


SIZES = {
    # a CPU's minutes
    "cpu": Sizes(
        sequences=8,
        length=1024,
        pairs=64,
        ablated=8,
        n_latents=2048,
        k=32,
        batch_size=1024,
        steps=8,
    ),
    # a GPU's minutes
    "paper": Sizes(
        sequences=256,
        length=1024,
        pairs=4000,
        ablated=64,
        n_latents=16384,
        k=200,
        batch_size=4096,
        steps=100,
    ),
    # a test's seconds
    "shrunk": Sizes(
        sequences=2, length=128, pairs=8, ablated=2, n_latents=64, k=4, batch_size=128, steps=3
    ),
}
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}

_A_ROW = (
    "One row for each model and piece of work: median seconds, the estimate that `ctt.estimate` "
    "gives beforehand, and the estimate divided by the measurement (ratio; 1: right); memory at "
    "the peak beside the models, measured and estimated, in 10^6 bytes, and their ratio, which "
    "means something from 50 on: below it is what the process does otherwise. On a CPU that is "
    "what the process holds, with the holes of its heap; tensors_mb, counted_mb and tensors_ratio "
    "are of the tensors alone, as torch gives them out."
)
TABLES = {
    "estimates": f"{_A_ROW} Models of true shape with random weights, {N} checkpoints.",
    "estimates_paper": f"{_A_ROW} The paper's sizes on a GPU, {N} checkpoints.",
}

# ---- what is worked on


def random_checkpoints(name: str, device: str, shrink: bool = False) -> ctt.Checkpoints:
    """Three models of a preset's shape, each with a seed of its own.

    The tokenizer is that of the embedded suite.
    """
    preset = PRESETS[name]
    facts = dict(preset.config)
    model_type = facts.pop("model_type")
    config = AutoConfig.for_model(model_type, **facts | (SMALL if shrink else {}))
    dtype = pick_dtype("auto", device)
    layer = min(preset.layer, config.num_hidden_layers // 2)
    revisions = [f"seed{seed}" for seed in range(N)]
    suite = ctt.Suite(
        name=f"{name}'s shape",
        source=Path("."),
        revisions=revisions,
        tokens=dict.fromkeys(revisions),
        default_layer=layer,
        default_triplet=revisions,
    )
    suite.config = config
    suite.tokenizer = ctt.load_suite("tiny").tokenizer
    ckpts = ctt.Checkpoints(suite, revisions, layer, device, dtype)
    for seed, revision in enumerate(revisions):
        torch.manual_seed(seed)
        with torch.device(device):  # a billion random numbers take a GPU no time
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        # as if they had been loaded: there are no files that they could be loaded from
        ckpts._loaded[revision] = HookedModel(model, suite.tokenizer, layer, revision)
        ckpts._fingerprints[revision] = revision
    return ckpts


def some_pairs(ckpts: ctt.Checkpoints, n: int) -> ctt.MinimalPairs:
    """BLiMP's subject-verb pairs where their files are, else those of the embedded suite."""
    folder = Path(os.environ.get("CTT_SHARED", "../shared")) / "data"
    if not (folder / "blimp").is_dir():
        return ctt.load_suite("tiny").pairs("agreement/pp", n=n)
    words = AutoTokenizer.from_pretrained(
        str(folder / "gpt-neox-tokenizer"), bos_token="<|endoftext|>", trust_remote_code=False
    )
    ckpts.suite.tokenizer = words
    for model in ckpts:
        model.tokenizer = words
    rows = []
    for name in BLIMP_AGREEMENT:
        rows += published_rows(f"blimp/{name}", folder / "blimp")
    return make_pairs(rows, words, name="blimp").sample(n)


def lengths_of(pairs: ctt.MinimalPairs) -> dict[str, float]:
    """How long pairs are, as `Work` takes it."""
    lengths = pairs.answer_position + 1
    return {
        "length": pairs.input_ids.shape[1],
        "mean_length": float(lengths.float().mean()),
        "lengths": len(lengths.unique()),
    }


@dataclass
class Task:
    """A piece of work.

    Attributes:
        what: its name.
        work: the same, as the forecast counts it.
        run: does it.
        trains: the crosscoder's weights and moments are part of its memory; otherwise the
            crosscoder is there already.
    """

    what: str
    work: Work
    run: Callable[[], Any]
    trains: bool = True


def tasks(ckpts: ctt.Checkpoints, sizes: Sizes, bf16: bool) -> list[Task]:
    """Everything that takes long, on these checkpoints."""
    device = ckpts.device
    code = {"n_latents": sizes.n_latents, "k": sizes.k}
    vocabulary = ckpts.suite.config.vocab_size
    text = torch.randint(1, vocabulary, (sizes.sequences, sizes.length))
    to_evaluate = text[: max(1, sizes.sequences // 8)]
    pairs = some_pairs(ckpts, sizes.pairs)
    few = pairs[: sizes.ablated]
    many_of, few_of = lengths_of(pairs), lengths_of(few)

    # trained a little, so that it has a threshold: about k latents are active in a token
    crosscoder = ctt.Crosscoder(N, ckpts.d_model, **code).to(device)
    x = next(ctt.ActivationStream(ckpts, text, batch_size=sizes.batch_size).batches())
    stream = ctt.TensorStream(x, sizes.batch_size, source={"random": True})
    config = ctt.TrainConfig(steps=sizes.steps, bf16=bf16)
    ctt.train(crosscoder, stream, config, device=device)
    crosscoder.source = {}  # it may be used with any checkpoints

    def read() -> None:
        # in groups, as a stream reads them, but all of the text
        for model in ckpts:
            for ids in text.split(max(1, GROUP // sizes.length)):
                at_least_float32(residual_stream(model, ids))

    def accuracies() -> None:
        for model in ckpts:
            ctt.accuracy(model, pairs)

    def train() -> None:
        ctt.train(ctt.Crosscoder(N, ckpts.d_model, **code), stream, config, device=device)

    # random models have latents active in other numbers than the forecast would guess, and pieces
    # of the line that are halved or not
    exact = ctt.indirect_effects(crosscoder, ckpts, few, "ablation")
    active = round(exact.n_nodes.mean() - 1)

    def integrate() -> ctt.Effects:
        return ctt.indirect_effects(crosscoder, ckpts, few, "ig", tol=IG_TOLERANCE)

    gradients = float(integrate().n_nodes.mean())

    # half a buffer is given out before it is filled up again: there and once more
    per_group = 2
    filled = ctt.ActivationStream(
        ckpts,
        text,
        sizes.batch_size,
        sequences_per_group=per_group,
        buffer_tokens=text.numel() // 2,
        cache_gb=0,
    )
    served = filled.buffer_tokens // 2 // filled.batch_size + 1

    def fill() -> None:
        for _ in zip(range(served), filled.batches(), strict=False):
            pass

    return [
        Task(what="reading", work=Work(tokens=text.numel(), text_length=sizes.length), run=read),
        Task(
            what="stream",
            work=Work(
                tokens=_tokens_read(filled, served),
                steps=1,
                batch_size=sizes.batch_size,
                text_length=sizes.length,
                buffer_tokens=filled.buffer_tokens,
                group_tokens=per_group * sizes.length,
                keeps=False,
            ),
            run=fill,
            trains=False,
        ),
        Task(what="accuracy", work=Work(pairs={"accuracy": len(pairs)}, **many_of), run=accuracies),
        Task(
            what="effects, atp",
            work=Work(pairs={"atp": len(pairs)}, **many_of, **code),
            run=lambda: ctt.indirect_effects(crosscoder, ckpts, pairs, "atp"),
            trains=False,
        ),
        Task(
            what="effects, ig",
            work=Work(pairs={"ig": len(few)}, **few_of, active=active, gradients=gradients, **code),
            run=integrate,
            trains=False,
        ),
        Task(
            what="effects, ablation",
            work=Work(pairs={"ablation": len(few)}, **few_of, active=active, **code),
            run=lambda: ctt.indirect_effects(crosscoder, ckpts, few, "ablation"),
            trains=False,
        ),
        Task(
            what="evaluate",
            work=Work(evaluated=to_evaluate.numel(), text_length=sizes.length, **code),
            run=lambda: ctt.evaluate(crosscoder, ckpts, to_evaluate),
            trains=False,
        ),
        Task(
            what="training",
            work=Work(steps=sizes.steps, batch_size=sizes.batch_size, bf16=bf16, **code),
            run=train,
        ),
    ]


def _tokens_read(stream: ctt.ActivationStream, batches: int) -> int:
    """By going through so many batches: counted, not worked out, as a buffer is of whole groups."""
    read, length = [], stream.text.shape[1]
    real = stream._fresh

    def counted(groups: Sequence[int]) -> Iterator[tuple]:
        # first tokens go through the models, too
        read.extend(stream._group_size(group) * length // (length - 1) for group in groups)
        return real(groups)

    stream._fresh = counted
    for _ in zip(range(batches), stream.batches(), strict=False):
        pass
    stream._fresh = real
    return sum(read)


# ---- estimate and measurement


def measure(run: Callable[[], Any], device: str) -> float:
    """Seconds that a call takes, by the forecast's clock."""
    begin = forecast.clock()
    run()
    return forecast.clock() - begin


def measure_peak(run: Callable[[], Any], device: str) -> float:
    """Bytes at the peak of a call, beyond what was there before.

    On a CPU those of the process; NaN where it is not Linux.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
    reset.write_text("5")  # the peak counts from now on
    before = _peak()
    run()
    return _peak() - before


def measure_tensors(run: Callable[[], Any]) -> float:
    """Bytes of a CPU's tensors at the peak of a call, beyond what was there before.

    All that torch takes and gives back is added up, as it comes.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return float(np.cumsum([size for _, size in changes]).max())


def _peak() -> float:
    """The largest number of bytes that this process has had in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * float(line.split()[1])
    return float("nan")


def told_memory(task: Task, ckpts: ctt.Checkpoints) -> float:
    """Bytes that a piece of work takes at its peak, as they are foretold."""
    config = ckpts.suite.config
    memory = count_memory(
        task.work,
        N,
        ckpts.d_model,
        config.vocab_size,
        ckpts.dtype.itemsize,
        above=config.num_hidden_layers - ckpts.layer - 1,
        device=ckpts.device,
    )
    if not task.trains:
        del memory["training"]
    return sum(memory.values())


def compare(
    ckpts: ctt.Checkpoints, sizes: Sizes, bf16: bool = False, only: Sequence[str] | None = None
) -> pd.DataFrame:
    """One row a piece of work: estimate and measurement, taken in turns, medians of the rounds."""
    config, device = ckpts.suite.config, ckpts.device
    rows = []
    for task in tasks(ckpts, sizes, bf16):
        if only and task.what not in only:
            continue
        print(f"{ckpts.suite.name}: {task.what}", flush=True)
        task.run()  # the first time pays for what is set up once
        estimated, measured = [], []
        for _ in range(ROUNDS):
            speeds = measure_speeds(config, task.work, N, device, ckpts.dtype)
            parts = count_seconds(task.work, speeds, N, ckpts.layer, config.num_hidden_layers)
            estimated.append(sum(parts.values()))
            measured.append(measure(task.run, device))
        peak = measure_peak(task.run, device)
        tensors = peak if device.startswith("cuda") else measure_tensors(task.run)
        memory = told_memory(task, ckpts)
        with mock.patch.object(forecast, "HOLES", 0):
            counted = told_memory(task, ckpts)
        rows.append(
            {
                "model": ckpts.suite.name,
                "what": task.what,
                "seconds": np.median(measured),
                "estimated": np.median(estimated),
                "ratio": np.median(estimated) / np.median(measured),
                "peak_mb": peak / 1e6,
                "estimated_mb": memory / 1e6,
                "memory_ratio": memory / peak,
                "tensors_mb": tensors / 1e6,
                "counted_mb": counted / 1e6,
                "tensors_ratio": counted / tensors,
            }
        )
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.estimates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=["pythia-14m", "pythia-70m", "pythia-160m"],
        choices=PRESETS,
        help="whose shapes to take",
    )
    parser.add_argument("--only", nargs="+", help="these pieces of work, such as stream")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--paper", action="store_true", help="the paper's shape: for a GPU")
    parser.add_argument("--shrink", action="store_true", help="small sizes: to try the code")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the results"
    )
    given = parser.parse_args(arguments)
    device = pick_device(given.device)
    if given.paper and device == "cpu" and not given.shrink:
        parser.error("--paper needs a GPU (it would take hours here); add --shrink to try it.")
    clock = forecast.clock
    if device == "cpu":
        torch.set_num_threads(1)
        clock = time.process_time  # what else runs on the machine does not count

    told = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.estimates", *told])
    about = {"command": command, **report.machine(), "device": device}
    if device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name()
    part = "estimates_paper" if given.paper else "estimates"
    sizes = SIZES["paper" if given.paper else "cpu"]
    if given.shrink:
        sizes = SIZES["shrunk"]

    begin = time.perf_counter()
    frames = []
    for name in ["pythia-1b"] if given.paper else given.model:
        ckpts = random_checkpoints(name, device, given.shrink)
        with mock.patch.object(forecast, "clock", clock):
            frames.append(compare(ckpts, sizes, given.paper, given.only))
    frame = pd.concat(frames)
    if given.only:  # what else was measured stays
        known, key = pd.read_csv(given.out / f"{part}.csv"), ["model", "what"]
        frame = frame.set_index(key).combine_first(known.set_index(key))
        frame = frame.loc[known.set_index(key).index, known.columns[2:]].reset_index()
        earlier = read_json(given.out / report.MACHINE)[part]
        about["command"] = f"{earlier['command']}; {command}"
    about["seconds"] = round(time.perf_counter() - begin)
    report.publish(given.out, part, {part: frame}, about)
    return frame


if __name__ == "__main__":
    main()
