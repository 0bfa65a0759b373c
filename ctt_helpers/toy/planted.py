"""Planted truth: activations of n checkpoints in which every feature, and its effect on the task, is known.

x_c = o_c + sum_i g_i d_{i,c} + noise: sparse sizes g_i >= 0 shared by all checkpoints, a direction d_{i,c} at each.
The task at c is a differentiable read-out of one projection, m_c(x) = -S tanh(p / S) with p = w_c . (x - o_c), and
w_c . d_{i,c} is the feature's gain. With S infinite it is linear. So every effect has a closed form.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.metrics import classify, rel_dec, rel_ie
from ctt_helpers.paths import EVERY, METHODS, NEAR, ActivationPath, Rows
from ctt_helpers.scaling import latent_scaling

COUNTS = {"emerge": 10, "persist": 10, "fade": 10, "rotate": 6, "scale": 6, "decodable": 6}
GROWTH = 4.0  # last over first norm of a "scale" feature


@dataclass
class Planted:
    """Features with a known answer; all tensors are float64.

    Attributes:
        kinds: [features] "emerge" (written and read from a checkpoint on), "persist", "fade" (until a checkpoint),
            "rotate" (persists, but in another direction at each checkpoint; the read-out follows), "scale" (written
            four times larger in the end, and read as much less: the same effect throughout), "decodable" (written
            like "emerge", read by nothing).
        directions: [features, n, d_model] what a feature of size 1 adds to the raw activation; 0 where not written.
        gains: [n, features] what a feature of size 1 adds to p.
        read_out: [n, d_model] and bias: [n], p = x . read_out + bias on raw activations.
        offset: [n, d_model] raw activation without any feature.
        scale: [n] overall size s_c.
        density: share of tokens on which a feature is active. noise: its standard deviation, before s_c.
        partner: [features] whom a feature goes with, on a share `together` of its tokens; -1: nobody.
        saturation: S, in units of p; infinite: linear.
    """

    kinds: np.ndarray
    directions: Float[Tensor, "features checkpoints d_model"]
    gains: Float[Tensor, "checkpoints features"]
    read_out: Float[Tensor, "checkpoints d_model"]
    bias: Float[Tensor, " checkpoints"]
    offset: Float[Tensor, "checkpoints d_model"]
    scale: Float[Tensor, " checkpoints"]
    density: float
    noise: float
    saturation: float
    partner: np.ndarray
    together: float

    def sample(
        self, n_tokens: int, seed: int = 0
    ) -> tuple[Float[Tensor, "tokens checkpoints d_model"], Float[Tensor, "tokens features"]]:
        """Raw activations and the features' sizes that made them (mean 1 where active), float64."""
        draw, shape = torch.Generator().manual_seed(seed), (n_tokens, len(self.kinds))
        active = torch.rand(shape, generator=draw, dtype=torch.float64) < self.density
        led = np.flatnonzero(self.partner >= 0)
        follow = torch.rand(n_tokens, len(led), generator=draw, dtype=torch.float64) < self.together
        active[:, led] = torch.where(follow, active[:, self.partner[led]], active[:, led])
        size = 0.25 - 0.75 * torch.log1p(-torch.rand(shape, generator=draw, dtype=torch.float64))
        g = active * size
        noise = torch.randn(n_tokens, *self.offset.shape, generator=draw, dtype=torch.float64) * self.noise
        return self.offset + torch.einsum("tf,fcd->tcd", g, self.directions) + noise * self.scale[:, None], g

    def metric(self, p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """m of the projection p: falls with p, as logit(wrong) - logit(right) does where a feature helps."""
        return -p if np.isinf(self.saturation) else -self.saturation * torch.tanh(p / self.saturation)

    def run(self, checkpoint: int, x: Float[Tensor, "items t d_model"], b_dec: Float[Tensor, " d_model"] | None = None):
        """One checkpoint as `ctt_helpers.paths` wants it, read at the last position; b_dec: `offset` if None."""
        return ReadOut(self, checkpoint, x, self.offset[checkpoint] if b_dec is None else b_dec)

    def exact_effects(
        self,
        x: Float[Tensor, "tokens checkpoints d_model"],
        f: Float[Tensor, "tokens features"],
        decoder: Float[Tensor, "features checkpoints d_model"] | None = None,
        method: str = "ablation",
        baseline: Float[Tensor, "checkpoints d_model"] | None = None,
    ) -> Float[Tensor, "checkpoints features"]:
        """What each estimator should give, mean over tokens, in closed form and float64; positive: it helps.

        With a = f_i (w_c . d_{i,c}), the part of p that is due to the feature, and p' = p at the end of the path:
        "ablation" and "ig_own" m(p - a) - m(p); "atp" -a m'(p); "ig" -a (m(p') - m(p)) / (p' - p), its share of the
        joint path, and "ig_near" the same with p' halfway.

        Args:
            x: raw activations.
            f: sizes of the features: the planted ones, or latents of a crosscoder.
            decoder: what a feature of size 1 adds to x; None: the planted directions.
            method: one of `ctt_helpers.paths.METHODS`.
            baseline: where the path of "ig" leads; None: `offset`.

        Raises:
            ValueError: an unknown method.
        """
        if method not in METHODS:
            raise ValueError(f"method={method!r} is not known; take one of {', '.join(METHODS)}.")
        decoder = self.directions if decoder is None else decoder.detach().double()
        baseline = self.offset if baseline is None else baseline.detach().double()
        out = []
        for c, w in enumerate(self.read_out):
            p, part = x[:, c].double() @ w + self.bias[c], f.detach().double() * (decoder[:, c] @ w)
            if method in ("ablation", "ig_own"):
                effect = self.metric(p[:, None] - part) - self.metric(p)[:, None]
            else:
                slope = -torch.ones_like(p) if np.isinf(self.saturation) else -1 / torch.cosh(p / self.saturation) ** 2
                move = (baseline[c] @ w + self.bias[c] - p) * (NEAR if method == "ig_near" else 1)
                chord = (self.metric(p + move) - self.metric(p)) / move
                effect = -part * torch.where((move == 0) | (method == "atp"), slope, chord)[:, None]
            out.append(effect.mean(0))
        return torch.stack(out)


class ReadOut(ActivationPath):
    """The planted task at one checkpoint; the estimators of `ctt_helpers.paths` run on it as on a model."""

    def __init__(self, planted: Planted, checkpoint: int, x: Tensor, b_dec: Tensor):
        super().__init__(None, None, x, b_dec.to(x), torch.ones(x.shape[:2], dtype=torch.bool))
        self.planted, self.w = planted, planted.read_out[checkpoint].to(x)
        self.bias = planted.bias[checkpoint].to(x)

    def metric_of(self, x: Tensor, rows: Rows = EVERY) -> Tensor:
        return self.planted.metric(x[:, -1] @ self.w + self.bias)


def plant(
    n_checkpoints: int = 3,
    d_model: int = 32,
    counts: Mapping[str, int] | None = None,
    density: float = 0.06,
    noise: float = 0.03,
    saturation: float = float("inf"),
    together: float = 0.0,
    hurts: float = 0.2,
    seed: int = 0,
) -> Planted:
    """Plant features whose effects are known; there may be more of them than dimensions.

    Each direction has the components along the read-outs that its gains ask for, and is random besides. Gains are
    between 0.5 and 1.5 in size.

    Args:
        n_checkpoints: at least 2.
        d_model: above n_checkpoints, one dimension for each read-out and something left over.
        counts: kind -> how many; kinds that are not named are left out. None: 48 features, 6 to 10 of each kind.
        density, noise, saturation: see `Planted`.
        together: share of its tokens on which a "decodable" feature does as one of the others does; 0: independent.
        hurts: share of features with a negative gain.

    Raises:
        ValueError: sizes out of range, or an unknown kind.
    """
    counts = dict(COUNTS if counts is None else counts)
    if n_checkpoints < 2 or d_model <= n_checkpoints:
        raise ValueError(
            f"n_checkpoints={n_checkpoints}, d_model={d_model}: take at least 2 checkpoints, and more dimensions than "
            "checkpoints."
        )
    if unknown := set(counts) - set(COUNTS):
        raise ValueError(f"No kind of feature {sorted(unknown)}; there are {', '.join(COUNTS)}.")
    given = {"density": density, "noise": noise, "saturation": saturation, "together": together}
    given |= {"hurts": hurts, "counts": counts}
    shares = 0 < density <= 1 and 0 <= together <= 1 and 0 <= hurts <= 1
    if not (shares and noise >= 0 and saturation > 0 and sum(counts.values())):
        raise ValueError(
            f"{given}: take 0 < density <= 1, noise >= 0, saturation > 0, shares from 0 to 1, at least one feature."
        )
    n, draw = n_checkpoints, torch.Generator().manual_seed(seed)
    kinds = np.repeat(list(counts), list(counts.values()))
    norms, gains = torch.ones(n, len(kinds)).double(), torch.ones(n, len(kinds)).double()
    for i, kind in enumerate(kinds):
        onset = int(torch.randint(1, n, (1,), generator=draw))
        gains[:, i] *= float(0.5 + torch.rand(1, generator=draw)) * (-1 if torch.rand(1, generator=draw) < hurts else 1)
        if kind == "scale":
            norms[:, i] = GROWTH ** torch.linspace(-0.5, 0.5, n)
        elif kind in ("emerge", "fade", "decodable"):
            norms[slice(onset, None) if kind == "fade" else slice(onset), i] = 0
    gains *= (norms > 0) * torch.from_numpy(kinds != "decodable")
    wanted = torch.where(norms > 0, gains / norms.clamp_min(1e-9), 0)  # w_c . u, for the unit vector u
    w = torch.linalg.qr(torch.randn(d_model, n, generator=draw, dtype=torch.float64))[0].T
    w = w * 2 * wanted.norm(dim=0).max().clamp_min(0.5)  # so that no direction is more than half read-out
    directions = torch.zeros(len(kinds), n, d_model).double()
    for i, kind in enumerate(kinds):
        written = (norms[:, i] > 0).nonzero().flatten()
        for group in written.split(1) if kind == "rotate" else [written]:
            along = torch.linalg.pinv(w[group]) @ wanted[group, i]
            rest = torch.randn(d_model, generator=draw, dtype=torch.float64)
            rest -= torch.linalg.pinv(w[group]) @ (w[group] @ rest)
            unit = along + rest * ((1 - along @ along).sqrt() / rest.norm())
            directions[i, group] = norms[group, i, None] * unit
    scale = torch.linspace(1, 3, n).double()  # later streams are longer, as those of language models are
    offset = torch.randn(n, d_model, generator=draw, dtype=torch.float64) * scale[:, None] / d_model**0.5
    w = w / scale[:, None]
    bias = -(w * offset).sum(1)
    causal = np.flatnonzero(kinds != "decodable")
    drawn = causal[torch.randint(max(len(causal), 1), (len(kinds),), generator=draw).numpy()] if len(causal) else -1
    partner = np.where((kinds == "decodable") & (together > 0), drawn, -1)
    settings = (density, noise, saturation, partner, together)
    return Planted(kinds, directions * scale[:, None], gains, w, bias, offset, scale, *settings)


def recovery(crosscoder: Crosscoder, planted: Planted) -> pd.DataFrame:
    """The latent closest to each planted feature: cosine over all checkpoints together, in scaled space.

    Returns:
        One row a planted feature: feature, kind, latent, cosine, found (cosine above 0.9, and the feature is the one
        closest to the latent, too).
    """
    truth = (planted.directions * crosscoder.scales.cpu().double()[:, None]).flatten(1)
    learnt = crosscoder.W_dec.detach().cpu().double().flatten(1)
    cosine = torch.nn.functional.normalize(truth, dim=1) @ torch.nn.functional.normalize(learnt, dim=1).T
    best, latent = cosine.max(1)
    mutual = cosine.argmax(0)[latent] == torch.arange(len(truth))
    columns = {"kind": planted.kinds, "latent": latent.numpy(), "cosine": best.numpy()}
    found = (mutual & (best > 0.9)).numpy()
    return pd.DataFrame({"feature": np.arange(len(truth)), **columns, "found": found})


@torch.no_grad()
def measures(
    crosscoder: Crosscoder,
    planted: Planted,
    x: Float[Tensor, "tokens checkpoints d_model"],
    inactive_below: float = 1e-3,
) -> dict[str, Float[np.ndarray, "checkpoints latents"]]:
    """RelIE (exact ablation), RelDec, nu_error and nu_reconstruction of the latents, each as shares of their sum."""
    crosscoder.eval()
    x = x.to(crosscoder.W_enc)
    f = crosscoder.encode(x)
    ie = planted.exact_effects(x, f, crosscoder.raw_decoder()[0]).numpy()
    dead = (f == 0).all(0).numpy()
    scaling = latent_scaling(crosscoder, [x])
    nus = {"nu_error": scaling.nu_error, "nu_reconstruction": scaling.nu_reconstruction}
    nus = {k: rel_dec(np.nan_to_num(np.asarray(nu)).clip(0), dead) for k, nu in nus.items()}
    return {"RelIE": rel_ie(ie, inactive_below), "RelDec": rel_dec(crosscoder.decoder_norms(), dead), **nus}


def score(
    ratios: Float[np.ndarray, "checkpoints latents"], table: pd.DataFrame, specific: float = 0.7
) -> dict[str, float]:
    """How well ratios tell the planted kinds apart, by the first checkpoint against the last; for any n.

    Args:
        ratios: a measure of the latents (`measures`).
        table: what `recovery` gave; only features that were found are scored.
        specific: share of the last (or first) of the two above which a latent is called specific to it.

    Returns:
        auroc_emerge and auroc_fade (against "persist"; latents without a ratio left out), accuracy over these three
        kinds (a latent without a ratio is wrong), and the share called specific among each of the other kinds.
    """
    table = table[table["found"]]
    ends = ratios[[0, -1]][:, table["latent"]]
    two_way = ends / np.where(ends.sum(0) > 0, ends.sum(0), np.nan)
    late = pd.Series(two_way[1], index=table.index)
    calls = classify(two_way, ["first", "last"], specific=specific, shared=1 - specific)
    called = [{("first",): "fade", ("last",): "emerge", ("first", "last"): "persist"}.get(m) for m in calls["members"]]
    called = pd.Series(called, index=table.index, dtype=object)
    out = {}
    for kind, sign in (("emerge", 1), ("fade", -1)):
        pool = table["kind"].isin([kind, "persist"]) & late.notna()
        out[f"auroc_{kind}"] = auroc(sign * late[pool], table.loc[pool, "kind"] == kind)
    pool = table["kind"].isin(["emerge", "persist", "fade"])
    out["accuracy"] = float((called[pool] == table.loc[pool, "kind"]).mean())
    for kind in ("rotate", "scale", "decodable"):
        out[f"specific_{kind}"] = float(called[table["kind"] == kind].isin(["emerge", "fade"]).mean())
    return out


def auroc(score: Float[np.ndarray, " items"], positive: Bool[np.ndarray, " items"]) -> float:
    """Chance that a positive item scores above a negative one, ties counted half; NaN if either class is empty."""
    score, positive = np.asarray(score, float), np.asarray(positive, bool)
    ranks, n = pd.Series(score).rank().to_numpy(), int(positive.sum())
    if n in (0, len(positive)):
        return float("nan")
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))
