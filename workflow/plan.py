"""The runs that a sweep's config asks for, each with its folder and all that decides its result.

Read by Snakemake's Python and by the project's: the standard library and light modules only.
"""

import ast
import hashlib
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from ctt_helpers import __version__  # noqa: E402 (from this checkout)
from ctt_helpers.files import read_text  # noqa: E402
from ctt_helpers.messages import check_no_secret, closest  # noqa: E402

KEYS = {
    "name": "a name for the sweep; its results are in runs/<name>",
    "notebook": "the notebook to run",
    "axes": "parameters with the values to try",
    "parameters": "parameters that all runs share",
    "metric": "what the figure compares, a pattern of 'file row metric'",
    "seconds": "time limit for each run",
    "python": "the Python that runs the notebooks",
    "runs": "folder for all sweeps",
}
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # 1e-3 is text in YAML


def folder_of(config: dict[str, Any]) -> Path:
    """Where a sweep's results go."""
    name = str(config.get("name", ""))
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(
            f"name: {name!r} names no folder. Take letters, digits and any of . _ + - without a "
            "point at the beginning."
        )
    return ROOT / config.get("runs", "runs") / name


def runs_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What decides each run, by the name of its folder, in the order of the config.

    Raises:
        ValueError: the config asks for something that the notebook does not know, or twice for the
            same, or has other keys than `KEYS`.
        FileNotFoundError: there is no such notebook.
    """
    for key in config:
        if key not in KEYS:
            known = "\n".join(f"  {known}: {what}" for known, what in KEYS.items())
            raise ValueError(
                f"{key!r} is no setting of a sweep.{closest(key, KEYS)} There are:\n{known}"
            )
    if not config.get("notebook"):
        raise ValueError(
            "notebook: none is given. Name one, such as notebooks/05_does_it_hold.ipynb."
        )
    notebook = ROOT / config["notebook"]
    if not notebook.is_file():
        raise FileNotFoundError(f"notebook: there is no {notebook}")
    code, known = read(notebook)
    shared = _checked(config.get("parameters") or {}, "parameters", known)
    blocks = config.get("axes") or {}
    runs: dict[str, dict[str, Any]] = {}
    for block in blocks if isinstance(blocks, list) else [blocks]:
        axes = _checked(block, "axes", known)
        for name, values in axes.items():
            if not isinstance(values, list) or not values:
                raise ValueError(f"axes: {name}: give a list of values, such as [{values}]")
            if name in shared:
                raise ValueError(f"{name!r} stands in `axes` and in `parameters`: keep one of them")
        for values in itertools.product(*axes.values()):
            varied = dict(zip(axes, values, strict=True))
            name = label(varied)
            if name in runs:
                raise ValueError(
                    f"axes: {varied} comes twice, or cannot be told from another by a folder's "
                    f"name ({name})"
                )
            runs[name] = {
                "notebook": notebook.name,
                "code": code,
                "ctt_helpers": __version__,
                "parameters": varied | shared,
            }
    return runs


def _checked(block: Any, where: str, known: list[str]) -> dict[str, Any]:
    """A mapping from parameters to values: names are compared with the notebook's."""
    if not isinstance(block, dict):
        raise ValueError(f"{where}: {block!r} is not a mapping, such as {{seed: [0, 1]}}")
    for name in block:
        if name == "out":
            raise ValueError(f"{where}: 'out' is set by the sweep, to a folder for each run")
        if name not in known:
            raise ValueError(
                f"{where}: {name!r} cannot be set.{closest(name, known)} This notebook has: "
                f"{', '.join(known) or 'no cell with the tag `parameters`'}."
            )
    check_no_secret("", block)
    block = numbers(block)
    if json.loads(json.dumps(block, default=str)) != block:
        raise ValueError(
            f"{where}: {block} has dates or keys that are not text: put them in quotes"
        )
    return block


def numbers(value: Any) -> Any:
    """A value of YAML in which 1e-3 is a number, as it is in Python."""
    if isinstance(value, dict):
        return {name: numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [numbers(each) for each in value]
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def label(parameters: dict[str, Any]) -> str:
    """A folder's name: seed=0+revisions=step256-step3000.

    No comma is in it: Snakemake 9 cuts names there when it hands them to a cluster.
    """
    texts = {
        k: "-".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in parameters.items()
    }
    name = "+".join(k + "=" + re.sub(r"[^\w.+-]+", "_", v).strip("_") for k, v in texts.items())
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return (name if len(name) <= 120 else f"{name[:110]}-{digest}") or "defaults"


def read(notebook: Path) -> tuple[str, list[str]]:
    """A digest of a notebook's code, without its prose and outputs, and its parameters' names.

    (papermill's own list leaves out those of the type `int | None`.)

    Raises:
        ValueError: it is no notebook, or its parameters cell is no Python.
    """
    try:
        cells = json.loads(read_text(notebook))["cells"]
        cells = [cell | {"source": "".join(cell["source"])} for cell in cells]
        code = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
        given = [c["source"] for c in cells if "parameters" in c["metadata"].get("tags", [])]
        lines = [line for source in given for line in ast.parse(source).body]
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{notebook} cannot be read as a notebook ({problem}).") from error
    targets = [
        target
        for line in lines
        if isinstance(line, ast.AnnAssign | ast.Assign)
        for target in ([line.target] if isinstance(line, ast.AnnAssign) else line.targets)
    ]
    known = [target.id for target in targets if isinstance(target, ast.Name)]
    return hashlib.sha256(code.encode()).hexdigest(), [name for name in known if name != "out"]


def package_code() -> str:
    """A digest of the package's code: every Python and JSON file."""
    package = ROOT / "ctt_helpers"
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".json"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()
