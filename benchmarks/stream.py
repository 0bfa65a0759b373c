"""Activations: read, buffered, kept on disk, and trained on from there.

    python -m benchmarks.stream [--model pythia-14m ...] [--device cuda] [--only TABLE] [--shrink]

Models of true shape with random weights are made on the spot: nothing is downloaded. Times are at
one thread, and want a machine that does nothing else. Ratios are of ways in turns in
one process. `--shrink` runs the same code with small sizes.
"""

import argparse
import itertools
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import ctt_helpers as ctt
from benchmarks import estimates, report, training
from benchmarks.training import Shape, made, wait
from ctt_helpers import activations, hooks
from ctt_helpers.hooks import pick_device
from ctt_helpers.sources import checkpoints
from ctt_helpers.training import LOG_EVERY, _moved

ROUNDS = 3  # of all ways in turns
DTYPES = ("float32", "bfloat16")

TABLES = {
    "stream": (
        "Training steps (BatchTopK, as in the table training) on batches from memory, and from a "
        "cache on disk, one row for each size and source: milliseconds of a step with its batch, "
        "and how many times longer than from memory, round by round (on a CPU of the process's "
        "own time, and by the clock: clock_ratio). A round is half a buffer: "
        "reading is in it. warm: the files are in the system's own cache; cold: they are taken "
        "out of it before each round, so that the disk is read; kept: small enough to stay in "
        "memory once it has been read, as most of it has when it is measured. serve_ms: of a "
        "batch alone, with no step; added: how much longer that takes than from memory, as a "
        "share of a step from memory. It says the same as the ratio, with less noise."
    ),
    "stream_reading": (
        "What surrounds the models while a stream reads a text that does not stay in memory. "
        "overhead: seconds in the stream outside the models' passes, divided by those in them (on "
        "a CPU the process's own; the median of the rounds). "
        "Memory at the peak of the process, in 10^6 bytes, for a buffer of buffer_mb: of the "
        "stream (peak_mb), and of the bare passes over the same groups (passes_mb); buffers: "
        "their difference in buffers."
    ),
    "stream_build": (
        "Caches made: size and seconds as told before (`ActivationCache.size`, the reading of "
        "`ctt.estimate`) and as measured; ratio: told / measured. tokens_s: tokens a second, all "
        "checkpoints; overhead: seconds outside the models' passes, divided by those in them."
    ),
    "stream_loads": (
        "Three checkpoints of which one alone fits into memory: how often a checkpoint is loaded "
        "for so many training steps, and seconds in all."
    ),
}
ALL = list(TABLES)
# the same, measured on a GPU: tables of their own beside a CPU's
TABLES |= {f"{name}_gpu": f"On a GPU. {told}" for name, told in TABLES.items()}


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        shapes: of the crosscoders that are trained.
        tokens: of their text.
        buffer: of their streams.
        sequences, length: of the text that is read with models of true shape.
        read_buffer: of the stream that reads it.
        steps: of the training with checkpoints that do not fit together.
    """

    shapes: tuple[Shape, ...]
    tokens: int
    buffer: int
    sequences: int
    length: int
    read_buffer: int
    steps: int


CPU = Sizes(
    shapes=(Shape(64, 512, 16), Shape(128, 2048, 32), Shape(512, 4096, 32)),
    tokens=2**17,
    buffer=2**16,
    sequences=600,
    length=256,
    read_buffer=2**17,
    steps=40,
)
READ_BUFFERS = {"pythia-70m": 2**14}  # so that it takes no minutes
GPU = Sizes((training.PAPER,), 2**16, 2**15, 150, 1024, 2**17, 40)
SHRUNK = Sizes((Shape(16, 64, 4, batch_size=64),), 2000, 640, 24, 64, 256, 4)

# ---- training from memory and from disk


def one_block(d_model: int, device: str) -> ctt.Checkpoints:
    """Three random models of one block: they give activations of any width."""
    width = {"hidden_size": d_model, "num_hidden_layers": 1, "intermediate_size": d_model}
    with mock.patch.dict(estimates.SMALL, width):
        return estimates.random_checkpoints("pythia-14m", device, shrink=True)


def some_text(ckpts: ctt.Checkpoints, tokens: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = (-(-tokens // (length - 1)), length)
    return torch.randint(1, ckpts.suite.config.vocab_size, sizes, generator=generator)


def training_from(shape: Shape, sizes: Sizes, device: str, folder: Path) -> list[dict[str, Any]]:
    """Rows of the table `stream`."""
    ckpts = one_block(shape.d_model, device)
    text = some_text(ckpts, sizes.tokens, 128)
    given = {"batch_size": shape.batch_size, "buffer_tokens": sizes.buffer}
    caches = {}
    for dtype in DTYPES:
        caches[dtype] = ctt.ActivationCache.build(ckpts, text, folder / dtype, dtype)
    x = torch.cat(
        [
            torch.stack([caches["float32"].read(c, g) for c in range(3)], 1)
            for g in range(caches["float32"].n_groups)
        ]
    )
    streams = {"memory": ctt.TensorStream(x.to(device), **given)}
    for dtype, cache in caches.items():
        for state, keep_gb in {"warm": 0, "cold": 0, "kept": 2}.items():
            streams[f"{dtype}, {state}"] = cache.stream(device=device, keep_gb=keep_gb, **given)
    run, _ = made(shape, device, bf16=device.startswith("cuda"))
    batches = {name: stream.batches() for name, stream in streams.items()}
    per_round = streams["memory"].buffer_tokens // 2 // shape.batch_size
    step_ms = {name: [] for name in streams}
    wall_ms = {name: [] for name in streams}
    serve_ms = {name: [] for name in streams}
    clock = own_clock(device)
    for _ in range(ROUNDS + 1):  # the first is not counted: buffers are filled in it
        for name, served in batches.items():
            prepare_files(folder, name)
            own = clock()
            wall = taken(lambda s=served: steps(run, s, per_round), device)
            step_ms[name].append(1000 * (clock() - own) / per_round)
            wall_ms[name].append(1000 * wall / per_round)
        for name, served in batches.items():
            prepare_files(folder, name)
            served = itertools.islice(served, per_round)
            alone = taken(lambda s=served: list(map(len, s)), device, clock)
            serve_ms[name].append(1000 * alone / per_round)
    rows = []
    for name in streams:
        ratio = np.divide(step_ms[name], step_ms["memory"])[1:]
        added = np.subtract(serve_ms[name], serve_ms["memory"])
        rows.append(
            {
                "d_model": shape.d_model,
                "latents": shape.n_latents,
                "batch": shape.batch_size,
                "from": name,
                "ms": np.median(step_ms[name][1:]),
                "ratio": np.median(ratio),
                "clock_ratio": np.median(np.divide(wall_ms[name], wall_ms["memory"])[1:]),
                "serve_ms": np.median(serve_ms[name][1:]),
                "added": np.median(added[1:]) / np.median(step_ms["memory"][1:]),
                "batch_mb": shape.batch_size * 3 * shape.d_model * 4 / 1e6,
                "rounds": ROUNDS,
            }
        )
    return rows


def own_clock(device: str) -> Callable[[], float]:
    """What others do on this machine does not count, where nothing runs on another device."""
    return time.process_time if device == "cpu" else time.perf_counter


def steps(run: Any, served: Iterator[Tensor], count: int) -> None:
    for number in range(count):
        x = _moved(next(served), run.crosscoder.W_enc)
        training._note(run, x, number % LOG_EVERY)


def taken(
    work: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    begin = clock()
    work()
    wait(device)
    return clock() - begin


def prepare_files(folder: Path, name: str) -> None:
    """See to it that a cache's files are in the system's memory, or, for "cold", are not."""
    dtype, _, state = name.partition(", ")
    for path in (folder / dtype).rglob("*.safetensors"):
        with open(path, "rb") as file:
            if state == "warm":
                while file.read(2**24):
                    pass
            elif hasattr(os, "posix_fadvise"):
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---- reading with models


@contextmanager
def passes_timed(
    device: str, clock: Callable[[], float] = time.perf_counter
) -> Iterator[list[float]]:
    """Seconds of each pass through a model, while this is open."""
    seconds, real = [], hooks.residual_stream

    def timed(*given: Any, **named: Any) -> Tensor:
        begin = clock()
        found = real(*given, **named)
        wait(device)
        seconds.append(clock() - begin)
        return found

    with mock.patch.object(hooks, "residual_stream", timed):
        yield seconds


def reading(ckpts: ctt.Checkpoints, sizes: Sizes, device: str) -> dict[str, Any]:
    """The row of the table `stream_reading`."""
    text = some_text(ckpts, sizes.sequences * (sizes.length - 1), sizes.length)
    given = {"batch_size": 1024 if sizes is not SHRUNK else 64, "buffer_tokens": sizes.read_buffer}
    stream = ctt.ActivationStream(ckpts, text, cache_gb=0, **given)
    groups = range(-(-stream._most_rows() // stream.group_tokens))
    # the buffer is filled, and filled up once
    n_batches = 2 * (stream.buffer_tokens // 2 // stream.batch_size)

    def serve() -> None:
        for _ in itertools.islice(stream.batches(), n_batches):
            pass

    def bare() -> None:
        for model in ckpts:
            for group in groups:
                activations.read_group(model, text, group, stream.sequences_per_group)

    bare()  # the first pass pays for what is set up once
    assert ckpts.together  # judged once, too
    clock = own_clock(device)
    rounds = []
    for _ in range(ROUNDS):
        with passes_timed(device, clock) as seconds:
            in_all = taken(serve, device, clock)
        rounds.append((in_all / sum(seconds) - 1, in_all))
    overhead, in_all = np.median(rounds, axis=0)
    buffer = stream.buffer_tokens * len(ckpts) * ckpts.d_model * 4
    peak = estimates.measure_peak(serve, device)
    passes = estimates.measure_peak(bare, device)
    return {
        "model": ckpts.suite.name,
        "tokens": n_batches * stream.batch_size,
        "tokens_s": len(ckpts) * n_batches * stream.batch_size / in_all,
        "overhead": overhead,
        "rounds": ROUNDS,
        "buffer_mb": buffer / 1e6,
        "peak_mb": peak / 1e6,
        "passes_mb": passes / 1e6,
        "buffers": (peak - passes) / buffer,
    }


def building(
    ckpts: ctt.Checkpoints, sizes: Sizes, dtype: str, device: str, folder: Path
) -> dict[str, Any]:
    """One row of the table `stream_build`."""
    text = some_text(ckpts, sizes.sequences * (sizes.length - 1) // 4, sizes.length)
    told = ctt.estimate(ckpts, tokens=text.numel(), text_length=sizes.length).work["reading"]
    with passes_timed(device) as seconds:
        found = taken(lambda: ctt.ActivationCache.build(ckpts, text, folder, dtype), device)
    cache = ctt.ActivationCache.open(folder)
    size = ctt.ActivationCache.size(ckpts, text, dtype)
    tokens = len(ckpts) * cache.n_tokens
    return {
        "model": ckpts.suite.name,
        "dtype": dtype,
        "tokens": cache.n_tokens,
        "told_mb": size / 1e6,
        "mb": cache.n_bytes / 1e6,
        "ratio_mb": size / cache.n_bytes,
        "told_s": told,
        "seconds": found,
        "ratio_s": told / found,
        "tokens_s": tokens / found,
        "mb_s": cache.n_bytes / found / 1e6,
        "overhead": found / sum(seconds) - 1,
    }


# ---- checkpoints that do not fit together


def loads(sizes: Sizes, device: str, folder: Path) -> list[dict[str, Any]]:
    """Rows of the table `stream_loads`: the embedded suite, as if one alone had room."""
    suite = ctt.load_suite("tiny")
    text = suite.text(20_000 if sizes is SHRUNK else 140_000)
    given = {"batch_size": 1024, "buffer_tokens": 2**13}
    rows = []
    for way in ("stream", "cache"):
        ckpts = suite.checkpoints(suite.default_triplet, device=device)
        ckpts.__dict__["together"] = False
        found, real = [], checkpoints.load_checkpoint

        def load(*arguments: Any, found: list = found, real: Callable = real) -> Any:
            found.append(arguments[1])
            return real(*arguments)

        def train(way: str = way, ckpts: ctt.Checkpoints = ckpts) -> None:
            if way == "stream":
                stream = ctt.ActivationStream(ckpts, text, cache_gb=0, **given)
            else:
                cache = ctt.ActivationCache.build(ckpts, text, folder)
                stream = cache.stream(device=device, **given)
            crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, 512, k=12)
            ctt.train(crosscoder, stream, ctt.TrainConfig(steps=sizes.steps), device=device)

        with mock.patch.object(checkpoints, "load_checkpoint", load):
            seconds = taken(train, device)
        rows.append(
            {
                "way": way,
                "steps": sizes.steps,
                "buffer": given["buffer_tokens"],
                "loads": len(found),
                "most_of_one": max(map(found.count, found)),
                "seconds": seconds,
            }
        )
    return rows


# ---- all of it


def run(names: list[str], models: list[str], sizes: Sizes, device: str) -> dict[str, pd.DataFrame]:
    frames = {}
    with tempfile.TemporaryDirectory(prefix="ctt-stream-") as temporary:
        folder = Path(temporary)
        if "stream" in names:
            rows = []
            for shape in sizes.shapes:
                print(f"training: {shape}", flush=True)
                rows += training_from(shape, sizes, device, folder / "training")
                shutil.rmtree(folder / "training")
            frames["stream"] = pd.DataFrame(rows)
        if "stream_reading" in names:
            rows = []
            for model in models:
                print(f"reading: {model}", flush=True)
                ckpts = estimates.random_checkpoints(model, device, sizes is SHRUNK)
                size = READ_BUFFERS.get(model) if sizes is CPU else None
                smaller = replace(sizes, read_buffer=size) if size else sizes
                rows.append(reading(ckpts, smaller, device))
            frames["stream_reading"] = pd.DataFrame(rows)
        if "stream_build" in names:
            print("building", flush=True)
            ckpts = estimates.random_checkpoints(models[0], device, sizes is SHRUNK)
            rows = [building(ckpts, sizes, d, device, folder / f"built {d}") for d in DTYPES]
            frames["stream_build"] = pd.DataFrame(rows)
        if "stream_loads" in names:
            print("loads", flush=True)
            frames["stream_loads"] = pd.DataFrame(loads(sizes, device, folder / "loads"))
    return frames


def main(arguments: list[str] | None = None) -> dict[str, pd.DataFrame]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", choices=estimates.PRESETS, help="to read with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=ALL, help="these tables alone")
    parser.add_argument("--shrink", action="store_true", help="small sizes: to try the code")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the results"
    )
    given = parser.parse_args(arguments)
    device = pick_device(given.device)
    on_gpu = device.startswith("cuda")
    torch.set_num_threads(1)
    told = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.stream", *told])
    about = {"command": command, **report.machine(), "device": device}
    if on_gpu:
        about["gpu"] = torch.cuda.get_device_name()
    sizes = SHRUNK if given.shrink else GPU if on_gpu else CPU
    models = given.model or (["pythia-1b"] if on_gpu else ["pythia-14m", "pythia-70m"])
    begin = time.perf_counter()
    frames = run(given.only or ALL, models, sizes, device)
    about["seconds"] = round(time.perf_counter() - begin)
    if on_gpu:
        frames = {f"{name}_gpu": frame for name, frame in frames.items()}
    report.publish(given.out, "stream_gpu" if on_gpu else "stream", frames, about)
    return frames


if __name__ == "__main__":
    main()
