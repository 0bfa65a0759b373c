"""Every notebook: at full size (nbval), at a small size with other parameters (papermill), and with
wrong names.
"""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("[0-9][0-9]_*.ipynb"))
# other values than the defaults, small enough for seconds
SMALL = {
    "00": {
        "n_pairs": 20,
        "n_features": 4,
        "tasks": ["agreement/simple", "agreement/nested_pp"],
        "seed": 1,
    },
    "01": {
        "n_pairs": 10,
        "revisions": ["step64", "step1000"],
        "layer": 1,
        "task": "agreement/reflexive",
    },
    "02": {
        "n_pairs": 30,
        "revisions": ["step128", "step256", "step512", "step1000", "step3000"],
        "layer": 0,
        "tasks": ["agreement/simple", "agreement/pp", "agreement/subj_rel"],
    },
    "03": {
        "revisions": ["step256", "step3000"],
        "layer": 1,
        "n_latents": 96,
        "k": 8,
        "steps": 40,
        "n_tokens": 20_000,
        "n_eval_tokens": 10_000,
        "seed": 1,
    },
    "04": {"n_pairs": 24, "task": "agreement/subj_rel", "method": "atp", "n_features": 5},
    "05": {"n_pairs": 30, "task": "agreement/nested_pp", "top_k": 3, "n_random": 2, "seed": 1},
    "06": {
        "n_pairs": 24,
        "n_draws": 100,
        "task": "agreement/subj_rel",
        "n_features": 4,
        "steps": 20,
        "n_tokens": 20_000,
        "seed": 1,
    },
    "07": {
        "n_pairs": 24,
        "n_tokens": 12_000,
        "task": "agreement/subj_rel",
        "n_features": 6,
        "n_sentences": 10,
        "seed": 1,
    },
    "08": {
        "revisions": ["step192", "step320", "step600", "step1400", "step3000"],
        "n_latents": 96,
        "k": 8,
        "steps": 40,
        "n_tokens": 20_000,
        "n_eval_tokens": 4_000,
        "n_pairs": 24,
        "n_draws": 100,
        "n_features": 5,
        "task": "agreement/subj_rel",
        "other_task": "agreement/simple",  # nothing is crossed there
        "tasks": ["agreement/simple", "agreement/obj_rel"],
        "seed": 1,
    },
    "09": {"n_pairs": 24, "n_tokens": 12_000, "task": "agreement/subj_rel", "n_features": 4},
}


def number(path: Path) -> str:
    return path.name[:2]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def papermill(
    notebook: Path, out: Path, parameters: dict, seconds: int = 400
) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        str(out),
        "-k",
        "python3",
        "--no-progress-bar",
    ]
    command += ["--cwd", str(notebook.parent), "-y", json.dumps(parameters)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env=environment()
    )


def text_of(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    outputs = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    return "\n".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)


def test_there_is_a_small_setting_for_each():
    assert [number(n) for n in NOTEBOOKS] == list(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=number)
def test_at_full_size(notebook, tmp_path):
    """nbval runs every cell of the notebook as committed; its asserts hold, and no cell fails."""
    its_copy = tmp_path / "notebooks" / notebook.name
    its_copy.parent.mkdir()
    its_copy.write_bytes(notebook.read_bytes())  # so that ../runs is a fresh folder
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-current-env",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += [
        "--rootdir",
        str(tmp_path),
        "-c",
        os.devnull,
        "--nbval-cell-timeout",
        "300",
        str(its_copy),
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=560, env=environment(), cwd=its_copy.parent
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    cells = sum(c.cell_type == "code" for c in nbformat.read(notebook, as_version=4).cells)
    assert f"{cells} passed" in run.stdout


@pytest.mark.long  # beside the other runs with parameters, here and in test_real_path
@pytest.mark.parametrize("name", ["00", "01", "02", "04", "07", "08", "09"])
def test_at_a_small_size_with_other_parameters(name, tmp_path):
    check_small(name, tmp_path)


def check_small(name: str, folder: Path, **given) -> None:
    """Run a notebook with other parameters; it uses them, and writes where it is told."""
    (notebook,) = [n for n in NOTEBOOKS if number(n) == name]
    parameters = {**SMALL[name], "out": str(folder / name), **given}
    run = papermill(notebook, folder / f"{name}.ipynb", parameters)
    assert run.returncode == 0, run.stderr[-3000:]
    text = text_of(folder / f"{name}.ipynb")
    for revision in parameters.get("revisions", []):
        assert revision in text
    assert any((folder / name).iterdir())


