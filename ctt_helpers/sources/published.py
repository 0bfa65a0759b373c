"""Published sets of minimal pairs, read from where they are published or from files.

| task | what | files |
|---|---|---|
| `blimp/<set>` | BLiMP, English (Warstadt et al. 2020) | `<set>.jsonl` |
| `clams/<language>/<case>` | CLAMS (Mueller et al. 2020) | `<language>_evalset/<case>.txt` |
| `multiblimp/<language>` | MultiBLiMP 1.0 (Jumelet et al. 2025) | `<language>/data.tsv` |
| `multiblimp/<language>/<phenomenon>` | one phenomenon of it: SV-#, SV-P, SV-G | |
| `file` | csv, tsv, json, jsonl, parquet or txt with pairs | the file |

BLiMP and MultiBLiMP are on the hub (nyu-mll/blimp, jumelet/multiblimp), CLAMS in its repository.

CLAMS has en, fr, de, he and ru; MultiBLiMP has 101 languages, in three letters (eng, fra, spa ...).
SV-# is agreement of subject and verb in number, SV-P in person, SV-G in gender.

A file's columns are recognised where they are well known (`LAYOUTS`), or named by `good`, `bad` and
`group`. A row that cannot be read is left out, counted and told; it never ends a file.
"""

import csv
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pandas as pd

from ctt_helpers.arguments import checked
from ctt_helpers.files import AGAIN, read_text
from ctt_helpers.messages import first_line
from ctt_helpers.pairs import NOT_TEXT
from ctt_helpers.sources import hub

# CLAMS is on no hub: these are the files of its repository, at one commit
CLAMS = (
    "https://raw.githubusercontent.com/aaronmueller/clams/"
    "299d80a80e98bd14a1f74b942f18ef05059d860b/{}_evalset/{}.txt"
)
HUB = {"blimp": "nyu-mll/blimp", "multiblimp": "jumelet/multiblimp"}
# how many parts a task's name has after the first, and the names of its published files
FORMS = {
    "blimp": ((1,), ("{0}.jsonl", "data/{0}.jsonl", "{0}/train-00000-of-00001.parquet")),
    "clams": ((2,), ("{0}_evalset/{1}.txt", "{0}/{1}.txt", "{1}.txt")),
    "multiblimp": ((1, 2), ("{0}/data.tsv", "{0}.tsv")),
}
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
DELIMITERS = (",", ";", "\t", "@@@")
# Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
FIRST_UNSPACED = chr(UNSPACED[0][0])

# why a row of a file cannot be read; what make_pairs finds comes on top
NO_OBJECT = "a line that is no JSON object"
WRONG_WIDTH = "a row with another number of cells than the header"
NO_LABEL = "a row whose label is neither right nor wrong"
NO_PARTNER = "a right or a wrong sentence without its partner"


@dataclass(frozen=True)
class Layout:
    """Columns by which a set of pairs is recognised.

    Attributes:
        known_from: sets that have them.
        good, bad: columns of the right and the wrong sentence; or, where a pair takes two rows,
            the right row first, `good` is the column of the sentence and `bad` is None.
        label: where a pair takes two rows, the column that says which is right; and where both
            sentences stand in one row in any order, the column that says so.
        right, wrong: what stands in `label` for a right and a wrong sentence (for two columns: for
            `good` being right, and `bad`).
        pair_by: where a pair takes two rows, columns that have the same value in both (as many as
            there are); none: the wrong row follows its right one.
        kept: further columns that go into the pairs' table.
    """

    known_from: str
    good: str
    bad: str | None
    label: str | None = None
    right: str = ""
    wrong: str = ""
    pair_by: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


