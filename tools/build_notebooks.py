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

Nobody works for longer than 45 minutes on end: a source with much to do makes several notebooks for
students (03a, 03b ...). A part begins at a cell `# %% [markdown] part="NAME" reading=MINUTES`, the
first one with the source. What a later part needs of the earlier ones is found by the names that
its cells read, and stands at its top, folded.
"""

import argparse
import ast
import base64
import hashlib
import os
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable
from dataclasses import dataclass
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
TIME = re.compile(r"\*\*Time:\*\* (?P<reading>\d+) minutes[^.]*\.")
MOST_MINUTES = 45  # on end, reading and exercises together
HOW = """\
**This is the notebook to work in**: {number}.
Each has two hints{solution}, folded, and a check under it. A check draws new numbers each
time, and says what it expected, what came, and what may have gone wrong. What you have not written
yet raises an error that says what to write. Nothing that follows depends on it: go on whenever you
like."""
COMPLETE = " (The [complete notebook](../{name}.ipynb) has the solutions, and every output.)"
SILENT = "%%capture"  # shows neither prints nor figures; an error is shown
CHANGES = {"append", "extend", "add", "update", "insert", "pop", "setdefault", "requires_grad_"}
CARRIED = """\
What the parts before this one made, the next cells make again, by the package. Run them, and go on:
there is nothing new to read in them, and what they print is not shown. It takes up to a minute."""


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
    """The complete notebook of one source, after badge and set-up: same cells, no outputs.

    Ids come from the source only.

    Args:
        source: percent format.
        form: "complete"; or "exercises", for students, or "nbgrader", for instructors: then the
            source must have one part only.
    """
    if form != "complete":
        (notebook,) = build_parts(source, form).values()
        return notebook
    cells = jupytext.read(source, fmt="py:percent").cells
    check_exercises(source.name, cells)
    notebook = opening(source.stem, source.stem, form)
    for index in range(len(cells)):
        notebook.cells.append(made_from(source, cells, index, form))
    nbformat.validate(notebook)
    return notebook


def opening(number: str, path: str, form: str) -> NotebookNode:
    """A notebook with nothing but its badge and the cell that installs what is missing."""
    light = number.startswith("00")  # seconds on any CPU
    notebook = nbformat.v4.new_notebook(metadata=METADATA if light else METADATA | GPU)
    shown = badge(path)
    if shown is not None:
        notebook.cells.append(nbformat.v4.new_markdown_cell(shown, id="open-in-colab"))
    begin = setup()
    if form != "complete":
        begin = begin.replace('(".", "..")', '("../..", "..", ".")')
    tags = {"tags": ["set-up"]}
    notebook.cells.append(nbformat.v4.new_code_cell(begin, id="set-up", metadata=tags))
    return notebook


def made_from(source: Path, cells: list[NotebookNode], index: int, form: str) -> NotebookNode:
    """The notebook's cell of the source's cell `index`."""
    cell = cells[index]
    digest = hashlib.sha256(f"{source.stem}/{index}/{cell.source[:80]}".encode()).hexdigest()
    make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
    metadata = {
        key: value
        for key, value in cell.metadata.items()
        if not key.startswith("lines_to_") and key not in ("part", "reading")
    }
    text = cell.source
    if form != "complete":
        text, metadata = for_students(cells, index, metadata, form)
    elif "exercise" in metadata:
        text = completed(text)
    return make(text, id=digest[:12], metadata=metadata)


# ---- parts


@dataclass
class Part:
    """Cells of a source that make one notebook for students."""

    name: str  # "" where the source has one part only
    reading: int  # minutes
    begin: int  # its first cell
    end: int  # the cell after its last
    minutes: list[int]  # of its exercises
    stem: str  # of the notebook's file


def parts_of(source: Path, cells: list[NotebookNode]) -> list[Part]:
    """The parts of a source, in order.

    Raises:
        ValueError: the reading does not add up to what the source's top says, or a part takes too
            long.
    """
    told = TIME.search(cells[0].source)
    if told is None:
        raise ValueError(f"{source.name} does not say its **Time:** N minutes in its first cell.")
    begins = [index for index, cell in enumerate(cells) if "part" in cell.metadata] or [0]
    if begins[0] != 0:
        raise ValueError(f"{source.name}: the first part begins with the first cell.")
    number, _, title = source.stem.partition("_")
    parts = []
    for k, (begin, end) in enumerate(zip(begins, [*begins[1:], len(cells)], strict=True)):
        own = check_exercises(source.name, cells[begin:end])
        letter = "abcdefgh"[k] if len(begins) > 1 else ""
        parts.append(
            Part(
                name=cells[begin].metadata.get("part", ""),
                reading=int(cells[begin].metadata.get("reading", told["reading"])),
                begin=begin,
                end=end,
                minutes=own,
                stem=f"{number}{letter}_{title}",
            )
        )
    if sum(part.reading for part in parts) != int(told["reading"]):
        raise ValueError(
            f"{source.name}: its parts take {[part.reading for part in parts]} minutes to read, "
            f"and its top says {told['reading']}."
        )
    for part in parts:
        if part.reading + sum(part.minutes) > MOST_MINUTES:
            raise ValueError(
                f"{source.name}, part {part.name!r}: {part.reading} minutes to read and "
                f"{sum(part.minutes)} for exercises are more than {MOST_MINUTES}. Begin another "
                "part within it."
            )
    return parts


def build_parts(source: Path, form: str = "exercises") -> dict[str, NotebookNode]:
    """The notebooks for students of one source: stem -> notebook."""
    cells = jupytext.read(source, fmt="py:percent").cells
    check_exercises(source.name, cells)
    parts = parts_of(source, cells)
    made = {}
    for k, part in enumerate(parts):
        notebook = opening(source.stem, f"exercises/{part.stem}", form)
        notebook.cells.append(part_title(source, cells, parts, k, form))
        told = how_to_work(part.minutes, source.stem, form)
        notebook.cells.append(nbformat.v4.new_markdown_cell(told, id="how-to-work"))
        carried = needed(cells, part.begin, part.end)
        if carried:
            notebook.cells.append(nbformat.v4.new_markdown_cell(CARRIED, id="carried"))
        for index in carried:
            cell = made_from(source, cells, index, form)
            cell.metadata["jupyter"] = {"source_hidden": True}
            if "parameters" not in cell.metadata.get("tags", []):
                cell.source = f"{SILENT}\n{cell.source}"
            notebook.cells.append(cell)
        for index in range(max(part.begin, 1), part.end):
            notebook.cells.append(made_from(source, cells, index, form))
        nbformat.validate(notebook)
        made[part.stem] = notebook
    return made


def part_title(
    source: Path, cells: list[NotebookNode], parts: list[Part], k: int, form: str
) -> NotebookNode:
    """The first cell of a part: the source's own, or for a later part its title, and the time."""
    first = made_from(source, cells, 0, form)
    part = parts[k]
    exercises = sum(part.minutes)
    minutes = f"**Time:** {part.reading + exercises} minutes: {part.reading} to read, {exercises} "
    minutes += "for the exercises."
    if len(parts) == 1:
        first.source = TIME.sub(minutes, first.source)
        return first
    title, _, rest = first.source.partition("\n")
    title += f" · part {k + 1} of {len(parts)}: {part.name}"
    if k == 0:
        first.source = f"{title}\n{TIME.sub(minutes, rest)}"
        return first
    before = f"[part {k}]({parts[k - 1].stem}.ipynb)"
    told = f"{title}\n\n{minutes} **You need:** {before}."
    return nbformat.v4.new_markdown_cell(told, id=f"{first.id}-{k + 1}")


