"""Where the rows of a training's history can go while it runs: `train(..., on_log=...)`.

Each function gives back what `train` calls with a row, a dict of numbers by name: step, tokens,
loss, reconstruction, sparsity, aux, l0, explained_variance, dead, lr, seconds. A function of one's
own does as well.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from ctt_helpers import evaluation
from ctt_helpers.arguments import checked
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.files import atomic_path, expanded, read_text
from ctt_helpers.messages import whole_number

if TYPE_CHECKING:
    from ctt_helpers.sources.checkpoints import Checkpoints

Row = dict[str, float]
FIRST = ["step", "tokens"]  # columns by which a file is known as a log


@checked
def to_csv(path: str | Path) -> Callable[[Row], None]:
    """Each row as it comes, in a CSV file; a run that is taken up again goes on in it.

    Rows from the step on at which it is taken up are written anew. Later columns than those of the
    first row are added, empty above.

    Raises:
        FileExistsError: the file is no log, or that of a run that this one does not go on from.
    """
    path, rows = expanded(path), []

    def write(row: Row) -> None:
        if not rows and path.exists():
            rows.extend(_earlier(path, row["step"]))
        rows.append(row)
        columns = list(dict.fromkeys(name for each in rows for name in each))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")

    return write


def _earlier(path: Path, step: float) -> list[dict[str, Any]]:
    """The rows of a log before a step."""
    table = csv.DictReader(io.StringIO(read_text(path)))
    if (table.fieldnames or [])[: len(FIRST)] != FIRST:
        raise FileExistsError(
            f"{path} is no log of a training (its columns do not begin with {', '.join(FIRST)}), "
            "and is left as it is. Give another file."
        )
    rows = []
    for row in table:
        if None in row or None in row.values() or not _is_whole(row["step"]):
            raise ValueError(
                f"{path}, line {table.line_num}: this is no row of a log. Mend it, or move it away."
            )
        rows.append(row)
    before = [row for row in rows if int(row["step"]) < step]
    if rows and not before:
        raise FileExistsError(
            f"{path} is the log of a training up to step {rows[-1]['step']}, and this one begins "
            "afresh. Give another file, or move that one away."
        )
    return before


@checked
def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit()


@checked
def to_tensorboard(folder: str | Path) -> Callable[[Row], None]:
    """Each number of a row as a scalar, by step, where TensorBoard finds it.

    Raises:
        ImportError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is not installed: pip install tensorboard") from error
    writer = SummaryWriter(str(expanded(folder)))

    def write(row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, int(row["step"]))
        writer.flush()

    return write


@checked
def to_wandb(run: Any = None, **settings: Any) -> Callable[[Row], None]:
    """Each row to Weights & Biases.

    Args:
        run: a run that has been started; None: one is started.
        **settings: as `wandb.init` takes them (project=, name=, mode="offline" ...).

    Raises:
        ImportError: Weights & Biases is not installed.
    """
    if run is None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("Weights & Biases is not installed: pip install wandb") from error
        run = wandb.init(**settings)

    def write(row: Row) -> None:
        run.log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    return write


@checked
def evaluating(
    crosscoder: Crosscoder, ckpts: Checkpoints, text: Int[Tensor, "sequences length"], every: int
) -> Callable[[Row], Mapping[str, float]]:
    """`evaluate` every so many steps (of those that are logged), and at no other.

    Columns dce (mean over checkpoints), held_out_l0, held_out_explained_variance (the lowest of the
    checkpoints) and held_out_dead (share). Give it before what writes the row. As long as k falls,
    a BatchTopK crosscoder has no threshold, and nothing is evaluated.

    Args:
        crosscoder: the one that is trained.
        ckpts: its checkpoints.
        text: held-out token ids; a few thousand tokens will do for a curve.
        every: steps between two evaluations.
    """
    every = whole_number("every", every)
    due = every

    def look(row: Row) -> Mapping[str, float]:
        nonlocal due
        unsettled = crosscoder.sparsity == "batch_topk" and float(crosscoder.threshold) == 0
        if row["step"] < due or unsettled:
            return {}
        due = row["step"] - row["step"] % every + every
        was_training = crosscoder.training
        try:
            report = evaluation.evaluate(crosscoder, ckpts, text)
        finally:
            crosscoder.train(was_training)
        return {
            "dce": float(np.mean(report.dce)),
            "held_out_l0": report.l0,
            "held_out_explained_variance": min(report.explained_variance),
            "held_out_dead": report.dead,
        }

    look.looks_at = crosscoder
    return look
