"""Training a crosscoder: settings, one step, the loop, and a run that can be taken up again."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from ctt_helpers import sparse
from ctt_helpers.activations import TensorStream
from ctt_helpers.arguments import checked
from ctt_helpers.crosscoder import Crosscoder, largest_sizes
from ctt_helpers.files import (
    AGAIN,
    atomic_path,
    expanded,
    load_folder,
    locked,
    read_json,
    remove_saved,
    save_folder,
    sha256,
    sweep,
    versions,
    write_json,
)
from ctt_helpers.hooks import pick_device
from ctt_helpers.memory import let_go, ran_out, tell, too_little
from ctt_helpers.messages import progress, told_when_stopped, whole_number
from ctt_helpers.processes import Alone, among

LOG_EVERY = 20  # steps
BETAS = (0.9, 0.999)  # Adam's decay rates (the paper's)
CLIP = 1.0  # largest norm of the gradient over all parameters (the paper's)
LR_DECAY = 0.2  # last share of the steps, over which the learning rate falls to 0 (the paper's)
# of the threshold's running mean; shorter in short runs, where early batches would drag it along
THRESHOLD_DECAY = 0.999
LESS = (
    "Set batch_size of the stream lower, or n_latents of the crosscoder; on a GPU take bf16=True."
)
OnLog = Callable[[dict[str, float]], Mapping[str, float] | None]  # see `train`
STATE_FILES = ("state.safetensors", "state.json")
RUN_FILES = ("history.csv", "train_config.json")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. The defaults suit the embedded suite; the paper's stand beside.

    Attributes:
        steps: optimiser steps (paper: 100k steps of 4096 tokens).
        lr: Adam's learning rate (paper: 5e-5); it falls to 0 over the last fifth of the steps.
        l1: weight of E[sum_i f_i u_i] for an "l1" crosscoder.
        decoder_norm_penalty: weight of the same term for a "batch_topk" crosscoder (paper: 0). It
            leaves fewer latents dead, but makes latents that look specific to one checkpoint and
            are not: the table `penalty` of `experiments`.
        penalty_warmup: first share of the steps, over which that weight rises linearly from 0
            (paper: 0.05).
        aux_weight: weight of the loss by which dead latents rebuild the error, "batch_topk" only;
            0: off (paper: 1/32). Half as many of them as d_model take part for a token.
        dead_after_tokens: a latent silent for this many training tokens counts as dead (paper:
            10M).
        k_start: k at the first step, falling linearly to the crosscoder's own; None: six times that
            (paper: 1000 to 200).
        k_anneal: first share of the steps, over which k falls; 0: k stays the same (paper: 5,000
            steps).
        checkpoint_every: steps between two checkpoints of the run on disk.
        bf16: matrix products in bfloat16, weights and all else in float32: several times faster on
            a GPU that has it.

    Raises:
        ValueError: a setting outside its range; the message says which is accepted.
    """

    steps: int = 600
    lr: float = 2e-3
    l1: float = 2.0
    decoder_norm_penalty: float = 0.0
    penalty_warmup: float = 0.2
    aux_weight: float = 1 / 4
    dead_after_tokens: int = 20_000
    k_start: int | None = None
    k_anneal: float = 0.5
    checkpoint_every: int = 200
    bf16: bool = False

    def __post_init__(self):
        for name in ("steps", "checkpoint_every", "dead_after_tokens"):
            whole_number(name, getattr(self, name))
        if self.k_start is not None:
            whole_number("k_start", self.k_start)
        share = "a share of the steps, 0 to below 1: the threshold is learnt after it"
        self._require("lr", 0 < self._number("lr") < math.inf, "above 0")
        self._require("k_anneal", 0 <= self._number("k_anneal") < 1, share)
        warm = 0 <= self._number("penalty_warmup") <= 1
        self._require("penalty_warmup", warm, "a share of the steps, 0 to 1")
        for name in ("l1", "decoder_norm_penalty", "aux_weight"):
            self._require(name, 0 <= self._number(name) < math.inf, "0 or more")
        self._require("bf16", isinstance(self.bf16, bool), "True or False")

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        self._require(name, is_number, "a number")
        return value

    def _require(self, name: str, fine: bool, accepted: str) -> None:
        if not fine:
            raise ValueError(f"{name}={getattr(self, name)!r}: it must be {accepted}.")


# ---- one step


def aux_loss(
    error: Float[Tensor, "tokens checkpoints d_model"],
    pre: Float[Tensor, "tokens dead"],
    W_dec: Float[Tensor, "dead checkpoints d_model"],
    aux_k: int,
    dtype: torch.dtype | None = None,
    processes: Alone | None = None,
) -> Float[Tensor, ""]:
    """How far dead latents are from rebuilding the error x~ - x^, without b_dec (AuxK; Gao 2024).

    Args:
        error: what the crosscoder leaves out, in scaled space, detached.
        pre: what goes into the ReLU of the dead latents.
        W_dec: their decoders.
        aux_k: the latents with the largest code sizes that take part, per token.
        dtype: of the product; None: that of `pre`.
        processes: among which the dead latents may be shared.

    Returns:
        E[sum_c ||e_c - e^_c||^2], in the units of the reconstruction loss.
    """
    dtype, processes = dtype or pre.dtype, processes or Alone()
    f = pre.relu()
    if f.shape[1] > aux_k or processes.shares_latents:
        sizes = f.detach() * W_dec.detach().norm(dim=-1).sum(1)
        largest = processes.largest_of_each(sizes, aux_k)
        f = f * (sizes >= _smallest_of_largest(largest, aux_k))
    rebuilt = processes.over_latents((f.to(dtype) @ W_dec.flatten(1).to(dtype)).to(error))
    return (error.flatten(1) - rebuilt).pow(2).sum(1).mean()


