"""On a GPU everything comes out as on the CPU. Skipped where there is none."""

import numpy as np
import pytest
import torch

import ctt_helpers as ctt
from ctt_helpers import sparse
from ctt_helpers.crosscoder import largest_sizes
from ctt_helpers.training import TrainingRun

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision_are_given_as_they_are_summed(dtype):
    draw = torch.Generator("cuda").manual_seed(0)
    a, b = (torch.randn(64, 64, generator=draw, device="cuda").to(dtype) for _ in range(2))
    bias = torch.randn(64, generator=draw, device="cuda")
    for more in (None, bias):
        found = sparse.product(a, b, more)
        exact = a.double() @ b.double() + (0 if more is None else more.double())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)
    assert sparse.product(a.float(), b.float()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_largest_sizes_are_those_of_a_cpu(dtype):
    """In half precision up to those that are as good as equal."""
    draw = torch.Generator().manual_seed(0)
    pre, u = torch.randn(300, 200, generator=draw), torch.rand(200, generator=draw) + 0.5
    count = 3000
    smallest = largest_sizes(pre, u, count)[1]
    kept, found = largest_sizes(pre.cuda(), u.cuda(), count, dtype)
    near = 0 if dtype is None else float(smallest) * 2**-7
    assert abs(float(found) - float(smallest)) <= near
    kept = kept.cpu()
    assert len(kept.unique()) == count
    sizes = (pre * u).flatten()
    assert sizes[kept].min() >= smallest - near
    surely = (sizes > smallest + near).nonzero().flatten()
    assert set(surely.tolist()) <= set(kept.tolist()) and len(surely) > 0.95 * count


@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
def test_a_step_in_half_precision_is_near_one_of_a_cpu(sparsity):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(256, 3, 32, generator=draw)
    gradients = []
    for device in DEVICES:
        crosscoder = ctt.Crosscoder(3, 32, 192, sparsity, k=8, seed=0).to(device).train()
        config = ctt.TrainConfig(steps=100, k_anneal=0, bf16=device == "cuda", dead_after_tokens=1)
        run = TrainingRun(crosscoder, config)
        run.tokens = 10
        run.silent[:13] = 10
        run.step(x.to(device), log=False)
        scaled = [p.grad * run.adam.grad_scale for p in crosscoder.parameters()]
        gradients.append([gradient.cpu() for gradient in scaled])
    for on_cpu, on_gpu in zip(*gradients, strict=True):
        assert float((on_gpu - on_cpu).norm() / on_cpu.norm()) < 0.05
