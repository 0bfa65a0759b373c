"""Figures: what they draw, what they refuse, and that they leave matplotlib as it was."""

from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba

from ctt_helpers.notebook import plots

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
    return pd.DataFrame(
        rows, columns=["revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs"]
    )


def make_effects(n: int, h: int = 40, seed: int = 0):
    """Signed effects and RelIE, with inactive features at the end."""
    ie = np.random.default_rng(seed).standard_normal((n, h))
    ie[:, 30:] = 0
    with np.errstate(invalid="ignore"):
        return ie, np.abs(ie) / np.abs(ie).sum(0)


def names_of(n: int) -> list[str]:
    return [f"step{s}" for s in STEPS[-n:]]


def legend_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


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


def test_what_is_written_out_is_seaborns():
    import seaborn

    theirs = {**seaborn.axes_style("ticks"), **seaborn.plotting_context("paper")}
    with plots.style():
        for name in plots.look.SEABORN:
            ours, same = plt.rcParams[name], theirs[name]
            if name == "font.sans-serif":
                same = same[: len(ours)]
            assert ours == (pytest.approx(same) if isinstance(same, float) else same), name


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
    marks = {line.get_xdata()[0]: line for line in ax.lines if line.get_label().startswith("step")}
    colors = plots.checkpoint_colors(["step256", "step700", "step3000"])
    assert {x: to_rgba(line.get_color()) for x, line in marks.items()} == {
        int(name[4:]) * 512: color for name, color in colors.items()
    }
    assert any("chance" in label.get_text() for label in ax.get_yticklabels())
    assert legend_of(ax) == ["simple", "pp", "step256", "step700", "step3000"]


def test_accuracy_curves_legend_is_in_the_order_of_the_curves_ends():
    curve = make_curve()
    curve.loc[curve["task"] == "simple", "accuracy"] *= 0.9
    assert legend_of(plots.accuracy_curves(curve)) == ["pp", "simple"]


def test_accuracy_curves_subset_keeps_colors_and_log_axis_without_step0():
    curve = make_curve(("simple", "pp", "rel"))
    ax = plots.accuracy_curves(curve[curve.tokens_seen > 0], tasks=["rel"])
    assert ax.get_xscale() == "log"
    line = next(line for line in ax.lines if line.get_label() == "rel")
    assert line.get_color() == plots.task_colors(["simple", "pp", "rel"])["rel"]


def test_few_of_many_tasks_get_colors_of_their_own():
    ax = plots.accuracy_curves(make_curve([f"t{i}" for i in range(14)]), tasks=["t3", "t13", "t2"])
    colors = {line.get_color() for line in ax.lines if line.get_label() in ("t3", "t13", "t2")}
    assert len(colors) == 3


def test_accuracy_curves_many_tasks_use_a_legend_with_each_number_of_pairs():
    curve = make_curve([f"t{i}" for i in range(12)])
    curve.loc[curve.task == "t3", "n_pairs"] = 7
    ax = plots.accuracy_curves(curve)
    labels = legend_of(ax)
    assert len(labels) == 12 and "t3 (7 pairs)" in labels and "t1 (300 pairs)" in labels
    looks = {
        (line.get_color(), line.get_linestyle()) for line in ax.lines if line.get_label() in labels
    }
    assert len(looks) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["nope"]}, "no task 'nope'.*simple"),
        ({"highlight": ["step9"]}, "no revision 'step9'.*step256"),
    ],
)
def test_accuracy_curves_refuse_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.accuracy_curves(make_curve(), **arguments)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"lacks.*stderr"):
        plots.accuracy_curves(make_curve().drop(columns="stderr"))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_feature_heatmap_signed_and_ratio(n):
    ie, rel_ie = make_effects(n)
    ax = plots.feature_heatmap(ie, [2, 0], names_of(n))
    check_labelled(ax)
    mesh = ax.collections[0]
    np.testing.assert_allclose(mesh.get_array(), ie[:, [2, 0]].T)
    assert mesh.norm.vmin == -mesh.norm.vmax and mesh.cmap.name == "RdBu"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["#2", "#0"]
    assert [label.get_text() for label in ax.get_xticklabels()] == names_of(n)
    ax = plots.feature_heatmap(rel_ie, [2, 38], names_of(n), center=None)
    assert (ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) == (0, 1)
    assert [text.get_text() for text in ax.texts].count("inactive") == n


