"""Hooks against plain PyTorch hooks, bit for bit, on every architecture, with right padding."""

import gc
import threading
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from models import CONFIGS, EAGER_ONLY, WITHOUT_A_ROW, random_model, word_tokenizer

from ctt_helpers import hooks
from ctt_helpers.hooks import HookedModel, NotFinite

LAYERS = range(3)
VARIANTS = [(name, "eager") for name in CONFIGS]
VARIANTS += [(name, "sdpa") for name in CONFIGS if name not in EAGER_ONLY]


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v[0]}-{v[1]}", scope="module")
def hf_model(request):
    architecture, attention = request.param
    return random_model(architecture, attention=attention, gain=3.0)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 32, (5, 9), generator=generator)
    lengths = torch.tensor([9, 4, 7, 9, 2])
    mask = (torch.arange(9) < lengths[:, None]).long()
    return ids * mask, mask


def plain(hf_model, layer, ids, mask, replacement=None):
    """Logits and the block's output by a raw forward hook, the block's output replaced if asked."""
    seen = {}

    def hook(module, args, output):
        seen["x"] = output if isinstance(output, torch.Tensor) else output[0]
        if replacement is None:
            return None
        return replacement if isinstance(output, torch.Tensor) else (replacement, *output[1:])

    block = hf_model.get_submodule(hooks.architecture_of(hf_model).blocks)[layer]
    handle = block.register_forward_hook(hook)
    try:
        logits = hf_model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        handle.remove()
    return logits, seen["x"]


def real(values, mask):
    """The values at real tokens; padding means nothing, and may be NaN."""
    return values[mask.bool()]


@pytest.mark.parametrize("layer", LAYERS)
def test_residual_stream_and_splice_are_bit_equal_to_plain_hooks(hf_model, layer, batch):
    ids, mask = batch
    model = HookedModel(hf_model, word_tokenizer(), layer)
    logits, x = plain(hf_model, layer, ids, mask)
    assert torch.equal(real(hooks.residual_stream(model, ids, mask), mask), real(x, mask))
    assert torch.equal(real(hooks.spliced_logits(model, ids, mask, x), mask), real(logits, mask))
    other = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    changed, _ = plain(hf_model, layer, ids, mask, other)
    spliced = hooks.spliced_logits(model, ids, mask, other)
    assert torch.equal(real(spliced, mask), real(changed, mask))
    assert torch.equal(real(hooks.logits_above(model, other, mask), mask), real(changed, mask))
    assert not torch.allclose(real(changed, mask), real(logits, mask))


@pytest.mark.parametrize("layer", [0, 2])
def test_gradients_above_are_those_of_plain_hooks(hf_model, layer, batch):
    ids, mask = batch
    position, tokens = mask.sum(1) - 1, torch.arange(10).reshape(5, 2) + 5
    model = HookedModel(hf_model, word_tokenizer(), layer)
    x = hooks.residual_stream(model, ids, mask)
    rows = torch.arange(5)
    mine, theirs = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    logits, _ = plain(hf_model, layer, ids, mask, theirs)
    difference = logits[rows, position, tokens[:, 0]] - logits[rows, position, tokens[:, 1]]
    expected = torch.autograd.grad(difference.sum(), theirs)[0]
    answers = hooks.logits_above(model, mine, mask, position, tokens)
    gradient = torch.autograd.grad((answers[:, 0] - answers[:, 1]).sum(), mine)[0]
    torch.testing.assert_close(real(gradient, mask), real(expected, mask), rtol=1e-4, atol=1e-5)
    assert expected[mask.bool()].abs().max() > 1e-4
    assert all(parameter.grad is None for parameter in hf_model.parameters())


