"""Features to switch off: what is left of the answers, cell by cell.

Both widgets look up what `ctt.ablate_subsets` computed: effects of several features do not add up,
so that every subset has been run.
"""

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import numpy as np
from jaxtyping import Bool

from ctt_helpers.arguments import checked
from ctt_helpers.effects import Subsets
from ctt_helpers.metrics import share_right
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.widgets.cards import BAR_WIDTH, bar, strip, table
from ctt_helpers.notebook.widgets.shown import Shown
from ctt_helpers.pairs import MinimalPairs

_FACTORS = ("subject", "attractor")

# ---- what is shown


@checked
def two_by_two_html(
    subsets: Subsets, pairs: MinimalPairs, checkpoint: str, off: Sequence[int] = ()
) -> str:
    """Accuracy and mean lead in the four design cells at a checkpoint, as HTML.

    Beside each stands what it was with all features on.

    Args:
        subsets: what `ctt.ablate_subsets` returns.
        pairs: the pairs that it was given; the levels of subject and attractor are two each.
        checkpoint: one of `subsets.names`.
        off: the features that are off.

    Raises:
        ValueError: other pairs, pairs without these cells, or an unknown checkpoint or feature.
    """
    _check(subsets, pairs)
    look.require_names("checkpoint", [checkpoint], subsets.names)
    levels = _two_levels(pairs)
    c = subsets.names.index(checkpoint)
    before, now = subsets.lead[c, 0], subsets.without(off)[c]
    rows = []
    for subject in levels["subject"]:
        row = f'<th style="padding-right:12px">subject {html.escape(str(subject))}</th>'
        for attractor in levels["attractor"]:
            inside = _level(pairs, "subject", subject) & _level(pairs, "attractor", attractor)
            color = _color(subject == attractor)
            row += f'<td style="text-align:left">{_cell(before[inside], now[inside], color)}</td>'
        rows.append(row)
    header = ["", *(f"neighbour {html.escape(str(level))}" for level in levels["attractor"])]
    return _card(f"<b>{html.escape(checkpoint)}</b>, {_told(off)}", header, rows)


@checked
def ablation_board_html(subsets: Subsets, pairs: MinimalPairs, off: Sequence[int] = ()) -> str:
    """Accuracy and mean lead by checkpoint and cell, as HTML.

    "right" is the accuracy, "was" what it is with all features on, and "added up" what the lead
    would be if effects added up: the untouched one, and the effects of the features one by one.

    Args:
        subsets: what `ctt.ablate_subsets` returns.
        pairs: the pairs that it was given. Without cells there is one row a checkpoint.
        off: the features that are off.

    Raises:
        ValueError: other pairs, or an unknown feature.
    """
    _check(subsets, pairs)
    parts = _parts(pairs)
    before, now = subsets.lead[:, 0], subsets.without(off)
    added = before + sum(subsets.without([feature]) - before for feature in off)
    rows = []
    for c, name in enumerate(subsets.names):
        for first, (cell, inside) in enumerate(parts.items()):
            right, was_right = share_right(now[c, inside]), share_right(before[c, inside])
            lead, was, sum_of = (each[c, inside].mean() for each in (now, before, added))
            color = _color(len(set(cell.split("-"))) == 1)
            shown = html.escape(name) if first == 0 else ""
            numbers = [f"{right:.2f}", f"{was_right:.2f}", f"<b>{lead:+.2f}</b>"]
            numbers += [f"{was:+.2f}", f"{sum_of:+.2f}"]
            rows.append(
                f'<td style="text-align:left"><b>{shown}</b></td>'
                f'<td style="text-align:left;white-space:nowrap">{html.escape(cell)}</td>'
                f"{bar(right, 1, color, width=BAR_WIDTH // 2)}"
                + "".join(f'<td style="padding-right:12px">{number}</td>' for number in numbers)
            )
    # short, so that the table fits 800 pixels
    header = ["checkpoint", "cell", "", "right", "was", "lead", "was", "added up"]
    return _card(_told(off), header, rows)


def _card(heading: str, header: Sequence[str], rows: Sequence[str]) -> str:
    # a widget's own lines are twice as far apart
    return f'<div style="line-height:1.5"><p>{heading}</p>{table(header, rows)}</div>'


def _check(subsets: Subsets, pairs: MinimalPairs) -> None:
    """Raise ValueError unless the answers are those of these pairs."""
    shape = (len(subsets.names), 2 ** len(subsets.features), len(pairs))
    if np.shape(subsets.lead) != shape:
        raise ValueError(
            f"subsets.lead has shape {np.shape(subsets.lead)}; with these pairs it must be "
            f"[checkpoints, subsets, pairs], {shape}: give the pairs that ablate_subsets was given."
        )


