"""Scores of names: sentences and activations by another way, figures against scipy and by hand."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from scipy import stats

import ctt_helpers as ctt
from ctt_helpers.notebook import naming

FEATURES = [437, 401, 501]


@pytest.fixture(scope="module")
def setting():
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder)
    shown = suite.text(6_000, split="validation", seed=1)
    text = suite.text(12_000, split="validation", seed=2)
    return ckpts, crosscoder, text, shown


@pytest.fixture(scope="module")
def sentences(setting) -> naming.Sentences:
    ckpts, crosscoder, text, shown = setting
    return naming.sentences_of(crosscoder, ckpts, text, FEATURES, shown)


def made(n: int = 20, seed: int = 0) -> naming.NamingTest:
    active = np.random.default_rng(seed).permutation(np.arange(2 * n) < n)
    items = [f"1-{i:08d}" for i in range(2 * n)]
    return naming.NamingTest(1, items, [f"s{i}." for i in range(2 * n)], active, active * 1.0)


# ---- the questions


def test_sentences_are_those_of_the_text_with_their_activations(setting, sentences):
    """Against the decoded rows, cut by a regular expression, and all latents encoded at once."""
    ckpts, crosscoder, text, shown = setting
    decode = ckpts.tokenizer.decode
    f = crosscoder.encode(ctt.activations.stacked_activations(ckpts, text)).detach().numpy()
    expected = {}
    for row, ids in enumerate(text.tolist()):
        words, start = [decode([i]) for i in ids], 1
        for at, word in enumerate(words):
            if word == "<|endoftext|>":
                start = at + 1
            elif word == ".":
                said = "".join(words[start : at + 1]).strip()
                expected.setdefault(said, f[row, start : at + 1][:, FEATURES].max(0))
                start = at + 1
    before = set()
    for ids in shown.tolist():
        for document in decode(ids).split("<|endoftext|>"):
            before |= set(re.findall(r"[A-Z][^.]*\.", document))
    assert len(sentences.text) == len(set(sentences.text)) > 1000
    assert not set(sentences.text) & before
    for said, peak in zip(sentences.text, sentences.peak, strict=True):
        assert re.fullmatch(r"[A-Z][^.]*\.", said), said
        assert np.allclose(peak, expected[said], atol=1e-4), said
    # what is missing was shown, is too short, or was cut off where a row begins
    missing = [said for said in set(expected) - set(sentences.text) if said[:1].isupper()]
    assert all(said in before or len(said.split()) < 3 for said in missing)


def test_a_test_is_balanced_and_drawn_by_its_seed(sentences):
    test = naming.naming_test(sentences, 401, n=15)
    peak = dict(zip(sentences.text, sentences.peak[:, FEATURES.index(401)], strict=True))
    assert test.active.sum() == 15 and len(test.sentences) == len(set(test.items)) == 30
    for said, active in zip(test.sentences, test.active, strict=True):
        assert (peak[said] > 0) == active
    assert naming.naming_test(sentences, 401, n=15).sentences == test.sentences
    assert naming.naming_test(sentences, 401, n=15, seed=1).sentences != test.sentences
    assert set(test.active[:15]) == {True, False}  # the order gives nothing away
    strong = naming.naming_test(sentences, 401, n=15, least=0.5)
    assert strong.peak[strong.active].min() > 0.5 * max(peak.values())
    assert not strong.peak[~strong.active].any()


def test_too_few_sentences_and_other_features_are_told(sentences, setting):
    with pytest.raises(ValueError, match="Feature 401 is active in"):
        naming.naming_test(sentences, 401, n=5_000)
    with pytest.raises(ValueError, match="Feature 7 was not asked for"):
        naming.naming_test(sentences, 7)
    with pytest.raises(ValueError, match=r"least=1\.5"):
        naming.naming_test(sentences, 401, least=1.5)
    ckpts, crosscoder, text, _ = setting
    with pytest.raises(ValueError, match="No whole sentence is left"):
        naming.sentences_of(crosscoder, ckpts, text[:5], [1], shown=text)


# ---- asking and reading


def test_questions_go_out_without_the_truth_and_answers_come_back(sentences, tmp_path):
    test = naming.naming_test(sentences, 501, n=10)
    file = test.ask(tmp_path / "ask.csv")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "item,sentence,answer" and len(lines) == 21
    assert all(line.endswith(",") for line in lines[1:])
    with pytest.raises(FileExistsError, match="may hold answers"):
        test.ask(file)
    with pytest.raises(ValueError, match=r"line 2 .*the answer is nothing; write yes or no"):
        naming.read_answers(file)
    rule = test.answer(lambda said: bool(re.search(r"\b([Nn]o|[Ff]ew)\b", said)))
    said = [line + ("yes" if rule[line.split(",")[0]] else "No.") for line in lines[1:]]
    file.write_text("\n".join([lines[0], *said]), encoding="utf-8")
    assert naming.read_answers(file) == rule
    as_json = tmp_path / "answers.json"
    as_json.write_text(json.dumps([{"item": i, "answer": a} for i, a in rule.items()]))
    assert naming.read_answers(as_json) == rule
    as_json.write_text(json.dumps({item: float(a) for item, a in rule.items()}))
    assert naming.score(test, naming.read_answers(as_json)) == naming.score(test, rule)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", "x", r"come as \.csv or \.json"),
        ("a.csv", "item,reply\n1,yes\n", "item, reply; it needs item and answer"),
        ("a.csv", "", "it needs item and answer"),
        ("a.csv", "item,answer\n", "holds no answers"),
        ("a.csv", "item,answer\na,yes\na,no\n", "line 3: a is answered a second time"),
        ("a.csv", "item,answer\na,maybe\n", r"line 2 \(a\): the answer is 'maybe'"),
        ("a.csv", "item,answer\na,1.5\n", "a probability from 0 to 1"),
        ("a.csv", "item,answer\na,nan\n", "a probability from 0 to 1"),
        ("a.json", '[{"item": "a"}]', "give a list of"),
        ("a.json", '{"a": null}', r"\(a\): the answer is None"),
        ("a.json", "[", "not valid JSON"),
    ],
)
def test_answers_that_are_none_are_told(name, content, told, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        naming.read_answers(tmp_path / name)


def test_answers_to_another_test_are_refused(sentences):
    test, other = (naming.naming_test(sentences, 437, n=10, seed=seed) for seed in (0, 1))
    answers = test.answer(lambda said: True)
    with pytest.raises(ValueError, match="items have no answer"):
        naming.score(other, answers)
    with pytest.raises(ValueError, match="is no item of this test"):
        naming.score(test, answers | {"437-x": True})
    first = dict(list(answers.items())[1:])
    with pytest.raises(ValueError, match=f"1 of 20 items have no answer, such as {test.items[0]}"):
        naming.score(test, first)


# ---- the score


def test_balanced_accuracy_by_hand():
    test = made(n=20)
    yes = np.zeros(40, bool)
    yes[np.flatnonzero(test.active)[:15]] = True  # 15 of 20
    yes[np.flatnonzero(~test.active)[:2]] = True  # and 2 of 20 that are not
    found = naming.score(test, dict(zip(test.items, yes, strict=True)))
    assert found.kind == "balanced accuracy" and found.value == pytest.approx((0.75 + 0.9) / 2)
    assert (found.said_active, found.said_inactive) == (0.75, 0.9)
    ends = [stats.binomtest(k, 20).proportion_ci(method="wilson") for k in (15, 18)]
    below = np.hypot(0.75 - ends[0].low, 0.9 - ends[1].low) / 2
    above = np.hypot(ends[0].high - 0.75, ends[1].high - 0.9) / 2
    assert found.low == pytest.approx(found.value - below, abs=1e-3)
    assert found.high == pytest.approx(found.value + above, abs=1e-3)
    assert "0.82" in str(found) and "chance 0.5" in str(found)


def test_auroc_is_the_share_of_pairs_in_order():
    test = made(n=20)
    said = np.round(np.random.default_rng(3).random(40) * 0.6 + 0.3 * test.active, 1)  # with ties
    found = naming.score(test, dict(zip(test.items, said, strict=True)))
    on, off = said[test.active][:, None], said[~test.active][None]
    pairs = ((on > off) + 0.5 * (on == off)).mean()
    assert found.kind == "AUROC" and found.value == pytest.approx(pairs)
    assert found.low < pairs < found.high
    again = naming.score(test, dict(zip(test.items, said, strict=True)), kind="balanced accuracy")
    assert again.value == pytest.approx((again.said_active + again.said_inactive) / 2)


def test_perfect_hopeless_and_lazy_answers():
    test = made(n=20)
    truth = dict(zip(test.items, test.active.tolist(), strict=True))
    for kind in naming.KINDS:
        perfect = naming.score(test, truth, kind)
        assert perfect.value == 1 and perfect.high == pytest.approx(1) and 0.8 < perfect.low < 0.95
        wrong = naming.score(test, {item: not a for item, a in truth.items()}, kind)
        assert wrong.value == wrong.low == 0
        lazy = naming.score(test, dict.fromkeys(truth, True), kind)
        assert lazy.value == 0.5 and lazy.guessing == 0.5
        unsure = naming.score(test, dict.fromkeys(truth, 0.5), kind)
        assert unsure.value == 0.5
    too_broad = naming.score(test, dict.fromkeys(truth, True))
    assert too_broad.said_active == 1 and too_broad.said_inactive == 0
    with pytest.raises(ValueError, match="kind='f1' is not known"):
        naming.score(test, truth, "f1")


@pytest.mark.parametrize(("kind", "n"), [("balanced accuracy", 20), ("AUROC", 15)])
def test_intervals_hold_the_truth_as_often_as_they_say(kind, n, monkeypatch):
    monkeypatch.setattr(naming, "GUESSES", 2)
    test, draw = made(n), np.random.default_rng(0)
    held = 0
    for _ in range(800):
        if kind == "AUROC":  # normals a standard deviation apart, as probabilities
            raw = draw.normal(size=2 * n) + test.active
            said, truth = stats.norm.cdf(raw), stats.norm.cdf(1 / np.sqrt(2))
        else:
            yes = np.where(test.active, draw.random(2 * n) < 0.9, draw.random(2 * n) < 0.4)
            said, truth = yes, (0.9 + 0.6) / 2
        found = naming.score(test, dict(zip(test.items, said.tolist(), strict=True)), kind)
        held += found.low <= truth <= found.high
    assert 0.93 < held / 800 <= 1


def test_guessers_stay_below_what_is_said_of_them():
    test, draw = made(n=20), np.random.default_rng(5)
    yes = draw.random(40) < 0.5
    bound = naming.score(test, dict(zip(test.items, yes.tolist(), strict=True))).guessing
    values = []
    for _ in range(4000):
        order = draw.permutation(yes)
        values.append((order[test.active].mean() + (~order[~test.active]).mean()) / 2)
    assert (np.array(values) > bound + 1e-9).mean() <= 0.05
    assert (np.array(values) >= bound - 1e-9).mean() > 0.05
    assert 0.6 < bound < 0.75


def test_a_true_name_beats_a_broad_and_a_narrow_one(sentences):
    test = naming.naming_test(sentences, 501, n=40, least=0.5)
    rules = {"true": r"\b([Nn]o|[Ff]ew)\b", "broad": r"\.", "narrow": r"\bNo captain\b"}
    found = {
        name: naming.score(test, test.answer(lambda said, r=rule: bool(re.search(r, said))))
        for name, rule in rules.items()
    }
    assert found["true"].low > 0.8
    assert found["broad"].said_inactive == 0 and found["narrow"].said_inactive == 1
    assert found["narrow"].said_active < 0.2
    assert max(found["broad"].value, found["narrow"].value) < found["true"].low


def test_a_row_that_begins_amid_a_sentence_does_not_count_that():
    class Words:
        all_special_ids: tuple[int, ...] = (0,)

        def decode(self, ids):
            said = {0: "<s>", 1: " dog", 2: " runs", 3: ".", 4: "The", 5: " Why", 6: "?"}
            return "".join(said[i] for i in ids)

    text = torch.tensor([
        [0, 1, 2, 2, 3, 5, 1, 6, 4, 1],
        [0, 4, 1, 2, 3, 0, 4, 1, 2, 3],
        [0, 1, 1, 2, 0, 1, 2, 1, 0, 4],  # without a full stop: the second ends with its document
    ])  # fmt: skip
    found = [(row, said) for row, _, _, said in naming._cut(Words(), text)]
    assert found == [
        (0, "Why dog?"),
        (1, "The dog runs."),
        (1, "The dog runs."),
        (2, "dog runs dog"),
    ]
    for row, start, end, said in naming._cut(Words(), text):
        assert Words().decode(text[row, start:end].tolist()).strip() == said


# ---- names of the embedded suite


@pytest.fixture(scope="module")
def shipped():
    return naming.read_names(ctt.load_suite("tiny").crosscoder_folder / "names.json")


def test_the_shipped_names_are_of_the_shipped_crosscoder(shipped):
    from ctt_helpers.toy import lexicon

    folder = ctt.load_suite("tiny").crosscoder_folder
    file = ctt.files.read_json(folder / "names.json")
    assert file["crosscoder"] == ctt.files.sha256(folder / "crosscoder.safetensors")
    nouns = lexicon.lexicon().nouns.values()
    assert file["words"]["plural"].split() == [noun.plural for noun in nouns]
    assert file["words"]["singular"].split() == [noun.singular for noun in nouns]
    assert set(file["words"]["preposition"].split()) == set(lexicon.PREPOSITIONS)
    assert len(shipped) >= 12 and all(name.first != name.name for name in shipped.values())


def test_most_shipped_names_are_good_and_none_fits_its_neighbour(setting, shipped):
    """On text that nobody read: each name against that of the next feature."""
    ckpts, crosscoder, text, shown = setting
    features = list(shipped)
    sentences = naming.sentences_of(crosscoder, ckpts, text, features, shown)
    own, other = [], []
    for feature, name in shipped.items():
        test = naming.naming_test(sentences, feature, n=25, least=0.5)
        next_one = shipped[features[(features.index(feature) + 1) % len(features)]]
        own.append(naming.score(test, test.answer(name)))
        other.append(naming.score(test, test.answer(next_one)))
    assert sum(found.low > 0.7 for found in own) >= 12
    assert sum(found.low > 0.7 for found in other) <= 3
    assert np.mean([found.value for found in own]) > 0.88
    assert np.mean([found.value for found in other]) < 0.65


def test_rules_stand_for_lists_of_words_and_are_checked(tmp_path):
    row = {"feature": 3, "name": "cats", "first": "a cat", "rule": r"\b{pets}\b"}
    file = tmp_path / "names.json"

    def read(*rows, **more):
        file.write_text(json.dumps({"names": rows, **more}), encoding="utf-8")
        return naming.read_names(file)

    name = read(row, words={"pets": "cat dog"})[3]
    assert name("My DOG runs.") and not name("The dogma.") and not name("pets")
    with pytest.raises(ValueError, match="names feature 3 twice"):
        read(row, row)
    with pytest.raises(ValueError, match=r"rule of feature 3, '\(', is no regular expression"):
        read({**row, "rule": "("})
    with pytest.raises(ValueError, match="must hold"):
        read({"feature": 3})


def test_shares_of_words_by_counting(setting):
    ckpts, crosscoder, text, _ = setting
    decode = ckpts.tokenizer.decode
    f = crosscoder.encode(ctt.activations.stacked_activations(ckpts, text)).detach().numpy()
    places = ctt.active_places(crosscoder, ckpts, text, [501, 437])
    found = naming.word_shares(places, ckpts.tokenizer, text)
    for feature, shares in found.items():
        fired, seen = {}, {}
        for row, ids in enumerate(text.tolist()):
            for at, token in list(enumerate(ids))[1:]:
                word = decode([token]).strip().lower()
                seen[word] = seen.get(word, 0) + 1
                fired[word] = fired.get(word, 0) + (f[row, at, feature] > 0)
        expected = {word: fired[word] / seen[word] for word in seen if fired[word]}
        assert shares.to_dict() == pytest.approx(expected, abs=0.01)
        assert (np.diff(shares) <= 0).all()
    said = naming.words_in(ckpts.tokenizer, "The dogs run.")
    assert said == {"the", "dogs", "run", "."}
