"""Sweeps: what a config asks for, what runs again, and what is left of one that was killed."""

import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import yaml
from faults import counted, tries
from test_project import ROOT, load_tool

from ctt_helpers.files import locked, read_json, sha256, write_json

WORKFLOW = ROOT / "workflow"
sys.path.insert(0, str(WORKFLOW))
import guard  # noqa: E402
import plan  # noqa: E402
import report  # noqa: E402

METADATA = load_tool("build_notebooks").METADATA
PARAMETERS = """seed: int = 0
rate: float | None = None
wait: float = 0.0
training: dict | None = None
out: str = "../runs/x"
"""
WORK = """%matplotlib inline
import json, pathlib, time
import matplotlib.pyplot as plt
assert rate != 2, "a rate of <two> is too much"
folder = pathlib.Path(out)
folder.mkdir(parents=True, exist_ok=True)
begun = len(list(folder.glob("begun*")))
(folder / f"begun{begun}").touch()
time.sleep(wait)
(folder / "report.json").write_text(json.dumps({"loss": seed + (rate or 0), "at": "cpu"}))
plt.plot([1, 2])
plt.show()"""


def write_notebook(path: Path, work: str = WORK) -> Path:
    """A notebook of three cells, with a parameter that fails and one that takes time."""
    cells = [
        nbformat.v4.new_markdown_cell("# Tiny"),
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(work),
    ]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), path)
    return path


@pytest.fixture
def config(tmp_path) -> dict[str, Any]:
    return {
        "name": "try",
        "notebook": str(write_notebook(tmp_path / "notebooks" / "09_tiny.ipynb")),
        "axes": {"rate": [0.5], "seed": [0, 1]},
        "python": sys.executable,
        "runs": str(tmp_path / "runs"),
    }


# ---- what a config asks for


def test_runs_are_all_combinations(config):
    config["axes"] = [{"rate": ["1e-3", None], "seed": [0, 1]}, {"training": [{"lr": "1E-4"}]}]
    config["parameters"] = {"wait": 0.1}
    runs = plan.runs_of(config)
    assert list(runs) == [
        "rate=0.001+seed=0",
        "rate=0.001+seed=1",
        "rate=None+seed=0",
        "rate=None+seed=1",
        "training=lr_0.0001",
    ]
    assert runs["rate=0.001+seed=1"]["parameters"] == {"rate": 0.001, "seed": 1, "wait": 0.1}
    assert runs["training=lr_0.0001"]["parameters"] == {"training": {"lr": 1e-4}, "wait": 0.1}
    del config["axes"]
    assert list(plan.runs_of(config)) == ["defaults"]


def test_names_of_folders_can_be_handed_on():
    assert (
        plan.label({"seed": 0, "revisions": ["step1", "step2"]}) == "seed=0+revisions=step1-step2"
    )
    assert plan.label({"crosscoder": "../runs/a b,x"}) == "crosscoder=.._runs_a_b_x"
    long = [plan.label({"revisions": [f"step{i}" for i in range(n)]}) for n in (30, 31)]
    assert long[0] != long[1] and all(len(name) <= 120 for name in long)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"axes": {"sede": [1]}},
            "'sede' cannot be set. Did you mean 'seed'\\? This notebook has: seed, ",
        ),
        ({"parameters": {"out": "x"}}, "'out' is set by the sweep"),
        ({"axes": {"seed": 1}}, r"axes: seed: give a list of values, such as \[1\]"),
        ({"axes": {"seed": []}}, "axes: seed: give a list of values"),
        ({"axes": {"seed": [0, 0]}}, "comes twice"),
        ({"axes": [{"seed": [0]}, {"seed": [0]}]}, "comes twice"),
        ({"axes": {"training": [{"a": "/"}, {"a": "?"}]}}, "cannot be told from another"),
        ({"axes": {"training": [{1: 2}]}}, "keys that are not text"),
        ({"parameters": {"seed": 3}}, "stands in `axes` and in `parameters`"),
        ({"axes": "seed"}, "'seed' is not a mapping"),
        ({"parameter": {}}, "'parameter' is no setting of a sweep. Did you mean 'parameters'"),
        ({"notebook": None}, "notebook: none is given"),
        ({"notebook": "no.ipynb"}, "there is no .*no.ipynb"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(config, change, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        plan.runs_of(config | change)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".x", "a b"])
