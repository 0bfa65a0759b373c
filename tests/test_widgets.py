"""Widgets: callbacks change the content, and the same content stands without a kernel."""

import numpy as np
import pandas as pd
import pytest

from ctt_helpers.notebook import widgets

NAMES = ["step256", "step700", "step3000"]


@pytest.fixture
def curve() -> pd.DataFrame:
    rows = [
        (name, int(name[4:]) * 512, task, accuracy, 0.02, 300)
        for task, values in (("simple", (0.62, 1.0, 1.0)), ("<pp>", (0.4, 0.76, 1.0)))
        for name, accuracy in zip(NAMES, values, strict=True)
    ]
    return pd.DataFrame(
        rows, columns=["revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs"]
    )


@pytest.fixture
def sim() -> pd.DataFrame:
    return pd.DataFrame([[1, 0.7, 0.3], [0.7, 1, 0.5], [0.3, 0.5, 1]], index=NAMES, columns=NAMES)


def make_arrays(n: int = 3, h: int = 10):
    ie = np.zeros((n, h))
    ie[:, 4], ie[0, 7], ie[-1, 7] = 0.2, -3.0, 1.5
    with np.errstate(invalid="ignore"):
        rel = np.abs(ie) / np.abs(ie).sum(0)
    return ie, rel, np.linspace(0.5, 1, n * h).reshape(n, h)


def make_explorer(path=None, n: int = 3, **options):
    examples = {7: [{"tokens": ["<s>", " cats"], "activations": [0.0, 2.5]}]}
    names = [f"c{i}" for i in range(n)]
    return widgets.feature_explorer(
        *make_arrays(n), names, examples, annotations_path=path, **options
    )


def test_checkpoint_table_says_all_of_it(curve, sim):
    text = widgets.checkpoint_table_html(curve, sim, "step700")
    for part in (
        "358,400 tokens",
        "&lt;pp&gt;",
        "0.76 &plusmn; 0.02",
        "300",
        "step256",
        "0.700",
        "0.500",
    ):
        assert part in text
    assert "1.000" not in text  # no similarity with itself


def test_checkpoint_table_reads_a_lower_triangle(curve, sim):
    lower = sim.where(np.tril(np.ones((3, 3), dtype=bool)))
    for name in NAMES:
        assert widgets.checkpoint_table_html(curve, lower, name) == widgets.checkpoint_table_html(
            curve, sim, name
        )


def test_checkpoint_table_without_similarity_or_with_an_unknown_name(curve, sim):
    assert "No similarity" in widgets.checkpoint_table_html(curve, sim.iloc[:2, :2], "step3000")
    with pytest.raises(ValueError, match=r"no checkpoint 'step70'.*'step700'"):
        widgets.checkpoint_table_html(curve, sim, "step70")


def test_slider_changes_what_is_shown(curve, sim):
    shown = widgets.checkpoint_slider(curve.iloc[::-1], sim)
    assert [value for _, value in shown.slider.options] == NAMES
    assert shown.slider.value == "step3000"
    for name in NAMES:
        shown.slider.value = name
        assert shown.html.value == widgets.checkpoint_table_html(curve.iloc[::-1], sim, name)
    with pytest.raises(ValueError, match="no rows"):
        widgets.checkpoint_slider(curve.iloc[:0], sim)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_feature_card_has_every_number(n):
    ie, rel, norms = make_arrays(n)
    promoted = [[(" <are>", 1.25)]] * n
    names = [f"c{i}" for i in range(n)]
    examples = [{"tokens": [" x"], "activations": [1.0]}]
    text = widgets.feature_card_html(7, ie, rel, norms, names, examples, promoted, "a<b")
    for part in (
        "Feature #7: a&lt;b",
        "-3.000",
        "+1.500",
        "0.67",
        "0.33",
        f"{norms[0, 7]:.3f}",
        "&lt;are&gt; (+1.25)",
    ):
        assert part in text
    assert all(f"<b>{name}</b>" in text for name in names)


def test_feature_card_takes_the_table_of_promoted_tokens():
    rows = [
        (name, kind, 1, f" {kind}{i}", score)
        for i, name in enumerate(NAMES)
        for kind, score in (("suppressed", -2.0), ("promoted", 3.0))
    ]
    table = pd.DataFrame(rows, columns=["checkpoint", "kind", "rank", "token", "score"])
    text = widgets.feature_card_html(7, *make_arrays(), NAMES, promoted=table)
    for i in range(3):
        likelier, less_likely = f" promoted{i} (+3.00)</td>", f" suppressed{i} (-2.00)</td>"
        assert text.index(likelier) < text.index(less_likely)


def test_feature_card_of_an_inactive_feature_says_so():
    ie, rel, norms = make_arrays()
    text = widgets.feature_card_html(0, ie, rel, norms, NAMES)
    assert text.count("inactive") == 3 and "nan" not in text and "No examples" in text


