"""Published sets of minimal pairs, read from where they are published or from their files; published accuracies.

| task | what | hub data set | files |
|---|---|---|---|
| `blimp/<set>` | BLiMP, English (Warstadt et al. 2020) | nyu-mll/blimp | `<set>.jsonl` |
| `clams/<language>/<construction>` | CLAMS (Mueller et al. 2020) | none | `<language>_evalset/<construction>.txt` |
| `multiblimp/<language>` | MultiBLiMP 1.0 (Jumelet et al. 2025) | jumelet/multiblimp | `<language>/data.tsv` |
| `multiblimp/<language>/<phenomenon>` | the same, one phenomenon: SV-#, SV-P, SV-G | | |

CLAMS has en, fr, de, he and ru; MultiBLiMP has 101 languages, in three letters (eng, fra, spa ...). SV-# is agreement
of subject and verb in number, SV-P in person, SV-G in gender.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pandas as pd

from ctt_helpers import hub

TWO_PREFIX = "the prefix differs, not the continuation (two-prefix set)"
# CLAMS is on no hub: these are the files of its repository, at one commit
CLAMS = (
    "https://raw.githubusercontent.com/aaronmueller/clams/299d80a80e98bd14a1f74b942f18ef05059d860b/{}_evalset/{}.txt"
)
HUB = {"blimp": "nyu-mll/blimp", "multiblimp": "jumelet/multiblimp"}
# how many parts a task's name has, and the names of its published files
FORMS = {
    "blimp": ((1,), ("{0}.jsonl", "data/{0}.jsonl", "{0}/train-00000-of-00001.parquet")),
    "clams": ((2,), ("{0}_evalset/{1}.txt", "{0}/{1}.txt", "{1}.txt")),
    "multiblimp": ((1, 2), ("{0}/data.tsv", "{0}.tsv")),
}


def published_rows(task: str, path: str | Path | None = None) -> list[dict[str, Any]]:
    """Rows (prefix, right, wrong ...) of a published task, for `tasks.make_pairs`.

    Args:
        task: see the table above.
        path: a folder with the published files (there, or in its subfolder blimp, clams or multiblimp), or the file
            itself; None reads from where they are published.

    Raises:
        ValueError: no such task, or a two-prefix set.
        FileNotFoundError: the folder has no file of that task.
        ConnectionError: no path is given and the published data cannot be reached.
    """
    kind, *rest = task.split("/")
    if kind not in FORMS or len(rest) not in FORMS[kind][0] or not all(rest):
        forms = (
            "blimp/<set>, clams/<language>/<construction>, multiblimp/<language>, multiblimp/<language>/<phenomenon>"
        )
        raise ValueError(f"There is no published task {task!r}. Give {forms}.")
    if path is None:
        records = _from_its_place(task, kind, rest)
    else:
        folders, names = (Path(path), Path(path) / kind), [name.format(*rest) for name in FORMS[kind][1]]
        files = [Path(path), *(folder / name for folder in folders for name in names)]
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{task!r}: no file {' or '.join(names)} in {folders[0]} or {folders[1]}.")
        records = read_records(file)
    if kind == "blimp":
        return blimp_rows(records, rest[0])
    return clams_rows(records, task) if kind == "clams" else multiblimp_rows(records, *rest)


def _from_its_place(task: str, kind: str, rest: list[str]) -> list[dict[str, Any]]:
    """The published records; those of the hub are cached by `datasets`."""
    where = CLAMS.format(rest[0], rest[-1]) if kind == "clams" else HUB[kind]
    otherwise = "Or give path=: a folder with the published files."
    if kind != "clams":
        hub.require_hub(repr(task), f"{otherwise} What was downloaded before is found with HF_HUB_OFFLINE=1 set.")
    try:
        if kind == "clams":
            with urlopen(where, timeout=hub.SECONDS) as answer:
                return _lines(answer.read().decode())
        from datasets import load_dataset

        return list(load_dataset(where, rest[0], split="train"))
    except (OSError, ValueError, RuntimeError) as error:
        kind_of_error = ValueError if isinstance(error, ValueError) else ConnectionError
        raise kind_of_error(f"{task!r} cannot be read from {where}: {hub.first_line(error)} {otherwise}") from error


def read_records(file: Path) -> list[dict[str, Any]]:
    """What a published file holds, as a list: rows of a table, objects, or lines of text."""
    if file.suffix == ".parquet":
        return pd.read_parquet(file).to_dict("records")
    if file.suffix == ".tsv":
        return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False).to_dict("records")
    lines = _lines(file.read_text(encoding="utf-8"))
    return [json.loads(line["text"]) for line in lines] if file.suffix == ".jsonl" else lines


def _lines(text: str) -> list[dict[str, Any]]:
    return [{"text": line} for line in text.splitlines() if line.strip()]


def blimp_rows(records: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Rows of a BLiMP set. Two-prefix sets are not of this form: they raise ValueError."""
    records = list(records)
    if any(not r.get("one_prefix_method") for r in records):
        raise ValueError(f"{name} cannot be used: {TWO_PREFIX}. Take its *_1 set, a one-prefix set.")
    return [from_sentences(r["sentence_good"], r["sentence_bad"]) for r in records]


