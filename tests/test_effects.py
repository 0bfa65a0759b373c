"""Effects against independent formulations (autograd through the latents, one-latent hooks), and
invariants.
"""

import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_model, random_suite, some_pairs, some_text, word_tokenizer
from safetensors.torch import save_file

import ctt_helpers as ctt
from ctt_helpers import attribution, hooks
from ctt_helpers.activations import stacked_activations
from ctt_helpers.attribution import METHODS, NEAR, NODES, WEIGHTS, Options, effects_from_gradient
from ctt_helpers.effects import Effects, _drawn_partners, clustered_stderr
from ctt_helpers.sources import checkpoints
from ctt_helpers.sources.published import data_folder

TINY_PP = data_folder("tiny") / "pairs" / "agreement_pp.jsonl"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Three random checkpoints in float64, a random crosscoder with scales and biases, pairs of
    different lengths.
    """
    suite = random_suite(tmp_path_factory.mktemp("suite"))
    ckpts = suite.checkpoints(device="cpu", dtype=torch.float64)
    return ckpts, make_crosscoder(ckpts), some_pairs(9)


def make_crosscoder(ckpts, n_latents=48):
    crosscoder = ctt.Crosscoder(
        len(ckpts), ckpts.d_model, n_latents, sparsity="l1", seed=1
    ).double()
    generator = torch.Generator().manual_seed(2)
    norms = stacked_activations(ckpts, some_text())[:, 1:].norm(dim=-1).mean((0, 1))
    with torch.no_grad():
        crosscoder.scales.copy_(ckpts.d_model**0.5 / norms)
        crosscoder.b_dec.add_(
            0.3 * torch.randn(crosscoder.b_dec.shape, generator=generator, dtype=torch.float64)
        )
        crosscoder.b_enc.sub_(0.05)
        crosscoder.W_dec.mul_(4.0)
    crosscoder.source = ckpts.source
    return crosscoder.eval()


def metric(model, pairs, x):
    """m by a plain forward with a raw hook that replaces the layer's output; independent of
    hooks.py.
    """
    handle = model.hf_model.gpt_neox.layers[model.layer].register_forward_hook(lambda *_: x)
    try:
        logits = model.hf_model(
            input_ids=pairs.input_ids, attention_mask=pairs.attention_mask
        ).logits
    finally:
        handle.remove()
    rows = torch.arange(len(pairs))
    last = logits[rows, pairs.answer_position]
    return last[rows, pairs.wrong] - last[rows, pairs.right]


def parts(ckpts, crosscoder, pairs):
    x = stacked_activations(ckpts, pairs.input_ids, pairs.attention_mask)
    keep = pairs.attention_mask.bool().clone()
    keep[:, 0] = False
    f = (crosscoder.encode(x) * keep[..., None]).detach()
    W_dec, b_dec = (t.detach() for t in crosscoder.raw_decoder())
    return x, f, keep, W_dec, b_dec


def rebuild(x, f, e, keep, W, b):
    return torch.where(keep[..., None], f @ W + b + e, x)


def test_ig_is_the_gradient_on_the_latents_integrated_along_the_joint_path(setting):
    ckpts, crosscoder, pairs = setting
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs, "ig", tol=1e-7)
    x, f, keep, W_dec, b_dec = parts(ckpts, crosscoder, pairs)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    for c, model in enumerate(ckpts):
        W, b = W_dec[:, c], b_dec[c]
        e = (x[:, :, c] - f @ W - b) * keep[..., None]
        ie, error = torch.zeros(len(pairs), len(W), dtype=torch.float64), 0.0
        for a, w in zip((nodes + 1) / 2, weights / 2, strict=True):
            fa, ea = ((1 - a) * f).requires_grad_(True), ((1 - a) * e).requires_grad_(True)
            m = metric(model, pairs, rebuild(x[:, :, c], fa, ea, keep, W, b)).sum()
            gf, ge = torch.autograd.grad(m, (fa, ea))
            ie -= w * (gf * f).sum(1)
            error -= w * float((ge * e).sum()) / len(pairs)
        np.testing.assert_allclose(effects.mean[c], ie.mean(0), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(effects.abs_mean[c], ie.abs().mean(0), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(effects.per_pair[c].to_dense(), ie, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(effects.error[c], error, rtol=1e-4, atol=1e-7)


def test_atp_is_the_gradient_on_the_latents_at_the_clean_point(setting):
    ckpts, crosscoder, pairs = setting
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs, "atp")
    x, f, keep, W_dec, b_dec = parts(ckpts, crosscoder, pairs)
    for c, model in enumerate(ckpts):
        leaf = f.clone().requires_grad_(True)
        e = x[:, :, c] - f @ W_dec[:, c] - b_dec[c]
        m = metric(model, pairs, rebuild(x[:, :, c], leaf, e, keep, W_dec[:, c], b_dec[c])).sum()
        expected = -(torch.autograd.grad(m, leaf)[0] * f).sum(1).mean(0)
        np.testing.assert_allclose(effects.mean[c], expected, rtol=1e-6, atol=1e-10)
        assert effects.n_nodes[c] == 1


def test_ablation_is_a_hook_on_one_latent(setting):
    ckpts, crosscoder, pairs = setting
    x, f, keep, W_dec, b_dec = parts(ckpts, crosscoder, pairs)
    features = [i for i in range(crosscoder.n_latents) if (f[..., i] > 0).any()][:6]
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs, "ablation", features=features)
    for c, model in enumerate(ckpts):
        clean = metric(model, pairs, x[:, :, c])
        for i in features:
            without = f.clone()
            without[..., i] = 0
            e = x[:, :, c] - f @ W_dec[:, c] - b_dec[c]
            m = metric(model, pairs, rebuild(x[:, :, c], without, e, keep, W_dec[:, c], b_dec[c]))
            np.testing.assert_allclose(
                effects.mean[c, i], (m - clean).mean(), rtol=1e-7, atol=1e-10
            )
            np.testing.assert_allclose(
                effects.abs_mean[c, i], (m - clean).abs().mean(), rtol=1e-7, atol=1e-10
            )
    others = np.setdiff1d(np.arange(crosscoder.n_latents), features)
    assert (effects.mean[:, others] == 0).all() and np.isnan(effects.gap).all()


def test_completeness(setting):
    ckpts, crosscoder, pairs = setting
    x, _, keep, _, b_dec = parts(ckpts, crosscoder, pairs)
    gaps = []
    for tol in (0.3, 0.01, 1e-4):
        effects = ctt.indirect_effects(crosscoder, ckpts, pairs, "ig", tol=tol)
        for c, model in enumerate(ckpts):
            at_bias = metric(model, pairs, torch.where(keep[..., None], b_dec[c], x[:, :, c]))
            difference = at_bias - metric(model, pairs, x[:, :, c])
            np.testing.assert_allclose(effects.total[c], difference.mean(), rtol=1e-7)
            gap = (
                abs(effects.mean[c].sum() + effects.error[c] - difference.mean())
                / difference.abs().mean()
            )
            np.testing.assert_allclose(effects.gap[c], gap, atol=1e-10)
        gaps.append(effects.gap.max())
        assert effects.gap.max() <= 1.5 * tol
    assert gaps[-1] < 1e-4


def test_ig_near_is_the_gradient_averaged_over_the_first_half_of_the_joint_path(setting):
    ckpts, crosscoder, pairs = setting
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs, "ig_near", tol=1e-7)
    x, f, keep, W_dec, b_dec = parts(ckpts, crosscoder, pairs)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    for c, model in enumerate(ckpts):
        ie = torch.zeros(len(pairs), len(W_dec), dtype=torch.float64)
        for a, w in zip(NEAR * (nodes + 1) / 2, weights / 2, strict=True):
            at = (x[:, :, c] + a * (b_dec[c] - x[:, :, c]) * keep[..., None]).requires_grad_(True)
            grad = torch.autograd.grad(metric(model, pairs, at).sum(), at)[0]
            ie -= w * (f * (grad @ W_dec[:, c].T)).sum(1)
        np.testing.assert_allclose(effects.mean[c], ie.mean(0), rtol=1e-4, atol=1e-7)
    assert effects.gap.max() < 1e-5


@pytest.mark.slow
def test_ones_own_path_is_the_ablation_and_adds_up_over_positions(setting):
    ckpts, crosscoder, pairs = setting
    exact = ctt.indirect_effects(crosscoder, ckpts, pairs, "ablation")
    own = ctt.indirect_effects(crosscoder, ckpts, pairs, "ig_own")
    np.testing.assert_allclose(
        own.per_pair.to_dense(), exact.per_pair.to_dense(), atol=2e-3 * np.abs(exact.mean).max()
    )
    features = [1, 4]
    for method in ("ig_own", "ig", "atp"):
        given = {"features": features} if method == "ig_own" else {}
        whole = ctt.indirect_effects(crosscoder, ckpts, pairs, method, tol=1e-5, **given)
        one_hot = [
            torch.zeros_like(pairs.attention_mask, dtype=torch.bool)
            for _ in range(pairs.input_ids.shape[1])
        ]
        for t, mask in enumerate(one_hot):
            mask[:, t] = True
        parts_ = [
            ctt.indirect_effects(
                crosscoder, ckpts, pairs, method, tol=1e-5, positions=mask, **given
            )
            for mask in one_hot
        ]
        np.testing.assert_allclose(sum(p.mean for p in parts_), whole.mean, atol=1e-9)
        assert all(np.isnan(p.gap).all() and np.isnan(p.total).all() for p in parts_)
        if method != "ig_own":
            np.testing.assert_allclose(sum(p.error for p in parts_), whole.error, atol=1e-9)


def test_ablation_at_some_positions_is_a_hook_on_these(setting):
    ckpts, crosscoder, pairs = setting
    x, f, _, W_dec, _ = parts(ckpts, crosscoder, pairs)
    at_answer = pairs.positions("answer")
    assert (at_answer.sum(1) == 1).all() and at_answer[range(9), pairs.answer_position].all()
    active = [i for i in range(48) if (f[at_answer][:, i] > 0).any()][:3]
    effects = ctt.indirect_effects(
        crosscoder, ckpts, pairs, features=active, positions=at_answer, batch_size=4
    )
    for c, model in enumerate(ckpts):
        clean = metric(model, pairs, x[:, :, c])
        for i in active:
            less = (f[..., i] * at_answer)[..., None] * W_dec[i, c]
            change = metric(model, pairs, x[:, :, c] - less) - clean
            np.testing.assert_allclose(effects.mean[c, i], change.mean(), rtol=1e-7, atol=1e-10)


@pytest.fixture(scope="module")
def embedded():
    suite = ctt.load_suite("tiny")
    return suite.checkpoints(suite.default_triplet, device="cpu"), ctt.Crosscoder.load(
        suite.crosscoder_folder
    )


def test_brute_force_on_the_embedded_suite(embedded):
    """Ablation and AtP of every active latent by whole float64 passes with a raw hook, no batching
    tricks.
    """
    ckpts, crosscoder = embedded
    double = ckpts.suite.checkpoints(ckpts.revisions, device="cpu", dtype=torch.float64)
    pairs = ckpts.suite.pairs("agreement/obj_rel", split="find", n=4)
    exact, atp = (ctt.indirect_effects(crosscoder, ckpts, pairs, m) for m in ("ablation", "atp"))
    x, _, keep, W_dec, _ = parts(ckpts, crosscoder, pairs)
    f = (crosscoder.encode(x) * keep[..., None]).detach().double()
    x, W_dec = x.double(), W_dec.double()
    active = (f > 0).any(1).any(0).nonzero().flatten().tolist()
    assert len(active) > 50
    for c, model in enumerate(double):
        clean = metric(model, pairs, x[:, :, c])
        brute = [
            (metric(model, pairs, x[:, :, c] - f[..., [i]] * W_dec[i, c]) - clean).mean().item()
            for i in active
        ]
        np.testing.assert_allclose(exact.mean[c, active], brute, atol=2e-5)
        leaf = x[:, :, c].clone().requires_grad_(True)
        grad = torch.autograd.grad(metric(model, pairs, leaf).sum(), leaf)[0]
        np.testing.assert_allclose(
            atp.mean[c], -(f * (grad @ W_dec[:, c].T)).sum(1).mean(0), atol=2e-5
        )


@pytest.mark.slow
def test_ig_is_complete_at_every_task_and_checkpoint_of_the_embedded_suite(embedded):
    ckpts, crosscoder = embedded
    for task in ckpts.suite.task_names:
        found = ctt.indirect_effects(
            crosscoder, ckpts, ckpts.suite.pairs(task, split="test", n=24), "ig"
        )
        assert found.gap.max() < 0.01 and max(found.info["gap_per_pair"]) < 0.01, task


def test_a_straight_line_model_has_a_closed_form():
    """Where m is linear in x, all three methods equal -f_i (W_i . w): here through
    effects_from_gradient.
    """
    generator = torch.Generator().manual_seed(0)
    f = torch.rand(4, 5, generator=generator, dtype=torch.float64)
    W = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    w = torch.randn(3, generator=generator, dtype=torch.float64)
    effects = effects_from_gradient(f, W, w.expand(4, 3))
    for i in range(5):
        without = f.clone()
        without[:, i] = 0
        torch.testing.assert_close(effects[:, i], without @ W @ w - f @ W @ w)


@given(st.floats(0, 1), st.floats(0.01, 10))
def test_the_measure_of_the_line(s, remains):
    """It goes from 0 to 1, `_measured` undoes it, and da/ds is what a small step gives."""
    s, remains = torch.tensor([s], dtype=torch.float64), torch.tensor([remains]).double()
    ends = attribution._evenly(torch.tensor([0.0, 1.0]).double(), remains)[0]
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0]).double())
    a, slope = attribution._evenly(s, remains)
    torch.testing.assert_close(attribution._measured(float(a), remains), s, atol=1e-9, rtol=0)
    step = 1e-5
    rise = attribution._evenly(s + step, remains)[0] - attribution._evenly(s - step, remains)[0]
    torch.testing.assert_close(rise / (2 * step), slope, rtol=1e-6, atol=1e-9)


@settings(max_examples=20)
@given(st.integers(0, 9))
def test_five_nodes_are_exact_to_degree_nine(degree):
    torch.testing.assert_close(
        (WEIGHTS * NODES**degree).sum(), torch.tensor(1 / (degree + 1), dtype=torch.float64)
    )


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_batch_size_do_not_matter(setting, method):
    ckpts, crosscoder, pairs = setting
    whole = ctt.indirect_effects(crosscoder, ckpts, pairs, method)
    small = ctt.indirect_effects(crosscoder, ckpts, pairs, method, batch_size=2)
    np.testing.assert_allclose(small.mean, whole.mean, rtol=1e-6, atol=1e-9)

    def wider(t):
        return torch.nn.functional.pad(t, (0, 4))

    padded = replace(
        pairs, input_ids=wider(pairs.input_ids), attention_mask=wider(pairs.attention_mask)
    )
    object.__setattr__(
        padded, "batches", lambda size: iter([padded])
    )  # slicing would cut the padding again
    np.testing.assert_allclose(
        ctt.indirect_effects(crosscoder, ckpts, padded, method).mean,
        whole.mean,
        rtol=1e-6,
        atol=1e-9,
    )
    order = [4, 1, 7, 0, 8, 2, 6, 3, 5]
    shuffled = ctt.indirect_effects(crosscoder, ckpts, pairs[order], method)
    np.testing.assert_allclose(shuffled.mean, whole.mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        shuffled.per_pair.to_dense(), whole.per_pair.to_dense()[:, order], atol=1e-9
    )


# ---- nothing is run in vain


@pytest.mark.parametrize("options", [{}, {"metric": "log_probability"}])
@pytest.mark.parametrize("method", METHODS)
def test_shortcuts_change_nothing(setting, monkeypatch, method, options):
    """Without keys and values of earlier positions, and with the last MLP at all positions."""
    ckpts, crosscoder, pairs = setting
    given = (crosscoder, ckpts, pairs, method, 1e-3)
    short = ctt.indirect_effects(*given, **options)
    for model in ckpts:
        assert model.takes_past and model.answers_alone
        monkeypatch.setattr(model, "takes_past", False)
        monkeypatch.setattr(model, "answers_alone", False)
    plain = ctt.indirect_effects(*given, **options)
    np.testing.assert_allclose(
        short.per_pair.to_dense(), plain.per_pair.to_dense(), rtol=1e-7, atol=1e-9
    )
    for name in ("mean", "error", "total", "n_nodes"):
        np.testing.assert_allclose(getattr(short, name), getattr(plain, name), atol=1e-9)


@pytest.fixture
def positions_run(setting):
    """How many positions go through the first block above the layer, and how often it runs."""
    ckpts, _, _ = setting
    seen = []
    handles = [
        model.hf_model.gpt_neox.layers[model.layer + 1].register_forward_pre_hook(
            lambda module, args: seen.append((args[0].shape[:2].numel(), args[0].requires_grad))
        )
        for model in ckpts
    ]
    yield seen
    for handle in handles:
        handle.remove()


def test_atp_is_one_pass_there_and_back(setting, positions_run):
    ckpts, crosscoder, pairs = setting
    ctt.indirect_effects(crosscoder, ckpts, pairs, "atp")
    touched_ = int(pairs.attention_mask[:, 1:].sum())
    with_gradient = sum(count for count, back in positions_run if back)
    others = sum(count for count, back in positions_run if not back)
    assert with_gradient == 3 * touched_
    # the first position once, for all begin with one token; and at the baseline each length once
    n_lengths = len(pairs.attention_mask.sum(1).unique())
    assert others == 3 * (1 + n_lengths * pairs.input_ids.shape[1])


def test_ablation_runs_what_comes_after_the_first_change(setting, positions_run, monkeypatch):
    ckpts, crosscoder, pairs = setting
    monkeypatch.setattr(attribution, "WORTH_A_PASS", 0)
    ctt.indirect_effects(crosscoder, ckpts, pairs, "ablation")
    _, f, _, _, _ = parts(ckpts, crosscoder, pairs)
    needed = 0
    for row, answer in enumerate(pairs.answer_position.tolist()):
        for latent in (f[row] > 0).any(0).nonzero().flatten().tolist():
            first = int((f[row, :, latent] > 0).nonzero()[0])
            needed += answer + 1 - first
    # and for each checkpoint the clean run, once to keep keys and values and once for m, and the
    # first position
    clean = pairs.input_ids.numel() + int(pairs.attention_mask[:, 1:].sum()) + 1
    assert sum(count for count, _ in positions_run) == 3 * (needed + clean)


@pytest.mark.parametrize("worth", [0, 5, 10**6])
def test_items_share_a_pass_where_little_is_saved(setting, worth, monkeypatch):
    ckpts, crosscoder, pairs = setting
    x, _, _, _, b_dec = parts(ckpts, crosscoder, pairs)
    readout = ctt.readout_of(ckpts[0], pairs, x[:, :, 0], b_dec[0])
    monkeypatch.setattr(attribution, "WORTH_A_PASS", worth)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(9, (40,), generator=draw)
    stops = pairs.answer_position[rows] + 1
    starts = 1 + (torch.rand(40, generator=draw) * (stops - 1)).long()
    packs = list(readout.packs(rows, 4, starts))
    assert sorted(torch.cat([pack.items for pack in packs]).tolist()) == list(range(40))
    for pack in packs:
        assert len(pack.items) <= 4 and (stops[pack.items] == pack.where.stop).all()
        assert (starts[pack.items] >= pack.start).all()
    for stop in stops.unique().tolist():
        begins = {pack.start for pack in packs if pack.where.stop == stop}
        own = set(starts[stops == stop].tolist())
        assert min(begins) == min(own) and begins <= own
        if worth in (0, 10**6):
            assert begins == (own if worth == 0 else {min(own)})


def test_memory_does_not_grow_with_the_nodes(setting, monkeypatch, positions_run):
    """However fine the line is cut, no more gradients are taken at once."""
    ckpts, crosscoder, pairs = setting
    monkeypatch.setattr(attribution, "GRADIENTS_AT_ONCE", 20)
    for tol in (0.1, 1e-5):
        positions_run.clear()
        effects = ctt.indirect_effects(crosscoder, ckpts, pairs, "ig", tol=tol)
        longest = pairs.input_ids.shape[1] - 1
        assert max(count for count, back in positions_run if back) <= 20 * longest
    assert effects.n_nodes.max() > 15


def test_reading_and_atp_wait_for_nothing(setting, waits):
    ckpts, crosscoder, pairs = setting
    text = some_text()
    assert waits(lambda: hooks.stacked_batches(ckpts, [(text, None)] * 2)) == 0
    x, f, _, W_dec, b_dec = parts(ckpts, crosscoder, pairs)

    def atp():
        readout = ctt.readout_of(ckpts[0], pairs, x[:, :, 0], b_dec[0])
        METHODS["atp"].attribute(readout, f, W_dec[:, 0], Options())

    assert waits(atp) == 0


def test_ig_waits_once_a_halving_and_ablation_once(setting, waits, monkeypatch):
    ckpts, crosscoder, pairs = setting
    x, f, _, W_dec, b_dec = parts(ckpts, crosscoder, pairs)

    def run(method, at_once):
        monkeypatch.setattr(attribution, "GRADIENTS_AT_ONCE", at_once)
        monkeypatch.setattr(attribution, "ITEMS_AT_ONCE", at_once)
        readout = ctt.readout_of(ckpts[0], pairs, x[:, :, 0], b_dec[0])
        options = Options(tolerance=0.1)
        return waits(lambda: METHODS[method].attribute(readout, f, W_dec[:, 0], options))

    for method in ("ig", "ablation"):
        assert 0 < run(method, 5) == run(method, 500)


@pytest.mark.parametrize("method", METHODS)
def test_permuting_checkpoints_permutes_the_effects(setting, method):
    ckpts, crosscoder, pairs = setting
    order = [2, 0, 1]
    other = make_crosscoder(ckpts)
    with torch.no_grad():
        for name, dim in (("W_enc", 0), ("W_dec", 1), ("b_dec", 0), ("scales", 0)):
            tensor = getattr(other, name)
            tensor.copy_(getattr(crosscoder, name).index_select(dim, torch.tensor(order)))
    permuted = ckpts.suite.checkpoints(device="cpu", dtype=torch.float64)
    permuted.revisions = [ckpts.revisions[i] for i in order]
    other.source = permuted.source
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs, method)
    moved = ctt.indirect_effects(other, permuted, pairs, method)
    for name in ("mean", "abs_mean", "error", "total", "n_nodes"):
        np.testing.assert_allclose(
            getattr(moved, name), getattr(effects, name)[order], rtol=1e-6, atol=1e-9
        )


def test_group_ablation_against_a_hook(setting):
    ckpts, crosscoder, pairs = setting
    x, f, _, W_dec, _ = parts(ckpts, crosscoder, pairs)
    groups = [[0, 3, 5], [1], [2, 3, 4, 7]]
    table = ctt.ablate(crosscoder, ckpts, pairs, groups, batch_size=4)
    for c, model in enumerate(ckpts):
        less = f[..., groups[c]] @ W_dec[groups[c], c]
        clean, ablated = metric(model, pairs, x[:, :, c]), metric(model, pairs, x[:, :, c] - less)
        row = table.iloc[c]
        np.testing.assert_allclose(row["effect"], (ablated - clean).mean(), rtol=1e-7, atol=1e-10)
        assert row["accuracy_before"] == (clean < 0).double().mean()
        assert row["accuracy_after"] == (ablated < 0).double().mean()
        assert row["n_features"] == len(groups[c]) and row["n_pairs"] == 9
    one = ctt.ablate(crosscoder, ckpts, pairs, [3])
    single = ctt.indirect_effects(crosscoder, ckpts, pairs, "ablation", features=[3])
    np.testing.assert_allclose(one["effect"], single.mean[:, 3], atol=1e-10)
    assert ctt.ablate(crosscoder, ckpts, pairs, [3, 3]).equals(one)  # a feature is taken away once
    nothing = ctt.ablate(crosscoder, ckpts, pairs, [])
    assert (nothing["effect"] == 0).all()


# ---- what latents are set to


def test_the_mean_is_taken_at_the_same_distance_from_the_answer(setting):
    """Against loops over pairs and positions, and a hook; the effects do not depend on batches."""
    ckpts, crosscoder, pairs = setting
    x, f, keep, W_dec, _ = parts(ckpts, crosscoder, pairs)
    mean = torch.zeros_like(f)
    for row, answer in enumerate(pairs.answer_position.tolist()):
        for t in range(1, answer + 1):
            ends = pairs.answer_position - (answer - t)  # where this distance is in each pair
            there = [f[other, end] for other, end in enumerate(ends.tolist()) if end > 0]
            mean[row, t] = torch.stack(there).mean(0)
    assert (mean[~keep] == 0).all() and ((mean > 0) & (f == 0)).any()
    features = range(12)
    found = ctt.indirect_effects(crosscoder, ckpts, pairs, features=features, baseline="mean")
    small = ctt.indirect_effects(
        crosscoder, ckpts, pairs, features=features, baseline="mean", batch_size=2
    )
    np.testing.assert_allclose(small.mean, found.mean, atol=1e-10)
    for c, model in enumerate(ckpts):
        clean = metric(model, pairs, x[:, :, c])
        for i in features:
            moved = x[:, :, c] + (mean - f)[..., [i]] * W_dec[i, c]
            effect = metric(model, pairs, moved) - clean
            np.testing.assert_allclose(found.per_pair[c].to_dense()[:, i], effect, atol=1e-10)
    assert found.info["baseline"] == "mean" and found.info["n_counted"] == 9


def test_the_mean_of_what_does_not_vary_changes_nothing(setting):
    ckpts, crosscoder, pairs = setting
    alike = pairs[[1, 1, 1]]
    zero = ctt.indirect_effects(crosscoder, ckpts, alike)
    mean = ctt.indirect_effects(crosscoder, ckpts, alike, baseline="mean")
    assert np.abs(zero.mean).max() > 0.01 and np.abs(mean.mean).max() < 1e-12


PARTNER = [5, 3, -1, 6, -1, 0, 8, -1, 1]  # of the pairs' own lengths: 3, 6, 7, 6, 2, 3, 6, 7, 6


@pytest.mark.parametrize("batch_size", [3, 128])
def test_a_resampled_latent_is_that_of_the_partner(setting, batch_size):
    ckpts, crosscoder, pairs = setting
    x, f, _, W_dec, _ = parts(ckpts, crosscoder, pairs)
    with_one = [row for row, other in enumerate(PARTNER) if other >= 0]
    given = f.clone()
    for row in with_one:
        given[row] = f[PARTNER[row]]
    features = ((given > 0) & (f == 0)).any(1).any(0).nonzero().flatten().tolist()[:8]
    options = {"baseline": "resample", "partner": PARTNER, "batch_size": batch_size}
    found = ctt.indirect_effects(crosscoder, ckpts, pairs, features=features, **options)
    group = ctt.ablate(crosscoder, ckpts, pairs, features, **options)
    assert len(features) == 8 and found.info["n_counted"] == 6
    for c, model in enumerate(ckpts):
        clean = metric(model, pairs, x[:, :, c])
        by_hand = torch.zeros(9, 48, dtype=torch.float64)
        for i in features:
            moved = x[:, :, c] + (given - f)[..., [i]] * W_dec[i, c]
            by_hand[:, i] = metric(model, pairs, moved) - clean
        np.testing.assert_allclose(found.per_pair[c].to_dense(), by_hand, atol=1e-10)
        np.testing.assert_allclose(found.mean[c], by_hand[with_one].mean(0), atol=1e-10)
        together = x[:, :, c] + (given - f)[..., features] @ W_dec[features, c]
        after = metric(model, pairs, together)[with_one]
        row = group.iloc[c]
        np.testing.assert_allclose(row["effect"], (after - clean[with_one]).mean(), atol=1e-10)
        assert row["accuracy_after"] == (after < 0).double().mean() and row["n_pairs"] == 6
        spread = (after - clean[with_one]).std() / 6**0.5
        np.testing.assert_allclose(row["effect_stderr"], spread, atol=1e-10)


def test_resampled_from_itself_nothing_changes(setting):
    ckpts, crosscoder, pairs = setting
    options = {"baseline": "resample", "partner": range(9)}
    assert not ctt.indirect_effects(crosscoder, ckpts, pairs, **options).mean.any()
    assert not ctt.ablate(crosscoder, ckpts, pairs, range(48), **options)["effect"].any()


def test_a_drawn_partner_has_another_prefix_of_the_same_length(setting):
    _, _, pairs = setting
    n_tokens = pairs.attention_mask.sum(1)
    drawn = np.stack([_drawn_partners(pairs, seed) for seed in range(40)])
    # the only prefixes of one length are those of pairs 1 and 6, and of 3 and 8
    assert (drawn[:, [0, 2, 4, 5, 7]] == -1).all()
    for row, others in {1: {3, 8}, 6: {3, 8}, 3: {1, 6}, 8: {1, 6}}.items():
        assert set(drawn[:, row].tolist()) == others
        assert (n_tokens[drawn[:, row]] == n_tokens[row]).all()
    assert np.array_equal(drawn[3], _drawn_partners(pairs, 3))


def test_baselines_that_do_not_fit_are_refused(setting):
    ckpts, crosscoder, pairs = setting
    for error, options in {
        "baseline='means' is not known.*Did you mean 'mean'": {"baseline": "means"},
        "goes with baseline='resample', and here is baseline='zero'": {"partner": PARTNER},
        r"partner is int64 \(2,\): give one whole number a pair, here 9": {"partner": [1, 2]},
        r"partner=\[0.5.*give a list of whole numbers": {"partner": [0.5] * 9},
        "There is no pair 9: partners are indices from 0 to 8": {"partner": [9] * 9},
        "There is no pair -2": {"partner": [-2] * 9},
        "No pair of 'pairs' has a partner": {"partner": [-1] * 9},
        "8 pairs .* another length.*pair 0 has 3 tokens, its partner 4 has 2": {"partner": [4] * 9},
        "goes with method='ablation', and here is 'atp'": {"baseline": "mean", "method": "atp"},
    }.items():
        if "partner" in options and "goes with" not in error:
            options["baseline"] = "resample"
        with pytest.raises(ValueError, match=error):
            ctt.indirect_effects(crosscoder, ckpts, pairs, **options)
    with pytest.raises(ValueError, match="baseline='means' is not known"):
        ctt.ablate(crosscoder, ckpts, pairs, [1], baseline="means")


# ---- f read from one checkpoint alone


@pytest.fixture(scope="module")
def predicted(setting):
    return ctt.predict_others(setting[0], some_text(40), ridge=0.01)


def test_others_are_predicted_by_least_squares_with_a_penalty(setting, predicted):
    """Against numpy's least squares, with the penalty as further rows."""
    ckpts, _, _ = setting
    x = stacked_activations(ckpts, some_text(40))[:, 1:].double().numpy()
    fitted, held = (part.reshape(-1, 3, 32) for part in (x[:32], x[32:]))
    centred = fitted - fitted.mean(0)
    for c in range(3):
        own = centred[:, c]
        penalty = 0.01 * own.var(0).mean() * len(own)
        rows = np.concatenate([own, penalty**0.5 * np.eye(32)])
        for other in {0, 1, 2} - {c}:
            answer = np.concatenate([centred[:, other], np.zeros((32, 32))])
            weight = np.linalg.lstsq(rows, answer, rcond=None)[0]
            expected = (held[:, c] - fitted[:, c].mean(0)) @ weight + fitted[:, other].mean(0)
            found = predicted(c, torch.from_numpy(held[:, c]))
            np.testing.assert_allclose(found[:, other], expected, atol=1e-8)
            missed = held[:, other] - expected
            share = 1 - (missed**2).mean(0).sum() / held[:, other].var(0).sum()
            np.testing.assert_allclose(predicted.explained[c, other], share, atol=1e-8)
        assert torch.equal(found[:, c], torch.from_numpy(held[:, c]))
    assert (np.diag(predicted.explained) == 1).all() and predicted.explained.min() < 0.9


