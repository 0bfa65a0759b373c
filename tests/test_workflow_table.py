"""The table and the figure of a sweep, of runs that were written by hand."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_project import ROOT

from ctt_helpers.files import write_json

sys.path.insert(0, str(ROOT / "workflow"))
import table as tables


def fake_runs(folder: Path, grid: list[dict]) -> Path:
    """Finished runs as a sweep leaves them: loss = seed + 10 rate; the accuracy of pp never
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


def collected(folder: Path) -> pd.DataFrame:
    return tables.collect(mark.parent for mark in sorted(folder.glob("*/versions.json")))


def test_the_table_holds_every_number_once(tmp_path):
    grid = [{"seed": s, "rate": r, "revisions": ["a", "b"]} for s in (0, 1) for r in (0.1, 0.3)]
    table = collected(fake_runs(tmp_path, grid))
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
    found = list(tables.numbers_of_table(pd.DataFrame(table)))
    assert {(row, metric) for row, metric, _ in found} == rows and len(found) == len(rows)


def test_the_figure_compares_what_differs(tmp_path, capsys):
    grid = [
        {"seed": s, "rate": r, "layer": layer}
        for s in (0, 1)
        for r in (0.3, 0.1)
        for layer in (1, 2)
    ]
    table = collected(fake_runs(tmp_path, grid))
    fig = tables.figure(table)
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
    (only,) = tables.figure(table, "*loss").axes
    assert only.get_title(loc="left") == "report.json loss"
    with pytest.raises(ValueError, match=r"matches '\*simple\* k', of 0 that match"):
        tables.figure(table, "*simple* k")
    seeds = tables.figure(table[(table["rate"] == 0.1) & (table["layer"] == 1)]).axes
    assert [ax.get_xlabel() for ax in seeds] == ["seed"]  # only the loss differs


def test_of_no_numbers_there_is_no_figure():
    empty = tables.collect([])
    assert list(empty.columns) == ["run", "file", "row", "metric", "value"]
    with pytest.raises(ValueError, match=r"No number that differs .* of 0 that match at all"):
        tables.figure(empty)
