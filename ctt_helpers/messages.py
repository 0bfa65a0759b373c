"""What is said to a person: errors that say what to do next, names in a row, sizes, progress."""

from collections.abc import Iterable, Sequence
from typing import Any

from ctt_helpers.arguments import choose, closest, whole_number

__all__ = [
    "abridged", "choose", "closest", "first_line", "progress", "show_size", "show_time",
    "whole_number",
]  # fmt: skip


def abridged(names: Sequence[str], shown: int = 12) -> str:
    """Names in a row; of many, the first and the last ones."""
    names = [str(name) for name in names]
    if len(names) <= shown:
        return ", ".join(names)
    return f"{', '.join(names[: shown - 2])}, ... {', '.join(names[-2:])}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].endswith((".", "!", "?")) else lines[0] + "."


def show_size(n: float) -> str:
    """A number of bytes as it is read: 1.02 GB, 375 MB, 12 kB."""
    if n >= 1e9:
        return f"{n / 1e9:.2f} GB"
    return f"{n / 1e6:.0f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def show_time(seconds: float) -> str:
    """A number of seconds as it is read: 3.2 h, 14 min, 8 s."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, seconds):.0f} s"


def progress(iterable: Iterable, desc: str = "", total: int | None = None, **options: Any):
    """A tqdm bar that leaves one short line behind, and none for work that is done at once."""
    from tqdm.auto import tqdm

    options = {"mininterval": 0.5, "delay": 1.0, "dynamic_ncols": True, **options}
    return tqdm(iterable, desc=desc, total=total, **options)
