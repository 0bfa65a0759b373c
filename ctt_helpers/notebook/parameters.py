"""A notebook's parameters: refuse what it does not know, and fill in what its profile says.

A profile is one word that sets a notebook's parameters for a machine. "tiny" needs nothing; "colab"
a GPU of 16 GB; "paper" has the settings of Crosscoding Through Time. A parameter that is given
explicitly overrides its profile.

The values stand in profiles.json. Tasks are BLiMP sets with one prefix: across an attractor, plain,
and something else than subject and verb. "paper" reads 400M tokens in batches of 4,096, k falling
over the first 5,000 of 97,656 steps; it is for OLMo and BLOOM likewise: model="olmo-1b" or
"bloom-1b1" bring their layer and triplet. "colab" has room for model="pythia-410m" too; in notebook
08 with every second one of its checkpoints (`tests/test_forecast.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctt_helpers.arguments import checked
from ctt_helpers.files import expanded, read_json
from ctt_helpers.messages import check_no_secret, choose, closest, whole_number

if TYPE_CHECKING:
    from ctt_helpers.sources.suites import Suite

Check = Callable[[Any], str | None]  # of a value: a complaint, or None where it is fine
# profile -> notebook ("*": every one that knows the parameter) -> parameter -> value
PROFILES: dict[str, dict[str, dict[str, Any]]] = read_json(
    Path(__file__).with_name("profiles.json")
)
PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
# parameters that count something -> how many at least
COUNTS = {
    "batch_size": 1, "k": 1, "n_draws": 1, "n_eval_tokens": 1, "n_features": 1, "n_latents": 1,
    "n_pairs": 1, "n_random": 1, "n_sentences": 1, "n_tokens": 1, "seed": 0, "steps": 0, "top_k": 1,
}  # fmt: skip
# parameters that a notebook can go without
ADDED = ("other_task", "runner_up")


@checked
def check_parameters(namespace: dict[str, Any], **checks: Check) -> dict[str, Any]:
    """Check a notebook's parameters: refuse unknown names and wrong types; return those in force.

    papermill injects whatever it is given and never complains, so a misspelt parameter would be
    ignored in silence. The parameters cell declares each name with its type (``seed: int = 0``);
    what papermill injects after it carries no type, so every plain variable without one is a name
    that the notebook does not know.

    Args:
        namespace: the notebook's `globals()`, in the cell right after the parameters cell.
        **checks: parameter name -> function of its value that returns a complaint, or None where it
            is fine.

    Raises:
        ValueError: an unknown name, a wrong type, a token or a password, or a value that its check
            refuses.
    """
    declared = dict(namespace.get("__annotations__", {}))
    if not declared:
        raise ValueError(
            "No parameter is declared: write the parameters cell as `name: type = value` lines."
        )
    if not namespace.get("_parameters_checked"):  # a second run finds the variables of other cells
        for name, value in list(namespace.items()):
            is_plain = type(value) in PLAIN and not name.startswith("_") and name.islower()
            if is_plain:
                check_no_secret(name, value)
            if is_plain and name not in declared:
                raise ValueError(
                    f"{name!r} is not a parameter of this notebook.{closest(name, declared)} It "
                    f"knows: {', '.join(declared)}."
                )
    values = {name: namespace[name] for name in declared}
    for name, kind in declared.items():
        check_no_secret(name, values[name])
        _check_type(name, values[name], kind)
        complaint = checks[name](values[name]) if name in checks else None
        if complaint:
            raise ValueError(f"Parameter {name}={values[name]!r}: {complaint}")
    namespace["_parameters_checked"] = True
    return values


def _check_type(name: str, value: Any, kind: Any) -> None:
    accepted = (kind | int) if isinstance(1.0, kind) else kind  # an int will do for a float
    is_unwanted_bool = isinstance(value, bool) and not isinstance(True, kind)
    if not isinstance(value, accepted) or is_unwanted_bool or value != value:  # the last is NaN
        wanted = getattr(kind, "__name__", str(kind))
        raise ValueError(
            f"Parameter {name}={value!r} is a {type(value).__name__}; this notebook takes {wanted}."
        )


@checked
def use_profile(namespace: dict[str, Any], notebook: str, **checks: Check) -> dict[str, Any]:
    """Check a notebook's parameters, and fill those that are None from its profile.

    What was set by the profile and what by hand is printed. A parameter `out` that is None becomes
    runs/<notebook> of the project.

    Args:
        namespace: the notebook's `globals()`, in the cell after the parameters cell, with a
            parameter `profile`.
        notebook: its number, "00" to "09".
        **checks: as for `check_parameters`; they see the values in force.

    Returns:
        The values in force.

    Raises:
        ValueError: no such profile, or whatever `check_parameters` refuses.
    """
    # where the cell is run again, what it has set before is not somebody's own
    for name, value in namespace.pop("_set_by_profile", {}).items():
        if namespace.get(name) is value:
            namespace[name] = None
    given = check_parameters(namespace)
    choose("profile", given["profile"], PROFILES)
    chosen = PROFILES[given["profile"]]
    offered = chosen["*"] | chosen.get(notebook, {})
    filled = {
        name: offered[name] for name, value in given.items() if value is None and name in offered
    }
    place = {}
    if "out" in given and given["out"] is None:
        place["out"] = str(top_folder() / "runs" / notebook)
    namespace |= filled | place
    namespace["_set_by_profile"] = filled | place
    own = {name: given[name] for name in offered if given.get(name) is not None}
    by_hand = f"; set by hand: {_listed(own)}" if own else ""
    print(f"profile {given['profile']!r} sets: {_listed(filled)}{by_hand}")
    return check_parameters(namespace, **checks)


@checked
def setup(namespace: dict[str, Any], notebook: str, **checks: Check) -> Suite:
    """All that a notebook needs before its first step, in one line: `suite = ctt.setup(...)`.

    Checks the parameters and fills them from the profile (`use_profile`), loads the suite `model`,
    takes one thread for the embedded suite (a second slows models that small down), and gives every
    checkpoint and task of the suite one colour for all figures.

    Args:
        namespace: the notebook's `globals()`, with the parameters `profile` and `model`.
        notebook: its number, "00" to "09".
        **checks: as for `check_parameters`.

    Raises:
        ValueError: a parameter that is refused: a name or a type that the notebook does not know, a
            number out of range, a suite, revision, layer, task, device, folder or file that does
            not exist. The message names the parameter.
    """
    import torch

    from ctt_helpers.notebook.plots import look
    from ctt_helpers.sources.suites import load_suite

    values = use_profile(namespace, notebook, **checks)
    with _naming("model", values["model"]):
        suite = load_suite(values["model"])
    chosen = PROFILES[values["profile"]]
    offered = chosen["*"] | chosen.get(notebook, {})
    for name, value in values.items():
        if value is None:
            continue
        try:
            with _naming(name, value):
                _check_value(name, value, suite)
        except ValueError:
            # what a profile adds is of its own suite, and another one goes without
            its_own = chosen["*"]["model"]
            if name not in ADDED or value != offered.get(name) or suite.name == its_own:
                raise
            namespace[name] = None
            print(f"{name}=None: {value!r} is of the suite {its_own!r}")
    if suite.name == "tiny":
        torch.set_num_threads(1)
    look.use_colors_of(suite.revisions, suite.task_names)
    print(suite)
    return suite


@contextmanager
def _naming(name: str, value: Any) -> Iterator[None]:
    """Errors about a value, with the parameter's name before them."""
    try:
        yield
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"Parameter {name}={value!r}: {error}") from error


