"""Products with few active latents, and a training step made of them: the same as whole matrices
and autograd, and without a wait for a GPU.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import training as benchmark
from ctt_helpers import sparse
from ctt_helpers.crosscoder import Crosscoder, largest_sizes
from ctt_helpers.training import BETAS, CLIP, TrainConfig, TrainingRun

sizes = st.integers(1, 7)
seeds = st.integers(0, 2**31)
FORMS = ["whole", "active alone", "few columns at a time"]


def normal(*shape: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@given(sizes, sizes, sizes, st.floats(0, 1), st.sampled_from(FORMS), st.booleans(), seeds)
def test_all_forms_are_whole_products_with_autograd(
    tokens, latents, width, share, form, penalised, seed
):
    with pytest.MonkeyPatch.context() as patch:
        if form == "few columns at a time":
            for name, value in {"IN_CACHE": 4, "FEWEST_COLUMNS": 2, "OFTEN": 0}.items():
                patch.setattr(sparse, name, value)
        check_products(tokens, latents, width, share, form, penalised, seed)


def check_products(tokens, latents, width, share, form, penalised, seed):
    x, W_enc = normal(tokens, width, seed=seed), normal(latents, width, seed=seed + 1)
    W_dec, b_enc = normal(latents, width, seed=seed + 2), normal(latents, seed=seed + 3)
    weights = [W_enc, W_dec, b_enc]
    for weight in weights:
        weight.requires_grad_()
    kept = torch.rand(tokens, latents, generator=torch.Generator().manual_seed(seed)) < share
    price = normal(latents, seed=seed + 4) if penalised else torch.zeros(latents).double()

    pre = x @ W_enc.T + b_enc
    f = pre.relu() * kept
    rebuilt = f @ W_dec
    loss = (rebuilt - x).pow(3).sum() + (f.sum(0) * price).sum()
    wanted = torch.autograd.grad(loss, weights)

    if form != "whole":
        places = (kept & (pre > 0)).flatten().nonzero().squeeze(1)
        code = sparse.SparseCode(places, pre.detach().flatten()[places], tokens, latents)
    else:
        code = sparse.DenseCode(f.detach())
    with torch.no_grad():
        found = code.times(code.values, W_dec)
        torch.testing.assert_close(found, rebuilt)
        torch.testing.assert_close(code.per_latent(code.values), f.sum(0))
        by_rebuilt = 3 * (found - x).square()
        by_f = code.products(by_rebuilt, W_dec, price if penalised else None)
        by_decoder = code.transposed_times(code.values, by_rebuilt)
        given = (code.transposed_times(by_f, x), by_decoder, code.per_latent(by_f))
        torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("chosen", [False, True])
def test_few_active_latents_are_taken_alone(density, chosen):
    pre = normal(40, 50, seed=1)
    kept = (pre.flatten() > pre.quantile(1 - density)).nonzero().squeeze(1)
    whole = torch.zeros(2000, dtype=pre.dtype).scatter(0, kept, pre.flatten()[kept]).view(40, 50)
    code = sparse.code_of(pre, kept) if chosen else sparse.code_of(whole)
    assert isinstance(code, sparse.DenseCode if density == 0.5 else sparse.SparseCode)
    W = normal(50, 8, seed=2)
    torch.testing.assert_close(code.times(code.values, W), whole.relu() @ W)
    low = sparse.code_of(pre, kept, dtype=torch.bfloat16)
    assert isinstance(low, sparse.DenseCode) and low.values.dtype == torch.bfloat16


@settings(max_examples=60)
@given(
    st.integers(1, 300),
    st.sampled_from([61, 64, 100, 122, 400]),
    st.integers(1, 30),
    st.sampled_from(["even", "ties", "rows", "columns", "all one", "negative"]),
    seeds,
)
def test_the_largest_are_those_of_a_sort(tokens, latents, k, kind, seed):
    draw = torch.Generator().manual_seed(seed)
    pre = torch.randn(tokens, latents, generator=draw)
    if kind == "ties":
        pre = (3 * pre).round()
    elif kind == "rows":  # a few tokens have all of the large ones
        pre[:: 1 + tokens // 3] += 100
    elif kind == "columns":  # those that the sample meets are misleading
        pre[:, ::61] -= 100
        pre[:, ::67] += 100
    elif kind == "all one":
        pre = torch.ones(tokens, latents)
    elif kind == "negative":
        pre = -pre.abs()
    u = 0.5 + torch.rand(latents, generator=draw)
    kept, smallest = largest_sizes(pre, u, k * len(pre))
    sizes = (pre * u).flatten()
    count = min(k * tokens, len(sizes))
    assert torch.equal(kept, kept.unique()) and len(kept) == count
    wanted = sizes.sort(descending=True).values[:count]
    assert torch.equal(sizes[kept].sort(descending=True).values, wanted)
    assert float(smallest) == min(wanted[wanted > 0].tolist(), default=float("inf"))


# ---- a step


def reference_gradients(run: TrainingRun, x: torch.Tensor) -> list[torch.Tensor]:
    """By the equations and autograd, before clipping; in the order of `parameters()`."""
    own, config = run.crosscoder, run.config
    named = {name: p.detach().clone().requires_grad_() for name, p in own.named_parameters()}
    W_enc, W_dec = named["W_enc"], named["W_dec"]
    target = x * own.scales[:, None]
    all_f = (torch.einsum("bnd,ndh->bh", target, W_enc) + named["b_enc"]).relu()
    u = W_dec.pow(2).sum(-1).sqrt().sum(1)
    f = all_f
    if own.sparsity == "batch_topk":
        sizes = (all_f * u).flatten()
        chosen = sizes.sort(descending=True).indices[: run.k(run.done) * len(x)]
        f = all_f * torch.zeros_like(sizes).index_fill(0, chosen, 1.0).view_as(all_f)
    error = target - torch.einsum("bh,hnd->bnd", f, W_dec) - named["b_dec"]
    loss = error.pow(2).sum() / len(x) + run.penalty(run.done) * (f * u).sum() / len(x)
    dead = run.silent >= config.dead_after_tokens
    if own.sparsity == "batch_topk" and dead.any() and run.tokens >= config.dead_after_tokens:
        dead_sizes = torch.where(dead, all_f * u, 0)
        order = dead_sizes.sort(dim=1, descending=True).indices[:, : max(1, own.d_model // 2)]
        mask = torch.zeros_like(all_f).scatter(1, order, 1.0) * dead
        rebuilt = torch.einsum("bh,hnd->bnd", all_f * mask, W_dec)
        loss = loss + config.aux_weight * (error.detach() - rebuilt).pow(2).sum() / len(x)
    return list(torch.autograd.grad(loss, list(named.values())))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(1, 5),
    st.integers(2, 30),
    st.integers(1, 4),
    st.integers(1, 20),
    st.sampled_from(["batch_topk", "l1"]),
    st.sampled_from([0.0, 0.3]),
    st.floats(0, 1),
    st.sampled_from([0.0, 1.0]),
    seeds,
)
def test_a_step_has_the_gradients_of_the_equations(
    n, d, latents, k, tokens, sparsity, penalty, dead, below, seed
):
    """Over sizes, k, dead latents, penalties, and both forms of the code."""
    crosscoder = Crosscoder(n, d, latents, sparsity, min(k, latents), scales=[0.5, 2, 1, 3][:n])
    crosscoder = crosscoder.double()
    with torch.no_grad():
        for number, parameter in enumerate(crosscoder.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed + number))
    config = TrainConfig(
        l1=penalty, decoder_norm_penalty=penalty, penalty_warmup=0.0, dead_after_tokens=50
    )
    run = TrainingRun(crosscoder.train(), config)
    run.done = run.tokens = 400
    run.silent[torch.rand(latents, generator=torch.Generator().manual_seed(seed)) < dead] = 70
    x = normal(tokens, n, d, seed=seed + 9)
    wanted = reference_gradients(run, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse, "SPARSE_BELOW", below)
        run.step(x, log=False)
    # Adam divides by it on its way through the gradient
    shorter, norm = run.adam.grad_scale, torch.stack([g.norm() for g in wanted]).norm()
    torch.testing.assert_close(float(shorter), max(1.0, float(norm / CLIP)), rtol=1e-6, atol=0)
    named = crosscoder.named_parameters()
    for (name, parameter), gradient in zip(named, wanted, strict=True):
        torch.testing.assert_close(parameter.grad * shorter, gradient, rtol=1e-9, atol=1e-11)
        moment = run.adam.state[run.lying[name]]["exp_avg"] / (1 - BETAS[0]) * shorter
        if name == "W_enc":
            moment = moment.permute(1, 2, 0)
        torch.testing.assert_close(moment, gradient, rtol=1e-9, atol=1e-11)


def losses(change, steps: int = 30) -> torch.Tensor:
    """Of a short training; `change` is called with the crosscoder before each step."""
    crosscoder = Crosscoder(3, 16, 48, k=4, seed=0).train()
    x = normal(256, 3, 16, seed=3).float()
    change(crosscoder, -1)
    run = TrainingRun(crosscoder, TrainConfig(steps=steps, lr=1e-2, k_anneal=0.1))
    told = []
    for step in range(steps):
        change(crosscoder, step)
        told.append(run.step(x, log=True)["loss"])
    return torch.stack(told)


def lie_otherwise(crosscoder: Crosscoder, step: int) -> None:
    if step < 0:
        crosscoder.load_state_dict(crosscoder.state_dict(), assign=True)
        turned = crosscoder.W_dec.detach().permute(1, 0, 2).contiguous().permute(1, 0, 2)
        crosscoder.W_dec = torch.nn.Parameter(turned)


def move(crosscoder: Crosscoder, step: int) -> None:
    if step in (3, 20):
        crosscoder.double().float()


@pytest.mark.parametrize("change", [lie_otherwise, move])
def test_weights_may_lie_as_they_like_and_move(change):
    wanted = losses(lambda crosscoder, step: None)
    assert wanted[-1] < 0.8 * wanted[0]
    torch.testing.assert_close(losses(change), wanted, rtol=1e-4, atol=1e-4)


def test_frozen_weights_stay():
    crosscoder = Crosscoder(3, 16, 48, k=4, seed=0).train()
    crosscoder.b_dec.requires_grad_(False)
    before = copy.deepcopy(crosscoder.state_dict())
    run = TrainingRun(crosscoder, TrainConfig(steps=30))
    for _ in range(3):
        run.step(normal(64, 3, 16, seed=3).float(), log=False)
    changed = {
        name for name, t in crosscoder.state_dict().items() if not torch.equal(t, before[name])
    }
    assert {"W_enc", "W_dec", "b_enc"} <= changed and "b_dec" not in changed
    trained = [run.crosscoder.W_enc, run.crosscoder.W_dec, run.crosscoder.b_enc]
    norm = torch.stack([w.grad.norm() for w in trained]).norm() * run.adam.grad_scale
    torch.testing.assert_close(run.adam.grad_scale, (norm / CLIP).clamp_min(1))


def test_others_beside_the_dead_latents_change_nothing():
    """A GPU takes them in eights."""
    x = normal(64, 3, 16, seed=3)
    config = TrainConfig(steps=40, dead_after_tokens=64, lr=1e-2, k_anneal=0.1)
    weights = []
    for in_eights in (False, True):
        run = TrainingRun(Crosscoder(3, 16, 52, k=1, seed=2).double().train(), config)
        if in_eights:
            look = run._dying
            run._dying = lambda n, run=run, look=look: run._in_eights(look(n))
        for _ in range(20):
            told = run.step(x, log=True)
        dying = run._dying(64)
        assert told["aux"] > 0 and len(dying.unique()) == len(dying)
        assert set((run.silent >= 64).nonzero().flatten().tolist()) <= set(dying.tolist())
        assert (len(dying) % 8 == 0) == in_eights
        weights.append(run.crosscoder.state_dict())
    torch.testing.assert_close(weights[1], weights[0])
    run.silent[:] = 0
    assert len(run._in_eights(run.silent[:0])) == 0
    assert len(run._in_eights(run.silent[:49])) == 52  # all there are


def test_looking_for_dead_latents_now_and_then_changes_nothing(monkeypatch):
    """What may die before the next look is held ready, and counts from when it is dead."""
    x = normal(64, 3, 16, seed=3)
    config = TrainConfig(steps=40, dead_after_tokens=320, lr=1e-2, k_anneal=0.1)
    seen, weights = [], []
    for every in (1, 4):
        run = TrainingRun(Crosscoder(3, 16, 48, k=1, seed=2).double().train(), config)
        monkeypatch.setattr(run, "_steps_between_looks", lambda _, every=every: every)
        told = [run.step(x[step % 2 :: 2], log=True) for step in range(40)]
        seen.append(torch.stack([figures["aux"] for figures in told]))
        weights.append(run.crosscoder.state_dict())
    assert (seen[0] > 0).sum() > 10
    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(weights[1], weights[0])


class Moves(TorchDispatchMode):
    """Notes what goes from one device to another, which waits for the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        flat = [a for a in (*args, *(kwargs or {}).values(), found) if isinstance(a, torch.Tensor)]
        # a number on the CPU may be mixed with anything
        devices = {a.device.type for a in flat if a.ndim}
        if len(devices) > 1 or ("copy" in str(function) and len({a.device for a in flat}) > 1):
            self.seen.append(str(function))
        return found


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
def test_a_step_never_waits_for_the_device(sparsity, bf16):
    """On the `meta` device, where nothing can be read, every wait is an error."""
    crosscoder = Crosscoder(3, 8, 40, sparsity, 2).to("meta").train()
    config = TrainConfig(steps=500, dead_after_tokens=1000, bf16=bf16, decoder_norm_penalty=0.1)
    run = TrainingRun(crosscoder, config)
    # fused, it is of no use there
    run.adam = torch.optim.Adam(run.lying.values(), lr=1e-3, foreach=True)
    run.done = run.tokens = 2000
    run._dead_soon, run._looked = torch.zeros(7, dtype=torch.int64, device="meta"), run.done
    x = torch.zeros(16, 3, 8, device="meta")
    with Moves() as moves:
        for _ in range(3):
            figures = run.step(x, log=True)
    assert not moves.seen
    assert {figure.device.type for figure in figures.values()} == {"meta"}
    # the look itself would be seen
    run._looked = None
    if sparsity == "batch_topk":
        with pytest.raises((RuntimeError, NotImplementedError)):
            run.step(x, log=False)
    with Moves() as moves:
        torch.zeros(3).to("meta")
    assert moves.seen


