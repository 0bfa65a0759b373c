"""Sweeps and their collection, on a notebook of three cells."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from test_project import ROOT, load_tool

from ctt_helpers.files import read_json, write_json

COLLECT = load_tool("collect_runs")
METADATA = load_tool("build_notebooks").METADATA
PARAMETERS = 'seed: int = 0\nrate: float | None = None\nout: str = "../runs/x"'
WORK = """import json, pathlib
import matplotlib.pyplot as plt
assert rate != 2, "a rate of two is too much"
assert isinstance(rate, float), repr(rate)
folder = pathlib.Path(out)
folder.mkdir(parents=True)  # fails on a second run in the same place
report = {"loss": seed + rate, "by": [1.5, 10 * rate], "at": "cpu"}
(folder / "report.json").write_text(json.dumps(report))
(folder / "table.csv").write_text(f"task,n,accuracy\\nsimple,5,{rate}\\npp,5,0.5\\n")
plt.plot([1, 2])
plt.show()"""


@pytest.fixture
def notebook(tmp_path) -> Path:
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("rate = 1.0 if rate is None else rate"),
        nbformat.v4.new_code_cell("%matplotlib inline\n" + WORK),
    ]
    path = tmp_path / "notebooks" / "09_tiny.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), path)
    return path


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "MPLBACKEND": ""}
    )


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure_and_where_it_stopped(notebook, tmp_path):
    command = (notebook, "--name", "try", "--runs", tmp_path / "runs", "-p", "rate", "1e-05", "2")
    first = tool("sweep", *command)
    assert first.returncode == 1
    assert "rate=1e-05 ... " in first.stdout and "rate=2 ... failed" in first.stdout
    assert "1 of 2 are in" in first.stdout
    assert "a rate of two is too much" in first.stderr and "cell" in first.stderr
    done, failed = (tmp_path / "runs" / "try" / name for name in ("rate=1e-05", "rate=2"))
    assert {p.name for p in done.iterdir()} == {
        "09_tiny.ipynb",
        "09_tiny",
        "figures",
        "parameters.json",
        "versions.json",
    }
    assert read_json(done / "parameters.json")["parameters"] == {"rate": 1e-05}
    assert {"python", "torch", "ctt_helpers"} <= set(read_json(done / "versions.json"))
    assert [p.read_bytes()[:4] for p in (done / "figures").iterdir()] == [b"\x89PNG"]
    assert (failed / "09_tiny.ipynb").is_file() and not (failed / "versions.json").exists()

    text = notebook.read_text(encoding="utf-8")
    before = (done / "09_tiny.ipynb").stat().st_mtime_ns
    again = tool("sweep", *command[:-1])  # without the one that fails
    assert again.returncode == 0 and "rate=1e-05 ... is there" in again.stdout
    assert (done / "09_tiny.ipynb").stat().st_mtime_ns == before
    notebook.write_text(text.replace("a rate of two", "two"), encoding="utf-8")
    other = tool("sweep", *command[:-1])
    assert (
        other.returncode == 1
        and "holds a run of other code or parameters. Take another --name" in other.stderr
    )

    collected = tool("collect_runs", tmp_path / "runs" / "try")
    assert (
        collected.returncode == 2
        and "No number that differs between runs matches '*'" in collected.stderr
    )
    assert (
        "1 runs (1 more unfinished" in collected.stdout
    )  # the table is there, there is nothing to compare
    assert (tmp_path / "runs" / "try" / "collected.csv").is_file()


def fake_runs(folder: Path, grid: list[dict]) -> Path:
    """Finished runs as `sweep` leaves them: loss = seed + 10 rate; the accuracy of pp never
    changes.
    """
    for number, given in enumerate(grid):
        run = folder / f"run{number}"
        write_json(
            run / "parameters.json", {"notebook": "09_tiny.ipynb", "code": "", "parameters": given}
        )
        write_json(run / "versions.json", {})
        numbers = {
            "loss": given["seed"] + 10 * given["rate"],
            "ok": True,
            "at": "cpu",
            "many": list(range(1000)),
        }
        write_json(
            run / "09_tiny" / "report.json", {**numbers, "nested": {"by": [1, given["rate"]]}}
        )
        table = pd.DataFrame(
            {"task": ["simple", "pp", "pp"], "k": [1, 1, 2], "accuracy": [given["rate"], 0.5, 0.5]}
        )
        table.to_csv(run / "09_tiny" / "table.csv", index=False)
        write_json(
            run / "09_tiny" / "crosscoder" / "cfg.json", {"d_model": 64}
        )  # a subfolder: no result
    return folder


def test_the_table_holds_every_number_once(tmp_path):
    grid = [{"seed": s, "rate": r, "revisions": ["a", "b"]} for s in (0, 1) for r in (0.1, 0.3)]
    table = COLLECT.collect(fake_runs(tmp_path, grid))
    write_json(tmp_path / "broken" / "parameters.json", {})  # without versions.json: not finished
    assert table.equals(COLLECT.collect(tmp_path))
    assert list(table.columns) == [
        "run",
        "seed",
        "rate",
        "revisions",
        "file",
        "row",
        "metric",
        "value",
    ]
    assert (
        set(table["revisions"]) == {"['a', 'b']"}
        and not table["metric"].str.contains("many|at|d_model").any()
    )
    wide = table.pivot(index=["seed", "rate"], columns=["file", "row", "metric"], values="value")
    assert wide.shape == (4, 4 + 3)  # loss, ok, nested.by.0 and .1; three accuracies
    assert np.allclose(wide["report.json", "", "loss"], [0 + 1, 0 + 3, 1 + 1, 1 + 3])
    assert np.allclose(
        wide["report.json", "", "nested.by.1"], wide["table.csv", "simple 1", "accuracy"]
    )


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        (
            {"task": ["a", "b"], "n": [5, 5], "x": [0.1, 0.2]},
            {("a", "n"), ("b", "n"), ("a", "x"), ("b", "x")},
        ),
        ({"task": ["a", "a"], "step": [1, 2], "x": [0.1, 0.2]}, {("a 1", "x"), ("a 2", "x")}),
        ({"feature": [7, 9], "x": [0.1, 0.2]}, {("7", "x"), ("9", "x")}),
        ({"x": [0.1, 0.2]}, {("#0", "x"), ("#1", "x")}),
        ({"task": ["a", "a"], "x": [0.1, 0.2]}, {("a #0", "x"), ("a #1", "x")}),
    ],
)
def test_rows_of_a_table_are_told_apart(table, rows):
    found = list(COLLECT.numbers_of_table(pd.DataFrame(table)))
    assert {(row, metric) for row, metric, _ in found} == rows and len(found) == len(rows)


def test_the_figure_compares_what_differs(tmp_path, capsys):
    grid = [
        {"seed": s, "rate": r, "layer": layer}
        for s in (0, 1)
        for r in (0.3, 0.1)
        for layer in (1, 2)
    ]
    table = COLLECT.collect(fake_runs(tmp_path, grid))
    fig = COLLECT.figure(table)
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        "table.csv simple 1 accuracy",
        "report.json loss",
        "report.json nested.by.1",
    ]
    assert "3 of 3 numbers" in capsys.readouterr().out
    loss = fig.axes[1]
    assert loss.get_xlabel() == "rate" and [t.get_text() for t in loss.get_xticklabels()] == [
        "0.1",
        "0.3",
    ]
    assert [t.get_text() for t in fig.axes[0].get_legend().get_texts()] == ["1", "2"]  # the layers
    dots, line = loss.lines[:2]
    assert sorted(dots.get_ydata()) == [1, 2, 3, 4] and list(line.get_ydata()) == [1.5, 3.5]
    (only,) = COLLECT.figure(table, "*loss").axes
    assert only.get_title(loc="left") == "report.json loss"
    with pytest.raises(ValueError, match=r"matches '\*simple\* k', of 0 that match"):
        COLLECT.figure(table, "*simple* k")
    seeds = COLLECT.figure(table[(table["rate"] == 0.1) & (table["layer"] == 1)]).axes
    assert [ax.get_xlabel() for ax in seeds] == ["seed"]  # only the loss differs


@pytest.mark.slow
def test_what_cannot_be_done_is_said(notebook, tmp_path):
    wrong = tool("sweep", notebook, "--name", "x", "--runs", tmp_path / "runs", "-p", "sede", "1")
    assert wrong.returncode == 2 and not (tmp_path / "runs").exists()
    assert (
        "'sede' cannot be set. Did you mean 'seed'? This notebook has: seed, rate." in wrong.stderr
    )
    none = tool("sweep", notebook, "--name", "x", "-p", "seed")
    assert "-p seed needs a value, or several" in none.stderr
    empty = tool("collect_runs", tmp_path)
    assert empty.returncode == 2 and "holds 0 finished runs with numbers" in " ".join(
        empty.stderr.split()
    )


def papermills(folder: Path) -> list[psutil.Process]:
    """The papermill processes that write into a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "papermill" in words and any(word.startswith(str(folder)) for word in words):
            found.append(process)
    return found


