"""Checkpoints in memory: loaded when used, dropped when told, and recognised by their weights."""

from __future__ import annotations

import gc
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import nn

from ctt_helpers.arguments import checked
from ctt_helpers.files import AGAIN, verified
from ctt_helpers.hooks import (
    Checked,
    HookedModel,
    NotFinite,
    RemoteModel,
    check_finite,
    check_layer,
    leave_out_above,
    residual_stream,
    tell_twins,
)
from ctt_helpers.memory import TooLittleMemory
from ctt_helpers.messages import abridged, choose, first_line, show_size
from ctt_helpers.sources import hub
from ctt_helpers.sources.machine import ROOM, count_parameters, free_memory, remedies

if TYPE_CHECKING:
    from ctt_helpers.sources.suites import Suite

SMALL = 0.01  # share of the free memory, below which a model is small
# what float16 is tried on before a model is read in it
TRIAL = (
    "The farmer who lived near the river sold three horses last week.",
    "Why do old letters smell of dust and rain?",
    "In 1998 the two committees met again, and nobody was pleased.",
    "She counts: one, two, three, four, five!",
    "Most of the windows in this street have been painted green.",
    '"Nothing," he said, "is as simple as it looks."',
    "A list of numbers: 7, 42, 365, 1024, 99999.",
    "Their children speak Greek at home and English at school.",
    "the the the the the the the the",
    "If water freezes, it expands; if iron cools, it shrinks.",
)


