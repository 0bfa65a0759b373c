"""Running text for the crosscoder: documents by name or from a file, packed into sequences of equal length.

Names of text are in the table that `sources()` gives: the paper's sources, and what stands in where one of them cannot
be had. They are streamed: no more is downloaded than is read. The paper took the first 1,024 tokens of documents that
are at least as long; here whole documents follow each other, with an end-of-text token between two.
"""

import hashlib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ctt_helpers.hub import first_line, require_hub
from ctt_helpers.runtime import closest, progress, read_json

TEXTS = read_json(Path(__file__).with_name("text.json"))
# name -> where: arguments of `load_dataset` but the split, always "train" ("{}" stands for the language); what it is;
# whether the paper used it; the fallback that stands in for it, or None
SOURCES: dict[str, dict[str, Any]] = TEXTS["sources"]
# the paper's shares of tokens, after the ten largest languages of BLOOM's pretraining text; here, shares of documents
MC4_SHARES: dict[str, float] = TEXTS["mc4_shares"]
FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
PACKED = (".gz", ".xz", ".bz2", ".zst")


def sources() -> pd.DataFrame:
    """The texts that have a name: where they are, whether the paper used them, what stands in for them."""
    table = pd.DataFrame.from_dict(SOURCES, orient="index").rename_axis("name")
    return table.assign(where=[" ".join(w.values()).replace("{}", "<language>") for w in table["where"]])


def default_source(repository: str) -> str:
    """Name of the text that the paper took for a model: Dolma for OLMo, mC4 for BLOOM, the Pile for all others."""
    name = str(repository).lower()
    return "dolma" if "olmo" in name else "mc4" if "bloom" in name else "pile"


def documents(source: str | Path | None, split: str, seed: int = 0) -> Iterator[str]:
    """Documents of one split, each once: from a named text, or from a file.

    Equal seeds give equal documents in equal order. A document is in the validation split by a hash of its text (one in
    ten), so that the splits never share one; one that comes again, letter for letter, is dropped.

    Args:
        source: a name of `sources()` ("pile", "mc4/fr" ...; "mc4" is the paper's mixture of ten languages; None is
            "pile-10k"), or a file: .txt (a document a line), .jsonl (or .json, an object a line) or .parquet, with
            "text" as key or column, packed or not (.gz, .xz, .bz2, .zst).
        split: "train" or "validation".
        seed: the order; it is shuffled among a thousand documents that are read ahead.

    Raises:
        ValueError: there is no such name and no such file, or no column "text".
        ConnectionError: the text cannot be reached; the message names what stands in for it.
    """
    seen = set()
    for document in _source(source, seed):
        digest = hashlib.sha256(document.encode()).digest()
        if (digest[0] % 10 == 0) == (split == "validation") and digest not in seen and document.strip():
            seen.add(digest)
            yield document


def _source(source: str | Path | None, seed: int) -> Iterator[str]:
    name = "pile-10k" if source is None else str(source)
    suffixes = [s for s in Path(name).suffixes if s not in PACKED]
    if Path(name).is_file():
        if not suffixes or suffixes[-1] not in FORMATS:
            raise ValueError(f"{name}: give a {', '.join(FORMATS)} file (or packed, as .jsonl.gz).")
        return _stream({"path": FORMATS[suffixes[-1]], "data_files": name}, seed)
    if name == "mc4":
        return _mixture({language: _named(f"mc4/{language}", seed) for language in MC4_SHARES}, MC4_SHARES, seed)
    return _named(name, seed)


def _named(name: str, seed: int) -> Iterator[str]:
    kind, _, language = name.partition("/")
    key = f"{kind}/<language>" if language else name
    if key not in SOURCES:
        raise ValueError(
            f"There is no text {name!r}: no such file, and no such name.{closest(name, SOURCES)} "
            f"Names: {', '.join(SOURCES)}. Files: {', '.join(FORMATS)}."
        )
    source = SOURCES[key]
    if name == "pile" and find_spec("zstandard") is None:
        raise ImportError("The files of 'pile' need the package zstandard: pip install zstandard, or take 'pile-10k'.")
    where = {k: v.format(language) for k, v in source["where"].items()}
    require_hub(f"The text {name!r}", "Or take a file of your own.")
    try:
        yield from _stream(where, seed)
    except (OSError, RuntimeError) as error:
        standing_in = (source["fallback"] or "").replace("<language>", language)
        instead = f"In its place you can take {standing_in!r}, or" if standing_in else "You can take"
        told = f"The text {name!r} ({where['path']}) cannot be read: {first_line(error)}"
        raise ConnectionError(f"{told} {instead} a file of your own.") from error


def _stream(where: dict[str, Any], seed: int) -> Iterator[str]:
    from datasets import load_dataset

    for row in load_dataset(**where, split="train", streaming=True).shuffle(seed=seed, buffer_size=1000):
        if "text" not in row:
            raise ValueError(f"{[*where.values()][-1]} has no column 'text'; it has: {', '.join(row)}.")
        yield row["text"]


def _mixture(streams: dict[str, Iterator[str]], shares: dict[str, float], seed: int) -> Iterator[str]:
    """Documents of several streams, each drawn by its share, until one has no more."""
    names, generator = list(streams), np.random.default_rng(seed)
    while True:
        try:
            yield next(streams[names[generator.choice(len(names), p=list(shares.values()))]])
        except StopIteration:
            return


def pack(source: Iterable[str], tokenizer: Any, n_rows: int, length: int) -> Int[Tensor, "sequences length"]:
    """Pack documents into rows: the end-of-text token first, and one between two documents.

    No document is read after the last row is full. A row that begins inside a document begins with the end-of-text
    token, too.

    Raises:
        ValueError: the documents are too few.
    """
    start, row, done = tokenizer.eos_token_id, [], 0
    rows = torch.empty((n_rows, length), dtype=torch.long)
    with progress((), "text", total=n_rows) as bar:
        for document in source if n_rows else ():
            tokens, at = [start, *tokenizer(document, add_special_tokens=False)["input_ids"]], 0
            while at < len(tokens):
                row = row or [start] * bool(at)
                taken = tokens[at : at + length - len(row)]
                row, at = row + taken, at + len(taken)
                if len(row) == length:
                    rows[done], row, done = torch.tensor(row), [], done + 1
                    bar.update()
                    if done == n_rows:
                        return rows
    if n_rows:
        told = f"The text is too short: {done} of {n_rows} sequences of {length} tokens."
        raise ValueError(f"{told} Give more text, or ask for less.")
    return rows
