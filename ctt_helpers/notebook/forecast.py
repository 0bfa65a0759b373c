"""What work with checkpoints takes, told before it is begun: download, memory, time.

Seconds and bytes are counted from sizes, and from speeds measured on small pieces of the work.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.benchmark import Timer

from ctt_helpers import hooks
from ctt_helpers.attribution import METHODS, Cost
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.messages import show_size, show_time
from ctt_helpers.sources import hub
from ctt_helpers.sources.machine import ROOM, free_memory
from ctt_helpers.training import TrainConfig, TrainingRun

if TYPE_CHECKING:
    from ctt_helpers.sources.checkpoints import Checkpoints

# at once: tokens of text, pairs, single ablations
GROUP, PAIRS, CHUNK = 2**14, 128, 512
# what a pair costs at each checkpoint, for what is no method of attribution
OTHER_COSTS: dict[str, Cost] = {
    "reading": Cost(),
    "accuracy": Cost(passes=1),
    "ablate": Cost(passes=2, products=1),
    "ablation_curve": Cost(passes=7, products=1),  # for its six sizes
}
DOWNLOAD_RATE = 40e6  # bytes a second: an assumption, and told as one
LOAD_RATE = 0.5e9  # bytes of a file a second, reading and converting them
NO_GPU = (
    "no GPU here. On Colab: Runtime > Change runtime type > T4 GPU. Else take fewer tokens, steps "
    "or pairs"
)


def costs() -> dict[str, Cost]:
    """What can be done with pairs -> what it costs for one pair at one checkpoint."""
    return OTHER_COSTS | {name: method.cost for name, method in METHODS.items()}


# ---- what is asked, and what is answered


@dataclass(frozen=True)
class Work:
    """What is to be done with every checkpoint, counted.

    Attributes:
        tokens: of text to read (an endless stream: those that training takes).
        evaluated: tokens of text for `evaluate`.
        pairs: what to do with pairs (a key of `costs()`) -> how many.
        length: tokens of a pair.
        text_length: tokens of a sequence of text.
        n_latents, k: of the crosscoder, 0 where there is none.
        active: latents active in a pair; None: as many as there can be on average, k a token.
        steps, batch_size: of its training.
        bf16: as in `TrainConfig`.
        buffer_tokens: of the stream.
    """

    tokens: int = 0
    evaluated: int = 0
    pairs: Mapping[str, int] = field(default_factory=dict)
    length: int = 10
    text_length: int = 1024
    n_latents: int = 0
    k: int = 0
    active: int | None = None
    steps: int = 0
    batch_size: int = 1024
    bf16: bool = False
    buffer_tokens: int = 2**17

    def __post_init__(self):
        if unknown := set(self.pairs) - set(costs()):
            known = ", ".join(costs())
            raise ValueError(
                f"pairs={dict(self.pairs)!r}: {min(unknown)!r} is not known; take {known}."
            )
        if self.active is None:
            active = min(self.n_latents, self.k * (self.length - 1))
            object.__setattr__(self, "active", active)


@dataclass(frozen=True)
class Speeds:
    """Seconds on one device: `measure_speeds`, or assumed ones.

    Attributes:
        text: one token of text through one block.
        logits: one token through the unembedding and the cross-entropy.
        call: what a batch costs whatever its size.
        pairs, chunk: PAIRS pairs, CHUNK pairs, through one block.
        gradient: how many times longer a pass takes with its gradient.
        product: one token's product with the dictionary, all checkpoints.
        step: one training step.
    """

    text: float = 0.0
    logits: float = 0.0
    call: float = 0.0
    pairs: float = 0.0
    chunk: float = 0.0
    gradient: float = 2.0
    product: float = 0.0
    step: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """What a set of checkpoints takes, and what is to be done with them; print it. Bytes, seconds.

    Attributes:
        title: what it is a forecast of.
        parameters: of one whole model, counted from its configuration.
        download: bytes still to fetch (about).
        file_bytes: size of the files of all checkpoints (about).
        one, together: bytes of the weights kept in memory, of one checkpoint and of all.
        free: bytes free on the device.
        work: seconds of each part of the work; empty where none was asked for.
        memory: bytes that the work takes at its peak beside the weights.
        device: where.
    """

    title: str
    parameters: int
    download: int
    file_bytes: int
    one: int
    together: int
    free: float
    work: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def fits(self) -> bool:
        """Whether all fit into the free memory together, leaving a fifth of it for activations."""
        return self.together <= ROOM * self.free

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds to download (at 40 MB/s), to load the files, and of each part of the work."""
        return {
            "download": self.download / DOWNLOAD_RATE,
            "loading": self.file_bytes / LOAD_RATE,
            **self.work,
        }

    @property
    def peak(self) -> float:
        """Bytes of weights and work at the peak."""
        return (self.together if self.fits else self.one) + sum(self.memory.values())

    def __str__(self) -> str:
        seconds = {what: show_time(value) for what, value in self.seconds.items()}
        fetch = "nothing"
        if self.download:
            fetch = f"about {show_size(self.download)}, {seconds['download']} at 40 MB/s"
        how = "too large"
        if self.fits:
            how = "all at once"
        elif self.one <= self.free:
            how = "one after another"
        sizes = [f"{show_size(self.one)} each", f"{show_size(self.together)} together"]
        lines = [
            self.title,
            f"  model     {self.parameters:,} parameters",
            f"  download  {fetch}",
            f"  memory    {', '.join(sizes)}, {show_size(self.free)} free: {how}",
            f"  loading   about {seconds['loading']}",
        ]
        if self.work:
            lines += self._work_lines(seconds)
        return "\n".join(lines)

    def _work_lines(self, seconds: Mapping[str, str]) -> list[str]:
        parts = [f"{show_size(size)} {what}" for what, size in self.memory.items() if size]
        enough = ""
        if self.peak > self.free:
            enough = ": more than is free. Take smaller sizes or fewer checkpoints"
        lines = [
            f"  at peak   about {show_size(self.peak)}, of it {', '.join(parts)}{enough}",
            f"  work      {', '.join(f'{what} {seconds[what]}' for what in self.work)}",
            f"  in all    about {show_time(sum(self.seconds.values()))}",
        ]
        return [*lines, f"  device    {NO_GPU}"] if self.device == "cpu" else lines


