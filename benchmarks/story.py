"""Accuracy of every task of the embedded suite at every checkpoint, and when each task is learnt."""

import pandas as pd

import ctt_helpers as ctt
from benchmarks.report import markdown

ONSET = 0.75


def run() -> dict[str, pd.DataFrame]:
    suite = ctt.load_suite("tiny")
    pairs = {task: suite.pairs(task, split="test") for task in suite.task_names}
    return {"story": ctt.accuracy_curve(suite, pairs, device="cpu")}


def onset(curve: pd.DataFrame) -> pd.DataFrame:
    """The first checkpoint at which each task's accuracy is at least ONSET; '-' where there is none."""
    rows = []
    for task, part in curve.groupby("task", sort=False):
        learnt = part[part["accuracy"] >= ONSET]
        first = (learnt["revision"].iloc[0], f"{learnt['tokens_seen'].iloc[0]:,}") if len(learnt) else ("-", "-")
        rows.append((task, *first, part["accuracy"].min()))
    return pd.DataFrame(rows, columns=["task", "onset", "tokens at onset", "lowest"])


def section(frames: dict[str, pd.DataFrame]) -> str:
    curve = frames["story"]
    wide = curve.pivot(index="task", columns="revision", values="accuracy")[curve["revision"].unique()]
    table = onset(curve).merge(wide.reset_index(), on="task")
    table["task"] = table["task"].str.split("/").str[-1]
    table.columns = [c.removeprefix("step") for c in table.columns]
    shown = markdown(table, dict.fromkeys(table, 3))
    return (
        "## The story of the embedded suite\n\n"
        f"Accuracy on the test split ({curve['n_pairs'].min()} pairs a task; a guess gives 0.50) by training step. "
        f"Onset: the first checkpoint with an accuracy of at least {ONSET}.\n\n{shown}"
    )