def test_f_read_from_one_checkpoint(setting, predicted):
    """Each effect by a hook, with f encoded by hand; and effects and error still add up."""
    ckpts, crosscoder, pairs = setting
    x, shared, keep, W_dec, b_dec = parts(ckpts, crosscoder, pairs)
    exact = ctt.indirect_effects(crosscoder, ckpts, pairs, read_from=predicted, batch_size=4)
    options = {"read_from": predicted, "tol": 1e-6}
    complete = ctt.indirect_effects(crosscoder, ckpts, pairs, "ig", **options)
    group = ctt.ablate(crosscoder, ckpts, pairs, [1, 2, 3], read_from=predicted)
    curve = ctt.ablation_curve(crosscoder, ckpts, pairs, [1, 2, 3], [3], read_from=predicted)
    pd.testing.assert_frame_equal(group, curve)
    assert complete.gap.max() < 1e-4
    for c, model in enumerate(ckpts):
        f = torch.zeros_like(shared)
        f[keep] = crosscoder.encode(predicted(c, x[keep][:, c])).detach()
        clean = metric(model, pairs, x[:, :, c])
        for i in range(8):
            without = metric(model, pairs, x[:, :, c] - f[..., [i]] * W_dec[i, c]) - clean
            np.testing.assert_allclose(exact.per_pair[c].to_dense()[:, i], without, atol=1e-10)
        less = metric(model, pairs, x[:, :, c] - f[..., 1:4] @ W_dec[1:4, c]) - clean
        np.testing.assert_allclose(group["effect"][c], less.mean(), atol=1e-10)
        change = metric(model, pairs, torch.where(keep[..., None], b_dec[c], x[:, :, c])) - clean
        np.testing.assert_allclose(complete.total[c], change.mean(), rtol=1e-7)
        told = exact.info["read_from"][c]
        both = ((f > 0) & (shared > 0)).sum()
        assert told["kept"] == pytest.approx(float(both / (shared > 0).sum()))
        assert told["added"] == pytest.approx(float(1 - both / (f > 0).sum()))
        correlation = np.corrcoef(f[keep].flatten(), shared[keep].flatten())[0, 1]
        assert told["correlation"] == pytest.approx(correlation) and correlation < 0.999


