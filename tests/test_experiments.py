"""The experiments: measures against independent ones, controls by construction, their tables."""

import multiprocessing
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
from ctt_helpers.metrics import rank_correlation
from ctt_helpers.pairs import twins
from experiments import ablations, nulls, planted, scaling, seeds, targets
from experiments.command import LANES, PARTS, TITLE, main, parse, run
from experiments.context import (
    Context,
    count_specific,
    decided,
    decided_by_draws,
    distracting,
    labels,
    train_once,
)

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


def test_twins_hold_a_sentence_in_all_its_cells(context):
    for task in TASKS:
        pairs = context.pairs(task, "find")
        group = twins(pairs)
        for label in set(group):
            cells = pairs.cells[group == label]
            counts = [(cells == cell).sum() for cell in set(pairs.cells)]
            assert min(counts) == max(counts) > 0


def test_where_nothing_distracts_all_pairs_are_taken(context):
    plain, hard = (context.pairs(task, "find") for task in TASKS)
    assert len(distracting(plain)) == len(plain)
    assert set(distracting(hard).cells) == {"sg-pl", "pl-sg"}
    # at the dip the nearest noun decides
    assert context.names[context.middle] == "step320"


# ---- estimators against targets


@given(st.integers(0, 2**32 - 1))
def test_rank_correlation_is_scipys_ties_included(seed):
    a, b = np.random.default_rng(seed).integers(0, 5, (2, 4, 12)).astype(float)
    a[:, 0], b[:, 0] = 9, -1  # never constant
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(rank_correlation(a, b), expected, atol=1e-12)


def case_of(guesses, truth, latents=None, noise=0.1):
    """A case of 20 pairs whose effects have this mean."""
    rng = np.random.default_rng(0)
    target = truth[:, None] + noise * rng.normal(size=(len(truth), 20, truth.shape[1]))
    return targets.Case(guesses, target, np.arange(20), latents)


def test_a_perfect_guess_is_ahead(context):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(3, 40)) * np.array([[1.0], [2.0], [3.0]])
    guesses = {"right": truth, "wrong": rng.normal(size=(3, 40))}
    cases = {task: case_of(guesses, truth, np.arange(40)) for task in TASKS}
    found = {"a": targets.draw(cases, targets.fit_effects, context)}
    table = targets.joined(found, context, "who", "wrong").set_index(["task", "who"])
    assert set(table.index.get_level_values("task")) == {*TASKS, targets.ALL}
    assert (table.xs("right", level="who")["rank"] > 0.98).all()
    assert (table.xs("right", level="who")["rank - wrong low"] > 0.3).all()
    assert (table.xs("wrong", level="who")["rank - wrong high"] == 0).all()
    row = table.loc[(TASKS[0], "wrong")]
    alone = [
        rank_correlation(guesses["wrong"][c], cases[TASKS[0]].target[c].mean(0)) for c in range(3)
    ]
    np.testing.assert_allclose(row[[f"rank {name}" for name in context.names]].tolist(), alone)

    shares = np.abs(truth) / np.abs(truth).sum(0)
    fit = targets.fit_shares(np.stack([shares, shares[::-1]]), truth)
    np.testing.assert_allclose(fit["error"][0], 0, atol=1e-12)
    np.testing.assert_allclose(fit["rank"][0], 1)
    assert (fit["error"][1] > 0.1)[[0, 2]].all()


def test_a_latent_without_effect_in_a_draw_is_left_out():
    truth = np.array([[1.0, 0, 2], [3, 0, 1]])
    fit = targets.fit_shares(np.full((1, 2, 3), 0.5), truth)
    np.testing.assert_allclose(fit["error"], [[(0.25 + 1 / 6) / 2] * 2])


def test_latents_are_drawn_on_all_tasks_alike():
    truth = np.zeros((2, 3))
    rng = np.random.default_rng(0)
    times = np.array([2, 0, 1, 5])
    some = case_of({}, truth, latents=np.array([2, 0, 1]))
    assert some.drawn(times, rng).tolist() == [0, 1, 1]
    groups = case_of({}, truth)
    assert set(groups.drawn(times, rng)) <= {0, 1, 2}


