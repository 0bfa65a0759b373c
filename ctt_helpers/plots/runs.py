"""Figures about checkpoints: accuracy, similarity, a training run, a crosscoder's quality, the signature figure."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ctt_helpers.plots import look
from ctt_helpers.plots.look import Effects, style


@style()
def accuracy_curves(
    curve: pd.DataFrame,
    tasks: Sequence[str] | None = None,
    highlight: Sequence[str] = (),
    ax: Axes | None = None,
    title: str = "Accuracy over pretraining",
) -> Axes:
    """Accuracy of each task over training, with its standard error and chance, as in Crosscoding Through Time.

    Args:
        curve: what `accuracy_curve` gives: revision, tokens_seen, task, accuracy, stderr, n_pairs.
        tasks: those to draw (default: all of the curve's).
        highlight: revisions to mark, in the order of training; give the same ones as elsewhere to get their colours.

    Raises:
        ValueError: a column, a task or a revision is not in the curve.
    """
    look.require_columns(curve, "revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs")
    colors = look.task_colors(list(curve["task"]))
    tasks = list(colors if tasks is None else tasks)
    look.require_names("task", tasks, list(colors))
    look.require_names("revision", highlight, curve["revision"].unique())
    ax, direct = look.new_axes(ax, 4.6 if len(tasks) <= 5 else 6.2), len(tasks) <= 5
    shown = curve[curve["task"].isin(tasks)].sort_values("tokens_seen")
    sizes = shown.groupby("task")["n_pairs"].max()
    same = sizes.nunique() == 1
    label = {task: task if same else f"{task} ({sizes[task]:,} pairs)" for task in tasks}
    look.token_axis(ax, shown["tokens_seen"])
    lines = {task: shown[shown["task"] == task] for task in tasks}
    for i, (task, line) in enumerate(lines.items()):
        x, y, e = (line[c].to_numpy(float) for c in ("tokens_seen", "accuracy", "stderr"))
        # the second round of the palette is dashed, so that no two tasks look alike
        dashes = "-" if list(colors).index(task) < len(look.HUES) else "--"
        ax.plot(x, y, dashes, color=colors[task], marker=look.MARKERS[i % len(look.MARKERS)], label=label[task])
        ax.fill_between(x, np.clip(y - e, 0, 1), np.clip(y + e, 0, 1), color=colors[task], alpha=0.18, lw=0)
    look.accuracy_axis(ax)
    look.set_title(ax, title, pad=6 + 10 * _mark_checkpoints(ax, curve, highlight))
    pairs = f"{sizes.iloc[0]:,} pairs a task; " if same else ""
    ax.set_xlabel(f"tokens seen (log scale)\n{pairs}band: ± 1 standard error")
    if direct:
        ends = sorted(tasks, key=lambda t: tuple(lines[t]["accuracy"].to_numpy()[::-1]), reverse=True)
        last = {label[t]: lines[t]["accuracy"].iloc[-1] for t in ends}
        look.end_labels(ax, shown["tokens_seen"].max(), last, {label[t]: colors[t] for t in ends})
    else:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.2)
    return ax


def _mark_checkpoints(ax: Axes, curve: pd.DataFrame, highlight: Sequence[str]) -> int:
    """Vertical lines at the checkpoints, named above the axes; returns the rows of names that this took."""
    tokens = curve.drop_duplicates("revision").set_index("revision")["tokens_seen"]
    to_axes = (ax.transData + ax.transAxes.inverted()).transform
    inches = 0.7 * ax.bbox.width / ax.figure.dpi  # what is left once there are labels at the right
    ends: list[float] = []  # where the last name in each row of names ends, in inches
    for name, color in look.checkpoint_colors(highlight).items():
        ax.axvline(tokens[name], color=color, lw=1.3, ls="--", zorder=0.5)
        middle, half = to_axes((tokens[name], 0.5))[0] * inches, 0.04 * len(name)
        row = next((i for i, end in enumerate(ends) if end < middle - half), len(ends))
        ends[row : row + 1] = [middle + half]
        ax.annotate(
            name, (tokens[name], 1), (0, 2 + 10 * row), xycoords=ax.get_xaxis_transform(), ha="center", color=color,
            textcoords="offset points", fontsize=8, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    return len(ends)


@style()
def similarity_heatmap(
    sim: pd.DataFrame,
    highlight: Sequence[str] = (),
    ax: Axes | None = None,
    title: str = "Similarity of activations between checkpoints",
) -> Axes:
    """Lower triangle of the mean cosine similarity between checkpoints, as in Crosscoding Through Time.

    Args:
        sim: what `similarity_matrix` gives, revisions x revisions.
        highlight: revisions whose rows are marked in their colours.

    Raises:
        ValueError: a revision to highlight is not in the table.
    """
    look.require_names("revision", highlight, sim.index)
    n, ax = len(sim), look.new_axes(ax, 4.6, 3.9)
    hidden = np.triu(np.ones((n, n), dtype=bool), k=1)
    sns.heatmap(sim, mask=hidden, ax=ax, cmap="mako_r", vmax=1, square=True, linewidths=0.4, annot=n <= 9, fmt=".2f",
                annot_kws={"fontsize": 7}, cbar_kws={"label": "mean cosine similarity", "shrink": 0.8})  # fmt: skip
    size, middles = 8 if n <= 12 else 6.5, np.arange(n) + 0.5
    ax.set_xticks(middles, list(sim.columns), rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    ax.set_yticks(middles, list(sim.index), rotation=0, fontsize=size)
    for name, color in look.checkpoint_colors(highlight).items():
        row = list(sim.index).index(name)
        ax.add_patch(Rectangle((0, row), row + 1, 1, fill=False, ec=color, lw=2, clip_on=False))
        for label in (ax.get_xticklabels()[row], ax.get_yticklabels()[row]):
            label.set(color=color, fontweight="bold")
    ax.set(xlabel="checkpoint", ylabel="checkpoint")
    return look.set_title(ax, title)


@style()
def training_curves(history: pd.DataFrame, title: str = "Training the crosscoder") -> Figure:
    """Explained variance, L0 and dead latents over a training run.

    Args:
        history: the history that `train` gives; the columns used are tokens, explained_variance, l0 and dead.

    Raises:
        ValueError: a column is missing.
    """
    look.require_columns(history, "tokens", "explained_variance", "l0", "dead")
    fig, axes = plt.subplots(1, 3, figsize=(9, 2.6))
    for ax, column, color in zip(axes, ("explained_variance", "l0", "dead"), look.HUES[:3], strict=True):
        ax.plot(history["tokens"], history[column], color=color)
    # the first steps may be far below zero, which would flatten all the rest
    lowest = float(history["explained_variance"].min())
    axes[0].set(ylim=(max(lowest, 0.0) - 0.02, 1.02), title="explained variance", ylabel="share of variance")
    axes[1].set(ylim=(0, None), title="L0", ylabel="active latents a token")
    axes[2].set(ylim=(0, None), title="dead latents", ylabel="number of latents")
    for ax in axes:
        ax.set_xlabel("tokens trained on")
        ax.xaxis.set_major_formatter(lambda value, _: look.format_tokens(value))
        ax.xaxis.set_major_locator(plt.MaxNLocator(5))
    fig.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return fig


@style()
def signature_figure(
    curve: pd.DataFrame,
    ie_mean: Effects,
    features: Sequence[int],
    names: Sequence[str],
    feature_labels: Mapping[int, str] | None = None,
    tasks: Sequence[str] | None = None,
    titles: tuple[str, str] = ("Accuracy over pretraining", "Effect of each feature at each checkpoint"),
) -> Figure:
    """The story in one picture: accuracy over training, and the signed effects of a few features beside it.

    Args:
        curve: what `accuracy_curve` gives.
        ie_mean: signed indirect effects [checkpoints, latents], in logits: positive where the feature helps.
        features: the few features to show.
        names: the checkpoints' revisions, marked on the curve.
        feature_labels: feature -> what it seems to stand for.
        tasks: the tasks to draw (default: all of the curve's).
        titles: the finding of the left and of the right panel.
    """
    effects, colors = look.as_matrix(ie_mean, names, features), look.checkpoint_colors(names)
    labels = feature_labels or {}
    fig = plt.figure(figsize=(9, 3.6))
    panels = fig.subfigures(1, 2, width_ratios=(1.15, 1))
    for panel, title in zip(panels, titles, strict=True):
        panel.suptitle(textwrap.fill(title, 52), x=0.02, ha="left", fontsize=10, fontweight="bold")
    left, right = (panel.subplots() for panel in panels)
    accuracy_curves(curve, tasks, names, ax=left, title="")
    drawn = curve[curve["task"].isin(tasks)] if tasks is not None else curve
    dip = drawn.loc[drawn["accuracy"].idxmin()]
    if dip["accuracy"] + 2 * dip["stderr"] < 0.5:  # say it only where it is more than noise
        left.annotate(f"{dip['accuracy']:.2f}: below chance", (dip["tokens_seen"], dip["accuracy"]), (-10, -4),
                      textcoords="offset points", ha="right", va="top", fontsize=8, zorder=3,
                      bbox={"fc": "white", "ec": "none", "pad": 1},
                      arrowprops={"arrowstyle": "-", "lw": 0.6})  # fmt: skip
    bar = 0.8 / len(names)
    for i, (name, color) in enumerate(colors.items()):
        x = np.arange(len(features)) + (i - (len(names) - 1) / 2) * bar
        right.bar(x, effects[i, list(features)], bar * 0.92, color=color, label=name)
    right.axhline(0, color="black", lw=0.8)
    right.margins(y=0.14)
    width = max(9, 60 // len(features))
    captions = [f"#{f}\n" + textwrap.fill(labels.get(f, ""), width, break_long_words=False) for f in features]
    right.set_xticks(range(len(features)), captions, fontsize=8)
    right.tick_params(axis="x", length=0)
    for y, side, word in ((0.985, "top", "\u2191 helps"), (0.015, "bottom", "\u2193 hurts")):
        right.text(0.01, y, word, transform=right.transAxes, va=side, color=look.GREY, fontsize=8, fontweight="bold")
    right.set(ylabel=look.IE_UNIT)
    right.legend(loc="best", handlelength=1.0)
    return fig