def test_a_sweep_stays_in_its_folder(config, name):
    with pytest.raises(ValueError, match="names no folder"):
        plan.folder_of(config | {"name": name})


def test_prose_and_outputs_decide_nothing(config):
    before = plan.runs_of(config)
    path = Path(config["notebook"])
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = "# Another title"
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
    nbformat.write(notebook, path)
    assert plan.runs_of(config) == before
    write_notebook(path, WORK + "\nprint(1)")
    assert plan.runs_of(config) != before


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"cells": [{"source": "x"}]}'])
def test_what_is_no_notebook_is_named(config, text):
    Path(config["notebook"]).write_text(text)
    with pytest.raises(ValueError, match=r"09_tiny.ipynb cannot be read as a notebook"):
        plan.runs_of(config)


def test_every_notebook_says_its_parameters():
    for notebook in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        _, known = plan.read(notebook)
        assert {"profile", "model", "seed", "device"} <= set(known) and "out" not in known


def test_the_example_is_a_sweep():
    example = yaml.safe_load((WORKFLOW / "config.yaml").read_text(encoding="utf-8"))
    assert len(plan.runs_of(example)) == 6


# ---- how far it is


def fake(folder: Path, name: str, made_by: dict, **files: Any) -> None:
    """The folder of a run with these JSON files in it."""
    write_json(folder / name / "parameters.json", made_by | {"package": plan.package_code()})
    for file, content in files.items():
        write_json(folder / name / f"{file}.json", content)


def test_the_page_says_how_far_each_run_is(config, monkeypatch, capsys):
    config["axes"] = {"rate": ["<b>", 1, 2, 3, 4, 5]}
    runs = plan.runs_of(config)
    folder = plan.folder_of(config)
    done, failed, cut, _, other, newer = runs
    fake(folder, done, runs[done], versions={"torch": "2.11", "seconds": 90})
    write_json(folder / done / "09_tiny" / "report.json", {"loss": 0.25})
    fake(folder, failed, runs[failed], failed={"reason": "ValueError: <script>"})
    fake(folder, cut, runs[cut])
    fake(folder, other, runs[other] | {"code": "x"}, versions={"torch": "2.11"})
    fake(folder, newer, runs[newer], versions={"torch": "2.12", "seconds": 60})
    write_json(folder / newer / "parameters.json", runs[newer] | {"package": "another"})
    monkeypatch.setattr(sys, "argv", ["report", json.dumps(config)])
    assert report.main() == 0
    told = capsys.readouterr().out
    assert f"2 of 6 runs: {folder / 'report.html'}" in told
    assert f"{failed}: failed\n  ValueError: <script>" in told
    states = report.write(config)
    words = ["finished", "failed", "cut off", "not begun", "of another config", "finished"]
    assert [state.word for state in states] == words
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert "ValueError: &lt;script&gt;" in page
    assert "different versions of torch: 2.11, 2.12" in page
    assert f"1 of 2 were made by an older one: {newer}." in page
    with open(folder / "collected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["metric"], row["value"]) for row in rows] == [(done, "loss", "0.25")]
    assert not (folder / "finished.json").exists()


# ---- nothing is left running


def children_of(code: str) -> list[psutil.Process]:
    """A process that runs this code, and its child."""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=WORKFLOW, stdout=subprocess.PIPE)
    process.stdout.readline()
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children()]


FOLLOWER = "import guard, time; print(guard.follow(), flush=True); time.sleep(99)"
LEADER = f"""
import guard, subprocess, sys
guard.lead_if_alone()
subprocess.run([sys.executable, "-c", {FOLLOWER!r}])
"""


def test_who_follows_ends_with_its_leader():
    leader, follower = children_of(LEADER)
    assert guard.is_alive(follower)
    leader.kill()
    psutil.wait_procs([follower], timeout=3)
    assert not guard.is_alive(follower) and not guard.is_alive(leader)
    leader.wait()


def test_without_a_leader_nobody_is_followed(monkeypatch):
    monkeypatch.setenv(guard.TOP, "999999999")
    assert guard.line_above() == [] and not guard.follow()


