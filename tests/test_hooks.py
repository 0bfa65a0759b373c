"""Hooks against plain PyTorch hooks, bit for bit, on every architecture, with right padding."""

import threading

import pytest
import torch
from models import ARCHITECTURES, random_model, word_tokenizer

from ctt_helpers import hooks
from ctt_helpers.hooks import HookedModel

LAYERS = range(3)


@pytest.fixture(params=list(ARCHITECTURES), scope="module")
def hf_model(request):
    return random_model(request.param)


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
        if replacement is not None:
            return replacement if isinstance(output, torch.Tensor) else (replacement, *output[1:])

    block = hf_model.get_submodule(hooks.ARCHITECTURES[type(hf_model).__name__][0])[layer]
    handle = block.register_forward_hook(hook)
    try:
        logits = hf_model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        handle.remove()
    return logits, seen["x"]


@pytest.mark.parametrize("layer", LAYERS)
def test_residual_stream_and_splice_are_bit_equal_to_plain_hooks(hf_model, layer, batch):
    ids, mask = batch
    model = HookedModel(hf_model, word_tokenizer(), layer)
    logits, x = plain(hf_model, layer, ids, mask)
    assert torch.equal(hooks.residual_stream(model, ids, mask), x)
    assert torch.equal(hooks.spliced_logits(model, ids, mask, x), logits)
    other = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    changed, _ = plain(hf_model, layer, ids, mask, other)
    assert torch.equal(hooks.spliced_logits(model, ids, mask, other), changed)
    assert torch.equal(hooks.logits_above(model, other, mask), changed)
    assert not torch.allclose(changed, logits)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_above_are_bit_equal_to_plain_hooks(hf_model, layer, batch):
    ids, mask = batch
    position, tokens = mask.sum(1) - 1, torch.arange(10).reshape(5, 2) + 5
    model = HookedModel(hf_model, word_tokenizer(), layer)
    x = hooks.residual_stream(model, ids, mask)
    rows = torch.arange(5)
    mine, theirs = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    logits, _ = plain(hf_model, layer, ids, mask, theirs)
    expected = torch.autograd.grad(
        (logits[rows, position, tokens[:, 0]] - logits[rows, position, tokens[:, 1]]).sum(), theirs
    )[0]
    answers = hooks.logits_above(model, mine, mask, position, tokens)
    gradient = torch.autograd.grad((answers[:, 0] - answers[:, 1]).sum(), mine)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    assert expected.abs().max() > 1e-3
    assert all(p.grad is None for p in hf_model.parameters())


def test_answer_logits_are_the_full_logits_at_the_answer(hf_model, batch):
    ids, mask = batch
    position, tokens = mask.sum(1) - 1, torch.arange(10).reshape(5, 2) + 5
    model = HookedModel(hf_model, word_tokenizer(), 1)
    logits, _ = plain(hf_model, 1, ids, mask)
    expected = logits[torch.arange(5)[:, None], position[:, None], tokens]
    with torch.no_grad():
        found = hooks.unembed(model, hooks.residual_stream(model, ids, mask, model.n_layers - 1), position, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_padding_and_batch_do_not_matter(hf_model, batch):
    ids, mask = batch
    model = HookedModel(hf_model, word_tokenizer(), 1)
    together = hooks.residual_stream(model, ids, mask)
    for row in range(len(ids)):
        length = int(mask[row].sum())
        alone = hooks.residual_stream(model, ids[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-5, atol=1e-5)


def test_the_pass_stops_after_the_layer(batch):
    hf_model = random_model()
    model, ran = HookedModel(hf_model, word_tokenizer(), 0), []
    for i, block in enumerate(hf_model.gpt_neox.layers):
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
    hooks.residual_stream(model, *batch)
    assert ran == [0]


def test_two_threads_may_use_one_model(batch):
    model = HookedModel(random_model(), word_tokenizer(), 1)
    expected, got = hooks.residual_stream(model, *batch), []
    threads = [threading.Thread(target=lambda: got.append(hooks.residual_stream(model, *batch))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 4 and all(torch.equal(x, expected) for x in got)


def test_errors_say_what_to_do(batch):
    ids, mask = batch
    with pytest.raises(ValueError, match=r"layer=3 does not exist: this model has 3 blocks, 0 to 2"):
        HookedModel(random_model(), word_tokenizer(), 3)
    with pytest.raises(ValueError, match=r"layer=-1 does not exist"):
        HookedModel(random_model(), word_tokenizer(), -1)
    with pytest.raises(ValueError, match=r"Linear is not known here; known are GPTNeoXForCausalLM"):
        HookedModel(torch.nn.Linear(2, 2), word_tokenizer(), 0)
    model = HookedModel(random_model(), word_tokenizer(), 1)
    with pytest.raises(ValueError, match=r"ids 0 to 39.*another tokenizer"):
        hooks.residual_stream(model, ids + 1000, mask)
    with pytest.raises(ValueError, match=r"pad on the right"):
        hooks.residual_stream(model, ids, mask.flip(1))
