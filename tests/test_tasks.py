"""Minimal pairs: tokens, splits, what is left out and why; real sets with the real tokenizer where they are there."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_model, random_suite, some_pairs, word_tokenizer

from ctt_helpers import published, tasks
from ctt_helpers.hooks import HookedModel
from ctt_helpers.triplets import similarity_matrix, suggest_triplet

# kept pairs, and those left out by reason (beginning, different pieces), counted with the real Pythia tokenizer
BLIMP = {
    "distractor_agreement_relational_noun": (918, 39, 43),
    "distractor_agreement_relative_clause": (876, 31, 93),
    "irregular_plural_subject_verb_agreement_1": (857, 49, 94),
    "regular_plural_subject_verb_agreement_1": (829, 44, 127),
}
CLAMS = {
    "en/simple_agrmt": (120, 20, 0),
    "en/prep_anim": (14400, 2400, 0),
    "en/subj_rel": (9600, 1600, 0),
    "en/obj_rel_across_anim": (9600, 1600, 0),
    "en/vp_coord": (720, 120, 0),
    "en/long_vp_coord": (400, 0, 0),
    "fr/simple_agrmt": (200, 0, 80),
    "fr/prep_anim": (10000, 0, 4000),
    "fr/subj_rel": (8000, 0, 3200),
    "fr/obj_rel_across_anim": (8000, 0, 3200),
    "fr/vp_coord": (700, 0, 280),
    "fr/long_vp_coord": (200, 0, 300),
}


@pytest.fixture(scope="module")
def pythia_tokenizer(shared):
    from transformers import PreTrainedTokenizerFast

    file = shared / "data" / "gpt-neox-tokenizer" / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def test_pairs_are_right_padded_prefixes_with_their_answer_position():
    pairs = some_pairs(5)
    tokenizer = word_tokenizer()
    for i, text in enumerate(
        ["the dog", "the dog near the cats", "a cat that the dogs see", "the old red dog often", "cats"]
    ):
        ids = [0, *tokenizer(text)["input_ids"]]
        assert pairs.input_ids[i, : len(ids)].tolist() == ids
        assert pairs.attention_mask[i].tolist() == [1] * len(ids) + [0] * (pairs.input_ids.shape[1] - len(ids))
        assert pairs.answer_position[i] == len(ids) - 1
    assert tokenizer.decode([pairs.right[0]]) == " runs" and tokenizer.decode([pairs.wrong[0]]) == " run"
    assert pairs.text[0] == "the dog runs/*run"


def test_slices_masks_and_batches_keep_rows_together():
    pairs = some_pairs(9)
    assert len(pairs[2:5]) == 3 and pairs[2:5].text == pairs.text[2:5]
    assert pairs[[4]].input_ids.shape == (1, 2)  # cut to its own prefix
    mask = np.array([t.startswith("the") for t in pairs.text])
    assert pairs[mask].text == [t for t in pairs.text if t.startswith("the")]
    assert [t for batch in pairs.batches(4) for t in batch.text] == pairs.text
    with pytest.raises(TypeError, match="Index minimal pairs by a slice"):
        pairs[3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=4),
    st.lists(st.integers(10, 14), max_size=3),
    st.lists(st.integers(10, 14), max_size=3),
)
def test_the_rule_for_continuations_of_several_tokens(prefix, right, wrong):
    reason, kept, answers = tasks._cut(prefix + right, prefix + wrong, prefix)
    differ = [i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b]
    if not differ:
        assert reason == tasks.ONE_IS_BEGINNING
    elif len(right) == len(wrong) and len(differ) == 1:  # one token differs: kept, cut there
        assert reason is None
        assert (kept, answers) == (prefix + right[: differ[0]], (right[differ[0]], wrong[differ[0]]))
    else:
        assert reason == tasks.DIFFERENT_PIECES


@pytest.mark.parametrize("name", BLIMP)
def test_blimp_with_the_real_tokenizer(name, shared, pythia_tokenizer):
    rows = published.published_rows(f"blimp/{name}", shared / "data" / "blimp")
    pairs = tasks.make_pairs(rows, pythia_tokenizer, name)
    kept, beginning, pieces = BLIMP[name]
    assert len(rows) == 1000 and len(pairs) == kept
    assert pairs.left_out == {tasks.ONE_IS_BEGINNING: beginning, tasks.DIFFERENT_PIECES: pieces}
    whole = tasks.make_pairs(rows, pythia_tokenizer, name, continuation="whole")
    assert len(whole) == 1000 and whole.left_out == {}  # what follows tells even " swim" from " swims"
    # published prefixes agree with ours
    import json

    records = [json.loads(x) for x in (shared / "data" / "blimp" / f"{name}.jsonl").read_text().splitlines()]
    for row, pair in zip(rows, records, strict=True):
        assert row["prefix"] == pair["one_prefix_prefix"]
        assert pair["one_prefix_word_good"].startswith(row["right"].strip())


@pytest.mark.parametrize("name", CLAMS)
def test_clams_with_the_real_tokenizer(name, shared, pythia_tokenizer):
    language, construction = name.split("/")
    rows = published.published_rows(f"clams/{language}/{construction}", shared / "data" / "clams")
    pairs = tasks.make_pairs(rows, pythia_tokenizer, name)
    kept, beginning, pieces = CLAMS[name]
    assert len(pairs) == kept
    assert pairs.left_out.get(tasks.ONE_IS_BEGINNING, 0) == beginning
    assert pairs.left_out.get(tasks.DIFFERENT_PIECES, 0) == pieces
    if len(rows) < 2000:  # the others say the same, slowly
        whole = tasks.make_pairs(rows, pythia_tokenizer, name, continuation="whole")
        assert len(whole) == kept + pieces and whole.left_out.get(tasks.ONE_IS_BEGINNING, 0) == beginning


def test_examples_checked_by_hand(pythia_tokenizer):
    def make(prefix, right, wrong):
        return tasks.make_pairs([{"prefix": prefix, "right": f" {right}", "wrong": f" {wrong}"}], pythia_tokenizer)

    def words(ids):
        return [pythia_tokenizer.decode([i]) for i in ids]

    one = make("Those radii", "have", "has")  # one token a side
    assert words(one.input_ids[0])[0] == "<|endoftext|>" and words([one.right[0], one.wrong[0]]) == [" have", " has"]
    cut = make("A niece of most senators", "hasn't", "haven't")  # " hasn" + "'t": cut after the differing token
    assert words([cut.right[0], cut.wrong[0]]) == [" hasn", " haven"] and cut.left_out == {}
    french = make("les auteurs", "déménagent", "déménage")  # three equal tokens move into the prefix
    assert words([french.right[0], french.wrong[0]]) == ["agent", "age"]
    assert pythia_tokenizer.decode(french.input_ids[0, 1:]) == "les auteurs démén"
    for prefix, right, wrong, reason in (
        ("the author", "swims", "swim", tasks.ONE_IS_BEGINNING),  # " swim" + "s"
        ("les auteurs", "parlent", "parle", tasks.DIFFERENT_PIECES),  # " parl|ent", " par|le"
    ):
        with pytest.raises(ValueError, match=reason):
            make(prefix, right, wrong)


def test_two_prefix_sets_are_refused(shared):
    with pytest.raises(ValueError, match=r"two-prefix set\). Take its \*_1 set"):
        published.published_rows("blimp/regular_plural_subject_verb_agreement_2", shared / "data" / "blimp")


def test_splits_never_share_a_prefix(shared, tmp_path):
    suite = random_suite(tmp_path)
    suite.tokenizer = None  # never used below: rows only
    rows = published.published_rows("clams/en/prep_anim", shared / "data" / "clams")
    find = {r["prefix"] for r in rows if tasks.in_split(r["prefix"], "find")}
    test = {r["prefix"] for r in rows if tasks.in_split(r["prefix"], "test")}
    assert not find & test and min(len(find), len(test)) > 0.4 * len(find | test)
    with pytest.raises(ValueError, match="take one of find, test"):
        tasks.in_split("the", "train")


def test_accuracy_is_the_plain_models(tmp_path):
    model = HookedModel(random_model(), word_tokenizer(), 1)
    pairs, right = some_pairs(9), 0
    for i in range(9):
        length = int(pairs.attention_mask[i].sum())
        with torch.no_grad():
            logits = model.hf_model(pairs.input_ids[i : i + 1, :length]).logits[0, -1]
        right += bool(logits[pairs.right[i]] > logits[pairs.wrong[i]])
    assert tasks.accuracy(model, pairs) == right / 9
    a, b = (tasks.logit_differences(model, pairs, batch_size=size) for size in (2, 256))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


SENTENCES = [
    ("the dog runs", "the dog run"),
    ("a cat sees the red dog", "a cat see the red dog"),
    ("the dogs near that cat often run", "the dogs near the cats run"),
]


def whole_pairs():
    rows = [published.from_sentences(right, wrong) for right, wrong in SENTENCES]
    rows.append({"prefix": "cats", "right": " run", "wrong": " runs"})  # no sentence given: these two words
    rows.append({"prefix": "the", "right": " dog", "wrong": " dog that"})
    return tasks.make_pairs(rows, word_tokenizer(), continuation="whole")


@pytest.mark.parametrize("architecture", ["gpt_neox", "bloom"])
def test_whole_continuations_are_the_plain_models_sentences(architecture):
    model, pairs = HookedModel(random_model(architecture), word_tokenizer(), 1), whole_pairs()
    assert len(pairs) == 4 and pairs.left_out == {tasks.ONE_IS_BEGINNING: 1}
    assert pairs.answer_position.tolist() == [2, 2, 3, 1]  # what is read first stays the first token that differs

    def log_probability(sentence):  # of all tokens after the end-of-text token, whatever both sentences share
        ids = torch.tensor([[0, *word_tokenizer()(sentence)["input_ids"]]])
        with torch.no_grad():
            log = model.hf_model(ids).logits[0].log_softmax(-1)
        return float(sum(log[i, ids[0, i + 1]] for i in range(ids.shape[1] - 1)))

    both = [*SENTENCES, ("cats run", "cats runs")]
    expected = torch.tensor([log_probability(right) - log_probability(wrong) for right, wrong in both])
    for size in (1, 3, 64):
        torch.testing.assert_close(tasks.logit_differences(model, pairs, True, size), expected, rtol=1e-4, atol=1e-4)
    some = tasks.logit_differences(model, pairs[[2, 0]], whole=True)
    torch.testing.assert_close(some, expected[[2, 0]], rtol=1e-4, atol=1e-4)
    assert tasks.accuracy(model, pairs, whole=True) == float((expected > 0).double().mean())
    # one token each: the same as its logits
    torch.testing.assert_close(tasks.logit_differences(model, pairs)[[0, 3]], expected[[0, 3]], rtol=1e-4, atol=1e-4)


def test_whole_and_first_are_told_apart(tmp_path):
    suite = random_suite(tmp_path, n=2)
    curves = [tasks.accuracy_curve(suite, {"x": whole_pairs()}, device="cpu", whole=w) for w in (False, True)]
    assert (curves[0]["logit_difference"] - curves[1]["logit_difference"]).abs().min() > 1e-3
    model = HookedModel(random_model(), word_tokenizer(), 1)
    with pytest.raises(ValueError, match="'pairs' hold first tokens only: make them with continuation='whole'"):
        tasks.accuracy(model, some_pairs(3), whole=True)
    with pytest.raises(ValueError, match="continuation='last' is not known; take one of first, whole"):
        tasks.make_pairs([], word_tokenizer(), continuation="last")


def test_pairs_of_another_tokenizer_are_refused():
    model, pairs = HookedModel(random_model(), word_tokenizer(), 1), some_pairs(3)
    model.tokenizer.add_tokens(["newword"])
    tasks.tokenizer_fingerprint.cache_clear()
    with pytest.raises(ValueError, match="made with another tokenizer than that of 'model'"):
        tasks.accuracy(model, pairs)
    tasks.tokenizer_fingerprint.cache_clear()


def test_curve_similarity_and_triplet_on_random_checkpoints(tmp_path):
    suite = random_suite(tmp_path, n=4)
    curve = tasks.accuracy_curve(suite, {"some": some_pairs(9)}, device="cpu")
    assert curve["revision"].tolist() == suite.revisions and curve["tokens_seen"].tolist() == [0, 1000, 2000, 3000]
    sim = similarity_matrix(suite, some_pairs(9), device="cpu")
    np.testing.assert_allclose(np.diag(sim), 1)
    np.testing.assert_allclose(sim, sim.T)


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
    with pytest.raises(ValueError, match=r"0.1 away from chance on average.*nothing to attribute so early"):
        suggest_triplet(flat, sim)
