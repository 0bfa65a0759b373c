"""Indirect effects (IE): how much a task depends on each latent at each checkpoint.

The metric of a pair is m = logit(wrong) - logit(right) after its prefix (or another one), so a
positive effect means that the latent helps: without it m would rise. An activation is written
x_c = f W_dec^c + b_dec^c + e_c with the reconstruction error e_c kept, so the clean run is exactly
the model's own. The first token of a sequence and padding are never touched.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ctt_helpers import hooks, memory
from ctt_helpers.arguments import checked
from ctt_helpers.attribution import (
    EVERY,
    METHODS,
    PERMUTATIONS,
    Causal,
    Latents,
    Options,
    Readout,
    Rows,
    reconstruction_error,
)
from ctt_helpers.dictionary import Dictionary, codes, prepare
from ctt_helpers.files import load_folder, save_folder
from ctt_helpers.memory import chunk, smaller_chunks_once
from ctt_helpers.messages import choose, progress, whole_number
from ctt_helpers.metrics import check_features, share_right
from ctt_helpers.pairs import MinimalPairs, check_tokenizer, twins

if TYPE_CHECKING:
    from ctt_helpers.sources.checkpoints import Checkpoints

ARRAYS = ("mean", "abs_mean", "error", "total", "gap", "n_nodes")
FILES = ("effects.safetensors", "effects.json")
BASELINES = ("zero", "mean", "resample")
# what to set where memory runs out
LESS = "Set batch_size lower, give fewer pairs, or take checkpoints with a smaller dtype."
MOST_IN_SUBSETS = 10  # latents whose subsets are all taken away

# (checkpoint, its raw activations) -> those of all checkpoints, from which f is read
ReadFrom = Callable[[int, Float[Tensor, "tokens d_model"]], Float[Tensor, "tokens n d_model"]]

# ---- what is measured: a metric of the answer logits


@dataclass(frozen=True)
class Answers:
    """What a metric is told beside the logits.

    Attributes:
        right, wrong: [items] token ids of the right and the wrong answer.
        clean: [items, vocabulary] logits of the clean run.
    """

    right: Int[Tensor, " items"]
    wrong: Int[Tensor, " items"]
    clean: Float[Tensor, "items vocabulary"]


@dataclass(frozen=True)
class Metric:
    """A metric m of the logits at the answer position; it should fall as the model gets better.

    Attributes:
        name: for tables and files.
        of: (logits [items, vocabulary], answers) -> [items], differentiable in the logits.
        unit: of m.
        of_answers: instead, (logits [items, 2] of the right and the wrong answer) -> [items]: no
            other logit is computed then, which is much quicker.
        flat_at_clean: its gradient is 0 at the clean run, so that "atp" finds nothing.
    """

    name: str
    of: Callable[[Float[Tensor, "items vocabulary"], Answers], Float[Tensor, " items"]] | None
    unit: str = "logits"
    of_answers: Callable[[Float[Tensor, "items 2"]], Float[Tensor, " items"]] | None = None
    flat_at_clean: bool = False


def wrong_minus_right(logits: Float[Tensor, "items 2"]) -> Float[Tensor, " items"]:
    """logit(wrong) - logit(right), from [right, wrong]: below 0 where the model is right."""
    return logits[:, 1] - logits[:, 0]


def surprisal(
    logits: Float[Tensor, "items vocabulary"], answers: Answers
) -> Float[Tensor, " items"]:
    """-log P(right answer), in nats."""
    return -logits.log_softmax(-1).gather(1, answers.right[:, None])[:, 0]


def divergence(
    logits: Float[Tensor, "items vocabulary"], answers: Answers
) -> Float[Tensor, " items"]:
    """KL(clean run || now), in nats: how far the whole prediction moves, right or wrong."""
    clean = answers.clean.log_softmax(-1)
    return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


METRICS: dict[str, Metric] = {
    "wrong_minus_right": Metric("wrong_minus_right", None, of_answers=wrong_minus_right),
    "log_probability": Metric("log_probability", surprisal, unit="nats"),
    "kl": Metric("kl", divergence, unit="nats", flat_at_clean=True),
}


def as_metric(metric: str | Metric | Callable | None) -> Metric:
    """The metric that is meant: None, a name in METRICS, a Metric, or a function of one's own."""
    if metric is None:
        return METRICS["wrong_minus_right"]
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return Metric(getattr(metric, "__name__", "own"), metric, unit="units of the metric")
    choose("metric", metric, METRICS)
    return METRICS[metric]


def metric_of_stream(
    metric: Metric,
    answer_logits: Callable[..., Float[Tensor, "items 2"]],
    all_logits: Callable[..., Float[Tensor, "items vocabulary"]],
    right: Int[Tensor, " pairs"],
    wrong: Int[Tensor, " pairs"],
    x: Float[Tensor, "pairs t d_model"],
) -> Callable[..., Float[Tensor, " items"]]:
    """A metric of the answer logits as a metric of the residual stream, as `Readout` takes it.

    Args:
        metric: of the logits.
        answer_logits, all_logits: logits at the answer position of activations that belong to the
            pairs `rows`: of the right and the wrong answer, and of the whole vocabulary. They are
            given what m is given: x, rows, and where in the sequence x begins, if it is told.
        right, wrong: token ids of the answers.
        x: the clean activations.
    """
    if metric.of_answers is not None:
        return lambda x, rows=EVERY, *start: metric.of_answers(answer_logits(x, rows, *start))
    with torch.no_grad():
        clean = all_logits(x, EVERY)
    right, wrong = right.to(clean.device), wrong.to(clean.device)

    def m(
        x: Float[Tensor, "items t d_model"], rows: Rows = EVERY, *start: int
    ) -> Float[Tensor, " items"]:
        told = Answers(right=right[rows], wrong=wrong[rows], clean=clean[rows])
        return metric.of(all_logits(x, rows, *start), told)

    return m


# ---- the result


