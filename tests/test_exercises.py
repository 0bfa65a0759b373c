"""The notebooks for students: from the same sources, without solutions, and nobody gets stuck."""

import ast
import copy
import csv
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_project import load_tool

ROOT = Path(__file__).resolve().parents[1]
TOOL = load_tool("build_notebooks")
SOURCES = [source for source in TOOL.sources() if TOOL.has_exercises(source)]
# (source, name of a notebook that it makes)
PARTS = [(source, stem) for source in SOURCES for stem in TOOL.build_parts(source)]


def committed(stem: str) -> nbformat.NotebookNode:
    return nbformat.read(TOOL.EXERCISES / f"{stem}.ipynb", as_version=4)


def number(value: Path | str) -> str:
    return "" if isinstance(value, Path) else value.split("_")[0]


# ---- drift


def test_they_are_those_of_their_sources():
    problems = [TOOL.exercise_drift(source) for source in TOOL.sources()]
    assert not any(problems), f"{[p for p in problems if p]}: tools/build_notebooks.py --exercises"
    assert {p.stem for p in TOOL.EXERCISES.glob("*.ipynb")} == {stem for _, stem in PARTS}
    assert {"00", "01", "02a", "03c", "04a"} <= {number(stem) for _, stem in PARTS}


GOOD = '''\
# %% [markdown]
# # A title, with a [link](GLOSSARY.md) and [another](https://example.org)
# **Time:** 10 minutes to read, one to run. **You need:** nothing.

# %% [markdown]
# ### Exercise · Double
# *Difficulty 1 of 5 · importance 2 of 5 · 3 minutes*
#
# Double it.
#
# <details><summary>Hint 1</summary>
#
# One.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Two.
#
# </details>

# %% exercise="double"
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION give back twice the "number"
    two = 2
    return two * x
    ### END SOLUTION


# %% check="double" points=2
checks.double(double)
'''


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "01_x.py"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_one_source_makes_three_notebooks(source):
    complete, students, nbgrader = (
        TOOL.build(source, form) for form in ("complete", "exercises", "nbgrader")
    )
    assert complete.cells[-2].source == (
        'def double(x):\n    """Twice x."""\n    two = 2\n    return two * x'
    )
    assert students.cells[-2].source == (
        'def double(x):\n    """Twice x."""\n'
        "    raise NotImplementedError(\"give back twice the 'number'\")"
    )
    folded = students.cells[-3].source.split("<details>")[-1]
    assert "Solution</summary>\n\n```python\ntwo = 2\nreturn two * x\n```\n" in folded
    assert "### BEGIN SOLUTION" in nbgrader.cells[-2].source
    assert "Solution</summary>" not in nbgrader.cells[-3].source  # an answer to be graded
    links = re.findall(r"\]\(([^)]+)\)", students.cells[1].source)
    assert links == ["../GLOSSARY.md", "https://example.org"]
    assert "**Time:** 10 minutes to read, one" in complete.cells[1].source
    assert (
        "**Time:** 13 minutes: 10 to read, 3 for the exercises. **You" in students.cells[1].source
    )
    assert "1 exercise." in students.cells[2].source
    assert "two hints and a solution, folded" in students.cells[2].source
    assert "two hints, folded" in nbgrader.cells[2].source
    graded = students.cells[-1].metadata.nbgrader
    assert (graded.grade_id, graded.points, graded.locked) == ("double_check", 2, True)
    assert students.cells[-2].metadata.nbgrader.solution
    assert "nbgrader" not in complete.cells[-2].metadata


def test_a_notebook_that_differs_from_its_source_is_noticed(source, tmp_path):
    folder = tmp_path / "made"
    assert "does not exist" in TOOL.exercise_drift(source, folder)
    TOOL.write_exercises(source, folder)
    assert TOOL.exercise_drift(source, folder) is None
    source.write_text(GOOD.replace("two = 2", "two = 2.0"), encoding="utf-8")
    assert "differs from its source" in TOOL.exercise_drift(source, folder)  # the folded solution
    source.write_text("# %%\n1\n", encoding="utf-8")
    assert "no part of 01_x.py makes it" in TOOL.exercise_drift(source, folder)
    (folder / "02_x.ipynb").write_text("mine", encoding="utf-8")
    TOOL.write_exercises(source, folder)
    assert [path.name for path in folder.iterdir()] == ["02_x.ipynb"]


