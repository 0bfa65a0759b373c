"""Published sets of minimal pairs: their files, where they are published, what is left out; published accuracies."""

import json
import time
from io import BytesIO

import pandas as pd
import pytest
from models import word_tokenizer

from ctt_helpers import hub, published, tasks, text

# a language of MultiBLiMP with the columns that are read, and some that are not
MULTIBLIMP = pd.DataFrame(
    [
        ("The dog near the cats runs", "The dog near the cats run", "runs", "SV-#", "SV", "SG", "PL", 1),
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
    columns="sen wrong_sen verb phenomenon wo grammatical_feature ungrammatical_feature num_attractors".split(),
)


@pytest.fixture
def multiblimp(tmp_path):
    """Laid out as on the hub: a README that names each language's file, and the file."""
    (tmp_path / "eng").mkdir()
    MULTIBLIMP.assign(lang="eng").to_csv(tmp_path / "eng" / "data.tsv", sep="\t")
    card = "---\nconfigs:\n- config_name: eng\n  data_files:\n  - split: train\n    path: eng/data.tsv\n---\n"
    (tmp_path / "README.md").write_text(card)
    return tmp_path


def test_multiblimp_by_language_and_phenomenon(multiblimp, monkeypatch):
    rows = published.published_rows("multiblimp/eng", multiblimp)
    assert [r["prefix"] for r in rows] == ["The dog near the cats", 'The cat, said "null",', "There", ""]
    assert rows[0] == {
        "prefix": "The dog near the cats", "right": " runs", "wrong": " run", "sentence": "The dog near the cats runs",
        "wrong_sentence": "The dog near the cats run", "phenomenon": "SV-#", "lang": "eng", "wo": "SV",
        "grammatical_feature": "SG", "ungrammatical_feature": "PL", "num_attractors": "1",
    }  # fmt: skip
    assert published.published_rows("multiblimp/eng/SV-#", multiblimp) == rows[:2]
    assert published.published_rows("multiblimp/eng/SV-#", multiblimp / "eng" / "data.tsv") == rows[:2]
    with pytest.raises(ValueError, match="MultiBLiMP has no 'SV-G' in 'eng'; it has: SV-#, SV-P"):
        published.published_rows("multiblimp/eng/SV-G", multiblimp)
    # the same through `datasets`, from a folder in the place of the hub's repository
    monkeypatch.setitem(published.HUB, "multiblimp", str(multiblimp))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", multiblimp / "cache")
    again = published.published_rows("multiblimp/eng")
    assert [r["sentence"] for r in again] == [r["sentence"] for r in rows] and again[0]["num_attractors"] == 1


def test_what_differs_from_the_first_word_on_is_left_out_and_counted():
    rows = [published.from_sentences("the dog runs", "the dog run"), published.from_sentences("cats run", "cat run")]
    pairs = tasks.make_pairs(rows, word_tokenizer())
    assert len(pairs) == 1 and pairs.left_out == {tasks.NO_PREFIX: 1}
    with pytest.raises(ValueError, match="No word differs in these two sentences: 'a b', 'a b c'"):
        published.from_sentences("a b", "a b c")


def blimp_record(**changes):
    return {"sentence_good": "The cats run.", "sentence_bad": "The cats runs.", "one_prefix_method": True} | changes


def test_every_published_layout_of_blimp(tmp_path):
    (tmp_path / "clone" / "some_set").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    pd.DataFrame([blimp_record()]).to_parquet(tmp_path / "clone" / "some_set" / "train-00000-of-00001.parquet")
    (tmp_path / "data" / "some_set.jsonl").write_text(json.dumps(blimp_record()) + "\n")
    for folder in (tmp_path, tmp_path / "data", tmp_path / "clone", tmp_path / "data" / "some_set.jsonl"):
        (row,) = published.published_rows("blimp/some_set", folder)
        assert (row["prefix"], row["right"], row["wrong"]) == ("The cats", " run", " runs")
    with pytest.raises(FileNotFoundError, match=r"'blimp/other': no file .*other.jsonl or .*data/other.jsonl"):
        published.published_rows("blimp/other", tmp_path)
    with pytest.raises(ValueError, match=r"two-prefix set\). Take its \*_1 set"):
        published.blimp_rows([blimp_record(one_prefix_method=False)], "x_2")


def test_the_arguments_for_the_hub(monkeypatch):
    import datasets

    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or [blimp_record()])
    (row,) = published.published_rows("blimp/regular_plural_subject_verb_agreement_1")
    assert calls == [(("nyu-mll/blimp", "regular_plural_subject_verb_agreement_1"), {"split": "train"})]
    assert row["prefix"] == "The cats"


