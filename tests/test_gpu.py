"""On a GPU everything comes out as on the CPU. Skipped where there is none."""

import numpy as np
import pytest
import torch

import ctt_helpers as ctt

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")

TASK = "agreement/pp"
DEVICES = ("cpu", "cuda")


@pytest.fixture(scope="module")
def two():
    """On each device: checkpoints, crosscoder, pairs."""
    suite = ctt.load_suite("tiny")
    pairs = suite.pairs(TASK, split="find", n=48)
    found = []
    for device in DEVICES:
        ckpts = suite.checkpoints(suite.default_triplet, device=device, dtype="float32")
        crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder).to(device)
        found.append((crosscoder, ckpts, pairs))
    return found


def alike(values, rel=1e-2):
    """The second is the first, up to the rounding of another machine."""
    first, second = (np.asarray(value, dtype=float) for value in values)
    assert np.abs(first).max() > 0
    np.testing.assert_allclose(second, first, rtol=rel, atol=rel * np.abs(first).max())


@pytest.mark.parametrize("method", sorted(ctt.attribution.METHODS))
def test_effects(two, method):
    alike([ctt.indirect_effects(*setting, method).mean for setting in two])


@pytest.mark.parametrize("baseline", ["mean", "resample"])
def test_effects_of_another_baseline(two, baseline):
    partner = two[0][2].partners("subject") if baseline == "resample" else None
    given = {"baseline": baseline, "partner": partner}
    alike([ctt.indirect_effects(*setting, **given).mean for setting in two])
    alike([ctt.ablate(*setting, [283, 398], **given)["effect"] for setting in two])


def test_effects_read_from_one_checkpoint(two):
    text = ctt.load_suite("tiny").text(8_000, seed=1)
    means = []
    for crosscoder, ckpts, pairs in two:
        read_from = ctt.predict_others(ckpts, text)
        means.append(ctt.indirect_effects(crosscoder, ckpts, pairs, read_from=read_from).mean)
    alike(means)


def test_group_curves(two):
    rankings = [np.argsort(-np.abs(ctt.indirect_effects(*s, "atp").mean), axis=1) for s in two]
    curves = [
        ctt.ablation_curve(*setting, rankings[0][:, :10].tolist(), (1, 5, 10)) for setting in two
    ]
    alike([curve["effect"] for curve in curves])


def test_factorial_and_null(two):
    tables = []
    for crosscoder, ckpts, pairs in two:
        effects = ctt.indirect_effects(crosscoder, ckpts, pairs)
        random = ctt.indirect_effects(ctt.random_directions(crosscoder), ckpts, pairs)
        found = ctt.factorial_of(effects, pairs, null=random, n_draws=50)
        tables.append(found.strength)
        assert len(ctt.decide(effects, ctt.twins(pairs), null=random)) == crosscoder.n_latents
    alike(tables)


def test_models_stay_where_they_were_asked_for(two):
    for device, (_, ckpts, _) in zip(DEVICES, two, strict=True):
        assert {model.device.type for model in ckpts} == {device}


def test_behaviour(two):
    tables = []
    for _, ckpts, pairs in two:
        differences = [ctt.logit_differences(model, pairs) for model in ckpts]
        tables.append(ctt.behaviour_factorial(differences, pairs, n_draws=50)["strength"])
    alike(tables)


def test_a_cache_gives_a_gpu_the_batches_that_it_gives_a_cpu(two, tmp_path):
    text = ctt.load_suite("tiny").text(20_000, seed=0)
    for name, (_, ckpts, _) in zip(DEVICES, two, strict=True):
        cache = ctt.ActivationCache.build(ckpts, text, tmp_path / name)
        batches = [cache.stream(512, buffer_tokens=4096, device=d).batches(3) for d in DEVICES]
        for _ in range(20):
            on_cpu, on_gpu = map(next, batches)
            assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), on_cpu)
        given = {"batch_size": 512, "buffer_tokens": 4096, "cache_gb": 0}
        stream = ctt.ActivationStream(ckpts, text, **given)
        assert torch.equal(next(stream.batches(22)).cpu(), on_cpu)


def test_training_evaluation_and_examples(two):
    suite = ctt.load_suite("tiny")
    reports = []
    for _, ckpts, _ in two:
        stream = ctt.ActivationStream(ckpts, suite.text(20_000, seed=0), batch_size=512)
        crosscoder = ctt.Crosscoder(len(ckpts), ckpts.d_model, n_latents=128, k=8, seed=0)
        ctt.train(crosscoder, stream, ctt.TrainConfig(steps=60), device=str(ckpts[0].device))
        text = suite.text(8_000, split="validation", seed=1)
        reports.append(ctt.evaluate(crosscoder, ckpts, text).explained_variance)
        x = ctt.activations.stacked_activations(ckpts, text[:100]).flatten(0, 1)
        assert set(ctt.pca_baseline(x, x, 8)) == {"joint", "separate"}
        assert len(ctt.top_examples(crosscoder, ckpts, text, [0, 1], k=2)) == 2
        assert len(ctt.promoted_tokens(crosscoder, ckpts, 0, k=3))
    # other sums in another order, sixty times over
    np.testing.assert_allclose(reports[0], reports[1], atol=0.03)
