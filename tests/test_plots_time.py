"""Figures of when features matter: where they put a feature, what they refuse."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba

from ctt_helpers.notebook import plots
from ctt_helpers.notebook.plots.time import (
    CORNERS,
    cell_bars,
    cell_curves,
    cell_panels,
    factorial_curves,
    onset_dots,
    ternary,
    trajectories,
)

NAMES = ["step256", "step512", "step3000"]
# all of the first, the second, the third; shared by all; shared by the first two; inactive
RATIOS = np.array(
    [[1, 0, 0, 1 / 3, 0.5, np.nan], [0, 1, 0, 1 / 3, 0.5, np.nan], [0, 0, 1, 1 / 3, 0, np.nan]]
)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def dots(ax) -> dict[tuple, tuple]:
    """Where each dot is -> its colour and area."""
    drawn = ax.collections[0]
    colors = np.broadcast_to(drawn.get_facecolor(), (len(drawn.get_offsets()), 4))
    places = [tuple(np.round(place, 6)) for place in np.asarray(drawn.get_offsets())]
    return {p: (tuple(c[:3]), a) for p, c, a in zip(places, colors, drawn.get_sizes(), strict=True)}


def test_a_feature_of_one_checkpoint_lies_in_its_corner_in_its_colour():
    ax = ternary(RATIOS, [1, -4, 2, 0, 1, 9], NAMES, n_labels=2, title="Corners")
    there, colors = dots(ax), list(plots.checkpoint_colors(NAMES).values())
    assert len(there) == 5 and "5 active" in ax.texts[-1].get_text()
    for corner, color in zip(CORNERS, colors, strict=True):
        assert there[tuple(np.round(corner, 6))][0] == pytest.approx(color[:3])
    grey = to_rgba(plots.look.GREY)[:3]
    middle, edge = CORNERS.mean(0), CORNERS[:2].mean(0)
    assert there[tuple(np.round(middle, 6))][0] == pytest.approx(grey)
    assert there[tuple(np.round(edge, 6))][0] == pytest.approx(grey)
    # areas grow with |size|, of active features only; the largest two have their numbers
    area = [there[tuple(np.round(corner, 6))][1] for corner in CORNERS]
    assert area[1] > area[2] > area[0] and area[1] == max(a for _, a in there.values())
    numbers = {t.get_text() for t in ax.texts if t.get_text().startswith("#")}
    assert numbers == {"#1", "#2"}
    assert ax.get_title(loc="left") == "Corners"
    assert {t.get_text() for t in ax.texts} >= set(NAMES)


def test_the_triangle_is_equilateral_and_its_lines_cut_off_the_corners():
    sides = np.linalg.norm(CORNERS - np.roll(CORNERS, 1, axis=0), axis=1)
    np.testing.assert_allclose(sides, 1)
    ax = ternary(torch.from_numpy(RATIOS), np.ones(6), NAMES, specific=0.6, n_labels=9)
    to_ratios = np.linalg.inv(np.vstack([CORNERS.T, np.ones(3)]))
    for c, line in enumerate(ax.lines[1:4]):
        ends = to_ratios @ np.vstack([line.get_xydata().T, np.ones(2)])
        np.testing.assert_allclose(ends[c], 0.6)
    assert len(set(dots(ax).values())) == 4  # three corners and grey, all of one area
    numbers = [t.get_text() for t in ax.texts if t.get_text().startswith("#")]
    assert sorted(numbers) == ["#0", "#1", "#2", "#3", "#4"]


def test_numbers_of_features_at_one_place_do_not_overlap():
    ax = ternary(np.repeat([[0.0], [0.0], [1.0]], 5, axis=1), np.arange(5), NAMES, n_labels=5)
    heights = sorted(t.xy[1] for t in ax.texts if t.get_text().startswith("#"))
    assert len(heights) == 5 and min(np.diff(heights)) > 0.04 and min(heights) == pytest.approx(0)


def test_a_triangle_without_an_active_feature_is_empty():
    ax = ternary(np.full((3, 4), np.nan), np.zeros(4), NAMES)
    ax.figure.canvas.draw()
    assert len(ax.collections[0].get_offsets()) == 0


@pytest.mark.parametrize("n", [2, 5])
def test_a_triangle_is_for_three(n):
    with pytest.raises(
        ValueError, match=rf"shows three checkpoints, and here are {n}: use trajectories"
    ):
        ternary(np.full((n, 2), 1 / n), np.ones(2), [f"step{i}" for i in range(n)])


@pytest.mark.parametrize("n", [2, 5, 32])
def test_trajectories_draw_each_feature_over_its_tokens(n):
    values = np.random.default_rng(0).standard_normal((n, 6))
    tokens, names = [0, *(2**i for i in range(n - 1))], [f"step{i}" for i in range(n)]
    ax = trajectories(values, tokens, [4, 1], names, values - 0.1, values + 0.1, title="A finding")
    ax.figure.canvas.draw()
    drawn = {line.get_label(): line for line in ax.lines if line.get_label().startswith("#")}
    assert set(drawn) == {"#4", "#1"}
    for feature, line in ((4, drawn["#4"]), (1, drawn["#1"])):
        np.testing.assert_array_equal(line.get_xdata(), tokens)
        np.testing.assert_allclose(line.get_ydata(), values[:, feature])
    assert drawn["#4"].get_color() != drawn["#1"].get_color()
    tops = sorted(band.get_paths()[0].vertices[:, 1].max() for band in ax.collections)
    assert tops == pytest.approx(sorted(values[:, [1, 4]].max(0) + 0.1))
    assert (
        ax.get_xscale() == "symlog" and "tokens" in ax.get_xlabel() and "logits" in ax.get_ylabel()
    )
    assert [t.get_text() for t in ax.get_legend().get_texts()] == sorted(
        drawn, key=lambda k: -drawn[k].get_ydata()[-1]
    )


@pytest.mark.parametrize("tokens", [[0, None], [0, 1, 2]])
def test_trajectories_need_the_tokens_of_each_checkpoint(tokens):
    with pytest.raises(ValueError, match="give the number for each of the 2 checkpoints"):
        trajectories(np.ones((2, 3)), tokens, [0], ["step0", "main"])
    with pytest.raises(ValueError, match="There is no feature 3"):
        trajectories(np.ones((2, 3)), [1, 2], [3], ["step0", "main"])


# ---- accuracy by cell


def curve_in_cells() -> pd.DataFrame:
    rows = []
    shares = {"sg-sg": 0.9, "sg-pl": 0.1, "pl-sg": 0.3, "pl-pl": 0.7}
    for i, name in enumerate(NAMES):
        about = {"revision": name, "tokens_seen": 10 ** (i + 4), "stderr": 0.02, "n_pairs": 40}
        rows.append(about | {"task": "simple", "cell": "all", "accuracy": 0.8})
        rows.append(about | {"task": "pp", "cell": "all", "accuracy": 0.5})
        for cell, share in shares.items():
            congruent = cell in ("sg-sg", "pl-pl")
            own = {"task": "pp", "cell": cell, "congruent": congruent, "accuracy": share}
            rows.append(about | own)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("halves", "expected"),
    [
        (False, {"sg-sg": 0.9, "sg-pl": 0.1, "pl-sg": 0.3, "pl-pl": 0.7, "simple": 0.8}),
        (True, {"congruent": 0.8, "incongruent": 0.2, "simple": 0.8}),
    ],
)
def test_cells_have_the_colour_of_whether_something_distracts(halves, expected):
    curve = curve_in_cells()
    ax = cell_curves(curve, "pp", plain="simple", halves=halves, highlight=NAMES[:1], title="T")
    ax.figure.canvas.draw()
    drawn = {line.get_label(): line for line in ax.lines}
    assert {*expected, NAMES[0]} <= set(drawn) and ax.get_title(loc="left") == "T"
    for name, share in expected.items():
        np.testing.assert_allclose(drawn[name].get_ydata(), share)
        if name != "simple":
            kind = "congruent" if share > 0.5 else "incongruent"
            assert drawn[name].get_color() == plots.CELL_COLORS[kind]
    if not halves:
        assert [drawn[c].get_linestyle() for c in ("sg-pl", "pl-sg")] == ["-", "--"]


def test_a_curve_in_cells_is_drawn_as_whole_tasks_where_cells_are_not_asked_for():
    ax = plots.accuracy_curves(curve_in_cells())
    drawn = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(drawn["pp"].get_ydata(), 0.5)


def test_a_task_without_cells_is_no_picture_of_cells():
    with pytest.raises(ValueError, match="Nothing distracts in 'simple'"):
        cell_curves(curve_in_cells(), "simple")
    with pytest.raises(ValueError, match="lacks \\['cell', 'congruent'\\]"):
        cell_curves(curve_in_cells().drop(columns=["cell", "congruent"]), "pp")


# ---- subject and neighbour


def test_factors_are_drawn_with_their_intervals_in_the_colours_of_labels():
    found = pd.DataFrame({"checkpoint": NAMES, "subject": [0.0, 1, 3], "attractor": [2.0, 1, 0]})
    found["both"] = 0.1
    for name in ("subject", "attractor", "both"):
        found[f"{name}_low"], found[f"{name}_high"] = found[name] - 0.2, found[name] + 0.2
    ax = factorial_curves(found, [1e5, 2e5, 9e5], highlight=NAMES[1:2], title="They cross")
    ax.figure.canvas.draw()
    drawn = {line.get_label().split()[0]: line for line in ax.lines}
    for name, column in (("subject", "subject"), ("neighbour", "attractor"), ("both", "both")):
        np.testing.assert_allclose(drawn[name].get_ydata(), found[column])
        assert drawn[name].get_color() == plots.LABEL_COLORS[column]
    assert len(ax.collections) == 3 and ax.get_title(loc="left") == "They cross"
    with pytest.raises(ValueError, match="2 numbers of tokens for 3 checkpoints"):
        factorial_curves(found, [1, 2])
    with pytest.raises(ValueError, match="lacks \\['both_low'\\]"):
        factorial_curves(found.drop(columns="both_low"), [1, 2, 3])


def test_bars_of_cells_are_in_groups_by_checkpoint():
    means = pd.DataFrame({"sg-sg": [1.0, 2], "sg-pl": [-1.0, 3]}, index=NAMES[:2])
    congruent = {"sg-sg": True, "sg-pl": False}
    ax = cell_bars(means, congruent, labels=["attractor", "subject"], title="It turns")
    bars = {group.get_label(): group for group in ax.containers}
    for cell, kind in (("sg-sg", "congruent"), ("sg-pl", "incongruent")):
        assert [bar.get_height() for bar in bars[cell]] == means[cell].tolist()
        assert bars[cell][0].get_facecolor() == to_rgba(plots.CELL_COLORS[kind])
    written = [tick.get_text() for tick in ax.get_xticklabels()]
    assert written == ["step256\nattractor", "step512\nsubject"]
    with pytest.raises(ValueError, match="There is no cell 'sg-pl' here"):
        cell_bars(means, {"sg-sg": True})
    with pytest.raises(ValueError, match="1 labels for 2 checkpoints"):
        cell_bars(means, congruent, labels=["subject"])


# ---- many tasks


def test_panels_show_the_halves_of_each_task():
    curve = curve_in_cells()
    curve = pd.concat([curve, curve[curve["task"] == "pp"].assign(task="rel")])
    plain = {"pp": "simple", "rel": "simple"}
    figure = cell_panels(curve, ["pp", "rel"], plain, title="Both fall")
    figure.canvas.draw()
    assert figure.get_suptitle() == "Both fall"
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["pp", "rel", ""]
    assert not figure.axes[2].axison
    for ax in figure.axes[:2]:
        drawn = {line.get_label(): line for line in ax.lines}
        np.testing.assert_allclose(drawn["incongruent"].get_ydata(), 0.2)
        assert ax.get_legend() is None
    written = [text.get_text() for text in figure.legends[0].get_texts()]
    assert written == ["congruent", "incongruent", "the plain task"]
    with pytest.raises(ValueError, match="There is no task to draw"):
        cell_panels(curve, [], plain)


def test_onsets_are_in_order_and_never_is_open():
    onset = pd.Series({"number/a": 1, "number/b": 3, "gender/a": 0})
    ax = onset_dots(onset, NAMES, marked=["number/b"], title="One never comes")
    ax.figure.canvas.draw()
    rows = [tick.get_text() for tick in ax.get_yticklabels()]
    assert rows == ["number/b", "number/a", "gender/a"]
    dots = [line for line in ax.lines if line.get_marker() in ("o", "D")]
    assert [int(dot.get_xdata()[0]) for dot in dots] == [3, 1, 0]
    assert [dot.get_marker() for dot in dots] == ["D", "o", "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [True, False, False]
    colors = [dot.get_markeredgecolor() for dot in dots]
    assert colors[0] == colors[1] != colors[2]
    with pytest.raises(ValueError, match="indices from 0 to 3"):
        onset_dots(onset + 1, NAMES)
