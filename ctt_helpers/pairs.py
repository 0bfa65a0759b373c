"""Minimal pairs: one prefix, a right and a wrong next token, and where its words stand.

A pair is cut where its two sentences, written as tokens, begin to differ. What cannot be cut so is
left out, counted and told; nothing is guessed.
"""

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
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ctt_helpers.arguments import checked
from ctt_helpers.messages import choose, whole_number

# why a pair can be left out
NOT_TEXT = "a sentence of the pair is missing or is no text"
IDENTICAL = "the two sentences are the same"
ONE_IS_BEGINNING = "one continuation is the beginning of the other"
DIFFERENT_PIECES = "the continuations break into different pieces"
BOUNDARY = "the prefix breaks differently before its continuation"
NO_PREFIX = "they differ from the first word on: there is no prefix to read"
TWO_PREFIX = "the prefixes differ, not the continuations: for whole sentences only"
WHOLE_ONLY = "its authors give it for whole sentences only"
REPEATED = "it repeats another pair once it is cut after the differing token"
FOR_WHOLE = (NO_PREFIX, TWO_PREFIX, WHOLE_ONLY, DIFFERENT_PIECES, BOUNDARY)

LEVEL = "_level"  # of the table's columns that say what is crossed
TENSORS = ("input_ids", "attention_mask", "answer_position", "right", "wrong")


