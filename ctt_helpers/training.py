"""Training a crosscoder: the settings, the loop, and a run that can be stopped and taken up again."""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.optimisation import FIGURES, TrainingRun, check_same_run
from ctt_helpers.runtime import atomic_path, pick_device, progress, read_json, versions, write_json

if TYPE_CHECKING:
    from ctt_helpers.activations import TensorStream

LOG_EVERY = 20  # steps


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
    stream: "TensorStream",
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    resume: bool = True,
) -> TrainResult:
    """Train a crosscoder on a stream of activations (Crosscoding Through Time, sec. 3 and its training details).

    The loss, in scaled space, is E[sum_c ||x~_c - x^_c||^2] + weight * E[sum_i f_i u_i], and for BatchTopK also that of
    dead latents (`aux_loss`). Scales and source come from the stream. The threshold of BatchTopK is a running mean of
    the smallest kept f_i u_i of each batch, once k has its final value, corrected for its start at 0. Its decay is the
    paper's 0.999, or 1 - 20 / steps in runs below 20,000 steps, where the first batches would otherwise weigh as much
    as the last.

    Args:
        crosscoder: trained in place.
        stream: raw activations, the same tokens at every checkpoint: an `ActivationStream` or `TensorStream`, or
            what has their n_checkpoints, d_model, batch_size, source, scales(), batches(start) and fingerprint().
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

    run = TrainingRun(crosscoder, config)
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
                told = f"The loss is {row['loss']} at step {run.done}."
                raise ValueError(f"{told} Try a lower lr; check the activations.")
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


def _finished_run(crosscoder: Crosscoder, out: Path, settings: dict[str, Any]) -> TrainResult:
    there = read_json(out / "train_config.json")
    check_same_run(out, there, settings)
    trained = Crosscoder.load(out / "crosscoder")
    crosscoder.load_state_dict(trained.state_dict())
    crosscoder.source = trained.source
    history = pd.read_csv(out / "history.csv")
    print(f"{out} holds this run, finished: it is loaded, not trained again.")
    return TrainResult(crosscoder.eval(), history, there["seconds"], settings["config"]["steps"])


def _check(crosscoder: Crosscoder, stream: "TensorStream", config: TrainConfig) -> None:
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
            'and sparsity="batch_topk"; or leave it None.'
        )
