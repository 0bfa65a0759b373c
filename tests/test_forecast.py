"""The forecast: what is counted, what is measured on small pieces, and whether the Colab profile
fits a T4.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jupytext
import numpy as np
import pandas as pd
import pytest
import torch
from models import random_suite, some_text

import ctt_helpers as ctt
from benchmarks import estimates as benchmark
from benchmarks.effects import ABLATED, PYTHIA_1B
from ctt_helpers.attribution import FROM_FIRST, METHODS
from ctt_helpers.notebook import forecast
from ctt_helpers.notebook.forecast import (
    NO_GPU,
    Forecast,
    Speeds,
    Work,
    costs,
    count_memory,
    count_seconds,
)
from ctt_helpers.notebook.parameters import PROFILES
from ctt_helpers.sources import checkpoints
from ctt_helpers.sources.machine import count_parameters
from ctt_helpers.training import TrainingRun

HALF, SINGLE, MEMORY = (
    65e12,
    8.1e12,
    300e9,
)  # a T4's peak: operations a second (data sheet), bytes a second
ACHIEVED = 0.35  # of the peak of operations: an assumption
T4_FREE, LAUNCH = (
    15e9,
    2e-3,
)  # bytes that tensors can have; seconds to start the kernels of a block, at least


def t4_speeds(config, work: Work, n: int, *_) -> Speeds:
    """Speeds of a T4 from counted operations and bytes: half precision for models, single for the
    crosscoder.
    """
    d, h = config.hidden_size, work.n_latents
    a_token = 2 * count_parameters(config, 0)["blocks"] / (HALF * ACHIEVED)
    attention = 4 * work.text_length * d / (HALF * ACHIEVED)
    product = 2 * n * d * h / (SINGLE * ACHIEVED)
    # five products; Adam reads and writes 7 numbers for each weight; some 30 passes over the codes
    step = (
        5 * work.batch_size * product + (2 * n * d * h * 28 + work.batch_size * h * 4 * 30) / MEMORY
    )
    logits = 2 * d * config.vocab_size / (HALF * ACHIEVED) + 20 * config.vocab_size / MEMORY
    return Speeds(
        text=a_token + attention,
        logits=logits,
        call=5e-3,
        pairs=128 * work.length * a_token + LAUNCH,
        chunk=512 * work.length * a_token + LAUNCH,
        gradient=3.0,
        product=product,
        step=step,
    )


def estimate_cell(root, number: str, ckpts, **given) -> Forecast:
    """What a notebook prints before its slow cell, run with the profile's values."""
    source = next((root / "notebooks" / "src").glob(f"{number}_*.py"))
    cells = jupytext.read(source, fmt="py:percent").cells
    (cell,) = [c for c in cells if "estimate" in c.metadata.get("tags", [])]
    (parameters,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    told, values = [], {"__annotations__": {}}
    exec(parameters.source, values)
    values |= PROFILES["colab"]["*"] | PROFILES["colab"][number] | given
    suite = SimpleNamespace(name="real", checkpoints=lambda *_, **__: ckpts)
    pairs = {t: [] for t in ctt.presets.BLIMP_AGREEMENT}
    values |= {"ctt": ctt, "ckpts": ckpts, "suite": suite, "pairs": pairs, "print": told.append}
    exec(cell.source, values)
    return told[0]


@pytest.mark.parametrize("model", ["pythia-160m", "pythia-410m"])
@pytest.mark.parametrize("number", ["02", "03", "04", "05", "06", "08", "09"])
def test_the_colab_profile_fits_a_t4(root, number, model, monkeypatch):
    monkeypatch.setattr(forecast, "measure_speeds", t4_speeds)
    for module in (forecast, checkpoints):
        monkeypatch.setattr(module, "free_memory", lambda device: T4_FREE)
    monkeypatch.setattr(forecast.hub, "cached", lambda *_: "no")
    profile = PROFILES["colab"]
    revisions = profile[number].get("revisions")
    if (number, model) == ("08", "pythia-410m"):
        revisions = revisions[::2]  # every second checkpoint: what the profiles' docstring asks for
    suite = ctt.load_suite(model)
    ckpts = suite.checkpoints(revisions or suite.default_triplet, device="cpu", dtype="float16")
    dictionary = SimpleNamespace(n_latents=profile["03"]["n_latents"], k=profile["03"]["k"])
    estimate = estimate_cell(root, number, ckpts, dictionary=dictionary)
    print(number, model, estimate)
    assert estimate.download == len(ckpts) * suite.preset.file_bytes
    assert sum(estimate.seconds.values()) <= 30 * 60 and estimate.peak <= T4_FREE
    assert (
        number == "02" or estimate.fits
    )  # batches go through all: one after another would be slow


def test_the_work_is_counted():
    speeds = Speeds(
        text=1, logits=10, call=0, pairs=128, chunk=512, gradient=2, product=100, step=1000
    )
    done = count_seconds(Work(tokens=5, steps=7), speeds, n=3, layer=1, n_layers=6)
    assert done == {"reading": 5 * 3 * 2, "training": 7000}
    done = count_seconds(Work(evaluated=6, text_length=3), speeds, 3, 1, 6)
    spliced = 2 + 1 / 2  # two sequences in a batch, of which one runs with zeros
    assert done == {"evaluating": 6 * (3 * (2 + spliced * (4 + 10)) + 200)}
    work = Work(pairs={"atp": 2, "ablation": 1, "accuracy": 1}, length=4, n_latents=50, k=10)
    done = count_seconds(work, speeds, 3, 1, 6)
    after_first = 3 / 4
    assert done["accuracy"] == 3 * (2 + 4)
    assert done["atp"] == 2 * (3 * (2 + 2 * 4 * after_first) + 5 * 4 * 100)
    passes = 2 + 30 * FROM_FIRST
    assert done["ablation"] == pytest.approx(3 * (2 + passes * 4 * after_first) + 3 * 4 * 100)
    assert work.active == 30
    # the last block's MLP runs at the answer alone
    shorter = count_seconds(work, replace(speeds, last=0.5), 3, 1, 6)
    assert shorter["atp"] == 2 * (3 * (2 + 2 * 3.5 * after_first) + 5 * 4 * 100)
    assert shorter["accuracy"] == done["accuracy"]
    found = replace(work, pairs={"ig": 2}, gradients=20)
    two, four = (
        count_seconds(w, speeds, 3, 1, 6)["ig"] for w in (found, replace(found, gradients=40))
    )
    assert four - two == pytest.approx(2 * 3 * 20 * 2 * 4 * after_first)
    assert Work(n_latents=20, k=10).active == 20
    with pytest.raises(ValueError, match="'pca' is not known; take reading, accuracy"):
        Work(pairs={"pca": 3})
    assert set(METHODS) <= set(costs())


@pytest.fixture(scope="module")
def counted():
    """What runs above the layer for each method, in whole pairs, a pair and checkpoint."""
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder).requires_grad_(False)
    pairs = suite.pairs("agreement/subj_rel")[:64]  # all of one length
    whole = len(ckpts) * pairs.input_ids.numel()
    real, found = ctt.hooks.hidden_above, {}
    list(ckpts)  # they are loaded, and their checks behind them
    for method in ("atp", "ig", "ig_near", "ig_own", "ablation"):
        ran = {True: 0, False: 0}

        def spy(model, x, mask=None, cache=None, ran=ran):
            ran[x.requires_grad] += x.shape[:2].numel()
            return real(model, x, mask, cache)

        with mock.patch.object(ctt.hooks, "hidden_above", spy):
            effects = ctt.indirect_effects(crosscoder, ckpts, pairs, method)
        active = len(effects.per_pair.values()) / len(ckpts) / len(pairs)
        found[method] = (ran[False] / whole, ran[True] / whole, active)
    return found, (pairs.input_ids.shape[1] - 1) / pairs.input_ids.shape[1]


