"""Where results go: a CSV a table, machine.json (who measured what), and RESULTS.md made from these."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch

from ctt_helpers.runtime import atomic_path, read_json, write_json

RESULTS, MACHINE = "RESULTS.md", "machine.json"


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


def save(out: Path, name: str, frames: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> None:
    """Write one benchmark's tables, and beside them the machine and the command that made them."""
    for table, frame in frames.items():
        with atomic_path(out / f"{table}.csv") as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
    known = read_json(out / MACHINE) if (out / MACHINE).is_file() else {}
    write_json(out / MACHINE, {**known, name: {**about, "tables": list(frames)}})


def write_results(out: Path, benchmarks: Mapping[str, ModuleType]) -> None:
    """Write RESULTS.md from whatever tables `out` holds."""
    known, parts = read_json(out / MACHINE), ["# Results of the benchmarks"]
    for name, module in benchmarks.items():
        if name in known:
            about = known[name]
            frames = {table: pd.read_csv(out / f"{table}.csv") for table in about["tables"]}
            parts.append(module.section(frames))
            parts.append(
                f"Made by `{about['command']}` in {about['seconds']} s on {about['cpu']}, {about['cores']} cores, "
                f"{about['threads']} torch thread(s), torch {about['torch']}; load average at the start "
                f"{about['load_average']}."
            )
    with atomic_path(out / RESULTS) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def markdown(frame: pd.DataFrame, digits: Mapping[str, int] | None = None) -> str:
    """A table in Markdown; `digits` says how many decimals a column of floats gets (others: 2)."""
    digits = digits or {}

    def cell(column: str, value: Any) -> str:
        if isinstance(value, float):
            return "" if value != value else f"{value:.{digits.get(column, 2)}f}"
        return str(value)

    numeric = [pd.api.types.is_numeric_dtype(frame[c]) for c in frame]
    rows = [frame.columns, ["---:" if n else "---" for n in numeric]]
    columns = [[cell(str(c), value) for value in frame[c].tolist()] for c in frame]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [*rows, *zip(*columns, strict=True)])
