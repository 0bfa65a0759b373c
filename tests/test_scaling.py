"""Latent scaling against least squares, and on crosscoders whose artefacts are made by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ctt_helpers as ctt
from ctt_helpers.controls import LatentScaling, artefacts, latent_scaling


def random_crosscoder(n, d, h, seed, sparsity="batch_topk") -> ctt.Crosscoder:
    draw = torch.Generator().manual_seed(seed)
    scales = 0.5 + torch.rand(n, generator=draw)
    crosscoder = ctt.Crosscoder(n, d, h, sparsity=sparsity, k=2, scales=scales, seed=seed)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3)
        crosscoder.threshold.fill_(1.0 if sparsity == "batch_topk" else 0.0)
    return crosscoder.double().eval()


def activations(n, d, tokens, seed) -> torch.Tensor:
    return torch.randn(
        tokens, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def least_squares(crosscoder, x) -> tuple[np.ndarray, ...]:
    """nu and beta by solving each problem on its own, with the target written out."""
    with torch.no_grad():
        f, recon = crosscoder.encode(x), crosscoder.decode_scaled(crosscoder.encode(x))
    scaled = x * crosscoder.scales[:, None]
    n, h = crosscoder.n_checkpoints, crosscoder.n_latents
    betas = np.full((2, n, h), np.nan)
    for i, c in itertools.product(range(h), range(n)):
        if f[:, i].any():
            d = max(crosscoder.W_dec[i].detach(), key=torch.linalg.norm)
            predictor = (f[:, i, None] * d).reshape(-1, 1)
            own = f[:, i, None] * crosscoder.W_dec[i, c].detach()
            for target, y in enumerate((scaled[:, c] - recon[:, c] + own, recon[:, c])):
                betas[target, c, i] = torch.linalg.lstsq(
                    predictor, y.reshape(-1, 1)
                ).solution.item()
    strongest = crosscoder.decoder_norms().detach().numpy().argmax(0)
    own = betas[:, strongest, np.arange(h)][:, None]
    return (*betas / np.where(own > 0, own, np.nan), *betas)


def fields(scaling: LatentScaling) -> tuple[np.ndarray, ...]:
    return (
        scaling.nu_error,
        scaling.nu_reconstruction,
        scaling.beta_error,
        scaling.beta_reconstruction,
    )


@settings(max_examples=15)
@given(st.integers(2, 4), st.integers(0, 1000), st.sampled_from(ctt.crosscoder.SPARSITIES))
def test_least_squares_give_the_same(n, seed, sparsity):
    crosscoder, x = random_crosscoder(n, 6, 9, seed, sparsity), activations(n, 6, 40, seed)
    scaling = latent_scaling(crosscoder, [x])
    for found, wanted in zip(fields(scaling), least_squares(crosscoder, x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)
    own = scaling.nu_error[scaling.strongest, np.arange(9)]
    np.testing.assert_allclose(own[~np.isnan(own)], 1)


@settings(max_examples=15)
@given(
    st.permutations(range(3)),
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_batches_do_not_matter_and_permuting_the_checkpoints_permutes(order, sizes, seed):
    crosscoder, x = random_crosscoder(3, 5, 8, seed), activations(3, 5, sum(sizes), seed)
    whole = latent_scaling(crosscoder, [x])
    assert whole.n_tokens == len(x)
    for found, wanted in zip(
        fields(latent_scaling(crosscoder, x.split(sizes))), fields(whole), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)
    permuted = ctt.Crosscoder(3, 5, 8, k=2, scales=crosscoder.scales[order]).double().eval()
    for name, parameter in permuted.named_parameters():
        axis = {"b_enc": None, "W_dec": 1}.get(name, 0)
        value = getattr(crosscoder, name).detach()
        parameter.data = value if axis is None else value.index_select(axis, torch.tensor(order))
    permuted.threshold = crosscoder.threshold
    moved = latent_scaling(permuted, [x[:, order]])
    for found, wanted in zip(
        (*fields(moved), moved.written), (*fields(whole), whole.written), strict=True
    ):
        np.testing.assert_allclose(found, wanted[order], rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(np.array(order)[moved.strongest], whole.strongest)


def handmade(decoder: torch.Tensor, read: torch.Tensor) -> ctt.Crosscoder:
    """An "l1" crosscoder with these decoder vectors [h, n, d] and encoder [n, d, h], without
    biases.
    """
    crosscoder = (
        ctt.Crosscoder(decoder.shape[1], decoder.shape[2], len(decoder), sparsity="l1")
        .double()
        .eval()
    )
    with torch.no_grad():
        crosscoder.W_dec.copy_(decoder)
        crosscoder.W_enc.copy_(read)
    return crosscoder


@pytest.fixture
def artefact_kinds() -> tuple[ctt.Crosscoder, torch.Tensor]:
    """Features along the axes, two checkpoints. Latents: 0 shared, 1 shrunk at B, 2 and 3 twins, 4
    exclusive, 5 silent.

    Feature k has the direction e_k at both checkpoints (the exclusive one at A alone); latent 3
    reads the feature of 2.
    """
    g = torch.rand(400, 4, generator=torch.Generator().manual_seed(0)).double()
    g *= torch.rand(400, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    x = torch.zeros(400, 2, 6, dtype=torch.float64)
    x[:, 0, :4], x[:, 1, :3] = g, g[:, :3]
    decoder, read = (
        torch.zeros(6, 2, 6, dtype=torch.float64),
        torch.zeros(2, 6, 6, dtype=torch.float64),
    )
    for latent, (axis, where) in enumerate(
        [(0, [0, 1]), (1, [0]), (2, [0]), (2, [1]), (3, [0]), (5, [0])]
    ):
        decoder[latent, where, axis] = 1
        read[0, axis, latent] = 1
    return handmade(decoder, read), x


def test_artefacts_made_by_hand_are_told_apart(artefact_kinds):
    crosscoder, x = artefact_kinds
    scaling = latent_scaling(crosscoder, [x])
    np.testing.assert_allclose(scaling.nu_error[1], [1, 1, 0, 1, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(scaling.nu_error[0, :5], [1, 1, 1, 0, 1], atol=1e-12)
    np.testing.assert_allclose(scaling.nu_reconstruction[1], [1, 0, 1, 1, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(scaling.nu_reconstruction[0, 3], 1)
    np.testing.assert_array_equal(scaling.written[1], [1, 0, 0, 1, 0, 0])
    table = artefacts(ctt.rel_dec(crosscoder.decoder_norms()), scaling, ["A", "B"])
    assert dict(zip(table["feature"], table["verdict"], strict=True)) == {
        1: "shrinkage",
        2: "decoupled",
        3: "decoupled",
        4: "genuine",
        5: "undefined",
    }
    assert table["checkpoint"].tolist() == ["A", "A", "B", "A", "A"]


def test_a_latent_used_at_one_checkpoint_but_written_at_both_is_no_artefact(artefact_kinds):
    crosscoder, x = artefact_kinds
    used = np.tile([[0.9], [0.1]], 6)
    table = artefacts(used, latent_scaling(crosscoder, [x]), ["A", "B"]).set_index("feature")
    assert table.loc[0, "verdict"] == "written elsewhere"
    assert table.loc[3, "verdict"] == "written elsewhere"  # written at B, said to be specific to A
    assert table.loc[4, "verdict"] == "genuine"


def test_a_feature_half_as_strong_has_half_the_factor(artefact_kinds):
    crosscoder, x = artefact_kinds
    x[:, 1, 1] *= 0.5
    assert latent_scaling(crosscoder, [x]).nu_error[1, 1] == pytest.approx(0.5)


def test_float32_is_close_enough(artefact_kinds):
    crosscoder, x = random_crosscoder(3, 16, 40, 0), activations(3, 16, 2000, 0)
    exact = latent_scaling(crosscoder, [x])
    single = latent_scaling(crosscoder.float(), x.float().split(300))
    np.testing.assert_allclose(single.beta_error, exact.beta_error, atol=1e-4)
    np.testing.assert_allclose(single.beta_reconstruction, exact.beta_reconstruction, atol=1e-4)


def test_what_cannot_be_measured_is_refused(artefact_kinds):
    crosscoder, x = artefact_kinds
    with pytest.raises(ValueError, match="no tokens"):
        latent_scaling(crosscoder, [])
    with pytest.raises(ValueError, match="folded"):
        latent_scaling(crosscoder.folded(), [x])
    with pytest.raises(ValueError, match="names"):
        artefacts(np.full((2, 6), 0.5), latent_scaling(crosscoder, [x]), ["A"])
