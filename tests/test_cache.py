"""The cache on disk: the stream's own batches, each token read once, nothing half is taken for
whole.
"""

import itertools
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_suite, some_text
from safetensors.torch import load_file, save_file

import ctt_helpers as ctt
from ctt_helpers import cache as module
from ctt_helpers import hooks
from ctt_helpers.cache import ActivationCache
from ctt_helpers.files import InUse, locked
from ctt_helpers.sources import checkpoints

SMALL = {"sequences_per_group": 8, "shard_bytes": 20_000}  # two groups of 72 tokens a file


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return random_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def ckpts(suite):
    return suite.checkpoints(device="cpu")


@pytest.fixture
def read(monkeypatch):
    """What is read with models from now on: (checkpoint, sequence) -> how often."""
    found = Counter()
    real = hooks.residual_stream

    def spy(model, ids, *arguments, **named):
        found.update((model.label, tuple(row)) for row in ids.tolist())
        return real(model, ids, *arguments, **named)

    monkeypatch.setattr(hooks, "residual_stream", spy)
    return found


@pytest.fixture
def loaded(monkeypatch):
    """Which checkpoints are loaded from now on."""
    found = []
    load = checkpoints.load_checkpoint
    monkeypatch.setattr(
        checkpoints, "load_checkpoint", lambda s, r, *a: found.append(r) or load(s, r, *a)
    )
    return found


def apart(suite):
    """Checkpoints of which one alone fits into memory."""
    ckpts = suite.checkpoints(device="cpu")
    ckpts.__dict__["together"] = False
    return ckpts


def first(stream, n=20, start=0):
    return list(itertools.islice(stream.batches(start), n))


def same(batches, others):
    return all(torch.equal(a, b) for a, b in zip(batches, others, strict=True))


# ---- what comes out


@pytest.mark.parametrize("keep_gb", [0, 1])
@pytest.mark.parametrize("max_norm", [None, 1.2])
def test_batches_scales_and_fingerprint_are_those_of_the_stream(ckpts, tmp_path, max_norm, keep_gb):
    text = some_text(61, 10)
    cache = ActivationCache.build(ckpts, text, tmp_path, **SMALL)
    given = {"batch_size": 30, "seed": 3, "buffer_tokens": 200, "max_norm": max_norm}
    stream = ctt.ActivationStream(ckpts, text, sequences_per_group=8, cache_gb=0, **given)
    cached = cache.stream(device="cpu", keep_gb=keep_gb, **given)
    assert torch.equal(cached.scales(), stream.scales())
    assert cached.source == stream.source and cached.fingerprint() == stream.fingerprint()
    assert same(first(cached, 60), first(stream, 60)) and same(
        first(cached, 9, 41), first(stream, 9, 41)
    )


@settings(max_examples=12)
@given(
    rows=st.integers(5, 40),
    length=st.integers(2, 12),
    group=st.integers(1, 50),
    shard=st.integers(1, 20_000),
    data=st.data(),
)
def test_every_size_gives_the_streams_batches(
    ckpts, tmp_path_factory, rows, length, group, shard, data
):
    text = some_text(rows, length)
    batch = data.draw(st.integers(1, rows * (length - 1)))
    folder = tmp_path_factory.mktemp("cache")
    given = {"batch_size": batch, "buffer_tokens": data.draw(st.integers(1, 300))}
    stream = ctt.ActivationStream(ckpts, text, sequences_per_group=group, **given)
    made = {"sequences_per_group": group, "shard_bytes": shard}
    cache = ActivationCache.build(ckpts, text, folder, **made)
    cached = cache.stream(device="cpu", keep_gb=data.draw(st.sampled_from([0, 1])), **given)
    assert same(first(cached), first(stream))
    shutil.rmtree(folder)


def test_a_small_cache_is_read_from_the_disk_once(ckpts, tmp_path, monkeypatch):
    cache = ActivationCache.build(ckpts, some_text(61, 10), tmp_path, **SMALL)
    read, real = [], ActivationCache.read
    monkeypatch.setattr(
        ActivationCache,
        "read",
        lambda self, c, group: read.append((c, group)) or real(self, c, group),
    )
    for keep_gb, often in ((1, 1), (0, 2)):
        read.clear()
        first(cache.stream(30, buffer_tokens=100, device="cpu", keep_gb=keep_gb), 60)
        times = [read.count(each) for each in set(read)]
        assert len(times) == len(ckpts) * cache.n_groups and max(times) >= often
        assert keep_gb == 0 or max(times) == 1


