"""Training a crosscoder: the loss, the schedules, dead latents, and a run that can be stopped and taken up again."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ctt_helpers.crosscoder import Crosscoder, batch_topk, load_tensors
from ctt_helpers.runtime import atomic_path, pick_device, progress, read_json, versions, write_json

LOG_EVERY = 20  # steps
THRESHOLD_DECAY = 0.999
FIGURES = ("loss", "reconstruction", "sparsity", "aux", "l0", "explained_variance", "dead")


class Stream(Protocol):
    """What `train` needs of its data; see `ActivationStream` and `TensorStream`."""

    n_checkpoints: int
    d_model: int
    batch_size: int
    source: dict[str, Any]

    def scales(self) -> Float[Tensor, " checkpoints"]: ...
    def batches(self, start: int = 0) -> Iterator[Float[Tensor, "batch checkpoints d_model"]]: ...
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. The defaults suit the embedded suite; the paper's values stand beside them."""

    steps: int = 600
    """Optimiser steps (paper: 100k steps of 4096 tokens)."""
    lr: float = 2e-3
    """Adam's learning rate (paper: 5e-5)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    grad_clip: float = 1.0
    """Largest norm of the gradient over all parameters."""
    lr_decay: float = 0.2
    """Last share of the steps, over which the learning rate falls linearly to 0."""
    l1: float = 2.0
    """Weight of E[sum_i f_i u_i] for an "l1" crosscoder."""
    decoder_norm_penalty: float = 1.0
    """Weight of the same term for a "batch_topk" crosscoder: fewer dead latents (paper: 0)."""
    penalty_warmup: float = 0.2
    """First share of the steps, over which that weight rises linearly from 0 (paper: 0.05)."""
    aux_weight: float = 1 / 32
    """Weight of the loss by which dead latents rebuild the error, "batch_topk" only; 0 turns it off."""
    aux_k: int | None = None
    """Dead latents used for it per token; None: half of d_model."""
    dead_after_tokens: int = 50_000
    """A latent silent for this many training tokens counts as dead (paper: 10M)."""
    k_start: int | None = None
    """k at the first step, falling linearly to the crosscoder's own k; None: no annealing (paper: 1000 to 200)."""
    k_anneal_steps: int = 0
    """Steps over which k falls (paper: 5,000)."""
    checkpoint_every: int = 200
    """Steps between two checkpoints of the run on disk."""

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "checkpoint_every", "dead_after_tokens"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr", "grad_clip"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("lr_decay", "penalty_warmup"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a share of the steps, 0 to 1")
        for name in ("l1", "decoder_norm_penalty", "aux_weight", "k_anneal_steps"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("aux_k", "k_start"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "None, or at least 1")
        self._require("betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        both = (self.k_start is None) == (self.k_anneal_steps == 0)
        self._require("k_anneal_steps", both and self.k_anneal_steps < self.steps, "set with k_start, below steps")

    def _require(self, name: str, fine: bool, accepted: str) -> None:
        if not fine:
            raise ValueError(f"{name}={getattr(self, name)!r}: it must be {accepted}.")


@dataclass
class TrainResult:
    """A finished training run.

    Attributes:
        crosscoder: the one that was given, trained, in evaluation mode.
        history: one row every 20 steps with the figures of that step's batch: step, tokens (so far), loss,
            reconstruction, sparsity and aux (its terms before their weights), l0, explained_variance (scaled space, all
            checkpoints together), dead (number of latents), lr, seconds.
        seconds: time spent on training, all sittings together.
        resumed_from: the step at which this call took up an earlier run; None for a fresh one.
    """

    crosscoder: Crosscoder
    history: pd.DataFrame
    seconds: float
    resumed_from: int | None


def train(
    crosscoder: Crosscoder,
    stream: Stream,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    resume: bool = True,
) -> TrainResult:
    """Train a crosscoder on a stream of activations (Crosscoding Through Time, sec. 3 and its training details).

    The loss, in scaled space, is E[sum_c ||x~_c - x^_c||^2] + weight * E[sum_i f_i u_i], and for BatchTopK also that of
    dead latents (`aux_loss`). Scales and source come from the stream. The threshold of BatchTopK is the running mean
    (0.999, corrected for its start at 0) of the smallest kept f_i u_i of each batch, once k has its final value.

    Args:
        crosscoder: trained in place.
        stream: raw activations, the same tokens at every checkpoint.
        config: settings; None takes the defaults.
        out: folder for the result (crosscoder/, history.csv, train_config.json), and for what is needed to take up a
            run that was cut off. A finished run found there is loaded. None: nothing is written.
        device: "auto", "cpu", "cuda" ...; the crosscoder stays there.
        resume: False throws away what is in `out` and starts afresh.

    Returns:
        The result. A run that was cut off and taken up again gives the same numbers (on one machine's CPU).

    Raises:
        ValueError: sizes that do not fit, a folded crosscoder, a loss that is not finite, or another run in `out`.
    """
    config = config or TrainConfig()
    _check(crosscoder, stream, config)
    crosscoder.to(pick_device(device))
    settings = {"config": asdict(config), "crosscoder": crosscoder.config, "stream": stream.fingerprint()}
    settings = json.loads(json.dumps(settings))  # as it will be read back
    out = None if out is None else Path(out)
    if out is not None and not resume:
        (out / "train_config.json").unlink(missing_ok=True)
        shutil.rmtree(out / "checkpoint", ignore_errors=True)
    if out is not None and (out / "train_config.json").exists():
        return _finished_run(crosscoder, out, settings)

    run = _Run(crosscoder, config)
    if resumed := out is not None and (out / "checkpoint").exists():
        run.load(out / "checkpoint", settings)
    else:
        crosscoder.scales.copy_(stream.scales())
    crosscoder.source = dict(stream.source)
    crosscoder.train()
    start, begin = run.done, time.perf_counter() - run.seconds
    bar = progress(range(start, config.steps), "training", total=config.steps, initial=start)
    for step, x in zip(bar, stream.batches(start=start), strict=False):
        if out is not None and step % config.checkpoint_every == 0 and not (resumed and step == start):
            run.save(out / "checkpoint", settings)
        log = step == 0 or (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps
        figures = run.step(x.to(crosscoder.W_enc), log)
        run.seconds = time.perf_counter() - begin
        if log:
            row = dict(zip(FIGURES, torch.stack(figures).tolist(), strict=True))
            if not math.isfinite(row["loss"]):
                raise ValueError(
                    f"The loss is {row['loss']} at step {run.done}. Try a lower lr; check the activations."
                )
            row |= {"dead": int(row["dead"]), "lr": run.lr(step), "seconds": run.seconds}
            run.history.append({"step": run.done, "tokens": run.done * stream.batch_size, **row})
            told = f"L0 {row['l0']:.1f}, explained {row['explained_variance']:.3f}, dead {row['dead']}"
            bar.set_postfix_str(told, refresh=False)
    crosscoder.eval()
    result = TrainResult(crosscoder, pd.DataFrame(run.history), run.seconds, start if resumed else None)
    if out is not None:
        crosscoder.save(out / "crosscoder")
        with atomic_path(out / "history.csv") as temporary:
            result.history.to_csv(temporary, index=False)
        write_json(out / "train_config.json", {**settings, "seconds": run.seconds, "versions": versions()})
        shutil.rmtree(out / "checkpoint")
    return result


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


class _Run:
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
        c, k = self.config, self.crosscoder.k
        return k if step >= c.k_anneal_steps else round(c.k_start + (k - c.k_start) * step / c.k_anneal_steps)

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
        if self.done < self.config.k_anneal_steps:
            return
        there = smallest.isfinite()  # a batch without any active latent says nothing
        seen = torch.stack([torch.where(there, smallest, 0), there.to(smallest)])
        self.threshold = torch.where(
            there, THRESHOLD_DECAY * self.threshold + (1 - THRESHOLD_DECAY) * seen, self.threshold
        )
        self.crosscoder.threshold.copy_(self.threshold[0] / self.threshold[1].clamp_min(1e-12))

    def save(self, folder: Path, settings: dict[str, Any]) -> None:
        """Write the folder: weights and moments (safetensors), counters, settings and history (JSON)."""
        from safetensors.torch import save_file

        tensors = {f"weights.{name}": t for name, t in self.crosscoder.state_dict().items()}
        tensors |= {"silent": self.silent, "threshold": self.threshold}
        for name, parameter in self.crosscoder.named_parameters():
            tensors |= {f"adam.{name}.{key}": t for key, t in self.adam.state.get(parameter, {}).items()}
        progress_so_far = {"done": self.done, "seconds": self.seconds, "history": self.history}
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary / "state.safetensors")
            write_json(temporary / "state.json", {**settings, **progress_so_far, "versions": versions()})

    def load(self, folder: Path, settings: dict[str, Any]) -> None:
        """Go back to where `save` was called; raises ValueError if it was another run."""
        there = read_json(folder / "state.json")
        _check_same_run(folder.parent, there, settings)
        tensors = load_tensors(folder / "state.safetensors")
        device = self.silent.device
        prefix = "weights."
        self.crosscoder.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
        self.silent, self.threshold = tensors["silent"].to(device), tensors["threshold"].to(device)
        for name, parameter in self.crosscoder.named_parameters():
            prefix = f"adam.{name}."
            moments = {k.removeprefix(prefix): t.to(device) for k, t in tensors.items() if k.startswith(prefix)}
            if moments:
                self.adam.state[parameter] = moments
        self.done, self.seconds, self.history = there["done"], there["seconds"], there["history"]


def _finished_run(crosscoder: Crosscoder, out: Path, settings: dict[str, Any]) -> TrainResult:
    there = read_json(out / "train_config.json")
    _check_same_run(out, there, settings)
    trained = Crosscoder.load(out / "crosscoder")
    crosscoder.load_state_dict(trained.state_dict())
    crosscoder.source = trained.source
    history = pd.read_csv(out / "history.csv", float_precision="round_trip")
    print(f"{out} holds this run, finished: it is loaded, not trained again.")
    return TrainResult(crosscoder.eval(), history, there["seconds"], settings["config"]["steps"])


def _check_same_run(out: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    told = []
    for part in ("config", "crosscoder", "stream"):
        a, b = there.get(part), here[part]
        if isinstance(a, dict) and isinstance(b, dict):
            told += [f"{part}.{k}: {a.get(k)!r} there, {b.get(k)!r} here" for k in {**a, **b} if a.get(k) != b.get(k)]
        elif a != b:
            told.append(f"{part}: {a!r} there, {b!r} here")
    if told:
        raise ValueError(
            f"{out} holds another run ({'; '.join(told)}). Give another out=, delete that folder, or pass resume=False "
            "to throw away what is there."
        )


def _check(crosscoder: Crosscoder, stream: Stream, config: TrainConfig) -> None:
    if crosscoder.scaled_norms is not None:
        raise ValueError("A folded crosscoder is for export and is not trained on: train the one it was made from.")
    sizes = (crosscoder.n_checkpoints, crosscoder.d_model)
    if sizes != (stream.n_checkpoints, stream.d_model):
        raise ValueError(
            f"The stream gives {stream.n_checkpoints} checkpoints with d_model {stream.d_model}; this crosscoder takes "
            f"{sizes[0]} with d_model {sizes[1]}. Make it with the stream's sizes."
        )
    if config.k_start is not None and (crosscoder.k is None or config.k_start < crosscoder.k):
        raise ValueError(
            f"k_start={config.k_start} falls to the crosscoder's k, which is {crosscoder.k}: take a larger k_start, "
            'and sparsity="batch_topk".'
        )
