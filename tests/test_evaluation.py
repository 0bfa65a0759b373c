"""The report against brute force with plain hooks, and its invariants."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_suite, some_text

import ctt_helpers as ctt
from ctt_helpers import evaluation, hooks
from ctt_helpers.activations import stacked_activations
from ctt_helpers.sources import checkpoints


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    ckpts = random_suite(tmp_path_factory.mktemp("suite")).checkpoints(
        device="cpu", dtype=torch.float64
    )
    crosscoder = ctt.Crosscoder(3, 32, 40, k=6, seed=3).double()
    with torch.no_grad():
        crosscoder.scales.copy_(
            1 / stacked_activations(ckpts, some_text())[:, 1:].norm(dim=-1).mean((0, 1)) * 32**0.5
        )
        crosscoder.W_dec.mul_(3)
        crosscoder.threshold.fill_(0.2)
        crosscoder.b_dec.add_(0.1)
        crosscoder.b_enc[:5] = -100  # dead
    crosscoder.source = ckpts.source
    return ckpts, crosscoder.eval(), some_text(14, 10, seed=5)


def plain_logits(model, ids, replacement=None):
    def hook(_, __, output):
        return output if replacement is None else torch.cat([output[:, :1], replacement], 1)

    handle = model.hf_model.gpt_neox.layers[model.layer].register_forward_hook(hook)
    try:
        return model.hf_model(ids).logits
    finally:
        handle.remove()


def test_every_figure_against_brute_force(setting):
    ckpts, crosscoder, text = setting
    report = ctt.evaluate(crosscoder, ckpts, text)
    x = stacked_activations(ckpts, text)[:, 1:]
    with torch.no_grad():
        f = torch.relu(
            torch.einsum("stcd,cdh->sth", x * crosscoder.scales[:, None], crosscoder.W_enc)
            + crosscoder.b_enc
        )
        f = f * (f * crosscoder.code_norms() > crosscoder.threshold)
        rebuilt = (
            torch.einsum("sth,hcd->stcd", f, crosscoder.W_dec) + crosscoder.b_dec
        ) / crosscoder.scales[:, None]
    active = (f > 0).flatten(0, 1)
    assert report.dead_tokens == 14 * 9 and 1 < report.l0 < 30
    np.testing.assert_allclose(report.l0, active.double().sum(1).mean())
    np.testing.assert_allclose(report.frequency, active.double().mean(0))
    assert report.dead == (~active.any(0)).double().mean() >= 5 / 40
    for c, model in enumerate(ckpts):
        mine = x[:, :, c].flatten(0, 1)
        residual = (mine - rebuilt[:, :, c].flatten(0, 1)).pow(2).sum()
        np.testing.assert_allclose(
            report.explained_variance[c],
            1 - residual / (mine - mine.mean(0)).pow(2).sum(),
            rtol=1e-9,
        )
        ce = []
        for replacement in (None, rebuilt[:, :, c], torch.zeros_like(x[:, :, c])):
            with torch.no_grad():
                logits = plain_logits(model, text, replacement)[:, 1:-1]
            ce.append(
                float(
                    torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 2:].flatten())
                )
            )
        # cross-entropy is summed in float32
        np.testing.assert_allclose(
            [report.ce_clean[c], report.ce_zero[c]], [ce[0], ce[2]], rtol=1e-5
        )
        np.testing.assert_allclose(report.dce[c], ce[1] - ce[0], rtol=1e-4, atol=1e-5)
        at_stake = ce[2] - ce[0]
        recovered = 1 - (ce[1] - ce[0]) / at_stake if at_stake >= evaluation.CE_FLOOR else np.nan
        np.testing.assert_allclose(report.ce_recovered[c], recovered, rtol=1e-4)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_losses_of_words_in_parts_are_those_of_all_at_once(data):
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    tokens, vocabulary, alike = (data.draw(st.integers(1, n)) for n in (6, 40, 3))
    size = data.draw(st.sampled_from([1e-3, 1.0, 30.0, 3e4]))
    logits = size * torch.randn(tokens, vocabulary, generator=draw, dtype=torch.float64)
    masked = torch.rand(vocabulary, generator=draw) < data.draw(st.sampled_from([0.0, 0.5]))
    masked[0] = False
    logits[:, masked] = -torch.inf
    targets = torch.randint(vocabulary, (tokens, alike), generator=draw)
    targets[masked[targets]] = 0
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    logits = logits.to(dtype)
    expected = -logits.double().log_softmax(1).gather(1, targets)
    parts = [part.clone() for part in logits.split(data.draw(st.integers(1, 41)), dim=1)]
    found = evaluation.losses_by_words(parts, targets)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    digits = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=digits, atol=digits * max(1, size))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_logit_that_is_not_finite_makes_its_loss_so(wrong):
    logits = torch.zeros(2, 6)
    logits[0, 4] = wrong
    found = evaluation.losses_by_words(iter(logits.split(2, dim=1)), torch.tensor([[1], [1]]))
    assert not found[0].isfinite() and found[1].isfinite()


def test_batch_size_does_not_matter_and_the_report_is_saved(setting, tmp_path, monkeypatch):
    ckpts, crosscoder, text = setting
    a = ctt.evaluate(crosscoder, ckpts, text)
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", 3 * text.shape[1])
    b = ctt.evaluate(crosscoder, ckpts, text)
    np.testing.assert_allclose(a.explained_variance, b.explained_variance, rtol=1e-9)
    np.testing.assert_allclose(a.dce, b.dce, rtol=1e-4, atol=1e-6)
    a.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["l0"] == a.l0
    assert a.to_frame()["checkpoint"].tolist() == ckpts.labels


def test_a_perfect_crosscoder_costs_nothing(setting):
    ckpts, _, text = setting
    n, d = 3, 32
    perfect = ctt.Crosscoder(n, d, 2 * n * d, sparsity="l1").double()
    eye = torch.eye(n * d, dtype=torch.float64)
    with torch.no_grad():  # f = ReLU(+x), ReLU(-x); decode their difference
        perfect.W_enc.copy_(torch.cat([eye, -eye], 1).view(n, d, 2 * n * d))
        perfect.W_dec.copy_(torch.cat([eye, -eye], 0).view(2 * n * d, n, d))
    perfect.source = ckpts.source
    report = ctt.evaluate(perfect, ckpts, text)
    np.testing.assert_allclose(report.explained_variance, 1, atol=1e-12)
    np.testing.assert_allclose(report.dce, 0, atol=1e-6)
    at_stake = np.subtract(report.ce_zero, report.ce_clean)
    assert (at_stake > 0.05).any() and (at_stake < 0.05).any()
    expected = np.where(at_stake >= 0.05, 1, np.nan)  # where nothing is at stake, no share of it
    np.testing.assert_allclose(report.ce_recovered, expected, atol=1e-6)


def test_top_examples_are_the_largest_activations(setting):
    ckpts, crosscoder, text = setting
    with torch.no_grad():
        f = crosscoder.encode(stacked_activations(ckpts, text)[:, 1:])
    feature = int(f.amax((0, 1)).argmax())
    found = ctt.top_examples(crosscoder, ckpts, text, [feature, 0], k=3)
    assert found[0] == []  # a dead latent has none
    peaks = f[..., feature].amax(1).sort(descending=True)
    for example, value, row in zip(
        found[feature], peaks.values[:3], peaks.indices[:3], strict=True
    ):
        assert example["value"] == pytest.approx(float(value)) and example["sequence"] == int(row)
        place = int(f[row, :, feature].argmax()) + 1
        assert example["position"] == place and max(example["activations"]) == pytest.approx(
            float(value)
        )
        assert ckpts.tokenizer.decode([int(text[row, place])]) in example["tokens"]


def test_promoted_tokens_are_the_largest_direct_logits(setting):
    ckpts, crosscoder, _ = setting
    table = ctt.promoted_tokens(crosscoder, ckpts, 7, k=3)
    model = ckpts[1]
    direction = crosscoder.raw_decoder()[0][7, 1]
    # a layer norm takes the mean away before it weighs; the norm's own gradient says so too
    x = torch.zeros(1, 32, dtype=torch.float64)
    x[0, ::2], x[0, 1::2] = 1, -1
    there = model.final_norm(x + 1e-6 * direction) - model.final_norm(x - 1e-6 * direction)
    along = torch.linalg.vecdot(direction - direction.mean(), x[0]) / 32 * x[0]
    centred = (direction - direction.mean() - along) * model.final_norm.weight
    torch.testing.assert_close(there[0] / 2e-6, centred, rtol=1e-4, atol=1e-5)
    direction = (direction - direction.mean()) * model.final_norm.weight
    scores = (model.unembedding.weight @ direction).detach()
    scores = scores - scores.mean()
    mine = table[(table["checkpoint"] == ckpts.labels[1]) & (table["kind"] == "promoted")]
    best = scores.sort(descending=True).values[:3]
    np.testing.assert_allclose(mine["score"], best, rtol=1e-4)
    assert len(table) == 3 * 2 * 3


def test_each_checkpoint_is_loaded_twice_where_they_do_not_fit_together(setting, monkeypatch):
    together, crosscoder, text = setting
    expected = ctt.evaluate(crosscoder, together, text)
    apart = together.suite.checkpoints(device="cpu", dtype=torch.float64)
    apart.__dict__["together"] = False
    _ = apart.source
    loaded, load = [], checkpoints.load_checkpoint
    monkeypatch.setattr(
        checkpoints, "load_checkpoint", lambda s, r, *a: loaded.append(r) or load(s, r, *a)
    )
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", 3 * text.shape[1])
    found = ctt.evaluate(crosscoder, apart, text)
    assert len(loaded) <= 2 * 3
    np.testing.assert_allclose(found.explained_variance, expected.explained_variance, rtol=1e-9)
    np.testing.assert_allclose(found.dce, expected.dce, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", ["evaluate", "top_examples"])
def test_no_batch_waits_for_the_device(setting, waits, monkeypatch, what):
    ckpts, crosscoder, text = setting

    def work():
        if what == "evaluate":
            return ctt.evaluate(crosscoder, ckpts, text)
        return ctt.top_examples(crosscoder, ckpts, text, [0, 1], k=2)

    def run(rows):
        monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", rows * text.shape[1])
        return waits(work)

    assert run(len(text)) == run(2)


def test_what_is_wrong_is_told_although_nothing_waits(setting, monkeypatch):
    ckpts, crosscoder, text = setting
    real = hooks.logits_by_words

    def broken(model, *given):
        return (part / (model is not ckpts[1]) for part in real(model, *given))

    monkeypatch.setattr(hooks, "logits_by_words", broken)
    with pytest.raises(hooks.NotFinite, match=f"Logits of '{ckpts.labels[1]}'"):
        ctt.evaluate(crosscoder, ckpts, text)


def test_principal_components_are_those_of_a_singular_value_decomposition():
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(2, 5, 5, generator=draw)  # directions of unequal size
    mix *= torch.tensor([3, 0.1])[:, None, None]
    fitted, held_out = (
        torch.einsum("tci,cid->tcd", torch.randn(n, 2, 5, generator=draw), mix) + 7
        for n in (400, 90)
    )
    scales = torch.tensor([0.5, 20.0])
    found = ctt.pca_baseline(fitted, held_out, 3, scales)

    x, y = ((part * scales[:, None]).double().numpy() for part in (fitted, held_out))
    mean = x.mean(0)

    def rebuilt(x, y):
        directions = np.linalg.svd(x, full_matrices=False)[2][:3]
        return y @ directions.T @ directions

    joint = rebuilt((x - mean).reshape(400, 10), (y - mean).reshape(90, 10)).reshape(y.shape)
    separate = np.stack([rebuilt((x - mean)[:, c], (y - mean)[:, c]) for c in (0, 1)], axis=1)
    for name, again in (("joint", joint), ("separate", separate)):
        missed = ((y - mean - again) ** 2).sum((0, 2))
        expected = 1 - missed / ((y - y.mean(0)) ** 2).sum((0, 2))
        assert found[name] == pytest.approx(expected, abs=1e-5)
    # three numbers for both checkpoints say less than three for each
    assert (found["joint"] < found["separate"]).all()
    whole = ctt.pca_baseline(fitted, held_out, 5)["separate"]
    assert whole == pytest.approx([1, 1], abs=1e-5)
    for wrong, told in (
        ({"rank": 6}, "rank=6: there are 5 directions"),
        ({"held_out": held_out[:, :1]}, "of the same checkpoints"),
        ({"fitted": fitted[0]}, "of the same checkpoints"),
    ):
        with pytest.raises(ValueError, match=told):
            ctt.pca_baseline(**{"fitted": fitted, "held_out": held_out, "rank": 3, **wrong})


def test_principal_components_of_wide_streams_are_those_of_the_exact_way(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    sizes = torch.linspace(3, 0.1, 40).exp()  # as of streams: a few directions have most of it
    mixed = torch.linalg.qr(torch.randn(40, 40, generator=rng))[0]
    x = (torch.randn(2, 500, 40, generator=rng) * sizes @ mixed).unflatten(-1, (2, 20))
    exact = ctt.pca_baseline(x[0], x[1], 6)
    monkeypatch.setattr(evaluation, "WIDE", 8)
    state = torch.get_rng_state()
    projected = ctt.pca_baseline(x[0], x[1], 6)
    assert torch.equal(torch.get_rng_state(), state)
    for kind in ("joint", "separate"):
        np.testing.assert_allclose(projected[kind], exact[kind], atol=1e-4)


def test_errors(setting):
    ckpts, crosscoder, text = setting
    with pytest.raises(ValueError, match="longer than the context of 'step0', 64"):
        ctt.evaluate(crosscoder, ckpts, text.repeat(1, 7))
    with pytest.raises(ValueError, match=r"feature=7\.5: give a whole number"):
        ctt.promoted_tokens(crosscoder, ckpts, 7.5)
    other = ctt.Crosscoder(3, 32, 40, seed=3).double()
    other.source = {**ckpts.source, "begins_with": 5}
    with pytest.raises(ValueError, match="trained on text that begins with token 5"):
        ctt.evaluate(other, ckpts, text)
    with pytest.raises(ValueError, match=r"text must be \[sequences, length >= 3\]"):
        ctt.evaluate(crosscoder, ckpts, text[:, :2])
    with pytest.raises(ValueError, match="layer: trained on 1, given 0"):
        ctt.evaluate(crosscoder, ckpts.suite.checkpoints(layer=0, device="cpu"), text)
