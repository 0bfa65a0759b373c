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
import torch.utils.benchmark
from torch.utils.benchmark import Timer

from ctt_helpers import hooks, sparse
from ctt_helpers.arguments import checked
from ctt_helpers.attribution import GRADIENTS_AT_ONCE, ITEMS_AT_ONCE, METHODS, NODES, ON_GPU, Cost
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.evaluation import TOKENS_AT_ONCE, logits_at_once, losses_by_words
from ctt_helpers.messages import show_size, show_time, whole_number
from ctt_helpers.sources import hub
from ctt_helpers.sources.machine import ROOM, free_memory
from ctt_helpers.training import LOG_EVERY, TrainConfig, TrainingRun

if TYPE_CHECKING:
    from ctt_helpers.sources.checkpoints import Checkpoints

# at once: tokens of text, pairs, single ablations
GROUP, PAIRS, CHUNK = 2**14, 128, 512
KEPT = 1e9  # bytes of activations that a stream keeps, see `ActivationStream`'s cache_gb
# what a pair costs at each checkpoint, for what is no method of attribution
OTHER_COSTS: dict[str, Cost] = {
    "reading": Cost(),
    "accuracy": Cost(passes=1),
    "ablate": Cost(passes=2, products=3),
    "ablation_curve": Cost(passes=7, products=3),  # for its six sizes
}
K_ANNEAL = TrainConfig().k_anneal
DEAD = 0.05  # of the latents, while they are trained: an assumption (at the end 2 to 10 % are)
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
        length: tokens of the longest pair.
        mean_length: of a pair; None: all are as long.
        lengths: how many different ones there are; pairs of each go through the layers together.
        text_length: tokens of a sequence of text.
        n_latents, k: of the crosscoder, 0 where there is none.
        active: latents active in a pair; None: as many as there can be on average, k a token.
        gradients: that "ig" takes for a pair; None: as many as on the embedded suite.
        steps, batch_size: of its training.
        k_start: k at its first step; None: six times k, as in `TrainConfig`.
        bf16: as in `TrainConfig`.
        buffer_tokens, group_tokens: of the stream; what it reads at once.
        keeps: whether it may keep all activations of a small text, see `ActivationStream`.
    """

    tokens: int = 0
    evaluated: int = 0
    pairs: Mapping[str, int] = field(default_factory=dict)
    length: int = 10
    mean_length: float | None = None
    lengths: int = 1
    text_length: int = 1024
    n_latents: int = 0
    k: int = 0
    active: int | None = None
    gradients: float | None = None
    steps: int = 0
    batch_size: int = 1024
    k_start: int | None = None
    bf16: bool = False
    buffer_tokens: int = 2**17
    group_tokens: int = GROUP
    keeps: bool = True

    def __post_init__(self):
        for name in ("tokens", "evaluated", "n_latents", "k", "steps"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=0))
        for name in ("batch_size", "buffer_tokens", "text_length", "length", "group_tokens"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name)))
        if not isinstance(self.pairs, Mapping):
            raise ValueError(
                f"pairs={self.pairs!r}: give what to do with how many, {{'atp': 300}}."
            )
        for what, count in self.pairs.items():
            whole_number(f"pairs[{what!r}]", count, least=0)
        if unknown := set(self.pairs) - set(costs()):
            known = ", ".join(costs())
            raise ValueError(
                f"pairs={dict(self.pairs)!r}: {min(unknown)!r} is not known; take {known}."
            )
        object.__setattr__(self, "mean_length", self.mean_length or self.length)
        if self.active is None:
            active = min(self.n_latents, round(self.k * (self.mean_length - 1)))
            object.__setattr__(self, "active", active)
        k_start = min(self.k_start or 6 * self.k, self.n_latents)
        object.__setattr__(self, "k_start", k_start)


@dataclass(frozen=True)
class Speeds:
    """Seconds on one device: `measure_speeds`, or assumed ones.

    Attributes:
        text: one token of text through one block.
        logits: one token through the unembedding and the cross-entropy.
        call, call_block: what a batch costs whatever its size, and each block that it goes through.
        pairs, chunk: PAIRS pairs, CHUNK pairs, through one block.
        last: what of a block's time the last one takes, whose MLP runs at the answer alone.
        gradient: how many times longer a pass takes with its gradient.
        at_once: how many times as many passes and gradients go at once as on a CPU.
        packed: what of a pair's time one takes where as many go at once as can.
        product: one token's product with the dictionary, all checkpoints.
        step: one training step, on average over the training.
    """

    text: float = 0.0
    logits: float = 0.0
    call: float = 0.0
    call_block: float = 0.0
    pairs: float = 0.0
    chunk: float = 0.0
    last: float = 1.0
    gradient: float = 2.0
    at_once: int = 1
    packed: float = 1.0
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


@checked
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
    if ckpts.remote:
        raise ValueError(
            "What NDIF takes is not known here: device='ndif' has no forecast. Read a few "
            "sequences, and look at the clock."
        )
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
    trusted = ckpts.suite.trust_remote_code
    speeds = speeds or measure_speeds(config, todo, n, ckpts.device, ckpts.dtype, trusted)
    return Forecast(
        **weights,
        work=count_seconds(todo, speeds, n, ckpts.layer, config.num_hidden_layers),
        memory=count_memory(
            todo,
            n,
            ckpts.d_model,
            config.vocab_size,
            ckpts.dtype.itemsize,
            above=config.num_hidden_layers - ckpts.layer - 1,
            device=str(ckpts.device),
        ),
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
    # as it is, rebuilt, and with zeros, where all sequences of a batch are alike
    sequences = min(_sequences(work), max(1, work.evaluated // work.text_length))
    spliced = 2 + 1 / sequences
    text = below * speeds.text + spliced * (above * speeds.text + speeds.logits)
    seconds["evaluating"] = work.evaluated * (n * text + 2 * speeds.product)
    for what, count in work.pairs.items():
        seconds[what] = n * _seconds_of_pairs(work, speeds, what, below, above)
        seconds[what] += count * costs()[what].products * work.length * speeds.product
    return {what: value for what, value in seconds.items() if value}


def _seconds_of_pairs(work: Work, speeds: Speeds, what: str, below: int, above: int) -> float:
    """Of one checkpoint, without what the dictionary takes."""
    count, cost = work.pairs[what], costs()[what]
    gradients, batches = _gradients(work, what), math.ceil(count / PAIRS)
    packed = speeds.packed if gradients > 1 else 1.0
    passes = cost.passes + packed * speeds.gradient * gradients
    blocks_above, at_above = above, 1.0
    if cost.products:  # it is the residual stream that is changed: after the first token, unpadded
        at_above = (work.mean_length - 1) / work.length
        blocks_above = max(0, above - 1 + speeds.last) if above else 0
    whole = cost.readings * below + passes * at_above * blocks_above
    a_latent = cost.passes_a_latent + speeds.gradient * cost.gradients_a_latent
    chunks = count * work.active / CHUNK
    one_by_one = a_latent * at_above * blocks_above * chunks * speeds.chunk
    called = batches * cost.readings * (speeds.call + below * speeds.call_block)
    packs = batches * work.lengths if cost.products else 0  # a whole pass has one call for all
    if what in METHODS:  # they take pairs in the order of their lengths
        packs = batches + work.lengths - 1
    rounds = max(1, gradients / (2 * len(NODES))) if gradients else 0
    full = gradients * count / (speeds.at_once * GRADIENTS_AT_ONCE)
    calls = packs * cost.passes + 2 * max(packs * rounds, full)
    if a_latent:
        # a call for each position at which latents become active
        positions = packs * (work.mean_length - 1)
        each = cost.passes_a_latent + 2 * cost.gradients_a_latent
        calls += max(chunks / speeds.at_once * each, positions)
    called += calls * (speeds.call + above * speeds.call_block)
    return count / PAIRS * whole * speeds.pairs + one_by_one + called


def _gradients(work: Work, what: str) -> float:
    """For a pair, at one checkpoint."""
    if what == "ig" and work.gradients is not None:
        return work.gradients
    return costs()[what].gradients


def _sequences(work: Work) -> int:
    """Of a batch of `evaluate`."""
    return max(1, min(64, TOKENS_AT_ONCE // work.text_length))


# How much is held at once, beside what has the size of the work itself; each was counted from the
# code and held to measurements (`benchmarks/estimates.py`).
BLOCK = 12  # numbers of d_model a token where a block is widest: its MLP, before and after
SAVED = 11  # ... that each block keeps for the gradient
# bytes: a CPU's smaller blocks of memory come from a heap (glibc's largest mmap threshold)
HEAP_BLOCK = 2**25
# A heap seldom puts a tensor into the hole that one of its size has left: of what is freed and
# taken anew so much is held twice. Measured .4 to 2, about 1 in passes through blocks; a GPU's
# allocator and large blocks leave none.
HOLES = 0.95


def count_memory(
    work: Work,
    n: int,
    d_model: int,
    vocabulary: int,
    itemsize: int,
    above: int = 0,
    device: str = "cpu",
) -> dict[str, float]:
    """Bytes beside the models' weights at the peak of the work: for training, and for activations.

    Args:
        work: what is to be done.
        n: checkpoints.
        d_model, vocabulary, itemsize: of the models; bytes of a number in them.
        above: blocks above the layer.
        device: where.
    """
    sizes = _Sizes(work, n, d_model, vocabulary, itemsize, above, device.startswith("cuda"))
    afterwards = {"training": sizes.weights, "activations": max(sizes.evaluating, sizes.pairs)}
    if not work.steps:
        afterwards["activations"] = max(sizes.reading, afterwards["activations"])
        return afterwards
    during = {"training": sizes.training, "activations": sizes.stream + sizes.reading}
    return max(during, afterwards, key=lambda phase: sum(phase.values()))


@dataclass(frozen=True)
class _Sizes:
    """Bytes of each part of the work at its peak."""

    work: Work
    n: int
    d_model: int
    vocabulary: int
    itemsize: int
    above: int
    on_gpu: bool

    def holes(self, block: float) -> float:
        """Bytes of holes for a byte of tensors, in blocks of this size."""
        return 0 if self.on_gpu or block >= HEAP_BLOCK else HOLES

    def taken(self, size: float, block: float) -> float:
        """Bytes of memory for so many bytes of tensors, in blocks of this size."""
        return (1 + self.holes(block)) * size

    @property
    def width(self) -> float:
        """Of a token's activations at all checkpoints."""
        return 4 * self.n * self.d_model

    @property
    def one(self) -> float:
        """Of the encoder, or the decoder."""
        return self.width * self.work.n_latents

    @property
    def weights(self) -> float:
        return 2 * self.one

    @property
    def training(self) -> float:
        """Weights, gradients and Adam's two moments, and what a step takes beside them."""
        work, one = self.work, self.one
        x, codes = work.batch_size * self.width, 4 * work.batch_size * work.n_latents
        kept = work.batch_size * work.k_start
        few = sparse.SPARSE_BELOW * work.n_latents
        if not self.on_gpu and 0 < work.k_start <= few:
            # what the largest are found with: codes before the ReLU, their sizes, and a mask
            finding = 2.25 * codes + x + 24 * kept
            # the codes and the kept, by tokens and by latents; batches as they are, scaled, rebuilt
            places = 48 * kept
            passing = max(finding, codes + 5 * x + places)
            parts = [(5 * x, x), (passing - 5 * x, codes)]
            if codes >= HEAP_BLOCK:
                parts[1:] = [(codes / 2, codes / 4), (places, places / 6)]
        else:
            # codes before the ReLU (of L1 they are the code); the code, its gradient, and a mask; a
            # GPU was measured when a step still took more
            before = codes if work.k else 0
            passing = before + 2.25 * codes + 3 * x
            if self.on_gpu:
                passing = before + max(2 * codes + 5 * x, 3.25 * codes + 3 * x)
            parts = [(5 * x, x), (passing - 5 * x, codes)]
        parts.append((2 * one, one))  # gradients
        again = sum(self.taken(size, block) - size for size, block in parts)
        return 8 * one + max(passing, one) + again

    @property
    def reading(self) -> float:
        """One group of text through a block."""
        work = self.work
        group = min(max(work.group_tokens, work.text_length), max(work.tokens, work.evaluated))
        a_number = group * self.d_model * self.itemsize
        return self.taken(BLOCK * a_number, a_number)

    @property
    def stream(self) -> float:
        """All activations of a text that is small enough to be kept; else the shuffle buffer."""
        work = self.work
        kept = work.tokens * self.width
        if work.keeps and kept <= KEPT:
            return kept + work.batch_size * self.width
        group = min(max(work.group_tokens, work.text_length), work.tokens)
        buffer = max(2 * work.batch_size, min(work.buffer_tokens, work.tokens)) + group
        # a batch, and a group as it comes from one checkpoint
        return (buffer + work.batch_size) * self.width + 4 * group * self.d_model

    @property
    def evaluating(self) -> float:
        """A batch of text: its codes; then the blocks above, and the logits of a part."""
        work = self.work
        if not work.evaluated:
            return 0
        batch = min(_sequences(work) * work.text_length, work.evaluated)
        x, codes = batch * self.width, 4 * batch * work.n_latents
        # before and after the ReLU, a mask as it is and (on a CPU) as numbers, and what is active
        encoding = (3.25 if self.on_gpu else 4.25) * codes + 3 * x
        if work.evaluated > batch:
            encoding += codes + x  # those of the batch before are still there
        a_number = batch * self.d_model * self.itemsize
        block = self.taken(BLOCK * a_number, a_number)
        device = torch.device("cuda" if self.on_gpu else "cpu")
        tokens, words = logits_at_once(device, self.vocabulary)
        logits = 2 * 4 * min(tokens, batch) * words
        above = codes + 4 * x + max(block, logits + 2 * a_number)
        if not self.holes(codes):
            return max(encoding, above)
        # what a heap has given for the codes it keeps, while the logits come from elsewhere
        return encoding + block + logits

    @property
    def pairs(self) -> float:
        each = [self._of_pairs(what, count) for what, count in self.work.pairs.items()]
        return max(each, default=0)

    def _of_pairs(self, what: str, count: int) -> float:
        """A batch of pairs, and what is kept of all of them."""
        work, cost = self.work, costs()[what]
        rows = min(count, PAIRS) * work.length
        a_number = rows * self.d_model * self.itemsize
        batch = self.taken(BLOCK * a_number, a_number)
        if not cost.products:
            return batch
        codes = 4 * rows * work.n_latents
        # activations of all checkpoints and the line at one; places and sizes of active latents
        all_pairs = count * (work.length * (self.width + 4 * self.d_model) + 28 * work.active)
        # effects, as they come and put together; a GPU's are fetched from it
        in_memory = what in METHODS and not self.on_gpu
        found = 64 * self.n * count * work.active if in_memory else 0
        reading = self.taken(5.25 * codes, codes)
        # the share of a batch's most common length, neither the longest nor the mean: that goes
        # together
        largest = min(1, 1.5 / work.lengths * max(1, count / PAIRS))
        at_once = ON_GPU if self.on_gpu else 1
        items = numbers = 0.0
        if cost.gradients or cost.gradients_a_latent:
            items = at_once * GRADIENTS_AT_ONCE
            if what == "atp":
                items = min(items, min(count, PAIRS) * largest)
            elif cost.gradients:  # two pieces of the line at first
                items = min(items, 2 * len(NODES) * min(count, PAIRS) * largest)
            numbers = SAVED * max(1, self.above) * work.mean_length
        elif cost.passes_a_latent:
            items = min(count, PAIRS) * work.active * largest
            items = min(at_once * ITEMS_AT_ONCE, items)
            length = (work.length + work.mean_length) / 2
            # keys and values of what comes before the change, on their own and with what follows
            numbers = BLOCK * (length - 1) + 2 * self.above * (length + 1)
            all_pairs += 2 * self.above * count * work.length * self.d_model * self.itemsize
        a_number = items * self.d_model * self.itemsize
        above = self.taken(numbers * a_number, work.length * a_number) + 2 * codes
        return self.one + all_pairs + found + max(batch, reading, above)


