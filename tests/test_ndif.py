"""Activations from NDIF, as far as it goes without it: what is asked for is what a server can run,
and what is refused says why.
"""

import json
import linecache
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import huggingface_hub
import pytest
import torch
import websocket
from hub_cache import put, random_model, shrunk
from models import some_text, word_tokenizer
from nnsight import CONFIG, TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from nnsight.tracing.tracer import save
from nnsight.tracing.util import push

import ctt_helpers as ctt
from ctt_helpers.hooks import HookedModel, LeftOutError, RemoteModel
from ctt_helpers.sources.presets import PRESETS

PRESET = PRESETS["pythia-70m"]
TINY = shrunk(PRESET.config, layers=3, vocabulary=40)


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A published suite of which configuration and tokenizer are here, and no weights."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    word_tokenizer().save_pretrained(tmp_path / "words")
    files = {"config.json": json.dumps(TINY | {"architectures": ["GPTNeoXForCausalLM"]}).encode()}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        files[name] = (tmp_path / "words" / name).read_bytes()
    for revision in PRESET.tokens:
        put(tmp_path / "hub", PRESET.repo, revision, files)
    return ctt.load_suite("pythia-70m")


@pytest.fixture
def ckpts(suite, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "APIKEY", "a key")
    return suite.checkpoints(["step1000", "step143000"], layer=1, device="ndif")


class Server(Backend):
    """Runs what was sent, as NDIF does: with a model of its own, and nothing of the sender's."""

    asked: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, remote):
        self.remote = remote
        self.model = served(json.loads(remote.to_model_key().partition(":")[2])["revision"])

    def __call__(self, tracer):
        blob = RequestModel.serialize(tracer, compress=False)
        self.asked.append((self.remote.to_model_key(), len(blob)))
        objects = self.model._remoteable_persistent_objects()
        lines = dict(linecache.cache)  # which holds what was sent, afterwards: on a server it may
        sent = RequestModel.deserialize(blob, objects, compress=False)
        linecache.cache.clear()
        linecache.cache.update(lines)
        sent.execute(sent.info.code)
        result = {"output": save(sent.info.frame.f_locals["output"])}
        push(tracer.info.frame, result)


def plain_model(revision):
    return random_model(TINY, seed=len(revision))


def served(revision):
    return TransformersModel(
        plain_model(revision), tokenizer=word_tokenizer(), task="text-generation", device="cpu"
    )


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(
        "ctt_helpers.hooks._OnNdif._remote_backend", lambda self, *how: Server(self)
    )
    return Server


def test_what_is_asked_for_is_the_residual_stream(ckpts, server):
    ids = torch.randint(1, 40, (5, 7), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([7, 4, 7, 5, 4])
    mask = (torch.arange(7) < lengths[:, None]).long()
    for model in ckpts:
        here = HookedModel(plain_model(model.label), word_tokenizer(), layer=1)
        for given in (None, mask):
            found = ctt.residual_stream(model, ids, given)
            expected = ctt.residual_stream(here, ids, given)
            there = torch.ones_like(mask) if given is None else mask
            torch.testing.assert_close(found[there > 0], expected[there > 0], rtol=1e-5, atol=1e-6)
            assert not found.requires_grad and not found[there == 0].any()
    # one request for each length, small, and for the model as NDIF knows it
    assert len(server.asked) == 2 * (1 + 3)
    key = "nnsight.modeling.transformers.TransformersModel:" + json.dumps(
        {"repo_id": PRESET.repo, "revision": "step1000", "task": "text-generation"}
    )
    assert server.asked[0][0] == key and max(size for _, size in server.asked) < 100_000


def test_a_crosscoder_is_trained_on_them(ckpts, server, tmp_path):
    text = some_text(24, 8)
    cache = ctt.ActivationCache.build(ckpts, text, tmp_path / "cache")
    stream = ctt.ActivationStream(ckpts, text, batch_size=32)
    cached = cache.stream(32, device="cpu")
    assert torch.equal(next(cached.batches()), next(stream.batches()))
    crosscoder = ctt.Crosscoder(2, ckpts.d_model, 32, k=4)
    ctt.train(crosscoder, stream, ctt.TrainConfig(steps=20), device="cpu")
    assert crosscoder.source["revisions"] == ["step1000", "step143000"]
    assert all(mark.startswith("ndif:") for mark in crosscoder.source["fingerprints"])
    assert "activations from NDIF" in repr(ckpts) and ckpts[:1].remote
    # the weights themselves are known here by another mark: names decide, with a warning
    here = {**crosscoder.source, "fingerprints": ["0" * 32, "1" * 32]}
    with pytest.warns(UserWarning, match="goes by their names alone"):
        crosscoder.check_source(here)


def test_without_a_key(suite, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    model = suite.checkpoints(["step1000"], layer=1, device="ndif")[0]
    with pytest.raises(PermissionError, match=r"NDIF wants a key.*NDIF_API_KEY"):
        ctt.residual_stream(model, torch.tensor([[1, 2]]))


def test_without_a_network(ckpts, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")  # where nobody listens
    told = r"NDIF did not run EleutherAI/pythia-70m\S* at step1000 .*refused.*127\.0\.0\.1:9"
    with pytest.raises(ConnectionError, match=told):
        ctt.residual_stream(ckpts[0], torch.tensor([[1, 2]]))


def test_a_refusal_is_told_in_the_servers_words(ckpts, monkeypatch, capsys):
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"detail": "your key may not use this revision"}).encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    class Subscription:
        def recv(self):
            return json.dumps({"session_id": "1"})

        def close(self):
            pass

    there = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=there.serve_forever, daemon=True).start()
    monkeypatch.setattr(CONFIG.API, "HOST", f"http://127.0.0.1:{there.server_port}")
    monkeypatch.setattr(websocket, "create_connection", lambda *a, **b: Subscription())
    try:
        with pytest.raises(ConnectionError, match="your key may not use this revision"):
            ctt.residual_stream(ckpts[0], torch.tensor([[1, 2]]))
    finally:
        there.shutdown()
        there.server_close()
    assert PRESET.repo.encode() in posted[0] and b"step1000" in posted[0]


def test_nothing_but_activations(ckpts, server):
    crosscoder = ctt.Crosscoder(2, ckpts.d_model, 8, k=1).eval()
    model, x = ckpts[0], torch.zeros(1, 2, ckpts.d_model)
    ids = torch.tensor([[1, 2]])
    for ask in (
        lambda: ctt.hooks.logits_above(model, x),
        lambda: ctt.hooks.spliced_logits(model, ids, None, x),
        lambda: ctt.hooks.unembed(model, x),
        lambda: model.norm_gain,
        lambda: ctt.evaluate(crosscoder, ckpts, some_text(2, 4)),
    ):
        with pytest.raises(LeftOutError, match="on NDIF, where only its activations are read"):
            ask()
    with pytest.raises(ValueError, match="has no forecast"):
        ctt.estimate(ckpts, tokens=100)


def test_what_ndif_cannot_have(suite):
    with pytest.raises(ValueError, match="'tiny' is in a folder here"):
        ctt.load_suite("tiny").checkpoints(device="ndif")
    config = suite.config.__class__(**suite.config.to_dict())
    with pytest.raises(ValueError, match="layer=3 does not exist"):
        RemoteModel(PRESET.repo, "step1", config, word_tokenizer(), 3)
