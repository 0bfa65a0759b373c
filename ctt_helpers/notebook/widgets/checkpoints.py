"""A slider over checkpoints, and a choice of three of them."""

import html
from collections.abc import Callable
from typing import Any

import ipywidgets
import pandas as pd

from ctt_helpers.arguments import checked
from ctt_helpers.behaviour import suggest_triplet
from ctt_helpers.messages import first_line
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.widgets.cards import checkpoint_table_html
from ctt_helpers.notebook.widgets.shown import Shown

PLACES = ("first", "middle", "last")


class CheckpointSlider(Shown):
    """See `checkpoint_slider`."""

    def __init__(
        self,
        curve: pd.DataFrame,
        sim: pd.DataFrame,
        into: list[str] | None,
        on_choice: Callable[[list[str]], Any] | None,
    ) -> None:
        self.curve = curve
        self.sim = sim
        self.html = ipywidgets.HTML()
        self.revisions = _in_order(curve)
        # the table beneath says the tokens: a longer label would be cut
        self.slider = ipywidgets.SelectionSlider(
            options=[(name, name) for name in self.revisions],
            value=self.revisions[-1],
            description="checkpoint",
            layout=ipywidgets.Layout(width="100%", max_width="560px"),
        )
        self.slider.observe(self.show, names="value")
        self.picker = None if into is None else TripletPicker(curve, sim, into, on_choice)
        self.show()
        # the menus before the long table, so that all controls are seen at once
        menus = [] if self.picker is None else [self.picker.widget]
        self.widget = ipywidgets.VBox([self.slider, *menus, self.html])

    @property
    def choice(self) -> list[str] | None:
        """The last three that were in order; None where nothing is picked."""
        return None if self.picker is None else list(self.picker.choice)

    def show(self, _change: Any = None) -> None:
        """Show the checkpoint that the slider stands at."""
        self.html.value = checkpoint_table_html(self.curve, self.sim, self.slider.value)


