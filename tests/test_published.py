"""Published sets of minimal pairs: their files, where they are published, what is left out;
published accuracies.
"""

import json
import time
from io import BytesIO

import pandas as pd
import pytest
from models import word_tokenizer
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from ctt_helpers import pairs as tasks
from ctt_helpers.pairs import make_pairs
from ctt_helpers.sources import hub, published, text
from ctt_helpers.sources.suites import load_suite

# a language of MultiBLiMP with the columns that are read, and some that are not
MULTIBLIMP = pd.DataFrame(
    [
        (
            "The dog near the cats runs",
            "The dog near the cats run",
            "runs",
            "SV-#",
            "SV",
            "SG",
            "PL",
            1,
        ),
        (
            'The cat, said "null", sees the dog',
            'The cat, said "null", see the dog',
            "sees",
            "SV-#",
            "SV",
            "SG",
            "PL",
            0,
        ),
        ("There is a dog", "There am a dog", "is", "SV-P", "VS", "3", "1", 0),
        ("Is the dog old", "Am the dog old", "Is", "SV-P", "VS", "3", "1", 0),
    ],
    columns=[
        "sen",
        "wrong_sen",
        "verb",
        "phenomenon",
        "wo",
        "grammatical_feature",
        "ungrammatical_feature",
        "num_attractors",
    ],
)


@pytest.fixture
def multiblimp(tmp_path):
    """Laid out as on the hub: a README that names each language's file, and the file."""
    (tmp_path / "eng").mkdir()
    MULTIBLIMP.assign(lang="eng").to_csv(tmp_path / "eng" / "data.tsv", sep="\t")
    card = (
        "---\nconfigs:\n- config_name: eng\n  data_files:\n  - split: train\n"
        "    path: eng/data.tsv\n---\n"
    )
    (tmp_path / "README.md").write_text(card)
    return tmp_path


def test_multiblimp_by_language_and_phenomenon(multiblimp, monkeypatch):
    rows = published.published_rows("multiblimp/eng", multiblimp)
    assert [r["prefix"] for r in rows] == [
        "The dog near the cats",
        'The cat, said "null",',
        "There",
        "",
    ]
    assert rows[0] == {
        "prefix": "The dog near the cats",
        "right": " runs",
        "wrong": " run",
        "sentence": "The dog near the cats runs",
        "wrong_sentence": "The dog near the cats run",
        "phenomenon": "SV-#",
        "lang": "eng",
        "wo": "SV",
        "grammatical_feature": "SG",
        "ungrammatical_feature": "PL",
        "num_attractors": "1",
    }
    assert published.published_rows("multiblimp/eng/SV-#", multiblimp) == rows[:2]
    assert (
        published.published_rows("multiblimp/eng/SV-#", multiblimp / "eng" / "data.tsv") == rows[:2]
    )
    with pytest.raises(ValueError, match="MultiBLiMP has no 'SV-G' in 'eng'; it has: SV-#, SV-P"):
        published.published_rows("multiblimp/eng/SV-G", multiblimp)
    # the same through `datasets`, from a folder in the place of the hub's repository
    monkeypatch.setitem(published.HUB, "multiblimp", str(multiblimp))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", multiblimp / "cache")
    again = published.published_rows("multiblimp/eng")
    assert [r["sentence"] for r in again] == [r["sentence"] for r in rows] and again[0][
        "num_attractors"
    ] == 1


def test_what_differs_from_the_first_word_on_is_left_out_and_counted():
    rows = [
        published.from_sentences("the dog runs", "the dog run"),
        published.from_sentences("cats run", "cat run"),
    ]
    pairs = tasks.make_pairs(rows, word_tokenizer())
    assert len(pairs) == 1 and pairs.left_out == {tasks.NO_PREFIX: 1}
    rows += [published.from_sentences("the dog", "the dog runs")]
    rows += [published.from_sentences("the dog runs", "the dog runs")]
    left_out = tasks.make_pairs(rows, word_tokenizer()).left_out
    assert left_out == {tasks.NO_PREFIX: 1, tasks.ONE_IS_BEGINNING: 1, tasks.IDENTICAL: 1}


def blimp_record(**changes):
    return {
        "sentence_good": "The cats run.",
        "sentence_bad": "The cats runs.",
        "one_prefix_method": True,
    } | changes