@dataclass(frozen=True)
class MinimalPairs:
    """A set of minimal pairs: prefixes padded on the right, and two tokens to compare after each.

    Attributes:
        input_ids: [pairs, tokens] prefixes, the start token first (see `start_token`); padding
            comes last.
        attention_mask: [pairs, tokens] 1 for real tokens.
        answer_position: [pairs] index of the last prefix token, where the next token is read.
        right: [pairs] token id of the right continuation.
        wrong: [pairs] token id of the wrong one.
        text: the sentences as read, "prefix right/*wrong".
        left_out: how many pairs of the source were left out, by reason.
        table: one row a pair, whatever the source says of it (split, levels, roles ...).
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
        which = which.cpu().numpy() if isinstance(which, Tensor) else which
        rows = np.arange(len(self))[which].copy()  # tensors know no steps backwards
        if rows.ndim != 1:
            raise TypeError(
                "Index minimal pairs by a slice, a list of positions or a mask: pairs[:10], "
                "pairs[[3]]."
            )
        index = torch.as_tensor(rows)
        width = int(self.attention_mask[index].sum(1).max()) if len(rows) else 0
        tensors = {name: getattr(self, name)[index] for name in TENSORS}
        for name in ("input_ids", "attention_mask"):
            tensors[name] = tensors[name][:, :width]
        text = [self.text[row] for row in rows]
        table = self.table.iloc[rows].reset_index(drop=True)
        return replace(self, **tensors, text=text, table=table)

    @property
    def answers(self) -> Int[Tensor, "pairs 2"]:
        """[right, wrong] token ids."""
        return torch.stack([self.right, self.wrong], dim=1)

    @property
    def begins_with(self) -> int | None:
        """The token that every prefix begins with; None where there is no pair."""
        return int(self.input_ids[0, 0]) if len(self) else None

    @checked
    def positions(self, role: str) -> Bool[Tensor, "pairs tokens"]:
        """Where a role stands in each prefix; a pair without that role has no position.

        Args:
            role: "answer" (the last token, after which the verb is predicted), or one of the
                table's column `roles` ("subject", "attractor" ...).

        Raises:
            ValueError: no pair has that role.
        """
        roles = self.table.get("roles", [{}] * len(self))
        answers = self.answer_position.tolist()
        where = [
            answer if role == "answer" else own.get(role)
            for own, answer in zip(roles, answers, strict=True)
        ]
        if all(position is None for position in where):
            known = ", ".join(sorted({name for own in roles for name in own}))
            raise ValueError(
                f"No pair of {self.name!r} has a role {role!r}; there are: answer, {known}."
            )
        mask = torch.zeros(self.input_ids.shape, dtype=torch.bool)
        for row, position in enumerate(where):
            if position is not None:
                mask[row, position] = True
        return mask.to(self.input_ids.device)

    @property
    def levels(self) -> dict[str, list[str]]:
        """What the pairs cross: factor ("subject", "attractor" ...) -> its levels.

        A factor is a column "<factor>_level" of the table.
        """
        found = {}
        for column in self.table.columns:
            if str(column).endswith(LEVEL) and self.table[column].notna().any():
                values = self.table[column].dropna()
                found[column.removesuffix(LEVEL)] = list(dict.fromkeys(values))
        return found

    @property
    def cells(self) -> np.ndarray:
        """[pairs] the cell of each pair: its levels in a row, "sg-pl"; "" without any factor."""
        columns = [factor + LEVEL for factor in self.levels]
        if not columns:
            return np.full(len(self), "", dtype=object)
        levels = zip(*(self.table[column].astype(str) for column in columns), strict=True)
        return np.array(["-".join(each) for each in levels], dtype=object)

    @checked
    def cell(
        self, subject: str | None = None, attractor: str | None = None, **others: str
    ) -> "MinimalPairs":
        """The pairs of one cell of the design, or of one level of a factor.

        cell("sg", "pl") has a singular subject and a plural attractor; cell(attractor="pl") any
        subject.

        Args:
            subject: level of what decides; None: any.
            attractor: level of what distracts; None: any.
            others: levels of further factors, by name.

        Raises:
            ValueError: no such factor or level, or no pair in that cell.
        """
        wanted = {"subject": subject, "attractor": attractor, **others}
        wanted = {factor: level for factor, level in wanted.items() if level is not None}
        there = self.levels
        inside = np.ones(len(self), bool)
        for factor, level in wanted.items():
            if level not in there.get(factor, []):
                told = "; ".join(f"{name}: {', '.join(own)}" for name, own in there.items())
                raise ValueError(
                    f"{self.name!r} has no level {level!r} of {factor!r}. There are: "
                    f"{told or 'none'}."
                )
            inside &= (self.table[factor + LEVEL] == level).to_numpy()
        if not inside.any():
            raise ValueError(f"{self.name!r} has no pair with {wanted}.")
        return self[inside]

    @property
    def congruent(self) -> Bool[np.ndarray, " pairs"]:
        """Where nothing distracts: every factor has the level of the subject.

        Raises:
            ValueError: nothing is crossed with the subject.
        """
        columns = [factor + LEVEL for factor in self.levels]
        if "subject" + LEVEL not in columns or len(columns) < 2:
            raise ValueError(
                f"In {self.name!r} nothing is crossed with the subject: it has the factors "
                f"{', '.join(self.levels) or 'none'}."
            )
        same = self.table[columns].eq(self.table["subject" + LEVEL], axis=0)
        return same.all(axis=1).to_numpy()

    @checked
    def partners(self, factor: str) -> Int[np.ndarray, " pairs"]:
        """For each pair the one of its group in which only this factor has its other level.

        As `partner` of effects with baseline="resample": what would latents say in that cell? -1
        where there is none, or where it has another number of tokens.

        Raises:
            ValueError: no such factor, or one that has not two levels.
        """
        levels = self.levels.get(factor, [])
        if len(levels) != 2:
            raise ValueError(
                f"{factor!r} has the levels {levels} in {self.name!r}: a partner has the other of "
                f"two. There are the factors {', '.join(self.levels) or 'none'}."
            )
        columns = [other + LEVEL for other in self.levels]
        groups = self.table["group"] if "group" in self.table else twins(self)
        keys = self.table[columns].astype(object).assign(group=groups)
        row_of = {tuple(key): row for row, key in enumerate(keys.to_numpy())}
        turned = {levels[0]: levels[1], levels[1]: levels[0]}
        keys[factor + LEVEL] = keys[factor + LEVEL].map(turned)
        partner = np.array([row_of.get(tuple(key), -1) for key in keys.to_numpy()])
        n_tokens = self.attention_mask.sum(1).cpu().numpy()
        return np.where(n_tokens == n_tokens[partner], partner, -1)

    @checked
    def to(self, device: str | torch.device) -> "MinimalPairs":
        try:
            device = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device={device!r} is not known: take 'cpu', 'cuda' ...") from error
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    @checked
    def batches(self, size: int) -> Iterator["MinimalPairs"]:
        """Consecutive batches of at most `size` pairs, each cut to its own longest prefix."""
        size = whole_number("batch_size", size)
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @checked
    def sample(self, n: int, seed: int = 0) -> "MinimalPairs":
        """`n` pairs drawn over the whole set (all of them where there are fewer), in their order.

        Files are often ordered by their words: the first rows of one are no sample. Pairs of the
        same words (`twins`) stay together where they fit, so that singular and plural stay even.
        """
        n = whole_number("n", n)
        if n >= len(self):
            return self
        labels = twins(self)
        order = np.random.default_rng(seed).permutation(labels.max() + 1)
        rank = np.argsort(order)[labels]  # when each pair's group is drawn
        return self[np.sort(np.argsort(rank, kind="stable")[:n])]


@lru_cache(maxsize=16)
def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Short fingerprint of a tokenizer's vocabulary: equal for equal token ids."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def start_token(tokenizer: Any) -> int:
    """The token that every sequence begins with here, pairs and running text alike.

    The beginning-of-text token where the tokenizer has one, else the end-of-text token. The first
    token of a sequence draws attention whatever it is, so the crosscoder must be trained and asked
    with the same one.

    Raises:
        ValueError: the tokenizer has neither.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "eos_token_id"):
        raise ValueError(f"tokenizer={tokenizer!r:.60}: give a tokenizer of Hugging Face's.")
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError(
        "The tokenizer has neither a beginning-of-text nor an end-of-text token to begin a "
        "sequence with. Set tokenizer.bos_token."
    )


