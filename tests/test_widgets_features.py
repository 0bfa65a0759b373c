"""Widgets about features and settings: what a control changes, and what stands in the file."""

import csv
import itertools
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctt_helpers.notebook import pages, widgets
from ctt_helpers.notebook.widgets import Annotation

NAMES = ["step320", "step600", "step3000"]
AT_MOST = 1.0  # seconds a callback may take here; on two idle cores they take a tenth of 0.15


def seconds(change) -> float:
    began = time.perf_counter()
    change()
    return time.perf_counter() - began


# ---- playground


@pytest.fixture
def rows() -> pd.DataFrame:
    columns = ["k", "penalty", "l0", "dead", "specific"]
    columns += [f"explained variance <{name}>" for name in "ab"]
    return pd.DataFrame(
        [
            (8, 0.0, 8.1, 0.10, 2, 0.90, 0.80),
            (8, 0.0, 7.9, 0.20, 4, 0.92, 0.82),
            (8, 0.5, 8.0, 0.25, 60, 0.70, 0.60),
            (16, 0.0, 16.0, 0.05, 6, 0.95, 0.91),
        ],
        columns=columns,
    )


def cells_of(text: str) -> list[list[str]]:
    """The cells of all rows of all tables, tags taken out."""
    table: list[list[str]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag == "tr":
                table.append([])
            if tag in ("td", "th"):
                table[-1].append("")

        def handle_data(self, data):
            if table and table[-1]:
                table[-1][-1] += data

    Reader().feed(text.rpartition("</table>")[0])
    return table


def test_playground_shows_means_and_ranges_of_the_setting(rows):
    shown = widgets.playground(rows)
    assert (shown.k.value, shown.penalty.value) == (8, 0.0)  # the one with most seeds
    cells = {row[0]: row[2:] for row in cells_of(shown.html.value)}
    assert cells["active a token (L0)"] == ["8.0 [7.9, 8.1]", ""]
    assert cells["missed at <a>, %"][0] == "9.00 [8.00, 10.00]"
    assert cells["missed at <b>, %"][0] == "19.00 [18.00, 20.00]"
    assert cells["dead, %"][0] == "15.0 [10.0, 20.0]"
    assert cells["specific by RelDec"][0] == "3 [2, 4]"
    assert "&lt;a&gt;" in shown.html.value and "<a>" not in shown.html.value


def test_playground_compares_with_the_setting_before_and_knows_what_is_missing(rows):
    shown = widgets.playground(rows)
    shown.penalty.value = 0.5
    cells = {row[0]: row[2:] for row in cells_of(shown.html.value)}
    assert cells["specific by RelDec"] == ["60", "3 [2, 4]"]
    assert "<b>now</b>: k = 8, penalty = 0.5 (one crosscoder)" in shown.html.value
    assert "<b>before</b>: k = 8, penalty = 0<" in shown.html.value
    shown.k.value = 16  # nobody trained that
    assert "Nobody trained one with k = 16, penalty = 0.5" in shown.html.value
    assert "the penalties 0." in shown.html.value
    shown.penalty.value = 0.0
    cells = {row[0]: row[2:] for row in cells_of(shown.html.value)}
    assert cells["specific by RelDec"] == ["6", "60"]


def test_playground_refuses_other_tables(rows):
    with pytest.raises(ValueError, match=r"lacks \['dead'\]"):
        widgets.playground(rows.drop(columns="dead"))
    with pytest.raises(ValueError, match="No column begins with 'explained variance '"):
        widgets.playground(rows.iloc[:, :5])
    with pytest.raises(ValueError, match="no row"):
        widgets.playground(rows.iloc[:0])
    with pytest.raises(ValueError, match=r"\['l0'\] have rows without a number"):
        widgets.playground(rows.assign(l0=np.nan))


def test_settings_are_read_from_the_tables_of_the_experiments(root):
    folder = root / "experiments" / "results"
    found = widgets.read_settings(folder)
    with open(folder / "penalty.csv", newline="", encoding="utf-8") as file:
        penalty = [row for row in csv.DictReader(file) if row["latents"] == "512"]
    with open(folder / "dictionary.csv", newline="", encoding="utf-8") as file:
        quality = [row for row in csv.DictReader(file) if row["latents"] == "512"]
    assert len(found) == len(penalty) == len(quality)
    for row in found.itertuples():
        same = [
            [r for r in table if [float(r[c]) for c in ("k", "penalty", "seed")]
             == [row.k, row.penalty, row.seed]]
            for table in (penalty, quality)
        ]  # fmt: skip
        assert [len(each) for each in same] == [1, 1]
        assert row.specific == int(same[0][0]["RelDec: specific"])
        assert row.l0 == float(same[1][0]["l0"])
        assert row.dead == pytest.approx(1 - float(same[1][0]["alive"]))
    assert len(widgets.playground(found).penalty.options) == 3
    with pytest.raises(ValueError, match=r"has 7 latents; there are \[256, 512, 1024\]"):
        widgets.read_settings(folder, 7)


def test_settings_that_are_not_there_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dictionary\.csv is not there"):
        widgets.read_settings(tmp_path)


# ---- explorer


def test_the_menu_says_which_features_lack_examples():
    ie = np.zeros((3, 6))
    ie[0] = [0, 1, 2, 3, 4, 5]
    examples = {5: [{"tokens": [" a"], "activations": [1.0]}], 4: []}
    shown = widgets.feature_explorer(ie, np.full((3, 6), 1 / 3), np.ones((3, 6)), NAMES, examples)
    assert widgets.listed_features(ie) == [5, 4, 3, 2, 1, 0]
    texts = {feature: text for text, feature in shown.dropdown.options}
    assert "no examples" not in texts[5] and "no examples" in texts[4] and "no examples" in texts[3]
    shown.number.value = 4
    assert "active nowhere in the text that was read" in shown.html.value
    shown.number.value = 3
    assert "No examples were collected for this feature" in shown.html.value


def test_examples_for_what_is_listed_are_examples_for_the_whole_menu(monkeypatch):
    monkeypatch.setattr("ctt_helpers.notebook.widgets.explorer._LISTED", 4)
    ie = np.random.default_rng(0).normal(size=(3, 9))
    ie[1, 2] = np.nan
    examples = {i: [{"tokens": [" a"], "activations": [1.0]}] for i in widgets.listed_features(ie)}
    shown = widgets.feature_explorer(ie, np.abs(ie), np.ones((3, 9)), NAMES, examples)
    assert len(shown.dropdown.options) == 4
    assert not any("no examples" in text for text, _ in shown.dropdown.options)


# ---- triangle


class Dots(HTMLParser):
    """Tag and attributes of every dot of a triangle."""

    def __init__(self, text: str):
        super().__init__()
        self.found: dict[int, tuple[str, dict[str, str]]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        own = dict(attrs)
        if "data-feature" in own:
            self.found[int(own["data-feature"])] = (tag, own)

    def place(self, feature: int) -> tuple[float, float]:
        style = dict(part.split(":") for part in self.found[feature][1]["style"].split(";"))
        return 6 * float(style["left"][:-1]), 5 * float(style["top"][:-1])  # 6 wide, 5 high


SHARES = np.array([[1, 0, 0, 1 / 3, 0.5, np.nan], [0, 1, 0, 1 / 3, 0.5, 0], [0, 0, 1, 1 / 3, 0, 1]])
STRENGTH = np.array([1.0, 2.0, 3.0, 4.0, 0.5, 9.0])


def test_the_triangle_has_its_corners_its_middle_and_no_inactive_feature():
    dots = Dots(widgets.triangle_html(SHARES, STRENGTH, NAMES))
    assert list(dots.found) == [3, 2, 1, 0, 4]  # the strongest first, and below the others
    first, second, third = (np.array(dots.place(i)) for i in range(3))
    assert first[0] < second[0] < third[0] and second[1] < first[1] == third[1]
    # all sides are as long, and shares are weights of the corners
    sides = [np.linalg.norm(a - b) for a, b in itertools.combinations((first, second, third), 2)]
    assert np.ptp(sides) < 0.1 and min(sides) > 100
    assert np.allclose(dots.place(3), (first + second + third) / 3, atol=0.1)
    assert np.allclose(dots.place(4), (first + second) / 2, atol=0.1)


def test_only_pages_that_are_there_are_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs here" / "pages"
    folder.mkdir(parents=True)
    (folder / pages.file_name(2)).write_text("page")
    (folder / pages.file_name(5)).write_text("the page of an inactive feature")
    shown = widgets.share_triangle(SHARES, STRENGTH, NAMES, pages=folder)
    dots = Dots(shown.html.value).found
    assert [i for i, (tag, _) in dots.items() if tag == "a"] == [2]
    tag, own = dots[2]
    assert own["href"] == "runs%20here/pages/feature_00002.html" and own["target"] == "_blank"
    for tag, own in dots.values():  # all can be reached by Tab, and read aloud
        assert (tag == "a" or own["tabindex"] == "0") and own["aria-label"].startswith("#")
    assert dots[4][1]["aria-label"] == "#4, step320 50%, step600 50%, step3000 0%, strength 0.5"
    monkeypatch.setitem(__import__("sys").modules, "google.colab", object())
    assert "<a " not in widgets.share_triangle(SHARES, STRENGTH, NAMES, pages=folder).html.value


def test_the_triangle_follows_its_menu_and_its_slider():
    colors = {
        "label": ["subject", "both", "both", "none", "<odd>", "none"],
        "RelDec": ["step320", "step600", "step3000", "step320", "step320", "step320"],
    }
    shown = widgets.share_triangle(SHARES, STRENGTH, NAMES, colors, labels={3: "<kept>"})
    assert "5 features." in shown.html.value and "both (2)" in shown.html.value
    assert "&lt;odd&gt;" in shown.html.value and "<odd>" not in shown.html.value
    assert "#3 &lt;kept&gt;" in shown.html.value and "<kept>" not in shown.html.value
    before = {i: own["style"] for i, (_, own) in Dots(shown.html.value).found.items()}
    shown.color.value = "RelDec"
    after = {i: own["style"] for i, (_, own) in Dots(shown.html.value).found.items()}
    assert before.keys() == after.keys() and before != after and "step320 (3)" in shown.html.value
    shown.at_least.value = 1.5
    assert set(Dots(shown.html.value).found) == {1, 2, 3} and "3 features." in shown.html.value


def test_the_triangle_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="three checkpoints, and here are 2"):
        widgets.triangle_html(SHARES[:2], STRENGTH, NAMES[:2])
    with pytest.raises(ValueError, match="for 3 checkpoints"):
        widgets.share_triangle(SHARES.T, STRENGTH, NAMES)
    with pytest.raises(ValueError, match=r"strength has shape \(5,\), and there are 6 latents"):
        widgets.share_triangle(SHARES, STRENGTH[:5], NAMES)
    with pytest.raises(ValueError, match=r"groups has shape \(2,\)"):
        widgets.share_triangle(SHARES, STRENGTH, NAMES, {"label": ["a", "b"]})


def test_a_triangle_of_thousands_draws_the_strongest_and_says_so():
    rng = np.random.default_rng(0)
    shares, strength = rng.dirichlet([1, 1, 1], 16_384).T, rng.random(16_384)
    shown = widgets.share_triangle(shares, strength, NAMES, {"x": np.full(16_384, "subject")})
    assert "the weakest 15,984 of them are not drawn" in shown.html.value
    drawn = list(Dots(shown.html.value).found)
    assert drawn == np.argsort(-strength)[:400].tolist()
    assert seconds(lambda: setattr(shown.at_least, "value", 0.2)) < AT_MOST


# ---- annotations


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
nasty = st.sampled_from(["=1+1", "+1", "-x", "@a", "\t=1", "\r=1", "'=1", "''-1", "'tis", "＝1"])


@given(note=texts | nasty | st.builds(lambda a, b: a + b, nasty, texts))
def test_a_note_reads_back_as_typed_and_is_no_formula(note, tmp_path_factory):
    folder = tmp_path_factory.mktemp("notes")
    widgets.save_note(folder / "notes.csv", 3, note)
    widgets.save_annotation(folder / "own.csv", 3, Annotation("subject", "sure", note))
    assert widgets.read_notes(folder / "notes.csv") == {3: note}
    assert widgets.read_annotations(folder / "own.csv")[3].note == note
    for name in ("notes.csv", "own.csv"):
        with open(folder / name, newline="", encoding="utf-8") as file:
            for cell in itertools.chain(*csv.reader(file)):  # as a spreadsheet gets them
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))


