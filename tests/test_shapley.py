"""Shapley values against all subsets of players, and what is said of their errors."""

from dataclasses import replace
from itertools import combinations, permutations
from math import factorial

import numpy as np
import pytest
import torch
from models import random_suite, some_pairs

import ctt_helpers as ctt
from ctt_helpers import attribution, hooks
from ctt_helpers.activations import stacked_activations
from ctt_helpers.attribution import (
    FROM_FIRST,
    METHODS,
    PERMUTATIONS,
    Options,
    Readout,
    exact_ablation,
)
from ctt_helpers.effects import Effects
from ctt_helpers.notebook.forecast import Speeds, Work, count_seconds

shapley = METHODS["shapley"].attribute


@pytest.fixture(scope="module")
def game():
    """Pairs with 5, 3 and no active latents of 7, and a metric in which many of them interact."""
    draw = torch.Generator().manual_seed(0)

    def normal(*sizes):
        return torch.randn(sizes, generator=draw, dtype=torch.float64)

    f = normal(3, 4, 7).abs() * (torch.rand(3, 4, 7, generator=draw) < 0.6)
    f[:, 0] = 0
    f[0, :, [1, 4]] = 0
    f[1, :, [0, 2, 3, 6]] = 0
    f[2] = 0
    mixed, last = normal(8, 3), normal(8)

    def metric(x, rows):
        bent = torch.tanh(x @ mixed).sum(1)  # [items, 3]
        return bent.prod(-1) + torch.sin(x[:, -1] @ last)

    touched = torch.ones(3, 4, dtype=torch.bool)
    touched[:, 0] = False
    x, baseline, decoder = normal(3, 4, 8), normal(8), normal(7, 8)
    assert (f != 0).any(1).sum(1).tolist() == [5, 3, 0]
    return Readout(metric=metric, x=x, baseline=baseline, touched=touched), f, decoder


def of_all_subsets(m, n_players):
    """Shapley values of taking players away, where m(subset of those away), by their definition."""
    sets = [set(some) for k in range(n_players + 1) for some in combinations(range(n_players), k)]
    value = {frozenset(away): m(away) for away in sets}
    values = torch.zeros(n_players, dtype=torch.float64)
    for player in range(n_players):
        others = [other for other in range(n_players) if other != player]
        for size in range(n_players):
            weight = factorial(size) * factorial(n_players - 1 - size) / factorial(n_players)
            for away in map(frozenset, combinations(others, size)):
                values[player] += weight * (value[away | {player}] - value[away])
    return values


def by_definition(readout, f, decoder, positions=None):
    """[pairs, latents] and [pairs], each coalition written into x by itself."""
    where = readout.touched if positions is None else readout.touched & positions
    ie, error = torch.zeros(len(f), f.shape[-1], dtype=torch.float64), torch.zeros(len(f)).double()
    for pair, x in enumerate(readout.x):
        here, own = where[pair][:, None], f[pair]
        e = x - readout.baseline - own @ decoder
        latents = (own * here != 0).any(0).nonzero().flatten().tolist()

        def m(away, pair=pair, x=x, here=here, own=own, e=e, latents=latents):
            kept = own.clone()
            kept[:, [latents[player] for player in away if player < len(latents)]] = 0
            now = readout.baseline + kept @ decoder + (0 if len(latents) in away else e)
            return readout.value(torch.where(here, now, x)[None], torch.tensor([pair]))[0]

        values = of_all_subsets(m, len(latents) + 1)
        ie[pair, latents], error[pair] = values[:-1], values[-1]
    return ie, error


def every_order(players, options):
    """All orders of each pair, each beside its reverse, in place of random ones."""
    for pair, latents in enumerate(players):
        everyone = torch.cat([latents, torch.tensor([-1])])
        for order in permutations(range(len(everyone))):
            if order > order[::-1]:
                continue  # it came as the reverse of another
            for places in (torch.tensor(order), torch.tensor(order).flip(0)):
                yield attribution._Order(pair=pair, players=everyone[places], places=places)


@pytest.mark.parametrize("at_once", [7, 512])
@pytest.mark.parametrize("where", [None, (2, 3)])
def test_over_all_orders_they_are_those_of_all_subsets(game, monkeypatch, where, at_once):
    readout, f, decoder = game
    positions = None
    if where is not None:
        positions = torch.zeros(3, 4, dtype=torch.bool)
        positions[:, where] = True
    monkeypatch.setattr(attribution, "_orders", every_order)
    monkeypatch.setattr(attribution, "ITEMS_AT_ONCE", at_once)
    found = shapley(readout, f, decoder, Options(positions=positions))
    ie, error = by_definition(readout, f, decoder, positions)
    torch.testing.assert_close(found.ie, ie, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.error, error, rtol=0, atol=1e-12)
    assert ie.abs().max() > 0.1 and error.abs().min() > 1e-3