@dataclass
class Effects:
    """Indirect effects of every latent at every checkpoint on one task.

    Arrays are [n_checkpoints, n_latents], in the unit of the metric (logits, if none was given).

    Attributes:
        mean: signed IE, summed over a pair's tokens, mean over pairs; positive: the latent helps.
        abs_mean: the same with the absolute value taken per pair, before the mean ("shapley": of
            estimates, whose noise makes it larger).
        error: [n] effect of the reconstruction error (NaN for "ablation" and "ig_own").
        total: [n] mean of m(all latents and the error off: x = b_dec) - m(clean).
        gap: [n] completeness gap |sum of effects + error - total| / mean |m(b_dec) - m(clean)|,
            over pairs (NaN where effects have no such sum: for "ablation" and "ig_own", and with
            `positions`).
        n_nodes: [n] mean number of gradient evaluations a pair ("ablation", "shapley": of forward
            passes).
        per_pair: sparse [n, pairs, latents]: IE of each latent that is active in the pair.
        names: labels of the checkpoints.
        stderr: "shapley": standard error of `mean` that comes from drawing orders, on these pairs;
            NaN with two permutations. It says nothing of other pairs. None for other methods.
        info: method, metric and its unit, task, tolerance, sizes, where it comes from;
            gap_per_pair, [n] mean |difference| of a pair in the same units as `gap`, in which
            differences of mirrored pairs cannot cancel; "ablation": baseline and n_counted, how
            many pairs the means are over ("resample": those that have a partner; in `per_pair` the
            others have no effect); with read_from, for each checkpoint: kept, the share of what is
            active (token by token, in f read from all) that still is, added, the share of what is
            active that was not, and the correlation of both f over all tokens and latents;
            "shapley": permutations, seed, and error_stderr, [n], as `stderr` but of `error`.
    """

    mean: Float[np.ndarray, "checkpoints latents"]
    abs_mean: Float[np.ndarray, "checkpoints latents"]
    error: Float[np.ndarray, " checkpoints"]
    total: Float[np.ndarray, " checkpoints"]
    gap: Float[np.ndarray, " checkpoints"]
    n_nodes: Float[np.ndarray, " checkpoints"]
    per_pair: Tensor = field(repr=False)
    names: list[str]
    info: dict[str, Any]
    stderr: Float[np.ndarray, "checkpoints latents"] | None = None

    @checked
    def save(self, folder: str | Path) -> None:
        """Write effects.safetensors and effects.json (with checksums); what else is there stays.

        Raises:
            FileExistsError: the folder holds a file of one of these names that holds no effects.
        """
        sparse = self.per_pair.coalesce()
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in ARRAYS}
        tensors |= {"index": sparse.indices().int(), "value": sparse.values()}
        if self.stderr is not None:
            tensors["stderr"] = torch.from_numpy(self.stderr)
        about = {"names": self.names, "shape": list(sparse.shape), "info": self.info}
        save_folder(folder, "effects", tensors, about, FILES, _is_effects)

    @classmethod
    @checked
    def load(cls, folder: str | Path) -> Effects:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there are no effects in the folder.
            ValueError: a file is damaged.
        """
        about, tensors = load_folder(folder, "effects", FILES)
        index, value = tensors["index"].long(), tensors["value"]
        per_pair = torch.sparse_coo_tensor(index, value, about["shape"], check_invariants=True)
        arrays = {name: tensors[name].numpy() for name in (*ARRAYS, "stderr") if name in tensors}
        return cls(**arrays, per_pair=per_pair.coalesce(), names=about["names"], info=about["info"])


def _is_effects(settings: dict[str, Any]) -> bool:
    """Whether a JSON file without a kind holds effects of version 0.1."""
    return {"names", "shape", "info"} <= set(settings)


# ---- pairs, read once


def touched(pairs: MinimalPairs) -> Bool[Tensor, "pairs t"]:
    """The positions that the method touches: neither padding nor the first token."""
    keep = pairs.attention_mask.bool()
    keep[:, 0] = False
    return keep


@dataclass
class _Reading:
    """A batch of pairs, its activations at every checkpoint, and its latents.

    Attributes:
        rows: which of the pairs they are.
        pairs: the batch.
        x: [pairs, t, checkpoints, d_model] raw activations.
        sparse: [pairs, t, latents] latents, zero where nothing is touched; sparse where the device
            has sparse tensors, for few are active.
        own: the same for each checkpoint, where it is read from each alone; None: one for all.
    """

    rows: slice
    pairs: MinimalPairs
    x: Float[Tensor, "pairs t checkpoints d_model"]
    sparse: Tensor
    own: list[Tensor] | None = None

    def f(self, checkpoint: int) -> Latents:
        """The latents whose effects at this checkpoint are asked for."""
        return (self.sparse if self.own is None else self.own[checkpoint]).to_dense()


@torch.no_grad()
def _read(
    crosscoder: Dictionary,
    ckpts: Checkpoints,
    pairs: MinimalPairs,
    batch_size: int,
    read_from: ReadFrom | None = None,
) -> list[_Reading]:
    """All pairs in batches, with their activations; each checkpoint is gone through once.

    Raises:
        ValueError: pairs, checkpoints and crosscoder do not belong together, or a pair has no
            prefix.
    """
    _check_read_from(read_from, ckpts)
    if not len(pairs) or int(pairs.answer_position.min()) < 1:
        raise ValueError(
            f"{pairs.name!r} has {len(pairs)} pairs, and effects need a prefix in each: the first "
            "token is never touched. Whole sentences can be compared by accuracy(..., whole=True)."
        )
    check_tokenizer(pairs, ckpts.tokenizer, ckpts.labels[0])
    here = {**ckpts.source, "d_model": ckpts.d_model, "begins_with": pairs.begins_with}
    prepare(crosscoder, here)
    batches = list(pairs.batches(chunk(whole_number("batch_size", batch_size))))
    ids = [(batch.input_ids, batch.attention_mask) for batch in batches]
    readings, done = [], 0
    for batch, x in zip(batches, hooks.stacked_batches(ckpts, ids), strict=True):
        keep = touched(batch).to(x.device)

        def latents(stream: Float[Tensor, "tokens n d_model"], keep=keep) -> Tensor:
            f = stream.new_zeros(*keep.shape, crosscoder.n_latents)
            f[keep] = codes(crosscoder, stream, signed=True)
            return f if f.device.type == "mps" else f.to_sparse()

        own = None
        if read_from is not None:
            own = [latents(read_from(c, x[keep][:, c])) for c in range(len(ckpts))]
        rows = slice(done, done + len(batch))
        readings.append(_Reading(rows=rows, pairs=batch, x=x, sparse=latents(x[keep]), own=own))
        done += len(batch)
    return readings


def _check_read_from(read_from: ReadFrom | None, ckpts: Checkpoints) -> None:
    """Raise ValueError where `read_from` was fitted on other checkpoints."""
    made_for = getattr(read_from, "source", None)
    if made_for and any(made_for[name] != ckpts.source[name] for name in ("layer", "fingerprints")):
        raise ValueError(
            f"read_from was fitted on layer {made_for['layer']} of {made_for['revisions']}, and "
            f"here is layer {ckpts.layer} of {ckpts.labels}: give predict_others(ckpts, text) of "
            "these checkpoints."
        )


def _alike(readings: Sequence[_Reading], checkpoint: int) -> dict[str, float | None]:
    """How f that is read from one checkpoint differs from f that is read from all."""
    active = torch.zeros(3, dtype=torch.float64)  # from all, from one, from both
    moments = torch.zeros(2, 2, dtype=torch.float64)
    sums = torch.zeros(2, dtype=torch.float64)
    count = 0
    for reading in readings:
        keep = touched(reading.pairs).cpu()
        both = torch.stack(
            [f.to_dense().cpu()[keep].flatten() for f in (reading.sparse, reading.own[checkpoint])]
        ).double()
        on = both > 0
        active += torch.stack([*on.sum(1), on.all(0).sum()])
        moments += both @ both.T
        sums += both.sum(1)
        count += both.shape[1]
    covariance = moments / count - torch.outer(sums, sums) / count**2
    spread = covariance.diagonal().prod().sqrt()
    figures = {
        "kept": active[2] / active[0],
        "added": 1 - active[2] / active[1],
        "correlation": covariance[0, 1] / spread,
    }
    return {name: float(value) if value.isfinite() else None for name, value in figures.items()}


@checked
def readout_of(
    model: hooks.HookedModel,
    pairs: MinimalPairs,
    x: Float[Tensor, "pairs t d_model"],
    b_dec: Float[Tensor, " d_model"],
    metric: str | Metric | Callable | None = None,
) -> Readout:
    """The metric of pairs at one checkpoint, as a function of the residual stream.

    Args:
        model: the checkpoint.
        pairs: as many as `x` has rows.
        x: the residual stream on them, after the model's layer.
        b_dec: the decoder's bias at this checkpoint, in raw space: where the joint line leads.
        metric: as for `indirect_effects`.
    """
    check_tokenizer(pairs, model.tokenizer, model.label)
    sizes = (*pairs.input_ids.shape, len(b_dec))
    if tuple(x.shape) != sizes:
        raise ValueError(
            f"x is {tuple(x.shape)}; with these pairs and this b_dec it is {sizes}: [pairs, t, "
            "d_model], with the first token."
        )
    metric, sight = as_metric(metric), _Sight(model, pairs, x)
    m = metric_of_stream(metric, sight.answer_logits, sight.all_logits, pairs.right, pairs.wrong, x)
    keep, baseline = touched(pairs).to(x.device), b_dec.to(x)

    def at_baseline() -> Float[Tensor, " pairs"]:
        return metric.of_answers(sight.answers_of_few(torch.where(keep[..., None], baseline, x)))

    few = None if metric.of_answers is None else at_baseline
    causal = Causal(lengths=sight.lengths, after=m, at_baseline=few)
    return Readout(
        metric=m,
        x=x,
        baseline=baseline,
        touched=keep,
        eps=torch.finfo(model.dtype).eps,
        causal=causal if model.takes_past else None,
        parts=memory.parts(),
    )


@dataclass
class _Sight:
    """Logits at the answer positions of pairs, from the residual stream of one checkpoint.

    Attributes:
        model: the checkpoint.
        pairs: as many as `x` has rows.
        x: [pairs, t, d_model] the clean activations.
    """

    model: hooks.HookedModel
    pairs: MinimalPairs
    x: Float[Tensor, "pairs t d_model"]

    @cached_property
    def lengths(self) -> Int[Tensor, " pairs"]:
        """Positions of each pair up to the one of the answer, which is its last."""
        return self.pairs.answer_position.cpu() + 1

    @cached_property
    def past(self) -> hooks.Past:
        """Of all positions of the clean run."""
        return hooks.past_above(self.model, self.x, self.pairs.attention_mask)

    @cached_property
    def first(self) -> tuple[hooks.Past, Int[Tensor, " pairs"]]:
        """Of the first position: of each first token there is, and which of them a pair has."""
        some, which = _kinds(self.pairs.input_ids[:, :1].cpu())
        first = self.x[some.to(self.x.device, non_blocking=True), :1]
        return hooks.past_above(self.model, first), which

    def answer_logits(
        self, x: Tensor, rows: Rows, start: int | None = None
    ) -> Float[Tensor, "items 2"]:
        return self._logits(x, rows, start, self.pairs.answers[rows])

    def all_logits(
        self, x: Tensor, rows: Rows, start: int | None = None
    ) -> Float[Tensor, "items vocabulary"]:
        return self._logits(x, rows, start, None)

    def _logits(
        self, x: Tensor, rows: Rows, start: int | None, tokens: Int[Tensor, "items 2"] | None
    ) -> Float[Tensor, "items _"]:
        if start is None:
            mask, position = self.pairs.attention_mask[rows], self.pairs.answer_position[rows]
            return hooks.logits_above(self.model, x, mask, position, tokens)
        last = torch.full((len(x),), x.shape[1] - 1, device=x.device)
        past = self._past(rows, start)
        return hooks.logits_above(self.model, x, None, last, tokens, past)

    def _past(self, rows: Rows, start: int) -> hooks.Past:
        if start > 1:
            return self.past.cut(rows, start)
        past, which = self.first
        return past.cut(which[rows], 1)

    def answers_of_few(self, x: Float[Tensor, "pairs t d_model"]) -> Float[Tensor, "pairs 2"]:
        """Answer logits of activations that differ in the first token and in length alone."""
        kinds = torch.stack([self.pairs.input_ids[:, 0].cpu(), self.lengths], dim=1)
        some, which = _kinds(kinds)
        few = x[some.to(x.device, non_blocking=True)]
        # without a mask: no position sees the padding after it
        logits = hooks.logits_above(self.model, few, None, self.lengths[some] - 1)
        which, answers = (
            index.to(logits.device, non_blocking=True)
            for index in (which[:, None], self.pairs.answers)
        )
        return logits[which, answers]


def _kinds(rows: Int[Tensor, "rows _"]) -> tuple[Int[Tensor, " kinds"], Int[Tensor, " rows"]]:
    """Of each kind of row the first, and the kind of every row."""
    which = rows.unique(dim=0, return_inverse=True)[1]
    first = torch.full((int(which.max()) + 1,), len(rows))
    return first.scatter_reduce(0, which, torch.arange(len(rows)), "amin"), which


# ---- what latents are set to


def _partners(
    pairs: MinimalPairs, baseline: str, partner: Sequence[int] | None, seed: int
) -> Int[np.ndarray, " pairs"] | None:
    """Whose latents each pair is given, -1 for nobody's; None where the baseline asks for none.

    Raises:
        ValueError: an unknown baseline, or partners that do not fit the pairs.
    """
    choose("baseline", baseline, BASELINES)
    if baseline != "resample":
        if partner is not None:
            raise ValueError(
                f"partner= goes with baseline='resample', and here is baseline={baseline!r}: take "
                "that one, or leave partner out."
            )
        return None
    n_tokens = pairs.attention_mask.sum(1).cpu().numpy()
    partner = _drawn_partners(pairs, seed) if partner is None else np.asarray(partner)
    if partner.shape != (len(pairs),) or not np.issubdtype(partner.dtype, np.integer):
        raise ValueError(
            f"partner is {partner.dtype} {partner.shape}: give one whole number a pair, here "
            f"{len(pairs)}, the index of another pair or -1."
        )
    if (outside := (partner < -1) | (partner >= len(pairs))).any():
        raise ValueError(
            f"There is no pair {partner[outside][0]}: partners are indices from 0 to "
            f"{len(pairs) - 1}, or -1 for none."
        )
    found = partner >= 0
    if not found.any():
        raise ValueError(
            f"No pair of {pairs.name!r} has a partner: another prefix with as many tokens. Take "
            "more pairs, or baseline='mean'."
        )
    uneven = np.flatnonzero(found & (n_tokens != n_tokens[partner]))
    if len(uneven):
        first = uneven[0]
        raise ValueError(
            f"{len(uneven)} pairs have a partner of another length, whose positions are others: "
            f"pair {first} has {n_tokens[first]} tokens, its partner {partner[first]} has "
            f"{n_tokens[partner[first]]}. Give them partners of their own length, or -1."
        )
    return partner


def _drawn_partners(pairs: MinimalPairs, seed: int) -> Int[np.ndarray, " pairs"]:
    """A pair with another prefix of the same length for each, at random; -1 where there is none."""
    rng = np.random.default_rng(seed)
    n_tokens = pairs.attention_mask.sum(1).cpu().numpy()
    prefix = np.unique(pairs.input_ids.cpu().numpy(), axis=0, return_inverse=True)[1].ravel()
    partner = np.full(len(pairs), -1)
    for row in range(len(pairs)):
        others = np.flatnonzero((n_tokens == n_tokens[row]) & (prefix != prefix[row]))
        if len(others):
            partner[row] = rng.choice(others)
    return partner


def _replacements(
    readings: Sequence[_Reading],
    checkpoint: int,
    baseline: str,
    partner: Int[np.ndarray, " pairs"] | None,
) -> Iterator[Latents | None]:
    """For each batch what its latents are set to at a checkpoint; None: to 0."""
    if baseline == "zero":
        yield from [None] * len(readings)
    elif baseline == "mean":
        mean = _mean_by_distance(readings, checkpoint)
        for reading in readings:
            keep = touched(reading.pairs).cpu()
            instead = torch.zeros_like(reading.f(checkpoint))
            instead[keep] = mean[_distance(reading.pairs)[keep]].to(instead)
            yield instead
    else:
        for reading in readings:
            yield _of_partners(readings, reading, checkpoint, partner[reading.rows])


def _distance(pairs: MinimalPairs) -> Int[Tensor, "pairs t"]:
    """How many tokens before the answer position each position is (below 0: padding)."""
    return pairs.answer_position.cpu()[:, None] - torch.arange(pairs.input_ids.shape[1])


def _mean_by_distance(
    readings: Sequence[_Reading], checkpoint: int
) -> Float[Tensor, "distances latents"]:
    """Mean of f over the pairs that are long enough, by distance from the answer position."""
    furthest = max(int(reading.pairs.answer_position.max()) for reading in readings)
    # in float64 and on the CPU: it does not depend on how pairs are batched
    n_latents = readings[0].sparse.shape[-1]
    total = torch.zeros(furthest + 1, n_latents, dtype=torch.float64)
    count = torch.zeros(furthest + 1, 1, dtype=torch.float64)
    for reading in readings:
        keep = touched(reading.pairs).cpu()
        distance = _distance(reading.pairs)[keep]
        total.index_add_(0, distance, reading.f(checkpoint).cpu()[keep].double())
        count.index_add_(0, distance, torch.ones(len(distance), 1, dtype=torch.float64))
    return total / count.clamp_min(1)


def _of_partners(
    readings: Sequence[_Reading],
    reading: _Reading,
    checkpoint: int,
    partner: Int[np.ndarray, " pairs"],
) -> Latents:
    """f of the partners of a batch's pairs; a pair without one keeps its own."""
    instead = reading.f(checkpoint)
    for other in readings:
        here = np.flatnonzero((partner >= other.rows.start) & (partner < other.rows.stop))
        if len(here):
            # a batch may be padded further than another: what counts fits into both
            width = min(instead.shape[1], other.x.shape[1])
            found = other.f(checkpoint)[torch.from_numpy(partner[here] - other.rows.start)]
            instead[torch.from_numpy(here), :width] = found[:, :width]
    return instead


