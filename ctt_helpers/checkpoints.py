"""Checkpoints in memory: loaded when used, dropped when told, and recognised by their weights."""

import gc
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ctt_helpers.hooks import HookedModel, check_layer
from ctt_helpers.runtime import abridged

if TYPE_CHECKING:
    from ctt_helpers.suites import Suite


@dataclass(eq=False)
class Checkpoints(Sequence):
    """Checkpoints of one suite with one layer: `ckpts[0]`, `len(ckpts)`, iteration. Each is loaded when first used."""

    suite: "Suite"
    revisions: list[str]
    layer: int
    device: str
    dtype: torch.dtype = torch.float32
    _loaded: dict[str, HookedModel] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.revisions)

    def __getitem__(self, index: int) -> HookedModel:
        revision = self.revisions[index]
        if revision not in self._loaded:
            self._loaded[revision] = load_checkpoint(self.suite, revision, self.layer, self.device, self.dtype)
        return self._loaded[revision]

    @property
    def labels(self) -> list[str]:
        return list(self.revisions)

    @property
    def tokens_seen(self) -> list[int | None]:
        return [self.suite.tokens_seen(r) for r in self.revisions]

    @property
    def tokenizer(self) -> Any:
        return self.suite.tokenizer

    @property
    def models(self) -> list[HookedModel]:
        return list(self)

    @property
    def d_model(self) -> int:
        return self[0].d_model

    def one_by_one(self) -> Iterator[HookedModel]:
        """Each checkpoint in turn; one that was not in memory before leaves it again."""
        for index, revision in enumerate(self.revisions):
            keep = revision in self._loaded
            yield self[index]
            if not keep:
                self._loaded.pop(revision)
                _release()

    def free(self) -> None:
        """Drop the models from memory; they are loaded again when used."""
        self._loaded.clear()
        _release()

    @cached_property
    def source(self) -> dict[str, Any]:
        """Where activations come from: suite, revisions, layer and a fingerprint of each checkpoint's weights."""
        prints = [fingerprint(model.hf_model) for model in self.one_by_one()]
        for i, mark in enumerate(prints):
            if mark in prints[:i]:
                twin = self.revisions[prints.index(mark)]
                warnings.warn(
                    f"{twin} and {self.revisions[i]} hold the same weights: they are one checkpoint.", stacklevel=2
                )
        return {"suite": self.suite.name, "revisions": self.labels, "layer": self.layer, "fingerprints": prints}


def fingerprint(model: nn.Module, samples: int = 256) -> str:
    """Short fingerprint of a model's weights, equal for equal weights whatever the device.

    Hashes names, shapes and `samples` evenly spaced values of every tensor, in float32. Two revisions with one
    fingerprint hold the same weights; it has happened in published suites.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // samples)]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(picked.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_checkpoint(
    suite: "Suite", revision: str, layer: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> HookedModel:
    """Load one checkpoint; errors name the file or revision at fault."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    suite.check_revisions([revision])
    if suite.is_local:
        folder = Path(suite.source) / revision
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise FileNotFoundError(
                f"The weights of {suite.name!r} at {revision} are missing: no .safetensors file in {folder}. "
                "Fetch or make the suite again (git checkout of data/, or python -m ctt_helpers.toy.pretrain)."
            )
        shared = Path(suite.source) / "config.json"
        config = AutoConfig.from_pretrained(shared if shared.is_file() else folder)
        where = {"pretrained_model_name_or_path": str(folder)}
    else:
        config = AutoConfig.from_pretrained(suite.source, revision=revision)
        where = {"pretrained_model_name_or_path": suite.source, "revision": revision}
    check_layer(layer, config.num_hidden_layers)
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            **where, config=config, dtype=dtype, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {suite.name!r} at {revision} cannot be read ({error}): the file is cut short or "
            "damaged. Fetch it again and compare with SHA256SUMS."
        ) from error
    if info["missing_keys"]:
        raise ValueError(
            f"The weights of {suite.name!r} at {revision} are incomplete; missing: {abridged(info['missing_keys'])}."
        )
    if len(suite.tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer of {suite.name!r} has {len(suite.tokenizer)} tokens, the model only {config.vocab_size}: "
            "it is the tokenizer of another model. Put the right tokenizer.json beside config.json."
        )
    return HookedModel(model.to(device), suite.tokenizer, layer, revision, suite.tokens[revision])


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
