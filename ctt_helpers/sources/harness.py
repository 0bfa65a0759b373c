"""Accuracy over training from result files of EleutherAI's lm-evaluation-harness (0.4).

The harness scores whole sentences or answers, as `accuracy(..., whole=True)` does; its figures are
not those of `accuracy_curve` for the same sentences.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd

from ctt_helpers.arguments import checked
from ctt_helpers.files import AGAIN, expanded, read_json
from ctt_helpers.messages import abridged, closest
from ctt_helpers.sources.revisions import nearest
from ctt_helpers.sources.suites import Suite, load_suite

COLUMNS = ["revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs"]
PATTERN = "results_*.json"


@checked
def harness_curve(
    paths: str | Path | Sequence[str | Path],
    suite: Suite | str,
    tasks: Sequence[str] | None = None,
    metric: str = "acc",
    revisions: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The table of `accuracy_curve`, from result files of the harness for several revisions.

    Make the files with `lm_eval --model_args pretrained=<repository>,revision=<revision>
    --output_path <folder>`, once a revision. `plots.accuracy_curves` draws the table, and
    `suggest_triplet` takes it. A file that says twice the same is read once.

    Args:
        paths: a folder, in which and below which every results_*.json is read, or files.
        suite: whose revisions they are, or its name.
        tasks: which, groups among them; None: every task that has the metric, without groups.
        metric: "acc", "acc_norm" ..., or with its filter, "exact_match,strict-match".
        revisions: path of a file -> its revision, for files that do not say it (models in local
            folders, say). Nothing else of the model is compared then.

    Returns:
        Tidy table in the order of training: revision, tokens_seen, task, accuracy, stderr (the
        harness's; binomial where it has none), n_pairs.

    Raises:
        FileNotFoundError: no such file, or no result file in the folder.
        ValueError: a file is damaged or no result of the harness, is of another model, or does not
            say of which revision; a task or a metric is missing; two files differ about the same
            thing, or in how they asked it.
    """
    suite = load_suite(suite) if isinstance(suite, str) else suite
    results = [_read(file, suite, metric, revisions or {}) for file in _files(paths)]
    known = list(dict.fromkeys(name for result in results for name in result.figures))
    for task in tasks or ():
        if task not in known:
            raise ValueError(
                f"No file has {metric!r} of the task {task!r}.{closest(task, known)} There are "
                f"{abridged(known) or 'none'}."
            )
    wanted = tasks
    if tasks is None:
        groups = {name for result in results for name in result.groups}
        wanted = [name for name in known if name not in groups]
        _tell_others(results, metric)
    if not wanted:
        raise ValueError(f"None of the files, {abridged([r.file for r in results], 3)}, has tasks "
                         f"with {metric!r}.")  # fmt: skip
    found: dict[tuple[str, str], tuple[_Figures, Path]] = {}
    for result in results:
        for task in wanted:
            if task in result.figures:
                _add(found, (result.revision, task), result.figures[task], result.file)
    _check_alike(found)
    there = {revision for revision, _ in found}
    missing = [f"{task} at {r}" for r in suite.revisions if r in there
               for task in wanted if (r, task) not in found]  # fmt: skip
    if missing:
        warnings.warn(f"There is nothing of {abridged(missing, 6)}.", stacklevel=3)
    rows = [
        (revision, suite.tokens[revision], task, *found[revision, task][0].row)
        for revision in suite.revisions
        for task in wanted
        if (revision, task) in found
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass(frozen=True)
class _Figures:
    """Of one task at one revision; `asked`: version of the task and number of examples shown."""

    accuracy: float
    stderr: float
    n: int
    asked: tuple[Any, Any]

    @property
    def row(self) -> tuple[float, float, int]:
        return self.accuracy, self.stderr, self.n


@dataclass(frozen=True)
class _Result:
    """One file: `figures` of what has the metric, groups among them; `others` have not."""

    file: Path
    revision: str
    figures: dict[str, _Figures]
    groups: set[str]
    others: list[str]


def _files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(paths, (str, Path)):
        folder = expanded(paths)
        if not folder.is_dir():
            return _files([folder])
        found = sorted(folder.rglob(PATTERN))
        if not found:
            raise FileNotFoundError(
                f"{folder} holds no {PATTERN}. lm_eval writes them into its --output_path."
            )
        return found
    files = [expanded(path) for path in paths]
    if not files:
        raise ValueError("Give a folder, or at least one file.")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {file}.")
    return files


def _read(file: Path, suite: Suite, metric: str, revisions: Mapping[str, str]) -> _Result:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(f"{file} is no result file of lm-evaluation-harness: it has no results.")
    parts = ("config", "n-samples", "versions", "n-shot", "group_subtasks")
    for part in parts:
        if not isinstance(content.setdefault(part, {}), dict):
            raise ValueError(f"{file}: {part} is no table of names. {AGAIN}")
    subtasks = {name: inner for name, inner in content["group_subtasks"].items() if inner}
    name, _, filtered = metric.partition(",")
    keys = f"{name},{filtered or 'none'}", f"{name}_stderr,{filtered or 'none'}"
    figures, others = {}, []
    for task, values in content["results"].items():
        if not isinstance(values, dict):
            raise ValueError(f"{file}: {task} holds no figures. {AGAIN}")
        if keys[0] not in values:
            others.append(task)
            continue
        n = sum(_samples(file, content, leaf) for leaf in _leaves(task, subtasks))
        accuracy, stderr = _figure(file, task, keys[0], values[keys[0]]), values.get(keys[1])
        if not isinstance(stderr, Real):  # "N/A", where the harness was told not to estimate it
            stderr = (accuracy * (1 - accuracy) / n) ** 0.5
        stderr = _figure(file, task, keys[1], stderr)
        asked = content["versions"].get(task), content["n-shot"].get(task)
        figures[task] = _Figures(accuracy, stderr, n, asked)
    revision = _revision(file, content["config"], suite, revisions)
    others = [task for task in others if task not in subtasks]
    return _Result(file, revision, figures, set(subtasks), others)


def _leaves(task: str, subtasks: Mapping[str, Sequence[str]], above: tuple = ()) -> Iterable[str]:
    """The tasks of a group, and of groups in it; a task itself."""
    if task in above or task not in subtasks:
        yield task
        return
    for inner in subtasks[task]:
        yield from _leaves(inner, subtasks, (*above, task))


def _samples(file: Path, content: Mapping[str, Any], task: str) -> int:
    """How many sentences a task had."""
    counts = content["n-samples"].get(task)
    n = counts.get("effective") if isinstance(counts, dict) else None
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(
            f"{file} does not say how many samples {task} had (n-samples). lm_eval has written it "
            "since version 0.4.3: run it again."
        )
    return n


def _figure(file: Path, task: str, key: str, value: Any) -> float:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"{file}: {key!r} of {task} is {value!r}, and is no share from 0 to 1.")
    return float(value)