@pytest.mark.filterwarnings("ignore:.*same weights")
def test_where_the_others_follow_from_each_nothing_changes(tmp_path):
    """Three times the same weights: what one checkpoint holds, the others hold."""
    for step in (0, 100, 200):
        random_model(seed=0).save_pretrained(tmp_path / f"step{step}")
    word_tokenizer().save_pretrained(tmp_path)
    suite = ctt.load_suite(tmp_path, tokens_per_step=10)
    ckpts = suite.checkpoints(device="cpu", dtype=torch.float64)
    crosscoder, pairs = make_crosscoder(ckpts), some_pairs(5)
    predicted = ctt.predict_others(ckpts, some_text(40), ridge=1e-12)
    np.testing.assert_allclose(predicted.explained, 1, atol=1e-8)
    for options in ({}, {"baseline": "mean"}):
        shared = ctt.indirect_effects(crosscoder, ckpts, pairs, **options)
        own = ctt.indirect_effects(crosscoder, ckpts, pairs, read_from=predicted, **options)
        assert shared.mean.any()
        np.testing.assert_allclose(own.per_pair.to_dense(), shared.per_pair.to_dense(), atol=1e-7)
    for told in own.info["read_from"]:
        assert told == pytest.approx({"kept": 1, "added": 0, "correlation": 1}, abs=1e-6)


