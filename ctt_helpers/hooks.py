"""Read the residual stream after one layer, put another in its place, run only the layers above it.

This is the only module that knows nnsight, and the only one that knows how a class of models names
its parts. `layer` is the 0-based index of the block whose output is read. Sequences are padded on
the right, so the numbers are those of the plain model, bit for bit; every model is held to that
when it is wrapped (`check`).
"""

import gc
import hashlib
import itertools
import json
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from nnsight import CONFIG, TransformersModel
from torch import Tensor, nn
from transformers import DynamicCache

from ctt_helpers.arguments import checked

Ids = Int[Tensor, "batch tokens"]
Residual = Float[Tensor, "batch tokens d_model"]


class _Traced(TransformersModel):
    """nnsight's model, with batches of this module passed on as they are.

    nnsight takes a batch apart into rows and puts it together again, which takes longer than a
    small pass. Where there is no mask, it makes one and looks on the device whether anything is
    masked: the host would wait for the device twice a pass.
    """

    def _batch(self, invokes: list, fn: Any) -> tuple:
        # what others trace (text, lists, padding on the left) goes nnsight's way
        if len(invokes) == 1 and "use_cache" in invokes[0][1]:
            return invokes[0]
        return super()._batch(invokes, fn)

    def _batch_size(self, *inputs: Any, **given: Any) -> int:
        return (
            len(given["input_ids"])
            if "use_cache" in given
            else super()._batch_size(*inputs, **given)
        )


# ---- where a class of models keeps its parts


@dataclass(frozen=True)
class Checked:
    """What `check` found of a model; other weights of the same class and configuration share it.

    Attributes:
        of: class, configuration, layer, dtype, device, and whether it only reads.
        tuple_length: how long the tuple is that a block gives; None for a tensor.
        takes_past, answers_alone: shortcuts of `logits_above` that give the model's own numbers.
    """

    of: tuple
    tuple_length: int | None
    takes_past: bool
    answers_alone: bool


@dataclass(frozen=True)
class Architecture:
    """Names of the parts of a class of models, and what its head does to the logits.

    Attributes:
        blocks: the list of blocks, as a dotted path.
        norm: the norm between the last block and the unembedding.
        multiplied_by, divided_by, capped_by: keys of the configuration, where the head multiplies
            or divides the logits, or squeezes them between -c and c by c tanh(logit / c).
    """

    blocks: str
    norm: str
    multiplied_by: str | None = None
    divided_by: str | None = None
    capped_by: str | None = None


LLAMA_LIKE = Architecture("model.layers", "model.norm")
# A new class is one row here; `check` then holds every model of it to the numbers of its own pass.
ARCHITECTURES: dict[str, Architecture] = {
    "BloomForCausalLM": Architecture("transformer.h", "transformer.ln_f"),
    "Cohere2ForCausalLM": Architecture("model.layers", "model.norm", multiplied_by="logit_scale"),
    "CohereForCausalLM": Architecture("model.layers", "model.norm", multiplied_by="logit_scale"),
    "GPT2LMHeadModel": Architecture("transformer.h", "transformer.ln_f"),
    "GPTNeoForCausalLM": Architecture("transformer.h", "transformer.ln_f"),
    "GPTNeoXForCausalLM": Architecture("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    "Gemma2ForCausalLM": Architecture(
        "model.layers", "model.norm", capped_by="final_logit_softcapping"
    ),
    "Gemma3ForCausalLM": Architecture(
        "model.layers", "model.norm", capped_by="final_logit_softcapping"
    ),
    "GraniteForCausalLM": Architecture("model.layers", "model.norm", divided_by="logits_scaling"),
    "LlamaForCausalLM": LLAMA_LIKE,
    "MistralForCausalLM": LLAMA_LIKE,
    "OPTForCausalLM": Architecture("model.decoder.layers", "model.decoder.final_layer_norm"),
    "Olmo2ForCausalLM": LLAMA_LIKE,
    "Olmo3ForCausalLM": LLAMA_LIKE,
    "OlmoForCausalLM": LLAMA_LIKE,
    "PhiForCausalLM": Architecture("model.layers", "model.final_layernorm"),
    "Qwen2ForCausalLM": LLAMA_LIKE,
    "Qwen3ForCausalLM": LLAMA_LIKE,
    "SmolLM3ForCausalLM": LLAMA_LIKE,
}


