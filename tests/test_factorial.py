"""Subject, attractor or both: the two-way model against least squares, ideal features, noise."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ctt_helpers as ctt
from ctt_helpers.effects import Effects, clustered_stderr
from ctt_helpers.factorial import Factorial, behaviour_factorial, factorial_of, shares_of_effect
from ctt_helpers.pairs import MinimalPairs
from ctt_helpers.uncertainty import resample

SG_PL = ("sg", "pl")


def pairs_of(n_groups: int, n_factors: int = 2, levels=SG_PL) -> MinimalPairs:
    """Groups of pairs in all cells, in the order of the table: what else a pair has is left empty.

    The cells of a group are sg-sg, sg-pl, pl-sg, pl-pl.
    """
    columns = ["subject_level", "attractor_level", "other_level"][:n_factors]
    rows = [
        {"head": f"head {group}", "attractor": "noun", "verb": "verb"}
        | dict(zip(columns, cell, strict=True))
        for group in range(n_groups)
        for cell in itertools.product(levels, repeat=n_factors)
    ]
    one = torch.ones(len(rows), dtype=torch.long)
    return MinimalPairs(
        one[:, None], one[:, None], one, one, one, [""] * len(rows), {}, pd.DataFrame(rows)
    )


def signs_of(pairs: MinimalPairs) -> tuple[np.ndarray, np.ndarray]:
    """-1 for sg and +1 for pl, of subject and attractor."""
    s, t = (
        np.where(pairs.table[column] == "pl", 1.0, -1.0)
        for column in ("subject_level", "attractor_level")
    )
    return s, t


def effects_of(per_pair, names=None, **info) -> Effects:
    """Effects with the given IE [checkpoints, pairs, latents], and nothing else."""
    per_pair = torch.as_tensor(np.asarray(per_pair, dtype=float))
    n, nothing = len(per_pair), np.full(len(per_pair), np.nan)
    mean = per_pair.mean(1).numpy()
    sparse = per_pair.to_sparse().coalesce()
    names = names or [f"step{c}" for c in range(n)]
    return Effects(mean, abs(mean), nothing, nothing, nothing, nothing, sparse, names, info)


def planted(pairs: MinimalPairs, coefficients, noise: float, seed: int = 0) -> np.ndarray:
    """[pairs, features] indirect effects with the given (subject, attractor, both) of a feature.

    Each group has a level and coefficients of its own around these, of spread `noise`.
    """
    random = np.random.default_rng(seed)
    s, t = signs_of(pairs)
    _, group = np.unique(pairs.table["head"], return_inverse=True)
    wanted = np.array([[0.0, *each] for each in coefficients])  # [features, 4]
    own = wanted.T + noise * random.normal(size=(group.max() + 1, 4, len(wanted)))
    model = np.stack([np.ones_like(s), s, t, s * t], 1)
    towards_plus = np.einsum("pk,pkf->pf", model, own[group])
    return towards_plus * s[:, None]


# ---- coefficients


@pytest.mark.parametrize("n_factors", [2, 3])
@pytest.mark.parametrize("kind", ["activations", "effects"])
def test_coefficients_are_those_of_least_squares(n_factors, kind):
    """Dummy-coded: one column a group, one a factor, and products for all interactions."""
    pairs = pairs_of(7, n_factors)
    pairs = pairs[np.random.default_rng(1).permutation(len(pairs))]
    values = np.random.default_rng(0).normal(size=(2, len(pairs), 5))
    plural = [
        (pairs.table[column] == "pl").to_numpy(float)
        for column in ["subject_level", "attractor_level", "other_level"][:n_factors]
    ]
    products = [
        np.prod([plural[i] for i in which], axis=0)
        for size in range(1, n_factors + 1)
        for which in itertools.combinations(range(n_factors), size)
    ]
    groups = pd.get_dummies(pairs.table["head"]).to_numpy(float)
    design = np.column_stack([groups, *products])
    turned = values * (2 * plural[0] - 1)[:, None] if kind == "effects" else values
    found = factorial_of(values, pairs, kind=kind, n_draws=2)
    for c in range(2):
        fitted = design @ np.linalg.lstsq(design, turned[c], rcond=None)[0]
        # a main effect is half the difference of fitted means, an interaction a quarter of that of
        # differences
        cells = {}
        for s, t in itertools.product((0, 1), repeat=2):
            cells[s, t] = fitted[(plural[0] == s) & (plural[1] == t)].mean(0)
        subject = (cells[1, 0] + cells[1, 1] - cells[0, 0] - cells[0, 1]) / 4
        attractor = (cells[0, 1] + cells[1, 1] - cells[0, 0] - cells[1, 0]) / 4
        both = (cells[1, 1] - cells[1, 0] - cells[0, 1] + cells[0, 0]) / 4
        np.testing.assert_allclose(found.subject[c], subject, atol=1e-12)
        np.testing.assert_allclose(found.attractor[c], attractor, atol=1e-12)
        np.testing.assert_allclose(found.both[c], both, atol=1e-12)
        np.testing.assert_allclose(found.mean[c], turned[c].mean(0), atol=1e-12)
        if n_factors == 3:
            on, off = (fitted[plural[2] == u].mean(0) for u in (1, 0))
            np.testing.assert_allclose(found.other[c], (on - off) / 2, atol=1e-12)
        table = found.cells().iloc[5 * c : 5 * c + 5]
        for (s, t), cell in cells.items():
            np.testing.assert_allclose(table[f"{SG_PL[s]}-{SG_PL[t]}"], cell, atol=1e-12)
    assert (found.other is None) == (n_factors == 2)


def test_the_standard_error_is_that_of_a_mean_over_groups():
    """Least squares on the groups' own coefficients, by hand: cells stand in a known order."""
    values = np.random.default_rng(0).normal(size=(4 * 9, 3))
    found = factorial_of(values, pairs_of(9), kind="activations", n_draws=2)
    sg_sg, sg_pl, pl_sg, pl_pl = values.reshape(9, 4, 3).transpose(1, 0, 2)
    both = (sg_sg - sg_pl - pl_sg + pl_pl) / 4
    np.testing.assert_allclose(found.by_group[0, 3], both)
    np.testing.assert_allclose(found.stderr["both"][0], both.std(0, ddof=1) / 3)