@pytest.mark.parametrize("kept", [True, False])
def test_hup_is_left_ignored_by_nohup(monkeypatch, kept):
    set_to = {signal.SIGHUP: signal.SIG_IGN} if kept else {}
    monkeypatch.setattr(signal, "getsignal", lambda number: set_to.get(number, signal.SIG_DFL))
    monkeypatch.setattr(signal, "signal", lambda number, do: set_to.update({number: do}))
    guard.when_told(guard.end)
    assert set_to[signal.SIGTERM] == set_to[signal.SIGINT] == guard.end
    load_tool("run_notebooks").end_when_told()
    assert set_to[signal.SIGTERM] == signal.default_int_handler
    assert (set_to[signal.SIGHUP] == signal.SIG_IGN) == kept


# ---- with Snakemake


@pytest.fixture(scope="session")
def snakemake() -> str:
    """The Python of an environment with Snakemake; made where it is missing, with a registry."""
    venv = ROOT / ".venv-sweep"
    python = venv / "bin" / "python"
    wanted = "".join(
        sha256(WORKFLOW / f"{name}.txt")[:8] for name in ("requirements", "constraints")
    )
    stamp = venv / f".tests-{wanted}"
    if not stamp.is_file() or not python.exists():
        try:
            make_environment(venv, python)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            pytest.skip(f"Snakemake cannot be installed here: {told.strip().splitlines()[-1]}")
        stamp.touch()
    return str(python)


def make_environment(venv: Path, python: Path) -> None:
    """Install Snakemake as `make sweep` does, but compile nothing."""
    for _ in range(100):
        try:
            with locked(venv):  # of several workers of pytest one makes it
                if not python.exists():
                    command = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
                    subprocess.run(command, check=True, capture_output=True, text=True)
                pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
                pip += ["--no-compile", "-r", str(WORKFLOW / "requirements.txt")]
                subprocess.run(pip, check=True, capture_output=True, text=True, timeout=300)
                return
        except RuntimeError:
            time.sleep(3)
    raise RuntimeError(f"{venv} is in use")