# ---- effects of single latents


@checked
@smaller_chunks_once("in indirect_effects", LESS)
def indirect_effects(
    crosscoder: Dictionary,
    ckpts: Checkpoints,
    pairs: MinimalPairs,
    method: str = "ablation",
    tol: float = 0.01,
    features: Sequence[int] | None = None,
    positions: Bool[Tensor, "pairs tokens"] | None = None,
    batch_size: int = 128,
    metric: str | Metric | Callable | None = None,
    *,
    baseline: str = "zero",
    partner: Sequence[int] | Int[np.ndarray, " pairs"] | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    read_from: ReadFrom | None = None,
) -> Effects:
    """IE of each latent at each checkpoint on a task (Crosscoding Through Time, sec. 4).

    "ablation", the default, sets one latent to zero at all positions and runs the layers above: the
    exact effect of that latent alone. It is the truth that the others estimate, and what its cost
    buys was measured (notebook 06, `experiments`): late in training the others are off by factors,
    each in its own direction. It takes one forward pass for each latent that is active in a pair.
    Where that is too much, rank with "atp" on all pairs, and take the exact effect of the first few
    hundred with `features`; or of all latents on fewer pairs.
    "atp" takes the gradient at the clean point: one backward pass, exact for small changes. Right
    order, wrong size.
    "ig" integrates the gradient along the joint line (1 - a)(f, e) from a = 0 (clean) to 1
    (x = b_dec), so that the effects and the error term add up to m(b_dec) - m(clean): completeness
    (the paper's choice; Marks et al. 2024). Since the line is straight in x, the gradient is taken
    with respect to x alone, with only the layers above it. The line is cut at a = 0.85 first, for m
    falls late. Five Gauss-Legendre nodes a piece; a piece whose integral misses the difference of m
    at its ends by more than `tol` is halved, for that pair alone.
    "ig_near" is "ig" on the first half of that line, and `total` is what its slope extends to: the
    best of the cheap ones in size, nearly as good as "atp" in order.
    "ig_own" integrates along each latent's own line, all else kept (five nodes): the exact
    ablation, written as a sum over positions.
    "shapley" takes the active latents and the error away one after another, in random orders, and
    gives each the mean change of m when it goes (Castro et al. 2009): what "ablation" asks of a
    latent with all others there, averaged over all sets of others. Effects and error add up to
    m(b_dec) - m(clean) exactly, however few the orders. It takes `permutations` forward passes for
    each latent that is active in a pair. `stderr` tells what more orders would change.

    Args:
        crosscoder: trained on these checkpoints and layer.
        ckpts: the checkpoints, in the order of the crosscoder.
        pairs: the task.
        method: one of `attribution.METHODS`.
        tol: "ig", "ig_near": largest error of a piece, as a share of the mean
            |m(b_dec) - m(clean)|. In half precision pieces are held to what it can resolve, where
            that is coarser.
        features: "ablation", "ig_own": the latents to take; None: all that are active.
        positions: only these positions count (`pairs.positions("subject")`): "ablation" and
            "shapley" intervene there alone, the others give the share of these positions, and
            shares add up. None: all.
        batch_size: pairs read at once; results do not depend on it.
        metric: what is measured: None (wrong minus right), a name in METRICS, a `Metric`, or a
            function (logits [items, vocabulary], answers) -> [items] of one's own.
        baseline: "ablation": what a latent is set to, f'_i in m(x + (f'_i - f_i) d_i) - m(x).
            "zero" takes it away; with the others latents that are off in the pair count too.
            "mean": to its mean over the pairs of the task at the same distance from the answer
            position (over those that are long enough), so that what all pairs share stays.
            "resample": to what it is in another pair, at the same positions (Chan et al. 2022).
        partner: "resample": [pairs] index of the pair whose latents each is given; it must have as
            many tokens. -1: none, the pair is left out of the means. None: a pair with another
            prefix of the same length, drawn at random.
        permutations: "shapley": orders for each pair, an even number, as each comes with its
            reverse. They depend on the pair and `seed` alone: neither on its batch nor, where the
            same latents are active, on the checkpoint.
        seed: of such draws.
        read_from: what f is read from. None: from all checkpoints, as the crosscoder does, so that
            what a later one knows takes part in f, and in effects at an early one. Or
            `predict_others(ckpts, text)`, or a function like it: f whose effects are taken at c is
            then read from checkpoint c alone, and from what can be predicted of the others by c;
            the rest goes to the error. `info["read_from"]` tells how much f changes.

    Raises:
        ValueError: an unknown method, metric or baseline, pairs of another tokenizer or without a
            prefix, partners that do not fit, or a crosscoder of other checkpoints.
        hooks.NotFinite: a metric or an effect is NaN or infinite.
        memory.TooLittleMemory: memory ran out twice, the second time with half as much at once.
    """
    choose("method", method, METHODS)
    chosen, metric = METHODS[method], as_metric(metric)
    _check_request(method, metric, tol, features, positions, pairs)
    if whole_number("permutations", permutations, 2) % 2:
        raise ValueError(
            f"permutations={permutations}: each order comes with its reverse, so give an even "
            "number."
        )
    partner = _partners(pairs, baseline, partner, seed)
    in_means = np.ones(len(pairs), bool) if partner is None else partner >= 0
    if baseline != "zero" and method != "ablation":
        raise ValueError(
            f"baseline={baseline!r} goes with method='ablation', and here is {method!r}, whose "
            "baseline is 0: take 'ablation', or leave baseline out."
        )
    # pairs of one length go through the layers together: so do those of a batch
    order = np.argsort(pairs.answer_position.cpu().numpy(), kind="stable")
    place = np.argsort(order)  # where each pair goes
    pairs, positions = pairs[order], None if positions is None else positions[order]
    if partner is not None:
        partner = np.where(partner[order] >= 0, place[partner[order]], -1)
    readings = _read(crosscoder, ckpts, pairs, batch_size, read_from)
    W_dec, b_dec = (weights.detach() for weights in crosscoder.raw_decoder())
    n_latents, n, _ = W_dec.shape
    features = None if features is None else check_features(list(features), n_latents)
    sums = {name: np.full((n, len(pairs)), np.nan) for name in ("error", "total", "evaluations")}
    index, value = [], []  # of the sparse effects
    variance = torch.zeros(n, n_latents, dtype=torch.float64) if chosen.sampled else None
    error_variance = np.zeros(n)
    seeds = _seeds(pairs, seed)
    coarse = {}
    bar = progress(range(n * len(readings)), f"effects ({method})")
    for c, model in enumerate(ckpts):
        readouts = [
            readout_of(model, reading.pairs, reading.x[:, :, c], b_dec[c], metric)
            for reading in readings
        ]
        tolerance = 0.0
        if chosen.integrates:
            length = torch.cat([readout.change.abs().cpu() for readout in readouts])
            hooks.check_finite(length, model, f"The metric on {pairs.name!r}")
            tolerance = tol * float(length.mean())
            finest = max(float(readout.resolution.max()) for readout in readouts)
            if finest > tolerance:
                coarse[model.label] = finest
        replacements = _replacements(readings, c, baseline, partner)
        for reading, readout, instead in zip(readings, readouts, replacements, strict=True):
            f = reading.f(c)
            counted = None if positions is None else positions[reading.rows, : f.shape[1]]
            options = Options(
                features=features,
                positions=None if counted is None else counted.to(f.device),
                tolerance=tolerance,
                instead=instead,
                permutations=permutations,
                seeds=seeds[reading.rows],
            )
            found = chosen.attribute(readout, f, W_dec[:, c].to(f), options)
            hooks.check_finite(found.ie, model, f"Effects on {pairs.name!r}")
            sums["error"][c, reading.rows] = found.error.cpu().double().numpy()
            sums["evaluations"][c, reading.rows] = found.evaluations
            if chosen.sampled:
                variance[c] += found.variance.sum(0).cpu().double()
                error_variance[c] += float(found.error_variance.sum())
            if positions is None:
                sums["total"][c, reading.rows] = found.total.cpu().double().numpy()
            pair, latent = found.ie.nonzero().T
            value.append(found.ie[pair, latent].cpu())  # a few of many: not all of them travel
            pair, latent = pair.cpu(), latent.cpu()
            checkpoint = torch.full_like(pair, c)
            index.append(torch.stack([checkpoint, pair + reading.rows.start, latent]))
            bar.update()
    bar.close()
    if coarse:
        _tell_coarse(coarse, ckpts.dtype, tol)
    sums = {name: each[:, place] for name, each in sums.items()}  # as the pairs were given
    per_pair = _as_given(torch.cat(index, 1), torch.cat(value), (n, len(pairs), n_latents), order)
    info = {
        "method": method,
        "metric": metric.name,
        "unit": metric.unit,
        "task": pairs.name,
        "n_pairs": len(pairs),
        "source": dict(crosscoder.source),
    }
    if chosen.integrates:
        info["tol"] = tol
    if method == "ablation":
        info |= {"baseline": baseline, "n_counted": int(in_means.sum())}
    if read_from is not None:
        info["read_from"] = [_alike(readings, c) for c in range(n)]
    stderr = None
    if chosen.sampled:
        # pairs are drawn for independently
        stderr = variance.sqrt().numpy() / len(pairs)
        error_stderr = np.sqrt(error_variance) / len(pairs)
        info |= {"permutations": permutations, "seed": seed}
        info["error_stderr"] = [None if np.isnan(size) else float(size) for size in error_stderr]
    return _summed(per_pair, sums, in_means, stderr, ckpts.labels, info)


