"""The promises of the repository itself: no drift, what it needs is declared, README runs."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import jupytext
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
    assert (ROOT / "environment.yml").read_text(encoding="utf-8") == expected, (
        "run tools/make_environment.py"
    )


def test_notebooks_are_those_of_their_sources():
    tool = load_tool("build_notebooks")
    sources = tool.sources()
    assert sources, "notebooks/src is empty"
    problems = [
        tool.drift(source, ROOT / "notebooks" / f"{source.stem}.ipynb") for source in sources
    ]
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
    source.write_text(
        '# %% [markdown]\n# Hello\n\n# %% tags=["parameters"]\nseed: int = 0\n', encoding="utf-8"
    )
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
        output(
            "stream",
            name="stderr",
            text="step:   0%|          | 0/9\rstep: 100%|####| 9/9 [00:01<00:00, 8it/s]\n",
        ),
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


@pytest.mark.slow
def test_run_notebooks_keeps_earlier_results_and_names_the_failing_cell(tmp_path):
    def notebook(name: str, source: str) -> None:
        cells = [nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell(source)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / name)

    def run(*extra: str) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            str(ROOT / "tools" / "run_notebooks.py"),
            "--notebooks",
            str(tmp_path),
        ]
        return subprocess.run(
            [*command, "--out", str(tmp_path / "out"), *extra], capture_output=True, text=True
        )

    notebook("01_fine.ipynb", "print(x)")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine", encoding="utf-8")
    first = run()
    assert first.returncode == 0, first.stderr
    assert (
        re.search(r"01 fine \.\.\. \d+ s", first.stdout) and "All 1 notebooks ran" in first.stdout
    )
    assert (tmp_path / "out" / "01_fine.ipynb").is_file()
    assert (tmp_path / "out.previous" / "note.txt").read_text(encoding="utf-8") == "mine"

    notebook("01_fine.ipynb", "raise ValueError('seven is not a layer')")
    second = run()
    assert second.returncode == 1
    assert "seven is not a layer" in second.stderr and "01_fine.ipynb, cell" in second.stderr
    assert (tmp_path / "out" / "01_fine.ipynb").is_file() and (
        tmp_path / "out.failed" / "01_fine.ipynb"
    ).is_file()

    notebook("01_fine.ipynb", "import time; time.sleep(60)")
    third = run("--seconds", "6")
    assert third.returncode == 1 and "did not end within 6 s" in third.stderr


ASKS = """import ipykernel, json
print(json.loads(ipykernel.get_connection_info())["transport"], seed, 1 / seed)"""


@pytest.mark.skipif(os.name != "posix", reason="these sockets are POSIX's")
@pytest.mark.parametrize(("deeper", "transport"), [("x", "ipc"), ("x" * 100, "tcp")])
def test_a_kernel_listens_where_no_other_does(tmp_path, monkeypatch, deeper, transport):
    """In a folder of its own, gone in the end; by ports where its path is too long for a socket."""
    cells = [nbformat.v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell(ASKS))
    metadata = load_tool("build_notebooks").METADATA
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.write(notebook, tmp_path / "a.ipynb")
    tool = load_tool("run_one")
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        folder = Path(short) / deeper
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        done = tmp_path / "b.ipynb"
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "a.ipynb"), str(done)])
        with pytest.raises(Exception, match="ZeroDivisionError"):
            tool.main()
        assert list(folder.iterdir()) == []
        sys.argv += ["--parameters", "seed: 2"]
        assert tool.main() == 0
        assert list(folder.iterdir()) == []
    last = nbformat.read(done, as_version=4).cells[-1]
    assert last.outputs[0].text == f"{transport} 2 0.5\n"


# what carries outputs is held up while the cell ends, as on a machine with too much to do
BUSY = """
import sys, time

def hold():
    time.sleep(6)

sys.stdout.flush_timeout = sys.stderr.flush_timeout = 0  # the cell's end does not wait for it

