"""Trouble from outside: killed at any moment, disks that are full or refuse, runs with one name,
clocks that jump, and too little memory.

Each promise is in docs/reliability.md, with the figures of the long form.
"""

import dataclasses
import io
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import (
    AbstractContextManager,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from faults import counted, tries
from models import random_suite, some_pairs, some_text
from test_files import small_effects
from test_training import planted

import ctt_helpers as ctt
from ctt_helpers import files, hooks, logs, training
from ctt_helpers.activations import TensorStream
from ctt_helpers.cache import ActivationCache, _File
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.effects import Effects
from ctt_helpers.files import InUse, load_folder, locked, read_json
from ctt_helpers.memory import TooLittleMemory
from ctt_helpers.notebook import pages
from ctt_helpers.notebook.widgets import notes
from ctt_helpers.toy import pretrain
from ctt_helpers.training import TrainConfig

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals, locks and limits of POSIX")
SIGNALS = ["SIGKILL", "SIGINT", "SIGTERM", "SIGHUP"]  # in turn; SIGINT is Ctrl-C

# ---- killed at any moment


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def in_place(folder: Path) -> dict[str, bytes]:
    """Those that are called what they will be called in the end."""
    there = contents(folder)
    return {name: there[name] for name in there if not any(p[0] == "." for p in name.split("/"))}


@dataclass
class Work:
    """Something that takes a second and leaves a folder.

    Attributes:
        run: does it, or goes on with it; the same call each time.
        result: what it has made, to be compared.
        looked: whether all that can be read of it, whenever it was killed, is as in the whole.
    """

    run: Callable[[Path], Any]
    result: Callable[[Path], Any]
    looked: Callable[[Path, Path], bool]


def run_pretraining(folder: Path) -> None:
    pretrain.pretrain(folder / "suite", seed=5, steps=12, pairs=8, save_every=4)


def looked_at_suite(folder: Path, whole: Path) -> bool:
    there, wanted = in_place(folder), in_place(whole)
    return all(wanted[name] == content for name, content in there.items())


def run_training(folder: Path) -> None:
    stream = TensorStream(planted(4096)[0], 256, 1)
    config = TrainConfig(steps=60, checkpoint_every=10, dead_after_tokens=2000)
    ctt.train(Crosscoder(3, 16, 48, k=2), stream, config, folder / "run", device="cpu")


def result_of_training(folder: Path) -> tuple:
    found = Crosscoder.load(folder / "run" / "crosscoder")
    weights = {name: tensor.tolist() for name, tensor in found.state_dict().items()}
    history = pd.read_csv(folder / "run" / "history.csv").drop(columns="seconds")
    return weights, found.source, history.to_dict("list"), sorted(contents(folder))


def looked_at_training(folder: Path, whole: Path) -> bool:
    run = folder / "run"
    alike = True
    if (run / "history.csv").exists() and (run / "train_config.json").exists():
        alike = result_of_training(folder)[:3] == result_of_training(whole)[:3]
    if (run / "crosscoder" / "config.json").exists():
        found, wanted = (Crosscoder.load(f / "run" / "crosscoder") for f in (folder, whole))
        alike &= torch.equal(found.W_dec, wanted.W_dec) and found.source == wanted.source
    if (run / "checkpoint" / "state.json").exists():
        settings, tensors = load_folder(
            run / "checkpoint", "training state", training.STATE_FILES
        )  # an error, were it half written
        alike &= settings["done"] % 10 == 0 and bool(tensors)
    return alike


def run_cache(folder: Path) -> None:
    ckpts = ctt.load_suite(folder.parent / "models", tokens_per_step=10).checkpoints(device="cpu")
    given = {"sequences_per_group": 8, "shard_bytes": 20_000}
    ActivationCache.build(ckpts, some_text(400, 10), folder / "cache", **given)


def result_of_cache(folder: Path) -> tuple:
    cache = ActivationCache.open(folder / "cache")
    numbers = [[cache.read(c, g).tolist() for g in range(cache.n_groups)] for c in range(3)]
    return cache.about, numbers, sorted(contents(folder))


def looked_at_cache(folder: Path, whole: Path) -> bool:
    there = sorted(in_place(folder))
    if (folder / "cache" / "cache.json").exists():
        try:
            ActivationCache.open(folder / "cache")
        except ValueError as error:
            assert "is not finished" in str(error)
    files = [name for name in there if name.endswith(".safetensors")]
    found, wanted = ([_File(f / name) for name in files] for f in (folder, whole))
    return all(
        a.mark == b.mark and a.x[:].equal(b.x[:]) for a, b in zip(found, wanted, strict=True)
    )


WORKS = {
    "pretraining": Work(run_pretraining, contents, looked_at_suite),
    "training": Work(run_training, result_of_training, looked_at_training),
    "building a cache": Work(run_cache, result_of_cache, looked_at_cache),
}


def quick_first(names: Iterable[str]) -> list:
    """Of these the quick ones, in a short run; all of them in a long one."""
    slow = {"a cache", "building a cache", "pretraining"}
    return [pytest.param(n, marks=pytest.mark.long) if n in slow else n for n in names]


def victim(kind: str, folder: Path, begun: Any) -> None:
    """What the process does that is killed: it says when it begins."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    os.chdir(folder)  # so that whatever it starts can be found
    name = f"told-{os.getpid()}.txt"
    with open(folder.parent / name, "w", buffering=1) as told, redirect_stdout(told):
        begun.send("now")
        try:
            WORKS[kind].run(folder)
        except (InUse, FileExistsError) as error:
            print(error)
            sys.exit(1)


def start(kind: str, folder: Path) -> multiprocessing.Process:
    """The work in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["ctt_helpers.toy.pretrain", "ctt_helpers.cache", "transformers"]
    )
    begun, begins = context.Pipe(duplex=False)
    process = context.Process(target=victim, args=(kind, folder, begins))
    process.start()
    assert begun.poll(100) and begun.recv() == "now"
    return process


