"""The layout: imports point one way, files can be copied, and a new method is one entry in a
table.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_suite, some_pairs

import ctt_helpers as ctt
from ctt_helpers import attribution
from ctt_helpers.attribution import Cost, Method
from ctt_helpers.notebook import forecast

PACKAGE = Path(ctt.__file__).resolve().parent
# the top folder, in its order: a module imports only those before it
ORDER = [
    "arguments", "messages", "memory", "files", "processes", "metrics", "hooks", "pairs",
    "behaviour", "activations", "cache", "crosscoder", "dictionary", "sparse", "training",
    "evaluation", "logs", "attribution", "effects", "uncertainty", "factorial", "controls",
    "planted", "runs", "train",
]  # fmt: skip
WINGS = ["sources", "notebook", "toy"]


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports when it runs; those for types alone left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                kept = [n for n in body if not (isinstance(n, ast.If) and _is_for_types(n))]
                setattr(node, name, kept)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            is_folder = node.module in ("ctt_helpers", *(f"ctt_helpers.{wing}" for wing in WINGS))
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(whole) if is_folder else {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    own = {name.removeprefix("ctt_helpers.") for name in found if name.startswith("ctt_helpers.")}
    return {
        ".".join(name.split(".")[:2]) if name.split(".")[0] in WINGS else name.split(".")[0]
        for name in own
    }


def _is_for_types(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_the_top_folder_is_the_method():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert files == set(ORDER)
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == {*WINGS, "_moved"}


@pytest.mark.parametrize("module", ORDER)
def test_imports_of_the_top_folder_point_up(module):
    imported = imports_of(PACKAGE / f"{module}.py")
    assert imported <= set(ORDER[: ORDER.index(module)]), imported


def test_wings_do_not_lean_on_the_notebooks_or_the_toy():
    for wing, allowed in {
        "sources": {*ORDER, "sources", "toy.grammar"},  # the embedded suite writes its own text
        "toy": {*ORDER, "toy", "sources.suites"},
        "notebook": {*ORDER, "notebook", "sources"},
    }.items():
        for path in (PACKAGE / wing).rglob("*.py"):
            for name in imports_of(path):
                assert name in allowed or name.split(".")[0] in allowed, (path, name)


def test_only_hooks_knows_nnsight_and_only_widgets_know_ipywidgets():
    users = {"nnsight": set(), "ipywidgets": set()}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                if name.split(".")[0] in users:
                    users[name.split(".")[0]].add(path.relative_to(PACKAGE).as_posix())
    assert users["nnsight"] == {"hooks.py"}
    assert users["ipywidgets"]
    assert all(path.startswith("notebook/widgets/") for path in users["ipywidgets"])


def run(code: str, folder: Path) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_what_is_light_stays_light():
    """The metrics load no model library, and the package itself next to nothing."""
    heavy = "('torch', 'transformers', 'nnsight', 'ipywidgets', 'matplotlib')"
    told = f"print([m for m in {heavy} if m in sys.modules])"
    assert run(f"import sys, ctt_helpers; {told}", PACKAGE.parent) == "[]"
    assert run(f"import sys, ctt_helpers.metrics; {told}", PACKAGE.parent) == "[]"


# module -> what must come along, and a line of use
COPIES = {
    "metrics": (["arguments"], "print(m.rel_ie([[1.0, 2], [3, 2]])[0].tolist())", "[0.25, 0.5]"),
    "hooks": (["arguments"], "print(len(m.ARCHITECTURES) >= 18, m.pick_device('cpu'))", "True cpu"),
    "attribution": (["arguments"], "print('ablation' in m.METHODS, len(m.NODES))", "True 5"),
    "uncertainty": (
        ["arguments", "metrics"],
        "import numpy; print(m.resample(numpy.ones((2, 4, 3)), 5).shape)",
        "(5, 2, 3)",
    ),
    "crosscoder": (
        ["arguments", "files"],
        "m.Crosscoder(2, 4, 8, k=2).save('x'); print(m.Crosscoder.load('x').config['k'])",
        "2",
    ),
}


@pytest.mark.parametrize("module", COPIES)
def test_a_file_can_be_copied_with_at_most_two_others(tmp_path, module):
    """Into a project of one's own, under any name: nothing else of the package is there."""
    others, use, expected = COPIES[module]
    assert len(others) <= 2
    assert imports_of(PACKAGE / f"{module}.py") == set(others)
    for name in (module, *others):
        text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        (tmp_path / f"{name}.py").write_text(text.replace("from ctt_helpers.", "from "))
    code = f"import sys; import {module} as m; {use}; assert 'ctt_helpers' not in sys.modules"
    assert run(code, tmp_path).splitlines()[-1] == expected
    shutil.rmtree(tmp_path)


