"""The table, the figure and the page of a sweep.

    python workflow/guard.py report CONFIG

The Snakefile calls it, in the folder of the sweep, with the config as JSON. It writes
collected.csv, comparison.png and report.html of what there is, and finished.json once there is
everything.
"""

import argparse
import html
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from plan import folder_of, package_code, runs_of
from table import collect, figure

from ctt_helpers.files import atomic_path, read_json, write_json, write_table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: 0.2rem 0.8rem 0.2rem 0; }
th { border-bottom: 1px solid #888; } td { border-bottom: 1px solid #ddd; vertical-align: top; }
pre { background: #f4f4f4; padding: 0.6rem; overflow-x: auto; white-space: pre-wrap; }
img { max-width: 100%; } details img { max-width: 32rem; display: block; margin: 0.6rem 0; }
.failed { color: #a00; }
"""


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        name: that of its folder.
        made_by: what was asked for, of `plan.runs_of`.
        word: "finished", "failed", "cut off", "not begun" or "of another config".
        reason: why it has not finished; else empty.
        versions: what it ran with, once it has finished.
    """

    name: str
    made_by: Mapping[str, Any]
    word: str
    reason: str
    versions: Mapping[str, Any]


def state_of(folder: Path, made_by: Mapping[str, Any]) -> State:
    """How far a run is, by the files in its folder."""
    word, reason, used = "not begun", "Nothing of it is here yet.", {}
    if (folder / "parameters.json").is_file():
        found = read_json(folder / "parameters.json")
        used = {"package": found.get("package")}
        if any(found.get(key) != value for key, value in made_by.items()):
            word = "of another config"
            reason = "Made with other code or parameters. Remove its folder, and it is run again."
        elif (folder / "versions.json").is_file():
            word, reason = "finished", ""
            used |= read_json(folder / "versions.json")
        elif (folder / "failed.json").is_file():
            word, reason = "failed", read_json(folder / "failed.json")["reason"]
        else:
            word, reason = "cut off", "It was ended from outside; it goes on when it is run again."
    return State(folder.name, made_by, word, reason, used)


def page(name: str, folder: Path, states: list[State], problem: str | None) -> str:
    """The page of a sweep; its pictures and notebooks are links into the folder.

    Args:
        name: of the sweep.
        folder: where it lies.
        states: of its runs, in the order of the config.
        problem: why there is no comparison.png, or None where there is one.
    """
    count = {word: sum(state.word == word for state in states) for word in _words(states)}
    axes = [key for key in states[0].made_by["parameters"] if _differs(states, key)]
    same = {k: v for k, v in states[0].made_by["parameters"].items() if k not in axes}
    head = "".join(f"<th>{_text(key)}</th>" for key in axes)
    told = ", ".join(f"{number} {word}" for word, number in count.items())
    lines = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>{_text(name)}</title><style>{STYLE}</style>",
        f"<h1>{_text(name)}</h1>",
        f"<p>{_text(states[0].made_by['notebook'])}, {len(states)} runs: {told}.",
        f"All with {_text(_settings(same))}." if same else "",
        "<a href='collected.csv'>Table of all numbers</a></p>",
        *_warnings(states),
        *_failures(folder, states),
        "<h2>Comparison</h2>",
        f"<p>{_text(problem)}</p>" if problem else "<img src='comparison.png' alt='Comparison'>",
        f"<h2>Runs</h2><table><tr>{head}<th></th><th>minutes</th><th></th></tr>",
    ]
    for state in states:
        values = "".join(
            f"<td>{_text(state.made_by['parameters'].get(key, ''))}</td>" for key in axes
        )
        style = "" if state.word == "finished" else " class='failed'"
        minutes = state.versions.get("seconds")
        lines.append(
            f"<tr>{values}<td{style}>{state.word}</td>"
            f"<td>{'' if minutes is None else f'{minutes / 60:.1f}'}</td>"
            f"<td>{_links(folder / state.name, state.made_by['notebook'])}</td></tr>"
        )
    lines.append("</table><h2>Figures</h2>")
    for state in states:
        pictures = sorted((folder / state.name / "figures").glob("*.png"))
        if state.word == "finished" and pictures:
            images = "".join(
                f"<img loading='lazy' src='{_url(folder, path)}' alt='{_text(path.stem)}'>"
                for path in pictures
            )
            lines.append(f"<details><summary>{_text(state.name)}</summary>{images}</details>")
    return "\n".join(line for line in lines if line) + "\n"


def _words(states: list[State]) -> list[str]:
    return list(dict.fromkeys(state.word for state in states))


def _differs(states: list[State], key: str) -> bool:
    return len({str(state.made_by["parameters"].get(key)) for state in states}) > 1


def _settings(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in parameters.items())


def _failures(folder: Path, states: list[State]) -> Iterator[str]:
    """Those that did not finish, each with its reason."""
    failed = [state for state in states if state.reason]
    if failed:
        yield "<h2 class='failed'>Not finished</h2>"
    for state in failed:
        links = _links(folder / state.name, state.made_by["notebook"])
        yield f"<p>{_text(state.name)}: {state.word}. {links}</p><pre>{_text(state.reason)}</pre>"


def _warnings(states: list[State]) -> Iterator[str]:
    """Where the runs of one table come from different code."""
    finished = [state for state in states if state.word == "finished"]
    codes = {state.versions["package"] for state in finished}
    if len(codes) > 1:
        now = package_code()
        old = [state.name for state in finished if state.versions["package"] != now]
        yield (
            f"<p class='failed'>The package's code was changed between runs. {len(old)} of "
            f"{len(finished)} were made by an older one: {_text('; '.join(old))}. To run them "
            "again, remove their folders.</p>"
        )
    for key in sorted({key for state in finished for key in state.versions}):
        found = {str(state.versions.get(key)) for state in finished}
        if key not in ("package", "seconds") and len(found) > 1:
            text = f"The runs had different versions of {key}: {', '.join(sorted(found))}."
            yield f"<p class='failed'>{_text(text)}</p>"


def _links(run: Path, notebook: str) -> str:
    """Links to the executed notebook and to what was printed, where they are."""
    shown = {"notebook": run / notebook, "log": run / "log.txt"}
    links = [
        f"<a href='{_url(run.parent, path)}'>{word}</a>"
        for word, path in shown.items()
        if path.is_file()
    ]
    return ", ".join(links)


def _url(folder: Path, path: Path) -> str:
    return quote(path.relative_to(folder).as_posix())


def _text(value: Any) -> str:
    return html.escape(str(value))


def write(config: dict[str, Any]) -> list[State]:
    """Write table, figure and page of what there is; finished.json only if there is everything."""
    folder = folder_of(config)
    runs = runs_of(config)
    states = [state_of(folder / name, made_by) for name, made_by in runs.items()]
    finished = [state.name for state in states if state.word == "finished"]
    table = collect(folder / name for name in finished)
    write_table(folder / "collected.csv", table, index=False)
    picture, problem = folder / "comparison.png", None
    try:
        with atomic_path(picture) as temporary:
            figure(table, config.get("metric", "*")).savefig(temporary, format="png", dpi=150)
    except ValueError as error:
        problem = str(error)
        picture.unlink(missing_ok=True)
    with atomic_path(folder / "report.html") as temporary:
        temporary.write_text(page(config["name"], folder, states, problem), encoding="utf-8")
    (folder / "finished.json").unlink(missing_ok=True)
    if len(finished) == len(states):
        write_json(folder / "finished.json", {"runs": finished})
    return states


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=json.loads)
    config = parser.parse_args().config
    states = write(config)
    for state in states:
        if state.reason:
            print(f"{state.name}: {state.word}", state.reason.replace("\n", "\n  "), sep="\n  ")
    finished = sum(state.word == "finished" for state in states)
    print(f"{finished} of {len(states)} runs: {folder_of(config) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
