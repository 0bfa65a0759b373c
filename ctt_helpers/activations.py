"""A shuffled, endless stream of raw activations, the same tokens at every checkpoint: [tokens, checkpoints, d_model].

The order of tokens is worked out on indices alone, from the seed. So a stream can start anywhere without having been
run up to there, and a resumed training sees the very batches that it would have seen.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ctt_helpers import hooks
from ctt_helpers.checkpoints import Checkpoints


class TensorStream:
    """Batches from a tensor of activations that is already there (planted data, or one's own).

    Args:
        x: [tokens, checkpoints, d_model] raw activations.
        batch_size: tokens a batch.
        seed: of the order of tokens.
        buffer_tokens: size of the shuffle buffer; half of it is given out before it is filled up again.
        source: what the activations come from; a trained crosscoder carries it along.

    Raises:
        ValueError: fewer tokens than one batch.
    """

    group_tokens = 4096

    def __init__(
        self,
        x: Float[Tensor, "tokens checkpoints d_model"],
        batch_size: int = 1024,
        seed: int = 0,
        buffer_tokens: int = 2**17,
        source: dict[str, Any] | None = None,
    ):
        self._x, self.source = x, source or {"data": hashlib.sha256(x.cpu().numpy().tobytes()).hexdigest()[:16]}
        self.n_checkpoints, self.d_model = x.shape[1], x.shape[2]
        self._set_up(len(x), -(-len(x) // self.group_tokens), batch_size, seed, buffer_tokens)

    def _set_up(self, n_tokens: int, n_groups: int, batch_size: int, seed: int, buffer_tokens: int) -> None:
        if n_tokens < batch_size:
            raise ValueError(f"{n_tokens} tokens are fewer than one batch of {batch_size}. Give more text.")
        self.n_tokens, self.n_groups, self.batch_size, self.seed = n_tokens, n_groups, batch_size, seed
        self.buffer_tokens = max(2 * batch_size, min(buffer_tokens, n_tokens))
        self._scales: Tensor | None = None

    def _group_size(self, group: int) -> int:
        return min(self.group_tokens, self.n_tokens - group * self.group_tokens)

    def _group(self, group: int) -> Float[Tensor, "tokens checkpoints d_model"]:
        return self._x[group * self.group_tokens : (group + 1) * self.group_tokens]

    def _group_order(self) -> Iterator[int]:
        """Groups, each once an epoch, in a new order each time, for ever."""
        for epoch in itertools.count():
            yield from np.random.default_rng([self.seed, 0, epoch]).permutation(self.n_groups).tolist()

    def scales(self, sample_tokens: int = 65_536) -> Float[Tensor, " checkpoints"]:
        """s_c = sqrt(d_model) / mean norm, over the positions that training sees (a sample of them)."""
        if self._scales is None:
            total, seen = torch.zeros(self.n_checkpoints, dtype=torch.float64), 0
            for group in itertools.islice(self._group_order(), self.n_groups):
                norms = self._group(group).norm(dim=-1)
                total, seen = total + norms.cpu().double().sum(0), seen + len(norms)
                if seen >= sample_tokens:
                    break
            self._scales = (self.d_model**0.5 / (total / seen)).float()
        return self._scales

    def batches(self, start: int = 0) -> Iterator[Float[Tensor, "batch checkpoints d_model"]]:
        """Batches from number `start` on, without end; past the last token the data begin again in another order.

        Each token of an epoch is served once; only the buffer's rest carries over from round to round.
        """
        per_round = self.buffer_tokens // 2 // self.batch_size
        first_round, skip = divmod(start, per_round)
        order = self._group_order()
        places = np.empty(0, np.int64)  # the buffer, as indices of tokens
        values: Tensor | None = None  # ... and as activations, once they are needed
        for number in itertools.count():
            new, size = [], len(places)
            while size < self.buffer_tokens:
                new.append(next(order))
                size += self._group_size(new[-1])
            places = np.concatenate([places, *(g * self.group_tokens + np.arange(self._group_size(g)) for g in new)])
            shuffle = np.random.default_rng([self.seed, 1, number]).permutation(len(places))
            places = places[shuffle]
            served = per_round * self.batch_size
            if number >= first_round:
                if values is None:
                    values = self._gather(places)
                else:
                    values = self._refill(values, new, torch.from_numpy(shuffle))
                for index in range(skip if number == first_round else 0, per_round):
                    yield values[index * self.batch_size : (index + 1) * self.batch_size]
                values = values[served:]
            places = places[served:]

    def _gather(self, places: np.ndarray) -> Float[Tensor, "tokens checkpoints d_model"]:
        groups, rows = np.divmod(places, self.group_tokens)
        order = np.argsort(groups, kind="stable")
        parts = [self._group(int(g))[torch.from_numpy(rows[groups == g])] for g in np.unique(groups)]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))]

    def _refill(self, rest: Tensor, new: list[int], shuffle: Tensor) -> Float[Tensor, "tokens checkpoints d_model"]:
        """The rest and new groups, shuffled: written in place, so that no more than two buffers are in memory."""
        values, places = rest.new_empty(len(shuffle), *rest.shape[1:]), torch.argsort(shuffle)
        values[places[: len(rest)]], done = rest, len(rest)
        for group in map(self._group, new):
            values[places[done : done + len(group)]] = group
            done += len(group)
        return values

    def fingerprint(self) -> str:
        """Changes with anything that changes the batches: data, checkpoints, layer, seed, sizes."""
        settings = [self.source, self.n_tokens, self.group_tokens, self.batch_size, self.seed, self.buffer_tokens]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class ActivationStream(TensorStream):
    """Batches of residual-stream activations of several checkpoints over one text.

    Sequences are read in fixed groups, so that an activation does not depend on when it is asked for. The first
    token of a sequence is left out. Small texts stay in memory after the first reading.

    Args:
        ckpts: the checkpoints, with their layer.
        text: [sequences, length] token ids, from `suite.text`.
        batch_size: tokens a batch.
        seed: of the order of tokens.
        buffer_tokens: size of the shuffle buffer.
        sequences_per_group: how many sequences are run through the models at once; fewer if they are long (2**14
            tokens in all).
        cache_gb: keep all activations in memory if they take no more than this many gigabytes.
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
    ):
        if text.ndim != 2 or text.shape[1] < 2:
            raise ValueError(f"text must be [sequences, length >= 2] token ids; it is {tuple(text.shape)}.")
        sequences_per_group = min(sequences_per_group, max(1, 2**14 // text.shape[1]))  # long ones: what a GPU holds
        self.ckpts, self.text, self.sequences_per_group = ckpts, text, sequences_per_group
        self.n_checkpoints, self.d_model = len(ckpts), ckpts.d_model
        self.group_tokens = sequences_per_group * (text.shape[1] - 1)
        n_tokens = text.shape[0] * (text.shape[1] - 1)
        self._set_up(n_tokens, -(-text.shape[0] // sequences_per_group), batch_size, seed, buffer_tokens)
        words = hashlib.sha256(text.cpu().numpy().tobytes()).hexdigest()[:16]
        self.source = {**ckpts.source, "text": words}
        gigabytes = n_tokens * self.n_checkpoints * self.d_model * 4 / 1e9
        self._group = functools.lru_cache(maxsize=None if gigabytes <= cache_gb else 0)(self._read_group)

    def _read_group(self, group: int) -> Float[Tensor, "tokens checkpoints d_model"]:
        ids = self.text[group * self.sequences_per_group : (group + 1) * self.sequences_per_group]
        return stacked_activations(self.ckpts, ids)[:, 1:].flatten(0, 1)


def stacked_activations(
    ckpts: Checkpoints,
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch tokens checkpoints d_model"]:
    """The residual stream of every checkpoint on the same sequences, in float32 at least."""
    streams = [hooks.residual_stream(model, input_ids, attention_mask) for model in ckpts]
    return torch.stack([hooks.at_least_float32(x) for x in streams], dim=2)
