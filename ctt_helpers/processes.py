"""Several processes that train one crosscoder: what they have to agree on.

Each has its own part of every batch, and all the same weights. `Alone` is what a single process
needs; `Together` speaks to the others through torch.distributed, which Hugging Face accelerate (or
torchrun) has set up. Nothing here waits for a GPU beside what the messages themselves do.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor


class Alone:
    """One process: what it has is all there is."""

    rank, size = 0, 1
    even = True  # each has as many tokens in a step as the others

    def total(self, n: int) -> int:
        """The sum of a whole number over all processes."""
        return n

    def side_by_side(self, x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows _"]:
        """The columns of all processes, on the CPU; they may have different numbers of them."""
        return x

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes."""
        return x

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over all processes in place of each."""

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
        if self.even:
            return n * self.size
        everywhere = [0] * self.size
        dist.all_gather_object(everywhere, n)
        return sum(everywhere)

    def side_by_side(self, x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows _"]:
        everywhere = [x] * self.size
        dist.all_gather_object(everywhere, x)
        return torch.cat(everywhere, dim=1)

    def sum(self, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_contiguous():
                dist.all_reduce(tensor)
            else:
                tensor.copy_(self.sum(tensor.contiguous()))

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


def among() -> Alone:
    """This process, among the others that were started with it, if there are any."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Together()
    return Alone()
