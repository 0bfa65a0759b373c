"""Numbers that are none and texts that do not fit, at every entry: an error, or a right result."""

import math
import re

import numpy as np
import pytest
import torch
from faults import counted
from models import random_model, random_suite, some_pairs, some_text, word_tokenizer

import ctt_helpers as ctt
from ctt_helpers.attribution import METHODS

TEXT = some_text(12, 10)
WORD = int(some_pairs(9).input_ids[1, 2])  # is in the pairs, and in the text


def built(ckpts, text, tmp_path):
    return ctt.ActivationCache.build(ckpts, text, tmp_path / "cache")


# entry -> what is done there, with a crosscoder, checkpoints, pairs, a text and a folder
ENTRIES = {
    "logit_differences": lambda c, m, p, t, d: ctt.logit_differences(m[1], p),
    "accuracy": lambda c, m, p, t, d: ctt.accuracy(m[1], p),
    "scales of a stream": lambda c, m, p, t, d: ctt.ActivationStream(m, t, 8).scales(),
    "train": lambda c, m, p, t, d: ctt.train(
        ctt.Crosscoder(2, 32, 48, k=4), ctt.ActivationStream(m, t, 8), ctt.TrainConfig(steps=5)),
    "cache": lambda c, m, p, t, d: built(m, t, d),
    "evaluate": lambda c, m, p, t, d: ctt.evaluate(c, m, t),
    "top_examples": lambda c, m, p, t, d: ctt.top_examples(c, m, t, [0, 1]),
    "active_places": lambda c, m, p, t, d: ctt.active_places(c, m, t, range(48)),
    "predict_others": lambda c, m, p, t, d: ctt.predict_others(m, t.repeat(9, 1)),
    "latent_scaling": lambda c, m, p, t, d: ctt.latent_scaling(
        c, [ctt.activations.stacked_activations(m, t)[:, 1:].flatten(0, 1)]),
    "ablate": lambda c, m, p, t, d: ctt.ablate(c, m, p, [0, 1]),
    "ablate_subsets": lambda c, m, p, t, d: ctt.ablate_subsets(c, m, p, [0, 1]),
    "ablation_curve": lambda c, m, p, t, d: ctt.ablation_curve(c, m, p, [2, 0, 1], [1, 2]),
    **{
        f"indirect_effects {name}": lambda c, m, p, t, d, name=name: ctt.indirect_effects(
            c, m, p, name, **({"tol": 0.5} if name == "ig" else {}))
        for name in METHODS
    },
}  # fmt: skip


@pytest.fixture
def setting(tmp_path):
    ckpts = random_suite(tmp_path / "suite", n=2).checkpoints(device="cpu")
    crosscoder = ctt.Crosscoder(2, 32, 48, k=4)
    crosscoder.threshold.fill_(0.1)
    crosscoder.source = dict(ckpts.source)
    return crosscoder.eval(), ckpts, some_pairs(9), TEXT


def spoil(ckpts, value):
    """The second checkpoint's embedding of one word, after the checks when it was loaded."""
    with torch.no_grad():
        ckpts[1].hf_model.get_input_embeddings().weight[WORD] = value


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30], ids=["NaN", "infinite", "1e30"])
def test_activations_that_are_no_numbers(setting, tmp_path, value):
    """Of one word at one checkpoint: an error of ours that says so, at every entry."""
    spoil(setting[1], value)
    promise = "an error that says where they are not finite, or too large"
    fault = f"{value} in the activations of one word at one checkpoint"
    with counted(fault, len(ENTRIES), promise) as count:
        for entry, use in ENTRIES.items():
            try:
                use(*setting, tmp_path / entry)
                told = f"{entry} says nothing"
            except ValueError as error:
                told = str(error)
            count(re.search(r"finite|massive|too large|norms", told))


def test_a_dictionary_in_which_all_are_dead(setting):
    crosscoder, ckpts, pairs, text = setting
    crosscoder.threshold.fill_(1e9)
    report = ctt.evaluate(crosscoder, ckpts, text)
    assert report.dead == 1 and report.l0 == 0 and all(np.isfinite(report.dce))
    assert ctt.top_examples(crosscoder, ckpts, text, [0, 1]) == {0: [], 1: []}
    assert ctt.active_places(crosscoder, ckpts, text, [0, 1]).frequency.tolist() == [0, 0]
    for method in METHODS:
        effects = ctt.indirect_effects(crosscoder, ckpts, pairs, method)
        assert not effects.mean.any(), method
        ratios = ctt.rel_ie(effects.mean)
        assert np.isnan(ratios).all()
        assert set(ctt.classify(ratios, ckpts.labels)["label"]) == {"inactive"}
    assert not ctt.resample(effects, 10).any()
    assert set(ctt.decide(effects)["label"]) == {"inactive"}
    table = ctt.ablate(crosscoder, ckpts, pairs, [0, 1])
    np.testing.assert_allclose(table["effect"], 0)
    with pytest.raises(ValueError, match="effects of the null are all 0"):
        ctt.null_threshold(effects)
    dead = np.ones(48, bool)
    assert np.isnan(ctt.rel_dec(crosscoder.decoder_norms().detach(), dead)).all()