display("before")
get_ipython().kernel.iopub_thread.schedule(hold)
display("after")
"""


@pytest.mark.slow
def test_outputs_may_come_late(tmp_path):
    cells = [nbformat.v4.new_code_cell(BUSY)]
    metadata = load_tool("build_notebooks").METADATA
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "a.ipynb")
    load_tool("run_one").run_one(tmp_path / "a.ipynb", tmp_path / "b.ipynb", tmp_path, {})
    last = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells[-1]
    assert [output.data["text/plain"] for output in last.outputs] == ["'before'", "'after'"]


def test_machine_check_says_what_is_wrong():
    check = load_tool("check_machine")
    assert check.python_problem((3, 11, 2)) is None and check.python_problem((3, 13, 0)) is None
    assert "3.9.18 is too old" in check.python_problem((3, 9, 18))
    assert "3.14.0 is newer" in check.python_problem((3, 14, 0))
    assert "python3-venv" in check.python_problem((3, 11, 2), has_pip=False)
    assert (
        check.mac_problem("linux", "x86_64", "") is None
        and check.mac_problem("darwin", "arm64", "14.5") is None
    )
    assert "Apple silicon" in check.mac_problem("darwin", "x86_64", "14.5")
    assert "macOS 13.6" in check.mac_problem("darwin", "arm64", "13.6")
    assert check.disk_problem(5 * 10**9, ".venv") is None
    assert "Only 1.5 GB are free" in check.disk_problem(int(1.5e9), ".venv")
    assert "CPU build is enough" in check.plan(".venv", "linux", False, 5 * 10**9)
    assert "CUDA" not in check.plan(".venv", "darwin", False, 5 * 10**9).splitlines()[-1]


# ---- versions


def test_ranges_admit_what_colab_has(shared):
    freeze = (shared / "data" / "colab-pip-freeze.txt").read_text(encoding="utf-8")
    colab = {
        canonicalize_name(n): v
        for n, v in re.findall(r"^([\w.-]+)==(\S+)", freeze, flags=re.MULTILINE)
    }
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
    wanted = CORE + [
        Requirement(x)
        for extra in PYPROJECT["project"]["optional-dependencies"].values()
        for x in extra
    ]
    for requirement in (r for r in wanted if r.name != PYPROJECT["project"]["name"]):
        assert requirement.specifier.contains(version[canonicalize_name(requirement.name)]), (
            requirement
        )


# ---- the package


@pytest.mark.slow
def test_the_wheel_holds_code_and_data(tmp_path):
    """What pip installs on Colab is a wheel, not a checkout."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    installed = {
        p.relative_to(tmp_path / "installed" / "ctt_helpers")
        for p in tmp_path.rglob("ctt_helpers/**/*")
    }
    here = {p.relative_to(PACKAGE) for p in PACKAGE.rglob("*") if p.suffix in (".py", ".json")}
    assert here <= installed
    code = """if True:
        import ctt_helpers as ctt
        suite = ctt.load_suite("tiny")
        accuracy = ctt.accuracy(suite.checkpoints()[-1], suite.pairs("agreement/simple", n=20))
        print(ctt.__file__, accuracy > 0.9, suite.crosscoder_folder.is_dir(),
        len(ctt.published.pythia_blimp()) > 0)
    """
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.stdout.split()[1:] == ["True"] * 3, done.stderr
    assert done.stdout.startswith(str(tmp_path / "installed"))


def test_only_declared_packages_are_imported():
    on_request = [
        Requirement(each)
        for name in ("log", "several")
        for each in PYPROJECT["project"]["optional-dependencies"][name]
    ]
    declared = {canonicalize_name(r.name) for r in [*CORE, *on_request]}
    used = {name.split(".")[0] for path in MODULES for name in imported(path)}
    used = {"pyyaml" if name == "yaml" else name for name in used}
    third_party = {
        canonicalize_name(name) for name in used - set(sys.stdlib_module_names) - {"ctt_helpers"}
    }
    assert third_party - declared - {"mpl-toolkits"} == set()


def test_notebooks_need_no_more_than_the_package_brings():
    declared = {canonicalize_name(r.name) for r in CORE} | {"ipykernel"}
    for source in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        used = {canonicalize_name(name.split(".")[0]) for name in imported(source)}
        assert used - set(sys.stdlib_module_names) - {"ctt-helpers"} <= declared, source.name


def test_nothing_reads_or_writes_pickles():
    pickles = {"pickle", "dill", "joblib", "cloudpickle", "shelve"}
    used = {path.name: {name.split(".")[0] for name in imported(path)} for path in MODULES}
    assert {name: names & pickles for name, names in used.items() if names & pickles} == {}