# ---- making pairs


@dataclass
class _Cut:
    """A pair as tokens: what the sides share, and what each goes on with."""

    row: dict[str, Any]
    prefix: list[int]
    right: list[int]
    wrong: list[int]


@checked
def make_pairs(
    rows: Sequence[Mapping], tokenizer: Any, name: str = "pairs", continuation: str = "first"
) -> MinimalPairs:
    """Tokenize rows with "prefix", "right" and "wrong" (continuations with their leading space).

    A pair stays if, written as tokens, both sentences share a prefix, then differ in one token, and
    go on alike ("hasn|'t" and "haven|'t"): it is cut right after the differing token. Otherwise it
    is left out and counted; so is one that, once cut, repeats another: it is one observation.

    With continuation="whole" all that follows the shared tokens is kept beside, to the end of the
    sentence where the row has one, as lists of ids in the table's columns right_tokens and
    wrong_tokens: see `behaviour.accuracy` with whole=True. Then a pair is left out only where the
    sentences are the same or one is the beginning of the other; sentences without a shared word are
    compared as wholes. Effects take the first differing token of such pairs too, which says less
    where it is only a piece of a word.

    Args:
        rows: mappings with the three texts. Further keys go into the table; of these, "sentence"
            and "wrong_sentence" are the whole sentences, "cut" is "characters" where there are no
            words to cut at, "form" is "two_prefix" or "sentence" for pairs that can only be
            compared as whole sentences, and "left_out" is why a row could not be read.
        tokenizer: a Hugging Face tokenizer.
        name: of the task.
        continuation: "first" or "whole".

    Raises:
        ValueError: no row, none that can be kept, or another word for `continuation`.
    """
    choose("continuation", continuation, ("first", "whole"))
    whole = continuation == "whole"
    start = start_token(tokenizer)
    left_out: Counter[str] = Counter()
    readable = []
    for row in rows:
        reason = _why_unreadable(row, whole)
        if reason:
            left_out[reason] += 1
        else:
            readable.append(dict(row))
    kept: list[_Cut] = []
    seen = set()
    for row, right, wrong, prefix in _encoded(readable, tokenizer, whole):
        reason, same = _cut(right, wrong, prefix, whole, row.get("cut") == "characters")
        if not reason:
            ends = (
                (right[same:], wrong[same:])
                if whole
                else (right[same : same + 1], wrong[same : same + 1])
            )
            key = (tuple(right[:same]), tuple(ends[0]), tuple(ends[1]))
            reason = REPEATED if key in seen else None
            seen.add(key)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(_Cut(row=row, prefix=right[:same], right=ends[0], wrong=ends[1]))
    if not kept:
        raise ValueError(_none_is_left(name, left_out, whole))
    return _assemble(kept, left_out, tokenizer, start, name, whole)


