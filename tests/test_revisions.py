"""The order of training from names: stages in turn, then steps; a refusal where they do not
tell.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctt_helpers.sources.revisions import in_training_order, nearest, step_of, tokens_of

PATTERNS = ["step{}", "checkpoint-{}", "iter_{:07}", "{}", "global_step{}", "epoch_{}", "v2-step{}"]


@given(
    st.sampled_from(PATTERNS), st.sets(st.integers(0, 10**6), min_size=1, max_size=8), st.randoms()
)
def test_numbers_count_not_letters(pattern, steps, random):
    names = [pattern.format(step) for step in sorted(steps)]
    shuffled = random.sample(names, len(names))
    assert in_training_order(shuffled) == names
    assert in_training_order([*shuffled, "main"]) == [*names, "main"]
    assert [step_of(name) for name in names] == sorted(steps)


def test_stages_come_in_turn():
    names = [
        "stage1-step1000-tokens3B", "stage1-step1907359-tokens4001B",
        "stage2-ingredient1-step1000-tokens3B", "stage2-ingredient1-step23852-tokens51B",
        "stage2-ingredient2-step1000-tokens3B", "main",
    ]  # fmt: skip
    assert in_training_order(names[::-1]) == names
    # a second stage counts from its own start: what it has seen in all, its name does not tell
    assert [tokens_of(name) for name in names] == [3 * 10**9, 4001 * 10**9, None, None, None, None]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["seed1-step100", "seed2-step50"], "differ in 'seed', too"),
        (["runA-500", "runB-1000"], "look like checkpoints of two runs"),
        (["checkpoint-500", "step500"], "look like checkpoints of two runs"),
        (["best", "step5"], "'best' has no number"),
        (["main", "final", "step3"], "main and final would both be the last"),
        (["step1", "step01"], "have the same step"),
        (["step10-tokens4B", "step20-tokens3B"], "has more tokens"),
    ],
)
def test_an_order_that_is_not_told_is_refused(names, why):
    with pytest.raises(ValueError, match=rf"order of training cannot be told.*{why}.*revisions="):
        in_training_order(names)


def test_tokens_are_right_or_none():
    assert tokens_of("step512", 2_097_152) == 1_073_741_824
    assert tokens_of("checkpoint-500", 10) == 5000
    assert tokens_of("step1000-tokens2B", 10) == 2 * 10**9
    assert tokens_of("epoch-3", 10) is None  # an epoch is no step
    assert tokens_of("step512") is None and tokens_of("main", 10) is None


def test_the_nearest_name_is_suggested():
    known = ["step0", "step512", "step1000", "main"]
    assert nearest("step513", known) == " Did you mean 'step512'?"
    assert nearest("step900", known) == " Did you mean 'step1000'?"
    assert nearest("mian", known) == " Did you mean 'main'?"
    assert nearest("checkpoint-5", known) == ""
