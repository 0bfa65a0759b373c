"""Planted truth: its closed forms against the package's estimators and against brute force, and its
scores.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ctt_helpers as ctt
from ctt_helpers.attribution import METHODS, NEAR, Options
from ctt_helpers.planted import COUNTS, GROWTH, auroc, measures, plant, recovery, score

SMALL = dict.fromkeys(COUNTS, 2)
SATURATIONS = (float("inf"), 1.5)
CLOSED = [name for name, method in METHODS.items() if not method.sampled]


@pytest.fixture(params=[(n, s) for n in (2, 3, 5) for s in SATURATIONS], ids=str)
def world(request):
    n, saturation = request.param
    planted = plant(n, 10, SMALL, density=0.3, saturation=saturation, seed=n)
    return planted, *planted.sample(40, seed=1)


def test_the_estimators_of_the_package_give_the_closed_forms(world):
    planted, x, g = world
    b_dec = planted.offset + 0.3  # a path that ends elsewhere than where the data begin
    for c in range(len(b_dec)):
        readout = planted.readout(c, x[:, None, c], b_dec[c])
        for method in CLOSED:
            options = Options(tolerance=1e-11)
            attribute = METHODS[method].attribute
            found = attribute(readout, g[:, None], planted.directions[:, c], options)
            exact = planted.exact_effects(x, g, method=method, baseline=b_dec)[c]
            # "ig_own" takes five nodes on a path that the saturation bends
            close = {"ig": 1e-8, "ig_near": 1e-8, "ig_own": 2e-3}.get(method, 1e-9)
            torch.testing.assert_close(found.ie.mean(0), exact, rtol=0, atol=close, msg=method)
            if METHODS[method].adds_up:
                added = found.ie.sum(1) + found.error
                torch.testing.assert_close(added, found.total, rtol=0, atol=1e-8, msg=method)


def test_shapley_values_are_the_ablation_where_m_is_linear_and_add_up_where_it_is_not(world):
    planted, x, g = world
    for c in range(len(planted.offset)):
        readout = planted.readout(c, x[:, None, c])
        found = METHODS["shapley"].attribute(
            readout, g[:, None], planted.directions[:, c], Options(permutations=2)
        )
        added = found.ie.sum(1) + found.error
        torch.testing.assert_close(added, readout.change, rtol=0, atol=1e-12)
        if np.isinf(planted.saturation):
            exact = planted.exact_effects(x, g)[c]
            torch.testing.assert_close(found.ie.mean(0), exact, rtol=0, atol=1e-12)


def test_the_closed_forms_are_what_brute_force_finds(world):
    planted, x, g = world

    def m(f, e, c):  # from the parts, feature by feature
        here = (
            planted.offset[c]
            + e
            + sum(f[:, i, None] * planted.directions[i, c] for i in range(len(planted.kinds)))
        )
        p = (here - planted.offset[c]) @ planted.read_out[c]
        s = planted.saturation
        return -p if np.isinf(s) else -s * torch.tanh(p / s)

    noise = x - planted.offset - torch.einsum("tf,fcd->tcd", g, planted.directions)
    along = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    for c, i in [(0, 0), (len(planted.offset) - 1, 3), (len(planted.offset) - 1, 9)]:
        less, e = g.clone(), noise[:, c]
        less[:, i] = 0

        def slope(a, c=c, less=less, e=e):  # of m in f_i, times f_i, at (1 - a) of all parts
            step = 1e-5 * (g - less)
            return (
                m((1 - a) * g + step, (1 - a) * e, c) - m((1 - a) * g - step, (1 - a) * e, c)
            ) / 2e-5

        brute = {
            "ablation": m(less, e, c) - m(g, e, c),
            "atp": -slope(0),
            "ig": -torch.stack([slope(a) for a in along]).mean(0),
            "ig_near": -torch.stack([slope(NEAR * a) for a in along]).mean(0),
        }
        for method, effect in brute.items():
            exact = planted.exact_effects(x, g, method=method)[c, i]
            torch.testing.assert_close(effect.mean(), exact, rtol=1e-4, atol=1e-6, msg=method)


def test_integrated_gradients_are_complete(world):
    planted, x, g = world
    planted = replace(planted, noise=0.0)
    x, g = planted.sample(40, seed=2)
    total = []
    for c in range(len(planted.offset)):
        total.append(planted.readout(c, x[:, None, c]).change.mean())
    torch.testing.assert_close(
        planted.exact_effects(x, g, method="ig").sum(1), torch.stack(total), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("n", [2, 3, 5])
def test_each_kind_is_what_it_says(n):
    planted = plant(n, 24, {**COUNTS, "emerge": 12}, seed=4)
    gain = torch.einsum("cd,fcd->cf", planted.read_out, planted.directions)
    torch.testing.assert_close(gain, planted.gains, rtol=0, atol=1e-10)
    norms = planted.directions.norm(dim=-1).T / planted.scale[:, None]
    written = norms > 1e-12
    of = {kind: planted.kinds == kind for kind in COUNTS}
    for kind in ("persist", "rotate", "scale"):
        assert written[:, of[kind]].all()
        assert gain[:, of[kind]].abs().min() >= 0.5 - 1e-9
        torch.testing.assert_close(
            gain[:, of[kind]], gain[:1, of[kind]].expand(n, -1), rtol=0, atol=1e-9
        )
    for kind, sign in (("emerge", 1), ("decodable", 1), ("fade", -1)):
        steps = written[:, of[kind]].int().diff(dim=0) * sign
        assert (steps.sum(0) == 1).all() and (
            steps >= 0
        ).all()  # one change, in the right direction
    for kind in ("emerge", "fade"):
        assert torch.equal(gain[:, of[kind]].abs() > 0.4, written[:, of[kind]])
    assert gain[:, of["decodable"]].abs().max() < 1e-10
    torch.testing.assert_close(
        norms[-1, of["scale"]] / norms[0, of["scale"]], torch.full((6,), GROWTH).double()
    )
    unit = torch.nn.functional.normalize(planted.directions, dim=-1)
    cosine = (unit[:, 0] * unit[:, -1]).sum(-1)
    assert (cosine[of["persist"] | of["scale"]] > 1 - 1e-9).all() and cosine[
        of["rotate"]
    ].abs().max() < 0.8


def test_activations_are_as_sparse_and_as_noisy_as_asked():
    planted = plant(3, 16, SMALL, density=0.1, noise=0.2, together=1.0, seed=2)
    x, g = planted.sample(20_000, seed=3)
    assert float((g > 0).double().mean()) == pytest.approx(0.1, rel=0.05) and float(
        g[g > 0].mean()
    ) == pytest.approx(1, rel=0.05)
    rest = (
        x - planted.offset - torch.einsum("tf,fcd->tcd", g, planted.directions)
    ) / planted.scale[:, None]
    assert float(rest.std()) == pytest.approx(0.2, rel=0.01)
    for i in np.flatnonzero(planted.kinds == "decodable"):
        assert torch.equal(g[:, i] > 0, g[:, planted.partner[i]] > 0)
    again = planted.sample(20_000, seed=3)[0]
    assert torch.equal(again, x) and not torch.equal(planted.sample(20_000, seed=4)[0], x)


def permuted(planted, order):
    moved = {
        k: getattr(planted, k)[order] for k in ("gains", "read_out", "bias", "offset", "scale")
    }
    return replace(planted, directions=planted.directions[:, order], **moved)


@settings(max_examples=20)
@given(st.permutations(range(4)), st.sampled_from(CLOSED))
def test_permuting_checkpoints_permutes_the_effects(order, method):
    planted = plant(4, 9, SMALL, saturation=2, seed=1)
    x, g = planted.sample(50, seed=1)
    moved = permuted(planted, order).exact_effects(x[:, order], g, method=method)
    torch.testing.assert_close(
        moved, planted.exact_effects(x, g, method=method)[order], rtol=0, atol=1e-12
    )


def perfect(planted):
    """A crosscoder whose code is the planted one: there are fewer features than dimensions, and no
    noise.
    """
    n, d = planted.offset.shape
    crosscoder = ctt.Crosscoder(n, d, len(planted.kinds) + 3, sparsity="l1").double().eval()
    scales = d**0.5 / planted.offset.norm(dim=-1)
    order = (
        torch.randperm(len(planted.kinds), generator=torch.Generator().manual_seed(5)) + 3
    )  # 0, 1, 2 stay dead
    encoder = torch.linalg.pinv(planted.directions.flatten(1)).unflatten(0, (n, d))
    with torch.no_grad():
        crosscoder.scales.copy_(scales)
        crosscoder.W_enc.zero_()
        crosscoder.W_dec[:3] = 1e-3
        crosscoder.W_enc[..., order] = (encoder / crosscoder.scales[:, None, None]).to(
            crosscoder.W_enc
        )
        crosscoder.W_dec[order] = planted.directions * crosscoder.scales[:, None]
        crosscoder.b_enc[order] = (
            -torch.einsum("cd,cdf->f", planted.offset, encoder) - 1e-9
        )  # rounding stays below 0
        crosscoder.b_dec.copy_(planted.offset * crosscoder.scales[:, None])
    return crosscoder, order


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_perfect_crosscoder_has_perfect_scores(n):
    planted = plant(n, 40, dict.fromkeys(COUNTS, 5), noise=0.0, seed=n)
    x, g = planted.sample(2000, seed=1)
    crosscoder, order = perfect(planted)
    torch.testing.assert_close(crosscoder.encode(x)[:, order], g, rtol=0, atol=1e-6)
    table = recovery(crosscoder, planted)
    assert table["found"].all() and table["cosine"].min() > 1 - 1e-9
    assert table["latent"].tolist() == order.tolist()
    ratios = measures(crosscoder, planted, x)
    best = {"auroc_emerge": 1, "auroc_fade": 1, "accuracy": 1}
    assert score(ratios["RelIE"], table) == best | dict.fromkeys(
        ("specific_rotate", "specific_scale", "specific_decodable"), 0
    )
    assert score(ratios["RelDec"], table) == best | {
        "specific_rotate": 0,
        "specific_scale": 1,
        "specific_decodable": 1,
    }
    for nu in ("nu_error", "nu_reconstruction"):
        assert best.items() <= score(ratios[nu], table).items()
    assert all(np.isnan(r[:, :3]).all() for r in ratios.values())  # the dead ones


def test_one_latent_that_is_closest_to_two_features_counts_as_one_found():
    planted = plant(2, 12, {"persist": 3, "emerge": 1}, noise=0.0, seed=1)
    planted.directions[1] = 0.9 * planted.directions[0] + 0.1 * planted.directions[1]
    crosscoder, order = perfect(planted)
    with torch.no_grad():
        crosscoder.W_dec[order[1]] = crosscoder.W_dec[0]  # nobody stands for feature 1
    table = recovery(crosscoder, planted)
    assert table["cosine"][1] > 0.9 and table["latent"][1] == table["latent"][0]
    assert table["found"].tolist() == [True, False, True, True]


def test_the_task_is_read_at_the_last_position():
    planted = plant(2, 9, SMALL, saturation=2, seed=1)
    x, g = (v.unflatten(0, (20, 2)) for v in planted.sample(40))
    readout = planted.readout(1, x[:, :, 1])
    found = METHODS["ablation"].attribute(readout, g, planted.directions[:, 1], Options())
    # a feature is ablated at both positions, and only the second one counts
    torch.testing.assert_close(
        found.ie.mean(0), planted.exact_effects(x[:, 1], g[:, 1])[1], rtol=0, atol=1e-12
    )


def test_other_metrics_go_through_the_same_door():
    """Two answers are a vocabulary of two: the log-probability has a closed form of its own."""
    planted = plant(2, 9, SMALL, density=0.3, saturation=2.0, seed=1)
    x, g = planted.sample(40)
    right = -planted.metric(planted.projection(1, x[:, 1]))

    def surprisal(right):  # -log P(right) against a second logit of 0
        return torch.nn.functional.softplus(-right)

    for i in range(4):
        readout = planted.readout(1, x[:, None, 1], metric="log_probability")
        decoder = planted.directions[:, 1]
        options = Options(features=[i])
        found = METHODS["ablation"].attribute(readout, g[:, None], decoder, options)
        less = planted.projection(1, x[:, 1]) - g[:, i] * planted.gains[1, i]
        exact = surprisal(-planted.metric(less)) - surprisal(right)
        torch.testing.assert_close(found.ie[:, i], exact, rtol=1e-9, atol=1e-12)
    kl = planted.readout(1, x[:, None, 1], metric="kl")
    torch.testing.assert_close(kl.clean, torch.zeros(40).double(), rtol=0, atol=1e-12)
    assert (kl.change >= -1e-12).all() and kl.change.max() > 0.01


def test_the_score_counts_a_latent_without_a_ratio_as_wrong_but_not_as_specific():
    kinds = ["emerge", "persist", "fade", "scale", "decodable", "emerge"]
    table = pd.DataFrame({"kind": kinds, "latent": range(6), "found": True})
    none = [np.nan] * 3
    ratios = np.array([[0.1, 0.2, 0.7], [0.4, 0.2, 0.4], none, none, [0.0, 0.0, 1.0], none]).T
    got = score(ratios, table)
    assert got["accuracy"] == 0.5 and got["auroc_emerge"] == 1 and np.isnan(got["auroc_fade"])
    assert (got["specific_scale"], got["specific_decodable"]) == (0, 1) and np.isnan(
        got["specific_rotate"]
    )


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_auroc_is_the_share_of_pairs_in_the_right_order(items):
    values, positive = np.array([v for v, _ in items]), np.array([p for _, p in items])
    pairs = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    expected = np.mean(pairs) if pairs else np.nan
    np.testing.assert_allclose(auroc(values, positive), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_checkpoints": 1}, "at least 2 checkpoints"),
        ({"n_checkpoints": 4, "d_model": 4}, "more dimensions"),
        ({"counts": {"emerges": 2}}, r"No kind of feature \['emerges'\]; there are emerge"),
        ({"counts": {"emerge": 0}}, "at least one feature"),
        ({"density": 0.0}, "0 < density"),
        ({"saturation": -1.0}, "saturation > 0"),
    ],
)
def test_sizes_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plant(**arguments)


def test_an_unknown_method_is_refused():
    planted = plant(2, 5, {"persist": 1})
    with pytest.raises(ValueError, match="take one of ablation, atp, ig"):
        planted.exact_effects(*planted.sample(3), method="gradient")
    with pytest.raises(ValueError, match="method='shapley' is drawn at random"):
        planted.exact_effects(*planted.sample(3), method="shapley")
