"""Make notebooks from notebooks/src/NN_name.py: complete ones, and those for students.

notebooks/NN_name.ipynb is run on the embedded suite, notebooks/exercises/NN_name.ipynb is not.
The sources (percent format) are the only hand-edited form. Equal sources give equal cells, ids and
metadata; outputs are cleaned of what differs from machine to machine (paths, times, addresses,
progress bars, views of live widgets). Every notebook begins with a cell that installs what is
missing; where the project has a public home, with a badge before it that opens it on Colab.

An exercise is three cells of a source: a text, a cell `# %% exercise="NAME"` with a line
`### BEGIN SOLUTION what to write` and a line `### END SOLUTION`, and a cell `# %% check="NAME"`.
The complete notebook has the lines between the two. The notebook for students has in their place an
error that says what to write, and the lines folded into the text. `--nbgrader FOLDER` writes them
with the markers, as nbgrader's `source` folder wants them.
"""

import argparse
import base64
import hashlib
import os
import re
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from ctt_helpers import __version__

# The public home, OWNER/NAME on GitHub; None: there is none yet, and nothing points to one. Set it
# here, then run `make notebooks`. Badges and the installing cell point to its tag v<version>, so
# that a notebook and the package that it installs belong together.
HOME: str | None = None
TAG = f"v{__version__}"

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
EXERCISES = NOTEBOOKS / "exercises"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
GPU = {"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []}}  # what Colab reads
# Names in capitals: a small one would be taken for a misspelt parameter. Pins go to pip as a file
# and not by PIP_CONSTRAINT, which would also bind the tools that build the package.
SETUP = """\
# Where ctt_helpers is missing: add it and what it needs. What is installed already is not moved.
import importlib.util

REMOTE = {remote!r}  # where to get it from, outside a checkout
if not all(importlib.util.find_spec(name) for name in ("ctt_helpers", "nnsight")):
    import subprocess, sys, tempfile
    from importlib import metadata
    from pathlib import Path
    PINS = {f"{d.name}=={metadata.version(d.name)}" for d in metadata.distributions() if d.name}
    Path(FILE := tempfile.mkdtemp() + "/constraints.txt").write_text("\\n".join(sorted(PINS)))
    HERE = [d for d in (".", "..") if Path(d, "ctt_helpers", "__init__.py").is_file()]
    SOURCE = next(iter(HERE), REMOTE)
    assert SOURCE, "ctt_helpers is not installed: open this notebook in a checkout of the project."
    print(f"installing {SOURCE} (a minute or two)")
    PIP = [sys.executable, "-m", "pip", "install", "-c", FILE, SOURCE]
    DONE = subprocess.run(PIP, capture_output=True, text=True)
    assert DONE.returncode == 0, f"pip failed:\\n{DONE.stdout[-500:]}{DONE.stderr[-2000:]}"
    importlib.invalidate_caches()"""
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d+%\|.*\|.*\[|\d+(it|B|tokens|/\d+) \[\d+:\d+")  # a line that tqdm drew
CELL_SECONDS = 900
# nbgrader's own markers; what stands behind the first is what a stub says
SOLUTION = re.compile(
    r"^(?P<indent> *)### BEGIN SOLUTION (?P<told>.+)\n(?P<lines>(?:.*\n)*?) *### END SOLUTION *\n?",
    re.MULTILINE,
)
EFFORT = re.compile(r"Difficulty [1-5] of 5 · importance [1-5] of 5 · (\d+) minutes?\b")
HOW = """\
**This is the notebook to work in**: {number} exercises, about {minutes} minutes beyond the reading.
Each has two hints{solution}, folded, and a check under it. A check draws new numbers each
time, and says what it expected, what came, and what may have gone wrong. What you have not written
yet raises an error that says what to write. Nothing that follows depends on it: go on whenever you
like."""
COMPLETE = " (The [complete notebook](../{name}.ipynb) has the solutions, and every output.)"


def badge(name: str) -> str | None:
    """A badge that opens a notebook on Colab, where the project has a home."""
    if HOME is None:
        return None
    colab = "https://colab.research.google.com"
    picture = f"![Open in Colab]({colab}/assets/colab-badge.svg)"
    return f"[{picture}]({colab}/github/{HOME}/blob/{TAG}/notebooks/{name}.ipynb)"


def setup() -> str:
    """The cell that installs what is missing."""
    remote = None if HOME is None else f"ctt-helpers @ git+https://github.com/{HOME}@{TAG}"
    return SETUP.replace("{remote!r}", repr(remote))


def sources(folder: Path = NOTEBOOKS / "src") -> list[Path]:
    """The percent sources in their order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def build(source: Path, form: str = "complete") -> NotebookNode:
    """The notebook of one source, after badge and set-up: same cells, no outputs.

    Ids come from the source only.

    Args:
        source: percent format.
        form: "complete"; "exercises", for students; "nbgrader", for instructors.
    """
    read = jupytext.read(source, fmt="py:percent")
    light = source.stem.startswith("00")  # seconds on any CPU
    notebook = nbformat.v4.new_notebook(metadata=METADATA if light else METADATA | GPU)
    shown = badge(source.stem if form == "complete" else f"exercises/{source.stem}")
    if shown is not None:
        notebook.cells.append(nbformat.v4.new_markdown_cell(shown, id="open-in-colab"))
    tags = {"tags": ["set-up"]}
    begin = (
        setup() if form == "complete" else setup().replace('(".", "..")', '("../..", "..", ".")')
    )
    notebook.cells.append(nbformat.v4.new_code_cell(begin, id="set-up", metadata=tags))
    minutes = check_exercises(source.name, read.cells)
    for index, cell in enumerate(read.cells):
        digest = hashlib.sha256(f"{source.stem}/{index}/{cell.source[:80]}".encode()).hexdigest()
        make = (
            nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        )
        metadata = {k: v for k, v in cell.metadata.items() if not k.startswith("lines_to_")}
        text = cell.source
        if form != "complete":
            text, metadata = for_students(read.cells, index, metadata, form)
        elif "exercise" in metadata:
            text = completed(text)
        notebook.cells.append(make(text, id=digest[:12], metadata=metadata))
        if index == 0 and form != "complete":
            told = how_to_work(minutes, source.stem, form)
            notebook.cells.append(nbformat.v4.new_markdown_cell(told, id="how-to-work"))
    nbformat.validate(notebook)
    return notebook


# ---- exercises


def how_to_work(minutes: list[int], name: str, form: str) -> str:
    """What stands at the top of a notebook for students; nbgrader hands out no solutions."""
    alone = form == "nbgrader"
    about = {"number": len(minutes), "minutes": sum(minutes)}
    told = HOW.format(solution="" if alone else " and a solution", **about)
    return told if alone else told + COMPLETE.format(name=name)


def completed(text: str) -> str:
    """An exercise's cell with its solution and without the markers."""
    return SOLUTION.sub(lambda found: found["lines"], text + "\n").rstrip("\n")


def stubbed(text: str) -> str:
    """An exercise's cell with an error that says what to write in place of the solution."""

    def stub(found: re.Match) -> str:
        told = found["told"].replace('"', "'")
        return f'{found["indent"]}raise NotImplementedError("{told}")\n'

    return SOLUTION.sub(stub, text + "\n").rstrip("\n")


def solution(text: str) -> str:
    """The lines of an exercise's cell between the markers, without their indent."""
    return textwrap.dedent(SOLUTION.search(text + "\n")["lines"]).rstrip("\n")


def check_exercises(name: str, cells: list[NotebookNode]) -> list[int]:
    """The minutes of each exercise; raise ValueError where one is not as it should be."""
    minutes, before = [], set()
    for index, cell in enumerate(cells):
        own = cell.metadata.get("exercise")
        marks = [cell.source.count(f"### {mark} SOLUTION") for mark in ("BEGIN", "END")]
        if marks != [len(SOLUTION.findall(cell.source + "\n"))] * 2 or (marks[0] == 1) != bool(own):
            raise ValueError(
                f"{name}, cell {index + 1}: a cell with exercise=NAME has one pair of lines, ### "
                "BEGIN SOLUTION with a sentence behind it, and ### END SOLUTION; no other cell has "
                "them."
            )
        if own is None:
            continue
        text = cells[index - 1].source if index else ""
        check = cells[index + 1] if index + 1 < len(cells) else {"metadata": {}, "source": ""}
        effort = EFFORT.search(text)
        wrong = {
            "the name is taken": own in before,
            "no text with difficulty, importance and minutes before it": effort is None,
            "it takes two hints": text.count("<details><summary>Hint") != 2,
            "a hint is not closed": text.count("<details>") != text.count("</details>"),
            "no check=NAME right under it": check["metadata"].get("check") != own,
            "the check does not call checks.NAME": f"checks.{own}({own}" not in check["source"],
        }
        if any(wrong.values()):
            told = "; ".join(what for what, is_so in wrong.items() if is_so)
            raise ValueError(f"{name}, exercise {own!r}: {told}.")
        minutes.append(int(effort[1]))
        before.add(own)
    return minutes


def for_students(
    cells: list[NotebookNode], index: int, metadata: dict, form: str
) -> tuple[str, dict]:
    """The text of a cell for students, or of what nbgrader makes theirs from; and its metadata."""
    text = cells[index].source
    following = cells[index + 1] if index + 1 < len(cells) else None
    if cells[index].cell_type == "markdown":
        text = re.sub(r"\]\((?![a-z]+:|#)", "](../", text)  # links: it lies one folder deeper
        if form == "exercises" and following is not None and "exercise" in following.metadata:
            lines = f"```python\n{solution(following.source)}\n```"
            text += f"\n\n<details><summary>Solution</summary>\n\n{lines}\n\n</details>"
        return text, metadata
    metadata = {k: v for k, v in metadata.items() if k not in ("exercise", "check", "points")}
    own, checked = (cells[index].metadata.get(kind) for kind in ("exercise", "check"))
    about = {"cell_type": "code", "schema_version": 3, "task": False}
    if own is not None:
        about |= {"grade": False, "grade_id": own, "locked": False, "solution": True}
        text = stubbed(text) if form == "exercises" else text
    elif checked is not None:
        about |= {"grade": True, "grade_id": f"{checked}_check", "locked": True, "solution": False}
        about["points"] = int(cells[index].metadata.get("points", 1))
    else:
        return text, metadata
    # so that "run all" goes on
    return text, metadata | {"nbgrader": about, "tags": ["raises-exception"]}


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run the notebook in `folder` with this Python and clean what came out."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    client.execute()
    clean(notebook)


def clean_text(text: str) -> str:
    """A text output without what belongs to one machine or one run."""
    text = re.sub(r"\S*[/\\]ipykernel_\d+[/\\]\d+\.py", "cell", text)
    for path, name in ((ROOT, "."), (Path(sys.prefix), ".venv"), (Path.home(), "~")):
        text = text.replace(str(path), name)
    return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x...", text)


def clean_stream(text: str) -> str:
    """What a terminal would show in the end: overwritten lines as they are last, and no bars."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    return clean_text("\n".join(line for line in lines if not BAR.search(line))).lstrip("\n")


def clean(notebook: NotebookNode) -> None:
    """Clean the outputs and metadata of an executed notebook, in place."""
    notebook.metadata = nbformat.from_dict(
        METADATA | {k: v for k, v in notebook.metadata.items() if k in GPU}
    )
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        cell.metadata.pop("papermill", None)
        kept: list[NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream":
                same = [o for o in kept if o.output_type == "stream" and o.name == output.name]
                if same:  # pieces of one stream arrive as chance has it
                    same[0].text += output.text
                else:
                    kept.append(output)
            elif WIDGET not in output.get("data", {}):  # a view is blank without its live widget
                for kind in ("text/plain", "text/html"):
                    if kind in output.get("data", {}):
                        output.data[kind] = clean_text(output.data[kind])
                kept.append(output)
        for output in kept:
            if output.output_type == "stream":
                output.text = clean_stream(output.text)
        cell.outputs = [o for o in kept if o.output_type != "stream" or o.text.strip()]


def drift(source: Path, committed: Path) -> str | None:
    """How the committed notebook differs from its source, or None.

    Outputs are not compared, but must be there.
    """
    if not committed.is_file():
        return f"{committed.name} does not exist"
    built, found = build(source), nbformat.read(committed, as_version=4)
    if found.metadata != built.metadata:
        return f"{committed.name}: the notebook's metadata differ"
    if len(found.cells) != len(built.cells):
        return f"{committed.name} has {len(found.cells)} cells, its source {len(built.cells)}"
    for number, (mine, theirs) in enumerate(zip(built.cells, found.cells, strict=True), start=1):
        for key in ("cell_type", "id", "metadata", "source"):
            if mine[key] != theirs[key]:
                return f"{committed.name}, cell {number}: the {key} differs from the source"
        if theirs.cell_type == "code" and theirs.source.strip() and theirs.execution_count is None:
            return f"{committed.name}, cell {number} was not run"
        failed = any(o.output_type == "error" for o in theirs.get("outputs", []))
        if failed and "raises-exception" not in theirs.metadata.get("tags", []):
            return f"{committed.name}, cell {number} ended in an error"
    return None


def has_exercises(source: Path) -> bool:
    """Whether a source has anything to do in it."""
    return '# %% exercise="' in source.read_text(encoding="utf-8")


def exercise_drift(source: Path, committed: Path) -> str | None:
    """How the committed notebook for students differs from its source, or None."""
    shown = f"exercises/{committed.name}"
    if not has_exercises(source):
        return f"{shown} is there, and its source has no exercise" if committed.exists() else None
    if not committed.is_file():
        return f"{shown} does not exist"
    same = (
        committed.read_text(encoding="utf-8") == nbformat.writes(build(source, "exercises")) + "\n"
    )
    return None if same else f"{shown} differs from its source"


def write(notebook: NotebookNode, path: Path) -> None:
    """Write the notebook to a temporary name, then rename it."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)


def save_tagged_figures(notebook: NotebookNode, folder: Path) -> None:
    """Write the picture of a cell with the tag figure-NAME to NAME.png, for the README."""
    for cell in notebook.cells:
        names = [
            tag.removeprefix("figure-")
            for tag in cell.metadata.get("tags", [])
            if tag.startswith("figure-")
        ]
        pictures = [
            o.data["image/png"] for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
        ]
        for name, picture in zip(names, pictures, strict=False):
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.png").write_bytes(base64.b64decode(picture))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; say which notebooks differ from sources",
    )
    parser.add_argument(
        "--no-execute", action="store_true", help="write the notebooks without outputs"
    )
    parser.add_argument(
        "--exercises", action="store_true", help="only the notebooks for students: seconds"
    )
    parser.add_argument(
        "--nbgrader", type=Path, metavar="FOLDER", help="only write notebooks for nbgrader there"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NN", help="only the notebooks with these numbers"
    )
    options = parser.parse_args()
    chosen = [s for s in sources() if not options.only or s.stem.split("_")[0] in options.only]
    if not chosen:
        known = ", ".join(s.stem for s in sources()) or "none"
        sys.exit(
            f"No source matches --only {' '.join(options.only or [])}. notebooks/src holds: "
            f"{known}."
        )
    problems = 0
    for source in chosen:
        target, for_work = (f / f"{source.stem}.ipynb" for f in (NOTEBOOKS, EXERCISES))
        if options.check:
            found = [] if options.exercises else [drift(source, target)]
            found = [problem for problem in (*found, exercise_drift(source, for_work)) if problem]
            problems += len(found)
            print("\n".join(found) or f"{target.name} is up to date")
            continue
        if options.nbgrader is not None:
            if has_exercises(source):
                options.nbgrader.mkdir(parents=True, exist_ok=True)
                write(build(source, "nbgrader"), options.nbgrader / target.name)
            continue
        if has_exercises(source):
            write(build(source, "exercises"), for_work)
        else:
            for_work.unlink(missing_ok=True)
        if options.exercises:
            continue
        print(f"{target.name} ... ", end="", flush=True)
        began = time.monotonic()
        notebook = build(source)
        if not options.no_execute:
            # elsewhere, so that no earlier results lie in ../runs
            with tempfile.TemporaryDirectory() as folder:
                working = Path(folder) / "notebooks"
                working.mkdir()
                # notebook 06 shows tables that were made there
                (Path(folder) / "experiments").symlink_to(ROOT / "experiments")
                execute(notebook, working)
            save_tagged_figures(notebook, NOTEBOOKS / "figures")
        write(notebook, target)
        print(f"{time.monotonic() - began:.0f} s, {target.stat().st_size / 1e6:.2f} MB", flush=True)
    if problems:
        print("Run `make notebooks` and commit what it writes.", file=sys.stderr)
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
