"""Train a crosscoder from a file of settings, in one process or in several.

    python -m ctt_helpers.train --config run.yaml
    accelerate launch -m ctt_helpers.train --config run.yaml

The file holds what is to differ from the settings below; `training` takes those of `TrainConfig`.
With several processes each reads its own part of the text and trains on its own part of every
batch, or, with `shard_latents: true`, trains its own part of the latents on all of it. One result
is written. A run that was cut off goes on when the same command is given again.
"""

import argparse
import os
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

import ctt_helpers as ctt
from ctt_helpers.arguments import checked
from ctt_helpers.files import read_text
from ctt_helpers.messages import check_no_secret, choose, closest, without_secrets
from ctt_helpers.training import TrainConfig, TrainResult, train


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and where it goes.

    Attributes:
        out: folder of the result.
        model: a suite: "tiny", a name on the hub, or a folder of checkpoints.
        revisions: None: the suite's default triplet.
        layer: None: the suite's default.
        text_path: file of text, or a name such as "pile-10k"; None: the suite's own.
        n_tokens: of text.
        cache_folder: where activations are kept on disk; None: nowhere.
        n_latents, k, sparsity: of the crosscoder.
        batch_size, buffer_tokens, max_norm: of the stream; `batch_size` is that of all processes
            together.
        seed: of weights, text and order.
        device: "auto", "cpu", "cuda" ...
        shard_latents: whether each process is to hold a part of the latents, and not all.
        training: settings of `TrainConfig`.
        log_to: "csv", "tensorboard": files in `out`.
    """

    out: str
    model: str = "tiny"
    revisions: list[str] | None = None
    layer: int | None = None
    text_path: str | None = None
    n_tokens: int = 140_000
    cache_folder: str | None = None
    n_latents: int = 512
    k: int | None = 12
    sparsity: str = "batch_topk"
    batch_size: int = 1024
    buffer_tokens: int = 2**17
    max_norm: float | None = None
    seed: int = 0
    device: str = "auto"
    shard_latents: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    log_to: list[str] = field(default_factory=list)

    def __post_init__(self):
        for name in self.log_to:
            choose("log_to", name, ("csv", "tensorboard"))


@checked
def read_run(path: str | Path) -> Run:
    """The settings in a YAML file.

    Raises:
        ValueError: it is no YAML of names and values, a name is not known, `out` is missing, or a
            value is a token or a password.
    """
    try:
        given = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {without_secrets(str(error))}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} must hold settings, one a line, such as 'out: runs/mine'.")
    check_no_secret("", given)
    for known, here in ((Run, given), (TrainConfig, given.get("training") or {})):
        names = [each.name for each in fields(known)]
        for name in here:
            if name not in names:
                raise ValueError(
                    f"{path}: {name!r} is not known.{closest(name, names)} Known are "
                    f"{', '.join(names)}."
                )
    if "out" not in given:
        raise ValueError(f"{path} says no out: the folder where the crosscoder goes.")
    return Run(**given)


def device_of_process(device: str) -> str:
    """Join the other processes, if there are any; the device of this one.

    Raises:
        RuntimeError: several processes were asked for, and one came.
    """
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if asked == 1:
        return device
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    if accelerator.num_processes != asked:
        raise RuntimeError(
            f"{asked} processes were started, and accelerate knows of {accelerator.num_processes}. "
            "On CPUs: accelerate launch --multi_gpu --num_processes 2 --num_machines 1, or python "
            "-m torch.distributed.run --nproc-per-node 2."
        )
    return str(accelerator.device)


def main(arguments: list[str] | None = None) -> TrainResult:
    parser = argparse.ArgumentParser(
        prog="python -m ctt_helpers.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings")
    parser.add_argument("--out", help="in place of the file's")
    given = parser.parse_args(arguments)
    run = read_run(given.config)
    if given.out:
        run = Run(**{**asdict(run), "out": given.out})
    try:
        return train_run(run)
    except KeyboardInterrupt:
        sys.exit(130)  # what is kept has been said


def train_run(run: Run) -> TrainResult:
    """Do what the settings say."""
    device = device_of_process(run.device)
    suite = ctt.load_suite(run.model)
    revisions = run.revisions or suite.default_triplet
    ckpts = suite.checkpoints(revisions, layer=run.layer, device=device)
    text = suite.text(run.n_tokens, split="train", seed=run.seed, path=run.text_path)
    sizes = {
        "batch_size": run.batch_size,
        "seed": run.seed,
        "buffer_tokens": run.buffer_tokens,
        "max_norm": run.max_norm,
    }
    if run.cache_folder is None:
        stream = ctt.ActivationStream(ckpts, text, **sizes)
    else:
        cache = ctt.ActivationCache.build(ckpts, text, run.cache_folder)
        stream = cache.stream(**sizes, device=device)
    crosscoder = ctt.Crosscoder(
        len(ckpts), ckpts.d_model, run.n_latents, run.sparsity, run.k, run.seed
    )
    out = Path(run.out)
    kinds = {
        "csv": lambda: ctt.logs.to_csv(out / "log.csv"),
        "tensorboard": lambda: ctt.logs.to_tensorboard(out / "tensorboard"),
    }
    first = ctt.processes.among().rank == 0
    on_log = [kinds[name]() for name in run.log_to if first]
    config = TrainConfig(**run.training)
    return train(
        crosscoder,
        stream,
        config,
        out,
        device=device,
        on_log=on_log,
        shard_latents=run.shard_latents,
    )


if __name__ == "__main__":
    main()