def _why_unreadable(row: Mapping, whole: bool) -> str | None:
    """Why a row cannot be read at all, before any token is looked at."""
    if row.get("left_out"):
        return str(row["left_out"])
    texts = [row.get(key) for key in ("prefix", "right", "wrong")]
    if not all(isinstance(text, str) for text in texts):
        return NOT_TEXT
    if texts[1] == texts[2] and row.get("sentence", "") == row.get("wrong_sentence", ""):
        return IDENTICAL if texts[1] or row.get("sentence") else NOT_TEXT
    if not texts[1] or not texts[2]:
        return ONE_IS_BEGINNING
    form = row.get("form")
    if form in ("two_prefix", "sentence") and not whole:
        return TWO_PREFIX if form == "two_prefix" else WHOLE_ONLY
    return None


def _encoded(
    rows: Sequence[dict], tokenizer: Any, whole: bool
) -> Iterator[tuple[dict, list[int], list[int], list[int]]]:
    """Each row with the tokens of its right side, its wrong side, and its prefix alone."""
    texts: list[str] = []
    for row in rows:
        sentences = (row.get("sentence"), row.get("wrong_sentence"))
        if not all(sentences) or not (whole or row.get("cut") == "characters"):
            sentences = (row["prefix"] + row["right"], row["prefix"] + row["wrong"])
        texts += [*sentences, row["prefix"]]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    for index, row in enumerate(rows):
        right, wrong, prefix = encoded[3 * index : 3 * index + 3]
        yield row, right, wrong, prefix


def _cut(
    right: list[int], wrong: list[int], prefix: list[int], whole: bool, anywhere: bool
) -> tuple[str | None, int]:
    """Reason to leave the pair out (or None), and how many tokens the two sides share.

    Args:
        whole: all that follows is compared, so that any first difference will do.
        anywhere: a token may cross the border between prefix and continuation, for the script has
            no spaces.
    """
    same = 0
    while same < min(len(right), len(wrong)) and right[same] == wrong[same]:
        same += 1
    if same == min(len(right), len(wrong)):
        return (IDENTICAL if len(right) == len(wrong) else ONE_IS_BEGINNING), same
    if whole:
        return None, same
    if not prefix or not same:
        return NO_PREFIX, same
    if not anywhere and (right[: len(prefix)] != prefix or wrong[: len(prefix)] != prefix):
        return BOUNDARY, same
    if right[same + 1 :] != wrong[same + 1 :]:
        return DIFFERENT_PIECES, same
    return None, same


def _none_is_left(name: str, left_out: Mapping[str, int], whole: bool) -> str:
    told = "; ".join(f"{reason} ({count})" for reason, count in left_out.items())
    advice = ""
    if not whole and any(reason in FOR_WHOLE for reason in left_out):
        advice = " With continuation='whole' they can be compared as whole sentences."
    return f"No pair of {name!r} can be used: {told or 'there is none'}.{advice}"


