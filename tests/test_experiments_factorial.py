"""The experiment on subject and neighbour: its cells, its rules, what it does without a design."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import ctt_helpers as ctt
from experiments import factorial
from experiments.context import Context

TASK = "agreement/pp"


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    suite = ctt.load_suite("tiny")
    return Context(
        suite=suite,
        ckpts=suite.checkpoints(suite.default_triplet, device="cpu"),
        crosscoder=ctt.Crosscoder.load(suite.crosscoder_folder),
        tasks=["agreement/simple", TASK],
        n_pairs=24,
        n_draws=40,
        work=tmp_path_factory.mktemp("factorial"),
    )


def test_two_phenomena_are_two_phenomena():
    assert factorial.two_phenomena(["a/x", "a/y", "b/x", "c/x"]) == ("a/x", "b/x")
    assert factorial.two_phenomena(["a/x", "a/y"]) == ("a/x", "a/y")


def test_accuracy_by_cell_is_accuracy_of_the_cell(context):
    pairs = context.pairs(TASK, "find")
    differences = torch.stack([ctt.logit_differences(model, pairs) for model in context.ckpts])
    rows = factorial.accuracy_by_cell(differences, pairs, context.names, TASK, "find")
    assert {row["cell"]: row["congruent"] for row in rows} == {
        "pl-pl": "yes",
        "pl-sg": "no",
        "sg-pl": "no",
        "sg-sg": "yes",
    }
    for row in rows:
        cell = pairs.cell(*row["cell"].split("-"))
        assert row["pairs"] == len(cell) == 6
        for model in context.ckpts:
            assert row[model.label] == pytest.approx(ctt.accuracy(model, cell))


def test_behaviour_that_follows_one_noun_is_its_share(context):
    pairs = context.pairs(TASK, "find")
    sign = {"sg": -1.0, "pl": 1.0}
    s, t = (pairs.table[f"{of}_level"].map(sign).to_numpy() for of in ("subject", "attractor"))
    # towards the plural: t first, both in the middle, s at the end; towards the right: times s
    plural = np.stack([2 * t, s + t, 3 * s])
    differences = torch.from_numpy(plural * s)
    table = factorial.own_shares(context, differences, pairs, context.names)
    np.testing.assert_allclose(table["subject_share"], [0, 0.5, 1], atol=1e-9)
    np.testing.assert_allclose(table["attractor"], [2, 1, 0], atol=1e-9)
    np.testing.assert_allclose(table["subject"], [0, 1, 3], atol=1e-9)


def test_many_checkpoints_begin_where_behaviour_does(context):
    names = ["step0", "step128", "step600", "step3000"]
    behaviour = pd.DataFrame({"task": TASK, "checkpoint": names, "both": 0.0, "attractor": 0.0})
    behaviour["subject"] = [0.05, -0.07, 0.03, 3.0]
    other = behaviour.assign(task="gender/pp", subject=1.0)
    both = pd.concat([other, behaviour], ignore_index=True)
    assert factorial.many_checkpoints(context, both, TASK).labels == names[1:]


def test_labels_that_are_kept_and_labels_that_turn(context):
    pairs = context.pairs(TASK, "find")
    effects = context.effects(TASK, "find")
    found = ctt.factorial_of(effects, pairs, n_draws=40)
    same = factorial.counted(found, found, 2)
    assert same["kept"] == same["labelled"] > 0 and same["of strength"] == pytest.approx(1)
    assert same["labelled"] + same["none"] == context.crosscoder.n_latents
    none = replace(found, label=np.full(found.label.shape, "none", object))
    assert factorial.counted(found, none, 2)["kept"] == 0
    turning = found.label.copy()
    turning[0, :5], turning[-1, :3], turning[-1, 3:] = "attractor", "subject", "none"
    turning[0, 5:] = "none"
    assert factorial.counted(replace(found, label=turning), found, 0)["turned"] == 3


def test_shares_of_features_and_of_the_model_stand_side_by_side(context, monkeypatch):
    monkeypatch.setattr(factorial, "N_FAR", 24)
    effects = factorial.far_effects(context, context.crosscoder, TASK)
    rows = pd.DataFrame(factorial.triplet_shares(context, TASK, effects, {}))
    assert rows.groupby("crosscoder").size().tolist() == [3, 3]
    assert (rows["split"] == "far").all() and rows["checkpoint"].tolist() == context.names * 2
    shares = rows[["subject", "attractor", "both"]].sum(axis=1)
    np.testing.assert_allclose(shares, 1)
    own = rows[rows["crosscoder"] != factorial.TRIPLET].set_index("checkpoint")
    assert own.loc["step320", "attractor"] > 0.7 and own.loc["step3000", "subject"] > 0.7
    through = rows.filter(like="through").iloc[:3].sum(axis=1)
    np.testing.assert_allclose(through, 1)


def test_without_cells_there_is_nothing_to_ask(context, monkeypatch, capsys):
    monkeypatch.setattr(factorial, "TASKS", ("agreement/simple",))
    assert factorial.run(context) == {}
    assert "no task has design cells" in capsys.readouterr().out