def test_readings_that_do_not_fit_are_refused(setting, predicted):
    ckpts, crosscoder, pairs = setting
    with pytest.raises(ValueError, match="read_from='own': give a function or None"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, read_from="own")
    other = replace(predicted, source={**predicted.source, "layer": 0})
    with pytest.raises(ValueError, match=r"was fitted on layer 0 of .*here is layer 1 of"):
        ctt.ablate(crosscoder, ckpts, pairs, [1], read_from=other)
    with pytest.raises(ValueError, match=r"27 tokens to fit 32 dimensions on: give more text"):
        ctt.predict_others(ckpts, some_text(4))
    with pytest.raises(ValueError, match="ridge=0 must be above 0"):
        ctt.predict_others(ckpts, some_text(40), ridge=0)


# ---- more and more of a ranking


@pytest.mark.parametrize("options", [{}, {"baseline": "mean"}, {"baseline": "resample", "seed": 3}])
def test_the_curve_is_one_ablation_after_another(setting, options):
    ckpts, crosscoder, pairs = setting
    rng = np.random.default_rng(0)
    ranking = np.stack([rng.permutation(48) for _ in ckpts])
    sizes = (0, 1, 5, 48)
    curve = ctt.ablation_curve(crosscoder, ckpts, pairs, ranking, sizes, batch_size=4, **options)
    assert curve["n_features"].tolist() == [*sizes] * 3 and curve["effect"].any()
    for size, rows in curve.groupby("n_features"):
        one = ctt.ablate(crosscoder, ckpts, pairs, ranking[:, :size].tolist(), **options)
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), one, atol=1e-10)
    one_for_all = ctt.ablation_curve(crosscoder, ckpts, pairs, ranking[0], [5], **options)
    alone = ctt.ablate(crosscoder, ckpts, pairs, ranking[0, :5], **options)
    pd.testing.assert_frame_equal(one_for_all, alone, atol=1e-10)


