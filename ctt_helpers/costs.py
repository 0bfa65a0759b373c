"""What work with checkpoints takes: seconds and bytes, counted from sizes and from speeds measured on small pieces."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.benchmark import Timer

from ctt_helpers import hooks
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.optimisation import TrainConfig, TrainingRun

GROUP, PAIRS, CHUNK = 2**14, 128, 512  # at once: tokens of text, pairs, single ablations
# what a pair costs at each checkpoint: readings, passes of the layers above, gradients there, products with the
# dictionary; and passes and gradients for each active latent. IG's gradients differ from pair to pair: 7 to 36 measured
COSTS = {
    "reading": (1, 0, 0, 0, 0, 0), "accuracy": (1, 1, 0, 0, 0, 0), "ablate": (1, 2, 0, 1, 0, 0),
    "ablation": (1, 1, 0, 1, 1, 0), "atp": (1, 2, 1, 3, 0, 0), "ig": (2, 4, 15, 4, 0, 0),
    "ig_near": (2, 4, 10, 4, 0, 0), "ig_own": (1, 1, 0, 1, 0, 5),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What is to be done with every checkpoint, counted; see `Checkpoints.estimate`.

    Attributes:
        tokens: of text to read (an endless stream: those that training takes).
        evaluated: tokens of text for `evaluate`.
        pairs: what to do with pairs (a key of COSTS) -> how many.
        length: tokens of a pair; text_length: of a sequence of text.
        n_latents, k: of the crosscoder, 0 where there is none.
        active: latents active in a pair; None: as many as there can be on average, k a token.
        steps, batch_size: of its training; bf16: as in `TrainConfig`.
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
        if unknown := set(self.pairs) - set(COSTS):
            raise ValueError(f"pairs={dict(self.pairs)!r}: {min(unknown)!r} is not known; take {', '.join(COSTS)}.")
        if self.active is None:
            object.__setattr__(self, "active", min(self.n_latents, self.k * (self.length - 1)))


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


def count_seconds(work: Work, speeds: Speeds, n: int, layer: int, n_layers: int) -> dict[str, float]:
    """Seconds of each part of the work, for n checkpoints read after block `layer`. Loading is not among them."""
    below, above = layer + 1, n_layers - layer - 1
    seconds = {"reading": work.tokens * n * below * speeds.text, "training": work.steps * speeds.step}
    each = n * ((below + 3 * above) * speeds.text + 3 * speeds.logits) + 2 * speeds.product
    seconds["evaluating"] = work.evaluated * each
    for what, count in work.pairs.items():
        reads, passes, gradients, products, *single = COSTS[what]
        blocks = reads * below + (passes + speeds.gradient * gradients) * above
        whole = count / PAIRS * blocks * speeds.pairs
        one_by_one = (single[0] + speeds.gradient * single[1]) * above * count * work.active / CHUNK * speeds.chunk
        calls = math.ceil(count / PAIRS) * (reads + passes + 2 * gradients)
        calls += math.ceil(count * work.active / CHUNK) * sum(single)
        code = count * products * work.length * speeds.product
        seconds[what] = n * (whole + one_by_one + calls * speeds.call) + code
    return {what: value for what, value in seconds.items() if value}


def count_memory(work: Work, n: int, d_model: int, vocabulary: int, itemsize: int) -> dict[str, float]:
    """Bytes beside the models' weights at the peak of the work: for training, and for activations.

    How many numbers a pass or a step holds at once was fitted to measurements on a CPU (`benchmarks/estimates.py`).
    """
    numbers, width = 2 * n * d_model * work.n_latents, n * d_model
    # a weight, its gradient, Adam's two moments, and as much again for half of them while a step is taken
    training = 24 * numbers + work.batch_size * (36 * work.n_latents + 20 * width) if work.steps else 4 * numbers
    group = min(max(GROUP, work.text_length), max(work.tokens, work.evaluated))
    stream = 2 * 4 * width * min(work.buffer_tokens, work.tokens) if work.steps else 0
    reading = group * (28 * d_model * itemsize + 8 * width)
    logits = 8 * vocabulary * work.text_length * max(1, 2**26 // (vocabulary * work.text_length))  # as `evaluate` does
    evaluating = group * (16 * work.n_latents + 24 * width) + min(logits, 8 * group * vocabulary)
    evaluating = evaluating if work.evaluated else 0
    rows = PAIRS * work.length
    pairs = rows * (12 * work.n_latents + 12 * width) + 4 * rows * 12 * d_model * 4 if work.pairs else 0
    return {"training": training, "activations": max(stream + reading, evaluating, pairs)}


def _timed(run: Callable[[], Any], least: float = 0.1) -> float:
    """Median seconds of a call, over at least so many seconds of calls after one that is not counted."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())  # waits for a GPU
    return timer.blocked_autorange(min_run_time=least).median


