"""The task's metric m along the straight path from an activation x to the decoder's bias, its gradient, and effects.

m = logit(wrong) - logit(right) after the prefix; x(a) = x + a (b_dec - x), at the positions the method touches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ctt_helpers import hooks
from ctt_helpers.metrics import check_features
from ctt_helpers.tasks import MinimalPairs

# five Gauss-Legendre nodes and weights on [0, 1]
NODES, WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(5))
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2
SMALLEST_PIECE = 2.0**-12
Rows = Int[Tensor, " items"] | slice  # which pair each item belongs to
Latents = Float[Tensor, "pairs t latents"]
Decoder = Float[Tensor, "latents d_model"]
METHODS = ("ablation", "atp", "ig", "ig_near", "ig_own")
EVERY = slice(None)  # rows: all pairs, in order
NEAR = 0.5  # "ig_near" goes so far along the joint path


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

    def metric_of(self, x: Float[Tensor, "items t d"], rows: Rows = EVERY) -> Tensor:
        """m of activations `x`, that belong to the pairs `rows`."""
        pair = self.pair
        mask, position, answers = pair.attention_mask[rows], pair.answer_position[rows], pair.answers[rows]
        with torch.set_grad_enabled(x.requires_grad):
            logits = hooks.logits_above(self.model, x, mask, position, answers)
        logits = hooks.at_least_float32(logits)
        return logits[:, 1] - logits[:, 0]

    def at(self, a: Float[Tensor, " items"], rows: Rows = EVERY) -> Float[Tensor, "items t d"]:
        return self.x[rows] + a.to(self.x)[:, None, None] * self.delta[rows]

    def metric(self, a: Float[Tensor, " points"]) -> Float[Tensor, "points pairs"]:
        """m of every pair at each point of the path."""
        return torch.stack([self.metric_of(self.at(point.expand(len(self.x)))) for point in a])

    def gradient(self, a: Float[Tensor, " items"], rows: Rows = EVERY) -> Tensor:
        """dm/dx at the point a of the path, zero where the method does not reach: [items, t, d]."""
        return self.gradient_at(self.at(a, rows), rows)

    def gradient_at(self, x: Float[Tensor, "items t d"], rows: Rows) -> Float[Tensor, "items t d"]:
        """dm/dx of activations that belong to the pairs `rows`, zero where the method does not reach."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            m = self.metric_of(x, rows)
        return torch.autograd.grad(m.sum(), x)[0] * self.keep[rows][..., None]


def effects_from_gradient(
    f: Float[Tensor, "... latents"], W_dec: Decoder, grad: Float[Tensor, "... d_model"]
) -> Float[Tensor, "... latents"]:
    """IE_i = -f_i (W_dec,i . G), from the gradient G of m with respect to the residual stream.

    With the gradient at the clean activation this is attribution patching; with the gradient averaged along a path
    from x to b_dec it is integrated gradients. The decoder is that of one checkpoint, in raw (unscaled) space.
    """
    return -f * (grad @ W_dec.T)


@dataclass
class Estimate:
    """Effects of every latent on every pair of a batch, at one checkpoint.

    Attributes:
        ie: [pairs, latents] indirect effects, summed over the positions asked for.
        error: [pairs] effect of the reconstruction error at these positions (NaN for "ablation" and "ig_own").
        total: [pairs] what effects and error of all positions add up to on a complete path (NaN likewise).
        nodes: [pairs] gradients taken ("ablation": forward passes).
    """

    ie: Float[Tensor, "pairs latents"]
    error: Float[Tensor, " pairs"]
    total: Float[Tensor, " pairs"]
    nodes: Float[np.ndarray, " pairs"]


