"""What a checkpoint does: logit differences, accuracy over training, similarity, the triplet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ctt_helpers import hooks
from ctt_helpers.arguments import checked
from ctt_helpers.memory import chunk, smaller_chunks_once
from ctt_helpers.messages import abridged, progress
from ctt_helpers.metrics import share_right
from ctt_helpers.pairs import MinimalPairs, check_tokenizer

if TYPE_CHECKING:
    from ctt_helpers.sources.suites import Suite

# mean over tasks of |accuracy - 0.5| that the first checkpoint of a suggested triplet must reach
FROM_CHANCE = 0.1

# ---- one checkpoint


@checked
@smaller_chunks_once("in logit_differences", "Set batch_size lower.")
@torch.no_grad()
def logit_differences(
    model: hooks.HookedModel, pairs: MinimalPairs, whole: bool = False, batch_size: int = 256
) -> Float[Tensor, " pairs"]:
    """logit(right) - logit(wrong) at the last prefix token; positive where the model is right.

    With `whole`, log P(right continuation) - log P(wrong one) after each prefix, summed over all
    tokens of each. As BLiMP's own sentence scores: what both sentences share before the
    continuation cancels.

    Raises:
        ValueError: the pairs were made with another tokenizer than the model's, or hold no whole
            continuations.
        hooks.NotFinite: a logit is NaN or infinite.
    """
    check_tokenizer(pairs, model.tokenizer, model.label)
    if whole and "right_tokens" not in pairs.table:
        raise ValueError(
            f"The pairs {pairs.name!r} hold first tokens only: make them with continuation='whole'."
        )
    size = -(-batch_size // 4) if whole else batch_size  # whole vocabularies take room
    out = []
    for batch in pairs.batches(chunk(size)):
        if whole:
            right = _log_probability(model, batch, batch.table["right_tokens"])
            wrong = _log_probability(model, batch, batch.table["wrong_tokens"])
        else:
            right, wrong = _answer_logits(model, batch).T
        out.append((right - wrong).float().cpu())
    differences = torch.cat(out)
    hooks.check_finite(differences, model, f"Logits on {pairs.name!r}")
    return differences


def _answer_logits(model: hooks.HookedModel, pairs: MinimalPairs) -> Float[Tensor, "pairs 2"]:
    last = model.n_layers - 1
    hidden = hooks.residual_stream(model, pairs.input_ids, pairs.attention_mask, last)
    return hooks.unembed(model, hidden, pairs.answer_position, pairs.answers)


def _log_probability(
    model: hooks.HookedModel, pairs: MinimalPairs, continuations: Sequence[list[int]]
) -> Float[Tensor, " pairs"]:
    """log P(continuation | prefix); only the positions that matter go through the unembedding."""
    starts = pairs.attention_mask.sum(1).tolist()
    rows = [
        [*ids[:start].tolist(), *continuation]
        for ids, start, continuation in zip(pairs.input_ids, starts, continuations, strict=True)
    ]
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    # one entry for every token of every continuation: its row, and where it stands there
    row = torch.tensor([i for i, tokens in enumerate(continuations) for _ in tokens])
    position = torch.tensor(
        [
            start + k
            for start, tokens in zip(starts, continuations, strict=True)
            for k in range(len(tokens))
        ]
    )
    hidden = hooks.residual_stream(model, ids, mask, layer=model.n_layers - 1)
    # the token before is where each is predicted; one position an entry, so that it is float32
    before = hidden[row, position - 1][:, None]
    logits = hooks.unembed(model, before, torch.zeros_like(position))
    targets = ids[row, position].to(logits.device)
    each = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    total = torch.zeros(len(rows), dtype=each.dtype, device=each.device)
    return total.index_add_(0, row.to(each.device), each)


@checked
def accuracy(model: hooks.HookedModel, pairs: MinimalPairs, whole: bool = False) -> float:
    """Share of pairs whose right token has the higher logit; a tie counts as half.

    With `whole`, whose right continuation is more probable, all its tokens together (see
    `pairs.make_pairs`).
    """
    return float(share_right(logit_differences(model, pairs, whole)))


# ---- over training


@checked
def accuracy_curve(
    suite: Suite,
    tasks: Mapping[str, MinimalPairs],
    revisions: Sequence[str] | None = None,
    device: str = "auto",
    whole: bool = False,
    cells: bool = False,
) -> pd.DataFrame:
    """Accuracy of every task at every revision, one model in memory at a time.

    Two revisions with the same weights are told.

    Args:
        suite: the pretraining run.
        tasks: name -> pairs.
        revisions: None: all.
        device: "auto", "cpu", "cuda" ...
        whole: compare whole continuations (see `accuracy`).
        cells: also for each cell of a task's design (`MinimalPairs.cells`), which a mean over them
            can hide.

    Returns:
        Tidy table: revision, tokens_seen, task, accuracy, stderr (binomial), n_pairs,
        logit_difference (mean; with `whole` the mean difference of log-probabilities). With
        `cells`, two columns more: cell ("all", or a cell such as "sg-pl"), and congruent (True
        where nothing distracts in that cell, False where something does, else missing).
    """
    checkpoints = suite.checkpoints(revisions, device=device)
    rows, fingerprints = [], {}
    for model in progress(checkpoints.one_by_one(), "accuracy", total=len(checkpoints)):
        fingerprints[model.label] = model.fingerprint
        for task, pairs in tasks.items():
            difference = logit_differences(model, pairs, whole)
            about = {"revision": model.label, "tokens_seen": model.tokens_seen, "task": task}
            rows.append(about | {"cell": "all"} | _share_right(difference))
            for cell, congruent, part in _parts(pairs) if cells else ():
                named = about | {"cell": cell, "congruent": congruent}
                rows.append(named | _share_right(difference[part]))
    hooks.tell_twins(fingerprints, stacklevel=4)
    columns = ["revision", "tokens_seen", "task", *(["cell", "congruent"] if cells else [])]
    columns += ["accuracy", "stderr", "n_pairs", "logit_difference"]
    return pd.DataFrame(rows, columns=columns)


def _parts(pairs: MinimalPairs) -> Iterator[tuple[str, bool | None, Bool[np.ndarray, " pairs"]]]:
    """Each cell of the design: its name, whether it is congruent (None: nothing distracts)."""
    own = pairs.cells
    congruent = pairs.congruent if len(pairs.levels) > 1 else None
    for cell in dict.fromkeys(own):
        if cell:
            part = own == cell
            yield cell, None if congruent is None else bool(congruent[part][0]), part


def _share_right(difference: Float[Tensor, " pairs"]) -> dict[str, float]:
    share = float(share_right(difference))
    return {
        "accuracy": share,
        "stderr": (share * (1 - share) / len(difference)) ** 0.5,
        "n_pairs": len(difference),
        "logit_difference": float(difference.mean()),
    }


@checked
def similarity_matrix(
    suite: Suite,
    pairs: MinimalPairs,
    layer: int | None = None,
    revisions: Sequence[str] | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Mean cosine similarity of the layer's outputs between every two revisions (sec. 3).

    The mean is over all real tokens of the pairs' prefixes but the first. Similar directions do not
    prove an equal role, and a low similarity may be a mere rotation; it is a hint where to look.
    Two revisions with the same weights are told.

    Returns:
        DataFrame, revisions x revisions, symmetric, ones on the diagonal.

    Raises:
        hooks.NotFinite: an activation is NaN or infinite.
    """
    checkpoints = suite.checkpoints(revisions, layer=layer, device=device)
    directions, fingerprints = [], {}
    for model in progress(checkpoints.one_by_one(), "similarity", total=len(checkpoints)):
        check_tokenizer(pairs, model.tokenizer, model.label)
        fingerprints[model.label] = model.fingerprint
        rows = []
        for batch in pairs.batches(256):
            x = hooks.residual_stream(model, batch.input_ids, batch.attention_mask).float().cpu()
            real = batch.attention_mask[:, 1:].bool().cpu()
            rows.append(x[:, 1:][real])
        tokens = torch.cat(rows)
        hooks.check_finite(tokens, model, f"Activations on {pairs.name!r}")
        directions.append(torch.nn.functional.normalize(tokens, dim=-1))
    hooks.tell_twins(fingerprints, stacklevel=4)
    values = [[float((a * b).sum(-1).mean()) for b in directions] for a in directions]
    return pd.DataFrame(values, index=checkpoints.revisions, columns=checkpoints.revisions)


