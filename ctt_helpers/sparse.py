"""Codes of which little is active: what training multiplies them with, and the gradients.

Of the products of a training step only the encoder's needs all latents: it finds out which are
active. The others have the code f on one side, and need no more of it than is active.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

# Share of active latents up to which a CPU is faster with them alone, by the table
# `training_density` of benchmarks/.
SPARSE_BELOW = 0.15
# numbers that a core's own cache holds; columns that make a row worth the way to it; how often rows
# are taken and sums written, at least, where to copy them costs less than it saves
IN_CACHE, FEWEST_COLUMNS, OFTEN = 2**18, 64, 16


class DenseCode:
    """All latents of all tokens, active or not.

    Args:
        values: f, 0 where a latent is not active. Products are taken in its dtype.
    """

    def __init__(self, values: Float[Tensor, "tokens latents"]):
        self.values = values

    def times(
        self, f: Float[Tensor, "tokens latents"], W: Float[Tensor, "latents width"]
    ) -> Float[Tensor, "tokens width"]:
        """f W."""
        return f @ W

    def transposed_times(
        self, f: Float[Tensor, "tokens latents"], x: Float[Tensor, "tokens width"]
    ) -> Float[Tensor, "latents width"]:
        """f^T x."""
        return product(f.T, x)

    def products(
        self,
        x: Float[Tensor, "tokens width"],
        W: Float[Tensor, "latents width"],
        b: Float[Tensor, " latents"] | None = None,
    ) -> Float[Tensor, "tokens latents"]:
        """x_t . W_i + b_i of each latent i that is active in a token t, 0 elsewhere."""
        found = x @ W.T if b is None else torch.addmm(b.to(x.dtype), x, W.T)
        # what ReLU's gradient does, in place: several times faster than a mask
        return torch.ops.aten.threshold_backward.grad_input(found, self.values, 0, grad_input=found)

    def per_latent(self, f: Float[Tensor, "tokens latents"]) -> Float[Tensor, " latents"]:
        """Sum over the tokens, in float32 at least."""
        return f.sum(0, dtype=torch.promote_types(f.dtype, torch.float32))


class SparseCode:
    """The active latents of all tokens, one after another; the methods are those of `DenseCode`.

    For CPUs. What is [tokens, latents] there is [active] here.

    Args:
        places: token * n_latents + latent of each that is active, ascending.
        values: f there.
        n_tokens, n_latents: sizes of the whole.
    """

    def __init__(
        self,
        places: Int[Tensor, " active"],
        values: Float[Tensor, " active"],
        n_tokens: int,
        n_latents: int,
    ):
        self.values, self.shape = values, (n_tokens, n_latents)
        tokens = torch.div(places, n_latents, rounding_mode="floor")
        self.latents = places - tokens * n_latents
        self.starts = _starts(tokens, n_tokens)
        # and once more, sorted by latents; numpy sorts short integers in linear time
        short = self.latents.numpy().astype(np.uint16 if n_latents <= 2**16 else np.int64)
        self.by_latent = torch.from_numpy(np.argsort(short, kind="stable"))
        self.tokens_by_latent = tokens[self.by_latent]
        self.starts_by_latent = _starts(self.latents, n_latents)

    def times(
        self, f: Float[Tensor, " active"], W: Float[Tensor, "latents width"]
    ) -> Float[Tensor, "tokens width"]:
        return _weighted_sums(W, self.latents, f, self.starts)

    def transposed_times(
        self, f: Float[Tensor, " active"], x: Float[Tensor, "tokens width"]
    ) -> Float[Tensor, "latents width"]:
        return _weighted_sums(x, self.tokens_by_latent, f[self.by_latent], self.starts_by_latent)

    def products(
        self,
        x: Float[Tensor, "tokens width"],
        W: Float[Tensor, "latents width"],
        b: Float[Tensor, " latents"] | None = None,
    ) -> Float[Tensor, " active"]:
        # latent by latent, so that each row of W, of which there are many, is fetched once
        with warnings.catch_warnings():  # torch's type for this is new, and says so
            warnings.simplefilter("ignore")
            sums = torch.sparse_csr_tensor(
                self.starts_by_latent, self.tokens_by_latent, self.values, self.shape[::-1],
                check_invariants=False,
            )  # fmt: skip
        columns = _columns_at_once(x, len(self.latents), len(W))
        for number, (of_x, of_W) in enumerate(
            zip(x.split(columns, 1), W.split(columns, 1), strict=True)
        ):
            of_x, of_W, onto = of_x.contiguous(), of_W.contiguous(), float(number > 0)
            sums = torch.sparse.sampled_addmm(sums, of_W, of_x.T, beta=onto)
        found = torch.empty_like(self.values)
        found[self.by_latent] = sums.values()
        return found if b is None else found.add_(b[self.latents])

    def per_latent(self, f: Float[Tensor, " active"]) -> Float[Tensor, " latents"]:
        return f.new_zeros(self.shape[1]).index_add_(0, self.latents, f)


def code_of(
    f: Float[Tensor, "tokens latents"],
    kept: Int[Tensor, " kept"] | None = None,
    dtype: torch.dtype | None = None,
) -> DenseCode | SparseCode:
    """A code, in whichever form is faster to multiply with.

    Args:
        f: the latents, 0 or above. Where they are not kept, they may be anything.
        kept: token * n_latents + latent of those that stay, ascending on a CPU; None: all.
        dtype: in which products are taken; None: that of `f`.
    """
    dtype = dtype or f.dtype
    few = SPARSE_BELOW * f.numel()
    if f.device.type != "cpu" or dtype != f.dtype:  # a GPU's whole products are faster
        few = -1
    if kept is None and few > 0:
        active = f.numpy() > 0
        if np.count_nonzero(active) <= few:
            kept = torch.from_numpy(np.flatnonzero(active))
    if kept is None:
        return DenseCode(f.to(dtype))
    values = f.flatten()[kept].relu()
    if len(kept) <= few:
        active = values > 0
        if not active.all():
            kept, values = kept[active], values[active]
        return SparseCode(kept, values, *f.shape)
    whole = torch.zeros_like(f, dtype=dtype)
    whole.view(-1).scatter_(0, kept, values.to(dtype))
    return DenseCode(whole)


def product(
    a: Float[Tensor, "rows inner"],
    b: Float[Tensor, "inner columns"],
    bias: Float[Tensor, " columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """a b + bias. Of half precision in float32, as it was summed, where a GPU can give it so."""
    in_half = a.dtype in (torch.bfloat16, torch.float16)
    if in_half and gives_sums(a.device) and (bias is None or bias.dtype == torch.float32):
        if bias is None:
            return torch.mm(a, b, out_dtype=torch.float32)
        return torch.addmm(bias, a, b, out_dtype=torch.float32)
    return a @ b if bias is None else a @ b + bias


def gives_sums(device: torch.device) -> bool:
    """Whether products in half precision can be had in float32: on AMD, and from Ampere on."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8


