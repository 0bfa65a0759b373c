"""One tidy table and one figure out of the runs of a sweep.

In the table each row is a number: run, the parameters that were set, file, row, metric, value.
Numbers come from the JSON and CSV files that the notebook wrote, subfolders left out. In a CSV file
the columns of text name a row, with as many columns of whole numbers as it takes to tell all rows
apart.
"""

import fnmatch
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ctt_helpers.files import inside, read_json, read_table
from ctt_helpers.notebook.plots import look

FIXED = ["file", "row", "metric", "value"]
LONGEST = 32  # a longer list in a JSON file is an array, not a metric
PANELS = 12


def numbers_of_json(obj: Any, name: str = "") -> Iterator[tuple[str, str, float]]:
    """The numbers in a JSON value as (row "", dotted name, number)."""
    if isinstance(obj, bool | int | float):
        yield "", name, float(obj)
    elif isinstance(obj, dict) or (isinstance(obj, list) and len(obj) <= LONGEST):
        for key, value in obj.items() if isinstance(obj, dict) else enumerate(obj):
            yield from numbers_of_json(value, f"{name}.{key}" if name else str(key))


def numbers_of_table(table: pd.DataFrame) -> Iterator[tuple[str, str, float]]:
    """The numbers in a table as (row, column, number)."""
    keys = [c for c in table if not pd.api.types.is_numeric_dtype(table[c])]
    for column in [c for c in table if pd.api.types.is_integer_dtype(table[c])]:
        if not table.duplicated(keys or None).any() and keys:
            break
        keys.append(column)
    texts = [" ".join(str(table[key].iloc[i]) for key in keys) for i in range(len(table))]
    if len(set(texts)) < len(texts):
        texts = [f"{text} #{i}".strip() for i, text in enumerate(texts)]
    for column in [c for c in table if c not in keys]:
        for text, value in zip(texts, table[column], strict=True):
            yield text, str(column), float(value)


def collect(runs: Iterable[Path]) -> pd.DataFrame:
    """The table of finished runs.

    Returns:
        One row a number: run, the parameters (a list or None as text), file, row, metric, value.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        note = read_json(run / "parameters.json")
        given = {
            k: v if isinstance(v, int | float | str) else str(v)
            for k, v in note["parameters"].items()
        }
        results = inside(run, Path(note["notebook"]).stem, run / "parameters.json")
        for file in sorted([*results.glob("*.json"), *results.glob("*.csv")]):
            read = (
                numbers_of_json(read_json(file))
                if file.suffix == ".json"
                else numbers_of_table(read_table(file))
            )
            fixed = (
                {"file": file.name, "row": row, "metric": metric, "value": v}
                for row, metric, v in read
            )
            rows += [{"run": run.name, **given, **numbers} for numbers in fixed]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["run", *FIXED])


def figure(table: pd.DataFrame, pattern: str = "*") -> Figure:
    """Small panels, one a metric that differs between runs: a dot a run, a line through the means.

    The first parameter other than the seed that was given several values is the x axis, the others
    are colours.

    Args:
        table: what `collect` gives.
        pattern: of "file row metric", with * and ?; the first twelve that all runs have are drawn,
            small files first.

    Raises:
        ValueError: nothing matches, or nothing that matches differs between runs.
    """
    varied = [c for c in table.columns.drop(["run", *FIXED]) if table[c].nunique(dropna=False) > 1]
    axes = [c for c in varied if c != "seed"] or varied or ["run"]
    name = (table["file"] + " " + table["row"] + " " + table["metric"]).str.replace("  ", " ")
    table = table.assign(panel=name).loc[[fnmatch.fnmatch(n, pattern) for n in name]]
    seen = table.groupby("panel", sort=False).agg(
        file=("file", "first"), runs=("run", "nunique"), values=("value", "nunique")
    )
    seen = seen.assign(size=seen.groupby("file")["runs"].transform("size")).sort_values(
        "size", kind="stable"
    )
    differ = seen[seen["values"] > 1]
    chosen = list(
        differ.index[differ["runs"] == differ["runs"].max()]
    )  # what only some runs have compares nothing
    if not chosen:
        raise ValueError(
            f"No number that differs between runs matches {pattern!r}, of {len(seen)} that match "
            "at all."
        )
    print(
        f"{min(len(chosen), PANELS)} of {len(chosen)} numbers that all runs have and that differ "
        "are drawn"
    )
    chosen = chosen[:PANELS]
    x = axes[0]
    places = {value: i for i, value in enumerate(sorted(table[x].unique(), key=_order))}
    table = table.assign(
        color=table[axes[1:]].astype(str).agg(", ".join, axis=1) if axes[1:] else ""
    )
    columns = min(3, len(chosen))
    with look.style():
        fig, panels = plt.subplots(
            -(-len(chosen) // columns),
            columns,
            figsize=(3 * columns, 2.2 * -(-len(chosen) // columns)),
            squeeze=False,
        )
        for ax in panels.flat[len(chosen) :]:
            ax.remove()
        for ax, panel in zip(panels.flat, chosen, strict=False):
            here = table[table["panel"] == panel]
            for label, color in look.task_colors(sorted(here["color"].unique())).items():
                points = here[here["color"] == label].assign(place=lambda d: d[x].map(places))
                ax.plot(points["place"], points["value"], "o", color=color, alpha=0.6)
                ax.plot(points.groupby("place")["value"].mean(), color=color, label=label)
            ax.set_title("\n".join(textwrap.wrap(panel, 34)), fontweight="normal")
            ax.set_xticks(range(len(places)), [str(v) for v in places])
            ax.set_xlabel(x)
        fig.suptitle(f"{table['run'].nunique()} runs: dots; their means: lines", fontweight="bold")
        if axes[1:]:
            panels.flat[0].legend(title=", ".join(axes[1:]))
    return fig


def _order(value: Any) -> tuple:
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))