def architecture_of(hf_model: nn.Module) -> Architecture:
    """The row of a model's class; for a class without one, what its parts look like.

    Blocks are the one list with as many modules as the configuration says layers; the norm is the
    last module outside it whose name says so. A guess like that counts only if `check` holds.

    Raises:
        ValueError: the class has no row, and no such parts are found.
    """
    name = type(hf_model).__name__
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    config = hf_model.config.get_text_config()
    n_layers = config.num_hidden_layers
    lists = [
        path
        for path, module in hf_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    norms = [
        path
        for path, module in hf_model.named_modules()
        if not any(module.children())
        and not any(path.startswith(f"{blocks}.") for blocks in outer)
        and ("norm" in path.lower() or "ln_f" in path)
    ]
    if len(outer) != 1 or not norms:
        raise ValueError(
            f"{name} has no row in ctt_helpers.hooks.ARCHITECTURES, and its parts are not plain to "
            f"see: {len(outer)} lists of {n_layers} blocks {outer}, norms {norms}. Known are "
            f"{', '.join(ARCHITECTURES)}. If it is a decoder, add a row with its blocks and norm."
        )
    has = {key: key for key in ("logit_scale", "logits_scaling", "final_logit_softcapping")}
    has = {key: key if getattr(config, key, None) is not None else None for key in has}
    return Architecture(
        blocks=outer[0],
        norm=norms[-1],
        multiplied_by=has["logit_scale"],
        divided_by=has["logits_scaling"],
        capped_by=has["final_logit_softcapping"],
    )


# ---- a model, read at one layer


class NotFinite(ValueError):
    """Logits or activations that are NaN or infinite: there is no number to go on with."""


@dataclass(eq=False)
class HookedModel:
    """A causal language model, frozen and in evaluation mode, with the layer at which it is read.

    Args:
        hf_model: the Hugging Face module, a decoder.
        tokenizer: its tokenizer.
        layer: index of the block whose output is read, 0 to n_layers - 1.
        label: name of the checkpoint in tables and figures.
        tokens_seen: tokens of pretraining behind this checkpoint, None if unknown.
        fingerprint: of the weights as they are in the file; None for a model that was not loaded
            from one.
        reads_only: what lies above the layer is not in memory (`part="below"`).
        checked: what was found of a model like this one with other weights (`check`), if there was
            one; it is found anew where class, configuration, layer, dtype or device differ.

    Raises:
        ValueError: the architecture cannot be read (see `check`), or the layer does not exist.
        NotFinite: its logits on ten tokens are not.
    """

    hf_model: nn.Module
    tokenizer: Any
    layer: int
    label: str = "model"
    tokens_seen: int | None = None
    fingerprint: str | None = None
    reads_only: bool = False
    checked: Checked | None = field(default=None, repr=False)
    lm: TransformersModel = field(init=False, repr=False)
    lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)
    # shortcuts of `logits_above` that `check` has found to give this model's own numbers
    takes_past: bool = field(default=False, init=False, repr=False)
    answers_alone: bool = field(default=False, init=False, repr=False)

    def __post_init__(self):
        self.parts = architecture_of(self.hf_model)
        check_layer(self.layer, self.n_layers)
        # a backward pass would fill .grad of every weight otherwise
        self.hf_model.eval().requires_grad_(False)
        # without a device the pipeline that nnsight makes would move the model to the first GPU
        self.lm = _Traced(
            self.hf_model, tokenizer=self.tokenizer, task="text-generation", device=self.device
        )
        if self.tokenizer is not None:
            self.tokenizer.padding_side = "right"  # wrapping sets it to "left"
        if self.checked is None or self.checked.of != _kind(self):
            check(self)
            return
        for name in ("tuple_length", "takes_past", "answers_alone"):
            setattr(self, name, getattr(self.checked, name))
        with torch.no_grad():
            whole = _whole_pass(self, _trial_ids(self))
        if whole is not None:
            check_finite(whole.logits, self)

    @property
    def architecture(self) -> str:
        return type(self.hf_model).__name__

    @property
    def config(self) -> Any:
        return self.hf_model.config.get_text_config()

    @property
    def n_layers(self) -> int:
        return len(self.hf_model.get_submodule(self.parts.blocks))

    @property
    def d_model(self) -> int:
        return self.config.hidden_size

    @property
    def context(self) -> int | None:
        """The longest sequence the model is made for; None where its configuration names none."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def final_norm(self) -> nn.Module:
        return self.hf_model.get_submodule(self.parts.norm)

    @property
    def unembedding(self) -> nn.Module:
        return self.hf_model.get_output_embeddings()

    @property
    def _some_weight(self) -> Tensor:
        return next(self.hf_model.get_submodule(self.parts.blocks)[0].parameters())

    @property
    def device(self) -> torch.device:
        return self._some_weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._some_weight.dtype

    @property
    def blocks(self):
        """The nnsight envoys of the blocks, in the order in which they run."""
        return attrgetter(self.parts.blocks)(self.lm)

    @property
    def _precise(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    @cached_property
    def norm_gain(self) -> Float[Tensor, " d_model"]:
        """What the final norm multiplies each dimension by, after it has divided by the size.

        Found by asking the norm, for some add 1 to their weight and some have none.
        """
        x = torch.ones(self.d_model, device=self.device, dtype=self._precise)
        x[1::2] = -1.0  # mean 0, size 1
        with torch.no_grad():
            up, down = _in_float32(self.final_norm, x[None]), _in_float32(self.final_norm, -x[None])
        return ((up - down) / (2 * x))[0]

    @cached_property
    def norm_centres(self) -> bool:
        """Whether the final norm takes the mean over d_model away first, as a layer norm does."""
        x = torch.linspace(-1, 1, self.d_model, device=self.device, dtype=self._precise)[None]
        with torch.no_grad():
            plain, moved = _in_float32(self.final_norm, x), _in_float32(self.final_norm, x + 1)
        return bool(torch.allclose(plain, moved, atol=1e-3))

    def in_words(self) -> str:
        """Label, dtype and device, for messages."""
        return f"{self.label!r} ({str(self.dtype).removeprefix('torch.')} on {self.device})"


def check_layer(layer: int, n_layers: int) -> None:
    """Raise ValueError unless `layer` is the index of a block."""
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
        raise ValueError(
            f"layer={layer!r} does not exist: this model has {n_layers} blocks, 0 to "
            f"{n_layers - 1}."
        )


@checked
def pick_device(device: str = "auto") -> str:
    """Name of the device to use: the one asked for, or the best one that is there.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", "mps" ...

    Raises:
        ValueError: the device asked for is not on this machine.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(kind for kind, here in there.items() if here)
    kind = str(device).split(":")[0]
    if kind not in there:
        raise ValueError(
            f"device={device!r} is not known. Use 'auto', 'cpu', 'cuda' (or 'cuda:1'), or 'mps'."
        )
    if not there[kind]:
        hint = "On Colab choose Runtime > Change runtime type > GPU. " if kind == "cuda" else ""
        raise ValueError(
            f"device={device!r} is not on this machine. {hint}device='auto' takes what is there."
        )
    return str(device)