@pytest.mark.parametrize("keep_error", [True, False])
def test_keeping_only_a_few_removes_all_others(setting, keep_error):
    ckpts, crosscoder, pairs = setting
    x, f, keep, W_dec, b_dec = parts(ckpts, crosscoder, pairs)
    ranking = np.random.default_rng(1).permutation(48).tolist()
    sizes = (0, 3, 20, 48)
    options = {"keep_only": True, "keep_error": keep_error}
    curve = ctt.ablation_curve(crosscoder, ckpts, pairs, ranking, sizes, **options)
    for c, model in enumerate(ckpts):
        clean = metric(model, pairs, x[:, :, c])
        e = x[:, :, c] - f @ W_dec[:, c] - b_dec[c]
        for size in sizes:
            kept = torch.zeros_like(f)
            kept[..., ranking[:size]] = f[..., ranking[:size]]
            now = rebuild(x[:, :, c], kept, keep_error * e, keep, W_dec[:, c], b_dec[c])
            after = metric(model, pairs, now)
            (row,) = curve[
                (curve["checkpoint"] == model.label) & (curve["n_features"] == size)
            ].itertuples()
            np.testing.assert_allclose(row.effect, (after - clean).mean(), atol=1e-9)
            assert row.accuracy_after == (after < 0).double().mean()
    all_kept = curve[curve["n_features"] == 48]["effect"].abs()
    assert (all_kept < 1e-9).all() if keep_error else (all_kept > 1e-3).all()