IN_PARTS = """\
# %% [markdown] part="first steps" reading=4
# # 01 · A title
# **Time:** 10 minutes to read, one to run. **You need:** nothing.

# %% tags=["parameters"]
n: int = 3

# %%
import numpy as np
import pandas as pd
rows, unused = [n], np.zeros(n)

# %%
rows.append(4)

# %%
if n > 5:
    table = pd.DataFrame({"a": rows})
else:
    table = pd.DataFrame({"b": rows})

# %%
print(unused)
total = 0

# %%
total = sum(rows)
figure = [row for row in rows]

# %% [markdown] part="and on" reading=6
# ## The rest

# %%
def last():
    return table.iloc[-1, 0] + total
"""


def test_a_later_part_brings_what_it_needs_and_nothing_else(source):
    exercise = GOOD[GOOD.index("# %% [markdown]\n# ### Exercise") :]
    source.write_text(IN_PARTS + "\n\n" + exercise + "\n# %%\nlast()\n", encoding="utf-8")
    first, second = TOOL.build_parts(source).items()
    assert (first[0], second[0]) == ("01a_x", "01b_x")
    top = second[1].cells[1].source
    assert top.startswith("# 01 · A title · part 2 of 2: and on\n")
    assert "9 minutes: 6 to read, 3 for the exercises. **You need:** [part 1](01a_x.ipynb)." in top
    carried = [c for c in second[1].cells if c.metadata.get("jupyter", {}).get("source_hidden")]
    assert [cell.source.startswith(TOOL.SILENT) for cell in carried] == [False] + 4 * [True]
    begins = [cell.source.removeprefix(f"{TOOL.SILENT}\n").split("\n")[0] for cell in carried]
    assert begins == [
        "n: int = 3",
        "import numpy as np",
        "rows.append(4)",
        "if n > 5:",
        *begins[4:],
    ]
    assert begins[4:] == ["total = sum(rows)"]  # not the cell that prints and sets another total
    space: dict = {}
    for cell in second[1].cells:
        if cell.cell_type == "code" and cell.id != "set-up" and "nbgrader" not in cell.metadata:
            exec(cell.source.removeprefix(TOOL.SILENT), space)
    assert space["last"]() == 4 + 7
    # the first part holds the rest, and every cell of the source is in one of the two
    ids = {cell.id for cell in first[1].cells} | {cell.id for cell in second[1].cells}
    assert {cell.id for cell in TOOL.build(source).cells} <= ids


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("reading=6", "reading=5", "do not|minutes to read, and its top says 10"),
        ('part="first steps" reading=4', "", "the first part begins with the first cell"),
        ("**Time:** 10 minutes to read", "Ten minutes", "does not say its"),
        ("· 3 minutes", "· 40 minutes", "more than 45"),
    ],
)
def test_parts_that_take_too_long_or_do_not_add_up_are_refused(source, before, after, told):
    text = IN_PARTS + "\n\n" + GOOD[GOOD.index("# %% [markdown]\n# ### Exercise") :]
    assert before in text
    source.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        TOOL.build_parts(source)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("### END SOLUTION", "", "one pair of lines"),
        (' give back twice the "number"', "", "one pair of lines"),
        ('# %% exercise="double"', "# %%", "one pair of lines"),
        ('check="double"', 'check="triple"', "no check=NAME right under it"),
        ("checks.double(double)", "checks.double(3)", "does not call checks.NAME"),
        ("<details><summary>Hint 2</summary>", "", "two hints"),
        ("importance 2 of 5", "importance 9 of 5", "difficulty, importance and minutes"),
        ("</details>\n\n# %% exercise", "\n\n# %% exercise", "not closed"),
    ],
)
def test_an_exercise_that_lacks_something_is_refused(source, before, after, told):
    assert before in GOOD
    source.write_text(GOOD.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        TOOL.build(source)


# ---- what students get


@pytest.mark.parametrize(("source", "stem"), PARTS, ids=number)
def test_they_hold_no_outputs_and_no_solutions(source, stem):
    notebook, complete = committed(stem), TOOL.build(source)
    assert not {"widgets", "papermill"} & set(notebook.metadata)
    own = {cell.id: cell for cell in complete.cells}
    ids = [cell.id for cell in notebook.cells]
    first = complete.cells[1].id
    made = {"how-to-work", "carried", *(f"{first}-{k}" for k in range(2, 9))}
    assert len(set(ids)) == len(ids) and set(ids) <= {*own, *made}
    grades = []
    for cell in notebook.cells:
        assert "### " + "BEGIN SOLUTION" not in cell.source
        if cell.cell_type != "code":
            continue
        assert cell.outputs == [] and cell.execution_count is None
        assert len(cell.source.removeprefix(f"{TOOL.SILENT}\n").splitlines()) <= 25
        about = cell.metadata.get("nbgrader")
        if about is None:
            shown = cell.source.removeprefix(f"{TOOL.SILENT}\n")
            assert cell.id == "set-up" or shown == own[cell.id].source
            continue
        grades.append(about.grade_id)
        assert about.schema_version == 3 and about.solution != about.grade == about.locked
        assert (about.get("points", 0) > 0) == about.grade
        assert ("raise NotImplementedError(" in cell.source) == about.solution
    assert len(set(grades)) == len(grades) and grades[1::2] == [f"{g}_check" for g in grades[::2]]


def bound(tree: ast.AST) -> set[str]:
    """Names that a cell defines, at its top."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem[:2])
def test_no_cell_is_left_out(source):
    """What the complete notebook has stands in one of its parts; exercises in one alone."""
    parts = [committed(stem) for of, stem in PARTS if of == source]
    own = [cell.id for cell in TOOL.build(source).cells]
    assert set(own) <= {cell.id for part in parts for cell in part.cells}
    folded = [
        cell.id
        for part in parts
        for cell in part.cells
        if not cell.metadata.get("jupyter", {}).get("source_hidden") and cell.id in own
    ]
    assert [each for each in folded if each != "set-up"] == [
        each for each in own if each != "set-up"
    ]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem[:2])
def test_a_stuck_student_can_always_go_on(source):
    """No other cell reads what an exercise or its check defines, and nothing else does."""
    safe: set[str] = set()
    students: set[str] = set()
    for cell in TOOL.build(source).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        if {"exercise", "check"} & set(cell.metadata):
            students |= bound(tree)
            continue
        safe |= bound(tree)
        read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert not read & (students - safe), f"{cell.source[:80]}: {read & (students - safe)}"
        assert not bound(tree) & set(EXERCISE_NAMES[source.stem]), cell.source[:80]


EXERCISE_NAMES = {
    source.stem: [
        cell.metadata.exercise for cell in TOOL.build(source).cells if "exercise" in cell.metadata
    ]
    for source in SOURCES
}


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param(
            stem,
            id=number(stem),
            marks=pytest.mark.slow if number(stem) == "01" else pytest.mark.long,
        )
        for _, stem in PARTS
    ],
)
def test_run_all_goes_through_with_nothing_written(stem, tmp_path, monkeypatch):
    """Every stub says what to write, and no other cell fails."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "notebooks" / "exercises"
    folder.mkdir(parents=True)
    notebook = copy.deepcopy(committed(stem))
    stubs = sum("raise NotImplementedError(" in cell.source for cell in notebook.cells)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    errors = [
        output.ename
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    assert errors == ["NotImplementedError"] * stubs and stubs > 0
    assert list(folder.iterdir()) == []  # results go to the project's runs/
    if number(stem) == "01":
        assert (tmp_path / "runs" / "01").is_dir()


# ---- grading


@pytest.mark.slow
def test_the_autograder_tells_a_solution_a_stub_and_a_wrong_answer(tmp_path, monkeypatch, capsys):
    grader = load_tool("grade")
    (source,) = [s for s in SOURCES if s.stem.startswith("01")]
    notebook, solved = committed(source.stem), TOOL.build(source)
    own = {
        cell.metadata.exercise: cell.source for cell in solved.cells if "exercise" in cell.metadata
    }
    kept = []
    for cell in notebook.cells:
        name = grader.grade_id(cell)
        if name == "unwrap":
            cell.source = own["unwrap"]
        elif name == "pair_accuracy":
            cell.source = "def pair_accuracy(logits, position, answers):\n    return 0.5"
        elif name == "pair_accuracy_check":
            cell.source = "print('passed: pair_accuracy')"  # an answer of another kind
        if name != "unwrap_check":  # lost
            kept.append(cell)
    notebook.cells = kept
    nbformat.write(notebook, tmp_path / "student.ipynb")
    (tmp_path / "other.ipynb").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["grade.py", "student.ipynb", "other.ipynb"])
    assert grader.main() == 1
    told = capsys.readouterr()
    assert "student.ipynb: 1 of 4 points" in told.out and "other.ipynb: not graded" in told.err
    rows = {row["exercise"]: row for row in csv.DictReader(open("grades.csv", encoding="utf-8"))}
    assert {name: row["points"] for name, row in rows.items()} == {
        "unwrap": "1",
        "from_hidden_states": "0",
        "next_token_loss": "0",
        "pair_accuracy": "0",
    }
    assert rows["from_hidden_states"]["why"].startswith("NotImplementedError")
    assert rows["pair_accuracy"]["why"].startswith("CheckFailed: pair_accuracy is not right yet.")