def clams_rows(records: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Rows of a CLAMS file: a right line, then the same with a wrong verb. Sentences are in lower case, as published.

    Raises:
        ValueError: lines are not in turns True and False.
    """
    lines = [r["text"].split("\t") for r in records]
    rows = []
    for (truth, right), (falsehood, wrong) in zip(lines[::2], lines[1::2], strict=True):
        if (truth, falsehood) != ("True", "False"):
            raise ValueError(f"{name}: expected a True line followed by a False line, got {right!r} and {wrong!r}.")
        rows.append(from_sentences(right, wrong))
    return rows


def multiblimp_rows(
    records: Iterable[dict[str, Any]], language: str, phenomenon: str | None = None
) -> list[dict[str, Any]]:
    """Rows of a language of MultiBLiMP: natural sentences of treebanks with one agreeing word replaced.

    Read from its columns `sen`, `wrong_sen` and `phenomenon`; where they are there, `lang`, `wo` (order of subject and
    verb), `grammatical_feature`, `ungrammatical_feature` and `num_attractors` go into the table. Where the verb comes
    first (`wo` is "VS") the prefix does not yet hold the subject.

    Raises:
        ValueError: no pair of that phenomenon.
    """
    records = list(records)
    there = sorted({r["phenomenon"] for r in records})
    if phenomenon is not None and phenomenon not in there:
        raise ValueError(f"MultiBLiMP has no {phenomenon!r} in {language!r}; it has: {', '.join(there)}.")
    kept = ("phenomenon", "lang", "wo", "grammatical_feature", "ungrammatical_feature", "num_attractors")
    return [
        from_sentences(r["sen"], r["wrong_sen"]) | {k: r[k] for k in kept if k in r}
        for r in records
        if phenomenon in (None, r["phenomenon"])
    ]


def from_sentences(right: str, wrong: str) -> dict[str, str]:
    """A right and a wrong sentence as prefix, right and wrong word: cut at the first word that differs.

    The prefix is empty where they differ from the first word on; such a pair is left out later, and counted.
    """
    a, b = right.split(), wrong.split()
    first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if first is None:
        raise ValueError(f"No word differs in these two sentences: {right!r}, {wrong!r}.")
    pair = {"prefix": " ".join(a[:first]), "right": f" {a[first].rstrip('.')}", "wrong": f" {b[first].rstrip('.')}"}
    return pair | {"sentence": right, "wrong_sentence": wrong}


def data_folder(name: str) -> Path:
    """Folder of data that is shipped with the package: in an installed wheel, or in `data` of a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_data" / name, here.parent / "data" / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"data/{name} is not there. Install the package anew, or work in a checkout.")


def pythia_blimp() -> pd.DataFrame:
    """BLiMP accuracies of eight Pythia sizes during training, as EleutherAI published them for its first suite (v0).

    Not our measure: the whole sentence is scored (as by `tasks.accuracy` with whole=True), and all begin after 6.3
    billion tokens, when the fall below chance of early checkpoints is over. Sizes that end at step 71,500 took
    4,194,304 tokens a step, the others 2,097,152: compare by tokens, not by steps. Source:
    github.com/EleutherAI/pythia, evals/pythia-v0 (Apache-2.0).

    Returns:
        Tidy table, small sizes first: model, revision, step, tokens_seen, task, accuracy, stderr, n_pairs.
    """
    return pd.read_csv(data_folder("pythia_blimp") / "accuracy_by_step.csv")
