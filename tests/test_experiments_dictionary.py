"""Experiments on the dictionary itself: penalty, baselines, and what late checkpoints let slip."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import ctt_helpers as ctt
from ctt_helpers import hooks
from experiments import baselines, dictionary, leak
from experiments.context import Context

TASKS = ["agreement/simple", "agreement/pp"]
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    suite = ctt.load_suite("tiny")
    return Context(
        suite=suite,
        ckpts=suite.checkpoints(suite.default_triplet, device="cpu"),
        crosscoder=ctt.Crosscoder.load(suite.crosscoder_folder).requires_grad_(False),
        tasks=TASKS,
        n_pairs=8,
        work=tmp_path_factory.mktemp("experiments"),
        train_config=ctt.TrainConfig(steps=5),
    )


@pytest.fixture(scope="module")
def x(context):
    """A few activations of all checkpoints."""
    return dictionary.activations(context.ckpts, context.validation_text(1500))


# ---- the penalty


def test_settings_differ_in_their_folders_and_each_is_trained_once():
    default = dictionary.Setting(k=12, n_latents=512)
    runs = list(dictionary.grid(default))
    levers = [one for some in dictionary.levers(default).values() for one in some]
    assert len(set(runs)) == len(runs)
    everyone = {*runs, *levers}
    assert len({setting.folder(seed) for setting, seed in everyone}) == len(everyone)
    assert {setting.penalty for setting, _ in runs} == set(dictionary.PENALTIES)


def measured(specific: int) -> dictionary.Measured:
    words = np.array(["specific a"] * specific + ["shared a b"] * (20 - specific))
    return dictionary.Measured(
        l0=12,
        alive=1,
        explained_variance=[0.9, 0.8, 0.7],
        ce_recovered=[1, 1, 1],
        off={"pp": [0.5, 0.5, 0.5]},
        rel_dec=words,
        rel_ie=np.array(["other"] * 20),
        verdicts=Counter({"shrinkage": specific // 2, "genuine": specific - specific // 2}),
        ie_specific=0.0,
    )


def test_a_class_depends_on_the_penalty_where_the_ranges_lie_apart():
    specific = {0.0: [2, 3, 4], 0.05: [3, 4, 5], 0.5: [5, 9, 7]}
    found = {
        (dictionary.Setting(k=12, n_latents=20, penalty=penalty), seed): measured(count)
        for penalty, counts in specific.items()
        for seed, count in enumerate(counts)
    }
    table = dictionary.classes_by_penalty(list(found), found).set_index(["ratio", "class"])
    row = table.loc["RelDec", "specific, any"]
    assert row["penalty 0.5"] == 7
    assert (row["penalty 0.05, fewest"], row["penalty 0.05, most"]) == (3, 5)
    assert row["depends"] == "yes"
    assert table.loc["RelIE", "other"]["depends"] == "no"
    found[next(iter(found))] = measured(6)  # one seed without a penalty is among the others
    again = dictionary.classes_by_penalty(list(found), found).set_index(["ratio", "class"])
    assert again.loc["RelDec", "specific, any"]["depends"] == "no"
    columns = measured(5).classes(NAMES)
    assert columns["RelDec: specific"] == columns["RelDec: specific a"] == 5
    assert (columns["shrinkage"], columns["share"]) == (2, 0.4)
    assert np.isnan(measured(0).classes(NAMES)["share"])


def test_principal_components_are_those_of_a_singular_value_decomposition(x):
    scales = torch.tensor([1.0, 2.0, 0.5])
    components = dictionary.principal_components(x, scales)
    torch.testing.assert_close(components(x), x, rtol=1e-3, atol=1e-3)
    for c in range(3):
        alone = dictionary.principal_components(x[:, c, None], torch.ones(1))
        size = torch.linalg.svdvals((x[:, c] - x[:, c].mean(0)).double()).square()
        (explained,) = dictionary.explained_variance(x[:, c, None], alone.first(7))
        assert explained == pytest.approx(float(size[:7].sum() / size.sum()), abs=1e-4)
    joint = dictionary.explained_variance(x, components.first(7))
    assert max(joint) < 1 and min(joint) > 0.3


# ---- baselines


def test_a_component_is_taken_away_as_by_hand(context, x):
    pairs = context.pairs(TASKS[0], "find")
    components = baselines.of_components(
        dictionary.principal_components(x, context.crosscoder.scales)
    )
    kind = baselines.Kind([components], context.ckpts)
    wanted = [0, 5]
    effects = kind.effects(pairs, [wanted] * 3)
    mask, position = pairs.attention_mask, pairs.answer_position
    for c, model in enumerate(context.ckpts):
        stream = hooks.stacked_activations(context.ckpts, pairs.input_ids, mask)
        f = components.encode(stream)
        touched = mask.bool()
        touched[:, 0] = False

        def difference(stream, model=model):
            right, wrong = hooks.logits_above(model, stream, mask, position, pairs.answers).T
            return (right - wrong).double()

        for i in wanted:
            part = f[..., i, None] * components.W_dec[i, c] * touched[..., None]
            change = difference(stream[:, :, c]) - difference(stream[:, :, c] - part)
            np.testing.assert_allclose(effects[c][:, i], change, atol=1e-4)
        assert not effects[c][:, 1].any()


def test_dictionaries_of_each_checkpoint_are_asked_at_their_own(context, x):
    parts = [baselines.linear(torch.eye(x.shape[2]), x[:, c].mean(0)) for c in range(3)]
    kind = baselines.Kind(parts, context.ckpts)
    codes = kind.codes(x)
    assert kind.own
    for c in range(3):
        np.testing.assert_allclose(codes[c], x[:, c] - x[:, c].mean(0), atol=1e-5)
    assert kind.explained_variance(x) == pytest.approx([1, 1, 1])
    pairs = context.pairs(TASKS[0], "find")
    everything = [list(range(x.shape[2]))] * 3
    table = pd.concat(kind.curve(pairs, everything, [0, x.shape[2]]))
    assert table["checkpoint"].unique().tolist() == context.names
    gone = table[table["n_features"] > 0]
    np.testing.assert_allclose(table["logit_difference_before"][::2], gone[gone.columns[4]])


def test_an_sae_is_a_crosscoder_whose_halves_stay_alike(context, x):
    own = x[:, 2].contiguous()
    made = baselines.sae(own, context, "step", seed=0)
    folder = context.work / "sae" / "step seed0" / "crosscoder"
    trained = ctt.Crosscoder.load(folder)
    start = ctt.Crosscoder(2, own.shape[1], 512, k=12, seed=0)
    assert not torch.equal(trained.W_dec[:, 0], start.W_dec[:, 0])
    assert torch.equal(trained.W_dec[:, 0], trained.W_dec[:, 1])
    assert torch.equal(trained.W_enc[0], trained.W_enc[1])
    torch.testing.assert_close(made(own[:, None])[:, 0], trained(x[:, [2, 2]])[:, 0])


class Planned:
    """Stands for dictionaries: the logit difference falls as the plan says."""

    def curve(self, pairs, rankings, sizes, keep_only=False, keep_error=True):
        helpers, strongest = [0, 2, 1], [1, 0, 2]
        assert rankings == [strongest if keep_only else helpers]
        after = [0.0, 3.0, 5.0, 9.0] if keep_only else [8.0, 1.0, 5.0]
        return [pd.DataFrame({"logit_difference_before": 10.0, "logit_difference_after": after})]


def test_how_few_are_enough():
    (row,) = baselines.how_few(Planned(), None, [np.array([2.0, -3.0, 1.0])])
    assert row["gone with 1"] == pytest.approx(0.2)
    assert row["removed"] == 2  # and that it comes back with more does not count
    assert row["kept"] == 3
    sizes = baselines.growing(300)
    assert sizes == sorted(set(sizes)) and {1, 10, 300} <= set(sizes)
    assert np.isnan(baselines.first_size([1, 2], np.array([False, False])))


def test_partners_are_found_in_another_order_and_with_another_sign():
    first = np.random.default_rng(0).standard_normal((400, 6))
    order = np.array([3, 0, 5, 1, 2, 4])
    second = -first[:, order]
    found = baselines.partners(first, second)
    assert found["partner"].all()
    assert (order[found["match"].astype(int)] == np.arange(6)).all()
    noise = baselines.partners(first, np.random.default_rng(1).standard_normal((400, 6)))
    assert not noise["partner"].any()


def test_halves_are_cells_where_there_are_any(context):
    pairs = context.pairs(TASKS[1], "find")
    halves = baselines.halves(TASKS[1], pairs)
    assert (halves["congruent"] ^ halves["incongruent"]).all()
    assert set(pairs[halves["congruent"]].cells) == {"sg-sg", "pl-pl"}
    assert list(baselines.halves(TASKS[0], context.pairs(TASKS[0], "find"))) == ["all"]


def test_far_pairs_are_other_pairs(context):
    far = context.far(TASKS[1])
    assert set(far.table["split"]) == {"far"}
    assert set(context.far("agreement/pp", 4).cells) == set(far.cells)


# ---- the leak


def test_a_crosscoder_that_is_robbed_of_all_others_reads_from_one(context):
    pairs = context.pairs(TASKS[1], "find")
    others = ctt.predict_others(context.ckpts, context.validation_text(3000))
    alone = ctt.indirect_effects(
        context.crosscoder, context.ckpts, pairs, method="atp", read_from=others
    )
    full = ctt.indirect_effects(context.crosscoder, context.ckpts, pairs, method="atp")
    for replaced, expected in {(1, 2): alone, (): full}.items():
        robbed = leak.robbed(context.crosscoder, others, 0, replaced)
        found = ctt.indirect_effects(robbed, context.ckpts, pairs, method="atp")
        np.testing.assert_allclose(found.mean[0], expected.mean[0], atol=1e-5)


def test_what_is_gone_and_what_is_new():
    full = np.array([[1.0, 0, 2], [0, -3, 0]])
    left = np.array([[1.0, 0, 0], [0, -2, 1]])
    row = leak.what_is_left(full, left)
    assert row["kept"] == pytest.approx(2 / 3)
    assert row["|IE|"] == pytest.approx(2)
    assert row["|IE| of those gone"] == pytest.approx(2 / 6)
    assert row["|IE| of those new"] == pytest.approx(1 / 4)
    same = leak.what_is_left(full, full)
    assert (same["kept"], same["|IE| of those gone"], same["rank correlation"]) == (1, 0, 1)


def test_classes_do_not_change_where_effects_do_not(context):
    context = replace(context, tasks=TASKS[1:])
    row = leak.classes(context, {TASKS[1]: context.effects(TASKS[1], "find")}).iloc[0]
    assert row["class changes"] == row["largest moves"] == row["mean |change|"] == 0
    assert row["active"] > 10