def test_groups_are_removed_as_ablate_does(context):
    pairs = context.far(TASKS[1])
    removal = targets.Removal.of(context, pairs)
    groups = [[283], [283, 398, 193]]
    for group, change in zip(groups, removal.change(2, groups), strict=True):
        table = ctt.ablate(context.crosscoder, context.ckpts, pairs, group)
        assert change.mean() == pytest.approx(table["effect"].iloc[2], rel=1e-4)


def test_nobody_chooses_the_latents_alone():
    def effects(mean):
        return type("Effects", (), {"mean": np.array(mean)})

    by_one, by_other = effects([[1.0, 0, 0, 1e-3]]), effects([[0, 0, 5.0, 1e-3]])
    there = effects([[1.0, 1, 1, 1]])
    assert targets.compared([by_one, by_other], [there]).tolist() == [0, 2]
    assert targets.compared([by_one, by_other], [effects([[1.0, 1, 0, 1]])]).tolist() == [0]


@pytest.fixture(scope="module")
def sights(context):
    return [targets.look(context, task, n_pairs=8) for task in TASKS]


def test_a_sight_holds_all_targets(context, sights):
    sight = sights[1]
    assert set(sight.truth) == {"single", "single, test", "shapley", "shapley, test"}
    for target in (*sight.truth, *sight.changes):
        case = targets.effects_case(sight, target)
        assert set(case.guesses) == set(targets.ESTIMATORS)
        assert case.target.shape[:2] == (3, len(case.clusters))
    # of groups, an estimate is the sum
    group = sight.groups[targets.FEW][7]
    guess = targets.effects_case(sight, targets.FEW).guesses["atp"]
    np.testing.assert_allclose(guess[:, 7], sight.found["atp"].mean[:, group].sum(1))
    assert 0 < targets.effects_case(sight, "shapley").reliability <= 1
    assert np.isnan(targets.effects_case(sight, "single").reliability)
    # the same sentences, exactly: the target is its own best estimate
    exact = targets.replace(sight, found={**sight.found, "ablation": sight.truth["single"]})
    fitted = targets.effects_case(exact, "single")
    found = targets.fit_effects(np.stack(list(fitted.guesses.values())), fitted.target.mean(1))
    np.testing.assert_allclose(found["rank"][0], 1)


def test_rankings_put_first_what_they_should(sights):
    sight = sights[1]
    orders = targets.rankings(sight, np.random.default_rng(0))
    ie = sight.found["ig"].mean[2]
    assert orders["ig"][2][0] == np.abs(ie).argmax()
    assert orders["ig: helps"][2][0] == ie.argmax()
    assert orders["ig: hurts"][2][0] == ie.argmin()
    assert all({*order} == {*sight.active} for each in orders.values() for order in each)
    assert {*sight.latents} < {*sight.active}


def test_top_groups_and_costs(context, sights, monkeypatch):
    monkeypatch.setattr(targets, "SIZES", (1, 3))
    table = targets.top_groups(sights, context)
    rows = table[table["task"] != targets.ALL]
    assert len(rows) == 2 * 3 * (len(targets.ESTIMATORS) + 2)
    np.testing.assert_allclose(rows["area"], rows[["m=1", "m=3"]].mean(1))
    best = rows[rows["ranking"].isin(targets.ESTIMATORS)].groupby(["task", "checkpoint"])
    np.testing.assert_allclose(best["of best"].max(), 1)
    assert (rows["signed of best"].dropna() <= 1).all()
    row = rows[(rows["ranking"] == "ablation") & (rows["checkpoint"] == "step3000")].iloc[1]
    sight = sights[1]
    first = targets.rankings(sight, np.random.default_rng(0))["ablation"][2][:1]
    assert row["m=1"] == pytest.approx(np.abs(sight.removal.change(2, [first])).mean())

    effects, shares = targets.fits(sights, context)
    assert set(effects) - set(shares) == {targets.HALF}
    costs = targets.costs(sights, effects, table).set_index("way")
    assert costs.loc["atp", "passes"] == 3
    assert costs.loc["shapley", "passes"] > 3 * costs.loc["ablation", "passes"]
    mean = targets.joined(effects, context, "estimator", "ablation")
    mean = mean[(mean["task"] == targets.ALL) & (mean["estimator"] == "ig")].set_index("target")
    assert costs.loc["ig", "shapley"] == pytest.approx(mean.loc["shapley", "rank"])


