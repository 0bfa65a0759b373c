"""Files that are whole or not there: written to a temporary name and renamed, checked when read.

Nothing that this package did not write is replaced or deleted. There are no pickles: tensors are
safetensors, everything else is JSON or CSV. Text in a CSV file is no formula to a spreadsheet, and
what a list of files names lies in the folder of the list.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import platform
import re
import shutil
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from ctt_helpers.arguments import checked

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = (
    "torch",
    "transformers",
    "nnsight",
    "numpy",
    "pandas",
    "datasets",
    "safetensors",
    "tokenizers",
)
SUMS = "SHA256SUMS"
AGAIN = "It may be cut short or damaged: make it again, or fetch it again."
# what a spreadsheet takes for a formula, in plain and in full width
FORMULA = "=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20"
# what the system says where a disk is full, and where a folder may not be written to
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}

# ---- paths and single files

_making_room = threading.Lock()
_in_use: set[Path] = set()  # where this process is writing now


@checked
def expanded(path: str | Path) -> Path:
    """The path with ~ written out."""
    return Path(path).expanduser()


@checked
@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path for `path`; on success it is renamed to it, on an error it goes.

    A file takes the place of an older file, which stays whole until then. A folder is only ever
    made anew: what a folder already holds is not ours to replace.

    Raises:
        FileExistsError: there is a folder at `path`, or the new thing is one and there is
            anything.
        OSError: the disk is full, or the folder may not be written to; the message says what to do.
    """
    path = expanded(path)
    if path.name in ("", ".."):  # this folder, or the one above
        raise FileExistsError(f"{str(path)!r} is a folder that is there already. Give another.")
    stem = f".{path.name}{_temporary()}"
    with _told_what_to_do(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _making_room:
            remove_leftovers(path.parent, stem)
            # a folder of its own, for what writes there may leave temporary files beside it, too
            room = Path(tempfile.mkdtemp(f"-{os.getpid()}", f"{stem}-", path.parent))
            _in_use.add(room)
        temporary = room / path.name
        try:
            yield temporary
            if path.exists() and (temporary.is_dir() or path.is_dir()):
                raise FileExistsError(
                    f"{path} is there already, and is left as it is. Give another."
                )
            os.replace(temporary, path)
        finally:
            _in_use.discard(room)
            _remove(room)


@contextmanager
def _told_what_to_do(path: Path) -> Iterator[None]:
    """Where `path` cannot be written, an error of the same kind that says what to do about it."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        number, what = _said_by_the_system(error)
        at = getattr(error, "filename", None)
        at = Path(at) if isinstance(at, str | Path) else path
        here = at.is_relative_to(path.parent) or path.is_relative_to(at)
        if number in FULL and here:
            free = shutil.disk_usage(_existing(path.parent)).free / 1e9
            message = (
                f"{path} could not be written ({what}); {free:.3g} GB are free on that disk. What "
                "was written before stays whole: make room, and the same call goes on."
            )
        elif number in REFUSED and here:
            message = (
                f"{path} could not be written ({what}). What is there was left as it is: give "
                "another folder, or make this one writable, and the same call goes on."
            )
        else:
            raise
        raise OSError(number, message) from error


def _said_by_the_system(error: Exception) -> tuple[int | None, str]:
    """Number and words of the system's error; safetensors has them in its message."""
    number = getattr(error, "errno", None)
    if number is None:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    return number, "" if number is None else os.strerror(number)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _temporary() -> str:
    """What the temporary names of this machine have in common."""
    return f".tmp-{zlib.crc32(platform.node().encode()):08x}"


def sweep(*folders: Path) -> None:
    """Remove the temporary files that processes of this machine left there when they were cut off.

    Whoever holds a folder sweeps it: what is whole is not written again, and so `atomic_path` does
    not meet what was left beside it.
    """
    for folder in folders:
        with suppress(OSError):  # nothing may be written there
            remove_leftovers(folder, f".*{_temporary()}")


@checked
def remove_leftovers(folder: Path, stem: str) -> None:
    """Remove what processes left behind when they were cut off: what is called STEM...-PROCESS.

    Another process has to be gone. This one may have been interrupted while it put away.
    """
    for leftover in folder.glob(f"{stem}-*"):
        process = leftover.name.rpartition("-")[2]
        own = process == str(os.getpid())
        if process.isdigit() and not (leftover in _in_use if own else _is_running(int(process))):
            _remove(leftover)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True


def _remove(path: Path) -> None:
    """Remove a temporary file, or a temporary folder of files and folders."""
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            _remove(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@checked
def inside(folder: str | Path, name: Any, told_by: str | Path, links: bool = False) -> Path:
    """The path of a file that a list names, which must lie in a folder.

    Refused on every system is what would lead out of it on any: an absolute path, "..", a drive, a
    backslash.

    Args:
        folder: where it must lie.
        name: as the list has it.
        told_by: the list, for the error.
        links: whether a link may lead out of the folder.

    Raises:
        ValueError: it does not lie there; the message names list and file.
    """
    folder, is_plain = Path(folder), False
    if isinstance(name, str) and name and not set(name) & {"\\", "\0"}:
        read = PureWindowsPath(name)  # knows drives, and a slash as a separator
        is_plain = not read.anchor and ".." not in read.parts
    if is_plain and not links:
        is_plain = (folder / name).resolve().is_relative_to(folder.resolve())
    if not is_plain:
        raise ValueError(f"{told_by} points outside its folder: {name!r}. Nothing is read there.")
    return folder / name


def _there(path: str | Path) -> Path:
    """The path of a file to read; FileNotFoundError where there is none."""
    path = Path(path)
    if path.is_dir():
        raise FileNotFoundError(f"{str(path)!r} is a folder: give a file.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    return path


@checked
def sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(_there(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@checked
def read_text(path: str | Path) -> str:
    """A text file in UTF-8, with or without a byte order mark; an error names file and line."""
    content = _there(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: this is not UTF-8 ({error.reason}). {AGAIN} If it is text of "
            "your own, save it as UTF-8."
        ) from error


# ---- JSON


@checked
def write_json(path: str | Path, obj: Any, checksum: bool = False) -> None:
    """Write `obj` as readable JSON, atomically.

    Args:
        path: the file.
        obj: what JSON can hold; with `checksum`, a dict.
        checksum: add a key "checksum", by which `read_json` notices any change to the file.
    """
    if checksum and not isinstance(obj, Mapping):
        raise ValueError(f"obj={obj!r:.60}: with a checksum, give a dict.")
    text = _render(obj)
    if checksum:
        text = _render({**obj, "checksum": hashlib.sha256(text.encode()).hexdigest()})
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _render(obj: Any) -> str:
    return json.dumps(obj, indent=2, ensure_ascii=False) + "\n"


@checked
def read_json(path: str | Path) -> Any:
    """Read a JSON file; where it carries a checksum, compare.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON in UTF-8, or not what was written; the message names the file.
    """
    text = read_text(path).replace("\r\n", "\n")
    try:
        obj = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). {AGAIN}") from error
    if isinstance(obj, dict) and ("checksum" in obj or "kind" in obj):
        rest = {key: value for key, value in obj.items() if key != "checksum"}
        same = obj.get("checksum") == hashlib.sha256(_render(rest).encode()).hexdigest()
        if not same or text != _render(obj):
            raise ValueError(f"{path} is not as it was written: its checksum differs. {AGAIN}")
        return rest
    return obj


# ---- CSV


def safe_cell(value: Any) -> Any:
    """A text with an apostrophe before what a spreadsheet would take for a formula.

    Blanks before it do not hide it. What is no text, a negative number say, stays as it is.
    """
    is_formula = isinstance(value, str) and re.match(rf"'*\s*[{FORMULA}]", value)
    return f"'{value}" if is_formula else value


def plain_cell(value: Any) -> Any:
    """What was given to `safe_cell`."""
    is_safe = isinstance(value, str) and re.match(rf"'+\s*[{FORMULA}]", value)
    return value[1:] if is_safe else value


@checked
def write_rows(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, atomically, in which no text is a formula.

    Args:
        path: the file.
        header: names of the columns.
        rows: texts and numbers.

    Raises:
        ValueError: no column has a name.
    """
    if not any(str(name) for name in header):
        raise ValueError(f"header={list(header)}: give the names of the columns.")
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([safe_cell(cell) for cell in row] for row in (header, *rows))


@checked
def read_rows(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file, all as text; empty lines are left out.

    Raises:
        ValueError: it is not UTF-8, empty, or no CSV; the message names the file.
    """
    read = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        rows = [[plain_cell(cell) for cell in row] for row in read if row]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV table ({error}). {AGAIN}") from error
    if not rows:
        raise ValueError(f"{path} is empty. {AGAIN}")
    return rows[0], rows[1:]


@checked
def write_table(path: str | Path, table: pd.DataFrame, **options: Any) -> None:
    """Write a table as CSV, atomically, in which no text is a formula: cells, index and columns.

    Args:
        path: the file.
        table: texts and numbers.
        **options: as `DataFrame.to_csv` takes them (index=, index_label=, float_format= ...).
    """
    table = _each_cell(table, safe_cell)
    if "index_label" in options:
        options["index_label"] = safe_cell(options["index_label"])
    with atomic_path(path) as temporary:
        # a lone one of these two in a text is then quoted, and ends no row
        table.to_csv(temporary, encoding="utf-8", lineterminator="\r\n", **options)


@checked
def read_table(path: str | Path, **options: Any) -> pd.DataFrame:
    """A table that `write_table` wrote, with its texts as they were, and numbers to the last bit.

    An empty cell is a missing value, and nothing else is: "nan" and "NA" are words.

    Args:
        path: the file.
        **options: as `pandas.read_csv` takes them (index_col=, header=, dtype= ...).
    """
    import pandas as pd

    plain: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
    if int(pd.__version__.split(".")[0]) < 3:  # later ones do so by themselves
        plain["float_precision"] = "round_trip"
    if isinstance(options.get("dtype"), Mapping):  # by the columns' names, as the file has them
        options["dtype"] = {safe_cell(name): kind for name, kind in options["dtype"].items()}
    return _each_cell(pd.read_csv(_there(path), **{**plain, **options}), plain_cell)


def _each_cell(table: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    """A copy of a table with every text changed, those of its index and its columns, too."""
    table = table.copy(deep=False)
    for i, dtype in enumerate(table.dtypes):
        if dtype.kind == "O":  # what may hold texts; columns of numbers keep their precision
            table.isetitem(i, table.iloc[:, i].map(change))
    for axis in ("index", "columns"):
        labels = getattr(table, axis)
        changed = labels.map(lambda one: _each_of(one, change)) if len(labels) else labels
        setattr(table, axis, changed.set_names([change(name) for name in labels.names]))
    return table


def _each_of(label: Any, change: Callable[[Any], Any]) -> Any:
    return tuple(map(change, label)) if isinstance(label, tuple) else change(label)


# ---- a folder with tensors and settings


@checked
def save_folder(
    folder: str | Path,
    kind: str,
    tensors: Mapping[str, Any],
    settings: Mapping[str, Any],
    names: tuple[str, str],
    is_ours: Callable[[Mapping[str, Any]], bool] = lambda settings: False,
) -> None:
    """Write tensors and settings into a folder, with checksums; leave all else that is there.

    A process that is killed on the way leaves the old pair or the new one, never a mixture: the
    tensors are first written beside the old ones, then the settings are renamed, which counts,
    then the tensors are.

    Args:
        folder: made where it is missing.
        kind: what is saved: "crosscoder", "effects" ...; it stands in both files.
        tensors: name -> tensor.
        settings: what else is kept; versions are added.
        names: of the two files, "crosscoder.safetensors" and "config.json", say.
        is_ours: whether the settings in a file without a kind are of this kind (files of version
            0.1, which had none).

    Raises:
        FileExistsError: the folder is a file, or one of the two files was not written by this.
    """
    from safetensors.torch import save_file

    folder = expanded(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(
            f"{folder} is a file, and is left as it is. Give a folder for {kind}."
        )
    tensor_file, settings_file = (folder / name for name in names)
    if not _written_by_us(tensor_file, settings_file, kind, is_ours):
        there = " and ".join(name for name in names if (folder / name).exists())
        raise FileExistsError(
            f"{folder} holds {there}, which is no saved {kind} and would be lost. Nothing was "
            "written: give another folder."
        )
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    waiting = _waiting(tensor_file)
    with atomic_path(waiting) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "kind": kind})
        make_readable(temporary)
    sums = {tensor_file.name: sha256(waiting)}
    about = {"kind": kind, **settings, "versions": versions(), "sha256": sums}
    write_json(settings_file, about, checksum=True)
    os.replace(waiting, tensor_file)


def make_readable(file: Path) -> None:
    """Give a file the permissions of any new file; safetensors keeps its own from others."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def _waiting(tensor_file: Path) -> Path:
    """Where tensors stand from when they are written until they take their place."""
    return tensor_file.with_name(f".{tensor_file.name}.new")


def _written_by_us(
    tensor_file: Path, settings_file: Path, kind: str, is_ours: Callable[[Mapping], bool]
) -> bool:
    """Whether both files, where they exist, are of this kind."""
    if settings_file.exists():
        try:
            settings = json.loads(settings_file.read_text(encoding="utf-8"))
            return settings.get("kind") == kind or ("kind" not in settings and is_ours(settings))
        except (ValueError, AttributeError, OSError):
            return False
    return not tensor_file.exists() or _kind_of(tensor_file) == kind


def _kind_of(tensor_file: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    with suppress(SafetensorError, OSError), safe_open(tensor_file, framework="pt") as file:
        return (file.metadata() or {}).get("kind")
    return None


@checked
def load_folder(
    folder: str | Path, kind: str, names: tuple[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and tensors of what `save_folder` wrote.

    Raises:
        FileNotFoundError: there is no such folder, or no such file in it.
        ValueError: a file is damaged, or of another kind; the message names it.
    """
    folder = expanded(folder)
    tensor_file, settings_file = (folder / name for name in names)
    for file in (settings_file, tensor_file):
        if not file.is_file() and not (file == tensor_file and _waiting(file).is_file()):
            what = "no such folder" if not folder.is_dir() else f"no {file.name} in it"
            raise FileNotFoundError(f"There is no saved {kind} in {folder}: {what}.")
    settings = read_json(settings_file)
    if not isinstance(settings, dict) or settings.get("kind", kind) != kind:
        found = settings.get("kind") if isinstance(settings, dict) else "something else"
        raise ValueError(f"{settings_file} is of a saved {found}, not of a saved {kind}.")
    if "sha256" in settings:
        expected = settings["sha256"][tensor_file.name]
        if not tensor_file.is_file() or sha256(tensor_file) != expected:
            # saving was cut off between its last two steps, or the file is damaged
            waiting = _waiting(tensor_file)
            if not (waiting.is_file() and sha256(waiting) == expected):
                raise ValueError(f"{tensor_file} is not as it was written. {AGAIN}")
            tensor_file = waiting
    return settings, load_tensors(tensor_file)


@checked
def remove_saved(folder: str | Path, names: tuple[str, str]) -> None:
    """Remove what `save_folder` wrote, and what was to take its place when it was cut off."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}: nothing is saved there.")
    tensor_file, settings_file = (Path(folder) / name for name in names)
    for file in (
        tensor_file,
        _waiting(tensor_file),
        settings_file,
    ):  # what it is known by goes last
        file.unlink(missing_ok=True)


@checked
def load_tensors(path: str | Path) -> dict[str, Any]:
    """Tensors of a safetensors file; an error names the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(_there(path))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}). {AGAIN}") from error


# ---- checksums of a folder


# the first line of a SHA256SUMS of ours: a comment to `sha256sum -c`, and a checksum of the rest
HEADER = "# sha256 of the lines below: "


@lru_cache(maxsize=64)
def _listed(sums: Path, _changed: int) -> dict[str, str]:
    """Name -> checksum; an error where the list itself is damaged."""
    text = read_text(sums)
    first, _, rest = text.partition("\n")
    if first.startswith("#"):
        if first != HEADER + hashlib.sha256(rest.encode()).hexdigest():
            raise ValueError(f"{sums} is not as it was written. {AGAIN}")
    else:
        rest = text
    listed = {}
    for line in rest.splitlines():
        digest, separator, name = line.partition("  ")
        if len(digest) != 64 or not separator or not name:
            raise ValueError(f"{sums}: {line!r} is not a checksum and a name. {AGAIN}")
        if not inside(sums.parent, name, sums, links=True).is_file():
            raise ValueError(f"{sums} lists {name}, which is not there. {AGAIN}")
        listed[name] = digest
    if not listed:
        raise ValueError(f"{sums} lists nothing. {AGAIN}")
    return listed


@lru_cache(maxsize=4096)
def _sum_of(path: Path, _changed: int, _size: int) -> str:
    return sha256(path)


@checked
def verified(folder: str | Path, name: str) -> Path:
    """The path of a file in a folder, after a comparison with the folder's SHA256SUMS.

    Where the folder has no SHA256SUMS, or that does not list the file, there is nothing to compare.

    Raises:
        ValueError: the file is not what SHA256SUMS says, or SHA256SUMS itself is damaged.
    """
    folder = Path(folder)
    path, sums = folder / name, folder / SUMS
    if sums.is_file():
        expected = _listed(sums, sums.stat().st_mtime_ns).get(Path(name).as_posix())
        if expected is not None:
            state = path.stat()
            if _sum_of(path, state.st_mtime_ns, state.st_size) != expected:
                raise ValueError(f"{path} is not what {sums.name} beside it says. {AGAIN}")
    return path


@checked
def write_sums(folder: str | Path, leave_out: Callable[[str], bool] = lambda name: False) -> None:
    """Write SHA256SUMS over all files below a folder, itself left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}: give one with files.")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    names = sorted(path.as_posix() for path in paths if path.name != SUMS)
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names if not leave_out(name)]
    text = "".join(lines)
    header = HEADER + hashlib.sha256(text.encode()).hexdigest()
    with atomic_path(folder / SUMS) as temporary:
        temporary.write_text(f"{header}\n{text}", encoding="utf-8")


# ---- one writer at a time


class InUse(RuntimeError):
    """Another process writes into a folder."""


@checked
@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder for this process while it writes there; the lock ends with the process.

    A process that this one starts, and that inherits its files, goes on holding it. Where nothing
    can be written, there is nothing to hold: what is finished there can be read.

    Raises:
        InUse: another process holds it; the message says which, and whether it is gone and has
            left others behind.
        FileExistsError: the lock is a link, and something else would be written over.
        OSError: the lock cannot be written; the message says what to do.
    """
    folder = expanded(folder)
    path = folder / ".lock"
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link, and is left as it is. Give another folder.")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, and is left as it is. Give a folder.")
    file = None
    if not folder.is_dir() or _is_writable(folder):
        with _told_what_to_do(path):
            folder.mkdir(parents=True, exist_ok=True)
            file = _lock(path)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):  # where nothing may be written any more
                path.unlink(missing_ok=True)
            file.close()


def _is_writable(folder: Path) -> bool:
    effective = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    return os.access(folder, os.W_OK, **effective)


def _lock(path: Path):
    """The locked file, or None where the system or the disk has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = _holder(file.read().strip())
            file.close()
            raise InUse(
                f"{path.parent} is in use by {holder}. Wait for it, stop it, or give another "
                "folder."
            ) from error
        except OSError as error:
            file.close()
            path.unlink(missing_ok=True)
            warnings.warn(
                f"{path.parent} is on a disk without locks ({error.strerror}): see to it that no "
                "other process writes there.",
                stacklevel=5,
            )
            return None
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()  # whoever held it removed the file in between
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {_machine()}")
        file.flush()
    except OSError:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # what could not be written is tried once more
            file.close()
        raise
    os.set_inheritable(file.fileno(), True)
    return file


def _machine() -> str:
    return platform.node() or "this machine"


def _holder(written: str) -> str:
    """Who holds a lock, by what is written in it; a process that is gone may have left others."""
    found = re.fullmatch(r"process (\d+) on (.*)", written)
    if found and found[2] == _machine() and not _is_running(int(found[1])):
        return (
            f"what process {found[1]} on {found[2]} has started (it is gone, and its children "
            "are not)"
        )
    return written or "another process"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in ("ctt-helpers", *PACKAGES):
        with suppress(metadata.PackageNotFoundError):
            found[name.replace("-", "_")] = metadata.version(name)
    return found
