"""A form for annotations: saved as one types, and compared with another person's."""

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets

from ctt_helpers.arguments import checked
from ctt_helpers.factorial import LABELS
from ctt_helpers.notebook.widgets.cards import _LEFT, table
from ctt_helpers.notebook.widgets.notes import (
    Annotation,
    agreement,
    merged,
    read_annotations,
    save_annotation,
    save_merged,
)
from ctt_helpers.notebook.widgets.shown import Shown

CONFIDENCES = ("a guess", "likely", "sure")
_WIDE = {"width": "auto", "max_width": "560px"}


class AnnotationForm(Shown):
    """See `annotation_form`."""

    def __init__(
        self,
        cards: Mapping[int, str],
        path: str | Path,
        other: str | Path | None,
        labels: Sequence[str],
        confidences: Sequence[str],
    ) -> None:
        self.cards = cards
        self.path = path
        self.words = {"label": labels, "confidence": confidences}
        features = list(cards)
        self.feature = ipywidgets.Dropdown(
            options=[(f"#{i}", i) for i in features], value=features[0], description="feature"
        )
        self.html = ipywidgets.HTML()
        self.fields = ipywidgets.VBox()
        self.status = ipywidgets.HTML()
        self.other = ipywidgets.Text(
            value="" if other is None else str(other),
            placeholder="a CSV file of another annotator",
            description="other file",
            continuous_update=False,
            layout=ipywidgets.Layout(**_WIDE),
        )
        self.compare = ipywidgets.Button(description="Compare")
        self.compared = ipywidgets.HTML()
        self.feature.observe(self.show, names="value")
        self.other.observe(self.show_agreement, names="value")
        self.compare.on_click(self.show_agreement)
        parts = [self.feature, self.html, self.fields, self.status]
        self.widget = ipywidgets.VBox([*parts, self.other, self.compare, self.compared])
        self.show()

    def show(self, _change: Any = None) -> None:
        """Show the feature that is chosen, and what was said about it."""
        feature = self.feature.value
        self.html.value = self.cards[feature]
        self.status.value = ""
        own = self._try(lambda: read_annotations(self.path))
        said = own.get(feature, Annotation()) if own else Annotation()
        # New fields for each feature: what was typed last may arrive when the next one is shown
        # already, and must not be taken for a note on that.
        self.label = self._menu("label", "label", said.label)
        self.confidence = self._menu("confidence", "how sure", said.confidence)
        self.note = ipywidgets.Text(
            value=said.note,
            placeholder="What does this feature stand for?",
            description="note",
            continuous_update=True,
            layout=ipywidgets.Layout(**_WIDE),
        )
        fields = (self.label, self.confidence, self.note)
        for field in fields:
            field.observe(lambda _change: self._keep(feature, *fields), names="value")
        self.fields.children = fields
        if own is not None:
            self._count(own)

    def _menu(self, field: str, description: str, word: str) -> ipywidgets.Dropdown:
        """A menu that stands at a word, which becomes an option where the file alone has it."""
        words = dict.fromkeys(["", *self.words[field], word])
        options = [(one or "\u2013", one) for one in words]
        return ipywidgets.Dropdown(options=options, value=word, description=description)

    def _keep(
        self,
        feature: int,
        label: ipywidgets.Dropdown,
        confidence: ipywidgets.Dropdown,
        note: ipywidgets.Text,
    ) -> None:
        """Save what stands in a feature's fields."""

        def save() -> dict[int, Annotation]:
            said = Annotation(label.value, confidence.value, note.value)
            save_annotation(self.path, feature, said)
            return read_annotations(self.path)

        own = self._try(save)
        if own is not None:
            self._count(own)

    def _count(self, own: Mapping[int, Annotation]) -> None:
        done = sum(i in own for i in self.cards)
        where = html.escape(str(self.path))
        self.status.value = f"{done} of {len(self.cards)} features annotated, saved in {where}."

    def show_agreement(self, _button: Any = None) -> None:
        """Compare with the other file: how far, and where not."""
        told = self._try(self._agreement, self.compared)
        if told is not None:
            self.compared.value = told

    def _agreement(self) -> str:
        own_path, other_path = (Path(path).expanduser() for path in (self.path, self.other.value))
        if not self.other.value.strip() or not other_path.is_file():
            raise ValueError(
                f"There is no file {self.other.value!r}. Give the path of a CSV file that another "
                "annotator saved with this form."
            )
        if other_path.resolve() == own_path.resolve():
            raise ValueError("This is your own file. Give that of another annotator.")
        ours, theirs = read_annotations(own_path), read_annotations(other_path)
        people = {own_path.stem: ours, other_path.stem: theirs}
        if len(people) < 2:  # of the same name, in two folders
            people = {"first": ours, "second": theirs}
        together = own_path.with_name(f"{own_path.stem}_merged.csv")
        save_merged(together, people)
        told = [str(agreement(ours, theirs, field)) for field in ("label", "confidence")]
        told.append(f"The first is {own_path}, the second {other_path}. Merged in {together}.")
        both = merged(people)
        one, two = ([(name, "label"), (name, "note")] for name in people)
        rows = [
            f"<td>#{feature}</td>" + "".join(f"<td {_LEFT}>{html.escape(w)}</td>" for w in words)
            for feature, *words in both[[*one, *two]].itertuples()
            if words[0] and words[2] and words[0] != words[2]
        ]
        head = ["feature", *(html.escape(" ".join(column)) for column in (*one, *two))]
        apart = f"<p>Not alike:</p>{table(head, rows)}" if rows else ""
        return f"<p>{'<br>'.join(html.escape(line) for line in told)}</p>{apart}"

    def _try(self, action: Callable[[], Any], where: ipywidgets.HTML | None = None) -> Any:
        """Do something with a file; an error is shown, for in a callback it would be lost."""
        where = where or self.status
        try:
            where.value = ""
            return action()
        except (ValueError, OSError) as error:
            where.value = f"<b>Not done:</b> {html.escape(str(error))}"
            return None


@checked
def annotation_form(
    cards: Mapping[int, str],
    path: str | Path,
    other: str | Path | None = None,
    labels: Sequence[str] = LABELS,
    confidences: Sequence[str] = CONFIDENCES,
) -> AnnotationForm:
    """A form to annotate features one after the other. Each change is saved at once.

    Args:
        cards: feature -> HTML to read, in the order of the menu.
        path: the annotator's CSV file (feature, label, confidence, note); what it holds is shown
            again.
        other: another annotator's file, to compare with; it can be typed in, too.
        labels: the words to choose from. Two annotators need the same.
        confidences: words for how sure one is.

    Returns:
        An object that displays in a notebook; `.feature`, `.label`, `.confidence`, `.note`,
        `.other` and `.compare` are its controls, `.html`, `.status` and `.compared` show.

    Raises:
        ValueError: no features, or a label that is empty or there twice.
    """
    if not cards:
        raise ValueError("There is nothing to annotate: give cards={feature: html}.")
    for kind, words in (("labels", labels), ("confidences", confidences)):
        if "" in words or len(set(words)) < len(words) or isinstance(words, str):
            raise ValueError(f"{kind}={words!r}: give a list of different words, none empty.")
    return AnnotationForm(cards, path, other, labels, confidences)
