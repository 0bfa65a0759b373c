"""Training in two and three processes: the same losses as in one, one result, and what happens when
one of them ends.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

import ctt_helpers as ctt
from ctt_helpers.processes import Alone
from ctt_helpers.runs import read_run

WORKER = """
import os, signal, sys
import torch
import torch.distributed as dist
import ctt_helpers as ctt
from test_processes import CONFIG, make_crosscoder, make_stream

torch.set_num_threads(1)
dist.init_process_group("gloo")
sparsity, out, stop, max_norm, shard, bf16 = sys.argv[1:7]
config = ctt.TrainConfig(**CONFIG, bf16=bf16 == "True")
count = 0

def step(self, x, log, real=ctt.training.TrainingRun.step):
    if shard == "True":
        assert self.crosscoder.n_latents < self.whole.n_latents == 64
    if int(stop) and self.done == int(stop) and dist.get_rank() == dist.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, x, log)

if int(stop) or shard == "True":
    ctt.training.TrainingRun.step = step
stream = make_stream(float(max_norm) or None)
crosscoder = make_crosscoder(sparsity)
ctt.train(crosscoder, stream, config, out, device="cpu", shard_latents=shard == "True")
"""
CONFIG = {
    "steps": 80,
    "checkpoint_every": 20,
    "dead_after_tokens": 500,
    "decoder_norm_penalty": 0.02,
    "lr": 5e-3,
}


def make_crosscoder(sparsity):
    return ctt.Crosscoder(3, 12, 64, sparsity=sparsity, k=4, seed=0)


def make_stream(max_norm=None):
    """Few directions, so that latents die; groups of 256 tokens; a few tokens of large norm."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6_000, 3, 12, generator=draw)
    x[..., 3:] *= 0.02
    x[::97] *= 8
    stream = ctt.TensorStream(x, 96, 1, 2_000, {"data": "x"}, max_norm)
    stream.group_tokens, stream.n_groups = 256, -(-len(x) // 256)
    return stream


class Joined:
    """What several processes read, put together for one."""

    def __init__(self, whole, size):
        norms = [part_of(whole, rank, size) for rank in range(size)]
        self.parts, self.whole = norms, whole
        self.n_checkpoints, self.d_model = whole.n_checkpoints, whole.d_model
        self.batch_size, self.source, self.max_norm = whole.batch_size, whole.source, whole.max_norm
        for part in self.parts:
            whole.scales()
            part._scales, part._medians = whole._scales, whole._medians

    def scales(self):
        return self.whole.scales()

    def fingerprint(self):
        return self.whole.fingerprint()

    def batches(self, start=0):
        for each in zip(*(part.batches(start) for part in self.parts), strict=True):
            yield torch.cat(each)


def part_of(stream, rank, size):
    return stream.part(SimpleNamespace(rank=rank, size=size, side_by_side=lambda x: x))


def start(tmp_path, n, sparsity, out, stop=0, max_norm=0, shard=False, bf16=False, code=WORKER):
    script = tmp_path / "worker.py"
    script.write_text(code, encoding="utf-8")
    given = [str(value) for value in (sparsity, out, stop, max_norm, shard, bf16)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n)]
    command += ["--master-port", str(29_500 + os.getpid() % 2_000), str(script), *given]
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize(
    "n, sparsity, max_norm, shard",
    [
        (2, "batch_topk", 0, False),
        (3, "batch_topk", 5, False),
        pytest.param(2, "l1", 0, False, marks=pytest.mark.long),
        pytest.param(2, "batch_topk", 0, True, marks=pytest.mark.long),
        (3, "batch_topk", 5, True),  # 64 latents: 22, 21, 21
        pytest.param(2, "l1", 0, True, marks=pytest.mark.long),
    ],
)
def test_losses_are_those_of_one_process(tmp_path, n, sparsity, max_norm, shard):
    done = start(tmp_path, n, sparsity, tmp_path / "out", max_norm=max_norm, shard=shard)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = make_crosscoder(sparsity)
    joined = Joined(make_stream(max_norm or None), n)
    expected = ctt.train(alone, joined, ctt.TrainConfig(**CONFIG), device="cpu").history
    found = pd.read_csv(tmp_path / "out" / "history.csv")
    figures = [name for name in expected if name != "seconds"]
    np.testing.assert_allclose(found[figures], expected[figures], rtol=1e-5, atol=1e-6)
    if sparsity == "batch_topk":
        assert expected["dead"].max() > 0 and expected["aux"].max() > 0
    if max_norm:  # tokens of large norm were left out
        assert expected["tokens"].iloc[-1] < CONFIG["steps"] * 96
    same = ctt.Crosscoder.load(tmp_path / "out" / "crosscoder")
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"crosscoder", "history.csv", "train_config.json"}