def test_a_curve_longer_than_its_ranking_is_refused(setting):
    ckpts, crosscoder, pairs = setting
    rankings = [[1, 2, 3, 4], [1, 2, 3, 3], [5, 6, 7, 8]]
    with pytest.raises(ValueError, match=r"sizes=\(1, 4\), and the shortest ranking has 3 latents"):
        ctt.ablation_curve(crosscoder, ckpts, pairs, rankings, [1, 4])
    with pytest.raises(ValueError, match="sizes=-1: give a whole number of at least 0"):
        ctt.ablation_curve(crosscoder, ckpts, pairs, [1, 2], [-1])


def test_save_and_load(setting, tmp_path):
    ckpts, crosscoder, pairs = setting
    effects = ctt.indirect_effects(crosscoder, ckpts, pairs, "ig")
    effects.save(tmp_path / "effects")
    again = Effects.load(tmp_path / "effects")
    for name in ("mean", "abs_mean", "error", "total", "gap", "n_nodes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(effects, name))
    assert torch.equal(again.per_pair.to_dense(), effects.per_pair.to_dense())
    assert again.names == ckpts.labels and again.info["method"] == "ig"


def test_errors(setting, tmp_path):
    ckpts, crosscoder, pairs = setting
    with pytest.raises(
        ValueError,
        match="method='igg' is not known; take one of ablation, atp, ig, ig_near, ig_own",
    ):
        ctt.indirect_effects(crosscoder, ckpts, pairs, "igg")
    with pytest.raises(ValueError, match="tol=0 must be above 0"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, "ig", tol=0)
    with pytest.raises(ValueError, match="features= goes with 'ablation' and 'ig_own'"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, "ig", features=[1])
    with pytest.raises(
        ValueError, match=r"positions=<Tensor of torch.int64, \[9, 7\]>: .*True and"
    ):
        ctt.indirect_effects(crosscoder, ckpts, pairs, positions=pairs.attention_mask)
    with pytest.raises(
        ValueError, match="No pair of 'pairs' has a role 'subject'; there are: answer"
    ):
        pairs.positions("subject")
    with pytest.raises(ValueError, match="There is no feature 48: this crosscoder has 48, 0 to 47"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, "ablation", features=[48])
    with pytest.raises(ValueError, match="2 groups of features for 3 checkpoints"):
        ctt.ablate(crosscoder, ckpts, pairs, [[1], [2]])
    with pytest.raises(ValueError, match=r"features=\[3\.5\]: give a list of whole numbers"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, "ablation", features=[3.5])
    with pytest.raises(ValueError, match=r"metric='klo' is not known.*Did you mean 'kl'"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, metric="klo")
    with pytest.raises(ValueError, match="metric='kl' is flat at the clean run"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, "atp", metric="kl")
    with pytest.raises(ValueError, match="batch_size=0: give a whole number of at least 1"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, batch_size=0)
    with pytest.raises(ValueError, match="batch_size=-1: give a whole number of at least 1"):
        ctt.ablate(crosscoder, ckpts, pairs, [1], batch_size=-1)
    others = ckpts.suite.checkpoints(ckpts.revisions, layer=0, device="cpu", dtype=torch.float64)
    with pytest.raises(ValueError, match="layer"):
        ctt.indirect_effects(crosscoder, others, pairs)
    with pytest.raises(ValueError, match="reads 3 checkpoints, and here are"):
        ctt.indirect_effects(
            crosscoder, ckpts.suite.checkpoints(ckpts.revisions[1:], device="cpu"), pairs
        )
    crosscoder = make_crosscoder(ckpts)
    crosscoder.source = {**ckpts.source, "fingerprints": ["a" * 32, "b" * 32, "c" * 32]}
    with pytest.raises(ValueError, match="same names, different fingerprints"):
        ctt.indirect_effects(crosscoder, ckpts, pairs)
    assert hooks.check_layer(2, 3) is None


def test_the_standard_error_counts_pairs_of_the_same_words_once():
    values = np.random.default_rng(0).normal(size=40)
    alone = values.std(ddof=1) / 40**0.5
    assert clustered_stderr(values, np.arange(40)) == pytest.approx(alone)
    twice = np.repeat(values, 2), np.repeat(np.arange(40), 2)
    assert clustered_stderr(*twice) == pytest.approx(alone)
    assert np.isnan(clustered_stderr(values, np.zeros(40, int)))


# ---- other metrics, by the same door


def log_probability(logits, right, wrong, clean):
    return -logits.log_softmax(-1).gather(1, right[:, None])[:, 0]


def kl(logits, right, wrong, clean):
    p = clean.softmax(-1)
    return (p * (p.log() - logits.log_softmax(-1))).sum(-1)


def margin(logits, answers):
    """A metric of one's own: the best logit minus the right one."""
    return logits.max(-1).values - logits.gather(1, answers.right[:, None])[:, 0]


def own(logits, right, wrong, clean):
    return logits.max(-1).values - logits.gather(1, right[:, None])[:, 0]


@pytest.mark.parametrize(
    ("metric", "by_hand"), [("log_probability", log_probability), ("kl", kl), (margin, own)]
)
def test_other_metrics_against_whole_passes(setting, metric, by_hand):
    ckpts, crosscoder, pairs = setting
    exact = ctt.indirect_effects(crosscoder, ckpts, pairs, metric=metric)
    complete = ctt.indirect_effects(crosscoder, ckpts, pairs, "ig", tol=1e-4, metric=metric)
    assert exact.info["metric"] == getattr(metric, "__name__", metric)
    x, f, keep, W_dec, b_dec = parts(ckpts, crosscoder, pairs)
    rows = torch.arange(len(pairs))
    for c, model in enumerate(ckpts):

        def m(stream, c=c, model=model):
            logits = hooks.spliced_logits(model, pairs.input_ids, pairs.attention_mask, stream)
            clean = hooks.spliced_logits(model, pairs.input_ids, pairs.attention_mask, x[:, :, c])
            at = rows, pairs.answer_position
            return by_hand(logits[at], pairs.right, pairs.wrong, clean[at])

        before = m(x[:, :, c])
        for i in (f > 0).any(1).any(0).nonzero().flatten()[:5].tolist():
            effect = (m(x[:, :, c] - f[..., [i]] * W_dec[i, c]) - before).mean()
            np.testing.assert_allclose(exact.mean[c, i], effect, rtol=1e-7, atol=1e-10)
        change = m(torch.where(keep[..., None], b_dec[c], x[:, :, c])) - before
        np.testing.assert_allclose(complete.total[c], change.mean(), rtol=1e-7)
        assert complete.gap[c] < 2e-3


def test_the_default_metric_is_wrong_minus_right(setting):
    ckpts, crosscoder, pairs = setting

    def difference(logits, answers):
        right = logits.gather(1, answers.right[:, None])
        return (logits.gather(1, answers.wrong[:, None]) - right)[:, 0]

    for method in METHODS:
        default = ctt.indirect_effects(crosscoder, ckpts, pairs, method, tol=1e-6)
        named = ctt.indirect_effects(
            crosscoder, ckpts, pairs, method, tol=1e-6, metric="wrong_minus_right"
        )
        mine = ctt.indirect_effects(crosscoder, ckpts, pairs, method, tol=1e-6, metric=difference)
        np.testing.assert_array_equal(default.mean, named.mean)
        np.testing.assert_allclose(default.mean, mine.mean, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.adds_up])
