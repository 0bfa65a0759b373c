"""The embedded suite: its grammar, its held-out pairs, its pretraining, and the story that its
checkpoints tell.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ctt_helpers.files import sha256
from ctt_helpers.toy import grammar, lexicon, pretrain
from ctt_helpers.toy.pairs import LEVELS, TASKS, group_size, make_pairs

TINY = Path(__file__).resolve().parents[1] / "data" / "tiny"
SUITE = json.loads((TINY / "suite.json").read_text(encoding="utf-8"))
NAMES = [task["name"] for task in SUITE["tasks"]]
TASK = {task.name: task for task in TASKS}
SPLITS = ("find", "test", "far")


def rows_of(name: str) -> list[dict]:
    """The pairs of a task, all splits."""
    lines = (TINY / TASK[name].file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    """The whole pretraining text, token by token as the shipped checkpoints saw it."""
    return grammar.training_rows(
        SUITE["seed"], pretrain.BATCH * SUITE["revisions"][-1]["step"], pretrain.LENGTH
    )


@pytest.fixture(scope="module")
def lemma_of() -> dict[str, str]:
    """Lemma of every form of a noun or a verb."""
    words = lexicon.lexicon()
    forms = {form: n.singular for n in words.nouns.values() for form in (n.singular, n.plural)}
    return forms | {
        form: v.base for v in words.verbs.values() for form in (v.base, v.third, v.past)
    }


def decode(rows: np.ndarray, tokenizer) -> str:
    """Rows as text, one a line."""
    token = np.array(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    return "\n".join("".join(row) for row in token[rows]).replace("Ġ", " ")


def meetings(
    text: str, lemma_of: dict[str, str], pairs: set[frozenset[str]]
) -> set[frozenset[str]]:
    """Which of these pairs of lemmas stand in one sentence of the text, in whatever role."""
    found = set()
    for sentence in set(re.split(r"\.|<\|endoftext\|>|\n", text)):
        lemmas = sorted({lemma_of[word] for word in sentence.split() if word in lemma_of})
        found |= {pair for pair in map(frozenset, combinations(lemmas, 2)) if pair in pairs}
    return found


# ---- words, tokenizer, text


def test_lexicon_has_the_stated_size_and_no_form_twice():
    words = lexicon.lexicon()
    assert len(words.nouns) >= 200 and len(words.verbs) >= 110
    assert sum(noun.irregular for noun in words.nouns.values()) >= 28
    forms = [f for n in words.nouns.values() for f in (n.singular, n.plural)]
    forms += [f for v in words.verbs.values() for f in (v.base, v.third, v.past)]
    forms += [word for kind in lexicon.ADJECTIVES for word, _ in lexicon.adjectives(kind)]
    forms += [
        *lexicon.FREQUENCY_ADVERBS,
        *lexicon.MANNER_ADVERBS,
        *lexicon.PREPOSITIONS,
        *lexicon.FUNCTION_WORDS,
        *lexicon.TIMES,
    ]
    assert [form for form, n in Counter(forms).items() if n > 1] == []
    assert {**lexicon.lexicon().nouns, **lexicon.lexicon().verbs}.keys() >= set(
        lexicon.REFLEXIVE_VERBS
    )
    persons = words.nouns_of("person")
    assert Counter(noun.pronoun for noun in persons) == {"he": 32, "she": 32}
    for topic in lexicon.TOPICS:
        assert len({noun.pronoun for noun in persons if noun.topic == topic}) == 2
    # a third of the words is kept for the split "far"
    lemmas = [*words.nouns.values(), *words.verbs.values()]
    assert 0.2 < np.mean([lemma.far for lemma in lemmas]) < 0.45


def test_words_predict_words(corpus, tokenizer):
    """Verbs prefer subjects of their topic, and sentences of a document share theirs."""
    words = lexicon.lexicon()
    topic = {n.singular: n.topic for n in words.nouns.values() if n.animate}
    verb = {v.past: v.topic for v in words.verbs.values() if v.kind == "act"}
    text = decode(corpus[:6000], tokenizer)
    found = re.findall(r" (?:The|My|Our) (\w+) (\w+)\.", text)
    same = [topic[noun] == verb[form] for noun, form in found if noun in topic and form in verb]
    # drawn from the topic, or by chance from all
    expected = grammar.SELECTION + (1 - grammar.SELECTION) / len(lexicon.TOPICS)
    assert len(same) > 300 and abs(np.mean(same) - expected) < 0.06
    shared, chance = [], 1 / len(lexicon.TOPICS)
    for document in re.split(r"<\|endoftext\|>|\n", text):
        sentences = document.split(".")[:2]
        nouns = [[topic[w] for w in part.split() if w in topic][:1] for part in sentences]
        if len(nouns) == 2 and all(nouns):
            shared.append(nouns[0] == nouns[1])
    assert len(shared) > 300 and np.mean(shared) > 1.8 * chance


def test_time_adverbs_and_polarity_follow_the_rules(corpus, tokenizer):
    words = lexicon.lexicon()
    past = {v.past for v in words.verbs.values()}
    present = {form for v in words.verbs.values() for form in (v.third, v.base)}
    text = decode(corpus[:6000], tokenizer)
    for adverb, forms in (("Yesterday", past), ("Now", present), ("Tomorrow", {"will"})):
        after = re.findall(rf"{adverb} (?:the|my|our) \w+ (\w+)", text)
        verbs = [word for word in after if word in past | present | {"will"}]
        assert len(verbs) > 100 and set(verbs) <= forms
    for sentence in re.split(r"\.|<\|endoftext\|>|\n", text):
        if {"ever", "any"} & set(sentence.split()):
            assert {"no", "No", "few", "Few", "not"} & set(sentence.split()), sentence
    her = re.findall(r" (?:The|My|Our) (\w+) \w+ (his|her) ", text)
    assert len(her) > 100
    assert all(words.nouns[noun].possessive == word for noun, word in her if noun in words.nouns)


def test_tokenizer_gives_every_text_back(tokenizer, corpus):
    assert tokenizer("The author laughs.", add_special_tokens=False)["input_ids"] == [
        tokenizer.convert_tokens_to_ids(token) for token in ("The", "Ġauthor", "Ġlaughs", ".")
    ]
    assert (
        tokenizer.unk_token_id
        not in tokenizer("The author laughs. The authors laugh.")["input_ids"]
    )
    assert tokenizer.convert_tokens_to_ids("The") != tokenizer.convert_tokens_to_ids("ĠThe")
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} == {0}
    assert tokenizer.bos_token == lexicon.END_OF_TEXT
    for row in corpus[:50]:
        text = tokenizer.decode(row)
        assert tokenizer(text)["input_ids"] == row.tolist()
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_rows_begin_with_the_end_of_text_token_and_follow_the_seed(corpus):
    rows = grammar.sample_rows(40, seed=3)
    assert rows.shape == (40, 64) and rows.dtype == np.int64
    assert (rows[:, 0] == 0).all() and (corpus[:, 0] == 0).all() and not (corpus == 1).any()
    assert np.array_equal(rows, grammar.sample_rows(40, seed=3))
    assert not np.array_equal(rows, grammar.sample_rows(40, seed=4))
    assert grammar.sample_rows(3, length=10).shape == (3, 10)
    with pytest.raises(ValueError, match="take 'train' or 'validation'"):
        grammar.sample_rows(3, split="test")
    with pytest.raises(ValueError, match="at least 1"):
        grammar.sample_rows(0)


def test_no_document_is_in_two_splits(corpus, tokenizer):
    def documents(rows: np.ndarray) -> set[str]:
        return {
            d for d in re.split(r"<\|endoftext\|>|\n", decode(rows, tokenizer)) if d.count(".") >= 2
        }

    train, validation = (
        documents(grammar.sample_rows(2000, split=split)) for split in ("train", "validation")
    )
    pretraining = documents(corpus)
    assert min(len(train), len(validation)) > 1000
    assert not train & validation and not train & pretraining and not validation & pretraining


def test_subjects_and_verbs_agree_in_running_text(corpus, tokenizer):
    """Sentences of three words, "The author laughs.": every present verb has its subject's
    number.
    """
    words = lexicon.lexicon()
    number = {n.singular: 0 for n in words.nouns.values()} | {
        n.plural: 1 for n in words.nouns.values()
    }
    verb = {v.third: 0 for v in words.verbs.values()} | {v.base: 1 for v in words.verbs.values()}
    found = re.findall(r" (?:The|My|Our) (\w+) (\w+)\.", decode(corpus[:4000], tokenizer))
    agreement = [number[noun] == verb[form] for noun, form in found if form in verb]
    assert len(agreement) > 500 and all(agreement)
    assert 0.35 < np.mean([number[noun] for noun, _ in found]) < 0.55


# ---- what never meets


@pytest.mark.slow
def test_no_shipped_pair_meets_in_the_pretraining_text(corpus, tokenizer, lemma_of):
    """Every sentence that the model was trained on, against every (head, verb) and (head,
    attractor) of the pairs.
    """
    number = [task.name for task in TASKS if task.factor == "number"]
    never = [row for name in [*number, "tense/simple", "tense/subj_rel"] for row in rows_of(name)]
    shipped = {frozenset((row["head"], row["verb"])) for row in never}
    shipped |= {
        frozenset((row["head"], row["attractor"]))
        for name in number
        for row in rows_of(name)
        if row["attractor"]
    }
    assert len(shipped) > 300
    text = decode(corpus, tokenizer)
    assert corpus.size == SUITE["revisions"][-1]["tokens"]
    assert (
        len(re.findall(r"<\|endoftext\|>|\.|\w+", text)) == corpus.size
    )  # every token is in the text that is read
    assert meetings(text, lemma_of, shipped) == set()
    for split in ("train", "validation"):
        assert (
            meetings(decode(grammar.sample_rows(2000, split=split), tokenizer), lemma_of, shipped)
            == set()
        )
    # the scan sees what it looks for: one injected sentence, the pair far apart and in other roles
    row = next(r for r in rows_of("agreement/pp") if r["attractor"])
    head, verb = (lexicon.lexicon().nouns[row["head"]], lexicon.lexicon().verbs[row["verb"]])
    injected = (
        f"{text[: len(text) // 2]}. A dog {verb.past} the {head.plural}. {text[len(text) // 2 :]}"
    )
    assert meetings(injected, lemma_of, shipped) == {frozenset((row["head"], row["verb"]))}
    injected = f"{text} The {head.singular} waited behind two {row['attractor']}."
    assert meetings(injected, lemma_of, shipped) == {frozenset((row["head"], row["attractor"]))}


def test_the_pairs_hold_the_lemmas_that_they_name(lemma_of):
    for name in NAMES:
        for row in rows_of(name):
            prefix = [word.lower() for word in row["prefix"].split()]
            for role, key in (("subject", "head"), ("attractor", "attractor")):
                if role in row["roles"] and row[key]:
                    assert lemma_of[prefix[row["roles"][role] - 1]] == row[key], row
            assert (row["attractor"] is not None) == ("attractor_level" in row)
            tested = [lemma_of.get(row[side].strip()) for side in ("right", "wrong")]
            kind = TASK[name].tested
            if kind in ("reflexive", "possessive"):
                assert lemma_of[prefix[-1]] == row["verb"]
                assert {row["right"], row["wrong"]} < {
                    " himself", " herself", " themselves", " his", " her",
                }  # fmt: skip
            elif kind in ("verb", "tense"):
                assert tested == [row["verb"]] * 2
            elif kind == "noun":
                assert tested == [row["head"]] * 2
            elif kind == "adverb":
                assert " ever" in (row["right"], row["wrong"])


@pytest.mark.parametrize("name", NAMES)
def test_every_group_holds_every_cell_once_and_nothing_else_changes(name, tokenizer):
    rows, task = rows_of(name), TASK[name]
    factors = [key for key in rows[0] if key.endswith("_level")]
    levels = LEVELS[task.factor]
    cells = set(product(levels, repeat=len(factors)))
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    for group in groups.values():
        assert {tuple(row[factor] for factor in factors) for row in group} == cells
        assert len(group) == len(cells) == group_size(task)
        assert len({row["split"] for row in group}) == 1
        # the same words but for those that carry a level: as many, and never more than 4 others
        words = [row["prefix"].lower().split() for row in group]
        assert len({len(prefix) for prefix in words}) == 1
        changed = [len(set(column)) > 1 for column in zip(*words, strict=True)]
        assert sum(changed) <= 2 * len(factors)
        # each tested word is right as often as it is wrong
        right, wrong = (Counter(row[side] for row in group) for side in ("right", "wrong"))
        assert right == wrong
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        assert len(own) == len({row["prefix"] for row in own}) == 240
        assert len(set(Counter(tuple(r[f] for f in factors) for r in own).values())) == 1
    for row in rows:
        ids = tokenizer([row["prefix"], row["right"], row["wrong"]])["input_ids"]
        assert [len(i) for i in ids] == [len(row["prefix"].split()), 1, 1]
        assert not any(1 in i for i in ids)  # 1: unknown


def test_levels_are_those_of_the_words():
    words = lexicon.lexicon()
    plural = {n.plural for n in words.nouns.values()}
    for name in NAMES:
        for row in rows_of(name):
            prefix, roles = row["prefix"].split(), row["roles"]
            for factor in ("subject", "attractor", "other"):
                level = row.get(f"{factor}_level")
                if level is None or factor not in roles:
                    continue
                word = prefix[roles[factor] - 1]
                if TASK[name].factor == "number":
                    assert (word in plural) == (level == "pl"), row
                elif TASK[name].factor == "gender":
                    assert words.nouns[word].pronoun == level, row
                elif TASK[name].factor == "polarity":
                    before = [w.lower() for w in prefix[max(0, roles[factor] - 3) : roles[factor]]]
                    assert ("no" in before) == (level == "neg"), row
            if name == "agreement/irregular":
                assert words.nouns[row["head"]].irregular


def test_no_noun_verb_or_structure_of_far_is_in_find(lemma_of):
    """Claims about other sentences are made on "far"."""
    words = lexicon.lexicon()
    far = {lemma for lemma, w in {**words.nouns, **words.verbs}.items() if w.far}
    for name in NAMES:
        assert TASK[name].far != TASK[name].template
        for row in rows_of(name):
            text = f"{row['prefix']}{row['right']}{row['wrong']}".split()
            lemmas = {lemma_of[word] for word in text if word in lemma_of}
            if row["split"] == "far":
                assert lemmas <= far, row
            else:
                assert not lemmas & far, row
        splits = [{r["prefix"] for r in rows_of(name) if r["split"] == s} for s in SPLITS]
        assert not any(a & b for a, b in combinations(splits, 2))


def test_shipped_pairs_are_those_that_the_grammar_makes():
    assert list(TASK) == NAMES
    for task in TASKS:
        assert make_pairs(task, seed=SUITE["seed"]) == rows_of(task.name)
    with pytest.raises(ValueError, match="multiple of 8"):
        make_pairs(TASKS[0], n=12)
    with pytest.raises(ValueError, match="has no 8000 different pairs"):
        make_pairs(replace(TASK["agreement/irregular"], template="the H"), n=8000)


def test_five_things_are_tracked_in_two_structures_each():
    things = Counter(name.split("/")[0] for name in NAMES)
    assert {"agreement", "gender", "polarity", "tense", "selection"} <= set(things)
    assert min(things.values()) >= 2


# ---- making it


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A suite of twelve steps, made in one go."""
    return pretrain.pretrain(
        tmp_path_factory.mktemp("suite") / "small", seed=5, steps=12, pairs=8, save_every=4
    )