def test_one_that_is_killed_ends_the_others_and_others_go_on(tmp_path):
    began = time.monotonic()
    done = start(tmp_path, 2, "batch_topk", tmp_path / "out", stop=50)
    assert done.returncode != 0 and time.monotonic() - began < 100
    assert "Signal 9 (SIGKILL)" in done.stderr  # the reason
    state = json.loads((tmp_path / "out" / "checkpoint" / "state.json").read_text())
    assert state["done"] == 40
    done = start(tmp_path, 3, "batch_topk", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history["step"]) == [1, 20, 40, 60, 80]
    assert history["explained_variance"].iloc[-1] > history["explained_variance"].iloc[0]
    pd.testing.assert_frame_equal(
        history[["step", "loss"]].iloc[:3], pd.DataFrame(state["history"])[["step", "loss"]]
    )


@pytest.mark.long
@pytest.mark.parametrize("shard", [False, True])
def test_half_precision_comes_to_nearly_the_same(tmp_path, shard):
    done = start(tmp_path, 2, "batch_topk", tmp_path / "out", shard=shard, bf16=True)
    assert done.returncode == 0, done.stderr[-3000:]
    config = ctt.TrainConfig(**CONFIG, bf16=True)
    joined = Joined(make_stream(), 2)
    expected = ctt.train(make_crosscoder("batch_topk"), joined, config, device="cpu").history
    found = pd.read_csv(tmp_path / "out" / "history.csv")
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=0.02)
    np.testing.assert_allclose(found["loss"][:1], expected["loss"][:1], rtol=1e-3)


def test_one_takes_up_what_several_with_parts_of_the_latents_began(tmp_path):
    out = tmp_path / "out"
    done = start(tmp_path, 2, "batch_topk", out, stop=50, shard=True)
    assert done.returncode != 0
    config = ctt.TrainConfig(**CONFIG)
    taken_up = make_crosscoder("batch_topk")
    result = ctt.train(taken_up, Joined(make_stream(), 2), config, out, device="cpu")
    assert result.resumed_from == 40
    alone = make_crosscoder("batch_topk")
    expected = ctt.train(alone, Joined(make_stream(), 2), config, device="cpu").history
    figures = [name for name in expected if name != "seconds"]
    np.testing.assert_allclose(result.history[figures], expected[figures], rtol=1e-5, atol=1e-6)


def test_shared_latents_are_nowhere_whole_to_be_evaluated():
    crosscoder, suite = make_crosscoder("batch_topk"), ctt.load_suite("tiny")
    ckpts, text = suite.checkpoints(suite.default_triplet), torch.ones(2, 5, dtype=torch.long)
    look = ctt.logs.evaluating(crosscoder, ckpts, text, every=10)
    sharded = SimpleNamespace(shares_latents=True)
    with pytest.raises(ValueError, match="needs the whole crosscoder"):
        ctt.training._check_shards(crosscoder, [print, look], sharded)
    ctt.training._check_shards(make_crosscoder("batch_topk"), [look], sharded)
    ctt.training._check_shards(crosscoder, [look], Alone())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_share_every_epoch(size):
    whole = make_stream()
    seen = []
    for rank in range(size):
        part = part_of(whole, rank, size) if size > 1 else whole
        assert part.batch_size * size == whole.batch_size
        own = len(range(rank, whole.n_groups, size))
        seen += list(itertools.islice(part._group_order(), own))
    assert sorted(seen) == list(range(whole.n_groups))