def test_looks_are_rare_on_a_gpu():
    run = TrainingRun(Crosscoder(3, 8, 40).to("meta"), TrainConfig(dead_after_tokens=10**7))
    assert run._steps_between_looks(4096) == 20
    run = TrainingRun(Crosscoder(3, 8, 40).to("meta"), TrainConfig(dead_after_tokens=20_000))
    assert run._steps_between_looks(1024) == 4 and run._steps_between_looks(10**6) == 1


def test_the_encoder_lies_in_memory_as_its_gradient_comes():
    for made in (
        (first := Crosscoder(3, 8, 20)),
        copy.deepcopy(first),
        Crosscoder(3, 8, 20).double(),
        first.folded(),
        first.part([3, 1]),
    ):
        assert made.W_enc.permute(2, 0, 1).is_contiguous()
        state = made.state_dict()
        assert all(tensor.is_contiguous() for tensor in state.values())
        assert torch.equal(state["W_enc"], made.W_enc)
    run = TrainingRun(first.train(), TrainConfig())
    run.step(torch.randn(64, 3, 8, generator=torch.Generator().manual_seed(0)), log=False)
    for name, parameter in first.named_parameters():  # Adam takes all of them as they lie
        lying = run.lying[name]
        assert lying.data_ptr() == parameter.data_ptr() and parameter.numel() == lying.numel()
        assert parameter.grad.stride() == parameter.stride()
        assert lying.is_contiguous() and run.adam.state[lying]["exp_avg"].is_contiguous()


@pytest.mark.slow
def test_the_benchmark_runs_shrunk(tmp_path):
    """It also checks that what it compares has the same losses and gradients."""
    found = benchmark.main(["--shrink", "--threads", "1", "--out", str(tmp_path)])
    assert list(found) == ["training", "training_density", "training_checkpoints"]
    assert (found["training"][["ms", "against_ms", "gflop", "mbyte"]] > 0).all(axis=None)
    assert set(found["training"]["sparsity"]) == {"batch_topk", "l1"}
    gpu = benchmark.main(["--shrink", "--gpu-sizes", "--out", str(tmp_path)])
    assert set(gpu["training_gpu"]["precision"]) == {"bf16", "float32"}
    page = (tmp_path / "TABLES.md").read_text()
    assert all(f"### {name}.csv" in page for name in (*found, *gpu))
