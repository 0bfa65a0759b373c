"""Activations on disk: each token is read once at each checkpoint, and trained on from files.

A cache is a folder: `cache.json` says what of, `REVISION/00000.safetensors` and so on hold the
activations of one checkpoint, a number of groups each. Files are mapped into memory, so that only
what is asked for is read, and compared with its checksum each time it is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from ctt_helpers import hooks
from ctt_helpers.activations import KeepingStream, describe_text, read_group, sequences_at_once
from ctt_helpers.arguments import checked
from ctt_helpers.files import (
    atomic_path,
    expanded,
    locked,
    make_readable,
    read_json,
    sweep,
    versions,
    write_json,
)
from ctt_helpers.messages import choose, progress, show_size, told_when_stopped, whole_number
from ctt_helpers.processes import Alone, among

if TYPE_CHECKING:
    from ctt_helpers.sources.checkpoints import Checkpoints

KIND = "activation cache"
ABOUT = "cache.json"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHARD_BYTES = 256 * 10**6  # of a file, at most
OPEN_FILES = 64  # at once
HEADER = 2**16  # bytes at the beginning of a file, about, at most


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """Activations of several checkpoints over one text, on disk; models are not needed any more.

    `ActivationCache.build(ckpts, text, folder)` makes one, `ActivationCache.open(folder)` finds one
    that is finished, `cache.stream(...)` is what `train` takes.

    Attributes:
        folder: where it is.
        about: what cache.json says: source, sizes, dtype.
    """

    folder: Path
    about: dict[str, Any]
    _files: dict[tuple[int, int], _File] = field(default_factory=dict, init=False, repr=False)

    # ---- made and found

    @classmethod
    @checked
    def build(
        cls,
        ckpts: Checkpoints,
        text: Int[Tensor, "sequences length"],
        folder: str | Path,
        dtype: str = "auto",
        sequences_per_group: int = 64,
        shard_bytes: int = SHARD_BYTES,
    ) -> ActivationCache:
        """Read a text with one checkpoint after another, and write what they say.

        Each checkpoint is loaded once, whether they fit into memory together or not. A call that
        was cut off is taken up by the same call; files that are there are kept. What it takes:
        `ActivationCache.size` for the disk, the reading of `ctt.estimate(ckpts, tokens=...)` for
        the time.

        Started in several processes (see `train`), each makes its part of the files, and loads the
        checkpoints that these are of: with as many processes as checkpoints, one. The folder must
        be on a disk that all of them see.

        Args:
            ckpts: the checkpoints, with their layer.
            text: [sequences, length] token ids, from `suite.text`.
            folder: made where it is missing; one that holds something else is refused.
            dtype: of the numbers on disk, "float32" or "bfloat16"; "auto": bfloat16 for models that
                are kept in it, float32 for all others, so that nothing is lost.
            sequences_per_group: as for `ActivationStream`.
            shard_bytes: of one file, about, at most; one group at least.

        Raises:
            ValueError: the folder holds the cache of another text, or of other checkpoints.
            FileExistsError: the folder holds something else.
            OSError: there is not enough room on the disk; nothing was begun.
            files.InUse: another process is making it.
        """
        folder = expanded(folder)
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder} is a file, and is left as it is. Give a folder.")
        processes = among()
        speaks = processes.rank == 0
        with (
            told_when_stopped(lambda: _kept(folder)) if speaks else nullcontext(),
            locked(folder) if speaks else nullcontext(),
        ):
            if speaks:
                sweep(folder, *(place for place in folder.iterdir() if place.is_dir()))
            builder = _Builder(
                ckpts, text, folder, dtype, sequences_per_group, shard_bytes, processes
            )
            builder.run()
        try:
            return cls.open(folder)
        except FileNotFoundError as error:
            if processes.size == 1:
                raise
            raise FileNotFoundError(
                f"{error} All processes must see one folder: give one on a disk that they share."
            ) from error

    @classmethod
    @checked
    def open(cls, folder: str | Path) -> ActivationCache:
        """A finished cache.

        Raises:
            FileNotFoundError: there is none, or one of its files is missing.
            ValueError: it is not finished, or cache.json is damaged.
        """
        folder = expanded(folder)
        if not (folder / ABOUT).is_file():
            what = f"no {ABOUT} in it" if folder.is_dir() else "no such folder"
            raise FileNotFoundError(f"There is no {KIND} in {folder}: {what}.")
        about = read_json(folder / ABOUT)
        if not isinstance(about, dict) or about.get("kind") != KIND:
            raise ValueError(f"{folder / ABOUT} is not of an {KIND}.")
        if not about["complete"]:
            raise ValueError(
                f"The {KIND} in {folder} is not finished: the call of ActivationCache.build that "
                "began it goes on with it."
            )
        cache = cls(folder, about)
        for c in range(cache.n_checkpoints):
            for shard in range(cache._n_shards):
                if not cache._path(c, shard).is_file():
                    raise FileNotFoundError(f"{cache._path(c, shard)} is missing. {_REMEDY}")
        return cache

    @checked
    def stream(
        self,
        batch_size: int = 1024,
        seed: int = 0,
        buffer_tokens: int = 2**17,
        max_norm: float | None = None,
        device: str = "auto",
        keep_gb: float = 1.0,
    ) -> CachedStream:
        """Shuffled batches, as those of `ActivationStream` with these settings.

        They are the same to the last bit, unless the cache has rounded the activations.

        Args:
            batch_size: tokens a batch.
            seed: of the order of tokens.
            buffer_tokens: size of the shuffle buffer.
            max_norm: as for `TensorStream`.
            device: where the buffer is, and the batches.
            keep_gb: what has been read stays in memory, if all takes no more than this many
                gigabytes: the disk is then read once.
        """
        return CachedStream(self, batch_size, seed, buffer_tokens, max_norm, device, keep_gb)

    @staticmethod
    @checked
    def size(ckpts: Checkpoints, text: Int[Tensor, "sequences length"], dtype: str = "auto") -> int:
        """Bytes that a cache takes on disk.

        The headers of its files come on top: below 1 %, unless groups are of very few tokens.
        """
        sequences_at_once(text, 1)  # whether it is [sequences, length]
        tokens = text.shape[0] * (text.shape[1] - 1)
        itemsize = DTYPES[_pick(dtype, ckpts.dtype)].itemsize
        return len(ckpts) * tokens * ckpts.d_model * itemsize

    # ---- what it is

    @property
    def source(self) -> dict[str, Any]:
        """What the activations come from: suite, revisions, layer, text."""
        return self.about["source"]

    @property
    def n_checkpoints(self) -> int:
        return len(self.source["revisions"])

    @property
    def d_model(self) -> int:
        return self.about["d_model"]

    @property
    def n_tokens(self) -> int:
        """Tokens at each checkpoint, without the first of each sequence."""
        return self.about["sequences"] * (self.about["length"] - 1)

    @property
    def n_groups(self) -> int:
        return -(-self.about["sequences"] // self.about["sequences_per_group"])

    @property
    def group_tokens(self) -> int:
        return self.about["sequences_per_group"] * (self.about["length"] - 1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers on disk."""
        return DTYPES[self.about["dtype"]]

    @property
    def is_exact(self) -> bool:
        """Whether the activations were written without rounding."""
        models = getattr(torch, self.source["dtype"])
        return torch.promote_types(models, self.dtype) == self.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def __repr__(self) -> str:
        return (
            f"ActivationCache({str(self.folder)!r}: {self.n_tokens:,} tokens of "
            f"{self.source['suite']!r} at {', '.join(self.source['revisions'])}, layer "
            f"{self.source['layer']}, {self.about['dtype']})"
        )

    # ---- files

    @property
    def _n_shards(self) -> int:
        """Of each checkpoint."""
        return -(-self.n_groups // self.about["groups_per_shard"])

    def _path(self, checkpoint: int, shard: int) -> Path:
        # a revision may be any branch's name, with a slash, say, or lead out of the folder
        name = quote(self.source["revisions"][checkpoint], safe="")
        if not name.strip("."):
            name = name.replace(".", "%2E")
        return self.folder / name / f"{shard:05d}.safetensors"

    def _mark(self, checkpoint: int, shard: int) -> str:
        """What a file must hold, in short: it stands in the file."""
        of = {key: self.about[key] for key in _SIZES}
        weights = self.about["fingerprints"][self.source["revisions"][checkpoint]]
        about = [self.source[key] for key in ("text", "layer", "dtype")]
        content = json.dumps([about, weights, shard, of])
        return hashlib.sha256(content.encode()).hexdigest()

    def _groups(self, shard: int) -> range:
        each = self.about["groups_per_shard"]
        return range(shard * each, min((shard + 1) * each, self.n_groups))

    def _rows(self, group: int, first: int = 0) -> slice:
        """A group's tokens, counted from the first token of group `first`."""
        start = (group - first) * self.group_tokens
        end = min((group + 1) * self.group_tokens, self.n_tokens)
        return slice(start, end - first * self.group_tokens)

    @checked
    def read(self, checkpoint: int, group: int) -> Float[Tensor, "tokens d_model"]:
        """One group of tokens at one checkpoint, mapped into memory; do not write to it.

        Raises:
            FileNotFoundError: its file is missing.
            ValueError: its file is damaged, or another's; the message names it.
        """
        shard = group // self.about["groups_per_shard"]
        first = self._groups(shard)[0]
        file = self._opened(checkpoint, shard)
        x = file.x[self._rows(group, first)]
        if _checksum(x) != file.checksums[group - first]:
            raise ValueError(f"{file.path} is not as it was written, in group {group}. {_REMEDY}")
        return x

    def _opened(self, checkpoint: int, shard: int) -> _File:
        """One of its files; the last ones stay open, for opening takes longer than reading."""
        file = self._files.pop((checkpoint, shard), None)
        if file is None:
            file = _File(self._path(checkpoint, shard))
            whole = file.kind == KIND and len(file.checksums) == len(self._groups(shard))
            if not whole or file.mark != self._mark(checkpoint, shard):
                raise ValueError(f"{file.path} is of another {KIND}, or changed. {_REMEDY}")
        self._files[checkpoint, shard] = file  # the last is the latest used
        if len(self._files) > OPEN_FILES:
            del self._files[next(iter(self._files))]
        return file

    @checked
    def fetch(self, checkpoint: int, group: int) -> None:
        """Tell the system that a group is read soon: it may get it from the disk beforehand."""
        if not hasattr(os, "posix_fadvise"):
            return
        shard = group // self.about["groups_per_shard"]
        rows = self._rows(group, self._groups(shard)[0])
        width = self.d_model * self.dtype.itemsize
        with suppress(OSError), open(self._path(checkpoint, shard), "rb") as file:
            length = (rows.stop - rows.start) * width + HEADER
            advice = os.POSIX_FADV_WILLNEED
            os.posix_fadvise(file.fileno(), rows.start * width, length, advice)


class _File:
    """One file of a cache, open.

    Attributes:
        x: [tokens, d_model] its activations, of which any slice is mapped into memory.
        kind, mark: what they are of.
        checksums: of each group.
    """

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing. {_REMEDY}")
        try:
            with safe_open(path, framework="pt") as file:
                told, self.x = file.metadata() or {}, file.get_slice("x")
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error}). {_REMEDY}") from error
        self.kind, self.mark = told.get("kind"), told.get("mark")
        self.checksums = told.get("checksums", "").split()


