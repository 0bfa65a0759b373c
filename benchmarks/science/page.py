"""FOUND.md, one page, and TABLES.md, all tables: made from the CSV files beside them."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pandas as pd

from benchmarks.report import MACHINE, markdown
from ctt_helpers.runtime import atomic_path, read_json

FOUND, TABLES = "FOUND.md", "TABLES.md"


def write(out: Path, parts: Mapping[str, ModuleType]) -> None:
    """Write both pages from whatever tables `out` holds."""
    for name, text in make(out, parts).items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def make(out: Path, parts: Mapping[str, ModuleType]) -> dict[str, str]:
    """Name -> text of both pages: of each part its `headline` and `brief` table, and its `section`."""
    known = read_json(out / MACHINE)
    frames = {
        name: {table: pd.read_csv(out / f"{table}.csv") for table in known[name]["tables"]}
        for name in parts
        if name in known
    }
    made = [f"{name}: `{known[name]['command']}`, {_time(known[name])}" for name in frames]
    machine = next(iter(known.values()))
    end = f"Made on {machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}. {'; '.join(made)}."
    note = (
        "Every figure stands in a CSV file beside this page; every sentence with a figure is made from them. Effects "
        "are exact single-latent ablations unless said otherwise, in logits."
    )
    found = ["# What we found", f"{note} All tables, with what each column means: [{TABLES}]({TABLES})."]
    tables = ["# What we found: all tables", note]
    for name, of_part in frames.items():
        found += [parts[name].headline(of_part), parts[name].brief(of_part)]
        tables.append(parts[name].section(of_part))
    return {FOUND: "\n\n".join([*found, end]) + "\n", TABLES: "\n\n".join([*tables, end]) + "\n"}


def _time(about: Mapping) -> str:
    """The seconds, and whether trainings are among them, where that was noted."""
    told = ", ".join(f"{n} {how}" for how, n in sorted(about.get("trainings", {}).items()))
    return f"{about['seconds']} s" + (f" (trainings: {told})" if told else "")


def table(frame: pd.DataFrame, digits: Mapping[str, int] | None = None) -> str:
    """`report.markdown` for columns with a bar in their names, as |IE| has."""

    def escaped(name: str) -> str:
        return str(name).replace("|", "\\|")

    return markdown(frame.rename(columns=escaped), {escaped(k): v for k, v in (digits or {}).items()})
