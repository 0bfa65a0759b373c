"""Training a crosscoder: the loop, and a run that can be stopped and taken up again."""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ctt_helpers.activations import TensorStream
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.optimisation import FIGURES, TrainConfig, TrainingRun, check_same_run
from ctt_helpers.runtime import atomic_path, pick_device, progress, read_json, versions, write_json

LOG_EVERY = 20  # steps


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
    stream: TensorStream,
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


def _check(crosscoder: Crosscoder, stream: TensorStream, config: TrainConfig) -> None:
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
