"""The science benchmark: its measures against independent ones, its controls by construction, its page."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

import ctt_helpers as ctt
from benchmarks.science import causes, nulls, page, prediction, seeds
from benchmarks.science.__main__ import PARTS, main
from benchmarks.science.context import Context, decide, spearman, twins
from ctt_helpers.metrics import decoder_similarity, match_features

TASKS = ["agreement/simple", "agreement/pp"]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder)
    return Context(suite, ckpts, crosscoder, TASKS, n_pairs=12, n_draws=40, work=tmp_path_factory.mktemp("science"))


@given(st.integers(0, 2**32 - 1))
def test_rank_correlation_is_scipys_ties_included(seed):
    a, b = np.random.default_rng(seed).integers(0, 5, (2, 4, 12)).astype(float)
    a[:, 0], b[:, 0] = 9, -1  # never constant
    np.testing.assert_allclose(spearman(a, b), [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])


def test_twins_hold_a_sentence_and_its_mirror_image(context):
    for task in TASKS:
        pairs = context.pairs(task, "find")
        group = twins(pairs)
        assert (group[::2] == group[1::2]).all() and len(set(group)) <= len(pairs) // 2
        assert (pairs.table["head_number"].to_numpy()[::2] != pairs.table["head_number"].to_numpy()[1::2]).all()


def test_a_perfect_guess_is_ahead_and_order_of_checkpoints_does_not_matter():
    rng = np.random.default_rng(0)
    effects = rng.random((3, 30)) * np.array([[1.0], [2.0], [3.0]])
    truth = effects / effects.sum(0)
    draws = np.abs(effects + 0.1 * rng.standard_normal((50, 3, 30)))
    draws[:, :, 4] = 0  # a latent that no drawn sentence has
    guesses = {"RelIE": truth, "RelDec": rng.dirichlet(np.ones(3), 30).T}
    first, second = prediction.compare("a task", guesses, truth, draws, ["a", "b", "c"])
    assert first["rank correlation"] == pytest.approx(1) and first["error"] == 0
    assert first["rank correlation - RelDec low"] > 0 > first["error - RelDec high"]
    assert second["rank correlation - RelDec"] == second["rank correlation - RelDec high"] == 0
    order = [2, 0, 1]
    turned = prediction.compare(
        "a task", {k: g[order] for k, g in guesses.items()}, truth[order], draws[:, order], ["c", "a", "b"]
    )
    for before, after in zip((first, second), turned, strict=True):
        assert {k: pytest.approx(v) for k, v in before.items()} == after


def test_intervals_over_latents_do_as_latents_drawn_by_hand_and_widen_with_clusters():
    items = np.array([7, 7, 2, 9, 2])
    for drawn in prediction.latents_drawn(items, 20, seed=0):
        times = np.bincount(drawn, minlength=5)
        assert times[0] == times[1] and times[2] == times[4] and times[0] + times[2] + times[3] == 3
    rng = np.random.default_rng(0)
    truth, guess = rng.dirichlet(np.ones(3), 40).T, rng.dirichlet(np.ones(3), 40).T
    guesses = {"RelIE": 0.5 * (truth + guess), "RelDec": guess}
    draws = np.broadcast_to(truth, (400, *truth.shape))  # the same sentences throughout
    once = prediction.compare("", guesses, truth, draws, list("abc"))[0]
    assert once["rank correlation low"] == pytest.approx(once["rank correlation high"])
    wide = [np.tile(v, 4) for v in (truth, guess)]  # four tasks that are one and the same
    guesses, draws = {"RelIE": 0.5 * (wide[0] + wide[1]), "RelDec": wide[1]}, np.tile(draws, 4)
    alone, together = (
        prediction.compare("", guesses, wide[0], draws, list("abc"), who)[0]
        for who in (None, np.tile(np.arange(40), 4))
    )
    ends = ("rank correlation low, latents", "rank correlation high, latents")
    assert [together[e] for e in ends] == pytest.approx([once[e] for e in ends])
    assert together[ends[1]] - together[ends[0]] > 1.5 * (alone[ends[1]] - alone[ends[0]])


def test_swapped_labels_flip_effects_as_recomputation_does(context):
    pairs, swapped = context.pairs(TASKS[1], "find"), np.arange(12) % 3 == 0
    turned = nulls.flipped(context.effects(TASKS[1], "find"), swapped)
    again = ctt.indirect_effects(context.crosscoder, context.ckpts, nulls.swap(pairs, swapped))
    torch.testing.assert_close(turned.per_pair.to_dense(), again.per_pair.to_dense(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(turned.mean, again.mean, rtol=1e-4, atol=1e-5)
    accuracy = [ctt.accuracy(context.ckpts[2], p) for p in (pairs, nulls.swap(pairs, np.ones(12, bool)))]
    assert sum(accuracy) == pytest.approx(1)


def test_a_suite_with_one_checkpoint_under_two_names(context, tmp_path):
    last = context.names[-1]
    suite = nulls.copied_suite(context, [last, last], tmp_path / "twins")
    assert suite.revisions == [last, f"{last} again"]
    one, other = suite.checkpoints(device="cpu")
    ids = context.pairs(TASKS[0], "find").input_ids
    for twin in (one, other):
        torch.testing.assert_close(ctt.residual_stream(twin, ids), ctt.residual_stream(context.ckpts[2], ids))


class Symmetric(Context):
    """Its crosscoders are not trained, but made to treat the last two checkpoints alike."""

    def train(self, ckpts, name, seed=0):
        crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, 40, sparsity="l1", seed=seed)
        with torch.no_grad():
            crosscoder.W_dec[:, -1] = crosscoder.W_dec[:, -2]
        return crosscoder.eval()


def test_nothing_is_specific_to_one_of_two_equal_checkpoints(context, monkeypatch):
    monkeypatch.setattr(nulls, "N_PAIRS", 4)
    made = {name: getattr(context, name) for name in ("suite", "ckpts", "crosscoder", "tasks", "n_draws", "work")}
    table = nulls.twin_checkpoints(Symmetric(**made))
    assert len(table) == 8 and (table["active latents"] > 20).all()
    assert (table[["specific to one twin", "P below 0.3 or above 0.7"]] == 0).all(None)
    np.testing.assert_allclose(table[["P mean", "P smallest", "P largest"]], 0.5, atol=1e-4)


def test_what_sentences_do_not_settle_is_undecided(context):
    effects = context.effects(TASKS[1], "find")
    point = np.broadcast_to(effects.mean, (40, *effects.mean.shape))
    assert "undecided" not in decide(effects, point)
    noise = np.random.default_rng(0).standard_normal(point.shape)
    found = decide(effects, noise)
    assert (found == "undecided").mean() > 0.9


def test_random_directions_do_less_than_the_trained_ones(context, monkeypatch):
    monkeypatch.setattr(nulls, "N_PAIRS", 12)
    table = nulls.random_dictionary(replace(context, tasks=TASKS[1:]))
    trained, random = (table[f"sum of |IE| {context.names[-1]}"] for table in (table.iloc[0], table.iloc[1]))
    assert random < trained


def test_a_reordered_dictionary_is_stable_all_over(context):
    crosscoder, task = context.crosscoder, TASKS[1]
    order = np.random.default_rng(1).permutation(crosscoder.n_latents)
    W, ie = crosscoder.W_dec.detach(), context.effects(task, "find").mean
    rel_dec = ctt.rel_dec(crosscoder.decoder_norms())
    matches = [match_features(decoder_similarity(W, W[order]))]
    features, partners = seeds.stable(matches, len(order))
    assert len(features) > 0.9 * len(order) and (order[partners[1]] == features).all()
    decided = {task: np.ones(len(order), bool)}
    row = seeds.stability(context, {task: [ie, ie[:, order]]}, [rel_dec, rel_dec[:, order]], matches, decided, "").iloc[
        0
    ]
    for kind in ("RelIE", "RelDec"):
        assert row[f"{kind}: same class"] == row[f"{kind}: in all"] == 1 > row[f"{kind}: by chance"]
        assert row[f"{kind}: rank correlation"] == pytest.approx(1)
    assert row[seeds.DIFFERENCE] == row[f"{seeds.DIFFERENCE} low"] == row[f"{seeds.DIFFERENCE} high"] == 0
    table = seeds.stable_classes(context, {task: [ie, ie[:, order]]}, [rel_dec, rel_dec[:, order]], matches)
    assert (table[["kept by another seed", "kept by all"]] == 1).all(None)
    assert (table.groupby("ratio")["stable latents"].sum() == row["stable and active"]).all()
    told = seeds.stories(context, {task: [ie, ie[:, order]], TASKS[0]: [ie, ie[:, order]]}, matches, ["a", "b"])
    assert (told["its rank"] == 1).all() and told["IE step3000"].iloc[0] == ie[-1].max()


def test_random_groups_leave_the_helpers_out(context):
    active = np.arange(30)
    assert all(not {*g} & {1, 5, 8} for g in causes._others([1, 5, 8], active, 0, 1))
    assert causes._others(list(range(16)), active, 0, 1) == [] == causes._others(list(range(11)), active, 0, 2)


def test_the_record_says_whether_trainings_were_reused(context, monkeypatch):
    monkeypatch.setattr(ctt, "train", lambda crosscoder, stream, config, out, device: (out).mkdir(parents=True))
    fresh = replace(context, work=context.work / "fresh", train_tokens=2000)
    fresh.trainings.clear()
    fresh.train(context.ckpts, "one")
    (fresh.work / "one" / "train_config.json").touch()
    monkeypatch.setattr(ctt, "train", lambda *args, **kwargs: None)
    fresh.train(context.ckpts, "one")
    assert fresh.trainings == {"anew": 1, "reused": 1}
    assert page._time({"seconds": 5, "trainings": fresh.trainings}) == "5 s (trainings: 1 anew, 1 reused)"


def test_the_command_writes_tables_and_a_page(context, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(causes, "SIZES", (10,))
    monkeypatch.setattr(causes, "N_CONTROLS", 2)
    given = ["--only", "causes", "--pairs", "12", "--draws", "20", "--out", str(tmp_path), "--work", str(tmp_path)]
    main([*given, "--tasks", *TASKS])
    tables = {name: pd.read_csv(tmp_path / f"{name}.csv") for name in ("prediction", "ablation_groups", "classes")}
    for name, text in page.make(tmp_path, PARTS).items():
        assert (tmp_path / name).read_text(encoding="utf-8") == text
    assert page.make(tmp_path, PARTS)[page.FOUND] in capsys.readouterr().out
    counts = tables["classes"].groupby("task")[["as it comes", "decided"]].sum()
    assert (counts == context.crosscoder.n_latents).all(None)
    assert set(tables["prediction"]["task"]) == {"simple", "pp", "pooled"}
    groups = tables["ablation_groups"]
    row = groups[(groups["task"] == "pp") & (groups["k"] == 10)].iloc[-1]
    helpers = np.argsort(-context.effects(TASKS[1], "find").mean[-1])[:10].tolist()
    table = ctt.ablate(context.crosscoder, context.ckpts, context.pairs(TASKS[1], "test"), helpers).iloc[-1]
    assert row["log-prob.: top"] == pytest.approx(-table["effect"], rel=1e-4)
    every = ctt.ablate(context.crosscoder, context.ckpts, context.pairs(TASKS[1], "test"), range(512)).iloc[-1]
    assert row["log-prob.: all"] == pytest.approx(-every["effect"], rel=1e-4)
    assert groups[groups["k"] == 10]["accuracy: random"].notna().all()
    assert row["accuracy: top"] == pytest.approx(table["accuracy_after"] - table["accuracy_before"], rel=1e-4)


def test_the_page_agrees_with_its_tables(root):
    folder = root / "benchmarks" / "results" / "science"
    pages = page.make(folder, PARTS)
    for name, text in pages.items():
        assert (folder / name).read_text(encoding="utf-8") == text
    assert len(pages[page.FOUND].splitlines()) < 100  # one page