def _assemble(
    kept: list[_Cut], left_out: Counter, tokenizer: Any, start: int, name: str, whole: bool
) -> MinimalPairs:
    prefixes = [torch.tensor([start, *cut.prefix]) for cut in kept]
    lengths = torch.tensor([len(prefix) for prefix in prefixes])
    ids = pad_sequence(prefixes, batch_first=True, padding_value=start)
    table = pd.DataFrame([cut.row for cut in kept])
    if whole:
        table["right_tokens"] = pd.Series([cut.right for cut in kept], dtype=object)
        table["wrong_tokens"] = pd.Series([cut.wrong for cut in kept], dtype=object)
    return MinimalPairs(
        input_ids=ids,
        attention_mask=(torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        answer_position=lengths - 1,
        right=torch.tensor([cut.right[0] for cut in kept]),
        wrong=torch.tensor([cut.wrong[0] for cut in kept]),
        text=[f"{c.row['prefix']}{c.row['right']}/*{c.row['wrong'].lstrip()}" for c in kept],
        left_out=dict(left_out),
        table=table,
        name=name,
        tokenizer_id=tokenizer_fingerprint(tokenizer),
    )


# ---- what pairs have to do with each other, and with a model


@checked
def twins(
    pairs: MinimalPairs, words: Sequence[str] = ("head", "attractor", "verb")
) -> Int[np.ndarray, " pairs"]:
    """One number a pair, the same for pairs made of the same words: one observation.

    Singular and plural of one sentence, say. Pairs belong together that agree in all these columns
    of `pairs.table`, or in the column "group" where there is one (of a design whose words change
    with its levels), also by way of a third pair. Without any of these columns, each pair stands by
    itself.
    """
    labels = np.arange(len(pairs))
    there = [word for word in words if word in pairs.table]
    for columns in (there, ["group"] if "group" in pairs.table else []):
        if columns:
            own = pairs.table.groupby(columns, dropna=False).ngroup().to_numpy()
            labels = _joined(labels, own)
    return labels


def _joined(
    labels: Int[np.ndarray, " pairs"], other: Int[np.ndarray, " pairs"]
) -> Int[np.ndarray, " pairs"]:
    """The finest partition in which pairs are together that either partition puts together."""
    while True:
        # each pair takes the smallest label of its own group, until nothing changes
        smallest = np.full(other.max(initial=-1) + 1, len(labels))
        np.minimum.at(smallest, other, labels)
        by_other = smallest[other]
        smallest = np.full(len(labels), len(labels))
        np.minimum.at(smallest, labels, by_other)
        joined = smallest[labels]
        if (joined == labels).all():
            return np.unique(labels, return_inverse=True)[1]
        labels = joined


def check_tokenizer(pairs: MinimalPairs, tokenizer: Any, label: str) -> None:
    """Raise ValueError where the pairs' token ids belong to another vocabulary than the model's, or
    there is no pair.
    """
    if not len(pairs):
        raise ValueError(f"{pairs.name!r} holds no pair: give one at least.")
    if pairs.tokenizer_id and pairs.tokenizer_id != tokenizer_fingerprint(tokenizer):
        raise ValueError(
            f"The pairs {pairs.name!r} were made with another tokenizer than that of {label!r}: "
            "their token ids mean other words there. Make them from the same suite: "
            "suite.pairs(...)."
        )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """A name for pictures and files: the last part of a task's name.

    Or its last two parts, where two would be alike: "clams/fr/simple_agrmt" is "simple_agrmt",
    beside its English sister "fr_simple_agrmt", and "gender/pp" is "gender_pp" beside
    "agreement/pp".
    """
    ends = Counter(name.split("/")[-1] for name in set(names))
    short = {}
    for name in names:
        parts = name.split("/")
        short[name] = parts[-1] if ends[parts[-1]] == 1 else "_".join(parts[-2:])
    return short


def in_split(prefix: str, split: str) -> bool:
    """Whether a prefix belongs to "find" or "test": half and half, by a hash.

    So no prefix is in both.
    """
    choose("split", split, ("find", "test"))
    even = hashlib.sha256(prefix.encode()).digest()[0] % 2 == 0
    return even == (split == "find")