def test_methods_that_say_so_add_up(setting, name):
    ckpts, crosscoder, pairs = setting
    assert ctt.indirect_effects(crosscoder, ckpts, pairs, name, tol=1e-4).gap.max() < 1e-3


# ---- half precision


@pytest.fixture(scope="module", params=[15, 60])
def lifted(request, tmp_path_factory):
    """The embedded triplet with a vector added to every row of the unembedding.

    All logits rise alike, so the softmax is the same; the answer logits are about 15, or 60.
    """
    suite = ctt.load_suite("tiny")
    folder = tmp_path_factory.mktemp("lifted")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(suite.source / name, folder / name)
    pairs = suite.pairs("agreement/pp", split="find", n=60)
    for model in suite.checkpoints(suite.default_triplet, device="cpu"):
        last = ctt.residual_stream(model, pairs.input_ids, pairs.attention_mask, layer=3)
        final = model.final_norm(last[torch.arange(len(pairs)), pairs.answer_position]).mean(0)
        state = {k: t.clone() for k, t in model.hf_model.state_dict().items()}
        head = next(name for name in state if "embed_out" in name or "lm_head" in name)
        state[head] += final / (final @ final) * request.param
        (folder / model.label).mkdir()
        path = folder / model.label / "model.safetensors"
        save_file(state, path, metadata={"format": "pt"})
    crosscoder = ctt.Crosscoder.load(suite.crosscoder_folder)
    crosscoder.source = {}  # made for the weights before
    return ctt.load_suite(folder), crosscoder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_classes_and_work(lifted, dtype):
    suite, crosscoder = lifted
    found = {}
    for name in ("float32", dtype):
        ckpts = suite.checkpoints(layer=1, device="cpu", dtype=name)
        pairs = suite.pairs("file", path=TINY_PP, split="find", n=60)
        assert ctt.logit_differences(ckpts[2], pairs).dtype == torch.float32
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*resolves the metric to")
            found[name] = [
                ctt.indirect_effects(crosscoder, ckpts, pairs, m) for m in ("ablation", "ig")
            ]
    (exact, complete), (half, half_complete) = found["float32"], found[dtype]
    classes = [ctt.classify(ctt.rel_ie(e.mean), e.names) for e in (exact, half)]
    active = classes[0]["label"] != "inactive"
    same = (classes[0]["label"] == classes[1]["label"]) & (
        classes[0]["members"] == classes[1]["members"]
    )
    assert same[active].mean() >= 0.9
    # the blocks above this layer round by more than the metric: pieces are not halved in vain
    assert (half_complete.n_nodes <= 2 * complete.n_nodes).all()
    assert half_complete.gap.max() < 0.05