def test_every_published_layout_of_blimp(tmp_path):
    (tmp_path / "clone" / "some_set").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    pd.DataFrame([blimp_record()]).to_parquet(
        tmp_path / "clone" / "some_set" / "train-00000-of-00001.parquet"
    )
    (tmp_path / "data" / "some_set.jsonl").write_text(json.dumps(blimp_record()) + "\n")
    for folder in (
        tmp_path,
        tmp_path / "data",
        tmp_path / "clone",
        tmp_path / "data" / "some_set.jsonl",
    ):
        (row,) = published.published_rows("blimp/some_set", folder)
        assert (row["prefix"], row["right"], row["wrong"]) == ("The cats", " run", " runs")
    with pytest.raises(
        FileNotFoundError, match=r"'blimp/other': no file .*other.jsonl or .*data/other.jsonl"
    ):
        published.published_rows("blimp/other", tmp_path)


def test_the_arguments_for_the_hub(monkeypatch):
    import datasets

    calls = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or [blimp_record()]
    )
    (row,) = published.published_rows("blimp/regular_plural_subject_verb_agreement_1")
    assert calls == [
        (("nyu-mll/blimp", "regular_plural_subject_verb_agreement_1"), {"split": "train"})
    ]
    assert row["prefix"] == "The cats"


def test_clams_from_its_repository(monkeypatch):
    asked = []

    def urlopen(address, timeout):
        asked.append((address.split("/", 6)[-1], timeout <= 3))
        return BytesIO(b"True\tles chats courent\nFalse\tles chats court\n")

    monkeypatch.setattr(published, "urlopen", urlopen)
    (row,) = published.published_rows("clams/fr/simple_agrmt")
    assert asked == [("fr_evalset/simple_agrmt.txt", True)] and row["wrong"] == " court"


def test_out_of_reach_says_what_to_do(monkeypatch):
    with pytest.raises(
        ConnectionError,
        match=r"'blimp/x' cannot be read from nyu-mll/blimp: .*Or give path=: a folder",
    ):
        published.published_rows("blimp/x")

    def nothing(address, timeout):
        raise OSError("Name or service not known")

    monkeypatch.setattr(published, "urlopen", nothing)
    with pytest.raises(
        ConnectionError, match=r"'clams/en/x' cannot .*Name or service not known. Or give path="
    ):
        published.published_rows("clams/en/x")


@pytest.mark.parametrize("how", ["refuses", "is silent"])
def test_a_hub_that_does_not_answer_is_noticed_at_once(monkeypatch, how):
    import huggingface_hub

    class Session:
        def head(self, address, timeout):
            if how == "refuses":
                raise RuntimeError("connection refused")
            time.sleep(5)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    why = {"refuses": "RuntimeError: connection refused", "is silent": "no answer within 0.2 s"}
    with pytest.raises(
        ConnectionError,
        match=rf"'blimp/x' cannot be read: the hub .* \({why[how]}\)\. .* Or give path=",
    ):
        published.published_rows("blimp/x")
    with pytest.raises(
        ConnectionError,
        match=r"The text 'pile' cannot be read: the hub .* Or take a file of your own",
    ):
        next(text.documents("pile", "train"))
    monkeypatch.setattr(Session, "head", lambda self, address, timeout: "404 is an answer, too")
    hub.require_hub("x", "")


@pytest.mark.parametrize(
    "task", ["blimp", "blimp/", "clams/en", "multiblimp/eng/SV-#/x", "blamp/x"]
)
def test_names_that_are_no_task(task):
    with pytest.raises(
        ValueError, match=f"There is no published task {task!r}. Give blimp/<set>, clams/"
    ):
        published.published_rows(task)


