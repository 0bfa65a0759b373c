"""Crosscoders and autoencoders of other libraries: files of their form, made here, and their own
code where it is installed (`make test-company`).
"""

import json

import numpy as np
import pytest
import torch
from hub_cache import put
from hypothesis import given
from hypothesis import strategies as st
from models import random_suite, some_pairs, some_text
from safetensors.torch import load_file, save_file

import ctt_helpers as ctt
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.dictionary import Dictionary
from ctt_helpers.sources.formats import (
    from_dictionary_learning,
    from_saelens,
    to_dictionary_learning,
    to_saelens,
)

N, D, H = 3, 8, 40


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To 1e-5 of the largest."""
    return bool((a - b).abs().max() <= 1e-5 * a.abs().max().clamp_min(1e-30))


def draw(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def raw(tokens: int = 64, seed: int = 1) -> torch.Tensor:
    """Activations of different sizes, away from 0."""
    normal = draw(seed)
    return normal(tokens, N, D) * torch.tensor([1.0, 5.0, 40.0])[:, None] + 10 * normal(N, D)


# ---- dictionary_learning


def their_state(sparse: bool, normalised: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a CrossCoder's or a BatchTopKCrossCoder's state is."""
    normal = draw(seed)
    state = {
        "encoder.weight": normal(N, D, H),
        "encoder.bias": normal(H),
        "decoder.weight": normal(N, H, D) * normal(H)[:, None].abs(),
        "decoder.bias": normal(N, D),
        "code_normalization_id": torch.tensor(1),
        "activation_mean": torch.full((N, D), torch.nan),
        "activation_std": torch.full((N, D), torch.nan),
        "activation_global_scale": torch.ones(N),
        "target_rms": torch.tensor(1.0),
    }
    if normalised:
        x = raw(512)
        state["activation_mean"], state["activation_std"] = x.mean(0), x.std(0)
        state["activation_global_scale"] = 1 / x.std(0).square().sum(-1).add(1e-8).sqrt()
    if sparse:
        state |= {"k": torch.tensor(6, dtype=torch.int32), "threshold": torch.tensor(9.0)}
    return state


def their_forward(state: dict[str, torch.Tensor], x: torch.Tensor) -> tuple:
    """Codes and reconstructions by their formulas, in float64."""
    state = {name: tensor.double() for name, tensor in state.items()}
    x = x.double()
    mean, scale = state["activation_mean"][None], state["activation_global_scale"][None, :, None]
    normalised = not bool(mean.isnan().any())
    z = (x - mean) * scale if normalised else x
    f = torch.einsum("tld,ldf->tf", z, state["encoder.weight"]) + state["encoder.bias"]
    f = f.relu()
    if "threshold" in state:
        f = f * (f * state["decoder.weight"].norm(dim=2).sum(0) > state["threshold"])
    rebuilt = torch.einsum("tf,lfd->tld", f, state["decoder.weight"]) + state["decoder.bias"]
    return f, rebuilt / (scale + 1e-8) + mean if normalised else rebuilt


