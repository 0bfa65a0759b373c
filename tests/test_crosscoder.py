"""The crosscoder: encoding and decoding, BatchTopK, folding, saving."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ctt_helpers.crosscoder import Crosscoder, batch_topk
from ctt_helpers.files import write_json

N, D, H = 3, 8, 20


def make(
    sparsity: str = "batch_topk", threshold: float = 0.0, dtype=torch.float64, **options
) -> Crosscoder:
    """A crosscoder with random weights everywhere, biases and scales included."""
    crosscoder = Crosscoder(N, D, H, sparsity=sparsity, k=4, scales=[0.5, 2.0, 3.0], **options).to(
        dtype
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        crosscoder.threshold.fill_(threshold)
    return crosscoder.eval()


def raw(*shape: int, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(
        *shape, N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def test_the_start():
    crosscoder = Crosscoder(N, D, H, decoder_norm=0.08, seed=3)
    torch.testing.assert_close(crosscoder.W_dec.norm(dim=-1), torch.full((H, N), 0.08))
    torch.testing.assert_close(crosscoder.W_enc, crosscoder.W_dec.permute(1, 2, 0))
    assert crosscoder.W_enc.data_ptr() != crosscoder.W_dec.data_ptr()
    assert not crosscoder.b_enc.any() and not crosscoder.b_dec.any()
    before = torch.get_rng_state()
    again, other = Crosscoder(N, D, H, decoder_norm=0.08, seed=3), Crosscoder(N, D, H, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(crosscoder.W_dec, again.W_dec) and not torch.equal(again.W_dec, other.W_dec)


@pytest.mark.parametrize("shape", [(), (7,), (2, 5)])
@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
def test_encode_and_decode_are_the_equations(sparsity, shape):
    crosscoder, x = make(sparsity, threshold=70.0), raw(*shape)
    s = crosscoder.scales
    f = torch.einsum("...nd,n,ndh->...h", x, s, crosscoder.W_enc).add(crosscoder.b_enc).clamp_min(0)
    u = crosscoder.W_dec.pow(2).sum(-1).sqrt().sum(-1)
    if sparsity == "batch_topk":
        assert ((f > 0) & (f * u <= 70)).any(), "the threshold must have something to do"
        f = torch.where(f * u > 70, f, 0)
    torch.testing.assert_close(crosscoder.encode(x), f)
    rebuilt = (torch.einsum("...h,hnd->...nd", f, crosscoder.W_dec) + crosscoder.b_dec) / s[:, None]
    torch.testing.assert_close(crosscoder.decode(f), rebuilt)
    torch.testing.assert_close(crosscoder(x), rebuilt)
    W, b = crosscoder.raw_decoder()
    torch.testing.assert_close(torch.einsum("...h,hnd->...nd", f, W) + b, rebuilt)


@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31), st.booleans()
)
def test_batch_topk_is_a_sort(tokens, latents, k, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(tokens, latents, generator=generator)
    norms = torch.rand(latents, generator=generator) + 0.1
    if ties:
        pre, norms = pre.round(), torch.ones(latents)
    f, smallest = batch_topk(pre, norms, k)
    sizes = sorted((pre * norms).clamp_min(0).flatten().tolist(), reverse=True)[: k * tokens]
    positive = [size for size in sizes if size > 0]
    kept = (f * norms)[f > 0]
    assert sorted(kept.tolist(), reverse=True) == positive
    assert (f > 0).sum() <= k * tokens
    assert torch.equal(f[f > 0], pre[f > 0])
    assert float(smallest) == (positive[-1] if positive else float("inf"))


def test_batch_topk_passes_the_gradient_of_what_it_keeps():
    pre = torch.tensor([[1.0, 5.0, -2.0], [4.0, 3.0, 0.5]], requires_grad=True)
    f, smallest = batch_topk(pre, torch.ones(3), 1)
    f.mul(torch.tensor([[10.0, 20.0, 30.0]])).sum().backward()
    assert f.tolist() == [[0, 5, 0], [4, 0, 0]] and smallest == 4
    assert pre.grad.tolist() == [[0, 20, 0], [10, 0, 0]]


def test_training_shares_the_batch_and_evaluation_does_not():
    crosscoder, x = make(threshold=4.0), raw(64)
    one_by_one = torch.cat([crosscoder.encode(row[None]) for row in x])
    assert torch.equal(crosscoder.encode(x) > 0, one_by_one > 0)
    crosscoder.train()
    f = crosscoder.encode(x)
    assert (f > 0).sum() == 4 * 64
    assert (f > 0).sum(1).unique().numel() > 1, "k is an average over the batch"
    assert torch.equal(crosscoder.encode(x.view(8, 8, N, D)).view(64, H), f)


@settings(max_examples=30)
@given(st.lists(st.floats(0.05, 20), min_size=N, max_size=N), st.floats(0, 20))
def test_folding_changes_nothing_but_the_space(scales, threshold):
    crosscoder, x = make(threshold=threshold), raw(30)
    crosscoder.scales.copy_(torch.tensor(scales))
    folded = crosscoder.folded()
    f = crosscoder.encode(x)
    torch.testing.assert_close(folded.encode(x), f)
    torch.testing.assert_close(folded.decode(f), crosscoder.decode(f))
    torch.testing.assert_close(folded.decoder_norms(), crosscoder.decoder_norms())
    torch.testing.assert_close(folded.code_norms(), crosscoder.code_norms())
    torch.testing.assert_close(folded.raw_decoder(), crosscoder.raw_decoder())
    # what a tool that knows neither scales nor thresholds would compute
    pre = torch.einsum("bnd,ndh->bh", x, folded.W_enc) + folded.b_enc
    torch.testing.assert_close(pre, crosscoder.pre_activations(x))
    torch.testing.assert_close(
        torch.einsum("bh,hnd->bnd", f, folded.W_dec) + folded.b_dec, crosscoder.decode(f)
    )
    with pytest.raises(ValueError, match="folded already"):
        folded.folded()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
def test_a_saved_crosscoder_comes_back(tmp_path, sparsity, fold):
    source = {
        "suite": "tiny",
        "revisions": ["a", "b", "c"],
        "layer": 2,
        "fingerprints": ["1", "2", "3"],
    }
    crosscoder = make(sparsity, threshold=3.0, dtype=torch.float32, source=source)
    crosscoder = crosscoder.folded() if fold else crosscoder
    crosscoder.save(tmp_path / "runs" / "crosscoder")
    crosscoder.save(tmp_path / "runs" / "crosscoder")  # a second time, over the first
    back = Crosscoder.load(tmp_path / "runs" / "crosscoder")
    x = raw(9, dtype=torch.float32)
    assert torch.equal(back.encode(x), crosscoder.encode(x)) and torch.equal(back(x), crosscoder(x))
    assert torch.equal(back.decoder_norms(), crosscoder.decoder_norms())
    assert back.config == crosscoder.config and back.source == source and not back.training
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "config.json",
        "crosscoder",
        "crosscoder.safetensors",
        "runs",
    ]


def test_a_damaged_folder_is_named(tmp_path):
    folder = tmp_path / "crosscoder"
    with pytest.raises(FileNotFoundError, match=r"no saved crosscoder in .*: no such folder"):
        Crosscoder.load(folder)
    make().save(folder)
    weights, config = folder / "crosscoder.safetensors", folder / "config.json"
    whole, settings = weights.read_bytes(), json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "n_latents": H + 1}))
    with pytest.raises(ValueError, match=r"config\.json is not as it was written"):
        Crosscoder.load(folder)
    old = {k: v for k, v in settings.items() if k not in ("kind", "sha256", "checksum")}
    config.write_text(json.dumps({**old, "n_latents": H + 1}))
    sizes = r"(?s)do not fit its config.json.*W_dec.*\[20, 3, 8\].*\[21, 3, 8\]"
    with pytest.raises(ValueError, match=sizes):
        Crosscoder.load(folder)
    config.write_text(json.dumps({"model": "other"}))
    with pytest.raises(ValueError, match="lacks n_checkpoints"):
        Crosscoder.load(folder)
    write_json(config, {k: v for k, v in settings.items() if k != "checksum"}, checksum=True)
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"crosscoder\.safetensors is not as it was written"):
        Crosscoder.load(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no crosscoder\.safetensors in it"):
        Crosscoder.load(folder)


def test_a_crosscoder_of_version_0_1_is_read_and_may_be_saved_over(tmp_path):
    crosscoder = make(dtype=torch.float32)
    save_file(crosscoder.state_dict(), tmp_path / "crosscoder.safetensors")
    old = {**crosscoder.config, "folded": False, "source": {}, "versions": {}}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert torch.equal(Crosscoder.load(tmp_path).W_dec, crosscoder.W_dec)
    make(dtype=torch.float32, seed=5).save(tmp_path)
    assert Crosscoder.load(tmp_path).seed == 5


def test_other_checkpoints_are_refused():
    here = {"suite": "tiny", "revisions": ["a", "b", "c"], "layer": 2}
    crosscoder = make(source=dict(here))
    crosscoder.check_source(here)
    with pytest.raises(
        ValueError, match=r"revisions: trained on \['a', 'b', 'c'\], given \['a', 'c'"
    ):
        crosscoder.check_source({**here, "revisions": ["a", "c", "b"]})
    told = "layer: trained on 2, given 8; suite: trained on 'tiny', given 'pythia-160m'"
    with pytest.raises(ValueError, match=told):
        crosscoder.check_source({**here, "suite": "pythia-160m", "layer": 8})
    with pytest.raises(ValueError, match="reads 3 checkpoints"):
        make().check_source({**here, "revisions": ["a", "b"]})


def test_content_decides_and_names_are_a_hint():
    marks = ["0" * 32, "1" * 32, "2" * 32]
    source = {"suite": "old", "revisions": ["a", "b", "c"], "layer": 2, "fingerprints": marks}
    crosscoder = make(source={**source, "begins_with": 0})
    renamed = {**source, "suite": "new", "revisions": ["x", "y", "z"]}
    crosscoder.check_source(renamed)  # the same weights under other names
    with pytest.raises(ValueError, match="in another order"):
        crosscoder.check_source({**source, "fingerprints": marks[::-1]})
    with pytest.raises(ValueError, match="same names, different fingerprints"):
        crosscoder.check_source({**source, "fingerprints": ["9" * 32, *marks[1:]]})
    with pytest.raises(ValueError, match="suite: trained on 'old', given 'new'"):
        crosscoder.check_source({**renamed, "fingerprints": ["9" * 32, *marks[1:]]})
    with pytest.raises(ValueError, match="layer: trained on 2, given 3"):
        crosscoder.check_source({**renamed, "layer": 3})
    with pytest.raises(ValueError, match=r"text that begins with token 0.*begin with token 1"):
        crosscoder.check_source({**renamed, "begins_with": 1})
    old = make(source={**source, "fingerprints": ["0" * 16] * 3})
    with pytest.warns(UserWarning, match="fingerprints of another version"):
        old.check_source(source)


def test_under_autocast_only_products_are_rounded():
    """b_dec and b_enc are added in float32: rounded to bfloat16 they would be off by up to
    1/256.
    """
    crosscoder, x = make("l1", dtype=torch.float32), raw(6, dtype=torch.float32)
    with torch.no_grad():
        crosscoder.b_dec.fill_(1.003)
        crosscoder.b_enc.fill_(1.003)
        crosscoder.W_dec.zero_()
        crosscoder.W_enc.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        pre, rebuilt = crosscoder.pre_activations(x), crosscoder.decode_scaled(torch.zeros(6, H))
    assert (pre == 1.003).all() and (rebuilt == 1.003).all() and rebuilt.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_checkpoints": 1}, "n_checkpoints=1.*at least 2"),
        ({"n_latents": 0}, "n_latents=0"),
        ({"sparsity": "topk"}, "'topk' is not known; take one of batch_topk, l1"),
        ({"k": 21}, "k=21.*here 20"),
        ({"decoder_norm": 0.0}, "decoder_norm=0.0"),
        ({"scales": [1.0, 2.0]}, "give 3 finite numbers"),
        ({"scales": [1.0, 2.0, 0.0]}, "above 0"),
        ({"scales": [1.0, 1.0, float("inf")]}, "finite numbers above 0"),
        ({"k": 2.0}, "k=2.0: give a whole number"),
        ({"k": None}, "k=None: give a whole number"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Crosscoder(**{"n_checkpoints": N, "d_model": D, "n_latents": H, **settings})


def test_activations_are_checked():
    with pytest.raises(ValueError, match=r"shape \(5, 2, 8\).*3 checkpoints, 8 d_model"):
        make().encode(torch.zeros(5, 2, 8))
    with pytest.raises(ValueError, match=r"float32.*crosscoder is torch.float64.*crosscoder\.to\("):
        make().encode(torch.zeros(5, N, D))