def test_scales_are_over_the_same_tokens():
    whole = make_stream()
    norms = []
    for rank in range(3):
        given = SimpleNamespace(rank=rank, size=3, side_by_side=lambda x: norms.append(x) or x)
        whole.part(given).scales()
    together = (whole.d_model**0.5 / torch.cat(norms, 1).mean(1)).float()
    torch.testing.assert_close(together, whole.scales())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 95}, "batch_size=95 cannot be shared evenly by 2 processes"),
        ({"n_groups": 1}, "read in 1 groups, which 2 processes cannot share"),
    ],
)
def test_what_cannot_be_shared(change, message):
    stream = make_stream()
    for name, value in change.items():
        setattr(stream, name, value)
    with pytest.raises(ValueError, match=message):
        part_of(stream, 0, 2)


def test_alone_is_all_there_is():
    alone, x = Alone(), torch.arange(3.0)
    assert alone.total(5) == 5 and alone.over_tokens(x) is x and alone.smallest(x) is x
    alone.add_up([x])
    assert torch.equal(x, torch.arange(3.0))


LAUNCHED = """
import sys
import ctt_helpers as ctt
from accelerate import Accelerator, notebook_launcher
from test_processes import CONFIG, make_crosscoder, make_stream

def work():
    assert Accelerator(cpu=True).num_processes == 2
    config = ctt.TrainConfig(**CONFIG)
    ctt.train(make_crosscoder("batch_topk"), make_stream(), config, sys.argv[1], device="cpu")

notebook_launcher(work, num_processes=2)
"""


@pytest.mark.slow
def test_a_notebooks_launcher_gives_the_same(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LAUNCHED, str(tmp_path / "out")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    joined = Joined(make_stream(), 2)
    alone = make_crosscoder("batch_topk")
    expected = ctt.train(alone, joined, ctt.TrainConfig(**CONFIG), device="cpu").history
    found = pd.read_csv(tmp_path / "out" / "history.csv")
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)


# ---- checkpoints spread over processes

READER = """
import json, sys
import torch
import torch.distributed as dist
import ctt_helpers as ctt
from ctt_helpers.sources import checkpoints

torch.set_num_threads(1)
dist.init_process_group("gloo")
loaded = []

def load(suite, revision, *rest, real=checkpoints.load_checkpoint):
    loaded.append(revision)
    if int(sys.argv[3]) == dist.get_rank() > 0:
        raise ValueError("these weights cannot be read")
    return real(suite, revision, *rest)

checkpoints.load_checkpoint = load
suite = ctt.load_suite("tiny")
ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
text = suite.text(4_000, split="train")
cache = ctt.ActivationCache.build(ckpts, text, sys.argv[2], sequences_per_group=8, shard_bytes=1)
assert cache.source == {**ckpts.source, **{k: cache.source[k] for k in ("text", "begins_with")}}
json.dump(loaded, open(f"{sys.argv[2]}-{dist.get_rank()}.json", "w"))
"""


def built_alone(folder):
    suite = ctt.load_suite("tiny")
    ckpts = suite.checkpoints(suite.default_triplet, device="cpu")
    text = suite.text(4_000, split="train")
    sizes = {"sequences_per_group": 8, "shard_bytes": 1}
    return ctt.ActivationCache.build(ckpts, text, folder, **sizes)


