"""Run the benchmarks: `python -m benchmarks [--only NAME] [--out FOLDER]`."""

import argparse
import time
from pathlib import Path

import torch

from benchmarks import (
    effects,
    estimates,
    notebooks,
    plan,
    report,
    scaling,
    settings,
    speed,
    story,
    stream,
    training,
)

TITLE = "Results of the benchmarks"
BENCHMARKS = {"story": story, "settings": settings, "speed": speed}
# what the page shows; the others are commands of their own (`python -m benchmarks.effects`), for
# they ask for devices, sizes, or a quiet machine
PARTS = {
    **BENCHMARKS,
    "effects_speed": effects,
    "effects_gpu": effects,
    "training": training,
    "training_gpu": training,
    "stream": stream,
    "stream_gpu": stream,
    "scaling": scaling,
    "plan": plan,
    "estimates": estimates,
    "estimates_paper": estimates,
    "start": notebooks,
    "notebooks": notebooks,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", choices=BENCHMARKS, help="run this one and keep the results of the others"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the results"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    command = "python -m benchmarks"
    if given.only:
        command += f" --only {given.only}"
    for name in [given.only] if given.only else BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name].__doc__.splitlines()[0]}", flush=True)
        about = {"command": command, **report.machine()}
        begin = time.perf_counter()
        frames = BENCHMARKS[name].run()
        about["seconds"] = round(time.perf_counter() - begin)
        report.save(given.out, name, frames, about)
        # after each one, so that a run that is cut short keeps what it has
        page = report.write_tables(given.out, TITLE, PARTS)
    print(f"All tables: {page}")


if __name__ == "__main__":
    main()
