"""How long a reader waits: the first use of the package, the first figure, every notebook.

    python -m benchmarks.notebooks [--at-once 2] [--only start]

The machine should have nothing else to do: these are seconds of a clock.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from nbclient import NotebookClient

from benchmarks import report

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 3
PACKAGES = (
    "import torch, pandas, nnsight; from transformers.models.gpt_neox import modeling_gpt_neox"
)
FIRST_USE = """
import ctt_helpers as ctt
suite = ctt.load_suite("tiny")
checkpoint = suite.checkpoints(["step3000"], device="cpu")[0]
ctt.residual_stream(checkpoint, suite.text(1000, split="validation"))
"""

TABLES = {
    "start": (
        "Seconds of a clock, each in a new process or kernel, medians of "
        f"{ROUNDS} rounds in turns: the package's import alone; import and first use (a checkpoint "
        "of the embedded suite is loaded and read); the import of the packages that this needs "
        "(torch, transformers, nnsight, pandas), which is the least it can take; from the start of "
        "a kernel to the first figure of notebook 00."
    ),
    "notebooks": (
        "Every notebook on the embedded suite, as `make tutorial` runs them: seconds of each, "
        "kernel included, and (all) of the whole."
    ),
}


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_a_new_process(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def to_the_first_figure() -> None:
    """Start a kernel and run notebook 00 until a picture comes."""
    notebook = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.outputs = [] if cell.cell_type == "code" else None
    with tempfile.TemporaryDirectory() as folder:
        place = f"out = {folder!r}"  # where the table of effects goes
        at = next(
            i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])
        )
        notebook.cells[at].source += f"\n{place}"
        client = NotebookClient(
            notebook, kernel_name="python3", resources={"metadata": {"path": ROOT / "notebooks"}}
        )
        with client.setup_kernel():
            for number, cell in enumerate(notebook.cells):
                if cell.cell_type != "code":
                    continue
                client.execute_cell(cell, number)
                if any("image/png" in output.get("data", {}) for output in cell.outputs):
                    return
    raise RuntimeError("notebook 00 shows no figure")


def start() -> pd.DataFrame:
    """What has to be waited for at first."""
    ways = {
        "import ctt_helpers": lambda: in_a_new_process("import ctt_helpers"),
        "import and first use": lambda: in_a_new_process(FIRST_USE),
        "of these, importing other packages": lambda: in_a_new_process(PACKAGES),
        "kernel to the first figure of 00": to_the_first_figure,
    }
    for work in ways.values():
        work()  # files come into the system's memory
    times = {what: [] for what in ways}
    for _ in range(ROUNDS):
        for what, work in ways.items():
            times[what].append(seconds(work))
    return pd.DataFrame(
        {"what": what, "seconds": np.median(taken), "slowest": max(taken)}
        for what, taken in times.items()
    )


def notebooks(at_once: int, where: Path = ROOT / "notebooks") -> pd.DataFrame:
    """Every notebook of a folder, so many at once."""
    sys.path.insert(0, str(ROOT / "tools"))
    from run_notebooks import run_all

    rows, begin = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = sorted(where.glob("[0-9][0-9]_*.ipynb"))
        for notebook, took, problem in run_all(found, Path(folder), None, at_once):
            if problem is not None:
                raise RuntimeError(f"{notebook.name}: {problem}")
            rows.append({"notebook": notebook.stem, "seconds": took})
            print(f"{notebook.stem}: {took:.0f} s", flush=True)
    rows.sort(key=lambda row: row["notebook"])
    rows.append({"notebook": f"all, {at_once} at once", "seconds": time.perf_counter() - begin})
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> dict[str, pd.DataFrame]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.notebooks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--at-once", type=int, default=2, help="how many notebooks run at once")
    parser.add_argument("--only", choices=["start", "notebooks"], help="this table alone")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the results"
    )
    given = parser.parse_args(arguments)
    told = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "benchmarks.notebooks", *told])
    makers = {"start": start, "notebooks": lambda: notebooks(given.at_once)}
    frames = {}
    for name in [given.only] if given.only else makers:
        about = {"command": command, **report.machine()}
        begin = time.perf_counter()
        frames[name] = makers[name]()
        about["seconds"] = round(time.perf_counter() - begin)
        report.publish(given.out, name, {name: frames[name]}, about)
    return frames


if __name__ == "__main__":
    main()