# ---- what latents are set to


def test_partners_differ_in_one_level_alone(context):
    pairs = context.pairs(TASKS[1], "find")
    table = pairs.table
    for factor, other in (("subject", "attractor"), ("attractor", "subject")):
        partner = ablations.partners(pairs, factor)
        assert (partner >= 0).all() and (partner[partner] == np.arange(len(pairs))).all()
        assert (table["group"].to_numpy()[partner] == table["group"]).all()
        assert (table[f"{factor}_level"].to_numpy()[partner] != table[f"{factor}_level"]).all()
        assert (table[f"{other}_level"].to_numpy()[partner] == table[f"{other}_level"]).all()
    bare = replace(pairs, table=table.drop(columns="group"))
    assert (ablations.partners(bare, "subject") == -1).all()


def test_zero_agrees_with_itself_and_the_attractor_does_little_in_the_end(context):
    rows = pd.DataFrame(ablations.baselines(context, TASKS[1])).set_index("set to")
    assert rows.index.tolist() == ["zero", "mean", "other subject", "other attractor"]
    zero = rows.loc["zero"]
    assert zero["same sign, by |IE|"] == zero["same class"] == 1
    assert zero["decided too"] == zero["the same class"] == zero["decided"]
    late = rows["sum of |IE| step3000"]
    assert late["other attractor"] < 0.5 * late["other subject"]


# ---- controls


def test_swapped_labels_flip_effects_as_recomputation_does(context):
    pairs = context.pairs(TASKS[1], "find")
    swapped = np.arange(12) % 3 == 0
    mask = torch.from_numpy(swapped)
    turned = nulls.flipped(context.effects(TASKS[1], "find"), swapped)
    other = replace(
        pairs,
        right=torch.where(mask, pairs.wrong, pairs.right),
        wrong=torch.where(mask, pairs.right, pairs.wrong),
    )
    again = ctt.indirect_effects(context.crosscoder, context.ckpts, other)
    torch.testing.assert_close(
        turned.per_pair.to_dense(), again.per_pair.to_dense(), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(turned.mean, again.mean, rtol=1e-4, atol=1e-5)


def test_with_swapped_labels_next_to_nothing_is_decided(context, monkeypatch):
    monkeypatch.setattr(nulls, "N_SWAPS", 30)
    monkeypatch.setattr(nulls, "N_DRAWN", 1)
    table = nulls.swapped_labels(replace(context, n_pairs=48, _effects={}))
    assert (table["specific"] > 0.1).all()  # as they come, many look specific
    assert (table["decided"] <= 0.05).all()
    assert (table["any decided"] <= 0.1).all()
    assert (table["p below .05"] <= 0.05).all()


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
    monkeypatch.setattr(nulls, "N_PAIRS", 8)
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
    effects, pairs = context.effects(TASKS[1], "find"), context.pairs(TASKS[1], "find")
    point = np.broadcast_to(effects.mean, (40, *effects.mean.shape))
    assert "undecided" not in decided_by_draws(effects, point)
    noise = np.random.default_rng(0).standard_normal(point.shape)
    assert (decided_by_draws(effects, noise) == "undecided").mean() > 0.9
    # three groups of pairs decide nothing among so many latents
    words = decided(effects, pairs)
    assert set(words) <= {"undecided", "inactive"} | set(
        labels(ctt.rel_ie(effects.mean), effects.names)
    )
    assert (decided(effects, pairs, np.full(3, 1e9)) != "inactive").sum() == (
        words != "inactive"
    ).sum()
    assert set(decided(effects, pairs, np.full(3, 1e9))) == {"undecided", "inactive"}


def test_of_four_checkpoints_the_peak_is_the_label():
    ratios = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [np.nan] * 4]).T
    words = labels(ratios, list("abcd"))
    assert words.tolist() == ["peak d", "peak a", "inactive"]
    assert count_specific(words, ["a", "b"]) == 1
    words = labels(np.array([[0.8, 0.2], [0.5, 0.5], [np.nan] * 2]).T, list("ab"))
    assert words.tolist() == ["specific a", "shared a b", "inactive"]