def test_answer_logits_are_the_full_logits_at_the_answer(hf_model, batch):
    """What the model's own head does to logits (scaling, soft-capping, a bias) is done here too."""
    ids, mask = batch
    position, tokens = mask.sum(1) - 1, torch.arange(10).reshape(5, 2) + 5
    model = HookedModel(hf_model, word_tokenizer(), 1)
    logits, _ = plain(hf_model, 1, ids, mask)
    at_answer = logits[torch.arange(5), position]
    with torch.no_grad():
        last = hooks.residual_stream(model, ids, mask, model.n_layers - 1)
        two = hooks.unembed(model, last, position, tokens)
        all_ = hooks.unembed(model, last, position)
    torch.testing.assert_close(all_, at_answer, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(two, at_answer.gather(1, tokens), rtol=1e-5, atol=1e-5)
    flat = last[mask.bool()]
    parts = list(hooks.logits_by_words(model, flat, words=5))
    assert len(parts) > 1 and parts[0].shape == (len(flat), 5)
    torch.testing.assert_close(torch.cat(parts, 1), logits[mask.bool()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", [1, 4, 8])
def test_after_the_past_everything_is_as_in_a_whole_pass(hf_model, start):
    """Changed from `start` on only: logits and gradients of plain hooks on the whole sequence."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 32, (5, 9), generator=draw)
    model = HookedModel(hf_model, word_tokenizer(), 1)
    assert model.takes_past
    _, clean = plain(hf_model, 1, ids, torch.ones_like(ids))
    changed = clean.clone()
    changed[:, start:] += torch.randn(changed[:, start:].shape, generator=draw)
    past = hooks.past_above(model, clean)
    rows = torch.tensor([3, 0, 0, 4, 1])  # of these sequences, in this order
    position, tokens = torch.tensor([8, 8, start, 8, start]), torch.arange(10).reshape(5, 2) + 5
    theirs = changed[rows].requires_grad_(True)
    mine = changed[rows, start:].requires_grad_(True)
    logits, _ = plain(hf_model, 1, ids[rows], torch.ones_like(ids), theirs)
    expected = logits[torch.arange(5)[:, None], position[:, None], tokens]
    found = hooks.logits_above(model, mine, None, position - start, tokens, past.cut(rows, start))
    size = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * size)
    gradients = [
        torch.autograd.grad((answers[:, 0] - answers[:, 1]).sum(), x)[0]
        for answers, x in ((found, mine), (expected, theirs))
    ]
    size = float(gradients[1].abs().max())
    torch.testing.assert_close(gradients[0], gradients[1][:, start:], rtol=0, atol=1e-4 * size)
    every = hooks.logits_above(model, mine.detach(), past=past.cut(rows, start))
    size = float(logits.detach().abs().max())
    torch.testing.assert_close(every, logits.detach()[:, start:], rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("architecture", [*CONFIGS, *WITHOUT_A_ROW])
def test_which_shortcuts_a_class_of_models_takes(architecture):
    model = HookedModel(random_model(architecture), word_tokenizer(), 1)
    assert model.takes_past
    # OPT has no module for its MLP; Falcon adds to what it gives in place
    assert model.answers_alone == (architecture not in ("opt", "falcon"))


def test_a_shortcut_that_gives_other_numbers_is_not_taken(monkeypatch):
    hf_model = random_model(gain=3.0)
    real = hooks.past_above

    def wrong(*given):
        past = real(*given)
        return replace(past, keys=[key + 0.01 for key in past.keys])

    monkeypatch.setattr(hooks, "past_above", wrong)
    model = HookedModel(hf_model, word_tokenizer(), 1)
    assert not model.takes_past and model.answers_alone
    monkeypatch.setattr(hooks, "past_above", real)
    hf_model.gpt_neox.layers[-1].mlp.register_forward_hook(
        lambda m, i, out: out - out.mean(1)[:, None]
    )
    model = HookedModel(hf_model, word_tokenizer(), 1)  # an MLP that looks at other positions
    assert not model.answers_alone


def test_only_the_answers_position_goes_through_the_last_mlp(hf_model, batch):
    ids, mask = batch
    model = HookedModel(hf_model, word_tokenizer(), 1)
    if not model.answers_alone:
        pytest.skip("this class has no MLP that can run alone")
    seen = []
    mlp = hf_model.get_submodule(model.parts.blocks)[-1].mlp
    handle = mlp.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    x = hooks.residual_stream(model, ids, mask)
    hooks.logits_above(model, x, mask, mask.sum(1) - 1)
    hooks.logits_above(model, x, mask)
    handle.remove()
    assert seen == [1, 9]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_tied_and_untied_heads_and_half_precision_pass_the_check(architecture, batch):
    for tied in (False, True):
        for dtype in (torch.bfloat16, torch.float16):
            hf_model = random_model(architecture, gain=1.0, tie_word_embeddings=tied).to(dtype)
            model = HookedModel(hf_model, word_tokenizer(), 1)
            assert model.architecture in hooks.ARCHITECTURES
            ids, mask = batch
            position = mask.sum(1) - 1
            x = hooks.residual_stream(model, ids, mask)
            answers = hooks.logits_above(model, x, mask, position, ids[:, :2])
            assert answers.dtype == torch.float32  # whatever the model's own


@pytest.mark.parametrize("architecture", WITHOUT_A_ROW)
def test_the_parts_of_another_class_are_found_and_held_to_its_numbers(architecture, batch):
    hf_model = random_model(architecture, gain=3.0)
    assert type(hf_model).__name__ not in hooks.ARCHITECTURES
    ids, mask = batch
    for layer in LAYERS:
        model = HookedModel(hf_model, word_tokenizer(), layer)
        _, x = plain(hf_model, layer, ids, mask)
        assert torch.equal(real(hooks.residual_stream(model, ids, mask), mask), real(x, mask))


@pytest.mark.parametrize(
    ("architecture", "wrong", "told"),
    [
        ("granite", {"divided_by": None}, "logits_above and a whole pass differ"),
        ("gemma2", {"capped_by": None}, "logits_above and a whole pass differ"),
        ("cohere", {"multiplied_by": None}, "logits_above and a whole pass differ"),
        (
            "bloom",
            {"norm": "transformer.word_embeddings_layernorm"},
            "logits_above and a whole pass differ",
        ),
        (
            "olmo2",
            {"norm": "model.layers.2.post_feedforward_layernorm"},
            "logits_above and a whole pass differ",
        ),
    ],
)
def test_a_row_that_is_not_true_is_refused(monkeypatch, architecture, wrong, told):
    hf_model = random_model(architecture, gain=3.0)
    with torch.no_grad():
        for parameter in hf_model.parameters():  # new norms are all alike
            if parameter.ndim == 1:
                parameter.add_(torch.rand(parameter.shape))
    name = type(hf_model).__name__
    row = replace(hooks.ARCHITECTURES[name], **wrong)
    monkeypatch.setitem(hooks.ARCHITECTURES, name, row)
    with pytest.raises(ValueError, match=rf"{name} cannot be read here.*{told} \(up to"):
        HookedModel(hf_model, word_tokenizer(), 1)


def test_a_class_whose_hidden_states_are_no_residual_stream_is_refused():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mamba", vocab_size=40, hidden_size=16, num_hidden_layers=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf_model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"cannot be read here.*hidden_states differ"):
        HookedModel(hf_model, word_tokenizer(), 0)


def test_padding_and_batch_do_not_matter(hf_model, batch):
    ids, mask = batch
    model = HookedModel(hf_model, word_tokenizer(), 1)
    together = hooks.residual_stream(model, ids, mask)
    for row in range(len(ids)):
        length = int(mask[row].sum())
        alone = hooks.residual_stream(model, ids[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-4, atol=1e-4)


def test_the_pass_stops_after_the_layer(batch):
    hf_model = random_model()
    model, ran = HookedModel(hf_model, word_tokenizer(), 0), []
    for i, block in enumerate(hf_model.gpt_neox.layers):
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
    hooks.residual_stream(model, *batch)
    assert ran == [0]


def test_nothing_of_a_pass_stays_in_memory(batch):
    """An early stop leaves a cycle behind that holds the tensors of every caller."""
    model = HookedModel(random_model("gpt_neox"), word_tokenizer(), 1)
    ids, mask = batch

    def weak(call, *arguments):
        return weakref.ref(call(*arguments))

    gc.collect()
    gc.disable()  # so that nothing is freed by chance
    try:
        x = torch.zeros(*ids.shape, model.d_model)
        held = {
            "residual_stream": weak(hooks.residual_stream, model, ids, mask),
            "logits_above": weak(hooks.logits_above, model, x, mask),
            "spliced_logits": weak(hooks.spliced_logits, model, ids, mask, x),
        }
        assert [name for name, reference in held.items() if reference() is not None] == []
    finally:
        gc.enable()


def test_two_threads_may_use_one_model(batch):
    model = HookedModel(random_model(), word_tokenizer(), 1)
    expected, got = hooks.residual_stream(model, *batch), []
    threads = [
        threading.Thread(target=lambda: got.append(hooks.residual_stream(model, *batch)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and all(torch.equal(x, expected) for x in got)


def test_several_batches_go_through_each_model_once(batch):
    ids, mask = batch
    models = [HookedModel(random_model(seed=seed), word_tokenizer(), 1) for seed in range(2)]
    batches = [(ids, mask), (ids[:2], mask[:2])]
    asked = []

    def one_by_one():
        for i, model in enumerate(models):
            asked.append(i)
            yield model

    found = hooks.stacked_batches(one_by_one(), batches)
    assert asked == [0, 1]
    for (ids, mask), x in zip(batches, found, strict=True):
        assert torch.equal(x, hooks.stacked_activations(models, ids, mask))


@pytest.mark.parametrize(
    ("architecture", "centres"),
    [("gpt_neox", True), ("llama", False), ("gemma2", False), ("olmo", True)],
)
def test_gain_and_centring_of_the_final_norm(architecture, centres):
    hf_model = random_model(architecture)
    norm = hf_model.get_submodule(hooks.architecture_of(hf_model).norm)
    draw = torch.Generator().manual_seed(0)
    weight = getattr(norm, "weight", None)
    if weight is not None:
        with torch.no_grad():
            weight.copy_(torch.rand(weight.shape, generator=draw) + 0.5)
    model = HookedModel(hf_model, word_tokenizer(), 0)
    assert model.norm_centres == centres
    gain = torch.ones(32) if weight is None else weight.detach()
    gain = gain + 1 if architecture.startswith("gemma") else gain  # Gemma adds 1 to its weight
    torch.testing.assert_close(model.norm_gain, gain, rtol=1e-4, atol=1e-5)


def test_numbers_that_are_not_finite_are_an_error(batch):
    hf_model = random_model()
    with torch.no_grad():
        hf_model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[0, 0] = torch.nan
    with pytest.raises(NotFinite, match=r"Logits of 'late' \(float32 on cpu\) are not finite"):
        HookedModel(hf_model, word_tokenizer(), 1, label="late")


def test_errors_say_what_to_do(batch):
    ids, mask = batch
    with pytest.raises(
        ValueError, match=r"layer=3 does not exist: this model has 3 blocks, 0 to 2"
    ):
        HookedModel(random_model(), word_tokenizer(), 3)
    with pytest.raises(ValueError, match=r"layer=-1 does not exist"):
        HookedModel(random_model(), word_tokenizer(), -1)
    model = HookedModel(random_model(), word_tokenizer(), 1)
    with pytest.raises(ValueError, match=r"ids 0 to 39.*another tokenizer"):
        hooks.residual_stream(model, ids + 1000, mask)
    with pytest.raises(ValueError, match=r"pad on the right"):
        hooks.residual_stream(model, ids, mask.flip(1))
    with pytest.raises(ValueError, match=r"a tensor \[batch, tokens\] of whole numbers"):
        hooks.residual_stream(model, ids.float())
    with pytest.raises(ValueError, match=r"whole numbers \[batch, tokens\], at least one"):
        hooks.residual_stream(model, ids[:0])
    with pytest.raises(ValueError, match=r"Sequences of 65 tokens are longer than the context"):
        hooks.residual_stream(model, torch.zeros(1, 65, dtype=torch.long))


def test_a_class_without_visible_parts_is_named():
    class Odd(torch.nn.Module):
        config = random_model().config

    with pytest.raises(ValueError, match=r"Odd has no row in ctt_helpers.hooks.ARCHITECTURES"):
        hooks.architecture_of(Odd())