def test_an_older_file_of_notes_reads_as_it_was_written(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text('feature,note\n7,"plural, near"\n9,=early\n11,\'tis\n', encoding="utf-8")
    assert widgets.read_notes(path) == {7: "plural, near", 9: "=early", 11: "'tis"}
    assert widgets.read_annotations(path)[7] == Annotation(note="plural, near")
    widgets.save_annotation(path, 7, Annotation("subject", "", "plural, near"))
    assert widgets.read_annotations(path)[9] == Annotation(note="=early")
    assert path.read_text(encoding="utf-8").startswith("feature,label,confidence,note\n")


def make_form(path, **options):
    cards = {7: "<p>card of 7</p>", 4: "<p>card of 4</p>", 9: "<p>card of 9</p>"}
    return widgets.annotation_form(cards, path, **options)


def test_the_form_saves_each_change_and_reloads(tmp_path):
    path = tmp_path / "sub" / "own.csv"
    form = make_form(path)
    assert form.html.value == "<p>card of 7</p>" and not path.exists()  # to look saves nothing
    for typed in ("p", "pl", "plural"):
        form.note.value = typed
        assert widgets.read_annotations(path) == {7: Annotation(note=typed)}
    form.label.value, form.confidence.value = "subject", "sure"
    assert "1 of 3 features annotated" in form.status.value
    form.feature.value = 4
    assert (form.label.value, form.confidence.value, form.note.value) == ("", "", "")
    assert form.html.value == "<p>card of 4</p>" and set(widgets.read_annotations(path)) == {7}
    form.label.value = "none"
    widgets.save_annotation(path, 9, Annotation("both", "", "by another window"))
    form.note.value = "nothing"
    again = make_form(path)
    assert again.label.value == "subject" and again.note.value == "plural"
    assert again.confidence.value == "sure" and "3 of 3" in again.status.value
    again.feature.value = 9
    assert again.note.value == "by another window"
    again.label.value, again.note.value = "", ""  # taken back
    assert set(widgets.read_annotations(path)) == {7, 4}
    assert [file.name for file in path.parent.iterdir()] == ["own.csv"]


def test_what_arrives_late_goes_to_the_feature_that_it_was_typed_for(tmp_path):
    """A front end that is still sending what was typed when the next feature is chosen."""
    form = make_form(tmp_path / "own.csv")
    typed_in = form.note
    typed_in.value = "plur"
    form.feature.value = 4
    typed_in.value = "plural"
    assert widgets.read_annotations(tmp_path / "own.csv") == {7: Annotation(note="plural")}
    assert form.note.value == ""


def test_a_word_of_the_file_that_the_menu_lacks_is_kept(tmp_path):
    path = tmp_path / "own.csv"
    widgets.save_annotation(path, 7, Annotation("tense", "50 %", ""))
    form = make_form(path)
    assert (form.label.value, form.confidence.value) == ("tense", "50 %")
    form.note.value = "x"
    assert widgets.read_annotations(path)[7] == Annotation("tense", "50 %", "x")


@pytest.mark.parametrize(
    "content",
    ["", "a,b\n1,2\n", "feature,label,confidence,note\n7,subject\n", "feature,note\n7,a\n7,b\n"],
)
def test_a_file_that_is_something_else_is_told_and_left_alone(tmp_path, content):
    path = tmp_path / "own.csv"
    path.write_text(content)
    form = make_form(path)
    assert "is not a table of annotations" in form.status.value
    form.note.value = "new"
    assert "is not a table of annotations" in form.status.value and path.read_text() == content
    with pytest.raises(ValueError, match="is not a table of annotations"):
        widgets.save_annotations(path, {})
    assert path.read_text() == content


def said(*labels: str) -> dict[int, Annotation]:
    return {i: Annotation(label) for i, label in enumerate(labels)}


def test_kappa_of_a_table_worked_out_by_hand():
    """20 both yes, 15 both no, 5 yes-no, 10 no-yes: 0.7 alike, 0.5 by chance, so 0.2 / 0.5."""
    first = said(*["yes"] * 25, *["no"] * 25)
    second = said(*["yes"] * 20, *["no"] * 5, *["yes"] * 10, *["no"] * 15)
    found = widgets.agreement(first, second)
    assert (found.both, found.same) == (50, 35) and found.kappa == pytest.approx(0.4)
    assert "35 of 50 features alike (70%); Cohen's kappa 0.40" in str(found)
    # one feature more that only the second has said something about changes nothing but the count
    more = widgets.agreement(first | {99: Annotation()}, second | {99: Annotation("yes")})
    assert (more.both, more.kappa, more.first_only, more.second_only) == (50, found.kappa, 0, 1)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30))
