"""Running text for the crosscoder: documents from a file or the hub, packed into sequences of equal length."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

HUB_TEXT = "NeelNanda/pile-10k"  # ten thousand documents of the Pile: small, and streamed


def documents(path: str | Path | None, split: str, seed: int = 0) -> Iterator[str]:
    """Documents of one split, from a .txt (one a line) or .jsonl (key "text") file, or streamed from the hub.

    A document is in the validation split by a hash of its text (one in ten), so that the splits never share one.
    """
    if path is None:
        from datasets import load_dataset

        source = (row["text"] for row in load_dataset(HUB_TEXT, split="train", streaming=True).shuffle(seed=seed))
    else:
        path = Path(path)
        if path.suffix not in (".txt", ".jsonl") or not path.is_file():
            raise ValueError(f"{path}: give an existing .txt file (a document a line) or .jsonl file (key 'text').")
        lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        source = (json.loads(line)["text"] if path.suffix == ".jsonl" else line for line in lines)
    for document in source:
        is_validation = hashlib.sha256(document.encode()).digest()[0] % 10 == 0
        if is_validation == (split == "validation"):
            yield document


def pack(source: Iterable[str], tokenizer: Any, n_rows: int, length: int) -> Int[Tensor, "sequences length"]:
    """Pack documents into rows: the end-of-text token first, and one between two documents.

    Raises:
        ValueError: the documents are too few.
    """
    start, rows, row = tokenizer.eos_token_id, [], []
    for document in source:
        row += [start, *tokenizer(document, add_special_tokens=False)["input_ids"]]
        while len(row) >= length and len(rows) < n_rows:
            rows.append(row[:length])
            row = [start, *row[length:]]
        if len(rows) == n_rows:
            return torch.tensor(rows)
    raise ValueError(
        f"The text is too short: {len(rows)} of {n_rows} sequences of {length} tokens. Give more text, or ask for less."
    )