OWN = Layout("this package", "prefix", None)  # with the columns right and wrong, cut already
LAYOUTS = (
    OWN,
    Layout(
        "QFrBLiMP", "sentence_a", "sentence_b", label="label", right="0", wrong="1",
        kept=("category", "type"),
    ),
    Layout(
        "BLiMP, SLING, ZhoBLiMP, BLiMP-NL and TurBLiMP on the hub", "sentence_good", "sentence_bad",
        kept=("UID", "field", "linguistics_term", "phenomenon", "paradigm", "Phenomenon",
              "Paradigm", "linguistic_phenomenon", "item_id"),
    ),
    Layout(
        "JBLiMP, TurBLiMP, MALINDO BLiMP", "good_sentence", "bad_sentence",
        kept=("phenomenon", "subtype", "paradigm", "type"),
    ),
    Layout(
        "RuBLiMP", "source_sentence", "target_sentence",
        kept=("PID", "phenomenon", "level", "subtype"),
    ),
    Layout(
        "MultiBLiMP", "sen", "wrong_sen",
        kept=("phenomenon", "lang", "wo", "grammatical_feature", "ungrammatical_feature",
              "num_attractors"),
    ),
    Layout(
        "LINDSEA", "correct", "wrong", kept=("linguistic_phenomenon", "category", "subcategory"),
    ),
    Layout(
        "BLiMP-NL", "Sentence", None, label="Grammaticality", right="Grammatical",
        wrong="Ungrammatical", pair_by=("Number (paradigm)", "Paradigm", "Item"),
        kept=("Phenomenon", "Paradigm"),
    ),
    Layout("CLiMP", "2", None, label="3", right="1", wrong="0", kept=("0", "1")),
    Layout("CLAMS", "sentence", None, label="truth", right="True", wrong="False"),
    Layout("SLING's text files", "left", "right"),
)  # fmt: skip


# ---- tasks by name


@checked
def published_rows(
    task: str,
    path: str | Path | None = None,
    good: str | None = None,
    bad: str | None = None,
    group: str | None = None,
) -> list[dict[str, Any]]:
    """Rows (prefix, right, wrong ...) of a published task or a file, for `pairs.make_pairs`.

    Args:
        task: see the table above.
        path: a folder with the published files (there, or in its subfolder blimp, clams or
            multiblimp), or the file itself; None reads from where they are published.
        good, bad: columns with the right and the wrong sentence; None: recognised.
        group: a column that goes into the pairs' table as "group"; None: none.

    Raises:
        ValueError: no such task, a file that is no table of pairs, or columns that it has not.
        FileNotFoundError: the folder has no file of that task.
        ConnectionError: no path is given and the published data cannot be reached.
    """
    kind, *rest = task.split("/")
    if kind == "file":
        if path is None:
            raise ValueError('pairs("file"): give path= of a file with pairs.')
        return file_rows(Path(path).expanduser(), good, bad, group)
    named = all(part.strip(".") and "\\" not in part for part in rest)
    if kind not in FORMS or len(rest) not in FORMS[kind][0] or not named:
        raise ValueError(
            f"There is no published task {task!r}. Give blimp/<set>, "
            "clams/<language>/<construction>, multiblimp/<language>, "
            "multiblimp/<language>/<phenomenon>, or file with path=."
        )
    if path is None:
        rows = pair_rows(_from_its_place(task, kind, rest), good, bad, group, task)
    else:
        rows = file_rows(_file_of(task, kind, rest, Path(path).expanduser()), good, bad, group)
    if kind == "multiblimp" and len(rest) == 2:
        rows = _of_phenomenon(rows, *rest)
    return rows


def _file_of(task: str, kind: str, rest: list[str], path: Path) -> Path:
    names = [name.format(*rest) for name in FORMS[kind][1]]
    files = [path, *(folder / name for folder in (path, path / kind) for name in names)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{task!r}: no file {' or '.join(names)} in {path} or {path / kind}."
        )
    return file


def _of_phenomenon(
    rows: list[dict[str, Any]], language: str, phenomenon: str
) -> list[dict[str, Any]]:
    there = sorted({str(row["phenomenon"]) for row in rows if "phenomenon" in row})
    if phenomenon not in there:
        raise ValueError(
            f"MultiBLiMP has no {phenomenon!r} in {language!r}; it has: {', '.join(there)}."
        )
    return [row for row in rows if row.get("phenomenon", phenomenon) == phenomenon]