@pytest.mark.parametrize("form", ["effects", "sparse", "dense", "float32", "numpy"])
def test_every_form_of_values_gives_the_same(form):
    pairs = pairs_of(5)
    values = np.random.default_rng(0).normal(size=(3, 20, 6)).astype(np.float32).astype(float)
    values[:, ::3, 1] = 0
    effects = effects_of(values)
    given_as = {
        "effects": effects,
        "sparse": effects.per_pair,
        "dense": effects.per_pair.to_dense().requires_grad_(),
        "float32": torch.from_numpy(values).float(),
        "numpy": values,
    }[form]
    chosen = [4, 1]
    found = factorial_of(given_as, pairs, features=chosen, kind="effects", n_draws=50)
    np.testing.assert_array_equal(found.features, chosen)
    assert found.names == (["step0", "step1", "step2"] if form == "effects" else ["0", "1", "2"])
    for c in range(3):
        alone = factorial_of(values[c][:, chosen], pairs, kind="effects", n_draws=50)
        for name in ("mean", "subject", "attractor", "both"):
            np.testing.assert_allclose(getattr(found, name)[c], getattr(alone, name)[0])
            np.testing.assert_allclose(found.lower[name][c], alone.lower[name][0])


values_of_groups = arrays(np.float64, (24, 2), elements=st.floats(-100, 100).map(lambda v: v / 8))