def nobody_in(folder: Path, seconds: float = 20) -> bool:
    """Whether no process works in a folder any more, or soon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        inside = []
        for process in psutil.process_iter():
            try:
                inside += [process] if Path(process.cwd()).is_relative_to(folder) else []
            except (psutil.Error, OSError):
                continue  # it has ended
        if not inside:
            return True
        time.sleep(0.1)
    return False


def two_lines(told: str) -> bool:
    """Whether Ctrl-C ended in what is kept and how to go on."""
    lines = told.splitlines()
    said = [number for number, line in enumerate(lines) if line.startswith("Stopped. ")]
    words = ("same call", "same command", "nothing left to do")
    return len(said) == 1 and any(word in lines[said[0] + 1] for word in words)


def killed(kind: str, folder: Path, name: str, draw: random.Random, seconds: float) -> bool:
    """Kill the work somewhere on its way, and look; where it was faster, it begins anew."""
    for attempt in range(20):
        process = start(kind, folder / str(attempt))
        time.sleep(draw.uniform(0, seconds))
        with suppress(ProcessLookupError):  # it has ended
            os.kill(process.pid, getattr(signal, name))
        process.join(60)
        at_work = process.exitcode != 0
        if at_work:
            break
        seconds *= 0.8
    assert at_work, f"{kind} was faster than {seconds} s, again and again"
    told = (folder / f"told-{process.pid}.txt").read_text()
    (folder / str(attempt)).rename(folder / "work")
    return process.exitcode is not None and (name != "SIGINT" or two_lines(told))


@POSIX
@pytest.mark.timeout(3600)
@tries(2, 20)
@pytest.mark.parametrize("kind", quick_first(WORKS))
def test_a_kill_at_any_moment_changes_nothing(tries, kind, tmp_path, capsys):
    work = WORKS[kind]
    random_suite(tmp_path / "models")
    models = tmp_path / "models"
    whole = tmp_path / "whole"
    process = start(kind, whole)
    began = time.monotonic()
    process.join(200)
    seconds = time.monotonic() - began
    wanted = work.result(whole)
    fault = f"{kind} killed (SIGKILL, SIGTERM, SIGHUP, Ctrl-C)"
    with counted(fault, tries, "the same call ends in the same result") as count:
        for number in range(tries):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / "models").symlink_to(models)
            ended = killed(kind, folder, SIGNALS[number % 4], random.Random(number), seconds)
            as_whole = work.looked(folder / "work", whole) and nobody_in(folder)
            finished = kind == "pretraining" and (folder / "work/suite/SHA256SUMS").exists()
            if not finished or (folder / "work/suite/.resume/settings.json").exists():
                work.run(folder / "work")
            clean = not half_written(folder / "work")
            count(ended and as_whole and clean and work.result(folder / "work") == wanted)


def test_a_pretraining_killed_before_it_had_begun_is_not_somebody_elses(tmp_path):
    """What is there then is the folder of its state, and what it was about to write."""
    out = tmp_path / "suite"
    waiting = out / ".resume" / ".settings.json.tmp-0a1b2c3d-xyz-1234"
    waiting.mkdir(parents=True)
    (out / ".resume" / ".lock").write_text("process 1234 on a machine")
    pretrain._check_folder(out, {"seed": 0})
    (out / ".resume" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        pretrain._check_folder(out, {"seed": 0})


def test_what_an_interrupt_leaves_is_swept_by_the_same_process(tmp_path, monkeypatch):
    """A notebook's process lives on: where Ctrl-C came while it put away, it sweeps next time."""
    with monkeypatch.context() as patch:
        patch.setattr(files, "_remove", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            files.write_json(tmp_path / "a.json", {})
    assert half_written(tmp_path)
    with files.atomic_path(tmp_path / "b.json") as writing:
        files.sweep(tmp_path)
        assert half_written(tmp_path) == [writing.parent.name]  # in use, and stays
        writing.write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.json"}


@pytest.mark.parametrize("where", ["before the tensors take their place", "while it is removed"])
def test_no_state_stays_behind_a_finished_training(where, tmp_path, monkeypatch):
    """Cut off in the last moments of the last state, or of the run."""
    real = os.replace

    def replace(source, target):
        replaced.extend([1] * (Path(source).name == ".state.safetensors.new"))
        if len(replaced) == 6:
            cut_off()
        real(source, target)

    replaced = []
    with monkeypatch.context() as patch:
        if where.startswith("before"):
            patch.setattr(os, "replace", replace)
        else:
            patch.setattr(training, "_remove_state", lambda folder: cut_off())
        with pytest.raises(KeyboardInterrupt):
            run_training(tmp_path)
    assert (tmp_path / "run" / "checkpoint" / "state.json").exists()
    run_training(tmp_path)
    assert not (tmp_path / "run" / "checkpoint").exists()


def cut_off() -> None:
    raise KeyboardInterrupt


# ---- in a notebook

CELL = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.set_num_threads(1)
from test_trouble import WORKS
"""


def executed(kernel: Any, code: str, interrupt_after: float | None = None) -> tuple[str, str]:
    """A cell, interrupted or not: the name of its error ("" for none), and what it printed."""
    manager, client = kernel
    message, printed = client.execute(code), []
    if interrupt_after is not None:
        time.sleep(interrupt_after)
        manager.interrupt_kernel()
    while True:
        content = client.get_iopub_msg(timeout=200)
        if content["parent_header"].get("msg_id") != message:
            continue
        kind, content = content["msg_type"], content["content"]
        if kind == "stream" and content["name"] == "stdout":
            printed.append(content["text"])
        if kind == "status" and content["execution_state"] == "idle":
            break
    while (reply := client.get_shell_msg(timeout=200))["parent_header"].get("msg_id") != message:
        pass
    return reply["content"].get("ename", ""), "".join(printed)


@POSIX
@pytest.mark.timeout(3600)
@tries(1, 20)
def test_a_notebooks_interrupt_says_what_is_kept(tries, tmp_path):
    from jupyter_client.manager import start_new_kernel

    random_suite(tmp_path / "models")
    kinds = ["training", "building a cache", "pretraining"][:tries]
    kernel = start_new_kernel(cwd=str(tmp_path))
    draw, seconds = random.Random(0), {}
    try:
        assert executed(kernel, CELL)[0] == ""
        for kind in kinds * 2:  # imports are over the second time
            began = time.monotonic()
            folder = tmp_path / f"whole {kind}" / str(kind in seconds)
            folder.mkdir(parents=True)
            (folder.parent / "models").symlink_to(tmp_path / "models") if kind not in seconds else 0
            assert executed(kernel, f"WORKS[{kind!r}].run(Path({str(folder)!r}))")[0] == ""
            seconds[kind] = time.monotonic() - began
        fault = "pretraining, training, building a cache: a notebook's Interrupt"
        promise = "two lines say what is kept; the same cell ends in the same result"
        with counted(fault, tries, promise) as count:
            for number in range(tries):
                kind, error, attempt = kinds[number % len(kinds)], "", 0
                while not error:  # it was faster than the interrupt
                    folder = tmp_path / f"{number}-{attempt}" / "work"
                    folder.mkdir(parents=True)
                    (folder.parent / "models").symlink_to(tmp_path / "models")
                    wait = draw.uniform(0.02, seconds[kind]) * 0.8**attempt
                    cell = f"WORKS[{kind!r}].run(Path({str(folder)!r}))"
                    error, told = executed(kernel, cell, wait)
                    attempt += 1
                whole = tmp_path / f"whole {kind}" / "True"
                as_whole = WORKS[kind].looked(folder, whole)
                finished = "nothing left to do" in told
                again, _ = ("", "") if finished else executed(kernel, cell)
                result = WORKS[kind].result(folder) == WORKS[kind].result(whole)
                stopped = error == "KeyboardInterrupt" and two_lines(told)
                clean = not half_written(folder)
                count(stopped and as_whole and again == "" and clean and result)
    finally:
        kernel[1].stop_channels()
        kernel[0].shutdown_kernel(now=True)


TRAINING = """
import torch
import ctt_helpers as ctt
torch.set_num_threads(1)
x = torch.randn(4096, 3, 16, generator=torch.Generator().manual_seed(0))
config = ctt.TrainConfig(steps=60, checkpoint_every=10, dead_after_tokens=2000)
ctt.train(ctt.Crosscoder(3, 16, 48, k=2), ctt.TensorStream(x, 256), config, f"{out}/run", "cpu")
"""


def notebook_of_a_training(folder: Path) -> Path:
    """A notebook that trains into its `out`, in a folder of notebooks."""
    import nbformat

    parameter = nbformat.v4.new_code_cell(
        'out: str = "../runs/x"', metadata={"tags": ["parameters"]}
    )
    cells = [parameter, nbformat.v4.new_code_cell(TRAINING)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = folder / "notebooks" / "01_training.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def command_of_papermill(notebook: Path) -> list[str]:
    out = notebook.parents[1] / "done.ipynb"
    given = ["-k", "python3", "--cwd", str(notebook.parent), "--no-progress-bar", "-p", "out"]
    return [sys.executable, "-m", "papermill", str(notebook), str(out), *given, "../training"]


def command_of_all(notebook: Path) -> list[str]:
    tool = Path(__file__).parents[1] / "tools" / "run_notebooks.py"
    folder = notebook.parents[1]
    given = ["--notebooks", str(notebook.parent), "--out", str(folder / "runs" / "tutorial")]
    return [sys.executable, str(tool), *given]


NOTEBOOK_RUNS = {  # the command, where its training goes, what else is there in the end
    "papermill": (command_of_papermill, "training", {"notebooks", "training", "done.ipynb"}),
    "tools/run_notebooks.py": (
        command_of_all, "runs/tutorial/01_training", {"notebooks", "runs"}
    ),
}  # fmt: skip


@POSIX
@pytest.mark.timeout(3600)
@pytest.mark.long
@pytest.mark.parametrize("tool", ["tools/run_notebooks.py", "papermill"])
def test_a_killed_run_of_notebooks_leaves_nobody_and_goes_on(tool, tmp_path):
    command_of, place, there = NOTEBOOK_RUNS[tool]
    tries = 20

    def begin(name: str) -> tuple[Path, subprocess.Popen]:
        folder = tmp_path / name
        command = command_of(notebook_of_a_training(folder))
        quiet = subprocess.DEVNULL
        return folder, subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)

    def result(folder: Path) -> Any:
        return result_of_training(folder / place)

    began = time.monotonic()
    whole, process = begin("whole")
    assert process.wait(300) == 0
    seconds, wanted = time.monotonic() - began, result(whole)
    draw = random.Random(0)
    fault = f"a run by {tool} killed (SIGKILL, SIGTERM, SIGHUP, Ctrl-C)"
    promise = "no process stays behind; the same command ends in the same result"
    with counted(fault, tries, promise) as count:
        for number in range(tries):
            code, attempt = 0, 0
            while code == 0:  # it was faster
                assert attempt < 20, f"{tool} ended by itself, again and again"
                folder, process = begin(f"{number}-{attempt}")
                time.sleep(draw.uniform(0, seconds) * 0.8**attempt)
                process.send_signal(getattr(signal, SIGNALS[number % 4]))
                code, attempt = process.wait(100), attempt + 1
            left_alone = nobody_in(folder, 60)  # a kernel that just begins looks a little later
            as_whole = looked_at_training(folder / place, whole / place)
            notebook = folder / "notebooks" / "01_training.ipynb"
            again = subprocess.run(command_of(notebook), cwd=folder, capture_output=True)
            clean = {path.name for path in folder.iterdir()} == there
            if (folder / "runs").exists():
                # killed when its results were in place, it has earlier results
                here = {path.name for path in (folder / "runs").iterdir()}
                clean &= here - {"tutorial.previous"} == {"tutorial"}
            ended = again.returncode == 0 and result(folder) == wanted
            found = {"alone": left_alone, "whole": as_whole, "clean": clean, "ended": ended}
            print(tool, number, SIGNALS[number % 4], found, again.stderr[-500:])
            count(all(found.values()))


# ---- disks that are full, and folders that may not be written to


@dataclass
class Writer:
    """Something that writes.

    Attributes:
        write: into a folder; where it replaces what is there, `version` says by which content.
        read: what is in a folder, by the package's own reader.
        replaces: the second version takes the place of the first; otherwise it goes on.
    """

    write: Callable[[Path, int], Any]
    read: Callable[[Path], Any]
    replaces: bool = True


def some_effects(version: int) -> Any:
    per_pair = torch.full((3, 5, 4000), float(version)).to_sparse()
    return dataclasses.replace(small_effects(), per_pair=per_pair)


def some_report(version: int) -> ctt.Report:
    figures = dict.fromkeys(("explained_variance", "ce_clean", "ce_zero", "dce", "ce_recovered"))
    figures = {name: [float(version)] * 3 for name in figures}
    named = {"names": ["a", "b", "c"], "l0": 2.0, "dead": 0.0, "dead_tokens": 9}
    return ctt.Report(**named, **figures, frequency=np.full(3000, 1.0))


def log_rows(folder: Path, version: int) -> None:
    write = logs.to_csv(folder / "log.csv")
    for step in range(100 * version, 100 * version + 30):
        write({"step": step, "tokens": 64 * step, "loss": 1.0})


def read_log(folder: Path) -> list:
    return pd.read_csv(folder / "log.csv")["step"].tolist()


def write_page(folder: Path, version: int) -> None:
    pages._write(folder / "feature_1.html", pages._document("A feature", f"{version} " * 5000))


def read_page(folder: Path) -> int:
    page = folder / "feature_1.html"
    assert pages.is_ours(page)
    return page.read_text(encoding="utf-8").count("2 2 ")


def write_note(folder: Path, version: int) -> None:
    notes.save_note(folder / "notes.csv", version, f"what it does, {version} " * 300)


WRITERS = {
    "a crosscoder": Writer(
        lambda folder, version: Crosscoder(3, 16, 64, k=2, seed=version).save(folder / "code"),
        lambda folder: Crosscoder.load(folder / "code").W_dec.tolist(),
    ),
    "effects": Writer(
        lambda folder, version: some_effects(version).save(folder / "effects"),
        lambda folder: Effects.load(folder / "effects").per_pair.to_dense().sum().item(),
    ),
    "a report": Writer(
        lambda folder, version: some_report(version).save(folder / "report.json"),
        lambda folder: read_json(folder / "report.json")["dce"],
    ),
    "a training's log": Writer(log_rows, read_log),
    "a page of a feature": Writer(write_page, read_page),
    "notes": Writer(write_note, lambda folder: sorted(notes.read_notes(folder / "notes.csv"))),
    "a training": Writer(lambda folder, _: run_training(folder), result_of_training, False),
    "a cache": Writer(lambda folder, _: run_cache(folder), result_of_cache, False),
    "pretraining": Writer(lambda folder, _: run_pretraining(folder), contents, False),
}


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond this: the system refuses as it does on a full disk, half way."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of its own, where this process may mount one; otherwise the test is skipped."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def half_written(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".tmp-" in path.name]


@dataclass
class Tried:
    """A writer, and what it makes where there is no trouble."""

    writer: Writer
    versions: list[Any]  # what is read after the first version, and after the second
    sizes: list[int]  # of its files, those beside included that take their place later


def tried(name: str, folder: Path) -> Tried:
    writer, versions = WRITERS[name], []
    if name == "a cache":
        random_suite(folder / "models")
        for path in (folder / "models").rglob("*.safetensors"):
            path.chmod(0o644)  # Hugging Face's own are for their owner alone
    place = folder / "whole"
    place.mkdir(parents=True)
    for version in (1, 2) if writer.replaces else (1,):
        writer.write(place, version)
        versions.append(writer.read(place))
    sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
    return Tried(writer, versions, sizes)


def refused(call: Callable[[], Any], words: str) -> bool:
    """Whether a call fails, by an OSError that says what to do."""
    try:
        call()
    except OSError as error:
        early = "Nothing was begun" in str(error) and words == "make room"
        assert early or ("could not be written" in str(error) and words in str(error)), error
        return True
    return False


def full_once(made: Tried, folder: Path, full: Callable[[], AbstractContextManager]) -> bool:
    """Write where there is no room, look, and write again; None where there was enough room."""
    writer = made.writer
    folder.mkdir()
    if writer.replaces:
        writer.write(folder, 1)
    with full():
        failed = refused(partial(writer.write, folder, 2), "make room")
    if not failed:
        return None
    clean = not half_written(folder)
    if writer.replaces:
        old = writer.read(folder)
        # a log has grown by some rows
        rows = isinstance(old, list) and old == made.versions[-1][: len(old)]
        clean &= old == made.versions[0] or rows
    writer.write(folder, 2)
    return clean and writer.read(folder) == made.versions[-1]


def until_full(once: Callable[[int], bool | None]) -> bool:
    """Try with less and less room until it does not suffice."""
    found = (once(attempt) for attempt in range(100))
    return next(outcome for outcome in found if outcome is not None)


@POSIX
@pytest.mark.timeout(3600)
@tries(2, 20)
@pytest.mark.parametrize("name", quick_first(WRITERS))
def test_a_write_that_fails_half_way_loses_nothing(tries, name, tmp_path):
    made = tried(name, tmp_path / "made")
    draw = random.Random(0)
    fault = f"no more room from a random byte of a file on, for {name}"
    promise = "what was there is whole; with room the same call makes it"
    with counted(fault, tries, promise) as count:
        for number in range(tries):

            def once(attempt: int, number: int = number) -> bool | None:
                room = int(draw.uniform(0, max(made.sizes)) * 0.8**attempt)
                folder = tmp_path / "made" / f"{number}-{attempt}"
                return full_once(made, folder, lambda: largest_file(room))

            count(until_full(once))


@POSIX
@pytest.mark.timeout(3600)
@tries(1, 20)
@pytest.mark.parametrize(
    "name", quick_first(["a crosscoder", "a training", "a cache", "pretraining"])
)
def test_a_disk_that_is_full_loses_nothing(tries, name, tmp_path):
    draw = random.Random(0)
    fault = f"a disk (tmpfs) that is full, for {name}"
    promise = "what was there is whole; with room the same call makes it"
    with small_disk(tmp_path / "disk", 64_000) as disk, counted(fault, tries, promise) as count:
        made = tried(name, disk / "made")
        for number in range(tries):

            def once(attempt: int, number: int = number) -> bool | None:
                folder = disk / "made" / f"{number}-{attempt}"
                room = int(draw.uniform(0, sum(made.sizes)) * 0.8**attempt)
                outcome = full_once(made, folder, lambda: filled(disk, room))
                shutil.rmtree(folder)
                return outcome

            count(until_full(once))


@contextmanager
def filled(disk: Path, room: int) -> Iterator[None]:
    """Fill a disk but for some bytes."""
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free
    filler.write_bytes(b"x" * max(0, free - room))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """Nobody may write below a folder; root, for whom no permission counts, is nobody."""
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for place in places:
        place.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for place in places:
            place.chmod(0o755)


@contextmanager
def mounted_read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@pytest.fixture
def open_folder():
    """A folder that everybody may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def read_only_once(made: Tried, folder: Path, read_only: AbstractContextManager) -> bool:
    writer = made.writer
    folder.mkdir(exist_ok=True)
    if writer.replaces:
        writer.write(folder, 1)
    before = contents(folder)
    with read_only:
        failed = refused(partial(writer.write, folder, 2), "make this one writable")
        readable = not writer.replaces or writer.read(folder) == made.versions[0]
    as_before = contents(folder) == before
    writer.write(folder, 2)
    return failed and readable and as_before and writer.read(folder) == made.versions[-1]


READ_ONLY = "an error says so; nothing is changed; where it may be, the same call makes it"
QUICK = [name for name, writer in WRITERS.items() if writer.replaces or name == "a training"]
FOR_ALL = pytest.mark.parametrize(
    "names", [QUICK, pytest.param(list(WRITERS), marks=pytest.mark.long)], ids=["quick", "all"]
)


@POSIX
@FOR_ALL
def test_a_folder_that_may_not_be_written_to(names, open_folder):
    fault = "a folder without permission to write, for all that writes"
    with counted(fault, len(names), READ_ONLY) as count:
        for name in names:
            made = tried(name, open_folder / name)
            folder = open_folder / name / "mine"
            folder.mkdir()
            count(read_only_once(made, folder, forbidden(folder)))
            if name in ("a training", "a cache"):  # what is finished can be read there
                with forbidden(folder):
                    made.writer.write(folder, 2)
                    assert made.writer.read(folder) == made.versions[-1]


@POSIX
@FOR_ALL
def test_a_disk_that_is_read_only(names, tmp_path):
    with (
        small_disk(tmp_path / "disk", 96_000) as disk,
        counted("a disk mounted read-only, for all that writes", len(names), READ_ONLY) as count,
    ):
        for name in names:
            made = tried(name, disk / name)
            count(read_only_once(made, disk / name / "mine", mounted_read_only(disk)))


# ---- other runs, and clocks


@POSIX
@pytest.mark.timeout(3600)
@tries(1, 5)
@pytest.mark.parametrize("kind", quick_first(WORKS))
def test_of_three_runs_with_one_name_one_goes_on(tries, kind, tmp_path):
    work = WORKS[kind]
    random_suite(tmp_path / "models")
    start(kind, tmp_path / "whole").join(200)
    wanted = work.result(tmp_path / "whole")
    fault = f"{kind}: three runs with one name at once"
    promise = "one goes on, the others name it and end; the result is that of one"
    with counted(fault, tries, promise) as count:
        for number in range(tries):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / "models").symlink_to(tmp_path / "models")
            three = [start(kind, folder / "work") for _ in range(3)]
            for process in three:
                process.join(200)
            told = [(folder / f"told-{process.pid}.txt").read_text() for process in three]
            codes = [process.exitcode for process in three]
            holders = [f"process {process.pid} on" for process in three]
            fine = 0 in codes
            for code, words in zip(codes, told, strict=True):
                named = "is in use by" in words and any(holder in words for holder in holders)
                late = "holds a finished suite" in words  # it came when all was done
                fine &= code == 0 or named or late
            count(fine and work.result(folder / "work") == wanted)