def measure_speeds(config: Any, work: Work, n: int, device: str, dtype: torch.dtype) -> Speeds:
    """Time small pieces of the work itself on this device, in a second or two: random weights, nothing is downloaded.

    Two blocks of the model's shape, with the batches that the package uses (on a CPU one sequence, whose time grows
    with their number); a few training steps (on a CPU with fewer latents: a step's time grows with their number).
    """
    found, on_gpu = {}, device.startswith("cuda")
    d_model, vocabulary = config.hidden_size, config.vocab_size
    with torch.random.fork_rng():  # the notebook's own draws stay what they were
        model = _two_blocks(config, device, dtype)
        word = torch.zeros(1, 2, dtype=torch.long)
        found["call"] = _timed(lambda: hooks.residual_stream(model, word, None, 0))
        if work.tokens or work.evaluated:
            ids = torch.zeros(max(1, GROUP // work.text_length) if on_gpu else 1, work.text_length, dtype=torch.long)
            found["text"] = _a_block(model, ids) / ids.numel()
        if work.pairs:
            ids = torch.zeros(PAIRS, work.length, dtype=torch.long)
            found["pairs"] = _a_block(model, ids)
            found["chunk"] = _a_block(model, ids.repeat(4, 1)) if on_gpu else found["pairs"] * CHUNK / PAIRS
            x, at = torch.randn(PAIRS, work.length, d_model, device=device), ids[:, 0]
            above = [_timed(lambda g=g: _pass_above(model, x, at, g)) for g in (False, True)]
            found["gradient"] = max(1.0, above[1] / above[0])
        if work.evaluated:
            head, final = torch.nn.Linear(d_model, vocabulary, bias=False), torch.randn(256, d_model)
            head, final, at = head.to(device, dtype), final.to(device, dtype), torch.zeros(256, dtype=torch.long)
            loss = torch.nn.functional.cross_entropy
            with torch.no_grad():
                found["logits"] = _timed(lambda: loss(head(final).float(), at.to(device))) / 256
        if work.n_latents:
            found |= _dictionary_speeds(work, n, d_model, device)
    return Speeds(**found)


def _dictionary_speeds(work: Work, n: int, d_model: int, device: str) -> dict[str, float]:
    rows = work.batch_size if work.steps else 512
    most = 2.5e10 / (10 * n * d_model * rows)  # latents that a CPU trains in under a second
    h = work.n_latents if device.startswith("cuda") else min(work.n_latents, max(128, int(most)))
    share, k = work.n_latents / h, max(1, min(h, work.k * h // work.n_latents))
    crosscoder, x = Crosscoder(n, d_model, h, k=k).to(device), torch.randn(rows, n, d_model, device=device)
    config = TrainConfig(steps=1000, k_anneal=0, lr=1e-5, bf16=work.bf16)
    with torch.no_grad():
        product = _timed(lambda: crosscoder.pre_activations(x[:512])) / len(x[:512])
    run = TrainingRun(crosscoder.train(), config)
    step = _timed(lambda: run.step(x, log=False)) if work.steps else 0.0
    return {"product": product * share, "step": step * share}


def _two_blocks(config: Any, device: str, dtype: torch.dtype) -> hooks.HookedModel:
    """Two blocks of a model's shape with random weights, a small vocabulary, and no tokenizer to speak of."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    config = copy.deepcopy(config)
    config.num_hidden_layers, config.vocab_size = 2, 64
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # as load_checkpoint does it: buffers stay precise
        parameter.data = parameter.data.to(device, dtype)
    return hooks.HookedModel(model.to(device), words, 0)


def _a_block(model: hooks.HookedModel, ids: torch.Tensor) -> float:
    """Seconds that a second block adds to a pass through one."""
    one, two = (_timed(lambda layer=layer: hooks.residual_stream(model, ids, None, layer)) for layer in (0, 1))
    return max(two - one, 0.2 * two)  # a busy machine can make the difference as good as nothing


def _pass_above(model: hooks.HookedModel, x: torch.Tensor, at: torch.Tensor, gradient: bool) -> Any:
    with torch.set_grad_enabled(gradient):
        x = x.detach().requires_grad_(gradient)
        logits = hooks.logits_above(model, x, None, at, at[:, None])
        return torch.autograd.grad(logits.sum(), x) if gradient else logits
