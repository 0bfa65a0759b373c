"""What the figures share: the look, the colours, the axes of tokens and checkpoints, the checks."""

import textwrap
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ctt_helpers.arguments import checked
from ctt_helpers.metrics import check_features, to_numpy

# colours of Okabe and Ito and a few more that stay apart under colour blindness; grey is kept for
# baselines
HUES = (
    "#0072B2",
    "#56B4E9",
    "#D55E00",
    "#8C6D00",
    "#CC79A7",
    "#009E73",
    "#332288",
    "#882255",
    "#44AA99",
    "#B8A038",
)
MARKERS = "osD^vP"
GREY = "#767676"
IE_UNIT = "indirect effect (logits)"
IE_LABEL = f"{IE_UNIT}, > 0 helps"
RATIO_LABEL = "RelIE (share of |IE|)"
TITLE_CHARACTER = 0.078  # width of a character of a title, in inches
Effects = Float[np.ndarray, "checkpoints latents"]

# ---- the look

DARK = ".15"  # of text, ticks and frames
# seaborn's "ticks" on "paper" written out, for its import takes a second before the first figure
SEABORN = {
    "axes.axisbelow": True,
    "axes.edgecolor": DARK,
    "axes.labelcolor": DARK,
    "axes.linewidth": 1.0,
    "font.sans-serif": ["Arial", "DejaVu Sans", "Liberation Sans", "Bitstream Vera Sans"],
    "grid.color": ".8",
    "lines.solid_capstyle": "round",
    "patch.edgecolor": "w",
    "patch.force_edgecolor": True,
    "patch.linewidth": 0.8,
    "text.color": DARK,
    **{
        f"{axis}tick.{what}": value
        for axis in "xy"
        for what, value in {
            "color": DARK,
            "major.size": 4.8,
            "major.width": 1.0,
            "minor.size": 3.2,
            "minor.width": 0.8,
        }.items()
    },
}


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, for use as a decorator or in a `with` block.

    Outside of it, matplotlib's settings stay as they are.
    """
    look = {
        **SEABORN,
        "figure.dpi": 110,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.title_fontsize": 8,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 3.5,
    }
    # rc_context would also undo what a notebook's backend sets when it first draws
    before = {name: plt.rcParams[name] for name in look}
    plt.rcParams.update(look)
    try:
        yield
    finally:
        plt.rcParams.update(before)


@checked
def set_title(ax: Axes, title: str) -> Axes:
    """Set a title, folded to the width of its axes, so that a finding may take two lines.

    Returns:
        The axes.
    """
    inches = ax.bbox.width / ax.figure.dpi
    characters = max(20, int(inches / TITLE_CHARACTER))
    ax.set_title(textwrap.fill(title, characters))
    return ax


def new_axes(ax: Axes | None, width: float = 4.6, height: float = 3.1) -> Axes:
    """The axes given; without any, those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    _, ax = plt.subplots(figsize=(width, height))
    return ax


@checked
def show(alt: str, figure: Figure | None = None) -> None:
    """Display a figure with its text for those who do not see it, and close it.

    Its titles come first, so that the finding is there as well. The text is kept with the picture:
    as "alt" of image/png, where IPython keeps it (and nbconvert's classic template finds it), and
    as text/plain, which is shown where pictures are not.

    Args:
        alt: what is drawn: the kind of figure, its axes, what each line stands for.
        figure: None: the one drawn last.

    Raises:
        ValueError: no text.
    """
    from IPython import get_ipython
    from IPython.display import display

    if not alt.strip():
        raise ValueError("Say in a sentence what the figure shows: show('A line chart of ...').")
    figure = figure or plt.gcf()
    titles = [figure.get_suptitle()]
    for ax in figure.axes:
        titles += [ax.get_title(loc=where) for where in ("left", "center")]
    titles = [" ".join(title.split()) for title in titles if title]
    text = ". ".join([*titles, alt.strip()])
    shell = get_ipython()
    if shell is None:  # a script has no place for pictures
        print(text)
    else:
        data, _ = shell.display_formatter.format(figure)
        display(data | {"text/plain": text}, metadata={"image/png": {"alt": text}}, raw=True)
    plt.close(figure)


def side_legend(ax: Axes) -> None:
    """A legend to the right of the axes."""
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.2)


# ---- colours

# all checkpoints and tasks of the suite in use, so that one has its colour in every figure
_KNOWN: dict[str, list[str]] = {"checkpoints": [], "tasks": []}
# what a feature is about (`factorial`): the same colour for all features of a label
LABEL_COLORS = {
    "subject": "#0072B2",
    "attractor": "#D55E00",
    "both": "#CC79A7",
    "mixed": "#8C6D00",
    "none": "#B0B0B0",
}
CELL_COLORS = {"congruent": "#009E73", "incongruent": "#D55E00"}


@checked
def use_colors_of(checkpoints: Sequence[str], tasks: Sequence[str]) -> None:
    """From here on a checkpoint or task has the colour of its place among all of these.

    `ctt.setup` calls it. Names that are not among them are coloured by their place in a figure.
    """
    _KNOWN["checkpoints"] = list(dict.fromkeys(checkpoints))
    _KNOWN["tasks"] = list(dict.fromkeys(tasks))