def test_what_rounds_to_zero_has_no_sign():
    ax = plots.feature_heatmap(np.array([[-0.001, 0.2], [-0.2, 0.3]]), [0, 1], names_of(2))
    assert [t.get_text() for t in ax.texts] == ["0.00", "-0.20", "0.20", "0.30"]


def test_sizes_by_rank_beside_a_null():
    values = np.array([[3, -2, 0.1, 0], [0.5, 0.2, -0.4, 0.3]])
    fig = plots.rank_curves(values, values / 10, [0.15, 0.35], names_of(2), title="two of each")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["step1500: 2 pass", "step3000: 2 pass"]
    random, features, bar = fig.axes[0].get_lines()
    assert features.get_ydata().tolist() == [3, 2, 0.1]  # 0 has no place on a log axis
    assert random.get_ydata() == pytest.approx([0.3, 0.2, 0.01])
    assert bar.get_ydata()[0] == 0.15
    low, high = fig.axes[1].get_ylim()
    assert low < 0.15 < 3 < high  # nothing is cut off above
    with pytest.raises(ValueError, match="3 checkpoints"):
        plots.rank_curves(values, values, [1, 1, 1], names_of(3))


def test_two_shares_against_each_other():
    kinds = ["subject", "none", "subject"]
    ax = plots.share_scatter([0.1, 0.2, 0.3], [0.9, 0.5, 0.4], [7, 8, 9], kinds, marked=[9])
    assert legend_of(ax) == ["subject", "none"] and [t.get_text() for t in ax.texts] == ["#9"]
    subject = ax.collections[0]
    assert subject.get_offsets().tolist() == [[0.1, 0.9], [0.3, 0.4]]
    assert to_hex(subject.get_facecolor()[0]) == plots.LABEL_COLORS["subject"].lower()
    check_labelled(ax)


def test_bars_of_labels_are_pale_where_there_is_next_to_nothing():
    table = pd.DataFrame({"checkpoint": names_of(2), "strength": [0.01, 4.0]})
    parts = {"subject": [0.2, 0.7], "attractor": [0.5, 0.1], "both": [0, 0], "mixed": [0.1, 0.2]}
    table = table.assign(**{f"through_{k}": v for k, v in parts.items()}, through_none=[0.2, 0])
    fig = plots.label_bars({"pp": table, "gender": table.assign(through_subject=np.nan)})
    ax, other = fig.axes
    assert " ".join(ax.get_title(loc="left").split()) == (
        "pp, step3000: neighbour 10%, subject 70%"
    )
    assert "nothing to share" in other.get_title(loc="left")
    subject, attractor = ax.containers[:2]
    assert [bar.get_height() for bar in attractor] == pytest.approx([0.5, 0.1])
    assert [bar.get_y() for bar in attractor] == pytest.approx([0.2, 0.7])
    assert [bar.get_alpha() for bar in subject] == [0.35, 1]
    with pytest.raises(ValueError, match="through_none"):
        plots.label_bars({"pp": table.drop(columns="through_none")})


def test_wrong_shapes_and_features_are_refused_with_what_to_do():
    ie, _ = make_effects(3)
    with pytest.raises(ValueError, match=r"shape \(3, 40\) for 2 checkpoints.*ckpts.labels"):
        plots.feature_heatmap(ie, [0], names_of(2))
    with pytest.raises(ValueError, match=r"no feature 40.*0 to 39"):
        plots.feature_heatmap(ie, [40], names_of(3))


def test_a_figure_is_shown_with_its_findings_and_its_text(monkeypatch, capsys):
    shown = []
    shell = SimpleNamespace(
        display_formatter=SimpleNamespace(
            format=lambda figure: ({"image/png": figure, "text/plain": "<Figure>"}, {})
        )
    )
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr(
        "IPython.display.display", lambda data, metadata, raw: shown.append((data, metadata))
    )
    with plots.style():
        figure, (left, right) = plt.subplots(1, 2)
        figure.suptitle("Both")
        plots.set_title(left, "A rather long finding that takes more than one line of its axes")
    right.set_title("Right", loc="center")
    plots.show("A line chart.")
    long = "A rather long finding that takes more than one line of its axes"
    text = f"Both. {long}. Right. A line chart."
    expected = ({"image/png": figure, "text/plain": text}, {"image/png": {"alt": text}})
    assert shown == [expected] and not plt.get_fignums()
    with pytest.raises(ValueError, match="Say in a sentence what the figure shows"):
        plots.show(" ", figure)
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    plots.show("A line chart.", figure)
    assert capsys.readouterr().out == f"{text}\n"
