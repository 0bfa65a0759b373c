"""The promises of the repository itself: nothing drifts, nothing is too large, imports follow the story."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ctt_helpers"
MODULES = sorted(PACKAGE.rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CORE = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]


def load_tool(name: str):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def tracked() -> list[Path]:
    """The files that git tracks, or would."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


# ---- drift


def test_environment_file_is_the_generated_one():
    expected = load_tool("make_environment").environment(PYPROJECT)
    assert (ROOT / "environment.yml").read_text(encoding="utf-8") == expected, "run tools/make_environment.py"


def test_notebooks_are_those_of_their_sources():
    tool = load_tool("build_notebooks")
    sources = tool.sources()
    assert sources, "notebooks/src is empty"
    problems = [tool.drift(source, ROOT / "notebooks" / f"{source.stem}.ipynb") for source in sources]
    assert not any(problems), f"{[p for p in problems if p]}: run `make notebooks`"
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} == {s.stem for s in sources}


def test_notebooks_are_small_and_hold_no_dead_widgets():
    notebooks = list((ROOT / "notebooks").glob("*.ipynb"))
    assert sum(path.stat().st_size for path in notebooks) < 6_000_000
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        assert "widget-view+json" not in text and "widget-state+json" not in text, path.name


def test_a_notebook_that_differs_from_its_source_is_noticed(tmp_path):
    tool = load_tool("build_notebooks")
    source, target = tmp_path / "01_x.py", tmp_path / "01_x.ipynb"
    source.write_text('# %% [markdown]\n# Hello\n\n# %% tags=["parameters"]\nseed: int = 0\n', encoding="utf-8")
    notebook = tool.build(source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.metadata.tags for cell in code] == [["set-up"], ["parameters"]]
    tool.write(notebook, target)
    assert "was not run" in tool.drift(source, target)
    for cell in code:
        cell.execution_count = 1
    tool.write(notebook, target)
    assert tool.drift(source, target) is None
    source.write_text(source.read_text(encoding="utf-8").replace("= 0", "= 1"), encoding="utf-8")
    assert "differs from the source" in tool.drift(source, target)


