"""Minimal pairs: tokens, splits, what is left out and why; real sets with the real tokenizer where
they are there.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import some_pairs, word_tokenizer

from ctt_helpers import pairs as tasks
from ctt_helpers.sources import published
from ctt_helpers.sources.suites import load_suite

# kept pairs, and those left out by reason (beginning, different pieces), counted with the real
# Pythia tokenizer
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

# sets in which pairs are the same once they are cut after the verb
REPEATING = {name for name in CLAMS if "long" not in name}

TINY = load_suite("tiny")


@pytest.fixture(scope="module")
def pythia_tokenizer(shared):
    from transformers import PreTrainedTokenizerFast

    file = shared / "data" / "gpt-neox-tokenizer" / "tokenizer.json"
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


def test_pairs_are_right_padded_prefixes_with_their_answer_position():
    pairs = some_pairs(5)
    tokenizer = word_tokenizer()
    for i, text in enumerate(
        [
            "the dog",
            "the dog near the cats",
            "a cat that the dogs see",
            "the old red dog often",
            "cats",
        ]
    ):
        ids = [0, *tokenizer(text)["input_ids"]]
        assert pairs.input_ids[i, : len(ids)].tolist() == ids
        assert pairs.attention_mask[i].tolist() == [1] * len(ids) + [0] * (
            pairs.input_ids.shape[1] - len(ids)
        )
        assert pairs.answer_position[i] == len(ids) - 1
    assert (
        tokenizer.decode([pairs.right[0]]) == " runs"
        and tokenizer.decode([pairs.wrong[0]]) == " run"
    )
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


words = st.sampled_from(["dog", "cat", "near", "runs", "old"])


@settings(max_examples=60)
@given(
    st.lists(words, min_size=1, max_size=4),
    st.lists(words, max_size=3),
    st.lists(words, max_size=3),
)
def test_the_rule_for_continuations_of_several_tokens(prefix, right, wrong):
    """Each word is a token here, so the rule can be said in words."""
    row = {"prefix": " ".join(prefix)}
    row |= {"right": "".join(f" {w}" for w in right), "wrong": "".join(f" {w}" for w in wrong)}
    differ = [i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b]
    if len(right) == len(wrong) and len(differ) == 1:  # one token differs: kept, cut there
        pairs = tasks.make_pairs([row], word_tokenizer())
        shared = [*prefix, *right[: differ[0]]]
        assert word_tokenizer().decode(pairs.input_ids[0, 1:]) == " ".join(shared)
        assert word_tokenizer().decode([pairs.right[0]]) == f" {right[differ[0]]}"
        assert word_tokenizer().decode([pairs.wrong[0]]) == f" {wrong[differ[0]]}"
        return
    with pytest.raises(ValueError, match="No pair of 'pairs' can be used") as told:
        tasks.make_pairs([row], word_tokenizer())
    if right == wrong:
        reason = tasks.IDENTICAL if right else tasks.NOT_TEXT
    else:
        reason = tasks.DIFFERENT_PIECES if differ else tasks.ONE_IS_BEGINNING
    assert f"{reason} (1)" in str(told.value)


@pytest.mark.parametrize("name", BLIMP)
def test_blimp_with_the_real_tokenizer(name, shared, pythia_tokenizer):
    rows = published.published_rows(f"blimp/{name}", shared / "data" / "blimp")
    pairs = tasks.make_pairs(rows, pythia_tokenizer, name)
    kept, beginning, pieces = BLIMP[name]
    repeated = pairs.left_out.get(tasks.REPEATED, 0)
    assert len(rows) == 1000 and len(pairs) + repeated == kept
    assert pairs.left_out[tasks.ONE_IS_BEGINNING] == beginning
    assert pairs.left_out[tasks.DIFFERENT_PIECES] == pieces
    whole = tasks.make_pairs(rows, pythia_tokenizer, name, continuation="whole")
    assert (
        len(whole) == 1000 and whole.left_out == {}
    )  # what follows tells even " swim" from " swims"
    # published prefixes agree with ours
    import json

    records = [
        json.loads(x)
        for x in (shared / "data" / "blimp" / f"{name}.jsonl").read_text().splitlines()
    ]
    for row, pair in zip(rows, records, strict=True):
        assert row["prefix"] == pair["one_prefix_prefix"]
        assert pair["one_prefix_word_good"].startswith(row["right"].strip())


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAMS)
def test_clams_with_the_real_tokenizer(name, shared, pythia_tokenizer):
    language, construction = name.split("/")
    rows = published.published_rows(f"clams/{language}/{construction}", shared / "data" / "clams")
    pairs = tasks.make_pairs(rows, pythia_tokenizer, name)
    kept, beginning, pieces = CLAMS[name]
    # what comes after the verb is cut off: many pairs are then the same one
    assert len(pairs) + pairs.left_out.get(tasks.REPEATED, 0) == kept
    answers = zip(pairs.input_ids.tolist(), pairs.right.tolist(), pairs.wrong.tolist(), strict=True)
    assert len({(*ids, right, wrong) for ids, right, wrong in answers}) == len(pairs)
    assert (len(pairs) < kept) == (name in REPEATING)
    assert pairs.left_out.get(tasks.ONE_IS_BEGINNING, 0) == beginning
    assert pairs.left_out.get(tasks.DIFFERENT_PIECES, 0) == pieces
    if len(rows) < 2000:  # the others say the same, slowly
        whole = tasks.make_pairs(rows, pythia_tokenizer, name, continuation="whole")
        assert (
            len(whole) == kept + pieces
            and whole.left_out.get(tasks.ONE_IS_BEGINNING, 0) == beginning
        )


def test_examples_checked_by_hand(pythia_tokenizer):
    def make(prefix, right, wrong):
        return tasks.make_pairs(
            [{"prefix": prefix, "right": f" {right}", "wrong": f" {wrong}"}], pythia_tokenizer
        )

    def words(ids):
        return [pythia_tokenizer.decode([i]) for i in ids]

    one = make("Those radii", "have", "has")  # one token a side
    assert words(one.input_ids[0])[0] == "<|endoftext|>" and words(
        [one.right[0], one.wrong[0]]
    ) == [" have", " has"]
    cut = make(
        "A niece of most senators", "hasn't", "haven't"
    )  # " hasn" + "'t": cut after the differing token
    assert words([cut.right[0], cut.wrong[0]]) == [" hasn", " haven"] and cut.left_out == {}
    french = make(
        "les auteurs", "déménagent", "déménage"
    )  # three equal tokens move into the prefix
    assert words([french.right[0], french.wrong[0]]) == ["agent", "age"]
    assert pythia_tokenizer.decode(french.input_ids[0, 1:]) == "les auteurs démén"
    for prefix, right, wrong, reason in (
        ("the author", "swims", "swim", tasks.ONE_IS_BEGINNING),  # " swim" + "s"
        ("les auteurs", "parlent", "parle", tasks.DIFFERENT_PIECES),  # " parl|ent", " par|le"
    ):
        with pytest.raises(ValueError, match=reason):
            make(prefix, right, wrong)


def test_sets_without_a_common_prefix_are_for_whole_sentences(shared, pythia_tokenizer):
    name = "regular_plural_subject_verb_agreement_2"
    rows = published.published_rows(f"blimp/{name}", shared / "data" / "blimp")
    told = rf"prefixes differ, not the continuations.*\({len(rows)}\).*continuation='whole'"
    with pytest.raises(ValueError, match=told):
        tasks.make_pairs(rows, pythia_tokenizer, name)
    assert len(tasks.make_pairs(rows, pythia_tokenizer, name, continuation="whole")) == len(rows)


def test_splits_never_share_a_prefix(shared):
    rows = published.published_rows("clams/en/prep_anim", shared / "data" / "clams")
    find = {r["prefix"] for r in rows if tasks.in_split(r["prefix"], "find")}
    test = {r["prefix"] for r in rows if tasks.in_split(r["prefix"], "test")}
    assert not find & test and min(len(find), len(test)) > 0.4 * len(find | test)
    with pytest.raises(ValueError, match="take one of find, test"):
        tasks.in_split("the", "train")


# ---- rows that are no pairs, pairs that repeat, samples


def test_one_bad_row_never_ends_a_set():
    rows = [
        {"prefix": "the dog", "right": " runs", "wrong": " run"},
        {"prefix": "the dog", "right": " runs", "wrong": " run"},
        {"prefix": "the cat", "right": " runs", "wrong": " runs"},
        {"prefix": None, "right": " runs", "wrong": " run"},
        {"prefix": "the cat", "right": 3, "wrong": " run"},
        {},
        {"left_out": "a line of noise"},
    ]
    pairs = tasks.make_pairs(rows, word_tokenizer())
    assert pairs.text == ["the dog runs/*run"]
    assert pairs.left_out == {
        tasks.REPEATED: 1,
        tasks.IDENTICAL: 1,
        tasks.NOT_TEXT: 3,
        "a line of noise": 1,
    }
    with pytest.raises(ValueError, match="No pair of 'pairs' can be used: a sentence of the pair"):
        tasks.make_pairs([{}], word_tokenizer())
    with pytest.raises(ValueError, match="No pair of 'pairs' can be used: there is none"):
        tasks.make_pairs([], word_tokenizer())


@settings(max_examples=30)
@given(st.integers(1, 240), st.integers(0, 3))
def test_a_sample_is_drawn_over_the_whole_set_by_seed(n, seed):
    pairs = TINY.pairs("agreement/pp", split="find")
    some, again = pairs.sample(n, seed), pairs.sample(n, seed)
    assert some.text == again.text and len(some) == n
    at = [pairs.text.index(text) for text in some.text]
    assert at == sorted(at)  # in the order of the file
    if 20 <= n <= 220:
        assert max(at) > 120 > min(at)
        assert some.text != pairs.sample(n, seed + 10).text
        # twins stay together, so that no cell is drawn more often than another
        counts = [int((some.cells == cell).sum()) for cell in set(pairs.cells)]
        assert max(counts) - min(counts) <= 1


def test_numbers_that_are_no_numbers_of_pairs():
    for n in (-1, 0, 2.5, True):
        with pytest.raises(ValueError, match=rf"n={n}: give a whole number"):
            TINY.pairs("agreement/pp", n=n)
    with pytest.raises(ValueError, match="batch_size=0: give a whole number of at least 1"):
        list(some_pairs().batches(0))


def test_pairs_begin_as_text_does():
    tokenizer = word_tokenizer(bos=None)
    assert tasks.start_token(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a beginning-of-text nor an end-of-text token"):
        tasks.make_pairs([{"prefix": "the", "right": " dog", "wrong": " dogs"}], tokenizer)


def test_twins_are_the_pairs_of_the_same_words():
    pairs = TINY.pairs("agreement/pp", split="find")
    label = tasks.twins(pairs)
    for words in ("head", "attractor", "verb"):
        assert (pairs.table.groupby(label)[words].nunique() == 1).all()
    assert (np.bincount(label) >= 4).all()
    # the words of a group differ where its levels are words: it is one observation all the same
    other = TINY.pairs("gender/pp", split="find")
    label = tasks.twins(other)
    assert (other.table.groupby("group")["head"].nunique() == 2).all()
    assert (pd.Series(label).groupby(other.table["group"]).nunique() == 1).all()
    without = replace(pairs, table=pairs.table.drop(columns="group"))
    assert (tasks.twins(without, words=["nothing"]) == np.arange(len(pairs))).all()


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_twins_join_by_words_and_by_groups_also_by_way_of_a_third(rows):
    """Against a graph: pairs are connected that share their words or their group."""
    heads, groups = zip(*rows, strict=True)
    n = len(rows)
    pairs = some_pairs()[[0] * n]
    pairs = replace(pairs, table=pd.DataFrame({"head": heads, "group": groups}))
    linked = np.eye(n, dtype=bool)
    linked |= np.equal.outer(heads, heads) | np.equal.outer(groups, groups)
    for _ in range(n):
        linked = linked @ linked
    label = tasks.twins(pairs)
    assert (np.equal.outer(label, label) == linked).all()


def test_cells_of_a_design():
    pairs = TINY.pairs("agreement/nested_pp")
    assert pairs.levels == {
        "subject": ["sg", "pl"], "attractor": ["sg", "pl"], "other": ["sg", "pl"],
    }  # fmt: skip
    some = pairs.cell("sg", "pl")
    assert set(some.cells) == {"sg-pl-sg", "sg-pl-pl"} and len(some) == len(pairs) / 4
    assert set(pairs.cell("sg", "pl", other="pl").cells) == {"sg-pl-pl"}
    assert set(pairs[pairs.congruent].cells) == {"sg-sg-sg", "pl-pl-pl"}
    with pytest.raises(ValueError, match="no level 'dual' of 'attractor'"):
        pairs.cell(attractor="dual")
    with pytest.raises(ValueError, match="no level 'sg' of 'colour'"):
        pairs.cell(colour="sg")
    simple = TINY.pairs("agreement/simple")
    assert set(simple.cells) == {"sg", "pl"}
    with pytest.raises(ValueError, match="nothing is crossed with the subject"):
        _ = simple.congruent
    plain = some_pairs()
    assert plain.levels == {} and set(plain.cells) == {""}
    with pytest.raises(ValueError, match="There are: none"):
        plain.cell("sg")
    with pytest.raises(ValueError, match="split='fra'"):
        TINY.pairs("agreement/pp", split="fra")


def test_partners_differ_in_one_factor_alone():
    pairs = TINY.pairs("agreement/nested_pp", split="far")
    columns = [f"{factor}_level" for factor in pairs.levels]
    for factor in pairs.levels:
        partner = pairs.partners(factor)
        assert (partner[partner] == np.arange(len(pairs))).all()
        other = pairs.table.iloc[partner].reset_index(drop=True)
        assert (other["group"] == pairs.table["group"]).all()
        differs = other[columns] != pairs.table[columns]
        assert (differs == [column == f"{factor}_level" for column in columns]).all(axis=None)
    half = pairs.cell("sg")
    with pytest.raises(ValueError, match=r"'subject' has the levels \['sg'\]"):
        half.partners("subject")
    alone = pairs[[0, *range(9, len(pairs))]]  # the first pair has lost its group
    assert alone.partners("attractor")[0] == -1 and (alone.partners("attractor")[1:] >= -1).all()


def test_every_set_of_blimp_can_be_compared_as_whole_sentences(shared, pythia_tokenizer):
    for file in sorted((shared / "data" / "blimp").glob("*.jsonl")):
        rows = published.published_rows(f"blimp/{file.stem}", file)
        pairs = tasks.make_pairs(rows, pythia_tokenizer, continuation="whole")
        assert len(pairs) + sum(pairs.left_out.values()) == 1000 and len(pairs) > 900, file.name


def test_short_names_are_never_alike():
    names = ["agreement/pp", "gender/pp", "gender/simple", "clams/en/pp_anim", "clams/fr/pp_anim"]
    short = tasks.short_names(names)
    expected = ["agreement_pp", "gender_pp", "simple", "en_pp_anim", "fr_pp_anim"]
    assert list(short.values()) == expected