@dataclass(eq=False, repr=False)
class Checkpoints(Sequence):
    """Checkpoints of one suite with one layer: `ckpts[0]`, `ckpts[:2]`, `len(ckpts)`, iteration.

    Each is loaded when first used. Where they do not fit into memory together, using one drops the
    one before.

    Attributes:
        suite: where they come from.
        revisions: which, in the order of training.
        layer: 0-based index of the block whose output is read.
        device, dtype: where and how they are kept.
        part: "all", or "below": the embeddings and the blocks up to the layer alone.
        half_on_trial: float16 was chosen for want of bfloat16: it is tried on ten sentences, and
            float32 takes its place where it does not hold.
        remote: they are on NDIF (`hooks.RemoteModel`), and only their activations come here.
    """

    suite: Suite
    revisions: list[str]
    layer: int
    device: str
    dtype: torch.dtype = torch.float32
    part: str = "all"
    half_on_trial: bool = False
    remote: bool = False
    _loaded: dict[str, HookedModel] = field(default_factory=dict, init=False)
    _fingerprints: dict[str, str] = field(default_factory=dict, init=False)
    _checked: Checked | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        choose("part", self.part, ("all", "below"))

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"Checkpoints({self.suite.name!r}: {abridged(self.revisions, 6)}; layer {self.layer}, "
            + (
                "activations from NDIF)"
                if self.remote
                else f"part={self.part!r}, {dtype} on {self.device}, {len(self._loaded)} of "
                f"{len(self)} in memory)"
            )
        )

    def __len__(self) -> int:
        return len(self.revisions)

    def __getitem__(self, index: int | slice) -> HookedModel | Checkpoints:
        if isinstance(index, slice):
            return self._slice(index)
        revision = self.revisions[index]
        if revision not in self._loaded:
            if self._loaded and not self.together:
                self.free()
            self._check_room(revision)
            model = self._load(revision)
            self._loaded[revision] = model
            self._fingerprints[revision] = model.fingerprint
        return self._loaded[revision]

    def _slice(self, index: slice) -> Checkpoints:
        """Some of them, what is in memory shared."""
        some = Checkpoints(
            suite=self.suite,
            revisions=self.revisions[index],
            layer=self.layer,
            device=self.device,
            dtype=self.dtype,
            part=self.part,
            half_on_trial=self.half_on_trial,
            remote=self.remote,
        )
        if not some.revisions:
            raise IndexError(f"{index} of {len(self)} checkpoints is none: give at least one.")
        for revision in some.revisions:
            if revision in self._loaded:
                some._loaded[revision] = self._loaded[revision]
            if revision in self._fingerprints:
                some._fingerprints[revision] = self._fingerprints[revision]
        return some

    def _load(self, revision: str) -> HookedModel:
        if self.remote:
            suite, seen = self.suite, self.suite.tokens_seen(revision)
            return RemoteModel(
                str(suite.source), revision, suite.config, suite.tokenizer, self.layer, seen
            )
        try:
            model = load_checkpoint(
                self.suite, revision, self.layer, self.device, self.dtype, self.part, self._checked
            )
            self._checked = model.checked
            if model.d_model != self.d_model:
                raise ValueError(
                    f"{revision} has d_model {model.d_model}, and its suite {self.suite.name!r} "
                    f"{self.d_model}: activations of one width are compared. Leave it out."
                )
            if self.half_on_trial:
                try_on_sentences(model)
            return model
        except NotFinite as error:
            if not self.half_on_trial:
                raise
            self.give_up_half()
            warnings.warn(
                f"float16 does not hold {self.suite.name!r} at {revision} ({first_line(error)}) "
                "All of these checkpoints are read in float32 from here on, which takes twice the "
                "memory; what was read of earlier ones in float16, read again.",
                stacklevel=4,
            )
            self._check_room(revision)
            return self._load(revision)

    def give_up_half(self) -> None:
        """Read them in float32 from here on."""
        self.free()
        self.dtype, self.half_on_trial = torch.float32, False

    @property
    def labels(self) -> list[str]:
        return list(self.revisions)

    @property
    def tokens_seen(self) -> list[int | None]:
        return [self.suite.tokens_seen(revision) for revision in self.revisions]

    @property
    def tokenizer(self) -> Any:
        return self.suite.tokenizer

    @property
    def d_model(self) -> int:
        return self.suite.config.get_text_config().hidden_size

    def one_by_one(self) -> Iterator[HookedModel]:
        """Each checkpoint in turn; one that was not in memory before leaves it again."""
        for index, revision in enumerate(self.revisions):
            keep = revision in self._loaded
            yield self[index]
            if not keep:
                self._loaded.pop(revision, None)
                self._release()

    def free(self) -> None:
        """Drop the models from memory; they are loaded again when used."""
        self._loaded.clear()
        self._release()

    def _release(self) -> None:
        """Give memory back now.

        Models hold themselves in circles, which Python breaks in its own time; to search for them
        takes a quarter of a second, so small ones are left to it.
        """
        if self.bytes_each > SMALL * free_memory(self.device):
            gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    # ---- what they take

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Numbers of parameters of one of them: see `machine.count_parameters`."""
        return count_parameters(self.suite.config, self.layer, self.suite.trust_remote_code)

    @property
    def bytes_each(self) -> int:
        """Bytes of the weights of one of them in memory."""
        if self.remote:
            return 0
        return self.parameters[self.part] * self.dtype.itemsize

    @property
    def bytes_loaded(self) -> int:
        """Bytes of the weights that are in memory now."""
        return self.bytes_each * len(self._loaded)

    @checked
    def file_bytes(self, revision: str) -> int:
        """Size of a revision's weights: of the files where they are here, else about."""
        files = hub.weight_files(self.suite.local_folder(revision))
        if files:
            return sum(file.stat().st_size for file in files)
        if self.suite.preset:
            return self.suite.preset.file_bytes
        return self.parameters["all"] * self.dtype.itemsize

    @cached_property
    def together(self) -> bool:
        """Whether they fit into memory together, judged when first asked."""
        free = free_memory(self.device) + self.bytes_loaded
        fits = self.bytes_each * len(self) <= ROOM * free
        if not fits and len(self) > 1:
            sizes = f"{show_size(len(self) * self.bytes_each)}, {show_size(free)} free"
            warnings.warn(
                f"{self!r} do not fit into memory together ({sizes}): each is loaded when its turn "
                f"comes, which takes longer. {remedies(self.part, self.dtype)}",
                stacklevel=3,
            )
        return fits

    def _check_room(self, revision: str) -> None:
        if self.remote:
            return
        # the system ends a process that takes too much memory without a word; weights pass through
        # it to a GPU
        needs = {self.device: self.bytes_each, "cpu": self.file_bytes(revision)}
        for device, needed in needs.items():
            free = free_memory(device)
            if needed > free:
                raise TooLittleMemory(
                    f"{self.suite.name!r} at {revision} needs {show_size(needed)} of memory on "
                    f"{device}, where {show_size(free)} are free. {remedies(self.part, self.dtype)}"
                )

    # ---- what they are

    @checked
    def fingerprint_of(self, index: int) -> str:
        """Fingerprint of one checkpoint's weights, which is loaded where it never was."""
        if not 0 <= index < len(self):
            raise ValueError(f"index={index}: there are {len(self)} checkpoints, counted from 0.")
        if self.revisions[index] not in self._fingerprints:
            self[index]  # loading takes the fingerprint
        return self._fingerprints[self.revisions[index]]

    def take_fingerprints(self, found: Mapping[str, str]) -> None:
        """Fingerprints by revision, of checkpoints that another process has loaded."""
        self._fingerprints.update(found)

    @cached_property
    def source(self) -> dict[str, Any]:
        """Where activations come from: suite, revisions, layer, dtype, and a fingerprint of each.

        Two checkpoints with the same weights are told.
        """
        prints = {name: self.fingerprint_of(index) for index, name in enumerate(self.revisions)}
        tell_twins(prints, stacklevel=4)
        return {
            "suite": self.suite.name,
            "revisions": self.labels,
            "layer": self.layer,
            "dtype": str(self.dtype).removeprefix("torch."),
            "fingerprints": list(prints.values()),
        }


