"""Settings of training a crosscoder, and one step: loss, schedules, dead latents, and what is kept to go on from it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ctt_helpers.crosscoder import Crosscoder, batch_topk
from ctt_helpers.runtime import load_tensors, read_json, save_folder

THRESHOLD_DECAY = 0.999  # of the running mean; shorter in short runs, where early batches would drag it along
FIGURES = ("loss", "reconstruction", "sparsity", "aux", "l0", "explained_variance", "dead")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. The defaults suit the embedded suite; the paper's values stand beside them.

    Attributes:
        steps: optimiser steps (paper: 100k steps of 4096 tokens).
        lr: Adam's learning rate (paper: 5e-5).
        betas: Adam's decay rates.
        grad_clip: largest norm of the gradient over all parameters.
        lr_decay: last share of the steps, over which the learning rate falls linearly to 0.
        l1: weight of E[sum_i f_i u_i] for an "l1" crosscoder.
        decoder_norm_penalty: weight of the same term for a "batch_topk" crosscoder: fewer dead latents (paper: 0).
        penalty_warmup: first share of the steps, over which that weight rises linearly from 0 (paper: 0.05).
        aux_weight: weight of the loss by which dead latents rebuild the error, "batch_topk" only; 0: off (paper: 1/32).
        aux_k: dead latents used for it per token; None: half of d_model.
        dead_after_tokens: a latent silent for this many training tokens counts as dead (paper: 10M).
        k_start: k at the first step, falling linearly to the crosscoder's own; None: six times that (paper: 1000 to
            200).
        k_anneal: first share of the steps, over which k falls; 0: k stays the same (paper: 5,000 steps).
        checkpoint_every: steps between two checkpoints of the run on disk.
        bf16: matrix products in bfloat16, weights and all else in float32: several times faster on a GPU that has it.
    """

    steps: int = 600
    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 1.0
    lr_decay: float = 0.2
    l1: float = 2.0
    decoder_norm_penalty: float = 0.5
    penalty_warmup: float = 0.2
    aux_weight: float = 1 / 4
    aux_k: int | None = None
    dead_after_tokens: int = 20_000
    k_start: int | None = None
    k_anneal: float = 0.5
    checkpoint_every: int = 200
    bf16: bool = False

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        self._require("steps checkpoint_every dead_after_tokens", lambda v: v >= 1, "at least 1")
        self._require("lr grad_clip", lambda v: v > 0, "above 0")
        share = "a share of the steps, 0 to below 1: the threshold is learnt after it"
        self._require("k_anneal", lambda v: 0 <= v < 1, share)
        self._require("lr_decay penalty_warmup", lambda v: 0 <= v <= 1, "a share of the steps, 0 to 1")
        self._require("l1 decoder_norm_penalty aux_weight", lambda v: v >= 0, "0 or more")
        self._require("aux_k k_start", lambda v: v is None or v >= 1, "None, or at least 1")
        self._require("betas", lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "two numbers in [0, 1)")

    def _require(self, names: str, fine: Callable[[Any], bool], accepted: str) -> None:
        for name in names.split():
            if not fine(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r}: it must be {accepted}.")


def aux_loss(
    error: Float[Tensor, "tokens checkpoints d_model"],
    pre: Float[Tensor, "tokens dead"],
    W_dec: Float[Tensor, "dead checkpoints d_model"],
    aux_k: int,
) -> Float[Tensor, ""]:
    """How far dead latents are from rebuilding the error x~ - x^, without b_dec (AuxK; Gao et al. 2024).

    Args:
        error: what the crosscoder leaves out, in scaled space, detached.
        pre: what goes into the ReLU of the dead latents.
        W_dec: their decoders.
        aux_k: the latents with the largest code sizes that take part, per token.

    Returns:
        E[sum_c ||e_c - e^_c||^2], in the units of the reconstruction loss.
    """
    f = pre.relu()
    if f.shape[1] > aux_k:
        sizes = f.detach() * W_dec.detach().norm(dim=-1).sum(1)
        top = sizes.topk(aux_k, dim=1, sorted=False).indices
        f = torch.zeros_like(f).scatter(1, top, f.gather(1, top))
    return (error.flatten(1) - f @ W_dec.flatten(1)).pow(2).sum(1).mean()


