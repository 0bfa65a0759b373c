"""Any number of checkpoints: 2, 5 and 32 go through the same code, and their order is but an
order.
"""

import numpy as np
import pytest
import torch
from models import random_suite, some_pairs, some_text

import ctt_helpers as ctt
from ctt_helpers import uncertainty
from ctt_helpers.planted import measures, plant, recovery

NUMBERS = (2, 5, 32)
COUNTS = {"emerge": 3, "persist": 2, "fade": 3}


def names_of(n: int) -> list[str]:
    return [f"step{i}" for i in range(n)]


@pytest.fixture(scope="module", params=NUMBERS)
def trained(request):
    """Planted features at n checkpoints, and a crosscoder trained on them."""
    n = request.param
    planted = plant(n, 40, COUNTS, density=0.2, noise=0.01, hurts=0.0, seed=n)
    # with 32 of them, vectors of the default norm would be too long together to begin with
    crosscoder = ctt.Crosscoder(n, 40, n_latents=10, k=2, decoder_norm=0.1)
    stream = ctt.TensorStream(planted.sample(6000)[0].float(), batch_size=256)
    # the penalty takes a latent out of checkpoints where it is not planted: here it is right to
    config = ctt.TrainConfig(steps=300, lr=4e-3, decoder_norm_penalty=0.5)
    ctt.train(crosscoder, stream, config, device="cpu")
    return n, planted, crosscoder


@pytest.fixture(scope="module", params=NUMBERS)
def models(request, tmp_path_factory):
    """n random models, and an untrained crosscoder that reads them."""
    n = request.param
    ckpts = random_suite(tmp_path_factory.mktemp(f"suite{n}"), n).checkpoints(layer=1, device="cpu")
    crosscoder = ctt.Crosscoder(n, ckpts.d_model, n_latents=20, k=4)
    with torch.no_grad():
        x = ctt.activations.stacked_activations(ckpts, some_pairs().input_ids)[:, 1:].flatten(0, 1)
        crosscoder.b_dec.copy_(x.mean(0))
    return n, ckpts, crosscoder.eval()


def shuffled(crosscoder: ctt.Crosscoder, order: list[int]) -> ctt.Crosscoder:
    """The same crosscoder with its checkpoints in another order."""
    config = crosscoder.config
    other = ctt.Crosscoder(
        **{k: v for k, v in config.items() if v is not None}, scales=crosscoder.scales[order]
    )
    with torch.no_grad():
        other.W_enc.copy_(crosscoder.W_enc[order])
        other.W_dec.copy_(crosscoder.W_dec[:, order])
        other.b_enc.copy_(crosscoder.b_enc)
        other.b_dec.copy_(crosscoder.b_dec[order])
        other.threshold.copy_(crosscoder.threshold)
    return other.eval()


@pytest.mark.slow
def test_planted_features_and_their_times_are_found_again(trained):
    n, planted, crosscoder = trained
    known = recovery(crosscoder, planted)
    assert known["found"].mean() > 0.8
    found = measures(crosscoder, planted, planted.sample(2000, seed=1)[0])
    assert found["RelIE"].shape == found["RelDec"].shape == (n, 10)
    latent, feature = known.loc[known["found"], ["latent", "feature"]].to_numpy().T
    written = planted.gains.numpy()[:, feature] > 0
    first, last = written.argmax(0), n - 1 - written[::-1].argmax(0)
    # the read-outs of 32 checkpoints fill most of the 40 dimensions, and magnify what a decoder is
    # off by
    for measure, share in (("RelDec", 1.0), ("RelIE", 0.7 if n > 5 else 1.0)):
        when = ctt.trajectory(found[measure], names_of(n)).set_index("feature").loc[latent]
        onset, end = (when[column].map(names_of(n).index).to_numpy() for column in ("onset", "end"))
        assert np.mean(onset == first) >= share and np.mean(end == last) >= share, measure
        # written evenly from onset to end: the centre of mass lies halfway
        off = np.abs(when["centre_of_mass"].to_numpy() - (first + last) / 2)
        assert np.median(off) < 0.05 * n, measure


