"""Notes on features, in a CSV file; and annotations by several people, which are compared."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ctt_helpers.arguments import checked
from ctt_helpers.files import expanded, read_rows, write_rows

NOTE_COLUMNS = ("feature", "note")
ANNOTATION_COLUMNS = ("feature", "label", "confidence", "note")

# ---- the tables


def _read_rows(path: Path, *headers: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with one of these headers; ValueError where it is no such table."""
    header, rows = read_rows(path)
    if tuple(header) not in [tuple(known) for known in headers]:
        raise ValueError(header)
    return [dict(zip(header, row, strict=True)) for row in rows]


# ---- notes


@checked
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
        rows = _read_rows(place, NOTE_COLUMNS)
        return {int(row["feature"]): row["note"] for row in rows}
    except ValueError:
        raise ValueError(
            f"{path} is not a table of notes: it must have the two columns feature,note with a "
            "whole number in the first. Mend it, or give another annotations_path."
        ) from None


@checked
def save_note(path: str | Path, feature: int, note: str) -> None:
    """Write the note on one feature, in place of its older note.

    The notes on other features stay. In the file a note that begins as a formula does has an
    apostrophe before it, so that a spreadsheet shows it; `read_notes` gives it back as typed.

    Raises:
        ValueError: the file that is there is not a table of notes; it is left as it is.
    """
    notes = read_notes(path)
    notes[feature] = note
    write_rows(path, NOTE_COLUMNS, sorted(notes.items()))


# ---- annotations


@dataclass(frozen=True)
class Annotation:
    """What a person says about a feature.

    Attributes:
        label: one of a few words that all annotators choose from; "" where none was chosen.
        confidence: how sure they are, in a word; "" where it was not said.
        note: whatever else.
    """

    label: str = ""
    confidence: str = ""
    note: str = ""


@checked
def read_annotations(path: str | Path) -> dict[int, Annotation]:
    """Annotations of features by one person, from a CSV file.

    Its columns are feature, label, confidence and note; a file of notes alone (feature, note) is
    read as well.

    Returns:
        Feature -> annotation; empty where there is no file yet.

    Raises:
        ValueError: the file is not such a table, or has two rows for a feature.
    """
    place = expanded(path)
    if not place.exists():
        return {}
    try:
        rows = _read_rows(place, ANNOTATION_COLUMNS, NOTE_COLUMNS)
        found = {int(row.pop("feature")): Annotation(**row) for row in rows}
        if len(found) < len(rows):
            raise ValueError("a feature twice")
        return found
    except ValueError:
        raise ValueError(
            f"{path} is not a table of annotations: it must have the columns "
            f"{','.join(ANNOTATION_COLUMNS)} (or feature,note), with a whole number in the first, "
            "and one row a feature. Mend it, or give another file."
        ) from None


@checked
def save_annotation(path: str | Path, feature: int, annotation: Annotation) -> None:
    """Write one feature's annotation in place of its older one; an empty one is taken out.

    The others stay. A file of notes alone becomes one of annotations. What begins as a formula does
    has an apostrophe before it in the file, as in `save_note`.

    Raises:
        ValueError: the file that is there is not a table of annotations; it is left as it is.
    """
    _write_annotations(path, read_annotations(path) | {feature: annotation})


@checked
def save_annotations(path: str | Path, annotations: Mapping[int, Annotation]) -> None:
    """Write annotations, all at once, in place of those that the file holds.

    Raises:
        ValueError: the file that is there is not a table of annotations; it is left as it is.
    """
    read_annotations(path)  # is it ours to replace?
    _write_annotations(path, annotations)


def _write_annotations(path: str | Path, annotations: Mapping[int, Annotation]) -> None:
    rows = [
        (i, own.label, own.confidence, own.note)
        for i, own in sorted(annotations.items())
        if own != Annotation()
    ]
    write_rows(path, ANNOTATION_COLUMNS, rows)


# ---- two people


@dataclass(frozen=True)
class Agreement:
    """How far two annotators agree on a field.

    Attributes:
        field: "label" or "confidence".
        both: features on which both said something there.
        first_only, second_only: features on which one did, and the other did not.
        same: how many of `both` have the same word.
        kappa: Cohen's kappa, the agreement beyond chance: 1 is full, 0 is what two get who use
            their words as often, each without looking. NaN without features, or where both used
            one and the same word throughout.
    """

    field: str
    both: int
    first_only: int
    second_only: int
    same: int
    kappa: float

    def __str__(self) -> str:
        rest = f"{self.first_only} only by the first, {self.second_only} only by the second"
        if not self.both:
            return f"{self.field}: no feature has one by both ({rest})."
        share = f"{self.same} of {self.both} features alike ({self.same / self.both:.0%})"
        kappa = f"Cohen's kappa {self.kappa + 0.0:.2f}"
        if self.kappa != self.kappa:
            kappa = "Cohen's kappa does not exist: both used one word throughout"
        return f"{self.field}: {share}; {kappa}; {rest}."


@checked
def agreement(
    first: Mapping[int, Annotation], second: Mapping[int, Annotation], field: str = "label"
) -> Agreement:
    """Compare two annotators, feature by feature, where both said something.

    Args:
        first, second: feature -> annotation, as `read_annotations` gives them.
        field: "label" or "confidence"; notes are free text, and cannot be counted alike.

    Raises:
        ValueError: another field.
    """
    if field not in ("label", "confidence"):
        raise ValueError(f"field={field!r}: take 'label' or 'confidence'; notes are free text.")
    one, two = (
        {i: said for i, own in people.items() if (said := getattr(own, field))}
        for people in (first, second)
    )
    both = sorted(one.keys() & two.keys())
    n, same = len(both), sum(one[i] == two[i] for i in both)
    kappa = float("nan")
    if n:
        often = [Counter(said[i] for i in both) for said in (one, two)]
        by_chance = sum(often[0][word] * often[1][word] for word in often[0])  # times n squared
        if by_chance < n * n:
            kappa = (same * n - by_chance) / (n * n - by_chance)
    return Agreement(field, n, len(one) - n, len(two) - n, same, kappa)


@checked
def merged(people: Mapping[str, Mapping[int, Annotation]]) -> pd.DataFrame:
    """The annotations of several people in one table, a row for each feature.

    Args:
        people: name -> feature -> annotation.

    Returns:
        Index feature; columns (name, label), (name, confidence), (name, note); "" for what was not
        said.
    """
    features = sorted({i for own in people.values() for i in own})
    fields = ANNOTATION_COLUMNS[1:]
    columns = {
        (name, field): [getattr(own.get(i, Annotation()), field) for i in features]
        for name, own in people.items()
        for field in fields
    }
    return pd.DataFrame(columns, index=pd.Index(features, name="feature"))


@checked
def save_merged(path: str | Path, people: Mapping[str, Mapping[int, Annotation]]) -> None:
    """Write what `merged` gives as a CSV file, in which no cell is taken for a formula.

    Its columns are feature, "NAME label", "NAME confidence", "NAME note" and so on.
    """
    table = merged(people)
    header = ["feature", *(" ".join(column) for column in table.columns)]
    rows = zip(table.index, table.to_numpy().tolist(), strict=True)
    write_rows(path, header, [(feature, *texts) for feature, texts in rows])
