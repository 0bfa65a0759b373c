"""Test the numbers: `python -m benchmarks.science [--only NAME] [--out FOLDER]`, on the embedded suite or another."""

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch

import ctt_helpers as ctt
from benchmarks import report
from benchmarks.science import causes, context, estimators, nulls, page, planted, scaling, seeds

PARTS = {
    "planted": planted,
    "estimators": estimators,
    "causes": causes,
    "nulls": nulls,
    "seeds": seeds,
    "scaling": scaling,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.science", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="run this one and keep the results of the others")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/science"), help="folder of the results")
    parser.add_argument("--model", default="tiny", help="a suite: a name or a folder (default: the embedded one)")
    parser.add_argument("--revisions", nargs="+", help="checkpoints; default: those the crosscoder was trained on")
    parser.add_argument("--layer", type=int, help="layer; default: the crosscoder's, or else the suite's")
    parser.add_argument("--crosscoder", type=Path, help="its folder; default: the one shipped with the suite")
    parser.add_argument("--tasks", nargs="+", help="two or more: a plain task, one with an attractor, then others")
    parser.add_argument("--data", type=Path, help="folder of published minimal pairs (BLiMP, CLAMS)")
    parser.add_argument("--text", type=Path, help="file of running text, for suites without their own")
    parser.add_argument("--train-tokens", type=int, default=context.TRAIN_TOKENS, help="of crosscoders trained here")
    parser.add_argument("--train-steps", type=int, default=ctt.TrainConfig().steps, help="of crosscoders trained here")
    parser.add_argument("--pairs", type=int, default=400, help="pairs a half (default: 400)")
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/science"), help="folder of what is trained here")
    given = parser.parse_args(arguments)
    if given.model == "tiny":
        torch.set_num_threads(1)
    setting = _context(given)
    told = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.science", *told])
    for name in [given.only] if given.only else PARTS:
        print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
        about, begin = {"command": command, **report.machine()}, time.perf_counter()
        setting.trainings.clear()
        frames = PARTS[name].run(setting)
        about |= {"seconds": round(time.perf_counter() - begin), "trainings": dict(setting.trainings)}
        report.save(given.out, name, frames, about)
        page.write(given.out, PARTS)  # after each one, so that a run cut short keeps what it has
    print((given.out / page.FOUND).read_text(encoding="utf-8"))


def _context(given: argparse.Namespace) -> context.Context:
    suite = ctt.load_suite(given.model)
    crosscoder = ctt.Crosscoder.load(given.crosscoder or suite.crosscoder_folder)
    layer = crosscoder.source.get("layer") if given.layer is None else given.layer
    revisions = given.revisions or crosscoder.source.get("revisions") or suite.default_triplet
    ckpts = suite.checkpoints(revisions, layer=layer, device=given.device)
    tasks = given.tasks or [t for t in context.AGREEMENT if t in suite.task_names] or suite.task_names
    if len(tasks) < 2:
        raise ValueError(f"--tasks {tasks}: give at least two, a plain task first and one with an attractor second.")
    return context.Context(
        suite, ckpts, crosscoder.to(ckpts.device), tasks,
        n_pairs=given.pairs, n_draws=given.draws, seed=given.seed, work=given.work / suite.name, data=given.data,
        text=given.text, train_tokens=given.train_tokens, train_config=ctt.TrainConfig(steps=given.train_steps),
    )  # fmt: skip


if __name__ == "__main__":
    main()