# ---- the README


README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def targets() -> set[str]:
    """The targets of the Makefile, as make itself lists them."""
    database = subprocess.run(
        ["make", "-pqrR", "-f", "Makefile", "nothing"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    return {line.split(":")[0] for line in database.splitlines() if re.match(r"[a-z-]+:", line)}


def commands() -> list[str]:
    """The commands of the README, comments taken away."""
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_target_that_is_named_is_there():
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    named |= set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"tutorial", "test", "lab", "help"} <= named <= targets()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what git tracks, as a stranger has it, under git."""
    folder = tmp_path_factory.mktemp("checkout") / "project"
    for path in tracked():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(folder)]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    return folder


# As written, the commands take minutes: fewer steps and pairs, the rest as it stands.
SMALLER = {"papermill notebooks/04": "-p n_pairs 20"}


@pytest.mark.slow
def test_every_command_of_the_readme_runs_and_leaves_the_tree_clean(checkout):
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
        "HF_HUB_OFFLINE": "1",
    }
    run = [line for line in commands() if not line.startswith("make ")]
    assert len(run) == 2
    for line in run:
        for start, extra in SMALLER.items():
            if line.startswith(start):
                line += f" {extra}"
        done = subprocess.run(
            line, shell=True, cwd=checkout, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    # the results are in the project's runs, though the notebook lies in another folder
    assert (checkout / "runs" / "04" / "hunted.csv").is_file()
    assert {path.name for path in checkout.parent.iterdir()} == {checkout.name}
    left = subprocess.run(
        ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert left.stdout == ""


@pytest.mark.slow
def test_the_readme_snippet_works_when_pasted(tmp_path):
    (snippet,) = blocks("python")
    assert len(snippet.splitlines()) <= 14
    (tmp_path / "mine.py").write_text(snippet, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0 and "specific" in run.stdout, run.stderr[-2000:]


def test_a_notebook_takes_as_long_wherever_that_is_said():
    """Minutes to read: its top, README and 00. Minutes to work through: its parts and README."""
    tool = load_tool("build_notebooks")
    start = (ROOT / "notebooks/src/00_start_here.py").read_text(encoding="utf-8")
    sources = sorted((ROOT / "notebooks/src").glob("0[0-8]_*.py"))
    assert len(sources) == 9
    for source in sources:
        number = source.name[:2]
        parts = tool.parts_of(source, jupytext.read(source, fmt="py:percent").cells)
        reading = str(sum(part.reading for part in parts))
        work = " + ".join(str(part.reading + sum(part.minutes)) for part in parts)
        row = re.search(rf"^\| \[{number} .*\| (\d+) \| ([\d +]+) \|$", README, re.MULTILINE)
        assert row.groups() == (reading, work), source.name
        if number != "00":
            row = re.search(rf"^# \| \*\*{number} .*\| (\d+) \|$", start, re.MULTILINE)
            assert row[1] == reading, source.name


WORDS_A_MINUTE = 150  # of prose with terms and formulas in it
LINES_A_MINUTE = 20  # of code


def test_the_minutes_to_read_are_not_too_few():
    """Exercises are counted in minutes of their own."""
    tool = load_tool("build_notebooks")
    for source in tool.sources():
        cells = jupytext.read(source, fmt="py:percent").cells
        for part in tool.parts_of(source, cells):
            words = lines = 0
            for index in range(part.begin, part.end):
                cell = cells[index]
                if cell.cell_type == "markdown":
                    prose = cell.source.split("### Exercise")[0]
                    prose = re.sub(r"<details>.*?</details>", "", prose, flags=re.DOTALL)
                    words += len(re.findall(r"\w+", prose))
                elif not {"exercise", "check"} & set(cell.metadata):
                    lines += len(cell.source.splitlines())
            least = words / WORDS_A_MINUTE + lines / LINES_A_MINUTE
            assert part.reading >= least, f"{part.stem}: {words} words and {lines} lines of code"


def test_every_link_of_the_pages_leads_to_a_file():
    pages = [
        path
        for path in tracked()
        if path.suffix == ".md" and path.relative_to(ROOT).parts[0] != "data"
    ]
    dead = []
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert len(pages) >= 4 and dead == []
