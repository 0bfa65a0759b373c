"""The table of faults in docs/reliability.md, from the figures of a long run of the tests.

    CTT_FAULTS=build/faults python -m pytest -m long
    python tools/fault_table.py build/faults

Of a fault that was tried several times with different numbers of tries, the most tries count. What
the folder does not have stays as it is, so that some tests alone can be run again.
"""

import argparse
from pathlib import Path

import pandas as pd

from ctt_helpers.files import atomic_path, read_json, read_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, TABLE = ROOT / "docs" / "reliability.md", ROOT / "docs" / "faults.csv"
COLUMNS = ["fault", "promise", "tries", "survived", "test"]
BEGIN, END = "<!-- the table of faults -->\n", "<!-- its end -->\n"


def gather(folder: Path, known: pd.DataFrame) -> pd.DataFrame:
    """One row for each fault, those in `folder` in place of those known."""
    rows = [read_json(path) for path in sorted(folder.glob("*.json"))]
    new = pd.DataFrame(rows, columns=COLUMNS).sort_values("tries")
    new = new.drop_duplicates("fault", keep="last")
    kept = known[~known["fault"].isin(new["fault"])]
    return pd.concat([kept, new]).sort_values(["test", "fault"], ignore_index=True)


def markdown(table: pd.DataFrame) -> str:
    """The table, as the page shows it."""
    lines = ["| what is done to it | what comes of it | tries | survived |", "|---|---|---:|---:|"]
    for row in table.itertuples():
        lines.append(f"| {row.fault} | {row.promise} | {row.tries:,} | {row.survived:,} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, table: pd.DataFrame) -> str:
    """The page, with this table in the place of the one that it has."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + markdown(table) + "\n" + END + after


def known() -> pd.DataFrame:
    """The faults of earlier runs."""
    if not TABLE.is_file():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(TABLE, keep_default_na=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="$CTT_FAULTS of the run")
    table = gather(parser.parse_args().folder, known())
    with atomic_path(TABLE) as temporary:
        table.to_csv(temporary, index=False)
    page = with_table(read_text(PAGE), table)
    with atomic_path(PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(table)} faults")


if __name__ == "__main__":
    main()
