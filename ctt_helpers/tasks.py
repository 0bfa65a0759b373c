"""Minimal pairs: one prefix, a right and a wrong next token; what a checkpoint gets right; which triplet to study."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ctt_helpers import hooks
from ctt_helpers.runtime import choose, progress

# why a pair can be left out
ONE_IS_BEGINNING = "one continuation is the beginning of the other"
DIFFERENT_PIECES = "the continuations break into different pieces"
BOUNDARY = "the prefix breaks differently before its continuation"
NO_PREFIX = "they differ from the first word on: there is no prefix to read"

TENSORS = ("input_ids", "attention_mask", "answer_position", "right", "wrong")


@dataclass(frozen=True)
class MinimalPairs:
    """A set of minimal pairs: prefixes padded on the right, and the two tokens to compare after each.

    Attributes:
        input_ids: [pairs, tokens] prefixes, the end-of-text token first; padding comes last.
        attention_mask: [pairs, tokens] 1 for real tokens.
        answer_position: [pairs] index of the last prefix token, where the next token is read.
        right: [pairs] token id of the right continuation.
        wrong: [pairs] token id of the wrong one.
        text: the sentences as read, "prefix right/*wrong".
        left_out: how many pairs of the source were left out, by reason.
        table: one row a pair, whatever the source says of it (condition, split, roles ...).
        name: the task's name.
        tokenizer_id: fingerprint of the vocabulary that the ids belong to.
    """

    input_ids: Int[Tensor, "pairs tokens"]
    attention_mask: Int[Tensor, "pairs tokens"]
    answer_position: Int[Tensor, " pairs"]
    right: Int[Tensor, " pairs"]
    wrong: Int[Tensor, " pairs"]
    text: list[str]
    left_out: dict[str, int]
    table: pd.DataFrame = field(repr=False)
    name: str = "pairs"
    tokenizer_id: str = ""

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, which: slice | Sequence[int] | np.ndarray | Tensor) -> "MinimalPairs":
        rows = np.arange(len(self))[which.cpu().numpy() if isinstance(which, Tensor) else which]
        if rows.ndim != 1:
            raise TypeError("Index minimal pairs by a slice, a list of positions or a mask: pairs[:10], pairs[[3]].")
        index = torch.as_tensor(rows)
        width = int(self.attention_mask[index].sum(1).max()) if len(rows) else 0
        tensors = {name: getattr(self, name)[index] for name in TENSORS}
        tensors |= {name: tensors[name][:, :width] for name in ("input_ids", "attention_mask")}
        text, table = [self.text[i] for i in rows], self.table.iloc[rows].reset_index(drop=True)
        return replace(self, **tensors, text=text, table=table)

    @property
    def answers(self) -> Int[Tensor, "pairs 2"]:
        """[right, wrong] token ids."""
        return torch.stack([self.right, self.wrong], dim=1)

    def positions(self, role: str) -> Bool[Tensor, "pairs tokens"]:
        """Where a role stands in each prefix: "answer" (the last token, after which the verb is predicted), or one of
        the table's column `roles` ("subject", "attractor" ...). A pair without that role has no position.

        Raises:
            ValueError: no pair has that role.
        """
        roles = self.table.get("roles", [{}] * len(self))
        where = [int(p) if role == "answer" else r.get(role) for r, p in zip(roles, self.answer_position, strict=True)]
        if all(p is None for p in where):
            known = sorted({name for r in roles for name in r})
            raise ValueError(f"No pair of {self.name!r} has a role {role!r}; there are: answer, {', '.join(known)}.")
        mask = torch.zeros(self.input_ids.shape, dtype=torch.bool)
        rows = [i for i, p in enumerate(where) if p is not None]
        mask[rows, [where[i] for i in rows]] = True
        return mask.to(self.input_ids.device)

    def to(self, device: str | torch.device) -> "MinimalPairs":
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    def batches(self, size: int) -> Iterator["MinimalPairs"]:
        """Consecutive batches of at most `size` pairs, each cut to its own longest prefix."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