class Sweep:
    """A sweep in a folder of its own, whose processes are known by a variable that they inherit."""

    def __init__(self, python: str, folder: Path, config: dict[str, Any]):
        self.mark = uuid.uuid4().hex
        self.config = config
        self.folder = plan.folder_of(config)
        self.file = folder / f"{config['name']}.yaml"
        self.file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.command = [python, str(WORKFLOW / "sweep.py"), str(self.file)]
        self.where = folder  # Snakemake leaves its log where it was started
        self.environ = {**os.environ, "CTT_TRY": self.mark, "MPLBACKEND": ""}

    def run(self, *options: str) -> subprocess.CompletedProcess:
        """Run it to its end."""
        return subprocess.run(
            [*self.command, *options],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=self.where,
            env=self.environ,
        )

    def jobs(self) -> list[str]:
        """The runs that it would do now."""
        done = self.run("--dry-run")
        assert done.returncode == 0, done.stderr
        return sorted(re.findall(r"wildcards: run=(\S+)", done.stdout))

    def start(self, *options: str) -> subprocess.Popen:
        """Begin it."""
        return subprocess.Popen(
            [*self.command, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.where,
            env=self.environ,
        )

    def processes(self) -> list[psutil.Process]:
        """All that belong to it and live, whoever their parents are."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("CTT_TRY") == self.mark
            except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
                continue
            if mine and guard.is_alive(process):
                found.append(process)
        return found

    def kinds(self) -> dict[str, list[psutil.Process]]:
        """Its processes by what they are."""
        words = {
            "kernel": "ipykernel_launcher",
            "bash": "set -euo pipefail",
            "papermill": "guard.py run_notebook",
            "report": "guard.py report",
            "snakemake": "snakemake",
            "sweep": "sweep.py",
        }
        found: dict[str, list[psutil.Process]] = {}
        for process in self.processes():
            try:
                line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            kind = next((kind for kind, word in words.items() if word in line), None)
            if kind:
                found.setdefault(kind, []).append(process)
        return found

    def finished(self) -> list[str]:
        return sorted(path.parent.name for path in self.folder.glob("*/versions.json"))

    def table(self) -> list[list[str]]:
        with open(self.folder / "collected.csv", newline="") as file:
            return sorted(csv.reader(file))

    def losses(self) -> list[str]:
        """The numbers in the table."""
        with open(self.folder / "collected.csv", newline="") as file:
            return [row["value"] for row in csv.DictReader(file)]

    def begun(self, run: str) -> int:
        """How often a run has come to its last cell."""
        return len(list((self.folder / run / "09_tiny").glob("begun*")))


@pytest.fixture
def sweep(snakemake, tmp_path, config) -> Iterator[Any]:
    """A function: the sweep of this config, with some settings changed."""
    made = []

    def make(**changes: Any) -> Sweep:
        made.append(Sweep(snakemake, tmp_path, config | changes))
        return made[-1]

    yield make
    for each in made:
        for process in each.processes():
            process.kill()


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure_and_does_only_what_is_new(sweep):
    first = sweep(axes={"rate": [0.5, 2]})
    done = first.run()
    assert done.returncode == 1, done.stderr
    assert re.search(r"^rate=0\.5 \.\.\. \d+ s$", done.stdout, re.MULTILINE)
    assert "rate=2 ... failed" not in done.stdout  # but why
    assert "rate=2 ... AssertionError: a rate of <two> is too much" in done.stdout
    assert f"1 of 2 runs: {first.folder / 'report.html'}" in done.stdout
    good, bad = first.folder / "rate=0.5", first.folder / "rate=2"
    wrote = {"09_tiny.ipynb", "09_tiny", "figures", "parameters.json", "versions.json", "log.txt"}
    assert {path.name for path in good.iterdir()} == wrote
    assert read_json(good / "parameters.json")["parameters"] == {"rate": 0.5}
    assert {"python", "torch", "seconds"} <= set(read_json(good / "versions.json"))
    assert [path.read_bytes()[:4] for path in (good / "figures").iterdir()] == [b"\x89PNG"]
    # the traceback stays, and the page leads to it
    outputs = nbformat.read(bad / "09_tiny.ipynb", as_version=4).cells[-1].outputs
    assert outputs[-1].output_type == "error" and not (bad / "versions.json").exists()
    page = (first.folder / "report.html").read_text(encoding="utf-8")
    assert "1 finished, 1 failed" in page and "a rate of &lt;two&gt; is too much" in page
    assert "href='rate%3D2/09_tiny.ipynb'" in page
    assert "src='rate%3D0.5/figures/cell04.png'" in page
    # one value more: that run alone is to do
    would = sweep(axes={"rate": [0.5, 0.25]}).jobs()
    assert would == ["rate=0.25"]


@pytest.mark.slow
def test_slurm_gives_each_run_a_job_with_one_gpu(sweep):
    done = sweep().run("--profile", "slurm", "--dry-run")
    assert done.returncode == 0, done.stderr
    jobs = done.stdout.split("rule run:")[1:]
    assert len(jobs) == 2 and all(" gpu=1," in job for job in jobs)
    assert " gpu=" not in done.stdout.split("rule report:")[1]


# a cluster of this machine alone: sbatch starts a job at once, a file holds its state
SBATCH = """#!/bin/bash
here=$(dirname "$0"); id=$$
printf '%s\\n' "$*" >> $here/submitted
for word in "$@"; do case "$word" in --wrap=*) job="${word#--wrap=}";; esac; done
echo RUNNING > $here/state.$id
(setsid env SLURM_JOB_ID=$id bash -c "$job" && echo COMPLETED > $here/state.$id \\
  || echo FAILED > $here/state.$id) >$here/out.$id 2>&1 &