def _starts(which: Int[Tensor, " active"], n: int) -> Int[Tensor, " n+1"]:
    """How many are below each of 0 ... n."""
    counts = torch.bincount(which, minlength=n)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _weighted_sums(
    rows: Float[Tensor, "rows width"],
    which: Int[Tensor, " active"],
    weights: Float[Tensor, " active"],
    starts: Int[Tensor, " sums+1"],
) -> Float[Tensor, "sums width"]:
    """sum_j weights[j] rows[which[j]], over the j from one start to the next."""

    def sums(rows: Float[Tensor, "rows some"]) -> Float[Tensor, "sums some"]:
        return embedding_bag(
            which, rows, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
        )

    n_sums = len(starts) - 1
    columns = _columns_at_once(rows, len(which), n_sums)
    if columns == rows.shape[1]:
        return sums(rows)
    found = rows.new_empty(n_sums, rows.shape[1])
    for part, some in zip(found.split(columns, 1), rows.split(columns, 1), strict=True):
        part.copy_(sums(some.contiguous()))
    return found


def _columns_at_once(rows: Float[Tensor, "rows width"], n_taken: int, n_sums: int) -> int:
    """How many columns of rows that are taken in no order; all, or as many as a cache holds."""
    if rows.numel() <= 2 * IN_CACHE or n_taken < OFTEN * (len(rows) + n_sums):
        return rows.shape[1]
    return min(rows.shape[1], max(FEWEST_COLUMNS, IN_CACHE // len(rows)))