@pytest.mark.slow
def test_what_bfloat16_cannot_resolve_is_told(lifted):
    suite, crosscoder = lifted
    ckpts = suite.checkpoints(layer=1, device="cpu", dtype="bfloat16")
    pairs = suite.pairs("file", path=TINY_PP, split="find", n=20)
    with pytest.warns(UserWarning, match=r"bfloat16 resolves the metric to .* at step3000"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, "ig", tol=1e-4)


# ---- checkpoints that do not fit together, pairs without a prefix


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ablation", "ig"])
def test_each_checkpoint_is_loaded_twice_where_they_do_not_fit_together(
    tmp_path, monkeypatch, method
):
    suite = random_suite(tmp_path)
    pairs = some_pairs(9)
    together = suite.checkpoints(device="cpu")
    crosscoder = ctt.Crosscoder(3, 32, 24, sparsity="l1", seed=1)
    expected = ctt.indirect_effects(crosscoder, together, pairs, method, batch_size=2)
    apart = suite.checkpoints(device="cpu")
    apart.__dict__["together"] = False
    loaded = []
    load = checkpoints.load_checkpoint
    monkeypatch.setattr(
        checkpoints, "load_checkpoint", lambda s, r, *a: loaded.append(r) or load(s, r, *a)
    )
    _ = apart.source
    loaded.clear()
    found = ctt.indirect_effects(crosscoder, apart, pairs, method, batch_size=2)
    # once to read the activations, once for the effects; the last to be read is still there
    assert len(loaded) <= 2 * 3
    np.testing.assert_array_equal(found.mean, expected.mean)
    loaded.clear()
    table = ctt.ablate(crosscoder, apart, pairs, [1, 2], batch_size=2)
    assert len(loaded) <= 2 * 3
    one_batch = ctt.ablate(crosscoder, together, pairs, [1, 2])
    pd.testing.assert_frame_equal(table, one_batch, atol=1e-6)  # logits in float32


def test_pairs_without_a_prefix_have_no_effects(setting):
    ckpts, crosscoder, _ = setting
    rows = [{"prefix": "", "right": "dogs", "wrong": "dog"}]
    whole = ctt.make_pairs(rows, word_tokenizer(), continuation="whole")
    with pytest.raises(ValueError, match=r"effects need a prefix in each.*whole=True"):
        ctt.indirect_effects(crosscoder, ckpts, whole)


def test_numbers_that_are_not_finite_are_an_error(setting):
    ckpts, crosscoder, pairs = setting

    def broken(logits, answers):
        return logits[:, 0] * torch.nan

    with pytest.raises(hooks.NotFinite, match=r"'step0' \(float64 on cpu\) are not finite"):
        ctt.indirect_effects(crosscoder, ckpts, pairs, metric=broken)
