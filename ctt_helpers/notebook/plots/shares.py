"""Figures of the factorial over many checkpoints: whose is the effect, and which way features go.

One colour for each of subject, attractor (the neighbour) and both, as everywhere (`LABEL_COLORS`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ctt_helpers.arguments import checked
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.plots.look import style

if TYPE_CHECKING:  # it brings the model libraries, which a figure does not need
    from ctt_helpers.factorial import Factorial

WORDS = {"attractor": "the neighbour", "subject": "the subject", "both": "both compared"}
LEAST = 0.1  # of the largest effect: the shares of less are parts of next to nothing


def drawn_shares(found: pd.DataFrame, least: float = LEAST) -> pd.DataFrame:
    """The shares at the checkpoints where there is something to share; NaN at the others.

    Args:
        found: what `shares_of_effect` returns.
        least: part of the largest strength that a checkpoint must reach.

    Returns:
        As many rows: checkpoint; subject, attractor and both, each with <it>_low and <it>_high.
    """
    from ctt_helpers.factorial import FACTORS

    shares = [f"{name}_share{end}" for name in FACTORS for end in ("", "_low", "_high")]
    look.require_columns(found, "checkpoint", "strength", *shares)
    enough = found["strength"] >= least * found["strength"].max()
    table = found[shares].where(enough).rename(columns=lambda name: name.replace("_share", ""))
    return table.assign(checkpoint=found["checkpoint"])


@checked
def who_leads(found: pd.DataFrame) -> str:
    """Whose share is largest where there is first something to share, and whose at the end."""
    shares = drawn_shares(found)[list(WORDS)].dropna()
    if shares.empty:
        return "nothing to share anywhere"
    first, last = (
        f"{WORDS[row.idxmax()]} ({row.max():.0%})" for _, row in shares.iloc[[0, -1]].iterrows()
    )
    return f"first {first}, in the end {last}"


@checked
@style()
def share_curves(
    found: Mapping[str, pd.DataFrame], truth: Mapping[str, pd.DataFrame] | None = None
) -> Figure:
    """From neighbour to subject: whose the effect is, checkpoint by checkpoint, a panel for a task.

    Checkpoints with less than a tenth of the task's largest effect are left out. The title of a
    panel says who has the largest share at the first checkpoint that is drawn, and at the last.

    Args:
        found: task -> what `shares_of_effect` returns, of the same checkpoints; solid, with bands.
        truth: the same of the model's own behaviour, dashed; None: only the features.

    Raises:
        ValueError: a column is missing, or two tasks differ in their checkpoints.
    """
    if not found:
        raise ValueError("There is no task to draw: give {task: shares_of_effect(...)}.")
    if truth and set(found) - set(truth):
        raise ValueError(f"truth has {list(truth)}, and found {list(found)}: give the same tasks.")
    for table in found.values():
        look.require_columns(table, "checkpoint")
    names = list(next(iter(found.values()))["checkpoint"])
    size = (7.4, 0.8 + 2.3 * len(found))
    fig, axes = plt.subplots(len(found), 1, figsize=size, sharex=True, squeeze=False)
    for ax, (task, table) in zip(axes[:, 0], found.items(), strict=True):
        if list(table["checkpoint"]) != names:
            raise ValueError(f"{task!r} has other checkpoints than {next(iter(found))!r}.")
        shares = drawn_shares(table)
        for marker, (name, words) in zip(look.MARKERS, WORDS.items(), strict=False):
            color, at = look.LABEL_COLORS[name], range(len(names))
            ax.plot(at, shares[name], marker=marker, color=color, label=words)
            low, high = shares[f"{name}_low"], shares[f"{name}_high"]
            ax.fill_between(at, low, high, color=color, alpha=0.25, lw=0)
            if truth:
                ax.plot(at, drawn_shares(truth[task])[name], "--", color=color, lw=1.2)
        ax.set(ylabel="share of the effect", ylim=(-0.03, 1.03), xlim=(-0.4, len(names) - 0.6))
        too_little = int(shares["subject"].notna().to_numpy().argmax())
        if too_little > 2:  # say why there is nothing, where there is room
            words = f"less than {LEAST:.0%} of its largest effect"
            ax.text((too_little - 1) / 2, 0.5, words, color=look.GREY, ha="center", fontsize=8)
        look.set_title(ax, f"{task}: {who_leads(table)}")
    look.checkpoint_ticks(ax, names)
    if truth:
        axes[0, 0].plot([], [], "--", color="black", lw=1.2, label="the model itself")
    look.side_legend(axes[0, 0])
    return fig


@checked
@style()
def factor_paths(found: Factorial, features: Sequence[int], title: str = "") -> Figure:
    """Each feature as a path over the checkpoints: with the neighbour across, the subject upwards.

    A panel each, with scales of its own; an arrow leads to the last checkpoint.

    Args:
        found: of any number of checkpoints; their colours go from dark to light.
        features: which of its features, by their number.
        title: the finding.

    Raises:
        ValueError: a feature that is not among them.
    """
    if not len(features):
        raise ValueError("There is no feature to draw: name at least one.")
    look.require_names("feature", features, found.features.tolist())
    columns = min(3, len(features))
    rows = -(-len(features) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.3 * rows), squeeze=False)
    colors = list(look.checkpoint_colors(found.names).values())
    for ax, feature in zip(axes.flat, features, strict=False):
        i = int(np.flatnonzero(found.features == feature)[0])
        across, up = found.attractor[:, i], found.subject[:, i]
        ax.axhline(0, color=look.GREY, lw=0.8, ls=":", zorder=0)
        ax.axvline(0, color=look.GREY, lw=0.8, ls=":", zorder=0)
        ax.plot(across, up, color=look.GREY, lw=0.7, zorder=1)
        ax.scatter(across, up, 22, colors, zorder=2)
        if len(across) > 1:
            ends = {"xy": (across[-1], up[-1]), "xytext": (across[-2], up[-2])}
            arrow = {"arrowstyle": "->", "color": look.GREY, "lw": 1.2, "shrinkB": 3}
            ax.annotate("", **ends, arrowprops=arrow)
        ax.set_title(f"#{feature}")
        # as far across as upwards, or a slope would mislead
        middle = [(values.min() + values.max()) / 2 for values in (across, up)]
        reach = 0.6 * max(np.ptp(across), np.ptp(up), 1e-6)
        ax.set_xlim(middle[0] - reach, middle[0] + reach)
        ax.set_ylim(middle[1] - reach, middle[1] + reach)
    for ax in axes.flat[len(features) :]:
        ax.set_axis_off()
    fig.supxlabel("effect with the neighbour (logits)", size=9)
    fig.supylabel("effect with the subject (logits)", size=9)
    fig.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
    return fig
