"""Checkpoints in memory: loaded when used, dropped when told, and recognised by their weights."""

import gc
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctt_helpers import hub
from ctt_helpers.costs import Speeds, Work, count_memory, count_seconds, measure_speeds
from ctt_helpers.estimates import Estimate, count_parameters, free_memory, remedies, show_size
from ctt_helpers.hooks import ARCHITECTURES, HookedModel, check_layer
from ctt_helpers.runtime import abridged, choose


@dataclass(eq=False, repr=False)
class Checkpoints(Sequence):
    """Checkpoints of one suite with one layer: `ckpts[0]`, `len(ckpts)`, iteration. Each is loaded when first used.

    Where they do not fit into memory together, using one drops the one before.
    """

    suite: Any
    revisions: list[str]
    layer: int
    device: str
    dtype: torch.dtype = torch.float32
    part: str = "all"
    _loaded: dict[str, HookedModel] = field(default_factory=dict, init=False)
    _fingerprints: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self):
        choose("part", self.part, ("all", "below"))

    def __repr__(self) -> str:
        return (
            f"Checkpoints({self.suite.name!r}: {abridged(self.revisions, 6)}; layer {self.layer}, part={self.part!r}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}, {len(self._loaded)} of {len(self)} in memory)"
        )

    def __len__(self) -> int:
        return len(self.revisions)

    def __getitem__(self, index: int) -> HookedModel:
        revision = self.revisions[index]
        if revision not in self._loaded:
            if self._loaded and not self.together:
                self.free()
            self._check_room(revision)
            model = load_checkpoint(self.suite, revision, self.layer, self.device, self.dtype, self.part)
            self._loaded[revision], self._fingerprints[revision] = model, model.fingerprint
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
        return self.suite.config.hidden_size

    def one_by_one(self) -> Iterator[HookedModel]:
        """Each checkpoint in turn; one that was not in memory before leaves it again."""
        for index, revision in enumerate(self.revisions):
            keep = revision in self._loaded
            yield self[index]
            if not keep:
                self._loaded.pop(revision, None)
                _release()

    def free(self) -> None:
        """Drop the models from memory; they are loaded again when used."""
        self._loaded.clear()
        _release()

    @cached_property
    def _counts(self) -> dict[str, int]:
        return count_parameters(self.suite.config, self.layer)

    @property
    def _bytes_each(self) -> int:
        return self._counts[self.part] * self.dtype.itemsize

    def estimate(self, speeds: Speeds | None = None, **work: Any) -> Estimate:
        """What working with these checkpoints takes, before anything is downloaded or loaded: print it.

        Args:
            speeds: of the device; None: they are measured, in a second or two on models that suit the device.
            **work: what is to be done, as for `costs.Work`: tokens=, evaluated=, pairs={"atp": 300}, n_latents=,
                k=, steps=, batch_size= ... None: only download and weights are told.

        Raises:
            ValueError: the layer does not exist, or something unknown shall be done with pairs.
        """
        files = {r: self._file_bytes(r) for r in self.revisions}
        missing = [r for r in files if not (self.suite.is_local or hub.cached(self.suite.source, r) == "yes")]
        one, all_files, download = self._bytes_each, sum(files.values()), sum(files[r] for r in missing)
        free = free_memory(self.device) + one * len(self._loaded)
        sizes = (self._counts["all"], download, all_files, one, one * len(self), free)
        if not work:
            return Estimate(repr(self), *sizes, device=self.device)
        config, todo, n = self.suite.config, Work(**work), len(self)
        speeds = speeds or measure_speeds(config, todo, n, self.device, self.dtype)
        seconds = count_seconds(todo, speeds, n, self.layer, config.num_hidden_layers)
        memory = count_memory(todo, n, self.d_model, config.vocab_size, self.dtype.itemsize)
        return Estimate(repr(self), *sizes, seconds, memory, self.device)

    @cached_property
    def together(self) -> bool:
        """Whether they fit into memory together, judged when first asked."""
        fits = self.estimate().fits
        if not fits and len(self) > 1:
            sizes = f"{show_size(len(self) * self._bytes_each)}, {show_size(free_memory(self.device))} free"
            told = f"{self!r} do not fit into memory together ({sizes}): each is loaded when its turn comes, which is "
            told += f"slow where batches go through all. {remedies(self.part, self.dtype)}"
            warnings.warn(told, stacklevel=3)
        return fits

    def _file_bytes(self, revision: str) -> int:
        """Size of a revision's weights: of the files where they are here, else about."""
        local = self.suite.is_local
        folder = self.suite.source / revision if local else hub.snapshot(self.suite.source, revision)
        if folder is not None and (files := hub.weight_files(folder)):
            return sum(file.stat().st_size for file in files)
        return self.suite.preset.file_bytes if self.suite.preset else self._counts["all"] * self.dtype.itemsize

    def _check_room(self, revision: str) -> None:
        # the system ends a process that takes too much memory without a word; weights pass through it to a GPU
        for device, needed in ((self.device, self._bytes_each), ("cpu", self._file_bytes(revision))):
            if needed > (free := free_memory(device)):
                raise MemoryError(
                    f"{self.suite.name!r} at {revision} needs {show_size(needed)} of memory on {device}, where "
                    f"{show_size(free)} are free. {remedies(self.part, self.dtype)}"
                )

    @cached_property
    def source(self) -> dict[str, Any]:
        """Where activations come from: suite, revisions, layer and a fingerprint of each checkpoint's weights."""
        for index in (i for i, r in enumerate(self.revisions) if r not in self._fingerprints):
            self[index]  # loading takes the fingerprint
        prints = [self._fingerprints[revision] for revision in self.revisions]
        for mark in (m for m in dict.fromkeys(prints) if prints.count(m) > 1):
            twins = " and ".join(r for r in self.revisions if self._fingerprints[r] == mark)
            warnings.warn(f"{twins} hold the same weights: they are one checkpoint.", stacklevel=2)
        return {"suite": self.suite.name, "revisions": self.labels, "layer": self.layer, "fingerprints": prints}


