"""Profiles: what they set exists in the notebooks, is of the right type, and gives way to what is
set by hand.
"""

from pathlib import Path

import jupytext
import pytest
from models import random_suite

import ctt_helpers as ctt
from ctt_helpers.notebook.parameters import PROFILES, use_profile

SOURCES = sorted(
    (Path(__file__).resolve().parents[1] / "notebooks" / "src").glob("[0-9][0-9]_*.py")
)


def parameters_of(source: Path) -> dict:
    """A notebook's globals after its parameters cell."""
    cells = jupytext.read(source, fmt="py:percent").cells
    cell = next(c for c in cells if "parameters" in c.metadata.get("tags", []))
    namespace = {"__annotations__": {}}
    exec(cell.source, namespace)
    return namespace


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.name[:2])
def test_every_value_of_a_profile_is_a_parameter_of_its_notebook(source, profile, capsys):
    namespace, number = parameters_of(source), source.name[:2]
    declared = set(namespace["__annotations__"])
    assert "profile" in declared and f'globals(), "{number}"' in " ".join(
        source.read_text(encoding="utf-8").split()
    )
    namespace["profile"] = profile
    values = use_profile(namespace, number)
    assert set(PROFILES[profile].get(number, {})) <= declared
    offered = PROFILES[profile]["*"] | PROFILES[profile].get(number, {})
    told = capsys.readouterr().out
    for name in declared & set(offered):
        assert (
            namespace[name] == values[name] == offered[name] and f"{name}={offered[name]!r}" in told
        )


def test_what_is_set_by_hand_wins(capsys):
    namespace = {
        "__annotations__": {"profile": str, "model": str | None, "n_pairs": int | None, "seed": int}
    }
    namespace |= {"profile": "paper", "model": "olmo-1b", "n_pairs": None, "seed": 3}
    values = use_profile(namespace, "04")
    assert values == {"profile": "paper", "model": "olmo-1b", "n_pairs": 1000, "seed": 3}
    assert "set by hand: model='olmo-1b'" in capsys.readouterr().out
    assert use_profile(namespace, "04") == values  # a cell can be run twice


def test_a_cell_that_is_run_again_sets_the_same(capsys):
    """What a profile has set is not set by hand the next time, nor kept by another profile."""
    namespace = parameters_of(SOURCES[3])
    namespace["steps"] = 77
    values = [use_profile(namespace, "03") for _ in range(2)]
    first, again = capsys.readouterr().out.splitlines()
    assert values[0] == values[1] and first == again and "set by hand: steps=77" in first
    namespace["profile"] = "colab"
    changed = use_profile(namespace, "03")
    fresh = parameters_of(SOURCES[3]) | {"profile": "colab", "steps": 77}
    assert changed == use_profile(fresh, "03") != values[0]


@pytest.mark.parametrize(
    ("number", "name"), [("04", "runner_up"), ("05", "other_task"), ("08", "other_task")]
)
def test_what_a_profile_adds_is_left_out_in_another_suite(number, name, tmp_path, capsys):
    random_suite(tmp_path / "mine")
    (source,) = (s for s in SOURCES if s.name.startswith(number))
    given = {"model": str(tmp_path / "mine"), "task": "file", "plain_task": "file", "revisions": []}
    namespace = parameters_of(source)
    declared = namespace["__annotations__"]
    namespace |= {n: v for n, v in (given | {"tasks": ["file"]}).items() if n in declared}
    ctt.setup(dict(namespace), number)
    assert f"{name}=None: {PROFILES['tiny'][number][name]!r} is of the suite 'tiny'" in (
        capsys.readouterr().out
    )
    ctt.setup(namespace, number)
    assert namespace[name] is None
    by_hand = ["step7"] if name == "runner_up" else "agreement/none"
    with pytest.raises(ValueError, match=f"Parameter {name}=.*(step7|agreement/none)"):
        ctt.setup(namespace | {name: by_hand}, number)


def test_errors():
    namespace = {
        "__annotations__": {"profile": str, "n_pairs": int | None},
        "profile": "colba",
        "n_pairs": None,
    }
    with pytest.raises(
        ValueError,
        match=r"profile='colba' is not known; take one of tiny, colab, paper\. Did you mean 'col",
    ):
        use_profile(namespace, "04")
    namespace["profile"] = "tiny"
    with pytest.raises(ValueError, match="Parameter n_pairs=128: too many"):
        use_profile(namespace, "04", n_pairs=lambda n: "too many")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_training_settings_are_accepted(profile):
    values = PROFILES[profile]["03"]
    config = ctt.TrainConfig(steps=values["steps"], **values["training"])
    assert config.steps * values["batch_size"] > config.dead_after_tokens
    assert values["k"] <= values["n_latents"]