@lru_cache(maxsize=16)
def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Short fingerprint of a tokenizer's vocabulary: equal for equal token ids."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def make_pairs(
    rows: Sequence[Mapping], tokenizer: Any, name: str = "pairs", continuation: str = "first"
) -> MinimalPairs:
    """Tokenize rows with "prefix", "right" and "wrong" (continuations with their leading space, as text).

    A pair stays if, written as tokens, both sentences share a prefix, then differ in one token, and go on alike
    ("hasn|'t" and "haven|'t"): it is cut right after the differing token. Otherwise it is left out and counted. The
    end-of-text token comes first, for the first token of a sequence is left out everywhere in the method.

    With continuation="whole" all that follows the shared tokens is kept beside, to the end of the sentence where the
    row has one, as lists of ids in the table's columns right_tokens and wrong_tokens: see `accuracy` with whole=True.
    Then a pair is left out only where one side is the beginning of the other. Effects take the first differing token
    of such pairs too, which says less where it is only a piece of a word.

    Args:
        rows: mappings with the three texts; further keys go into the table.
        tokenizer: a Hugging Face tokenizer.
        continuation: "first" or "whole".

    Raises:
        ValueError: no row, none that can be kept, or another word for `continuation`.
    """
    choose("continuation", continuation, ("first", "whole"))
    whole = continuation == "whole"
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("The tokenizer has no end-of-text token to begin a prefix with. Set tokenizer.bos_token.")
    rows = list(rows)
    full = {"right": "sentence", "wrong": "wrong_sentence"} if whole else {}
    texts = [r.get(full.get(side), r["prefix"] + r[side]) for r in rows for side in ("right", "wrong")]
    texts += [r["prefix"] for r in rows]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if rows else []
    encoded, prefixes = encoded[: 2 * len(rows)], encoded[2 * len(rows) :]
    kept, left_out = [], Counter()
    for right, wrong, prefix, row in zip(encoded[::2], encoded[1::2], prefixes, rows, strict=True):
        reason, same, pair = _cut(right, wrong, prefix, whole)
        if reason:
            left_out[reason] += 1
            continue
        ends = {"right_tokens": right[len(same) :], "wrong_tokens": wrong[len(same) :]} if whole else {}
        kept.append(({**row, **ends}, torch.tensor([start, *same]), pair))
    if not kept:
        raise ValueError(f"No pair of {name!r} can be used: {dict(left_out) or 'there is none'}.")
    table, prefixes, answers = zip(*kept, strict=True)
    ids, length = pad_sequence(prefixes, True, start), torch.tensor([len(prefix) for prefix in prefixes])
    right, wrong = torch.tensor(answers).T
    text = [f"{row['prefix']}{row['right']}/*{row['wrong'].lstrip()}" for row in table]
    mask = (torch.arange(ids.shape[1]) < length[:, None]).long()
    more = {"table": pd.DataFrame(table), "name": name, "tokenizer_id": tokenizer_fingerprint(tokenizer)}
    return MinimalPairs(ids, mask, length - 1, right, wrong, text, dict(left_out), **more)


def _cut(
    right: list[int], wrong: list[int], prefix: list[int], whole: bool = False
) -> tuple[str | None, list[int], tuple[int, int]]:
    """Reason to leave the pair out (or None), the shared prefix, and the two tokens that differ."""
    same = 0
    while same < min(len(right), len(wrong)) and right[same] == wrong[same]:
        same += 1
    if not prefix or not same:
        return NO_PREFIX, [], (0, 0)
    if not whole and (right[: len(prefix)] != prefix or wrong[: len(prefix)] != prefix):
        return BOUNDARY, [], (0, 0)
    if same == min(len(right), len(wrong)):
        return ONE_IS_BEGINNING, [], (0, 0)
    if not whole and right[same + 1 :] != wrong[same + 1 :]:
        return DIFFERENT_PIECES, [], (0, 0)
    return None, right[:same], (right[same], wrong[same])


def short_names(names: Sequence[str]) -> dict[str, str]:
    """A name for pictures and files: the last part of a task's name, or all but the first where two would be alike.

    "clams/fr/simple_agrmt" is "simple_agrmt", beside its English sister "fr_simple_agrmt".
    """
    ends = Counter(name.split("/")[-1] for name in set(names))
    return {n: parts[-1] if ends[parts[-1]] == 1 else "_".join(parts[1:]) for n in names for parts in [n.split("/")]}


def in_split(prefix: str, split: str) -> bool:
    """Whether a prefix belongs to "find" or "test": half and half, by a hash, so that no prefix is in both."""
    choose("split", split, ("find", "test"))
    return (hashlib.sha256(prefix.encode()).digest()[0] % 2 == 0) == (split == "find")


