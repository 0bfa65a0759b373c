"""A hub cache as the client lays it out, and a small hub that answers as the real one does, for
tests without network.

The models have random or briefly trained weights, the true architectures, and a config.json with
the published keys.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

ARCHITECTURES = {
    "gpt_neox": ("GPTNeoXForCausalLM", torch.float16),
    "olmo": ("OlmoForCausalLM", torch.float32),
    "olmo2": ("Olmo2ForCausalLM", torch.float32),
    "bloom": ("BloomForCausalLM", torch.float16),
}


def shrunk(config: dict, layers: int, width: int = 32, vocabulary: int | None = None) -> dict:
    """The same keys with fewer and narrower layers, and fewer tokens where asked."""
    small = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "n_layer": layers,
        "intermediate_size": 2 * width,
    }
    small |= {"num_attention_heads": 4, "num_key_value_heads": 4, "n_head": 4}
    if vocabulary:
        small |= {
            "vocab_size": vocabulary,
            **{f"{kind}_token_id": 0 for kind in ("bos", "eos", "pad", "unk")},
        }
    return {key: small.get(key, value) for key, value in config.items()}


def random_model(config: dict, seed: int = 0) -> PreTrainedModel:
    keys = dict(config)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(keys.pop("model_type"), **keys))


def briefly_trained(
    config: dict, rows: torch.Tensor, steps: Sequence[int], batch: int = 16, lr: float = 3e-3
) -> Iterator[PreTrainedModel]:
    """One model after each number of steps, trained on rows of token ids in their order: [rows,
    length].

    To be quick, only the tokens that occur in `rows` are trained and compete in the loss: a model
    with these few words is trained, and its rows are put into the embeddings of a random model of
    full vocabulary.
    """
    words, rows = rows.unique(return_inverse=True)
    model, whole = random_model(config | {"vocab_size": len(words)}), random_model(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(max(steps) + 1):
        if step in steps:
            state = model.state_dict()
            for name, tensor in whole.state_dict().items():  # the tensors of `whole` itself
                tensor[words if tensor.shape != state[name].shape else ...] = state[name]
            yield whole
        here = rows[torch.arange(step * batch, (step + 1) * batch) % len(rows)]
        optimiser.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20)  # a warm-up
        optimiser.zero_grad()
        model(here, labels=here).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def published_files(
    config: dict, seed: int = 0, shards: int = 1, model: PreTrainedModel | None = None
) -> dict[str, bytes]:
    """The files of one checkpoint as they are published: name -> content, without a tokenizer.

    `model`: whose weights; None: random ones, by `seed`.
    """
    architecture, dtype = ARCHITECTURES[config["model_type"]]
    model = model or random_model(config, seed)
    state = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    files = {
        "config.json": {"architectures": [architecture], "torch_dtype": str(dtype)[6:], **config}
    }
    if config["model_type"] == "bloom":  # published as a pickle, of the model without its head
        state = {
            n.removeprefix("transformer."): t for n, t in state.items() if n != "lm_head.weight"
        }
        return {
            **_encoded(files),
            "pytorch_model.bin": _bytes(lambda path: torch.save(state, path)),
        }
    if config["model_type"] == "gpt_neox":
        state = {n.replace("lm_head.", "embed_out."): t for n, t in state.items()}
        for layer in range(
            config["num_hidden_layers"]
        ):  # older versions of transformers saved these
            at = f"gpt_neox.layers.{layer}.attention"
            state[f"{at}.bias"] = torch.ones(1, 1, 2048, 2048, dtype=torch.bool).tril()
            state[f"{at}.masked_bias"] = torch.tensor(-1e9).half()
    if shards == 1:
        return {
            **_encoded(files),
            "model.safetensors": _bytes(lambda path: save_file(state, path, {"format": "pt"})),
        }
    names = sorted(state)
    where = {
        n: f"model-{i * shards // len(names) + 1:05}-of-{shards:05}.safetensors"
        for i, n in enumerate(names)
    }
    files["model.safetensors.index.json"] = {"metadata": {}, "weight_map": where}
    parts = {file: {n: state[n] for n in names if where[n] == file} for file in set(where.values())}
    for file, part in parts.items():
        files[file] = _bytes(lambda path, part=part: save_file(part, path, {"format": "pt"}))
    return _encoded(files)


def _encoded(files: dict) -> dict[str, bytes]:
    return {n: c if isinstance(c, bytes) else json.dumps(c).encode() for n, c in files.items()}


def _bytes(save) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def commit_of(repo: str, revision: str) -> str:
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


def put(cache: Path, repo: str, revision: str, files: dict[str, bytes]) -> Path:
    """Lay out a revision as the client does: blobs, a snapshot of links to them, and a ref without
    a newline.
    """
    folder, commit = cache / f"models--{repo.replace('/', '--')}", commit_of(repo, revision)
    snapshot = folder / "snapshots" / commit
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        (folder / "blobs" / digest).write_bytes(content)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(f"../../blobs/{digest}")
    (folder / "refs" / revision).write_text(commit)
    return snapshot


class SmallHub:
    """A hub on this machine.

    `repos`: repo -> revision -> files; `gated`: repos that are closed; `mode`: "fine", "silent", or
    a status to answer; `damaged`: file -> what is sent of it instead. What is pushed with `token`
    is there afterwards, at "main" and at its commit.
    """

    def __init__(self, repos: dict[str, dict[str, dict[str, bytes]]], token: str = "hf_secret"):
        self.repos, self.gated, self.mode, self.asked = repos, set(), "fine", []
        self.token, self.heads, self.damaged = token, {}, {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self)

            do_GET = do_HEAD

            def do_POST(self) -> None:
                hub.take(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit_at(self, repo: str, revision: str) -> str:
        if re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        return self.heads.get((repo, revision)) or commit_of(repo, revision)

    def take(self, request: BaseHTTPRequestHandler) -> None:
        """What a client sends to make a repository and a commit in it."""
        body = _body(request)
        path = request.path.split("?")[0].strip("/")
        self.asked.append(f"POST {request.path}")
        if isinstance(self.mode, int):
            return self._send(request, self.mode, b"{}")
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(request, 401, {"error": "Invalid username or password."})
        if path == "api/validate-yaml":
            return self._send(request, 200, {"errors": [], "warnings": []})
        if path == "api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            status = 409 if repo in self.repos else 200
            self.repos.setdefault(repo, {"main": {".gitattributes": b""}})
            return self._send(request, status, {"url": f"{self.url}/{repo}", "id": repo})
        _, _, *name, kind, revision = path.split("/")
        repo = "/".join(name)
        if kind == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._send(request, 200, {"files": files})
        assert kind == "commit", path
        files = dict(self.repos[repo][revision])
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hashlib.sha1(body + str(len(self.asked)).encode()).hexdigest()
        self.repos[repo] |= {revision: files, commit: files}
        self.heads[repo, revision] = commit
        url = f"{self.url}/{repo}/commit/{commit}"
        self._send(request, 200, {"success": True, "commitOid": commit, "commitUrl": url})

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0].strip("/").split("/")
        self.asked.append(f"{request.command} {request.path}")
        if self.mode == "silent":
            time.sleep(20)
        if isinstance(self.mode, int):
            return self._send(request, self.mode, b"{}")
        api = path[:2] == ["api", "models"]
        path = path[2:] if api else path
        repo, kind, revision, file = "/".join(path[:2]), *[*path[2:], "", "", ""][:3]
        revisions = self.repos.get(repo)
        if revisions is None:
            return self._send(request, 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if kind == "refs":
            branches = [
                {"name": r, "ref": f"refs/heads/{r}", "targetCommit": self.commit_at(repo, r)}
                for r in revisions
            ]
            return self._send(request, 200, {"branches": branches, "tags": [], "converts": []})
        if repo in self.gated and not api:
            return self._send(request, 403, b"{}", {"X-Error-Code": "GatedRepo"})
        found = next((r for r in revisions if revision in (r, self.commit_at(repo, r))), None)
        if found is None:
            return self._send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files, commit = revisions[found], self.commit_at(repo, found)
        if kind == "revision":
            siblings = [
                {"rfilename": n, "size": len(c), "blobId": commit} for n, c in files.items()
            ]
            return self._send(request, 200, {"id": repo, "sha": commit, "siblings": siblings})
        if kind == "tree":
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": commit} for n, c in files.items()
            ]
            return self._send(request, 200, tree)
        if file not in files:
            return self._send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound"})
        marks = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(files[file]).hexdigest()}"'}
        self._send(request, 200, self.damaged.get(file, files[file]), marks)

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler, status: int, content, headers: dict[str, str] | None = None
    ) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """What came with a request, of a length that is told or in chunks."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline(), 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)
