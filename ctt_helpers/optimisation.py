"""One step of training a crosscoder: loss, schedules, dead latents, and all that has to be kept to go on from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ctt_helpers.crosscoder import Crosscoder, batch_topk
from ctt_helpers.runtime import load_tensors, read_json, save_folder

if TYPE_CHECKING:
    from ctt_helpers.training import TrainConfig

THRESHOLD_DECAY = 0.999  # of the running mean; shorter in short runs, where early batches would drag it along
FIGURES = ("loss", "reconstruction", "sparsity", "aux", "l0", "explained_variance", "dead")


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

    def __init__(self, crosscoder: Crosscoder, config: "TrainConfig"):
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

    def step(self, x: Float[Tensor, "batch checkpoints d_model"], log: bool) -> list[Tensor]:
        """One optimiser step; returns its FIGURES if they are asked for, still on the device."""
        crosscoder, config, step = self.crosscoder, self.config, self.done
        pre, u = crosscoder.pre_activations(x), crosscoder.code_norms()
        if crosscoder.sparsity == "l1":
            f = pre.relu()
        else:
            f, smallest = batch_topk(pre, u.detach(), self.k(step))
            self._follow_threshold(smallest)
        target = x * crosscoder.scales[:, None]
        error = target - crosscoder.decode_scaled(f)
        reconstruction = error.pow(2).sum((1, 2)).mean()
        mass = f.sum(0)
        sparsity = (mass * u).sum() / len(x)
        loss = reconstruction + self.penalty(step) * sparsity
        aux = torch.zeros_like(loss)
        if crosscoder.sparsity == "batch_topk" and config.aux_weight and step * len(x) >= config.dead_after_tokens:
            dead = (self.silent >= config.dead_after_tokens).nonzero().squeeze(1)
            if len(dead):
                aux_k = config.aux_k or max(1, crosscoder.d_model // 2)
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
    runs = [
        {f"{part}.{k}": v for part in ("config", "crosscoder") for k, v in run[part].items()} for run in (there, here)
    ]
    a, b = ({**flat, "stream": run["stream"]} for flat, run in zip(runs, (there, here), strict=True))
    told = [f"{k}: {a.get(k)!r} there, {b.get(k)!r} here" for k in {**a, **b} if a.get(k) != b.get(k)]
    if told:
        raise ValueError(
            f"{out} holds another run ({'; '.join(told)}). Give another out=, delete that folder, or pass resume=False "
            "to throw away what is there."
        )