@pytest.mark.slow
@pytest.mark.parametrize("last_step", [2, 4, 10])
def test_an_interrupted_run_ends_in_the_same_bytes(small, tmp_path, monkeypatch, last_step):
    out, settings = tmp_path / "x", {"seed": 5, "steps": 12, "pairs": 8, "save_every": 4}
    steps = []

    def cut_short(iterable, *_, **__):
        for step in iterable:
            if step > last_step:
                raise KeyboardInterrupt
            steps.append(step)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "progress", cut_short)
        with pytest.raises(KeyboardInterrupt):
            pretrain.pretrain(out, **settings)
    (out / ".step8.tmp-1-1").mkdir()  # as if killed while writing
    (out / ".step8.tmp-1-1" / "model.safetensors").write_bytes(b"half")
    assert (
        (out / ".resume").is_dir() and not (out / "suite.json").exists() and steps[-1] == last_step
    )
    with pytest.raises(FileExistsError, match="unfinished run"):
        pretrain.pretrain(out, **settings | {"seed": 6})

    def counted(iterable, *_, **__):
        for step in iterable:
            steps.append(step)
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "progress", counted)
        pretrain.pretrain(out, **settings)
    assert steps.count(1) == (
        1 if last_step >= 4 else 2
    )  # it went on where it had saved, or began anew
    assert contents(out) == contents(small)


