"""Crosscoders and autoencoders of other libraries, read into ours, and ours written in their form.

| library | what is read | files |
|---|---|---|
| dictionary_learning (fork) | CrossCoder, BatchTopKCrossCoder | model.safetensors or ae.pt |
| SAELens | standard, topk, jumprelu | cfg.json and sae_weights.safetensors |

The fork is J. Minder's. SAELens saves a batchtopk autoencoder as a jumprelu one: that is read, too.

What comes back gives the same codes and the same reconstructions. What cannot is refused. Neither
form has a checksum, so of a damaged file only what does not parse or fit is found.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctt_helpers.arguments import checked
from ctt_helpers.crosscoder import Crosscoder
from ctt_helpers.files import AGAIN, atomic_path, expanded, load_tensors, read_json
from ctt_helpers.messages import abridged, choose, first_line, whole_number
from ctt_helpers.sources.exchange import folder_of

# ---- dictionary_learning

THEIRS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
NORMALISER = ("activation_mean", "activation_std", "activation_global_scale")
# what they call the size of a code that their threshold is compared with, by number
CODE_SIZES = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
# they divide by the scale and this
GUARD = 1e-8
WEIGHTS = ("model.safetensors", "ae.pt", "model_final.pt")


@checked
def from_dictionary_learning(
    where: str | Path,
    revision: str | None = None,
    source: Mapping[str, Any] | None = None,
    token: str | None = None,
) -> Crosscoder:
    """A CrossCoder or BatchTopKCrossCoder of dictionary_learning, as a crosscoder of ours.

    Their layers are our checkpoints. A normaliser of activations becomes scales, and its means go
    into the biases. A plain CrossCoder becomes an "l1" crosscoder, a BatchTopKCrossCoder a
    "batch_topk" one with its threshold; k is that of its training.

    Args:
        where: a folder, one of its files, or a repository of the hub.
        revision: branch, tag or commit of the repository.
        source: what it belongs to, as `Checkpoints.source` gives it; None: not known, so that
            nothing is compared when it is used.
        token: for the hub.

    Raises:
        FileNotFoundError, ConnectionError, PermissionError: see `Crosscoder.from_pretrained`.
        ValueError: a file is damaged or of something else, or has no equal among ours: one layer
            only, codes for each layer, a threshold on codes of another size.
    """
    file, settings = _their_files(where, revision, token)
    state = _their_state(file)
    W_enc, b_enc = state["encoder.weight"], state["encoder.bias"]
    W_dec, b_dec = state["decoder.weight"], state["decoder.bias"]
    n, size, d_model = W_dec.shape if W_dec.ndim == 3 else (0, 0, 0)
    layers = settings.get("encoder_layers")
    if not isinstance(layers, list):
        layers = list(range(n))
    if (
        n < 1
        or tuple(b_dec.shape) != (n, d_model)
        or tuple(b_enc.shape) != (size,)
        or tuple(W_enc.shape) != (len(layers), d_model, size)
    ):
        shapes = {name: tuple(state[name].shape) for name in THEIRS}
        raise ValueError(f"{file} holds no crosscoder: its sizes do not fit ({shapes}).")
    if n < 2:
        raise ValueError(f"{file} has one layer only: a crosscoder compares two at least.")
    if not all(isinstance(layer, int) and 0 <= layer < n for layer in layers):
        raise ValueError(
            f"{file} reads layers {layers} and writes {n}: one that is read must be written, too."
        )
    whole = W_enc.new_zeros(n, d_model, size)
    whole[layers] = W_enc
    means, scales = _normaliser(state, file, n, d_model)
    b_enc = b_enc - torch.einsum("cd,cdh->h", means * scales[:, None], whole)
    shrink = (scales / (scales + GUARD))[:, None]
    is_sparse = "threshold" in state
    if is_sparse:
        _check_code_size(state, settings, file)
    crosscoder = Crosscoder(
        n, d_model, size, "batch_topk" if is_sparse else "l1",
        k=min(size, max(1, int(state.get("k", 1)))), source=dict(source or {}),
    )  # fmt: skip
    crosscoder.to(state["dtype"]).requires_grad_(False)
    crosscoder.W_enc.copy_(whole)
    crosscoder.b_enc.copy_(b_enc)
    crosscoder.W_dec.copy_((W_dec * shrink[:, None]).permute(1, 0, 2))
    crosscoder.b_dec.copy_(b_dec * shrink + means * scales[:, None])
    crosscoder.scales.copy_(scales)
    if is_sparse:
        crosscoder.threshold.copy_(state["threshold"])
    return crosscoder.requires_grad_(True).eval()


def _their_files(
    where: str | Path, revision: str | None, token: str | None
) -> tuple[Path, dict[str, Any]]:
    """The file of weights, and the settings beside it."""
    path = expanded(where)
    if path.is_file():
        file, folder = path, path.parent
    else:
        folder = path
        if not path.is_dir():
            folder = folder_of(where, ["config.json", *WEIGHTS], revision, token)
        file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if file is None:
            raise FileNotFoundError(
                f"{folder} holds no weights of dictionary_learning ({', '.join(WEIGHTS)}). Give "
                "the file itself, if it is called otherwise."
            )
    settings = {}
    if (folder / "config.json").is_file():
        settings = read_json(folder / "config.json")
        if not isinstance(settings, dict):
            raise ValueError(f"{folder / 'config.json'} holds no settings. {AGAIN}")
        if isinstance(settings.get("trainer"), dict):  # the file of a training
            settings = settings["trainer"]
    return file, settings


def _their_state(file: Path) -> dict[str, Any]:
    """Tensors by name, in float64, and under "dtype" that of the weights (float32 for a half)."""
    state = load_tensors(file) if file.suffix == ".safetensors" else _unpickled(file)
    if any(name.startswith("_orig_mod.") for name in state):  # saved while it was compiled
        state = {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}
    if missing := [name for name in THEIRS if name not in state]:
        raise ValueError(
            f"{file} lacks {', '.join(missing)}: it is no CrossCoder of dictionary_learning. It "
            f"has {abridged(sorted(state), 6)}."
        )
    if ("k" in state) != ("threshold" in state):
        raise ValueError(f"{file} has k or a threshold, and not both. {AGAIN}")
    for name in (*THEIRS, "threshold"):
        if name in state and not state[name].isfinite().all():
            raise ValueError(f"{file}: {name} holds numbers that are not finite.")
    dtype = _at_least_float32(state["encoder.weight"].dtype)
    return {"dtype": dtype, **{name: tensor.double() for name, tensor in state.items()}}


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """In which weights are kept: scales and means that go into halves would be rounded away."""
    return torch.promote_types(dtype, torch.float32)


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch's; nothing in it is run."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets
        raise ValueError(f"{file} cannot be read ({first_line(error)}) {AGAIN}") from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"{file} holds no weights by name.")
    return state


def _normaliser(
    state: Mapping[str, Any], file: Path, n: int, d_model: int
) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
    """Means and scales of the activations: they encode (x - mean) scale. None: 0 and 1."""
    means, scales = torch.zeros(n, d_model).double(), torch.ones(n).double()
    there = [name for name in NORMALISER if name in state]
    if there and len(there) < len(NORMALISER):
        missing = [name for name in NORMALISER if name not in state]
        raise ValueError(f"{file} has {there[0]} and lacks {', '.join(missing)}. {AGAIN}")
    if not there or any(state[name].isnan().any() for name in NORMALISER[:2]):
        return means, scales  # as they do
    shapes = (n, d_model), (n, d_model), (n,)
    if any(tuple(state[name].shape) != s for name, s in zip(NORMALISER, shapes, strict=True)):
        raise ValueError(f"{file}: its normaliser does not fit its weights. {AGAIN}")
    means, scales = state["activation_mean"], state["activation_global_scale"]
    if not means.isfinite().all() or not ((scales > 0) & scales.isfinite()).all():
        raise ValueError(f"{file}: its normaliser holds scales that are no numbers above 0.")
    return means, scales


def _check_code_size(state: Mapping[str, Any], settings: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError unless their threshold is on f times the sum of the decoder norms."""
    if "code_normalization_id" in state:
        size = CODE_SIZES.get(int(state["code_normalization_id"]), "another")
    else:
        size = str(settings.get("code_normalization") or "")
        if not size:
            warnings.warn(
                f"{file} does not say how codes are normalised; as dictionary_learning does, it is "
                "taken to be CROSSCODER.",
                stacklevel=4,
            )
            size = "CROSSCODER"
    if size.upper() != "CROSSCODER":
        raise ValueError(
            f"{file} has its threshold on codes of normalisation {size}, and ours is on f times "
            "the sum of the decoder norms (CROSSCODER): no crosscoder of ours is equal to it. "
            "Write a ctt.Dictionary around it (docs/dictionary.md)."
        )
    if state["threshold"].numel() != 1:
        raise ValueError(f"{file} has {state['threshold'].numel()} thresholds; ours has one.")


