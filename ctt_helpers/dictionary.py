"""What a dictionary must offer to be evaluated, and asked for effects: ours, or one of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ctt_helpers.crosscoder import Crosscoder, check_source

OFFERS = (
    "n_checkpoints", "n_latents", "source", "encode", "decode", "raw_decoder", "decoder_norms",
)  # fmt: skip
# decode(f) and f W_dec + b_dec may differ by this share of the larger
TOLERANCE = 1e-3


@runtime_checkable
class Dictionary(Protocol):
    """A sparse code for several checkpoints, and a linear decoder for each; `Crosscoder` is one.

    `evaluate`, `top_examples`, `active_places`, `promoted_tokens`, `indirect_effects` and the
    ablations take any object that offers this. A token's code must depend on that token alone. If
    it is a `torch.nn.Module`, it is put into evaluation mode.

    Attributes:
        n_checkpoints: of how many checkpoints it reads activations; one is enough.
        n_latents: size of the dictionary.
        source: what it belongs to, as `Checkpoints.source` gives it (suite, revisions, layer,
            fingerprints), so that other checkpoints are refused; {}: nothing is compared.
    """

    n_checkpoints: int
    n_latents: int
    source: Mapping[str, Any]

    def encode(
        self, x: Float[Tensor, "*tokens checkpoints d_model"]
    ) -> Float[Tensor, "*tokens latents"]:
        """Codes of raw activations: above 0 where a latent is active, else 0.

        Effects take codes below 0 as well.
        """

    def decode(
        self, f: Float[Tensor, "*tokens latents"]
    ) -> Float[Tensor, "*tokens checkpoints d_model"]:
        """Raw reconstruction at every checkpoint: f W_dec + b_dec of `raw_decoder`."""

    def raw_decoder(
        self,
    ) -> tuple[Float[Tensor, "latents checkpoints d_model"], Float[Tensor, "checkpoints d_model"]]:
        """W_dec, what a latent writes into each residual stream, and b_dec, to what."""

    def decoder_norms(self) -> Float[Tensor, "checkpoints latents"]:
        """||W_dec,i^c||, in units that can be compared over checkpoints, for `rel_dec`."""


@torch.no_grad()
def prepare(dictionary: Dictionary, here: Mapping[str, Any]) -> None:
    """Put a dictionary into evaluation mode, once it is known to be one and to belong here.

    Args:
        dictionary: to be used.
        here: where, as `Crosscoder.check_source` takes it.

    Raises:
        TypeError: it does not offer what `Dictionary` says.
        ValueError: it belongs to other checkpoints, or its parts contradict each other.
    """
    width, found = getattr(dictionary, "d_model", None), here.get("d_model")
    if None not in (width, found) and width != found:
        raise ValueError(
            f"{type(dictionary).__name__} reads activations of d_model {width}, and those of the "
            f"checkpoints have {found}: it belongs to another model."
        )
    if isinstance(dictionary, Crosscoder):
        dictionary.check_source(here)
        dictionary.eval()
        return
    if missing := [name for name in OFFERS if not hasattr(dictionary, name)]:
        raise TypeError(
            f"{type(dictionary).__name__} lacks {', '.join(missing)}: a dictionary offers "
            f"{', '.join(OFFERS)}. ctt.Dictionary says what each is."
        )
    check_source(dictionary, here)
    if isinstance(dictionary, torch.nn.Module):
        dictionary.eval()
    _check_parts(dictionary)


def _check_parts(dictionary: Dictionary) -> None:
    """Raise ValueError unless sizes fit, and `decode` is linear with the `raw_decoder`."""
    name, n, size = type(dictionary).__name__, dictionary.n_checkpoints, dictionary.n_latents
    W_dec, b_dec = dictionary.raw_decoder()
    norms = dictionary.decoder_norms()
    found = {"W_dec": W_dec, "b_dec": b_dec, "decoder_norms()": norms}
    d_model = W_dec.shape[-1]
    expected = {"W_dec": (size, n, d_model), "b_dec": (n, d_model), "decoder_norms()": (n, size)}
    for part, shape in expected.items():
        if tuple(found[part].shape) != shape:
            raise ValueError(
                f"{part} of this {name} is {tuple(found[part].shape)}; with n_checkpoints={n} and "
                f"n_latents={size} it is {shape}."
            )
    f = W_dec.new_zeros(2, size)
    f[1, :: max(1, size // 8)] = 1  # no latent, and a few
    linear = torch.einsum("th,hcd->tcd", f, W_dec) + b_dec
    rebuilt = dictionary.decode(f)
    if rebuilt.shape != linear.shape:
        raise ValueError(
            f"decode of this {name} gives {tuple(rebuilt.shape)} for codes {tuple(f.shape)}; it "
            f"gives {tuple(linear.shape)}."
        )
    off = float((rebuilt - linear).abs().max())
    if not off <= TOLERANCE * float(linear.abs().max()):
        raise ValueError(
            f"decode of this {name} is not f W_dec + b_dec with its raw_decoder: they differ by "
            f"{off:.2g}. Effects are those of raw activations: are they scaled, or centred?"
        )


def codes(
    dictionary: Dictionary, x: Float[Tensor, "*tokens checkpoints d_model"], signed: bool = False
) -> Float[Tensor, "*tokens latents"]:
    """`encode`, and of a dictionary that is not ours a look at what comes back.

    Args:
        dictionary: ours, or another.
        x: raw activations.
        signed: codes below 0 are fine, as for effects (of principal components, for one).

    Raises:
        ValueError: codes of another shape, not finite, or, if not `signed`, below 0.
    """
    f = dictionary.encode(x)
    if isinstance(dictionary, Crosscoder):
        return f
    name, shape = type(dictionary).__name__, (*x.shape[:-2], dictionary.n_latents)
    if tuple(f.shape) != shape:
        raise ValueError(
            f"encode of this {name} gives {tuple(f.shape)} for activations {tuple(x.shape)}; it "
            f"gives {shape}."
        )
    if f.numel() and not (f.isfinite() & (signed | (f >= 0))).all():
        raise ValueError(
            f"encode of this {name} gives {float(f.min()):.3g} to {float(f.max()):.3g}: codes are "
            "finite, above 0 where a latent is active, and else 0."
        )
    return f


@dataclass(frozen=True)
class _Some:
    """Some latents of a dictionary that has no `part` of its own: all are computed."""

    whole: Dictionary
    features: list[int]

    def encode(self, x: Float[Tensor, "*tokens n d_model"]) -> Float[Tensor, "*tokens latents"]:
        return codes(self.whole, x)[..., self.features]

    def raw_decoder(self) -> tuple[Tensor, Tensor]:
        W_dec, b_dec = self.whole.raw_decoder()
        return W_dec[self.features], b_dec


def some_of(dictionary: Dictionary, features: Sequence[int]) -> Any:
    """`encode` and `raw_decoder` of some latents; of a crosscoder no others are computed."""
    if isinstance(dictionary, Crosscoder):
        return dictionary.part(features)
    return _Some(dictionary, list(features))