@pytest.mark.long  # 04 on a crosscoder of one's own, of another suite, is in test_real_path
@pytest.mark.parametrize("after", ["05", "06", "07"])
def test_a_crosscoder_of_ones_own_goes_through(after, tmp_path, monkeypatch):
    """03 with two checkpoints and another layer, then another notebook on what it made."""
    check_small("03", tmp_path)
    made = {
        "revisions": SMALL["03"]["revisions"],
        "layer": SMALL["03"]["layer"],
        "crosscoder": str(tmp_path / "03" / "crosscoder"),
    }
    check_small(after, tmp_path, **made)
    # the same crosscoder on the default triplet is refused
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="This crosscoder reads 2 checkpoints, and here are"):
        run_here(NOTEBOOKS[4], 3, crosscoder=made["crosscoder"], n_pairs=20)


@pytest.mark.long
@pytest.mark.parametrize("name", list(SMALL))
def test_every_cell_can_be_run_again(name, tmp_path):
    """Who changes a cell runs it again. With nothing changed it shows what it showed."""
    (path,) = [n for n in NOTEBOOKS if number(n) == name]
    notebook = nbformat.read(path, as_version=4)
    twice = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if "parameters" in cell.metadata.get("tags", []):
            given = SMALL[name] | {"out": str(tmp_path / "out")}
            cell.source += "".join(f"\n{key} = {value!r}" for key, value in given.items())
        twice += [cell, copy.deepcopy(cell)]
        twice[-1].id = f"{cell.id}-again"
    notebook.cells = twice
    folder = tmp_path / "notebooks"
    folder.mkdir()
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment())
    for first, again in zip(twice[::2], twice[1::2], strict=True):
        assert shown(again) == shown(first), first.source


# what a second run may say otherwise: bars, a training that is loaded, free memory and seconds
MAY_DIFFER = re.compile(r"%\|| holds this run, finished|^  memory |^  work |^  in all |^$")


def shown(cell: nbformat.NotebookNode) -> list[str]:
    """The lines that a cell printed, and what it gave as text."""
    text = ""  # a stream comes in pieces of any size
    for output in cell.outputs:
        if output.output_type == "stream":
            text += output.text if output.name == "stdout" else ""
        elif "image/png" not in output.get("data", {}):
            text += output.get("data", {}).get("text/plain", "") + "\n"
    lines = re.sub(r" at 0x\w+", "", text).splitlines()
    return [line for line in lines if not MAY_DIFFER.search(line)]


def run_here(notebook: Path, n_cells: int, **given) -> None:
    """Run the first cells after the parameters, as papermill would, but in this process."""
    namespace = {"__annotations__": {}}
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    (at,) = [i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])]
    exec(cells[at].source, namespace)
    namespace |= given
    for cell in cells[at + 1 : at + 1 + n_cells]:
        exec(cell.source, namespace)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=number)
def test_a_misspelt_parameter_is_refused(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'modle' is not a parameter of this notebook"):
        run_here(notebook, 1, modle="tiny")


@pytest.mark.slow
def test_papermill_refuses_a_misspelt_parameter(tmp_path):
    run = papermill(NOTEBOOKS[0], tmp_path / "out.ipynb", {"modle": "tiny"})
    assert run.returncode != 0
    assert "'modle' is not a parameter of this notebook. Did you mean 'model'?" in run.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"n_pairs": "many"}, "Parameter n_pairs='many' is a str; this notebook takes int"),
        ({"layer": 7}, "layer=7 does not exist: this model has 4 blocks, 0 to 3"),
    ],
)
def test_wrong_values_are_refused(given, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=told):
        run_here(NOTEBOOKS[1], 4, **given)


def test_the_notebooks_stay_small_and_short():
    assert sum(n.stat().st_size for n in NOTEBOOKS) < 6 * 2**20
    for notebook in NOTEBOOKS:
        for cell in nbformat.read(notebook, as_version=4).cells:
            if cell.cell_type == "code":
                assert len(cell.source.splitlines()) <= 25, (
                    f"{notebook.name}: a cell too long to read"
                )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=number)
def test_every_figure_has_a_text_for_those_who_do_not_see_it(notebook):
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = output.metadata.get("image/png", {}).get("alt", "")
                assert len(alt) > 40, f"end with plots.show('what is drawn'): {cell.source[-200:]}"


@pytest.mark.parametrize("notebook", NOTEBOOKS[:9], ids=number)
def test_it_ends_with_what_to_remember_and_a_few_questions(notebook):
    """Three takeaways, and three to five questions with folded answers. (09 is an appendix.)"""
    cells = nbformat.read(notebook, as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    (remember,) = [text for text in texts if "## What to remember" in text]
    takeaways = re.findall(r"^(?:\d\.|-) ", remember.split("## What to remember")[1], re.MULTILINE)
    assert len(takeaways) >= 3
    questions = texts[-1].split("## Check yourself")[1]
    numbers = re.findall(r"^(\d)\. ", questions, re.MULTILINE)
    assert 3 <= len(numbers) <= 5 and numbers == [str(i + 1) for i in range(len(numbers))]
    assert questions.count("<details><summary>Answer</summary>") == len(numbers)
    assert questions.count("</details>") == len(numbers)