def test_explorer_lists_the_strongest_first_and_follows_menu_and_number():
    shown = make_explorer(labels={4: "plural"})
    assert [value for _, value in shown.dropdown.options][:2] == [7, 4]
    assert "Feature #7" in shown.html.value and "&lt;s&gt;" in shown.html.value
    shown.dropdown.value = 4
    assert (
        shown.number.value == 4
        and "Feature #4: plural" in shown.html.value
        and "cats" not in shown.html.value
    )
    shown.number.value = 7
    assert shown.dropdown.value == 7 and "cats" in shown.html.value


@pytest.mark.parametrize("number", [10, -1])
def test_explorer_explains_an_unknown_feature_and_recovers(number, tmp_path):
    shown = make_explorer(tmp_path / "notes.csv")
    shown.number.value = number
    assert f"There is no feature {number}" in shown.html.value and "0 to 9" in shown.html.value
    assert shown.dropdown.value is None
    shown.keep()
    assert shown.save.disabled and not (tmp_path / "notes.csv").exists()
    shown.dropdown.value = 4
    assert "Feature #4" in shown.html.value and not shown.save.disabled


def test_explorer_reaches_features_that_the_menu_leaves_out(monkeypatch):
    monkeypatch.setattr("ctt_helpers.notebook.widgets.explorer._LISTED", 2)
    shown = make_explorer()
    assert len(shown.dropdown.options) == 2
    shown.number.value = 9
    assert shown.dropdown.value is None and "Feature #9" in shown.html.value


def test_notes_are_kept_replaced_and_shown_again(tmp_path):
    path = tmp_path / "sub" / "notes.csv"
    shown = make_explorer(path)
    shown.note.value = 'plural, "near"\u2026'
    shown.save.click()
    assert "Saved" in shown.status.value
    shown.number.value = 4
    assert shown.note.value == "" and shown.status.value == ""
    shown.note.value = "first"
    shown.save.click()
    widgets.save_note(path, 2, "written by another window")
    shown.note.value = "second"
    shown.save.click()
    expected = {2: "written by another window", 4: "second", 7: 'plural, "near"\u2026'}
    assert widgets.read_notes(path) == expected
    assert pd.read_csv(path)["feature"].tolist() == [2, 4, 7]
    assert make_explorer(path).note.value == expected[7]
    assert [file.name for file in path.parent.iterdir()] == ["notes.csv"]


@pytest.mark.parametrize(
    "content",
    [
        "something,else\n1,2\n",
        "feature,note\nseven,x\n",
        "feature,note,by\n7,x,me\n",
        "",
        "feature,note\n7\n1,2,3\nx\n",
    ],
)
def test_a_broken_file_of_notes_is_told_and_left_alone(tmp_path, content):
    path = tmp_path / "notes.csv"
    path.write_text(content)
    shown = make_explorer(path)
    assert "Feature #7" in shown.html.value and "is not a table of notes" in shown.status.value
    shown.note.value = "new"
    shown.save.click()
    assert "is not a table of notes" in shown.status.value and path.read_text() == content


def test_arrays_of_different_crosscoders_are_refused():
    ie, rel, norms = make_arrays()
    with pytest.raises(ValueError, match="differ in shape"):
        widgets.feature_explorer(ie, rel, norms[:, :5], NAMES, {})
    with pytest.raises(ValueError, match="for 2 checkpoints"):
        widgets.feature_explorer(ie, rel, norms, NAMES[:2], {})


def test_both_display_as_their_widget(monkeypatch, curve, sim):
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    shown = [widgets.checkpoint_slider(curve, sim), make_explorer()]
    for each in shown:
        each._ipython_display_()
    assert displayed == [each.widget for each in shown]


def test_no_widget_that_hangs_papermill():
    def kinds(widget):
        yield type(widget).__name__
        for child in getattr(widget, "children", ()):
            yield from kinds(child)

    found = set(kinds(make_explorer("notes.csv").widget))
    assert {"Dropdown", "IntText", "HTML", "Text", "Button"} <= found
    assert not found & {"Output", "interactive"}


def test_tokens_html_escapes_and_scales():
    text = widgets.tokens_html(["<b>", " & co", "\n", " x"], [1.0, 2.0, 0.0, float("nan")])
    assert "&lt;b&gt;" in text and " &amp; co" in text and "\u21b5" in text
    assert "<b> &amp; co</b>" in text and 'title="2.000"' in text and "rgba(213,94,0,0.75)" in text
    assert text.count("rgba(213,94,0,0.00)") == 2
    assert "rgba(213,94,0,0.38)" in widgets.tokens_html(["a"], [1.0], max_activation=2.0)
    with pytest.raises(ValueError, match="2 tokens and 1 activations"):
        widgets.tokens_html(["a", "b"], [1.0])


def test_examples_html_share_one_scale():
    examples = [
        {"tokens": ["a"], "activations": [4.0], "where": "<train>", "value": 4.0},
        {"tokens": ["b"], "activations": [1.0]},
    ]
    text = widgets.examples_html(examples)
    assert "rgba(213,94,0,0.75)" in text and "rgba(213,94,0,0.19)" in text
    assert "where: &lt;train&gt;" in text and ">4.00</td>" in text and "value" not in text
    assert "No examples" in widgets.examples_html([])