def check_finite(values: Tensor, model: HookedModel, what: str = "Logits") -> None:
    """Raise NotFinite, naming checkpoint and dtype, where a value is NaN or infinite."""
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    half = model.dtype in (torch.float16, torch.bfloat16)
    mend = (
        "The numbers may be too large for this dtype: take dtype='float32' (or 'bfloat16')."
        if half
        else "Its weights may be damaged, or training went astray before this checkpoint."
    )
    n_bad = int((~finite).sum())
    raise NotFinite(
        f"{what} of {model.in_words()} are not finite ({n_bad:,} of {values.numel():,} values). "
        f"{mend}"
    )


def norms_not_finite(x: Float[Tensor, "*tokens d_model"]) -> Bool[Tensor, "*tokens"]:
    """Which activations have no finite norm; nothing waits for their device."""
    return ~at_least_float32(x).norm(dim=-1).isfinite()


def check_norms(wrong: Bool[Tensor, "*tokens"], label: str) -> None:
    """Raise NotFinite where `norms_not_finite` has found any; it waits for their device."""
    if wrong.any():
        raise NotFinite(
            f"{int(wrong.sum())} of {wrong.numel()} activations of {label!r} are not finite, or "
            "their norms are too large for float32. Look at the checkpoint; half precision may "
            "overflow."
        )


def tell_twins(fingerprints: Mapping[str, str | None], stacklevel: int = 3) -> None:
    """Warn where two revisions have one fingerprint: they hold the same weights.

    Args:
        fingerprints: label of a checkpoint -> fingerprint of its weights, None where unknown.
        stacklevel: as for `warnings.warn`.
    """
    labels: dict[str, list[str]] = {}
    for label, mark in fingerprints.items():
        if mark is not None:
            labels.setdefault(mark, []).append(label)
    for same in labels.values():
        if len(same) > 1:
            warnings.warn(
                f"{' and '.join(same)} hold the same weights: they are one checkpoint. (It has "
                "happened in published suites, too: look at the repository's issues.)",
                stacklevel=stacklevel,
            )


# ---- reading


def _hidden(output: Tensor | tuple) -> Tensor:
    """The residual stream in a block's output: a tensor, or the first of a tuple (BLOOM)."""
    return output if isinstance(output, Tensor) else output[0]


