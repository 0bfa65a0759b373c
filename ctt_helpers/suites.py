"""Which checkpoints of a pretraining run exist, how many tokens each has seen, and how to load them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ctt_helpers import tasks
from ctt_helpers.checkpoints import Checkpoints
from ctt_helpers.runtime import abridged, closest, pick_device, read_json

PYTHIA_LAYERS = {
    "14m": 6, "31m": 6, "70m": 6, "160m": 12, "410m": 24, "1b": 16, "1.4b": 24, "2.8b": 32, "6.9b": 32, "12b": 36,
}  # fmt: skip
# 154 checkpoints: step 0, the powers of two to 512, then every thousand (Biderman et al. 2023)
PYTHIA_REVISIONS = [f"step{s}" for s in (0, *(2**i for i in range(10)), *range(1000, 143_001, 1000))]
PYTHIA_TOKENS_PER_STEP = 1024 * 2048
BLIMP_AGREEMENT = (
    "distractor_agreement_relational_noun",
    "distractor_agreement_relative_clause",
    "irregular_plural_subject_verb_agreement_1",
    "regular_plural_subject_verb_agreement_1",
)


def tiny_folder() -> Path:
    """The embedded suite's folder: in the installed package, or in `data/tiny` of a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_data" / "tiny", here.parent / "data" / "tiny"):
        if (folder / "suite.json").is_file():
            return folder
    raise FileNotFoundError(
        "The embedded suite is not there (looked for data/tiny/suite.json). Make it anew with: "
        "python -m ctt_helpers.toy.pretrain --out data/tiny"
    )


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
    """

    name: str
    source: str | Path
    revisions: list[str]
    tokens: dict[str, int | None]
    default_layer: int
    default_triplet: list[str]
    meta: dict[str, Any] = field(default_factory=dict, repr=False)

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
        for revision in revisions:
            if revision not in self.tokens:
                raise ValueError(
                    f"The suite {self.name!r} has no revision {revision!r}.{closest(revision, self.revisions)} "
                    f"It has {len(self.revisions)}: {abridged(self.revisions)}."
                )
        if not revisions or len(set(revisions)) < len(revisions):
            raise ValueError(f"Give at least one revision, and each once; these are {revisions}.")
        order = {r: i for i, r in enumerate(self.revisions)}
        if sorted(revisions, key=order.get) != revisions:
            raise ValueError(f"Give revisions in the order of training: {sorted(revisions, key=order.get)}.")
        return revisions

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        revision = {} if self.is_local else {"revision": self.revisions[-1]}
        tokenizer = AutoTokenizer.from_pretrained(str(self.source), **revision)
        tokenizer.padding_side = "right"
        return tokenizer

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
        own = [task["name"] for task in self.meta.get("tasks", [])]
        return own or [f"blimp/{name}" for name in BLIMP_AGREEMENT]

    def pairs(self, task: str, split: str = "test", path: str | Path | None = None, n: int | None = None):
        """Minimal pairs of a task, as `tasks.MinimalPairs`.

        Args:
            task: one of `task_names`, or "blimp/<set>", "clams/<language>/<file>".
            split: "find" (to find features with) or "test" (to test them on); no prefix is in both.
            path: for BLiMP and CLAMS: the folder or file with the published data.
            n: at most so many, the first ones.
        """
        own = {t["name"]: t["file"] for t in self.meta.get("tasks", [])}
        if task in own:
            rows = [r for r in tasks.read_tiny(Path(self.source) / own[task]) if r["split"] == split]
            if not rows:
                tasks.in_split("", split)  # names the splits that exist
        elif task.split("/")[0] in ("blimp", "clams"):
            rows = [r for r in _published_rows(task, path) if tasks.in_split(r["prefix"], split)]
        else:
            known = self.task_names
            raise ValueError(f"There is no task {task!r}.{closest(task, known)} There are: {', '.join(known)}.")
        pairs = tasks.make_pairs(rows, self.tokenizer, name=task)
        return pairs if n is None else pairs[:n]

    def text(
        self,
        n_tokens: int,
        split: str = "train",
        seed: int = 0,
        length: int | None = None,
        path: str | Path | None = None,
    ) -> Int[Tensor, "sequences length"]:
        """Token ids of running text, at least `n_tokens` in all, every sequence beginning with the end-of-text token.

        Args:
            n_tokens: how many tokens are wanted.
            split: "train" or "validation"; they share no document.
            seed: which sample.
            length: tokens a sequence; None: the suite's context (at most 1024).
            path: a .txt (a document a line) or .jsonl (key "text") file to read instead of the suite's own text.
        """
        if split not in ("train", "validation"):
            raise ValueError(f"split={split!r} does not exist; take 'train' or 'validation'.")
        length = length or min(1024, self.meta.get("context_length", 1024))
        n_rows = -(-n_tokens // length)
        if path is None and "context_length" in self.meta:
            from ctt_helpers.toy import grammar

            return torch.as_tensor(grammar.sample_rows(n_rows, length=length, seed=seed, split=split))
        from ctt_helpers.text import documents, pack

        return pack(documents(path, split, seed), self.tokenizer, n_rows, length)

    def checkpoints(
        self,
        revisions: Sequence[str] | None = None,
        layer: int | None = None,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> Checkpoints:
        """Checkpoints to work on, loaded when used. Defaults: every revision, the suite's layer, float32."""
        layer = self.default_layer if layer is None else layer
        return Checkpoints(self, self.check_revisions(revisions), layer, pick_device(device), dtype)