@POSIX
@pytest.mark.timeout(3600)
@tries(1, 20)
def test_a_lock_whose_holder_is_gone_is_no_lock(tries, tmp_path):
    fault = "a training killed whose lock stays behind, alone or with a process that it started"
    promise = "the next run takes the lock; or is told that the holder is gone and who is not"
    with counted(fault, tries, promise) as count:
        for number in range(tries):
            folder = tmp_path / str(number)
            context = multiprocessing.get_context("forkserver")
            begun, begins = context.Pipe(duplex=False)
            holder = context.Process(target=hold_and_start, args=(folder, begins))
            holder.start()
            child = psutil.Process(begun.recv())
            holder.kill()
            holder.join()
            left = f"process {holder.pid} on" in (folder / ".lock").read_text()
            with pytest.raises(InUse) as told, locked(folder):
                pass
            gone = f"what process {holder.pid} on" in str(told.value) and "gone" in str(told.value)
            child.kill()
            while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
            with locked(folder):
                taken = f"process {os.getpid()} on" in (folder / ".lock").read_text()
            count(left and gone and taken and not any(folder.iterdir()))


def hold_and_start(folder: Path, begun: Any) -> None:
    """Hold a folder, and start a process that inherits its files."""
    with locked(folder):
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(1000)"], close_fds=False
        )
        begun.send(child.pid)
        time.sleep(1000)