def _as_given(
    index: Int[Tensor, "3 effects"],
    value: Float[Tensor, " effects"],
    shape: tuple[int, int, int],
    order: Int[np.ndarray, " pairs"],
) -> Tensor:
    """Effects of single pairs, sparse [checkpoints, pairs, latents], as the pairs were given.

    They come in order: checkpoints, pairs as they were taken (`order`), and latents.
    """
    checkpoint, pair, latent = index
    pair = torch.from_numpy(order)[pair]
    row = checkpoint * shape[1] + pair
    moved = torch.from_numpy(np.argsort(row.numpy(), kind="stable"))
    index = torch.stack([checkpoint, pair, latent])[:, moved]
    with torch.sparse.check_sparse_tensor_invariants():  # some versions warn without
        return torch.sparse_coo_tensor(index, value[moved], shape, is_coalesced=True)


def _check_request(
    method: str,
    metric: Metric,
    tol: float,
    features: Sequence[int] | None,
    positions: Bool[Tensor, "pairs tokens"] | None,
    pairs: MinimalPairs,
) -> None:
    """Raise ValueError where what is asked for makes no sense."""
    chosen = METHODS[method]
    if not 0 < tol < float("inf"):
        raise ValueError(f"tol={tol} must be above 0.")
    if features is not None and not chosen.one_by_one:
        able = " and ".join(repr(name) for name, other in METHODS.items() if other.one_by_one)
        raise ValueError(f"features= goes with {able}; {method!r} gives all latents at once.")
    if metric.flat_at_clean and chosen.at_clean_point:
        raise ValueError(
            f"metric={metric.name!r} is flat at the clean run, where method={method!r} takes its "
            "gradient: every effect would be 0. Take 'ablation' or 'ig'."
        )
    if positions is not None and (
        positions.shape != pairs.input_ids.shape or positions.dtype != torch.bool
    ):
        raise ValueError(
            f"positions is {positions.dtype} {tuple(positions.shape)}; it must be a mask (bool) "
            f"like input_ids, {tuple(pairs.input_ids.shape)}: pairs.positions('subject') makes one."
        )


