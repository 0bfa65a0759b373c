"""Figures about features: effects or RelIE over the checkpoints, and how sure they are."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.plots.look import Effects, style


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
        annot=len(names) <= 12,
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
