"""Figures about features: effects over the checkpoints, RelIE, agreement between estimators, ablations, intervals."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes

from ctt_helpers.metrics import to_numpy
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
    labels: Mapping[int, str] | None = None,
    quantity: str | None = None,
) -> Axes:
    """A row a feature, a column a checkpoint: signed values around a centre, or ratios from 0 to 1.

    Args:
        values: [checkpoints, latents]; NaN (an inactive feature) is left grey.
        features: the rows, from the top.
        names: labels of the checkpoints.
        center: the neutral value of signed effects; None for ratios such as RelIE.
        labels: feature -> a few words to stand beside its number.
        quantity: name and unit for the colour bar (default: indirect effect, or RelIE where there is no centre).
    """
    shown, labels = look.as_matrix(values, names, features)[:, list(features)].T, labels or {}
    rows = [f"#{f} {labels.get(f, '')}".rstrip() for f in features]
    ax = look.new_axes(ax, 2.1 + 0.62 * len(names) + 0.07 * max(map(len, rows)), 1.3 + 0.27 * len(rows))
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
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, rotation=0)
    ax.tick_params(length=0)
    ax.set_ylabel("feature")
    return look.set_title(ax, title)


@style()
def relie_vs_reldec(
    rel_ie: Effects,
    rel_dec: Effects,
    ie_mean: Effects,
    checkpoint: int,
    names: Sequence[str],
    ax: Axes | None = None,
    title: str = "What features do against where they are written",
    n_labels: int = 6,
) -> Axes:
    """RelIE against RelDec of every active feature at one checkpoint, as in Crosscoding Through Time.

    Args:
        rel_ie, rel_dec: [checkpoints, latents], NaN for inactive features, which are left out.
        ie_mean: [checkpoints, latents]: a point's area is its |IE| at this checkpoint.
        checkpoint: index of the checkpoint.
        names: labels of the checkpoints.
        n_labels: how many of the strongest features are named.
    """
    y, x, size = (look.as_matrix(v, names)[checkpoint] for v in (rel_ie, rel_dec, ie_mean))
    size, name, ax = np.abs(size), list(names)[checkpoint], look.new_axes(ax, 3.9, 3.5)
    active = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    area = 4 + 160 * size[active] / max(size[active].max(initial=0), 1e-30)
    ax.scatter(x[active], y[active], area, color=look.checkpoint_colors(names)[name], alpha=0.55, linewidths=0)
    ax.axline((0, 0), slope=1, color=look.GREY, lw=1, ls=":")
    for f in active[np.argsort(-size[active])][:n_labels]:
        ax.annotate(f"#{f}", (x[f], y[f]), (4, 4), textcoords="offset points", fontsize=7.5)
    note = f"{len(active):,} active features, area: |IE|"
    ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.06), ylabel=f"RelIE at {name} (share of |IE|)")
    ax.set_xlabel(f"RelDec at {name} (share of decoder norm)\n{note}")
    return look.set_title(ax, title)


@style()
def effect_scatter(
    x: Float[np.ndarray, " latents"],
    y: Float[np.ndarray, " latents"],
    xlabel: str = "exact ablation (logits)",
    ylabel: str = look.IE_UNIT,
    ax: Axes | None = None,
    title: str = "Two estimates of the same effects",
) -> Axes:
    """Two estimates of the same effects against each other, with the identity and Spearman's rank correlation.

    Args:
        x, y: one value a feature; pairs in which one is NaN are left out.

    Raises:
        ValueError: x and y differ in length.
    """
    x, y = (np.ravel(to_numpy(v)).astype(float) for v in (x, y))
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} values and y has {len(y)}: give both for the same features.")
    table = pd.DataFrame({"x": x, "y": y}).dropna()
    varies = len(table) > 1 and table.nunique().min() > 1
    rank = f"{table['x'].rank().corr(table['y'].rank()):.2f}" if varies else "undefined"
    ax = look.new_axes(ax, 3.7, 3.4)
    ax.axline((0, 0), slope=1, color=look.GREY, lw=1, ls=":")
    ax.scatter(table["x"], table["y"], 14, color=look.HUES[0], alpha=0.6, linewidths=0)
    corner = f"rank correlation {rank}\n{len(table):,} features"
    ax.text(0.03, 0.97, corner, transform=ax.transAxes, va="top", fontsize=8)
    ax.margins(0.08)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return look.set_title(ax, title)


@style()
def ablation_bars(
    table: pd.DataFrame, ax: Axes | None = None, title: str = "Accuracy with features switched off"
) -> Axes:
    """Accuracy per checkpoint, untouched and with each group of features ablated, side by side with its controls.

    Args:
        table: what `ablate` gives, one table a group put together with a column `group`; the columns used are
            checkpoint, group, accuracy_before, accuracy_after, n_pairs. Groups whose name says "control" or "random"
            are hatched. Error bars are binomial standard errors.

    Raises:
        ValueError: a column is missing, or a group has more than one row for a checkpoint.
    """
    look.require_columns(table, "checkpoint", "group", "accuracy_before", "accuracy_after", "n_pairs")
    if table.duplicated(["checkpoint", "group"]).any():
        raise ValueError("A group has several rows for one checkpoint: draw one task at a time, or name groups apart.")
    names, groups = (list(dict.fromkeys(table[c])) for c in ("checkpoint", "group"))
    before = table.drop_duplicates("checkpoint").assign(group="nothing ablated")
    before["accuracy_after"] = before["accuracy_before"]
    by = pd.concat([before, table]).set_index(["group", "checkpoint"])[["accuracy_after", "n_pairs"]]
    bars = ["nothing ablated", *groups]
    ax = look.new_axes(ax, max(4.8, 1.6 + 0.28 * len(names) * len(bars)))
    colors, width = {"nothing ablated": "#BBBBBB"} | look.task_colors(groups), 0.84 / len(bars)
    for i, group in enumerate(bars):
        accuracy, n_pairs = by.loc[group].reindex(names).to_numpy(float).T
        control = any(word in group.lower() for word in ("control", "random"))
        x = np.arange(len(names)) + (i - (len(bars) - 1) / 2) * width
        ax.bar(x, accuracy, width * 0.92, yerr=np.sqrt(accuracy * (1 - accuracy) / n_pairs), label=group,
               color="white" if control else colors[group], edgecolor=colors[group], hatch="////" if control else None,
               error_kw={"lw": 1, "capsize": 2})  # fmt: skip
    look.accuracy_axis(ax)
    look.checkpoint_ticks(ax, names)
    ax.set(ylim=(0, 1.04), xlabel=f"checkpoint\n{table['n_pairs'].max():,} pairs; lines: \u00b1 1 standard error")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.75))
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
    labels: Mapping[int, str] | None = None,
    quantity: str | None = None,
    level: float = 0.95,
) -> Axes:
    """A row a feature, and in it a dot with its interval for each checkpoint.

    Args:
        values, low, high: [checkpoints, latents] estimates and the ends of their intervals (`interval`).
        features: the rows, from the top.
        names: labels of the checkpoints.
        undecided: features to mark as such: grey, with a question mark and hollow dots.
        ratios: the values are RelIE: the axis runs from 0 to 1, with the borders of the classes at 0.3 and 0.7 (up to
            three checkpoints). Otherwise they are effects, with a line at 0.
        labels: feature -> a few words to stand beside its number.
        quantity, level: name and unit for the axis, and the level of the intervals for the note under it.
    """
    middle, low, high = (look.as_matrix(v, names, features)[:, list(features)] for v in (values, low, high))
    labels, n, rows = labels or {}, len(names), np.arange(len(features))
    unsure = np.array([f in undecided for f in features], dtype=bool)
    ticks = [f"#{f} {labels.get(f, '')}".rstrip() + " ?" * bool(u) for f, u in zip(features, unsure, strict=True)]
    width = 3.6 + 0.07 * max(map(len, ticks), default=0)
    ax = look.new_axes(ax, width, 1.3 + len(rows) * (0.13 + 0.075 * n))
    for line in (0.3, 0.7) if ratios and n <= 3 else () if ratios else (0,):
        ax.axvline(line, color=look.GREY, lw=0.8, ls=":")
    ax.barh(rows[1::2], 1, height=1, color="#F3F3F3", zorder=0, transform=ax.get_yaxis_transform())
    for c, (name, color) in enumerate(look.checkpoint_colors(names).items()):
        y = rows + 0.7 * ((c + 0.5) / n - 0.5)
        ax.hlines(y, low[c], high[c], color=color, lw=1.3)
        for hollow in (False, True):
            here = unsure == hollow
            ax.scatter(middle[c, here], y[here], 13, color="white" if hollow else color, edgecolors=color, zorder=3,
                       label=None if hollow else name)  # fmt: skip
    ax.set_yticks(rows, ticks)
    for text, u in zip(ax.get_yticklabels(), unsure, strict=True):
        text.set_color(look.GREY if u else "black")
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(rows) - 0.5, -0.5), ylabel="feature")
    if ratios:
        ax.set_xlim(-0.03, 1.03)
    note = f"lines: {level:.0%} interval" + ("; hollow: undecided" if unsure.any() else "")
    ax.set_xlabel(f"{quantity or ('RelIE (share of |IE|)' if ratios else look.IE_UNIT + ', > 0 helps')}\n{note}")
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(n, 4))
    return look.set_title(ax, title)