def test_outputs_are_cleaned_of_what_belongs_to_one_machine():
    tool = load_tool("build_notebooks")
    output = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell("train()")
    cell.outputs = [
        output("stream", name="stderr", text="step:   0%|          | 0/9\rstep: 100%|####| 9/9 [00:01<00:00, 8it/s]\n"),
        output("stream", name="stdout", text=f"saved {ROOT}/runs/x\n"),
        output("display_data", data={tool.WIDGET: {"model_id": "1"}, "text/plain": "VBox()"}),
        output("stream", name="stdout", text="old\rnew\n"),
        output("execute_result", data={"text/plain": f"<object at 0x7fabc0123456 in {ROOT}>"}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    tool.clean(notebook)
    assert [o.get("text") or o.data["text/plain"] for o in cell.outputs] == [
        "saved ./runs/x\nnew\n",
        "<object at 0x... in .>",
    ]
    assert "widgets" not in notebook.metadata


# ---- running


def test_run_notebooks_keeps_earlier_results_and_names_the_failing_cell(tmp_path):
    def notebook(name: str, source: str) -> None:
        cells = [nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell(source)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / name)

    def run(*extra: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools" / "run_notebooks.py"), "--notebooks", str(tmp_path)]
        return subprocess.run([*command, "--out", str(tmp_path / "out"), *extra], capture_output=True, text=True)

    notebook("01_fine.ipynb", "print(x)")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine", encoding="utf-8")
    first = run()
    assert first.returncode == 0, first.stderr
    assert re.search(r"01 fine \.\.\. \d+ s", first.stdout) and "All 1 notebooks ran" in first.stdout
    assert (tmp_path / "out" / "01_fine.ipynb").is_file()
    assert (tmp_path / "out.previous" / "note.txt").read_text(encoding="utf-8") == "mine"

    notebook("01_fine.ipynb", "raise ValueError('seven is not a layer')")
    second = run()
    assert second.returncode == 1
    assert "seven is not a layer" in second.stderr and "01_fine.ipynb, cell" in second.stderr
    assert (tmp_path / "out" / "01_fine.ipynb").is_file() and (tmp_path / "out.failed" / "01_fine.ipynb").is_file()

    notebook("01_fine.ipynb", "import time; time.sleep(60)")
    third = run("--seconds", "6")
    assert third.returncode == 1 and "did not end within 6 s" in third.stderr


def test_machine_check_says_what_is_wrong():
    check = load_tool("check_machine")
    assert check.python_problem((3, 11, 2)) is None and check.python_problem((3, 13, 0)) is None
    assert "3.9.18 is too old" in check.python_problem((3, 9, 18))
    assert "3.14.0 is newer" in check.python_problem((3, 14, 0))
    assert "python3-venv" in check.python_problem((3, 11, 2), has_pip=False)
    assert check.mac_problem("linux", "x86_64", "") is None and check.mac_problem("darwin", "arm64", "14.5") is None
    assert "Apple silicon" in check.mac_problem("darwin", "x86_64", "14.5")
    assert "macOS 13.6" in check.mac_problem("darwin", "arm64", "13.6")
    assert check.disk_problem(5 * 10**9, ".venv") is None
    assert "Only 1.5 GB are free" in check.disk_problem(int(1.5e9), ".venv")
    assert "CPU build is enough" in check.plan(".venv", "linux", False, 5 * 10**9)
    assert "CUDA" not in check.plan(".venv", "darwin", False, 5 * 10**9).splitlines()[-1]


# ---- versions


def test_ranges_admit_what_colab_has(shared):
    freeze = (shared / "data" / "colab-pip-freeze.txt").read_text(encoding="utf-8")
    colab = {canonicalize_name(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)", freeze, flags=re.MULTILINE)}
    known = [r for r in CORE if canonicalize_name(r.name) in colab]
    assert {"torch", "numpy", "transformers", "pandas", "ipywidgets"} <= {r.name for r in known}
    refused = [
        f"{r} refuses {colab[canonicalize_name(r.name)]}"
        for r in known
        if not r.specifier.contains(colab[canonicalize_name(r.name)].split("+")[0])
    ]
    assert not refused


def test_constraints_lie_inside_the_ranges():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    version = {canonicalize_name(p.name): next(iter(p.specifier)).version for p in pins}
    wanted = CORE + [Requirement(x) for extra in PYPROJECT["project"]["optional-dependencies"].values() for x in extra]
    for requirement in (r for r in wanted if r.name != PYPROJECT["project"]["name"]):
        assert requirement.specifier.contains(version[canonicalize_name(requirement.name)]), requirement


# ---- the package


def code_lines(text: str) -> int:
    """Lines of code: without blank lines, comments and docstrings, of which the public ones are meant to be long."""
    lines = text.splitlines()
    counted = {i for i, line in enumerate(lines, 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            counted -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(counted)


def test_the_wheel_holds_code_and_data(tmp_path):
    """What pip installs on Colab is a wheel, not a checkout."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    installed = {p.relative_to(tmp_path / "installed" / "ctt_helpers") for p in tmp_path.rglob("ctt_helpers/**/*")}
    here = {p.relative_to(PACKAGE) for p in PACKAGE.rglob("*") if p.suffix in (".py", ".json")}
    assert here <= installed
    code = """if True:
        import ctt_helpers as ctt
        suite = ctt.load_suite("tiny")
        accuracy = ctt.accuracy(suite.checkpoints()[-1], suite.pairs("agreement/simple", n=20))
        print(ctt.__file__, accuracy > 0.9, suite.crosscoder_folder.is_dir(), len(ctt.published.pythia_blimp()) > 0)
    """
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stdout.split()[1:] == ["True"] * 3, done.stderr
    assert done.stdout.startswith(str(tmp_path / "installed"))


def test_core_stays_thin():
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in MODULES}
    assert {name: n for name, text in texts.items() if (n := len(text.splitlines())) >= 300} == {}
    outside = ("toy/", "widgets/", "checks.py")
    assert sum(code_lines(text) for name, text in texts.items() if not name.startswith(outside)) < 3000


def test_only_declared_packages_are_imported():
    declared = {canonicalize_name(r.name) for r in CORE}
    used = {name.split(".")[0] for path in MODULES for name in imported(path)}
    third_party = {canonicalize_name(name) for name in used - set(sys.stdlib_module_names) - {"ctt_helpers"}}
    assert third_party - declared - {"mpl-toolkits"} == set()


def test_notebooks_need_no_more_than_the_package_brings():
    declared = {canonicalize_name(r.name) for r in CORE} | {"ipykernel"}
    for source in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        used = {canonicalize_name(name.split(".")[0]) for name in imported(source)}
        assert used - set(sys.stdlib_module_names) - {"ctt-helpers"} <= declared, source.name
        # pandas takes these from scipy, which is not among them
        assert not re.search(r"corr\([^)]*method=", source.read_text(encoding="utf-8")), source.name


def test_only_hooks_imports_nnsight_and_nothing_imports_widgets():
    users = {path.name for path in MODULES for name in imported(path) if name.split(".")[0] == "nnsight"}
    assert users == {"hooks.py"}
    others = [path for path in MODULES if path.parent.name != "widgets"]
    assert not [path.name for path in others if any(n.startswith("ctt_helpers.widgets") for n in imported(path))]
    users = {path for path in MODULES for name in imported(path) if name.split(".")[0] == "ipywidgets"}
    assert users == {PACKAGE / "widgets" / "__init__.py"}


def test_no_pickles():
    forbidden = {"torch.load", "torch.save", "pd.read_pickle", "np.load", "pickle.load", "joblib.load"}
    for path in MODULES:
        assert not {"pickle", "dill", "joblib", "cloudpickle"} & {n.split(".")[0] for n in imported(path)}, path.name
        calls = {
            ast.unparse(n.func)
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.Call)
        }
        assert not calls & forbidden, path.name


def test_importing_metrics_loads_no_model_library():
    heavy = "('transformers', 'nnsight', 'ipywidgets')"
    code = f"import sys, ctt_helpers.metrics; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_names_a_folder_of_somebodys_machine():
    folder = re.compile(r"(?<![\w.:/-])/(?:root|work|Users/\w+|home/\w+)/")
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary
        found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in folder.finditer(text)]
    assert found == []


def test_the_readme_shows_what_the_benchmarks_measured():
    from benchmarks import readme

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.with_block(text, readme.block()) == text, "run `python -m benchmarks.readme`"


def test_the_readme_snippet_works_when_pasted(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len(snippet.splitlines()) <= 10
    (tmp_path / "mine.py").write_text(snippet, encoding="utf-8")
    run = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and "specific" in run.stdout, run.stderr[-2000:]
