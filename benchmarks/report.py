"""Where results go: a CSV for each table, machine.json (who measured what), and TABLES.md."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch

from ctt_helpers.files import atomic_path, read_json, write_json

MACHINE = "machine.json"
PAGE = "TABLES.md"


def machine() -> dict[str, Any]:
    """What a time depends on: processor, cores, threads, load, torch."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


# ---- files of numbers


def save(
    out: Path, part: str, frames: Mapping[str, pd.DataFrame], about: Mapping[str, Any]
) -> None:
    """Write the tables of one part, and into machine.json what made them.

    Args:
        out: folder of the results; those of other parts stay.
        part: name of the part, under which it stands in machine.json.
        frames: name of a table -> the table; each becomes a CSV of that name.
        about: `machine()`, the command, the seconds it took.
    """
    for table, frame in frames.items():
        with atomic_path(out / f"{table}.csv") as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
    known = read_json(out / MACHINE) if (out / MACHINE).is_file() else {}
    earlier = known.get(part, {"tables": []})
    known[part] = {**about, "tables": list(dict.fromkeys([*earlier["tables"], *frames]))}
    if len(known[part]["tables"]) > len(frames):  # some tables alone were made anew
        commands = dict.fromkeys([*earlier["command"].split("; "), about["command"]])
        known[part]["command"] = "; ".join(commands)
    write_json(out / MACHINE, known)


def publish(
    out: Path, part: str, frames: Mapping[str, pd.DataFrame], about: Mapping[str, Any]
) -> None:
    """`save` for a benchmark; its tables on the page of all of them, and printed."""
    from benchmarks.__main__ import PARTS, TITLE  # which imports the benchmarks

    save(out, part, frames, about)
    page = write_tables(out, TITLE, PARTS)
    for frame in frames.values():
        print(frame.round(3).to_string(index=False))
    print(f"All tables: {page}")


# ---- the page of tables


def write_tables(out: Path, title: str, parts: Mapping[str, ModuleType]) -> Path:
    """Write TABLES.md from whatever tables are in `out`; returns its path.

    Args:
        out: folder of the results.
        title: of the page.
        parts: name of a part -> the module that makes its tables. The first line of the module's
            docstring is the heading; its `TABLES` says of each table what a row is, and what the
            columns mean.
    """
    known = read_json(out / MACHINE)
    blocks = [f"# {title}", f"Made from the CSV files beside this page, and from {MACHINE}."]
    for part, module in parts.items():
        if part not in known:
            continue
        about = known[part]
        blocks.append(f"## {module.__doc__.splitlines()[0].removesuffix('.')}")
        for table in about["tables"]:
            frame = pd.read_csv(out / f"{table}.csv")
            blocks += [f"### {table}.csv", module.TABLES[table], markdown(frame)]
        blocks.append(_made_by(about))
    page = out / PAGE
    with atomic_path(page) as temporary:
        temporary.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return page


def _made_by(about: Mapping[str, Any]) -> str:
    """One line: the command, the time it took, the machine."""
    trainings = [f"{count} {how}" for how, count in sorted(about.get("trainings", {}).items())]
    told = f" (trainings: {', '.join(trainings)})" if trainings else ""
    gpu = f", {about['gpu']}" if "gpu" in about else ""
    return (
        f"Made by `{about['command']}` in {about['seconds']} s{told} on {about['cpu']}{gpu}, "
        f"{about['cores']} cores, {about['threads']} torch thread(s), torch {about['torch']}; load "
        f"average at the start {about['load_average']}."
    )


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown, with three significant digits."""
    sides = ["---:" if pd.api.types.is_numeric_dtype(frame[column]) else "---" for column in frame]
    lines = [_line(frame.columns), _line(sides)]
    # row by row, but each column with its own type
    columns = [frame[column].tolist() for column in frame]
    lines += [_line(row) for row in zip(*columns, strict=True)]
    return "\n".join(lines)


def _line(values) -> str:
    return f"| {' | '.join(_cell(value) for value in values)} |"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")  # a bar would end the cell, and |IE| has two


def _number(value: float) -> str:
    """Three significant digits; whole numbers from a thousand on; nothing for a missing value."""
    if value != value:
        return ""
    if 999.5 <= abs(value) < float("inf"):
        return f"{value:,.0f}"
    return f"{value + 0.0:.3g}"  # + 0.0: no "-0"
