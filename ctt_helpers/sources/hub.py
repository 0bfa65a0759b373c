"""What of a hub repository is cached here, and fetching the rest, with a plain message if not.

The hub's client and transformers retry for minutes where there is no network. So the cache is
looked at first, without any network; only if something is missing is the hub asked, once, with a
time limit; only if it answers does the client begin. Everything is then loaded from the folder in
the cache.
"""

import errno
import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from ctt_helpers.files import inside, read_json, sha256
from ctt_helpers.messages import abridged, first_line, without_secrets
from ctt_helpers.sources.revisions import nearest

LOG_IN = "then log in here (hf auth login, or the variable HF_TOKEN)"
SECONDS = 2.0  # how long the hub has to answer the first question
SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
# one of them makes a tokenizer
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")
# whole, or in parts with an index beside them
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# ---- what is here


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def snapshot(repo: str, revision: str) -> Path | None:
    """The cache's folder of a revision, complete or not; None where there is none.

    Needs no network.
    """
    from huggingface_hub.file_download import repo_folder_name

    folder = _cache() / repo_folder_name(repo_id=repo, repo_type="model")
    ref = folder / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    found = folder / "snapshots" / commit
    return found if found.is_dir() else None


def find(repo: str, revisions: Sequence[str], *names: str) -> Path | None:
    """The cache's folder of the last revision that has one of the named files; None if none has."""
    for revision in reversed(revisions):
        folder = snapshot(repo, revision)
        if folder and any((folder / name).is_file() for name in names):
            return folder
    return None


def weight_files(folder: Path | None) -> list[Path]:
    """The files that hold the weights; [] unless all are there (a broken download lacks some)."""
    if folder is None:
        return []
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        files = _shards(folder, name)
        if files and all(file.is_file() for file in files):
            return files
    return []


def _shards(folder: Path, name: str) -> list[Path]:
    """The parts that the index of a sharded file lists, there or not."""
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return []
    listed = read_json(verified(index))
    if not isinstance(listed, dict) or not isinstance(listed.get("weight_map"), dict):
        raise ValueError(f"{index} lists no weights. It may be damaged: fetch it again.")
    parts = dict.fromkeys(listed["weight_map"].values())
    return sorted(inside(folder, part, index, links=True) for part in parts)


def what_is_missing(folder: Path) -> str:
    """Why `weight_files` finds nothing in a folder."""
    for name in WEIGHTS:
        missing = [file.name for file in _shards(folder, name) if not file.is_file()]
        if missing:
            return f"{folder} lacks {abridged(missing, 4)}, which its index lists"
    return f"no {' or '.join(WEIGHTS)}, whole or in parts with an index, in {folder}"


def cached(repo: str, revision: str) -> str:
    """Whether a revision's configuration and weights are here: "yes", "in part" or "no".

    Needs no network.
    """
    folder = snapshot(repo, revision)
    if folder is None:
        return "no"
    complete = (folder / "config.json").is_file() and weight_files(folder)
    return "yes" if complete else "in part"


def verified(file: Path) -> Path:
    """A file of the cache, after a comparison with the checksum that the hub gave of it.

    The client names what it keeps after that: SHA-256 of weights, git's SHA-1 of small files. What
    is not so named, there or elsewhere, has nothing to be compared with.

    Raises:
        ValueError: the file is not what came from the hub.
    """
    kept = file.resolve()
    if kept.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", kept.name):
        state = kept.stat()
        if _sum_of(kept, state.st_mtime_ns, state.st_size) != kept.name:
            raise ValueError(
                f"{file} is not what the hub gave: it was cut short or damaged in the cache. "
                f"Delete {kept}, and it is fetched again."
            )
    return file


@lru_cache(maxsize=4096)
def _sum_of(kept: Path, _changed: int, size: int) -> str:
    if len(kept.name) == 64:
        return sha256(kept)
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    digest.update(kept.read_bytes())
    return digest.hexdigest()


# ---- fetching the rest


def fetch(repo: str, revision: str, known: Sequence[str] = (), weights: bool = True) -> Path:
    """Folder with a revision's files; what is missing is downloaded, and how much is told.

    A revision that is cached is taken as it is: published checkpoints do not change, and no network
    is touched.

    Args:
        repo: "org/name".
        revision: branch, tag or commit.
        known: revisions to suggest where this one does not exist.
        weights: False: only the configuration and the tokenizer.

    Raises:
        FileNotFoundError: no such repository or revision, or it is not cached and HF_HUB_OFFLINE
            forbids the network.
        ConnectionError: the hub does not answer, or the download broke off.
        PermissionError: the repository is gated.
        OSError: too little space on the disk.
    """
    folder = snapshot(repo, revision)
    if folder is not None and (folder / "config.json").is_file():
        has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
        if weight_files(folder) if weights else has_tokenizer:
            return folder
    sizes = _ask(repo, revision, known)
    files = _wanted(sizes, weights)
    if weights and not any(file.endswith((".safetensors", ".bin")) for file in files):
        raise FileNotFoundError(
            f"{repo} at {revision} holds no weights that can be read ({' or '.join(WEIGHTS)})."
        )
    missing = [name for name in files if folder is None or not (folder / name).is_file()]
    return _download(repo, revision, files, sum(sizes[name] for name in missing))