def test_published_accuracies_of_pythia(shared):
    table = published.pythia_blimp()
    assert list(dict.fromkeys(table["model"])) == [
        f"pythia-{s}" for s in "70m 160m 410m 1b 1.4b 2.8b 6.9b 12b".split()
    ]
    assert len(table) == 8 * 15 * 16 and (table.groupby(["model", "task"]).size() == 15).all()
    seen = table.groupby("model")[
        "tokens_seen"
    ]  # the same text for all, whatever the number of steps
    assert (seen.min() == 3000 * 2_097_152).all() and (seen.max() == 143_000 * 2_097_152).all()
    assert set(table[table["step"] == 1500]["model"]) == {
        "pythia-160m",
        "pythia-410m",
        "pythia-1.4b",
    }
    assert table["accuracy"].between(0, 1).all()
    binomial = (table["accuracy"] * (1 - table["accuracy"]) / 999) ** 0.5
    assert (table["stderr"] - binomial).abs().max() < 2e-4
    source = pd.read_csv(shared / "reference" / "pythia_v0_blimp_by_step.csv").set_index(
        ["model", "step", "task"]
    )
    mine = table.set_index(["model", "step", "task"])[["accuracy", "stderr"]]
    pd.testing.assert_frame_equal(mine.sort_index(), source.sort_index(), check_exact=True)


def test_shipped_data_is_found_or_missed_by_name():
    assert (published.data_folder("pythia_blimp") / "README.md").is_file()
    with pytest.raises(FileNotFoundError, match="data/nothing is not there"):
        published.data_folder("nothing")


# ---- layouts, bad rows, other scripts


def test_forms_of_blimp_are_read_from_its_records():
    """What its authors say a pair is for is checked by the record, and no other set is advised."""
    flags = {
        "one": {"one_prefix_method": True, "two_prefix_method": False},
        "two": {"one_prefix_method": False, "two_prefix_method": True},
        "neither": {"one_prefix_method": False, "two_prefix_method": False},
    }
    records = {name: blimp_record(**flag) for name, flag in flags.items()}
    for name, reason in (("two", tasks.TWO_PREFIX), ("neither", tasks.WHOLE_ONLY)):
        rows = published.pair_rows([records[name]])
        with pytest.raises(
            ValueError, match=rf"{reason} \(1\)\. With continuation='whole'"
        ) as told:
            make_pairs(rows, word_tokenizer())
        assert "_1" not in str(told.value)
        assert len(make_pairs(rows, word_tokenizer(), continuation="whole")) == 1
    assert len(make_pairs(published.pair_rows([records["one"]]), word_tokenizer())) == 1


GOOD, BAD = "the dog near the cats runs", "the dog near the cats run"
ONE_ROW = {
    "SLING": {"sentence_good": GOOD, "sentence_bad": BAD, "Phenomenon": "agreement"},
    "JBLiMP": {"bad_sentence": BAD, "good_sentence": GOOD, "good_sentence_raw": "x", "type": "a"},
    "TurBLiMP": {"good_sentence": GOOD, "bad_sentence": BAD, "phenomenon": "agreement"},
    "RuBLiMP": {"id": 1, "source_sentence": GOOD, "target_sentence": BAD, "PID": "agreement"},
    "BLiMP-NL on the hub": {
        "linguistic_phenomenon": "x",
        "sentence_good": GOOD,
        "sentence_bad": BAD,
    },
    "MultiBLiMP": {"sen": GOOD, "wrong_sen": BAD, "phenomenon": "SV-#"},
    "LINDSEA": {"correct": GOOD, "wrong": BAD, "category": "agreement"},
    "QFrBLiMP, a": {"sentence_a": GOOD, "sentence_b": BAD, "label": 0},
    "QFrBLiMP, b": {"sentence_a": BAD, "sentence_b": GOOD, "label": 1},
}


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "semicolons.csv", "parquet"])
@pytest.mark.parametrize("known_from", ONE_ROW)
def test_well_known_columns_are_recognised_in_every_kind_of_file(tmp_path, known_from, ending):
    record = ONE_ROW[known_from]
    file = tmp_path / f"set.{ending}"
    table = pd.DataFrame([record, record | {"note": 'one "quoted", with; marks'}])
    if ending == "jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for _ in range(2)), encoding="utf-8-sig")
    elif ending == "json":
        file.write_text(json.dumps([record, record]))
    elif ending == "parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, sep={"csv": ",", "tsv": "\t"}.get(ending, ";"), index=False)
    rows = published.published_rows("file", file)
    assert len(rows) == 2
    for row in rows:
        assert (row["sentence"], row["wrong_sentence"]) == (GOOD, BAD)
        assert (row["prefix"], row["right"], row["wrong"]) == (GOOD[:-5], " runs", " run")
    pairs = make_pairs(rows, word_tokenizer())
    assert len(pairs) == 1 and pairs.left_out == {tasks.REPEATED: 1}


