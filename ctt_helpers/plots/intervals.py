"""The figure of uncertainty: estimates with their intervals, a row a feature."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from ctt_helpers.plots import look
from ctt_helpers.plots.look import Effects, style


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
    look.set_title(ax, title)
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(n, 4))
    return ax