def _ask(repo: str, revision: str, known: Sequence[str]) -> dict[str, int]:
    """Sizes in bytes of a revision's files, from the hub; errors say what is wrong."""
    from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata, hf_hub_url

    at = f"{repo} at {revision}"
    partly = cached(repo, revision) == "in part"
    state = f"{at} is {'only in part' if partly else 'not'} in the cache"
    here = [name for name in known if cached(repo, name) == "yes"]
    cache = f"Cached here: {abridged(here)}." if here else "None of its checkpoints is cached here."
    otherwise = f'{cache} The embedded suite, load_suite("tiny"), needs no network.'
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"{state}, and HF_HUB_OFFLINE forbids the network: unset it (and start Python again) "
            f"to download. {otherwise}"
        )
    api = HfApi(endpoint=constants.ENDPOINT)
    url = hf_hub_url(repo, "config.json", revision=revision, endpoint=constants.ENDPOINT)
    try:
        _within(SECONDS, lambda: get_hf_file_metadata(url, timeout=SECONDS))
        found = _within(
            10.0, lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=10.0)
        )
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{repo} is gated: accept its terms at {address()}/{repo} in a browser, {LOG_IN}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(_no_revision(api, repo, revision, known)) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"The hub has no repository {repo!r} that can be seen here: look at the spelling; if "
            f"it is private, {LOG_IN}."
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{at} holds no config.json: it is not a transformers model."
        ) from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", "an error")
        hint = "too many requests: wait, or log in" if code == 429 else "try again later"
        raise ConnectionError(f"The hub answers {code} for {at} ({hint}). {otherwise}") from error
    except Exception as error:  # whatever the client's HTTP library raises: no name, no answer ...
        raise ConnectionError(f"{state}, and {_unreachable(error)} {otherwise}") from error
    return {file.rfilename: file.size or 0 for file in found.siblings or []}


def _no_revision(api: Any, repo: str, revision: str, known: Sequence[str]) -> str:
    with suppress(Exception):  # it only makes the message better
        refs = _within(0.9, lambda: api.list_repo_refs(repo))
        known = [ref.name for ref in (*refs.branches, *refs.tags)] or known
    there = f" It has {len(known)}: {abridged(known)}." if known else ""
    return f"{repo} has no revision {revision!r}.{nearest(revision, known)}{there}"


def require_hub(what: str, otherwise: str) -> None:
    """A quick look whether the hub answers, before its client tries for minutes.

    None where it is told not to ask.

    Raises:
        ConnectionError: no answer within two seconds.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        # any answer will do
        _within(SECONDS, lambda: get_session().head(constants.ENDPOINT, timeout=SECONDS))
    except Exception as error:  # whatever the client's HTTP library raises
        raise ConnectionError(
            f"{what} cannot be read: {_unreachable(error)} {otherwise}"
        ) from error


def address() -> str:
    """Of the hub, to be shown: a mirror's may hold a name and a password."""
    from huggingface_hub import constants

    return without_secrets(constants.ENDPOINT)


def _unreachable(error: Exception) -> str:
    why = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
    if isinstance(error, TimeoutError):
        why = f"no answer within {SECONDS:g} s"
    return (
        f"the hub ({address()}) cannot be reached ({why}). Look at the network and at "
        "HF_ENDPOINT and HTTPS_PROXY if you set them."
    )


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """`call()` on a thread of its own, given up after `seconds`.

    Looking up a host's name has no time limit of its own.
    """
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(timeout=seconds)


def _wanted(names: Sequence[str], weights: bool) -> list[str]:
    """Configuration, tokenizer, and the weights in one format: the first of `WEIGHTS` there is.

    Code that comes along is fetched too; whether it is run is another question.
    """
    wanted = [name for name in names if name in SMALL_FILES or name.endswith(".py")]
    for whole in WEIGHTS if weights else ():
        stem, _, ending = whole.rpartition(".")
        if whole in names:
            return [*wanted, whole]
        parts = [n for n in names if n.startswith(f"{stem}-") and n.endswith(f".{ending}")]
        if parts:
            return [*wanted, *parts, f"{whole}.index.json"]
    return wanted


def _download(repo: str, revision: str, files: list[str], size: int) -> Path:
    from huggingface_hub import constants, snapshot_download

    cache = _cache()
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    full = (
        f"{repo} at {revision} needs {size / 1e9:.2f} GB in {cache}, and {free / 1e9:.2f} GB are "
        "free there. Delete revisions that are no longer needed (hf cache), or set HF_HOME to a "
        "folder on another disk."
    )
    if size * 1.02 > free:
        raise OSError(errno.ENOSPC, full)
    if size > 50e6:
        print(
            f"Downloading {repo} at {revision}: {size / 1e6:,.0f} MB ({free / 1e9:.1f} GB free on "
            "the disk)."
        )
    try:
        endpoint = constants.ENDPOINT
        path = snapshot_download(repo, revision=revision, allow_patterns=files, endpoint=endpoint)
    except Exception as error:  # the disk's, the hub's, or whatever its HTTP library raises
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(errno.ENOSPC, full) from error
        raise ConnectionError(
            f"The download of {repo} at {revision} broke off ({type(error).__name__}: "
            f"{without_secrets(str(error))}). What came is kept: run again to go on."
        ) from error
    return Path(path)