def test_two_rows_a_pair(tmp_path):
    climp = f",0,1,2,3\n0,agreement,x,{GOOD},1\n1,agreement,x,{BAD},0\n"
    nl = pd.DataFrame(
        {
            "Paradigm": ["x", "x", "x", "x"],
            "Item": [1, 2, 1, 2],  # the partners do not follow each other
            "Sentence": [GOOD, "a cat sees", BAD, "a cat see"],
            "Grammaticality": ["Grammatical", "Grammatical", "Ungrammatical", "Ungrammatical"],
        }
    )
    (tmp_path / "climp.csv").write_text(climp)
    nl.to_csv(tmp_path / "nl.csv", index=False)
    (tmp_path / "clams.txt").write_text(f"True\t{GOOD}\nFalse\t{BAD}\n", encoding="utf-8-sig")
    (tmp_path / "sling.txt").write_text(f"{GOOD}@@@{BAD}\n")
    for name in ("climp.csv", "nl.csv", "clams.txt", "sling.txt"):
        row, *rest = published.published_rows("file", tmp_path / name)
        assert (row["sentence"], row["wrong_sentence"]) == (GOOD, BAD), name
        assert len(rest) == (name == "nl.csv")
    assert rest == []


def test_columns_by_name(tmp_path):
    file = tmp_path / "mine.tsv"
    table = pd.DataFrame(
        {"ok": [GOOD, "a cat sees"], "star": [BAD, "a cat see"], "kind": ["x", "y"]}
    )
    table.to_csv(file, sep="\t", index=False)
    suite = load_suite("tiny")
    made = [
        make_pairs(published.published_rows("file", file, "ok", "star", group), word_tokenizer())
        for group in (None, "kind")
    ]
    assert made[0].text == made[1].text == ["the dog near the cats runs/*run", "a cat sees/*see"]
    assert made[1].table["group"].tolist() == ["x", "y"] and "group" not in made[0].table
    with pytest.raises(ValueError, match=r"has the columns 'ok', 'star', 'kind': name those"):
        published.published_rows("file", file)
    with pytest.raises(ValueError, match=r"has no column 'bad'; it has: 'ok', 'star', 'kind'"):
        published.published_rows("file", file, "ok", "bad")
    with pytest.raises(ValueError, match="name both columns, good= and bad=, or neither"):
        published.published_rows("file", file, good="ok")
    with pytest.raises(ValueError, match="give path= of a file"):
        suite.pairs("file")
    # through the suite: its own words, split by a hash, and named after the file
    lines = [f"The author near the guards {verb}" for verb in ("laughs", "laugh")]
    pd.DataFrame({"ok": lines[:1], "star": lines[1:]}).to_csv(file, sep="\t", index=False)
    split = "find" if tasks.in_split("The author near the guards", "find") else "test"
    pairs = suite.pairs("file", split=split, path=file, good="ok", bad="star")
    assert pairs.name == "file/mine" and pairs.text == ["The author near the guards laughs/*laugh"]


def test_one_bad_row_never_ends_a_file(tmp_path):
    good = json.dumps({"sentence_good": GOOD, "sentence_bad": BAD})
    lines = [
        good, "{not json", "[1, 2]", json.dumps({"sentence_good": GOOD}),
        json.dumps({"sentence_good": GOOD, "sentence_bad": None}), good.replace("dog", "cat\u2028"),
        good,
    ]  # fmt: skip
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"a.jsonl: 4 rows are left out \(a line that is no JSON"):
        rows = published.published_rows("file", file)
    assert [row.get("left_out") for row in rows] == [
        None,
        published.NO_OBJECT,
        published.NO_OBJECT,
        tasks.NOT_TEXT,
        tasks.NOT_TEXT,
        None,
        None,
    ]
    left_out = make_pairs(rows, word_tokenizer()).left_out
    assert left_out[published.NO_OBJECT] == 2 and left_out[tasks.NOT_TEXT] == 2