def _check_value(name: str, value: Any, suite: Suite) -> None:
    """Raise ValueError for what would only be found out minutes later.

    A parameter of one name means the same in every notebook.
    """
    from ctt_helpers.attribution import METHODS
    from ctt_helpers.hooks import check_layer, pick_device
    from ctt_helpers.sources.text import find_text
    from ctt_helpers.training import TrainConfig

    if name in COUNTS:
        whole_number(name, value, COUNTS[name])
    elif name in ("decoder_norm", "penalty") and not 0 <= value < math.inf:
        raise ValueError("give a number of at least 0.")
    elif name == "layer":
        check_layer(value, suite.config.get_text_config().num_hidden_layers)
    elif name in ("revisions", "runner_up") and value:
        suite.check_revisions(value)
    elif name in ("task", "plain_task", "other_task"):
        suite.check_task(value)
    elif name == "tasks":
        for task in value:
            suite.check_task(task)
    elif name == "method":
        choose(name, value, METHODS)
    elif name == "split":
        choose(name, value, ("find", "test", "far"))
    elif name == "device":
        pick_device(value)
    elif name == "training":
        if unknown := [key for key in value if key not in TrainConfig.__dataclass_fields__]:
            known = ", ".join(TrainConfig.__dataclass_fields__)
            raise ValueError(f"{unknown[0]!r} is no setting of TrainConfig; it has {known}.")
        TrainConfig(**value)
    elif name == "text_path":
        find_text(value)
    elif name in ("crosscoder", "other_crosscoder", "pairs_path", "results", "names", "answers"):
        if not _is_there(value):
            raise ValueError("there is no such folder or file.")
    elif name in ("out", "cache_folder"):
        if _is_there(value) and not expanded(value).is_dir():
            raise ValueError("this is a file: give a folder.")


def _is_there(path: str) -> bool:
    if "\0" in path:
        raise ValueError("this is no path.")
    return expanded(path).exists()


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items()) or "nothing"


def top_folder() -> Path:
    """The project's folder: a notebook runs in its own folder (Jupyter), or above (papermill)."""
    here = Path.cwd()
    if here.name == "exercises" and here.parent.name == "notebooks":
        return Path("../..")
    return Path("..") if here.name == "notebooks" else Path(".")
