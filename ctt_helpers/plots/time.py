"""Figures of when: accuracy over training; features in a triangle for three checkpoints, as trajectories for many."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from ctt_helpers.plots import look
from ctt_helpers.plots.look import Effects, style

CORNERS = np.array([[0, 0], [0.5, 0.75**0.5], [1, 0]])  # the first checkpoint left, the last right: time runs right


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
    known = list(curve["task"].unique())
    tasks = known if tasks is None else list(tasks)
    look.require_names("task", tasks, known)
    colors = look.task_colors(known if len(known) <= len(look.HUES) else tasks)  # the same in every figure, if they can
    look.require_names("revision", highlight, curve["revision"].unique())
    shown = curve[curve["task"].isin(tasks)].sort_values("tokens_seen")
    sizes = shown.groupby("task")["n_pairs"].max()
    same = sizes.nunique() == 1
    ax = look.new_axes(ax, 6.2)
    look.token_axis(ax, shown["tokens_seen"])
    last = shown.drop_duplicates("task", keep="last").set_index("task")["accuracy"]
    for i, task in enumerate(sorted(tasks, key=lambda t: -last[t])):  # the legend in the order of the curves' ends
        line = shown[shown["task"] == task]
        x, y, e = (line[c].to_numpy(float) for c in ("tokens_seen", "accuracy", "stderr"))
        # the second round of the palette is dashed, so that no two tasks look alike
        dashes = "-" if list(colors).index(task) < len(look.HUES) else "--"
        label = task if same else f"{task} ({sizes[task]:,} pairs)"
        ax.plot(x, y, dashes, color=colors[task], marker=look.MARKERS[i % len(look.MARKERS)], label=label)
        ax.fill_between(x, np.clip(y - e, 0, 1), np.clip(y + e, 0, 1), color=colors[task], alpha=0.18, lw=0)
    at = curve.drop_duplicates("revision").set_index("revision")["tokens_seen"]
    for name, color in look.checkpoint_colors(highlight).items():
        ax.axvline(at[name], color=color, lw=1.3, ls=":", zorder=0.5, label=name)
    ax.axhline(0.5, color="black", lw=0.9, ls=":")
    ax.set_yticks((0, 0.25, 0.5, 0.75, 1), ("0", "0.25", "chance\n0.50", "0.75", "1"))
    ax.set(ylim=(-0.02, 1.04), ylabel="accuracy (share of pairs)")
    pairs = f"{sizes.iloc[0]:,} pairs a task; " if same else ""
    ax.set_xlabel(f"tokens seen (log scale)\n{pairs}band: ± 1 standard error")
    look.side_legend(ax)
    return look.set_title(ax, title)


@style()
def ternary(
    ratios: Effects,
    size: Float[np.ndarray, " latents"],
    names: Sequence[str],
    specific: float = 0.7,
    n_labels: int = 6,
    ax: Axes | None = None,
    title: str = "Whose features are they?",
) -> Axes:
    """RelIE (or RelDec) of a triplet in a triangle: a feature all of one checkpoint lies in its corner, a feature of
    all three in the middle. Inactive features (NaN) are left out.

    Args:
        ratios: [3, latents] shares that add up to 1.
        size: [latents] what the area of a dot stands for, such as the largest |IE|.
        names: labels of the three checkpoints, in the order of training.
        specific: dotted lines cut off the corners in which a ratio is above this; dots there have the corner's colour.
        n_labels: how many of the largest get their number.

    Raises:
        ValueError: other than three checkpoints.
    """
    ratios, size = look.as_matrix(ratios, names), np.abs(np.asarray(size, float))
    if len(names) != 3:
        raise ValueError(f"A triangle shows three checkpoints, and here are {len(names)}: use trajectories.")
    ax, colors = look.new_axes(ax, 4.2, 3.9), look.checkpoint_colors(names)
    ax.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color="black", lw=1)
    for c, (name, color) in enumerate(colors.items()):
        ends = specific * CORNERS[c] + (1 - specific) * np.delete(CORNERS, c, axis=0)
        ax.plot(*ends.T, color=look.GREY, lw=0.8, ls=":")
        ax.annotate(name, CORNERS[c], (0, 5 if c == 1 else -5), textcoords="offset points", color=color, ha="center",
                    va="bottom" if c == 1 else "top", fontweight="bold")  # fmt: skip
    active = np.flatnonzero(np.isfinite(ratios).all(0))
    active = active[np.argsort(-size[active], kind="stable")]  # the largest dots lie below, and hide no small one
    x, y = CORNERS.T @ ratios[:, active]
    area = 5 + 190 * size[active] / max(size[active].max(initial=0), 1e-30)
    hues = [*colors.values(), look.GREY]
    corner = [hues[r.argmax()] if r.max() > specific else hues[-1] for r in ratios[:, active].T]
    ax.scatter(x, y, area, color=corner, alpha=0.6, linewidths=0)
    placed: list[tuple[float, float]] = []
    for feature, across, up in list(zip(active, x, y, strict=True))[:n_labels]:
        spot = up
        while any(abs(spot - b) < 0.045 and abs(across - a) < 0.12 for a, b in placed):
            spot += 0.01 if up < 0.43 else -0.01  # towards the middle, away from the corner's name
        placed.append((across, spot))
        ax.annotate(f"#{feature}", (across + 0.025, spot), fontsize=7.5, va="center")
    ax.text(0, 0.98, f"{len(active):,} active\nfeatures", transform=ax.transAxes, va="top", fontsize=8)
    ax.set(xlim=(-0.12, 1.12), ylim=(-0.1, 0.97), aspect="equal")
    ax.set_axis_off()
    return look.set_title(ax, title)


@style()
def trajectories(
    values: Effects,
    tokens: Sequence[float],
    features: Sequence[int],
    names: Sequence[str],
    low: Effects | None = None,
    high: Effects | None = None,
    quantity: str = f"{look.IE_UNIT}, > 0 helps",
    ax: Axes | None = None,
    title: str = "Features over pretraining",
) -> Axes:
    """A curve a feature over the tokens seen, for any number of checkpoints.

    Args:
        values: [checkpoints, latents] effects, ratios or norms.
        tokens: tokens seen at each checkpoint.
        features: the curves; ten keep apart by colour.
        names: labels of the checkpoints.
        low, high: [checkpoints, latents] ends of intervals, drawn as bands; None: no band.
        quantity: name and unit for the axis.

    Raises:
        ValueError: a checkpoint whose tokens are not known.
    """
    shown = look.as_matrix(values, names, features)
    if len(tokens) != len(names) or None in tokens:
        raise ValueError(f"tokens={list(tokens)}: give the number for each of the {len(names)} checkpoints.")
    ax, colors = look.new_axes(ax, 5.6, 3.2), look.task_colors(features)
    look.token_axis(ax, tokens)
    ax.axhline(0, color=look.GREY, lw=0.8, ls=":")
    # the legend in the order of the curves' ends
    for i, f in enumerate(sorted(features, key=lambda f: -np.nan_to_num(shown[-1, f]))):
        ax.plot(tokens, shown[:, f], marker=look.MARKERS[i % len(look.MARKERS)], color=colors[f], label=f"#{f}")
        if low is not None:
            ax.fill_between(tokens, np.asarray(low)[:, f], np.asarray(high)[:, f], color=colors[f], alpha=0.18, lw=0)
    look.side_legend(ax)
    ax.set_ylabel(quantity)
    return look.set_title(ax, title)
