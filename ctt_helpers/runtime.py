"""Where and how things run: device, seeds, safe files, progress, notebook parameters."""

import difflib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "nnsight", "numpy", "pandas", "datasets", "safetensors", "tokenizers")


def pick_device(device: str = "auto") -> str:
    """Name of the device to use: the one asked for, or the best one that is there.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps" ...

    Raises:
        ValueError: the device asked for is not on this machine.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(kind for kind, here in there.items() if here)
    kind = str(device).split(":")[0]
    if kind not in there:
        raise ValueError(f"device={device!r} is not known. Use 'auto', 'cpu', 'cuda' (or 'cuda:1'), or 'mps'.")
    if not there[kind]:
        hint = "On Colab choose Runtime > Change runtime type > GPU. " if kind == "cuda" else ""
        raise ValueError(f"device={device!r} is not on this machine. {hint}device='auto' takes what is there.")
    return device


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it takes the place of `path`, on an error it goes away.

    Works for a file and for a folder. An older file or folder at `path` stays whole until the new one is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{time.monotonic_ns()}")
    aside = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            os.replace(path, aside)  # a folder cannot replace a folder: the old one is kept until the new one stands
        os.replace(temporary, path)
        _remove(aside)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as readable JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(obj, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or broken one gives an error that names the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}). It may be cut short: make or fetch it again.") from error


def save_folder(folder: str | Path, name: str, tensors: dict[str, Any], meta_name: str, meta: dict[str, Any]) -> None:
    """Write a folder with <name>.safetensors and <meta_name>.json (`meta`, and versions), atomically."""
    from safetensors.torch import save_file

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(tensors, temporary / f"{name}.safetensors")
        write_json(temporary / f"{meta_name}.json", {**meta, "versions": versions()})


def load_tensors(path: str | Path) -> dict[str, Any]:
    """Tensors of a safetensors file; a missing or damaged one gives an error that names the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): it may be cut short. Make or fetch it again.") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    from ctt_helpers import __version__

    own = {"python": platform.python_version(), "ctt_helpers": __version__}
    return own | {name: metadata.version(name) for name in PACKAGES}


def progress(iterable: Iterable, desc: str = "", total: int | None = None, **options):
    """A tqdm bar that leaves one short line behind, and none at all for work that is done at once."""
    from tqdm.auto import tqdm

    options = {"mininterval": 0.5, "delay": 1.0, "dynamic_ncols": True, **options}
    return tqdm(iterable, desc=desc, total=total, **options)


def top_folder() -> Path:
    """The project's folder as seen from a notebook, which runs in notebooks/ (Jupyter) or above it (papermill)."""
    return Path("..") if Path.cwd().name == "notebooks" else Path(".")


def closest(name: str, accepted: Iterable[str]) -> str:
    """' Did you mean ...?' for a misspelt name, or an empty string."""
    match = difflib.get_close_matches(str(name), [str(a) for a in accepted], n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def choose(what: str, value: Any, accepted: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of those accepted."""
    if value not in accepted:
        raise ValueError(f"{what}={value!r} is not known; take one of {', '.join(accepted)}.{closest(value, accepted)}")


def abridged(names: Sequence[str], shown: int = 12) -> str:
    """Names in a row; of many, the first and the last ones."""
    names = [str(n) for n in names]
    if len(names) <= shown:
        return ", ".join(names)
    return f"{', '.join(names[: shown - 2])}, ... {', '.join(names[-2:])}"


def check_parameters(namespace: dict[str, Any], **checks: Callable[[Any], str | None]) -> dict[str, Any]:
    """Check a notebook's parameters: refuse unknown names and wrong types, and return the values in force.

    papermill injects whatever it is given and never complains, so a misspelt parameter would be ignored in
    silence. The parameters cell declares each name with its type (``seed: int = 0``); what papermill injects after
    it carries no type, so every plain variable without one is a name that the notebook does not know.

    Args:
        namespace: the notebook's `globals()`, in the cell right after the parameters cell.
        **checks: parameter name -> function of its value that returns a complaint, or None where it is fine.

    Raises:
        ValueError: an unknown name, a wrong type, or a value that its check refuses.
    """
    declared = dict(namespace.get("__annotations__", {}))
    if not declared:
        raise ValueError("No parameter is declared: write the parameters cell as `name: type = value` lines.")
    plain = (bool, int, float, str, list, tuple, dict, type(None))
    if not namespace.get("_parameters_checked"):  # a second run finds the variables of the cells below
        for name, value in list(namespace.items()):
            if type(value) in plain and not name.startswith("_") and name.islower() and name not in declared:
                told = f"{name!r} is not a parameter of this notebook.{closest(name, declared)}"
                raise ValueError(f"{told} It knows: {', '.join(declared)}.")
    values = {name: namespace[name] for name in declared}
    for name, kind in declared.items():
        value = values[name]
        accepted = (kind | int) if isinstance(1.0, kind) else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and not isinstance(True, kind)):
            wanted = getattr(kind, "__name__", str(kind))
            raise ValueError(f"Parameter {name}={value!r} is a {type(value).__name__}; this notebook takes {wanted}.")
        if name in checks and (complaint := checks[name](value)):
            raise ValueError(f"Parameter {name}={value!r}: {complaint}")
    namespace["_parameters_checked"] = True
    return values