def estimate(ckpts: Checkpoints, speeds: Speeds | None = None, **work: Any) -> Forecast:
    """What working with these checkpoints takes, before anything is downloaded or loaded: print it.

    Args:
        ckpts: the checkpoints.
        speeds: of the device; None: they are measured, in a second or two on models that suit the
            device.
        **work: what is to be done, as for `Work`: tokens=, evaluated=, pairs={"atp": 300},
            n_latents=, k=, steps=, batch_size= ... None: only download and weights are told.

    Raises:
        ValueError: the layer does not exist, or something unknown shall be done with pairs.
    """
    suite, n = ckpts.suite, len(ckpts)
    files = {revision: ckpts.file_bytes(revision) for revision in ckpts.revisions}
    missing = []
    if not suite.is_local:
        missing = [r for r in ckpts.revisions if hub.cached(suite.source, r) != "yes"]
    weights = {
        "title": repr(ckpts),
        "parameters": ckpts.parameters["all"],
        "download": sum(files[revision] for revision in missing),
        "file_bytes": sum(files.values()),
        "one": ckpts.bytes_each,
        "together": ckpts.bytes_each * n,
        "free": free_memory(ckpts.device) + ckpts.bytes_loaded,
        "device": ckpts.device,
    }
    if not work:
        return Forecast(**weights)
    config, todo = suite.config.get_text_config(), Work(**work)
    speeds = speeds or measure_speeds(config, todo, n, ckpts.device, ckpts.dtype)
    return Forecast(
        **weights,
        work=count_seconds(todo, speeds, n, ckpts.layer, config.num_hidden_layers),
        memory=count_memory(todo, n, ckpts.d_model, config.vocab_size, ckpts.dtype.itemsize),
    )


