"""Figures: what they draw, what they refuse, and that they leave matplotlib as it was."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from ctt_helpers import plots

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 700, 1000, 1500, 3000]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def make_curve(tasks=("simple", "pp"), n_pairs=300) -> pd.DataFrame:
    rows = []
    for t, task in enumerate(tasks):
        for step in STEPS:
            dip = 0.3 if t == 1 and step in (256, 512) else 0
            accuracy = (0.5 if step <= 512 else 1.0) - dip
            rows.append((f"step{step}", step * 512, task, accuracy, 0.02, n_pairs))
    return pd.DataFrame(rows, columns=["revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs"])


def make_effects(n: int, h: int = 40, seed: int = 0):
    """Signed effects, RelIE and RelDec with inactive features at the end, and decoder norms."""
    rng = np.random.default_rng(seed)
    ie = rng.standard_normal((n, h))
    ie[:, 30:] = 0
    with np.errstate(invalid="ignore"):
        rel_ie = np.abs(ie) / np.abs(ie).sum(0)
    norms = rng.uniform(0.1, 1, (n, h))
    rel_dec = norms / norms.sum(0)
    rel_dec[:, 35:] = np.nan
    return ie, rel_ie, rel_dec, norms


def names_of(n: int) -> list[str]:
    return [f"step{s}" for s in STEPS[-n:]]


def check_labelled(ax, title="") -> None:
    assert ax.get_xlabel() and ax.get_ylabel()
    assert ax.get_title(loc="left") == title if title else ax.get_title(loc="left")
    ax.figure.canvas.draw()


@pytest.mark.parametrize("n", [1, 2, 3, 8, 32])
def test_checkpoint_colors_are_distinct_and_ordered_in_lightness(n):
    colors = plots.checkpoint_colors([f"c{i}" for i in range(n)])
    lightness = [np.dot(c[:3], (0.3, 0.6, 0.1)) for c in colors.values()]
    assert len({to_hex(c) for c in colors.values()}) == n
    assert all(np.diff(lightness) > 0)


def test_task_colors_are_distinct_and_belong_to_the_name():
    assert plots.task_colors(["a", "b", "a"]) == plots.task_colors(["a", "b"])
    assert len(set(plots.task_colors(list("abcdefghij")).values())) == 10


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (512, "512"),
        (131072, "131k"),
        (999_999, "1M"),
        (1_536_000, "1.54M"),
        (286e9, "286B"),
        (3.048e12, "3.05T"),
    ],
)
def test_format_tokens(n, text):
    assert plots.format_tokens(n) == text


def test_style_is_local():
    before = dict(matplotlib.rcParams)
    with plots.style():
        assert matplotlib.rcParams["axes.spines.top"] is False
    plots.accuracy_curves(make_curve())
    assert dict(matplotlib.rcParams) == before


def test_accuracy_curves_draw_the_table():
    curve = make_curve().sample(frac=1, random_state=0)  # in any order of rows
    ax = plots.accuracy_curves(curve, highlight=["step256", "step700", "step3000"], title="It dips")
    check_labelled(ax, "It dips")
    assert ax.get_xscale() == "symlog" and "300 pairs a task" in ax.get_xlabel()
    line = next(line for line in ax.lines if line.get_label() == "pp")
    assert list(line.get_xdata()) == [s * 512 for s in STEPS]
    assert min(line.get_ydata()) == pytest.approx(0.2)
    marks = {line.get_xdata()[0]: line for line in ax.lines if line.get_linestyle() == "--"}
    colors = plots.checkpoint_colors(["step256", "step700", "step3000"])
    assert {x: to_rgba(line.get_color()) for x, line in marks.items()} == {
        int(name[4:]) * 512: color for name, color in colors.items()
    }
    assert any("chance" in label.get_text() for label in ax.get_yticklabels())
    named = [text for text in ax.texts if text.get_text() in ("simple", "pp")]
    assert abs(named[0].xyann[1] - named[1].xyann[1]) > 0.03  # both curves end at 1: their names do not overlap


def test_accuracy_curves_subset_keeps_colors_and_log_axis_without_step0():
    curve = make_curve(("simple", "pp", "rel"))
    ax = plots.accuracy_curves(curve[curve.tokens_seen > 0], tasks=["rel"])
    assert ax.get_xscale() == "log"
    line = next(line for line in ax.lines if line.get_label() == "rel")
    assert line.get_color() == plots.task_colors(["simple", "pp", "rel"])["rel"]


def test_accuracy_curves_many_tasks_use_a_legend_with_each_number_of_pairs():
    curve = make_curve([f"t{i}" for i in range(12)])
    curve.loc[curve.task == "t3", "n_pairs"] = 7
    ax = plots.accuracy_curves(curve)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(labels) == 12 and "t3 (7 pairs)" in labels and "t1 (300 pairs)" in labels
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines if line.get_label() in labels}
    assert len(looks) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tasks": ["nope"]}, "no task 'nope'.*simple"), ({"highlight": ["step9"]}, "no revision 'step9'.*step256")],
)
def test_accuracy_curves_refuse_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.accuracy_curves(make_curve(), **arguments)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"lacks.*stderr"):
        plots.accuracy_curves(make_curve().drop(columns="stderr"))


def test_similarity_heatmap_shows_the_lower_triangle_and_marks_rows():
    names = names_of(5)
    sim = pd.DataFrame(np.full((5, 5), 0.4) + 0.6 * np.eye(5), index=names, columns=names)
    ax = plots.similarity_heatmap(sim, highlight=[names[1], names[4]])
    check_labelled(ax)
    assert ax.collections[0].get_array().mask.sum() == 10
    color = plots.checkpoint_colors([names[1], names[4]])[names[1]]
    assert to_rgba(ax.get_yticklabels()[1].get_color()) == color
    assert [patch.get_y() for patch in ax.patches] == [1, 4]
    with pytest.raises(ValueError, match="no revision 'step9'"):
        plots.similarity_heatmap(sim, highlight=["step9"])


def test_training_curves():
    columns = {"tokens": [0, 1000, 2000], "l0": [30, 20, 16], "dead": [0, 0, 3], "explained_variance": [-9.0, 0.8, 0.9]}
    figure = plots.training_curves(pd.DataFrame(columns))
    assert isinstance(figure, Figure)
    drawn = [list(ax.lines[0].get_ydata()) for ax in figure.axes]
    assert drawn == [columns["explained_variance"], columns["l0"], columns["dead"]]
    assert figure.axes[0].get_ylim()[0] > -0.1  # a bad first step does not flatten the rest
    for ax in figure.axes:
        check_labelled(ax)
    with pytest.raises(ValueError, match="explained_variance"):
        plots.training_curves(pd.DataFrame(columns).drop(columns="explained_variance"))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_feature_heatmap_signed_and_ratio(n):
    ie, rel_ie, *_ = make_effects(n)
    ax = plots.feature_heatmap(ie, [2, 0], names_of(n), labels={0: "singular"})
    check_labelled(ax)
    mesh = ax.collections[0]
    np.testing.assert_allclose(mesh.get_array(), ie[:, [2, 0]].T)
    assert mesh.norm.vmin == -mesh.norm.vmax and mesh.cmap.name == "RdBu"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["#2", "#0 singular"]
    assert [label.get_text() for label in ax.get_xticklabels()] == names_of(n)
    ax = plots.feature_heatmap(rel_ie, [2, 38], names_of(n), center=None)
    assert (ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) == (0, 1)
    assert [text.get_text() for text in ax.texts].count("inactive") == n


@pytest.mark.parametrize("n", [2, 3, 8])
def test_relie_vs_reldec_leaves_inactive_features_out(n):
    ie, rel_ie, rel_dec, _ = make_effects(n)
    ax = plots.relie_vs_reldec(rel_ie, rel_dec, ie, 1, names_of(n))
    check_labelled(ax)
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(points, np.c_[rel_dec[1, :30], rel_ie[1, :30]])
    assert "30 active" in ax.get_xlabel()
    strongest = int(np.abs(ie[1]).argmax())
    assert f"#{strongest}" in [text.get_text() for text in ax.texts]
    assert int(ax.collections[0].get_sizes().argmax()) == strongest


def test_relie_vs_reldec_with_nothing_active_is_empty_not_broken():
    nothing = np.full((2, 4), np.nan)
    ax = plots.relie_vs_reldec(nothing, nothing, np.zeros((2, 4)), 0, names_of(2))
    ax.figure.canvas.draw()
    assert len(ax.collections[0].get_offsets()) == 0


def test_effect_scatter_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(50)
    y = np.round(x + rng.standard_normal(50), 1)  # with ties
    expected = spearmanr(x, y).statistic
    ax = plots.effect_scatter(np.append(x, np.nan), np.append(y, 1.0))
    check_labelled(ax)
    assert ax.texts[0].get_text() == f"rank correlation {expected:.2f}\n50 features"
    assert "undefined" in plots.effect_scatter(np.ones(5), np.arange(5)).texts[0].get_text()
    tensor = torch.arange(5.0, requires_grad=True)
    assert "1.00" in plots.effect_scatter(tensor, 2 * tensor).texts[0].get_text()
    with pytest.raises(ValueError, match="3 values and y has 2"):
        plots.effect_scatter(np.ones(3), np.ones(2))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_ablation_bars_put_the_baseline_and_the_control_beside_the_group(n):
    rows = [(c, g, 0.9, a, 300) for g, a in (("top 5", 0.6), ("random 5", 0.88)) for c in names_of(n)]
    table = pd.DataFrame(rows, columns=["checkpoint", "group", "accuracy_before", "accuracy_after", "n_pairs"])
    ax = plots.ablation_bars(table)
    check_labelled(ax)
    assert [bar.get_height() for bar in ax.patches] == [0.9] * n + [0.6] * n + [0.88] * n
    assert ax.patches[2 * n].get_hatch() and not ax.patches[n].get_hatch()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["nothing ablated", "top 5", "random 5"]
    top5 = next(c for c in ax.containers if c.get_label() == "top 5")
    low, high = top5.errorbar.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx((0.6 * 0.4 / 300) ** 0.5)
    with pytest.raises(ValueError, match="several rows"):
        plots.ablation_bars(pd.concat([table, table]))


def test_signature_figure_has_both_panels_and_names_a_real_dip_only():
    names = ["step256", "step700", "step3000"]
    ie, *_ = make_effects(3)
    figure = plots.signature_figure(make_curve(), ie, [0, 4], names, {0: "nearest noun"}, titles=("dip", "turn"))
    left, right = figure.axes
    figure.canvas.draw()
    assert tuple(figure.get_size_inches()) == (9, 3.6) and figure.dpi == 110
    assert any("below chance" in text.get_text() for text in left.texts)
    assert [bar.get_height() for bar in right.patches] == ie[:, [0, 4]].ravel().tolist()
    assert "nearest noun" in right.get_xticklabels()[0].get_text()
    assert [panel.get_suptitle() for panel in figure.subfigs] == ["dip", "turn"]
    figure = plots.signature_figure(make_curve(), ie, [0], names, tasks=["simple"])
    assert not any("below chance" in text.get_text() for text in figure.axes[0].texts)


def test_wrong_shapes_and_features_are_refused_with_what_to_do():
    ie, *_ = make_effects(3)
    with pytest.raises(ValueError, match=r"shape \(3, 40\) for 2 checkpoints.*ckpts.labels"):
        plots.feature_heatmap(ie, [0], names_of(2))
    with pytest.raises(ValueError, match=r"no feature 40.*0 to 39"):
        plots.feature_heatmap(ie, [40], names_of(3))


def test_tokens_html_escapes_and_scales():
    text = plots.tokens_html(["<b>", " & co", "\n", " x"], [1.0, 2.0, 0.0, float("nan")])
    assert "&lt;b&gt;" in text and " &amp; co" in text and "\u21b5" in text
    assert "<b> &amp; co</b>" in text and 'title="2.000"' in text and "rgba(213,94,0,0.75)" in text
    assert text.count("rgba(213,94,0,0.00)") == 2
    assert "rgba(213,94,0,0.38)" in plots.tokens_html(["a"], [1.0], max_activation=2.0)
    with pytest.raises(ValueError, match="2 tokens and 1 activations"):
        plots.tokens_html(["a", "b"], [1.0])


def test_examples_html_share_one_scale():
    examples = [
        {"tokens": ["a"], "activations": [4.0], "where": "<train>", "value": 4.0},
        {"tokens": ["b"], "activations": [1.0]},
    ]
    text = plots.examples_html(examples)
    assert "rgba(213,94,0,0.75)" in text and "rgba(213,94,0,0.19)" in text
    assert "where: &lt;train&gt;" in text and ">4.00</td>" in text and "value" not in text
    assert "No examples" in plots.examples_html([])


def test_names_of_close_checkpoints_do_not_overlap():
    names = ["step512", "step700", "step1000", "step1500", "step3000"]
    ax = plots.accuracy_curves(make_curve([f"task{i}" for i in range(8)]), highlight=names)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text() in names]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
