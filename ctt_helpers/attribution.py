"""Effects of latents on any metric m of the residual stream, by one of METHODS.

m falls as the model gets surer of the right answer, so a positive effect means that a latent helps:
without it m would rise. Nothing here knows a model: `Readout` holds m as a function. A new method
is a function and an entry in METHODS.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
ITEMS_AT_ONCE = 512  # single ablations that are run at once
PIECES_AT_ONCE = 256  # pieces of lines that are integrated at once
HALF = 1e-4  # a relative rounding above this is that of half precision
NARROW = 1 / 32  # of the line: in half precision what a piece this narrow is off may be rounding
SETTLED = 4.0  # halving a piece of a smooth line makes it less off by far more than this factor
PERMUTATIONS = 8  # orders that "shapley" goes through

# ---- what is attributed


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
    """

    metric: Callable[[Float[Tensor, "items t d_model"], Rows], Float[Tensor, " items"]]
    x: Float[Tensor, "pairs t d_model"]
    baseline: Float[Tensor, " d_model"]
    touched: Bool[Tensor, "pairs t"]
    eps: float = 0.0

    @cached_property
    def delta(self) -> Float[Tensor, "pairs t d_model"]:
        """From x to the baseline; zero where the method does not reach."""
        return (self.baseline - self.x) * self.touched[..., None]

    @cached_property
    def clean(self) -> Float[Tensor, " pairs"]:
        """m of the clean activations."""
        return self.value(self.x)

    @cached_property
    def change(self) -> Float[Tensor, " pairs"]:
        """m where all latents and the error are off (x = baseline), minus m of the clean run."""
        return self.value(self.at(torch.ones(len(self.x)))) - self.clean

    @property
    def resolution(self) -> Float[Tensor, " pairs"]:
        """The smallest difference of m that means something."""
        return self.eps * torch.maximum(self.clean.abs(), (self.clean + self.change).abs())

    def value(
        self, x: Float[Tensor, "items t d_model"], rows: Rows = EVERY
    ) -> Float[Tensor, " items"]:
        """m of activations that belong to the pairs `rows`, without a gradient."""
        with torch.no_grad():
            return self.metric(x, rows)

    def gradient(
        self, x: Float[Tensor, "items t d_model"], rows: Rows = EVERY
    ) -> Float[Tensor, "items t d_model"]:
        """dm/dx of activations that belong to the pairs `rows`, zero where nothing is touched."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            m = self.metric(x, rows)
        return torch.autograd.grad(m.sum(), x)[0] * self.touched[rows][..., None]

    def at(
        self, a: Float[Tensor, " items"], rows: Rows = EVERY
    ) -> Float[Tensor, "items t d_model"]:
        """The points x(a) of the joint line."""
        return self.x[rows] + a.to(self.x)[:, None, None] * self.delta[rows]

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


def effects_from_gradient(
    f: Float[Tensor, "... latents"], W_dec: Decoder, grad: Float[Tensor, "... d_model"]
) -> Float[Tensor, "... latents"]:
    """IE_i = -f_i (W_dec,i . G), from the gradient G of m with respect to the residual stream.

    With the gradient at the clean activation this is attribution patching; with the gradient
    averaged along a line from x to b_dec it is integrated gradients. The decoder is that of one
    checkpoint, in raw (unscaled) space.
    """
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
    grad = readout.gradient(readout.x)
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
        end = torch.full((len(f),), until)
        change = readout.value(readout.at(end)) - readout.clean
    allowed = torch.clamp(readout.resolution, min=options.tolerance * until)
    grad, evaluations = average_gradient(readout, change, allowed, until)
    return _shared_out(readout, f, decoder, options, grad, change / until, evaluations)


def mean_gradient(gradient: Callable[[float], Tensor]) -> Tensor:
    """A gradient averaged over [0, 1], with five nodes."""
    pieces = zip(NODES.tolist(), WEIGHTS.tolist(), strict=True)
    return sum(weight * gradient(node) for node, weight in pieces)


def average_gradient(
    readout: Readout,
    change: Float[Tensor, " pairs"],
    allowed: Float[Tensor, " pairs"],
    until: float = 1.0,
) -> tuple[Float[Tensor, "pairs t d_model"], Float[np.ndarray, " pairs"]]:
    """The gradient averaged over the joint line from a = 0 to `until`, and how many each pair took.

    Each open piece [low, high] of a pair is integrated with five nodes and checked against m at its
    two ends; one that is off by more than `allowed` is halved. In half precision the layers above
    round too, by more than m itself: there a narrow piece is left as it is where the last halving
    did not help, for then it is rounding that it is off by.

    Args:
        readout: m and the line.
        change: m at `until` minus m at 0.
        allowed: how far a piece of each pair may be off, in units of m.
        until: the end of the line.
    """
    grad, count = torch.zeros_like(readout.x), np.zeros(len(readout.x))
    rows = torch.arange(len(readout.x))
    low = torch.zeros(len(rows), dtype=torch.float64)
    high = torch.full_like(low, until)
    m_low = readout.clean.cpu()
    m_high = m_low + change.cpu()
    allowed = allowed.cpu()
    before = torch.full_like(m_low, torch.inf)  # how far the piece that was halved was off
    while len(rows):
        middle = (low + high) / 2
        m_middle, off = torch.zeros_like(m_low), torch.zeros_like(m_low)
        fine = torch.zeros(len(rows), dtype=torch.bool)
        for part in torch.arange(len(rows)).split(PIECES_AT_ONCE):
            own, start = rows[part], low[part]
            width = high[part] - start

            def gradient(node, own=own, start=start, width=width):
                return readout.gradient(readout.at(start + node * width, own), own)

            piece = mean_gradient(gradient) * width.to(readout.x)[:, None, None]
            np.add.at(count, own.numpy(), len(NODES))
            found = (piece * readout.delta[own]).sum((1, 2)).cpu()
            miss = (found - (m_high[part] - m_low[part])).abs()
            ok = (miss <= allowed[own]) | (width <= SMALLEST_PIECE)
            if readout.eps > HALF:
                ok |= (width <= until * NARROW) & (miss > before[part] / SETTLED)
            fine[part], off[part] = ok, miss.to(off)
            grad.index_add_(0, own[ok].to(grad.device), piece[ok.to(piece.device)])
            if not ok.all():
                halved = part[~ok]
                point = readout.at(middle[halved], rows[halved])
                m_middle[halved] = readout.value(point, rows[halved]).cpu()
        left = ~fine
        rows = rows[left].repeat(2)
        low, high = torch.cat([low[left], middle[left]]), torch.cat([middle[left], high[left]])
        m_low, m_high = (
            torch.cat([m_low[left], m_middle[left]]),
            torch.cat([m_middle[left], m_high[left]]),
        )
        before = off[left].repeat(2)
    return grad / until, count


# ---- one latent at a time


def exact_ablation(readout: Readout, f: Latents, decoder: Decoder, options: Options) -> Attribution:
    """m(x - (f_i - f'_i) d_i) - m(x): each latent set to f'_i alone, all else kept.

    f' is `options.instead`, or 0.
    """
    less = options.counted(f if options.instead is None else f - options.instead)
    active = asked(less, options.features)

    def effect(rows: Tensor, latents: Tensor) -> Float[Tensor, " items"]:
        removed = less[rows, :, latents][..., None] * decoder[latents][:, None]
        return readout.value(readout.x[rows] - removed, rows) - readout.clean[rows]

    passes = 1.0 + active.sum(1).cpu().double().numpy()
    return _one_by_one(active, effect, passes, like=readout.x)


def own_line(readout: Readout, f: Latents, decoder: Decoder, options: Options) -> Attribution:
    """The gradient integrated along a latent's own line (1 - a) f_i, all else kept, five nodes.

    Over all positions the exact ablation again, but it adds up over positions.
    """
    counted = options.counted(f)
    active = asked(counted, options.features)

    def effect(rows: Tensor, latents: Tensor) -> Float[Tensor, " items"]:
        direction = decoder[latents][:, None]
        removed = f[rows, :, latents][..., None] * direction
        grad = mean_gradient(lambda a: readout.gradient(readout.x[rows] - a * removed, rows))
        return -(counted[rows, :, latents] * (grad * direction).sum(-1)).sum(1)

    gradients = len(NODES) * active.sum(1).cpu().double().numpy()
    return _one_by_one(active, effect, gradients, like=readout.x)


def _one_by_one(
    active: Bool[Tensor, "pairs latents"],
    effect: Callable[[Tensor, Tensor], Float[Tensor, " items"]],
    evaluations: Float[np.ndarray, " pairs"],
    like: Tensor,
) -> Attribution:
    """The effect of each latent alone on every pair in which it is active, many at once."""
    ie = like.new_zeros(active.shape)
    places = active.nonzero().cpu()
    for part in places.split(ITEMS_AT_ONCE) if len(places) else ():
        rows, latents = part.T
        ie[rows, latents] = effect(rows, latents).to(ie)
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
    end = readout.value(out).cpu().double()

    def taken_away(order: _Order) -> Float[Tensor, "players-1 t d_model"]:
        """x without the first player, without the first two ..., but never without all."""
        pair, gone = order.pair, order.players[:-1]
        written = counted[pair][:, gone].T[..., None] * decoder[gone][:, None]
        written[gone == -1] = error[pair].to(written)  # -1 is no latent
        return readout.x[pair] - written.cumsum(0)

    found: list[list[Tensor]] = [[] for _ in players]
    for orders in _packed(_orders(players, options)):
        x = torch.cat([taken_away(order) for order in orders])
        sizes = [len(order.players) - 1 for order in orders]
        rows = torch.tensor([order.pair for order in orders]).repeat_interleave(torch.tensor(sizes))
        m = torch.zeros(len(x), dtype=torch.float64)
        for part in torch.arange(len(x)).split(ITEMS_AT_ONCE) if len(x) else ():
            m[part] = readout.value(x[part], rows[part]).cpu().double()
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


def _packed(orders: Iterator[_Order]) -> Iterator[list[_Order]]:
    """Orders that are run at once, in their order: about `ITEMS_AT_ONCE` passes."""
    pack, items = [], 0
    for order in orders:
        needed = len(order.players) - 1
        if pack and items + needed > ITEMS_AT_ONCE:
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
        passes, gradients: forward passes through the layers above, and gradients there.
        products: products with the dictionary.
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


# gradients along a line differ from pair to pair: 7 to 36 were measured, the costs are their means
METHODS: dict[str, Method] = {
    "ablation": Method(
        exact_ablation, Cost(passes=1, products=1, passes_a_latent=1), one_by_one=True
    ),
    "atp": Method(
        attribution_patching, Cost(passes=2, gradients=1, products=3), at_clean_point=True
    ),
    "ig": Method(
        integrated_gradients,
        Cost(passes=4, gradients=15, products=3),
        adds_up=True,
        integrates=True,
    ),
    "ig_near": Method(
        nearby_gradients, Cost(passes=5, gradients=10, products=3), adds_up=True, integrates=True
    ),
    "ig_own": Method(
        own_line, Cost(passes=1, products=1, gradients_a_latent=len(NODES)), one_by_one=True
    ),
    "shapley": Method(
        shapley_values,
        Cost(passes=2, products=1, passes_a_latent=PERMUTATIONS),
        adds_up=True,
        sampled=True,
    ),
}
