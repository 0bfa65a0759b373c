"""A shuffled, endless stream of raw activations, the same tokens at every checkpoint.

Batches are [tokens, checkpoints, d_model]. The order of tokens is worked out on indices alone, from
the seed. So a stream can start anywhere without having been run up to there, and a resumed training
sees the very batches that it would have seen.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ctt_helpers import hooks
from ctt_helpers.arguments import checked
from ctt_helpers.hooks import stacked_activations as stacked_activations
from ctt_helpers.memory import chunk, let_go, ran_out, smaller_chunks_once, too_little
from ctt_helpers.messages import first_line, show_size, whole_number
from ctt_helpers.processes import Alone

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

    @checked
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
        self._processes = Alone()
        self._forget()

    def _forget(self) -> None:
        """Nothing has been read yet."""
        self._scales: Tensor | None = None
        self._medians: Tensor | None = None

    @checked
    def part(self, processes: Alone) -> TensorStream:
        """What one of several processes reads: its share of the groups, and of every batch.

        In each epoch a group of tokens is served by one process only. Scales are taken over the
        same sample as by a single process, each of them reading its share.

        Raises:
            ValueError: a batch cannot be shared evenly, or there are fewer groups than processes.
        """
        size = processes.size
        if self.batch_size % size:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared evenly by {size} processes. Take a "
                "multiple of their number."
            )
        if self.n_groups < size:
            raise ValueError(
                f"{self.n_tokens:,} tokens are read in {self.n_groups} groups, which {size} "
                "processes cannot share. Give more text, or fewer sequences_per_group."
            )
        own = copy.copy(self)
        own._processes = processes
        own.batch_size = self.batch_size // size
        own.buffer_tokens = max(2 * own.batch_size, self.buffer_tokens // size)
        own._forget()
        return own

    def _most_rows(self) -> int:
        """Tokens in the buffer when the last group made it full."""
        return self.buffer_tokens - 1 + min(self.group_tokens, self.n_tokens)

    # ---- groups of tokens, the unit of reading

    def _group_size(self, group: int) -> int:
        return min(self.group_tokens, self.n_tokens - group * self.group_tokens)

    def _tokens_of(self, group: int) -> np.ndarray:
        start = group * self.group_tokens
        return np.arange(start, start + self._group_size(group))

    def _group_order(self) -> Iterator[int]:
        """This process's groups, each once an epoch, in a new order each time, for ever."""
        rank, size = self._processes.rank, self._processes.size
        for epoch in itertools.count():
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.n_groups)
            yield from order[rank::size].tolist()

    def _read(
        self, groups: Sequence[int]
    ) -> Iterator[tuple[int, int, Float[Tensor, "*tokens d_model"]]]:
        """(checkpoint, place in `groups`, activations), one checkpoint after another."""
        for c in range(self.n_checkpoints):
            for place, group in enumerate(groups):
                start = group * self.group_tokens
                yield c, place, self._x[start : start + self._group_size(group), c]

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
        rank, size = self._processes.rank, self._processes.size
        sample, seen = [], 0
        for group in itertools.islice(self._group_order(), len(range(rank, self.n_groups, size))):
            sample.append(group)
            seen += self._group_size(group)
            if seen >= SAMPLE_TOKENS / size:
                break
        parts: list[list[Tensor]] = [[] for _ in range(self.n_checkpoints)]
        for c, _, x in self._read(sample):
            parts[c].append(hooks.at_least_float32(x).norm(dim=-1).flatten().cpu().double())
        own = torch.stack([torch.cat(part) for part in parts])
        norms = self._processes.side_by_side(own)  # [checkpoints, tokens]
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

    # ---- batches

    @checked
    def batches(self, start: int = 0) -> Iterator[Float[Tensor, "batch checkpoints d_model"]]:
        """Batches from number `start` on, without end; past the last token the data begin again.

        Then they come in another order. Each token of an epoch is served once; only the buffer's
        rest carries over from round to round. A host waits for a GPU once a round at most, and
        only for `max_norm`.
        """
        per_round = self.buffer_tokens // 2 // self.batch_size
        served = per_round * self.batch_size
        first_round, skip = divmod(start, per_round)
        memory = self._memory()
        rows: np.ndarray | None = None  # of memory: where the buffer's tokens lie, as served
        rounds = itertools.islice(self._rounds(served), first_round, None)
        for (tokens, arrived, shuffle), (_, arriving, _) in itertools.pairwise(rounds):
            if rows is None:
                rows = memory.load(tokens)
            else:
                rows = np.concatenate([rows, memory.load(arrived)])[shuffle]
            self._expect(arriving)
            for batch in self._in_batches(rows[:served], memory.values)[skip:]:
                yield memory.values.index_select(0, batch)
            memory.release(rows[:served])
            rows, skip = rows[served:], 0

    def _rounds(self, served: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each round: the buffer's tokens as they are served, those that arrived, the shuffle.

        The first `served` of them are gone in the next round.
        """
        order = self._group_order()
        tokens = np.empty(0, np.int64)
        for number in itertools.count():
            new, size = [tokens], len(tokens)
            while size < self.buffer_tokens:
                new.append(self._tokens_of(next(order)))
                size += len(new[-1])
            everything = np.concatenate(new)
            shuffle = np.random.default_rng([self.seed, 1, number]).permutation(size)
            yield everything[shuffle], everything[len(tokens) :], shuffle
            tokens = everything[shuffle][served:]

    def _in_batches(
        self, rows: np.ndarray, values: Float[Tensor, "rows checkpoints d_model"]
    ) -> Sequence[Int[Tensor, " batch"]]:
        """The rows of each batch where the values are, without those of tokens to leave out."""
        batches = _moved(rows, values.device).split(self.batch_size)
        if self.max_norm is None:
            return batches
        self.scales()  # takes the medians
        precise = (hooks.at_least_float32(values.index_select(0, batch)) for batch in batches)
        norms = torch.cat([x.norm(dim=-1) for x in precise])
        keep = (norms <= self.max_norm * self._medians.to(norms)).all(1).cpu().numpy()
        sizes = keep.reshape(len(batches), -1).sum(1).tolist()
        return _moved(rows[keep], values.device).split(sizes)

    def _expect(self, tokens: np.ndarray) -> None:
        """These are read next: where they come from a disk, it may begin."""

    def _memory(self) -> _Buffer | _AllTokens:
        """Where tokens are while they are served."""
        return _AllTokens(self._x)

    def fingerprint(self) -> str:
        """Changes with anything that changes the batches: data, checkpoints, layer, seed, sizes."""
        settings = json.dumps(self._settings(), sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def _settings(self) -> list[Any]:
        settings = [
            self.source,
            self.n_tokens,
            self.group_tokens,
            self.batch_size,
            self.seed,
            self.buffer_tokens,
        ]
        return settings if self.max_norm is None else [*settings, self.max_norm]


class _AllTokens:
    """All tokens stay in memory, each in the row of its own number.

    Args:
        values: [tokens, checkpoints, d_model], or room for them.
        read: a function that sees to it that these groups are there.
    """

    def __init__(
        self,
        values: Float[Tensor, "tokens checkpoints d_model"],
        read: Callable[[np.ndarray], None] = lambda tokens: None,
    ):
        self.values, self._read = values, read

    def load(self, tokens: np.ndarray) -> np.ndarray:
        self._read(tokens)
        return tokens

    def release(self, rows: np.ndarray) -> None:
        pass  # they are kept


class _Buffer:
    """Tokens in memory from when they are read until they are served, each in a row of its own.

    They never move: a shuffle is one of row numbers, and new tokens go where others were. So no
    second buffer is needed.
    """

    def __init__(self, stream: TensorStream, values: Float[Tensor, "rows checkpoints d_model"]):
        self.values, self._stream = values, stream
        self._free = np.arange(len(values))

    def load(self, tokens: np.ndarray) -> np.ndarray:
        """Read tokens, from whatever groups they are in; returns the row of each."""
        free, self._free = np.split(self._free, [len(tokens)])
        order = np.argsort(tokens)
        groups, inside = np.divmod(tokens[order], self._stream.group_tokens)
        needed, starts = np.unique(groups, return_index=True)
        chosen = np.split(inside, starts[1:])
        goes_to = np.split(free, starts[1:])  # in order, as they are read
        for c, place, x in self._stream._read(needed.tolist()) if len(needed) else []:
            if not np.array_equal(chosen[place], np.arange(x[..., 0].numel())):
                x = x.flatten(0, -2)[_moved(chosen[place], x.device)]
            self._write(goes_to[place].reshape(x.shape[:-1]), c, x)
            del x  # before the next is read
        rows = np.empty_like(tokens)
        rows[order] = free
        return rows

    def _write(self, rows: np.ndarray, c: int, x: Float[Tensor, "*tokens d_model"]) -> None:
        device = self.values.device
        if device.type == "cpu":  # numpy writes short rows several times as fast as torch does
            _as_array(self.values)[rows, c] = _as_array(x)
        else:
            self.values[_moved(rows, device), c] = x.to(device)

    def release(self, rows: np.ndarray) -> None:
        """These have been served, and give way to others."""
        self._free = np.sort(np.concatenate([self._free, rows]))  # memory likes it in order


def _as_array(x: Tensor) -> np.ndarray:
    """A tensor's own memory; numpy knows no bfloat16, of which it sees the bits."""
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


def _moved(indices: np.ndarray, device: torch.device) -> Int[Tensor, " indices"]:
    """Indices as a tensor on a device; a GPU fetches them without a wait."""
    indices = torch.from_numpy(indices)
    if device.type != "cuda":
        return indices.to(device)
    return indices.pin_memory().to(device, non_blocking=True)


class KeepingStream(TensorStream):
    """A stream whose tokens are read from somewhere, and may all stay in memory after that.

    Subclasses set `_keeps`, and say how groups are read (`_fresh`) and what memory is taken
    (`_empty`).
    """

    _keeps: bool

    def _forget(self) -> None:
        super()._forget()
        self._kept: Float[Tensor, "tokens checkpoints d_model"] | None = None
        self._there: set[int] = set()  # groups that are in it

    def _fresh(
        self, groups: Sequence[int]
    ) -> Iterator[tuple[int, int, Float[Tensor, "*tokens d_model"]]]:
        """What `_read` gives, from where it comes from."""
        raise NotImplementedError

    def _empty(self, n_tokens: int) -> Float[Tensor, "tokens checkpoints d_model"]:
        """Room for so many tokens."""
        raise NotImplementedError

    def _read(
        self, groups: Sequence[int]
    ) -> Iterator[tuple[int, int, Float[Tensor, "*tokens d_model"]]]:
        if not self._has_room():
            yield from self._fresh(groups)
            return
        kept = self._keep(groups)
        for c in range(self.n_checkpoints):
            for place, group in enumerate(groups):
                yield c, place, kept[self._rows(group), c]

    def _rows(self, group: int) -> slice:
        start = group * self.group_tokens
        return slice(start, start + self._group_size(group))

    def _missing(self, groups: Sequence[int]) -> list[int]:
        """What is to be read for these groups."""
        return [group for group in groups if group not in self._there]

    def _keep(self, groups: Sequence[int]) -> Float[Tensor, "tokens checkpoints d_model"]:
        """Read what is not in memory yet."""
        missing = self._missing(groups)
        for c, place, x in self._fresh(missing) if missing else []:
            room = self._kept[self._rows(missing[place]), c]
            room.unflatten(0, x.shape[:-1]).copy_(x)
        self._there.update(missing)
        return self._kept

    def _has_room(self) -> bool:
        """Whether all tokens stay in memory; where there is not enough, some pass through it."""
        if self._keeps and self._kept is None:
            try:
                self._kept = self._empty(self.n_tokens)
            except Exception as error:
                if not ran_out(error):
                    raise
                let_go(error)
                warnings.warn(
                    f"There is not enough memory to keep {self.n_tokens:,} tokens "
                    f"({first_line(error)}) They are read again when their turn comes, which takes "
                    "longer; the batches are the same.",
                    stacklevel=4,
                )
                self._keeps = False
        return self._keeps

    def _keep_tokens(self, tokens: np.ndarray) -> None:
        self._keep(np.unique(tokens // self.group_tokens).tolist())

    def _memory(self) -> _Buffer | _AllTokens:
        if self._has_room():
            return _AllTokens(self._kept, self._keep_tokens)
        try:
            return _Buffer(self, self._empty(self._most_rows()))
        except Exception as error:
            if not ran_out(error):
                raise
            less = "Set buffer_tokens lower, or take fewer checkpoints."
            raise too_little("for the buffer of tokens", error, less) from error


class ActivationStream(KeepingStream):
    """Batches of residual-stream activations of several checkpoints over one text.

    Sequences are read in fixed groups, so that an activation does not depend on when it is asked
    for. The first token of a sequence is left out. Small texts stay in memory after the first
    reading. Where the checkpoints do not fit into memory together, each is loaded again for every
    half buffer of tokens (or once in all, for a text that stays in memory), with a warning: an
    `ActivationCache` loads each once.

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

    @checked
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
        self.sequences_per_group = sequences_at_once(text, sequences_per_group)
        length = text.shape[1]
        self.ckpts, self.text = ckpts, text
        self.n_checkpoints, self.d_model = len(ckpts), ckpts.d_model
        self.group_tokens = self.sequences_per_group * (length - 1)
        n_tokens = text.shape[0] * (length - 1)
        n_groups = -(-text.shape[0] // self.sequences_per_group)
        self._set_up(n_tokens, n_groups, batch_size, seed, buffer_tokens, max_norm)
        self.source = {**ckpts.source, **describe_text(text)}
        gigabytes = n_tokens * self.n_checkpoints * self.d_model * 4 / 1e9
        self._keeps = gigabytes <= cache_gb
        self._told = False

    def _fresh(
        self, groups: Sequence[int]
    ) -> Iterator[tuple[int, int, Float[Tensor, "sequences rest d_model"]]]:
        self._tell_dear()
        for c, model in enumerate(self.ckpts):
            for place, group in enumerate(groups):
                x = read_group(model, self.text, group, self.sequences_per_group)
                yield c, place, hooks.at_least_float32(x)

    def _tell_dear(self) -> None:
        if self._told or self._keeps or self.ckpts.together:
            return
        self._told = True
        size = self.n_tokens * self.n_checkpoints * self.d_model * 4
        warnings.warn(
            f"{len(self.ckpts)} checkpoints that do not fit into memory together are loaded again "
            f"for every {self.buffer_tokens // 2:,} tokens. To load each once: "
            "ActivationCache.build(ckpts, text, folder).stream(...), which takes "
            f"{show_size(size)} of disk (half with dtype='bfloat16').",
            stacklevel=2,
        )

    def _missing(self, groups: Sequence[int]) -> list[int]:
        """All of the text at once where going through the models is dear."""
        missing = super()._missing(groups)
        if missing and not self.ckpts.together:
            return super()._missing(range(self.n_groups))
        return missing

    def _empty(self, n_tokens: int) -> Float[Tensor, "tokens checkpoints d_model"]:
        dtype = torch.promote_types(self.ckpts.dtype, torch.float32)
        sizes = (n_tokens, self.n_checkpoints, self.d_model)
        return torch.empty(sizes, dtype=dtype, device=self.ckpts.device)


def sequences_at_once(text: Int[Tensor, "sequences length"], wanted: int) -> int:
    """How many sequences go through the models at once: fewer if they are long.

    Raises:
        ValueError: the text is not [sequences, length >= 2].
    """
    if text.ndim != 2 or text.shape[1] < 2:
        raise ValueError(
            f"text must be [sequences, length >= 2] token ids; it is {tuple(text.shape)}."
        )
    wanted = whole_number("sequences_per_group", wanted)
    return min(wanted, max(1, 2**14 // text.shape[1]))  # what a GPU holds


@smaller_chunks_once("while a text was read", "Set sequences_per_group lower.")
def read_group(
    model: hooks.HookedModel, text: Int[Tensor, "sequences length"], group: int, sequences: int
) -> Float[Tensor, "sequences rest d_model"]:
    """One group of the text, of so many sequences: its activations without the first tokens.

    They are in the model's own dtype.
    """
    ids = text[group * sequences : (group + 1) * sequences]
    read = [hooks.residual_stream(model, part)[:, 1:] for part in ids.split(chunk(len(ids)))]
    return read[0] if len(read) == 1 else torch.cat(read)


def describe_text(text: Int[Tensor, "sequences length"]) -> dict[str, Any]:
    """What a stream's source says of its text."""
    return {"text": _digest(text), "begins_with": _common_start(text)}


def _digest(tensor: Tensor) -> str:
    """Short fingerprint of a tensor's values."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(content.tobytes()).hexdigest()[:16]


def _common_start(text: Int[Tensor, "sequences length"]) -> int | None:
    """The token that every sequence begins with; None where they begin differently."""
    first = text[:, 0].unique()
    return int(first) if len(first) == 1 else None
