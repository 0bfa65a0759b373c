"""The stream: every token once an epoch, resumable anywhere, first token left out, scales on the
same positions.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_suite, some_text

import ctt_helpers as ctt
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