@checked
def to_dictionary_learning(crosscoder: Crosscoder, folder: str | Path) -> None:
    """Write a crosscoder as a (BatchTopK)CrossCoder: config.json and model.safetensors.

    Read it with their `from_pretrained(folder, from_hub=True)`. The scales become a normaliser of
    means 0, which their library has had since 2025. An earlier version does not know it: for that,
    give an "l1" crosscoder `folded()`, which has none.

    Args:
        crosscoder: trained.
        folder: a new one.

    Raises:
        FileExistsError: there is something.
        ValueError: a folded "batch_topk" crosscoder: its threshold is on norms that their form has
            no place for.
    """
    is_sparse = crosscoder.sparsity == "batch_topk"
    if is_sparse and crosscoder.scaled_norms is not None:
        raise ValueError(
            "This crosscoder is folded, and its threshold is on decoder norms from before. Give "
            "the original."
        )
    n, d_model, size = crosscoder.n_checkpoints, crosscoder.d_model, crosscoder.n_latents
    dtype = _at_least_float32(crosscoder.W_enc.dtype)
    scales = crosscoder.scales.detach().cpu().double()
    is_scaled = bool((scales != 1).any())
    grow = (1 + GUARD / scales if is_scaled else torch.ones_like(scales))[:, None]
    mean, std = torch.full((2, n, d_model), torch.nan).unbind()
    if is_scaled:
        mean = torch.zeros(n, d_model)
        # of which their library would make the same scale
        std = ((1 / scales**2 - GUARD).clamp_min(0) / d_model).sqrt()[:, None].expand(n, d_model)
    ours = {name: tensor.detach().cpu().double() for name, tensor in crosscoder.named_parameters()}
    state = {
        "encoder.weight": ours["W_enc"].to(dtype),
        "encoder.bias": ours["b_enc"].to(dtype),
        "decoder.weight": (ours["W_dec"].permute(1, 0, 2) * grow[:, None]).to(dtype),
        "decoder.bias": (ours["b_dec"] * grow).to(dtype),
        "code_normalization_id": torch.tensor(1),
        "activation_mean": mean.to(dtype),
        "activation_std": std.to(dtype),
        "activation_global_scale": scales.to(dtype),
        "target_rms": torch.tensor(1.0),
    }
    settings: dict[str, Any] = {
        "activation_dim": d_model,
        "dict_size": size,
        "num_layers": n,
        "code_normalization": "CROSSCODER",
    }
    if is_scaled:
        settings["target_rms"] = 1.0
    if is_sparse:
        state |= {
            "k": torch.tensor(crosscoder.k, dtype=torch.int32),
            "threshold": crosscoder.threshold.detach().cpu().float(),
        }
        settings["k"] = crosscoder.k
    _write(folder, {"model.safetensors": state, "config.json": settings})


