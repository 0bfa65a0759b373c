"""Figures about when: accuracy over training, and features over the checkpoints.

Three checkpoints fit into a triangle. For more there are curves.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctt_helpers.arguments import checked
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.plots.look import Effects, style

MOST_COLUMNS = 12  # of small pictures
# of the triangle: the first checkpoint left, the last one right, so time runs to the right
CORNERS = np.array([[0, 0], [0.5, 0.75**0.5], [1, 0]])


@checked
@style()
def accuracy_curves(
    curve: pd.DataFrame,
    tasks: Sequence[str] | None = None,
    highlight: Sequence[str] = (),
    ax: Axes | None = None,
    title: str = "Accuracy over pretraining",
) -> Axes:
    """Accuracy on each task over training, as in Crosscoding Through Time.

    A band shows the standard error, a dotted line chance.

    Args:
        curve: what `accuracy_curve` returns: revision, tokens_seen, task, accuracy, stderr,
            n_pairs. Of a curve in cells, the whole of each task (see `cell_curves`).
        tasks: which to draw; None: all that the curve has.
        highlight: revisions to mark, in the order of training. They get the colours that the same
            revisions have in other figures.
        ax: where to draw; None: a new figure.
        title: the finding.

    Raises:
        ValueError: a column, a task or a revision is not in the curve.
    """
    look.require_columns(curve, "revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs")
    if "cell" in curve:
        curve = curve[curve["cell"] == "all"]
    known = list(curve["task"].unique())
    tasks = known if tasks is None else list(tasks)
    look.require_names("task", tasks, known)
    # a task has the same colour in every figure, as long as there are enough colours
    colors = look.task_colors(known if len(known) <= len(look.HUES) else tasks)
    look.require_names("revision", highlight, curve["revision"].unique())
    shown = curve[curve["task"].isin(tasks)].sort_values("tokens_seen")
    sizes = shown.groupby("task")["n_pairs"].max()
    same_size = sizes.nunique() == 1
    ax = look.new_axes(ax, 6.2)
    look.token_axis(ax, shown["tokens_seen"])

    # the legend is in the order of the curves' ends
    last = shown.drop_duplicates("task", keep="last").set_index("task")["accuracy"]
    for i, task in enumerate(sorted(tasks, key=lambda task: -last[task])):
        line = shown[shown["task"] == task]
        x = line["tokens_seen"].to_numpy(float)
        y = line["accuracy"].to_numpy(float)
        error = line["stderr"].to_numpy(float)
        # the second round of the palette is dashed, so that no two tasks look alike
        dashes = "-" if list(colors).index(task) < len(look.HUES) else "--"
        ax.plot(
            x,
            y,
            dashes,
            color=colors[task],
            marker=look.MARKERS[i % len(look.MARKERS)],
            label=task if same_size else f"{task} ({sizes[task]:,} pairs)",
        )
        ax.fill_between(
            x,
            np.clip(y - error, 0, 1),
            np.clip(y + error, 0, 1),
            color=colors[task],
            alpha=0.18,
            lw=0,
        )

    _mark_checkpoints(ax, curve, highlight)
    _accuracy_axis(ax)
    note = "band: ± 1 standard error"
    if same_size:
        note = f"{sizes.iloc[0]:,} pairs a task; {note}"
    ax.set_xlabel(f"tokens seen (log scale)\n{note}")
    look.side_legend(ax)
    return look.set_title(ax, title)


@checked
@style()
def cell_curves(
    curve: pd.DataFrame,
    task: str,
    plain: str | None = None,
    halves: bool = False,
    highlight: Sequence[str] = (),
    ax: Axes | None = None,
    title: str = "Accuracy by cell",
) -> Axes:
    """Accuracy on a task over training, cell by cell, which its mean over the cells hides.

    Cells in which nothing distracts have one colour, those in which something does the other. Cells
    of the second level of the subject are dashed.

    Args:
        curve: what `accuracy_curve` returns with cells=True.
        task: one in which something is crossed with the subject.
        plain: a task to compare with, the whole of it, in grey; None: none.
        halves: draw the mean over the cells of each colour instead of each cell.
        highlight: revisions to mark, in the order of training.
        ax: where to draw; None: a new figure.
        title: the finding.

    Raises:
        ValueError: a column, a task or a revision is not in the curve, or the task has no cells in
            which something distracts.
    """
    needed = ("revision", "tokens_seen", "task", "cell", "congruent", "accuracy")
    look.require_columns(curve, *needed)
    look.require_names("task", [task, *([plain] if plain else [])], curve["task"].unique())
    look.require_names("revision", highlight, curve["revision"].unique())
    own = curve[(curve["task"] == task) & curve["congruent"].notna()]
    if own.empty:
        raise ValueError(f"Nothing distracts in {task!r}: draw it with accuracy_curves.")
    ax = look.new_axes(ax, 6.2)
    look.token_axis(ax, curve["tokens_seen"])
    if plain is not None:
        whole = curve[(curve["task"] == plain) & (curve["cell"] == "all")]
        line = whole.sort_values("tokens_seen")
        ax.plot(line["tokens_seen"], line["accuracy"], color=look.GREY, lw=1.2, label=plain)
    name = "congruent" if halves else "cell"
    own = own.assign(congruent=own["congruent"].astype(bool))
    subject = own["cell"].str.split("-").str[0]
    for key, lines in own.groupby(name, sort=False):
        is_congruent = lines["congruent"].iloc[0]
        color = look.CELL_COLORS["congruent" if is_congruent else "incongruent"]
        is_second = not halves and subject[lines.index[0]] != subject.iloc[0]
        line = lines.groupby("tokens_seen")["accuracy"].mean()
        label = ("congruent" if key else "incongruent") if halves else key
        dashes = "--" if is_second else "-"
        marker = "o" if is_congruent else "v"
        ax.plot(line.index, line, dashes, color=color, marker=marker, label=label)
    _mark_checkpoints(ax, curve, highlight)
    _accuracy_axis(ax)
    look.side_legend(ax)
    return look.set_title(ax, title)


@checked
@style()
def cell_panels(
    curve: pd.DataFrame,
    tasks: Sequence[str],
    plain: Mapping[str, str | None],
    columns: int = 3,
    title: str = "Accuracy by cell",
) -> Figure:
    """A small picture for each task: its congruent half, its incongruent half, a plain task.

    Args:
        curve: what `accuracy_curve` returns with cells=True.
        tasks: those in which something is crossed with the subject.
        plain: task -> one to compare with, or None; `cell_curves`.
        columns: pictures in a row.
        title: the finding, over all of them.

    Raises:
        ValueError: no task, or as `cell_curves`.
    """
    if not tasks:
        raise ValueError("There is no task to draw: give those in which something distracts.")
    if not 1 <= columns <= MOST_COLUMNS:
        raise ValueError(f"columns={columns}: take 1 to {MOST_COLUMNS} pictures in a row.")
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(8.4, 0.9 + 1.7 * rows), sharex=True, sharey=True, squeeze=False
    )
    for ax, task in zip(axes.flat, tasks, strict=False):
        cell_curves(curve, task, plain.get(task), halves=True, ax=ax, title=task)
        ax.set(xlabel="", ylabel="")
        ax.get_legend().remove()
        ax.tick_params(labelbottom=True)
    for ax in axes.flat[len(tasks) :]:
        ax.set_axis_off()
    lines = {line.get_label(): line for line in axes[0, 0].lines}
    legend = {half: lines[half] for half in ("congruent", "incongruent")}
    if plain.get(tasks[0]):
        legend["the plain task"] = lines[plain[tasks[0]]]
    figure.legend(legend.values(), legend, loc="outside lower right", ncols=3)
    figure.supxlabel("tokens seen (log scale)", fontsize=9)
    figure.supylabel("accuracy (share of pairs)", fontsize=9)
    figure.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
    return figure


@checked
@style()
def onset_dots(
    onset: pd.Series,
    revisions: Sequence[str],
    marked: Sequence[str] = (),
    ax: Axes | None = None,
    title: str = "When each is learned",
) -> Axes:
    """At which checkpoint each task is learned, the first on top.

    Tasks named phenomenon/structure have one colour a phenomenon.

    Args:
        onset: task -> index of the checkpoint; the number of checkpoints stands for never, and is
            drawn open.
        revisions: the checkpoints.
        marked: tasks that are drawn as diamonds.
        ax: where to draw; None: a new figure.
        title: the finding.

    Raises:
        ValueError: an index that is no checkpoint.
    """
    if not onset.between(0, len(revisions)).all():
        raise ValueError(f"Onsets are indices from 0 to {len(revisions)}, which stands for never.")
    ax = look.new_axes(ax, 7.4, 0.9 + 0.2 * len(onset))
    kinds = [str(task).split("/")[0] for task in onset.index]
    colors = dict(zip(dict.fromkeys(kinds), look.HUES * len(kinds), strict=False))
    colors = dict(zip(onset.index, (colors[kind] for kind in kinds), strict=True))
    order = onset.sort_values(kind="stable", ascending=False)
    for y, (task, place) in enumerate(order.items()):
        ax.plot([0, place], [y, y], color="#DDDDDD", lw=1, zorder=0)
        marker = "D" if task in marked else "o"
        face = "white" if place == len(revisions) else colors[task]
        ax.plot(place, y, marker, ms=6, mec=colors[task], mfc=face)
    ax.set_yticks(range(len(order)), order.index)
    for label, task in zip(ax.get_yticklabels(), order.index, strict=True):
        label.set_color(colors[task])
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(len(revisions) + 1), [*revisions, "never"], **turned)
    ax.set(xlabel="onset", ylabel="")
    return look.set_title(ax, title)


def _mark_checkpoints(ax: Axes, curve: pd.DataFrame, highlight: Sequence[str]) -> None:
    """A dotted line at each of these, in its colour."""
    tokens_at = curve.drop_duplicates("revision").set_index("revision")["tokens_seen"]
    for name, color in look.checkpoint_colors(highlight).items():
        ax.axvline(tokens_at[name], color=color, lw=1.3, ls=":", zorder=0.5, label=name)


def _accuracy_axis(ax: Axes) -> None:
    """From 0 to 1, with a line at chance."""
    ax.axhline(0.5, color="black", lw=0.9, ls=":")
    ax.set_yticks((0, 0.25, 0.5, 0.75, 1), ("0", "0.25", "chance\n0.50", "0.75", "1"))
    ax.set(ylim=(-0.02, 1.04), ylabel="accuracy (share of pairs)")


@checked
@style()
def factorial_curves(
    found: pd.DataFrame,
    tokens: Sequence[float],
    quantity: str = "effect on plural minus\nsingular verb (logits)",
    highlight: Sequence[str] = (),
    ax: Axes | None = None,
    title: str = "From neighbour to subject",
) -> Axes:
    """Subject, attractor (the neighbour) and both over training, with their intervals.

    Args:
        found: what `behaviour_factorial` or `shares_of_effect` returns: one row a checkpoint, with
            subject, attractor and both, each with <it>_low and <it>_high.
        tokens: tokens seen at each of them.
        quantity: name and unit for the axis.
        highlight: checkpoints to mark.
        ax: where to draw; None: a new figure.
        title: the finding.

    Raises:
        ValueError: a column is missing, a checkpoint is not in the table, or another number of
            tokens.
    """
    factors = {"subject": "subject", "attractor": "neighbour (attractor)", "both": "both together"}
    ends = [f"{name}_{end}" for name in factors for end in ("low", "high")]
    look.require_columns(found, "checkpoint", *factors, *ends)
    look.require_names("checkpoint", highlight, list(found["checkpoint"]))
    if len(tokens) != len(found):
        raise ValueError(f"{len(tokens)} numbers of tokens for {len(found)} checkpoints.")
    ax = look.new_axes(ax, 6.2)
    look.token_axis(ax, tokens)
    ax.axhline(0, color=look.GREY, lw=0.8, ls=":")
    for marker, (name, word) in zip(look.MARKERS, factors.items(), strict=False):
        color = look.LABEL_COLORS[name]
        ax.plot(tokens, found[name], marker=marker, color=color, label=word)
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        ax.fill_between(tokens, low, high, color=color, alpha=0.2, lw=0)
    at = pd.DataFrame({"revision": found["checkpoint"], "tokens_seen": tokens})
    _mark_checkpoints(ax, at, highlight)
    ax.set_ylabel(quantity)
    look.side_legend(ax)
    return look.set_title(ax, title)


@checked
@style()
def cell_bars(
    means: pd.DataFrame,
    congruent: Mapping[str, bool],
    labels: Sequence[str] = (),
    quantity: str = look.IE_LABEL,
    ax: Axes | None = None,
    title: str = "Effects by cell",
) -> Axes:
    """A group of bars for each checkpoint, a bar for each cell.

    Congruent cells have one colour, the others another; the second half of the cells is hatched.

    Args:
        means: one row a checkpoint, one column a cell.
        congruent: cell -> whether nothing distracts in it.
        labels: what to write under each checkpoint: of `Factorial.label`, say. None: its name.
        quantity: name and unit for the axis.
        ax: where to draw; None: a new figure.
        title: the finding.

    Raises:
        ValueError: a cell of which nothing is said, or labels of another number.
    """
    look.require_names("cell", list(means), list(congruent))
    if labels and len(labels) != len(means):
        raise ValueError(f"{len(labels)} labels for {len(means)} checkpoints.")
    ax = look.new_axes(ax, 3.4, 2.8)
    n_cells = means.shape[1]
    width = 0.8 / n_cells
    for j, cell in enumerate(means):
        ax.bar(
            np.arange(len(means)) + width * (j - (n_cells - 1) / 2),
            means[cell],
            width,
            color=look.CELL_COLORS["congruent" if congruent[cell] else "incongruent"],
            hatch="////" if j >= n_cells / 2 else None,
            edgecolor="white",
            lw=0,
            label=cell,
        )
    ax.axhline(0, color="black", lw=0.8)
    names = [str(name) for name in means.index]
    look.checkpoint_ticks(ax, names)
    if labels:
        written = [f"{name}\n{label}" for name, label in zip(names, labels, strict=True)]
        ax.set_xticks(ax.get_xticks(), written)
    ax.set(xlabel="", ylabel=quantity)
    return look.set_title(ax, title)


@checked
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
    """RelIE (or RelDec) of three checkpoints in a triangle.

    A feature of one checkpoint alone lies in its corner, a feature of all three in the middle.
    Inactive features (NaN) are left out.

    Args:
        ratios: [3, latents] shares that add up to 1.
        size: [latents] what the area of a dot stands for, such as the largest |IE|.
        names: labels of the three checkpoints, in the order of training.
        specific: dotted lines cut off the corners in which a ratio is above this; dots there have
            the corner's colour.
        n_labels: how many features get their number, the largest first.
        ax: where to draw; None: a new figure.
        title: the finding.

    Raises:
        ValueError: other than three checkpoints, or a shape that does not fit the names.
    """
    ratios = look.as_matrix(ratios, names)
    size = np.abs(np.asarray(size, float))
    if len(names) != 3:
        raise ValueError(
            f"A triangle shows three checkpoints, and here are {len(names)}: use trajectories."
        )
    ax = look.new_axes(ax, 4.2, 3.9)
    colors = look.checkpoint_colors(names)
    _triangle(ax, colors, specific)

    # the largest dots lie below, and hide no small one
    active = np.flatnonzero(np.isfinite(ratios).all(0))
    active = active[np.argsort(-size[active], kind="stable")]
    x, y = CORNERS.T @ ratios[:, active]
    area = 5 + 190 * size[active] / max(size[active].max(initial=0), 1e-30)
    corner_colors = list(colors.values())
    dot_colors = [
        corner_colors[shares.argmax()] if shares.max() > specific else look.GREY
        for shares in ratios[:, active].T
    ]
    ax.scatter(x, y, area, color=dot_colors, alpha=0.6, linewidths=0)
    _number_dots(ax, active[:n_labels], x[:n_labels], y[:n_labels])
    ax.text(
        0, 0.98, f"{len(active):,} active\nfeatures", transform=ax.transAxes, va="top", fontsize=8
    )
    ax.set(xlim=(-0.12, 1.12), ylim=(-0.1, 0.97), aspect="equal")
    ax.set_axis_off()
    return look.set_title(ax, title)


def _triangle(ax: Axes, colors: dict[str, tuple], specific: float) -> None:
    """The sides, the names in the corners, and the lines that cut the corners off."""
    closed = np.vstack([CORNERS, CORNERS[:1]])
    ax.plot(closed[:, 0], closed[:, 1], color="black", lw=1)
    for c, (name, color) in enumerate(colors.items()):
        ends = specific * CORNERS[c] + (1 - specific) * np.delete(CORNERS, c, axis=0)
        ax.plot(ends[:, 0], ends[:, 1], color=look.GREY, lw=0.8, ls=":")
        is_top = c == 1
        ax.annotate(
            name,
            CORNERS[c],
            (0, 5 if is_top else -5),
            textcoords="offset points",
            color=color,
            ha="center",
            va="bottom" if is_top else "top",
            fontweight="bold",
        )


def _number_dots(
    ax: Axes,
    features: Sequence[int],
    x: Float[np.ndarray, " features"],
    y: Float[np.ndarray, " features"],
) -> None:
    """Write each feature's number beside its dot, moved up or down where another number is."""
    placed: list[tuple[float, float]] = []

    def is_taken(across: float, up: float) -> bool:
        return any(abs(up - b) < 0.045 and abs(across - a) < 0.12 for a, b in placed)

    for feature, across, dot in zip(features, x, y, strict=True):
        # towards the middle, away from the corner's name
        move = 0.01 if dot < 0.43 else -0.01
        up = dot
        while is_taken(across, up):
            up += move
        placed.append((across, up))
        ax.annotate(f"#{feature}", (across + 0.025, up), fontsize=7.5, va="center")