def test_kappa_is_agreement_beyond_that_of_shuffled_words(words):
    """Independent: chance is how often a word of one meets the same of the other, over all pairs
    of features, their own and others'.
    """
    one, two = zip(*words, strict=True)
    found = widgets.agreement(said(*one), said(*two))
    chance = np.mean([a == b for a, b in itertools.product(one, two)])
    alike = np.mean([a == b for a, b in words])
    if chance == 1:
        assert np.isnan(found.kappa) and "does not exist" in str(found)
    else:
        assert found.kappa == pytest.approx((alike - chance) / (1 - chance))
    assert found.kappa <= 1 or np.isnan(found.kappa)


def test_only_what_both_said_is_compared():
    first = {1: Annotation("a", "sure"), 2: Annotation("b"), 3: Annotation(note="x")}
    second = {1: Annotation("a"), 3: Annotation("a"), 4: Annotation("b", "sure")}
    found = widgets.agreement(first, second)
    assert (found.both, found.first_only, found.second_only) == (1, 1, 2)
    assert "no feature has one by both" in str(widgets.agreement(first, second, "confidence"))
    with pytest.raises(ValueError, match="take 'label' or 'confidence'"):
        widgets.agreement(first, second, "note")


def test_the_form_compares_and_merges(tmp_path):
    first, second = tmp_path / "ann.csv", tmp_path / "<ben>.csv"
    own = {7: Annotation("subject", "sure", "=a"), 4: Annotation("none"), 5: Annotation("none")}
    other = {7: Annotation("subject"), 4: Annotation("both", "", "<i>"), 8: Annotation("mixed")}
    widgets.save_annotations(first, own)
    widgets.save_annotations(second, other)
    form = make_form(first)
    form.compare.click()
    assert "There is no file &#x27;&#x27;" in form.compared.value
    form.other.value = str(first)
    form.compare.click()
    assert "This is your own file" in form.compared.value
    form.other.value = str(second)
    form.compare.click()
    told = form.compared.value
    assert "1 of 2 features alike (50%)" in told and "1 only by the first, 1 only by" in told
    assert "<td>#4</td>" in told and "<td>#7</td>" not in told and "<td>#8</td>" not in told
    assert "&lt;i&gt;" in told and "<ben>" not in told
    table = pd.read_csv(tmp_path / "ann_merged.csv", index_col="feature", keep_default_na=False)
    assert list(table.index) == [4, 5, 7, 8]
    assert table.loc[4, "<ben> label"] == "both" and table.loc[8, "ann label"] == ""
    assert table.loc[7, "ann note"] == "'=a"  # no formula
    assert widgets.merged({"a": own, "b": other}).loc[7, ("a", "note")] == "=a"
    assert widgets.read_annotations(first) == own and widgets.read_annotations(second) == other


