"""What of a hub repository is cached here, and fetching the rest, with a plain message where that cannot be.

The hub's client and transformers retry for minutes where there is no network. So the cache is looked at first, without
any network; only if something is missing is the hub asked, once, with a time limit; only if it answers does the client
begin. Everything is then loaded from the folder in the cache.
"""

import errno
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from ctt_helpers.presets import nearest
from ctt_helpers.runtime import abridged, read_json

LOG_IN = "then log in here (hf auth login, or the variable HF_TOKEN)"
SECONDS = 2.0  # how long the hub has to answer the first question
SMALL_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")  # one of them makes a tokenizer
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # whole, or in parts with an index beside them


def snapshot(repo: str, revision: str) -> Path | None:
    """The cache's folder of a revision, complete or not; None where there is none. Needs no network."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model")
    ref = folder / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    return found if (found := folder / "snapshots" / commit).is_dir() else None


def find(repo: str, revisions: Sequence[str], *names: str) -> Path | None:
    """The cache's folder of the last of the revisions that has one of the named files; None where none has."""
    folders = (snapshot(repo, revision) for revision in reversed(revisions))
    return next((f for f in folders if f and any((f / name).is_file() for name in names)), None)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; [] unless all are there (a broken download leaves some out)."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            files = [folder / part for part in sorted(set(read_json(index)["weight_map"].values()))]
            if all(file.is_file() for file in files):
                return files
    return []


def cached(repo: str, revision: str) -> str:
    """Whether a revision's configuration and weights are here: "yes", "in part" or "no". Needs no network."""
    folder = snapshot(repo, revision)
    if folder is None:
        return "no"
    return "yes" if (folder / "config.json").is_file() and weight_files(folder) else "in part"


def fetch(repo: str, revision: str, known: Sequence[str] = (), weights: bool = True) -> Path:
    """Folder with a revision's files; what is missing is downloaded first, after a line that says how much.

    A revision that is cached is taken as it is: published checkpoints do not change, and no network is touched.

    Args:
        repo: "org/name".
        revision: branch, tag or commit.
        known: revisions to suggest where this one does not exist.
        weights: False: only the configuration and the tokenizer.

    Raises:
        FileNotFoundError: no such repository or revision, or it is not cached and HF_HUB_OFFLINE forbids the network.
        ConnectionError: the hub does not answer, or the download broke off.
        PermissionError: the repository is gated.
        OSError: too little space on the disk.
    """
    folder = snapshot(repo, revision)
    if folder is not None and (folder / "config.json").is_file():
        if weight_files(folder) if weights else any((folder / name).is_file() for name in TOKENIZER_FILES):
            return folder
    sizes = _ask(repo, revision, known)
    files = _wanted(sizes, weights)
    if weights and not set(files) - set(SMALL_FILES):
        raise FileNotFoundError(f"{repo} at {revision} holds no weights that can be read ({' or '.join(WEIGHTS)}).")
    missing = sum(sizes[name] for name in files if folder is None or not (folder / name).is_file())
    return _download(repo, revision, files, missing)