# ---- counting


def count_seconds(
    work: Work, speeds: Speeds, n: int, layer: int, n_layers: int
) -> dict[str, float]:
    """Seconds of each part of the work, for n checkpoints read after block `layer`.

    Loading is not among them.
    """
    below, above = layer + 1, n_layers - layer - 1
    seconds = {
        "reading": work.tokens * n * below * speeds.text,
        "training": work.steps * speeds.step,
    }
    each = n * ((below + 3 * above) * speeds.text + 3 * speeds.logits) + 2 * speeds.product
    seconds["evaluating"] = work.evaluated * each
    for what, count in work.pairs.items():
        cost = costs()[what]
        blocks = cost.readings * below + (cost.passes + speeds.gradient * cost.gradients) * above
        whole = count / PAIRS * blocks * speeds.pairs
        a_latent = cost.passes_a_latent + speeds.gradient * cost.gradients_a_latent
        chunks = count * work.active / CHUNK
        one_by_one = a_latent * above * chunks * speeds.chunk
        calls = math.ceil(count / PAIRS) * (cost.readings + cost.passes + 2 * cost.gradients)
        calls += math.ceil(chunks) * (cost.passes_a_latent + cost.gradients_a_latent)
        code = count * cost.products * work.length * speeds.product
        seconds[what] = n * (whole + one_by_one + calls * speeds.call) + code
    return {what: value for what, value in seconds.items() if value}


