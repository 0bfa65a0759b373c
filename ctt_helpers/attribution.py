"""Effects of latents on any metric m of the residual stream, by one of METHODS.

m falls as the model gets surer of the right answer, so a positive effect means that a latent helps:
without it m would rise. Nothing here knows a model: `Readout` holds m as a function. A new method
is a function and an entry in METHODS.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ctt_helpers.arguments import checked

Rows = Int[Tensor, " items"] | slice  # which pair each item belongs to
Latents = Float[Tensor, "pairs t latents"]
Decoder = Float[Tensor, "latents d_model"]
EVERY = slice(None)  # rows: all pairs, in order


def _nodes(n: int) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


NODES, WEIGHTS = _nodes(5)
SMALLEST_PIECE = 2.0**-12
NEAR = 0.5  # "ig_near" goes so far along the joint line
ITEMS_AT_ONCE = 512  # forward passes that are run at once, on a CPU
WORTH_A_PASS = 512  # positions that are not run: where it saves fewer, items share a pass
GRADIENTS_AT_ONCE = 256  # gradients that are taken at once: the memory they need, however many
ON_GPU = 5  # times as many at once: between small passes a GPU waits for the host
FIRST_CUT = 0.5  # of the joint line, by the measure of `_evenly`
REMAINS = (0.01, 10.0)  # the share that is left at the line's end is taken to be in this range
HALF = 1e-4  # a relative rounding above this is that of half precision
NARROW = 1 / 16  # of the line: in half precision what a piece this narrow is off may be rounding
SETTLED = 4.0  # halving a piece of a smooth line makes it less off by far more than this factor
LAID_OUT = 4  # times ITEMS_AT_ONCE: passes of "shapley" that are laid out, then run in packs
PERMUTATIONS = 8  # orders that "shapley" goes through


# ---- what is attributed


@dataclass(frozen=True)
class Causal:
    """What is known of m where a model reads from left to right, and never touched is position 0.

    Attributes:
        lengths: [pairs] how many positions each pair has; on the CPU.
        after: m from the activations [items, length - start, d_model] at the positions from `start`
            on, of items that all have this length; before it they are as in the clean run.
        at_baseline: m of every pair where all that is touched is the baseline; None where that has
            to be run.
    """

    lengths: Int[Tensor, " pairs"]
    after: Callable[[Float[Tensor, "items after d_model"], Rows, int], Float[Tensor, " items"]]
    at_baseline: Callable[[], Float[Tensor, " pairs"]] | None = None


@dataclass(frozen=True)
class Pack:
    """Items that are run at once: of one length, and changed from one position on.

    Attributes:
        items: which; on the CPU.
        where: the positions that are run.
    """

    items: Int[Tensor, " items"]
    where: slice

    @property
    def start(self) -> int | None:
        """The first position that is run; None: all are, as `Readout.metric` takes them."""
        return self.where.start


@dataclass
class Readout:
    """A metric m of the residual stream, on one batch of pairs at one checkpoint.

    And the joint line along which it is integrated: x(a) = x + a (baseline - x), on which all
    latents and the reconstruction error fade out together.

    Attributes:
        metric: m of activations [items, t, d_model] that belong to the pairs `rows`: [items],
            differentiable in the activations.
        x: [pairs, t, d_model] the clean activations.
        baseline: [d_model] where the line leads, the decoder's bias.
        touched: [pairs, t] the positions that the method touches: neither the first token nor
            padding.
        eps: relative rounding of m (of the dtype that computes it): differences of m smaller than
            this are not looked for.
        causal: how to get at m with less work; None: by `metric` alone.
        parts: 1; 2 where memory has run out: half as many items are run at once.
    """

    metric: Callable[[Float[Tensor, "items t d_model"], Rows], Float[Tensor, " items"]]
    x: Float[Tensor, "pairs t d_model"]
    baseline: Float[Tensor, " d_model"]
    touched: Bool[Tensor, "pairs t"]
    eps: float = 0.0
    causal: Causal | None = None
    parts: int = 1

    @cached_property
    def delta(self) -> Float[Tensor, "pairs t d_model"]:
        """From x to the baseline; zero where the method does not reach."""
        return (self.baseline - self.x) * self.touched[..., None]

    @cached_property
    def clean(self) -> Float[Tensor, " pairs"]:
        """m of the clean activations."""
        return self.values(lambda rows, where: self.x[self.there(rows), where], self.every)

    @cached_property
    def change(self) -> Float[Tensor, " pairs"]:
        """m where all latents and the error are off (x = baseline), minus m of the clean run."""
        if self.causal is None or self.causal.at_baseline is None:
            return _on_the_line(self, self.every, torch.ones(len(self.x))) - self.clean
        with torch.no_grad():
            return self.causal.at_baseline() - self.clean

    @cached_property
    def remains(self) -> Float[Tensor, " pairs"]:
        """Size of what is left of x at the line's end, beside what has gone; on the CPU."""
        norms = torch.stack([(self.x + self.delta).norm(dim=-1), self.delta.norm(dim=-1)])
        left, gone = (norms * self.touched).double().sum(-1).cpu()
        tiny = torch.finfo(gone.dtype).tiny
        return (left / gone.clamp_min(tiny)).clamp(*REMAINS)

    @property
    def every(self) -> Int[Tensor, " pairs"]:
        """All pairs, in order; on the CPU."""
        return torch.arange(len(self.x))

    @property
    def resolution(self) -> Float[Tensor, " pairs"]:
        """The smallest difference of m that means something."""
        return self.eps * torch.maximum(self.clean.abs(), (self.clean + self.change).abs())

    def value(
        self, x: Float[Tensor, "items t d_model"], rows: Rows = EVERY, start: int | None = None
    ) -> Float[Tensor, " items"]:
        """m of activations that belong to the pairs `rows`, without a gradient.

        Args:
            x: whole, padded as `self.x` is; with `start` what `Causal.after` takes.
            rows: which pair each belongs to.
            start: the first position of `x`, see `Pack`.
        """
        with torch.no_grad():
            return self._m(x, rows, start)

    def with_gradient(
        self, x: Float[Tensor, "items t d_model"], rows: Rows = EVERY, start: int | None = None
    ) -> tuple[Float[Tensor, " items"], Float[Tensor, "items t d_model"]]:
        """m and dm/dx of such activations; the gradient is zero where nothing is touched."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            m = self._m(x, rows, start)
        gradient = torch.autograd.grad(m.sum(), x)[0]
        # from position 1 on all of a sequence is touched
        touched = self.touched[rows][..., None] if start is None else 1
        return m.detach(), gradient * touched

    def gradient(
        self, x: Float[Tensor, "items t d_model"], rows: Rows = EVERY
    ) -> Float[Tensor, "items t d_model"]:
        """dm/dx of activations that belong to the pairs `rows`, zero where nothing is touched."""
        return self.with_gradient(x, rows)[1]

    def _m(self, x: Tensor, rows: Rows, start: int | None) -> Float[Tensor, " items"]:
        return self.metric(x, rows) if start is None else self.causal.after(x, rows, start)

    @property
    def items_at_once(self) -> int:
        """How many forward passes are run at once."""
        return self._at_once(ITEMS_AT_ONCE)

    @property
    def gradients_at_once(self) -> int:
        """How many gradients are taken at once."""
        return self._at_once(GRADIENTS_AT_ONCE)

    def _at_once(self, on_cpu: int) -> int:
        if self.parts > 1:  # memory has run out
            return on_cpu // self.parts
        return ON_GPU * on_cpu if self.x.device.type == "cuda" else on_cpu

    def packs(
        self, rows: Int[Tensor, " items"], at_once: int, starts: Int[Tensor, " items"] | None = None
    ) -> Iterator[Pack]:
        """Items in packs, of one length and start each, so that nothing is run in vain.

        Args:
            rows: which pair each belongs to; on the CPU.
            at_once: how many in a pack at most.
            starts: the first position at which each item is changed; None: the first touched.
        """
        if not len(rows):
            return
        if self.causal is None:
            for items in torch.arange(len(rows)).split(at_once):
                yield Pack(items, slice(None))
            return
        stops = self.causal.lengths[rows]
        starts = torch.ones_like(stops) if starts is None else starts
        kinds, of_kind, counts = torch.stack([stops, starts]).unique(
            dim=1, return_inverse=True, return_counts=True
        )
        runs: list[tuple[slice, int]] = []  # which positions, how many items
        for (stop, start), count in zip(kinds.T.tolist(), counts.tolist(), strict=True):
            where, before = runs[-1] if runs else (slice(0, 0), 0)
            if where.stop == stop and count * (start - where.start) < WORTH_A_PASS:
                runs[-1] = (where, before + count)
            else:
                runs.append((slice(start, stop), count))
        in_order = of_kind.argsort(stable=True).split([count for _, count in runs])
        for (where, _), items in zip(runs, in_order, strict=True):
            for part in items.split(at_once):
                yield Pack(part, where)

    def values(
        self,
        stream: Callable[[Int[Tensor, " items"], slice], Float[Tensor, "items t d_model"]],
        rows: Int[Tensor, " items"],
        starts: Int[Tensor, " items"] | None = None,
    ) -> Float[Tensor, " items"]:
        """m of any number of items.

        Args:
            stream: gives the activations of some items at some positions.
            rows, starts: as for `packs`.
        """
        m = self.x.new_zeros(len(rows))
        for pack in self.packs(rows, self.items_at_once, starts):
            found = self.value(stream(pack.items, pack.where), rows[pack.items], pack.start)
            m[self.there(pack.items)] = found.to(m)
        return m

    def changed(
        self, x: Float[Tensor, "items t d_model"], rows: Int[Tensor, " items"]
    ) -> Float[Tensor, " items"]:
        """m of whole activations, each run from where it first differs from the clean ones."""
        own = self.there(rows)
        differs = (x != self.x[own]).any(-1).cpu()
        items = differs.any(1).nonzero().flatten()
        some = self.there(items)
        m = self.clean[own]
        m[some] = self.values(
            lambda part, where: x[some[self.there(part)], where],
            rows[items],
            differs[items].byte().argmax(1),
        )
        return m

    def there(self, index: Tensor) -> Tensor:
        """An index where the activations are; the host waits for nothing."""
        return index.to(self.x.device, non_blocking=True)

    def at(
        self, a: Float[Tensor, " items"], rows: Rows = EVERY, where: slice = EVERY
    ) -> Float[Tensor, "items t d_model"]:
        """The points x(a) of the joint line, at all positions or at some."""
        a = a.to(self.x.device, self.x.dtype, non_blocking=True)[:, None, None]
        rows = self.there(rows) if isinstance(rows, Tensor) else rows
        return self.x[rows, where] + a * self.delta[rows, where]

    def along(self, points: Float[Tensor, " points"]) -> Float[Tensor, "points pairs"]:
        """m of every pair at each point of the joint line."""
        n_pairs = len(self.x)
        return torch.stack([self.value(self.at(point.expand(n_pairs))) for point in points])


@dataclass(frozen=True)
class Options:
    """What is asked of a method.

    Attributes:
        features: the latents to take, for methods that go one by one; None: all that are active.
        positions: [pairs, t] where to count (gradients) or to intervene ("ablation"); None:
            everywhere.
        tolerance: how far a piece of the joint line may be off, in units of m.
        instead: [pairs, t, latents] what "ablation" sets a latent to; None: 0.
        permutations: orders for each pair, for "shapley"; each comes with its reverse, so even.
        seeds: [pairs] of these orders; None: 0, 1, 2 ...
    """

    features: Sequence[int] | None = None
    positions: Bool[Tensor, "pairs t"] | None = None
    tolerance: float = 0.0
    instead: Latents | None = None
    permutations: int = PERMUTATIONS
    seeds: Sequence[int] | None = None

    def counted(self, f: Float[Tensor, "pairs t _"]) -> Float[Tensor, "pairs t _"]:
        """Latents, or another quantity, at the positions that count; zero elsewhere."""
        return f if self.positions is None else f * self.positions.to(f)[..., None]


@dataclass
class Attribution:
    """Effects of every latent on every pair of a batch, at one checkpoint.

    Attributes:
        ie: [pairs, latents] indirect effects, summed over the positions asked for.
        error: [pairs] effect of the reconstruction error at these positions; NaN where a method has
            none.
        total: [pairs] what effects and error of all positions add up to on a complete line; NaN
            likewise.
        evaluations: [pairs] gradients taken ("ablation", "shapley": forward passes).
        variance, error_variance: [pairs, latents] and [pairs], of `ie` and `error` over draws, for
            methods that draw; None for the others, NaN where one draw is too few to tell.
    """

    ie: Float[Tensor, "pairs latents"]
    error: Float[Tensor, " pairs"]
    total: Float[Tensor, " pairs"]
    evaluations: Float[np.ndarray, " pairs"]
    variance: Float[Tensor, "pairs latents"] | None = None
    error_variance: Float[Tensor, " pairs"] | None = None


# ---- from a gradient


@checked
def effects_from_gradient(
    f: Float[Tensor, "... latents"], W_dec: Decoder, grad: Float[Tensor, "... d_model"]
) -> Float[Tensor, "... latents"]:
    """IE_i = -f_i (W_dec,i . G), from the gradient G of m with respect to the residual stream.

    With the gradient at the clean activation this is attribution patching; with the gradient
    averaged along a line from x to b_dec it is integrated gradients. The decoder is that of one
    checkpoint, in raw (unscaled) space.

    Raises:
        ValueError: sizes that do not fit.
    """
    if W_dec.shape != (f.shape[-1], grad.shape[-1]) or f.shape[:-1] != grad.shape[:-1]:
        raise ValueError(
            f"f {tuple(f.shape)}, W_dec {tuple(W_dec.shape)} and grad {tuple(grad.shape)} do not "
            "fit: they are [..., latents], [latents, d_model] and [..., d_model]."
        )
    return -f * (grad @ W_dec.T)


def reconstruction_error(
    readout: Readout, f: Latents, decoder: Decoder
) -> Float[Tensor, "pairs t d_model"]:
    """x - b_dec - f W_dec, zero where the method does not reach."""
    return (-readout.delta - f @ decoder) * readout.touched[..., None]


def _shared_out(
    readout: Readout,
    f: Latents,
    decoder: Decoder,
    options: Options,
    grad: Float[Tensor, "pairs t d_model"],
    total: Float[Tensor, " pairs"],
    evaluations: Float[np.ndarray, " pairs"],
) -> Attribution:
    """One gradient shared out among the latents and the reconstruction error."""
    error = options.counted(reconstruction_error(readout, f, decoder))
    return Attribution(
        ie=effects_from_gradient(options.counted(f), decoder, grad).sum(1),
        error=-(error * grad).sum((1, 2)),
        total=total,
        evaluations=evaluations,
    )


def attribution_patching(
    readout: Readout, f: Latents, decoder: Decoder, options: Options
) -> Attribution:
    """The gradient at the clean point: first order, one backward pass for all latents."""
    grad, clean = torch.zeros_like(readout.x), readout.x.new_zeros(len(f))
    for pack in readout.packs(readout.every, readout.gradients_at_once):
        rows = readout.there(pack.items)
        x = readout.x[rows, pack.where]
        m, found = readout.with_gradient(x, pack.items, pack.start)
        grad[rows, pack.where], clean[rows] = found, m.to(clean)
    readout.clean = clean  # it came with the gradient
    once = np.ones(len(f))
    return _shared_out(readout, f, decoder, options, grad, readout.change, once)


def integrated_gradients(
    readout: Readout, f: Latents, decoder: Decoder, options: Options
) -> Attribution:
    """The gradient averaged along the joint line: effects and error add up (completeness)."""
    return _along_the_line(readout, f, decoder, options, until=1.0)


def nearby_gradients(
    readout: Readout, f: Latents, decoder: Decoder, options: Options
) -> Attribution:
    """The gradient averaged over the first half of the joint line."""
    return _along_the_line(readout, f, decoder, options, until=NEAR)


def _along_the_line(
    readout: Readout, f: Latents, decoder: Decoder, options: Options, until: float
) -> Attribution:
    change = readout.change
    if until < 1:
        change = _on_the_line(readout, readout.every, torch.full((len(f),), until)) - readout.clean
    allowed = torch.clamp(readout.resolution, min=options.tolerance * until)
    grad, evaluations = average_gradient(readout, change, allowed, until)
    return _shared_out(readout, f, decoder, options, grad, change / until, evaluations)


def _on_the_line(
    readout: Readout, rows: Int[Tensor, " items"], a: Float[Tensor, " items"]
) -> Float[Tensor, " items"]:
    """m at points of the joint line."""
    return readout.values(lambda items, where: readout.at(a[items], rows[items], where), rows)


def average_gradient(
    readout: Readout,
    change: Float[Tensor, " pairs"],
    allowed: Float[Tensor, " pairs"],
    until: float = 1.0,
) -> tuple[Float[Tensor, "pairs t d_model"], Float[np.ndarray, " pairs"]]:
    """The gradient averaged over the joint line from a = 0 to `until`, and how many each pair took.

    Each open piece [low, high] of a pair, as `_evenly` measures the line, is integrated with five
    nodes, all of them at once, and checked against m at its two ends; one that is off by more than
    `allowed` is halved. In half precision the layers above round too, by more than m itself: there
    a narrow piece is left as it is where the last halving did not help, for then it is rounding
    that it is off by.

    Args:
        readout: m and the line.
        change: m at `until` minus m at 0.
        allowed: how far a piece of each pair may be off, in units of m.
        until: the end of the line.
    """
    grad, count = torch.zeros_like(readout.x), np.zeros(len(readout.x))
    clean, allowed = readout.clean.cpu(), allowed.cpu()
    pieces = _Pieces(
        rows=readout.every,
        low=torch.zeros(len(clean), dtype=torch.float64),
        high=_measured(until, readout.remains),
        m_low=clean,
        m_high=clean + change.cpu(),
        before=torch.full_like(clean, torch.inf),
    )
    if until > NEAR:
        pieces = pieces.cut(readout, torch.full_like(pieces.low, FIRST_CUT))
    while len(pieces.rows):
        gradients = []
        found = readout.x.new_zeros(len(pieces.rows))
        for pack in readout.packs(pieces.rows, readout.gradients_at_once // len(NODES)):
            piece, own = pieces.gradient(readout, pack), readout.there(pieces.rows[pack.items])
            found[readout.there(pack.items)] = (piece * readout.delta[own, pack.where]).sum((1, 2))
            gradients.append((pack, own, piece))
        np.add.at(count, pieces.rows.numpy(), len(NODES))
        off = (found.cpu() - (pieces.m_high - pieces.m_low)).abs()
        width = pieces.high - pieces.low
        fine = (off <= allowed[pieces.rows]) | (width <= SMALLEST_PIECE)
        if readout.eps > HALF:
            fine |= (width <= until * NARROW) & (off > pieces.before / SETTLED)
        for pack, own, piece in gradients:
            kept = readout.there(fine[pack.items])[:, None, None]
            grad[:, pack.where].index_add_(0, own, piece * kept)
        left = replace(pieces, before=off).some(~fine)
        pieces = left.cut(readout, (left.low + left.high) / 2)
    return grad / until, count


def _evenly(
    s: Float[Tensor, " items"], remains: Float[Tensor, " items"]
) -> tuple[Float[Tensor, " items"], Float[Tensor, " items"]]:
    """A point a of the joint line by a measure s of it in which m changes evenly; and da/ds.

    Blocks normalise what they read: of x(a) they see the direction. That turns where about as much
    is left to go as remains at the end, and hardly before. So equal steps of s, from 0 to 1, are
    equal steps of the logarithm of 1 - a + r, where r is `remains` (`Readout`).
    """
    length = torch.log1p(1 / remains)
    left = (1 + remains) * torch.exp(-s * length)
    return 1 + remains - left, left * length


def _measured(a: float, remains: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
    """The measure s of the point a (see `_evenly`)."""
    return -torch.log1p(-a / (1 + remains)) / torch.log1p(1 / remains)


@dataclass(frozen=True)
class _Pieces:
    """Pieces of the joint lines of some pairs; all on the CPU.

    Attributes:
        rows: [pieces] of which pair.
        low, high: where each begins and ends, by the measure of `_evenly`.
        m_low, m_high: m there.
        before: how far the piece was off of which this is a part.
    """

    rows: Int[Tensor, " pieces"]
    low: Float[Tensor, " pieces"]
    high: Float[Tensor, " pieces"]
    m_low: Float[Tensor, " pieces"]
    m_high: Float[Tensor, " pieces"]
    before: Float[Tensor, " pieces"]

    def some(self, which: Bool[Tensor, " pieces"]) -> "_Pieces":
        return _Pieces(**{name: value[which] for name, value in vars(self).items()})

    def cut(self, readout: Readout, at: Float[Tensor, " pieces"]) -> "_Pieces":
        """Each in two."""
        m = self.m_low
        if len(at):
            m = _on_the_line(readout, self.rows, _evenly(at, readout.remains[self.rows])[0]).cpu()
        return _Pieces(
            rows=self.rows.repeat(2),
            low=torch.cat([self.low, at]),
            high=torch.cat([at, self.high]),
            m_low=torch.cat([self.m_low, m]),
            m_high=torch.cat([m, self.m_high]),
            before=self.before.repeat(2),
        )

    def gradient(self, readout: Readout, pack: Pack) -> Float[Tensor, "pieces t d_model"]:
        """The gradient integrated over some of the pieces, at all of their nodes at once."""
        low, width = self.low[pack.items], (self.high - self.low)[pack.items]
        remains = readout.remains[self.rows[pack.items], None]
        points, slope = _evenly(low[:, None] + NODES * width[:, None], remains)  # [pieces, nodes]
        rows = self.rows[pack.items].repeat_interleave(len(NODES))
        x = readout.at(points.flatten(), rows, pack.where)
        gradients = readout.with_gradient(x, rows, pack.start)[1].unflatten(0, points.shape)
        weights = readout.there((WEIGHTS * width[:, None] * slope).to(gradients.dtype))
        return (gradients * weights[..., None, None]).sum(1)


# ---- one latent at a time


def exact_ablation(readout: Readout, f: Latents, decoder: Decoder, options: Options) -> Attribution:
    """m(x - (f_i - f'_i) d_i) - m(x): each latent set to f'_i alone, all else kept.

    f' is `options.instead`, or 0.
    """
    less = options.counted(f if options.instead is None else f - options.instead)
    active = asked(less, options.features)

    def effect(rows: Tensor, latents: Tensor, pack: Pack) -> Float[Tensor, " items"]:
        here = readout.there(rows)
        removed = less[here, :, latents][:, pack.where, None] * decoder[latents][:, None]
        x = readout.x[here, pack.where] - removed
        return readout.value(x, rows, pack.start) - readout.clean[here]

    passes = 1.0 + active.sum(1).cpu().double().numpy()
    return _one_by_one(readout, less, active, effect, passes, readout.items_at_once)


def own_line(readout: Readout, f: Latents, decoder: Decoder, options: Options) -> Attribution:
    """The gradient integrated along a latent's own line (1 - a) f_i, all else kept, five nodes.

    Over all positions the exact ablation again, but it adds up over positions.
    """
    counted = options.counted(f)
    active = asked(counted, options.features)

    def effect(rows: Tensor, latents: Tensor, pack: Pack) -> Float[Tensor, " items"]:
        here, direction = readout.there(rows), decoder[latents][:, None]
        x = readout.x[here, pack.where]
        removed = f[here, :, latents][:, pack.where, None] * direction

        def gradient(a: float) -> Float[Tensor, "items t d_model"]:
            return readout.with_gradient(x - a * removed, rows, pack.start)[1]

        along = (mean_gradient(gradient) * direction).sum(-1)
        return -(counted[here, :, latents][:, pack.where] * along).sum(1)

    gradients = len(NODES) * active.sum(1).cpu().double().numpy()
    return _one_by_one(readout, f, active, effect, gradients, readout.gradients_at_once)


def mean_gradient(gradient: Callable[[float], Tensor]) -> Tensor:
    """A gradient averaged over [0, 1], with five nodes."""
    pieces = zip(NODES.tolist(), WEIGHTS.tolist(), strict=True)
    return sum(weight * gradient(node) for node, weight in pieces)


def _one_by_one(
    readout: Readout,
    changed: Latents,
    active: Bool[Tensor, "pairs latents"],
    effect: Callable[[Tensor, Tensor, Pack], Float[Tensor, " items"]],
    evaluations: Float[np.ndarray, " pairs"],
    at_once: int,
) -> Attribution:
    """The effect of each latent alone on every pair in which it is active, many at once.

    Before the first position at which a latent is not 0 in `changed`, it changes nothing.
    """
    ie = readout.x.new_zeros(active.shape)
    first = (changed != 0).byte().argmax(1)
    rows, latents = active.nonzero().T
    starts = first[rows, latents].cpu()
    rows = rows.cpu()
    for pack in readout.packs(rows, at_once, starts):
        some = latents[readout.there(pack.items)]
        ie[readout.there(rows[pack.items]), some] = effect(rows[pack.items], some, pack).to(ie)
    unknown = torch.full((len(active),), torch.nan)
    return Attribution(ie=ie, error=unknown, total=unknown, evaluations=evaluations)


def asked(f: Latents, features: Sequence[int] | None) -> Bool[Tensor, "pairs latents"]:
    """Which latents are not 0 throughout a pair, of those that are asked for."""
    active = (f != 0).any(1)
    if features is not None:
        wanted = torch.zeros(f.shape[-1], dtype=torch.bool, device=f.device)
        wanted[torch.tensor(list(features), dtype=torch.long, device=f.device)] = True
        active &= wanted
    return active


# ---- all together, in many orders


@dataclass(frozen=True)
class _Order:
    """One way to take away all players of a pair, one after another.

    Attributes:
        pair: which.
        players: [players] latents, the reconstruction error as -1.
        places: [players] where each stands among the pair's players.
    """

    pair: int
    players: Int[Tensor, " players"]
    places: Int[Tensor, " players"]


def shapley_values(readout: Readout, f: Latents, decoder: Decoder, options: Options) -> Attribution:
    """Shapley values of the active latents and the error, over random orders (Castro et al. 2009).

    The players of a pair, its active latents and the reconstruction error, are taken away one after
    another, from the clean activations until x is the baseline. Each is credited with the change
    of m when it goes. In every order these changes add up to the whole, so their means do, too.
    Orders come in pairs, one the reverse of the other (antithetic, Mitchell et al. 2022), which
    removes what is due to interactions of two players; such a pair is one draw of the variance.
    """
    counted = options.counted(f)
    error = options.counted(reconstruction_error(readout, f, decoder))
    players = [row.nonzero().flatten().cpu() for row in asked(counted, None)]
    out = readout.at(torch.ones(len(f)))
    if options.positions is not None:
        out = torch.where(options.positions.to(out.device)[..., None], out, readout.x)
    start = readout.clean.cpu().double()
    end = readout.values(lambda rows, where: out[readout.there(rows), where], readout.every)

    end = end.cpu().double()

    def taken_away(order: _Order) -> Float[Tensor, "players-1 t d_model"]:
        """x without the first player, without the first two ..., but never without all."""
        pair, gone = order.pair, order.players[:-1]
        written = counted[pair][:, gone].T[..., None] * decoder[gone][:, None]
        written[gone == -1] = error[pair].to(written)  # -1 is no latent
        return readout.x[pair] - written.cumsum(0)

    found: list[list[Tensor]] = [[] for _ in players]
    for orders in _packed(_orders(players, options), ITEMS_AT_ONCE // readout.parts):
        x = torch.cat([taken_away(order) for order in orders])
        sizes = [len(order.players) - 1 for order in orders]
        rows = torch.tensor([order.pair for order in orders]).repeat_interleave(torch.tensor(sizes))
        m = readout.changed(x, rows).cpu().double()
        for order, between in zip(orders, m.split(sizes), strict=True):
            pair = order.pair
            changes = torch.cat([start[pair, None], between, end[pair, None]]).diff()
            found[pair].append(torch.zeros_like(changes).scatter(0, order.places, changes))
    return _over_orders(players, found, end - start, like=counted)


def _orders(players: list[Int[Tensor, " latents"]], options: Options) -> Iterator[_Order]:
    """The orders of every pair, each followed by its reverse."""
    for pair, latents in enumerate(players):
        rng = np.random.default_rng(pair if options.seeds is None else options.seeds[pair])
        everyone = torch.cat([latents, torch.tensor([-1])])
        for _ in range(options.permutations // 2):
            places = torch.from_numpy(rng.permutation(len(everyone)))
            for order in (places, places.flip(0)):
                yield _Order(pair=pair, players=everyone[order], places=order)


def _packed(orders: Iterator[_Order], at_once: int) -> Iterator[list[_Order]]:
    """Orders that are laid out at once, in their order: many of their passes are alike then."""
    pack, items = [], 0
    for order in orders:
        needed = len(order.players) - 1
        if pack and items + needed > LAID_OUT * at_once:
            yield pack
            pack, items = [], 0
        pack.append(order)
        items += needed
    if pack:
        yield pack


def _over_orders(
    players: list[Int[Tensor, " latents"]],
    found: list[list[Float[Tensor, " players"]]],
    change: Float[Tensor, " pairs"],
    like: Latents,
) -> Attribution:
    """Means and variances over the orders, which come in pairs."""
    ie = torch.zeros(len(players), like.shape[-1], dtype=torch.float64)
    error = torch.zeros(len(players), dtype=torch.float64)
    variance, error_variance = torch.zeros_like(ie), torch.zeros_like(error)
    passes = np.zeros(len(players))
    for pair, (latents, orders) in enumerate(zip(players, found, strict=True)):
        draws = torch.stack(orders).unflatten(0, (-1, 2)).mean(1)  # [draws, players]
        mean = draws.mean(0)
        # of a mean of so many draws; NaN for a single one
        spread = (draws - mean).square().sum(0) / (len(draws) - 1) / len(draws)
        ie[pair, latents], error[pair] = mean[:-1], mean[-1]
        variance[pair, latents], error_variance[pair] = spread[:-1], spread[-1]
        passes[pair] = 2 + len(orders) * len(latents)
    return Attribution(
        ie=ie.to(like),
        error=error,
        total=change,
        evaluations=passes,
        variance=variance,
        error_variance=error_variance,
    )


# ---- the table


@dataclass(frozen=True)
class Cost:
    """What a method takes for a pair at one checkpoint, counted.

    Attributes:
        readings: passes through the layers below.
        passes, gradients: forward passes through the layers above, and gradients there; all leave
            out the first position.
        products: products with the dictionary; what else is done with latents takes as long as two
            of them in the small, and is counted so.
        passes_a_latent, gradients_a_latent: for each latent that is active in the pair.
    """

    readings: float = 1
    passes: float = 0
    gradients: float = 0
    products: float = 0
    passes_a_latent: float = 0
    gradients_a_latent: float = 0


@dataclass(frozen=True)
class Method:
    """A way to estimate effects.

    Attributes:
        attribute: the function.
        cost: what it takes.
        adds_up: effects and error add up to `Attribution.total` (to the tolerance).
        one_by_one: it can be asked about some latents alone.
        integrates: it goes along the joint line, to a tolerance.
        at_clean_point: it looks at the clean point alone, and so finds nothing in a metric that is
            flat there.
        sampled: it draws at random, so that its effects have standard errors.
    """

    attribute: Callable[[Readout, Latents, Decoder, Options], Attribution]
    cost: Cost
    adds_up: bool = False
    one_by_one: bool = False
    integrates: bool = False
    at_clean_point: bool = False
    sampled: bool = False


# Along a line gradients differ from pair to pair. On the embedded suite "ig" takes 20 to 44: 10 for
# its first two pieces, and 10 and a pass for each that is halved; "ig_near" halves none.
HALVED = 1.9
# Positions from the first where a latent is active, as a share of those after the first one: .63 to
# .72 there.
FROM_FIRST = 0.67
METHODS: dict[str, Method] = {
    # clean, and once more for what comes before a change
    "ablation": Method(
        exact_ablation, Cost(passes=2, products=3, passes_a_latent=FROM_FIRST), one_by_one=True
    ),
    "atp": Method(attribution_patching, Cost(gradients=1, products=5), at_clean_point=True),
    # clean, and at each cut
    "ig": Method(
        integrated_gradients,
        Cost(passes=2 + HALVED, gradients=2 * len(NODES) * (1 + HALVED), products=5),
        adds_up=True,
        integrates=True,
    ),
    # clean, and halfway
    "ig_near": Method(
        nearby_gradients,
        Cost(passes=2, gradients=len(NODES), products=5),
        adds_up=True,
        integrates=True,
    ),
    "ig_own": Method(
        own_line,
        Cost(passes=2, products=3, gradients_a_latent=len(NODES) * FROM_FIRST),
        one_by_one=True,
    ),
    "shapley": Method(
        shapley_values,
        Cost(passes=2, products=3, passes_a_latent=PERMUTATIONS),
        adds_up=True,
        sampled=True,
    ),
}
