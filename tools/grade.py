"""Grade notebooks that students have worked in: run them, and count the checks that pass.

    python tools/grade.py handed_in/*.ipynb --out grades.csv

The checks are those of the project: where a student has changed or lost one, its own is put back.
Each notebook runs in a folder of its own, with this Python. It runs a stranger's code: do so where
that does no harm (a container, another account). For a gradebook with names and feedback, nbgrader
takes the notebooks of `tools/build_notebooks.py --nbgrader FOLDER`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from ctt_helpers.files import write_rows
from ctt_helpers.messages import SECRET_NAME

ROOT = Path(__file__).resolve().parents[1]
EXERCISES = ROOT / "notebooks" / "exercises"
COLUMNS = ["notebook", "exercise", "points", "of", "why"]


def grade_id(cell: NotebookNode) -> str | None:
    """The nbgrader name of a cell, None where it has none."""
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def original(notebook: NotebookNode, folder: Path = EXERCISES) -> NotebookNode:
    """The project's own notebook with the same exercises.

    Raises:
        ValueError: there is none.
    """
    own = {grade_id(cell) for cell in notebook.cells} - {None}
    for path in sorted(folder.glob("[0-9][0-9]*_*.ipynb")):
        known = nbformat.read(path, as_version=4)
        if own & {grade_id(cell) for cell in known.cells} - {None}:
            return known
    raise ValueError(
        "It has none of the exercises: hand in a notebook of notebooks/exercises, saved with the "
        "cells' metadata."
    )


def with_checks(handed_in: NotebookNode, known: NotebookNode) -> NotebookNode:
    """The student's notebook with the project's checks, each under its exercise, or at the end."""
    checks = {grade_id(cell): cell for cell in known.cells if _is_check(cell)}
    kept = [cell for cell in handed_in.cells if grade_id(cell) not in checks]
    cells = []
    for cell in kept:
        cells.append(cell)
        check = checks.pop(f"{grade_id(cell)}_check", None)
        if check is not None:
            cells.append(check)
    return nbformat.v4.new_notebook(cells=[*cells, *checks.values()], metadata=known.metadata)


def _is_check(cell: NotebookNode) -> bool:
    return cell.metadata.get("nbgrader", {}).get("grade", False)


def grade(path: Path, seconds: int, folder: Path = EXERCISES) -> list[dict]:
    """A row for each exercise of a notebook: points, of how many, and why not all.

    Args:
        path: what was handed in.
        seconds: time limit for each cell.
        folder: of the project's notebooks for students.

    Raises:
        ValueError: it is none of the project's.
    """
    handed_in = nbformat.read(path, as_version=4)
    notebook = with_checks(handed_in, original(handed_in, folder))
    with tempfile.TemporaryDirectory() as made:
        working = Path(made) / "notebooks" / "exercises"
        working.mkdir(parents=True)
        NotebookClient(
            notebook,
            timeout=seconds,
            kernel_name="python3",
            allow_errors=True,
            resources={"metadata": {"path": str(working)}},
        ).execute(env=_without_credentials(os.environ))
    rows = []
    for cell in notebook.cells:
        if not _is_check(cell):
            continue
        failed = [output for output in cell.outputs if output.output_type == "error"]
        most = cell.metadata.nbgrader.points
        row = {"notebook": path.name, "exercise": grade_id(cell).removesuffix("_check")}
        row |= {"points": 0 if failed else most, "of": most}
        why = f"{failed[0].ename}: {failed[0].evalue}" if failed else ""
        rows.append(row | {"why": " ".join(why.split())})
    return rows


def _without_credentials(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a stranger's code: no tokens, and none are looked for in files."""
    kept = {name: value for name, value in environment.items() if not SECRET_NAME.search(name)}
    return kept | {"HF_TOKEN_PATH": os.devnull}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", type=Path, nargs="+", help="what was handed in")
    parser.add_argument("--out", type=Path, default=Path("grades.csv"), help="table to write")
    parser.add_argument("--seconds", type=int, default=300, help="time limit for each cell")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows, problems = [], 0
    for path in options.notebooks:
        try:
            own = grade(path, options.seconds)
        except Exception as error:  # one notebook must not keep the others from their grades
            problems += 1
            print(f"{path}: not graded. {error}", file=sys.stderr)
            continue
        rows += own
        print(f"{path}: {sum(r['points'] for r in own)} of {sum(r['of'] for r in own)} points")
    # what students wrote, names of files and messages of errors, must not run in a spreadsheet
    write_rows(options.out, COLUMNS, [[row[column] for column in COLUMNS] for row in rows])
    print(f"written: {options.out}")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
