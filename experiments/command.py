"""Test the numbers: `python -m experiments [--only NAME]`, on the embedded suite or another."""

import argparse
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

import ctt_helpers as ctt
from benchmarks import report
from experiments import (
    ablations,
    baselines,
    dictionary,
    factorial,
    leak,
    nulls,
    planted,
    scaling,
    seeds,
    targets,
)
from experiments.context import TASKS, TRAIN_TOKENS, Context

TITLE = "Results of the experiments"
PARTS = {
    "dictionary": dictionary,
    "baselines": baselines,
    "factorial": factorial,
    "leak": leak,
    "planted": planted,
    "targets": targets,
    "ablations": ablations,
    "nulls": nulls,
    "seeds": seeds,
    "scaling": scaling,
}


# On two cores each of these goes by itself. What one part trains, the others find, or wait for.
LANES = (
    ("dictionary", "baselines"),
    ("factorial", "leak", "planted", "targets", "ablations", "nulls", "scaling", "seeds"),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the experiments that are asked for, and write their tables."""
    given = parse(arguments)
    told = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments", *told])
    lanes = [[given.only]] if given.only else list(LANES)
    if given.jobs == 1:
        lanes = [[part for lane in lanes for part in lane]]
    spawn = multiprocessing.get_context("spawn")
    lock = spawn.Lock()
    others = [spawn.Process(target=run, args=(given, lane, command, lock)) for lane in lanes[1:]]
    for other in others:
        other.start()
    try:
        run(given, lanes[0], command, lock)
    finally:
        for other in others:
            other.join()
    if any(other.exitcode for other in others):
        sys.exit("Some parts failed: see above. What the others found is kept.")
    print(f"All tables: {given.out / report.PAGE}")


def run(
    given: argparse.Namespace, parts: Sequence[str], command: str, lock: AbstractContextManager
) -> None:
    """Run some parts one after the other.

    Args:
        given: what the command line asked for.
        parts: names of PARTS.
        command: that command line, for the record.
        lock: held while files are written that all parts share.
    """
    if given.model == "tiny":
        torch.set_num_threads(1)  # on models this small a second thread gains nothing
    context = make_context(given)
    for name in parts:
        print(f"{name}: {PARTS[name].__doc__.splitlines()[0]}", flush=True)
        about = {"command": command, **report.machine()}
        begin = time.perf_counter()
        context.trainings.clear()
        frames = PARTS[name].run(context)
        about["seconds"] = round(time.perf_counter() - begin)
        about["trainings"] = dict(context.trainings)
        with lock:  # after each one, so that a run that is cut short keeps what it has
            report.save(given.out, name, frames, about)
            report.write_tables(given.out, TITLE, PARTS)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument(
        "--only", choices=PARTS, help="run this one and keep the results of the others"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("experiments/results"), help="folder of the results"
    )
    parser.add_argument(
        "--model", default="tiny", help="a suite: a name or a folder (default: the embedded one)"
    )
    parser.add_argument(
        "--revisions",
        nargs="+",
        help="checkpoints; default: those that the crosscoder was trained on",
    )
    parser.add_argument(
        "--layer", type=int, help="layer; default: the crosscoder's, or else the suite's"
    )
    parser.add_argument(
        "--crosscoder", type=Path, help="its folder; default: the one shipped with the suite"
    )
    parser.add_argument(
        "--tasks", nargs="+", help="two or more: a plain task, one with an attractor, then others"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of published minimal pairs (BLiMP, CLAMS)"
    )
    parser.add_argument(
        "--text", type=Path, help="file of running text, for suites without a text of their own"
    )
    parser.add_argument(
        "--train-tokens", type=int, default=TRAIN_TOKENS, help="of crosscoders trained here"
    )
    parser.add_argument(
        "--train-steps",
        type=int,
        default=ctt.TrainConfig().steps,
        help="of crosscoders trained here",
    )
    parser.add_argument(
        "--pairs", type=int, default=240, help="pairs of each split of a task (default: 240)"
    )
    parser.add_argument("--draws", type=int, default=1000, help="bootstrap draws (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/experiments"), help="folder of what is trained here"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        choices=(1, 2),
        help="processes; default: 2 for the embedded suite where there are two cores, else 1",
    )
    given = parser.parse_args(arguments)
    if given.jobs is None:
        given.jobs = 2 if given.model == "tiny" and (os.cpu_count() or 1) > 1 else 1
    return given


def make_context(given: argparse.Namespace) -> Context:
    """What the experiments are run on."""
    suite = ctt.load_suite(given.model)
    crosscoder = ctt.Crosscoder.load(given.crosscoder or suite.crosscoder_folder)
    layer = crosscoder.source.get("layer") if given.layer is None else given.layer
    revisions = given.revisions or crosscoder.source.get("revisions") or suite.default_triplet
    ckpts = suite.checkpoints(revisions, layer=layer, device=given.device)
    tasks = given.tasks or [task for task in TASKS if task in suite.task_names]
    tasks = tasks or suite.task_names
    if len(tasks) < 2:
        raise ValueError(
            f"--tasks {tasks}: give at least two, a plain task first and one with an attractor "
            "second."
        )
    return Context(
        suite=suite,
        ckpts=ckpts,
        crosscoder=crosscoder.to(ckpts.device),
        tasks=tasks,
        n_pairs=given.pairs,
        n_draws=given.draws,
        seed=given.seed,
        work=given.work / suite.name,
        data=given.data,
        text=given.text,
        train_tokens=given.train_tokens,
        train_config=ctt.TrainConfig(steps=given.train_steps),
    )