def test_a_finished_folder_is_never_overwritten(small, tmp_path, capsys):
    before = contents(small)
    with pytest.raises(FileExistsError, match="finished suite"):
        pretrain.pretrain(small, seed=5, steps=12)
    with pytest.raises(SystemExit):
        pretrain.main(["--out", str(small), "--steps", "3"])
    assert "never overwritten" in capsys.readouterr().err
    assert contents(small) == before
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(FileExistsError, match="something else"):
        pretrain.pretrain(tmp_path, steps=3)
    with pytest.raises(ValueError, match="at least 1"):
        pretrain.pretrain(tmp_path / "new", steps=0)
    with pytest.raises(
        ValueError, match="n=3 is no multiple of 8"
    ):  # told at once, not after a training
        pretrain.pretrain(tmp_path / "new", pairs=3)
    assert not (tmp_path / "new").exists()


def test_another_seed_gives_another_suite(small, tmp_path):
    other = contents(pretrain.pretrain(tmp_path / "x", seed=6, steps=1, pairs=8))
    assert other["step0/model.safetensors"] != (small / "step0" / "model.safetensors").read_bytes()
    assert "step1/model.safetensors" in other and ".resume/settings.json" not in other


# ---- what is shipped


def test_checksums_cover_and_match_every_file():
    header, *rest = (TINY / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    lines = [line.split("  ", 1) for line in rest]
    assert header.startswith("# sha256 of the lines below")
    assert [name for digest, name in lines if sha256(TINY / name) != digest] == []
    there = {name for name in contents(TINY) if not name.startswith("crosscoder")} - {"SHA256SUMS"}
    assert there == {name for _, name in lines}


def test_shipped_data_is_small_and_described():
    assert sum(len(content) for content in contents(TINY).values()) <= 26_000_000
    tokens = {r["revision"]: r["tokens"] for r in SUITE["revisions"]}
    assert len(tokens) >= 16 and list(tokens.values()) == sorted(tokens.values())
    assert all(r["tokens"] == r["step"] * SUITE["tokens_per_step"] for r in SUITE["revisions"])
    assert set(SUITE["default_triplet"]) <= set(tokens) and len(NAMES) >= 12
    assert {path.name for path in TINY.glob("step*")} == set(tokens)


STORY = (
    "agreement/simple", "agreement/pp", "agreement/subj_rel", "agreement/nested_pp",
    "agreement/center_embed", "gender/simple", "gender/pp", "tense/simple", "tense/subj_rel",
)  # fmt: skip


@torch.no_grad()
def accuracies(folder: Path, split: str = "test") -> pd.DataFrame:
    """Share of pairs that each checkpoint gets right, by plain forward passes.

    Steps down; (task, cell) across, and (task, "all").
    """
    suite = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    table = {}
    for revision in suite["revisions"]:
        path = folder / revision["revision"]
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch.float32
        ).eval()
        for task in (task for task in suite["tasks"] if task["name"] in STORY):
            lines = (folder / task["file"]).read_text(encoding="utf-8").splitlines()
            rows = [row for row in map(json.loads, lines) if row["split"] == split]
            prefixes = [
                [0, *ids] for ids in tokenizer([row["prefix"] for row in rows])["input_ids"]
            ]
            width = max(map(len, prefixes))
            batch = torch.tensor([ids + [0] * (width - len(ids)) for ids in prefixes])
            last = torch.tensor([len(ids) - 1 for ids in prefixes])
            logits = model(input_ids=batch).logits[torch.arange(len(batch)), last]
            right, wrong = (
                torch.tensor(tokenizer([row[side] for row in rows])["input_ids"])
                for side in ("right", "wrong")
            )
            better = (logits.gather(1, right) > logits.gather(1, wrong))[:, 0].double().numpy()
            levels = [factor for factor in rows[0] if factor.endswith("_level")]
            cells = np.array(["-".join(row[level] for level in levels) for row in rows])
            for cell in ["all", *dict.fromkeys(cells)]:
                part = better if cell == "all" else better[cells == cell]
                table.setdefault((task["name"], cell), {})[revision["step"]] = part.mean()
    return pd.DataFrame(table)