# ---- which three


@dataclass(frozen=True)
class TripletChoice:
    """A triplet and why.

    Attributes:
        revisions: the three.
        reasons: a sentence on each.
        table: every candidate with its terms and score.
    """

    revisions: list[str]
    reasons: list[str]
    table: pd.DataFrame


@checked
def suggest_triplet(curve: pd.DataFrame, sim: pd.DataFrame) -> TripletChoice:
    """Suggest three checkpoints around large changes of both accuracy and activations.

    The last checkpoint is always the third. The change between two checkpoints is the mean over
    tasks of |accuracy difference| plus one minus their similarity. A triplet's score is the smaller
    of its two changes: both steps should show something. At the first, accuracies must be at least
    0.1 from chance on average, up or down: where the model does nothing yet, there is no effect to
    attribute. This is a suggestion: `table` lists every candidate, so that one can disagree.

    Args:
        curve: from `accuracy_curve`; where it has cells, the whole of each task counts. To have
            each half or cell count as a task, name them so in a table without the column `cell`.
        sim: from `similarity_matrix`, over the same revisions.

    Raises:
        ValueError: fewer than three revisions in common, none early enough qualifies, accuracies
            outside 0 to 1, or values that are missing.
    """
    for what, table, columns in (
        ("curve", curve, ("revision", "task", "accuracy")),
        ("sim", sim, sim.index),
    ):
        if missing := [str(column) for column in columns if column not in table]:
            raise ValueError(
                f"{what} has no column {missing[0]!r}; it has {abridged(list(table))}."
            )
    wide = _by_task(curve)
    revisions = [revision for revision in sim.index if revision in wide.index]
    if len(revisions) < 3:
        raise ValueError(
            "A triplet needs three revisions in both the curve and the similarity; got "
            f"{revisions}."
        )
    wide, sim = wide.loc[revisions], sim.loc[revisions, revisions]
    _check_curve_and_similarity(wide, sim)

    def accuracy_change(a: str, b: str) -> float:
        return float((wide.loc[a] - wide.loc[b]).abs().mean())

    def activation_change(a: str, b: str) -> float:
        return 1 - float(sim.loc[a, b])

    last = revisions[-1]
    rows = []
    for first, middle in itertools.combinations(revisions[:-1], 2):
        if (wide.loc[first] - 0.5).abs().mean() < FROM_CHANCE:
            continue
        row = {
            "first": first,
            "middle": middle,
            "last": last,
            "accuracy_1": accuracy_change(first, middle),
            "activation_1": activation_change(first, middle),
            "accuracy_2": accuracy_change(middle, last),
            "activation_2": activation_change(middle, last),
        }
        one = row["accuracy_1"] + row["activation_1"]
        two = row["accuracy_2"] + row["activation_2"]
        rows.append({**row, "score": min(one, two)})
    if not rows:
        raise ValueError(
            f"No revision before the last two is {FROM_CHANCE} away from chance on average over "
            "the tasks: there is nothing to attribute so early. Add later revisions."
        )
    table = pd.DataFrame(rows).sort_values("score", ascending=False, ignore_index=True)
    best = table.iloc[0]
    start, low = wide.loc[best["first"]], wide.loc[best["middle"]]
    clear = start[(start - 0.5).abs().sort_values(ascending=False).index[:2]]
    shown = ", ".join(f"{task} {accuracy:.2f}" for task, accuracy in clear.items())
    reasons = [
        f"{best['first']}: an early checkpoint that already does something (furthest from one "
        f"half: {shown}), so that there are effects to attribute.",
        f"{best['middle']}: from {best['first']} accuracy moves by {best['accuracy_1']:.2f} a task "
        f"and activations by {best['activation_1']:.2f} (1 - cosine); its tasks reach from "
        f"{low.min():.2f} to {low.max():.2f}.",
        f"{best['last']}: the end of training; from {best['middle']} accuracy moves by "
        f"{best['accuracy_2']:.2f} and activations by {best['activation_2']:.2f}.",
    ]
    return TripletChoice([best["first"], best["middle"], best["last"]], reasons, table)