def test_random_directions_do_less_than_the_trained_ones(context, monkeypatch):
    monkeypatch.setattr(nulls, "N_DIRECTIONS", 2)
    found = nulls.random_and_classes(replace(context, tasks=TASKS[1:]))
    directions = found["null_directions"].set_index("checkpoint")
    last = directions.loc[context.names[-1]]
    assert last["sum of |IE|, random"] < last["sum of |IE|"]
    assert last["threshold"] < last["largest |IE|, random"]
    classes = found["classes"]
    assert (classes["decided, beyond random"] <= classes["decided"]).all()
    assert (classes["decided"] <= classes["as it comes"]).all()
    assert classes["as it comes"].sum() == last["active"]
    assert classes["share of |IE|"].sum() == pytest.approx(1, abs=0.1)


# ---- other seeds


def cell_of(context, order, model=0, crosscoder=0):
    """A cell whose crosscoder is the context's own with its latents in another order."""
    own = context.crosscoder
    other = ctt.Crosscoder(own.n_checkpoints, own.d_model, own.n_latents, k=own.k)
    state = {
        name: value[order] if value.shape[:1] == (own.n_latents,) else value
        for name, value in own.state_dict().items()
    }
    state["W_enc"] = (
        own.W_enc[..., order] if own.W_enc.shape[-1] == own.n_latents else state["W_enc"]
    )
    other.load_state_dict(state)
    other.source = own.source
    one = replace(context, crosscoder=other.eval(), _effects={})
    effects, null = {}, {}
    for task in TASKS:
        pairs = one.pairs(task, "find", seeds.CLASS_PAIRS)
        effects[task] = ctt.indirect_effects(other, one.ckpts, pairs)
        null[task] = 0.01 * np.ones(3)
    codes = seeds.latents_on(other, one.ckpts, context.validation_text(2000))
    return seeds.Cell(model, crosscoder, one, effects, null, codes)


def test_a_reordered_dictionary_has_the_same_classes_and_stars(context, monkeypatch):
    monkeypatch.setattr(seeds, "CLASS_PAIRS", 16)
    n = context.crosscoder.n_latents
    cells = [
        cell_of(context, np.random.default_rng(seed).permutation(n), model, seed)
        for seed, model in enumerate((0, 0, 1))
    ]
    table = seeds.classes(cells)
    assert set(table["compared with"]) == {seeds.CROSSCODER, seeds.MODEL}
    assert (table["same class"] == 1).all() and (table[["low", "high"]] == 1).all(axis=None)
    assert (table["partner"] > 0.9).all() and (table["by chance"] < 1).all()
    np.testing.assert_allclose(table["rank correlation"], 1)
    told = seeds.stars(cells)
    assert len(told) == 9 and (told["its rank"] == 1).all()
    np.testing.assert_allclose(told["IE step3000"], told["its IE step3000"])
    np.testing.assert_allclose(told["similarity of the first's"], 1, atol=1e-4)
    first = told[(told["story"] == "helps most at the end")]
    assert first["IE step3000"].nunique() <= 3 and np.ptp(first["IE step3000"]) < 1e-4
    switch = seeds.switches(cells)
    assert (switch["similarity of the first's"] > 0.99).all()
    for cell in ("sg-sg", "sg-pl", "pl-sg", "pl-pl"):
        assert switch[f"{cell}, without"].nunique() == switch[cell].nunique() == 1
    # without this latent alone, the model is back where the nearest noun decides
    assert (switch[["sg-pl", "pl-sg"]] > 0.9).all(axis=None)
    assert (switch[["sg-pl, without", "pl-sg, without"]].mean(1) < 0.3).all()
    assert (switch[["sg-sg, without", "pl-pl, without"]].mean(1) > 0.7).all()
    dip = seeds.dip([replace(cells[0], context=replace(context, n_pairs=16))])
    assert dip["checkpoint"].tolist() == context.suite.revisions
    assert {"sg-sg", "sg-pl", "pl-sg", "pl-pl", "plain"} <= set(dip)


