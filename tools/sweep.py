"""Run one notebook with every combination of some parameters, by papermill.

    python tools/sweep.py notebooks/04_relie_and_reldec.ipynb --name try -p seed 0 1 2 -p layer 1 2

makes runs/try/seed=0,layer=1/ and so on. Each holds the executed notebook, a folder of the same
name with what it wrote, figures/, parameters.json, and, once it has run to its end, versions.json.
The same command goes on where it stopped: what has finished is skipped. A combination that fails is
reported, and the others run. The hub is asked for what is not here, unless HF_HUB_OFFLINE=1.
`tools/collect_runs.py runs/try` makes one table and one figure.
"""

import argparse
import ast
import base64
import hashlib
import itertools
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from run_notebooks import ROOT, duration, end_when_told, run

from ctt_helpers.files import locked, read_json, versions, write_json
from ctt_helpers.messages import check_no_secret, closest


def parse(text: str) -> Any:
    """A value of the command line: a Python number, list, dict, True, False, None, or else text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
    known = value is None or isinstance(value, bool | int | float | str | list | dict)
    return value if known else text


def label(parameters: dict[str, Any]) -> str:
    """A folder's name: seed=0,revisions=step256-step3000."""
    texts = {
        k: "-".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in parameters.items()
    }
    name = ",".join(k + "=" + re.sub(r"[^\w.+-]+", "_", v).strip("_") for k, v in texts.items())
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name) <= 120 else f"{name[:110]}-{digest}"


def declared(notebook: Path) -> list[str]:
    """Names of the parameters of a notebook.

    (papermill's own list leaves out those of the type `int | None`.)
    """
    cells = nbformat.read(notebook, as_version=4).cells
    source = "\n".join(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    return [
        name for name in re.findall(r"^(\w+) *[:=]", source, flags=re.MULTILINE) if name != "out"
    ]


def save_figures(notebook: Path, folder: Path) -> None:
    """Write every picture of an executed notebook to cell07.png, by the number of its cell."""
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells, start=1):
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture is not None:
                folder.mkdir(exist_ok=True)
                (folder / f"cell{number:02d}.png").write_bytes(base64.b64decode(picture))


def run_one(
    notebook: Path, folder: Path, parameters: dict[str, Any], seconds: float | None
) -> str | None:
    """Run one combination in its folder: None, or what went wrong.

    What an earlier run left behind is there for it to go on.
    """
    code = "\n".join(
        c.source for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"
    )
    made_by = {
        "notebook": notebook.name,
        "code": hashlib.sha256(code.encode()).hexdigest(),
        "parameters": parameters,
    }
    if (folder / "versions.json").is_file():
        if read_json(folder / "parameters.json") == made_by:
            return None
        return (
            f"{folder} holds a run of other code or parameters. Take another --name, or remove "
            "that folder."
        )
    try:
        with locked(folder):
            write_json(folder / "parameters.json", made_by)
            problem = run(notebook, folder / notebook.name, seconds, parameters)
            if problem is None:
                save_figures(folder / notebook.name, folder / "figures")
                write_json(folder / "versions.json", versions())
    except RuntimeError as error:  # another one runs there, or went on when its sweep was killed
        return str(error)
    return problem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--name", required=True, help="the results go to runs/NAME")
    parser.add_argument(
        "-p", action="append", nargs="+", default=[], metavar=("NAME", "VALUE"), dest="parameters"
    )
    parser.add_argument(
        "--seconds", type=float, help="time limit for each combination; none by default"
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs", help="folder for the results, in place of runs"
    )
    options = parser.parse_args()
    if not options.notebook.is_file():
        parser.error(f"there is no notebook {options.notebook}")
    known = declared(options.notebook)
    for name, *values in options.parameters:
        if name not in known:
            parser.error(
                f"{name!r} cannot be set.{closest(name, known)} This notebook has: "
                f"{', '.join(known)}."
            )
        if not values:
            parser.error(f"-p {name} needs a value, or several")
    axes = {name: [parse(v) for v in values] for name, *values in options.parameters}
    combinations = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    try:
        check_no_secret("", axes)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for parameters in combinations:
        name = label(parameters) or "defaults"
        folder = (options.runs / options.name / name).resolve()
        print(f"{name} ... ", end="", flush=True)
        there, began = (folder / "versions.json").is_file(), time.monotonic()
        problem = run_one(options.notebook.resolve(), folder, parameters, options.seconds)
        print(
            "failed" if problem else "is there" if there else duration(time.monotonic() - began),
            flush=True,
        )
        if problem:
            failed += 1
            print(f"  {problem}".replace("\n", "\n  "), file=sys.stderr)
    where = options.runs / options.name
    print(
        f"{len(combinations) - failed} of {len(combinations)} are in {where}. One table of all: "
        f"collect_runs.py {where}"
    )
    return int(failed > 0)


if __name__ == "__main__":
    end_when_told()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nStopped. What has finished stays; the same command goes on.")
