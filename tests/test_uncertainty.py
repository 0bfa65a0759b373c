"""Bootstrap of effects, RelIE and classes: closed forms, coverage, invariants; the figure of
intervals.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import false_discovery_control
from scipy.stats import t as student

import ctt_helpers as ctt
from ctt_helpers.effects import Effects
from ctt_helpers.metrics import classify, members, rel_ie, trajectory
from ctt_helpers.notebook import plots
from ctt_helpers.notebook.plots.effects import interval_plot
from ctt_helpers.pairs import twins
from ctt_helpers.uncertainty import (
    SHARED,
    SPECIFIC,
    benjamini_hochberg,
    classify_draws,
    decide,
    interval,
    null_threshold,
    rel_ie_draws,
    resample,
    student_tail,
    trajectory_draws,
)

NAMES = ["early", "middle", "late"]


def effects_of(per_pair) -> Effects:
    """Effects with the given IE [checkpoints, pairs, latents]; what the bootstrap does not read is
    left empty.
    """
    per_pair = np.asarray(per_pair, dtype=float)
    n, nothing = len(per_pair), np.full(len(per_pair), np.nan)
    sparse = torch.from_numpy(per_pair).to_sparse().coalesce()
    mean, abs_mean = per_pair.mean(1), np.abs(per_pair).mean(1)
    return Effects(
        mean,
        abs_mean,
        nothing,
        nothing,
        nothing,
        nothing,
        sparse,
        [f"step{c}" for c in range(n)],
        {},
    )


def simulated(n=3, n_pairs=400, h=6, seed=0):
    """Normal effects around different means, correlated between the checkpoints, some of
    them zero.
    """
    random = np.random.default_rng(seed)
    shared = random.normal(size=(1, n_pairs, h))
    values = random.normal(0, 2, (n, 1, h)) + shared + random.normal(size=(n, n_pairs, h))
    values[:, :, -1] = 0
    values[:, ::3, 1] = 0
    return values


# ---- draws of effects


@pytest.mark.parametrize("form", ["effects", "sparse", "dense", "numpy"])
def test_spread_and_middle_are_those_of_a_mean(form):
    values = simulated()
    given = effects_of(values)
    forms = {"sparse": given.per_pair, "dense": given.per_pair.to_dense(), "numpy": values}
    draws = resample(forms.get(form, given), 4000)
    mean, error = values.mean(1), values.std(1) / values.shape[1] ** 0.5
    assert draws.shape == (4000, 3, 6) and draws.dtype == np.float32
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.1 * error.max())
    np.testing.assert_allclose(draws.std(0), error, rtol=0.06)
    low, high = interval(draws, 0.9)
    np.testing.assert_allclose(low, mean - 1.645 * error, atol=0.2 * error.max())
    np.testing.assert_allclose(high, mean + 1.645 * error, atol=0.2 * error.max())
    assert (draws[:, :, -1] == 0).all()


def test_a_draw_is_a_mean_over_pairs_drawn_by_hand():
    values = simulated(n_pairs=7)
    clusters = ["b", "a", "b", "c", "a", "a", "c"]
    times = np.random.default_rng(5).multinomial(3, [1 / 3] * 3, 20)  # of a, b, c
    order = {"a": 0, "b": 1, "c": 2}
    for draw, count in zip(
        resample(effects_of(values), 20, seed=5, clusters=clusters), times, strict=True
    ):
        rows = [i for i, label in enumerate(clusters) for _ in range(count[order[label]])]
        np.testing.assert_allclose(draw, values[:, rows].mean(1), rtol=1e-5, atol=1e-6)


def test_checkpoints_are_drawn_together():
    values = simulated()
    draws = resample(effects_of(values), 3000)
    of_pairs, of_draws = (
        np.corrcoef(v[0], v[2])[0, 1] for v in (values[:, :, 0], draws[:, :, 0].T)
    )
    assert of_draws == pytest.approx(of_pairs, abs=0.06) and of_pairs > 0.3


def test_about_95_of_100_intervals_hold_the_truth():
    random = np.random.default_rng(0)
    truth = random.normal(0, 1, (2, 1, 400))
    values = truth + random.normal(0, 3, (2, 100, 400)) + random.normal(0, 3, (1, 100, 400))
    low, high = interval(resample(effects_of(values), 500))
    inside = (low <= truth[:, 0]) & (truth[:, 0] <= high)
    assert 0.90 < inside.mean() < 0.98


def test_copies_of_a_pair_are_no_new_evidence():
    once = simulated(n_pairs=100)
    twice = effects_of(np.repeat(once, 2, axis=1))
    widths = [
        np.subtract(*interval(draws)[::-1])[:, :-1].mean()
        for draws in (
            resample(effects_of(once), 2000),
            resample(twice, 2000, clusters=np.arange(200) // 2),
            resample(twice, 2000),
        )
    ]
    assert widths[1] == pytest.approx(widths[0], rel=1e-6)  # the same clusters are drawn
    assert widths[2] == pytest.approx(widths[0] / 2**0.5, rel=0.05)


@given(st.permutations(range(4)), st.integers(0, 3))
@settings(max_examples=10)
def test_permuting_the_checkpoints_permutes_the_draws_and_nothing_else(order, seed):
    values = simulated(n=4, n_pairs=12)
    draws, permuted = (resample(effects_of(v), 30, seed) for v in (values, values[list(order)]))
    np.testing.assert_array_equal(permuted, draws[:, order])
    np.testing.assert_allclose(rel_ie_draws(permuted), rel_ie_draws(draws)[:, order], rtol=1e-6)


def test_seeds_repeat_and_differ():
    effects = effects_of(simulated(n_pairs=20))
    assert (resample(effects, 5, seed=1) == resample(effects, 5, seed=1)).all()
    assert (resample(effects, 5, seed=1) != resample(effects, 5, seed=2)).any()


# ---- ratios and classes


def test_ratios_of_draws_are_those_of_each_draw():
    draws = resample(effects_of(simulated()), 50)
    ratios = rel_ie_draws(draws)
    assert np.isnan(ratios[:, :, -1]).all()
    np.testing.assert_allclose(ratios[:, :, :-1].sum(1), 1, rtol=1e-5)
    by_hand = np.abs(draws) / np.abs(draws).sum(1, keepdims=True).clip(1e-30)
    np.testing.assert_allclose(ratios[:, :, :-1], by_hand[:, :, :-1], rtol=1e-5)
    total = np.abs(draws).sum(2)
    corrected = by_hand / total[:, :, None]
    corrected /= corrected.sum(1, keepdims=True).clip(1e-30)
    np.testing.assert_allclose(
        rel_ie_draws(draws, total=total)[:, :, :-1], corrected[:, :, :-1], rtol=1e-5
    )
    np.testing.assert_allclose(rel_ie_draws(draws, total=[2, 2, 2]), ratios, rtol=1e-5)


@given(
    arrays(np.float32, (9, 2, 3), elements=st.floats(-9, 9, width=32) | st.just(np.nan)),
    st.floats(0.01, 0.99),
)
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_intervals_are_quantiles(draws, level):
    expected = np.nanquantile(draws.astype(float), [0.5 - level / 2, 0.5 + level / 2], axis=0)
    np.testing.assert_allclose(interval(draws, level), expected, rtol=1e-5, atol=1e-5)


def test_intervals_leave_undefined_draws_out():
    draws = np.array([[0.0, np.nan], [1.0, np.nan], [np.nan, np.nan], [2.0, np.nan]])
    low, high = interval(draws, 0.5)
    np.testing.assert_allclose([low[0], high[0]], [0.5, 1.5])
    assert np.isnan(low[1]) and np.isnan(high[1])


@pytest.mark.parametrize("n", [2, 3])
def test_without_noise_the_classes_are_those_of_the_point(n):
    effect = np.random.default_rng(n).exponential(size=(n, 300)) ** 2
    effect[:, 0] = 0
    ratios = rel_ie(effect)
    draws = np.repeat(ratios[None], 5, axis=0)
    point, sure = classify(ratios, NAMES[:n]), classify_draws(draws, NAMES[:n])
    assert (sure["probability"] == 1).all() and len(point["label"].unique()) > n - 1
    assert sure[["feature", "label", "members"]].equals(point)
    assert (sure["label"] == sure["candidate"]).all()
    for c, name in enumerate(NAMES[:n]):
        np.testing.assert_allclose(sure[f"low_{name}"], ratios[c])
        np.testing.assert_allclose(sure[f"high_{name}"], ratios[c])
    path, steady = trajectory(ratios, NAMES[:n]), trajectory_draws(draws, NAMES[:n])
    assert all(
        path[k].equals(steady[k]) and (steady[f"{k}_probability"] == 1).all()
        for k in ("onset", "end", "peak")
    )
    np.testing.assert_allclose(steady["centre_of_mass_low"], path["centre_of_mass"])


def test_a_class_is_decided_by_the_share_of_draws_that_give_it():
    late, both, other_two, none = [0.1, 0.1, 0.8], [0.1, 0.4, 0.5], [0.4, 0.1, 0.5], [np.nan] * 3
    latents = [
        [late] * 96 + [both] * 4,  # decided
        [late] * 94 + [both] * 6,  # not at 95 %
        [both] * 60 + [other_two] * 40,  # the label is sure, the members are not
        [none] * 97 + [late] * 3,
    ]
    draws = np.array(latents).transpose(1, 2, 0)
    table = classify_draws(draws, NAMES)
    assert table["label"].tolist() == ["specific", "undecided", "undecided", "inactive"]
    assert table["candidate"].tolist() == ["specific", "specific", "shared", "inactive"]
    assert table["members"].tolist() == [("late",), ("late",), ("middle", "late"), ()]
    np.testing.assert_allclose(table["probability"], [0.96, 0.94, 0.60, 0.97])
    assert classify_draws(draws, NAMES, level=0.9)["label"][1] == "specific"
    point = np.array([late, both, other_two, late]).T  # what the draws do not follow is undecided
    table = classify_draws(draws, NAMES, point=point)
    assert table["label"].tolist() == ["specific", "undecided", "undecided", "undecided"]
    np.testing.assert_allclose(table["probability"], [0.96, 0.06, 0.40, 0.03])


def test_noise_is_called_specific_by_the_point_and_undecided_by_the_draws():
    """Of two independent normal effects around 0, one is 7/3 of the other with 2 (1 - 2 atan(7/3) /
    pi) = 0.516.
    """
    values = np.random.default_rng(3).normal(size=(2, 100, 1500))
    effects = effects_of(values)
    point = rel_ie(effects.mean, inactive_below=0)
    table = classify_draws(rel_ie_draws(resample(effects, 400), 0), NAMES[:2], point=point)
    assert (table["candidate"] == "specific").mean() == pytest.approx(0.516, abs=0.05)
    assert (table["label"] == "undecided").mean() > 0.98


def test_trajectories_of_many_checkpoints():
    early, late = [0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.2, 0.6]
    draws = np.array(
        [[early, late]] * 70 + [[late, late]] * 20 + [[late, [np.nan] * 4]] * 10
    ).swapaxes(1, 2)
    table = trajectory_draws(draws, list("abcd"))
    assert table["peak"].tolist() == ["a", "d"] and table["onset"].tolist() == ["a", "d"]
    np.testing.assert_allclose(table["peak_probability"], [0.7, 0.9])
    np.testing.assert_allclose(table["centre_of_mass_low"], [0.7, 2.3])
    np.testing.assert_allclose(table["centre_of_mass_high"], [2.3, 2.3])
    table = trajectory_draws(draws, list("abcd"), point=np.array([late, [np.nan] * 4]).T)
    assert table["peak"].fillna("").tolist() == ["d", ""]
    np.testing.assert_allclose(table["end_probability"], [0.3, 0.1])


def test_a_task_without_effects_has_zero_draws_and_only_inactive_latents():
    draws = resample(effects_of(np.zeros((2, 5, 3))), 10)
    assert draws.shape == (10, 2, 3) and not draws.any()
    assert set(classify_draws(rel_ie_draws(draws), NAMES[:2])["label"]) == {"inactive"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, d: resample(e, clusters=[0, 1]), r"one label for each of the 4 pairs"),
        (lambda e, d: resample(e, clusters=["a"] * 4), "at least 2"),
        (lambda e, d: resample(effects_of(np.ones((2, 1, 3)))), "single one"),
        (lambda e, d: resample(e, n_draws=0), "n_draws=0"),
        (lambda e, d: interval(d, 95), "level=95"),
        (lambda e, d: rel_ie_draws(d[0]), r"\[draws, checkpoints, latents\]"),
        (lambda e, d: classify_draws(d, NAMES[:2]), "rel_ie_draws"),
        (lambda e, d: classify_draws(rel_ie_draws(d), NAMES), "3 names"),
        (lambda e, d: classify_draws(rel_ie_draws(d), NAMES[:2], level=1), "level=1"),
        (lambda e, d: classify_draws(np.full((5, 4, 2), 0.25), list("abcd")), "trajectory"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    effects = effects_of(simulated(n=2, n_pairs=4))
    with pytest.raises(ValueError, match=message):
        call(effects, resample(effects, 5))


# ---- what the sentences decide, of so many latents


def is_decided(table):
    return ~table["label"].isin(["undecided", "inactive"])


def nothing_but_noise(rng, kind, n_groups=60, h=150):
    """Effects that are swapped at random per group, larger at a later checkpoint."""
    shape = (3, 4 * n_groups, h)
    scale = np.array([0.1, 0.4, 2])[:, None, None]
    values = {
        "normal": lambda: rng.normal(size=(1, *shape[1:])) + rng.normal(size=shape),
        "skewed": lambda: rng.exponential(size=shape) ** 2,
        "seldom": lambda: rng.normal(size=shape) * (rng.random((1, *shape[1:])) < 0.03),
        "by group": lambda: np.repeat(rng.standard_t(3, size=(3, n_groups, h)), 4, axis=1),
        "together": lambda: rng.normal(size=(*shape[:2], 2)) @ rng.normal(size=(3, 2, h)),
    }[kind]()
    swapped = np.repeat(rng.choice([-1, 1], size=n_groups), 4)
    return scale * values * swapped[:, None], np.repeat(np.arange(n_groups), 4)


@pytest.mark.parametrize("kind", ["normal", "skewed", "seldom", "by group", "together"])
def test_where_nothing_is_there_next_to_nothing_is_decided(kind):
    rng = np.random.default_rng(5)
    tables = [decide(*nothing_but_noise(rng, kind)) for _ in range(40)]
    # a rate of 5 % is one run in twenty in which anything is decided at all
    assert sum(is_decided(table).any() for table in tables) <= 5
    single = np.concatenate([table["p"] for table in tables])
    assert (single <= 0.05).mean() <= 0.05
    assert (single <= 0.005).mean() <= 0.01


@pytest.mark.parametrize("truth", [(0.7, 0.2, 0.1), (0.4, 0.3, 0.3), (0.3, 0.6, 0.1), (1, 0, 0)])
@pytest.mark.parametrize("n_groups", [10, 60])
def test_at_the_border_of_a_class_one_test_is_wrong_in_twenty(truth, n_groups):
    """Each truth lies on the border of a class (the last: of having an effect elsewhere)."""
    rng = np.random.default_rng(0)
    shape = (3, n_groups, 4000)
    noise = 0.6 * (rng.normal(size=(1, *shape[1:])) + rng.normal(size=shape))
    table = decide(np.array(truth)[:, None, None] + noise, inactive_below=0)
    wrong = table["members"].map(lambda who: who != ("0",) or truth[0] < 1)
    assert ((table["p"] <= 0.05) & wrong).mean() <= 0.05


def test_what_is_plain_is_decided_and_its_class_is_that_of_the_point():
    rng = np.random.default_rng(2)
    ratios = rng.dirichlet([0.6] * 3, 400).T
    values = ratios[:, None] * rng.choice([-1, 1], size=(3, 1, 400))
    values = values + 0.03 * rng.normal(size=(3, 80, 400))
    values[:, :, 0] = 0
    effects = effects_of(values)
    table = decide(effects, inactive_below=0)
    point = classify(rel_ie(effects.mean, 0), effects.names)
    assert (table["candidate"] == point["label"]).all()
    assert (table["members"] == point["members"]).all()
    assert table["label"][0] == "inactive" and table["p"][0] == 1
    sure = is_decided(table)
    assert sure.mean() > 0.7
    assert (table["label"][sure] == table["candidate"][sure]).all()
    # and the truth agrees
    truth = classify(ratios, effects.names)
    wrong = (table["candidate"] != truth["label"]) | (table["members"] != truth["members"])
    assert (wrong & sure).sum() <= 0.05 * sure.sum()


def test_its_bounds_are_those_of_classify():
    ratios = np.array([[SPECIFIC + 1e-9, 1 - SPECIFIC - 1e-9], [SHARED, 1 - SHARED]]).T
    assert members(ratios).sum(0).tolist() == [1, 2]


def test_an_effect_counts_only_beyond_random_directions():
    values = np.random.default_rng(0).normal(1, 0.1, (2, 50, 3)) * [1, 0.5, 0.1]
    null = effects_of(np.linspace(-0.8, 0.8, 101) * np.ones((2, 4, 101)))
    threshold = null_threshold([null, null])
    np.testing.assert_allclose(threshold, 0.8 * 0.95, atol=0.02)
    np.testing.assert_allclose(null_threshold(null.mean), threshold, atol=0.01)
    for either in ([null, null], null, threshold):
        table = decide(values, null=either)
        assert table["label"].tolist() == ["shared", "undecided", "undecided"]
        assert table["beyond_null"].tolist() == [True, False, False]
    assert (decide(values)["label"] == "shared").all()


def test_copies_of_a_pair_decide_nothing_more():
    values = 0.3 + simulated(n=3, n_pairs=60, h=40)
    once = decide(values, names=NAMES)
    twice = np.repeat(values, 2, axis=1)
    again = decide(twice, np.arange(120) // 2, names=NAMES)
    np.testing.assert_allclose(once["p"], again["p"], rtol=1e-6)
    assert (decide(twice, names=NAMES)["p"] <= again["p"]).all()


def test_order_of_checkpoints_and_signs_do_not_matter():
    values = simulated(n=3, n_pairs=40, h=60)
    first = decide(values, names=NAMES)
    order = [2, 0, 1]
    turned = decide(-values[order], names=[NAMES[c] for c in order])
    np.testing.assert_allclose(first["q"], turned["q"], rtol=1e-9)
    assert first["label"].equals(turned["label"])
    assert [set(who) for who in first["members"]] == [set(who) for who in turned["members"]]


def test_of_many_checkpoints_the_peak_is_decided():
    values = np.random.default_rng(0).normal(0, 0.1, (5, 40, 3))
    values[3, :, 0] += 1
    values[[1, 2], :, 1] -= 1  # two alike
    table = decide(values, names=list("abcde"))
    assert table["candidate"].tolist()[:2] == ["peak", "peak"]
    assert table["label"].tolist()[:2] == ["peak", "undecided"]
    assert table["members"][0] == ("d",)


@given(arrays(float, st.integers(1, 30), elements=st.floats(0, 1)))
def test_false_discovery_rates_are_scipys(p):
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p), rtol=1e-9)


@pytest.mark.parametrize("df", [3, 10, 60, 200])
def test_the_tail_of_student(df):
    for t in (-4, -1, 0, 0.5, 2, 3, 5, 7):
        assert student_tail(2 * t, 2, df) == pytest.approx(student.sf(t, df), rel=0.15)
    assert student_tail(0.1, 0, df) == 0 and student_tail(0, 0, df) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: decide(v, rate=5), "rate=5"),
        (lambda v: decide(v, np.zeros(30)), r"1 group\(s\)"),
        (lambda v: decide(v[:1]), r"1 checkpoint\(s\)"),
        (lambda v: decide(v, names=["a"]), "1 names for 3"),
        (lambda v: decide(v, null=np.ones(2)), "random directions at the same ones"),
    ],
)
def test_decide_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(simulated(n=3, n_pairs=30))


# ---- the figure


@pytest.mark.parametrize("n", [2, 3, 5])
def test_interval_plot_draws_each_interval_and_marks_the_undecided(n):
    names = [f"step{c}" for c in range(n)]
    effects = effects_of(simulated(n=n, n_pairs=50))
    ratios = rel_ie_draws(resample(effects, 50))
    low, high = interval(ratios)
    ax = interval_plot(rel_ie(effects.mean), low, high, [3, 0, 2], names, {0}, ratios=True)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["#3", "#0 ?", "#2"]
    drawn = [
        [tuple(s[:, 0]) for s in c.get_segments()]
        for c in ax.collections
        if hasattr(c, "get_segments")
    ]
    inside = [
        c.get_facecolor()[:, :3].tolist() for c in ax.collections if not hasattr(c, "get_segments")
    ]
    colors = [list(color[:3]) for color in plots.checkpoint_colors(names).values()]
    for dots, color in zip(inside, colors, strict=True):
        assert dots[1] == [1, 1, 1] and dots[0] == dots[2] == pytest.approx(color, abs=0.01)
    np.testing.assert_allclose(drawn, np.stack([low, high], -1)[:, [3, 0, 2]], rtol=1e-6)
    assert len(ax.lines) == (2 if n <= 3 else 0) and "undecided" in ax.get_xlabel()
    ax.figure.canvas.draw()
    ax = interval_plot(effects.mean, *interval(resample(effects, 50)), [1], names)
    assert len(ax.lines) == 1 and "logits" in ax.get_xlabel() and "undecided" not in ax.get_xlabel()
    with pytest.raises(ValueError, match="no feature 6"):
        interval_plot(effects.mean, low, high, [6], names)


def test_twins_are_the_pairs_of_the_same_words():
    pairs = ctt.load_suite("tiny").pairs("agreement/simple", split="find")
    label = twins(pairs)
    for column in ("head", "attractor", "verb"):
        assert pairs.table.groupby(label)[column].nunique(dropna=False).max() == 1
    assert (
        len(set(label))
        == len(pairs.table[["head", "attractor", "verb"]].drop_duplicates())
        < len(pairs)
    )
    assert pairs.table.assign(label=label).groupby("group")["label"].nunique().max() == 1
    bare = replace(pairs, table=pairs.table[["verb"]])
    assert (twins(bare, words=["nothing"]) == np.arange(len(pairs))).all()