@pytest.mark.parametrize("method", ["atp", "ig", "ig_near", "ig_own", "ablation"])
def test_costs_are_what_is_run(counted, method):
    found, after_first = counted
    passes, gradients, active = found[method]
    cost = costs()[method]
    told = after_first * (cost.passes + active * cost.passes_a_latent)
    # "ig" halves pieces or not, pair by pair
    room = {"ig": 0.3, "ablation": 0.15, "ig_own": 0.15}.get(method, 0.02)
    if method != "ig_own":  # beside whose gradients two passes are nothing
        assert passes == pytest.approx(told, rel=room, abs=0.05)
    told = after_first * (cost.gradients + active * cost.gradients_a_latent)
    assert gradients == pytest.approx(told, rel=room)


def test_memory_grows_with_what_takes_it():
    plain = Work(tokens=10**6, n_latents=1000, k=10, steps=10, keeps=False)
    base = count_memory(plain, 3, 64, 1000, 4)
    assert base["training"] > 16 * 2 * 3 * 64 * 1000  # weights, gradients and two moments
    assert base["activations"] > 4 * 2**17 * 3 * 64  # the buffer
    half = count_memory(replace(plain, buffer_tokens=2**16), 3, 64, 1000, 4)
    assert base["activations"] - half["activations"] == 4 * 2**16 * 3 * 64
    kept = count_memory(replace(plain, keeps=True), 3, 64, 1000, 4)
    assert kept["activations"] > 4 * 10**6 * 3 * 64 > base["activations"]  # all, in place of it
    more = count_memory(replace(plain, tokens=10**7, keeps=True), 3, 64, 1000, 4)
    assert more == count_memory(replace(plain, tokens=10**7), 3, 64, 1000, 4)  # above a gigabyte
    effects = count_memory(Work(pairs={"atp": 1}, n_latents=1000), 3, 64, 1000, 4)
    assert effects["training"] == 4 * 2 * 3 * 64 * 1000
    # on a GPU nothing is held twice
    on_gpu = count_memory(plain, 3, 64, 1000, 4, device="cuda")
    assert on_gpu["activations"] < base["activations"]