def _seeds(pairs: MinimalPairs, seed: int) -> list[int]:
    """A seed for each pair that depends on its tokens, and neither on its place nor on padding."""
    seeds = []
    for row, answers in enumerate(pairs.answers.tolist()):
        tokens = pairs.input_ids[row][pairs.attention_mask[row].bool()].tolist()
        digest = hashlib.sha256(repr((seed, tokens, answers)).encode()).digest()
        seeds.append(int.from_bytes(digest[:8], "big"))
    return seeds


def _tell_coarse(coarse: dict[str, float], dtype: torch.dtype, tol: float) -> None:
    finest = ", ".join(f"{size:.2g} at {label}" for label, size in coarse.items())
    warnings.warn(
        f"{str(dtype).removeprefix('torch.')} resolves the metric to {finest}: there pieces of the "
        f"line were held to that, and not to tol={tol}. The completeness gap tells how far they "
        "are off; dtype='float32' goes further.",
        stacklevel=4,
    )


def _summed(
    per_pair: Tensor,
    sums: dict[str, Float[np.ndarray, "checkpoints pairs"]],
    in_means: Bool[np.ndarray, " pairs"],
    stderr: Float[np.ndarray, "checkpoints latents"] | None,
    names: list[str],
    info: dict[str, Any],
) -> Effects:
    """Means over the pairs that count, and how far effects and error are from adding up.

    The pairs that do not count have no effects.
    """

    index, values = per_pair.indices().numpy(), per_pair.values().double().numpy()

    def added_up(values: Float[np.ndarray, " effects"], axis: int) -> Float[np.ndarray, "n kept"]:
        """What stands in one place of the checkpoints and of an axis, in float64."""
        n, size = per_pair.shape[0], per_pair.shape[axis]
        place = index[0] * size + index[axis]
        return np.bincount(place, values, minlength=n * size).reshape(n, size)

    sums = {name: each[:, in_means] for name, each in sums.items()}
    total, error = sums["total"], sums["error"]
    effects = added_up(values, 1)[:, in_means]
    missed = effects + error - total
    length = np.abs(total).mean(1)
    gap_per_pair = np.abs(missed).mean(1) / length
    info["gap_per_pair"] = [None if np.isnan(gap) else float(gap) for gap in gap_per_pair]
    return Effects(
        mean=added_up(values, 2) / in_means.sum(),
        abs_mean=added_up(np.abs(values), 2) / in_means.sum(),
        error=error.mean(1),
        total=total.mean(1),
        gap=np.abs(missed.mean(1)) / length,
        n_nodes=sums["evaluations"].mean(1),
        per_pair=per_pair,
        names=names,
        info=info,
        stderr=stderr,
    )