def _from_its_place(task: str, kind: str, rest: list[str]) -> list[dict[str, Any]]:
    """The published records; those of the hub are cached by `datasets`."""
    where = CLAMS.format(quote(rest[0]), quote(rest[-1])) if kind == "clams" else HUB[kind]
    otherwise = "Or give path=: a folder with the published files."
    if kind != "clams":
        cached = "What was downloaded before is found with HF_HUB_OFFLINE=1 set."
        hub.require_hub(repr(task), f"{otherwise} {cached}")
    try:
        if kind == "clams":
            with urlopen(where, timeout=hub.SECONDS) as answer:
                return _labelled_lines(answer.read().decode())
        from datasets import load_dataset

        return list(load_dataset(where, rest[0], split="train"))
    except (OSError, ValueError, RuntimeError) as error:
        kind_of_error = ValueError if isinstance(error, ValueError) else ConnectionError
        raise kind_of_error(
            f"{task!r} cannot be read from {where}: {first_line(error)} {otherwise}"
        ) from error


# ---- files


@checked
def file_rows(
    file: str | Path, good: str | None = None, bad: str | None = None, group: str | None = None
) -> list[dict[str, Any]]:
    """Rows of pairs of a file; how many of its lines could not be read is told."""
    rows = pair_rows(read_records(file), good, bad, group, str(file))
    reasons = Counter(row["left_out"] for row in rows if "left_out" in row)
    if reasons:
        told = "; ".join(f"{reason}: {count}" for reason, count in reasons.items())
        warnings.warn(f"{file}: {sum(reasons.values())} rows are left out ({told}).", stacklevel=7)
    return rows


@checked
def read_records(file: str | Path) -> list[dict[str, Any]]:
    """What a file holds, as a list of rows: of a table, of objects, or of lines of text.

    A row that cannot be read is {"left_out": why}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of a kind that can be read, or not in UTF-8; the message names it.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(file)!r}.")
    ending = file.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{file}: give a file that ends in {', '.join(ENDINGS)}.")
    if ending == ".parquet":
        try:
            return pd.read_parquet(file).to_dict("records")
        except Exception as error:  # whatever the reader of the format raises
            raise ValueError(f"{file} cannot be read ({first_line(error)}) {AGAIN}") from error
    text = read_text(file)
    if ending == ".json" and text.lstrip().startswith("["):
        try:
            return [_object(record) for record in json.loads(text)]
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not valid JSON ({error}). {AGAIN}") from error
    if ending in (".json", ".jsonl"):
        return [_object_of_line(line) for line in _lines(text)]
    if ending == ".txt" and "@@@" not in text.split("\n", 1)[0]:
        return _labelled_lines(text)
    return _table(text, file)


def _lines(text: str) -> list[str]:
    """The lines that say something. Only a newline ends one: sentences hold other separators."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    return [line for line in lines if line.strip()]


def _object(record: Any) -> dict[str, Any]:
    return record if isinstance(record, dict) else {"left_out": NO_OBJECT}


def _object_of_line(line: str) -> dict[str, Any]:
    try:
        return _object(json.loads(line))
    except json.JSONDecodeError:
        return {"left_out": NO_OBJECT}


def _labelled_lines(text: str) -> list[dict[str, Any]]:
    """Lines as CLAMS has them: True or False, a tab, a sentence."""
    rows = []
    for line in _lines(text.removeprefix("\ufeff")):
        truth, _, sentence = line.partition("\t")
        rows.append({"truth": truth.strip(), "sentence": sentence.strip()})
    return rows


def _table(text: str, file: Path) -> list[dict[str, Any]]:
    """Rows of a table with a header; the delimiter is the one that the header has most of."""
    lines = _lines(text)
    if not lines:
        raise ValueError(f"{file} is empty.")
    delimiter = max(DELIMITERS, key=lines[0].count)
    if delimiter == "@@@":
        cells = [line.split(delimiter) for line in lines]
        return [
            {"left": row[0], "right": row[1]} if len(row) == 2 else {"left_out": WRONG_WIDTH}
            for row in cells
        ]
    header = next(csv.reader([lines[0]], delimiter=delimiter))
    return [
        dict(zip(header, row, strict=True)) if row is not None else {"left_out": WRONG_WIDTH}
        for row in _cells(lines[1:], delimiter, len(header))
    ]


