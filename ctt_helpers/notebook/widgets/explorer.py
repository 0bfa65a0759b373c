"""A menu of features, and a card about the one chosen."""

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np

from ctt_helpers.arguments import checked
from ctt_helpers.notebook.plots.look import Effects, as_matrix
from ctt_helpers.notebook.widgets.cards import Promoted, feature_card_html
from ctt_helpers.notebook.widgets.notes import read_notes, save_note
from ctt_helpers.notebook.widgets.shown import Shown

_LISTED = 200  # a menu of thousands is slow and of no use; the number field reaches every feature


@checked
def listed_features(ie_mean: Effects) -> list[int]:
    """The features in the explorer's menu, the strongest first: collect examples for these.

    Args:
        ie_mean: [checkpoints, latents] indirect effects.

    Raises:
        ValueError: an array of another shape.
    """
    if np.ndim(ie_mean) != 2:
        raise ValueError(f"ie_mean has shape {np.shape(ie_mean)}: give [checkpoints, latents].")
    return np.argsort(-_strength(ie_mean), kind="stable")[:_LISTED].tolist()


def _strength(ie_mean: Effects) -> np.ndarray:
    return np.nansum(np.abs(ie_mean), axis=0)


class FeatureExplorer(Shown):
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
        # wide enough for what they say, and together within 800 pixels
        self.dropdown = ipywidgets.Dropdown(
            options=options,
            value=strongest,
            description="feature",
            layout=ipywidgets.Layout(width="400px"),
        )
        self.number = ipywidgets.IntText(
            value=strongest, description="or number", layout=ipywidgets.Layout(width="180px")
        )
        self.html = ipywidgets.HTML()
        self.status = ipywidgets.HTML()
        self.note = ipywidgets.Text(
            placeholder="What does this feature stand for?",
            description="note",
            layout=ipywidgets.Layout(width="400px"),
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
        strength = _strength(ie_mean)
        options = []
        for feature in listed_features(ie_mean):
            name = f"#{feature} {self.labels.get(feature, '')}".rstrip()
            lacks = "" if self.examples.get(feature) else ", no examples"
            options.append((f"{name} (|IE| {strength[feature]:.3g}{lacks})", feature))
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


@checked
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

    The menu says which of its features have no examples (`listed_features` are those to collect
    them for). The field for a number reaches all others.

    Args:
        ie_mean: [checkpoints, latents] indirect effects in logits.
        rel_ie: [checkpoints, latents] shares; NaN where a latent is inactive.
        decoder_norms: [checkpoints, latents] norms in scaled space.
        names: labels of the checkpoints.
        examples: what `top_examples` returns: feature -> mappings with `tokens` and `activations`;
            an empty list for a feature that is never active on the text.
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
