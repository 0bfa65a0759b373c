"""JupyterLab in a browser: notebooks open and run, and every control of every widget works.

To test another widget, add a line to `WIDGETS`. Its notebook runs with the small parameters that it
has in `test_notebooks`. Pictures of it, and what each control took, come into runs/browser/in_lab.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from controls import Move, move_all
from driver import ROOT, SIZES, Lab, Notebook, copy_notebook
from test_notebooks import SMALL

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]

SLOWEST = 5_000  # milliseconds for an answer; a machine may be busy, and times.csv says what it was


@dataclass(frozen=True)
class Widget:
    """A widget of a notebook.

    Attributes:
        number: of the notebook.
        call: text that stands only in the cell which shows it.
        silent: names of controls that change nothing by themselves, as fields beside a button do.
        writes: an expression that the widget changes in the notebook.
        cut_off: at 800 pixels a part of it has to be scrolled to; it should not.
        opens: what the heading of the page begins with that its first link opens.
    """

    number: str
    call: str
    silent: tuple[str, ...] = ()
    writes: str | None = None
    cut_off: bool = False
    opens: str | None = None


WIDGETS = [
    Widget("02", "widgets.checkpoint_slider(", writes="triplet"),
    Widget("03", "widgets.playground("),
    Widget("04", "widgets.class_slider("),
    Widget("04", "widgets.share_triangle(", opens="Feature #"),
    Widget(
        "04",
        "widgets.feature_explorer(",
        silent=("note",),
        writes="widgets.read_notes(Path(out) / 'notes.csv')",
    ),
    Widget("05", "widgets.two_by_two("),
    Widget("05", "widgets.ablation_board("),
    Widget(
        "07",
        "widgets.annotation_form(",
        silent=("how sure", "note", "other file", "Compare"),  # the same line says what was saved
        writes="len(widgets.read_annotations(Path(out) / 'annotations.csv'))",
    ),
]
# beside what makes a notebook small elsewhere
QUICKER = {
    "04": {"n_tokens": 8_000},
    "05": {"task": "agreement/pp"},
    "07": {"task": "agreement/pp"},
}
QUICK = ("02", "04")  # whose widgets are tried in CI, too; `make test-browser` tries them all
EXERCISES = sorted((ROOT / "notebooks" / "exercises").glob("*.ipynb"))


def source_of(widget: Widget) -> Path:
    """The notebook that a student has open: the part with exercises, where there is one."""
    found = [*EXERCISES, *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    return next(
        path
        for path in found
        if path.name.startswith(widget.number) and widget.call in path.read_text(encoding="utf-8")
    )


# ---- one server, and each notebook opened and run once


@dataclass
class Opened:
    lab: Lab
    browser: Any
    notebooks: dict[str, Notebook]

    def plain(self, source: Path) -> Notebook:
        """A notebook as it is in the repository, not run."""
        path = source.relative_to(ROOT)
        target = self.lab.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        return Notebook(self.lab, self.browser, str(path))

    def ran(self, widget: Widget) -> Notebook:
        """The widget's notebook, which ran with few pairs and steps."""
        source = source_of(widget)
        if source.stem not in self.notebooks:
            path = Path("small") / source.relative_to(ROOT)
            parameters = {**SMALL[widget.number], **QUICKER.get(widget.number, {})}
            copy_notebook(source, self.lab.folder / path, **parameters)
            self.notebooks[source.stem] = Notebook(self.lab, self.browser, str(path))
            self.notebooks[source.stem].run_all()
        return self.notebooks[source.stem]


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "root").mkdir()
    # as a checkout has them: 03 shows tables that were made there
    for place in (folder / "root", folder / "root" / "small"):
        place.mkdir(exist_ok=True)
        (place / "experiments").symlink_to(ROOT / "experiments")
    (folder / "own").mkdir()
    lab = Lab(folder / "root", folder / "own")
    try:
        yield Opened(lab, browser, {})
    finally:
        lab.close()


@pytest.fixture(scope="module")
def times(shots) -> Path:
    """A table of what every control took."""
    path = shots / "times.csv"
    path.write_text("widget,control,by,milliseconds\n", encoding="utf-8")
    return path


# ---- widgets


@pytest.mark.parametrize(
    "widget",
    [
        pytest.param(
            widget,
            id=f"{widget.number}-{widget.call.strip('(')}",
            marks=() if widget.number in QUICK else pytest.mark.long,
        )
        for widget in WIDGETS
    ],
)
def test_every_control_of_a_widget_works(widget, opened, shots, times):
    """By pointer, by keyboard alone, at two widths, and without a word of complaint."""
    notebook = opened.ran(widget)
    assert notebook.errors() == []
    cell = notebook.find(widget.call)
    name = f"{widget.number}_{widget.call.strip('(').split('.')[-1]}"
    wide = look(notebook, cell, shots / name, "before")
    written = widget.writes and notebook.value(widget.writes)
    moves = move_all(notebook, cell, widget.silent)
    assert moves or widget.opens, f"no control was found under cell {cell}"
    record(times, name, moves)
    wide += look(notebook, cell, shots / name, "after")
    dead = [f"{m.control} by {m.by}" for m in moves if not m.changed]
    assert [move for move in dead if not any(f"“{s}”" in move for s in widget.silent)] == []
    if widget.writes:
        assert notebook.value(widget.writes) != written
    if widget.opens:
        assert notebook.follow(cell).startswith(widget.opens)
    assert notebook.complaints() == []
    assert notebook.watch.said == []
    assert bool(wide) == widget.cut_off, wide or "it fits now: take `cut_off` away"
    assert all(move.ms < SLOWEST for move in moves if move.changed)