def _smallest_of_largest(
    sizes: Float[Tensor, "tokens latents"], k: int
) -> Float[Tensor, "tokens 1"]:
    """The k-th largest of each token."""
    if sizes.device.type != "cpu":
        return sizes.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    at = sizes.shape[1] - k
    return torch.from_numpy(np.partition(sizes.numpy(), at, axis=1)[:, at, None])  # no sort


@dataclass(frozen=True)
class _Encoded:
    """A batch in parts, of each which latents stay active.

    Attributes:
        parts: of each what goes into the ReLU (None: it is to be worked out again) and the places
            of those that stay (None: all).
        smallest: of all the smallest f_i u_i that stays; None for an "l1" crosscoder.
    """

    parts: list[tuple[Float[Tensor, "part latents"] | None, Int[Tensor, " kept"] | None]]
    smallest: Float[Tensor, ""] | None


@dataclass(frozen=True)
class _Taken:
    """What else is known when the gradients of a batch have been taken.

    Attributes:
        of_tokens: reconstruction, aux; None unless asked.
        of_latents: sparsity, number of active latents; None unless asked.
        mass: [latents] sum of f over the tokens.
        smallest: see `_Encoded`.
    """

    of_tokens: Float[Tensor, " 2"] | None
    of_latents: Float[Tensor, " 2"] | None
    mass: Float[Tensor, " latents"]
    smallest: Float[Tensor, ""] | None


