"""Trouble from outside: killed at any moment, disks that are full or refuse, runs with one name,
clocks that jump, and too little memory.

Each promise is in docs/reliability.md, with the figures of the long form.
"""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from faults import counted, tries
from models import random_suite, some_pairs, some_text
from test_training import planted

import ctt_helpers as ctt
from ctt_helpers import hooks, training
from ctt_helpers.activations import TensorStream
from ctt_helpers.cache import ActivationCache, _File
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.files import load_folder
from ctt_helpers.memory import TooLittleMemory
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


def victim(kind: str, folder: Path, begun: Any) -> None:
    """What the process does that is killed: it says when it begins."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    os.chdir(folder)  # so that whatever it starts can be found
    with open(folder.parent / "told.txt", "w", buffering=1) as told, redirect_stdout(told):
        begun.send("now")
        WORKS[kind].run(folder)


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
    told = (folder / "told.txt").read_text()
    (folder / str(attempt)).rename(folder / "work")
    return process.exitcode is not None and (name != "SIGINT" or two_lines(told))


@POSIX
@tries(2, 80)
@pytest.mark.parametrize("kind", WORKS)
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
            count(ended and as_whole and work.result(folder / "work") == wanted)


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
@tries(2, 20)
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
                count(stopped and as_whole and again == "" and result)
    finally:
        kernel[1].stop_channels()
        kernel[0].shutdown_kernel(now=True)


def notebook_of_a_training(folder: Path) -> Path:
    """A notebook that trains into its `out`, in a folder of notebooks."""
    import nbformat

    parameter = nbformat.v4.new_code_cell(
        'out: str = "../runs/x"', metadata={"tags": ["parameters"]}
    )
    work = "Path(out).mkdir(parents=True, exist_ok=True)\nWORKS['training'].run(Path(out))"
    cells = [parameter, nbformat.v4.new_code_cell(CELL), nbformat.v4.new_code_cell(work)]
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
@tries(1, 20)
@pytest.mark.parametrize("tool", ["tools/run_notebooks.py", "papermill"])
def test_a_killed_run_of_notebooks_leaves_nobody_and_goes_on(tries, tool, tmp_path):
    command_of, place, there = NOTEBOOK_RUNS[tool]
    if tool == "papermill" and tries == 1:
        pytest.skip("the other tool runs papermill too")

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
                folder, process = begin(f"{number}-{attempt}")
                time.sleep(draw.uniform(0, seconds) * 0.8**attempt)
                process.send_signal(getattr(signal, SIGNALS[number % 4]))
                code, attempt = process.wait(100), attempt + 1
            left_alone = nobody_in(folder)
            as_whole = looked_at_training(folder / place, whole / place)
            notebook = folder / "notebooks" / "01_training.ipynb"
            again = subprocess.run(command_of(notebook), cwd=folder, capture_output=True)
            clean = {path.name for path in folder.iterdir()} == there
            if (folder / "runs").exists():
                clean &= [path.name for path in (folder / "runs").iterdir()] == ["tutorial"]
            ended = again.returncode == 0 and clean and result(folder) == wanted
            count(left_alone and as_whole and ended)


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