def fingerprint(model: nn.Module, samples: int = 256) -> str:
    """Short fingerprint of a model's weights, equal for equal weights whatever the device.

    Hashes names, shapes and `samples` evenly spaced values of every tensor, in float32. Two revisions with one
    fingerprint hold the same weights; it has happened in published suites. `load_checkpoint` takes it before it
    changes the dtype or leaves anything out, so it is that of the file.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // samples)]
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(picked.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class LeftOut(nn.Module):
    """Stands where a block or norm was that is not kept in memory; using it is an error that says so."""

    def __init__(self, layer: int):
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        told = f"Only the embeddings and blocks 0 to {self.layer} are in memory (part='below'), to read activations."
        raise RuntimeError(f"{told} For logits, accuracies and effects take suite.checkpoints(..., part='all').")

    @property
    def weight(self) -> torch.Tensor:
        return self.forward()


def leave_out_above(model: nn.Module, layer: int) -> None:
    """Drop, in place, what lies above block `layer`: further blocks, final norm, unembedding."""
    blocks, norm = ARCHITECTURES[type(model).__name__]
    blocks = model.get_submodule(blocks)
    for index in range(layer + 1, len(blocks)):
        blocks[index] = LeftOut(layer)
    parent, _, name = norm.rpartition(".")
    setattr(model.get_submodule(parent), name, LeftOut(layer))
    head = model.get_output_embeddings().weight
    empty = nn.Identity()  # still tells device and dtype
    empty.weight = nn.Parameter(head.new_empty(0, head.shape[1]), requires_grad=False)
    model.set_output_embeddings(empty)


def load_checkpoint(
    suite: Any, revision: str, layer: int, device: str, dtype: torch.dtype, part: str = "all"
) -> HookedModel:
    """Load one checkpoint; errors name the file or revision at fault, and say what to do."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    folder, what = suite.folder(revision), f"{suite.name!r} at {revision}"
    if not hub.weight_files(folder):
        raise FileNotFoundError(
            f"The weights of {what} are missing: no .safetensors file in {folder}. "
            "Fetch or make the suite again (git checkout of data/, or python -m ctt_helpers.toy.pretrain)."
        )
    shared = Path(suite.source) / "config.json"
    config = AutoConfig.from_pretrained(shared if suite.is_local and shared.is_file() else folder)
    check_layer(layer, config.num_hidden_layers)
    logging.disable_progress_bar()
    try:
        config.dtype = None  # "auto" then goes by the files, whatever config.json says: nothing is rounded yet
        options = {"config": config, "dtype": "auto", "output_loading_info": True}
        model, info = AutoModelForCausalLM.from_pretrained(str(folder), **options)
        mark = fingerprint(model)
        if part == "below":
            leave_out_above(model, layer)
        for parameter in model.parameters():  # not model.to(dtype): buffers, as of rotary positions, stay precise
            parameter.data = parameter.data.to(device, dtype)
        model.to(device)
    except SafetensorError as error:
        told = f"The weights of {what} cannot be read ({error}): the file is cut short or damaged. Fetch it again and "
        raise ValueError(told + "compare with SHA256SUMS.") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        told = f"Out of memory on {device} while {what} was loaded. {remedies(part, dtype)}"
        raise MemoryError(told) from error
    if info["missing_keys"]:
        raise ValueError(f"The weights of {what} are incomplete; missing: {abridged(info['missing_keys'])}.")
    if len(suite.tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer of {suite.name!r} has {len(suite.tokenizer)} tokens, the model only {config.vocab_size}: "
            "it is the tokenizer of another model. Put the right tokenizer.json beside config.json."
        )
    return HookedModel(model, suite.tokenizer, layer, revision, suite.tokens[revision], mark)


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
