"""A crosscoder on the hub: `Crosscoder.push_to_hub`, `Crosscoder.from_pretrained`, and its card.

What is there is what `Crosscoder.save` writes, and a README.md, the model card. The weights carry
their checksum with them, so that a damaged download is found.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctt_helpers.arguments import checked
from ctt_helpers.crosscoder import FILES, Crosscoder
from ctt_helpers.files import expanded, versions
from ctt_helpers.messages import first_line, without_secrets
from ctt_helpers.sources import hub
from ctt_helpers.sources.presets import PRESETS

if TYPE_CHECKING:
    from ctt_helpers.evaluation import Report

CARD = "README.md"
SIGNED = "\n<!-- written by ctt_helpers, sha256 {} -->\n"  # a card's last line
PAPER = (
    "Bayazit, Mueller and Bosselut: [Crosscoding Through Time: Tracking Emergence & Consolidation "
    "of Linguistic Representations Throughout LLM Pretraining](https://arxiv.org/abs/2509.05291), "
    "2025. arXiv:2509.05291"
)
COMMIT = re.compile(r"[0-9a-f]{40}")

# ---- out


def push(
    crosscoder: Crosscoder,
    repo_id: str,
    report: Report | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "A crosscoder",
) -> str:
    """See `Crosscoder.push_to_hub`."""
    from huggingface_hub import HfApi, constants

    _check_name(repo_id)
    text = card(crosscoder, repo_id, report)
    instead = "Nothing was pushed. crosscoder.save(folder) keeps it here."
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(
            f"HF_HUB_OFFLINE forbids the network: unset it (and start Python again) to push to "
            f"{repo_id}. {instead}"
        )
    hub.require_hub(f"{repo_id} on the hub", instead)
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    with _told(repo_id, None, f"Pushing to {repo_id}"), tempfile.TemporaryDirectory() as folder:
        api.create_repo(repo_id, private=private, exist_ok=True)
        files = Path(folder) / "files"
        crosscoder.save(files)
        if _may_write_card(api, repo_id, Path(folder) / "there"):
            (files / CARD).write_text(text, encoding="utf-8")
        else:
            warnings.warn(
                f"{repo_id} has a {CARD} that somebody has written, which is left as it is.",
                stacklevel=4,
            )
        done = api.upload_folder(repo_id=repo_id, folder_path=files, commit_message=message)
    return without_secrets(str(done.commit_url))


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a repository: {first_line(error)}") from error


def _may_write_card(api: Any, repo_id: str, cache: Path) -> bool:
    """Whether there is no card, or one as it was written; an error where the repository holds
    something else than a crosscoder, which would be lost.
    """
    from huggingface_hub import errors

    def there(name: str) -> str:
        try:
            file = api.hf_hub_download(repo_id, name, cache_dir=cache)
        except errors.EntryNotFoundError:
            return ""
        return Path(file).read_text(encoding="utf-8", errors="replace")

    settings, readme = there(FILES[1]), there(CARD)
    if settings:
        try:
            is_ours = json.loads(settings).get("kind") == "crosscoder"
        except (ValueError, AttributeError):
            is_ours = False
        if not is_ours:
            raise FileExistsError(
                f"{repo_id} holds a {FILES[1]} that is no crosscoder's. Nothing was pushed: give "
                "another repository."
            )
    return not readme or readme == _signed(readme[: readme.rfind("\n", 0, -1)])


# ---- in


def folder_of(
    name: str | Path,
    files: Sequence[str],
    revision: str | None = None,
    token: str | None = None,
    force_download: bool = False,
) -> Path:
    """The folder that holds some files: a folder of this machine, or of the hub's cache.

    A branch of the hub may have moved on, so the hub is asked; where it does not answer, what is
    cached is taken, and that is told. A commit, and with HF_HUB_OFFLINE anything that is cached, is
    taken without a network.

    Args:
        name: a folder, or a repository "org/name".
        files: names, or patterns of names; the first must be there.
        revision: branch, tag or commit of the repository; None: its main branch.
        token: of an account that may read it; None: that of `hf auth login` or HF_TOKEN.
        force_download: fetch what is cached once more.

    Raises:
        FileNotFoundError: no such folder, repository or revision, or the first file is not there,
            or it is not cached and HF_HUB_OFFLINE forbids the network.
        ConnectionError: the hub does not answer, or the download broke off.
        PermissionError: the repository is gated.
        ValueError: the name is no repository's, or a revision is given for a folder.
    """
    from huggingface_hub import constants, snapshot_download

    folder = expanded(name)
    if folder.exists():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} goes with a repository of the hub, and {folder} is a "
                "folder of this machine."
            )
        return _holding(folder, files[0], f"{folder}")
    repo, at = str(name), f"{name} at {revision or 'main'}"
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise FileNotFoundError(
            f"There is no folder {folder}. Give a folder, or a repository of the hub as 'org/name'."
        )
    _check_name(repo)
    cached = hub.snapshot(repo, revision or "main")
    whole = cached is not None and (cached / files[0]).is_file()
    settled = constants.HF_HUB_OFFLINE or COMMIT.fullmatch(revision or "")
    if whole and settled and not force_download:
        return cached
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"{at} is not in the cache, and HF_HUB_OFFLINE forbids the network: unset it (and "
            "start Python again) to download, or give a folder."
        )
    try:
        hub.require_hub(at, "Give a folder, or try again with a network.")
    except ConnectionError as error:
        if not whole or force_download:
            raise
        warnings.warn(
            f"{first_line(error)} {at} is taken from the cache, as it was when it was fetched.",
            stacklevel=5,
        )
        return cached
    with _told(repo, revision, f"The download of {at}"):
        fetched = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(files),
            token=token,
            force_download=force_download,
            endpoint=constants.ENDPOINT,
        )
    return _holding(Path(fetched), files[0], at)


def _holding(folder: Path, file: str, at: str) -> Path:
    if folder.is_file():
        raise FileNotFoundError(f"{at} is a file: give the folder that holds it.")
    if not (folder / file).is_file():
        raise FileNotFoundError(f"{at} holds no {file}: what is looked for is not there.")
    return folder


def pull(
    name: str | Path, revision: str | None, token: str | None, force_download: bool
) -> Crosscoder:
    """See `Crosscoder.from_pretrained`."""
    folder = folder_of(name, FILES[::-1], revision, token, force_download)
    try:
        return Crosscoder.load(folder)
    except (ValueError, FileNotFoundError) as error:
        if other := _other_format(folder):
            raise ValueError(f"{name} holds {other}") from error
        if expanded(name).exists():
            raise
        again = f"Crosscoder.from_pretrained({str(name)!r}, force_download=True) fetches it again."
        raise type(error)(f"{error} {again}") from error


def _other_format(folder: Path) -> str:
    """What else than a crosscoder of ours a folder holds, and how to read it."""
    try:
        settings = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return ""
    if isinstance(settings, dict) and {"activation_dim", "dict_size"} <= set(settings):
        return (
            "a dictionary of the library dictionary_learning: "
            "ctt.formats.from_dictionary_learning(...) reads its crosscoders."
        )
    return ""


@contextmanager
def _told(repo: str, revision: str | None, what: str) -> Iterator[None]:
    """Errors of the hub's client as plain ones that say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as error:  # whatever the client's HTTP library raises
        # the client wraps some in errors that say less
        inner = error.__cause__ if isinstance(error.__cause__, errors.HfHubHTTPError) else error
        is_ours = isinstance(error, FileExistsError)
        if is_ours or (isinstance(inner, OSError) and inner.errno):  # a disk's error says enough
            raise
        raise _plain_error(inner, repo, revision, what) from error