# what stays the same for all files of a cache
_SIZES = ("sequences", "length", "sequences_per_group", "groups_per_shard", "d_model", "dtype")
_REMEDY = (
    "Delete that file and call ActivationCache.build as before: what is missing is made again, "
    "everything else kept."
)


def _pick(dtype: str, models: torch.dtype) -> str:
    """The name of the dtype on disk, for models of a dtype."""
    choose("dtype", dtype, ("auto", *DTYPES))
    if dtype != "auto":
        return dtype
    return "bfloat16" if models == torch.bfloat16 else "float32"


def _checksum(x: Tensor) -> str:
    """Of the bytes of a tensor; ten times as fast as SHA-256, and enough against damage."""
    return xxhash.xxh3_128_hexdigest(x.contiguous().flatten().view(torch.uint8).numpy())


# ---- training from it


class CachedStream(KeepingStream):
    """Batches from an `ActivationCache`: see `ActivationCache.stream`."""

    def __init__(
        self,
        cache: ActivationCache,
        batch_size: int,
        seed: int,
        buffer_tokens: int,
        max_norm: float | None,
        device: str,
        keep_gb: float,
    ):
        self.cache, self.device = cache, hooks.pick_device(device)
        self.source = cache.source
        self.n_checkpoints, self.d_model = cache.n_checkpoints, cache.d_model
        self.group_tokens = cache.group_tokens
        self._set_up(cache.n_tokens, cache.n_groups, batch_size, seed, buffer_tokens, max_norm)
        n_bytes = cache.n_tokens * self.n_checkpoints * self.d_model * cache.dtype.itemsize
        self._keeps = n_bytes <= keep_gb * 1e9

    def _fresh(
        self, groups: Sequence[int]
    ) -> Iterator[tuple[int, int, Float[Tensor, "tokens d_model"]]]:
        for place, group in enumerate(groups):  # all of a token's row while it is at hand
            for c in range(self.n_checkpoints):
                yield c, place, self.cache.read(c, group)

    def _expect(self, tokens: np.ndarray) -> None:
        for group in self._missing(np.unique(tokens // self.group_tokens).tolist()):
            for c in range(self.n_checkpoints):
                self.cache.fetch(c, group)

    def _empty(self, n_tokens: int) -> Float[Tensor, "tokens checkpoints d_model"]:
        sizes = (n_tokens, self.n_checkpoints, self.d_model)
        return torch.empty(sizes, dtype=self.cache.dtype, device=self.device)

    def batches(self, start: int = 0) -> Iterator[Float[Tensor, "batch checkpoints d_model"]]:
        for batch in super().batches(start):
            yield hooks.at_least_float32(batch)

    def _settings(self) -> list[Any]:
        rounded = [] if self.cache.is_exact else [self.cache.about["dtype"]]
        return [*super()._settings(), *rounded]


# ---- making it


class _Builder:
    """Makes a cache, or the rest of one; see `ActivationCache.build`."""

    def __init__(
        self,
        ckpts: Checkpoints,
        text: Int[Tensor, "sequences length"],
        folder: Path,
        dtype: str,
        sequences_per_group: int,
        shard_bytes: int,
        processes: Alone,
    ):
        self.ckpts, self.text, self.folder, self.asked = ckpts, text, folder, dtype
        self.processes = processes
        sequences = sequences_at_once(text, sequences_per_group)
        self.sizes = {
            "sequences": text.shape[0],
            "length": text.shape[1],
            "sequences_per_group": sequences,
            "d_model": ckpts.d_model,
        }
        self.of_text = describe_text(text)
        self.shard_bytes = whole_number("shard_bytes", shard_bytes)

    def _described(self) -> dict[str, Any]:
        """What cache.json says before any checkpoint has been read."""
        dtype = _pick(self.asked, self.ckpts.dtype)
        group = self.sizes["sequences_per_group"] * (self.sizes["length"] - 1)
        group_bytes = group * self.sizes["d_model"] * DTYPES[dtype].itemsize
        source = {
            "suite": self.ckpts.suite.name,
            "revisions": self.ckpts.labels,
            "layer": self.ckpts.layer,
            "dtype": str(self.ckpts.dtype).removeprefix("torch."),
            **self.of_text,
        }
        return {
            "kind": KIND,
            "complete": False,
            "source": source,
            "fingerprints": {},
            **self.sizes,
            "dtype": dtype,
            "groups_per_shard": max(1, self.shard_bytes // group_bytes),
            "versions": versions(),
        }

    def run(self) -> None:
        processes = self.processes
        processes.wait()  # until the first one holds the folder
        about = self._begun()
        cache = ActivationCache(self.folder, about)
        self._check_room(cache)
        processes.wait()  # until all have seen what is there
        if not (self.folder / ABOUT).is_file():  # before any file of activations
            self._write(about)
        dtype = self.ckpts.dtype
        files = self._own_files(cache)
        with progress(
            None, "activations to disk", total=len(files), unit="file", disable=processes.rank > 0
        ) as bar:
            for c, shard in files:
                self._identify(cache, c)
                if self.ckpts.dtype != dtype:
                    break  # float16 does not hold one of them: all are read in float32
                if not self._is_there(cache, c, shard):
                    self._make(cache, c, shard)
                bar.update()
        if any(processes.each(self.ckpts.dtype != dtype)):
            if self.ckpts.dtype == dtype:  # another process found out
                self.ckpts.give_up_half()
            self._write(self._described())
            return self.run()
        self._agree(about)
        if not about["complete"]:
            source = {**self.ckpts.source, **self.of_text}  # in the order of ActivationStream's
            self._write({**about, "source": source, "complete": True})
        processes.wait()

    def _own_files(self, cache: ActivationCache) -> list[tuple[int, int]]:
        """(checkpoint, shard) of the files that this process makes, checkpoint by checkpoint."""
        files = list(itertools.product(range(cache.n_checkpoints), range(cache._n_shards)))
        own = np.array_split(np.arange(len(files)), self.processes.size)[self.processes.rank]
        return [files[index] for index in own]

    def _write(self, about: dict[str, Any]) -> None:
        if self.processes.rank == 0:
            write_json(self.folder / ABOUT, about, checksum=True)

    def _agree(self, about: dict[str, Any]) -> None:
        """Tell each other which weights the checkpoints have."""
        known = about["fingerprints"]
        for found in self.processes.each(dict(known)):
            for revision, weights in found.items():
                if known.setdefault(revision, weights) != weights:
                    raise ValueError(
                        f"Two processes have read other weights for {revision}: {known[revision]} "
                        f"and {weights}. Give all of them the same suite."
                    )
        self.ckpts.take_fingerprints(known)

    def _begun(self) -> dict[str, Any]:
        """What cache.json says, if it is of this cache; where there is none, what it will say."""
        wanted = self._described()
        if not (self.folder / ABOUT).is_file():
            there = [path.name for path in self.folder.iterdir() if not _is_passing(path)]
            if there:
                raise FileExistsError(
                    f"{self.folder} holds {there[0]!r} and no {ABOUT}: it is no {KIND}, and is "
                    "left as it is. Give another folder."
                )
            return wanted
        about = read_json(self.folder / ABOUT)
        if not isinstance(about, dict) or about.get("kind") != KIND:
            raise FileExistsError(
                f"{self.folder / ABOUT} is not of an {KIND}: give another folder."
            )
        told = []
        for key, value in wanted["source"].items():
            if about["source"].get(key) != value:
                told.append(f"{key}: {about['source'].get(key)!r} there, {value!r} here")
        for key in (*self.sizes, "dtype"):
            if about[key] != wanted[key]:
                told.append(f"{key}: {about[key]!r} there, {wanted[key]!r} here")
        self._refuse(told)
        return about

    def _refuse(self, told: list[str]) -> None:
        if told:
            raise ValueError(
                f"{self.folder} holds another {KIND} ({'; '.join(told)}). Give another folder, or "
                "delete that one."
            )

    def _identify(self, cache: ActivationCache, c: int) -> None:
        """Compare the checkpoint's weights with those that the cache began with, or note them."""
        revision = self.ckpts.labels[c]
        weights = self.ckpts.fingerprint_of(c)
        known = cache.about["fingerprints"]
        if revision not in known:
            known[revision] = weights
            self._write(cache.about)
        elif known[revision] != weights:
            self._refuse([f"weights of {revision}: {known[revision]} there, {weights} here"])

    def _is_there(self, cache: ActivationCache, c: int, shard: int) -> bool:
        """Whether a file is there, as long as it must be; its numbers are compared when read."""
        from safetensors import SafetensorError, safe_open

        path = cache._path(c, shard)
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
        except (SafetensorError, OSError, UnicodeDecodeError):
            return False  # cut short
        if told.get("kind") != KIND:
            raise FileExistsError(
                f"{path} is no file of an {KIND}, and would be lost. Move it, or give another "
                "folder."
            )
        return told.get("mark") == cache._mark(c, shard)

    def _make(self, cache: ActivationCache, c: int, shard: int) -> None:
        """Read the groups of one file, and write it."""
        from safetensors.torch import save_file

        model, groups = self.ckpts[c], cache._groups(shard)
        on_gpu = model.device.type == "cuda"
        n_tokens = cache._rows(groups[-1], groups[0]).stop
        # from pinned memory a GPU need not be waited for until the file is written
        x = torch.empty(n_tokens, cache.d_model, dtype=cache.dtype, pin_memory=on_gpu)
        for group in groups:
            found = read_group(model, self.text, group, self.sizes["sequences_per_group"])
            part = x[cache._rows(group, groups[0])].view(found.shape)
            part.copy_(found.to(cache.dtype), non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize(model.device)
        hooks.check_norms(hooks.norms_not_finite(x), model.label)
        parts = [x[cache._rows(group, groups[0])] for group in groups]
        about = {"kind": KIND, "mark": cache._mark(c, shard)}
        about["checksums"] = " ".join(map(_checksum, parts))
        with atomic_path(cache._path(c, shard)) as temporary:
            save_file({"x": x}, temporary, metadata=about)
            make_readable(temporary)

    def _check_room(self, cache: ActivationCache) -> None:
        """Raise OSError where the disk has no room for what is still to be written."""
        size = cache.n_checkpoints * cache.n_tokens * cache.d_model * cache.dtype.itemsize
        there = sum(path.stat().st_size for path in self.folder.glob("*/*.safetensors"))
        needed, free = size - there, shutil.disk_usage(self.folder).free
        if needed > free:
            half = "dtype='bfloat16', " if cache.dtype == torch.float32 else ""
            raise OSError(
                f"An {KIND} of {cache.n_tokens:,} tokens at {cache.n_checkpoints} checkpoints "
                f"needs {show_size(needed)} in {self.folder}, where {show_size(free)} are free. "
                f"Nothing was begun. Take {half}less text, or another disk."
            )


def _is_passing(path: Path) -> bool:
    """Whether this is only there while something is being written, or the lock."""
    return path.name == ".lock" or ".tmp-" in path.name


def _kept(folder: Path) -> tuple[str, str]:
    """What a person who stopped the building needs to know."""
    there = len(list(folder.glob("*/*.safetensors")))
    kept = f"{there} files of activations are kept in {folder}."
    return kept, "The same call of ActivationCache.build goes on with the rest."
