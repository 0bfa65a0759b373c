"""What is said to a person: errors that say what to do next, names in a row, sizes, progress.

And what is not: tokens and passwords.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ctt_helpers.arguments import checked, choose, closest, whole_number

# what a credential is called, and what those look like that tell themselves apart
SECRET_NAME = re.compile(r"(?:^|_)(?:token|secret|password|passwd|api_?key|credentials?)$", re.I)
SECRET = re.compile(
    r"\b(?:hf_(?:oauth_)?\w{16,}|gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|sk-[\w-]{16,}|AKIA[0-9A-Z]{16})"
)
IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # a name and a password before the host
HIDDEN = "***"
__all__ = [
    "abridged", "check_no_secret", "choose", "closest", "first_line", "progress", "show_size",
    "show_time", "told_when_stopped", "whole_number", "without_secrets",
]  # fmt: skip


@checked
def abridged(names: Sequence[Any], shown: int = 12) -> str:
    """Names in a row; of many, the first and the last ones."""
    whole_number("shown", shown, 3)
    names = [str(name) for name in names]
    if len(names) <= shown:
        return ", ".join(names)
    return f"{', '.join(names[: shown - 2])}, ... {', '.join(names[-2:])}"


@checked
def first_line(error: Exception) -> str:
    """The first line of an error's message, as a sentence, without credentials."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = without_secrets(lines[0])
    return line if line.endswith((".", "!", "?")) else line + "."


@checked
def without_secrets(text: str) -> str:
    """A text with *** for each token and password that can be told.

    These are names and passwords in addresses, tokens of a known look, and what stands in variables
    of the environment that are called TOKEN, SECRET, PASSWORD or API_KEY at their end.
    """
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= 8:
            text = text.replace(value, HIDDEN)
    return SECRET.sub(HIDDEN, IN_ADDRESS.sub(HIDDEN, text))


@checked
def check_no_secret(name: str, value: Any) -> None:
    """Raise ValueError where a parameter is a credential, or holds one; it is not repeated.

    Parameters are printed, and written into notebooks and run folders.
    """
    if isinstance(value, str):
        if value and (SECRET_NAME.search(name) or without_secrets(value) != value):
            raise ValueError(
                f"The parameter {name} holds a token or a password. Parameters are written into "
                "notebooks and run folders: delete those that hold it, revoke it, and give the new "
                "one by `hf auth login`, or in the variable HF_TOKEN of the environment."
            )
    elif isinstance(value, Mapping):
        for key, part in value.items():
            check_no_secret(str(key), part)
    elif isinstance(value, list | tuple):
        for part in value:
            check_no_secret(name, part)


@checked
@contextmanager
def told_when_stopped(kept: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """After Ctrl-C, or a notebook's Interrupt, two lines: what is kept, and how to go on.

    Args:
        kept: gives the two; it looks at what is there when all has been put away.
    """
    try:
        yield
    except KeyboardInterrupt:
        what, how = kept()
        print(f"Stopped. {what}\n{how}")
        raise


@checked
def show_size(n: float) -> str:
    """A number of bytes as it is read: 1.02 GB, 375 MB, 12 kB."""
    if n >= 1e9:
        return f"{n / 1e9:.2f} GB"
    return f"{n / 1e6:.0f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


@checked
def show_time(seconds: float) -> str:
    """A number of seconds as it is read: 3.2 h, 14 min, 8 s."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, seconds):.0f} s"


@checked
def progress(iterable: Iterable | None, desc: str = "", total: int | None = None, **options: Any):
    """A tqdm bar that leaves one short line behind, and none for work that is done at once."""
    from tqdm.auto import tqdm

    options = {"mininterval": 0.5, "delay": 1.0, "dynamic_ncols": True, **options}
    return tqdm(iterable, desc=desc, total=total, **options)
