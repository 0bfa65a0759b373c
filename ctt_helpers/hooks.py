"""Read the residual stream after one layer, put another in its place, run only the layers above it.

This is the only module that knows nnsight, and the only one that knows how an architecture names its parts.
`layer` is the 0-based index of the block whose output is read. Sequences are padded on the right, so the numbers
are those of the plain model, bit for bit.
"""

import threading
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from nnsight import TransformersModel
from torch import Tensor, nn

# architecture -> (its blocks, the norm between the last block and the unembedding)
ARCHITECTURES = {
    "GPTNeoXForCausalLM": ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    "OlmoForCausalLM": ("model.layers", "model.norm"),
    "Olmo2ForCausalLM": ("model.layers", "model.norm"),
    "BloomForCausalLM": ("transformer.h", "transformer.ln_f"),
}

Ids = Int[Tensor, "batch tokens"]
Residual = Float[Tensor, "batch tokens d_model"]


@dataclass(eq=False)
class HookedModel:
    """A causal language model, frozen and in evaluation mode, with the layer at which it is read.

    Args:
        hf_model: the Hugging Face module (GPTNeoX, OLMo, OLMo 2 or BLOOM).
        tokenizer: its tokenizer.
        layer: index of the block whose output is read, 0 to n_layers - 1.
        label: name of the checkpoint in tables and figures.
        tokens_seen: tokens of pretraining behind this checkpoint, None if unknown.
        fingerprint: of the weights as they are in the file; None for a model that was not loaded from one.

    Raises:
        ValueError: the architecture is not known, or the layer does not exist.
    """

    hf_model: nn.Module
    tokenizer: Any
    layer: int
    label: str = "model"
    tokens_seen: int | None = None
    fingerprint: str | None = None
    lm: TransformersModel = field(init=False, repr=False)
    lock: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    def __post_init__(self):
        self.architecture = type(self.hf_model).__name__
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"The architecture {self.architecture} is not known here; known are {', '.join(ARCHITECTURES)}. "
                "For another one add its block list and final norm to ctt_helpers.hooks.ARCHITECTURES."
            )
        check_layer(self.layer, self.n_layers)
        self.hf_model.eval().requires_grad_(False)  # a backward pass would fill .grad of every weight otherwise
        self.lm = TransformersModel(self.hf_model, tokenizer=self.tokenizer, task="text-generation")
        self.tokenizer.padding_side = "right"  # wrapping sets it to "left"

    @property
    def n_layers(self) -> int:
        return len(self.hf_model.get_submodule(ARCHITECTURES[self.architecture][0]))

    @property
    def d_model(self) -> int:
        return self.hf_model.config.hidden_size

    @property
    def final_norm(self) -> nn.Module:
        return self.hf_model.get_submodule(ARCHITECTURES[self.architecture][1])

    @property
    def unembedding(self) -> nn.Module:
        return self.hf_model.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        return self.unembedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.weight.dtype

    @property
    def blocks(self):
        """The nnsight envoys of the blocks, in the order in which they run."""
        return attrgetter(ARCHITECTURES[self.architecture][0])(self.lm)


def check_layer(layer: int, n_layers: int) -> None:
    """Raise ValueError unless `layer` is the index of a block."""
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
        raise ValueError(f"layer={layer!r} does not exist: this model has {n_layers} blocks, 0 to {n_layers - 1}.")


def _hidden(output: Tensor | tuple) -> Tensor:
    """The residual stream in a block's output: a tensor, or the first of a tuple (BLOOM)."""
    return output if isinstance(output, Tensor) else output[0]


def _batch(model: HookedModel, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
    vocabulary = model.hf_model.config.vocab_size
    if input_ids.ndim != 2 or int(input_ids.max()) >= vocabulary or int(input_ids.min()) < 0:
        raise ValueError(
            f"input_ids must be [batch, tokens] with ids 0 to {vocabulary - 1}; these are {tuple(input_ids.shape)} "
            f"with ids {int(input_ids.min())} to {int(input_ids.max())}. Were they made with another tokenizer?"
        )
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if bool((mask[:, :-1] < mask[:, 1:]).any()):
        raise ValueError("attention_mask must be ones, then zeros: pad on the right.")
    return {"input_ids": input_ids.to(model.device), "attention_mask": mask.to(model.device), "use_cache": False}


def residual_stream(
    model: HookedModel, input_ids: Ids, attention_mask: Ids | None = None, layer: int | None = None
) -> Residual:
    """The residual stream after block `layer` (default: the model's own), stopping the pass there.

    Values at padded positions mean nothing; mask them.
    """
    layer = model.layer if layer is None else layer
    check_layer(layer, model.n_layers)
    with model.lock, torch.no_grad(), model.lm.trace(**_batch(model, input_ids, attention_mask)) as tracer:
        hidden = _hidden(model.blocks[layer].output).save()
        tracer.stop()
    return hidden


def spliced_logits(
    model: HookedModel, input_ids: Ids, attention_mask: Ids | None, x: Residual
) -> Float[Tensor, "batch tokens vocabulary"]:
    """Logits of a whole pass in which `x` takes the place of the residual stream after `model.layer`."""
    batch, x = _batch(model, input_ids, attention_mask), x.to(model.device, model.dtype)
    with model.lock, torch.no_grad(), model.lm.trace(**batch):
        output = model.blocks[model.layer].output
        model.blocks[model.layer].output = x if isinstance(output, Tensor) else (x, *output[1:])
        logits = model.lm.output.logits.save()
    return logits


def logits_above(
    model: HookedModel,
    x: Residual,
    attention_mask: Ids | None = None,
    position: Int[Tensor, " batch"] | None = None,
    tokens: Ids | None = None,
) -> Float[Tensor, "..."]:
    """Logits from `x`, the residual stream after `model.layer`, running only the blocks above it.

    Gradients reach `x` where it asks for them (weights are frozen). See `unembed` for `position` and `tokens`.

    Returns:
        [batch, tokens, vocabulary]; [batch, vocabulary] with `position`; [batch, k] with `position` and `tokens`.
    """
    x = x.to(model.device, model.dtype)
    last = model.n_layers - 1
    if model.layer == last:
        return unembed(model, x, position, tokens)
    ids = torch.zeros(x.shape[:2], dtype=torch.long)  # only their shape matters: the blocks below are skipped
    skipped = (x, None) if model.architecture == "BloomForCausalLM" else x
    with model.lock, model.lm.trace(**_batch(model, ids, attention_mask)) as tracer:
        for index in range(model.layer + 1):
            model.blocks[index].skip(skipped)
        hidden = _hidden(model.blocks[last].output).save()
        tracer.stop()
    return unembed(model, hidden, position, tokens)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unembed(
    model: HookedModel, hidden: Residual, position: Int[Tensor, " batch"] | None = None, tokens: Ids | None = None
) -> Float[Tensor, "..."]:
    """Final norm and unembedding of the last block's output.

    Args:
        hidden: output of the last block.
        position: which position of each sequence to keep; None keeps all.
        tokens: ids whose logits to compute at that position; None computes the whole vocabulary.
    """
    head = model.unembedding
    if position is None:
        return head(model.final_norm(hidden))
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    final = model.final_norm(hidden[rows, position.to(hidden.device)])
    if tokens is None:
        return head(final)
    tokens = tokens.to(hidden.device)
    logits = torch.einsum("bkd,bd->bk", head.weight[tokens], final)
    return logits if getattr(head, "bias", None) is None else logits + head.bias[tokens]