def test_a_copied_crosscoder_says_that_the_hub_needs_the_package(tmp_path):
    for name in ("crosscoder", "arguments", "files"):
        text = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        (tmp_path / f"{name}.py").write_text(text.replace("from ctt_helpers.", "from "))
    hidden = "import sys; sys.modules['ctt_helpers'] = None"
    use = "from crosscoder import Crosscoder\ntry: Crosscoder.from_pretrained('x')"
    use += "\nexcept ImportError as error: print(error)"
    assert "the whole package, ctt_helpers, which is not installed" in run(
        f"{hidden}; {use}", tmp_path
    )


def test_every_public_name_and_module_is_there():
    for name in ctt.__all__:
        assert getattr(ctt, name) is not None, name
    with pytest.raises(AttributeError, match="ctt_helpers has no 'nothing'"):
        _ = ctt.nothing


def test_modules_of_version_0_1_are_found_where_they_were():
    from ctt_helpers.checkpoints import fingerprint
    from ctt_helpers.estimates import count_parameters
    from ctt_helpers.optimisation import TrainConfig
    from ctt_helpers.paths import effects_from_gradient
    from ctt_helpers.plots import style
    from ctt_helpers.presets import PRESETS
    from ctt_helpers.profiles import use_profile
    from ctt_helpers.published import published_rows
    from ctt_helpers.runtime import atomic_path, check_parameters, pick_device, progress
    from ctt_helpers.scaling import latent_scaling
    from ctt_helpers.suites import load_suite
    from ctt_helpers.tasks import accuracy, make_pairs, twins
    from ctt_helpers.text import pack
    from ctt_helpers.triplets import suggest_triplet
    from ctt_helpers.widgets import feature_explorer

    for thing, name in (
        (fingerprint, "fingerprint"),
        (TrainConfig, "TrainConfig"),
        (load_suite, "load_suite"),
        (make_pairs, "make_pairs"),
        (accuracy, "accuracy"),
        (twins, "twins"),
        (suggest_triplet, "suggest_triplet"),
        (latent_scaling, "latent_scaling"),
        (effects_from_gradient, "effects_from_gradient"),
        (use_profile, "use_profile"),
        (check_parameters, "check_parameters"),
        (pick_device, "pick_device"),
    ):
        assert thing is getattr(ctt, name)
    found = (count_parameters, style, published_rows, atomic_path, progress, pack, feature_explorer)
    assert all(map(callable, found)) and "pythia-1b" in PRESETS


# ---- a new method is one entry


def half_gradient(readout, f, decoder, options):
    """The gradient half way along the joint line: an estimator of nobody's."""
    grad = readout.gradient(readout.at(torch.full((len(f),), 0.5)))
    return attribution.Attribution(
        ie=attribution.effects_from_gradient(options.counted(f), decoder, grad).sum(1),
        error=torch.full((len(f),), torch.nan),
        total=torch.full((len(f),), torch.nan),
        evaluations=np.ones(len(f)),
    )


def test_a_new_method_is_one_entry(monkeypatch, tmp_path):
    """Effects, their errors, and the forecast of time know it; nothing else has to be told."""
    entry = Method(half_gradient, Cost(passes=1, gradients=1, products=1))
    monkeypatch.setitem(attribution.METHODS, "half", entry)
    ckpts = random_suite(tmp_path).checkpoints(device="cpu")
    crosscoder = ctt.Crosscoder(3, 32, 24, sparsity="l1", seed=1)
    found = ctt.indirect_effects(crosscoder, ckpts, some_pairs(), "half")
    assert found.info["method"] == "half" and found.mean.any() and np.isnan(found.gap).all()
    with pytest.raises(ValueError, match="'half' gives all latents at once"):
        ctt.indirect_effects(crosscoder, ckpts, some_pairs(), "half", features=[1])
    told = ctt.estimate(ckpts, forecast.Speeds(pairs=1.0), pairs={"half": 128}, n_latents=24, k=4)
    assert told.work["half"] > 0