@checked
def fingerprint(model: nn.Module) -> str:
    """Fingerprint of a model's weights, equal for equal values whatever device and dtype hold them.

    One pass over all bytes of all tensors: names, shapes and values in float32, with -0 as 0. Two
    revisions with one fingerprint hold the same weights; it has happened in published suites.
    `load_checkpoint` takes it before it changes the dtype or leaves anything out, so it is that of
    the file.
    """
    digest = xxhash.xxh3_128()
    at_once = 2**20
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        for part in tensor.detach().reshape(-1).split(at_once):
            values = part.cpu().to(torch.float64 if part.dtype == torch.float64 else torch.float32)
            digest.update((values + 0.0).numpy())  # -0 + 0 is 0
    return digest.hexdigest()


@torch.no_grad()
def try_on_sentences(model: HookedModel) -> None:
    """Raise NotFinite unless ten plain sentences give finite numbers."""
    rows = [model.tokenizer(sentence)["input_ids"][:64] for sentence in TRIAL]
    for row in rows:
        if row:
            x = residual_stream(model, torch.tensor([row]), layer=None)
            check_finite(x, model, "Activations on a trial sentence")
            if not model.reads_only:
                inputs = torch.tensor([row], device=model.device)
                check_finite(model.hf_model(input_ids=inputs, use_cache=False).logits, model)


# ---- loading


def load_checkpoint(
    suite: Suite,
    revision: str,
    layer: int,
    device: str,
    dtype: torch.dtype,
    part: str = "all",
    checked: Checked | None = None,
) -> HookedModel:
    """Load one checkpoint; errors name the file or revision at fault, and say what to do.

    `checked` is what was found of another one of them (`HookedModel`).

    Raises:
        FileNotFoundError: its weights are not there, or are pointers of git LFS.
        ValueError: a file is damaged, weights and configuration do not fit, or the model cannot be
            read (`hooks.check`).
        MemoryError: it does not fit.
        hooks.NotFinite: its logits are not finite in this dtype.
    """
    from transformers.utils import logging

    folder, what = suite.folder(revision), f"{suite.name!r} at {revision}"
    files = hub.weight_files(folder)
    if not files:
        raise FileNotFoundError(
            f"The weights of {what} are missing: {hub.what_is_missing(folder)}. Fetch or make the "
            "suite again (git checkout of data/, or python -m ctt_helpers.toy.pretrain)."
        )
    for file in files:
        if suite.is_local:
            verified(suite.source, file.relative_to(suite.source).as_posix())
        else:
            hub.verified(file)
        _check_is_no_pointer(file)
    config = suite.config_of(revision)
    check_layer(layer, config.get_text_config().num_hidden_layers)
    if len(suite.tokenizer) > config.get_text_config().vocab_size:
        raise ValueError(
            f"The tokenizer of {suite.name!r} has {len(suite.tokenizer)} tokens, the model only "
            f"{config.get_text_config().vocab_size}: it is the tokenizer of another model. Put the "
            "right tokenizer.json beside config.json."
        )
    logging.disable_progress_bar()
    try:
        hf_model = _from_files(folder, files, config, suite.trust_remote_code, what)
        mark = fingerprint(hf_model)
        _check_weights(hf_model, what, files)
        if part == "below":
            leave_out_above(hf_model, layer)
        # not model.to(dtype): buffers, as of rotary positions, stay precise
        for parameter in hf_model.parameters():
            parameter.data = parameter.data.to(device, dtype)
        hf_model.to(device)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TooLittleMemory(
            f"Out of memory on {device} while {what} was loaded. {remedies(part, dtype)}"
        ) from error
    try:
        return HookedModel(
            hf_model=hf_model,
            tokenizer=suite.tokenizer,
            layer=layer,
            label=revision,
            tokens_seen=suite.tokens[revision],
            fingerprint=mark,
            reads_only=part == "below",
            checked=checked,
        )
    except NotFinite as error:
        names = ", ".join(file.name for file in files)
        raise NotFinite(f"{error} They were read from {names} in {folder}.") from error


