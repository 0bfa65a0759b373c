"""What was tried and what survived, for the table in docs/reliability.md.

A test of a fault has a short form, in `make test`, and a long one, in `make test-long`:

    @tries(2, 20)
    def test_a_kill_while_training(tries, tmp_path):
        with counted("killed while training", tries) as count:
            for seed in range(tries):
                ...
                count(survived)

The long form leaves its figures in the folder $CTT_FAULTS, if that is set; tools/fault_table.py
makes the table of them.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def tries(short: int, long: int) -> pytest.MarkDecorator:
    """The test's argument `tries`: `short`, and in a long run `long`."""
    return pytest.mark.parametrize("tries", [short, pytest.param(long, marks=pytest.mark.long)])


@contextmanager
def counted(
    fault: str, tries: int, promise: str = "", all_must: bool = True
) -> Iterator[Callable[[bool], None]]:
    """Call what this gives once a try, with whether it was survived; all must have been.

    Args:
        fault: what was done, as the table says it.
        tries: how many there are.
        promise: what came of it, as the table says it.
        all_must: False: some need not be survived, and the table says how many were.
    """
    outcomes: list[bool] = []
    yield lambda survived: outcomes.append(bool(survived))
    assert len(outcomes) == tries, f"{fault}: {len(outcomes)} outcomes for {tries} tries"
    folder = os.environ.get("CTT_FAULTS")
    test = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
    if folder:
        row = {
            "fault": fault,
            "promise": promise,
            "tries": tries,
            "survived": sum(outcomes),
            "test": re.sub(r"\[.*", "", test),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", f"{fault} {tries}") + ".json"
        (Path(folder) / name).write_text(json.dumps(row))
    assert all(outcomes) or not all_must, f"{fault}: {sum(outcomes)} of {tries} tries were survived"
