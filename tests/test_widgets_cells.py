"""Widgets over precomputed answers: subsets of features, classes, a triplet to pick.

The answers are compared with one plain ablation for each subset, the counts with `classify`.
"""

import itertools
import re
import time

import numpy as np
import pandas as pd
import pytest
import torch
from models import random_suite, some_pairs, word_tokenizer
from test_effects import make_crosscoder, metric, parts

import ctt_helpers as ctt
from ctt_helpers.effects import Subsets
from ctt_helpers.notebook import widgets

NAMES = ["early", "<mid>", "late"]
CELLS = ["sg-sg", "sg-pl", "pl-sg", "pl-pl"]
AT_MOST = 0.15 * 4  # seconds: the limit is 0.15, and tests may run beside others

# ---- every subset of a few latents


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Random checkpoints in float64, a random crosscoder, pairs of different lengths."""
    suite = random_suite(tmp_path_factory.mktemp("suite"))
    ckpts = suite.checkpoints(device="cpu", dtype=torch.float64)
    return ckpts, make_crosscoder(ckpts), some_pairs(9)


def some_active(crosscoder, ckpts, pairs, m: int) -> list[int]:
    """Latents of which some are active in some pairs only, the last one in none."""
    _, f, *_ = parts(ckpts, crosscoder, pairs)
    often = (f > 0).any(1).sum(0)  # [latents] in how many pairs
    ranked = often.argsort(descending=True).tolist()
    seldom = [i for i in ranked if 0 < often[i] < len(pairs)]
    never = [i for i in ranked if often[i] == 0]
    assert seldom
    return [*ranked[: m - 2], seldom[-1], (never or ranked[::-1])[0]]


def test_every_subset_is_the_ablation_of_its_latents(setting):
    """Against a plain forward pass with a hook, for each subset, checkpoint and pair."""
    ckpts, crosscoder, pairs = setting
    features = some_active(crosscoder, ckpts, pairs, 4)
    found = ctt.ablate_subsets(crosscoder, ckpts, pairs, features, batch_size=4)
    assert found.lead.shape == (3, 16, len(pairs)) and found.names == ckpts.labels
    x, f, _, W_dec, _ = parts(ckpts, crosscoder, pairs)
    sizes = range(len(features) + 1)
    for off in itertools.chain(*(itertools.combinations(features, n) for n in sizes)):
        for c, model in enumerate(ckpts):
            # all that the others write, and what no latent writes, stays
            removed = f[..., list(off)] @ W_dec[list(off), c]
            lead = -metric(model, pairs, x[:, :, c] - removed)
            np.testing.assert_allclose(found.without(off)[c], lead, atol=1e-9)
    alone = ctt.ablate(crosscoder, ckpts, pairs, features[:2])
    means = found.without(features[:2]).mean(1)
    np.testing.assert_allclose(means, alone["logit_difference_after"], atol=1e-9)
    means = found.without([]).mean(1)
    np.testing.assert_allclose(means, alone["logit_difference_before"], atol=1e-9)
    # the test would not see a mistake in the numbering if the subsets were alike
    assert len({round(float(found.lead[0, s].sum()), 9) for s in range(16)}) >= 8


def test_subsets_do_not_depend_on_the_batch(setting):
    ckpts, crosscoder, pairs = setting
    features = some_active(crosscoder, ckpts, pairs, 3)
    one = ctt.ablate_subsets(crosscoder, ckpts, pairs, features)
    other = ctt.ablate_subsets(crosscoder, ckpts, pairs, features, batch_size=2)
    np.testing.assert_allclose(one.lead, other.lead, atol=1e-9)


@pytest.mark.parametrize(
    ("features", "told"),
    [
        ([], "0 latents"),
        ([1, 2, 1], "3 latents, 2 of them different"),
        (list(range(11)), "give 1 to 10"),
        ([48], "There is no feature 48"),
    ],
)
def test_subsets_of_what_is_not_there_are_refused(setting, features, told):
    ckpts, crosscoder, pairs = setting
    with pytest.raises(ValueError, match=told):
        ctt.ablate_subsets(crosscoder, ckpts, pairs, features)
    given = Subsets(features=[4, 7], names=["a"], lead=np.zeros((1, 4, 2)))
    with pytest.raises(ValueError, match="Feature 5 is not among"):
        given.without([4, 5])


# ---- the four cells, and the board


def crossed_pairs():
    """Two pairs in each cell; the neighbour is crossed with the subject."""
    rows = []
    for cell in CELLS:
        subject, attractor = cell.split("-")
        for word in ("red", "old"):
            noun, verb = ("dogs", "run") if subject == "pl" else ("dog", "runs")
            near = "cats" if attractor == "pl" else "cat"
            rows.append(
                {
                    "prefix": f"the {word} {noun} near the {near}",
                    "right": f" {verb}",
                    "wrong": " runs" if verb == "run" else " run",
                    "subject_level": subject,
                    "attractor_level": attractor,
                }
            )
    return ctt.make_pairs(rows, word_tokenizer(), name="crossed")


@pytest.fixture(scope="module")
def pairs():
    return crossed_pairs()


@pytest.fixture(scope="module")
def subsets() -> Subsets:
    """A lead for each checkpoint, subset and pair, all of them different."""
    lead = np.random.default_rng(0).normal(size=(3, 8, 8))
    return Subsets(features=[11, 22, 33], names=NAMES, lead=lead)


def cell_of(text: str, row: int, column: int) -> str:
    """The text of a cell of the 2 x 2."""
    inner = text[text.index("<tr>", text.index("<table")) : text.rindex("</table>")]
    rows = inner.split('<tr><th style="padding-right:12px">subject ')[1:]
    return rows[row].split('<td style="text-align:left">')[column + 1]


def test_the_four_cells_show_their_own_pairs(subsets, pairs):
    shown = widgets.two_by_two(subsets, pairs, "late")
    shown.boxes[11].value = True
    shown.boxes[33].value = True
    assert shown.off == [11, 33]
    now, before = subsets.lead[2, 0b101], subsets.lead[2, 0]
    for k, cell in enumerate(CELLS):
        mine = pairs.cells == cell
        text = cell_of(shown.html.value, k // 2, k % 2)
        assert f"lead: <b>{now[mine].mean():+.2f}</b> (was {before[mine].mean():+.2f})" in text
        right = f"<b>{(now[mine] > 0).mean():.2f}</b> (was {(before[mine] > 0).mean():.2f})"
        assert right in text
    assert "without #11, #33" in shown.html.value
    shown.boxes[11].value = shown.boxes[33].value = False
    shown.slider.value = "<mid>"
    assert shown.html.value == widgets.two_by_two_html(subsets, pairs, "<mid>")
    assert "&lt;mid&gt;" in shown.html.value and "<mid>" not in shown.html.value


def test_the_board_shows_each_checkpoint_and_cell_and_the_sum_of_effects(subsets, pairs):
    shown = widgets.ablation_board(subsets, pairs)
    for feature in (22, 33):
        shown.boxes[feature].value = True
    now, before = subsets.lead[:, 0b110], subsets.lead[:, 0]
    added = subsets.lead[:, 0b010] + subsets.lead[:, 0b100] - before
    rows = shown.html.value.split("<tr>")[2:]
    assert len(rows) == 12
    for row, (c, cell) in zip(
        rows, itertools.product(range(3), ["pl-pl", "sg-sg", "pl-sg", "sg-pl"]), strict=True
    ):
        mine = pairs.cells == cell
        numbers = [
            f"{(now[c, mine] > 0).mean():.2f}",
            f"{(before[c, mine] > 0).mean():.2f}",
            f"<b>{now[c, mine].mean():+.2f}</b>",
            f"{before[c, mine].mean():+.2f}",
            f"{added[c, mine].mean():+.2f}",
        ]
        shown_numbers = re.findall(r'<td style="padding-right:12px">(.*?)</td>', row)
        assert f">{cell}</td>" in row and shown_numbers == numbers
    assert "&lt;mid&gt;" in shown.html.value and "<mid>" not in shown.html.value
    for box in shown.boxes.values():
        box.value = False
    assert shown.html.value == widgets.ablation_board_html(subsets, pairs)
    assert "all features on" in shown.html.value


def test_without_cells_the_board_has_a_row_a_checkpoint():
    pairs = some_pairs(5)
    given = Subsets(features=[1], names=NAMES, lead=np.ones((3, 2, 5)))
    text = widgets.ablation_board_html(given, pairs, [1])
    assert text.count("all pairs") == 3
    with pytest.raises(ValueError, match="four cells take two of the subject"):
        widgets.two_by_two(given, pairs)


def test_what_does_not_belong_together_is_refused(subsets, pairs):
    for widget in (widgets.two_by_two, widgets.ablation_board):
        with pytest.raises(ValueError, match="give the pairs that ablate_subsets was given"):
            widget(subsets, pairs[:6])
    with pytest.raises(ValueError, match=r"no checkpoint 'mid'.*'<mid>'"):
        widgets.two_by_two(subsets, pairs, "mid")
    with pytest.raises(ValueError, match="Feature 12 is not among"):
        widgets.ablation_board_html(subsets, pairs, [12])


# ---- classes


def some_ratios(n: int = 3, latents: int = 60, seed: int = 0) -> np.ndarray:
    ratios = np.random.default_rng(seed).dirichlet(np.full(n, 0.6), latents).T
    ratios[:, ::7] = np.nan
    return ratios


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("bounds", [(0.7, 0.3), (0.5, 0.5), (0.95, 0.05)])
def test_classes_are_counted_as_classify_sorts_them(n, bounds):
    names, ratios = NAMES[:n], some_ratios(n)
    counts = widgets.class_counts({"RelIE": ratios}, names, *bounds)["RelIE"]
    sorted_ = ctt.classify(ratios, names, *bounds)
    sorted_ = sorted_[sorted_["label"] != "inactive"]
    joined = sorted_["members"].map(" + ".join)
    for kind, count in counts.items():
        prefix, _, who = kind.rpartition(" to " if "specific" in kind else " by ")
        label = prefix or "other"
        mine = (sorted_["label"] == label) & (joined == ("" if kind == "other" else who))
        assert count == mine.sum(), kind
    assert counts.sum() == len(sorted_) and len(counts) == 2**n


def test_the_sliders_recount(monkeypatch):
    shares = {"RelIE": some_ratios(), "<random>": some_ratios(seed=1, latents=30)}
    shown = widgets.class_slider(shares, NAMES)
    assert shown.html.value == widgets.class_table_html(shares, NAMES, 0.7, 0.3)
    seen = {shown.html.value}
    for slider, value in ((shown.specific, 0.5), (shown.specific, 0.9), (shown.shared, 0.1)):
        slider.value = value
        expected = widgets.class_table_html(shares, NAMES, shown.specific.value, shown.shared.value)
        assert shown.html.value == expected
        seen.add(shown.html.value)
    assert len(seen) == 4  # each move changed something
    shown.specific.value = 0.7000000000000001  # as a browser counts
    assert "above 0.70" in shown.html.value
    counts = widgets.class_counts(shares, NAMES, 0.7, 0.1)
    text = shown.html.value
    for what, total in counts.sum().items():
        specific = counts[what][counts.index.str.startswith("specific")].sum()
        part = f"{specific / total:.0%}"
        assert f"<b>{specific} ({part})</b>" in shown.html.value and f", {total}</th>" in text
    assert "&lt;random&gt;" in shown.html.value and "<random>" not in shown.html.value
    assert "&lt;mid&gt;" in shown.html.value and "<mid>" not in shown.html.value


def test_nothing_active_is_no_division_by_zero():
    text = widgets.class_table_html({"RelIE": np.full((3, 4), np.nan)}, NAMES)
    assert "RelIE, 0</th>" in text and "<b>0 (0%)</b>" in text and "nan" not in text


@pytest.mark.parametrize(
    ("shares", "names", "bounds", "told"),
    [
        ({}, NAMES, (0.7, 0.3), "nothing to count"),
        ({"RelIE": some_ratios(3)}, NAMES[:2], (0.7, 0.3), "2 names"),
        ({"RelIE": np.ones((3, 4))}, NAMES, (0.7, 0.3), "must be shares that add up to 1"),
        ({"RelIE": some_ratios(4)}, [*NAMES, "last"], (0.7, 0.3), "two or three checkpoints"),
        ({"RelIE": some_ratios()}, NAMES, (0.97, 0.3), "the sliders reach from 0.5 to 0.95"),
        ({"RelIE": some_ratios()}, NAMES, (0.4, 0.3), "take 0 < shared <= 0.5 <= specific < 1"),
    ],
)
def test_other_shares_and_bounds_are_refused(shares, names, bounds, told):
    with pytest.raises(ValueError, match=told):
        widgets.class_slider(shares, names, *bounds)


# ---- a triplet to pick

STEPS = ["step0", "step1", "step2", "step3", "step4"]


@pytest.fixture
def curve() -> pd.DataFrame:
    """Two tasks; nothing is away from chance at step0."""
    rows = []
    for task, values in (("plain", (0.5, 0.7, 0.8, 1, 1)), ("<pp>", (0.5, 0.2, 0.4, 0.4, 1))):
        for i, value in enumerate(values):
            rows.append((STEPS[i], 1000 * i, task, value, 0.02, 100))
    columns = ["revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def sim() -> pd.DataFrame:
    away = np.abs(np.subtract.outer(range(5), range(5)))
    return pd.DataFrame(1 - 0.1 * away, index=STEPS, columns=STEPS)


def test_a_choice_is_written_into_the_list_of_the_notebook(curve, sim):
    triplet, told = ["step1", "step2", "step4"], []
    shown = widgets.checkpoint_slider(curve, sim, into=triplet, on_choice=told.append)
    assert [menu.value for menu in shown.picker.menus] == triplet and told == []
    same_list = triplet
    shown.picker.menus[1].value = "step3"
    assert same_list == ["step1", "step3", "step4"] == shown.choice
    assert told == [["step1", "step3", "step4"]]
    told[0].clear()  # what others do with theirs changes nothing here
    assert shown.choice == ["step1", "step3", "step4"]


def test_what_is_not_in_order_is_not_taken(curve, sim):
    triplet = ["step1", "step2", "step4"]
    shown = widgets.checkpoint_slider(curve, sim, into=triplet)
    for place, value in ((0, "step3"), (0, "step2")):
        shown.picker.menus[place].value = value
        assert triplet == ["step1", "step2", "step4"] == shown.choice
        assert "Not taken" in shown.picker.line.value
    shown.picker.menus[1].value = "step3"
    assert triplet == ["step2", "step3", "step4"]
    assert "Not taken" not in shown.picker.line.value


def test_an_empty_list_takes_what_the_rule_says(curve, sim):
    triplet = []
    shown = widgets.checkpoint_slider(curve, sim, into=triplet)
    assert triplet == ctt.suggest_triplet(curve, sim).revisions
    assert "number 1 of" in shown.picker.line.value


def test_the_line_says_what_the_rule_makes_of_each_choice(curve, sim):
    shown = widgets.checkpoint_slider(curve, sim, into=[])
    ranked = ctt.suggest_triplet(curve, sim).table
    assert len(ranked) == 3
    for place, row in enumerate(ranked.itertuples(), 1):
        for menu, value in zip(shown.picker.menus, (row.first, row.middle, row.last), strict=True):
            menu.value = value
        text = shown.picker.line.value
        assert f"number {place} of 3" in text
        assert f"to the middle {row.accuracy_1 + row.activation_1:.2f}" in text
        assert f"to the last {row.accuracy_2 + row.activation_2:.2f}" in text
        assert f"counts, {row.score:.2f}" in text
    shown.picker.menus[0].value = "step0"
    assert "would not begin at step0" in shown.picker.line.value
    assert shown.choice[0] == "step0"  # it is said, and not forbidden


def test_another_end_is_judged_by_itself(curve, sim):
    shown = widgets.checkpoint_slider(curve, sim, into=["step1", "step2", "step3"])
    text = shown.picker.line.value
    # by hand: plain 0.1 and <pp> 0.2, a mean of 0.15, and activations 0.1; then 0.2 and 0, and 0.1
    assert "to the middle 0.25" in text and "to the last 0.20" in text and "counts, 0.20" in text
    assert "would end at step4" in text


def test_one_triangle_is_enough_and_a_lacking_similarity_is_told(curve, sim):
    lower = sim.where(np.tril(np.ones((5, 5), dtype=bool)))
    shown = widgets.checkpoint_slider(curve, lower, into=["step1", "step2", "step4"])
    whole = widgets.checkpoint_slider(curve, sim, into=["step1", "step2", "step4"])
    assert shown.picker.line.value == whole.picker.line.value
    some = sim.drop(index="step2", columns="step2")
    shown = widgets.checkpoint_slider(curve, some, into=["step1", "step2", "step4"])
    assert "no similarity of step2" in shown.picker.line.value
    few = sim.iloc[:2, :2]
    shown = widgets.checkpoint_slider(curve, few, into=[])
    assert "needs three revisions" in shown.picker.line.value
    assert shown.choice == ["step0", "step2", "step4"]


def test_an_error_of_ones_own_function_is_shown(curve, sim):
    def broken(_choice):
        raise KeyError("<b>nothing</b>")

    triplet = ["step1", "step2", "step4"]
    shown = widgets.checkpoint_slider(curve, sim, into=triplet, on_choice=broken)
    shown.picker.menus[1].value = "step3"
    assert "on_choice failed" in shown.picker.line.value
    assert "&lt;b&gt;nothing" in shown.picker.line.value and "<b>nothing" not in shown.html.value
    assert triplet == ["step1", "step3", "step4"]


@pytest.mark.parametrize(
    ("into", "told"),
    [
        (("step1", "step2", "step4"), "into is a tuple: give a list"),
        (["step1", "step2"], "three checkpoints in the order of training"),
        (["step2", "step1", "step4"], "three checkpoints in the order of training"),
        (["step1", "step1", "step4"], "three checkpoints in the order of training"),
        (["step1", "step9", "step4"], "no checkpoint 'step9'"),
    ],
)
def test_a_list_that_holds_something_else_is_refused(curve, sim, into, told):
    with pytest.raises(ValueError, match=told):
        widgets.checkpoint_slider(curve, sim, into=into)


def test_three_of_two_cannot_be_picked(curve, sim):
    two = curve[curve["revision"].isin(STEPS[:2])]
    with pytest.raises(ValueError, match="has 2 checkpoints"):
        widgets.checkpoint_slider(two, sim, into=[])
    with pytest.raises(ValueError, match="on_choice goes with into="):
        widgets.checkpoint_slider(curve, sim, on_choice=print)
    assert widgets.checkpoint_slider(two, sim).choice is None


# ---- all of them


def large(n_pairs: int = 600, m: int = 8):
    """As large as a notebook makes them, and a bit more."""
    pairs = crossed_pairs()[np.arange(n_pairs) % 8]
    lead = np.random.default_rng(0).normal(size=(3, 2**m, n_pairs))
    return Subsets(features=list(range(m)), names=NAMES, lead=lead), pairs


def test_answers_come_at_once(curve, sim):
    given = large()
    square = widgets.two_by_two(*given)
    board = widgets.ablation_board(*given)
    classes = widgets.class_slider({w: some_ratios(latents=16_384) for w in "abc"}, NAMES)
    picker = widgets.checkpoint_slider(curve, sim, into=[])
    moves = {
        "a box of the 2 x 2": (square.boxes[3], True),
        "its slider": (square.slider, "late"),
        "a box of the board": (board.boxes[7], True),
        "the bound of a class": (classes.specific, 0.5),
        "a menu": (picker.picker.menus[0], "step0"),
        "the slider of checkpoints": (picker.slider, "step2"),
    }
    for what, (control, value) in moves.items():
        start = time.perf_counter()
        control.value = value
        assert time.perf_counter() - start < AT_MOST, what


def test_all_display_as_their_widget_and_use_nothing_that_hangs(monkeypatch, curve, sim):
    def kinds(widget):
        yield type(widget).__name__
        for child in getattr(widget, "children", ()):
            yield from kinds(child)

    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    given = large(40, 2)
    shown = [
        widgets.two_by_two(*given),
        widgets.ablation_board(*given),
        widgets.class_slider({"RelIE": some_ratios()}, NAMES),
        widgets.checkpoint_slider(curve, sim, into=[]),
    ]
    for each in shown:
        each._ipython_display_()
    assert displayed == [each.widget for each in shown]
    found = set(itertools.chain(*(kinds(each.widget) for each in shown)))
    assert {"Checkbox", "SelectionSlider", "FloatSlider", "Dropdown", "HTML"} <= found
    assert not found & {"Output", "interactive"}