class TripletPicker(Shown):
    """Three menus, and what the rule of `suggest_triplet` says of the three; see `into` there."""

    def __init__(
        self,
        curve: pd.DataFrame,
        sim: pd.DataFrame,
        into: list[str],
        on_choice: Callable[[list[str]], Any] | None,
    ) -> None:
        self.curve = curve
        self.sim = sim.combine_first(sim.T)  # of one triangle both
        self.revisions = _in_order(curve)
        self.into = into
        self.on_choice = on_choice
        self.suggested = None
        try:
            self.suggested = suggest_triplet(self.curve, self._sim_of(self.revisions))
        except ValueError as error:
            self.reason = first_line(error)
        if not into:
            rule = self.suggested.revisions if self.suggested else None
            last = len(self.revisions) - 1
            into[:] = rule or [self.revisions[i] for i in (0, last // 2, last)]
        self.choice = list(into)
        self.menus = [
            ipywidgets.Dropdown(
                options=self.revisions,
                value=value,
                description=place,
                style={"description_width": "50px"},
                layout=ipywidgets.Layout(width="200px"),
            )
            for place, value in zip(PLACES, into, strict=True)
        ]
        self.line = ipywidgets.HTML()
        self.line.value = self._verdict(self.choice)
        for menu in self.menus:
            menu.observe(self.pick, names="value")
        menus = ipywidgets.HBox(self.menus, layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.widget = ipywidgets.VBox([menus, self.line])

    def _sim_of(self, revisions: list[str]) -> pd.DataFrame:
        known = [name for name in revisions if name in self.sim.index]
        return self.sim.loc[known, known]

    def pick(self, _change: Any = None) -> None:
        """Take what the menus say, if it is in order."""
        chosen = [menu.value for menu in self.menus]
        first, middle, last = (self.revisions.index(name) for name in chosen)
        if not first < middle < last:
            self.line.value = (
                f"<b>Not taken:</b> {_arrows(chosen)} is not in the order of training. Still "
                f"chosen: {_arrows(self.choice)}."
            )
            return
        self.choice = chosen
        self.into[:] = chosen
        text = self._verdict(chosen)
        if self.on_choice is not None:
            try:
                self.on_choice(list(chosen))
            except Exception as error:  # raised in a callback, it would be lost in a log
                text += f"<br>on_choice failed: {html.escape(first_line(error))}"
        self.line.value = text

    def _verdict(self, chosen: list[str]) -> str:
        """What the rule of `suggest_triplet` says of these three."""
        text = f"<b>Chosen:</b> {_arrows(chosen)}. "
        without = [name for name in chosen if name not in self.sim.index]
        if self.suggested is None:
            return f"{text}The rule says nothing here: {html.escape(self.reason)}"
        if without:
            return f"{text}The rule says nothing: there is no similarity of {_arrows(without)}."
        table = self.suggested.table
        if chosen[0] not in set(table["first"]):
            return (
                f"{text}The rule would not begin at {_arrows(chosen[:1])}: there the tasks are "
                "hardly away from chance, on average, and there is nothing to attribute."
            )
        three = self.curve[self.curve["revision"].isin(chosen)]
        own = suggest_triplet(three, self._sim_of(chosen)).table.iloc[0]
        steps = [own[f"accuracy_{i}"] + own[f"activation_{i}"] for i in (1, 2)]
        text += (
            f"Change to the middle {steps[0]:.2f}, from there to the last {steps[1]:.2f}; the "
            f"smaller counts, {own['score']:.2f}. "
        )
        if chosen[-1] != table["last"].iloc[0]:
            return text + f"The rule itself would end at {_arrows(table['last'].iloc[:1])}."
        place = 1 + int((table["score"] > own["score"] + 1e-9).sum())
        best = table["score"].max()
        return (
            text + f"By the rule this is number {place} of {len(table)}; the best has {best:.2f}."
        )


def _arrows(names: list[str]) -> str:
    return " &rarr; ".join(html.escape(name) for name in names)


def _in_order(curve: pd.DataFrame) -> list[str]:
    """The revisions in the order of training."""
    seen = curve.drop_duplicates("revision").sort_values("tokens_seen", kind="stable")
    return list(seen["revision"])


@checked
def checkpoint_slider(
    curve: pd.DataFrame,
    sim: pd.DataFrame,
    into: list[str] | None = None,
    on_choice: Callable[[list[str]], Any] | None = None,
) -> CheckpointSlider:
    """A slider over the checkpoints that shows the accuracies and similarities of each.

    With `into` three menus come along, and a line that says what the rule of `suggest_triplet`
    makes of the three. What is not in the order of training is not taken. (In JupyterLab the space
    bar opens a menu; arrows alone go to another cell.)

    Args:
        curve: what `accuracy_curve` returns, at least one row.
        sim: what `similarity_matrix` returns, revisions x revisions; one triangle is enough.
        into: a list that holds three revisions in the order of training, or none yet; whatever is
            chosen is written into it, so that the cells below find it there. An empty one takes the
            rule's own choice at once. None: no menus.
        on_choice: called with each choice, a list of three.

    Returns:
        An object that displays in a notebook; `.slider` and `.html` are its parts, `.choice` the
        three that are chosen, and `.picker.menus` and `.picker.line` those of the choice.

    Raises:
        ValueError: a column is missing, the curve is empty, or `into` is no such list.
    """
    look.require_columns(curve, "revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs")
    look.require_similarity(sim)
    if curve.empty:
        raise ValueError("The curve has no rows: compute it with accuracy_curve(suite, tasks).")
    if into is not None:
        _check_into(into, _in_order(curve))
    elif on_choice is not None:
        raise ValueError("on_choice goes with into=: give a list too, into=[] for instance.")
    return CheckpointSlider(curve, sim, into, on_choice)


def _check_into(into: Any, revisions: list[str]) -> None:
    """Raise ValueError unless three revisions can be written there, and none or three are."""
    if not isinstance(into, list):
        raise ValueError(
            f"into is a {type(into).__name__}: give a list, which the choice is written into."
        )
    if len(revisions) < 3:
        raise ValueError(f"The curve has {len(revisions)} checkpoints: three are chosen of more.")
    if not into:
        return
    look.require_names("checkpoint", into, revisions)
    places = [revisions.index(name) for name in into]
    if len(into) != 3 or places != sorted(set(places)):
        raise ValueError(
            f"into holds {into}: give three checkpoints in the order of training, or an empty list."
        )
