"""Colab: the first cell installs what is missing and moves nothing, there and anywhere; widgets fit
what it has.
"""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_project import CORE, ROOT, load_tool

from ctt_helpers import __version__

TOOL = load_tool("build_notebooks")
HOME = "somebody/crosscoding"  # as if the project had a public home
# How Colab's Python answers the markers of requirements.
COLAB = {
    "python_version": "3.13",
    "python_full_version": "3.13.5",
    "implementation_version": "3.13.5",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
}


# ---- the first cell


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A Python without ctt_helpers, in an empty folder, and the pip commands that were run
    there.
    """
    there, commands, answer = {"nnsight"}, [], SimpleNamespace(returncode=0, stdout="", stderr="")
    find = importlib.util.find_spec
    own = ("ctt_helpers", "nnsight")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: (name in there or None) if name in own else find(name, *a),
    )

    def pip(command, **_options):
        commands.append(command)
        there.update(own if answer.returncode == 0 else ())
        return answer

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(TOOL, "HOME", HOME)
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(
        there=there, commands=commands, answer=answer, run=lambda: exec(TOOL.setup(), {})
    )


def test_nothing_is_run_where_the_package_is(machine):
    machine.there.add("ctt_helpers")
    machine.run()
    assert machine.commands == []


def test_one_pip_command_with_everything_pinned_and_none_the_second_time(machine, capsys):
    machine.run()
    machine.run()
    (command,) = machine.commands
    *start, flag, pins, source = command
    assert start == [sys.executable, "-m", "pip", "install"] and flag == "-c"
    assert source == f"ctt-helpers @ git+https://github.com/{HOME}@v{__version__}"
    assert str(Requirement(source).url).endswith(f"@{TOOL.TAG}")
    pinned = [Requirement(line) for line in Path(pins).read_text(encoding="utf-8").splitlines()]
    names = [canonicalize_name(r.name) for r in pinned]
    assert len(set(names)) == len(names) > 50 and {
        "torch",
        "numpy",
        "transformers",
        "pandas",
        "pip",
    } <= {*names}
    assert all(str(r.specifier) == f"=={metadata.version(r.name)}" for r in pinned)
    assert "a minute or two" in capsys.readouterr().out


@pytest.mark.parametrize(("where", "source"), [("notebooks", ".."), (".", ".")])
def test_a_checkout_installs_itself(machine, monkeypatch, tmp_path, where, source):
    (tmp_path / "ctt_helpers").mkdir()
    (tmp_path / "ctt_helpers" / "__init__.py").touch()
    (tmp_path / where).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / where)
    machine.there.clear()
    machine.there.add("ctt_helpers")  # Python finds the folder, not what it needs
    machine.run()
    assert [c[-1] for c in machine.commands] == [source]


def test_what_pip_says_is_shown_when_it_fails(machine):
    machine.answer.returncode, machine.answer.stderr = 1, "ERROR: Could not find a version"
    with pytest.raises(AssertionError, match=r"pip failed:\n.*Could not find a version"):
        machine.run()


def test_of_two_copies_of_a_package_the_one_in_use_is_pinned(machine, tmp_path, monkeypatch):
    for folder, version in (
        ("first", "2.0"),
        ("second", "1.0"),
    ):  # as Debian's and pip's own on Colab
        info = tmp_path / folder / "twice.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: twice\nVersion: {version}\n", encoding="utf-8"
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second"), *sys.path])
    machine.run()
    pins = Path(machine.commands[0][-2]).read_text(encoding="utf-8").splitlines()
    assert [p for p in pins if p.startswith("twice")] == ["twice==2.0"]


# ---- the notebooks


@pytest.mark.parametrize("source", TOOL.sources(), ids=lambda s: s.name[:2])
def test_every_notebook_begins_with_badge_and_set_up(source, monkeypatch):
    monkeypatch.setattr(TOOL, "HOME", HOME)
    notebook = TOOL.build(source)
    badge, setup, *rest = notebook.cells
    colab = f"https://colab.research.google.com/github/{HOME}/blob/v{__version__}"
    assert badge.source.startswith("[![Open in Colab](https://")
    assert badge.source.endswith(f"]({colab}/notebooks/{source.stem}.ipynb)")
    assert setup.cell_type == "code" and setup.source == TOOL.setup()
    assert not any("pip" in c.source.split() for c in rest if c.cell_type == "code")
    assert (notebook.metadata.get("accelerator") == "GPU") == (source.stem[:2] != "00")
    assert len({c.id for c in notebook.cells}) == len(notebook.cells)


def test_without_a_public_home_nothing_points_to_one(machine, monkeypatch):
    monkeypatch.setattr(TOOL, "HOME", None)
    for source in TOOL.sources():
        text = "\n".join(cell.source for cell in TOOL.build(source).cells)
        assert "Open in Colab" not in text and "github.com/None" not in text
        assert "git+https" not in text
    with pytest.raises(AssertionError, match="open this notebook in a checkout"):
        machine.run()
    assert machine.commands == []


def test_the_set_up_cell_leaves_no_name_that_looks_like_a_parameter(machine):
    from ctt_helpers import check_parameters

    namespace = {}
    exec(TOOL.setup(), namespace)
    exec("seed: int = 1", namespace)
    assert machine.commands and check_parameters(namespace) == {"seed": 1}


def test_cleaning_keeps_what_colab_reads():
    notebook = nbformat.v4.new_notebook(metadata={**TOOL.METADATA, **TOOL.GPU, "widgets": {}})
    notebook.metadata.language_info["version"] = "3.11.2"  # as a kernel does
    TOOL.clean(notebook)
    assert notebook.metadata == TOOL.METADATA | TOOL.GPU


# ---- what Colab has


@pytest.fixture(scope="module")
def colab(shared) -> dict[str, str]:
    """name -> version of everything that Colab has preinstalled."""
    freeze = (shared / "data" / "colab-pip-freeze.txt").read_text(encoding="utf-8")
    pins = [
        Requirement(line) for line in freeze.splitlines() if "==" in line
    ]  # two of 700 come without a version
    return {canonicalize_name(p.name): next(iter(p.specifier)).version for p in pins}


def needs(name: str, extras: set[str]) -> list[Requirement]:
    """What an installed package needs on Colab."""
    lines = [Requirement(line) for line in metadata.requires(name) or []]
    return [
        r
        for r in lines
        if not r.marker or any(r.marker.evaluate(COLAB | {"extra": e}) for e in extras or {""})
    ]


def resolve(requirements: list[Requirement], have: dict[str, str]) -> tuple[set[str], list[str]]:
    """What has to be added to what there is, and which requirements would move something.

    What there is counts as complete. Where it is not, pip adds what lacks: on Colab jedi, which
        IPython 7 asks for.
    """
    added, moved, todo = set(), [], [(r, "ctt-helpers") for r in requirements]
    while todo:
        requirement, asked_by = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in have:
            if not requirement.specifier.contains(have[name], prereleases=True):
                moved.append(f"{asked_by} needs {requirement}, there is {have[name]}")
            if requirement.extras:  # the package stays, and an extra of it may bring something new
                plain = {str(r) for r in needs(requirement.name, set())}
                extra = [
                    r for r in needs(requirement.name, requirement.extras) if str(r) not in plain
                ]
                todo += [(r, str(requirement)) for r in extra]
        elif name not in added:
            added.add(name)
            assert requirement.specifier.contains(metadata.version(name), prereleases=True)
            todo += [(r, name) for r in needs(name, requirement.extras | {""})]
    return added, moved


def test_nothing_on_colab_would_move(colab):
    assert {colab[n].split(".")[0] for n in ("torch", "numpy", "transformers")} == {"2", "5"}
    added, moved = resolve(CORE, colab)
    assert moved == []
    assert {"nnsight", "jaxtyping"} <= added and not added & {
        "torch",
        "numpy",
        "transformers",
        "ipywidgets",
    }
    print("added on Colab:", ", ".join(sorted(added)))
    assert len(added) <= 6, added  # a small thing to install


def test_a_requirement_that_colab_cannot_meet_is_noticed(colab):
    added, moved = resolve([Requirement("numpy>=99"), Requirement("nnsight>=0.8")], colab)
    assert (
        moved == [f"ctt-helpers needs numpy>=99, there is {colab['numpy']}"] and "nnsight" in added
    )
    without = {name: version for name, version in colab.items() if name != "greenlet"}
    assert (
        "greenlet" in resolve([Requirement("nnsight>=0.8")], without)[0]
    )  # what is added brings its own needs
    _, moved = resolve([Requirement("jaxtyping")], {"wadler-lindig": "0.0.1"})
    assert len(moved) == 1 and moved[0].startswith("jaxtyping needs wadler-lindig")


# ---- widgets


@pytest.mark.long  # it asks the network for a package
def test_the_widgets_work_with_colabs_ipywidgets(tmp_path):
    """The tests of the widgets, once more, with ipywidgets 7.7.1 in place of 8."""
    packages = ["ipywidgets==7.7.1", "ipython_genutils"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path),
        *packages,
    ]
    if subprocess.run(command, capture_output=True, timeout=120).returncode:
        pytest.skip("ipywidgets 7.7.1 cannot be fetched here")
    code = (
        "import sys, ipywidgets as w, pytest; assert w.__version__ == '7.7.1'; "
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    files = [
        str(ROOT / "tests" / name)
        for name in ("test_widgets.py", "test_widgets_cells.py", "test_widgets_features.py")
    ]
    tests = ["-q", "-p", "no:cacheprovider", *files]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *tests], capture_output=True, text=True, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