def _revision(
    file: Path, config: Mapping[str, Any], suite: Suite, revisions: Mapping[str, str]
) -> str:
    """Of which revision a file is; an error where it is of another model."""
    given = {expanded(path).resolve(): revision for path, revision in revisions.items()}
    if file.resolve() in given:
        return suite.check_revisions([given[file.resolve()]])[0]
    said = _model_args(config.get("model_args"))
    model, revision = said.get("pretrained"), said.get("revision")
    if not model:
        raise ValueError(
            f"{file} does not say of which model it is (config.model_args, pretrained=). Give "
            "revisions={path: revision}."
        )
    folder = Path(model)
    if revision is None and folder.name in suite.tokens:  # a folder for each revision
        revision, folder = folder.name, folder.parent
    if str(folder) != str(suite.source) and folder.name != suite.name:
        raise ValueError(
            f"{file} is of the model {model!r}, and the suite {suite.name!r} is {suite.source}. "
            "Give files of one suite, or revisions={path: revision} if it is the same under "
            "another name."
        )
    revision = revision or "main"  # as the hub's client takes it
    if revision not in suite.tokens:
        hint = nearest(revision, suite.revisions)
        if "revision" not in said:
            hint = " It was made without revision= in --model_args."
        raise ValueError(
            f"{file} is of the revision {revision!r}, which the suite {suite.name!r} does not "
            f"have.{hint} Give revisions={{path: revision}} if you know which it is."
        )
    return revision


def _model_args(args: Any) -> dict[str, str]:
    """pretrained=...,revision=... as a dict, however the version has written it."""
    if isinstance(args, str):
        pairs = [part.partition("=") for part in args.split(",")]
        args = {key.strip(): value.strip() for key, _, value in pairs}
    if not isinstance(args, dict):
        return {}
    return {key: str(value) for key, value in args.items() if value is not None}


def _add(
    found: dict[tuple[str, str], tuple[_Figures, Path]],
    place: tuple[str, str],
    figures: _Figures,
    file: Path,
) -> None:
    earlier, where = found.setdefault(place, (figures, file))
    if earlier != figures:
        revision, task = place
        raise ValueError(
            f"{where} and {file} differ about {task} at {revision}: {earlier.accuracy:.4f} and "
            f"{figures.accuracy:.4f}, of {earlier.n} and {figures.n}. Give one of them."
        )


def _check_alike(found: Mapping[tuple[str, str], tuple[_Figures, Path]]) -> None:
    """Raise ValueError where a task was not the same at all revisions."""
    first: dict[str, tuple[_Figures, Path]] = {}
    for (_, task), (figures, file) in found.items():
        other, where = first.setdefault(task, (figures, file))
        for what, a, b in (
            ("samples", other.n, figures.n),
            ("version", other.asked[0], figures.asked[0]),
            ("n-shot", other.asked[1], figures.asked[1]),
        ):
            if a != b:
                raise ValueError(
                    f"{task} is not the same in {where} and {file}: {what} {a} and {b}. Run "
                    "lm_eval with the same version and settings for all."
                )


def _tell_others(results: Sequence[_Result], metric: str) -> None:
    others = list(dict.fromkeys(task for result in results for task in result.others))
    if others:
        warnings.warn(f"Without {metric!r}, and left out: {abridged(others, 6)}.", stacklevel=4)