def _plain_error(error: BaseException, repo: str, revision: str | None, what: str) -> Exception:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"{hub.address()}/{repo}"
        return PermissionError(
            f"{repo} is gated: accept its terms at {page} in a browser, {hub.LOG_IN}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{repo} has no revision {revision!r}.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"The hub has no repository {repo!r} that can be seen here: look at the spelling; if "
            f"it is private, {hub.LOG_IN}."
        )
    if isinstance(error, errors.HfHubHTTPError):
        code = getattr(error.response, "status_code", "an error")
        if code in (401, 403):
            return PermissionError(
                f"{what} is not allowed (the hub answers {code}): take an account that may do "
                f"this, {hub.LOG_IN} with a token of it."
            )
        hint = "too many requests: wait" if code == 429 else "try again later"
        return ConnectionError(f"{what} failed: the hub answers {code} ({hint}).")
    return ConnectionError(
        f"{what} broke off ({type(error).__name__}: {first_line(error)}) Run again to go on."
    )


# ---- the card


@checked
def card(crosscoder: Crosscoder, repo_id: str, report: Report | None = None) -> str:
    """The model card of a crosscoder in Markdown: what is known, and nothing else.

    Args:
        crosscoder: of which the card is.
        repo_id: where it will be, for how to load it.
        report: from `ctt.evaluate`, for its figures.

    Raises:
        ValueError: the report is another crosscoder's.
    """
    _check_report(crosscoder, report)
    source = crosscoder.source
    parts = [_header(source), f"# {_plain(repo_id.rpartition('/')[2])}"]
    where = f" of {_plain(source['suite'])}" if source.get("suite") else ""
    parts.append(
        f"A sparse crosscoder over {crosscoder.n_checkpoints} checkpoints{where}: one dictionary "
        f"of {crosscoder.n_latents:,} latents, with a decoder for each checkpoint. It is read and "
        "used with `ctt_helpers`, the package of the tutorial to Crosscoding Through Time."
    )
    load = (
        "```python\nimport ctt_helpers as ctt\n\n"
        f"crosscoder = ctt.Crosscoder.from_pretrained({json.dumps(repo_id)})\n```"
    )
    parts.append(
        f"## How to load it\n\n{load}\n\nIts weights are checked against their checksum. It takes "
        "raw activations of the checkpoints below, in their order, `[tokens, checkpoints, d_model]`"
        ", and `ctt.evaluate` and `ctt.indirect_effects` compare the weights of the checkpoints "
        "with their fingerprints."
    )
    parts.append(f"## The checkpoints\n\n{_checkpoints(crosscoder, report)}")
    about = _about_source(source)
    if about:
        parts.append(_table(["Trained on", ""], about))
    parts.append(f"## Sizes and settings\n\n{_table(['Setting', 'Value'], _settings(crosscoder))}")
    if report is not None:
        parts.append(f"## Figures\n\n{_figures(crosscoder, report)}")
    parts.append(f"## Versions\n\n{_table(['Package', 'Version'], versions().items())}")
    parts.append(f"## The paper\n\n{PAPER}")
    return _signed("\n\n".join(parts) + "\n")


