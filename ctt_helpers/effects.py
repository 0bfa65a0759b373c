"""Indirect effects (IE): how much a task depends on each latent at each checkpoint.

The metric of a pair is m = logit(wrong) - logit(right) after its prefix, so a positive effect means that the latent
helps: without it m would rise. An activation is written x_c = f W_dec^c + b_dec^c + e_c with the reconstruction error
e_c kept, so the clean run is exactly the model's own. The first token of a sequence and padding are never touched.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ctt_helpers.activations import stacked_activations
from ctt_helpers.checkpoints import Checkpoints
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.evaluation import check_match
from ctt_helpers.metrics import check_features
from ctt_helpers.paths import METHODS, ActivationPath, estimate, touched
from ctt_helpers.runtime import choose, load_tensors, progress, read_json, save_folder
from ctt_helpers.tasks import MinimalPairs, twins

ARRAYS = ("mean", "abs_mean", "error", "total", "gap", "n_nodes")


@dataclass
class Effects:
    """Indirect effects of every latent at every checkpoint on one task. Arrays are [n_checkpoints, n_latents].

    Attributes:
        mean: signed IE in logits, summed over a pair's tokens, mean over pairs; positive: the latent helps.
        abs_mean: the same with the absolute value taken per pair, before the mean.
        error: [n] effect of the reconstruction error (NaN for "ablation" and "ig_own").
        total: [n] mean of m(all latents and the error off: x = b_dec) - m(clean).
        gap: [n] completeness gap |sum of effects + error - total| / mean |m(b_dec) - m(clean)|, over pairs (NaN where
            effects need not add up: for "ablation" and "ig_own", and with `positions`).
        n_nodes: [n] mean number of gradient evaluations a pair ("ablation": of forward passes).
        per_pair: sparse [n, pairs, latents]: IE of each latent that is active in the pair.
        names: labels of the checkpoints.
        info: method, task, tolerance, sizes, where it comes from; gap_per_pair, [n] mean |difference| of a pair in the
            same units as `gap`, in which differences of mirrored pairs cannot cancel.
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

    def save(self, folder: str | Path) -> None:
        """Write effects.safetensors and effects.json into `folder`, atomically."""
        sparse = self.per_pair.coalesce()
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in ARRAYS}
        tensors |= {"index": sparse.indices().int(), "value": sparse.values()}
        meta = {"names": self.names, "shape": list(sparse.shape), "info": self.info}
        save_folder(folder, "effects", tensors, "effects", meta)

    @classmethod
    def load(cls, folder: str | Path) -> "Effects":
        """Read what `save` wrote."""
        meta, tensors = read_json(Path(folder) / "effects.json"), load_tensors(Path(folder) / "effects.safetensors")
        index, value = tensors["index"].long(), tensors["value"]
        sparse = torch.sparse_coo_tensor(index, value, meta["shape"], check_invariants=True).coalesce()
        return cls(*(tensors[name].numpy() for name in ARRAYS), sparse, meta["names"], meta["info"])