def test_the_disk_is_told_what_is_read_next(ckpts, tmp_path, monkeypatch):
    cache = ActivationCache.build(ckpts, some_text(400, 10), tmp_path, **SMALL)
    ahead, ranges = [], []

    def advise(file, offset, length, advice):
        ranges.append((offset, length))

    def fetch(self, c, group, real=ActivationCache.fetch):
        ahead.append((c, group))
        real(self, c, group)

    def read(self, c, group, real=ActivationCache.read):
        if ranges:  # after the first filling of the buffer
            ahead.remove((c, group))  # an error, where nothing was told of it
        return real(self, c, group)

    monkeypatch.setattr(ActivationCache, "fetch", fetch)
    monkeypatch.setattr(ActivationCache, "read", read)
    monkeypatch.setattr(module.os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(module.os, "POSIX_FADV_WILLNEED", 3, raising=False)
    first(cache.stream(30, buffer_tokens=500, device="cpu", keep_gb=0), 200)
    assert len(ranges) > 3 * cache.n_groups
    # the second group of a file: its rows, wherever they begin behind the header
    ranges.clear()
    cache.fetch(0, 1)
    (offset, length), rows = ranges[0], cache._rows(1)
    header = 8 + int.from_bytes(cache._path(0, 0).read_bytes()[:8], "little")
    assert offset <= header + 4 * 32 * rows.start
    assert offset + length >= header + 4 * 32 * rows.stop


def test_few_files_are_open_at_once(ckpts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPEN_FILES", 2)
    text = some_text(61, 10)
    cache = ActivationCache.build(ckpts, text, tmp_path, **SMALL)
    stream = ctt.ActivationStream(ckpts, text, 30, sequences_per_group=8)
    assert same(first(cache.stream(30, device="cpu")), first(stream)) and len(cache._files) == 2


def test_bfloat16_is_rounded_once_and_says_so(ckpts, tmp_path):
    text = some_text(61, 10)
    exact = ActivationCache.build(ckpts, text, tmp_path / "a", **SMALL)
    rounded = ActivationCache.build(ckpts, text, tmp_path / "b", dtype="bfloat16", **SMALL)
    given = {"batch_size": 30, "buffer_tokens": 200, "device": "cpu"}
    a, b = exact.stream(**given), rounded.stream(**given)
    assert exact.is_exact and not rounded.is_exact and a.fingerprint() != b.fingerprint()
    for x, y in zip(first(a), first(b), strict=True):
        assert y.dtype == torch.float32 and torch.equal(x.bfloat16().float(), y)
    # each number is off by 2^-9 of itself at most, and so is a norm
    torch.testing.assert_close(b.scales(), a.scales(), rtol=2**-9, atol=0)
    assert b._memory().values.dtype == torch.bfloat16
    few = rounded.stream(**given, max_norm=1.2)
    for x, y in zip(first(few), first(b), strict=True):
        assert torch.equal(x, y[(y.norm(dim=-1) <= 1.2 * few._medians.float()).all(1)])
        assert len(x) < len(y)


def test_models_in_bfloat16_lose_nothing(suite, tmp_path):
    ckpts, text = suite.checkpoints(device="cpu", dtype="bfloat16"), some_text(61, 10)
    cache = ActivationCache.build(ckpts, text, tmp_path, **SMALL)
    stream = ctt.ActivationStream(ckpts, text, 30, sequences_per_group=8, cache_gb=0)
    assert cache.dtype == torch.bfloat16 and cache.is_exact
    cached = cache.stream(30, device="cpu")
    assert same(first(cached), first(stream)) and cached.fingerprint() == stream.fingerprint()


def test_training_needs_no_model_and_ends_at_the_same_weights(ckpts, tmp_path, read, loaded):
    text = some_text(61, 10)
    stream = ctt.ActivationStream(ckpts, text, 30, sequences_per_group=8, cache_gb=0)
    ActivationCache.build(ckpts, text, tmp_path, **SMALL)
    config = ctt.TrainConfig(steps=30)
    trained = []
    for source in (stream, ActivationCache.open(tmp_path).stream(30, device="cpu")):
        read.clear(), loaded.clear()
        crosscoder = ctt.Crosscoder(3, 32, 48, k=4, seed=0)
        ctt.train(crosscoder, source, config, device="cpu")
        trained.append(crosscoder)
    assert not read and not loaded and trained[0].source == trained[1].source
    for a, b in zip(*(c.state_dict().values() for c in trained), strict=True):
        assert torch.equal(a, b)


# ---- what it takes


def test_every_token_is_read_once_and_every_checkpoint_loaded_once(suite, tmp_path, read, loaded):
    text = some_text(61, 12)
    cache = ActivationCache.build(apart(suite), text, tmp_path, **SMALL)
    stream = cache.stream(30, buffer_tokens=100, device="cpu")
    stream.scales()
    first(stream, 40)
    rows = set(map(tuple, text.tolist()))
    assert len(rows) == 61
    of_text = {key: times for key, times in read.items() if len(key[1]) == 12}  # no trial's
    assert of_text == {(revision, row): 1 for revision in suite.revisions for row in rows}
    assert loaded == suite.revisions
    # the way without: as often as half a buffer is read
    loaded.clear()
    ckpts = apart(suite)
    with pytest.warns(UserWarning, match="ActivationCache"):
        first(ctt.ActivationStream(ckpts, text, 30, 0, 100, 8, cache_gb=0), 40)
    assert len(loaded) > 10 * 3


def test_disk_is_as_told(suite, tmp_path, monkeypatch):
    ckpts, text = suite.checkpoints(device="cpu"), some_text(200, 30)
    for dtype in ("float32", "bfloat16"):
        told = ActivationCache.size(ckpts, text, dtype)
        cache = ActivationCache.build(ckpts, text, tmp_path / dtype, dtype)
        assert told == 200 * 29 * 3 * 32 * cache.dtype.itemsize
        assert told < cache.n_bytes < 1.01 * told
    usage = shutil.disk_usage(tmp_path)._replace(free=told - 1)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs 1 MB in .*where 1 MB are free. Nothing was begun"):
        ActivationCache.build(ckpts, text, tmp_path / "c", "bfloat16")
    assert not any((tmp_path / "c").iterdir())
    # what is there is not needed once more
    assert ActivationCache.build(ckpts, text, tmp_path / "bfloat16", "bfloat16").n_bytes > told


def test_nothing_waits_for_a_device_for_each_group_or_batch(ckpts, tmp_path, waits):
    list(ckpts)  # what is looked at when they are loaded is not counted
    text = some_text(400, 10)
    large = {"sequences_per_group": 8, "shard_bytes": 10**9}
    for name, dtype in (("a", "float32"), ("b", "bfloat16")):
        built = waits(lambda n=name, d=dtype: ActivationCache.build(ckpts, text, tmp_path / n, d))
        assert built == 3  # whether the numbers of a whole file, on the host by then, are finite
        cache = ActivationCache.build(ckpts, text, tmp_path / f"{name}2", dtype, **large)
        stream = cache.stream(50, buffer_tokens=500, device="cpu", keep_gb=0)
        assert waits(lambda s=stream: first(s, 60)) == 0


# ---- cut off, damaged, another's


def cut_off(monkeypatch, after):
    """The builder breaks off, as a killed process does, once so many files are there."""
    real, made = module._Builder._make, []

    def make(self, *arguments):
        if len(made) == after:
            raise KeyboardInterrupt
        made.append(arguments[1:])
        real(self, *arguments)

    monkeypatch.setattr(module._Builder, "_make", make)
    return made


@pytest.mark.parametrize("after", [0, 3, 4, 9, 11])
def test_a_build_that_was_cut_off_is_taken_up(
    suite, ckpts, tmp_path, monkeypatch, read, loaded, after
):
    text = some_text(61, 10)  # four files a checkpoint
    whole = ActivationCache.build(ckpts, text, tmp_path / "whole", **SMALL)
    with monkeypatch.context() as patch:
        cut_off(patch, after)
        with pytest.raises(KeyboardInterrupt):
            ActivationCache.build(apart(suite), text, tmp_path / "cut", **SMALL)
    with pytest.raises((ValueError, FileNotFoundError), match=r"is not finished|There is no act"):
        ActivationCache.open(tmp_path / "cut")
    read.clear(), loaded.clear()
    made = cut_off(monkeypatch, 99)
    cache = ActivationCache.build(apart(suite), text, tmp_path / "cut", **SMALL)
    assert len(made) == 12 - after and loaded == suite.revisions
    assert cache.about == whole.about
    assert same(read_all(cache), read_all(whole))


KILLED = """
import os, sys
import torch
sys.path[:0] = {paths!r}
from ctt_helpers import cache as module
from ctt_helpers.sources.suites import load_suite
from models import some_text
import safetensors.torch as st
real, made = st.save_file, []
def save_file(tensors, path, metadata=None):
    real(tensors, path, metadata)
    made.append(path)
    if len(made) == 6:
        with open(path, "r+b") as file:
            file.truncate(500)  # half a file, under its temporary name
        os._exit(9)
st.save_file = save_file
ckpts = load_suite({suite!r}, tokens_per_step=10).checkpoints(device="cpu")
given = dict(sequences_per_group=8, shard_bytes=20_000)
module.ActivationCache.build(ckpts, some_text(61, 10), {folder!r}, **given)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(suite, ckpts, tmp_path, root):
    folder = tmp_path / "cache"
    paths = [str(root), str(Path(__file__).parent)]
    code = KILLED.format(paths=paths, suite=str(suite.source), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr[-2000:]
    assert len(list(folder.glob("*/*.safetensors"))) == 5
    text = some_text(61, 10)
    cache = ActivationCache.build(ckpts, text, folder, **SMALL)
    stream = ctt.ActivationStream(ckpts, text, 30, sequences_per_group=8)
    assert same(first(cache.stream(30, device="cpu")), first(stream))
    assert not [path for path in folder.rglob("*") if ".tmp-" in path.name]


@pytest.fixture
def cache(ckpts, tmp_path):
    return ActivationCache.build(ckpts, some_text(61, 10), tmp_path / "cache", **SMALL)


def read_all(cache):
    return [cache.read(c, g) for c in range(3) for g in range(cache.n_groups)]


@pytest.mark.parametrize("at", [9, 200, -4, -15_000])
def test_a_flipped_bit_is_found_and_only_that_file_made_again(cache, ckpts, at, monkeypatch):
    path = cache.folder / "step100" / "00002.safetensors"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    before = read_all(cache)
    path.unlink()  # what is mapped into memory stays
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"step100.00002\.safetensors .*Delete that file and call"):
        read_all(ActivationCache.open(cache.folder))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"step100.00002\.safetensors is missing"):
        ActivationCache.open(cache.folder)
    made = cut_off(monkeypatch, 99)
    again = ActivationCache.build(ckpts, some_text(61, 10), cache.folder, **SMALL)
    assert made == [(1, 2)] and same(read_all(again), before)


def test_a_flipped_bit_is_found_wherever_it_is(cache):
    path = cache.folder / "step100" / "00002.safetensors"
    content = path.read_bytes()
    groups = cache._groups(2)
    header = 8 + int.from_bytes(content[:8], "little")
    for at in [*range(header), *range(header, len(content), 997)]:
        damaged = bytearray(content)
        damaged[at] ^= 4
        path.unlink()
        path.write_bytes(damaged)
        opened = ActivationCache(cache.folder, cache.about)
        with pytest.raises(ValueError, match=r"00002\.safetensors"):
            for group in groups:
                opened.read(1, group)


def test_a_file_that_is_cut_short_is_found(cache, ckpts, monkeypatch):
    path = cache.folder / "step0" / "00001.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"00001\.safetensors cannot be read"):
        read_all(cache)
    made = cut_off(monkeypatch, 99)
    read_all(ActivationCache.build(ckpts, some_text(61, 10), cache.folder, **SMALL))
    assert made == [(0, 1)] and path.stat().st_size == len(content)


def test_files_of_one_cache_do_not_pass_for_anothers(cache, ckpts, tmp_path):
    other = ActivationCache.build(ckpts, some_text(61, 10, seed=1), tmp_path / "other", **SMALL)
    name = Path("step0") / "00001.safetensors"
    shutil.copy(other.folder / name, cache.folder / name)
    with pytest.raises(ValueError, match=r"00001\.safetensors is of another activation cache"):
        read_all(cache)
    shutil.copy(cache.folder / "step100" / "00001.safetensors", cache.folder / name)
    with pytest.raises(ValueError, match=r"00001\.safetensors is of another activation cache"):
        read_all(cache)


def test_another_text_other_checkpoints_and_other_settings_are_refused(cache, suite, tmp_path):
    ckpts, text = suite.checkpoints(device="cpu"), some_text(61, 10)
    before = {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*") if path.is_file()}
    others = {
        r"text: '\w+' there, '\w+' here": (ckpts, some_text(61, 10, seed=1), {}),
        r"sequences: 61 there, 60 here": (ckpts, text[:60], {}),
        r"revisions: .*there, \['step0', 'step100'\] here": (ckpts[:2], text, {}),
        r"layer: 1 there, 0 here": (suite.checkpoints(layer=0, device="cpu"), text, {}),
        r"dtype: 'float32' there, 'bfloat16' here": (ckpts, text, {"dtype": "bfloat16"}),
        r"sequences_per_group: 8 there, 4 here": (ckpts, text, {"sequences_per_group": 4}),
    }
    for message, (which, of, changed) in others.items():
        with pytest.raises(ValueError, match=f"cache holds another activation cache .*{message}"):
            ActivationCache.build(which, of, cache.folder, **{**SMALL, **changed})
    # the same names, other weights
    shutil.copytree(suite.source, tmp_path / "suite")
    weights = tmp_path / "suite" / "step100" / "model.safetensors"
    tensors = load_file(weights)
    tensors[min(tensors)][0] += 1
    save_file(tensors, weights, {"format": "pt"})
    changed = ctt.load_suite(tmp_path / "suite", tokens_per_step=10).checkpoints(device="cpu")
    changed.suite.name = ckpts.suite.name
    with pytest.raises(ValueError, match=r"weights of step100: .* there, .* here"):
        ActivationCache.build(changed, text, cache.folder, **SMALL)
    assert before == {p: p.stat().st_mtime_ns for p in cache.folder.rglob("*") if p.is_file()}
    read_all(cache)


def test_folders_that_hold_something_else_are_left_as_they_are(ckpts, cache, tmp_path):
    text, folder = some_text(61, 10), tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine holds 'notes.txt' and no cache.json"):
        ActivationCache.build(ckpts, text, folder)
    (folder / "cache.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"cache.json is not of an activation cache"):
        ActivationCache.build(ckpts, text, folder)
    with pytest.raises(FileExistsError, match=r"notes.txt is a file"):
        ActivationCache.build(ckpts, text, folder / "notes.txt")
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "cache.json"}
    with pytest.raises(ValueError, match="is not of an activation cache"):
        ActivationCache.open(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ActivationCache.open(tmp_path / "nowhere")
    shard = cache.folder / "step0" / "00000.safetensors"
    shard.unlink()
    save_file({"mine": torch.ones(2)}, shard)
    with pytest.raises(FileExistsError, match=r"00000.safetensors is no file of an activation"):
        ActivationCache.build(ckpts, text, cache.folder, **SMALL)
    assert set(load_file(shard)) == {"mine"}


def test_a_full_disk_leaves_what_is_whole(ckpts, tmp_path, monkeypatch):
    import safetensors.torch

    real, made = safetensors.torch.save_file, []

    def full(tensors, path, metadata=None):
        if len(made) == 5:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        made.append(path)
        real(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(OSError, match=r"could not be written .*No space.*the same call goes"):
            ActivationCache.build(ckpts, some_text(61, 10), tmp_path, **SMALL)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 5 + 1
    read_all(ActivationCache.build(ckpts, some_text(61, 10), tmp_path, **SMALL))


def test_two_builders_do_not_meet(ckpts, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(ctt.__file__).parents[1])!r})\n"
        f"from ctt_helpers.files import locked\n"
        f"with locked({str(tmp_path)!r}): print('held', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InUse, match="is in use by process"):
            ActivationCache.build(ckpts, some_text(61, 10), tmp_path)
        other.stdin.close()
    with locked(tmp_path):
        pass


def test_float16_that_does_not_hold_is_read_again_in_float32(suite, tmp_path, monkeypatch, read):
    """The third checkpoint overflows: what was read of the first two is made again."""
    monkeypatch.setattr(checkpoints, "try_on_sentences", lambda model: _overflows(model, "step200"))
    ckpts = suite.checkpoints(device="cpu", dtype="float16")
    ckpts.half_on_trial = True
    text = some_text(61, 10)
    with pytest.warns(UserWarning, match="float16 does not hold"):
        cache = ActivationCache.build(ckpts, text, tmp_path, **SMALL)
    plain = suite.checkpoints(device="cpu")
    stream = ctt.ActivationStream(plain, text, 30, sequences_per_group=8)
    cached = cache.stream(30, device="cpu")
    assert same(first(cached), first(stream)) and cached.source == stream.source


def _overflows(model, label):
    if model.label == label and model.dtype == torch.float16:
        raise hooks.NotFinite("Activations are not finite.")


def test_bad_input(ckpts, tmp_path):
    with pytest.raises(ValueError, match=r"text must be \[sequences, length >= 2\]"):
        ActivationCache.build(ckpts, some_text(10, 10)[0], tmp_path)
    with pytest.raises(ValueError, match="dtype='int8' is not known; take one of auto, bfloat16"):
        ActivationCache.build(ckpts, some_text(10, 10), tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="549 tokens are fewer than one batch of 1024"):
        ActivationCache.build(ckpts, some_text(61, 10), tmp_path).stream()