def test_intervals_over_seeds_hold_models_together():
    def drawn(value):
        point = np.full((1, 2, 3), value)
        point[:, 1] = 0
        draws = {"rank": np.tile(point.mean(2), (targets.N_DRAWS, 1, 1))}
        return targets.Drawn(["a"], ["x", "base"], {"rank": point}, draws, [5], [np.nan])

    def cell(model, crosscoder):
        return seeds.Cell(model, crosscoder, None, {}, {}, None)

    where = [(m, c) for m in range(3) for c in range(3)]
    cells = [cell(*one) for one in where]
    orders = [seeds.drawn_cells(cells, np.random.default_rng(s)) for s in range(targets.N_DRAWS)]
    assert all(len(order) == 9 for order in orders)
    # models differ, crosscoders of one do not: only three values are drawn
    by_model = seeds.over_cells([drawn(m) for m, _ in where], orders, "base", "effects", "t")
    by_both = seeds.over_cells([drawn(c) for _, c in where], orders, "base", "effects", "t")
    row = by_model[0]
    assert row["rank"] == row["ahead"] == 1 and row["in"] == "6 of 9"
    assert (row["lowest"], row["highest"]) == (0, 2)
    widths = [one[0]["high"] - one[0]["low"] for one in (by_model, by_both)]
    assert widths[0] > 1.4 * widths[1] > 0
    assert by_model[1]["ahead"] == by_model[1]["ahead high"] == 0


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


# ---- planted truth


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
    own = found.beta_error[at, active]
    own = np.where(own > 0, own, np.nan)
    missed = (found.beta_error - found.written)[:, active] / own
    expected = np.where(others, missed, -np.inf).max(0)
    np.testing.assert_allclose(nu["missed"], expected, rtol=1e-3, atol=1e-4)


# ---- the command


@pytest.mark.slow
def test_the_command_writes_tables(context, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ablations, "N_PAIRS", 12)
    folders = ["--out", str(tmp_path), "--work", str(tmp_path)]
    main(["--only", "ablations", "--draws", "20", *folders, "--tasks", *TASKS])
    assert str(tmp_path / report.PAGE) in capsys.readouterr().out
    tables = {name: pd.read_csv(tmp_path / f"{name}.csv") for name in ablations.TABLES}
    assert set(tables["baselines_of_ablation"]["task"]) == set(TASKS)
    assert len(tables["choices"]) == 4
    page = (tmp_path / report.PAGE).read_text(encoding="utf-8")
    for name, description in ablations.TABLES.items():
        assert f"### {name}.csv\n\n{description}\n\n| " in page


def test_a_lane_runs_in_a_process_of_its_own(tmp_path):
    """Of no parts: what is tested is that the process finds its function."""
    spawn = multiprocessing.get_context("spawn")
    asked = parse(["--work", str(tmp_path), "--out", str(tmp_path), "--draws", "20"])
    lock = spawn.Lock()
    other = spawn.Process(target=run, args=(asked, (), "no command", lock))
    other.start()
    other.join()
    assert other.exitcode == 0


def test_what_the_other_lane_trains_is_waited_for(tmp_path, monkeypatch):
    crosscoder = ctt.Crosscoder(2, 8, 16, k=2)
    x = torch.randn(256, 2, 8, generator=torch.Generator().manual_seed(0))
    stream, config = ctt.TensorStream(x, 64), ctt.TrainConfig(steps=3)
    with ctt.files.locked(tmp_path / "run") as held:
        waits = []

        def release(seconds):
            waits.append(seconds)
            (tmp_path / "run" / ".lock").unlink()  # as if its holder had ended

        monkeypatch.setattr("experiments.context.time.sleep", release)
        train_once(crosscoder, stream, config, out=tmp_path / "run")
        assert held is None and len(waits) == 1
    assert (tmp_path / "run" / "train_config.json").is_file()


def test_every_part_is_in_one_lane():
    assert sorted(part for lane in LANES for part in lane) == sorted(PARTS)


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
    frame = pd.DataFrame({"ratio": ["a"], "latents": [1.5]})
    about = {**report.machine(), "command": "python -m x", "seconds": 3, "trainings": {"anew": 2}}
    report.save(tmp_path, "scaling", {"scaling": frame}, about)
    page = report.write_tables(tmp_path, TITLE, PARTS).read_text(encoding="utf-8")
    assert page.startswith(f"# {TITLE}\n")
    assert page.count("\n## ") == page.count("\n### ") == 1
    assert "| a | 1.5 |" in page
    assert "Made by `python -m x` in 3 s (trainings: 2 anew) on" in page
