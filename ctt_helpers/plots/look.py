"""What the figures share: the look, the colours, the axes in tokens and in checkpoints, the checks."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes

from ctt_helpers.metrics import check_features, to_numpy

# colours of Okabe and Ito and a few more that stay apart under colour blindness; grey is kept for baselines
HUES = ("#0072B2", "#56B4E9", "#D55E00", "#8C6D00", "#CC79A7", "#009E73", "#332288", "#882255", "#44AA99", "#B8A038")
MARKERS, GREY, IE_UNIT = "osD^vP", "#767676", "indirect effect (logits)"
Effects = Float[np.ndarray, "checkpoints latents"]


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, inside a `with` block (or as a decorator) only: global settings stay as they are."""
    look = {
        **sns.axes_style("ticks"), **sns.plotting_context("paper"), "figure.dpi": 110, "figure.facecolor": "white",
        "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
        "legend.fontsize": 8, "legend.title_fontsize": 8, "legend.frameon": False,
        "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.6,
        "lines.markersize": 3.5,
    }  # fmt: skip
    before = {name: plt.rcParams[name] for name in look}
    plt.rcParams.update(look)  # rc_context would also undo what a notebook's backend sets when it first draws
    try:
        yield
    finally:
        plt.rcParams.update(before)


def checkpoint_colors(names: Sequence[str]) -> dict[str, tuple]:
    """One colour per checkpoint, dark for early and light for late: apart in lightness as well as in hue."""
    colors = plt.get_cmap("plasma")(np.linspace(0.05, 0.78, max(len(names), 2)))
    return {name: tuple(color) for name, color in zip(names, colors, strict=False)}


def task_colors(names: Sequence[str]) -> dict[str, str]:
    """One colour per task (or feature), by position: give all the names, so that a subset keeps its colours."""
    return {name: HUES[i % len(HUES)] for i, name in enumerate(dict.fromkeys(names))}


def format_tokens(n: float) -> str:
    """A count of tokens to three digits: 131072 -> '131k', 1536000 -> '1.54M'."""
    n = float(f"{n:.3g}")
    scale, unit = next(((s, u) for s, u in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if n >= s), (1, ""))
    return f"{n / scale:g}{unit}"


def as_matrix(values, names: Sequence[str], features: Sequence[int] = ()) -> Effects:
    """`values` as a float array [checkpoints, latents], checked against the names and the features asked for.

    Raises:
        ValueError: the shape does not fit the names, or a feature is not among the latents.
    """
    values = to_numpy(values)
    if values.ndim != 2 or len(values) != len(names):
        told = f"Got an array of shape {values.shape} for {len(names)} checkpoints {list(names)}"
        raise ValueError(f"{told}; it must be [checkpoints, latents]. Pass names=ckpts.labels, or transpose the array.")
    check_features(features, values.shape[1])
    return values.astype(float)


def require_columns(table: pd.DataFrame, *needed: str) -> None:
    """Raise a ValueError that names the columns of `table` that are missing."""
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"The table lacks {missing}; it has {list(table.columns)} and must have {list(needed)}.")


def require_names(kind: str, asked: Sequence[str], known: Sequence[str]) -> None:
    """Raise a ValueError that says which name is not known, and which are."""
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"There is no {kind} {unknown[0]!r} here; there are {list(known)}.")


def new_axes(ax: Axes | None, width: float = 4.6, height: float = 3.1) -> Axes:
    return plt.subplots(figsize=(width, height))[1] if ax is None else ax


def token_axis(ax: Axes, tokens: Sequence[float]) -> None:
    seen = np.unique(tokens)
    positive = seen[seen > 0]
    if len(positive):
        # step 0 has no place on a log axis: a short linear piece holds it
        log = {} if len(positive) == len(seen) else {"linthresh": positive[0], "linscale": 0.25}
        ax.set_xscale("symlog" if log else "log", **log)
        decades = 10.0 ** np.arange(np.ceil(np.log10(positive[0])), np.floor(np.log10(positive[-1])) + 1)
        ticks = [*seen[seen == 0], *(decades if len(decades) > 1 else positive)]
        ax.set_xticks(ticks, [format_tokens(t) for t in ticks])
        ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.set_xlabel("tokens seen (log scale)")


def set_title(ax: Axes, title: str) -> Axes:
    """A title folded to the width of its axes, so that a finding may take two lines; returns the axes."""
    ax.set_title(textwrap.fill(title, max(20, int(ax.bbox.width / ax.figure.dpi / 0.078))))
    return ax


def checkpoint_ticks(ax: Axes, names: Sequence[str], start: float = 0) -> None:
    """Ticks at start, start + 1, ... named after the checkpoints, each in its colour."""
    turn = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(names) > 5 else {}
    ax.set_xticks(start + np.arange(len(names)), list(names), **turn)
    ax.set_xlabel("checkpoint")
    for label, color in zip(ax.get_xticklabels(), checkpoint_colors(names).values(), strict=True):
        label.set(color=color, fontweight="bold")


def side_legend(ax: Axes) -> None:
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.2)