def test_clams_from_its_repository(monkeypatch):
    asked = []

    def urlopen(address, timeout):
        asked.append((address.split("/", 6)[-1], timeout <= 3))
        return BytesIO(b"True\tles chats courent\nFalse\tles chats court\n")

    monkeypatch.setattr(published, "urlopen", urlopen)
    (row,) = published.published_rows("clams/fr/simple_agrmt")
    assert asked == [("fr_evalset/simple_agrmt.txt", True)] and row["wrong"] == " court"
    with pytest.raises(ValueError, match="x: expected a True line followed by a False line, got 'a b' and 'a c'"):
        published.clams_rows([{"text": "True\ta b"}, {"text": "True\ta c"}], "x")


def test_out_of_reach_says_what_to_do(monkeypatch):
    with pytest.raises(
        ConnectionError, match=r"'blimp/x' cannot be read from nyu-mll/blimp: .*Or give path=: a folder"
    ):
        published.published_rows("blimp/x")

    def nothing(address, timeout):
        raise OSError("Name or service not known")

    monkeypatch.setattr(published, "urlopen", nothing)
    with pytest.raises(ConnectionError, match=r"'clams/en/x' cannot .*Name or service not known. Or give path="):
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
    start, why = (
        time.monotonic(),
        {"refuses": "RuntimeError: connection refused", "is silent": "no answer within 0.2 s"},
    )
    with pytest.raises(
        ConnectionError, match=rf"'blimp/x' cannot be read: the hub .* \({why[how]}\)\. .* Or give path="
    ):
        published.published_rows("blimp/x")
    with pytest.raises(ConnectionError, match=r"The text 'pile' cannot be read: the hub .* Or take a file of your own"):
        next(text.documents("pile", "train"))
    assert time.monotonic() - start < 3
    monkeypatch.setattr(Session, "head", lambda self, address, timeout: "404 is an answer, too")
    hub.require_hub("x", "")


@pytest.mark.parametrize("task", ["blimp", "blimp/", "clams/en", "multiblimp/eng/SV-#/x", "blamp/x"])
def test_names_that_are_no_task(task):
    with pytest.raises(ValueError, match=f"There is no published task {task!r}. Give blimp/<set>, clams/"):
        published.published_rows(task)


def test_published_accuracies_of_pythia(shared):
    table = published.pythia_blimp()
    assert list(dict.fromkeys(table["model"])) == [f"pythia-{s}" for s in "70m 160m 410m 1b 1.4b 2.8b 6.9b 12b".split()]
    assert len(table) == 8 * 15 * 16 and (table.groupby(["model", "task"]).size() == 15).all()
    seen = table.groupby("model")["tokens_seen"]  # the same text for all, whatever the number of steps
    assert (seen.min() == 3000 * 2_097_152).all() and (seen.max() == 143_000 * 2_097_152).all()
    assert set(table[table["step"] == 1500]["model"]) == {"pythia-160m", "pythia-410m", "pythia-1.4b"}
    assert table["accuracy"].between(0, 1).all()
    binomial = (table["accuracy"] * (1 - table["accuracy"]) / 999) ** 0.5
    assert (table["stderr"] - binomial).abs().max() < 2e-4
    source = pd.read_csv(shared / "reference" / "pythia_v0_blimp_by_step.csv").set_index(["model", "step", "task"])
    mine = table.set_index(["model", "step", "task"])[["accuracy", "stderr"]]
    pd.testing.assert_frame_equal(mine.sort_index(), source.sort_index(), check_exact=True)


def test_shipped_data_is_found_or_missed_by_name():
    assert (published.data_folder("pythia_blimp") / "README.md").is_file()
    with pytest.raises(FileNotFoundError, match="data/nothing is not there"):
        published.data_folder("nothing")