def _signed(text: str) -> str:
    """A card with its checksum, by which a change of somebody's is known, and kept."""
    return text + SIGNED.format(hashlib.sha256(text.encode()).hexdigest())


def _check_report(crosscoder: Crosscoder, report: Report | None) -> None:
    if report is None:
        return
    sizes = len(report.names), len(report.frequency)
    if sizes != (crosscoder.n_checkpoints, crosscoder.n_latents):
        raise ValueError(
            f"The report is of {sizes[0]} checkpoints and {sizes[1]} latents, this crosscoder has "
            f"{crosscoder.n_checkpoints} and {crosscoder.n_latents}: give ctt.evaluate(crosscoder, "
            "ckpts, text) of this one."
        )
    named = crosscoder.source.get("revisions")
    if named and list(named) != list(report.names):
        raise ValueError(
            f"The report is of the checkpoints {report.names}, and this crosscoder was trained on "
            f"{named}."
        )


def _header(source: dict[str, Any]) -> str:
    """What the hub reads: YAML between dashes."""
    from huggingface_hub import ModelCardData

    tags = ["crosscoder", "sparse-autoencoder", "interpretability", "arxiv:2509.05291"]
    preset = PRESETS.get(source.get("suite") or "")
    data = ModelCardData(
        library_name="ctt-helpers", tags=tags, base_model=preset.repo if preset else None
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _checkpoints(crosscoder: Crosscoder, report: Report | None) -> str:
    n, source = crosscoder.n_checkpoints, crosscoder.source
    names = source.get("revisions") or (report.names if report else None)
    columns: dict[str, Iterable[Any]] = {"": range(1, n + 1)}
    if names:
        columns["Checkpoint"] = names
    if source.get("fingerprints"):
        columns["Fingerprint of its weights"] = source["fingerprints"]
    columns["Scale"] = [f"{scale:.6g}" for scale in crosscoder.scales.tolist()]
    return _table(list(columns), zip(*columns.values(), strict=True))


def _about_source(source: dict[str, Any]) -> list[tuple[str, Any]]:
    """What else is known of where it comes from, one row each."""
    titles = {
        "suite": "Suite",
        "layer": "Layer (its output)",
        "dtype": "Activations in",
        "text": "Fingerprint of the text",
        "begins_with": "First token of each sequence",
    }
    shown = [(titles[name], source[name]) for name in titles if source.get(name) is not None]
    others = [name for name in source if name not in (*titles, "revisions", "fingerprints")]
    return shown + [(name, source[name]) for name in others if source[name] is not None]


def _settings(crosscoder: Crosscoder) -> list[tuple[str, Any]]:
    rows = [
        ("Checkpoints", crosscoder.n_checkpoints),
        ("Width (d_model)", crosscoder.d_model),
        ("Latents", crosscoder.n_latents),
        ("Sparsity", crosscoder.sparsity),
    ]
    if crosscoder.k is not None:
        rows += [("k", crosscoder.k), ("Threshold", f"{float(crosscoder.threshold):.6g}")]
    if crosscoder.scaled_norms is not None:
        rows.append(("Scales", "folded into the weights"))
    dtype = str(crosscoder.W_enc.dtype).removeprefix("torch.")
    return [*rows, ("Weights in", dtype), ("Seed", crosscoder.seed)]


def _figures(crosscoder: Crosscoder, report: Report) -> str:
    frame = report.to_frame()
    titles = {
        "checkpoint": "Checkpoint",
        "explained_variance": "Explained variance",
        "ce_clean": "Cross-entropy (nats)",
        "ce_zero": "with zeros",
        "dce": "rise with the reconstruction",
        "ce_recovered": "share recovered",
    }
    rows = [[_number(value) for value in row] for row in frame[list(titles)].itertuples(False)]
    return (
        f"On {report.dead_tokens:,} tokens of held-out text: {report.l0:.4g} of "
        f"{crosscoder.n_latents:,} latents are active at a token on average, and "
        f"{report.dead:.2%} of them at none.\n\n{_table(list(titles.values()), rows)}\n\n"
        "Cross-entropies are those of the model as it is, with zeros in place of the layer's "
        "output, and with the reconstruction in its place."
    )


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if math.isfinite(value) else "none: too little is at stake"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(value: Any) -> str:
    """A value on one line, with nothing in it that Markdown or HTML would take for its own.

    An address becomes no link, nor a name with an @ a person who is told.
    """
    text = " ".join(without_secrets(str(value)).split()).replace("&", "&amp;")
    # within a word an underscore is one
    text = re.sub(r"([\\|<>`\[\]*~$!#]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    return re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)", r"\\", text).replace("@", "&#64;")