# ---- effects of groups


@checked
@smaller_chunks_once("in ablate", LESS)
def ablate(
    crosscoder: Dictionary,
    ckpts: Checkpoints,
    pairs: MinimalPairs,
    features: Iterable[int] | Sequence[Iterable[int]],
    batch_size: int = 128,
    *,
    baseline: str = "zero",
    partner: Sequence[int] | Int[np.ndarray, " pairs"] | None = None,
    seed: int = 0,
    read_from: ReadFrom | None = None,
) -> pd.DataFrame:
    """Set a group of latents to zero together, everywhere but at the first token.

    Args:
        features: the latents to ablate; or a list of such groups, one a checkpoint.
        baseline, partner, seed: what they are set to instead of zero: as for `indirect_effects`.
            Pairs without a partner are left out.
        read_from: as for `indirect_effects`.

    Returns:
        One row a checkpoint: checkpoint, n_features, accuracy_before, accuracy_after (a tie counts
        as half), logit_difference_before and _after (right - wrong, mean), effect (the rise of m:
        before - after), effect_stderr (pairs made of the same words, see `pairs.twins`, count as
        one observation; NaN for a single one), n_pairs.

    Raises:
        ValueError: a feature that does not exist, another number of groups than of checkpoints, or
            what does not belong together.
        hooks.NotFinite: a logit is NaN or infinite.
    """
    groups = _groups_of(list(features), len(ckpts), crosscoder.n_latents)
    partner = _partners(pairs, baseline, partner, seed)
    removal = _Removal(groups=[[group] for group in groups], baseline=baseline)
    readings = _read(crosscoder, ckpts, pairs, batch_size, read_from)
    return _removed(crosscoder, ckpts, pairs, readings, removal, partner)


