"""Settings of a crosscoder that were tried already: what does each give, and what does it cost?"""

import html
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from ctt_helpers.arguments import checked
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.widgets.cards import _LEFT, bar, table
from ctt_helpers.notebook.widgets.shown import Shown

EXPLAINED = "explained variance "  # and a checkpoint's name: a column
KNOBS = ["k", "penalty"]
MEASURED = ["l0", "dead", "specific"]


@checked
def read_settings(folder: str | Path, n_latents: int | None = None) -> pd.DataFrame:
    """Crosscoders of several settings, from the tables `dictionary` and `penalty` of experiments.

    Args:
        folder: where the two CSV files are.
        n_latents: only those of this size; None: of the size that most have.

    Returns:
        A row a crosscoder: k, penalty, seed; l0, dead (share of latents), specific (latents whose
        RelDec is above 0.7 somewhere), and a column "explained variance NAME" for each checkpoint.

    Raises:
        FileNotFoundError: a table is not there.
        ValueError: a table lacks a column, or no crosscoder has this size.
    """
    folder, keys = Path(folder).expanduser(), [*KNOBS, "latents", "seed"]
    tables = []
    for name, needed in (("dictionary", ["l0", "alive"]), ("penalty", ["RelDec: specific"])):
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: in a checkout, `make experiments`.")
        table = pd.read_csv(path)
        look.require_columns(table, *keys, *needed, words=["penalty"])
        table = table[table["penalty"] != "none"]  # the whole model
        tables.append(table.astype({"penalty": float}).set_index(keys))
    dictionary, penalty = tables
    rows = dictionary.join(penalty["RelDec: specific"].rename("specific"), how="inner")
    rows = rows.assign(dead=1 - rows["alive"]).reset_index()
    if n_latents is None:
        n_latents = rows["latents"].mode()[0]
    found = rows[rows["latents"] == n_latents]
    if found.empty:
        sizes = sorted(int(n) for n in rows["latents"].unique())
        raise ValueError(f"No crosscoder in {folder} has {n_latents} latents; there are {sizes}.")
    explained = [name for name in rows if name.startswith(EXPLAINED)]
    return found[[*KNOBS, "seed", *MEASURED, *explained]].reset_index(drop=True)


class Playground(Shown):
    """See `playground`."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        self.checkpoints = _checkpoints(rows)
        first = rows.groupby(KNOBS).size().idxmax()  # the setting with most seeds
        self.k, self.penalty = (
            ipywidgets.SelectionSlider(
                options=[(f"{value:g}", value) for value in sorted(rows[knob].unique().tolist())],
                value=start,
                description=knob,
                layout=ipywidgets.Layout(width="auto", max_width="420px"),
            )
            for knob, start in zip(KNOBS, first, strict=True)
        )
        self.html = ipywidgets.HTML()
        self.shown: tuple[float, float] | None = None  # the setting in the table
        self.before: tuple[float, float] | None = None  # the one that was there before
        for slider in (self.k, self.penalty):
            slider.observe(self.show, names="value")
        self.show()
        self.widget = ipywidgets.VBox([self.k, self.penalty, self.html])

    def show(self, _change: Any = None) -> None:
        """Show the setting that the sliders stand at, beside the one before."""
        setting = (self.k.value, self.penalty.value)
        if self._of(setting).empty:
            there = sorted(self.rows.loc[self.rows["k"] == setting[0], "penalty"].unique())
            known = ", ".join(f"{value:g}" for value in there)
            self.html.value = (
                f"<p>Nobody trained one with {_told(setting)}. With k = {setting[0]:g} there are "
                f"the penalties {known}.</p>"
            )
            return
        if setting != self.shown:
            self.before, self.shown = self.shown, setting
        self.html.value = self._card()

    def _of(self, setting: tuple[float, float]) -> pd.DataFrame:
        k, penalty = setting
        return self.rows[(self.rows["k"] == k) & (self.rows["penalty"] == penalty)]

    def _card(self) -> str:
        colors = look.checkpoint_colors(self.checkpoints)
        measures = [("active a token (L0)", self.rows["l0"], look.GREY, ".1f")]
        for name in self.checkpoints:
            missed = 100 * (1 - self.rows[EXPLAINED + name])
            measures.append((f"missed at {name}, %", missed, to_hex(colors[name]), ".2f"))
        measures += [
            ("dead, %", 100 * self.rows["dead"], look.GREY, ".1f"),
            ("specific by RelDec", self.rows["specific"], look.HUES[2], ".0f"),
        ]
        now = self._of(self.shown).index
        old = self._of(self.before).index if self.before else []
        rows = [
            f"<td {_LEFT}>{html.escape(what)}</td>"
            f"{bar(values[now].mean(), values.max(), color)}"
            f"<td {_LEFT}>{_with_range(values[now], spec)}</td>"
            f"<td {_LEFT}>{_with_range(values[old], spec)}</td>"
            for what, values, color, spec in measures
        ]
        before = _told(self.before) if self.before else "move a slider to compare"
        seeds = "one crosscoder"
        if len(now) > 1:
            seeds = f"mean of {len(now)} seeds; in brackets the lowest and the highest"
        shown = table(["", "", "now", "before"], rows)
        return (
            f"<p><b>now</b>: {_told(self.shown)} ({seeds})<br><b>before</b>: {before}</p>{shown}"
            "<p>missed: variance that is not explained</p>"
        )


def _told(setting: tuple[float, float]) -> str:
    return "k = {:g}, penalty = {:g}".format(*setting)


def _with_range(values: pd.Series, spec: str) -> str:
    if not len(values):
        return ""
    ends = f" [{values.min():{spec}}, {values.max():{spec}}]" if len(values) > 1 else ""
    return f"{values.mean():{spec}}{ends}"


def _checkpoints(rows: pd.DataFrame) -> list[str]:
    return [name.removeprefix(EXPLAINED) for name in rows if str(name).startswith(EXPLAINED)]


@checked
def playground(rows: pd.DataFrame) -> Playground:
    """Two sliders, k and the decoder-norm penalty, over crosscoders that are trained already.

    Beneath stand L0, the variance missed at each checkpoint, dead latents and those specific
    to one checkpoint, beside the same of the setting that was chosen before.

    Args:
        rows: a row a crosscoder, as `read_settings` gives them: k, penalty, l0, dead (share),
            specific (count), and "explained variance NAME" for each checkpoint. Rows of one setting
            are its seeds.

    Returns:
        An object that displays in a notebook; `.k`, `.penalty` and `.html` are its parts.

    Raises:
        ValueError: a column is missing, there is no row, or a number is missing.
    """
    look.require_columns(rows, *KNOBS, *MEASURED)
    names = _checkpoints(rows)
    if not names:
        raise ValueError(
            f"No column begins with {EXPLAINED!r}: give one for each checkpoint, such as "
            f"'{EXPLAINED}step3000'. There are {list(rows.columns)}."
        )
    if rows.empty:
        raise ValueError("There is no row: give at least one crosscoder.")
    needed = [*KNOBS, *MEASURED, *(EXPLAINED + name for name in names)]
    holes = [name for name in needed if not np.isfinite(rows[name].astype(float)).all()]
    if holes:
        raise ValueError(f"The columns {holes} have rows without a number: leave such rows out.")
    return Playground(rows.reset_index(drop=True))