def test_the_form_refuses_what_cannot_be_chosen(tmp_path):
    with pytest.raises(ValueError, match="nothing to annotate"):
        widgets.annotation_form({}, tmp_path / "a.csv")
    for labels in (["a", "a"], ["", "a"], "ab"):
        with pytest.raises(ValueError, match=r"a list of (different words|texts)"):
            make_form(tmp_path / "a.csv", labels=labels)


# ---- all of them


def all_widgets(folder, rows) -> list:
    ie = np.ones((3, 6))
    return [
        widgets.playground(rows),
        widgets.share_triangle(SHARES, STRENGTH, NAMES, {"label": ["a"] * 6}),
        make_form(folder / "own.csv"),
        widgets.feature_explorer(ie, ie / 3, ie, NAMES, {}),
    ]


def kinds(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from kinds(child)


def test_controls_are_native_have_names_and_hang_nothing(tmp_path, rows):
    native = {
        "Dropdown", "SelectionSlider", "FloatLogSlider", "Text", "IntText", "Button",
        "HTML", "HBox", "VBox",
    }  # fmt: skip
    for shown in all_widgets(tmp_path, rows):
        for part in kinds(shown.widget):
            assert type(part).__name__ in native
            if hasattr(part, "value") and type(part).__name__ != "HTML":
                assert part.description


def test_each_answers_at_once(tmp_path, rows):
    play, triangle, form, explorer = all_widgets(tmp_path, rows)
    widgets.save_annotations(tmp_path / "own.csv", {i: Annotation("a") for i in range(1000)})
    changes = [
        lambda: setattr(play.penalty, "value", 0.5),
        lambda: setattr(triangle.at_least, "value", 2.0),
        lambda: setattr(form.note, "value", "typed"),
        lambda: setattr(form.feature, "value", 4),
        lambda: setattr(explorer.number, "value", 2),
    ]
    for change in changes:
        assert seconds(change) < AT_MOST