def indirect_effects(
    crosscoder: Crosscoder,
    ckpts: Checkpoints,
    pairs: MinimalPairs,
    method: str = "ablation",
    tol: float = 0.01,
    features: Sequence[int] | None = None,
    positions: Bool[Tensor, "pairs tokens"] | None = None,
    batch_size: int = 128,
) -> Effects:
    """IE of each latent at each checkpoint on a task (Crosscoding Through Time, sec. 4; Marks et al. 2024).

    "ablation", the default, sets one latent to zero at all positions and runs the layers above: the exact effect of
    that latent alone. It is the truth that the others estimate, and what its cost buys was measured (notebook 06,
    `benchmarks.science`): late in training the others are off by factors, each in its own direction. It takes one
    forward pass for each latent that is active in a pair. Where that is too much, rank with "atp" on all pairs, and
    take the exact effect of the first few hundred with `features`; or of all latents on fewer pairs.
    "atp" takes the gradient at the clean point: one backward pass, exact for small changes. Right order, wrong size.
    "ig" integrates the gradient along the joint path (1 - a)(f, e) from a = 0 (clean) to 1 (x = b_dec), so that the
    effects and the error term add up to m(b_dec) - m(clean): completeness (the paper's choice). Since the path in x is
    a straight line, the gradient is taken with respect to x alone, with only the layers above it. Five Gauss-Legendre
    nodes a piece; a piece whose integral misses the difference of m at its ends by more than `tol` is halved, for
    that pair alone.
    "ig_near" is "ig" on the first half of that path, and `total` is what its slope extends to: the best of the cheap
    ones in size, nearly as good as "atp" in order.
    "ig_own" integrates along each latent's own path, all else kept (five nodes): the exact ablation, written as a sum
    over positions.

    Args:
        crosscoder: trained on these checkpoints and layer.
        ckpts: the checkpoints, in the order of the crosscoder.
        pairs: the task.
        method: "ablation", "atp", "ig", "ig_near" or "ig_own".
        tol: "ig", "ig_near": largest error of a piece, as a share of the mean |m(b_dec) - m(clean)|.
        features: "ablation", "ig_own": the latents to take; None: all that are active.
        positions: only these positions count (`pairs.positions("subject")`): "ablation" intervenes there alone, the
            others give the share of these positions, and shares add up. None: all.
        batch_size: pairs read at once; results do not depend on it.

    Raises:
        ValueError: an unknown method, pairs of another tokenizer, or a crosscoder of other checkpoints.
    """
    choose("method", method, METHODS)
    if not tol > 0 or not len(pairs):
        raise ValueError(f"tol={tol} must be above 0, and there must be a pair; here are {len(pairs)}.")
    if method not in ("ablation", "ig_own") and features is not None:
        raise ValueError(f"features= goes with 'ablation' and 'ig_own'; {method!r} gives all latents at once.")
    if positions is not None and (positions.shape != pairs.input_ids.shape or positions.dtype != torch.bool):
        raise ValueError(
            f"positions is {positions.dtype} {tuple(positions.shape)}; it must be a mask (bool) like input_ids, "
            f"{tuple(pairs.input_ids.shape)}: pairs.positions('subject') makes one."
        )
    check_match(crosscoder, ckpts, pairs)
    crosscoder.eval()
    W_dec = crosscoder.raw_decoder()[0].detach()
    n, h, n_pairs = W_dec.shape[1], W_dec.shape[0], len(pairs)
    index, value = [], []  # of the sparse effects
    error, total, nodes = (np.zeros((n, n_pairs)) for _ in range(3))
    scales = _path_lengths(crosscoder, ckpts, pairs, batch_size) if method in ("ig", "ig_near") else [1.0] * n
    for rows, f, runs in _runs(crosscoder, ckpts, pairs, batch_size, f"effects ({method})"):
        counted = None if positions is None else positions[rows, : f.shape[1]].to(f.device)
        for c, run in enumerate(runs):
            found = estimate(run, f, W_dec[:, c].to(f), method, tol * scales[c], features, counted)
            error[c, rows], nodes[c, rows] = found.error.cpu().double().numpy(), found.nodes
            total[c, rows] = found.total.cpu().double().numpy() if positions is None else np.nan
            where = found.ie.nonzero().T.cpu()
            value.append(found.ie.cpu()[where[0], where[1]])
            index.append(torch.stack([torch.full_like(where[0], c), where[0] + rows.start, where[1]]))
    info = {"method": method, "task": pairs.name, "n_pairs": n_pairs, "source": crosscoder.source}
    info |= {"tol": tol} if method in ("ig", "ig_near") else {}
    shape = (n, n_pairs, h)
    sparse = torch.sparse_coo_tensor(torch.cat(index, 1), torch.cat(value), shape, check_invariants=True).coalesce()
    mean, abs_mean = (torch.sparse.sum(s.double(), 1).to_dense().numpy() / n_pairs for s in (sparse, sparse.abs()))
    missed = torch.sparse.sum(sparse.double(), 2).to_dense().numpy() + error - total
    length = np.abs(total).mean(1)
    gap, gap_per_pair = np.abs(missed.mean(1)) / length, np.abs(missed).mean(1) / length
    info["gap_per_pair"] = [None if np.isnan(g) else float(g) for g in gap_per_pair]
    means = (values.mean(1) for values in (error, total))
    return Effects(mean, abs_mean, *means, gap, nodes.mean(1), sparse, ckpts.labels, info)


