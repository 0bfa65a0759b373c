"""What a checkpoint does, against plain passes; the triplet by brute force; twins and bad
numbers.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from models import random_model, random_suite, some_pairs, word_tokenizer

from ctt_helpers import behaviour
from ctt_helpers import pairs as pairs_module
from ctt_helpers.behaviour import similarity_matrix, suggest_triplet
from ctt_helpers.hooks import HookedModel, NotFinite
from ctt_helpers.pairs import ONE_IS_BEGINNING, make_pairs
from ctt_helpers.sources.published import from_sentences
from ctt_helpers.sources.suites import load_suite


def test_accuracy_is_the_plain_models(tmp_path):
    model = HookedModel(random_model(), word_tokenizer(), 1)
    pairs, right = some_pairs(9), 0
    for i in range(9):
        length = int(pairs.attention_mask[i].sum())
        with torch.no_grad():
            logits = model.hf_model(pairs.input_ids[i : i + 1, :length]).logits[0, -1]
        right += bool(logits[pairs.right[i]] > logits[pairs.wrong[i]])
    assert behaviour.accuracy(model, pairs) == pytest.approx(right / 9)
    a, b = (behaviour.logit_differences(model, pairs, batch_size=size) for size in (2, 256))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


SENTENCES = [
    ("the dog runs", "the dog run"),
    ("a cat sees the red dog", "a cat see the red dog"),
    ("the dogs near that cat often run", "the dogs near the cats run"),
]


def whole_pairs():
    rows = [from_sentences(right, wrong) for right, wrong in SENTENCES]
    rows.append(
        {"prefix": "cats", "right": " run", "wrong": " runs"}
    )  # no sentence given: these two words
    rows.append({"prefix": "the", "right": " dog", "wrong": " dog that"})
    return make_pairs(rows, word_tokenizer(), continuation="whole")


@pytest.mark.parametrize("architecture", ["gpt_neox", "bloom"])
def test_whole_continuations_are_the_plain_models_sentences(architecture):
    model, pairs = HookedModel(random_model(architecture), word_tokenizer(), 1), whole_pairs()
    assert len(pairs) == 4 and pairs.left_out == {ONE_IS_BEGINNING: 1}
    assert pairs.answer_position.tolist() == [
        2,
        2,
        3,
        1,
    ]  # what is read first stays the first token that differs

    def log_probability(
        sentence,
    ):  # of all tokens after the end-of-text token, whatever both sentences share
        ids = torch.tensor([[0, *word_tokenizer()(sentence)["input_ids"]]])
        with torch.no_grad():
            log = model.hf_model(ids).logits[0].log_softmax(-1)
        return float(sum(log[i, ids[0, i + 1]] for i in range(ids.shape[1] - 1)))

    both = [*SENTENCES, ("cats run", "cats runs")]
    expected = torch.tensor(
        [log_probability(right) - log_probability(wrong) for right, wrong in both]
    )
    for size in (1, 3, 64):
        torch.testing.assert_close(
            behaviour.logit_differences(model, pairs, True, size), expected, rtol=1e-4, atol=1e-4
        )
    some = behaviour.logit_differences(model, pairs[[2, 0]], whole=True)
    torch.testing.assert_close(some, expected[[2, 0]], rtol=1e-4, atol=1e-4)
    assert behaviour.accuracy(model, pairs, whole=True) == float((expected > 0).double().mean())
    # one token each: the same as its logits
    torch.testing.assert_close(
        behaviour.logit_differences(model, pairs)[[0, 3]], expected[[0, 3]], rtol=1e-4, atol=1e-4
    )


def test_whole_and_first_are_told_apart(tmp_path):
    suite = random_suite(tmp_path, n=2)
    curves = [
        behaviour.accuracy_curve(suite, {"x": whole_pairs()}, device="cpu", whole=w)
        for w in (False, True)
    ]
    assert (curves[0]["logit_difference"] - curves[1]["logit_difference"]).abs().min() > 1e-3
    model = HookedModel(random_model(), word_tokenizer(), 1)
    with pytest.raises(
        ValueError, match="'pairs' hold first tokens only: make them with continuation='whole'"
    ):
        behaviour.accuracy(model, some_pairs(3), whole=True)
    with pytest.raises(
        ValueError, match="continuation='last' is not known; take one of first, whole"
    ):
        make_pairs([], word_tokenizer(), continuation="last")


def test_pairs_of_another_tokenizer_are_refused():
    model, pairs = HookedModel(random_model(), word_tokenizer(), 1), some_pairs(3)
    model.tokenizer.add_tokens(["newword"])
    pairs_module.tokenizer_fingerprint.cache_clear()
    with pytest.raises(ValueError, match="made with another tokenizer than that of 'model'"):
        behaviour.accuracy(model, pairs)
    pairs_module.tokenizer_fingerprint.cache_clear()


def test_curve_similarity_and_triplet_on_random_checkpoints(tmp_path):
    suite = random_suite(tmp_path, n=4)
    curve = behaviour.accuracy_curve(suite, {"some": some_pairs(9)}, device="cpu")
    assert curve["revision"].tolist() == suite.revisions and curve["tokens_seen"].tolist() == [
        0,
        1000,
        2000,
        3000,
    ]
    sim = similarity_matrix(suite, some_pairs(9), device="cpu")
    np.testing.assert_allclose(np.diag(sim), 1)
    np.testing.assert_allclose(sim, sim.T)


def test_a_curve_in_cells_says_where_something_distracts(tmp_path):
    suite, plain = random_suite(tmp_path), some_pairs(8)
    levels = [("sg", "sg"), ("sg", "pl"), ("pl", "sg"), ("pl", "pl")] * 2
    columns = ["subject_level", "attractor_level"]
    crossed = plain.table.assign(**pd.DataFrame(levels, columns=columns))
    crossed = replace(plain, table=crossed)
    one = replace(plain, table=plain.table.assign(subject_level=[s for s, _ in levels]))
    tasks = {"crossed": crossed, "one": one, "plain": plain}
    curve = behaviour.accuracy_curve(suite, tasks, suite.revisions[:1], device="cpu", cells=True)
    congruent = curve.set_index(["task", "cell"])["congruent"]
    assert congruent["crossed"].dropna().to_dict() == {
        "sg-sg": True, "sg-pl": False, "pl-sg": False, "pl-pl": True
    }  # fmt: skip
    assert congruent["one"].isna().all() and set(congruent["one"].index) == {"all", "sg", "pl"}
    assert list(congruent["plain"].index) == ["all"]
    whole, parts = curve[curve["cell"] == "all"], curve[curve["cell"] != "all"]
    means = parts.groupby("task")["accuracy"].mean()
    for task in ("crossed", "one"):
        assert means[task] == pytest.approx(whole.set_index("task").loc[task, "accuracy"])


def synthetic_curve(accuracies):
    rows = [(r, t, a) for r, by_task in accuracies.items() for t, a in by_task.items()]
    return pd.DataFrame(rows, columns=["revision", "task", "accuracy"])


def test_triplet_maximises_the_smaller_change_by_brute_force():
    rng = np.random.default_rng(0)
    names = [f"step{i}" for i in range(6)]
    curve = synthetic_curve({r: {"a": rng.random(), "b": 0.8 + 0.2 * rng.random()} for r in names})
    raw = rng.random((6, 6))
    sim = pd.DataFrame((raw + raw.T) / 2, names, names)
    choice = suggest_triplet(curve, sim)
    wide = curve.pivot(index="revision", columns="task", values="accuracy")

    def change(x, y):
        return (wide.loc[x] - wide.loc[y]).abs().mean() + 1 - sim.loc[x, y]

    best = max(
        ((x, y) for i, x in enumerate(names[:-1]) for y in names[i + 1 : -1]),
        key=lambda p: min(change(*p), change(p[1], names[-1])),
    )
    assert choice.revisions == [*best, "step5"]
    assert len(choice.table) == 10 and len(choice.reasons) == 3
    flat = synthetic_curve({r: {"a": 0.5} for r in names})
    with pytest.raises(
        ValueError, match=r"0.1 away from chance on average.*nothing to attribute so early"
    ):
        suggest_triplet(flat, sim)


def test_a_suggestion_from_a_curve_in_cells_counts_whole_tasks():
    names = [f"step{i}" for i in range(4)]
    accuracies = dict(zip(names, (0.5, 0.9, 0.35, 1.0), strict=True))
    curve = synthetic_curve({name: {"a": share} for name, share in accuracies.items()})
    sim = pd.DataFrame(np.eye(4), index=names, columns=names)
    cells = [curve.assign(cell="sg", accuracy=1.0), curve.assign(cell="pl", accuracy=0.0)]
    in_cells = suggest_triplet(pd.concat([curve.assign(cell="all"), *cells]), sim)
    pd.testing.assert_frame_equal(in_cells.table, suggest_triplet(curve, sim).table)


def test_a_triplet_is_not_suggested_from_numbers_that_are_none():
    names = ["step0", "step1", "step2"]
    curve = synthetic_curve({r: {"a": 0.9} for r in names})
    sim = pd.DataFrame(np.full((3, 3), 0.5), names, names)
    assert suggest_triplet(curve, sim).revisions == names
    holes = sim.copy()
    holes.loc["step1", "step2"] = np.nan
    with pytest.raises(
        ValueError, match=r"similarity of 'step1' .'step2'. is missing or not finite"
    ):
        suggest_triplet(curve, holes)
    with pytest.raises(ValueError, match=r"accuracy of 'step1' .'a'. is missing"):
        suggest_triplet(curve.assign(accuracy=[0.9, np.nan, 0.9]), sim)
    with pytest.raises(
        ValueError, match="Accuracies reach from 90 to 90: give shares between 0 and 1"
    ):
        suggest_triplet(curve.assign(accuracy=90.0), sim)


def test_a_tie_is_no_error_of_the_model():
    """A model whose logits are all alike knows nothing: one half, not 0."""
    hf_model = random_model()
    with torch.no_grad():
        hf_model.get_output_embeddings().weight.fill_(0.1)
    model = HookedModel(hf_model, word_tokenizer(), 1)
    assert behaviour.accuracy(model, some_pairs(9)) == 0.5


def test_twins_are_told_wherever_revisions_are_compared(tmp_path):
    for name, seed in (("step0", 0), ("step1", 0), ("step9", 1)):
        hf_model = random_model(seed=seed)
        if name == "step1":  # -0 is 0
            with torch.no_grad():
                hf_model.gpt_neox.layers[0].input_layernorm.bias.fill_(-0.0)
        hf_model.save_pretrained(tmp_path / name)
    word_tokenizer().save_pretrained(tmp_path)
    suite = load_suite(tmp_path)
    told = "step0 and step1 hold the same weights"
    with pytest.warns(UserWarning, match=told):
        behaviour.accuracy_curve(suite, {"x": some_pairs(3)}, device="cpu")
    with pytest.warns(UserWarning, match=told):
        similarity_matrix(suite, some_pairs(3), device="cpu")
    with pytest.warns(UserWarning, match=told):
        _ = suite.checkpoints(device="cpu").source


def test_numbers_that_are_not_finite_are_an_error(tmp_path):
    model = HookedModel(random_model(), word_tokenizer(), 1, label="late")
    with torch.no_grad():  # after the check at load: on words that it did not see
        model.hf_model.get_output_embeddings().weight[some_pairs(3).right[0]] = torch.nan
    with pytest.raises(NotFinite, match=r"Logits on 'pairs' of 'late' .float32 on cpu. are not"):
        behaviour.accuracy(model, some_pairs(3))
