"""Profiles: one word that sets a notebook's parameters for a machine. "tiny" needs nothing; "colab" a GPU of 16 GB;
"paper" has the settings of Crosscoding Through Time. A parameter that is given explicitly overrides its profile.

The values stand in profiles.json. Tasks are BLiMP sets with one prefix: across an attractor, plain, and something else
than subject and verb. "paper" reads 400M tokens in batches of 4,096, k falling over the first 5,000 of 97,656 steps; it
is for OLMo and BLOOM likewise: model="olmo-1b" or "bloom-1b1" bring their layer and triplet. "colab" has room for
model="pythia-410m" too; in notebook 08 with every second one of its checkpoints (`tests/test_estimates.py`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctt_helpers.runtime import check_parameters, choose, read_json, top_folder

# profile -> notebook ("*": every one that knows the parameter) -> parameter -> value
PROFILES: dict[str, dict[str, dict[str, Any]]] = read_json(Path(__file__).with_name("profiles.json"))


def use_profile(namespace: dict[str, Any], notebook: str, **checks: Callable[[Any], str | None]) -> dict[str, Any]:
    """Check a notebook's parameters, and fill those that are None from its profile; say which value is whose.

    A parameter `out` that is None becomes runs/<notebook> of the project.

    Args:
        namespace: the notebook's `globals()`, in the cell after the parameters cell, with a parameter `profile`.
        notebook: its number, "00" to "08".
        **checks: as for `check_parameters`; they see the values in force.

    Returns:
        The values in force.

    Raises:
        ValueError: no such profile, or whatever `check_parameters` refuses.
    """
    given = check_parameters(namespace)
    choose("profile", given["profile"], PROFILES)
    chosen = PROFILES[given["profile"]]
    offered = chosen["*"] | chosen.get(notebook, {})
    filled = {name: offered[name] for name, value in given.items() if value is None and name in offered}
    namespace |= filled
    if "out" in given and given["out"] is None:
        namespace["out"] = str(top_folder() / "runs" / notebook)
    own = {name: given[name] for name in offered if given.get(name) is not None}
    print(f"profile {given['profile']!r} sets: {_listed(filled)}" + (f"; set by hand: {_listed(own)}" if own else ""))
    return check_parameters(namespace, **checks)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items()) or "nothing"
