"""Files: whole or not there, checked when read, and nothing lost that was not ours."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from ctt_helpers import files
from ctt_helpers.activations import TensorStream
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.effects import Effects
from ctt_helpers.training import TrainConfig, train


def small_effects() -> Effects:
    per_pair = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)).to_sparse()
    arrays = {name: np.arange(3.0) for name in ("error", "total", "gap", "n_nodes")}
    mean = per_pair.to_dense().mean(1).numpy()
    return Effects(
        mean=mean,
        abs_mean=np.abs(mean),
        per_pair=per_pair.coalesce(),
        names=["a", "b", "c"],
        info={"method": "atp"},
        **arrays,
    )


def small_run(out, steps=20):
    x = torch.randn(512, 3, 8, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(steps=steps, checkpoint_every=5)
    return train(Crosscoder(3, 8, 16, k=2), TensorStream(x, 64), config, out=out)


# ---- nothing is lost that was not ours


@pytest.mark.parametrize(
    ("thing", "names"),
    [
        (Crosscoder(3, 8, 16, k=2), ("crosscoder.safetensors", "config.json")),
        (small_effects(), ("effects.safetensors", "effects.json")),
    ],
    ids=["crosscoder", "effects"],
)
def test_saving_leaves_everything_else_in_the_folder(tmp_path, thing, names):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    (tmp_path / "thesis.tex").write_text("years")
    thing.save(tmp_path)
    thing.save(tmp_path)  # over its own files it may
    assert (tmp_path / "thesis.tex").read_text() == "years"
    assert (tmp_path / ".git" / "HEAD").read_text() == "ref"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([".git", "thesis.tex", *names])
    for name in names:
        other = tmp_path / f"with {name}"
        other.mkdir()
        (other / name).write_text('{"model_type": "gpt_neox"}')
        with pytest.raises(FileExistsError, match=rf"holds {name}, which is no saved .*lost"):
            thing.save(other)
        assert [p.name for p in other.iterdir()] == [name]
        assert (other / name).read_text() == '{"model_type": "gpt_neox"}'
    (tmp_path / "file").write_text("a file")
    with pytest.raises(FileExistsError, match="is a file, and is left as it is"):
        thing.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "a file"


def test_a_crosscoder_and_effects_fit_into_one_folder(tmp_path):
    Crosscoder(3, 8, 16, k=2).save(tmp_path)
    small_effects().save(tmp_path)
    assert Crosscoder.load(tmp_path).n_latents == 16 and Effects.load(tmp_path).names[0] == "a"


def test_here_and_home_are_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    crosscoder = Crosscoder(3, 8, 16, k=2)
    crosscoder.save(".")
    crosscoder.save("~/mine")
    assert (tmp_path / "config.json").is_file() and Crosscoder.load("~/mine").n_latents == 16


def test_a_folder_is_never_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError), files.atomic_path(tmp_path / "there") as temporary:
        temporary.mkdir()
    with files.atomic_path(tmp_path / "new") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("x")
    with pytest.raises(RuntimeError), files.atomic_path(tmp_path / "other") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("x")
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "there"]


def test_what_a_killed_process_left_is_swept_up_and_a_living_ones_is_not(tmp_path):
    with files.atomic_path(tmp_path / "a.json") as temporary:
        stem = temporary.parent.name.rpartition("-")[0]
        temporary.write_text("{}")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getppid()):
        (tmp_path / f"{stem}-{process}").mkdir()
        (tmp_path / f"{stem}-{process}" / "a.json").write_text("half")
    (tmp_path / ".a.json.tmp-of-somebody").write_text("not ours")
    files.write_json(tmp_path / "a.json", {})
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"a.json", f"{stem}-{os.getppid()}", ".a.json.tmp-of-somebody"}


# ---- killed while writing


def save_for_ever(folder, ready):
    for seed in range(10**6):
        crosscoder = Crosscoder(3, 16, 64, k=2, seed=seed)
        crosscoder.save(folder)
        ready.set()


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_old_or_the_new(tmp_path):
    """Never a mixture of the two, and never nothing."""
    context = multiprocessing.get_context("spawn")
    draw = np.random.default_rng(0)
    for _ in range(2):
        ready = context.Event()
        process = context.Process(target=save_for_ever, args=(tmp_path / "x", ready))
        process.start()
        assert ready.wait(60)
        for _ in range(20):  # stop it anywhere, look, let it go on
            time.sleep(draw.uniform(0, 0.01))
            os.kill(process.pid, signal.SIGSTOP)
            found = Crosscoder.load(tmp_path / "x")
            assert torch.equal(found.W_dec, Crosscoder(3, 16, 64, k=2, seed=found.seed).W_dec)
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.join()
        found = Crosscoder.load(tmp_path / "x")
        assert torch.equal(found.W_dec, Crosscoder(3, 16, 64, k=2, seed=found.seed).W_dec)
    Crosscoder(3, 16, 64, k=2, seed=7).save(tmp_path / "x")
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "config.json",
        "crosscoder.safetensors",
    ]


# ---- JSON and text


def test_json_says_which_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"x": "\xff"}')
    with pytest.raises(ValueError, match=r"a.json, line 1: this is not UTF-8"):
        files.read_json(path)
    path.write_text('{"x": ')
    with pytest.raises(ValueError, match=r"a.json is not valid JSON"):
        files.read_json(path)
    path.write_text('\ufeff{"x": 1}', encoding="utf-8")
    assert files.read_json(path) == {"x": 1}
    files.write_json(path, {"x": [1.5, None, "é"], "y": {"z": True}}, checksum=True)
    assert files.read_json(path) == {"x": [1.5, None, "é"], "y": {"z": True}}
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # through a tool of Windows
    assert files.read_json(path)["x"] == [1.5, None, "é"]


# ---- one writer at a time


def test_one_writer_at_a_time_and_the_lock_ends_with_the_process(tmp_path):
    code = (
        "import sys, time; from ctt_helpers.files import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    told = rf"run is in use by process {other.pid} on .*give another folder"
    with pytest.raises(RuntimeError, match=told), files.locked(tmp_path / "run"):
        pass
    other.kill()
    other.wait()
    with files.locked(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_checksums_list_what_is_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    (tmp_path / "y").write_text("y")
    files.write_sums(tmp_path, leave_out=lambda name: name == "y")
    header, line = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert line == f"{files.sha256(tmp_path / 'a' / 'x')}  a/x" and header.startswith("# sha256 of")
    if shutil.which("sha256sum"):  # the usual tool reads it, too
        subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, check=True)
    assert files.verified(tmp_path, "a/x") == tmp_path / "a" / "x"
    assert files.verified(tmp_path, "y") == tmp_path / "y"  # not listed: nothing to compare
    (tmp_path / "a" / "x").write_text("z")
    with pytest.raises(ValueError, match=r"a/x is not what SHA256SUMS beside it says"):
        files.verified(tmp_path, "a/x")


def test_the_history_comes_back_as_it_was_written(tmp_path):
    first = small_run(tmp_path)
    again = small_run(tmp_path)
    pd.testing.assert_frame_equal(first.history, again.history, rtol=1e-12)