def look(notebook: Notebook, cell: int, path: Path, when: str) -> list[str]:
    """Take pictures; returns what is too wide for a window of 800 pixels."""
    for width, _ in SIZES:
        notebook.photograph(cell, path.with_name(f"{path.name}_{when}_{width}.png"), width)
    notebook.resize(*SIZES[-1])
    found = notebook.too_wide([cell], widgets_only=True)
    notebook.resize(*SIZES[0])
    return found


def record(path: Path, name: str, moves: list[Move]) -> None:
    with path.open("a", newline="", encoding="utf-8") as file:
        for move in moves:
            ms = "" if math.isnan(move.ms) else round(move.ms)
            csv.writer(file).writerow([name, move.control, move.by, ms])


# ---- the harness itself: all kinds of controls, and one that does nothing

KINDS = """\
import ipywidgets as w
answer, count = w.HTML("nothing yet"), 0
def say(_):
    global count
    count += 1
    answer.value = f"answer {count}"
def controls():
    return [
        w.SelectionSlider(options=["a", "b"], value="b", description="one of two"),
        w.FloatSlider(description="any number"),
        w.Dropdown(options=["a", "b"], description="menu"),
        w.BoundedIntText(value=3, max=3, description="at its end"),
        w.Checkbox(description="tick"),
        w.Text(description="text"),
        w.Textarea(description="area"),
        w.ToggleButtons(options=["a", "b"], description="buttons"),
    ]
"""
ALIVE = """\
alive = controls()
for one in alive: one.observe(say, "value")
press = w.Button(description="press")
press.on_click(say)
w.VBox([*alive, press, answer])  # alive
"""
DEAD = """\
dead = w.Checkbox(description="no answer")
broken = w.Checkbox(description="an error")
broken.observe(lambda _: 1 / 0, "value")
w.VBox([dead, broken, w.HTML("<div style='width:2000px'>wide</div>")])  # dead
"""


LINK = """\
from IPython.display import HTML
HTML("<svg width=40><a href=page.html target=_blank><circle cx=20 cy=20 r=9 /></a></svg>")
"""


def test_a_dead_control_and_an_error_in_a_callback_are_noticed(opened, shots):
    cells = [nbformat.v4.new_code_cell(source) for source in (KINDS, ALIVE, DEAD, LINK)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(made, opened.lab.folder / "kinds.ipynb")
    (opened.lab.folder / "page.html").write_text("<h1>Feature #7</h1>", encoding="utf-8")
    notebook = Notebook(opened.lab, opened.browser, "kinds.ipynb")
    notebook.run_all()
    assert notebook.errors() == []
    cell = notebook.find("# alive")
    moves = move_all(notebook, cell)
    assert len(moves) == 2 * 9 and all(move.changed for move in moves), moves
    assert notebook.value("count") != "0" and notebook.complaints() == []
    assert look(notebook, cell, shots / "kinds", "alive") == []
    cell = notebook.find("# dead")
    moves = move_all(notebook, cell, silent=("no answer", "an error"))
    assert len(moves) == 4 and not any(move.changed for move in moves)
    assert any("ZeroDivisionError" in text for text in notebook.complaints())
    assert notebook.follow(notebook.find("page.html")) == "Feature #7"
    assert len(look(notebook, cell, shots / "kinds", "dead")) == 1
    notebook.page.evaluate("console.error('oh'); fetch('http://192.0.2.1/').catch(() => 0)")
    notebook.page.wait_for_timeout(200)
    assert "oh" in notebook.watch.said[0] and "192.0.2.1" in notebook.watch.said[1]
    notebook.close()


# ---- notebooks with exercises


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(
            path,
            id=path.name.split("_")[0],
            marks=() if path.name.startswith("01") else pytest.mark.long,
        )
        for path in EXERCISES
    ],
)
def test_an_exercise_notebook_opens_as_a_student_meets_it(source, opened, shots):
    expected = nbformat.read(source, as_version=4).cells
    notebook = opened.plain(source)
    cells = notebook.cells()
    assert [cell["source"] for cell in cells] == [cell.source for cell in expected]
    assert all(cell["count"] is None for cell in cells)
    hints = notebook.page.locator(".jp-RenderedMarkdown details")
    assert hints.count() == sum(cell.source.count("<details") for cell in expected)
    assert notebook.page.locator(".jp-RenderedMarkdown details[open]").count() == 0
    first = hints.first
    first.scroll_into_view_if_needed()
    text = first.locator("p").first
    assert not text.is_visible()
    first.locator("summary").click()
    assert text.is_visible()
    # a formula that was not set would still stand there as it is written
    assert notebook.page.locator("mjx-merror, .MathJax_Error").count() == 0
    for width, height in SIZES:
        notebook.resize(width, height)
        notebook.page.screenshot(path=shots / f"{source.stem.split('_')[0]}_exercises_{width}.png")
    assert notebook.too_wide() == []
    assert notebook.watch.said == []
    notebook.close()


@pytest.mark.long
def test_the_notebooks_that_ran(opened, shots):
    """Every error is that of a stub or its check; what is too wide at 800 pixels is listed."""
    listed = []
    for number, widget in {source_of(widget).stem: widget for widget in WIDGETS}.items():
        notebook = opened.ran(widget)
        raised = [cell["error"] for cell in notebook.cells() if cell["error"]]
        assert notebook.errors() == []
        assert all(error.startswith("NotImplementedError: ") for error in raised), raised
        notebook.resize(*SIZES[-1])
        listed += [f"{number}, {told}" for told in notebook.too_wide()]
        notebook.resize(*SIZES[0])
    # they are moved inside their own place: the page stays as it is
    assert not any("the page" in told for told in listed)
    (shots / "wide_outputs.txt").write_text("\n".join([*listed, ""]), encoding="utf-8")
