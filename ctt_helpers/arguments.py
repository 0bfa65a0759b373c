"""What a public function is given, compared with what its annotations say, before it begins.

`@checked` looks at plain values (numbers, texts, paths, True or False), at lists of them, and at
which numbers an array holds. Ranges and shapes are the functions' own to check. Of an object it
asks only that it is one: whatever has the attributes of a `Checkpoints`, say, is taken for one.
"""

import builtins
import difflib
import importlib
import inspect
import math
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence, Set, Sized
from functools import cache, wraps
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable)

# ---- one value


def closest(name: str, accepted: Iterable[str]) -> str:
    """' Did you mean ...?' for a misspelt name, or an empty string."""
    match = difflib.get_close_matches(str(name), [str(a) for a in accepted], n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def choose(what: str, value: Any, accepted: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of those accepted."""
    if not isinstance(value, Hashable) or value not in accepted:
        known = ", ".join(accepted)
        raise ValueError(
            f"{what}={value!r} is not known; take one of {known}.{closest(value, accepted)}"
        )


def whole_number(what: str, value: Any, least: int = 1) -> int:
    """`value` as an int; raise ValueError unless it is a whole number of at least `least`.

    Whole means an int of Python's, numpy's or torch's: 8.0 and True are refused, for where they
    come from something else was meant.
    """
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{what}={value!r}: give a whole number of at least {least}.")
    return number


# ---- all that a function is given

# whole numbers that are never below this, wherever they are asked for
LEAST = {"seed": 0, "start": 0}
MOST = 2**63 - 1  # of a whole number: what tensors hold
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60


def checked(function: Function) -> Function:
    """A function that looks at its arguments first: each must be what its annotation says.

    Raises:
        ValueError: one is not. The message says which, what was given, and what is taken.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def careful(*args, **kwargs):
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says best what is missing or unknown
        kinds = _kinds(function)
        for name, value in given.items():
            if name in kinds and not _is(value, kinds[name]):
                wanted = _in_words(kinds[name])
                example = f", [{value!r}]" if isinstance(value, str) and "list" in wanted else ""
                raise ValueError(f"{name}={_shown(value)}: give {wanted}{example}.")
            if name in LEAST:
                whole_number(name, value, LEAST[name])
        return function(*args, **kwargs)

    return careful


@cache
def _kinds(function: Callable) -> dict[str, Any]:
    """Parameter -> what it takes, of those that say it; read when all modules are there."""
    names = _Names(inspect.unwrap(function).__globals__)
    signature = inspect.signature(function, eval_str=True, globals={}, locals=names)
    return {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


class _Names(dict):
    """A module's names, and those that it imports for its annotations alone."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        if name == "pd":
            return importlib.import_module("pandas")
        return getattr(sys.modules.get("ctt_helpers"), name, Any)


# ---- whether a value is of a kind


def _is(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [one for one in inner if one is not str or Path not in inner]
        return any(_is(value, one) for one in inner)
    if kind is None or kind is type(None):
        return value is None
    if kind in (int, float, bool):
        return _is_number(value, kind)
    if kind is str:
        return isinstance(value, str)
    if kind is Path:
        return isinstance(value, (str, os.PathLike)) and _is_path(value)
    if _is_of_arrays(kind):
        return _is_array(value, kind)
    origin = origin or kind
    if kind is Any or not isinstance(origin, type):
        return True
    if origin is Callable:
        return callable(value)
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping) and _holds(value, *inner)
    if origin is tuple and inner and inner[-1] is not ...:
        alike = isinstance(value, (tuple, list)) and len(value) == len(inner)
        return alike and all(map(_is, value, inner))
    if issubclass(origin, Iterable) and origin.__module__ in ("builtins", "collections.abc"):
        return _is_list(value, origin, inner[0] if inner else Any)
    return isinstance(value, origin) or _stands_for(value, origin)


def _stands_for(value: Any, kind: type) -> bool:
    """Whether an object that is none of a class may be taken for one, by what it offers."""
    where = type(value).__module__.split(".")[0]
    if isinstance(value, type) or where in ("builtins", "numpy", "pandas", "pathlib", "torch"):
        return False
    if where == "ctt_helpers":
        is_protocol = getattr(kind, "_is_protocol", False)
        return is_protocol and _offers(kind) <= set(dir(value))
    # nnsight gives names to every object there is
    return bool(_offers(kind) & (set(dir(value)) - set(dir(object))))


@cache
def _offers(kind: type) -> frozenset[str]:
    """The public names of a class: its own, and those that it declares."""
    declared = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", ())}
    return frozenset(n for n in declared | set(dir(kind)) if not n.startswith("_"))


def _is_path(value: Any) -> bool:
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _is_number(value: Any, kind: type) -> bool:
    is_bool = type(value).__name__ == "bool"  # Python's and numpy's
    if kind is bool or is_bool:
        return kind is bool and is_bool
    if isinstance(value, Collection):
        return False
    if kind is int:
        try:
            number = index(value)
        except (TypeError, ValueError, RuntimeError):  # the last are of arrays and tensors
            return False
        return abs(number) <= MOST and "bool" not in _dtype(value)
    if _dtype(value) and getattr(value, "ndim", 1) == 0:  # a tensor that is one number
        value = value.item()
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def _is_list(value: Any, origin: type, kind: Any) -> bool:
    """Whether this is a list, and holds only what it should; what is read once is not looked at."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return False
    if getattr(value, "ndim", 1) == 0:
        return False
    if origin is Sequence and (not isinstance(value, Sized) or isinstance(value, Set)):
        return False  # of a set nobody knows the order
    if _dtype(value) and kind in (int, float):
        whole = value.ndim == 1 and "int" in _dtype(value)
        return whole or (kind is float and value.ndim == 1 and "float" in _dtype(value))
    if _dtype(value) and kind is str:
        return value.ndim == 1 and all(isinstance(one, str) for one in value)
    looked_at = value if isinstance(value, (Sequence, set, frozenset)) and kind is not Any else ()
    return all(_is(one, kind) for one in looked_at)


def _holds(value: Mapping, key: Any = Any, held: Any = Any) -> bool:
    return all(_is(name, key) and _is(one, held) for name, one in value.items())


def _is_of_arrays(kind: Any) -> bool:
    """Whether a kind is one of jaxtyping's, which nobody has where it was not imported.

    This module needs no library, for some that need it run where there is none.
    """
    jaxtyping = sys.modules.get("jaxtyping")
    return bool(jaxtyping) and isinstance(kind, type) and issubclass(kind, jaxtyping.AbstractArray)


def _is_array(value: Any, kind: Any) -> bool:
    """Whether these are numbers of a kind. A numpy array may hold whole numbers for real ones.

    A table of pandas is an array, too.
    """
    needs_tensor = "torch" in kind.array_type.__module__
    if needs_tensor and not isinstance(value, kind.array_type):
        return False
    is_table = hasattr(value, "__array__") and not _dtype(value)
    if not needs_tensor and (is_table or isinstance(value, (list, tuple))):
        try:
            value = sys.modules["numpy"].asarray(value)
        except ValueError:  # of different lengths
            return False
    dtype = _dtype(value)
    if not dtype or not hasattr(value, "shape"):
        return False
    accepted = _numbers_of(kind)
    if not accepted:
        return True
    if accepted == "float" and not needs_tensor:
        return "float" in dtype or "int" in dtype
    return accepted in dtype


def _numbers_of(kind: Any) -> str:
    """What an array holds: "float", "int", "bool" or "" for anything."""
    dtypes = kind.dtypes if isinstance(kind.dtypes, (list, tuple)) else ()
    names = " ".join(map(str, dtypes))
    return next((one for one in ("float", "int", "bool") if one in names), "")


def _dtype(value: Any) -> str:
    """The kind of numbers in an array, a tensor or a column; "" for anything else."""
    return str(getattr(value, "dtype", "")) if not isinstance(value, type) else ""


# ---- in words


def _shown(value: Any) -> str:
    if _dtype(value) and hasattr(value, "shape") and tuple(value.shape):
        return f"<{type(value).__name__} of {_dtype(value)}, {list(value.shape)}>"
    return SHORT.repr(value)


WORDS = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "a path",
    None: "None", type(None): "None",
}  # fmt: skip
MANY = {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}
NUMBERS = {"float": "numbers", "int": "whole numbers", "bool": "True and False", "": "values"}


def _in_words(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [one for one in inner if one is not str or Path not in inner]
        words = list(dict.fromkeys(_in_words(one) for one in inner))
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    if kind is None or isinstance(kind, type):
        if kind in WORDS:
            return WORDS[kind]
    if _is_of_arrays(kind):
        what = "a tensor" if "torch" in kind.array_type.__module__ else "an array"
        shape = f" [{', '.join(kind.dim_str.split())}]" if kind.dim_str.strip() else ""
        return f"{what}{shape} of {NUMBERS[_numbers_of(kind)]}"
    origin = origin or kind
    if origin is Callable:
        return "a function"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a dict, {' -> '.join(map(_in_words, inner))}" if inner else "a dict"
    if origin is tuple and inner and inner[-1] is not ...:
        return f"({', '.join(map(_in_words, inner))})"
    if kind is Any:
        return "anything"
    if inner and isinstance(origin, type) and issubclass(origin, Iterable):
        return f"a list of {_many(inner[0])}"
    name = getattr(origin, "__name__", str(origin))
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


def _many(kind: Any) -> str:
    if isinstance(kind, type) and kind in MANY:
        return MANY[kind]
    if typing.get_origin(kind) is Callable:
        return "functions"
    inner = typing.get_args(kind)
    return f"lists of {_many(inner[0])}" if inner and inner[0] in tuple(MANY) else "values"
