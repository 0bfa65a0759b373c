"""The task's metric m along the straight path from an activation x to the decoder's bias, and its gradient there.

m = logit(wrong) - logit(right) after the prefix; x(a) = x + a (b_dec - x), at the positions the method touches.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ctt_helpers import hooks
from ctt_helpers.tasks import MinimalPairs

# five Gauss-Legendre nodes and weights on [0, 1]
NODES, WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(5))
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2
SMALLEST_PIECE = 2.0**-12


def touched(pair: MinimalPairs) -> Bool[Tensor, "pairs tokens"]:
    """The positions that the method touches: neither padding nor the first token."""
    keep = pair.attention_mask.bool().clone()
    keep[:, 0] = False
    return keep


class ActivationPath:
    """One checkpoint on one batch of pairs: m, and its gradient, anywhere on the path from x to b_dec."""

    def __init__(self, model: hooks.HookedModel, pair: MinimalPairs, x: Tensor, b_dec: Tensor, keep: Tensor):
        self.model, self.pair, self.x, self.keep = model, pair, x, keep
        self.delta = (b_dec - x) * keep[..., None]  # x(a) = x + a delta; zero where the method does not reach

    def metric_of(self, x: Float[Tensor, "items t d"], rows: Int[Tensor, " items"] | None = None) -> Tensor:
        """m of activations `x`, that belong to the pairs `rows` (all of them, in order, if None)."""
        pair = self.pair
        mask, position, answers = pair.attention_mask, pair.answer_position, pair.answers
        if rows is not None:
            mask, position, answers = mask[rows], position[rows], answers[rows]
        with torch.set_grad_enabled(x.requires_grad):
            logits = hooks.logits_above(self.model, x, mask, position, answers)
        logits = hooks.at_least_float32(logits)
        return logits[:, 1] - logits[:, 0]

    def at(self, a: Float[Tensor, " items"], rows: Int[Tensor, " items"]) -> Float[Tensor, "items t d"]:
        return self.x[rows] + a.to(self.x)[:, None, None] * self.delta[rows]

    def metric(self, a: Float[Tensor, " points"]) -> Float[Tensor, "points pairs"]:
        """m of every pair at each point of the path."""
        rows = torch.arange(len(self.x))
        return torch.stack([self.metric_of(self.at(point.expand(len(rows)), rows), rows) for point in a])

    def gradient(self, a: Float[Tensor, " items"], rows: Int[Tensor, " items"] | None = None) -> Tensor:
        """dm/dx at the point a of the path, zero where the method does not reach: [items, t, d]."""
        rows = torch.arange(len(self.x)) if rows is None else rows
        x = self.at(a, rows).detach().requires_grad_(True)
        with torch.enable_grad():
            m = self.metric_of(x, rows)
        return torch.autograd.grad(m.sum(), x)[0] * self.keep[rows][..., None]


def path_lengths(ckpts: Sequence[hooks.HookedModel], chunks: list[MinimalPairs], b_dec: Tensor) -> list[float]:
    """Mean |m(b_dec) - m(clean)| of each checkpoint: what a tolerance is a share of."""
    out = []
    for c, model in enumerate(ckpts):
        parts = []
        for pair in chunks:
            x = hooks.residual_stream(model, pair.input_ids, pair.attention_mask)
            x = hooks.at_least_float32(x)
            ends = ActivationPath(model, pair, x, b_dec[c].to(x), touched(pair).to(x.device)).metric(
                torch.tensor([0.0, 1.0])
            )
            parts.append((ends[1] - ends[0]).abs().cpu())
        out.append(float(torch.cat(parts).mean()))
    return out


def integrated_gradient(
    run: ActivationPath, ends: Float[Tensor, "2 pairs"], budget: float, items_at_once: int = 256
) -> tuple[Float[Tensor, "pairs tokens d_model"], np.ndarray]:
    """The gradient averaged over the path, and how many gradients each pair took.

    Each open piece [low, high] of a pair is integrated with five nodes and checked against m at its two ends; one that
    is off by more than `budget` (logits) is halved.
    """
    grad, count = torch.zeros_like(run.x), np.zeros(len(run.x))
    rows, low, high = torch.arange(len(run.x)), torch.zeros(len(run.x)).double(), torch.ones(len(run.x)).double()
    m_low, m_high = ends.cpu()
    while len(rows):
        middle, fine = (low + high) / 2, torch.zeros(len(rows), dtype=torch.bool)
        m_middle = torch.zeros_like(m_low)
        for part in torch.arange(len(rows)).split(items_at_once):
            r, start, width = rows[part], low[part], high[part] - low[part]
            piece = torch.zeros_like(run.x[r])
            for node, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True):
                piece += weight * run.gradient(start + node * width, r)
            piece *= width.to(run.x)[:, None, None]
            np.add.at(count, r.numpy(), len(NODES))
            miss = (piece * run.delta[r]).sum((1, 2)).cpu() - (m_high[part] - m_low[part])
            ok = (miss.abs() <= budget) | (width <= SMALLEST_PIECE)
            fine[part] = ok
            grad.index_add_(0, r[ok].to(grad.device), piece[ok.to(piece.device)])
            if not ok.all():
                m_middle[part[~ok]] = run.metric_of(run.at(middle[part[~ok]], r[~ok]), r[~ok]).cpu()
        open_ = ~fine
        rows = rows[open_].repeat(2)
        low, high = torch.cat([low[open_], middle[open_]]), torch.cat([middle[open_], high[open_]])
        m_low, m_high = torch.cat([m_low[open_], m_middle[open_]]), torch.cat([m_middle[open_], m_high[open_]])
    return grad, count


def single_ablations(
    run: ActivationPath,
    f: Float[Tensor, "pairs t latents"],
    decoder: Float[Tensor, "latents d"],
    features: Sequence[int] | None,
) -> tuple[Float[Tensor, "pairs latents"], np.ndarray]:
    """Exact effect of each latent alone: m(x - f_i d_i) - m(x), for every pair in which it is active."""
    active = (f > 0).any(1)
    if features is not None:
        check_features(list(features), f.shape[-1])
        asked = torch.zeros(f.shape[-1], dtype=torch.bool, device=f.device)
        asked[list(features)] = True
        active = active & asked
    rows, latents = active.nonzero().T.cpu()
    clean = run.metric_of(run.x)

    def effect(part: Tensor) -> Tensor:
        r, i = rows[part], latents[part]
        less = f[r, :, i][..., None] * decoder[i][:, None]
        return run.metric_of(run.x[r] - less, r) - clean[r]

    out = torch.zeros(active.shape, device=clean.device, dtype=clean.dtype)
    if len(rows):
        out[rows, latents] = _in_parts(effect, len(rows), 512)
    return out, 1.0 + active.sum(1).cpu().numpy()


def check_features(features: Sequence[int], n_latents: int) -> None:
    wrong = [i for i in features if not 0 <= i < n_latents]
    if wrong:
        raise ValueError(f"There is no latent {wrong[0]}: this crosscoder has {n_latents}, 0 to {n_latents - 1}.")


def _in_parts(function: Callable[[Tensor], Tensor], n: int, size: int) -> Tensor:
    return torch.cat([function(part) for part in torch.arange(n).split(size)])