def _write(folder: str | Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """A new folder with tensors and settings, whole or not at all."""
    from safetensors.torch import save_file

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, content in files.items():
            if name.endswith(".safetensors"):
                tensors = {key: tensor.clone().contiguous() for key, tensor in content.items()}
                save_file(tensors, temporary / name, metadata={"format": "pt"})
                (temporary / name).chmod(0o644)
            else:
                text = json.dumps(content, indent=2) + "\n"
                (temporary / name).write_text(text, encoding="utf-8")


# ---- SAELens

ARCHITECTURES = ("standard", "topk", "jumprelu", "batchtopk")
SAELENS = ("cfg.json", "sae_weights.safetensors")


class SparseAutoencoder(nn.Module):
    """An autoencoder as SAELens keeps it, over the activations of one or several checkpoints.

    f = ReLU(x W_enc + b_enc), of which stay those above a threshold of their own, or the k largest;
    x is rebuilt as f W_dec + b_dec. It is for reading, not for training. It offers what
    `Dictionary` says, so that `evaluate` and `indirect_effects` take it.

    Attributes:
        W_enc: [n_checkpoints, d_model, n_latents], for raw activations.
        W_dec: [n_latents, n_checkpoints, d_model], raw.
        b_enc, b_dec: [n_latents], [n_checkpoints, d_model].
        threshold: [n_latents].
        k: latents kept for a token; None: all that are above their threshold.
        source: what it belongs to.
    """

    def __init__(
        self,
        W_enc: Float[Tensor, "checkpoints d_model latents"],
        W_dec: Float[Tensor, "latents checkpoints d_model"],
        b_enc: Float[Tensor, " latents"],
        b_dec: Float[Tensor, "checkpoints d_model"],
        threshold: Float[Tensor, " latents"] | None = None,
        k: int | None = None,
        source: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.n_checkpoints, self.d_model, self.n_latents = W_enc.shape
        self.k, self.source = k, dict(source or {})
        threshold = torch.zeros_like(b_enc) if threshold is None else threshold
        parts = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
        for name, tensor in {**parts, "threshold": threshold}.items():
            self.register_buffer(name, tensor.detach().clone())

    def extra_repr(self) -> str:
        sizes = ("n_checkpoints", "d_model", "n_latents", "k")
        return ", ".join(f"{name}={getattr(self, name)}" for name in sizes)

    @checked
    def encode(
        self, x: Float[Tensor, "*tokens checkpoints d_model"]
    ) -> Float[Tensor, "*tokens latents"]:
        """Codes of raw activations.

        Raises:
            ValueError: activations of another shape.
        """
        if x.shape[-2:] != (self.n_checkpoints, self.d_model):
            raise ValueError(
                f"Activations of shape {tuple(x.shape)} do not fit this autoencoder; it takes "
                f"[..., {self.n_checkpoints} checkpoints, {self.d_model} d_model]."
            )
        f = (x.flatten(-2) @ self.W_enc.flatten(0, 1) + self.b_enc).relu()
        if self.k is None:
            return f * (f > self.threshold)
        largest = f.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(f).scatter(-1, largest.indices, largest.values)

    @checked
    def decode(
        self, f: Float[Tensor, "*tokens latents"]
    ) -> Float[Tensor, "*tokens checkpoints d_model"]:
        """Raw reconstruction.

        Raises:
            ValueError: codes of another number of latents.
        """
        if f.shape[-1:] != (self.n_latents,):
            raise ValueError(
                f"Codes of shape {tuple(f.shape)} do not fit this autoencoder; it takes "
                f"[..., {self.n_latents} latents]."
            )
        flat = f @ self.W_dec.flatten(1) + self.b_dec.flatten()
        return flat.unflatten(-1, (self.n_checkpoints, self.d_model))

    def forward(
        self, x: Float[Tensor, "*tokens checkpoints d_model"]
    ) -> Float[Tensor, "*tokens checkpoints d_model"]:
        return self.decode(self.encode(x))

    def raw_decoder(
        self,
    ) -> tuple[Float[Tensor, "latents checkpoints d_model"], Float[Tensor, "checkpoints d_model"]]:
        """What a latent writes into each residual stream, and to what."""
        return self.W_dec, self.b_dec

    def decoder_norms(self) -> Float[Tensor, "checkpoints latents"]:
        """||W_dec,i^c||, of the raw decoder: it has no scales that would make checkpoints alike."""
        return self.W_dec.norm(dim=-1).T


@checked
def from_saelens(
    where: str | Path,
    subfolder: str = "",
    n_checkpoints: int | None = None,
    revision: str | None = None,
    source: Mapping[str, Any] | None = None,
    token: str | None = None,
) -> SparseAutoencoder:
    """A sparse autoencoder in SAELens' form. It is no crosscoder: it knows one checkpoint.

    Compare it with a crosscoder at this checkpoint: `suite.checkpoints([revision], layer=...)`
    reads what it takes. Several of one size do not make a crosscoder, for their latents have
    nothing in common.

    Args:
        where: a folder with cfg.json and sae_weights.safetensors, or a repository of the hub.
        subfolder: where in it, such as "blocks.5.hook_resid_post".
        n_checkpoints: whose activations it takes, end to end; None: as many as `to_saelens` has
            noted there, else 1.
        revision: branch, tag or commit of the repository.
        source: what it belongs to, as `Checkpoints.source` gives it; None: nothing is compared.
        token: for the hub.

    Raises:
        FileNotFoundError, ConnectionError, PermissionError: see `Crosscoder.from_pretrained`.
        ValueError: a file is damaged, or the autoencoder has no equal here: another architecture
            (gated, transcoder ...), activations that are normalised one by one, or reshaped.
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder.strip("/") else ""
    folder = folder_of(where, [prefix + name for name in SAELENS], revision, token) / prefix
    file = folder / SAELENS[1]
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {file.name}.")
    settings = _saelens_settings(folder / SAELENS[0])
    noted = (settings.get("metadata") or {}).get("n_checkpoints", 1)
    n = whole_number("n_checkpoints", noted if n_checkpoints is None else n_checkpoints)
    state = load_tensors(file)
    needed = ["W_enc", "W_dec", "b_enc", "b_dec"]
    if settings["architecture"] == "jumprelu":
        needed.append("threshold")
    if missing := [name for name in needed if name not in state]:
        raise ValueError(
            f"{file} lacks {', '.join(missing)}, which a {settings['architecture']} autoencoder "
            f"has. {AGAIN}"
        )
    state = {name: state[name] for name in needed}
    d_in, size = state["W_enc"].shape if state["W_enc"].ndim == 2 else (0, 0)
    shapes = {"W_dec": (size, d_in), "b_enc": (size,), "b_dec": (d_in,), "threshold": (size,)}
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes.get(name, (d_in, size)) or not size:
            raise ValueError(f"{file}: {name} of shape {tuple(tensor.shape)} does not fit. {AGAIN}")
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {name} holds numbers that are not finite.")
    if d_in % n:
        raise ValueError(f"{file} takes {d_in} numbers, which {n} checkpoints cannot share.")
    dtype = _at_least_float32(state["W_enc"].dtype)
    state = {name: tensor.double() for name, tensor in state.items()}
    if settings.get("apply_b_dec_to_input", True):
        state["b_enc"] = state["b_enc"] - state["b_dec"] @ state["W_enc"]
    if settings["architecture"] == "topk" and settings["k"] > size:
        raise ValueError(f"{folder / SAELENS[0]}: k={settings['k']} of {size} latents.")
    if settings.get("rescale_acts_by_decoder_norm"):  # its codes are f ||W_dec||
        norms = state["W_dec"].norm(dim=1)
        if not (norms > 0).all():
            raise ValueError(f"{file}: latent {int(norms.argmin())} has a decoder of norm 0.")
        state["W_enc"], state["b_enc"] = state["W_enc"] * norms, state["b_enc"] * norms
        state["W_dec"] = state["W_dec"] / norms[:, None]
    return SparseAutoencoder(
        W_enc=state["W_enc"].unflatten(0, (n, d_in // n)),
        W_dec=state["W_dec"].unflatten(1, (n, d_in // n)),
        b_enc=state["b_enc"],
        b_dec=state["b_dec"].unflatten(0, (n, d_in // n)),
        # what is not above 0 is 0 in any case
        threshold=state.get("threshold", torch.zeros(size).double()).clamp_min(0),
        k=settings["k"] if settings["architecture"] == "topk" else None,
        source=source,
    ).to(dtype)


def _saelens_settings(file: Path) -> dict[str, Any]:
    """cfg.json, refused where it asks for something that `SparseAutoencoder` does not do."""
    settings = read_json(file)
    if not isinstance(settings, dict) or "d_in" not in settings:
        raise ValueError(f"{file} is no cfg.json of SAELens: it has no d_in. {AGAIN}")
    named = settings.get("activation_fn") or settings.get("activation_fn_str") or "relu"
    if named not in ("relu", "topk"):
        raise ValueError(
            f"{file}: its activation function is {named}. Only relu and topk are read."
        )
    settings.setdefault("architecture", "standard")
    if named == "topk":  # as version 5 and earlier say it
        settings["architecture"] = "topk"
        settings.setdefault("k", (settings.get("activation_fn_kwargs") or {}).get("k"))
    choose(f"{file}: architecture", settings["architecture"], ARCHITECTURES)
    normalised = settings.get("normalize_activations") or "none"
    if normalised not in ("none", True, "expected_average_only_in"):
        raise ValueError(
            f"{file}: normalize_activations={normalised!r} divides by something of each token, so "
            "that a latent writes into none of them the same. It cannot be read."
        )
    if normalised != "none":
        raise ValueError(
            f"{file}: normalize_activations={normalised!r}: the factor is not in the file. Call "
            "fold_activation_norm_scaling_factor(factor) of SAELens, and save it again."
        )
    for name, plain in (("reshape_activations", "none"), ("finetuning_scaling_factor", False)):
        if (settings.get(name) or plain) != plain:
            raise ValueError(f"{file}: {name}={settings[name]!r} is not read, only {plain!r}.")
    if settings["architecture"] == "batchtopk":
        raise ValueError(
            f"{file}: a batchtopk autoencoder in training. Save it with save_inference_model of "
            "SAELens, which makes its threshold that of a jumprelu one."
        )
    if settings["architecture"] == "topk":
        settings["k"] = whole_number(f"{file}: k", settings.get("k"))
    return settings


@checked
def to_saelens(dictionary: Crosscoder | SparseAutoencoder, folder: str | Path) -> None:
    """Write an autoencoder, or a crosscoder as one over the activations end to end.

    SAELens reads it with `SAE.load_from_disk(folder)`, and takes activations [tokens, d_in], where
    d_in is n_checkpoints * d_model: `x.flatten(-2)`. A "batch_topk" crosscoder becomes a jumprelu
    one, whose thresholds are threshold / u_i.

    Args:
        dictionary: a crosscoder, or what `from_saelens` gave.
        folder: a new one.

    Raises:
        FileExistsError: there is something.
    """
    dtype = _at_least_float32(dictionary.W_enc.dtype)
    if isinstance(dictionary, Crosscoder):
        dictionary = _as_autoencoder(dictionary)
    state = {
        "W_enc": dictionary.W_enc.flatten(0, 1),
        "W_dec": dictionary.W_dec.flatten(1),
        "b_enc": dictionary.b_enc,
        "b_dec": dictionary.b_dec.flatten(),
    }
    settings: dict[str, Any] = {"architecture": "standard"}
    if dictionary.k is not None:
        settings = {"architecture": "topk", "k": dictionary.k}
        settings["rescale_acts_by_decoder_norm"] = False
    elif (dictionary.threshold > 0).any():
        settings = {"architecture": "jumprelu"}
        state["threshold"] = dictionary.threshold.clamp_max(torch.finfo(dtype).max)
    settings |= {
        "d_in": dictionary.n_checkpoints * dictionary.d_model,
        "d_sae": dictionary.n_latents,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        # from this version on the file has this form
        "metadata": {"sae_lens_version": "6.0.0", "n_checkpoints": dictionary.n_checkpoints},
    }
    tensors = {name: tensor.detach().cpu().to(dtype) for name, tensor in state.items()}
    _write(folder, {SAELENS[1]: tensors, SAELENS[0]: settings})


@torch.no_grad()
def _as_autoencoder(crosscoder: Crosscoder) -> SparseAutoencoder:
    """The same codes and reconstructions, in double precision and without scales."""
    folded = copy.deepcopy(crosscoder).cpu().double()
    if folded.scaled_norms is None:
        folded = folded.folded()
    threshold = None
    if crosscoder.sparsity == "batch_topk":  # f u > t; a latent with u = 0 is never active
        threshold = (folded.threshold / folded.code_norms()).nan_to_num(nan=torch.inf)
    return SparseAutoencoder(
        folded.W_enc, folded.W_dec, folded.b_enc, folded.b_dec, threshold, source=crosscoder.source
    )