def load_suite(name: str | Path, revisions: Sequence[str] | None = None, tokens_per_step: int | None = None) -> Suite:
    """The embedded suite, a local folder of checkpoints, or a hub repository with revisions.

    Args:
        name: "tiny"; "pythia-160m" (and its other sizes); "org/name" of the hub with `revisions`; or a folder that
            holds one subfolder a checkpoint (and config and tokenizer beside them).
        revisions: names of the checkpoints in the order of training; None: those the suite is known to have.
        tokens_per_step: to tell tokens seen from names like "step512"; names like "...tokens2B" tell it themselves.

    Raises:
        ValueError: nothing is known by that name.
        FileNotFoundError: the folder holds no checkpoint.
    """
    if name == "tiny":
        return _folder_suite(tiny_folder(), "tiny", revisions, tokens_per_step)
    if Path(name).is_dir():
        return _folder_suite(Path(name).resolve(), Path(name).resolve().name, revisions, tokens_per_step)
    short = str(name).removeprefix("EleutherAI/")
    if short.startswith("pythia-") and short.removeprefix("pythia-") in PYTHIA_LAYERS:
        found, layers = list(revisions or PYTHIA_REVISIONS), PYTHIA_LAYERS[short.removeprefix("pythia-")]
        triplet = _triplet(["step512", "step2000", "step143000"], found)
        tokens = {r: _tokens(r, PYTHIA_TOKENS_PER_STEP) for r in found}
        return Suite(short, f"EleutherAI/{short}", found, tokens, layers // 2, triplet)
    if "/" in str(name) and not str(name).startswith((".", "/", "~")):
        if not revisions:
            raise ValueError(f"{name!r}: give revisions=[...] (names of its checkpoints, in the order of training).")
        from transformers import AutoConfig

        layers = AutoConfig.from_pretrained(str(name), revision=revisions[-1]).num_hidden_layers
        tokens = {r: _tokens(r, tokens_per_step) for r in revisions}
        return Suite(str(name), str(name), list(revisions), tokens, layers // 2, list(revisions)[-3:])
    known = ["tiny", *(f"pythia-{size}" for size in PYTHIA_LAYERS)]
    raise ValueError(
        f"No suite {str(name)!r}.{closest(str(name), known)} Known: {', '.join(known)}; or give a folder of "
        "checkpoints, or 'org/name' of the hub with revisions=[...]."
    )


def _folder_suite(folder: Path, name: str, revisions: Sequence[str] | None, tokens_per_step: int | None) -> Suite:
    meta = read_json(folder / "suite.json") if (folder / "suite.json").is_file() else {}
    if meta:
        tokens = {r["revision"]: r["tokens"] for r in meta["revisions"]}
        suite = Suite(name, folder, list(tokens), tokens, meta["default_layer"], meta["default_triplet"], meta)
        return suite if revisions is None else suite_subset(suite, revisions)
    found = sorted((p.parent.name for p in folder.glob("*/*.safetensors")), key=lambda r: (_step(r) or 0, r))
    found = list(revisions or dict.fromkeys(found))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint: expected one subfolder a revision (step0/, step1000/ ...) with safetensors."
        )
    from transformers import AutoConfig

    shared = folder / "config.json"
    layers = AutoConfig.from_pretrained(shared if shared.is_file() else folder / found[-1]).num_hidden_layers
    return Suite(name, folder, found, {r: _tokens(r, tokens_per_step) for r in found}, layers // 2, found[-3:])


def suite_subset(suite: Suite, revisions: Sequence[str]) -> Suite:
    """The same suite with fewer revisions."""
    kept = suite.check_revisions(revisions)
    triplet = _triplet(suite.default_triplet, kept)
    tokens = {r: suite.tokens[r] for r in kept}
    return Suite(suite.name, suite.source, kept, tokens, suite.default_layer, triplet, suite.meta)


def _published_rows(task: str, path: str | Path | None) -> list[dict[str, Any]]:
    kind, *rest = task.split("/")
    ending, reader = (".jsonl", tasks.read_blimp) if kind == "blimp" else (".txt", tasks.read_clams)
    if path is None:
        raise ValueError(f"{task!r} needs path=: the folder (or file) with the published {kind.upper()} data.")
    path = Path(path)
    names = [path, *(path / p for p in (f"{'/'.join(rest)}{ending}", f"{rest[-1]}{ending}"))]
    if len(rest) == 2:
        names.append(path / f"{rest[0]}_evalset" / f"{rest[1]}{ending}")  # as CLAMS is published
    for file in names:
        if file.is_file():
            return reader(file)
    raise FileNotFoundError(f"{task!r}: no file {' or '.join(str(n) for n in names[1:])}.")


def _triplet(preferred: list[str], there: list[str]) -> list[str]:
    return preferred if set(preferred) <= set(there) else there[-3:]


def _step(revision: str) -> int | None:
    match = re.search(r"step(\d+)", revision)
    return int(match.group(1)) if match else None


def _tokens(revision: str, tokens_per_step: int | None) -> int | None:
    """Tokens seen: from the name where it says so ("...tokens2B"), else steps times tokens a step."""
    if match := re.search(r"tokens(\d+)B", revision):
        return int(match.group(1)) * 10**9
    step = _step(revision)
    return step * tokens_per_step if step is not None and tokens_per_step else None