def files_of(cache):
    """What each file holds: its bytes would not do, for the order of their header is by chance."""
    found = {}
    for path in cache.folder.glob("*/*.safetensors"):
        with safe_open(path, framework="pt") as file:
            content = (file.metadata(), file.get_tensor("x").numpy().tobytes())
        found[path.relative_to(cache.folder).as_posix()] = content
    return found


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, pytest.param(2, marks=pytest.mark.long)])
def test_each_process_loads_its_own_checkpoints(tmp_path, n):
    done = start(tmp_path, n, "", tmp_path / "cache", code=READER)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = built_alone(tmp_path / "alone")
    found = ctt.ActivationCache.open(tmp_path / "cache")
    assert found.about == alone.about and files_of(found) == files_of(alone)
    loaded = [json.loads((tmp_path / f"cache-{rank}.json").read_text()) for rank in range(n)]
    names = alone.source["revisions"]
    own = {2: [names[:2], names[1:]], 3: [names[:1], names[1:2], names[2:]]}
    assert loaded == own[n]  # of two processes both make files of the second checkpoint


@pytest.mark.long
def test_one_goes_on_where_several_stopped(tmp_path):
    done = start(tmp_path, 2, "", tmp_path / "cache", stop=1, code=READER)
    assert done.returncode != 0 and "these weights cannot be read" in done.stderr
    with pytest.raises(ValueError, match="is not finished"):
        ctt.ActivationCache.open(tmp_path / "cache")
    again = built_alone(tmp_path / "cache")
    assert files_of(again) == files_of(built_alone(tmp_path / "alone"))


# ---- the command


def test_settings_of_a_run(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("out: runs/a\nn_latents: 64\ntraining: {steps: 40, lr: 1.0e-3}\n")
    run = read_run(path)
    assert (run.out, run.n_latents, run.model) == ("runs/a", 64, "tiny")
    assert run.training == {"steps": 40, "lr": 1e-3}
    for text, message in {
        "n_latens: 3": r"run\.yaml: 'n_latens' is not known\. Did you mean 'n_latents'",
        "out: a\ntraining: {step: 3}": "'step' is not known. Did you mean 'steps'",
        "n_latents: 3": r"run\.yaml says no out",
        "- 3": r"run\.yaml must hold settings",
        "out: [": r"run\.yaml is no YAML",
        "out: a\nlog_to: [cvs]": "log_to='cvs' is not known.*Did you mean 'csv'",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_run(path)


def test_the_function_keeps_its_name():
    with pytest.raises(ImportError, match=r"The function is ctt\.train"):
        import ctt_helpers.train  # noqa: F401
    assert callable(ctt.train)


@pytest.mark.slow
@pytest.mark.parametrize(
    "n, shard, cached",
    [
        (1, False, False),
        (2, False, True),
        pytest.param(2, False, False, marks=pytest.mark.long),
        pytest.param(2, True, False, marks=pytest.mark.long),
    ],
)
def test_the_command_trains_on_the_embedded_suite(tmp_path, n, shard, cached):
    if n > 1:
        pytest.importorskip("accelerate", reason="accelerate is not installed")
    path = tmp_path / "run.yaml"
    path.write_text(
        f"out: {tmp_path / 'out'}\nn_latents: 96\nk: 8\nn_tokens: 12000\nbatch_size: 256\n"
        f"device: cpu\ntraining: {{steps: 40}}\nlog_to: [csv]\nshard_latents: {shard}\n"
        + (f"cache_folder: {tmp_path / 'cache'}\n" if cached else "")
    )
    command = [sys.executable, "-m", "ctt_helpers.train", "--config", str(path)]
    if n > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--nproc-per-node", str(n), "-m"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    crosscoder = ctt.Crosscoder.load(tmp_path / "out" / "crosscoder")
    suite = ctt.load_suite("tiny")
    report = ctt.evaluate(
        crosscoder, suite.checkpoints(suite.default_triplet), suite.text(4000, split="validation")
    )
    assert min(report.explained_variance) > 0.5
    assert list(pd.read_csv(tmp_path / "out" / "log.csv")["step"]) == [1, 20, 40]
