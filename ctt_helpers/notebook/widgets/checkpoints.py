"""A slider over checkpoints."""

from typing import Any

import ipywidgets
import pandas as pd

from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.widgets.cards import checkpoint_table_html
from ctt_helpers.notebook.widgets.shown import Shown


class CheckpointSlider(Shown):
    """See `checkpoint_slider`."""

    def __init__(self, curve: pd.DataFrame, sim: pd.DataFrame) -> None:
        self.curve = curve
        self.sim = sim
        self.html = ipywidgets.HTML()
        seen = curve.drop_duplicates("revision").sort_values("tokens_seen", kind="stable")
        # the table beneath says the tokens: a longer label would be cut
        self.slider = ipywidgets.SelectionSlider(
            options=[(name, name) for name in seen["revision"]],
            value=seen["revision"].iloc[-1],
            description="checkpoint",
            layout=ipywidgets.Layout(width="100%", max_width="560px"),
        )
        self.slider.observe(self.show, names="value")
        self.show()
        self.widget = ipywidgets.VBox([self.slider, self.html])

    def show(self, _change: Any = None) -> None:
        """Show the checkpoint that the slider stands at."""
        self.html.value = checkpoint_table_html(self.curve, self.sim, self.slider.value)


def checkpoint_slider(curve: pd.DataFrame, sim: pd.DataFrame) -> CheckpointSlider:
    """A slider over the checkpoints that shows the accuracies and similarities of each.

    Args:
        curve: what `accuracy_curve` returns, at least one row.
        sim: what `similarity_matrix` returns, revisions x revisions.

    Returns:
        An object that displays in a notebook; `.slider` and `.html` are its parts.

    Raises:
        ValueError: a column is missing, or the curve is empty.
    """
    look.require_columns(curve, "revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs")
    if curve.empty:
        raise ValueError("The curve has no rows: compute it with accuracy_curve(suite, tasks).")
    return CheckpointSlider(curve, sim)