echo $id
"""
SACCT = """#!/bin/bash
cd $(dirname "$0"); for file in state.*; do echo "${file#state.}|$(cat $file)"; done
"""
SRUN = """#!/bin/bash
printf '%s\\n' "$*" >> $(dirname "$0")/steps
while [[ "$1" == -* ]]; do shift; done
exec "$@"
"""


@pytest.mark.long
def test_jobs_of_slurm_run_by_themselves_and_are_called_off(sweep, tmp_path):
    """With stand-ins for SLURM's commands."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    scripts = {"sbatch": SBATCH, "sacct": SACCT, "srun": SRUN}
    scripts |= dict.fromkeys(("sinfo", "squeue", "scontrol", "sacctmgr", "sshare"), "#!/bin/bash\n")
    scripts["scancel"] = '#!/bin/bash\necho "$*" >> $(dirname "$0")/called-off\n'
    for name, text in scripts.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    on_cluster = sweep(axes={"rate": [0.5, 2], "seed": [0, 1]})
    on_cluster.environ["PATH"] = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    waiting = sweep(name="waiting", axes={"wait": [500]})
    waiting.environ["PATH"] = on_cluster.environ["PATH"]
    options = ["--profile", "slurm", "--latency-wait", "5"]
    options += ["--slurm-init-seconds-before-status-checks", "3"]
    options += ["--default-resources", "slurm_account=me", "slurm_partition=gpu"]
    done = on_cluster.run(*options)
    assert done.returncode == 1 and "2 of 4 runs" in done.stdout, done.stdout + done.stderr
    assert on_cluster.finished() == ["rate=0.5+seed=0", "rate=0.5+seed=1"]
    submitted = (bin_ / "submitted").read_text().splitlines()
    assert len(submitted) == 4
    assert all(" --gpus=1 " in line and " --cpus-per-task=4 " in line for line in submitted)
    page = (on_cluster.folder / "report.html").read_text(encoding="utf-8")
    assert "2 finished, 2 failed" in page and "a rate of &lt;two&gt; is too much" in page

    process = waiting.start(*options)
    until(lambda: "kernel" in waiting.kinds(), process)
    job = max(int(path.suffix[1:]) for path in bin_.glob("state.*") if "RUN" in path.read_text())
    process.terminate()
    process.communicate(timeout=60)
    assert str(job) in (bin_ / "called-off").read_text()


@pytest.mark.long
def test_what_runs_again(sweep, config):
    """What decides a result, and nothing else; and what was there before is kept."""
    first = sweep()
    runs = ["rate=0.5+seed=0", "rate=0.5+seed=1"]
    assert first.run().returncode == 0 and first.finished() == runs
    assert first.jobs() == []
    notebook = Path(config["notebook"])
    # prose, and when it was written, decide nothing
    cells = nbformat.read(notebook, as_version=4)
    cells.cells[0].source = "# Another"
    nbformat.write(cells, notebook)
    assert first.jobs() == []
    # nor what the page shows: that alone is made again
    shown = sweep(metric="*loss*")
    assert shown.jobs() == []
    assert shown.run().returncode == 0 and [first.begun(run) for run in runs] == [1, 1]
    assert sweep(axes={"rate": [0.5], "seed": [1, 2]}).jobs() == ["rate=0.5+seed=2"]
    # a parameter that all share, and the code
    assert sweep(parameters={"wait": 0.01}).jobs() == runs
    write_notebook(notebook, WORK.replace("seed + ", "100 + seed + "))
    again = sweep()
    assert again.jobs() == runs
    assert again.run().returncode == 0 and [again.begun(run) for run in runs] == [1, 1]
    assert again.losses() == ["100.5", "101.5"]
    for run in runs:
        old = again.folder / "superseded" / run / "1" / "09_tiny" / "report.json"
        assert read_json(old)["loss"] < 2
    # a run that is asked for no more is neither in the table nor lost
    fewer = sweep(axes={"rate": [0.5], "seed": [1]})
    assert fewer.run().returncode == 0 and len(fewer.table()) == 2
    assert fewer.finished() == runs


@pytest.mark.long
def test_a_run_that_takes_too_long_is_stopped(sweep):
    slow = sweep(axes={"wait": [0, 500]}, seconds=90)
    done = slow.run()
    assert done.returncode == 1 and slow.finished() == ["wait=0"]
    assert (
        "did not end within 90 s" in read_json(slow.folder / "wait=500" / "failed.json")["reason"]
    )
    assert slow.processes() == []