def estimate(
    run: ActivationPath,
    f: Latents,
    decoder: Decoder,
    method: str,
    budget: float,
    features: Sequence[int] | None = None,
    positions: Bool[Tensor, "pairs t"] | None = None,
) -> Estimate:
    """Effects by one method; see `effects.indirect_effects`, which calls this for every checkpoint.

    Args:
        run: a read-out m at an activation x and a baseline b; another read-out is a subclass with its own `metric_of`.
        f: latents, zero where the method does not touch.
        decoder: what a latent writes, in raw space.
        method: one of METHODS.
        budget: "ig" and "ig_near": how far a piece of the path may be off, in units of m.
        features: "ablation" and "ig_own": the latents asked for; None: all that are active.
        positions: where to count (the gradient methods) or to intervene ("ablation"); None: everywhere.
    """
    counted = f if positions is None else f * positions.to(f)[..., None]
    unknown = torch.full((len(f),), torch.nan)
    if method in ("ablation", "ig_own"):
        active = asked(counted, features)
        each = 1.0 + active.sum(1) if method == "ablation" else float(len(NODES)) * active.sum(1)
        effects = one_at_a_time(run, f, counted, decoder, active, method)
        return Estimate(effects, unknown, unknown, each.cpu().double().numpy())
    until = NEAR if method == "ig_near" else 1.0
    ends = run.metric(torch.tensor([0.0, until]))
    if method == "atp":
        grad, nodes = run.gradient(torch.zeros(len(f))), np.ones(len(f))
    else:
        grad, nodes = integrated_gradient(run, ends, budget * until, until)
    e = (-run.delta - f @ decoder) * run.keep[..., None]  # x - b_dec - f W_dec
    if positions is not None:
        e = e * positions.to(e)[..., None]
    ie = effects_from_gradient(counted, decoder, grad).sum(1)
    return Estimate(ie, -(e * grad).sum((1, 2)), (ends[1] - ends[0]) / until, nodes)


def mean_gradient(gradient: Callable[[float], Tensor]) -> Tensor:
    """A gradient averaged over [0, 1], with five nodes."""
    return sum(weight * gradient(node) for node, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True))


def integrated_gradient(
    run: ActivationPath, ends: Float[Tensor, "2 pairs"], budget: float, until: float = 1.0, items_at_once: int = 256
) -> tuple[Float[Tensor, "pairs tokens d_model"], np.ndarray]:
    """The gradient averaged over the path from a = 0 to `until`, and how many gradients each pair took.

    Each open piece [low, high] of a pair is integrated with five nodes and checked against m at its two ends; one that
    is off by more than `budget` (logits) is halved. `ends` is m at 0 and at `until`.
    """
    grad, count = torch.zeros_like(run.x), np.zeros(len(run.x))
    rows, low = torch.arange(len(run.x)), torch.zeros(len(run.x)).double()
    high = torch.full_like(low, until)
    m_low, m_high = ends.cpu()
    while len(rows):
        middle, fine = (low + high) / 2, torch.zeros(len(rows), dtype=torch.bool)
        m_middle = torch.zeros_like(m_low)
        for part in torch.arange(len(rows)).split(items_at_once):
            r, start, width = rows[part], low[part], high[part] - low[part]
            piece = mean_gradient(lambda a, r=r, start=start, width=width: run.gradient(start + a * width, r))
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
    return grad / until, count


def one_at_a_time(
    run: ActivationPath, f: Latents, counted: Latents, decoder: Decoder, active: Tensor, method: str
) -> Float[Tensor, "pairs latents"]:
    """The effect of each latent alone, for every pair in which it is active, a few hundred at once; 0 elsewhere.

    "ablation": m(x - f_i d_i) - m(x), exact. "ig_own": the gradient integrated along the latent's own path (1 - a) f_i,
    all else kept, with five nodes: over all positions the exact ablation again, but it adds up over positions.
    """
    clean, places = run.metric_of(run.x), active.nonzero().cpu()
    out = torch.zeros(active.shape, device=clean.device, dtype=clean.dtype)
    for part in places.split(512) if len(places) else ():
        r, i = part.T
        here, d = counted[r, :, i], decoder[i][:, None]
        if method == "ablation":
            out[r, i] = run.metric_of(run.x[r] - here[..., None] * d, r) - clean[r]
        else:
            less = f[r, :, i][..., None] * d
            grad = mean_gradient(lambda a, r=r, less=less: run.gradient_at(run.x[r] - a * less, r))
            out[r, i] = -(here * (grad * d).sum(-1)).sum(1)
    return out


def asked(f: Latents, features: Sequence[int] | None) -> Bool[Tensor, "pairs latents"]:
    """Which latents are active in which pair, of those that are asked for."""
    active = (f > 0).any(1)
    if features is not None:
        check_features(list(features), f.shape[-1])
        active &= torch.isin(torch.arange(f.shape[-1]), torch.tensor(list(features), dtype=torch.long)).to(f.device)
    return active