@POSIX
@pytest.mark.timeout(3600)
@pytest.mark.long
@pytest.mark.parametrize("kind", WORKS)
def test_a_clock_that_jumps_changes_nothing(kind, tmp_path, monkeypatch):
    """Files of a run that was cut off are from the future and the past; then time jumps on."""
    work, tries = WORKS[kind], 10
    random_suite(tmp_path / "models")
    process = start(kind, tmp_path / "whole")
    began = time.monotonic()
    process.join(200)
    seconds = time.monotonic() - began
    wanted = work.result(tmp_path / "whole")
    draw, now = random.Random(0), time.time
    fault = f"{kind} killed, and the clock jumps by up to ten years"
    with counted(fault, tries, "the same call ends in the same result") as count:
        for number in range(tries):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / "models").symlink_to(tmp_path / "models")
            killed(kind, folder, "SIGKILL", draw, seconds)
            for path in (folder / "work").rglob("*"):
                moment = now() + draw.uniform(-3e8, 3e8)
                os.utime(path, (moment, moment))
            if not (folder / "work" / "suite" / "SHA256SUMS").exists():
                with monkeypatch.context() as patch:
                    patch.setattr(time, "time", lambda: now() + draw.uniform(-3e8, 3e8))
                    work.run(folder / "work")
            clean = not half_written(folder)
            count(clean and work.result(folder / "work") == wanted)