def ablate(
    crosscoder: Crosscoder,
    ckpts: Checkpoints,
    pairs: MinimalPairs,
    features: Iterable[int] | Sequence[Iterable[int]],
    batch_size: int = 128,
) -> pd.DataFrame:
    """Set a group of latents to zero together, everywhere but at the first token, and run each checkpoint.

    Args:
        features: the latents to ablate; or a list of such groups, one a checkpoint.

    Returns:
        One row a checkpoint: checkpoint, n_features, accuracy_before, accuracy_after, logit_difference_before and
        _after (right - wrong, mean), effect (the rise of m: before - after), effect_stderr (pairs made of
        the same words, see `tasks.twins`, count as one observation; NaN for a single one), n_pairs.
    """
    check_match(crosscoder, ckpts, pairs)
    crosscoder.eval()
    W_dec = crosscoder.raw_decoder()[0].detach()
    features = list(features)
    shared = all(np.ndim(g) == 0 for g in features)
    groups = [list(dict.fromkeys(map(int, g))) for g in ([features] * len(ckpts) if shared else features)]
    if len(groups) != len(ckpts):
        raise ValueError(f"{len(groups)} groups of features for {len(ckpts)} checkpoints: give one group, or one each.")
    for group in groups:
        check_features(group, len(W_dec))
    before, after = ([[] for _ in ckpts] for _ in range(2))
    for _, f, runs in _runs(crosscoder, ckpts, pairs, batch_size, "ablation"):
        for c, run in enumerate(runs):
            before[c].append(-run.metric_of(run.x).cpu())
            after[c].append(-run.metric_of(run.x - f[..., groups[c]] @ W_dec[groups[c], c].to(f)).cpu())
    clean, ablated = (np.stack([torch.cat(part).double().numpy() for part in side]) for side in (before, after))
    change = clean - ablated
    return pd.DataFrame(
        {
            "checkpoint": ckpts.labels,
            "n_features": [len(group) for group in groups],
            "accuracy_before": (clean > 0).mean(1),
            "accuracy_after": (ablated > 0).mean(1),
            "logit_difference_before": clean.mean(1),
            "logit_difference_after": ablated.mean(1),
            "effect": change.mean(1),
            "effect_stderr": [_stderr(row, twins(pairs)) for row in change],
            "n_pairs": len(pairs),
        }
    )


def _stderr(values: Float[np.ndarray, " pairs"], clusters: Int[np.ndarray, " pairs"]) -> float:
    """Standard error of the mean, robust to dependence inside clusters (the sandwich of Liang and Zeger 1986)."""
    sums = np.bincount(clusters, values - values.mean())
    n = len(sums)
    return float((sums @ sums * n / (n - 1)) ** 0.5 / len(values)) if n > 1 else float("nan")


def _runs(
    crosscoder: Crosscoder, ckpts: Checkpoints, pairs: MinimalPairs, batch_size: int, desc: str
) -> Iterator[tuple[slice, Float[Tensor, "b t h"], Iterator[ActivationPath]]]:
    """For each batch: its rows among the pairs, its latents, and the path of each checkpoint, one after another."""
    b_dec, done = crosscoder.raw_decoder()[1].detach(), 0
    for pair in progress(list(pairs.batches(batch_size)), desc):
        x, f, keep = _activations(crosscoder, ckpts, pair)
        paths = ((model, pair, x[:, :, c], b_dec[c].to(x), keep) for c, model in enumerate(ckpts))
        yield slice(done, done + len(pair)), f, (ActivationPath(*path) for path in paths)
        done += len(pair)


def _path_lengths(crosscoder: Crosscoder, ckpts: Checkpoints, pairs: MinimalPairs, batch_size: int) -> list[float]:
    """Mean |m(b_dec) - m(clean)| of each checkpoint: what a tolerance is a share of."""
    lengths = [[] for _ in ckpts.revisions]
    for _, _, runs in _runs(crosscoder, ckpts, pairs, batch_size, "path lengths"):
        for run, parts in zip(runs, lengths, strict=True):
            clean, bias = run.metric(torch.tensor([0.0, 1.0]))
            parts.append((bias - clean).abs().cpu())
    return [float(torch.cat(parts).mean()) for parts in lengths]


@torch.no_grad()
def _activations(
    crosscoder: Crosscoder, ckpts: Checkpoints, pair: MinimalPairs
) -> tuple[Float[Tensor, "b t n d"], Float[Tensor, "b t h"], Bool[Tensor, "b t"]]:
    """Activations, latents (zero at the first token and at padding), and which positions the method touches."""
    x = stacked_activations(ckpts, pair.input_ids, pair.attention_mask)
    keep = touched(pair).to(x.device)
    f = x.new_zeros(*x.shape[:2], crosscoder.n_latents)
    f[keep] = crosscoder.encode(x[keep]).detach()
    return x, f, keep
