"""Bootstrap of effects, RelIE and classes: closed forms, coverage, invariants; the figure of
intervals.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ctt_helpers as ctt
from ctt_helpers.effects import Effects
from ctt_helpers.metrics import classify, rel_ie, trajectory
from ctt_helpers.notebook import plots
from ctt_helpers.notebook.plots.effects import interval_plot
from ctt_helpers.pairs import twins
from ctt_helpers.uncertainty import (
    classify_draws,
    interval,
    rel_ie_draws,
    resample,
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
    assert (twins(pairs, words=["nothing"]) == np.arange(len(pairs))).all()