# ---- too little memory

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total")
ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
)
CPU = RuntimeError(f"{ALLOCATOR}: you tried to allocate 8000000000 bytes.")
NUMPY = MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)")
KINDS_OF_MEMORY = {"GPU": GPU, "CPU": CPU, "numpy": NUMPY}


class Memory:
    """Memory that is too small for more rows than `room` at once, of any function it is given."""

    def __init__(self, room: int, error: Exception):
        self.room, self.error = room, error
        self.refused, self.largest = 0, 0

    def limit(self, patch: pytest.MonkeyPatch, owner: Any, name: str, rows: Callable) -> None:
        real = getattr(owner, name)

        def limited(*arguments, **named):
            self.largest = max(self.largest, rows(*arguments))
            if rows(*arguments) > self.room:
                self.refused += 1
                # an error of its own each time, as torch's is
                raise type(self.error)(*self.error.args)
            return real(*arguments, **named)

        patch.setattr(owner, name, limited)


def trained_for(ckpts: Any) -> Crosscoder:
    stream = ctt.ActivationStream(ckpts, some_text(64, 10), 64)
    config = TrainConfig(steps=20, dead_after_tokens=500)
    return ctt.train(Crosscoder(3, 32, 64, k=4), stream, config, device="cpu").crosscoder


def small_training(patch: pytest.MonkeyPatch, memory: Memory, sparsity: str) -> list:
    run = training.TrainingRun
    memory.limit(patch, run, "_pre", lambda self, x: len(x))
    settings = {"steps": 60, "dead_after_tokens": 1000, "decoder_norm_penalty": 0.1}
    crosscoder = Crosscoder(3, 16, 48, sparsity=sparsity, k=2)
    stream = TensorStream(planted(4096)[0], 256, 1)
    result = ctt.train(crosscoder, stream, TrainConfig(**settings), device="cpu")
    return [*crosscoder.state_dict().values(), result.history.drop(columns="seconds").to_numpy()]


