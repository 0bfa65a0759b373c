"""One run of a sweep: a notebook with its parameters, by papermill, in a folder of its own.

    python workflow/guard.py run_notebook NOTEBOOK FOLDER MADE_BY [--seconds S]

The Snakefile calls it, with the project's Python. MADE_BY is one of `plan.runs_of`, as JSON.
FOLDER gets log.txt, the executed notebook, a folder of the same name with what it wrote, figures/,
parameters.json, and at the end versions.json; where the run failed, failed.json says why. What a
run that was cut off has left is there for this one to go on, if code and parameters are the same;
else it is moved to superseded/.
"""

import argparse
import base64
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from guard import end, end_those_below, when_told
from plan import ROOT, package_code

sys.path.insert(0, str(ROOT / "tools"))

from run_notebooks import duration, failure
from run_one import run_one

from ctt_helpers.files import InUse, locked, read_json, versions, write_json

KEPT = (".lock", "log.txt")  # of the run that begins
PATIENCE = 10.0  # seconds until what was killed has ended


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, as `locked` does; wait a little for a process that is just ending."""
    began = time.monotonic()
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(folder))
            except InUse:
                if time.monotonic() - began > PATIENCE:
                    raise
                time.sleep(0.2)
                continue
            yield
            return


def make_room(folder: Path, made_by: dict[str, Any]) -> None:
    """Move away what other code or other parameters left in the folder of a run."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        if read_json(folder / "parameters.json") == made_by:
            return
    old = [path for path in folder.iterdir() if path.name not in KEPT]
    if not old:
        return
    shelf = folder.parent / "superseded" / folder.name
    number = 1 + sum(1 for _ in shelf.iterdir()) if shelf.is_dir() else 1
    target = shelf / str(number)
    target.mkdir(parents=True)
    for path in old:
        path.rename(target / path.name)
    print(f"What an earlier run left, with other code or parameters, is in {target}.")


def save_figures(notebook: Path, folder: Path) -> None:
    """Write every picture of an executed notebook to cell07.png, by the number of its cell."""
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells, start=1):
        pictures = [
            output["data"]["image/png"]
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        for place, picture in enumerate(pictures):
            folder.mkdir(exist_ok=True)
            letter = chr(ord("a") + place) if len(pictures) > 1 else ""
            (folder / f"cell{number:02d}{letter}.png").write_bytes(base64.b64decode(picture))


def execute(notebook: Path, folder: Path, parameters: dict[str, Any]) -> str | None:
    """Run a notebook, with this Python: None, or what went wrong."""
    from papermill import PapermillExecutionError

    output = folder / notebook.name
    if "out: str" in notebook.read_text(encoding="utf-8"):
        parameters = parameters | {"out": os.path.relpath(folder / notebook.stem, ROOT)}
    try:
        run_one(notebook, output, ROOT, parameters)
    except Exception as error:  # whatever it was, the report is to say it
        told = failure(output) if isinstance(error, PapermillExecutionError) else ""
        return told or f"{type(error).__name__}: {error}"
    return None


def execute_there(folder: Path, notebook: Path, made_by: dict[str, Any]) -> str | None:
    """Run a notebook in its folder: None, or what went wrong."""
    # a run that was cut off goes on only with the package that began it
    made_by = made_by | {"package": package_code()}
    make_room(folder, made_by)
    write_json(folder / "parameters.json", made_by)
    (folder / "failed.json").unlink(missing_ok=True)
    began = time.monotonic()
    problem = execute(notebook, folder, made_by["parameters"])
    if problem is not None:
        write_json(folder / "failed.json", {"reason": problem})
        return problem
    save_figures(folder / notebook.name, folder / "figures")
    seconds = round(time.monotonic() - began, 1)
    write_json(folder / "versions.json", versions() | {"seconds": seconds})
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("made_by", type=json.loads)
    parser.add_argument("--seconds", type=float, help="time limit; none by default")
    options = parser.parse_args()
    folder = options.folder.resolve()
    when_told(end)
    began = time.monotonic()
    terminal = os.dup(sys.stdout.fileno())

    def say(what: str) -> None:
        """One line on the terminal, where several runs share it; the whole of it in the log."""
        print(what)
        os.write(terminal, f"{folder.name} ... {what.splitlines()[-1]}\n".encode())

    def too_long() -> None:
        reason = f"It did not end within {options.seconds:g} s, and was stopped (see `seconds`)."
        write_json(folder / "failed.json", {"reason": reason})
        say(f"failed: {reason}")
        end()

    try:
        with held(folder):
            with open(folder / "log.txt", "w", encoding="utf-8") as log:
                os.dup2(log.fileno(), sys.stdout.fileno())
                os.dup2(log.fileno(), sys.stderr.fileno())
            clock = threading.Timer(options.seconds or 0, too_long)
            clock.daemon = True
            if options.seconds:
                clock.start()
            problem = execute_there(folder, options.notebook, options.made_by)
            clock.cancel()
    except InUse as error:
        problem = str(error)
    finally:
        end_those_below()
    say(duration(time.monotonic() - began) if problem is None else f"failed: {problem}")
    return int(problem is not None)


if __name__ == "__main__":
    sys.exit(main())