def _cells(lines: Sequence[str], delimiter: str, width: int) -> Iterator[list[str] | None]:
    """The cells of each row; None for a row that has not as many as the header.

    A quote may hold a line break. But where it is never closed, a reader would swallow the rows
    that follow: if the next line is a whole row by itself, the quote was not meant to go on.
    """
    at = 0
    while at < len(lines):
        end = at + 1
        if lines[at].count('"') % 2:
            while end < len(lines) and not _row(lines[end], delimiter, width):
                end += 1
                if lines[end - 1].count('"') % 2:
                    break
        row = _row("\n".join(lines[at:end]), delimiter, width)
        if row is None and end > at + 1:
            end = at + 1  # the lines that were joined are read by themselves
        yield row
        at = end


def _row(text: str, delimiter: str, width: int) -> list[str] | None:
    """The cells of one row, or None where it is not exactly one with so many cells."""
    if text.count('"') % 2:
        return None
    try:
        rows = list(csv.reader([text], delimiter=delimiter))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 and len(rows[0]) == width else None


# ---- rows of pairs


@checked
def pair_rows(
    records: Iterable[dict[str, Any]],
    good: str | None = None,
    bad: str | None = None,
    group: str | None = None,
    name: str = "these records",
) -> list[dict[str, Any]]:
    """Rows of pairs out of records whose columns are named or recognised.

    Raises:
        ValueError: columns that the records do not have, or that nothing is known of.
    """
    records = list(records)
    readable = [record for record in records if "left_out" not in record]
    if not readable:
        raise ValueError(f"{name} holds no row that can be read ({len(records)} in all).")
    columns = list(dict.fromkeys(key for record in readable for key in record))
    for column in (good, bad, group):
        if column is not None and column not in columns:
            raise ValueError(f"{name} has no column {column!r}; it has: {_shown(columns)}.")
    layout = _layout(columns, good, bad, name)
    if group is not None:
        layout = replace(layout, kept=tuple(dict.fromkeys((*layout.kept, group))))
    if layout.good == OWN.good and layout.bad is None:
        rows = records
    elif layout.bad is None:
        rows = _two_rows_a_pair(records, layout)
    else:
        rows = [_one_row_a_pair(record, layout) for record in records]
    if group is not None:
        rows = [{**row, "group": row[group]} if group in row else row for row in rows]
    return rows


def _shown(columns: Sequence[str]) -> str:
    return ", ".join(repr(str(column)) for column in columns[:20])


def _layout(columns: Sequence[str], good: str | None, bad: str | None, name: str) -> Layout:
    """The layout that is named, or the first one that is recognised."""
    if (good is None) != (bad is None):
        raise ValueError(f"{name}: name both columns, good= and bad=, or neither.")
    if good is not None:
        return Layout("its reader", good, bad)
    for layout in LAYOUTS:
        needed = {layout.good, layout.bad, layout.label} - {None}
        if layout is OWN:
            needed = {"prefix", "right", "wrong"}
        if needed <= set(columns):
            return layout
    known = "; ".join(f"{o.good} and {o.bad or o.label} ({o.known_from})" for o in LAYOUTS[1:])
    raise ValueError(
        f"{name} has the columns {_shown(columns)}: name those with the right and the wrong "
        f"sentence, good= and bad=. Recognised are {known}."
    )


def _one_row_a_pair(record: dict[str, Any], layout: Layout) -> dict[str, Any]:
    if "left_out" in record:
        return record
    right, wrong = record.get(layout.good), record.get(layout.bad)
    if layout.label is not None:
        label = str(record.get(layout.label))
        if label not in (layout.right, layout.wrong):
            return {"left_out": NO_LABEL}
        if label == layout.wrong:
            right, wrong = wrong, right
    if not isinstance(right, str) or not isinstance(wrong, str):
        return {"left_out": NOT_TEXT}
    return {**from_sentences(right, wrong), **_kept(record, layout), **_form(record)}


def _two_rows_a_pair(records: list[dict[str, Any]], layout: Layout) -> list[dict[str, Any]]:
    """Each wrong row with the right row it belongs to: of the same key, or the last before it."""
    keys = [key for key in layout.pair_by if any(key in record for record in records)]
    rights = [r for r in records if str(r.get(layout.label)) == layout.right]
    by_key = {tuple(right.get(key) for key in keys): right for right in reversed(rights)}
    rows: list[dict[str, Any]] = []
    used = set()
    last: dict[str, Any] | None = None
    for record in records:
        label = str(record.get(layout.label))
        if "left_out" in record or label not in (layout.right, layout.wrong):
            rows.append({"left_out": record.get("left_out", NO_LABEL)})
            last = None  # what comes next may belong to it
        elif label == layout.right:
            last = record
        else:
            right = by_key.get(tuple(record.get(key) for key in keys)) if keys else last
            rows.append({"left_out": NO_PARTNER} if right is None else _pair(right, record, layout))
            used.add(id(right))
    rows += [{"left_out": NO_PARTNER} for right in rights if id(right) not in used]
    return rows