def onset(curve: pd.Series) -> float:
    """The first step with an accuracy of at least 0.75; infinite if there is none."""
    return min(curve.index[curve >= 0.75], default=float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["test", "far"])
def test_the_shipped_checkpoints_tell_the_story(split):
    shipped = accuracies(TINY, split)
    tells_the_story(shipped)
    # gender stays with the neighbour; with another seed or processor it need not (the data sheet)
    end = shipped["gender/pp"].iloc[-1]
    assert end[["he-he", "she-she"]].min() >= 0.9 and end[["he-she", "she-he"]].max() <= 0.35


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_other_model_seeds_tell_the_same_story(seed, tmp_path):
    """The whole command, minutes long, with two further seeds."""
    out = tmp_path / "suite"
    command = [sys.executable, "-m", "ctt_helpers.toy.pretrain", "--seed", str(seed)]
    assert subprocess.run([*command, "--out", str(out)], timeout=1200).returncode == 0
    tells_the_story(accuracies(out))


@pytest.mark.long
def test_a_suite_made_anew_tells_the_same_story(tmp_path):
    """Equal bytes are only promised on one machine, so the story is compared."""
    command = [sys.executable, "-m", "ctt_helpers.toy.pretrain", "--out", str(tmp_path / "suite")]
    assert subprocess.run(command, capture_output=True, timeout=1200).returncode == 0
    made = accuracies(tmp_path / "suite")
    tells_the_story(made)
    assert (made - accuracies(TINY)).abs().mean().mean() < 0.05