@checked
@smaller_chunks_once("in ablation_curve", LESS)
def ablation_curve(
    crosscoder: Dictionary,
    ckpts: Checkpoints,
    pairs: MinimalPairs,
    ranking: Sequence[int] | Sequence[Sequence[int]],
    sizes: Sequence[int] = (1, 2, 5, 10, 20, 50),
    batch_size: int = 128,
    *,
    baseline: str = "zero",
    partner: Sequence[int] | Int[np.ndarray, " pairs"] | None = None,
    seed: int = 0,
    read_from: ReadFrom | None = None,
    keep_only: bool = False,
    keep_error: bool = True,
) -> pd.DataFrame:
    """`ablate` the first latents of a ranking, more and more of them; pairs are read once.

    With `keep_only` the other way round: all latents but the first few are set to the baseline, as
    for the faithfulness of a circuit (Marks et al. 2024): how much of the task do these few carry?
    What lies between m(nothing kept), at size 0, and m(clean) is the scale for that.

    Args:
        ranking: latents, the most important first; or one such ranking a checkpoint.
        sizes: how many of the first latents to take; 0 is none.
        baseline, partner, seed, read_from: as for `ablate`.
        keep_only: remove all other latents, and keep these.
        keep_error: keep the reconstruction error too; False: it is set to 0 throughout. With
            keep_only and size 0 nothing but b_dec is left then.

    Returns:
        One row a checkpoint and size, with the columns of `ablate`; n_features is the size.

    Raises:
        ValueError: a size that is above the length of a ranking, and as for `ablate`.
        hooks.NotFinite: a logit is NaN or infinite.
    """
    rankings = _groups_of(list(ranking), len(ckpts), crosscoder.n_latents)
    sizes = [whole_number("sizes", size, 0) for size in sizes]
    shortest = min(len(group) for group in rankings)
    if not sizes or max(sizes) > shortest:
        raise ValueError(
            f"sizes={tuple(sizes)}, and the shortest ranking has {shortest} latents (each counted "
            f"once): take sizes from 0 to {shortest}, or rank more latents."
        )
    partner = _partners(pairs, baseline, partner, seed)
    removal = _Removal(
        groups=[[group[:size] for size in sizes] for group in rankings],
        baseline=baseline,
        keep_only=keep_only,
        keep_error=keep_error,
    )
    readings = _read(crosscoder, ckpts, pairs, batch_size, read_from)
    return _removed(crosscoder, ckpts, pairs, readings, removal, partner)


@dataclass(frozen=True)
class _Removal:
    """Which latents are removed together, and how.

    Attributes:
        groups: for each checkpoint its groups, as many at each.
        baseline: what they are set to.
        keep_only: it is all the others that are removed.
        keep_error: the reconstruction error is not.
    """

    groups: list[list[list[int]]]
    baseline: str = "zero"
    keep_only: bool = False
    keep_error: bool = True

    def streams(
        self,
        readout: Readout,
        f: Latents,
        instead: Latents | None,
        decoder: Float[Tensor, "latents d_model"],
        groups: Sequence[Sequence[int]],
    ) -> Iterator[Float[Tensor, "pairs t d_model"]]:
        """The residual stream with each of the groups removed."""
        x, less = readout.x, f if instead is None else f - instead
        if not self.keep_error:
            x = x - reconstruction_error(readout, f, decoder)
        if self.keep_only:
            x = x - less @ decoder
        for group in groups:
            part = less[..., group] @ decoder[group]
            yield x + part if self.keep_only else x - part


def _removed(
    crosscoder: Dictionary,
    ckpts: Checkpoints,
    pairs: MinimalPairs,
    readings: Sequence[_Reading],
    removal: _Removal,
    partner: Int[np.ndarray, " pairs"] | None,
) -> pd.DataFrame:
    """One row a checkpoint and group; see `ablate`."""
    in_means = np.ones(len(pairs), bool) if partner is None else partner >= 0
    W_dec, b_dec = (weights.detach() for weights in crosscoder.raw_decoder())
    labels = np.unique(twins(pairs)[in_means], return_inverse=True)[1]
    rows = []
    bar = progress(range(len(ckpts) * len(readings)), "ablation")
    for c, model in enumerate(ckpts):
        groups = removal.groups[c]
        before, after = [], []
        replacements = _replacements(readings, c, removal.baseline, partner)
        for reading, instead in zip(readings, replacements, strict=True):
            readout = readout_of(model, reading.pairs, reading.x[:, :, c], b_dec[c])
            decoder = W_dec[:, c].to(reading.x)
            streams = removal.streams(readout, reading.f(c), instead, decoder, groups)
            x = torch.cat(list(streams))  # [groups * pairs, t, d_model]
            m = readout.changed(x, readout.every.repeat(len(groups)))
            before.append(-readout.clean.cpu())
            after.append(-m.cpu().unflatten(0, (len(groups), -1)))
            bar.update()
        clean, changed = torch.cat(before).double(), torch.cat(after, 1).double()
        hooks.check_finite(clean, model, f"Logits on {pairs.name!r}")
        hooks.check_finite(changed, model, f"Logits on {pairs.name!r}")
        clean = clean.numpy()[in_means]
        for group, ablated in zip(groups, changed.numpy()[:, in_means], strict=True):
            rows.append(
                {
                    "checkpoint": model.label,
                    "n_features": len(group),
                    "accuracy_before": share_right(clean),
                    "accuracy_after": share_right(ablated),
                    "logit_difference_before": clean.mean(),
                    "logit_difference_after": ablated.mean(),
                    "effect": (clean - ablated).mean(),
                    "effect_stderr": clustered_stderr(clean - ablated, labels),
                    "n_pairs": len(clean),
                }
            )
    bar.close()
    return pd.DataFrame(rows)