def _two_levels(pairs: MinimalPairs) -> dict[str, list[str]]:
    """The two levels of subject and of attractor, in one order."""
    found = {factor: list(pairs.levels.get(factor, [])) for factor in _FACTORS}
    if any(len(levels) != 2 for levels in found.values()):
        raise ValueError(
            f"The levels of {pairs.name!r} are {found}; four cells take two of the subject and two "
            "of the attractor. Take a task with them, or ablation_board, which needs none."
        )
    if set(found["subject"]) == set(found["attractor"]):
        found["attractor"] = found["subject"]  # so that congruent cells are on the diagonal
    return found


def _level(pairs: MinimalPairs, factor: str, level: str) -> Bool[np.ndarray, " pairs"]:
    return (pairs.table[f"{factor}_level"] == level).to_numpy()


def _parts(pairs: MinimalPairs) -> dict[str, Bool[np.ndarray, " pairs"]]:
    """Each cell of the design, congruent ones first; all pairs where there are none."""
    cells = pairs.cells
    names = sorted(set(cells), key=lambda cell: (len(set(cell.split("-"))), cell))
    return {name or "all pairs": cells == name for name in names}


def _color(congruent: bool) -> str:
    return look.CELL_COLORS["congruent" if congruent else "incongruent"]


def _told(off: Sequence[int]) -> str:
    features = ", ".join(f"#{feature}" for feature in off)
    return f"without {features}" if features else "all features on"


def _cell(before: np.ndarray, now: np.ndarray, color: str) -> str:
    """A cell of the 2 x 2: a bar for the accuracy, and two lines of numbers."""
    if not len(now):
        return "no pairs"
    accuracy = share_right(now)
    return (
        f"{strip(accuracy, 1, color)}"
        f"right: <b>{accuracy:.2f}</b> (was {share_right(before):.2f})<br>"
        f"lead: <b>{now.mean():+.2f}</b> (was {before.mean():+.2f})"
    )


# ---- the widgets


class AblationWidget(Shown):
    """Checkboxes of features, perhaps a slider of checkpoints, and a card about what is left.

    See `two_by_two` and `ablation_board`.
    """

    def __init__(
        self, subsets: Subsets, card: Callable[..., str], checkpoint: str | None = None
    ) -> None:
        self.card = card
        self.boxes = {
            feature: ipywidgets.Checkbox(
                description=f"without #{feature}",
                indent=False,
                layout=ipywidgets.Layout(width="130px"),
            )
            for feature in subsets.features
        }
        self.html = ipywidgets.HTML()
        self.slider = None
        boxes = ipywidgets.HBox(
            list(self.boxes.values()), layout=ipywidgets.Layout(flex_flow="row wrap")
        )
        parts = [boxes, self.html]
        if checkpoint is not None:
            self.slider = ipywidgets.SelectionSlider(
                options=[(name, name) for name in subsets.names],
                value=checkpoint,
                description="checkpoint",
                layout=ipywidgets.Layout(width="100%", max_width="560px"),
            )
            parts.insert(0, self.slider)
        for control in (*self.boxes.values(), self.slider):
            if control is not None:
                control.observe(self.show, names="value")
        self.show()
        self.widget = ipywidgets.VBox(parts)

    @property
    def off(self) -> list[int]:
        """The features that are off."""
        return [feature for feature, box in self.boxes.items() if box.value]

    def show(self, _change: Any = None) -> None:
        """Show what the controls ask for."""
        where = {} if self.slider is None else {"checkpoint": self.slider.value}
        self.html.value = self.card(off=self.off, **where)


@checked
def two_by_two(
    subsets: Subsets, pairs: MinimalPairs, checkpoint: str | None = None
) -> AblationWidget:
    """The four design cells at a checkpoint, with features to switch off.

    Args:
        subsets: what `ctt.ablate_subsets` returns; a few features are enough.
        pairs: the pairs that it was given.
        checkpoint: where the slider stands at first; None: at the first.

    Returns:
        An object that displays in a notebook; `.slider`, `.boxes` (feature -> checkbox) and `.html`
        are its parts, `.off` the features that are off.

    Raises:
        ValueError: as `two_by_two_html`.
    """
    checkpoint = subsets.names[0] if checkpoint is None else checkpoint
    two_by_two_html(subsets, pairs, checkpoint)  # an error comes before anything is shown

    def card(checkpoint: str, off: Sequence[int]) -> str:
        return two_by_two_html(subsets, pairs, checkpoint, off)

    return AblationWidget(subsets, card, checkpoint)


@checked
def ablation_board(subsets: Subsets, pairs: MinimalPairs) -> AblationWidget:
    """Features to switch off, and accuracy and lead at every checkpoint in every cell.

    Args:
        subsets: what `ctt.ablate_subsets` returns, for about 6 to 8 features.
        pairs: the pairs that it was given.

    Returns:
        An object that displays in a notebook; `.boxes` (feature -> checkbox) and `.html` are its
        parts, `.off` the features that are off.

    Raises:
        ValueError: the answers are those of other pairs.
    """
    return AblationWidget(subsets, lambda off: ablation_board_html(subsets, pairs, off))
