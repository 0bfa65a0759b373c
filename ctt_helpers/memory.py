"""Where memory runs out: smaller chunks once, then an error that says what to set."""

import gc
import traceback
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import TypeVar

import torch

from ctt_helpers.messages import first_line

Function = TypeVar("Function", bound=Callable)

# by how much chunks are divided: 1, or 2 in a second try
_divided_by: ContextVar[int] = ContextVar("divided_by", default=1)
# what torch says where it raises no class of its own: CPU, Apple's GPU, cuBLAS
SAYINGS = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class TooLittleMemory(MemoryError):
    """There is not enough memory, in smaller chunks either; the message says what to set."""


def parts() -> int:
    """In how many parts to take what is taken at once: 1, or 2 in a second try."""
    return _divided_by.get()


def chunk(n: int) -> int:
    """How many of `n` to take at once: all of them, or half in a second try."""
    return max(1, n // parts())


def ran_out(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or not, and nobody has looked after it yet."""
    if isinstance(error, TooLittleMemory):
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAYINGS)


def let_go(error: Exception) -> None:
    """Free what the functions that failed still hold through the error."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tell(what: str, error: Exception, remedy: str, stacklevel: int = 2) -> None:
    """Warn that it goes on in smaller chunks, which takes longer."""
    warnings.warn(
        f"Memory ran out {what} ({first_line(error)}) It goes on in chunks half as large, which "
        f"takes longer. To begin with less: {remedy}",
        stacklevel=stacklevel + 1,
    )


def too_little(what: str, error: Exception, remedy: str) -> TooLittleMemory:
    """The error for when smaller chunks did not help."""
    return TooLittleMemory(f"Memory ran out {what} ({first_line(error)}) {remedy}")


def smaller_chunks_once(what: str, remedy: str) -> Callable[[Function], Function]:
    """Where a function runs out of memory, it is run once more, with every `chunk` halved.

    Its results are then the same but for rounding.

    Args:
        what: when it happened, "in evaluate".
        remedy: what to set if that does not help either, as a sentence.

    Raises:
        TooLittleMemory: it does not.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def run(*arguments, **named):
            if _divided_by.get() > 1:  # in somebody's second try
                return function(*arguments, **named)
            for parts in (1, 2):
                before = _divided_by.set(parts)
                try:
                    return function(*arguments, **named)
                except Exception as error:
                    if not ran_out(error):
                        raise
                    let_go(error)
                    if parts > 1:
                        raise too_little(what, error, remedy) from error
                    tell(what, error, remedy)
                finally:
                    _divided_by.reset(before)

        return run

    return decorate