def _groups_of(features: list, n_checkpoints: int, n_latents: int) -> list[list[int]]:
    """One group of latents a checkpoint, each latent once."""
    one_for_all = all(np.ndim(group) == 0 for group in features)
    groups = [features] * n_checkpoints if one_for_all else features
    if len(groups) != n_checkpoints:
        raise ValueError(
            f"{len(groups)} groups of features for {n_checkpoints} checkpoints: give one group, or "
            "one each."
        )
    return [list(dict.fromkeys(check_features(list(group), n_latents))) for group in groups]


def clustered_stderr(
    values: Float[np.ndarray, " pairs"], clusters: Int[np.ndarray, " pairs"]
) -> float:
    """Standard error of the mean where values of one cluster depend on each other.

    The sandwich of Liang and Zeger 1986; NaN for a single cluster.
    """
    sums = np.bincount(clusters, values - values.mean())
    n = len(sums)
    if n < 2:
        return float("nan")
    return float((sums @ sums * n / (n - 1)) ** 0.5 / len(values))


# ---- every subset of a few latents


@dataclass(frozen=True)
class Subsets:
    """What the model answers without each subset of a few latents.

    Attributes:
        features: the latents, m of them.
        names: labels of the checkpoints.
        lead: [checkpoints, 2^m, pairs] logit(right) - logit(wrong). In the subset of number s,
            features[j] is off where bit j of s is set; s = 0 is the model as it is.
    """

    features: list[int]
    names: list[str]
    lead: Float[np.ndarray, "checkpoints subsets pairs"] = field(repr=False)

    @checked
    def number(self, off: Iterable[int]) -> int:
        """The number of a subset, given the latents that are off.

        Raises:
            ValueError: a latent that is not among `features`.
        """
        number = 0
        for feature in off:
            if feature not in self.features:
                raise ValueError(
                    f"Feature {feature} is not among those whose subsets were taken away: there "
                    f"are {self.features}."
                )
            number |= 1 << self.features.index(feature)
        return number

    @checked
    def without(self, off: Iterable[int]) -> Float[np.ndarray, "checkpoints pairs"]:
        """The lead without these latents."""
        return self.lead[:, self.number(off)]


@checked
@smaller_chunks_once("in ablate_subsets", LESS)
def ablate_subsets(
    crosscoder: Dictionary,
    ckpts: Checkpoints,
    pairs: MinimalPairs,
    features: Sequence[int],
    batch_size: int = 128,
) -> Subsets:
    """Set every subset of a few latents to zero, exactly, everywhere but at the first token.

    Effects of several latents do not add up, so that 2^m subsets of m latents cannot be had from m
    effects. A pair takes 2^a forward passes of the layers above at each checkpoint, where a of the
    m latents are active in it: the others change nothing there. That is 2^m at most: m = 8 is
    little for the embedded suite, and much for a large model.

    Args:
        crosscoder: trained on these checkpoints and layer.
        ckpts: the checkpoints, in the order of the crosscoder.
        pairs: the task.
        features: the latents, each once, ten at most.
        batch_size: pairs read at once, and sequences in a forward pass.

    Raises:
        ValueError: no latents, more than ten, one that does not exist or comes twice, or what does
            not belong together.
        hooks.NotFinite: a logit is NaN or infinite.
    """
    features = check_features(list(features), crosscoder.n_latents)
    m = len(features)
    if not 1 <= m <= MOST_IN_SUBSETS or len(set(features)) < m:
        raise ValueError(
            f"features has {m} latents, {len(set(features))} of them different: give 1 to "
            f"{MOST_IN_SUBSETS}, each once. The number of subsets is 2 to their number."
        )
    readings = _read(crosscoder, ckpts, pairs, batch_size)
    W_dec, b_dec = (weights.detach() for weights in crosscoder.raw_decoder())
    lead = np.empty((len(ckpts), 2**m, len(pairs)))
    bar = progress(range(len(ckpts) * len(readings)), "subsets")
    for c, model in enumerate(ckpts):
        for reading in readings:
            readout = readout_of(model, reading.pairs, reading.x[:, :, c], b_dec[c])
            f = reading.f(c)[..., features]
            decoder = W_dec[features, c].to(reading.x)
            lead[c, :, reading.rows] = -_every_subset(readout, f, decoder, batch_size)
            bar.update()
        hooks.check_finite(torch.from_numpy(lead[c]), model, f"Logits on {pairs.name!r}")
    bar.close()
    return Subsets(features=features, names=list(ckpts.labels), lead=lead)


def _every_subset(
    readout: Readout,
    f: Float[Tensor, "pairs t m"],
    decoder: Float[Tensor, "m d_model"],
    batch_size: int,
) -> Float[np.ndarray, "subsets pairs"]:
    """m of the stream without each subset of these latents."""
    n_pairs, m = len(f), f.shape[-1]
    bits = 2 ** np.arange(m)
    active = (f > 0).any(1).cpu().numpy() @ bits  # [pairs] which are active, as a number
    subsets = np.arange(2**m)[:, None] & active  # [subsets, pairs] what of a subset is there
    different, place = np.unique(np.arange(n_pairs) << m | subsets, return_inverse=True)
    rows = torch.from_numpy(different >> m).to(f.device)
    off = torch.from_numpy((different[:, None] & bits) > 0).to(f)  # [items, m]
    values = []
    at_once = chunk(batch_size)
    for start in range(0, len(different), at_once):
        items = slice(start, start + at_once)
        here = rows[items]
        x = readout.x[here] - (f[here] * off[items, None]) @ decoder
        values.append(readout.value(x, here).cpu().double().numpy())
    return np.concatenate(values)[place.reshape(subsets.shape)]
