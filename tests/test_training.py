"""Training: the loss, the schedules, dead latents, the threshold, and going on after an
interruption.
"""

import dataclasses
import json
import os
import warnings

import pandas as pd
import pytest
import torch

from ctt_helpers import files
from ctt_helpers.activations import TensorStream
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.training import TrainConfig, TrainingRun, aux_loss, train

N, D, H, TRUE = 3, 16, 48, 24
SHORT = {"steps": 60, "checkpoint_every": 20, "dead_after_tokens": 2000}


def planted(tokens: int = 16_384, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations made of a sparse dictionary, and its directions [TRUE, N, D]; a third of them are
    in one checkpoint
    only, a third fade, a third are everywhere. Every checkpoint has its own scale."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(TRUE, N, D, generator=generator)
    directions /= directions.norm(dim=-1, keepdim=True)
    weights = torch.ones(TRUE, N)
    weights[: TRUE // 3, 0], weights[: TRUE // 3, 1] = 0, 0
    weights[TRUE // 3 : 2 * TRUE // 3] = torch.tensor([1.0, 0.5, 0.1])
    directions *= weights[..., None]
    active = torch.rand(tokens, TRUE, generator=generator) < 2 / TRUE
    f = active * (0.5 + torch.rand(tokens, TRUE, generator=generator))
    x = torch.einsum("th,hnd->tnd", f, directions) * torch.tensor([1.0, 5.0, 20.0])[:, None]
    return x, directions


def stream(**options) -> TensorStream:
    return TensorStream(planted(4096)[0], **{"batch_size": 256, "seed": 1, **options})


def small(**options) -> Crosscoder:
    return Crosscoder(N, D, H, **{"k": 2, **options})


class Stopped(Exception):
    pass


class StoppingStream(TensorStream):
    """Breaks off at one batch, as a killed process does."""

    stop = 47

    def batches(self, start: int = 0):
        for number, x in enumerate(super().batches(start), start):
            if number == self.stop:
                raise Stopped
            yield x


def test_the_planted_dictionary_is_found():
    x, directions = planted()
    crosscoder = small()
    config = TrainConfig(steps=300, lr=5e-3, decoder_norm_penalty=0.1, k_start=12, k_anneal=1 / 3)
    result = train(crosscoder, TensorStream(x, 512), config)
    learnt = crosscoder.raw_decoder()[0].detach() / torch.tensor([1.0, 5.0, 20.0])[:, None]
    cosine = torch.nn.functional.cosine_similarity(
        learnt.flatten(1)[:, None], directions.flatten(1)[None], dim=-1
    )
    found = cosine.max(0)
    assert (found.values > 0.95).all()
    assert result.history["explained_variance"].iloc[-1] > 0.98
    # RelDec tells which checkpoints a feature is in
    share = (crosscoder.decoder_norms() / crosscoder.code_norms()).detach()[:, found.indices].T
    assert (share[: TRUE // 3, 2] > 0.9).all()
    middle = torch.tensor([1.0, 0.5, 0.1]) / 1.6
    torch.testing.assert_close(
        share[TRUE // 3 : 2 * TRUE // 3], middle.expand(TRUE // 3, N), rtol=0, atol=0.1
    )
    assert ((share[2 * TRUE // 3 :] - 1 / 3).abs() < 0.1).all()


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_the_threshold_gives_the_sparsity_of_training(penalty):
    x, _ = planted()
    crosscoder = Crosscoder(N, D, H, k=3)
    config = TrainConfig(steps=200, decoder_norm_penalty=penalty)
    result = train(crosscoder, TensorStream(x, 512), config)
    l0 = (crosscoder.encode(x) > 0).sum(1).float().mean()
    assert abs(l0 - result.history["l0"].iloc[-1]) < 0.25


def test_the_threshold_is_not_dragged_towards_its_start():
    run = TrainingRun(small(), TrainConfig(steps=100_000, k_anneal=0.0))
    for size in (4.0, 2.0):
        run._follow_threshold(torch.tensor(size))
    a = 0.999
    assert float(run.crosscoder.threshold) == pytest.approx((a * 4 + 2) / (a + 1), rel=1e-5)
    run._follow_threshold(torch.tensor(float("inf")))  # nothing was active
    assert float(run.crosscoder.threshold) == pytest.approx((a * 4 + 2) / (a + 1), rel=1e-5)


def test_one_step_is_the_loss_of_the_paper():
    config = TrainConfig(steps=10, l1=3.0, penalty_warmup=0.5)
    crosscoder, x = small(sparsity="l1", scales=[0.5, 1.0, 2.0]), planted(64)[0]
    run = TrainingRun(crosscoder, config)
    run.done = 1  # the second of five steps of warm-up
    W_enc, W_dec = (
        p.detach().clone().requires_grad_() for p in (crosscoder.W_enc, crosscoder.W_dec)
    )
    scaled = x * crosscoder.scales[:, None]
    f = torch.einsum("tnd,ndh->th", scaled, W_enc).relu()
    error = scaled - torch.einsum("th,hnd->tnd", f, W_dec)
    reconstruction = (error**2).sum() / 64
    sparsity = (f * W_dec.norm(dim=-1).sum(1)).sum() / 64
    loss = reconstruction + 3.0 * 2 / 5 * sparsity
    loss.backward()
    told = run.step(x, log=True)
    torch.testing.assert_close(told["loss"], loss.detach())
    torch.testing.assert_close(told["reconstruction"], reconstruction.detach())
    torch.testing.assert_close(told["sparsity"], sparsity.detach())
    assert told["aux"] == 0 and told["l0"] == (f > 0).sum() / 64
    spread = (scaled - scaled.mean(0)).pow(2).sum()
    explained = (1 - (error**2).sum() / spread).detach()
    torch.testing.assert_close(told["explained_variance"], explained)
    # after clipping the gradient is the same up to its length
    for mine, theirs in ((crosscoder.W_enc.grad, W_enc.grad), (crosscoder.W_dec.grad, W_dec.grad)):
        torch.testing.assert_close(mine / mine.norm(), theirs / theirs.norm(), rtol=1e-4, atol=1e-6)
    total = torch.stack([p.grad.norm() for p in crosscoder.parameters()]).norm()
    assert float(total) == pytest.approx(1.0, rel=1e-4)


def test_dead_latents_are_pulled_towards_the_error():
    error = torch.randn(5, N, D, generator=torch.Generator().manual_seed(0))
    pre = torch.tensor([[0.5, 2.0, -1.0]] * 5, requires_grad=True)
    W = torch.randn(3, N, D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = aux_loss(error, pre, W, aux_k=1)
    sizes = pre.detach() * W.detach().norm(dim=-1).sum(1)
    assert sizes[0].argmax() == 1
    left = error - 2.0 * W.detach()[1]
    torch.testing.assert_close(loss.detach(), left.pow(2).sum() / 5)
    loss.backward()
    torch.testing.assert_close(
        W.grad[1], -2 * 2.0 * left.mean(0)
    )  # down the gradient is towards the error
    torch.testing.assert_close(pre.grad[:, 1], -2 * (left * W.detach()[1]).sum((1, 2)) / 5)
    assert not W.grad[[0, 2]].any() and not pre.grad[:, [0, 2]].any()


def test_silent_latents_die_and_the_auxiliary_loss_reaches_only_them():
    crosscoder, x = small(k=1), planted(64)[0]
    config = TrainConfig(steps=100, dead_after_tokens=128, decoder_norm_penalty=0.0)
    run = TrainingRun(crosscoder, config)
    with torch.no_grad():
        crosscoder.W_enc[:, :, :3] *= 1e-4  # positive at times, never among the largest
    for _ in range(2):
        assert run.step(x, log=True)["aux"] == 0
    silent = run.silent.clone()
    assert (silent[:3] == 128).all() and (silent == 0).any()
    figures = run.step(x, log=True)
    assert figures["aux"] > 0 and figures["dead"] == (run.silent >= 128).sum()
    assert (crosscoder.W_dec.grad[:3] != 0).any(), (
        "a dead latent gets a gradient from the auxiliary loss alone"
    )
    off = TrainingRun(small(k=1), dataclasses.replace(config, aux_weight=0.0))
    off.silent += 1000
    off.tokens = 1000
    assert off.step(x, log=True)["aux"] == 0


def test_schedules():
    run = TrainingRun(
        small(), TrainConfig(steps=100, lr=1.0, k_start=10, k_anneal=0.08, decoder_norm_penalty=1.0)
    )
    assert [run.lr(i) for i in (0, 79, 80, 90, 99)] == pytest.approx([1, 1, 1, 0.5, 0.05])
    assert [run.penalty(i) for i in (0, 9, 19, 50)] == pytest.approx([0.05, 0.5, 1, 1])
    assert [run.k(i) for i in (0, 4, 8, 99)] == [10, 6, 2, 2]
    flat = TrainingRun(small(sparsity="l1"), TrainConfig(steps=100, penalty_warmup=0.0))
    assert flat.penalty(0) == 2.0


@pytest.mark.parametrize("sparsity", ["batch_topk", "l1"])
@pytest.mark.parametrize("stop", [7, 47])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path, sparsity, stop):
    config = TrainConfig(**SHORT)
    whole = train(small(sparsity=sparsity), stream(), config)
    broken = StoppingStream(planted(4096)[0], 256, 1)
    broken.stop = stop
    with pytest.raises(Stopped):
        train(small(sparsity=sparsity), broken, config, out=tmp_path / "run")
    second = small(sparsity=sparsity)
    result = train(second, stream(), config, out=tmp_path / "run")
    assert (
        result.resumed_from == stop // 20 * 20
        and result.crosscoder is second
        and not second.training
    )
    assert whole.resumed_from is None
    for name, tensor in whole.crosscoder.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    pd.testing.assert_frame_equal(
        whole.history.drop(columns="seconds"),
        result.history.drop(columns="seconds"),
        check_exact=True,
    )
    assert result.history["seconds"].is_monotonic_increasing
    assert second.source == stream().source
    there = sorted(
        p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*.*")
    )
    assert there == [
        "crosscoder/config.json",
        "crosscoder/crosscoder.safetensors",
        "history.csv",
        "train_config.json",
    ]


def test_a_finished_run_is_loaded(tmp_path, capsys):
    config = TrainConfig(**SHORT)
    first = train(small(), stream(), config, out=tmp_path / "run")
    stamp = (tmp_path / "run" / "train_config.json").stat().st_mtime_ns
    again = train(small(), stream(), config, out=tmp_path / "run")
    assert "loaded, not trained again" in capsys.readouterr().out
    assert again.resumed_from == 60 and again.seconds == first.seconds
    pd.testing.assert_frame_equal(again.history, first.history, rtol=1e-12)
    for name, tensor in first.crosscoder.state_dict().items():
        assert torch.equal(tensor, again.crosscoder.state_dict()[name])
    saved = Crosscoder.load(tmp_path / "run" / "crosscoder")
    assert torch.equal(saved.W_dec, again.crosscoder.W_dec) and saved.source == stream().source
    assert json.loads((tmp_path / "run" / "train_config.json").read_text())["versions"]["torch"]
    train(small(), stream(), config, out=tmp_path / "run", resume=False)
    assert (tmp_path / "run" / "train_config.json").stat().st_mtime_ns > stamp


@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_not_overwritten(tmp_path, finished):
    out, config = tmp_path / "run", TrainConfig(**SHORT)
    if finished:
        train(small(), stream(), config, out=out)
    else:
        with pytest.raises(Stopped):
            train(small(), StoppingStream(planted(4096)[0], 256, 1), config, out=out)
    other = dataclasses.replace(config, lr=0.5, l1=1.0)
    with pytest.raises(
        ValueError,
        match=r"config\.lr: 0\.002 there, 0\.5 here; config\.l1: 2\.0 there.*resume=False",
    ):
        train(small(), stream(), other, out=out)
    with pytest.raises(ValueError, match=r"crosscoder\.n_latents: 48 there, 50 here"):
        train(Crosscoder(N, D, 50, k=2), stream(), config, out=out)
    with pytest.raises(ValueError, match=r"crosscoder\.seed: 0 there, 9 here"):
        train(small(seed=9), stream(), config, out=out)
    with pytest.raises(ValueError, match="stream: "):
        train(small(), stream(seed=2), config, out=out)


def test_a_damaged_checkpoint_is_named(tmp_path):
    with pytest.raises(Stopped):
        train(small(), StoppingStream(planted(4096)[0], 256, 1), TrainConfig(**SHORT), out=tmp_path)
    path = tmp_path / "checkpoint" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.safetensors is not as it was written"):
        train(small(), stream(), TrainConfig(**SHORT), out=tmp_path)


def test_the_history():
    history = train(small(), stream(), TrainConfig(**{**SHORT, "steps": 50})).history
    assert history["step"].tolist() == [1, 20, 40, 50]
    assert (history["tokens"] == history["step"] * 256).all()
    assert list(history) == [
        "step",
        "tokens",
        "loss",
        "reconstruction",
        "sparsity",
        "aux",
        "l0",
        "explained_variance",
        "dead",
        "lr",
        "seconds",
    ]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history["dead"].dtype.kind == "i"


def test_scales_and_source_come_from_the_stream():
    crosscoder = small(scales=[9.0, 9.0, 9.0])
    train(crosscoder, stream(), TrainConfig(steps=2))
    x = planted(4096)[0]
    torch.testing.assert_close(
        crosscoder.scales, D**0.5 / x.norm(dim=-1).mean(0), rtol=1e-4, atol=0
    )
    assert crosscoder.source == stream().source


def test_a_loss_that_explodes_is_an_error():
    class Broken(TensorStream):
        def batches(self, start=0):
            return (
                x * float("nan") if number else x for number, x in enumerate(super().batches(start))
            )

    with pytest.raises(ValueError, match="The loss is nan at step 20"):
        train(small(sparsity="l1"), Broken(planted(4096)[0], 256), TrainConfig(**SHORT))


def test_a_threshold_that_nothing_taught_is_no_threshold():
    """Without a step after k has fallen it would stay 0, and L0 would be many times k."""
    with pytest.raises(ValueError, match=r"steps=1 with k_anneal=0.5 leave no step after k has"):
        train(small(), stream(), TrainConfig(steps=1))
    crosscoder = small()
    train(crosscoder, stream(), TrainConfig(steps=2))
    assert float(crosscoder.threshold) > 0


def test_a_crosscoder_in_which_everything_died_is_told():
    crosscoder = small()
    with torch.no_grad():
        crosscoder.b_enc.fill_(-1e6)
    with pytest.warns(UserWarning, match="threshold of this crosscoder is 0.*all of them are dead"):
        train(crosscoder, stream(), TrainConfig(steps=4, aux_weight=0.0))


def test_massive_tokens_are_told_and_left_out_on_demand():
    x = planted(8192)[0].clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = TensorStream(x, 256).scales()
        TensorStream(x, 256, max_norm=50).scales()
    x[::97] *= 1000
    with pytest.warns(
        UserWarning, match=r"% of the tokens have more than 10 times.*max_norm=10 leaves"
    ):
        off = TensorStream(x, 256).scales()
    assert (plain / off > 5).all()
    kept = TensorStream(x, 256, max_norm=50)
    torch.testing.assert_close(kept.scales(), plain, rtol=0.05, atol=0)
    batch = next(kept.batches())
    assert 240 < len(batch) < 256 and batch.norm(dim=-1).max() < 100
    assert kept.fingerprint() != TensorStream(x, 256).fingerprint()
    config = TrainConfig(steps=300, lr=5e-3, decoder_norm_penalty=0.1)
    crosscoder = small()
    result = train(crosscoder, kept, config)
    ordinary = x[torch.arange(len(x)) % 97 != 0][:4000]
    error = (ordinary - crosscoder(ordinary).detach()) * crosscoder.scales[:, None]
    spread = (ordinary - ordinary.mean(0)) * crosscoder.scales[:, None]
    assert 1 - error.pow(2).sum() / spread.pow(2).sum() > 0.95
    assert result.history["tokens"].iloc[-1] < 300 * 256


def test_activations_that_are_not_finite_are_an_error():
    x = planted(4096)[0].clone()
    x[7] = 1e30
    with pytest.raises(ValueError, match="must be finite and above 0"):
        train(small(), TensorStream(x, 256), TrainConfig(**SHORT))
    with pytest.raises(ValueError, match="must be finite and above 0"):
        TensorStream(torch.zeros(100, 3, 4), 10).scales()


def test_an_interrupted_training_says_what_is_kept(tmp_path, capsys):
    class Interrupted(TensorStream):
        def batches(self, start=0):
            for number, x in enumerate(super().batches(start), start):
                if number == 47:
                    raise KeyboardInterrupt
                yield x

    crosscoder = small()
    interrupted = Interrupted(planted(4096)[0], 256, 1)
    with pytest.raises(KeyboardInterrupt):
        train(crosscoder, interrupted, TrainConfig(**SHORT), out=tmp_path / "run")
    told = capsys.readouterr().out
    kept = f"Stopped. Step 40 of 60 is kept in {tmp_path / 'run' / 'checkpoint'}.\n"
    assert told == kept + "The same call goes on from there.\n"
    assert not crosscoder.training and float(crosscoder.threshold) > 0
    assert train(small(), stream(), TrainConfig(**SHORT), out=tmp_path / "run").resumed_from == 40
    interrupted.batches = lambda start=0: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(small(), interrupted, TrainConfig(**SHORT))
    told = capsys.readouterr().out
    assert told.startswith("Stopped. Nothing is on disk. The crosscoder's threshold is not learnt")
    assert told.endswith(
        "\nWith out=FOLDER, a stopped training can be taken up again by the same call.\n"
    )


def test_a_folder_in_use_says_by_whom(tmp_path):
    with (
        files.locked(tmp_path / "run"),
        pytest.raises(RuntimeError, match=rf"process {os.getpid()}"),
    ):
        train(small(), stream(), TrainConfig(**SHORT), out=tmp_path / "run")


def test_files_that_no_training_wrote_are_left_alone(tmp_path):
    for name in ("history.csv", "train_config.json"):
        out = tmp_path / name.split(".")[0]
        out.mkdir()
        (out / name).write_text('{"my": "thesis"}')
        for resume in (True, False):
            with pytest.raises(FileExistsError, match=rf"{name} that no training wrote"):
                train(small(), stream(), TrainConfig(**SHORT), out=out, resume=resume)
        assert (out / name).read_text() == '{"my": "thesis"}'
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train(small(), StoppingStream(planted(4096)[0], 256, 1), TrainConfig(**SHORT), out=out)
    (out / "checkpoint" / "notes.txt").write_text("mine")
    train(small(), stream(), TrainConfig(**SHORT), out=out, resume=False)
    assert (out / "checkpoint" / "notes.txt").read_text() == "mine"


def test_a_frozen_crosscoder_is_refused():
    part = Crosscoder(3, 4, 8, k=2).part([0, 1])
    stream = TensorStream(torch.randn(100, 3, 4), batch_size=10)
    with pytest.raises(ValueError, match="frozen"):
        train(part, stream, TrainConfig(steps=5), device="cpu")


def test_misfits_are_refused():
    with pytest.raises(
        ValueError, match=r"stream gives 3 checkpoints with d_model 16.*takes 2 with d_model 16"
    ):
        train(Crosscoder(2, D, H), stream(), TrainConfig(**SHORT))
    with pytest.raises(ValueError, match="folded"):
        train(small().folded(), stream(), TrainConfig(**SHORT))
    annealed = TrainConfig(**SHORT, k_start=4)
    with pytest.raises(ValueError, match="k_start=4"):
        train(small(k=8), stream(), annealed)
    with pytest.raises(ValueError, match=r"k_start=4.*batch_topk"):
        train(small(sparsity="l1"), stream(), annealed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: give a whole number of at least 1"),
        ({"steps": 1.5}, "steps=1.5: give a whole number of at least 1"),
        ({"lr": 0}, "lr=0: it must be above 0"),
        ({"lr": "fast"}, "lr='fast': it must be a number"),
        ({"lr": float("nan")}, "lr=nan: it must be above 0"),
        ({"penalty_warmup": 1.5}, "penalty_warmup=1.5: it must be a share"),
        ({"l1": -1}, "l1=-1: it must be 0 or more"),
        ({"bf16": "false"}, "bf16='false': it must be True or False"),
        ({"k_start": 0}, "k_start=0: give a whole number of at least 1"),
        ({"k_anneal": 1.0}, "k_anneal=1.0: it must be a share of the steps, 0 to below 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_equal_inputs_give_equal_outputs():
    first, second = (train(small(), stream(), TrainConfig(**SHORT)).crosscoder for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
