"""Curves from result files of lm-evaluation-harness: their layout, and all that does not fit."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from models import random_suite, some_pairs

import ctt_helpers as ctt
from ctt_helpers.notebook import plots
from ctt_helpers.sources.suites import load_suite

REVISIONS = ("step1000", "step4000", "step143000")
SVA = "blimp_distractor_agreement_relational_noun"
NPI = "blimp_npi_present_1"
# task -> accuracies at the three
FIGURES = {SVA: (0.41, 0.62, 0.93), NPI: (0.55, 0.35, 0.71)}


def result(revision: str = "step1000", accuracies: dict | None = None, **changes) -> dict:
    """What version 0.4.13 writes, shortened."""
    at = REVISIONS.index(revision) if revision in REVISIONS else 0
    accuracies = accuracies or {task: values[at] for task, values in FIGURES.items()}
    group = {
        "name": "blimp", "alias": "blimp", "acc,none": float(np.mean(list(accuracies.values()))),
        "acc_stderr,none": 0.004, "sample_count": {"acc,none": 2000},
    }  # fmt: skip
    leaves = {
        task: {
            "name": task, "alias": f" - {task}", "sample_len": 1000,
            "acc,none": value, "acc_stderr,none": (value * (1 - value) / 999) ** 0.5,
        }
        for task, value in accuracies.items()
    }  # fmt: skip
    content = {
        "results": {"blimp": group, **leaves},
        "groups": {"blimp": group},
        "group_subtasks": {"blimp": list(accuracies), **{task: [] for task in accuracies}},
        "versions": dict.fromkeys(accuracies, 1.0),
        "n-shot": dict.fromkeys(accuracies, 0),
        "n-samples": {task: {"original": 1000, "effective": 1000} for task in accuracies},
        "higher_is_better": {task: {"acc": True} for task in accuracies},
        "config": {
            "model": "hf",
            "model_args": f"pretrained=EleutherAI/pythia-160m,revision={revision},dtype=float",
            "model_revision": revision,
            "batch_size": "64",
            "limit": None,
        },
        "model_name": "EleutherAI/pythia-160m",
        "lm_eval_version": "0.4.13",
    }
    return content | changes


def written(folder, content, name: str = "results_2026-01-01T00-00-00.000001.json"):
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def three(tmp_path):
    """A folder of three revisions as three runs leave it."""
    for i, revision in enumerate(REVISIONS[::-1]):  # not in the order of training
        written(tmp_path / "out" / f"run{i}" / "EleutherAI__pythia-160m", result(revision))
    return tmp_path / "out"


def test_the_table_is_that_of_accuracy_curve(three, tmp_path):
    curve = ctt.harness_curve(three, "pythia-160m")
    assert list(curve.columns) == [
        "revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs"
    ]  # fmt: skip
    assert curve.revision.tolist() == [r for r in REVISIONS for _ in FIGURES]
    suite = load_suite("pythia-160m")
    assert curve.tokens_seen.tolist() == [suite.tokens_seen(r) for r in curve.revision]
    for task, values in FIGURES.items():
        row = curve[curve.task == task]
        assert row.accuracy.tolist() == list(values) and (row.n_pairs == 1000).all()
    assert not curve.task.eq("blimp").any()  # a group is a mean of what is there
    # the same from a list of files, of the tasks asked for, in their order, a group among them
    files = sorted(three.rglob("*.json"))
    some = ctt.harness_curve(files, suite, tasks=[NPI, "blimp"])
    assert some.task.tolist() == [NPI, "blimp"] * 3
    assert some[some.task == "blimp"].n_pairs.tolist() == [2000] * 3
    made = ctt.accuracy_curve(random_suite(tmp_path / "suite"), {"some": some_pairs()})
    assert set(curve.columns) <= set(made.columns)


def test_figures_and_the_triplet_take_it(three):
    curve = ctt.harness_curve(three, "pythia-160m")
    ax = plots.accuracy_curves(curve, highlight=list(REVISIONS))
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert {SVA, NPI} <= set(drawn) and drawn[SVA] == list(FIGURES[SVA])
    plt.close(ax.figure)
    similar = pd.DataFrame(
        [[1, 0.8, 0.5], [0.8, 1, 0.7], [0.5, 0.7, 1]], index=REVISIONS, columns=REVISIONS
    )
    with pytest.raises(ValueError, match="away from chance"):
        ctt.suggest_triplet(curve, similar)
    curve.loc[curve.revision == "step1000", "accuracy"] = [0.3, 0.75]
    assert ctt.suggest_triplet(curve, similar).revisions == list(REVISIONS)


def test_other_ways_to_write_it(tmp_path):
    at = "acc_norm,none"
    plain = result("step4000")
    for values in plain["results"].values():
        values[at], values["acc_norm_stderr,none"] = 0.25, "N/A"
    plain["config"]["model_args"] = {
        "pretrained": "EleutherAI/pythia-160m", "revision": "step4000", "dtype": None
    }  # fmt: skip
    file = written(tmp_path / "a", plain)
    curve = ctt.harness_curve(file, "pythia-160m", metric="acc_norm")
    assert (curve.accuracy == 0.25).all() and curve.revision.unique().tolist() == ["step4000"]
    np.testing.assert_allclose(curve.stderr, (0.25 * 0.75 / 1000) ** 0.5)  # binomial
    strict = result("step4000")
    strict["results"] = {SVA: {"exact_match,strict-match": 0.5}}
    file = written(tmp_path / "b", strict)
    curve = ctt.harness_curve(file, "pythia-160m", metric="exact_match,strict-match")
    assert curve.accuracy.tolist() == [0.5]
    # the same file twice, as a rerun leaves it
    again = written(tmp_path / "a", plain, "results_2026-02-01.json")
    assert len(ctt.harness_curve(tmp_path / "a", "pythia-160m")) == 2
    assert again.is_file()


def test_models_in_folders(tmp_path):
    suite = random_suite(tmp_path / "runs")
    for i, revision in enumerate(suite.revisions):
        content = result("step4000")
        content["config"]["model_args"] = f"pretrained={tmp_path / 'runs' / revision}"
        written(tmp_path / f"{i}", content)
    files = [tmp_path / f"{i}" / "results_2026-01-01T00-00-00.000001.json" for i in range(3)]
    curve = ctt.harness_curve(files, suite)
    assert curve.revision.unique().tolist() == suite.revisions
    assert curve.tokens_seen.unique().tolist() == [0, 1000, 2000]
    content["config"] = {}
    file = written(tmp_path / "unsaid", content)
    with pytest.raises(ValueError, match=r"unsaid.*does not say of which model"):
        ctt.harness_curve(file, suite)
    curve = ctt.harness_curve(file, suite, revisions={str(file): "step100"})
    assert curve.revision.unique().tolist() == ["step100"]
    with pytest.raises(ValueError, match="no revision 'step7'"):
        ctt.harness_curve(file, suite, revisions={str(file): "step7"})


def change(path: str, value) -> dict:
    """A result in which one thing is different; None takes it out."""
    content = result()
    *parts, last = path.split("/")
    inner = content
    for part in parts:
        inner = inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return content


ARGS = "config/model_args"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "has no results"),
        (change("results", None), "has no results"),
        (change("config", []), "config is no table of names"),
        (change(f"results/{SVA}", 3), f"{SVA} holds no figures"),
        (change(f"results/{SVA}/acc,none", "0.5"), "'acc,none' of .* is '0.5'"),
        (change(f"results/{SVA}/acc,none", 41.0), "is 41.0, and is no share"),
        (change(f"results/{SVA}/acc,none", float("nan")), "is nan, and is no share"),
        (change(f"results/{SVA}/acc,none", True), "is True"),
        (change(f"results/{SVA}/acc_stderr,none", float("nan")), "acc_stderr,none.* is nan"),
        (change("n-samples", None), r"how many samples .*since version 0\.4\.3"),
        (change(f"n-samples/{SVA}", {"effective": 0}), f"how many samples {SVA} had"),
        (change(ARGS, None), "of which model"),
        (change(ARGS, "pretrained=EleutherAI/pythia-160m"), "without revision= in --model_args"),
        (
            change(ARGS, "pretrained=EleutherAI/pythia-1b,revision=step1000"),
            "'EleutherAI/pythia-1b",
        ),
        (
            change(ARGS, "pretrained=EleutherAI/pythia-160m,revision=step1001"),
            r"'step1001'.*Did you mean 'step1000'",
        ),
    ],
)
def test_what_does_not_fit_names_the_file(tmp_path, content, told):
    file = written(tmp_path, content, "results_x.json")
    with pytest.raises(ValueError, match=rf"results_x\.json(?s:.*)(?:{told})"):
        ctt.harness_curve(file, "pythia-160m")


def test_files_that_contradict_each_other(tmp_path):
    written(tmp_path / "a", result("step1000"))
    written(tmp_path / "b", result("step1000", {SVA: 0.6, NPI: 0.55}))
    with pytest.raises(ValueError, match=rf"a/results.* and .*b/results.* differ about {SVA} at s"):
        ctt.harness_curve(tmp_path, "pythia-160m")
    for part, value, told in (
        ("n-samples", {"original": 1000, "effective": 100}, "samples 1000 and 100"),
        ("versions", 2.0, r"version 1\.0 and 2\.0"),
        ("n-shot", 5, "n-shot 0 and 5"),
    ):
        other = result("step4000")
        other[part][NPI] = value
        written(tmp_path / "b", other)
        with pytest.raises(ValueError, match=rf"{NPI} is not the same in .*a/.* and .*b/.*{told}"):
            ctt.harness_curve(tmp_path, "pythia-160m")


def test_what_is_missing_is_told(tmp_path):
    written(tmp_path / "a", result("step1000"))
    written(tmp_path / "b", result("step4000", {SVA: 0.6}))
    with pytest.warns(UserWarning, match=f"nothing of {NPI} at step4000"):
        curve = ctt.harness_curve(tmp_path, "pythia-160m")
    assert len(curve) == 3
    with pytest.raises(ValueError, match=rf"No file has 'acc' of the task .*Did you mean '{SVA}'"):
        ctt.harness_curve(tmp_path / "a", "pythia-160m", tasks=[SVA + "s"])
    content = result("step1000")
    content["results"]["wikitext"] = {"word_perplexity,none": 31.0}
    written(tmp_path / "a", content)
    with pytest.warns(UserWarning, match="Without 'acc', and left out: wikitext"):
        assert len(ctt.harness_curve(tmp_path / "a", "pythia-160m")) == 2
    with pytest.raises(ValueError, match="has tasks with 'f1'"), pytest.warns(UserWarning):
        ctt.harness_curve(tmp_path / "a", "pythia-160m", metric="f1")
    with pytest.raises(FileNotFoundError, match="holds no results_"):
        (tmp_path / "empty").mkdir()
        ctt.harness_curve(tmp_path / "empty", "pythia-160m")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        ctt.harness_curve(tmp_path / "nothing.json", "pythia-160m")
    with pytest.raises(ValueError, match="at least one file"):
        ctt.harness_curve([], "pythia-160m")


def test_a_group_that_contains_itself_ends(tmp_path):
    content = result()
    content["group_subtasks"]["blimp"] = ["blimp", SVA]
    content["n-samples"]["blimp"] = {"effective": 5}
    file = written(tmp_path, content)
    assert len(ctt.harness_curve(file, "pythia-160m", tasks=["blimp"])) == 1
