"""Control groups and random directions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ctt_helpers as ctt
from ctt_helpers.controls import control_groups, random_directions


@given(st.integers(1, 10), st.integers(0, 10), st.booleans(), st.integers(0, 100))
def test_groups_are_other_latents_as_many(count, spare, sized, seed):
    latents = np.random.default_rng(seed).permutation(2 * count + spare + 5).tolist()
    group, eligible = latents[:count], latents[: 2 * count + spare]  # five are not eligible
    size = np.random.default_rng(seed).lognormal(size=len(latents)) if sized else None
    groups = control_groups(group, eligible, n_groups=3, seed=seed, size=size)
    assert len(groups) == 3
    for control in groups:
        assert len(set(control)) == len(control) == count
        assert set(control) <= set(eligible) - set(group)
    assert groups == control_groups(group, reversed(eligible), n_groups=3, seed=seed, size=size)


def test_seeds_and_groups_differ_and_every_eligible_latent_gets_its_turn():
    groups = control_groups([0, 1], range(12), n_groups=200)
    assert groups != control_groups([0, 1], range(12), n_groups=200, seed=1)
    assert {i for g in groups for i in g} == set(range(2, 12))


@given(st.integers(0, 1000))
def test_a_member_is_replaced_by_one_of_the_closest_in_size(seed):
    size = np.random.default_rng(seed).lognormal(sigma=2, size=50)
    for among in (1, 4):
        for (control,) in control_groups(
            [7], range(50), n_groups=5, seed=seed, size=size, among=among
        ):
            others = np.delete(size, 7)
            closer = np.abs(np.log(others / size[7])) < np.abs(np.log(size[control] / size[7]))
            assert closer.sum() < among


def test_matched_groups_are_closer_in_size_than_random_ones():
    size = np.random.default_rng(0).lognormal(sigma=2, size=300)
    group = np.argsort(size)[100:110].tolist()
    gaps = [
        np.mean(
            [
                np.abs(np.log(size[g] / size[group])).mean()
                for g in control_groups(group, range(300), size=s)
            ]
        )
        for s in (None, size)
    ]
    assert gaps[1] < gaps[0] / 10


def test_groups_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="2 eligible latents"):
        control_groups([0, 1, 2], range(5))
    with pytest.raises(ValueError, match="not a number above 0"):
        control_groups([0], range(5), size=np.array([1.0, 0, 1, 1, 1]))
    with pytest.raises(ValueError, match="at least 1"):
        control_groups([0], range(5), n_groups=0)


@pytest.mark.parametrize(
    "shape", [(2, 16, 40), (3, 64, 300), (6, 4, 10)]
)  # the last has more checkpoints than dims
def test_random_directions_keep_all_but_the_directions(shape):
    crosscoder = ctt.Crosscoder(*shape, k=4).eval()
    with torch.no_grad():
        crosscoder.W_dec.mul_(
            torch.rand(shape[2], shape[0], 1, generator=torch.Generator().manual_seed(1))
        )
        crosscoder.threshold.fill_(0.1)
    before = {k: v.clone() for k, v in crosscoder.state_dict().items()}
    drawn = random_directions(crosscoder, seed=3)
    assert all(torch.equal(v, crosscoder.state_dict()[k]) for k, v in before.items())
    x = torch.randn(500, *shape[:2], generator=torch.Generator().manual_seed(2)) * 3
    f = crosscoder.encode(x)
    assert 0 < (f > 0).float().mean() < 1
    assert torch.equal(drawn.encode(x), f)
    old, new = crosscoder.W_dec.detach(), drawn.W_dec
    assert torch.allclose(
        new @ new.mT, old @ old.mT, atol=1e-6
    )  # norms, and angles between checkpoints
    assert torch.equal(new, random_directions(crosscoder, seed=3).W_dec)
    cosine = torch.nn.functional.cosine_similarity(new, old, dim=-1).flatten()
    cosine = torch.cat(
        [cosine, torch.nn.functional.cosine_similarity(new[1:], new[:-1], dim=-1).flatten()]
    )
    independent = 2 * shape[2]  # directions of one latent are not, over checkpoints
    assert cosine.mean().abs() < 4 / (independent * shape[1]) ** 0.5
    assert cosine.pow(2).mean() == pytest.approx(
        1 / shape[1], rel=4 * (2 / independent) ** 0.5
    )  # uniform