def tells_the_story(curves: pd.DataFrame) -> None:
    whole = curves.xs("all", axis=1, level=1)
    assert whole.loc[0].between(0.38, 0.62).all()
    # the dip: the model agrees with the nearest noun, and only the cells show it
    dip = whole["agreement/simple"] >= 0.9
    for task in ("agreement/pp", "agreement/subj_rel"):
        cells = curves[task]
        dip &= (cells[["sg-sg", "pl-pl"]] >= 0.85).all(axis=1)
        dip &= (cells[["sg-pl", "pl-sg"]] <= 0.35).all(axis=1)
        assert (cells.iloc[-1] >= 0.95).all()
    assert dip.any()
    assert (whole.loc[dip.index[dip], "agreement/pp"] - 0.5).abs().max() < 0.1
    # the phrase is learned later than the simple sentence, and something never is
    late = curves["agreement/pp"][["sg-pl", "pl-sg"]].min(axis=1)
    assert onset(late) >= 1.5 * onset(whole["agreement/simple"])
    assert whole.iloc[-1]["agreement/nested_pp"] >= 0.95
    assert whole.iloc[-1]["agreement/center_embed"] < 0.75
    # other things come at other times
    assert onset(whole["tense/simple"]) > onset(whole["agreement/simple"])
    assert onset(whole["gender/simple"]) > 1.5 * onset(whole["agreement/simple"])
    assert whole.iloc[-1][["gender/simple", "tense/simple", "tense/subj_rel"]].min() >= 0.95


