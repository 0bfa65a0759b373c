"""Estimates against measurements: time and memory of reading, accuracy, effects, evaluation and training.

    python -m benchmarks.estimates [--model pythia-70m ...] [--device cuda] [--paper] [--shrink]

Models of true shape with random weights are made on the spot: nothing is downloaded. `--paper`, for a GPU: three
models of Pythia-1B's shape, a crosscoder of the paper's (16,384 latents, batches of 4,096, products in bfloat16),
effects over all subject-verb pairs of BLiMP where $CTT_SHARED or ../shared holds them. `--shrink` runs the same code
with small sizes.
"""

import argparse
import ctypes
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ctt_helpers as ctt
from benchmarks import report
from ctt_helpers.checkpoints import Checkpoints
from ctt_helpers.costs import Work, count_memory, count_seconds, measure_speeds
from ctt_helpers.estimates import pick_dtype
from ctt_helpers.hooks import HookedModel
from ctt_helpers.presets import BLIMP_AGREEMENT, PRESETS
from ctt_helpers.runtime import pick_device
from ctt_helpers.suites import Suite
from ctt_helpers.tasks import MinimalPairs, make_pairs

N, ROUNDS = 3, 3
SIZES = {  # of a CPU's minutes, of a GPU's, of a test's seconds
    "cpu": {"sequences": 8, "pairs": 64, "ablated": 8, "n_latents": 2048, "k": 32, "batch_size": 1024, "steps": 8},
    "paper": {"sequences": 256, "pairs": 4000, "ablated": 64, "n_latents": 16384, "k": 200, "batch_size": 4096,
              "steps": 100},
    "shrunk": {"sequences": 2, "pairs": 8, "ablated": 2, "n_latents": 64, "k": 4, "batch_size": 128, "steps": 3},
}  # fmt: skip
SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256}


