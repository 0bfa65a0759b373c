"""Notes on features, in a CSV file."""

import csv
from pathlib import Path

from ctt_helpers.files import atomic_path, expanded


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
