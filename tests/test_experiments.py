"""The experiments: measures against independent ones, controls by construction, their tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import ctt_helpers as ctt
from benchmarks import report
from ctt_helpers.metrics import decoder_similarity, match_features, rank_correlation
from ctt_helpers.pairs import twins
from experiments import causes, estimators, nulls, planted, prediction, scaling, seeds
from experiments.__main__ import PARTS, TITLE, main
from experiments.context import Context, count_specific, decide, labels

TASKS = ["agreement/simple", "agreement/pp"]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    suite = ctt.load_suite("tiny")
    return Context(
        suite=suite,
        ckpts=suite.checkpoints(suite.default_triplet, device="cpu"),
        crosscoder=ctt.Crosscoder.load(suite.crosscoder_folder),
        tasks=TASKS,
        n_pairs=12,
        n_draws=40,
        work=tmp_path_factory.mktemp("experiments"),
    )


def test_twins_hold_a_sentence_and_its_mirror_image(context):
    for task in TASKS:
        pairs = context.pairs(task, "find")
        number = pairs.table["head_number"].to_numpy()
        group = twins(pairs)
        for label in set(group):
            both = number[group == label]
            assert (both == "sg").sum() == (both == "pl").sum() > 0


# ---- prediction


@given(st.integers(0, 2**32 - 1))
def test_rank_correlation_is_scipys_ties_included(seed):
    a, b = np.random.default_rng(seed).integers(0, 5, (2, 4, 12)).astype(float)
    a[:, 0], b[:, 0] = 9, -1  # never constant
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), expected, atol=1e-12)


def test_a_perfect_guess_is_ahead_and_order_of_checkpoints_does_not_matter():
    rng = np.random.default_rng(0)
    effects = rng.random((3, 30)) * np.array([[1.0], [2.0], [3.0]])
    truth = effects / effects.sum(0)
    draws = np.abs(effects + 0.1 * rng.standard_normal((50, 3, 30)))
    draws[:, :, 4] = 0  # a latent that no drawn sentence has
    guesses = {"RelIE": truth, "RelDec": rng.dirichlet(np.ones(3), 30).T}
    case = prediction.Case(guesses=guesses, target=truth, draws=draws)
    first, second = prediction.compare("a task", case, ["a", "b", "c"])
    assert first["rank correlation"] == pytest.approx(1)
    assert first["error"] == 0
    assert first["rank correlation - RelDec low"] > 0 > first["error - RelDec high"]
    assert second["rank correlation - RelDec"] == second["rank correlation - RelDec high"] == 0

    order = [2, 0, 1]
    turned = prediction.Case(
        guesses={name: guess[order] for name, guess in guesses.items()},
        target=truth[order],
        draws=draws[:, order],
    )
    again = prediction.compare("a task", turned, ["c", "a", "b"])
    for before, after in zip((first, second), again, strict=True):
        assert {key: pytest.approx(value) for key, value in before.items()} == after


def test_latents_are_drawn_with_all_their_items():
    items = np.array([7, 7, 2, 9, 2])
    for drawn in prediction.latents_drawn(items, 20, seed=0):
        times = np.bincount(drawn, minlength=5)
        assert times[0] == times[1]
        assert times[2] == times[4]
        assert times[0] + times[2] + times[3] == 3


def test_intervals_over_latents_widen_with_clusters():
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.ones(3), 40).T
    guess = rng.dirichlet(np.ones(3), 40).T
    draws = np.broadcast_to(truth, (400, *truth.shape))  # the same sentences throughout
    names = list("abc")

    def row_of_the_better(times: int, latents=None) -> dict:
        case = prediction.Case(
            guesses={
                "RelIE": np.tile(0.5 * (truth + guess), times),
                "RelDec": np.tile(guess, times),
            },
            target=np.tile(truth, times),
            draws=np.tile(draws, times),
            latents=latents,
        )
        return prediction.compare("", case, names)[0]

    low, high = "rank correlation low, latents", "rank correlation high, latents"
    once = row_of_the_better(1)
    assert once["rank correlation low"] == pytest.approx(once["rank correlation high"])
    # four tasks that are one and the same
    alone = row_of_the_better(4)
    together = row_of_the_better(4, np.tile(np.arange(40), 4))
    assert [together[low], together[high]] == pytest.approx([once[low], once[high]])
    assert together[high] - together[low] > 1.5 * (alone[high] - alone[low])


# ---- controls


def test_swapped_labels_flip_effects_as_recomputation_does(context):
    pairs = context.pairs(TASKS[1], "find")
    swapped = np.arange(12) % 3 == 0
    turned = nulls.flipped(context.effects(TASKS[1], "find"), swapped)
    again = ctt.indirect_effects(context.crosscoder, context.ckpts, nulls.swap(pairs, swapped))
    torch.testing.assert_close(
        turned.per_pair.to_dense(), again.per_pair.to_dense(), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(turned.mean, again.mean, rtol=1e-4, atol=1e-5)
    all_swapped = nulls.swap(pairs, np.ones(12, bool))
    accuracy = [ctt.accuracy(context.ckpts[2], some) for some in (pairs, all_swapped)]
    assert sum(accuracy) == pytest.approx(1)


def test_a_suite_with_one_checkpoint_under_two_names(context, tmp_path):
    last = context.names[-1]
    suite = nulls.copied_suite(context, [last, last], tmp_path / "twins")
    assert suite.revisions == [last, f"{last} again"]
    ids = context.pairs(TASKS[0], "find").input_ids
    expected = ctt.residual_stream(context.ckpts[2], ids)
    for twin in suite.checkpoints(device="cpu"):
        torch.testing.assert_close(ctt.residual_stream(twin, ids), expected)


class Symmetric(Context):
    """Its crosscoders are not trained, but made to treat the last two checkpoints alike."""

    def train(self, ckpts, name, seed=0):
        crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, 40, sparsity="l1", seed=seed)
        with torch.no_grad():
            crosscoder.W_dec[:, -1] = crosscoder.W_dec[:, -2]
        return crosscoder.eval()


@pytest.mark.filterwarnings("ignore:.*hold the same weights")
def test_nothing_is_specific_to_one_of_two_equal_checkpoints(context, monkeypatch):
    monkeypatch.setattr(nulls, "N_PAIRS", 4)
    symmetric = Symmetric(
        suite=context.suite,
        ckpts=context.ckpts,
        crosscoder=context.crosscoder,
        tasks=context.tasks,
        n_draws=context.n_draws,
        work=context.work,
    )
    table = nulls.twin_checkpoints(symmetric)
    assert len(table) == 8
    assert (table["active latents"] > 20).all()
    assert (table[["specific to one twin", "P below 0.3 or above 0.7"]] == 0).all(axis=None)
    np.testing.assert_allclose(table[["P mean", "P smallest", "P largest"]], 0.5, atol=1e-4)


def test_what_sentences_do_not_settle_is_undecided(context):
    effects = context.effects(TASKS[1], "find")
    point = np.broadcast_to(effects.mean, (40, *effects.mean.shape))
    assert "undecided" not in decide(effects, point)
    noise = np.random.default_rng(0).standard_normal(point.shape)
    assert (decide(effects, noise) == "undecided").mean() > 0.9


def test_of_four_checkpoints_the_peak_is_the_label():
    ratios = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [np.nan] * 4]).T
    words = labels(ratios, list("abcd"))
    assert words.tolist() == ["peak d", "peak a", "inactive"]
    assert count_specific(words, ["a", "b"]) == 1
    words = labels(np.array([[0.8, 0.2], [0.5, 0.5], [np.nan] * 2]).T, list("ab"))
    assert words.tolist() == ["specific a", "shared a b", "inactive"]


def test_random_directions_do_less_than_the_trained_ones(context, monkeypatch):
    monkeypatch.setattr(nulls, "N_PAIRS", 12)
    table = nulls.random_dictionary(replace(context, tasks=TASKS[1:]))
    trained, random = table[f"sum of |IE| {context.names[-1]}"]
    assert random < trained


def test_control_groups_leave_the_helpers_out(context):
    active, size = np.arange(30), np.ones(30)
    group = [1, 5, 8]
    groups = causes.other_groups(group, active, 0)
    groups += causes.matched_groups(group, active, 0, size)
    assert len(groups) == 2 * causes.N_CONTROLS
    assert all(not {*other} & {*group} for other in groups)
    # too few are left to draw from
    assert causes.other_groups(list(range(16)), active, 0) == []
    assert causes.matched_groups(list(range(11)), active, 0, size) == []


# ---- other seeds


def test_a_reordered_dictionary_is_stable_all_over(context):
    crosscoder, task = context.crosscoder, TASKS[1]
    order = np.random.default_rng(1).permutation(crosscoder.n_latents)
    W_dec = crosscoder.W_dec.detach()
    ie = context.effects(task, "find").mean
    rel_dec = ctt.rel_dec(crosscoder.decoder_norms())
    first = seeds.Seed("a", {task: ie, TASKS[0]: ie}, rel_dec)
    reordered = seeds.Seed(
        name="b",
        ie={task: ie[:, order], TASKS[0]: ie[:, order]},
        rel_dec=rel_dec[:, order],
        match=match_features(decoder_similarity(W_dec, W_dec[order])),
    )
    both = [first, reordered]
    found = seeds.stable(both)
    assert len(found.features) > 0.9 * len(order)
    assert (order[found.partners[1]] == found.features).all()

    decided = {task: np.ones(len(order), bool)}
    row = seeds.stability(context, both, decided, "").iloc[0]
    for kind in ("RelIE", "RelDec"):
        assert row[f"{kind}: same class"] == row[f"{kind}: in all"] == 1
        assert row[f"{kind}: by chance"] < 1
        assert row[f"{kind}: rank correlation"] == pytest.approx(1)
    for column in (seeds.DIFFERENCE, f"{seeds.DIFFERENCE} low", f"{seeds.DIFFERENCE} high"):
        assert row[column] == 0

    table = seeds.stable_classes(context, both)
    assert (table[["kept by another seed", "kept by all"]] == 1).all(axis=None)
    counts = table[table["task"] == "pp"].groupby("ratio")["stable latents"].sum()
    assert (counts == row["stable and active"]).all()
    strongest = seeds.stable_latents(context, both)
    assert (strongest["seeds with it"] == 2).all()
    assert (strongest.filter(like=" sd") == 0).all(axis=None)
    told = seeds.stories(context, both, task, TASKS[0])
    assert (told["its rank"] == 1).all()
    assert told["IE step3000"].iloc[0] == ie[-1].max()


def test_the_record_says_whether_trainings_were_reused(context, monkeypatch):
    def make_folder(crosscoder, stream, config, out, device):
        out.mkdir(parents=True)

    fresh = replace(context, work=context.work / "fresh", train_tokens=2000)
    fresh.trainings.clear()
    monkeypatch.setattr(ctt, "train", make_folder)
    fresh.train(context.ckpts, "one")
    (fresh.work / "one" / "train_config.json").touch()
    monkeypatch.setattr(ctt, "train", lambda *args, **kwargs: None)
    fresh.train(context.ckpts, "one")
    assert fresh.trainings == {"anew": 1, "reused": 1}


# ---- estimators


def test_the_frozen_norm_is_linear_and_right_at_the_clean_point(context):
    pairs, model = context.pairs(TASKS[1], "find"), context.ckpts[2]
    # the last block's output goes straight into the norm: there, only the norm is not linear
    last = replace(model, layer=model.n_layers - 1)
    x = ctt.residual_stream(last, pairs.input_ids, pairs.attention_mask)
    plain = ctt.readout_of(last, pairs, x, torch.zeros(model.d_model))
    frozen = estimators.with_frozen_norm(plain, last, pairs)
    right, wrong = model.unembedding.weight[pairs.answers].unbind(1)
    constant = (wrong - right) @ model.final_norm.bias
    torch.testing.assert_close(frozen.clean + constant, plain.clean, rtol=1e-4, atol=1e-4)

    points = torch.tensor([0.5, 1.0])
    half, end = frozen.along(points) - frozen.clean
    torch.testing.assert_close(half, end / 2, rtol=1e-4, atol=1e-4)
    half, end = plain.along(points) - plain.clean
    assert (half - end / 2).abs().max() > 0.1


def test_methods_reach_their_closed_form_on_planted_features(monkeypatch):
    monkeypatch.setattr(planted, "SATURATIONS", (float("inf"), 4.0))
    table = planted.estimators(n_tokens=200)
    assert (table["off_closed_form"] < 1e-5).all()
    linear = table[np.isinf(table["saturation"])]
    np.testing.assert_allclose(linear[["rank_correlation", "same_sign", "size"]], 1)


# ---- scaling


def test_what_latent_scaling_gives_is_found_again_along_its_own_directions(context):
    text = context.validation_text(2000)
    batches = scaling.read(context.ckpts, text)
    found = ctt.latent_scaling(context.crosscoder, batches)
    active = np.flatnonzero(~np.isnan(found.nu_error).any(0))[:20]
    sums = scaling.sums_over(context.crosscoder.requires_grad_(False), batches, active)
    W_dec = context.crosscoder.W_dec.detach().double()
    nu = scaling.nu_elsewhere(active, active, sums, found, W_dec)
    others = scaling.others_of(found, active).numpy()

    def largest(values):
        return np.where(others, values[:, active], -np.inf).max(0)

    np.testing.assert_allclose(nu["nu_reconstruction"], largest(found.nu_reconstruction), rtol=1e-4)
    at = found.strongest[active]
    missed = (found.beta_error - found.written)[:, active] / found.beta_error[at, active]
    expected = np.where(others, missed, -np.inf).max(0)
    np.testing.assert_allclose(nu["missed"], expected, rtol=1e-3, atol=1e-4)


# ---- the command


@pytest.mark.slow
def test_the_command_writes_tables(context, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(causes, "SIZES", (10,))
    monkeypatch.setattr(causes, "N_CONTROLS", 2)
    folders = ["--out", str(tmp_path), "--work", str(tmp_path)]
    sizes = ["--pairs", "12", "--draws", "20"]
    main(["--only", "causes", *sizes, *folders, "--tasks", *TASKS])
    assert str(tmp_path / report.PAGE) in capsys.readouterr().out
    tables = {name: pd.read_csv(tmp_path / f"{name}.csv") for name in causes.TABLES}

    counts = tables["classes"].groupby("task")[["as it comes", "decided"]].sum()
    assert (counts == context.crosscoder.n_latents).all(axis=None)
    assert set(tables["prediction"]["task"]) == {"simple", "pp", "pooled"}
    groups = tables["ablation_groups"]
    row = groups[(groups["task"] == "pp") & (groups["k"] == 10)].iloc[-1]
    helpers = np.argsort(-context.effects(TASKS[1], "find").mean[-1])[:10].tolist()
    test = context.pairs(TASKS[1], "test")
    without = ctt.ablate(context.crosscoder, context.ckpts, test, helpers).iloc[-1]
    assert row["log-prob.: top"] == pytest.approx(-without["effect"], rel=1e-4)
    change = without["accuracy_after"] - without["accuracy_before"]
    assert row["accuracy: top"] == pytest.approx(change, rel=1e-4)
    without_all = ctt.ablate(context.crosscoder, context.ckpts, test, range(512)).iloc[-1]
    assert row["log-prob.: all"] == pytest.approx(-without_all["effect"], rel=1e-4)
    assert groups["accuracy: random"].notna().all()

    page = (tmp_path / report.PAGE).read_text(encoding="utf-8")
    for name, description in causes.TABLES.items():
        assert f"### {name}.csv\n\n{description}\n\n| " in page


def test_every_table_is_described(root):
    for part, about in ctt.files.read_json(root / "experiments/results/machine.json").items():
        assert set(about["tables"]) == set(PARTS[part].TABLES)


# ---- the page


def test_a_table_in_markdown():
    frame = pd.DataFrame(
        {
            "|IE|": [0.123456, -0.0, 1234.5, 999.9],
            "n": [1, 20, 300, 4000],
            "word": ["a", "b|c", "d", "e"],
            "maybe": [1.0, np.nan, 7.08112e-16, np.inf],
        }
    )
    assert report.markdown(frame).splitlines() == [
        "| \\|IE\\| | n | word | maybe |",
        "| ---: | ---: | --- | ---: |",
        "| 0.123 | 1 | a | 1 |",
        "| 0 | 20 | b\\|c |  |",
        "| 1,234 | 300 | d | 7.08e-16 |",
        "| 1,000 | 4,000 | e | inf |",
    ]


def test_the_page_shows_the_parts_that_are_there(tmp_path):
    frame = pd.DataFrame({"what": ["a"], "seconds": [1.5]})
    about = {**report.machine(), "command": "python -m x", "seconds": 3, "trainings": {"anew": 2}}
    report.save(tmp_path, "scaling", {"scaling_seconds": frame}, about)
    page = report.write_tables(tmp_path, TITLE, PARTS).read_text(encoding="utf-8")
    assert page.startswith(f"# {TITLE}\n")
    assert page.count("\n## ") == page.count("\n### ") == 1
    assert "| a | 1.5 |" in page
    assert "Made by `python -m x` in 3 s (trainings: 2 anew) on" in page
