"""A shuffled, endless stream of raw activations, the same tokens at every checkpoint.

Batches are [tokens, checkpoints, d_model]. The order of tokens is worked out on indices alone, from
the seed. So a stream can start anywhere without having been run up to there, and a resumed training
sees the very batches that it would have seen.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ctt_helpers import hooks
from ctt_helpers.hooks import stacked_activations as stacked_activations
from ctt_helpers.messages import whole_number

if TYPE_CHECKING:
    from ctt_helpers.sources.checkpoints import Checkpoints

SAMPLE_TOKENS = 65_536  # that scales are taken over
MASSIVE = 10.0  # a token whose norm is this many times the median is massive
MASSIVE_SHARE = 0.3  # of the sum of squares: if massive tokens hold more, a warning


class TensorStream:
    """Batches from a tensor of activations that is already there (planted data, or one's own).

    Args:
        x: [tokens, checkpoints, d_model] raw activations.
        batch_size: tokens a batch.
        seed: of the order of tokens.
        buffer_tokens: size of the shuffle buffer; half of it is given out before it is filled up
            again.
        source: what the activations come from; a trained crosscoder carries it along.
        max_norm: leave out tokens whose norm is more than so many times the median norm, at any
            checkpoint; batches are then smaller by these. None: keep all.

    Raises:
        ValueError: fewer tokens than one batch, or sizes below 1.
    """

    group_tokens = 4096

    def __init__(
        self,
        x: Float[Tensor, "tokens checkpoints d_model"],
        batch_size: int = 1024,
        seed: int = 0,
        buffer_tokens: int = 2**17,
        source: dict[str, Any] | None = None,
        max_norm: float | None = None,
    ):
        if x.ndim != 3:
            raise ValueError(
                f"Activations of shape {tuple(x.shape)}: give [tokens, checkpoints, d_model]."
            )
        self._x = x
        self.source = source or {"data": _digest(x)}
        self.n_checkpoints, self.d_model = x.shape[1:]
        n_groups = -(-len(x) // self.group_tokens)
        self._set_up(len(x), n_groups, batch_size, seed, buffer_tokens, max_norm)

    def _set_up(
        self,
        n_tokens: int,
        n_groups: int,
        batch_size: int,
        seed: int,
        buffer_tokens: int,
        max_norm: float | None,
    ) -> None:
        batch_size = whole_number("batch_size", batch_size)
        if n_tokens < batch_size:
            raise ValueError(
                f"{n_tokens} tokens are fewer than one batch of {batch_size}. Give more text."
            )
        if max_norm is not None and not max_norm > 1:
            raise ValueError(
                f"max_norm={max_norm!r} counts in median norms: take a number above 1, or None."
            )
        self.n_tokens, self.n_groups = n_tokens, n_groups
        self.batch_size, self.seed, self.max_norm = batch_size, seed, max_norm
        buffer_tokens = whole_number("buffer_tokens", buffer_tokens)
        self.buffer_tokens = max(2 * batch_size, min(buffer_tokens, n_tokens))
        self._scales: Tensor | None = None
        self._medians: Tensor | None = None

    # ---- groups of tokens, the unit of reading

    def _group_size(self, group: int) -> int:
        return min(self.group_tokens, self.n_tokens - group * self.group_tokens)

    def _group_order(self) -> Iterator[int]:
        """Groups, each once an epoch, in a new order each time, for ever."""
        for epoch in itertools.count():
            yield from (
                np.random.default_rng([self.seed, 0, epoch]).permutation(self.n_groups).tolist()
            )

    def _read(
        self, groups: Sequence[int]
    ) -> Iterator[tuple[int, int, Float[Tensor, "tokens d_model"]]]:
        """(checkpoint, place in `groups`, activations), one checkpoint after another."""
        for c in range(self.n_checkpoints):
            for place, group in enumerate(groups):
                start = group * self.group_tokens
                yield c, place, self._x[start : start + self._group_size(group), c]

    def _empty(self, n_tokens: int) -> Float[Tensor, "tokens checkpoints d_model"]:
        return self._x.new_empty(n_tokens, self.n_checkpoints, self.d_model)

    # ---- scales

    def scales(self) -> Float[Tensor, " checkpoints"]:
        """s_c = sqrt(d_model) / mean norm, over a sample of the positions that training sees.

        A warning where a few massive tokens make most of the sum of squares: the scales, and the
        explained variance, are then theirs. `max_norm` leaves them out.

        Raises:
            ValueError: norms that are not finite, or all 0.
        """
        if self._scales is not None:
            return self._scales
        sample, seen = [], 0
        for group in itertools.islice(self._group_order(), self.n_groups):
            sample.append(group)
            seen += self._group_size(group)
            if seen >= SAMPLE_TOKENS:
                break
        parts: list[list[Tensor]] = [[] for _ in range(self.n_checkpoints)]
        for c, _, x in self._read(sample):
            parts[c].append(x.norm(dim=-1).cpu().double())
        norms = torch.stack([torch.cat(part) for part in parts])  # [checkpoints, tokens]
        if not norms.isfinite().all() or not (norms.mean(1) > 0).all():
            mean = norms.mean(1).tolist()
            raise ValueError(
                f"The mean norms of the activations are {mean}, by checkpoint: they must be finite "
                "and above 0. Look at the activations; half precision may overflow."
            )
        self._medians = norms.median(dim=1).values
        if self.max_norm is not None:
            keep = (norms <= self.max_norm * self._medians[:, None]).all(0)
            norms = norms[:, keep]
        else:
            self._tell_massive(norms)
        self._scales = (self.d_model**0.5 / norms.mean(1)).float()
        return self._scales

    def _tell_massive(self, norms: Float[Tensor, "checkpoints tokens"]) -> None:
        squares = norms.square()
        massive = norms > MASSIVE * self._medians[:, None]
        share = (squares * massive).sum(1) / squares.sum(1)
        c = int(share.argmax())
        if share[c] <= MASSIVE_SHARE:
            return
        label = self.source.get("revisions", range(self.n_checkpoints))[c]
        ordinary = norms[c][~massive[c]].mean()
        warnings.warn(
            f"At checkpoint {label}, {massive[c].double().mean():.2%} of the tokens have more than "
            f"{MASSIVE:g} times the median norm (the largest "
            f"{norms[c].max() / self._medians[c]:,.0f} times) and hold {share[c]:.0%} of the sum "
            f"of squares. The scale there is {norms[c].mean() / ordinary:.1f} times smaller "
            f"because of them, and the explained variance is theirs. max_norm={MASSIVE:g} leaves "
            "such tokens out.",
            stacklevel=4,
        )

    def _ordinary(self, batch: Float[Tensor, "tokens checkpoints d_model"]) -> Tensor:
        """The batch without the tokens that are left out."""
        if self.max_norm is None:
            return batch
        self.scales()  # takes the medians
        bound = self.max_norm * self._medians.to(batch)
        return batch[(batch.norm(dim=-1) <= bound).all(1)]

    # ---- batches

    def batches(self, start: int = 0) -> Iterator[Float[Tensor, "batch checkpoints d_model"]]:
        """Batches from number `start` on, without end; past the last token the data begin again.

        Then they come in another order. Each token of an epoch is served once; only the buffer's
        rest carries over from round to round.
        """
        per_round = self.buffer_tokens // 2 // self.batch_size
        served = per_round * self.batch_size
        first_round, skip = divmod(start, per_round)
        order = self._group_order()
        places = np.empty(0, np.int64)  # the buffer, as indices of tokens
        values: Tensor | None = None  # ... and as activations, once they are needed
        for number in itertools.count():
            new, size = [], len(places)
            while size < self.buffer_tokens:
                new.append(next(order))
                size += self._group_size(new[-1])
            arrived = [
                group * self.group_tokens + np.arange(self._group_size(group)) for group in new
            ]
            places = np.concatenate([places, *arrived])
            shuffle = np.random.default_rng([self.seed, 1, number]).permutation(len(places))
            places = places[shuffle]
            if number >= first_round:
                if values is None:
                    values = self._gather(places)
                else:
                    values = self._refill(values, new, shuffle)
                for index in range(skip if number == first_round else 0, per_round):
                    batch = values[index * self.batch_size : (index + 1) * self.batch_size]
                    yield self._ordinary(batch)
                values = values[served:]
            places = places[served:]

    def _gather(self, places: np.ndarray) -> Float[Tensor, "tokens checkpoints d_model"]:
        """The activations of any tokens, from whatever groups they are in."""
        groups, rows = np.divmod(places, self.group_tokens)
        needed = np.unique(groups).tolist()
        values = self._empty(len(places))
        for c, place, x in self._read(needed):
            here = np.flatnonzero(groups == needed[place])
            values[torch.from_numpy(here), c] = x[torch.from_numpy(rows[here])]
        return values

    def _refill(
        self, rest: Tensor, new: list[int], shuffle: np.ndarray
    ) -> Float[Tensor, "tokens checkpoints d_model"]:
        """The rest and new groups, shuffled; written in place: two buffers are in memory."""
        values = self._empty(len(shuffle))
        goes_to = torch.from_numpy(np.argsort(shuffle))
        values[goes_to[: len(rest)]] = rest
        starts = np.cumsum([len(rest), *(self._group_size(group) for group in new)])
        for c, place, x in self._read(new):
            values[goes_to[starts[place] : starts[place + 1]], c] = x
        return values

    def fingerprint(self) -> str:
        """Changes with anything that changes the batches: data, checkpoints, layer, seed, sizes."""
        settings = [
            self.source,
            self.n_tokens,
            self.group_tokens,
            self.batch_size,
            self.seed,
            self.buffer_tokens,
        ]
        settings += [] if self.max_norm is None else [self.max_norm]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class ActivationStream(TensorStream):
    """Batches of residual-stream activations of several checkpoints over one text.

    Sequences are read in fixed groups, so that an activation does not depend on when it is asked
    for. The first token of a sequence is left out. Small texts stay in memory after the first
    reading. Where the checkpoints do not fit into memory together, each is loaded once for half a
    buffer of tokens (or once in all, for a text that stays in memory).

    Args:
        ckpts: the checkpoints, with their layer.
        text: [sequences, length] token ids, from `suite.text`.
        batch_size: tokens a batch.
        seed: of the order of tokens.
        buffer_tokens: size of the shuffle buffer.
        sequences_per_group: how many sequences are run through the models at once; fewer if they
            are long (2**14 tokens in all).
        cache_gb: keep all activations in memory if they take no more than this many gigabytes.
        max_norm: as for `TensorStream`.
    """

    def __init__(
        self,
        ckpts: Checkpoints,
        text: Int[Tensor, "sequences length"],
        batch_size: int = 1024,
        seed: int = 0,
        buffer_tokens: int = 2**17,
        sequences_per_group: int = 64,
        cache_gb: float = 1.0,
        max_norm: float | None = None,
    ):
        if text.ndim != 2 or text.shape[1] < 2:
            raise ValueError(
                f"text must be [sequences, length >= 2] token ids; it is {tuple(text.shape)}."
            )
        length = text.shape[1]
        sequences_per_group = whole_number("sequences_per_group", sequences_per_group)
        # long ones: what a GPU holds
        self.sequences_per_group = min(sequences_per_group, max(1, 2**14 // length))
        self.ckpts, self.text = ckpts, text
        self.n_checkpoints, self.d_model = len(ckpts), ckpts.d_model
        self.group_tokens = self.sequences_per_group * (length - 1)
        n_tokens = text.shape[0] * (length - 1)
        n_groups = -(-text.shape[0] // self.sequences_per_group)
        self._set_up(n_tokens, n_groups, batch_size, seed, buffer_tokens, max_norm)
        about = {"text": _digest(text), "begins_with": _common_start(text)}
        self.source = {**ckpts.source, **about}
        gigabytes = n_tokens * self.n_checkpoints * self.d_model * 4 / 1e9
        self._keeps = gigabytes <= cache_gb
        self._kept: dict[int, Float[Tensor, "tokens checkpoints d_model"]] = {}

    def _ids(self, group: int) -> Int[Tensor, "sequences length"]:
        start = group * self.sequences_per_group
        return self.text[start : start + self.sequences_per_group]

    def _read(
        self, groups: Sequence[int]
    ) -> Iterator[tuple[int, int, Float[Tensor, "tokens d_model"]]]:
        if self._keeps:
            self._keep(groups)
            for c in range(self.n_checkpoints):
                for place, group in enumerate(groups):
                    yield c, place, self._kept[group][:, c]
            return
        for c, model in enumerate(self.ckpts):
            for place, group in enumerate(groups):
                x = hooks.residual_stream(model, self._ids(group))
                yield c, place, hooks.at_least_float32(x)[:, 1:].flatten(0, 1)

    def _keep(self, groups: Sequence[int]) -> None:
        """Read what is not in memory yet; all of it where going through the models is dear."""
        missing = [group for group in groups if group not in self._kept]
        if missing and not self.ckpts.together:
            missing = [group for group in range(self.n_groups) if group not in self._kept]
        batches = [(self._ids(group), None) for group in missing]
        read = hooks.stacked_batches(self.ckpts, batches) if missing else []
        for group, x in zip(missing, read, strict=True):
            self._kept[group] = x[:, 1:].flatten(0, 1)

    def _empty(self, n_tokens: int) -> Float[Tensor, "tokens checkpoints d_model"]:
        dtype = torch.promote_types(self.ckpts.dtype, torch.float32)
        sizes = (n_tokens, self.n_checkpoints, self.d_model)
        return torch.empty(sizes, dtype=dtype, device=self.ckpts.device)


def _digest(tensor: Tensor) -> str:
    """Short fingerprint of a tensor's values."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(content.tobytes()).hexdigest()[:16]


def _common_start(text: Int[Tensor, "sequences length"]) -> int | None:
    """The token that every sequence begins with; None where they begin differently."""
    first = text[:, 0].unique()
    return int(first) if len(first) == 1 else None