@torch.no_grad()
def logit_differences(
    model: hooks.HookedModel, pairs: MinimalPairs, whole: bool = False, batch_size: int = 256
) -> Float[Tensor, " pairs"]:
    """logit(right) - logit(wrong) at the last prefix token of each pair; positive where the model is right.

    With `whole`, log P(right continuation) - log P(wrong one) after each prefix, summed over all tokens of each. As
    BLiMP's own sentence scores: what both sentences share before the continuation cancels.

    Raises:
        ValueError: the pairs were made with another tokenizer than the model's, or hold no whole continuations.
    """
    check_tokenizer(model, pairs)
    if whole and "right_tokens" not in pairs.table:
        raise ValueError(f"The pairs {pairs.name!r} hold first tokens only: make them with continuation='whole'.")
    out = []
    for batch in pairs.batches(-(-batch_size // 4) if whole else batch_size):  # whole vocabularies take room
        if whole:
            right, wrong = (_log_probability(model, batch, batch.table[f"{s}_tokens"]) for s in ("right", "wrong"))
        else:
            hidden = hooks.residual_stream(model, batch.input_ids, batch.attention_mask, model.n_layers - 1)
            right, wrong = hooks.unembed(model, hidden, batch.answer_position, batch.answers).T
        out.append((right - wrong).float().cpu())
    return torch.cat(out)


def check_tokenizer(model: hooks.HookedModel, pairs: MinimalPairs) -> None:
    """Raise ValueError where the pairs' token ids belong to another vocabulary than the model's."""
    if pairs.tokenizer_id and pairs.tokenizer_id != tokenizer_fingerprint(model.tokenizer):
        raise ValueError(
            f"The pairs {pairs.name!r} were made with another tokenizer than that of {model.label!r}: their token ids "
            "mean other words there. Make them from the same suite: suite.pairs(...)."
        )


def _log_probability(
    model: hooks.HookedModel, pairs: MinimalPairs, continuations: Sequence[list[int]]
) -> Float[Tensor, " pairs"]:
    """log P(continuation | prefix), only the positions that matter going through the unembedding."""
    starts = pairs.attention_mask.sum(1).tolist()
    rows = [[*ids[:n].tolist(), *c] for ids, n, c in zip(pairs.input_ids, starts, continuations, strict=True)]
    ids = pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]).long()
    row = torch.tensor([i for i, c in enumerate(continuations) for _ in c])
    position = torch.tensor([n + k for n, c in zip(starts, continuations, strict=True) for k in range(len(c))])
    hidden = hooks.residual_stream(model, ids, mask, layer=model.n_layers - 1)
    logits = hooks.at_least_float32(hooks.unembed(model, hidden[row, position - 1]))
    each = logits.log_softmax(-1).gather(1, ids[row, position, None].to(logits.device))[:, 0]
    return torch.zeros(len(rows), dtype=each.dtype, device=each.device).index_add_(0, row.to(each.device), each)


def accuracy(model: hooks.HookedModel, pairs: MinimalPairs, whole: bool = False) -> float:
    """Share of pairs whose right token has the higher logit; a tie counts as wrong.

    With `whole`, whose right continuation is more probable, all its tokens together (see `make_pairs`).
    """
    return float((logit_differences(model, pairs, whole) > 0).double().mean())


def twins(pairs: MinimalPairs, words: Sequence[str] = ("head", "attractor", "verb")) -> Int[np.ndarray, " pairs"]:
    """One number a pair, the same for pairs made of the same words (singular and plural, say): one observation.

    Without any of these columns in `pairs.table`, each pair stands by itself.
    """
    there = [w for w in words if w in pairs.table]
    return pairs.table.groupby(there, dropna=False).ngroup().to_numpy() if there else np.arange(len(pairs))


def accuracy_curve(
    suite: Any,
    tasks: Mapping[str, MinimalPairs],
    revisions: Sequence[str] | None = None,
    device: str = "auto",
    whole: bool = False,
) -> pd.DataFrame:
    """Accuracy of every task at every revision, one model in memory at a time.

    Returns:
        Tidy table: revision, tokens_seen, task, accuracy, stderr (binomial), n_pairs, logit_difference (mean; with
        `whole` the mean difference of log-probabilities).
    """
    checkpoints, rows = suite.checkpoints(revisions, device=device), []
    for model in progress(checkpoints.one_by_one(), "accuracy", total=len(checkpoints)):
        for task, pairs in tasks.items():
            difference = logit_differences(model, pairs, whole)
            share, n = float((difference > 0).double().mean()), len(pairs)
            stderr = (share * (1 - share) / n) ** 0.5
            rows.append((model.label, model.tokens_seen, task, share, stderr, n, float(difference.mean())))
    columns = ["revision", "tokens_seen", "task", "accuracy", "stderr", "n_pairs", "logit_difference"]
    return pd.DataFrame(rows, columns=columns)