@checked
@style()
def trajectories(
    values: Effects,
    tokens: Sequence[float | None],
    features: Sequence[int],
    names: Sequence[str],
    low: Effects | None = None,
    high: Effects | None = None,
    quantity: str = look.IE_LABEL,
    ax: Axes | None = None,
    title: str = "Features over pretraining",
) -> Axes:
    """One curve per feature over the tokens seen, for any number of checkpoints.

    Args:
        values: [checkpoints, latents] effects, ratios or norms.
        tokens: [checkpoints] tokens seen at each.
        features: the curves; up to ten differ in colour.
        names: labels of the checkpoints.
        low: [checkpoints, latents] lower ends of intervals, drawn as bands; None: no bands.
        high: [checkpoints, latents] upper ends; needed with `low`.
        quantity: name and unit for the axis.
        ax: where to draw; None: a new figure.
        title: the finding.

    Raises:
        ValueError: a checkpoint whose tokens are not known, a shape that does not fit the names, or
            a feature that is not among the latents.
    """
    shown = look.as_matrix(values, names, features)
    if (low is None) != (high is None):
        raise ValueError("Give both ends of the intervals, low= and high=, or neither.")
    if low is not None:
        low, high = (look.as_matrix(ends, names, features) for ends in (low, high))
    if len(tokens) != len(names) or None in tokens:
        raise ValueError(
            f"tokens={list(tokens)}: give the number for each of the {len(names)} checkpoints."
        )
    ax = look.new_axes(ax, 5.6, 3.2)
    colors = look.task_colors(features)
    look.token_axis(ax, tokens)
    ax.axhline(0, color=look.GREY, lw=0.8, ls=":")
    # the legend is in the order of the curves' ends
    ends = np.nan_to_num(shown[-1])
    for i, feature in enumerate(sorted(features, key=lambda feature: -ends[feature])):
        ax.plot(
            tokens,
            shown[:, feature],
            marker=look.MARKERS[i % len(look.MARKERS)],
            color=colors[feature],
            label=f"#{feature}",
        )
        if low is not None:
            ax.fill_between(
                tokens, low[:, feature], high[:, feature], color=colors[feature], alpha=0.18, lw=0
            )
    look.side_legend(ax)
    ax.set_ylabel(quantity)
    return look.set_title(ax, title)
