"""Figures about features: effects or RelIE over the checkpoints, and how sure they are."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from ctt_helpers.plots import look
from ctt_helpers.plots.look import Effects, style


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
    """A row a feature, a column a checkpoint: signed values around a centre, or ratios from 0 to 1.

    Args:
        values: [checkpoints, latents]; NaN (an inactive feature) is left grey.
        features: the rows, from the top.
        names: labels of the checkpoints.
        center: the neutral value of signed effects; None for ratios such as RelIE.
        quantity: name and unit for the colour bar (default: indirect effect, or RelIE where there is no centre).
    """
    shown = look.as_matrix(values, names, features)[:, list(features)].T
    ax = look.new_axes(ax, 2.4 + 0.62 * len(names), 1.3 + 0.27 * len(features))
    ax.set_facecolor("#DDDDDD")
    if center is None:
        scale = {"cmap": "mako_r", "vmin": 0, "vmax": 1}
    else:
        reach = np.nanmax(np.abs(shown - center), initial=0) or 1.0
        scale = {"cmap": "RdBu", "vmin": center - reach, "vmax": center + reach}
    quantity = quantity or ("RelIE (share of |IE|)" if center is None else f"{look.IE_UNIT}, > 0 helps")
    sns.heatmap(pd.DataFrame(shown), ax=ax, linewidths=0.6, annot=len(names) <= 12, fmt=".2f", **scale,
                annot_kws={"fontsize": 7.5 if len(names) <= 6 else 6.5}, cbar_kws={"label": quantity})  # fmt: skip
    for row, column in np.argwhere(np.isnan(shown)):
        ax.text(column + 0.5, row + 0.5, "inactive", ha="center", va="center", fontsize=6.5, color=look.GREY)
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
    """A row a feature, and in it a dot with its interval for each checkpoint.

    Args:
        values, low, high: [checkpoints, latents] estimates and the ends of their intervals (`interval`).
        features: the rows, from the top.
        names: labels of the checkpoints.
        undecided: features to mark as such, with a question mark and hollow dots.
        ratios: the values are RelIE: the axis runs from 0 to 1, with the borders of the classes at 0.3 and 0.7 (up to
            three checkpoints). Otherwise they are effects, with a line at 0.
        level: of the intervals, for the note under the axis.
    """
    middle, low, high = (look.as_matrix(v, names, features)[:, list(features)] for v in (values, low, high))
    n, rows, unsure = len(names), np.arange(len(features)), np.isin(features, list(undecided))
    ax = look.new_axes(ax, 4.0, 1.3 + len(rows) * (0.13 + 0.075 * n))
    for line in (0.3, 0.7) if ratios and n <= 3 else () if ratios else (0,):
        ax.axvline(line, color=look.GREY, lw=0.8, ls=":")
    ax.barh(rows[1::2], 1, height=1, color="#F3F3F3", zorder=0, transform=ax.get_yaxis_transform())
    for c, (name, color) in enumerate(look.checkpoint_colors(names).items()):
        y = rows + 0.7 * ((c + 0.5) / n - 0.5)
        ax.hlines(y, low[c], high[c], color=color, lw=1.3, label=name)
        ax.scatter(middle[c], y, 13, color=np.where(unsure, "white", to_hex(color)), edgecolors=color, zorder=3)
    ax.set_yticks(rows, [f"#{f} ?" if u else f"#{f}" for f, u in zip(features, unsure, strict=True)])
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.03, 1.03) if ratios else None, ylabel="feature")
    note = f"lines: {level:.0%} interval" + ("; hollow: undecided" if unsure.any() else "")
    ax.set_xlabel(f"{'RelIE (share of |IE|)' if ratios else look.IE_UNIT + ', > 0 helps'}\n{note}")
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(n, 4))
    return look.set_title(ax, title)
