"""Running text: files and named sources, splits, order by seed, nothing twice, nothing read beyond
what is needed.
"""

import gzip
import json

import pandas as pd
import pytest
from models import word_tokenizer

from ctt_helpers.pairs import make_pairs
from ctt_helpers.sources import text

LINES = [f"the dog {'red ' * (i % 7)}{'old ' * (i // 7)}runs" for i in range(400)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join([*LINES, "", *LINES[:50]]))  # a blank line, and fifty that come again
    return path


@pytest.mark.slow
def test_the_same_documents_from_every_kind_of_file(file, tmp_path):
    objects = "".join(json.dumps({"text": line, "meta": i}) + "\n" for i, line in enumerate(LINES))
    (tmp_path / "a.jsonl").write_text(objects)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(objects.encode()))
    (tmp_path / "a.b.json.gz").write_bytes(gzip.compress(objects.encode()))
    pd.DataFrame({"text": LINES}).to_parquet(tmp_path / "a.parquet")
    plain = list(text.documents(file, "train"))
    for name in ("a.jsonl", "a.jsonl.gz", "a.b.json.gz", "a.parquet"):
        assert sorted(text.documents(tmp_path / name, "train")) == sorted(plain), name
    held_out = list(text.documents(file, "validation"))
    assert sorted(plain + held_out) == sorted(
        LINES
    )  # each once: none lost, none twice, none in both splits
    assert 20 < len(held_out) < 70


def test_a_packed_file_of_the_pile_is_read(tmp_path):
    zstandard = pytest.importorskip(
        "zstandard", reason="zstandard is not installed; the Pile's files need it"
    )
    objects = "".join(
        json.dumps({"text": line, "meta": {"pile_set_name": "x"}}) + "\n" for line in LINES[:9]
    )
    (tmp_path / "val.jsonl.zst").write_bytes(zstandard.compress(objects.encode()))
    found = [
        d
        for split in ("train", "validation")
        for d in text.documents(tmp_path / "val.jsonl.zst", split)
    ]
    assert sorted(found) == sorted(LINES[:9])


def test_a_seed_is_an_order(file):
    first, again, other = (list(text.documents(file, "train", seed=s)) for s in (0, 0, 1))
    assert first == again and first != other and sorted(first) == sorted(other)


def test_packing_follows_the_documents_token_for_token_and_stops():
    read = []

    def source():
        for line in [
            "the dog runs",
            "a cat",
            "the old red dog often sees a cat near the dogs",
            "cats run",
            "never read",
        ]:
            read.append(line)
            yield line

    tokenizer = word_tokenizer()
    rows = text.pack(source(), tokenizer, 4, 5)
    shown = [
        " ".join(tokenizer.convert_ids_to_tokens(r)).replace("Ġ", "").replace("<|endoftext|>", "|")
        for r in rows
    ]
    assert shown == [
        "| the dog runs |",
        "| a cat | the",
        "| old red dog often",
        "| sees a cat near",
    ]
    assert len(read) == 3  # the third filled the last row
    with pytest.raises(ValueError, match="The text is too short: 1 of 2 sequences of 5 tokens"):
        text.pack(["the dog runs", "a cat"], tokenizer, 2, 5)
    with pytest.raises(ValueError, match="too short: 0 of 2"):
        text.pack([], tokenizer, 2, 5)
    assert text.pack(iter(["never"]), tokenizer, 0, 5).shape == (0, 5)


def streams(monkeypatch, per_language=300):
    """Named texts without a hub: what `datasets` is asked for, and documents that say their
    language.
    """
    import datasets

    calls, taken = [], []

    def load_dataset(path, name="", **options):
        calls.append((path, name, options))

        def rows():
            for i in range(per_language):
                taken.append(name)
                yield {"text": f"{path} {name} {i}", "url": ""}

        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls, taken


@pytest.mark.parametrize(
    "name, asked",
    [
        (None, ("NeelNanda/pile-10k", "")),
        ("pile", ("monology/pile-uncopyrighted", "")),
        ("dolma", ("devingulliver/dolma-v1_6-sample", "")),
        ("mc4/fr", ("allenai/c4", "fr")),
        ("wikipedia/fr", ("wikimedia/wikipedia", "20231101.fr")),
    ],
)
def test_named_texts_are_streamed(monkeypatch, name, asked):
    calls, _ = streams(monkeypatch)
    document = next(text.documents(name, "train"))
    assert calls == [(*asked, {"split": "train", "streaming": True})] and document.startswith(
        " ".join(asked)
    )


