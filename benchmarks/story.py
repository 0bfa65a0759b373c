"""The story of the embedded suite: accuracy of every task at every checkpoint.

And when each task is learnt.
"""

import pandas as pd

import ctt_helpers as ctt

ONSET = 0.75  # accuracy

TABLES = {
    "story": (
        "One row for each checkpoint and task: accuracy on the test split (a guess gives 0.5) with "
        "its standard error, number of pairs, and mean logit difference, right minus wrong."
    ),
    "onset": (
        f"One row for each task: the first checkpoint with an accuracy of at least {ONSET}, the "
        "tokens it has seen (both empty where there is none), and the lowest accuracy of all "
        "checkpoints."
    ),
}


def run() -> dict[str, pd.DataFrame]:
    suite = ctt.load_suite("tiny")
    pairs = {task: suite.pairs(task, split="test") for task in suite.task_names}
    curve = ctt.accuracy_curve(suite, pairs, device="cpu")
    return {"story": curve, "onset": onset(curve)}


def onset(curve: pd.DataFrame) -> pd.DataFrame:
    """The first checkpoint at which each task's accuracy is at least ONSET."""
    rows = []
    for task, part in curve.groupby("task", sort=False):
        learnt = part[part["accuracy"] >= ONSET]
        rows.append(
            {
                "task": task,
                "onset": learnt["revision"].iloc[0] if len(learnt) else None,
                "tokens_at_onset": learnt["tokens_seen"].iloc[0] if len(learnt) else None,
                "lowest": part["accuracy"].min(),
            }
        )
    # whole numbers, although one may be missing
    return pd.DataFrame(rows).astype({"tokens_at_onset": "Int64"})
