"""Crosscoders on the hub: a stand-in for it on this machine, its cache offline, the card."""

import json
import re
import socket

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from hub_cache import SmallHub, commit_of, put
from models import random_suite, some_text

import ctt_helpers as ctt
from ctt_helpers.crosscoder import FILES, Crosscoder
from ctt_helpers.sources import exchange, hub

SOURCE = {
    "suite": "pythia-160m",
    "revisions": ["step512", "step4000", "step143000"],
    "layer": 6,
    "dtype": "float32",
    "fingerprints": ["0" * 32, "1" * 32, "2" * 32],
    "text": "aca3adcd3e53b070",
    "begins_with": 0,
}


def some_crosscoder(seed: int = 0, **settings) -> Crosscoder:
    made = Crosscoder(3, 8, 20, k=4, seed=seed, scales=[0.7, 1.1, 2.3], source=SOURCE, **settings)
    with torch.no_grad():
        made.threshold.fill_(0.37)
        made.b_enc.add_(torch.randn(20, generator=torch.Generator().manual_seed(seed)))
    return made.eval()


def same(a: Crosscoder, b: Crosscoder) -> bool:
    """Bit for bit, and all that is told of them."""
    one, other = a.state_dict(), b.state_dict()
    return (
        list(one) == list(other)
        and all(torch.equal(one[name], other[name]) for name in one)
        and (a.config, a.source) == (b.config, b.source)
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def small_hub(cache, monkeypatch):
    here = SmallHub({})
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", here.url)
    template = here.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield here
    here.close()


@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
def test_there_and_back_bit_for_bit(small_hub, cache, sparsity, monkeypatch):
    crosscoder = some_crosscoder(sparsity=sparsity)
    url = crosscoder.push_to_hub("org/mine", token=small_hub.token)
    commit = url.rpartition("/")[2]
    assert url == f"{small_hub.url}/org/mine/commit/{commit}"
    pushed = small_hub.repos["org/mine"]["main"]
    assert set(pushed) == {".gitattributes", "README.md", *FILES}
    back = Crosscoder.from_pretrained("org/mine")
    assert same(back, crosscoder) and not back.training
    # without a network, from the cache: a branch that was fetched, and a commit
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    small_hub.asked.clear()
    assert same(Crosscoder.from_pretrained("org/mine"), crosscoder)
    assert same(Crosscoder.from_pretrained("org/mine", revision=commit), crosscoder)
    assert not small_hub.asked
    # the same in half precision, and folded
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    folded = crosscoder.folded().bfloat16()
    folded.push_to_hub("org/folded", token=small_hub.token)
    assert same(Crosscoder.from_pretrained("org/folded"), folded)
    assert "folded into the weights" in small_hub.repos["org/folded"]["main"]["README.md"].decode()


def test_a_branch_moves_on_and_a_commit_does_not(small_hub, cache):
    first, second = some_crosscoder(0), some_crosscoder(1)
    commit = first.push_to_hub("org/mine", token=small_hub.token).rpartition("/")[2]
    assert same(Crosscoder.from_pretrained("org/mine"), first)
    second.push_to_hub("org/mine", token=small_hub.token)
    assert same(Crosscoder.from_pretrained("org/mine"), second)
    small_hub.asked.clear()
    assert same(Crosscoder.from_pretrained("org/mine", revision=commit), first)
    assert not small_hub.asked  # a commit that is cached stays what it is
    # the hub does not answer: the branch as it was, and that is told
    small_hub.mode = "silent"
    with pytest.warns(UserWarning, match="cannot be reached.*org/mine at main is taken from the"):
        assert same(Crosscoder.from_pretrained("org/mine"), second)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        Crosscoder.from_pretrained("org/mine", force_download=True)


def test_the_token_is_written_nowhere(small_hub, cache, tmp_path):
    some_crosscoder().push_to_hub("org/mine", token=small_hub.token)
    Crosscoder.from_pretrained("org/mine", token=small_hub.token)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3
    secret = small_hub.token.encode()
    assert not [path for path in written if secret in path.read_bytes()]
    assert not [c for c in small_hub.repos["org/mine"]["main"].values() if secret in c]


def test_what_is_not_ours_stays(small_hub):
    small_hub.repos["org/model"] = {"main": {"config.json": b'{"model_type": "gpt2"}'}}
    before = dict(small_hub.repos["org/model"]["main"])
    with pytest.raises(FileExistsError, match=r"org/model holds a config\.json that is no cross"):
        some_crosscoder().push_to_hub("org/model", token=small_hub.token)
    small_hub.repos["org/broken"] = {"main": {"config.json": b"{"}}
    with pytest.raises(FileExistsError, match="no crosscoder's"):
        some_crosscoder().push_to_hub("org/broken", token=small_hub.token)
    assert small_hub.repos["org/model"]["main"] == before
    small_hub.repos["org/mine"] = {"main": {"README.md": b"# My own words"}}
    with pytest.warns(UserWarning, match=r"org/mine has a README\.md that somebody"):
        some_crosscoder().push_to_hub("org/mine", token=small_hub.token)
    pushed = small_hub.repos["org/mine"]["main"]
    assert pushed["README.md"] == b"# My own words" and set(FILES) <= set(pushed)
    # ours is written anew, unless somebody has changed it
    some_crosscoder().push_to_hub("org/ours", token=small_hub.token)
    before = small_hub.repos["org/ours"]["main"]["README.md"]
    some_crosscoder(sparsity="l1").push_to_hub("org/ours", token=small_hub.token)
    pushed = small_hub.repos["org/ours"]["main"]
    assert b"batch_topk" in before and b"batch_topk" not in pushed["README.md"]
    changed = pushed["README.md"].replace(b"## Versions", b"## A word of mine\n\n## Versions")
    pushed["README.md"] = changed
    with pytest.warns(UserWarning, match="that somebody has written"):
        some_crosscoder().push_to_hub("org/ours", token=small_hub.token)
    assert small_hub.repos["org/ours"]["main"]["README.md"] == changed


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_download_is_found(small_hub, cache, file):
    crosscoder = some_crosscoder()
    crosscoder.push_to_hub("org/mine", token=small_hub.token)
    whole = small_hub.repos["org/mine"]["main"][file]
    flipped = whole[:60] + bytes([whole[60] ^ 4]) + whole[61:]
    found = r"broke off|force_download=True\) fetches it again"
    for damage in (whole[:-7], flipped, b"\0" * len(whole)):
        small_hub.damaged[file] = damage
        # a cut is found by the hub's client, the others by the checksum
        with pytest.raises((ConnectionError, ValueError), match=found):
            Crosscoder.from_pretrained("org/mine", force_download=True)
    small_hub.damaged.clear()
    assert same(Crosscoder.from_pretrained("org/mine", force_download=True), crosscoder)
    # on the disk, long after
    cached = hub.snapshot("org/mine", "main") / file
    cached.resolve().write_bytes(whole[:-1] + b"!")
    with pytest.raises(ValueError, match="force_download=True"):
        Crosscoder.from_pretrained("org/mine")


def test_errors_say_what_to_do(small_hub, cache, tmp_path, monkeypatch):
    crosscoder = some_crosscoder()
    with pytest.raises(PermissionError, match=r"not allowed \(the hub answers 401\).*log in"):
        crosscoder.push_to_hub("org/mine", token="hf_other")
    assert "org/mine" not in small_hub.repos
    with pytest.raises(FileNotFoundError, match=r"no repository 'org/nothing'.*spelling.*log in"):
        Crosscoder.from_pretrained("org/nothing")
    small_hub.repos["org/mine"] = {"main": {"README.md": b""}}
    with pytest.raises(FileNotFoundError, match=r"org/mine at main holds no config\.json"):
        Crosscoder.from_pretrained("org/mine")
    with pytest.raises(FileNotFoundError, match="org/mine has no revision 'v2'"):
        Crosscoder.from_pretrained("org/mine", revision="v2")
    small_hub.repos["org/model"] = {
        "main": {"config.json": b'{"model_type": "gpt2"}', FILES[0]: b""}
    }
    with pytest.raises((ValueError, FileNotFoundError), match="org--model"):
        Crosscoder.from_pretrained("org/model")
    small_hub.gated.add("org/model")
    with pytest.raises(PermissionError, match="org/model is gated: accept its terms"):
        Crosscoder.from_pretrained("org/model", force_download=True)
    with pytest.raises(ValueError, match="'org/a--b' is no name of a repository"):
        crosscoder.push_to_hub("org/a--b", token=small_hub.token)
    for name in ("nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"There is no folder .*'org/name'"):
            Crosscoder.from_pretrained(name)
    crosscoder.save(tmp_path / "saved")
    assert same(Crosscoder.from_pretrained(tmp_path / "saved"), crosscoder)
    with pytest.raises(ValueError, match="revision='v1' goes with a repository of the hub"):
        Crosscoder.from_pretrained(tmp_path / "saved", revision="v1")
    with pytest.raises(FileNotFoundError, match="is a file: give the folder"):
        Crosscoder.from_pretrained(tmp_path / "saved" / FILES[0])
    small_hub.mode = 503
    with pytest.raises(ConnectionError, match=r"failed: the hub answers 503 \(try again later\)"):
        crosscoder.push_to_hub("org/mine", token=small_hub.token)


def test_offline_nothing_is_asked(cache, monkeypatch):
    """HF_HUB_OFFLINE, as in all tests; and no socket is opened."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(FileNotFoundError, match="org/mine at v1 is not in the cache"):
        Crosscoder.from_pretrained("org/mine", revision="v1")
    with pytest.raises(ConnectionError, match=r"unset it .* to push to org/mine.*\.save\(folder\)"):
        some_crosscoder().push_to_hub("org/mine")


def test_from_a_cache_as_the_client_lays_it_out(cache, tmp_path):
    crosscoder = some_crosscoder()
    crosscoder.save(tmp_path / "saved")
    files = {name: (tmp_path / "saved" / name).read_bytes() for name in FILES}
    put(cache, "org/mine", "v1", files)
    assert same(Crosscoder.from_pretrained("org/mine", revision="v1"), crosscoder)
    commit = commit_of("org/mine", "v1")
    assert same(Crosscoder.from_pretrained("org/mine", revision=commit), crosscoder)
    put(cache, "org/cut", "main", {FILES[1]: files[FILES[1]]})
    with pytest.raises(FileNotFoundError, match=r"no crosscoder\.safetensors in it.*force_downl"):
        Crosscoder.from_pretrained("org/cut")


def test_a_dictionary_of_another_library_is_known(cache):
    other = {"activation_dim": 4, "dict_size": 8, "num_layers": 2}
    put(cache, "org/other", "main", {"config.json": json.dumps(other).encode()})
    with pytest.raises(ValueError, match=r"org/other holds .*from_dictionary_learning"):
        Crosscoder.from_pretrained("org/other")


# ---- the card


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    ckpts = random_suite(tmp_path_factory.mktemp("suite")).checkpoints(device="cpu")
    crosscoder = ctt.Crosscoder(3, 32, 40, k=6, source=ckpts.source).eval()
    return crosscoder, ctt.evaluate(crosscoder, ckpts, some_text())


def front(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_the_card_tells_what_is_known(evaluated):
    text = exchange.card(some_crosscoder(), "org/mine")
    header = front(text)
    assert header["library_name"] == "ctt-helpers" and "crosscoder" in header["tags"]
    assert header["base_model"] == "EleutherAI/pythia-160m"
    for told in (*SOURCE["revisions"], *SOURCE["fingerprints"], "aca3adcd3e53b070", "0.37", "2.3"):
        assert told in text, told
    assert 'from_pretrained("org/mine")' in text and "arXiv:2509.05291" in text
    assert "Figures" not in text
    crosscoder, report = evaluated
    text = exchange.card(crosscoder, "org/mine", report)
    assert "base_model" not in front(text)  # it is no published suite
    assert f"{report.dead_tokens:,} tokens" in text and f"{report.l0:.4g} of 40" in text
    for value in report.explained_variance + report.dce:
        assert f"| {value:.4f} |" in text
    assert text.count("none: too little is at stake") == np.isnan(report.ce_recovered).sum()


def test_the_card_has_no_blanks(evaluated):
    crosscoder, report = evaluated
    bare = Crosscoder(2, 4, 6, sparsity="l1")
    headers = (
        "| Trained on |  |",
        "|  | Scale |",
        "|  | Checkpoint | Fingerprint of its weights | Scale |",
    )
    for text in (exchange.card(bare, "org/bare"), exchange.card(crosscoder, "org/mine", report)):
        for line in text.splitlines():
            if line.startswith("| ") and line not in headers:
                assert all(cell.strip() for cell in line.strip("|").split(" | ")), line
        assert not re.search(r"None|nan|TODO|\[More|unknown|\?\?", text), text
    assert "Trained on" not in exchange.card(bare, "org/bare")


def test_names_cannot_break_the_card():
    wild = SOURCE | {"suite": "a|b\n# c <script>x</script>", "revisions": ["s|1", "`s2`", "s3"]}
    crosscoder = some_crosscoder()
    crosscoder.source = wild
    text = exchange.card(crosscoder, "org/mine")
    assert "<script>" not in text.replace("\\<", "") and "\n# c" not in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if "s\\|1" in line}
    assert widths == {5}


def test_a_report_of_another_crosscoder_is_refused(evaluated):
    crosscoder, report = evaluated
    with pytest.raises(ValueError, match=r"3 checkpoints and 40 latents, this .* 3 and 20"):
        exchange.card(some_crosscoder(), "org/mine", report)
    other = Crosscoder(3, 32, 40, k=6, source={**crosscoder.source, "revisions": ["a", "b", "c"]})
    with pytest.raises(ValueError, match="and this crosscoder was trained on"):
        other.push_to_hub("org/mine", report=report)
