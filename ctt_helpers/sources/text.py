"""Running text for the crosscoder: documents by name or from a file, packed into equal sequences.

Names of text are in the table that `sources()` gives: the paper's sources, and what stands in where
one of them cannot be had. They are streamed: no more is downloaded than is read. The paper took the
first 1,024 tokens of documents that are at least as long; here whole documents follow each other,
with an end-of-text token between two.
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

from ctt_helpers.arguments import checked
from ctt_helpers.files import AGAIN, expanded, read_json
from ctt_helpers.messages import choose, closest, first_line, progress, whole_number
from ctt_helpers.pairs import start_token
from ctt_helpers.sources.hub import require_hub

TEXTS = read_json(Path(__file__).with_name("text.json"))
# name -> where: arguments of `load_dataset` but the split, always "train" ("{}" stands for the
# language); what it is; whether the paper used it; the fallback that stands in for it, or None
SOURCES: dict[str, dict[str, Any]] = TEXTS["sources"]
# the paper's shares of tokens, after the ten largest languages of BLOOM's pretraining text; here,
# shares of documents
MC4_SHARES: dict[str, float] = TEXTS["mc4_shares"]
FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
PACKED = (".gz", ".xz", ".bz2", ".zst")


def sources() -> pd.DataFrame:
    """The texts that have a name: where they are, whether the paper used them, what stands in."""
    table = pd.DataFrame.from_dict(SOURCES, orient="index").rename_axis("name")
    where = [" ".join(w.values()).replace("{}", "<language>") for w in table["where"]]
    return table.assign(where=where)


@checked
def default_source(model_type: str) -> str:
    """Name of the text that the paper took for a kind of model, by its `config.model_type`.

    Dolma for OLMo, mC4 for BLOOM, the Pile for all others.
    """
    if model_type.startswith("olmo"):
        return "dolma"
    return "mc4" if model_type == "bloom" else "pile"


@checked
def documents(source: str | Path | None, split: str, seed: int = 0) -> Iterator[str]:
    """Documents of one split, each once: from a named text, or from a file.

    Equal seeds give equal documents in equal order. A document is in the validation split by a hash
    of its text (one in ten), so that the splits never share one; one that comes again, letter for
    letter, is dropped.

    Args:
        source: a name of `sources()` ("pile", "mc4/fr" ...; "mc4" is the paper's mixture of ten
            languages; None is "pile-10k"), or a file: .txt (a document a line), .jsonl (or .json,
            an object a line) or .parquet, with "text" as key or column, packed or not (.gz, .xz,
            .bz2, .zst).
        split: "train" or "validation".
        seed: the order; it is shuffled among a thousand documents that are read ahead.

    Raises:
        ValueError: there is no such name and no such file, no column "text", or a file that is
            damaged or not in UTF-8.
        ConnectionError: the text cannot be reached; the message names what stands in for it.
    """
    choose("split", split, ("train", "validation"))
    seen = set()
    for document in _source(source, seed):
        document = document.removeprefix("\ufeff")  # a byte order mark
        digest = hashlib.sha256(document.encode(errors="surrogatepass")).digest()
        is_validation = digest[0] % 10 == 0
        if is_validation == (split == "validation") and digest not in seen and document.strip():
            seen.add(digest)
            yield document


@checked
def find_text(source: str | Path) -> Path | str:
    """The file, or the name of a text.

    Raises:
        ValueError: there is no such file, and no such name.
    """
    name = str(source)
    file = expanded(name)
    if "\0" not in name and file.is_file():
        return file
    kind, _, language = name.partition("/")
    if (f"{kind}/<language>" if language else name) not in {*SOURCES, "mc4"}:
        raise ValueError(
            f"There is no text {name!r}: no such file, and no such name.{closest(name, SOURCES)} "
            f"Names: {', '.join(SOURCES)}. Files: {', '.join(FORMATS)}."
        )
    return name


def _source(source: str | Path | None, seed: int) -> Iterator[str]:
    name = find_text("pile-10k" if source is None else source)
    if isinstance(name, Path):
        return _file(name, seed)
    if name == "mc4":
        streams = {language: _named(f"mc4/{language}", seed) for language in MC4_SHARES}
        return _mixture(streams, MC4_SHARES, seed)
    return _named(name, seed)


def _file(file: Path, seed: int) -> Iterator[str]:
    endings = [ending for ending in file.suffixes if ending not in PACKED]
    if not endings or endings[-1] not in FORMATS:
        raise ValueError(f"{file}: give a {', '.join(FORMATS)} file (or packed, as .jsonl.gz).")
    where = {"path": FORMATS[endings[-1]], "data_files": str(file)}
    try:
        yield from _stream(where, seed)
    except Exception as error:  # whatever `datasets` and the readers of the formats raise
        if str(file) in str(error) and isinstance(error, ValueError):
            raise
        raise ValueError(
            f"{file} cannot be read as text ({type(error).__name__}: {first_line(error)}) Text is "
            f"read as UTF-8. {AGAIN}"
        ) from error


def _named(name: str, seed: int) -> Iterator[str]:
    kind, _, language = name.partition("/")
    source = SOURCES[f"{kind}/<language>" if language else name]
    if name == "pile" and find_spec("zstandard") is None:
        raise ImportError(
            "The files of 'pile' need the package zstandard: pip install zstandard, or take "
            "'pile-10k'."
        )
    where = {k: v.format(language) for k, v in source["where"].items()}
    require_hub(f"The text {name!r}", "Or take a file of your own.")
    try:
        yield from _stream(where, seed)
    except (OSError, RuntimeError) as error:
        stands_in = (source["fallback"] or "").replace("<language>", language)
        instead = f"In its place you can take {stands_in!r}, or" if stands_in else "You can take"
        raise ConnectionError(
            f"The text {name!r} ({where['path']}) cannot be read: {first_line(error)} {instead} a "
            "file of your own."
        ) from error


def _stream(where: dict[str, Any], seed: int) -> Iterator[str]:
    from datasets import load_dataset

    stream = load_dataset(**where, split="train", streaming=True)
    for row in stream.shuffle(seed=seed, buffer_size=1000):
        if "text" not in row:
            what = [*where.values()][-1]
            raise ValueError(f"{what} has no column 'text'; it has: {', '.join(row)}.")
        if isinstance(row["text"], str):
            yield row["text"]


def _mixture(
    streams: dict[str, Iterator[str]], shares: dict[str, float], seed: int
) -> Iterator[str]:
    """Documents of several streams, each drawn by its share, until one has no more."""
    names, generator = list(streams), np.random.default_rng(seed)
    while True:
        drawn = names[generator.choice(len(names), p=list(shares.values()))]
        try:
            yield next(streams[drawn])
        except StopIteration:
            return


@checked
def pack(
    source: Iterable[str], tokenizer: Any, n_rows: int, length: int
) -> Int[Tensor, "sequences length"]:
    """Pack documents into rows: `pairs.start_token` first, an end-of-text token between documents.

    No document is read after the last row is full. A row that begins inside a document begins with
    the start token, too. A tokenizer without an end-of-text token has its start token between.

    Raises:
        ValueError: the documents are too few, or a size is below 1.
    """
    n_rows, length = whole_number("n_rows", n_rows, 0), whole_number("length", length, 2)
    start = start_token(tokenizer)
    between = start if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    rows = torch.empty((n_rows, length), dtype=torch.long)
    row: list[int] = []
    done = 0
    with progress((), "text", total=n_rows) as bar:
        for document in source if n_rows else ():
            tokens = tokenizer(document, add_special_tokens=False)["input_ids"]
            tokens = [between, *tokens] if row else tokens
            at = 0
            while at < len(tokens):
                row = row or [start]
                taken = tokens[at : at + length - len(row)]
                row += taken
                at += len(taken)
                if len(row) == length:
                    rows[done] = torch.tensor(row)
                    row = []
                    done += 1
                    bar.update()
                    if done == n_rows:
                        return rows
    if n_rows:
        raise ValueError(
            f"The text is too short: {done} of {n_rows} sequences of {length} tokens. Give more "
            "text, or ask for less."
        )
    return rows
