"""Sliders and menus over results that are already computed.

A callback only looks up arrays and sets `.value`: nothing runs a model. What is shown is made by
the cards of `cards.py`, which a page without widgets calls itself. Works with ipywidgets 7 and 8.
"""

import csv
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from ctt_helpers.files import atomic_path, expanded
from ctt_helpers.notebook.plots import look
from ctt_helpers.notebook.plots.look import Effects, as_matrix
from ctt_helpers.notebook.widgets.cards import Promoted, checkpoint_table_html, feature_card_html

# reached as widgets.examples_html and widgets.tokens_html
from ctt_helpers.notebook.widgets.cards import examples_html as examples_html
from ctt_helpers.notebook.widgets.cards import tokens_html as tokens_html

_LISTED = 200  # a menu of thousands is slow and of no use; the number field reaches every feature


class _Shown:
    """An object that has a `.widget` and displays as it."""

    def _ipython_display_(self, **_options: Any) -> None:
        from IPython.display import display

        display(self.widget)


# ---- a slider over checkpoints


class CheckpointSlider(_Shown):
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


# ---- notes on features


def read_notes(path: str | Path) -> dict[int, str]:
    """Notes on features, from a CSV file with the columns feature and note.

    Returns:
        Feature -> note; empty where there is no file yet.

    Raises:
        ValueError: the file is not such a table.
    """
    place = expanded(path)  # as atomic_path does when a note is saved
    if not place.exists():
        return {}
    try:
        with open(place, newline="", encoding="utf-8") as file:
            header, *rows = [row for row in csv.reader(file, strict=True) if row]
        if header != ["feature", "note"]:
            raise ValueError(header)
        return {int(feature): note for feature, note in rows}
    except (csv.Error, ValueError):
        raise ValueError(
            f"{path} is not a table of notes: it must have the two columns feature,note with a "
            "whole number in the first. Mend it, or give another annotations_path."
        ) from None


def save_note(path: str | Path, feature: int, note: str) -> None:
    """Write the note on one feature, in place of its older note.

    The notes on other features stay.

    Raises:
        ValueError: the file that is there is not a table of notes; it is left as it is.
    """
    notes = read_notes(path)
    notes[feature] = note
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("feature", "note"))
        writer.writerows(sorted(notes.items()))


# ---- a menu of features


class FeatureExplorer(_Shown):
    """See `feature_explorer`."""

    def __init__(
        self,
        arrays: tuple,
        names: Sequence[str],
        examples: Mapping,
        promoted: Mapping[int, Promoted] | None,
        labels: Mapping[int, str],
        path: str | Path | None,
    ) -> None:
        self.arrays = arrays
        self.names = list(names)
        self.examples = examples
        self.promoted = promoted or {}
        self.labels = labels
        self.path = path
        options = self._options()
        strongest = options[0][1]
        self.dropdown = ipywidgets.Dropdown(options=options, value=strongest, description="feature")
        self.number = ipywidgets.IntText(value=strongest, description="or number")
        self.html = ipywidgets.HTML()
        self.status = ipywidgets.HTML()
        self.note = ipywidgets.Text(
            placeholder="What does this feature stand for?", description="note"
        )
        self.save = ipywidgets.Button(description="Save note")
        self.dropdown.observe(self.pick, names="value")
        self.number.observe(self.show, names="value")
        self.save.on_click(self.keep)
        parts = [ipywidgets.HBox([self.dropdown, self.number]), self.html]
        if path is not None:
            parts += [ipywidgets.HBox([self.note, self.save]), self.status]
        self.widget = ipywidgets.VBox(parts)
        self.show()

    def _options(self) -> list[tuple[str, int]]:
        """Texts of the menu and the features that they stand for, the strongest first."""
        ie_mean = self.arrays[0]
        strength = np.nansum(np.abs(ie_mean), axis=0)
        options = []
        for feature in np.argsort(-strength, kind="stable")[:_LISTED].tolist():
            name = f"#{feature} {self.labels.get(feature, '')}".rstrip()
            options.append((f"{name} (|IE| {strength[feature]:.3g})", feature))
        return options

    def pick(self, _change: Any = None) -> None:
        """Go to the feature chosen in the menu."""
        if self.dropdown.value is not None:
            self.number.value = self.dropdown.value

    def show(self, _change: Any = None) -> None:
        """Show the feature whose number stands in the field, with its note."""
        feature = self.number.value
        listed = [value for _, value in self.dropdown.options]
        self.dropdown.index = listed.index(feature) if feature in listed else None
        self.note.value = ""
        self.status.value = ""
        ie_mean, rel_ie, decoder_norms = self.arrays
        try:
            self.html.value = feature_card_html(
                feature,
                ie_mean=ie_mean,
                rel_ie=rel_ie,
                decoder_norms=decoder_norms,
                names=self.names,
                examples=self.examples.get(feature),
                promoted=self.promoted.get(feature),
                label=self.labels.get(feature, ""),
            )
        except ValueError as error:
            self.html.value = f"<p>{html.escape(str(error))}</p>"
            self.save.disabled = True
            return
        self.save.disabled = False
        if self.path is not None:
            self._try(self._show_note)

    def _show_note(self) -> None:
        self.note.value = read_notes(self.path).get(self.number.value, "")

    def keep(self, _button: Any = None) -> None:
        """Save the note on the feature that is shown."""
        if self.save.disabled:
            return
        feature = self.number.value
        note = self.note.value
        if self._try(lambda: save_note(self.path, feature, note)):
            self.status.value = f"Saved the note on #{feature} in {html.escape(str(self.path))}."

    def _try(self, action: Callable[[], None]) -> bool:
        """Do something with the file of notes; returns whether it worked.

        An error is shown beneath the field. Raised in a callback, it would be lost in a log.
        """
        try:
            action()
        except (ValueError, OSError) as error:
            self.status.value = html.escape(str(error))
            return False
        return True


def feature_explorer(
    ie_mean: Effects,
    rel_ie: Effects,
    decoder_norms: Effects,
    names: Sequence[str],
    examples: Mapping[int, Sequence[Mapping]],
    promoted: Mapping[int, Promoted] | None = None,
    labels: Mapping[int, str] | None = None,
    annotations_path: str | Path | None = None,
) -> FeatureExplorer:
    """A menu of features, the strongest first, and a card about the one chosen.

    Args:
        ie_mean: [checkpoints, latents] indirect effects in logits.
        rel_ie: [checkpoints, latents] shares; NaN where a latent is inactive.
        decoder_norms: [checkpoints, latents] norms in scaled space.
        names: labels of the checkpoints.
        examples: what `top_examples` returns: feature -> mappings with `tokens` and `activations`.
        promoted: feature -> what `promoted_tokens` returns, or for each checkpoint a list of
            (token, score).
        labels: feature -> a few words about it.
        annotations_path: a CSV file (feature, note) that takes the notes; None: no notes.

    Returns:
        An object that displays in a notebook; `.dropdown`, `.number`, `.html`, `.note` and `.save`
        are its parts.

    Raises:
        ValueError: a shape does not fit `names`, or the arrays differ in shape.
    """
    arrays = tuple(as_matrix(values, names) for values in (ie_mean, rel_ie, decoder_norms))
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1:
        raise ValueError(f"The arrays differ in shape: {shapes}. Take all from one crosscoder.")
    return FeatureExplorer(
        arrays=arrays,
        names=names,
        examples=examples,
        promoted=promoted,
        labels=labels or {},
        path=annotations_path,
    )