def test_a_crosscoder_does_not_care_about_the_order_of_checkpoints(trained):
    n, planted, crosscoder = trained
    order = np.random.default_rng(0).permutation(n).tolist()
    other, x = shuffled(crosscoder, order), planted.sample(200, seed=2)[0].float()
    with torch.no_grad():
        f, g = crosscoder.encode(x), other.encode(x[:, order])
        torch.testing.assert_close(f, g, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            crosscoder.decode(f)[:, order], other.decode(g), rtol=1e-4, atol=1e-4
        )
    assert f.any()
    before, after = (ctt.rel_dec(c.decoder_norms()) for c in (crosscoder, other))
    np.testing.assert_allclose(before[order], after, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ablation", "atp"])
def test_effects_of_many_models(models, method):
    n, ckpts, crosscoder = models
    pairs = some_pairs()
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs, method)
    assert effects.mean.shape == (n, 20) and len(effects.error) == n
    ratios = ctt.rel_ie(effects.mean)
    active = ~np.isnan(ratios[0])
    assert active.any()
    np.testing.assert_allclose(ratios[:, active].sum(0), 1)
    # the strongest effect at the last checkpoint, by hand
    c, i = n - 1, int(np.abs(effects.mean[n - 1]).argmax())
    x = ctt.activations.stacked_activations(ckpts, pairs.input_ids, pairs.attention_mask)
    with torch.no_grad():
        f = crosscoder.encode(x) * (pairs.attention_mask[..., None] > 0)
        f[:, 0] = 0
        less = x[:, :, c] - f[..., [i]] * crosscoder.raw_decoder()[0][i, c]
        at = (pairs.attention_mask, pairs.answer_position, pairs.answers)
        m = [(a := ctt.logits_above(ckpts[c], s, *at))[:, 1] - a[:, 0] for s in (x[:, :, c], less)]
    exact = float((m[1] - m[0]).mean())
    assert effects.mean[c, i] == pytest.approx(
        exact, abs=1e-4 if method == "ablation" else 0.5 * abs(exact)
    )


def test_evaluation_of_many_models(models):
    n, ckpts, crosscoder = models
    report = ctt.evaluate(crosscoder, ckpts, some_text())
    table = report.to_frame()
    assert list(table["checkpoint"]) == ckpts.labels and len(table) == n
    always = table.drop(columns=["checkpoint", "ce_recovered"])  # a share of nothing is NaN
    assert np.isfinite(always.to_numpy(float)).all()


@pytest.mark.parametrize("n", NUMBERS)
def test_trajectories_and_their_draws_for_any_number(n):
    # feature i is flat from checkpoint i to the end, and 0 before
    effects = np.tril(np.ones((n, n)))
    ratios = ctt.rel_ie(effects)
    when = ctt.trajectory(ratios, names_of(n))
    assert list(when["onset"]) == names_of(n) and set(when["end"]) == {f"step{n - 1}"}
    np.testing.assert_allclose(when["centre_of_mass"], (np.arange(n) + n - 1) / 2)
    noise = np.random.default_rng(0).uniform(0.8, 1.2, (50, n, n))
    draws = uncertainty.rel_ie_draws(effects * noise)
    sure = uncertainty.trajectory_draws(draws, names_of(n), point=ratios)
    assert (sure["onset_probability"] == 1).all()
    inside = (sure["centre_of_mass_low"] <= when["centre_of_mass"] + 0.2) & (
        sure["centre_of_mass_high"] >= when["centre_of_mass"] - 0.2
    )
    assert inside.all()
    assert ctt.pairwise(effects).shape == (n, n, n)


def test_classes_are_refused_where_they_say_nothing():
    ratios = np.full((32, 4), 1 / 32)
    with pytest.raises(
        ValueError, match=r"two or three checkpoints, and here are 32.*Use trajectory"
    ):
        ctt.classify(ratios, names_of(32))