def _by_task(curve: pd.DataFrame) -> pd.DataFrame:
    """Accuracies, revisions x tasks; of a curve in cells, the whole of each task."""
    whole = curve[curve["cell"] == "all"] if "cell" in curve else curve
    if whole.duplicated(["revision", "task"]).any():
        raise ValueError(
            "The curve has two rows of one revision and task: give one accuracy for each."
        )
    if not pd.api.types.is_numeric_dtype(whole["accuracy"]):
        raise ValueError("The accuracies of the curve are no numbers: give shares from 0 to 1.")
    return whole.pivot(index="revision", columns="task", values="accuracy")


def _check_curve_and_similarity(wide: pd.DataFrame, sim: pd.DataFrame) -> None:
    """Raise ValueError for values that would be ranked as if they meant something."""
    for what, values in (("accuracy", wide), ("similarity", sim)):
        missing = ~np.isfinite(values.to_numpy(float))
        if missing.any():
            row, column = np.argwhere(missing)[0]
            raise ValueError(
                f"The {what} of {values.index[row]!r} ({values.columns[column]!r}) is missing or "
                "not finite: compute it for every revision and task first."
            )
    lowest, highest = wide.to_numpy().min(), wide.to_numpy().max()
    if lowest < 0 or highest > 1:
        raise ValueError(
            f"Accuracies reach from {lowest:g} to {highest:g}: give shares between 0 and 1, not "
            "percent."
        )