def _of_any_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


def _check_weights(hf_model: nn.Module, what: str, files: list[Path]) -> None:
    for name, parameter in hf_model.named_parameters():
        if not parameter.isfinite().all():
            names = ", ".join(file.name for file in files)
            raise NotFinite(
                f"The weights of {what} ({names}) hold numbers that are not finite, in {name}. "
                f"{AGAIN}"
            )


def _check_is_no_pointer(file: Path) -> None:
    with open(file, "rb") as opened:
        if opened.read(40).startswith(b"version https://git-lfs"):
            raise FileNotFoundError(
                f"{file} is a pointer of git LFS, not the weights: run `git lfs pull` in its "
                "repository, or download it again."
            )


def _from_files(
    folder: Path, files: list[Path], config: Any, trust_remote_code: bool, what: str
) -> nn.Module:
    """The model in the files' own dtype. A .bin file is read as data only, never as a program."""
    from transformers import AutoModelForCausalLM

    config.dtype = None  # "auto" then goes by the files: nothing is rounded yet
    names = ", ".join(file.name for file in files)
    try:
        with _with_a_config(folder, files, config) as complete:
            hf_model, info = AutoModelForCausalLM.from_pretrained(
                str(complete),
                config=config,
                dtype="auto",
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                local_files_only=not trust_remote_code,
                weights_only=True,
            )
    except (torch.OutOfMemoryError, MemoryError, ImportError):
        raise
    except Exception as error:  # whatever the readers of the two formats raise
        sums = " Compare with SHA256SUMS." if (folder.parent / "SHA256SUMS").is_file() else ""
        pickled = (
            " (A .bin file is read with weights_only=True: it may hold tensors and nothing else.)"
            if files[0].suffix == ".bin"
            else ""
        )
        raise ValueError(
            f"The weights of {what} cannot be read ({names}; {type(error).__name__}): the file is "
            f"cut short or damaged, or does not belong to its config.json. {AGAIN}{sums}{pickled}"
        ) from error
    if info["missing_keys"]:
        missing = abridged(sorted(info["missing_keys"]), 6)
        raise ValueError(
            f"The weights of {what} are incomplete; missing: {missing}. Either {names} is, or "
            "config.json is of another model."
        )
    # of layers that the configuration does not know; other parts, as for pictures, may be left out
    known = {_of_any_layer(name) for name in hf_model.state_dict()}
    if more := [name for name in info["unexpected_keys"] if _of_any_layer(name) in known]:
        raise ValueError(
            f"{names} of {what} holds layers that its config.json does not know: "
            f"{abridged(sorted(more), 4)}. One of the two is of another model, or damaged."
        )
    return hf_model


@contextmanager
def _with_a_config(folder: Path, files: list[Path], config: Any) -> Iterator[Path]:
    """The checkpoint's folder; where it has no config.json, one with links to its files."""
    if (folder / "config.json").is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        complete = Path(temporary)
        config.save_pretrained(complete)
        for file in [*files, *folder.glob("*.index.json")]:
            (complete / file.name).symlink_to(file.resolve())
        yield complete