ENDINGS = [
    signal.SIGTERM,
    pytest.param(signal.SIGINT, marks=pytest.mark.long),
    pytest.param(signal.SIGHUP, marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_sweep_that_is_told_to_end_ends_all_and_says_how_to_go_on(sweep, ending):
    waiting = sweep(axes={"wait": [500]})
    process = waiting.start()
    until(lambda: "kernel" in waiting.kinds(), process)
    second = sweep(axes={"wait": [500]}).run()
    assert second.returncode == 1 and "is in use by process" in second.stdout + second.stderr
    process.send_signal(ending)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and waiting.processes() == []
    assert told.strip().splitlines()[-2:] == [
        "Stopped. What has finished stays, and what was cut off goes on from where it saved.",
        "The same command goes on.",
    ]
    assert "1 cut off" in (waiting.folder / "report.html").read_text(encoding="utf-8")


def until(true, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until something is true, while a process runs."""
    began = time.monotonic()
    while not true():
        assert process.poll() is None and time.monotonic() - began < seconds
        time.sleep(0.1)


GONE = 3.0  # seconds after which nothing is left


def kill_something(sweep: Sweep, rng: random.Random, seconds: float) -> tuple[str, bool]:
    """Begin a sweep and kill one of its processes at a random moment.

    Returns:
        What was killed, and whether all was gone that should be: all of the sweep where its first
        process or Snakemake was killed; else what was below, and in the end all.
    """
    while True:
        process = sweep.start()
        time.sleep(rng.uniform(0.5, seconds))
        kinds = sweep.kinds()
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            kind = rng.choice(sorted(kinds))
            victim = rng.choice(kinds[kind])
            below = victim.children(recursive=True)
            victim.kill()
            break
        process.communicate()  # it was over already
        seconds *= 0.8
        shutil.rmtree(sweep.folder)
    if kind in ("sweep", "snakemake"):
        time.sleep(GONE)
        gone = sweep.processes() == []
    else:
        gone = psutil.wait_procs([victim, *below], timeout=GONE)[1] == []
    process.communicate(timeout=200)
    return kind, gone and sweep.processes() == []


@tries(1, 20)
@pytest.mark.slow
def test_a_killed_sweep_leaves_nothing_running_and_goes_on(sweep, tries):
    rng = random.Random(0)
    seeds = [0, 1, 2] if tries > 1 else [0]
    seconds = 8.0  # of the last whole one
    with counted("sweep killed", tries, "nothing is left running, and it goes on") as count:
        for number in range(tries):
            config = {"axes": {"seed": seeds}, "parameters": {"rate": 0.5, "wait": 1.0}}
            cut = sweep(name=f"cut{number}", **config)
            kind, gone = kill_something(cut, rng, seconds)
            began = time.monotonic()
            again = cut.run()
            seconds = time.monotonic() - began
            losses = cut.losses() if again.returncode == 0 else []
            told = "" if losses else again.stdout[-2000:] + again.stderr[-4000:]
            print(f"{kind}: all gone {gone}; then {losses}{told}")
            count(gone and losses == [str(seed + 0.5) for seed in seeds])


@pytest.mark.long
def test_a_sweep_of_a_real_notebook(sweep):
    """Six good runs and a bad one, killed on the way."""
    real = {
        "notebook": "notebooks/05_does_it_hold.ipynb",
        "axes": {"task": ["agreement/pp", "agreement/subj_rel", "none"], "seed": [0, 1, 2]},
        "parameters": {"n_pairs": 40, "device": "cpu"},
        "metric": "*",
    }
    some = sweep(**real)
    process = some.start()
    until(lambda: len(some.finished()) > 0, process, 500)
    some.kinds()["snakemake"][0].kill()
    time.sleep(GONE)
    assert some.processes() == []
    process.communicate(timeout=60)
    done = some.run()
    assert done.returncode == 1 and len(some.finished()) == 6
    page = (some.folder / "report.html").read_text(encoding="utf-8")
    assert "6 finished, 3 failed" in page and "&#x27;none&#x27;" in page
    assert (some.folder / "comparison.png").is_file()
    before = some.table()
    real["axes"] = {"task": ["agreement/pp", "agreement/subj_rel"], "seed": [0, 1, 2]}
    good = sweep(**real)
    assert good.jobs() == []
    assert good.run().returncode == 0 and good.table() == before
    assert "6 finished" in (good.folder / "report.html").read_text(encoding="utf-8")