# ---- measuring


clock = torch.utils.benchmark.timer  # the time of day, once a GPU is done


def _timed(run: Callable[[], Any], least: float = 0.1) -> float:
    """Median seconds of a call, over at least so many seconds of calls after an uncounted one."""
    threads = torch.get_num_threads()
    timer = Timer("run()", timer=clock, globals={"run": run}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=least).median  # it waits for a GPU


def measure_speeds(
    config: Any,
    work: Work,
    n: int,
    device: str,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
) -> Speeds:
    """Time small pieces of the work itself on this device, in a second or two.

    Two blocks of the model's shape with random weights (nothing is downloaded), with the batches
    that the package uses (on a CPU one sequence, whose time grows with their number); a few
    training steps (on a CPU with fewer latents: a step's time grows with their number).
    """
    found, on_gpu = {}, device.startswith("cuda")
    d_model, vocabulary = config.hidden_size, config.vocab_size
    with torch.random.fork_rng():  # the notebook's own draws stay what they were
        model = _two_blocks(config, device, dtype, trust_remote_code)
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
                found["at_once"] = ON_GPU
                many = ids.repeat(ON_GPU * CHUNK // PAIRS, 1)
                found["chunk"] = _a_block(model, many) / ON_GPU
                found["packed"] = min(1.0, found["chunk"] * PAIRS / CHUNK / found["pairs"])
            x, at = torch.randn(PAIRS, work.length, d_model, device=device), ids[:, 0]
            a_call = _timed(lambda: _pass_above(model, x[:1, :2], at[:1], gradient=False))
            a_block = min(_a_block(model, word), a_call)
            found["call"] = a_call - a_block
            # what a few rows take beyond their share of a whole batch: products have to be begun
            few = ids[:8, :4]
            share = few.numel() / ids.numel() * found["pairs"]
            found["call_block"] = max(a_block, _a_block(model, few) - share)
            plain = _timed(lambda: _pass_above(model, x, at, gradient=False))
            last = max(plain - found["call"], 0.2 * plain)
            found["last"] = min(1.0, last / found["pairs"])
            with_gradient = _timed(lambda: _pass_above(model, x, at, gradient=True))
            found["gradient"] = max(1.0, (with_gradient - 2 * found["call"]) / last)
        if work.evaluated:
            found["logits"] = _head_speed(d_model, vocabulary, device, dtype)
        if work.n_latents:
            found |= _dictionary_speeds(work, n, d_model, device)
    return Speeds(**found)


def _head_speed(d_model: int, vocabulary: int, device: str, dtype: torch.dtype) -> float:
    """Seconds of one token through an unembedding and the cross-entropy."""
    rows, words = logits_at_once(torch.device(device), vocabulary)
    weight = torch.nn.Linear(d_model, vocabulary).weight.to(device, dtype)
    final = torch.randn(rows, d_model).to(device, dtype)
    at = torch.zeros(rows, 1, dtype=torch.long, device=device)

    def losses() -> torch.Tensor:
        if device.startswith("cuda"):
            return torch.nn.functional.linear(final, weight).float().log_softmax(1).gather(1, at)
        parts = (torch.nn.functional.linear(final, some) for some in weight.split(words))
        return losses_by_words(parts, at)

    with torch.no_grad():
        return _timed(losses) / rows


def _dictionary_speeds(work: Work, n: int, d_model: int, device: str) -> dict[str, float]:
    rows = work.batch_size if work.steps else 512
    n_latents = work.n_latents
    if not device.startswith("cuda"):
        most = 2e10 / (10 * n * d_model * rows)  # latents that a CPU trains in under half a second
        n_latents = min(n_latents, max(128, int(most)))
    share = work.n_latents / n_latents
    k = max(1, work.k * n_latents // work.n_latents)
    sparsity = "batch_topk" if work.k else "l1"
    crosscoder = Crosscoder(n, d_model, n_latents, sparsity, k=k).to(device)
    x = torch.randn(rows, n, d_model, device=device)
    with torch.no_grad():
        product = _timed(lambda: crosscoder.eval().encode(x[:512])) / len(x[:512])
    step = _mean_step(crosscoder.train(), work, x) if work.steps else 0.0
    return {"product": product * share, "step": step * share}


def _mean_step(crosscoder: Crosscoder, work: Work, x: torch.Tensor) -> float:
    """Seconds of a training step, on average over a training.

    k falls over the first half, as `TrainConfig` has it; a few latents are dead, once there have
    been tokens enough for that; and one step in LOG_EVERY is logged.
    """
    config = TrainConfig(steps=1000, k_anneal=0, lr=1e-5, bf16=work.bf16)

    def taken(k: float = 0, dead: float = 0.0, log: bool = False) -> float:
        run = TrainingRun(crosscoder, config)
        run.k = lambda step: round(k * crosscoder.n_latents / work.n_latents) or 1
        n_dead = round(dead * crosscoder.n_latents)
        if n_dead:
            run.tokens = config.dead_after_tokens

        def step() -> None:
            run.silent[:n_dead] = config.dead_after_tokens
            figures = run.step(x, log)
            if log:
                torch.stack(list(figures.values())).tolist()

        return _timed(step)

    last = taken(work.k)
    seconds = last
    if work.k_start > work.k:
        first, middle = taken(work.k_start), taken((work.k + work.k_start) / 2)
        falling = (first + 4 * middle + last) / 6  # Simpson's rule
        seconds = (1 - K_ANNEAL) * last + K_ANNEAL * falling
    seconds += max(0, taken(work.k, log=True) - last) / LOG_EVERY
    if work.k:
        late = max(0, 1 - config.dead_after_tokens / (work.steps * work.batch_size))
        seconds += late * max(0, taken(work.k, dead=DEAD) - last)
    return seconds


def _two_blocks(
    config: Any, device: str, dtype: torch.dtype, trust_remote_code: bool
) -> hooks.HookedModel:
    """Two blocks of a model's shape with random weights, a small vocabulary, no real tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    config = copy.deepcopy(config)
    config.num_hidden_layers, config.vocab_size = 2, 64
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    backend = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    words = PreTrainedTokenizerFast(tokenizer_object=backend)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
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