def test_a_quote_that_is_never_closed_costs_one_row_and_shifts_none(tmp_path):
    rows = [("good_sentence", "bad_sentence", "type")]
    rows += [(f"{GOOD} {w}", f"{BAD} {w}", "x") for w in ("often", "near", "red", "old")]
    lines = [",".join(row) for row in rows]
    lines[2] = lines[2].replace(",x", ',"x')  # opened, and never closed
    file = tmp_path / "a.csv"
    file.write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="1 rows are left out .a row with another number of cells"):
        read = published.published_rows("file", file)
    assert [row.get("sentence", "-").split()[-1] for row in read] == ["often", "-", "red", "old"]
    # a quote that holds a line break is one cell
    lines[2] = f'{GOOD} near,{BAD} near,"two\nlines"'
    file.write_text("\n".join(lines) + "\n")
    assert [r["type"] for r in published.published_rows("file", file)] == [
        "x",
        "two\nlines",
        "x",
        "x",
    ]


def test_lines_of_clams_without_a_partner(tmp_path):
    file = tmp_path / "a.txt"
    lines = ["False\tthe dog run", f"True\t{GOOD}", f"False\t{BAD}", "True\tthe dog runs", "noise"]
    file.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="3 rows are left out"):
        rows = published.published_rows("file", file)
    reasons = [row["left_out"] for row in rows if "left_out" in row]
    assert sorted(reasons) == sorted(
        [published.NO_PARTNER, published.NO_LABEL, published.NO_PARTNER]
    )
    assert [row["sentence"] for row in rows if "sentence" in row] == [GOOD]


def test_what_is_no_table_of_pairs_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{}\n{"x": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: this is not UTF-8"):
        published.published_rows("file", tmp_path / "a.jsonl")
    (tmp_path / "b.docx").write_text("x")
    with pytest.raises(ValueError, match=r"b.docx: give a file that ends in .csv, .tsv"):
        published.published_rows("file", tmp_path / "b.docx")
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(ValueError, match=r"c.csv is empty"):
        published.published_rows("file", tmp_path / "c.csv")
    (tmp_path / "d.json").write_text('[{"sentence_good": ')
    with pytest.raises(ValueError, match=r"d.json is not valid JSON"):
        published.published_rows("file", tmp_path / "d.json")
    (tmp_path / "e.parquet").write_text("PAR1")
    with pytest.raises(ValueError, match=r"e.parquet cannot be read"):
        published.published_rows("file", tmp_path / "e.parquet")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        published.published_rows("file", tmp_path / "f.csv")
    with pytest.raises(ValueError, match="holds no row that can be read"):
        (tmp_path / "g.jsonl").write_text("x\ny\n")
        published.published_rows("file", tmp_path / "g.jsonl")


def bytes_tokenizer():
    """Every byte a token: characters of other scripts are several."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", *alphabet])}
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")


@pytest.mark.parametrize(
    ("good", "bad", "prefix", "right", "wrong"),
    [
        ("我看见三只狗在跑", "我看见三位狗在跑", "我看见三", "只", "位"),
        ("子供が本を読んだ。", "子供が本に読んだ。", "子供が本", "を", "に"),
        ("แมวกำลังนอน", "แมวกำลังกิน", "แมวกำลัง", "นอ", "กิ"),
    ],
)
def test_scripts_without_spaces_are_cut_where_characters_differ(good, bad, prefix, right, wrong):
    row = published.from_sentences(good, bad)
    assert (row["prefix"], row["right"], row["wrong"]) == (prefix, right, wrong)
    tokenizer = bytes_tokenizer()
    pairs = make_pairs([row], tokenizer, continuation="whole")
    shared = tokenizer.decode(pairs.input_ids[0, 1:], errors="replace")
    assert shared.startswith(prefix) and pairs.left_out == {}
    # as single tokens: only where one token a side differs, else left out for what it is
    try:
        first = make_pairs([row], tokenizer)
        assert len(first) == 1
    except ValueError as error:
        assert tasks.DIFFERENT_PIECES in str(error) and tasks.NO_PREFIX not in str(error)


def test_words_of_other_scripts_with_spaces_are_words():
    row = published.from_sentences("собака у домов бежит", "собака у домов бегут")
    assert (row["prefix"], row["right"], row["wrong"]) == ("собака у домов", " бежит", " бегут")
    row = published.from_sentences("הכלב ליד הבתים רץ", "הכלב ליד הבתים רצים")
    assert row["right"] == " רץ" and "cut" not in row
