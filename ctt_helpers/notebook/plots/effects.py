"""Figures about features: effects or RelIE over the checkpoints, and how sure they are."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ctt_helpers.arguments import checked
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.plots.look import Effects, style


@checked
@style()
def feature_heatmap(
    values: Effects,
    features: Sequence[int],
    names: Sequence[str],
    center: float | None = 0,
    ax: Axes | None = None,
    title: str = "Features over the checkpoints",
    quantity: str | None = None,
) -> Axes:
    """One row per feature, one column per checkpoint.

    The values are signed and spread around a centre, or they are ratios from 0 to 1.

    Args:
        values: [checkpoints, latents]; NaN (an inactive feature) is left grey.
        features: the rows, from the top.
        names: labels of the checkpoints.
        center: the neutral value of signed effects; None for ratios such as RelIE.
        ax: where to draw; None: a new figure.
        title: the finding.
        quantity: name and unit for the colour bar; None: those of the indirect effect, or of RelIE
            where there is no centre.

    Raises:
        ValueError: the shape does not fit the names, or a feature is not among the latents.
    """
    import seaborn as sns  # here: it takes a second, and few figures need it

    shown = look.as_matrix(values, names, features)[:, list(features)].T
    ax = look.new_axes(ax, 2.4 + 0.62 * len(names), 1.3 + 0.27 * len(features))
    ax.set_facecolor("#DDDDDD")
    if center is None:
        colors = "mako_r"
        lowest = 0
        highest = 1
    else:
        colors = "RdBu"
        reach = np.nanmax(np.abs(shown - center), initial=0) or 1.0
        lowest = center - reach
        highest = center + reach
    if not quantity:
        quantity = look.RATIO_LABEL if center is None else look.IE_LABEL
    sns.heatmap(
        pd.DataFrame(shown),
        ax=ax,
        cmap=colors,
        vmin=lowest,
        vmax=highest,
        linewidths=0.6,
        # rounded here, so that what rounds to 0 has no sign
        annot=np.round(shown, 2) + 0.0 if len(names) <= 12 else False,
        fmt=".2f",
        annot_kws={"fontsize": 7.5 if len(names) <= 6 else 6.5},
        cbar_kws={"label": quantity},
    )
    for row, column in np.argwhere(np.isnan(shown)):
        ax.text(
            column + 0.5,
            row + 0.5,
            "inactive",
            ha="center",
            va="center",
            fontsize=6.5,
            color=look.GREY,
        )
    look.checkpoint_ticks(ax, names, start=0.5)
    ax.set_yticks(np.arange(len(features)) + 0.5, [f"#{f}" for f in features], rotation=0)
    ax.tick_params(length=0)
    ax.set_ylabel("feature")
    return look.set_title(ax, title)


@checked
@style()
def interval_plot(
    values: Effects,
    low: Effects,
    high: Effects,
    features: Sequence[int],
    names: Sequence[str],
    undecided: Collection[int] = (),
    ratios: bool = False,
    ax: Axes | None = None,
    title: str = "How sure the estimates are",
    level: float = 0.95,
) -> Axes:
    """One row per feature, with a dot and its interval for each checkpoint.

    Args:
        values: [checkpoints, latents] estimates.
        low: [checkpoints, latents] lower ends of their intervals (`interval`).
        high: [checkpoints, latents] upper ends.
        features: the rows, from the top.
        names: labels of the checkpoints.
        undecided: features to mark with a question mark and hollow dots.
        ratios: the values are RelIE. The axis then runs from 0 to 1, and up to three checkpoints
            it has lines at 0.3 and 0.7, the borders of the classes. Otherwise the values are
            effects, and there is a line at 0.
        ax: where to draw; None: a new figure.
        title: the finding.
        level: of the intervals, for the note under the axis.

    Raises:
        ValueError: a shape does not fit the names, or a feature is not among the latents.
    """

    def of_features(matrix: Effects) -> Effects:
        return look.as_matrix(matrix, names, features)[:, list(features)]

    middle = of_features(values)
    low = of_features(low)
    high = of_features(high)
    n = len(names)
    rows = np.arange(len(features))
    unsure = np.isin(features, list(undecided))
    ax = look.new_axes(ax, 4.0, 1.3 + len(rows) * (0.13 + 0.075 * n))
    if not ratios:
        lines = (0,)
    elif n <= 3:
        lines = (0.3, 0.7)
    else:
        lines = ()
    for line in lines:
        ax.axvline(line, color=look.GREY, lw=0.8, ls=":")
    # every second row is shaded, over the whole width
    ax.barh(rows[1::2], 1, height=1, color="#F3F3F3", zorder=0, transform=ax.get_yaxis_transform())
    for c, (name, color) in enumerate(look.checkpoint_colors(names).items()):
        # the checkpoints share out 0.7 of a row's height
        y = rows + 0.7 * ((c + 0.5) / n - 0.5)
        ax.hlines(y, low[c], high[c], color=color, lw=1.3, label=name)
        ax.scatter(
            middle[c],
            y,
            13,
            color=np.where(unsure, "white", to_hex(color)),
            edgecolors=color,
            zorder=3,
        )
    ax.set_yticks(
        rows, [f"#{f} ?" if u else f"#{f}" for f, u in zip(features, unsure, strict=True)]
    )
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.03, 1.03) if ratios else None, ylabel="feature")
    note = f"lines: {level:.0%} interval"
    if unsure.any():
        note += "; hollow: undecided"
    ax.set_xlabel(f"{look.RATIO_LABEL if ratios else look.IE_LABEL}\n{note}")
    handles, labels = ax.get_legend_handles_labels()
    ax.figure.legend(handles, labels, loc="outside lower center", ncols=min(n, 4))
    return look.set_title(ax, title)


@checked
@style()
def rank_curves(
    values: Effects,
    null: Effects,
    bar: Sequence[float],
    names: Sequence[str],
    title: str = "How many features pass the bar",
) -> Figure:
    """Sizes of effects from the largest on, a panel for each checkpoint, beside those of a null.

    The titles of the panels say how many features pass.

    Args:
        values: [checkpoints, latents] effects.
        null: [checkpoints, directions] effects of random directions.
        bar: for each checkpoint, the size above which an effect counts (`null_threshold`).
        names: labels of the checkpoints.
        title: the finding.

    Raises:
        ValueError: a shape does not fit the names.
    """
    values = look.as_matrix(values, names)
    null = look.as_matrix(null, names)
    look.require_alike(names=names, bar=bar)
    size = (1.0 + 2.3 * len(names), 2.7)
    fig, axes = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False)
    colors = look.checkpoint_colors(names)
    for c, (ax, name) in enumerate(zip(axes[0], names, strict=True)):
        for what, color, label in (
            (null, "0.6", "random directions"),
            (values, colors[name], "features"),
        ):
            sizes = np.sort(np.abs(what[c]))[::-1]
            sizes = sizes[sizes > 0]
            ax.plot(np.arange(1, len(sizes) + 1), sizes, color=color, label=label)
        ax.axhline(bar[c], color="0.3", lw=0.9, ls=":", label="the bar")
        ax.set(xscale="log", yscale="log", xlabel="rank")
        ax.set_title(f"{name}: {(np.abs(values[c]) > bar[c]).sum()} pass")
    axes[0, 0].set_ylim(bottom=min(bar) / 20)
    axes[0, 0].set_ylabel("size of the effect (logits)")
    axes[0, -1].legend(loc="upper right", handlelength=1.5, fontsize=7.5)
    fig.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
    return fig


@checked
@style()
def share_scatter(
    across: Sequence[float],
    up: Sequence[float],
    features: Sequence[int],
    kinds: Sequence[str],
    marked: Collection[int] = (),
    quantities: tuple[str, str] = ("RelDec", "RelIE"),
    ax: Axes | None = None,
    title: str = "Where it is written, and where it matters",
) -> Axes:
    """Two shares of each feature against each other; on the diagonal they agree.

    Args:
        across, up: [features] shares from 0 to 1.
        features: their numbers.
        kinds: label of each (`factorial_of`), which is its colour.
        marked: features that get a ring and their number.
        quantities: names of the two axes.
        ax: where to draw; None: a new figure.
        title: the finding.

    Raises:
        ValueError: the lists differ in length.
    """
    look.require_alike(features=features, across=across, up=up, kinds=kinds)
    ax = look.new_axes(ax, 5.6, 3.4)
    across = np.asarray(across)
    up = np.asarray(up)
    kinds = np.asarray(kinds)
    ax.axline((0, 0), slope=1, color=look.GREY, lw=0.8, ls=":")
    for kind, color in look.LABEL_COLORS.items():
        here = kinds == kind
        if here.any():
            ax.scatter(across[here], up[here], 26, color=color, label=kind, lw=0)
    for x, y, feature in zip(across, up, features, strict=True):
        if feature in marked:
            ax.scatter(x, y, 60, facecolors="none", edgecolors="black", lw=0.9)
            place = {"textcoords": "offset points", "fontsize": 8, "va": "center"}
            ax.annotate(f"#{feature}", (x, y), (7, 0), **place)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel=quantities[0], ylabel=quantities[1])
    look.side_legend(ax)
    return look.set_title(ax, title)


@checked
@style()
def label_bars(shares: Mapping[str, pd.DataFrame], faint: float = 0.1) -> Figure:
    """Through features of which label an effect goes: a bar a checkpoint, a panel a task.

    Above a bar stands the whole effect. The title of a panel says how much goes through features of
    the neighbour and of the subject at the last checkpoint.

    Args:
        shares: task -> what `shares_of_effect` returns.
        faint: bars of less than this part of the task's largest effect are pale: they share out
            next to nothing.

    Raises:
        ValueError: a column is missing.
    """
    needed = ["checkpoint", "strength", *(f"through_{kind}" for kind in look.LABEL_COLORS)]
    if not shares:
        raise ValueError("There is no task to draw: give {task: shares_of_effect(...)}.")
    fig, axes = plt.subplots(
        1, len(shares), figsize=(0.6 + 3.6 * len(shares), 3.2), sharey=True, squeeze=False
    )
    for ax, (task, table) in zip(axes[0], shares.items(), strict=True):
        look.require_columns(table, *needed)
        table = table.reset_index(drop=True)
        pale = table["strength"] < faint * table["strength"].max()
        start = np.zeros(len(table))
        for kind, color in look.LABEL_COLORS.items():
            part = table[f"through_{kind}"].fillna(0).to_numpy()
            drawn = ax.bar(range(len(table)), part, 0.7, start, color=color, label=kind)
            start = start + part
            for patch, is_pale in zip(drawn, pale, strict=True):
                patch.set_alpha(0.35 if is_pale else 1)
        for at, total in enumerate(table["strength"]):
            ax.annotate(f"{total:.2g}", (at, 1.02), ha="center", va="bottom", fontsize=8)
        look.checkpoint_ticks(ax, list(table["checkpoint"]))
        last = table.iloc[-1]
        parts = [last["through_attractor"], last["through_subject"]]
        told = "nothing to share"
        if not np.isnan(parts).any():
            told = f"neighbour {parts[0]:.0%}, subject {parts[1]:.0%}"
        look.set_title(ax, f"{task}, {last['checkpoint']}: {told}")
    axes[0, 0].set(ylim=(0, 1.12), ylabel="share of the effect\n(above: logits in all)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return fig
