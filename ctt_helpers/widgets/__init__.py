"""Sliders and menus over results that are already computed.

A callback only looks up arrays and sets `.value`: nothing runs a model. What is shown is made by the cards of
`cards.py`, which a page without widgets calls itself.
Works with ipywidgets 7 and 8.
"""

import csv
import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as W
import numpy as np
import pandas as pd

from ctt_helpers.plots import look
from ctt_helpers.plots.look import Effects, as_matrix
from ctt_helpers.runtime import atomic_path
from ctt_helpers.widgets.cards import Promoted, checkpoint_table_html, feature_card_html
from ctt_helpers.widgets.cards import examples_html as examples_html
from ctt_helpers.widgets.cards import tokens_html as tokens_html

_LISTED = 200  # a menu of thousands is slow and of no use; the number field reaches every feature


class _Shown:
    """What has a `.widget` and displays as it."""

    def _ipython_display_(self, **_options: Any) -> None:
        from IPython.display import display

        display(self.widget)


class CheckpointSlider(_Shown):
    """See `checkpoint_slider`."""

    def __init__(self, curve: pd.DataFrame, sim: pd.DataFrame) -> None:
        self.curve, self.sim, self.html = curve, sim, W.HTML()
        seen = curve.drop_duplicates("revision").sort_values("tokens_seen", kind="stable")
        texts = [f"{r.revision} ({look.format_tokens(r.tokens_seen)} tokens)" for r in seen.itertuples()]
        options = list(zip(texts, seen["revision"], strict=True))
        wide = W.Layout(width="560px")
        self.slider = W.SelectionSlider(options=options, value=options[-1][1], description="checkpoint", layout=wide)
        self.slider.observe(self.show, names="value")
        self.show()
        self.widget = W.VBox([self.slider, self.html])

    def show(self, _change: Any = None) -> None:
        """Show the checkpoint that the slider stands at."""
        self.html.value = checkpoint_table_html(self.curve, self.sim, self.slider.value)


def checkpoint_slider(curve: pd.DataFrame, sim: pd.DataFrame) -> CheckpointSlider:
    """A slider over the checkpoints that shows each one's accuracies and similarities.

    Args:
        curve: what `accuracy_curve` gives, at least one row.
        sim: what `similarity_matrix` gives, revisions x revisions.

    Returns:
        An object that displays in a notebook; `.slider` and `.html` are its parts.

    Raises:
        ValueError: a column is missing, or the curve is empty.
    """
    look.require_columns(curve, "revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs")
    if curve.empty:
        raise ValueError("The curve has no rows: compute it with accuracy_curve(suite, tasks).")
    return CheckpointSlider(curve, sim)


def read_notes(path: str | Path) -> dict[int, str]:
    """Notes on features from a CSV file with the columns feature and note; empty if there is no file yet.

    Raises:
        ValueError: the file is not such a table.
    """
    if not Path(path).exists():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = [row for row in csv.reader(file, strict=True) if row]
        if header != ["feature", "note"]:
            raise ValueError(header)
        return {int(feature): note for feature, note in rows}
    except (csv.Error, ValueError):
        raise ValueError(
            f"{path} is not a table of notes: it must have the two columns feature,note with a whole number in the "
            f"first. Mend it, or give another annotations_path."
        ) from None


def save_note(path: str | Path, feature: int, note: str) -> None:
    """Write the note on one feature, in place of its older note; the notes on other features stay."""
    notes = read_notes(path) | {feature: note}
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("feature", "note"), *sorted(notes.items())])


class FeatureExplorer(_Shown):
    """See `feature_explorer`."""

    def __init__(self, arrays: tuple, names: Sequence[str], examples: Mapping, promoted: Mapping[int, Promoted] | None,
                 labels: Mapping[int, str], path: str | Path | None) -> None:  # fmt: skip
        self.arrays, self.names, self.examples = arrays, list(names), examples
        self.promoted, self.labels, self.path = promoted or {}, labels, path
        strength = np.nansum(np.abs(arrays[0]), axis=0)
        order = [int(f) for f in np.argsort(-strength, kind="stable")[:_LISTED]]
        options = [(f"#{f} {labels.get(f, '')}".rstrip() + f" (|IE| {strength[f]:.3g})", f) for f in order]
        self.dropdown = W.Dropdown(options=options, value=order[0], description="feature")
        self.number = W.IntText(value=order[0], description="or number")
        self.html, self.status = W.HTML(), W.HTML()
        self.note = W.Text(placeholder="What does this feature stand for?", description="note")
        self.save = W.Button(description="Save note")
        self.dropdown.observe(self.pick, names="value")
        self.number.observe(self.show, names="value")
        self.save.on_click(self.keep)
        noting = [] if path is None else [W.HBox([self.note, self.save]), self.status]
        self.widget = W.VBox([W.HBox([self.dropdown, self.number]), self.html, *noting])
        self.show()

    def pick(self, _change: Any = None) -> None:
        """Go to the feature chosen in the menu."""
        if self.dropdown.value is not None:
            self.number.value = self.dropdown.value

    def show(self, _change: Any = None) -> None:
        """Show the feature whose number stands in the field, with its note."""
        feature = self.number.value
        listed = [value for _, value in self.dropdown.options]
        self.dropdown.index = listed.index(feature) if feature in listed else None
        self.note.value = self.status.value = ""
        try:
            about = self.examples.get(feature), self.promoted.get(feature), self.labels.get(feature, "")
            self.html.value = feature_card_html(feature, *self.arrays, self.names, *about)
            self.save.disabled = False
        except ValueError as error:
            self.html.value, self.save.disabled = f"<p>{html.escape(str(error))}</p>", True
            return
        if self.path is not None:
            self._try(lambda: setattr(self.note, "value", read_notes(self.path).get(feature, "")))

    def keep(self, _button: Any = None) -> None:
        """Save the note on the feature that is shown."""
        feature, note = self.number.value, self.note.value
        if not self.save.disabled and self._try(lambda: save_note(self.path, feature, note)):
            self.status.value = f"Saved the note on #{feature} in {html.escape(str(self.path))}."

    def _try(self, action: Callable[[], None]) -> bool:
        """Do something with the file of notes; what goes wrong is told beneath the field, not lost in a log."""
        try:
            action()
            return True
        except (ValueError, OSError) as error:
            self.status.value = html.escape(str(error))
            return False


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
    """A menu of features, the strongest first, and a card about the one chosen, with room for a note.

    Args:
        ie_mean, rel_ie, decoder_norms: [checkpoints, latents]; effects in logits, norms in scaled space.
        names: labels of the checkpoints.
        examples: what `top_examples` gives: feature -> mappings with `tokens` and `activations`.
        promoted: feature -> what `promoted_tokens` gives, or per checkpoint a list of (token, score).
        labels: feature -> a few words about it.
        annotations_path: CSV file (feature, note) that takes the notes; None for no notes.

    Returns:
        An object that displays in a notebook; `.dropdown`, `.number`, `.html`, `.note`, `.save` are its parts.

    Raises:
        ValueError: a shape does not fit `names`.
    """
    arrays = tuple(as_matrix(values, names) for values in (ie_mean, rel_ie, decoder_norms))
    if len({a.shape for a in arrays}) > 1:
        raise ValueError(f"The arrays differ in shape: {[a.shape for a in arrays]}. Take all from one crosscoder.")
    return FeatureExplorer(arrays, names, examples, promoted, labels or {}, annotations_path)