def test_the_larger_of_training_and_what_follows_is_told():
    work = Work(tokens=10**4, n_latents=1000, k=10, steps=10)
    training = count_memory(work, 3, 64, 1000, 4)
    for evaluated in (2048, 10**5):
        both = count_memory(replace(work, evaluated=evaluated), 3, 64, 50_000, 4)
        alone = count_memory(Work(evaluated=evaluated, n_latents=1000), 3, 64, 50_000, 4)
        assert sum(both.values()) == max(sum(training.values()), sum(alone.values()))


def test_memory_is_what_a_gpu_measured(root, monkeypatch):
    """The benchmarks' tables of an NVIDIA H200, at the sizes that they were made with."""
    above = PYTHIA_1B.n_layers - PYTHIA_1B.layer - 1
    sizes = {"d_model": PYTHIA_1B.d_model, "vocabulary": PYTHIA_1B.vocabulary, "itemsize": 2}
    code = {"n_latents": PYTHIA_1B.n_latents, "k": PYTHIA_1B.k}
    # as many gradients at once as a GPU takes now: 3.05 GB for so many pairs, on the same one
    work = Work(pairs={"ig": 1024}, length=7, active=1278, **code)
    told = count_memory(work, 3, **sizes, above=above, device="cuda")["activations"]
    assert told / 1e9 == pytest.approx(3.05, rel=0.2)
    monkeypatch.setattr(forecast, "ON_GPU", 1)  # the tables are from before
    results = root / "benchmarks" / "results"
    measured = pd.read_csv(results / "effects_gpu.csv").set_index("what")["memory_gb"]
    # one of the passes of exact ablation is the clean one
    active = int(pd.read_csv(results / "effects_gpu.csv")["done"][2] / ABLATED / 3) - 1
    pairs = {"length": 7, "active": active}
    works = {
        "IG": Work(pairs={"ig": PYTHIA_1B.pairs}, **pairs, **code),
        "AtP": Work(pairs={"atp": PYTHIA_1B.pairs}, **pairs, **code),
        "exact": Work(pairs={"ablation": ABLATED}, **pairs, **code),
        "evaluate": Work(evaluated=2**15, text_length=PYTHIA_1B.length, **code),
    }
    for what, work in works.items():
        told = count_memory(work, 3, **sizes, above=above, device="cuda")["activations"]
        gigabytes = measured[measured.index.str.startswith(what)].iloc[0]
        assert told / 1e9 == pytest.approx(gigabytes, rel=0.12), what
    work = Work(steps=1, batch_size=4096, **code)
    told = count_memory(work, 3, **sizes, above=above, device="cuda")["training"]
    for gigabytes in pd.read_csv(results / "training_gpu.csv")["peak_gb"]:
        assert told / 1e9 == pytest.approx(gigabytes, rel=0.12)


