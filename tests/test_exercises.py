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


def committed(source: Path) -> nbformat.NotebookNode:
    return nbformat.read(TOOL.EXERCISES / f"{source.stem}.ipynb", as_version=4)


def stem(source: Path) -> str:
    return source.stem[:2]


# ---- drift


def test_they_are_those_of_their_sources():
    problems = [TOOL.exercise_drift(s, TOOL.EXERCISES / f"{s.stem}.ipynb") for s in TOOL.sources()]
    assert not any(problems), f"{[p for p in problems if p]}: tools/build_notebooks.py --exercises"
    assert {p.stem for p in TOOL.EXERCISES.glob("*.ipynb")} == {s.stem for s in SOURCES}
    assert {"01", "02", "03", "04"} <= {stem(s) for s in SOURCES}


GOOD = '''\
# %% [markdown]
# # A title, with a [link](GLOSSARY.md) and [another](https://example.org)

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
    assert "1 exercises, about 3 minutes" in students.cells[2].source
    assert "two hints and a solution, folded" in students.cells[2].source
    assert "two hints, folded" in nbgrader.cells[2].source
    graded = students.cells[-1].metadata.nbgrader
    assert (graded.grade_id, graded.points, graded.locked) == ("double_check", 2, True)
    assert students.cells[-2].metadata.nbgrader.solution
    assert "nbgrader" not in complete.cells[-2].metadata


def test_a_notebook_that_differs_from_its_source_is_noticed(source, tmp_path):
    target = tmp_path / "made" / "01_x.ipynb"
    assert "does not exist" in TOOL.exercise_drift(source, target)
    TOOL.write(TOOL.build(source, "exercises"), target)
    assert TOOL.exercise_drift(source, target) is None
    source.write_text(GOOD.replace("two = 2", "two = 2.0"), encoding="utf-8")
    assert "differs from its source" in TOOL.exercise_drift(source, target)  # the folded solution
    source.write_text("# %%\n1\n", encoding="utf-8")
    assert "has no exercise" in TOOL.exercise_drift(source, target)


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


@pytest.mark.parametrize("source", SOURCES, ids=stem)
def test_they_hold_no_outputs_and_no_solutions(source):
    notebook, complete = committed(source), TOOL.build(source)
    assert not {"widgets", "papermill"} & set(notebook.metadata)
    own = {cell.id: cell for cell in complete.cells}
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and set(ids) == {*own, "how-to-work"}
    grades = []
    for cell in notebook.cells:
        assert "### " + "BEGIN SOLUTION" not in cell.source
        if cell.cell_type != "code":
            continue
        assert cell.outputs == [] and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 36
        about = cell.metadata.get("nbgrader")
        if about is None:
            assert cell.id == "set-up" or cell.source == own[cell.id].source
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


@pytest.mark.parametrize("source", SOURCES, ids=stem)
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
    "source",
    [
        pytest.param(s, id=stem(s), marks=pytest.mark.slow if stem(s) == "01" else pytest.mark.long)
        for s in SOURCES
    ],
)
def test_run_all_goes_through_with_nothing_written(source, tmp_path, monkeypatch):
    """Every stub says what to write, and no other cell fails."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "notebooks" / "exercises"
    folder.mkdir(parents=True)
    notebook = copy.deepcopy(committed(source))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    errors = [
        output.ename
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    assert errors == ["NotImplementedError"] * len(EXERCISE_NAMES[source.stem])
    assert (tmp_path / "runs" / stem(source)).is_dir()  # where the project's results go


# ---- grading


@pytest.mark.slow
def test_the_autograder_tells_a_solution_a_stub_and_a_wrong_answer(tmp_path, monkeypatch, capsys):
    grader = load_tool("grade")
    (source,) = [s for s in SOURCES if stem(s) == "01"]
    notebook, solved = committed(source), TOOL.build(source)
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
