"""A slider over the bounds that make a class, and the classes counted anew."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from ctt_helpers.arguments import checked
from ctt_helpers.metrics import check_ratios, members
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.plots.look import Effects
from ctt_helpers.notebook.widgets.cards import BAR_WIDTH, bar, table
from ctt_helpers.notebook.widgets.shown import Shown


@checked
def class_counts(
    shares: Mapping[str, Effects], names: Sequence[str], specific: float = 0.7, shared: float = 0.3
) -> pd.DataFrame:
    """How many latents are in each class of `ctt.classify`.

    Args:
        shares: what is counted -> [checkpoints, latents] RelIE or RelDec; NaN where inactive.
        names: labels of the two or three checkpoints.
        specific, shared: the bounds, as for `ctt.classify`.

    Returns:
        Rows: "specific to <checkpoint>", "shared by <checkpoints>" and "other"; a column for each
        of `shares`. Inactive latents are in no row.

    Raises:
        ValueError: as `ctt.classify`, or nothing to count.
    """
    if not shares:
        raise ValueError("There is nothing to count: give {'RelIE': ratios}, or more of them.")
    bits = 2 ** np.arange(len(names))
    numbers = sorted(range(2 ** len(names)), key=lambda number: (number.bit_count(), number))
    counts = {}
    for what, ratios in shares.items():
        ratios = check_ratios(ratios, names)
        active = ~np.isnan(ratios).any(0)
        number = bits @ members(ratios[:, active], specific, shared)
        counts[what] = np.bincount(number, minlength=len(numbers))[numbers]
    rows = [_named(number, names) for number in numbers]
    table_of = pd.DataFrame(counts, index=rows)
    return table_of.loc[[*rows[1:], rows[0]]]  # "other" is the last


def _named(number: int, names: Sequence[str]) -> str:
    """The class whose members are the bits of a number."""
    of = [name for i, name in enumerate(names) if number >> i & 1]
    if not of:
        return "other"
    return f"specific to {of[0]}" if len(of) == 1 else f"shared by {' + '.join(of)}"


@checked
def class_table_html(
    shares: Mapping[str, Effects], names: Sequence[str], specific: float = 0.7, shared: float = 0.3
) -> str:
    """The counts of `class_counts` as HTML, with a bar for each share of all active latents.

    Raises:
        ValueError: as `class_counts`.
    """
    counts = class_counts(shares, names, specific, shared)
    totals = counts.sum()
    any_specific = counts[counts.index.str.startswith("specific")].sum()
    lead = f"specific: a share above {specific:.2f}; shared: two or more of at least {shared:.2f}"
    rows = []
    for i, kind in enumerate(counts.index):
        color = look.HUES[0] if kind.startswith("specific") else look.GREY
        row = f'<td style="text-align:left">{html.escape(kind)}</td>'
        for what in counts:
            count, total = counts[what].iloc[i], totals[what]
            part = count / total if total else 0.0
            row += bar(part, 1, color, width=BAR_WIDTH // 2)
            row += f'<td style="white-space:nowrap">{count:,} ({part:.0%})</td>'
        rows.append(row)
    last = '<td style="text-align:left"><b>specific to any</b></td>'
    for what, total in totals.items():
        part = any_specific[what] / total if total else 0.0
        count = f"<b>{any_specific[what]:,} ({part:.0%})</b>"
        last += f'<td></td><td style="white-space:nowrap">{count}</td>'
    header = ["class"]
    for what, total in totals.items():
        header += [f"{html.escape(str(what))}, {total:,}", ""]
    # a widget's own lines are twice as far apart
    return f'<div style="line-height:1.5"><p>{lead}</p>{table(header, [*rows, last])}</div>'


class ClassSlider(Shown):
    """See `class_slider`."""

    def __init__(
        self, shares: Mapping[str, Effects], names: Sequence[str], specific: float, shared: float
    ) -> None:
        self.shares = dict(shares)
        self.names = list(names)
        self.html = ipywidgets.HTML()
        # within the bounds that `members` takes
        self.specific = self._slider("specific above", specific, 0.5, 0.95)
        self.shared = self._slider("shared from", shared, 0.05, 0.5)
        self.show()
        self.widget = ipywidgets.VBox([self.specific, self.shared, self.html])

    def _slider(self, text: str, value: float, low: float, high: float) -> ipywidgets.FloatSlider:
        slider = ipywidgets.FloatSlider(
            value=value,
            min=low,
            max=high,
            step=0.05,
            description=text,
            readout_format=".2f",
            style={"description_width": "100px"},
            layout=ipywidgets.Layout(width="100%", max_width="480px"),
        )
        slider.observe(self.show, names="value")
        return slider

    def show(self, _change: Any = None) -> None:
        """Count at the bounds where the sliders stand."""
        # a browser counts steps in floats: 0.7000000000000001
        specific, shared = (round(slider.value, 3) for slider in (self.specific, self.shared))
        self.html.value = class_table_html(self.shares, self.names, specific, shared)


@checked
def class_slider(
    shares: Mapping[str, Effects], names: Sequence[str], specific: float = 0.7, shared: float = 0.3
) -> ClassSlider:
    """Two sliders, the bounds of `ctt.classify`; the classes are counted anew as they move.

    Args:
        shares: what is counted -> [checkpoints, latents] RelIE or RelDec, NaN where inactive: of
            the features, of random directions, of decoder norms. They may differ in latents.
        names: labels of the two or three checkpoints.
        specific, shared: where the sliders stand at first: 0.5 to 0.95, and 0.05 to 0.5.

    Returns:
        An object that displays in a notebook; `.specific`, `.shared` and `.html` are its parts.

    Raises:
        ValueError: as `class_counts`, or a bound outside its slider.
    """
    class_counts(shares, names, specific, shared)  # an error comes before anything is shown
    if not (0.5 <= specific <= 0.95 and 0.05 <= shared <= 0.5):
        raise ValueError(
            f"specific={specific}, shared={shared}: the sliders reach from 0.5 to 0.95, and from "
            "0.05 to 0.5."
        )
    return ClassSlider(shares, names, specific, shared)