def test_they_add_up_in_every_order(game):
    readout, f, decoder = game
    for seed in range(20):
        found = shapley(readout, f, decoder, Options(permutations=2, seeds=[seed] * 3))
        added = found.ie.sum(1) + found.error
        torch.testing.assert_close(added, readout.change, rtol=0, atol=1e-12)
        assert found.variance[:2].isnan().any(1).all()  # one draw tells nothing of its error


def many(game, n_orders, n=150):
    """The first pair n times, with other seeds: [n, players] estimates, and their variances."""
    readout, f, decoder = game
    first = replace(
        readout, x=readout.x[:1].expand(n, -1, -1), touched=readout.touched[:1].expand(n, -1)
    )
    options = Options(permutations=n_orders, seeds=range(n))
    found = shapley(first, f[:1].expand(n, -1, -1), decoder, options)
    estimates = torch.cat([found.ie, found.error[:, None]], 1)
    return estimates, torch.cat([found.variance, found.error_variance[:, None]], 1)


def test_the_error_falls_with_the_root_of_the_permutations_and_is_told(game):
    exact = torch.cat([part[:1].reshape(-1) for part in by_definition(*game)])
    sizes = []
    for n_orders in (4, 16, 64):
        estimates, variances = many(game, n_orders)
        off = estimates - exact
        sizes.append(off.square().mean().sqrt())
        told = variances.mean(0)
        # without bias, and with the variance that is told
        assert (off.mean(0).abs() <= 4 * (told / len(off)).sqrt() + 1e-12).all()
        assert told.sum() == pytest.approx(float(off.square().mean(0).sum()), rel=0.15)
    assert sizes[0] / sizes[1] == pytest.approx(2, rel=0.15)
    assert sizes[1] / sizes[2] == pytest.approx(2, rel=0.15)


def test_an_order_beside_its_reverse_is_exact_where_only_two_interact(game):
    """A metric that is quadratic in x: each draw is the whole answer."""
    readout, f, decoder = game
    square = replace(readout, metric=lambda x, rows: (x[:, -1] * x[:, 1]).sum(-1))
    found = shapley(square, f, decoder, Options(permutations=4))
    ie, error = by_definition(square, f, decoder)
    torch.testing.assert_close(found.ie, ie, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.error, error, rtol=0, atol=1e-12)
    assert found.variance.max() < 1e-24


def test_where_m_is_linear_they_are_the_ablation(game):
    readout, f, decoder = game
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    linear = replace(readout, metric=lambda x, rows: (x * weight).sum((1, 2)))
    found = shapley(linear, f, decoder, Options(permutations=2))
    alone = exact_ablation(linear, f, decoder, Options())
    torch.testing.assert_close(found.ie, alone.ie, rtol=0, atol=1e-12)
    assert alone.ie.abs().max() > 0.1


def test_passes_are_counted(game):
    readout, f, decoder = game
    ran = []

    def counting(x, rows):
        ran.append(len(x))
        return readout.metric(x, rows)

    found = shapley(replace(readout, metric=counting), f, decoder, Options(permutations=6))
    assert found.evaluations.tolist() == [2 + 6 * 5, 2 + 6 * 3, 2]
    assert found.evaluations.sum() == sum(ran)
    speeds = Speeds(chunk=512)
    work = Work(pairs={"ablation": 3, "shapley": 3}, active=50)
    seconds = count_seconds(work, speeds, n=2, layer=0, n_layers=5)
    after_first = 9 / 10  # of ten positions
    assert seconds["shapley"] == pytest.approx(8 * 2 * 4 * 3 * 50 * after_first)
    # which starts where the latent is first active
    assert seconds["ablation"] == pytest.approx(FROM_FIRST / PERMUTATIONS * seconds["shapley"])


