"""Which checkpoints of a pretraining run exist, how many tokens each has seen, and how to load them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ctt_helpers import hub, published, tasks
from ctt_helpers.checkpoints import Checkpoints
from ctt_helpers.estimates import pick_dtype
from ctt_helpers.presets import BLIMP_AGREEMENT, PRESETS, Preset, nearest, step_of, tokens_of
from ctt_helpers.runtime import abridged, choose, closest, pick_device, read_json

File = str | Path | None


@dataclass(eq=False)
class Suite:
    """The checkpoints of one pretraining run. Make one with `load_suite`.

    Attributes:
        name: what it was called.
        source: the folder or the hub repository that holds the weights.
        revisions: names of its checkpoints, in the order of training.
        tokens: tokens of pretraining behind each revision; None where unknown.
        default_layer: the layer read unless another is asked for.
        default_triplet: the three revisions studied unless others are asked for.
        meta: what the folder's suite.json says (empty for others).
        preset: published facts, where the suite has some.
    """

    name: str
    source: str | Path
    revisions: list[str]
    tokens: dict[str, int | None]
    default_layer: int
    default_triplet: list[str]
    meta: dict[str, Any] = field(default_factory=dict, repr=False)
    preset: Preset | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Suite({self.name!r}: {len(self.revisions)} checkpoints, {abridged(self.revisions, 6)})"

    @property
    def is_local(self) -> bool:
        return isinstance(self.source, Path)

    def tokens_seen(self, revision: str) -> int | None:
        """Tokens of pretraining behind a revision, exact; None where it is not known."""
        return self.tokens[self.check_revisions([revision])[0]]

    def check_revisions(self, revisions: Sequence[str] | None) -> list[str]:
        """The revisions asked for, in the order of training; all of them for None."""
        if isinstance(revisions, str):
            raise ValueError(f"revisions={revisions!r} is one string; give a list: [{revisions!r}].")
        revisions = list(self.revisions if revisions is None else revisions)
        if unknown := [r for r in revisions if r not in self.tokens]:
            hint = nearest(unknown[0], self.revisions)
            known = f"It has {len(self.revisions)}: {abridged(self.revisions)}."
            raise ValueError(f"The suite {self.name!r} has no revision {unknown[0]!r}.{hint} {known}")
        if not revisions or len(set(revisions)) < len(revisions):
            raise ValueError(f"Give at least one revision, and each once; these are {revisions}.")
        if (ordered := [r for r in self.revisions if r in revisions]) != revisions:
            raise ValueError(f"Give revisions in the order of training: {ordered}.")
        return revisions

    @cached_property
    def config(self) -> Any:
        """The transformers configuration: of a checkpoint that is here, else made of the preset's facts."""
        from transformers import AutoConfig

        if self.is_local:
            shared = self.source / "config.json"
            return AutoConfig.from_pretrained(shared if shared.is_file() else self.source / self.revisions[-1])
        here = hub.find(self.source, self.revisions, "config.json")
        if here is None and self.preset:
            facts = dict(self.preset.config)
            return AutoConfig.for_model(facts.pop("model_type"), **facts)
        return AutoConfig.from_pretrained(here or hub.fetch(self.source, self.revisions[-1], weights=False))

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        folder = self.source
        if not self.is_local:  # all revisions share it: one that is here will do
            here = hub.find(self.source, self.revisions, *hub.TOKENIZER_FILES)
            folder = here or hub.fetch(self.source, self.revisions[-1], self.revisions, weights=False)
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        tokenizer.padding_side = "right"
        return tokenizer

    def folder(self, revision: str) -> Path:
        """Folder with the files of a revision; those of a hub repository are downloaded first where they are missing.

        Raises:
            ValueError: the suite has no such revision.
            FileNotFoundError, ConnectionError, PermissionError, OSError: see `hub.fetch`.
        """
        self.check_revisions([revision])
        return self.source / revision if self.is_local else hub.fetch(self.source, revision, self.revisions)

    def describe(self) -> pd.DataFrame:
        """One row a checkpoint, in the order of training; needs no network.

        Returns:
            Table: revision; step; tokens (seen in pretraining); approximate (whether that count is rounded or
            estimated; `suite.preset.approximate` says how); download_mb (what is still to be fetched, about, in 10^6
            bytes; NaN where it is not known); cached ("yes", "in part" or "no").
        """
        table = pd.DataFrame({"revision": self.revisions, "step": map(step_of, self.revisions)})
        table["tokens"] = table["revision"].map(self.tokens)
        table["approximate"] = bool(self.preset and self.preset.approximate) | table["revision"].str.contains("tokens")
        here = ["yes" if self.is_local else hub.cached(self.source, r) for r in self.revisions]
        size = self.preset.file_bytes / 1e6 if self.preset else float("nan")
        table["download_mb"] = [0.0 if h == "yes" else size for h in here]
        return table.assign(cached=here).astype({"step": "Int64", "tokens": "Int64"})

    @property
    def crosscoder_folder(self) -> Path:
        """Folder of the crosscoder that is shipped with the suite, trained on its default triplet and layer."""
        folder = Path(self.source) / "crosscoder"
        if not (self.is_local and folder.is_dir()):
            raise FileNotFoundError(f"No crosscoder is shipped with {self.name!r}: train one first (notebook 03).")
        return folder

    @property
    def task_names(self) -> list[str]:
        """Tasks that need no further file: the suite's own, or the paper's four BLiMP sets."""
        return [task["name"] for task in self.meta.get("tasks", [])] or [f"blimp/{name}" for name in BLIMP_AGREEMENT]

    def pairs(
        self, task: str, split: str = "test", path: File = None, n: int | None = None, continuation: str = "first"
    ) -> tasks.MinimalPairs:
        """Minimal pairs of a task.

        Args:
            task: one of `task_names`, or "blimp/<set>", "clams/<language>/<construction>", "multiblimp/<language>",
                "multiblimp/<language>/<phenomenon>" (see `ctt_helpers.published`).
            split: "find" (to find features with) or "test" (to test them on); no prefix is in both.
            path: for published sets: a folder with their files, or a file; None: from where they are published.
            n: at most so many, the first ones.
            continuation: "first" or "whole"; see `tasks.make_pairs`.
        """
        own = {t["name"]: t["file"] for t in self.meta.get("tasks", [])}
        if task in own:
            rows = [r for r in published.read_records(Path(self.source) / own[task]) if r["split"] == split]
            if not rows:
                tasks.in_split("", split)  # names the splits that exist
        elif task.split("/")[0] in published.FORMS:
            rows = [r for r in published.published_rows(task, path) if tasks.in_split(r["prefix"], split)]
        else:
            known = self.task_names
            raise ValueError(f"There is no task {task!r}.{closest(task, known)} There are: {', '.join(known)}.")
        pairs = tasks.make_pairs(rows, self.tokenizer, name=task, continuation=continuation)
        return pairs if n is None else pairs[:n]

    def text(
        self, n_tokens: int, split: str = "train", seed: int = 0, length: int | None = None, path: File = None
    ) -> Int[Tensor, "sequences length"]:
        """Token ids of running text, at least `n_tokens` in all, every sequence beginning with the end-of-text token.

        Args:
            n_tokens: how many tokens are wanted.
            split: "train" or "validation"; they share no document.
            seed: which sample.
            length: tokens a sequence; None: the suite's context (at most 1024).
            path: a name of `text.sources()` ("pile", "mc4/fr" ...) or a file (.txt, .jsonl, .parquet, packed or not);
                None: the suite's own text, or for a hub's model the text that the paper took for it.
        """
        choose("split", split, ("train", "validation"))
        length = length or min(1024, self.meta.get("context_length", 1024))
        n_rows = -(-n_tokens // length)
        if path is None and "context_length" in self.meta:
            from ctt_helpers.toy import grammar

            return torch.as_tensor(grammar.sample_rows(n_rows, length=length, seed=seed, split=split))
        from ctt_helpers.text import default_source, documents, pack

        source = default_source(str(self.source)) if path is None else path
        return pack(documents(source, split, seed), self.tokenizer, n_rows, length)

    def checkpoints(
        self,
        revisions: Sequence[str] | None = None,
        layer: int | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        part: str = "all",
    ) -> Checkpoints:
        """Checkpoints to work on, loaded when used.

        Args:
            revisions: which; None: every one.
            layer: 0-based index of the block whose output is read; None: the suite's.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            dtype: "auto": bfloat16 or float16 on a GPU, float32 elsewhere and for the embedded suite, whose models
                are so small that half precision gains nothing; or "float32", "bfloat16", "float16", "float64".
            part: "all", or "below": keep only the embeddings and the blocks up to `layer`, enough to read
                activations, not for accuracies or effects.
        """
        layer, device = self.default_layer if layer is None else layer, str(pick_device(device))
        dtype = torch.float32 if dtype == "auto" and self.meta else pick_dtype(dtype, device)
        return Checkpoints(self, self.check_revisions(revisions), layer, device, dtype, part)


def load_suite(name: str | Path, revisions: Sequence[str] | None = None, tokens_per_step: int | None = None) -> Suite:
    """The embedded suite, a published one, a local folder of checkpoints, or a hub repository with revisions.

    Args:
        name: "tiny"; a preset ("pythia-160m" and its other sizes, "olmo-1b", "olmo2-1b", "olmo2-7b", "bloom-1b1", or
            its repository's name); "org/name" of the hub with `revisions`; or a folder that holds one subfolder a
            checkpoint (and config and tokenizer beside them).
        revisions: names of the checkpoints in the order of training; None: those the suite is known to have.
        tokens_per_step: to tell tokens seen from names like "step512"; names like "...tokens2B" tell it themselves.

    Raises:
        ValueError: nothing is known by that name.
        FileNotFoundError: the folder holds no checkpoint; or of a repository without a preset, see `hub.fetch`.
    """
    preset = next((p for p in PRESETS.values() if name in (p.name, p.repo)), None)
    if name == "tiny":
        suite = _folder_suite(published.data_folder("tiny"), "tiny", revisions, tokens_per_step)
    elif Path(name).is_dir():
        suite = _folder_suite(Path(name).resolve(), Path(name).resolve().name, revisions, tokens_per_step)
    elif preset:
        everything = list(preset.tokens), preset.tokens, preset.layer, preset.triplet
        suite = Suite(preset.name, preset.repo, *everything, preset=preset)
    elif "/" in str(name) and not str(name).startswith((".", "/", "~")):
        if not revisions:
            raise ValueError(f"{name!r}: give revisions=[...] (names of its checkpoints, in the order of training).")
        suite = _plain_suite(str(name), str(name), list(revisions), tokens_per_step)
    else:
        known = ["tiny", *PRESETS]
        raise ValueError(
            f"No suite {str(name)!r}.{closest(str(name), known)} Known: {', '.join(known)}; or give a folder of "
            "checkpoints, or 'org/name' of the hub with revisions=[...]."
        )
    kept = suite.check_revisions(revisions)
    triplet = suite.default_triplet if set(suite.default_triplet) <= set(kept) else kept[-3:]
    return replace(suite, revisions=kept, tokens={r: suite.tokens[r] for r in kept}, default_triplet=triplet)


def _folder_suite(folder: Path, name: str, revisions: Sequence[str] | None, tokens_per_step: int | None) -> Suite:
    if (folder / "suite.json").is_file():
        meta = read_json(folder / "suite.json")
        tokens = {r["revision"]: r["tokens"] for r in meta["revisions"]}
        return Suite(name, folder, list(tokens), tokens, meta["default_layer"], meta["default_triplet"], meta)
    found = {p.parent.name for p in folder.glob("*/*.safetensors")}
    found = list(revisions or sorted(found, key=lambda r: (step_of(r) or 0, r)))
    if not found:
        expected = "one subfolder a revision (step0/, step1000/ ...) with safetensors"
        raise FileNotFoundError(f"{folder} holds no checkpoint: expected {expected}.")
    return _plain_suite(name, folder, found, tokens_per_step)


def _plain_suite(name: str, source: str | Path, revisions: list[str], tokens_per_step: int | None) -> Suite:
    tokens = {r: tokens_of(r, tokens_per_step) for r in revisions}
    suite = Suite(name, source, revisions, tokens, 0, revisions[-3:])
    suite.default_layer = suite.config.num_hidden_layers // 2
    return suite