def started(command: list[str], folder: Path) -> tuple[subprocess.Popen, psutil.Process]:
    """A sweep whose notebook is running, and the process that runs it."""
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while sweep.poll() is None:
        for process in papermills(folder):
            if process.children():  # its kernel
                return sweep, process
        time.sleep(0.1)
    raise AssertionError(sweep.communicate())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals and locks of POSIX")
def test_a_sweep_that_is_ended_leaves_nothing_running_or_keeps_its_folder(tmp_path):
    notebook = tmp_path / "notebooks" / "09_slow.ipynb"
    notebook.parent.mkdir()
    cells = [
        nbformat.v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import time; time.sleep(500)"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), notebook)
    given = [notebook, "--name", "try", "--runs", tmp_path / "runs", "-p", "seed", "1"]
    command = [sys.executable, str(ROOT / "tools" / "sweep.py"), *map(str, given)]
    for ending in (signal.SIGTERM, signal.SIGHUP):
        sweep, papermill = started(command, tmp_path)
        both = [papermill, *papermill.children(recursive=True)]
        sweep.send_signal(ending)
        _, told = sweep.communicate(timeout=60)
        assert "the same command goes on" in told
        assert psutil.wait_procs(both, timeout=60)[1] == []
    # after KILL nothing of ours runs: Linux ends what it started; elsewhere that keeps its folder,
    # and the next one is told
    sweep, papermill = started(command, tmp_path)
    both = [papermill, *papermill.children(recursive=True)]
    sweep.kill()
    sweep.communicate()
    if sys.platform == "linux":
        assert psutil.wait_procs(both, timeout=60)[1] == []
        return
    try:
        again = tool("sweep", *given)
        assert again.returncode == 1 and "is in use by process" in again.stderr
        assert papermills(tmp_path) == [papermill]
    finally:
        for process in [*papermill.children(recursive=True), papermill]:
            process.kill()


def test_values_and_folders_of_a_sweep(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    sweep = load_tool("sweep")
    texts = [
        "1",
        "1e-05",
        "None",
        "True",
        "step256",
        "['step1', 'step2']",
        "a/b-c",
        "1,2",
        "{[]: 1}",
    ]
    values = [1, 1e-05, None, True, "step256", ["step1", "step2"], "a/b-c", "1,2", "{[]: 1}"]
    assert [sweep.parse(text) for text in texts] == values
    assert (
        sweep.label({"seed": 0, "revisions": ["step1", "step2"]}) == "seed=0,revisions=step1-step2"
    )
    assert sweep.label({"crosscoder": "../runs/a b/x"}) == "crosscoder=.._runs_a_b_x"
    long = [sweep.label({"revisions": [f"step{i}" for i in range(n)]}) for n in (30, 31)]
    assert long[0] != long[1] and all(len(name) <= 120 for name in long)