class TrainingRun:
    """A training run between two steps: all that has to be kept to go on exactly from there."""

    def __init__(self, crosscoder: Crosscoder, config: TrainConfig, processes: Alone | None = None):
        self.whole, self.config = crosscoder, config
        self.processes = processes or Alone()
        # what is trained here: all latents, or this process's
        self.crosscoder = crosscoder = self.processes.own_crosscoder(crosscoder)
        self.parts = 1  # in which a batch is taken: 2 from when memory has run out
        self.done, self.tokens, self.seconds = 0, 0, 0.0
        self.history: list[dict[str, float]] = []
        # the weights again, in the order in which they lie in memory: a CPU's Adam would copy them
        self.lying = {name: _lying(weights) for name, weights in crosscoder.named_parameters()}
        self.adam = torch.optim.Adam(self.lying.values(), lr=config.lr, betas=BETAS, fused=True)
        device = crosscoder.W_enc.device
        # tokens since each latent was active
        self.silent = torch.zeros(crosscoder.n_latents, dtype=torch.int64, device=device)
        # weighted sum of the smallest kept sizes, sum of the weights
        self.threshold = torch.zeros(2, device=device)
        # latents that are dead or soon will be, and the step in which they were looked for
        self._dead_soon, self._looked = self.silent[:0], None
        self._others_dying = False  # latents of other processes

    # schedules

    def lr(self, step: int) -> float:
        left = (self.config.steps - step) / max(LR_DECAY * self.config.steps, 1)
        return self.config.lr * min(1.0, left)

    def penalty(self, step: int) -> float:
        is_l1 = self.crosscoder.sparsity == "l1"
        weight = self.config.l1 if is_l1 else self.config.decoder_norm_penalty
        warm_up = max(self.config.penalty_warmup * self.config.steps, 1)
        return weight * min(1.0, (step + 1) / warm_up)

    def k(self, step: int) -> int:
        k, until = self.whole.k, self.config.k_anneal * self.config.steps
        start = min(self.config.k_start or 6 * k, self.whole.n_latents)
        return k if step >= until else round(start + (k - start) * step / until)

    def step(
        self, x: Float[Tensor, "batch checkpoints d_model"], log: bool
    ) -> dict[str, Float[Tensor, ""]]:
        """One optimiser step; returns its figures if they are asked for, still on the device.

        With several processes `x` is this one's part of the batch; the step and its figures are
        those of the whole batch.

        Figures: loss, reconstruction, sparsity and aux (its terms before their weights), l0,
        explained_variance (scaled space, all checkpoints together), dead (number of latents).

        Nothing in it waits for a GPU, but for a look at which latents are dead once in a while.
        """
        crosscoder, config, processes = self.crosscoder, self.config, self.processes
        x = processes.whole_batch(x)
        n_tokens = processes.total(len(x))
        target = x * crosscoder.scales[:, None]
        taken = self._gradients(target, n_tokens, log)
        for weights in crosscoder.parameters():
            if not weights.requires_grad:
                weights.grad = None
        processes.add_up(self._grads().values())
        self._clip()
        self._adam_step()
        if crosscoder.sparsity == "batch_topk":
            self._follow_threshold(taken.smallest)
        self.done += 1
        self.tokens += n_tokens
        with torch.no_grad():
            self.silent.add_(n_tokens).masked_fill_(processes.over_tokens(taken.mass) > 0, 0)
            if not log:
                return {}
            mean = processes.over_tokens(target.sum(0)) / n_tokens
            parts = torch.stack([*taken.of_tokens, (target - mean).pow(2).sum()])
            reconstruction, aux, deviation = processes.over_tokens(parts).unbind()
            parts = processes.over_latents(processes.over_tokens(taken.of_latents))
            sparsity, active = parts.unbind()
            dead = (self.silent >= config.dead_after_tokens).sum()
            penalty = self.penalty(self.done - 1)
            return {
                "loss": reconstruction + penalty * sparsity + config.aux_weight * aux,
                "reconstruction": reconstruction,
                "sparsity": sparsity,
                "aux": aux,
                "l0": active / n_tokens,
                "explained_variance": 1 - reconstruction * n_tokens / deviation,
                "dead": processes.over_latents(dead).to(reconstruction),
            }

    def _adam_step(self) -> None:
        self.adam.param_groups[0]["lr"] = self.lr(self.done)
        for name, gradient in self._grads().items():
            weights, lying = getattr(self.crosscoder, name), self.lying[name]
            order = _order(weights)
            lying.data = weights.detach().permute(order)  # they may have been moved meanwhile
            lying.grad = gradient.permute(order).contiguous()  # it lies as they do, if nobody's own
        self.adam.step()
        self.adam.zero_grad()  # the gradient itself stays with the weights

    def _clip(self) -> None:
        """Have Adam shorten the gradient where its norm over all parameters is above `CLIP`.

        On CPUs and CUDA it divides by `grad_scale` on its way through the gradient, which saves a
        pass; Apple's takes no notice of that.
        """
        processes, grads = self.processes, self._grads()
        norm_of = torch.nn.utils.get_total_norm
        if not processes.shares_latents:
            norm = norm_of(grads.values())
        else:
            b_dec = [grads.pop("b_dec")] if "b_dec" in grads else []
            processes.make_equal(b_dec)  # they part by no rounding
            square = processes.over_latents(norm_of(grads.values()).square())
            norm = (square + sum(gradient.square().sum() for gradient in b_dec)).sqrt()
        if norm.device.type in ("cpu", "cuda"):
            self.adam.grad_scale = (norm / CLIP).clamp_min(1.0).float()  # as Adam takes it
        else:
            torch.nn.utils.clip_grads_with_norm_(self.crosscoder.parameters(), CLIP, norm)

    def _grads(self) -> dict[str, Tensor]:
        """Of the weights that are trained, by name."""
        named = self.crosscoder.named_parameters()
        return {name: weights.grad for name, weights in named if weights.grad is not None}

    def _gradients(
        self, x: Float[Tensor, "batch checkpoints d_model"], n_tokens: int, log: bool
    ) -> _Taken:
        """The gradients of a batch in scaled space; in two parts from when memory has run out.

        Raises:
            memory.TooLittleMemory: it has in two parts, too, or where several processes would have
                to go the same way.
        """
        try:
            return self._gradients_of(x.chunk(self.parts), n_tokens, log)
        except Exception as error:
            if not ran_out(error):
                raise
            let_go(error)
            self.crosscoder.zero_grad()
            if self.parts > 1 or self.processes.size > 1:
                raise too_little("in a training step", error, LESS) from error
            tell("in a training step", error, LESS)
        self.parts = 2
        return self._gradients(x, n_tokens, log)

    @torch.no_grad()
    def _gradients_of(
        self, parts: Sequence[Float[Tensor, "part checkpoints d_model"]], n_tokens: int, log: bool
    ) -> _Taken:
        """The sum of the gradients of some parts of a batch.

        They are written out: of a code that is mostly 0 autograd would make whole matrices.
        """
        crosscoder, penalty = self.crosscoder, self.penalty(self.done)
        norms = crosscoder.decoder_norms()
        u = norms.sum(0)
        encoded = self._encoded(parts, u, n_tokens)
        of_tokens, of_latents, masses = [], [], []
        for target, (pre, kept) in zip(parts, encoded.parts, strict=True):
            pre = self._pre(target) if pre is None else pre
            code = self._code(pre, kept)
            f, W_dec = code.values, crosscoder.W_dec.flatten(1).to(code.values.dtype)
            rebuilt = self.processes.over_latents(code.times(f, W_dec).view_as(target))
            rebuilt = rebuilt + crosscoder.b_dec
            missing = torch.sub(target, rebuilt, out=rebuilt)
            if not masses:  # not earlier: the memory is taken again at once
                crosscoder.zero_grad()
            mass = code.per_latent(f).to(u)
            masses.append(mass)
            by_f = penalty / n_tokens * u if penalty > 0 else None
            self._add_gradients(target, code, W_dec, missing * (-2 / n_tokens), by_f)
            if penalty > 0:
                self._add_gradient_of_norms(penalty / n_tokens * mass, norms)
            aux = self._aux(target, missing, pre, n_tokens)
            if log:
                reconstruction = missing.square().sum() / n_tokens
                sparsity, active = (mass * u).sum() / n_tokens, (f > 0).sum().to(u)
                of_tokens.append(torch.stack([reconstruction, aux]))
                of_latents.append(torch.stack([sparsity, active]))
        return _Taken(
            of_tokens=sum(of_tokens[1:], of_tokens[0]) if log else None,
            of_latents=sum(of_latents[1:], of_latents[0]) if log else None,
            mass=sum(masses[1:], masses[0]),
            smallest=encoded.smallest,
        )

    def _add_gradients(
        self,
        target: Float[Tensor, "part checkpoints d_model"],
        code: sparse.DenseCode | sparse.SparseCode,
        W_dec: Float[Tensor, "latents width"],
        by_rebuilt: Float[Tensor, "part checkpoints d_model"],
        by_f: Float[Tensor, " latents"] | None,
    ) -> None:
        """Add those of a part of a batch to what the weights have, but that of decoder norms.

        Args:
            target: the activations, in scaled space.
            code: of them.
            W_dec: the decoder, in the dtype of the products.
            by_rebuilt: gradient on what is rebuilt.
            by_f: gradient on f beside what comes from there, the same for all tokens; None: 0.
        """
        crosscoder, dtype = self.crosscoder, W_dec.dtype
        given = by_rebuilt.flatten(1).to(dtype)
        by_code = code.products(given, W_dec, by_f)
        by_encoder = code.transposed_times(by_code, target.flatten(1).to(dtype))
        gradients = [
            (crosscoder.W_enc, by_encoder.T.unflatten(0, crosscoder.W_enc.shape[:2])),
            (crosscoder.W_dec, code.transposed_times(code.values, given)),
            (crosscoder.b_enc, code.per_latent(by_code)),
            (crosscoder.b_dec, by_rebuilt.sum(0)),
        ]
        for weights, gradient in gradients:
            gradient = gradient.to(weights.dtype).view_as(weights)
            weights.grad = gradient if weights.grad is None else weights.grad.add_(gradient)

    @torch.no_grad()
    def _pre(self, x: Float[Tensor, "part checkpoints d_model"]) -> Float[Tensor, "part latents"]:
        """What goes into the ReLU, from scaled activations."""
        crosscoder = self.crosscoder
        W_enc = crosscoder.W_enc.flatten(0, 1).T
        if self.config.bf16:
            half = torch.bfloat16
            return sparse.product(x.flatten(1).to(half), W_enc.to(half).T, crosscoder.b_enc)
        return linear(x.flatten(1), W_enc, crosscoder.b_enc)

    @torch.no_grad()
    def _code(
        self, pre: Float[Tensor, "part latents"], kept: Int[Tensor, " kept"] | None
    ) -> sparse.DenseCode | sparse.SparseCode:
        """The latents that stay active; None for `kept`: all that are above 0."""
        dtype = torch.bfloat16 if self.config.bf16 else pre.dtype
        return sparse.code_of(pre.relu_() if kept is None else pre, kept, dtype)

    @torch.no_grad()
    def _encoded(
        self,
        parts: Sequence[Float[Tensor, "part checkpoints d_model"]],
        u: Float[Tensor, " latents"],
        n_tokens: int,
    ) -> _Encoded:
        """Which latents stay active in each part: with BatchTopK the largest of all parts."""
        if self.crosscoder.sparsity == "l1":
            return _Encoded(parts=[(None, None) for _ in parts], smallest=None)
        if len(parts) == 1:
            pre = self._pre(parts[0])
            kept, smallest = self._kept(pre, u, n_tokens)
            return _Encoded(parts=[(pre, kept)], smallest=smallest)
        count, places, sizes = self.k(self.done) * n_tokens, [], []
        for part in parts:
            pre = self._pre(part)
            candidates, _ = self._largest(pre, u, count)  # all that stay might be in this part
            places.append(candidates)
            sizes.append(pre.flatten()[candidates] * u[candidates % pre.shape[1]])
        together = torch.cat(sizes)
        stays = torch.zeros_like(together, dtype=torch.bool)
        stays[together.topk(min(count, len(together)), sorted=False).indices] = True
        smallest = together[stays & (together > 0)]
        smallest = torch.cat([smallest, smallest.new_full((1,), torch.inf)]).min()
        kept = stays.split([len(each) for each in places])
        pairs = zip(places, kept, strict=True)
        return _Encoded(parts=[(None, place[keep]) for place, keep in pairs], smallest=smallest)

    def _kept(
        self, pre: Float[Tensor, "batch latents"], u: Float[Tensor, " latents"], n_tokens: int
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, ""]]:
        """Where BatchTopK's largest of all `n_tokens` are, of those here; and the smallest."""
        k, processes = self.k(self.done), self.processes
        if processes.size == 1:
            return self._largest(pre, u, k * n_tokens)
        count = min(k, self.whole.n_latents) * n_tokens
        candidates, _ = self._largest(pre, u, count)  # all that stay might be here
        sizes = pre.flatten()[candidates] * u[candidates % pre.shape[1]]
        kept = processes.largest(candidates, sizes, count)
        sizes = pre.flatten()[kept] * u[kept % pre.shape[1]]
        above = torch.where(sizes > 0, sizes, torch.inf)
        smallest = torch.cat([above, above.new_full((1,), torch.inf)]).min()
        return kept, processes.smallest(smallest)

    def _largest(
        self, pre: Float[Tensor, "part latents"], u: Float[Tensor, " latents"], count: int
    ) -> tuple[Int[Tensor, " kept"], Float[Tensor, ""]]:
        """`largest_sizes`, compared as finely as products are taken."""
        return largest_sizes(pre, u, count, torch.bfloat16 if self.config.bf16 else None)

    @torch.no_grad()
    def _add_gradient_of_norms(
        self, weights: Float[Tensor, " latents"], norms: Float[Tensor, "checkpoints latents"]
    ) -> None:
        """Add that of sum_i weights_i u_i to W_dec's: of ||W|| it is W / ||W||, or 0 where W is."""
        W_dec = self.crosscoder.W_dec
        per_norm = weights / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        W_dec.grad.addcmul_(W_dec, per_norm.T[..., None])  # autograd takes several passes

    @torch.enable_grad()
    def _aux(
        self,
        x: Float[Tensor, "batch checkpoints d_model"],
        missing: Float[Tensor, "batch checkpoints d_model"],
        pre: Float[Tensor, "batch latents"],
        n_tokens: int,
    ) -> Float[Tensor, ""]:
        """The loss of the dead latents; adds its gradient to that of the rest.

        With several processes it is this one's share of the mean over all `n_tokens`.
        """
        crosscoder, config = self.crosscoder, self.config
        dead = self._dying(n_tokens)
        if not len(dead) and not self._others_dying:
            return x.new_zeros(())
        is_dead = self.silent[dead] >= config.dead_after_tokens
        pre = (pre[:, dead] * is_dead).requires_grad_()
        W_dec = crosscoder.W_dec.detach()[dead].requires_grad_()
        dtype = torch.bfloat16 if config.bf16 else x.dtype
        aux_k = max(1, crosscoder.d_model // 2)
        loss = aux_loss(missing, pre, W_dec, aux_k, dtype, self.processes)
        loss = loss * (len(x) / n_tokens)
        by_pre, by_decoder = torch.autograd.grad(config.aux_weight * loss, (pre, W_dec))
        by_encoder = by_pre.to(dtype).T @ x.flatten(1).to(dtype)
        grads = crosscoder.W_enc.grad.flatten(0, 1).T, crosscoder.W_dec.grad
        grads[0].index_add_(0, dead, by_encoder.to(x.dtype))
        grads[1].index_add_(0, dead, by_decoder)
        crosscoder.b_enc.grad.index_add_(0, dead, by_pre.sum(0))
        some = self.processes.over_latents(is_dead.sum()) > 0
        return loss.detach() * some  # none, where all are still alive

    def _dying(self, n_tokens: int) -> Int[Tensor, " dying"]:
        """Latents that are dead, or can be before they are looked for again.

        To look for them is to wait for a GPU, so there it is done every few steps only.
        """
        config = self.config
        if self.crosscoder.sparsity == "l1" or not config.aux_weight:
            return self._dead_soon
        if self.tokens < config.dead_after_tokens:
            return self._dead_soon
        every = self._steps_between_looks(n_tokens)
        if self._looked is None or self.done >= self._looked + every:
            soon = self.silent + (every - 1) * n_tokens >= config.dead_after_tokens
            self._dead_soon, self._looked = soon.nonzero().squeeze(1), self.done
            if config.bf16 and soon.device.type == "cuda":
                self._dead_soon = self._in_eights(self._dead_soon)
            if self.processes.shares_latents:
                self._others_dying = any(self.processes.each(len(self._dead_soon)))
        return self._dead_soon

    def _in_eights(self, dying: Int[Tensor, " dying"]) -> Int[Tensor, " more"]:
        """These, and as many of the others as make a multiple of eight; those come to nothing.

        A GPU takes products in half precision of other numbers of rows at half the speed.
        """
        count = min(-(-len(dying) // 8) * 8, len(self.silent))
        return self.silent.topk(count, sorted=False).indices if count else dying

    def _steps_between_looks(self, n_tokens: int) -> int:
        if self.silent.device.type == "cpu":
            return 1
        return max(1, min(LOG_EVERY, self.config.dead_after_tokens // (4 * n_tokens)))

    def _follow_threshold(self, smallest: Float[Tensor, ""]) -> None:
        if self.done < self.config.k_anneal * self.config.steps:
            return
        there = smallest.isfinite()  # a batch without any active latent says nothing
        seen = torch.stack([torch.where(there, smallest, 0), there.to(smallest)])
        decay = max(0.0, min(THRESHOLD_DECAY, 1 - 20 / self.config.steps))
        followed = decay * self.threshold + (1 - decay) * seen
        self.threshold = torch.where(there, followed, self.threshold)
        self.crosscoder.threshold.copy_(self.threshold[0] / self.threshold[1].clamp_min(1e-12))

    # to disk and back

    def save(self, folder: Path, settings: dict[str, Any]) -> None:
        """Write weights and moments (safetensors), counters, settings and history (JSON).

        All processes take part; the first one writes.
        """
        tensors = {f"weights.{name}": t for name, t in self.crosscoder.state_dict().items()}
        tensors |= {"silent": self.silent, "threshold": self.threshold}
        for name, parameter in self.crosscoder.named_parameters():
            back = np.argsort(_order(parameter)).tolist()
            for key, tensor in self.adam.state.get(self.lying[name], {}).items():
                tensors[f"adam.{name}.{key}"] = tensor.permute(back) if tensor.ndim else tensor
        tensors = {key: self.processes.whole_of(_of(key), t) for key, t in tensors.items()}
        if self.processes.rank > 0:
            return
        counters = {"done": self.done, "tokens": self.tokens, "seconds": self.seconds}
        about = {**settings, **counters, "history": self.history}
        save_folder(folder, "training state", tensors, about, STATE_FILES, _is_state)

    def load(self, folder: Path, settings: dict[str, Any]) -> None:
        """Go back to where `save` was called; raises ValueError if it was another run."""
        there, tensors = load_folder(folder, "training state", STATE_FILES)
        check_same_run(folder.parent, there, settings)
        device = self.silent.device
        tensors = {key: self.processes.own_part(_of(key), t) for key, t in tensors.items()}

        def part(prefix: str) -> dict[str, Tensor]:
            named = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            return {key.removeprefix(prefix): t.to(device) for key, t in named.items()}

        self.crosscoder.load_state_dict(part("weights."))
        self.silent = tensors["silent"].to(device)
        self.threshold = tensors["threshold"].to(device)
        for name, parameter in self.crosscoder.named_parameters():
            order = _order(parameter)
            self.adam.state[self.lying[name]] = {
                # a copy, for what was read is still a view of the file
                key: tensor.permute(order).clone(memory_format=torch.contiguous_format)
                if tensor.ndim
                else tensor
                for key, tensor in part(f"adam.{name}.").items()
            }
        self.done, self.tokens = there["done"], there["tokens"]
        self.seconds, self.history = there["seconds"], there["history"]

    def put_together(self) -> None:
        """Bring the latents of all processes into the whole crosscoder, in every process."""
        if self.crosscoder is self.whole:
            return
        state = self.crosscoder.state_dict()
        whole = {name: self.processes.whole_of(name, t, True) for name, t in state.items()}
        self.whole.load_state_dict(whole)


def _order(tensor: Tensor) -> tuple[int, ...]:
    """Its dimensions, those with the longest way from one place to the next in memory first."""
    return tuple(sorted(range(tensor.ndim), key=lambda dim: -tensor.stride(dim)))


def _lying(weights: Tensor) -> torch.nn.Parameter:
    """The same numbers at the same place, as a tensor in the order of its memory."""
    return torch.nn.Parameter(weights.detach().permute(_order(weights)))


def _of(key: str) -> str:
    """Which weights a tensor of the state belongs to: adam.W_enc.exp_avg and weights.W_enc."""
    return key.split(".")[1] if "." in key else key


def _is_state(settings: dict[str, Any]) -> bool:
    """Whether a JSON file without a kind is a training state of version 0.1."""
    return {"config", "crosscoder", "stream", "done", "history"} <= set(settings)


def check_same_run(out: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise ValueError where the run in a folder is not the one asked for; the message says how."""
    told = []
    if there["stream"] != here["stream"]:
        told.append("stream: other activations here")
    for part in ("config", "crosscoder"):
        for key, value in here[part].items():
            if there[part].get(key) != value:
                told.append(f"{part}.{key}: {there[part].get(key)!r} there, {value!r} here")
    if told:
        raise ValueError(
            f"{out} holds another run ({'; '.join(told)}). Give another out=, delete that folder, "
            "or pass resume=False to throw away what is there."
        )


# ---- the loop


@dataclass
class TrainResult:
    """A finished training run.

    Attributes:
        crosscoder: the one that was given, trained, in evaluation mode.
        history: one row every 20 steps: step, tokens (so far), the figures of that step's batch
            (see `TrainingRun.step`), lr, seconds.
        seconds: time spent on training, all sittings together.
        resumed_from: the step at which this call took up an earlier run; None for a fresh one.
    """

    crosscoder: Crosscoder
    history: pd.DataFrame
    seconds: float
    resumed_from: int | None


@checked
def train(
    crosscoder: Crosscoder,
    stream: TensorStream,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    resume: bool = True,
    on_log: OnLog | Sequence[OnLog] = (),
    shard_latents: bool = False,
) -> TrainResult:
    """Train a crosscoder on a stream of activations (Crosscoding Through Time, sec. 3).

    The loss, in scaled space, is E[sum_c ||x~_c - x^_c||^2] + weight * E[sum_i f_i u_i], and for
    BatchTopK also that of dead latents (`aux_loss`). Scales and source come from the stream. The
    threshold of BatchTopK is a running mean of the smallest kept f_i u_i of each batch, once k has
    its final value, corrected for its start at 0. Its decay is the paper's 0.999, or 1 - 20 / steps
    in runs below 20,000 steps, where the first batches would otherwise weigh as much as the last.

    Started in several processes (`accelerate launch -m ctt_helpers.train`, a notebook's
    `notebook_launcher`), each reads its own part of the text and trains on its own part of every
    batch, and all come to the same weights. The first writes, and speaks. A run that was cut off
    can be taken up with another number of them; its batches are then put together otherwise.
    With `shard_latents` each holds a part of the latents, which need not fit on one GPU: they
    exchange activations and what their latents rebuild. The crosscoder that was given then stays
    on the CPU, and gets its weights at the end.

    An interrupted call leaves the crosscoder in evaluation mode with the weights it has reached
    (those it began with, where latents are shared); with `out`, the same call goes on from the last
    state on disk.

    Args:
        crosscoder: trained in place.
        stream: raw activations, the same tokens at every checkpoint: an `ActivationStream`, an
            `ActivationCache`'s stream or a `TensorStream`, or what has their n_checkpoints,
            d_model, batch_size, source, scales(), batches(start) and fingerprint().
        config: settings; None takes the defaults.
        out: folder for the result (crosscoder/, history.csv, train_config.json), and for what is
            needed to take up a run that was cut off. A finished run found there is loaded. None:
            nothing is written.
        device: "auto", "cpu", "cuda" ...; the crosscoder stays there.
        resume: False throws away the run that is in `out` and starts afresh.
        on_log: called with each new row of the history, one after another; what one gives back
            is added to the row. `ctt_helpers.logs` has some: to a CSV file, to TensorBoard, to
            Weights & Biases, and an evaluation every so many steps. Rows that a resumed run takes
            from disk are not told again.
        shard_latents: share the latents among the processes, if there are several.

    Returns:
        The result. A run that was cut off and taken up again gives the same numbers (on one
        machine's CPU).

    Raises:
        ValueError: sizes that do not fit, a folded or frozen crosscoder, no step after k has
            fallen, a loss that is not finite, another run in `out`, or an evaluation of a
            crosscoder that is nowhere as a whole.
        files.InUse: another process writes to `out`.
        OSError: the disk is full, or `out` may not be written to.
        memory.TooLittleMemory: a step does not fit into memory, in two parts either.
    """
    config = config or TrainConfig()
    _check(crosscoder, stream, config)
    device = pick_device(device)
    processes = among(shard_latents, device)
    calls = [on_log] if callable(on_log) else list(on_log)
    _check_shards(crosscoder, calls, processes)
    crosscoder.to("cpu" if processes.shares_latents else device)
    settings = {
        "config": asdict(config),
        "crosscoder": crosscoder.config,
        "stream": stream.fingerprint(),
    }
    settings = json.loads(json.dumps(settings))  # as it will be read back
    out = None if out is None else expanded(out)
    writes = out is not None and processes.rank == 0
    speaks = processes.rank == 0
    with (
        told_when_stopped(lambda: _on_disk(crosscoder, out)) if speaks else nullcontext(),
        locked(out) if writes else nullcontext(),
    ):
        processes.wait()
        if writes:
            sweep(out, out / "checkpoint", out / "crosscoder")
        if out is not None:
            finished = _run_in(out)
            if not resume:
                processes.wait()
                if writes:
                    _throw_away(out)
                processes.wait()
            elif finished is not None:
                if writes:
                    with suppress(OSError):  # where it was cut off, or nothing may be written
                        _remove_state(out / "checkpoint")
                return _finished_run(crosscoder, out, finished, settings)
        result = _run(crosscoder, stream, config, out, settings, calls, processes)
        if writes:
            _write_result(result, out, settings)
        processes.wait()
    if crosscoder.sparsity == "batch_topk" and float(crosscoder.threshold) == 0:
        warnings.warn(
            "The threshold of this crosscoder is 0: no latent was active in any batch after k had "
            "fallen, so all of them are dead. Take a lower lr, and look at the activations.",
            stacklevel=3,
        )
    return result


def _run(
    crosscoder: Crosscoder,
    stream: TensorStream,
    config: TrainConfig,
    out: Path | None,
    settings: dict[str, Any],
    on_log: Sequence[OnLog],
    processes: Alone,
) -> TrainResult:
    """The steps that are still to be done."""
    run = TrainingRun(crosscoder, config, processes)
    if processes.size > 1:
        processes.even = stream.max_norm is None
        stream = stream.part(processes)
        shared = [run.crosscoder.b_dec] if processes.shares_latents else crosscoder.parameters()
        processes.make_equal(shared)
    state = None if out is None else out / "checkpoint"
    resumed = state is not None and (state / STATE_FILES[1]).exists()
    if resumed:
        run.load(state, settings)
    else:
        run.crosscoder.scales.copy_(stream.scales())
    crosscoder.source = dict(stream.source)
    crosscoder.train()
    start, on_disk = run.done, run.done if resumed else None
    begin = time.perf_counter() - run.seconds
    steps = range(start, config.steps)
    bar = progress(steps, "training", total=config.steps, initial=start, disable=processes.rank > 0)
    try:
        for step, x in zip(bar, stream.batches(start=start), strict=False):
            if state is not None and step % config.checkpoint_every == 0 and step != on_disk:
                run.save(state, settings)
                on_disk = step
            log = step == 0 or (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps
            figures = run.step(_moved(x, run.crosscoder.W_enc), log)
            run.seconds = time.perf_counter() - begin
            if log:
                bar.set_postfix_str(_note(run, step, figures), refresh=False)
                row = run.history[-1]
                for call in on_log if processes.rank == 0 else ():
                    row.update(call(dict(row)) or {})
    finally:
        bar.close()
        crosscoder.eval()
    run.put_together()
    history = pd.DataFrame(run.history)
    return TrainResult(crosscoder, history, run.seconds, start if resumed else None)


def _moved(x: Tensor, like: Tensor) -> Tensor:
    """A batch where the crosscoder is; from pinned memory a GPU fetches it without a wait."""
    if like.device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(like, non_blocking=True)
    return x.to(like)


def _note(run: TrainingRun, step: int, figures: dict[str, Tensor]) -> str:
    """Put a step's figures into the history; returns them in short."""
    values = torch.stack(list(figures.values())).tolist()  # one wait for the device
    row = dict(zip(figures, values, strict=True))
    if not math.isfinite(row["loss"]):
        raise ValueError(
            f"The loss is {row['loss']} at step {run.done}. Try a lower lr; check the activations."
        )
    row["dead"] = int(row["dead"])
    about = {"lr": run.lr(step), "seconds": run.seconds}
    run.history.append({"step": run.done, "tokens": run.tokens, **row, **about})
    return f"L0 {row['l0']:.1f}, explained {row['explained_variance']:.3f}, dead {row['dead']}"


def _on_disk(crosscoder: Crosscoder, out: Path | None) -> tuple[str, str]:
    """What a person who stopped the training needs to know: what is on disk, and how to go on."""
    kept, go_on = "Nothing is on disk.", "The same call begins anew."
    if out is None:
        go_on = "With out=FOLDER, a stopped training can be taken up again by the same call."
    elif (out / RUN_FILES[1]).exists():
        kept, go_on = f"The training is finished and kept in {out}.", "The same call loads it."
    elif (out / "checkpoint" / STATE_FILES[1]).exists():
        there = read_json(out / "checkpoint" / STATE_FILES[1])
        steps = there["config"]["steps"]
        kept = f"Step {there['done']} of {steps} is kept in {out / 'checkpoint'}."
        go_on = "The same call goes on from there."
    if crosscoder.sparsity == "batch_topk" and float(crosscoder.threshold) == 0:
        kept += " The crosscoder's threshold is not learnt yet: as it is, it is of no use."
    return kept, go_on


def _write_result(result: TrainResult, out: Path, settings: dict[str, Any]) -> None:
    result.crosscoder.save(out / "crosscoder")
    history, about = (out / name for name in RUN_FILES)
    with atomic_path(history) as temporary:
        result.history.to_csv(temporary, index=False)
    sums = {history.name: sha256(history)}
    written = {**settings, "seconds": result.seconds, "versions": versions(), "sha256": sums}
    write_json(about, {"kind": "training run", **written}, checksum=True)
    _remove_state(out / "checkpoint")


def _run_in(out: Path) -> dict[str, Any] | None:
    """The settings of the finished run in a folder, None where there is none.

    Raises:
        FileExistsError: the folder holds files of these names that no training wrote.
    """
    history, about = (out / name for name in RUN_FILES)
    if about.exists():
        there = read_json(about)
        if isinstance(there, dict) and {"config", "crosscoder", "stream", "seconds"} <= set(there):
            return there
    elif not history.exists() or (out / "checkpoint" / STATE_FILES[1]).exists():
        return None
    name = about.name if about.exists() else history.name
    raise FileExistsError(
        f"{out} holds a {name} that no training wrote, and that would be lost. Give another out=."
    )


def _finished_run(
    crosscoder: Crosscoder, out: Path, there: dict[str, Any], settings: dict[str, Any]
) -> TrainResult:
    check_same_run(out, there, settings)
    history = out / RUN_FILES[0]
    if not history.is_file():
        raise FileNotFoundError(f"{out} holds a finished run without its {history.name}. {AGAIN}")
    if sha256(history) != there.get("sha256", {}).get(history.name, sha256(history)):
        raise ValueError(f"{history} is not as it was written. {AGAIN}")
    trained = Crosscoder.load(out / "crosscoder")
    crosscoder.load_state_dict(trained.state_dict())
    crosscoder.source = trained.source
    table = pd.read_csv(history)
    print(f"{out} holds this run, finished: it is loaded, not trained again.")
    return TrainResult(crosscoder.eval(), table, there["seconds"], settings["config"]["steps"])


def _throw_away(out: Path) -> None:
    """Remove a run's own files from its folder; whatever else is there stays."""
    (out / RUN_FILES[1]).unlink(missing_ok=True)
    _remove_state(out / "checkpoint")


def _remove_state(folder: Path) -> None:
    if (folder / STATE_FILES[1]).exists():
        remove_saved(folder, STATE_FILES)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _check_shards(crosscoder: Crosscoder, calls: Sequence[OnLog], processes: Alone) -> None:
    """Raise ValueError where something would look at a crosscoder that is not whole yet."""
    looks = any(getattr(call, "looks_at", None) is crosscoder for call in calls)
    if processes.shares_latents and looks:
        raise ValueError(
            "logs.evaluating(crosscoder, ...) needs the whole crosscoder, which with shard_latents "
            "is nowhere before the end. Leave it out of on_log, and call evaluate afterwards."
        )


def _check(crosscoder: Crosscoder, stream: TensorStream, config: TrainConfig) -> None:
    if crosscoder.scaled_norms is not None:
        raise ValueError(
            "A folded crosscoder is for export and is not trained on: train the one it was made "
            "from."
        )
    if not any(weights.requires_grad for weights in crosscoder.parameters()):
        raise ValueError(
            "All weights of this crosscoder are frozen (requires_grad is False), as those of "
            "Crosscoder.part are: call crosscoder.requires_grad_(True) to train it."
        )
    sizes = (crosscoder.n_checkpoints, crosscoder.d_model)
    if sizes != (stream.n_checkpoints, stream.d_model):
        raise ValueError(
            f"The stream gives {stream.n_checkpoints} checkpoints with d_model {stream.d_model}; "
            f"this crosscoder takes {sizes[0]} with d_model {sizes[1]}. Make it with the stream's "
            "sizes."
        )
    if crosscoder.sparsity == "l1":
        if config.k_start is not None:
            raise ValueError(
                f'k_start={config.k_start} is for sparsity="batch_topk"; this crosscoder is "l1": '
                "leave it None."
            )
        return
    if config.k_start is not None and config.k_start < crosscoder.k:
        raise ValueError(
            f"k_start={config.k_start} falls to the crosscoder's k, which is {crosscoder.k}: take "
            "a larger k_start, or leave it None."
        )
    if config.steps - 1 < config.k_anneal * config.steps:
        raise ValueError(
            f"steps={config.steps} with k_anneal={config.k_anneal} leave no step after k has "
            "fallen, in which the threshold is learnt. Take more steps, or a smaller k_anneal."
        )