@pytest.fixture(scope="module")
def ckpts(tmp_path_factory):
    return random_suite(tmp_path_factory.mktemp("memory")).checkpoints(device="cpu")


@pytest.fixture(scope="module")
def crosscoder(ckpts):
    return trained_for(ckpts)


def rows_of_stream(model: Any, ids: torch.Tensor, *_: Any) -> int:
    return len(ids)


def batches_of_a_stream(patch, memory, ckpts, crosscoder) -> list:
    memory.limit(patch, hooks, "residual_stream", rows_of_stream)
    stream = ctt.ActivationStream(ckpts, some_text(64, 10), 64, sequences_per_group=16)
    return list(itertools.islice(stream.batches(), 9))


def evaluated(patch, memory, ckpts, crosscoder) -> list:
    memory.limit(patch, hooks, "residual_stream", rows_of_stream)
    report = ctt.evaluate(crosscoder, ckpts, some_text(160, 12, seed=3))
    return [report.to_frame().drop(columns="checkpoint").to_numpy(), report.frequency, report.l0]


def effects_by(method: str) -> Callable:
    def effects(patch, memory, ckpts, crosscoder) -> list:
        memory.limit(patch, hooks, "logits_above", lambda model, x, *_: len(x))
        found = ctt.indirect_effects(crosscoder, ckpts, some_pairs(24), method, batch_size=16)
        return [found.mean, found.abs_mean, found.error, found.total]

    return effects


