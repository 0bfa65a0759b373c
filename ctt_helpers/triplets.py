"""Which checkpoints to study: how alike their activations are, and where accuracy and activations change most."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from ctt_helpers import hooks
from ctt_helpers.runtime import progress
from ctt_helpers.tasks import MinimalPairs


def similarity_matrix(
    suite: Any,
    pairs: MinimalPairs,
    layer: int | None = None,
    revisions: Sequence[str] | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Mean cosine similarity of the layer's outputs between every two revisions (Crosscoding Through Time, sec. 3).

    The mean is over all real tokens of the pairs' prefixes but the first. Similar directions do not prove an equal
    role, and a low similarity may be a mere rotation; it is a hint where to look.

    Returns:
        DataFrame, revisions x revisions, symmetric, ones on the diagonal.
    """
    checkpoints, unit = suite.checkpoints(revisions, layer=layer, device=device), []
    for model in progress(checkpoints.one_by_one(), "similarity", total=len(checkpoints)):
        rows = []
        for batch in pairs.batches(256):
            x = hooks.residual_stream(model, batch.input_ids, batch.attention_mask).float().cpu()
            rows.append(x[:, 1:][batch.attention_mask[:, 1:].bool().cpu()])
        unit.append(torch.nn.functional.normalize(torch.cat(rows), dim=-1))
    values = [[float((a * b).sum(-1).mean()) for b in unit] for a in unit]
    return pd.DataFrame(values, index=checkpoints.revisions, columns=checkpoints.revisions)


@dataclass(frozen=True)
class TripletChoice:
    """A triplet and why: `revisions`, `reasons` (sentences), `table` (every candidate with its terms and score)."""

    revisions: list[str]
    reasons: list[str]
    table: pd.DataFrame


def suggest_triplet(curve: pd.DataFrame, sim: pd.DataFrame, from_chance: float = 0.1) -> TripletChoice:
    """Suggest three checkpoints around large changes of both accuracy and activations.

    The last checkpoint is always the third. The change between two checkpoints is the mean over tasks of
    |accuracy difference| plus one minus their similarity. A triplet's score is the smaller of its two changes: both
    steps should show something. At the first, accuracies must be some way from chance on average, up or down: where
    the model does nothing yet, there is no effect to attribute. This is a suggestion: `table` lists every candidate,
    so that one can disagree.

    Args:
        curve: from `accuracy_curve`.
        sim: from `similarity_matrix`, over the same revisions.
        from_chance: mean over tasks of |accuracy - 0.5| that the first checkpoint must reach.

    Raises:
        ValueError: fewer than three revisions in common, or none early enough qualifies.
    """
    wide = curve.pivot(index="revision", columns="task", values="accuracy")
    revisions = [r for r in sim.index if r in wide.index]
    if len(revisions) < 3:
        raise ValueError(f"A triplet needs three revisions in both the curve and the similarity; got {revisions}.")

    def change(a: str, b: str) -> tuple[float, float]:
        return float((wide.loc[a] - wide.loc[b]).abs().mean()), 1 - float(sim.loc[a, b])

    last, rows = revisions[-1], []
    for first, middle in itertools.combinations(revisions[:-1], 2):
        if (wide.loc[first] - 0.5).abs().mean() >= from_chance:
            one, two = change(first, middle), change(middle, last)
            rows.append((first, middle, last, *one, *two, min(sum(one), sum(two))))
    if not rows:
        raise ValueError(
            f"No revision before the last two is {from_chance} away from chance on average over the tasks: there is "
            "nothing to attribute so early. Add later revisions, or lower from_chance."
        )
    columns = ["first", "middle", "last", "accuracy_1", "activation_1", "accuracy_2", "activation_2", "score"]
    table = pd.DataFrame(rows, columns=columns).sort_values("score", ascending=False, ignore_index=True)
    best = table.iloc[0]
    start, low = wide.loc[best["first"]], wide.loc[best["middle"]]
    reasons = [
        f"{best['first']}: an early checkpoint that already does something ({start.idxmax()} {start.max():.2f}, "
        f"{start.idxmin()} {start.min():.2f}), so that there are effects to attribute.",
        f"{best['middle']}: from {best['first']} accuracy moves by {best['accuracy_1']:.2f} a task and activations by "
        f"{best['activation_1']:.2f} (1 - cosine); its tasks reach from {low.min():.2f} to {low.max():.2f}.",
        f"{best['last']}: the end of training; from {best['middle']} accuracy moves by {best['accuracy_2']:.2f} and "
        f"activations by {best['activation_2']:.2f}.",
    ]
    return TripletChoice([best["first"], best["middle"], best["last"]], reasons, table)