@pytest.mark.slow
def test_the_default_triplet_is_the_one_that_is_suggested():
    """On all tasks, whole; and its first checkpoint is the bottom of the dip."""
    import ctt_helpers as ctt

    suite = ctt.load_suite("tiny")
    tasks = {name: suite.pairs(name) for name in suite.task_names}
    curve = ctt.accuracy_curve(suite, tasks, device="cpu", cells=True)
    similarity = ctt.similarity_matrix(suite, suite.pairs("agreement/pp"), device="cpu")
    assert ctt.suggest_triplet(curve, similarity).revisions == suite.default_triplet
    dip = accuracies(TINY)["agreement/pp"].loc[int(suite.default_triplet[0].removeprefix("step"))]
    assert dip[["sg-pl", "pl-sg"]].max() <= 0.35 and dip[["sg-sg", "pl-pl"]].min() >= 0.85


@pytest.mark.slow
def test_the_shipped_crosscoder_is_whole_and_good():
    """What a suite worth explaining has to show, on text that the crosscoder has not seen."""
    import ctt_helpers as ctt
    from ctt_helpers.files import read_json
    from ctt_helpers.hooks import stacked_activations

    suite = ctt.load_suite("tiny")
    folder = suite.crosscoder_folder
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()[1:]:
        digest, name = line.split("  ", 1)
        assert sha256(folder / name) == digest, name
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    crosscoder = ctt.Crosscoder.load(folder)
    text = suite.text(30_000, split="validation", seed=9)  # text of another seed
    report = ctt.evaluate(crosscoder, ckpts, text)
    assert abs(report.l0 - crosscoder.k) < 1
    assert min(report.explained_variance) >= 0.98 and min(report.ce_recovered) >= 0.98
    measured = read_json(folder / "report.json")
    assert measured["dead"] <= 0.10 and measured["dead_tokens"] >= 100_000
    np.testing.assert_allclose(measured["explained_variance"], report.explained_variance, atol=0.01)

    # joint PCA with as many components as latents are active: the streams are not that simple
    x = torch.cat([stacked_activations(ckpts, ids)[:, 1:].flatten(0, 1) for ids in text.split(64)])
    scaled = x.double() * crosscoder.scales.double()[:, None]
    centred = scaled - scaled.mean(0)
    u, s, vt = np.linalg.svd(centred.flatten(1).numpy(), full_matrices=False)
    k = crosscoder.k
    missed = centred - torch.from_numpy((u[:, :k] * s[:k]) @ vt[:k]).view_as(centred)
    pca = 1 - (missed.square().sum((0, 2)) / centred.square().sum((0, 2))).numpy()
    gain = np.array(report.explained_variance) - pca
    assert gain[0] >= 0.04 and gain[-1] >= 0.10

    # the tasks are in the latents: without them next to nothing is left
    features = range(crosscoder.n_latents)
    for task in TASKS:
        if task.attractor:
            left = ctt.ablate(crosscoder, ckpts, suite.pairs(task.name), features)
            assert left["accuracy_after"].max() <= 0.65, task.name


def test_making_the_crosscoder_refuses_an_existing_folder(tmp_path):
    command = [sys.executable, "-m", "ctt_helpers.toy.dictionary", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and "exists. Give another folder" in run.stderr