MEASURE = """
import gc, sys
from pathlib import Path
import torch
import ctt_helpers as ctt
from ctt_helpers.training import TrainingRun

n, d, h, batch, k, start = map(int, sys.argv[1:])
torch.set_num_threads(1)

def train():
    sparsity = "batch_topk" if k else "l1"
    crosscoder = ctt.Crosscoder(n, d, h, sparsity, k=k or None)
    config = ctt.TrainConfig(steps=1000, k_start=start or None)
    run = TrainingRun(crosscoder.train(), config)
    x = torch.randn(batch, n, d)
    for step in range(3):
        run.step(x, log=step == 2)  # Adam has its moments by then

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

train()
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = peak()
train()
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize(
    ("d_model", "n_latents", "batch_size", "k", "k_start"),
    [
        pytest.param(128, 4096, 1024, 16, 96, id="few active"),
        pytest.param(64, 2048, 2048, 32, 192, id="more active"),
        pytest.param(128, 2048, 1024, 64, 64, id="not annealed"),
        pytest.param(128, 2048, 1024, 0, 0, id="l1"),
    ],
)
def test_a_training_step_takes_what_is_counted(
    d_model, n_latents, batch_size, k, k_start, monkeypatch
):
    """Measured with a heap that gives all memory back at once, so that there are no holes."""
    sizes = [3, d_model, n_latents, batch_size, k, k_start]
    heap = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, *map(str, sizes)]
    done = subprocess.run(command, env=os.environ | heap, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    monkeypatch.setattr(forecast, "HOLES", 0.0)
    work = Work(steps=1, n_latents=n_latents, k=k, batch_size=batch_size, k_start=k_start or None)
    told = count_memory(work, 3, d_model, 1000, 4)["training"]
    assert told == pytest.approx(int(done.stdout), rel=0.2)


def test_tensors_are_added_up_as_they_come_and_go():
    def run():
        kept = torch.ones(10**6)
        passing = kept + 1
        del passing
        torch.ones(10**5)

    assert benchmark.measure_tensors(run) == pytest.approx(8e6, rel=0.01)


@pytest.mark.slow
def test_tensors_take_what_is_counted(monkeypatch):
    """All pieces of work of the benchmark, some of them smaller, with models of true shape."""
    monkeypatch.setenv("CTT_SHARED", "")  # pairs of the embedded suite
    sizes = replace(benchmark.SIZES["cpu"], sequences=4, length=512)
    ckpts = benchmark.random_checkpoints("pythia-14m", "cpu")
    monkeypatch.setattr(forecast, "HOLES", 0)
    for task in benchmark.tasks(ckpts, sizes, bf16=False):
        task.run()  # the first time sets things up
        tensors = benchmark.measure_tensors(task.run)
        assert benchmark.told_memory(task, ckpts) == pytest.approx(tensors, rel=0.2), task.what


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt_neox", "olmo", "olmo2", "bloom"])
def test_speeds_are_measured_and_printed(tmp_path, architecture):
    ckpts = random_suite(tmp_path, architecture=architecture).checkpoints(device="cpu", layer=1)
    before = torch.random.get_rng_state()
    work = {
        "tokens": 1000,
        "evaluated": 100,
        "pairs": {"atp": 5},
        "text_length": 12,
        "n_latents": 64,
        "k": 4,
    }
    estimate = ctt.estimate(ckpts, **work, steps=3, batch_size=64)
    assert torch.equal(before, torch.random.get_rng_state()) and not ckpts._loaded
    assert set(estimate.work) == {"reading", "training", "evaluating", "atp"}
    assert all(0 < seconds < 60 for seconds in estimate.work.values())
    told = str(estimate)
    assert (
        "  at peak   about" in told
        and "  in all    about" in told
        and f"  device    {NO_GPU}" in told
    )
    assert "  work      reading " in told and "more than is free" not in told
    assert "at peak" not in str(ctt.estimate(ckpts))


def test_products_in_bfloat16_change_little_and_weights_stay():
    x = torch.randn(64, 2, 32)
    made = {}
    for bf16 in (False, True):
        run = TrainingRun(
            ctt.Crosscoder(2, 32, 48, k=4).train(), ctt.TrainConfig(steps=40, bf16=bf16)
        )
        made[bf16] = [float(run.step(x, log=True)["loss"]) for _ in range(40)]
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in run.crosscoder.parameters())
    assert made[True] != made[False]  # it does something
    assert (
        made[True][-1] == pytest.approx(made[False][-1], rel=0.02)
        and made[True][-1] < 0.9 * made[True][0]
    )


def test_long_sequences_are_read_and_evaluated_a_few_at_a_time(tmp_path, monkeypatch):
    ckpts = random_suite(tmp_path, n=2).checkpoints(device="cpu", layer=1)
    text, crosscoder = some_text(9, 12), ctt.Crosscoder(2, 32, 16, k=4)
    at_once = set()
    real = ctt.evaluation.losses_by_words

    def spy(parts, targets):
        def seen():
            for part in parts:
                at_once.add(tuple(part.shape))
                yield part

        return real(seen(), targets)

    monkeypatch.setattr(ctt.evaluation, "losses_by_words", spy)
    whole = ctt.evaluate(crosscoder, ckpts, text)
    vocabulary = ckpts[0].config.vocab_size
    # of each but the first and the last token; with zeros the sequences are all alike
    assert at_once == {(9 * 10, vocabulary), (10, vocabulary)}
    at_once.clear()
    few = vocabulary // 2 - 1
    monkeypatch.setattr(ctt.evaluation, "TOKENS_ON_CPU", 1)
    monkeypatch.setattr(ctt.evaluation, "WORDS_ON_CPU", few)
    parts = ctt.evaluate(crosscoder, ckpts, text)
    assert at_once == {(1, few), (1, vocabulary - 2 * few)}
    for name in ("ce_clean", "ce_zero", "dce"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-5)
    long = torch.zeros(3, 2**13, dtype=torch.long)
    assert ctt.ActivationStream(ckpts, long).sequences_per_group == 2


@pytest.mark.slow
def test_the_benchmark_runs_shrunk(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    frame = benchmark.main(["--paper", "--shrink", "--device", "cpu", "--out", str(tmp_path)])
    assert list(frame.what) == [
        "reading",
        "stream",
        "accuracy",
        "effects, atp",
        "effects, ig",
        "effects, ablation",
        "evaluate",
        "training",
    ]
    told = frame[["seconds", "estimated", "estimated_mb"]]
    assert (
        "memory_ratio" in frame
        and (told > 0).all(axis=None)
        and (tmp_path / "estimates_paper.csv").is_file()
    )
    # some of it again: the other rows stay
    given = ["--paper", "--shrink", "--device", "cpu", "--out", str(tmp_path)]
    again = benchmark.main([*given, "--only", "reading"]).set_index("what")
    first = pd.read_csv(tmp_path / "estimates_paper.csv").set_index("what")
    assert list(again.index) == list(frame.what)
    others = [what for what in frame.what if what != "reading"]
    np.testing.assert_allclose(
        again.loc[others, "seconds"], frame.set_index("what").loc[others, "seconds"], rtol=1e-4
    )
    np.testing.assert_allclose(again["seconds"], first["seconds"], rtol=1e-4)
    with pytest.raises(SystemExit):
        benchmark.main(["--paper", "--device", "cpu"])
    assert "--paper needs a GPU" in capsys.readouterr().err
