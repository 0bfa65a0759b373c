"""The site: every page is listed, the checker finds what is broken, and what is built is whole."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_project import ROOT, load_tool, targets, tracked

import ctt_helpers as ctt

NAV = re.findall(r"^\s*(?:- )?(root|file|glob): (\S+)", (ROOT / "docs/toc.yml").read_text(), re.M)
SITE_PYTHON = ROOT / ".venv-site" / "bin" / "python"


def pages_of(entry: str) -> list[Path]:
    """The sources that an entry of the contents stands for."""
    found = ROOT.glob(f"{entry}.*")
    return [path for path in found if path.suffix in (".md", ".ipynb")]


# ---- the contents


def test_every_entry_has_a_source_and_every_page_an_entry():
    listed = []
    for kind, entry in NAV:
        found = pages_of(entry)
        assert len(found) >= 1 if kind == "glob" else len(found) == 1, entry
        listed += found
    assert len(set(listed)) == len(listed)
    notebooks = {path for path in tracked() if path.suffix == ".ipynb"}
    assert len(notebooks) >= 16 and notebooks <= set(listed)
    others = ("README", "INSTRUCTORS", "notebooks/GLOSSARY", "docs/api", "experiments/FOUND")
    assert {ROOT / f"{name}.md" for name in (*others, "benchmarks/README")} <= set(listed)


def test_the_versions_of_what_is_used_are_pinned():
    wanted = (ROOT / "docs/requirements.txt").read_text().splitlines()
    names = {line for line in wanted if re.match(r"[a-z]", line)}
    pins = re.findall(r"^([\w.-]+)==\S+$", (ROOT / "docs/constraints.txt").read_text(), re.M)
    assert len(names) >= 5 and names <= {re.sub(r"[_.]+", "-", name.lower()) for name in pins}


def test_make_builds_it_and_a_workflow_publishes_it():
    assert "site" in targets()
    workflow = (ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8")
    assert "make PYTHON=python site" in workflow and "path: build/site" in workflow


# ---- the checker

GOOD = """<html><head><title>t</title><style>p {{ color: red; background: url({style}) }}</style>
<link rel="stylesheet" href="a.css"></head><body><h1 id="top-part">one</h1>
<a href="{page}">other</a> <a href="https://example.org/">for a reader to click</a>
<img src="{picture}" alt="{alt}"><a href="data.csv">numbers</a></body></html>"""
RIGHT = {"page": "folder/b.html#here", "picture": "p.svg", "alt": "a dot", "style": "p.svg"}


def write_site(folder: Path, **changed: str) -> Path:
    """A site of two pages, with a picture, a table, and a style sheet."""
    (folder / "folder").mkdir(parents=True)
    (folder / "index.html").write_text(GOOD.format(**RIGHT | changed))
    (folder / "folder" / "b.html").write_text(
        '<a id="here" href="../index.html#top-part">back</a> <a href="#here">up</a>'
    )
    others = {"p.svg": "<svg/>", "data.csv": "a", "a.css": "a { background: url(p.svg) }"}
    for name, text in others.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def check(tmp_path):
    """What the checker says about a site in which one thing is changed."""
    tool = load_tool("check_site")

    def run(**changed: str) -> list[str]:
        return tool.problems(write_site(tmp_path / "site", **changed).resolve())[0]

    return run


def test_a_whole_site_passes(check, tmp_path):
    assert check() == []
    told = load_tool("check_site").problems((tmp_path / "site").resolve())
    assert told == ([], {"https://example.org/"})
    run = [sys.executable, ROOT / "tools/check_site.py", tmp_path / "site"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0 and "2 pages" in done.stdout and "0 problems" in done.stdout


@pytest.mark.parametrize(
    ("what", "value", "told"),
    [
        ("page", "folder/c.html", "leads to no file"),
        ("page", "/folder/c.html", "leads to no file"),
        ("page", "folder/", "leads to no file"),
        ("page", "folder/b.html#there", "leads to no anchor"),
        ("page", "#there", "leads to no anchor"),
        ("page", "../README.md", "leads out of the site"),
        ("picture", "q.png", "leads to no file"),
        ("picture", "https://example.org/p.svg", "loads from outside"),
        ("picture", "//example.org/p.svg", "loads from outside"),
        ("style", "https://example.org/font.woff2", "loads from outside"),
        ("alt", "", "a picture without words"),
        ("alt", "_images/p.svg", "a picture without words"),  # its file name
    ],
)
def test_what_is_broken_is_found(check, what, value, told):
    (problem,) = check(**{what: value})
    assert problem.startswith(f"index.html: {told}")


def test_a_style_sheet_that_loads_from_outside_is_found(check, tmp_path):
    check()
    (tmp_path / "site" / "a.css").write_text('@import "https://example.org/a.css";')
    run = [sys.executable, ROOT / "tools/check_site.py", tmp_path / "site"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 1 and "a.css: loads from outside" in done.stderr


def test_a_page_that_is_too_large_is_found(check):
    tool = load_tool("check_site")
    assert tool.LARGEST_PAGE >= 10**6
    assert any("bytes; at most" in line for line in check(alt="a" * (tool.LARGEST_PAGE + 1)))


def test_a_folder_without_pages_is_no_site(tmp_path):
    (problem,) = load_tool("check_site").problems(tmp_path)[0]
    assert "holds no page" in problem


# ---- the whole site


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    """Build as `make site` does. No network can be reached from it (where a system can do that)."""
    command = [SITE_PYTHON, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d"]
    command += [out / "doctrees", ".", out / "site"]
    alone = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") and subprocess.run([*alone, "true"]).returncode == 0:
        command = [*alone, *command]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if not SITE_PYTHON.is_file():
        pytest.skip("the site's tools are not installed: `make site` does that")
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out / "site"


@pytest.mark.long
def test_it_is_built_without_a_network_and_is_whole(site):
    wrong, outside = load_tool("check_site").problems(site.resolve())
    assert wrong == []
    assert outside <= {
        "https://docs.astral.sh/uv/",
        "https://github.com/pradyunsg/furo",
        "https://nbgrader.readthedocs.io/",
        "https://snakemake.readthedocs.io",
    }
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 20e6


@pytest.mark.long
def test_every_notebook_is_there_with_its_figures_and_their_words(site):
    figures = 0
    for source in [path for path in tracked() if path.suffix == ".ipynb"]:
        page = (site / source.relative_to(ROOT)).with_suffix(".html").read_text(encoding="utf-8")
        notebook = json.loads(source.read_text(encoding="utf-8"))
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        words = [
            output["metadata"]["image/png"]["alt"]
            for output in outputs
            if "image/png" in output.get("data", {})
        ]
        shown = [html.unescape(alt) for alt in re.findall(r'<img alt="([^"]*)"', page)]
        assert shown == words, source.name
        figures += len(words)
        assert "widget-view" not in page and "$\\" not in page, source.name
        assert page.count("<h1>") == 1, source.name
    assert figures >= 25


@pytest.mark.long
def test_the_package_is_there_with_every_public_name(site):
    page = (site / "docs" / "api.html").read_text(encoding="utf-8")
    headings = set(re.findall(r"<h[23]>(?:<code[^>]*><span class=\"pre\">)?([\w.]+)", page))
    modules = {name.removeprefix("ctt.") for name in headings}
    missing = [name for name in ctt.__all__ if name != "__version__" and name not in modules]
    assert missing == []
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    for name in ("rel_ie", "indirect_effects", "train", "load_suite", "classify"):
        first = getattr(ctt, name).__doc__.splitlines()[0]
        assert first.replace("`", "") in text, name


@pytest.mark.long
def test_the_search_knows_the_words(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    read = json.loads(index.removeprefix("Search.setIndex(").removesuffix(")"))
    (stem,) = read["titleterms"].keys() & {"relie", "reli"}  # as this version's stemmer has it
    found = []
    for numbers in (read["titleterms"][stem], read["terms"][stem]):
        found += [numbers] if isinstance(numbers, int) else numbers
    pages = {read["docnames"][number] for number in found}
    assert {"notebooks/GLOSSARY", "notebooks/04_relie_and_reldec", "docs/api"} <= pages


@pytest.mark.long
def test_a_broken_link_in_a_source_ends_the_build(tmp_path):
    if not SITE_PYTHON.is_file():
        pytest.skip("the site's tools are not installed: `make site` does that")
    copy = tmp_path / "project"
    for name in ("docs/conf.py", "ctt_helpers/__init__.py", "LICENSE-docs"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    shutil.copytree(ROOT / "docs/static", copy / "docs/static")
    (copy / "docs/toc.yml").write_text("root: README\nentries:\n  - file: docs/other\n")
    (copy / "docs/other.md").write_text("# Other\n\n## Part\n")
    for number, (link, told) in enumerate(
        {
            "LICENSE-docs": None,
            "docs/other.md#part": None,
            "docs": None,  # a folder: its first page
            "nowhere.md": "nowhere.md",
            "docs/other.md#nothing": "local id not found in doc 'docs/other': 'nothing'",
        }.items()
    ):
        (copy / "README.md").write_text(f"# Title\n\n[one]({link})\n")
        done = build(copy, tmp_path / str(number))
        assert (done.returncode == 0) == (told is None), (link, done.stderr[-2000:])
        assert told is None or told in done.stderr