# ---- with models


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Three random checkpoints in float64, and a crosscoder of four latents."""
    suite = random_suite(tmp_path_factory.mktemp("suite"))
    ckpts = suite.checkpoints(device="cpu", dtype=torch.float64)
    crosscoder = ctt.Crosscoder(3, 32, 4, sparsity="l1", seed=1, decoder_norm=2.0).double()
    with torch.no_grad():
        crosscoder.W_dec.mul_(0.3)
        crosscoder.b_dec.add_(0.3)
    crosscoder.source = ckpts.source
    return ckpts, crosscoder.eval(), some_pairs(9)


def test_of_models_by_whole_passes(setting, monkeypatch):
    ckpts, crosscoder, pairs = setting
    pairs = pairs[:3]
    monkeypatch.setattr(attribution, "_orders", every_order)
    found = ctt.indirect_effects(crosscoder, ckpts, pairs, "shapley")
    x = stacked_activations(ckpts, pairs.input_ids, pairs.attention_mask)
    keep = pairs.attention_mask.bool()
    keep[:, 0] = False
    f = (crosscoder.encode(x) * keep[..., None]).detach()
    W_dec, b_dec = (weights.detach() for weights in crosscoder.raw_decoder())
    rows = torch.arange(len(pairs))
    for c, model in enumerate(ckpts):

        def metric(stream, own, model=model):
            ids, mask = pairs.input_ids[own], pairs.attention_mask[own]
            logits = hooks.spliced_logits(model, ids, mask, stream)
            at = logits[torch.arange(len(own)), pairs.answer_position[own]]
            both = at.gather(1, pairs.answers[own])
            return both[:, 1] - both[:, 0]

        readout = Readout(metric=metric, x=x[:, :, c], baseline=b_dec[c], touched=keep)
        ie, error = by_definition(readout, f, W_dec[:, c])
        np.testing.assert_allclose(found.per_pair[c].to_dense(), ie, atol=1e-10)
        np.testing.assert_allclose(found.error[c], error.mean(), atol=1e-10)
        assert ((ie != 0).sum(1) >= 2).all()
        at_bias = torch.where(keep[..., None], b_dec[c], x[:, :, c])
        change = metric(at_bias, rows) - metric(x[:, :, c], rows)
        np.testing.assert_allclose(found.total[c], change.mean(), atol=1e-10)
        np.testing.assert_allclose(ie.sum(1) + error, change, atol=1e-10)


def test_neither_batches_nor_order_nor_other_pairs_matter(setting):
    ckpts, crosscoder, pairs = setting
    whole = ctt.indirect_effects(crosscoder, ckpts, pairs, "shapley", permutations=4)
    small = ctt.indirect_effects(crosscoder, ckpts, pairs, "shapley", permutations=4, batch_size=2)
    for name in ("mean", "error", "stderr", "n_nodes"):
        np.testing.assert_allclose(getattr(small, name), getattr(whole, name), atol=1e-9)
    assert whole.gap.max() < 1e-9 and max(whole.info["gap_per_pair"]) < 1e-9
    some = [7, 2, 4]
    few = ctt.indirect_effects(crosscoder, ckpts, pairs[some], "shapley", permutations=4)
    expected = whole.per_pair.to_dense()[:, some]
    np.testing.assert_allclose(few.per_pair.to_dense(), expected, atol=1e-9)
    other = ctt.indirect_effects(crosscoder, ckpts, pairs, "shapley", permutations=4, seed=1)
    assert np.abs(other.mean - whole.mean).max() > 1e-6


def test_the_standard_error_is_that_of_the_mean_over_pairs(setting):
    """Against the spread over seeds."""
    ckpts, crosscoder, pairs = setting
    drawn = [
        ctt.indirect_effects(crosscoder, ckpts, pairs, "shapley", permutations=6, seed=seed)
        for seed in range(24)
    ]
    spread = np.std([effects.mean for effects in drawn], axis=0)
    told = np.sqrt(np.mean([effects.stderr**2 for effects in drawn], axis=0))
    active = spread > 1e-9
    assert active.sum() >= 6
    assert np.linalg.norm(told[active]) == pytest.approx(np.linalg.norm(spread[active]), rel=0.2)
    errors = np.std([effects.error for effects in drawn], axis=0)
    told = np.mean(np.square([effects.info["error_stderr"] for effects in drawn]), axis=0)
    assert np.linalg.norm(told**0.5) == pytest.approx(np.linalg.norm(errors), rel=0.2)


def test_standard_errors_are_saved(setting, tmp_path):
    ckpts, crosscoder, pairs = setting
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs, "shapley", permutations=4)
    effects.save(tmp_path / "drawn")
    again = Effects.load(tmp_path / "drawn")
    np.testing.assert_array_equal(again.stderr, effects.stderr)
    assert effects.stderr.any() and again.info["permutations"] == 4 and again.info["seed"] == 0
    exact = ctt.indirect_effects(crosscoder, ckpts, pairs)
    exact.save(tmp_path / "exact")
    assert exact.stderr is None and Effects.load(tmp_path / "exact").stderr is None
    two = ctt.indirect_effects(crosscoder, ckpts, pairs, "shapley", permutations=2)
    assert np.isnan(two.stderr).any() and two.info["error_stderr"] == [None] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"permutations": 7}, "permutations=7: each order comes with its reverse"),
        ({"permutations": 0}, "permutations=0: give a whole number of at least 2"),
        ({"features": [1]}, "'shapley' gives all latents at once"),
        ({"baseline": "mean"}, "goes with method='ablation', and here is 'shapley'"),
    ],
)
def test_requests_that_make_no_sense_are_refused(setting, options, message):
    ckpts, crosscoder, pairs = setting
    with pytest.raises(ValueError, match=message):
        ctt.indirect_effects(crosscoder, ckpts, pairs, "shapley", **options)
