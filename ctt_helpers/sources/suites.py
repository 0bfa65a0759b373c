"""Which checkpoints of a pretraining run exist, how many tokens each has seen, how to load them."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from ctt_helpers.arguments import checked
from ctt_helpers.files import expanded, inside, read_json, verified
from ctt_helpers.hooks import pick_device
from ctt_helpers.messages import abridged, choose, closest, first_line, whole_number
from ctt_helpers.pairs import MinimalPairs, in_split, make_pairs
from ctt_helpers.sources import hub, published
from ctt_helpers.sources.checkpoints import Checkpoints
from ctt_helpers.sources.machine import pick_dtype
from ctt_helpers.sources.presets import BLIMP_AGREEMENT, PRESETS, Preset
from ctt_helpers.sources.revisions import in_training_order, nearest, step_of, tokens_of

File = str | Path | None
LONGEST_ROW = 1024  # tokens of a sequence of text, unless another length is asked for


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
        trust_remote_code: whether code that comes with the weights may be run.
    """

    name: str
    source: str | Path
    revisions: list[str]
    tokens: dict[str, int | None]
    default_layer: int
    default_triplet: list[str]
    meta: dict[str, Any] = field(default_factory=dict, repr=False)
    preset: Preset | None = field(default=None, repr=False)
    trust_remote_code: bool = False

    def __repr__(self) -> str:
        listed = abridged(self.revisions, 6)
        return f"Suite({self.name!r}: {len(self.revisions)} checkpoints, {listed})"

    @property
    def is_local(self) -> bool:
        return isinstance(self.source, Path)

    @checked
    def tokens_seen(self, revision: str) -> int | None:
        """Tokens of pretraining behind a revision, exact; None where it is not known."""
        return self.tokens[self.check_revisions([revision])[0]]

    @checked
    def check_revisions(self, revisions: Sequence[str] | None) -> list[str]:
        """The revisions asked for, in the order of training; all of them for None."""
        if isinstance(revisions, str):
            raise ValueError(
                f"revisions={revisions!r} is one string; give a list: [{revisions!r}]."
            )
        revisions = list(self.revisions if revisions is None else revisions)
        if unknown := [revision for revision in revisions if revision not in self.tokens]:
            raise ValueError(
                f"The suite {self.name!r} has no revision {unknown[0]!r}."
                f"{nearest(str(unknown[0]), self.revisions)} It has {len(self.revisions)}: "
                f"{abridged(self.revisions)}."
            )
        if not revisions or len(set(revisions)) < len(revisions):
            raise ValueError(f"Give at least one revision, and each once; these are {revisions}.")
        ordered = [revision for revision in self.revisions if revision in revisions]
        if ordered != revisions:
            raise ValueError(f"Give revisions in the order of training: {ordered}.")
        return revisions

    # ---- its files

    @checked
    def local_folder(self, revision: str) -> Path | None:
        """Folder with the files of a revision that are here, complete or not; None if none are."""
        if self.is_local:
            return self.source / revision
        return hub.snapshot(self.source, revision)

    @checked
    def folder(self, revision: str) -> Path:
        """Folder with the files of a revision; those missing of a hub repository are fetched first.

        Raises:
            ValueError: the suite has no such revision.
            FileNotFoundError, ConnectionError, PermissionError, OSError: see `hub.fetch`.
        """
        self.check_revisions([revision])
        if self.is_local:
            return self.source / revision
        return hub.fetch(self.source, revision, self.revisions)

    def _own(self, *names: str) -> Path | None:
        """The folder of a local suite that has one of these files: its own, or a checkpoint's.

        Of checkpoints, the last one's. The file is compared with SHA256SUMS, where there is one.
        """
        for folder in (self.source, *(self.source / r for r in reversed(self.revisions))):
            found = [name for name in names if (folder / name).is_file()]
            for name in found:
                verified(self.source, (folder / name).relative_to(self.source).as_posix())
            if found:
                return folder
        return None

    @cached_property
    def config(self) -> Any:
        """The transformers configuration: of a checkpoint that is here, else as the preset says."""
        from transformers import AutoConfig

        if self.is_local:
            folder = self._own("config.json")
            if folder is None:
                raise FileNotFoundError(
                    f"{self.source} holds no config.json, neither on top nor in a checkpoint."
                )
            return self._read("config.json", folder, AutoConfig)
        here = hub.find(self.source, self.revisions, "config.json")
        if here is None and self.preset:
            facts = dict(self.preset.config)
            return AutoConfig.for_model(facts.pop("model_type"), **facts)
        here = here or hub.fetch(self.source, self.revisions[-1], weights=False)
        return self._read("config.json", here, AutoConfig)

    @checked
    def config_of(self, revision: str) -> Any:
        """A configuration to load one revision with: its own, or the suite's."""
        from transformers import AutoConfig

        folder = self.folder(revision)
        on_top = self.is_local and (self.source / "config.json").is_file()
        if on_top or not (folder / "config.json").is_file():
            return copy.deepcopy(self.config)
        if self.is_local:
            verified(self.source, f"{revision}/config.json")
        return self._read("config.json", folder, AutoConfig)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        if self.is_local:
            folder = self._own(*hub.TOKENIZER_FILES, "tokenizer_config.json")
            if folder is None:
                raise FileNotFoundError(
                    f"{self.source} holds no tokenizer ({' or '.join(hub.TOKENIZER_FILES)}), "
                    "neither on top nor in a checkpoint: put the model's tokenizer there."
                )
        else:  # all revisions share it: one that is here will do
            here = hub.find(self.source, self.revisions, *hub.TOKENIZER_FILES)
            last = self.revisions[-1]
            folder = here or hub.fetch(self.source, last, self.revisions, weights=False)
        tokenizer = self._read("tokenizer", folder, AutoTokenizer)
        tokenizer.padding_side = "right"
        return tokenizer

    def _read(self, what: str, folder: Path, reader: Any) -> Any:
        """What transformers reads from a folder; an error names the folder."""
        if not self.is_local:
            for path in folder.iterdir():
                if path.name in hub.SMALL_FILES:
                    hub.verified(path)
        try:
            found = reader.from_pretrained(
                str(folder),
                trust_remote_code=self.trust_remote_code,
                # without trust, nothing that a file names is fetched from elsewhere
                local_files_only=not self.trust_remote_code,
            )
            if what == "config.json" and not self.trust_remote_code:
                _drop_kernels(found)
            return found
        except ImportError:
            raise
        except Exception as error:  # whatever transformers and the readers of the formats raise
            if "trust_remote_code" in str(error):
                raise ValueError(
                    f"The {what} in {folder} needs Python code that comes with it, which is not "
                    "run. If you have read that code and trust it: load_suite(..., "
                    "trust_remote_code=True)."
                ) from error
            # a reader looks at several of them, and seldom says which one it was
            files = ", ".join(sorted(path.name for path in folder.glob("*.json")))
            raise ValueError(
                f"The {what} in {folder} cannot be read ({type(error).__name__}: "
                f"{first_line(error)}) One of its files ({files}) may be cut short or damaged: "
                "fetch it again."
            ) from error

    def describe(self) -> pd.DataFrame:
        """One row a checkpoint, in the order of training; needs no network.

        Returns:
            Table: revision; step; tokens (seen in pretraining); approximate (whether that count is
            rounded or estimated; `suite.preset.approximate` says how); download_mb (what is still
            to be fetched, about, in 10^6 bytes; NaN where it is not known); cached ("yes", "in
            part" or "no"); note (what others have reported to be wrong with it).
        """
        steps = [step_of(revision) for revision in self.revisions]
        table = pd.DataFrame({"revision": self.revisions, "step": steps})
        table["tokens"] = table["revision"].map(self.tokens)
        rounded = table["revision"].str.contains("tokens")
        table["approximate"] = rounded | bool(self.preset and self.preset.approximate)
        here = ["yes" if self.is_local else hub.cached(self.source, r) for r in self.revisions]
        size = self.preset.file_bytes / 1e6 if self.preset else float("nan")
        table["download_mb"] = [0.0 if cached == "yes" else size for cached in here]
        reported = self.preset.reported if self.preset else {}
        notes = [reported.get(revision, "") for revision in self.revisions]
        table = table.assign(cached=here, note=notes)
        return table.astype({"step": "Int64", "tokens": "Int64"})

    @property
    def crosscoder_folder(self) -> Path:
        """Folder of the crosscoder shipped with the suite: on its default triplet and layer."""
        folder = Path(self.source) / "crosscoder"
        if not (self.is_local and folder.is_dir()):
            raise FileNotFoundError(
                f"No crosscoder is shipped with {self.name!r}: train one first (notebook 03)."
            )
        return folder

    # ---- pairs and text

    @property
    def task_names(self) -> list[str]:
        """Tasks that need no further file: the suite's own, or the paper's four BLiMP sets."""
        own = [task["name"] for task in self.meta.get("tasks", [])]
        return own or [f"blimp/{name}" for name in BLIMP_AGREEMENT]

    @checked
    def check_task(self, task: str) -> None:
        """Raise ValueError unless the suite has this task, or it may be a published one."""
        own = [listed["name"] for listed in self.meta.get("tasks", [])]
        if task not in own and task != "file" and task.split("/")[0] not in published.FORMS:
            known = self.task_names
            raise ValueError(
                f"There is no task {task!r}.{closest(task, known)} There are: {', '.join(known)}."
            )

    @checked
    def pairs(
        self,
        task: str,
        split: str = "test",
        path: File = None,
        n: int | None = None,
        continuation: str = "first",
        seed: int = 0,
        good: str | None = None,
        bad: str | None = None,
        group: str | None = None,
    ) -> MinimalPairs:
        """Minimal pairs of a task, or of a file.

        Args:
            task: one of `task_names`, or "blimp/<set>", "clams/<language>/<construction>",
                "multiblimp/<language>", "multiblimp/<language>/<phenomenon>" (see
                `sources.published`), or "file" with `path`.
            split: "find" (to find features with) or "test" (to test them on); no prefix is in both.
                The embedded suite has "far" beside: other nouns, verbs and structures than "find".
            path: for published sets: a folder with their files, or a file; None: from where they
                are published.
            n: at most so many, drawn over the whole set (`MinimalPairs.sample`).
            continuation: "first" or "whole"; see `pairs.make_pairs`.
            seed: of the draw.
            good, bad, group: of a file: columns of the right and the wrong sentence, and of what
                goes into the table as "group"; None: recognised where they are well known.

        Raises:
            ValueError: no such task or split, or no pair that can be used.
        """
        if n is not None:
            whole_number("n", n)
        self.check_task(task)
        own = {listed["name"]: listed["file"] for listed in self.meta.get("tasks", [])}
        if task in own:
            file = verified(self.source, own[task])
            rows = published.read_records(file)
            choose("split", split, tuple(dict.fromkeys(str(row.get("split")) for row in rows)))
            rows = [row for row in rows if row.get("split") == split]
        else:
            in_split("", split)  # names the splits that exist
            rows = published.published_rows(task, path, good, bad, group)
            # two sentences that differ from the first word on are told apart as wholes
            keys = [row.get("prefix") or row.get("sentence") or "" for row in rows]
            rows = [row for row, key in zip(rows, keys, strict=True) if in_split(key, split)]
        name = f"file/{expanded(path).stem}" if task == "file" else task
        made = make_pairs(rows, self.tokenizer, name=name, continuation=continuation)
        return made if n is None else made.sample(n, seed)

    @checked
    def text(
        self,
        n_tokens: int,
        split: str = "train",
        seed: int = 0,
        length: int | None = None,
        path: File = None,
    ) -> Int[Tensor, "sequences length"]:
        """Token ids of running text, at least `n_tokens` in all; each row begins as pairs do.

        That is with the beginning-of-text token, or the end-of-text token where there is none
        (`pairs.start_token`).

        Args:
            n_tokens: how many tokens are wanted.
            split: "train" or "validation"; they share no document.
            seed: which sample. Two of one file share documents: its order is shuffled, not it.
            length: tokens a sequence; None: the suite's context (at most 1024).
            path: a name of `text.sources()` ("pile", "mc4/fr" ...) or a file (.txt, .jsonl,
                .parquet, packed or not); None: the suite's own text, or for a hub's model the text
                that the paper took for it.
        """
        choose("split", split, ("train", "validation"))
        n_tokens = whole_number("n_tokens", n_tokens)
        longest = self.meta.get("context_length") or getattr(
            self.config.get_text_config(), "max_position_embeddings", LONGEST_ROW
        )
        length = whole_number("length", length or min(LONGEST_ROW, longest), 2)
        n_rows = -(-n_tokens // length)
        if path is None and "context_length" in self.meta:
            from ctt_helpers.toy import grammar

            rows = grammar.sample_rows(n_rows, length=length, seed=seed, split=split)
            return torch.as_tensor(rows)
        from ctt_helpers.sources.text import default_source, documents, pack

        source = default_source(self.config.model_type) if path is None else path
        return pack(documents(source, split, seed), self.tokenizer, n_rows, length)

    # ---- checkpoints

    @checked
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
            revisions: which; None: every one. A warning where others have reported that the
                published files of one are not its own.
            layer: 0-based index of the block whose output is read; None: the suite's.
            device: "auto", "cpu", "cuda", "cuda:1", "mps"; or "ndif": nothing is loaded, and NDIF
                is asked for activations (`hooks.RemoteModel`), for models of the hub that no
                machine at hand holds. Accuracies and effects need the model here.
            dtype: "auto": on a GPU bfloat16, or float16 where it has none (tried on ten sentences
                first, float32 where that does not hold); float32 elsewhere and for the embedded
                suite, whose models are so small that half precision gains nothing. Or "float32",
                "bfloat16", "float16", "float64".
            part: "all", or "below": keep only the embeddings and the blocks up to `layer`, enough
                to read activations, not for accuracies or effects.
        """
        everything = revisions is None
        revisions = self.check_revisions(revisions)
        if self.preset and not everything:
            self._tell_reported(revisions)
        layer = self.default_layer if layer is None else layer
        if device == "ndif":
            return self._on_ndif(revisions, layer)
        device = str(pick_device(device))
        on_trial = False
        if dtype == "auto" and self.meta:
            chosen = torch.float32
        else:
            chosen = pick_dtype(dtype, device)
            on_trial = dtype == "auto" and chosen == torch.float16
        return Checkpoints(
            suite=self,
            revisions=revisions,
            layer=layer,
            device=device,
            dtype=chosen,
            part=part,
            half_on_trial=on_trial,
        )

    def _on_ndif(self, revisions: list[str], layer: int) -> Checkpoints:
        if self.is_local or self.trust_remote_code:
            why = "is in a folder here" if self.is_local else "comes with code of its own"
            raise ValueError(
                f"device='ndif' is for models of the hub, and {self.name!r} {why}: take another "
                "device."
            )
        return Checkpoints(self, revisions, layer, "cpu", part="below", remote=True)

    def _tell_reported(self, revisions: list[str]) -> None:
        notes: dict[str, list[str]] = {}
        for revision in revisions:
            if revision in self.preset.reported:
                notes.setdefault(self.preset.reported[revision], []).append(revision)
        for note, names in notes.items():
            warnings.warn(f"{self.name}, {', '.join(names)}: {note}.", stacklevel=4)


def _drop_kernels(config: Any) -> None:
    """Take no kernel for attention by the configuration's word: it may be code, from the hub."""
    for one in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if getattr(one, "_attn_implementation", None) not in (None, "eager", "sdpa"):
            one._attn_implementation = None


# ---- finding a suite


@checked
def load_suite(
    name: str | Path,
    revisions: Sequence[str] | None = None,
    tokens_per_step: int | None = None,
    trust_remote_code: bool = False,
) -> Suite:
    """The embedded suite, a published one, a local folder of checkpoints, or a hub repository.

    A folder holds one subfolder a checkpoint, with the weights in model.safetensors or
    pytorch_model.bin, whole or in parts; config and tokenizer stand beside the subfolders or in
    them. So do folders that `transformers.Trainer` writes (checkpoint-500 ...). The order of
    training is read from the names; where they do not tell it, give `revisions`.

    Args:
        name: "tiny"; a preset ("pythia-160m" and its other sizes, "olmo-1b", "olmo2-1b",
            "olmo2-7b", "bloom-1b1", or its repository's name); "org/name" of the hub with
            `revisions`; or a folder.
        revisions: names of the checkpoints in the order of training; None: those the suite is known
            to have.
        tokens_per_step: to tell tokens seen from names like "step512"; names like "...tokens2B"
            tell it themselves.
        trust_remote_code: let code that comes with the weights run on this machine.

    Raises:
        ValueError: nothing is known by that name, or names do not tell the order of training.
        FileNotFoundError: there is no such folder, or no checkpoint in it; or of a repository
            without a preset, see `hub.fetch`.
    """
    if tokens_per_step is not None:
        whole_number("tokens_per_step", tokens_per_step)
    preset = next((p for p in PRESETS.values() if name in (p.name, p.repo)), None)
    folder = expanded(name)
    if name == "tiny":
        suite = _folder_suite(published.data_folder("tiny"), "tiny", revisions, tokens_per_step)
    elif folder.is_dir():
        folder = folder.resolve()
        suite = _folder_suite(folder, folder.name, revisions, tokens_per_step)
    elif preset:
        suite = Suite(
            name=preset.name,
            source=preset.repo,
            revisions=list(preset.tokens),
            tokens=preset.tokens,
            default_layer=preset.layer,
            default_triplet=preset.triplet,
            preset=preset,
        )
    elif isinstance(name, Path) or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"There is no folder {folder}.")
    elif name.count("/") == 1:
        if not revisions:
            raise ValueError(
                f"{name!r}: give revisions=[...] (names of its checkpoints, in the order of "
                "training)."
            )
        suite = _plain_suite(name, name, list(revisions), tokens_per_step)
    else:
        known = ["tiny", *PRESETS]
        raise ValueError(
            f"No suite {name!r}.{closest(name, known)} Known: {', '.join(known)}; or give a folder "
            "of checkpoints, or 'org/name' of the hub with revisions=[...]."
        )
    kept = suite.check_revisions(revisions)
    whole = set(suite.default_triplet) <= set(kept)
    suite = replace(
        suite,
        revisions=kept,
        tokens={revision: suite.tokens[revision] for revision in kept},
        default_triplet=suite.default_triplet if whole else kept[-3:],
        trust_remote_code=trust_remote_code,
    )
    if suite.default_layer < 0:  # not known before the configuration is read
        suite.default_layer = suite.config.get_text_config().num_hidden_layers // 2
    return suite


