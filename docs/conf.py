"""How the site is made (`make site`). Its pages are the project's own files, where they lie.

`toc.yml` lists them. Nothing is run, and nothing that the package needs is installed: notebooks are
shown as they were committed, and docstrings are read from the sources. No page asks a network for
anything: formulas are MathML, and fonts are the reader's own.
"""

import json
import re
import sys
from pathlib import Path

import griffe
from docutils import nodes
from griffe2md import render_object_docs
from math_core import LatexToMathML
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import ctt_helpers  # noqa: E402 (from this checkout)

project = "Crosscoding Through Time, hands-on"
version = ctt_helpers.__version__
extensions = ["myst_nb", "sphinx_external_toc"]
external_toc_path = "docs/toc.yml"
external_toc_exclude_missing = True  # a page is what toc.yml lists
exclude_patterns = [".*", "build", "runs"]
smartquotes = False  # "ig" is a value, not a word
suppress_warnings = ["myst.header"]  # a heading may skip a level

html_theme = "furo"
html_title = "Crosscoding Through Time"
html_static_path = ["static"]
html_favicon = "static/icon.svg"
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_math_renderer = "mathml"
html_copy_source = False
html_use_index = False
html_show_sphinx = False

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# ---- notebooks and pages

FORMULA = re.compile(r"(?<![$\\])\$[^$]+\$")  # $ in a line of text, not $$


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    """Change the text of a page before it is read."""
    path = app.env.doc2path(docname)
    if path.suffix == ".ipynb":
        source[0] = json.dumps(for_the_site(json.loads(source[0]), path))
    elif docname == "docs/api":
        source[0] += api()
    source[0] = re.sub(r"\]\(([^)#:\s]+)\)", lambda found: to_a_page(found, path), source[0])


def for_the_site(notebook: dict, path: Path) -> dict:
    """A notebook to read: figures keep their alt text; what only a kernel can use is left out."""
    shown = [cell for cell in notebook["cells"] if cell["id"] not in ("open-in-colab", "set-up")]
    if path.parent.name == "exercises":  # not the title of the complete one
        shown[0]["source"] = re.sub(r"\A(# .*)", r"\1 (exercises)", "".join(shown[0]["source"]))
    for cell in shown:
        if cell["cell_type"] == "markdown":  # a line of a formula may begin with +: that is no list
            text = "".join(cell["source"])
            cell["source"] = FORMULA.sub(lambda found: found[0].replace("\n", " "), text)
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
            html = output.get("data", {}).get("text/html")
            if html:  # links to what a run has written lead nowhere here
                output["data"]["text/html"] = re.sub(
                    r'<a href="[^"]*\bruns/[^"]*"[^>]*>(.*?)</a>', r"\1", "".join(html)
                )
    return notebook | {"cells": shown}


def to_a_page(found: re.Match, page: Path) -> str:
    """A link to a folder leads to the first page in it."""
    folder = page.parent / found[1]
    if not folder.is_dir():
        return found[0]
    first = min(path for path in folder.iterdir() if path.suffix in (".md", ".ipynb"))
    return f"]({found[1].rstrip('/')}/{first.name})"


def formula(self, node: nodes.Element) -> None:
    """LaTeX as MathML, which browsers draw by themselves. What is no LaTeX ends the build."""
    display = isinstance(node, nodes.math_block)
    convert = LatexToMathML(fancy_error=False).convert_with_local_state
    self.body.append(convert(node.astext(), displaystyle=display))
    raise nodes.SkipNode


# ---- the package

DOCSTRINGS = {
    "docstring_style": "google",
    "docstring_options": {
        "returns_multiple_items": False,
        "returns_named_value": False,
        "warnings": False,  # one line for several parameters is our way
    },
    "filters": ["!^_"],
    "members_order": "source",
    "show_if_no_docstring": False,
    "show_signature_annotations": True,
    "heading_level": 3,
    "summary": False,
}


def api() -> str:
    """What of the package is public, module by module, in Markdown."""
    package = griffe.load(
        "ctt_helpers",
        search_paths=[str(ROOT)],
        docstring_parser="google",
        docstring_options=DOCSTRINGS["docstring_options"],
    )
    parts = []
    for name, module in ctt_helpers._MODULES.items():
        found = package[module]
        parts.append(f"## {name}\n\n{found.docstring.value if found.docstring else ''}")
        exported = ctt_helpers._EXPORTS.get(module)
        for member in exported or own_members(found):
            text = render_object_docs(found[member], DOCSTRINGS)
            short = f"ctt.{member}" if exported else f"ctt.{name}.{member}"
            for path in {found[member].path, found[member].canonical_path}:
                text = text.replace(path, short)
            parts.append(text)
    return with_links("\n\n".join(parts))


def own_members(module: griffe.Module) -> list[str]:
    """The functions and classes with a docstring that a module, or a folder's files, define."""
    names = []
    for name, member in module.members.items():
        whole = member.target_path if member.is_alias else member.canonical_path
        if name.startswith("_") or not whole.startswith(f"{module.canonical_path}."):
            continue
        if (member.is_function or member.is_class) and member.docstring:
            names.append(name)
    return names


def with_links(text: str) -> str:
    """Names of types are links where this page has them, and plain where it has not."""
    known = set(re.findall(r"^#+ `(ctt\.[\w.]+)`", text, re.MULTILINE))

    def link(found: re.Match) -> str:
        label, name = found.groups()
        return f"[{label}](#{name.lower().replace('.', '')})" if name in known else label

    return re.sub(r"\[([^\]]*)\]\(#([^)]+)\)", link, text)


def one_title(app: Sphinx, document: nodes.document) -> None:
    """Parts of a notebook that have titles as large as its own go under that."""
    first, *others = [child for child in document.children if isinstance(child, nodes.section)]
    for section in others:
        document.remove(section)
        first += section


def setup(app: Sphinx) -> None:
    app.connect("source-read", prepare)
    app.connect("doctree-read", one_title, priority=100)  # before the contents are collected
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