def saved(folder, state, settings=None, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    if name.endswith(".pt"):
        torch.save(state, folder / name)
    else:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


@given(sparse=st.booleans(), normalised=st.booleans(), seed=st.integers(0, 99))
def test_a_crosscoder_of_theirs_gives_the_same(tmp_path_factory, sparse, normalised, seed):
    state, x = their_state(sparse, normalised, seed), raw(seed=seed + 1)
    if not normalised:
        x = x / 40
    folder = saved(tmp_path_factory.mktemp("theirs"), state)
    f, rebuilt = their_forward(state, x)
    crosscoder = from_dictionary_learning(folder)
    with torch.no_grad():
        assert close(f.float(), crosscoder.encode(x)) and close(rebuilt.float(), crosscoder(x))
    assert 1 < (f > 0).sum(1).double().mean() < H  # neither none nor all
    assert crosscoder.sparsity == ("batch_topk" if sparse else "l1") and not crosscoder.training
    # and out again: the same file, but for the means, which are in the biases
    to_dictionary_learning(crosscoder, folder / "again")
    back = from_dictionary_learning(folder / "again")
    again = load_file(folder / "again" / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(back(x), crosscoder(x))
    assert set(again) == set(state) and torch.equal(back.scales, crosscoder.scales)
    assert close(their_forward(again, x)[1], rebuilt)
    assert torch.allclose(
        again["activation_global_scale"], state["activation_global_scale"], rtol=1e-6
    )


@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
def test_ours_in_their_form_and_back(tmp_path, sparsity):
    crosscoder = Crosscoder(N, D, H, sparsity, k=5, seed=4, scales=[0.9, 0.2, 0.03]).eval()
    with torch.no_grad():
        crosscoder.threshold.fill_(1.3)
        crosscoder.b_dec.add_(0.3)
        x = raw()
        to_dictionary_learning(crosscoder, tmp_path / "out")
        back = from_dictionary_learning(tmp_path / "out", source={"suite": "mine"})
        assert torch.equal(crosscoder.encode(x), back.encode(x))
        assert close(crosscoder(x), back(x))
        state = load_file(tmp_path / "out" / "model.safetensors")
        f, rebuilt = their_forward(state, x)
        assert close(crosscoder.encode(x), f.float()) and close(crosscoder(x), rebuilt.float())
        # their library would make the same scale of the deviations
        again = 1 / state["activation_std"].square().sum(-1).add(1e-8).sqrt()
        assert torch.allclose(again, crosscoder.scales, rtol=1e-5)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["num_layers"] == N and ("k" in settings) == (sparsity == "batch_topk")
    assert torch.allclose(crosscoder.decoder_norms(), back.decoder_norms(), rtol=1e-5)
    assert back.source == {"suite": "mine"}
    with pytest.raises(FileExistsError, match="is there already"):
        to_dictionary_learning(crosscoder, tmp_path / "out")
    # folded: without a normaliser, so that earlier versions of theirs read it, too
    folded = crosscoder.folded()
    if sparsity == "l1":
        to_dictionary_learning(folded, tmp_path / "folded")
        assert "target_rms" not in json.loads((tmp_path / "folded" / "config.json").read_text())
        with torch.no_grad():
            assert close(from_dictionary_learning(tmp_path / "folded")(x), crosscoder(x))
    else:
        with pytest.raises(ValueError, match=r"folded, and its threshold.*Give the original"):
            to_dictionary_learning(folded, tmp_path / "folded")


def test_every_place_and_layout_of_theirs(tmp_path, monkeypatch):
    state, x = their_state(True, True), raw()
    rebuilt = their_forward(state, x)[1].float()

    def same(crosscoder):
        with torch.no_grad():
            return close(rebuilt, crosscoder(x))

    # a training's folder, with ae.pt and settings around settings; compiled; a file alone
    training = {"trainer": {"dict_class": "BatchTopKCrossCoder"}, "buffer": {}}
    assert same(from_dictionary_learning(saved(tmp_path / "a", state, training, "ae.pt")))
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    saved(tmp_path / "b", compiled, name="model_7.pt")
    assert same(from_dictionary_learning(tmp_path / "b" / "model_7.pt"))
    # halves are read as they are
    halves = {
        name: t.bfloat16() if t.is_floating_point() and name != "threshold" else t
        for name, t in their_state(True, False).items()
    }
    crosscoder = from_dictionary_learning(saved(tmp_path / "c", halves))
    expected = their_forward(halves, x / 40)[1].float()
    with torch.no_grad():
        assert crosscoder.W_enc.dtype == torch.float32 and close(expected, crosscoder(x / 40))
    # from before there was a normaliser, and a name for the size of codes
    old = {
        name: t for name, t in their_state(True, False).items()
        if not name.startswith(("activation", "target", "code"))
    }  # fmt: skip
    with pytest.warns(UserWarning, match="does not say how codes are normalised"):
        crosscoder = from_dictionary_learning(saved(tmp_path / "d", old))
    expected = their_forward(their_state(True, False), x / 40)[1].float()
    with torch.no_grad():
        assert close(expected, crosscoder(x / 40))
    # one that reads some of the layers that it writes, in another order
    part = their_state(False, False) | {"encoder.weight": draw(5)(2, D, H)}
    settings = {"encoder_layers": [2, 0]}
    crosscoder = from_dictionary_learning(saved(tmp_path / "e", part, settings))
    f = torch.einsum("tld,ldf->tf", x[:, [2, 0]], part["encoder.weight"]) + part["encoder.bias"]
    with torch.no_grad():
        assert close(f.relu(), crosscoder.encode(x))
    # from the hub's cache
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    saved(tmp_path / "f", state, {"activation_dim": D, "dict_size": H})
    files = {file.name: file.read_bytes() for file in (tmp_path / "f").iterdir()}
    put(tmp_path / "hub", "org/theirs", "main", files)
    assert same(from_dictionary_learning("org/theirs"))
    with pytest.raises(ValueError, match="from_dictionary_learning"):
        Crosscoder.from_pretrained("org/theirs")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"code_normalization_id": torch.tensor(2)}, "normalisation SAE.*no crosscoder of ours"),
        ({"code_normalization_id": torch.tensor(3)}, "normalisation MIXED"),
        ({"code_normalization_id": torch.tensor(4)}, "normalisation NONE"),
        ({"code_normalization_id": torch.tensor(5), "threshold": torch.ones(N)}, "DECOUPLED"),
        ({"code_normalization_id": torch.tensor(9)}, "normalisation another"),
        ({"threshold": torch.ones(N)}, "3 thresholds; ours has one"),
        ({"threshold": None}, "k or a threshold, and not both"),
        ({"threshold": torch.tensor(torch.nan)}, "threshold holds numbers that are not finite"),
        ({"encoder.bias": None}, r"lacks encoder\.bias: it is no CrossCoder"),
        ({"encoder.weight": torch.zeros(2, D, H)}, "its sizes do not fit"),
        ({"decoder.bias": torch.zeros(N, D + 1)}, "its sizes do not fit"),
        ({"encoder.weight": torch.full((N, D, H), torch.inf)}, r"encoder\.weight holds numbers"),
        ({"activation_std": None}, "lacks activation_std"),
        ({"activation_mean": torch.zeros(N, 2)}, "its normaliser does not fit"),
        ({"activation_global_scale": torch.zeros(N)}, "scales that are no numbers above 0"),
    ],
)
def test_what_has_no_equal_is_refused(tmp_path, change, told):
    state = their_state(True, True) | change
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ValueError, match=rf"model\.safetensors.*(?:{told})"):
        from_dictionary_learning(saved(tmp_path / "x", state))