def test_the_mixture_keeps_the_papers_shares(monkeypatch):
    calls, _ = streams(monkeypatch, per_language=2000)
    found, source = [], text.documents("mc4", "train", seed=3)
    for _ in range(2000):
        found.append(next(source).split()[1])
    share = pd.Series(found).value_counts(normalize=True)
    assert len(calls) == 10 and sum(text.MC4_SHARES.values()) == pytest.approx(1)
    for language, expected in text.MC4_SHARES.items():
        assert share[language] == pytest.approx(
            expected, abs=4 * (expected * (1 - expected) / 2000) ** 0.5
        )


def test_reading_ahead_is_bounded(monkeypatch):
    _, taken = streams(monkeypatch, per_language=5000)
    source = text.documents("pile", "train")
    for _ in range(10):
        next(source)
    assert len(taken) <= 1100


def test_the_table_of_sources_names_a_fallback_for_each_of_the_papers():
    table = text.sources()
    assert {"pile", "dolma", "mc4/<language>"} <= set(table.index[table["paper"]])
    assert set(table["fallback"].dropna()) - {"mc4/en"} <= set(table.index)
    assert table.loc["mc4/<language>", "where"] == "allenai/c4 <language>"
    kinds = ("gpt_neox", "olmo", "olmo2", "bloom", "llama")
    sources = [text.default_source(kind) for kind in kinds]
    assert sources == ["pile", "dolma", "dolma", "mc4", "pile"]


def test_out_of_reach_names_what_stands_in():
    with pytest.raises(
        ConnectionError,
        match=r"The text 'mc4/fr' \(allenai/c4\) cannot be .* you can take 'wikipedia/fr'",
    ):
        next(text.documents("mc4/fr", "train"))
    with pytest.raises(ConnectionError, match=r"'pile-10k' .* You can take a file of your own"):
        next(text.documents(None, "train"))


def test_the_pile_needs_a_package(monkeypatch):
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError,
        match="'pile' need the package zstandard: pip install zstandard, or take 'pile-10k'",
    ):
        next(text.documents("pile", "train"))


def test_what_is_no_text(file, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"There is no text 'pilee': no such file, .* Did you mean 'pile'\? Names: mc4, ",
    ):
        next(text.documents("pilee", "train"))
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(
        ValueError, match=r"a.docx: give a .txt, .jsonl, .json, .parquet file \(or packed"
    ):
        next(text.documents(tmp_path / "a.docx", "train"))
    (tmp_path / "b.jsonl").write_text('{"content": "x"}\n')
    with pytest.raises(ValueError, match=r"b.jsonl has no column 'text'; it has: content"):
        next(text.documents(tmp_path / "b.jsonl", "train"))
    (tmp_path / "c.txt").write_bytes("les élèves\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"c.txt cannot be read as text .*read as UTF-8"):
        list(text.documents(tmp_path / "c.txt", "train"))
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\n{"text": ')
    with pytest.raises(ValueError, match=r"d.jsonl cannot be read as text"):
        list(text.documents(tmp_path / "d.jsonl", "train"))


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(LINES[:20]), encoding="utf-8-sig")
    found = [
        d for split in ("train", "validation") for d in text.documents(tmp_path / "a.txt", split)
    ]
    assert sorted(found) == sorted(LINES[:20])


def test_text_and_pairs_begin_alike_whatever_tokens_there_are():
    """A tokenizer whose two special tokens differ (BLOOM, Llama), or that has only one (OLMo)."""
    row = {"prefix": "the dog", "right": " runs", "wrong": " run"}
    for bos, eos in (("<|unk|>", "<|endoftext|>"), (None, "<|endoftext|>"), ("<|unk|>", None)):
        tokenizer = word_tokenizer(bos)
        tokenizer.eos_token = eos
        start = tokenizer.convert_tokens_to_ids(bos or eos)
        rows = text.pack(["the dog runs", "a cat"] * 4, tokenizer, 3, 6)
        assert make_pairs([row], tokenizer).begins_with == start and (rows[:, 0] == start).all()
        between = tokenizer.convert_tokens_to_ids(eos or bos)
        assert rows[0].tolist() == [
            start,
            *tokenizer("the dog runs")["input_ids"],
            between,
            tokenizer("a")["input_ids"][0],
        ]
