"""RelIE, RelDec, pairwise ratios, classes and trajectories."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ctt_helpers.metrics import (
    activation_similarity,
    classify,
    decoder_similarity,
    match_features,
    pairwise,
    rel_dec,
    rel_ie,
    trajectory,
)

NAMES = ("early", "middle", "late")
per_latent = st.tuples(st.integers(2, 6), st.integers(1, 8)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-1e6, 1e6, allow_subnormal=False))
)


@given(per_latent)
def test_ratios_add_up_to_one_or_are_undefined(ie):
    ratios = rel_ie(ie)
    inactive = np.isnan(ratios)
    assert (inactive.any(0) == inactive.all(0)).all()
    summed = np.abs(ie).sum(0)
    np.testing.assert_array_equal(inactive[0], (summed < 1e-3 * summed.sum()) | (summed == 0))
    np.testing.assert_allclose(ratios[:, ~inactive[0]].sum(0), 1)


@given(per_latent, st.randoms(use_true_random=False))
def test_permuting_the_checkpoints_permutes_everything(ie, random):
    order = random.sample(range(len(ie)), len(ie))
    np.testing.assert_allclose(rel_ie(ie[order]), rel_ie(ie)[order])
    np.testing.assert_allclose(rel_dec(np.abs(ie)[order]), rel_dec(np.abs(ie))[order])
    np.testing.assert_array_equal(pairwise(ie[order]), pairwise(ie)[np.ix_(order, order)])


@given(per_latent, st.sampled_from([1e-9, 0.25, 3.0, 1e12, -1.0]))
def test_units_do_not_matter(ie, factor):
    for function in (lambda v: rel_ie(v, inactive_below=0), pairwise):
        np.testing.assert_allclose(function(factor * ie), function(ie), rtol=1e-9, atol=1e-12)


@given(per_latent)
def test_pairs_are_complementary(v):
    p = pairwise(v)
    n, h = v.shape
    assert p.shape == (n, n, h)
    zero = (v[:, None] == 0) & (v[None] == 0)
    np.testing.assert_array_equal(np.isnan(p), zero)
    np.testing.assert_allclose((p + p.swapaxes(0, 1))[~zero], 1)
    np.testing.assert_allclose(
        pairwise(rel_ie(v, 0)), p, rtol=1e-9, atol=1e-12
    )  # ratios have the ratios of effects


def test_numbers_worked_out_by_hand():
    ie = np.array([[1.0, 0.0, 0.00001, 0.0], [-3.0, 2.0, 0.00002, 0.0]])
    ratios = rel_ie(ie)
    np.testing.assert_allclose(ratios[:, :2], [[0.25, 0.0], [0.75, 1.0]])
    assert np.isnan(ratios[:, 2:]).all()  # 3e-5 of 6: below 1e-3
    np.testing.assert_allclose(rel_ie(ie, inactive_below=1e-6)[:, 2], [1 / 3, 2 / 3])
    triplet = np.array([[1.0], [3.0], [-1.0]])  # A, B, C
    p = pairwise(triplet)
    assert (p[0, 1, 0], p[1, 2, 0], p[0, 2, 0], p[1, 1, 0]) == (0.75, 0.25, 0.5, 0.5)


def test_rel_dec_leaves_dead_latents_out_and_takes_tensors():
    norms = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]], requires_grad=True)
    ratios = rel_dec(norms, dead=torch.tensor([False, True, False]))
    np.testing.assert_allclose(ratios[:, 0], [0.25, 0.75])
    assert np.isnan(ratios[:, 1:]).all()


def test_classes_of_three_checkpoints():
    ratios = np.array(
        [
            [0.71, 0.70, 0.40, 0.34, 0.60, np.nan],
            [0.20, 0.05, 0.35, 0.33, 0.25, np.nan],
            [0.09, 0.25, 0.25, 0.33, 0.15, np.nan],
        ]
    )
    table = classify(ratios, NAMES)
    assert table["label"].tolist() == ["specific", "other", "shared", "shared", "other", "inactive"]
    assert table["members"].tolist() == [("early",), (), ("early", "middle"), NAMES, (), ()]
    assert table["feature"].tolist() == list(range(6))


def test_classes_of_two_checkpoints():
    table = classify(np.array([[0.7, 0.5, 0.29], [0.3, 0.5, 0.71]]), NAMES[:2])
    assert table["label"].tolist() == ["shared", "shared", "specific"]
    assert table["members"].tolist() == [NAMES[:2], NAMES[:2], ("middle",)]


def test_trajectory_of_many_checkpoints():
    names = [f"step{i}" for i in range(5)]
    ratios = np.array(
        [[0, 0, 0.2, 0.6, 0.2], [0.5, 0.25, 0.0, 0.25, 0.0], [np.nan] * 5, [0.2] * 5]
    ).T
    table = trajectory(ratios, names)
    assert table["onset"].fillna("").tolist() == ["step3", "step0", "", "step0"]
    assert table["end"].fillna("").tolist() == ["step3", "step3", "", "step4"]
    assert table["peak"].fillna("").tolist() == ["step3", "step0", "", "step0"]
    np.testing.assert_allclose(table["centre_of_mass"], [3.0, 1.0, np.nan, 2.0])


@given(per_latent)
def test_the_peak_lies_between_onset_and_end(ie):
    names = [f"{c}" for c in range(len(ie))]
    table = trajectory(rel_ie(ie), names).dropna()
    assert (table["onset"] <= table["peak"]).all() and (table["peak"] <= table["end"]).all()
    assert (
        (table["centre_of_mass"] >= -1e-9) & (table["centre_of_mass"] <= len(ie) - 1 + 1e-9)
    ).all()


@given(per_latent)
def test_correction_divides_by_what_a_checkpoint_does_in_all(ie):
    total = np.arange(1.0, len(ie) + 1)
    raw, corrected = rel_ie(ie), rel_ie(ie, total=total)
    np.testing.assert_array_equal(
        np.isnan(raw), np.isnan(corrected)
    )  # judged before the correction
    active = ~np.isnan(raw[0])
    size = np.abs(ie[:, active])
    size = (
        size / size.max(0) / total[:, None]
    )  # the largest divided out, so that nothing underflows
    np.testing.assert_allclose(corrected[:, active], size / size.sum(0))
    np.testing.assert_allclose(rel_ie(ie, total=np.full(len(ie), 7.0)), raw)


def test_a_latent_that_grows_with_the_rest_is_late_raw_and_shared_corrected():
    ie = np.array([[1.0, 1, 2], [10, 30, 0]])  # the second checkpoint does ten times as much
    total = np.abs(ie).sum(1)
    np.testing.assert_allclose(rel_ie(ie)[1], [10 / 11, 30 / 31, 0])
    np.testing.assert_allclose(rel_ie(ie, total=total)[1], [1 / 2, 3 / 4, 0])
    scaled = ie * np.array([[1.0], [50.0]])  # units of a checkpoint drop out
    np.testing.assert_allclose(rel_ie(scaled, 0, np.abs(scaled).sum(1)), rel_ie(ie, 0, total))


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(("specific", "shared"), [(0.7, 0.3), (0.55, 0.2)])
def test_classes_follow_the_rule_word_for_word(n, specific, shared):
    names, random = NAMES[:n], np.random.default_rng(n)
    ratios = random.dirichlet(np.full(n, 0.7), 400).T
    table = classify(ratios, names, specific, shared)
    for (_, _, label, members), ratio in zip(table.itertuples(), ratios.T, strict=True):
        at_least = [name for name, r in zip(names, ratio, strict=True) if r >= shared]
        if ratio.max() > specific:
            assert (label, members) == ("specific", (names[ratio.argmax()],))
        elif len(at_least) > 1:
            assert (label, members) == ("shared", tuple(at_least))
        else:
            assert (label, members) == ("other", ())


def test_shuffled_latents_are_found_again_by_decoder_and_by_activation():
    random = np.random.default_rng(0)
    order = random.permutation(12)
    decoder, f = (
        random.normal(size=(12, 3, 8)),
        random.exponential(size=(200, 12)).astype(np.float32),
    )
    decoder[4], f[:, 4] = 0, 0  # a dead latent
    by_decoder = decoder_similarity(torch.tensor(decoder, requires_grad=True), 3 * decoder[order])
    by_activation = activation_similarity(f, torch.from_numpy(2 * f[:, order]))
    flat = decoder.reshape(12, -1)
    a, b = 2, 7
    cosine = flat[a] @ flat[order[b]] / np.linalg.norm(flat[a]) / np.linalg.norm(flat[order[b]])
    assert by_decoder[a, b] == pytest.approx(cosine)
    assert by_activation[a, b] == pytest.approx(
        np.corrcoef(f[:, a], f[:, order[b]])[0, 1], abs=1e-5
    )
    for similarity in (by_decoder, by_activation):
        assert similarity.shape == (12, 12) and (similarity[4] == 0).all()
        table = match_features(similarity).set_index("feature")
        assert table["match"].isna()[4] and not table["mutual"][4]
        alive = table.drop(index=4)
        assert (order[alive["match"].to_numpy(int)] == alive.index).all() and alive["mutual"].all()
        np.testing.assert_allclose(alive["similarity"], 1, rtol=1e-5)


def test_matches_may_be_one_sided_or_too_weak():
    similarity = np.array([[0.9, 0.1], [0.8, 0.2], [-0.5, -0.1]])
    table = match_features(similarity)
    assert table["match"].tolist() == [0, 0, pd.NA] and table["mutual"].tolist() == [
        True,
        False,
        False,
    ]
    np.testing.assert_allclose(table["similarity"], [0.9, 0.8, -0.1])
    assert match_features(similarity, at_least=0.85)["match"].tolist() == [0, pd.NA, pd.NA]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: rel_ie(np.ones((2, 3)), total=[1.0, 0.0]),
            "above 0 for each of the 2 checkpoints",
        ),
        (lambda: rel_ie(np.ones((2, 3)), total=[1.0, -2.0]), "above 0"),
        (lambda: rel_ie(np.ones((2, 3)), total=[1.0, np.nan]), "above 0"),
        (lambda: rel_ie(np.ones((2, 3)), total=np.ones(3)), "for each of the 2 checkpoints"),
        (lambda: match_features(np.ones(3)), r"\[latents_a, latents_b\]"),
        (lambda: match_features([[np.nan]]), "finite"),
        (lambda: decoder_similarity(np.ones((2, 3, 4)), np.ones((2, 2, 4))), "same checkpoints"),
        (lambda: activation_similarity(np.ones((5, 2)), np.ones((4, 2))), "same tokens"),
        (lambda: rel_ie(np.ones(4)), r"shape \(4,\).*checkpoints, latents\]"),
        (lambda: rel_ie(np.ones((1, 4))), "at least two checkpoints"),
        (lambda: rel_ie([[1.0, np.nan], [1, 1]]), "ie holds values that are not finite"),
        (lambda: rel_ie(np.ones((2, 2)), inactive_below=1), "inactive_below=1"),
        (lambda: rel_dec(-np.ones((2, 2))), "use rel_ie"),
        (lambda: rel_dec(np.ones((2, 2)), dead=[0, 1]), r"an array \[latents\] of True and False"),
        (lambda: rel_dec(np.ones((2, 2)), dead=[True]), "each of the 2 latents"),
        (lambda: pairwise([[np.inf], [1.0]]), "not finite"),
        (lambda: classify(np.full((4, 2), 0.25), list("abcd")), "trajectory"),
        (lambda: classify(np.full((2, 2), 0.5), NAMES), r"3 names .* shape \(2, 2\)"),
        (lambda: classify([[3.0], [1.0]], NAMES[:2]), r"latent 0 are \[3.0, 1.0\].*rel_ie"),
        (lambda: classify([[-0.5], [1.5]], NAMES[:2]), "shares that add up to 1"),
        (lambda: classify([[0.5], [np.nan]], NAMES[:2]), "all NaN"),
        (lambda: classify(np.full((2, 2), 0.5), NAMES[:2], specific=0.4), "specific=0.4"),
        (lambda: trajectory([[3.0], [1.0]], NAMES[:2]), "add up to 1"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_importing_the_metrics_loads_no_model_code():
    code = (
        "import sys, ctt_helpers.metrics; "
        "print([m for m in ('torch', 'transformers', 'nnsight') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