def _folder_suite(
    folder: Path, name: str, revisions: Sequence[str] | None, tokens_per_step: int | None
) -> Suite:
    if (folder / "suite.json").is_file():
        return _described_suite(folder, name)
    found, incomplete = [], []
    for child in sorted(folder.iterdir()):
        if not child.is_dir() or child.name.startswith("."):
            continue
        if hub.weight_files(child):
            found.append(child.name)
        elif any((child / f"{weights}.index.json").is_file() for weights in hub.WEIGHTS):
            incomplete.append(hub.what_is_missing(child))
    if incomplete:
        warnings.warn(
            f"Incomplete checkpoints are left out: {'; '.join(incomplete)}.", stacklevel=4
        )
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint: expected one subfolder a revision (step0/, step1000/ "
            f"...) with {' or '.join(hub.WEIGHTS)}."
        )
    if revisions is None:
        try:
            found = in_training_order(found)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
    else:
        found = [*revisions, *(other for other in found if other not in revisions)]
        if missing := [r for r in revisions if not hub.weight_files(folder / r)]:
            raise FileNotFoundError(
                f"{folder} has no revision {missing[0]!r}: "
                f"{hub.what_is_missing(folder / missing[0])}."
            )
    return _plain_suite(name, folder, found, tokens_per_step)


