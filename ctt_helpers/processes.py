"""Several processes that train one crosscoder: what they have to agree on.

`Alone` is what a single process needs. Of several, either each has its own part of every batch and
all weights (`Together`), or each has the whole batch and its own part of the latents (`Sharded`).
These speak to the others through torch.distributed, which Hugging Face accelerate (or torchrun) has
set up. Nothing here waits for a GPU beside what the messages themselves do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from ctt_helpers.arguments import checked

if TYPE_CHECKING:
    from ctt_helpers.crosscoder import Crosscoder

# which dimension of a tensor of the training state counts latents, by the name of the tensor
LATENTS = {"W_enc": 2, "W_dec": 0, "b_enc": 0, "silent": 0}


class Alone:
    """One process: what it has is all there is."""

    rank, size = 0, 1
    even = True  # each has as many tokens in a step as the others
    shares_latents = False

    # ---- what this process holds

    def own_crosscoder(self, crosscoder: Crosscoder) -> Crosscoder:
        """The latents that this process trains, on its device."""
        return crosscoder

    def own_part(self, name: str, whole: Tensor) -> Tensor:
        """What this process holds of a tensor of the training state."""
        return whole

    def whole_of(self, name: str, part: Tensor, everywhere: bool = False) -> Tensor | None:
        """The tensor of the training state of which each process holds a part.

        It is None but for the first process, unless it is wanted everywhere.
        """
        return part

    def whole_batch(self, x: Float[Tensor, " batch *sizes"]) -> Float[Tensor, " tokens *sizes"]:
        """What this process works on: of its own part of a batch, that or the batch of all."""
        return x

    # ---- sums

    def total(self, n: int) -> int:
        """The number of tokens over all processes, of which this one works on `n`."""
        return n

    def over_tokens(self, x: Tensor) -> Tensor:
        """The sum over all tokens, of a sum over those that this process works on."""
        return x

    def over_latents(self, x: Tensor) -> Tensor:
        """The sum over all latents, of a sum over those of this process; gradients pass."""
        return x

    def each(self, here: Any) -> list[Any]:
        """What every process has to say, in their order: numbers, text, lists of them."""
        return [here]

    def side_by_side(self, x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows _"]:
        """The columns of all processes, on the CPU; they may have different numbers of them."""
        return x

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over all tokens in place of each."""

    # ---- which are the largest

    def largest(
        self, places: Int[Tensor, " candidates"], sizes: Float[Tensor, " candidates"], count: int
    ) -> Int[Tensor, " kept"]:
        """Of the candidates of all processes the `count` largest: those that are here, ascending.

        Args:
            places: of this process's `count` largest (or all, if there are fewer), ascending.
            sizes: theirs.
            count: how many stay, over all processes.
        """
        return places

    def smallest(self, x: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The smallest of all processes."""
        return x

    def largest_of_each(
        self, sizes: Float[Tensor, "tokens latents"], k: int
    ) -> Float[Tensor, "tokens all"] | Float[Tensor, "tokens latents"]:
        """For each token values among which are the k largest over all latents."""
        return sizes

    # ---- the same everywhere

    def make_equal(self, tensors: Iterable[Tensor]) -> None:
        """Put those of the first process in place of each."""

    def wait(self) -> None:
        """Go on when all have come this far."""


class Together(Alone):
    """One of several processes; the methods are those of `Alone`.

    Raises:
        RuntimeError: no group of processes has been set up.
    """

    def __init__(self):
        if not dist.is_initialized():
            raise RuntimeError(
                "There is no group of processes: start them by `accelerate launch -m "
                "ctt_helpers.train`, or make an accelerate.Accelerator() first."
            )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def total(self, n: int) -> int:
        return n * self.size if self.even else sum(self.each(n))

    def each(self, here: Any) -> list[Any]:
        everywhere = [None] * self.size
        dist.all_gather_object(everywhere, here)
        return everywhere

    def side_by_side(self, x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows _"]:
        return torch.cat(self.each(x), dim=1)

    def over_tokens(self, x: Tensor) -> Tensor:
        return _sum(x)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_contiguous():
                dist.all_reduce(tensor)
            else:
                tensor.copy_(_sum(tensor.contiguous()))

    def largest(self, places, sizes, count):
        own = sizes.new_full((count,), -torch.inf)
        own[: len(sizes)] = sizes
        everywhere = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everywhere, own)
        bound = torch.cat(everywhere).topk(count, sorted=False).values.min()
        # of equal ones those of the first processes stay, and of one process the first
        above = sum((theirs > bound).sum() for theirs in everywhere)
        equal = [(theirs == bound).sum() for theirs in everywhere[: self.rank]]
        room = count - above - sum(equal)
        kept = sizes > bound
        equal_here = sizes == bound
        kept |= equal_here & (equal_here.cumsum(0) <= room)
        return places[kept]

    def smallest(self, x: Float[Tensor, ""]) -> Float[Tensor, ""]:
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.MIN)
        return x

    def wait(self) -> None:
        dist.barrier()

    def make_equal(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            same = tensor.detach().contiguous()
            dist.broadcast(same, 0)
            tensor.detach().copy_(same)


class Sharded(Together):
    """One of several processes, each with its own latents; the methods are those of `Alone`.

    All of them take all tokens of a batch, whose activations they read in parts and then exchange.

    Args:
        device: where this process trains.
    """

    shares_latents = True

    def __init__(self, device: str):
        super().__init__()
        self.device = device

    def own_crosscoder(self, crosscoder: Crosscoder) -> Crosscoder:
        if crosscoder.n_latents < self.size:
            raise ValueError(
                f"{crosscoder.n_latents} latents cannot be shared by {self.size} processes."
            )
        own = self._parts(crosscoder.n_latents)[self.rank].tolist()
        return crosscoder.part(own).to(self.device).requires_grad_(True)

    def _parts(self, n_latents: int) -> list[np.ndarray]:
        return np.array_split(np.arange(n_latents), self.size)

    def own_part(self, name: str, whole: Tensor) -> Tensor:
        if name not in LATENTS or not whole.ndim:
            return whole
        own = self._parts(whole.shape[LATENTS[name]])[self.rank]
        return whole.narrow(LATENTS[name], int(own[0]), len(own))

    def whole_of(self, name: str, part: Tensor, everywhere: bool = False) -> Tensor | None:
        keeps = everywhere or self.rank == 0
        if name not in LATENTS or not part.ndim:
            return part if keeps else None
        along = LATENTS[name]
        parts = []
        for rank, length in enumerate(self.each(part.shape[along])):
            sizes = [*part.shape[:along], length, *part.shape[along + 1 :]]
            theirs = part.detach().contiguous() if rank == self.rank else part.new_empty(sizes)
            dist.broadcast(theirs, rank)  # one after another: no device holds the whole
            if keeps:
                parts.append(theirs.cpu())
        return torch.cat(parts, along) if keeps else None

    def whole_batch(self, x: Float[Tensor, " batch *sizes"]) -> Float[Tensor, " tokens *sizes"]:
        x = x.contiguous()
        lengths = [len(x)] * self.size if self.even else self.each(len(x))
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x
        everywhere = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(everywhere, padded)
        return torch.cat([each[:n] for each, n in zip(everywhere, lengths, strict=True)])

    def total(self, n: int) -> int:
        return n

    def over_tokens(self, x: Tensor) -> Tensor:
        return x

    def over_latents(self, x: Tensor) -> Tensor:
        return _SumOverLatents.apply(x)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        pass

    def largest_of_each(self, sizes, k):
        own = sizes.new_full((len(sizes), k), -torch.inf)
        few = min(k, sizes.shape[1])
        own[:, :few] = sizes.topk(few, dim=1, sorted=False).values
        everywhere = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everywhere, own)
        return torch.cat(everywhere, dim=1)


class _SumOverLatents(torch.autograd.Function):
    """A sum over processes. What they make of it is the same, and so is its gradient.

    Half precision is added up in float32.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.dtype = x.dtype
        return _sum(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(ctx.dtype)


def _sum(x: Tensor) -> Tensor:
    """The sum over all processes."""
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


@checked
def among(shard_latents: bool = False, device: str = "cpu") -> Alone:
    """This process, among the others that were started with it, if there are any.

    Args:
        shard_latents: whether each is to hold a part of the latents, and not all of them.
        device: of this process.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Sharded(device) if shard_latents else Together()
    return Alone()