# what runs out of memory, and what to set
OUT_OF_MEMORY = {
    "reading a text": (batches_of_a_stream, "Set sequences_per_group lower"),
    "evaluate": (evaluated, "Give shorter sequences"),
    "indirect_effects (ablation)": (effects_by("ablation"), "Set batch_size lower"),
    "indirect_effects (ig)": (effects_by("ig"), "Set batch_size lower"),
    "indirect_effects (shapley)": (effects_by("shapley"), "Set batch_size lower"),
}


def same_numbers(found: list, wanted: list) -> bool:
    alike = zip(found, wanted, strict=True)
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in alike)


@tries(1, 3)
@pytest.mark.parametrize("what", OUT_OF_MEMORY)
def test_where_memory_runs_out_it_goes_on_in_halves(tries, what, ckpts, crosscoder, monkeypatch):
    work, remedy = OUT_OF_MEMORY[what]
    fault = f"memory runs out in {what} (GPU, CPU, numpy)"
    promise = "the same numbers from half as much at once; then an error says what to set"
    enough = Memory(10**9, GPU)
    with monkeypatch.context() as patch:
        wanted = work(patch, enough, ckpts, crosscoder)
    with counted(fault, tries, promise) as count:
        for error in list(KINDS_OF_MEMORY.values())[:tries]:
            memory = Memory(3 * enough.largest // 4, error)
            with monkeypatch.context() as patch, pytest.warns(UserWarning, match="half as large"):
                found = work(patch, memory, ckpts, crosscoder)
            too_small = Memory(1, error)
            with (
                monkeypatch.context() as patch,
                pytest.warns(UserWarning, match="half as large"),
                pytest.raises(MemoryError, match=remedy) as told,
            ):
                work(patch, too_small, ckpts, crosscoder)
            twice = too_small.refused == 2 and isinstance(told.value, TooLittleMemory)
            count(memory.refused >= 1 and twice and same_numbers(found, wanted))


@tries(1, 3)
@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
def test_a_training_step_in_halves_is_the_same_step(tries, sparsity, monkeypatch):
    with monkeypatch.context() as patch:
        wanted = small_training(patch, Memory(256, GPU), sparsity)
    fault = f"memory runs out in training, {sparsity} (GPU, CPU, numpy)"
    promise = "the same weights and figures from half a batch at a time; then an error says what"
    with counted(fault, tries, promise) as count:
        for error in list(KINDS_OF_MEMORY.values())[:tries]:
            memory = Memory(128, error)
            with monkeypatch.context() as patch, pytest.warns(UserWarning, match="half as large"):
                found = small_training(patch, memory, sparsity)
            with (
                monkeypatch.context() as patch,
                pytest.warns(UserWarning, match="half as large"),
                pytest.raises(TooLittleMemory, match="Set batch_size of the stream lower"),
            ):
                small_training(patch, Memory(64, error), sparsity)
            # only the first step is tried whole
            count(memory.refused == 1 and same_numbers(found, wanted))


def test_a_text_that_cannot_be_kept_is_read_again(ckpts, monkeypatch):
    text = some_text(64, 10)
    given = {"batch_size": 32, "buffer_tokens": 100, "sequences_per_group": 8}

    def first(stream):
        return torch.stack(list(itertools.islice(stream.batches(), 30)))

    wanted = first(ctt.ActivationStream(ckpts, text, **given))
    memory = Memory(300, CPU)
    memory.limit(monkeypatch, ctt.ActivationStream, "_empty", lambda self, n: n)
    with pytest.warns(UserWarning, match="not enough memory to keep 576 tokens"):
        assert torch.equal(first(ctt.ActivationStream(ckpts, text, **given)), wanted)
    memory.room = 100
    with (
        pytest.warns(UserWarning, match="not enough memory to keep"),
        pytest.raises(TooLittleMemory, match=r"for the buffer of tokens .*Set buffer_tokens lower"),
    ):
        first(ctt.ActivationStream(ckpts, text, **given))


def test_what_has_been_said_of_memory_is_not_said_again(ckpts, crosscoder, monkeypatch):
    def load(*_):
        raise TooLittleMemory("It needs 3 TB. Take part='below'.")

    monkeypatch.setattr(hooks, "residual_stream", load)
    with pytest.raises(TooLittleMemory, match=r"^It needs 3 TB\. Take part='below'\.$"):
        ctt.evaluate(crosscoder, ckpts, some_text(16, 12))

    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(hooks, "residual_stream", broken)
    with pytest.raises(RuntimeError, match="something else"):
        ctt.evaluate(crosscoder, ckpts, some_text(16, 12))