def test_a_plain_crosscoder_has_no_size_of_codes(tmp_path):
    """Theirs weighs its penalty by it, in training; its codes are the same whatever it is."""
    for number in (1, 2, 3, 4):
        state = their_state(False, True) | {"code_normalization_id": torch.tensor(number)}
        crosscoder = from_dictionary_learning(saved(tmp_path / str(number), state))
        with torch.no_grad():
            assert close(their_forward(state, raw())[1].float(), crosscoder(raw()))


def test_damaged_files_of_theirs(tmp_path):
    state = their_state(True, True)
    for name in ("model.safetensors", "ae.pt"):
        folder = saved(tmp_path / name, state, {}, name)
        whole = (folder / name).read_bytes()
        for cut in (0, 7, len(whole) // 2, len(whole) - 5):
            (folder / name).write_bytes(whole[:cut])
            with pytest.raises(ValueError, match=name):
                from_dictionary_learning(folder)
    (folder / name).write_bytes(whole)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        from_dictionary_learning(folder)
    with pytest.raises(FileNotFoundError, match="holds no weights of dictionary_learning"):
        from_dictionary_learning(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        from_dictionary_learning(tmp_path / "nothing")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_in_a_pickle_is_run(tmp_path):
    torch.save({"encoder.weight": Evil(tmp_path / "evil")}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae\.pt cannot be read"):
        from_dictionary_learning(tmp_path / "ae.pt")
    assert not (tmp_path / "evil").exists()
    torch.load(tmp_path / "ae.pt", weights_only=False)["encoder.weight"].close()
    assert (tmp_path / "evil").exists()  # it would have
    torch.save([torch.zeros(1)], tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae\.pt holds no weights by name"):
        from_dictionary_learning(tmp_path / "ae.pt")


@pytest.mark.parametrize("name", ["CrossCoder", "BatchTopKCrossCoder"])
@pytest.mark.parametrize("normalised", [False, True])
def test_with_their_own_code(tmp_path, name, normalised):
    theirs = pytest.importorskip("dictionary_learning", reason="dictionary_learning: no registry")
    if not hasattr(theirs, name):
        pytest.skip(f"this dictionary_learning is not the fork that has {name}")
    x = raw(256) if normalised else raw(256) / 40
    settings = {"activation_mean": x.mean(0), "activation_std": x.std(0), "target_rms": 4.0}
    torch.manual_seed(0)
    settings = settings if normalised else {}
    model = getattr(theirs, name)(D, H, N, **settings)
    with torch.no_grad():
        model.encoder.bias.normal_()
        model.decoder.bias.normal_()
        if name == "BatchTopKCrossCoder":
            model.threshold.fill_(2.0)
        f, rebuilt = model.encode(x), model(x)
        model.save_pretrained(tmp_path / "theirs")
        ours = from_dictionary_learning(tmp_path / "theirs")
        assert close(f, ours.encode(x)) and close(rebuilt, ours(x)) and (f > 0).any()
        to_dictionary_learning(ours, tmp_path / "ours")
        back = getattr(theirs, name).from_pretrained(str(tmp_path / "ours"), from_hub=True)
        assert close(rebuilt, back(x))


# ---- SAELens

FORMS = ("standard", "topk", "topk by norm", "jumprelu")


def their_autoencoder(form: str, seed: int = 0, shifted: bool = True) -> tuple[dict, dict]:
    """cfg.json and weights, as SAELens 6 writes them."""
    normal = draw(seed)
    state = {
        "W_enc": normal(D, H), "b_enc": normal(H), "W_dec": normal(H, D), "b_dec": normal(D)
    }  # fmt: skip
    settings = {
        "d_in": D, "d_sae": H, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": shifted, "normalize_activations": "none",
        "reshape_activations": "none", "metadata": {"sae_lens_version": "6.54.12"},
        "architecture": form.split()[0],
    }  # fmt: skip
    if form.startswith("topk"):
        settings |= {"k": 7, "rescale_acts_by_decoder_norm": form == "topk by norm"}
    if form == "jumprelu":
        state["threshold"] = normal(H) * 3 + 3
    return settings, state


def their_codes(settings: dict, state: dict, x: torch.Tensor) -> tuple:
    """Codes and reconstructions by SAELens' formulas, in float64. x: [tokens, d_in]."""
    state = {name: tensor.double() for name, tensor in state.items()}
    x = x.double() - state["b_dec"] * settings["apply_b_dec_to_input"]
    pre = x @ state["W_enc"] + state["b_enc"]
    W_dec = state["W_dec"]
    if settings.get("rescale_acts_by_decoder_norm"):
        norms = W_dec.norm(dim=-1)
        pre, W_dec = pre * norms, W_dec / norms[:, None]
    f = pre.relu()
    if settings["architecture"] == "topk":
        largest = pre.topk(settings["k"], dim=-1)
        f = torch.zeros_like(pre).scatter(-1, largest.indices, largest.values.relu())
    if settings["architecture"] == "jumprelu":
        f = f * (pre > state["threshold"])
    return f, f @ W_dec + state["b_dec"]


def write_autoencoder(folder, settings, state):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))
    return folder


@given(form=st.sampled_from(FORMS), shifted=st.booleans(), seed=st.integers(0, 99))
def test_an_autoencoder_gives_the_same(tmp_path_factory, form, shifted, seed):
    settings, state = their_autoencoder(form, seed, shifted)
    x = draw(seed + 1)(50, D) * 4 + 2
    folder = write_autoencoder(tmp_path_factory.mktemp("sae") / "a", settings, state)
    ours = from_saelens(folder)
    f, rebuilt = their_codes(settings, state, x)
    assert isinstance(ours, Dictionary) and ours.n_checkpoints == 1
    assert close(f.float(), ours.encode(x[:, None]))
    assert close(rebuilt.float(), ours(x[:, None])[:, 0])
    assert 1 < (f > 0).sum(1).double().mean() < H
    to_saelens(ours, folder / "again")
    back = from_saelens(folder / "again")
    assert torch.equal(back(x[:, None]), ours(x[:, None]))
    assert (
        json.loads((folder / "again" / "cfg.json").read_text())["architecture"] == form.split()[0]
    )
    again = load_file(folder / "again" / "sae_weights.safetensors")
    config = json.loads((folder / "again" / "cfg.json").read_text())
    assert close(their_codes(config, again, x)[1], rebuilt)


@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
@pytest.mark.parametrize("fold", [False, True])
def test_a_crosscoder_as_an_autoencoder_over_all_checkpoints(tmp_path, sparsity, fold):
    crosscoder = Crosscoder(N, D, H, sparsity, k=5, seed=4, scales=[0.9, 0.2, 0.03]).eval()
    with torch.no_grad():
        crosscoder.threshold.fill_(1.3)
        crosscoder.W_dec[3] = 0  # never active, where there is a threshold
        given = crosscoder.folded() if fold else crosscoder
        to_saelens(given, tmp_path / "out")
        settings = json.loads((tmp_path / "out" / "cfg.json").read_text())
        state = load_file(tmp_path / "out" / "sae_weights.safetensors")
        x = raw()
        f, rebuilt = their_codes(settings, state, x.flatten(1))
        assert close(crosscoder.encode(x), f.float())
        assert close(crosscoder(x).flatten(1), rebuilt.float())
        back = from_saelens(tmp_path / "out")
        assert back.n_checkpoints == N and close(crosscoder(x), back(x))
        assert close(crosscoder.encode(x), back.encode(x))
        assert close(crosscoder.raw_decoder()[0], back.raw_decoder()[0])
    assert settings["d_in"] == N * D and state["W_enc"].isfinite().all()
    assert (crosscoder.encode(x)[:, 3] > 0).any() == (sparsity == "l1")


def test_what_earlier_versions_of_saelens_wrote(tmp_path, monkeypatch):
    settings, state = their_autoencoder("topk")
    old = {
        "d_in": D, "d_sae": H, "dtype": "torch.float32", "hook_point": "blocks.1.hook_resid_post",
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}, "prepend_bos": True,
    }  # fmt: skip
    x = draw(1)(50, D)
    rebuilt = their_codes(settings, state, x)[1]
    folder = write_autoencoder(tmp_path / "old", old, state)
    assert close(rebuilt.float(), from_saelens(folder)(x[:, None])[:, 0])
    # in a subfolder of a repository
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = put(tmp_path / "hub", "org/saes", "main", {})
    write_autoencoder(snapshot / "blocks.1", old, state)
    ours = from_saelens("org/saes", "blocks.1")
    assert close(rebuilt.float(), ours(x[:, None])[:, 0])
    with pytest.raises(FileNotFoundError, match="org/saes at main is not in the cache"):
        from_saelens("org/saes", "blocks.2")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"architecture": "gated"}, "'gated' is not known; take one of standard, topk"),
        ({"architecture": "matryoshka_batchtopk"}, "is not known"),
        ({"architecture": "batchtopk"}, "in training.*save_inference_model"),
        ({"activation_fn": "tanh-relu"}, "its activation function is tanh-relu"),
        ({"normalize_activations": "layer_norm"}, "divides by something of each token"),
        ({"normalize_activations": "constant_norm_rescale"}, "divides by something"),
        ({"normalize_activations": "expected_average_only_in"}, "factor is not in the file"),
        ({"normalize_activations": True}, "factor is not in the file"),
        ({"reshape_activations": "hook_z"}, "reshape_activations='hook_z' is not read"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor=True is not read"),
        ({"architecture": "topk", "k": 0}, "k=0: give a whole number"),
        ({"architecture": "topk"}, "k=None: give a whole number"),
        ({"architecture": "topk", "k": 99}, "k=99 of 40 latents"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
        ({"d_in": None}, "it has no d_in"),
    ],
)
def test_autoencoders_that_cannot_be_read(tmp_path, change, told):
    settings, state = their_autoencoder("standard")
    settings = {key: value for key, value in (settings | change).items() if value is not None}
    with pytest.raises(ValueError, match=told):
        from_saelens(write_autoencoder(tmp_path / "x", settings, state))