class TrainingRun:
    """A training run between two steps: all that has to be kept to go on exactly from there."""

    def __init__(self, crosscoder: Crosscoder, config: TrainConfig):
        self.crosscoder, self.config = crosscoder, config
        self.done, self.seconds, self.history = 0, 0.0, []
        self.adam = torch.optim.Adam(crosscoder.parameters(), lr=config.lr, betas=config.betas, fused=True)
        h, device = crosscoder.n_latents, crosscoder.W_enc.device
        self.silent = torch.zeros(h, dtype=torch.int64, device=device)  # tokens since each latent was active
        self.threshold = torch.zeros(2, device=device)  # weighted sum of smallest kept sizes, sum of the weights

    def lr(self, step: int) -> float:
        left = (self.config.steps - step) / max(self.config.lr_decay * self.config.steps, 1)
        return self.config.lr * min(1.0, left)

    def penalty(self, step: int) -> float:
        weight = self.config.l1 if self.crosscoder.sparsity == "l1" else self.config.decoder_norm_penalty
        return weight * min(1.0, (step + 1) / max(self.config.penalty_warmup * self.config.steps, 1))

    def k(self, step: int) -> int:
        k, until = self.crosscoder.k, self.config.k_anneal * self.config.steps
        start = min(self.config.k_start or 6 * k, self.crosscoder.n_latents)
        return k if step >= until else round(start + (k - start) * step / until)

    def products(self) -> torch.autocast:
        """A context in which matrix products are taken in bfloat16, if the settings say so."""
        return torch.autocast(self.crosscoder.W_enc.device.type, torch.bfloat16, enabled=self.config.bf16)

    def step(self, x: Float[Tensor, "batch checkpoints d_model"], log: bool) -> list[Tensor]:
        """One optimiser step; returns its FIGURES if they are asked for, still on the device."""
        crosscoder, config, step = self.crosscoder, self.config, self.done
        with self.products():
            pre = crosscoder.pre_activations(x)
        pre, u = pre.to(x), crosscoder.code_norms()
        if crosscoder.sparsity == "l1":
            f = pre.relu()
        else:
            f, smallest = batch_topk(pre, u.detach(), self.k(step))
            self._follow_threshold(smallest)
        target = x * crosscoder.scales[:, None]
        with self.products():
            rebuilt = crosscoder.decode_scaled(f)
        error = target - rebuilt
        reconstruction = error.pow(2).sum((1, 2)).mean()
        mass = f.sum(0)
        sparsity = (mass * u).sum() / len(x)
        loss = reconstruction + self.penalty(step) * sparsity
        aux = torch.zeros_like(loss)
        if crosscoder.sparsity == "batch_topk" and config.aux_weight and step * len(x) >= config.dead_after_tokens:
            dead = (self.silent >= config.dead_after_tokens).nonzero().squeeze(1)
            if len(dead):
                aux_k = config.aux_k or max(1, crosscoder.d_model // 2)
                with self.products():
                    aux = aux_loss(error.detach(), pre[:, dead], crosscoder.W_dec[dead], aux_k)
                loss = loss + config.aux_weight * aux
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(crosscoder.parameters(), config.grad_clip)
        self.adam.param_groups[0]["lr"] = self.lr(step)
        self.adam.step()
        self.done += 1
        with torch.no_grad():
            self.silent.add_(len(x)).masked_fill_(mass > 0, 0)
            if not log:
                return []
            explained = 1 - reconstruction * len(x) / (target - target.mean(0)).pow(2).sum()
            dead = (self.silent >= config.dead_after_tokens).sum().to(loss)
            l0 = (f > 0).sum().to(loss) / len(x)
        return [loss.detach(), reconstruction.detach(), sparsity.detach(), aux.detach(), l0, explained, dead]

    def _follow_threshold(self, smallest: Float[Tensor, ""]) -> None:
        if self.done < self.config.k_anneal * self.config.steps:
            return
        there = smallest.isfinite()  # a batch without any active latent says nothing
        seen = torch.stack([torch.where(there, smallest, 0), there.to(smallest)])
        decay = max(0.0, min(THRESHOLD_DECAY, 1 - 20 / self.config.steps))
        self.threshold = torch.where(there, decay * self.threshold + (1 - decay) * seen, self.threshold)
        self.crosscoder.threshold.copy_(self.threshold[0] / self.threshold[1].clamp_min(1e-12))

    def save(self, folder: Path, settings: dict[str, Any]) -> None:
        """Write the folder: weights and moments (safetensors), counters, settings and history (JSON)."""
        tensors = {f"weights.{name}": t for name, t in self.crosscoder.state_dict().items()}
        tensors |= {"silent": self.silent, "threshold": self.threshold}
        for name, parameter in self.crosscoder.named_parameters():
            tensors |= {f"adam.{name}.{key}": t for key, t in self.adam.state.get(parameter, {}).items()}
        progress_so_far = {"done": self.done, "seconds": self.seconds, "history": self.history}
        save_folder(folder, "state", tensors, "state", {**settings, **progress_so_far})

    def load(self, folder: Path, settings: dict[str, Any]) -> None:
        """Go back to where `save` was called; raises ValueError if it was another run."""
        there = read_json(folder / "state.json")
        check_same_run(folder.parent, there, settings)
        tensors = load_tensors(folder / "state.safetensors")
        device = self.silent.device

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): t.to(device) for k, t in tensors.items() if k.startswith(prefix)}

        self.crosscoder.load_state_dict(part("weights."))
        self.silent, self.threshold = tensors["silent"].to(device), tensors["threshold"].to(device)
        for name, parameter in self.crosscoder.named_parameters():
            self.adam.state[parameter] = part(f"adam.{name}.")
        self.done, self.seconds, self.history = there["done"], there["seconds"], there["history"]


def check_same_run(out: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    told = ["stream: other activations here"] if there["stream"] != here["stream"] else []
    for part in ("config", "crosscoder"):
        a, b = there[part], here[part]
        told += [f"{part}.{k}: {a.get(k)!r} there, {b.get(k)!r} here" for k in a | b if a.get(k) != b.get(k)]
    if told:
        advice = "Give another out=, delete that folder, or pass resume=False to throw away what is there."
        raise ValueError(f"{out} holds another run ({'; '.join(told)}). {advice}")