def _pair(right: dict[str, Any], wrong: dict[str, Any], layout: Layout) -> dict[str, Any]:
    sentences = right[layout.good], wrong[layout.good]
    if not all(isinstance(sentence, str) for sentence in sentences):
        return {"left_out": NOT_TEXT}
    return {**from_sentences(*sentences), **_kept(right, layout)}


def _kept(record: dict[str, Any], layout: Layout) -> dict[str, Any]:
    return {column: record[column] for column in layout.kept if column in record}


def _form(record: dict[str, Any]) -> dict[str, str]:
    """How a BLiMP pair is meant to be read, where its record says so."""
    if "one_prefix_method" not in record or record["one_prefix_method"]:
        return {}
    return {"form": "two_prefix" if record.get("two_prefix_method") else "sentence"}


@checked
def from_sentences(right: str, wrong: str) -> dict[str, str]:
    """A right and a wrong sentence as prefix, right and wrong word, cut at the first that differs.

    In scripts without spaces it is cut around the characters that differ. The prefix is empty where
    the sentences differ from the first word on, and both words are where they do not differ; such a
    pair is left out later, and counted.
    """
    sentences = {"sentence": right, "wrong_sentence": wrong}
    if _has_no_spaces(right):
        return {**_around_the_difference(right, wrong), "cut": "characters", **sentences}
    a, b = right.split(), wrong.split()
    first = 0
    while first < min(len(a), len(b)) and a[first] == b[first]:
        first += 1

    def word(words: list[str]) -> str:
        return f" {words[first].rstrip('.')}" if first < len(words) else ""

    return {"prefix": " ".join(a[:first]), "right": word(a), "wrong": word(b), **sentences}


def _has_no_spaces(text: str) -> bool:
    """Whether a sentence is in a script that puts no spaces between words."""
    if max(text, default="") < FIRST_UNSPACED:  # most languages, and quickly seen
        return False
    letters = [c for c in text if c.isalpha()]
    unspaced = [c for c in letters if any(low <= ord(c) <= high for low, high in UNSPACED)]
    return 2 * len(unspaced) > len(letters)


def _around_the_difference(right: str, wrong: str) -> dict[str, str]:
    """What comes before the first character that differs, and what differs until both end alike."""
    start = 0
    while start < min(len(right), len(wrong)) and right[start] == wrong[start]:
        start += 1
    end = 0
    while end < min(len(right), len(wrong)) - start and right[-1 - end] == wrong[-1 - end]:
        end += 1
    return {
        "prefix": right[:start],
        "right": right[start : len(right) - end],
        "wrong": wrong[start : len(wrong) - end],
    }


# ---- what is shipped


@checked
def data_folder(name: str) -> Path:
    """Folder of data that is shipped: in an installed wheel, or in `data` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_data" / name, package.parent / "data" / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"data/{name} is not there. Install the package anew, or work in a checkout."
    )


def pythia_blimp() -> pd.DataFrame:
    """BLiMP accuracies of eight Pythia sizes in training, as EleutherAI published them (suite v0).

    Not our measure: the whole sentence is scored (as by `behaviour.accuracy` with whole=True), and
    all begin after 6.3 billion tokens, when the fall below chance of early checkpoints is over.
    Sizes that end at step 71,500 took 4,194,304 tokens a step, the others 2,097,152: compare by
    tokens, not by steps. Source: github.com/EleutherAI/pythia, evals/pythia-v0 (Apache-2.0).

    Returns:
        Tidy table, small sizes first: model, revision, step, tokens_seen, task, accuracy, stderr,
        n_pairs.
    """
    return pd.read_csv(data_folder("pythia_blimp") / "accuracy_by_step.csv")
