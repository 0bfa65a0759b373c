"""Planted truth: activations of n checkpoints in which every feature, and its effect, is known.

x_c = o_c + sum_i g_i d_{i,c} + noise: sparse sizes g_i >= 0 shared by all checkpoints, a direction
d_{i,c} at each. The task at c reads one projection p = w_c . (x - o_c): its answer logits are
S tanh(p / S) for the right answer and 0 for the wrong one, so m = wrong - right = -S tanh(p / S),
and w_c . d_{i,c} is the feature's gain. With S infinite it is linear. So every effect has a closed
form.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ctt_helpers.arguments import checked
from ctt_helpers.attribution import METHODS, NEAR, Readout, Rows
from ctt_helpers.controls import latent_scaling
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.effects import Metric, as_metric, metric_of_stream
from ctt_helpers.messages import choose, whole_number
from ctt_helpers.metrics import classify, rel_dec, rel_ie, to_numpy

COUNTS = {"emerge": 10, "persist": 10, "fade": 10, "rotate": 6, "scale": 6, "decodable": 6}
GROWTH = 4.0  # last over first norm of a "scale" feature

# ---- a planted world


@dataclass
class Planted:
    """Features with a known answer; all tensors are float64.

    Attributes:
        kinds: [features] "emerge" (written and read from a checkpoint on), "persist", "fade" (until
            a checkpoint), "rotate" (persists, but in another direction at each checkpoint; the
            read-out follows), "scale" (written four times larger in the end, and read as much less:
            the same effect throughout), "decodable" (written like "emerge", read by nothing).
        directions: [features, n, d_model] what a feature of size 1 adds to the raw activation; 0
            where not written.
        gains: [n, features] what a feature of size 1 adds to p.
        read_out: [n, d_model] and bias: [n], p = x . read_out + bias on raw activations.
        offset: [n, d_model] raw activation without any feature.
        scale: [n] overall size s_c.
        density: share of tokens on which a feature is active.
        noise: its standard deviation, before s_c.
        partner: [features] whom a feature goes with, on a share `together` of its tokens; -1:
            nobody.
        together: that share.
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

    @checked
    def sample(
        self, n_tokens: int, seed: int = 0
    ) -> tuple[Float[Tensor, "tokens checkpoints d_model"], Float[Tensor, "tokens features"]]:
        """Raw activations and the features' sizes that made them (mean 1 where active), float64."""
        n_tokens = whole_number("n_tokens", n_tokens, 0)
        draw = torch.Generator().manual_seed(seed)

        def uniform(*sizes: int) -> Tensor:
            return torch.rand(sizes, generator=draw, dtype=torch.float64)

        n_features = len(self.kinds)
        active = uniform(n_tokens, n_features) < self.density
        led = np.flatnonzero(self.partner >= 0)
        follow = uniform(n_tokens, len(led)) < self.together
        active[:, led] = torch.where(follow, active[:, self.partner[led]], active[:, led])
        size = 0.25 - 0.75 * torch.log1p(-uniform(n_tokens, n_features))
        g = active * size
        sizes = (n_tokens, *self.offset.shape)
        noise = torch.randn(sizes, generator=draw, dtype=torch.float64) * self.noise
        written = torch.einsum("tf,fcd->tcd", g, self.directions)
        return self.offset + written + noise * self.scale[:, None], g

    @checked
    def projection(self, checkpoint: int, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "..."]:
        """p of raw activations."""
        self._check(checkpoint)
        if x.shape[-1:] != self.offset.shape[1:]:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: give [..., {self.offset.shape[1]} d_model]."
            )
        return x @ self.read_out[checkpoint].to(x) + self.bias[checkpoint].to(x)

    @checked
    def metric(self, p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """m of the projection p: falls with p, as wrong - right does where a feature helps."""
        return -self._right_logit(p)

    def _check(self, checkpoint: int) -> None:
        if not 0 <= checkpoint < len(self.offset):
            raise ValueError(f"checkpoint={checkpoint}: give one from 0 to {len(self.offset) - 1}.")

    def _right_logit(self, p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if np.isinf(self.saturation):
            return p
        return self.saturation * torch.tanh(p / self.saturation)

    @checked
    def readout(
        self,
        checkpoint: int,
        x: Float[Tensor, "items t d_model"],
        b_dec: Float[Tensor, " d_model"] | None = None,
        metric: str | Metric | None = None,
    ) -> Readout:
        """The task at one checkpoint, read at the last position, as `attribution` takes it.

        Args:
            checkpoint: its index.
            x: raw activations.
            b_dec: where the joint line leads; None: `offset`.
            metric: as for `effects.indirect_effects`; the vocabulary are the two answers.
        """
        self._check(checkpoint)
        baseline = self.offset[checkpoint] if b_dec is None else b_dec

        def logits(x: Float[Tensor, "items t d_model"], rows: Rows) -> Float[Tensor, "items 2"]:
            right = self._right_logit(self.projection(checkpoint, x[:, -1]))
            return torch.stack([right, torch.zeros_like(right)], dim=1)

        right = torch.zeros(len(x), dtype=torch.long)  # a vocabulary of two words
        return Readout(
            metric=metric_of_stream(as_metric(metric), logits, logits, right, right + 1, x),
            x=x,
            baseline=baseline.to(x),
            touched=torch.ones(x.shape[:2], dtype=torch.bool),
        )

    @checked
    def exact_effects(
        self,
        x: Float[Tensor, "tokens checkpoints d_model"],
        f: Float[Tensor, "tokens features"],
        decoder: Float[Tensor, "features checkpoints d_model"] | None = None,
        method: str = "ablation",
        baseline: Float[Tensor, "checkpoints d_model"] | None = None,
    ) -> Float[Tensor, "checkpoints features"]:
        """What each estimator should give, mean over tokens, in closed form; positive: it helps.

        With a = f_i (w_c . d_{i,c}), the part of p that is due to the feature, and p' = p at the
        end
        of the line: "ablation" and "ig_own" m(p - a) - m(p); "atp" -a m'(p); "ig"
        -a (m(p') - m(p)) / (p' - p), its share of the joint line, and "ig_near" the same with p'
        halfway.

        Args:
            x: raw activations.
            f: sizes of the features: the planted ones, or latents of a crosscoder.
            decoder: what a feature of size 1 adds to x; None: the planted directions.
            method: one of `attribution.METHODS` that draws nothing ("shapley" does: it goes over
                sets of features).
            baseline: where the line of "ig" leads; None: `offset`.

        Raises:
            ValueError: an unknown method, one without a closed form, or shapes that do not fit.
        """
        choose("method", method, METHODS)
        if METHODS[method].sampled:
            raise ValueError(
                f"method={method!r} is drawn at random and has no closed form here. Where m is "
                "linear (saturation=inf), take 'ablation', which is the same."
            )
        n_features = len(self.directions if decoder is None else decoder)
        fits = x.shape[1:] == self.offset.shape and tuple(f.shape) == (len(x), n_features)
        if not fits or (decoder is not None and decoder.shape[1:] != self.offset.shape):
            raise ValueError(
                f"x {tuple(x.shape)} and f {tuple(f.shape)} do not fit: give [tokens, "
                f"{self.offset.shape[0]} checkpoints, {self.offset.shape[1]} d_model] and [tokens, "
                f"{n_features} features], and a decoder of them."
            )
        if baseline is not None and baseline.shape != self.offset.shape:
            raise ValueError(
                f"baseline has shape {tuple(baseline.shape)}: give {tuple(self.offset.shape)}."
            )
        decoder = self.directions if decoder is None else decoder.detach().double()
        baseline = self.offset if baseline is None else baseline.detach().double()
        x, f = x.double(), f.detach().double()
        effects = []
        for c, w in enumerate(self.read_out):
            p = self.projection(c, x[:, c])
            part = f * (decoder[:, c] @ w)
            if METHODS[method].one_by_one:
                effect = self.metric(p[:, None] - part) - self.metric(p)[:, None]
            elif METHODS[method].at_clean_point:
                effect = -part * self._slope(p)[:, None]
            else:
                until = NEAR if method == "ig_near" else 1.0
                move = until * (self.projection(c, baseline[c]) - p)
                chord = (self.metric(p + move) - self.metric(p)) / move
                effect = -part * torch.where(move == 0, self._slope(p), chord)[:, None]
            effects.append(effect.mean(0))
        return torch.stack(effects)

    def _slope(self, p: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """dm/dp."""
        if np.isinf(self.saturation):
            return -torch.ones_like(p)
        return -1 / torch.cosh(p / self.saturation) ** 2


@checked
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

    Each direction has the components along the read-outs that its gains ask for, and is random
    besides. Gains are between 0.5 and 1.5 in size.

    Args:
        n_checkpoints: at least 2.
        d_model: above n_checkpoints, one dimension for each read-out and something left over.
        counts: kind -> how many; kinds that are not named are left out. None: 48 features, 6 to 10
            of each kind.
        density, noise, saturation: see `Planted`.
        together: share of its tokens on which a "decodable" feature does as one of the others does;
            0: independent.
        hurts: share of features with a negative gain.
        seed: of everything.

    Raises:
        ValueError: sizes out of range, or an unknown kind.
    """
    counts = dict(COUNTS if counts is None else counts)
    if n_checkpoints < 2 or d_model <= n_checkpoints:
        raise ValueError(
            f"n_checkpoints={n_checkpoints}, d_model={d_model}: take at least 2 checkpoints, and "
            "more dimensions than checkpoints."
        )
    if unknown := set(counts) - set(COUNTS):
        raise ValueError(f"No kind of feature {sorted(unknown)}; there are {', '.join(COUNTS)}.")
    shares = 0 < density <= 1 and 0 <= together <= 1 and 0 <= hurts <= 1
    if not (shares and noise >= 0 and saturation > 0 and sum(counts.values())):
        raise ValueError(
            f"density={density}, noise={noise}, saturation={saturation}, together={together}, "
            f"hurts={hurts}, counts={counts}: take 0 < density <= 1, noise >= 0, saturation > 0, "
            "shares from 0 to 1, at least one feature."
        )
    n, draw = n_checkpoints, torch.Generator().manual_seed(seed)
    kinds = np.repeat(list(counts), list(counts.values()))
    norms, gains = _norms_and_gains(kinds, n, hurts, draw)
    wanted = torch.where(
        norms > 0, gains / norms.clamp_min(1e-9), 0
    )  # w_c . u, for the unit vector u
    w = torch.linalg.qr(torch.randn(d_model, n, generator=draw, dtype=torch.float64))[0].T
    w = (
        w * 2 * wanted.norm(dim=0).max().clamp_min(0.5)
    )  # so that no direction is more than half read-out
    directions = _directions(kinds, norms, wanted, w, draw)
    scale = torch.linspace(
        1, 3, n
    ).double()  # later streams are longer, as those of language models are
    offset = torch.randn(n, d_model, generator=draw, dtype=torch.float64)
    offset = offset * scale[:, None] / d_model**0.5
    w = w / scale[:, None]
    causal = np.flatnonzero(kinds != "decodable")
    partner = np.full(len(kinds), -1)
    if len(causal):
        drawn = torch.randint(len(causal), (len(kinds),), generator=draw).numpy()
        led = (kinds == "decodable") & (together > 0)
        partner = np.where(led, causal[drawn], -1)
    return Planted(
        kinds=kinds,
        directions=directions * scale[:, None],
        gains=gains,
        read_out=w,
        bias=-(w * offset).sum(1),
        offset=offset,
        scale=scale,
        density=density,
        noise=noise,
        saturation=saturation,
        partner=partner,
        together=together,
    )


def _norms_and_gains(
    kinds: np.ndarray, n: int, hurts: float, draw: torch.Generator
) -> tuple[Float[Tensor, "n features"], Float[Tensor, "n features"]]:
    """How strongly each feature is written at each checkpoint, and what it adds to p."""
    norms = torch.ones(n, len(kinds)).double()
    gains = torch.ones(n, len(kinds)).double()
    for i, kind in enumerate(kinds):
        onset = int(torch.randint(1, n, (1,), generator=draw))
        size = float(0.5 + torch.rand(1, generator=draw))
        sign = -1 if torch.rand(1, generator=draw) < hurts else 1
        gains[:, i] *= size * sign
        if kind == "scale":
            norms[:, i] = GROWTH ** torch.linspace(-0.5, 0.5, n)
        elif kind == "fade":
            norms[onset:, i] = 0
        elif kind in ("emerge", "decodable"):
            norms[:onset, i] = 0
    read = torch.from_numpy(kinds != "decodable")
    return norms, gains * (norms > 0) * read


def _directions(
    kinds: np.ndarray,
    norms: Float[Tensor, "n features"],
    wanted: Float[Tensor, "n features"],
    w: Float[Tensor, "n d_model"],
    draw: torch.Generator,
) -> Float[Tensor, "features n d_model"]:
    """A direction for each feature and checkpoint, with the components along w that are wanted."""
    n, d_model = w.shape
    directions = torch.zeros(len(kinds), n, d_model).double()
    for i, kind in enumerate(kinds):
        written = (norms[:, i] > 0).nonzero().flatten()
        for group in written.split(1) if kind == "rotate" else [written]:
            back = torch.linalg.pinv(w[group])
            along = back @ wanted[group, i]
            rest = torch.randn(d_model, generator=draw, dtype=torch.float64)
            rest -= back @ (w[group] @ rest)
            unit = along + rest * ((1 - along @ along).sqrt() / rest.norm())
            directions[i, group] = norms[group, i, None] * unit
    return directions


# ---- what a crosscoder found of it


@checked
def recovery(crosscoder: Crosscoder, planted: Planted) -> pd.DataFrame:
    """The latent closest to each planted feature: cosine over all checkpoints, in scaled space.

    Returns:
        One row a planted feature: feature, kind, latent, cosine, found (cosine above 0.9, and the
        feature is the one closest to the latent, too).

    Raises:
        ValueError: a crosscoder of another number of checkpoints or another width.
    """
    _check_match(crosscoder, planted)
    scales = crosscoder.scales.cpu().double()[:, None]
    truth = (planted.directions * scales).flatten(1)
    learnt = crosscoder.W_dec.detach().cpu().double().flatten(1)
    unit = torch.nn.functional.normalize
    cosine = unit(truth, dim=1) @ unit(learnt, dim=1).T
    best, latent = cosine.max(1)
    mutual = cosine.argmax(0)[latent] == torch.arange(len(truth))
    return pd.DataFrame(
        {
            "feature": np.arange(len(truth)),
            "kind": planted.kinds,
            "latent": latent.numpy(),
            "cosine": best.numpy(),
            "found": (mutual & (best > 0.9)).numpy(),
        }
    )


@checked
@torch.no_grad()
def measures(
    crosscoder: Crosscoder,
    planted: Planted,
    x: Float[Tensor, "tokens checkpoints d_model"],
    inactive_below: float = 1e-3,
) -> dict[str, Float[np.ndarray, "checkpoints latents"]]:
    """RelIE (exact ablation), RelDec, nu_error, nu_reconstruction, each as shares of their sum.

    Raises:
        ValueError: a crosscoder of another number of checkpoints or another width.
    """
    _check_match(crosscoder, planted)
    crosscoder.eval()
    x = x.to(crosscoder.W_enc)
    f = crosscoder.encode(x)
    ie = planted.exact_effects(x, f, crosscoder.raw_decoder()[0]).numpy()
    dead = (f == 0).all(0).numpy()
    scaling = latent_scaling(crosscoder, [x])

    def shares(nu: Float[np.ndarray, "n latents"]) -> Float[np.ndarray, "n latents"]:
        return rel_dec(np.nan_to_num(nu).clip(0), dead)

    return {
        "RelIE": rel_ie(ie, inactive_below),
        "RelDec": rel_dec(crosscoder.decoder_norms(), dead),
        "nu_error": shares(scaling.nu_error),
        "nu_reconstruction": shares(scaling.nu_reconstruction),
    }


def _check_match(crosscoder: Crosscoder, planted: Planted) -> None:
    sizes = (crosscoder.n_checkpoints, crosscoder.d_model)
    if sizes != tuple(planted.offset.shape):
        raise ValueError(
            f"A crosscoder of [checkpoints, d_model] {sizes} was not trained on these features, of "
            f"{tuple(planted.offset.shape)}."
        )


@checked
def score(
    ratios: Float[np.ndarray, "checkpoints latents"], table: pd.DataFrame, specific: float = 0.7
) -> dict[str, float]:
    """How well ratios tell the planted kinds apart, by the first checkpoint against the last.

    Args:
        ratios: a measure of the latents (`measures`), of any number of checkpoints.
        table: what `recovery` gave; only features that were found are scored.
        specific: share of the last (or first) of the two above which a latent is called specific to
            it.

    Returns:
        auroc_emerge and auroc_fade (against "persist"; latents without a ratio left out), accuracy
        over these three kinds (a latent without a ratio is wrong), and the share called specific
        among each of the other kinds.

    Raises:
        ValueError: ratios of another shape, or a table of other latents.
    """
    if missing := {"found", "kind", "latent"} - set(table):
        raise ValueError(f"table lacks {sorted(missing)}: give what recovery(...) returns.")
    if table["found"].dtype != bool or not pd.api.types.is_integer_dtype(table["latent"]):
        raise ValueError("table holds other things than recovery(...) returns.")
    ratios = to_numpy(ratios)
    if ratios.ndim != 2 or not len(ratios) or table["latent"].max() >= ratios.shape[1]:
        raise ValueError(
            f"ratios has shape {ratios.shape}: give [checkpoints, latents], of the crosscoder that "
            "the table is of."
        )
    table = table[table["found"]]
    kind = table["kind"]
    ends = ratios[[0, -1]][:, table["latent"]]
    two_way = ends / np.where(ends.sum(0) > 0, ends.sum(0), np.nan)
    late = pd.Series(two_way[1], index=table.index)
    calls = classify(two_way, ["first", "last"], specific=specific, shared=1 - specific)
    names = {("first",): "fade", ("last",): "emerge", ("first", "last"): "persist"}
    called = pd.Series([names.get(m) for m in calls["members"]], index=table.index, dtype=object)
    out = {}
    for change, sign in (("emerge", 1), ("fade", -1)):
        pool = kind.isin([change, "persist"]) & late.notna()
        out[f"auroc_{change}"] = auroc(sign * late[pool], kind[pool] == change)
    pool = kind.isin(["emerge", "persist", "fade"])
    out["accuracy"] = float((called[pool] == kind[pool]).mean())
    for other in ("rotate", "scale", "decodable"):
        out[f"specific_{other}"] = float(called[kind == other].isin(["emerge", "fade"]).mean())
    return out


@checked
def auroc(score: Float[np.ndarray, " items"], positive: Bool[np.ndarray, " items"]) -> float:
    """Chance that a positive item scores above a negative one, ties counted half.

    NaN if either class is empty.

    Raises:
        ValueError: not one of each for each item, or a score that is missing.
    """
    score, positive = np.asarray(score, float), np.asarray(positive, bool)
    if score.ndim != 1 or score.shape != positive.shape or np.isnan(score).any():
        raise ValueError(
            f"score {score.shape} and positive {positive.shape} must be [items], one for each "
            "item, without NaN."
        )
    ranks, n = pd.Series(score).rank().to_numpy(), int(positive.sum())
    if n in (0, len(positive)):
        return float("nan")
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))
