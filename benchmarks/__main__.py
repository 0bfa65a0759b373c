"""Run the benchmarks: `python -m benchmarks [--only NAME] [--out FOLDER]`."""

import argparse
import time
from pathlib import Path

import torch

from benchmarks import report, settings, speed, story

BENCHMARKS = {"story": story, "settings": settings, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, help="run this one and keep the results of the others")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    command = "python -m benchmarks" + (f" --only {arguments.only}" if arguments.only else "")
    for name in [arguments.only] if arguments.only else BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name].__doc__}", flush=True)
        about, begin = {"command": command, **report.machine()}, time.perf_counter()
        frames = BENCHMARKS[name].run()
        report.save(arguments.out, name, frames, {**about, "seconds": round(time.perf_counter() - begin)})
        report.write_results(arguments.out, BENCHMARKS)  # after each one, so that a run cut short keeps what it has
    print((arguments.out / report.RESULTS).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