def needed(cells: list[NotebookNode], begin: int, end: int) -> list[int]:
    """The code cells before `begin` without which those from `begin` to `end` would not run.

    Found from the end: a cell is needed where it makes or changes what a later one reads.
    Exercises are not: no other cell reads what they define.
    """
    wanted: set[str] = set()
    chosen = []
    for index in range(end - 1, -1, -1):
        cell = cells[index]
        is_exercise = bool({"exercise", "check"} & set(cell.metadata))
        if cell.cell_type != "code" or (index < begin and is_exercise):
            continue
        names = names_of(ast.parse(completed(cell.source)).body)
        if index < begin:
            is_parameters = "parameters" in cell.metadata.get("tags", [])
            if not (names.made & wanted or is_parameters):
                continue
            chosen.append(index)
        wanted = (wanted - names.made_anew) | names.read
    return chosen[::-1]


@dataclass
class Names:
    """What some lines do with names."""

    made: set[str]  # stored, or changed
    made_anew: set[str]  # stored whatever happens, and not read before
    read: set[str]  # of what was there before


def names_of(body: Iterable[ast.stmt]) -> Names:
    """The names of a block of statements, one after the other."""
    made: set[str] = set()
    made_anew: set[str] = set()
    read: set[str] = set()
    for statement in body:
        blocks = [getattr(statement, kind, []) for kind in ("body", "orelse")]
        if not isinstance(statement, ast.With | ast.For | ast.If | ast.While):
            blocks = []
        heads: list[ast.AST] = [statement]
        if blocks:  # what stands on its first line
            heads = [n for n in ast.iter_child_nodes(statement) if not isinstance(n, ast.stmt)]
        parts = [simple_names(heads), *(names_of(block) for block in blocks)]
        sure = len(parts) if isinstance(statement, ast.With) else 1
        for k, names in enumerate(parts):
            read |= names.read - made_anew
            made |= names.made
            if k < sure:
                made_anew |= names.made_anew - read
    return Names(made, made_anew, read)


