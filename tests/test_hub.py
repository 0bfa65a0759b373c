"""Published suites without a network: a cache as the client lays it out, a small hub, and what is
said on failure.
"""

import errno
import shutil
import socket
import time

import huggingface_hub
import pytest
import torch
from hub_cache import SmallHub, commit_of, published_files, put, shrunk
from models import some_text, word_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import ctt_helpers as ctt
from ctt_helpers.notebook import forecast
from ctt_helpers.sources import checkpoints, hub, machine
from ctt_helpers.sources.presets import PRESETS
from ctt_helpers.sources.suites import load_suite

TINY = shrunk(PRESETS["pythia-70m"].config, layers=2, vocabulary=40)


def tokenizer_files(folder, tokenizer) -> dict[str, bytes]:
    tokenizer.save_pretrained(folder)
    return {n: (folder / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json")}


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory):
    return tokenizer_files(tmp_path_factory.mktemp("words"), word_tokenizer())


@pytest.fixture(scope="module")
def real_tokenizer(shared, tmp_path_factory):
    """The tokenizer of GPT-NeoX and Pythia, 50k tokens."""
    file = str(shared / "data" / "gpt-neox-tokenizer" / "tokenizer.json")
    end = "<|endoftext|>"
    return tokenizer_files(
        tmp_path_factory.mktemp("neox"),
        PreTrainedTokenizerFast(tokenizer_file=file, bos_token=end, eos_token=end),
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; the hub's client and the network are for the test to allow."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch):
    """Without HF_HUB_OFFLINE, and any attempt to reach something is an error of the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def small_hub(cache, monkeypatch, small_tokenizer):
    files = [published_files(TINY, seed) | small_tokenizer for seed in range(2)]
    here = SmallHub({"org/name": {"step1": files[0], "step1000": files[1], "main": files[1]}})
    online(monkeypatch, here.url)
    yield here
    here.close()


def online(monkeypatch, url: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_from_the_cache(name, cache, no_network, real_tokenizer):
    preset = PRESETS[name]
    small = name in ("pythia-14m", "pythia-31m", "pythia-70m", "pythia-160m")
    config = preset.config if small else shrunk(preset.config, layers=preset.layer + 2)
    revisions = preset.triplet[-2:] if name == "pythia-14m" else preset.triplet[-1:]
    for seed, revision in enumerate(revisions):
        files = published_files(config, seed, shards=3 if name == "olmo2-7b" else 1)
        put(cache, preset.repo, revision, files | real_tokenizer)
    suite = load_suite(name)
    assert suite.source == preset.repo and len(suite.tokenizer) >= 50_254
    ckpts = suite.checkpoints(revisions, device="cpu", part="below")
    ids = torch.tensor([[0, *suite.tokenizer("The authors that hurt the senator")["input_ids"]]])
    x = ctt.residual_stream(ckpts[0], ids)
    assert x.shape == (1, ids.shape[1], config["hidden_size"]) and x.dtype == torch.float32
    # the same by transformers alone, from the hub's name, in float32
    plain = AutoModelForCausalLM.from_pretrained(
        preset.repo,
        revision=revisions[0],
        dtype=torch.float32,
        local_files_only=True,
        cache_dir=cache,
    ).eval()
    with torch.no_grad():
        assert torch.equal(x, plain(ids, output_hidden_states=True).hidden_states[preset.layer + 1])
    assert list(suite.describe().query("cached == 'yes'").revision) == list(revisions)
    whole = suite.checkpoints(revisions[:1], device="cpu")
    with torch.no_grad():
        assert torch.allclose(ctt.logits_above(whole[0], x), plain(ids).logits, atol=1e-5)
    assert (
        whole.source["fingerprints"] == [ctt.fingerprint(plain)] == ckpts.source["fingerprints"][:1]
    )
    ckpts.free()
    sizes = {
        p: sum(t.numel() for t in c[0].hf_model.parameters())
        for p, c in (("all", whole), ("below", ckpts))
    }
    assert sizes["below"] < sizes["all"]
    counted = machine.count_parameters(suite.config, preset.layer)
    assert counted["all"] == sizes["all"] and counted["below"] == sizes["below"]
    estimate = ctt.estimate(ckpts)
    assert (
        estimate.download == 0
        and estimate.one == 4 * sizes["below"]
        and estimate.parameters == sizes["all"]
    )
    assert "  download  nothing" in str(estimate)


def test_half_precision_is_cast_as_transformers_casts_it(cache, small_tokenizer):
    for model_type, name in (
        ("gpt_neox", "pythia-70m"),
        ("olmo2", "olmo2-1b"),
        ("bloom", "bloom-1b1"),
    ):
        config = shrunk(PRESETS[name].config, layers=2, vocabulary=40)
        put(cache, f"org/{model_type}", "step1", published_files(config) | small_tokenizer)
        suite, text = load_suite(f"org/{model_type}", ["step1"], tokens_per_step=100), some_text(2)
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            mine = suite.checkpoints(device="cpu", dtype=dtype, layer=1)
            plain = AutoModelForCausalLM.from_pretrained(suite.folder("step1"), dtype=dtype).eval()
            with torch.no_grad():
                assert torch.equal(mine[0].hf_model(text).logits, plain(text).logits)
            assert mine[0].dtype == dtype and f"{str(dtype)[6:]} on cpu" in repr(mine)
            # a cast is not another checkpoint, and it is known to be a cast
            plain = suite.checkpoints(device="cpu", layer=1).source
            assert mine.source == {**plain, "dtype": str(dtype)[6:]}


def test_nothing_above_the_layer_is_a_clear_error(cache, small_tokenizer):
    put(cache, "org/name", "step1", published_files(TINY) | small_tokenizer)
    ckpts = load_suite("org/name", ["step1"]).checkpoints(layer=0, device="cpu", part="below")
    text = some_text(2)
    x = ctt.residual_stream(ckpts[0], text)
    told = r"Only the embeddings and blocks 0 to 0 are in memory \(part='below'\).*part='all'"
    for use in (
        lambda: ctt.logits_above(ckpts[0], x),
        lambda: ctt.spliced_logits(ckpts[0], text, None, x),
        lambda: ctt.residual_stream(ckpts[0], text, layer=1),
        lambda: ckpts[0].final_norm.weight,
        lambda: ckpts[0].final_norm(x),
    ):
        with pytest.raises(Exception, match=told):
            use()
    with pytest.raises(ValueError, match="part='bellow' is not known; take one of all, below"):
        ckpts.suite.checkpoints(part="bellow", device="cpu")


def test_download_from_a_hub_and_then_none(small_hub, cache, capsys):
    suite = load_suite("org/name", ["step1", "step1000"], tokens_per_step=100)
    assert suite.default_layer == 1 and suite.tokens_seen("step1000") == 100_000
    assert list(suite.describe().cached) == ["no", "in part"]  # its configuration and tokenizer
    ckpts = suite.checkpoints(device="cpu")
    assert ctt.estimate(ckpts).download > 0
    x = [ctt.residual_stream(model, some_text(2)) for model in ckpts]
    assert not torch.equal(*x)
    assert (
        list(suite.describe().cached) == ["yes", "yes"] and not suite.describe().download_mb.any()
    )
    assert (cache / "models--org--name" / "refs" / "step1").read_text() == commit_of(
        "org/name", "step1"
    )
    small_hub.asked.clear()
    again = load_suite("org/name", ["step1", "step1000"]).checkpoints(device="cpu")
    assert torch.equal(ctt.residual_stream(again[1], some_text(2)), x[1]) and not small_hub.asked
    # one whose download broke off is completed
    (suite.folder("step1") / "model.safetensors").unlink()
    assert list(suite.describe().cached) == ["in part", "yes"]
    assert torch.equal(
        ctt.residual_stream(suite.checkpoints(["step1"], device="cpu")[0], some_text(2)), x[0]
    )
    assert any("model.safetensors" in line for line in small_hub.asked)


def test_only_one_format_of_the_weights_is_fetched(small_hub, small_tokenizer):
    files = small_hub.repos["org/name"]["step1"]
    files |= {
        "pytorch_model.bin": b"0" * 99,
        "flax_model.msgpack": b"0",
        "README.md": b"0",
        "training.pt": b"0",
    }
    folder = hub.fetch("org/name", "step1")
    assert {f.name for f in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        *small_tokenizer,
    }
    del files["model.safetensors"], small_hub.repos["org/name"]["main"]["model.safetensors"]
    with pytest.raises(
        FileNotFoundError, match="org/name at main holds no weights that can be read"
    ):
        hub.fetch("org/name", "main")


def test_messages_of_the_hub_come_at_once(small_hub, monkeypatch):
    suite = load_suite("org/name", ["step999", "step1000"])
    with pytest.raises(
        FileNotFoundError, match=r"no revision 'step999'. Did you mean 'step1000'\? It has 3"
    ):
        suite.checkpoints(["step999"], device="cpu")[0]
    with pytest.raises(FileNotFoundError, match=r"The hub has no repository 'org/nam' .* spelling"):
        load_suite("org/nam", ["step1"])
    small_hub.repos["org/data"] = {"main": {"README.md": b"0"}}
    with pytest.raises(FileNotFoundError, match="org/data at main holds no config"):
        load_suite("org/data", ["main"])
    small_hub.gated.add("org/name")
    with pytest.raises(
        PermissionError, match=r"org/name is gated: accept its terms at http.*hf auth login"
    ):
        suite.checkpoints(["step1000"], device="cpu")[0]
    small_hub.gated.clear()
    for code, told in (
        (429, r"answers 429 .*too many requests"),
        (503, r"answers 503 .*try again later"),
    ):
        small_hub.mode = code
        with pytest.raises(ConnectionError, match=told):
            suite.checkpoints(["step1000"], device="cpu")[0]
    small_hub.mode = "silent"
    with pytest.raises(
        ConnectionError, match=r"cannot be reached \(.*None of its checkpoints is cached here"
    ):
        suite.checkpoints(["step1000"], device="cpu")[0]
    small_hub.mode = "fine"
    usage = shutil.disk_usage(".")._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(
            OSError, match=r"needs 0.01 GB in .*, and 0.00 GB are free there. Delete revisions"
        ) as error:
            suite.checkpoints(["step1000"], device="cpu")[0]
        assert error.value.errno == errno.ENOSPC
    for raised, told in (
        (OSError(errno.ENOSPC, "No space left on device"), "are free there. Delete revisions"),
        (
            RuntimeError("peer closed connection"),
            r"broke off \(RuntimeError: peer closed.*run again to go on",
        ),
    ):
        with monkeypatch.context() as patch, pytest.raises(OSError, match=told):

            def fail(*args, raised=raised, **kwargs):
                raise raised

            patch.setattr(huggingface_hub, "snapshot_download", fail)
            suite.checkpoints(["step1000"], device="cpu")[0]


def test_no_network(cache, monkeypatch, small_tokenizer):
    preset = PRESETS["pythia-70m"]
    put(cache, preset.repo, "step512", published_files(shrunk(preset.config, 5)) | small_tokenizer)
    suite = load_suite("pythia-70m")

    def load(revision):
        suite.checkpoints([revision], device="cpu")[0]

    told = (
        r"step1000 is not in the cache, and HF_HUB_OFFLINE forbids the network: unset it.* "
        r"Cached here: step512. The "
    )
    with pytest.raises(FileNotFoundError, match=told):
        load("step1000")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but it does not listen: connections are refused
        online(monkeypatch, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(
            ConnectionError,
            match=r"the hub \(http.*cannot be reached \(.*refused.*Cached here: step512",
        ):
            load("step1000")
    online(monkeypatch, "https://hub.invalid")
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *args, **rest: time.sleep(20) or real(*args, **rest)
    )
    with pytest.raises(ConnectionError, match=r"cannot be reached \(no answer within 2 s\)"):
        load("step1000")
    with pytest.raises(
        ValueError, match=r"'pythia-70m' has no revision 'step1500'. Did you mean 'step2000'\?"
    ):
        load("step1500")
    load("step512")  # cached: no network, and no wait for it


def test_partial_downloads_are_told(cache, small_tokenizer):
    preset = PRESETS["olmo2-1b"]
    config = shrunk(preset.config, layers=9, vocabulary=40)
    revision = preset.triplet[0]
    snapshot = put(
        cache, preset.repo, revision, published_files(config, shards=2) | small_tokenizer
    )
    assert hub.cached(preset.repo, revision) == "yes"
    part = snapshot / "model-00002-of-00002.safetensors"
    blob = part.resolve()
    blob.rename(blob.with_suffix(".incomplete"))  # a link to nothing
    assert hub.cached(preset.repo, revision) == "in part"
    part.unlink()
    table = load_suite("olmo2-1b").describe().set_index("revision")
    assert (
        table.cached[revision] == "in part"
        and table.download_mb[revision] == preset.file_bytes / 1e6
    )
    with pytest.raises(
        FileNotFoundError, match=rf"{revision} is only in part in the cache, and HF_HUB_OFFLINE"
    ):
        load_suite("olmo2-1b").checkpoints([revision], device="cpu")[0]
    shutil.rmtree(snapshot)
    assert hub.cached(preset.repo, revision) == "no"


def test_together_or_one_after_another(cache, monkeypatch, small_tokenizer):
    for seed in range(3):
        put(cache, "org/name", f"step{seed}", published_files(TINY, seed) | small_tokenizer)
    suite = load_suite("org/name", ["step0", "step1", "step2"])
    ckpts = suite.checkpoints(device="cpu")
    one = ctt.estimate(ckpts).one
    assert len({id(model) for model in ckpts}) == 3 == len(ckpts._loaded) and ckpts.together
    expected = [ctt.residual_stream(model, some_text(2)) for model in ckpts]
    ckpts = suite.checkpoints(device="cpu")
    for module in (checkpoints, forecast):
        monkeypatch.setattr(module, "free_memory", lambda device: 2 * one)
    monkeypatch.setattr(checkpoints.Checkpoints, "file_bytes", lambda self, revision: one)
    assert not ctt.estimate(ckpts).fits and "one after another" in str(ctt.estimate(ckpts))
    with pytest.warns(
        UserWarning, match=r"do not fit into memory together \(.*part='below'.*dtype='float16'"
    ):
        for model, x in zip(ckpts, expected, strict=True):
            assert (
                torch.equal(ctt.residual_stream(model, some_text(2)), x) and len(ckpts._loaded) == 1
            )
    assert len(set(ckpts.source["fingerprints"])) == 3
    monkeypatch.setattr(checkpoints, "free_memory", lambda device: one // 2)
    needs, free = f"{one / 1e3:.0f} kB", f"{one // 2 / 1e3:.0f} kB"
    told = rf"at step0 needs {needs} of memory on cpu, where {free} are free. Take part='b"
    with pytest.raises(MemoryError, match=told):
        suite.checkpoints(device="cpu")[0]


def test_out_of_memory_while_loading(cache, monkeypatch, small_tokenizer):
    put(cache, "org/name", "step1", published_files(TINY) | small_tokenizer)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(
        MemoryError,
        match=r"Out of memory on cpu while 'org/name' at step1 was loaded. Take part='below'",
    ):
        load_suite("org/name", ["step1"]).checkpoints(device="cpu", dtype="float16")[0]


def test_dtypes():
    assert machine.pick_dtype("auto", "cpu") == machine.pick_dtype("auto", "mps") == torch.float32
    assert (
        machine.pick_dtype("bfloat16", "cpu")
        == machine.pick_dtype(torch.bfloat16, "cpu")
        == torch.bfloat16
    )
    for wrong in ("float61", torch.int8):
        with pytest.raises(
            ValueError,
            match=r"dtype='.*' is not known; take one of auto, float32, bfloat16, float16, float64",
        ):
            machine.pick_dtype(wrong, "cpu")


@pytest.mark.parametrize("new", [True, False])
def test_dtype_on_a_gpu(monkeypatch, new):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: new or including_emulation
    )
    assert machine.pick_dtype("auto", "cuda:0") == (torch.bfloat16 if new else torch.float16)


def test_an_estimate_reads_well():
    estimate = forecast.Forecast(
        title="x",
        parameters=162_322_944,
        download=375_000_000,
        file_bytes=1_125_000_000,
        one=494_000_000,
        together=1_480_000_000,
        free=14e9,
        work={"reading": 600, "training": 1200},
        memory={"training": 1e9, "activations": 2e9},
    )
    assert str(estimate).splitlines()[1:] == [
        "  model     162,322,944 parameters",
        "  download  about 375 MB, 9 s at 40 MB/s",
        "  memory    494 MB each, 1.48 GB together, 14.00 GB free: all at once",
        "  loading   about 2 s",
        "  at peak   about 4.48 GB, of it 1.00 GB training, 2.00 GB activations",
        "  work      reading 10 min, training 20 min",
        "  in all    about 30 min",
        f"  device    {forecast.NO_GPU}",
    ]
    assert [ctt.messages.show_time(s) for s in (0.1, 89, 5300, 7200)] == [
        "1 s",
        "89 s",
        "88 min",
        "2.0 h",
    ]
    assert machine.free_memory("cpu") > 0