def test_weights_that_do_not_fit(tmp_path):
    settings, state = their_autoencoder("standard")
    for change, told in (
        ({"b_enc": torch.zeros(H + 1)}, r"b_enc of shape \(41,\) does not fit"),
        ({"W_enc": torch.zeros(H)}, "does not fit"),
        ({"W_dec": torch.full((H, D), torch.nan)}, "W_dec holds numbers that are not finite"),
    ):
        with pytest.raises(ValueError, match=told):
            from_saelens(write_autoencoder(tmp_path / "x", settings, state | change))
    folder = write_autoencoder(tmp_path / "x", settings, state)
    with pytest.raises(ValueError, match="takes 8 numbers, which 3 checkpoints cannot share"):
        from_saelens(folder, n_checkpoints=3)
    with pytest.raises(ValueError, match=r"do not fit this autoencoder.*1 checkpoints, 8 d_model"):
        from_saelens(folder).encode(torch.zeros(4, 3, D))
    whole = (folder / "sae_weights.safetensors").read_bytes()
    for cut in (0, 9, len(whole) - 1):
        (folder / "sae_weights.safetensors").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"sae_weights\.safetensors"):
            from_saelens(folder)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no sae_weights\.safetensors"):
        from_saelens(folder)
    with pytest.raises(FileNotFoundError, match=r"holds no cfg\.json"):
        from_saelens(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_with_the_code_of_saelens(tmp_path, form):
    pytest.importorskip("sae_lens", reason="sae_lens is not here: make test-company")
    from sae_lens import SAE

    settings, state = their_autoencoder(form)
    x = draw(3)(50, D) * 4
    folder = write_autoencoder(tmp_path / "theirs", settings, state)
    theirs, ours = SAE.load_from_disk(folder), from_saelens(folder)
    to_saelens(ours, tmp_path / "ours")
    back = SAE.load_from_disk(tmp_path / "ours")
    crosscoder = Crosscoder(N, D, H, k=5, scales=[0.9, 0.2, 0.03]).eval()
    with torch.no_grad():
        crosscoder.threshold.fill_(1.3)
        assert close(theirs.encode(x), ours.encode(x[:, None]))
        assert close(theirs(x), ours(x[:, None])[:, 0]) and close(theirs(x), back(x))
        assert type(theirs) is type(back)
        to_saelens(crosscoder, tmp_path / "crosscoder")
        whole = SAE.load_from_disk(tmp_path / "crosscoder")
        assert close(crosscoder(raw()).flatten(1), whole(raw().flatten(1)))


def test_an_autoencoder_goes_through_the_evaluation_and_the_effects(tmp_path):
    """At one checkpoint; one whose latents are the directions themselves costs nothing."""
    suite, d = random_suite(tmp_path / "suite"), 32
    ckpts = suite.checkpoints(["step100"], device="cpu")
    eye = torch.eye(d)
    state = {
        "W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye], 0),
        "b_enc": torch.zeros(2 * d), "b_dec": torch.zeros(d),
    }  # fmt: skip
    settings = their_autoencoder("standard")[0] | {"d_in": d, "d_sae": 2 * d}
    folder = write_autoencoder(tmp_path / "sae", settings, state)
    ours = from_saelens(folder, source=ckpts.source)
    report = ctt.evaluate(ours, ckpts, some_text())
    np.testing.assert_allclose(report.explained_variance, 1, atol=1e-6)
    np.testing.assert_allclose(report.dce, 0, atol=1e-5)
    effects = ctt.indirect_effects(ours, ckpts, some_pairs(), "ablation")
    assert effects.mean.shape == (1, 2 * d) and np.abs(effects.mean).max() > 0
    other = from_saelens(folder, source=suite.checkpoints(["step0"], device="cpu").source)
    with pytest.raises(ValueError, match="belongs to other checkpoints"):
        ctt.evaluate(other, ckpts, some_text())