@given(values_of_groups, st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_swapped_levels_and_shuffled_pairs(values, random):
    pairs = pairs_of(6)
    kinds = {"activations": (1, -1, -1, 1), "effects": (-1, 1, 1, -1)}  # effects turn as well
    order = random.sample(range(24), 24)
    inside = [4 * group + i for group in range(6) for i in random.sample(range(4), 4)]
    for kind, signs in kinds.items():
        found = factorial_of(values, pairs, kind=kind, n_draws=20)
        swapped = factorial_of(values, pairs, kind=kind, n_draws=20, levels=("pl", "sg"))
        shuffled = factorial_of(values[order], pairs[order], kind=kind, n_draws=20)
        within = factorial_of(values[inside], pairs[inside], kind=kind, n_draws=20)
        for name, sign in zip(("mean", "subject", "attractor", "both"), signs, strict=True):
            one, other = getattr(found, name), getattr(swapped, name)
            np.testing.assert_allclose(other, sign * one, atol=1e-12)
            np.testing.assert_allclose(getattr(shuffled, name), one, atol=1e-12)
            np.testing.assert_allclose(shuffled.stderr[name], found.stderr[name], atol=1e-12)
            # the groups of a draw are those of a place in the table
            np.testing.assert_allclose(within.upper[name], found.upper[name], atol=1e-12)
            end = found.upper if sign == 1 else found.lower
            np.testing.assert_allclose(swapped.upper[name], sign * end[name], atol=1e-9)


@given(values_of_groups, st.floats(-50, 50), st.sampled_from([0.25, 3.0, -2.0]))
@settings(max_examples=25)
def test_a_constant_moves_only_the_mean_and_a_factor_scales(values, constant, scale):
    pairs = pairs_of(6)
    for kind, moved in (("activations", "mean"), ("effects", "subject")):  # what always helps
        found = factorial_of(values, pairs, kind=kind, n_draws=20)
        shifted = factorial_of(values + constant, pairs, kind=kind, n_draws=20)
        scaled = factorial_of(values * scale, pairs, kind=kind, n_draws=20)
        for name in ("mean", "subject", "attractor", "both"):
            one = getattr(found, name)
            difference = getattr(shifted, name) - one
            np.testing.assert_allclose(difference, constant * (name == moved), atol=1e-10)
            np.testing.assert_allclose(getattr(scaled, name), scale * one, atol=1e-10)
        np.testing.assert_allclose(scaled.strength, abs(scale) * found.strength, atol=1e-10)
        # by a power of 2, so that no rounding decides; the sign of a factor is no matter
        halved = factorial_of(values / -2, pairs, kind=kind, n_draws=20)
        for name, share in found.shares.items():
            np.testing.assert_allclose(halved.shares[name], share)


def test_features_and_error_add_up_to_the_total():
    """Completeness carries over: the coefficients are linear in the effects."""
    random = np.random.default_rng(3)
    pairs = pairs_of(8)
    effects, error = random.normal(size=(2, 32, 11)), random.normal(size=(2, 32, 1))
    total = effects.sum(2, keepdims=True) + error
    parts, missed, whole = (
        factorial_of(values, pairs, kind="effects", n_draws=2) for values in (effects, error, total)
    )
    for name in ("mean", "subject", "attractor", "both"):
        summed = getattr(parts, name).sum(1) + getattr(missed, name)[:, 0]
        np.testing.assert_allclose(summed, getattr(whole, name)[:, 0], atol=1e-12)


# ---- which pairs


def test_a_group_with_an_empty_cell_is_left_out_and_counted():
    pairs = pairs_of(6)
    values = np.random.default_rng(0).normal(size=(24, 3))
    keep = np.delete(np.arange(24), [9, 20, 21])  # one cell of the third group, two of the last
    found = factorial_of(values[keep], pairs[keep], kind="activations", n_draws=30)
    whole = [i for i in range(24) if i // 4 not in (2, 5)]
    expected = factorial_of(values[whole], pairs[whole], kind="activations", n_draws=30)
    assert (found.n_groups, found.n_incomplete) == (4, 2)
    assert (expected.n_groups, expected.n_incomplete) == (4, 0)
    np.testing.assert_allclose(found.both, expected.both)
    np.testing.assert_allclose(found.lower["both"], expected.lower["both"])


def test_pairs_outside_the_design_do_not_count():
    """Pairs without an attractor, and pairs of a level that is not asked for."""
    pairs = pairs_of(4)
    values = np.random.default_rng(0).normal(size=(16, 2))
    more = pairs[[0, 1, 2, *range(16)]]
    more.table.loc[0, "attractor_level"] = None
    more.table.loc[1, "subject_level"] = "dual"
    more.table.loc[2, "attractor_level"] = np.nan
    added = np.vstack([np.full((3, 2), 100.0), values])
    found = factorial_of(added, more, kind="effects", levels=SG_PL, n_draws=10)
    expected = factorial_of(values, pairs, kind="effects", n_draws=10)
    np.testing.assert_array_equal(found.by_group, expected.by_group)
    with pytest.raises(ValueError, match=r"dual.*Give two of these"):
        factorial_of(added, more, kind="effects")


def test_several_pairs_in_a_cell_of_a_group_are_averaged():
    pairs = pairs_of(3)
    values = np.arange(12.0)[:, None] ** 2
    twice = factorial_of(
        np.vstack([values, values[5:6] + 4]), pairs[[*range(12), 5]], kind="activations"
    )
    values[5] += 2
    np.testing.assert_allclose(
        twice.by_group, factorial_of(values, pairs, kind="activations").by_group
    )


def test_groups_of_the_same_words_are_compared_each_with_itself_and_drawn_together():
    """Another adjective, say: three groups share their words, and three have words of their own."""
    pairs = pairs_of(6)
    pairs.table["group"] = np.repeat([5, 3, 8, 1, 0, 2], 4)
    same = pairs.table["group"].isin([3, 1, 2])
    pairs.table.loc[same, "head"] = "head"
    values = np.random.default_rng(0).normal(size=(2, 24, 3))
    found = factorial_of(effects_of(values), pairs, n_draws=200, seed=2)
    assert found.n_groups == 6
    words = np.array([0, 1, 2, 1, 3, 1])
    for c, name in itertools.product(range(2), ("subject", "both")):
        own = found.by_group[c, {"subject": 1, "both": 3}[name]]
        for feature in range(3):
            expected = clustered_stderr(own[:, feature], words)
            assert found.stderr[name][c, feature] == pytest.approx(expected)
        # `resample` draws pairs, whose mean effect is the subject's coefficient
        by_hand = resample(own[None], 200, seed=2, clusters=found.clusters)[:, 0]
        low, high = np.quantile(by_hand, [0.025, 0.975], axis=0)
        np.testing.assert_allclose(found.lower[name][c], low, atol=1e-6)
        np.testing.assert_allclose(found.upper[name][c], high, atol=1e-6)
    # what helps is about the subject, to the last digit, whatever shares its words
    np.testing.assert_allclose(found.subject, effects_of(values).mean)
    together = found.clusters[:, None] == found.clusters
    np.testing.assert_array_equal(together, words[:, None] == words)


def test_halves_share_no_words():
    """Copies of a group are no new evidence: their noise must not confirm itself."""
    pairs = pairs_of(8)
    noise = planted(pairs, np.zeros((3000, 3)), noise=1)
    once = factorial_of(noise, pairs, kind="effects", n_draws=2)
    copied = pairs[[*range(32)] * 3]
    copied.table["group"] = np.repeat(np.arange(24), 4)
    thrice = factorial_of(np.tile(noise, (3, 1)), copied, kind="effects", n_draws=2)
    assert (once.n_groups, thrice.n_groups) == (8, 24)
    np.testing.assert_allclose(thrice.stderr["both"], once.stderr["both"])
    for crossfit in (True, False):
        one, other = (
            shares_of_effect(found, n_draws=50, crossfit=crossfit) for found in (once, thrice)
        )
        pd.testing.assert_frame_equal(one.drop(columns="n_groups"), other.drop(columns="n_groups"))


def test_levels_of_one_s_own_go_by_first_appearance():
    pairs = pairs_of(3, levels=("pl", "sg"))  # known, so the order of the table does not matter
    values = np.random.default_rng(0).normal(size=(12, 1))
    assert factorial_of(values, pairs, kind="activations").levels == SG_PL
    own = pairs_of(3, levels=("animate", "inanimate"))
    found = factorial_of(values, own, kind="activations")
    assert found.levels == ("animate", "inanimate")
    assert found.subject[0, 0] == pytest.approx(
        values[own.table["subject_level"] == "inanimate"].mean() - values.mean()
    )
    assert list(found.cells())[2:] == [
        "animate-animate", "animate-inanimate", "inanimate-animate", "inanimate-inanimate",
    ]  # fmt: skip


# ---- labels


CELLS = list(itertools.product((0, 1), repeat=2))


def expected_label(on: tuple[int, ...]) -> str:
    """By what the answer of a feature depends on, with no sum of squares.

    `on` is whether it is on in the cells (subject, attractor) = (0, 0), (0, 1), (1, 0), (1, 1).
    """
    value = dict(zip(CELLS, on, strict=True))
    follows_subject = any(value[0, t] != value[1, t] for t in (0, 1))
    follows_attractor = any(value[s, 0] != value[s, 1] for s in (0, 1))
    if follows_subject and follows_attractor:
        return "both"  # nothing that is on or off can add two effects of the same size
    return "subject" if follows_subject else "attractor" if follows_attractor else "none"


@pytest.mark.parametrize("noise", [0, 0.3])
@pytest.mark.parametrize("offset", [0, 1 / 3])  # which no float holds exactly
def test_all_sixteen_ways_to_be_on_or_off(noise, offset):
    pairs = pairs_of(60)
    s, t = (signs.astype(int) for signs in signs_of(pairs))
    ways = list(itertools.product((0, 1), repeat=4))
    cell = (s > 0) * 2 + (t > 0)
    random = np.random.default_rng(0)
    values = np.array(ways).T[cell] * 0.7 + offset
    values = values + noise * random.normal(size=values.shape)
    found = factorial_of(values, pairs, kind="activations")
    expected = [expected_label(way) for way in ways]
    assert pd.Series(expected).value_counts().to_dict() == {
        "both": 10, "subject": 2, "attractor": 2, "none": 2,
    }  # fmt: skip
    assert found.label[0].tolist() == expected


def degrees(x: float) -> tuple[float, float, float]:
    """1 for pl-sg, x for pl-pl, 0 for a singular subject."""
    return (1 + x) / 4, (x - 1) / 4, (x - 1) / 4


@pytest.mark.parametrize(
    ("coefficients", "label"),
    [
        ((1, 0, 0), "subject"),
        ((0, -1, 0), "attractor"),
        ((0, 0, 1), "both"),
        ((1, 1, 0), "mixed"),  # counts plural nouns
        ((1, -1, 0), "mixed"),
        ((1, 0.75, 0), "mixed"),
        ((1, 0.65, 0), "subject"),
        ((0.65, 1, 0), "attractor"),
        ((1, 1, 1), "both"),
        ((1, 1, 0.6), "mixed"),
        ((1, 1, 0.66), "both"),
        (degrees(0.36), "subject"),
        (degrees(0.30), "both"),
        ((0, 0, 0), "none"),
    ],
)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_where_the_lines_are_drawn(coefficients, label, size):
    """In effects: a feature that helps either number is about the subject."""
    pairs = pairs_of(40)
    values = size * planted(pairs, [coefficients], noise=0.01)
    assert factorial_of(values, pairs, kind="effects").label.item() == label


def test_effects_are_turned_towards_the_plus_level():
    pairs = pairs_of(10)
    s, t = signs_of(pairs)
    last_is_plural = np.where(t > 0, s, 0.0)  # helps a plural subject, hurts a singular one
    always_helps = np.ones_like(s)
    only_plural = np.where(s > 0, 1.0, 0)  # a detector of plural subjects, used as it should be
    congruent = np.where(s == t, 1.0, 0)  # helps where the nouns agree
    values = np.stack([last_is_plural, always_helps, only_plural, congruent], 1)
    found = factorial_of(effects_of(values[None]), pairs)
    for name, expected in (
        ("mean", [0.5, 0, 0.5, 0]),
        ("subject", [0, 1, 0.5, 0.5]),
        ("attractor", [0.5, 0, 0, 0.5]),
        ("both", [0, 0, 0, 0]),
    ):
        np.testing.assert_array_equal(getattr(found, name)[0], expected)
    assert found.label[0].tolist() == ["attractor", "subject", "subject", "mixed"]
    cells = found.cells().iloc[0]
    assert cells[["sg-sg", "sg-pl", "pl-sg", "pl-pl"]].tolist() == [0, 1, 0, 1]


def test_rounding_is_no_finding():
    """A feature before the attractor cannot know it, but for the last bits of float32."""
    pairs = pairs_of(30)
    _, t = signs_of(pairs)
    values = np.stack([1 + 1e-7 * (t > 0), 1 + 1e-3 * (t > 0)], 1)
    assert factorial_of(values, pairs, kind="activations").label[0].tolist() == [
        "none",
        "attractor",
    ]


def test_noise_is_seldom_labelled_and_its_shares_are_even_only_uncorrected():
    pairs = pairs_of(40)
    noise = np.random.default_rng(0).normal(size=(160, 2000))
    found = factorial_of(noise, pairs, kind="activations", n_draws=500)
    assert 0.02 < (found.label != "none").mean() < 0.09
    square = {name: getattr(found, name) ** 2 - found.stderr[name] ** 2 for name in found.shares}
    for of_factor in square.values():  # the correction takes off what noise adds, on average
        assert abs(of_factor.mean()) < 4 * of_factor.std() / 2000**0.5
    # nothing is left of many, and no share is then made up
    nothing = np.isnan(found.shares["both"])
    np.testing.assert_array_equal(nothing, np.all([s <= 0 for s in square.values()], axis=0))
    assert nothing.any() and (found.label[nothing] == "none").all()


def test_a_feature_weaker_than_random_directions_has_no_label():
    pairs = pairs_of(30)
    wanted = [(0.5, 0, 0), (2, 0, 0), (0, 0, 2)]
    values = planted(pairs, wanted, noise=0.05)[None]
    assert factorial_of(values, pairs, kind="effects").label.tolist() == [
        ["subject", "subject", "both"]
    ]
    random = np.random.default_rng(0)
    sizes = np.linspace(0, 1, 101)[1:]  # of the null's strengths: the 95th percentile is 0.95
    turned = random.normal(size=(100, 3))
    turned *= (sizes / np.linalg.norm(turned, axis=1))[:, None]
    null = planted(pairs, turned, noise=0)[None]
    silent = np.concatenate([null, np.zeros((1, 120, 900))], 2)  # inactive on these pairs
    for given_null in (null, effects_of(null), effects_of(silent)):
        found = factorial_of(values, pairs, kind="effects", null=given_null)
        assert found.threshold == pytest.approx([0.9505])
        assert found.label.tolist() == [["none", "subject", "both"]]
    # and one that is strong in a single group is not known from 0, whatever the null
    lonely = np.zeros((1, 120, 1))
    lonely[0, 2:4] = 1000
    assert factorial_of(lonely, pairs, kind="effects", null=null).label.item() == "none"


# ---- intervals


def test_about_95_of_100_intervals_hold_the_truth():
    pairs = pairs_of(60)
    wanted = np.random.default_rng(1).normal(size=(300, 3))
    values = planted(pairs, wanted, noise=1.5)
    found = factorial_of(values, pairs, kind="effects", n_draws=500)
    for k, name in enumerate(("subject", "attractor", "both")):
        truth = wanted[:, k]
        inside = (found.lower[name][0] <= truth) & (truth <= found.upper[name][0])
        assert 0.89 < inside.mean() < 0.98, name
    wide = factorial_of(values, pairs, kind="effects", n_draws=500, confidence=0.999)
    assert (wide.upper["both"] > found.upper["both"]).all()


def test_a_draw_is_a_mean_over_groups_drawn_by_hand():
    values = np.random.default_rng(0).normal(size=(16, 2))
    found = factorial_of(values, pairs_of(4), kind="activations", n_draws=5, seed=3)
    times = np.random.default_rng(3).multinomial(4, [0.25] * 4, 5)
    drawn = [
        np.mean([found.by_group[0, 1, g] for g in range(4) for _ in range(count[g])], axis=0)
        for count in times
    ]
    np.testing.assert_allclose(found.lower["subject"][0], np.quantile(drawn, 0.025, axis=0))
    np.testing.assert_allclose(found.upper["subject"][0], np.quantile(drawn, 0.975, axis=0))


def test_many_columns_go_in_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=(2, 24, 9))
    whole = factorial_of(values, pairs_of(6), kind="effects", n_draws=40)
    shares = shares_of_effect(whole, n_draws=40)
    monkeypatch.setattr("ctt_helpers.factorial.BLOCK", 4)
    blocks = factorial_of(values, pairs_of(6), kind="effects", n_draws=40)
    np.testing.assert_allclose(blocks.lower["both"], whole.lower["both"])
    pd.testing.assert_frame_equal(shares_of_effect(blocks, n_draws=40), shares)


# ---- all features together


def test_noise_adds_up_to_nothing_if_cross_fitted():
    """Of 40 sets of 200 features: the mean of the sums is 0; plain sums are far above it."""
    pairs = pairs_of(20)
    columns = ["subject", "attractor", "both", "strength"]
    noise = planted(pairs, np.zeros((200 * 40, 3)), noise=1).reshape(80, 40, 200)
    found = factorial_of(noise.transpose(1, 0, 2), pairs, kind="effects", n_draws=2)
    table = shares_of_effect(found, n_draws=200)
    sums, plain = table[columns], shares_of_effect(found, n_draws=2, crossfit=False)[columns]
    assert (sums.mean().abs() < 4 * sums.std() / 40**0.5).all()
    assert (plain.mean() > 10 * sums.std()).all()
    # the interval says so, and shares of nothing are not given
    for column in columns:
        holds_zero = (table[f"{column}_low"] < 0) & (table[f"{column}_high"] > 0)
        assert holds_zero.mean() > 0.85
    assert table["subject_share"].isna().mean() > 0.85


def test_sums_and_shares_are_the_planted_ones():
    pairs = pairs_of(50)
    wanted = [(0.6, 0, 0)] * 3 + [(0, -1, 0)] * 2 + [(0, 0, 0.5)] + [(0.4, 0.4, 0)]
    nothing = [(0, 0, 0)] * 100
    values = planted(pairs, wanted + nothing, noise=0.5)
    found = factorial_of(values, pairs, kind="effects", names=["end"])
    assert found.label[0, :7].tolist() == ["subject"] * 3 + ["attractor"] * 2 + ["both", "mixed"]
    row = shares_of_effect(found).iloc[0]
    subject, attractor, both = 3 * 0.6 + 0.4, 2 * 1 + 0.4, 0.5
    strength = 3 * 0.6 + 2 * 1 + 0.5 + 0.4 * 2**0.5
    truth = {
        "subject": subject,
        "attractor": attractor,
        "both": both,
        "strength": strength,
        "subject_share": subject / (subject + attractor + both),
        "both_share": both / (subject + attractor + both),
        "through_attractor": 2 / strength,
        "through_mixed": 0.4 * 2**0.5 / strength,
    }
    for column, value in truth.items():
        assert row[f"{column}_low"] < value < row[f"{column}_high"], column
        assert row[f"{column}_low"] < row[column] < row[f"{column}_high"], column
    assert row["checkpoint"] == "end" and row["n_groups"] == 50
    through = [f"through_{label}" for label in ("subject", "attractor", "both", "mixed", "none")]
    assert row[through].sum() == pytest.approx(1)
    # the plain sum takes the noise of a hundred features for an effect
    plain = shares_of_effect(found, crossfit=False).iloc[0]
    assert plain["both_low"] > 2 * both


def test_without_noise_both_ways_to_sum_are_exact():
    pairs = pairs_of(5)
    found = factorial_of(planted(pairs, [(1, 0, 0), (-2, 3, 0)], 0), pairs, kind="effects")
    for crossfit in (True, False):
        row = shares_of_effect(found, crossfit=crossfit, n_draws=20).iloc[0]
        assert row[["subject", "attractor", "both"]].tolist() == pytest.approx([3, 3, 0])
        assert row["strength"] == pytest.approx(1 + 13**0.5)
        assert row["through_subject"] == pytest.approx(1 / (1 + 13**0.5))
        assert row["through_attractor"] == pytest.approx(13**0.5 / (1 + 13**0.5))


def test_the_interval_of_a_sum_holds_the_truth():
    """Thirty features of clear size, of 60 other samples of groups each."""
    pairs = pairs_of(24)
    wanted = np.random.default_rng(0).choice([-1, 1], (30, 3)) * [0.9, 0.6, 0.7]
    truth = {"subject": 27, "attractor": 18, "both": 21}
    inside = []
    for seed in range(60):
        found = factorial_of(planted(pairs, wanted, 0.8, seed), pairs, kind="effects", n_draws=2)
        row = shares_of_effect(found, n_draws=200, seed=seed).iloc[0]
        inside += [
            row[f"{name}_low"] < value < row[f"{name}_high"] for name, value in truth.items()
        ]
    assert 0.86 < np.mean(inside) < 0.99


def test_the_sum_over_weak_features_is_too_small_rather_than_too_large():
    """Half of the sum, where each is one standard error from 0; the plain sum is above it."""
    pairs = pairs_of(100)
    for errors, part in ((1, 0.51), (2, 0.83), (3, 0.96)):  # as the docstring has it
        wanted = np.tile([errors / 100**0.5, 0, 0], (400, 1))
        found = factorial_of(planted(pairs, wanted, noise=1), pairs, kind="effects", n_draws=2)
        row = shares_of_effect(found, n_draws=200).iloc[0]
        truth = 400 * errors / 100**0.5
        assert row["subject"] == pytest.approx(part * truth, rel=0.12)
        # draws have the noise twice, and are moved
        assert row["subject_low"] < row["subject"] < row["subject_high"]
        plain = shares_of_effect(found, n_draws=2, crossfit=False).iloc[0]
        assert plain["subject"] > 0.98 * truth


def test_labels_from_elsewhere_decide_what_goes_through():
    pairs = pairs_of(8)
    values = planted(pairs, [(1, 0, 0), (0, 3, 0)], noise=0)
    found = factorial_of(np.stack([values, values]), pairs, kind="effects", n_draws=10)
    table = shares_of_effect(found, ["both", "none"], n_draws=10)
    assert table["through_both"].tolist() == pytest.approx([0.25, 0.25])
    each = shares_of_effect(found, [["both", "none"], ["none", "mixed"]], n_draws=10)
    assert each["through_mixed"].tolist() == pytest.approx([0, 0.75])


# ---- behaviour


@pytest.mark.parametrize("form", ["list", "tensor", "numpy"])
def test_behaviour_tells_who_is_agreed_with(form):
    pairs = pairs_of(30)
    s, t = signs_of(pairs)
    bias = 0.3 * s  # of plural forms, whatever the nouns: it helps one subject, and hurts the other
    noise = 0.01 * np.random.default_rng(0).normal(size=(3, 120))
    right = np.stack([t * s, 2 * np.ones_like(s), 2 + t * s / 2]) + bias + noise
    rows = [torch.from_numpy(row).float() for row in right]
    differences = {"list": rows, "tensor": torch.stack(rows), "numpy": right}[form]
    table = behaviour_factorial(differences, pairs, names=["last noun", "subject", "led astray"])
    assert table["checkpoint"].tolist() == ["last noun", "subject", "led astray"]
    assert table["label"].tolist() == ["attractor", "subject", "subject"]
    assert table["subject"].tolist() == pytest.approx([0, 2, 2], abs=0.01)
    assert table["attractor"].tolist() == pytest.approx([1, 0, 0.5], abs=0.01)
    assert table["mean"].tolist() == pytest.approx([0.3] * 3, abs=0.01)
    assert (table["n_groups"] == 30).all() and "feature" not in table
    assert (table["attractor_low"] < table["attractor_high"]).all()
    one = behaviour_factorial(rows[1], pairs)
    assert one["subject"].tolist() == pytest.approx([2], abs=0.01)


# ---- errors, and the table


def test_the_table_is_that_of_the_result():
    pairs = pairs_of(6, 3)
    values = np.random.default_rng(0).normal(size=(2, 48, 3))
    found = factorial_of(effects_of(values, ["a", "b"]), pairs, features=[2, 0], null=values)
    assert isinstance(found, ctt.Factorial) and ctt.Factorial is Factorial
    table = found.to_frame().set_index(["checkpoint", "feature"])
    assert list(table.index) == [("a", 2), ("a", 0), ("b", 2), ("b", 0)]
    row = table.loc[("b", 2)]
    for name in ("mean", "subject", "attractor", "both", "other"):
        assert row[name] == getattr(found, name)[1, 0]
        assert row[f"{name}_low"] == found.lower[name][1, 0]
        assert row[f"{name}_high"] == found.upper[name][1, 0]
    assert row["strength"] == found.strength[1, 0] and row["label"] == found.label[1, 0]
    assert row["strength"] ** 2 == pytest.approx(
        row["subject"] ** 2 + row["attractor"] ** 2 + row["both"] ** 2
    )


def test_errors_say_what_to_do():
    pairs = pairs_of(4)
    values = np.ones((16, 3))

    def refused(match, values=values, pairs=pairs, **options):
        with pytest.raises(ValueError, match=match):
            factorial_of(values, pairs, **{"kind": "activations", **options})

    refused("say kind='effects' or kind='activations'", kind=None)
    refused(r"kind='effect' is not known.*Did you mean 'effects'", kind="effect")
    bare = replace(pairs, table=pairs.table.drop(columns="attractor_level"))
    refused("has no column attractor_level; it has: head, attractor", pairs=bare)
    refused(r"shape \(15, 3\) for 16 pairs", values=values[:15])
    refused(r"shape \(2, 16\) for 16 pairs.*behaviour_factorial", values=np.ones((2, 16)))
    broken = values.copy()
    broken[7, 2] = np.nan
    refused("values: 1 .* at checkpoint 0 .* pair 7, feature 2", values=broken)
    refused("null: 1 .* at checkpoint 0 .* pair 7, feature 2", null=broken)
    refused("null has 2 checkpoints and the values have 1", null=np.ones((2, 16, 1)))
    refused("null is 0 everywhere at 0", null=np.zeros((16, 5)))
    refused("0 of 4 groups of 'pairs' have pairs in all 4 cells", values[::2], pairs[::2])
    refused("1 of 1 groups", values[:4], pairs[:4])
    refused("There is no feature 3", features=[3])
    refused("2 names for 1 checkpoints", names=["a", "b"])
    refused(r"levels=\('sg', 'dual'\).*has sg, pl in", levels=("sg", "dual"))
    refused(r"levels=\('pl', 'pl'\)", levels=("pl", "pl"))
    refused("n_draws=0", n_draws=0)
    refused("confidence=95", confidence=95)
    for metric in ("kl", "log_probability"):
        refused(f"effects on '{metric}'", effects_of(values[None], metric=metric), kind=None)
    refused("only 15 of 16 pairs", effects_of(values[None], n_counted=15), kind=None)
    fine = effects_of(values[None], metric="wrong_minus_right", n_counted=16)
    assert factorial_of(fine, pairs).subject.tolist() == [[1, 1, 1]]

    with pytest.raises(ValueError, match="differences has shape"):
        behaviour_factorial(np.ones((2, 15)), pairs)
    with pytest.raises(ValueError, match=r"shapes \[\(15,\), \(16,\)\]"):
        behaviour_factorial([torch.ones(15), torch.ones(16)], pairs)

    found = factorial_of(values, pairs, kind="effects", n_draws=2)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\).*each of the 3 features"):
        shares_of_effect(found, ["none", "none"])
    with pytest.raises(ValueError, match="Did you mean 'subject'"):
        shares_of_effect(found, ["none", "none", "subjects"])
    with pytest.raises(ValueError, match="These are activations"):
        shares_of_effect(factorial_of(values, pairs, kind="activations", n_draws=2))
    few = factorial_of(values[:12], pairs[:12], kind="effects", n_draws=2)
    with pytest.raises(ValueError, match="3 groups of different words cannot be split"):
        shares_of_effect(few)
    assert len(shares_of_effect(few, crossfit=False)) == 1