def _described_suite(folder: Path, name: str) -> Suite:
    """A folder with a suite.json, as the embedded suite has one."""
    meta = read_json(verified(folder, "suite.json"))
    try:
        tokens = {row["revision"]: row["tokens"] for row in meta["revisions"]}
        places = [*tokens, *(task["file"] for task in meta.get("tasks", []))]
        layer, triplet = meta["default_layer"], meta["default_triplet"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'suite.json'} is no description of a suite: {error!r}."
        ) from error
    for place in places:
        inside(folder, place, folder / "suite.json")
    return Suite(name, folder, list(tokens), tokens, layer, triplet, meta)


def _plain_suite(
    name: str, source: str | Path, revisions: list[str], tokens_per_step: int | None
) -> Suite:
    tokens = {revision: tokens_of(revision, tokens_per_step) for revision in revisions}
    if isinstance(source, Path):
        for revision in revisions:
            seen = _seen_by_trainer(source / revision)
            tokens[revision] = seen if tokens[revision] is None else tokens[revision]
    return Suite(
        name=name,
        source=source,
        revisions=revisions,
        tokens=tokens,
        default_layer=-1,
        default_triplet=revisions[-3:],
    )


def _seen_by_trainer(folder: Path) -> int | None:
    """Tokens that `transformers.Trainer` noted beside a checkpoint, where it counted them."""
    state = folder / "trainer_state.json"
    seen = read_json(state).get("num_input_tokens_seen") if state.is_file() else None
    return int(seen) if seen else None