class _NoCache(DynamicCache):
    """A cache that keeps nothing.

    Where none is given and no mask either, the model looks whether several texts lie in one
    sequence: the host would wait for the device.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple:
        return key_states, value_states


def _inputs(model: HookedModel, ids: Ids, mask: Ids | None) -> dict[str, Any]:
    """What a pass is given; without a mask the host waits for nothing."""
    inputs = {"input_ids": ids.to(model.device, non_blocking=True), "use_cache": False}
    if mask is None:
        return inputs | {"past_key_values": _NoCache()}
    return inputs | {"attention_mask": mask.to(model.device, non_blocking=True)}


def _forget_stop() -> None:
    """Free what an early stop leaves behind, at once.

    nnsight's exception and the frame that raised it hold each other, and through the frames below
    it all tensors of the callers, until garbage is collected. Both are young: a look at the
    youngest objects frees them, in microseconds.
    """
    gc.collect(0)


def _checked_inputs(model: HookedModel, ids: Ids, mask: Ids | None) -> dict[str, Any]:
    """The inputs of a pass; strange ids, long sequences and left padding are errors."""
    vocabulary = model.config.vocab_size
    if ids.ndim != 2 or not ids.numel() or ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"input_ids must be whole numbers [batch, tokens], at least one; these are {ids.dtype} "
            f"of shape {tuple(ids.shape)}."
        )
    lowest, highest = int(ids.min()), int(ids.max())
    if highest >= vocabulary or lowest < 0:
        raise ValueError(
            f"input_ids must be [batch, tokens] with ids 0 to {vocabulary - 1}; these are "
            f"{tuple(ids.shape)} with ids {lowest} to {highest}. Were they made with another "
            "tokenizer?"
        )
    if model.context is not None and ids.shape[1] > model.context:
        raise ValueError(
            f"Sequences of {ids.shape[1]} tokens are longer than the context of {model.label!r}, "
            f"{model.context}: beyond it a model guesses badly. Give shorter ones."
        )
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)} and input_ids are {tuple(ids.shape)}: give a "
            "mask of the same shape."
        )
    if mask is not None and bool((mask[:, :-1] < mask[:, 1:]).any()):
        raise ValueError("attention_mask must be ones, then zeros: pad on the right.")
    return _inputs(model, ids, mask)


def _check_stream(model: HookedModel, x: Residual, of: tuple[int, ...] | None) -> None:
    """Raise ValueError unless `x` is a residual stream, of tokens of this shape."""
    fits = x.ndim == 3 and x.shape[2] == model.d_model and x.numel() > 0
    if not fits or (of is not None and tuple(x.shape[:2]) != tuple(of)):
        given = "" if of is None else f", for tokens {tuple(of)}"
        raise ValueError(
            f"x is {tuple(x.shape)}{given}; it must be [batch, tokens, d_model] with d_model "
            f"{model.d_model}, and not empty."
        )


@checked
def residual_stream(
    model: HookedModel, input_ids: Ids, attention_mask: Ids | None = None, layer: int | None = None
) -> Residual:
    """The residual stream after block `layer` (default: the model's own), stopping the pass there.

    Values at padded positions mean nothing; mask them.
    """
    layer = model.layer if layer is None else layer
    check_layer(layer, model.n_layers)
    inputs = _checked_inputs(model, input_ids, attention_mask)
    if isinstance(model, RemoteModel):
        return model.read(input_ids, attention_mask, layer)
    with model.lock, torch.no_grad(), model.lm.trace(**inputs) as tracer:
        hidden = _hidden(model.blocks[layer].output).save()
        tracer.stop()
    _forget_stop()
    return hidden


def stacked_activations(
    models: Sequence[HookedModel], input_ids: Ids, attention_mask: Ids | None = None
) -> Float[Tensor, "batch tokens checkpoints d_model"]:
    """The residual stream of every model on the same sequences, in float32 at least."""
    streams = [residual_stream(model, input_ids, attention_mask) for model in models]
    return torch.stack([at_least_float32(x) for x in streams], dim=2)


def stacked_batches(
    models: Iterable[HookedModel], batches: Sequence[tuple[Ids, Ids | None]]
) -> list[Float[Tensor, "batch tokens checkpoints d_model"]]:
    """`stacked_activations` of several batches, going through the models once.

    Where models do not fit into memory together, each is loaded once, not once a batch.

    Args:
        models: the models, or checkpoints that are loaded when their turn comes.
        batches: (input_ids, attention_mask) of each.
    """
    streams = [[] for _ in batches]
    for model in models:
        for (input_ids, attention_mask), stream in zip(batches, streams, strict=True):
            stream.append(at_least_float32(residual_stream(model, input_ids, attention_mask)))
    return [torch.stack(stream, dim=2) for stream in streams]


@checked
def spliced_logits(
    model: HookedModel, input_ids: Ids, attention_mask: Ids | None, x: Residual
) -> Float[Tensor, "batch tokens vocabulary"]:
    """Logits of a whole pass with `x` in place of the residual stream after `model.layer`."""
    inputs = _checked_inputs(model, input_ids, attention_mask)
    _check_stream(model, x, tuple(input_ids.shape))
    x = x.to(model.device, model.dtype)
    with model.lock, torch.no_grad(), model.lm.trace(**inputs):
        output = model.blocks[model.layer].output
        model.blocks[model.layer].output = x if isinstance(output, Tensor) else (x, *output[1:])
        logits = model.lm.output.logits.save()
    return logits


@dataclass(frozen=True)
class Past:
    """Keys and values of the first tokens of some sequences, in the blocks above a model's layer.

    A token never sees those after it. So where the residual stream changes from some position on
    only, what was computed before that position still holds, and need not be computed again.

    Attributes:
        keys, values: of each block above the layer, [batch, heads, tokens, size].
        length: how many tokens.
    """

    keys: list[Tensor]
    values: list[Tensor]
    length: int

    def cut(self, rows: Tensor | slice, length: int) -> "Past":
        """Of some sequences, in the order of `rows`, their first `length` tokens."""
        if self.keys and isinstance(rows, Tensor):
            rows = rows.to(self.keys[0].device, non_blocking=True)
        keys = [layer[:, :, :length][rows] for layer in self.keys]
        values = [layer[:, :, :length][rows] for layer in self.values]
        return Past(keys, values, length)

    def cache(self, layer: int, batch: int) -> DynamicCache:
        """As transformers takes it; the blocks up to `layer` are skipped, and only counted."""
        cache = DynamicCache()
        counted = torch.empty(batch, 1, self.length, 1)
        for index in range(layer + 1):
            cache.update(counted, counted, index)
        for index, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(key, value, layer + 1 + index)
        return cache


@torch.no_grad()
def past_above(model: HookedModel, x: Residual, attention_mask: Ids | None = None) -> Past:
    """What the blocks above keep of `x`, the residual stream after `model.layer`, for later tokens.

    Only for models that take it back (`model.takes_past`); see `logits_above`.
    """
    cache = DynamicCache()
    hidden_above(model, x, attention_mask, cache=cache)
    above = [cache.layers[index] for index in range(model.layer + 1, model.n_layers)]
    keys, values = [layer.keys for layer in above], [layer.values for layer in above]
    return Past(keys, values, x.shape[1])


@checked
def logits_above(
    model: HookedModel,
    x: Residual,
    attention_mask: Ids | None = None,
    position: Int[Tensor, " batch"] | None = None,
    tokens: Ids | None = None,
    past: Past | None = None,
) -> Float[Tensor, "..."]:
    """Logits from `x`, the residual stream after `model.layer`, running only the blocks above it.

    Gradients reach `x` where it asks for them (weights are frozen). See `unembed` for `position`
    and `tokens`.

    Args:
        past: of the tokens before those of `x`, where the sequences begin earlier (`past_above`);
            then the mask, if there is one, covers these tokens too, and `position` counts from the
            first of `x`.

    Returns:
        [batch, tokens, vocabulary]; [batch, vocabulary] with `position`; [batch, k] with `position`
        and `tokens`.
    """
    _check_stream(model, x, None if attention_mask is None or past else attention_mask.shape)
    cache = None if past is None else past.cache(model.layer, len(x))
    with model.lock, _answering_alone(model, position):
        hidden = hidden_above(model, x, attention_mask, cache)
    return unembed(model, hidden, position, tokens)


def hidden_above(
    model: HookedModel,
    x: Residual,
    attention_mask: Ids | None = None,
    cache: DynamicCache | None = None,
) -> Residual:
    """Output of the last block, from `x`, the residual stream after `model.layer`."""
    x = x.to(model.device, model.dtype)
    last = model.n_layers - 1
    if model.layer == last:
        return x
    # only the shape of the ids matters: the blocks that would see them are skipped
    ids = torch.zeros(x.shape[:2], dtype=torch.long, device=model.device)
    inputs = _inputs(model, ids, attention_mask)
    if cache is not None:
        inputs |= {"use_cache": True, "past_key_values": cache}
    skipped = x if model.tuple_length is None else (x, *[None] * (model.tuple_length - 1))
    with model.lock, model.lm.trace(**inputs) as tracer:
        for index in range(model.layer + 1):
            model.blocks[index].skip(skipped)
        hidden = _hidden(model.blocks[last].output).save()
        tracer.stop()
    _forget_stop()
    return hidden


@contextmanager
def _answering_alone(model: HookedModel, position: Int[Tensor, " batch"] | None) -> Iterator[None]:
    """Where one position of each sequence is asked for, the last block's MLP runs at that alone.

    It looks at no other position. What it gives is added to the residual stream of all of them,
    and read at that one.
    """
    if position is None or not model.answers_alone or model.layer == model.n_layers - 1:
        yield
        return

    def narrow(module: nn.Module, args: tuple) -> tuple:
        hidden, *others = args
        rows = torch.arange(len(hidden), device=hidden.device)
        at = position.to(hidden.device, non_blocking=True)
        return (hidden[rows, at][:, None], *others)

    block = model.hf_model.get_submodule(model.parts.blocks)[-1]
    handle = block.mlp.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


# ---- the head


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _in_float32(module: nn.Module, x: Tensor) -> Tensor:
    """What a module gives in float32 (at least), whatever its own dtype."""
    weights = {name: at_least_float32(p) for name, p in module.named_parameters()}
    return torch.func.functional_call(module, weights, (at_least_float32(x),))


def unembed(
    model: HookedModel,
    hidden: Residual,
    position: Int[Tensor, " batch"] | None = None,
    tokens: Ids | None = None,
) -> Float[Tensor, "..."]:
    """Final norm, unembedding and what else the head does, from the last block's output.

    With `position`, logits are computed in float32 whatever the model's dtype: half precision would
    round answer logits of 15 to steps of 1/16, and differences of logits are what is asked for.

    Args:
        hidden: output of the last block.
        position: which position of each sequence to keep; None keeps all.
        tokens: ids whose logits to compute at that position; None computes the whole vocabulary.
    """
    head = model.unembedding
    if position is None:
        return _scaled(model, head(model.final_norm(hidden)))
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    hidden = hidden[rows, position.to(hidden.device, non_blocking=True)]
    if hidden.dtype == at_least_float32(hidden).dtype:
        final = model.final_norm(hidden)
    else:
        final = _in_float32(model.final_norm, hidden)
    bias = getattr(head, "bias", None)
    if tokens is None:
        bias = None if bias is None else bias.to(final)
        return _scaled(model, nn.functional.linear(final, head.weight.to(final), bias))
    tokens = tokens.to(hidden.device, non_blocking=True)
    logits = torch.einsum("bkd,bd->bk", head.weight[tokens].to(final), final)
    return _scaled(model, logits if bias is None else logits + bias[tokens].to(final))


@torch.no_grad()
def logits_by_words(
    model: HookedModel, hidden: Float[Tensor, "tokens d_model"], words: int
) -> Iterator[Float[Tensor, "tokens some"]]:
    """`unembed` of all positions, for so many words of the vocabulary at a time.

    Each part is a new tensor. A head that is more than a linear map gives all words at once.
    """
    head = model.unembedding
    if type(head) is not nn.Linear:
        yield unembed(model, hidden[None])[0]
        return
    final = model.final_norm(hidden[None])[0]
    biases = itertools.repeat(None) if head.bias is None else head.bias.split(words)
    for weight, bias in zip(head.weight.split(words), biases, strict=False):
        yield _scaled(model, nn.functional.linear(final, weight, bias))


def _scaled(model: HookedModel, logits: Tensor) -> Tensor:
    """What the model's own head does to the logits after the unembedding."""
    parts, config = model.parts, model.config
    if parts.multiplied_by is not None:
        logits = logits * getattr(config, parts.multiplied_by)
    if parts.divided_by is not None:
        logits = logits / getattr(config, parts.divided_by)
    cap = None if parts.capped_by is None else getattr(config, parts.capped_by)
    return logits if cap is None else torch.tanh(logits / cap) * cap


# ---- is the model read rightly?


def check(model: HookedModel) -> None:
    """Hold a model to its own numbers, on two sequences of ten tokens.

    `residual_stream` must be the model's own hidden states, `logits_above` a whole pass, and a
    splice of what was read must change nothing: bit for bit on a CPU; elsewhere to a relative 1e-5
    in float32 and to a few roundings in half precision. It sets `model.tuple_length`: how long the
    tuple is that a block gives, None for a tensor; and which shortcuts of `logits_above` give the
    same numbers, `model.takes_past` and `model.answers_alone`.

    Raises:
        ValueError: something differs; the message says what.
        NotFinite: the logits are not.
    """
    ids = _trial_ids(model)
    outputs: dict[int, Any] = {}
    last = model.n_layers - 1

    def keep(index: int):
        return lambda module, inputs, output: outputs.__setitem__(index, output)

    blocks = model.hf_model.get_submodule(model.parts.blocks)
    seen = [model.layer] if model.reads_only else sorted({model.layer, last})
    handles = [blocks[index].register_forward_hook(keep(index)) for index in seen]
    try:
        with torch.no_grad():
            whole = _whole_pass(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    output = outputs[model.layer]
    model.tuple_length = None if isinstance(output, Tensor) else len(output)
    x = residual_stream(model, ids)
    if whole is None:
        _require_same(model, "residual_stream and the block's own output", x, _hidden(output))
        model.checked = Checked(_kind(model), model.tuple_length, False, False)
        return
    check_finite(whole.logits, model)
    own = whole.hidden_states[model.layer + 1]  # the last of them is taken after the norm
    with torch.no_grad():
        read = model.final_norm(x) if model.layer == last else x
        _require_same(model, "residual_stream and the model's own hidden_states", read, own)
        above = logits_above(model, x)
        _require_same(model, "logits_above and a whole pass", above, whole.logits)
        spliced = spliced_logits(model, ids, None, x)
        _require_same(model, "a splice of what was read and a whole pass", spliced, whole.logits)
        position = torch.tensor([4, 9])
        answers = logits_above(model, x, None, position, ids[:, :2])
        expected = whole.logits[[0, 1], position][:, None].gather(
            2, ids[:, None, :2].to(whole.logits.device)
        )[:, 0]
        _require_same(model, "answer logits and a whole pass", answers, expected, exact=False)
        _find_shortcuts(model, x, position, ids[:, :2], expected)
    found = model.tuple_length, model.takes_past, model.answers_alone
    model.checked = Checked(_kind(model), *found)


def _kind(model: HookedModel) -> tuple:
    """What the numbers of `check` depend on, beside the weights."""
    config = {**model.hf_model.config.to_dict(), "_name_or_path": None}
    where = model.layer, model.dtype, str(model.device), model.reads_only
    return (type(model.hf_model), repr(config), *where)


def _trial_ids(model: HookedModel) -> Ids:
    return torch.arange(3, 23).reshape(2, 10) * 7 % model.config.vocab_size


def _find_shortcuts(
    model: HookedModel, x: Residual, position: Tensor, tokens: Ids, expected: Tensor
) -> None:
    """Take those shortcuts of `logits_above` that give the numbers of a whole pass."""

    def holds(answers: Callable[[], Tensor]) -> bool:
        try:
            found = answers()
        except Exception:  # whatever a class of models does where its blocks are laid out otherwise
            return False
        return not _difference(model, found, expected, exact=False)

    def after_two() -> Tensor:
        past = past_above(model, x[:, :3]).cut(slice(None), 2)
        return logits_above(model, x[:, 2:], None, position - 2, tokens, past)

    model.answers_alone = True
    model.answers_alone = holds(lambda: logits_above(model, x, None, position, tokens))
    model.takes_past = holds(after_two)


def _whole_pass(model: HookedModel, ids: Ids) -> Any:
    """A plain pass, without nnsight; None where it stops at layers that are left out."""
    inputs = _inputs(model, ids, None)
    if not model.reads_only:
        return model.hf_model(**inputs, output_hidden_states=True)
    try:
        model.hf_model(**inputs)
    except LeftOutError:
        return None
    return None


def _difference(model: HookedModel, found: Tensor, expected: Tensor, exact: bool = True) -> str:
    """By how much two tensors differ, in words; "" where they are the same."""
    found, expected = found.detach(), expected.detach()
    if found.shape != expected.shape:
        return f"in shape, {tuple(found.shape)} and {tuple(expected.shape)}"
    if torch.equal(found, expected):
        return ""
    off = float((found.float() - expected.float()).abs().max())
    if not (exact and expected.device.type == "cpu"):
        # rounding of a head in the model's own dtype, or of another order of sums
        eps = max(torch.finfo(model.dtype).eps * 8, 1e-5)
        largest = float(expected.float().abs().max())
        if off <= eps * max(largest, 1e-2):
            return ""
    return f"up to {off:.3g}"


def _require_same(
    model: HookedModel, what: str, found: Tensor, expected: Tensor, exact: bool = True
) -> None:
    by = _difference(model, found, expected, exact)
    if not by:
        return
    known = "has a row" if model.architecture in ARCHITECTURES else "has no row; guessed were"
    raise ValueError(
        f"{model.architecture} cannot be read here: for {model.in_words()}, layer {model.layer}, "
        f"{what} differ ({by}). It {known} in ctt_helpers.hooks.ARCHITECTURES ({model.parts}). "
        "Mend that row; numbers taken without would be wrong."
    )


# ---- a model that is somewhere else


class _OnNdif(TransformersModel):
    """nnsight's model, known to NDIF by the names given, without a question to the hub."""

    def _remoteable_class(self) -> type:
        return TransformersModel

    def _remoteable_model_key(self) -> str:
        about = {"repo_id": self.repo_id, "revision": self.revision, "task": self.task}
        return json.dumps(about)


class RemoteModel(HookedModel):
    """A model of the hub that NDIF (ndif.us) runs: its activations can be read, and no more.

    Nothing of its weights is loaded here, so that nothing can be checked against the model's own
    numbers, either; its class must have a row in `ARCHITECTURES`. NDIF wants a key, in
    NDIF_API_KEY, and says which models and revisions it runs for whom.

    Args:
        repo, revision: of the hub.
        config, tokenizer: of the model.
        layer: index of the block whose output is read.
        tokens_seen: tokens of pretraining behind this revision, None if unknown.

    Raises:
        ValueError: the class has no row, or the layer does not exist.
    """

    def __init__(
        self,
        repo: str,
        revision: str,
        config: Any,
        tokenizer: Any,
        layer: int,
        tokens_seen: int | None = None,
    ):
        self.remote = _OnNdif(
            repo, revision=revision, task="text-generation", config=config, tokenizer=tokenizer
        )
        tokenizer.padding_side = "right"  # wrapping sets it to "left"
        self.hf_model = self.remote._module  # shapes alone
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"{self.architecture} has no row in ctt_helpers.hooks.ARCHITECTURES. On NDIF a "
                "model cannot be held to its own numbers, so its parts are not guessed: add a row."
            )
        self.parts = ARCHITECTURES[self.architecture]
        check_layer(layer, self.n_layers)
        self.tokenizer, self.layer, self.label = tokenizer, layer, revision
        self.tokens_seen = tokens_seen
        # of the names: the weights are not here
        key = hashlib.sha256(self.remote.to_model_key().encode()).hexdigest()
        self.fingerprint = f"ndif:{key[:32]}"
        self.checked, self.reads_only, self.lock = None, True, threading.RLock()
        self.tuple_length = None

    device = torch.device("cpu")  # where its activations arrive
    dtype = torch.float32

    @property
    def blocks(self):
        return attrgetter(self.parts.blocks)(self.remote)

    def _not_here(self) -> Any:
        raise LeftOutError(
            f"{self.label!r} is on NDIF, where only its activations are read. For logits, "
            "accuracies and effects load the checkpoints here: suite.checkpoints(..., "
            "device='auto')."
        )

    lm = final_norm = unembedding = property(_not_here)

    def read(self, ids: Ids, mask: Ids | None, layer: int) -> Residual:
        """The residual stream after a block; one request for each length of sequences.

        Raises:
            PermissionError: no key is set.
            ConnectionError: NDIF was not reached, or did not run it; the message says why.
        """
        if not CONFIG.API.APIKEY:
            raise PermissionError(
                "NDIF wants a key: register at login.ndif.us, and set NDIF_API_KEY before Python "
                "starts. Or read the model here, with another device=."
            )
        lengths = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1).cpu()
        found: Tensor | None = None
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().squeeze(1)
            x = self._request(ids.cpu()[rows, :length], layer)
            if found is None:
                found = x.new_zeros(*ids.shape, x.shape[-1])
            found[rows, :length] = x
        return found

    def _request(self, ids: Ids, layer: int) -> Residual:
        """One request. What the block below names is sent along, so it names no more than that."""
        block, lm = self.blocks[layer], self.remote
        try:
            with lm.trace({"input_ids": ids}, remote=True) as tracer:
                output = block.output.save()
                tracer.stop()
        except Exception as error:  # of three libraries, and of the server
            raise ConnectionError(
                f"NDIF did not run {lm.repo_id} at {self.label} for {tuple(ids.shape)} tokens "
                f"({type(error).__name__}: {error}). nnsight.net/status lists what it runs; it was "
                f"asked at {CONFIG.API.HOST}. Look at the network and at NDIF_API_KEY, or read the "
                "model here, with another device=."
            ) from error
        x = _hidden(output).detach()
        expected = (*ids.shape, self.d_model)
        if x.shape != expected:
            raise ConnectionError(
                f"NDIF gave activations of shape {tuple(x.shape)} for {lm.repo_id} at "
                f"{self.label}; {expected} was expected."
            )
        return x


# ---- without the layers above


class LeftOutError(RuntimeError):
    """A part of the model was needed that is not in memory."""


class LeftOut(nn.Module):
    """Stands where a part of the model was that is not kept in memory; using it is an error."""

    def __init__(self, layer: int):
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise LeftOutError(
            f"Only the embeddings and blocks 0 to {self.layer} are in memory (part='below'), to "
            "read activations. For logits, accuracies and effects take suite.checkpoints(..., "
            "part='all')."
        )

    @property
    def weight(self) -> Tensor:
        return self.forward()


def leave_out_above(hf_model: nn.Module, layer: int) -> None:
    """Drop, in place, what lies above block `layer`: further blocks, final norm, unembedding."""
    parts = architecture_of(hf_model)
    blocks = hf_model.get_submodule(parts.blocks)
    for index in range(layer + 1, len(blocks)):
        blocks[index] = LeftOut(layer)
    parent, _, name = parts.norm.rpartition(".")
    setattr(hf_model.get_submodule(parent), name, LeftOut(layer))
    hf_model.set_output_embeddings(LeftOut(layer))