def simple_names(nodes: Iterable[ast.AST]) -> Names:
    """The names of statements or expressions without blocks, or of a whole function."""
    stored: set[str] = set()
    read: set[str] = set()
    changed: set[str] = set()  # x[...] = ..., x.y = ..., x += ..., and the line x.append(...)
    inside: set[str] = set()  # of functions and comprehensions: nobody else sees them
    for top in nodes:
        for node in ast.walk(top):
            if isinstance(node, ast.Name):
                (read if isinstance(node.ctx, ast.Load) else stored).add(node.id)
            elif isinstance(node, ast.alias):
                stored.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.arg):
                inside.add(node.arg)
            elif isinstance(node, ast.comprehension):
                inside |= {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
            elif isinstance(node, ast.AugAssign):
                changed |= {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
            elif isinstance(node, ast.Attribute | ast.Subscript):
                if isinstance(node.ctx, ast.Store):
                    changed.add(owner(node))
        if isinstance(top, ast.FunctionDef):
            inside |= stored
            stored = {top.name}
        if isinstance(top, ast.Expr) and isinstance(top.value, ast.Call):
            called = top.value.func
            if isinstance(called, ast.Attribute) and called.attr in CHANGES:
                changed.add(owner(called))
    inside -= changed
    read = (read | changed) - inside
    stored -= inside
    return Names(made=stored | changed, made_anew=stored - read, read=read)


def owner(node: ast.AST) -> str:
    """The name that x.y[0].z belongs to: x; "" where it is no name."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


# ---- exercises


def how_to_work(minutes: list[int], name: str, form: str) -> str:
    """What stands at the top of a notebook for students; nbgrader hands out no solutions."""
    alone = form == "nbgrader"
    number = f"{len(minutes)} exercise{'s' if len(minutes) > 1 else ''}"
    told = HOW.format(number=number, solution="" if alone else " and a solution")
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


def exercise_drift(source: Path, folder: Path = EXERCISES) -> str | None:
    """How the committed notebooks for students differ from their source, or None."""
    committed = {path.stem for path in students_notebooks(source, folder)}
    made = build_parts(source) if has_exercises(source) else {}
    for stem, notebook in made.items():
        path = folder / f"{stem}.ipynb"
        if not path.is_file():
            return f"exercises/{path.name} does not exist"
        if path.read_text(encoding="utf-8") != nbformat.writes(notebook) + "\n":
            return f"exercises/{path.name} differs from its source"
    for stem in sorted(committed - set(made)):
        return f"exercises/{stem}.ipynb is there, and no part of {source.name} makes it"
    return None


def students_notebooks(source: Path, folder: Path) -> list[Path]:
    """The notebooks for students of a source that lie there."""
    number, _, title = source.stem.partition("_")
    return sorted(folder.glob(f"{number}*_{title}.ipynb"))


def write_exercises(source: Path, folder: Path, form: str = "exercises") -> None:
    """Write the notebooks for students of a source; those that it no longer makes are removed."""
    made = build_parts(source, form) if has_exercises(source) else {}
    for path in students_notebooks(source, folder):
        if path.stem not in made:
            path.unlink()
    for stem, notebook in made.items():
        write(notebook, folder / f"{stem}.ipynb")


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
        target = NOTEBOOKS / f"{source.stem}.ipynb"
        if options.check:
            found = [] if options.exercises else [drift(source, target)]
            found = [problem for problem in (*found, exercise_drift(source)) if problem]
            problems += len(found)
            print("\n".join(found) or f"{target.name} is up to date")
            continue
        if options.nbgrader is not None:
            options.nbgrader.mkdir(parents=True, exist_ok=True)
            write_exercises(source, options.nbgrader, "nbgrader")
            continue
        write_exercises(source, EXERCISES)
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