def count_memory(
    work: Work, n: int, d_model: int, vocabulary: int, itemsize: int
) -> dict[str, float]:
    """Bytes beside the models' weights at the peak of the work: for training, and for activations.

    How many numbers a pass or a step holds at once was fitted to measurements on a CPU
    (`benchmarks/estimates.py`).
    """
    numbers, width = 2 * n * d_model * work.n_latents, n * d_model
    training = 4 * numbers
    if work.steps:
        # a weight, its gradient, Adam's two moments, and as much again for half of them while a
        # step is taken
        training = 24 * numbers + work.batch_size * (36 * work.n_latents + 20 * width)
    group = min(max(GROUP, work.text_length), max(work.tokens, work.evaluated))
    stream = 2 * 4 * width * min(work.buffer_tokens, work.tokens) if work.steps else 0
    reading = group * (28 * d_model * itemsize + 8 * width)
    evaluating = 0
    if work.evaluated:
        # logits are taken of a few sequences at once, as `evaluate` does
        few = max(1, 2**26 // (vocabulary * work.text_length))
        logits = 8 * vocabulary * work.text_length * few
        codes = group * (16 * work.n_latents + 24 * width)
        evaluating = codes + min(logits, 8 * group * vocabulary)
    pairs = 0
    if work.pairs:
        rows = PAIRS * work.length
        pairs = rows * (12 * work.n_latents + 12 * width) + 4 * rows * 12 * d_model * 4
    return {"training": training, "activations": max(stream + reading, evaluating, pairs)}


# ---- measuring


def _timed(run: Callable[[], Any], least: float = 0.1) -> float:
    """Median seconds of a call, over at least so many seconds of calls after an uncounted one."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=least).median  # it waits for a GPU


def measure_speeds(config: Any, work: Work, n: int, device: str, dtype: torch.dtype) -> Speeds:
    """Time small pieces of the work itself on this device, in a second or two.

    Two blocks of the model's shape with random weights (nothing is downloaded), with the batches
    that the package uses (on a CPU one sequence, whose time grows with their number); a few
    training steps (on a CPU with fewer latents: a step's time grows with their number).
    """
    found, on_gpu = {}, device.startswith("cuda")
    d_model, vocabulary = config.hidden_size, config.vocab_size
    with torch.random.fork_rng():  # the notebook's own draws stay what they were
        model = _two_blocks(config, device, dtype)
        word = torch.zeros(1, 2, dtype=torch.long)
        found["call"] = _timed(lambda: hooks.residual_stream(model, word, None, 0))
        if work.tokens or work.evaluated:
            rows = max(1, GROUP // work.text_length) if on_gpu else 1
            ids = torch.zeros(rows, work.text_length, dtype=torch.long)
            found["text"] = _a_block(model, ids) / ids.numel()
        if work.pairs:
            ids = torch.zeros(PAIRS, work.length, dtype=torch.long)
            found["pairs"] = _a_block(model, ids)
            found["chunk"] = found["pairs"] * CHUNK / PAIRS
            if on_gpu:
                found["chunk"] = _a_block(model, ids.repeat(CHUNK // PAIRS, 1))
            x, at = torch.randn(PAIRS, work.length, d_model, device=device), ids[:, 0]
            plain = _timed(lambda: _pass_above(model, x, at, gradient=False))
            with_gradient = _timed(lambda: _pass_above(model, x, at, gradient=True))
            found["gradient"] = max(1.0, with_gradient / plain)
        if work.evaluated:
            found["logits"] = _head_speed(d_model, vocabulary, device, dtype)
        if work.n_latents:
            found |= _dictionary_speeds(work, n, d_model, device)
    return Speeds(**found)


def _head_speed(d_model: int, vocabulary: int, device: str, dtype: torch.dtype) -> float:
    """Seconds of one token through an unembedding and the cross-entropy."""
    rows = 256
    head = torch.nn.Linear(d_model, vocabulary, bias=False).to(device, dtype)
    final = torch.randn(rows, d_model).to(device, dtype)
    at = torch.zeros(rows, dtype=torch.long, device=device)
    loss = torch.nn.functional.cross_entropy
    with torch.no_grad():
        return _timed(lambda: loss(head(final).float(), at)) / rows


def _dictionary_speeds(work: Work, n: int, d_model: int, device: str) -> dict[str, float]:
    rows = work.batch_size if work.steps else 512
    n_latents = work.n_latents
    if not device.startswith("cuda"):
        most = 2.5e10 / (10 * n * d_model * rows)  # latents that a CPU trains in under a second
        n_latents = min(n_latents, max(128, int(most)))
    share = work.n_latents / n_latents
    k = max(1, min(n_latents, work.k * n_latents // work.n_latents))
    crosscoder = Crosscoder(n, d_model, n_latents, k=k).to(device)
    x = torch.randn(rows, n, d_model, device=device)
    with torch.no_grad():
        product = _timed(lambda: crosscoder.pre_activations(x[:512])) / len(x[:512])
    config = TrainConfig(steps=1000, k_anneal=0, lr=1e-5, bf16=work.bf16)
    run = TrainingRun(crosscoder.train(), config)
    step = _timed(lambda: run.step(x, log=False)) if work.steps else 0.0
    return {"product": product * share, "step": step * share}


def _two_blocks(config: Any, device: str, dtype: torch.dtype) -> hooks.HookedModel:
    """Two blocks of a model's shape with random weights, a small vocabulary, no real tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    config = copy.deepcopy(config)
    config.num_hidden_layers, config.vocab_size = 2, 64
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    backend = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    words = PreTrainedTokenizerFast(tokenizer_object=backend)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # as load_checkpoint does it: buffers stay precise
        parameter.data = parameter.data.to(device, dtype)
    return hooks.HookedModel(model.to(device), words, 0)


def _a_block(model: hooks.HookedModel, ids: torch.Tensor) -> float:
    """Seconds that a second block adds to a pass through one."""
    one = _timed(lambda: hooks.residual_stream(model, ids, None, 0))
    two = _timed(lambda: hooks.residual_stream(model, ids, None, 1))
    return max(two - one, 0.2 * two)  # a busy machine can make the difference as good as nothing


def _pass_above(model: hooks.HookedModel, x: torch.Tensor, at: torch.Tensor, gradient: bool) -> Any:
    with torch.set_grad_enabled(gradient):
        x = x.detach().requires_grad_(gradient)
        logits = hooks.logits_above(model, x, None, at, at[:, None])
        return torch.autograd.grad(logits.sum(), x) if gradient else logits