def random_checkpoints(name: str, device: str, shrink: bool = False) -> Checkpoints:
    """Three models of a preset's shape, with seeds of their own; a tokenizer comes from the embedded suite."""
    preset, facts, dtype = PRESETS[name], dict(PRESETS[name].config), pick_dtype("auto", device)
    config = AutoConfig.for_model(facts.pop("model_type"), **facts | (SMALL if shrink else {}))
    layer, revisions = min(preset.layer, config.num_hidden_layers // 2), [f"seed{seed}" for seed in range(N)]
    suite = Suite(f"{name}'s shape", Path("."), revisions, dict.fromkeys(revisions), layer, revisions)
    suite.config, suite.tokenizer = config, ctt.load_suite("tiny").tokenizer
    ckpts = Checkpoints(suite, revisions, layer, device, dtype)
    for seed, revision in enumerate(revisions):
        torch.manual_seed(seed)
        with torch.device(device):  # a billion random numbers take a GPU no time
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        ckpts._loaded[revision] = HookedModel(model, suite.tokenizer, layer, revision)
        ckpts._fingerprints[revision] = revision
    return ckpts


def some_pairs(ckpts: Checkpoints, n: int) -> MinimalPairs:
    """BLiMP's subject-verb pairs where their files are, else sentences of the embedded suite; at most n."""
    folder = Path(os.environ.get("CTT_SHARED", "../shared")) / "data"
    if not (folder / "blimp").is_dir():
        return ctt.load_suite("tiny").pairs("agreement/pp", n=n)
    from transformers import AutoTokenizer

    from ctt_helpers.published import published_rows

    words = AutoTokenizer.from_pretrained(str(folder / "gpt-neox-tokenizer"), bos_token="<|endoftext|>")
    ckpts.suite.tokenizer = words
    for model in ckpts:
        model.tokenizer = words
    rows = [row for name in BLIMP_AGREEMENT for row in published_rows(f"blimp/{name}", folder / "blimp")]
    return make_pairs(rows, words, name="blimp")[:n]


def measure(run: Callable[[], Any], device: str) -> float:
    """Seconds."""
    begin = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure_peak(run: Callable[[], Any], device: str) -> float:
    """Bytes at the peak beyond what was there before; on a CPU those of the process (NaN where it is not Linux)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would hide what is taken now
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    run()
    return _peak() - before


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def compare(ckpts: Checkpoints, sizes: dict[str, int], bf16: bool = False, text_length: int = 1024) -> pd.DataFrame:
    """One row a task: estimate and measurement, taken in turns, medians of a few rounds."""
    s, device, config = sizes, ckpts.device, ckpts.suite.config
    text = torch.randint(1, config.vocab_size, (s["sequences"], text_length))
    pairs = some_pairs(ckpts, s["pairs"])
    code = {"n_latents": s["n_latents"], "k": s["k"]}
    steps = {"steps": s["steps"], "batch_size": s["batch_size"], "bf16": bf16}
    crosscoder = ctt.Crosscoder(N, ckpts.d_model, s["n_latents"], k=s["k"]).to(device)
    x = next(ctt.ActivationStream(ckpts, text, batch_size=s["batch_size"]).batches())
    plain = ctt.TensorStream(x, s["batch_size"], source={"random": True})
    trained = ctt.TrainConfig(steps=s["steps"], bf16=bf16)
    ctt.train(crosscoder, plain, trained, device=device)  # a threshold: k latents a token, about
    crosscoder.source = {}

    def read() -> None:
        ctt.ActivationStream(ckpts, text, batch_size=64, cache_gb=0).scales(text.numel())

    def train() -> None:
        ctt.train(ctt.Crosscoder(N, ckpts.d_model, **code), plain, trained, device=device)

    def effects(some: MinimalPairs, method: str) -> None:
        ctt.indirect_effects(crosscoder, ckpts, some, method)

    some = text[: max(1, s["sequences"] // 8)]
    few, length = pairs[: s["ablated"]], pairs.input_ids.shape[1]
    active = round(ctt.indirect_effects(crosscoder, ckpts, few, "ablation").n_nodes.mean() - 1)  # of random models
    tasks = {
        "reading": ({"tokens": text.numel(), "text_length": text_length}, read),
        "accuracy": ({"pairs": {"accuracy": len(pairs)}}, lambda: [ctt.accuracy(m, pairs) for m in ckpts]),
        "effects, atp": ({"pairs": {"atp": len(pairs)}, **code}, lambda: effects(pairs, "atp")),
        "effects, ablation": (
            {"pairs": {"ablation": len(few)}, "active": active, **code},
            lambda: effects(few, "ablation"),
        ),
        "evaluate": (
            {"evaluated": some.numel(), "text_length": text_length, **code},
            lambda: ctt.evaluate(crosscoder, ckpts, some),
        ),
        "training": ({**steps, **code}, train),
    }  # fmt: skip
    rows = []
    for what, (work, run) in tasks.items():
        print(f"{ckpts.suite.name}: {what}", flush=True)
        todo, found = Work(**{"length": length, **work}), []
        run()  # warm: the first pass pays for what is set up once
        for _ in range(ROUNDS):
            speeds = measure_speeds(config, todo, N, device, ckpts.dtype)
            guess = sum(count_seconds(todo, speeds, N, ckpts.layer, config.num_hidden_layers).values())
            found.append((guess, measure(run, device)))
        seconds, measured = (pd.Series(column).median() for column in zip(*found, strict=True))
        peak = measure_peak(run, device)
        memory = count_memory(todo, N, ckpts.d_model, config.vocab_size, ckpts.dtype.itemsize)
        if what.startswith("eff") or what == "evaluate":
            memory = {"activations": memory["activations"]}  # the crosscoder is there already
        rows.append(
            {"model": ckpts.suite.name, "what": what, "seconds": measured, "estimated": seconds,
             "ratio": seconds / measured, "peak_mb": peak / 1e6, "estimated_mb": sum(memory.values()) / 1e6}
        )  # fmt: skip
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimates", description=__doc__)
    parser.add_argument("--model", nargs="+", default=["pythia-14m", "pythia-70m", "pythia-160m"], choices=PRESETS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--paper", action="store_true", help="the paper's shape: for a GPU")
    parser.add_argument("--shrink", action="store_true", help="small sizes: to try the code")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(arguments)
    device, begin = pick_device(given.device), time.perf_counter()
    if given.paper and device == "cpu" and not given.shrink:
        parser.error("--paper needs a GPU (it would take hours here); add --shrink to try the code.")
    if device == "cpu":
        torch.set_num_threads(1)
    about = {
        "command": "python -m benchmarks.estimates" + " --paper" * given.paper,
        **report.machine(),
        "device": device,
    }
    about |= {"gpu": torch.cuda.get_device_name()} if device.startswith("cuda") else {}
    sizes = SIZES["shrunk" if given.shrink else "paper" if given.paper else "cpu"]
    frames = []
    for name in ["pythia-1b"] if given.paper else given.model:
        ckpts = random_checkpoints(name, device, given.shrink)
        frames.append(compare(ckpts, sizes, bf16=given.paper, text_length=128 if given.shrink else 1024))
    frame, name = pd.concat(frames), "estimates_paper" if given.paper else "estimates"
    report.save(given.out, name, {name: frame}, {**about, "seconds": round(time.perf_counter() - begin)})
    print(frame.round(2).to_string(index=False))
    return frame


if __name__ == "__main__":
    main()
