"""The stream: every token once an epoch, resumable anywhere, first token left out, scales on the
same positions.
"""

import itertools
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_suite, some_text
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ctt_helpers as ctt
from ctt_helpers import activations
from ctt_helpers.activations import ActivationStream, TensorStream, stacked_activations


@pytest.fixture(scope="module")
def ckpts(tmp_path_factory):
    return random_suite(tmp_path_factory.mktemp("suite")).checkpoints(device="cpu")


def numbered(n_tokens):
    return torch.arange(n_tokens, dtype=torch.float32)[:, None, None].expand(-1, 2, 1).contiguous()


@settings(max_examples=40)
@given(st.integers(20, 300), st.integers(1, 20), st.integers(2, 400), st.integers(0, 5))
def test_tokens_are_served_evenly_and_without_end(n_tokens, batch, buffer, seed):
    batch = min(batch, n_tokens)
    stream = TensorStream(numbered(n_tokens), batch, seed, buffer)
    stream.group_tokens, stream.n_groups = 16, -(-n_tokens // 16)
    counts = np.zeros(n_tokens, dtype=int)
    for x in itertools.islice(stream.batches(), 4 * n_tokens // batch + 1):
        assert x.shape == (batch, 2, 1)
        np.add.at(counts, x[:, 0, 0].long().numpy(), 1)
    assert counts.sum() >= 4 * n_tokens - batch  # it wraps for ever
    # what is still in the buffer is all that can be late
    assert counts.max() <= -(-(counts.sum() + len(counts) + stream.buffer_tokens + 16) // n_tokens)


@settings(max_examples=25)
@given(st.integers(0, 60), st.integers(0, 3))
def test_starting_in_the_middle_gives_the_same_batches(start, seed):
    stream = TensorStream(numbered(200), 8, seed, 64)
    stream.group_tokens, stream.n_groups = 16, 13
    whole = list(itertools.islice(stream.batches(), start + 5))
    for a, b in zip(itertools.islice(stream.batches(start), 5), whole[start:], strict=True):
        assert torch.equal(a, b)


class Largest(TorchDispatchMode):
    """Follows the bytes of all tensors that are made inside and still there."""

    def __init__(self):
        super().__init__()
        self.there: dict[int, int] = {}  # storage -> bytes
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        old = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and _place(x) not in self.there.keys() | old:
                self.there[_place(x)] = x.untyped_storage().nbytes()
                weakref.finalize(x.untyped_storage(), self.there.pop, _place(x))
        self.peak = max(self.peak, sum(self.there.values()))
        return result


def _place(x):
    return x.untyped_storage()._cdata


def test_largest_counts_what_is_there():
    with Largest() as made:
        x = torch.ones(1000)
        y = x.view(10, 100).T
        for _ in range(5):
            y = torch.cat([x, y.flatten()[:1000]])
    # x, the last y, and the one before it
    assert made.peak == 4 * 5000 and sum(made.there.values()) == 4 * 3000


def order_by_moving_everything(stream: TensorStream) -> Iterator[np.ndarray]:
    """Tokens of each batch as a buffer gives them that is filled up, and shuffled as a whole."""
    buffer, epoch, groups = np.empty(0, int), itertools.count(), []
    for number in itertools.count():
        while len(buffer) < stream.buffer_tokens:
            if not groups:
                draw = np.random.default_rng([stream.seed, 0, next(epoch)])
                groups = list(draw.permutation(stream.n_groups))
            start = groups.pop(0) * stream.group_tokens
            arrived = np.arange(start, min(start + stream.group_tokens, stream.n_tokens))
            buffer = np.concatenate([buffer, arrived])
        buffer = buffer[np.random.default_rng([stream.seed, 1, number]).permutation(len(buffer))]
        served = buffer[: stream.buffer_tokens // 2 // stream.batch_size * stream.batch_size]
        yield from served.reshape(-1, stream.batch_size)
        buffer = buffer[len(served) :]


class FromGroups(TensorStream):
    """Reads groups into a buffer, as a stream does whose text does not stay in memory."""

    def _memory(self):
        empty = torch.full((self._most_rows(), *self._x.shape[1:]), torch.nan)
        return activations._Buffer(self, empty)


@settings(max_examples=60)
@given(
    n_tokens=st.integers(2, 300),
    batch=st.integers(1, 20),
    buffer=st.integers(2, 400),
    group=st.sampled_from([3, 16, 50, 4096]),
    start=st.integers(0, 40),
    max_norm=st.sampled_from([None, 1.5]),
)
def test_a_buffer_in_which_nothing_moves_gives_the_same_batches(
    n_tokens, batch, buffer, group, start, max_norm
):
    x = torch.randn(n_tokens, 2, 3, generator=torch.Generator().manual_seed(n_tokens))
    for kind in (TensorStream, FromGroups):
        stream = kind(x, min(batch, n_tokens), 1, buffer, max_norm=max_norm)
        stream.group_tokens, stream.n_groups = group, -(-n_tokens // group)
        expected = itertools.islice(order_by_moving_everything(stream), start, start + 12)
        found = itertools.islice(stream.batches(start), 12)
        for tokens, values in zip(expected, found, strict=True):
            wanted = x[torch.from_numpy(tokens)]
            if max_norm is not None:
                keep = (wanted.norm(dim=-1) <= max_norm * stream._medians.float()).all(1)
                wanted = wanted[keep]
            assert torch.equal(values, wanted)


def test_batches_are_those_of_earlier_versions():
    """Recorded with version 0.2: who takes up a run must find its batches."""
    x = torch.arange(50_000 * 2 * 3, dtype=torch.float32).view(-1, 2, 3)
    batches = itertools.islice(TensorStream(x, 128, 5, 3000).batches(), 0, 800, 53)
    digest = activations._digest(torch.stack(list(batches)))
    assert digest == "69e98c622eeca011"


@pytest.mark.parametrize("kept", [0, 1])
def test_one_buffer_is_in_memory_and_nothing_else_that_is_large(ckpts, kept, monkeypatch):
    """All that is made while batches are served, counted by the sizes of its storages."""
    stream = ActivationStream(
        ckpts, some_text(400, 10), 50, buffer_tokens=2000, sequences_per_group=8, cache_gb=kept
    )
    stream.scales()
    with Largest() as made:
        for _ in itertools.islice(stream.batches(), 200):
            pass
    one = stream.buffer_tokens * 3 * 32 * 4
    if kept:  # served from where they are kept
        assert stream._kept.untyped_storage().nbytes() == 400 * 9 * 3 * 32 * 4
        assert made.peak < 0.3 * one
    else:
        assert one < made.peak <= 1.3 * one


def test_no_batch_waits_for_a_device(ckpts, waits):
    text = some_text(400, 10)
    stream = ActivationStream(ckpts, text, 50, 0, 500, sequences_per_group=8, cache_gb=0)

    def serve(n):
        return lambda: [x for x in itertools.islice(stream.batches(), n)]

    assert waits(serve(5)) == waits(serve(60)) == 0
    tensors = TensorStream(torch.randn(4000, 2, 3), 50, 0, 500, max_norm=2.0)
    tensors.scales()
    per_round = 500 // 2 // 50
    assert waits(lambda: list(itertools.islice(tensors.batches(), 4 * per_round))) <= 4


def test_checkpoints_that_are_loaded_again_and_again_are_told(ckpts):
    apart = ckpts.suite.checkpoints(device="cpu")
    apart.__dict__["together"] = False
    stream = ActivationStream(apart, some_text(400, 10), 50, 0, 500, cache_gb=0)
    with pytest.warns(UserWarning, match=r"again for every 250 tokens.*ActivationCache.build") as w:
        list(itertools.islice(stream.batches(), 30))
    assert sum("ActivationCache" in str(each.message) for each in w) == 1


def test_order_depends_on_the_seed_and_mixes_sequences():
    first = [next(TensorStream(numbered(4096), 256, seed).batches())[:, 0, 0] for seed in (0, 0, 1)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert len(torch.unique(first[0] // 64)) > 32  # a batch holds tokens of many places


@pytest.mark.parametrize("cache_gb", [1.0, 0.0])
def test_activations_are_the_models_without_the_first_token(ckpts, cache_gb):
    text = some_text(40, 10)
    stream = ActivationStream(
        ckpts, text, 60, seed=3, buffer_tokens=240, sequences_per_group=8, cache_gb=cache_gb
    )
    x = stacked_activations(ckpts, text)
    known = {tuple(np.round(v[0, :4].tolist(), 3)) for v in x[:, 1:].flatten(0, 1)}
    first = {tuple(np.round(v[0, :4].tolist(), 3)) for v in x[:, 0]}
    served = torch.cat(list(itertools.islice(stream.batches(), 6)))
    keys = [tuple(np.round(v[0, :4].tolist(), 3)) for v in served]
    assert served.shape == (360, 3, 32) and set(keys) <= known and not set(keys) & first
    again = ActivationStream(
        ckpts, text, 60, seed=3, buffer_tokens=240, sequences_per_group=8, cache_gb=0.0
    )
    assert torch.equal(next(again.batches(4)), served[240:300])  # bit for bit, cached or not


def test_scales_are_those_of_the_training_positions(ckpts):
    text = some_text(40, 10)
    stream = ActivationStream(ckpts, text, 60, sequences_per_group=8)
    norms = stacked_activations(ckpts, text)[:, 1:].norm(dim=-1).mean((0, 1))
    torch.testing.assert_close(stream.scales(), 32**0.5 / norms, rtol=1e-5, atol=1e-6)


def test_fingerprint_changes_with_anything_that_changes_the_batches(ckpts):
    text = some_text(40, 10)
    base = ActivationStream(ckpts, text, 60).fingerprint()
    assert base == ActivationStream(ckpts, text.clone(), 60).fingerprint()
    others = [
        ActivationStream(ckpts, some_text(40, 10, seed=1), 60),
        ActivationStream(ckpts, text, 30),
        ActivationStream(ckpts, text, 60, seed=1),
        ActivationStream(ckpts, text, 60, sequences_per_group=8),
        ActivationStream(ckpts.suite.checkpoints(layer=0, device="cpu"), text, 60),
    ]
    assert len({base, *(s.fingerprint() for s in others)}) == 6
    assert (
        base
        != ActivationStream(
            ckpts.suite.checkpoints(ckpts.revisions[:2], device="cpu"), text, 60
        ).fingerprint()
    )


def test_errors(ckpts):
    with pytest.raises(
        ValueError, match=r"90 tokens are fewer than one batch of 1024\. Give more text"
    ):
        ctt.ActivationStream(ckpts, some_text(10, 10))
    with pytest.raises(ValueError, match=r"text must be \[sequences, length >= 2\]"):
        ctt.ActivationStream(ckpts, some_text(10, 10)[0])