def test_tasks_that_are_empty(setting):
    crosscoder, ckpts, pairs, _ = setting
    none = pairs[:0]
    for call in (
        lambda: ctt.accuracy(ckpts[0], none),
        lambda: ctt.accuracy_curve(ckpts.suite, {"none": none}, device="cpu"),
        lambda: ctt.similarity_matrix(ckpts.suite, none, device="cpu"),
        *(lambda m=m: ctt.indirect_effects(crosscoder, ckpts, none, m) for m in METHODS),
        lambda: ctt.ablate(crosscoder, ckpts, none, [0]),
        lambda: ctt.ablate_subsets(crosscoder, ckpts, none, [0]),
    ):
        with pytest.raises(ValueError, match=r"holds no pair|has 0 pairs"):
            call()
    with pytest.raises(ValueError, match="No pair of 'pairs' can be used"):
        ctt.make_pairs([], word_tokenizer())
    assert len(ctt.accuracy_curve(ckpts.suite, {}, device="cpu")) == 0


def test_sequences_that_are_too_short_or_too_long(setting, tmp_path):
    crosscoder, ckpts, pairs, text = setting
    for short, entries in ((text[:, :1], ENTRIES), (text[:, :2], ["evaluate"])):
        for entry in entries:
            if entry in ("evaluate", "top_examples", "active_places", "cache", "train"):
                with pytest.raises(ValueError, match=r"length >= [23]"):
                    ENTRIES[entry](crosscoder, ckpts, pairs, short, tmp_path)
    long = text.repeat(1, 8)  # of a context of 64
    for entry in ("evaluate", "top_examples", "active_places", "cache", "train"):
        with pytest.raises(ValueError, match="longer than the context of 'step0', 64"):
            ENTRIES[entry](crosscoder, ckpts, pairs, long, tmp_path)
    words = " ".join(["the dog near"] * 30)
    row = {"prefix": words, "right": " runs", "wrong": " run"}
    for continuation, whole in (("first", False), ("whole", True)):
        too_long = ctt.make_pairs([row], word_tokenizer(), continuation=continuation)
        with pytest.raises(ValueError, match="longer than the context of 'step0', 64"):
            ctt.accuracy(ckpts[0], too_long, whole=whole)
    for method in METHODS:
        with pytest.raises(ValueError, match="longer than the context of 'step0', 64"):
            ctt.indirect_effects(crosscoder, ckpts, too_long, method)
    # sentences of one token
    one = ctt.make_pairs([{"prefix": "dog", "right": " runs", "wrong": " run"}], word_tokenizer())
    assert 0 <= ctt.accuracy(ckpts[0], one) <= 1
    assert np.isfinite(ctt.indirect_effects(crosscoder, ckpts, one).mean).all()


@pytest.mark.parametrize(
    "settings",
    [{"hidden_size": 48}, {"vocab_size": 50}, {"num_hidden_layers": 4}],
    ids=["width", "vocabulary", "layers"],
)
def test_revisions_that_differ(tmp_path, settings):
    """Another width is an error that names the revision; another depth or table of words is fine
    where it does not matter.
    """
    for step, own in ((0, {}), (100, settings)):
        random_model("gpt_neox", seed=step, **own).save_pretrained(tmp_path / f"step{step}")
    word_tokenizer().save_pretrained(tmp_path)
    suite = ctt.load_suite(tmp_path, tokens_per_step=10)
    ckpts = suite.checkpoints(layer=1, device="cpu")
    text = TEXT
    if "hidden_size" in settings:
        for call in (
            lambda: ctt.activations.stacked_activations(ckpts, text),
            lambda: ctt.ActivationStream(ckpts, text, 8).scales(),
            lambda: ctt.ActivationCache.build(ckpts, text, tmp_path / "cache"),
            lambda: ctt.similarity_matrix(suite, some_pairs(3), device="cpu"),
        ):
            with pytest.raises(ValueError, match="step0 has d_model 32, and its suite"):
                call()
        return
    x = ctt.activations.stacked_activations(ckpts, text)
    alone = [ctt.residual_stream(model, text) for model in ckpts]
    torch.testing.assert_close(x, torch.stack(alone, 2))
    curve = ctt.accuracy_curve(suite, {"a": some_pairs(3)}, device="cpu")
    for model, found in zip(ckpts, curve["accuracy"], strict=True):
        assert found == ctt.accuracy(model, some_pairs(3))