def _ask(repo: str, revision: str, known: Sequence[str]) -> dict[str, int]:
    """Sizes in bytes of a revision's files, from the hub; errors say what is wrong."""
    from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata, hf_hub_url

    at, here = f"{repo} at {revision}", [r for r in known if cached(repo, r) == "yes"]
    state = f"{at} is {'only in part' if cached(repo, revision) == 'in part' else 'not'} in the cache"
    cache = f"Cached here: {abridged(here)}." if here else "None of its checkpoints is cached here."
    otherwise = f'{cache} The embedded suite, load_suite("tiny"), needs no network.'
    if constants.HF_HUB_OFFLINE:
        told = f"{state}, and HF_HUB_OFFLINE forbids the network: unset it (and start Python again) to download."
        raise FileNotFoundError(f"{told} {otherwise}")
    api = HfApi(endpoint=constants.ENDPOINT)
    url = hf_hub_url(repo, "config.json", revision=revision, endpoint=constants.ENDPOINT)
    try:
        _within(SECONDS, lambda: get_hf_file_metadata(url, timeout=SECONDS))
        found = _within(10.0, lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=10.0))
    except errors.GatedRepoError as error:
        told = f"{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo} in a browser, {LOG_IN}."
        raise PermissionError(told) from error
    except errors.RevisionNotFoundError as error:
        with suppress(Exception):  # it only makes the message better
            refs = _within(0.9, lambda: api.list_repo_refs(repo))
            known = [ref.name for ref in (*refs.branches, *refs.tags)] or known
        there = f" It has {len(known)}: {abridged(known)}." if known else ""
        raise FileNotFoundError(f"{repo} has no revision {revision!r}.{nearest(revision, known)}{there}") from error
    except errors.RepositoryNotFoundError as error:
        told = f"The hub has no repository {repo!r} that can be seen here: look at the spelling; if it is private, "
        raise FileNotFoundError(f"{told}{LOG_IN}.") from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{at} holds no config.json: it is not a transformers model.") from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", "an error")
        hint = "too many requests: wait, or log in" if code == 429 else "try again later"
        raise ConnectionError(f"The hub answers {code} for {at} ({hint}). {otherwise}") from error
    except Exception as error:  # whatever the client's HTTP library raises: no name, no route, no answer, no proxy
        raise ConnectionError(f"{state}, and {_unreachable(error)} {otherwise}") from error
    return {file.rfilename: file.size or 0 for file in found.siblings or []}


def require_hub(what: str, otherwise: str) -> None:
    """A quick look whether the hub answers, before its client tries for minutes; none where it is told not to ask.

    Raises:
        ConnectionError: no answer within two seconds.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        _within(SECONDS, lambda: get_session().head(constants.ENDPOINT, timeout=SECONDS))  # any answer will do
    except Exception as error:  # whatever the client's HTTP library raises
        raise ConnectionError(f"{what} cannot be read: {_unreachable(error)} {otherwise}") from error


def _unreachable(error: Exception) -> str:
    from huggingface_hub import constants

    why = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
    why = f"no answer within {SECONDS:g} s" if isinstance(error, TimeoutError) else why
    advice = "Look at the network and at HF_ENDPOINT and HTTPS_PROXY if you set them."
    return f"the hub ({constants.ENDPOINT}) cannot be reached ({why}). {advice}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, as a sentence."""
    line = (str(error) or type(error).__name__).strip().splitlines()[0]
    return line if line.endswith((".", "!", "?")) else line + "."


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """`call()` on a thread of its own, given up after `seconds`: looking up a host's name has no time limit."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(timeout=seconds)


def _wanted(names: Sequence[str], weights: bool) -> list[str]:
    """Configuration, tokenizer, and the weights in one format only: the first of `WEIGHTS` that is there."""
    wanted = [name for name in names if name in SMALL_FILES]
    for name in WEIGHTS if weights else ():
        stem, _, ending = name.rpartition(".")
        found = [n for n in names if n == name or (n.startswith(f"{stem}-") and n.endswith(f".{ending}"))]
        if found:
            return wanted + ([name] if name in found else [*found, f"{name}.index.json"])
    return wanted


def _download(repo: str, revision: str, files: list[str], size: int) -> Path:
    from huggingface_hub import constants, snapshot_download

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    full = (
        f"{repo} at {revision} needs {size / 1e9:.2f} GB in {cache}, and {free / 1e9:.2f} GB are free there. Delete "
        "revisions that are no longer needed (hf cache), or set HF_HOME to a folder on another disk."
    )
    if size * 1.02 > free:
        raise OSError(errno.ENOSPC, full)
    if size > 50e6:
        print(f"Downloading {repo} at {revision}: {size / 1e6:,.0f} MB ({free / 1e9:.1f} GB free on the disk).")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=files, endpoint=constants.ENDPOINT))
    except Exception as error:  # the disk's, the hub's, or whatever the client's HTTP library raises
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise OSError(errno.ENOSPC, full) from error
        told = f"The download of {repo} at {revision} broke off ({type(error).__name__}: {error})."
        raise ConnectionError(f"{told} What came is kept: run again to go on.") from error