def _of_all(kind: str, names: Sequence[str]) -> list[str]:
    """All names that are known, if these are among them; else these."""
    known = _KNOWN[kind]
    return known if set(names) <= set(known) else list(dict.fromkeys(names))


@checked
def checkpoint_colors(names: Sequence[str]) -> dict[str, tuple]:
    """One colour (RGBA) per checkpoint, dark for early and light for late.

    They differ in lightness as well as in hue.
    """
    known = _of_all("checkpoints", names)
    colors = plt.get_cmap("plasma")(np.linspace(0.05, 0.78, max(len(known), 2)))
    # a single checkpoint takes the first of two colours
    by_name = {name: tuple(color) for name, color in zip(known, colors, strict=False)}
    return {name: by_name[name] for name in names}


@checked
def task_colors(names: Sequence[Hashable]) -> dict[str, str]:
    """One colour per task (or feature), by its position among the names.

    By its position among all tasks of the suite where it is known (`use_colors_of`). Otherwise give
    all the names, not only those in the figure: then each keeps its colour in every figure. After
    ten names the colours come again.
    """
    known = _of_all("tasks", names)
    return {name: HUES[known.index(name) % len(HUES)] for name in dict.fromkeys(names)}


# ---- checks


def as_matrix(values, names: Sequence[str], features: Sequence[int] = ()) -> Effects:
    """`values` as a float array [checkpoints, latents].

    Args:
        values: a numpy array or a tensor.
        names: labels of the checkpoints.
        features: the latents that will be looked up.

    Raises:
        ValueError: the shape does not fit the names, or a feature is not among the latents.
    """
    values = to_numpy(values)
    if values.ndim != 2 or len(values) != len(names):
        raise ValueError(
            f"Got an array of shape {values.shape} for {len(names)} checkpoints {list(names)}; "
            "it must be [checkpoints, latents]. Pass names=ckpts.labels, or transpose the array."
        )
    check_features(features, values.shape[1])
    return values.astype(float)


WORDS = {"revision", "task", "cell", "congruent", "checkpoint"}  # all other columns hold numbers


def require_columns(table: pd.DataFrame, *needed: str, words: Collection[str] = WORDS) -> None:
    """Raise a ValueError that names the columns of `table` that are missing, or are no numbers."""
    missing = [name for name in needed if name not in table]
    if missing:
        raise ValueError(
            f"The table lacks {missing}; it has {list(table.columns)} and must have {list(needed)}."
        )
    numbers = [name for name in needed if name not in words]
    if texts := [name for name in numbers if not pd.api.types.is_numeric_dtype(table[name])]:
        raise ValueError(f"The columns {texts} must hold numbers.")


def require_similarity(sim: pd.DataFrame) -> None:
    """Raise a ValueError unless this is a table of numbers, revisions x revisions."""
    numbers = all(map(pd.api.types.is_numeric_dtype, sim.dtypes))
    if list(sim.index) != list(sim) or not sim.index.is_unique or not numbers:
        raise ValueError(
            "sim must hold numbers, revisions x revisions: give what similarity_matrix returns."
        )


def require_alike(**lists: Sequence) -> None:
    """Raise a ValueError unless all of these are as long as the first."""
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"The lists differ in length: {sizes}.")


def require_names(kind: str, asked: Sequence[str], known: Sequence[str]) -> None:
    """Raise a ValueError that says which name is not known, and which are."""
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f"There is no {kind} {unknown[0]!r} here; there are {list(known)}.")


# ---- axes in tokens and in checkpoints


@checked
def format_tokens(n: float) -> str:
    """A number of tokens to three digits: 131072 -> '131k', 1536000 -> '1.54M'."""
    n = float(f"{n:.3g}")
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= scale:
            return f"{n / scale:g}{unit}"
    return f"{n:g}"


def token_axis(ax: Axes, tokens: Sequence[float]) -> None:
    """Make the x axis a log axis of tokens, with a place for step 0 where it is among them."""
    seen = np.unique(tokens)
    positive = seen[seen > 0]
    if len(positive):
        if len(positive) == len(seen):
            ax.set_xscale("log")
        else:
            # step 0 has no place on a log axis: a short linear piece holds it
            ax.set_xscale("symlog", linthresh=positive[0], linscale=0.25)
        first = np.ceil(np.log10(positive[0]))
        last = np.floor(np.log10(positive[-1]))
        decades = 10.0 ** np.arange(first, last + 1)
        ticks = [*seen[seen == 0], *(decades if len(decades) > 1 else positive)]
        ax.set_xticks(ticks, [format_tokens(tick) for tick in ticks])
        ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.set_xlabel("tokens seen (log scale)")


def checkpoint_ticks(ax: Axes, names: Sequence[str], start: float = 0) -> None:
    """Ticks on the x axis, named after the checkpoints, each in its colour.

    They stand at start, start + 1, ...
    """
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(names) > 5 else {}
    ax.set_xticks(start + np.arange(len(names)), list(names), **turned)
    ax.set_xlabel("checkpoint")
    for label, color in zip(ax.get_xticklabels(), checkpoint_colors(names).values(), strict=True):
        label.set(color=color, fontweight="bold")
